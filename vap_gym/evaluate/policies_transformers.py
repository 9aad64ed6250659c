"""A vision-language model of `transformers` in this process, for a judge to ask."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image

from vap_gym.errors import CheckpointError, VapError, require
from vap_gym.policies.known import module_digest

ANSWER_TOKENS = 16


class TransformersVlm:
    """Shows pictures to a model that was made to talk about them, and asks. For `VlmJudge`.

    The same question about the same pictures is answered in another way each time, but in the same ways in every run:
    what is drawn follows from `seed`, from what is asked, and from how often that was asked before.

    Args:
        model: of `AutoModelForImageTextToText`, or of its shape: `generate`, `device`, `name_or_path`.
        processor: the model's own, with a chat template.
        temperature: of its sampling; 0: the likeliest answer, the same at every vote.
        timeout_s: for an answer; what it has said until then is its answer.
        seed: of its sampling.
    """

    def __init__(
        self, model: Any, processor: Any, *, temperature: float = 0.7, timeout_s: float = 60.0, seed: int = 0
    ) -> None:
        if temperature < 0 or timeout_s <= 0:
            raise VapError(f"temperature must be 0 or more and timeout_s above 0, got {temperature} and {timeout_s}.")
        if getattr(processor, "chat_template", None) is None:
            raise VapError(
                f"A judge's processor must have a chat template, got a {type(processor).__name__}. Take a model "
                "that was tuned for instructions."
            )
        self.model, self.processor = model, processor
        self.temperature, self.timeout_s, self.seed = temperature, timeout_s, seed
        self._asked: Counter[int] = Counter()

    @classmethod
    def load(cls, name: str | Path, *, device: str = "cpu", **settings: Any) -> TransformersVlm:
        """Read a model and its processor from a folder, or by a name on the hub; `settings` as above.

        Raises:
            CheckpointError: nothing there that can be asked about pictures.
            MissingDependencyError: no `transformers`.
        """
        auto: Any = require("transformers", "transformers", "A judge that is a model")
        try:
            processor = auto.AutoProcessor.from_pretrained(name)
            model = auto.AutoModelForImageTextToText.from_pretrained(name).to(device).eval()
        except (OSError, ValueError, KeyError) as error:
            told = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise CheckpointError(
                f"No vision-language model at '{name}': {told} Give a folder that save_pretrained wrote, or a name of "
                "the hub."
            ) from error
        return cls(model, processor, **settings)

    @property
    def settings(self) -> Mapping[str, Any]:
        """Whom it asks, and how."""
        known = {"model": str(self.model.name_or_path), "weights": module_digest(self.model)}
        return {**known, "temperature": self.temperature, "seed": self.seed}

    @torch.no_grad()
    def __call__(self, pictures: Sequence[UInt8[np.ndarray, "H W 3"]], question: str) -> str:
        """Return the answer, or what was said of it in time."""
        content: list[dict[str, Any]] = [{"type": "image", "image": Image.fromarray(picture)} for picture in pictures]
        content.append({"type": "text", "text": question})
        inputs = self.processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        ).to(self.model.device)
        sampling = {"do_sample": True, "temperature": self.temperature} if self.temperature else {"do_sample": False}
        devices = [self.model.device] if self.model.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(self._drawn_seed(pictures, question))
            said = self.model.generate(**inputs, **sampling, max_new_tokens=ANSWER_TOKENS, max_time=self.timeout_s)
        answer = said[:, inputs["input_ids"].shape[1] :]
        return str(self.processor.batch_decode(answer, skip_special_tokens=True)[0])

    def _drawn_seed(self, pictures: Sequence[UInt8[np.ndarray, "H W 3"]], question: str) -> int:
        asked = zlib.crc32(question.encode())
        for picture in pictures:
            asked = zlib.crc32(np.ascontiguousarray(picture).tobytes(), asked)
        self._asked[asked] += 1
        return int(np.random.SeedSequence([self.seed, asked, self._asked[asked]]).generate_state(1)[0])
