"""Clips for the video model's training: latents from the cache, conditions drawn on the fly, batch i from i and a seed.

Letters: B clips, T frames, F latent frames, P channels of prompts, S numbers of a raw state.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64, UInt8
from torch import Tensor

from vap_gym.cards import RobotCard, load_robot
from vap_gym.data.clip_plan import ClipPlan, Place, Recorded
from vap_gym.data.layout import DataError
from vap_gym.data.masks import GripperRegion
from vap_gym.data.mixing import Mixture
from vap_gym.errors import CardError, unknown_name
from vap_gym.geometry import Camera
from vap_gym.prompts.kinds import Prompter
from vap_gym.prompts.raster import draw
from vap_gym.prompts.skeleton import Skeleton
from vap_gym.rotations import rotation_from_xyz_euler
from vap_gym.train.contacts import contact_moments
from vap_gym.train.video_cache import (
    Encode,
    Source,
    add_clips,
    add_episodes,
    add_prompts,
    add_tables,
    clip_name,
    latents_of,
    open_latents,
    table_of,
    unpacked,
)
from vap_gym.train.video_store import Store
from vap_gym.train.video_weights import clip_weights

STATES = ("commanded", "achieved")
RAW_STATE = 10  # numbers: the tip's place [m], the first two columns of its rotation, closedness
DRAWN = ("skeleton", "mesh", "depth")


@dataclass(frozen=True, kw_only=True)
class SetSettings:
    """One data set of a recipe, a `[[data]]` table.

    Args:
        path: folder of the set.
        weight: how often clips come from it, beside the others'.
        view, robot: where the set does not leave one only.
        max_stride: clips skip up to so many frames less one.
        episodes: only those with an index below; 0: all.
        held_out: episodes with an index below this are for scoring, and are not trained on.
    """

    path: str
    weight: float = 1.0
    view: str = ""
    robot: str = ""
    max_stride: int = 1
    episodes: int = 0
    held_out: int = 16

    @classmethod
    def of(cls, table: Mapping[str, Any] | str) -> SetSettings:
        """Read a table of a recipe, or a mere path. Raises CardError on keys that are not known."""
        if isinstance(table, str):
            return cls(path=table)
        known = [f.name for f in dataclasses.fields(cls)]
        for key in table:
            if key not in known:
                raise CardError(f"[[data]]: {unknown_name('key', key, known)}")
        try:
            return cls(**table)
        except TypeError as error:
            raise CardError(f"[[data]]: {error}. A path is needed: path = 'data/droid'.") from error


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """What clips are like, whatever set they come from."""

    frames: int = 13
    condition: str = "skeleton"
    states: str = "commanded"  # or "achieved"
    height_cue: bool = True
    precomputed: bool = False  # prompts drawn once and kept, instead of at every step
    near_changes: float = 0.5
    time_stride: int = 1
    clips: int = 0  # for codecs that take several frames to a latent: how many clips are encoded
    scored: int = 0  # and how many of held-out episodes
    frame_size_px: tuple[int, int] = (144, 96)
    gripper_weight: float = 2.0
    object_weight: float = 2.0
    moved_weight: float = 4.0
    seed: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """B clips. `weights` are those of the loss, ≥ 1; `interval` is in recorded frames; `source` numbers the sets."""

    latents: Float[Tensor, "B F C h w"]
    weights: Float[Tensor, "B F h w"]
    prompts: UInt8[Tensor, "B T P H W"] | None
    states: Float[Tensor, "B T S"] | None
    interval: Float[Tensor, " B"]
    tasks: list[str]
    source: Int64[Tensor, " B"]
    index: Int64[Tensor, " B"]


class VideoSet:
    """One set in memory, but for its latents, which stay on the disk: tables, cameras, where clips may lie.

    Args:
        settings, data: of the recipe.
        cache: folder of all caches.
        encode, codec_sha256: the codec.
        members: which episodes; None: those that are trained on.
    """

    def __init__(
        self,
        settings: SetSettings,
        data: DataSettings,
        *,
        cache: Path,
        encode: Encode,
        codec_sha256: str,
        held_out: bool = False,
    ) -> None:
        self.settings, self.data = settings, data
        self.source = source = Source(Path(settings.path), view=settings.view, frame_size_px=data.frame_size_px)
        indices = [source.episodes.index(i) for i in range(len(source.episodes))]
        last = settings.episodes or max(indices, default=0) + 1
        chosen = range(settings.held_out) if held_out else range(settings.held_out, last)
        self.members = [i for i, index in enumerate(indices) if index in chosen]
        if not self.members:
            raise DataError(
                f"'{settings.path}' must hold episodes {'below' if held_out else 'from'} index {settings.held_out} on "
                f"(held_out), got {len(indices)} in all. Make more: vap-gym data generate {settings.path}"
            )
        self.robot = self._robot()
        clips = None if data.time_stride == 1 else {"frames": data.frames}
        self.clips = data.scored if held_out else data.clips
        self.store = open_latents(cache, source, codec_sha256=codec_sha256, clips=clips)
        if data.time_stride == 1:
            add_episodes(self.store, source, self.members, encode)
        else:
            add_tables(self.store, source, self.members)
        self.tables = {i: table_of(self.store, source, i) for i in self.members}
        rate = float(source.episodes.fps)
        self.plan = ClipPlan(
            [[self._recorded(i, rate) for i in self.members]],
            frames=data.frames,
            rate_hz=(rate / settings.max_stride, rate),
            near_changes=data.near_changes,
            seed=data.seed,
        )
        self.skeleton = Skeleton(_without_drop(self.robot) if not data.height_cue else self.robot)
        self.region = GripperRegion(self.robot)
        self.prompter = (
            Prompter(self.robot, data.condition, frame_size_px=data.frame_size_px)
            if data.condition in ("mesh", "depth")
            else None
        )
        self.drawn: Store | None = None
        if data.precomputed and data.condition in DRAWN:
            what = f"{data.condition} {self.robot.name} {data.states} height_cue={data.height_cue}"
            self.drawn = add_prompts(cache, source, self.members, self._episode_prompts, what)
        if data.time_stride > 1:
            add_clips(self.store, source, map(self.plan, range(self.clips)), self._clip_frames, encode)

    def column(self, i: int, name: str) -> Float32[np.ndarray, "T _"]:
        """A column of an episode's table; NaN where the set does not have it."""
        if name not in self.source.layout:
            return np.full((len(self.tables[i]), 1), np.nan, np.float32)
        return self.tables[i][:, slice(*self.source.layout[name])]

    def state(self, i: int, what: str) -> Float32[np.ndarray, "T _"]:
        """`q`, `closed` or `pose`: as commanded (or as achieved, where the set does not tell), or as achieved."""
        kinds = STATES if self.data.states == "commanded" else STATES[1:]
        found = [self.column(i, f"{kind}_{what}") for kind in kinds]
        return next((values for values in found if np.isfinite(values).all()), found[0])

    def camera(self, i: int, frames: np.ndarray) -> Camera:
        """The camera at some frames of an episode."""
        K = self.column(i, "K")[frames].reshape(-1, 3, 3)
        T = self.column(i, "T_world_camera")[frames].reshape(-1, 4, 4)
        return Camera(
            K=torch.from_numpy(K.copy()), T_world_camera=torch.from_numpy(T.copy()),
            frame_size_px=self.data.frame_size_px,
        )  # fmt: skip

    def place(self, index: int) -> Place:
        """Where clip `index` lies."""
        return self.plan(index % self.clips if self.data.time_stride > 1 else index)

    def member(self, place: Place) -> int:
        """The episode's position in the set."""
        return place.episode

    def latents(self, place: Place, frames: np.ndarray) -> Float32[np.ndarray, "F C h w"]:
        """The latents of a clip."""
        if self.data.time_stride > 1:
            return self.store[clip_name(self.source, place)].astype(np.float32)
        return latents_of(self.store, self.source, place.episode)[frames].astype(np.float32)  # type: ignore[no-any-return]

    def prompts(self, places: Sequence[tuple[int, np.ndarray]]) -> UInt8[np.ndarray, "B T H W P"]:
        """The prompts of clips, given as episodes and frames of one number."""
        if self.drawn is not None:
            return np.stack([unpacked(self.drawn[self._key(i)], frames.tolist()) for i, frames in places])
        T = len(places[0][1])
        q = np.concatenate([self.state(i, "q")[frames] for i, frames in places])
        closed = np.concatenate([self.state(i, "closed")[frames, 0] for i, frames in places])
        cameras = [self.camera(i, frames) for i, frames in places]
        camera = replace(
            cameras[0],
            K=torch.cat([c.K for c in cameras]),
            T_world_camera=torch.cat([c.T_world_camera for c in cameras]),
        )
        states = torch.from_numpy(q), torch.from_numpy(closed)
        if self.prompter is None:
            pictures = draw(self.skeleton.at_joints(*states), camera, self.skeleton)
        else:
            pictures = self.prompter.draw(*states, camera).numpy()
        if self.data.condition == "depth":
            pictures = pictures[..., :1]
        return pictures.reshape(len(places), T, *pictures.shape[1:])

    def raw_states(self, i: int, frames: np.ndarray) -> Float32[np.ndarray, "T S"]:
        """The tip's place, two columns of its rotation, and closedness, at some frames."""
        return raw_states(self.state(i, "pose")[frames], self.state(i, "closed")[frames])

    def weights(self, i: int, frames: np.ndarray, size: tuple[int, int]) -> Float32[np.ndarray, "T h w"]:
        """The loss's weights of frames, at the latents' (height, width)."""
        objects = self.column(i, "objects_m")
        return clip_weights(
            self.region,
            q=self.state(i, "q")[frames],
            closed=self.state(i, "closed")[frames, 0],
            objects_m=objects[frames].reshape(len(frames), -1, 3) if objects.shape[1] > 1 else None,
            camera=self.camera(i, frames),
            size=size,
            gripper=self.data.gripper_weight,
            objects=self.data.object_weight,
            moved=self.data.moved_weight,
        )

    def _key(self, i: int) -> str:
        return str(self.source.episodes.index(i))

    def _episode_prompts(self, i: int) -> UInt8[np.ndarray, "T H W P"]:
        kept, self.drawn = self.drawn, None
        pictures = self.prompts([(i, np.arange(self.source.episodes.length(i)))])[0]
        self.drawn = kept
        return pictures  # type: ignore[no-any-return]

    def _clip_frames(self, place: Place) -> UInt8[np.ndarray, "T H W 3"]:
        return self.source.frames(place.episode)[frames_of(place, self.data.frames)]  # type: ignore[no-any-return]

    def _recorded(self, i: int, rate_hz: float) -> Recorded:
        closed = self.state(i, "closed")[:, 0].astype(np.float64)
        objects = self.column(i, "objects_m")
        needs = ["q", "closed"] if self.data.condition in DRAWN else []
        needs += ["pose", "closed"] if self.data.condition == "raw_state" else []
        missing = [what for what in needs if not np.isfinite(self.state(i, what)).all()]
        if self.data.condition in DRAWN and not np.isfinite(self.column(i, "T_world_camera")).all():
            missing.append("camera")
        return Recorded(
            episode=i,
            frames=self.source.episodes.length(i),
            rate_hz=rate_hz,
            closedness=closed,
            moments=tuple(contact_moments(objects.reshape(len(objects), -1, 3))) if objects.shape[1] > 1 else (),
            unusable=f"no {' and no '.join(missing)}" if missing else "",
        )

    def _robot(self) -> RobotCard:
        names = {str(self.source.episodes.info(i).get("robot") or "") for i in self.members} - {""}
        name = self.settings.robot or next(iter(names), "") or str(self.source.episodes.meta.get("robot_type") or "")
        if not self.settings.robot and len(names) > 1:
            raise DataError(
                f"'{self.settings.path}' must be of one robot, got {', '.join(sorted(names))}. Name one with `robot`, "
                "or split the set."
            )
        return load_robot(name)


