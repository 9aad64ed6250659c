"""The demo and the examples' helpers: what is written can be watched, is the same per seed, and needs no simulator."""

import importlib
import json
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from vap_gym import demo
from vap_gym.cards import load_robot
from vap_gym.env import VapEnv
from vap_gym.errors import VapError
from vap_gym.loading import load_starts
from vap_gym.oracle_env import OracleEnv
from vap_gym.pictures import message, sheet, spread, write_png
from vap_gym.real_start import Recording, command_toward, follow, read_droid, strip
from vap_gym.scripted import blind_expert, can_go_anywhere, expert, shows_task

STEPS = 3
ROBOT = load_robot("panda_robotiq")
GREY = np.full((4, 6, 3), 90, np.uint8)
has_pybullet = pytest.mark.skipif(importlib.util.find_spec("pybullet") is None, reason="pybullet is not installed")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder after a short demo."""
    folder = tmp_path_factory.mktemp("demo") / "made" / "by_demo"
    demo.main(folder, steps=STEPS)
    return folder


@pytest.fixture(scope="module")
def shipped():
    return load_starts(demo.ENV_ID, None)


def test_video_plays_in_browsers(out: Path) -> None:
    with av.open(str(out / "demo.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == 15
        assert stream.width % 2 == stream.height % 2 == 0
        assert stream.width > 3 * 3 * 144
        assert stream.height > 2 * 3 * 96
        assert sum(1 for _ in container.decode(stream)) == 7 + (STEPS + 1) + 15


@pytest.mark.parametrize("name", ["contact_sheet.png", "five_actions.png"])
def test_pictures_are_there(out: Path, name: str) -> None:
    with Image.open(out / name) as picture:
        assert picture.width > 600
        assert np.asarray(picture).std() > 10
    assert not list(out.glob(".*")), "a temporary file is left"


def test_table_names_figures_machine_and_commit(out: Path) -> None:
    text = (out / "table.md").read_text()
    assert text.startswith("| figure")
    for part in ("env.step, one env: p50 / p95", " ms", "threads", "Commit", "seed 0"):
        assert part in text


def test_without_simulator_the_demo_runs_and_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pybullet", None)
    demo.main(tmp_path, steps=STEPS)
    assert "true pictures stays empty" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {
        "demo.mp4", "contact_sheet.png", "five_actions.png", "table.md"
    }  # fmt: skip
    assert "PSNR of imagined" not in (tmp_path / "table.md").read_text()


def test_same_seed_same_episode(shipped) -> None:
    first, second = (
        demo.play(shipped, range(len(shipped)), "lift", seed=4, world_model="tiny", steps=STEPS) for _ in range(2)
    )
    assert first.instruction == second.instruction
    for name in ("prompts", "imagined", "oracle"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


def test_too_few_steps_are_refused(tmp_path: Path) -> None:
    with pytest.raises(VapError, match="steps must be 2 or more, got 1"):
        demo.main(tmp_path, steps=1)


def test_held_out_figures_come_from_the_weights_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.setattr(demo, "weights_dir", lambda: tmp_path)
    assert demo.held_out_figures("mine")[0] == [("held-out episodes", "not measured yet: vap-gym bench fidelity")]
    scores = {"ST-IoU": 0.51234, "note": "256 episodes", "VAP-RT1-v0: ST-IoU": 0.4}  # the last is not the demo's
    (tmp_path / "mine" / "scores.json").write_text(json.dumps(scores))
    rows, _ = demo.held_out_figures("mine")
    assert rows == [("held-out episodes: ST-IoU", "0.512"), ("held-out episodes: note", "256 episodes")]


# --- scripted episodes ---


@has_pybullet
def test_blind_expert_does_what_the_seeing_one_does_until_something_moves(shipped) -> None:
    start = shipped[shipped.of_task("lift")[0]]
    oracle = OracleEnv(demo.ENV_ID)
    seeing, _, _ = expert(oracle, start, robot=ROBOT, seed=0, steps=6)
    oracle.close()
    blind = blind_expert(start, robot=ROBOT, seed=0, steps=6)
    np.testing.assert_allclose(blind, seeing, atol=0.08)  # objects sink a little when the scene settles


def test_most_starts_show_their_task_and_a_few_have_room_all_around(shipped) -> None:
    starts = list(shipped)
    assert sum(map(shows_task, starts)) > len(starts) / 5
    assert any(map(can_go_anywhere, starts))


# --- real starts ---


def test_command_leads_where_it_should_in_one_step() -> None:
    env = VapEnv(demo.ENV_ID, action_mode="joint_position", judge=None)
    env.reset(seed=0)
    robot = env.stage.imagination.robot_state(env.state)
    wanted = robot.q[0].double().numpy() + np.array([0.01, -0.01, 0.005, 0.01, 0.0, -0.012, 0.015])
    info = env.step(command_toward(env, wanted, float(robot.gripper[0]) * 0.95 + 0.02))[4]
    np.testing.assert_allclose(info["proprioception"]["joint_position"], wanted, atol=1e-5)
    np.testing.assert_allclose(
        info["proprioception"]["gripper_position"], float(robot.gripper[0]) * 0.95 + 0.02, atol=1e-5
    )


def test_real_recording_is_followed(shared_data: Path) -> None:
    recording = read_droid(shared_data / "droid", "newsetup_0012", "cam0", frames=8)
    env = VapEnv(demo.ENV_ID, action_mode="joint_position", judge=None)
    env.reset(seed=0, options=recording.reset_options())
    followed = follow(env, recording, steps_per_frame=3)
    assert followed.behind_rad < 0.01
    assert followed.real.shape == followed.prompts.shape == followed.imagined.shape == (8, 96, 144, 3)
    np.testing.assert_array_equal(followed.real[0], followed.imagined[0])  # cut and resized by the same rule
    picture = strip(followed, recording, columns=4)
    assert picture.shape[0] > 3 * 144
    assert picture.shape[1] > 4 * 216


@pytest.mark.parametrize(
    ("episode", "camera", "says"),
    [
        ("newsetup_0012", "cam9", "No calibrated camera named 'cam9'. Did you mean 'cam"),
        ("newsetup_0010", "cam1", "newsetup_0010"),
    ],
)
def test_camera_without_calibration_is_told(shared_data: Path, episode: str, camera: str, says: str) -> None:
    with pytest.raises(VapError, match=says):
        read_droid(shared_data / "droid", episode, camera)


def test_absent_recordings_are_told(tmp_path: Path) -> None:
    with pytest.raises(VapError, match="No real recordings at .*env.reset\\(seed=0\\)"):
        read_droid(tmp_path)


def test_following_joints_needs_the_mode_for_it(shipped) -> None:
    env = VapEnv(demo.ENV_ID, judge=None)
    camera = shipped[0].camera
    recording = Recording(
        name="", frames=np.zeros((1, 96, 144, 3), np.uint8), joint_position=np.zeros((1, 7)),
        gripper_position=np.zeros(1), camera=camera, instruction="",
    )  # fmt: skip
    with pytest.raises(VapError, match="joint_position"):
        follow(env, recording)


# --- sheets ---


def test_sheet_holds_every_picture_in_its_place() -> None:
    rows = [[np.full((4, 6, 3), 10 * (3 * r + c), np.uint8) for c in range(3)] for r in range(2)]
    paper = sheet(rows)
    assert paper.shape[0] % 2 == paper.shape[1] % 2 == 0
    for r in range(2):
        for c in range(3):
            top, left = 16 + r * (4 + 6), 16 + c * (6 + 6)
            np.testing.assert_array_equal(paper[top : top + 4, left : left + 6], rows[r][c])


def test_sheet_is_wide_enough_for_its_words() -> None:
    narrow, wide = sheet([[GREY]]), sheet([[GREY]], title="A title that is longer than the picture is wide")
    assert wide.shape[1] > narrow.shape[1] + 300
    assert (wide[:, -16:] == wide[0, -1]).all(), "something stands in the margin"


@pytest.mark.parametrize(
    ("rows", "more", "says"),
    [
        ([[GREY], [GREY[:2]]], {}, "pictures of one size"),
        ([[GREY], [GREY, GREY]], {}, "rows of one length"),
        ([[None]], {}, "pictures of one size"),
        ([[GREY]], {"columns": ["a", "b"]}, "columns must be 1"),
        ([[GREY]], {"labels": ["a", "b"]}, "labels must be 1"),
    ],
)
def test_sheet_refuses_what_does_not_fit(rows, more, says: str) -> None:
    with pytest.raises(VapError, match=says):
        sheet(rows, **more)


def test_message_is_a_cell_like_the_others() -> None:
    cell = message("there is no picture", np.zeros((96, 144, 3), np.uint8))
    assert cell.shape == (96, 144, 3)
    assert cell.std() > 5


@pytest.mark.parametrize(("count", "among", "expected"), [(3, 5, [0, 2, 4]), (9, 3, [0, 1, 2]), (1, 4, [0])])
def test_spread_is_even_and_has_no_more_than_there_are(count: int, among: int, expected: list[int]) -> None:
    assert spread(count, among) == expected


def test_png_is_read_back_as_written(tmp_path: Path) -> None:
    write_png(tmp_path / "new" / "grey.png", GREY)
    with Image.open(tmp_path / "new" / "grey.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), GREY)
