"""Adapters: other projects' hand models behind our interfaces. You bring the model and its weights.

WiLoR (github.com/rolpotamias/WiLoR; its models and MANO have licences of their own, non-commercial): install its
repository, `ultralytics`, and MANO_RIGHT.pkl, then `YoloDetector(YOLO("detector.pt"))`, `WilorRecoverer(model)` with
the model of its `load_wilor`. WiLoR-mini: `pip install wilor-mini`, then
`from_wilor_mini([pipe.predict(frame) for frame in frames])`. SAM 2 (github.com/facebookresearch/sam2): it brings
torchvision, so give it an environment of its own; then `Sam2Tracker(build_sam2_video_predictor(…))`.

HaMeR's model has WiLoR's layout. Run them once and keep what they saw, for `vap-gym recover hands`:

```
table = detect_hands(read_video("kitchen.mp4"), YoloDetector(yolo), WilorRecoverer(wilor))
write_detections(Path("kitchen.npz"), table)
```

What is converted: mirrored left hands, crop cameras, masks, channel order.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from numpy.typing import NDArray
from torch import Tensor

from vap_gym.errors import VapError
from vap_gym.recover.hands.detections import NO_OBJECT, Detections, detections, no_detections
from vap_gym.recover.hands.hands import Recovered
from vap_gym.recover.hands.joints import JOINTS
from vap_gym.recover.hands.models import Boxes

CROP_PX = 256
CROP_ASPECT = 4 / 3  # WiLoR's and HaMeR's network sees 192 x 256 of the crop
CROP_MARGIN = 2.0  # the crop's side over the box's
CROP_FOCAL_PX = 5000.0  # of the camera that their crops are thought to be seen by
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class YoloDetector:
    """A detector of ultralytics' layout: `model(pictures, conf=…)` gives results with `boxes.xyxy`, `.conf`, `.cls`.

    `right_class` is the class that means a right hand (WiLoR's detector: 1). Such models take BGR pictures.
    """

    def __init__(self, model: Callable[..., Any], *, least_confidence: float = 0.3, right_class: int = 1) -> None:
        self.model, self.least_confidence, self.right_class = model, least_confidence, right_class

    def detect(self, pictures: UInt8[np.ndarray, "N H W 3"]) -> Boxes:
        """Return the boxes in N RGB pictures."""
        bgr = [np.ascontiguousarray(picture[..., ::-1]) for picture in pictures]
        results = self.model(bgr, conf=self.least_confidence, verbose=False)
        frame, box, confidence, right = [], [], [], []
        for number, result in enumerate(results):
            found = result.boxes
            frame.append(np.full(len(found.xyxy), number, np.int64))
            box.append(_array(found.xyxy).reshape(-1, 4))
            confidence.append(_array(found.conf).reshape(-1))
            right.append((_array(found.cls).reshape(-1) == self.right_class).astype(np.float64))
        if len(frame) != len(pictures):
            raise VapError(f"The detector must give a result for each of {len(pictures)} pictures, got {len(frame)}.")
        numbers = np.concatenate(frame)
        return Boxes(
            frame=numbers,
            box_px=np.concatenate(box),
            confidence=np.concatenate(confidence),
            right=np.concatenate(right),
            object=np.full(len(numbers), NO_OBJECT, np.int64),
        )


class WilorRecoverer:
    """A recoverer of WiLoR's (or HaMeR's) layout: `model({"img": (N,3,256,256), …})` gives `pred_cam`,
    `pred_keypoints_3d` (21 joints, OpenPose order, of a right hand: left ones are mirrored before and after).

    `K` are the camera's intrinsics in px; without them a focal length of 5000 / 256 of the longer side is assumed, as
    these models do, and depths are true only up to that.
    """

    def __init__(
        self, model: Callable[[dict[str, Tensor]], Mapping[str, Tensor]], *, K: NDArray[np.float64] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:  # fmt: skip
        self.model, self.K, self.device = model, K, device

    def recover(
        self, pictures: UInt8[np.ndarray, "N H W 3"], box_px: Float[np.ndarray, "N 4"], right: Bool[np.ndarray, "N"]
    ) -> Recovered:
        """Return the hands in N boxes, one in each of N RGB pictures."""
        if not len(pictures):
            return Recovered(
                joints_px=np.zeros((0, JOINTS, 2)), joints_m=np.zeros((0, JOINTS, 3)), confidence=np.zeros(0)
            )
        height, width = pictures.shape[1:3]
        crops, centre, side = hand_crops(pictures, box_px, right)
        size = torch.tensor([[width, height]], dtype=torch.float32, device=self.device)
        batch = {
            "img": crops.to(self.device),
            "right": torch.from_numpy(right.astype(np.float32)).to(self.device),
            "box_center": torch.from_numpy(centre).float().to(self.device),
            "box_size": torch.from_numpy(side).float().to(self.device),
            "img_size": size.expand(len(pictures), 2),
        }
        with torch.no_grad():
            out = self.model(batch)
        for key, shape in (("pred_cam", (len(pictures), 3)), ("pred_keypoints_3d", (len(pictures), JOINTS, 3))):
            if key not in out or tuple(out[key].shape) != shape:
                given = tuple(out[key].shape) if key in out else f"only {', '.join(out)}"
                raise VapError(f"The model must return '{key}' of shape {shape}, got {given}. Is it WiLoR or HaMeR?")
        K = assumed_intrinsics(width, height) if self.K is None else self.K
        joints_m = joints_in_camera(_array(out["pred_keypoints_3d"]), _array(out["pred_cam"]), centre, side, right, K)
        uvw = joints_m @ K.T
        return Recovered(joints_px=uvw[..., :2] / uvw[..., 2:], joints_m=joints_m, confidence=np.ones(len(pictures)))


def assumed_intrinsics(width_px: int, height_px: int) -> Float[np.ndarray, "3 3"]:
    """Return the intrinsics that WiLoR and HaMeR assume of a picture whose camera is unknown."""
    focal = CROP_FOCAL_PX / CROP_PX * max(width_px, height_px)
    return np.array([[focal, 0, width_px / 2], [0, focal, height_px / 2], [0, 0, 1]])


def hand_crops(
    pictures: UInt8[np.ndarray, "N H W 3"], box_px: Float[np.ndarray, "N 4"], right: Bool[np.ndarray, "N"]
) -> tuple[Float[Tensor, "N 3 256 256"], Float[np.ndarray, "N 2"], Float[np.ndarray, "N"]]:
    """Return square crops about boxes, mirrored for left hands, normalised as ImageNet's; their centres and sides, px.

    The side is twice that of the box, made 3:4 first; outside the picture it is black.
    """
    centre = 0.5 * (box_px[:, :2] + box_px[:, 2:])
    width, height = CROP_MARGIN * (box_px[:, 2] - box_px[:, 0]), CROP_MARGIN * (box_px[:, 3] - box_px[:, 1])
    side = np.maximum(CROP_ASPECT * width, height)
    frame_height, frame_width = pictures.shape[1:3]
    step = (torch.arange(CROP_PX, dtype=torch.float64) + 0.5) / CROP_PX - 0.5
    flip = torch.from_numpy(np.where(right, 1.0, -1.0))[:, None]
    sides, middle = torch.from_numpy(side)[:, None], torch.from_numpy(centre)
    u = middle[:, :1] + flip * sides * step
    v = middle[:, 1:] + sides * step
    grid = torch.stack(
        [
            (2 * u / frame_width - 1)[:, None, :].expand(-1, CROP_PX, -1),
            (2 * v / frame_height - 1)[:, :, None].expand(-1, -1, CROP_PX),
        ],
        -1,
    ).float()
    frames = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 255
    crops = torch.nn.functional.grid_sample(frames, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (IMAGENET_MEAN, IMAGENET_STD))
    return (crops - mean) / std, centre, side


def joints_in_camera(
    keypoints_3d: Float[np.ndarray, "N 21 3"],
    pred_cam: Float[np.ndarray, "N 3"],
    box_centre_px: Float[np.ndarray, "N 2"],
    box_size_px: Float[np.ndarray, "N"],
    right: Bool[np.ndarray, "N"],
    K: Float[np.ndarray, "3 3"],
) -> Float[np.ndarray, "N 21 3"]:
    """Return joints in the picture's camera [m] from a model of right hands in crops.

    `pred_cam` (s, x, y) is a weak-perspective camera of the crop: s scales metres to half crops. The hand lies where a
    hand of that scale appears at the crop's place and size.
    """
    mirror = np.where(right, 1.0, -1.0)
    joints = keypoints_3d * np.stack([mirror, np.ones_like(mirror), np.ones_like(mirror)], -1)[:, None]
    half = 0.5 * box_size_px * np.maximum(pred_cam[:, 0], 1e-9)  # px per metre
    offset = (box_centre_px - K[:2, 2]) / half[:, None] * (K[0, 0] / K[[0, 1], [0, 1]])
    place = np.stack([offset[:, 0] + mirror * pred_cam[:, 1], offset[:, 1] + pred_cam[:, 2], K[0, 0] / half], -1)
    moved: NDArray[np.float64] = joints + place[:, None]
    return moved


def from_wilor_mini(predictions: Sequence[Sequence[Mapping[str, Any]]]) -> Detections:
    """Return the detections of a video from WiLoR-mini's `predict` of every frame.

    A hand is {"hand_bbox", "is_right", "wilor_preds": {"pred_keypoints_3d", "pred_keypoints_2d", "pred_cam_t_full"}};
    left hands are already mirrored back there. It gives no confidence: 1.
    """
    frames = len(predictions)
    rows = [(number, hand) for number, hands in enumerate(predictions) for hand in hands]
    if not rows:
        return no_detections(frames)
    try:
        preds = [hand["wilor_preds"] for _, hand in rows]
        joints_m = np.stack(
            [_array(p["pred_keypoints_3d"]).reshape(JOINTS, 3) + _array(p["pred_cam_t_full"]).reshape(3) for p in preds]
        )
        joints_px = np.stack([_array(p["pred_keypoints_2d"]).reshape(JOINTS, 2) for p in preds])
        box = np.stack([_array(hand["hand_bbox"]).reshape(4) for _, hand in rows])
        right = np.array([float(hand["is_right"]) for _, hand in rows])
    except (KeyError, ValueError, TypeError) as error:
        raise VapError(
            f"A hand of WiLoR-mini's must have hand_bbox, is_right and wilor_preds, got {error!r}. "
            "Hand over what pipe.predict(frame) returns, one list a frame."
        ) from error
    return detections(
        frames,
        frame=np.array([number for number, _ in rows]),
        box_px=box,
        confidence=np.ones(len(rows)),
        right=right,
        joints_px=joints_px,
        joints_m=joints_m,
    )


class Sam2Tracker:
    """A tracker of SAM 2's video predictor: `init_state`, `add_new_points_or_box`, `propagate_in_video`.

    Pictures are handed over as a folder of JPEGs, which all its versions read. Masks become boxes.
    """

    def __init__(self, predictor: Any, *, least_pixels: int = 16) -> None:
        self.predictor, self.least_pixels = predictor, least_pixels

    def track(self, pictures: UInt8[np.ndarray, "T H W 3"], seeds: Boxes) -> Boxes:
        """Follow each seed's box forward and backward through the video."""
        if not len(seeds.frame):
            return seeds
        from PIL import Image

        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            for number, picture in enumerate(pictures):
                Image.fromarray(picture).save(Path(folder) / f"{number:05d}.jpg", quality=95)
            state = self.predictor.init_state(video_path=folder)
            for frame, number, box in zip(seeds.frame.tolist(), seeds.object.tolist(), seeds.box_px):
                self.predictor.add_new_points_or_box(
                    inference_state=state, frame_idx=frame, obj_id=number, box=box.astype(np.float32)
                )
            forward = boxes_of_masks(self.predictor.propagate_in_video(state), least_pixels=self.least_pixels)
            backward = boxes_of_masks(
                self.predictor.propagate_in_video(state, reverse=True), least_pixels=self.least_pixels
            )
        both = [np.concatenate([getattr(forward, n), getattr(backward, n)]) for n in ("frame", "object", "box_px")]
        _, first = np.unique(np.stack(both[:2]), axis=1, return_index=True)
        return _tracked(both[0][first], both[1][first], both[2][first])


