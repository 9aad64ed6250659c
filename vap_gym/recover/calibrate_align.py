"""A rough camera made better with no click: the rendered robot's outline is laid on the borders of the moving robot.

The robot is rendered as the camera should see it in many frames; along the normals of its outline its true border is
looked for; the camera moves so that all outlines come nearer; again, with a shorter reach. A gripper's mount is often
longer than its model: how far it is shifted along the flange's axis is fitted too, since a camera would hide it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from numpy.typing import NDArray

from vap_gym.cards import RobotCard
from vap_gym.errors import require
from vap_gym.geometry import Camera, inverse
from vap_gym.kinematics.urdf import load_chain
from vap_gym.pictures import sheet, spread
from vap_gym.prompts.body import Body, gripper_links
from vap_gym.recover.calibrate import CalibrationError, camera_apart, camera_table, checked_K
from vap_gym.recover.calibrate_clicks import read_frames, read_states
from vap_gym.recover.calibrate_evidence import Evidence, border_places, evidence_of
from vap_gym.recover.calibrate_picture import with_outline
from vap_gym.recover.calibrate_solve import Guess, Sight, cross, jacobian_of, moved, reprojected
from vap_gym.recover.silhouette import outline_of
from vap_gym.world.surfels import FAR_M, Surfels, seen_points

REACHES_PX = (20, 16, 12, 10, 8, 8, 6, 6, 4, 4, 4, 4)  # at 320 px of width; wider pictures reach further
REFRESHED = 3  # rounds from one estimate of the background to the next
TOOL_M = 0.02  # how far a gripper's mount may be off, one standard deviation
SIGHTINGS_PER_FRAME = 1.0  # points of one outline err together: they count as so many independent ones
FEW_FRAMES, LEAST_FRAMES, LEAST_POINTS = 12, 4, 200
STEPS = 6  # of least squares in a round
LITTLE_MOTION_M = 0.10
POOR_MEDIAN_PX = 4.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Clip:
    """Frames of a camera that stands still, and the robot's joints [rad] and closedness in each; gaps are fine."""

    frames: UInt8[np.ndarray, "T H W 3"]
    joint_position: Float[np.ndarray, "T n"]
    gripper_position: Float[np.ndarray, " T"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Alignment:
    """A camera aligned to what moves in clips: where the outline is now, and where the border seems to be.

    `covariance` is of rotation [rad] and translation [m] of T_camera_base, and the tool's shift [m]. It takes the
    points of one frame for one sighting and includes how rough the start was said to be; it knows nothing of parts
    that the robot's model lacks.
    """

    camera: Camera  # float64; the world is the robot's base
    start: Camera
    tool_shift_m: float  # of the gripper, along the z axis of the tip link, away from the arm
    rendered_px: Float[np.ndarray, "N 2"]
    found_px: Float[np.ndarray, "N 2"]
    distance_px: Float[np.ndarray, " N"]  # along the outline's normal
    clip: Int64[np.ndarray, " N"]  # which clip a point is of,
    frame: Int64[np.ndarray, " N"]  # and which of its frames
    covariance: Float[np.ndarray, "p p"]
    warnings: tuple[str, ...]

    @property
    def median_px(self) -> float:
        """Median distance of the outline from the robot's border."""
        return float(np.median(np.abs(self.distance_px)))

    def summary(self) -> str:
        """Return the figures in one line, and the warnings below it."""
        apart_m, apart_deg = camera_apart(self.start, self.camera)
        line = (
            f"{len(self.distance_px)} outline points: median {self.median_px:.2f} px from the border; the camera moved "
            f"{1e3 * apart_m:.0f} mm and {apart_deg:.1f} deg, the tool {1e3 * self.tool_shift_m:+.1f} mm along its axis"
        )
        return "\n".join([line, *(f"  warning: {text}" for text in self.warnings)])

    def picture(self, clips: Sequence[Clip], *, columns: int = 4) -> UInt8[np.ndarray, "h w 3"]:
        """Return a sheet of frames with the outline in red, and lines from it to where the border seems to be."""
        pairs = np.unique(np.stack([self.clip, self.frame], axis=1), axis=0)
        cells = []
        for c, t in pairs[spread(2 * columns, len(pairs))]:
            mine = (self.clip == c) & (self.frame == t)
            cells.append(with_outline(clips[c].frames[t], self.rendered_px[mine], self.found_px[mine]))
        cells += [cells[-1]] * (-len(cells) % columns)
        return sheet([cells[i : i + columns] for i in range(0, len(cells), columns)])

    def table(self, *, valid_for_episodes: Sequence[str] = ()) -> dict[str, Any]:
        """Return the camera as an entry of cameras.json, which `vap_gym.photo.read_camera` reads."""
        method = f"aligned to moving outlines, no clicks; tool shifted by {1e3 * self.tool_shift_m:+.1f} mm along z"
        return camera_table(
            self.camera,
            method="; ".join([method, *self.warnings]),
            valid_for_episodes=valid_for_episodes,
            reprojection_px={"outline_median": round(self.median_px, 3), "points": len(self.distance_px)},
        )


def align_camera(
    clips: Sequence[Clip],
    robot: RobotCard,
    camera: Camera,
    *,
    rough_m: float = 0.03,
    rough_deg: float = 3.0,
    fit_tool: bool = True,
) -> Alignment:
    """Refine a rough camera by aligning the rendered robot to its moving borders, over several frames.

    Args:
        clips: of one camera at one place; 16 or more frames in all, in which the arm stands differently.
        robot: its card must name a body (`vap-gym body`).
        camera: the rough one, of the frames' size; off by a few cm and degrees.
        rough_m, rough_deg: how wrong its position and rotation may be, one standard deviation. Outlines alone hardly
            tell a turn about the robot from a move around it; this keeps the camera where it is in such directions.
        fit_tool: whether to fit also how far the gripper is shifted along the tip link's z axis.

    Raises:
        CalibrationError: no or few frames, frames of another size than the camera's, a robot without a body, or a robot
            that is not in the picture.
        MissingDependencyError: OpenCV is absent.
    """
    require("cv2", "[data]", "Aligning a camera")
    _check(clips, robot, camera)
    fit = _Fit(robot, camera, rough_m, rough_deg, fit_tool)
    evidence: list[Evidence | None] = [None] * len(clips)
    guess = fit.start
    scale = max(1.0, camera.frame_size_px[0] / 320)
    for round_, reach in enumerate(REACHES_PX):
        reach_px = round(scale * reach)
        points = fit.look(clips, guess, evidence, reach_px, refresh=round_ % REFRESHED == 0)
        if len(points.distance_px) < LEAST_POINTS:
            raise CalibrationError(
                f"The robot must be seen in the frames, got {len(points.distance_px)} points of its outline where "
                f"something moves (at least {LEAST_POINTS} are needed). Is the camera right within a few cm and "
                "degrees, and does the arm move in these frames?"
            )
        guess, covariance = fit.step(points, guess, scale_px=max(1.0, reach_px / 8))
    final = fit.camera_at(guess)
    at = Sight(pixels=points.found_px, anchor_m=points.anchor_m, turn=points.turn, K=guess.K)
    seen_at = reprojected(at, guess)[0]
    made = Alignment(
        camera=final,
        start=camera,
        tool_shift_m=float(guess.offset_m[2]),
        rendered_px=seen_at,
        found_px=points.found_px,
        distance_px=((points.found_px - seen_at) * points.normals).sum(-1),
        clip=points.clip,
        frame=points.frame,
        covariance=covariance,
        warnings=(),
    )
    return replace(made, warnings=tuple(_doubts(made, clips, robot, rough_m, rough_deg)))


def drawn(robot: RobotCard, clip: Clip, camera: Camera, tool_shift_m: float) -> Float[np.ndarray, "T H W"]:
    """Return how far the robot's surface is in each frame [m], infinite beside it, with its tool shifted."""
    fit = _Fit(robot, camera, 1.0, 1.0, True)
    depth_m = fit.render(clip, fit.camera_at(fit.start), np.array([0.0, 0.0, tool_shift_m]))[0]
    return np.where(_solid(depth_m), depth_m, np.inf).astype(np.float64)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Points:
    """N outline points of all frames: where they hang in the base, where they should appear, and how sure that is."""

    anchor_m: Float[np.ndarray, "N 3"]
    turn: Float[np.ndarray, "N 3 3"]  # of the tool's shift into the base; zero for points of the arm
    found_px: Float[np.ndarray, "N 2"]
    normals: Float[np.ndarray, "N 2"]
    distance_px: Float[np.ndarray, " N"]
    weight: Float[np.ndarray, " N"]
    clip: Int64[np.ndarray, " N"]
    frame: Int64[np.ndarray, " N"]


class _Fit:
    """One robot and one rough camera: settings only. Parameters: 3 of rotation, 3 of translation, the tool's shift."""

    FITTED = (0, 1, 2, 3, 4, 5, 8)  # of the steps of `calibrate_solve`: of the offset, z only

    def __init__(self, robot: RobotCard, camera: Camera, rough_m: float, rough_deg: float, fit_tool: bool) -> None:
        from yourdfpy import URDF

        body = Body(robot)
        self.body, self.camera = body, camera
        self.surfels = Surfels(body.points_m, body.normals, body.link, body.spacing_m)
        self.flange = load_chain(robot).subchain((robot.tip_link,)).to(torch.float32)
        tool = gripper_links(robot, URDF.load(str(robot.urdf_path), load_meshes=False, build_scene_graph=False))
        self.is_tool = torch.tensor([name in tool for name in body.links])
        T = inverse(camera.T_world_camera.double()).numpy()
        self.start = Guess(R=T[:3, :3], t_m=T[:3, 3], K=checked_K(camera.K.numpy()), offset_m=np.zeros(3))
        rough = [np.radians(rough_deg)] * 3 + [rough_m] * 3 + [TOOL_M if fit_tool else 1e-9]
        self.precision = np.diag(1 / np.square(rough))

    def camera_at(self, guess: Guess) -> Camera:
        """Return the camera of a guess."""
        T = np.eye(4)
        T[:3, :3], T[:3, 3] = guess.R, guess.t_m
        return replace(self.camera.to(torch.float64), T_world_camera=inverse(torch.from_numpy(T))).checked()

    def look(
        self, clips: Sequence[Clip], guess: Guess, evidence: list[Evidence | None], reach_px: int, *, refresh: bool
    ) -> _Points:
        """Render the outlines and look for their borders; `evidence` is made anew where `refresh` says so."""
        camera, parts = self.camera_at(guess), []
        for c, clip in enumerate(clips):
            depth_m, tool, R_base_flange = self.render(clip, camera, guess.offset_m)
            masks = _solid(depth_m)
            known = evidence[c]
            if known is None or refresh:
                known = evidence[c] = evidence_of(clip.frames, None if known is None else masks)
            for t, mask in enumerate(masks):
                outline = outline_of(mask)
                if not len(outline):
                    continue
                places = border_places(known, t, outline, reach_px=reach_px)
                column, row = np.floor(outline.points_px).astype(np.int64).T
                depth = depth_m[t][row, column].astype(np.float64)
                good = places.clear & (depth < FAR_M - 1)
                uv, normals, shift = outline.points_px[good], outline.normals[good], places.shift_px[good]
                hung = camera.unproject(torch.from_numpy(uv), torch.from_numpy(depth[good])).numpy()
                turn = tool[t][row, column][good, None, None] * R_base_flange[t]
                parts.append(
                    _Points(
                        anchor_m=hung - turn @ guess.offset_m,
                        turn=turn,
                        found_px=uv + shift[:, None] * normals,
                        normals=normals,
                        distance_px=shift,
                        weight=1 / (1 + places.variance_px2[good]),
                        clip=np.full(len(uv), c),
                        frame=np.full(len(uv), t),
                    )
                )
        if not parts:
            return _Points(
                **{name: np.zeros((0, *shape)) for name, shape in _SHAPES.items()},
                clip=np.zeros(0, np.int64),
                frame=np.zeros(0, np.int64),
            )
        return _Points(**{name: np.concatenate([vars(part)[name] for part in parts]) for name in vars(parts[0])})

    def render(
        self, clip: Clip, camera: Camera, offset_m: Float[np.ndarray, "3"]
    ) -> tuple[Float[np.ndarray, "T H W"], NDArray[np.bool_], Float[np.ndarray, "T 3 3"]]:
        """Return the surface's depth [m], grown by two pixels, where it is the tool's, and the flange's rotation."""
        cv2 = require("cv2", "[data]", "Aligning a camera")
        width, height = camera.frame_size_px
        q, gripper = torch.from_numpy(clip.joint_position).float(), torch.from_numpy(clip.gripper_position).float()
        narrow = camera.to(torch.float32)
        views = self.body.views(q, gripper, narrow)
        R = self.flange.links(q)[:, 0, :3, :3]
        across = narrow.K @ inverse(narrow.T_world_camera)[:3, :3] @ R @ torch.from_numpy(offset_m).float()
        views[..., 3] += self.is_tool[:, None] * across[:, None]
        seen = seen_points(self.surfels, views, (height, width))
        tool = self.is_tool[self.body.link][seen.point.clamp(min=0)] & (seen.point >= 0)
        grow = np.ones((5, 5), np.uint8)
        depth = np.stack([cv2.erode(d, grow) for d in seen.depth_m[:, 0].numpy()])
        grown = np.stack([cv2.dilate(x, grow[:3, :3]) for x in tool.numpy().astype(np.uint8)]) > 0
        return depth, grown, R.double().numpy()

    def step(self, points: _Points, guess: Guess, *, scale_px: float) -> tuple[Guess, Float[np.ndarray, "p p"]]:
        """Move the camera and the tool toward what was found, far points counting less (soft L1) and the rough start
        too; return the new guess and the covariance."""
        sight = Sight(pixels=points.found_px, anchor_m=points.anchor_m, turn=points.turn, K=guess.K)
        frames = len(np.unique(np.stack([points.clip, points.frame]), axis=1).T)
        each = SIGHTINGS_PER_FRAME * frames / len(points.distance_px)
        for _ in range(STEPS):
            off = ((reprojected(sight, guess)[0] - points.found_px) * points.normals).sum(-1)
            J = jacobian_of([sight], [guess], np.zeros(9), "pose").reshape(-1, 2, 9)[..., self.FITTED]
            J = (J * points.normals[..., None]).sum(1)
            weight = each * points.weight / np.sqrt(1 + (off / scale_px) ** 2 * points.weight)
            away, turn = self.away(guess)
            normal = J.T @ (weight[:, None] * J) + turn.T @ self.precision @ turn
            move = np.linalg.solve(normal, -(J.T @ (weight * off) + turn.T @ self.precision @ away))
            full = np.zeros(9)
            full[list(self.FITTED)] = move
            guess = moved(guess, full, "pose")
        return guess, np.linalg.inv(normal)

    def away(self, guess: Guess) -> tuple[Float[np.ndarray, "p"], Float[np.ndarray, "p p"]]:
        """Return how far a guess is from the start (rotation [rad], position of the camera [m], tool [m]), and its
        derivative by a step (right for small rotations)."""
        from scipy.spatial.transform import Rotation

        start = self.start
        rotation = Rotation.from_matrix(guess.R @ start.R.T).as_rotvec()
        position = start.R.T @ start.t_m - guess.R.T @ guess.t_m
        J = np.eye(7)
        J[3:6, :3] = -guess.R.T @ cross(guess.t_m)
        J[3:6, 3:6] = -guess.R.T
        return np.concatenate([rotation, position, guess.offset_m[2:]]), J


_SHAPES = {"anchor_m": (3,), "turn": (3, 3), "found_px": (2,), "normals": (2,), "distance_px": (), "weight": ()}


def _solid(depth_m: Float[np.ndarray, "T H W"]) -> NDArray[np.bool_]:
    """Return where the robot is: the depth was grown by two pixels, which are taken off again."""
    cv2 = require("cv2", "[data]", "Aligning a camera")
    kernel = np.ones((5, 5), np.uint8)
    masks = [cv2.erode((d < FAR_M - 1).astype(np.uint8), kernel, borderType=cv2.BORDER_REPLICATE) for d in depth_m]
    return np.stack(masks) > 0


def _check(clips: Sequence[Clip], robot: RobotCard, camera: Camera) -> None:
    if not robot.body:
        raise CalibrationError(
            f"Aligning a camera needs the robot's surface, and the card of '{robot.name}' names no body. Make one: "
            f'vap-gym body {robot.name}, then body = "body.npz" in the card.'
        )
    frames = sum(len(clip.frames) for clip in clips)
    if frames < LEAST_FRAMES:
        raise CalibrationError(f"Aligning a camera takes at least {LEAST_FRAMES} frames, got {frames}. 32 are good.")
    width, height = camera.frame_size_px
    for clip in clips:
        if clip.frames.shape[1:3] != (height, width):
            raise CalibrationError(
                f"Frames must be of the camera's size, {width} x {height} px, got {clip.frames.shape[2]} x "
                f"{clip.frames.shape[1]}. Resize them, or the camera: camera.resized((width, height))."
            )
        if clip.joint_position.shape[1] != len(robot.arm_joints):
            raise CalibrationError(
                f"joint_position must have {len(robot.arm_joints)} joints of '{robot.name}', got "
                f"{clip.joint_position.shape[1]}. Name the robot of these clips."
            )


def _doubts(made: Alignment, clips: Sequence[Clip], robot: RobotCard, rough_m: float, rough_deg: float) -> list[str]:
    doubts = []
    frames = sum(len(clip.frames) for clip in clips)
    if frames < FEW_FRAMES:
        doubts.append(f"only {frames} frames: {FEW_FRAMES} or more, with the arm in different places, are better")
    chain = load_chain(robot).subchain((robot.tip_link,)).to(torch.float32)
    q = torch.from_numpy(np.concatenate([clip.joint_position for clip in clips])).float()
    reach = float(np.ptp(chain.links(q)[:, 0, :3, 3].numpy(), axis=0).max())
    if reach < LITTLE_MOTION_M:
        doubts.append(f"the hand moves by {100 * reach:.0f} cm only: add frames in which it is elsewhere")
    if made.median_px > POOR_MEDIAN_PX:
        doubts.append(f"the outlines stay {made.median_px:.1f} px (median) from the borders: look at the picture")
    apart_m, apart_deg = camera_apart(made.start, made.camera)
    if apart_m > 2.5 * rough_m or apart_deg > 2.5 * rough_deg:
        doubts.append(
            f"the camera moved by {1e3 * apart_m:.0f} mm and {apart_deg:.1f} deg, more than the rough one was said to "
            "be off: check it by the picture, or say how rough it is"
        )
    return doubts


def read_clip(episodes: Path, name: str, camera: str, *, most: int) -> Clip:
    """Return up to `most` frames of an episode, evenly spread, with the robot's states."""
    states = read_states(episodes, name)
    count = len(states.joint_position)
    chosen = np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(np.int64))
    return Clip(
        frames=read_frames(episodes, name, camera, chosen.tolist()),
        joint_position=states.joint_position[chosen],
        gripper_position=states.gripper_position[chosen],
    )
