"""Guesses about a robot from its joints and surfaces: a home pose, which way the gripper closes, and a skeleton."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float

from vap_gym.drafting.geometry import Surface
from vap_gym.drafting.parts import Parts
from vap_gym.drafting.tree import Tree
from vap_gym.kinematics.chain import Chain

CANDIDATES = 4000
"""Random poses among which the home pose is chosen."""

LEAST_RADIUS_M, MOST_RADIUS_M = 0.004, 0.12
SLICES = 5
"""Of a bone, in which the width of its limb is measured."""

PLAIN_RADIUS = 0.03
"""Of the reach: half a bone's width where no surface tells."""

ARM_RGB = (
    (130, 100, 25),
    (160, 120, 30),
    (180, 150, 40),
    (200, 180, 60),
    (215, 205, 100),
    (230, 230, 150),
    (240, 240, 240),
)
PALM_RGB = (60, 220, 90)
FINGER_RGB = (
    ((240, 90, 60), (255, 40, 40)),
    ((70, 110, 250), (40, 60, 255)),
    ((60, 200, 200), (20, 255, 255)),
    ((200, 80, 240), (255, 60, 255)),
)
"""Of each finger: its bones before the last, and its last."""


@dataclass(kw_only=True)
class Figure:
    """Key-points (name, link, offset_m) and bones (start, end, colour, radius_m), as a card lists them."""

    points: list[tuple[str, str, tuple[float, float, float]]] = field(default_factory=list)
    bones: list[tuple[str, str, tuple[int, int, int], float]] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)  # key-points from which the drop line starts

    def point(self, name: str, link: str, offset_m: Float[np.ndarray, "3"]) -> str:
        """Add a key-point under a name that is free, and return that."""
        taken = {each[0] for each in self.points}
        free = next(each for each in (name, *(f"{name}_{i}" for i in range(2, 99))) if each not in taken)
        self.points.append((free, link, tuple(round(float(x), 4) + 0.0 for x in offset_m)))  # type: ignore[arg-type]
        return free


@dataclass(frozen=True, kw_only=True, eq=False)
class Pose:
    """Where all links are: T_base_link by name."""

    links: dict[str, Float[np.ndarray, "4 4"]]


def pose_of(chain: Chain, q: Float[np.ndarray, " n"]) -> Pose:
    """Return the pose of a chain at all its driven joints."""
    T = chain.links(torch.from_numpy(np.asarray(q, float))).numpy()
    return Pose(links=dict(zip(chain.link_names, T, strict=True)))


def finite_limits(chain: Chain) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Return the joints' limits, ±π where there are none."""
    return chain.lower.numpy().clip(-np.pi, np.pi), chain.upper.numpy().clip(-np.pi, np.pi)


def reach_of(chain: Chain, tip: str) -> float:
    """Return how far the tip can be from the base at most, about: the joints' offsets laid end to end."""
    arm = chain.subchain([tip])
    return float(arm.coefficients[0, :, :3, 3].norm(dim=-1).sum() + arm.link_offset[0, :3, 3].norm())


def hand_direction(chain: Chain, tree: Tree, parts: Parts, shape: dict[str, Surface]) -> Float[np.ndarray, "3"]:
    """Return where the hand lies, from the last arm joint, in the frame of the link that it carries; unit, or zeros."""
    low, high = finite_limits(chain)
    pose = pose_of(chain, (low + high) / 2)
    last = tree.joints[parts.arm[-1]].child
    links = [last, *(joint.child for joint in tree.below(last))]
    points = [each for each, _ in _world_points(links, pose, shape)] or [pose.links[parts.tip][None, :3, 3]]
    T = pose.links[last]
    away = T[:3, :3].T @ (np.concatenate(points).mean(0) - T[:3, 3])
    length = float(np.linalg.norm(away))
    return away / length if length > 1e-3 else np.zeros(3)


