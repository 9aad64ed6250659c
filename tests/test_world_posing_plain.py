"""Posed pictures are those that a plain account of them gives: one point, one pixel after another, in doubles."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from vap_gym.cards import load_robot
from vap_gym.geometry import Camera
from vap_gym.prompts.body import Body
from vap_gym.world.appearance import LIGHT, FirstSight, RobotAppearance
from vap_gym.world.posing import DEEPER_M, HIDDEN_M, LEAST_PX, LEAST_RAD, LEAST_SCALE, REACH_PX, RIM, posed_picture
from vap_gym.world.surfels import BEHIND_M, CLOSED, FAR_M, MOSTLY, NEAR_M, Surfels, projected, seen_points
from vap_gym.world.views import on_plane, project

HEIGHT, WIDTH, LEVEL = 48, 72, 2.0 / 255.0
PLACES = {  # where cameras stand, and what they look at
    "panda_robotiq": ((1.2, 0.5, 0.7), (0.4, 0.0, 0.3)),
    "google_robot": ((1.6, 0.8, 1.4), (0.3, 0.0, 0.6)),
    "widowx": ((0.8, 0.5, 0.5), (0.2, 0.0, 0.15)),
    "hand_21": ((0.7, 0.3, 0.5), (0.3, 0.0, 0.1)),
}


def seen_by(robot: str, *, moved: bool) -> Camera:
    eye, target = (torch.tensor(place) for place in PLACES[robot])
    shift = torch.tensor([0.02, -0.03, 0.01]) if moved else torch.zeros(3)
    return Camera.look_at(eye + shift, target, vertical_fov_rad=0.9, frame_size_px=(WIDTH, HEIGHT))


def start(robot: str, *, moves: bool) -> tuple[RobotAppearance, FirstSight, Tensor, Tensor, Tensor]:
    """A noisy first picture of a robot and two things, of which one is moved and turned; and views of another pose."""
    card, rng = load_robot(robot), torch.Generator().manual_seed(3)
    body = Body(card)
    surfels = Surfels(points_m=body.points_m, normals=body.normals, link=body.link, spacing_m=body.spacing_m)
    looks = RobotAppearance.of_surface(surfels, torch.rand(len(body.link), 3, generator=rng), len(body.links))
    q = torch.tensor(card.home_q_rad)
    way = 0.05 * torch.randn(len(q), generator=rng)
    first, now = (
        body.views(joints[None], torch.tensor([closed]), seen_by(robot, moved=moved))
        for joints, closed, moved in ((q, 0.2, False), (q + way, 0.7, moves))
    )
    shape = (1, 1, HEIGHT, WIDTH)
    picture, plate = (torch.rand(1, 3, HEIGHT, WIDTH, generator=rng) * 2.0 - 1.0 for _ in range(2))
    owner = torch.zeros(1, HEIGHT, WIDTH, dtype=torch.uint8)
    owner[:, 20:29, 30:38], owner[:, 34:42, 12:21] = 1, 2
    centres = torch.tensor([[[34.0, 24.5], [16.5, 38.0]]])
    things_m = on_plane(first[:, 0], centres, torch.zeros(1, 2))
    things_m[:, 0] += 0.3 * (seen_by(robot, moved=False).T_world_camera[:3, 3] - things_m[:, 0])  # before the robot
    seen = seen_points(surfels, first, (HEIGHT, WIDTH))
    sight = FirstSight(
        picture=picture, mask=((seen.point >= 0)[:, None] * 0.9 + 0.1 * torch.rand(shape, generator=rng)), plate=plate,
        filled=(torch.rand(shape, generator=rng) > 0.7).float(), views=first, depth_m=seen.depth_m,
        light=torch.tensor([[0.9, 0.2, -0.1, -0.3, 1.1, 1.0, 0.8]]), there=torch.ones(1, 2, dtype=torch.bool),
        things_m=things_m, shape=torch.zeros(1, 2, 6), owner=owner,
        alpha=(owner > 0) * torch.rand(1, HEIGHT, WIDTH, generator=rng),
        whole=torch.where(torch.rand(shape, generator=rng) > 0.5, picture, -picture),
    )  # fmt: skip
    place, angle = things_m.clone(), 0.6
    place[:, 0] += torch.tensor([0.02, 0.03, 0.01])
    turn = torch.eye(3).repeat(1, 2, 1, 1)
    turn[0, 0, :2, :2] = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return looks, sight, place, turn, now


def surface(surfels: Surfels, views: Tensor) -> np.ndarray:
    """Return the least (distance in steps, point) of each pixel and a border: four corners a point, holes closed."""
    bits = max(1, (len(surfels.link) - 1).bit_length())
    per_m = np.float32((2 ** (31 - bits) - 2) / FAR_M)
    at = projected(surfels, views)[0].numpy()
    gap = np.float32(0.25) * surfels.spacing_m.numpy() * np.float32(focal(views))
    keys = np.full((HEIGHT + 2, WIDTH + 2), np.iinfo(np.int64).max)
    for i in np.flatnonzero((at[2] > NEAR_M) & (at[2] < FAR_M)):
        z = at[2, i]
        x, y, reach = at[0, i] / z, at[1, i] / z, gap[i] / z
        for u, v in ((x - reach, y - reach), (x + reach, y - reach), (x - reach, y + reach), (x + reach, y + reach)):
            row, column = math.floor(v), math.floor(u)
            if 0 <= row < HEIGHT and 0 <= column < WIDTH:
                here = keys[row + 1, column + 1]
                keys[row + 1, column + 1] = min(here, (int(z * per_m) << bits) | int(i))
    for _ in range(CLOSED):
        before = keys.copy()
        for row in range(1, HEIGHT + 1):
            for column in range(1, WIDTH + 1):
                block = before[row - 1 : row + 2, column - 1 : column + 2]
                limit = min(before[row, column], 2**31 - 1) - (int(BEHIND_M * float(per_m)) << bits)
                if (block < limit).sum() >= MOSTLY:
                    keys[row, column] = block.min()
    return keys


def focal(views: Tensor) -> float:
    """The focal length along v: of the rows of K·R, the part of the second that the third has not."""
    M = views[0, 0, :, :3].double()
    return float((M[1] - (M[1] @ M[2]) * M[2]).norm())


def between(values: np.ndarray, x: float, y: float) -> np.ndarray:
    """The value at a place between pixels of an array (H, W, …), bilinear, edges repeated."""
    x, y = min(max(x - 0.5, 0.0), WIDTH - 1.0), min(max(y - 0.5, 0.0), HEIGHT - 1.0)
    left, top = int(x), int(y)
    right, bottom = min(left + 1, WIDTH - 1), min(top + 1, HEIGHT - 1)
    above = values[top, left] * (left + 1 - x) + values[top, right] * (x - left)
    below = values[bottom, left] * (left + 1 - x) + values[bottom, right] * (x - left)
    return np.asarray(above * (top + 1 - y) + below * (y - top))


def camera_rotation(view: Tensor, views: Tensor) -> np.ndarray:
    """K⁻¹·(K·R) of a link."""
    M = views[0, 0, :, :3].double()
    centre = torch.stack([M[0] @ M[2], M[1] @ M[2], torch.tensor(1.0).double()])
    size = (M[:2] - centre[:2, None] * M[2]).norm(dim=1)
    K = torch.eye(3).double()
    K[:, 2], K[0, 0], K[1, 1] = centre, size[0], size[1]
    return np.asarray(torch.linalg.solve(K, view[:, :3].double()))


def background(sight: FirstSight, views: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The plate as the camera sees it now, and where it is filled in."""
    plate, filled = sight.plate[0].permute(1, 2, 0).double().numpy(), sight.filled[0, 0].double().numpy()
    if torch.equal(views[:, 0], sight.views[:, 0]):
        return plate.copy(), filled.copy()
    made, new = np.zeros_like(plate), np.zeros_like(filled)
    for row in range(HEIGHT):
        pixels = torch.stack([torch.arange(WIDTH) + 0.5, torch.full((WIDTH,), row + 0.5)], -1)[None].double()
        table = on_plane(views[:, 0].double(), pixels, torch.zeros(1, WIDTH).double())
        places, far = project(sight.views[:, 0].double(), table)
        for column, ((x, y), z) in enumerate(zip(places[0].tolist(), far[0].tolist(), strict=True)):
            inside = 0 < x < WIDTH and 0 < y < HEIGHT and z > 0
            made[row, column], hidden = between(plate, x, y), float(between(filled, x, y))
            new[row, column] = hidden if inside else 1.0
    return made, new


