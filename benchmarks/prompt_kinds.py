"""What each kind of prompt costs, and how well skeleton, mesh and depth lie on each other and on the oracle's robot.

`python benchmarks/prompt_kinds.py` fills in the tables of docs/prompts.md and draws docs/img/prompt_kinds.png;
`--real ../shared/data/droid` draws out/prompt_kinds_real.png from a recording instead. One core, one thread.
"""

import argparse
import dataclasses
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy import ndimage

from vap_gym.cards import RobotCard, known_robots, load_robot
from vap_gym.data.video import read_video
from vap_gym.evaluate.report import filled, load_average, stamp, table, write
from vap_gym.geometry import Camera
from vap_gym.pictures import sheet
from vap_gym.prompts.kinds import Prompter, encode_depth
from vap_gym.prompts.mesh import Mesh, draw_depth
from vap_gym.prompts.raster import draw
from vap_gym.prompts.skeleton import Skeleton
from vap_gym.sim.layouts import draw_scene
from vap_gym.sim.scene import Scene

REPO = Path(__file__).resolve().parent.parent
SIZES, BATCHES, REPEATS = ((144, 96), (320, 192)), (16, 1), 60
KINDS = ("skeleton", "mesh", "depth")
PANDAS = ("panda_robotiq", "panda_hand")
SEEN_PX = 200  # of the robot, for a scene to count
CLEAR_M = 0.15  # between it and the camera: PyBullet leaves out triangles that cross its near plane
SHARE_OF_HEIGHT = 0.8  # of a robot in the pictures that are timed: more than in any data set, so the cost is no less


def views(card: RobotCard, size: tuple[int, int], count: int) -> tuple[torch.Tensor, torch.Tensor, Camera]:
    """The robot near its home pose, filling most of the picture, from all around."""
    rng = torch.Generator().manual_seed(0)
    mesh = Mesh(card)
    home = torch.tensor(card.home_q_rad)
    at = mesh.poses(home, torch.zeros(()))[mesh.link].double()
    vertices = (at[:, :3, :3] @ torch.from_numpy(mesh.vertices_m)[..., None])[..., 0] + at[:, :3, 3]
    middle, reach = (vertices.amin(0) + vertices.amax(0)) / 2, float((vertices.amax(0) - vertices.amin(0)).max())
    angle = 2 * torch.pi * torch.rand(count, generator=rng, dtype=torch.float64)
    fov = 0.9
    distance = reach / SHARE_OF_HEIGHT / (2 * np.tan(fov / 2)) + reach / 4
    eye = middle + distance * torch.stack([0.9 * angle.cos(), 0.9 * angle.sin(), torch.full((count,), 0.4)], -1)
    q = home + 0.05 * torch.randn(count, len(home), generator=rng)
    camera = Camera.look_at(eye, middle.expand(count, 3), vertical_fov_rad=fov, frame_size_px=size)
    return q, torch.rand(count, generator=rng), camera.to(torch.float32)


def fastest_ms(call: Callable[[], object]) -> float:
    """The shortest of many calls: what the code costs where nothing else runs."""
    call()
    taken = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
    return 1e3 * min(taken)


def cost_rows() -> list[list[str]]:
    """Milliseconds a prompt, forward kinematics included, for each robot, size and kind."""
    rows = []
    for name in known_robots():
        card = load_robot(name)
        for size in SIZES:
            prompters = [Prompter(card, kind, frame_size_px=size) for kind in KINDS]
            q, gripper, camera = views(card, size, max(BATCHES))
            cells = []
            for prompter in prompters:
                for batch in BATCHES:
                    some = q[:batch], gripper[:batch], camera.index(slice(0, batch))
                    cells.append(f"{fastest_ms(lambda p=prompter, s=some: p.draw(*s)) / batch:.2f}")  # type: ignore[misc]
            rows.append([name, f"{len(Mesh(card).faces):,}", f"{size[0]}×{size[1]}", *cells])
    return rows


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """IoU of two masks."""
    return float((one & other).sum() / (one | other).sum())


