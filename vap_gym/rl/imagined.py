"""Imagined things: robots by kinematics, things by the network that moves them; no picture is drawn after the first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from tensordict import TensorDict
from torch import Tensor

from vap_gym.errors import VapError
from vap_gym.kinematics import RobotState
from vap_gym.plan.foresight import moves_things
from vap_gym.policies.things import any_camera, yaw_of
from vap_gym.rig import Motion, mapped
from vap_gym.rl.dynamics import Now, noise_of
from vap_gym.sim.spec import SceneSpec
from vap_gym.stage import Stage
from vap_gym.starts import Start
from vap_gym.trust.signals import PLACE_M, SIZE
from vap_gym.whereabouts import nearest_things, things_of
from vap_gym.world.model import WorldModel
from vap_gym.world.motion import ThingState

Array = np.ndarray
AT_ONCE = 16  # first pictures that are read together


class ImaginedThings:
    """The world model's things alone (as `plan.ThingForesight` foretells them), many slots in one batch.

    The first picture of a start is read by finder and judge, once; from then on kinematics and the motion network tell
    where gripper and things are. With `max_spread_m` a few members of an ensemble begin with the things elsewhere and
    of other sizes, by as much as the finder errs (as in `trust.TrustSignals`); where they come apart by more than that,
    nobody can know what follows, and the slot is untrusted.

    Args:
        stage: imagination and judge, of an env that takes cartesian_velocity.
        starts: where episodes may begin. Those whose object is not found as a thing are left out, unless it is only to
            be reached.
        slots: B.
        noise: begin every episode with the things where they may as well be, as far as the finder errs; the agent sees
            them where they were found. It then learns what works for all of these.
        members: of the ensemble.
        max_spread_m: give a slot up where the members of its object are further apart than this; None: never.

    Raises:
        VapError: a stage that moves no things, or no start that is left.
    """

    def __init__(
        self,
        stage: Stage,
        starts: Sequence[Start],
        slots: int,
        *,
        noise: bool = True,
        members: int = 4,
        max_spread_m: float | None = None,
    ) -> None:
        world = stage.imagination.world
        if not isinstance(world, WorldModel) or stage.rig.controller.mode != "cartesian_velocity":
            raise VapError(
                f"ImaginedThings needs a WorldModel and cartesian_velocity, got {type(world).__name__} and "
                f"{stage.rig.controller.mode}. Use PicturedThings, or another env."
            )
        if max_spread_m is not None and not (max_spread_m > 0 and members >= 1):
            raise VapError(
                f"max_spread_m must be above 0 and needs members, got {max_spread_m} and {members}. Try 0.03 and 4."
            )
        self.slots, self._stage, self._world, self._noise = slots, stage, world, noise
        self._members = members if max_spread_m is not None else 0
        self._max_spread_m = max_spread_m
        self._camera = any_camera(stage.rig)
        every = first_looks(stage, starts)
        only_reached = torch.tensor([scene.task == "reach" for scene in checked_scenes(starts)])
        fits = every["object_m"].isfinite().all(-1) & ((every["which"] >= 0) | only_reached)
        kept = fits.nonzero()[:, 0].tolist()
        if not kept:
            raise VapError(f"No object was found as a thing in {len(starts)} first pictures. Give other starts.")
        self.starts: Sequence[Start] = [starts[i] for i in kept]
        self._bank = every[fits]
        self._begun = False

    def begin(self, rows: Sequence[int], which: Sequence[int], rng: np.random.Generator) -> None:
        """Begin in some slots, each from one of `starts`; the first call must be of all."""
        fresh, count = self._bank[torch.as_tensor(list(which))], len(rows)
        things = things_of(fresh)
        copies = [self._elsewhere(things, rng, self._noise)]
        copies += [self._elsewhere(things, rng, True) for _ in range(self._members)]
        own = {f"robot_{f.name}": fresh[f"robot_{f.name}"] for f in fields(RobotState)}
        own |= {"target": fresh["which"], "seen_m": fresh["object_m"].float(), "size_m": fresh["size_m"]}
        k = fresh["which"].clamp_min(0)
        at = torch.arange(count)
        own["offset_m"] = (copies[0].place_m - things.place_m)[at, k].cpu() * (fresh["which"] >= 0)[:, None]
        own["begun_m"] = torch.stack([copy.place_m[at, k].cpu() for copy in copies], 1)
        for name in ThingState._fields:
            own[f"thing_{name}"] = torch.stack([getattr(copy, name) for copy in copies], 1)
        own |= _tool(self._stage.rig.look(robot_of(own), self._camera, draw=False))
        new = TensorDict(own, batch_size=[count])
        if not self._begun:
            if count != self.slots:
                raise VapError(f"The first begin must be of all {self.slots} slots, got {count}.")
            self._state, self._begun = new, True
        else:
            state = self._state.clone()
            state[torch.as_tensor(list(rows))] = new
            self._state = state

    @torch.no_grad()
    def step(self, actions: Float[Array, "B 7"]) -> None:
        """Move on by a control step."""
        state, world = self._state, self._world
        motion = self._stage.rig.move(
            robot_of(state), self._camera, torch.from_numpy(np.asarray(actions, np.float32))[:, None], draw=False
        )
        things = ThingState(*(state[f"thing_{name}"].flatten(0, 1) for name in ThingState._fields))
        grip = world.motion.grip(motion.views[:, 0].to(things.place_m))
        copies = 1 + self._members
        after, _ = world.motion.follow(things, grip.repeat_interleave(copies, 0), world.motion_steps)
        new = dict(state.items())
        robot = mapped(motion.robot, lambda x: x[:, 0])
        new |= {f"robot_{f.name}": getattr(robot, f.name) for f in fields(RobotState)}
        new |= {f"thing_{name}": value.unflatten(0, (-1, copies)) for name, value in after._asdict().items()}
        self._state = TensorDict(new | _tool(motion), batch_size=state.batch_size)

    def now(self) -> Now:
        """Return how the slots stand."""
        state = self._state
        found = state["target"] >= 0
        k = state["target"].clamp_min(0)[:, None, None, None].expand(-1, 1 + self._members, 1, 3)
        place_m = torch.take_along_dim(state["thing_place_m"].cpu(), k, 2)[:, :, 0]
        way_m = (place_m - state["begun_m"]) * found[:, None, None]
        seen_m = (state["seen_m"] + way_m[:, 0]).double().numpy()
        spread = way_m.var(1, correction=0).sum(-1).sqrt().numpy()
        tool_m = state["tool_m"].double().numpy()
        limit = np.inf if self._max_spread_m is None else self._max_spread_m
        return Now(
            tool_m=tool_m,
            reached_m=tool_m,
            closedness=state["robot_gripper"].double().numpy(),
            yaw_rad=state["yaw_rad"].numpy(),
            object_m=seen_m + state["offset_m"].double().numpy(),
            seen_m=seen_m,
            size_m=state["size_m"].double().numpy(),
            untrusted=spread > limit,
        )

    def close(self) -> None:
        """Nothing is held."""

    def _elsewhere(self, things: ThingState, rng: np.random.Generator, noise: bool) -> ThingState:
        """Things as they may as well be: moved and sized as the finder errs."""
        if not noise:
            return things
        B, K, _ = things.place_m.shape
        moved = noise_of(rng, B * K, PLACE_M).reshape(B, K, 3)
        sized = np.exp(rng.normal(0.0, SIZE, (B, K, 3)))
        shape = things.shape.clone()
        shape[..., :3] = shape[..., :3] * _as(sized, shape)
        return things._replace(place_m=things.place_m + _as(moved, things.place_m), shape=shape)


def robot_of(state: Mapping[str, Tensor] | TensorDict) -> RobotState:
    """Return the robots in a state."""
    return RobotState(**{f.name: state[f"robot_{f.name}"] for f in fields(RobotState)})


def _tool(look: Motion) -> dict[str, Tensor]:
    """Where the tools are, and how they are turned, after a motion of one step."""
    return {"tool_m": look.tool_m[:, 0], "yaw_rad": torch.from_numpy(yaw_of(look))}


def _as(values: Array, like: Tensor) -> Tensor:
    return torch.from_numpy(values).to(like)


def first_looks(stage: Stage, starts: Sequence[Start]) -> TensorDict:
    """Return what first pictures show, batch (N,): robots and things of the world model's state, `object_m` (where the
    judge sees the task's object, or else the scene has it), `which` thing that is (−1: none), `size_m`.

    Raises:
        VapError: no starts, one without a scene, or a robot whose gripper the world model does not know.
    """
    checked_scenes(starts)
    parts: list[Any] = []
    for first in range(0, len(starts), AT_ONCE):
        batch = starts[first : first + AT_ONCE]
        state = stage.begin(batch, list(range(first, first + len(batch))))
        if not moves_things(stage.imagination, state):
            raise VapError(
                f"The world model does not know how the gripper of '{stage.rig.robot.name}' moves things. Use "
                "PicturedThings."
            )
        which, size_m = found_things(state, batch)
        part = {key: state[key] for key in state.keys() if key.startswith(("robot_", "world_thing_"))}  # noqa: SIM118
        part |= {"object_m": state["object_m"], "which": which, "size_m": size_m}
        parts.append(TensorDict(part, batch_size=[len(batch)]))
    whole: TensorDict = torch.cat(parts)
    return whole


def checked_scenes(starts: Sequence[Start]) -> list[SceneSpec]:
    """Return the scenes of starts. Raises VapError where there are none, or one is of no object."""
    scenes = [start.scene for start in starts if start.scene is not None and not start.scene.is_about_drawer]
    if not starts or len(scenes) < len(starts):
        raise VapError(
            f"Training needs starts with a scene and an object, got {len(starts)}, {len(starts) - len(scenes)} of them "
            "without. Give shipped starts, or moments of recordings."
        )
    return scenes


def found_things(state: TensorDict, starts: Sequence[Start]) -> tuple[Int64[Tensor, " B"], Float[Tensor, " B"]]:
    """Return which thing of a state that has just begun each task's object is (−1: none), and half its width along the
    table, m: as it was found, or else as the scene has it."""
    by_scene = torch.tensor([np.mean(scene.target_object.half_extents_m[:2]) for scene in checked_scenes(starts)])
    if "world_thing_place_m" not in state.keys():  # noqa: SIM118
        return torch.full((len(starts),), -1), by_scene.float()
    things = things_of(state)
    which = nearest_things(things, state["object_m"][:, None].float())[:, 0].cpu()
    found = things.shape.cpu()[torch.arange(len(starts)), which.clamp_min(0), :2].mean(-1)
    return which, torch.where(which >= 0, found, by_scene).float()
