"""Planning: push and reach, planned in imagination, in the simulator or not at all, carried out in the simulator.

    python benchmarks/planning.py --workers 2 --minutes 110 --keep    # again and again until nothing is left
    python benchmarks/planning.py --keep --minutes 1e-9 --timed --fan # on an idle machine: seconds, and the picture

Every episode's row is written beside the page as soon as it is over; a run that was stopped goes on with --keep, if
settings and weights are the same. Starts are drawn from seeds that no training has seen. `--timed` adds how long one
plan of 64 candidates, 12 steps and 3 iterations takes.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import tyro
from asked import weights_of
from planning_figures import KINDS, TASKS, page
from tqdm import tqdm

from vap_gym.errors import VapError, unknown_name
from vap_gym.evaluate import report
from vap_gym.jobs.executors import completed
from vap_gym.loading import build_stage
from vap_gym.oracle_env import OracleEnv, make_starts
from vap_gym.pictures import write_png
from vap_gym.plan import (
    Bounds,
    Cem,
    ForesightScore,
    Horizon,
    ImaginedOutlook,
    MpcPolicy,
    PlanSettings,
    TaskGoal,
    fan_sheet,
    imagined_fan,
    of_latents,
    of_things,
    play_episode,
    task_bounds,
)
from vap_gym.plan.policy import Driver
from vap_gym.starts import Start, StartSet

FIRST_SEED = 3_000_000  # of the starts: training is below 1,000,000, held-out lists and shipped starts are below this
PER_SET = 3  # tasks take turns in a file of starts: reach, push, lift
REPO = Path(__file__).resolve().parent.parent
EMPTY = "# Planning\n\n<!-- planning -->\n<!-- /planning -->\n"  # a page
KNOWS_NO_WEIGHTS = "oracle"  # what was planned in the simulator stays as it is when weights change
Item = tuple[str, str, int]  # task, what is planned with, start


def main(
    out: Path = Path("out/planning"),
    *,
    docs: Path = REPO / "docs" / "planning.md",
    env: str = "VAP-DROID-v0",
    starts: int = 75,
    tasks: tuple[str, ...] = TASKS,
    dynamics: tuple[str, ...] = tuple(KINDS),
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
    workers: int = 1,
    minutes: float = 0.0,
    keep: bool = False,
    forget: tuple[str, ...] = (),
    timed: bool = False,
    fan: bool = False,
) -> int:
    """Play the experiment, or what is left of it; write the page and its rows. Returns how many episodes are left.

    Args:
        out: folder of the starts.
        docs: the page whose tables are written; rows go beside it (planning.json), the picture into img/.
        env: the card whose tasks these are.
        starts: of each task.
        tasks: reach, push.
        dynamics: what is planned with: imagination, few (imagination, with as few candidates as the simulator), oracle,
            none.
        candidates: action sequences in an iteration.
        iterations: of a plan.
        actions: of a plan.
        hold: control steps that each is held for.
        execute: control steps that are done before the next plan.
        plans: at most so many in an episode.
        budget_s: seconds for one plan; 0: as long as it takes.
        oracle_candidates: instead of candidates where the simulator plans: its steps cost about forty times as much.
        oracle_iterations: likewise.
        oracle_budget_s: likewise.
        steps: after so many an episode has failed.
        first_seed: of the starts: tune on others than you measure on.
        world_model: a name or folder; the card's by default.
        workers: processes, of one thread each.
        minutes: after so many no episode is begun; 0: play all.
        keep: go on from the rows beside the page.
        forget: what was planned with, whose rows are dropped and played anew, such as imagination none.
        timed: also time a plan of 64 candidates, 12 steps and 3 iterations; needs an idle machine.
        fan: also draw what the first plan of a push chose among.
    """
    began = time.time()
    for what, given, known in (("task", tasks, TASKS), ("dynamics", (*dynamics, *forget), tuple(KINDS))):
        for name in given:
            if name not in known:
                raise unknown_name(what, name, known)
    horizon = Horizon(actions=actions, hold=hold, execute=execute, most_plans=plans, budget_s=budget_s or None)
    seen = PlanSettings(
        card=env, candidates=candidates, iterations=iterations, horizon=horizon, world_model=world_model
    )
    simulated = replace(
        seen, dynamics="oracle", candidates=oracle_candidates, iterations=oracle_iterations,
        horizon=replace(horizon, budget_s=oracle_budget_s or None),
    )  # fmt: skip
    few = replace(seen, candidates=oracle_candidates, iterations=oracle_iterations)
    made = {"imagination": seen, "few": few, "oracle": simulated, "none": replace(seen, dynamics="none")}
    settings = {
        "imagination": asdict(seen), "oracle": asdict(simulated), "steps": steps, "first_seed": first_seed,
    }  # fmt: skip
    weights = weights_of(env, world_model, seen.judge)
    file = Results.opened(docs.with_suffix(".json"), settings, weights, keep=keep, forget=forget)
    shipped = starts_file(out, env, starts, first_seed)
    until_s = began + 60 * minutes if minutes > 0 else float("inf")
    left = play(
        file, Episode(made=made, shipped=shipped, steps=steps, until_s=until_s), tasks, dynamics, starts, workers
    )
    run = {"machine": report.machine(), "commit": report.commit(), "date": f"{datetime.now(UTC):%Y-%m-%d}",
           "minutes": round((time.time() - began) / 60, 1), "workers": workers}  # fmt: skip
    file.write(runs=[*file.table["runs"], run])
    if timed:
        file.write(timed_plan=timed_plan(env, shipped, world_model))
    if fan:
        draw_fan(seen, shipped, docs.parent / "img" / "fan.png")
    text = page(file.table)
    before = docs.read_text(encoding="utf-8") if docs.is_file() else EMPTY
    report.write(docs, report.filled(before, "planning", text))
    print(text)
    if left:
        print(f"{left} episodes are left. Call it again with --keep.")
    return left


class Results:
    """One JSON file of settings, weights, runs and rows, written whole after every row."""

    def __init__(self, path: Path, table: dict[str, Any]) -> None:
        self.path, self.table = path, table

    @classmethod
    def opened(
        cls, path: Path, settings: Mapping[str, Any], weights: Mapping[str, str], *, keep: bool, forget: Sequence[str]
    ) -> Results:
        """Return what is there to go on from, or a new file.

        Raises:
            VapError: rows that would be written over, or that are of other settings or other weights.
        """
        fresh = {"settings": json.loads(json.dumps(settings)), "weights": dict(weights), "runs": [], "rows": []}
        if not path.is_file():
            return cls(path, fresh)
        if not keep:
            raise VapError(f"'{path}' holds rows already. Go on from them with --keep, or give another --docs.")
        table = {"weights": {}, "runs": []} | json.loads(path.read_text(encoding="utf-8"))
        differ = [name for name, value in fresh["settings"].items() if table["settings"].get(name) != value]
        if differ:
            told = "; ".join(f"{name} {table['settings'].get(name)}, got {fresh['settings'][name]}" for name in differ)
            raise VapError(f"'{path}' holds rows of other settings: {told}. Give the same ones, or another --docs.")
        table["rows"] = [row for row in table["rows"] if row["dynamics"] not in forget]
        if table["weights"] != fresh["weights"]:
            rest = sorted({row["dynamics"] for row in table["rows"]} - {KNOWS_NO_WEIGHTS})
            if rest:
                raise VapError(
                    f"'{path}' holds rows of other weights: {table['weights'] or 'unknown'}, got {fresh['weights']}. "
                    f"Play them anew: --forget {' '.join(rest)}, or give another --docs."
                )
            table.pop("timed_plan", None)
            table["weights"] = fresh["weights"]
        return cls(path, table)

    def write(self, **parts: Any) -> None:
        """Set parts of the table and write it, a line for each row, under a temporary name until it is whole."""
        self.table |= parts
        head = {name: value for name, value in self.table.items() if name != "rows"}
        rows = ",\n".join(json.dumps(row, separators=(",", ":")) for row in self.table["rows"])
        report.write(self.path, f'{json.dumps(head, indent=1)[:-2]},\n "rows": [\n{rows}\n]\n}}')


def starts_file(out: Path, env: str, starts: int, first_seed: int) -> Path:
    """Draw the starts, unless they are there. The first ones of more starts are the same."""
    path = out / f"starts_{first_seed}_{starts}.npz"
    if not path.is_file():
        out.mkdir(parents=True, exist_ok=True)
        make_starts(path, env=env, count=PER_SET * starts, first_seed=first_seed)
    return path


@dataclass(frozen=True, kw_only=True)
class Episode:
    """Plays one episode, in whatever process; a job of `vap_gym.jobs`."""

    made: Mapping[str, PlanSettings]  # by what is planned with
    shipped: Path
    steps: int
    until_s: float  # time.time() from which on none is begun

    def __call__(self, item: Item) -> dict[str, Any]:
        """Return the episode's row; nothing where it is too late to begin it."""
        if time.time() >= self.until_s:
            return {}
        task, kind, number = item
        env, driver = driven(self.made[kind], task, self.shipped)
        played = play_episode(env, driver, seed=number, options={"start": number}, steps=self.steps)
        made_plans = driver.plans if isinstance(driver, MpcPolicy) else []
        return {
            "task": task, "dynamics": kind, "start": number, "success": played.success, "steps": len(played.progress),
            "most_progress": max(played.progress), "plan_s": [round(plan.seconds, 3) for plan in made_plans],
            "evaluations": [plan.evaluations for plan in made_plans],
        }  # fmt: skip


