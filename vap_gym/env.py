"""VapEnv: one imagined robot as a Gymnasium env, thin over a stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
from jaxtyping import Bool, Float
from tensordict import TensorDict

from vap_gym.errors import VapError, unknown_name
from vap_gym.imagine import actions_tensor
from vap_gym.interfaces import Judge, World
from vap_gym.loading import StartSource, build_stage
from vap_gym.observations import Observation, stacked
from vap_gym.stage import Stage, fitting_snapshot
from vap_gym.vector import VapVectorEnv
from vap_gym.viewer import Viewer


class VapEnv(gym.Env[Observation, np.ndarray]):
    """An imagined robot: actions are drawn as robot motion, and a video model imagines what the camera sees.

    Made by `gym.make("VAP-DROID-v0", …)`. Observation: uint8 frame (H, W, 3), or with `obs_type="pixels_agent_pos"` the
    dict {"pixels", "agent_pos"} (joints [rad] and closedness). Reward: how much of the task this step solved (they sum
    to the progress in [0, 1]), or with `reward="success"` 1 where it is solved. Terminated when solved, if the card
    says so.

    Args:
        card: id or path of the env card whose defaults the others override. None means the card's own.
        world_model: a name ("tiny"), a checkpoint folder, a hub id, or a `World`; see `vap_gym.load_world_model`. One
            that imagines c control steps at once (the `chunk` of a `StreamWorld` on a codec that is c× in time, or of a
            `ClipWorld`) makes a step of the env a chunk of c actions: `action_space` is (c, A), and observation and
            info are those after the last of them.
        world_model_kwargs: further arguments of `load_world_model`, such as {"causal": "untrained"}.
        device, dtype: where and in which precision the world model runs; None is the model's own precision.
        prompt: "skeleton", "mesh", "depth" or "none" (see docs/prompts.md). None: what the world model was trained on
            where it says so, else the card's. One that contradicts the world model is refused.
        action_mode: "cartesian_velocity", "cartesian_delta", "cartesian_pose", "joint_velocity" or "joint_position".
        obs_type: "pixels" or "pixels_agent_pos".
        robot: a robot's name or the path of its folder.
        camera: of the pictures that `reset` will be given (see `photo.read_camera`); shipped starts have their own.
        judge: a name, a folder, a `Judge`, or None for reward 0.
        task: "reach", "push", "lift" or "any": which shipped starts are drawn.
        starts: another file of start states.
        reward: "progress" or "success".
        trust_samples: imagine every step so many times with other noise; `info["trust"]["spread_grey"]` then tells how
            far the samples have come apart, in grey levels. 0: not; 4 costs about four times as much.
        max_adherence_px: truncate where the judge sees the gripper further than this from where it was commanded to be.
        min_trust: truncate where `1 - info["trust"]["object_risk"]` falls below this (see docs/trust.md); None: never.
        views: further cameras whose pictures are imagined too: names of the card's views ("second", "wrist"), or a
            table of cameras (see `viewpoints.read_viewpoints`). `pixels` is then a dict of frames by view, the first
            one's name being "front"; `info["prompts"]` holds the others' prompts.
        render_mode: "rgb_array", "human" (a window, with pygame) or None.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array", "human"], "render_fps": 15}  # type: ignore[misc]

    def __init__(
        self,
        card: str = "VAP-DROID-v0",
        *,
        world_model: str | Path | World | None = None,
        world_model_kwargs: Mapping[str, Any] | None = None,
        device: str = "cpu",
        dtype: str | None = None,
        prompt: str | None = None,
        action_mode: str | None = None,
        obs_type: str | None = None,
        robot: str | Path | None = None,
        camera: object = None,
        judge: str | Path | Judge | None = "tiny",
        task: str | None = None,
        starts: str | Path | None = None,
        reward: str = "progress",
        trust_samples: int = 0,
        max_adherence_px: float | None = None,
        min_trust: float | None = None,
        views: Sequence[str] | Mapping[str, object] = (),
        render_mode: str | None = None,
    ) -> None:
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise unknown_name("render_mode", str(render_mode), self.metadata["render_modes"])
        self._made_with: dict[str, Any] = {
            "card": card, "world_model": world_model, "world_model_kwargs": world_model_kwargs, "device": device,
            "dtype": dtype, "prompt": prompt, "action_mode": action_mode, "obs_type": obs_type, "robot": robot,
            "judge": judge, "reward": reward, "trust_samples": trust_samples, "max_adherence_px": max_adherence_px,
            "min_trust": min_trust, "views": views,
        }  # fmt: skip
        self._own: dict[str, Any] = {"camera": camera, "task": task, "starts": starts}
        self._stage = build_stage(**self._made_with)
        self._source = StartSource(
            self._stage.rig, self._stage.card, viewpoints=self._stage.extra.viewpoints, **self._own
        )
        self._state: TensorDict | None = None
        self.metadata = {**self.metadata, "render_fps": self._stage.card.fps}  # type: ignore[misc]
        self.observation_space = self._stage.observation_space
        self.action_space = self._stage.action_space
        self.render_mode = render_mode
        self._viewer = (
            Viewer(self._stage.rig.frame_size_px, self.metadata["render_fps"]) if render_mode == "human" else None
        )

    @property
    def stage(self) -> Stage:
        """Imagination, judge and task: for planners, which run them on states of their own."""
        return self._stage

    @property
    def state(self) -> TensorDict:
        """The present state, batch size [1]. Do not write into it; `save` gives a copy."""
        if self._state is None:
            raise VapError("The env has no state yet. Call reset() first.")
        return self._state

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode from a shipped start, drawn with `seed`, or from `options`.

        Options: "image", "state" and "camera" together begin from a photograph (see `photo.start_from_photo`);
        "instruction" replaces the task's words (a shipped start with other words than its own has no reward); "start"
        is a shipped start's number, or a `Start` itself.

        Raises:
            VapError: options that are unknown, malformed, or contradict each other.
        """
        super().reset(seed=seed)
        noise = int(self.np_random.integers(2**63 - 1))  # drawn first, so that it is the same for every kind of start
        start = self._source.choose(options or {}, self.np_random)
        self._state = self._stage.begin([start], [noise])
        self._show()
        return self._observation(), self._reset_info()

    def step(self, action: object) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Imagine one control step of an action (A,). Entries out of range are clipped, and `info["clipped"]` says so.

        Raises:
            ActionError: an action of the wrong shape or type, or not finite.
        """
        action_row = actions_tensor(action, shape=self._action_shape)
        self._state, outcome = self._stage.advance(self.state, self._rows(action_row))
        self._show()
        info = self._stage.info(self._state, outcome, 0)
        terminated, truncated = self._ends(outcome.success[0, 0]), bool(outcome.untrusted[0, 0])
        return self._observation(), float(outcome.reward[0, 0]), terminated, truncated, info

    def step_chunk(
        self, actions: object
    ) -> tuple[
        Observation, Float[np.ndarray, " K"], Bool[np.ndarray, " K"], Bool[np.ndarray, " K"], list[dict[str, Any]]
    ]:
        """Imagine K control steps at once: the frames, rewards and flags of K calls of `step`, stacked; their infos.

        A chunk is not cut where the episode ends: `terminated` says where it did. A TimeLimit wrapper counts no chunks.

        Raises:
            ActionError: actions of the wrong shape (K, A) or type, or not finite.
        """
        rows = actions_tensor(actions, shape=(None, *self._action_shape))
        count = len(rows)
        self._state, outcome = self._stage.advance(self.state, self._rows(rows))
        self._show()
        steps = [self._stage.observation_at(outcome, 0, k) for k in range(count)]
        infos = [self._stage.info(self._state, outcome, 0, k) for k in range(count)]
        terminated = np.array([self._ends(success) for success in outcome.success[0]])
        return stacked(steps), outcome.reward[0].copy(), terminated, outcome.untrusted[0].copy(), infos

    def save(self) -> TensorDict:
        """Return a snapshot: the whole state, batch size [1]. `imagine.write_state` puts it into a file.

        The generator that draws the next start is not part of it, nor are the counters of wrappers such as TimeLimit.
        """
        return self.state.clone()

    def load(self, snapshot: TensorDict | str | Path) -> tuple[Observation, dict[str, Any]]:
        """Return to a snapshot (or a file of one): the same actions then give the same frames."""
        self._state = fitting_snapshot(snapshot, self._stage, slots=1)
        self._show()
        return self._observation(), self._reset_info()

    def branch(self, n: int, *, seeds: Sequence[int] | None = None) -> VapVectorEnv:
        """Return a vector env of n copies of the present moment; this env is left as it is.

        Without `seeds` the copies share this env's noise: they differ by their actions alone. With n `seeds` they
        imagine different samples. There is no autoreset and no time limit: a slot that has ended goes on.
        """
        if n < 1 or (seeds is not None and len(seeds) != n):
            raise VapError(
                f"branch needs n ≥ 1 and as many seeds, got n={n} and {None if seeds is None else len(seeds)} seeds."
            )
        state = self.state.expand(n).clone()
        if seeds is not None:
            state["world_seed"] = torch.tensor(list(seeds), dtype=torch.int64, device=state["world_seed"].device)
        copies = VapVectorEnv(
            num_envs=n, autoreset_mode="Disabled", render_mode="rgb_array", **self._made_with, **self._own
        )
        copies.load(state)
        return copies

    def render(self) -> np.ndarray | None:
        """Return the newest frame (H, W, 3) with render_mode "rgb_array"; None otherwise ("human" draws by itself)."""
        if self.render_mode is None:
            gym.logger.warn('render() does nothing without a render_mode. Make the env with render_mode="rgb_array".')
        return self.state["frame"][0].numpy().copy() if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        """Close the window, if there is one."""
        if self._viewer is not None:
            self._viewer.close()

    @property
    def _action_shape(self) -> tuple[int, ...]:
        size = self._stage.rig.controller.action_size
        return (size,) if self._stage.chunk == 1 else (self._stage.chunk, size)

    def _rows(self, actions: torch.Tensor) -> Float[torch.Tensor, "1 K A"]:
        """Actions one after the other, as the stage takes them."""
        return actions.reshape(1, -1, actions.shape[-1])

    def _observation(self) -> Observation:
        return self._stage.observation(self.state, 0)

    def _reset_info(self) -> dict[str, Any]:
        return self._stage.reset_infos(self.state, [0])[0]

    def _ends(self, success: bool | np.bool_) -> bool:
        return bool(success) and self._stage.card.terminate_on_success

    def _show(self) -> None:
        if self._viewer is not None:
            self._viewer.show(self.state["frame"][0].numpy())

    def __getstate__(self) -> dict[str, Any]:
        """Everything but what names load again: a world model given by name is not pickled."""
        return {key: value for key, value in self.__dict__.items() if key not in ("_stage", "_source", "_viewer")}

    def __setstate__(self, kept: dict[str, Any]) -> None:
        self.__dict__.update(kept)
        self._stage = build_stage(**self._made_with)
        self._source = StartSource(
            self._stage.rig, self._stage.card, viewpoints=self._stage.extra.viewpoints, **self._own
        )
        self._viewer = (
            Viewer(self._stage.rig.frame_size_px, self.metadata["render_fps"]) if self.render_mode == "human" else None
        )
