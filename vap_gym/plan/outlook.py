"""Outlooks: what a planning policy knows of an episode, and the score that follows from it at any moment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, UInt8
from tensordict import TensorDict
from torch import Tensor

from vap_gym.errors import VapError
from vap_gym.plan.foresight import (
    Foresight,
    ForesightScore,
    Goal,
    LatentForesight,
    ThingForesight,
    moves_things,
    rolled_things,
)
from vap_gym.plan.goals import TaskGoal
from vap_gym.plan.oracle import OracleForesight
from vap_gym.stage import SEEN, Stage
from vap_gym.starts import Start
from vap_gym.whereabouts import has_things, nearest_things, places_of, things_of
from vap_gym.world.model import WorldModel

SEEDS = 2**62  # seeds are taken modulo this
Frame = UInt8[np.ndarray, "H W 3"]
MakeForesight = Callable[[Stage, TensorDict, Tensor], Foresight]
"""From a stage, a state of one slot and its objects' places (1, N, 3) to foresight."""


@runtime_checkable
class Outlook(Protocol):
    """Follows one episode and says, at any moment, how good actions from there are."""

    def begin(self, start: Start, seed: int) -> None:
        """An episode begins."""
        ...

    def act(self, action: Float[np.ndarray, " A"]) -> None:
        """An action is done."""
        ...

    def score(self, frame: Frame, *, hold: int) -> ForesightScore:
        """Return a score of what may be done next, (N, T, A) → (N,); `frame` is what is seen now, and each action is
        held for `hold` steps."""
        ...

    def close(self) -> None:
        """Let go of what it holds, such as a simulator; it is not used again."""
        ...


def of_things(stage: Stage, state: TensorDict, objects_m: Float[Tensor, "1 N 3"]) -> Foresight:
    """Return foresight of things alone where the world model moves such, else in latents."""
    if moves_things(stage.imagination, state):
        return ThingForesight(stage.imagination, state, objects_m)
    return LatentForesight(stage, state, objects_m)


def of_latents(stage: Stage, state: TensorDict, objects_m: Float[Tensor, "1 N 3"]) -> Foresight:
    """Return foresight in latents; of a model that knows longer intervals, with three steps at once."""
    stride = 3 if isinstance(stage.imagination.world, WorldModel) else 1
    return LatentForesight(stage, state, objects_m, every=3, stride=stride)


