"""Robots as surfaces: made of any URDF, shipped small, coloured as their bones; what is missing or damaged is told."""

import dataclasses
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from vap_gym.cards import RobotCard, known_robots, load_robot
from vap_gym.commands import mesh as command
from vap_gym.errors import CardError, VapError
from vap_gym.geometry import Camera
from vap_gym.prompts.kinds import Prompter
from vap_gym.prompts.mesh import Mesh, draw_depth, draw_mesh
from vap_gym.prompts.raster import draw
from vap_gym.prompts.simplified import MOST_FACES, simplified_mesh
from vap_gym.prompts.skeleton import Skeleton

FLAT = b"v 0 0 0\nv 1 0 0\nv 2 0 0\nf 1 2 3\n"  # a triangle without an area
PANDAS = ("panda_robotiq", "panda_hand")
SIZE = (144, 96)


def without_drop_line(card: RobotCard) -> RobotCard:
    """The drop line hangs in the air, where no surface is."""
    return dataclasses.replace(card, skeleton=dataclasses.replace(card.skeleton, drop_from=()))


def some_views(card: RobotCard, count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, Camera]:
    """Random arms and grippers, each seen by a random camera that looks at the middle of the workspace."""
    rng = torch.Generator().manual_seed(seed)
    q = torch.tensor(card.home_q_rad) + 0.25 * torch.randn(count, len(card.home_q_rad), generator=rng)
    angle, height = 3 * torch.rand(count, generator=rng) - 1.5, 0.2 + 0.5 * torch.rand(count, generator=rng)
    target = torch.tensor([0.35, 0.0, 0.35]).expand(count, 3)
    eye = target + torch.stack([1.3 * angle.cos(), 1.3 * angle.sin(), height], -1)
    camera = Camera.look_at(eye, target, vertical_fov_rad=0.8, frame_size_px=SIZE)
    return q, torch.rand(count, generator=rng), camera


@pytest.fixture(scope="module", params=PANDAS)
def robot(request: pytest.FixtureRequest) -> RobotCard:
    return load_robot(request.param)


def test_the_shipped_mesh_is_made_by_the_command(robot: RobotCard, tmp_path: Path) -> None:
    pytest.importorskip("pybullet_data", reason="the arm's meshes are those of the pybullet package")
    told = command.main(robot.name, out=tmp_path / "mesh.npz")
    again, shipped = np.load(tmp_path / "mesh.npz"), np.load(robot.folder / robot.mesh)
    for key in ("links", "link", "faces"):
        np.testing.assert_array_equal(again[key], shipped[key])
    np.testing.assert_allclose(again["vertices_m"], shipped["vertices_m"], atol=1e-3)
    assert told["triangles"] == len(shipped["faces"]) <= MOST_FACES
    assert [p.name for p in tmp_path.iterdir()] == ["mesh.npz"]


def write_urdf(path: Path, visuals: dict[str, str]) -> RobotCard:
    """The Robotiq Panda with other visual geometry: XML by link name."""
    card = load_robot("panda_robotiq")
    tree = ElementTree.parse(card.urdf_path)
    for link in tree.getroot().iter("link"):
        for visual in link.findall("visual"):
            link.remove(visual)
        for visual in ElementTree.fromstring(f"<all>{visuals.get(str(link.get('name')), '')}</all>"):
            link.append(visual)
    tree.write(path)
    return dataclasses.replace(without_drop_line(card), urdf_path=path, folder=path.parent, mesh="", body="")


def test_any_urdf_with_visual_geometry_can_be_drawn(tmp_path: Path) -> None:
    import trimesh

    ring = trimesh.creation.torus(0.08, 0.03, major_sections=24, minor_sections=16)
    ring.export(tmp_path / "ring.stl")
    card = write_urdf(
        tmp_path / "robot.urdf",
        {
            "panda_link0": '<visual><geometry><box size="0.1 0.2 0.3"/></geometry></visual>',
            "panda_link5": '<visual><geometry><mesh filename="ring.stl" scale="2 2 2"/></geometry></visual>',
            "panda_link8": '<visual><origin xyz="0 0 1"/><geometry><sphere radius="0.1"/></geometry></visual>'
            '<visual><geometry><cylinder radius="0.1" length="0.2"/></geometry></visual>',
        },
    )
    mesh = simplified_mesh(card)
    own = {name: mesh["faces"][mesh["link"][mesh["faces"][:, 0]] == i] for i, name in enumerate(mesh["links"])}
    volume = {}
    for name, faces in own.items():
        a, b, c = (mesh["vertices_m"][faces[:, k]].astype(float) for k in range(3))
        volume[name] = (a * np.cross(b, c)).sum() / 6
    assert volume["panda_link0"] == pytest.approx(0.006, rel=1e-3)
    assert volume["panda_link5"] == pytest.approx(8 * ring.volume, rel=0.01)
    assert volume["panda_link8"] == pytest.approx(4 / 3 * np.pi * 0.1**3 + np.pi * 0.1**2 * 0.2, rel=2e-3)
    q, gripper, camera = some_views(card, 3)
    assert (draw_depth(q, gripper, camera, Mesh(card)) > 0).any((1, 2)).all()


