"""Forward kinematics is that of real robots, of PyBullet, and of the derivatives it claims."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from vap_gym.cards import known_robots, load_robot
from vap_gym.errors import UrdfError, VapError
from vap_gym.geometry import inverse, pose_from_xyz_euler, rotation_from_quaternion_xyzw, rotvec_from_rotation
from vap_gym.kinematics import Chain, gripper_joint_values, load_chain, read_urdf

DROID_LOGS = (
    *(f"newsetup_{i}" for i in ("0001", "0004", "0009", "0010", "0012")),
    *(f"subset_{i}" for i in (1, 3, 5, 899)),
)


def random_q(chain: Chain, count: int, seed: int = 0) -> Tensor:
    """Joint positions within the limits (±π where there are none), (count, n)."""
    lower, upper = chain.lower.clamp(min=-math.pi), chain.upper.clamp(max=math.pi)
    unit = torch.rand(count, chain.size, dtype=lower.dtype, generator=torch.Generator().manual_seed(seed))
    return lower + unit * (upper - lower)


def pose_difference(a: Tensor, b: Tensor) -> tuple[float, float]:
    """The largest distance [m] and angle [rad] between two batches of poses."""
    angle = rotvec_from_rotation(a[..., :3, :3].mT @ b[..., :3, :3]).norm(dim=-1)
    return float((a[..., :3, 3] - b[..., :3, 3]).norm(dim=-1).max()), float(angle.max())


@pytest.mark.parametrize("log", DROID_LOGS)
def test_fk_reproduces_every_row_of_the_real_logs(shared_data: Path, log: str) -> None:
    robot = load_robot("panda_robotiq")
    data = np.load(shared_data / "droid" / log / "log.npz")
    logged = pose_from_xyz_euler(torch.from_numpy(data["cartesian_position"]))
    ours = load_chain(robot).subchain([robot.tip_link]).fk(torch.from_numpy(data["joint_position"]), robot.tip_link)
    assert len(logged) > 60
    metres, radians = pose_difference(ours, logged)
    assert metres < 1e-6
    assert radians < 1e-6


def bullet_fk(urdf: Path, chain: Chain, q: Tensor, links: tuple[str, ...]) -> Tensor:
    """Link poses by PyBullet, (len(q), len(links), 4, 4). PyBullet knows no mimics: each joint is set by itself."""
    pybullet = pytest.importorskip("pybullet")
    client = pybullet.connect(pybullet.DIRECT)
    try:
        body = pybullet.loadURDF(str(urdf), useFixedBase=True, physicsClientId=client)
        infos = [
            pybullet.getJointInfo(body, i, physicsClientId=client) for i in range(pybullet.getNumJoints(body, client))
        ]
        joint_number = {info[1].decode(): info[0] for info in infos}
        link_number = {info[12].decode(): info[0] for info in infos}
        poses = torch.eye(4, dtype=torch.float64).repeat(len(q), len(links), 1, 1)
        for row, values in enumerate(q.tolist()):
            for joint in chain.moving:
                position = joint.multiplier * values[joint.source] + joint.offset
                pybullet.resetJointState(body, joint_number[joint.name], position, physicsClientId=client)
            for column, link in enumerate(links):
                if link == chain.base_link:
                    continue
                state = pybullet.getLinkState(
                    body, link_number[link], computeForwardKinematics=1, physicsClientId=client
                )
                poses[row, column, :3, 3] = torch.tensor(state[4], dtype=torch.float64)  # 4, 5: the link's own frame;
                quaternion = torch.tensor(state[5], dtype=torch.float64)  # 0, 1 would be its centre of mass
                poses[row, column, :3, :3] = rotation_from_quaternion_xyzw(quaternion)
        return poses
    finally:
        pybullet.disconnect(client)


def test_fk_equals_pybullets_on_its_own_panda() -> None:
    pybullet_data = pytest.importorskip("pybullet_data")
    urdf = Path(pybullet_data.getDataPath()) / "franka_panda" / "panda.urdf"
    chain = read_urdf(urdf)
    q = random_q(chain, 1000)
    theirs = bullet_fk(urdf, chain, q, chain.link_names)
    metres, radians = pose_difference(chain.links(q), theirs)
    assert metres < 1e-6
    assert radians < 1e-6


@pytest.mark.parametrize("name", known_robots())
def test_shipped_urdf_loads_in_pybullet_and_agrees(name: str, tmp_path: Path) -> None:
    pybullet_data = pytest.importorskip("pybullet_data")
    robot = load_robot(name)
    resolved = tmp_path / "robot.urdf"
    text = robot.urdf_path.read_text()
    resolved.write_text(text.replace("package://pybullet_data", pybullet_data.getDataPath()))
    chain = load_chain(robot)
    q = random_q(chain, 20)
    metres, radians = pose_difference(chain.links(q), bullet_fk(resolved, chain, q, chain.link_names))
    assert metres < 1e-6
    assert radians < 1e-6


@pytest.mark.parametrize("name", ["panda_hand", "panda_robotiq"])
def test_skeleton_finger_ends_lie_on_the_urdfs_tips(name: str) -> None:
    """The skeleton moves linearly with closedness, a 2F-85's links on arcs: within 3 mm of each other."""
    robot = load_robot(name)
    chain = load_chain(robot)
    closedness = torch.linspace(0.0, 1.0, 21, dtype=torch.float64)
    home = torch.tensor(robot.home_q_rad, dtype=torch.float64).expand(21, 7)
    links = chain.links(torch.cat([home, gripper_joint_values(robot.gripper, closedness)], -1))
    for side in ("left", "right"):
        point = next(p for p in robot.skeleton.keypoints if p.name == f"{side}_end")
        offset = torch.tensor(point.offset_m) + closedness[:, None] * torch.tensor(point.offset_per_closing_m)
        base = links[:, chain.link_index(point.link)]
        drawn = (base @ torch.cat([offset, torch.ones(21, 1)], -1).double().unsqueeze(-1))[:, :3, 0]
        if name == "panda_robotiq":
            built = links[:, chain.link_index(f"{side}_finger_end"), :3, 3]
        else:  # the finger's end: 53.6 mm along it, its middle 4 mm outward of its inner face
            sign = 1.0 if side == "left" else -1.0
            finger = links[:, chain.link_index(f"panda_{side}finger")]
            built = (finger @ torch.tensor([0.0, sign * 0.004, 0.0536, 1.0], dtype=torch.float64))[:, :3]
        assert float((drawn - built).norm(dim=-1).max()) < 0.003