class ClipBatches(torch.utils.data.Dataset[Batch]):
    """Item s is the batch of step s: what it holds follows from s, the process's rank and the seed alone.

    Args:
        sets: by weight; all with latents of one shape.
        batch_size: clips of a batch of one process.
        rank, ranks: which process of how many.
    """

    def __init__(self, sets: Sequence[VideoSet], *, batch_size: int, rank: int = 0, ranks: int = 1) -> None:
        self.sets, self.batch_size, self.rank, self.ranks = list(sets), batch_size, rank, ranks
        self.data = sets[0].data
        self.mixture = Mixture(weights=tuple(s.settings.weight for s in sets), seed=self.data.seed)

    def __getitem__(self, step: int) -> Batch:
        """Return the batch of a step."""
        begin = (step * self.ranks + self.rank) * self.batch_size
        indices = range(begin, begin + self.batch_size)
        return self.clips([(self.mixture.draw(self.mixture.rng(i)), i) for i in indices])

    def clips(self, wanted: Sequence[tuple[int, int]]) -> Batch:
        """Return the clips of these (set, index) pairs."""
        return batch_of(self.sets, [(s, i, self.sets[s].place(i)) for s, i in wanted])


def batch_of(sets: Sequence[VideoSet], wanted: Sequence[tuple[int, int, Place]]) -> Batch:
    """Return the clips at these places: (set, index, place)."""
    data = sets[0].data
    frames = [frames_of(place, data.frames) for _, _, place in wanted]
    latents = np.stack([sets[s].latents(p, t) for (s, _, p), t in zip(wanted, frames, strict=True)])
    size = (latents.shape[3], latents.shape[4])
    fine = np.stack([sets[s].weights(p.episode, t, size) for (s, _, p), t in zip(wanted, frames, strict=True)])
    prompts: Tensor | None = None
    if data.condition in DRAWN:
        parts: list[np.ndarray | None] = [None] * len(wanted)
        for number in {s for s, _, _ in wanted}:  # all clips of a set are drawn at once
            mine = [k for k, (s, _, _) in enumerate(wanted) if s == number]
            drawn = sets[number].prompts([(wanted[k][2].episode, frames[k]) for k in mine])
            for k, pictures in zip(mine, drawn, strict=True):
                parts[k] = pictures
        prompts = torch.from_numpy(np.stack([p for p in parts if p is not None])).permute(0, 1, 4, 2, 3)
    states = None
    if data.condition == "raw_state":
        rows = [sets[s].raw_states(p.episode, t) for (s, _, p), t in zip(wanted, frames, strict=True)]
        states = torch.from_numpy(np.stack(rows))
    return Batch(
        latents=torch.from_numpy(latents),
        weights=torch.from_numpy(_of_latent_frames(fine, data.time_stride)),
        prompts=prompts,
        states=states,
        interval=torch.tensor([float(p.stride) for _, _, p in wanted]),
        tasks=[sets[s].source.episodes.task(p.episode) for s, _, p in wanted],
        source=torch.tensor([s for s, _, _ in wanted]),
        index=torch.tensor([i for _, i, _ in wanted]),
    )


