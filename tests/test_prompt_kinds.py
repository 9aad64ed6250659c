"""Prompt kinds: skeleton, mesh and depth of one state and camera lie on each other, and on what the oracle sees."""

import dataclasses
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from vap_gym.cards import RobotCard, load_robot
from vap_gym.errors import UnknownNameError, VapError
from vap_gym.geometry import Camera, inverse, transform
from vap_gym.prompts.kinds import FARTHEST_M, NEAREST_M, Prompter, decode_depth, encode_depth
from vap_gym.prompts.mesh import Mesh, draw_depth, draw_mesh
from vap_gym.prompts.raster import draw
from vap_gym.prompts.skeleton import Skeleton

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


def test_depth_is_there_exactly_where_the_mesh_is_lit(robot: RobotCard) -> None:
    mesh, (q, gripper, camera) = Mesh(robot), some_views(robot, 24)
    lit, depth = draw_mesh(q, gripper, camera, mesh).any(-1), draw_depth(q, gripper, camera, mesh)
    np.testing.assert_array_equal(depth > 0, lit)
    assert 0.02 < lit.mean() < 0.5
    coded = Prompter(robot, "depth", frame_size_px=SIZE).draw(q, gripper, camera).numpy()
    np.testing.assert_array_equal(coded > 0, np.repeat(lit[..., None], 3, -1))
    shades = Prompter(robot, "mesh", frame_size_px=SIZE).draw(q, gripper, camera).numpy()
    np.testing.assert_array_equal(shades.any(-1), lit)


def test_every_lit_pixel_lies_on_the_triangle_that_forward_kinematics_puts_there(robot: RobotCard) -> None:
    mesh, (q, gripper, camera) = Mesh(robot), some_views(robot, 6)
    T_base_link = mesh.poses(q, gripper)
    face, depth = mesh.seen(T_base_link, camera)
    picture, row, column = np.nonzero(face >= 0)
    uv = torch.from_numpy(np.stack([column + 0.5, row + 0.5], -1)).float()
    T_link_base = inverse(T_base_link).double().numpy()
    worst = 0.0
    for i in range(6):
        own = picture == i
        z = torch.from_numpy(depth[i, row[own], column[own]])
        world = camera.index(i).unproject(uv[own], z).double().numpy()
        seen = face[i, row[own], column[own]]
        T = T_link_base[i, mesh.link[mesh.faces[seen, 0]]]
        at = (T[:, :3, :3] @ world[..., None])[..., 0] + T[:, :3, 3]
        a, b, c = (mesh.vertices_m[mesh.faces[seen, k]] for k in range(3))
        normal = np.cross(b - a, c - a)
        normal /= np.linalg.norm(normal, axis=1, keepdims=True)
        worst = max(worst, float(np.abs(((at - a) * normal).sum(1)).max()))
        sides = np.stack([(np.cross(q_ - p, at - p) * normal).sum(1) for p, q_ in ((a, b), (b, c), (c, a))])
        assert sides.min() > -1e-6
    assert worst < 2e-6


def test_the_skeleton_s_bones_run_inside_of_the_surface(robot: RobotCard) -> None:
    card = without_drop_line(robot)
    skeleton, mesh = Skeleton(card), Mesh(card)
    q, gripper, camera = some_views(card, 24, seed=1)
    depth, points = draw_depth(q, gripper, camera, mesh), skeleton.at_joints(q, gripper)
    grown = np.stack([ndimage.binary_dilation(solid) for solid in depth > 0])
    lit = draw(points, camera, skeleton).max(-1) > 127
    grown_2 = np.stack([ndimage.binary_dilation(solid, iterations=2) for solid in depth > 0])
    assert (lit & grown_2).sum() / lit.sum() > 0.95  # the bones' widths are fitted, not the surface's
    names = skeleton.keypoint_names
    ends = [(names.index(a), names.index(b)) for a, b in skeleton.bones]
    line = torch.stack([torch.lerp(points[:, a], points[:, b], t) for a, b in ends for t in np.linspace(0, 1, 9)], 1)
    uv, z = camera.project(line)
    column, row = uv.floor().long().unbind(-1)
    seen = ((column >= 0) & (column < 144) & (row >= 0) & (row < 96)).numpy()
    picture = np.nonzero(seen)[0]
    place = picture, row.numpy()[seen], column.numpy()[seen]
    assert grown[place].mean() > 0.99
    behind = z.numpy()[seen] - depth[place]
    assert (behind[depth[place] > 0] > -0.02).mean() > 0.98  # no surface is behind the bone that it hides


