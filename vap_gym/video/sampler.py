"""Samplers: CogVideoX's own diffusion for "v" models, a flow of one to four evaluations for "x0" models."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from diffusers import CogVideoXDDIMScheduler, CogVideoXDPMScheduler
from diffusers.utils.torch_utils import randn_tensor
from jaxtyping import Float, Int64
from torch import Tensor

from vap_gym.errors import VapError
from vap_gym.video.network import VideoNetwork
from vap_gym.world.noise import counter_noise

Scheduler: TypeAlias = CogVideoXDDIMScheduler | CogVideoXDPMScheduler


@dataclass(frozen=True, kw_only=True, eq=False)
class Given:
    """Conditions of B clips, ready for the network; None: not given. See `VideoNetwork.forward`."""

    action: Float[Tensor, "B F2 A h w"] | None = None
    text: Float[Tensor, "B L E"] | Int64[Tensor, "B L"] | None = None
    states: Float[Tensor, "B T S"] | None = None
    interval: Float[Tensor, " B"] | None = None

    def twice(self, text: Float[Tensor, "B L E"]) -> Given:
        """The same conditions for two batches in one, the first with another text."""
        mine = (
            self.action,
            torch.cat([text, self.text]) if self.text is not None else None,
            self.states,
            self.interval,
        )
        action, both, states, interval = mine
        return Given(
            action=None if action is None else torch.cat([action] * 2),
            text=both,
            states=None if states is None else torch.cat([states] * 2),
            interval=None if interval is None else torch.cat([interval] * 2),
        )

    def of_network(self, network: VideoNetwork, noisy: Tensor, image: Tensor, timestep: Tensor) -> Tensor:
        """One evaluation of the network under these conditions."""
        output: Tensor = network(
            noisy, image, timestep, action=self.action, text=self.text, states=self.states, interval=self.interval
        )
        return output


def padded(frames: int, group: int) -> int:
    """How many latent frames are sampled for a clip of `frames`: whole groups (CogVideoX 1.5); the first are cut."""
    return -(-frames // group) * group


@torch.no_grad()
def sample_v(
    network: VideoNetwork,
    scheduler: Scheduler,
    first: Float[Tensor, "B C h w"],
    frames: int,
    given: Given,
    *,
    negative_text: Float[Tensor, "B L E"] | None = None,
    steps: int = 50,
    guidance: float = 6.0,
    dynamic_guidance: bool = False,
    generator: torch.Generator | None = None,
    noise: Float[Tensor, "B F C h w"] | None = None,
) -> Float[Tensor, "B F2 C h w"]:
    """Diffusion as diffusers' CogVideoXImageToVideoPipeline does it, number for number, with conditions of ours beside.

    Args:
        network, scheduler: a "v" model and what its noise levels are.
        first: latents of the first frame.
        frames: F, latent frames of the clip.
        given: conditions; guidance pushes away from `negative_text` under the same prompts and states.
        negative_text: text embeddings of what is not wanted; only used where guidance is above 1.
        steps: evaluations (two in one batch with guidance).
        guidance: 1 for none; its share grows over the steps with `dynamic_guidance`.
        generator: draws the noise, and the scheduler's.
        noise: to begin with, of `padded` frames; drawn where it is None.
    """
    group = network.settings.group
    total = padded(frames, group)
    image = network.spread(first, total)
    latents = randn_tensor(image.shape, generator, image.device, image.dtype) if noise is None else noise
    if latents.shape != image.shape:
        raise VapError(
            f"noise must have shape {tuple(image.shape)} (with the frames that fill up groups of {group}), "
            f"got {tuple(latents.shape)}."
        )
    latents = latents * scheduler.init_noise_sigma
    scheduler.set_timesteps(steps, device=first.device)
    guided = guidance > 1
    if guided:
        if negative_text is None or given.text is None:
            raise VapError(f"guidance={guidance} needs text and negative_text. Give both, or guidance=1.")
        given, image = given.twice(negative_text), torch.cat([image] * 2)
    scale, before = guidance, None
    for i, t in enumerate(scheduler.timesteps):
        noisy = scheduler.scale_model_input(torch.cat([latents] * 2) if guided else latents, t)
        output = given.of_network(network, noisy, image, t.expand(len(noisy)).float()).float()
        if dynamic_guidance:  # the pipeline's own formula
            share = (1 - math.cos(math.pi * ((steps - t.item()) / steps) ** 5.0)) / 2
            scale = 1 + guidance * share
        if guided:
            without, with_text = output.chunk(2)
            output = without + scale * (with_text - without)
        if isinstance(scheduler, CogVideoXDPMScheduler):
            last = scheduler.timesteps[i - 1] if i > 0 else None
            moved, before = scheduler.step(output, before, t, last, latents, generator=generator, return_dict=False)
        else:
            moved = scheduler.step(output, t, latents, generator=generator, return_dict=False)[0]
        latents = moved.to(first.dtype)
    return latents[:, total - frames :]  # type: ignore[no-any-return]


def flow_times(evaluations: int) -> tuple[float, ...]:
    """Noise levels of the evaluations, 1 (nothing but noise) first: 1; 1, ½; 1, ⅔, ⅓; …"""
    if not 1 <= evaluations <= 64:
        raise VapError(f"A flow has 1 to 64 evaluations, got {evaluations}. One to four are what it is made for.")
    return tuple(1.0 - i / evaluations for i in range(evaluations))


def slot_noise(seed: Int64[Tensor, " B"], shape: tuple[int, ...], *, clip: int = 0) -> Callable[[int], Tensor]:
    """Return what draws the noise (B, *shape) of each evaluation: each clip's own, whoever is beside it."""
    step = torch.full_like(seed, clip)
    return lambda evaluation: counter_noise(seed, step, evaluation, shape)


@torch.no_grad()
def sample_x0(
    network: VideoNetwork,
    first: Float[Tensor, "B C h w"],
    frames: int,
    given: Given,
    *,
    noise: Callable[[int], Tensor],
    evaluations: int = 2,
    guidance: float = 1.0,
    keep_first: bool = True,
) -> Float[Tensor, "B F C h w"]:
    """Flow of an "x0" model: predict the clean clip, put noise of the next lower level on it, predict again.

    Args:
        network: its forward gives clean latents from (1 − t)·x0 + t·noise_scale·n at timestep 1000·t.
        first, frames, given: as in `sample_v`.
        noise: evaluation number → standard normal numbers (B, F, C, h, w), see `slot_noise`.
        evaluations: of the network, see `flow_times`; twice as many with guidance.
        guidance: above 1, predictions are pushed away from those without prompts, states and text.
        keep_first: the first frame is the given one, in what the network sees and in what is returned.
    """
    image = network.spread(first, frames)
    nothing = None if given.states is None else torch.zeros_like(given.states)  # as training drops states
    dropped = replace(given, action=None, text=None, states=nothing)
    clean = image  # at t = 1 no share of it is left
    for i, t in enumerate(flow_times(evaluations)):
        noisy = (1 - t) * clean + t * network.settings.noise_scale * noise(i).to(image)
        level = noisy.new_full((len(noisy),), 1000.0 * t)
        clean = given.of_network(network, noisy, image, level).to(image.dtype)
        if guidance > 1:
            without = dropped.of_network(network, noisy, image, level)
            clean = without + guidance * (clean - without)
        if keep_first:
            clean = torch.cat([first[:, None].to(clean.dtype), clean[:, 1:]], dim=1)
    return clean
