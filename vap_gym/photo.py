"""A start from anyone's photograph: checked picture, camera and robot state, or an error that says what to mend."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from vap_gym.errors import VapError, unknown_name
from vap_gym.geometry import Camera, centre_crop_32, inverse, pose_from_xyz_euler, xyz_euler_from_pose
from vap_gym.kinematics import solve_ik
from vap_gym.rig import Rig
from vap_gym.starts import Start

RESET_OPTIONS = ("image", "state", "camera", "views", "instruction", "start")
_STATE_KEYS = ("joint_position", "cartesian_position", "gripper_position")
_POSE_KEYS = ("T_camera_from_base", "T_base_from_camera", "T_world_camera", "extrinsics")
_CAMERA_NOTES = (  # what calibration files say beside the figures; read by people, not by us
    "camera", "camera_position_in_base", "convention", "mean_reprojection_px", "method", "reprojection_px",
    "valid_for_episodes",
)  # fmt: skip
_AGREE_M, _AGREE_RAD, _LIMIT_RAD, _CLOSEDNESS = 0.005, 0.02, 0.02, 0.05


def check_names(kind: str, given: Mapping[str, Any], known: tuple[str, ...]) -> None:
    """Raise UnknownNameError for a key that is not known."""
    for name in given:
        if name not in known:
            raise unknown_name(kind, str(name), known)


def start_from_photo(
    *, image: object, state: object, camera: object, instruction: str, rig: Rig, default_camera: Camera | None
) -> Start:
    """Return the start that a photograph, the robot's state in it and its camera give.

    Args:
        image: uint8 RGB (H, W, 3) of any size; cut to 3:2 about its centre, then resized, the camera following.
        state: {"joint_position": (n,) rad or "cartesian_position": (6,) xyz [m] + extrinsic-xyz Euler of the tip link,
            "gripper_position": 0 open .. 1 closed}.
        camera: see `read_camera`; None takes the env's own.
        default_camera: the env's own camera, if it was made with one.

    Raises:
        VapError: one of the three is missing, malformed, or contradicts another.
    """
    given = {"image": image, "state": state, "camera": camera if camera is not None else default_camera}
    missing = [name for name, value in given.items() if value is None]
    if missing:
        raise VapError(
            f"A start from a picture needs image, state and camera together, got no {' and no '.join(missing)}. "
            "Give all three, or none to begin from a shipped start."
        )
    picture = _checked_image(image)
    taken_by = default_camera if camera is None else read_camera(camera)
    assert taken_by is not None
    height, width = picture.shape[:2]
    if tuple(taken_by.frame_size_px) != (width, height):
        raise VapError(
            f"image is {width} x {height} px, but the camera's figures are for {taken_by.frame_size_px[0]} x "
            f"{taken_by.frame_size_px[1]} px. Give K of this very image, or resize the image to the camera's size."
        )
    frame, taken_by = fit_picture(picture, taken_by, rig.frame_size_px)
    q_rad, closedness = _checked_state(state, rig)
    return Start(frame=frame, camera=taken_by, q_rad=q_rad, closedness=closedness, instruction=instruction)


def fit_picture(
    picture: UInt8[np.ndarray, "h w 3"], camera: Camera, frame_size_px: tuple[int, int]
) -> tuple[UInt8[np.ndarray, "H W 3"], Camera]:
    """Return a picture and its camera at the frame's size: centre crop to 3:2, then resize (not where it fits)."""
    height, width = picture.shape[:2]
    left, top, crop_width, crop_height = centre_crop_32(width, height)
    camera = camera.cropped(left, top, crop_width, crop_height).resized(frame_size_px)
    cut = picture[top : top + crop_height, left : left + crop_width]
    if (crop_width, crop_height) == tuple(frame_size_px):
        return cut.copy(), camera
    return np.array(Image.fromarray(cut).resize(frame_size_px, Image.Resampling.LANCZOS)), camera


def read_camera(camera: object) -> Camera:
    """Return a camera (float64) from a `Camera` or from a table of its figures.

    The table: "K" (3, 3) in px, "image_size_wh", and exactly one pose: "T_camera_from_base" (4, 4), its inverse
    "T_base_from_camera" or "T_world_camera" (4, 4), or "extrinsics" (6,): DROID's xyz [m] + extrinsic-xyz Euler of the
    camera in the base. OpenCV axes: x right, y down, z forward.

    Raises:
        VapError: an unknown or missing key, another shape, a singular K, or a pose that is not rigid.
    """
    if isinstance(camera, Camera):
        if camera.batch_shape:
            raise VapError(
                f"camera must be one camera, got a batch of {tuple(camera.batch_shape)}. Take one: camera.index(0)."
            )
        return camera.to(torch.float64).checked()
    if not isinstance(camera, Mapping):
        raise VapError(
            f"camera must be a vap_gym Camera or a dict with K, image_size_wh and one of {', '.join(_POSE_KEYS)}; "
            f"got {type(camera).__name__}."
        )
    check_names("camera key", camera, ("K", "image_size_wh", *_POSE_KEYS, *_CAMERA_NOTES))
    poses = [key for key in _POSE_KEYS if key in camera]
    absent = [key for key in ("K", "image_size_wh") if key not in camera]
    if absent or len(poses) != 1:
        raise VapError(
            f"camera needs K, image_size_wh and exactly one of {', '.join(_POSE_KEYS)}; "
            f"got {', '.join(sorted(camera)) or 'nothing'}."
        )
    size = _numbers("camera image_size_wh", camera["image_size_wh"], (2,))
    figures = _numbers(f"camera {poses[0]}", camera[poses[0]], (6,) if poses[0] == "extrinsics" else (4, 4))
    T = pose_from_xyz_euler(figures) if poses[0] == "extrinsics" else figures
    K = _numbers("camera K", camera["K"], (3, 3))
    read = Camera(K=K, T_world_camera=T, frame_size_px=(int(size[0]), int(size[1]))).checked()
    if poses[0] == "T_camera_from_base":
        read = Camera(K=K, T_world_camera=inverse(T), frame_size_px=read.frame_size_px)
    return read


