"""Bridge's WidowX and RT-1's Google robot shown: imported, states checked, skeletons over their small pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from vap_gym import metrics
from vap_gym.cards import load_robot
from vap_gym.data.checkup import check_set
from vap_gym.data.conventions import ACTION, CARTESIAN, GRIPPER
from vap_gym.data.episodes import Episode, EpisodeSet
from vap_gym.data.layout import DataError
from vap_gym.data.video import write_video
from vap_gym.evaluate.real_sources import FOUR, Laid, Layer, imported, joints_for, short
from vap_gym.evaluate.report import table
from vap_gym.geometry import Camera, pose_from_xyz_euler
from vap_gym.pictures import sheet, write_png
from vap_gym.recover.hands.clips import ClipSettings
from vap_gym.recover.hands.viewpoint import measure_viewpoint

BRIDGE_VIEW, BRIDGE_SCALE = "image_0", 4
RT1_VIEW, RT1_HZ = "image", 3.0
RT1_MAP = f"""robot = "google_robot"
rate_hz = {RT1_HZ:g}
[other]
"frame" = "frame"
[views.{RT1_VIEW}]
file = "{{name}}.mp4"
size_px = [320, 256]
[episodes]
log = "*.npz"
"""


# --- Bridge ---


def show_bridge(folder: Path, out: Path, *, limit: int | None = None) -> str:
    """Import the TFRecord, compare it to the decoded episodes beside it, draw the robot over it; return the tables.

    The log has the tip's pose, not the joints: these are found by inverse kinematics. Written to `out`: the set, and
    a sheet and an mp4 of overlays.
    """
    robot = load_robot("widowx")
    episodes = imported("rlds-bridge", folder / "episodes.tfrecord", out / "set", limit=limit)
    height, width = episodes.features.views[BRIDGE_VIEW]
    layer = Layer(robot, (width, height), scale=BRIDGE_SCALE)
    camera = bridge_camera(json.loads((folder / "camera.json").read_text(encoding="utf-8")))
    rows, cells, labels, films = [], [], [], []
    for i in range(len(episodes)):
        episode = episodes[i]
        T = pose_from_xyz_euler(torch.from_numpy(np.array(episode.columns[CARTESIAN], np.float64)))
        found = joints_for(robot, T)
        gripper = torch.from_numpy(np.array(episode.columns[GRIPPER], np.float64)).clamp(0, 1)
        laid = layer(episode.frames[BRIDGE_VIEW], found.q, gripper, camera)
        name = short(episode.info["source"]["episode"])
        last = len(episode) - 1
        rows.append(
            [
                name,
                str(len(episode)),
                episode.task,
                compared(episode, folder / f"decoded_{int(name):02d}.npz"),
                f"{1e3 * float(found.position_error_m.max()):.1e}",
                f"{np.degrees(float(found.rotation_error_rad.max())):.1e}",
                f"{int(found.converged.sum())}/{len(episode)}",
                in_view(T[:, :3, 3], camera),
            ]
        )
        cells.append([*laid.row(0), laid.overlay[last // 2], laid.overlay[last]])
        labels.append(name)
        films.append(laid.film)
    headings = (*FOUR, "half-way", "last")
    title = f"Bridge, {BRIDGE_VIEW}: the first frame in four, then two later overlays"
    write_png(out / "overlays.png", sheet(cells, scale=0.75, columns=headings, labels=labels, title=title))
    write_video(out / "overlays.mp4", np.concatenate(films), episodes.fps)
    head = ["episode", "frames", "task", "equal to decoded", "IK off mm", "IK off deg", "IK found", "tips in view"]
    doctor = [[finding.level, finding.subject, finding.text] for finding in check_set(episodes.root)]
    return "\n\n".join([table(head, rows), table(["level", "doctor on", "finding"], doctor)])


def bridge_camera(told: Mapping[str, Any]) -> Camera:
    """Return Bridge's camera of a table with its place, what it looks along, and K at 640x480."""
    eye, forward = (
        torch.tensor(told[f"camera_{name}_in_base_link"], dtype=torch.float64) for name in ("position", "forward")
    )
    size = (640, 480)
    looking = Camera.look_at(eye, eye + forward, vertical_fov_rad=0.7, frame_size_px=size)
    K = torch.tensor(told["K_640x480"], dtype=torch.float64)
    return Camera(K=K, T_world_camera=looking.T_world_camera, frame_size_px=size).checked()


def compared(episode: Episode, decoded: Path) -> str:
    """Say whether states, actions and pictures are bit by bit those of a decoded episode; what differs where not."""
    if not decoded.is_file():
        return "none to compare"
    with np.load(decoded) as told:
        given = {"state": "observation.state", "action": ACTION}
        pairs = {name: (episode.columns[column], told[name]) for name, column in given.items()}
        pairs |= {view: (frames, told[view]) for view, frames in episode.frames.items()}
    off = [name for name, (mine, theirs) in pairs.items() if not np.array_equal(mine, theirs)]
    return f"differs: {', '.join(off)}" if off else f"yes: {', '.join(pairs)}"