@pytest.mark.parametrize("prompt", ["mesh", "depth"])
def test_robots_without_visible_geometry_are_refused(tmp_path: Path, prompt: str) -> None:
    card = write_urdf(tmp_path / "robot.urdf", {})
    with pytest.raises(CardError, match=r"must have visual geometry .* but no link has a <visual>. Add some"):
        Prompter(card, prompt, frame_size_px=SIZE)
    Prompter(card, "skeleton", frame_size_px=SIZE)


def test_damaged_meshes_are_told(tmp_path: Path) -> None:
    card = load_robot("panda_robotiq")
    with pytest.raises(CardError, match=r"The mesh '.*gone.npz' of .* is missing. Make it: vap-gym mesh panda_robotiq"):
        Mesh(dataclasses.replace(card, mesh="gone.npz"))
    whole = (card.folder / card.mesh).read_bytes()
    for content in (b"", b"no zip", whole[:1000], whole[:-200], whole[:4000] + b"x" * 200 + whole[4200:]):
        (tmp_path / "mesh.npz").write_bytes(content)
        with pytest.raises(CardError, match=r"must be an npz file with links, .* Make it: vap-gym mesh"):
            Mesh(dataclasses.replace(card, folder=tmp_path))
    arrays: dict[str, Any] = dict(np.load(card.folder / card.mesh))
    for key, value in (
        ("faces", arrays["faces"] + 1),
        ("link", arrays["link"] + 1),
        ("vertices_m", arrays["vertices_m"][:, :2]),
        ("vertices_m", arrays["vertices_m"] + np.float16(np.nan)),
    ):
        np.savez(tmp_path / "mesh.npz", **arrays | {key: value})
        with pytest.raises(CardError, match=r"must hold finite .* Make it: vap-gym mesh"):
            Mesh(dataclasses.replace(card, folder=tmp_path))
    np.savez(tmp_path / "mesh.npz", **arrays | {"links": np.array([f"{name}_" for name in arrays["links"]])})
    with pytest.raises(VapError, match=r"No link .* named 'panda_link0_'. Did you mean 'panda_link0'"):
        Mesh(dataclasses.replace(card, folder=tmp_path))
    for name, content in (("a.obj", b""), ("a.stl", b"solid"), ("a.stl", whole), ("a.ply", b"ply\n"), ("b.obj", FLAT)):
        (tmp_path / name).write_bytes(content)
        visual = f'<visual><geometry><mesh filename="{name}"/></geometry></visual>'
        with pytest.raises(CardError, match=r"The mesh '.*' of '.*' must .* Export it anew"):
            simplified_mesh(write_urdf(tmp_path / "robot.urdf", {"panda_link0": visual}))


def test_fingers_and_links_are_told_apart_by_the_skeleton_s_colours(robot: RobotCard) -> None:
    mesh, bones = Mesh(robot), {(bone.start, bone.end): bone.colour_rgb for bone in robot.skeleton.bones}
    colour = {
        name: tuple(mesh.colour_rgb[np.flatnonzero(mesh.link[mesh.faces[:, 0]] == i)[0]])
        for i, name in enumerate(mesh.links)
    }
    tips = ("left_tip", "right_tip") if robot.name == "panda_robotiq" else ("panda_leftfinger", "panda_rightfinger")
    assert colour[tips[0]] == bones["left_knee", "left_end"]
    assert colour[tips[1]] == bones["right_knee", "right_end"]
    assert colour[robot.gripper.base_link] == bones["flange", "palm"]
    arm = [colour[f"panda_link{i}"] for i in range(2, 8)]
    assert len(set(arm)) == 6
    assert set(colour.values()) <= set(bones.values())
    plain = dataclasses.replace(robot, skeleton=dataclasses.replace(robot.skeleton, bones=()))
    assert len(np.unique(Mesh(plain).colour_rgb)) == 1


def test_pictures_do_not_depend_on_who_else_is_in_the_batch(robot: RobotCard) -> None:
    mesh, (q, gripper, camera) = Mesh(robot), some_views(robot, 20)
    together = draw_mesh(q, gripper, camera, mesh)
    for i in (0, 17):
        np.testing.assert_array_equal(together[i], draw_mesh(q[i], gripper[i], camera.index(i), mesh))
    np.testing.assert_array_equal(together, draw_mesh(q, gripper, camera, mesh))
    in_time = draw_mesh(q.reshape(4, 5, -1), gripper.reshape(4, 5), camera.index(0), mesh)
    assert in_time.shape == (4, 5, 96, 144, 3)
    assert draw_depth(q[:0], gripper[:0], camera.index(0), mesh).shape == (0, 96, 144)


