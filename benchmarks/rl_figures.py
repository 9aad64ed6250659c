"""Figures of benchmarks/rl.py: rates and gains from the outcomes that are kept, beside what is asked; its curves."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from asked import met, percent, so_far
from jaxtyping import Float

from vap_gym.evaluate.report import table
from vap_gym.evaluate.trials import mean_over_starts, paired_difference, wilson
from vap_gym.metrics import Interval, bootstrap_interval

Array = np.ndarray
TASKS = ("push", "reach")
CLONE = "cloned"  # the agent that pushes are improved from
MEDIOCRE = (0.2, 0.5)
REACH, SHARE = 0.9, 0.8  # what is asked of a reach from scratch; the aim for the gain, as a share of the simulator's
SEEDS, STARTS = 3, 150  # so many are asked for
MARKS = {"1": 1.0, "0": 0.0}
CURVES = {
    "success": "imagined: training episodes, as it explores",
    "imagined": "imagined: whole episodes",
    "oracle": "simulated: the same episodes",
}


def text_of(outcomes: Float[Array, " N"]) -> str:
    """Return outcomes as they are kept, a sign for each start: 1, 0, or ? where it is unknown."""
    return "".join("?" if np.isnan(x) else str(int(x)) for x in outcomes)


def outcomes_of(part: Mapping[str, Any]) -> dict[str, Float[Array, " N"]]:
    """Return the outcomes of a part's agents from its starts, NaN where it is unknown."""
    return {name: np.array([MARKS.get(sign, np.nan) for sign in text]) for name, text in part["outcomes"].items()}


def of_kind(outcomes: Mapping[str, Float[Array, " N"]], kind: str) -> list[Float[Array, " N"]]:
    """Return the outcomes of all seeds of a kind: imagined, oracle."""
    return [values for name, values in outcomes.items() if name.startswith(f"{kind}-")]


def rate(values: Float[Array, " N"]) -> Interval:
    """Return how often an agent solves what is known of, with Wilson's interval."""
    known = values[np.isfinite(values)]
    return wilson(int(known.sum()), len(known))


def over_seeds(seeds: Sequence[Float[Array, " N"]]) -> Interval | None:
    """Return the mean over seeds and starts; whole starts are drawn. None: no start that all seeds were tried from."""
    mean = np.mean(seeds, 0) if seeds else np.zeros(0)
    known = np.isfinite(mean)
    return mean_over_starts(mean[known], np.arange(int(known.sum()))) if known.any() else None


def gains(outcomes: Mapping[str, Float[Array, " N"]], before: str) -> dict[str, Interval]:
    """Return paired gains over `before`: of each agent, and of each kind over its seeds, whole starts being drawn."""
    gained = {
        name: paired_difference(values, outcomes[before]) for name, values in outcomes.items() if name != before
    }  # fmt: skip
    for kind in ("imagined", "oracle"):
        mean = over_seeds([values - outcomes[before] for values in of_kind(outcomes, kind)])
        if mean is not None:
            gained[f"{kind}, all seeds"] = mean
    return gained


def share_of_oracle(outcomes: Mapping[str, Float[Array, " N"]], before: str) -> Interval | None:
    """Return the gain of training in imagination as a share of that of training in the simulator, each over its seeds;
    whole starts are drawn. None: one of them was not trained, or the simulator's gain is not above zero."""
    kinds = [of_kind(outcomes, kind) for kind in ("imagined", "oracle")]
    if not all(kinds):
        return None
    pairs = np.stack([np.mean([values - outcomes[before] for values in seeds], 0) for seeds in kinds], 1)
    pairs = pairs[np.isfinite(pairs).all(1)]
    if not len(pairs) or pairs[:, 1].sum() <= 0:
        return None

    def ratio(drawn: Float[Array, "N 2"]) -> float:
        imagined, oracle = drawn.sum(0)
        return float(imagined / oracle) if oracle > 0 else np.inf

    return bootstrap_interval(pairs, statistic=ratio)


