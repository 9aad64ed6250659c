"""Rotary positions of video tokens, as diffusers' CogVideoX pipelines compute them, for any frames of a clip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from jaxtyping import Float
from torch import Tensor

from vap_gym.errors import VapError


def rotary_positions(
    base_config: Mapping[str, Any],
    latent_size: tuple[int, int],
    frames: int | Sequence[int],
    device: torch.device | str = "cpu",
) -> tuple[Float[Tensor, "N D"], Float[Tensor, "N D"]] | None:
    """Return cosines and sines for every video token, or None where the base uses no rotary positions.

    Args:
        base_config: of CogVideoXTransformer3DModel.
        latent_size: height and width of what the transformer sees.
        frames: how many frames of tokens there are, counted from 0; or which, one by one (streaming).
        device: where they go.
    """
    if not base_config.get("use_rotary_positional_embeddings", False):
        return None
    which = None if isinstance(frames, int) else [int(i) for i in frames]
    count = frames if isinstance(frames, int) else max(frames) + 1
    patch = base_config.get("patch_size", 2)
    grid = (latent_size[0] // patch, latent_size[1] // patch)
    most = (base_config.get("sample_height", 60) // patch, base_config.get("sample_width", 90) // patch)
    settings: dict[str, Any] = {"embed_dim": base_config.get("attention_head_dim", 64), "grid_size": grid}
    if base_config.get("patch_size_t") is None:  # CogVideoX 1.0: stretched onto the trained size
        crops = trained_region(grid, most)
        cos, sin = get_3d_rotary_pos_embed(**settings, crops_coords=crops, temporal_size=count, device=device)
    else:  # 1.5: cut out of the largest size
        if grid[0] > most[0] or grid[1] > most[1]:
            raise VapError(
                f"Latents may be at most {base_config.get('sample_height')} × {base_config.get('sample_width')} "
                f"(height × width) for this base, got {latent_size[0]} × {latent_size[1]}. Give smaller frames."
            )
        cos, sin = get_3d_rotary_pos_embed(
            **settings, crops_coords=None, temporal_size=count, grid_type="slice", max_size=most, device=device
        )
    if which is None:
        return cos, sin
    at = torch.tensor(which, device=cos.device)
    cos, sin = (x.unflatten(0, (count, -1))[at].flatten(0, 1) for x in (cos, sin))
    return cos, sin


def trained_region(grid: tuple[int, int], trained: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the largest region of the trained grid with the shape of `grid`, in its middle: (top, left), (bottom,
    right). Grids are (rows, columns) of tokens. The pipeline has this, too, but importing it takes seconds."""
    rows, columns = trained
    if grid[0] / grid[1] > rows / columns:
        height, width = rows, round(rows / grid[0] * grid[1])
    else:
        height, width = round(columns / grid[1] * grid[0]), columns
    top, left = round((rows - height) / 2.0), round((columns - width) / 2.0)
    return (top, left), (top + height, left + width)
