"""Foresight: what follows from candidate actions, told as places: by the world model's things, or by its latents.

The shipped world model holds where things are apart from how they look: a small network moves them (`world.motion`),
and the pictures are drawn from that. `ThingForesight` asks this network alone: it foretells the same places as a full
imagination does, and draws nothing. `LatentForesight` imagines in latents, with any world model, and lets the judge
read them. Shapes: B slots, N candidates for each, M = B·N futures slot after slot, T steps, S moments that are told.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from tensordict import TensorDict
from torch import Tensor

from vap_gym.errors import VapError
from vap_gym.imagine import Imagination
from vap_gym.rig import Motion
from vap_gym.stage import SEEN, Stage
from vap_gym.whereabouts import nearest_things, things_of
from vap_gym.world.model import WorldModel
from vap_gym.world.motion import ThingState


@dataclass(frozen=True, kw_only=True, eq=False)
class Foreseen:
    """M futures at S moments. Places in the robot's base frame, metres; objects by palette colour, NaN where absent."""

    tool_m: Float[Tensor, "M S 3"]  # the centre between the finger ends
    closedness: Float[Tensor, "M S"]  # of the gripper, 0 open .. 1 closed
    objects_m: Float[Tensor, "M S N 3"]
    steps: tuple[int, ...]  # the control step, from 1 on, after which each moment is
    latents: Float[Tensor, "M S C h w"] | None = None  # None where nothing was imagined

    @property
    def count(self) -> int:
        """M, the number of futures."""
        return len(self.tool_m)


@runtime_checkable
class Foresight(Protocol):
    """Foretells what actions lead to, from a moment of B slots that it knows."""

    @property
    def slots(self) -> int:
        """B, of how many slots' present it knows."""
        ...

    def __call__(self, actions: Float[Tensor, "M T A"]) -> Foreseen:
        """Return the futures of M action sequences: M / B of each slot, slot after slot."""
        ...


@runtime_checkable
class Goal(Protocol):
    """How good futures are; higher is better."""

    def __call__(self, foreseen: Foreseen) -> Float[Tensor, " M"]:
        """Return one number for each future."""
        ...


class ForesightScore:
    """A planner's score: what is foreseen, valued by a goal.

    Takes (N, T, A) → (N,) where the foresight knows one slot, and (B, N, T, A) → (B, N).

    Args:
        foresight: what follows from actions.
        goal: how good that is: `goals.TaskGoal`, `goals.PictureGoal`, or any function of what is foreseen.
        hold: control steps that each action of the planner is held for, so that a long way is few numbers.
    """

    def __init__(self, foresight: Foresight, goal: Goal, *, hold: int = 1) -> None:
        self.foresight, self.goal, self.hold = foresight, goal, hold

    def __call__(self, actions: Tensor) -> Tensor:
        """Return the scores of candidates."""
        B, batch = self.foresight.slots, actions.shape[:-2]
        if len(batch) not in (1, 2) or (B != 1 if len(batch) == 1 else batch[0] != B):
            raise VapError(
                f"This score is of {B} environment(s): actions must have shape ({B}, N, T, A)"
                f"{' or (N, T, A)' if B == 1 else ''}, got {tuple(actions.shape)}. Plan with batch={B}."
            )
        flat = actions.reshape(-1, *actions.shape[-2:]).repeat_interleave(self.hold, 1)
        return self.goal(self.foresight(flat)).reshape(batch)


