"""Agreement: policies of graded quality, tried in imagination and in the simulator from the same starts.

    python benchmarks/agreement.py --dry-run                # what will be played, and for how long
    python benchmarks/agreement.py --keep --minutes 110     # again and again until nothing is left
    python benchmarks/agreement.py --from docs/agreement.json

The policies stand in benchmarks/agreement.toml, and are fixed before anything is imagined: the screening, in the
simulator and from other starts, reports and warns only. Every outcome is kept beside the page, so that figures can be
made anew without playing, and another checkout goes on with --keep; frames and actions stay in the folder --out.
"""

from __future__ import annotations

import hashlib
import json as json_text
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import tyro

from vap_gym.cards import EnvCard, load_env
from vap_gym.errors import VapError, unknown_name
from vap_gym.evaluate import report
from vap_gym.evaluate.agreement_grid import Cloned, Entry, policies_of, read_grid
from vap_gym.evaluate.agreement_outcomes import Outcomes
from vap_gym.evaluate.agreement_page import LEAST_GRADED, OTHERS, origin, study, tables
from vap_gym.evaluate.agreement_scatter import draw
from vap_gym.evaluate.agreement_starts import FIRST_SEED, starts_file
from vap_gym.evaluate.agreement_study import graded
from vap_gym.evaluate.policies import evaluate_policies
from vap_gym.evaluate.policies_report import Report
from vap_gym.loading import build_stage
from vap_gym.policies import Policy, ReplayPolicy
from vap_gym.policies.known import familiar_digest, weights_digest
from vap_gym.policies.things import ThingsPolicy
from vap_gym.rl import clone_agent

REPO = Path(__file__).resolve().parent.parent
TASKS = ("reach", "push", "lift")
ORDER = {"screen": 0, "main": 1, "replay": 1, "others": 2, "models": 3, "strange": 4}
"""Parts one after the other, each for all tasks; but replays follow a task's true episodes, which lie in --out."""
PARTS = tuple(ORDER)
AT_ONCE = 4  # policies whose outcomes are written together
SECONDS = {True: 2.0, False: 3.4}  # of a trial, simulated and imagined, on one core, until they were measured


@dataclass(frozen=True, kw_only=True)
class Condition:
    """A world in which all policies of a task are tried."""

    name: str
    part: str  # of PARTS
    starts: int
    oracle: bool = False
    split: str = "main"  # see `starts_file`
    world_model: str = ""  # "": the card's own
    kind: str = "graded"  # the policies: "graded", "wrong", or "replay" of what the graded ones did in the oracle


EMPTY = "# Agreement\n\n<!-- agreement -->\n<!-- /agreement -->\n"  # a page


@dataclass(frozen=True, kw_only=True)
class Run:
    """What stays the same for all that is played."""

    out: Path
    data: Path
    card: EnvCard
    env: str
    entries: tuple[Entry, ...]
    starts: int  # of each task in the experiment itself
    steps: int
    first_seed: int
    judge: str
    device: str
    batch: int
    workers: int
    only: tuple[str, ...]  # names of policies; none: all


