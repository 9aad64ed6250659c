"""Pictures of all kinds of scenes, what is true of the things in them, and the same pictures changed a little."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor
from torch.nn import functional as F

from vap_gym.cards import load_robot
from vap_gym.data import Episode, EpisodeSet
from vap_gym.geometry import Camera
from vap_gym.prompts.body import Body
from vap_gym.rotations import rotation_from_quaternion_xyzw
from vap_gym.sim.scene import LABELS
from vap_gym.sim.spec import COLOURS
from vap_gym.train.motion import MOST, ROUND, standing_shape
from vap_gym.train.sets import check_set
from vap_gym.world.codec import to_pictures
from vap_gym.world.surfels import Surfels, seen_points

FIRST_OBJECT = LABELS.index(COLOURS[0])
ENOUGH_PX = 10  # so many pixels of an object must be seen for it to be looked for
HELD_OUT_EVERY = 10  # one episode in so many is not trained on
SURFACE = 0.3  # share of pictures whose robot is told by its surface


@dataclass(frozen=True, kw_only=True)
class Scenes:
    """N frames, and what is true of up to MOST objects in each; NaN where there is none or it is hardly seen.

    The base frame is that of the views' first link: its plane z = 0 is the table of the robot's card.
    """

    frames: UInt8[Tensor, "N H W 3"]
    labels: UInt8[Tensor, "N H W"]
    surface: Bool[Tensor, "N H W"]  # what the robot's surface covers where kinematics says it is
    views: Float[Tensor, "N 1 3 4"]  # of the base
    number: Int64[Tensor, "N K"]  # of the object's label
    pixel: Float[Tensor, "N K 2"]
    place_m: Float[Tensor, "N K 3"]
    shape: Float[Tensor, "N K 6"]
    support_m: Float[Tensor, " N"]  # height of what the things stood on at first
    robot: Int64[Tensor, " N"]  # whose scene it is: one kind of scene each
    held_out: Bool[Tensor, " N"]

    def __len__(self) -> int:
        """Number of frames."""
        return len(self.frames)

    def pick(self, which: Tensor) -> Scenes:
        """Some of the frames."""
        return Scenes(**{f.name: getattr(self, f.name)[which] for f in fields(self)})

    def to(self, device: torch.device) -> Scenes:
        """The same on a device."""
        return Scenes(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})


def load_scenes(
    folders: list[Path], *, every: int, view: str, episodes: int = 0, only_held_out: bool = False
) -> tuple[Scenes, tuple[str, ...]]:
    """Every `every`-th frame of the sets' first `episodes` (0: all), and the robots that `robot` counts."""
    from tqdm import tqdm

    parts: dict[str, list[Tensor]] = {}
    robots: list[str] = []
    for folder in folders:
        source = EpisodeSet(folder)
        check_set(source, view=view, labels=True, scenes=True)
        robot = str(source.meta["robot_type"])
        if robot not in robots:
            robots.append(robot)
        body = Body(load_robot(robot))
        for i in tqdm(chosen_episodes(source, episodes, only_held_out), desc=f"reading {folder}", mininterval=5):
            length = source.length(i)
            pick = np.arange(source.index(i) % min(every, length), length, every)
            entry = _entry(source.read(i, views=[view], labels=[view]), pick, body, view)
            entry["robot"] = torch.full((len(pick),), robots.index(robot))
            entry["held_out"] = torch.full((len(pick),), is_held_out(source.index(i)))
            for key, value in entry.items():
                parts.setdefault(key, []).append(value)
    return Scenes(**{k: torch.cat(v) for k, v in parts.items()}), tuple(robots)


def chosen_episodes(source: EpisodeSet, episodes: int, only_held_out: bool) -> list[int]:
    """Return which of the first `episodes` (0: all) are to be read."""
    first = range(min(episodes or len(source), len(source)))
    return [i for i in first if not only_held_out or is_held_out(source.index(i))]


def is_held_out(index: int) -> bool:
    """Whether the episode of that index is kept for the scores: one in ten, whatever the set grows to."""
    return index % HELD_OUT_EVERY == 0


def scored(robot: Int64[Tensor, " N"], held_out: Bool[Tensor, " N"], most: int) -> Int64[Tensor, " n"]:
    """Return which frames to score: up to `most` held-out ones of each robot, spread evenly over its episodes."""
    kept: list[Tensor] = []
    for number in robot.unique():
        mine = (held_out & (robot == number)).nonzero()[:, 0]
        kept.append(mine[torch.linspace(0, len(mine) - 1, min(most, len(mine))).round().long()])
    return torch.cat(kept)


