"""Sizes and conditions of the video model, as plain settings: `tiny`, `small`, and CogVideoX-5B 1.0 and 1.5."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vap_gym.errors import VapError, unknown_name
from vap_gym.video.words import WORDS

PICTURES = ("skeleton", "mesh", "depth")  # conditions that are pictures, through the trajectory encoder
CONDITIONS = (*PICTURES, "raw_state", "text", "none")
TEXTS = ("none", "words", "t5")
PREDICTIONS = ("v", "x0")


@dataclass(frozen=True, kw_only=True)
class VideoConfig:
    """Everything that makes a `VideoNetwork` but its weights; JSON-able.

    F latent frames stand for T = 1 + time_stride·(F − 1) frames; latents are frames / space_stride in size.

    Args:
        base_config: keyword arguments of diffusers' CogVideoXTransformer3DModel.
        condition: what says how the robot moves: pictures ("skeleton", "mesh", "depth"), "raw_state" (frame-level
            adaLN, IRASim's way), "text" (the instruction alone) or "none".
        control_layers: how many blocks the ControlNet copies; 0: no ControlNet. Only with pictures.
        merge_actions: action tokens are merged into the main branch, too. Only with pictures.
        action_channels: of the trajectory encoder's output.
        trajectory_width: channels inside of the trajectory encoder.
        latent_channels: of the codec.
        time_stride, space_stride: of codec and trajectory encoder: 1 and 4 (`FrameCodec`), 4 and 8 (CogVideoX's VAE).
        frame_size_px: width and height of the frames that it is meant for.
        clip_frames: T of the clips that it is meant for.
        prediction: "v" (CogVideoX's diffusion) or "x0" (flow matching, ours).
        noise_scale: standard deviation of the noise at the flow's end, in units of the latents; "x0" only.
        image_everywhere: the first frame's latents stand beside every frame; else, as in CogVideoX, beside the first
            only, and zeros beside the others.
        residual: the output is added to the first frame's latents; needs `image_everywhere`.
        stem_width: channels of the convolutions around the transformer at latent size (twice that at half of it, where
            the transformer works); 0: none, pure CogVideoX.
        stem_blocks: residual blocks on either side at each of both sizes.
        height_cue: skeletons are drawn with their drop line to the table; envs draw them as this says.
        state_width: numbers that tell a robot's state; "raw_state" only.
        intervals: whether the number of control steps from frame to frame is an input.
        text: "none", "words" (`words.Vocabulary`, learned here) or "t5" (embeddings from CogVideoX's text encoder).
        words: the vocabulary, in the order of the embedding's rows.
        plain_attention: attention in plain matrix products, which is faster than torch's fused one on CPUs.
    """

    base_config: Mapping[str, Any]
    condition: str = "skeleton"
    control_layers: int = 2
    merge_actions: bool = True
    action_channels: int = 16
    trajectory_width: int = 32
    latent_channels: int = 8
    time_stride: int = 1
    space_stride: int = 4
    frame_size_px: tuple[int, int] = (144, 96)
    clip_frames: int = 13
    prediction: str = "x0"
    noise_scale: float = 1.0
    image_everywhere: bool = True
    residual: bool = False
    stem_width: int = 0
    stem_blocks: int = 1
    height_cue: bool = True
    state_width: int = 8
    intervals: bool = False
    text: str = "none"
    words: tuple[str, ...] = field(default=())
    plain_attention: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "base_config", dict(self.base_config))
        object.__setattr__(self, "frame_size_px", tuple(self.frame_size_px))
        object.__setattr__(self, "words", tuple(self.words))
        for kind, given, known in (
            ("condition", self.condition, CONDITIONS),
            ("kind of text", self.text, TEXTS),
            ("prediction", self.prediction, PREDICTIONS),
        ):
            if given not in known:
                raise unknown_name(kind, given, known)
        layers = self.base_config.get("num_layers", 30)
        if not 0 <= self.control_layers <= layers:
            raise VapError(
                f"control_layers must be 0 to the base's {layers} layers, got {self.control_layers}. "
                f"The paper copies a third: {layers // 3}."
            )
        if (self.time_stride, self.space_stride) not in ((1, 4), (4, 8)):
            raise VapError(
                "time_stride and space_stride must be 1 and 4 (a codec of single frames) or 4 and 8 (CogVideoX's), "
                f"got {self.time_stride} and {self.space_stride}."
            )
        if self.residual and not self.image_everywhere:
            raise VapError(
                "residual=True adds the output to the first frame's latents, which image_everywhere=False leaves out "
                "beside the other frames. Set image_everywhere=True."
            )
        if self.condition == "text" and self.text == "none":
            raise VapError("condition='text' needs words, got text='none'. Set text='words' or text='t5'.")
        if self.text == "words" and not self.words:
            raise VapError("text='words' needs a vocabulary, got none. Give words=vap_gym.video.words.WORDS.")

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> VideoConfig:
        """Return the settings that `to_dict` wrote; lists become tuples, keys of diffusers' own (`_…`) are left out."""
        plain: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in settings.items()
            if not name.startswith("_")
        }
        return cls(**plain)

    @property
    def prompt_channels(self) -> int:
        """P: channels of the pictures of the condition; 0 where it has none."""
        return {"skeleton": 3, "mesh": 3, "depth": 1}.get(self.condition, 0)

    @property
    def prompt(self) -> str:
        """The kind of prompt (`prompts.kinds`) that is drawn for it; "none" where its condition is no picture."""
        return self.condition if self.condition in PICTURES else "none"

    @property
    def group(self) -> int:
        """Latent frames that become one frame of tokens: 2 in CogVideoX 1.5, else 1."""
        return self.base_config.get("patch_size_t") or 1

    def latent_frames(self, frames: int) -> int:
        """F of a clip of T frames. Raises VapError where T does not fit the codec."""
        if frames < 1 or (frames - 1) % self.time_stride:
            near = 1 + self.time_stride * max(1, round((frames - 1) / self.time_stride))
            raise VapError(f"A clip must have 1 + {self.time_stride}·k frames, got {frames}. Try {near}.")
        return 1 + (frames - 1) // self.time_stride

    def frames(self, latent_frames: int) -> int:
        """T of a clip of F latent frames."""
        return 1 + self.time_stride * (latent_frames - 1)

    def replace(self, **changes: Any) -> VideoConfig:
        """Return these settings with some of them changed."""
        known = [f.name for f in dataclasses.fields(self)]
        for name in changes:
            if name not in known:
                raise unknown_name("setting of a video model", name, known)
        return VideoConfig.of({**{name: getattr(self, name) for name in known}, **changes})

    def to_dict(self) -> dict[str, Any]:
        """All settings as what JSON knows; `VideoConfig.of(settings)` makes them again."""
        plain = dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()}


_COGVIDEOX_5B: dict[str, Any] = {
    "num_attention_heads": 48,
    "attention_head_dim": 64,
    "in_channels": 32,  # 16 of noise, 16 of the picture
    "out_channels": 16,
    "time_embed_dim": 512,
    "text_embed_dim": 4096,
    "num_layers": 42,
    "sample_width": 90,
    "sample_height": 60,
    "sample_frames": 49,
    "patch_size": 2,
    "max_text_seq_length": 226,
    "spatial_interpolation_scale": 1.875,
    "use_rotary_positional_embeddings": True,
    "use_learned_positional_embeddings": True,
}
_COGVIDEOX_15_5B: dict[str, Any] = {
    **_COGVIDEOX_5B,
    "ofs_embed_dim": 512,
    "sample_width": 300,  # no size of a clip: where rotary positions may go at most
    "sample_height": 300,
    "sample_frames": 81,
    "patch_size_t": 2,
    "patch_bias": False,
    "use_learned_positional_embeddings": False,
}
_LARGE: dict[str, Any] = {
    "control_layers": 14,
    "trajectory_width": 128,
    "latent_channels": 16,
    "time_stride": 4,
    "space_stride": 8,
    "clip_frames": 25,
    "prediction": "v",
    "image_everywhere": False,
    "text": "t5",
}


def _ours(*, heads: int, head: int, layers: int, time: int, stem: int, latent_size: tuple[int, int]) -> dict[str, Any]:
    """A base of our own between convolutions: at half of the latents' size, patch 2, rotary positions."""
    return {
        "num_attention_heads": heads,
        "attention_head_dim": head,
        "in_channels": 2 * stem,
        "out_channels": 2 * stem,
        "time_embed_dim": time,
        "text_embed_dim": 64,
        "num_layers": layers,
        "sample_width": latent_size[0] // 2,
        "sample_height": latent_size[1] // 2,
        "sample_frames": 13,
        "patch_size": 2,
        "temporal_compression_ratio": 1,
        "max_text_seq_length": 12,
        "spatial_interpolation_scale": 1.0,
        "use_rotary_positional_embeddings": True,
    }


PRESETS: dict[str, VideoConfig] = {
    "tiny": VideoConfig(
        base_config=_ours(heads=3, head=64, layers=6, time=128, stem=64, latent_size=(36, 24)),
        control_layers=2,
        stem_width=64,
        residual=True,
        intervals=True,
        text="words",
        words=WORDS,
        plain_attention=True,
    ),
    "small": VideoConfig(
        base_config=_ours(heads=16, head=64, layers=20, time=256, stem=128, latent_size=(72, 48)),
        control_layers=6,
        trajectory_width=64,
        frame_size_px=(288, 192),
        stem_width=128,
        stem_blocks=2,
        residual=True,
        intervals=True,
        text="words",
        words=WORDS,
    ),
    "cogvideox-5b": VideoConfig(base_config=_COGVIDEOX_5B, frame_size_px=(720, 480), **_LARGE),
    "cogvideox-1.5-5b": VideoConfig(base_config=_COGVIDEOX_15_5B, frame_size_px=(720, 480), **_LARGE),
}

HUB_IDS = {"cogvideox-5b": "THUDM/CogVideoX-5b-I2V", "cogvideox-1.5-5b": "THUDM/CogVideoX1.5-5B-I2V"}
"""Where the base weights of the large presets are published; their text encoder and codec with them."""

RECIPES = {"tiny": "tiny_video_base", "small": "small_video"}
"""Presets of which no weights are shipped or published, and what trains them."""


def preset(name: str, **changes: Any) -> VideoConfig:
    """Return a preset by name, with some settings changed: `preset("tiny", condition="raw_state", state_width=9)`."""
    if name not in PRESETS:
        raise unknown_name("video preset", name, PRESETS)
    return PRESETS[name].replace(**changes)
