"""Stills: pictures of many postures in a scene, with the columns of an episode; the same from the same seed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vap_gym.cards import load_env, load_robot
from vap_gym.data import Episode, EpisodeSet
from vap_gym.errors import UnknownNameError, VapError
from vap_gym.sim.generate import main as generate
from vap_gym.sim.layouts import draw_scene
from vap_gym.sim.rollout import VIEW, NominalRobot, record
from vap_gym.sim.scene import Scene
from vap_gym.sim.stills import LOWEST_M, MOST_OFF_M, stills


@pytest.fixture(scope="module", params=["VAP-DROID-v0", "VAP-Hand-v0"])
def made(request: Any) -> tuple[Episode, Episode, Episode]:
    """Stills, the same again, and an episode of the same scene."""
    card = load_env(request.param)
    robot = load_robot(card.robot)
    spec = draw_scene(600_003, layout=card.layout)
    with Scene(robot) as scene:
        nominal = NominalRobot(robot)
        once, again = (stills(scene, nominal, spec, frames=4) for _ in range(2))
        return once, again, record(scene, nominal, spec, "noop", frames=2)


def test_they_have_the_columns_of_an_episode(made: tuple[Episode, Episode, Episode]) -> None:
    once, _, episode = made
    assert set(once.columns) == set(episode.columns)
    for name, values in once.columns.items():
        assert values.shape == (4, *episode.columns[name].shape[1:]), name
        assert values.dtype == episode.columns[name].dtype, name
    assert once.frames[VIEW].shape == (4, 96, 144, 3)
    assert once.info["behaviour"] == "stills"
    assert set(once.info) == set(episode.info)


def test_the_robot_is_where_it_is_said_to_be_and_elsewhere_each_time(made: tuple[Episode, Episode, Episode]) -> None:
    columns = made[0].columns
    achieved, nominal = columns["observation.state"][:, :3], columns["nominal.cartesian_position"][:, :3]
    assert np.linalg.norm(achieved - nominal, axis=1).max() < MOST_OFF_M
    tool = columns["tool_m"]
    apart = np.linalg.norm(tool[:, None] - tool[None], axis=-1)[np.triu_indices(4, 1)]
    assert apart.min() > 0.01
    assert tool[:, 2].min() > made[0].info["scene"].get("table_z_m", 0.0) + LOWEST_M - 1e-3
    assert not columns["action"].any()
    pictures = made[0].frames[VIEW].astype(int)
    assert all(np.abs(pictures[i] - pictures[i + 1]).mean() > 0.5 for i in range(3))
    assert all((labels == 2).any() or (labels == 1).any() for labels in made[0].labels[VIEW])


def test_the_same_seed_shows_the_same(made: tuple[Episode, Episode, Episode]) -> None:
    for name, values in made[0].columns.items():
        assert np.array_equal(values, made[1].columns[name], equal_nan=values.dtype.kind == "f"), name
    assert np.array_equal(made[0].frames[VIEW], made[1].frames[VIEW])


def test_a_set_of_stills_is_written_and_pictures_are_needed(tmp_path: Path) -> None:
    generate(tmp_path / "set", episodes=2, frames=3, stills=True, workers=1, first_seed=600_000)
    found = EpisodeSet(tmp_path / "set")
    assert [found.length(i) for i in range(2)] == [3, 3]
    assert found.info(1)["behaviour"] == "stills"
    with pytest.raises(VapError, match="stills are pictures"):
        generate(tmp_path / "other", episodes=2, frames=3, stills=True, pictures=False)
    with pytest.raises(VapError, match="got the behaviour clumsy"):
        generate(tmp_path / "other", episodes=2, frames=3, stills=True, behaviour="clumsy")
    with pytest.raises(UnknownNameError, match="Did you mean 'clumsy'"):
        generate(tmp_path / "other", episodes=2, behaviour="clumsi")
    assert not (tmp_path / "other").exists()
