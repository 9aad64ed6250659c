"""From a plan's training to a model: the video recipe that it stands for, the training itself, what it left."""

from __future__ import annotations

import json
from typing import Any

from vap_gym.cards import load_env
from vap_gym.errors import CardError, unknown_name
from vap_gym.evaluate.tables_plan import Plan
from vap_gym.evaluate.tables_runs import Job, begin, note
from vap_gym.train.video import train_video
from vap_gym.train.video_parts import model_folder
from vap_gym.train.video_recipe import VideoRecipe
from vap_gym.video.model import VideoModel

BY_THE_PLAN = ("data", "seed", "base", "init")  # keys of a video recipe that follow from the rest of the plan


def recipe_of(plan: Plan, job: Job) -> VideoRecipe:
    """Return the video recipe of a training. Raises CardError or UnknownNameError where the plan's keys are no good."""
    own = dict(job.run.recipe)
    for key in own:
        if key in BY_THE_PLAN:
            raise CardError(
                f"'{key}' of '{job.run.name}' follows from the rest of the plan, got {own[key]!r}. Leave it out."
            )
        if key not in VideoRecipe.__dataclass_fields__:
            raise unknown_name(f"key of a video recipe ('{job.run.name}')", key, VideoRecipe.__dataclass_fields__)
    sets = [plan.sets[name] for name in job.run.sets]
    own["data"] = [
        {"path": one.data, "robot": load_env(one.env).robot, "episodes": plan.episodes, "held_out": plan.held_out}
        for one in sets
    ]
    if job.base is not None:
        own[job.run.starts] = str(job.base.folder)
    try:
        return VideoRecipe(**own, seed=job.seed)
    except TypeError as error:
        raise CardError(f"The recipe of '{job.run.name}': {error}. Put what is missing into [recipe].") from error


def train(plan: Plan, job: Job, *, device: str) -> None:
    """Train, or go on, until the recipe's steps are done; the manifest is kept up to date."""
    begin(job)
    recipe, done = recipe_of(plan, job), False
    try:
        train_video(recipe, job.folder, resume=True, device=device)
        done = True
    finally:  # hours that were spent count, however it ended
        steps = recipe.steps if done else steps_of(job)
        samples = steps * recipe.batch_size * recipe.accumulate
        note(job, hours=seconds_of(job) / 3600, samples=samples, done=done)


def steps_of(job: Job) -> int:
    """How many steps of a training need not be done again: those before its last saved state."""
    every = int(job.run.recipe.get("save_every", VideoRecipe.__dataclass_fields__["save_every"].default))
    rows = _log(job)
    return int(rows[-1]["step"]) // every * every if rows else 0


def logged_steps(job: Job) -> int:
    """How many steps of a training were done, those after its last saved state too."""
    rows = _log(job)
    return int(rows[-1]["step"]) if rows else 0


def seconds_of(job: Job) -> float:
    """How long the logged steps took by the clock, over all the times that the training was gone on with."""
    total = before = 0.0
    for row in _log(job):
        seconds = float(row["seconds"])  # since a process began: less than before where another one went on
        total += seconds - before if seconds >= before else seconds
        before = seconds
    return total


def _log(job: Job) -> list[dict[str, Any]]:
    path = job.folder / "log.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def model_of(job: Job, *, device: str) -> VideoModel:
    """Load what a training left."""
    return VideoModel.from_pretrained(model_folder(str(job.folder)), device=device)


def conditions_of(plan: Plan, job: Job) -> dict[str, Any]:
    """What a model has to be told: arguments of `tables_generate.told_of`."""
    recipe = recipe_of(plan, job)
    return {"condition": recipe.settings.condition, "height_cue": recipe.height_cue}
