"""Imagination: actions → nominal robot motion → prompts → frames, as functions of one explicit state.

All that changes stands in ONE flat TensorDict with batch size [B]: `robot_*`, `camera_*`, `world_*`, `step`. A branch
is `state.expand(n).clone()`, a partial reset is `state[slots] = fresh`, a snapshot is the TensorDict itself. Keys that
are not ours are carried along untouched.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from tensordict import TensorDict
from torch import Tensor

from vap_gym.errors import ActionError, CheckpointError, VapError
from vap_gym.geometry import Camera, CameraMount, inverse
from vap_gym.interfaces import World
from vap_gym.kinematics import RobotState
from vap_gym.rig import Motion, Rig

STATE_FORMAT = "vap_gym state 1"


class Imagination:
    """A rig and a world model that see the same prompts. Holds weights and settings only.

    A world model may say which kind of prompt it knows (`prompt`), and whether its skeletons have their drop line
    (`height_cue`): others are refused, but for "none", which leaves prompts out as training sometimes did.
    """

    def __init__(self, *, rig: Rig, world: World, device: torch.device | str = "cpu") -> None:
        if tuple(world.frame_size_px) != tuple(rig.frame_size_px):
            raise VapError(
                f"The world model imagines frames of {tuple(world.frame_size_px)} px (width, height), the rig draws "
                f"prompts of {tuple(rig.frame_size_px)}. Make the rig with frame_size_px=world.frame_size_px."
            )
        known, cue = getattr(world, "prompt", rig.prompt), getattr(world, "height_cue", rig.height_cue)
        if rig.prompt not in (known, "none"):
            takes = f"prompts of the kind '{known}'" if known != "none" else "no pictures of the robot"
            raise VapError(
                f"The world model was trained on {takes}, got prompt='{rig.prompt}'. "
                f"Leave prompt out, or give '{known}'{'' if known == 'none' else ' (or none, for black ones)'}."
            )
        if rig.prompt == "skeleton" and rig.height_cue != cue:
            raise VapError(
                f"The world model was trained on skeletons {'with' if cue else 'without'} their drop line, got a rig "
                f"with height_cue={rig.height_cue}. Make it with height_cue={cue}."
            )
        self.rig = rig
        self.world = world
        self.device = torch.device(device)

    @torch.no_grad()
    def start(
        self,
        frames: UInt8[Tensor, "B H W 3"],
        *,
        q: Float[Tensor, "B n"],
        gripper: Float[Tensor, "B"],
        camera: Camera,
        seed: Int64[Tensor, "B"],
        rides: Bool[Tensor, "B"] | None = None,
        sway: Float[Tensor, "B 8"] | None = None,
    ) -> TensorDict:
        """Return the state of B slots that have seen one frame each.

        Args:
            frames: the first pictures, of the world model's size.
            q, gripper: arm joints [rad] and closedness (0 open .. 1 closed) in those pictures.
            camera: the cameras that took them (batch B, or one for all), in the robot's base frame.
            seed: each slot's own noise: a slot's frames do not depend on who else is in the batch.
            rides: whether the camera hangs on the robot's tip link and moves with it; None: it does not.
            sway: how it moves as a head does, see `geometry.swayed`; None: it does not.
        """
        B = len(frames)
        robot = self.rig.controller.start(q, gripper)
        slots: dict[str, Tensor] = {f"robot_{f.name}": getattr(robot, f.name) for f in fields(RobotState)}
        slots["camera_K"] = camera.K.float().expand(B, 3, 3).clone()
        slots["camera_T_world_camera"] = camera.T_world_camera.float().expand(B, 4, 4).clone()
        rides = torch.zeros(B, dtype=torch.bool) if rides is None else rides
        anchored = inverse(self.rig.controller.tip_pose(robot).float()) @ slots["camera_T_world_camera"]
        anchored = torch.where(rides[:, None, None], anchored, slots["camera_T_world_camera"])
        slots |= {"camera_rides": rides.clone(), "camera_T_anchor_camera": anchored}
        slots["camera_sway"] = torch.zeros(B, 8) if sway is None else sway.float().clone()
        slots["step"] = torch.zeros(B, dtype=torch.int64)
        seen = self.look(TensorDict(slots, batch_size=[B]))
        world = self.world.start(
            frames.to(self.device),
            seen.prompts[:, 0].to(self.device),
            seed.to(self.device),
            views=seen.views[:, 0].to(self.device),
            states=seen.states[:, 0].to(self.device),
        )
        slots |= {f"world_{key}": value for key, value in world.items()}
        return TensorDict(slots, batch_size=[B])

    @torch.no_grad()
    def step(
        self,
        state: TensorDict,
        actions: Float[Tensor, "B K A"],
        *,
        decode: bool = True,
        evaluations: int | None = None,
    ) -> tuple[TensorDict, UInt8[Tensor, "B K H W 3"] | None, Motion]:
        """Return the state K actions later, the K frames (None without `decode`), and what the robot did.

        K steps at once give the frames of K single steps.

        Raises:
            ActionError: actions of the wrong shape or type, or not finite.
        """
        motion = self.follow(state, actions)
        state, frames = self.imagine(state, motion, decode=decode, evaluations=evaluations)
        return state, frames, motion

    @torch.no_grad()
    def follow(self, state: TensorDict, actions: Float[Tensor, "B K A"]) -> Motion:
        """Return what the robots do: the first half of `step`. Raises ActionError as `step` does."""
        return self.trace(state, actions, draw=True)

    def trace(self, state: TensorDict, actions: Float[Tensor, "B K A"], *, draw: bool = False) -> Motion:
        """Return what the robots do, without prompts unless `draw` says so: cheap, and differentiable in the actions.

        Raises ActionError as `step` does.
        """
        B, A = len(state), self.rig.controller.action_size
        if actions.ndim != 3 or actions.shape[0] != B or actions.shape[1] < 1 or actions.shape[2] != A:
            raise ActionError(
                f"actions must have shape ({B}, K, {A}) with K of at least 1, got {tuple(actions.shape)}."
            )
        return self.rig.move(self.robot_state(state), self.mount(state), actions, step=state["step"], draw=draw)

    @torch.no_grad()
    def imagine(
        self, state: TensorDict, motion: Motion, *, decode: bool = True, evaluations: int | None = None
    ) -> tuple[TensorDict, UInt8[Tensor, "B K H W 3"] | None]:
        """Return the state and the frames after a motion that began in `state`: the second half of `step`."""
        world, frames = self.world.predict(
            self._world_state(state),
            motion.prompts.to(self.device),
            views=motion.views.to(self.device),
            states=motion.states.to(self.device),
            decode=decode,
            evaluations=evaluations,
        )
        return self._advanced(state, motion, world), frames

    @torch.no_grad()
    def rollout(
        self, state: TensorDict, actions: Float[Tensor, "B T A"], *, evaluations: int | None = None
    ) -> tuple[TensorDict, Float[Tensor, "B L C h w"], Motion]:
        """Imagine T steps in latents only, for planners: the same states as `step`, no frame decoded.

        Returns:
            the state after T steps, the latent of every step (for `Judge.read_latents`; L = T), and what the robot did.
            A world that imagines c steps at once has one latent for c steps: L = T / c, each at the end of its c.

        Raises:
            ActionError: as `step`, and where T is no multiple of c.
        """
        chunk: int = getattr(self.world, "chunk", 1)
        if actions.shape[1] % chunk:
            raise ActionError(f"actions must come in chunks of {chunk}, got {actions.shape[1]} of them.")
        motion = self.follow(state, actions)
        prompts, views, states = (x.to(self.device) for x in (motion.prompts, motion.views, motion.states))
        world, latents = self._world_state(state), []
        for t in range(0, prompts.shape[1], chunk):
            now = slice(t, t + chunk)
            world, _ = self.world.predict(
                world, prompts[:, now], views=views[:, now], states=states[:, now], decode=False,
                evaluations=evaluations,
            )  # fmt: skip
            latents.append(world["latent"])
        return self._advanced(state, motion, world), torch.stack(latents, 1), motion

    @torch.no_grad()
    def look(self, state: TensorDict) -> Motion:
        """Return where the robot is in `state` and its prompt, as a motion of one step (K = 1)."""
        return self.rig.look(self.robot_state(state), self.camera(state))

    def robot_state(self, state: TensorDict) -> RobotState:
        """Return the robots in a state, batch (B,)."""
        return RobotState(**{f.name: state[f"robot_{f.name}"] for f in fields(RobotState)})

    def camera(self, state: TensorDict) -> Camera:
        """Return the cameras in a state as they are now, batch (B,)."""
        return Camera(
            K=state["camera_K"],
            T_world_camera=state["camera_T_world_camera"],
            frame_size_px=self.rig.frame_size_px,
        )

    def mount(self, state: TensorDict) -> CameraMount:
        """Return how the cameras in a state move, batch (B,)."""
        return CameraMount(
            K=state["camera_K"],
            T_anchor_camera=state["camera_T_anchor_camera"],
            rides=state["camera_rides"],
            sway=state["camera_sway"],
            frame_size_px=self.rig.frame_size_px,
        )

    def _world_state(self, state: TensorDict) -> TensorDict:
        own = {key.removeprefix("world_"): value for key, value in state.items() if key.startswith("world_")}
        return TensorDict(own, batch_size=state.batch_size)

    def moved(self, state: TensorDict, motion: Motion) -> TensorDict:
        """Return the state with robot, camera and clock where a motion that began in it ended, and nothing imagined."""
        new = dict(state.items())
        new |= {f"robot_{f.name}": getattr(motion.robot, f.name)[:, -1] for f in fields(RobotState)}
        new["camera_T_world_camera"] = motion.T_world_camera[:, -1]
        new["step"] = state["step"] + motion.tool_m.shape[1]
        return TensorDict(new, batch_size=state.batch_size)

    def _advanced(self, state: TensorDict, motion: Motion, world: TensorDict) -> TensorDict:
        new = self.moved(state, motion)
        for key, value in world.items():
            new[f"world_{key}"] = value
        return new


def write_state(state: TensorDict, path: str | Path) -> None:
    """Write a state to one safetensors file (temp name, then renamed); `read_state` gives it back bit for bit."""
    from safetensors.torch import save_file

    path = Path(path)
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}
    temporary = path.with_name(f".{path.name}.part")
    save_file(tensors, temporary, metadata={"format": STATE_FORMAT})
    temporary.replace(path)


def read_state(path: str | Path) -> TensorDict:
    """Read what `write_state` wrote.

    Raises:
        CheckpointError: the file is missing, truncated, or no state.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            if (file.metadata() or {}).get("format") != STATE_FORMAT:
                raise CheckpointError(
                    f"'{path}' is no state: got other safetensors. Write one with write_state(env.save(), path)."
                )
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"No readable state at '{path}': {error}. Write one with write_state(env.save(), path)."
        ) from error
    return TensorDict(tensors, batch_size=[len(tensors["step"])])


def actions_tensor(actions: object, *, shape: tuple[int | None, ...]) -> Float[Tensor, "..."]:
    """Return actions as a float32 tensor of `shape`, in which None is any length of at least 1.

    Raises:
        ActionError: not numbers, of another shape, or NaN or infinite.
    """
    array = np.asarray(actions)
    if array.dtype.kind not in "fiu":
        raise ActionError(
            f"action must be numbers (float32), got dtype {array.dtype}. Sample one: env.action_space.sample()."
        )
    if array.ndim != len(shape) or any(n != wanted and (wanted or not n) for n, wanted in zip(array.shape, shape)):
        told = ", ".join("K" if n is None else str(n) for n in shape)
        raise ActionError(f"action must have shape ({told}{',' if len(shape) == 1 else ''}), got {array.shape}.")
    if not np.isfinite(array).all():
        raise ActionError(f"action must be finite, got {array.tolist()}. Entries out of range are clipped, NaN is not.")
    return torch.from_numpy(np.array(array, dtype=np.float32))
