"""`vap-gym calibrate`: a camera from clicks, from a marker on the hand, or from the moving robot itself."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vap_gym.cards import load_robot
from vap_gym.errors import unknown_name
from vap_gym.geometry import pose, rotation_from_quaternion_xyzw
from vap_gym.photo import read_camera
from vap_gym.pictures import Picture, sheet, write_png
from vap_gym.recover.calibrate import CalibrationError, fit_camera, write_cameras
from vap_gym.recover.calibrate_align import align_camera, read_clip
from vap_gym.recover.calibrate_clicks import ClickedPoints, located, read_clicks, read_frames
from vap_gym.recover.calibrate_marker import EyeHand, Lens, fit_eye_hand
from vap_gym.recover.calibrate_solve import Free

MOST_PICTURES = 12
CELL_PX = 640  # of a picture in a sheet


def clicks(
    clicks: Path,
    episodes: Path,
    *,
    camera: str = "cam0",
    lens: Path | None = None,
    focal_px: float | None = None,
    free: Free = "pose",
    noise_px: float = 1.0,
    tool_shift_mm: float = 0.0,
    robot: str = "panda_robotiq",
    out: Path = Path("out/cameras.json"),
    picture: Path = Path("out/calibration.png"),
) -> dict[str, Any]:
    """Fit a camera to clicks on the robot's finger ends, and say how far it is off on episodes that are left out.

    Args:
        clicks: JSON {"clicks": [{"episode", "camera", "frame", "finger_a_px": [u, v] | null, "finger_b_px"}, …]}; other
            key-points of the robot's skeleton as "<name>_px".
        episodes: a folder with <episode>/log.npz and <episode>/<camera>.mp4, or a data set of ours.
        camera: whose clicks to take.
        lens: a JSON file of cameras, of which K of this camera is taken.
        focal_px: instead of `lens`: the focal length; square pixels, principal point in the middle.
        free: what is fitted: the pose alone, or also one focal factor, fx and fy, or all four intrinsics.
        noise_px: how exact the clicks are.
        tool_shift_mm: how much longer the gripper's mount is than the robot's model says (`calibrate align` tells).
        robot: a shipped robot, or the path of its folder.
        out: the file of cameras to write to; other cameras in it stay.
        picture: the picture to check it by.
    """
    card = load_robot(robot)
    seen = located(read_clicks(clicks, card), camera, episodes, card)
    shown = _frames_of(seen, episodes, camera)
    height, width = shown[0][0].shape[:2]
    size = (width, height)
    K = _lens(lens, camera, focal_px, size)
    points = seen.points_base_m + 1e-3 * tool_shift_mm * seen.tool_axis_base
    settings: dict[str, Any] = {"K": K, "frame_size_px": size, "free": free, "noise_px": noise_px}
    made = fit_camera(points, seen.pixels, **settings)
    print(f"{camera}: {made.summary()}")
    apart: dict[str, float | None] = {}
    for episode in seen.episodes if len(seen.episodes) > 1 else ():
        left_out = seen.of(episode)
        try:
            fitted = fit_camera(points[~left_out], seen.pixels[~left_out], **settings)
        except CalibrationError as error:
            print(f"  without {episode}: cannot be fitted. {error}")
            apart[episode] = None
            continue
        error_px = fitted.errors_px(points[left_out], seen.pixels[left_out])
        apart[episode] = float(np.median(error_px))
        print(f"  without {episode}: its {left_out.sum()} clicks are off by {np.median(error_px):.2f} px (median)")
    method = f"{len(points)} clicks in {len(shown)} frames of {len(seen.episodes)} episodes, tool {tool_shift_mm:+g} mm"
    found = {camera: made.table(method=method, valid_for_episodes=seen.episodes)}
    write_cameras(out, found)
    _write_sheet(picture, [made.picture(frame, rows) for frame, rows in shown])
    print(f"{out}: {camera}\n{picture}: green where clicked, red where reprojected, yellow the residual x 4")
    return {"cameras": found, "off_px_where_left_out": apart, "written": [out, picture]}


def marker(
    samples: Path,
    *,
    noise_px: float = 0.5,
    free: Free = "pose",
    out: Path = Path("out/cameras.json"),
    picture: Path = Path("out/calibration.png"),
) -> dict[str, Any]:
    """Fit cameras that look at a marker fixed to the hand, and where the marker is on it.

    Args:
        samples: JSON {"intrinsics": [{"fx", "fy", "cx", "cy", "width", "height"} per camera], "samples": [
            {"ee_position": [x, y, z] m, "ee_quaternion_xyzw", "marker_corner_px": [[u, v] or null per camera],
            "images": [file per camera]}]}; images are optional and beside the file.
        noise_px: how exact the detections are.
        free: what is fitted besides the poses: nothing, one focal factor, fx and fy, or all four intrinsics.
        out: the file of cameras to write to; other cameras in it stay.
        picture: the picture to check it by.
    """
    T_base_hand, pixels, lenses, images = read_samples(samples)
    made = fit_eye_hand(T_base_hand, pixels, lenses, free=free, noise_px=noise_px)
    print(made.summary())
    where = np.round(1e3 * made.marker_hand_m, 1).tolist()
    method = f"eye-hand: marker at {where} mm in the hand's frame, shared by {len(pixels)} cameras"
    found = {name: one.table(method=method) for name, one in made.cameras.items()}
    write_cameras(out, found)
    _write_sheet(picture, _marker_pictures(made, images, samples.parent))
    print(f"{out}: {', '.join(made.cameras)}\n{picture}: green where seen, red where reprojected, yellow residuals x 4")
    return {"cameras": found, "marker_hand_mm": where, "written": [out, picture]}


def align(
    episodes: Path,
    rough: Path,
    *,
    camera: str = "cam0",
    names: tuple[str, ...] = (),
    frames: int = 36,
    rough_m: float = 0.03,
    rough_deg: float = 3.0,
    fit_tool: bool = True,
    robot: str = "panda_robotiq",
    out: Path = Path("out/cameras.json"),
    picture: Path = Path("out/calibration.png"),
) -> dict[str, Any]:
    """Refine a rough camera, with no clicks, by laying the rendered robot's outline on the moving robot's borders.

    Args:
        episodes: a folder with <episode>/log.npz and <episode>/<camera>.mp4, or a data set of ours.
        rough: a JSON file of cameras that holds this one roughly: K, image_size_wh and a pose.
        camera: which camera.
        names: the episodes to use; those that the rough camera is said to be valid for where none is named.
        frames: how many in all.
        rough_m: how wrong the rough position may be, one standard deviation.
        rough_deg: the same of its rotation.
        fit_tool: also fit how much longer the gripper's mount is than the robot's model says.
        robot: a shipped robot, or the path of its folder.
        out: the file of cameras to write to; other cameras in it stay.
        picture: the picture to check it by.
    """
    card = load_robot(robot)
    entry = _camera_entry(rough, camera)
    chosen = names or tuple(entry.get("valid_for_episodes", ()))
    if not chosen:
        raise CalibrationError(
            f"Aligning needs episodes: none was named, and {rough} says none for '{camera}'. "
            "Name some: --names kitchen_3"
        )
    clips = [read_clip(episodes, name, camera, most=max(1, frames // len(chosen))) for name in chosen]
    made = align_camera(clips, card, read_camera(entry), rough_m=rough_m, rough_deg=rough_deg, fit_tool=fit_tool)
    print(f"{camera}: {made.summary()}")
    found = {camera: made.table(valid_for_episodes=chosen)}
    write_cameras(out, found)
    write_png(picture, made.picture(clips))
    print(f"{out}: {camera}\n{picture}: the outline in red, green lines to where the border seems to be")
    return {"cameras": found, "tool_shift_mm": round(1e3 * float(made.tool_shift_m), 2), "written": [out, picture]}


def read_samples(path: Path) -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, Lens], dict[str, list[str]]]:
    """Read hand poses (N, 4, 4), and per camera pixels (N, 2), its lens, and names of pictures; see `marker`."""
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
        samples = given["samples"]
        quaternion, position = (
            torch.tensor([sample[key] for sample in samples], dtype=torch.float64)
            for key in ("ee_quaternion_xyzw", "ee_position")
        )
        T_base_hand = pose(rotation_from_quaternion_xyzw(quaternion), position).numpy()
        pixels, lenses, images = {}, {}, {}
        for c, of in enumerate(given["intrinsics"]):
            name = f"cam{c}"
            K = np.array([[of["fx"], 0, of["cx"]], [0, of["fy"], of["cy"]], [0, 0, 1]], np.float64)
            lenses[name] = Lens(K=K, frame_size_px=(int(of["width"]), int(of["height"])))
            seen = [sample["marker_corner_px"][c] or (np.nan, np.nan) for sample in samples]
            pixels[name] = np.array(seen, np.float64).reshape(-1, 2)
            images[name] = [sample["images"][c] if sample.get("images") else "" for sample in samples]
    except (OSError, ValueError, TypeError, KeyError, IndexError, RuntimeError) as error:
        raise CalibrationError(
            f"{path} must be JSON with intrinsics and samples, got {type(error).__name__}: {error}. "
            "See `vap-gym calibrate marker --help`."
        ) from error
    return T_base_hand, pixels, lenses, images


def _frames_of(seen: ClickedPoints, episodes: Path, camera: str) -> list[tuple[Picture, list[int]]]:
    """Return each clicked frame with the rows of its clicks."""
    rows: dict[tuple[str, int], list[int]] = {}
    for row, click in enumerate(seen.clicks):
        rows.setdefault((click.episode, click.frame), []).append(row)
    return [(read_frames(episodes, name, camera, [frame])[0], mine) for (name, frame), mine in rows.items()]


def _marker_pictures(made: EyeHand, images: dict[str, list[str]], folder: Path) -> list[Picture]:
    """Return for each camera its first picture with all sightings, and the next few with their own."""
    shown: list[Picture] = []
    for name, one in made.cameras.items():
        paths = [(int(row), folder / images[name][row]) for row in one.index]
        kept = [(row, path) for row, path in paths if path.is_file()]
        shown += [one.picture(_read_picture(path), None if n == 0 else [row]) for n, (row, path) in enumerate(kept[:4])]
    return shown


def _read_picture(path: Path) -> Picture:
    from PIL import Image

    with Image.open(path) as image:
        return np.array(image.convert("RGB"))


def _write_sheet(path: Path, pictures: Sequence[Picture]) -> None:
    pictures = list(pictures[:MOST_PICTURES])
    if not pictures:
        return
    columns = min(3, len(pictures))
    cells: list[Picture | None] = [*pictures, *[None] * (-len(pictures) % columns)]
    rows = [cells[i : i + columns] for i in range(0, len(cells), columns)]
    write_png(path, sheet(rows, scale=min(1.0, CELL_PX / pictures[0].shape[1])))


def _camera_entry(path: Path, name: str) -> dict[str, Any]:
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CalibrationError(
            f"{path} must be a JSON file of cameras, got {type(error).__name__}: {error}."
        ) from error
    known = {key: value for key, value in given.items() if isinstance(value, dict) and "K" in value}
    if name not in known:
        raise unknown_name(f"camera in {path}", name, known)
    return dict(known[name])


def _lens(path: Path | None, camera: str, focal_px: float | None, size: tuple[int, int]) -> np.ndarray:
    if (path is None) == (focal_px is None):
        raise CalibrationError(
            "Intrinsics must come from --lens cameras.json or from --focal-px, got "
            f"{'neither' if path is None else 'both'}. A rough focal length is enough with --free focal."
        )
    if path is None:
        return np.array([[focal_px, 0, size[0] / 2], [0, focal_px, size[1] / 2], [0, 0, 1]], np.float64)
    entry = _camera_entry(path, camera)
    if tuple(entry.get("image_size_wh", ())) != size:
        raise CalibrationError(
            f"K of '{camera}' in {path} is for pictures of {entry.get('image_size_wh')} px, the frames are {size[0]} x "
            f"{size[1]}. Give K of these very pictures."
        )
    return np.array(entry["K"], np.float64)
