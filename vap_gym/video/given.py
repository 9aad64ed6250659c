"""What worlds of video models are given: frames, robot states and words, checked, and words as the model takes them."""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vap_gym.errors import CheckpointError, VapError
from vap_gym.video.model import VideoModel
from vap_gym.video.presets import VideoConfig
from vap_gym.world.checkpoint import sha256_of

TEXT = "text.safetensors"


def check_frames(frames: Tensor, what: str, size_px: tuple[int, int]) -> None:
    """Raise VapError where frames are not uint8 (…, H, W, 3) of the size (width, height)."""
    width, height = size_px
    if frames.dtype != torch.uint8 or frames.shape[-3:] != (height, width, 3):
        raise VapError(
            f"{what} must be uint8 (…, {height}, {width}, 3), got {frames.dtype} {tuple(frames.shape)}. "
            "Crop and resize them first."
        )


def told_states(settings: VideoConfig, states: Tensor | None, slots: int, frames: int) -> Float[Tensor, "B K S"] | None:
    """Return the states that a network is told; None where it is told by pictures or nothing.

    Raises VapError where a model of condition "raw_state" is given others than (slots, frames, state_width).
    """
    if settings.condition != "raw_state":
        return None
    shape = (slots, frames, settings.state_width)
    if states is None or tuple(states.shape) != shape:
        raise VapError(
            f"A model of condition 'raw_state' must be told states {shape}, "
            f"got {None if states is None else tuple(states.shape)}. Give `rig.Motion.states`."
        )
    return states


def told_words(model: VideoModel, text: str | Tensor | None) -> str | Tensor | None:
    """Return an instruction as the model is told it in a world; None is the empty one, as training leaves words out.

    Of models with text="t5" that is an embedding (1, L, E): the empty instruction's is no row of zeros.

    Raises:
        VapError: the model takes no words, or has nothing to read them with, not even the empty instruction.
    """
    kind = model.settings.text
    if kind == "none" and text is not None:
        raise VapError(f"The model '{model.name}' takes no words (text='none'), got {_shown(text)}. Leave text out.")
    if kind != "t5" or isinstance(text, Tensor):
        return text
    if model.text is None:
        raise VapError(
            f"The model '{model.name}' takes instructions as T5's embeddings, and where there is no instruction that "
            "of the empty one, got nothing to embed them with. Give text_cache (a file of CachedText.save), "
            "text_encoder=True, or text as embeddings (1, L, E)."
        )
    return model.text.encode([text or ""]).float()


def save_text(folder: Path, text: Float[Tensor, "1 L E"]) -> str:
    """Write embeddings beside a world that is told them; return the file's sha256."""
    temporary = folder / f".{TEXT}.tmp"
    save_file({"text": text.detach().float().cpu().contiguous()}, temporary)
    temporary.replace(folder / TEXT)
    return sha256_of(folder / TEXT)


def load_text(folder: Path, sha256: str) -> Float[Tensor, "1 L E"]:
    """Read what `save_text` wrote. Raises CheckpointError where it is not there, or was changed."""
    file = folder / TEXT
    if not file.is_file() or sha256_of(file) != sha256:
        found = "has another" if file.is_file() else "is not there"
        raise CheckpointError(
            f"'{file}' must have the sha256 {sha256[:12]}… of its index, but {found}. Fetch it again, or save it anew."
        )
    try:
        return load_file(file)["text"]
    except (SafetensorError, KeyError) as error:
        raise CheckpointError(f"'{file}' holds no embeddings: {error}. Fetch it again.") from error


def _shown(text: str | Tensor) -> str:
    return f"embeddings {tuple(text.shape)}" if isinstance(text, Tensor) else repr(text)
