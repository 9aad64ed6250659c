"""Weights in diffusers' folders, whole or in shards, here or on the hub: each is loaded, or named in an error."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers.models.modeling_utils import ModelMixin
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vap_gym.errors import CheckpointError
from vap_gym.world.checkpoint import read_json, replaced_text, sha256_of

STEM = "diffusion_pytorch_model"
CONFIG = "config.json"
ModelT = TypeVar("ModelT", bound=ModelMixin)


def weight_files(folder: Path, stem: str = STEM) -> dict[str, set[str] | None]:
    """Return the safetensors files of a folder and the keys that its index says they hold (None: there is no index).

    Raises CheckpointError where there are no weights, or a shard that the index names is not there.
    """
    index = folder / f"{stem}.safetensors.index.json"
    if not index.is_file():
        if not (folder / f"{stem}.safetensors").is_file():
            raise CheckpointError(
                f"'{folder}' must hold {stem}.safetensors, or its index and shards, but does not. Fetch it again."
            )
        return {f"{stem}.safetensors": None}
    shards: dict[str, set[str] | None] = {}
    for key, name in read_json(index).get("weight_map", {}).items():
        shards.setdefault(str(name), set()).add(key)  # type: ignore[union-attr]
    absent = [name for name in shards if Path(name).name != name or not (folder / name).is_file()]
    if absent or not shards:
        raise CheckpointError(
            f"'{index}' must name shards that are beside it; not there: {_some(absent) if absent else 'all'}. "
            "Fetch the folder again."
        )
    return shards


def read_weights(folder: Path, stem: str = STEM) -> Iterator[tuple[str, Tensor]]:
    """Yield all tensors of a folder, one shard in memory at a time. Raises CheckpointError for damaged files."""
    for name, expected in weight_files(folder, stem).items():
        try:
            tensors = load_file(folder / name)
        except SafetensorError as error:
            raise CheckpointError(
                f"'{folder / name}' is no whole safetensors file: {error}. Fetch it again."
            ) from error
        if expected is not None and expected != tensors.keys():
            raise CheckpointError(
                f"'{folder / name}' must hold what its index says: missing {_some(expected - tensors.keys())}; "
                f"unexpected {_some(tensors.keys() - expected)}. Fetch the folder again."
            )
        yield from tensors.items()


@torch.no_grad()
def fill(module: nn.Module, folder: Path, stem: str = STEM) -> None:
    """Copy a folder's weights into a module of any dtype.

    Raises:
        CheckpointError: naming every weight that is missing, unexpected or of another shape.
    """
    wanted = module.state_dict()
    seen, extra, wrong = set(), [], []
    for key, value in read_weights(folder, stem):
        if key not in wanted:
            extra.append(key)
        elif wanted[key].shape != value.shape:
            wrong.append(f"{key} {tuple(value.shape)} for {tuple(wanted[key].shape)}")
        else:
            wanted[key].copy_(value)
        seen.add(key)
    missing = wanted.keys() - seen
    if missing or extra or wrong:
        raise CheckpointError(
            f"The weights of '{folder}' do not fit {type(module).__name__}: missing {_some(missing)}; unexpected "
            f"{_some(extra)}; of another shape {_some(wrong)}. Load them with the config they were saved with."
        )


def load_module(kind: type[ModelT], folder: Path, *, dtype: torch.dtype = torch.float32) -> ModelT:
    """Make a model from a folder's config and fill it with the folder's weights; every one of them must fit."""
    return filled(kind, read_config(kind, folder), folder, dtype=dtype)


def filled(kind: type[ModelT], config: dict[str, Any], folder: Path, *, dtype: torch.dtype) -> ModelT:
    """Make a model of a configuration in `dtype` and fill it with the folder's weights."""
    try:
        with default_dtype(dtype):
            model = kind(**config)
    except (TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"'{folder / CONFIG}' is no configuration of {kind.__name__}: {error} Fetch it again."
        ) from error
    fill(model, folder)
    return model  # type: ignore[no-any-return]


