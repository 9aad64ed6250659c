"""What kinematics alone makes of held-out episodes: how well bones cover the robot, and the posed picture's PSNR.

Prints the two figures of docs/log.md that need no weights. Every seventh of the 256 episodes:
`python benchmarks/without_network.py`
"""

from pathlib import Path

import numpy as np
import torch

from vap_gym.evaluate.clips import played
from vap_gym.evaluate.fidelity import MAIN_KINDS, prompts_of
from vap_gym.evaluate.heldout import load_heldout
from vap_gym.metrics import psnr_per_frame
from vap_gym.sim.scene import LABELS
from vap_gym.world.articulated import background_plate, posed_picture, robot_cover
from vap_gym.world.codec import to_frames, to_pictures

ROBOT, EVERY, STEPS = "panda_robotiq", 7, (1, 4, 8, 16, 24)


def main() -> None:
    """Play the episodes and print the figures."""
    root = Path(__file__).resolve().parent
    items = [item for item in load_heldout(root / "heldout.toml") if item.kind in MAIN_KINDS][::EVERY]
    clips = played(items, robot=ROBOT, cache=root.parent / "runs" / "without_network.npz")
    bones, pictures = torch.from_numpy(prompts_of(clips, ROBOT).bones), torch.from_numpy(clips.frames)
    labels = torch.from_numpy(clips.labels)[:, ::6].flatten(0, 1)
    on_bones = robot_cover(bones[:, ::6].flatten(0, 1), labels.shape[1:], 1.0, 0.0)[:, 0] > 0.5
    robot = (labels == LABELS.index("arm")) | (labels == LABELS.index("gripper"))
    seen = labels < LABELS.index("goal") + 1  # an object may stand before the robot
    shared, either = (on_bones & robot & seen).sum(), ((on_bones | robot) & seen).sum()
    print(f"{len(clips)} episodes. IoU of bones and robot, its fixed base counted as missed: {shared / either:.3f}")
    first = to_pictures(pictures[:, 0])
    plate = background_plate(first, bones[:, 0])
    for step in STEPS:
        posed = to_frames(posed_picture(plate, first, bones[:, step], bones[:, 0])).numpy()
        scores = [psnr_per_frame(made, clips.frames[:, step]).mean() for made in (posed, clips.frames[:, 0])]
        print(f"step {step:2d}: posed {scores[0]:.1f} dB, frozen {scores[1]:.1f} dB")
    assert np.isfinite(scores).all()


if __name__ == "__main__":
    main()
