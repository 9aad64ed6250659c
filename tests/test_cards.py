"""Cards: the shipped ones read, and every mistake in one is an error that says how to mend it."""

import dataclasses
import shutil
from pathlib import Path

import pytest

from vap_gym.assets import envs_dir, robots_dir
from vap_gym.cards import known_envs, known_robots, load_env, load_robot
from vap_gym.errors import CardError, UnknownNameError


@pytest.fixture
def robot_folder(tmp_path: Path) -> Path:
    """A robot of one's own, outside the package."""
    return Path(shutil.copytree(robots_dir() / "panda_robotiq", tmp_path / "mine"))


def changed(folder: Path, old: str, new: str) -> Path:
    """Replace text in the folder's card, which must be there."""
    card = folder / "robot.toml"
    text = card.read_text()
    assert old in text
    card.write_text(text.replace(old, new))
    return folder


@pytest.mark.parametrize("name", known_robots())
def test_shipped_robots_read(name: str) -> None:
    robot = load_robot(name)
    assert robot.name == name == robot.folder.name
    assert robot.urdf_path.is_file()
    assert (robot.folder / "LICENSE").is_file()
    assert len(robot.home_q_rad) == len(robot.arm_joints) in (6, 7)
    assert {bone.start for bone in robot.skeleton.bones} < {point.name for point in robot.skeleton.keypoints}


def test_both_pandas_are_shipped() -> None:
    assert {"panda_hand", "panda_robotiq"} <= set(known_robots())


def test_droid_controller_has_the_published_steps() -> None:
    card = load_robot("panda_robotiq").controller
    assert (card.linear_step_m, card.rotation_step_rad, card.joint_step_rad, card.gripper_step) == (
        0.075,
        0.15,
        0.2,
        0.25,
    )
    assert (card.gain, card.lag_steps, card.control_hz) == (0.2, 1.0, 15.0)


@pytest.mark.parametrize("id_", known_envs())
def test_shipped_envs_read_and_name_a_robot(id_: str) -> None:
    env = load_env(id_)
    assert env.id == id_
    assert env.robot in known_robots()
    assert env.action_mode in load_robot(env.robot).action_modes


def test_droid_env_has_its_stated_defaults() -> None:
    env = load_env("VAP-DROID-v0")
    assert (env.frame_size_px, env.fps, env.action_mode, env.max_episode_steps) == (
        (144, 96),
        15,
        "cartesian_velocity",
        100,
    )