def alignment_row(name: str, scenes: int = 24) -> list[str]:
    """How the kinds lie on each other and on the oracle's label pictures, in scenes of random poses and cameras."""
    card = load_robot(name)
    card = dataclasses.replace(card, skeleton=dataclasses.replace(card.skeleton, drop_from=()))
    skeleton, mesh, rng = Skeleton(card), Mesh(card), np.random.default_rng(0)
    labelled, within, middle, offsets = [], [], [], []
    prompters = {kind: Prompter(card, kind, frame_size_px=SIZES[0]) for kind in KINDS}
    apart = 0
    with Scene(card) as scene:
        seeds = itertools.count()
        while len(labelled) < scenes:
            k = next(seeds)
            pose = np.array(card.home_q_rad) + rng.normal(0, 0.25, len(card.home_q_rad))
            closedness = float(rng.uniform())
            scene.reset(draw_scene(k, task="reach"), pose, closedness)
            reached = scene.truth()
            q, gripper = torch.from_numpy(reached.joints_rad).float()[None], torch.tensor([reached.closedness]).float()
            camera, labels = scene.camera, scene.render()[1]
            if np.isin(labels, (1, 2)).sum() < SEEN_PX:
                continue
            points = skeleton.at_joints(q, gripper)
            lit = draw(points, camera, skeleton)[0].max(-1) > 127
            depth = draw_depth(q, gripper, camera, mesh)
            if lit.sum() < SEEN_PX // 4 or depth[depth > 0].min() < CLEAR_M:
                continue  # only the base is in the picture, where no bone is; or the arm is in PyBullet's near plane
            drawn = {kind: p.draw(q, gripper, camera)[0].numpy().any(-1) for kind, p in prompters.items()}
            apart += int((drawn["mesh"] != drawn["depth"]).sum())
            free = labels < 4  # an object may stand before the robot
            truth = np.isin(labels, (1, 2)) & free
            labelled.append(overlap(drawn["mesh"] & free, truth))
            within.append(float((lit & ndimage.binary_dilation(drawn["mesh"], iterations=2)).sum() / lit.sum()))
            ends = [[skeleton.keypoint_names.index(end) for end in bone] for bone in skeleton.bones]
            line = torch.cat([torch.lerp(points[:, a], points[:, b], t) for a, b in ends for t in np.linspace(0, 1, 9)])
            column, row = camera.to(torch.float32).project(line)[0].floor().long().unbind(-1)
            seen = ((column >= 0) & (column < SIZES[0][0]) & (row >= 0) & (row < SIZES[0][1])).numpy()
            middle += list(ndimage.binary_dilation(drawn["mesh"])[row.numpy()[seen], column.numpy()[seen]])
            centres = [np.argwhere(x).mean(0) for x in (drawn["mesh"] & free, truth)]
            offsets.append(centres[0] - centres[1])
    drift = np.linalg.norm(np.mean(offsets, axis=0))
    return [
        name,
        str(apart),
        f"{np.mean(middle):.4f}",
        f"{np.mean(within):.3f}",
        f"{np.mean(labelled):.3f} ({np.min(labelled):.3f})",
        f"{drift:.2f}",
    ]


def laid_over(frame: np.ndarray, prompt: np.ndarray) -> np.ndarray:
    """A prompt over a frame that is dimmed."""
    lit = prompt.any(-1, keepdims=True)
    return np.where(lit, prompt, (0.55 * frame).astype(np.uint8))


