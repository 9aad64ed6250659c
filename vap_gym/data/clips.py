"""Clips for training: frames, prompts, camera, actions and loss weights of a fixed size, drawn from many episodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Shaped, UInt8
from numpy.typing import NDArray
from torch import Tensor

from vap_gym.cards import RobotCard, load_robot
from vap_gym.data.clip_plan import ClipPlan, Place, Recorded
from vap_gym.data.conventions import ACTION, GRIPPER, HANDS, HANDS_PX, JOINTS, camera_columns, camera_of, has_camera
from vap_gym.data.cropping import Crop, crop_for
from vap_gym.data.episodes import Episode, EpisodeSet
from vap_gym.data.layout import DataError
from vap_gym.data.masks import MARGIN_M, GripperRegion, hand_mask
from vap_gym.errors import unknown_name
from vap_gym.geometry import Camera
from vap_gym.prompts.kinds import PROMPTS, Prompter

STORED = "prompt"
STATES = (("nominal.joint_position", "nominal.gripper_position"), (JOINTS, GRIPPER))
"""Where a robot's state is read, the first that a set has: what was commanded, then what was logged."""


@dataclass(frozen=True, kw_only=True)
class ClipSource:
    """A set that clips come from.

    `view` may be left out where there is one beside the view `prompt`. `members` are positions in the set, those of a
    split for instance; None: all. `weight` None: by its frames. `prompt` is a kind to draw, "stored" (the view
    `prompt`), or "auto": stored where the set has that view, else a skeleton. `robot` None: what episodes say.
    """

    episodes: EpisodeSet
    view: str = ""
    weight: float | None = None
    members: Sequence[int] | None = None
    prompt: str = "auto"
    robot: RobotCard | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Clip:
    """T frames of one size (H, W), `rate_hz` of them a second.

    `actions`: the S rows recorded from each frame to the next, as logged, S being the stride; (T - 1, S, 0) where
    there are none. `weights` are those of the loss, at least 1, all 1 where neither robot nor hands are known
    (`is_weighted` False). `camera` has batch (T,), None where it is not told. `info` is the episode's.
    """

    frames: UInt8[np.ndarray, "T H W 3"]
    prompts: UInt8[np.ndarray, "T H W 3"]
    camera: Camera | None
    actions: Shaped[np.ndarray, "U S A"]
    weights: Float32[np.ndarray, "T H W"]
    is_weighted: bool
    rate_hz: float
    task: str
    place: Place
    crop: Crop
    info: Mapping[str, Any]


