"""What posing makes of held-out episodes by itself: robot and things moved, nothing corrected by the dynamics.

Prints how well the card's surface and the mask cover the robot, and the PSNR of first pictures with the robot posed
anew: with the things at rest, and where the motion network says they are. Every seventh of the 256 episodes:
`python benchmarks/posed_picture.py`
"""

from pathlib import Path

import numpy as np
import torch

from vap_gym.evaluate.clips import played
from vap_gym.evaluate.fidelity_rollout import begun, subject
from vap_gym.evaluate.heldout import MAIN_KINDS, list_path, load_heldout
from vap_gym.metrics import psnr_per_frame
from vap_gym.sim.scene import LABELS
from vap_gym.world.appearance import first_sight
from vap_gym.world.codec import to_frames, to_pictures
from vap_gym.world.model import WorldModel
from vap_gym.world.posing import posed_picture
from vap_gym.world.surfels import seen_points

ENV, ROBOT, EVERY, STEPS = "VAP-DROID-v0", "panda_robotiq", 7, (1, 4, 8, 16, 24)


def main() -> None:
    """Play the episodes and print the figures."""
    root = Path(__file__).resolve().parent
    items = [item for item in load_heldout(list_path(ENV, root)) if item.kind in MAIN_KINDS][::EVERY]
    clips = played(items, robot=ROBOT, cache=root.parent / "runs" / "posed_picture.npz")
    imagination, state = begun(subject(ENV, "tiny"), clips)
    moved = imagination.follow(state, torch.from_numpy(clips.actions[:, : clips.steps]).float()).views
    views = torch.cat([state["world_first_views"][:, None], moved], 1)
    pictures = to_pictures(torch.from_numpy(clips.frames)).unflatten(0, clips.frames.shape[:2])
    world = imagination.world
    assert isinstance(world, WorldModel)
    appearance, motion = world.appearance, world.motion
    labels = torch.from_numpy(clips.labels)[:, ::6].flatten(0, 1)
    seen = seen_points(appearance.surfels, views[:, ::6].flatten(0, 1), (labels.shape[1], labels.shape[2]))
    mask = appearance.mask_logits(pictures[:, ::6].flatten(0, 1), seen)[:, 0] > 0
    robot = (labels == LABELS.index("arm")) | (labels == LABELS.index("gripper"))
    free = labels <= LABELS.index("goal")  # an object may stand before the robot
    surface = _iou((seen.point >= 0) & free, robot & free)
    print(
        f"{len(clips)} episodes. IoU with the robot: of its surface {surface:.3f}, of the mask {_iou(mask, robot):.3f}"
    )
    with torch.no_grad():
        sight = first_sight(appearance, world.things, pictures[:, 0], views[:, 0])
        start = things = motion.begin(sight.there, sight.things_m, sight.shape, motion.grip(views[:, 0]))
        means = []
        for step in range(1, clips.frames.shape[1]):
            things, _ = motion(things, motion.grip(views[:, step]))
            told = ((x.place_m, x.turn) for x in (things, start))
            made = [to_frames(posed_picture(appearance, sight, *x, views[:, step]).picture).numpy() for x in told]
            made.append(clips.frames[:, 0])
            means.append([psnr_per_frame(x, clips.frames[:, step]).mean() for x in made])
            if step in STEPS:
                print(f"step {step:2d}: {_told(means[-1])}")
    print(f"mean of all steps: {_told(list(np.mean(means, axis=0)))}")


def _told(decibels: list[float]) -> str:
    moved, rests, frozen = decibels
    return f"things moved {moved:.1f} dB, at rest {rests:.1f} dB, frozen {frozen:.1f} dB"


def _iou(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one & other).sum() / (one | other).sum())


if __name__ == "__main__":
    main()
