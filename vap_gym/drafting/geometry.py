"""The surfaces of a URDF's links as weighted points, and its mesh files gathered into one folder."""

from __future__ import annotations

import copy
import shutil
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np
from jaxtyping import Float

from vap_gym.drafting.tree import origin
from vap_gym.errors import UrdfError

_FEWEST = 200
"""Points on a link's surface, at least: large triangles are divided."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Surface:
    """Points of a link's surface in its frame, each standing for some area."""

    points_m: Float[np.ndarray, "N 3"]
    area_m2: Float[np.ndarray, " N"]


def gather_meshes(robot: Element, source: Path, folder: Path) -> list[str]:
    """Copy the mesh files that a <robot> names into folder/meshes and let it name the copies; return what was left out.

    `package://name/path` is looked for as name/path beside the URDF and in every folder above it, then as path alone;
    package://pybullet_data also in the pybullet package.
    Meshes that are not there or cannot be read are taken out of the robot. A robot that has no <visual> at all is given
    its <collision> shapes as such.
    """
    notes: list[str] = []
    taken: dict[Path, str] = {}
    for link in robot.findall("link"):
        for tag in ("visual", "collision"):
            for part in link.findall(tag):
                mesh = part.find("geometry/mesh")
                if mesh is None:
                    continue
                name = str(mesh.get("filename"))
                found = find_mesh(name, source)
                trouble = f"{name} is missing" if found is None else _trouble(found)
                if found is None or trouble:
                    link.remove(part)
                    notes.append(f"{tag} of {link.get('name')} left out: {trouble}")
                    continue
                if found not in taken:
                    taken[found] = _free_name(found.name, set(taken.values()))
                    (folder / "meshes").mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(found, folder / "meshes" / taken[found])
                mesh.set("filename", f"meshes/{taken[found]}")
    if robot.find("link/visual") is None and robot.find("link/collision") is not None:
        for link in robot.findall("link"):
            for part in link.findall("collision"):
                shown = copy.deepcopy(part)
                shown.tag = "visual"
                link.append(shown)
        notes.append("no <visual> at all: the <collision> shapes are shown")
    return notes


def find_mesh(name: str, source: Path) -> Path | None:
    """Return the file that a URDF at `source` means by a mesh's name, or None."""
    plain = name.removeprefix("file://")
    is_package = plain.startswith(("package://", "model://"))
    plain = plain.split("://", 1)[1] if is_package else plain
    here = source.resolve().parent
    inside = plain.split("/", 1)[1] if is_package and "/" in plain else plain
    places = [here / plain, *(above / plain for above in here.parents)] if is_package else [here / plain]
    places += [here / inside, *(above / inside for above in here.parents[:3])] if is_package else []
    if is_package and plain.startswith("pybullet_data/"):
        spec = find_spec("pybullet_data")
        places += [Path(spec.origin).parent / inside] if spec is not None and spec.origin else []
    return next((place for place in places if place.is_file()), None)


def _trouble(path: Path) -> str:
    """Why a mesh file cannot be used; "" where it can."""
    import trimesh

    try:
        solid: Any = trimesh.load(path, force="mesh")
    except Exception as error:  # readers of a dozen formats raise what they like
        return f"{path.name} cannot be read: {error or type(error).__name__}"
    if not len(getattr(solid, "faces", ())) or not np.isfinite(solid.vertices).all() or not solid.area > 0:
        return f"{path.name} holds no triangles with an area"
    return ""


def _free_name(name: str, taken: set[str]) -> str:
    stem, suffix = Path(name).stem, Path(name).suffix
    names = [name, *(f"{stem}_{i}{suffix}" for i in range(2, len(taken) + 3))]
    lower = {other.lower() for other in taken}
    return next(each for each in names if each.lower() not in lower)


def surfaces(robot: Element, folder: Path, source: Path) -> dict[str, Surface]:
    """Return the surface of each link that has <visual> shapes, or else <collision> shapes; meshes lie in `folder`.

    Raises:
        UrdfError: sizes or origins that are no numbers, or not as many as they must be.
    """
    import trimesh

    found = {}
    for link in robot.findall("link"):
        parts = []
        for element in link.findall("visual") or link.findall("collision"):
            geometry = element.find("geometry")
            try:
                part = None if geometry is None else _solid(geometry, folder)
                if part is not None:
                    part.apply_transform(origin(element))
                    parts.append(part)
            except ValueError as error:
                raise UrdfError(
                    f"{source}: link '{link.get('name')}': a shape's size, scale and origin must be numbers, as many "
                    f"as a URDF has there, but: {error}. Correct that <{element.tag}>."
                ) from error
        if parts:
            solid: Any = trimesh.util.concatenate(parts)
            while len(solid.faces) < _FEWEST:
                solid = solid.subdivide()
            found[str(link.get("name"))] = Surface(
                points_m=np.asarray(solid.triangles_center, float), area_m2=np.asarray(solid.area_faces, float)
            )
    return found


def _solid(geometry: Element, folder: Path) -> Any:
    import trimesh

    box, cylinder, sphere, mesh = (geometry.find(tag) for tag in ("box", "cylinder", "sphere", "mesh"))
    if box is not None:
        return trimesh.creation.box(extents=_numbers(box.get("size", "0 0 0")))
    if cylinder is not None:
        return trimesh.creation.cylinder(
            radius=float(cylinder.get("radius", "0")), height=float(cylinder.get("length", "0"))
        )
    if sphere is not None:
        return trimesh.creation.icosphere(radius=float(sphere.get("radius", "0")), subdivisions=2)
    if mesh is None:
        return None
    solid = trimesh.load(folder / str(mesh.get("filename")), force="mesh")
    solid.apply_scale(_numbers(mesh.get("scale", "1 1 1")))
    return solid


def _numbers(text: str) -> Float[np.ndarray, "3"]:
    found = np.array(text.split(), float)
    if found.shape != (3,):
        raise ValueError(f"'{text}' must be three numbers")
    return found
