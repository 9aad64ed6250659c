"""Oracle episodes as the world model shows them: its pictures, with the simulator's truth of robot and things.

A judge reads imagined pictures, and these differ from true ones: what is held is drawn as a cut-out, hidden parts are
guessed. What such a picture shows is known where the world model is told how things move (`fidelity_truth`): so the
episodes made here teach a judge to read them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from vap_gym.cards import load_env
from vap_gym.data import Episode, EpisodeSet, EpisodeWriter, finalise
from vap_gym.errors import VapError
from vap_gym.evaluate.clips import Clips, clip_of
from vap_gym.evaluate.fidelity_rollout import Subject, imagine, subject
from vap_gym.evaluate.heldout import STEPS
from vap_gym.sim.rollout import VIEW
from vap_gym.sim.scene import LABELS
from vap_gym.sim.spec import COLOURS

FIRST = 7  # a prime: clips begin at any frame of their episodes
SHOWN_PX = 20  # a thing of fewer pixels in the first frame is taken to be hidden there
BACKGROUND, DRAWER, FIRST_OBJECT = (LABELS.index(name) for name in ("background", "drawer", COLOURS[0]))


def main(
    source: Path,
    out: Path,
    *,
    env: str = "VAP-DROID-v0",
    world_model: str = "tiny",
    episodes: int = 0,
    steps: int = STEPS,
    every: int = 2,
    batch: int = 32,
) -> dict[str, Any]:
    """Write a clip of each oracle episode as the world model imagines it, told by the simulator how things move.

    The labels and columns are the episode's own, and so is its index, by which trainings keep some for scores. Call it
    again to go on after an interruption.

    Args:
        source: a set of `vap-gym data generate`, with pictures.
        out: folder of the new set.
        env: whose robot, rate and view: an id or the path of a card.
        world_model: name or folder.
        episodes: the first so many; 0: all.
        steps: of a clip, from a first frame that differs between episodes.
        every: of the imagined frames each so many-th is kept.
        batch: imaginations at a time.
    """
    from tqdm import tqdm

    given, card = EpisodeSet(source), load_env(env)
    if given.meta["robot_type"] != card.robot:
        raise VapError(
            f"{source} must hold episodes of the env's robot ({card.robot}), got {given.meta['robot_type']}. "
            "Name the env that they were made for: --env."
        )
    if steps < 1 or every < 1 or batch < 1:
        raise VapError(f"steps, every and batch must be 1 or more, got {steps}, {every} and {batch}.")
    writer = EpisodeWriter(out, fps=max(1, given.fps // every), robot_type=card.robot)
    count = min(episodes or len(given), len(given))
    there = writer.written()
    todo = [i for i in range(count) if given.index(i) not in there]
    short = [i for i in todo if given.length(i) <= steps]
    if short:
        raise VapError(
            f"Episodes of {source} must have more than {steps} frames, got {given.length(short[0])}. Lower --steps."
        )
    measured = subject(env, world_model, truth="moves")
    with tqdm(total=len(todo), desc=f"{out}", unit="episode", mininterval=5) as bar:
        for first in range(0, len(todo), batch):
            for index, episode in imagined(measured, given, todo[first : first + batch], steps=steps, every=every):
                writer.write(index, episode)
                bar.update()
    finalise(out)
    return {"out": out, "episodes": count, "imagined": len(todo)}


def imagined(
    measured: Subject, source: EpisodeSet, which: list[int], *, steps: int, every: int
) -> Iterator[tuple[int, Episode]]:
    """Imagine a clip of each of some episodes; yield their indices, and the clips' frames with what is true of them."""
    parts = []
    for i in which:
        sways = bool(source.info(i)["scene"]["camera"].get("sway"))  # from an episode's first frame on
        begin = 0 if sways else FIRST * source.index(i) % (source.length(i) - steps)
        parts.append(source.read(i, start=begin, stop=begin + steps + 1))
    rows = [clip_of(part) for part in parts]
    clips = Clips(**{name: np.stack([row[name] for row in rows]) for name in rows[0]})
    shown = imagine(measured, clips, batch=len(clips))
    keep = np.arange(every, steps + 1, every)
    for i, part, frames in zip(which, parts, shown, strict=True):
        labels, columns = shown_truth(part)
        yield (
            source.index(i),
            Episode(
                frames={VIEW: frames[keep - 1]},
                columns={name: values[keep] for name, values in columns.items()},
                task=part.task,
                labels={VIEW: labels[keep]},
                info=part.info,
            ),
        )


def shown_truth(clip: Episode) -> tuple[UInt8[np.ndarray, "T H W"], dict[str, np.ndarray]]:
    """Return a clip's labels and columns without what its first frame does not show, which nobody can imagine.

    Such things are background, and nowhere (NaN). A drawer is where it was at first: it does not move in imagination.
    """
    labels, columns = clip.labels[VIEW].copy(), dict(clip.columns)
    hidden = [k for k in range(len(COLOURS)) if (labels[0] == FIRST_OBJECT + k).sum() < SHOWN_PX]
    labels[np.isin(labels, [FIRST_OBJECT + k for k in hidden])] = BACKGROUND
    labels[(labels == DRAWER) & (labels[:1] != DRAWER)] = BACKGROUND
    for name in ("objects_m", "objects_xyzw"):
        columns[name] = columns[name].copy()
        columns[name][:, hidden] = np.nan
    return labels, columns
