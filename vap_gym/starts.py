"""Start states: the first picture of an episode with its camera, robot state and task, many to one small npz file."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image

from vap_gym.assets import envs_dir
from vap_gym.errors import CheckpointError, VapError
from vap_gym.geometry import Camera
from vap_gym.sim.spec import SceneSpec

FORMAT = "vap_gym starts 1"


@dataclass(frozen=True, kw_only=True, eq=False)
class Seen:
    """A picture and the camera that took it: one that stands still, rides on the tip link, or sways as a head does."""

    frame: UInt8[np.ndarray, "H W 3"]
    camera: Camera  # when it took the picture, in the robot's base frame
    rides: bool = False
    sway: tuple[float, ...] = ()  # see `geometry.swayed`


@dataclass(frozen=True, kw_only=True, eq=False)
class Start:
    """Where an episode begins. The camera's world is the robot's base frame."""

    frame: UInt8[np.ndarray, "H W 3"]
    camera: Camera  # one camera, of the frame's size
    q_rad: Float[np.ndarray, " n"]
    closedness: float  # 0 open .. 1 closed
    instruction: str
    scene: SceneSpec | None = None  # what the oracle rebuilds, and whose task is rewarded; None: no task, no reward
    views: Mapping[str, Seen] = field(default_factory=dict)  # through further cameras; `save_starts` keeps none
    sway: tuple[float, ...] | None = None  # of the camera, see `geometry.swayed`; None: as the scene says

    @property
    def seen(self) -> Seen:
        """The first picture with its camera, and how that sways."""
        by_scene = () if self.scene is None else self.scene.camera.sway
        return Seen(frame=self.frame, camera=self.camera, sway=by_scene if self.sway is None else self.sway)


class StartSet:
    """Starts of one file, decoded when asked for."""

    def __init__(self, path: str | Path) -> None:
        """Open a file that `save_starts` wrote.

        Raises:
            CheckpointError: the file is missing, truncated, or something else.
        """
        self.path = Path(path)
        if not self.path.is_file():
            raise CheckpointError(
                f"No start states at '{self.path}'. Start from a picture of your own with "
                "reset(options={'image': …, 'state': …, 'camera': …}), or write starts with save_starts(path, …)."
            )
        try:
            with np.load(self.path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            self._about = json.loads(arrays["about"].tobytes())
            if self._about["format"] != FORMAT:
                raise KeyError(f"format {FORMAT!r}, got {self._about['format']!r}")
            self._png, self._ends = arrays["png"], arrays["png_end"]
            self._K, self._T = arrays["camera_K"], arrays["camera_T_world_camera"]
            self._q, self._closedness = arrays["q_rad"], arrays["closedness"]
        except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError) as error:
            raise CheckpointError(
                f"'{self.path}' holds no start states: {error}. Write it with save_starts(path, …)."
            ) from error

    def __len__(self) -> int:
        return len(self._ends)

    def __iter__(self) -> Iterator[Start]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, i: int) -> Start:
        """Return start `i`, from 0 on."""
        if not 0 <= i < len(self):
            raise VapError(f"No start {i} in '{self.path}': there are {len(self)}, numbered 0 to {len(self) - 1}.")
        begin = int(self._ends[i - 1]) if i else 0
        with Image.open(io.BytesIO(self._png[begin : int(self._ends[i])].tobytes())) as picture:
            frame = np.array(picture.convert("RGB"))
        about = self._about["starts"][i]
        return Start(
            frame=frame,
            camera=Camera(
                K=torch.from_numpy(self._K[i].copy()),
                T_world_camera=torch.from_numpy(self._T[i].copy()),
                frame_size_px=(frame.shape[1], frame.shape[0]),
            ),
            q_rad=self._q[i].copy(),
            closedness=float(self._closedness[i]),
            instruction=about["instruction"],
            scene=None if about["scene"] is None else SceneSpec.from_json(about["scene"]),
            sway=tuple(about["sway"]) if "sway" in about else None,
        )

    def of_task(self, task: str) -> tuple[int, ...]:
        """Return the numbers of the starts whose scene has this task; every one for "any"."""
        return tuple(i for i, about in enumerate(self._about["starts"]) if task in ("any", about["task"]))

    def tasks(self) -> tuple[str, ...]:
        """Return the tasks that occur, sorted."""
        return tuple(sorted({str(about["task"]) for about in self._about["starts"]}))


def starts_path(card_id: str) -> Path:
    """Return where the start states of a shipped card lie: beside the card."""
    return envs_dir() / f"{card_id}.starts.npz"


def save_starts(path: str | Path, starts: Iterable[Start]) -> int:
    """Write starts to one npz (temp name, then renamed; same starts, same bytes) and return how many there were."""
    items = list(starts)
    if not items:
        raise VapError("save_starts needs at least one start, got none.")
    pictures = [_png_bytes(item.frame) for item in items]
    about = {
        "format": FORMAT,
        "starts": [
            {
                "instruction": item.instruction,
                "task": None if item.scene is None else item.scene.task,
                "scene": None if item.scene is None else item.scene.to_json(),
                **({} if item.sway is None else {"sway": item.sway}),
            }
            for item in items
        ],
    }
    path = Path(path)
    temporary = path.with_name(f".{path.name}.part")
    with temporary.open("wb") as file:
        np.savez_compressed(
            file,
            about=np.frombuffer(json.dumps(about).encode(), np.uint8),
            png=np.frombuffer(b"".join(pictures), np.uint8),
            png_end=np.cumsum([len(picture) for picture in pictures]),
            camera_K=np.stack([item.camera.K.double().numpy() for item in items]),
            camera_T_world_camera=np.stack([item.camera.T_world_camera.double().numpy() for item in items]),
            q_rad=np.stack([np.asarray(item.q_rad, np.float64) for item in items]),
            closedness=np.array([item.closedness for item in items], np.float64),
        )
    temporary.replace(path)
    return len(items)


def _png_bytes(frame: UInt8[np.ndarray, "H W 3"]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
