"""What a robot hides of things in a first picture is made up: as their solids tell, in their own colours."""

import math

import pytest
import torch
from torch import Tensor

from vap_gym.geometry import Camera, inverse
from vap_gym.world.hidden_parts import Whole, whole_things
from vap_gym.world.surfels import FAR_M
from vap_gym.world.things import Found

HEIGHT, WIDTH, FINE = 96, 144, 4
TABLE, ROBOT, ANGLE = (0.2, 0.3, 0.1), (0.9, 0.6, -0.4), 0.5
SHAPES = {  # half extents, longer, shorter, vertical, and how round
    "box": (0.05, 0.03, 0.03, 0.0),
    "cylinder": (0.03, 0.03, 0.04, 1.0),
    "ball": (0.035, 0.035, 0.035, 1.0),
}


def camera() -> Tensor:
    seen_by = Camera.look_at(
        torch.tensor([0.2, 0.5, 0.6]),
        torch.tensor([0.5, 0.0, 0.0]),
        vertical_fov_rad=0.7,
        frame_size_px=(WIDTH, HEIGHT),
    )
    return (seen_by.K @ inverse(seen_by.T_world_camera)[:3])[None]


def surface(solid: str) -> tuple[Tensor, Tensor]:
    """Many points of a solid about its centre, turned by ANGLE, and how light each is: by which way it faces."""
    half = SHAPES[solid][:3]
    at = torch.linspace(-1, 1, 181)
    round_ = torch.linspace(0, 2 * math.pi, 541)
    if solid == "box":
        flat = torch.cartesian_prod(at, at)
        faces = [flat.new_full((len(flat), 1), sign) for sign in (-1.0, 1.0)]
        points = [torch.cat([flat[:, :i], face, flat[:, i:]], 1) for i in range(3) for face in faces]
        light = [torch.full((len(flat),), value) for value in (0.5, 0.6, 0.5, 0.75, 0.5, 1.0)]
        points, light = torch.cat(points), torch.cat(light)
    elif solid == "cylinder":
        angle, high = torch.cartesian_prod(round_, at).unbind(1)
        side = torch.stack([angle.cos(), angle.sin(), high], 1)
        lid = torch.stack([angle.cos() * high, angle.sin() * high, torch.ones_like(high)], 1)
        points = torch.cat([side, lid])
        light = torch.cat([0.7 + 0.0 * high, 1.0 + 0.0 * high])
    else:
        angle, high = torch.cartesian_prod(round_, at).unbind(1)
        wide = (1.0 - high.square()).sqrt()
        points, light = torch.stack([angle.cos() * wide, angle.sin() * wide, high], 1), torch.full_like(high, 0.8)
    points = points * torch.tensor(half)
    turn = torch.tensor([[math.cos(ANGLE), -math.sin(ANGLE)], [math.sin(ANGLE), math.cos(ANGLE)]])
    return torch.cat([points[:, :2] @ turn.T, points[:, 2:]], 1), light


def drawn(solid: str, centre_m: Tensor, colour: tuple[float, float, float]) -> tuple[Tensor, Tensor]:
    """A picture of a solid on the table, point after point, and how far each pixel is its."""
    P, size = camera()[0], (FINE * HEIGHT, FINE * WIDTH)
    points, light = surface(solid)
    at = P[:, :3] @ (points + centre_m).T + P[:, 3:]
    pixel = (FINE * at[1] / at[2]).long() * size[1] + (FINE * at[0] / at[2]).long()
    far = torch.full((size[0] * size[1],), FAR_M).scatter_reduce_(0, pixel, at[2], "amin")
    front = at[2] < far[pixel] + 0.002
    picture = torch.tensor(TABLE).repeat(len(far), 1)
    picture[pixel[front]] = light[front, None] * (torch.tensor(colour) + 1.0) - 1.0
    fine = torch.cat([picture, (far < FAR_M)[:, None]], 1).unflatten(0, size).permute(2, 0, 1)
    coarse = torch.nn.functional.avg_pool2d(fine[None], FINE)
    return coarse[:, :3], coarse[:, 3]


