"""What stands in a scene besides the robot: table, goal mark, things, a cabinet with a drawer; built in PyBullet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from vap_gym.sim.odd import PREFIX, Solid, odd_solids
from vap_gym.sim.spec import GOAL_COLOUR, HANDLE_M, PALETTE, DrawerSpec, ObjectSpec, SceneSpec
from vap_gym.sim.textures import table_texture

WALL_M = 0.012  # of cabinets and drawers
DRAWER_FRICTION_N = 2.0


class Builder:
    """Builds into one PyBullet client; `folder` is for files that PyBullet has to read."""

    def __init__(self, bullet: Any, client: int, folder: Path) -> None:
        self._bullet, self._client, self._folder = bullet, client, folder
        self._built = 0

    def table(self, spec: SceneSpec) -> int:
        """Build the table, which is white until `cover` is called; return its body."""
        x, y = spec.table_centre_m
        return self._box((*spec.table_half_m, 0.02), (1, 1, 1), position=(x, y, spec.table_z_m - 0.02), friction=0.8)

    def cover(self, table: int, spec: SceneSpec) -> None:
        """Give a table its texture, which only pictures need; it is most of what building a scene takes."""
        b, c = self._bullet, self._client
        self._built += 1  # PyBullet caches textures by file name, so every table needs a name of its own
        picture = self._folder / f"table_{self._built}.png"
        texture_rgb = table_texture(spec.table_texture, spec.table_colours, spec.seed)
        Image.fromarray(texture_rgb).save(picture, compress_level=1)
        texture = b.loadTexture(str(picture), physicsClientId=c)
        picture.unlink()
        b.changeVisualShape(table, -1, textureUniqueId=texture, physicsClientId=c)

    def goal(self, spec: SceneSpec) -> int:
        """Build the mark that a thing is to be pushed to; return its body, −1 where the task has none."""
        if spec.task != "push":
            return -1
        b, c = self._bullet, self._client
        mark = b.createVisualShape(
            b.GEOM_CYLINDER, radius=0.03, length=0.002, rgbaColor=(*GOAL_COLOUR, 1), physicsClientId=c
        )
        return int(b.createMultiBody(0, -1, mark, (*spec.goal_xy_m, spec.table_z_m + 0.0012), physicsClientId=c))

    def _box(self, half: Any, colour: Any, *, position: Any, friction: float) -> int:
        b, c = self._bullet, self._client
        shape = b.createCollisionShape(b.GEOM_BOX, halfExtents=half, physicsClientId=c)
        visual = b.createVisualShape(b.GEOM_BOX, halfExtents=half, rgbaColor=(*colour, 1), physicsClientId=c)
        body = b.createMultiBody(0.0, shape, visual, position, (0, 0, 0, 1), physicsClientId=c)
        b.changeDynamics(body, -1, lateralFriction=friction, physicsClientId=c)
        return int(body)

    def thing(self, item: ObjectSpec, table_z_m: float) -> int:
        """Build a thing that stands, or lies, on the table; return its body."""
        b, c = self._bullet, self._client
        hx, hy, hz = item.half_extents_m
        colour = (*PALETTE[item.colour], 1.0)
        place = (*item.xy_m, (hx if item.lying else hz) + 0.001 + table_z_m)
        turn = b.getQuaternionFromEuler((0, math.pi / 2 if item.lying else 0, item.yaw_rad))
        if item.shape in ("cylinder", "disc", "bottle"):
            shape = b.createCollisionShape(b.GEOM_CYLINDER, radius=hx, height=2 * hz, physicsClientId=c)
            visual = b.createVisualShape(b.GEOM_CYLINDER, radius=hx, length=2 * hz, rgbaColor=colour, physicsClientId=c)
        elif item.shape == "ball":
            shape = b.createCollisionShape(b.GEOM_SPHERE, radius=hx, physicsClientId=c)
            visual = b.createVisualShape(b.GEOM_SPHERE, radius=hx, rgbaColor=colour, physicsClientId=c)
        elif item.shape.startswith(PREFIX):
            shape, visual = self._union(odd_solids(item.shape, item.half_extents_m), colour)
        elif item.shape == "cross":
            bars = [(hx, hy, hz), (hy, hx, hz)]
            shape = b.createCollisionShapeArray([b.GEOM_BOX] * 2, halfExtents=bars, physicsClientId=c)
            visual = b.createVisualShapeArray(
                [b.GEOM_BOX] * 2, halfExtents=bars, rgbaColors=[colour] * 2, physicsClientId=c
            )
        else:
            shape = b.createCollisionShape(b.GEOM_BOX, halfExtents=(hx, hy, hz), physicsClientId=c)
            visual = b.createVisualShape(b.GEOM_BOX, halfExtents=(hx, hy, hz), rgbaColor=colour, physicsClientId=c)
        body = b.createMultiBody(item.mass_kg, shape, visual, place, turn, physicsClientId=c)
        b.changeDynamics(
            body, -1, lateralFriction=item.friction, rollingFriction=0.002, spinningFriction=0.002,
            linearDamping=0.1, angularDamping=0.2, physicsClientId=c,
        )  # fmt: skip
        if item.shape == "cross" or item.shape.startswith(PREFIX):
            b.changeVisualShape(body, -1, rgbaColor=colour, physicsClientId=c)
        return int(body)

    def _union(self, solids: Sequence[Solid], colour: tuple[float, ...]) -> tuple[int, int]:
        """The collision and the visual shape of several solids as one."""
        b, c = self._bullet, self._client
        kinds = [{"box": b.GEOM_BOX, "cylinder": b.GEOM_CYLINDER, "ball": b.GEOM_SPHERE}[s.kind] for s in solids]
        radii, tall = [s.half_m[0] for s in solids], [2 * s.half_m[2] for s in solids]
        half, at = [list(s.half_m) for s in solids], [list(s.at_m) for s in solids]
        shape = b.createCollisionShapeArray(
            kinds, radii=radii, halfExtents=half, lengths=tall, collisionFramePositions=at, physicsClientId=c
        )
        visual = b.createVisualShapeArray(
            kinds, radii=radii, halfExtents=half, lengths=tall, rgbaColors=[colour] * len(kinds),
            visualFramePositions=at, physicsClientId=c,
        )  # fmt: skip
        return int(shape), int(visual)

    def cabinet(self, drawer: DrawerSpec) -> int:
        """Build a cabinet with a drawer, opened as far as it is at first; return its body. Joint 0 is the opening."""
        b, c = self._bullet, self._client
        path = self._folder / "cabinet.urdf"
        path.write_text(_cabinet_urdf(drawer), encoding="utf-8")
        body = b.loadURDF(str(path), basePosition=drawer.front_m, useFixedBase=True, physicsClientId=c)
        b.resetJointState(body, 0, drawer.opening_m, physicsClientId=c)
        b.setJointMotorControl2(body, 0, b.VELOCITY_CONTROL, force=DRAWER_FRICTION_N, physicsClientId=c)
        b.changeDynamics(body, 0, lateralFriction=0.6, physicsClientId=c)
        return int(body)


def _cabinet_urdf(drawer: DrawerSpec) -> str:
    """Origin: the centre of the closed front. The drawer slides along −x."""
    depth, width, height = drawer.size_m
    red, green, blue = drawer.colour
    shell = [  # two sides and a bottom, around the drawer with a gap
        ((depth / 2, s * (width / 2 + 0.02), 0.0), (depth, 0.02, height + 0.05)) for s in (-1, 1)
    ] + [((depth / 2, 0.0, -(height / 2 + 0.02)), (depth, width + 0.06, 0.02))]
    box = [
        ((WALL_M / 2, 0.0, 0.0), (WALL_M, width, height)),
        ((depth / 2, 0.0, -height / 2 + WALL_M), (depth - WALL_M, width - 0.04, WALL_M)),
        ((depth - WALL_M, 0.0, -height / 6), (WALL_M, width - 0.04, 0.6 * height)),
        *(((depth / 2, s * (width / 2 - 0.02), -height / 6), (depth - WALL_M, WALL_M, 0.6 * height)) for s in (-1, 1)),
    ]
    handle = [
        ((-HANDLE_M, 0.0, 0.0), (0.014, 0.12, 0.014)),
        *(((-HANDLE_M / 2, s * 0.055, 0.0), (HANDLE_M, 0.01, 0.01)) for s in (-1, 1)),
    ]
    dark = (0.35 * red, 0.35 * green, 0.35 * blue)
    heavy, light = (
        f'<inertial><mass value="{m}"/><inertia ixx="{i}" ixy="0" ixz="0" iyy="{i}" iyz="0" izz="{i}"/></inertial>'
        for m, i in ((20, 1), (1.5, 0.02))
    )
    return f"""<robot name="cabinet">
<link name="shell">{_boxes(shell, dark)}{heavy}</link>
<link name="drawer">{_boxes(box, drawer.colour)}{_boxes(handle, (0.2, 0.2, 0.22))}{light}</link>
<joint name="opening" type="prismatic"><parent link="shell"/><child link="drawer"/><axis xyz="-1 0 0"/>
<limit lower="0" upper="{drawer.travel_m}" effort="50" velocity="1"/><dynamics damping="4" friction="0"/></joint>
</robot>"""


def _boxes(boxes: list[Any], colour: tuple[float, ...]) -> str:
    text = ""
    for place, size in boxes:
        what = (
            f'<origin xyz="{" ".join(map(str, place))}"/><geometry><box size="{" ".join(map(str, size))}"/></geometry>'
        )
        name = "c" + "_".join(f"{100 * v:.0f}" for v in colour)
        paint = f'<material name="{name}"><color rgba="{" ".join(map(str, colour))} 1"/></material>'
        text += f"<visual>{what}{paint}</visual><collision>{what}</collision>"
    return text
