"""A URDF made a robot folder: card, trimmed URDF, meshes, a picture, written whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import numpy as np

from vap_gym.cards import RobotCard, load_robot
from vap_gym.drafting.card import card_text
from vap_gym.drafting.geometry import gather_meshes, surfaces
from vap_gym.drafting.guess import Figure, closing_of, figure_of, fingers_of, finite_limits, home_pose, pose_of
from vap_gym.drafting.parts import Parts, choose_parts
from vap_gym.drafting.picture import check_picture
from vap_gym.drafting.tree import read_tree, set_origin, trimmed
from vap_gym.errors import UrdfError, VapError
from vap_gym.geometry import Camera
from vap_gym.kinematics import load_chain, read_urdf
from vap_gym.kinematics.chain import Chain
from vap_gym.photo import read_camera
from vap_gym.pictures import write_png
from vap_gym.prompts.body import sampled_body
from vap_gym.prompts.simplified import simplified_mesh

PICTURE, MESH, BODY = "check.png", "mesh.npz", "body.npz"


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A robot folder that was written: its card, the picture to check it by, and what was guessed."""

    card: RobotCard
    picture: Path
    notes: tuple[str, ...]


def draft_robot(
    urdf: Path,
    out: Path,
    *,
    tip: str | None = None,
    base: str | None = None,
    gripper_base: str | None = None,
    name: str | None = None,
    camera: Camera | None = None,
    replace: bool = False,
) -> Draft:
    """Write a folder that `load_robot` and `gym.make` take: robot.toml, robot.urdf, its meshes, body.npz, mesh.npz,
    check.png.

    Args:
        urdf: any URDF; xacro files must be expanded first.
        out: the folder to write; it must not be there yet, or with `replace` be a robot's.
        tip: the link whose pose Cartesian actions move. None: where the only arm ends.
        base: the link that becomes the robot's base frame; what does not hang on it is left out. None: the root.
        gripper_base: the link that the fingers hang on. None: the tip, or a link that is rigid with it.
        name: the robot's. None: the URDF's own.
        camera: to look through in the picture, in the base frame. None: one that sees the whole robot.

    Raises:
        UrdfError: the URDF, or a link named here, is not as it must be.
        VapError: the folder is there already, or a name that cannot be a folder's.
    """
    urdf, out = Path(urdf), Path(out)
    tree = read_tree(urdf)
    called = name or "".join(letter if letter.isalnum() else "_" for letter in tree.name).strip("_") or "robot"
    if not called.replace("_", "").replace("-", "").isalnum():
        raise VapError(f"A robot's name is made of letters, digits, - and _, got '{called}'. Give one with --name.")
    if out.exists() and not replace:
        raise VapError(f"'{out}' is there already. Name another folder with --out, or replace it with --replace.")
    if out.exists() and not (out / "robot.toml").is_file():
        given = "a folder without robot.toml" if out.is_dir() else "a file"
        raise VapError(f"--replace takes the place of a robot's folder only, got '{out}', {given}. Name another one.")
    parts = choose_parts(tree, base=base, tip=tip, gripper_base=gripper_base)
    robot = trimmed(tree, base=parts.base, driven=[*parts.arm, *parts.gripper], name=called)
    with _building(out) as folder:
        notes = [*parts.notes, *gather_meshes(robot, urdf, folder)]
        chain = _written(robot, folder, urdf)
        text, more = _card(chain, robot, parts, folder, called, urdf)
        (folder / "robot.toml").write_text(text, encoding="utf-8")
        card = load_robot(folder)
        load_chain(card)
        if robot.find("link/visual") is not None:
            np.savez_compressed(folder / MESH, **simplified_mesh(card))  # type: ignore[arg-type]
            np.savez_compressed(folder / BODY, **sampled_body(card))  # type: ignore[arg-type]
            told = (
                f'urdf = "robot.urdf"\nbody = "{BODY}"                         # its shapes as points\n'
                f'mesh = "{MESH}"                         # the same as few triangles\n'
            )
            (folder / "robot.toml").write_text(text.replace('urdf = "robot.urdf"\n', told), encoding="utf-8")
            card = load_robot(folder)
        write_png(folder / PICTURE, check_picture(card, camera))
        notes += more
    return Draft(card=load_robot(out), picture=out / PICTURE, notes=tuple(notes))


