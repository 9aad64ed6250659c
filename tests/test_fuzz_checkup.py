"""The doctor of data sets never crashes: whatever numbers a set holds, whatever bytes its files have."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pyarrow import parquet as pq

from vap_gym.cards import load_robot
from vap_gym.data import DataError, Episode, EpisodeSet, EpisodeWriter, finalise
from vap_gym.data.checkup import Sample, check_sample, check_set
from vap_gym.data.checkup.sample import Looked, Pictures
from vap_gym.data.conventions import ACTION, CARTESIAN, GRIPPER, JOINTS
from vap_gym.data.tables import INFO_COLUMN
from vap_gym.kinematics import load_chain

CARD = load_robot("panda_robotiq")
ARM = load_chain(CARD).subchain([CARD.tip_link])
NAMES = (
    JOINTS, CARTESIAN, GRIPPER, ACTION, "log.joint_position", "log.action_joint_position", "log.gripper_position",
    "log.action_gripper_position", "log.action_cartesian_position", "observation.quaternion", "pose",
)  # fmt: skip
SHAPES: tuple[tuple[int, ...], ...] = ((), (1,), (3,), (4,), (6,), (7,), (8,), (3, 7), (2, 6), (3, 1))
FILLS: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "normal": lambda v: v,
    "zeros": lambda v: 0 * v,
    "NaN": lambda v: np.where(v > 0, np.nan, v),
    "all NaN": lambda v: np.full_like(v, np.nan),
    "infinite": lambda v: np.where(v > 1, np.inf, v),
    "huge": lambda v: 1e300 * v,
    "integers": lambda v: (3 * v).astype(np.int64),
    "flags": lambda v: v > 0,
}


@st.composite
def any_episodes(draw: st.DrawFn) -> list[Looked]:
    """Episodes of one set of columns, of any shapes and numbers."""
    shapes = {name: draw(st.sampled_from(SHAPES)) for name in draw(st.lists(st.sampled_from(NAMES), unique=True))}
    mode, episodes = draw(st.sampled_from(["joint_position", "joint_velocity", "cartesian_pose", "bridge", None])), []
    for index in range(draw(st.integers(0, 3))):
        length, rng = draw(st.sampled_from([1, 2, 3, 9, 50])), np.random.default_rng(draw(st.integers(0, 9)))
        columns = {
            n: FILLS[draw(st.sampled_from(list(FILLS)))](rng.normal(size=(length, *s))) for n, s in shapes.items()
        }
        views = {"front": Pictures(motion=np.abs(rng.normal(size=length - 1)), spread=float(index))}
        episodes.append(Looked(index=index, columns=columns, info={"action_mode": mode}, views=views))
    return episodes


@settings(max_examples=120, deadline=None)
@given(any_episodes(), st.booleans(), st.floats(0.1, 1000))
def test_no_numbers_crash_it(episodes: list[Looked], is_known: bool, fps: float) -> None:
    card, arm = (CARD, ARM) if is_known else (None, None)
    sample = Sample(episodes=episodes, fps=fps, robot=CARD.name, card=card, arm=arm)
    assert all(str(finding) for finding in check_sample(sample))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small set of two episodes, gathered."""
    root = tmp_path_factory.mktemp("whole") / "set"
    writer = EpisodeWriter(root, fps=15, robot_type=CARD.name)
    for i in range(2):
        rng = np.random.default_rng(i)
        columns = {JOINTS: rng.normal(size=(9, 7)), ACTION: rng.normal(size=(9, 8)), GRIPPER: rng.random(9)}
        writer.append(
            Episode(frames={"front": rng.integers(0, 256, (9, 16, 24, 3), np.uint8)}, columns=columns, task="x")
        )
    finalise(root)
    return root


def copied(whole: Path, name: str) -> Path:
    """A fresh copy of a set."""
    copy = whole.parent / name
    shutil.rmtree(copy, ignore_errors=True)
    return Path(shutil.copytree(whole, copy))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_bytes_crash_it(whole: Path, data: st.DataObject) -> None:
    copy = copied(whole, "copy")
    files = sorted(path for path in copy.rglob("*") if path.is_file())
    path = data.draw(st.sampled_from(files + [copy / "meta" / "info.json"] * 2))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(0, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.sampled_from([len(content), len(content) // 2, 3, 0]))])
    try:
        told = [str(finding) for finding in check_set(copy)]
    except DataError as error:
        told = [str(error)]
    assert all(told)
    assert told


@pytest.mark.parametrize(
    "name", ["length", "episode_index", "data/file_index", "videos/observation.images.front/chunk_index"]
)
def test_a_damaged_name_of_a_column_is_told(whole: Path, name: str) -> None:
    copy = copied(whole, "named")
    path = next((copy / "meta" / "episodes").glob("*/*.parquet"))
    table = pq.read_table(path)
    named = {name: "x" + name[1:]}
    pq.write_table(table.rename_columns([named.get(column, column) for column in table.column_names]), path)
    with pytest.raises(DataError, match=f"must hold a column '{name}'"):
        EpisodeSet(copy).read(0)


@pytest.mark.parametrize("text", ["{", "[1]", "3"])
def test_a_damaged_story_of_an_episode_is_told(whole: Path, text: str) -> None:
    copy = copied(whole, "told")
    path = next((copy / "meta" / "episodes").glob("*/*.parquet"))
    table = pq.read_table(path)
    at = table.column_names.index(INFO_COLUMN)
    pq.write_table(table.set_column(at, INFO_COLUMN, pa.array([text] * len(table), pa.string())), path)
    with pytest.raises(DataError, match="must be a JSON object, got"):
        EpisodeSet(copy).info(0)
