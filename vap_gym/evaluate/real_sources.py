"""What the showings of real recordings share: a folder that appears when it is whole, prompts over frames, sheets."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from vap_gym.cards import RobotCard
from vap_gym.data.episodes import EpisodeSet
from vap_gym.data.importing.kinds import open_source
from vap_gym.data.importing.run import Doubts, import_source
from vap_gym.data.importing.source import Options
from vap_gym.data.layout import DataError
from vap_gym.geometry import Camera
from vap_gym.kinematics import IkResult, load_chain, solve_ik
from vap_gym.prompts.kinds import Prompter
from vap_gym.prompts.raster import overlay

FOUR = ("frame", "skeleton", "mesh", "overlay")
LAID = 0.65  # how much of the frame a skeleton hides where it lies over it
OUTLINE_RGB = (255, 0, 200)  # of the mesh
TABLE = "table.md"
_OTHERS, _ITERATIONS = 15, 120  # postures that are tried besides home, and steps from each


@dataclass(frozen=True, kw_only=True)
class Laid:
    """T frames, the prompts of two kinds, and over the frames the skeleton and the mesh's outline; all of one size."""

    frame: UInt8[np.ndarray, "T H W 3"]
    skeleton: UInt8[np.ndarray, "T H W 3"]
    mesh: UInt8[np.ndarray, "T H W 3"]
    overlay: UInt8[np.ndarray, "T H W 3"]

    def row(self, t: int) -> list[UInt8[np.ndarray, "H W 3"]]:
        """The four pictures of a frame, as in `FOUR`."""
        return [self.frame[t], self.skeleton[t], self.mesh[t], self.overlay[t]]

    @property
    def film(self) -> UInt8[np.ndarray, "T H _ 3"]:
        """The four side by side."""
        return np.concatenate([self.frame, self.skeleton, self.mesh, self.overlay], axis=2)


class Layer:
    """Draws a robot over frames that were enlarged by a whole number: prompts are drawn at the larger size."""

    def __init__(self, robot: RobotCard, frame_size_px: tuple[int, int], *, scale: int = 1) -> None:
        self.scale = scale
        self.size = (frame_size_px[0] * scale, frame_size_px[1] * scale)
        self.skeleton, self.mesh = (Prompter(robot, kind, frame_size_px=self.size) for kind in ("skeleton", "mesh"))

    def __call__(
        self,
        frames: UInt8[np.ndarray, "T H W 3"],
        q: Float[Tensor, "T n"],
        gripper: Float[Tensor, " T"],
        camera: Camera,
    ) -> Laid:
        """Return frames and prompts at arm joints [rad] and closedness; one camera for all, or T."""
        large = enlarged(frames, self.scale)
        q, gripper, camera = q.float(), gripper.float(), camera.to(torch.float32)
        lines, faces = (prompter.draw(q, gripper, camera).numpy() for prompter in (self.skeleton, self.mesh))
        laid = overlay(large, lines, alpha=LAID)
        laid[outline(faces.max(axis=-1) > 0)] = OUTLINE_RGB
        return Laid(frame=large, skeleton=lines, mesh=faces, overlay=laid)


def outline(mask: Bool[np.ndarray, "T H W"]) -> Bool[np.ndarray, "T H W"]:
    """Return the pixels of a silhouette that touch one outside of it; the picture's border is no edge."""
    padded = np.pad(mask, ((0, 0), (1, 1), (1, 1)), mode="edge")
    around = padded[:, :-2, 1:-1] & padded[:, 2:, 1:-1] & padded[:, 1:-1, :-2] & padded[:, 1:-1, 2:]
    edge: Bool[np.ndarray, "T H W"] = mask & ~around
    return edge


def enlarged(frames: UInt8[np.ndarray, "T H W 3"], scale: int) -> UInt8[np.ndarray, "T h w 3"]:
    """Return frames a whole number of times larger, smooth."""
    from PIL import Image

    if scale == 1:
        return frames
    size = (frames.shape[2] * scale, frames.shape[1] * scale)
    return np.stack([np.array(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC)) for frame in frames])


@contextmanager
def fresh_folder(out: Path) -> Iterator[Path]:
    """Give a new folder beside `out` that takes its place once the work in it is done; nothing is left on errors.

    Raises DataError where `out` holds something that was not made so.
    """
    if out.exists() and not (out / TABLE).is_file():
        raise DataError(f"'{out}' must be free, or hold a {TABLE} from an earlier run. Name another --out.")
    made = out.with_name(f".{out.name}.part")
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    try:
        yield made
        shutil.rmtree(out, ignore_errors=True)
        made.rename(out)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def imported(
    kind: str, source: Path, out: Path, *, only: str = "*", limit: int | None = None, map_path: Path | None = None
) -> EpisodeSet:
    """Import a recording as `vap-gym data import` does, and return the set. Raises DataError if an episode failed."""
    opened = open_source(kind, source, Options(map_path=map_path))
    report = import_source(opened, source, out, doubts=Doubts(), only=only, limit=limit)
    if report.failed:
        told = "; ".join(f"{outcome.name}: {outcome.failed}" for outcome in report.failed)
        raise DataError(f"Every episode of {source} must be readable, got {told} Fetch the files again.")
    return EpisodeSet(out)


def joints_for(robot: RobotCard, T_base_tip: Float[Tensor, "N 4 4"]) -> IkResult:
    """Return arm joints that bring the tip to each pose: those nearest to home, or if none is found there, to others.

    Where an arm has more joints than a pose has freedoms, its elbow may be elsewhere than the real one.
    """
    arm = load_chain(robot).subchain([robot.tip_link]).to(torch.float64)
    home = torch.tensor(robot.home_q_rad, dtype=torch.float64)
    spread = torch.rand(_OTHERS, len(home), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    T_target = T_base_tip.double()
    best = solve_ik(arm, robot.tip_link, T_target, home.expand(len(T_target), -1), iterations=_ITERATIONS)
    for guess in arm.lower + spread * (arm.upper - arm.lower):
        if bool(best.converged.all()):
            break
        other = solve_ik(arm, robot.tip_link, T_target, guess.expand(len(T_target), -1), iterations=_ITERATIONS)
        is_nearer = ~best.converged & (_off(other) < _off(best))
        best = IkResult(
            q=torch.where(is_nearer[:, None], other.q, best.q),
            position_error_m=torch.where(is_nearer, other.position_error_m, best.position_error_m),
            rotation_error_rad=torch.where(is_nearer, other.rotation_error_rad, best.rotation_error_rad),
            converged=torch.where(is_nearer, other.converged, best.converged),
        )
    return best


def _off(found: IkResult) -> Float[Tensor, " N"]:
    """One figure of how far a pose is from its target: a radian counts as a tenth of a metre."""
    return found.position_error_m + 0.1 * found.rotation_error_rad


def short(name: str) -> str:
    """Return the last part of an episode's name: `episodes.tfrecord:00003` → `00003`."""
    return name.rsplit(":", 1)[-1].rsplit("/", 1)[-1]


def figure(value: float | None, form: str) -> str:
    """Return a number in a format, "-" where there is none."""
    return "-" if value is None or not np.isfinite(value) else format(value, form)