def main(
    out: Path = Path("out/agreement"),
    *,
    page: Path = REPO / "docs" / "agreement.md",
    grid: Path = REPO / "benchmarks" / "agreement.toml",
    data: Path = Path("data/droid"),
    env: str = "VAP-DROID-v0",
    tasks: tuple[str, ...] = TASKS,
    policies: tuple[str, ...] = (),
    parts: tuple[str, ...] = PARTS,
    starts: int = 75,
    screen_starts: int = 10,
    curve_starts: int = 25,
    strange_starts: int = 25,
    steps: int = 0,
    first_seed: int = FIRST_SEED,
    world_model: str = "",
    prompted: str = "",
    raw_state: str = "",
    no_prompt: str = "",
    checkpoints: tuple[str, ...] = (),
    judge: str = "tiny",
    device: str = "cpu",
    batch: int = 16,
    workers: int = 1,
    minutes: float = 0.0,
    keep: bool = False,
    forget: tuple[str, ...] = (),
    source: Annotated[str, tyro.conf.arg(name="from")] = "",
    dry_run: bool = False,
    json: bool = False,
) -> int:
    """Play the experiment, or what is left of it; write the page, its picture and its outcomes. Returns what is left.

    Args:
        out: folder for starts, cloned agents and all episodes.
        page: whose tables are written; outcomes go beside it (agreement.json), the picture into img/.
        grid: the policies.
        data: recordings of the simulator, whose experts are cloned.
        env: the card whose tasks these are.
        tasks: which of them.
        policies: only those of these names; default: all of the grid.
        parts: screen (in the simulator, other starts), main, replay (open loop), others (video models that are
            told skeletons, raw states, nothing), models (of other qualities), strange (what the model has not seen).
        starts: of each task.
        screen_starts: likewise, for the screening.
        curve_starts: the first so many of the starts, for replays and other models.
        strange_starts: of each kind of strangeness.
        steps: after so many control steps an episode has failed; 0: the card's.
        first_seed: of the scenes; training is below 1,000,000.
        world_model: a name or folder; the card's by default.
        prompted: folder of a streamed video model that is told skeletons.
        raw_state: folder of one that is told raw states, trained as much.
        no_prompt: folder of one that is told nothing.
        checkpoints: of other qualities, as NAME=FOLDER.
        judge: who tells success in imagined frames.
        device: where the world model runs.
        batch: episodes that are imagined together.
        workers: processes.
        minutes: after so many nothing new is begun; 0: play all.
        keep: go on from the outcomes beside the page.
        forget: conditions whose kept outcomes are dropped and played anew, such as imagined.
        source: outcomes to make the page from, without playing anything.
        dry_run: print what is to be played and about how long it takes.
        json: print the figures as JSON.
    """
    began = time.monotonic()
    for what, given, known in (("task", tasks, TASKS), ("part of the experiment", parts, PARTS)):
        for name in given:
            if name not in known:
                raise unknown_name(what, name, known)
    kept = page.with_suffix(".json")
    if source:
        outcomes = Outcomes.load(source)
        write(outcomes, page, json)
        return 0
    run = Run(
        out=out, data=data, card=load_env(env), env=env, entries=read_grid(grid, TASKS), starts=starts, steps=steps,
        first_seed=first_seed, judge=judge, device=device, batch=batch, workers=workers, only=policies,
    )  # fmt: skip
    every = conditions(starts, screen_starts, min(curve_starts, starts), strange_starts, world_model, checkpoints,
                       {"prompted": prompted, "raw-state": raw_state, "no-prompt": no_prompt})  # fmt: skip
    chosen = [one for one in every if one.part in parts]
    settings = {
        "env": env, "starts": starts, "screen_starts": screen_starts, "curve_starts": curve_starts,
        "strange_starts": strange_starts, "steps": steps, "first_seed": first_seed, "judge": judge,
    }  # fmt: skip
    outcomes = opened(kept, settings, keep or dry_run)
    outcomes.forget(forget)
    left = [(task, one) for task in tasks for one in chosen if missing(run, outcomes, one, task)]
    left.sort(key=lambda pair: ORDER[pair[1].part])
    if dry_run:
        print(plan(run, outcomes, left))
        return len(left)
    check_models(run, [one for _, one in left])
    told = {"machine": report.machine(device), "workers": workers, "date": f"{datetime.now(UTC):%Y-%m-%d}",
            "commit": report.commit(), "minutes": 0.0, "load": report.load_average()}  # fmt: skip
    if forget:
        outcomes.save(kept)

    def save() -> None:
        if told not in outcomes.runs:
            outcomes.runs.append(told)
        told["minutes"] = round((time.monotonic() - began) / 60, 1)
        outcomes.save(kept)

    def late() -> bool:
        return minutes > 0 and time.monotonic() - began > 60 * minutes

    undone = sum(not play(run, outcomes, one, task, save, late) for task, one in left)
    write(outcomes, page, json)
    if undone:
        print(f"{undone} of {len(left)} parts are left. Call it again with --keep.")
    return undone


def conditions(
    starts: int, screen: int, curve: int, strange: int, world_model: str, checkpoints: Sequence[str],
    others: dict[str, str],
) -> list[Condition]:  # fmt: skip
    """Return all worlds in the order in which they are played. Raises VapError for a checkpoint without a name."""
    found = [
        Condition(name="screen", part="screen", starts=screen, split="screen", oracle=True),
        Condition(name="oracle", part="main", starts=starts, oracle=True),
        Condition(name="imagined", part="main", starts=starts, world_model=world_model),
        Condition(name="replay", part="replay", starts=curve, world_model=world_model, kind="replay"),
    ]
    found += [Condition(name=name, part="others", starts=curve, world_model=folder)
              for name in OTHERS if (folder := others[name])]  # fmt: skip
    for text in checkpoints:
        name, sign, folder = text.partition("=")
        if not (name and sign and folder) or "/" in name:
            raise VapError(f"Checkpoints are NAME=FOLDER, got '{text}'. Such as early=runs/world_early.")
        found.append(Condition(name=f"model-{name}", part="models", starts=curve, world_model=folder))
    for kind in ("novel", "cameras", "wrong"):
        for side in ("oracle", "imagined"):
            found.append(Condition(
                name=f"{kind}-{side}", part="strange", starts=strange, oracle=side == "oracle",
                split="main" if kind == "wrong" else kind, kind="wrong" if kind == "wrong" else "graded",
                world_model="" if side == "oracle" else world_model,
            ))  # fmt: skip
    return found


