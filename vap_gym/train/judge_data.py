"""Latents of all kinds of scenes, as clear and as spoilt as a world model's, and what a judge should read in them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor
from torch.nn import functional as F

from vap_gym.cards import load_robot
from vap_gym.data import Episode, EpisodeSet
from vap_gym.geometry import Camera
from vap_gym.rotations import rotation_from_quaternion_xyzw
from vap_gym.sim.scene import LABELS
from vap_gym.sim.spec import COLOURS
from vap_gym.train.motion import ROUND
from vap_gym.train.run import autocast
from vap_gym.train.sets import check_set
from vap_gym.train.things_data import chosen_episodes, is_held_out
from vap_gym.world.codec import FrameCodec, to_frames, to_pictures

LIFTED_M = 0.015  # an object whose lowest point is this far above the table is off it
FALLEN_M = -0.02  # one whose lowest point is this far below has fallen off
NEAR_TOOL_M = 0.12  # a lifted object so near the tool is held
SEEN_PX = 6  # an object of so many pixels is there to be seen; one with fewer, but some, may be called either
FOG = 0.25  # the most of it


@dataclass(frozen=True, kw_only=True)
class Truths:
    """N frames and what is true of them; points are the palette's colours, then the tool centre.

    Heights are over the table of the robot's card, as those that a judge reads.
    """

    latents: Float[Tensor, "N C h w"]
    labels: UInt8[Tensor, "N H W"]
    points_px: Float[Tensor, "N P 2"]  # NaN where there is nothing, or it is hidden or out of the picture
    present: Float[Tensor, "N P"]  # 1 or 0; NaN where it is hardly to be seen
    held: Bool[Tensor, "N P"]
    height_m: Float[Tensor, "N P"]  # of things at rest, else NaN
    place_m: Float[Tensor, "N P 3"]
    support_m: Float[Tensor, " N"]  # height of what the things rested on at first
    K: Float[Tensor, "N 3 3"]
    T_table_camera: Float[Tensor, "N 4 4"]  # of the base frame moved to the table's height
    robot: Int64[Tensor, " N"]
    held_out: Bool[Tensor, " N"]

    def __len__(self) -> int:
        """Number of frames."""
        return len(self.latents)

    def pick(self, which: Tensor) -> Truths:
        """Some of the frames."""
        return Truths(**{f.name: getattr(self, f.name)[which] for f in fields(self)})

    def to(self, device: torch.device) -> Truths:
        """The same on a device."""
        return Truths(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    def camera(self) -> Camera:
        """The frames' cameras, over the table."""
        _, H, W = self.labels.shape
        return Camera(K=self.K, T_world_camera=self.T_table_camera, frame_size_px=(W, H))


def load_truths(
    folders: list[Path],
    codec: FrameCodec,
    *,
    every: int | list[int],
    view: str,
    episodes: int = 0,
    only_held_out: bool = False,
    mirrored: float = 0.0,
    seed: int = 0,
) -> tuple[Truths, tuple[str, ...]]:
    """Every `every`-th frame (of all sets, or of each) of the sets' first `episodes` (0: all), and the robots that
    `robot` counts.

    Half of the episodes went through the codec once more, as what a world model shows; some of the others are first
    blurred or in fog; a share of the frames is `mirrored`. Held-out episodes are read as they are.
    """
    from tqdm import tqdm

    rng = torch.Generator().manual_seed(seed)
    parts: dict[str, list[Tensor]] = {}
    robots: list[str] = []
    steps = every if isinstance(every, list) else [every] * len(folders)
    for folder, step in zip(folders, steps, strict=True):
        source = EpisodeSet(folder)
        check_set(source, view=view, labels=True, scenes=True)
        robot = str(source.meta["robot_type"])
        if robot not in robots:
            robots.append(robot)
        table_z_m = load_robot(robot).skeleton.drop_to_z_m
        for i in tqdm(chosen_episodes(source, episodes, only_held_out), desc=f"encoding {folder}", mininterval=5):
            length, index = source.length(i), source.index(i)
            pick = np.arange(index % min(step, length), length, step)
            episode, kept = source.read(i, views=[view], labels=[view]), is_held_out(index)
            entry = _entry(episode, pick, view, table_z_m)
            pictures = to_pictures(torch.from_numpy(episode.frames[view][pick]))
            if not kept:
                flip = torch.rand(len(pick), generator=rng) < mirrored
                pictures, entry = some_mirrored(pictures, entry, flip)
            entry["latents"] = _encoded(
                codec, pictures if kept else _spoilt(pictures, rng), again=not kept and bool(i % 2)
            )
            entry["robot"] = torch.full((len(pick),), robots.index(robot))
            entry["held_out"] = torch.full((len(pick),), kept)
            for key, value in entry.items():
                parts.setdefault(key, []).append(value)
    return Truths(**{k: torch.cat(v) for k, v in parts.items()}), tuple(robots)