class Seen:
    """A first picture of a solid behind an upright bar, which hides it from `bar` px right of its centre on."""

    def __init__(self, solid: str, *, bar: int = 0, robot_m: float = 0.3, off_m: tuple[float, float] = (0.0, 0.0)):
        half, is_round = SHAPES[solid][:3], SHAPES[solid][3]
        centre = torch.tensor([0.5, 0.02, half[2]])
        self.true, share = drawn(solid, centre, (-0.4, 0.8, -0.2))
        self.mine = share > 0.5
        columns = self.mine.any(1).nonzero()[:, 1].float()
        first = int(columns.mean()) + bar
        self.robot = torch.zeros(1, 1, HEIGHT, WIDTH)
        self.robot[..., 10:86, first : first + 30] = 1.0
        self.depth_m = torch.where(self.robot > 0, robot_m, FAR_M)
        self.picture = torch.where(self.robot > 0, torch.tensor(ROBOT)[:, None, None], self.true)
        self.plate = torch.tensor(TABLE)[:, None, None].expand(1, 3, HEIGHT, WIDTH).contiguous()
        share = share * (self.robot[:, 0] < 0.5)
        longish = torch.tensor([math.cos(2 * ANGLE), math.sin(2 * ANGLE)]) * (half[0] > half[1])
        self.found = Found(
            there=torch.tensor([[True, False]]),
            centre_m=torch.stack([centre + torch.tensor([*off_m, 0.0]), torch.zeros(3)])[None],
            shape=torch.stack([torch.cat([torch.tensor([*half, is_round]), longish]), torch.zeros(6)])[None],
            owner=(share > 0.1).to(torch.uint8),
            alpha=share * (share > 0.1),
        )

    def whole(self) -> Whole:
        return whole_things(self.picture, self.plate, self.robot, self.depth_m, camera(), self.found)


@pytest.mark.parametrize("off_m", [(0.0, 0.0), (0.007, -0.005)], ids=["found", "a little off"])
@pytest.mark.parametrize("solid", SHAPES)
def test_a_thing_half_hidden_is_whole(solid: str, off_m: tuple[float, float]) -> None:
    seen = Seen(solid, off_m=off_m)
    hidden = seen.mine & (seen.robot[:, 0] > 0.5)
    assert hidden.sum() > 0.3 * seen.mine.sum()
    made = seen.whole()
    mine = made.alpha > 0.5
    assert (mine & seen.mine).sum() / (mine | seen.mine).sum() > 0.85  # within half a pixel
    both = (hidden & mine)[:, None].expand_as(seen.true)
    off = (made.picture - seen.true).abs()
    assert off[both].mean() < 0.12
    robot = (made.picture - torch.tensor(ROBOT)[:, None, None]).abs().amax(1)
    assert (robot[hidden & mine] > 0.5).all(), "nothing of the robot sticks to it"


def test_each_face_of_a_box_goes_on_in_its_own_colour() -> None:
    seen = Seen("box", bar=4)
    made = seen.whole()
    hidden = (seen.mine & (made.alpha > 0.5) & (seen.robot[:, 0] > 0.5))[0]
    lights = seen.true[0, 1][hidden].unique()
    assert len(lights) >= 2
    for light in lights:
        at = hidden & (seen.true[0, 1] == light)
        if at.sum() > 10:
            assert (made.picture[0, 1][at] - light).abs().median() < 0.1


def test_a_sliver_tells_its_colour_though_the_table_beside_it_was_taken_for_it() -> None:
    seen = Seen("box")
    first = int(seen.found.owner.any(1).nonzero()[0, 1])
    seen.robot[..., 10:86, first + 4 :] = 1.0  # a few columns are left, of which the last is beside the robot
    seen.picture = torch.where(seen.robot > 0, torch.tensor(ROBOT)[:, None, None], seen.true)
    wide = torch.nn.functional.max_pool2d(seen.mine[:, None].float(), 5, 1, 2)[:, 0] * (seen.robot[:, 0] < 0.5)
    seen.found = seen.found._replace(owner=wide.to(torch.uint8), alpha=wide)
    made = seen.whole()
    hidden = seen.mine & (made.alpha > 0.5) & (seen.robot[:, 0] > 0.5)
    assert hidden.sum() > 0.6 * seen.mine.sum()
    red, green, _ = made.picture[0]
    assert ((green - red)[hidden[0]] > 0.5).float().mean() > 0.9  # of the table it is 0.1


