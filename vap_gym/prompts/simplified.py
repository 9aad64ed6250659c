"""A robot's visual geometry as few triangles: primitives kept as such, meshes decimated to one budget together."""

from __future__ import annotations

from typing import Any

import numpy as np

from vap_gym.cards import RobotCard
from vap_gym.errors import CardError
from vap_gym.prompts.body import gripper_links, mesh_path
from vap_gym.prompts.decimate import collapsed, joined

MOST_FACES = 1200
"""Triangles of a robot. Primitives are made coarser, then meshes decimated, to stay below."""

LEAST_MESH_FACES = 300
"""What meshes are left, all together, where primitives take the most."""

GRIPPER_WEIGHT = 10.0
"""How much more an error of the gripper's surface counts: it is small and matters most."""

DETAIL = ((32, 2), (16, 2), (16, 1), (10, 1), (8, 0))
"""Sides of a cylinder, and how often the triangles of an icosahedron are divided to make a ball; finest first."""


def simplified_mesh(robot: RobotCard) -> dict[str, np.ndarray]:
    """Return a robot's visual geometry with about `MOST_FACES` triangles: what a mesh file (npz) holds, see `Mesh`.

    Boxes stay boxes; cylinders and balls become polyhedra of the same volume; meshes, found beside the URDF or in the
    pybullet package (package://pybullet_data/…), lose the vertices that change their surfaces least.

    Raises:
        CardError: the URDF has no visual geometry, or a mesh that is missing or cannot be read.
        MissingDependencyError: a mesh is in the pybullet package, which is not installed.
    """
    from yourdfpy import URDF

    urdf = URDF.load(str(robot.urdf_path), load_meshes=False, build_scene_graph=False)
    visuals = [(name, visual) for name, link in urdf.link_map.items() for visual in link.visuals]
    links = tuple(dict.fromkeys(name for name, _ in visuals))
    if not links:
        raise CardError(
            f"The URDF '{robot.urdf_path}' must have visual geometry to be drawn as a mesh or as depth, but no link "
            'has a <visual>. Add some (boxes and cylinders do), or draw the robot with prompt="skeleton".'
        )
    primitives: list[tuple[int, Any]] = []
    meshes: list[tuple[int, Any]] = []
    for name, visual in visuals:
        (primitives if visual.geometry.mesh is None else meshes).append((links.index(name), visual))
    parts = [(i, _placed(_mesh(robot, visual.geometry.mesh), visual)) for i, visual in meshes]
    room = MOST_FACES - min(LEAST_MESH_FACES, sum(len(faces) for _, (_, faces) in parts))
    simple: list[Any] = []
    for detail in DETAIL:
        simple = [(i, _placed(_primitive(visual.geometry, *detail), visual)) for i, visual in primitives]
        if sum(len(faces) for _, (_, faces) in simple) <= room:
            break
    vertices, faces, link = _together(simple)
    if parts:
        is_fine = np.isin(links, list(gripper_links(robot, urdf)))
        rich, rich_faces, rich_link = _together(parts)
        kept, kept_faces, of = collapsed(
            rich, rich_faces,
            most_faces=max(MOST_FACES - len(faces), LEAST_MESH_FACES),
            weight=np.where(is_fine[rich_link], GRIPPER_WEIGHT, 1.0),
        )  # fmt: skip
        faces = np.concatenate([faces, kept_faces + len(vertices)])
        vertices, link = np.concatenate([vertices, kept]), np.concatenate([link, rich_link[of]])
    order = np.argsort(link, kind="stable")
    place = np.argsort(order)
    return {
        "links": np.array(links),
        "vertices_m": vertices[order].astype(np.float16),
        "link": link[order].astype(np.uint8),
        "faces": place[faces[np.argsort(link[faces[:, 0]], kind="stable")]].astype(np.uint16),
    }


def _together(parts: list[Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Join (link, (vertices, faces)) into one mesh: vertices, faces, and the link of each vertex."""
    sizes = [len(vertices) for _, (vertices, _) in parts]
    shifts = np.cumsum([0, *sizes])
    vertices = np.concatenate([np.zeros((0, 3)), *(vertices for _, (vertices, _) in parts)])
    faces = [np.zeros((0, 3), np.int64), *(faces + shift for (_, (_, faces)), shift in zip(parts, shifts))]
    return vertices, np.concatenate(faces), np.repeat([i for i, _ in parts], sizes).astype(np.int64)


def _placed(solid: Any, visual: Any) -> tuple[np.ndarray, np.ndarray]:
    """A solid in its link's frame, its vertices joined."""
    if visual.origin is not None:
        solid.apply_transform(visual.origin)
    return joined(np.asarray(solid.vertices), np.asarray(solid.faces))


def _primitive(geometry: Any, sides: int, divisions: int) -> Any:
    """A box, or a cylinder or ball as a polyhedron of the same volume."""
    import trimesh

    if geometry.box is not None:
        return trimesh.creation.box(extents=geometry.box.size)
    if geometry.cylinder is not None:
        radius, length = geometry.cylinder.radius, geometry.cylinder.length
        solid = trimesh.creation.cylinder(radius=radius, height=length, sections=sides)
        wider = np.sqrt(np.pi * radius**2 * length / solid.volume)
        solid.apply_scale([wider, wider, 1.0])
        return solid
    solid = trimesh.creation.icosphere(radius=geometry.sphere.radius, subdivisions=divisions)
    solid.apply_scale(np.cbrt(4 / 3 * np.pi * geometry.sphere.radius**3 / solid.volume))
    return solid


def _mesh(robot: RobotCard, geometry: Any) -> Any:
    import trimesh

    path = mesh_path(robot, str(geometry.filename))
    solid: Any
    try:
        solid = trimesh.load(path, force="mesh")
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OSError, ImportError) as error:
        raise CardError(
            f"The mesh '{path}' of '{robot.urdf_path}' must be a readable mesh (obj, stl, ply), but is not: {error}. "
            "Export it anew."
        ) from error
    if not len(getattr(solid, "faces", ())) or not np.isfinite(solid.vertices).all() or not solid.area > 0:
        raise CardError(
            f"The mesh '{path}' of '{robot.urdf_path}' must hold triangles with an area, but holds none, or vertices "
            "that are not finite. Export it anew."
        )
    if geometry.scale is not None:
        solid.apply_scale(geometry.scale)
    return solid
