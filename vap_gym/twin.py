"""Twin: the oracle and the imagination, stepped together from one picture, and how far they drift apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8

from vap_gym.env import VapEnv
from vap_gym.interfaces import Judge, World
from vap_gym.metrics import psnr
from vap_gym.observations import Observation
from vap_gym.oracle_env import OracleEnv, present_objects
from vap_gym.sim.spec import COLOURS
from vap_gym.stage import SEEN


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """How far the imagined frame is from the true one. Without a judge the last two are None and empty."""

    psnr_db: float  # capped at 40
    mae: float  # mean absolute difference, grey levels
    gripper_px: float | None  # from the gripper that the judge sees to the true one; None: no such is known
    objects_m: dict[str, float]  # the same per object, by colour; NaN where the judge sees none in the imagined frame


@dataclass(frozen=True, kw_only=True, eq=False)
class TwinStep:
    """One step of both."""

    imagined: Observation
    oracle: Observation
    divergence: Divergence
    imagined_reward: float
    oracle_reward: float
    terminated: bool  # as the oracle has it
    imagined_info: dict[str, Any]
    oracle_info: dict[str, Any]


class Twin:
    """An imagined env and its oracle: same start, picture, camera and actions on both sides.

    Args:
        card: id or path of the env card.
        world_model, …, views: as for `VapEnv`. Divergence is that of the first view.

    Raises:
        MissingDependencyError: pybullet is not installed.
    """

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
        judge: str | Path | Judge | None = "tiny",
        task: str | None = None,
        starts: str | Path | None = None,
        reward: str = "progress",
        views: Sequence[str] | Mapping[str, object] = (),
    ) -> None:
        self.imagined = VapEnv(
            card,
            world_model=world_model,
            world_model_kwargs=world_model_kwargs,
            device=device,
            dtype=dtype,
            prompt=prompt,
            action_mode=action_mode,
            obs_type=obs_type,
            robot=robot,
            judge=judge,
            reward=reward,
            views=views,
            render_mode="rgb_array",
        )
        self.oracle = OracleEnv(
            card,
            prompt=self.imagined.stage.rig.prompt,  # maybe the world model's own
            action_mode=action_mode,
            obs_type=obs_type,
            robot=robot,
            task=task,
            starts=starts,
            reward=reward,
            views=views,
            render_mode="rgb_array",
        )
        self.action_space = self.imagined.action_space
        self.observation_space = self.imagined.observation_space

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> TwinStep:
        """Begin on both sides with the oracle's first frame; `options` are the oracle's ("start" or "scene")."""
        true, true_info = self.oracle.reset(seed=seed, options=options)
        imagined, info = self.imagined.reset(seed=seed, options={"start": self.oracle.start})
        return self._compared(imagined, true, 0.0, 0.0, False, info, true_info)

    def step(self, action: object) -> TwinStep:
        """Give both the same action. Raises ActionError as `VapEnv.step` does."""
        imagined, imagined_reward, _, _, info = self.imagined.step(action)
        true, reward, terminated, _, true_info = self.oracle.step(action)
        return self._compared(imagined, true, imagined_reward, reward, terminated, info, true_info)

    def close(self) -> None:
        """Close both."""
        self.imagined.close()
        self.oracle.close()

    def _compared(
        self,
        imagined: Observation,
        oracle: Observation,
        imagined_reward: float,
        oracle_reward: float,
        terminated: bool,
        imagined_info: dict[str, Any],
        oracle_info: dict[str, Any],
    ) -> TwinStep:
        frames = self.imagined.render(), self.oracle.render()
        assert frames[0] is not None
        assert frames[1] is not None
        return TwinStep(
            imagined=imagined,
            oracle=oracle,
            divergence=self._divergence(frames[0], frames[1]),
            imagined_reward=imagined_reward,
            oracle_reward=oracle_reward,
            terminated=terminated,
            imagined_info=imagined_info,
            oracle_info=oracle_info,
        )

    def _divergence(self, imagined: UInt8[np.ndarray, "H W 3"], true: UInt8[np.ndarray, "H W 3"]) -> Divergence:
        stage, state, gripper_px, objects_m = self.imagined.stage, self.imagined.state, None, {}
        if stage.judge is not None:
            truth, camera = self.oracle.truth, stage.imagination.camera(state)
            reading = stage.read(state, stage.imagination.look(state).tool_m[:, 0])
            tool_px, _ = camera.project(torch.from_numpy(truth.tool_m).float()[None, None])
            if stage.knows_gripper:
                gripper_px = float((reading.gripper_px[0].cpu() - tool_px[0, 0]).norm())
            seen_m, sure = reading.objects_world_m[0].cpu().double().numpy(), reading.objects_confidence[0]
            for colour, true_m in present_objects(truth.objects_m).items():
                i = COLOURS.index(colour)
                apart_m = float(np.linalg.norm(seen_m[i] - true_m))
                objects_m[colour] = apart_m if float(sure[i]) >= SEEN else float("nan")
        return Divergence(
            psnr_db=psnr(imagined[None], true[None]),
            mae=float(np.abs(imagined.astype(np.int16) - true).mean()),
            gripper_px=gripper_px,
            objects_m=objects_m,
        )
