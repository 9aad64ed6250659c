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

from vap_gym.world.layers import zeroed


class ControlledTransformer(ModelMixin, ConfigMixin):
    """CogVideoX video transformer steered by action latents through two branches.

    At initialisation the output equals the base model's bit for bit: the ControlNet's linears start at zero and the
    merge starts as [I; 0].

    Args:
        base_config: keyword arguments of diffusers' CogVideoXTransformer3DModel.
        action_channels: channels of the action latents that the trajectory encoder gives.
        control_layers: how many of the first blocks the ControlNet copies (the paper: 14 of 42, a third); 0 for none.
        merge_actions: also merge the action tokens into the main branch (the paper's dual branch).
    """

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
        width = self.base.config.num_attention_heads * self.base.config.attention_head_dim
        patch = self.base.config.patch_size
        self.action_embed = nn.Conv2d(action_channels, width, patch, stride=patch)
        self.control_blocks = copy.deepcopy(self.base.transformer_blocks[:control_layers])
        self.control_in = zeroed(nn.Linear(width, width)) if control_layers else None
        self.control_out = nn.ModuleList([zeroed(nn.Linear(width, width)) for _ in range(control_layers)])
        self.merge = nn.Linear(2 * width, width) if merge_actions else None
        if self.merge is not None:
            with torch.no_grad():
                self.merge.weight.copy_(torch.cat([torch.eye(width), torch.zeros(width, width)], dim=1))
                self.merge.bias.zero_()

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
        action: Float[Tensor, "B F A h w"],
        timestep: Float[Tensor, " B"],
        *,
        text: Float[Tensor, "B L E"] | None = None,
        condition: Float[Tensor, "B M"] | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Float[Tensor, "B F O h w"]:
        """Predict from noisy video latents and action latents of the same frames and size.

        Args:
            video: latents (B, F, in_channels, h, w).
            action: action latents (B, F, action_channels, h, w).
            timestep: of the diffusion, 0 to 1000.
            text: embeddings of the instruction, or None for no text tokens.
            condition: added to the time embedding, e.g. the frame interval.
            image_rotary_emb: as in diffusers.
        """
        base = self.base
        batch, frames, _, height, width = video.shape
        if text is None:
            text = video.new_zeros(batch, 0, base.config.text_embed_dim)
        time = base.time_embedding(base.time_proj(timestep).to(video.dtype))
        if condition is not None:
            time = time + condition
        tokens = base.patch_embed(text, video)
        words, main = tokens[:, : text.shape[1]], tokens[:, text.shape[1] :]
        moves = self.action_embed(action.flatten(0, 1))
        moves = moves.unflatten(0, (batch, frames)).flatten(3).transpose(2, 3).flatten(1, 2)
        residuals = self._control(main, words, moves, time, image_rotary_emb)
        if self.merge is not None:
            main = self.merge(torch.cat([main, moves], dim=-1))
        for i, block in enumerate(base.transformer_blocks):
            main, words = block(main, words, time, image_rotary_emb)
            if i < len(residuals):
                main = main + residuals[i]
        main = base.proj_out(base.norm_out(base.norm_final(main), temb=time))
        p = base.config.patch_size
        main = main.reshape(batch, frames, height // p, width // p, -1, p, p)
        return main.permute(0, 1, 4, 2, 5, 3, 6).flatten(5, 6).flatten(3, 4)  # type: ignore[no-any-return]

    def _control(
        self, main: Tensor, words: Tensor, moves: Tensor, time: Tensor, rotary: tuple[Tensor, Tensor] | None
    ) -> list[Tensor]:
        """The ControlNet: copied blocks on [video + zero-linear(action)], each leaving through a zero-linear."""
        if self.control_in is None:
            return []
        residuals, stream = [], main + self.control_in(moves)
        for block, leave in zip(self.control_blocks, self.control_out, strict=True):
            stream, words = block(stream, words, time, rotary)
            residuals.append(leave(stream))
        return residuals
