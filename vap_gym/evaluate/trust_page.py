"""The page on trust: which signals rank errors, whether expectations hold, and what is gained by leaving out."""

from __future__ import annotations

from pathlib import Path

from vap_gym.errors import require
from vap_gym.evaluate.report import stamp, table
from vap_gym.evaluate.trust_scores import COVERAGE, Checked, Kept
from vap_gym.trust.calibration import OFF_M

SURE = 0.8  # of episodes are kept, in the table


def page(checked: dict[str, Checked], world_model: str, episodes: int, samples: int, picture: str) -> str:
    """Return the page as markdown."""
    ranks = [
        [env, name, *(f"{value:+.2f}" for value in values)]
        for env, one in checked.items()
        for name, values in one.ranks.items()
    ]
    held = [
        [
            env, str(one.episodes), f"{one.psnr_off_db:.2f} dB ({one.psnr_usual_db:.2f})",
            f"{100 * one.off_share:.0f} %", f"{one.risk_off:.3f}", f"{one.brier:.3f} ({one.brier_usual:.3f})",
        ]
        for env, one in checked.items()
    ]  # fmt: skip
    at = int(abs(COVERAGE - SURE).argmin())
    gained = [[env, *_gained(one.object_kept, at, 100.0)] for env, one in checked.items()]
    pictures = [[env, *_gained(one.picture_kept, at, -1.0)] for env, one in checked.items()]
    share = f"{100 * COVERAGE[at]:.0f} %"
    return f"""# Trust

`vap-gym bench trust`: world model `{world_model}`, calibrated on {episodes} episodes of each env from seeds of their
own, of the same kinds as the held-out ones that it is checked on; 24 steps from the first frame.

`info["trust"]` carries what is expected of each frame: `expected_psnr_db`, its PSNR against the truth, and
`object_risk`, how likely an object is off by more than {100 * OFF_M:.0f} cm. `gym.make(…, min_trust=0.7)` ends an
episode where 1 − `object_risk` falls below that. An object's place is the world model's own, one that was not found in
the first picture counts as left where it was.

![What is expected and what happens, and the error of what is kept](img/{picture})

What is expected, against what happens (in brackets: were the mean expected throughout):

{table(["", "episodes", "PSNR off by", "frames with an object off", "risk off by", "Brier score"], held)}

Leaving out the episodes that are doubted most. Mean error of the objects at step 24 [cm], of all episodes, of the
{share} that are kept by doubt and by the true error; and the share of what the true order gains over a random one that
is gained, in area under the risk–coverage curve:

{table(["", "all", f"{share} by doubt", f"{share} by the truth", "gained"], gained)}

Likewise the mean PSNR of the episode [dB]:

{table(["", "all", f"{share} by doubt", f"{share} by the truth", "gained"], pictures)}

How well single signals rank the errors of frames: Spearman's ρ with the picture's error and with that of the
objects; and what is gained by leaving out episodes by them ("spread over samples": {samples} roll-outs with other
noise, the only one that costs much):

{table(["", "signal", "ρ, picture", "ρ, objects", "gained, picture", "gained, objects"], ranks)}

{stamp()}
"""


def _gained(kept: Kept, at: int, scale: float) -> list[str]:
    told = [f"{scale * x:.2f}" for x in (kept.random, kept.by_doubt[at], kept.by_error[at])]
    return [*told, f"{100 * kept.gained:.0f} %"]


def plot(checked: dict[str, Checked], path: Path) -> None:
    """Draw reliability and risk–coverage curves. Raises MissingDependencyError without matplotlib."""
    require("matplotlib", "[docs]", "The picture of trust")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 4, figsize=(16, 4), layout="constrained")
    for number, (env, one) in enumerate(checked.items()):
        colour = f"C{number}"
        for axis, bins in ((axes[0], one.psnr_bins), (axes[1], one.risk_bins)):
            x, y = [b.expected for b in bins], [b.happened.value for b in bins]
            low = [max(0.0, b.happened.value - b.happened.low) for b in bins]
            high = [max(0.0, b.happened.high - b.happened.value) for b in bins]
            axis.errorbar(x, y, yerr=[low, high], color=colour, marker="o", markersize=4, capsize=2, label=env)
        for axis, kept, scale in ((axes[2], one.object_kept, 100.0), (axes[3], one.picture_kept, -1.0)):
            axis.plot(COVERAGE, scale * kept.by_doubt, color=colour, label=env)
            axis.plot(COVERAGE, scale * kept.by_error, color=colour, linestyle=":")
            axis.axhline(scale * kept.random, color=colour, linewidth=0.7, linestyle="--")
    for axis in axes[:2]:
        low, high = min(axis.get_xlim()[0], axis.get_ylim()[0]), max(axis.get_xlim()[1], axis.get_ylim()[1])
        axis.plot([low, high], [low, high], color="grey", linewidth=0.8)
    told = (
        ("expected PSNR [dB]", "true PSNR [dB]", "Expected and true PSNR"),
        ("expected risk", "share of frames", f"An object is off by more than {100 * OFF_M:.0f} cm"),
        ("share of episodes kept", "object error at step 24 [cm]", "Solid: by doubt, dotted: by the truth"),
        ("share of episodes kept", "PSNR [dB]", "Dashed: at random"),
    )
    for axis, (x_label, y_label, title) in zip(axes, told, strict=True):
        axis.set(xlabel=x_label, ylabel=y_label, title=title)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.part.png")
    figure.savefig(temporary, dpi=80)
    pyplot.close(figure)
    temporary.replace(path)
