"""Further views of one robot: where their cameras are, what they see first, and imagining each of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import UInt8
from tensordict import TensorDict
from torch import Tensor

from vap_gym.cards import EnvCard, ViewCard, load_robot
from vap_gym.errors import VapError, unknown_name
from vap_gym.geometry import Camera
from vap_gym.imagine import Imagination
from vap_gym.observations import FRONT
from vap_gym.photo import fit_picture, read_camera
from vap_gym.rig import Motion, mapped
from vap_gym.starts import Seen, Start

if TYPE_CHECKING:
    from vap_gym.sim.scene import Scene

_MIX = 0x2545F4914F6CDD1D  # an odd number: seeds of views lie far apart


def view_key(name: str, key: str) -> str:
    """Return under which key a state holds `key` of a further view. No name can be part of another one's keys."""
    return f"view_{name}.{key}"


def without_other_views(state: TensorDict, names: Sequence[str]) -> TensorDict:
    """Return a state without what it holds of further views that are not named."""
    own = tuple(view_key(name, "") for name in names)
    kept = {key: value for key, value in state.items() if not key.startswith("view_") or key.startswith(own)}
    return TensorDict(kept, batch_size=state.batch_size)


@dataclass(frozen=True, kw_only=True, eq=False)
class Viewpoint:
    """A further camera (float64, of the frame's size) in the robot's base frame, or in its tip link's if it `rides`."""

    name: str
    camera: Camera
    rides: bool = False

    def now(self, T_base_tip: Tensor) -> Camera:
        """Return the camera in the base frame when the tip is there (4, 4)."""
        if not self.rides:
            return self.camera
        return replace(self.camera, T_world_camera=T_base_tip.double() @ self.camera.T_world_camera)


def read_viewpoints(views: object, card: EnvCard, frame_size_px: tuple[int, int]) -> tuple[Viewpoint, ...]:
    """Return the further cameras that an env was asked for.

    Args:
        views: names of the card's views, or a table name → camera (see `photo.read_camera`; with "T_tip_camera" (4, 4)
            as its pose it rides on the robot's tip link). "front" may be named, and is always there.

    Raises:
        VapError: a view that the card does not have, or a camera that cannot be read.
    """
    known = {view.name: view for view in card.views}
    if isinstance(views, str) or not isinstance(views, Sequence | Mapping):
        raise VapError(
            f"views must be a list of names or a table of cameras, got {views!r}. "
            f"{card.id} has: {', '.join((FRONT, *known))}."
        )
    if isinstance(views, Mapping):
        return tuple(_own(str(name), camera, frame_size_px) for name, camera in views.items())
    for name in views:
        if name != FRONT and name not in known:
            raise unknown_name(f"view of {card.id}", str(name), (FRONT, *known))
    return tuple(_of_card(known[name], frame_size_px) for name in dict.fromkeys(views) if name != FRONT)


def _of_card(view: ViewCard, frame_size_px: tuple[int, int]) -> Viewpoint:
    camera = Camera.look_at(
        torch.tensor(view.eye_m, dtype=torch.float64),
        torch.tensor(view.target_m, dtype=torch.float64),
        vertical_fov_rad=math.radians(view.vertical_fov_deg),
        roll_rad=math.radians(view.roll_deg),
        frame_size_px=frame_size_px,
    )
    return Viewpoint(name=view.name, camera=camera, rides=view.rides)


def _own(name: str, camera: object, frame_size_px: tuple[int, int]) -> Viewpoint:
    if not name.isidentifier() or name == FRONT:
        raise VapError(f"The name of a view must be a plain word other than '{FRONT}', got '{name}'. Try 'second'.")
    rides = isinstance(camera, Mapping) and "T_tip_camera" in camera
    if isinstance(camera, Mapping) and rides:
        camera = {"T_world_camera" if key == "T_tip_camera" else key: value for key, value in camera.items()}
    read = read_camera(camera)
    blank = np.zeros((read.frame_size_px[1], read.frame_size_px[0], 3), np.uint8)
    return Viewpoint(name=name, camera=fit_picture(blank, read, frame_size_px)[1], rides=rides)


