"""The doctor of data sets: good sets are well, and every mistake made in a copy of one is found and named."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from vap_gym import cli
from vap_gym.cards import load_robot
from vap_gym.data import Episode, EpisodeSet, EpisodeWriter, write_video
from vap_gym.data.checkup import Finding, Sample, check_sample, take_sample
from vap_gym.data.checkup.sample import Pictures
from vap_gym.data.conventions import ACTION, CARTESIAN, GRIPPER, JOINTS
from vap_gym.data.importing.kinds import open_source
from vap_gym.data.importing.run import import_source
from vap_gym.data.importing.source import Options
from vap_gym.kinematics import load_chain

Columns = dict[str, NDArray[Any]]
CARD = load_robot("panda_robotiq")
FPS = 15


@cache
def made_columns(seed: int, steps: int = 130) -> Columns:
    """A Panda that moves and rests by turns, with the poses of its tip, and targets that lead it there at gain .2."""
    rng = np.random.default_rng(seed)
    t = np.arange(steps + 1)[:, None] / FPS
    pace = np.cumsum(np.clip(np.sin(1.7 * t + seed), 0, 1), axis=0) / FPS
    sway = rng.uniform(0.2, 0.5, 7) * np.sin(rng.uniform(1, 2, 7) * pace * 1.5 + rng.uniform(0, 6, 7))
    joints = np.array(CARD.home_q_rad) + sway
    T = load_chain(CARD).subchain([CARD.tip_link]).fk(torch.from_numpy(joints), CARD.tip_link).numpy()
    pose = np.concatenate([T[:, :3, 3], Rotation.from_matrix(T[:, :3, :3]).as_euler("xyz")], axis=1)
    closed = np.clip(np.sin(0.9 * t[:, 0] - 0.5), 0, 0.8)
    ahead = np.append(closed[3:], [closed[-1]] * 3)
    action = np.concatenate([joints[:-1] + np.diff(joints, axis=0) / 0.2, ahead[:-1, None]], axis=1)
    return {JOINTS: joints[:-1], CARTESIAN: pose[:-1], GRIPPER: closed[:-1], ACTION: action}


def made_episode(seed: int) -> Episode:
    """The columns above, and a view in which two blobs stand for the arm."""
    columns = made_columns(seed)
    rows, cols = np.mgrid[:48, :64]
    frames = np.full((len(columns[JOINTS]), 48, 64, 3), 60, np.uint8)
    for frame, pose in zip(frames, columns[CARTESIAN], strict=True):
        centre = 32 + 60 * (pose[1]), 24 - 60 * (pose[2] - 0.5)
        frame[(cols - centre[0]) ** 2 + (rows - centre[1]) ** 2 < 64] = (230, 120, 40)
    info = {"robot": CARD.name, "action_mode": "joint_position", "rate_hz": float(FPS)}
    return Episode(frames={"front": frames}, columns=dict(columns), task="wave", info=info)


@pytest.fixture(scope="module")
def made_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made") / "set"
    writer = EpisodeWriter(root, fps=FPS, robot_type=CARD.name)
    for seed in range(4):
        writer.append(made_episode(seed))
    return root


@pytest.fixture(scope="module")
def made(made_set: Path) -> Sample:
    return take_sample(EpisodeSet(made_set), 4)


@pytest.fixture(scope="module")
def real(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Sample:
    """The four real DROID episodes that have actions."""
    path, out = shared_data / "droid", tmp_path_factory.mktemp("real") / "set"
    import_source(open_source("droid", path, Options()), path, out, only="subset_*")
    return take_sample(EpisodeSet(out), 4)


@pytest.fixture(params=["made", "real"])
def good(request: pytest.FixtureRequest) -> Sample:
    """A set in which nothing is wrong."""
    sample: Sample = request.getfixturevalue(request.param)
    return sample


def findings(sample: Sample, level: str = "fail") -> dict[str, str]:
    return {f.subject: str(f) for f in check_sample(sample) if f.level == level}


def changed(sample: Sample, change: Callable[[Columns], Mapping[str, Any]], **info: Any) -> Sample:
    """A copy of a sample with other columns and info in every episode."""
    episodes = [
        replace(e, columns={**e.columns, **change(dict(e.columns))}, info={**e.info, **info}) for e in sample.episodes
    ]
    return replace(sample, episodes=episodes)


def shown(sample: Sample, change: Callable[[Pictures], Pictures]) -> Sample:
    """A copy of a sample with other pictures in every view."""
    episodes = [replace(e, views={view: change(p) for view, p in e.views.items()}) for e in sample.episodes]
    return replace(sample, episodes=episodes)


def test_good_sets_are_well(good: Sample) -> None:
    assert findings(good) == {}
    assert findings(good, "note").keys() <= {"tracking", "euler wrap"}


def test_real_actions_are_said_to_be_no_displacements(real: Sample) -> None:
    """As known of DROID: .18 to .26 of a command is realised in a step, about one step later."""
    told = [f.text for f in check_sample(real) if f.subject == "tracking"]
    assert len(told) == 3
    assert all("Actions are not displacements" in text and "1 step later" in text for text in told)
    assert "a row realises 0.2 (0.18 to 0.22) of what 'log.action_joint_position' asks for" in told[0]


def test_made_actions_have_the_gain_that_they_were_made_with(made: Sample) -> None:
    assert (
        "a row realises 0.2 (0.2 to 0.2) of what 'action' asks for, in the same step"
        in findings(made, "note")["tracking"]
    )


def local_shift(columns: Columns, offset: tuple[float, float, float]) -> NDArray[Any]:
    pose = columns[CARTESIAN].copy()
    pose[:, :3] += Rotation.from_euler("xyz", pose[:, 3:]).apply(offset)
    return pose


def other_euler(pose: NDArray[Any], order: str) -> NDArray[Any]:
    return np.concatenate([pose[:, :3], Rotation.from_euler("xyz", pose[:, 3:]).as_euler(order)], axis=1)


def with_entry(values: NDArray[Any], place: Any, entry: Any) -> NDArray[Any]:
    copy = values.copy()
    copy[place] = entry
    return copy


MISTAKES: dict[str, tuple[Callable[[Columns], Mapping[str, Any]], str, str]] = {
    "joints in degrees": (lambda c: {JOINTS: np.rad2deg(c[JOINTS])}, "degrees", "multiply them by π/180"),
    "angles in degrees": (lambda c: {CARTESIAN: c[CARTESIAN] * ([1] * 3 + [57.3] * 3)}, "degrees", "must be radians"),
    "millimetres": (lambda c: {CARTESIAN: c[CARTESIAN] * ([1e3] * 3 + [1] * 3)}, "reach", "like millimetres"),
    "centimetres": (lambda c: {CARTESIAN: c[CARTESIAN] * ([1e2] * 3 + [1] * 3)}, "reach", "like centimetres"),
    "kilometres": (lambda c: {CARTESIAN: c[CARTESIAN] * ([1e-3] * 3 + [1] * 3)}, "reach", "inside the base itself"),
    "joint of the wrong sign": (lambda c: {JOINTS: c[JOINTS] * [1, 1, 1, -1, 1, 1, 1]}, "limits", "panda_joint4 goes"),
    "joints in another order": (lambda c: {JOINTS: c[JOINTS][:, ::-1]}, "kinematics", "order, signs"),
    "NaN": (lambda c: {CARTESIAN: with_entry(c[CARTESIAN], 10, np.nan)}, "NaN", "in 4 rows of episodes 0, 1, 2, 3"),
    "frozen log": (lambda c: {JOINTS: 0 * c[JOINTS] + c[JOINTS][:1]}, "constant", "never changes"),
    "jump": (lambda c: {JOINTS: with_entry(c[JOINTS], np.s_[40:], 0.3 * c[JOINTS][40:])}, "jump", "row 39 to 40"),
    "other euler angles": (lambda c: {CARTESIAN: other_euler(c[CARTESIAN], "zyx")}, "kinematics", "as extrinsic zyx"),
    "pose of the tool": (lambda c: {CARTESIAN: local_shift(c, (0, 0, 0.3))}, "kinematics", "to the tip, at .*0.300"),
    "another base": (lambda c: {CARTESIAN: c[CARTESIAN] + [0.1, 0, 0, 0, 0, 0]}, "kinematics", r"shifted by \(0.100"),
    "rows shifted": (lambda c: {JOINTS: np.roll(c[JOINTS], 5, axis=0)}, "kinematics", "read 5 rows later"),
    "gripper flipped": (
        lambda c: {name: 1 - c[name] for name in (GRIPPER, "log.gripper_position") if name in c},
        "gripper", "the opposite of 'action'",
    ),
    "gripper in bytes": (lambda c: {GRIPPER: c[GRIPPER] * 255}, "gripper", "Divided by 255 they would fit"),
    "deltas stated as targets": (
        lambda c: {ACTION: c[ACTION] - np.pad(c[JOINTS], ((0, 0), (0, 1)))},
        "action", "an absolute target, but it behaves like",
    ),
    "targets in degrees": (lambda c: {ACTION: np.rad2deg(c[ACTION])}, "action", r"divide by 5\d(\.\d+)? \(degrees\)"),
    "actions late": (
        lambda c: {name: np.roll(v, 3, axis=0) for name, v in c.items() if "action" in name},
        "tracking", "rows after the motion",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_found_and_named(mistake: str, good: Sample) -> None:
    change, subject, told = MISTAKES[mistake]
    wrong = changed(good, change)
    texts = [str(f) for f in check_sample(wrong) if f.level == "fail" and f.subject == subject]
    assert any(re.search(told, text) for text in texts), (texts, findings(wrong))


def test_targets_stated_as_velocities_are_found(good: Sample) -> None:
    wrong = changed(good, lambda c: {}, action_mode="joint_velocity")
    assert "Name it as what it is: joint_position" in findings(wrong)["action"]


def test_velocities_that_are_much_too_small_or_come_early_are_found(made: Sample) -> None:
    def velocities(c: Columns, share: float) -> Columns:
        moved = np.diff(c[JOINTS], axis=0, append=c[JOINTS][-1:]) / 0.2 / CARD.controller.joint_step_rad
        return {ACTION: np.concatenate([moved * share, c[ACTION][:, 7:]], axis=1)}

    right = changed(made, lambda c: velocities(c, 1), action_mode="joint_velocity")
    assert not findings(right).keys() & {"tracking", "action"}
    wrong = changed(made, lambda c: velocities(c, 1 / 55), action_mode="joint_velocity")
    assert "The scale of the commands is off" in findings(wrong)["tracking"]
    late = changed(right, lambda c: {ACTION: np.roll(c[ACTION], -7, axis=0)})
    assert "The robot answers late: a row realises" in findings(late, "note")["tracking"]


def test_rate_faster_than_the_joints_can_move_is_found(good: Sample) -> None:
    assert "times their greatest speed" in findings(replace(good, fps=150.0))["rate"]


@pytest.mark.parametrize(("order", "found"), [("xyzw", False), ("wxyz", True)])
def test_order_of_quaternions_is_told_by_the_angles_beside_them(order: str, found: bool, good: Sample) -> None:
    def quaternions(c: Columns) -> Columns:
        xyzw = Rotation.from_euler("xyz", c[CARTESIAN][:, 3:]).as_quat()
        return {"observation.tip_quaternion": xyzw if order == "xyzw" else np.roll(xyzw, 1, axis=1)}

    told = findings(changed(good, quaternions))
    assert ("quaternion" in told) == found
    scaled = changed(good, lambda c: {"observation.tip_quaternion": 2 * quaternions(c)["observation.tip_quaternion"]})
    assert "must have norm 1" in findings(scaled)["quaternion"]


def test_angles_that_wrap_are_noted(made: Sample) -> None:
    def unwrapped(c: Columns) -> Columns:
        return {CARTESIAN: np.concatenate([c[CARTESIAN][:, :3], np.unwrap(c[CARTESIAN][:, 3:], axis=0)], axis=1)}

    assert "pass ±π" in findings(made, "note")["euler wrap"]  # the gripper points down: a roll about π
    assert "euler wrap" not in findings(changed(made, unwrapped), "note")


def test_states_that_are_held_for_several_frames_are_noted(good: Sample) -> None:
    held = changed(good, lambda c: {n: v[np.arange(len(v)) // 3 * 3] for n, v in c.items() if n in (JOINTS, CARTESIAN)})
    assert "leave observation.joint_position exactly as it was" in findings(held, "note")["repeats"]


def assert_lag_is_told(sample: Sample, lag: int) -> None:
    late = shown(sample, lambda p: replace(p, motion=np.roll(p.motion, lag)))
    texts = [f.text for f in check_sample(late) if f.subject == "lag"]
    order = "after" if lag > 0 else "before"
    assert len(texts) == (len(sample.episodes[0].views) if abs(lag) > 1 else 0)
    assert all(f"shows motion {abs(lag)} frames {order} the states" in text for text in texts)


@pytest.mark.parametrize("lag", [-4, -1, 0, 1, 4])
def test_lag_between_pictures_and_states_is_found_to_the_frame(lag: int, good: Sample) -> None:
    assert_lag_is_told(good, lag)


@pytest.mark.parametrize("lag", [-2, 2])
def test_lag_of_two_frames_is_found_in_real_pictures(lag: int, real: Sample) -> None:
    """Real arms start and stop; the made one moves so smoothly that two of its frames are within the doubt."""
    assert_lag_is_told(real, lag)


def test_blank_and_frozen_views_are_found(good: Sample) -> None:
    blank = shown(good, lambda p: replace(p, motion=0 * p.motion, spread=0.0))
    assert "is blank in 4 of 4 episodes" in findings(blank)["blank"]
    frozen = shown(good, lambda p: replace(p, motion=0 * p.motion))
    assert "is frozen while the robot moves in 4 of 4" in findings(frozen)["frozen"]


def test_flipped_gripper_of_velocities_and_of_bridge_is_found(made: Sample) -> None:
    def closing(c: Columns, sign: float) -> Columns:
        return {ACTION: np.concatenate([c[ACTION][:, :6], sign * np.sign(np.gradient(c[GRIPPER]))[:, None]], axis=1)}

    for sign, is_found in ((1, False), (-1, True)):
        sample = changed(made, lambda c, s=sign: closing(c, s), action_mode="cartesian_delta")
        assert ("gripper" in findings(sample)) == is_found
    for flipped in (False, True):
        opened = changed(
            made, lambda c, f=flipped: {ACTION: with_entry(c[ACTION], np.s_[:, 7], c[GRIPPER] if f else 1 - c[GRIPPER])}
        )
        assert ("gripper" in findings(changed(opened, lambda c: {}, action_mode="bridge"))) == flipped


NOTES: dict[str, tuple[Callable[[Columns], Mapping[str, Any]], str, str]] = {
    "begins closed": (lambda c: {GRIPPER: 1 - c[GRIPPER]}, "gripper", "4 of 4 episodes in which .* begin closed"),
    "metres for closedness": (lambda c: {GRIPPER: 0.085 * c[GRIPPER]}, "gripper", "never exceeds 0.068"),
    "gripper not logged": (lambda c: {GRIPPER: 0 * c[GRIPPER]}, "constant", "gripper_position never changes"),
    "entry not logged": (lambda c: {ACTION: c[ACTION] * [1, 1, 1, 0, 1, 1, 1, 1]}, "constant", "never change: 3 of 8"),
    "slow": (lambda c: {JOINTS: c[JOINTS][:1] + 0.003 * (c[JOINTS] - c[JOINTS][:1])}, "rate", "stay below"),
    "nothing to do with it": (
        lambda c: {ACTION: c[ACTION][0] + np.random.default_rng(0).normal(size=c[ACTION].shape) * 0.1},
        "tracking", "does not explain the motion",
    ),
}  # fmt: skip


@pytest.mark.parametrize("doubt", NOTES)
def test_what_may_be_right_is_noted(doubt: str, made: Sample) -> None:
    change, subject, told = NOTES[doubt]
    mode = "cartesian_delta" if doubt == "nothing to do with it" else "joint_position"
    texts = [f.text for f in check_sample(changed(made, change, action_mode=mode)) if f.level == "note"]
    assert any(re.search(told, text) for text in texts), texts
    assert subject in {f.subject for f in check_sample(changed(made, change, action_mode=mode)) if f.level == "note"}


@pytest.mark.parametrize(
    ("kind", "told"), [("target", "behaves like joint_position"), ("step", "behaves like joint_velocity")]
)
def test_actions_of_no_stated_convention_are_guessed(kind: str, told: str, made: Sample) -> None:
    def steps(c: Columns) -> Columns:
        return {
            ACTION: np.concatenate([np.diff(c[JOINTS], axis=0, append=c[JOINTS][-1:]) * 3, c[ACTION][:, 7:]], axis=1)
        }

    unstated = changed(made, (lambda c: {}) if kind == "target" else steps, action_mode=None)
    assert told in findings(unstated, "note")["action"]


def test_a_gripper_that_opens_a_little_past_open_is_well(good: Sample) -> None:
    assert "gripper" not in findings(changed(good, lambda c: {GRIPPER: 1.12 * c[GRIPPER] - 0.12}))


def test_other_robot_is_told(made: Sample, made_set: Path) -> None:
    assert "No card is known" in findings(replace(made, robot="r2d2", card=None, arm=None), "note")["robot"]
    sample = take_sample(EpisodeSet(made_set), 1, "widowx")
    assert "has 7 entries, and 'widowx' has 6 joints" in findings(sample)["robot"]


def test_every_failure_says_why_it_matters_and_what_would_mend_it(good: Sample) -> None:
    told: list[Finding] = []
    for change, _, _ in MISTAKES.values():
        told += [f for f in check_sample(changed(good, change)) if f.level != "ok"]
    assert all(f.why and f.mend and any(c.isdigit() for c in f.text) for f in told if f.level == "fail")


def test_doctor_ends_well_on_a_good_set_and_with_1_on_a_broken_one(
    made_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert doctor(made_set) == 0
    assert capsys.readouterr().out.endswith("all is well\n")
    assert doctor(made_set, "--json") == 0
    assert json.loads(capsys.readouterr().out)["broken"] == 0
    broken = tmp_path / "set"
    writer = EpisodeWriter(broken, fps=FPS, robot_type=CARD.name)
    for seed in range(2):
        episode = made_episode(seed)
        still = np.repeat(episode.frames["front"][:1], len(episode), axis=0)
        views = {**episode.frames, "side": still, "wrist": 0 * still}
        columns = {**episode.columns, JOINTS: np.rad2deg(episode.columns[JOINTS])}
        writer.append(replace(episode, frames=views, columns=columns))
    path, _ = EpisodeSet(broken).video_of(1, "front")
    write_video(path, made_episode(1).frames["front"][:-7], FPS, codec="h264_444")
    assert doctor(broken) == 1
    told = capsys.readouterr().out
    assert "Episode 1 has 130 rows and 123 frames of 'front'" in told
    assert "fail  degrees" in told
    assert "View 'side' is frozen while the robot moves in 1 of 1 episodes" in told
    assert "View 'wrist' is blank in 1 of 1 episodes" in told
    assert "multiply them by π/180" in told
    assert (
        told.splitlines()[-1] == "5 broken"
    )  # frames, that episode, degrees, frozen, blank: no consequences of degrees


def doctor(root: Path, *words: str) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main(["doctor", str(root), *words])
    assert isinstance(stop.value.code, int)
    return stop.value.code


def test_set_that_is_none_is_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", str(tmp_path)]) == 2
    assert "is not a data set" in capsys.readouterr().err
    assert cli.main(["doctor", str(tmp_path), "--episodes", "0"]) == 2
    assert "must be 1 or more, got 0" in capsys.readouterr().err


def test_unknown_robot_is_told_with_the_nearest_name(made_set: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", str(made_set), "--robot", "panda_robotic"]) == 2
    assert "Did you mean 'panda_robotiq'?" in capsys.readouterr().err
