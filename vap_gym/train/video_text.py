"""Instructions as the network takes them: numbers of words, or embeddings of a text encoder, computed once and kept."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from vap_gym.data.episodes import EpisodeSet
from vap_gym.train.video_recipe import VideoRecipe
from vap_gym.train.video_store import Store
from vap_gym.video.network import VideoNetwork
from vap_gym.video.text import CachedText


class TextOf:
    """Instructions → what `VideoNetwork.forward` takes as `text`; None where the model takes none.

    Embeddings (text = "t5") are made on `device` for every instruction of the sets, and for the empty one, when this is
    made; the text encoder is not kept.
    """

    def __init__(
        self,
        network: VideoNetwork,
        recipe: VideoRecipe,
        sets: Sequence[EpisodeSet],
        *,
        device: torch.device | str = "cpu",
    ) -> None:
        self._kind, self._vocabulary = network.settings.text, network.vocabulary
        self._kept: dict[str, Tensor] = {}
        if self._kind != "t5":
            return
        tasks = sorted({one.task(i) for one in sets for i in range(len(one))} | {""})
        base = network.transformer.base.config
        about = {"text_encoder": recipe.text_encoder, "length": int(base.max_text_seq_length)}
        store = Store(Path(recipe.cache) / f"text-{_name(str(about))}", about=about, what="text cache")
        missing = [task for task in tasks if _name(task) not in store]
        if missing:
            from vap_gym.video.text import T5Text

            length = int(base.max_text_seq_length)
            encoder = T5Text.from_folder(Path(recipe.text_encoder), length=length, device=device, dtype=torch.bfloat16)
            with store.writing() as writer:
                for task in missing:
                    if _name(task) not in store:
                        writer.append(_name(task), encoder.encode([task])[0].float().cpu().numpy().astype(np.float16))
        self._kept = {task: torch.from_numpy(store[_name(task)].astype(np.float32)) for task in tasks}

    @property
    def empty(self) -> CachedText | None:
        """The embedding of the empty instruction, to be kept with the model; None where its text is no embedding."""
        return CachedText({"": self._kept[""]}) if self._kind == "t5" else None

    def __call__(self, tasks: Sequence[str]) -> Float[Tensor, "B L E"] | Int64[Tensor, "B L"] | None:
        """Return numbers or embeddings of instructions."""
        if self._vocabulary is not None:
            return self._vocabulary.encode(tasks)
        return torch.stack([self._kept[task] for task in tasks]) if self._kind == "t5" else None


def _name(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:20]
