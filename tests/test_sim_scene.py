"""The oracle's scene: the same whatever ran before, obedient to the nominal robot, and honest in picture and truth."""

import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from vap_gym.cards import load_robot
from vap_gym.data import Episode
from vap_gym.errors import MissingDependencyError, VapError
from vap_gym.geometry import Camera
from vap_gym.kinematics.control import RobotState
from vap_gym.sim.layouts import draw_scene
from vap_gym.sim.rollout import NominalRobot, record, start_episode
from vap_gym.sim.scene import LABELS, Scene, _resolved_urdf, gripper_scales
from vap_gym.sim.spec import PALETTE, SceneSpec

pytest.importorskip("pybullet", reason="the oracle needs pybullet")
CARD = load_robot("panda_robotiq")
OBJECT = 4  # label of the first palette colour


@pytest.fixture(scope="module")
def nominal() -> NominalRobot:
    return NominalRobot(CARD)


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with Scene(CARD) as made:
        yield made


def advance(scene: Scene, nominal: NominalRobot, state: RobotState, actions: np.ndarray) -> RobotState:
    for action in actions:
        state, _ = nominal.controller.step(state, torch.as_tensor(action, dtype=torch.float64)[None])
        scene.step(state.q[0].numpy(), float(state.gripper[0]))
    return state


def wander(steps: int, *, seed: int = 0, level: float = 0.8) -> np.ndarray:
    """Smooth random actions (steps, 7)."""
    noise = np.random.default_rng(seed).normal(0.0, 1.0, (steps + 9, 7))
    smooth = np.stack([noise[i : i + 10].mean(0) for i in range(steps)]) * 10**0.5
    return np.clip(level * smooth, -1.0, 1.0)


def assert_same_episode(one: Episode, other: Episode) -> None:
    for kind in ("frames", "labels", "columns"):
        mine, theirs = getattr(one, kind), getattr(other, kind)
        assert mine.keys() == theirs.keys()
        for name in mine:
            np.testing.assert_array_equal(mine[name], theirs[name], err_msg=f"{kind} {name}")
    assert one.info == other.info


def test_an_episode_is_bit_equal_whatever_ran_before_and_in_another_client(scene: Scene, nominal: NominalRobot) -> None:
    spec = draw_scene(3, task="lift")
    first = record(scene, nominal, spec, "expert", frames=24)
    assert first.columns["touching"].any()  # contacts, where engines differ first
    record(scene, nominal, draw_scene(5, task="push"), "play", frames=12)
    assert_same_episode(record(scene, nominal, spec, "expert", frames=24), first)
    with Scene(CARD) as fresh:
        assert_same_episode(record(fresh, nominal, spec, "expert", frames=24), first)


def test_looking_changes_nothing(scene: Scene, nominal: NominalRobot) -> None:
    seen = record(scene, nominal, draw_scene(8, task="push"), "expert", frames=12)
    unseen = record(scene, nominal, draw_scene(8, task="push"), "expert", frames=12, render=False)
    assert unseen.frames == {}
    for name, values in seen.columns.items():
        np.testing.assert_array_equal(values, unseen.columns[name], err_msg=name)


def test_load_returns_to_the_same_future(scene: Scene, nominal: NominalRobot) -> None:
    spec = draw_scene(3, task="lift", near=True)
    state = start_episode(scene, nominal, spec)
    state = advance(scene, nominal, state, wander(8))
    snapshot = scene.save()
    pictures, places = [], []
    for other in (1, 1, 2):
        scene.load(snapshot)
        advance(scene, nominal, state, wander(8, seed=other))
        pictures.append(scene.render()[0])
        places.append(np.concatenate([scene.truth().joints_rad, scene.truth().objects_m.ravel()]))
    np.testing.assert_array_equal(places[0], places[1])
    np.testing.assert_array_equal(pictures[0], pictures[1])
    assert not np.array_equal(places[0], places[2], equal_nan=True)


