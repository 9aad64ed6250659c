"""Real DROID streams for measuring: an episode seen by one calibrated camera, at the model's frame size.

A gripper's mount may be longer than its card says; an alignment tells by how much, and the links' views follow it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from vap_gym.cards import RobotCard, load_robot
from vap_gym.data.cropping import crop_for
from vap_gym.data.layout import DataError, replacing
from vap_gym.data.video import read_video
from vap_gym.errors import VapError
from vap_gym.geometry import Camera, inverse
from vap_gym.kinematics.urdf import load_chain
from vap_gym.photo import read_camera
from vap_gym.prompts.body import Body, gripper_links
from vap_gym.prompts.raster import draw
from vap_gym.prompts.skeleton import Skeleton
from vap_gym.recover.calibrate import CalibrationError, camera_apart
from vap_gym.recover.calibrate_clicks import read_states

ROBOT = "panda_robotiq"
CLICKED, ALIGNED, DOUBTFUL = "clicked", "aligned", "doubtful"
MOVES_RAD = 0.05  # a window in which no joint goes this far says nothing about motion
ALIGN_FRAMES = 36
ROUGH = {  # episode → (camera in cameras.json that stands near, [m], [deg]): where an alignment begins
    "newsetup_0001": (0.05, 5.0),
    "newsetup_0004": (0.05, 5.0),
    "newsetup_0009": (0.03, 3.0),
    "newsetup_0010": (0.03, 3.0),
    "newsetup_0012": (0.03, 3.0),
}
FAR_ROUGH = (0.1, 10.0)  # cam1 stood elsewhere when these were recorded
FAR_EPISODES = ("newsetup_0009", "newsetup_0010")


@dataclass(frozen=True, kw_only=True, eq=False)
class Stream:
    """T frames of an episode through a camera, and what a world model is told of them."""

    episode: str
    view: str
    how: str  # the camera was found: clicked, aligned or doubtful
    frames: UInt8[np.ndarray, "T H W 3"]
    joints_rad: Float[Tensor, "T n"]  # achieved, as logged: real logs have no nominal states
    closedness: Float[Tensor, " T"]
    camera: Camera
    views: Float[Tensor, "T L 3 4"]
    prompts: UInt8[np.ndarray, "T H W 3"]
    tool_shift_m: float
    instruction: str

    @property
    def name(self) -> str:
        """Episode and camera."""
        return f"{self.episode} {self.view}"

    def __len__(self) -> int:
        return len(self.frames)


def read_streams(
    droid: Path, aligned: Path | None = None, *, frame_size_px: tuple[int, int] = (144, 96), robot: str = ROBOT
) -> list[Stream]:
    """Read the calibrated streams of a folder of DROID episodes.

    Args:
        droid: holds cameras.json, and a folder per episode with log.npz, episode.json and <camera>.mp4.
        aligned: a list that `align_all` wrote; its cameras are taken for all their streams, and those of cameras.json
            for none. None: those of cameras.json alone.
        frame_size_px: (width, height) of frames: the largest centred crop, scaled.
        robot: card of the robot.

    Raises:
        DataError: the folder or the list is missing, or not what it should be.
    """
    if not (droid / "cameras.json").is_file():
        raise DataError(
            f"No real recordings at '{droid}': it must hold cameras.json and a folder per episode with log.npz and "
            "cam0.mp4. Name their folder with --droid."
        )
    reader = _Reader(droid, load_robot(robot), frame_size_px)
    if aligned is None:
        return [
            reader(episode, view, CLICKED, read_camera(entry), 0.0)
            for view, entry in json.loads((droid / "cameras.json").read_text(encoding="utf-8")).items()
            if "valid_for_episodes" in entry
            for episode in entry["valid_for_episodes"]
        ]
    try:
        rows = json.loads(aligned.read_text(encoding="utf-8"))["streams"]
        return [
            reader(row["episode"], row["view"], row["how"], read_camera(row["camera"]), 1e-3 * row["tool_shift_mm"])
            for row in rows
        ]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"'{aligned}' must be a list of aligned streams, got {type(error).__name__}: {error}. "
            "Make one: vap-gym bench real --align"
        ) from error


class _Reader:
    """Reads streams of one folder; keeps the robot's surface and skeleton."""

    def __init__(self, droid: Path, card: RobotCard, frame_size_px: tuple[int, int]) -> None:
        self.droid, self.size, self.card = droid, frame_size_px, card
        self.body, self.skeleton = Body(card), Skeleton(card)

    def __call__(self, episode: str, view: str, how: str, camera: Camera, tool_shift_m: float) -> Stream:
        frames = read_video(self.droid / episode / f"{view}.mp4")
        crop = crop_for((frames.shape[2], frames.shape[1]), self.size)
        camera = crop.camera(camera).to(torch.float32)
        states = read_states(self.droid, episode)
        q, gripper = (torch.from_numpy(x).float() for x in (states.joint_position, states.gripper_position))
        if len(q) != len(frames):
            raise DataError(
                f"{episode} must have a state for each frame, got {len(q)} for {len(frames)}. Fetch it again."
            )
        points = self.skeleton.at_joints(q, gripper)
        return Stream(
            episode=episode,
            view=view,
            how=how,
            frames=crop.pictures(frames),
            joints_rad=q,
            closedness=gripper,
            camera=camera,
            views=mounted_views(self.card, self.body, q, gripper, camera, tool_shift_m),
            prompts=draw(points, camera, self.skeleton),
            tool_shift_m=tool_shift_m,
            instruction=json.loads((self.droid / episode / "episode.json").read_text(encoding="utf-8"))["instruction"],
        )


