"""Scripted episodes to show: starts in which the task is in view, played by an expert, with the oracle or without."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from tqdm import tqdm

from vap_gym.cards import RobotCard
from vap_gym.env import VapEnv
from vap_gym.oracle_env import OracleEnv
from vap_gym.sim.experts import ScriptedPolicy
from vap_gym.sim.rollout import NominalRobot
from vap_gym.sim.scene import Truth
from vap_gym.sim.spec import COLOURS, GOAL_COLOUR, PALETTE, SceneSpec
from vap_gym.starts import Start, StartSet
from vap_gym.twin import Twin

TRIES = 12  # starts in which the expert may try to solve its task in time; the best is taken
SEEN_SHARE = 0.6  # of an episode's frames, from which on the arm does not stand in the way
SAME_COLOUR = 0.9  # cosine between two colours without their grey, from which on a pixel counts as a thing's
Frames = UInt8[np.ndarray, "T H W 3"]
Actions = Float[np.ndarray, "T A"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Clip:
    """One episode, T + 1 frames of T actions."""

    instruction: str
    prompts: Frames
    imagined: Frames
    oracle: Frames | None  # None: played without a simulator
    gripper_px: tuple[float, ...]  # from where the judge sees the imagined gripper to the true one; per step


def play_beside_oracle(
    env_id: str, shipped: StartSet, order: Sequence[int], *, task: str, seed: int, world_model: str, steps: int
) -> Clip:
    """Imagine an episode of a task with the simulator beside it, from a start in which the expert solves the task.

    Args:
        order: numbers of starts, those to be tried first in front.

    Raises:
        MissingDependencyError: pybullet is not installed.
    """
    twin = Twin(env_id, world_model=world_model)
    best: tuple[float, Start, Actions] | None = None
    numbers = candidates(shipped, order, task)[:TRIES]
    for i in tqdm(numbers, desc=f"looking for an episode: {task}", unit="start", leave=False):
        start = shipped[i]
        actions, solved, seen = expert(twin.oracle, start, robot=twin.imagined.stage.rig.robot, seed=seed, steps=steps)
        if best is None or solved + seen > best[0]:
            best = (solved + seen, start, actions)
        if solved and seen >= SEEN_SHARE:
            break
    assert best is not None
    _, start, actions = best
    both = [twin.reset(seed=seed, options={"start": start})]
    both += [twin.step(action) for action in watched(actions, start)]
    twin.close()
    return Clip(
        instruction=start.instruction,
        prompts=np.stack([step.imagined_info["prompt"] for step in both]),
        imagined=np.stack([np.asarray(step.imagined) for step in both]),
        oracle=np.stack([np.asarray(step.oracle) for step in both]),
        gripper_px=tuple(px for step in both[1:] if (px := step.divergence.gripper_px) is not None),
    )


def play_alone(
    env_id: str, shipped: StartSet, order: Sequence[int], *, task: str, seed: int, world_model: str, steps: int
) -> Clip:
    """Imagine an episode of a task without a simulator: the expert takes the objects to stay where they were."""
    env = VapEnv(env_id, world_model=world_model)
    start = shipped[candidates(shipped, order, task)[0]]
    frame, info = env.reset(seed=seed, options={"start": start})
    imagined, prompts = [np.asarray(frame)], [info["prompt"]]
    for action in watched(blind_expert(start, robot=env.stage.rig.robot, seed=seed, steps=steps), start):
        frame, _, _, _, info = env.step(action)
        imagined.append(np.asarray(frame))
        prompts.append(info["prompt"])
    return Clip(
        instruction=start.instruction,
        prompts=np.stack(prompts),
        imagined=np.stack(imagined),
        oracle=None,
        gripper_px=(),
    )


def watched(actions: Actions, start: Start) -> Iterator[Float[np.ndarray, " A"]]:
    """Yield the actions with a progress bar."""
    yield from tqdm(actions, desc=f"imagining: {start.instruction}", unit="step")


def expert(oracle: OracleEnv, start: Start, *, robot: RobotCard, seed: int, steps: int) -> tuple[Actions, bool, float]:
    """Play the scripted expert in the simulator.

    Returns:
        its actions, whether it solved the task, and the share of frames in which the task's object is seen.
    """
    oracle.reset(seed=seed, options={"start": start})
    assert start.scene is not None
    target, colour = start.scene.target, PALETTE[start.scene.target_object.colour]
    nominal = NominalRobot(robot)
    policy = ScriptedPolicy(start.scene, "expert", seed, noise=0.0)
    actions, solved, seen = [], False, 0
    for _ in range(steps):
        state = oracle.robot_state.to(torch.float64)
        actions.append(policy(oracle.truth, nominal.tool(state)))
        frame, _, _, _, info = oracle.step(actions[-1])
        assert isinstance(frame, np.ndarray)
        solved |= bool(info["is_success"])
        uv_px, within = in_frame(start, oracle.truth.objects_m[target][None])
        seen += bool(within[0]) and is_coloured(frame, uv_px[0], colour)
    return np.stack(actions), solved, seen / steps


def blind_expert(start: Start, *, robot: RobotCard, seed: int, steps: int) -> Actions:
    """Return what the scripted expert does where nobody can tell it how the objects move."""
    assert start.scene is not None
    nominal = NominalRobot(robot)
    controller = nominal.controller
    state = controller.start(torch.tensor(start.q_rad)[None], torch.tensor([start.closedness], dtype=torch.float64))
    policy = ScriptedPolicy(start.scene, "expert", seed, noise=0.0)
    truth = resting_truth(start.scene, nominal.tip(state), nominal.tool_m(state))
    actions = []
    for _ in range(steps):
        actions.append(policy(truth, nominal.tool(state)))
        state, _ = controller.step(state, torch.from_numpy(actions[-1])[None])
    return np.stack(actions)


def resting_truth(scene: SceneSpec, tip: Float[np.ndarray, "4 4"], tool_m: Float[np.ndarray, " 3"]) -> Truth:
    """Return where things are before anything moved, from the scene's specification alone."""
    objects_m, yaw_rad = np.full((len(COLOURS), 3), np.nan), np.full(len(COLOURS), np.nan)
    for item in scene.objects:
        objects_m[item.index], yaw_rad[item.index] = (*item.xy_m, item.half_extents_m[2]), item.yaw_rad
    return Truth(
        joints_rad=np.zeros(7), closedness=scene.start_closedness, tip=tip, tool_m=tool_m, objects_m=objects_m,
        objects_xyzw=np.full((len(COLOURS), 4), np.nan), objects_yaw_rad=yaw_rad, touching=np.zeros(len(COLOURS), bool),
        handle_m=np.full(3, np.nan),
    )  # fmt: skip