def test_the_arm_follows_nominal_states_within_2_mm_in_free_motion(scene: Scene, nominal: NominalRobot) -> None:
    for seed in range(4):
        spec = draw_scene(seed, near=False)
        state = nominal.start((0.5, 0.0, 0.30), spec.start_yaw_rad, spec.start_tilt_rad, 0.0)
        scene.reset(spec, state.q[0].numpy(), 0.0)
        for action in wander(40, seed=seed) * [1, 1, 1, 1, 1, 1, 0.3]:
            if nominal.tool_m(state)[2] < 0.2:
                action[2] = abs(action[2])
            state = advance(scene, nominal, state, action[None])
            truth = scene.truth()
            assert np.linalg.norm(truth.tip[:3, 3] - nominal.tip(state)[:3, 3]) < 2e-3
            assert np.linalg.norm(truth.tool_m - nominal.tool_m(state)) < 2e-3
            assert abs(truth.closedness - float(state.gripper[0])) < 0.1
        assert not truth.touching.any()


def test_a_still_robot_leaves_every_object_where_it_is(scene: Scene, nominal: NominalRobot) -> None:
    for seed, split in ((0, "train"), (1, "train"), (2, "novel"), (3, "novel")):
        spec = draw_scene(seed, split=split, near=False)
        columns = record(scene, nominal, spec, "noop", frames=30, render=False).columns
        moved = np.linalg.norm(columns["objects_m"] - columns["objects_m"][0], axis=-1)
        assert np.nanmax(moved) < 5e-4
        np.testing.assert_array_equal(
            columns["nominal.joint_position"], columns["nominal.joint_position"][:1].repeat(30, 0)
        )


def test_truth_names_objects_by_their_colour(scene: Scene, nominal: NominalRobot) -> None:
    for seed in range(4):
        spec = draw_scene(seed, near=False)
        start_episode(scene, nominal, spec)
        truth = scene.truth()
        there = {o.index: o for o in spec.objects}
        for index in range(len(PALETTE)):
            if index not in there:
                assert np.isnan(truth.objects_m[index]).all()
                continue
            item = there[index]
            np.testing.assert_allclose(truth.objects_m[index], [*item.xy_m, item.half_extents_m[2]], atol=2e-3)
        np.testing.assert_allclose(truth.tool_m, spec.start_tool_m, atol=6e-3)
        assert truth.closedness == pytest.approx(spec.start_closedness, abs=0.05)


# --- pictures ---


@pytest.fixture(scope="module")
def views(scene: Scene, nominal: NominalRobot) -> list[tuple[SceneSpec, Episode]]:
    """A few episodes of every task."""
    return [
        (spec, record(scene, nominal, spec, "expert", frames=16))
        for spec in (
            draw_scene(seed, task=task) for seed, task in ((11, "reach"), (12, "push"), (13, "lift"), (14, "push"))
        )
    ]


def test_labels_agree_with_the_picture(views: list[tuple[SceneSpec, Episode]]) -> None:
    hues = np.array(list(PALETTE.values()))
    hues = hues / np.linalg.norm(hues, axis=1, keepdims=True)
    shares = []
    for spec, episode in views:
        assert set(np.unique(episode.labels["front"])) <= {0, 1, 2, 3} | {OBJECT + o.index for o in spec.objects}
        for rgb, labels in zip(episode.frames["front"], episode.labels["front"], strict=True):
            seen = rgb.astype(float) / np.maximum(np.linalg.norm(rgb, axis=-1, keepdims=True), 1)
            nearest = np.argmax(seen @ hues.T, axis=-1)
            for item in spec.objects:
                mine = labels == OBJECT + item.index
                if mine.sum() >= 12:
                    shares.append(np.mean(nearest[mine] == item.index))
    assert len(shares) > 60
    assert np.mean(shares) > 0.95  # pixels on the rim are mixed
    assert np.min(shares) > 0.7


def test_the_goal_is_marked_where_it_is_and_only_for_push(views: list[tuple[SceneSpec, Episode]]) -> None:
    for spec, episode in views:
        labels = episode.labels["front"]
        if spec.task != "push":
            assert not (labels == LABELS.index("goal")).any()
            continue
        camera = camera_of_episode(episode)
        uv, _ = camera.project(torch.tensor([[*spec.goal_xy_m, 0.0]], dtype=torch.float64))
        v, u = np.nonzero(labels[0] == LABELS.index("goal"))
        if len(u) > 20:  # not hidden, nor out of the picture
            assert np.hypot(u.mean() + 0.5 - float(uv[0, 0]), v.mean() + 0.5 - float(uv[0, 1])) < 2.5


