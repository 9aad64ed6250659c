"""How true a video model's clips are on held-out episodes, while it trains: PSNR and a strip of pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from vap_gym.train.run import seeded
from vap_gym.train.video_data import VideoSet, batch_of, frames_of
from vap_gym.train.video_loss import Inputs, v_scheduler
from vap_gym.video.causal import CausalVideoNetwork
from vap_gym.video.clips import ClipCodec, decode_clip
from vap_gym.video.clips import frames_of as as_frames
from vap_gym.video.network import VideoNetwork
from vap_gym.video.sampler import Given, sample_v, sample_x0, slot_noise
from vap_gym.video.stream import Stream
from vap_gym.world.noise import counter_noise

CHUNK = 4  # clips imagined at once
SHOWN = 6  # clips and moments of the strip


@torch.no_grad()
def score(
    network: VideoNetwork,
    codec: ClipCodec,
    held: Sequence[VideoSet],
    inputs: Callable[..., Inputs],
    *,
    clips: int,
    evaluations: int,
    snr_shift_scale: float = 1.0,
    picture: Path | None = None,
) -> dict[str, float]:
    """Imagine held-out clips, the same at every call, from their first frames and conditions.

    Returns PSNR [dB] over all frames but the first, of all sets and of each: imagined, beside the first frame standing
    still (`psnr_frozen`) and the true latents decoded (`psnr_codec`); `gap_closed` is the share of the way from frozen
    to codec. Writes a strip: for each clip the truth, and below it what was imagined.

    Args:
        inputs: makes a batch what the network takes.
        clips: of each set.
        snr_shift_scale: of the noise that a "v" model was trained with.
    """
    found: dict[str, list[list[float]]] = {}
    rows: list[np.ndarray] = []
    for number, one in enumerate(held):
        places = [one.plan(i) for i in range(clips)]
        truth = np.stack([one.source.frames(p.episode)[frames_of(p, one.data.frames)] for p in places])
        for begin in range(0, clips, CHUNK):
            part = list(range(begin, min(begin + CHUNK, clips)))
            given = inputs(batch_of(held, [(number, i, places[i]) for i in part]))
            latents = _imagined(network, given, part, evaluations, snr_shift_scale)
            shown = [as_frames(decode_clip(codec, x.float())).cpu().numpy() for x in (latents, given.latents)]
            true = truth[part]
            kinds = {"": shown[0], "_frozen": np.broadcast_to(true[:, :1], true.shape), "_codec": shown[1]}
            for kind, frames in kinds.items():
                found.setdefault(kind, [[] for _ in held])[number] += _psnr(frames[:, 1:], true[:, 1:])
            mine = max(1, SHOWN // len(held))
            for k in range(min(len(part), mine - begin)):
                at = np.linspace(0, true.shape[1] - 1, SHOWN).round().astype(int)
                rows += [np.concatenate(list(true[k][at]), 1), np.concatenate(list(shown[0][k][at]), 1)]
    scores = {f"psnr{kind}": float(np.mean(np.concatenate(sets))) for kind, sets in found.items()}
    span = scores["psnr_codec"] - scores["psnr_frozen"]
    scores["gap_closed"] = (scores["psnr"] - scores["psnr_frozen"]) / span if span > 0 else float("nan")
    if len(held) > 1:
        for number, one in enumerate(held):
            scores[f"psnr_{one.source.episodes.root.name}"] = float(np.mean(found[""][number]))
    if picture is not None and rows:
        from PIL import Image

        temporary = picture.with_name(f".{picture.stem}.tmp.png")
        Image.fromarray(np.concatenate(rows, 0)).save(temporary)
        temporary.replace(picture)
    return scores


def _imagined(
    network: VideoNetwork, given: Inputs, part: list[int], evaluations: int, snr_shift_scale: float
) -> Float[Tensor, "B F C h w"]:
    said, latents = given.conditions, given.latents
    if isinstance(network, CausalVideoNetwork) and bool((said.get("interval", torch.ones(1)) == 1).all()):
        return _streamed(network, given, part, evaluations, snr_shift_scale)
    prompts = said.get("prompts")
    conditions = Given(
        action=None if prompts is None else network.encode_prompts(prompts),
        text=said.get("text"),
        states=said.get("states"),
        interval=said.get("interval"),
    )
    first, frames = latents[:, 0], latents.shape[1]
    if network.settings.prediction == "x0":
        drawn = slot_noise(torch.tensor(part), tuple(latents.shape[1:]))
        return sample_x0(
            network, first, frames, conditions, noise=lambda i: drawn(i).to(latents), evaluations=evaluations
        )
    scheduler = v_scheduler(snr_shift_scale=snr_shift_scale)
    noise = torch.randn(latents.shape, generator=seeded(part[0])).to(latents)
    made: Tensor = sample_v(
        network, scheduler, first, frames, conditions, steps=evaluations, guidance=1.0, noise=noise,
        generator=seeded(part[0], device=latents.device),
    )  # fmt: skip
    return made


def _streamed(
    network: CausalVideoNetwork, given: Inputs, part: list[int], evaluations: int, snr_shift_scale: float
) -> Float[Tensor, "B F C h w"]:
    """Clips as a stream makes them: frame by frame, each after those that it made itself."""
    said, latents = given.conditions, given.latents
    stream = Stream(network, snr_shift_scale=snr_shift_scale)
    seed, shape = torch.tensor(part, device=latents.device), tuple(latents.shape[2:])
    prompts, states, made = said.get("prompts"), said.get("states"), [latents[:, 0]]

    def of(told: Tensor | None, first: int, last: int) -> Tensor | None:
        return None if told is None else told[:, first:last]

    memory = stream.begin(latents[:, 0], of(prompts, 0, 1), text=said.get("text"), states=of(states, 0, 1))
    for f in range(1, latents.shape[1]):
        first, last = network.settings.frames(f), network.settings.frames(f + 1)
        step = torch.full_like(seed, f - 1)

        def noise(evaluation: int, step: Tensor = step) -> Tensor:
            return counter_noise(seed, step, evaluation, shape).to(latents)

        memory, newest = stream.advance(
            memory, of(prompts, first, last), noise, evaluations=evaluations, states=of(states, first, last)
        )
        made.append(newest.float())
    return torch.stack(made, 1)


def _psnr(frames: UInt8[np.ndarray, "B T H W 3"], truth: UInt8[np.ndarray, "B T H W 3"]) -> list[float]:
    """PSNR of each clip: the mean over its frames."""
    error = np.square((frames.astype(np.float32) - truth) / 255).mean((2, 3, 4))
    values: list[float] = (-10 * np.log10(np.maximum(error, 1e-4))).mean(1).tolist()
    return values