def home_pose(chain: Chain, tree: Tree, parts: Parts, shape: dict[str, Surface]) -> Float[np.ndarray, " n"]:
    """Return arm joints, rounded, in which the arm is before its base, off its limits, and can move every way.

    The best of `CANDIDATES` random poses: a large least singular value of the tip's Jacobian, the tip ahead (+x) at
    half its reach, the hand rather downward, no joint under the base, none near its limits or far from 0.
    """
    tip, links = parts.tip, [tree.joints[joint].child for joint in parts.arm]
    arm = chain.subchain([tip])
    low, high = finite_limits(arm)
    rng = np.random.default_rng(0)
    half = np.maximum((high - low) / 2, 1e-9)
    near = np.clip(0.0, low + 0.1 * half, high - 0.1 * half)
    share = rng.uniform(-0.9, 0.9, (CANDIDATES, arm.size))
    q = np.clip(near + share * np.minimum(half, 1.8), low + 0.05 * half, high - 0.05 * half)
    q[0] = near
    joints = torch.from_numpy(q)
    T, jacobian = arm.fk_and_jacobian(joints, tip)
    reach = max(reach_of(chain, tip), 1e-6)
    place = T[:, :3, 3].numpy() / reach
    carried = chain.subchain(links).links(joints).numpy()
    down = -(carried[:, -1, :3, :3] @ hand_direction(chain, tree, parts, shape))[:, 2]
    scale = np.array([1 / reach] * 3 + [0.5] * 3)[:, None]
    free = np.linalg.svd(jacobian.numpy() * scale, compute_uv=False)[:, min(arm.size, 6) - 1]
    under = np.maximum(0.0, 0.05 - np.concatenate([carried[:, :, 2, 3] / reach, place[:, 2:]], 1)).sum(1)
    off = np.abs(place - (0.5, 0.0, 0.35)) @ (1.0, 0.7, 0.5)
    score = free - off + 0.4 * down - 3.0 * under - 0.1 * (((q - near) / np.minimum(half, 1.8)) ** 2).sum(1)
    return np.asarray(np.round(q[score.argmax()], 2))


def fingers_of(tree: Tree, parts: Parts, pose: Pose, shape: dict[str, Surface]) -> list[list[str]]:
    """Return, for each finger, the links that its joints carry, from root to end; [] for a bare tool.

    A finger is a way from the gripper's base to a joint under which nothing moves. Ways that end much nearer to the
    base than others, or have half the joints, are levers, not fingers, and are left out.
    """
    moving = [joint for joint in tree.below(parts.gripper_base) if joint.moves and joint.name not in parts.arm]
    last = [joint for joint in moving if not any(under.moves for under in tree.below(joint.child))]
    ways = [[joint.child for joint in tree.path_to(leaf.child) if joint in moving] for leaf in last]
    palm = pose.links[parts.gripper_base][:3, 3]
    ends = [finger_end(way[-1], tree.rigid_with(way[-1]), palm, pose, shape) for way in ways]
    far = [float(np.linalg.norm(end - palm)) for end in ends]
    longest = max(map(len, ways), default=0)
    return [
        way
        for way, distance in zip(ways, far, strict=True)
        if distance > 0.75 * max(far) and 2 * len(way) > longest  # a lever has one joint where a finger has two
    ]


