"""The page of the agreement experiment: tables of all figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from vap_gym.evaluate.agreement import Agreement
from vap_gym.evaluate.agreement_outcomes import Outcomes
from vap_gym.evaluate.agreement_study import (
    STRANGE,
    Compared,
    CorrectedFigures,
    Strange,
    believed,
    compared,
    corrections,
    coverage,
    graded,
    strange,
)
from vap_gym.evaluate.agreement_trust import RiskCoverage
from vap_gym.evaluate.report import table
from vap_gym.evaluate.trials import paired_difference, wilson
from vap_gym.metrics import Interval

MUST = {"pearson": 0.85, "mmrv": 0.08}
AIM = {"pearson": 0.97, "spearman": 0.95, "mmrv": 0.03}
LEAST_GRADED = 8
LEAST_MODELS = 5  # qualities of a trust-region curve, the shipped one among them
BELIEVED = (1.0, 0.9, 0.8, 0.5)  # shares of verdicts, the most trusted ones
OTHERS = {
    "prompted": "a streamed video model, told skeletons",
    "raw-state": "the same, told raw states",
    "no-prompt": "the same, told nothing",
}


@dataclass(frozen=True, kw_only=True)
class Study:
    """All figures of a task."""

    task: str
    graded: int  # policies that succeed in 20 to 80 % of the oracle's episodes
    main: Compared
    believed: Compared | None  # without the tenth of the verdicts that are trusted least; None: trust is not known
    risk: RiskCoverage | None  # how often verdicts are wrong, from the most trusted one to all; None: likewise
    replay: Compared | None
    others: Mapping[str, Compared | None]  # of OTHERS; None: not trained
    curve: int | None  # so many starts are theirs
    same: Compared | None  # the experiment's own model over their starts; None: none of them was tried
    models: Mapping[str, Compared]  # by name, over the same starts; the experiment's own model first
    corrections: Sequence[CorrectedFigures]
    strange: Sequence[Strange]

    def to_json(self) -> dict[str, Any]:
        """Return plain containers; of the risk–coverage curve what the page tells."""
        told = asdict(replace(self, risk=None))
        if self.risk is not None:
            told["risk"] = {"wrong": {f"{share:g}": self.risk.risk_at(share) for share in BELIEVED}} | {
                name: getattr(self.risk, name) for name in ("area", "area_best", "area_chance", "gain")
            }
        return told


def study(outcomes: Outcomes, task: str, *, true_trials: Sequence[int] = (8, 15, 30)) -> Study:
    """Return all figures of a task from what there is."""
    curve = outcomes.settings.get("curve_starts")
    models = {name.partition("-")[2]: name for name in outcomes.conditions() if name.startswith("model-")}
    models = {"imagined": "imagined"} | {name: key for name, key in models.items() if outcomes.names(task, key)}
    tried = outcomes.names(task, "oracle", *models.values())  # by all of them, or qualities could not be compared
    qualities = [(name, compared(outcomes, task, key, trials=curve, only=tried)) for name, key in models.items()]
    qualities.sort(key=lambda row: -1.0 if row[1].right is None else row[1].right.value)
    least = believed(outcomes, task)
    others = {key: compared(outcomes, task, key) if outcomes.names(task, key) else None for key in OTHERS}
    replay = compared(outcomes, task, "replay", trials=curve) if outcomes.names(task, "replay") else None
    same = compared(outcomes, task, "imagined", trials=curve)
    return Study(
        task=task,
        graded=len(graded(outcomes, task)[0]),
        main=compared(outcomes, task, "imagined"),
        believed=None if least is None else compared(outcomes, task, "imagined", least_trust=least),
        risk=coverage(outcomes, task),
        replay=replay,
        others=others,
        curve=curve,
        same=same if replay or any(others.values()) else None,
        models=dict(qualities) if len(qualities) > 1 else {},
        corrections=corrections(outcomes, task, true_trials),
        strange=[found for kind in STRANGE if (found := strange(outcomes, task, kind)) is not None],
    )


def tables(outcomes: Outcomes, studies: Sequence[Study]) -> str:
    """Return all figures as markdown."""
    done = [one for one in studies if one.main.policies]
    if not done:
        return "Not measured yet."
    parts = ["### Agreement with the truth", _agreement(done), _notes(done)]
    parts += ["### The same trials otherwise", _otherwise(done)]
    if any(one.risk is not None for one in done):
        parts += ["### Which verdicts to believe", _risks(done)]
    fixed = [(one.task, row) for one in done for row in one.corrections]
    if fixed:
        parts += ["### After correction by few true trials", _corrected(fixed)]
    if any(one.models for one in done):
        parts += ["### Models of other qualities", _models(outcomes, done)]
        lacking = [f"{one.task} ({len(one.models)})" for one in done if len(one.models) < LEAST_MODELS]
        if lacking:
            parts.append(f"{LEAST_MODELS} qualities are wanted; of fewer: {', '.join(lacking)}.")
    odd = [(one, row) for one in done for row in one.strange]
    if odd:
        parts += ["### Where it is strange", _strange(odd)]
    return "\n\n".join([*parts, "### Policies", _policies(outcomes, [one.task for one in done])])


def _agreement(studies: Sequence[Study]) -> str:
    rows = []
    for one in studies:
        found = one.main.agreement
        for name in ("pearson", "spearman", "mmrv"):
            bound = ("≤" if name == "mmrv" else "≥") + " {:g}"
            rows.append((
                one.task, name.upper() if name == "mmrv" else name.title(),
                one.main.why or "" if found is None else str(getattr(found, name)),
                "" if found is None or found.perfect is None else str(getattr(found.perfect, name)),
                bound.format(MUST[name]) if name in MUST else "", bound.format(AIM[name]),
                "" if found is None else _met(name, getattr(found, name)),
            ))  # fmt: skip
    return table(("task", "figure", "imagined", "a perfect simulator", "must", "aim", "met"), rows)


def _met(name: str, value: Interval) -> str:
    sign = -1.0 if name == "mmrv" else 1.0
    for what, bounds in (("aim", AIM), ("must", MUST)):
        if name in bounds and sign * value.value >= sign * bounds[name]:
            surely = sign * (value.high if name == "mmrv" else value.low) >= sign * bounds[name]
            return f"{what}, with its interval" if surely else what
    return "no" if name in MUST else ""


def _notes(studies: Sequence[Study]) -> str:
    told = [
        f"{one.task}: {one.main.policies} policies, {one.graded} of them succeed in 20 to 80 % of the true episodes "
        f"({LEAST_GRADED} are wanted), {one.main.trials} paired trials, {_share(one.main.right)} of the imagined "
        f"verdicts are the true ones.{_differ(one.main.agreement)}"
        for one in studies
    ]
    return "\n".join(f"- {line}" for line in told)


def _differ(found: Agreement | None) -> str:
    """Whether there is anything to order, and how many policies imagination scores otherwise than the truth."""
    if found is None or found.differ is None:
        return ""
    chance = sum(one.kruskal.p < 0.05 for one in found.policies)
    return (
        f" True outcomes differ from policy to policy (Kruskal–Wallis, H = {found.differ.statistic:.0f}, "
        f"p {_p(found.differ.p)}); imagined outcomes differ from true ones at p < .05 in {chance} of "
        f"{len(found.policies)} policies."
    )


def _p(p: float) -> str:
    return "< .001" if p < 0.001 else f"= {p:.3f}"


def _risks(studies: Sequence[Study]) -> str:
    shares = ("wrong, of all verdicts", *(f"of the most trusted {100 * share:g} %" for share in BELIEVED[1:]))
    header = ("task", *shares, "area under the curve", "in the best order", "in any order", "gain")
    rows = [
        (
            one.task, *(f"{100 * one.risk.risk_at(share):.0f} %" for share in BELIEVED), f"{one.risk.area:.3f}",
            f"{one.risk.area_best:.3f}", f"{one.risk.area_chance:.3f}", f"{100 * one.risk.gain:.0f} %",
        )
        for one in studies if one.risk is not None
    ]  # fmt: skip
    return table(header, rows)


def _otherwise(studies: Sequence[Study]) -> str:
    rows = []
    for one in studies:
        kinds: dict[str, Compared | str] = {"imagined": one.main}
        kinds["imagined, the least trusted tenth left out"] = one.believed or "trust is not known: no calibration"
        if one.same is not None:
            kinds[f"imagined, the first {one.curve} starts"] = one.same
        kinds["open-loop replay of the true episodes' actions"] = one.replay or "not played"
        kinds |= {what: one.others[key] or "not trained" for key, what in OTHERS.items()}
        for what, found in kinds.items():
            cells = (found, "", "", "") if isinstance(found, str) else _cells(found)
            if not isinstance(found, str) and found.policies < one.main.policies:
                what += f" ({found.policies} of {one.main.policies} policies)"
            rows.append((one.task, what, *cells))
    return table(("task", "what", "Pearson", "Spearman", "MMRV", "verdicts right"), rows)


def _cells(found: Compared) -> tuple[str, str, str, str]:
    agreed = found.agreement
    if agreed is None:
        return (found.why, "", "", _share(found.right))
    return (str(agreed.pearson), str(agreed.spearman), str(agreed.mmrv), _share(found.right))


def _corrected(rows: Sequence[tuple[str, CorrectedFigures]]) -> str:
    header = (
        "task", "true trials a policy", "Pearson, imagined", "corrected", "true trials alone", "MMRV, imagined",
        "corrected", "true trials alone", "worth",
    )  # fmt: skip
    kinds = ("imagined", "corrected", "alone")
    return table(
        header,
        [
            (
                task, str(row.true_trials), *(str(getattr(row, kind)["pearson"]) for kind in kinds),
                *(str(getattr(row, kind)["mmrv"]) for kind in kinds), f"{row.worth:.0f} trials",
            )
            for task, row in rows
        ],
    )  # fmt: skip


def _models(outcomes: Outcomes, studies: Sequence[Study]) -> str:
    rows = []
    for one in studies:
        for name, found in one.models.items():
            key = name if name == "imagined" else f"model-{name}"
            told = outcomes.weights.get(key, {"name": "", "digest": ""})
            shown = told["name"] if name == "imagined" else name
            rows.append((one.task, shown, told["digest"], str(found.policies), *_cells(found)))
    return table(("task", "model", "weights", "policies", "Pearson", "Spearman", "MMRV", "verdicts right"), rows)


def _strange(rows: Sequence[tuple[Study, Strange]]) -> str:
    header = (
        "task", "what is strange", "policies", "verdicts right", "elsewhere", "Pearson", "MMRV", "trust", "falls by",
        "abstained", "more than elsewhere",
    )  # fmt: skip
    cells = []
    for one, row in rows:
        agreed = row.compared.agreement
        cells.append((
            one.task, STRANGE[row.kind], str(row.compared.policies), _share(row.compared.right), _share(one.main.right),
            "" if agreed is None else str(agreed.pearson), "" if agreed is None else str(agreed.mmrv),
            "not known" if row.trust is None else str(row.trust), "" if row.fall is None else str(_negative(row.fall)),
            _share(row.abstained), _share(row.more),
        ))  # fmt: skip
    return table(header, cells)


def _policies(outcomes: Outcomes, tasks: Sequence[str]) -> str:
    rows = []
    for task in tasks:
        names = outcomes.names(task, "imagined", "oracle")
        sides = [outcomes.outcomes(condition, task, names) for condition in ("oracle", "imagined")]
        for i, name in enumerate(names):
            real, sim = sides[0][i], sides[1][i]
            rates = [rate(values) for values in (real, sim)]
            both = bool((np.isfinite(real) & np.isfinite(sim)).any())
            bias = _share(paired_difference(sim, real)) if both else ""
            rows.append((task, name, *map(_share, rates), bias))
    return table(("task", "policy", "true", "imagined", "imagined − true"), rows)


def origin(outcomes: Outcomes) -> str:
    """Return the line that belongs under the tables: every machine, commit and day of the runs."""
    told = {name: list(dict.fromkeys(str(run[name]) for run in outcomes.runs)) for name in
            ("machine", "commit", "date", "load")}  # fmt: skip
    seconds = {name: outcomes.seconds(name) for name in ("oracle", "imagined")}
    trial = ", ".join(f"{name} {value:.1f}" for name, value in seconds.items() if value is not None)
    minutes = sum(run["minutes"] for run in outcomes.runs)
    return (
        f"Measured on {'; '.join(told['machine'])}, in {len(outcomes.runs)} runs of {minutes:.0f} minutes in all; "
        f"seconds per trial: {trial}; load average at the beginning of runs: {', '.join(told['load'])}. "
        f"Commit {', '.join(told['commit'])}, {', '.join(told['date'])}."
    )


def rate(values: np.ndarray) -> Interval | None:
    """Return the success rate of known outcomes with Wilson's interval; None where none is known."""
    known = values[np.isfinite(values)]
    return wilson(int(known.sum()), len(known)) if len(known) else None


def _negative(found: Interval) -> Interval:
    return Interval(value=-found.value, low=-found.high, high=-found.low, level=found.level, samples=found.samples)


def _share(found: Interval | None) -> str:
    """Return e.g. "61 % [59, 63]"; "" where it is not known."""
    if found is None:
        return ""
    return f"{100 * found.value:.0f} % [{100 * found.low:.0f}, {100 * found.high:.0f}]"