def test_robotiq_follows_the_rule_fitted_to_droid_video() -> None:
    robot = load_robot("panda_robotiq")
    chain = load_chain(robot)
    home = torch.tensor(robot.home_q_rad, dtype=torch.float64)
    for g in (0.0, 0.25, 0.5, 0.75, 1.0):
        q = torch.cat([home, gripper_joint_values(robot.gripper, torch.tensor(g, dtype=torch.float64))])
        links = chain.links(q)
        T_flange_base = inverse(links[chain.link_index("panda_link8")])
        for side, sign in (("left", -1.0), ("right", 1.0)):  # the fingers open along ∓y of the flange
            T = T_flange_base @ links[chain.link_index(f"{side}_tip")]
            torch.testing.assert_close(T[:3, 2], torch.tensor([0.0, 0.0, 1.0]).double())  # pads stay parallel
            end = (T_flange_base @ links[chain.link_index(f"{side}_finger_end")])[:3, 3]
            rule = torch.tensor([0.0, sign * (0.0425 * (1 - g) + 0.004), 0.139 + 0.014 * g], dtype=torch.float64)
            assert float((end - rule).abs().max()) < 0.003
        tool = (T_flange_base @ links[chain.link_index("tool_centre")])[:3, 3]
        torch.testing.assert_close(tool, torch.tensor([0.0, 0.0, 0.145], dtype=torch.float64))