def boxes_of_masks(propagated: Iterable[tuple[int, Sequence[int], Tensor]], *, least_pixels: int = 16) -> Boxes:
    """Return the boxes of SAM 2's masks: (frame, object numbers, logits (N,1,H,W)) for every frame; masks are > 0."""
    frame, number, box = [], [], []
    for index, numbers, logits in propagated:
        masks = (logits.detach() > 0).flatten(0, -3).cpu().numpy()
        for one, mask in zip(numbers, masks):
            if mask.sum() >= least_pixels:
                (rows,), (columns,) = np.nonzero(mask.any(1)), np.nonzero(mask.any(0))
                frame.append(index)
                number.append(int(one))
                box.append([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    return _tracked(np.array(frame, np.int64), np.array(number, np.int64), np.array(box, np.float64).reshape(-1, 4))


def _tracked(frame: NDArray[np.int64], number: NDArray[np.int64], box_px: NDArray[np.float64]) -> Boxes:
    ones = np.ones(len(frame))
    return Boxes(frame=frame, box_px=box_px, confidence=ones, right=0.5 * ones, object=number)


def _array(values: Any) -> NDArray[np.float64]:
    """Tensors and arrays of any float type as float64."""
    if isinstance(values, Tensor):
        return values.detach().cpu().double().numpy()
    return np.asarray(values, np.float64)
