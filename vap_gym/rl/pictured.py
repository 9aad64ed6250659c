"""Pictured things: every frame is imagined, and the judge reads where the object is: as evaluation has it, and slow."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from tensordict import TensorDict

from vap_gym.errors import VapError
from vap_gym.policies.things import yaw_of
from vap_gym.rl.dynamics import Now
from vap_gym.rl.imagined import checked_scenes, found_things
from vap_gym.stage import Stage
from vap_gym.starts import Start

Array = np.ndarray


class PicturedThings:
    """A stage of B slots, read by its judge; what it is not sure of is where it was. Slots are untrusted where the
    stage says so (`min_trust`, `max_adherence_px`).

    Args:
        stage: imagination and judge, of an env that takes cartesian_velocity, one step at a time.
        starts: where episodes may begin.
        slots: B.

    Raises:
        VapError: no judge, another action mode, chunks, or starts without a scene.
    """

    def __init__(self, stage: Stage, starts: Sequence[Start], slots: int) -> None:
        mode = stage.rig.controller.mode
        if stage.judge is None or mode != "cartesian_velocity" or stage.chunk != 1:
            raise VapError(
                f"PicturedThings needs a judge, cartesian_velocity and single steps, got "
                f"{'no judge' if stage.judge is None else 'a judge'}, {mode} and steps of {stage.chunk}."
            )
        self.slots, self.starts, self._stage = slots, tuple(starts), stage
        checked_scenes(self.starts)
        self._size_m = np.zeros(slots)
        self._state: TensorDict | None = None

    def begin(self, rows: Sequence[int], which: Sequence[int], rng: np.random.Generator) -> None:
        """Begin in some slots, each with noise of its own; the first call must be of all."""
        seeds = [int(rng.integers(2**63 - 1)) for _ in rows]
        starts = [self.starts[number] for number in which]
        fresh = self._stage.begin(starts, seeds)
        self._size_m[list(rows)] = found_things(fresh, starts)[1].double().numpy()
        if self._state is None:
            if len(rows) != self.slots:
                raise VapError(f"The first begin must be of all {self.slots} slots, got {len(rows)}.")
            self._state, self._untrusted = fresh, np.zeros(self.slots, bool)
            return
        state = self._state.clone()
        state[torch.as_tensor(list(rows))] = fresh
        self._state = state
        self._untrusted = self._untrusted.copy()
        self._untrusted[list(rows)] = False

    def step(self, actions: Float[Array, "B 7"]) -> None:
        """Imagine a control step."""
        assert self._state is not None
        rows = torch.from_numpy(np.asarray(actions, np.float32))[:, None]
        self._state, outcome = self._stage.advance(self._state, rows)
        self._untrusted = outcome.untrusted[:, 0]

    def now(self) -> Now:
        """Return how the slots stand."""
        assert self._state is not None
        look = self._stage.imagination.look(self._state)
        tool_m, object_m = look.tool_m[:, 0].double().numpy(), self._state["object_m"].double().numpy()
        return Now(
            tool_m=tool_m,
            reached_m=tool_m,
            closedness=self._state["robot_gripper"].double().numpy(),
            yaw_rad=yaw_of(look),
            object_m=object_m,
            seen_m=object_m,
            size_m=self._size_m.copy(),
            untrusted=self._untrusted,
        )

    def close(self) -> None:
        """Nothing is held."""