def read_config(kind: type, folder: Path) -> dict[str, Any]:
    """Return the settings of a folder's config.json that `kind` is made with.

    Raises CheckpointError where the file is missing, or has a setting that this version of `kind` does not know: it
    could change what the weights mean.
    """
    if not (folder / CONFIG).is_file():
        raise CheckpointError(f"'{folder}' must hold {CONFIG}, but does not. Fetch it again.")
    config = {name: value for name, value in read_json(folder / CONFIG).items() if not name.startswith("_")}
    known = set(inspect.signature(kind.__init__).parameters) - {"self"}  # type: ignore[misc]
    if config.keys() - known:
        raise CheckpointError(
            f"'{folder / CONFIG}' has settings that {kind.__name__} does not know here: "
            f"{_some(config.keys() - known)}. It may be another model, or made for a newer version."
        )
    return config


class default_dtype:
    """Within it, new parameters are of this dtype: a large model is never there in float32 first."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __enter__(self) -> None:
        self.before = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)

    def __exit__(self, *error: object) -> None:
        torch.set_default_dtype(self.before)


def save_module(
    module: ModelMixin,
    tensors: dict[str, Tensor],
    folder: Path,
    *,
    dtype: torch.dtype | None,
    shard_size: str = "5GB",
) -> dict[str, str]:
    """Write config.json and weights as diffusers does, in shards where they are large; return each file's sha256.

    Files are written under other names first; old shards that are no longer needed are removed last.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = {key: value for key, value in json.loads(module.to_json_string()).items() if key != "_name_or_path"}
    cast = {
        key: value.detach().to("cpu", dtype if dtype is not None and value.is_floating_point() else value.dtype)
        for key, value in tensors.items()
    }
    split = split_torch_state_dict_into_shards(
        cast, filename_pattern=STEM + "{suffix}.safetensors", max_shard_size=shard_size
    )
    digests = {}
    for name, keys in split.filename_to_tensors.items():
        save_file({key: cast[key].contiguous() for key in keys}, folder / f".{name}.tmp", metadata={"format": "pt"})
        digests[name] = sha256_of(folder / f".{name}.tmp")
    for name in digests:
        (folder / f".{name}.tmp").replace(folder / name)
    index = folder / f"{STEM}.safetensors.index.json"
    if split.is_sharded:
        replaced_text(
            index, json.dumps({"metadata": split.metadata, "weight_map": split.tensor_to_filename}, indent=2) + "\n"
        )
    else:
        index.unlink(missing_ok=True)
    replaced_text(folder / CONFIG, json.dumps(config, indent=2, sort_keys=True) + "\n")
    for old in folder.glob(f"{STEM}*.safetensors"):
        if old.name not in digests:
            old.unlink()
    return digests


def check_digests(folder: Path, digests: dict[str, str]) -> None:
    """Raise CheckpointError where a file is not there, or is not the one of which the index holds the sha256."""
    for name, expected in digests.items():
        file = folder / name
        if not file.is_file():
            raise CheckpointError(f"The model folder '{folder}' must hold '{name}', but does not. Fetch it again.")
        if (found := sha256_of(file)) != expected:
            raise CheckpointError(
                f"'{file}' must have the sha256 {expected[:12]}… of its index, but has {found[:12]}…: it is cut short "
                "or was changed. Fetch it again, or save it anew."
            )


def hub_folder(name: str, *, text_encoder: bool, local_files_only: bool) -> Path:
    """Return the local folder of a hub repository, fetched where it is not there yet.

    Raises:
        CheckpointError: it is not on this computer and cannot be fetched, or there is no such repository.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    wanted = ["*.json", "*.safetensors", "*.model", "*.txt"]
    skipped = None if text_encoder else ["text_encoder/*", "tokenizer/*"]
    try:
        return Path(
            snapshot_download(name, allow_patterns=wanted, ignore_patterns=skipped, local_files_only=local_files_only)
        )
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, HFValidationError, OSError) as error:
        where = "is not in this computer's hub cache" if local_files_only else "could not be fetched from the hub"
        raise CheckpointError(
            f"The weights '{name}' {where}: {str(error).splitlines()[0]} "
            f"Fetch them where there is a network (huggingface-cli download {name}), or give a folder that holds them."
        ) from error


def _some(names: Any) -> str:
    listed = sorted(names)
    return "none" if not listed else ", ".join(listed[:6]) + (f" and {len(listed) - 6} more" if listed[6:] else "")