def test_a_robot_made_of_its_bones_looks_the_same_as_skeleton_and_as_mesh(tmp_path: Path) -> None:
    whole = without_drop_line(load_robot("panda_robotiq"))
    at = {p.name: np.array(p.offset_m) for p in whole.skeleton.keypoints if p.link == "panda_link8"}
    bones = tuple(bone for bone in whole.skeleton.bones if bone.start in at and bone.end in at)
    bones = tuple(dataclasses.replace(bone, radius_m=0.015) for bone in bones)
    visuals = ""
    for bone in bones:  # a tube with a ball at each end
        ends = [at[bone.start], at[bone.end]]
        along, middle = ends[1] - ends[0], (ends[0] + ends[1]) / 2
        assert along[0] == 0  # the gripper's bones lie in the flange's y-z plane: a turn about x is enough
        tube = f'<geometry><cylinder radius="0.015" length="{np.linalg.norm(along)}"/></geometry>'
        places = [(middle, tube), *((end, '<geometry><sphere radius="0.015"/></geometry>') for end in ends)]
        turn = np.arctan2(-along[1], along[2])
        for place, geometry in places:
            xyz = " ".join(map(str, place))
            visuals += f'<visual><origin xyz="{xyz}" rpy="{turn} 0 0"/>{geometry}</visual>'
    card = write_urdf(tmp_path / "robot.urdf", {"panda_link8": visuals})
    card = dataclasses.replace(card, skeleton=dataclasses.replace(card.skeleton, bones=bones))
    skeleton, mesh = Skeleton(card), Mesh(card)
    q, _, camera = some_views(card, 24)
    opened = torch.zeros(24)
    tip = mesh.poses(q, opened)[:, 0, :3, 3]
    eye = tip + 0.6 * torch.nn.functional.normalize(camera.T_world_camera[:, :3, 3] - tip, dim=-1)
    camera = Camera.look_at(eye, tip, vertical_fov_rad=0.6, frame_size_px=SIZE)
    points = skeleton.at_joints(q, opened)
    drawn = draw(points, camera, skeleton, thickness_px=0.5).max(-1)
    depth = draw_depth(q, opened, camera, mesh)
    v, u = np.mgrid[0:96, 0:144] + 0.5
    for i in range(24):
        bone, solid = drawn[i] > 127, depth[i] > 0
        assert (bone & solid).sum() / (bone | solid).sum() > 0.93
        offset = [np.mean(x[bone]) - np.mean(x[solid]) for x in (u, v)]
        assert np.abs(offset).max() < 0.25
    # In the middle of a bone the surface is one radius nearer than the bone, if that lies across the view.
    middle = (points[:, skeleton.keypoint_names.index("flange")] + points[:, skeleton.keypoint_names.index("palm")]) / 2
    uv, z = camera.project(middle[:, None])
    along = torch.nn.functional.normalize(points[:, skeleton.keypoint_names.index("palm")] - middle, dim=-1)
    sight = torch.nn.functional.normalize(middle - eye, dim=-1)
    across = (along * sight).sum(-1).abs() < 0.5
    column, row = uv[:, 0].long().unbind(-1)
    gap = z[:, 0] - depth[np.arange(24), row, column]
    assert across.sum() >= 8
    radius = 0.015 / (1 - (along * sight).sum(-1) ** 2).sqrt()
    torch.testing.assert_close(gap[across], radius[across], atol=0.002, rtol=0)


@pytest.mark.parametrize("name", known_robots())
def test_every_shipped_robot_has_a_surface_of_few_triangles(name: str) -> None:
    card = load_robot(name)
    mesh = Mesh(card)
    assert 100 < len(mesh.faces) <= 1500
    q, opened = torch.tensor(card.home_q_rad), torch.zeros(())
    T = mesh.poses(q, opened)[mesh.link].double()
    vertices = (T[:, :3, :3] @ torch.from_numpy(mesh.vertices_m)[..., None])[..., 0] + T[:, :3, 3]
    low, high = vertices.amin(0), vertices.amax(0)
    middle, away = (low + high) / 2, (high - low).max() * torch.tensor([1.5, 0.5, 0.5])
    camera = Camera.look_at(middle + away, middle, vertical_fov_rad=0.8, frame_size_px=SIZE)
    assert (draw_depth(q, opened, camera, mesh) > 0).sum() > 200
    assert {tuple(colour) for colour in mesh.colour_rgb} <= {bone.colour_rgb for bone in card.skeleton.bones}