def check_models(run: Run, left: Sequence[Condition]) -> None:
    """Load every model that was named, before hours are played. Raises CheckpointError for one that cannot be."""
    for name in dict.fromkeys(one.world_model for one in left if one.world_model):
        build_stage(run.env, world_model=name, judge=None)


def opened(path: Path, settings: dict[str, Any], keep: bool) -> Outcomes:
    """Return the outcomes to go on with, or new ones. Raises VapError where others would be written over."""
    if not path.is_file():
        return Outcomes(settings)
    if not keep:
        raise VapError(f"'{path}' holds outcomes already. Go on from them with --keep, or give another --page.")
    outcomes = Outcomes.load(path)
    outcomes.claim(settings)
    return outcomes


def named(run: Run, condition: Condition, task: str) -> list[Entry]:
    """Return the policies of the grid that a condition tries."""
    wrong = condition.kind == "wrong"
    return [entry for entry in run.entries if task in entry.tasks and bool(entry.wrong) == wrong
            and (wrong or not run.only or entry.name in run.only)]  # fmt: skip


def missing(run: Run, outcomes: Outcomes, condition: Condition, task: str) -> list[str]:
    """Return the names of policies that a condition has yet to try."""
    return [entry.name for entry in named(run, condition, task) if not outcomes.has(condition.name, task, entry.name)]


def play(
    run: Run, outcomes: Outcomes, condition: Condition, task: str, save: Callable[[], None], late: Callable[[], bool]
) -> bool:
    """Play what a condition has yet to try of a task, some policies at once. Returns whether nothing is left."""
    if late():
        return False
    section = "wrong" if condition.kind == "wrong" else ""
    made, told = policies_of(named(run, condition, task), task, run.card, lambda of, how: cloned(run, of, how))
    everyone = [one.name for one in run.entries if task in one.tasks and bool(one.wrong) == bool(section)]
    forgotten = outcomes.claim_policies(task, told, everyone, section=section)
    if forgotten:
        print(f"{task}: tried anew, since they are other policies now: {', '.join(forgotten)}")
    if not condition.oracle:
        name = condition.world_model or run.card.world_model
        outcomes.claim_weights(condition.name, name, weights_digest(name), familiar_digest(name, run.card.robot))
    path = starts_file(run.out, condition.split, task, condition.starts, env=run.env, first_seed=run.first_seed)
    todo = missing(run, outcomes, condition, task)
    for names in together(todo, made):
        if late():
            return False
        print(f"{task}, {condition.name}: {', '.join(names)}")
        tried = {name: made[name] for name in names}
        if condition.kind == "replay":
            tried = replays(run, task, tried, condition.starts, path)
        folder = played(run, condition, task, looks(made[names[0]]))
        add(outcomes, condition, task, *evaluated(run, condition, task, tried, folder, path))
        save()
    if condition.name == "screen":
        warn(outcomes, task)
    return not missing(run, outcomes, condition, task)


def looks(policy: Policy) -> bool:
    """Return whether a policy sees through the world model's networks, so that it is another one with other weights."""
    return isinstance(policy, ThingsPolicy)


def together(names: Sequence[str], policies: dict[str, Policy]) -> list[list[str]]:
    """Return the groups of policies whose outcomes are written together, those that look apart from the others."""
    kinds = [[name for name in names if looks(policies[name]) == kind] for kind in (False, True)]
    return [some[i : i + AT_ONCE] for some in kinds for i in range(0, len(some), AT_ONCE)]


def evaluated(
    run: Run, condition: Condition, task: str, policies: dict[str, Policy], folder: Path, starts: Path
) -> tuple[Report, float | None]:  # fmt: skip
    """Try policies. Returns what became of them, and the seconds of a trial where that can be told."""
    fresh = not any((folder / "episodes" / name).exists() for name in policies)  # or the time says nothing
    began = time.monotonic()
    found = evaluate_policies(
        policies, run.env.replace("-v", "-Oracle-v") if condition.oracle else run.env, out=folder,
        starts=condition.starts, starts_file=starts, task=task, steps=run.steps or None,
        world_model=condition.world_model or None, judge=run.judge, device=run.device, batch=run.batch,
        executor="processes" if run.workers > 1 else "serial", workers=run.workers, clips=0,
    )  # fmt: skip
    return found, (time.monotonic() - began) / (len(policies) * condition.starts) if fresh else None