class ClipSampler:
    """A map-style data set for torch's DataLoader: clip i is the same whoever asks for it.

    It reads lengths, grippers and cameras of all episodes when it is made, and pictures when a clip is asked for.

    Args:
        sources: the sets, mixed by weight.
        clips: how many there are; another seed gives others.
        frames, rate_hz, near_changes, jitter, seed: see `ClipPlan`.
        frame_size_px: (width, height) of the clips.
        random_crop: None: centre crop to the frames' shape, then resize. A share in (0, 1]: a random rectangle of that
            shape, with at least this share of the largest one's sides.
        extra_weight: how much more the loss weighs on gripper or hands.
        margin_m: how far around them.

    Raises:
        DataError: a set in which no clip has room, or settings out of range; `plan.left_out` tells what gives no clip.
    """

    def __init__(
        self,
        sources: Sequence[ClipSource],
        *,
        clips: int,
        frames: int = 25,
        rate_hz: tuple[float, float] = (4.0, 15.0),
        frame_size_px: tuple[int, int] = (144, 96),
        near_changes: float = 0.5,
        jitter: float = 0.25,
        random_crop: float | None = None,
        extra_weight: float = 2.0,
        margin_m: float = MARGIN_M,
        seed: int = 0,
    ) -> None:
        if clips < 1 or extra_weight < 0 or margin_m < 0:
            raise DataError(
                f"A sampler needs clips >= 1, extra_weight >= 0 and margin_m >= 0, got {clips}, {extra_weight} and "
                f"{margin_m}. Try 10_000, 2 and {MARGIN_M}."
            )
        self._sets = [_Set(source, frame_size_px, margin_m) for source in sources]
        self.clips, self.frame_size_px, self.random_crop = clips, frame_size_px, random_crop
        self.extra_weight, self.margin_m, self.seed = extra_weight, margin_m, seed
        for one in self._sets:
            crop_for(one.recorded_px, frame_size_px, least_share=1.0 if random_crop is None else random_crop)
        self.plan = ClipPlan(
            [one.recorded for one in self._sets],
            weights=[source.weight for source in sources],
            frames=frames,
            rate_hz=rate_hz,
            near_changes=near_changes,
            jitter=jitter,
            seed=seed,
        )

    def __len__(self) -> int:
        return self.clips

    def __getitem__(self, index: int) -> Clip:
        """Return clip `index`. Raises IndexError past the last one, DataError where its files are damaged."""
        if not 0 <= index < self.clips:
            raise IndexError(f"No clip {index}. There are {self.clips}, numbered from 0.")
        place = self.plan(index)
        one = self._sets[place.source]
        rng = np.random.default_rng([self.seed, index, 1]) if self.random_crop is not None else None
        crop = crop_for(one.recorded_px, self.frame_size_px, rng=rng, least_share=self.random_crop or 1.0)
        episode = one.read(place, self.plan.frames)
        at = slice(None, None, place.stride)
        columns = {name: values[at] for name, values in episode.columns.items()}
        frames = crop.pictures(np.ascontiguousarray(episode.frames[one.view][at]))
        robot = one.robot_of(episode.info)
        camera = crop.camera(one.camera_of(columns)) if has_camera(columns, one.view) else None
        state = one.state(columns, camera)
        if one.prompt == STORED:
            is_depth = episode.info.get("prompt") == "depth"
            prompts = crop.pictures(np.ascontiguousarray(episode.frames[STORED][at]), nearest=is_depth)
        else:
            prompts = _drawn(one.prompters.get(robot), state, camera, frames.shape)
        region = self._region(one, robot, columns, state, camera, crop)
        weights = np.ones(frames.shape[:3], np.float32)
        if region is not None:
            coarse = 1 + np.float32(self.extra_weight) * region
            size = self.frame_size_px[1] // coarse.shape[1]
            weights = coarse.repeat(size, axis=1).repeat(size, axis=2)
        return Clip(
            frames=frames,
            prompts=prompts,
            camera=camera,
            actions=_actions(episode, place.stride, self.plan.frames),
            weights=weights,
            is_weighted=region is not None,
            rate_hz=place.rate_hz,
            task=episode.task,
            place=place,
            crop=crop,
            info=episode.info,
        )

    def _region(
        self,
        one: _Set,
        robot: str,
        columns: Mapping[str, NDArray[Any]],
        state: _State | None,
        camera: Camera | None,
        crop: Crop,
    ) -> NDArray[np.float32] | None:
        """Where gripper or hands are, in [0, 1], in pixels of `_coarse`; None where the episode does not tell."""
        size = width, height = _coarse(crop.frame_size_px)
        if HANDS_PX in columns:
            joints = crop.pixels(np.asarray(columns[HANDS_PX], np.float64)) * (width / crop.frame_size_px[0])
            return hand_mask(joints, frame_size_px=size, margin_m=self.margin_m)
        if camera is None:
            return None
        camera = camera.resized(size)
        if HANDS in columns:
            p = np.asarray(columns[HANDS], np.float64)  # in the camera's frame
            p = np.where(p[..., 2:] > 1e-3, p, np.nan)
            K = camera.K.double().numpy()[:, None, None]
            joints = (K[..., :2, :2] @ (p[..., :2] / p[..., 2:])[..., None])[..., 0] + K[..., :2, 2]
            return hand_mask(joints, frame_size_px=size, margin_m=self.margin_m)
        region = one.regions.get(robot)
        if region is None or state is None:
            return None
        found = np.zeros((len(state.known), height, width), np.float32)
        known = torch.from_numpy(state.known)
        if bool(known.any()):
            found[state.known] = region.mask(state.q[known], state.gripper[known], _of_frames(camera, known))
        return found


