"""Weights of yours for learned metrics: read without running code, and fitted to our modules key by key."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from vap_gym.errors import CheckpointError

WRAPPERS = ("state_dict", "model_state_dict", "model")  # under which trainers keep the state dict in a larger file


def read_weights(path: str | Path, *, wanted: str) -> dict[str, Tensor]:
    """Read a state dict from .safetensors, or from .pth/.pt with torch's weights-only loader.

    A dict inside a trainer's file and the prefix "module." of DataParallel are taken off. `wanted` says in an error
    what the file should be.

    Raises:
        CheckpointError: the file is missing, cut short, damaged, or holds something else than tensors by name.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"No weights at '{path}', got {_kind(path)}. Give the path of {wanted}.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            loaded: object = load_file(path)
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise about anything; whatever it is, the file is to blame
        told = str(error).strip().split("\n")[0][:160] or type(error).__name__
        raise CheckpointError(
            f"'{path}' cannot be read as weights: {told}. It is damaged or no state dict: fetch {wanted} anew."
        ) from error
    for name in WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(name), Mapping):
            loaded = loaded[name]
    tensors = {
        str(key).removeprefix("module."): value
        for key, value in (loaded.items() if isinstance(loaded, Mapping) else ())
        if isinstance(value, Tensor)
    }
    if not tensors:
        raise CheckpointError(
            f"'{path}' must hold tensors by name, got {type(loaded).__name__} without any. Give {wanted}."
        )
    return tensors


def load_weights(module: nn.Module, tensors: Mapping[str, Tensor], *, source: str, wanted: str) -> None:
    """Put `tensors` into `module`, whose keys must all be there with their shapes; what it has no place for is left.

    Counters of batches seen by a batch norm may be absent: they change nothing.

    Raises:
        CheckpointError: keys that are missing, or of another shape; each is named.
    """
    places = module.state_dict()
    missing = [k for k in places if k not in tensors and not k.endswith("num_batches_tracked")]
    wrong = [k for k in places if k in tensors and tensors[k].shape != places[k].shape]
    if missing or wrong:
        shapes = [f"{k} {tuple(tensors[k].shape)} instead of {tuple(places[k].shape)}" for k in wrong]
        raise CheckpointError(
            f"The weights of {source} do not fit: missing {_some(missing)}; of another shape {_some(shapes)}; "
            f"the file has {len(tensors)} tensors, e.g. {_some(list(tensors)[:2])}. Give {wanted}."
        )
    broken = [k for k in places if k in tensors and not torch.isfinite(tensors[k]).all()]
    if broken:
        raise CheckpointError(
            f"The weights of {source} hold NaN or infinities in {_some(broken)}. Fetch {wanted} anew."
        )
    module.load_state_dict({k: tensors[k].to(v.dtype) if k in tensors else v for k, v in places.items()})
    module.eval().requires_grad_(False)


def _kind(path: Path) -> str:
    return "a folder" if path.is_dir() else "no such file"


def _some(names: list[str]) -> str:
    return "none" if not names else ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
