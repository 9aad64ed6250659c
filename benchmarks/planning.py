"""Planning: push and reach, planned in imagination, in the simulator or not at all, carried out in the simulator.

    python benchmarks/planning.py --out out/planning

Every episode's row is written as soon as it is over, and a run that was stopped goes on where it stood. Starts are
drawn from seeds that no training has seen. `--timed` adds how long one plan of 64 candidates, 12 steps and 3 iterations
takes, which needs an idle machine.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from tqdm import tqdm

from vap_gym.errors import VapError, unknown_name
from vap_gym.evaluate import report
from vap_gym.evaluate.trials import wilson
from vap_gym.loading import build_stage
from vap_gym.metrics import bootstrap_interval
from vap_gym.oracle_env import OracleEnv, make_starts
from vap_gym.plan import (
    Bounds,
    Cem,
    ForesightScore,
    Horizon,
    ImaginedOutlook,
    MpcPolicy,
    PlanSettings,
    TaskGoal,
    of_latents,
    of_things,
    play_episode,
    task_bounds,
)
from vap_gym.starts import StartSet

FIRST_SEED = 3_000_000  # of the starts: training is below 1,000,000, held-out lists and shipped starts are below this
TASKS = ("reach", "push")
PER_SET = 3  # tasks take turns in a file of starts: reach, push, lift
MUST = {"reach": ("success", 0.90, 0.95), "push": ("share of (b)", 0.60, 0.90)}


def main(
    out: Path = Path("out/planning"),
    *,
    env: str = "VAP-DROID-v0",
    starts: int = 75,
    tasks: tuple[str, ...] = TASKS,
    dynamics: tuple[str, ...] = ("imagination", "oracle", "none"),
    candidates: int = 128,
    iterations: int = 5,
    actions: int = 8,
    hold: int = 4,
    execute: int = 12,
    plans: int = 8,
    budget_s: float = 5.0,
    oracle_candidates: int = 32,
    oracle_iterations: int = 3,
    oracle_budget_s: float = 0.0,
    steps: int = 100,
    first_seed: int = FIRST_SEED,
    world_model: str = "",
    timed: bool = False,
) -> None:
    """Play the experiment; write planning.json and planning.md.

    Args:
        out: folder; one for each set of settings.
        env: the card whose tasks these are.
        starts: of each task.
        tasks: reach, push.
        dynamics: what is planned with: imagination, oracle, none.
        candidates: action sequences in an iteration.
        iterations: of a plan.
        actions: of a plan.
        hold: control steps that each is held for.
        execute: control steps that are done before the next plan.
        plans: at most so many in an episode.
        budget_s: seconds for one plan; 0: as long as it takes.
        oracle_candidates: instead of candidates where the simulator plans: its steps cost a hundred times as much.
        oracle_iterations: likewise.
        oracle_budget_s: likewise.
        steps: after so many an episode has failed.
        first_seed: of the starts: tune on others than you measure on.
        world_model: a name or folder; the card's by default.
        timed: also time a plan of 64 candidates, 12 steps and 3 iterations.
    """
    horizon = Horizon(actions=actions, hold=hold, execute=execute, most_plans=plans, budget_s=budget_s or None)
    seen = PlanSettings(
        card=env, candidates=candidates, iterations=iterations, horizon=horizon, world_model=world_model
    )
    simulated = replace(
        seen, dynamics="oracle", candidates=oracle_candidates, iterations=oracle_iterations,
        horizon=replace(horizon, budget_s=oracle_budget_s or None),
    )  # fmt: skip
    planned_with = {"imagination": seen, "oracle": simulated, "none": replace(seen, dynamics="none")}
    settings = {
        "imagination": asdict(seen), "oracle": asdict(simulated), "steps": steps, "first_seed": first_seed,
    }  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    file = Results(out / "planning.json", settings)
    shipped = starts_file(out, env, starts, first_seed)
    for task in tasks:
        for kind in dynamics:
            if kind not in planned_with:
                raise unknown_name("dynamics", kind, planned_with)
            play_all(file, planned_with[kind], task, shipped, starts, steps)
    if timed:
        file.write(timed_plan=timed_plan(env, shipped, world_model))
    text = page(file)
    report.write(out / "planning.md", text)
    print(text)


class Results:
    """One JSON file of settings and rows: read if it is there, written whole after every row."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path = path
        self.table: dict[str, Any] = {"settings": settings, "rows": []}
        if path.is_file():
            self.table = json.loads(path.read_text(encoding="utf-8"))
            if self.table["settings"] != settings:
                raise VapError(
                    f"'{path}' holds results of other settings: {self.table['settings']}. Give another --out, or the "
                    "same settings as before."
                )

    def write(self, **parts: Any) -> None:
        """Set parts of the table and write it, under a temporary name until it is whole."""
        self.table |= parts
        report.write(self.path, json.dumps(self.table, indent=1))

    def rows(self, task: str, kind: str) -> list[dict[str, Any]]:
        """Return the rows of a task and of what was planned with, in the order of their starts."""
        mine = [row for row in self.table["rows"] if (row["task"], row["dynamics"]) == (task, kind)]
        return sorted(mine, key=lambda row: int(row["start"]))


def starts_file(out: Path, env: str, starts: int, first_seed: int) -> Path:
    """Draw the starts, unless they are there."""
    path = out / f"starts_{first_seed}_{starts}.npz"
    if not path.is_file():
        make_starts(path, env=env, count=PER_SET * starts, first_seed=first_seed)
    return path


