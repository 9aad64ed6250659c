"""EfficientLoFTR as a matcher: a small checkpoint of random weights goes through the whole plumbing."""

from pathlib import Path

import numpy as np
import pytest
import torch

from vap_gym.errors import CheckpointError, VapError
from vap_gym.recover.adapters_matching import LoftrMatcher
from vap_gym.recover.matching import discrepancy_px, on_robot

SIZE = (192, 96)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import EfficientLoFTRConfig, EfficientLoFTRForKeypointMatching

    torch.manual_seed(0)
    config = EfficientLoFTRConfig(
        stage_num_blocks=[1, 1, 1, 1],
        out_features=[16, 16, 32, 64],
        hidden_size=64,
        num_attention_heads=8,  # its rotary embedding wants heads of an eighth
        num_attention_layers=1,
        coarse_matching_threshold=0.0,
        coarse_matching_temperature=0.3,
    )
    model = EfficientLoFTRForKeypointMatching(config)
    for part in model.modules():  # as large as trained ones, so that features differ from place to place
        if isinstance(part, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(part.weight)
        elif isinstance(part, torch.nn.BatchNorm2d):
            torch.nn.init.ones_(part.weight)
    folder = tmp_path_factory.mktemp("loftr")
    model.save_pretrained(folder)
    return folder


def picture(seed: int) -> np.ndarray:
    import cv2

    noise = np.random.default_rng(seed).integers(0, 255, (12, 24, 3), dtype=np.uint8)
    return cv2.resize(noise, SIZE, interpolation=cv2.INTER_NEAREST)


def test_checkpoint_matches_a_picture_to_itself_in_its_own_pixels(checkpoint: Path) -> None:
    matcher = LoftrMatcher(checkpoint, size_px=(384, 190), least_confidence=0.0)
    assert matcher.size_px == (384, 192)
    mask = np.zeros((1, SIZE[1], SIZE[0]), bool)
    mask[0, 20:70, 40:120] = True
    (found,) = matcher(picture(0)[None], mask, picture(0)[None])
    assert len(found) > 8
    assert found.rendered_px.max(0) == pytest.approx(np.array(SIZE), abs=20)  # spread over the picture, not the input
    assert ((found.confidence >= 0) & (found.confidence <= 1)).all()
    assert discrepancy_px(found) < 1
    robot = on_robot(found, mask[0])
    assert 0 < len(robot) < len(found)
    assert robot.rendered_px.min() > 15


def test_confidence_and_an_empty_mask_limit_what_is_returned(checkpoint: Path) -> None:
    pictures, mask = picture(1)[None], np.ones((1, SIZE[1], SIZE[0]), bool)
    every, sure, none = (LoftrMatcher(checkpoint, size_px=SIZE, least_confidence=c) for c in (0.0, 0.5, 1.0))
    (all_matches,), (best,), (nothing,) = (m(pictures, mask, pictures) for m in (every, sure, none))
    assert len(all_matches) >= len(best) >= len(nothing) == 0
    assert (best.confidence > 0.5).all()
    assert [len(m) for m in every(pictures, mask & False, pictures)] == [0]


def test_folders_that_hold_no_such_model_are_told(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="needs config.json, got none"):
        LoftrMatcher(tmp_path)
    config = tmp_path / "config.json"
    config.write_text('{"model_type": "bert"}')
    with pytest.raises(CheckpointError, match="must be of model_type 'efficientloftr', got 'bert'"):
        LoftrMatcher(tmp_path)
    config.write_text("[")
    with pytest.raises(CheckpointError, match="must be a JSON table"):
        LoftrMatcher(tmp_path)
    config.write_bytes((checkpoint / "config.json").read_bytes())
    weights = (checkpoint / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(CheckpointError, match="must be whole"):
        LoftrMatcher(tmp_path)


def test_incomplete_weights_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(checkpoint / "model.safetensors")
    name = sorted(weights)[0]
    save_file({key: value for key, value in weights.items() if key != name}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    with pytest.raises(CheckpointError, match="lack 1 of the model's tensors"):
        LoftrMatcher(tmp_path)


def test_settings_out_of_range_are_told(checkpoint: Path) -> None:
    with pytest.raises(VapError, match=r"size_px must be at least 32 px .* got \(16, 480\)"):
        LoftrMatcher(checkpoint, size_px=(16, 480))
