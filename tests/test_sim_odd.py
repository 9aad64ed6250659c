"""Odd things: the same for the same name, neither box nor cylinder, as large as what they stand for, and to be seen."""

import numpy as np
import pytest

from vap_gym.cards import load_robot
from vap_gym.errors import VapError
from vap_gym.sim.layouts import draw_scene
from vap_gym.sim.odd import EMPTY, FULL, KINDS, PREFIX, odd_solids, with_odd_things
from vap_gym.sim.scene import LABELS, Scene
from vap_gym.sim.spec import SceneSpec

HALF = (0.04, 0.025, 0.02)


def test_a_name_says_which_thing_it_is() -> None:
    assert odd_solids("odd-7", HALF) == odd_solids("odd-7", HALF)
    assert len({odd_solids(f"odd-{i}", HALF) for i in range(50)}) == 50
    for wrong in ("cube", "odd-", "odd-x", "odd--3"):
        with pytest.raises(VapError, match=rf"named 'odd-' and a number ≥ 0, got '{wrong}'"):
            odd_solids(wrong, HALF)


def test_it_is_as_large_as_its_box_and_fills_little_of_it() -> None:
    points = np.random.default_rng(0).uniform(-1, 1, (4000, 3)) * HALF
    kinds = set()
    for i in range(60):
        solids = odd_solids(f"odd-{i}", HALF)
        kinds |= {solid.kind for solid in solids}
        assert 2 <= len(solids) <= 4
        for way in (-1, 1):
            reach = np.max([way * np.array(s.at_m) + s.half_m for s in solids], 0)
            assert (reach >= 0.95 * np.array(HALF)).all()
            assert (reach <= np.array(HALF) + 1e-9).all()
        full = np.any([solid.holds(points) for solid in solids], 0).mean()
        assert EMPTY - 0.05 < full < FULL + 0.05
    assert kinds == set(KINDS)


def test_some_things_of_a_scene_become_odd_and_nothing_else_changes() -> None:
    specs = [draw_scene(seed) for seed in range(200)]
    odd = [with_odd_things(spec, spec.seed) for spec in specs]
    shapes = [item.shape for spec in odd for item in spec.objects]
    assert 0.4 < np.mean([shape.startswith(PREFIX) for shape in shapes]) < 0.6
    assert with_odd_things(specs[0], 3, share=0.0) == specs[0]
    assert with_odd_things(specs[0], 3) == with_odd_things(specs[0], 3)
    for before, after in zip(specs, odd, strict=True):
        assert SceneSpec.from_json(after.to_json()) == after
        assert [i.half_extents_m for i in before.objects] == [i.half_extents_m for i in after.objects]
        assert before.camera == after.camera


def test_an_odd_thing_shows_in_its_colour_and_stays_on_the_table() -> None:
    pixels = []
    with Scene(load_robot("panda_robotiq"), frame_size_px=(144, 96)) as scene:
        for seed in range(12):
            spec = with_odd_things(draw_scene(seed, near=False), seed, share=1.0)
            home = scene.robot.home_q_rad
            scene.reset(spec, np.asarray(home), 0.0)
            frame, labels = scene.render()
            mine = labels == LABELS.index(spec.target_object.colour)
            pixels.append(mine.sum())
            if mine.sum() > 20:
                colour = frame[mine].mean(0)
                assert colour.max() - colour.min() > 40  # saturated: it is no table
    assert np.mean(np.array(pixels) > 20) > 0.6
