"""The page on trust: which signals rank errors, whether expectations hold, and what is gained by leaving out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vap_gym.errors import require
from vap_gym.evaluate.report import stamp, table
from vap_gym.evaluate.trust_alone import ADHERENCE, DOUBT, SPREAD, Worth
from vap_gym.evaluate.trust_bins import Bin
from vap_gym.evaluate.trust_scores import COVERAGE, Checked, Kept
from vap_gym.metrics import Interval
from vap_gym.trust.calibration import OFF_M

SURE = 0.8  # of episodes are kept, in the table
WORTH = ("", "signal", "known", "PSNR off by", "groups off by", "ρ, picture", "risk, groups off by", "Brier score",
         "ρ, objects")  # fmt: skip
PARTS = ("", "signal", "mean", "frames", "expected PSNR [dB]", "true", "expected risk", "object off",
         "object error [cm]")  # fmt: skip


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
the first picture counts as left where it was. All of this holds for starts like those of training: of others the risk
is raised towards one half by `info["trust"]["unfamiliar"]` ([familiar.md](familiar.md)).

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
noise, the only one that costs much).

Signals: `step`, since the start; `changed`, by how much the picture has since then (in latents); `thing_spread_m`, how
far the things of an ensemble have come apart, whose members begin as far beside each other as the finder errs;
`thing_moved_m`, how far a thing was moved; `near_m`, how near the gripper ever came to one; `filled`, the share of the
first picture that robot and things hid.

{table(["", "signal", "ρ, picture", "ρ, objects", "gained, picture", "gained, objects"], ranks)}

{_alone(checked)}
{stamp()}
"""


def _alone(checked: dict[str, Checked]) -> str:
    """What single signals are worth, beside the doubt."""
    if not any(len(one.alone) > 1 for one in checked.values()):
        return ""
    worth, parts = [], []
    for env, one in checked.items():
        for name, it in one.alone.items():
            worth.append([
                env, name, f"{100 * it.known:.0f} %", f"{it.psnr_off_db:.2f} dB", f"{it.psnr_apart_db:.2f} dB",
                f"{it.psnr_rho:+.2f}", f"{it.risk_apart:.3f}", f"{it.brier:.3f}", f"{it.risk_rho:+.2f}",
            ])  # fmt: skip
            parts += [
                [
                    env, name, f"{part.signal:.3g}", f"{100 * part.share:.0f} %", f"{part.psnr.expected:.1f}",
                    _told(part.psnr.happened), f"{100 * part.risk.expected:.0f} %",
                    _told(part.risk.happened, 100.0, "%"), f"{100 * part.error_m:.2f}",
                ]
                for part in it.parts
            ]  # fmt: skip
    return f"""## Adherence and spread alone

What each tells alone, calibrated as the doubt is, on the same episodes: monotone curves to the PSNR and to the risk.
Adherence is how far the judge sees the gripper from where the kinematics put it; where that is not in the picture, what
such frames are on average is expected. "Off by" is of single frames, "groups off by" of the mean of frames of which
much the same was expected (the calibration error); ρ is Spearman's, of what was expected and what happened.

{table(WORTH, worth)}

{_verdict(checked)}

Frames in four equal parts by how much of a signal there is, with intervals of 95 %:

{table(PARTS, parts)}
"""


def _verdict(checked: dict[str, Checked]) -> str:
    """Say in how many envs the doubt is better than any single signal."""
    rows = [one.alone for one in checked.values() if len(one.alone) > 1]

    def best(figure: Callable[[Worth], float]) -> int:
        return sum(figure(row[DOUBT]) < min(figure(it) for name, it in row.items() if name != DOUBT) for row in rows)

    return (
        f"The doubt is nearer to the frames' PSNR than each of them in {best(lambda it: it.psnr_off_db)} of "
        f"{len(rows)} envs, and has the lowest Brier score in {best(lambda it: it.brier)} of {len(rows)}."
    )


