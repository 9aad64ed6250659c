"""Make oracle data: episodes by seed, written by any number of processes, resumable, the same whoever writes them."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from typing import Any

import numpy as np

from vap_gym.cards import load_env, load_robot
from vap_gym.data import EpisodeWriter, finalise
from vap_gym.errors import VapError, unknown_name
from vap_gym.sim.experts import BEHAVIOURS
from vap_gym.sim.layouts import draw_scene

MIX = {"expert": 0.40, "failing": 0.20, "play": 0.27, "random": 0.08, "noop": 0.05}
"""Share of each behaviour; about two fifths of experts end in success, all else mostly does not."""
HELDOUT_FIRST_SEED = 1_000_000
"""Seeds from here on belong to benchmarks: data for training stays below."""


def main(
    out: Path,
    *,
    episodes: int = 2400,
    frames: int = 60,
    first_seed: int = 0,
    env: str = "VAP-DROID-v0",
    split: str = "train",
    robot: str = "",
    pictures: bool = True,
    stills: bool = False,
    behaviour: str = "",
    workers: int = 0,
) -> dict[str, Any]:
    """Write oracle episodes for training to a folder; call it again to go on after an interruption.

    Args:
        out: folder of the data set.
        episodes: how many the set shall have.
        frames: frames per episode, at the env's rate.
        first_seed: of the first episode; episode i has seed first_seed + i. Must stay below 1,000,000.
        env: whose robot, scenes and rate: an id or the path of a card.
        split: "train", or "novel": what training never shows.
        robot: card of another robot than the env's.
        pictures: without them (--no-pictures) an episode takes two thirds of the time and hardly any room: enough to
            learn how things move.
        stills: every frame shows another posture of the robot, and nothing moves (`--stills --frames 4`): for what is
            learned from single pictures, from several times as many scenes in the same time.
        behaviour: of all episodes, such as clumsy; where left out, a mix of expert, failing, play, random and noop.
        workers: processes; 0 for one per core.
    """
    if not 0 <= first_seed <= first_seed + episodes <= HELDOUT_FIRST_SEED:
        raise VapError(
            f"Seeds {first_seed} to {first_seed + episodes} must lie within 0 to {HELDOUT_FIRST_SEED}. "
            "Seeds from there on are kept for benchmarks."
        )
    if frames < 2:
        raise VapError(f"frames must be 2 or more, got {frames}.")
    if behaviour and behaviour not in BEHAVIOURS:
        raise unknown_name("behaviour", behaviour, BEHAVIOURS)
    if stills and (behaviour or not pictures):
        told = f"the behaviour {behaviour}" if behaviour else "no pictures"
        raise VapError(f"stills are pictures in which nothing moves, got {told}. Leave one of the two out.")
    from tqdm import tqdm

    card = load_env(env)
    robot, rate = robot or card.robot, round(card.fps)
    draw_scene(0, layout=card.layout, split=split)  # refuses an unknown split before anything is written
    writer = EpisodeWriter(out, fps=rate, robot_type=robot)
    missing = writer.missing(episodes)
    count = workers or os.cpu_count() or 1
    jobs = [
        (str(out), robot, rate, card.layout, split, i, first_seed + i, frames, pictures, stills, behaviour)
        for i in missing
    ]
    with multiprocessing.get_context("spawn").Pool(count) as pool:
        for _ in tqdm(pool.imap_unordered(_one, jobs, chunksize=4), total=len(jobs), desc=f"{out}", unit="episode"):
            pass
    finalise(out)
    return {"out": out, "episodes": episodes, "recorded": len(missing)}


_KEPT: dict[str, tuple[object, object, EpisodeWriter]] = {}  # one scene per worker process: building PyBullet costs


def _one(job: tuple[str, str, int, str, str, int, int, int, bool, bool, str]) -> int:
    from vap_gym.sim.rollout import NominalRobot, record
    from vap_gym.sim.scene import Scene
    from vap_gym.sim.stills import stills as taken

    out, robot, rate, layout, split, index, seed, frames, pictures, stills, behaviour = job
    if out not in _KEPT:
        import torch

        torch.set_num_threads(1)
        card = load_robot(robot)
        _KEPT[out] = (Scene(card), NominalRobot(card), EpisodeWriter(out, fps=rate, robot_type=robot))
    scene, nominal, writer = _KEPT[out]
    assert isinstance(scene, Scene)
    assert isinstance(nominal, NominalRobot)
    spec = draw_scene(seed, layout=layout, split=split)
    if stills:
        writer.write(index, taken(scene, nominal, spec, frames=frames))
    else:
        writer.write(
            index, record(scene, nominal, spec, behaviour or behaviour_of(seed), frames=frames, render=pictures)
        )
    return index


def behaviour_of(seed: int) -> str:
    """The behaviour that training data shows under a seed, drawn from MIX."""
    return str(np.random.default_rng([seed, 411]).choice(list(MIX), p=list(MIX.values())))
