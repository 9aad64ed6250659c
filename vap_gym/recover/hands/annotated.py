"""Single pictures of hands with annotated joints: InterHand2.6M (3-D and cameras) and OneHand10K (2-D), as released."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from numpy.typing import NDArray

from vap_gym.data.layout import DataError
from vap_gym.recover.hands.joints import JOINTS, to_openpose

DATA, CAMERA, JOINT_3D = "_data.json", "_camera.json", "_joint_3d.json"


@dataclass(frozen=True, kw_only=True, eq=False)
class AnnotatedPicture:
    """A picture with its left (0) and right (1) hand; NaN where a hand or joint is absent or not annotated.

    `joints_m` are in the camera's frame; they and `K` are only there where the data set has cameras.
    """

    name: str
    picture: UInt8[np.ndarray, "H W 3"]
    joints_px: Float[np.ndarray, "2 21 2"]
    joints_m: Float[np.ndarray, "2 21 3"]
    K: Float[np.ndarray, "3 3"] | None
    box_px: Float[np.ndarray, "4"]  # annotated: x0, y0, x1, y1 about all hands


def read_annotated(folder: Path) -> tuple[str, list[AnnotatedPicture]]:
    """Return the name of the data set and its pictures: a folder with pictures and the data set's own json files.

    Raises DataError where neither is found, or an annotation does not fit.
    """
    files = sorted(folder.glob("*.json")) if folder.is_dir() else []
    main = next((file for file in files if file.name.endswith(DATA)), None)
    kind = "interhand2.6m" if main is not None else "onehand10k"
    main = main or next(iter(files), None)
    if main is None:
        raise DataError(
            f"'{folder}' holds no annotated hands: it needs the json files of InterHand2.6M (…{DATA}, …{CAMERA}, "
            f"…{JOINT_3D}) or of OneHand10K, beside the pictures."
        )
    try:
        return kind, list(_interhand(main) if kind == "interhand2.6m" else _onehand10k(main))
    except (KeyError, IndexError, TypeError, ValueError, OSError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{main} cannot be read as annotations of {kind}: {error!r}. Fetch the file again, as it is released."
        ) from error


def _interhand(main: Path) -> Iterator[AnnotatedPicture]:
    """pixel = focal · R (X − position) / z + principal point; 42 joints in mm, the right hand's first."""
    data = _json(main)
    stem = main.name.removesuffix(DATA)
    cameras, joints = (_json(main.with_name(stem + ending)) for ending in (CAMERA, JOINT_3D))
    annotations = {entry["image_id"]: entry for entry in data["annotations"]}
    for image in data["images"]:
        capture, camera = str(image["capture"]), str(image["camera"])
        entry = joints[capture][str(image["frame_idx"])]
        world_mm = np.asarray(entry["world_coord"], np.float64).reshape(2 * JOINTS, 3).copy()
        world_mm[np.asarray(entry["joint_valid"], np.float64).reshape(2 * JOINTS) == 0] = np.nan
        position, rotation, focal, centre = (
            np.asarray(cameras[capture][key][camera], np.float64) for key in ("campos", "camrot", "focal", "princpt")
        )
        K = np.array([[focal[0], 0, centre[0]], [0, focal[1], centre[1]], [0, 0, 1]])
        in_camera_m = (world_mm - position) @ rotation.T / 1000
        hands = to_openpose(in_camera_m.reshape(2, JOINTS, 3), "interhand")[::-1].copy()
        uvw = hands @ K.T
        yield AnnotatedPicture(
            name=image["file_name"],
            picture=_picture(main.with_name(image["file_name"])),
            joints_px=uvw[..., :2] / uvw[..., 2:],
            joints_m=hands,
            K=K,
            box_px=_box(annotations[image["id"]]["bbox"]),
        )


def _onehand10k(main: Path) -> Iterator[AnnotatedPicture]:
    """One hand a picture, 21 × (u, v, annotated?); which hand is not told: it counts as a right one."""
    data = _json(main)
    images = {image["id"]: image for image in data["images"]}
    for annotation in data["annotations"]:
        points = np.asarray(annotation["keypoints"], np.float64).reshape(JOINTS, 3)
        joints = np.full((2, JOINTS, 2), np.nan)
        joints[1] = np.where(points[:, 2:] > 0, points[:, :2], np.nan)
        image = images[annotation["image_id"]]
        yield AnnotatedPicture(
            name=image["file_name"],
            picture=_picture(main.with_name(image["file_name"])),
            joints_px=joints,
            joints_m=np.full((2, JOINTS, 3), np.nan),
            K=None,
            box_px=_box(annotation["bbox"]),
        )


def letterboxed(one: AnnotatedPicture, side_px: int) -> AnnotatedPicture:
    """Return the picture scaled to fit a square, in its middle on black; joints and camera follow."""
    from PIL import Image

    height, width = one.picture.shape[:2]
    scale = side_px / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    by = np.array([size[0] / width, size[1] / height])
    corner = np.array([(side_px - size[0]) // 2, (side_px - size[1]) // 2])
    square = np.zeros((side_px, side_px, 3), np.uint8)
    resized = np.asarray(Image.fromarray(one.picture).resize(size, Image.Resampling.LANCZOS))
    square[corner[1] : corner[1] + size[1], corner[0] : corner[0] + size[0]] = resized
    K = one.K
    if K is not None:
        K = np.diag([*by, 1.0]) @ K
        K[:2, 2] += corner
    return AnnotatedPicture(
        name=one.name,
        picture=square,
        joints_px=one.joints_px * by + corner,
        joints_m=one.joints_m,
        K=K,
        box_px=one.box_px * np.tile(by, 2) + np.tile(corner, 2),
    )


def _json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def _box(left_top_width_height: Any) -> NDArray[np.float64]:
    box = np.asarray(left_top_width_height, np.float64).reshape(4)
    return np.concatenate([box[:2], box[:2] + box[2:]])


def _picture(file: Path) -> NDArray[np.uint8]:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as opened:
            return np.array(opened.convert("RGB"))
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise DataError(f"{file} cannot be read as a picture: {error}. Fetch it again.") from error