def frames_of(place: Place, count: int) -> Int64[np.ndarray, " T"]:
    """The frames of a clip within its episode."""
    return place.start + place.stride * np.arange(count)


def raw_states(pose: Float[np.ndarray, "T 6"], closed: Float[np.ndarray, "T 1"]) -> Float32[np.ndarray, "T 10"]:
    """Return raw states from the tip's xyz [m] and extrinsic-xyz Euler angles [rad] in the base frame."""
    turn = rotation_from_xyz_euler(torch.from_numpy(np.ascontiguousarray(pose[:, 3:]))).numpy()
    return np.concatenate([pose[:, :3], turn[:, :, 0], turn[:, :, 1], closed], axis=1).astype(np.float32)


def dropped(seed: int, index: Int64[Tensor, " B"], share: float, what: int) -> Bool[Tensor, " B"]:
    """For which clips a condition is left out, so that guidance can be had: from seed, clip and condition alone."""
    return torch.tensor([np.random.default_rng([seed, int(i), 77, what]).random() < share for i in index])


def _of_latent_frames(weights: Float32[np.ndarray, "B T h w"], stride: int) -> Float32[np.ndarray, "B F h w"]:
    """The mean over the frames of each latent frame: the first alone, then `stride` together."""
    if stride == 1:
        return weights
    later = weights[:, 1:].reshape(len(weights), -1, stride, *weights.shape[2:]).mean(2)
    return np.concatenate([weights[:, :1], later], axis=1)


def _without_drop(robot: RobotCard) -> RobotCard:
    return replace(robot, skeleton=replace(robot.skeleton, drop_from=()))
