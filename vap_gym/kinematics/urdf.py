"""URDF file → `Chain`: parsed by yourdfpy (no meshes are loaded), checked to be a tree, fixed joints merged."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch

from vap_gym.cards import RobotCard
from vap_gym.errors import UrdfError, unknown_name_message
from vap_gym.kinematics.chain import Chain, MovingJoint, RigidLink, build_chain
from vap_gym.rotations import skew

_MOVING = ("revolute", "continuous", "prismatic")


@dataclass(frozen=True, kw_only=True)
class _Joint:
    """A joint as the file gives it; `origin` is T_parent_joint at q = 0."""

    name: str
    kind: str
    parent: str
    child: str
    origin: torch.Tensor
    axis: torch.Tensor
    lower: float
    upper: float
    velocity: float
    mimic: tuple[str, float, float] | None  # joint, multiplier, offset


def load_chain(robot: RobotCard) -> Chain:
    """Read a robot's URDF and check that its card's links and joints are there. Float64."""
    chain = read_urdf(robot.urdf_path)
    points = {point.link for point in robot.skeleton.keypoints}
    for link in (robot.base_link, robot.tip_link, robot.gripper.base_link, robot.gripper.tool_link, *sorted(points)):
        chain.link_index(link)
    if robot.base_link != chain.base_link:
        raise UrdfError(
            f"{robot.urdf_path}: base_link is '{robot.base_link}', but the tree's root is '{chain.base_link}'."
        )
    expected = (*robot.arm_joints, *(joint.name for joint in robot.gripper.joints))
    for joint in expected:
        chain.joint_index(joint)
    if chain.joint_names != expected:
        raise UrdfError(
            f"{robot.urdf_path}: driven joints are {', '.join(chain.joint_names)}; the card's arm_joints and "
            f"gripper.joints must name all of them, in this order, got {', '.join(expected)}."
        )
    return chain


def read_urdf(path: str | Path) -> Chain:
    """Read a URDF: any tree of revolute, continuous, prismatic, fixed and mimic joints.

    The chain is in float64, its driven joints in the file's order. Raises UrdfError where the file is missing,
    malformed, no tree (a loop, two parents, two roots), has a planar or floating joint, or a mimic of a joint that is
    not there or that follows itself.
    """
    path = Path(path)
    links, joints = _parse(path)
    root = _root(path, links, joints)
    ordered = _ordered(root, joints)
    sources = {
        joint.name: _follow_mimic(path, joint, {j.name: j for j in joints}) for joint in joints if joint.kind in _MOVING
    }
    return _assemble(path, root, links, [j for j in joints if j.kind in _MOVING and j.mimic is None], ordered, sources)


def _parse(path: Path) -> tuple[list[str], list[_Joint]]:
    import yourdfpy  # here: it reads meshes too, and imports what that takes

    if not path.is_file():
        raise UrdfError(f"No URDF at '{path}'. Give the path of a file that exists.")
    try:
        ElementTree.parse(path)  # strictly: yourdfpy would take what it can read of a file that is cut off
        robot = yourdfpy.URDF.load(str(path), build_scene_graph=False, load_meshes=False).robot
    except (yourdfpy.URDFError, SyntaxError, ValueError, AttributeError, TypeError, LookupError) as error:
        raise UrdfError(f"{path} is no well-formed URDF: {error or type(error).__name__}.") from error
    links = [link.name for link in robot.links]
    if len(set(links)) != len(links) or not links:
        raise UrdfError(f"{path}: a URDF needs links, each with a name of its own, got {', '.join(links) or 'none'}.")
    names = [joint.name for joint in robot.joints]
    if len(set(names)) != len(names):
        raise UrdfError(f"{path}: each joint needs a name of its own, got {', '.join(names)}.")
    return links, [_joint(path, joint, links) for joint in robot.joints]


def _joint(path: Path, joint: Any, links: list[str]) -> _Joint:
    if joint.type not in (*_MOVING, "fixed"):
        raise UrdfError(f"{path}: joint '{joint.name}' is '{joint.type}'; supported: {', '.join(_MOVING)}, fixed.")
    for link in (joint.parent, joint.child):
        if link not in links:
            raise UrdfError(f"{path}: joint '{joint.name}': {unknown_name_message('link', str(link), links)}")
    bounded = joint.type in ("revolute", "prismatic")
    if bounded and joint.limit is None:
        raise UrdfError(
            f"{path}: joint '{joint.name}' is {joint.type} but has no <limit>; add one, or make it continuous."
        )
    lower, upper, velocity = -math.inf, math.inf, math.inf
    if joint.limit is not None:
        velocity = joint.limit.velocity or math.inf
        if bounded:
            lower, upper = joint.limit.lower or 0.0, joint.limit.upper or 0.0
    if not lower <= upper:  # NaN included
        raise UrdfError(f"{path}: joint '{joint.name}' has lower limit {lower} above upper limit {upper}.")
    axis = torch.tensor([1.0, 0.0, 0.0] if joint.axis is None else list(joint.axis), dtype=torch.float64)
    if joint.type != "fixed":
        if axis.shape != (3,) or not 1e-9 < float(axis.norm()) < math.inf:
            raise UrdfError(f"{path}: joint '{joint.name}' has the axis {axis.tolist()}, which gives no direction.")
        axis = axis / axis.norm()
    origin = (
        torch.eye(4, dtype=torch.float64) if joint.origin is None else torch.from_numpy(joint.origin).to(torch.float64)
    )
    if not bool(torch.isfinite(origin).all()):
        raise UrdfError(f"{path}: joint '{joint.name}' must have an origin of finite numbers, got {origin.tolist()}.")
    mimic = None
    if joint.mimic is not None:
        multiplier = 1.0 if joint.mimic.multiplier is None else joint.mimic.multiplier
        mimic = (joint.mimic.joint, multiplier, joint.mimic.offset or 0.0)
    return _Joint(
        name=joint.name, kind=joint.type, parent=joint.parent, child=joint.child, origin=origin, axis=axis,
        lower=lower, upper=upper, velocity=velocity, mimic=mimic,
    )  # fmt: skip


def _root(path: Path, links: list[str], joints: list[_Joint]) -> str:
    above: dict[str, _Joint] = {}
    for joint in joints:
        if joint.child in above:
            raise UrdfError(
                f"{path}: link '{joint.child}' has two parents, joints '{above[joint.child].name}' and '{joint.name}': "
                "a loop. A URDF must be a tree; cut the loop and let a mimic joint follow instead."
            )
        above[joint.child] = joint
    roots = [link for link in links if link not in above]
    if len(roots) != 1:
        found = f"got {len(roots)}: {', '.join(roots)}" if roots else "got none, so its joints form a loop"
        raise UrdfError(f"{path}: a URDF must be one tree with one root link, {found}.")
    for link in links:  # a ring beside the tree has no root of its own
        seen = set()
        while link in above:
            if link in seen:
                raise UrdfError(f"{path}: the joints around link '{link}' form a loop; a URDF must be one tree.")
            seen.add(link)
            link = above[link].parent
    return roots[0]


def _ordered(root: str, joints: list[_Joint]) -> list[_Joint]:
    """Joints from the base outward, nearest first."""
    ordered: list[_Joint] = []
    frontier = [root]
    while frontier:
        below = [joint for link in frontier for joint in joints if joint.parent == link]
        ordered += below
        frontier = [joint.child for joint in below]
    return ordered


def _follow_mimic(path: Path, joint: _Joint, joints: dict[str, _Joint]) -> tuple[str, float, float]:
    """The driven joint at the end of a chain of mimics, with the whole multiplier and offset."""
    multiplier, offset, seen = 1.0, 0.0, [joint.name]
    while joint.mimic is not None:
        leader, factor, shift = joint.mimic
        multiplier, offset = multiplier * factor, multiplier * shift + offset
        if leader in seen:
            raise UrdfError(f"{path}: joint '{seen[0]}' mimics itself, by way of {' → '.join([*seen, leader])}.")
        moving = [name for name, other in joints.items() if other.kind in _MOVING]
        if leader not in moving:
            raise UrdfError(
                f"{path}: joint '{joint.name}' mimics: {unknown_name_message('moving joint', leader, moving)}"
            )
        seen.append(leader)
        joint = joints[leader]
    return joint.name, multiplier, offset


def _assemble(
    path: Path,
    root: str,
    links: list[str],
    driven: list[_Joint],
    ordered: list[_Joint],
    sources: dict[str, tuple[str, float, float]],
) -> Chain:
    carried = {root: (-1, torch.eye(4, dtype=torch.float64))}  # link → moving joint that carries it, T_joint_link
    names = [joint.name for joint in driven]
    moving: list[MovingJoint] = []
    found: list[tuple[_Joint, torch.Tensor]] = []  # with T_parent_joint
    for joint in ordered:
        carrier, T_carrier_parent = carried[joint.parent]
        T_carrier_joint = T_carrier_parent @ joint.origin
        if joint.kind == "fixed":
            carried[joint.child] = (carrier, T_carrier_joint)
            continue
        carried[joint.child] = (len(moving), torch.eye(4, dtype=torch.float64))
        found.append((joint, T_carrier_joint))
        leader, multiplier, offset = sources[joint.name]
        moving.append(
            MovingJoint(
                name=joint.name, parent=carrier, source=names.index(leader), multiplier=multiplier, offset=offset,
                is_prismatic=joint.kind == "prismatic",
            )
        )  # fmt: skip
    return build_chain(
        name=path.stem if path.stem != "robot" else path.parent.name,
        base_link=root,
        joint_names=tuple(names),
        lower=torch.tensor([joint.lower for joint in driven], dtype=torch.float64),
        upper=torch.tensor([joint.upper for joint in driven], dtype=torch.float64),
        velocity=torch.tensor([joint.velocity for joint in driven], dtype=torch.float64),
        moving=tuple(moving),
        coefficients=_coefficients(found),
        axis=torch.stack([joint.axis for joint, _ in found]) if found else torch.zeros(0, 3, dtype=torch.float64),
        rigid=tuple(RigidLink(name=link, carrier=carried[link][0]) for link in links),
        link_offset=torch.stack([carried[link][1] for link in links]),
    )


def _coefficients(found: list[tuple[_Joint, torch.Tensor]]) -> torch.Tensor:
    """F·motion(q) = c0 + sin q c1 + cos q c2 + q c3. Revolute: F(I + K²), FK, −FK²; prismatic: F, F·axis."""
    c = torch.zeros(4, len(found), 4, 4, dtype=torch.float64)
    for i, (joint, F) in enumerate(found):
        c[0, i] = F
        if joint.kind == "prismatic":
            c[3, i, :3, 3] = F[:3, :3] @ joint.axis
        else:
            K = skew(joint.axis)
            c[0, i, :3, :3] = F[:3, :3] @ (torch.eye(3, dtype=torch.float64) + K @ K)
            c[1, i, :3, :3] = F[:3, :3] @ K
            c[2, i, :3, :3] = -F[:3, :3] @ K @ K
    return c
