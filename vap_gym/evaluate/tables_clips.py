"""The held-out clips that models are scored on: played in the oracle once, kept without loss, told by content."""

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
from jaxtyping import Float, Int64, UInt8
from numpy.typing import NDArray

from vap_gym.assets import ROOT
from vap_gym.cards import load_env
from vap_gym.data import Episode
from vap_gym.data.conventions import camera_of
from vap_gym.errors import VapError
from vap_gym.evaluate.heldout import HeldOut, list_path, load_heldout
from vap_gym.evaluate.tables_plan import SetPlan

VIEW = "front"
MANIPULATED_M = 0.02  # an object, or a drawer, that goes this far at some time is manipulated
LEAST_PX = 12  # of its mask in the first picture: less of it can hardly be told from others
FIRST_OBJECT, DRAWER = 4, 10  # in label pictures, see `sim.scene.LABELS`
KNOWN_KINDS = ("contact", "free", "failing")


@dataclass(frozen=True, kw_only=True)
class HeldOutClips:
    """N held-out episodes of T frames of one set and split, and what is true of them."""

    episodes: tuple[Episode, ...]
    kinds: tuple[str, ...]
    key: str  # sha256 of what they show

    def __len__(self) -> int:
        return len(self.episodes)

    @property
    def frames(self) -> UInt8[np.ndarray, "N T H W 3"]:
        """All pictures."""
        return np.stack([episode.frames[VIEW] for episode in self.episodes])

    @property
    def labels(self) -> UInt8[np.ndarray, "N T H W"]:
        """What each pixel shows, see `sim.scene.LABELS`."""
        return np.stack([episode.labels[VIEW] for episode in self.episodes])

    def tool_px(self) -> Float[np.ndarray, "N T 2"]:
        """Where the gripper is commanded to be, px; NaN where that is outside of the picture."""
        return np.stack([_tool_px(episode) for episode in self.episodes])

    def manipulated(self) -> Int64[np.ndarray, " N"]:
        """The label of the thing that moves most in each episode: 0 where none that is seen at first goes far."""
        return np.array([_manipulated(episode) for episode in self.episodes], np.int64)

    @property
    def has_moving_camera(self) -> bool:
        """Whether the camera moves within the episodes."""
        poses = np.stack([episode.columns["camera.T_world_camera"] for episode in self.episodes])
        return bool(np.abs(poses - poses[:, :1]).max() > 1e-4)


def chosen(plan: SetPlan, split: str, count: int) -> list[HeldOut]:
    """Return up to `count` listed episodes of a set's split, of every kind in proportion, in the list's order."""
    path = Path(plan.heldout) if plan.heldout else list_path(load_env(plan.env).id, ROOT / "benchmarks")
    listed = load_heldout(path)
    items = [item for item in listed if item.kind in (KNOWN_KINDS if split == "known" else ("novel",))]
    if not items:
        kinds = ", ".join(dict.fromkeys(item.kind for item in listed))
        raise VapError(f"'{path}' must list episodes of the split '{split}', got the kinds {kinds or 'none'}.")
    kept = [round((i + 0.5) * len(items) / count) for i in range(count)] if count < len(items) else range(len(items))
    return [items[min(i, len(items) - 1)] for i in kept]


def held_out_clips(plan: SetPlan, split: str, count: int, *, folder: Path, workers: int = 0) -> HeldOutClips:
    """Play a set's held-out episodes, or read them from `folder` where they were played by the same code.

    Args:
        plan: the set.
        split: "known" or "novel".
        count: of the episodes, at most.
        folder: where the clips are kept between runs.
        workers: processes; 0 for one per core, 1 for none beside this one.
    """
    items, robot = chosen(plan, split, count), load_env(plan.env).robot
    key = hashlib.sha256(json.dumps([[asdict(i) for i in items], robot, _code_of_oracle(robot)]).encode()).hexdigest()
    path = folder / f"{plan.name}-{split}.npz"
    kept = _read(path, key)
    if kept is None:
        _write(path, key, _play(robot, items, workers))
        kept = _read(path, key)
        assert kept is not None
    return HeldOutClips(episodes=tuple(kept), kinds=tuple(item.kind for item in items), key=_content(kept))