# --- which starts ---


def candidates(shipped: StartSet, order: Sequence[int], task: str) -> list[int]:
    """Return the starts of a task in the given order, those that show it in front."""
    numbers = [i for i in order if i in shipped.of_task(task)] or list(order)
    return sorted(numbers, key=lambda i: not shows_task(shipped[i]))


def shows_task(start: Start) -> bool:
    """Whether gripper, object and goal are within the first picture, object and goal not hidden, and from ahead."""
    scene = start.scene
    if scene is None or scene.camera.eye_m[0] < scene.start_tool_m[0]:  # from behind, the arm stands in the way
        return False
    item = scene.target_object
    places = [scene.start_tool_m, (*item.xy_m, item.half_extents_m[2])]
    colours = [PALETTE[item.colour]]
    if scene.task == "push":
        places.append((*scene.goal_xy_m, 0.0))
        colours.append(GOAL_COLOUR)
    uv_px, within = in_frame(start, np.array(places))
    return bool(within.all()) and all(
        is_coloured(start.frame, uv, colour) for uv, colour in zip(uv_px[1:], colours, strict=True)
    )


def can_go_anywhere(start: Start, *, reach_m: float = 0.16, least_px: float = 14.0) -> bool:
    """Whether an open gripper can move `reach_m` forward, back, left and up in the picture, and is seen to do so."""
    scene = start.scene
    if scene is None or scene.start_closedness > 0.1:
        return False
    tool_m = np.array(scene.start_tool_m)
    moved_m = tool_m + reach_m * np.array([[0, 0, 0], [1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, 0, 1]])
    uv_px, within = in_frame(start, moved_m)
    reachable = bool((moved_m[:, 0] > 0.28).all() and (moved_m[:, 0] < 0.7).all())
    return reachable and bool(within.all() and (np.linalg.norm(uv_px[1:] - uv_px[0], axis=-1) > least_px).all())


def in_frame(
    start: Start, places_m: Float[np.ndarray, "P 3"], *, margin_px: float = 8.0
) -> tuple[Float[np.ndarray, "P 2"], np.ndarray]:
    """Return where places are in the start's picture, and whether each is within it."""
    uv, depth_m = start.camera.to(torch.float64).project(torch.from_numpy(places_m))
    uv_px = uv.numpy()
    size_px = np.array(start.camera.frame_size_px)
    within = ((uv_px > margin_px) & (uv_px < size_px - margin_px)).all(-1) & (depth_m.numpy() > 0)
    return uv_px, within


def is_coloured(frame: UInt8[np.ndarray, "H W 3"], uv_px: Float[np.ndarray, " 2"], colour: Sequence[float]) -> bool:
    """Whether the picture has about this hue there."""
    u, v = (int(x) for x in uv_px)
    seen = frame[v - 1 : v + 2, u - 1 : u + 2].reshape(-1, 3).mean(0)
    seen, wanted = seen - seen.mean(), np.array(colour) - np.mean(colour)
    lengths = float(np.linalg.norm(seen) * np.linalg.norm(wanted))
    return float(np.linalg.norm(seen)) > 20.0 and float(seen @ wanted) > SAME_COLOUR * lengths