def test_panda_limits_and_droid_reset_pose() -> None:
    robot = load_robot("panda_robotiq")
    arm = load_chain(robot).subchain([robot.tip_link])
    assert arm.joint_names == robot.arm_joints
    assert arm.lower.tolist() == [-2.8973, -1.7628, -2.8973, -3.0718, -2.8973, -0.0175, -2.8973]
    assert arm.upper.tolist() == [2.8973, 1.7628, 2.8973, -0.0698, 2.8973, 3.7525, 2.8973]
    assert arm.velocity.tolist() == [2.175] * 4 + [2.61] * 3
    home = torch.tensor(robot.home_q_rad, dtype=torch.float64)
    torch.testing.assert_close(home / math.pi, torch.tensor([0.0, -0.2, 0.0, -0.8, 0.0, 0.6, 0.0]).double())
    T = arm.fk(home, robot.tip_link)
    torch.testing.assert_close(T[:3, 2], torch.tensor([0.0, 0.0, -1.0]).double())  # the gripper points down


TREE = """<robot name="tree">
  <link name="base"/> <link name="turret"/> <link name="rail"/> <link name="plate"/> <link name="arm"/>
  <link name="far"/>
  <joint name="turn" type="continuous"><parent link="base"/><child link="turret"/><origin xyz="0 0 .5" rpy="0 .3 0"/>
    <axis xyz="0 0 2"/></joint>
  <joint name="slide" type="prismatic"><parent link="turret"/><child link="rail"/><origin xyz=".1 0 0"/>
    <axis xyz=".6 .8 0"/><limit lower="-.2" upper=".4" velocity="1" effort="1"/></joint>
  <joint name="weld" type="fixed"><parent link="rail"/><child link="plate"/><origin xyz="0 .2 0" rpy=".5 0 0"/></joint>
  <joint name="follow" type="revolute"><parent link="plate"/><child link="arm"/><origin xyz="0 0 .3"/>
    <axis xyz="0 1 0"/><limit lower="-1" upper="1" velocity="1" effort="1"/>
    <mimic joint="echo" multiplier="2" offset=".1"/></joint>
  <joint name="echo" type="revolute"><parent link="turret"/><child link="far"/><origin xyz="0 -.3 0" rpy="0 0 1"/>
    <limit lower="-1" upper="1" velocity="1" effort="1"/><mimic joint="slide" multiplier="-3" offset=".2"/></joint>
</robot>"""


@pytest.fixture
def tree(tmp_path: Path) -> Chain:
    """A branching tree with continuous, prismatic, fixed and chained mimic joints, and an axis that is not unit."""
    path = tmp_path / "tree.urdf"
    path.write_text(TREE)
    return read_urdf(path)


def test_tree_of_every_joint_kind_is_what_it_says(tree: Chain) -> None:
    assert tree.joint_names == ("turn", "slide")
    assert tree.lower.tolist() == [-math.inf, -0.2]
    moving = {joint.name: joint for joint in tree.moving}
    assert (moving["echo"].multiplier, moving["echo"].offset) == (-3.0, 0.2)
    assert moving["follow"].multiplier == -6.0
    assert moving["follow"].offset == pytest.approx(0.5)  # 2·(−3 s + .2) + .1


def test_tree_agrees_with_pybullet(tree: Chain, tmp_path: Path) -> None:
    q = random_q(tree, 50)
    metres, radians = pose_difference(tree.links(q), bullet_fk(tmp_path / "tree.urdf", tree, q, tree.link_names))
    assert metres < 1e-6
    assert radians < 1e-6


def numeric_jacobian(fk: Callable[[Tensor], Tensor], q: Tensor, step: float = 1e-6) -> Tensor:
    """Central differences of a pose as (m; rotation vector), both in the base frame: (6, n)."""
    columns = []
    for i in range(len(q)):
        delta = torch.zeros_like(q)
        delta[i] = step
        ahead, behind = fk(q + delta), fk(q - delta)
        turn = rotvec_from_rotation(ahead[:3, :3] @ behind[:3, :3].mT)
        columns.append(torch.cat([ahead[:3, 3] - behind[:3, 3], turn]) / (2 * step))
    return torch.stack(columns, -1)


