"""The video model that users hold: network, codec, noise levels and text in one; loaded, saved, and made to imagine."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from vap_gym.errors import VapError
from vap_gym.video.clips import (
    ClipCodec,
    check_codec,
    decode_clip,
    encode_clip,
    encode_image,
    frames_of,
    pictures_of,
    prompt_pictures,
)
from vap_gym.video.lora import has_lora, plain_state
from vap_gym.video.network import VideoNetwork
from vap_gym.video.presets import VideoConfig
from vap_gym.video.pretrained import load_parts, save_parts
from vap_gym.video.sampler import Given, Scheduler, sample_v, sample_x0, slot_noise
from vap_gym.video.text import TextSource
from vap_gym.world.devices import checked_device, native_dtype


class VideoModel:
    """A model of whole clips: the first frame and conditions in, T frames out. Weights and settings only.

    Args:
        network: what predicts; its settings say what it is given.
        codec: frames ↔ latents.
        scheduler: noise levels of "v" models; None for "x0".
        text: embeds instructions for models with text="t5"; None: embeddings are given at each call, or nothing.
        device: where it works.
        dtype: arithmetic. "v" models are brought to it (default: bfloat16 on GPUs, else as their weights are); "x0"
            models keep float32 weights and work in it (default: bfloat16 where the device multiplies it natively).
        name: for reports.
    """

    def __init__(
        self,
        network: VideoNetwork,
        codec: ClipCodec,
        *,
        scheduler: Scheduler | None = None,
        text: TextSource | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        name: str = "",
    ) -> None:
        settings = network.settings
        check_codec(
            codec,
            time_stride=settings.time_stride,
            space_stride=settings.space_stride,
            latent_channels=settings.latent_channels,
        )
        if (settings.prediction == "v") != (scheduler is not None):
            raise VapError(
                f"A model that predicts '{settings.prediction}' {'needs' if scheduler is None else 'takes no'} "
                f"scheduler, got {type(scheduler).__name__}. Give CogVideoXDPMScheduler or CogVideoXDDIMScheduler to "
                "'v' models only."
            )
        self.name, self.device = name, checked_device(device)
        if settings.prediction == "v":
            own = next(network.parameters()).dtype
            self.dtype = dtype or (torch.bfloat16 if self.device.type == "cuda" else own)
            for module in (network, codec):
                if any(p.dtype != self.dtype for p in module.parameters()):
                    module.to(self.dtype)
        else:
            self.dtype = dtype or native_dtype(self.device)
        self.network = network.to(self.device).eval()
        self.codec = codec.to(self.device).eval().requires_grad_(False)
        self.scheduler, self.text = scheduler, text

    @property
    def settings(self) -> VideoConfig:
        """What the network is."""
        return self.network.settings  # type: ignore[no-any-return]

    @property
    def frame_size_px(self) -> tuple[int, int]:
        """Width and height of the frames that it is meant for."""
        return self.settings.frame_size_px

    # --- files ---

    @staticmethod
    def from_pretrained(
        source: str | Path,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        text_encoder: bool = False,
        text_cache: str | Path | None = None,
        lora: str | Path | None = None,
        condition: str = "skeleton",
        control_layers: int | None = None,
        merge_actions: bool = True,
        local_files_only: bool = False,
    ) -> VideoModel:
        """Load a video model.

        Args:
            source: a shipped model's name; a folder that `save_pretrained` wrote; a folder of diffusers'
                CogVideoXImageToVideoPipeline; the name of a large preset ("cogvideox-5b"), or a hub id ("owner/name").
            device: where it works.
            dtype: see `VideoModel`; weights of "v" models are read in it.
            text_encoder: also load (and fetch) T5, which is as large as the rest of CogVideoX-5B; else give
                embeddings, or
            text_cache: a file of embeddings that `CachedText.save` wrote.
            lora: a folder that peft has written, to attach.
            condition, control_layers, merge_actions: of the branches that CogVideoX's own folders do not have; they
                start untrained, at zero. Default of control_layers: a third of the base's. Folders of ours know theirs.
            local_files_only: never fetch.

        Raises:
            UnknownNameError: no such model is shipped.
            CheckpointError: it cannot be fetched, or is damaged, or a weight is missing, unexpected or of another
                shape.
        """
        parts = load_parts(
            source,
            device=checked_device(device),
            dtype=dtype,
            text_encoder=text_encoder,
            text_cache=text_cache,
            lora=lora,
            condition=condition,
            control_layers=control_layers,
            merge_actions=merge_actions,
            local_files_only=local_files_only,
        )
        return VideoModel(
            parts.network,
            parts.codec,
            scheduler=parts.scheduler,
            text=parts.text,
            device=device,
            dtype=dtype,
            name=str(source),
        )

    def save_pretrained(
        self, folder: str | Path, *, dtype: torch.dtype | None = None, shard_size: str = "5GB", **notes: Any
    ) -> None:
        """Write the model in diffusers' folder layout: an index, and a folder with config and safetensors per part.

        LoRA that is attached is written beside the weights that it corrects, as peft does. Cached text embeddings are
        written; a text encoder of transformers is not: it is not ours, and large.

        Args:
            folder: made where it is not there.
            dtype: of the written weights; None: as they are.
            shard_size: larger ones are written in several files.
            notes: for the index: licence, data, scores.
        """
        save_parts(
            Path(folder), self.network, plain_state(self.network), self.codec,
            scheduler=self.scheduler, text=self.text, lora=has_lora(self.network),
            dtype=dtype, shard_size=shard_size, notes=notes,
        )  # fmt: skip

    # --- frames and latents ---

    @torch.no_grad()
    def encode(self, frames: UInt8[Tensor, "B T H W 3"]) -> Float[Tensor, "B F C h w"]:
        """Clips → latents, as training takes them (float32)."""
        self._check_frames(frames, "frames", 5)
        self.settings.latent_frames(frames.shape[1])
        with self._arithmetic():
            return encode_clip(self.codec, pictures_of(frames.to(self.device), self._input_dtype)).float()

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "B F C h w"]) -> UInt8[Tensor, "B T H W 3"]:
        """Latents → clips."""
        with self._arithmetic():
            return frames_of(decode_clip(self.codec, latents.to(self.device, self._input_dtype)))

    # --- imagining ---

    @torch.no_grad()
    def generate(
        self,
        image: UInt8[Tensor, "B H W 3"],
        prompts: UInt8[Tensor, "N T H2 W2 3"] | None = None,
        *,
        text: str | Sequence[str] | Tensor | None = None,
        negative_text: str | Sequence[str] | Tensor | None = None,
        states: Float[Tensor, "M T2 S"] | None = None,
        interval: float | Float[Tensor, " B"] | None = None,
        frames: int | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        dynamic_guidance: bool = False,
        seed: int | Int64[Tensor, " B"] = 0,
        generator: torch.Generator | None = None,
        noise: Float[Tensor, "B2 F C h w"] | None = None,
    ) -> UInt8[Tensor, "B T3 H W 3"]:
        """Imagine clips from their first frames.

        Args:
            image: the first frames.
            prompts: pictures of the condition for all T frames, the first included.
            text: instructions, or their embeddings (B, L, E); None: the empty one, as training leaves words out.
            negative_text: what guidance pushes away from ("v" models); default: the empty instruction.
            states: of the robot at all T frames, for models of condition "raw_state"; None: zeros, as training leaves
                them out.
            interval: control steps from frame to frame.
            frames: T, where neither prompts nor states tell it; default: the settings' `clip_frames`.
            steps: network evaluations; default 50 ("v") or 2 ("x0").
            guidance: 1 for none. Default: 6 for "v" models with text (CogVideoX's), else 1.
            dynamic_guidance: as CogVideoX's pipeline has it ("v" models).
            seed: of the noise: of all clips ("v"), or each clip's own ("x0"; a number stands for seed, seed + 1, …).
            generator, noise: instead of the seed, as CogVideoX's pipeline takes them ("v" models).
        """
        self._check_frames(image, "image", 4)
        batch = len(image)
        if prompts is not None and prompts.shape[2:4] != image.shape[1:3]:
            raise VapError(
                f"prompts must be as large as image, {tuple(image.shape[1:3])}, got {tuple(prompts.shape[2:4])}. "
                "Draw them with the same frame_size_px."
            )
        count = self._clip_frames(batch, prompts, states, frames)
        latent_frames = self.settings.latent_frames(count)
        if states is None and self.settings.condition == "raw_state":
            states = torch.zeros(batch, count, self.settings.state_width)
        is_v = self.settings.prediction == "v"
        embedded = self._text(text, batch)
        if embedded is None and self.settings.text == "t5":
            embedded = self._empty(batch)
        with self._arithmetic():
            if is_v and generator is None:
                if isinstance(seed, Tensor):
                    raise VapError("seed must be one number for a 'v' model: its clips are drawn together.")
                generator = torch.Generator().manual_seed(int(seed))
            pictures = pictures_of(image.to(self.device), self._input_dtype)
            first = encode_image(self.codec, pictures, generator)
            given = Given(
                action=self._action(prompts),
                text=embedded,
                states=None if states is None else states.to(self.device, self._input_dtype),
                interval=self._interval(interval, batch),
            )
            if self.scheduler is not None:
                scale = (6.0 if text is not None else 1.0) if guidance is None else guidance
                if scale > 1 and embedded is None:
                    given = Given(**{**vars(given), "text": self._empty(batch)})
                latents = sample_v(
                    self.network, self.scheduler, first, latent_frames, given,
                    negative_text=self._negative(negative_text, batch) if scale > 1 else None,
                    steps=50 if steps is None else steps, guidance=scale, dynamic_guidance=dynamic_guidance,
                    generator=generator, noise=None if noise is None else noise.to(self.device, self.dtype),
                )  # fmt: skip
            else:
                if generator is not None or noise is not None:
                    raise VapError(
                        "An 'x0' model draws each clip's noise from its seed. Give seed, no generator or noise."
                    )
                seeds = torch.as_tensor(seed) + torch.arange(batch) if not isinstance(seed, Tensor) else seed
                if seeds.shape != (batch,) or seeds.is_floating_point():
                    raise VapError(
                        f"seed must be a whole number, or {batch} of them (as image), got {seeds.dtype} "
                        f"{tuple(seeds.shape)}. Try seed=0."
                    )
                drawn = slot_noise(seeds.to(self.device), (latent_frames, *first.shape[1:]))
                latents = sample_x0(
                    self.network, first.float(), latent_frames, given,
                    noise=drawn, evaluations=2 if steps is None else steps,
                    guidance=1.0 if guidance is None else guidance,
                )  # fmt: skip
        return self.decode(latents)

    @property
    def _input_dtype(self) -> torch.dtype:
        return self.dtype if self.settings.prediction == "v" else torch.float32

    def _arithmetic(self) -> AbstractContextManager[Any]:
        """Autocast for float32 weights of "x0" models; "v" models are in their dtype themselves."""
        if self.settings.prediction == "v" or self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def _check_frames(self, frames: Tensor, name: str, ndim: int) -> None:
        multiple = self.settings.space_stride * self.settings.base_config.get("patch_size", 2)
        multiple *= 2 if self.settings.stem_width else 1
        fits = frames.ndim == ndim and not frames.shape[-3] % multiple and not frames.shape[-2] % multiple
        if not fits or frames.shape[-1] != 3 or frames.dtype != torch.uint8:
            shape = "(B, T, H, W, 3)" if ndim == 5 else "(B, H, W, 3)"
            raise VapError(
                f"{name} must be uint8 {shape} with H and W multiples of {multiple}, got {frames.dtype} "
                f"{tuple(frames.shape)}. "
                f"This model is meant for {self.frame_size_px[1]} × {self.frame_size_px[0]}."
            )

    def _clip_frames(self, batch: int, prompts: Tensor | None, states: Tensor | None, frames: int | None) -> int:
        told = {name: x.shape[1] for name, x in (("prompts", prompts), ("states", states)) if x is not None}
        if frames is not None:
            told["frames"] = frames
        wrong = [name for name, x in (("prompts", prompts), ("states", states)) if x is not None and len(x) != batch]
        if wrong or len(set(told.values())) > 1:
            raise VapError(
                f"prompts, states and frames must be of {batch} clips (as image) and as long as each other, got "
                f"{', '.join(f'{name} of {count} frames' for name, count in told.items())}"
                f"{' and another number of clips of ' + ', '.join(wrong) if wrong else ''}. Give one of each per frame."
            )
        return next(iter(told.values()), self.settings.clip_frames)

    def _action(self, prompts: UInt8[Tensor, "B T H W 3"] | None) -> Float[Tensor, "B F A h w"] | None:
        if prompts is None:
            return None
        self._check_frames(prompts, "prompts", 5)
        channels = self.settings.prompt_channels or 3
        pictures = prompt_pictures(prompts.to(self.device), channels, self._input_dtype)
        return self.network.encode_prompts(pictures)  # type: ignore[no-any-return]

    def _interval(self, interval: float | Tensor | None, batch: int) -> Tensor | None:
        if interval is None or isinstance(interval, Tensor):
            return None if interval is None else interval.to(self.device, torch.float32)
        return torch.full((batch,), float(interval), device=self.device)

    def _text(self, text: str | Sequence[str] | Tensor | None, batch: int) -> Tensor | None:
        if text is None:
            return None
        if isinstance(text, Tensor):
            return text.to(self.device, self._input_dtype)
        texts = [text] * batch if isinstance(text, str) else list(text)
        if len(texts) != batch:
            raise VapError(f"text must be one instruction or {batch} of them (as image), got {len(texts)}.")
        if self.network.vocabulary is not None:
            return self.network.vocabulary.encode(texts).to(self.device)  # type: ignore[no-any-return]
        if self.text is None:
            raise VapError(
                f"This model ('{self.name}', text='{self.settings.text}') has nothing to read instructions with, got "
                f"{texts[0]!r}. Load it with its text encoder or with text_cache, or give embeddings (B, L, E)."
            )
        return self.text.encode(texts).to(self.device, self._input_dtype)

    def _empty(self, batch: int) -> Tensor | None:
        """The empty instruction: embedded where it can be, else what the network takes for it."""
        if self.text is not None:
            return self._text("", batch)
        return self.network.no_text(batch)  # type: ignore[no-any-return]

    def _negative(self, negative: str | Sequence[str] | Tensor | None, batch: int) -> Tensor | None:
        return self._empty(batch) if negative is None else self._text(negative, batch)
