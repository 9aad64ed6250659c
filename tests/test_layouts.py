"""Scenes of other robots: drawn the same for the same seed, skills held out, and every task can be solved."""

import json
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from vap_gym.cards import known_envs, load_env, load_robot
from vap_gym.errors import UnknownNameError
from vap_gym.geometry import swayed
from vap_gym.sim.layouts import LAYOUTS, draw_scene
from vap_gym.sim.rollout import NominalRobot, record, start_episode
from vap_gym.sim.scene import LABELS, Scene
from vap_gym.sim.spec import SceneSpec
from vap_gym.sim.tasks import rest_heights, success

ENVS = {load_env(name).layout: load_env(name) for name in known_envs()}
OTHERS = tuple(layout for layout in LAYOUTS if layout != "table")
Workplace = tuple[Scene, NominalRobot]


@pytest.fixture(scope="module")
def workplaces() -> Iterator[dict[str, Workplace]]:
    made = {}
    for layout in OTHERS:
        robot = load_robot(ENVS[layout].robot)
        made[layout] = (Scene(robot), NominalRobot(robot))
    yield made
    for scene, _ in made.values():
        scene.close()


def test_every_layout_has_an_env_with_a_robot_of_its_own() -> None:
    assert set(ENVS) == set(LAYOUTS)
    assert len({card.robot for card in ENVS.values()}) == len(LAYOUTS)


@pytest.mark.parametrize("layout", OTHERS)
def test_same_seed_same_scene_through_json(layout: str) -> None:
    for seed in range(30):
        spec = draw_scene(seed, layout=layout)
        assert spec == draw_scene(seed, layout=layout)
        assert SceneSpec.from_json(spec.to_json()) == spec
        assert spec.layout == layout


def test_scenes_of_the_table_are_written_as_they_always_were() -> None:
    text = json.loads(draw_scene(0).to_json())
    assert not {"layout", "drawer", "table_z_m", "table_centre_m"} & set(text)
    assert not {"lying"} & set(text["objects"][0])
    assert not {"sway"} & set(text["camera"])


def test_skills_that_are_held_out_are_never_drawn_for_training() -> None:
    train = {draw_scene(seed, layout="kitchen").task for seed in range(300)}
    novel = {draw_scene(seed, layout="kitchen", split="novel").task for seed in range(100)}
    assert novel == {"close_drawer", "place_upright"}
    assert train == set(LAYOUTS["kitchen"].tasks)
    assert not train & novel


def test_unknown_layouts_and_tasks_are_told_with_what_there_is() -> None:
    with pytest.raises(UnknownNameError, match=r"No layout named 'kitchn'. Did you mean 'kitchen'\?"):
        draw_scene(0, layout="kitchn")
    with pytest.raises(UnknownNameError, match=r"No task named 'close_drawer'.*Known: lift, push, reach"):
        draw_scene(0, task="close_drawer")


@pytest.mark.parametrize("layout", OTHERS)
def test_the_robot_stands_where_the_scene_says_and_is_seen(layout: str, workplaces: dict[str, Workplace]) -> None:
    scene, nominal = workplaces[layout]
    seen = 0
    for seed in range(4):
        spec = draw_scene(seed, layout=layout)
        state = start_episode(scene, nominal, spec)
        truth = scene.truth()
        np.testing.assert_allclose(truth.tool_m, spec.start_tool_m, atol=3e-3)
        np.testing.assert_allclose(truth.joints_rad, state.q[0].numpy(), atol=5e-3)
        assert abs(truth.closedness - spec.start_closedness) < 0.02
        seen += int((scene.render()[1] == LABELS.index("gripper")).sum() > 40)
        for item in spec.objects:
            assert truth.objects_m[item.index][2] > spec.table_z_m
    assert seen >= 3


SOLVED = [  # seeds at which the script is known to solve the task: none would, were the task infeasible
    ("kitchen", "lift", 500), ("kitchen", "push", 501), ("kitchen", "knock_over", 500), ("kitchen", "open_drawer", 503),
    ("kitchen", "close_drawer", 501), ("kitchen", "place_upright", 502), ("bridge", "push", 500),
    ("bridge", "lift", 501), ("desk", "reach", 500), ("desk", "push", 501), ("desk", "knock_over", 500),
]  # fmt: skip


@pytest.mark.parametrize(("layout", "task", "seed"), SOLVED)
def test_a_script_solves_the_task_and_the_start_is_not_solved(
    layout: str, task: str, seed: int, workplaces: dict[str, Workplace]
) -> None:
    scene, nominal = workplaces[layout]
    spec = draw_scene(seed, layout=layout, task=task)
    episode = record(scene, nominal, spec, "expert", frames=80, render=False)
    assert not episode.columns["next.success"][0]
    assert episode.info["success"]


def test_a_drawer_is_labelled_and_its_handle_moves_with_it(workplaces: dict[str, Workplace]) -> None:
    scene, nominal = workplaces["kitchen"]
    spec = draw_scene(501, layout="kitchen", task="close_drawer")
    assert spec.drawer is not None
    episode = record(scene, nominal, spec, "expert", frames=50)
    opened = episode.columns["drawer_open_m"]
    assert opened[0] == pytest.approx(spec.drawer.opening_m, abs=5e-3)
    assert opened[-1] < 0.015
    assert (episode.labels["front"][0] == LABELS.index("drawer")).sum() > 30


def test_upright_means_standing_and_let_go() -> None:
    spec = draw_scene(3, layout="kitchen", task="place_upright")
    lies, stands = rest_heights(spec.target_object)
    start = np.array([0.5, -0.1, spec.table_z_m + lies])
    upright, away = start + [0, 0, stands - lies], start + [0, 0, 0.3]
    scored = {"start_tool_m": away, "start_object_m": start}
    assert not success(spec, away, start, **scored)
    assert not success(spec, upright, upright, **scored), "still held"
    assert success(spec, away, upright, **scored)
    assert not success(spec, away + [0, 0, 0.2], upright + [0, 0, 0.1], **scored), "in the air"


def test_a_head_sways_by_what_it_was_told_and_begins_where_it_was() -> None:
    T = torch.eye(4, dtype=torch.float64)
    sway = torch.tensor([0.02, 0.03, 0.01, 0.02, 0.03, 0.04, 3.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(swayed(T, sway, 0.0), T, atol=1e-12, rtol=0)
    path = torch.stack([swayed(T, sway, 0.1 * k) for k in range(60)])
    assert 0.005 < path[:, :3, 3].norm(dim=-1).max() < 0.12
    assert (path[1:, :3, 3] - path[:-1, :3, 3]).norm(dim=-1).max() < 0.02
    torch.testing.assert_close(path[:, :3, :3] @ path[:, :3, :3].mT, T[:3, :3].expand(60, 3, 3), atol=1e-9, rtol=0)
    torch.testing.assert_close(swayed(T, torch.zeros(8, dtype=torch.float64), 5.0), T)


def test_the_desk_is_filmed_by_a_moving_camera(workplaces: dict[str, Workplace]) -> None:
    scene, nominal = workplaces["desk"]
    spec = draw_scene(2, layout="desk")
    episode = record(scene, nominal, spec, "noop", frames=12)
    poses = episode.columns["camera.T_world_camera"]
    assert np.abs(poses[1:] - poses[:-1]).max(axis=(1, 2)).min() > 1e-4
    assert np.abs(episode.frames["front"][0].astype(int) - episode.frames["front"][-1]).mean() > 1.0
