"""Field maps: units, orders and polarities come out right, identities keep their bits, mistakes are refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from vap_gym.data import DataError, EpisodeSet, write_video
from vap_gym.data.conventions import ACTION, CARTESIAN, GRIPPER, JOINTS
from vap_gym.data.importing import fieldmap
from vap_gym.data.importing.fieldmap import (
    EULER_ORDERS,
    ActionMap,
    FieldMap,
    GripperMap,
    JointsMap,
    PoseMap,
    read_map,
)
from vap_gym.data.importing.kinds import open_source
from vap_gym.data.importing.run import import_source
from vap_gym.data.importing.source import Options
from vap_gym.errors import CardError, UnknownNameError, VapError

QUICK = settings(max_examples=25, deadline=None)


def mapped(log: dict[str, NDArray[Any]], **sections: Any) -> dict[str, NDArray[Any]]:
    return FieldMap(**sections).columns(log, "log.npz")


@QUICK
@given(seed=st.integers(0, 99), dtype=st.sampled_from(["float32", "float64"]))
def test_identities_keep_every_bit(seed: int, dtype: str) -> None:
    rng = np.random.default_rng(seed)
    log = {"q": rng.normal(size=(5, 7)), "g": rng.random(5), "p": rng.normal(size=(5, 6)), "a": rng.normal(size=(5, 8))}
    log = {name: values.astype(dtype) for name, values in log.items()}
    log["p"][0, 3:] = (4.0, -5.0, 6.0)  # angles that no other convention would give
    columns = mapped(
        log,
        joints=JointsMap(field="q"),
        gripper=GripperMap(field="g"),
        pose=PoseMap(position="p[0:3]", orientation="p[3:6]"),
        action=ActionMap(fields=("a",)),
        other={"raw.q": "q"},
    )
    for column, name in ((JOINTS, "q"), (GRIPPER, "g"), (CARTESIAN, "p"), (ACTION, "a"), ("raw.q", "q")):
        assert (columns[column].dtype, columns[column].tobytes()) == (log[name].dtype, log[name].tobytes())


@QUICK
@given(
    seed=st.integers(0, 999),
    order=st.sampled_from(EULER_ORDERS),
    frame=st.sampled_from(["extrinsic", "intrinsic"]),
    angle_unit=st.sampled_from(["rad", "deg"]),
    position_unit=st.sampled_from(["m", "mm"]),
)
def test_any_euler_convention_is_the_same_rotation(
    seed: int, order: str, frame: str, angle_unit: str, position_unit: str
) -> None:
    rng = np.random.default_rng(seed)
    position = rng.normal(size=(6, 3))
    angles = rng.uniform(-1.4, 1.4, (6, 3)) if angle_unit == "rad" else rng.uniform(-80, 80, (6, 3))
    log = {"t": position, "r": angles}
    pose = PoseMap(
        position="t",
        orientation="r",
        euler_order=order,
        euler_frame=frame,
        angle_unit=angle_unit,
        position_unit=position_unit,
    )
    column = mapped(log, pose=pose)[CARTESIAN]
    wanted = Rotation.from_euler(order if frame == "extrinsic" else order.upper(), angles, degrees=angle_unit == "deg")
    got = Rotation.from_euler("xyz", column[:, 3:])
    assert (wanted.inv() * got).magnitude().max() < 1e-7
    assert column[:, :3] == pytest.approx(position * (1 if position_unit == "m" else 1e-3))


@QUICK
@given(seed=st.integers(0, 999), order=st.sampled_from(["xyzw", "wxyz"]), sign=st.sampled_from([1, -1]))
def test_quaternions_of_either_order_and_sign_are_the_same_rotation(seed: int, order: str, sign: int) -> None:
    wanted = Rotation.random(5, rng=np.random.default_rng(seed))
    xyzw = sign * wanted.as_quat()
    log = {"t": np.zeros((5, 3)), "r": xyzw if order == "xyzw" else xyzw[:, [3, 0, 1, 2]]}
    pose = PoseMap(position="t", orientation="r", kind="quaternion", quaternion_order=order)
    got = Rotation.from_euler("xyz", mapped(log, pose=pose)[CARTESIAN][:, 3:])
    assert (wanted.inv() * got).magnitude().max() < 1e-7


@pytest.mark.parametrize(
    ("gripper", "given_values", "closedness"),
    [
        (GripperMap(field="g"), [0.0, 0.25, 1.0], [0, 0.25, 1]),
        (GripperMap(field="g", means="openness"), [0.0, 0.25, 1.0], [1, 0.75, 0]),
        (GripperMap(field="g", range=(0.0, 255.0)), [0.0, 51.0, 255.0], [0, 0.2, 1]),
        (GripperMap(field="g", means="openness", range=(0.0, 100.0)), [0.0, 25.0, 100.0], [1, 0.75, 0]),
        (GripperMap(field="g", means="opening", unit="m", max_opening=0.085), [0.085, 0.017, 0.0], [0, 0.8, 1]),
        (GripperMap(field="g", means="opening", unit="mm", max_opening=85.0), [85.0, 17.0, 0.0], [0, 0.8, 1]),
    ],
)
def test_grippers_become_closedness(gripper: GripperMap, given_values: list[float], closedness: list[float]) -> None:
    for shape in ((3,), (3, 1)):
        column = mapped({"g": np.array(given_values).reshape(shape)}, gripper=gripper)[GRIPPER]
        assert column == pytest.approx(np.array(closedness))


def test_degrees_slices_and_scaled_actions() -> None:
    log = {"state": np.arange(24.0).reshape(3, 8), "g": np.array([0.0, 1.0, 0.5])}
    columns = mapped(
        log,
        joints=JointsMap(field="state[1:8]", unit="deg"),
        action=ActionMap(fields=("state[0]", "g"), scale=(2.0, -1.0), offset=(0.0, 1.0)),
    )
    assert np.array_equal(columns[JOINTS], np.deg2rad(log["state"][:, 1:]))
    assert np.array_equal(columns[ACTION], [[0, 1], [16, 0], [32, 0.5]])


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"joints": JointsMap(field="qq")}, r"No field of log.npz named 'qq'. Did you mean 'q'\? Known: g, q, r, t."),
        ({"joints": JointsMap(field="g")}, r"'g' of log.npz must be numbers of shape \(T, n\), got float64 \(4,\)"),
        ({"joints": JointsMap(field="q[5:9]")}, r"'q\[5:9\]' needs q of log.npz to be as wide, got \(4, 7\)"),
        (
            {"gripper": GripperMap(field="q")},
            r"numbers of shape \(T,\), got float64 \(4, 7\). Name another field, or a",
        ),
        ({"gripper": GripperMap(field="g", range=(0.0, 0.5))}, "must be in 0 to 1, got 0 to 2. Correct means, unit"),
        ({"pose": PoseMap(position="q", orientation="r")}, r"of shape \(T, 3\), got float64 \(4, 7\)"),
        (
            {"pose": PoseMap(position="t", orientation="r", kind="quaternion", quaternion_order="xyzw")},
            r"'r' of log.npz must be numbers of shape \(T, 4\)",
        ),
        (
            {"pose": PoseMap(position="q[4:7]", orientation="q[0:4]", kind="quaternion", quaternion_order="xyzw")},
            "must have norm 1, got 4 in row 0. Name the right field, or normalise",
        ),
        ({"joints": JointsMap(field="q"), "other": {"x": "t"}}, "must have the same rows, got .* 4, x 5. Name fields"),
        ({"pose": PoseMap(position="t", orientation="r")}, "must have the same rows, got 5 and 4"),
        ({"action": ActionMap(fields=("q", "t"))}, r"must all be \(T, n\) or \(T,\), got q \(4, 7\), t \(5, 3\)"),
        ({"action": ActionMap(fields=("q",), scale=(1.0, 2.0))}, r"scale needs a number per entry .* \(7\), got 2"),
    ],
)
def test_logs_that_are_not_what_the_map_says_are_refused(sections: dict[str, Any], message: str) -> None:
    log = {"q": np.full((4, 7), 2.0), "g": np.linspace(0, 1, 4), "t": np.zeros((5, 3)), "r": np.zeros((4, 3))}
    with pytest.raises((DataError, UnknownNameError), match=message):
        mapped(log, **sections)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[joints]\nfield = "q"\nunit = "grad"', "joints: unit: No choice named 'grad'.* Known: deg, rad"),
        ('[pose]\nposition = "p"\norientation = "r"\neuler_order = "rpy"', "No choice named 'rpy'"),
        ('[pose]\nposition = "p"\norientation = "r"\nkind = "quaternion"', "needs quaternion_order .* say which"),
        ('[gripper]\nfield = "g"\nmeans = "opening"\nunit = "cm"', "unit: No choice named 'cm'"),
        (
            '[gripper]\nfield = "g"\nmeans = "opening"\nunit = "m"',
            "needs its unit and max_opening > 0, got unit 'm' and 0",
        ),
        ('[gripper]\nfield = "g"\nrange = [1, 1]', "range must be two different values"),
        ('[action]\nfields = ["a"]', "needs fields and an action_mode, got .*none. Say what the commands mean"),
        ('action_mode = "joint"\n', r"No action_mode named 'joint'\. Known: .*joint_position"),
        ("rate_hz = 0", "rate_hz must be a number above 0, got 0"),
        ("rate_hz = -15.0", "rate_hz must be a number above 0, got -15.0"),
        ('[joint]\nfield = "q"', "No key named 'joint'. Did you mean 'joints'"),
        ('[joints]\nfield = "q"\nunits = "deg"', "joints: No key named 'units'. Did you mean 'unit'"),
        ("[joints]", "joints: the key 'field' is missing"),
        ("joints = 3", r"\[joints\] must be a table, got 3"),
        ('[other]\n"a" = 3', "other: 'a' must be the name of a field, got 3"),
        ("[views.a]\nsize_px = [3]", r"views.a: size_px must have 2 entries, got 1"),
        ("= nonsense", "must be a field map in TOML or JSON, got"),
    ],
)
def test_wrong_maps_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "map.toml").write_text(text)
    with pytest.raises(CardError, match=message):
        read_map(tmp_path / "map.toml")


def test_map_in_the_documentation_is_a_right_one(tmp_path: Path) -> None:
    documented = str(fieldmap.__doc__).split("```")[1].removeprefix("toml")
    (tmp_path / "map.toml").write_text(documented)
    made = read_map(tmp_path / "map.toml")
    assert (made.robot, made.action_mode, made.views["front"].size_px) == (
        "panda_robotiq",
        "joint_position",
        (320, 192),
    )


def make_files(root: Path, *, count: int = 5, shown: int = 5) -> None:
    """Two episodes of a robot with degrees, millimetres, wxyz quaternions and an openness in percent."""
    for i in range(2):
        rng = np.random.default_rng(i)
        (root / f"run{i}").mkdir(parents=True)
        quaternion = Rotation.random(count, rng=rng).as_quat()[:, [3, 0, 1, 2]]
        log = {"q_deg": rng.uniform(-90, 90, (count, 6)), "open": rng.integers(0, 101, count), "tcp": rng.random((count, 3)), "quat": quaternion}  # fmt: skip  # noqa: E501
        if i:
            np.savez(root / f"run{i}/log.npz", **log)
        else:
            (root / f"run{i}/log.json").write_text(json.dumps({name: v.tolist() for name, v in log.items()}))
        (root / f"run{i}/note.json").write_text(json.dumps({"say": f"task {i}"}))
        frames = rng.integers(0, 256, (shown, 2, 3, 3), np.uint8).repeat(8, 1).repeat(8, 2)
        write_video(root / f"run{i}/front.mp4", frames, 30)


MAP = """
robot = "my_arm"
rate_hz = 10
[joints]
field = "q_deg"
unit = "deg"
[gripper]
field = "open"
means = "openness"
range = [0, 100]
[pose]
position = "tcp"
position_unit = "mm"
orientation = "quat"
kind = "quaternion"
quaternion_order = "wxyz"
[views.front]
file = "front.mp4"
size_px = [24, 16]
[episodes]
log = "run*/log.*"
note = "note.json"
task = "say"
"""


def test_files_of_anyones_robot_are_imported_by_a_map(tmp_path: Path) -> None:
    make_files(tmp_path / "in")
    (tmp_path / "map.toml").write_text(MAP)
    source = open_source("files", tmp_path / "in", Options(map_path=tmp_path / "map.toml"))
    report = import_source(source, tmp_path / "in", tmp_path / "out")
    assert ([o.name for o in report.outcomes], report.fps, report.failed) == (["run0/log", "run1/log"], 10, ())
    episodes = EpisodeSet(tmp_path / "out")
    log = np.load(tmp_path / "in/run1/log.npz")
    assert np.array_equal(episodes[1].columns[JOINTS], np.deg2rad(log["q_deg"]))
    assert episodes[1].columns[GRIPPER] == pytest.approx(1 - log["open"] / 100)
    assert episodes[1].columns[CARTESIAN][:, :3] == pytest.approx(log["tcp"] / 1000)
    assert (episodes.task(0), episodes.info(0)["robot"], episodes.info(0)["rate_hz"]) == ("task 0", "my_arm", 10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("[24, 16]", "[320, 192]"), "'front' of .* must be 320x192 px, got 24x16. Correct size_px"),
        (("wxyz", "xyzw"), ""),
        (('"front.mp4"', '"back.mp4"'), "No video at .*back.mp4"),
        (('"tcp"', '"tcp[0:2]"'), r"of shape \(T, 3\), got float64 \(5, 2\)"),
        (('"note.json"', '"notes.json"'), "notes.json must be readable, got"),
        (('"run*/log.*"', '"*/log.csv"'), "must hold logs that match .*, got none. Correct"),
        (('"run*/log.*"', '"run*/front.mp4"'), "must be an npz or json log, got '.mp4'"),
    ],
)
def test_recordings_that_do_not_fit_the_map_are_told(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    make_files(tmp_path / "in")
    (tmp_path / "map.toml").write_text(MAP.replace(*change))
    path = tmp_path / "in"
    try:
        source = open_source("files", path, Options(map_path=tmp_path / "map.toml"))
        report = import_source(source, path, tmp_path / "out")
        told = str(report.failed[0].failed if report.failed else "")
    except VapError as error:
        told = str(error)
    if message:
        with pytest.raises(DataError, match=message):
            raise DataError(told)
        assert not (tmp_path / "out").exists()
    else:
        assert told == ""


def test_frames_and_rows_that_differ_are_refused(tmp_path: Path) -> None:
    make_files(tmp_path / "in", count=5, shown=7)
    (tmp_path / "map.toml").write_text(MAP)
    source = open_source("files", tmp_path / "in", Options(map_path=tmp_path / "map.toml"))
    report = import_source(source, tmp_path / "in", tmp_path / "out")
    assert "must have the same number of frames, got front 7, observation.joint_position 5" in str(
        report.failed[0].failed
    )
    with pytest.raises(DataError, match="needs a field map that tells what the fields are, got none"):
        open_source("files", tmp_path / "in", Options())
