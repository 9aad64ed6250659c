"""How near parts of a gripper are to things: boxes, upright cylinders, turned and lying ones."""

import math

import pytest
import torch
from torch import Tensor

from vap_gym.rotations import rotation_from_rotvec
from vap_gym.world.touching import NEAR_M, SIDE_M, touch

BOX = [0.04, 0.02, 0.03, 0.0, 1.0, 0.0]  # its longer side along x
ROUND = [0.03, 0.03, 0.05, 1.0, 0.0, 0.0]


def told(point: list[float], shape: list[float], *, turn: Tensor | None = None, yaw: float = 0.0) -> Tensor:
    """What is told of one point and one thing in the origin."""
    return touch(
        torch.tensor(point).reshape(1, 1, 1, 3),
        torch.zeros(1, 3),
        torch.eye(3)[None] if turn is None else turn[None],
        torch.tensor(shape)[None],
        rotation_from_rotvec(torch.tensor([[0.0, 0.0, yaw]])),
    )[0, 0]


def coded(distance: float) -> float:
    return distance / (abs(distance) + NEAR_M)


@pytest.mark.parametrize(
    ("point", "shape", "distance", "side"),
    [
        ([0.05, 0.0, 0.0], BOX, 0.01, [1, 0, 0]),
        ([0.0, -0.03, 0.0], BOX, 0.01, [0, -1, 0]),
        ([0.0, 0.0, 0.035], BOX, 0.005, [0, 0, 1]),
        ([0.0, 0.015, 0.0], BOX, -0.005, [0, 1, 0]),
        ([0.07, 0.06, 0.0], BOX, 0.05, [0.6, 0.8, 0]),
        ([0.03, 0.04, 0.0], ROUND, 0.02, [0.6, 0.8, 0]),
        ([0.0, 0.0, -0.06], ROUND, 0.01, [0, 0, -1]),
        ([0.0, 0.025, 0.0], ROUND, -0.005, [0, 1, 0]),
    ],
)
def test_distance_and_direction_of_the_surface(
    point: list[float], shape: list[float], distance: float, side: list[float]
) -> None:
    found = told(point, shape)
    assert found[0] == pytest.approx(coded(distance), abs=1e-4)
    assert found[1:].tolist() == pytest.approx([math.exp(-abs(distance) / SIDE_M) * x for x in side], abs=1e-4)


def test_things_turn_with_their_turn_and_their_longer_side() -> None:
    quarter = rotation_from_rotvec(torch.tensor([0.0, 0.0, math.pi / 2]))
    assert told([0.05, 0.0, 0.0], BOX, turn=quarter)[0] == pytest.approx(coded(0.03), abs=1e-4)
    across = [*BOX[:4], -1.0, 0.0]  # cos 2θ of a quarter turn
    assert told([0.05, 0.0, 0.0], across)[0] == pytest.approx(coded(0.03), abs=1e-4)
    over = rotation_from_rotvec(torch.tensor([math.pi / 2, 0.0, 0.0]))
    assert told([0.0, 0.06, 0.0], ROUND, turn=over)[0] == pytest.approx(coded(0.01), abs=1e-4)


def test_a_box_of_even_sides_stands_as_the_gripper_does() -> None:
    cube = [0.03, 0.03, 0.03, 0.0, 0.0, 0.0]
    point = [0.04 * math.cos(0.5), 0.04 * math.sin(0.5), 0.0]
    found = told(point, cube, yaw=0.5)
    assert found[0] == pytest.approx(coded(0.01), abs=1e-4)
    assert found[1:].tolist() == pytest.approx([math.exp(-0.5), 0.0, 0.0], abs=1e-4)  # in the gripper's frame


def test_of_several_points_the_nearest_counts_and_gradients_are_finite() -> None:
    points = torch.tensor([[0.2, 0.0, 0.0], [0.05, 0.0, 0.0], [0.0, 0.0, 0.0]], requires_grad=True)
    still = torch.eye(3).expand(2, 3, 3)
    given = (torch.zeros(2, 3), still, torch.tensor([BOX, ROUND]), still)
    found = touch(points[None, None, :2].expand(2, 1, 2, 3), *given)
    assert found[:, 0, 0].tolist() == pytest.approx([coded(0.01), coded(0.02)], abs=1e-4)
    touch(points[None, None].expand(2, 1, 3, 3), *given).sum().backward()
    assert points.grad is not None
    assert points.grad.isfinite().all()
