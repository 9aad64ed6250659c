"""Drift that was measured: every step's PSNR, episode by episode and world by world, in one small file of JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from vap_gym.errors import CheckpointError, VapError, require
from vap_gym.evaluate.report import table, write
from vap_gym.metrics import bootstrap_interval

FORMAT = "vap_gym streaming 1"
SHOWN = (1, 5, 10, 24, 50, 100, 150, 200)  # steps
FROZEN, CODEC = "first frame, frozen", "codec on true frames"
BESIDE = {FROZEN: "tab:gray", CODEC: "black"}
"""What is measured beside the world models, and its colour."""


class Drift:
    """Worlds × episodes, each with the PSNR of its steps; and the speed, where it was measured.

    A world is known by the name it is shown by. Runs that go on from one file must be of the same episodes, and each
    world of the same weights: anything else is refused.

    Args:
        settings: plain JSON that decides which episodes these are.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings: dict[str, Any] = json.loads(json.dumps(dict(settings)))
        self.weights: dict[str, str] = {}  # by world: the digest; "" where it has none
        self.runs: list[dict[str, Any]] = []
        self.speed: dict[str, Any] | None = None
        self.rows: dict[str, dict[int, list[float]]] = {}  # by world and number of the episode

    @classmethod
    def load(cls, path: str | Path) -> Drift:
        """Read what `save` wrote. Raises CheckpointError where it is something else."""
        try:
            held = json.loads(Path(path).read_text(encoding="utf-8"))
            if held["format"] != FORMAT:
                raise KeyError(f"format '{FORMAT}', got '{held['format']}'")
            found = cls(held["settings"])
            found.weights, found.runs, found.speed = dict(held["weights"]), list(held["runs"]), held["speed"]
            for world, episode, psnr in held["rows"]:
                found.rows.setdefault(world, {})[int(episode)] = [float(value) for value in psnr]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"'{path}' holds no drift of world models: {error}. benchmarks/streaming.py writes it."
            ) from error
        return found

    def save(self, path: Path) -> None:
        """Write everything, whole or not at all; a line for each episode, so that changes can be read."""
        head = {"format": FORMAT, "settings": self.settings, "weights": self.weights, "runs": self.runs,
                "speed": self.speed}  # fmt: skip
        lines = [_compact([world, n, psnr]) for world, mine in self.rows.items() for n, psnr in sorted(mine.items())]
        told = ",\n".join(f"{json.dumps(key)}: {_compact(value)}" for key, value in head.items())
        write(path, "{\n" + told + ',\n"rows": [\n' + ",\n".join(lines) + "\n]\n}")

    # --- going on ---

    def claim(self, settings: Mapping[str, Any]) -> None:
        """Go on with these settings. Raises VapError where the file is of others."""
        given = json.loads(json.dumps(dict(settings)))
        differ = [key for key in {**self.settings, **given} if self.settings.get(key) != given.get(key)]
        if differ:
            told = "; ".join(f"{key} {self.settings.get(key)!r}, got {given.get(key)!r}" for key in differ)
            raise VapError(f"The rows that are kept are of others: {told}. Give the same ones, or another --page.")

    def claim_weights(self, world: str, digest: str) -> None:
        """Note with which weights a world imagines. Raises VapError where it holds rows of others."""
        before = self.weights.get(world)
        if before != digest and self.rows.get(world):
            raise VapError(
                f"'{world}' holds rows that were imagined by other weights: {before}, got {digest}. Drop them with "
                f"--forget '{world}', or give another --page."
            )
        self.weights[world] = digest

    def forget(self, names: Iterable[str]) -> None:
        """Drop the rows of these worlds, or the speed. Raises VapError for what is not there."""
        for name in names:
            if name == "speed" and self.speed is not None:
                self.speed = None
            elif name in self.rows:
                del self.rows[name], self.weights[name]
            else:
                there = [*self.rows, *(["speed"] if self.speed is not None else [])]
                raise VapError(f"Nothing of '{name}' is kept, got --forget '{name}'. There is: {'; '.join(there)}.")

    def add(self, world: str, first: int, psnr: Float[np.ndarray, "N K"]) -> None:
        """Keep the PSNR (dB) of episodes that follow one another from number `first` on."""
        mine = self.rows.setdefault(world, {})
        mine |= {first + i: [round(float(value), 2) for value in row] for i, row in enumerate(psnr)}

    def has(self, world: str, episodes: Iterable[int]) -> bool:
        """Whether rows of all these episodes are kept."""
        return set(episodes) <= self.rows.get(world, {}).keys()

    # --- figures ---

    def worlds(self) -> list[str]:
        """The worlds that have rows: models in the order in which they came, then what stands beside them."""
        return sorted(self.rows, key=lambda name: list(BESIDE).index(name) + 1 if name in BESIDE else 0)

    def psnr(self) -> dict[str, Float[np.ndarray, "N K"]]:
        """PSNR (dB) by world, of those episodes and steps that all of them have."""
        names = self.worlds()
        both = sorted(set.intersection(*(set(self.rows[name]) for name in names))) if names else []
        steps = min((len(self.rows[name][n]) for name in names for n in both), default=0)
        return {name: np.array([self.rows[name][n][:steps] for n in both]) for name in names} if both else {}