def cut_outs(sight: FirstSight, place: Tensor, turn: Tensor, views: Tensor, made: np.ndarray) -> tuple[np.ndarray, ...]:
    """Draw the things into the picture; return how far each pixel is one, and how far away that is."""
    picture, alpha = sight.whole[0].permute(1, 2, 0).double().numpy(), sight.alpha[0].double().numpy()
    robot, robot_m = (x[0, 0].double().numpy() for x in (sight.mask, sight.depth_m))
    made_up = (sight.whole != sight.picture)[0].any(0).numpy()
    owner, thing, depth = sight.owner[0].numpy(), np.zeros((HEIGHT, WIDTH)), np.full((HEIGHT, WIDTH), FAR_M)
    (before,), (far_before,) = project(sight.views[:, 0].double(), sight.things_m.double())
    (now,), (far,) = project(views[:, 0].double(), place.double())
    R = camera_rotation(views[0, 0], views)
    moved, behind = [], np.zeros((HEIGHT, WIDTH))
    for k in range(2):
        hidden = (owner == k + 1) & (robot > 0.5) & made_up
        behind[hidden] = np.clip(robot_m[hidden] + HIDDEN_M - float(far_before[k]), 0.0, DEEPER_M)
    for k in range(2):
        turned = R @ turn[0, k].double().numpy() @ R.T
        angle = math.atan2(turned[1, 0] - turned[0, 1], turned[0, 0] + turned[1, 1])
        scale = float(far_before[k] / far[k])
        if (now[k] - before[k]).norm() > LEAST_PX or abs(angle) > LEAST_RAD or abs(scale - 1) > LEAST_SCALE:
            moved.append((k, scale, angle))
            continue
        mine = owner == k + 1
        made[mine], thing[mine], depth[mine] = picture[mine], 1.0, float(far_before[k]) + behind[mine]
    for k, scale, angle in moved:
        mine = alpha * (owner == k + 1)
        left, top = (int(x) for x in now[k].floor())
        for row in range(max(0, top - REACH_PX), min(HEIGHT, top + REACH_PX)):
            for column in range(max(0, left - REACH_PX), min(WIDTH, left + REACH_PX)):
                x, y = (column + 0.5 - float(now[k, 0])) / scale, (row + 0.5 - float(now[k, 1])) / scale
                x, y = math.cos(angle) * x + math.sin(angle) * y, math.cos(angle) * y - math.sin(angle) * x
                x, y = x + float(before[k, 0]), y + float(before[k, 1])
                here_m = float(far[k]) + float(between(behind, x, y))
                if 0 < x < WIDTH and 0 < y < HEIGHT and here_m < depth[row, column]:
                    share = float(between(mine, x, y))
                    made[row, column] += share * (between(picture, x, y) - made[row, column])
                    thing[row, column] = max(thing[row, column], share)
                    if share > 0.5:
                        depth[row, column] = here_m
    return thing, depth


