"""What a clip shows, in words: captions by a vision-language model, of the scene alone or with the action.

The paper captions its clips with Qwen2.5-VL. Two kinds: with the action told, and of the scene only, so that a video
model has to learn the action from the prompt picture and not from the text.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from vap_gym.errors import MissingDependencyError, VapError
from vap_gym.pictures import spread

SCENE_QUESTION = (
    "These pictures are from one short video, in order. Describe the place, the objects and where they lie, and what "
    "the hands look like, in one or two plain sentences. Do not say what is done or how anything moves."
)
ACTION_QUESTION = (
    "These pictures are from one short video, in order. Describe in one or two plain sentences the place, the objects "
    "and what the hands do with them, from the first picture to the last."
)


@runtime_checkable
class Captioner(Protocol):
    """Puts a clip into words."""

    def caption(self, frames: UInt8[np.ndarray, "T H W 3"], *, action: bool) -> str:
        """Return a sentence or two on a clip; what is done is told only if `action`."""
        ...


def messages(count: int, *, action: bool) -> list[dict[str, Any]]:
    """Return the chat of a question about `count` pictures, as `apply_chat_template` takes it."""
    question = {"type": "text", "text": ACTION_QUESTION if action else SCENE_QUESTION}
    return [{"role": "user", "content": [*({"type": "image"} for _ in range(count)), question]}]


class QwenCaptioner:
    """Captions by a Qwen2.5-VL checkpoint through transformers: the user's weights, e.g. Qwen/Qwen2.5-VL-7B-Instruct.

    Loads `model`, its tokenizer and its picture processor from a folder or hub name. `pictures` frames of a clip are
    shown, evenly spread, as pictures (so that torchvision, which the video processor needs, is not needed).
    """

    def __init__(
        self,
        checkpoint: str | Path,
        *,
        pictures: int = 8,
        max_words: int = 96,
        device: str = "cpu",
        dtype: str = "auto",
    ) -> None:
        if pictures < 1 or max_words < 1:
            raise VapError(f"pictures and max_words must be at least 1, got {pictures} and {max_words}. Try 8 and 96.")
        try:
            from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration
            from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
        except ImportError as error:
            raise MissingDependencyError(
                f"Captions need the package 'transformers' of version 5 or later, got {error}. Run: "
                "pip install 'transformers>=5'"
            ) from error

        self.pictures, self.max_tokens, self.device = pictures, max_words, device
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(str(checkpoint))
            self.processor: Any = Qwen2VLImageProcessorPil.from_pretrained(str(checkpoint))
            loaded: Any = Qwen2_5_VLForConditionalGeneration.from_pretrained(str(checkpoint), dtype=dtype)
        except (OSError, ValueError, KeyError) as error:
            raise VapError(
                f"No captions from '{checkpoint}': {str(error).splitlines()[0] if str(error) else error!r}. Give the "
                "folder or hub name of a Qwen2.5-VL checkpoint, like Qwen/Qwen2.5-VL-7B-Instruct."
            ) from error
        self.model = loaded.to(device).eval()

    def prompt(self, count: int, places: list[int], *, action: bool) -> str:
        """Return the text that the model reads: the chat of `messages`, with as many picture tokens as patches."""
        text: str = self.tokenizer.apply_chat_template(
            messages(count, action=action), tokenize=False, add_generation_prompt=True
        )
        pad = self.tokenizer.convert_ids_to_tokens(self.model.config.image_token_id)
        pieces = text.split(pad)
        if len(pieces) != count + 1:
            raise VapError(
                f"The chat template must place {count} pictures ({pad}), got {len(pieces) - 1}. Is the checkpoint's "
                "tokenizer that of Qwen2.5-VL?"
            )
        return pieces[0] + "".join(pad * n + piece for n, piece in zip(places, pieces[1:]))

    def caption(self, frames: UInt8[np.ndarray, "T H W 3"], *, action: bool) -> str:
        """Return a sentence or two on a clip, the likeliest words (no sampling)."""
        import torch
        from PIL import Image

        if not len(frames):
            raise VapError("A caption needs at least one frame, got none. Drop empty clips.")
        shown = [Image.fromarray(frames[i]) for i in spread(self.pictures, len(frames))]
        pixels = self.processor(images=shown, return_tensors="pt")
        grid = pixels["image_grid_thw"]
        places = (grid.prod(-1) // self.processor.merge_size**2).tolist()
        text = self.prompt(len(shown), places, action=action)
        tokens = self.tokenizer(text, return_tensors="pt", add_special_tokens=False)
        ids = tokens["input_ids"]
        inputs = {
            "input_ids": ids,
            "attention_mask": tokens["attention_mask"],
            "pixel_values": pixels["pixel_values"].to(self.model.dtype),
            "image_grid_thw": grid,
            "mm_token_type_ids": (ids == self.model.config.image_token_id).int(),  # 1: a picture's token
        }
        with torch.no_grad():
            out = self.model.generate(
                **{name: value.to(self.device) for name, value in inputs.items()},
                max_new_tokens=self.max_tokens,
                do_sample=False,
            )
        words: str = self.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
        return " ".join(words.split())
