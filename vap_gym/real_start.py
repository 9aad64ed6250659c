"""Real recordings: begin at a real frame, and follow the logged robot through the env's own actions."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from vap_gym.data.video import read_video
from vap_gym.env import VapEnv
from vap_gym.errors import VapError, unknown_name
from vap_gym.geometry import Camera
from vap_gym.photo import fit_picture, read_camera
from vap_gym.pictures import Picture, sheet, spread


@dataclass(frozen=True, kw_only=True, eq=False)
class Recording:
    """A real episode through one camera: T frames, and the robot's logged state in each."""

    name: str
    frames: UInt8[np.ndarray, "T H W 3"]
    joint_position: Float[np.ndarray, "T n"]  # rad
    gripper_position: Float[np.ndarray, " T"]  # 0 open .. 1 closed
    camera: Camera  # of the frames as they are; the world is the robot's base
    instruction: str

    def reset_options(self) -> dict[str, Any]:
        """Return what `env.reset(options=…)` needs to begin at the first frame."""
        state = {"joint_position": self.joint_position[0], "gripper_position": self.gripper_position[0]}
        return {"image": self.frames[0], "state": state, "camera": self.camera, "instruction": self.instruction}


@dataclass(frozen=True, kw_only=True, eq=False)
class Followed:
    """A recording and its imagination, frame by frame, at the env's frame size."""

    real: UInt8[np.ndarray, "T H W 3"]
    prompts: UInt8[np.ndarray, "T H W 3"]
    imagined: UInt8[np.ndarray, "T H W 3"]
    behind_rad: float  # the most that a nominal joint was away from its logged value


def read_droid(
    droid: Path, episode: str = "newsetup_0012", camera: str = "cam0", *, first: int = 0, frames: int = 40
) -> Recording:
    """Read `frames` frames, from `first` on, of an episode in a folder laid out as droid/ of the recordings.

    Raises:
        VapError: the folder is not there, has no such episode, or the camera is not calibrated for it.
    """
    if not (droid / "cameras.json").is_file():
        raise VapError(
            f"No real recordings at '{droid}': it must hold cameras.json and a folder per episode with log.npz and "
            "cam0.mp4. Name their folder; without one, start from a simulated picture: env.reset(seed=0)."
        )
    cameras = {k: v for k, v in json.loads((droid / "cameras.json").read_text()).items() if "valid_for_episodes" in v}
    if camera not in cameras:
        raise unknown_name("calibrated camera", camera, cameras)
    if episode not in cameras[camera]["valid_for_episodes"]:
        raise unknown_name(f"episode for which {camera} is calibrated", episode, cameras[camera]["valid_for_episodes"])
    with np.load(droid / episode / "log.npz") as log:
        rows = log["frame_to_row"][first : first + frames]
        q_rad, closedness = log["joint_position"][rows], log["gripper_position"][rows]
    if len(rows) == 0:
        raise VapError(f"Episode {episode} has no frame {first}. Begin at frame 0.")
    return Recording(
        name=f"{episode} {camera}",
        frames=read_video(droid / episode / f"{camera}.mp4", start=first, stop=first + len(rows)),
        joint_position=q_rad.astype(np.float64),
        gripper_position=closedness.astype(np.float64),
        camera=read_camera(cameras[camera]),
        instruction=json.loads((droid / episode / "episode.json").read_text())["instruction"],
    )


def follow(
    env: VapEnv,
    recording: Recording,
    *,
    steps_per_frame: int = 2,
    tick: Callable[[], object] = lambda: None,
) -> Followed:
    """Follow the recording's joints by actions, from where the env is; calls `tick` after every frame.

    Logs hold achieved states, the env wants commands, of which its controller realises a fifth, a step late. So the
    controller model is solved for the command that brings the arm to the next logged joints (`command_toward`).

    Args:
        env: made with action_mode="joint_position", and reset with `recording.reset_options()`.
        steps_per_frame: control steps (1/15 s) from one frame to the next; the joints between are interpolated. These
            recordings do not state their rate; by the arm's speed, a frame is one to two steps of other DROID logs.
    """
    if env.stage.rig.controller.mode != "joint_position":
        raise VapError(
            f"Following joints needs an env in mode 'joint_position', got '{env.stage.rig.controller.mode}'. "
            'Make it with gym.make(…, action_mode="joint_position").'
        )
    imagined = [env.state["frame"][0].numpy().copy()]
    prompts = [env.stage.imagination.look(env.state).prompts[0, 0].numpy()]
    behind_rad = 0.0
    for t in range(1, len(recording.frames)):
        for share in np.linspace(0.0, 1.0, steps_per_frame + 1)[1:]:
            q_rad = (1 - share) * recording.joint_position[t - 1] + share * recording.joint_position[t]
            closed = (1 - share) * recording.gripper_position[t - 1] + share * recording.gripper_position[t]
            info = env.step(command_toward(env, q_rad, float(closed)))[4]
        imagined.append(env.state["frame"][0].numpy().copy())
        prompts.append(info["prompt"])
        reached = info["proprioception"]["joint_position"]
        behind_rad = max(behind_rad, float(np.abs(reached - recording.joint_position[t]).max()))
        tick()
    size = env.stage.rig.frame_size_px
    real = [fit_picture(picture, recording.camera, size)[0] for picture in recording.frames]
    return Followed(real=np.stack(real), prompts=np.stack(prompts), imagined=np.stack(imagined), behind_rad=behind_rad)


def command_toward(env: VapEnv, q_rad: Float[np.ndarray, " n"], closedness: float) -> Float[np.ndarray, " A"]:
    """Return the joint_position action (n + 1,) after which the nominal arm is at `q_rad`, as far as it can be.

    The controller does v' = λ v + (1 − λ) gain (target − q), q' = q + v': solved for the target. Commands beyond the
    controller's step are clipped by it; since each command starts from where the arm is, it then catches up.
    """
    robot = env.stage.imagination.robot_state(env.state)
    card = env.stage.rig.robot.controller
    keep = card.lag_steps / (1.0 + card.lag_steps)  # λ
    q, rate, gripper = robot.q[0].double().numpy(), robot.joint_rate[0].double().numpy(), float(robot.gripper[0])
    target = q + ((q_rad - q) - keep * rate) / ((1.0 - keep) * card.gain)
    grip = gripper + (closedness - gripper) / ((1.0 - keep) * card.gripper_gain)
    controller = env.stage.rig.controller
    low, high = controller.action_space_low.numpy(), controller.action_space_high.numpy()
    command: Float[np.ndarray, " A"] = np.clip(np.append(target, grip).astype(np.float32), low, high)
    return command


def strip(followed: Followed, recording: Recording, *, columns: int = 7) -> Picture:
    """Return the three-row picture real | prompt | imagined."""
    shown = spread(columns, len(followed.real))
    rows = [[frames[t] for t in shown] for frames in (followed.real, followed.prompts, followed.imagined)]
    return sheet(
        rows,
        scale=1.5,
        columns=[f"frame {t}" for t in shown],
        labels=["real", "prompt", "imagined"],
        title=f"From a real photograph: DROID {recording.name}, \u201c{recording.instruction}\u201d",
        note="Given to the model: the first real frame and the prompts. It was trained on simulated pictures only.",
    )
