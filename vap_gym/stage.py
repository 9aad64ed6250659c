"""A stage: imagination, judge and task put together, as functions of one explicit state; envs are thin over it.

The state is imagination's TensorDict and these keys: `frame` (the newest picture), `about` (instruction and scene, JSON
bytes), `tool_start_m`, `object_start_m`, `object_m` (where the task's object is) and what else `whereabouts` keeps of
it, and `progress`; with trust samples also theirs, `sample_*`; with further views `view_<name>.*`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from tensordict import TensorDict
from torch import Tensor

from vap_gym.cards import EnvCard
from vap_gym.contract import Observation, Timings
from vap_gym.errors import ActionError, VapError, unknown_name
from vap_gym.geometry import Camera
from vap_gym.imagine import Imagination, read_state
from vap_gym.interfaces import Judge, Reading
from vap_gym.observations import about_bytes, action_space, observation_space, observed, read_about, robot_info
from vap_gym.outcome import Outcome, per_chunk
from vap_gym.rig import Motion, mapped
from vap_gym.sim.spec import SceneSpec
from vap_gym.sim.tasks import progress
from vap_gym.starts import Start
from vap_gym.trust import UNFAMILIAR, Doubt, SampleSpread
from vap_gym.viewpoints import ExtraViews, ViewFrames, Viewpoint, sways, view_key, without_other_views
from vap_gym.whereabouts import OBJECT_KEYS, Sight, find_object, follow_object

REWARDS = ("progress", "success")
SEEN = 0.5  # where the judge is less sure of an object, it is not looked at


@dataclass(frozen=True, kw_only=True, eq=False)
class _Raised:
    """A reading in the robot's base frame (`interfaces.Reading`)."""

    gripper_px: Float[Tensor, "B 2"]
    gripper_confidence: Float[Tensor, " B"]
    objects_px: Float[Tensor, "B N 2"]
    objects_world_m: Float[Tensor, "B N 3"]
    objects_confidence: Float[Tensor, "B N"]


