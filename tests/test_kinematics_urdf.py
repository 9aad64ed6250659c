"""A URDF that is no tree, or lacks what a card names, is refused with the reason."""

from pathlib import Path

import pytest

from vap_gym.cards import known_robots, load_robot
from vap_gym.errors import UrdfError
from vap_gym.kinematics import load_chain, read_urdf

LIMIT = '<limit lower="-1" upper="1" velocity="1" effort="1"/>'


def robot(*parts: str) -> str:
    return f'<robot name="r">{"".join(parts)}</robot>'


def links(*names: str) -> str:
    return "".join(f'<link name="{name}"/>' for name in names)


def joint(name: str, parent: str, child: str, kind: str = "revolute", inner: str = LIMIT) -> str:
    return f'<joint name="{name}" type="{kind}"><parent link="{parent}"/><child link="{child}"/>{inner}</joint>'


def mimic(of: str) -> str:
    return f'{LIMIT}<mimic joint="{of}"/>'


AB = joint("j1", "a", "b")

BROKEN = {
    "two parents": (
        robot(links("a", "b", "c"), AB, joint("j2", "a", "c"), joint("j3", "b", "c")),
        r"link 'c' has two parents, joints 'j2' and 'j3': a loop\. A URDF must be a tree",
    ),
    "ring without a root": (
        robot(links("a", "b"), AB, joint("j2", "b", "a")),
        r"must be one tree with one root link, got none, so its joints form a loop",
    ),
    "ring beside a tree": (
        robot(links("a", "b", "c", "d"), AB, joint("j2", "c", "d"), joint("j3", "d", "c")),
        r"the joints around link 'c' form a loop",
    ),
    "two roots": (robot(links("a", "b", "c"), AB), r"one tree with one root link, got 2: a, c\."),
    "no links": (robot(), r"a URDF needs links, .* got none"),
    "double link": (robot(links("a", "b", "b"), AB), r"links, each with a name of its own, got a, b, b"),
    "double joint": (robot(links("a", "b", "c"), AB, joint("j1", "a", "c")), r"each joint needs a name of its own"),
    "unknown link": (
        robot(links("base", "tool"), joint("j", "bse", "tool")),
        r"joint 'j': No link named 'bse'\. Did you mean 'base'\? Known: base, tool\.",
    ),
    "unknown leader": (
        robot(links("a", "b"), joint("wrist", "a", "b", inner=mimic("wirst"))),
        r"joint 'wrist' mimics: No moving joint named 'wirst'\. Did you mean 'wrist'\?",
    ),
    "mimics in a circle": (
        robot(links("a", "b", "c"), joint("j1", "a", "b", inner=mimic("j2")), joint("j2", "b", "c", inner=mimic("j1"))),
        r"joint 'j1' mimics itself, by way of j1 → j2 → j1\.",
    ),
    "planar": (robot(links("a", "b"), joint("j1", "a", "b", "planar")), r"'planar'; supported: revolute, continuous,"),
    "no limit": (robot(links("a", "b"), joint("j1", "a", "b", inner="")), r"'j1' is revolute but has no <limit>"),
    "limits reversed": (
        robot(links("a", "b"), joint("j1", "a", "b", inner='<limit lower="1" upper="-1" velocity="1" effort="1"/>')),
        r"joint 'j1' has lower limit 1\.0 above upper limit -1\.0",
    ),
    "axis zero": (
        robot(links("a", "b"), joint("j1", "a", "b", inner=f'<axis xyz="0 0 0"/>{LIMIT}')),
        r"axis \[0\.0, 0\.0, 0\.0\], which gives no direction",
    ),
    "cut off": (robot(links("a", "b"))[:-9], r"is no well-formed URDF: .*"),
    "not XML": ("a robot", r"is no well-formed URDF: .*"),
    "other XML": ("<html><body/></html>", r"is no well-formed URDF: .*|a URDF needs links"),
    "no parent": (
        robot(links("a"), '<joint name="j" type="fixed"><child link="a"/></joint>'),
        r"is no well-formed URDF: .*",
    ),
    "words for numbers": (
        robot(links("a", "b"), joint("j1", "a", "b", inner=f'<origin xyz="0 zero 0"/>{LIMIT}')),
        r"is no well-formed URDF: .*zero",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_broken_urdf_is_refused_with_the_reason(case: str, tmp_path: Path) -> None:
    text, message = BROKEN[case]
    path = tmp_path / "robot.urdf"
    path.write_text(text)
    with pytest.raises(UrdfError, match=message) as caught:
        read_urdf(path)
    assert str(path) in str(caught.value)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UrdfError, match=r"No URDF at '.*none\.urdf'\. Give the path of a file that exists\."):
        read_urdf(tmp_path / "none.urdf")


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        (
            "robot.toml",
            'tip_link = "panda_link8"',
            'tip_link = "panda_lnk8"',
            r"No link of .* named 'panda_lnk8'\. Did you mean 'panda_link8'\?",
        ),
        ("robot.toml", 'tool_link = "tool_centre"', 'tool_link = "tool_center"', r"Did you mean 'tool_centre'\?"),
        (
            "robot.toml",
            '"panda_joint7"]',
            '"panda_jont7"]',
            r"No driven joint of .* named 'panda_jont7'\. Did you mean 'panda_joint7'\?",
        ),
        (
            "robot.toml",
            '"panda_joint1", "panda_joint2"',
            '"panda_joint2", "panda_joint1"',
            r"must name all of them, in this order",
        ),
        (
            "robot.toml",
            'base_link = "panda_link0"',
            'base_link = "panda_link1"',
            r"base_link is 'panda_link1', but the tree's root is 'panda_link0'",
        ),
        (
            "robot.urdf",
            '<link name="tool_centre">',
            '<link name="tool_middle">',
            r"joint 'tool_centre': No link named 'tool_centre'",
        ),
    ],
)
def test_card_and_urdf_must_fit_together(tmp_path: Path, file: str, old: str, new: str, message: str) -> None:
    source = load_robot("panda_robotiq").folder
    for name in ("robot.toml", "robot.urdf"):
        text = (source / name).read_text()
        if name == file:
            assert old in text
            text = text.replace(old, new)
        (tmp_path / name).write_text(text)
    with pytest.raises(UrdfError, match=message):
        load_chain(load_robot(tmp_path))


@pytest.mark.parametrize("name", known_robots())
def test_every_link_of_a_shipped_robot_has_mass(name: str) -> None:
    text = load_robot(name).urdf_path.read_text()
    assert text.count("<link ") == text.count("<inertial>")
    assert load_chain(load_robot(name)).base_link == load_robot(name).base_link
