"""Goals: how good foreseen futures are: the task's own measure, a goal picture, or any function of what is foreseen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from vap_gym.errors import UnknownNameError, VapError
from vap_gym.interfaces import World
from vap_gym.plan.foresight import Foreseen
from vap_gym.sim.spec import SceneSpec

TASKS = ("reach", "push", "lift")
LOW_M = 0.012  # over the table: deeper no operator goes
BEHIND_M = 0.035  # from an object's rim to where a push of it begins
PUSH_HEIGHT_M = 0.03  # over the table, of the tool in a push
LIFTED_M = 0.09  # over where it stood: a lift that leaves no doubt
OPENNESS_M = 0.05  # what a wholly open gripper counts as where it should be closed


class TaskGoal:
    """How far the task is from solved, in metres below zero: mean over the moments, plus that at the last one.

    reach: from tool to object. push: from object to goal, plus `approach` times from the tool to behind the object: a
    push shows no progress until something is touched. lift: what is missing in height, plus `approach` times from the
    tool to the object, and from open to closed where it is there. Going lower than the table allows costs ten times
    the depth. Differentiable.

    Args:
        scenes: one per slot: task, target, goal.
        approach: weight of coming near.

    Raises:
        UnknownNameError: a task that has no such measure: give a function of your own.
    """

    def __init__(self, scenes: Sequence[SceneSpec], *, approach: float = 0.3) -> None:
        for scene in scenes:
            if scene.task not in TASKS:
                raise UnknownNameError(
                    f"No goal for the task '{scene.task}'. Known: {', '.join(TASKS)}. Give a function of what is "
                    "foreseen (`foresight.Foreseen`) instead."
                )
        self.scenes, self.approach = tuple(scenes), approach

    def __call__(self, foreseen: Foreseen) -> Float[Tensor, " M"]:
        """Return the value of each future, −m."""
        each = foreseen.count // len(self.scenes)
        values = [self._of(scene, foreseen, slice(i * each, (i + 1) * each)) for i, scene in enumerate(self.scenes)]
        return torch.cat(values)

    def _of(self, scene: SceneSpec, foreseen: Foreseen, part: slice) -> Tensor:
        tool, closed = foreseen.tool_m[part], foreseen.closedness[part]
        thing = foreseen.objects_m[part, :, scene.target]
        if scene.task == "reach":
            left = (tool - thing).norm(dim=-1)
        elif scene.task == "push":
            left = self._push(scene, tool, thing)
        else:
            left = self._lift(scene, tool, thing, closed)
        deep = (scene.table_z_m + LOW_M - tool[..., 2]).clamp_min(0.0)
        left = left + 10.0 * deep
        value: Tensor = -(left.mean(1) + left[:, -1])
        return value

    def _push(self, scene: SceneSpec, tool: Tensor, thing: Tensor) -> Tensor:
        goal = thing.new_tensor(scene.goal_xy_m)
        way = goal - thing[..., :2]
        left = way.norm(dim=-1)
        behind = push_from(scene, thing)
        total: Tensor = left + self.approach * (tool - behind).norm(dim=-1)
        return total

    def _lift(self, scene: SceneSpec, tool: Tensor, thing: Tensor, closed: Tensor) -> Tensor:
        stands = scene.table_z_m + scene.target_object.half_extents_m[2]
        left = (stands + LIFTED_M - thing[..., 2]).clamp_min(0.0)
        apart = (tool - thing).norm(dim=-1)
        there = torch.exp(-((apart / 0.03) ** 2))
        total: Tensor = left + self.approach * (apart + OPENNESS_M * (1.0 - there * closed))
        return total


def push_from(scene: SceneSpec, object_m: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3"]:
    """Return where the tool is to stand when it pushes the scene's object to its goal: behind it."""
    way = object_m.new_tensor(scene.goal_xy_m) - object_m[..., :2]
    ahead = way / (way.norm(dim=-1, keepdim=True) + 1e-3)
    radius = 0.8 * float(np.hypot(*scene.target_object.half_extents_m[:2]))
    back = object_m[..., :2] - (radius + BEHIND_M) * ahead
    return torch.cat([back, torch.full_like(back[..., :1], scene.table_z_m + PUSH_HEIGHT_M)], -1)


def read_goal(path: str | Path, frame_size_px: tuple[int, int] | None = None) -> UInt8[np.ndarray, "1 H W 3"]:
    """Read a goal picture for `PictureGoal`, of one slot.

    Args:
        frame_size_px: (width, height) of the world model's frames, which it must have; None: any.

    Raises:
        VapError: no picture there, or one of another size.
    """
    try:
        with Image.open(path) as picture:
            pixels = np.array(picture.convert("RGB"))
    except OSError as error:
        raise VapError(f"'{path}' must be a goal picture, got: {error}. Give a PNG of how it shall look.") from error
    given = (pixels.shape[1], pixels.shape[0])
    if frame_size_px is not None and given != tuple(frame_size_px):
        raise VapError(
            f"A goal picture must be {frame_size_px[0]} × {frame_size_px[1]} px, as the world model's frames are, got "
            f"'{path}' of {given[0]} × {given[1]}. Take it with the same camera, and scale it."
        )
    return pixels[None]


class PictureGoal:
    """How near the last picture comes to a goal picture, in latents: minus the mean squared difference.

    Args:
        world: the world model that imagines: it encodes the picture.
        pictures: the goal of each slot, of the world model's size.
        approach: share of the mean over all moments, beside the last one.
    """

    def __init__(self, world: World, pictures: UInt8[np.ndarray, "B H W 3"], *, approach: float = 0.3) -> None:
        encode = getattr(world, "encode", None)
        if encode is None:
            raise VapError(
                f"A PictureGoal needs a world model that encodes pictures, got {type(world).__name__}. Give a function "
                "of what is foreseen instead."
            )
        self._latents: Tensor = encode(torch.from_numpy(np.ascontiguousarray(pictures))).float().cpu()
        self._approach = approach

    def __call__(self, foreseen: Foreseen) -> Float[Tensor, " M"]:
        """Return the value of each future. Raises VapError where none was imagined."""
        if foreseen.latents is None:
            raise VapError("A PictureGoal needs imagined pictures, got places alone. Use LatentForesight.")
        goal = self._latents.repeat_interleave(foreseen.count // len(self._latents), 0)
        apart = (foreseen.latents - goal[:, None]).square().mean((2, 3, 4))
        return -(apart[:, -1] + self._approach * apart.mean(1))
