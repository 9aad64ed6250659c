"""Episodes as the world model's training sees them: latents, key-points for prompts, gripper and objects."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from vap_gym.cards import load_robot
from vap_gym.data import EpisodeSet
from vap_gym.errors import CheckpointError, VapError
from vap_gym.geometry import Camera
from vap_gym.prompts.body import Body
from vap_gym.prompts.raster import draw
from vap_gym.prompts.skeleton import Skeleton
from vap_gym.rotations import rotation_from_quaternion_xyzw
from vap_gym.train.run import autocast
from vap_gym.train.sets import check_set
from vap_gym.train.video_cache import sha256_of
from vap_gym.world.codec import FrameCodec, to_pictures


@dataclass(frozen=True, kw_only=True)
class LatentEpisodes:
    """E episodes of T frames each, in memory.

    `frames` is uint8, `latents` float16; `keypoints_m` are the nominal robot's; `objects_px` and `tool_px` are
    in pixels of the frame, with NaN where there is no object; `objects_m` in the robot's base frame moved to its table.
    """

    frames: UInt8[Tensor, "E T H W 3"]
    latents: Float[Tensor, "E T C h w"]
    keypoints_m: Float[Tensor, "E T P 3"]
    views: Float[Tensor, "E T L 3 4"]  # of the robot's links, see `prompts.body.Body.views`
    K: Float[Tensor, "E T 3 3"]
    T_world_camera: Float[Tensor, "E T 4 4"]
    objects_px: Float[Tensor, "E T N 2"]
    objects_m: Float[Tensor, "E T N 3"]
    objects_turn: Float[Tensor, "E T N 3 3"]
    tool_px: Float[Tensor, "E T 2"]
    frame_size_px: tuple[int, int]
    robot: str

    def __len__(self) -> int:
        return len(self.latents)

    def prompts(self, episode: Int64[Tensor, " B"], frame: Int64[Tensor, " B"]) -> np.ndarray:
        """Draw the prompts of single frames: uint8 (B, H, W, 3)."""
        return draw(self.keypoints_m[episode, frame], self._cameras(episode, frame), _skeleton(self.robot))

    def _cameras(self, episode: Int64[Tensor, " B"], frame: Int64[Tensor, " B"]) -> Camera:
        K, T_world_camera = self.K[episode, frame], self.T_world_camera[episode, frame]
        return Camera(K=K, T_world_camera=T_world_camera, frame_size_px=self.frame_size_px)

    def pick(self, part: slice) -> LatentEpisodes:
        """Some of the episodes."""
        tensors = {k: v[part] for k, v in vars(self).items() if isinstance(v, Tensor)}
        return LatentEpisodes(**tensors, frame_size_px=self.frame_size_px, robot=self.robot)


@lru_cache
def _body(robot: str) -> Body:
    return Body(load_robot(robot))


@lru_cache
def _skeleton(robot: str) -> Skeleton:
    """Reading a robot costs more than drawing it, and training draws at every step."""
    return Skeleton(load_robot(robot))


def load_latents(
    folders: list[Path], codec: FrameCodec, *, robot: str, view: str, episodes: int = 0, cache: Path | None = None
) -> LatentEpisodes:
    """Encode the first `episodes` of every set of that robot (0: all; all of one length), or read them from `cache`.

    Raises CheckpointError where the cache was made of other sets, with another codec, of a robot that was another then,
    or by an early version.
    """
    made_of = {
        "codec": sha256_of(codec),
        "folders": [str(folder) for folder in folders],
        "view": view,
        "episodes": episodes,
        "robot": geometry_sha256(robot),
    }
    if cache is not None and cache.exists():
        return _cached(cache, made_of)
    from tqdm import tqdm

    parts: dict[str, list[Tensor]] = {}
    size = (0, 0)
    for folder in folders:
        source = EpisodeSet(folder)
        if str(source.meta.get("robot_type")) != robot:
            continue
        check_set(source, view=view)
        count = min(episodes or len(source), len(source))
        for i in tqdm(range(count), desc=f"encoding {folder}", unit="episode", mininterval=5):
            episode = source.read(i, views=[view], labels=[])
            frames = torch.from_numpy(episode.frames[view])
            size = (frames.shape[2], frames.shape[1])
            for key, value in _entry(frames, episode.columns, codec, robot, size).items():
                parts.setdefault(key, []).append(value)
    if not parts:
        raise VapError(f"No set among {', '.join(map(str, folders))} is of the robot '{robot}'. Make one first.")
    stored = LatentEpisodes(**{k: torch.stack(v) for k, v in parts.items()}, frame_size_px=size, robot=robot)
    if cache is not None:
        cache.parent.mkdir(parents=True, exist_ok=True)
        temporary = cache.with_suffix(".tmp")
        torch.save({"made_of": made_of, "episodes": stored}, temporary)
        temporary.replace(cache)
    return stored


def geometry_sha256(robot: str) -> str:
    """Digest of what key-points and views hang on: the robot's URDF, surface, gripper and key-points."""
    card = load_robot(robot)
    told = (card.base_link, card.tip_link, card.arm_joints, card.gripper, card.skeleton.keypoints, card.body)
    digest = hashlib.sha256(repr((*told, card.skeleton.drop_to_z_m)).encode())
    for path in (card.urdf_path, card.folder / card.body):
        if path.is_file():
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _cached(cache: Path, made_of: dict[str, Any]) -> LatentEpisodes:
    found = torch.load(cache, weights_only=False, mmap=True)
    told = found.get("made_of", {}) if isinstance(found, dict) else {}
    since = {"robot": made_of["robot"]} if told else {}  # caches that do not tell it are taken at their word
    other = [key for key, value in made_of.items() if (since | told).get(key) != value]
    if other:
        raise CheckpointError(
            f"The cache '{cache}' must be of the recipe's data, codec and robot, but differs in: {', '.join(other)}. "
            "Remove it, or name another folder as `cache`."
        )
    stored: LatentEpisodes = found["episodes"]
    return stored


