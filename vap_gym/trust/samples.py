"""Samples: how far roll-outs of one imagination that differ by their noise have come apart."""

from __future__ import annotations

import torch
from jaxtyping import Float, UInt8
from tensordict import TensorDict
from torch import Tensor

from vap_gym.errors import VapError
from vap_gym.interfaces import World
from vap_gym.rig import Motion

PREFIX = "sample_"
_MIX = 0x5851F42D4C957F2D  # an odd number: seeds of samples lie far apart


class SampleSpread:
    """Imagines every slot n times side by side, with other noise each, and tells how much the pictures differ.

    The further samples are whole rollouts of their own, kept in the state under `sample_*` (B, n − 1, …): what they
    have come to disagree on over many steps shows, not only what one step leaves open. Costs n − 1 further predictions
    and decoded frames a step.

    Args:
        world: the world model.
        samples: n ≥ 2, the env's own imagination among them.
    """

    def __init__(self, world: World, samples: int) -> None:
        if samples < 2:
            raise VapError(f"trust_samples must be 0 (off) or at least 2, got {samples}. Try 4.")
        self.world = world
        self.others = samples - 1

    def start(self, state: TensorDict) -> None:
        """Add the further samples to a state that has just begun, all of them at its own beginning."""
        B, n = len(state), self.others
        own = [key for key in state.keys() if key.startswith("world_")]  # noqa: SIM118 (not a mapping)
        for key in own:
            value = state[key]
            state[PREFIX + key.removeprefix("world_")] = value[:, None].expand(B, n, *value.shape[1:]).clone()
        number = torch.arange(1, n + 1, device=state["world_seed"].device)
        state[PREFIX + "seed"] = state["world_seed"][:, None] ^ (number * _MIX)

    def step(
        self,
        state: TensorDict,
        motion: Motion,
        frames: UInt8[Tensor, "B H W 3"],
    ) -> Float[Tensor, " B"]:
        """Move the further samples of `state` on by one step, `motion`; return the spread with `frames`, the env's own.

        The spread is the standard deviation over the n samples in grey levels (0 to 255), mean over pixels and colours.
        """
        B, n = len(state), self.others
        keys = [key for key in state.keys() if key.startswith(PREFIX)]  # noqa: SIM118
        flat = TensorDict({k.removeprefix(PREFIX): state[k].flatten(0, 1) for k in keys}, batch_size=[B * n])
        told = (motion.prompts, motion.views, motion.states)
        prompts, views, states = (x.to(flat["seed"].device).repeat_interleave(n, 0) for x in told)
        moved, pictures = self.world.predict(flat, prompts, views=views, states=states)
        assert pictures is not None
        for key, value in moved.items():
            state[PREFIX + key] = value.unflatten(0, (B, n))
        every = torch.cat([frames[:, None].to(pictures.device), pictures.reshape(B, n, *frames.shape[1:])], dim=1)
        return every.float().std(dim=1, correction=0).mean((1, 2, 3)).cpu()
