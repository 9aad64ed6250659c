"""Stills: many scenes with a few postures of the robot each, for what is learned from single pictures.

An episode costs the simulator's steps for each of its frames, and these are much alike. Where a gripper is in a
picture, or what a robot looks like, is better learned from many cameras, tables and lights: a scene costs a few frames.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from vap_gym.data import Episode
from vap_gym.errors import VapError
from vap_gym.kinematics import RobotState
from vap_gym.sim.layouts import draw_scene
from vap_gym.sim.rollout import NominalRobot, episode_of, row_of
from vap_gym.sim.scene import Scene
from vap_gym.sim.spec import SceneSpec

BEHAVIOUR = "stills"
LOWEST_M = 0.015  # of the tool centre over the table
MOST_OFF_M = 0.003  # a posture that the robot cannot take, since something is in its way, is drawn anew
TRIES = 20
LAST_SEED = 200_000  # postures are those that scenes of seeds below begin in


def stills(scene: Scene, nominal: NominalRobot, spec: SceneSpec, *, frames: int) -> Episode:
    """Return pictures of a scene in which the robot takes `frames` postures, each without a way from the last one.

    The columns are those of `rollout.record`; all actions are zero. Half of the postures are start postures of other
    scenes, half the same nearer to the table.

    Raises:
        VapError: where the robot can hardly take a posture in this scene.
    """
    rng = np.random.default_rng([spec.seed, 60013])
    rows, pictures, labels, cameras = [], [], [], []
    for number in range(frames):
        state = _posed(scene, nominal, spec, rng, first=number == 0)
        truth = scene.truth()
        rgb, label = scene.render()
        pictures.append(rgb)
        labels.append(label)
        cameras.append(scene.camera)
        action = np.zeros(nominal.controller.action_size, np.float32)
        rows.append(row_of(spec, truth, truth, state, nominal.tip(state), nominal.tool_m(state), action))
    whole = episode_of(scene, spec, BEHAVIOUR, rows=rows, cameras=cameras, pictures=pictures, labels=labels)
    return replace(whole, info={**whole.info, "success": False, "moved_m": 0.0})


def _posed(
    scene: Scene, nominal: NominalRobot, spec: SceneSpec, rng: np.random.Generator, *, first: bool
) -> RobotState:
    """Bring the robot into a posture that it can take; the first one builds the scene."""
    built = not first
    for _ in range(TRIES):
        state = _drawn(nominal, spec, rng)
        if state is None:
            continue
        q, closedness = state.q[0].numpy(), float(state.gripper[0])
        if built:
            scene.place(q, closedness)
        else:
            scene.reset(spec, q, closedness)
            built = True
        if float(np.linalg.norm(scene.truth().tip[:3, 3] - nominal.tip(state)[:3, 3])) < MOST_OFF_M:
            return state
    raise VapError(
        f"In {TRIES} tries the robot could not take a posture in the scene of seed {spec.seed}. Begin with another "
        "first_seed."
    )


def _drawn(nominal: NominalRobot, spec: SceneSpec, rng: np.random.Generator) -> RobotState | None:
    """A posture, or None where the arm does not reach it."""
    other = draw_scene(int(rng.integers(LAST_SEED)), layout=spec.layout)
    x, y, z = other.start_tool_m
    floor = spec.table_z_m + LOWEST_M
    if rng.random() < 0.5 and z > floor:
        z = float(rng.uniform(floor, z))
    try:
        return nominal.start(
            (x, y, z), other.start_yaw_rad, other.start_tilt_rad, other.start_closedness,
            as_home=spec.layout != "table",
        )  # fmt: skip
    except VapError:
        return None
