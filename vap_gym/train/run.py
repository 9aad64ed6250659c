"""A training run on disk: log, curves, checkpoints that resume exactly; recipes read from TOML."""

from __future__ import annotations

import json
import os
import time
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from vap_gym.errors import CardError, CheckpointError, unknown_name

RecipeT = TypeVar("RecipeT")


def recipes_dir() -> Path:
    """The folder of the shipped recipes."""
    return Path(__file__).resolve().parent / "recipes"


def load_recipe(kind: type[RecipeT], name_or_path: str | Path) -> RecipeT:
    """Read a recipe (a shipped name or a TOML file) into its frozen dataclass; an unknown key is an error."""
    path = Path(name_or_path)
    if path.suffix != ".toml":
        known = sorted(p.stem for p in recipes_dir().glob("*.toml"))
        if str(name_or_path) not in known:
            raise unknown_name("recipe", str(name_or_path), known)
        path = recipes_dir() / f"{name_or_path}.toml"
    if not path.is_file():
        raise CardError(f"No recipe at '{path}'. Give a TOML file that exists, or a shipped name.")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise CardError(f"{path} is no valid TOML: {error}.") from error
    known = [f.name for f in fields(kind)]  # type: ignore[arg-type]
    for key in table:
        if key not in known:
            raise CardError(f"{path}: {unknown_name('key', key, known)}")
    try:
        return kind(**table)
    except TypeError as error:
        raise CardError(f"{path}: {error}.") from error


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Learning rate: linear warm-up, flat, then a cosine to `floor` of the peak over the last `decay` share."""

    peak: float
    steps: int
    warmup_steps: int = 200
    decay: float = 0.5
    floor: float = 0.02

    def __call__(self, step: int) -> float:
        """The learning rate of a step."""
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        start = (1.0 - self.decay) * self.steps
        if step <= start:
            return self.peak
        share = min((step - start) / max(self.steps - start, 1), 1.0)
        cosine = 0.5 + 0.5 * torch.cos(torch.tensor(share * torch.pi)).item()
        return self.peak * (self.floor + (1.0 - self.floor) * cosine)


class Ema:
    """An exponential moving average of a model's parameters, with a warm-up of its own."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.shadow = {name: p.detach().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take one step towards the model's parameters."""
        decay = min(self.decay, (1 + step) / (10 + step))
        names = list(self.shadow)
        parameters = dict(model.named_parameters())
        torch._foreach_lerp_([self.shadow[n] for n in names], [parameters[n].detach() for n in names], 1.0 - decay)

    def copy_into(self, model: nn.Module) -> None:
        """Give a model the averaged parameters."""
        model.load_state_dict(self.shadow, strict=False)


class Run:
    """The folder of one run: `log.jsonl`, `curves.png`, `state.pt`, whatever else the training writes.

    `state.pt` holds everything that a resumed run needs to go on as if it had not been stopped.
    """

    def __init__(self, folder: Path, *, resume: bool) -> None:
        self.folder = folder
        if folder.exists() and any(folder.iterdir()) and not resume:
            raise CheckpointError(
                f"The run folder '{folder}' must be empty for a new run, but it is not. "
                "Pass --resume to go on with it, or choose another folder."
            )
        folder.mkdir(parents=True, exist_ok=True)
        self._log = folder / "log.jsonl"
        self._began = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """The saved state, or None where there is none yet."""
        path = self.folder / "state.pt"
        if not path.exists():
            return None
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=False)
        self._trim_log(state["step"])
        return state

    def save(self, state: Mapping[str, Any]) -> None:
        """Write the state under a temporary name and put it in place."""
        temporary = self.folder / f".state.{os.getpid()}.tmp"
        torch.save(dict(state), temporary)
        temporary.replace(self.folder / "state.pt")

    def log(self, step: int, **values: float) -> None:
        """Append one line to the log."""
        row = {"step": step, "seconds": round(time.monotonic() - self._began, 1)}
        row |= {k: float(f"{v:.6g}") for k, v in values.items()}
        with self._log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def rows(self) -> list[dict[str, int | float]]:
        """All log lines so far."""
        if not self._log.exists():
            return []
        return [json.loads(line) for line in self._log.read_text(encoding="utf-8").splitlines()]

    def told(self) -> dict[str, Any]:
        """Return what has come of it as plain JSON: its folders, and the newest of every figure in the log."""
        newest: dict[str, Any] = {}
        for row in self.rows():
            newest |= row
        return {"out": str(self.folder), "model": str(self.folder / "model"), **newest}

    def _trim_log(self, step: int) -> None:
        """Forget lines past the state that is resumed, so that no step is logged twice."""
        kept = [json.dumps(row) for row in self.rows() if row["step"] <= step]
        self._log.write_text("".join(line + "\n" for line in kept), encoding="utf-8")

    def draw_curves(self, groups: Iterable[tuple[str, ...]]) -> None:
        """Draw the logged values as `curves.png`, one panel per group of names."""
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        rows, groups = self.rows(), list(groups)
        figure, axes = pyplot.subplots(1, len(groups), figsize=(5 * len(groups), 3.4), squeeze=False)
        for axis, names in zip(axes[0], groups, strict=True):
            for name in names:
                points = [(row["step"], row[name]) for row in rows if name in row]
                if points:
                    axis.plot(*zip(*points, strict=True), label=name, linewidth=1)
            axis.set_xlabel("step")
            axis.grid(alpha=0.3)
            if axis.lines:
                axis.legend(fontsize=8)
        figure.tight_layout()
        temporary = self.folder / ".curves.tmp.png"
        figure.savefig(temporary, dpi=90)
        temporary.replace(self.folder / "curves.png")
        pyplot.close(figure)


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 autocast where it pays: any GPU, and CPUs with bf16 matrix instructions."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type != "cpu" or cpu_has_bf16())


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bf16 natively; elsewhere bf16 can be hundreds of times slower than fp32."""
    return bool(torch.cpu._is_avx512_bf16_supported())


def seeded(seed: int, *, device: torch.device | None = None) -> torch.Generator:
    """A generator of its own, so that no global seed is touched."""
    return torch.Generator(device or "cpu").manual_seed(seed)


@contextmanager
def initialised_with(seed: int) -> Iterator[None]:
    """Draw initial weights from `seed`; torch's global generator is as before afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def mean(values: list[Tensor]) -> float:
    """Mean of scalar tensors."""
    return float(torch.stack([v.detach().float() for v in values]).mean())
