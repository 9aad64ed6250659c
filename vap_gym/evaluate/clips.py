"""The held-out episodes played in the oracle, as arrays: frames, nominal states, truth; kept in a cache."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8

from vap_gym.data import Episode
from vap_gym.evaluate.heldout import STEPS, HeldOut
from vap_gym.geometry import Camera
from vap_gym.sim.scene import RENDERER
from vap_gym.sim.spec import COLOURS, SceneSpec
from vap_gym.train.motion import ROUND

FEW = 8  # episodes that are played sooner than further processes are up


@dataclass(frozen=True, kw_only=True)
class Clips:
    """N episodes of T = steps + 1 frames; of objects, K are told of by the palette's index, NaN where there is none.

    `action` t leads from frame t to t + 1; the nominal robot is what was commanded, without contact. Metres are of the
    robot's base frame, cameras are as they were at each frame.
    """

    frames: UInt8[np.ndarray, "N T H W 3"]
    labels: UInt8[np.ndarray, "N T H W"]
    actions: Float[np.ndarray, "N T 7"]
    joints_rad: Float[np.ndarray, "N T n"]  # nominal
    closedness: Float[np.ndarray, "N T"]  # nominal
    tool_m: Float[np.ndarray, "N T 3"]  # nominal
    objects_m: Float[np.ndarray, "N T K 3"]
    objects_xyzw: Float[np.ndarray, "N T K 4"]
    half_m: Float[np.ndarray, "N K 3"]  # half extents
    is_round: Bool[np.ndarray, "N K"]
    K: Float[np.ndarray, "N 3 3"]
    T_world_camera: Float[np.ndarray, "N T 4 4"]
    sway: Float[np.ndarray, "N 8"]  # of the camera, see `geometry.swayed`; zeros: it stands still
    target: np.ndarray  # int (N,), −1 where the task is about the drawer
    success: Bool[np.ndarray, " N"]

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def steps(self) -> int:
        """How many steps an episode has."""
        return int(self.frames.shape[1]) - 1

    def pick(self, rows: np.ndarray | slice) -> Clips:
        """Some of the episodes."""
        return Clips(**{name: value[rows] for name, value in vars(self).items()})

    def camera(self, row: int, frames: slice = slice(None)) -> Camera:
        """An episode's camera at some of its frames: batch (T,)."""
        T = torch.from_numpy(np.array(self.T_world_camera[row, frames], np.float32))
        K = torch.from_numpy(np.array(self.K[row], np.float32))
        return Camera(K=K.expand(len(T), 3, 3), T_world_camera=T, frame_size_px=self.frames.shape[3:1:-1])


def fingerprint(items: list[HeldOut], robot: str, steps: int) -> str:
    """Return what a cache of these episodes is known by: other episodes or another renderer make another one."""
    told = json.dumps([[asdict(item) for item in items], robot, steps, RENDERER, sorted(Clips.__annotations__)])
    return hashlib.sha256(told.encode()).hexdigest()


def played(
    items: list[HeldOut], *, robot: str, steps: int = STEPS, cache: Path | None = None, workers: int = 0
) -> Clips:
    """Play the listed episodes in the oracle, or read them from `cache` where it holds just these.

    `workers` are processes, 0: one per core. They are spawned: a script needs `if __name__ == "__main__":` then.
    """
    from tqdm import tqdm

    key = fingerprint(items, robot, steps)
    if cache is not None and (found := _read(cache, key)) is not None:
        return found
    jobs = [(robot, item, steps) for item in items]
    told: dict[str, Any] = {"total": len(jobs), "desc": f"oracle, {robot}", "unit": "episode", "mininterval": 5}
    if workers == 1 or len(jobs) < FEW:
        rows = [_one(job) for job in tqdm(jobs, **told)]
    else:
        with multiprocessing.get_context("spawn").Pool(workers or os.cpu_count() or 1) as pool:
            rows = list(tqdm(pool.imap(_one, jobs, chunksize=4), **told))
    clips = Clips(**{name: np.stack([row[name] for row in rows]) for name in rows[0]})
    if cache is not None:
        cache.parent.mkdir(parents=True, exist_ok=True)
        temporary = cache.with_name(f".{cache.name}.{os.getpid()}.tmp.npz")
        np.savez_compressed(temporary, key=np.array(key), **vars(clips))
        temporary.replace(cache)
    return clips


def _read(cache: Path, key: str) -> Clips | None:
    """What a cache holds, or None where that is not what is asked for."""
    try:
        with cache.open("rb") as file, np.load(file) as stored:
            if str(stored["key"]) == key:
                return Clips(**{name: stored[name] for name in stored.files if name != "key"})
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
        pass  # none there, cut short, or of an older kind: it is made anew
    return None


_KEPT: dict[str, tuple[object, object]] = {}  # one scene per worker process


def _one(job: tuple[str, HeldOut, int]) -> dict[str, np.ndarray]:
    from vap_gym.cards import load_robot
    from vap_gym.evaluate.heldout import play
    from vap_gym.sim.rollout import NominalRobot
    from vap_gym.sim.scene import Scene

    robot, item, steps = job
    if robot not in _KEPT:
        torch.set_num_threads(1)
        card = load_robot(robot)
        _KEPT[robot] = (Scene(card), NominalRobot(card))
    scene, nominal = _KEPT[robot]
    assert isinstance(scene, Scene)
    assert isinstance(nominal, NominalRobot)
    episode = play(scene, nominal, item, steps=steps)
    assert len(episode) == steps + 1
    return clip_of(episode)


def clip_of(episode: Episode) -> dict[str, np.ndarray]:
    """Return an oracle episode, recorded or read from a set, as a row of `Clips`."""
    from vap_gym.sim.rollout import VIEW

    columns, spec = episode.columns, SceneSpec.from_json(json.dumps(episode.info["scene"]))
    half_m, is_round = _shapes(spec)
    return {
        "frames": episode.frames[VIEW],
        "labels": episode.labels[VIEW],
        "actions": columns["action"],
        "joints_rad": columns["nominal.joint_position"],
        "closedness": columns["nominal.gripper_position"][:, 0],
        "tool_m": columns["tool_m"],
        "objects_m": columns["objects_m"],
        "objects_xyzw": columns["objects_xyzw"],
        "half_m": half_m,
        "is_round": is_round,
        "K": columns["camera.K"][0],
        "T_world_camera": columns["camera.T_world_camera"],
        "sway": np.array(spec.camera.sway or (0.0,) * 8, np.float32),
        "target": np.int64(spec.target),
        "success": np.bool_(episode.info["success"]),
    }


def _shapes(spec: SceneSpec) -> tuple[np.ndarray, np.ndarray]:
    half_m, is_round = np.full((len(COLOURS), 3), np.nan, np.float32), np.zeros(len(COLOURS), bool)
    for item in spec.objects:
        half_m[item.index], is_round[item.index] = item.half_extents_m, item.shape in ROUND
    return half_m, is_round
