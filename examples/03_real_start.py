"""Begin at a real photograph: a DROID frame, its camera and the robot's joints; follow the logged motion.

The shipped model has seen simulated pictures only, so expect poor ones: this shows how to begin with a camera and a
robot of your own, and where the model stands. Writes real | prompt | imagined. The prompts, which are computed and not
learned, should lie on the real gripper.

    python examples/03_real_start.py --droid ../shared/data/droid --episode newsetup_0012 --camera cam0
"""

from pathlib import Path

import gymnasium as gym
import tyro

import vap_gym  # noqa: F401 (registers the ids)
from vap_gym.env import VapEnv
from vap_gym.errors import VapError
from vap_gym.pictures import write_png
from vap_gym.real_start import follow, read_droid, strip

DROID = Path(__file__).resolve().parents[2] / "shared" / "data" / "droid"  # beside the repository


def main(
    droid: Path = DROID,
    episode: str = "newsetup_0012",
    camera: str = "cam0",
    first: int = 0,
    frames: int = 40,
    steps_per_frame: int = 2,
    out: Path = Path("out/real_start.png"),
) -> None:
    """Write the three-row strip.

    Args:
        droid: folder of the recordings: cameras.json, and per episode log.npz, episode.json and cam0.mp4.
        episode: which recording.
        camera: which of its cameras; cameras.json must have it calibrated for the episode.
        first: the frame to begin at.
        frames: how many to follow.
        steps_per_frame: control steps of 1/15 s between two frames. These recordings do not state their rate.
        out: the picture to write.
    """
    # 1. The recording: uint8 frames (T, 192, 320, 3), joints [rad], closedness (0 open .. 1 closed), the camera.
    try:
        recording = read_droid(droid, episode, camera, first=first, frames=frames)
    except VapError as error:
        raise SystemExit(str(error)) from error

    # 2. An env in which an action is the joints to go to. `judge=None`: there is no task here to score.
    env = gym.make("VAP-DROID-v0", action_mode="joint_position", judge=None).unwrapped
    assert isinstance(env, VapEnv)

    # 3. All that a start needs. The picture is cut to 3:2 about its centre and resized; the camera's figures follow.
    image, state, taken_by = (recording.reset_options()[key] for key in ("image", "state", "camera"))
    env.reset(seed=0, options={"image": image, "state": state, "camera": taken_by})

    # 4. Logs hold where the robot was, the env takes where it shall go, and a controller is in between that realises a
    #    fifth of a command per step. So each command is chosen such that the controller model passes through the log.
    followed = follow(env, recording, steps_per_frame=steps_per_frame)
    print(f"no joint was further than {followed.behind_rad:.3f} rad from the log")
    write_png(out, strip(followed, recording))
    print(f"{out}: {len(followed.real)} frames of {recording.name}, real | prompt | imagined")


if __name__ == "__main__":
    tyro.cli(main)
