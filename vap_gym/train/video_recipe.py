"""Recipes of the video model's training: every setting of it, as one TOML file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vap_gym.errors import CardError, unknown_name
from vap_gym.train.video_data import STATES, DataSettings, SetSettings
from vap_gym.train.video_loss import FORCINGS
from vap_gym.video.presets import VideoConfig, preset

PARTS = ("full", "branches")


@dataclass(frozen=True, kw_only=True)
class VideoRecipe:
    """Settings of a training of the video model; a TOML file with these keys.

    Args:
        data: a table (`SetSettings`) or a path for each data set.
        codec: folder of the codec; the model's latents are its.
        steps, batch_size: of the optimiser; clips of a step of one process.
        preset, model: a preset of `vap_gym.video.presets`, and the settings changed in it.
        base: run folder of stage A. Its weights are taken over, and into the ControlNet; `parts = "branches"` leaves
            them as they are.
        init: run folder of a model of the same size, maybe of another condition, to go on from.
        parts: "full": all weights are trained. "branches": only what `base` did not bring, and LoRA.
        lora_rank: of LoRA on the base's attention; 0: none.
        frames: of a clip. states: "commanded" or "achieved". height_cue: the skeleton's drop line.
        precomputed: prompts are drawn once and kept. clips: how many clips are encoded, for codecs with a time stride.
        near_changes: share of clips around gripper changes and contacts.
        prompt_dropout, image_dropout, text_dropout: shares of clips without, for guidance.
        forcing: "none", or "frames" or "rollout" (the causal variant, see `video_forcing`).
        pure_noise: share of clips of nothing but noise. snr_shift_scale: of CogVideoX's noise.
        accumulate: batches of a step. workers: processes that prepare batches.
        bf16: where the device has it. gradient_checkpointing: less memory, a third more time.
        score_clips: of each set, drawn at each score. evaluations: of the network, for scores.
        text_encoder: folder with `tokenizer` and `text_encoder`, for text = "t5".
        cache: folder of latents and prompts, shared by runs.
    """

    data: list[Any]
    codec: str
    steps: int
    batch_size: int
    preset: str = "tiny"
    model: dict[str, Any] = field(default_factory=dict)
    base: str = ""
    init: str = ""
    parts: str = "full"
    lora_rank: int = 0
    frames: int = 13
    states: str = "commanded"
    height_cue: bool = True
    precomputed: bool = False
    clips: int = 0
    near_changes: float = 0.5
    gripper_weight: float = 2.0
    object_weight: float = 2.0
    moved_weight: float = 4.0
    prompt_dropout: float = 0.05
    image_dropout: float = 0.0
    text_dropout: float = 0.1
    forcing: str = "none"
    pure_noise: float = 0.5
    snr_shift_scale: float = 1.0
    learning_rate: float = 1e-3
    warmup_steps: int = 200
    decay: float = 0.6
    weight_decay: float = 0.01
    max_gradient: float = 1.0
    accumulate: int = 1
    bf16: bool = True
    gradient_checkpointing: bool = False
    ema_decay: float = 0.998
    workers: int = 0
    score_clips: int = 8
    evaluations: int = 1
    text_encoder: str = ""
    cache: str = "runs/cache"
    log_every: int = 50
    save_every: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        for kind, given, known in (("parts", self.parts, PARTS), ("states", self.states, STATES),
                                   ("forcing", self.forcing, FORCINGS)):  # fmt: skip
            if given not in known:
                raise unknown_name(f"kind of {kind}", given, known)
        if self.parts == "branches" and not (self.base or self.init):
            raise CardError(
                "parts = 'branches' trains beside weights that stay as they are, got neither base nor init. Name a run "
                "of stage A: base = 'runs/video_base'."
            )
        if self.base and self.init:
            raise CardError(f"base and init both bring weights, got '{self.base}' and '{self.init}'. Leave one out.")
        least = {"steps": 1, "batch_size": 1, "accumulate": 1, "log_every": 1, "save_every": 1, "score_clips": 1}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise CardError(f"{name} must be at least {low}, got {getattr(self, name)}.")
        for name in ("prompt_dropout", "image_dropout", "text_dropout", "near_changes", "pure_noise"):
            if not 0 <= getattr(self, name) <= 1:
                raise CardError(f"{name} is a share of clips, 0 to 1, got {getattr(self, name)}. Try 0.1.")
        if self.forcing == "rollout" and any(one.max_stride > 1 for one in self.sets):
            raise CardError(
                "forcing = 'rollout' makes frames at the recorded rate, got a set with max_stride above 1. Set it to 1."
            )
        if any(one.max_stride > 1 for one in self.sets) and not self.settings.intervals:
            raise CardError(
                "max_stride above 1 makes clips of several rates, and this model is not told which (intervals = "
                "false). Set max_stride = 1, or intervals = true in [model]."
            )
        if not self.data:
            raise CardError("data must name at least one set, got none. Make one: vap-gym data generate data/droid")
        settings = self.settings
        if settings.time_stride > 1 and self.clips < 1:
            raise CardError(
                f"A codec of {settings.time_stride} frames a latent encodes clips, got clips = {self.clips}. Say how "
                "many, e.g. clips = 20000."
            )
        settings.latent_frames(self.frames)
        if settings.height_cue != self.height_cue:
            raise CardError("height_cue is a key of the recipe itself, got another one in [model]. Leave it out there.")

    @property
    def settings(self) -> VideoConfig:
        """The network's."""
        changes = {"height_cue": self.height_cue, **self.model}
        if "base_config" in changes:  # some of its keys, the others as in the preset
            changes["base_config"] = {**preset(self.preset).base_config, **changes["base_config"]}
        return preset(self.preset, **changes)

    @property
    def sets(self) -> list[SetSettings]:
        """The data sets."""
        return [SetSettings.of(table) for table in self.data]

    @property
    def clip_settings(self) -> DataSettings:
        """What clips are like."""
        network = self.settings
        return DataSettings(
            frames=self.frames,
            condition=network.condition,
            states=self.states,
            height_cue=self.height_cue,
            precomputed=self.precomputed,
            near_changes=self.near_changes,
            time_stride=network.time_stride,
            clips=self.clips,
            scored=self.score_clips,
            frame_size_px=network.frame_size_px,
            gripper_weight=self.gripper_weight,
            object_weight=self.object_weight,
            moved_weight=self.moved_weight,
            seed=self.seed,
        )