def _play(robot: str, items: list[HeldOut], workers: int) -> list[Episode]:
    from tqdm import tqdm

    jobs = [(robot, item) for item in items]
    told = {"total": len(jobs), "desc": "oracle", "unit": "episode", "mininterval": 5}
    if workers == 1:
        return [_one(job) for job in tqdm(jobs, **told)]
    with multiprocessing.get_context("spawn").Pool(workers or os.cpu_count() or 1) as pool:
        return list(tqdm(pool.imap(_one, jobs, chunksize=2), **told))


_KEPT: dict[str, tuple[Any, Any]] = {}  # one scene per process


def _one(job: tuple[str, HeldOut]) -> Episode:
    from vap_gym.cards import load_robot
    from vap_gym.evaluate.heldout import play
    from vap_gym.sim.rollout import NominalRobot
    from vap_gym.sim.scene import Scene

    robot, item = job
    if robot not in _KEPT:
        card = load_robot(robot)
        _KEPT[robot] = (Scene(card), NominalRobot(card))
    return play(*_KEPT[robot], item)


def _code_of_oracle(robot: str) -> str:
    """What the pictures follow from: a change of a line there, and they are made anew."""
    import vap_gym.sim
    from vap_gym.assets import robots_dir

    folder = Path(vap_gym.sim.__path__[0])
    files = [
        *sorted(folder.glob("*.py")),
        robots_dir() / robot / "robot.toml",
        *sorted(robots_dir().glob(f"{robot}/*.urdf")),
    ]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def _content(episodes: list[Episode]) -> str:
    """A hash of what is shown and told, whatever code made it."""
    digest = hashlib.sha256()
    for episode in episodes:
        digest.update(episode.task.encode())
        for table in (episode.frames, episode.labels, episode.columns):
            for name in sorted(table):
                digest.update(name.encode() + np.ascontiguousarray(table[name]).tobytes())
    return digest.hexdigest()


def _write(path: Path, key: str, episodes: list[Episode]) -> None:
    arrays = {f"column {name}": np.stack([e.columns[name] for e in episodes]) for name in episodes[0].columns}
    arrays["frames"], arrays["labels"] = (
        np.stack([getattr(e, kind)[VIEW] for e in episodes]) for kind in ("frames", "labels")
    )
    about = json.dumps({"key": key, "tasks": [e.task for e in episodes], "infos": [dict(e.info) for e in episodes]})
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp.npz")
    np.savez_compressed(temporary, about=np.array(about), **arrays)  # type: ignore[arg-type]
    temporary.replace(path)


def _read(path: Path, key: str) -> list[Episode] | None:
    """The kept clips; None where there are none, or others."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as stored:
            about = json.loads(str(stored["about"]))
            if about["key"] != key:
                return None
            arrays = {name: stored[name] for name in stored.files if name != "about"}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError):
        return None  # damaged: played again
    columns = {name.removeprefix("column "): value for name, value in arrays.items() if name.startswith("column ")}
    return [
        Episode(
            frames={VIEW: arrays["frames"][i]},
            labels={VIEW: arrays["labels"][i]},
            columns={name: value[i] for name, value in columns.items()},
            task=task,
            info=info,
        )
        for i, (task, info) in enumerate(zip(about["tasks"], about["infos"], strict=True))
    ]


def _tool_px(episode: Episode) -> NDArray[np.float64]:
    height, width = episode.frames[VIEW].shape[1:3]
    camera = camera_of(episode.columns, VIEW, (width, height))
    pixels, depth = camera.project(torch.from_numpy(episode.columns["tool_m"]).double()[:, None])
    at = pixels[:, 0].numpy()
    inside = ((at > 0) & (at < (width, height))).all(-1) & (depth[:, 0].numpy() > 0)
    return np.where(inside[:, None], at, np.nan)


def _manipulated(episode: Episode) -> int:
    at = episode.columns["objects_m"]
    went_m = {FIRST_OBJECT + i: path for i, path in enumerate(np.linalg.norm(at - at[:1], axis=-1).T)}
    if "drawer_open_m" in episode.columns:
        opened = episode.columns["drawer_open_m"]
        went_m[DRAWER] = np.abs(opened - opened[0])
    first = episode.labels[VIEW][0]
    farthest_m = {
        label: float(path.max())  # NaN, and so none, where there is no such thing
        for label, path in went_m.items()
        if (first == label).sum() >= LEAST_PX and path.max() >= MANIPULATED_M
    }
    return max(farthest_m, key=lambda label: farthest_m[label], default=0)
