"""The page of the tables: every figure with its interval, beside frozen frame, codec and judge, and the verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vap_gym.evaluate.report import stamp, table
from vap_gym.evaluate.tables_plan import OrderingPlan, Plan, TablePlan
from vap_gym.evaluate.tables_scores import MASKED, Scores, is_known_gripper
from vap_gym.evaluate.tables_verdicts import NAMES, Figure, Measured, Place, Verdict, figure, verdict

SEGMENTER_MUST = 0.85  # the judge's own J&F on true frames, below which its word on generated ones is doubtful
REFERENCES = {"frozen": "first frame, frozen", "codec": "true frames through the codec", "true": "judge on true frames"}


@dataclass(frozen=True, kw_only=True)
class RunFact:
    """What a training cost: for the list at the page's end."""

    name: str
    seed: int
    steps: int
    samples: int
    hours: float
    recipe: str  # the first digits of its hash
    started_from: str = ""  # when the training ended whose weights it began with

    def to_json(self) -> dict[str, Any]:
        """Return all of it as plain JSON."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Results:
    """All that was measured. `measured` has the rows of tables by the training's name in the plan, and REFERENCES."""

    measured: Measured
    moving: Mapping[str, bool]  # by set: whether its camera moves within episodes
    episodes: Mapping[tuple[str, str], int]  # by set and split
    facts: Sequence[RunFact]
    skipped: Sequence[str] = ()  # trainings that are not done
    origin: str = ""  # where and when it was measured; here and now where it is left out


def page(plan: Plan, results: Results) -> str:
    """The whole page as markdown."""
    moving = [plan.sets[name].title for name, moves in results.moving.items() if moves]
    still = [plan.sets[name].title for name, moves in results.moving.items() if not moves]
    cameras = f"The camera moves in: {', '.join(moving) or 'none'}. It stands still in: {', '.join(still) or 'none'}."
    said = {name: verdicts(plan, one, results) for name, one in plan.tables.items()}
    parts = [
        "# The paper's tables at small scale",
        *_warning(plan, results),
        _about(plan, results) + " " + cameras,
        *(_section(plan, one, results, said[name]) for name, one in plan.tables.items()),
        _verdicts([one for of_table in said.values() for one in of_table]),
        _costs(results.facts),
        results.origin or stamp(),
    ]
    return "\n\n".join(parts)


def verdicts(plan: Plan, one: TablePlan, results: Results) -> list[Verdict]:
    """Judge the orderings of a table."""
    titles = _titles(plan, one)
    found = []
    for ordering in one.orderings:
        sets = _sets_of(ordering, one, results)
        places = [
            Place(set=name, split=split, metric=metric)
            for name in sets
            for split in ordering.splits
            for metric in ordering.metrics
            if _counts(results, name, split, metric)
        ]
        left_out = [
            Place(set=name, split=split, metric=metric)
            for name in sets
            for split in ordering.splits
            for metric in ordering.metrics
            if not _counts(results, name, split, metric)
        ]
        said = verdict(ordering, places, titles, results.measured)
        if left_out:
            where = ", ".join(dict.fromkeys(f"{NAMES[p.metric]} on {titles[p.set]}" for p in left_out))
            word = f" Left out, since the judge does not know what it would have to read there: {where}."
            said = Verdict(
                claim=said.claim, source=said.source, sentence=said.sentence + word,
                holds=None if said.holds else said.holds,
            )  # fmt: skip
        found.append(said)
    return found


def _sets_of(ordering: OrderingPlan, one: TablePlan, results: Results) -> list[str]:
    if "moving" in ordering.sets:
        return [name for name in one.sets if results.moving.get(name)]
    return list(ordering.sets or one.sets)


def _counts(results: Results, name: str, split: str, metric: str) -> bool:
    """Whether the judge can be asked for a metric on a set: it must find the gripper in true frames."""
    if metric != "adherence_px":
        return True
    true = results.measured.get(("true", name, split), ())
    return not true or is_known_gripper(true[0])


def _titles(plan: Plan, one: TablePlan) -> dict[str, str]:
    titles = {name: kept.title for name, kept in plan.sets.items()}
    titles |= {f"{name} novel": f"novel {kept.novel}" for name, kept in plan.sets.items()}
    return titles | {row.name: row.title for row in one.rows}


def _warning(plan: Plan, results: Results) -> list[str]:
    said = []
    if plan.reduced:
        said.append(
            f"> **A trial run, no result: {'; '.join(plan.reduced)}.** It shows that the machinery works. "
            "Its figures say nothing of the paper's orderings."
        )
    if results.skipped:
        said.append(f"> Not trained yet, and so missing below: {', '.join(results.skipped)}.")
    for one in plan.tables.values():
        names = {run for row in one.rows for run in row.runs.values()}
        begun: dict[tuple[str, int], set[str]] = {}
        for fact in results.facts:
            if fact.name in names and fact.started_from:
                begun.setdefault((plan.runs[fact.name].base, fact.seed), set()).add(fact.started_from)
        for base, seed in (key for key, ends in begun.items() if len(ends) > 1):
            said.append(
                f"> Table {one.name}, seed {seed}: `{base}` was trained {len(begun[base, seed])} times by the same "
                "recipe, and not all rows start from the same one of these."
            )
    return said


