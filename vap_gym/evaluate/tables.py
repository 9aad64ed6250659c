"""The paper's tables at small scale: train matched models, or take trained ones, score them, write the page."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro

from vap_gym.cards import load_env
from vap_gym.errors import VapError
from vap_gym.evaluate.report import plain, stamp, table, write
from vap_gym.evaluate.tables_clips import HeldOutClips, held_out_clips
from vap_gym.evaluate.tables_kept import Kept
from vap_gym.evaluate.tables_page import REFERENCES, Results, page, verdicts
from vap_gym.evaluate.tables_plan import Plan, load_plan
from vap_gym.evaluate.tables_runs import (
    BEGUN,
    DONE,
    OTHER,
    Job,
    claimed,
    fact_of,
    jobs_of,
    manifest,
    put_aside,
    refuse_others,
    state_of,
)
from vap_gym.evaluate.tables_scores import (
    Scores,
    fingerprint,
    frozen,
    judged,
    read_scores,
    score_clips,
    through_codec,
    write_scores,
)
from vap_gym.evaluate.tables_strips import write_sheet
from vap_gym.judge import Judge
from vap_gym.world.codec import FrameCodec

PLAN = Path("benchmarks/tables.toml")
PAGE = Path("docs/tables.md")
WAIT_S = 10.0
ELSEWHERE = "scored elsewhere"


def main(
    *,
    only: tuple[str, ...] = (),
    budget: float = 0.0,
    seeds: int = 0,
    steps: int = 0,
    clips: int = 0,
    episodes: int = 0,
    dry_run: bool = False,
    retrain: bool = False,
    plan: Path = PLAN,
    runs: Path = Path("runs/tables"),
    out: Path | None = None,
    source: Annotated[Path | None, tyro.conf.arg(name="from")] = None,
    device: str = "cpu",
    threads: int = 0,
) -> dict[str, Any]:
    """Train what the tables need, one after the other, score it, and write the page; call it again to go on.

    Several of these commands may run at once, on the same folder: each takes trainings that no other one is at.
    Scores are kept beside the page (docs/tables.json): what was scored in another checkout is not trained again.

    Args:
        only: names of tables, e.g. --only 1 3; all where left out.
        budget: minutes: no training begins that would end after them; the page shows what there is.
        seeds: so many instead of the plan's.
        steps: of the longest training instead of the plan's; the others keep their share.
        clips: held-out episodes of a set and split instead of the plan's.
        episodes: of each data set instead of the plan's.
        dry_run: only say what there is to do, and how long it will take.
        retrain: trainings whose recipe or data have changed are put aside and done anew.
        plan: the plan of the tables.
        runs: folder of the trainings.
        out: the page; docs/tables.md, or for anything less than the plan tables.md in the folder of the trainings.
        source: scores to make the page from, such as docs/tables.json, without data, trainings or models.
        device: cpu or cuda.
        threads: CPU threads; 0 leaves torch's choice.
    """
    if budget < 0:
        raise VapError(f"budget must be minutes, 0 for no end, got {budget}.")
    if threads:
        torch.set_num_threads(threads)
    whole = load_plan(plan)
    settings = "" if plan.resolve() == PLAN.resolve() else f"plan {plan}"
    small = whole.smaller(seeds=seeds, steps=steps, clips=clips, episodes=episodes, settings=settings)
    small = small.only(only) if only else small
    path = out or (runs / PAGE.name if small.reduced or only else PAGE)
    if source:
        if not source.is_file():
            raise VapError(
                f"'{source}' must hold scores of the tables, got no such file. Leave --from out to make some."
            )
        results = Kept.load(source).results(small)
        return _written(small, results, path, [])
    store = (path if out or small.reduced else PAGE).with_suffix(".json")
    kept = Kept.load(store)
    jobs = jobs_of(small, runs)
    _check(small, jobs)
    elsewhere = kept_elsewhere(small, jobs, kept, runs, device=device)
    print(estimate(small, jobs, elsewhere))
    if dry_run:
        return {"page": None, "trainings": states(jobs, elsewhere)}
    if retrain:
        for job in jobs:
            if state_of(job) == OTHER:
                print(f"{job.name}: put aside as {put_aside(job)}")
    refuse_others(jobs)
    train_all(small, jobs, budget_s=60 * budget, device=device, elsewhere=elsewhere)
    results = measure(small, jobs, runs, kept, device=device, elsewhere=elsewhere)
    kept.origin = stamp()
    kept.save(store)
    print(f"Scores are kept in {store}; pictures are in {runs / 'sheets'}.")
    return _written(small, results, path, states(jobs, elsewhere))


def _written(plan: Plan, results: Results, path: Path, trainings: list[dict[str, Any]]) -> dict[str, Any]:
    text = page(plan, results)
    write(path, text)
    print(f"{text}\n\nWritten to {path}.")
    said = {name: [plain(one) for one in verdicts(plan, table, results)] for name, table in plan.tables.items()}
    return {"page": path, "trainings": trainings, "verdicts": said}


def cells_of(plan: Plan, job: Job) -> list[tuple[str, str]]:
    """On which sets and splits a training is scored."""
    found = (
        (name, split) for one in plan.tables.values() for split in one.splits
        for row in one.rows for name, run in row.runs.items() if run == job.run.name
    )  # fmt: skip
    return list(dict.fromkeys(found))


def kept_elsewhere(plan: Plan, jobs: Sequence[Job], kept: Kept, folder: Path, *, device: str = "cpu") -> frozenset[str]:
    """The names of trainings that need not be done here: scored elsewhere on the same clips, by the same judge, and no
    start of anything to be trained. Held-out clips are played where anything is kept of these trainings."""
    known = any(kept.fact(job) for job in jobs)
    judge = Judge.from_pretrained(plan.judge, device=device) if known else None

    @cache
    def mark(name: str, split: str) -> str:
        assert judge is not None
        return mark_of(plan, judge, held_out_clips(plan.sets[name], split, plan.clips, folder=folder / "heldout"))

    def is_scored(job: Job, cells: Sequence[tuple[str, str]]) -> bool:
        return bool(kept.fact(job)) and all(kept.of_job(job, f"{a}/{b}", mark(a, b)) is not None for a, b in cells)

    found: set[str] = set()
    needed: set[str] = set()
    for job in reversed(jobs):  # each after all that start from it
        if state_of(job) == DONE:
            continue
        cells = cells_of(plan, job)
        if state_of(job) != BEGUN and job.name not in needed and (is_scored(job, cells) if cells else True):
            found.add(job.name)
        elif job.base is not None:
            needed.add(job.base.name)
    return frozenset(found)


def mark_of(plan: Plan, judge: Judge, clips: HeldOutClips) -> str:
    """A hash of all that a model's scores follow from, beside its training."""
    return fingerprint(clips.key, fingerprint(judge.network, judge.codec), f"{plan.batch} {plan.evaluations}")


