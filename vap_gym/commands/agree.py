"""`vap-gym agree`: how well imagined success rates stand for true ones, and what it would take to know better."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vap_gym.evaluate.policies_report import Report


def main(
    imagined: Path,
    true: Path,
    *,
    least_trust: float | None = None,
    correct: bool = False,
    level: float = 0.95,
    picture: Path | None = None,
    json: bool = False,
) -> None:
    """Compare two reports of vap-gym evaluate: Pearson, Spearman, MMRV, bias, and what a perfect simulator would score.

    What came of a robot's trials is told in a CSV file, a line for each: policy,start,verdict, then mine,12,success.
    Ten of them or more correct an imagined success rate: vap-gym agree out/imagined trials.csv --correct. How many it
    takes is what vap-gym trials tells.

    Args:
        imagined: report.json of the evaluation in imagination, or its folder.
        true: that of the same policies in the oracle; or a CSV file of trials on a robot, with the columns policy,
            start (its number in imagination), verdict (success or failure), and seed where starts have several.
        least_trust: leave out imagined verdicts that are trusted less than this, 0 to 1.
        correct: there are few true trials: correct each imagined success rate by them, instead of comparing.
        level: of the intervals.
        picture: draw imagined against true success into this PNG.
        json: print JSON instead of lines to read.
    """
    from vap_gym.commands.telling import json_text
    from vap_gym.evaluate.agreement_reports import corrected_rates
    from vap_gym.evaluate.policies_report import Report
    from vap_gym.evaluate.true_trials import read_report

    sim = Report.load(imagined)
    real = read_report(true, sim)
    if correct:
        from dataclasses import asdict

        found = corrected_rates(sim, real, level=level)
        if json:
            print(json_text({name: asdict(one) for name, one in found.items()}))
        for name, one in found.items() if not json else ():
            print(f"{name}: {one.rate} from {one.rate.samples} true and {one.imagined.samples} imagined trials")
            print(f"  imagined alone {one.imagined}, true alone {one.true}; worth {one.worth:.0f} true trials")
        return
    told, lines = compared(sim, real, least_trust=least_trust, level=level)
    if picture is not None:
        from vap_gym.evaluate.agreement_picture import draw_agreement
        from vap_gym.evaluate.agreement_reports import agreement

        draw_agreement(sim, real, agreement(sim, real, least_trust=least_trust, level=level), picture)
        lines.append(str(picture))
    print(json_text(told) if json else "\n".join(lines))


def compared(sim: Report, real: Report, *, least_trust: float | None, level: float) -> tuple[dict[str, Any], list[str]]:
    """Return agreement, abstention and the trials that neighbours in rank would need, as JSON and as lines."""
    import numpy as np

    from vap_gym.evaluate.agreement_reports import abstention, agreement, paired

    found = agreement(sim, real, least_trust=least_trust, level=level)
    told: dict[str, Any] = {"agreement": found.to_json()}
    lines = [str(found)]
    if np.isfinite(sum(paired(sim, real)[2:])).any():  # a verdict whose truth and trust are known
        curve = abstention(sim, real)
        told["abstention"] = {
            "area": curve.area, "area_best": curve.area_best, "area_chance": curve.area_chance,
            "threshold": curve.threshold.tolist(), "coverage": curve.coverage.tolist(), "risk": curve.risk.tolist(),
        }  # fmt: skip
        lines.append(
            f"wrong verdicts: {100 * curve.area_chance:.0f} %; area under risk–coverage {curve.area:.3f}, "
            f"at best {curve.area_best:.3f}, by chance {curve.area_chance:.3f}"
        )
    told["trials_to_tell_apart"] = neighbours(real, [one.name for one in found.policies])
    lines += [
        f"to tell {one['better']} from {one['worse']} in truth (80 % power): {one['trials'] or 'no number of'} starts"
        for one in told["trials_to_tell_apart"]
    ]
    return told, lines


def neighbours(real: Report, names: list[str]) -> list[dict[str, Any]]:
    """Return how many starts it takes to tell each policy from the next better one; None: they were equal."""
    import numpy as np

    from vap_gym.evaluate.trials import trials_to_tell_apart

    outcomes = dict(zip(real.policies, real.outcomes()))
    found = []
    for better, worse in itertools.pairwise([name for name in real.ranked() if name in names]):
        a, b = outcomes[better], outcomes[worse]
        known = np.isfinite(a) & np.isfinite(b)
        rates = (float(a[known].mean()), float(b[known].mean())) if known.any() else (0.0, 0.0)
        trials = None
        if rates[0] != rates[1]:
            trials = trials_to_tell_apart(*rates, correlation=real.correlation(better, worse))
        found.append({"better": better, "worse": worse, "trials": trials})
    return found
