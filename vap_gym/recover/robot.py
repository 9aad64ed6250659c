"""The robot pipeline (Fig. 3b): an episode with states and a camera → rectified prompts, and whether to keep it.

Prompts are drawn from the logged joints by forward kinematics. The rendered robot is matched to the frames; an episode
whose robot is not where it should be is discarded. The camera's drift and a small common offset are then taken out by a
homography per frame. All of it is a function of its inputs: the same in a process, on a cluster, or here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from numpy.typing import NDArray

from vap_gym.cards import RobotCard
from vap_gym.data.conventions import GRIPPER, JOINTS, camera_of
from vap_gym.data.episodes import Episode
from vap_gym.data.layout import DataError
from vap_gym.errors import require, unknown_name
from vap_gym.geometry import Camera
from vap_gym.prompts.kinds import Prompter
from vap_gym.recover.drift import corners, find_drift, no_drift, stabilised
from vap_gym.recover.matching import Matcher, Matches, SilhouetteMatcher, no_matches, on_robot
from vap_gym.recover.motion import MotionShare, motion_share, refined_shift
from vap_gym.recover.rectify import common_shift, rectified_camera
from vap_gym.recover.silhouette import Rendered, RobotRenderer
from vap_gym.recover.verdict import Rule, Verdict, judged

Align = Literal["motion", "matches", "none"]
AROUND_PX = 12  # how far the robot may be from where it is rendered, when the background is followed
LEAST_OFFSET_PX = 7.0  # what is measured of an offset errs by as much: a smaller one is left alone
KNOCKED_PX, MOSTLY = 3.0, 0.7  # a camera that was knocked: it left frame 0's place, and mostly is in one other place
CLEARLY = 1.02  # times as much explained
MOST_OFFSET_PX = 14.0  # a larger one is no correction


@dataclass(frozen=True, kw_only=True)
class RecoveredEpisode:
    """T frames' prompts, and how they were made to fit."""

    prompts: UInt8[np.ndarray, "T H W 3"]
    camera: Camera  # (T,), that draws them: the nominal one, moved by the homographies
    homography: Float[np.ndarray, "T 3 3"]  # px of the nominal prompt → px of the frame
    match_score: Float[np.ndarray, " T"]  # after rectification, in [0, 1]; NaN where no robot is in view
    has_state: Bool[np.ndarray, " T"]  # frames without one have no prompt: black
    verdict: Verdict  # of the nominal prompts, drift undone
    drift_px: float  # how far the camera strayed at the most, at the picture's corners
    drift_share: float  # of frames that could be registered
    offset_px: float  # of the prompts from the robot, common to all frames, that was taken out


