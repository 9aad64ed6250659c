"""How often the network of motion is right about a grasp: whether what the gripper closes on goes up with it.

    python benchmarks/grasps.py --sets data/clumsy_droid data/motion data/droid

Needs sets of `vap-gym data generate`. It is told where things truly are shortly before the gripper closes, and what
shape they have; a thing is lifted that rises as far as `train.contacts.LIFTED_M`.
"""

from __future__ import annotations

from pathlib import Path

import torch
import tyro

from vap_gym.assets import weights_dir
from vap_gym.cards import load_robot
from vap_gym.evaluate.report import stamp, table
from vap_gym.train.contacts import LIFTED_M, RAISED_FRAMES
from vap_gym.train.motion import grasps_of, load_motions, rolled_out, standing_shape
from vap_gym.world.motion import ThingMotion


@torch.no_grad()
def main(sets: tuple[Path, ...], *, robot: str = "panda_robotiq", motion: Path | None = None) -> None:
    """Print for each set how many grasps are lifted, how many the network lifts, and in how many it is right.

    Args:
        sets: folders of data sets of that robot.
        robot: card of the robot.
        motion: folder of the network; none: the shipped one.
    """
    motion = motion or weights_dir() / "tiny" / "motion"
    model = ThingMotion.from_pretrained(motion, torch_dtype=torch.float32).eval().of(robot)
    rows = []
    for folder in sets:
        data = load_motions([folder], model, load_robot(robot))
        starts, lifted = [], []
        for found, is_lifted in zip(grasps_of(data), (True, False), strict=True):
            first = dict(reversed(found.tolist()))  # of each episode the first one
            starts += list(first.items())
            lifted += [is_lifted] * len(first)
        said = []
        for episode, frame in starts:
            place_m, turn = data.place_m[episode, frame], data.turn[episode, frame]
            shape = standing_shape(data.half_m[episode], data.is_round[episode], turn)
            grip = data.grip[episode, frame : frame + 10 + RAISED_FRAMES // data.substeps]
            given = (place_m.isfinite().all(-1), place_m.nan_to_num(), shape, grip)
            states = [state for state, _ in rolled_out(model, *(x[None] for x in given), substeps=data.substeps)]
            rise = torch.stack([state.place_m[0, :, 2] for state in states]) - place_m[:, 2]
            said.append(bool((rise.nan_to_num() > LIFTED_M).any()))
        true, told = torch.tensor(lifted, dtype=torch.float32), torch.tensor(said, dtype=torch.float32)
        figures = (true.mean(), told.mean(), (true == told).float().mean())
        rows.append([str(folder), str(len(starts)), *(f"{100 * float(x):.0f} %" for x in figures)])
    print(table(["set", "grasps", "lifted", "said to be", "right"], rows))
    print(f"\n{stamp('cpu', network=f'{motion.parent.name}/{motion.name}')}")


if __name__ == "__main__":
    tyro.cli(main)
