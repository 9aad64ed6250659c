"""The models that benchmarks/cogvideox_5b.py times: exact configurations, random weights, made on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import torch
import torch._dynamo
from diffusers import AutoencoderKLCogVideoX, CogVideoXDPMScheduler, CogVideoXTransformer3DModel
from torch import Tensor, nn
from torch.nn import functional as F

from vap_gym.video.causal import CausalVideoNetwork
from vap_gym.video.clips import decode_clip, encode_image, frames_of
from vap_gym.video.loading import default_dtype
from vap_gym.video.model import VideoModel
from vap_gym.video.network import VideoNetwork
from vap_gym.video.presets import VideoConfig, preset
from vap_gym.video.world import StreamWorld

DTYPE, GUIDANCE, FEW = torch.bfloat16, 6.0, 4
Run = Callable[[int], Tensor]
Calls = Iterator[tuple["Row", Run]]


# --- what is measured ---


@dataclass(frozen=True, kw_only=True)
class Size:
    """A configuration to measure: network, codec, text encoder, and how the paper samples."""

    config: VideoConfig
    vae: dict[str, Any]
    t5: dict[str, Any]
    tiny: tuple[int, ...] = (256, 128, 64, 64)  # widths of the tiny decoder
    steps: int = 50
    backend: str = "inductor"


_VAE = {"sample_height": 480, "sample_width": 720, "scaling_factor": 0.7}
_T5 = {
    "vocab_size": 32128, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}  # fmt: skip
_SMALL_BASE = {
    "num_attention_heads": 1, "attention_head_dim": 16, "in_channels": 8, "out_channels": 4, "time_embed_dim": 8,
    "text_embed_dim": 8, "num_layers": 1, "sample_width": 6, "sample_height": 4, "sample_frames": 29,
    "max_text_seq_length": 4, "use_rotary_positional_embeddings": True, "use_learned_positional_embeddings": True,
}  # fmt: skip
SIZES: dict[str, Callable[[], Size]] = {
    "cogvideox-5b": lambda: Size(config=preset("cogvideox-5b"), vae=_VAE, t5=_T5),
    "cogvideox-1.5-5b": lambda: Size(config=preset("cogvideox-1.5-5b"), vae=_VAE, t5=_T5),
    "small-test": lambda: Size(
        config=preset("cogvideox-5b", base_config=_SMALL_BASE, control_layers=1, action_channels=4,
                      trajectory_width=4, latent_channels=4, frame_size_px=(48, 32)),
        vae={"block_out_channels": (4, 4, 4, 4), "latent_channels": 4, "layers_per_block": 1, "norm_num_groups": 2,
             "sample_height": 32, "sample_width": 48, "scaling_factor": 0.7},
        t5={"vocab_size": 10, "d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2},
        tiny=(8, 8, 4, 4), steps=2, backend="eager",
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table: a call that is timed."""

    part: str  # stock, chunk, codec, text, stream
    what: str  # of codec and text; else "clip", "latent"
    frames: int  # that a call makes
    steps: int = 1  # network evaluations (two in one batch with guidance)
    guided: bool = False
    decoder: str = "none"  # "vae", "tiny"
    control: str = "each"  # "once": its features are computed once a clip or latent
    compiled: bool = False

    @property
    def key(self) -> str:
        """Its name in the table and in the file of rows."""
        if self.part in ("codec", "text"):
            return f"{self.part} {self.what}"
        words = [self.part, str(self.steps), "guided" if self.guided else "", self.decoder]
        words += [self.control if self.part != "stock" else "", "compiled" if self.compiled else ""]
        return " ".join(word for word in words if word)


# --- the tiny decoder ---


class Remembering(nn.Module):
    """A residual block that sees its own frame's features and those of the frame before."""

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = (2 * width, width, width)
        self.convs = nn.ModuleList([nn.Conv2d(w, width, 3, padding=1) for w in widths])

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        """(N, C, h, w) of frames, and of those before them."""
        y = torch.cat([x, before], 1)
        for conv in self.convs:
            y = conv(F.relu(y))
        return x + y


