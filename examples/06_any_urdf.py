"""Any robot: from a URDF that we do not ship to a card, a picture to check it by, prompts of a motion, and a video that
is imagined from one picture of it.

The robot is an xArm 6 with its gripper, as the pybullet package describes it; give another with --urdf. What the URDF
does not say (which joints grasp, where home is, how wide the limbs are) is guessed: look at check.png first. There is
no photograph of an xArm here, so the picture to begin from is drawn; take one of yours, with its camera.

    python examples/06_any_urdf.py --out out/any_urdf.mp4
"""

import math
from pathlib import Path

import numpy as np
import torch
import tyro
from PIL import Image

from vap_gym.data.video import write_video
from vap_gym.drafting import draft_robot
from vap_gym.drafting.picture import overview
from vap_gym.env import VapEnv
from vap_gym.errors import require
from vap_gym.kinematics import Controller
from vap_gym.pictures import write_png
from vap_gym.prompts.mesh import Mesh, draw_mesh
from vap_gym.prompts.raster import draw, overlay
from vap_gym.prompts.skeleton import Skeleton


def main(
    urdf: Path | None = None, tip: str | None = None, out: Path = Path("out/any_urdf.mp4"), steps: int = 75
) -> None:
    """Write shapes | skeleton prompt | imagined, side by side; three moments as a png, and the robot's folder.

    Args:
        urdf: the robot; xArm 6 of the pybullet package if none is given.
        tip: the link whose pose the actions move. None: where the only arm ends.
        out: the mp4 to write.
        steps: control steps, 15 a second.
    """
    # 1. A card from the URDF: the same as `vap-gym robot add my.urdf --tip ... --out ...`.
    if urdf is None:
        data = require("pybullet_data", "pybullet", "This example's robot")
        urdf = Path(data.getDataPath()) / "xarm" / "xarm6_with_gripper.urdf"
    draft = draft_robot(urdf, out.with_suffix(""), tip=tip, replace=True)
    robot = draft.card
    print(f"{robot.folder}: arm {', '.join(robot.arm_joints)}; tip {robot.tip_link}; {robot.gripper.kind} gripper")
    for note in draft.notes:
        print(f"  {note}")
    print(f"  look at {draft.picture}")

    # 2. A motion, as actions: the tip goes round in an upright circle, while the gripper closes and opens.
    controller = Controller(robot, "cartesian_velocity")
    state = controller.start(torch.tensor(robot.home_q_rad), torch.tensor(0.0))
    states, actions = [state], []
    for t in range(steps):
        turn = 2 * math.pi * t / steps
        action = torch.zeros(controller.action_size)
        action[1], action[2], action[-1] = 0.6 * math.cos(turn), 0.6 * math.sin(turn), math.sin(2 * turn)
        state, _ = controller.step(state, action)
        actions.append(action.numpy())
        states.append(state)
    q, gripper = torch.stack([s.q for s in states]), torch.stack([s.gripper for s in states])

    # 3. The prompts that a world model of this robot would be given, beside the robot's shapes.
    skeleton = Skeleton(robot)
    points = skeleton.at_joints(q, gripper)
    camera = overview(points)
    prompts = draw(points, camera, skeleton)
    shapes = draw_mesh(q, gripper, camera, Mesh(robot)) if robot.mesh else np.zeros_like(prompts)
    grey = (
        np.where(shapes.any(-1, keepdims=True), shapes.max(-1, keepdims=True), 238).astype(np.uint8).repeat(3, axis=-1)
    )

    # 4. The same motion imagined: one picture, the robot's state in it and its camera; then nothing but actions.
    env = VapEnv("VAP-DROID-v0", robot=robot.folder, judge=None)
    pose = {"joint_position": robot.home_q_rad, "gripper_position": 0.0}
    frame, _ = env.reset(options={"image": grey[0], "state": pose, "camera": camera})
    frames = [frame, *(env.step(action)[0] for action in actions)]
    env.close()
    width, height = camera.frame_size_px
    imagined = np.full_like(grey, 238)  # frames are 3:2: the middle of the picture
    top, rows = (height - 2 * width // 3) // 2, 2 * width // 3
    for k, frame in enumerate(frames):
        imagined[k, top : top + rows] = np.array(Image.fromarray(frame).resize((width, rows)))
    strip = np.concatenate([grey, overlay(grey, prompts, alpha=0.65), imagined], axis=2)
    write_video(out, strip, fps=15)
    write_png(out.with_suffix(".png"), np.concatenate([strip[k * steps // 4] for k in range(3)]))
    print(f"{out}: {len(strip)} frames, shapes | with the skeleton | imagined from the first of them")


if __name__ == "__main__":
    tyro.cli(main)