def _about(plan: Plan, results: Results) -> str:
    seeds = len(plan.seeds)
    counts = ", ".join(
        f"{plan.sets[name].title} {count} {_split_name(plan, name, split)}"
        for (name, split), count in results.episodes.items()
    )
    bases = ", ".join(f"`{name}`" for name in plan.stages) or "none"
    chance = (
        "One seed: the intervals hold chance of the episodes, not of the training."
        if seeds == 1
        else f"Up to {seeds} seeds: figures are means over those that are trained, and those of each stand in "
        "brackets; rows are compared over the seeds that both have; the intervals hold chance of the episodes, not of "
        "the training."
    )
    return (
        f"`vap-gym bench tables` trains models that differ in one thing, from the same base ({bases}), each on its own "
        f"set (a joint one on all sets, each of which gives it an equal share of its clips; steps stand below), and "
        f"scores them on held-out oracle episodes ({counts}; 24 steps from the first frame). Intervals are bootstrap "
        f"over episodes, 95 %. {chance} Adherence and masks are read by the judge of `{plan.judge}`; where it cannot "
        "find a robot's gripper in true frames, no adherence is given."
    )


def _split_name(plan: Plan, name: str, split: str) -> str:
    return split if split == "known" else f"novel {plan.sets[name].novel}"


def _section(plan: Plan, one: TablePlan, results: Results, said: Sequence[Verdict]) -> str:
    parts = [f"## Table {one.name}: {one.title}"]
    parts += [one.note] if one.note else []
    parts += [f"In the paper: {one.paper}"] if one.paper else []
    for name in one.sets:
        for split in one.splits:
            if (name, split) not in results.episodes:
                continue
            heading = f"**{plan.sets[name].title}, {_split_name(plan, name, split)}**"
            heading += " (moving camera)" if results.moving.get(name) else ""
            parts.append(f"{heading}\n\n{_block(one, name, split, results)}")
            doubt = _doubt(one, name, split, results)
            parts += [doubt] if doubt else []
    if said:
        rows = [[v.claim, v.source, v.word] for v in said]
        parts.append(table(["ordering", "claimed in", "at our scale"], rows))
    return "\n\n".join(parts)


def _block(one: TablePlan, name: str, split: str, results: Results) -> str:
    lines = {row.name: row.title for row in one.rows if name in row.runs} | REFERENCES
    metrics = [metric for metric in one.metrics if _counts(results, name, split, metric)]
    rows = []
    for key, title in lines.items():
        scores = results.measured.get((key, name, split), ())
        if not scores and key in REFERENCES:
            continue
        cells = ["" if key == "true" and metric in ("psnr", "ssim", "st_iou") else _cell(figure(scores, metric))
                 for metric in metrics]  # fmt: skip
        if any(cells) or key not in REFERENCES:
            rows.append([title, *cells])
    return table(["", *(NAMES[metric] for metric in metrics)], rows)


def _cell(said: Figure | None) -> str:
    return "" if said is None else str(said)


def _doubt(one: TablePlan, name: str, split: str, results: Results) -> str:
    """What has to be known of the judge beside a block."""
    true: Sequence[Scores] = results.measured.get(("true", name, split), ())
    said = []
    if true and "adherence_px" in one.metrics and not _counts(results, name, split, "adherence_px"):
        said.append("No adherence: the judge does not find this robot's gripper in true frames.")
    if true and any(metric in one.metrics for metric in MASKED):
        own = figure(true, "j_and_f")
        if own is None:
            said.append("No J&F: too few of these episodes show something manipulated that the judge has a label for.")
        else:
            verb = "reaches" if own.interval.value >= SEGMENTER_MUST else "is below"
            what = f"J&F over {own.interval.samples} episodes in which the thing is seen at first and moved"
            must = f"{verb} the {SEGMENTER_MUST} that it must have"
            said.append(f"{what}; the segmenter's own on true frames, {own.interval.value:.2f}, {must}.")
    return " ".join(said)


def _verdicts(said: Sequence[Verdict]) -> str:
    lines = [f"- {one.sentence}" for one in said]
    return "\n".join(["## What holds, and what does not", "", *(lines or ["Nothing was put to the test."])])


def _costs(facts: Sequence[RunFact]) -> str:
    rows = [
        [fact.name, str(fact.seed), f"{fact.steps:,}", f"{fact.samples:,}", f"{fact.hours:.2f}", f"`{fact.recipe}`"]
        for fact in facts
    ]
    hours = sum(fact.hours for fact in facts)
    head = ["training", "seed", "steps", "samples", "hours", "recipe"]
    return "\n\n".join(
        ["## What was trained", f"{len(rows)} trainings, {hours:.2f} hours by the clock.", table(head, rows)]
    )