class Stage:
    """Settings only: what an env is made of.

    Args:
        card: the env card, for termination and frame rate.
        imagination: rig and world model.
        judge: reads positions out of frames; None gives reward 0 and success False.
        reads_latents: the judge knows the world model's latents and reads those, which saves encoding the frames.
        reward: "progress" (how much of the task this step solved) or "success" (1 where it is solved).
        obs_type: "pixels", or "pixels_agent_pos" for a dict with the joints and closedness beside the frame.
        trust_samples: imagine every slot so many times and tell how much the pictures differ; 0: not.
        max_adherence_px: truncate an episode where the judge sees the gripper further than this from where it was
            commanded to be (and it was to be in the picture); None: never.
        doubt: tells how far a frame may be off, and when to give an episode up; None: it is not known.
        viewpoints: further cameras whose pictures are imagined, too.
        knows_gripper: the judge was trained on this robot's gripper. False: it is asked for objects only, and there is
            no adherence.
    """

    def __init__(
        self,
        *,
        card: EnvCard,
        imagination: Imagination,
        judge: Judge | None,
        reads_latents: bool = False,
        reward: str = "progress",
        obs_type: str = "pixels",
        trust_samples: int = 0,
        max_adherence_px: float | None = None,
        doubt: Doubt | None = None,
        viewpoints: Sequence[Viewpoint] = (),
        knows_gripper: bool = True,
    ) -> None:
        if reward not in REWARDS:
            raise unknown_name("reward", reward, REWARDS)
        if max_adherence_px is not None and (judge is None or not knows_gripper or not max_adherence_px > 0):
            got = "no judge" if judge is None else f"max_adherence_px={max_adherence_px}"
            got = got if knows_gripper else f"one that never saw a '{imagination.rig.robot.name}'"
            raise VapError(f"max_adherence_px must be above 0 and needs a judge to see the gripper, got {got}. Try 10.")
        self.card = card
        self.imagination = imagination
        self.rig = imagination.rig
        self.judge = judge
        self.chunk: int = getattr(imagination.world, "chunk", 1)  # control steps that the world imagines at once
        if self.chunk > 1 and (trust_samples or viewpoints):
            raise VapError(
                f"trust_samples and views need a world model of single steps, got one that imagines {self.chunk} at "
                "once. Leave them out."
            )
        self.reads_latents = reads_latents and self.chunk == 1
        self.reward = reward
        self.obs_type = obs_type
        self.spread = SampleSpread(imagination.world, trust_samples) if trust_samples else None
        self.doubt = doubt
        self.max_adherence_px = max_adherence_px
        self.knows_gripper = knows_gripper
        self.extra = ExtraViews(imagination, viewpoints)
        self.observation_space = observation_space(self.rig, obs_type, self.extra.names)
        self.action_space = action_space(self.rig, self.chunk)

    def begin(self, starts: Sequence[Start], seeds: Sequence[int]) -> TensorDict:
        """Return the state of one slot per start, each with its own noise seed."""
        frames = torch.from_numpy(np.stack([start.frame for start in starts]))
        state = self.imagination.start(
            frames,
            q=torch.from_numpy(np.stack([np.asarray(start.q_rad, np.float32) for start in starts])),
            gripper=torch.tensor([start.closedness for start in starts]),
            camera=stacked_camera(starts),
            seed=torch.tensor(list(seeds), dtype=torch.int64),
            sway=sways([start.seen for start in starts]),
        )
        state["frame"] = frames
        state["about"] = torch.stack([about_bytes(start.instruction, start.scene) for start in starts])
        tool_m = self.imagination.look(state).tool_m[:, 0]
        state["tool_start_m"] = tool_m.double()
        objects_m = torch.tensor([_object_by_scene(start.scene) for start in starts], dtype=torch.float64)
        state["object_m"] = objects_m
        if self.judge is not None:
            sight = self._sight(state, self.read(state, tool_m))
            state["object_m"] = torch.where(sight.sure[:, None], sight.place_m, objects_m)
        find_object(state, at_all=self.judge is not None)
        state["object_start_m"] = state["object_m"].clone()
        state["progress"] = torch.zeros(len(starts), dtype=torch.float64)
        if self.spread is not None:
            self.spread.start(state)
        if self.doubt is not None:
            self.doubt.start(state)
        self.extra.start(state, starts, seeds)
        return state

    @property
    def state_keys(self) -> tuple[str, ...]:
        """What a snapshot must hold to be loaded here."""
        memory: tuple[str, ...] = getattr(self.imagination.world, "state_keys", ())
        samples = [f"sample_{key}" for key in memory] if self.spread is not None else []
        own = ("frame", "camera_sway", *(f"world_{key}" for key in memory))
        views = [view_key(name, key) for name in self.extra.names for key in own]
        doubt = () if self.doubt is None else self.doubt.state_keys
        return (*own, "about", *OBJECT_KEYS, "robot_q", "step", *samples, *doubt, *views)

    @torch.no_grad()
    def advance(self, state: TensorDict, actions: Float[Tensor, "B K A"]) -> tuple[TensorDict, Outcome]:
        """Return the state K actions later and what happened on the way: a column per step, or per chunk of steps where
        the world model imagines several at once.

        Raises:
            ActionError: actions of the wrong shape or type, or not finite.
        """
        if actions.shape[1] % self.chunk:
            raise ActionError(f"actions must come in chunks of {self.chunk}, got {actions.shape[1]} of them.")
        began = time.perf_counter()
        motion = self.imagination.follow(state, actions)
        robot_s, world_s, judge_s, frames = time.perf_counter() - began, 0.0, 0.0, None
        rows: list[dict[str, Any]] = []
        views: list[dict[str, ViewFrames]] = []
        for k in range(actions.shape[1]):  # one by one: the judge reads every latent, or every frame of a chunk
            began, now = time.perf_counter(), motion.at(k)
            if k % self.chunk == 0:
                part = mapped(motion, lambda x, k=k: x[:, k : k + self.chunk])  # type: ignore[misc]
                state, frames = self.imagination.imagine(state, part)
            assert frames is not None
            newest = frames[:, k % self.chunk]
            state["frame"], state["camera_T_world_camera"] = newest.cpu(), now.T_world_camera[:, 0]
            views.append(self.extra.step(state, now))
            imagined = time.perf_counter()
            rows.append(self._score(state, now))
            if self.doubt is not None:
                self.doubt.step(state, now.views[:, 0], rows[-1])
            if self.spread is not None:
                rows[-1]["spread_grey"] = self._spread(state, now, newest)
            world_s, judge_s = world_s + imagined - began, judge_s + time.perf_counter() - imagined
        columns: dict[str, Any] = {
            key: None if rows[0][key] is None else np.stack([row[key] for row in rows], 1) for key in rows[0]
        }
        timings = Timings(robot=1e3 * robot_s, world=1e3 * world_s, judge=1e3 * judge_s)
        outcome = Outcome(motion=motion, timings=timings, views=_in_time(views), **columns)
        return state, per_chunk(outcome, self.chunk, reward=self.reward)

    def observation(self, state: TensorDict, i: int) -> Observation:
        """Return slot i's newest observation."""
        further = {name: state[view_key(name, "frame")][i].numpy() for name in self.extra.names}
        frame = state["frame"][i].numpy()
        return observed(self.obs_type, frame, state["robot_q"][i], state["robot_gripper"][i], further)

    def observation_at(self, outcome: Outcome, i: int, k: int) -> Observation:
        """Return slot i's observation after step k of an outcome."""
        robot = outcome.motion.robot
        further = {name: view.frames[i, k].numpy() for name, view in outcome.views.items()}
        return observed(self.obs_type, outcome.frames[i, k], robot.q[i, k], robot.gripper[i, k], further)

    def _spread(self, state: TensorDict, motion: Motion, frames: Tensor) -> Float[np.ndarray, " B"]:
        assert self.spread is not None
        spread: np.ndarray = self.spread.step(state, motion, frames).double().numpy()
        return spread

    def read(self, state: TensorDict, tool_m: Float[Tensor, "B 3"]) -> Reading:
        """Return what the judge sees in the newest frames; `tool_m` is where kinematics says the tool centre is.

        Judges take the table for the plane z = 0, so they are told of a world whose floor is the card's table.
        """
        assert self.judge is not None
        up_m = torch.tensor([0.0, 0.0, self.rig.robot.skeleton.drop_to_z_m])
        camera = self.imagination.camera(state)
        lowered = camera.T_world_camera.clone()
        lowered[..., :3, 3] -= up_m
        camera = replace(camera, T_world_camera=lowered).to(device=self.imagination.device)
        if self.reads_latents:
            reading = self.judge.read_latents(state["world_latent"], camera, tool_m=tool_m - up_m)
        else:
            frames = state["frame"].to(self.imagination.device)
            reading = self.judge.read_frames(frames, camera, tool_m=tool_m - up_m)
        return _Raised(
            gripper_px=reading.gripper_px,
            gripper_confidence=reading.gripper_confidence,
            objects_px=reading.objects_px,
            objects_world_m=reading.objects_world_m + up_m.to(reading.objects_world_m),
            objects_confidence=reading.objects_confidence,
        )

    def _score(self, state: TensorDict, motion: Motion) -> dict[str, Any]:
        """Read the newest frames, write what was seen and the progress into `state`, return a row of the outcome."""
        B = len(state)
        row: dict[str, Any] = {
            "frames": state["frame"].numpy(), "reward": np.zeros(B), "progress": np.zeros(B),
            "success": np.zeros(B, bool), "adherence_px": None, "gripper_confidence": None, "spread_grey": None,
            "untrusted": np.zeros(B, bool), "expected_psnr_db": None, "object_risk": None, "unfamiliar": None,
        }  # fmt: skip
        if self.judge is None:
            return row
        tool_m = motion.tool_m[:, 0]
        reading = self.read(state, tool_m)
        follow_object(state, self._sight(state, reading), self.imagination.camera(state))
        value = self._progress(state, tool_m)
        row["progress"], row["success"] = value, value >= 1.0
        row["reward"] = np.float64(value >= 1.0) if self.reward == "success" else value - state["progress"].numpy()
        state["progress"] = torch.from_numpy(value)
        if not self.knows_gripper:
            return row
        row["adherence_px"] = (reading.gripper_px.cpu().float() - motion.tool_px[:, 0]).norm(dim=-1).double().numpy()
        if self.max_adherence_px is not None:
            width, height = self.rig.frame_size_px
            at = motion.tool_px[:, 0].numpy()
            inside = ((at >= 0) & (at < (width, height))).all(-1)
            row["untrusted"] = inside & (row["adherence_px"] > self.max_adherence_px)
        row["gripper_confidence"] = reading.gripper_confidence.cpu().double().numpy()
        return row

    def _sight(self, state: TensorDict, reading: Reading) -> Sight:
        """Where the judge sees each slot's object."""
        scenes = [read_about(about)[1] for about in state["about"]]
        target = torch.tensor([-1 if scene is None or scene.is_about_drawer else scene.target for scene in scenes])
        one = torch.arange(len(scenes)), target.clamp_min(0)
        place_m = reading.objects_world_m.cpu().double()[one]
        sure = (target >= 0) & (reading.objects_confidence.cpu()[one] >= SEEN) & place_m.isfinite().all(-1)
        return Sight(px=reading.objects_px.cpu().double()[one], place_m=place_m, sure=sure)

    def _progress(self, state: TensorDict, tool_m: Tensor) -> Float[np.ndarray, " B"]:
        values = np.zeros(len(state))
        for i, about in enumerate(state["about"]):
            scene = read_about(about)[1]
            if scene is not None:
                values[i] = progress(
                    scene,
                    tool_m[i].double().numpy(),
                    state["object_m"][i].numpy(),
                    start_tool_m=state["tool_start_m"][i].numpy(),
                    start_object_m=state["object_start_m"][i].numpy(),
                )
        return values

    def reward_source(self, scene: SceneSpec | None) -> str:
        """Say in `info` where rewards come from: the judge, or nowhere and why."""
        if self.judge is None:
            return "none: made with judge=None"
        if scene is None:
            return "none: this start has no task"
        return "none: the judge sees no drawers" if scene.is_about_drawer else "judge"

    def reset_infos(self, state: TensorDict, slots: Sequence[int]) -> list[dict[str, Any]]:
        """Return the infos of slots that have just begun, or been loaded."""
        motion, views = self.imagination.look(state), _in_time([self.extra.look(state)])
        return [self._info(state["about"][i], motion, views, i, 0, None) for i in slots]

    def info(self, state: TensorDict, outcome: Outcome, i: int, k: int = 0) -> dict[str, Any]:
        """Return the info of slot i at step k of an outcome."""
        return self._info(state["about"][i], outcome.motion, outcome.views, i, k, outcome)

    def _info(
        self,
        about: UInt8[Tensor, " bytes"],
        motion: Motion,
        views: Mapping[str, ViewFrames],
        i: int,
        k: int,
        outcome: Outcome | None,
    ) -> dict[str, Any]:
        instruction, scene = read_about(about)
        info = robot_info(motion, i, k)
        if views:
            info["prompts"] = {name: view.prompts[i, k].numpy().copy() for name, view in views.items()}
        info |= {
            "is_success": False,
            "task_description": instruction,
            "progress": 0.0,
            "reward_source": self.reward_source(scene),
            "trust": {},
        }
        if outcome is not None:
            info |= {"is_success": bool(outcome.success[i, k]), "progress": float(outcome.progress[i, k])}
            info["timings_ms"] = outcome.timings
            if outcome.adherence_px is not None and outcome.gripper_confidence is not None:
                info["trust"] = {
                    "adherence_px": float(outcome.adherence_px[i, k]),
                    "gripper_confidence": float(outcome.gripper_confidence[i, k]),
                }
            for name in ("spread_grey", "expected_psnr_db", "object_risk", "unfamiliar"):
                if (told := getattr(outcome, name)) is not None:
                    info["trust"][name] = float(told[i, k])
        return info


