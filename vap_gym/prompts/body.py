"""A robot's surface as points that hang on its links, and how a camera sees those links."""

from __future__ import annotations

import logging
import math
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vap_gym.cards import RobotCard
from vap_gym.errors import CardError, require
from vap_gym.geometry import Camera, inverse
from vap_gym.kinematics.gripper import gripper_joint_values
from vap_gym.kinematics.urdf import load_chain

KEYS = ("links", "points_m", "normals", "link", "spacing_m")  # of a body file
SPACING_M = 0.009  # between points of an arm
FINE = 0.5  # of this, between points of the gripper, which is small and matters most
MOST_POINTS = 4000  # about: on one link; a robot's cabinet has fewer to the square metre


class Body:
    """The surface of one robot: settings only. A robot whose card names no body has no links and no points.

    `links` are the names of L links, the base first; of P points `points_m` and `normals` (unit length, outwards) are
    in the frame of the link `link`, an index into `links`; `spacing_m` is how far the next point is, `colour` what the
    URDF paints it (in [0, 1]; grey where it does not say). World models take the base's plane z = 0 for the table:
    where the card's table is at another height, the first link is the base frame moved there.
    """

    def __init__(self, robot: RobotCard, *, stand_in: RobotCard | None = None) -> None:
        """Read the body that a card names.

        Args:
            robot: whose surface it is.
            stand_in: a robot whose gripper is to be told of as well, with its tool centre where this robot's is, and as
                wide open: its links, without a surface, come last (`stand_in_links` of them).
        """
        self.robot = robot
        path = robot.folder / robot.body
        if robot.body and not path.is_file():
            raise CardError(
                f"The body '{path}' of the robot '{robot.name}' is missing. Make it: vap-gym body {robot.name}"
            )
        given = _read(path) if robot.body else _nothing()
        self.links: tuple[str, ...] = tuple(str(name) for name in given["links"])
        self.link = torch.from_numpy(given["link"].astype(np.int64))
        self.points_m, self.normals, self.spacing_m = (
            torch.from_numpy(given[key].astype(np.float32)) for key in ("points_m", "normals", "spacing_m")
        )
        painted = given.get("colour", np.full((len(self.link), 3), 160))
        self.colour = torch.from_numpy(painted.astype(np.float32) / 255)
        self.stand_in_links = 0
        if not self.links:
            return
        self._table_z_m = robot.skeleton.drop_to_z_m
        if self.links[0] != robot.base_link or self._table_z_m != 0.0:
            self.links, self.link = (robot.base_link, *self.links), self.link + 1
        self._stand_in = None if stand_in is None else _StandIn(robot, stand_in)
        self.stand_in_links = 0 if self._stand_in is None else len(self._stand_in.links)
        self._chain = load_chain(robot).subchain([*self.links, robot.gripper.tool_link]).to(torch.float32)
        if self._stand_in is not None:
            self.links = (*self.links, *self._stand_in.links)
        named = (*robot.arm_joints, *(joint.name for joint in robot.gripper.joints))
        self._joint_order = [named.index(name) for name in self._chain.joint_names]

    def views(
        self, q: Float[Tensor, "*batch n"], gripper: Float[Tensor, "*batch"], camera: Camera
    ) -> Float[Tensor, "*batch L 3 4"]:
        """Return how a camera sees each link: p in the link's frame, in metres, goes to M·(p, 1) = (u·z, v·z, z).

        Args:
            q, gripper: arm joints [rad] and closedness (0 open .. 1 closed).
            camera: one for all, or one for each of the leading batch dimensions: (B,) cameras serve (B, T) states.
        """
        batch = q.shape[:-1]
        if not self.links:
            return q.new_zeros(*batch, 0, 3, 4)
        joints = torch.cat([q, gripper_joint_values(self.robot.gripper, gripper)], dim=-1)[..., self._joint_order]
        T_base_link, T_base_tool = self._chain.links(joints.float()).tensor_split([-1], dim=-3)
        if self._stand_in is not None:
            T_base_link = torch.cat([T_base_link, T_base_tool @ self._stand_in.links_of_tool(gripper)], -3)
        if self._table_z_m != 0.0:
            T_base_link = T_base_link.clone()
            T_base_link[..., 0, 2, 3] += self._table_z_m
        E = camera.K @ inverse(camera.T_world_camera)[..., :3, :]
        E = E.reshape(*E.shape[:-2], *(1,) * (len(batch) - (E.ndim - 2)), 1, 3, 4)
        return E.to(T_base_link) @ T_base_link


