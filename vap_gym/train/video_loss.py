"""The objectives of the video model: noise put on latents, and the weighted, normalised error of what is predicted.

`prediction = "v"`: CogVideoX's diffusion, zero terminal SNR, error of v (Salimans & Ho 2022, arXiv 2202.00512).
`prediction = "x0"`: flow matching, (1 − t)·latents + t·noise, error of the clean latents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from diffusers import CogVideoXDDIMScheduler
from jaxtyping import Float
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from vap_gym.errors import unknown_name
from vap_gym.video.presets import VideoConfig
from vap_gym.world.codec import charbonnier

FORCINGS = ("none", "frames", "rollout")
STEPS = 1000  # of the diffusion; timesteps are 0 to this


@dataclass(frozen=True, kw_only=True, eq=False)
class Inputs:
    """A batch on the device, as objectives take it. `conditions` are keyword arguments of `VideoNetwork.forward`."""

    latents: Float[Tensor, "B F C h w"]
    image: Float[Tensor, "B F C h w"]
    weights: Float[Tensor, "B F h w"]
    conditions: dict[str, Any]


@runtime_checkable
class Noise(Protocol):
    """How noise is put on latents, and what a network is to say of the result."""

    def levels(self, shape: tuple[int, ...], rng: torch.Generator) -> Float[Tensor, "..."]:
        """Draw timesteps, 0 to 1000."""
        ...

    def mixed(
        self, latents: Float[Tensor, "B F C h w"], noise: Float[Tensor, "B F C h w"], timestep: Float[Tensor, "B F"]
    ) -> Float[Tensor, "B F C h w"]:
        """Latents with noise of these timesteps."""
        ...

    def target(
        self, latents: Float[Tensor, "B F C h w"], noise: Float[Tensor, "B F C h w"], timestep: Float[Tensor, "B F"]
    ) -> Float[Tensor, "B F C h w"]:
        """What the network is to predict."""
        ...

    def error(self, predicted: Tensor, target: Tensor) -> Float[Tensor, "B F C h w"]:
        """The error of every number."""
        ...


class FlowNoise:
    """Flow matching: nothing but noise in a share of samples (where sampling begins), else a logit-normal level."""

    def __init__(self, *, scale: float = 1.0, pure_noise: float = 0.5) -> None:
        self.scale, self.pure_noise = scale, pure_noise

    def levels(self, shape: tuple[int, ...], rng: torch.Generator) -> Float[Tensor, "..."]:
        """See `Noise`."""
        level = torch.sigmoid(torch.randn(shape, generator=rng))
        pure = torch.rand(shape, generator=rng) < self.pure_noise
        return STEPS * torch.where(pure, torch.ones(shape), level)

    def mixed(self, latents: Tensor, noise: Tensor, timestep: Float[Tensor, "B F"]) -> Tensor:
        """See `Noise`."""
        t = (timestep / STEPS)[..., None, None, None]
        return (1 - t) * latents + t * self.scale * noise

    def target(self, latents: Tensor, noise: Tensor, timestep: Float[Tensor, "B F"]) -> Tensor:
        """See `Noise`."""
        return latents

    def error(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Squared plus absolute error."""
        off = predicted - target
        return off.square() + 0.3 * charbonnier(off)


