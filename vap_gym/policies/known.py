"""By what weights are known again: short digests of files, arrays and modules."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

DIGITS = 16
BLOCK_BYTES = 2**20
FEW = 64  # numbers of each tensor that are looked at: training changes them all


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