def some_mirrored(
    pictures: Float[Tensor, "N 3 H W"], entry: dict[str, Tensor], flip: Bool[Tensor, " N"]
) -> tuple[Float[Tensor, "N 3 H W"], dict[str, Tensor]]:
    """Return pictures, and what is true of them, with those that `flip` names as in a mirror; their cameras look so."""
    width = pictures.shape[-1]
    mirror = torch.tensor([[-1.0, 0.0, width], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    x, y = entry["points_px"].unbind(-1)
    other = {
        "labels": entry["labels"].flip(-1),
        "points_px": torch.stack([width - x, y], -1),
        "K": mirror @ entry["K"],
    }
    chosen = {k: torch.where(flip.reshape(-1, *(1,) * (v.ndim - 1)), v, entry[k]) for k, v in other.items()}
    return torch.where(flip[:, None, None, None], pictures.flip(-1), pictures), entry | chosen


@torch.no_grad()
def _encoded(codec: FrameCodec, pictures: Float[Tensor, "N 3 H W"], *, again: bool) -> Tensor:
    with autocast(torch.device("cpu")):
        latents = codec.encode(pictures.contiguous(memory_format=torch.channels_last))
        if again:  # what the judge gets from a world model has been through the codec
            shown = to_pictures(to_frames(codec.decode(latents)))
            latents = codec.encode(shown.contiguous(memory_format=torch.channels_last))
    return latents.half()


def _spoilt(pictures: Float[Tensor, "N 3 H W"], rng: torch.Generator) -> Float[Tensor, "N 3 H W"]:
    """A quarter of the pictures blurred a little, a quarter in fog of one grey."""
    kind = torch.rand(len(pictures), 1, 1, 1, generator=rng)
    soft = F.avg_pool2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, 1)
    share = torch.rand(len(pictures), 1, 1, 1, generator=rng)
    blurred = torch.lerp(pictures, soft, share)
    grey = torch.rand(len(pictures), 1, 1, 1, generator=rng) * 1.4 - 0.7
    foggy = torch.lerp(pictures, grey.expand_as(pictures), FOG * share)
    return torch.where(kind < 0.25, blurred, torch.where(kind > 0.75, foggy, pictures))


def _entry(episode: Episode, pick: np.ndarray, view: str, table_z_m: float) -> dict[str, Tensor]:
    columns = {k: torch.from_numpy(np.ascontiguousarray(v[pick])) for k, v in episode.columns.items()}
    labels = torch.from_numpy(episode.labels[view][pick])
    n, height, width = labels.shape
    size = torch.tensor([width, height])
    scene = episode.info["scene"]
    T = columns["camera.T_world_camera"].float().reshape(n, 4, 4).clone()
    camera = Camera(
        K=columns["camera.K"], T_world_camera=columns["camera.T_world_camera"], frame_size_px=(width, height)
    )
    points = torch.cat([columns["objects_m"], columns["tool_m"][:, None]], 1).float()
    pixels, depth = camera.project(points)
    inside = ((pixels >= 0) & (pixels < size)).all(-1) & (depth > 0)
    first = LABELS.index(COLOURS[0])
    area = torch.stack([(labels == first + k).sum((1, 2)) for k in range(len(COLOURS))], 1)
    area = torch.cat([area, torch.where(inside[:, -1:], SEEN_PX, 0)], 1)  # tools are taken to be seen
    present = torch.where(inside & (area >= SEEN_PX), 1.0, torch.where(inside & (area > 0), torch.nan, 0.0))
    bottom = points[..., 2].clone()
    for item in scene["objects"]:
        k = COLOURS.index(item["colour"])
        bottom[:, k] -= _reach_down(item, columns["objects_xyzw"][:, k])
    support = float(scene.get("table_z_m", 0.0))
    lifted, fallen = bottom > support + LIFTED_M, bottom < support + FALLEN_M
    near = (points - points[:, -1:]).norm(dim=-1) < NEAR_TOOL_M
    lowered = points - torch.tensor([0.0, 0.0, table_z_m])
    rests = ~lifted & ~fallen
    held = lifted & near
    rests[:, -1] = held[:, -1] = False
    T[:, 2, 3] -= table_z_m
    return {
        "labels": labels,
        "points_px": torch.where((inside & (area > 0))[..., None], pixels, torch.nan),
        "present": present,
        "held": held,
        "height_m": torch.where(rests, lowered[..., 2], torch.nan),
        "place_m": torch.where((rests | held)[..., None], lowered, torch.nan),
        "support_m": torch.full((n,), support - table_z_m),
        "K": columns["camera.K"].float().reshape(n, 3, 3),
        "T_table_camera": T,
    }


def _reach_down(item: dict[str, object], xyzw: Float[Tensor, "n 4"]) -> Float[Tensor, " n"]:
    """How far a box or an upright or lying cylinder reaches below its centre, in m."""
    half = torch.tensor(item["half_extents_m"])
    down = rotation_from_quaternion_xyzw(xyzw)[:, 2].abs().float()
    if item["shape"] in ROUND:
        return half[2] * down[:, 2] + half[0] * (1.0 - down[:, 2].square()).clamp_min(0.0).sqrt()
    return (down * half).sum(-1)
