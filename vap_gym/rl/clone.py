"""Behaviour cloning: an agent that does what experts did, from a few recorded episodes: something to begin with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Float

from vap_gym.cards import load_env, load_robot
from vap_gym.data import EpisodeSet
from vap_gym.errors import CheckpointError, VapError
from vap_gym.policies.seen import FEATURES, Seen, answer_size, answers_of, checked_task, features
from vap_gym.policies.things import AgentCard, tool_and_yaw
from vap_gym.rig import Rig
from vap_gym.sim.spec import SceneSpec

Array = np.ndarray
NET = {"pi": [128, 128], "vf": [128, 128]}
FIRST_LOG_STD = -0.7  # of exploration: half of the fastest
COLUMNS = (
    "action", "objects_m", "tool_m", "nominal.joint_position", "nominal.gripper_position", "next.success"
)  # fmt: skip


def clone_agent(
    data: str | Path,
    task: str,
    out: str | Path,
    *,
    episodes: int = 12,
    hold: int = 2,
    epochs: int = 300,
    seed: int = 0,
    card: str = "VAP-DROID-v0",
) -> dict[str, Any]:
    """Clone the experts of recorded episodes and write an agent (agent.json, policy.pt); fewer episodes, worse agents.

    It is an actor-critic of SB3, seen by the same numbers as agents in `ThingVectorEnv`, so that PPO can go on with it.
    The episodes are the first of the task in which the expert solved it, up to that moment.

    Returns:
        how many decisions were learned from, and how far the answers are off (root mean square).

    Raises:
        VapError: too few such episodes; CheckpointError: there is an agent in `out` already.
    """
    from stable_baselines3.ppo import MlpPolicy

    folder = Path(out)
    if (folder / "agent.json").exists():
        raise CheckpointError(f"'{out}' holds an agent already. Choose another folder.")
    robot = load_robot(load_env(card).robot)
    rig = Rig(robot, action_mode="cartesian_velocity", frame_size_px=(144, 96))
    shown, answers = demonstrations(data, task, episodes=episodes, hold=hold, rig=rig)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        policy = MlpPolicy(
            spaces.Box(-20.0, 20.0, (FEATURES,), np.float32),
            spaces.Box(-1.0, 1.0, (answer_size(task),), np.float32),
            lambda _: 1e-3,
            net_arch=NET,
            log_std_init=FIRST_LOG_STD,
        )
        off = fit(policy, shown, answers, epochs=epochs, seed=seed)
    folder.mkdir(parents=True, exist_ok=True)
    AgentCard(task=task, algorithm="clone", card=card, hold=hold, steps=len(shown)).save(folder, policy)
    return {"decisions": len(shown), "off": off, "episodes": episodes, "out": str(folder)}


def fit(
    policy: Any, shown: Float[Array, "n F"], answers: Float[Array, "n a"], *, epochs: int, seed: int, batch: int = 128
) -> float:
    """Train a policy's mean answers by mean squared error; return the root of it after the last epoch."""
    x, y = torch.from_numpy(shown), torch.from_numpy(answers)
    rng = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-3, weight_decay=1e-5)
    policy.set_training_mode(True)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=rng).split(batch):
            mean = policy.get_distribution(x[rows]).distribution.mean
            loss = (mean - y[rows]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    policy.set_training_mode(False)
    with torch.no_grad():
        mean = policy.get_distribution(x).distribution.mean
    return float((mean - y).square().mean().sqrt())


def demonstrations(
    data: str | Path, task: str, *, episodes: int, hold: int, rig: Rig
) -> tuple[Float[Array, "n F"], Float[Array, "n a"]]:
    """Return what agents would have been shown in experts' episodes, and what they would have had to answer: the mean
    of the `hold` actions that follow."""
    checked_task(task)
    found = EpisodeSet(data)
    missing = [name for name in COLUMNS if name not in found.features.columns]
    if missing:
        raise VapError(
            f"'{data}' must be recordings of the simulator, but lacks {', '.join(missing)}. Record some: "
            "vap-gym data generate FOLDER --no-pictures."
        )
    shown, answers, used = [], [], 0
    for i in range(len(found)):
        info = found.info(i)
        if used == episodes:
            break
        if info.get("behaviour") != "expert" or info.get("skill") != task or not info.get("success"):
            continue
        used += 1
        columns = found.read(i, views=(), labels=(), columns=COLUMNS).columns
        x, y = _shown(SceneSpec.from_json(json.dumps(info["scene"])), columns, task, hold, rig)
        shown.append(x)
        answers.append(y)
    if used < episodes or not shown:
        raise VapError(
            f"{episodes} episodes in which an expert solves '{task}' are needed, got {used} in '{data}'. Record more "
            "(two in five are experts', and each task has its share), or ask for fewer."
        )
    return np.concatenate(shown), np.concatenate(answers)


def _shown(
    scene: SceneSpec, columns: Any, task: str, hold: int, rig: Rig
) -> tuple[Float[Array, "n F"], Float[Array, "n a"]]:
    """One episode up to its success, a decision at every step."""
    solved = int(np.flatnonzero(columns["next.success"])[0])
    count = max(1, min(solved, len(columns["action"]) - hold))
    now = np.arange(count)
    before = np.maximum(now - hold, 0)
    q = torch.from_numpy(columns["nominal.joint_position"][:count].astype(np.float32))
    closedness = columns["nominal.gripper_position"][:count, 0].astype(np.float64)
    tool_m, yaw = tool_and_yaw(rig, rig.controller.start(q, torch.from_numpy(closedness.astype(np.float32))))
    item = scene.target_object
    seen = Seen(
        tool_m=tool_m,
        before_m=tool_m[before],
        closedness=closedness,
        yaw_rad=yaw,
        object_m=columns["objects_m"][:count, scene.target].astype(np.float64),
        size_m=np.full(count, float(np.mean(item.half_extents_m[:2]))),
        goal_m=np.tile(scene.goal_xy_m, (count, 1)),
        table_z_m=np.full(count, scene.table_z_m),
    )
    mean = np.mean([columns["action"][now + k] for k in range(hold)], 0).astype(np.float64)
    return features(seen, task), answers_of(mean, seen, task)
