"""What kinematics and the robot's looks make of held-out episodes alone: no dynamics, nothing imagined.

Prints how well the card's surface and the mask cover the robot, and the PSNR of first pictures with the robot posed
anew. Every seventh of the 256 episodes: `python benchmarks/posed_picture.py`
"""

from pathlib import Path

import numpy as np
import torch

from vap_gym.evaluate.clips import played
from vap_gym.evaluate.fidelity import MAIN_KINDS, prompts_of
from vap_gym.evaluate.heldout import load_heldout
from vap_gym.metrics import psnr_per_frame
from vap_gym.sim.scene import LABELS
from vap_gym.world.appearance import first_sight, posed_picture
from vap_gym.world.codec import to_frames, to_pictures
from vap_gym.world.model import WorldModel
from vap_gym.world.surfels import seen_points

ROBOT, EVERY, STEPS = "panda_robotiq", 7, (1, 4, 8, 16, 24)


def main() -> None:
    """Play the episodes and print the figures."""
    root = Path(__file__).resolve().parent
    items = [item for item in load_heldout(root / "heldout.toml") if item.kind in MAIN_KINDS][::EVERY]
    clips = played(items, robot=ROBOT, cache=root.parent / "runs" / "posed_picture.npz")
    views = torch.from_numpy(prompts_of(clips, ROBOT).views)
    pictures = to_pictures(torch.from_numpy(clips.frames)).unflatten(0, clips.frames.shape[:2])
    appearance = WorldModel.from_pretrained("tiny").appearance
    labels = torch.from_numpy(clips.labels)[:, ::6].flatten(0, 1)
    seen = seen_points(appearance.surfels, views[:, ::6].flatten(0, 1), (labels.shape[1], labels.shape[2]))
    mask = appearance.mask_logits(pictures[:, ::6].flatten(0, 1), seen)[:, 0] > 0
    robot = (labels == LABELS.index("arm")) | (labels == LABELS.index("gripper"))
    free = labels <= LABELS.index("goal")  # an object may stand before the robot
    surface = _iou((seen.point >= 0) & free, robot & free)
    print(
        f"{len(clips)} episodes. IoU with the robot: of its surface {surface:.3f}, of the mask {_iou(mask, robot):.3f}"
    )
    sight = first_sight(appearance, pictures[:, 0], views[:, 0])
    still = torch.zeros(len(clips), 2, labels.shape[1] // 4, labels.shape[2] // 4)
    means = []
    for step in range(1, clips.frames.shape[1]):
        posed = to_frames(posed_picture(appearance, sight, still, views[:, step])).numpy()
        means.append([psnr_per_frame(made, clips.frames[:, step]).mean() for made in (posed, clips.frames[:, 0])])
        if step in STEPS:
            print(f"step {step:2d}: posed {means[-1][0]:.1f} dB, frozen {means[-1][1]:.1f} dB")
    mean = np.mean(means, axis=0)
    print(f"mean of all steps: posed {mean[0]:.1f} dB, frozen {mean[1]:.1f} dB")


def _iou(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one & other).sum() / (one | other).sum())


if __name__ == "__main__":
    main()
