"""Learned matchers as `Matcher`s: EfficientLoFTR and MatchAnything, with weights that the user has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from numpy.typing import NDArray

from vap_gym.errors import CheckpointError, VapError, require
from vap_gym.recover.matching import Matches, no_matches

MODEL_TYPE = "efficientloftr"  # MatchAnything's EfficientLoFTR variant is of this type as well
STRIDE_PX = 32  # sizes must be multiples of it
HOW = (
    "Download zju-community/efficientloftr or zju-community/matchanything_eloftr, and name the folder with config.json"
)


class LoftrMatcher:
    """EfficientLoFTR of transformers, from a folder in Hugging Face's layout; frozen, on one device.

    Args:
        folder: with config.json and model.safetensors, e.g. of zju-community/efficientloftr, or of MatchAnything.
        size_px: (width, height) at which pictures are matched; rounded up to multiples of 32.
        least_confidence: matches below are dropped.
        device: where it runs.

    Raises:
        CheckpointError: no such folder, another kind of model, or weights that are damaged or incomplete.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        size_px: tuple[int, int] = (640, 480),
        least_confidence: float = 0.2,
        device: torch.device | str = "cpu",
    ) -> None:
        if min(size_px) < STRIDE_PX or not 0 <= least_confidence <= 1:
            raise VapError(
                f"size_px must be at least {STRIDE_PX} px each way and least_confidence in [0, 1], "
                f"got {size_px} and {least_confidence}. Try (640, 480) and 0.2."
            )
        require("cv2", "[data]", "Matching pictures")
        self.size_px = tuple(-(-side // STRIDE_PX) * STRIDE_PX for side in size_px)
        self.least_confidence, self.device = least_confidence, torch.device(device)
        self._model = _load(Path(folder)).to(self.device).eval()

    def __call__(
        self,
        pictures: UInt8[np.ndarray, "T H W 3"],
        masks: Bool[np.ndarray, "T H W"],
        frames: UInt8[np.ndarray, "T H W 3"],
    ) -> list[Matches]:
        """Match rendered robots on black to frames. The whole pictures: who asks keeps what is on the robot."""
        return [
            self._pair(picture, frame) if mask.any() else no_matches()
            for picture, mask, frame in zip(pictures, masks, frames, strict=True)
        ]

    def _pair(self, picture: NDArray[np.uint8], frame: NDArray[np.uint8]) -> Matches:
        pair = np.stack([self._prepared(picture), self._prepared(frame)])[None, :, None]
        with torch.no_grad():
            found = self._model(torch.from_numpy(pair).to(self.device))
        confidence = found.matching_scores[0, 0].float().cpu().numpy().astype(np.float64)
        at = found.keypoints[0].float().cpu().numpy().astype(np.float64)  # (2 pictures, N, 2), shares of the sides
        sure = (confidence > self.least_confidence) & (found.matches[0, 0].cpu().numpy() >= 0)
        if not sure.any():
            return no_matches()
        side = np.array([picture.shape[1], picture.shape[0]], np.float64)
        return Matches(
            rendered_px=at[0, sure] * side, observed_px=at[1, sure] * side, confidence=confidence[sure].clip(0, 1)
        )

    def _prepared(self, picture: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Grey in [0, 1], at the size at which pictures are matched."""
        cv2: Any = require("cv2", "[data]", "Matching pictures")
        grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
        resized = cv2.resize(grey, self.size_px, interpolation=cv2.INTER_LINEAR)
        prepared: NDArray[np.float32] = resized.astype(np.float32) / np.float32(255)
        return prepared


def _load(folder: Path) -> Any:
    config = folder / "config.json"
    if not config.is_file():
        raise CheckpointError(f"No matcher at '{folder}': needs config.json, got none. {HOW}.")
    try:
        kind = json.loads(config.read_text(encoding="utf-8")).get("model_type")
    except (ValueError, AttributeError) as error:
        raise CheckpointError(f"{config} must be a JSON table, got {error}. {HOW}.") from error
    if kind != MODEL_TYPE:
        raise CheckpointError(f"{config} must be of model_type '{MODEL_TYPE}', got {kind!r}. {HOW}.")
    transformers = require("transformers", "transformers", "A learned matcher")
    try:
        model, told = transformers.EfficientLoFTRForKeypointMatching.from_pretrained(
            folder, local_files_only=True, output_loading_info=True
        )
    except Exception as error:  # safetensors and transformers raise a dozen kinds for damaged files
        raise CheckpointError(f"The weights in '{folder}' must be whole, got {error!r}. {HOW}.") from error
    missing = sorted(map(str, told["missing_keys"])) + sorted(map(str, told.get("mismatched_keys", ())))
    if missing:
        raise CheckpointError(
            f"The weights in '{folder}' lack {len(missing)} of the model's tensors, {missing[0]} for one. {HOW}."
        )
    return model