def test_each_link_is_drawn_where_its_vertices_project(robot: RobotCard) -> None:
    mesh, (q, gripper, camera) = Mesh(robot), some_views(robot, 6)
    T_base_link = mesh.poses(q, gripper)
    for i, link in enumerate(mesh.links):
        alone = Mesh(robot)
        alone.faces = mesh.faces[mesh.link[mesh.faces[:, 0]] == i]
        alone._one_sided = np.zeros(len(alone.faces), bool)
        solid = alone.seen(T_base_link, camera)[0] >= 0
        vertices = torch.from_numpy(mesh.vertices_m[mesh.link == i]).float()
        uv, _ = camera.project(transform(T_base_link[:, i], vertices.expand(6, -1, 3)))
        for k in range(6):
            low, high = uv[k].amin(0), uv[k].amax(0)
            if low.min() < 0 or high[0] > 144 or high[1] > 96 or (high - low).min() < 2:
                continue
            rows, columns = np.nonzero(solid[k])
            box = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            gap = np.abs(box - np.concatenate([low.numpy(), high.numpy()]))
            assert gap.max() < 2.5, link  # a sharp corner may cover no centre
            assert np.median(gap) < 1.0, link


def bullet_views(card: RobotCard, count: int) -> Any:
    """The oracle in random poses: (q, closedness, camera, label picture, whether PyBullet saw the arm, its depth)."""
    from vap_gym.sim.layouts import draw_scene
    from vap_gym.sim.scene import Scene, _opengl_matrices

    rng = np.random.default_rng(0)
    with Scene(card) as scene:
        b, c = scene._bullet, scene._client
        for k in range(count):
            q, closedness = np.array(card.home_q_rad) + rng.normal(0, 0.25, 7), float(rng.uniform())
            scene.reset(draw_scene(100 + k, task="reach"), q, closedness)
            for joint, value in (*zip(scene._arm_joints, q), *scene._gripper_targets(closedness).items()):
                b.resetJointState(scene._arm, joint, value, physicsClientId=c)
            view, projection = _opengl_matrices(scene.camera, SIZE, near_m := 0.05, far_m := 6.0)
            image = b.getCameraImage(*SIZE, view, projection, renderer=b.ER_TINY_RENDERER, physicsClientId=c)
            buffer, body = (np.reshape(x, SIZE[::-1]).astype(float) for x in image[3:])
            depth = far_m * near_m / (far_m - (far_m - near_m) * buffer)
            yield q, closedness, scene.camera, scene.render()[1], body == scene._arm, depth


def test_silhouette_and_depth_are_those_of_the_oracle(robot: RobotCard) -> None:
    pytest.importorskip("pybullet", reason="the oracle is PyBullet")
    mesh, labelled, overlap, error = Mesh(robot), [], [], []
    for q, closedness, camera, labels, arm, bullet_m in bullet_views(robot, 4):
        state = torch.from_numpy(q).float(), torch.tensor(closedness)
        visible = labels < 4  # no object before the robot
        solid = (draw_depth(*state, camera, mesh) > 0) & visible
        truth = ((labels == 1) | (labels == 2)) & visible
        labelled.append((solid & truth).sum() / (solid | truth).sum())
        depth = draw_depth(*state, camera, mesh)
        clear = arm | (bullet_m > depth)
        overlap.append((arm & (depth > 0)).sum() / (arm | ((depth > 0) & clear)).sum())
        error.append(np.abs(depth - bullet_m)[ndimage.binary_erosion(arm & (depth > 0))])
    assert min(labelled) > 0.93
    assert min(overlap) > 0.97
    assert np.median(np.concatenate(error)) < 0.0005
    assert np.quantile(np.concatenate(error), 0.95) < 0.003