def test_jacobian_is_the_derivative_of_fk(tree: Chain) -> None:
    panda = load_chain(load_robot("panda_robotiq"))
    for chain, links in ((tree, tree.link_names), (panda, ("panda_link4", "panda_link8", "right_tip", "tool_centre"))):
        for q in random_q(chain, 3, seed=4):
            for link in links:
                numeric = numeric_jacobian(lambda x, c=chain, name=link: c.fk(x, name), q)
                torch.testing.assert_close(chain.jacobian(q, link), numeric, atol=1e-7, rtol=0)


def test_gradients_check(tree: Chain) -> None:
    panda = load_chain(load_robot("panda_robotiq"))
    for chain in (tree, panda):
        q = random_q(chain, 2, seed=5).requires_grad_()
        assert torch.autograd.gradcheck(chain.links, (q,))
        link = chain.link_names[-1]
        assert torch.autograd.gradcheck(lambda x, c=chain, name=link: c.jacobian(x, name), (q,))


def test_any_batch_shape_gives_the_same_poses(tree: Chain) -> None:
    for chain in (tree, load_chain(load_robot("panda_hand"))):
        q = random_q(chain, 6)
        flat = chain.links(q)
        torch.testing.assert_close(chain.links(q.reshape(2, 3, -1)), flat.reshape(2, 3, *flat.shape[1:]))
        torch.testing.assert_close(chain.links(q[0]), flat[0])
        assert chain.links(q[:0]).shape == (0, len(chain.link_names), 4, 4)
        for i, link in enumerate(chain.link_names):
            torch.testing.assert_close(chain.fk(q, link), flat[:, i])


def test_slot_does_not_depend_on_its_batch_mates() -> None:
    chain = load_chain(load_robot("panda_robotiq")).to(torch.float32)
    q = random_q(chain, 64)
    alone = torch.stack([chain.links(row) for row in q])
    torch.testing.assert_close(chain.links(q), alone, atol=1e-6, rtol=0)


def test_subchain_keeps_poses_and_drops_the_rest(tree: Chain) -> None:
    panda = load_chain(load_robot("panda_robotiq"))
    fingers = panda.subchain(["right_tip", "panda_link3"])
    assert fingers.joint_names == panda.joint_names
    assert len(fingers.moving) == 9  # the arm, the right knuckle, the right tip
    q = random_q(panda, 4)
    torch.testing.assert_close(fingers.links(q)[:, 0], panda.fk(q, "right_tip"))
    torch.testing.assert_close(fingers.links(q)[:, 1], panda.fk(q, "panda_link3"))
    torch.testing.assert_close(fingers.jacobian(q, "right_tip"), panda.jacobian(q, "right_tip"))
    far = tree.subchain(["far"])
    assert far.joint_names == ("turn", "slide")  # `slide` drives the mimic, although it does not carry the link
    q = random_q(tree, 4)
    torch.testing.assert_close(far.fk(q, "far"), tree.fk(q, "far"))
    base = tree.subchain(["base"])
    assert base.joint_names == ()
    assert base.links(torch.zeros(3, 0, dtype=torch.float64)).shape == (3, 1, 4, 4)


def test_dtype_follows_the_chain() -> None:
    chain = load_chain(load_robot("panda_hand"))
    q = random_q(chain, 4)
    single = chain.to(torch.float32)
    assert single.links(q.float()).dtype == torch.float32
    torch.testing.assert_close(single.links(q.float()).double(), chain.links(q), atol=2e-6, rtol=0)


def test_unknown_link_joint_and_wrong_width_are_refused() -> None:
    chain = load_chain(load_robot("panda_hand"))
    with pytest.raises(UrdfError, match=r"No link of 'panda_hand' named 'panda_link9'\. Did you mean 'panda_link\d'\?"):
        chain.fk(torch.zeros(8).double(), "panda_link9")
    with pytest.raises(UrdfError, match=r"No driven joint of 'panda_hand' named 'panda_joint8'\. Did you mean"):
        chain.joint_index("panda_joint8")
    with pytest.raises(VapError, match=r"q of 'panda_hand' must have shape \(\*batch, 8\), got \(2, 7\)\."):
        chain.links(torch.zeros(2, 7).double())
