"""DROID episodes shown: imported, kinematics checked, recovered where a camera is known, looked at by the doctor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vap_gym.cards import RobotCard, load_robot
from vap_gym.data.checkup import check_set
from vap_gym.data.conventions import CARTESIAN, GRIPPER, JOINTS, camera_of, has_camera
from vap_gym.data.episodes import Episode, EpisodeSet
from vap_gym.data.video import write_video
from vap_gym.evaluate.real_sources import FOUR, Layer, figure, imported
from vap_gym.evaluate.report import table
from vap_gym.geometry import pose_from_xyz_euler
from vap_gym.kinematics import load_chain
from vap_gym.kinematics.ik import pose_error
from vap_gym.pictures import Picture, sheet, spread, write_png
from vap_gym.recover.robot import RobotPipeline
from vap_gym.recover.robot_set import NUMBER, VIDEO, recover_set

STATIONS = ("subset_*", "newsetup_*")  # two frame rates, so two sets
SHOWN, SCALE = 4, 2  # frames of an episode on its sheet; enlargement


def show_droid(folder: Path, out: Path, *, only: Sequence[str] = STATIONS, limit: int | None = None) -> str:
    """Import the episodes of a folder, recover (prompt, video) pairs of calibrated views, and return the tables.

    Written to `out`: a set for each pattern of `only`, a set of pairs for each calibrated view, `views.png` (every
    episode and view), and for each pair an mp4 and a sheet: frame, skeleton, mesh, overlay.
    """
    robot = load_robot("panda_robotiq")
    rows: list[list[str]] = []
    strips: list[tuple[str, list[Picture | None]]] = []
    doctor: list[list[str]] = []
    for pattern in only:
        name = pattern.strip("*_")
        episodes = imported("droid", folder, out / f"set_{name}", only=pattern, limit=limit)
        verdicts = _recovered(episodes, out, name, robot)
        for i in range(len(episodes)):
            episode = episodes[i]
            rows.append([*_facts(episode, robot), *_told(verdicts.get(i, {}))])
            strips.append((rows[-1][0], _strip(episode)))
        doctor += [[name, finding.level, finding.subject, finding.text] for finding in check_set(episodes.root)]
    widest = max(len(cells) for _, cells in strips)
    write_png(
        out / "views.png",
        sheet(
            [[*cells, *[None] * (widest - len(cells))] for _, cells in strips],
            scale=0.75,
            labels=[label for label, _ in strips],
            title="DROID: each view at the first and the last frame",
        ),
    )
    head = ["episode", "frames", "rate", "rows", "FK off m", "FK off rad", "view", "off px", "score", "motion", "kept"]
    return "\n\n".join([table(head, rows), table(["set", "level", "doctor on", "finding"], doctor)])


def kinematics_off(episode: Episode, robot: RobotCard) -> tuple[int, float, float]:
    """Return rows compared, and how far the tip by the joints is from the logged pose at the most [m, rad].

    All rows of the log count, those between frames too.
    """
    q, logged = (np.asarray(episode.columns[name], np.float64) for name in (JOINTS, CARTESIAN))
    names = ("log.joint_position", "log.cartesian_position")
    if all(name in episode.columns for name in names):
        q, logged = (np.asarray(episode.columns[n], np.float64).reshape(-1, w) for n, w in zip(names, (7, 6)))
    known = np.isfinite(q).all(1) & np.isfinite(logged).all(1)
    arm = load_chain(robot).subchain([robot.tip_link]).to(torch.float64)
    T = arm.fk(torch.from_numpy(q[known]), robot.tip_link)
    error = pose_error(T, pose_from_xyz_euler(torch.from_numpy(logged[known])))
    return int(known.sum()), float(error[:, :3].norm(dim=-1).max()), float(error[:, 3:].norm(dim=-1).max())


def _recovered(episodes: EpisodeSet, out: Path, name: str, robot: RobotCard) -> dict[int, dict[str, dict[str, Any]]]:
    """Run the pipeline on the calibrated views of a set; return each episode's entries of the report by view."""
    pipeline = RobotPipeline(robot)
    found: dict[int, dict[str, dict[str, Any]]] = {}
    for view, (height, width) in episodes.features.views.items():
        numbers = [i for i in range(len(episodes)) if has_camera(_states(episodes, i).columns, view)]
        if not numbers:
            continue
        pairs_at = out / f"pairs_{name}_{view}"
        report = recover_set(episodes, pairs_at, view, pipeline)
        layer = Layer(robot, (width, height), scale=SCALE)
        pairs = EpisodeSet(pairs_at) if report["kept"] else None
        for kind in ("kept", "discarded"):
            for entry in report[kind]:
                i = numbers[[episodes.index(n) for n in numbers].index(entry["episode"])]
                found.setdefault(i, {})[view] = {**entry, "kind": kind}
                episode, seen_as = episodes.read(i, views=[view]), view
                if pairs is not None and kind == "kept":
                    of = [n for n in range(len(pairs)) if pairs.info(n)[NUMBER] == entry["episode"]]
                    episode, seen_as = pairs.read(of[0], views=[VIDEO]), VIDEO
                _write_pair(episode, seen_as, layer, out / "overlays", f"{_name(episode)}_{view}", kind, episodes.fps)
    return found


def _write_pair(episode: Episode, view: str, layer: Layer, folder: Path, name: str, kind: str, fps: int) -> None:
    """Write an mp4 and a sheet of an episode: frame, skeleton, mesh, overlay."""
    q, gripper = (torch.from_numpy(np.array(episode.columns[n], np.float64)) for n in (JOINTS, GRIPPER))
    frames = episode.frames[view]
    laid = layer(frames, q, gripper, camera_of(episode.columns, view, (frames.shape[2], frames.shape[1])))
    write_video(folder / f"{name}.mp4", laid.film, fps)
    chosen = spread(SHOWN, len(frames))
    write_png(
        folder / f"{name}.png",
        sheet(
            [laid.row(t) for t in chosen],
            scale=0.75,
            columns=FOUR,
            labels=[f"frame {t}" for t in chosen],
            title=f"{name}: {kind}",
        ),
    )


def _facts(episode: Episode, robot: RobotCard) -> list[str]:
    rate = episode.info.get("rate_hz")
    rows, off_m, off_rad = kinematics_off(episode, robot)
    return [
        _name(episode),
        str(len(episode)),
        f"{rate:g} Hz" if rate else "not stated",
        str(rows),
        f"{off_m:.1e}",
        f"{off_rad:.1e}",
    ]


def _told(views: dict[str, dict[str, Any]]) -> list[str]:
    """View, discrepancy, score, motion, kept or why not; of several views one after the other."""
    if not views:
        return ["none calibrated", "-", "-", "-", "no camera"]
    kept = ["kept" if entry["kind"] == "kept" else "; ".join(entry["reasons"]) for entry in views.values()]
    figures = (("discrepancy_px", ".1f"), ("score", ".2f"), ("motion", ".2f"))
    cells = [", ".join(figure(entry[key], form) for entry in views.values()) for key, form in figures]
    return [", ".join(views), *cells, ", ".join(kept)]


def _strip(episode: Episode) -> list[Picture | None]:
    return [frames[t] for _, frames in sorted(episode.frames.items()) for t in (0, len(frames) - 1)]


def _states(episodes: EpisodeSet, i: int) -> Episode:
    return episodes.read(i, views=(), labels=())


def _name(episode: Episode) -> str:
    return str(episode.info["source"]["episode"])