def read_camera_file(path: Path, view: str | None = None) -> Camera:
    """Read one camera of a JSON file: a table as `read_camera` takes it, or several of them by name (cameras.json).

    Raises:
        VapError: no such file, no JSON, a view that is not there, or figures that make no camera.
    """
    try:
        table = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise VapError(
            f"The camera file '{path}' must be JSON with K, image_size_wh and a pose, got: {error}. "
            "Write one with vap-gym calibrate."
        ) from error
    if isinstance(table, dict) and "K" not in table:
        views = {key: value for key, value in table.items() if isinstance(value, dict) and "K" in value}
        if (len(views) != 1) if view is None else (view not in views):
            given = "no view was named" if view is None else f"'{view}' was asked for"
            raise VapError(
                f"'{path}' holds the cameras {', '.join(views) or 'none'}, and {given}. Name one with --view."
            )
        table = views[view] if view is not None else next(iter(views.values()))
    return read_camera(table)


@contextmanager
def _building(out: Path) -> Iterator[Path]:
    """Give a folder beside `out`, moved there when the block ends well; else nothing is left of it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
        if out.exists():
            shutil.rmtree(out)
        folder.replace(out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _written(robot: Element, folder: Path, source: Path) -> Chain:
    """Write robot.urdf and read it back; errors name the user's own file."""
    path = folder / "robot.urdf"
    ElementTree.indent(robot)
    ElementTree.ElementTree(robot).write(path, encoding="utf-8", xml_declaration=True)
    try:
        return read_urdf(path)
    except UrdfError as error:
        raise UrdfError(str(error).replace(str(path), str(source))) from error


def _card(chain: Chain, robot: Element, parts: Parts, folder: Path, name: str, source: Path) -> tuple[str, list[str]]:
    """Guess what the URDF does not say; return the card's text and notes. May add a link `tool_centre` to the URDF."""
    tree = read_tree(folder / "robot.urdf")
    shape = surfaces(robot, folder, source)
    home = home_pose(chain, tree, parts, shape)
    low, high = finite_limits(chain)
    middle = (low + high)[len(parts.arm) :] / 2
    ways = fingers_of(tree, parts, pose_of(chain, np.concatenate([home, middle])), shape)
    closing = closing_of(chain, tree, parts, home, ways, shape)
    notes = list(closing.notes)
    pose = pose_of(chain, np.concatenate([home, closing.opened]))
    figure = figure_of(chain, tree, parts, pose, ways, shape)
    tool = parts.tool or parts.tip
    if ways and not parts.tool:
        tool = _add_tool(robot, chain, parts, figure, np.concatenate([home, closing.closed]))
        notes.append(f"tool_link: {tool}, added between the ends of the closed fingers")
        _written(robot, folder, source)
    if not shape:
        notes.append("no link has a shape: bones are as wide as a share of the reach")
    return card_text(name, source, parts, chain, home, closing, figure, tool, tree), notes


def _add_tool(robot: Element, chain: Chain, parts: Parts, figure: Figure, q_closed: np.ndarray) -> str:
    """Add a link between the ends of the closed fingers, with the axes of the link that they hang on."""
    pose = pose_of(chain, q_closed)
    points = {name: (link, offset) for name, link, offset in figure.points}
    ends = [pose.links[points[end][0]] @ (*points[end][1], 1.0) for end in figure.ends]
    T = np.eye(4)
    T[:3, 3] = (np.linalg.inv(pose.links[parts.gripper_base]) @ np.mean(ends, axis=0))[:3]
    name = next(
        each for each in ("tool_centre", *(f"tool_centre_{i}" for i in range(2, 99))) if each not in chain.link_names
    )
    ElementTree.SubElement(robot, "link", {"name": name})
    joint = ElementTree.SubElement(robot, "joint", {"name": f"{name}_mount", "type": "fixed"})
    ElementTree.SubElement(joint, "parent", {"link": parts.gripper_base})
    ElementTree.SubElement(joint, "child", {"link": name})
    set_origin(joint, T)
    return name
