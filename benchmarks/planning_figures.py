"""Figures of benchmarks/planning.py: success from the rows of episodes, beside what is asked."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from asked import met, percent, so_far

from vap_gym.evaluate.report import table
from vap_gym.evaluate.trials import wilson
from vap_gym.metrics import Interval, bootstrap_interval

Rows = Sequence[Mapping[str, Any]]
TASKS = ("reach", "push")
KINDS = {
    "imagination": "imagination", "few": "imagination, as few candidates as the simulator", "oracle": "the simulator",
    "none": "no model",
}  # fmt: skip
REACH, PUSH = (0.90, 0.95), (0.60, 0.90)  # must and aim: success of a reach; a push's, as a share of the simulator's
PLAN_S, PLANS = 5.0, 8  # an episode's plans at most
TIMED_S = (20.0, 6.0)  # must and aim: one plan of 64 candidates, 12 steps and 3 iterations
STARTS = 75  # so many are asked for


def page(held: Mapping[str, Any]) -> str:
    """Return the results as tables: what is asked, then success of each way to plan."""
    rows = held["rows"]
    cells = [figures(task, kind, mine) for task in TASKS for kind in KINDS if (mine := of(rows, task, kind))]
    names = ("task", "planned with", "success in the simulator", "steps when solved", "plans", "s per plan, p50 / most")
    parts = [table(("task", "figure", "measured", "starts", "must", "aim", "met"), against(held)), table(names, cells)]
    told = ("planner", "candidates", "iterations", "foresight")
    for kind in ("imagination", "oracle"):
        made = held["settings"][kind]
        parts.append(
            f"Planned with {KINDS[kind]}: " + ", ".join(f"{name} {made[name]}" for name in told)
            + "; horizon: " + ", ".join(f"{name} {value}" for name, value in made["horizon"].items()) + "."
        )  # fmt: skip
    return "\n\n".join([*parts, measured(held)])


def of(rows: Rows, task: str, kind: str) -> list[Mapping[str, Any]]:
    """Return the rows of a task and of what was planned with, in the order of their starts."""
    return sorted((row for row in rows if (row["task"], row["dynamics"]) == (task, kind)), key=lambda row: row["start"])


def success(rows: Rows) -> Interval:
    """Return how many of one or more episodes succeeded, with Wilson's interval."""
    return wilson(sum(bool(row["success"]) for row in rows), len(rows))


def figures(task: str, kind: str, rows: Rows) -> tuple[str, ...]:
    """Return a table's row of one task and of what was planned with."""
    steps = [row["steps"] for row in rows if row["success"]]
    seconds = [s for row in rows for s in row["plan_s"]]
    plans = [len(row["plan_s"]) for row in rows]
    return (
        task, KINDS[kind], f"{percent(success(rows))} of {len(rows)}",
        f"{statistics.median(steps):.0f}" if steps else "", f"{statistics.mean(plans):.1f}" if seconds else "",
        f"{statistics.median(seconds):.2f} / {max(seconds):.2f}" if seconds else "",
    )  # fmt: skip


def share(rows: Rows, task: str, kind: str = "imagination") -> Interval | None:
    """Return how much of the simulator's success imagination has, from starts that both were tried from; whole starts
    are drawn. None: there is no such start, or the simulator solved none."""
    imagined, oracle = (
        {row["start"]: float(row["success"]) for row in of(rows, task, name)} for name in (kind, "oracle")
    )
    both = sorted(imagined.keys() & oracle.keys())
    if not any(oracle[i] for i in both):
        return None
    pairs = np.array([(imagined[i], oracle[i]) for i in both])
    return bootstrap_interval(pairs, statistic=lambda p: float(p[:, 0].sum() / max(p[:, 1].sum(), 1.0)))


def against(held: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return what was measured beside what is asked; fewer starts than are asked for are told where it is met."""
    rows, found = held["rows"], []
    for task in TASKS:
        mine = of(rows, task, "imagination")
        if not mine:
            continue
        alone, both = success(mine), share(rows, task)
        must, aim = REACH if task == "reach" else (None, None)
        found.append(_asked(task, "success, planned in imagination", alone, must, aim))
        must, aim = PUSH if task == "push" else (None, None)
        found.append(_asked(task, "the same, as a share of planned in the simulator", both, must, aim))
        if (few := share(rows, task, "few")) is not None:
            found.append(_asked(task, "the same, of as few candidates as the simulator", few, None, None))
        seconds, plans = (
            max((s for row in mine for s in row["plan_s"]), default=0.0),
            max(len(r["plan_s"]) for r in mine),
        )
        starts = str(len(mine))
        found.append((task, "longest plan, s", f"{seconds:.2f}", starts, f"≤ {PLAN_S:g}", "", _within(seconds, PLAN_S)))
        found.append((task, "most plans of an episode", str(plans), starts, f"≤ {PLANS}", "", _within(plans, PLANS)))
    must_s, aim_s = TIMED_S
    for name, told in held.get("timed_plan", {}).get("seconds", {}).items():
        what = f"one plan of 64 candidates × 12 steps × 3 iterations, {name}, s, p50 / worst"
        bounds = (f"≤ {must_s:g}", f"≤ {aim_s:g}", _within(told["worst_s"], must_s, aim_s))
        found.append(("push", what, f"{told['p50_s']:.2f} / {told['worst_s']:.2f}", "1", *bounds))
    return found


def _asked(task: str, what: str, value: Interval | None, must: float | None, aim: float | None) -> tuple[str, ...]:
    bounds = ["" if bound is None else f"≥ {100 * bound:.0f} %" for bound in (must, aim)]
    if value is None:
        return (task, what, "not known", "", *bounds, "")
    asked = must is not None or aim is not None
    reached = met(value, must=must, aim=aim) + so_far(starts=(value.samples, STARTS)) if asked else ""
    return (task, what, percent(value), str(value.samples), *bounds, reached)


def _within(value: float, must: float, aim: float | None = None) -> str:
    """Return the lower of two bounds that a figure is at or below, or "no"."""
    return "aim" if aim is not None and value <= aim else "must" if value <= must else "no"


def measured(held: Mapping[str, Any]) -> str:
    """Return the line that belongs under the tables: weights, and every machine, commit and day of the runs."""
    runs = held["runs"]
    told = {name: ", ".join(dict.fromkeys(str(run[name]) for run in runs)) for name in ("machine", "commit", "date")}
    weights = ", ".join(f"{name.replace('_', ' ')} {digest}" for name, digest in held["weights"].items())
    timed = held.get("timed_plan")
    alone = f" One plan was timed on {timed['machine']}, load {timed['load']}." if timed else ""
    minutes, most = sum(run["minutes"] for run in runs), max((run["workers"] for run in runs), default=1)
    return (
        f"Measured on {told['machine']}, by up to {most} processes of one thread each, {minutes:.0f} minutes in all. "
        f"Weights {weights}. Commit {told['commit']}, {told['date']}.{alone}"
    )
