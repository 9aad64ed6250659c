"""Scene specifications: the same for the same seed, plain JSON, and novel things kept out of training."""

import json

import numpy as np
import pytest

from vap_gym.errors import UnknownNameError, VapError
from vap_gym.sim.draw import NOVEL_SHAPES, NOVEL_TEXTURES, TRAIN_SHAPES, TRAIN_TEXTURES
from vap_gym.sim.layouts import draw_scene
from vap_gym.sim.spec import COLOURS, TASK_NAMES, SceneSpec
from vap_gym.sim.textures import table_texture

MANY = range(600)


@pytest.fixture(scope="module")
def scenes() -> list[SceneSpec]:
    return [draw_scene(seed) for seed in MANY]


def test_same_seed_same_scene_and_another_seed_another() -> None:
    assert draw_scene(17) == draw_scene(17)
    assert len({draw_scene(seed).to_json() for seed in range(50)}) == 50


def test_json_round_trip_is_exact(scenes: list[SceneSpec]) -> None:
    for scene in scenes[:100]:
        again = SceneSpec.from_json(scene.to_json())
        assert again == scene
        assert again.to_json() == scene.to_json()


def test_json_is_plain(scenes: list[SceneSpec]) -> None:
    data = json.loads(scenes[0].to_json())
    assert data["seed"] == 0
    assert data["split"] == "train"


@pytest.mark.parametrize(
    "text",
    [
        "not json",
        "[]",
        "3",
        json.dumps({"seed": 1}),
        json.dumps({**json.loads(draw_scene(0).to_json()), "surprise": 1}),
        json.dumps({k: v for k, v in json.loads(draw_scene(0).to_json()).items() if k != "target"}),
    ],
)
def test_what_is_no_specification_is_refused(text: str) -> None:
    with pytest.raises(VapError, match=r"Not a scene specification: .*SceneSpec\.to_json"):
        SceneSpec.from_json(text)


def test_novel_shapes_and_textures_never_occur_in_training(scenes: list[SceneSpec]) -> None:
    assert {o.shape for s in scenes for o in s.objects} == set(TRAIN_SHAPES)
    assert {s.table_texture for s in scenes} == set(TRAIN_TEXTURES)
    novel = [draw_scene(seed, split="novel") for seed in MANY]
    assert {o.shape for s in novel for o in s.objects} == set(NOVEL_SHAPES)
    assert {s.table_texture for s in novel} == set(NOVEL_TEXTURES)
    assert not set(TRAIN_SHAPES) & set(NOVEL_SHAPES)
    assert not set(TRAIN_TEXTURES) & set(NOVEL_TEXTURES)
    assert len(NOVEL_SHAPES) == 2


def test_cameras_cover_half_a_circle_and_twice_the_distance(scenes: list[SceneSpec]) -> None:
    away = np.array([np.subtract(s.camera.eye_m, s.camera.target_m) for s in scenes])
    azimuth = np.degrees(np.arctan2(away[:, 1], away[:, 0]))
    filled = np.histogram(azimuth, bins=18, range=(-90, 90))[0]
    assert (filled > 0).all()  # every 10° of the half circle that faces the robot
    assert np.ptp(azimuth) >= 180
    distance = np.linalg.norm(away, axis=1)
    assert distance.max() / distance.min() >= 2
    assert np.ptp([s.camera.vertical_fov_rad for s in scenes]) > 0.3
    assert np.ptp([s.camera.eye_m[2] for s in scenes]) > 0.3
    assert min(s.camera.eye_m[2] for s in scenes) > 0.1  # never under the table


def test_every_object_has_a_colour_and_a_place_of_its_own(scenes: list[SceneSpec]) -> None:
    assert {len(s.objects) for s in scenes} == {1, 2, 3, 4}
    assert {o.colour for s in scenes for o in s.objects} == set(COLOURS)
    for scene in scenes:
        assert len({o.index for o in scene.objects}) == len(scene.objects)
        for i, one in enumerate(scene.objects):
            for other in scene.objects[i + 1 :]:
                assert np.hypot(*np.subtract(one.xy_m, other.xy_m)) > 0.1


def test_the_task_is_about_an_object_that_is_there(scenes: list[SceneSpec]) -> None:
    assert {s.task for s in scenes} == set(TASK_NAMES)
    for scene in scenes:
        assert scene.target_object in scene.objects
        assert f"{scene.target_object.colour} {scene.target_object.shape}" in scene.instruction


def test_objects_to_lift_fit_between_the_fingers(scenes: list[SceneSpec]) -> None:
    for scene in [s for s in scenes if s.task == "lift"] + [
        draw_scene(s, split="novel", task="lift") for s in range(200)
    ]:
        assert scene.target_object.shape not in ("disc", "ball")
        assert min(scene.target_object.half_extents_m[:2]) < 0.0425


def test_task_and_nearness_can_be_chosen() -> None:
    for task in TASK_NAMES:
        assert draw_scene(5, task=task).task == task
    near, far = (
        [
            np.hypot(*np.subtract(s.start_tool_m[:2], s.target_object.xy_m))
            for s in (draw_scene(seed, near=near) for seed in range(100))
        ]
        for near in (True, False)
    )
    assert max(near) < 0.135
    assert np.mean(far) > 0.15


def test_unknown_split_and_task_are_named() -> None:
    with pytest.raises(UnknownNameError, match="No split named 'trian'. Did you mean 'train'"):
        draw_scene(0, split="trian")
    with pytest.raises(UnknownNameError, match="No task named 'pussh'. Did you mean 'push'?"):
        draw_scene(0, task="pussh")


def test_textures_are_drawn_from_their_seed() -> None:
    colours = ((0.2, 0.3, 0.4), (0.6, 0.5, 0.4))
    for name in TRAIN_TEXTURES + NOVEL_TEXTURES:
        picture = table_texture(name, colours, 3)
        assert picture.shape == (512, 512, 3)
        assert picture.dtype == np.uint8
        assert np.array_equal(picture, table_texture(name, colours, 3))
        low, high = np.minimum(*colours), np.maximum(*colours)
        assert ((picture >= np.floor(low * 255)) & (picture <= np.ceil(high * 255))).all()
        if name != "plain":
            assert not np.array_equal(picture, table_texture(name, colours, 4))
    with pytest.raises(UnknownNameError, match="No table texture named 'wod'. Did you mean 'wood'?"):
        table_texture("wod", colours, 0)
