"""Instructions as numbers for the small models: a vocabulary of at most 256 words, our own, and nothing hidden."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from jaxtyping import Int64
from torch import Tensor

from vap_gym.errors import VapError

PAD, UNKNOWN = 0, 1
MOST_WORDS = 256

WORDS: tuple[str, ...] = (
    # what the simulator's instructions are made of
    "move", "the", "gripper", "to", "push", "pink", "mark", "lift", "knock", "over", "place", "upright", "open",
    "close", "drawer", "red", "green", "blue", "yellow", "purple", "cyan", "cube", "box", "cylinder", "ball", "disc",
    "tower", "bottle", "cross", "can", "brick", "bar", "wedge", "ring", "plate",
    # what instructions of real recordings have often
    "a", "an", "and", "it", "in", "into", "on", "onto", "from", "of", "off", "out", "up", "down", "left", "right",
    "front", "back", "side", "top", "bottom", "middle", "near", "next", "away", "towards", "then", "with", "one",
    "two", "pick", "put", "take", "remove", "pull", "slide", "turn", "rotate", "flip", "fold", "unfold", "wipe",
    "pour", "press", "grasp", "grab", "hold", "release", "drop", "hand", "reach", "stack", "insert", "hang", "cover",
    "black", "white", "grey", "orange", "brown", "silver", "small", "large", "bowl", "cup", "mug", "pot", "pan",
    "lid", "spoon", "fork", "knife", "towel", "cloth", "table", "counter", "sink", "shelf", "cabinet", "door", "bag",
    "block", "object", "pen", "marker", "paper", "tape", "button", "switch", "handle", "basket", "tray", "sponge",
    "apple", "banana", "carrot", "chip", "sauce", "stove", "microwave", "toaster", "eye", "chair",
)  # fmt: skip


class Vocabulary:
    """Words ↔ numbers. 0 fills up, 1 stands for every word that is not known, the words follow.

    Args:
        words: in the order of the embedding's rows; lower case, each once.
        length: of every encoded instruction: longer ones are cut, shorter ones filled up.

    Raises:
        VapError: more than 256 numbers in all, or a word twice.
    """

    def __init__(self, words: Sequence[str] = WORDS, *, length: int = 12) -> None:
        if len(words) + 2 > MOST_WORDS:
            raise VapError(f"A vocabulary has at most {MOST_WORDS - 2} words, got {len(words)}. Leave rare ones out.")
        twice = sorted({word for word in words if words.count(word) > 1})
        if twice:
            raise VapError(f"Each word must stand once in a vocabulary, got twice: {', '.join(twice)}. Leave one out.")
        self.words = tuple(words)
        self.length = length
        self._number = {word: i + 2 for i, word in enumerate(words)}

    def __len__(self) -> int:
        """How many numbers there are, with those for filling up and for unknown words."""
        return len(self.words) + 2

    def encode(self, instructions: Sequence[str]) -> Int64[Tensor, "B L"]:
        """Return the instructions' numbers (B, length): case and punctuation do not count; "" is all filling."""
        rows = torch.full((len(instructions), self.length), PAD, dtype=torch.int64)
        for row, instruction in zip(rows, instructions, strict=True):
            numbers = [self._number.get(word, UNKNOWN) for word in _split(instruction)][: self.length]
            row[: len(numbers)] = torch.tensor(numbers, dtype=torch.int64)
        return rows

    def unknown(self, instruction: str) -> tuple[str, ...]:
        """Return the words of an instruction that this vocabulary does not have, each once, in order."""
        return tuple(dict.fromkeys(word for word in _split(instruction) if word not in self._number))


def _split(instruction: str) -> list[str]:
    return re.findall(r"[a-z0-9']+", instruction.lower())
