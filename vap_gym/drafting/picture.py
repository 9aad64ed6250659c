"""The picture to check a drafted card by: the robot's shapes, its skeleton, one over the other, in several poses."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float, UInt8

from vap_gym.cards import RobotCard
from vap_gym.geometry import Camera
from vap_gym.kinematics import Controller
from vap_gym.pictures import sheet
from vap_gym.prompts.mesh import Mesh, draw_mesh
from vap_gym.prompts.raster import draw, overlay
from vap_gym.prompts.skeleton import Skeleton

FRAME_PX = (360, 270)
PAPER_GREY = 238


def check_picture(robot: RobotCard, camera: Camera | None = None) -> UInt8[np.ndarray, "H W 3"]:
    """Return a sheet: home open and closed, and two poses half-way to the joints' limits; shapes, skeleton, both."""
    skeleton = Skeleton(robot, dtype=torch.float64)
    q, closedness, names = poses_to_check(robot)
    points = skeleton.at_joints(q, closedness)
    camera = (camera or overview(points)).to(torch.float64)
    if camera.frame_size_px != FRAME_PX:
        width = round(FRAME_PX[1] * camera.frame_size_px[0] / camera.frame_size_px[1])
        camera = camera.resized((width, FRAME_PX[1]))
    bones = draw(points, camera, skeleton)
    shapes = np.full_like(bones, PAPER_GREY)
    if robot.mesh:
        mesh = Mesh(robot)
        mesh.colour_rgb[:] = 190.0
        drawn = draw_mesh(q, closedness, camera, mesh)
        shapes = np.where(drawn.any(-1, keepdims=True), drawn, shapes)
    rows = [[shape, bone, overlay(shape, bone, alpha=0.65)] for shape, bone in zip(shapes, bones, strict=True)]
    return sheet(
        rows, columns=("shapes of the URDF", "skeleton", "both"), labels=names, title=robot.name,
        note="The skeleton should lie inside the shapes, fingers should close from row 1 to row 2.",
    )  # fmt: skip


def poses_to_check(robot: RobotCard) -> tuple[Float[torch.Tensor, "4 n"], Float[torch.Tensor, "4"], tuple[str, ...]]:
    """Return joints, closedness and names of four poses."""
    arm = Controller(robot, robot.action_modes[0], dtype=torch.float64).arm
    home = torch.tensor(robot.home_q_rad, dtype=torch.float64)
    sign = torch.tensor([(-1.0) ** i for i in range(arm.size)], dtype=torch.float64)
    step = 0.5 * torch.minimum((arm.upper - arm.lower).clamp(max=2.0) / 2, torch.ones_like(home))
    poses = [(home + k * sign * step).clamp(arm.lower, arm.upper) for k in (0.0, 0.0, 1.0, -1.0)]
    closedness = torch.tensor([0.0, 1.0, 0.5, 0.5], dtype=torch.float64)
    return torch.stack(poses), closedness, ("home, open", "home, closed", "one way, half closed", "the other way")


def overview(points_world: Float[torch.Tensor, "B P 3"]) -> Camera:
    """Return a camera that sees all points, from the right, ahead and above."""
    flat = points_world.reshape(-1, 3)
    low, high = flat.amin(0), flat.amax(0)
    middle = (low + high) / 2
    radius = max(float((high - low).norm()) / 2, 0.05)
    toward = torch.tensor([0.75, -1.0, 0.55], dtype=flat.dtype)
    eye = middle + toward / toward.norm() * 0.95 * radius / math.sin(math.radians(20))
    return Camera.look_at(eye, middle, vertical_fov_rad=math.radians(40), frame_size_px=FRAME_PX)
