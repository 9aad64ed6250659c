"""The held-out list: committed, reproducible, of the promised kinds, and apart from all training."""

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from vap_gym.cards import load_env, load_robot
from vap_gym.errors import CardError
from vap_gym.evaluate.heldout import (
    COUNTS,
    ENVS,
    MAIN_KINDS,
    STEPS,
    HeldOut,
    _inline,
    belongs,
    candidates,
    first_of,
    list_path,
    load_heldout,
    play,
)
from vap_gym.sim.draw import NOVEL_SHAPES, NOVEL_TEXTURES
from vap_gym.sim.generate import HELDOUT_FIRST_SEED
from vap_gym.sim.layouts import LAYOUTS
from vap_gym.sim.rollout import NominalRobot
from vap_gym.sim.scene import Scene


@pytest.fixture(scope="module")
def listed(repo: Path) -> list[HeldOut]:
    return load_heldout(repo / "benchmarks" / "heldout.toml")


@pytest.fixture(scope="module")
def nominal() -> NominalRobot:
    return NominalRobot(load_robot("panda_robotiq"))


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    pytest.importorskip("pybullet", reason="the oracle needs pybullet")
    with Scene(load_robot("panda_robotiq")) as made:
        yield made


def test_there_are_256_episodes_of_three_kinds_and_two_kinds_apart(listed: list[HeldOut]) -> None:
    assert dict(Counter(item.kind for item in listed)) == COUNTS
    assert COUNTS["contact"] + COUNTS["free"] + COUNTS["failing"] == 256
    assert COUNTS["contact"] == 128
    assert COUNTS["free"] == pytest.approx(0.3 * 256, abs=1)


def test_no_episode_is_trained_on_or_listed_twice(listed: list[HeldOut]) -> None:
    assert min(item.seed for item in listed) >= HELDOUT_FIRST_SEED
    assert len({item.seed for item in listed}) == len(listed)


def test_novel_scenes_show_novel_things_and_the_others_none(listed: list[HeldOut]) -> None:
    for item in listed:
        assert (item.split == "novel") == (item.kind == "novel")
        shapes, texture = {o.shape for o in item.scene.objects}, item.scene.table_texture
        assert (shapes <= set(NOVEL_SHAPES)) == (item.kind == "novel")
        assert (texture in NOVEL_TEXTURES) == (item.kind == "novel")
        assert item.scene.task == item.task


@pytest.mark.parametrize("kind", COUNTS)
def test_listed_episodes_are_what_their_kind_promises(
    kind: str, listed: list[HeldOut], scene: Scene, nominal: NominalRobot
) -> None:
    mine = [item for item in listed if item.kind == kind]
    for item in (mine[0], mine[-1]):
        episode = play(scene, nominal, item, render=False)
        assert len(episode) == STEPS + 1
        assert belongs(kind, episode)
        if kind == "noop":
            assert not episode.columns["action"].any()


def test_a_listed_episode_plays_the_same_twice(listed: list[HeldOut], scene: Scene, nominal: NominalRobot) -> None:
    one, other = (play(scene, nominal, listed[0]) for _ in range(2))
    np.testing.assert_array_equal(one.frames["front"], other.frames["front"])
    for name in one.columns:
        np.testing.assert_array_equal(one.columns[name], other.columns[name])


def test_kinds_are_told_apart_by_what_happens(listed: list[HeldOut], scene: Scene, nominal: NominalRobot) -> None:
    contact = play(scene, nominal, next(i for i in listed if i.kind == "contact"), render=False)
    still = play(scene, nominal, next(i for i in listed if i.kind == "noop"), render=False)
    assert belongs("contact", contact)
    assert not belongs("free", contact)
    assert not any(belongs(kind, still) for kind in ("contact", "free", "failing"))


def test_the_list_is_the_head_of_the_candidates_in_order(listed: list[HeldOut]) -> None:
    for kind in COUNTS:
        mine = [item for item in listed if item.kind == kind]
        drawn = {item.seed: item for item in islice(candidates(kind), 2000)}
        assert [drawn[item.seed] for item in mine] == mine
        assert [item.seed for item in mine] == sorted(item.seed for item in mine)


def test_a_row_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    items = [next(candidates(kind)) for kind in COUNTS]
    path = tmp_path / "list.toml"
    path.write_text("episodes = [\n" + "".join(f"  {_inline(item)},\n" for item in items) + "]\n")
    assert load_heldout(path) == items


def test_a_missing_or_malformed_list_says_what_would_work(tmp_path: Path) -> None:
    with pytest.raises(CardError, match=r"No held-out list at '.*nowhere.toml'. Run from the repository root"):
        load_heldout(tmp_path / "nowhere.toml")
    for text in ("episodes = [", "other = 1", "episodes = [{ seed = 1 }]", "episodes = [{ sed = 1 }]", "episodes = 3"):
        path = tmp_path / "bad.toml"
        path.write_text(text)
        with pytest.raises(CardError, match=r"is no held-out list: .*Make one: python -m vap_gym.evaluate.heldout"):
            load_heldout(path)


@pytest.mark.parametrize("env", ENVS[1:])
def test_every_env_has_its_own_list_of_its_own_scenes(env: str, repo: Path) -> None:
    items, layout = load_heldout(list_path(env, repo / "benchmarks")), load_env(env).layout
    assert dict(Counter(item.kind for item in items)) == COUNTS
    assert min(item.seed for item in items) >= HELDOUT_FIRST_SEED
    assert len({item.seed for item in items}) == len(items)
    place = LAYOUTS[layout]
    for item in items:
        assert item.layout == layout
        new = place.novel_tasks if item.kind == "novel" and place.novel_tasks else place.tasks
        assert item.task in new
    for kind in COUNTS:
        mine = [item for item in items if item.kind == kind]
        first = next(candidates(kind, layout)).seed
        drawn = {item.seed: item for item in islice(candidates(kind, layout), mine[-1].seed - first + 1)}
        assert [drawn[item.seed] for item in mine] == mine


@pytest.mark.parametrize("env", ENVS[1:])
def test_an_episode_of_another_env_is_what_its_kind_promises(env: str, repo: Path) -> None:
    pytest.importorskip("pybullet", reason="the oracle needs pybullet")
    items, card = load_heldout(list_path(env, repo / "benchmarks")), load_robot(load_env(env).robot)
    with Scene(card) as scene:
        for kind in ("contact", "free"):
            item = next(i for i in items if i.kind == kind)
            assert belongs(kind, play(scene, NominalRobot(card), item, render=False))


def test_a_limit_takes_the_first_of_every_kind(listed: list[HeldOut]) -> None:
    few = [listed[i] for i in first_of(listed, 64)]
    counts = Counter(item.kind for item in few)
    assert sum(counts[kind] for kind in MAIN_KINDS) == 64
    assert set(counts) == set(COUNTS)
    assert [item for item in few if item.kind == "novel"] == [i for i in listed if i.kind == "novel"][: counts["novel"]]
    assert first_of(listed, 10**6) == list(range(len(listed)))