def _world_points(links: list[str], pose: Pose, shape: dict[str, Surface]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Surface points in the base frame, and their areas, of links that have any."""
    return [
        (shape[link].points_m @ pose.links[link][:3, :3].T + pose.links[link][:3, 3], shape[link].area_m2)
        for link in links
        if link in shape
    ]


def finger_end(
    link: str, rigid: list[str], palm: Float[np.ndarray, "3"], pose: Pose, shape: dict[str, Surface]
) -> Float[np.ndarray, "3"]:
    """Return the middle of a finger's end in the base frame: of that twentieth which is farthest from the palm."""
    points = _world_points(rigid, pose, shape)
    if not points:
        return max((pose.links[name][:3, 3] for name in rigid), key=lambda place: float(np.linalg.norm(place - palm)))
    every = np.concatenate([p for p, _ in points])
    away = every.mean(0) - palm
    height = (every - palm) @ (away / max(float(np.linalg.norm(away)), 1e-9))
    return np.asarray(every[height >= np.quantile(height, 0.95) - 1e-9].mean(0))


@dataclass(frozen=True, kw_only=True, eq=False)
class Limb:
    """What the surface around a bone says: half its width, and where its middle is if far from the straight line."""

    radius_m: float
    bend: Float[np.ndarray, "3"] | None


def limb_around(
    start: Float[np.ndarray, "3"],
    end: Float[np.ndarray, "3"],
    links: list[str],
    pose: Pose,
    shape: dict[str, Surface],
    plain_m: float,
) -> Limb:
    """Cut the surface beside a bone into slices: half the width is the median distance to the slices' own middles."""
    points = _world_points(links, pose, shape)
    if not points:
        return Limb(radius_m=round(plain_m, 3), bend=None)
    where, area = np.concatenate([p for p, _ in points]), np.concatenate([a for _, a in points])
    along = end - start
    share = (where - start) @ along / float(along @ along)
    widths, middles = [], []
    for low in np.arange(SLICES) / SLICES:
        own = (share >= low - 0.02) & (share < low + 1 / SLICES + 0.02)
        if area[own].sum() > 0.02 * area.sum():
            box = where[own]
            middle = (box.min(0) + box.max(0)) / 2  # of the box: a dent or a screw head counts for little
            across = box - middle - ((box - middle) @ along)[:, None] * along / float(along @ along)
            order = np.argsort(np.linalg.norm(across, axis=1))
            total = np.cumsum(area[own][order])
            widths.append(float(np.linalg.norm(across, axis=1)[order][np.searchsorted(total, total[-1] / 2)]))
            middles.append((abs(low + 0.5 / SLICES - 0.5), middle))
    if not widths:
        return Limb(radius_m=round(float(np.clip(plain_m, LEAST_RADIUS_M, MOST_RADIUS_M)), 3), bend=None)
    most = min(MOST_RADIUS_M, max(LEAST_RADIUS_M, 0.8 * float(np.linalg.norm(along))))  # a foot's plate is no bone
    radius = float(np.clip(np.median(widths), LEAST_RADIUS_M, most))
    central = min(middles, key=lambda each: each[0])[1]
    off = central - start - ((central - start) @ along) * along / float(along @ along)
    is_bent = float(np.linalg.norm(off)) > max(0.6 * radius, 0.01) and float(np.linalg.norm(along)) > 3 * radius
    return Limb(radius_m=round(radius, 3), bend=central if is_bent else None)


@dataclass(frozen=True, kw_only=True)
class Closing:
    """Per driven gripper joint where it is open and closed, and how far the gripper opens [m]."""

    opened: tuple[float, ...]
    closed: tuple[float, ...]
    max_opening_m: float
    notes: tuple[str, ...]


def closing_of(
    chain: Chain,
    tree: Tree,
    parts: Parts,
    home: Float[np.ndarray, " n"],
    ways: list[list[str]],
    shape: dict[str, Surface],
) -> Closing:
    """Find for each gripper joint which of its limits is the open one: where the fingers' ends are farther apart."""
    low, high = finite_limits(chain)
    n = len(parts.arm)
    endless = ~np.isfinite(chain.lower.numpy()[n:]) | ~np.isfinite(chain.upper.numpy()[n:])
    low[n:][endless], high[n:][endless] = 0.0, 0.8
    notes = [
        f"{name} has no limits: 0 to 0.8 is a guess" for name, no in zip(parts.gripper, endless, strict=True) if no
    ]
    rest = np.concatenate([home, (low[n:] + high[n:]) / 2])
    local = {}
    for way in ways:  # each finger's end in the frame of its last link
        pose = pose_of(chain, rest)
        palm, last = pose.links[parts.gripper_base][:3, 3], pose.links[way[-1]]
        local[way[-1]] = last[:3, :3].T @ (
            finger_end(way[-1], tree.rigid_with(way[-1]), palm, pose, shape) - last[:3, 3]
        )

    def spread(q: Float[np.ndarray, " n"]) -> float:
        pose = pose_of(chain, q)
        ends = np.array([pose.links[link][:3, :3] @ p + pose.links[link][:3, 3] for link, p in local.items()])
        if len(ends) < 2:  # one finger: away from the palm's rest
            return float(np.linalg.norm(ends - pose.links[parts.tip][:3, 3])) if len(ends) else 0.0
        return float(np.linalg.norm(ends - ends.mean(0), axis=1).mean() * 2)

    opened, closed = rest.copy(), rest.copy()
    for i in range(n, chain.size):
        at_low, at_high = rest.copy(), rest.copy()
        at_low[i], at_high[i] = low[i], high[i]
        first, second = spread(at_low), spread(at_high)
        if abs(first - second) < 1e-4:
            notes.append(
                f"{chain.joint_names[i]}: neither limit opens the fingers more; its lower one is taken for open"
            )
        opened[i], closed[i] = (low[i], high[i]) if first >= second - 1e-4 else (high[i], low[i])
    return Closing(
        opened=tuple(round(float(v), 4) for v in opened[n:]), closed=tuple(round(float(v), 4) for v in closed[n:]),
        max_opening_m=round(max(spread(opened) - spread(closed), 0.001), 3) if parts.gripper else 0.0,
        notes=tuple(notes),
    )  # fmt: skip


Node = tuple[str, str, Float[np.ndarray, "3"]]
"""A key-point's name and link, and where it is in the base frame at home."""


def figure_of(
    chain: Chain, tree: Tree, parts: Parts, pose: Pose, ways: list[list[str]], shape: dict[str, Surface]
) -> Figure:
    """Make the skeleton: a key-point at each joint, bones between them as wide as the surface around them."""
    figure = Figure()
    plain = PLAIN_RADIUS * reach_of(chain, parts.tip)

    def add(name: str, link: str, place: Float[np.ndarray, "3"]) -> Node:
        T = pose.links[link]
        return figure.point(name, link, T[:3, :3].T @ (place - T[:3, 3])), link, place

    def bone(a: Node, b: Node, colour: tuple[int, int, int], radius_m: float = 0.0) -> float:
        """Draw a bone, over a further point where the limb is bent; return half its width."""
        if float(np.linalg.norm(b[2] - a[2])) < 0.005:
            return 0.0
        limb = limb_around(a[2], b[2], tree.rigid_with(a[1]), pose, shape, plain)
        radius_m = radius_m or limb.radius_m
        via = [] if limb.bend is None else [add(f"{a[0]}_bend", a[1], limb.bend)]
        for one, other in pairwise([a, *via, b]):
            figure.bones.append((one[0], other[0], colour, radius_m))
        return radius_m

    at = [add("base", parts.base, pose.links[parts.base][:3, 3])]
    at += [
        add(f"joint_{i}", tree.joints[name].child, pose.links[tree.joints[name].child][:3, 3])
        for i, name in enumerate(parts.arm, 1)
    ]
    shades = np.linspace(0, len(ARM_RGB) - 1, max(len(at) - 1, 1)).round().astype(int)
    for a, b, shade in zip(at, at[1:], shades, strict=False):
        bone(a, b, ARM_RGB[shade])
    if not ways:
        tip = add("tip", parts.tip, pose.links[parts.tip][:3, 3])
        bone(at[-1], tip, PALM_RGB)
        figure.ends = [tip[0]]
        return figure
    roots = [pose.links[way[0]][:3, 3] for way in ways]
    palm = add("palm", parts.gripper_base, np.mean(roots, axis=0))
    bone(at[-1], palm, PALM_RGB)
    for i, way in enumerate(sorted(ways, key=lambda way: "left" not in way[-1].lower())):  # the left one reddish
        side = next((word for word in ("left", "right") if word in way[-1].lower()), f"finger{i + 1}")
        near, last = FINGER_RGB[i % len(FINGER_RGB)]
        line = [
            add(f"{side}_root" if k == 0 else f"{side}_knee", link, pose.links[link][:3, 3])
            for k, link in enumerate(way)
        ]
        place = finger_end(way[-1], tree.rigid_with(way[-1]), pose.links[parts.gripper_base][:3, 3], pose, shape)
        line.append(add(f"{side}_end", way[-1], place))
        width = [bone(a, b, last if b is line[-1] else near) for a, b in pairwise(line)]
        bone(palm, line[0], near, max(width, default=0.0))
        figure.ends.append(line[-1][0])
    return figure