def collate(clips: Sequence[Clip]) -> dict[str, Any]:
    """Return a batch of clips of one size as tensors, for a DataLoader's `collate_fn`.

    `frames`, `prompts`: uint8 (B,T,H,W,3); `weights` float32 (B,T,H,W); `rate_hz` float32 (B,); `K` and
    `T_world_camera` float32 (B,T,3,3) and (B,T,4,4), NaN where a camera is not told. Lists: `actions`, since their
    widths differ among robots and strides; `task`, `place`, `info`.
    """
    size = len(clips[0].frames)
    K = [torch.full((size, 3, 3), torch.nan) if c.camera is None else c.camera.K.float() for c in clips]
    T = [torch.full((size, 4, 4), torch.nan) if c.camera is None else c.camera.T_world_camera.float() for c in clips]
    return {
        **{
            name: torch.from_numpy(np.stack([getattr(c, name) for c in clips]))
            for name in ("frames", "prompts", "weights")
        },
        "rate_hz": torch.tensor([c.rate_hz for c in clips], dtype=torch.float32),
        "K": torch.stack(K),
        "T_world_camera": torch.stack(T),
        "actions": [torch.from_numpy(np.ascontiguousarray(c.actions)) for c in clips],
        **{name: [getattr(c, name) for c in clips] for name in ("task", "place", "info")},
    }


@dataclass(frozen=True, kw_only=True)
class _State:
    """Robot states of a clip; where they are not `known`, they stand for nothing."""

    q: Tensor
    gripper: Tensor
    known: NDArray[np.bool_]