def add(outcomes: Outcomes, condition: Condition, task: str, found: Report, seconds: float | None) -> None:
    """Keep what became of policies that were tried whole."""
    for name, rows in found.rows.items():
        whole = [row for row in rows if row is not None]
        if len(whole) == len(rows):
            outcomes.add(condition.name, task, name, whole, seconds)
        else:
            print(f"{name}: {len(rows) - len(whole)} trials were not played: {found.lost.get(name, 'unknown')}")


def cloned(run: Run, task: str, how: Cloned) -> Path:
    """Return the folder of a cloned agent, which is trained where it is not there yet."""
    folder = run.out / "clones" / f"{task}-{how.episodes}-{how.epochs}"
    if not (folder / "agent.json").is_file():
        clone_agent(run.data, task, folder, episodes=how.episodes, epochs=how.epochs, card=run.env)
    return folder


def played(run: Run, condition: Condition, task: str, looking: bool) -> Path:
    """Return the folder of what is played: another one where weights, or whatever else decides it, are others. Scripts
    in the simulator depend on no weights: what they did there serves for ever.

    Args:
        looking: the policies look, see `looks`.
    """
    own = "" if condition.oracle and not looking else weights_digest(run.card.world_model)
    name = condition.world_model or run.card.world_model
    model = "" if condition.oracle else weights_digest(name) + familiar_digest(name, run.card.robot)
    told = json_text.dumps([own, model, run.judge, run.steps, run.first_seed, run.env]).encode()
    return run.out / "played" / f"{condition.name}-{condition.starts}-{hashlib.sha256(told).hexdigest()[:8]}" / task


def replays(run: Run, task: str, policies: dict[str, Policy], starts: int, path: Path) -> dict[str, Policy]:
    """Return policies as replays of what they did in the simulator. Whose true episodes are not in `--out`, since their
    outcomes were made in another checkout, plays as many of them here as are replayed."""
    whole = Condition(name="oracle", part="main", starts=run.starts, oracle=True)
    first = replace(whole, starts=starts)
    long, short = (played(run, one, task, looks(next(iter(policies.values())))) / "episodes" for one in (whole, first))
    if lacking := {name: policy for name, policy in policies.items() if not (long / name).is_dir()}:
        evaluated(run, first, task, lacking, short.parent, path)
    return {name: ReplayPolicy.from_set((short if name in lacking else long) / name) for name in policies}


def warn(outcomes: Outcomes, task: str) -> None:
    """Say how many policies the screening finds between 20 and 80 %, and the rate of each."""
    good, names = graded(outcomes, task, "screen")
    rates = dict(zip(names, outcomes.outcomes("screen", task, names).mean(1), strict=True))
    print(f"{task}, screening: " + ", ".join(f"{name} {100 * value:.0f} %" for name, value in rates.items()))
    if len(good) < LEAST_GRADED:
        print(f"WARNING: {len(good)} policies succeed in 20 to 80 %, {LEAST_GRADED} are wanted. Change the grid "
              "before anything is imagined.")  # fmt: skip


def plan(run: Run, outcomes: Outcomes, left: Sequence[tuple[str, Condition]]) -> str:
    """Return what is to be played, and about how long it takes."""
    rows, total, estimated = [], 0.0, False
    for task, one in left:
        count = len(missing(run, outcomes, one, task))
        like = "oracle" if one.oracle else "imagined"
        measured = outcomes.seconds(one.name) or outcomes.seconds(like)
        estimated |= measured is None
        minutes = count * one.starts * (measured or SECONDS[one.oracle] / run.workers) / 60
        total += minutes
        rows.append((task, one.name, str(count), str(one.starts), f"{minutes:.0f}"))
    lines = report.table(("task", "condition", "policies", "starts", "minutes, about"), rows)
    guess = " Nothing was measured yet for some: these are guesses." if estimated else ""
    return f"{lines}\n\n{total / 60:.1f} hours in all.{guess}"


def write(outcomes: Outcomes, page: Path, as_json: bool) -> None:
    """Write the page and its picture, and print the figures."""
    studies = [study(outcomes, task) for task in TASKS if task in outcomes.tasks("oracle")]
    text = tables(outcomes, studies)
    if any(one.main.policies for one in studies):
        draw(outcomes, studies, page.parent / "img" / f"{page.stem}.png")
        text += f"\n\n{origin(outcomes)}"
    before = page.read_text(encoding="utf-8") if page.is_file() else EMPTY
    report.write(page, report.filled(before, "agreement", text))
    figures = {one.task: one.to_json() for one in studies}
    print(json_text.dumps(figures, ensure_ascii=False, indent=1) if as_json else text)


if __name__ == "__main__":
    tyro.cli(main)