def tables(drift: Drift, picture: str = "") -> str:
    """Return speed and drift as markdown.

    Args:
        picture: of `draw`, as a page links it; "" leaves it out.
    """
    parts = ["Speed was not measured."]
    if drift.speed is not None:
        parts = [drift.speed["said"], table(drift.speed["head"], drift.speed["rows"]), drift.speed["stamp"]]
    psnr = drift.psnr()
    if not psnr:
        return "\n\n".join([*parts, "Drift was not measured."])
    count, length = next(iter(psnr.values())).shape
    lines = [(str(t), *(_told(values[:, t - 1]) for values in psnr.values())) for t in SHOWN if t <= length]
    parts += [
        f"PSNR (dB) against the oracle's frames, {count} held-out episodes (seeds from 1,000,000 on) of {length} "
        "steps: mean over episodes with its bootstrap interval of 95 %. A frozen first frame gains on a model wherever "
        "little has moved; the codec encodes and decodes the true frames.",
        table(("step", *psnr), lines),
    ]
    if picture:
        parts.append(f"![Drift over {length} steps: PSNR beside that of a frozen frame and of the codec]({picture})")
    counts = [len(mine) for mine in drift.rows.values()]
    least, most = min(counts), max(counts)
    if least < most:
        parts.append(f"Not all is measured yet: {most} episodes of some worlds, {least} of others.")
    return "\n\n".join([*parts, measured(drift)])


def measured(drift: Drift) -> str:
    """Return the line that belongs under the drift: every machine, commit and day of its runs, and the weights."""
    told = {name: ", ".join(dict.fromkeys(str(run[name]) for run in drift.runs)) for name in
            ("machine", "commit", "date")}  # fmt: skip
    minutes = sum(run["minutes"] for run in drift.runs)
    weights = ", ".join(f"{name}: {digest}" for name, digest in drift.weights.items() if digest)
    return (
        f"Drift measured on {told['machine']}, in {len(drift.runs)} runs of {minutes:.0f} minutes in all. Commit "
        f"{told['commit']}, {told['date']}. Digests of the weights: {weights}."
    )


def draw(drift: Drift, path: Path) -> None:
    """Draw mean PSNR by step with intervals of 95 %, whole or not at all.

    Raises MissingDependencyError without matplotlib.
    """
    require("matplotlib", "[docs]", "The picture of drift")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 3.6), layout="constrained")
    for i, (name, values) in enumerate(drift.psnr().items()):
        colour, steps = BESIDE.get(name, f"C{i}"), np.arange(1, values.shape[1] + 1)
        found = [bootstrap_interval(column) for column in values.T]
        axes.plot(steps, [one.value for one in found], color=colour, label=name)
        low, high = [one.low for one in found], [one.high for one in found]
        axes.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.set(xlabel="steps from the first frame (1/15 s each)", ylabel="PSNR [dB]", xlim=(1, None))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.part.png")
    figure.savefig(temporary, dpi=110)
    pyplot.close(figure)
    temporary.replace(path)


def _told(values: Sequence[float] | np.ndarray) -> str:
    found = bootstrap_interval(values)
    return f"{found.value:.1f} [{found.low:.1f}, {found.high:.1f}]"


def _compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