def states(jobs: Sequence[Job], elsewhere: Collection[str] = ()) -> list[dict[str, Any]]:
    """Return what there is to train and how it stands, as plain JSON."""
    return [
        {
            "training": job.run.name, "seed": job.seed, "steps": job.run.steps,
            "state": ELSEWHERE if job.name in elsewhere else state_of(job),
        }
        for job in jobs
    ]  # fmt: skip


def estimate(plan: Plan, jobs: Sequence[Job], elsewhere: Collection[str] = ()) -> str:
    """Say what there is to do and how long it will take, by trainings of the same folder or else by the plan."""
    rows, seconds, measured = [], 0.0, _seconds_per_step(jobs)
    for job in jobs:
        state, todo = state_of(job), _seconds_left(plan, job, measured)
        if job.name in elsewhere:
            state, todo = ELSEWHERE, 0.0
        seconds += todo
        rows.append([job.run.name, str(job.seed), f"{job.run.steps:,}", state, f"{todo / 60:.0f}"])
    cells = {(run, name, split) for one in plan.tables.values() for row in one.rows for name, run in row.runs.items()
             for split in one.splits}  # fmt: skip
    scoring = len(cells) * len(plan.seeds) * plan.clips * plan.seconds_per_clip
    how = "as trainings here took" if measured else "as the plan guesses"
    return (
        f"{table(['training', 'seed', 'steps', 'state', 'minutes left'], rows)}\n"
        f"Training: about {seconds / 60:.0f} minutes ({how}). Scoring: at most {scoring / 60:.0f} minutes."
    )


