"""Losses of the causal video model: diffusion forcing, teacher forcing, and learning on its own rollouts.

Pure functions of a network, clean latents and conditions. Diffusion forcing (Chen et al. 2024, arXiv 2407.01392) gives
every frame of a clip a noise level of its own; teacher forcing shows noisy frames a clean past; on own rollouts (self
forcing: Huang et al. 2025, arXiv 2506.08009) the past is what the model itself made, as in use, with kept keys.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from vap_gym.errors import VapError
from vap_gym.video.causal import CausalVideoNetwork
from vap_gym.video.passes import teacher_mask
from vap_gym.video.stream import Frame, Stream, clean_of, kept_of_clean

Compare = Callable[[Tensor, Tensor, Tensor | None], Tensor]
Text = Float[Tensor, "B L E"] | Int64[Tensor, "B L"] | None


def weighted_error(predicted: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    """Mean squared error, weighted and divided by the mean weight (Sec. 3.3)."""
    error = (predicted.float() - target.float()).square()
    if weight is None:
        return error.mean()
    return (error * weight).mean() / weight.mean().clamp(min=1e-3)


def forcing_loss(
    network: CausalVideoNetwork,
    clean: Float[Tensor, "B F C h w"],
    *,
    rng: torch.Generator,
    prompts: Float[Tensor, "B T P H W"] | None = None,
    action: Float[Tensor, "B F A h w"] | None = None,
    text: Text = None,
    states: Float[Tensor, "B T S"] | None = None,
    interval: Float[Tensor, " B"] | None = None,
    weight: Float[Tensor, "B F 1 h w"] | None = None,
    pure_noise: float = 0.4,
    teacher: bool = True,
    past_noise: float = 0.0,
    control: str = "once",
    snr_shift_scale: float = 1.0,
    compare: Compare = weighted_error,
    wrapped: torch.nn.Module | None = None,
) -> Tensor:
    """Return the loss of predicting frames 1, 2, … of a clip, each with a noise level of its own.

    Args:
        network: the causal network; it predicts clean latents or v, as its settings say.
        wrapped: the network as it is called where something is around it: DDP sums gradients of what went through it.
        clean: latents; frame 0 is the anchor.
        rng: of levels and noise; on the CPU.
        prompts, action, text, states, interval: conditions, see `CausalVideoNetwork.forward`.
        weight: of the loss, e.g. larger around gripper and objects.
        pure_noise: share of frames that are nothing but noise, as a frame's first evaluation is; the other levels are
            logit-normal.
        teacher: a noisy frame sees clean frames before it (twice the tokens); else the noisy ones (diffusion forcing).
        past_noise: with `teacher`, the largest noise level of the past: a past that is not quite right, as in use.
        control: "once" or "each", as the stream will use it.
        snr_shift_scale: of a "v" model's noise, as the stream will use it.
        compare: of predicted and true clean latents (or v) and weight.
    """
    B, F = clean.shape[:2]
    if F < 2:
        raise VapError(f"A clip must have at least 2 latent frames, the anchor and one to predict, got {F}.")
    level = torch.sigmoid(torch.randn(B, F - 1, generator=rng))
    level = torch.where(torch.rand(B, F - 1, generator=rng) < pure_noise, 1.0, level).to(clean)
    noise = torch.randn(clean[:, 1:].shape, generator=rng).to(clean)
    noisy, times, target = _noised(network, clean[:, 1:], level, noise, snr_shift_scale)
    places = list(range(F))
    if teacher:
        dull = past_noise * torch.rand(B, F - 1, generator=rng).to(clean)
        other = torch.randn(clean[:, 1:].shape, generator=rng).to(clean)
        past, past_times, _ = _noised(network, clean[:, 1:], dull, other, snr_shift_scale)
        if not past_noise:
            past, past_times = clean[:, 1:], torch.zeros_like(past_times)
        noisy, times = torch.cat([past, noisy], 1), torch.cat([past_times, times], 1)
        places += places[1:]
    if action is not None:
        action = action[:, places]
    predicted = (network if wrapped is None else wrapped)(
        torch.cat([clean[:, :1], noisy], 1),
        network.spread(clean[:, 0], len(places)),
        torch.cat([torch.zeros_like(times[:, :1]), times], 1),
        prompts=prompts if action is None else None,  # encoded inside, where DDP sees it
        action=action,
        text=text,
        states=states,
        interval=interval,
        sees=teacher_mask(F) if teacher else None,
        positions=places,
        control=control,
    )[:, 1 - F :]
    return compare(predicted, target, None if weight is None else weight[:, 1:])


def _noised(
    network: CausalVideoNetwork, clean: Tensor, level: Tensor, noise: Tensor, snr_shift_scale: float
) -> tuple[Tensor, Float[Tensor, "B F"], Tensor]:
    """Return noisy latents at levels (B, F) in [0, 1], the time steps, and what the network should say of them."""
    settings = network.settings
    wide = level[:, :, None, None, None]
    if settings.prediction == "x0":
        return (1 - wide) * clean + wide * settings.noise_scale * noise, 1000.0 * level, clean
    step = (999.0 * level).round().long()
    share = kept_of_clean(snr_shift_scale).to(clean)[step][:, :, None, None, None]
    signal, spread = share.sqrt(), (1 - share).sqrt()
    return signal * clean + spread * noise, step.float(), signal * noise - spread * clean


def rollout_loss(
    stream: Stream,
    clean: Float[Tensor, "B F C h w"],
    prompts: Float[Tensor, "B T P H W"] | None,
    *,
    rng: torch.Generator,
    context: int = 0,
    evaluations: int = 1,
    text: Text = None,
    states: Float[Tensor, "B T S"] | None = None,
    weight: Float[Tensor, "B F 1 h w"] | None = None,
    compare: Compare = weighted_error,
) -> Tensor:
    """Return the loss of the model's own rollout from the anchor: frames come one by one, as in use.

    The gradient goes through each frame's last evaluation; kept keys, the prefix among them, are taken as given, so
    memory does not grow with the length. Text is learned by `forcing_loss` only: train on both.

    Args:
        stream: of the network that is trained.
        clean: true latents; frame 0 is the anchor.
        prompts: of T = 1 + time_stride·(F − 1) frames; `states` likewise.
        rng: of the noise; on the CPU.
        context: so many true frames are shown after the anchor before the model goes on alone.
        evaluations: per frame, 1 to 4.
        text, weight, compare: as for `forcing_loss`; always of clean latents.
    """
    settings, count = stream.settings, clean.shape[1]
    if not 0 <= context < count - 1:
        raise VapError(f"context must leave at least one of {count - 1} frames to predict, got {context}. Try 0.")
    with torch.no_grad():
        memory = stream.begin(
            clean[:, 0],
            None if prompts is None else prompts[:, :1],
            text=text,
            states=None if states is None else states[:, :1],
        )
    losses = []
    for f in range(1, count):
        stop = settings.frames(f + 1)
        told, said = (None if x is None else x[:, stop - settings.time_stride : stop] for x in (prompts, states))
        frame = Frame(stream, memory, told, said)
        latents = clean[:, f]
        if f > context:
            latents = _made(frame, stream, clean[:, f], evaluations, rng)
            losses.append(
                compare(latents[:, None], clean[:, f : f + 1], None if weight is None else weight[:, f : f + 1])
            )
        with torch.no_grad():
            memory = {name: value.detach() for name, value in frame.finished(latents.detach()).items()}
    return torch.stack(losses).mean()


def _made(frame: Frame, stream: Stream, like: Tensor, evaluations: int, rng: torch.Generator) -> Tensor:
    """A frame as `Stream.advance` makes it; all but the last evaluation's latents are taken as given."""
    settings, latents = stream.settings, like
    for i, level in enumerate(stream.levels(evaluations)):
        noisy = level.noise * torch.randn(like.shape, generator=rng).to(like)
        noisy = noisy if i == 0 else level.signal * latents.detach() + noisy
        latents = clean_of(settings.prediction, frame.predict(noisy, level.timestep), noisy, level)
    return latents
