"""The held-out episodes played in the oracle, as arrays: frames, nominal states, truth; kept in a cache."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, UInt8

from vap_gym.evaluate.heldout import STEPS, HeldOut


@dataclass(frozen=True, kw_only=True)
class Clips:
    """N episodes of T = STEPS + 1 frames."""

    frames: UInt8[np.ndarray, "N T H W 3"]
    labels: UInt8[np.ndarray, "N T H W"]
    actions: Float[np.ndarray, "N T 7"]
    tip6: Float[np.ndarray, "N T 6"]  # nominal xyz + extrinsic-xyz Euler of the tip link
    joints_rad: Float[np.ndarray, "N T 7"]  # nominal
    closedness: Float[np.ndarray, "N T"]  # nominal
    tool_m: Float[np.ndarray, "N T 3"]  # nominal
    objects_m: Float[np.ndarray, "N T K 3"]
    K: Float[np.ndarray, "N 3 3"]
    T_world_camera: Float[np.ndarray, "N 4 4"]
    target: np.ndarray  # int (N,)
    success: Bool[np.ndarray, " N"]

    def __len__(self) -> int:
        return len(self.frames)

    def pick(self, rows: np.ndarray) -> Clips:
        """Some of the episodes."""
        return Clips(**{name: value[rows] for name, value in vars(self).items()})


def played(items: list[HeldOut], *, robot: str, cache: Path | None = None, workers: int = 0) -> Clips:
    """Play the listed episodes in the oracle, or read them from `cache` where it holds just these."""
    from tqdm import tqdm

    key = hashlib.sha256(repr([asdict(item) for item in items] + [robot]).encode()).hexdigest()
    if cache is not None and cache.exists():
        with np.load(cache) as stored:
            if str(stored["key"]) == key:
                return Clips(**{name: stored[name] for name in stored.files if name != "key"})
    jobs = [(robot, item) for item in items]
    with multiprocessing.get_context("spawn").Pool(workers or os.cpu_count() or 1) as pool:
        rows = list(tqdm(pool.imap(_one, jobs, chunksize=4), total=len(jobs), desc="oracle", unit="episode"))
    clips = Clips(**{name: np.stack([row[name] for row in rows]) for name in rows[0]})
    if cache is not None:
        cache.parent.mkdir(parents=True, exist_ok=True)
        temporary = cache.with_name(f".{cache.name}.{os.getpid()}.tmp.npz")
        np.savez_compressed(temporary, key=np.array(key), **vars(clips))
        temporary.replace(cache)
    return clips


_KEPT: dict[str, tuple[object, object]] = {}  # one scene per worker process


def _one(job: tuple[str, HeldOut]) -> dict[str, np.ndarray]:
    from vap_gym.cards import load_robot
    from vap_gym.evaluate.heldout import play
    from vap_gym.sim.rollout import VIEW, NominalRobot
    from vap_gym.sim.scene import Scene

    robot, item = job
    if robot not in _KEPT:
        import torch

        torch.set_num_threads(1)
        card = load_robot(robot)
        _KEPT[robot] = (Scene(card), NominalRobot(card))
    scene, nominal = _KEPT[robot]
    assert isinstance(scene, Scene)
    assert isinstance(nominal, NominalRobot)
    episode = play(scene, nominal, item)
    columns = episode.columns
    assert len(episode) == STEPS + 1
    return {
        "frames": episode.frames[VIEW],
        "labels": episode.labels[VIEW],
        "actions": columns["action"],
        "tip6": columns["nominal.cartesian_position"],
        "joints_rad": columns["nominal.joint_position"],
        "closedness": columns["nominal.gripper_position"][:, 0],
        "tool_m": columns["tool_m"],
        "objects_m": columns["objects_m"],
        "K": columns["camera.K"][0],
        "T_world_camera": columns["camera.T_world_camera"][0],
        "target": np.int64(item.scene.target),
        "success": np.bool_(episode.info["success"]),
    }
