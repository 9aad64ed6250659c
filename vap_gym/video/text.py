"""Instructions as embeddings of CogVideoX's text encoder (T5): computed, or read from a file that was made once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vap_gym.errors import CheckpointError, UnknownNameError, unknown_name_message


@runtime_checkable
class TextSource(Protocol):
    """Gives the embeddings of instructions."""

    def encode(self, texts: Sequence[str]) -> Float[Tensor, "B L E"]:
        """Return the embeddings of B instructions; "" is none."""
        ...


class T5Text:
    """A T5 encoder and its tokenizer from transformers, used as CogVideoX's pipeline uses them.

    Args:
        tokenizer, encoder: of transformers (`AutoTokenizer`, `T5EncoderModel`).
        length: tokens of an instruction: longer ones are cut, shorter ones filled up.
    """

    def __init__(self, tokenizer: Any, encoder: Any, *, length: int = 226) -> None:
        self.tokenizer, self.encoder, self.length = tokenizer, encoder.eval(), length

    @classmethod
    def from_folder(cls, folder: Path, *, length: int, device: torch.device | str, dtype: torch.dtype | None) -> T5Text:
        """Load `tokenizer` and `text_encoder` of a pipeline's folder."""
        from transformers import AutoTokenizer, T5EncoderModel

        for name in ("tokenizer", "text_encoder"):
            if not (folder / name).is_dir():
                raise CheckpointError(
                    f"'{folder}' must hold '{name}' to read instructions, but does not. Fetch it, or give text_cache, "
                    "a file of embeddings that were computed once."
                )
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
            encoder = T5EncoderModel.from_pretrained(folder / "text_encoder", dtype=dtype)
        except (OSError, ValueError, ImportError) as error:
            raise CheckpointError(
                f"The text encoder in '{folder}' could not be loaded: {error} Fetch it again, or give text_cache."
            ) from error
        return cls(tokenizer, encoder.to(device), length=length)

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Float[Tensor, "B L E"]:
        """Embed instructions."""
        tokens = self.tokenizer(
            list(texts),
            padding="max_length",
            max_length=self.length,
            truncation=True,
            add_special_tokens=True,
            return_tensors="pt",
        )
        embedded: Tensor = self.encoder(tokens.input_ids.to(self.encoder.device))[0]
        return embedded


class CachedText:
    """Embeddings that were computed once, by instruction; T5 need not be there.

    Args:
        embeddings: (L, E) of each instruction; "" among them for guidance.
    """

    def __init__(self, embeddings: dict[str, Float[Tensor, "L E"]]) -> None:
        self.embeddings = embeddings

    @classmethod
    def from_file(cls, file: str | Path) -> CachedText:
        """Read what `save` wrote. Raises CheckpointError for a file that is missing or something else."""
        try:
            with safe_open(str(file), framework="pt") as opened:
                texts = json.loads((opened.metadata() or {}).get("texts", "null"))
                if not isinstance(texts, list):
                    raise CheckpointError(
                        f"'{file}' must hold the instructions beside their embeddings, but has none. Write it with "
                        "CachedText.save."
                    )
                return cls({text: opened.get_tensor(str(i)) for i, text in enumerate(texts)})
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"'{file}' is no file of text embeddings: {error}. Write one with CachedText.save."
            ) from error

    @classmethod
    def of(cls, source: TextSource, texts: Sequence[str]) -> CachedText:
        """Embed instructions, each once, and the empty one."""
        each = list(dict.fromkeys(["", *texts]))
        return cls({text: source.encode([text])[0].cpu() for text in each})

    def save(self, file: str | Path) -> None:
        """Write one safetensors file."""
        file = Path(file)
        tensors = {str(i): value.cpu().contiguous() for i, value in enumerate(self.embeddings.values())}
        temporary = file.with_name(f".{file.name}.tmp")
        save_file(tensors, temporary, metadata={"texts": json.dumps(list(self.embeddings))})
        temporary.replace(file)

    def encode(self, texts: Sequence[str]) -> Float[Tensor, "B L E"]:
        """Look up instructions. Raises UnknownNameError for one that was not embedded."""
        for text in texts:
            if text not in self.embeddings:
                known = (one or "the empty one" for one in self.embeddings)
                told = unknown_name_message("cached instruction", text, known)
                raise UnknownNameError(f"{told} Others need T5 (text_encoder=True) or a text_cache that has them.")
        return torch.stack([self.embeddings[text] for text in texts])