class RobotPipeline:
    """Recovers the episodes of one robot. Holds settings and weights only; `recover_robot` is the short way."""

    def __init__(
        self,
        robot: RobotCard,
        *,
        matcher: Matcher | None = None,
        rule: Rule | None = None,
        prompt: str = "skeleton",
        align: Align = "motion",
    ) -> None:
        """Prepare to draw and to match.

        Args:
            robot: the card of the robot in the episodes.
            matcher: finds the rendered robot in frames; `SilhouetteMatcher` if none is given.
            rule: what an episode must meet to be kept.
            prompt: the kind of prompt, see `prompts.kinds`.
            align: how a common offset is found: "motion" (where the silhouettes explain most of what changes),
                "matches" (from the matches of all frames; for learned matchers), or "none".
        """
        if align not in ("motion", "matches", "none"):
            raise unknown_name("alignment", align, ("motion", "matches", "none"))
        require("cv2", "[data]", "Recovering prompts")
        self.robot, self.align, self.prompt = robot, align, prompt
        self.rule = Rule() if rule is None else rule
        self.matcher: Matcher = SilhouetteMatcher() if matcher is None else matcher
        self.render = RobotRenderer(robot)
        Prompter(robot, prompt, frame_size_px=(16, 16))  # tells at once of a kind that the robot cannot have

    def __call__(self, episode: Episode, view: str) -> RecoveredEpisode:
        """Recover one episode, see `recover_robot`."""
        frames, q, gripper, camera, has_state = self._read(episode, view)
        nominal = self.render(q, gripper, camera)
        fixed = _stands_still(camera)
        drift = find_drift(frames, _dilated(nominal.mask, AROUND_PX)) if fixed else no_drift(len(frames))
        still = stabilised(frames, drift.homography)
        base = self._reference(still, q, gripper, camera, drift.homography, nominal) if fixed else np.eye(3)
        H = drift.homography @ base

        placed, drawn = rectified_camera(camera, H), nominal
        if _strayed_px(H, camera.frame_size_px) > 0:
            drawn = self.render(q, gripper, placed)
        matches = self._matched(drawn, frames, has_state)
        silhouettes = nominal.moving
        if not np.array_equal(base, np.eye(3)):
            silhouettes = self.render(q, gripper, rectified_camera(camera, np.broadcast_to(base, H.shape))).moving
        silhouettes = silhouettes & has_state[:, None, None]
        motion = motion_share(still, silhouettes) if fixed else None
        verdict, scores = judged(matches, motion, self.rule)

        offset = self._offset(still, silhouettes, motion, matches, base) if verdict.keep and fixed else np.eye(3)
        if not np.array_equal(offset, np.eye(3)):
            corrected = rectified_camera(camera, H @ offset)
            drawn = self.render(q, gripper, corrected)
            after, new_scores = judged(self._matched(drawn, frames, has_state), motion, self.rule)
            if after.score > verdict.score:  # matches and motion agree
                H, placed, scores = H @ offset, corrected, new_scores
            else:
                offset = np.eye(3)
        size = camera.frame_size_px
        prompter = Prompter(self.robot, self.prompt, frame_size_px=size)
        prompts = prompter.draw(q, gripper, placed.to(torch.float32)).numpy()
        prompts[~has_state] = 0
        return RecoveredEpisode(
            prompts=prompts,
            camera=placed,
            homography=H,
            match_score=np.where(has_state, scores, np.nan),
            has_state=has_state,
            verdict=verdict,
            drift_px=_strayed_px(drift.homography, size),
            drift_share=drift.share,
            offset_px=_strayed_px(offset[None], size),
        )

    def _read(
        self, episode: Episode, view: str
    ) -> tuple[NDArray[np.uint8], torch.Tensor, torch.Tensor, Camera, NDArray[np.bool_]]:
        """Return frames, joints, closedness, cameras, and which have a state; the others borrow a neighbour's."""
        if view not in episode.frames:
            raise unknown_name("view of the episode", view, episode.frames)
        absent = [name for name in (JOINTS, GRIPPER) if name not in episode.columns]
        if absent:
            raise DataError(
                f"The robot pipeline needs the columns {JOINTS} and {GRIPPER}, {' and '.join(absent)} not among "
                f"{', '.join(episode.columns) or 'none'}. Import the set with its joint angles."
            )
        frames = np.asarray(episode.frames[view])
        q = np.asarray(episode.columns[JOINTS], np.float64)
        gripper = np.asarray(episode.columns[GRIPPER], np.float64).reshape(len(q), -1)[:, 0]
        joints = len(self.robot.arm_joints)
        if q.ndim != 2 or q.shape[1] != joints:
            raise DataError(
                f"{JOINTS} of '{self.robot.name}' must have shape (T, {joints}), got {q.shape}. "
                "Name the robot that was recorded."
            )
        camera = camera_of(episode.columns, view, (frames.shape[2], frames.shape[1]))
        has_state = np.isfinite(q).all(-1) & np.isfinite(gripper)
        if not has_state.any():
            raise DataError(
                f"An episode must have finite joints and gripper in some frame, got none in {len(q)} frames. "
                "Leave it out, or import it again."
            )
        every, known = np.arange(len(q)), np.flatnonzero(has_state)
        nearest = known[np.abs(every[:, None] - known).argmin(1)]
        q, gripper = q[nearest], gripper[nearest]
        return frames, torch.from_numpy(q).float(), torch.from_numpy(gripper).float(), camera.checked(), has_state

    def _matched(self, drawn: Rendered, frames: NDArray[np.uint8], has_state: NDArray[np.bool_]) -> list[Matches]:
        """Match each frame, and keep what lies on the robot's moving parts."""
        masks = drawn.moving & has_state[:, None, None]
        found = self.matcher(drawn.picture, masks, frames)
        return [on_robot(m, mask) if mask.any() else no_matches() for m, mask in zip(found, masks, strict=True)]

    def _reference(
        self,
        still: NDArray[np.uint8],
        q: torch.Tensor,
        gripper: torch.Tensor,
        camera: Camera,
        H: NDArray[np.float64],
        nominal: Rendered,
    ) -> NDArray[np.float64]:
        """Where the nominal camera belongs: in frame 0, or where the camera is most of the time (it may be knocked)."""
        size = camera.frame_size_px
        paths = corners(H, size)
        usual = int(np.abs(paths - np.median(paths, axis=0)).sum((1, 2)).argmin())
        is_there = np.linalg.norm(paths - paths[usual], axis=-1).max(1) < KNOCKED_PX
        other = np.linalg.inv(H[usual])
        if is_there[0] or is_there.mean() < MOSTLY:  # it never left, or it keeps moving
            return np.eye(3)
        moved = self.render(q, gripper, rectified_camera(camera, np.broadcast_to(other, H.shape))).moving
        first, later = motion_share(still, nominal.moving), motion_share(still, moved)
        is_better = first is not None and later is not None and later.here > CLEARLY * first.here
        return other if is_better else np.eye(3)

    def _offset(
        self,
        still: NDArray[np.uint8],
        silhouettes: NDArray[np.bool_],
        motion: MotionShare | None,
        matches: list[Matches],
        base: NDArray[np.float64],
    ) -> NDArray[np.float64]:
        """The common offset of the prompts from the robot, to the right of all other homographies."""
        found = np.eye(3)
        if self.align == "matches":
            found = common_shift(matches)
        elif self.align == "motion" and motion is not None:
            found[:2, 2] = refined_shift(still, silhouettes, motion.best_shift_px(within_px=MOST_OFFSET_PX))
        size = (silhouettes.shape[2], silhouettes.shape[1])
        found = np.linalg.inv(base) @ found @ base
        return found if LEAST_OFFSET_PX <= _strayed_px(found[None], size) <= MOST_OFFSET_PX else np.eye(3)


