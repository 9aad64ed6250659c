"""The picture of an agreement: imagined against true success rates, and risk against coverage where trust is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vap_gym.errors import require
from vap_gym.evaluate.agreement import Agreement
from vap_gym.evaluate.agreement_reports import abstention, paired
from vap_gym.evaluate.policies_report import Report


def draw_agreement(imagined: Report, true: Report, found: Agreement, path: Path) -> None:
    """Write a PNG, whole or not at all. Raises MissingDependencyError without matplotlib."""
    require("matplotlib", "[docs]", "The picture of an agreement")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    _, _, sim, real, trust = paired(imagined, true)
    trusted = bool(np.isfinite(sim + real + trust).any())
    figure, axes = pyplot.subplots(1, 2 if trusted else 1, figsize=(11 if trusted else 5.5, 5), layout="constrained")
    axis = axes[0] if trusted else axes
    axis.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
    for one in found.policies:
        x, y = true.rate(one.name), imagined.rate(one.name)
        axis.errorbar(
            x.value, y.value, xerr=[[x.value - x.low], [x.high - x.value]],
            yerr=[[y.value - y.low], [y.high - y.value]], color="C0", marker="o", markersize=5, elinewidth=0.8,
        )  # fmt: skip
        axis.annotate(one.name, (x.value, y.value), textcoords="offset points", xytext=(5, 4), fontsize=8)
    axis.set(
        xlabel="true success rate", ylabel="imagined success rate", xlim=(-0.03, 1.03), ylim=(-0.03, 1.03),
        title=f"Pearson {found.pearson}, MMRV {found.mmrv}",
    )  # fmt: skip
    if trusted:
        curve = abstention(imagined, true)
        axes[1].plot(100 * curve.coverage, 100 * curve.risk, color="C0")
        axes[1].axhline(100 * curve.area_chance, color="grey", linewidth=0.7, linestyle="--")
        axes[1].set(
            xlabel="verdicts that are believed, the most trusted first [%]", ylabel="of these wrong [%]",
            title="Dashed: if trust told nothing", ylim=(0, None),
        )  # fmt: skip
    for one_axis in figure.axes:
        one_axis.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.part.png")
    figure.savefig(temporary, dpi=90)
    pyplot.close(figure)
    temporary.replace(path)
