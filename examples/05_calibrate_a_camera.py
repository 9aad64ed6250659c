"""Find where a camera stands: from a few clicks on the robot's finger ends, or with no click from its moving outline.

A prompt is only as right as the camera it is drawn with. Every camera here is fitted, judged by clicks that it was not
fitted to, and shown. Needs a folder laid out as droid/ of the recordings, with finger_clicks.json in it.

    python examples/05_calibrate_a_camera.py --droid ../shared/data/droid --camera cam0
"""

import json
from pathlib import Path

import numpy as np
import tyro

from vap_gym.cards import load_robot
from vap_gym.commands.calibrate import read_clip
from vap_gym.photo import read_camera
from vap_gym.pictures import write_png
from vap_gym.recover.calibrate import camera_apart, fit_camera, write_cameras
from vap_gym.recover.calibrate_align import align_camera
from vap_gym.recover.calibrate_clicks import located, read_clicks, read_frames

DROID = Path(__file__).resolve().parents[2] / "shared" / "data" / "droid"  # beside the repository


def main(droid: Path = DROID, camera: str = "cam0", frames: int = 36, out: Path = Path("out/calibration")) -> None:
    """Fit a camera from clicks, refine it without, and write cameras.json and two pictures.

    Args:
        droid: folder of the recordings: finger_clicks.json, cameras.json (for K), and per episode log.npz and mp4.
        camera: which camera.
        frames: to lay outlines on, of all episodes together.
        out: folder to write to.
    """
    # 1. Clicks, and where the clicked points were in the base frame: (N, 2) px and (N, 3) m, by forward kinematics.
    robot = load_robot("panda_robotiq")
    clicks = located(read_clicks(droid / "finger_clicks.json", robot), camera, droid, robot)
    lens = read_camera(json.loads((droid / "cameras.json").read_text())[camera])  # only its K and its size are used

    # 2. The fit needs no starting guess, and says how sure it is. Wrong clicks count little.
    fitted = fit_camera(clicks.points_base_m, clicks.pixels, K=lens.K.numpy(), frame_size_px=lens.frame_size_px)
    print(f"by clicks: {fitted.summary()}")
    first = clicks.clicks[0]
    rows = [i for i, click in enumerate(clicks.clicks) if (click.episode, click.frame) == (first.episode, first.frame)]
    frame = read_frames(droid, first.episode, camera, [first.frame])[0]
    write_png(out / "clicks.png", fitted.picture(frame, rows))

    # 3. With no click: the rendered robot's outline is laid on the borders of what moves. It starts from a rough camera
    #    (here the one above) and finds, too, that the gripper's mount is longer than the robot's card says: fingers
    #    that always point down cannot tell that from a camera that stands higher.
    clips = [
        read_clip(droid, episode, camera, most=max(1, frames // len(clicks.episodes))) for episode in clicks.episodes
    ]
    aligned = align_camera(clips, robot, fitted.camera)
    print(f"by outlines: {aligned.summary()}")
    write_png(out / "outlines.png", aligned.picture(clips))

    # 4. Clicks on a gripper that is as long as found: do the two ways agree?
    points = clicks.points_base_m + aligned.tool_shift_m * clicks.tool_axis_base
    again = fit_camera(points, clicks.pixels, K=lens.K.numpy(), frame_size_px=lens.frame_size_px)
    apart_m, apart_deg = camera_apart(again.camera, aligned.camera)
    print(
        f"clicks with that tool: median {again.median_px:.2f} px, {1e3 * apart_m:.0f} mm and {apart_deg:.1f} deg apart"
    )
    seen = aligned.camera.project(aligned.camera.K.new_tensor(points))[0].numpy()
    error_px = np.linalg.norm(seen - clicks.pixels, axis=-1)
    print(f"the aligned camera puts finger ends {np.median(error_px):.2f} px (median) from the clicks it never saw")

    write_cameras(out / "cameras.json", {camera: fitted.table(method="clicks", valid_for_episodes=clicks.episodes)})
    print(f"{out}: cameras.json, clicks.png, outlines.png")


if __name__ == "__main__":
    tyro.cli(main)