def plain(
    looks: RobotAppearance, sight: FirstSight, place: Tensor, turn: Tensor, views: Tensor
) -> tuple[Tensor, Tensor]:
    """Return what `posed_picture` should: the picture (H, W, 3) and its sources (H, W, 4)."""
    made, filled = background(sight, views)
    thing, depth = cut_outs(sight, place, turn, views, made)
    source = np.stack([np.zeros_like(thing), np.zeros_like(thing), thing, filled * (1.0 - thing)], -1)
    surfels, bits = looks.surfels, max(1, (len(looks.look) - 1).bit_length())
    keys = surface(surfels, views)
    per_m = float(np.float32((2 ** (31 - bits) - 2) / FAR_M))
    picture, mask = sight.picture[0].permute(1, 2, 0).double().numpy(), sight.mask[0, 0].double().numpy()
    _, (things_far,) = project(sight.views[:, 0].double(), sight.things_m.double())
    homogeneous = torch.cat([surfels.points_m, torch.ones(len(looks.look), 1)], 1).double()
    axes, light = [camera_rotation(view, views) for view in views[0]], sight.light[0].double().numpy()
    for row in range(HEIGHT):
        for column in range(WIDTH):
            block = keys[row : row + 3, column : column + 3]
            there, amid = block[1, 1] < 2**31, bool((block < 2**31).all())
            key = int(block[1, 1] if there else block.min())
            if key >= 2**31 or (key >> bits) / per_m >= depth[row, column]:
                continue
            point = key & (2**bits - 1)
            link = int(surfels.link[point])
            here, before = (v[0, link].double() @ homogeneous[point] for v in (views, sight.views))
            x, y, far = float(before[0] / before[2]), float(before[1] / before[2]), float(before[2])
            shown = 0 < x < WIDTH and 0 < y < HEIGHT and far > 0
            if shown:
                u, v = int(x), int(y)
                k = int(sight.owner[0, v, u]) - 1
                shown = far < float(sight.depth_m[0, 0, v, u]) + HIDDEN_M
                solid = k >= 0 and float(sight.alpha[0, v, u]) > 0.5
                solid &= torch.equal(sight.whole[0, :, v, u], sight.picture[0, :, v, u])  # it was seen there
                shown &= not (solid and float(things_far[k]) < far)
            at = x + column + 0.5 - float(here[0] / here[2]), y + row + 0.5 - float(here[1] / here[2])
            share = float(between(mask, *at))
            shown = shown and (not amid or share > 0.5)
            if shown:
                colour = between(picture, *at)
            else:
                normal = axes[link] @ surfels.normals[point].double().numpy()
                bright = min(max(light[0] + float(normal @ light[1:4]), LIGHT[0]), LIGHT[1])
                colour = np.clip(looks.look[point].double().numpy() * bright * light[4:], 0.0, 1.0) * 2.0 - 1.0
            alpha = 1.0 if amid else share if shown else RIM * there
            made[row, column] += alpha * (colour - made[row, column])
            source[row, column] = [alpha * shown, alpha * (not shown), *(source[row, column, 2:] * (1.0 - alpha))]
    return torch.from_numpy(made), torch.from_numpy(source)


