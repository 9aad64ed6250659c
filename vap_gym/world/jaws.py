"""Jaws that close on a thing stop there: how far a gripper is told to close is not how far it can.

A visual action prompt says what was commanded. Drawn so, the jaws of a gripper that holds something would meet in the
middle of it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from vap_gym.rotations import rotation_from_rotvec, rotvec_from_rotation
from vap_gym.world.motion import ThingState
from vap_gym.world.surfels import Surfels
from vap_gym.world.views import inverse_or_zero, link_poses

POINTS = 32  # of each link, at most
SQUEEZE_M = 0.002  # so far each jaw goes into what it holds: both its width and its place are known so well
DEEPEST_M = 0.02  # a jaw deeper inside a thing, or further off, counts as this: it pushes, or does not touch
PARTS = 8  # into which a step of the jaws is divided
SAME = 1e-5
NEAR_M = 0.15  # a thing whose centre is further from the jaws' middle is not between them


class Jaws(NamedTuple):
    """Which links of a robot are its palm and its two jaws; and points on their surfaces, in their links' frames."""

    base: int
    palm: int
    links: tuple[int, ...]  # of the first jaw, then of the second
    points_m: Float[Tensor, "N 3"]
    link: Int64[Tensor, " N"]  # numbers in `links`
    second: Bool[Tensor, " N"]  # whether a point is on the second jaw


def jaws_of(base: int, gripper: tuple[int, ...], surfels: Surfels) -> Jaws | None:
    """Return the jaws of a gripper: `gripper` names its palm, then as many links of one jaw as of the other.

    None where these are not all of its links, one after the other, or have no surface: a hand of five fingers.
    """
    palm, *rest = gripper
    links = tuple(dict.fromkeys(rest))
    if palm in links or len(links) % 2 or links != tuple(range(palm + 1, palm + 1 + len(links))):
        return None
    points, numbers = [], []
    for i, name in enumerate(links):
        mine = surfels.points_m[surfels.link == name]
        mine = mine[torch.linspace(0, len(mine) - 1, min(POINTS, len(mine)), device=mine.device).long()]
        points.append(mine)
        numbers.append(torch.full((len(mine),), i, device=mine.device))
    link = torch.cat(numbers)
    second: Tensor = link >= len(links) // 2
    if not bool(second.any()) or bool(second.all()):
        return None
    return Jaws(base=base, palm=palm, links=links, points_m=torch.cat(points), link=link, second=second)


def poses(jaws: Jaws | None, views: Float[Tensor, "B L 3 4"]) -> Float[Tensor, "B J 3 4"]:
    """Return where the jaws' links are in the palm's frame; J is 0 without jaws."""
    if jaws is None:
        return views.new_zeros(len(views), 0, 3, 4)
    palm = views[:, jaws.palm, None]
    back, mine = inverse_or_zero(palm[..., :3]), views[:, list(jaws.links)]
    away = mine[..., 3:] - palm[..., 3:]
    return torch.cat([back @ mine[..., :3], back @ away], -1)


def stopped(
    jaws: Jaws | None, views: Float[Tensor, "B L 3 4"], before: Float[Tensor, "B J 3 4"], things: ThingState
) -> tuple[Float[Tensor, "B L 3 4"], Float[Tensor, "B J 3 4"]]:
    """Return the links' views with jaws that go as far as things let them, and where these are then, as `poses` has it.

    Args:
        jaws: of the robot; None leaves everything as it is.
        views: of the links as they are commanded to be.
        before: where the jaws were last.
        things: as they are now.
    """
    if jaws is None:
        return views, before
    goal = poses(jaws, views)
    moves = (goal - before).abs().flatten(1).amax(1) > SAME
    rows = (moves & _near(jaws, views, goal, things)).nonzero()[:, 0]
    if not len(rows):
        return views, goal
    way = _between(before[rows], goal[rows])  # n S J 3 4
    squeeze = _squeeze(jaws, way, views[rows], ThingState(*(x[rows] for x in things)))  # n S K
    free = squeeze <= squeeze[:, :1].clamp_min(2.0 * SQUEEZE_M)
    last = free.all(-1).cumprod(1).sum(1) - 1  # of the poses before the first that is not free
    reached = goal.clone()
    reached[rows] = way[torch.arange(len(rows), device=rows.device), last]
    palm = views[:, jaws.palm, None]
    turned, placed = palm[..., :3] @ reached[..., :3], palm[..., :3] @ reached[..., 3:] + palm[..., 3:]
    shown = views.clone()
    shown[:, list(jaws.links)] = torch.cat([turned, placed], -1)
    return shown, reached