class VNoise:
    """CogVideoX's diffusion at all of its 1000 timesteps, by diffusers' own scheduler."""

    def __init__(self, *, snr_shift_scale: float = 1.0) -> None:
        scheduler = v_scheduler(snr_shift_scale=snr_shift_scale)
        self.kept: Float[Tensor, " steps"] = scheduler.alphas_cumprod.float()

    def levels(self, shape: tuple[int, ...], rng: torch.Generator) -> Float[Tensor, "..."]:
        """See `Noise`."""
        return torch.randint(STEPS, shape, generator=rng).float()

    def mixed(self, latents: Tensor, noise: Tensor, timestep: Float[Tensor, "B F"]) -> Tensor:
        """See `Noise`."""
        kept = self._kept(timestep)
        return kept.sqrt() * latents + (1 - kept).sqrt() * noise

    def target(self, latents: Tensor, noise: Tensor, timestep: Float[Tensor, "B F"]) -> Tensor:
        """See `Noise`."""
        kept = self._kept(timestep)
        return kept.sqrt() * noise - (1 - kept).sqrt() * latents

    def error(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Squared error: that of the clean latents over the share of noise, as CogVideoX was trained."""
        return (predicted - target).square()

    def _kept(self, timestep: Float[Tensor, "B F"]) -> Float[Tensor, "B F 1 1 1"]:
        return self.kept.to(timestep.device)[timestep.long()][..., None, None, None]


def noise_of(settings: VideoConfig, *, pure_noise: float, snr_shift_scale: float) -> Noise:
    """The noise that goes with a network's prediction."""
    if settings.prediction == "x0":
        return FlowNoise(scale=settings.noise_scale, pure_noise=pure_noise)
    return VNoise(snr_shift_scale=snr_shift_scale)


def weighted(error: Float[Tensor, "B F C h w"], weights: Float[Tensor, "B F h w"]) -> Tensor:
    """Mean error under weights, over the mean weight: amplified around the gripper, and of the same size (Sec. 3.3)."""
    return (error * weights[:, :, None]).mean() / weights.mean().clamp(min=1e-3)


def clip_loss(network: Any, given: Inputs, noise: Noise, rng: torch.Generator) -> Tensor:
    """The loss of whole clips, seen at once; one noise level a clip. `network` may be wrapped (FSDP, autocast)."""
    B, F = given.latents.shape[:2]
    timestep = noise.levels((B,), rng).to(given.latents.device)
    drawn = torch.randn(given.latents.shape, generator=rng).to(given.latents)
    of_frames = timestep[:, None].expand(B, F)
    noisy = noise.mixed(given.latents, drawn, of_frames)
    predicted = network(noisy, given.image, timestep, **given.conditions).float()
    return weighted(noise.error(predicted, noise.target(given.latents, drawn, of_frames)), given.weights)


@runtime_checkable
class Objective(Protocol):
    """A loss of a batch; draws from `rng` alone."""

    def __call__(self, network: Any, given: Inputs, noise: Noise, rng: torch.Generator) -> Tensor:
        """Return the loss, a scalar."""
        ...


def objective(forcing: str, *, pure_noise: float, snr_shift_scale: float = 1.0) -> Objective:
    """The loss for a way of forcing: "none" (whole clips), or, for the causal variant, "frames" (a noise level for
    every frame, after a clean past) and "rollout" (that, and the model's own past)."""
    if forcing not in FORCINGS:
        raise unknown_name("forcing", forcing, FORCINGS)
    return clip_loss if forcing == "none" else Forced(forcing, pure_noise=pure_noise, snr_shift_scale=snr_shift_scale)


class Forced:
    """The objective of the causal variant, see `video_forcing`. With "rollout" DDP must not be around the network."""

    def __init__(self, forcing: str, *, pure_noise: float, snr_shift_scale: float = 1.0) -> None:
        self.forcing, self.pure_noise, self.snr_shift_scale = forcing, pure_noise, snr_shift_scale

    def __call__(self, network: Any, given: Inputs, noise: Noise, rng: torch.Generator) -> Tensor:
        """See `Objective`."""
        from vap_gym.train.video_forcing import forcing_loss, rollout_loss
        from vap_gym.video.stream import Stream

        def compare(predicted: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
            error = noise.error(predicted.float(), target.float())
            return weighted(error, torch.ones_like(error[:, :, 0]) if weight is None else weight[:, :, 0])

        said: dict[str, Any] = {name: given.conditions.get(name) for name in ("prompts", "text", "states", "interval")}
        shared: dict[str, Any] = {"rng": rng, "weight": given.weights[:, :, None], "compare": compare}
        noised: dict[str, Any] = {"pure_noise": self.pure_noise, "snr_shift_scale": self.snr_shift_scale}
        inner = network.module if isinstance(network, DistributedDataParallel) else network
        value = forcing_loss(inner, given.latents, **noised, **said, **shared, wrapped=network)
        if self.forcing == "frames":
            return value
        stream = Stream(network, snr_shift_scale=self.snr_shift_scale)
        own = rollout_loss(stream, given.latents, said["prompts"], text=said["text"], states=said["states"], **shared)
        return 0.5 * (value + own)


def without_some(given: Inputs, drop: dict[str, Tensor], *, no_text: Tensor | None) -> Inputs:
    """Leave conditions out of some clips, as sampling with guidance does: black prompts, no image, no states, no text.

    Args:
        no_text: the empty instruction, (1, L) or (1, L, E).
        drop: for "prompt", "image" and "text" which clips, (B,) bool.
    """
    said = dict(given.conditions)
    image = torch.where(drop["image"][:, None, None, None, None], 0.0, given.image)
    if (prompts := said.get("prompts")) is not None:
        said["prompts"] = torch.where(drop["prompt"][:, None, None, None, None], -1.0, prompts)
    if (states := said.get("states")) is not None:
        said["states"] = torch.where(drop["prompt"][:, None, None], 0.0, states)
    if (text := said.get("text")) is not None:
        assert no_text is not None
        said["text"] = torch.where(drop["text"].reshape(-1, *[1] * (text.ndim - 1)), no_text.to(text), text)
    return Inputs(latents=given.latents, image=image, weights=given.weights, conditions=said)


def v_scheduler(*, snr_shift_scale: float = 1.0) -> CogVideoXDDIMScheduler:
    """CogVideoX's noise levels: zero terminal SNR, v-prediction."""
    return CogVideoXDDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        snr_shift_scale=snr_shift_scale,
        timestep_spacing="trailing",
    )