def _checked_image(image: object) -> UInt8[np.ndarray, "h w 3"]:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        got = f"{image.dtype} array" if isinstance(image, np.ndarray) else type(image).__name__
        raise VapError(
            f"image must be a uint8 numpy array (H, W, 3) in RGB, got {got}. Try np.asarray(PIL_image.convert('RGB'))."
        )
    if image.ndim != 3 or image.shape[2] != 3 or min(image.shape[:2]) < 16:
        raise VapError(f"image must have shape (H, W, 3), RGB, of at least 16 px each way, got {image.shape}.")
    return image


def _checked_state(state: object, rig: Rig) -> tuple[Float[np.ndarray, " n"], float]:
    if not isinstance(state, Mapping):
        raise VapError(
            "state must be a dict with joint_position (or cartesian_position) and gripper_position, "
            f"got {type(state).__name__}."
        )
    check_names("state key", state, _STATE_KEYS)
    if "gripper_position" not in state or not {"joint_position", "cartesian_position"} & set(state):
        raise VapError(
            "state needs gripper_position (0 open .. 1 closed) and joint_position or cartesian_position, "
            f"got {', '.join(sorted(state)) or 'nothing'}."
        )
    closedness = float(_numbers("state gripper_position", np.reshape(state["gripper_position"], -1), (1,))[0])
    if not -_CLOSEDNESS <= closedness <= 1 + _CLOSEDNESS:
        raise VapError(
            f"state gripper_position must be in [0 open, 1 closed], got {closedness:g}. "
            "Of an opening in metres: 1 - opening / the widest."
        )
    cartesian = (
        _numbers("state cartesian_position", state["cartesian_position"], (6,))
        if "cartesian_position" in state
        else None
    )
    if "joint_position" in state:
        q = _checked_joints(
            _numbers("state joint_position", state["joint_position"], (len(rig.robot.arm_joints),)), rig
        )
        if cartesian is not None:
            _check_agreement(q, cartesian, rig)
    else:
        assert cartesian is not None
        q = _joints_for(cartesian, rig)
    return q.numpy(), min(max(closedness, 0.0), 1.0)


def _checked_joints(q: Tensor, rig: Rig) -> Tensor:
    arm = rig.controller.arm.to(torch.float64)
    beyond = torch.maximum(arm.lower - q, q - arm.upper)
    worst = int(beyond.argmax())
    if float(beyond[worst]) > _LIMIT_RAD:
        raise VapError(
            f"state joint_position: joint {worst + 1} ({rig.robot.arm_joints[worst]}) must be in "
            f"[{float(arm.lower[worst]):.4f}, {float(arm.upper[worst]):.4f}] rad, "
            f"got {float(q[worst]):.4f}. Degrees, or another order?"
        )
    return q


def _check_agreement(q: Tensor, cartesian: Tensor, rig: Rig) -> None:
    T_by_joints = rig.controller.arm.to(torch.float64).fk(q, rig.robot.tip_link)
    T_given = pose_from_xyz_euler(cartesian)
    apart_m = float((T_by_joints[:3, 3] - T_given[:3, 3]).norm())
    turn = T_by_joints[:3, :3].T @ T_given[:3, :3]
    apart_rad = float(torch.arccos(((turn.trace() - 1) / 2).clamp(-1, 1)))
    if apart_m > _AGREE_M or apart_rad > _AGREE_RAD:
        raise VapError(
            f"state joint_position and cartesian_position contradict each other: the joints put {rig.robot.tip_link} "
            f"at {_short(xyz_euler_from_pose(T_by_joints))}, given was {_short(cartesian)} "
            f"({apart_m:.3f} m and {apart_rad:.3f} rad apart). "
            "Give only one, or check the units and the link."
        )


def _joints_for(cartesian: Tensor, rig: Rig) -> Tensor:
    arm = rig.controller.arm.to(torch.float64)
    home = torch.tensor(rig.robot.home_q_rad, dtype=torch.float64)
    spread = torch.rand(16, len(home), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    guesses = torch.cat([home[None], arm.lower + spread * (arm.upper - arm.lower)])
    T_target = pose_from_xyz_euler(cartesian).expand(len(guesses), 4, 4)
    found = solve_ik(arm, rig.robot.tip_link, T_target, guesses, iterations=120)
    if not bool(found.converged.any()):
        best = int(found.position_error_m.argmin())
        raise VapError(
            f"state cartesian_position is out of reach: got {_short(cartesian)} for {rig.robot.tip_link}, "
            "and the nearest pose found is "
            f"{float(found.position_error_m[best]):.3f} m and {float(found.rotation_error_rad[best]):.3f} rad off. "
            "It must be xyz [m] and extrinsic-xyz Euler angles [rad] in the base frame."
        )
    return found.q[int(found.converged.int().argmax())]  # the home posture first


def _numbers(name: str, value: object, shape: tuple[int, ...]) -> Tensor:
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise VapError(f"{name} must be numbers of shape {shape}, got {value!r}.") from error
    if array.shape != shape or not np.isfinite(array).all():
        raise VapError(
            f"{name} must be finite numbers of shape {shape}, "
            f"got {'NaN or infinity' if array.shape == shape else array.shape}."
        )
    return torch.from_numpy(array.copy())


def _short(values: Tensor) -> str:
    return "[" + ", ".join(f"{float(value):.3f}" for value in values) + "]"