class _Set:
    """One source, read once: what its episodes hold, and what draws its robots."""

    def __init__(self, source: ClipSource, frame_size_px: tuple[int, int], margin_m: float) -> None:
        self.episodes, self._card = source.episodes, source.robot
        features = source.episodes.features
        views = [view for view in features.views if view != STORED]
        if not source.view and len(views) != 1:
            raise DataError(f"'{self.episodes.root}' has the views {', '.join(views) or 'none'}: name one of them.")
        self.view = source.view or views[0]
        if self.view not in features.views:
            raise unknown_name("view", self.view, features.views)
        self.prompt = source.prompt
        if source.prompt == "auto":
            self.prompt = STORED if STORED in features.views else "skeleton"
        elif source.prompt == "stored":
            self.prompt = STORED
        elif source.prompt not in PROMPTS:
            raise unknown_name("prompt", source.prompt, ("auto", "stored", *PROMPTS))
        if self.prompt == STORED and STORED not in features.views:
            raise DataError(
                f"Stored prompts are the view '{STORED}', got {', '.join(views)} in '{self.episodes.root}'."
            )
        height, width = features.views[self.view]
        self.recorded_px = (width, height)
        self.states = next((pair for pair in STATES if all(name in features.columns for name in pair)), None)
        known = {*(self.states or ()), ACTION, HANDS, HANDS_PX, *camera_columns(self.view)}
        self.columns = sorted((known | {"camera.K", "camera.T_world_camera"}) & set(features.columns))
        members = range(len(self.episodes)) if source.members is None else source.members
        names = {self.robot_of(self.episodes.info(i)) for i in members} - {""}
        cards = {name: card for name in names if (card := source.robot or _card(name)) is not None}
        needs = self.prompt not in (STORED, "none")
        self.prompters = {
            name: Prompter(card, self.prompt, frame_size_px=frame_size_px) for name, card in cards.items() if needs
        }
        self.regions = {name: GripperRegion(card, margin_m=margin_m) for name, card in cards.items()}
        self.recorded = [self._recorded(i) for i in members]

    def robot_of(self, info: Mapping[str, Any]) -> str:
        """Name of an episode's robot."""
        if self._card is not None:
            return self._card.name
        return str(info.get("robot") or self.episodes.meta.get("robot_type") or "")

    def read(self, place: Place, frames: int) -> Episode:
        """Read the recorded frames of a clip, those between its own included."""
        stop = place.start + (frames - 1) * place.stride + 1
        views = [self.view, STORED] if self.prompt == STORED else [self.view]
        return self.episodes.read(
            place.episode, start=place.start, stop=stop, views=views, labels=(), columns=self.columns
        )

    def camera_of(self, columns: Mapping[str, NDArray[Any]]) -> Camera:
        """The camera of the recorded pictures."""
        return camera_of(columns, self.view, self.recorded_px)

    def state(self, columns: Mapping[str, NDArray[Any]], camera: Camera | None) -> _State | None:
        """Robot states at a clip's frames."""
        if self.states is None or camera is None:
            return None
        q = np.asarray(columns[self.states[0]], np.float32)
        gripper = np.asarray(columns[self.states[1]], np.float32).reshape(len(q), -1)[:, 0]
        known = np.isfinite(q).all(-1) & np.isfinite(gripper)
        return _State(q=torch.from_numpy(q), gripper=torch.from_numpy(gripper), known=known)

    def _recorded(self, i: int) -> Recorded:
        """What a plan must know; episodes whose prompts cannot be drawn are not usable."""
        info = self.episodes.info(i)
        wanted = [name for name in self.columns if name.startswith("camera.") or name in (self.states or ())]
        columns = self.episodes.read(i, views=(), labels=(), columns=wanted).columns if wanted else {}
        closedness = None
        if self.states is not None:
            closedness = np.asarray(columns[self.states[1]], np.float64).reshape(self.episodes.length(i), -1)[:, 0]
        unusable = ""
        if self.prompt not in (STORED, "none"):
            robot = self.robot_of(info)
            if robot not in self.prompters:
                unusable = f"no robot card '{robot}' to draw prompts of"
            elif self.states is None:
                unusable = f"no {JOINTS} and {GRIPPER} to draw prompts from"
            elif not has_camera(columns, self.view):
                unusable = f"no camera of '{self.view}' to draw prompts in"
        rate = info.get("rate_hz")
        return Recorded(
            episode=i,
            frames=self.episodes.length(i),
            rate_hz=float(rate) if rate else float(self.episodes.fps),
            closedness=closedness,
            unusable=unusable,
        )


def _coarse(size_px: tuple[int, int]) -> tuple[int, int]:
    """A whole part of a (width, height), at least 96 px high: fine enough for weights, and many times as fast."""
    width, height = size_px
    part = next(n for n in (6, 5, 4, 3, 2, 1) if n == 1 or (width % n == height % n == 0 and height // n >= 96))
    return width // part, height // part


def _card(name: str) -> RobotCard | None:
    """A shipped robot's card; None for a robot that is not known."""
    from vap_gym.cards import known_robots

    return load_robot(name) if name in known_robots() else None


def _drawn(
    prompter: Prompter | None, state: _State | None, camera: Camera | None, shape: tuple[int, ...]
) -> UInt8[np.ndarray, "T H W 3"]:
    """Prompts of a clip; black where no state is known."""
    prompts = np.zeros(shape, np.uint8)
    if prompter is None or state is None or camera is None:
        return prompts
    known = torch.from_numpy(state.known)
    if bool(known.any()):
        prompts[state.known] = prompter.draw(state.q[known], state.gripper[known], _of_frames(camera, known)).numpy()
    return prompts


def _of_frames(camera: Camera, frames: Tensor) -> Camera:
    return camera.index(frames).to(torch.float32)


def _actions(episode: Episode, stride: int, frames: int) -> Shaped[np.ndarray, "U S A"]:
    """The recorded actions between the frames of a clip."""
    if ACTION not in episode.columns:
        return np.zeros((frames - 1, stride, 0), np.float32)
    rows = episode.columns[ACTION][: (frames - 1) * stride]
    return rows.reshape(frames - 1, stride, -1)
