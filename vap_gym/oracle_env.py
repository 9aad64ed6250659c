"""OracleEnv: the spaces, starts and controller of the imagined env, with PyBullet in the place of imagination."""

from __future__ import annotations

import itertools
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
from jaxtyping import Float, UInt8

from vap_gym.cards import load_env, load_robot
from vap_gym.contract import Observation, Timings
from vap_gym.errors import VapError, unknown_name
from vap_gym.geometry import Camera, xyz_euler_from_pose
from vap_gym.imagine import actions_tensor
from vap_gym.kinematics import Clipped, RobotState
from vap_gym.loading import StartSource
from vap_gym.observations import action_space, observation_space, observed, robot_info
from vap_gym.photo import check_names, read_camera
from vap_gym.rig import Motion, Rig
from vap_gym.sim.layouts import LAYOUTS, draw_scene
from vap_gym.sim.rollout import NominalRobot, start_episode
from vap_gym.sim.scene import LABELS, Scene, Truth
from vap_gym.sim.spec import COLOURS, SceneSpec
from vap_gym.sim.tasks import progress
from vap_gym.stage import REWARDS
from vap_gym.starts import Start, save_starts
from vap_gym.viewer import Viewer
from vap_gym.viewpoints import read_viewpoints, shown

FIRST_START_SEED = 2_000_000  # training's scenes have seeds below 1,000,000, and held-out ones follow
SEEN_PX = 15  # of the gripper, and of the task's object, in a start's picture
TRIES = 200  # so many scenes are drawn for a start that shows them