def camera_of_episode(episode: Episode) -> Camera:
    K, T = (torch.from_numpy(episode.columns[f"camera.{name}"][0]).double() for name in ("K", "T_world_camera"))
    return Camera(K=K, T_world_camera=T, frame_size_px=(144, 96))


def test_true_positions_project_onto_their_own_label_pixels(views: list[tuple[SceneSpec, Episode]]) -> None:
    own, near = [], 0
    for spec, episode in views:
        camera, labels = camera_of_episode(episode), episode.labels["front"]
        columns = episode.columns
        for t in (0, len(episode) - 1):
            uv, depth = camera.project(torch.from_numpy(columns["objects_m"][t]).double())
            for item in spec.objects:
                u, v = uv[item.index].floor().int().tolist()
                if not (0 <= u < 144 and 0 <= v < 96):
                    continue
                assert depth[item.index] > 0
                label = labels[t, v, u]
                assert label not in (0, LABELS.index("goal"))  # itself, or what stands before it
                own.append(label == OBJECT + item.index)
            tool, _ = camera.project(torch.from_numpy(columns["tool_m"][t][None]).double())
            y, x = np.nonzero(labels[t] == LABELS.index("gripper"))
            u, v = tool[0].floor().int().tolist()
            if len(x) > 20 and 0 <= u < 144 and 0 <= v < 96 and labels[t, v, u] < OBJECT:  # no object before it
                assert np.hypot(x + 0.5 - float(tool[0, 0]), y + 0.5 - float(tool[0, 1])).min() < 6
                near += 1
    assert near >= 4
    assert len(own) >= 8
    assert np.mean(own) > 0.6


def test_another_camera_and_size_can_be_asked_for(scene: Scene, nominal: NominalRobot) -> None:
    start_episode(scene, nominal, draw_scene(0))
    camera = Camera.look_at(
        torch.tensor([1.2, 0.3, 0.7]), torch.tensor([0.5, 0.0, 0.0]), vertical_fov_rad=0.8, frame_size_px=(60, 40)
    )
    rgb, labels = scene.render(camera)
    assert rgb.shape == (40, 60, 3)
    assert rgb.dtype == np.uint8
    assert labels.shape == (40, 60)
    assert scene.render()[0].shape == (96, 144, 3)


def test_shadow_is_asked_for_per_scene(nominal: NominalRobot) -> None:
    pictures = []
    for shadow in (True, False, True):
        with Scene(CARD, shadow=shadow) as scene:
            start_episode(scene, nominal, draw_scene(0))
            pictures.append(scene.render()[0])
    assert np.array_equal(pictures[0], pictures[2])
    assert not np.array_equal(pictures[0], pictures[1])


# --- robots and errors ---


@pytest.mark.parametrize("name", ["panda_robotiq", "panda_hand"])
def test_the_oracle_finds_every_mesh_and_joint_of_the_urdf(name: str, tmp_path: Path) -> None:
    card = load_robot(name)
    root = ElementTree.parse(_resolved_urdf(card, tmp_path)).getroot()
    meshes = [mesh.get("filename", "") for mesh in root.iter("mesh")]
    assert meshes
    assert all(Path(file).is_file() for file in meshes)
    joints = {joint.get("name") for joint in root.iter("joint")}
    assert set(gripper_scales(card)) | set(card.arm_joints) <= joints
    with Scene(card) as scene:
        nominal = NominalRobot(card)
        spec = draw_scene(1, near=False)
        state = start_episode(scene, nominal, spec)
        np.testing.assert_allclose(scene.truth().tip, nominal.tip(state), atol=2e-3)
        np.testing.assert_allclose(scene.truth().tool_m, spec.start_tool_m, atol=6e-3)


def test_a_start_out_of_reach_says_what_would_work(nominal: NominalRobot) -> None:
    with pytest.raises(VapError, match=r"cannot reach tool_m=\(2.0, 0.0, 0.1\).*Choose a start within"):
        nominal.start((2.0, 0.0, 0.1), 0.0, (0.0, 0.0), 0.0)


def test_without_pybullet_the_error_names_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pybullet", None)
    with pytest.raises(
        MissingDependencyError,
        match=r"^The oracle needs the package 'pybullet', which is not installed\. Run: pip install pybullet$",
    ):
        Scene(CARD)


def test_closing_twice_is_harmless() -> None:
    scene = Scene(CARD)
    scene.close()
    scene.close()