def tables(results: Mapping[str, Any]) -> str:
    """Return what came out as markdown: what is asked, then every agent."""
    asked, agents = [], []
    for task in TASKS:
        if task not in results:
            continue
        outcomes, training = outcomes_of(results[task]), results[task]["training"]
        gained = gains(outcomes, CLONE) if CLONE in outcomes else {}
        asked += against(task, outcomes)
        for name, values in outcomes.items():
            solved = training[name]
            agents.append((
                task, name, str(rate(values)), str(gained.get(name, "")),
                "" if solved is None else f"{100 * solved:.0f} %",
            ))  # fmt: skip
        agents += [(task, name, "", str(gain), "") for name, gain in gained.items() if "," in name]
    head = ("task", "figure", "measured", "seeds", "starts", "must", "aim", "met")
    names = ("task", "agent", "solved in the simulator", "gain over the clone", "solved in its last training episodes")
    return "\n\n".join([table(head, asked), table(names, agents)])


def against(task: str, outcomes: Mapping[str, Float[Array, " N"]]) -> list[tuple[str, ...]]:
    """Return what was measured of a task beside what is asked. Fewer seeds or starts than are asked for are told where
    it says what is met."""
    imagined = of_kind(outcomes, "imagined")
    found: list[tuple[str, Interval | None, int, str, str, str]] = []  # what, figure, seeds, must, aim, met
    if task == "reach":
        solved = over_seeds(imagined)
        reached = "" if solved is None else met(solved, must=REACH)
        found.append(("solved, learned from scratch", solved, len(imagined), f"≥ {100 * REACH:.0f} %", "", reached))
    elif CLONE in outcomes:
        before, share, (low, high) = rate(outcomes[CLONE]), share_of_oracle(outcomes, CLONE), MEDIOCRE
        asked = f"{100 * low:.0f} to {100 * high:.0f} %"
        found.append(
            ("solved before, by the clone", before, 0, asked, "", "must" if low <= before.value <= high else "no")
        )
        gain = gains(outcomes, CLONE).get("imagined, all seeds")
        sure = gain is not None and gain.low > 0
        found.append(
            ("gain of training in imagination", gain, len(imagined), "interval above 0", "", "must" if sure else "no")
        )
        reached = "" if share is None else met(share, aim=SHARE)
        seeds = min(len(imagined), len(of_kind(outcomes, "oracle")))
        found.append(("its share of the gain in the simulator", share, seeds, "", f"≥ {100 * SHARE:.0f} %", reached))
    rows = []
    for what, value, seeds, must, aim, reached in found:
        if value is None:
            rows.append((task, what, "not measured", "", "", must, aim, ""))
            continue
        reached += so_far(seeds=(seeds or SEEDS, SEEDS), starts=(value.samples, STARTS))
        rows.append((task, what, percent(value), str(seeds or ""), str(value.samples), must, aim, reached))
    return rows


def told(folder: Path) -> float | None:
    """Return what share of its last training episodes an agent solved, as training itself has it."""
    shares = [row["success"] for row in logged(folder)[-5:] if "success" in row]
    return float(np.mean(shares)) if shares else None


def logged(folder: Path) -> list[dict[str, float]]:
    """Return the lines of a training's log; none of an agent that was cloned."""
    log = folder / "log.jsonl"
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.is_file() else []


def draw_curves(folder: Path, path: Path, *, title: str) -> bool:
    """Draw what a training imagined to succeed beside what did in the simulator; return whether it was tried there."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = logged(folder)
    if not any("oracle" in row for row in rows):
        return False
    figure, axis = pyplot.subplots(figsize=(7, 3.6))
    for (name, label), style in zip(CURVES.items(), (":", "--o", "-o"), strict=True):
        points = [(row["step"], 100 * row[name]) for row in rows if name in row]
        if points:
            axis.plot(*zip(*points, strict=True), style, label=label, linewidth=1.5, markersize=3)
    axis.set(xlabel="decisions of training", ylabel="solved, %", ylim=(0, 103), title=title)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part.png")
    figure.savefig(part, dpi=100)
    part.replace(path)
    pyplot.close(figure)
    return True