def _told(value: Interval, scale: float = 1.0, unit: str = "") -> str:
    told = [f"{scale * x:.0f}" if unit else f"{scale * x:.1f}" for x in (value.value, value.low, value.high)]
    return f"{told[0]}{' ' if unit else ''}{unit} [{told[1]}, {told[2]}]"


def _gained(kept: Kept, at: int, scale: float) -> list[str]:
    told = [f"{scale * x:.2f}" for x in (kept.random, kept.by_doubt[at], kept.by_error[at])]
    return [*told, f"{100 * kept.gained:.0f} %"]


def plot(checked: dict[str, Checked], path: Path) -> None:
    """Draw reliability and risk–coverage curves. Raises MissingDependencyError without matplotlib."""
    require("matplotlib", "[docs]", "The picture of trust")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = [name for name in (ADHERENCE, SPREAD) if any(name in one.alone for one in checked.values())]
    height = 2 if names else 1
    figure, every = pyplot.subplots(height, 4, figsize=(16, 4 * height), layout="constrained", squeeze=False)
    axes, below = every[0], every[1:].reshape(-1)
    panels = [(axes[0], axes[1], None), *((*below[2 * i : 2 * i + 2], name) for i, name in enumerate(names))]
    for number, (env, one) in enumerate(checked.items()):
        colour = f"C{number}"
        for psnr_axis, risk_axis, name in panels:
            told = one if name is None else one.alone.get(name)
            if told is not None:
                _reliability(psnr_axis, told.psnr_bins, colour, env)
                _reliability(risk_axis, told.risk_bins, colour, env)
        for axis, kept, scale in ((axes[2], one.object_kept, 100.0), (axes[3], one.picture_kept, -1.0)):
            axis.plot(COVERAGE, scale * kept.by_doubt, color=colour, label=env)
            axis.plot(COVERAGE, scale * kept.by_error, color=colour, linestyle=":")
            axis.axhline(scale * kept.random, color=colour, linewidth=0.7, linestyle="--")
    for psnr_axis, risk_axis, name in panels:
        for axis in (psnr_axis, risk_axis):
            low, high = min(axis.get_xlim()[0], axis.get_ylim()[0]), max(axis.get_xlim()[1], axis.get_ylim()[1])
            axis.plot([low, high], [low, high], color="grey", linewidth=0.8)
        of_psnr, of_risk = "Expected and true PSNR", f"An object is off by more than {100 * OFF_M:.0f} cm"
        if name is not None:
            alone = f"{name.split(' [')[0].capitalize()} alone"
            of_psnr, of_risk = f"{alone}: PSNR", f"{alone}: objects"
        psnr_axis.set(xlabel="expected PSNR [dB]", ylabel="true PSNR [dB]", title=of_psnr)
        risk_axis.set(xlabel="expected risk", ylabel="share of frames", title=of_risk)
    axes[2].set(
        xlabel="share of episodes kept", ylabel="object error at step 24 [cm]",
        title="Solid: by doubt, dotted: by the truth",
    )  # fmt: skip
    axes[3].set(xlabel="share of episodes kept", ylabel="PSNR [dB]", title="Dashed: at random")
    for axis in figure.axes:
        axis.grid(alpha=0.3)
    for axis in below[2 * len(names) :]:
        axis.set_axis_off()
    axes[0].legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.part.png")
    figure.savefig(temporary, dpi=80)
    pyplot.close(figure)
    temporary.replace(path)


def _reliability(axis: Any, bins: Sequence[Bin], colour: str, label: str) -> None:
    low = [max(0.0, b.happened.value - b.happened.low) for b in bins]
    high = [max(0.0, b.happened.high - b.happened.value) for b in bins]
    axis.errorbar(
        [b.expected for b in bins], [b.happened.value for b in bins], yerr=[low, high], color=colour, marker="o",
        markersize=4, capsize=2, label=label,
    )  # fmt: skip
