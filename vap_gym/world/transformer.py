"""diffusers' CogVideoX transformer with the paper's action branch: ControlNet copy and main-branch merge (Sec. 3.3)."""

from __future__ import annotations

import copy
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXTransformer3DModel
from jaxtyping import Float
from torch import Tensor, nn

from vap_gym.world.framewise import frame_groups, make_framewise
from vap_gym.world.layers import zeroed


class ControlledTransformer(ModelMixin, ConfigMixin):
    """CogVideoX video transformer steered by action latents through two branches.

    At initialisation the output equals the base model's bit for bit: the ControlNet's linears start at zero and the
    merge starts as [I; 0]. K is the number of frames as tokens: F, or F / patch_size_t for CogVideoX 1.5.

    Args:
        base_config: keyword arguments of diffusers' CogVideoXTransformer3DModel.
        action_channels: channels of the action latents that the trajectory encoder gives.
        control_layers: how many of the first blocks the ControlNet copies (the paper: 14 of 42, a third); 0 for none.
        merge_actions: also merge the action tokens into the main branch (the paper's dual branch).
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["CogVideoXBlock", "CogVideoXPatchEmbed"]  # noqa: RUF012  (diffusers' own way)

    @register_to_config
    def __init__(
        self,
        base_config: dict[str, Any],
        action_channels: int = 16,
        control_layers: int = 2,
        merge_actions: bool = True,
    ):
        super().__init__()
        self.base = CogVideoXTransformer3DModel(**base_config)
        make_framewise(self.base)
        width = self.base.config.num_attention_heads * self.base.config.attention_head_dim
        patch, self.group = self.base.config.patch_size, self.base.config.patch_size_t or 1
        self.action_embed = nn.Conv2d(self.group * action_channels, width, patch, stride=patch)
        self.control_blocks = copy.deepcopy(self.base.transformer_blocks[:control_layers])
        self.control_in = zeroed(nn.Linear(width, width)) if control_layers else None
        self.control_out = nn.ModuleList([zeroed(nn.Linear(width, width)) for _ in range(control_layers)])
        self.merge = nn.Linear(2 * width, width) if merge_actions else None
        if self.merge is not None:
            with torch.no_grad():
                self.merge.weight.copy_(torch.cat([torch.eye(width), torch.zeros(width, width)], dim=1))
                self.merge.bias.zero_()
        self.gradient_checkpointing = False

    def set_attn_processor(self, processor: Any) -> None:
        """Use another attention processor in every block, as diffusers' method of this name does."""
        for block in (*self.base.transformer_blocks, *self.control_blocks):
            block.attn1.set_processor(processor)

    def copy_base_into_control(self) -> None:
        """Make the ControlNet's blocks a copy of the base's first blocks again, as after loading base weights."""
        for mine, theirs in zip(self.control_blocks, self.base.transformer_blocks, strict=False):
            mine.load_state_dict(theirs.state_dict())

    def forward(
        self,
        video: Float[Tensor, "B F C h w"],
        action: Float[Tensor, "B F A h w"] | None,
        timestep: Float[Tensor, "B *K"],
        *,
        text: Float[Tensor, "B L E"] | None = None,
        condition: Float[Tensor, "B *K2 M"] | None = None,
        text_timestep: Float[Tensor, " B"] | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
        ofs: float = 2.0,
        attention_kwargs: dict[str, Any] | None = None,
    ) -> Float[Tensor, "B F O h w"]:
        """Predict from noisy video latents and action latents of the same frames and size.

        Args:
            video: latents (B, F, in_channels, h, w).
            action: action latents (B, F, action_channels, h, w); None where neither branch is there.
            timestep: of the diffusion, 0 to 1000; one per sample, or one per frame of tokens (B, K).
            text: embeddings of the instruction, or None for no text tokens.
            condition: added to the time embedding: of the sample (B, M), e.g. the frame interval, or of each frame of
                tokens (B, K, M), e.g. the robot's states; the text's is left alone then.
            text_timestep: what modulates the text where `timestep` has one per frame; default 0, as text has no noise.
            image_rotary_emb: as in diffusers.
            ofs: CogVideoX 1.5's own number, always 2; unused by others.
            attention_kwargs: for the attention processors of all blocks.
        """
        base = self.base
        batch, frames, _, height, width = video.shape
        if text is None:
            text = video.new_zeros(batch, 0, base.config.text_embed_dim)
        time = self.time_embedding(timestep, condition, text_timestep, ofs=ofs, dtype=video.dtype)
        tokens = base.patch_embed(text, video)
        words, main = tokens[:, : text.shape[1]], tokens[:, text.shape[1] :]
        residuals: list[Tensor] = []
        if action is not None and (self.control_in is not None or self.merge is not None):
            moves = self.action_embed(frame_groups(action, self.group).flatten(0, 1))
            moves = moves.unflatten(0, (batch, -1)).flatten(3).transpose(2, 3).flatten(1, 2)
            residuals = self._control(main, words, moves, time, image_rotary_emb, attention_kwargs)
            if self.merge is not None:
                main = self.merge(torch.cat([main, moves], dim=-1))
        for i, block in enumerate(base.transformer_blocks):
            main, words = self._run(block, main, words, time, image_rotary_emb, attention_kwargs)
            if i < len(residuals):
                main = main + residuals[i]
        main = base.proj_out(base.norm_out(base.norm_final(main), temb=time))
        p, q = base.config.patch_size, self.group
        main = main.reshape(batch, frames // q, height // p, width // p, -1, q, p, p)
        main = main.permute(0, 1, 5, 4, 2, 6, 3, 7)  # B K q O h/p p w/p p
        return main.flatten(6, 7).flatten(4, 5).flatten(1, 2)  # type: ignore[no-any-return]

    def time_embedding(
        self,
        timestep: Float[Tensor, "B *K"],
        condition: Float[Tensor, "B *K2 M"] | None = None,
        text_timestep: Float[Tensor, " B"] | None = None,
        *,
        ofs: float = 2.0,
        dtype: torch.dtype = torch.float32,
    ) -> Float[Tensor, "B *K3 M"]:
        """Return what modulates the blocks: (B, M), or (B, 1 + K, M), the first for the text, where frames differ."""
        base = self.base
        per_frame = timestep.ndim == 2 or (condition is not None and condition.ndim == 3)
        if timestep.ndim == 2:
            first = torch.zeros_like(timestep[:, 0]) if text_timestep is None else text_timestep
            timestep = torch.cat([first[:, None], timestep], dim=1)
        time = base.time_embedding(base.time_proj(timestep.reshape(-1)).to(dtype)).unflatten(0, timestep.shape)
        if base.ofs_embedding is not None:
            number = timestep.new_full((1,), ofs).to(dtype)
            time = time + base.ofs_embedding(base.ofs_proj(number).to(dtype))
        if condition is None or not per_frame:
            return time if condition is None else time + condition  # type: ignore[no-any-return]
        if time.ndim == 2:
            time = time[:, None].expand(-1, 1 + condition.shape[1], -1)
        if condition.ndim == 2:
            return time + condition[:, None]  # type: ignore[no-any-return]
        return torch.cat([time[:, :1], time[:, 1:] + condition], dim=1)

    def _run(
        self,
        block: nn.Module,
        video: Tensor,
        words: Tensor,
        time: Tensor,
        rotary: tuple[Tensor, Tensor] | None,
        attention_kwargs: dict[str, Any] | None,
    ) -> tuple[Tensor, Tensor]:
        """One block, its activations computed again in the backward pass where that is switched on."""
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(  # type: ignore[no-any-return]
                block, video, words, time, rotary, attention_kwargs
            )
        return block(video, words, time, rotary, attention_kwargs)  # type: ignore[no-any-return]

    def _control(
        self,
        main: Tensor,
        words: Tensor,
        moves: Tensor,
        time: Tensor,
        rotary: tuple[Tensor, Tensor] | None,
        attention_kwargs: dict[str, Any] | None,
    ) -> list[Tensor]:
        """The ControlNet: copied blocks on [video + zero-linear(action)], each leaving through a zero-linear."""
        if self.control_in is None:
            return []
        residuals, stream = [], main + self.control_in(moves)
        for block, leave in zip(self.control_blocks, self.control_out, strict=True):
            stream, words = self._run(block, stream, words, time, rotary, attention_kwargs)
            residuals.append(leave(stream))
        return residuals
