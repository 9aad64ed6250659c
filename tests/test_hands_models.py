"""Adapters of other projects' models: small torch modules that speak their layouts, and made-up hands to find."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vap_gym.errors import VapError
from vap_gym.recover.hands.adapters import (
    Sam2Tracker,
    WilorRecoverer,
    YoloDetector,
    assumed_intrinsics,
    boxes_of_masks,
    from_wilor_mini,
    hand_crops,
    joints_in_camera,
)
from vap_gym.recover.hands.captions import ACTION_QUESTION, SCENE_QUESTION, Captioner, QwenCaptioner, messages
from vap_gym.recover.hands.detections import detections
from vap_gym.recover.hands.hands import DETECTED, REESTIMATED, recover
from vap_gym.recover.hands.linking import TrackSettings
from vap_gym.recover.hands.models import (
    Boxes,
    Detector,
    MeshRecoverer,
    Tracker,
    detect_hands,
    estimate_in,
    seeds_of,
    tracked_boxes,
    with_objects,
)
from vap_gym.recover.hands.synthetic import Faults, crossing_hands, projected, seen, shaped
from vap_gym.recover.hands.tracklets import algorithm_1

WIDTH, HEIGHT = 160, 120
LEFT_RGB, RIGHT_RGB = (0, 0, 255), (255, 0, 0)


def film(frames: int = 12, missed: tuple[int, ...] = ()) -> tuple[np.ndarray, np.ndarray]:
    """Two rectangles for hands, blue (left) and red (right), that move sideways; and their boxes (T, 2, 4)."""
    pictures, boxes = np.full((frames, HEIGHT, WIDTH, 3), 90, np.uint8), np.zeros((frames, 2, 4))
    for t in range(frames):
        for side, (u, colour) in enumerate(((12 + 2 * t, LEFT_RGB), (110 - 3 * t, RIGHT_RGB))):
            v = 20 if side else 70
            boxes[t, side] = [u, v, u + 24, v + 32]
            pictures[t, v : v + 32, u : u + 24] = colour
    return pictures, boxes


class TinyYolo(torch.nn.Module):
    """ultralytics' layout: BGR pictures in, results with boxes.xyxy, .conf and .cls out. Finds the two colours."""

    def __init__(self, missed: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.missed, self.count = missed, 0

    def forward(self, pictures: list[np.ndarray], *, conf: float, verbose: bool) -> list[SimpleNamespace]:
        results = []
        for picture in pictures:
            bgr = torch.from_numpy(picture).float()
            rows = []
            for kind, channel in ((0, 0), (1, 2)):  # blue is a left hand, red a right one: channels of BGR
                v, u = torch.nonzero((bgr[..., channel] > 200) & (bgr.sum(-1) < 350), as_tuple=True)
                if len(u) and self.count not in self.missed:
                    rows.append([float(u.min()), float(v.min()), float(u.max()) + 1, float(v.max()) + 1, 0.9, kind])
            self.count += 1
            table = torch.tensor(rows).reshape(-1, 6)
            boxes = SimpleNamespace(xyxy=table[:, :4], conf=table[:, 4], cls=table[:, 5])
            results.append(SimpleNamespace(boxes=boxes))
        return results


class TinyWilor(torch.nn.Module):
    """WiLoR's layout: crops in, a right hand of fixed shape out, scaled to fill half of the crop and in its middle."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shape_m", torch.from_numpy(shaped(np.full(5, 0.2))).float())
        self.seen: list[torch.Tensor] = []

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        self.seen.append(batch["img"])
        count = len(batch["img"])
        joints = self.shape_m.expand(count, -1, -1)
        middle = 0.5 * (joints.amin(1) + joints.amax(1))
        scale = 1.0 / (joints.amax(1) - joints.amin(1)).amax(-1)  # the hand's length is half of the crop's side
        pred_cam = torch.stack([scale, -middle[:, 0], -middle[:, 1]], -1)
        return {"pred_cam": pred_cam, "pred_keypoints_3d": joints, "pred_vertices": joints.repeat(1, 38, 1)[:, :778]}


class TinySam2(torch.nn.Module):
    """SAM 2's video layout: follows the colour in the middle of a box, and gives logits of masks."""

    def init_state(self, video_path: str) -> dict:
        from PIL import Image

        files = sorted(Path(video_path).glob("*.jpg"))
        pictures = [torch.from_numpy(np.array(Image.open(file))).float() for file in files]
        return {"pictures": torch.stack(pictures), "objects": {}}

    def add_new_points_or_box(self, inference_state: dict, frame_idx: int, obj_id: int, box: np.ndarray) -> None:
        u, v = int(box[[0, 2]].mean()), int(box[[1, 3]].mean())
        inference_state["objects"][obj_id] = (frame_idx, inference_state["pictures"][frame_idx, v, u])

    def propagate_in_video(self, state: dict, reverse: bool = False) -> Iterator[tuple[int, list[int], torch.Tensor]]:
        start = min(frame for frame, _ in state["objects"].values())
        frames = range(start, -1, -1) if reverse else range(start, len(state["pictures"]))
        colours = torch.stack([colour for _, colour in state["objects"].values()])
        for t in frames:
            off = (state["pictures"][t][None] - colours[:, None, None]).abs().amax(-1)
            yield t, list(state["objects"]), (60 - off)[:, None]


def test_adapters_speak_the_interfaces() -> None:
    assert isinstance(YoloDetector(TinyYolo()), Detector)
    assert isinstance(WilorRecoverer(TinyWilor()), MeshRecoverer)
    assert isinstance(Sam2Tracker(TinySam2()), Tracker)


def test_from_pictures_to_hands_through_all_models() -> None:
    """A detector that misses four frames; the tracker bridges them and the recoverer is called in its boxes."""
    pictures, boxes = film(16)
    detector, recoverer = YoloDetector(TinyYolo(missed=(6, 7, 8, 9))), WilorRecoverer(TinyWilor())
    table = detect_hands(pictures, detector, recoverer, batch=5)
    assert len(table) == 24
    rows = algorithm_1(table, TrackSettings())
    tracked = Sam2Tracker(TinySam2()).track(pictures, seeds_of(table, rows))
    known = tracked_boxes(tracked, 16)
    assert np.abs(known - boxes).max() <= 2  # JPEG softens the edges
    table = with_objects(table, tracked)
    assert set(table.object.tolist()) == {1, 2}
    hands = recover(table, 15.0, estimate=estimate_in(pictures, recoverer), tracked_px=known)
    assert (hands.source[6:10] == REESTIMATED).all()
    assert (hands.source[:6] == DETECTED).all()
    centre = 0.5 * (hands.joints_px.min(2) + hands.joints_px.max(2))
    assert np.abs(centre - 0.5 * (boxes[..., :2] + boxes[..., 2:])).max() < 3
    assert (hands.joints_px[:, 0, 4, 0] > hands.joints_px[:, 0, 0, 0]).all()  # a left hand's thumb is on the right
    assert (hands.joints_px[:, 1, 4, 0] < hands.joints_px[:, 1, 0, 0]).all()


def test_crops_are_centred_on_boxes_and_mirrored_for_left_hands() -> None:
    pictures, boxes = film(1)
    both = np.concatenate([pictures, pictures])
    crops, centre, side = hand_crops(both, boxes[0], np.array([False, True]))
    assert side.tolist() == [64, 64]  # twice 24 x 32
    assert centre.tolist() == [[24, 86], [122, 36]]
    red = crops[1, 0] > crops[1, 2] + 1
    v, u = torch.nonzero(red, as_tuple=True)
    assert [int(x) for x in (u.min(), u.max() + 1, v.min(), v.max() + 1)] == pytest.approx([80, 176, 64, 192], abs=3)
    corner = pictures.copy()
    corner[0, 70:86, 12:24] = (0, 255, 0)  # green in the left hand's upper left
    crop = hand_crops(corner, boxes[0, :1], np.array([False]))[0][0]
    v, u = torch.nonzero(crop[1] > crop[2] + 1, as_tuple=True)
    assert u.float().mean() > 128 > v.float().mean()  # is in the mirrored crop's upper right


@pytest.mark.parametrize("right", [True, False])
def test_a_crops_hand_is_placed_where_the_full_camera_sees_it(right: bool) -> None:
    """Against a hand whose place is known: the crop's weak camera that shows it, turned back into the full camera."""
    K = np.array([[700.0, 0, 330], [0, 700, 230], [0, 0, 1]])
    mirror = np.array([1.0 if right else -1.0, 1, 1])
    hand = shaped(np.full(5, 0.3))
    hand = hand - hand.mean(0)
    place = np.array([0.08, -0.05, 0.7])
    true = hand * mirror + place
    centre = projected(place, K) + np.array([4.0, -6.0])
    side = 260.0
    half_px_per_m = K[0, 0] / place[2]
    shift = (projected(place, K) - centre) / half_px_per_m  # of the hand in the crop, m; mirrored crops see it mirrored
    pred_cam = np.array([[half_px_per_m / (side / 2), mirror[0] * shift[0], shift[1]]])
    found = joints_in_camera(hand[None], pred_cam, centre[None], np.array([side]), np.array([right]), K)
    assert np.allclose(found[0], true, atol=1e-12)


def test_what_no_recoverer_returns_is_told() -> None:
    pictures, boxes = film(1)
    with pytest.raises(VapError, match=r"must return 'pred_cam' of shape \(1, 3\).*Is it WiLoR or HaMeR"):
        WilorRecoverer(lambda batch: {"verts": batch["img"]}).recover(pictures, boxes[0, :1], np.array([True]))
    none = WilorRecoverer(TinyWilor()).recover(pictures[:0], boxes[0, :0], np.zeros(0, bool))
    assert none.joints_px.shape == (0, 21, 2)


def test_wilor_mini_predictions_become_detections() -> None:
    truth = crossing_hands(3, seed=0, frame_size_px=(WIDTH, HEIGHT))
    K = assumed_intrinsics(WIDTH, HEIGHT)
    predictions = []
    for t in range(3):
        hands = []
        for side in range(2 if t else 0):
            wrist = truth.joints_m[t, side, 0]
            preds = {
                "pred_keypoints_3d": (truth.joints_m[t, side] - wrist)[None].astype(np.float32),
                "pred_cam_t_full": wrist[None],
                "pred_keypoints_2d": torch.from_numpy(projected(truth.joints_m[t, side], K)[None]),
            }
            hands.append({"hand_bbox": [1.0, 2, 30, 40], "is_right": float(side), "wilor_preds": preds})
        predictions.append(hands)
    table = from_wilor_mini(predictions)
    assert table.frame.tolist() == [1, 1, 2, 2]
    assert table.right.tolist() == [0, 1, 0, 1]
    assert np.allclose(table.joints_m, truth.joints_m[1:].reshape(-1, 21, 3), atol=1e-6)
    assert len(from_wilor_mini([[], []])) == 0
    with pytest.raises(VapError, match=r"hand_bbox, is_right and wilor_preds.*pipe.predict"):
        from_wilor_mini([[{"bbox": 1}]])


def test_masks_become_boxes_and_specks_do_not() -> None:
    logits = torch.full((2, 1, 20, 30), -3.0)
    logits[0, 0, 4:9, 10:20] = 2.0
    logits[1, 0, 3, 3] = 2.0
    boxes = boxes_of_masks([(7, [5, 6], logits)])
    assert (boxes.frame.tolist(), boxes.object.tolist()) == ([7], [5])
    assert boxes.box_px.tolist() == [[10, 4, 20, 9]]
    assert len(boxes_of_masks([]).frame) == 0


def test_each_tracked_hand_numbers_one_detection_a_frame() -> None:
    table = seen(crossing_hands(5, seed=0, crossing=False), Faults(missed=0.0, doubles=1.0, noise_px=0.0), seed=0)
    (left,) = np.nonzero((table.joints_px[:, 0, 0] < 320) & (table.frame == 2))
    tracked = Boxes(
        frame=np.array([2]),
        box_px=table.box_px[left[:1]] + 3,
        confidence=np.ones(1),
        right=np.full(1, 0.5),
        object=np.array([11]),
    )
    numbered = with_objects(table, tracked).object
    assert (numbered == 11).sum() == 1
    assert numbered[left].max() == 11


def test_nothing_to_track_is_no_mistake() -> None:
    table = detections(
        2, frame=np.zeros(0, int), **{n: np.zeros((0, *s)) for n, s in
        {"box_px": (4,), "confidence": (), "right": (), "joints_px": (21, 2)}.items()},
    )  # fmt: skip
    seeds = seeds_of(table, np.full((2, 2), -1))
    tracked = Sam2Tracker(TinySam2()).track(film(2)[0], seeds)
    assert np.isnan(tracked_boxes(tracked, 2)).all()


TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}{% if c['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def tiny_qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2.5-VL checkpoint of random weights, with a tokenizer of bytes and a picture processor, made here."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    folder = tmp_path_factory.mktemp("qwen")
    names = ["endoftext", "im_start", "im_end", "vision_start", "vision_end", "image_pad", "video_pad"]
    special = [f"<|{name}|>" for name in names]
    bytes_ = Tokenizer(models.BPE())
    bytes_.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bytes_.train_from_iterator([], trainers.BpeTrainer(special_tokens=special, initial_alphabet=alphabet))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bytes_, eos_token=special[2], pad_token=special[0], additional_special_tokens=special[1:]
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    ids = dict(zip(names, tokenizer.convert_tokens_to_ids(special)))
    ends = {"bos_token_id": ids["endoftext"], "eos_token_id": ids["im_end"], "pad_token_id": ids["endoftext"]}
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048,
            "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}, **ends,
        },
        vision_config={
            "depth": 1, "hidden_size": 32, "out_hidden_size": 32, "intermediate_size": 48, "num_heads": 2,
            "fullatt_block_indexes": [0],
        },
        image_token_id=ids["image_pad"], video_token_id=ids["video_pad"],
        vision_start_token_id=ids["vision_start"], vision_end_token_id=ids["vision_end"],
    )  # fmt: skip
    torch.manual_seed(0)
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)
    Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=56 * 56).save_pretrained(folder)
    return folder


