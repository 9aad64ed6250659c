"""What the robot's bones and looks alone make of held-out episodes: no dynamics, nothing imagined.

Prints how well the card's bones cover the robot, how well the mask finds it, and the PSNR of first pictures with the
robot posed anew. Every seventh of the 256 episodes: `python benchmarks/posed_picture.py`
"""

from pathlib import Path

import numpy as np
import torch

from vap_gym.evaluate.clips import played
from vap_gym.evaluate.fidelity import MAIN_KINDS, prompts_of
from vap_gym.evaluate.heldout import load_heldout
from vap_gym.metrics import psnr_per_frame
from vap_gym.sim.scene import LABELS
from vap_gym.world.appearance import NEAR_PX, first_sight, posed_picture
from vap_gym.world.articulated import robot_cover
from vap_gym.world.codec import to_frames, to_pictures
from vap_gym.world.model import WorldModel

ROBOT, EVERY, STEPS = "panda_robotiq", 7, (1, 4, 8, 16, 24)


def main() -> None:
    """Play the episodes and print the figures."""
    root = Path(__file__).resolve().parent
    items = [item for item in load_heldout(root / "heldout.toml") if item.kind in MAIN_KINDS][::EVERY]
    clips = played(items, robot=ROBOT, cache=root.parent / "runs" / "posed_picture.npz")
    bones, pictures = torch.from_numpy(prompts_of(clips, ROBOT).bones), torch.from_numpy(clips.frames)
    labels = torch.from_numpy(clips.labels)[:, ::6].flatten(0, 1)
    some_bones, size = bones[:, ::6].flatten(0, 1), (labels.shape[1], labels.shape[2])
    on_bones = robot_cover(some_bones, size, 1.0, 0.0)[:, 0] > 0.5
    robot = (labels == LABELS.index("arm")) | (labels == LABELS.index("gripper"))
    seen = labels <= LABELS.index("goal")  # an object may stand before the robot
    overlap = _iou(on_bones & seen, robot & seen)
    print(f"{len(clips)} episodes. IoU of bones and robot, its fixed base counted as missed: {overlap:.3f}")
    appearance = WorldModel.from_pretrained("tiny").appearance
    mask = appearance.mask(to_pictures(pictures[:, ::6].flatten(0, 1)), some_bones)[:, 0] > 0.5
    near = robot_cover(some_bones, size, 1.0, NEAR_PX)[:, 0] > 0.5
    print(f"IoU of mask and robot, its fixed base apart: {_iou(mask, robot & near):.3f}")
    sight = first_sight(appearance, to_pictures(pictures[:, 0]), bones[:, 0])
    still = torch.zeros(len(clips), 2, size[0] // 4, size[1] // 4)
    means = []
    for step in range(1, pictures.shape[1]):
        posed = to_frames(posed_picture(appearance, sight, still, bones[:, step])).numpy()
        scores = [psnr_per_frame(made, clips.frames[:, step]).mean() for made in (posed, clips.frames[:, 0])]
        means.append(scores)
        if step in STEPS:
            print(f"step {step:2d}: posed {scores[0]:.1f} dB, frozen {scores[1]:.1f} dB")
    mean = np.mean(means, axis=0)
    print(f"mean of all steps: posed {mean[0]:.1f} dB, frozen {mean[1]:.1f} dB")


def _iou(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one & other).sum() / (one | other).sum())


if __name__ == "__main__":
    main()