def recover_robot(
    episode: Episode,
    view: str,
    *,
    robot: RobotCard,
    matcher: Matcher | None = None,
    rule: Rule | None = None,
    prompt: str = "skeleton",
    align: Align = "motion",
) -> RecoveredEpisode:
    """Return rectified prompts for one view of an episode, and whether it should be kept.

    The episode needs joints, gripper and the view's camera (`data.conventions`). Frames without a finite state get a
    black prompt and no score. For many episodes make one `RobotPipeline` and call it.

    Raises VapError (DataError, UnknownNameError) where view, columns or camera are missing or do not fit the robot.
    """
    return RobotPipeline(robot, matcher=matcher, rule=rule, prompt=prompt, align=align)(episode, view)


def _stands_still(camera: Camera) -> bool:
    spread = [float((x - x[0]).abs().max()) for x in (camera.K, camera.T_world_camera)]
    return spread[0] < 1e-3 and spread[1] < 1e-6


def _dilated(mask: NDArray[np.bool_], reach_px: int) -> NDArray[np.bool_]:
    cv2: Any = require("cv2", "[data]", "Recovering prompts")
    kernel = np.ones((2 * reach_px + 1, 2 * reach_px + 1), np.uint8)
    return np.stack([cv2.dilate(m.astype(np.uint8), kernel) > 0 for m in mask])


def _strayed_px(homography: NDArray[np.float64], size_px: tuple[int, int]) -> float:
    """How far the picture's corners are moved at the most."""
    rest = corners(np.eye(3)[None], size_px)
    return float(np.linalg.norm(corners(homography, size_px) - rest, axis=-1).max())