@pytest.mark.parametrize("solid", SHAPES)
def test_what_is_away_from_the_robot_is_as_it_was(solid: str) -> None:
    seen = Seen(solid)
    made = seen.whole()
    away = torch.nn.functional.max_pool2d(seen.robot, 3, 1, 1)[:, 0] < 0.5
    for new, old in (
        (made.picture.mT, seen.picture.mT),
        (made.owner, seen.found.owner),
        (made.alpha, seen.found.alpha),
    ):
        changed = (new != old).any(1).mT if new.ndim == 4 else new != old
        assert changed.any()
        assert not changed[away].any()


def test_where_no_robot_hides_anything_nothing_changes() -> None:
    seen = Seen("box", bar=30)  # a bar beside the thing
    none = Seen("box")
    none.robot.zero_()
    for one in (seen, none):
        made = one.whole()
        assert torch.equal(made.picture, one.picture)
        assert torch.equal(made.owner, one.found.owner)
        assert torch.equal(made.alpha, one.found.alpha)


def test_a_robot_behind_a_thing_hides_nothing_of_it() -> None:
    seen = Seen("box", robot_m=1.5)
    made = seen.whole()
    assert torch.equal(made.owner, seen.found.owner)


def test_a_thing_of_which_nothing_is_seen_stays_as_it_was_found() -> None:
    seen = Seen("box", bar=-15)
    assert not seen.found.owner.any()
    assert torch.equal(seen.whole().picture, seen.picture)


def test_the_nearer_of_two_things_is_seen_where_both_are_hidden() -> None:
    seen = Seen("box")
    farther = seen.found.centre_m[0, 0] - torch.tensor([-0.03, 0.05, 0.0])  # farther from the camera, and overlapping
    two = torch.zeros_like(seen.found.owner)
    two[:, 38:42, 60:66] = 2
    two = torch.where((seen.found.owner == 0) & (seen.robot[:, 0] < 0.5), two, 0)
    owner = torch.maximum(seen.found.owner, two)
    centre, shape = torch.stack([seen.found.centre_m[0, 0], farther])[None], seen.found.shape[:, :1].repeat(1, 2, 1)
    there = torch.tensor([[True, True]])
    alone = seen.whole()
    for order in (slice(None), torch.tensor([1, 0])):
        number = torch.tensor([0, 1, 2] if isinstance(order, slice) else [0, 2, 1], dtype=torch.uint8)
        found = Found(
            there=there, centre_m=centre[:, order], shape=shape[:, order], owner=number[owner.long()],
            alpha=(owner > 0).float(),
        )  # fmt: skip
        made = whole_things(seen.picture, seen.plate, seen.robot, seen.depth_m, camera(), found)
        nearer = number[made.owner.long()] == 1
        assert (nearer & (alone.alpha > 0.5)).sum() > 0.95 * (alone.alpha > 0.5).sum()


def test_pictures_are_made_whole_one_by_one() -> None:
    one, other = Seen("cylinder"), Seen("box", bar=5)
    both = whole_things(
        *(torch.cat([getattr(x, name) for x in (one, other)]) for name in ("picture", "plate", "robot", "depth_m")),
        camera().repeat(2, 1, 1),
        Found(*(torch.cat(pair) for pair in zip(one.found, other.found, strict=True))),
    )
    for i, seen in enumerate((one, other)):
        for together, alone in zip(both, seen.whole(), strict=True):
            torch.testing.assert_close(together[i], alone[0], atol=1e-4, rtol=0)
