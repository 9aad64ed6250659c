"""A URDF as its own XML: which links hang on which, what is rigid with what, and copies with less in them."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import numpy as np
from jaxtyping import Float

from vap_gym.errors import UrdfError, unknown_name_message

MOVING = ("revolute", "continuous", "prismatic")
_KEPT = ("link", "joint", "material")  # of a URDF; transmissions, sensors and simulators' notes are left out


@dataclass(frozen=True, kw_only=True, eq=False)
class TreeJoint:
    """One joint: `leader` is the joint that it mimics, if any; limits are infinite where the file gives none."""

    name: str
    kind: str
    parent: str
    child: str
    leader: str
    lower: float
    upper: float
    element: Element

    @property
    def moves(self) -> bool:
        """True for joints that move, mimics included."""
        return self.kind in MOVING


@dataclass(frozen=True, kw_only=True, eq=False)
class Tree:
    """A URDF's links and joints, each by name, in the file's order."""

    path: Path
    name: str
    root: str
    links: dict[str, Element]
    joints: dict[str, TreeJoint]
    materials: tuple[Element, ...]

    def link(self, name: str, option: str) -> str:
        """Return the name of a link that is there; UrdfError, with the nearest name, where it is not."""
        if name not in self.links:
            raise UrdfError(f"{self.path}: {option}: {unknown_name_message('link', name, self.links)}")
        return name

    def above(self, link: str) -> TreeJoint | None:
        """Return the joint that carries a link."""
        return next((joint for joint in self.joints.values() if joint.child == link), None)

    def path_to(self, link: str) -> list[TreeJoint]:
        """Return the joints from the root to a link."""
        found: list[TreeJoint] = []
        joint = self.above(link)
        while joint is not None:
            found.append(joint)
            joint = self.above(joint.parent)
        return found[::-1]

    def below(self, link: str) -> list[TreeJoint]:
        """Return all joints under a link, nearest first."""
        found: list[TreeJoint] = []
        frontier = [link]
        while frontier:
            next_joints = [joint for name in frontier for joint in self.joints.values() if joint.parent == name]
            found += next_joints
            frontier = [joint.child for joint in next_joints]
        return found

    def rigid_with(self, link: str) -> list[str]:
        """Return the links that never move against a link, itself first."""
        found = [link]
        for name in found:
            for joint in self.joints.values():
                if joint.moves:
                    continue
                other = {joint.parent: joint.child, joint.child: joint.parent}.get(name)
                if other is not None and other not in found:
                    found.append(other)
        return found


def read_tree(path: Path) -> Tree:
    """Read a URDF's links and joints, not yet checked to be a tree beyond having one root.

    Raises:
        UrdfError: no such file, no XML, no <robot>, a joint without parent, child or known kind, or several roots.
    """
    if not path.is_file():
        raise UrdfError(f"No URDF at '{path}'. Give the path of a file that exists.")
    try:
        robot = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, UnicodeDecodeError, ValueError) as error:
        raise UrdfError(
            f"{path} must be a URDF (XML), but is not: {error}. Expand xacro files first: xacro robot.xacro."
        ) from error
    if robot.tag != "robot":
        raise UrdfError(
            f"{path}: a URDF's outermost element is <robot>, got <{robot.tag}>. Give a URDF, no SDF or MJCF."
        )
    for tag in ("link", "joint"):
        names = [element.get("name", "") for element in robot.findall(tag)]
        twice = sorted({name for name in names if names.count(name) > 1 or not name})
        if twice:
            told = ", ".join(f"'{name}'" for name in twice)
            raise UrdfError(f"{path}: each {tag} needs a name of its own, got {told}. Rename them.")
    links = {str(link.get("name")): link for link in robot.findall("link")}
    joints = {str(element.get("name")): _joint(path, element) for element in robot.findall("joint")}
    children = {joint.child for joint in joints.values()}
    roots = [name for name in links if name not in children]
    if len(roots) != 1:
        raise UrdfError(
            f"{path}: a URDF must be one tree with one root link, got {len(roots)}: {', '.join(roots) or 'none'}."
        )
    return Tree(
        path=path, name=robot.get("name") or path.stem, root=roots[0], links=links, joints=joints,
        materials=tuple(robot.findall("material")),
    )  # fmt: skip


def _joint(path: Path, element: Element) -> TreeJoint:
    name, kind = str(element.get("name")), str(element.get("type"))
    parent, child = element.find("parent"), element.find("child")
    if parent is None or child is None or kind not in (*MOVING, "fixed"):
        raise UrdfError(
            f"{path}: joint '{name}' must have a parent, a child and one of the types {', '.join(MOVING)}, fixed; got "
            f"type '{kind}'. Split joints of several axes into several joints."
        )
    limit, mimic = element.find("limit"), element.find("mimic")
    lower, upper = -np.inf, np.inf
    if kind != "continuous" and limit is not None:
        lower, upper = _number(path, name, limit, "lower"), _number(path, name, limit, "upper")
    return TreeJoint(
        name=name, kind=kind, parent=str(parent.get("link")), child=str(child.get("link")),
        leader="" if mimic is None else str(mimic.get("joint")), lower=lower, upper=upper, element=element,
    )  # fmt: skip


def _number(path: Path, name: str, limit: Element, key: str) -> float:
    try:
        return float(limit.get(key, "0"))
    except ValueError as error:
        raise UrdfError(f"{path}: joint '{name}': its {key} limit must be a number, got '{limit.get(key)}'.") from error


def trimmed(tree: Tree, *, base: str, driven: list[str], name: str) -> Element:
    """Return a <robot> of what hangs on `base`, in which only the joints `driven` and their mimics move.

    The driven ones are in this order, and mimic nothing. Other joints are fixed at 0, or at the nearer limit. Links,
    joints and materials are all that is kept.
    """
    robot = Element("robot", {"name": name})
    robot.extend(copy.deepcopy(material) for material in tree.materials)
    kept = tree.below(base)
    robot.extend(copy.deepcopy(tree.links[link]) for link in (base, *(joint.child for joint in kept)))
    still = [joint for joint in kept if joint.name not in driven and leader_of(tree, joint) not in driven]
    rest = [joint for joint in kept if joint.name not in driven and joint not in still]
    for joint_name in driven:
        element = copy.deepcopy(tree.joints[joint_name].element)
        for mimic in element.findall("mimic"):
            element.remove(mimic)
        robot.append(element)
    robot.extend(copy.deepcopy(joint.element) for joint in rest)
    robot.extend(_fixed(joint) for joint in still)
    return robot


def leader_of(tree: Tree, joint: TreeJoint) -> str:
    """Return the joint at the end of a chain of mimics; the joint's own name where it mimics none."""
    seen = [joint.name]
    while joint.leader in tree.joints and joint.leader not in seen:
        joint = tree.joints[joint.leader]
        seen.append(joint.name)
    return joint.name