@torch.no_grad()
def _entry(
    frames: Tensor, columns: Mapping[str, np.ndarray], codec: FrameCodec, robot: str, size: tuple[int, int]
) -> dict[str, Tensor]:
    data = {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in columns.items()}
    place = next(codec.parameters()).device
    with autocast(place):
        latents = codec.encode(to_pictures(frames).to(place).contiguous(memory_format=torch.channels_last)).cpu()
    pose = (data["nominal.joint_position"], data["nominal.gripper_position"][:, 0])
    camera = Camera(K=data["camera.K"], T_world_camera=data["camera.T_world_camera"], frame_size_px=size)
    return {
        "frames": frames,
        "latents": latents.half(),
        "keypoints_m": _skeleton(robot).at_joints(*pose),
        "views": _body(robot).views(*pose, camera),
        "K": camera.K,
        "T_world_camera": camera.T_world_camera,
        "objects_px": camera.project(data["objects_m"])[0],
        "objects_m": data["objects_m"] - torch.tensor([0.0, 0.0, load_robot(robot).skeleton.drop_to_z_m]),
        "objects_turn": rotation_from_quaternion_xyzw(data["objects_xyzw"]),
        "tool_px": camera.project(data["tool_m"][:, None])[0][:, 0],
    }


STRIDE_PX = 4.0  # of a latent cell


def loss_weight(
    data: LatentEpisodes,
    episode: Int64[Tensor, " B"],
    frame: Int64[Tensor, " B"],
    first: Int64[Tensor, " B"],
    *,
    gripper: float,
    objects: float,
    moved: float,
) -> Float[Tensor, "B 1 h w"]:
    """1 everywhere, more around the gripper, around objects, and most around objects that have moved (Sec. 3.3).

    Where a moved object stood at first counts like an object: the place has to be cleared.
    """
    size = data.latents.shape[-2:]
    now, then = data.objects_px[episode, frame], data.objects_px[episode, first]
    has_moved = _has_moved(data, episode, frame, first)
    here = blobs(now / STRIDE_PX, 1.6, size)
    strength = torch.where(has_moved, objects + moved, objects)[..., None, None]
    weight = (strength * here).amax(1) + (
        objects * has_moved[..., None, None] * blobs(then / STRIDE_PX, 1.6, size)
    ).amax(1)
    weight = torch.maximum(weight, gripper * blobs(data.tool_px[episode, frame] / STRIDE_PX, 2.5, size))
    return 1.0 + weight[:, None]


def _has_moved(data: LatentEpisodes, episode: Tensor, frame: Tensor, first: Tensor) -> Bool[Tensor, "B N"]:
    distance = (data.objects_m[episode, frame] - data.objects_m[episode, first]).norm(dim=-1)
    moved: Tensor = distance > 0.01
    return moved


def blobs(
    points: Float[Tensor, "*batch 2"], sigma_cells: float, size: torch.Size | tuple[int, int]
) -> Float[Tensor, "*batch h w"]:
    """Return a Gaussian of height 1 around each point, given in latent cells; nothing where a point is NaN."""
    y, x = torch.meshgrid(torch.arange(size[0]) + 0.5, torch.arange(size[1]) + 0.5, indexing="ij")
    cells = torch.nan_to_num(points, nan=-1e4)[..., None, None]
    return torch.exp(-((x - cells[..., 0, :, :]) ** 2 + (y - cells[..., 1, :, :]) ** 2) / (2 * sigma_cells**2))
