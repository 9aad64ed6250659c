"""Held-out clips as a trained model tells them: the conditions that its recipe names, and clips of full length."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, UInt8

from vap_gym.cards import load_robot
from vap_gym.data.conventions import camera_of
from vap_gym.evaluate.tables_clips import VIEW, HeldOutClips
from vap_gym.geometry import Camera
from vap_gym.prompts.kinds import Prompter
from vap_gym.prompts.raster import draw
from vap_gym.prompts.skeleton import Skeleton
from vap_gym.train.video_data import DRAWN, raw_states
from vap_gym.video.model import VideoModel


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a model is told of N clips of T frames; None where its condition is another."""

    prompts: UInt8[np.ndarray, "N T H W 3"] | None
    states: Float[np.ndarray, "N T S"] | None
    tasks: tuple[str, ...]


def told_of(clips: HeldOutClips, robot: str, condition: str, *, height_cue: bool = True) -> Told:
    """Return the conditions of clips, of commanded states: what is known before anything happens.

    Args:
        clips: the held-out episodes.
        robot: name of its card.
        condition: of the recipe: "skeleton", "mesh", "depth", "raw_state", "text" or "none".
        height_cue: skeletons have their drop line.
    """
    tasks = tuple(episode.task for episode in clips.episodes)
    columns = [episode.columns for episode in clips.episodes]
    q = np.stack([c["nominal.joint_position"] for c in columns]).astype(np.float32)
    closed = np.stack([c["nominal.gripper_position"] for c in columns]).astype(np.float32)
    if condition == "raw_state":
        pose = [c["nominal.cartesian_position"].astype(np.float32) for c in columns]
        states = np.stack([raw_states(p, g) for p, g in zip(pose, closed, strict=True)])
        return Told(prompts=None, states=states, tasks=tasks)
    if condition not in DRAWN:
        return Told(prompts=None, states=None, tasks=tasks)
    card = load_robot(robot)
    if condition == "skeleton" and not height_cue:
        card = replace(card, skeleton=replace(card.skeleton, drop_from=()))
    _, height, width, _ = clips.episodes[0].frames[VIEW].shape
    prompter, skeleton = Prompter(card, condition, frame_size_px=(width, height)), Skeleton(card)
    prompts = []
    for i, table in enumerate(columns):
        camera = camera_of(table, VIEW, (width, height))
        camera = Camera(K=camera.K.float(), T_world_camera=camera.T_world_camera.float(), frame_size_px=(width, height))
        at = torch.from_numpy(q[i]), torch.from_numpy(closed[i, :, 0])
        if condition == "skeleton":
            prompts.append(draw(skeleton.at_joints(*at), camera, skeleton))
        else:
            prompts.append(prompter.draw(*at, camera).numpy())
    return Told(prompts=np.stack(prompts), states=None, tasks=tasks)


def generate(
    model: VideoModel, clips: HeldOutClips, told: Told, *, batch: int, evaluations: int, frames: int
) -> UInt8[np.ndarray, "N T H W 3"]:
    """Generate every clip from its first frame. Clips longer than the model's go on from the last frame that it made.

    Args:
        model: a trained model.
        clips, told: what is generated, and what the model is told of it.
        batch: clips at a time.
        evaluations: of the network, for a clip of the model's length; 0: the model's own number.
        frames: of the clips that the model was trained on.
    """
    first = np.stack([episode.frames[VIEW][0] for episode in clips.episodes])
    length = len(clips.episodes[0])
    made = []
    for begin in range(0, len(clips), batch):
        part = slice(begin, begin + batch)
        rolled = [first[part][:, None]]
        for start in range(0, length - 1, frames - 1):
            stop = min(start + frames, length)
            piece = model.generate(
                torch.from_numpy(rolled[-1][:, -1]),
                None if told.prompts is None else torch.from_numpy(told.prompts[part, start:stop]),
                frames=stop - start,
                text=None if model.settings.text == "none" else list(told.tasks[part]),
                states=None if told.states is None else torch.from_numpy(told.states[part, start:stop]),
                interval=1.0 if model.settings.intervals else None,
                steps=evaluations or None,
                seed=begin + 1000 * start,
            )
            rolled.append(piece.cpu().numpy()[:, 1:])
        made.append(np.concatenate(rolled, axis=1))
    return np.concatenate(made)