@cache
def driven(made: PlanSettings, task: str, shipped: Path) -> tuple[OracleEnv, Driver]:
    """Return an env and what drives it, once a process."""
    return OracleEnv(made.card, task=task, starts=shipped, action_mode=made.action_mode), made.make()


def play(file: Results, episode: Episode, tasks: Sequence[str], kinds: Sequence[str], starts: int, workers: int) -> int:
    """Play the episodes that are not there yet, and write each row at once. Returns how many are left.

    Raises:
        VapError: an episode that could not be played.
    """
    known, done = (
        StartSet(episode.shipped),
        {(row["task"], row["dynamics"], row["start"]) for row in file.table["rows"]},
    )
    every = [(task, kind, int(n)) for task in tasks for kind in kinds for n in known.of_task(task)[:starts]]
    left = {f"{task} {kind} {n}": (task, kind, n) for task, kind, n in every if (task, kind, n) not in done}
    undone = len(left)
    with tqdm(total=len(every), initial=len(every) - len(left), unit="episode", disable=None) as bar:
        for key, attempt in completed(episode, left, "processes" if workers > 1 else "serial", workers):
            if attempt.result is None:
                raise VapError(f"{key} could not be played: {attempt.error}")
            if attempt.result:
                file.write(rows=[*file.table["rows"], attempt.result])
                undone -= 1
                bar.update()
    return undone


