"""`vap-gym doctor`: check this machine and installation, or a data set, for known traps, and name the way out."""

import hashlib
import os
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from vap_gym.assets import weights_dir
from vap_gym.commands.telling import json_text
from vap_gym.errors import VapError


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one check saw: fine, worth knowing, or broken; then the way out."""

    level: Literal["ok", "note", "fail"]
    subject: str
    text: str


def check_python() -> Iterator[Finding]:
    """Python is recent enough, and has wheels of the simulator."""
    text = f"{platform.python_version()} on {platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    yield Finding(level="ok", subject="python", text=text)


def check_torch() -> Iterator[Finding]:
    """Torch can be imported; which device and which precision it is fast in."""
    import torch

    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    text = f"{torch.__version__} ({build}), {torch.get_num_threads()} threads"
    yield Finding(level="ok", subject="torch", text=text)
    if torch.cuda.is_available():
        bf16 = "bfloat16" if torch.cuda.is_bf16_supported() else "no bfloat16"
        yield Finding(level="ok", subject="device", text=f"cuda: {torch.cuda.get_device_name()}, {bf16}")
    elif torch.version.cuda:
        text = "torch is a CUDA build but sees no GPU; the CPU build is smaller: make demo TORCH_INDEX=…/whl/cpu"
        yield Finding(level="note", subject="device", text=text)
    if torch.cpu._is_avx512_bf16_supported():
        yield Finding(level="ok", subject="cpu", text="has fast bfloat16")
    else:
        yield Finding(level="note", subject="cpu", text="no fast bfloat16: models run in float32 on it")


def check_torchvision() -> Iterator[Finding]:
    """Torchvision is absent, or fits the installed torch.

    One that does not fit fails on import and takes transformers, peft and diffusers down with it.
    """
    if find_spec("torchvision") is None:
        yield Finding(level="ok", subject="torchvision", text="absent, as it should be")
        return
    try:
        import_module("torchvision")
    except (ImportError, RuntimeError, AttributeError) as error:
        text = f"does not fit torch ({error}) and breaks diffusers: pip uninstall torchvision"
        yield Finding(level="fail", subject="torchvision", text=text)
    else:
        text = f"{version('torchvision')} is installed and fits torch; vap-gym does not use it"
        yield Finding(level="note", subject="torchvision", text=text)


def check_libraries() -> Iterator[Finding]:
    """The libraries that are imported late can be imported at all."""
    for name in ("gymnasium", "diffusers", "peft", "tensordict", "kornia", "av", "pyarrow", "yourdfpy"):
        try:
            import_module(name)
        except (ImportError, RuntimeError) as error:
            text = f"cannot be imported: {error}; pip install --force-reinstall vap-gym"
            yield Finding(level="fail", subject=name, text=text)
    versions = []
    for name in ("gymnasium", "diffusers", "transformers", "peft", "tensordict", "numpy"):
        try:
            versions.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            versions.append(f"{name} absent")
    yield Finding(level="ok", subject="libraries", text=", ".join(versions))


def check_simulator() -> Iterator[Finding]:
    """PyBullet is there: the oracle, the twin and data generation need it; imagining does not."""
    if find_spec("pybullet") is not None:
        yield Finding(level="ok", subject="pybullet", text=version("pybullet"))
        return
    text = "absent: imagining works, the oracle, the twin and data generation do not. "
    if sys.version_info >= (3, 12):
        text += "It has wheels for Python 3.11 only: use that, or build it with pip install pybullet"
    else:
        text += "pip install pybullet"
    yield Finding(level="note", subject="pybullet", text=text)


def check_weights(folder: Path | None = None) -> Iterator[Finding]:
    """Every shipped file of weights is whole, and its sha256 is named by a text beside it (model card, JSON)."""
    from safetensors import SafetensorError, safe_open

    folder = folder or weights_dir()
    texts = [path for path in folder.rglob("*") if path.suffix in (".md", ".json") or path.name == "SHA256SUMS"]
    named = "\n".join(path.read_text() for path in texts)
    files = sorted(folder.rglob("*.safetensors"))
    if not files:
        yield Finding(level="fail", subject="weights", text=f"none in {folder}; pip install --force-reinstall vap-gym")
    for path in files:
        name = path.relative_to(folder)
        try:
            with safe_open(path, framework="numpy") as tensors:
                count = len(tensors.keys())
        except (SafetensorError, OSError) as error:
            text = f"{name} is broken ({error}); pip install --force-reinstall vap-gym"
            yield Finding(level="fail", subject="weights", text=text)
            continue
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest in named:
            yield Finding(level="ok", subject="weights", text=f"{name}: {count} tensors, sha256 {digest[:12]}…")
        else:
            text = f"{name} has sha256 {digest}, which no model card names; pip install --force-reinstall vap-gym"
            yield Finding(level="fail", subject="weights", text=text)


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    check_python,
    check_torch,
    check_torchvision,
    check_libraries,
    check_simulator,
    check_weights,
)


def main(
    dataset: Positional[Path | None] = None, /, *, episodes: int = 24, robot: str | None = None, json: bool = False
) -> None:
    """Check this machine (python, torch, libraries, simulator, weights), or a data set for what looks wrong in it.

    Of a set: units, conventions and delay of the actions, signs of the gripper, limits, speeds and kinematics of the
    robot, jumps, blank and frozen views, lag between pictures and states. The exit code is 1 where something is broken.

    Args:
        dataset: The folder of a data set (meta/, data/, videos/); this machine is checked where none is given.
        episodes: How many episodes of the set to look at closely, spread over it.
        robot: A card's name or path, where the set names none or a wrong one.
        json: Print one JSON value on stdout instead of lines.
    """
    told: list[dict[str, str]] = []

    def tell(level: str, subject: str, text: str, why: str = "", mend: str = "") -> None:
        told.append({"level": level, "subject": subject, "text": text, "why": why, "mend": mend})
        if not json:
            _print(level, subject, text, why, mend)

    if dataset is None:
        for check in CHECKS:
            for f in check():
                tell(f.level, f.subject, f.text)
    else:
        from vap_gym.data.checkup import check_set  # here: it needs the very libraries that the other checks try

        if episodes < 1:
            raise VapError(f"--episodes must be 1 or more, got {episodes}. Try --episodes 24.")
        for found in check_set(dataset, limit=episodes, robot=robot):
            tell(found.level, found.subject, found.text, found.why, found.mend)
    broken = sum(one["level"] == "fail" for one in told)
    if json:
        print(json_text({"broken": broken, "findings": told}))
    else:
        print("all is well" if not broken else f"{broken} broken")
    raise SystemExit(1 if broken else 0)


def _print(level: str, subject: str, text: str, *reasons: str) -> None:
    """Print a finding, its reasons below it."""
    print(f"{level:<5} {subject:<12} {text}", flush=True)
    for reason in filter(None, reasons):
        print(f"{'':<18} {reason}", flush=True)