def _near(
    jaws: Jaws, views: Float[Tensor, "B L 3 4"], goal: Float[Tensor, "B J 3 4"], things: ThingState
) -> Bool[Tensor, " B"]:
    """Whether there is anything near the jaws."""
    turn, place = link_poses(views, jaws.base, (jaws.palm,))
    middle = (turn[:, 0] @ goal[..., 3].mean(1)[..., None])[..., 0] + place[:, 0]
    off = (things.place_m - middle[:, None]).norm(dim=-1)
    near: Tensor = ((off < NEAR_M) & things.there).any(1)
    return near


def _between(before: Float[Tensor, "n J 3 4"], goal: Float[Tensor, "n J 3 4"]) -> Float[Tensor, "n S J 3 4"]:
    """Poses from one to the other, both among them."""
    share = torch.linspace(0.0, 1.0, PARTS + 1, device=goal.device)[None, :, None, None]
    R = before[..., :3]
    turn = rotvec_from_rotation((R.mT @ goal[..., :3]).double()).to(R)
    turned = R[:, None] @ rotation_from_rotvec(share * turn[:, None])
    placed = before[:, None, ..., 3] + share * (goal - before)[:, None, ..., 3]
    way: Tensor = torch.cat([turned, placed[..., None]], -1)
    return way


def _squeeze(
    jaws: Jaws, way: Float[Tensor, "n S J 3 4"], views: Float[Tensor, "n L 3 4"], things: ThingState
) -> Float[Tensor, "n S K"]:
    """How deep both jaws together are inside each thing, in m: a thing that is off the middle is squeezed as much."""
    turn, place = link_poses(views, jaws.base, (jaws.palm,))
    R_thing, half, is_round = _solids(things)
    pose = way[:, :, jaws.link]  # n S N 3 4
    points = (pose[..., :3] @ jaws.points_m[..., None])[..., 0] + pose[..., 3]
    points = points @ turn.mT + place[:, None]  # of the base's frame
    off = points[:, :, :, None] - things.place_m[:, None, None]
    off = torch.einsum("nspki,nkij->nspkj", off, R_thing).abs()  # along the thing's axes
    inside = half[:, None, None] - off
    radial = half[:, None, None, :, :2].mean(-1) - off[..., :2].norm(dim=-1)
    across = torch.where(is_round[:, None, None], radial, inside[..., :2].amin(-1))
    deep = torch.minimum(across, inside[..., 2])
    jaw = [deep[:, :, which].amax(2).clamp(-DEEPEST_M, DEEPEST_M) for which in (~jaws.second, jaws.second)]
    both: Tensor = torch.where(things.there[:, None], jaw[0] + jaw[1], -2.0 * DEEPEST_M)
    return both


def _solids(things: ThingState) -> tuple[Float[Tensor, "n K 3 3"], Float[Tensor, "n K 3"], Bool[Tensor, "n K"]]:
    """How each thing's solid is turned, its half extents in m, and whether it is a cylinder; see `things.Found`."""
    shape = things.shape
    psi = 0.5 * torch.atan2(shape[..., 5], shape[..., 4])
    about_z = torch.stack([torch.zeros_like(psi), torch.zeros_like(psi), psi], -1)
    return things.turn @ rotation_from_rotvec(about_z), shape[..., :3], shape[..., 3] > 0.5