def play_all(file: Results, made: PlanSettings, task: str, shipped: Path, count: int, steps: int) -> None:
    """Play the episodes that are not there yet."""
    numbers = StartSet(shipped).of_task(task)[:count]
    done = {row["start"] for row in file.rows(task, made.dynamics)}
    left = [number for number in numbers if number not in done]
    if not left:
        return
    env, driver = OracleEnv(made.card, task=task, starts=shipped, action_mode=made.action_mode), made.make()
    for number in tqdm(left, desc=f"{task}, planned with: {made.dynamics}", unit="episode"):
        played = play_episode(env, driver, seed=number, options={"start": int(number)}, steps=steps)
        made_plans = driver.plans if isinstance(driver, MpcPolicy) else []
        row = {
            "task": task, "dynamics": made.dynamics, "start": int(number), "success": played.success,
            "steps": len(played.progress), "most_progress": max(played.progress),
            "plan_s": [round(plan.seconds, 3) for plan in made_plans],
            "evaluations": [plan.evaluations for plan in made_plans],
        }  # fmt: skip
        file.write(rows=[*file.table["rows"], row])
    env.close()


def timed_plan(env: str, shipped: Path, world_model: str, *, repeats: int = 5) -> dict[str, Any]:
    """Time one plan of 64 candidates, 12 steps and 3 iterations, looking ahead with things and with latents."""
    stage = build_stage(env, world_model=world_model or None)
    file = StartSet(shipped)
    start = file[file.of_task("push")[0]]
    assert start.scene is not None
    state = stage.begin([start], [0])
    seen = ImaginedOutlook(stage)
    seen.begin(start, 0)
    bounds = task_bounds(Bounds.of(stage.action_space), "push")
    planner = Cem(candidates=64, iterations=3)
    seconds: dict[str, Any] = {}
    for name, foresight in (("things", of_things), ("latents, every third step", of_latents)):
        score = ForesightScore(foresight(stage, state, seen.objects_m), TaskGoal([start.scene]))
        planner.plan(score, bounds, 12)
        taken = [planner.plan(score, bounds, 12).seconds for _ in range(repeats)]
        seconds[name] = {"p50_s": statistics.median(taken), "worst_s": max(taken)}
    return seconds | {"machine": report.machine(), "load": report.load_average()}


def page(file: Results) -> str:
    """Return the results as tables."""
    rows = file.table["rows"]
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    kinds = list(dict.fromkeys(row["dynamics"] for row in rows))
    cells = [figures(task, kind, file.rows(task, kind)) for task in tasks for kind in kinds if file.rows(task, kind)]
    header = (
        "task",
        "planned with",
        "success in the simulator",
        "steps when solved",
        "plans",
        "s per plan, p50 / most",
    )
    parts = [report.table(header, cells)]
    ratios = [line for task in tasks if (line := share(task, file))]
    if ratios:
        parts.append(
            report.table(("task", "imagination's success as a share of the simulator's", "must", "aim"), ratios)
        )
    if "timed_plan" in file.table:
        timed = [(k, f"{v['p50_s']:.2f}", f"{v['worst_s']:.2f}") for k, v in file.table["timed_plan"].items() if
                 isinstance(v, dict)]  # fmt: skip
        parts.append(report.table(("64 candidates × 12 steps × 3 iterations", "s, p50", "s, worst"), timed))
        parts.append(f"Timed on {file.table['timed_plan']['machine']}, load {file.table['timed_plan']['load']}.")
    told = {f"{kind}'s {name}": file.table["settings"][kind][name] for kind in ("imagination", "oracle")
            for name in ("planner", "candidates", "iterations", "foresight", "horizon")}  # fmt: skip
    return "\n\n".join([*parts, report.stamp(**told)])


def figures(task: str, kind: str, rows: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    """Return a table's row of one task and of what was planned with."""
    rate = wilson(sum(row["success"] for row in rows), len(rows))
    steps = [row["steps"] for row in rows if row["success"]]
    seconds = [s for row in rows for s in row["plan_s"]]
    plans = [len(row["plan_s"]) for row in rows]
    return (
        task, kind, f"{100 * rate.value:.0f} % [{100 * rate.low:.0f}, {100 * rate.high:.0f}] of {len(rows)}",
        f"{statistics.median(steps):.0f}" if steps else "", f"{statistics.mean(plans):.1f}" if seconds else "",
        f"{statistics.median(seconds):.2f} / {max(seconds):.2f}" if seconds else "",
    )  # fmt: skip


def share(task: str, file: Results) -> tuple[str, ...] | None:
    """Return how much of the simulator's success imagination has, from starts that both were tried from."""
    imagined, oracle = (
        {row["start"]: float(row["success"]) for row in file.rows(task, kind)} for kind in ("imagination", "oracle")
    )
    both = sorted(imagined.keys() & oracle.keys())
    if not both or not any(oracle[i] for i in both):
        return None
    pairs = np.array([(imagined[i], oracle[i]) for i in both])
    found = bootstrap_interval(pairs, statistic=lambda p: float(p[:, 0].sum() / max(p[:, 1].sum(), 1.0)))
    kind, must, aim = MUST[task]
    bound = (f"≥ {100 * must:.0f} %", f"≥ {100 * aim:.0f} %") if kind != "success" else ("", "")
    return (task, f"{100 * found.value:.0f} % [{100 * found.low:.0f}, {100 * found.high:.0f}]", *bound)


if __name__ == "__main__":
    tyro.cli(main)
