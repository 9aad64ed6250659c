"""What bones tell: exact flow for rigid motion in the picture, places on bones, what is unknown filled in."""

import math

import pytest
import torch
from torch import Tensor

from vap_gym.world.articulated import bone_places, centres, filled_in, places_before, robot_flow

SIZE, STRIDE = (24, 36), 4.0


def bone(start: tuple[float, float], end: tuple[float, float], *, radius: float = 6.0, depth: float = 1.0) -> Tensor:
    return torch.tensor([*start, *end, radius, radius, depth, 1.0])


ARM = torch.stack([bone((40.0, 20.0), (40.0, 60.0)), bone((40.0, 60.0), (80.0, 64.0), radius=4.0, depth=0.8)])[None]


def turned(bones: Tensor, angle: float, scale: float, shift: tuple[float, float]) -> Tensor:
    """Bones turned about the origin, scaled and shifted in the picture."""
    rotation = scale * torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    points = bones[..., :4].unflatten(-1, (2, 2)) @ rotation.mT + torch.tensor(shift)
    return torch.cat([points.flatten(-2), scale * bones[..., 4:6], bones[..., 6:]], dim=-1)


def cells() -> Tensor:
    y, x = torch.meshgrid(torch.arange(SIZE[0]) + 0.5, torch.arange(SIZE[1]) + 0.5, indexing="ij")
    return torch.stack([x, y])[None]


def test_a_robot_that_rests_has_no_flow() -> None:
    flow, share = robot_flow(ARM, ARM, SIZE, STRIDE)
    assert (flow.shape, share.shape) == ((1, 2, *SIZE), (1, 1, *SIZE))
    torch.testing.assert_close(flow, torch.zeros_like(flow), atol=1e-4, rtol=0)
    assert share[0, 0, 10, 10] == 1  # on the first bone
    assert share[0, 0, 0, 30] == 0  # far from both
    assert not share[..., 22:, :].any()


@pytest.mark.parametrize(
    ("angle", "scale", "shift"), [(0.0, 1.0, (8.0, -4.0)), (0.3, 1.0, (10.0, 0.0)), (-0.2, 1.3, (-6.0, 3.0))]
)
def test_rigid_motion_in_the_picture_is_undone_exactly(angle: float, scale: float, shift: tuple[float, float]) -> None:
    now = turned(ARM, angle, scale, shift)
    flow, share = robot_flow(now, ARM, SIZE, STRIDE)
    at = cells() * STRIDE
    rotation = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]) * scale
    offset = (at - torch.tensor(shift)[None, :, None, None]).permute(0, 2, 3, 1)
    expected = (torch.linalg.inv(rotation) @ offset[..., None])[..., 0].permute(0, 3, 1, 2)
    covered = (share > 0).expand_as(flow)
    assert covered.float().mean() > 0.05
    torch.testing.assert_close((cells() + flow)[covered] * STRIDE, expected[covered], atol=1e-3, rtol=0)


def test_the_nearer_bone_is_followed_where_two_cover_a_cell() -> None:
    far, near = bone((20.0, 48.0), (120.0, 48.0), depth=2.0), bone((70.0, 10.0), (70.0, 90.0), depth=1.0)
    now = torch.stack([far, near])[None]
    before = now.clone()
    before[:, 0, [0, 2]] += 4.0
    before[:, 1, [1, 3]] += 4.0
    flow, _ = robot_flow(now, before, SIZE, STRIDE)
    torch.testing.assert_close(flow[0, :, 12, 17], torch.tensor([0.0, 1.0]), atol=1e-4, rtol=0)
    torch.testing.assert_close(flow[0, :, 12, 8], torch.tensor([1.0, 0.0]), atol=1e-4, rtol=0)


def test_what_was_out_of_view_has_no_flow() -> None:
    before = turned(ARM, 0.0, 1.0, (-200.0, 0.0))
    behind = ARM.clone()
    behind[..., 7] = 0.0
    nothing = torch.zeros_like(ARM)
    for now, then in ((ARM, before), (ARM, behind), (behind, ARM), (nothing, nothing), (ARM[:, :0], ARM[:, :0])):
        flow, share = robot_flow(now, then, SIZE, STRIDE)
        assert flow.shape == (1, 2, *SIZE)
        assert not flow.any()
        assert not share.any()


def test_what_is_unknown_is_filled_in_by_what_is_around_it() -> None:
    y, x = torch.meshgrid(torch.linspace(0, 1, 96), torch.linspace(0, 1, 144), indexing="ij")
    scene = torch.stack([x, y, 0.5 * (x + y)])[None]
    known = torch.ones(1, 1, 96, 144)
    known[..., 20:34, 30:110] = 0.0
    filled = filled_in(scene * known, known)
    assert (filled - scene).abs().max() < 0.12  # a smooth scene is guessed well
    torch.testing.assert_close(filled * known, scene * known)  # and what is known stays as it is
    assert filled_in(scene, torch.zeros_like(known)).isfinite().all()


def test_a_place_on_a_bone_is_found_again_in_another_picture() -> None:
    now = turned(ARM, 0.3, 1.2, (6.0, -4.0))
    places = bone_places(now, SIZE, STRIDE)
    there, inside = places_before(places, now, (96, 144))
    on = places.cover > 0.5
    assert on.any()
    torch.testing.assert_close(
        there[on], centres(SIZE, STRIDE, now.device)[0, 0].expand(1, -1, -1)[on], atol=1e-3, rtol=0
    )
    assert inside[on].all()


def test_slots_do_not_mix() -> None:
    now = torch.cat([turned(ARM, 0.1, 1.0, (5.0, 5.0)), turned(ARM, -0.1, 1.1, (0.0, 0.0))])
    both, alone = robot_flow(now, ARM.expand(2, -1, -1), SIZE, STRIDE), robot_flow(now[1:], ARM, SIZE, STRIDE)
    torch.testing.assert_close(both[0][1:], alone[0])
    torch.testing.assert_close(both[1][1:], alone[1])