class _StandIn:
    """The gripper of a known robot in the place of another one's: tool centre on tool centre, as wide open."""

    def __init__(self, robot: RobotCard, known: RobotCard) -> None:
        chain = load_chain(known)
        body = Body(known)
        below = body.links[body.links.index(known.gripper.base_link) :]
        self.links = tuple(f"stand-in {name}" for name in below)
        self._known, self._robot = known, robot
        self._chain = chain.subchain([*below, known.gripper.tool_link]).to(torch.float32)
        named = (*known.arm_joints, *(joint.name for joint in known.gripper.joints))
        self._order = [named.index(name) for name in self._chain.joint_names]
        self._home = torch.tensor(known.home_q_rad)

    def links_of_tool(self, closedness: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch G 4 4"]:
        """Return T_tool_link of the known gripper's links where the other robot's closedness is this."""
        opening = self._robot.gripper.max_opening_m * (1.0 - closedness.clamp(0.0, 1.0))
        alike = (1.0 - opening / self._known.gripper.max_opening_m).clamp(0.0, 1.0)
        arm = self._home.expand(*closedness.shape, -1)
        joints = torch.cat([arm, gripper_joint_values(self._known.gripper, alike.float())], -1)[..., self._order]
        links, tool = self._chain.links(joints).tensor_split([-1], dim=-3)
        return inverse(tool) @ links


def sampled_body(robot: RobotCard) -> dict[str, np.ndarray]:
    """Sample the visual geometry of a robot's URDF: what a body file (npz) holds, see `Body`.

    Meshes are found beside the URDF, or in the pybullet package (package://pybullet_data/…).
    """
    links: list[str] = []
    points, normals, link, spacing, colour = [], [], [], [], []
    import trimesh
    from yourdfpy import URDF

    urdf = URDF.load(str(robot.urdf_path), load_meshes=False, build_scene_graph=False)
    fine = gripper_links(robot, urdf)
    logger = logging.getLogger("trimesh")
    level = logger.level
    for name, (solid, paint) in _solids(robot, urdf).items():
        gap = max(SPACING_M * (FINE if name in fine else 1.0), math.sqrt(solid.area / MOST_POINTS))
        count = max(40, int(solid.area / gap**2))
        logger.setLevel(logging.ERROR)  # it warns where fewer points are enough
        where, faces = trimesh.sample.sample_surface_even(solid, count, 0.6 * gap, seed=0)
        logger.setLevel(level)
        points.append(where)
        normals.append(solid.face_normals[faces])
        link.append(np.full(len(where), len(links)))
        spacing.append(np.full(len(where), gap))
        colour.append(paint[faces])
        links.append(name)
    if not links:
        raise CardError(f"The URDF '{robot.urdf_path}' must have visual geometry to sample, but has none.")
    return {
        "links": np.array(links),
        "points_m": np.concatenate(points).astype(np.float32),
        "normals": np.concatenate(normals).astype(np.float16),
        "link": np.concatenate(link).astype(np.uint8),
        "spacing_m": np.concatenate(spacing).astype(np.float16),
        "colour": np.concatenate(colour).astype(np.uint8),
    }


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path) as file:
            return {key: file[key] for key in (*KEYS, *({"colour"} & set(file.files)))}
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise CardError(
            f"The body '{path}' must be an npz file with {', '.join(KEYS)}, but is not whole: {error}. "
            f"Make it anew: vap-gym body {path.parent}"
        ) from error


def _nothing() -> dict[str, np.ndarray]:
    none = np.zeros((0, 3), np.float32)
    return {"links": np.array([], str), "points_m": none, "normals": none, "link": none[:, 0], "spacing_m": none[:, 0]}


def links_below(robot: RobotCard, link: str) -> set[str]:
    """Return the names of a link of the robot's URDF and all that hangs on it."""
    from yourdfpy import URDF

    return _below(URDF.load(str(robot.urdf_path), load_meshes=False, build_scene_graph=False), link)


def gripper_links(robot: RobotCard, urdf: Any) -> set[str]:
    """Return the links of the gripper: its base and all that hangs on it."""
    return _below(urdf, robot.gripper.base_link)


def _below(urdf: Any, link: str) -> set[str]:
    found, before = {link}, 0
    while len(found) > before:
        before = len(found)
        found |= {joint.child for joint in urdf.joint_map.values() if joint.parent in found}
    return found


def _solids(robot: RobotCard, urdf: Any) -> dict[str, tuple[Any, np.ndarray]]:
    """The visual geometry of each link that has any, as one mesh in the link's frame, and its faces' colours."""
    import trimesh

    named = {material.name: material for material in urdf.robot.materials}
    solids = {}
    for name, link in urdf.link_map.items():
        parts = [_solid(robot, visual.geometry) for visual in link.visuals]
        for part, visual in zip(parts, link.visuals, strict=True):
            if visual.origin is not None:
                part.apply_transform(visual.origin)
        if parts:
            paint = [
                np.tile(_paint(visual.material, named), (len(part.faces), 1))
                for part, visual in zip(parts, link.visuals, strict=True)
            ]
            solids[name] = trimesh.util.concatenate(parts), np.concatenate(paint)
    return solids


def _paint(material: Any, named: dict[str, Any]) -> np.ndarray:
    """The colour of a material, of its own or under its name, as uint8 RGB; grey where there is none."""
    if material is not None and material.color is None:
        material = named.get(material.name)
    rgba = None if material is None or material.color is None else material.color.rgba
    return np.full(3, 160) if rgba is None else np.round(255 * np.clip(np.asarray(rgba, float)[:3], 0, 1))


def _solid(robot: RobotCard, geometry: Any) -> Any:
    import trimesh

    if geometry.box is not None:
        return trimesh.creation.box(extents=geometry.box.size)
    if geometry.cylinder is not None:
        return trimesh.creation.cylinder(radius=geometry.cylinder.radius, height=geometry.cylinder.length)
    if geometry.sphere is not None:
        return trimesh.creation.icosphere(radius=geometry.sphere.radius)
    path = mesh_path(robot, str(geometry.mesh.filename))
    solid = trimesh.load(path, force="mesh")
    if geometry.mesh.scale is not None:
        solid.apply_scale(geometry.mesh.scale)
    return solid


def mesh_path(robot: RobotCard, name: str) -> Path:
    """Return where a mesh that the URDF names is: beside it, or in the pybullet package."""
    path = robot.urdf_path.parent / name
    if name.startswith("package://pybullet_data/"):
        data = require("pybullet_data", "pybullet", f"The mesh '{name}'")
        path = Path(data.getDataPath()) / name.removeprefix("package://pybullet_data/")
    if not path.is_file():
        raise CardError(f"The mesh '{name}' of '{robot.urdf_path}' is missing; looked for {path}. Put it there.")
    return path