def _in_time(views: Sequence[Mapping[str, ViewFrames]]) -> dict[str, ViewFrames]:
    """What further views showed step by step, as one with an axis of time after the batch's."""
    return {
        name: ViewFrames(
            frames=torch.stack([at[name].frames for at in views], 1),
            prompts=torch.stack([at[name].prompts for at in views], 1),
        )
        for name in views[0]
    }


def stacked_camera(starts: Sequence[Start]) -> Camera:
    """Return the cameras of several starts as one camera of batch (B,), float32."""
    return Camera(
        K=torch.stack([start.camera.K.float() for start in starts]),
        T_world_camera=torch.stack([start.camera.T_world_camera.float() for start in starts]),
        frame_size_px=starts[0].camera.frame_size_px,
    )


def _object_by_scene(scene: SceneSpec | None) -> tuple[float, float, float]:
    """Where the task's object stands before the first step, if there is one; NaN otherwise."""
    if scene is None:
        return (float("nan"),) * 3
    if scene.drawer is not None:
        x, y, z = scene.drawer.handle_m
        return (x - scene.drawer.opening_m, y, z)
    item = scene.target_object
    return (*item.xy_m, scene.table_z_m + item.half_extents_m[0 if item.lying else 2])


def fitting_snapshot(snapshot: TensorDict | str | Path, stage: Stage, *, slots: int) -> TensorDict:
    """Return a copy of a snapshot, or say why it cannot be loaded here.

    One from before the world model's trust was calibrated is taken; how far its frames may be off is not known (NaN).
    """
    state = read_state(snapshot) if isinstance(snapshot, str | Path) else snapshot.clone()
    if tuple(state.batch_size) != (slots,):
        raise VapError(
            f"A snapshot of {slots} slot(s) is needed, got batch size {tuple(state.batch_size)}. "
            "Index it: snapshot[i : i + 1]."
        )
    missing = [key for key in stage.state_keys if key not in state.keys()]  # noqa: SIM118
    is_older = stage.doubt is not None and missing == list(stage.doubt.state_keys)
    is_old = missing == [UNFAMILIAR]  # saved before it was told
    missing = [] if is_older or is_old else missing
    if missing or state["robot_q"].shape[-1] != len(stage.rig.robot.arm_joints):
        more = f" and {len(missing) - 4} more" if len(missing) > 4 else ""
        lacks = f"it lacks {missing[:4]}{more}"
        raise VapError(
            f"The snapshot is of another env: {lacks if missing else 'its robot has other joints'}. "
            "Load one that save() of an env made in the same way gave."
        )
    state = without_other_views(state, stage.extra.names)
    remembered = ("world_", "sample_", "trust_", *(view_key(name, "world_") for name in stage.extra.names))
    for key in [key for key in state.keys() if key.startswith(remembered)]:  # noqa: SIM118
        state[key] = state[key].to(stage.imagination.device)
    if is_older and stage.doubt is not None:
        stage.doubt.start_late(state)
    elif is_old and stage.doubt is not None:
        stage.doubt.meet(state)
    return state
