"""Agreement of two reports: the same policies and trials are found by their names and starts."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from vap_gym.errors import VapError
from vap_gym.evaluate.agreement import Agreement, outcome_agreement
from vap_gym.evaluate.agreement_corrected import Corrected, corrected_rate
from vap_gym.evaluate.agreement_trust import RiskCoverage, risk_coverage
from vap_gym.evaluate.policies_report import Report

Array = np.ndarray
SAME = ("card", "task", "steps")  # what two reports must share for their trials to be the same, and their starts


def agreement(
    imagined: Report | ArrayLike,
    true: Report | ArrayLike,
    *,
    least_trust: float | None = None,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Agreement:
    """Return how well imagination orders and scores policies as the truth does, with intervals.

    Args:
        imagined, true: two reports, of which the policies and trials that both have are compared; or outcomes
            (policies, trials) of the same trials, NaN where unknown; or mean scores (policies,).
        least_trust: leave out imagined verdicts that are trusted less; reports only.
        level: of the intervals.
        resamples: how often starts (or policies, for mean scores) are drawn.
        seed: of the drawing.

    Raises:
        VapError: reports of other settings, fewer than two common policies, or what `outcome_agreement` raises.
    """
    if isinstance(imagined, Report) and isinstance(true, Report):
        names, starts, sim, real, trust = paired(imagined, true)
        if least_trust is not None:
            sim = np.where(trust >= least_trust, sim, np.nan)
        return outcome_agreement(sim, real, names=names, starts=starts, level=level, resamples=resamples, seed=seed)
    if isinstance(imagined, Report) or isinstance(true, Report) or least_trust is not None:
        raise VapError(
            f"Two reports, or two arrays without least_trust are needed, got {type(imagined).__name__} and "
            f"{type(true).__name__}. Report.load(path) reads a report."
        )
    return outcome_agreement(imagined, true, level=level, resamples=resamples, seed=seed)


def paired(imagined: Report, true: Report) -> tuple[list[str], list[int], Array, Array, Array]:
    """Return what two reports have in common: policies, starts, both outcomes and the imagined trust, (P, N) each."""
    for key in SAME:
        if imagined.about.get(key) != true.about.get(key):
            raise VapError(
                f"Two reports are compared if their {key} is the same, got {imagined.about.get(key)!r} and "
                f"{true.about.get(key)!r}. Evaluate both from the same starts."
            )
    _check_starts(imagined, true)
    names = [name for name in imagined.policies if name in true.policies]
    trials = [trial for trial in imagined.trials if trial in set(true.trials)]
    if not names or not trials:
        raise VapError(
            f"Two reports are compared over policies of the same names and the same trials, got "
            f"{len(names)} and {len(trials)} in common: {', '.join(imagined.policies)} and {', '.join(true.policies)}."
        )

    def common(report: Report, values: Array) -> Array:
        rows = [report.policies.index(name) for name in names]
        columns = [report.trials.index(trial) for trial in trials]
        return np.asarray(values[np.ix_(rows, columns)])

    sim, trust = (common(imagined, values) for values in (imagined.outcomes(), imagined.trust()))
    return names, [trial.start for trial in trials], sim, common(true, true.outcomes()), trust


def _check_starts(imagined: Report, true: Report) -> None:
    """Raise VapError for reports from other starts: by what their files hold, or where one report does not tell it, by
    their paths."""
    digests = [report.about.get("starts_digest") for report in (imagined, true)]
    paths = [report.about.get("starts_file") for report in (imagined, true)]
    if digests[0] == digests[1] if all(digests) else paths[0] == paths[1]:
        return
    told = [
        f"{path or 'those of the card'} (contents {digest or 'not noted'})"
        for path, digest in zip(paths, digests, strict=True)
    ]
    raise VapError(
        f"Two reports are compared if their starts are the same, got {told[0]} and {told[1]}. Evaluate both from the "
        "same starts."
    )


def abstention(imagined: Report, true: Report) -> RiskCoverage:
    """Return how often imagined verdicts are wrong, of those that are trusted the most to all.

    Raises:
        VapError: no verdict with known trust and truth: the world model has no calibration, or the reports nothing in
            common.
    """
    _, _, sim, real, trust = paired(imagined, true)
    known = np.isfinite(sim) & np.isfinite(real) & np.isfinite(trust)
    if not known.any():
        raise VapError(
            "Abstention needs verdicts whose trust is known, got none. Calibrate the world model: "
            "vap-gym bench trust --world-model FOLDER --write-calibration"
        )
    return risk_coverage(trust[known], sim[known] != real[known])


def corrected_rates(imagined: Report, true: Report, *, level: float = 0.95) -> dict[str, Corrected]:
    """Return each policy's success rate, corrected by the true trials that there are of it (see `corrected_rate`).

    `true` may hold few of the trials. Each start must have been tried once: several seeds of a start are no trials of
    their own.

    Raises:
        VapError: starts with several seeds, or fewer than three true trials of a policy.
    """
    paired(imagined, true)  # says where they have nothing in common
    if len(set(imagined.starts)) != len(imagined.trials):
        raise VapError(
            "A correction needs starts that were tried once each, got several seeds. Evaluate with one seed."
        )
    found = {}
    for name in imagined.policies:
        if name in true.policies:
            known = dict(zip(true.trials, true.outcomes()[true.policies.index(name)]))
            truth = [known.get(trial, np.nan) for trial in imagined.trials]
            row = imagined.outcomes()[imagined.policies.index(name)]
            try:
                found[name] = corrected_rate(row, truth, level=level)
            except VapError as error:
                raise VapError(f"'{name}': {error}") from error
    return found
