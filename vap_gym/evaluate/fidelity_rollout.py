"""Held-out clips as an env imagines them, and as its judge reads pictures: by the very code that `gym.make` calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, UInt8

from vap_gym.assets import weights_dir
from vap_gym.errors import VapError
from vap_gym.evaluate.clips import Clips
from vap_gym.evaluate.fidelity_truth import Truth, with_true_moves, with_true_things
from vap_gym.geometry import Camera
from vap_gym.imagine import Imagination
from vap_gym.judge import Judge
from vap_gym.loading import build_stage, load_judge
from vap_gym.stage import Stage
from vap_gym.world.model import WorldModel

if TYPE_CHECKING:
    from tensordict import TensorDict

ACTIONS = "cartesian_velocity"  # what scripts act in, whichever convention an env speaks
CHUNK = 20  # steps at a time, so that prompts and frames of long roll-outs need little memory


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is measured: an env with its world model and judge; settings only.

    `truth` is what the simulator tells the world model instead of letting it find out: "" nothing, "things" which
    things there are at first, where and how large, "moves" also how they move.
    """

    stage: Stage
    world: WorldModel
    judge: Judge
    truth: Truth = ""

    @property
    def table_m(self) -> float:
        """How high the card's table is over the robot's base."""
        return float(self.stage.rig.robot.skeleton.drop_to_z_m)


def subject(env: str, world_model: str | Path | WorldModel, *, judge: str | Path = "", truth: Truth = "") -> Subject:
    """Build an env's stage as `gym.make(env, world_model=…)` does, and a judge beside it.

    Args:
        env: id or path of an env card.
        world_model: name or folder, or one that is loaded already.
        judge: name or folder; none: the world model's own where it has one, else "tiny".
        truth: see `Subject`.
    """
    named = str(judge)
    if not named:
        own = "tiny" if isinstance(world_model, WorldModel) else str(world_model)
        folder = Path(own) if Path(own).is_dir() else weights_dir() / own
        named = own if (folder / "judge").is_dir() or not folder.is_dir() else "tiny"
    stage = build_stage(env, world_model=world_model, judge=named, action_mode=ACTIONS)
    world, reads = stage.imagination.world, load_judge(named, "cpu")
    if not isinstance(world, WorldModel) or not isinstance(reads, Judge):
        raise VapError(f"Only world models and judges of vap-gym can be measured, got {type(world).__name__}.")
    return Subject(stage=stage, world=world, judge=reads, truth=truth)


def imagine(
    subject: Subject,
    clips: Clips,
    *,
    actions: Float[np.ndarray, "N T 7"] | None = None,
    batch: int = 32,
    evaluations: int | None = None,
    watch: Callable[[slice, int, TensorDict], None] | None = None,
) -> UInt8[np.ndarray, "N S H W 3"]:
    """Imagine the frames after each clip's first, under the clips' actions or other ones.

    Args:
        watch: is called with the rows, the step and the state before the first step and after each chunk of steps.
    """
    actions = clips.actions if actions is None else actions
    told = [begun(subject, clips.pick(slice(i, i + batch)), first=i) for i in range(0, len(clips), batch)]
    made = np.empty((len(clips), clips.steps, *clips.frames.shape[2:]), np.uint8)
    for number, (imagination, state) in enumerate(told):
        rows = slice(number * batch, number * batch + len(state))
        for t in range(0, clips.steps, CHUNK):
            part = torch.from_numpy(actions[rows, t : min(t + CHUNK, clips.steps)]).float()
            state, frames, _ = imagination.step(state, part, evaluations=evaluations)
            assert frames is not None
            made[rows, t : t + part.shape[1]] = frames.cpu().numpy()
            if watch is not None:
                watch(rows, t + part.shape[1], state)
    return made


def started(imagination: Imagination, clips: Clips, *, first: int = 0) -> TensorDict:
    """Return the state after the clips' first frames; noise seeds are counted from `first`."""
    return imagination.start(
        torch.from_numpy(clips.frames[:, 0]),
        q=torch.from_numpy(clips.joints_rad[:, 0]).float(),
        gripper=torch.from_numpy(clips.closedness[:, 0]).float(),
        camera=Camera(
            K=torch.from_numpy(clips.K).float(),
            T_world_camera=torch.from_numpy(clips.T_world_camera[:, 0]).float(),
            frame_size_px=imagination.rig.frame_size_px,
        ),
        seed=torch.arange(first, first + len(clips)),
        sway=torch.from_numpy(clips.sway).float(),
    )


def begun(subject: Subject, clips: Clips, *, first: int = 0) -> tuple[Imagination, TensorDict]:
    """Return an env's imagination and its state after the clips' first frames; noise seeds are counted from `first`."""
    imagination = subject.stage.imagination
    state = started(imagination, clips, first=first)
    if subject.truth:
        base, filler = int(subject.world.things.config.base), subject.world.appearance.filler
        state = with_true_things(state, clips, table_m=subject.table_m, base=base, filler=filler)
    if subject.truth == "moves":
        told = with_true_moves(subject.world, clips, table_m=subject.table_m)
        imagination = Imagination(rig=imagination.rig, world=told, device=imagination.device)
    return imagination, state


@dataclass(frozen=True, kw_only=True)
class Sight:
    """What the judge reads in N clips at S of their frames, and how sure it is of it."""

    tool_px: Float[np.ndarray, "N S 2"]
    objects_m: Float[np.ndarray, "N S K 3"]
    confidence: Float[np.ndarray, "N S K"]
    segmentation: UInt8[np.ndarray, "N F H W"]  # of all those frames, or of some


def look(subject: Subject, frames: UInt8[np.ndarray, "N S H W 3"], clips: Clips, at: slice) -> Sight:
    """Let the judge read frames that show the clips at their frames `at`; it is told what an env tells it.

    That is the camera, where the tool was commanded to be, and a table that lies in the plane z = 0.
    """
    up_m = torch.tensor([0.0, 0.0, subject.table_m])
    readings = []
    for i, clip in enumerate(frames):
        camera = clips.camera(i, at)
        lowered = camera.T_world_camera.clone()
        lowered[:, :3, 3] -= up_m
        tool_m = torch.from_numpy(clips.tool_m[i, at]).float() - up_m
        readings.append(
            subject.judge.read_frames(torch.from_numpy(clip), replace(camera, T_world_camera=lowered), tool_m=tool_m)
        )
    return Sight(
        tool_px=np.stack([r.gripper_px.numpy() for r in readings]),
        objects_m=np.stack([(r.objects_world_m + up_m).numpy() for r in readings]),
        confidence=np.stack([r.objects_confidence.numpy() for r in readings]),
        segmentation=np.stack([r.segmentation.numpy() for r in readings]),
    )
