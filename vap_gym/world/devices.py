"""Which devices there are, and in which numbers they compute."""

from __future__ import annotations

import torch

from vap_gym.errors import VapError


def checked_device(device: torch.device | str) -> torch.device:
    """Return the device, or raise a VapError that says which there are."""
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise VapError(f"No device named '{device}'. Known here: {', '.join(devices())}.") from error
    if found.type != "cpu" and str(found) not in devices():
        raise VapError(f"Device '{device}' is not on this machine. Known here: {', '.join(devices())}.")
    return found


def devices() -> list[str]:
    """Devices that torch can use here."""
    return [
        "cpu",
        *(f"cuda:{i}" for i in range(torch.cuda.device_count())),
        *(["cuda"] if torch.cuda.is_available() else []),
    ]


def native_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where it is native; elsewhere on CPUs it can be hundreds of times slower than float32."""
    if device.type == "cpu" and not torch.cpu._is_avx512_bf16_supported():
        return torch.float32
    return torch.bfloat16
