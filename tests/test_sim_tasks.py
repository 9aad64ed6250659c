"""Tasks: progress is in [0, 1], grows with what the task asks for, is 1 exactly where the task is solved."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vap_gym.errors import UnknownNameError
from vap_gym.sim import tasks
from vap_gym.sim.layouts import draw_scene
from vap_gym.sim.spec import TASK_NAMES, SceneSpec

PLACES = st.tuples(st.floats(0.2, 0.8), st.floats(-0.4, 0.4), st.floats(0.0, 0.5)).map(np.array)


def scored(
    spec: SceneSpec, tool: np.ndarray, thing: np.ndarray, start_tool: np.ndarray, start: np.ndarray
) -> np.ndarray:
    return tasks.progress(spec, tool, thing, start_tool_m=start_tool, start_object_m=start)


@given(task=st.sampled_from(TASK_NAMES), tool=PLACES, thing=PLACES, start_tool=PLACES, start=PLACES)
def test_progress_lies_between_0_and_1_and_success_is_progress_1(
    task: str, tool: np.ndarray, thing: np.ndarray, start_tool: np.ndarray, start: np.ndarray
) -> None:
    spec = draw_scene(1, task=task)
    value = scored(spec, tool, thing, start_tool, start)
    assert 0.0 <= value <= 1.0
    solved = tasks.success(spec, tool, thing, start_tool_m=start_tool, start_object_m=start)
    assert bool(solved) == (float(value) == 1.0)


@pytest.mark.parametrize("task", TASK_NAMES)
def test_nothing_done_is_no_progress_and_all_done_is_success(task: str) -> None:
    spec = draw_scene(4, task=task)
    start_tool, start = np.array([0.5, 0.2, 0.3]), np.array([0.4, -0.1, 0.03])
    goal = np.array([*spec.goal_xy_m, 0.03])
    tool, thing = {
        "reach": (start, start),
        "push": (start_tool, goal),
        "lift": (start_tool, start + [0, 0, 0.0601]),
    }[task]
    assert scored(spec, start_tool, start, start_tool, start) == 0.0
    assert scored(spec, tool, thing, start_tool, start) == 1.0
    assert tasks.success(spec, tool, thing, start_tool_m=start_tool, start_object_m=start)


def test_reach_grows_as_the_tool_comes_nearer() -> None:
    spec, thing, start = draw_scene(0, task="reach"), np.array([0.5, 0.0, 0.03]), np.array([0.5, 0.0, 0.33])
    away = np.linspace(0.3, 0.005, 60)
    tools = thing + away[:, None] * [0, 0, 1]
    values = scored(spec, tools, np.broadcast_to(thing, tools.shape), start, thing)
    assert (np.diff(values) >= 0).all()
    assert values[0] == pytest.approx(0.0)
    assert (values == 1.0).tolist() == (away < tasks.REACH_RADIUS_M).tolist()


def test_push_grows_as_the_object_comes_nearer_to_the_goal_in_the_plane() -> None:
    spec, tool = draw_scene(0, task="push"), np.array([0.5, 0.0, 0.1])
    goal, away = np.array([*spec.goal_xy_m, 0.0]), np.linspace(0.2, 0.005, 40)
    things = goal + away[:, None] * [0.6, 0.8, 0] + [0, 0, 0.03]
    values = scored(spec, np.broadcast_to(tool, things.shape), things, tool, things[0])
    assert (np.diff(values) >= 0).all()
    assert values[0] == pytest.approx(0.0)
    assert (values == 1.0).tolist() == (away < tasks.PUSH_RADIUS_M).tolist()
    lifted = scored(spec, np.broadcast_to(tool, things.shape), things + [0, 0, 0.2], tool, things[0])
    assert np.array_equal(values, lifted)


def test_lift_grows_with_the_height_above_the_start() -> None:
    spec, tool, start = draw_scene(0, task="lift"), np.zeros(3), np.array([0.5, 0.1, 0.03])
    heights = np.linspace(-0.01, 0.1, 23)
    values = scored(spec, np.zeros((23, 3)), start + heights[:, None] * [0, 0, 1], tool, start)
    assert (np.diff(values) >= 0).all()
    np.testing.assert_allclose(values, np.clip(heights / tasks.LIFT_HEIGHT_M, 0, 1))


@pytest.mark.parametrize("task", TASK_NAMES)
def test_places_that_are_not_known_give_no_progress(task: str) -> None:
    spec, here = draw_scene(3, task=task), np.array([0.5, 0.0, 0.03])
    nowhere = np.full(3, np.nan)
    assert scored(spec, here, nowhere, here, here) == 0.0
    assert scored(spec, here, here, nowhere, nowhere) == 0.0
    assert not tasks.success(spec, here, nowhere, start_tool_m=here, start_object_m=here)


@pytest.mark.parametrize("task", TASK_NAMES)
def test_a_batch_is_scored_as_its_members_are(task: str) -> None:
    rng = np.random.default_rng(0)
    spec, tools, things = draw_scene(3, task=task), rng.uniform(0, 0.6, (2, 5, 3)), rng.uniform(0, 0.6, (2, 5, 3))
    values = scored(spec, tools, things, tools[0, 0], things[0, 0])
    assert values.shape == (2, 5)
    for i, j in np.ndindex(2, 5):
        assert values[i, j] == scored(spec, tools[i, j], things[i, j], tools[0, 0], things[0, 0])


def test_an_unknown_task_is_named() -> None:
    spec, here = replace(draw_scene(0), task="pussh"), np.zeros(3)
    with pytest.raises(UnknownNameError, match="No task named 'pussh'. Did you mean 'push'?"):
        scored(spec, here, here, here, here)
