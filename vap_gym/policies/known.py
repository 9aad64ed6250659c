"""By what weights are known again: short digests of files, folders, arrays and modules."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from vap_gym.assets import weights_dir
from vap_gym.cards import load_env

DIGITS = 16
BLOCK_BYTES = 2**20
FEW = 64  # numbers of each tensor that are looked at: training changes them all
FAMILIAR = "familiar.json"  # in a folder of weights; it names the sha256 of the network that it tells by
SAID_OF_A_MODEL = ("README.md", "scores.json", FAMILIAR, "oddness")  # likewise, but not what the weights do
ENDS_BYTES = 65536  # of each end of a file of weights, by which it is known again


def file_digest(path: Path) -> str:
    """Return the first 16 hexadecimals of a file's SHA-256."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            found.update(block)
    return found.hexdigest()[:DIGITS]


def arrays_digest(arrays: Iterable[tuple[str, np.ndarray]]) -> str:
    """Return the same of arrays with their names, in this order."""
    found = hashlib.sha256()
    for name, array in arrays:
        found.update(f"{name} {array.dtype} {array.shape}\n".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()[:DIGITS]


def module_digest(module: Any) -> str:
    """Return the same of a torch module's weights, by the beginning of every tensor; "" of what is no module."""
    import torch

    if not isinstance(module, torch.nn.Module):
        return ""
    tensors = module.state_dict().items()
    return arrays_digest(
        (f"{name} {tuple(tensor.shape)}", tensor.detach().flatten()[:FEW].cpu().double().numpy())
        for name, tensor in tensors
        if isinstance(tensor, torch.Tensor)
    )


def weights_digest(world_model: str | Path) -> str:
    """Return what a model's folder is known by: names, sizes and both ends of its files; "" where there is none.

    What is only said of a model (its README.md and scores.json), and by what strange starts are told, does not count.
    """
    folder = _folder(world_model)
    counts = [path for path in _files(folder) if path.relative_to(folder).parts[0] not in SAID_OF_A_MODEL]
    return _ends_digest(folder, counts)


def familiar_digest(world_model: str | Path, robot: str) -> str:
    """Return what a model's telling of a robot's strange starts is known by (`trust.familiar`), which its weights leave
    out; "" where it tells none."""
    path = _folder(world_model) / FAMILIAR
    table = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"robots": {}}
    if robot not in table["robots"]:
        return ""
    told = json.dumps([table["sha256"], table["quantiles"], table["robots"][robot]])
    return hashlib.sha256(told.encode()).hexdigest()[:DIGITS]


def judge_digest(judge: str | Path) -> str:
    """Return the same of a judge: of the two parts that it is made of in the folder of a world model."""
    folder = _folder(judge)
    return _ends_digest(folder, [path for part in ("judge", "codec") for path in _files(folder / part)])


def sight_digest(card: str, world_model: str, judge: str) -> str:
    """Return what a policy is known by that looks through a world model and a judge: the digests of both.

    Args:
        card: of the env whose world model it is where `world_model` is "".
    """
    return f"{weights_digest(world_model or load_env(card).world_model)}+{judge_digest(judge)}"


def _folder(model: str | Path) -> Path:
    return Path(model) if Path(model).is_dir() else weights_dir() / model


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def _ends_digest(folder: Path, files: Iterable[Path]) -> str:
    found, count = hashlib.sha256(), 0
    for path in sorted(files):
        size, count = path.stat().st_size, count + 1
        found.update(f"{path.relative_to(folder)} {size}\n".encode())
        with path.open("rb") as file:
            found.update(file.read(ENDS_BYTES))
            file.seek(max(0, size - ENDS_BYTES))
            found.update(file.read())
    return found.hexdigest()[:DIGITS] if count else ""
