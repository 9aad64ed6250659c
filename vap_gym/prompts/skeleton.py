"""A robot as a stick figure: named key-points from its card, and the strokes that are drawn between them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from vap_gym.cards import RobotCard
from vap_gym.errors import VapError
from vap_gym.kinematics.control import RobotState
from vap_gym.kinematics.gripper import gripper_joint_values
from vap_gym.kinematics.urdf import load_chain

DROP_THICKNESS = 0.45
"""The drop line's width as a share of a bone's."""

FOOT_THICKNESS = 1.6
"""The diameter of the dot at the drop line's foot as a share of a bone's width."""


@dataclass(frozen=True, kw_only=True)
class Strokes:
    """What is drawn between points: S lines from point `start` to point `end` (a dot where they are the same point).

    Widths are shares of a bone's least width in the picture, `radius_m` is half a bone's width in the world (0: a mere
    line); colours are in [0, 1]. `is_ground` marks the drop line and its foot, which lie
    below every bone.
    """

    points_world: Float[Tensor, "B N 3"]
    start: Int64[Tensor, "S"]
    end: Int64[Tensor, "S"]
    width: Float[Tensor, "S"]
    radius_m: Float[Tensor, "S"]
    colour: Float[Tensor, "S 3"]
    is_ground: Bool[Tensor, "S"]


class Skeleton:
    """The stick figure of one robot: settings only, of one dtype and device. P key-points, as in `keypoint_names`.

    Without its height cue no drop line to the table is drawn, nor its foot: an ablation.
    """

    def __init__(
        self,
        robot: RobotCard,
        *,
        height_cue: bool = True,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        card = robot.skeleton
        self.robot = robot
        self.keypoint_names = tuple(point.name for point in card.keypoints)
        self.bones = tuple((bone.start, bone.end) for bone in card.bones)
        self.links = tuple(dict.fromkeys(point.link for point in card.keypoints))
        self._chain = load_chain(robot).subchain(self.links).to(dtype, device)
        named = (*robot.arm_joints, *(joint.name for joint in robot.gripper.joints))
        index = {name: i for i, name in enumerate(self.keypoint_names)}
        start, end = [index[bone.start] for bone in card.bones], [index[bone.end] for bone in card.bones]
        width, colour = [1.0] * len(start), [bone.colour_rgb for bone in card.bones]
        radius = [bone.radius_m for bone in card.bones]
        ground = [False] * len(start)
        drop_from = card.drop_from if height_cue else ()
        if drop_from:  # two more points: the top of the drop line, and its foot
            top, foot = len(index), len(index) + 1
            start, end = [top, foot, *start], [foot, foot, *end]
            width, colour = [DROP_THICKNESS, FOOT_THICKNESS, *width], [card.drop_colour_rgb] * 2 + colour
            radius = [0.0, 0.0, *radius]
            ground = [True, True, *ground]

        def indices(values: Sequence[int]) -> Int64[Tensor, "_"]:
            return torch.tensor(values, dtype=torch.int64, device=device)

        def figures(values: Sequence[object]) -> Float[Tensor, "..."]:
            return torch.tensor(values, dtype=dtype, device=device)

        self._joint_order = indices([named.index(name) for name in self._chain.joint_names])
        self._is_arm_only = self._chain.joint_names == robot.arm_joints
        self._link_of_point = indices([self.links.index(point.link) for point in card.keypoints])
        self._offset_m = figures([point.offset_m for point in card.keypoints])
        self._per_closing_m = figures([point.offset_per_closing_m for point in card.keypoints])
        self._drop_from = indices([index[name] for name in drop_from])
        self._start, self._end = indices(start), indices(end)
        self._width, self._radius_m, self._colour = figures(width), figures(radius), figures(colour) / 255
        self._is_ground = torch.tensor(ground, device=device)

    def keypoints(self, state: RobotState) -> Float[Tensor, "*batch P 3"]:
        """Return the key-points of robot states by forward kinematics, in metres in the robot's base frame."""
        return self.at_joints(state.q, state.gripper)

    def at_joints(self, q: Float[Tensor, "*batch n"], gripper: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch P 3"]:
        """Return the key-points at arm joints [rad] and a closedness (0 open .. 1 closed), as `keypoints` does."""
        if not self._is_arm_only:
            q = torch.cat([q, gripper_joint_values(self.robot.gripper, gripper)], dim=-1)
            q = q.index_select(-1, self._joint_order)
        return self.place(self._chain.links(q), gripper)

    def place(
        self, T_base_links: Float[Tensor, "*batch L 4 4"], gripper: Float[Tensor, "*batch"]
    ) -> Float[Tensor, "*batch P 3"]:
        """Return the key-points where the poses of `self.links` are known; `gripper` is 0 open .. 1 closed, clipped.

        Where the whole figure hangs on the tip link, `place(T_base_tip[..., None, :, :], gripper)` does.
        """
        if T_base_links.shape[-3:] != (len(self.links), 4, 4):
            raise VapError(
                f"poses must have shape (*batch, {len(self.links)}, 4, 4), one per link ({', '.join(self.links)}), "
                f"got {tuple(T_base_links.shape)}."
            )
        p_link = self._offset_m + gripper.clamp(0, 1)[..., None, None] * self._per_closing_m
        if len(self.links) == 1:
            return p_link @ T_base_links[..., 0, :3, :3].mT + T_base_links[..., 0, None, :3, 3]
        T_base_link = T_base_links.index_select(-3, self._link_of_point)
        return (T_base_link[..., :3, :3] @ p_link[..., None])[..., 0] + T_base_link[..., :3, 3]

    def strokes(self, keypoints_world: Float[Tensor, "B P 3"]) -> Strokes:
        """Return the lines to draw: the drop line and its foot on the table, then the card's bones."""
        points = keypoints_world
        if len(self._drop_from):
            top = points.index_select(1, self._drop_from).mean(dim=1, keepdim=True)
            foot = torch.cat([top[..., :2], torch.full_like(top[..., 2:], self.robot.skeleton.drop_to_z_m)], dim=-1)
            points = torch.cat([points, top, foot], dim=1)
        return Strokes(
            points_world=points,
            start=self._start,
            end=self._end,
            width=self._width,
            radius_m=self._radius_m,
            colour=self._colour,
            is_ground=self._is_ground,
        )
