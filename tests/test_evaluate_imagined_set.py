"""Oracle episodes as the world model shows them: its pictures, the simulator's truth, less what nobody can know."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vap_gym.data import Episode, EpisodeSet
from vap_gym.errors import VapError
from vap_gym.evaluate import imagined_set
from vap_gym.evaluate.imagined_set import BACKGROUND, DRAWER, FIRST_OBJECT, shown_truth
from vap_gym.sim import generate

pytest.importorskip("pybullet", reason="the oracle needs pybullet")
STEPS, ENV = 4, "VAP-Bridge-v0"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("imagined") / "true"
    told = generate.main(folder, episodes=2, frames=8, env=ENV, workers=1)
    assert told == {"out": folder, "episodes": 2, "recorded": 2}
    return folder


def test_pictures_are_imagined_and_all_else_is_true(source: Path, tmp_path: Path) -> None:
    told = imagined_set.main(source, tmp_path / "out", env=ENV, steps=STEPS, every=2, batch=2)
    assert told == {"out": tmp_path / "out", "episodes": 2, "imagined": 2}
    given, made = EpisodeSet(source), EpisodeSet(tmp_path / "out")
    assert [made.index(i) for i in range(len(made))] == [0, 1]
    for i in range(2):
        begin = 7 * i % (8 - STEPS)
        true, one = given.read(i, start=begin, stop=begin + STEPS + 1), made.read(i)
        assert len(one) == 2
        np.testing.assert_array_equal(one.columns["tool_m"], true.columns["tool_m"][2::2])
        seen = one.labels["front"] != BACKGROUND
        np.testing.assert_array_equal(one.labels["front"][seen], true.labels["front"][2::2][seen])
        off = np.abs(one.frames["front"].astype(int) - true.frames["front"][2::2].astype(int))
        assert 0.0 < off.mean() < 12.0
    assert imagined_set.main(source, tmp_path / "out", env=ENV, steps=STEPS, every=2)["imagined"] == 0  # none is left
    with pytest.raises(VapError, match="more than 9 frames"):
        imagined_set.main(source, tmp_path / "long", env=ENV, steps=9)
    with pytest.raises(VapError, match="--env"):
        imagined_set.main(source, tmp_path / "other", env="VAP-RT1-v0", steps=STEPS)


def test_what_the_first_frame_hides_is_not_in_the_truth() -> None:
    labels = np.zeros((3, 20, 20), np.uint8)
    labels[:, :6, :6] = FIRST_OBJECT
    labels[1:, 8:14, :6] = FIRST_OBJECT + 1
    labels[0, 16:, 16:], labels[1:, 16:, 12:] = DRAWER, DRAWER
    places = np.zeros((3, 6, 3), np.float32)
    clip = Episode(
        frames={}, columns={"objects_m": places, "objects_xyzw": np.zeros((3, 6, 4))}, task="", labels={"front": labels}
    )
    kept, columns = shown_truth(clip)
    assert (kept[:, :6, :6] == FIRST_OBJECT).all()
    assert (kept[:, 8:14] == BACKGROUND).all()
    assert (kept[1:, 16:, 12:16] == BACKGROUND).all()
    assert (kept[:, 16:, 16:] == DRAWER).all()
    assert np.isfinite(columns["objects_m"][:, 0]).all()
    assert np.isnan(columns["objects_m"][:, 1:]).all()
    assert np.isfinite(places).all()
    assert (labels[1:, 8:14, :6] == FIRST_OBJECT + 1).all()
