"""How true the shipped model's frames are through views and for a gripper that it was never trained on.

For every env, and for DROID's with another gripper: starts of its own, each with smooth random actions on both sides,
imagination and oracle; every view is scored against what the oracle's camera sees. A frozen first frame stands beside.

    python benchmarks/other_robots.py --write     # docs/other_robots.md and docs/img/other_robots.png
"""

from __future__ import annotations

import platform
import subprocess
from datetime import date
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tyro

import vap_gym
from vap_gym.metrics import bootstrap_interval, psnr, st_iou
from vap_gym.pictures import sheet, write_png
from vap_gym.sim.experts import ScriptedPolicy
from vap_gym.sim.rollout import NominalRobot

VIEWS = ("front", "second", "wrist")
ROOT = Path(__file__).resolve().parent.parent
CARRIED = {
    "VAP-DROID-v0": ("push", "lift"),
    "VAP-RT1-v0": ("push", "lift", "knock_over"),
    "VAP-Bridge-v0": ("push", "lift"),
    "VAP-Hand-v0": ("push", "knock_over"),
}
UNSEEN = "panda_hand"  # the Panda with Franka's own gripper, of which the model has seen nothing
CASES = tuple((env_id, None) for env_id in CARRIED) + (("VAP-DROID-v0", UNSEEN),)
SMALL = {"VAP-RT1-v0": [0.05] * 3 + [0.12] * 3 + [0.5]}  # of RT-1's range, a step of which goes through the whole room