def shown(scene: Scene, viewpoints: Sequence[Viewpoint]) -> dict[str, Seen]:
    """Return what further cameras see in the oracle's scene as it is now."""
    T_base_tip = torch.from_numpy(scene.truth().tip)
    seen = {}
    for view in viewpoints:
        camera = view.now(T_base_tip)
        seen[view.name] = Seen(frame=scene.render(camera)[0], camera=camera, rides=view.rides)
    return seen


@lru_cache(maxsize=4)
def _scene_of(robot: str, frame_size_px: tuple[int, int]) -> Scene:
    from vap_gym.sim.scene import Scene

    return Scene(load_robot(Path(robot)), frame_size_px=frame_size_px)


def completed(start: Start, viewpoints: Sequence[Viewpoint], robot_folder: Path) -> Start:
    """Return a start with a first picture for each further view: its own, or the oracle's where it has a scene.

    Raises:
        VapError: a view has no picture, and there is no scene to take one of.
        MissingDependencyError: pybullet is not installed, and the oracle is needed.
    """
    absent = [view for view in viewpoints if view.name not in start.views]
    if not absent:
        return start
    if start.scene is None:
        names = ", ".join(view.name for view in absent)
        raise VapError(
            f"A start from a photograph needs a picture of every view, got none of: {names}. Add them: "
            "reset(options={…, 'views': {name: {'image': …, 'camera': …}}}); 'camera' may be left out."
        )
    scene = _scene_of(str(robot_folder), (start.frame.shape[1], start.frame.shape[0]))
    scene.reset(start.scene, start.q_rad, start.closedness)
    return replace(start, views={**start.views, **shown(scene, absent)})


def photographed(
    views: object, viewpoints: Sequence[Viewpoint], T_base_tip: Tensor, frame_size_px: tuple[int, int]
) -> dict[str, Seen]:
    """Return the further views of a start from photographs.

    Args:
        views: name → {"image": uint8 RGB (H, W, 3), "camera": its camera when it took the picture, in the base frame;
            left out, that which the env was made with}.
    """
    known = {view.name: view for view in viewpoints}
    if not isinstance(views, Mapping):
        raise VapError(f"views must be a table of name → {{'image': …, 'camera': …}}, got {type(views).__name__}.")
    found = {}
    for name, given in views.items():
        if name not in known:
            raise unknown_name("view of this env", str(name), known)
        if not isinstance(given, Mapping) or not isinstance(given.get("image"), np.ndarray):
            raise VapError(f"The view '{name}' needs an 'image', a uint8 numpy array (H, W, 3), got {given!r:.80}.")
        image = given["image"]
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise VapError(f"The view '{name}' needs a uint8 RGB image (H, W, 3), got {image.dtype} {image.shape}.")
        own = given.get("camera")
        if own is None:
            blank = _size(image)
            frame, _ = fit_picture(image, known[name].camera.resized(blank), frame_size_px)
            camera = known[name].now(T_base_tip)
        else:
            frame, camera = fit_picture(image, read_camera(own), frame_size_px)
        found[str(name)] = Seen(frame=frame, camera=camera, rides=known[name].rides)
    return found


def _size(image: np.ndarray) -> tuple[int, int]:
    """Return (width, height)."""
    return image.shape[1], image.shape[0]


@dataclass(frozen=True, kw_only=True, eq=False)
class ViewFrames:
    """What a further view shows after one step, (B, …), or after K steps, (B, K, …): imagined frames, exact prompts."""

    frames: UInt8[Tensor, "*batch H W 3"]
    prompts: UInt8[Tensor, "*batch H W 3"]


