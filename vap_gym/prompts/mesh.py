"""A robot's surface as few triangles that hang on its links, and its pictures: shaded in colour, and as depth."""

from __future__ import annotations

import functools
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int, Int32, UInt8
from torch import Tensor

from vap_gym.cards import RobotCard
from vap_gym.errors import CardError, VapError
from vap_gym.geometry import Camera, inverse
from vap_gym.kinematics.gripper import gripper_joint_values
from vap_gym.kinematics.urdf import load_chain
from vap_gym.prompts.raster import flat_camera
from vap_gym.prompts.simplified import simplified_mesh
from vap_gym.prompts.triangles import rasterise

KEYS = ("links", "vertices_m", "link", "faces")  # of a mesh file

AMBIENT = 0.3
"""Brightness of a triangle seen edge-on, as a share of that of one seen from straight ahead."""

PLAIN_RGB = (200, 200, 200)
"""Colour of a robot whose card draws no bones."""


class Mesh:
    """The surface of one robot as triangles: settings only.

    It is read from the file that the card names (`vap-gym mesh`), or else made of the URDF's visual geometry, which
    takes seconds where that is large, and is kept in memory. `links` are the names of L links; of V vertices
    `vertices_m` are in the frame of the link `link`, an index into `links`; `faces` has three vertices each of F
    triangles, counter-clockwise from outside; `colour_rgb` is that of each triangle, that of the card's bone that
    starts on its link, or is nearest to it.

    Raises:
        CardError: the card's mesh is missing or damaged, or it names none and the URDF has no visual geometry, or
            meshes that cannot be read.
    """

    def __init__(self, robot: RobotCard) -> None:
        self.robot = robot
        given = _read(robot) if robot.mesh else _made(robot, robot.urdf_path.stat().st_mtime_ns)
        self.links: tuple[str, ...] = tuple(str(name) for name in given["links"])
        self.vertices_m: Float[np.ndarray, "V 3"] = given["vertices_m"].astype(np.float64)
        self.link: Int[np.ndarray, " V"] = given["link"].astype(np.int64)
        self.faces: Int[np.ndarray, "F 3"] = given["faces"].astype(np.int64)
        self._face_link = self.link[self.faces[:, 0]]
        a, b, c = (self.vertices_m[self.faces[:, k]] for k in range(3))
        normal = np.cross(b - a, c - a)
        self._area = np.linalg.norm(normal, axis=1) / 2
        self._normal = normal / np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-300)
        self._centre_m = (a + b + c) / 3
        self._one_sided = _closed(self.vertices_m, self.faces, self._face_link, len(self.links))
        self._of_link = [np.flatnonzero(self.link == i) for i in range(len(self.links))]
        self._chain = load_chain(robot).subchain(self.links).to(torch.float32)
        named = (*robot.arm_joints, *(joint.name for joint in robot.gripper.joints))
        self._joint_order = [named.index(name) for name in self._chain.joint_names]
        self.colour_rgb: Float[np.ndarray, "F 3"] = self._bone_colours()[self._face_link]

    def poses(self, q: Float[Tensor, "*batch n"], gripper: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch L 4 4"]:
        """Return T_base_link of each link at arm joints [rad] and a closedness (0 open .. 1 closed)."""
        joints = torch.cat([q, gripper_joint_values(self.robot.gripper, gripper)], dim=-1)[..., self._joint_order]
        return self._chain.links(joints.float())

    def seen(
        self, T_base_link: Float[Tensor, "B L 4 4"], camera: Camera
    ) -> tuple[Int32[np.ndarray, "B H W"], Float32[np.ndarray, "B H W"]]:
        """Return the triangle at each pixel's centre (-1: none) and its depth along the optical axis [m] (0: none).

        The camera has no batch dimension, or B; see `rasterise` for what is cut and what counts as covered.
        """
        E = (camera.K.double() @ inverse(camera.T_world_camera.double())[..., :3, :]).reshape(-1, 1, 3, 4)
        views = (E @ T_base_link.double()).numpy()  # p in a link's frame goes to (u·z, v·z, z)
        points = np.empty((len(views), len(self.link), 3))
        for i, own in enumerate(self._of_link):
            points[:, own] = self.vertices_m[own] @ views[:, i, :, :3].transpose(0, 2, 1) + views[:, i, None, :, 3]
        return rasterise(points, self.faces, camera.frame_size_px, one_sided=self._one_sided)

    def shades(self, T_base_link: Float[Tensor, "B L 4 4"], camera: Camera) -> UInt8[np.ndarray, "B F 3"]:
        """Return the colour of each triangle under a lamp at the camera (Lambert's law above `AMBIENT`); none is 0."""
        eye = camera.T_world_camera[..., :3, 3].double().reshape(-1, 1, 3, 1)
        R, t = T_base_link[..., :3, :3].double(), T_base_link[..., :3, 3:].double()
        eye_link = (R.mT @ (eye - t))[..., 0].numpy()
        away = eye_link[:, self._face_link] - self._centre_m
        cosine = np.abs((away * self._normal).sum(-1)) / np.maximum(np.linalg.norm(away, axis=-1), 1e-9)
        bright = self.colour_rgb * (AMBIENT + (1 - AMBIENT) * cosine)[..., None]
        shades: UInt8[np.ndarray, "B F 3"] = np.clip(np.rint(bright), 1, 255).astype(np.uint8)
        return shades

    def _bone_colours(self) -> Float[np.ndarray, "L 3"]:
        """Colour each link as the nearest of the bones that start on it, or of all where none does.

        Nearest: bone's surface to link's surface, on average, at home with an open gripper.
        """
        card = self.robot.skeleton
        if not card.bones:
            return np.full((len(self.links), 3), PLAIN_RGB, float)
        named = tuple(dict.fromkeys((*self.links, *(point.link for point in card.keypoints))))
        whole = load_chain(self.robot)
        joints = (*self.robot.arm_joints, *(joint.name for joint in self.robot.gripper.joints))
        opened = gripper_joint_values(self.robot.gripper, torch.zeros((), dtype=torch.float64))
        q = torch.cat([torch.tensor(self.robot.home_q_rad, dtype=torch.float64), opened])
        T = whole.subchain(named)
        T_base = dict(zip(named, T.links(q[[joints.index(name) for name in T.joint_names]]).numpy(), strict=True))
        at = {p.name: (T_base[p.link] @ (*p.offset_m, 1.0))[:3] for p in card.keypoints}
        start, end = (np.array([at[name] for name in names]) for names in zip(*((b.start, b.end) for b in card.bones)))
        link_of = {p.name: p.link for p in card.keypoints}
        colours = np.array([bone.colour_rgb for bone in card.bones], float)
        chosen = []
        for i, name in enumerate(self.links):
            own = self._face_link == i
            centre = self._centre_m[own] @ T_base[name][:3, :3].T + T_base[name][:3, 3]
            along = end - start
            share = ((centre[:, None] - start) * along).sum(-1) / np.maximum((along * along).sum(-1), 1e-12)
            nearest = start + np.clip(share, 0, 1)[..., None] * along
            gap = np.linalg.norm(centre[:, None] - nearest, axis=-1) - [bone.radius_m for bone in card.bones]
            mean_gap = self._area[own] @ np.abs(gap)
            starts_here = np.array([link_of[bone.start] == name for bone in card.bones])
            chosen.append(colours[np.where(starts_here | ~starts_here.any(), mean_gap, np.inf).argmin()])
        return np.array(chosen)


def draw_mesh(
    q: Float[Tensor, "*batch n"],
    gripper: Float[Tensor, "*batch"],
    camera: Camera,
    mesh: Mesh,
    *,
    frame_size_px: tuple[int, int] | None = None,
) -> UInt8[np.ndarray, "*batch H W 3"]:
    """Draw robots as shaded surfaces: RGB pictures on black, lit exactly where `draw_depth` is above 0. On the CPU.

    Args:
        q, gripper: arm joints [rad] and closedness (0 open .. 1 closed).
        camera: one for all, or one for each of the leading batch dimensions: (B,) cameras serve (B, T) states.
        mesh: whose colours tell links and fingers apart as those of the skeleton do. There is no drop line.
        frame_size_px: (width, height) of the pictures; the camera is resized to it. Default: the camera's own.

    Raises:
        VapError: joints that are NaN or infinite, or a camera that does not fit.
    """
    T_base_link, camera = _posed(q, gripper, camera, mesh, frame_size_px)
    face, _ = mesh.seen(T_base_link, camera)
    pictures = np.zeros((*face.shape, 3), np.uint8)
    (lit,) = np.nonzero(face.reshape(-1) >= 0)
    pixels_each, faces_each = face[0].size if len(face) else 1, len(mesh.faces)
    shades = mesh.shades(T_base_link, camera).reshape(-1, 3)
    pictures.reshape(-1, 3)[lit] = shades[lit // pixels_each * faces_each + face.reshape(-1)[lit]]
    return pictures.reshape(*q.shape[:-1], *pictures.shape[1:])


def draw_depth(
    q: Float[Tensor, "*batch n"],
    gripper: Float[Tensor, "*batch"],
    camera: Camera,
    mesh: Mesh,
    *,
    frame_size_px: tuple[int, int] | None = None,
) -> Float32[np.ndarray, "*batch H W"]:
    """Return how far robots are along the optical axis at each pixel's centre, in metres; 0 where there is none.

    Arguments and errors are those of `draw_mesh`; `kinds.encode_depth` makes one-channel pictures of it.
    """
    T_base_link, camera = _posed(q, gripper, camera, mesh, frame_size_px)
    _, depth = mesh.seen(T_base_link, camera)
    return depth.reshape(*q.shape[:-1], *depth.shape[1:])


def _posed(
    q: Tensor, gripper: Tensor, camera: Camera, mesh: Mesh, frame_size_px: tuple[int, int] | None
) -> tuple[Float[Tensor, "B L 4 4"], Camera]:
    """Check the input; return poses and cameras over a flat batch, the cameras at the pictures' size."""
    if not bool(torch.isfinite(q).all() & torch.isfinite(gripper).all()):
        raise VapError(
            "q [rad] and gripper [0 open .. 1 closed] must be finite, got NaN or infinity. "
            "Check the robot state they come from."
        )
    if frame_size_px is not None and tuple(frame_size_px) != tuple(camera.frame_size_px):
        camera = camera.resized(frame_size_px)
    with torch.no_grad():
        poses = mesh.poses(q, gripper)
        return poses.reshape(-1, *poses.shape[-3:]).cpu(), flat_camera(camera, q.shape[:-1]).to(device="cpu")


def _closed(
    vertices_m: Float[np.ndarray, "V 3"], faces: Int[np.ndarray, "F 3"], face_link: Int[np.ndarray, " F"], links: int
) -> Bool[np.ndarray, " F"]:
    """Which triangles are of a link whose surface is closed and turned outwards, so that its inside is never seen."""
    sides = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    there, back = (side[:, 0] * len(vertices_m) + side[:, 1] for side in (sides, sides[:, ::-1]))
    _, place, times = np.unique(there, return_inverse=True, return_counts=True)
    matched = np.isin(there, back) & (times[place] == 1)
    open_sides = np.bincount(np.tile(face_link, 3), ~matched, minlength=links)
    a, b, c = (vertices_m[faces[:, k]] for k in range(3))
    volume = np.bincount(face_link, (a * np.cross(b, c)).sum(1), minlength=links)
    is_closed: Bool[np.ndarray, " F"] = ((open_sides == 0) & (volume > 0))[face_link]
    return is_closed


@functools.lru_cache(maxsize=8)
def _made(robot: RobotCard, _urdf_changed_ns: int) -> dict[str, np.ndarray]:
    return simplified_mesh(robot)


def _read(robot: RobotCard) -> dict[str, np.ndarray]:
    path = Path(robot.folder) / robot.mesh
    again = f"Make it: vap-gym mesh {robot.name if path.parent.name == robot.name else robot.folder}"
    if not path.is_file():
        raise CardError(f"The mesh '{path}' of the robot '{robot.name}' is missing. {again}")
    try:
        with np.load(path) as file:
            given = {key: file[key] for key in KEYS}
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise CardError(
            f"The mesh '{path}' must be an npz file with {', '.join(KEYS)}, but is not whole: {error}. {again}"
        ) from error
    vertices, links = len(given["vertices_m"]), len(given["links"])
    if (
        given["vertices_m"].shape != (vertices, 3)
        or given["faces"].ndim != 2
        or given["faces"].shape[1:] != (3,)
        or given["link"].shape != (vertices,)
        or not len(given["faces"])
        or int(given["faces"].max()) >= vertices
        or int(given["link"].max()) >= links
        or not np.isfinite(given["vertices_m"]).all()
    ):
        told = ", ".join(f"{key} {given[key].shape}" for key in KEYS)
        raise CardError(
            f"The mesh '{path}' must hold finite vertices, the link of each, and triangles of them, but holds {told}, "
            f"or numbers that name none. {again}"
        )
    return given