class OracleEnv(gym.Env[Observation, np.ndarray]):
    """The true table-top that the world model imagines: made by `gym.make("VAP-DROID-Oracle-v0", …)`.

    Spaces, starts (same seed, same start and picture), actions and reward formula are those of `VapEnv`; positions are
    PyBullet's own instead of a judge's. Proprioception in `info` is what the arm really reached, `info["truth"]` where
    things are.

    Args:
        card, prompt, action_mode, obs_type, robot, task, starts, reward, views, render_mode: as for `VapEnv`.
        camera: look from this camera instead of each scene's own (see `photo.read_camera`).

    Raises:
        MissingDependencyError: pybullet is not installed.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array", "human"], "render_fps": 15}  # type: ignore[misc]

    def __init__(
        self,
        card: str = "VAP-DROID-v0",
        *,
        prompt: str | None = None,
        action_mode: str | None = None,
        obs_type: str | None = None,
        robot: str | Path | None = None,
        camera: object = None,
        task: str | None = None,
        starts: str | Path | None = None,
        reward: str = "progress",
        views: Sequence[str] | Mapping[str, object] = (),
        render_mode: str | None = None,
    ) -> None:
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise unknown_name("render_mode", str(render_mode), self.metadata["render_modes"])
        if reward not in REWARDS:
            raise unknown_name("reward", reward, REWARDS)
        self._card = load_env(card)
        self._rig = Rig(
            load_robot(self._card.robot if robot is None else robot),
            action_mode=action_mode or self._card.action_mode,
            prompt=prompt or self._card.prompt,
            frame_size_px=self._card.frame_size_px,
        )
        self._obs_type = obs_type or self._card.obs_type
        self._reward = reward
        self._camera = None if camera is None else read_camera(camera).resized(self._card.frame_size_px)
        self._viewpoints = read_viewpoints(views, self._card, self._card.frame_size_px)
        self._source = StartSource(self._rig, self._card, camera=None, task=task, starts=starts)
        self._open()
        self._start: Start | None = None
        self._path: list[tuple[np.ndarray, float]] = []  # what the scene was told since the start, to be told again
        self.metadata = {**self.metadata, "render_fps": self._card.fps}  # type: ignore[misc]
        names = [view.name for view in self._viewpoints]
        self.observation_space = observation_space(self._rig, self._obs_type, names)
        self.action_space = action_space(self._rig)
        self.render_mode = render_mode
        self._viewer = Viewer(self._card.frame_size_px, self._card.fps) if render_mode == "human" else None

    @property
    def start(self) -> Start:
        """Where this episode began, its first frame included: `VapEnv.reset(options={"start": …})` begins there too."""
        if self._start is None:
            raise VapError("The env has no episode yet. Call reset() first.")
        return self._start

    @property
    def truth(self) -> Truth:
        """Where the robot and the objects really are."""
        self.start  # noqa: B018 (raises before the first reset)
        return self._scene.truth()

    @property
    def robot_state(self) -> RobotState:
        """The nominal robot (what was commanded, without contact), batch (1,)."""
        self.start  # noqa: B018 (raises before the first reset)
        return self._robot

    @property
    def camera(self) -> Camera:
        """The camera of the newest frame, float32."""
        self.start  # noqa: B018 (raises before the first reset)
        return (self._camera or self._scene.camera).to(torch.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin from a shipped start, drawn with `seed` as `VapEnv` draws it.

        Options: "start" is the number of a shipped start or a `Start` with a scene; "scene" is a `SceneSpec` instead.

        Raises:
            VapError: unknown options, both of them, or a start without a scene (a photograph has no truth).
        """
        super().reset(seed=seed)
        if not self._left.alive:
            self._open()
        self.np_random.integers(2**63 - 1)  # the noise that imagination draws here: both then draw the same start
        given = options or {}
        check_names("reset option of the oracle", given, ("start", "scene"))
        if given.get("scene") is not None:
            if given.get("start") is not None:
                raise VapError("Reset options contradict each other: start and scene were given. Give only one.")
            self._start = start_of_scene(self._scene, given["scene"])
        else:
            self._start = self._source.choose(given, self.np_random)
        self._begin()
        self._look()
        return self._observation(), self._info(self._rig_motion())

    def step(self, action: object) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Step the true scene by one control step; entries out of range are clipped, and `info["clipped"]` says so.

        Raises:
            ActionError: an action of the wrong shape or type, or not finite.
        """
        row = actions_tensor(action, shape=(self._rig.controller.action_size,))
        began = time.perf_counter()
        robot, clipped = self._rig.controller.step(self.robot_state, row[None])
        moved = time.perf_counter()
        self._robot = robot
        self._tell(robot.q[0].double().numpy(), float(robot.gripper[0]))
        before = self._progress
        self._look()
        timings = Timings(robot=1e3 * (moved - began), world=1e3 * (time.perf_counter() - moved), judge=0.0)
        success = self._progress >= 1.0
        info = self._info(self._rig_motion(clipped)) | {"timings_ms": timings}
        reward = float(success) if self._reward == "success" else self._progress - before
        return self._observation(), reward, success and self._card.terminate_on_success, False, info

    def render(self) -> np.ndarray | None:
        """Return the newest frame (H, W, 3) with render_mode "rgb_array"; None otherwise ("human" draws by itself)."""
        if self.render_mode is None:
            gym.logger.warn('render() does nothing without a render_mode. Make the env with render_mode="rgb_array".')
        self.start  # noqa: B018 (raises before the first reset)
        return self._frame.copy() if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        """Leave PyBullet and close the window, if there is one; a later `reset` opens them again."""
        self._left()
        if self._viewer is not None:
            self._viewer.close()

    @property
    def _cameras(self) -> Camera:
        camera = self.camera
        return replace(camera, K=camera.K[None], T_world_camera=camera.T_world_camera[None])

    def _open(self) -> None:
        self._scene = Scene(self._rig.robot, frame_size_px=self._card.frame_size_px)
        self._left = weakref.finalize(self, self._scene.close)  # an env that nobody closed leaves nothing behind either

    def _begin(self) -> None:
        """Build the scene of the start and stand in it."""
        start = self.start
        if start.scene is None:
            raise VapError(
                "The oracle needs a start with a scene, got a picture alone. Only the imagined env starts from those; "
                "with other words for a shipped start, too, the scene's task is gone."
            )
        self._scene.reset(start.scene, start.q_rad, start.closedness)
        self._start = replace(
            start,
            frame=self._scene.render(self._camera)[0],
            camera=self._camera or self._scene.camera,
            sway=None if self._camera is None else (),  # a camera of one's own stands still
            views=shown(self._scene, self._viewpoints),
        )
        self._path = []
        self._robot = self._rig.controller.start(
            torch.from_numpy(np.asarray(start.q_rad, np.float32))[None], torch.tensor([start.closedness])
        )
        self._first, self._progress = self._scene.truth(), 0.0

    def _tell(self, q_rad: np.ndarray, closedness: float) -> None:
        self._path.append((q_rad, closedness))
        self._scene.step(q_rad, closedness)

    def _look(self) -> None:
        """Render, and score the truth."""
        self._frame: UInt8[np.ndarray, "H W 3"] = self._scene.render(self._camera)[0]
        self._truth, scene, first = self._scene.truth(), self.start.scene, self._first
        assert scene is not None
        self._progress = float(
            progress(
                scene,
                self._truth.tool_m,
                self._truth.target_m(scene),
                start_tool_m=first.tool_m,
                start_object_m=first.target_m(scene),
            )
        )
        self._seen = shown(self._scene, self._viewpoints)
        if self._viewer is not None:
            self._viewer.show(self._frame)

    def _rig_motion(self, clipped: Clipped | None = None) -> Motion:
        return self._rig.look(self._robot, self._cameras, clipped)

    def _observation(self) -> Observation:
        further = {name: seen.frame for name, seen in self._seen.items()}
        return observed(self._obs_type, self._frame, self._robot.q[0], self._robot.gripper[0], further)

    def _prompts(self) -> dict[str, np.ndarray]:
        """Prompts of further views: nominal, as imagination has them, so a camera on the arm is where it should be."""
        tip = self._rig.controller.tip_pose(self._robot)[0]
        cameras = {view.name: view.now(tip).to(torch.float32) for view in self._viewpoints}
        looks = {
            name: self._rig.look(
                self._robot, replace(camera, K=camera.K[None], T_world_camera=camera.T_world_camera[None])
            )
            for name, camera in cameras.items()
        }
        return {name: look.prompts[0, 0].numpy().copy() for name, look in looks.items()}

    def _info(self, motion: Motion) -> dict[str, Any]:
        truth = self._truth
        tool_px, _ = self.camera.project(torch.from_numpy(truth.tool_m).float()[None])
        info = robot_info(motion, 0, 0)
        info["proprioception"] = {
            "joint_position": truth.joints_rad.astype(np.float32),
            "cartesian_position": xyz_euler_from_pose(torch.from_numpy(truth.tip)).float().numpy(),
            "gripper_position": truth.closedness,
        }
        if self._viewpoints:
            info["prompts"] = self._prompts()
        if self._scene.spec.drawer is not None:
            info["drawer_open_m"] = float(self._scene.spec.drawer.handle_m[0] - truth.handle_m[0])
        return info | {
            "is_success": self._progress >= 1.0,
            "task_description": self.start.instruction,
            "progress": self._progress,
            "reward_source": "truth",
            "trust": {"adherence_px": float((tool_px[0] - motion.tool_px[0, 0]).norm()), "gripper_confidence": 1.0},
            "truth": {"objects_m": present_objects(truth.objects_m), "tool_m": truth.tool_m.copy()},
        }

    def __getstate__(self) -> dict[str, Any]:
        """Everything but PyBullet: it is told again what it was told since the start."""
        return {key: value for key, value in self.__dict__.items() if key not in ("_scene", "_left", "_viewer")}

    def __setstate__(self, kept: dict[str, Any]) -> None:
        self.__dict__.update(kept)
        self._open()
        self._viewer = Viewer(self._card.frame_size_px, self._card.fps) if self.render_mode == "human" else None
        if self._start is not None:
            path, robot = self._path, self._robot
            self._begin()
            self._robot = robot
            for q_rad, closedness in path:
                self._tell(q_rad, closedness)
            self._look()


def present_objects(objects_m: Float[np.ndarray, "N 3"]) -> dict[str, Float[np.ndarray, " 3"]]:
    """Return where each object is by its colour, leaving out the colours that are not there (NaN)."""
    there = np.flatnonzero(np.isfinite(objects_m).all(-1))
    return {COLOURS[i]: objects_m[i].copy() for i in there}


def make_starts(
    path: str | Path, *, env: str | Path = "VAP-DROID-v0", count: int = 96, first_seed: int = FIRST_START_SEED
) -> int:
    """Draw, render and write the start states of an env, its tasks in turn; the same arguments write the same file.

    Scenes in which the camera does not see the gripper and what the task is about are passed over: none could be
    judged.
    """
    card = load_env(env)
    with Scene(load_robot(card.robot), frame_size_px=card.frame_size_px) as scene:
        return save_starts(path, _seen_starts(scene, card.layout, count, itertools.count(first_seed)))


def _seen_starts(scene: Scene, layout: str, count: int, seeds: Iterator[int]) -> Iterator[Start]:
    tasks = (*LAYOUTS[layout].tasks, *LAYOUTS[layout].novel_tasks)
    for i in range(count):
        task = tasks[i % len(tasks)]
        yield shown_start(scene, (draw_scene(seed, layout=layout, task=task) for seed in seeds))


def shown_start(scene: Scene, specs: Iterable[SceneSpec]) -> Start:
    """Return the start of the first of some scenes whose picture shows the gripper and what the task is about.

    Raises:
        VapError: none of the first TRIES does.
    """
    tried: list[SceneSpec] = []
    for spec in itertools.islice(specs, TRIES):
        tried.append(spec)
        start = start_of_scene(scene, spec)
        pixels = np.bincount(scene.render()[1].reshape(-1), minlength=len(LABELS))
        wanted = "drawer" if spec.is_about_drawer else spec.target_object.colour
        if min(pixels[LABELS.index("gripper")], pixels[LABELS.index(wanted)]) >= SEEN_PX:
            return start
    told = f"No scene of '{tried[0].layout}' with the task '{tried[0].task}'" if tried else "No scene"
    raise VapError(f"{told} shows gripper and goal, got {len(tried)} without. Take another task, camera or first seed.")


def start_of_scene(scene: Scene, spec: SceneSpec) -> Start:
    """Return the start of a scene as the oracle shows it: picture, camera, robot and task. `save_starts` ships many."""
    nominal = NominalRobot(scene.robot)
    state = start_episode(scene, nominal, spec)
    return Start(
        frame=scene.render()[0],
        camera=scene.camera,
        q_rad=state.q[0].numpy().copy(),
        closedness=float(state.gripper[0]),
        instruction=spec.instruction,
        scene=spec,
    )
