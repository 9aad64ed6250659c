"""Which of a URDF's joints are the arm and which the gripper: from the base to the tip, and what hangs on the tip."""

from __future__ import annotations

from dataclasses import dataclass

from vap_gym.drafting.tree import Tree, TreeJoint, leader_of
from vap_gym.errors import UrdfError

MOST_FINGER_JOINTS = 4
"""Of one branch; a branch with more of its own is taken for an arm, or a neck, when there is no tip."""

_TOOL_WORDS = ("tcp", "tool", "grasp", "ee_", "_ee", "end_eff", "tip")


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The names of what was found. `still` are joints that move neither arm nor gripper; notes say what was guessed."""

    base: str
    tip: str
    arm: tuple[str, ...]
    gripper_base: str
    gripper: tuple[str, ...]
    still: tuple[str, ...]
    tool: str  # a link rigid with the gripper's base that is named like a tool; none: ""
    notes: tuple[str, ...]


def choose_parts(tree: Tree, *, base: str | None, tip: str | None, gripper_base: str | None) -> Parts:
    """Tell arm from gripper.

    Raises:
        UrdfError: a link that is not there, a tip that does not hang on the base or on no moving joint, or several
            links that could be the tip and none given.
    """
    notes = []
    start = tree.root if base is None else tree.link(base, "--base")
    end = guessed_tip(tree, start) if tip is None else tree.link(tip, "--tip")
    if tip is None:
        notes.append(f"tip_link: {end} is where the only arm ends")
    path = tree.path_to(end)
    names = [start, *(joint.child for joint in path)]
    if start != tree.root and start not in names[1:]:
        raise UrdfError(
            f"{tree.path}: --tip '{end}' does not hang on --base '{start}', but on "
            f"{' → '.join([tree.root, *names[1:]])}. Name a base on that way, or none."
        )
    if start != tree.root:
        path = path[[joint.child for joint in path].index(start) + 1 :]
    arm = [joint for joint in path if joint.moves]
    if not arm:
        raise UrdfError(
            f"{tree.path}: no joint between '{start}' and '{end}' moves, so there is no arm to drive. "
            f"{_could_be(tree, start)}"
        )
    for joint in arm:
        if joint.leader:
            raise UrdfError(
                f"{tree.path}: joint '{joint.name}' on the way from '{start}' to '{end}' mimics '{joint.leader}', so "
                f"that the arm cannot be driven to every pose. Name a tip above it, with --tip {joint.parent}."
            )
    on_path = {joint.name for joint in path}
    palm = tree.link(gripper_base, "--gripper-base") if gripper_base else _palm(tree, end, on_path)
    fingers = [joint for joint in tree.below(palm) if joint.moves and joint.name not in on_path]
    driven = [joint for joint in fingers if leader_of(tree, joint) == joint.name]
    elsewhere = {joint.name for joint in (*fingers, *arm)}
    driven += [joint for joint in fingers if joint not in driven and leader_of(tree, joint) not in elsewhere]
    if gripper_base and not driven:
        notes.append(f"gripper: no joint under {palm} moves; the robot has no gripper that closes")
    if not gripper_base and driven:
        notes.append(f"gripper: the joints that hang on {palm}")
    used = {joint.name for joint in (*arm, *driven)}
    still = [
        joint.name
        for joint in tree.below(start)
        if joint.moves and joint.name not in used and leader_of(tree, joint) not in used
    ]
    if still:
        notes.append(f"fixed in robot.urdf, for they move neither arm nor gripper: {', '.join(still)}")
    tools = [
        link for link in tree.rigid_with(palm) if link != palm and any(word in link.lower() for word in _TOOL_WORDS)
    ]
    return Parts(
        base=start, tip=end, arm=tuple(joint.name for joint in arm), gripper_base=palm,
        gripper=tuple(joint.name for joint in driven), still=tuple(still),
        tool=tools[-1] if tools else "", notes=tuple(notes),
    )  # fmt: skip


def guessed_tip(tree: Tree, start: str) -> str:
    """Return the link where the only arm ends: where fingers branch off, or else the last link.

    Raises:
        UrdfError: the tree branches into several that could be arms; the message names their ends.
    """
    link = start
    while True:
        branches = [joint for joint in tree.below(link) if joint.parent == link and _moving(tree, joint)]
        if not branches:
            break
        if len(branches) > 1:
            counts = [len(_moving(tree, joint)) for joint in branches]
            if max(counts) <= MOST_FINGER_JOINTS and any(joint.moves for joint in tree.path_to(link)):
                break  # fingers
            if 3 * sorted(counts)[-2] <= max(counts):  # one arm, and something small beside it: a neck, a lid
                branches = [branches[counts.index(max(counts))]]
            else:
                raise UrdfError(f"{tree.path}: several links could be the tip of the arm. {_could_be(tree, start)}")
        link = branches[0].child
    rigid = [
        name
        for name in tree.rigid_with(link)
        if name != link and any(joint.child == name for joint in tree.below(link))
    ]
    tools = [name for name in rigid if any(word in name.lower() for word in _TOOL_WORDS)]
    return tools[-1] if tools and not any(joint.moves for joint in tree.below(link)) else link


def _moving(tree: Tree, joint: TreeJoint) -> list[TreeJoint]:
    """The joints that move from this one on."""
    return [each for each in (joint, *tree.below(joint.child)) if each.moves]


def _could_be(tree: Tree, start: str) -> str:
    """Name the ends of the branches that have the most joints above them."""
    ends = [joint.child for joint in tree.below(start) if not tree.below(joint.child)]
    counted = sorted(((sum(j.moves for j in tree.path_to(end)), end) for end in ends), reverse=True)
    told = ", ".join(f"{end} ({count} moving joints)" for count, end in counted[:8] if count)
    return f"Name one with --tip: {told}." if told else "It must have revolute, continuous or prismatic joints."


def _palm(tree: Tree, tip: str, on_path: set[str]) -> str:
    """The link that fingers hang on: the tip, or one that is rigid with it."""
    near = tree.rigid_with(tip)
    with_fingers = [
        link
        for link in near
        if any(joint.parent == link and joint.moves and joint.name not in on_path for joint in tree.joints.values())
    ]
    if not with_fingers or tip in with_fingers:
        return tip
    deepest_first = sorted(near, key=lambda link: -len(tree.path_to(link)))
    return next(
        link for link in deepest_first if set(with_fingers) <= {link, *(joint.child for joint in tree.below(link))}
    )