def in_view(points_m: torch.Tensor, camera: Camera) -> str:
    """Say how many points are inside the picture."""
    uv, depth_m = camera.project(points_m)
    inside = (uv >= 0).all(-1) & (uv <= uv.new_tensor(camera.frame_size_px)).all(-1) & (depth_m > 0)
    return f"{int(inside.sum())}/{len(points_m)}"


# --- RT-1 ---


def show_rt1(folder: Path, out: Path) -> str:
    """Import the clip, draw the robot at its start pose over the first frame and two photographs, measure its motion.

    Neither states nor actions are known: only the first frame can be overlaid. Returns the tables.
    """
    with np.load(folder / "rt1_clip_22x256x320.npz") as stored:
        clip = np.asarray(stored["image"], np.uint8)
    episodes = _imported_clip(clip, out)
    frames = episodes[0].frames[RT1_VIEW]
    told = json.loads((folder / "camera.json").read_text(encoding="utf-8"))
    shown = [("clip, frame 0", frames[:1])]
    for path in sorted(folder.glob("*.png")):
        with Image.open(path) as photograph:
            shown.append((f"{path.stem} (the robot is painted out)", np.array(photograph.convert("RGB"))[None]))
    cells = [_at_start(pictures, told).row(0) for _, pictures in shown]
    labels = [name for name, _ in shown]
    title = "RT-1: the Google robot at the start of its episodes, as the camera in its head sees it"
    write_png(out / "overlays.png", sheet(cells, scale=0.6, columns=FOUR, labels=labels, title=title))
    write_video(out / "clip.mp4", frames, round(RT1_HZ))
    row = [short(episodes.info(0)["source"]["episode"]), str(len(frames)), f"{RT1_HZ:g} Hz"]
    row += ["yes" if np.array_equal(frames, clip) else "no", "none logged", "none logged"]
    facts = table(["clip", "frames", "rate", "pictures equal", "states", "actions"], [row])
    return "\n\n".join([facts, motion_table(frames), view_table(frames)])


def motion_table(frames: NDArray[np.uint8]) -> str:
    """Motion scores of a clip against itself, its frozen first frame, and itself reversed."""
    others = {
        "itself": frames,
        "frozen first frame": np.repeat(frames[:1], len(frames), axis=0),
        "reversed": frames[::-1],
    }
    rows = []
    for name, other in others.items():
        scores = metrics.motion_iou(np.ascontiguousarray(other), frames)
        figures = (scores.spatio_temporal, scores.spatial, scores.weighted_spatial, metrics.ssim(other, frames))
        rows.append([name, *(f"{value:.4f}" for value in figures)])
    return table(["the clip against", "ST-IoU", "spatial IoU", "weighted spatial IoU", "SSIM"], rows)


def view_table(frames: NDArray[np.uint8]) -> str:
    """What the viewpoint-change filter makes of a clip; parts of it that are not the camera's are not left out."""
    seen, limits = measure_viewpoint(frames), ClipSettings()
    drift = float(seen.drift(len(frames))[0].max())
    steady = not seen.cut.any() and seen.step.max() <= limits.max_step and drift <= limits.max_drift
    figures = [f"{seen.step.max():.4f}", f"{drift:.4f}", str(int(seen.cut.sum())), f"{seen.inliers[1:].min():.2f}"]
    head = [f"step (at most {limits.max_step:g})", f"drift (at most {limits.max_drift:g})", "cuts", "least inliers"]
    return table([*head, "verdict"], [[*figures, "steady: kept" if steady else "the view changes: dropped"]])


def _imported_clip(clip: NDArray[np.uint8], out: Path) -> EpisodeSet:
    """Lay the clip out as anyone's mp4 and log, and import it by a field map."""
    raw = out / "raw"
    raw.mkdir(parents=True)
    write_video(raw / "rt1_clip.mp4", clip, round(RT1_HZ), lossless=True)
    np.savez(raw / "rt1_clip.npz", frame=np.arange(len(clip)))
    (raw / "map.toml").write_text(RT1_MAP, encoding="utf-8")
    return imported("files", raw, out / "set", map_path=raw / "map.toml")


def _at_start(pictures: NDArray[np.uint8], told: Mapping[str, Any]) -> Laid:
    """Draw the robot at its start joints; pictures of half the camera's size are enlarged to it."""
    robot = load_robot("google_robot")
    joints = told["start_joint_positions"]
    K, T = (torch.tensor(told[key], dtype=torch.float64) for key in ("K_640x512", "T_base_from_camera_at_start"))
    camera = Camera(K=K, T_world_camera=T, frame_size_px=(640, 512)).checked()
    size = (pictures.shape[2], pictures.shape[1])
    if 640 % size[0] or size[0] * 512 != size[1] * 640:
        raise DataError(f"A picture of RT-1 must be 640x512 px or a part of it, got {size[0]}x{size[1]}. Take others.")
    layer = Layer(robot, size, scale=640 // size[0])
    q = torch.tensor([[joints[name] for name in robot.arm_joints]], dtype=torch.float64)
    return layer(pictures, q, torch.zeros(1), camera)
