"""Figures of the agreement experiment: from the outcomes of all conditions to what is told on its page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from vap_gym.errors import VapError
from vap_gym.evaluate.agreement import FIGURES, Agreement, outcome_agreement
from vap_gym.evaluate.agreement_corrected import corrected_rate
from vap_gym.evaluate.agreement_outcomes import Outcomes
from vap_gym.evaluate.agreement_trust import RiskCoverage, risk_coverage
from vap_gym.evaluate.trials import mean_over_starts
from vap_gym.metrics import Interval

Array = np.ndarray
GRADED = (0.2, 0.8)  # true success rates of policies that tell simulators apart
ABSTAINED = 0.1  # share of verdicts that are left out where nothing is new
DRAWS = 50  # of the trials that a correction is made from
STRANGE = {"novel": "unseen shapes and textures", "cameras": "shifted cameras", "wrong": "policies gone wrong"}


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One condition against the truth of the same trials."""

    policies: int
    trials: int  # whose outcome is known on both sides
    right: Interval | None  # share of imagined verdicts that are the true ones; whole starts are drawn
    agreement: Agreement | None
    why: str  # why there is no agreement


@dataclass(frozen=True, kw_only=True)
class CorrectedFigures:
    """Agreement with the truth of other starts, over many drawings of few true trials: median and 95 % range."""

    true_trials: int  # of each policy
    imagined: Mapping[str, Interval]  # as it is
    corrected: Mapping[str, Interval]
    alone: Mapping[str, Interval]  # the few true trials by themselves
    worth: float  # how many true trials alone have as narrow an interval, median over policies


@dataclass(frozen=True, kw_only=True)
class Strange:
    """What becomes of verdicts and trust where something is unlike what the model learned from."""

    kind: str  # of STRANGE
    compared: Compared
    trust: Interval | None  # mean; None: not known
    fall: Interval | None  # its mean less that of the experiment itself
    abstained: Interval | None  # share of verdicts below the threshold that leaves out ABSTAINED there
    more: Interval | None  # that share less the experiment's own


def compared(
    outcomes: Outcomes, task: str, imagined: str, true: str = "oracle", *, least_trust: float | None = None,
    trials: int | None = None, section: str = "", only: Sequence[str] = (),
) -> Compared:  # fmt: skip
    """Compare an imagined condition with a true one, over the policies and first starts that both have.

    Args:
        least_trust: leave out imagined verdicts that are trusted less.
        trials: at most so many, from the first start on.
        section: of the policies, see `Outcomes.claim_policies`.
        only: these policies; all where it is empty.
    """
    names = [name for name in outcomes.names(task, imagined, true, section=section) if not only or name in only]
    sim, real = _pair(outcomes, task, names, imagined, true, trials)
    if least_trust is not None:
        trust = outcomes.trust(imagined, task, names)[:, : sim.shape[1]]
        sim = np.where(trust >= least_trust, sim, np.nan)
    known = np.isfinite(sim) & np.isfinite(real)
    kept = known.any(1)
    names, sim, real, known = [n for n, keep in zip(names, kept) if keep], sim[kept], real[kept], known[kept]
    right = _mean(np.where(known, (sim == real).astype(float), np.nan)) if known.any() else None
    found, why = None, ""
    try:
        found = outcome_agreement(sim, real, names=names)
    except VapError as error:
        why = str(error).split(". ")[0]
    return Compared(policies=len(names), trials=int(known.sum()), right=right, agreement=found, why=why)


def _pair(
    outcomes: Outcomes, task: str, names: Sequence[str], imagined: str, true: str, trials: int | None = None
) -> tuple[Float[Array, "P N"], Float[Array, "P N"]]:
    sim, real = outcomes.outcomes(imagined, task, names), outcomes.outcomes(true, task, names)
    count = min(sim.shape[1], real.shape[1], trials or sim.shape[1])
    return sim[:, :count], real[:, :count]


def graded(outcomes: Outcomes, task: str, condition: str = "oracle") -> tuple[list[str], list[str]]:
    """Return the policies that succeed in 20 to 80 % of a condition's trials, and all policies that were tried."""
    names = outcomes.names(task, condition)
    values = outcomes.outcomes(condition, task, names)
    known = np.isfinite(values)
    rates = np.where(known, values, 0.0).sum(1) / np.maximum(known.sum(1), 1)
    return [name for name, rate in zip(names, rates) if GRADED[0] <= rate <= GRADED[1]], names