def _entry(episode: Episode, pick: np.ndarray, body: Body, view: str) -> dict[str, Tensor]:
    columns = {k: torch.from_numpy(np.ascontiguousarray(v[pick])) for k, v in episode.columns.items()}
    frames, labels = (torch.from_numpy(x[view][pick]) for x in (episode.frames, episode.labels))
    size = (frames.shape[2], frames.shape[1])
    camera = Camera(K=columns["camera.K"], T_world_camera=columns["camera.T_world_camera"], frame_size_px=size)
    objects = episode.info["scene"]["objects"]
    which = [COLOURS.index(item["colour"]) for item in objects]
    turn = rotation_from_quaternion_xyzw(columns["objects_xyzw"][:, which])
    half = torch.tensor([o["half_extents_m"] for o in objects]).expand(len(pick), -1, 3)
    is_round = torch.tensor([o["shape"] in ROUND for o in objects]).expand(len(pick), -1)
    place = columns["objects_m"][:, which]
    pixel, _ = camera.project(place)
    inside = ((pixel > 0) & (pixel < torch.tensor(size))).all(-1)
    number = torch.tensor(which).expand(len(pick), -1) + FIRST_OBJECT
    seen = torch.stack([(labels == n).sum((1, 2)) for n in number[0].tolist()], 1) >= ENOUGH_PX
    pixel = torch.where((seen & inside)[..., None], pixel, torch.nan)
    views = body.views(columns["nominal.joint_position"], columns["nominal.gripper_position"][:, 0], camera)
    surfels = Surfels(points_m=body.points_m, normals=body.normals, link=body.link, spacing_m=body.spacing_m)
    pad = (0, 0, 0, MOST - len(objects))
    table_z_m = body.robot.skeleton.drop_to_z_m
    return {
        "support_m": torch.full((len(pick),), episode.info["scene"].get("table_z_m", 0.0) - table_z_m),
        "frames": frames,
        "labels": labels,
        "surface": seen_points(surfels, views, (size[1], size[0])).point >= 0,
        "views": views[:, body.links.index(body.robot.base_link)][:, None],
        "number": F.pad(number, pad[2:], value=-1),
        "pixel": F.pad(pixel, pad, value=torch.nan),
        "place_m": F.pad(place - torch.tensor([0.0, 0.0, table_z_m]), pad, value=torch.nan),
        "shape": F.pad(standing_shape(half, is_round, turn), pad),
    }


def given(data: Scenes, rng: torch.Generator | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures, masks of the robot, and views. The mask is the true one; with `rng` sometimes what the robot's surface
    covers, as it is where nobody has learned to tell the robot's pixels."""
    robot = (data.labels == LABELS.index("arm")) | (data.labels == LABELS.index("gripper"))
    if rng is not None:
        robot = torch.where(torch.rand(len(data), 1, 1, generator=rng) < SURFACE, data.surface, robot)
    return to_pictures(data.frames), robot[:, None].float(), data.views


def recoloured(pictures: Float[Tensor, "N 3 H W"], share: float, rng: torch.Generator) -> Float[Tensor, "N 3 H W"]:
    """Some pictures with their colour channels mixed by random weights that keep grey grey."""
    n = len(pictures)
    order = torch.rand(n, 3, generator=rng).argsort(1)
    mix = (torch.eye(3)[order] + 0.25 * torch.randn(n, 3, 3, generator=rng)).abs()
    mix = mix / mix.sum(-1, keepdim=True)
    mix = torch.where(torch.rand(n, 1, 1, generator=rng) < share, mix, torch.eye(3))
    return torch.einsum("nij,njhw->nihw", mix.to(pictures), pictures).clamp(-1, 1)


def mirrored(data: Scenes) -> Scenes:
    """The same scenes as in a mirror: left and right change places, in the picture and in the base frame (y)."""
    width = data.frames.shape[2]
    flip_picture = torch.tensor([[-1.0, 0.0, width], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    flip_base = torch.tensor([1.0, -1.0, 1.0])
    return replace(
        data,
        frames=data.frames.flip(2),
        labels=data.labels.flip(2),
        surface=data.surface.flip(2),
        views=flip_picture @ data.views * torch.cat([flip_base, torch.ones(1)]),
        pixel=data.pixel * torch.tensor([-1.0, 1.0]) + torch.tensor([float(width), 0.0]),
        place_m=data.place_m * flip_base,
        shape=data.shape * torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, -1.0]),
    )


def some_mirrored(data: Scenes, rng: torch.Generator) -> Scenes:
    """Half of the scenes as in a mirror."""
    take, other = torch.rand(len(data), generator=rng) < 0.5, mirrored(data)

    def chosen(name: str) -> Tensor:
        one, two = getattr(data, name), getattr(other, name)
        return torch.where(take.reshape(-1, *(1,) * (one.ndim - 1)), two, one)

    return Scenes(**{f.name: chosen(f.name) for f in fields(Scenes)})