def test_simplifying_does_not_show(robot: RobotCard, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pybullet_data", reason="the arm's meshes are those of the pybullet package")
    monkeypatch.setattr("vap_gym.prompts.simplified.MOST_FACES", 10**6)
    folder = robot.folder
    full = Mesh(dataclasses.replace(robot, mesh="", folder=folder / "elsewhere"))
    assert len(full.faces) > 2 * len(Mesh(robot).faces)
    q, gripper, camera = some_views(robot, 12)
    few, many = (draw_depth(q, gripper, camera, mesh) for mesh in (Mesh(robot), full))
    assert ((few > 0) & (many > 0)).sum() / ((few > 0) | (many > 0)).sum() > 0.97
    both = (few > 0) & (many > 0)
    assert np.median(np.abs(few - many)[both]) < 0.001


# --- depth as a picture ---


@given(
    depth=st.lists(st.floats(NEAREST_M, FARTHEST_M), min_size=1, max_size=20),
    bits=st.sampled_from([8, 16]),
)
def test_depth_survives_its_code(depth: list[float], bits: int) -> None:
    given_m = np.array([[0.0, *depth]], np.float32)
    code = encode_depth(given_m, bits=bits)
    assert code.dtype == (np.uint8 if bits == 8 else np.uint16)
    assert code[0, 0] == 0
    assert code[0, 1:].min() >= 1
    back = decode_depth(code)
    np.testing.assert_allclose(back, given_m, rtol=0.008 if bits == 8 else 3.2e-5)
    order = np.argsort(given_m[0, 1:], kind="stable")
    assert (np.diff(code[0, 1:][order].astype(int)) <= 0).all()  # nearer is brighter


def test_depth_out_of_range_is_drawn_at_its_end_and_nonsense_is_refused() -> None:
    code = encode_depth(np.array([[0.0, 0.001, NEAREST_M, FARTHEST_M, 100.0, np.inf]]))
    assert code.tolist() == [[0, 255, 255, 1, 1, 0]]
    for bad in (-0.1, np.nan):
        with pytest.raises(
            VapError, match=r"depth_m must be metres of at least 0 .*, got .* `draw_depth` returns such"
        ):
            encode_depth(np.array([[1.0, bad]]))
    for keys in ({"bits": 12}, {"nearest_m": 0.0}, {"nearest_m": 2.0, "farthest_m": 1.0}):
        with pytest.raises(VapError, match=r"coded in 8 or 16 bits from nearest_m to farthest_m, got .* Try bits=8"):
            encode_depth(np.ones((1, 1)), **keys)  # type: ignore[arg-type]


# --- in the environments ---


def made(id: str, **keys: Any) -> gym.Env[Any, Any]:
    return gym.make(id, disable_env_checker=True, **keys)


@pytest.mark.parametrize("prompt", ["mesh", "depth"])
def test_environments_are_prompted_with_any_kind(prompt: str) -> None:
    actions = np.random.default_rng(0).uniform(-1, 1, (3, 7)).astype(np.float32)
    env: Any = made("VAP-DROID-v0", prompt=prompt).unwrapped
    _, info = env.reset(seed=3)
    first = info["prompt"]
    assert first.shape == (96, 144, 3)
    assert first.dtype == np.uint8
    steps = [env.step(action) for action in actions]
    assert (first != steps[-1][-1]["prompt"]).any()
    env.reset(seed=3)
    frames, *_, infos = env.step_chunk(actions)
    for k in range(3):
        np.testing.assert_array_equal(steps[k][0], frames[k])
        np.testing.assert_array_equal(steps[k][-1]["prompt"], infos[k]["prompt"])
    rig, state = env.stage.rig, env.stage.imagination.robot_state(env.state)
    mesh, camera = Mesh(rig.robot), env.stage.imagination.camera(env.state)
    solid = draw_depth(state.q, state.gripper, camera, mesh)[0] > 0
    np.testing.assert_array_equal(infos[-1]["prompt"].any(-1), solid)


@pytest.mark.parametrize("prompt", ["mesh", "depth"])
def test_the_oracle_and_vector_environments_are_prompted_alike(prompt: str) -> None:
    pytest.importorskip("pybullet", reason="the oracle is PyBullet")
    imagined, oracle = (made(id, prompt=prompt) for id in ("VAP-DROID-v0", "VAP-DROID-Oracle-v0"))
    seen = [env.reset(seed=5)[1]["prompt"] for env in (imagined, oracle)]
    np.testing.assert_array_equal(*seen)
    action = np.full(7, 0.5, np.float32)
    seen = [env.step(action)[4]["prompt"] for env in (imagined, oracle)]
    np.testing.assert_array_equal(*seen)
    oracle.close()
    several = gym.make_vec("VAP-DROID-v0", num_envs=2, vectorization_mode="vector_entry_point", prompt=prompt)
    several.reset(seed=5)
    prompts = several.step(np.stack([action, action]))[4]["prompt"]
    assert prompts[0].shape == (96, 144, 3)
    np.testing.assert_array_equal(prompts[0], seen[0])


def test_unknown_kinds_are_refused_by_name() -> None:
    with pytest.raises(
        UnknownNameError, match=r"No prompt named 'mehs'. Did you mean 'mesh'\? Known: depth, mesh, none"
    ):
        made("VAP-DROID-v0", prompt="mehs")


def test_joints_that_are_not_finite_are_refused(robot: RobotCard) -> None:
    q, gripper, camera = some_views(robot, 2)
    q[1, 3] = torch.nan
    with pytest.raises(VapError, match=r"must be finite, got NaN or infinity. Check the robot state"):
        draw_mesh(q, gripper, camera, Mesh(robot))
    with pytest.raises(VapError, match=r"camera's batch \(2,\) does not fit"):
        draw_depth(q[:1].nan_to_num(), gripper[:1], camera, Mesh(robot))