class ImaginedOutlook:
    """Sees pictures only: what it knows of things is read from them by judge and world model, and foretold between.

    Where the robot is is known from the commands, as in imagination.

    Args:
        stage: imagination and judge.
        goal: how good futures are; None: the task of the start's scene.
        foresight: how it looks ahead: `of_things` or `of_latents`.

    Raises:
        VapError: a stage without a judge.
    """

    def __init__(self, stage: Stage, *, goal: Goal | None = None, foresight: MakeForesight = of_things) -> None:
        if stage.judge is None:
            raise VapError("Planning from pictures needs a judge to read them, got judge=None. Make the env with one.")
        self.stage, self._goal, self._foresight = stage, goal, foresight
        self._start: Start | None = None

    def begin(self, start: Start, seed: int) -> None:
        """Look at the first picture of an episode."""
        self._start, self._seed = start, seed
        self.state = self.stage.begin([start], [seed % SEEDS])
        self._moves_things = moves_things(self.stage.imagination, self.state)
        by_scene = torch.full((1, *self._read()[0].shape[1:]), torch.nan)
        if start.scene is not None and not start.scene.is_about_drawer:
            by_scene[0, start.scene.target] = self.state["object_m"][0].float()  # unseen: where the task says it is
        self.objects_m = self._merged(by_scene)

    def act(self, action: Float[np.ndarray, " A"]) -> None:
        """Move robot, camera and things on by a step, as they are foretold."""
        row = torch.from_numpy(np.asarray(action, np.float32))[None, None]
        imagination = self.stage.imagination
        motion = imagination.trace(self.state, row)
        following = imagination.moved(self.state, motion)
        if isinstance(imagination.world, WorldModel) and self._moves_things:
            before = things_of(self.state)
            after = rolled_things(imagination.world, before, motion)[-1]
            which = nearest_things(before, self.objects_m.to(before.place_m))
            pick = which.clamp_min(0)[..., None].expand(-1, -1, 3)
            way = torch.take_along_dim(after.place_m - before.place_m, pick, 1) * (which >= 0)[..., None]
            self.objects_m = self.objects_m + way.cpu()
            for name, value in after._asdict().items():
                following[f"world_thing_{name}"] = value
        self.state = following

    def see(self, frame: Frame) -> None:
        """Look at a picture of this moment: what it shows replaces what was foretold."""
        assert self._start is not None
        before = self.state
        if int(before["step"][0]) == 0:
            return
        camera = self.stage.imagination.camera(before)
        now = replace(
            self._start, frame=frame, camera=replace(camera, K=camera.K[0], T_world_camera=camera.T_world_camera[0]),
            q_rad=before["robot_q"][0].numpy().astype(np.float64), closedness=float(before["robot_gripper"][0]),
        )  # fmt: skip
        fresh = self.stage.begin([now], [(self._seed + int(before["step"][0])) % SEEDS])
        for key, value in before.items():
            if key.startswith(("robot_", "camera_")) or key in ("step", "tool_start_m", "object_start_m"):
                fresh[key] = value
        self.state = fresh
        self.objects_m = self._merged(self.objects_m)
        if self._moves_things:
            self._restore_hidden(before)

    def score(self, frame: Frame, *, hold: int) -> ForesightScore:
        """Look at a picture of this moment and return the score of what may be done next."""
        if self._start is None:
            raise VapError("The outlook has no episode yet. Call begin(start, seed) first.")
        self.see(frame)
        goal = self._goal
        if goal is None:
            if self._start.scene is None:
                raise VapError("A start without a scene has no task to plan for, got a picture alone. Give a goal.")
            goal = TaskGoal([self._start.scene])
        return ForesightScore(self._foresight(self.stage, self.state, self.objects_m), goal, hold=hold)

    def close(self) -> None:
        """Nothing is held that others do not share."""

    def _read(self) -> tuple[Tensor, Tensor]:
        """Places and confidences of objects in the newest picture."""
        reading = self.stage.read(self.state, self.stage.imagination.look(self.state).tool_m[:, 0])
        return reading.objects_world_m.float().cpu(), reading.objects_confidence.cpu()

    def _merged(self, else_m: Float[Tensor, "1 N 3"]) -> Float[Tensor, "1 N 3"]:
        """Where objects are seen, or else where they were taken to be; as exactly as the finder has it."""
        places, confidence = self._read()
        sure = (confidence >= SEEN)[..., None] & places.isfinite().all(-1, keepdim=True)
        merged = torch.where(sure, places, else_m)
        if not has_things(self.state):
            return merged
        things = things_of(self.state)
        found = places_of(things, nearest_things(things, merged)).to(merged)
        return torch.where(sure & found.isfinite(), found, merged)

    def _restore_hidden(self, before: TensorDict) -> None:
        """Put things back that were known of and that the newest picture does not show."""
        known, found = things_of(before), things_of(self.state)
        was, still = nearest_things(known, self.objects_m), nearest_things(found, self.objects_m)
        for n in ((was >= 0) & (still < 0))[0].nonzero()[:, 0].tolist():
            free = (~found.there[0]).nonzero()[:, 0].tolist()
            if not free:
                return
            k, old = free[0], int(was[0, n])
            found.there[0, k] = True
            found.place_m[0, k] = known.place_m[0, old]
            found.place_m[0, k, :2] = self.objects_m[0, n, :2].to(found.place_m)
            found.shape[0, k] = known.shape[0, old]
        for name, value in found._asdict().items():
            self.state[f"world_thing_{name}"] = value


class OracleOutlook:
    """Knows the truth: plans in a simulator of its own that is kept in step with the episode.

    Args:
        foresight: the simulator.
        goal: how good futures are; None: the task of the start's scene.
    """

    def __init__(self, foresight: OracleForesight, *, goal: Goal | None = None) -> None:
        self._foresight, self._goal = foresight, goal
        self._task: Goal | None = None

    def begin(self, start: Start, seed: int) -> None:
        """Build the scene of an episode."""
        self._foresight.begin(start)
        assert start.scene is not None
        self._task = TaskGoal([start.scene]) if self._goal is None else self._goal

    def act(self, action: Float[np.ndarray, " A"]) -> None:
        """Do it in the copy, too."""
        self._foresight.act(action)

    def score(self, frame: Frame, *, hold: int) -> ForesightScore:
        """Return the score of what may be done next; the picture is not looked at."""
        if self._task is None:
            raise VapError("The outlook has no episode yet. Call begin(start, seed) first.")
        return ForesightScore(self._foresight, self._task, hold=hold)

    def close(self) -> None:
        """Leave the simulator."""
        self._foresight.close()