def moments(steps: Sequence[int], every: int) -> list[int]:
    """Return which of some control steps (ascending, from 1 on) to look at: one for every so many, and the last."""
    return [i for i, step in enumerate(steps) if i == len(steps) - 1 or step // every > (step - 1) // every]


def branched(state: TensorDict, futures: int) -> TensorDict:
    """Return a state of B slots as one of M: each slot M / B times, one after the other."""
    B = len(state)
    if futures % B:
        raise VapError(f"Futures of {B} slots must be a multiple of {B}, as many of each, got {futures}.")
    which = torch.arange(B).repeat_interleave(futures // B)
    return TensorDict({key: value[which.to(value.device)] for key, value in state.items()}, batch_size=[futures])


def moves_things(imagination: Imagination, state: TensorDict) -> bool:
    """Whether the world model holds things in a state, and knows how this robot's gripper moves them."""
    world = imagination.world
    return isinstance(world, WorldModel) and world.motion.knows(imagination.look(state).views[:, 0])


class ThingForesight:
    """Foresight of the world model's things alone, without a picture: kinematics and the network that moves things.

    Differentiable in the actions, but where a thing is told not to move at all.

    Args:
        imagination: its world is a `WorldModel` that knows the robot's gripper.
        state: the present of B slots.
        objects_m: where the objects are now, (B, N, 3) by palette colour, as the judge reads them; each is the thing
            nearest to it, and moves as that does. One that is no thing stays.

    Raises:
        VapError: another kind of world model, or one that cannot move things with this gripper.
    """

    def __init__(self, imagination: Imagination, state: TensorDict, objects_m: Float[Tensor, "B N 3"]) -> None:
        world = imagination.world
        if not isinstance(world, WorldModel):
            raise VapError(
                f"ThingForesight needs a WorldModel, got {type(world).__name__}. Use LatentForesight with this one."
            )
        self.imagination, self.world = imagination, world
        kept = ("robot_", "camera_", "world_thing_", "step")
        self._state = TensorDict(
            {key: value for key, value in state.items() if key.startswith(kept)}, batch_size=state.batch_size
        )
        self._objects_m = objects_m.float().cpu()
        self._which = nearest_things(things_of(state), self._objects_m.to(imagination.device)).cpu()

    @property
    def slots(self) -> int:
        """B, of how many slots' present it knows."""
        return len(self._state)

    def __call__(self, actions: Float[Tensor, "M T A"]) -> Foreseen:
        """Return the futures of M action sequences at every step."""
        state = branched(self._state, len(actions))
        motion = self.imagination.trace(state, actions)
        rolled = rolled_things(self.world, things_of(state), motion)
        place_m = torch.stack([things.place_m for things in rolled], 1).cpu()
        repeat = len(actions) // self.slots
        now_m, which = (x.repeat_interleave(repeat, 0) for x in (self._objects_m, self._which))
        start_m = things_of(state).place_m.cpu()
        T, N = actions.shape[1], now_m.shape[1]
        pick = which.clamp_min(0)[:, None, :, None].expand(-1, T, -1, 3)
        moved = torch.take_along_dim(place_m - start_m[:, None], pick, 2) * (which >= 0)[:, None, :, None]
        return Foreseen(
            tool_m=motion.tool_m,
            closedness=motion.robot.gripper,
            objects_m=now_m[:, None].expand(-1, T, N, 3) + moved,
            steps=tuple(range(1, T + 1)),
        )


def rolled_things(world: WorldModel, things: ThingState, motion: Motion) -> list[ThingState]:
    """Return where things are after every step of a motion: what `WorldModel.predict` would say, step by step."""
    views = motion.views.to(things.place_m)
    rolled = []
    for t in range(views.shape[1]):
        if not world.motion.knows(views[:, t]):
            raise VapError(
                f"The world model does not know how the gripper of '{world.appearance.name}' moves things. Use "
                "LatentForesight."
            )
        things, _ = world.motion.follow(things, world.motion.grip(views[:, t]), world.motion_steps)
        rolled.append(things)
    return rolled


class LatentForesight:
    """Foresight in the world model's latents, which the judge reads; no frame is decoded where it can read latents.

    Args:
        stage: imagination and judge.
        state: the present of B slots.
        objects_m: where the objects are now, (B, N, 3) by palette colour: one that the judge no longer sees is taken to
            be where it was last.
        every: control steps from one moment that is told to the next; the last step always is.
        stride: control steps that one step of the network stands for (1 to 3): fewer steps, less work. Only with a
            `WorldModel`, whose things are moved at every step all the same.
        evaluations: of the network, per frame; None: the model's own number.

    Raises:
        VapError: no judge, or a stride that the world model does not know.
    """

    def __init__(
        self,
        stage: Stage,
        state: TensorDict,
        objects_m: Float[Tensor, "B N 3"],
        *,
        every: int = 4,
        stride: int = 1,
        evaluations: int | None = None,
    ) -> None:
        if stage.judge is None:
            raise VapError("LatentForesight needs a judge to read latents, got judge=None. Make the env with one.")
        if every < 1 or not 1 <= stride <= 3 or (stride > 1 and not isinstance(stage.imagination.world, WorldModel)):
            raise VapError(
                f"every must be at least 1, and stride 1 to 3 with a WorldModel, else 1; got {every} and {stride}."
            )
        self.stage, self.every, self.stride, self.evaluations = stage, every, stride, evaluations
        kept = ("robot_", "camera_", "world_", "step")
        self._state = TensorDict(
            {key: value for key, value in state.items() if key.startswith(kept)}, batch_size=state.batch_size
        )
        self._objects_m = objects_m.float().cpu()

    @property
    def slots(self) -> int:
        """B, of how many slots' present it knows."""
        return len(self._state)

    @torch.no_grad()
    def __call__(self, actions: Float[Tensor, "M T A"]) -> Foreseen:
        """Return the futures of M action sequences at some moments."""
        state = branched(self._state, len(actions))
        if self.stride > 1:
            at, latents, motion = self._strided(state, actions)
        else:
            _, latents, motion = self.stage.imagination.rollout(state, actions, evaluations=self.evaluations)
            chunk = actions.shape[1] // latents.shape[1]
            at = [chunk * (i + 1) for i in range(latents.shape[1])]
        told = moments(at, self.every)
        at, latents = [at[i] for i in told], latents[:, told]
        rows = [step - 1 for step in at]
        return Foreseen(
            tool_m=motion.tool_m[:, rows],
            closedness=motion.robot.gripper[:, rows],
            objects_m=self._read(state, latents, motion, rows),
            steps=tuple(at),
            latents=latents.cpu(),
        )

    def _strided(self, state: TensorDict, actions: Tensor) -> tuple[list[int], Tensor, Motion]:
        imagination, world = self.stage.imagination, self.stage.imagination.world
        assert isinstance(world, WorldModel)
        motion = imagination.follow(state, actions)
        prompts, views = motion.prompts.to(imagination.device), motion.views.to(imagination.device)
        begun = things_of(state)
        rolled = [begun, *rolled_things(world, begun, motion)]
        T = actions.shape[1]
        at = sorted({*range(self.stride, T + 1, self.stride), T})
        own = {key.removeprefix("world_"): value for key, value in state.items() if key.startswith("world_")}
        memory, latents, before = TensorDict(own, batch_size=state.batch_size), [], 0
        for step in at:
            for name, value in rolled[step - 1]._asdict().items():  # as they were a control step before this frame
                memory[f"thing_{name}"] = value
            now = slice(step - 1, step)
            memory, _ = world.predict(
                memory, prompts[:, now], views=views[:, now], decode=False, evaluations=self.evaluations,
                interval=step - before,
            )  # fmt: skip
            latents.append(memory["latent"])
            before = step
        return at, torch.stack(latents, 1), motion

    def _read(self, state: TensorDict, latents: Tensor, motion: Motion, rows: list[int]) -> Float[Tensor, "M S N 3"]:
        """What the judge sees at each moment; what it does not see is where it was before."""
        seen_m = self._objects_m.repeat_interleave(len(state) // self.slots, 0)
        told = []
        for i, t in enumerate(rows):
            now = {"camera_K": state["camera_K"], "camera_T_world_camera": motion.T_world_camera[:, t]}
            if self.stage.reads_latents:
                now["world_latent"] = latents[:, i]
            else:
                now["frame"] = self.stage.imagination.world.decode(latents[:, i])
            reading = self.stage.read(TensorDict(now, batch_size=[len(state)]), motion.tool_m[:, t])
            places, sure = reading.objects_world_m.float().cpu(), reading.objects_confidence.cpu() >= SEEN
            seen_m = torch.where(sure[..., None] & places.isfinite(), places, seen_m)
            told.append(seen_m)
        return torch.stack(told, 1)
