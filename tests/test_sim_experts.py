"""Scripted behaviours: experts mostly succeed, deliberately failing variants mostly do not, no-op does nothing."""

from collections.abc import Iterator

import numpy as np
import pytest

from vap_gym.cards import load_robot
from vap_gym.errors import UnknownNameError
from vap_gym.sim.experts import BEHAVIOURS, ScriptedPolicy
from vap_gym.sim.layouts import draw_scene
from vap_gym.sim.rollout import NominalRobot, record
from vap_gym.sim.scene import Scene
from vap_gym.sim.spec import TASK_NAMES

pytest.importorskip("pybullet", reason="the oracle needs pybullet")
CARD = load_robot("panda_robotiq")
FRAMES = 60  # as in the training data


@pytest.fixture(scope="module")
def nominal() -> NominalRobot:
    return NominalRobot(CARD)


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with Scene(CARD) as made:
        yield made


def successes(scene: Scene, nominal: NominalRobot, task: str, behaviour: str, seeds: range) -> float:
    """Share of the seeds' episodes that succeed."""
    played = (record(scene, nominal, draw_scene(s, task=task), behaviour, frames=FRAMES, render=False) for s in seeds)
    return float(np.mean([episode.info["success"] for episode in played]))


@pytest.mark.parametrize("task", TASK_NAMES)
def test_experts_mostly_succeed(task: str, scene: Scene, nominal: NominalRobot) -> None:
    # Over seeds 100 to 139: reach .98, push .93, lift .73; the others mostly run out of time.
    assert successes(scene, nominal, task, "expert", range(120, 124)) >= 3 / 4


@pytest.mark.parametrize("task", TASK_NAMES)
def test_failing_variants_mostly_do_not(task: str, scene: Scene, nominal: NominalRobot) -> None:
    # Over seeds 100 to 119: reach 0, lift .10, push .25 (a push that misses sideways may still arrive).
    assert successes(scene, nominal, task, "failing", range(100, 103)) <= 1 / 3


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
def test_the_same_seed_gives_the_same_actions_within_their_range(
    behaviour: str, scene: Scene, nominal: NominalRobot
) -> None:
    spec = draw_scene(7, task="push")
    one, other = (record(scene, nominal, spec, behaviour, frames=20, render=False).columns["action"] for _ in range(2))
    np.testing.assert_array_equal(one, other)
    assert one.shape == (20, 7)
    assert one.dtype == np.float32
    assert (np.abs(one) <= 1).all()
    assert (one[-1] == 0).all()  # nothing follows the last frame
    assert (behaviour == "noop") == (not one.any())


def test_another_seed_behaves_differently(scene: Scene, nominal: NominalRobot) -> None:
    spec = draw_scene(7, task="push")
    from vap_gym.sim.rollout import start_episode

    state = start_episode(scene, nominal, spec)
    truth, tool = scene.truth(), nominal.tool(state)
    actions = [ScriptedPolicy(spec, "random", seed)(truth, tool) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(actions[0], actions[1])
    assert not np.array_equal(actions[0], actions[2])


def test_an_episode_holds_what_was_promised(scene: Scene, nominal: NominalRobot) -> None:
    spec = draw_scene(21, task="lift")
    episode = record(scene, nominal, spec, "expert", frames=8)
    assert episode.task == spec.instruction
    assert episode.info["behaviour"] == "expert"
    assert episode.frames["front"].shape == (8, 96, 144, 3)
    assert episode.labels["front"].shape == (8, 96, 144)
    columns = episode.columns
    shapes = {name: values.shape[1:] for name, values in columns.items()}
    assert shapes["action"] == shapes["observation.state"] == (7,)
    assert shapes["nominal.cartesian_position"] == (6,)
    assert shapes["objects_m"] == (6, 3)
    assert shapes["tool_m"] == (3,)
    assert columns["next.success"].dtype == bool
    assert (columns["next.success"] == (columns["next.progress"] >= 1)).all()
    # Row t's action leads from frame t to t + 1: the first row's moves the robot by the second, at most that far.
    moved = np.linalg.norm(np.diff(columns["nominal.cartesian_position"][:, :3], axis=0), axis=1)
    assert moved[0] < np.linalg.norm(columns["action"][0, :3]) * 0.075 * 0.2 + 1e-6
    assert moved[-1] > 0


def test_an_unknown_behaviour_is_named() -> None:
    with pytest.raises(UnknownNameError, match="No behaviour named 'experts'. Did you mean 'expert'?"):
        ScriptedPolicy(draw_scene(0), "experts", 0)


def test_clumsy_hands_touch_things_and_often_do_not_hold_them(scene: Scene, nominal: NominalRobot) -> None:
    # Over seeds 800000 to 800029 (60 frames): of 16 things that are closed on, 2 rise by 2 cm, 11 stay within 1.2 cm.
    closed_on, held = 0, 0
    for seed in range(800_000, 800_006):
        episode = record(scene, nominal, draw_scene(seed, near=True), "clumsy", frames=60, render=False)
        objects_m, touching = episode.columns["objects_m"], episode.columns["touching"]
        closed = episode.columns["nominal.gripper_position"] > 0.5
        taken = (closed & touching).any(0)
        rise_m = np.nan_to_num(objects_m[..., 2] - objects_m[:1, :, 2]).max(0)
        closed_on += int(taken.sum())
        held += int((taken & (rise_m > 0.05)).sum())
    assert closed_on >= 2
    assert held < closed_on