def corrected(
    imagined: Float[Array, "P N"], true: Float[Array, "P N"], true_trials: int, *, draws: int = DRAWS, seed: int = 0
) -> CorrectedFigures | None:
    """Return what few true trials make of the agreement; it is measured against the truth of all other starts.

    Each time the same `true_trials` starts are drawn for all policies. None: too few starts, or policies that tie.
    """
    sim, real = np.asarray(imagined, np.float64), np.asarray(true, np.float64)
    known = (np.isfinite(sim) & np.isfinite(real)).all(0)
    sim, real = sim[:, known], real[:, known]
    starts = sim.shape[1]
    if true_trials < 3 or starts < true_trials + 3:
        return None
    rng = np.random.default_rng([seed, true_trials])
    drawn: dict[str, dict[str, list[float]]] = {kind: {} for kind in ("imagined", "corrected", "alone")}
    worth = []
    for _ in range(draws):
        few = rng.permutation(starts)[:true_trials]
        rest = np.setdiff1d(np.arange(starts), few)
        some = np.full_like(real, np.nan)
        some[:, few] = real[:, few]
        rates = [corrected_rate(predicted, found) for predicted, found in zip(sim, some, strict=True)]
        worth.append(float(np.median([rate.worth for rate in rates])))
        kinds = {
            "imagined": sim.mean(1), "corrected": np.array([rate.rate.value for rate in rates]),
            "alone": real[:, few].mean(1),
        }  # fmt: skip
        truth = real[:, rest].mean(1)
        for kind, values in kinds.items():
            for name, figure in FIGURES.items():
                if np.ptp(values) > 0 and np.ptp(truth) > 0:
                    drawn[kind].setdefault(name, []).append(figure(values, truth))
    if any(set(found) != set(FIGURES) for found in drawn.values()):
        return None
    told = {kind: {name: _range(values) for name, values in found.items()} for kind, found in drawn.items()}
    return CorrectedFigures(true_trials=true_trials, worth=float(np.median(worth)), **told)


def corrections(outcomes: Outcomes, task: str, numbers: Sequence[int]) -> list[CorrectedFigures]:
    """Return `corrected` for several numbers of true trials, those left out for which there are too few."""
    names = outcomes.names(task, "imagined", "oracle")
    if len(names) < 2:
        return []
    sim, real = _pair(outcomes, task, names, "imagined", "oracle")
    return [found for number in numbers if (found := corrected(sim, real, number)) is not None]


def believed(outcomes: Outcomes, task: str) -> float | None:
    """Return the trust below which ABSTAINED of the experiment's imagined verdicts are; None where it is not known."""
    trust = outcomes.trust("imagined", task, outcomes.names(task, "imagined"))
    known = trust[np.isfinite(trust)]
    return float(np.quantile(known, ABSTAINED)) if len(known) else None


def coverage(outcomes: Outcomes, task: str) -> RiskCoverage | None:
    """Return how often imagined verdicts are wrong, from the most trusted to all; None where trust is not known."""
    names = outcomes.names(task, "imagined", "oracle")
    sim, real = _pair(outcomes, task, names, "imagined", "oracle")
    trust = outcomes.trust("imagined", task, names)[:, : sim.shape[1]]
    known = np.isfinite(sim) & np.isfinite(real) & np.isfinite(trust)
    return risk_coverage(trust[known], sim[known] != real[known]) if known.any() else None


def strange(outcomes: Outcomes, task: str, kind: str) -> Strange | None:
    """Return what became of the verdicts and of trust in one kind of strangeness; None where it was not tried."""
    imagined, true = f"{kind}-imagined", f"{kind}-oracle"
    section = "wrong" if kind == "wrong" else ""
    names = outcomes.names(task, imagined, section=section)
    if not names:
        return None
    usual = outcomes.trust("imagined", task, outcomes.names(task, "imagined"))
    there, least = outcomes.trust(imagined, task, names), believed(outcomes, task)
    told = least is not None and np.isfinite(there).any()
    below, usually = (np.where(np.isfinite(x), (x < (least or 0.0)).astype(float), np.nan) for x in (there, usual))
    return Strange(
        kind=kind,
        compared=compared(outcomes, task, imagined, true, section=section),
        trust=_mean(there) if told else None,
        fall=_difference(there, usual) if told else None,
        abstained=_mean(below) if told else None,
        more=_difference(below, usually) if told else None,
    )


def _mean(values: Float[Array, "P N"]) -> Interval:
    """The mean of known values, and its bootstrap interval over whole starts."""
    known = np.isfinite(values)
    groups = np.broadcast_to(np.arange(values.shape[1]), values.shape)[known]
    return mean_over_starts(values[known], groups)


def _difference(a: Float[Array, "P N"], b: Float[Array, "Q M"], *, resamples: int = 2000, seed: int = 0) -> Interval:
    """Mean of `a` less mean of `b`, each over known values; starts of both are drawn anew, apart from each other."""
    rng = np.random.default_rng(seed)
    means = [_drawn_means(values, resamples, rng) for values in (a, b)]
    low, high = np.quantile(means[0] - means[1], [0.025, 0.975])
    value = float(np.nanmean(a) - np.nanmean(b))
    return Interval(value=value, low=float(low), high=float(high), level=0.95, samples=a.shape[1])


def _drawn_means(values: Float[Array, "P N"], resamples: int, rng: np.random.Generator) -> Float[Array, " R"]:
    known = np.isfinite(values)
    sums, counts = np.where(known, values, 0.0).sum(0), known.sum(0).astype(float)
    sums, counts = sums[counts > 0], counts[counts > 0]
    drawn = rng.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), resamples)
    return np.asarray((drawn @ sums) / (drawn @ counts))


def _range(values: Sequence[float]) -> Interval:
    low, middle, high = (float(x) for x in np.quantile(values, [0.025, 0.5, 0.975]))
    return Interval(value=middle, low=low, high=high, level=0.95, samples=len(values))
