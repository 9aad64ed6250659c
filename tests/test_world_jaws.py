"""Jaws stop at what they hold, and only there: geometry that can be told by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from vap_gym.evaluate.fidelity_rollout import subject
from vap_gym.world.jaws import SQUEEZE_M, Jaws, jaws_of, poses, stopped
from vap_gym.world.motion import ThingState
from vap_gym.world.surfels import Surfels

PALM, OPEN_M, HALF_M = 1, 0.04, 0.02
CAMERA = torch.tensor([[150.0, 0, 72, 0], [0, 150.0, 48, 0], [0, 0, 1.0, 1.0]])


def plates() -> Surfels:
    """Two jaws: squares of 3 cm across y and z, at x = 0 of the frames of links 2 and 3."""
    y, z = torch.meshgrid(torch.linspace(-0.015, 0.015, 7), torch.linspace(-0.015, 0.015, 7), indexing="ij")
    square = torch.stack([torch.zeros_like(y), y, z], -1).reshape(-1, 3)
    points = torch.cat([square, square])
    link = torch.tensor([2] * 49 + [3] * 49)
    return Surfels(points, torch.ones_like(points), link, torch.full((98,), 0.005))


def seen(gap_m: float, *, palm_turn_rad: float = 0.0, palm_m: tuple[float, float, float] = (0.3, 0.0, 0.1)) -> Tensor:
    """Views of base, palm and jaws that are so far from the palm's middle."""
    cos, sin = math.cos(palm_turn_rad), math.sin(palm_turn_rad)
    T_palm = torch.eye(4)
    T_palm[:2, :2], T_palm[:3, 3] = torch.tensor([[cos, -sin], [sin, cos]]), torch.tensor(palm_m)
    one, two = torch.eye(4), torch.eye(4)
    one[0, 3], two[0, 3] = gap_m, -gap_m
    return torch.stack([CAMERA @ T for T in (torch.eye(4), T_palm, T_palm @ one, T_palm @ two)])[None]


def thing(x_m: float = 0.0, *, is_round: float = 0.0, psi_rad: float = 0.0, narrow_m: float = HALF_M) -> ThingState:
    """A thing beside the palm's middle, as deep as the jaws; its sides 2·2 cm."""
    shape = torch.tensor([HALF_M, narrow_m, HALF_M, is_round, math.cos(2 * psi_rad), math.sin(2 * psi_rad)])
    return ThingState(
        there=torch.tensor([[True]]),
        place_m=torch.tensor([[[0.3 + x_m, 0.0, 0.1]]]),
        turn=torch.eye(3)[None, None],
        shape=shape[None, None],
        step=torch.zeros(1, 1, 6),
        memory=torch.zeros(1, 1, 2),
        grip=torch.zeros(1, 1, 12),
    )


@pytest.fixture
def jaws() -> Jaws:
    found = jaws_of(0, (PALM, 2, 3), plates())
    assert found is not None
    return found


def gap_m(reached: Tensor) -> float:
    return float(reached[0, 0, 0, 3])


@pytest.mark.parametrize("is_round", [0.0, 1.0])
def test_jaws_stop_at_the_width_of_what_is_between_them(jaws: Jaws, is_round: float) -> None:
    before = poses(jaws, seen(OPEN_M))
    shown, reached = stopped(jaws, seen(0.0), before, thing(is_round=is_round))
    assert HALF_M - SQUEEZE_M - 1e-4 < gap_m(reached) < HALF_M + OPEN_M / 8
    torch.testing.assert_close(poses(jaws, shown), reached, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(shown[:, :2], seen(0.0)[:, :2])
    again, still = stopped(jaws, seen(0.0), reached, thing(is_round=is_round))
    assert HALF_M - SQUEEZE_M - 1e-4 < gap_m(still) <= gap_m(reached)
    assert again.isfinite().all()


def test_a_turned_box_is_as_wide_as_it_is_turned(jaws: Jaws) -> None:
    before = poses(jaws, seen(OPEN_M))
    for psi, wide in ((0.0, HALF_M), (math.pi / 2, 0.01)):
        _, reached = stopped(jaws, seen(0.0), before, thing(psi_rad=psi, narrow_m=0.01))
        assert wide - SQUEEZE_M - 1e-4 < gap_m(reached) < wide + OPEN_M / 8


def test_what_lies_off_the_middle_is_held_at_its_width(jaws: Jaws) -> None:
    _, reached = stopped(jaws, seen(0.0), poses(jaws, seen(OPEN_M)), thing(0.008))
    assert HALF_M - SQUEEZE_M - 1e-4 < gap_m(reached) < HALF_M + OPEN_M / 8


def test_jaws_close_on_nothing_open_freely_and_push_aside_what_is_outside(jaws: Jaws) -> None:
    wide, shut = seen(OPEN_M), seen(0.0)
    far = thing(0.5)
    for things in (far, thing()._replace(there=torch.tensor([[False]])), thing(OPEN_M + HALF_M + 0.005)):
        shown, reached = stopped(jaws, shut, poses(jaws, wide), things)
        torch.testing.assert_close(reached, poses(jaws, shut), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(shown, shut, atol=1e-3, rtol=1e-4)
    _, held = stopped(jaws, shut, poses(jaws, wide), thing())
    _, opened = stopped(jaws, wide, held, thing())
    torch.testing.assert_close(opened, poses(jaws, wide), atol=1e-5, rtol=1e-4)


def test_slots_do_not_mix_and_the_palm_may_be_turned(jaws: Jaws) -> None:
    shut = torch.cat([seen(0.0), seen(0.0, palm_turn_rad=1.0), seen(0.0)])
    before = torch.cat([poses(jaws, seen(OPEN_M))] * 3)
    one, off = thing(), thing(0.4)
    things = ThingState(*(torch.cat([a, a, b]) for a, b in zip(one, off, strict=True)))
    _, reached = stopped(jaws, shut, before, things)
    for i in range(3):
        mine = ThingState(*(x[i : i + 1] for x in things))
        _, alone = stopped(jaws, shut[i : i + 1], before[i : i + 1], mine)
        torch.testing.assert_close(reached[i : i + 1], alone)
    assert float(reached[1, 0, 0, 3]) > HALF_M - SQUEEZE_M
    assert float(reached[2, 0, 0, 3]) < 1e-4


def test_hands_and_robots_without_jaws_are_left_alone() -> None:
    surface = plates()
    assert jaws_of(0, (PALM, 2, 3, 5, 7), surface) is None
    assert jaws_of(0, (PALM, 2), surface) is None
    views = seen(0.0)
    assert poses(None, views).shape == (1, 0, 3, 4)
    assert stopped(None, views, poses(None, views), thing())[0] is views
    hand = subject("VAP-Hand-v0", "tiny").world
    panda = subject("VAP-DROID-v0", "tiny").world
    assert hand.jaws is None
    assert panda.jaws is not None
    assert panda.jaws.links == tuple(range(9, 17))


def test_an_imagination_keeps_its_jaws_in_the_state() -> None:
    world = subject("VAP-Bridge-v0", "tiny").world
    assert "jaws" in world.state_keys