def mounted_views(
    card: RobotCard, body: Body, q: Float[Tensor, "T n"], gripper: Float[Tensor, " T"], camera: Camera, shift_m: float
) -> Float[Tensor, "T L 3 4"]:
    """Return how one camera sees the links where the gripper is mounted `shift_m` further along the tip link's z."""
    from yourdfpy import URDF

    views = body.views(q, gripper, camera)
    if shift_m == 0.0:
        return views
    tool = gripper_links(card, URDF.load(str(card.urdf_path), load_meshes=False, build_scene_graph=False))
    is_tool = torch.tensor([name in tool for name in body.links])
    tip = load_chain(card).subchain((card.tip_link,)).to(torch.float32).links(q)[:, 0]
    across = camera.K @ inverse(camera.T_world_camera)[:3, :3] @ tip[:, :3, 2, None] * shift_m
    return torch.cat([views[..., :3], views[..., 3:] + is_tool[:, None, None] * across[:, None]], -1)


def windows(stream: Stream, *, steps: int, every: int, least_rad: float = MOVES_RAD) -> list[int]:
    """Return the first frames of windows of `steps` + 1 frames in which some joint moves by `least_rad` or more."""
    found = []
    for first in range(0, len(stream) - steps, every):
        q = stream.joints_rad[first : first + steps + 1]
        if float((q.amax(0) - q.amin(0)).max()) >= least_rad:
            found.append(first)
    return found


def clips(values: np.ndarray | Tensor, firsts: Sequence[int], steps: int) -> Tensor:
    """Return windows of an array over frames, (N, steps + 1, …)."""
    whole = torch.as_tensor(values)
    return torch.stack([whole[first : first + steps + 1] for first in firsts])


def align_all(droid: Path, out: Path, *, fit_tool: bool = True, robot: str = ROBOT) -> list[dict[str, Any]]:
    """Align the camera of every stream of the newsetup station to the moving robot, without clicks; write the list.

    Each begins at the camera of cameras.json of the same name, which stood within some centimetres and degrees of it.
    All frames of a stream may be looked at, the ones to be imagined too: as where a user has calibrated his camera.
    With `fit_tool` the gripper's mount is fitted as well.
    """
    from vap_gym.recover.calibrate_align import align_camera, read_clip

    given, card = json.loads((droid / "cameras.json").read_text(encoding="utf-8")), load_robot(robot)
    rows = []
    for episode, usual in ROUGH.items():
        for view in ("cam0", "cam1"):
            is_far = view == "cam1" and episode in FAR_EPISODES
            rough_m, rough_deg = FAR_ROUGH if is_far else usual
            clip = read_clip(droid, episode, view, most=ALIGN_FRAMES)
            try:
                made = align_camera(
                    [clip], card, read_camera(given[view]), rough_m=rough_m, rough_deg=rough_deg, fit_tool=fit_tool
                )
            except CalibrationError as error:
                print(f"{episode} {view}: {error}", flush=True)
                continue
            apart_m, apart_deg = camera_apart(made.start, made.camera)
            table = made.table(valid_for_episodes=[episode])
            rows.append(
                {
                    "episode": episode,
                    "view": view,
                    "how": DOUBTFUL if is_far else ALIGNED,
                    "tool_shift_mm": round(1e3 * made.tool_shift_m, 1),
                    "tool_shift_sd_mm": round(1e3 * float(made.covariance[-1, -1]) ** 0.5, 1),
                    "outline_median_px": round(made.median_px, 2),
                    "moved_mm": round(1e3 * apart_m),
                    "moved_deg": round(apart_deg, 1),
                    "camera": {key: table[key] for key in ("image_size_wh", "K", "T_camera_from_base")},
                }
            )
            print(f"{episode} {view}: {made.summary()}", flush=True)
    if not rows:
        raise VapError(f"No stream of '{droid}' could be aligned. Are these the newsetup recordings?")
    with replacing(out) as temporary:
        temporary.write_text(json.dumps({"streams": rows}, indent=1) + "\n", encoding="utf-8")
    return rows