def play(env_id: str, robot: str | None, start: int, steps: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return what each view imagines, and what it truly sees: (T, H, W, 3) by name."""
    oracle: Any = gym.make(env_id.replace("-v0", "-Oracle-v0"), views=VIEWS[1:], task="any", robot=robot)
    envs = [oracle, gym.make(env_id, views=VIEWS[1:], task="any", judge=None, robot=robot)]
    clips: list[dict[str, list[np.ndarray]]] = [{view: [] for view in VIEWS} for _ in envs]
    space: Any = envs[0].action_space
    scale = np.array(SMALL.get(env_id, 0.5 * np.minimum(space.high, -space.low + (space.low == 0))))
    rng = np.random.default_rng(start)
    drift = np.zeros(7)
    for env, clip in zip(envs, clips, strict=True):  # imagination begins with what the oracle shows
        given = start if env is oracle else oracle.unwrapped.start
        observation, _ = env.reset(seed=0, options={"start": given})
        for view in VIEWS:
            clip[view].append(observation["pixels"][view])
    for _ in range(steps):
        drift = 0.8 * drift + 0.6 * rng.normal(0, 1, 7)
        action = np.clip(scale * drift, space.low, space.high).astype(np.float32)
        for env, clip in zip(envs, clips, strict=True):
            observation, *_ = env.step(action)
            for view in VIEWS:
                clip[view].append(observation["pixels"][view])
    for env in envs:
        env.close()
    true, imagined = ({view: np.stack(frames) for view, frames in clip.items()} for clip in clips)
    return imagined, true


def carried(
    env_id: str, task: str, seed: int, steps: int = 45, robot_name: str | None = None
) -> tuple[float, float] | None:
    """Play a scripted expert on both sides; return how far off (m) the imagined thing ends, how far the true one went.

    None where the thing was not found in the first picture, or did not move by 3 cm.
    """
    card = vap_gym.load_env(env_id)
    robot = vap_gym.load_robot(robot_name or card.robot)
    nominal = NominalRobot(robot)
    kwargs: dict[str, Any] = {"action_mode": "cartesian_velocity", "task": task, "robot": robot_name}
    imagined: Any = gym.make(env_id, judge=None, **kwargs).unwrapped
    oracle: Any = gym.make(env_id.replace("-v0", "-Oracle-v0"), **kwargs).unwrapped
    oracle.reset(seed=seed)
    imagined.reset(seed=seed, options={"start": oracle.start})
    scene = oracle.start.scene
    up_m = np.array([0.0, 0.0, robot.skeleton.drop_to_z_m])  # world models place things over the table
    first = oracle.truth.objects_m[scene.target].copy()
    state = imagined.state
    away = np.linalg.norm(state["world_thing_place_m"][0].double().numpy() + up_m - first, axis=-1)
    away[~state["world_thing_there"][0].numpy()] = np.inf
    which = int(away.argmin())
    if away[which] > 0.05:
        return None
    begun = imagined.state["world_thing_place_m"][0, which].double().numpy()
    policy = ScriptedPolicy(scene, "expert", seed, noise=0.0, controller=robot.controller)
    for _ in range(steps):
        action = policy(oracle.truth, nominal.tool(oracle.robot_state.to(torch.float64)))
        *_, info = oracle.step(action)
        imagined.step(action)
        if info["is_success"]:
            break
    went = oracle.truth.objects_m[scene.target] - first
    told = imagined.state["world_thing_place_m"][0, which].double().numpy() - begun
    if np.linalg.norm(went) < 0.03:
        return None
    return float(np.linalg.norm(told - went)), float(np.linalg.norm(went))


def carrying(episodes: int) -> list[str]:
    """Return the table of how far off things end that robots push, lift or knock over."""
    lines = [
        "| env | task | things | went, cm | ends off by, cm | as a share |",
        "|---|---|---|---|---|---|",
    ]
    for env_id, robot in CASES:
        for task in CARRIED[env_id]:
            tried = (carried(env_id, task, seed, robot_name=robot) for seed in range(100, 100 + episodes))
            found = [pair for pair in tried if pair is not None]
            off, went = np.array(found).reshape(-1, 2).T
            share = f"{100 * off.sum() / went.sum():.0f} %" if len(found) else ""
            told = f"{100 * went.mean():.1f} | {100 * off.mean():.1f}" if len(found) else " | "
            lines.append(f"| {named(env_id, robot)} | {task} | {len(found)} of {episodes} | {told} | {share} |")
            print(lines[-1], flush=True)
    return lines


def named(env_id: str, robot: str | None) -> str:
    """Return what a case is called in the tables."""
    return env_id if robot is None else f"{env_id}, `{robot}`"


def main(*, starts: int = 12, steps: int = 12, write: bool = False) -> None:
    """Score all envs and print the table.

    Args:
        starts: of every env.
        steps: actions of every start.
        write: also write docs/other_robots.md and its picture.
    """
    lines = [
        "| env | view | frozen, dB | imagined, dB | ST-IoU frozen | ST-IoU imagined |",
        "|---|---|---|---|---|---|",
    ]
    rows, labels = [], []
    for env_id, robot in CASES:
        scores: dict[str, list[list[float]]] = {view: [] for view in VIEWS}
        for start in range(starts):
            imagined, true = play(env_id, robot, start, steps)
            for view in VIEWS:
                frozen = np.repeat(true[view][:1], steps + 1, 0)
                pair = [(clip[1:], true[view][1:]) for clip in (frozen, imagined[view])]
                scores[view].append(
                    [*(psnr(a, b) for a, b in pair), *(st_iou(a, true[view]) for a in (frozen, imagined[view]))]
                )
            if start == 0:
                for name, clips in (("imagined", imagined), ("true", true)):
                    rows.append([clips[view][t] for view in VIEWS for t in (0, steps // 2, steps)])
                    labels.append(f"{robot or env_id.removeprefix('VAP-').removesuffix('-v0')}\n{name}")
        for view in VIEWS:
            table = np.array(scores[view])
            told = [str(bootstrap_interval(table[:, k])) for k in range(4)]
            lines.append(f"| {named(env_id, robot)} | {view} | {' | '.join(told)} |")
            print(lines[-1], flush=True)
    print("\n".join(lines))
    lines += [
        "",
        "Things that are moved by scripted experts, 45 steps at most; a frozen thing would be off by all it went:",
        "",
    ]
    lines += carrying(starts)
    if write:
        write_docs(lines, rows, labels, starts, steps)


def write_docs(lines: list[str], rows: list[Any], labels: list[str], starts: int, steps: int) -> None:
    """Write the page and the picture."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    head = (
        "# Other views, another gripper\n\n"
        "The shipped model was trained on the first view (`front`) of the four envs. The views `second` and `wrist`, "
        f"and the gripper of `{UNSEEN}`, it has never seen.\n\n"
        f"`python benchmarks/other_robots.py --write`: {starts} starts of every env, {steps} smooth random actions, "
        f"95 % intervals over starts. {date.today()}, commit {commit.strip()}, {platform.machine()}.\n\n"
    )
    foot = (
        "\nA robot that was not trained on is moved as its surface moves, in the pixels of the first picture; the "
        "table is seen anew where the camera moves; things move as if the gripper of the Panda with a Robotiq was in "
        "the place of its own, as wide open. What comes into the picture is made up.\n\n"
        "![Imagined and true](img/other_robots.png)\n"
    )
    (ROOT / "docs" / "other_robots.md").write_text(head + "\n".join(lines) + "\n" + foot, encoding="utf-8")
    columns = [f"{view}\nframe {t}" for view in VIEWS for t in (0, steps // 2, steps)]
    write_png(
        ROOT / "docs/img/other_robots.png",
        sheet(
            rows,
            scale=1.0,
            columns=columns,
            labels=labels,
            title="Three views of four envs, and a gripper never seen",
            note="Start 0 of each.",
        ),
    )


if __name__ == "__main__":
    tyro.cli(main)
