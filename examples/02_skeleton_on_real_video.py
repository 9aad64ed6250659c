"""Draw the skeleton prompt over a real DROID recording: are the kinematics, the gripper and the camera right?

Before any prompt is given to a video model, look at it on top of real frames. Needs a folder with an episode (log.npz,
camN.mp4) and a cameras.json with each camera's K and T_camera_from_base, as droid/ of the recordings has them.

    python examples/02_skeleton_on_real_video.py --droid ../shared/data/droid --out out/skeleton_on_droid.mp4
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import tyro

from vap_gym.cards import load_robot
from vap_gym.data.video import read_video, write_video
from vap_gym.geometry import Camera, inverse
from vap_gym.kinematics.control import Controller
from vap_gym.prompts.raster import draw, overlay
from vap_gym.prompts.skeleton import Skeleton


def main(
    droid: Path = Path("../shared/data/droid"),
    episode: str = "newsetup_0012",
    camera: str = "cam0",
    out: Path = Path("out/skeleton_on_droid.mp4"),
    fps: int = 12,
    scale: int = 2,
    table_z_m: float = 0.05,
) -> None:
    """Write real | prompt | overlay, side by side.

    Args:
        droid: folder of the recordings.
        episode: which recording.
        camera: which of its cameras; cameras.json must know it.
        out: the mp4 to write.
        fps: frames per second of the mp4.
        scale: how many times larger than the recording to draw.
        table_z_m: height of the table over the robot's base, where the drop line ends. (Here: seen from the heights at
            which blocks are grasped and released.)
    """
    # 1. Robot states, as logged: joint angles [rad], and the gripper's closedness (0 open .. 1 closed).
    log = np.load(droid / episode / "log.npz")
    rows = log["frame_to_row"]
    robot = load_robot("panda_robotiq")
    robot = replace(robot, skeleton=replace(robot.skeleton, drop_to_z_m=table_z_m))
    q, gripper = (torch.from_numpy(log[key][rows]).float() for key in ("joint_position", "gripper_position"))
    state = Controller(robot).start(q, gripper)

    # 2. The camera. It looks along +z, with x right and y down; its pose is in the robot's base frame.
    card = json.loads((droid / "cameras.json").read_text())[camera]
    if episode not in card["valid_for_episodes"]:
        raise SystemExit(
            f"{camera} is not calibrated for {episode}. Calibrated: {', '.join(card['valid_for_episodes'])}."
        )
    real = Camera(
        K=torch.tensor(card["K"]),
        T_world_camera=inverse(torch.tensor(card["T_camera_from_base"])),
        frame_size_px=tuple(card["image_size_wh"]),
    ).checked()

    # 3. Key-points in the base frame, drawn as the camera sees them, and laid over the frames.
    width, height = (scale * side for side in real.frame_size_px)
    skeleton = Skeleton(robot)
    prompts = draw(skeleton.keypoints(state), real, skeleton, frame_size_px=(width, height))
    frames = read_video(droid / episode / f"{camera}.mp4").repeat(scale, axis=1).repeat(scale, axis=2)
    strip = np.concatenate([frames, prompts, overlay(frames, prompts, alpha=0.9)], axis=2)

    out.parent.mkdir(parents=True, exist_ok=True)
    write_video(out, strip, fps)
    print(f"{out}: {len(strip)} frames, real | prompt | overlay")


if __name__ == "__main__":
    tyro.cli(main)