def test_cards_are_frozen_and_hashable() -> None:
    robot = load_robot("panda_hand")
    assert hash(robot) == hash(load_robot("panda_hand"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        robot.name = "other"  # type: ignore[misc]


def test_a_robot_is_read_by_folder_and_by_file(robot_folder: Path) -> None:
    assert load_robot(robot_folder) == load_robot(str(robot_folder / "robot.toml"))
    assert load_robot(robot_folder).urdf_path == robot_folder / "robot.urdf"


def test_near_miss_names_are_suggested() -> None:
    with pytest.raises(
        UnknownNameError, match=r"No robot named 'panda_robotic'\. Did you mean 'panda_robotiq'\? Known: "
    ):
        load_robot("panda_robotic")
    with pytest.raises(UnknownNameError, match=r"No env named 'VAP-DROID-v1'\. Did you mean 'VAP-DROID-v0'\? Known: "):
        load_env("VAP-DROID-v1")


def test_missing_card_and_missing_urdf_are_named(robot_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        CardError, match=r"No robot card at '.*nowhere.toml'\. Give a TOML file that exists, or a name: "
    ):
        load_robot(tmp_path / "nowhere.toml")
    (robot_folder / "robot.urdf").unlink()
    with pytest.raises(
        CardError, match=r"its URDF 'robot.urdf' is missing; looked for .*mine/robot.urdf\. Put it beside"
    ):
        load_robot(robot_folder)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("tip_link =", "tip_lnk =", r"No key named 'tip_lnk'\. Did you mean 'tip_link'\? Known: .*urdf"),
        ("lag_steps =", "lag_step =", r"controller: No key named 'lag_step'\. Did you mean 'lag_steps'\?"),
        (
            'kind = "robotiq_2f85"',
            'kind = "robotiq_2f84"',
            r"No choice named 'robotiq_2f84'\. Did you mean 'robotiq_2f85'\?",
        ),
        ('tip_link = "panda_link8"', "", r"the key 'tip_link' is missing; given: name, "),
        ("gain = 0.2 ", 'gain = "0.2" ', r"controller: gain must be of type float, got '0\.2'"),
        ("gain = 0.2 ", "gain = 2 ", r"gain and gripper_gain must be in \(0, 1\]"),
        ("gain = 0.2 ", "gain = true ", r"gain must be of type float, got True"),
        (
            "offset_m = [0.0,  0.0,    0.049]",
            "offset_m = [0.0, 0.049]",
            r"keypoints\[8\]: offset_m must have 3 entries, got 2",
        ),
        ("offset_m = [0.0,  0.0,    0.049]", "offset_m = 0.049", r"offset_m must be a list, got 0\.049"),
        ('end = "palm"', 'end = "plam"', r"skeleton: No key-point named 'plam'\. Did you mean 'palm'\? Known: "),
        ('{ name = "palm"', '{ name = "flange"', r"each key-point needs a name of its own"),
        ("home_q_rad = [0.0, ", "home_q_rad = [", r"home_q_rad must have an angle per arm joint \(7\), got 6"),
        ('urdf = "robot.urdf"', "urdf = 3", r"'urdf' must be a file name, got 3"),
        ('urdf = "robot.urdf"', 'folder = "x"', r"'folder' is not set in a card"),
        ("[skeleton]", "[skeleton", r"is no valid TOML: .*line"),
    ],
)
def test_mistake_in_a_robot_card_is_refused(robot_folder: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(CardError, match=message):
        load_robot(changed(robot_folder, old, new))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("fps =", "fsp =", r"No key named 'fsp'\. Did you mean 'fps'\?"),
        (
            "frame_size_px = [144, 96]",
            "frame_size_px = [144, 0]",
            r"frame_size_px, fps and max_episode_steps must be positive",
        ),
        (
            "terminate_on_success = true",
            "terminate_on_success = 1",
            r"terminate_on_success must be of type bool, got 1",
        ),
        (
            'id = "VAP-DROID-v0"',
            'id = "VAP-Mine-v0"',
            r"id is 'VAP-Mine-v0', but the file is named 'VAP-DROID-v0\.toml'",
        ),
        (
            'action_mode = "cartesian_velocity"',
            'action_mode = "cartesian"',
            r"No choice named 'cartesian'.* Known: bridge, cartesian_",
        ),
    ],
)
def test_mistake_in_an_env_card_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = (envs_dir() / "VAP-DROID-v0.toml").read_text()
    assert old in text
    card = tmp_path / "VAP-DROID-v0.toml"
    card.write_text(text.replace(old, new))
    with pytest.raises(CardError, match=message):
        load_env(card)


def test_an_env_card_of_ones_own_finds_a_robot_beside_it(robot_folder: Path, tmp_path: Path) -> None:
    text = (envs_dir() / "VAP-DROID-v0.toml").read_text().replace('"VAP-DROID-v0"', '"My-v0"')
    card = tmp_path / "My-v0.toml"
    card.write_text(text.replace('robot = "panda_robotiq"', 'robot = "./mine"'))
    assert load_env(card).folder == tmp_path
    assert load_robot(load_env(card).robot).folder == robot_folder.resolve()
    assert load_env("VAP-DROID-v0").robot == "panda_robotiq"
    card.write_text('folder = "here"\n' + text)
    with pytest.raises(CardError, match=r"'folder' is not set in a card"):
        load_env(card)
