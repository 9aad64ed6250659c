"""Hands' joints: orders of other projects, drawn skeletons, and real pictures with known joints."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vap_gym import cli
from vap_gym.cards import load_robot
from vap_gym.data import EpisodeSet
from vap_gym.data.conventions import HANDS, camera_of
from vap_gym.data.layout import DataError
from vap_gym.errors import VapError
from vap_gym.geometry import Camera, inverse, pose
from vap_gym.recover.hands.annotated import read_annotated
from vap_gym.recover.hands.joints import (
    EDGES,
    JOINTS,
    MANO_TIP_VERTICES,
    NAMES,
    ORDERS,
    from_openpose,
    to_openpose,
    with_tips,
)
from vap_gym.recover.hands.pipeline import HANDS_PX
from vap_gym.recover.hands.skeleton21 import COLOURS, WRIST_COLOURS, draw_hands, draw_hands_3d, project_hands
from vap_gym.recover.hands.synthetic import crossing_hands, projected, shaped


def test_bones_are_a_tree_from_the_wrist_of_five_chains() -> None:
    assert len(NAMES) == JOINTS
    assert [edge for edge in EDGES if edge[0] == 0] == [(0, 1), (0, 5), (0, 9), (0, 13), (0, 17)]
    assert sorted(child for _, child in EDGES) == list(range(1, JOINTS))
    assert all(NAMES[a].split("_")[0] == NAMES[b].split("_")[0] for a, b in EDGES if a)


def test_orders_are_those_of_their_projects() -> None:
    numbers = np.arange(21.0)[:, None]
    mano = to_openpose(numbers, "mano")[:, 0].astype(int).tolist()
    assert mano == [0, 13, 14, 15, 16, 1, 2, 3, 17, 4, 5, 6, 18, 10, 11, 12, 19, 7, 8, 9, 20]
    interhand = to_openpose(numbers, "interhand")[:, 0].astype(int).tolist()
    assert interhand == [20, 3, 2, 1, 0, 7, 6, 5, 4, 11, 10, 9, 8, 15, 14, 13, 12, 19, 18, 17, 16]


@pytest.mark.parametrize("order", ORDERS)
def test_reordering_there_and_back_changes_nothing(order: str) -> None:
    joints = np.random.default_rng(0).normal(size=(2, 21, 3))
    assert np.array_equal(to_openpose(from_openpose(joints, order), order), joints)


def test_tips_of_manos_16_joints_are_vertices() -> None:
    joints, vertices = np.zeros((16, 3)), np.arange(778.0)[:, None] * np.ones(3)
    tips = with_tips(joints, vertices)[[4, 8, 12, 16, 20], 0]
    assert tips.astype(int).tolist() == list(MANO_TIP_VERTICES)
    with pytest.raises(VapError, match="778 vertices, got 700"):
        with_tips(joints, vertices[:700])


def test_unknown_order_names_the_known_ones() -> None:
    with pytest.raises(VapError, match="Did you mean 'openpose'"):
        to_openpose(np.zeros((21, 2)), "openpos")


def test_no_two_fingers_of_both_hands_look_alike() -> None:
    colours = np.concatenate([COLOURS.reshape(-1, 3), WRIST_COLOURS]).astype(float)
    apart = np.linalg.norm(colours[:, None] - colours[None], axis=-1)[np.triu_indices(12, 1)]
    assert apart.min() > 60


@pytest.mark.parametrize(("robot", "side"), [("hand_21_left", 0), ("hand_21", 1)])
def test_the_hands_cards_have_the_same_colours(robot: str, side: int) -> None:
    bones = load_robot(robot).skeleton.bones
    assert [bone.colour_rgb for bone in bones] == [tuple(int(c) for c in COLOURS[side][i // 4]) for i in range(20)]


def test_bones_are_drawn_where_they_are_in_their_fingers_colour() -> None:
    truth = crossing_hands(3, seed=4, crossing=False)
    picture = draw_hands(truth.joints_px, frame_size_px=(640, 480), thickness_px=6.0)
    for frame in range(3):
        for side in range(2):
            for bone, (a, b) in enumerate(EDGES):
                if a == 0:
                    continue  # near the wrist fingers lie over one another
                u, v = truth.joints_px[frame, side, [a, b]].mean(0).astype(int)
                assert picture[frame, v, u].tolist() == COLOURS[side, bone // 4].tolist()


def test_absent_hands_joints_and_those_behind_the_camera_are_not_drawn() -> None:
    truth = crossing_hands(2, seed=4, crossing=False)
    joints = truth.joints_px.copy()
    joints[0] = np.nan
    joints[1, 0] = np.nan
    joints[1, 1, 8] = np.nan  # the tip of the index finger
    pictures = draw_hands(joints, frame_size_px=(640, 480))
    assert not pictures[0].any()
    whole = draw_hands(
        np.where(np.isnan(joints), truth.joints_px, joints)[1:, 1:], frame_size_px=(640, 480), sides=(1,)
    )
    lost = (whole[0] != pictures[1]).any(-1)
    assert 0 < lost.sum() < 0.2 * whole.any(-1).sum()
    assert (whole[0][lost] == COLOURS[1, 1]).all(-1).mean() > 0.5  # of the index finger, but for its edges
    behind = draw_hands(truth.joints_px, frame_size_px=(640, 480), depth_m=-truth.joints_m[..., 2])
    assert not behind.any()


@pytest.mark.parametrize("near", [0, 1])
def test_the_nearer_hand_lies_on_top(near: int) -> None:
    flat = shaped(np.zeros((1, 2, 5))) * 1000
    joints = flat[..., :2] + np.array([320, 300])
    depth = np.full((1, 2, 21), 0.5)
    depth[0, near] = 0.4
    picture = draw_hands(joints, frame_size_px=(640, 480), depth_m=depth, thickness_px=5.0)
    u, v = joints[0, 0, 10:12].mean(0).astype(int)
    assert picture[0, v, u].tolist() == COLOURS[near, 2].tolist()


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_wild_joints_never_break_the_drawing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    joints = rng.normal(0, 10.0 ** rng.uniform(0, 9), (2, 2, 21, 2))
    joints[rng.random(joints.shape) < 0.1] = rng.choice([np.nan, np.inf, -np.inf])
    assert draw_hands(joints, frame_size_px=(48, 32)).shape == (2, 32, 48, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"frame_size_px": (0, 5)}, "at least 1 px"),
        ({"frame_size_px": (64, 48), "sides": (0,)}, "each of 2 hands"),
        ({"frame_size_px": (64, 48), "thickness_px": -1.0}, "Try 2"),
    ],
)
def test_mistakes_in_drawing_are_told(arguments: dict, message: str) -> None:
    with pytest.raises(VapError, match=message):
        draw_hands(np.zeros((1, 2, 21, 2)), **arguments)


def test_joints_in_space_are_drawn_as_their_projections() -> None:
    truth = crossing_hands(2, seed=1)
    camera = Camera(K=torch.from_numpy(truth.K), T_world_camera=torch.eye(4).double(), frame_size_px=(640, 480))
    uv, depth = project_hands(truth.joints_m, camera)
    assert np.allclose(uv, truth.joints_px)
    flat = draw_hands(truth.joints_px, frame_size_px=(640, 480), depth_m=depth)
    assert np.array_equal(draw_hands_3d(truth.joints_m, camera), flat)


@pytest.fixture(scope="module")
def interhand(shared_data: Path) -> list[tuple[str, np.ndarray, np.ndarray, Camera]]:
    """(picture, joints of left and right hand in the world [m], their pixels by the data's own formula, camera)."""
    folder = shared_data / "hands" / "interhand2.6m"
    data, cameras, joints = (
        json.loads((folder / f"test_interhand2.6m_{kind}.json").read_text()) for kind in ("data", "camera", "joint_3d")
    )
    found = []
    for image in data["images"]:
        capture, name = str(image["capture"]), image["camera"]
        entry = joints[capture][str(image["frame_idx"])]
        world = np.array(entry["world_coord"], float)
        world[np.array(entry["joint_valid"]).reshape(-1) == 0] = np.nan
        card = {key: np.array(cameras[capture][key][name]) for key in ("campos", "camrot", "focal", "princpt")}
        in_camera = (world - card["campos"]) @ card["camrot"].T
        pixels = card["focal"] * in_camera[:, :2] / in_camera[:, 2:] + card["princpt"]
        K = torch.eye(3).double()
        K[0, 0], K[1, 1] = card["focal"].tolist()
        K[:2, 2] = torch.from_numpy(card["princpt"])
        T_camera_world = pose(
            torch.from_numpy(card["camrot"]), torch.from_numpy(-card["camrot"] @ card["campos"] / 1000)
        )
        camera = Camera(K=K, T_world_camera=inverse(T_camera_world), frame_size_px=(image["width"], image["height"]))
        hands = [to_openpose(x.reshape(2, 21, -1), "interhand")[::-1].copy() for x in (world / 1000, pixels)]
        found.append((image["file_name"], *hands, camera))
    return found


def test_interhand_joints_project_as_its_own_formula_says(interhand) -> None:
    assert len(interhand) == 4
    for _, world, pixels, camera in interhand:
        uv, _ = project_hands(world[None], camera.checked())
        assert np.array_equal(np.isnan(uv[0]), np.isnan(pixels))
        assert np.nanmax(np.abs(uv[0] - pixels)) < 1e-3


def test_drawn_interhand_skeletons_lie_on_skin(interhand, shared_data: Path) -> None:
    """The hands are brighter than what is beside them: the black studio, or a shirt."""
    from PIL import Image

    for name, world, _, camera in interhand:
        frame = np.asarray(Image.open(shared_data / "hands" / "interhand2.6m" / name).convert("L")).astype(float)
        prompt = draw_hands_3d(world[None], camera)[0]
        lit = prompt.max(-1) > 200
        beside = np.roll(lit, (-150, 110), (0, 1)) & ~lit
        assert lit.sum() > 300
        assert np.median(frame[lit]) > 1.5 * np.median(frame[beside]), name


@pytest.mark.parametrize(("kind", "joints"), [("interhand2.6m", 126), ("onehand10k", 63)])
def test_annotated_pictures_are_imported_by_one_command(
    shared_data: Path, tmp_path: Path, kind: str, joints: int, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["recover", "hand-pictures", str(shared_data / "hands" / kind), str(tmp_path / "out"), "--side-px", "128"]
    assert cli.main([*words, "--json"]) == 0, capsys.readouterr().err
    shown = capsys.readouterr()
    assert [one["in box"] for one in json.loads(shown.out)["pictures"]] == ["100%"] * 4
    assert shown.err.count("100%") == 4  # of the joints lie in the annotated boxes
    assert (tmp_path / "out" / "overlays" / f"{kind}.png").is_file()
    episodes = EpisodeSet(tmp_path / "out")
    points = np.stack([episode.columns[HANDS_PX][0] for episode in episodes])
    assert np.isfinite(points).all(-1).sum() == joints
    assert np.nanmin(points) >= 0
    assert np.nanmax(points) <= 128
    if kind == "interhand2.6m":
        for episode in episodes:
            uv, _ = project_hands(episode.columns[HANDS], camera_of(episode.columns, "video", (128, 128)).checked())
            assert np.allclose(uv, episode.columns[HANDS_PX], equal_nan=True)
    assert cli.main(words) == 2
    assert "must be a new folder" in capsys.readouterr().err


def test_folders_without_annotated_hands_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no annotated hands"):
        read_annotated(tmp_path)
    (tmp_path / "a.json").write_text('{"images": [{"id": 1}], "annotations": [{"keypoints": [1, 2]}]}')
    with pytest.raises(DataError, match=r"a.json cannot be read as annotations of onehand10k"):
        read_annotated(tmp_path)
    (tmp_path / "a_data.json").write_text("[")
    with pytest.raises(DataError, match=r"a_data.json cannot be read as annotations of interhand2.6m"):
        read_annotated(tmp_path)


def test_onehand10k_points_are_in_our_order(shared_data: Path) -> None:
    """Fingers as annotated are chains: their bones are much shorter than the way between any two tips."""
    data = json.loads((shared_data / "hands" / "onehand10k" / "test_onehand10k.json").read_text())
    whole = 0
    for annotation in data["annotations"]:
        points = np.array(annotation["keypoints"], float).reshape(21, 3)
        if (points[:, 2] == 0).any():
            continue
        whole += 1
        bones = np.array([np.linalg.norm(points[a, :2] - points[b, :2]) for a, b in EDGES if a])
        others = np.linalg.norm(points[:, None, :2] - points[None, :, :2], axis=-1).mean()
        assert bones.mean() < 0.5 * others
    assert whole >= 1


def test_synthetic_hands_project_as_they_are_drawn() -> None:
    truth = crossing_hands(5, seed=0)
    assert np.allclose(projected(truth.joints_m, truth.K), truth.joints_px)
    assert truth.joints_m[..., 2].min() > 0.2
