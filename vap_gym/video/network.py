"""The network of the video model: CogVideoX with its action branch, and the small parts that bring conditions in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Float, Int64
from torch import Tensor

from vap_gym.errors import VapError
from vap_gym.video.conditions import IntervalEmbedding, StateEncoder, Vocabulary, WordEmbedding
from vap_gym.video.positions import rotary_positions
from vap_gym.video.presets import VideoConfig
from vap_gym.video.stem import Stem
from vap_gym.video.trajectory import TrajectoryEncoder
from vap_gym.world.attention import PlainAttention
from vap_gym.world.transformer import ControlledTransformer


class VideoNetwork(ModelMixin, ConfigMixin):
    """Noisy latents, the first frame and conditions → v or clean latents, see `VideoConfig` for all settings.

    B clips of F latent frames, C channels, h × w; K frames of tokens (F, or F / 2 in CogVideoX 1.5). With untrained
    branches and no stem it equals diffusers' CogVideoXTransformer3DModel on [noisy, image] bit for bit.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["CogVideoXBlock", "CogVideoXPatchEmbed"]  # noqa: RUF012  (diffusers' own way)

    @register_to_config
    def __init__(
        self,
        base_config: dict[str, Any],
        condition: str = "skeleton",
        control_layers: int = 2,
        merge_actions: bool = True,
        action_channels: int = 16,
        trajectory_width: int = 32,
        latent_channels: int = 8,
        time_stride: int = 1,
        space_stride: int = 4,
        frame_size_px: Sequence[int] = (144, 96),
        clip_frames: int = 13,
        prediction: str = "x0",
        noise_scale: float = 1.0,
        image_everywhere: bool = True,
        residual: bool = False,
        stem_width: int = 0,
        stem_blocks: int = 1,
        height_cue: bool = True,
        state_width: int = 8,
        intervals: bool = False,
        text: str = "none",
        words: Sequence[str] = (),
        plain_attention: bool = False,
    ) -> None:
        super().__init__()
        given = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        self.settings = settings = VideoConfig(**given | {"frame_size_px": tuple(frame_size_px), "words": tuple(words)})
        channels = 2 * latent_channels if stem_width == 0 else 2 * stem_width
        if base_config.get("in_channels", 16) != channels:
            raise VapError(
                f"The base must take {channels} channels (in_channels: "
                f"{'latents and the first frame' if stem_width == 0 else 'twice stem_width'}), "
                f"got {base_config.get('in_channels', 16)}. Text-to-video bases do not fit; image-to-video ones do."
            )
        pictures = settings.prompt_channels > 0
        self.trajectory = (
            TrajectoryEncoder(
                prompt_channels=settings.prompt_channels,
                channels=action_channels,
                width=trajectory_width,
                time_stride=time_stride,
                space_stride=space_stride,
            )
            if pictures
            else None
        )
        self.stem = Stem(settings) if stem_width else None
        self.transformer = ControlledTransformer(
            base_config=base_config,
            action_channels=action_channels if self.stem is None else self.stem.action_channels,
            control_layers=control_layers if pictures else 0,
            merge_actions=merge_actions and pictures,
        )
        base = self.transformer.base.config
        self.embed_states = (
            StateEncoder(
                state_width=state_width, per_group=time_stride * settings.group, width=int(base.time_embed_dim)
            )
            if condition == "raw_state"
            else None
        )
        self.embed_interval = IntervalEmbedding(width=int(base.time_embed_dim)) if intervals else None
        self.vocabulary = Vocabulary(settings.words, length=int(base.max_text_seq_length)) if text == "words" else None
        self.embed_words = (
            WordEmbedding(words=len(self.vocabulary), length=self.vocabulary.length, width=int(base.text_embed_dim))
            if self.vocabulary is not None
            else None
        )
        if plain_attention:
            self.set_attn_processor(PlainAttention())

    @classmethod
    def of(cls, settings: VideoConfig) -> VideoNetwork:
        """Return a network of these settings with random weights; branches start at zero."""
        return cls(**settings.to_dict())  # type: ignore[no-any-return]

    def set_attn_processor(self, processor: Any) -> None:
        """Use another attention processor in every block."""
        self.transformer.set_attn_processor(processor)

    # --- conditions ---

    def encode_prompts(self, prompts: Float[Tensor, "B T P H W"]) -> Float[Tensor, "B F A h w"]:
        """Visual action prompts in [−1, 1] → action latents, computed once per clip and shared by all evaluations."""
        if self.trajectory is None:
            raise VapError(
                f"Prompts are pictures of the robot, got some for a model whose condition is "
                f"'{self.settings.condition}'. Leave them out, or take a model of condition skeleton, mesh or depth."
            )
        if prompts.shape[2] != self.settings.prompt_channels:
            raise VapError(
                f"Prompts of the condition '{self.settings.condition}' must have {self.settings.prompt_channels} "
                f"channels, got {prompts.shape[2]}. Give (B, T, {self.settings.prompt_channels}, H, W) in [-1, 1]."
            )
        self.settings.latent_frames(prompts.shape[1])
        return self.trajectory(prompts)  # type: ignore[no-any-return]

    def spread(self, first: Float[Tensor, "B C h w"], frames: int) -> Float[Tensor, "B F C h w"]:
        """The first frame's latents as `forward` takes them for F latent frames: at the first, or at all of them."""
        if self.settings.image_everywhere:
            return first[:, None].expand(-1, frames, -1, -1, -1)
        return torch.cat([first[:, None], first.new_zeros(len(first), frames - 1, *first.shape[1:])], dim=1)

    def no_text(self, batch: int) -> Float[Tensor, "B L E"] | None:
        """What `text=None` stands for: the empty instruction of the vocabulary, zeros for bases that need text, None
        (no text tokens) for others."""
        if self.embed_words is not None:
            return self.embed_words.empty(batch)
        base = self.transformer.base.config
        table = base.use_learned_positional_embeddings or not base.use_rotary_positional_embeddings
        if self.settings.text == "t5" or (table and base.max_text_seq_length):
            like = next(self.transformer.base.parameters())
            return like.new_zeros(batch, base.max_text_seq_length, base.text_embed_dim)  # type: ignore[no-any-return]
        return None

    # --- the network ---

    def forward(
        self,
        noisy: Float[Tensor, "B F C h w"],
        image: Float[Tensor, "B F C h w"],
        timestep: Float[Tensor, "B *K"],
        *,
        prompts: Float[Tensor, "B T P H W"] | None = None,
        action: Float[Tensor, "B F2 A h w"] | None = None,
        text: Float[Tensor, "B L E"] | Int64[Tensor, "B L"] | None = None,
        states: Float[Tensor, "B T S"] | None = None,
        interval: Float[Tensor, " B"] | None = None,
        text_timestep: Float[Tensor, " B"] | None = None,
        positions: Sequence[int] | None = None,
        attention_kwargs: dict[str, Any] | None = None,
    ) -> Float[Tensor, "B F C h w"]:
        """Predict v, or the clean latents, of every frame.

        Args:
            noisy: latents with noise.
            image: the first frame's latents, see `spread`.
            timestep: 0 to 1000, of the clip or of each frame of tokens (B, K).
            prompts: pictures of the condition, in [−1, 1]; or
            action: what `encode_prompts` made of them. Where CogVideoX 1.5 has filled up the clip at its beginning, so
                does this. Neither (prompt dropout): black pictures.
            text: embeddings, or numbers of words (`vocabulary.encode`); None: see `no_text`.
            states: of T frames, for "raw_state"; None (dropout): nothing is added.
            interval: control steps from frame to frame; None: 1.
            text_timestep, attention_kwargs: see `ControlledTransformer`.
            positions: which frames of tokens these are; default 0, 1, 2, …
        """
        batch, frames = noisy.shape[:2]
        if frames % self.settings.group:
            raise VapError(
                f"Latent frames must come in groups of {self.settings.group} (patch_size_t), got {frames} frames. "
                "Fill the clip up at its beginning, as `sampler.padded` does."
            )
        groups = frames // self.settings.group
        if action is None and self.trajectory is not None:
            action = self.encode_prompts(self._black(noisy) if prompts is None else prompts)
        elif prompts is not None:
            raise VapError(
                f"Give prompts or action, and only to models of condition skeleton, mesh or depth; got prompts "
                f"{'and action' if action is not None else ''} for '{self.settings.condition}'."
            )
        if action is not None and action.shape[1] != frames:
            action = self._filled_up(action, frames)
        if text is not None and not text.is_floating_point():
            if self.embed_words is None:
                raise VapError("Numbers of words need a model with text='words'. Give this one embeddings (B, L, E).")
            text = self.embed_words(text)
        text = self.no_text(batch) if text is None else text
        condition = self._condition(states, interval, batch, groups)
        seen, skips = torch.cat([noisy, image], dim=2), None
        if self.stem is not None:
            seen, action, skips = self.stem.enter(seen, action)
        rotary = rotary_positions(
            self.settings.base_config,
            (seen.shape[-2], seen.shape[-1]),
            groups if positions is None else positions,
            noisy.device,
        )
        output = self.transformer(
            seen,
            action,
            timestep,
            text=text,
            condition=condition,
            text_timestep=text_timestep,
            image_rotary_emb=rotary,
            attention_kwargs=attention_kwargs,
        )
        if self.stem is not None:
            output = self.stem.leave(output, seen, skips)
        return image + output if self.settings.residual else output  # type: ignore[no-any-return]

    def _condition(
        self, states: Tensor | None, interval: Tensor | None, batch: int, groups: int
    ) -> Float[Tensor, "B *K M"] | None:
        """What conditions add to the time embedding: per sample, or per frame of tokens."""
        if states is not None and self.embed_states is None:
            raise VapError(
                f"states were given to a model whose condition is '{self.settings.condition}'. Leave them out, or take "
                "a model of condition raw_state."
            )
        added: Tensor | None = None
        if self.embed_interval is not None:
            like = next(self.embed_interval.parameters())
            added = self.embed_interval(like.new_ones(batch) if interval is None else interval)
        elif interval is not None and bool((interval != 1).any()):
            raise VapError("This model knows one interval only (intervals=False in its config). Leave interval out.")
        if self.embed_states is not None and states is not None:
            of_frames: Tensor = self.embed_states(states, groups)
            added = of_frames if added is None else of_frames + added[:, None]
        return added

    def _black(self, noisy: Float[Tensor, "B F C h w"]) -> Float[Tensor, "B T P H W"]:
        """Pictures without a robot, for as many frames as the latents stand for."""
        batch, frames, _, h, w = noisy.shape
        stride, channels = self.settings.space_stride, self.settings.prompt_channels
        return noisy.new_full((batch, self.settings.frames(frames), channels, stride * h, stride * w), -1.0)

    def _filled_up(self, action: Float[Tensor, "B F2 A h w"], frames: int) -> Float[Tensor, "B F A h w"]:
        """Action latents with copies of the first before it, where latents were filled up to whole groups."""
        missing = frames - action.shape[1]
        if not 0 < missing < self.settings.group:
            raise VapError(
                f"prompts must be of as many latent frames as the clip has, {frames}, got {action.shape[1]}. "
                f"{frames} latent frames are {self.settings.frames(frames)} frames."
            )
        return torch.cat([action[:, :1].expand(-1, missing, -1, -1, -1), action], dim=1)