def _fixed(joint: TreeJoint) -> Element:
    """A joint that stands still at 0, or at the limit nearest to it."""
    element = copy.deepcopy(joint.element)
    element.set("type", "fixed")
    value = min(max(0.0, joint.lower), joint.upper) if joint.moves and not joint.leader else 0.0
    if value:
        T = origin(element) @ motion(joint, value)
        set_origin(element, T)
    for tag in ("axis", "limit", "mimic", "dynamics", "calibration", "safety_controller"):
        for child in element.findall(tag):
            element.remove(child)
    return element


def motion(joint: TreeJoint, value: float) -> Float[np.ndarray, "4 4"]:
    """Return the pose of a joint's child against the joint's own frame at a value [rad or m]."""
    from scipy.spatial.transform import Rotation

    axis_element = joint.element.find("axis")
    text = "1 0 0" if axis_element is None else axis_element.get("xyz", "1 0 0")
    axis = np.array(text.split(), float)
    axis = axis / np.linalg.norm(axis)
    T = np.eye(4)
    if joint.kind == "prismatic":
        T[:3, 3] = value * axis
    else:
        T[:3, :3] = Rotation.from_rotvec(value * axis).as_matrix()
    return T


def origin(element: Element) -> Float[np.ndarray, "4 4"]:
    """Return the pose that an element's <origin> gives; the identity where it has none."""
    from scipy.spatial.transform import Rotation

    T = np.eye(4)
    found = element.find("origin")
    if found is not None:
        T[:3, :3] = Rotation.from_euler("xyz", np.array(found.get("rpy", "0 0 0").split(), float)).as_matrix()
        T[:3, 3] = np.array(found.get("xyz", "0 0 0").split(), float)
    return T


def set_origin(element: Element, T: Float[np.ndarray, "4 4"]) -> None:
    """Give an element an <origin>."""
    from scipy.spatial.transform import Rotation

    for found in element.findall("origin"):
        element.remove(found)
    rpy = Rotation.from_matrix(T[:3, :3]).as_euler("xyz")
    figures = {"xyz": T[:3, 3], "rpy": rpy}
    ElementTree.SubElement(element, "origin", {key: " ".join(f"{x:.9g}" for x in v) for key, v in figures.items()})