class ExtraViews:
    """Imagines further views of the same robot: settings only; their memory stands in the state as `view_<name>.…`.

    Each view is a rollout of the world model of its own, from its own first picture; only the robot is shared. So two
    views may come to disagree about things; prompts and proprioception never do.
    """

    def __init__(self, imagination: Imagination, viewpoints: Sequence[Viewpoint]) -> None:
        self.imagination = imagination
        self.viewpoints = tuple(viewpoints)
        self.names = tuple(view.name for view in viewpoints)

    def start(self, state: TensorDict, starts: Sequence[Start], seeds: Sequence[int]) -> None:
        """Add every view's first picture and memory to a state that has just begun."""
        for number, name in enumerate(self.names, start=1):
            seen = [start.views[name] for start in starts]
            mixed = [(seed ^ (number * _MIX)) & (2**63 - 1) for seed in seeds]
            begun = self.imagination.start(
                torch.from_numpy(np.stack([one.frame for one in seen])),
                q=state["robot_q"],
                gripper=state["robot_gripper"],
                camera=Camera(
                    K=torch.stack([one.camera.K.float() for one in seen]),
                    T_world_camera=torch.stack([one.camera.T_world_camera.float() for one in seen]),
                    frame_size_px=seen[0].camera.frame_size_px,
                ),
                seed=torch.tensor(mixed, dtype=torch.int64),
                rides=torch.tensor([one.rides for one in seen]),
                sway=sways(seen),
            )
            for key, value in begun.items():
                if key.startswith(("camera_", "world_")):
                    state[view_key(name, key)] = value
            state[view_key(name, "frame")] = torch.from_numpy(np.stack([one.frame for one in seen]))

    def step(self, state: TensorDict, motion: Motion) -> dict[str, ViewFrames]:
        """Move the views of `state` on by one step (K = 1) of the robot; all of them in one call of the world model."""
        if not self.names:
            return {}
        B, robot = len(state), mapped(motion.robot, lambda x: x[:, 0])
        own = [self.of(state, name) for name in self.names]
        looks = [
            self.imagination.rig.look(robot, self.imagination.mount(view), step=state["step"]) for view in own
        ]  # `step` has been counted on already
        keys = [key for key in own[0].keys() if key.startswith("world_")]  # noqa: SIM118 (not a mapping)
        memory = TensorDict(
            {key.removeprefix("world_"): torch.cat([view[key] for view in own]) for key in keys},
            batch_size=[B * len(own)],
        )
        device = self.imagination.device
        moved, frames = self.imagination.world.predict(
            memory,
            torch.cat([look.prompts for look in looks]).to(device),
            views=torch.cat([look.views for look in looks]).to(device),
            states=torch.cat([look.states for look in looks]).to(device),
        )
        assert frames is not None
        seen = {}
        for i, name in enumerate(self.names):
            rows = slice(i * B, (i + 1) * B)
            for key, value in moved.items():
                state[view_key(name, f"world_{key}")] = value[rows]
            state[view_key(name, "camera_T_world_camera")] = looks[i].T_world_camera[:, 0]
            state[view_key(name, "frame")] = frames[rows, 0].cpu()
            seen[name] = ViewFrames(frames=state[view_key(name, "frame")], prompts=looks[i].prompts[:, 0])
        return seen

    def look(self, state: TensorDict) -> dict[str, ViewFrames]:
        """Return the newest frames and their prompts."""
        seen = {}
        for name in self.names:
            view = self.of(state, name)
            robot = self.imagination.robot_state(state)
            look = self.imagination.rig.look(robot, self.imagination.mount(view), step=state["step"])
            seen[name] = ViewFrames(frames=view["frame"], prompts=look.prompts[:, 0])
        return seen

    def of(self, state: TensorDict, name: str) -> TensorDict:
        """Return one view's part of a state, under the names of a first view."""
        own = view_key(name, "")
        table: dict[str, Any] = {k.removeprefix(own): v for k, v in state.items() if k.startswith(own)}
        return TensorDict(table, batch_size=state.batch_size)


def sways(seen: Sequence[Seen]) -> Tensor:
    """Return how cameras sway, (B, 8)."""
    return torch.tensor([one.sway or (0.0,) * 8 for one in seen], dtype=torch.float32)