def timed_plan(env: str, shipped: Path, world_model: str, *, repeats: int = 5) -> dict[str, Any]:
    """Time one plan of 64 candidates, 12 steps and 3 iterations, looking ahead with things and with latents."""
    stage, start = build_stage(env, world_model=world_model or None), first_push(shipped)
    assert start.scene is not None
    state = stage.begin([start], [0])
    seen = ImaginedOutlook(stage)
    seen.begin(start, 0)
    bounds = task_bounds(Bounds.of(stage.action_space), "push")
    planner = Cem(candidates=64, iterations=3)
    seconds: dict[str, Any] = {}
    for name, foresight in (("things", of_things), ("latents of every third step", of_latents)):
        score = ForesightScore(foresight(stage, state, seen.objects_m), TaskGoal([start.scene]))
        planner.plan(score, bounds, 12)
        taken = [planner.plan(score, bounds, 12).seconds for _ in range(repeats)]
        seconds[name] = {"p50_s": statistics.median(taken), "worst_s": max(taken)}
    return {"seconds": seconds, "machine": report.machine(), "load": report.load_average()}


def draw_fan(made: PlanSettings, shipped: Path, path: Path) -> None:
    """Draw the futures that the first plan of a push chose among, as they are imagined."""
    stage, start = made.stage(), first_push(shipped)
    policy = made.make(stage)
    assert isinstance(policy, MpcPolicy)
    policy.begin(start, seed=0)
    policy(start.frame)
    fan = imagined_fan(stage, stage.begin([start], [0]), policy.plans[0], hold=made.horizon.hold)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_png(path, fan_sheet(fan, title=f"{start.instruction}: futures that a plan chose among"))


def first_push(shipped: Path) -> Start:
    """Return the first start of a push."""
    file = StartSet(shipped)
    return file[file.of_task("push")[0]]


if __name__ == "__main__":
    tyro.cli(main)