def columns_of(
    frame: np.ndarray, card: RobotCard, q: torch.Tensor, gripper: torch.Tensor, camera: Camera
) -> list[np.ndarray]:
    """The frame, and each kind of prompt over it; depth is stretched over the picture's own range, to be seen."""
    height, width = frame.shape[:2]
    made = [Prompter(card, kind, frame_size_px=(width, height)).draw(q, gripper, camera).numpy() for kind in KINDS[:2]]
    depth = draw_depth(q, gripper, camera, Mesh(card), frame_size_px=(width, height))
    there = depth[depth > 0]
    code = encode_depth(depth, nearest_m=0.95 * float(there.min()), farthest_m=1.6 * float(there.max()))
    return [frame, *(laid_over(frame, x) for x in (*made, np.repeat(code[..., None], 3, -1)))]


def save_sheet(path: Path, rows: list[list[np.ndarray]], labels: list[str]) -> None:
    """Write a sheet."""
    picture = Image.fromarray(sheet(rows, columns=("frame", *KINDS), labels=labels))
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1024:.0f} KiB")


def oracle_picture() -> None:
    """Both Pandas in the oracle's scenes."""
    rows, size = [], (288, 192)
    eye, target = torch.tensor([[1.25, 0.75, 0.75], [0.35, 0.0, 0.32]], dtype=torch.float64)
    camera = Camera.look_at(eye, target, vertical_fov_rad=0.75, frame_size_px=size)
    for name, seed in zip(PANDAS, (1, 14)):
        card = load_robot(name)
        with Scene(card, frame_size_px=size) as scene:
            scene.reset(draw_scene(seed, task="reach"), np.array(card.home_q_rad), 0.3)
            truth = scene.truth()
            q, gripper = torch.from_numpy(truth.joints_rad).float(), torch.tensor(truth.closedness).float()
            rows.append(columns_of(scene.render(camera)[0], card, q, gripper, camera))
    save_sheet(REPO / "docs" / "img" / "prompt_kinds.png", rows, list(PANDAS))


def real_picture(droid: Path) -> None:
    """Three frames of a real recording with its fitted camera."""
    fitted, episode = json.loads((droid / "cameras.json").read_text())["cam0"], droid / "newsetup_0009"
    T_camera_base = torch.tensor(fitted["T_camera_from_base"], dtype=torch.float64)
    K = torch.tensor(fitted["K"], dtype=torch.float64)
    camera = Camera(K=K, T_world_camera=torch.linalg.inv(T_camera_base), frame_size_px=tuple(fitted["image_size_wh"]))
    frames, log, card = read_video(episode / "cam0.mp4"), np.load(episode / "log.npz"), load_robot("panda_robotiq")
    rows, picked = [], [0, len(frames) // 2, len(frames) - 1]
    for i in picked:
        q, closedness = log["joint_position"][i], log["gripper_position"][i]
        state = torch.from_numpy(np.asarray(q)).float(), torch.tensor(float(closedness))
        rows.append(columns_of(np.asarray(frames[i]), card, *state, camera))
    save_sheet(REPO / "out" / "prompt_kinds_real.png", rows, [f"frame {i}" for i in picked])


def main() -> None:
    """Measure, and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--real", type=Path, help="folder of DROID recordings with cameras.json: draw these only")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.real:
        real_picture(given.real)
        return
    busy = load_average()
    costs = table(
        ["robot", "triangles", "picture", *(f"{kind}, ms at batch {batch}" for kind in KINDS for batch in BATCHES)],
        cost_rows(),
    )
    aligned = table(
        ["robot", "mesh ≠ depth, px", "bones' middle lines in mesh (+1 px)", "skeleton's pixels in mesh (+2 px)",
         "IoU of mesh and oracle's labels (least)",
         "mean offset, px"],
        [alignment_row(name) for name in PANDAS],
    )  # fmt: skip
    told = f"{costs}\n\n{stamp(load_before=busy)}\n\n{aligned}"
    page = REPO / "docs" / "prompts.md"
    write(page, filled(page.read_text(encoding="utf-8"), "kinds", told))
    print(told)
    oracle_picture()


if __name__ == "__main__":
    main()
