"""Model folders in diffusers' layout, checked on loading: whole, unchanged since saving, and fitting their config."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers.models.modeling_utils import ModelMixin
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from vap_gym.errors import CheckpointError

WEIGHTS = "diffusion_pytorch_model.safetensors"
PartT = TypeVar("PartT", bound=ModelMixin)


def sha256_of(path: Path) -> str:
    """Hex digest of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def replaced_text(path: Path, text: str) -> None:
    """Write a small file under a temporary name and put it in place."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def save_part(part: ModelMixin, folder: Path, name: str, dtype: torch.dtype) -> str:
    """Write config.json and the weights in `dtype` to folder/name; return the weights' sha256."""
    target = folder / name
    target.mkdir(parents=True, exist_ok=True)
    # Without the folder that the part was loaded from: a path of one machine.
    config = {key: value for key, value in json.loads(part.to_json_string()).items() if key != "_name_or_path"}
    replaced_text(target / "config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")
    tensors = {
        key: value.detach().to("cpu", dtype if value.is_floating_point() else value.dtype).contiguous()
        for key, value in part.state_dict().items()
    }
    temporary = target / f".{WEIGHTS}.tmp"
    save_file(tensors, temporary, metadata={"format": "pt"})
    temporary.replace(target / WEIGHTS)
    return sha256_of(target / WEIGHTS)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises CheckpointError where the file is cut short or holds something else."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"'{path}' is no whole JSON file: {error}. Fetch it again.") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"'{path}' must hold a JSON object, got {type(data).__name__}. Fetch it again.")
    return data


def read_index(file: Path, kind: str) -> dict[str, Any]:
    """Read a model folder's index. Raises CheckpointError where it is of another kind, and says what loads that."""
    index = read_json(file)
    if (found := index.get("_class_name", kind)) != kind:
        loads = "vap_gym.video." + ("world.StreamWorld" if found == "StreamWorld" else "model.VideoModel")
        raise CheckpointError(
            f"'{file.parent}' must hold a {kind}, but holds a {found}. Load it with "
            f"vap_gym.load_world_model('{file.parent}') for envs, or with {loads}.from_pretrained."
        )
    return index


def load_part(kind: type[PartT], folder: Path, name: str, index: dict[str, Any]) -> PartT:
    """Read folder/name into a model of class `kind`, float32.

    Raises:
        CheckpointError: a file is missing or cut short, the sha256 of the index does not match, the config is none of
            this class, or a weight is missing, unexpected or of another shape: each is named.
    """
    source = folder / name
    for file in (source / "config.json", source / WEIGHTS):
        if not file.is_file():
            raise CheckpointError(
                f"The model folder '{folder}' must hold '{name}/{file.name}', but does not. Fetch it again."
            )
    expected = index.get("sha256", {}).get(name)
    if expected is not None and sha256_of(source / WEIGHTS) != expected:
        raise CheckpointError(
            f"'{source / WEIGHTS}' must have the sha256 {expected[:12]}… of its index, but has "
            f"{sha256_of(source / WEIGHTS)[:12]}…: it is cut short or was changed. Fetch it again, or save it anew."
        )
    try:
        tensors = load_file(source / WEIGHTS)
    except SafetensorError as error:
        raise CheckpointError(f"'{source / WEIGHTS}' is no whole safetensors file: {error}. Fetch it again.") from error
    try:
        model: PartT = kind.from_config(read_json(source / "config.json"))
    except (TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"'{source / 'config.json'}' is no configuration of {kind.__name__}: {error} Fetch it again."
        ) from error
    wanted = model.state_dict()
    missing, extra = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    wrong = [k for k in wanted.keys() & tensors.keys() if wanted[k].shape != tensors[k].shape]
    if missing or extra or wrong:
        raise CheckpointError(
            f"The weights of '{source}' do not fit its config: missing {_some(missing)}; unexpected {_some(extra)}; "
            f"of another shape {_some(sorted(wrong))}. Load them with the config they were saved with."
        )
    model.load_state_dict({key: value.to(wanted[key].dtype) for key, value in tensors.items()})
    return model


def _some(names: list[str]) -> str:
    return "none" if not names else ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
