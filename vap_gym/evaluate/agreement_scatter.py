"""The picture of the agreement experiment: imagined against true success, a panel for each task; below, how often
verdicts are wrong that are trusted most, and other models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vap_gym.errors import require
from vap_gym.evaluate.agreement_outcomes import Outcomes
from vap_gym.evaluate.agreement_page import Study, rate

KINDS = {"text": ("C0", "o"), "clone": ("C1", "s")}
LABELS = {"text": "scripted", "clone": "cloned"}


def draw(outcomes: Outcomes, studies: Sequence[Study], path: Path) -> None:
    """Write a PNG, whole or not at all.

    Where trust is known, a panel shows the risk–coverage curves; where other models were tried, the last one shows
    Pearson against the share of their verdicts that are right.

    Raises:
        MissingDependencyError: without matplotlib.
    """
    require("matplotlib", "[docs]", "The picture of the agreement experiment")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [one for one in studies if one.main.policies]
    below = [
        panel for panel, any_of in ((_risks, "risk"), (_curve, "models")) if any(getattr(x, any_of) for x in shown)
    ]
    columns, rows = max(1, len(shown), len(below)), 1 + bool(below)
    figure, grid = pyplot.subplots(
        rows, columns, figsize=(4.6 * columns, 4.8 * rows), layout="constrained", squeeze=False
    )  # fmt: skip
    places = [_scatter(axis, outcomes, one) for axis, one in zip(grid[0], shown)]
    for axis, panel in zip(grid[-1], below):
        panel(axis, shown)
    for axis in grid.flat:
        axis.grid(alpha=0.3)
        axis.set_visible(axis.has_data())
    figure.canvas.draw()  # from here on it is known where in the picture places are
    for axis, at in zip(grid[0], places):
        name_places(axis, at)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.part.png")
    figure.savefig(temporary, dpi=90)
    pyplot.close(figure)
    temporary.replace(path)


def _scatter(axis: Any, outcomes: Outcomes, one: Study) -> dict[tuple[float, float], list[str]]:
    """Draw policies; return their names by place: some may tie."""
    names = outcomes.names(one.task, "imagined", "oracle")
    truth, imagined = (outcomes.outcomes(condition, one.task, names) for condition in ("oracle", "imagined"))
    axis.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
    labelled: set[str] = set()
    at: dict[tuple[float, float], list[str]] = {}
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
    agreed = one.main.agreement
    told = one.main.why if agreed is None else f"Pearson {agreed.pearson}\nMMRV {agreed.mmrv}"
    axis.set(
        xlabel="true success rate", ylabel="imagined success rate", xlim=(-0.04, 1.04), ylim=(-0.04, 1.04),
        aspect="equal",
    )  # fmt: skip
    axis.set_title(f"{one.task}: {told}", fontsize=9)
    axis.legend(loc="upper left", fontsize=7)
    return at


def name_places(axis: Any, at: Mapping[tuple[float, float], Sequence[str]], *, size_pt: float = 6.0) -> None:
    """Write names beside places of a panel that was drawn: each as near as it can be without covering a place, another
    name or the legend; one that is far away has a line to its place."""
    from matplotlib.transforms import Bbox

    renderer, frame = axis.figure.canvas.get_renderer(), axis.get_window_extent()
    point = axis.figure.dpi / 72.0
    middles = {place: axis.transData.transform(place) for place in at}
    taken = [Bbox.from_bounds(x - 3 * point, y - 3 * point, 6 * point, 6 * point) for x, y in middles.values()]
    if axis.get_legend() is not None:
        taken.append(axis.get_legend().get_window_extent())
    angles = np.radians([-25, 25, 205, 155, -60, 60, 240, 120, 0, 180, -90, 90])
    ways = [(r * np.cos(a), r * np.sin(a)) for r in (8, 14, 22, 32, 44, 58, 74, 92) for a in angles]
    for place, names in at.items():
        best: tuple[float, Any] | None = None
        text = axis.annotate("\n".join(names), place, textcoords="offset points", xytext=(0, 0), fontsize=size_pt)
        for dx, dy in ways:
            text.set(position=(dx, dy), ha="left" if dx >= 0 else "right", va="center")
            box = text.get_window_extent(renderer)
            outside = not (frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1)
            covered = 9.0 * outside + sum(box.overlaps(other) for other in taken)
            if best is None or covered < best[0]:
                best = covered, (dx, dy)
            if covered == 0:
                break
        assert best is not None
        dx, dy = best[1]
        text.set(position=(dx, dy), ha="left" if dx >= 0 else "right", va="center")
        taken.append(text.get_window_extent(renderer))
        if np.hypot(dx, dy) > 14:
            axis.annotate(
                "", place, textcoords="offset points", xytext=(dx, dy),
                arrowprops={"arrowstyle": "-", "linewidth": 0.4, "color": "grey"},
            )  # fmt: skip


def _risks(axis: Any, studies: Sequence[Study]) -> None:
    for i, one in enumerate(studies):
        if one.risk is None:
            continue
        axis.plot(100 * one.risk.coverage, 100 * one.risk.risk, color=f"C{i}", linewidth=1.2, label=one.task)
        axis.axhline(100 * one.risk.area_chance, color=f"C{i}", linewidth=0.6, linestyle=":")
    axis.set(
        xlabel="verdicts that are believed, the most trusted first [%]", ylabel="of these wrong [%]", xlim=(0, 100),
        ylim=(0, None),
    )  # fmt: skip
    axis.set_title("Risk and coverage; dotted: if trust told nothing", fontsize=9)
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