def test_questions_show_all_pictures_and_ask_for_action_only_if_told() -> None:
    (chat,) = messages(3, action=False)
    assert [part["type"] for part in chat["content"]] == ["image"] * 3 + ["text"]
    assert chat["content"][-1]["text"] == SCENE_QUESTION
    assert messages(1, action=True)[0]["content"][-1]["text"] == ACTION_QUESTION
    assert "Do not say what is done" in SCENE_QUESTION


def test_qwen_checkpoints_caption_clips(tiny_qwen: Path) -> None:
    captioner = QwenCaptioner(tiny_qwen, pictures=3, max_words=6)
    assert isinstance(captioner, Captioner)
    frames = np.random.default_rng(0).integers(0, 255, (7, 48, 64, 3), dtype=np.uint8)
    words = captioner.caption(frames, action=True)
    assert words == captioner.caption(frames, action=True)
    text = captioner.prompt(2, [3, 1], action=True)
    assert text.count("<|image_pad|>") == 4
    assert text.count("<|vision_start|>") == 2
    assert ACTION_QUESTION in text
    assert SCENE_QUESTION in captioner.prompt(1, [1], action=False)
    with pytest.raises(VapError, match="at least one frame"):
        captioner.caption(frames[:0], action=True)


def test_the_pictures_reach_the_captioner(tiny_qwen: Path) -> None:
    """Random weights say nonsense, but other pictures give other scores of the first word."""
    captioner = QwenCaptioner(tiny_qwen, pictures=2, max_words=1)
    kept: list[torch.Tensor] = []
    captioner.model.lm_head.register_forward_hook(lambda module, inputs, out: kept.append(out.detach()))
    for value in (0, 255):
        captioner.caption(np.full((4, 56, 56, 3), value, np.uint8), action=False)
    assert (kept[0][0, -1] - kept[1][0, -1]).abs().max() > 1e-4


def test_a_missing_captioner_is_told(tmp_path: Path) -> None:
    with pytest.raises(VapError, match=r"No captions from .*Qwen/Qwen2.5-VL-7B-Instruct"):
        QwenCaptioner(tmp_path / "nothing")
    with pytest.raises(VapError, match="Try 8 and 96"):
        QwenCaptioner(tmp_path, pictures=0)