class TinyDecoder(nn.Module):
    """Latents → frames by a few 2-D convolutions with a memory of one frame: of TAEHV's class in work and in reach.

    Three stages of three blocks, each doubling height and width, two of them time as well. Random weights: it is here
    for its speed. Latents (B, F, C, h, w) → pictures (B, 4·F, 3, 8·h, 8·w).
    """

    def __init__(self, channels: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.enter = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList([nn.ModuleList([Remembering(w) for _ in range(3)]) for w in widths[:3]])
        self.grow = nn.ModuleList([nn.Conv2d(w, w * n, 1) for w, n in zip(widths, (1, 2, 2), strict=False)])
        self.up = nn.ModuleList([nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths)])
        self.leave = nn.Conv2d(widths[3], 3, 3, padding=1)

    def forward(self, latents: Tensor, memory: list[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        """Return pictures and what the next call takes as `memory` to go on."""
        batch, kept = len(latents), []
        x = self.enter(latents.flatten(0, 1))
        for blocks, grow, up in zip(self.blocks, self.grow, self.up, strict=True):
            for block in blocks:  # type: ignore[attr-defined]
                clip = x.unflatten(0, (batch, -1))
                first = torch.zeros_like(clip[:, :1]) if memory is None else memory[len(kept)]
                kept.append(clip[:, -1:])
                x = block(x, torch.cat([first, clip[:, :-1]], 1).flatten(0, 1))
            x = F.interpolate(x, scale_factor=2.0)
            x = grow(x)
            x = up(x.unflatten(1, (-1, up.in_channels)).flatten(0, 1))
        return self.leave(F.relu(x)).unflatten(0, (batch, -1)), kept


@contextmanager
def decoded_by(tiny: TinyDecoder | None, vae: Any) -> Iterator[None]:
    """Within it the VAE decodes by the tiny decoder, where there is one."""

    def decode(latents: Tensor) -> SimpleNamespace:
        pictures, _ = tiny(latents.transpose(1, 2))  # type: ignore[misc]
        return SimpleNamespace(sample=pictures[:, 3:].transpose(1, 2))  # the first latent is one frame

    if tiny is not None:
        vae.decode = decode
    try:
        yield
    finally:
        vars(vae).pop("decode", None)


# --- models and calls ---


def built(device: torch.device, make: Callable[[], nn.Module]) -> Any:
    """Make a module on the device in bfloat16, nothing on the CPU first; branches that start at zero get numbers."""
    torch.manual_seed(0)
    with default_dtype(DTYPE), torch.device(device):
        module = make().eval().requires_grad_(False)
    if any(weight.dtype != DTYPE for weight in module.parameters()):
        module.to(DTYPE)
    if device.type != "meta":
        for weight in module.parameters():
            if weight.ndim > 1 and int((weight == 0).sum()) > 0.4 * weight.numel():
                weight.normal_(std=0.5 * weight[0].numel() ** -0.5)
    return module


def made_t5(size: Size) -> nn.Module:
    """CogVideoX's text encoder."""
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(T5Config(**size.t5))


class Inputs:
    """Random pictures, prompts, text embeddings and latents of a size."""

    def __init__(self, size: Size, device: torch.device) -> None:
        config, rng = size.config, torch.Generator().manual_seed(0)
        width, height = config.frame_size_px
        base, stride = config.base_config, config.space_stride
        self.image = torch.randint(0, 256, (1, height, width, 3), dtype=torch.uint8, generator=rng)
        shape = (1, config.clip_frames, height, width, 3)
        self.prompts = torch.randint(0, 256, shape, dtype=torch.uint8, generator=rng)
        text = torch.randn(2, 1, base["max_text_seq_length"], base["text_embed_dim"], generator=rng)
        self.text, self.negative = text.to(device, DTYPE)
        frames = config.latent_frames(config.clip_frames)
        latents = (1, frames, config.latent_channels, height // stride, width // stride)
        self.latents = torch.randn(latents, generator=rng).to(device, DTYPE)


def set_compiled(blocks: Iterable[Any], on: bool, backend: str) -> None:
    """Compile every block by itself (they share compilations), or go back to eager ones.

    Blocks differ by the strides of what they are given, clips by their batch: more variants than torch compiles before
    it falls back, silently, to eager.
    """
    torch._dynamo.config.recompile_limit = 64
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    for block in blocks:
        if on and block._compiled_call_impl is None:
            block.compile(backend=backend, dynamic=False)
        elif not on:
            block._compiled_call_impl = None


@contextmanager
def control_kept(transformer: Any) -> Iterator[None]:
    """Within it the ControlNet's features of the first evaluation are used by all others."""
    own, kept = transformer._control, []

    def once(*given: Any) -> Any:
        if not kept:
            kept.append(own(*given))
        return kept[0]

    transformer._control = once
    try:
        yield
    finally:
        del transformer._control


def noise_levels() -> CogVideoXDPMScheduler:
    """As CogVideoX-5B-I2V's folder has them."""
    return CogVideoXDPMScheduler(
        snr_shift_scale=1.0, rescale_betas_zero_snr=True, prediction_type="v_prediction", timestep_spacing="trailing"
    )


def stock_calls(size: Size, wanted: list[Row], device: torch.device) -> Calls:
    """diffusers' own pipeline, its prompt embeddings given."""
    from diffusers import CogVideoXImageToVideoPipeline

    given, (width, height) = Inputs(size, device), size.config.frame_size_px
    pipeline = CogVideoXImageToVideoPipeline(
        tokenizer=None, text_encoder=None, scheduler=noise_levels(),
        transformer=built(device, lambda: CogVideoXTransformer3DModel(**size.config.base_config)),
        vae=built(device, lambda: AutoencoderKLCogVideoX(**size.vae)),
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)

    def run(steps: int) -> Tensor:
        return pipeline(  # type: ignore[no-any-return]
            image=given.image.movedim(-1, 1) / 255.0, prompt_embeds=given.text, negative_prompt_embeds=given.negative,
            height=height, width=width, num_frames=size.config.clip_frames, num_inference_steps=steps,
            guidance_scale=GUIDANCE, generator=torch.Generator().manual_seed(0), output_type="pt",
        ).frames  # fmt: skip

    for row in wanted:
        set_compiled(pipeline.transformer.transformer_blocks, row.compiled, size.backend)
        yield row, run


def chunk_calls(size: Size, wanted: list[Row], device: torch.device) -> Calls:
    """Whole clips by our model."""
    given = Inputs(size, device)
    network = built(device, lambda: VideoNetwork.of(size.config))
    vae = built(device, lambda: AutoencoderKLCogVideoX(**size.vae))
    tiny = built(device, lambda: TinyDecoder(size.config.latent_channels, size.tiny))
    model = VideoModel(network, vae, scheduler=noise_levels(), device=device, dtype=DTYPE)

    def run(row: Row, steps: int) -> Tensor:
        once = control_kept(network.transformer) if row.control == "once" else nullcontext()
        with once, decoded_by(tiny if row.decoder == "tiny" else None, vae):
            return model.generate(
                given.image, given.prompts, text=given.text, negative_text=given.negative, steps=steps,
                guidance=GUIDANCE if row.guided else 1.0,
            )  # fmt: skip

    blocks = [*network.transformer.base.transformer_blocks, *network.transformer.control_blocks]
    for row in wanted:
        set_compiled(blocks, row.compiled, size.backend)
        yield row, partial(run, row)


def codec_calls(size: Size, wanted: list[Row], device: torch.device) -> Calls:
    """The codec by itself."""
    given = Inputs(size, device)
    vae = built(device, lambda: AutoencoderKLCogVideoX(**size.vae))
    tiny = built(device, lambda: TinyDecoder(size.config.latent_channels, size.tiny))
    picture = given.image.movedim(-1, 1).to(device, DTYPE) / 127.5 - 1

    def run(row: Row, steps: int) -> Tensor:
        if row.decoder == "none":
            return encode_image(vae, picture)
        with decoded_by(tiny if row.decoder == "tiny" else None, vae):
            return frames_of(decode_clip(vae, given.latents))

    for row in wanted:
        yield row, partial(run, row)


def text_calls(size: Size, wanted: list[Row], device: torch.device) -> Calls:
    """The instruction and the empty one through T5: what cached embeddings save."""
    encoder = built(device, lambda: made_t5(size))
    tokens = torch.randint(0, size.t5["vocab_size"], (2, size.config.base_config["max_text_seq_length"]))
    for row in wanted:
        yield row, lambda steps: encoder(tokens.to(device))[0]


def stream_calls(size: Size, wanted: list[Row], device: torch.device) -> Calls:
    """One latent more, its window full, as `StreamWorld` makes it."""
    given, stride = Inputs(size, device), size.config.time_stride
    network = built(device, lambda: CausalVideoNetwork(**size.config.to_dict()))
    vae = built(device, lambda: AutoencoderKLCogVideoX(**size.vae))
    tiny = built(device, lambda: TinyDecoder(size.config.latent_channels, size.tiny))
    prompts = given.prompts[:, 1 : 1 + stride]
    states: dict[str, Any] = {}  # one at a time: it holds the window's keys and values

    def run(row: Row, steps: int) -> Tensor:
        world, state, memory = states[row.control]
        following, frames = world.predict(state, prompts, decode=row.decoder == "vae", evaluations=steps)
        if row.decoder == "tiny":
            return frames_of(tiny(following["latent"][:, None].to(DTYPE), memory)[0])
        return frames if frames is not None else following["latent"]

    for row in wanted:
        if row.control not in states:
            states.clear()
            world = StreamWorld(network, vae, control=row.control, text=given.text, device=device, dtype=DTYPE)
            state = world.start(given.image, given.prompts[:, 0], torch.zeros(1, dtype=torch.int64))
            for _ in range(world.stream.window):
                state, _ = world.predict(state, prompts, decode=False)
            states[row.control] = (world, state, tiny(given.latents[:, :1])[1])
        yield row, partial(run, row)


PARTS: dict[str, Callable[[Size, list[Row], torch.device], Calls]] = {
    "stock": stock_calls, "chunk": chunk_calls, "codec": codec_calls, "text": text_calls, "stream": stream_calls,
}  # fmt: skip
