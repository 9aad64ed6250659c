"""The picture of the agreement experiment: imagined against true success, a panel for each task, and other models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vap_gym.errors import require
from vap_gym.evaluate.agreement_outcomes import Outcomes
from vap_gym.evaluate.agreement_page import Study, rate

KINDS = {"text": ("C0", "o"), "clone": ("C1", "s")}
LABELS = {"text": "scripted", "clone": "cloned"}


def draw(outcomes: Outcomes, studies: Sequence[Study], path: Path) -> None:
    """Write a PNG, whole or not at all.

    Where other models were tried, the last panel shows Pearson against the share of their verdicts that are right.

    Raises:
        MissingDependencyError: without matplotlib.
    """
    require("matplotlib", "[docs]", "The picture of the agreement experiment")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [one for one in studies if one.main.policies]
    curve = any(one.models for one in shown)
    count = max(1, len(shown) + curve)
    figure, grid = pyplot.subplots(1, count, figsize=(4.6 * count, 4.8), layout="constrained", squeeze=False)
    for axis, one in zip(grid[0], shown):
        _scatter(axis, outcomes, one)
    if curve:
        _curve(grid[0, -1], shown)
    for axis in grid[0]:
        axis.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.part.png")
    figure.savefig(temporary, dpi=90)
    pyplot.close(figure)
    temporary.replace(path)


def _scatter(axis: Any, outcomes: Outcomes, one: Study) -> None:
    names = outcomes.names(one.task, "imagined", "oracle")
    truth, imagined = (outcomes.outcomes(condition, one.task, names) for condition in ("oracle", "imagined"))
    axis.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
    labelled: set[str] = set()
    at: dict[tuple[float, float], list[str]] = {}  # names by place: policies may tie
    for i, name in enumerate(names):
        x, y = rate(truth[i]), rate(imagined[i])
        if x is None or y is None:
            continue
        kind = next(key for key in KINDS if key in outcomes.policies[one.task][name])
        colour, marker = KINDS[kind]
        axis.errorbar(
            x.value, y.value, xerr=[[x.value - x.low], [x.high - x.value]],
            yerr=[[y.value - y.low], [y.high - y.value]], color=colour, marker=marker, markersize=5, elinewidth=0.5,
            linestyle="none", label=None if kind in labelled else LABELS[kind],
        )  # fmt: skip
        labelled.add(kind)
        at.setdefault((x.value, y.value), []).append(name)
    for place, tied in at.items():
        right = place[0] > 0.7
        axis.annotate(
            "\n".join(tied), place, textcoords="offset points", xytext=(-4 if right else 4, -3), fontsize=6, va="top",
            ha="right" if right else "left",
        )  # fmt: skip
    agreed = one.main.agreement
    told = one.main.why if agreed is None else f"Pearson {agreed.pearson}\nMMRV {agreed.mmrv}"
    axis.set(
        xlabel="true success rate", ylabel="imagined success rate", xlim=(-0.04, 1.04), ylim=(-0.04, 1.04),
        aspect="equal",
    )  # fmt: skip
    axis.set_title(f"{one.task}: {told}", fontsize=9)
    axis.legend(loc="upper left", fontsize=7)


def _curve(axis: Any, studies: Sequence[Study]) -> None:
    for one in studies:
        rows = []
        for name, found in one.models.items():
            if found.right is not None and found.agreement is not None:
                rows.append((found.right.value, found.agreement.pearson, name))
        rows.sort(key=lambda row: row[0])
        if rows:
            x, figures, names = zip(*rows, strict=True)
            low = [max(0.0, figure.value - figure.low) for figure in figures]  # resampled ones lie lower
            high = [max(0.0, figure.high - figure.value) for figure in figures]
            axis.errorbar(
                [100 * value for value in x], [figure.value for figure in figures], yerr=[low, high], marker="o",
                markersize=4, linewidth=0.8, elinewidth=0.5, label=one.task,
            )  # fmt: skip
            for value, figure, name in zip(x, figures, names, strict=True):
                axis.annotate(name, (100 * value, figure.value), textcoords="offset points", xytext=(4, 3), fontsize=6)
    axis.set(xlabel="verdicts of the model that are right [%]", ylabel="Pearson, over policies", ylim=(None, 1.02))
    axis.set_title("Models of other qualities", fontsize=9)
    if axis.has_data():
        axis.legend(loc="lower right", fontsize=7)
