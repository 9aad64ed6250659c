"""TorchRL on the native vector envs: one EnvBase whose batch is the slots."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from tensordict import TensorDict, TensorDictBase

from vap_gym.errors import VapError, require

require("torchrl", "[rl]", "TorchRLEnv")

from torchrl.data import Bounded, Categorical, Composite, Unbounded  # noqa: E402 (after the check that it is there)
from torchrl.envs import EnvBase  # noqa: E402


class TorchRLEnv(EnvBase):
    """A vector env of ours as a TorchRL env of batch size [B]: one call of the world model per step.

    Observations keep their names (`pixels`, `agent_pos`); a frame alone is `pixels`, a vector alone `observation`.
    `is_success` tells where the task is solved. Slots that ended are reset by TorchRL, those alone.

    Args:
        env: a `VapVectorEnv` or a `ThingVectorEnv`, made with autoreset_mode="Disabled".

    Raises:
        VapError: the env has another autoreset mode; MissingDependencyError: torchrl is not installed.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any]) -> None:
        mode = env.metadata.get("autoreset_mode")
        if mode is not AutoresetMode.DISABLED:
            raise VapError(
                f"TorchRL needs autoreset_mode 'Disabled', got '{getattr(mode, 'value', mode)}'. "
                "Make the env with autoreset_mode='Disabled': TorchRL resets slots itself."
            )
        B = env.num_envs
        super().__init__(device=torch.device("cpu"), batch_size=torch.Size([B]))
        self.env = env
        self._own_seed: int | None = None
        flag = {"n": 2, "dtype": torch.bool, "shape": torch.Size([B, 1])}
        self.observation_spec = Composite(
            {**_specs(named(env.single_observation_space), B), "is_success": Categorical(**flag)},
            shape=torch.Size([B]),
        )
        action = env.single_action_space
        assert isinstance(action, spaces.Box)
        shape = torch.Size([B, *action.shape])
        self.action_spec = Bounded(
            low=torch.from_numpy(action.low).expand(shape).clone(),
            high=torch.from_numpy(action.high).expand(shape).clone(),
            shape=shape, dtype=torch.float32,
        )  # fmt: skip
        self.reward_spec = Unbounded(shape=torch.Size([B, 1]), dtype=torch.float32)
        self.full_done_spec = Composite(
            {name: Categorical(**flag) for name in ("done", "terminated", "truncated")}, shape=torch.Size([B])
        )

    def _reset(self, tensordict: TensorDictBase | None, **kwargs: Any) -> TensorDictBase:
        """Begin in every slot, or in those that `_reset` marks."""
        mask = None if tensordict is None else tensordict.get("_reset", None)
        options = None if mask is None else {"reset_mask": mask.reshape(self.batch_size).cpu().numpy()}
        if options is not None and not options["reset_mask"].any():
            raise VapError("_reset must mark at least one slot, got none. Leave it out to begin in all.")
        observations, _ = self.env.reset(seed=self._own_seed, options=options)
        self._own_seed = None
        no = torch.zeros(*self.batch_size, 1, dtype=torch.bool)
        told = {"is_success": no, "done": no.clone(), "terminated": no.clone(), "truncated": no.clone()}
        return self._gathered(observations, told)

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        observations, rewards, terminated, truncated, infos = self.env.step(tensordict["action"].cpu().numpy())
        success = np.asarray(infos.get("is_success", terminated), bool)
        told = {
            "reward": torch.from_numpy(np.asarray(rewards, np.float32)[:, None].copy()),
            "is_success": torch.from_numpy(success[:, None].copy()),
            "done": torch.from_numpy((terminated | truncated)[:, None].copy()),
            "terminated": torch.from_numpy(terminated[:, None].copy()),
            "truncated": torch.from_numpy(truncated[:, None].copy()),
        }
        return self._gathered(observations, told)

    def _set_seed(self, seed: int | None) -> None:
        """The next reset begins with this seed; slot i has seed + i."""
        self._own_seed = seed

    def _gathered(self, observations: Any, told: dict[str, torch.Tensor]) -> TensorDictBase:
        shown = observations if isinstance(observations, dict) else {self._alone: observations}
        return TensorDict({**_tensors(shown), **told}, batch_size=self.batch_size, device=self.device)

    @property
    def _alone(self) -> str:
        return next(iter(named(self.env.single_observation_space).spaces))

    def close(self, *, raise_if_closed: bool = True) -> None:
        """Close the env."""
        super().close(raise_if_closed=raise_if_closed)
        self.env.close()


def named(space: spaces.Space[Any]) -> spaces.Dict:
    """Return an observation's space as a dict: a frame alone is `pixels`, a vector alone `observation`."""
    if isinstance(space, spaces.Dict):
        return space
    assert isinstance(space, spaces.Box)
    return spaces.Dict({"pixels" if space.dtype == np.uint8 else "observation": space})


def _specs(space: spaces.Dict, slots: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, part in space.spaces.items():
        if isinstance(part, spaces.Dict):
            found[key] = Composite(_specs(part, slots), shape=torch.Size([slots]))
        else:
            assert isinstance(part, spaces.Box)
            kind = torch.from_numpy(np.zeros(1, part.dtype)).dtype
            found[key] = Unbounded(shape=torch.Size([slots, *part.shape]), dtype=kind)
    return found


def _tensors(table: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _tensors(part) if isinstance(part, dict) else torch.from_numpy(np.ascontiguousarray(part))
        for key, part in table.items()
    }