def train_all(
    plan: Plan, jobs: Sequence[Job], *, budget_s: float, device: str, elsewhere: Collection[str] = ()
) -> None:
    """Do the trainings that are not done, each after the one that it starts from; wait for those of other processes."""
    from vap_gym.evaluate.tables_train import train

    began = time.monotonic()
    told = False
    while True:
        todo = [job for job in jobs if state_of(job) != DONE and job.name not in elsewhere]
        ready = [job for job in todo if job.base is None or state_of(job.base) == DONE]
        if budget_s:
            per_step = _seconds_per_step(jobs)
            spent = time.monotonic() - began
            ready = [job for job in ready if spent + _seconds_left(plan, job, per_step) <= budget_s]
        if not ready:
            if todo:
                print(f"{len(todo)} training(s) are left for another time: {', '.join(job.name for job in todo)}")
            return
        for job in ready:
            with claimed(job) as is_mine:
                if is_mine and state_of(job) != DONE:
                    print(f"{job.name}: {len(jobs) - len(todo)} of {len(jobs)} are done", flush=True)
                    train(plan, job, device=device)
                    break
        else:
            if not told:
                print("waiting for trainings of other processes", flush=True)
                told = True
            time.sleep(WAIT_S)


def measure(
    plan: Plan, jobs: Sequence[Job], folder: Path, kept: Kept, *, device: str, elsewhere: Collection[str] = ()
) -> Results:
    """Score all that is trained on the held-out clips; what was scored before, here or elsewhere, is read."""
    judge = Judge.from_pretrained(plan.judge, device=device)
    scorer = _Scorer(plan=plan, folder=folder, judge=judge, kept=kept, device=device)
    wanted = dict.fromkeys((name, split) for one in plan.tables.values() for name in one.sets for split in one.splits)
    measured: dict[tuple[str, str, str], Sequence[Scores]] = {}
    moving: dict[str, bool] = {}
    counts: dict[tuple[str, str], int] = {}
    for name, split in wanted:
        clips = held_out_clips(plan.sets[name], split, plan.clips, folder=folder / "heldout", workers=0)
        counts[name, split] = len(clips)
        kept.sets[f"{name}/{split}"] = {"episodes": len(clips), "moving": clips.has_moving_camera}
        moving[name] = moving.get(name, False) or clips.has_moving_camera
        for key in REFERENCES:
            measured[key, name, split] = [scorer.reference(key, name, split, clips, jobs)]
        sheet = {"true": clips.frames[0]}
        rows = {
            row.name: row
            for one in plan.tables.values()
            if name in one.sets and split in one.splits
            for row in one.rows
        }
        for row in rows.values():
            seeds = [job for job in jobs if job.run.name == row.runs.get(name)]
            told = (scorer.of_job(job, name, split, clips) for job in seeds)
            if of_row := [scores for scores in takewhile(lambda scores: scores is not None, told) if scores]:
                measured[row.name, name, split] = of_row
                if (shown := scorer.shown(seeds[0], name, split)) is not None:
                    sheet[row.title] = shown
        write_sheet(folder / "sheets" / f"{name}-{split}.png", sheet)
    for job in jobs:
        if state_of(job) == DONE:
            kept.note(job)
    facts = [
        fact_of(job) if state_of(job) == DONE else kept.fact(job) if job.name in elsewhere else None for job in jobs
    ]
    skipped = [job.name for job, fact in zip(jobs, facts, strict=True) if fact is None and cells_of(plan, job)]
    told_facts = [fact for fact in facts if fact is not None]
    return Results(measured=measured, moving=moving, episodes=counts, facts=told_facts, skipped=skipped)


