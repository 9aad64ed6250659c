"""Finding things: where the network's maps say they are, in the base frame, each with its own pixels."""

import math

import pytest
import torch
from torch import Tensor

from vap_gym.geometry import Camera
from vap_gym.train.things import matched
from vap_gym.train.things_data import recoloured
from vap_gym.world.things import FAR_M, HEAT_PX, ThingFinder, find_things, seen_from
from vap_gym.world.views import project

HEIGHT, WIDTH, MOST = 96, 144, 3
CAMERA = Camera.look_at(
    torch.tensor([1.0, -0.7, 0.8]), torch.tensor([0.45, 0.0, 0.0]), vertical_fov_rad=0.8, frame_size_px=(WIDTH, HEIGHT)
)
P = (CAMERA.K @ torch.linalg.inv(CAMERA.T_world_camera)[:3])[None]
VIEWS = P[:, None].expand(-1, 2, -1, -1)


class Told(ThingFinder):
    """A finder that says what it is told: boxes of pixels around centres at given places."""

    def __init__(self, places_m: list[tuple[float, float, float]], boxes: list[tuple[int, int]]) -> None:
        super().__init__(most=MOST, widths=(4, 8), blocks=1, links=2)
        self.places, self.boxes = torch.tensor([places_m]), boxes

    def forward(self, picture: Tensor, robot: Tensor, views: Tensor) -> dict[str, Tensor]:
        h, w = HEIGHT // HEAT_PX, WIDTH // HEAT_PX
        said = {
            "mask": torch.full((1, 1, HEIGHT, WIDTH), -9.0),
            "vote": torch.zeros(1, 2, HEIGHT, WIDTH),
            "heat": torch.full((1, 1, h, w), -9.0),
            "offset": torch.zeros(1, 2, h, w),
            "height_m": torch.zeros(1, 1, h, w),
            "shape": torch.zeros(1, 6, h, w),
        }
        centres, _ = project(P, self.places)
        for (u, v), (_, _, z), (across, down) in zip(
            centres[0].tolist(), self.places[0].tolist(), self.boxes, strict=True
        ):
            column, row = int(u // HEAT_PX), int(v // HEAT_PX)
            said["heat"][0, 0, row, column] = 4.0
            said["offset"][0, :, row, column] = torch.tensor([u - (column + 0.5) * HEAT_PX, v - (row + 0.5) * HEAT_PX])
            said["height_m"][0, 0, row, column] = z
            said["shape"][0, :, row, column] = torch.tensor([0.04, 0.03, 0.02, 0.0, 0.5, 0.0])
            box = (slice(int(v) - down, int(v) + down), slice(int(u) - across, int(u) + across))
            said["mask"][0, 0][box] = 9.0
            y, x = torch.meshgrid(torch.arange(HEIGHT) + 0.5, torch.arange(WIDTH) + 0.5, indexing="ij")
            said["vote"][0][(slice(None), *box)] = torch.stack([u - x, v - y])[(slice(None), *box)]
        return said


def found(finder: ThingFinder, views: Tensor = VIEWS):  # type: ignore[no-untyped-def]
    return find_things(finder, torch.zeros(1, 3, HEIGHT, WIDTH), torch.zeros(1, 1, HEIGHT, WIDTH), views)


def test_things_are_where_their_centres_rays_meet_their_height() -> None:
    places = [(0.45, 0.0, 0.03), (0.5, 0.2, 0.05)]
    seen = found(Told(places, [(4, 4), (4, 4)]))
    assert seen.there.sum() == 2
    order = seen.centre_m[0, seen.there[0]].argsort(0)[:, 1]
    torch.testing.assert_close(seen.centre_m[0, seen.there[0]][order], torch.tensor(places), atol=1e-3, rtol=0)
    assert not seen.centre_m[~seen.there].any()
    torch.testing.assert_close(seen.shape[0, 0, :3], torch.tensor([0.04, 0.03, 0.02]))


def test_touching_things_keep_their_own_pixels() -> None:
    a, b = torch.tensor([0.45, 0.0, 0.03]), torch.tensor([0.53, 0.062, 0.03])
    (ua, va), (ub, vb) = project(P, torch.stack([a, b])[None])[0][0].tolist()
    half = int(abs(ub - ua) / 2)
    assert half > 3
    seen = found(Told([tuple(a.tolist()), tuple(b.tolist())], [(half, 3), (half, 3)]))
    one, other = seen.owner[0, int(va), int(ua)], seen.owner[0, int(vb), int(ub)]
    assert {int(one), int(other)} == {1, 2}
    assert seen.owner[0, 5, 5] == 0
    assert seen.alpha[0, int(va), int(ua)] > 0.99
    assert seen.alpha[0, 5, 5] == 0
    centre, _ = project(P, seen.centre_m)
    for number, (u, v) in ((one, (ua, va)), (other, (ub, vb))):
        torch.testing.assert_close(centre[0, int(number) - 1], torch.tensor([u, v]), atol=0.1, rtol=0)


def test_what_is_out_of_reach_is_no_thing() -> None:
    far = (-1.163, 2.05, -0.83)
    assert torch.tensor(far).norm() > FAR_M
    assert not found(Told([far], [(2, 2)])).there.any()


def test_without_views_nothing_is_found() -> None:
    for views in (torch.zeros(1, 0, 3, 4),):
        seen = found(Told([(0.45, 0.0, 0.03)], [(4, 4)]), views)
        assert not seen.there.any()
        assert not seen.owner.any()
    blank = ThingFinder(most=MOST, widths=(4, 8), blocks=1, links=2)
    assert all(value.isfinite().all() for value in found(blank, torch.zeros(1, 2, 3, 4)) if value.is_floating_point())


@pytest.mark.parametrize("psi", [0.0, 0.4, -1.2])
def test_a_sides_direction_is_told_from_where_the_camera_looks(psi: float) -> None:
    shape = torch.tensor([[[0.04, 0.03, 0.02, 0.0, math.cos(2 * psi), math.sin(2 * psi)]]])
    ahead = P[0, 2, :3]
    azimuth = math.atan2(float(ahead[1]), float(ahead[0]))
    seen = seen_from(shape, P, 1.0)
    assert float(seen[0, 0, 4]) == pytest.approx(math.cos(2 * (psi - azimuth)), abs=1e-5)
    assert float(seen[0, 0, 5]) == pytest.approx(math.sin(2 * (psi - azimuth)), abs=1e-5)
    torch.testing.assert_close(seen_from(seen, P, -1.0), shape)


# --- training ---


def test_things_are_matched_to_the_objects_they_are() -> None:
    there = torch.tensor([[True, True, False]])
    things = torch.tensor([[[0.5, 0.1, 0.03], [0.3, 0.0, 0.03], [0.5, 0.1, 0.03]]])
    objects = torch.tensor([[[torch.nan] * 3, [0.51, 0.1, 0.03], [0.4, 0.0, 0.03]]])
    which, off = matched(there, things, objects)
    assert which[0, 0] == 1
    assert float(off[0, 0]) == pytest.approx(0.01, abs=1e-6)
    assert off[0, 1:].isinf().all()  # none so near; not there at all


def test_changed_colours_leave_grey_grey() -> None:
    rng = torch.Generator().manual_seed(0)
    grey = torch.linspace(-1, 1, 12).expand(8, 3, 4, 12)
    coloured = grey.clone()
    coloured[:, 0, :2] = 1.0
    torch.testing.assert_close(recoloured(grey, 1.0, rng), grey.contiguous(), atol=1e-5, rtol=0)
    assert (recoloured(coloured, 1.0, rng) - coloured).abs().amax((1, 2, 3)).min() > 0.05
    torch.testing.assert_close(recoloured(coloured, 0.0, rng), coloured)
