"""`vap-gym robot add`: any URDF becomes a card that works, what is unclear is asked for, nothing half-made is left."""

import json
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vap_gym import cli
from vap_gym.cards import RobotCard, load_robot
from vap_gym.drafting import Draft, draft_robot
from vap_gym.drafting.draft import read_camera_file
from vap_gym.drafting.geometry import find_mesh
from vap_gym.drafting.parts import choose_parts
from vap_gym.drafting.picture import overview, poses_to_check
from vap_gym.drafting.tree import read_tree, trimmed
from vap_gym.env import VapEnv
from vap_gym.errors import UrdfError, VapError
from vap_gym.kinematics import Controller, load_chain, read_urdf
from vap_gym.prompts.mesh import Mesh, draw_mesh
from vap_gym.prompts.raster import draw
from vap_gym.prompts.skeleton import Skeleton


def link(name: str, size: str = "0.08 0.08 0.2", z: float = 0.1) -> str:
    shape = f'<origin xyz="0 0 {z}"/><geometry><box size="{size}"/></geometry>'
    return f'<link name="{name}"><visual>{shape}</visual></link>'


def joint(name: str, kind: str, parent: str, child: str, xyz: str, axis: str = "0 1 0", more: str = "") -> str:
    limit = "" if kind in ("fixed", "continuous") else '<limit lower="-1.5" upper="2" velocity="2" effort="9"/>'
    return (
        f'<joint name="{name}" type="{kind}"><parent link="{parent}"/><child link="{child}"/><origin xyz="{xyz}"/>'
        f'<axis xyz="{axis}"/>{more or limit}</joint>'
    )


SLIDE = '<limit lower="0" upper="0.04" velocity="1" effort="9"/>'
ARM = [
    link("world", "0.3 0.3 0.02", 0.0), link("turret"), link("upper"), link("lower"),
    link("wrist", "0.06 0.06 0.1", 0.05), link("head", "0.1 0.1 0.1", 0.0),
    link("left_finger", "0.02 0.01 0.08", 0.04), link("right_finger", "0.02 0.01 0.08", 0.04),
    joint("neck", "revolute", "world", "head", "-0.3 0 0.5"),
    joint("left", "prismatic", "wrist", "left_finger", "0 0.005 0.1", "0 1 0", SLIDE),  # before the arm: order is ours
    joint("turn", "continuous", "world", "turret", "0 0 0.02", "0 0 1"),
    joint("lift", "revolute", "turret", "upper", "0 0 0.2"),
    joint("bend", "revolute", "upper", "lower", "0 0 0.2"),
    joint("roll", "revolute", "lower", "wrist", "0 0 0.2", "0 0 1"),
    joint("right", "prismatic", "wrist", "right_finger", "0 -0.005 0.1", "0 -1 0", f'{SLIDE}<mimic joint="left"/>'),
    '<transmission name="t"><actuator name="a"><mechanicalReduction>none</mechanicalReduction></actuator>'
    "</transmission>",
]  # fmt: skip


@pytest.fixture
def urdf(tmp_path: Path) -> Path:
    path = tmp_path / "toy.urdf"
    path.write_text(f'<robot name="toy">{"".join(ARM)}</robot>')
    return path


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Draft:
    folder = tmp_path_factory.mktemp("toy")
    (folder / "toy.urdf").write_text(f'<robot name="toy">{"".join(ARM)}</robot>')
    return draft_robot(folder / "toy.urdf", folder / "out", tip="wrist")


