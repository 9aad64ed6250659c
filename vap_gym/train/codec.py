"""Train the frame codec: reconstruct oracle frames, with the loss weighted around gripper and objects."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from vap_gym.errors import CardError
from vap_gym.train.fit import fit
from vap_gym.train.frames import label_weight, load_frames
from vap_gym.train.run import Run, Schedule, autocast, initialised_with, load_recipe, seeded
from vap_gym.world.codec import FrameCodec, codec_loss, to_frames, to_pictures


@dataclass(frozen=True, kw_only=True)
class CodecRecipe:
    """Settings of a codec training; a TOML file with these keys."""

    data: list[str]
    model: dict[str, Any]
    steps: int
    batch_size: int = 16
    learning_rate: float = 2e-3
    every: int = 3
    view: str = "front"
    gripper_weight: float = 2.0
    object_weight: float = 4.0
    recolour: float = 0.25
    latent_noise: float = 0.03
    decoder: str = (
        ""  # folder of a codec whose decoder is kept: only an encoder is trained, towards that codec's latents
    )
    latent_weight: float = 20.0  # of their error, where a decoder is kept
    ema_decay: float = 0.998
    held_out: int = 256
    log_every: int = 50
    save_every: int = 500
    seed: int = 0


def main(
    recipe: Path, *, out: Path = Path("runs/codec"), resume: bool = False, device: str = "cpu", threads: int = 0
) -> dict[str, Any]:
    """Train a frame codec.

    Args:
        recipe: a TOML file, or the name of a shipped recipe, e.g. tiny_codec.
        out: folder of the run: log, curves, samples, state, and the model in diffusers' layout when done.
        resume: go on with a run that was stopped; the result is the same as without the stop.
        device: cpu or cuda.
        threads: CPU threads; 0 leaves torch's choice.
    """
    settings = load_recipe(CodecRecipe, recipe)
    if threads:
        torch.set_num_threads(threads)
    run, place = Run(out, resume=resume), torch.device(device)
    pictures, labels = load_frames([Path(p) for p in settings.data], every=settings.every, view=settings.view)
    order = torch.randperm(len(pictures), generator=seeded(settings.seed))
    train, held = order[settings.held_out :], order[: settings.held_out]
    with initialised_with(settings.seed):
        model = FrameCodec(**settings.model).to(place, memory_format=torch.channels_last)
    teacher = _kept_decoder(model, settings.decoder, place) if settings.decoder else None
    rng = seeded(settings.seed + 1)

    def loss(_: int) -> Tensor:
        pick = train[torch.randint(len(train), (settings.batch_size,), generator=rng)]
        batch = recoloured(to_pictures(pictures[pick]), settings.recolour, rng).to(place)
        weight = label_weight(labels[pick], gripper=settings.gripper_weight, objects=settings.object_weight).to(place)
        noise = settings.latent_noise * torch.randn(len(pick), 1, 1, 1, generator=rng).abs().to(place)
        with autocast(place):
            latents = model.encode(batch)
            rebuilt = model.decode(latents + noise * torch.randn(latents.shape, generator=rng).to(place))
        off = codec_loss(rebuilt, batch, weight)
        if teacher is not None:
            with torch.no_grad(), autocast(place):
                wanted = teacher.encode(batch)
            off = off + settings.latent_weight * (latents.float() - wanted.float()).square().mean()
        return off

    return fit(
        run,
        model,
        settings,
        name="codec",
        loss=loss,
        score=lambda averaged: score(averaged, pictures[held], labels[held], run.folder / "samples.png"),
        schedule=Schedule(peak=settings.learning_rate, steps=settings.steps),
        rng=rng,
        weight_decay=1e-4,
    )


def _kept_decoder(model: FrameCodec, folder: str, place: torch.device) -> FrameCodec:
    """Give a model the decoder of another codec, which stays as it is; return that codec."""
    teacher: FrameCodec = FrameCodec.from_pretrained(folder, torch_dtype=torch.float32)
    mine, theirs = (
        {
            "latent_channels": codec.config.latent_channels,
            "decoder_widths": list(codec.config.decoder_widths),
            "decoder_blocks": codec.config.decoder_blocks,
        }
        for codec in (model, teacher)
    )
    if mine != theirs:
        raise CardError(
            f"The codec in '{folder}' has {theirs}, this recipe's [model] {mine}. A decoder is kept as it is: "
            "write the same there, or leave decoder out to train both."
        )
    model.decoder.load_state_dict(teacher.decoder.state_dict())
    model.decoder.requires_grad_(False)
    return teacher.eval().requires_grad_(False).to(place, memory_format=torch.channels_last)  # type: ignore[no-any-return]


def recoloured(pictures: Float[Tensor, "N 3 H W"], share: float, rng: torch.Generator) -> Float[Tensor, "N 3 H W"]:
    """Permute the channels and scale the contrast of a share of the pictures: the codec is to know more colours."""
    pictures = pictures.clone()
    for i in torch.nonzero(torch.rand(len(pictures), generator=rng) < share)[:, 0].tolist():
        gain = 0.6 + 0.4 * torch.rand(3, 1, 1, generator=rng)
        pictures[i] = (pictures[i][torch.randperm(3, generator=rng)] + 1.0) * gain - 1.0
    return pictures.contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def score(
    codec: FrameCodec, frames: UInt8[Tensor, "N H W 3"], labels: UInt8[Tensor, "N H W"], picture: Path | None = None
) -> dict[str, float]:
    """PSNR on held-out frames: of the whole frame, on the gripper and on the objects; writes a sample sheet."""
    place = next(codec.parameters()).device
    rebuilt = []
    with autocast(place):
        for chunk in frames.split(32):
            batch = to_pictures(chunk).to(place)
            rebuilt.append(to_frames(codec(batch.contiguous(memory_format=torch.channels_last))).cpu())
    again = torch.cat(rebuilt)
    error = ((again.float() - frames.float()) / 255).square().mean(-1)
    per_frame = -10 * torch.log10(error.mean((1, 2)).clamp_min(1e-4))
    parts = {"gripper": labels == 2, "objects": labels >= 4}
    scores = {"psnr": float(per_frame.mean())}
    scores |= {f"psnr_{k}": float(-10 * torch.log10(error[mask].mean().clamp_min(1e-6))) for k, mask in parts.items()}
    if picture is not None:
        from PIL import Image

        rows = [torch.cat([frames[i : i + 8].flatten(0, 0)[j] for j in range(8)], 1) for i in (0, 8)]
        twins = [torch.cat([again[i + j] for j in range(8)], 1) for i in (0, 8)]
        Image.fromarray(torch.cat([rows[0], twins[0], rows[1], twins[1]], 0).numpy()).save(picture)
    return scores