@pytest.mark.parametrize("moves", [False, True], ids=["camera rests", "camera moves"])
@pytest.mark.parametrize("robot", PLACES)
def test_a_posed_picture_is_that_of_the_plain_account(robot: str, moves: bool) -> None:
    looks, sight, place, turn, views = start(robot, moves=moves)
    made = posed_picture(looks, sight, place, turn, views)
    picture, source = plain(looks, sight, place, turn, views)
    off = (made.picture[0].permute(1, 2, 0) - picture).abs().amax(-1)
    assert (off > LEVEL).sum() <= 2, "a pixel in a thousand may fall to the other side of a threshold"
    assert ((made.source[0].permute(1, 2, 0) - source).abs().amax(-1) > 1e-3).sum() <= 2
    assert (made.source[0, :2].sum(0) > 0.5).sum() > 100, "the robot is to be seen"
    assert (made.source[0, 0] > 0.5).sum() > 30, "in part as it was"
    assert (made.source[0, 2] > 0.2).sum() > 30, "so are the things"


def test_pictures_are_the_same_however_many_are_made_at_once_and_however_they_lie_in_memory() -> None:
    looks, *given = start("widowx", moves=False)
    _, *other = start("widowx", moves=True)
    sight = FirstSight(*(torch.cat([one, two]) for one, two in zip(given[0], other[0], strict=True)))
    place, turn, views = (torch.cat([one, two]) for one, two in zip(given[1:], other[1:], strict=True))
    alone = [posed_picture(looks, *one) for one in (given, other)]
    slots = torch.tensor([0, 1, 0] * 13)
    for form in (torch.contiguous_format, torch.channels_last):
        many = FirstSight(*(x[slots] for x in sight))
        many = many._replace(
            picture=many.picture.contiguous(memory_format=form), plate=many.plate.contiguous(memory_format=form)
        )
        made = posed_picture(looks, many, place[slots], turn[slots], views[slots])
        for i, slot in enumerate(slots.tolist()):
            torch.testing.assert_close(made.picture[i], alone[slot].picture[0], atol=1e-5, rtol=0)
            torch.testing.assert_close(made.source[i], alone[slot].source[0], atol=1e-5, rtol=0)


def test_the_first_sight_is_left_as_it_was() -> None:
    looks, sight, place, turn, views = start("hand_21", moves=True)
    before = [x.clone() for x in sight]
    posed_picture(looks, sight, place, turn, views)
    assert all(torch.equal(one, two) for one, two in zip(before, sight, strict=True))
    resting = posed_picture(looks, sight, sight.things_m, torch.eye(3).repeat(1, 2, 1, 1), sight.views)
    assert resting.picture.data_ptr() != sight.plate.data_ptr()