def inside(card: RobotCard) -> float:
    """The share of the skeleton's pixels (without drop line) that lie on the robot's shapes, in four poses."""
    q, closedness, _ = poses_to_check(card)
    skeleton = Skeleton(card, dtype=torch.float64)
    points = skeleton.at_joints(q, closedness)
    camera = overview(points)
    bones, shapes = draw(points, camera, skeleton), draw_mesh(q, closedness, camera, Mesh(card))
    is_bone = bones.any(-1) & (bones != card.skeleton.drop_colour_rgb).any(-1)
    return float((is_bone & shapes.any(-1)).sum() / is_bone.sum())


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two masks."""
    return float((a & b).sum() / (a | b).sum())


def test_arm_and_gripper_are_told_apart(toy: Draft) -> None:
    card = toy.card
    assert card.name == "toy"
    assert (card.base_link, card.tip_link) == ("world", "wrist")
    assert card.arm_joints == ("turn", "lift", "bend", "roll")
    assert [(j.name, j.open_position, j.closed_position) for j in card.gripper.joints] == [("left", 0.04, 0.0)]
    assert (card.gripper.kind, card.gripper.base_link, card.gripper.tool_link) == ("parallel", "wrist", "tool_centre")
    assert card.gripper.max_opening_m == pytest.approx(0.08, abs=1e-3)
    assert any("neck" in note for note in toy.notes)
    assert load_chain(card).joint_names == ("turn", "lift", "bend", "roll", "left")


def test_forward_kinematics_are_those_of_the_given_urdf(toy: Draft, urdf: Path) -> None:
    drafted = load_chain(toy.card)
    plain = urdf.with_name("plain.urdf")
    plain.write_text(f'<robot name="toy">{"".join(ARM[:-1])}</robot>')  # yourdfpy cannot read that transmission
    given = read_urdf(plain)
    q = torch.rand(20, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    order = [("turn", "lift", "bend", "roll", "left").index(n) if n != "neck" else -1 for n in given.joint_names]
    full = torch.cat([q, torch.zeros(20, 1, dtype=torch.float64)], 1)[:, order]
    for name in ("wrist", "left_finger", "right_finger", "head"):
        torch.testing.assert_close(drafted.fk(q, name), given.fk(full, name))


def test_home_is_off_the_limits_and_over_the_base(toy: Draft) -> None:
    controller = Controller(toy.card, "joint_velocity", dtype=torch.float64)
    home = torch.tensor(toy.card.home_q_rad, dtype=torch.float64)
    assert bool((home > controller.arm.lower + 0.05).all() & (home < controller.arm.upper - 0.05).all())
    tip = controller.arm.fk(home, "wrist")[:3, 3]
    assert float(tip[2]) > 0
    assert float(tip[0]) > 0.1


def test_skeleton_lies_in_the_shapes_and_is_as_wide(toy: Draft) -> None:
    assert inside(toy.card) > 0.85
    names = [point.name for point in toy.card.skeleton.keypoints]
    assert {"joint_1", "joint_4", "palm", "left_end", "right_end"} <= set(names)
    radius = {bone.start: bone.radius_m for bone in toy.card.skeleton.bones}
    assert radius["joint_2"] == pytest.approx(0.045, abs=0.012)  # a box 8 cm wide
    colour = {bone.end: bone.colour_rgb for bone in toy.card.skeleton.bones}
    assert colour["left_end"][0] > colour["left_end"][2]
    assert colour["right_end"][2] > colour["right_end"][0]


@pytest.mark.parametrize("mode", ["cartesian_velocity", "joint_position"])
def test_a_drafted_robot_can_be_driven(toy: Draft, mode: str) -> None:
    controller = Controller(toy.card, mode)
    home = torch.tensor(toy.card.home_q_rad)
    state = controller.start(home, torch.tensor(0.0))
    action = (
        torch.cat([home + 0.05, torch.ones(1)]) if mode == "joint_position" else torch.tensor([0, 0, 1.0, 0, 0, 0, 1])
    )
    after, _ = controller.step(state, action)
    assert float((after.q - state.q).abs().max()) > 0.01
    assert float(after.gripper) > 0


def test_a_drafted_robot_is_imagined_from_a_picture(toy: Draft) -> None:
    env = VapEnv("VAP-DROID-v0", robot=str(toy.card.folder), judge=None)
    points = Skeleton(toy.card).at_joints(torch.tensor([toy.card.home_q_rad]), torch.zeros(1))
    camera = overview(points)
    shapes = draw_mesh(torch.tensor([toy.card.home_q_rad]), torch.zeros(1), camera, Mesh(toy.card))[0]
    grey = shapes.mean(-1, keepdims=True) / 3  # no colour of the things that it might be taken for
    picture = np.where(shapes.any(-1, keepdims=True), np.repeat(grey, 3, -1), 200).astype(np.uint8)
    state = {"joint_position": toy.card.home_q_rad, "gripper_position": 0.0}
    begun, info = env.reset(options={"image": picture, "state": state, "camera": camera})
    first = info["prompt"]
    for _ in range(8):
        frame, *_, info = env.step(np.array([0, 0, 1, 0, 0, 0, 1], np.float32))
    assert isinstance(frame, np.ndarray)
    assert isinstance(begun, np.ndarray)
    q = torch.from_numpy(info["proprioception"]["joint_position"])[None]
    closed = torch.tensor([info["proprioception"]["gripper_position"]])
    now = draw_mesh(q, closed, env.stage.imagination.camera(env.state), Mesh(toy.card))[0].any(-1)
    is_robot = np.abs(frame.astype(int) - 200).max(-1) > 40
    was_robot = np.abs(begun.astype(int) - 200).max(-1) > 40
    assert overlap(is_robot, now) > 0.8 > overlap(was_robot, now)  # its own surface has moved, in the picture
    assert first.any()
    assert (info["prompt"] != first).any()
    env.close()


def test_the_picture_and_the_comments_say_what_was_guessed(toy: Draft) -> None:
    assert toy.picture.stat().st_size > 10_000
    text = (toy.card.folder / "robot.toml").read_text()
    assert text.count("guessed") >= 5
    assert "Drafted by `vap-gym robot add` from toy.urdf" in text


def test_another_base_leaves_out_what_is_above_it(urdf: Path, tmp_path: Path) -> None:
    card = draft_robot(urdf, tmp_path / "out", base="upper", tip="wrist", name="half").card
    assert (card.name, card.base_link, card.arm_joints) == ("half", "upper", ("bend", "roll"))
    assert "turret" not in load_chain(card).link_names


def test_without_a_tip_the_only_arm_is_found_and_a_bare_tool_is_no_gripper(tmp_path: Path) -> None:
    urdf = tmp_path / "bare.urdf"
    urdf.write_text(
        f'<robot name="bare">{"".join(part for part in ARM if "finger" not in part and "head" not in part)}</robot>'
    )
    card = draft_robot(urdf, tmp_path / "out").card
    assert card.tip_link == "wrist"
    assert (card.gripper.kind, card.gripper.joints) == ("none", ())
    state = Controller(card).start(torch.tensor(card.home_q_rad), torch.tensor(0.3))
    assert Controller(card).full_q(state).shape == (4,)
    assert Skeleton(card).keypoints(state).isfinite().all()


def test_frozen_joints_stand_at_the_limit_nearest_to_zero(urdf: Path, tmp_path: Path) -> None:
    text = (
        urdf.read_text()
        .replace('"neck" type="revolute"', '"neck" type="prismatic"')
        .replace('lower="-1.5"', 'lower="0.3"', 1)
    )
    urdf.write_text(text)
    card = draft_robot(urdf, tmp_path / "out", tip="wrist").card
    chain = load_chain(card)
    head = chain.fk(torch.zeros(5, dtype=torch.float64), "head")[:3, 3]
    torch.testing.assert_close(head, torch.tensor([-0.3, 0.3, 0.5], dtype=torch.float64))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tip": "writs"}, r"--tip: No link named 'writs'\. Did you mean 'wrist'\? Known: "),
        ({"tip": "wrist", "base": "uper"}, r"--base: No link named 'uper'\. Did you mean 'upper'\?"),
        ({"tip": "wrist", "gripper_base": "hand"}, r"--gripper-base: No link named 'hand'\."),
        ({"tip": "head", "base": "upper"}, r"--tip 'head' does not hang on --base 'upper', but on world → head\. Name"),
        ({"tip": "world"}, r"no joint between 'world' and 'world' moves, .* Name one with --tip: "),
        ({"tip": "right_finger"}, r"'right' on the way .* mimics 'left', so that .* with --tip wrist"),
        ({"tip": "wrist", "name": "my robot"}, r"letters, digits, - and _, got 'my robot'\. Give one with --name"),
    ],
)
def test_what_does_not_fit_is_told_and_nothing_is_left(
    urdf: Path, tmp_path: Path, options: dict[str, str], message: str
) -> None:
    with pytest.raises(VapError, match=message):
        draft_robot(urdf, tmp_path / "out", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["toy.urdf"]


def test_several_arms_ask_for_a_tip(tmp_path: Path) -> None:
    parts = ['<link name="torso"/>']
    for side in ("a", "b"):
        names = ["torso", *(f"{side}{i}" for i in range(1, 9))]
        parts += [f'<link name="{name}"/>' for name in names[1:]]
        parts += [joint(f"to_{b}", "continuous", a, b, "0 0 0.1") for a, b in pairwise(names)]
    urdf = tmp_path / "two.urdf"
    urdf.write_text(f'<robot name="two">{"".join(parts)}</robot>')
    with pytest.raises(
        UrdfError, match=r"several links could be the tip .* Name one with --tip: b8 \(8 moving joints\), a8 \(8"
    ):
        draft_robot(urdf, tmp_path / "out")
    card = draft_robot(urdf, tmp_path / "out", tip="a8").card  # which has no shapes at all
    assert len(card.arm_joints) == 8
    assert load_chain(card).size == 8


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<robot", r"must be a URDF \(XML\), but is not: .* Expand xacro"),
        ("<sdf/>", r"outermost element is <robot>, got <sdf>"),
        ('<robot><link name="a"/><link name="b"/></robot>', r"one tree with one root link, got 2: a, b"),
        (
            f'<robot>{link("a", "1 1")}<link name="b"/>{joint("j", "continuous", "a", "b", "0 0 0")}</robot>',
            r"bad.urdf: link 'a': a shape's size, scale and origin must be numbers, .* Correct that <visual>",
        ),
        ('<robot><link name="a"/><link name="a"/></robot>', r"each link needs a name of its own, got 'a'\. Rename"),
        (
            f'<robot><link name="a"/><link name="b"/>{joint("j", "planar", "a", "b", "0 0 0")}</robot>',
            r"joint 'j' must have a parent, a child and one of the types .* got type 'planar'",
        ),
        (
            f'<robot><link name="a"/><link name="b"/>{joint("j", "revolute", "a", "b", "0 0 0", more="<x/>")}</robot>',
            r"bad.urdf: joint 'j' is revolute but has no <limit>",
        ),
    ],
)
def test_a_bad_urdf_is_told_by_its_own_name(tmp_path: Path, text: str, message: str) -> None:
    urdf = tmp_path / "bad.urdf"
    urdf.write_text(text)
    with pytest.raises(UrdfError, match=message):
        draft_robot(urdf, tmp_path / "out", tip="b" if '"b"' in text else None)
    assert [path.name for path in tmp_path.iterdir()] == ["bad.urdf"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_text_crashes_it(tmp_path: Path, data: st.DataObject) -> None:
    """Values exchanged, elements taken out, text cut off: the parts are found, or an error tells what is wrong."""
    text = f'<robot name="toy">{"".join(ARM[:-1])}</robot>'
    values = [match.span(1) for match in re.finditer(r'="([^"]*)"', text)]
    elements = [match.span() for match in re.finditer(r"<(limit|axis|origin|parent|child|geometry)[^>]*/>", text)]
    begin, end = data.draw(st.sampled_from([*values, *elements, (700, len(text))]))
    other = data.draw(st.sampled_from(["", "nan", "-1e9", "inf", "x", "0 0 0", "1 2", "world", "wrist", "lift"]))
    urdf = tmp_path / "odd.urdf"
    urdf.write_text(text[:begin] + other * (text[begin - 1] == '"') + text[end:])
    try:
        tree = read_tree(urdf)
        parts = choose_parts(tree, base=None, tip=None, gripper_base=None)
        trimmed(tree, base=parts.base, driven=[*parts.arm, *parts.gripper], name="odd")
    except UrdfError as error:
        if "odd.urdf" not in str(error):
            raise AssertionError("the message names no file") from error


def test_meshes_that_are_missing_are_left_out_and_named(urdf: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.obj").write_text("v 0 0 0\n")
    mesh = '<geometry><mesh filename="{}"/></geometry>'
    box = '<geometry><box size="0.06 0.06 0.1"/></geometry>'
    text = urdf.read_text().replace(box, mesh.format("package://gone/wrist.stl"), 1)
    urdf.write_text(text.replace('<geometry><box size="0.1 0.1 0.1"/></geometry>', mesh.format("broken.obj"), 1))
    draft = draft_robot(urdf, tmp_path / "out", tip="wrist")
    assert any("visual of wrist left out: package://gone/wrist.stl is missing" in note for note in draft.notes)
    assert any("visual of head left out: broken.obj" in note for note in draft.notes)


def test_a_folder_that_is_there_is_not_written_over_unless_asked(urdf: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("kept")
    with pytest.raises(
        VapError, match=r"is there already\. Name another folder with --out, or replace it with --replace"
    ):
        draft_robot(urdf, out, tip="wrist")
    with pytest.raises(VapError, match=r"takes the place of a robot's folder only, got .*a folder without robot\.toml"):
        draft_robot(urdf, out, tip="wrist", replace=True)
    with pytest.raises(VapError, match=r"robot's folder only, got .*a file"):
        draft_robot(urdf, out / "mine.txt", tip="wrist", replace=True)
    assert (out / "mine.txt").read_text() == "kept"
    (out / "robot.toml").write_text("an older card")
    assert draft_robot(urdf, out, replace=True).card.tip_link == "wrist"  # found: beside the arm there is but a neck
    assert not (out / "mine.txt").exists()
    assert load_robot(out).name == "toy"


def test_the_command_tells_what_it_made_through_the_given_camera(
    urdf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pose = np.eye(4)
    pose[:3, :3] = [[1, 0, 0], [0, 0, 1], [0, -1, 0]]  # looks along +y
    pose[:3, 3] = [0.2, -1.5, 0.3]
    table = {
        "K": [[300, 0, 160], [0, 300, 120], [0, 0, 1]],
        "image_size_wh": [320, 240],
        "T_base_from_camera": pose.tolist(),
    }
    camera = tmp_path / "cameras.json"
    camera.write_text(json.dumps({"left": table, "note": "by hand"}))
    words = ["robot", "add", str(urdf), "--tip", "wrist", "--camera", str(camera), "--out", str(tmp_path / "out")]
    assert cli.main([*words, "--json"]) == 0
    shown = capsys.readouterr()
    told = shown.err
    assert json.loads(shown.out)["arm_joints"] == ["turn", "lift", "bend", "roll"]
    assert "4 arm joints (turn, lift, bend, roll); gripper joints: left" in told
    assert "check.png" in told
    assert cli.main(words) == 2
    assert "is there already" in capsys.readouterr().err


def test_a_camera_file_that_does_not_fit_is_told(tmp_path: Path) -> None:
    path = tmp_path / "cameras.json"
    path.write_text('{"a": {"K": 1}, "b": {"K": 1}}')
    with pytest.raises(VapError, match=r"holds the cameras a, b, and no view was named\. Name one with --view"):
        read_camera_file(path)
    with pytest.raises(VapError, match=r"and 'c' was asked for"):
        read_camera_file(path, "c")
    path.write_text("{")
    with pytest.raises(VapError, match="must be JSON with K, image_size_wh and a pose, got: "):
        read_camera_file(path)


def test_a_published_robot_with_meshes_and_a_linkage_gripper(tmp_path: Path) -> None:
    """xArm 6 with its gripper, without its fine meshes, for speed: its coarse hulls are then what is shown."""
    data = pytest.importorskip("pybullet_data", reason="xArm's description is that of the pybullet package")
    folder = Path(data.getDataPath()) / "xarm"
    text = re.sub(r"<visual>.*?</visual>", "", (folder / "xarm6_with_gripper.urdf").read_text(), flags=re.DOTALL)
    text = text.replace("/base_link.STL", "/left_outer_knuckle.STL").replace("inner_knuckle.STL", "outer_knuckle.STL")
    (tmp_path / "xarm.urdf").write_text(text.replace("package:/", str(folder)))
    draft = draft_robot(tmp_path / "xarm.urdf", tmp_path / "xarm")
    card = draft.card
    assert card.arm_joints == tuple(f"joint{i}" for i in range(1, 7))
    assert [(j.name, j.open_position, j.closed_position) for j in card.gripper.joints] == [("drive_joint", 0.0, 0.85)]
    assert card.gripper.max_opening_m == pytest.approx(0.085, abs=0.01)  # 84 mm by its maker
    fingers = {bone.end for bone in card.skeleton.bones if bone.end.endswith("_end")}
    assert fingers == {"left_end", "right_end"}  # the inner knuckles are levers
    assert inside(card) > 0.75
    assert [note for note in draft.notes if "shown" in note] == ["no <visual> at all: the <collision> shapes are shown"]
    assert {path.name for path in (card.folder / "meshes").iterdir()} >= {"base_vhacd.obj", "left_finger.STL"}


def test_meshes_are_found_where_ros_would(tmp_path: Path) -> None:
    for path in ("ws/src/my_robot/urdf", "ws/src/my_robot/meshes", "ws/src/other/meshes"):
        (tmp_path / path).mkdir(parents=True)
    for path in ("ws/src/my_robot/meshes/a.stl", "ws/src/other/meshes/b.stl", "ws/src/my_robot/urdf/c.stl"):
        (tmp_path / path).touch()
    source = tmp_path / "ws/src/my_robot/urdf/my.urdf"
    for name, where in (
        ("package://my_robot/meshes/a.stl", "my_robot/meshes/a.stl"),
        ("package://other/meshes/b.stl", "other/meshes/b.stl"),
        ("package://renamed/meshes/a.stl", "my_robot/meshes/a.stl"),
        ("../meshes/a.stl", "my_robot/meshes/a.stl"),
        ("c.stl", "my_robot/urdf/c.stl"),
        (f"file://{tmp_path}/ws/src/other/meshes/b.stl", "other/meshes/b.stl"),
    ):
        found = find_mesh(name, source)
        assert found is not None, name
        assert found.resolve() == tmp_path / "ws/src" / where
    assert find_mesh("package://my_robot/meshes/none.stl", source) is None