@dataclass(frozen=True, kw_only=True)
class _Scorer:
    """Scores one thing on one set and split, or reads what is kept of that."""

    plan: Plan
    folder: Path
    judge: Judge
    kept: Kept
    device: str

    def reference(self, key: str, name: str, split: str, clips: HeldOutClips, jobs: Sequence[Job]) -> Scores:
        """Frozen frame, codec, or the judge on true frames."""
        from vap_gym.evaluate.tables_train import recipe_of

        codec = FrameCodec.from_pretrained(recipe_of(self.plan, jobs[0]).codec).eval() if key == "codec" else ""
        mark = fingerprint(key, clips.key, self._judge, codec)
        path, cell = self.folder / "references" / f"{key}-{name}-{split}.npz", f"{name}/{split}"
        scores = read_scores(path, mark)
        if scores is None and (scores := self.kept.of_reference(key, cell, mark)) is not None:
            return scores
        if scores is None:
            if key == "true":
                scores = judged(clips.frames, clips, self.judge)
            else:
                made = frozen(clips) if isinstance(codec, str) else through_codec(clips, codec)
                scores = score_clips(made, clips, self.judge)
            write_scores(path, mark, scores)
        self.kept.add_reference(key, cell, mark, scores)
        return scores

    def of_job(self, job: Job, name: str, split: str, clips: HeldOutClips) -> Scores | None:
        """A trained model's scores; None where it is neither trained here nor scored elsewhere on the same clips."""
        from vap_gym.evaluate.tables_generate import generate, told_of
        from vap_gym.evaluate.tables_train import conditions_of, model_of, recipe_of

        sampled = f"{self.plan.batch} {self.plan.evaluations}"
        cell, shown_to = f"{name}/{split}", mark_of(self.plan, self.judge, clips)
        if state_of(job) != DONE:
            return self.kept.of_job(job, cell, shown_to)
        mark = fingerprint(job.key, str((manifest(job) or {}).get("finished")), clips.key, self._judge, sampled)
        path = self._path(job, name, split)
        scores = read_scores(path, mark)
        if scores is None:
            print(f"scoring {job.name} on {name}, {split}", flush=True)
            told = told_of(clips, load_env(self.plan.sets[name].env).robot, **conditions_of(self.plan, job))
            model = model_of(job, device=self.device)
            made = generate(
                model, clips, told, batch=self.plan.batch, evaluations=self.plan.evaluations,
                frames=recipe_of(self.plan, job).frames,
            )  # fmt: skip
            np.save(path.with_suffix(".npy"), made[0])
            scores = score_clips(made, clips, self.judge)
            write_scores(path, mark, scores)
        self.kept.add(job, cell, shown_to, scores)
        return scores

    def shown(self, job: Job, name: str, split: str) -> np.ndarray | None:
        """The first clip as the model told it when it was scored; None where that was elsewhere."""
        path = self._path(job, name, split).with_suffix(".npy")
        return np.asarray(np.load(path)) if path.is_file() else None

    def _path(self, job: Job, name: str, split: str) -> Path:
        return job.folder / f"scores-{name}-{split}.npz"

    @property
    def _judge(self) -> str:
        return fingerprint(self.judge.network, self.judge.codec)


def _check(plan: Plan, jobs: Sequence[Job]) -> None:
    """Find what is wrong with any recipe before hours are spent on others."""
    from vap_gym.evaluate.tables_train import recipe_of

    frames = {recipe_of(plan, job).frames for job in jobs}
    if len(frames) > 1:
        raise VapError(f"All trainings must have clips of one length to be compared, got {sorted(frames)} frames.")


def _seconds_per_step(jobs: Sequence[Job]) -> dict[str, float]:
    """By training what a step took, and under "" what it took in the mean; nothing where none is done or begun."""
    from vap_gym.evaluate.tables_train import logged_steps, seconds_of

    took: dict[str, float] = {}
    for job in jobs:
        if state_of(job) in (DONE, BEGUN) and (steps := logged_steps(job)):
            took.setdefault(job.run.name, seconds_of(job) / steps)
    return {**took, "": sum(took.values()) / len(took)} if took else {}


def _seconds_left(plan: Plan, job: Job, per_step: Mapping[str, float]) -> float:
    from vap_gym.evaluate.tables_train import steps_of

    state = state_of(job)
    if state == DONE:
        return 0.0
    left = job.run.steps - (steps_of(job) if state == BEGUN else 0)
    return max(left, 0) * per_step.get(job.run.name, per_step.get("", plan.seconds_per_step))
