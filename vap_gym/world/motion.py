"""How things move when a robot touches them: learned in the gripper's frame, remembered in the state.

A push or a grasp looks the same wherever on the table it happens and whichever way the gripper is turned, so the
network is told all places as the gripper sees them. It never sees a pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any, NamedTuple

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from vap_gym.rotations import rotation_from_rotvec
from vap_gym.world.layers import listed
from vap_gym.world.touching import TOLD, touch
from vap_gym.world.views import link_poses

PLACE_M, SIZE_M, STEP_M, STEP_RAD = 0.1, 0.03, 0.02, 0.2  # what the network sees or says as 1
MOST_M, MOST_RAD = 0.15, 1.5  # nothing moves further in a step
RESTS = 0.6  # a thing that moves with less than this probability does not: below it, one hovered over creeps away


class ThingState(NamedTuple):
    """Where K things are in each of B slots, in the robot's base frame, and what is remembered of them."""

    there: Bool[Tensor, "B K"]
    place_m: Float[Tensor, "B K 3"]
    turn: Float[Tensor, "B K 3 3"]  # since the first picture
    shape: Float[Tensor, "B K 6"]  # as in the first picture, see `things.Found`
    step: Float[Tensor, "B K 6"]  # the last step: m, and a rotation vector in rad
    memory: Float[Tensor, "B K M"]
    grip: Float[Tensor, "B G 12"]  # where the gripper's links were last, see `ThingMotion.grip`


class Move(NamedTuple):
    """What the network says of one step: how surely each thing moves (logits), how far (m) and how it turns (rad)."""

    moves: Float[Tensor, "B K"]
    way_m: Float[Tensor, "B K 3"]
    turn_rad: Float[Tensor, "B K 3"]


class ThingMotion(ModelMixin, ConfigMixin):
    """A recurrent network per thing: how it moves in one step.

    A gripper is told by G places on it, its base's first. One network serves several robots, and is told which of
    them it is; an object speaks of one of them: the first, or the one that `of` chose.

    Args:
        robots: their names.
        gripper: which links the places of each robot's gripper are on: a list of lists (one list for one robot).
        base, links: which link is a robot's base, of how many.
        memory, width: of the recurrent layer, and of the others.
        touch_points: points around each place, whose nearness to things the network is told (`touching.touch`): what
            a finger comes down on, and what slips out of it, hangs on that. 0: it is told places alone.
    """

    centres_m: Tensor
    touch_m: Tensor

    @register_to_config
    def __init__(
        self,
        gripper: Sequence[Any] = (8, 9, 10, 11, 12, 13, 14, 15, 16),
        base: int | Sequence[int] = 0,
        links: int | Sequence[int] = 17,
        memory: int = 64,
        width: int = 192,
        robots: Sequence[str] = ("panda_robotiq",),
        touch_points: int = 0,
    ) -> None:
        super().__init__()
        several = [gripper] if isinstance(gripper[0], int) else gripper
        self.grippers = tuple(tuple(int(link) for link in one) for one in several)
        self.bases, self.link_counts = listed(base), listed(links)
        self.names, self.current = tuple(robots), 0
        places = len(self.grippers[0])
        if {len(self.grippers), len(self.bases), len(self.link_counts)} != {len(robots)} or any(
            len(one) != places for one in self.grippers
        ):
            raise ValueError(f"gripper, base and links must be told of {len(robots)} robots, with as many places each.")
        self.register_buffer("centres_m", torch.zeros(len(robots) * places, 3))  # in the frames of their links
        if touch_points:  # from the places, in the frames of their links
            self.register_buffer("touch_m", torch.zeros(len(robots) * places, touch_points, 3))
        mine = 3 + 3 + 6 + 3 + 3 + 1 + 4 + 2  # see `_seen`
        grip = 3 * (places - 1) * 2 + 3 + 1 + self._told  # see `_grip`
        others = 3 + 4 + 3 + 1 + 1  # see `_pushed`
        touched = TOLD * places if touch_points else 0
        self.enter = nn.Sequential(
            nn.Linear(mine + grip + touched, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )
        self.recall = nn.GRUCell(width, memory)
        self.leave = nn.Sequential(nn.Linear(width + memory, width), nn.SiLU(), nn.Linear(width, 7))
        self.meet = nn.Sequential(nn.Linear(others, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU())
        self.give_way = nn.Sequential(nn.Linear(64 + mine + 7, width), nn.SiLU(), nn.Linear(width, 7))
        with torch.no_grad():
            for last in (self.leave[-1], self.give_way[-1]):
                assert isinstance(last, nn.Linear)
                last.weight.mul_(0.1)
                last.bias.zero_()

    @property
    def _told(self) -> int:
        """How many figures say which robot it is."""
        return len(self.names) if len(self.names) > 1 else 0

    @property
    def places(self) -> Float[Tensor, "G 3"]:
        """Where the gripper's places are, in the frames of their links."""
        count = len(self.grippers[0])
        mine: Tensor = self.centres_m[self.current * count : (self.current + 1) * count]
        return mine

    def of(self, robot: str) -> ThingMotion:
        """Return the same weights, speaking of another robot. Raises ValueError for one that is not known."""
        other = copy(self)
        other.current = self.names.index(robot)
        return other

    def for_links(self, gripper: tuple[int, ...], links: int) -> ThingMotion:
        """Return the first robot's network for a robot of other links: `gripper` are those that its own were, in order.

        Without any it knows no robot. Raises ValueError for another number of them.
        """
        if gripper and len(gripper) != len(self.grippers[0]):
            raise ValueError(f"gripper must be {len(self.grippers[0])} links, got {len(gripper)}.")
        other = copy(self)
        other.current = 0
        other.grippers = (gripper or self.grippers[0], *self.grippers[1:])
        other.link_counts = (links if gripper else -1, *self.link_counts[1:])
        return other

    def knows(self, views: Float[Tensor, "B L 3 4"]) -> bool:
        """Whether these are views of a robot with so many links."""
        return views.shape[1] == self.link_counts[self.current]

    def grip(self, views: Float[Tensor, "B L 3 4"]) -> Float[Tensor, "B G 12"]:
        """Return where the gripper's G places are in the base frame, and the axes of their links."""
        turn, place = link_poses(views, self.bases[self.current], self.grippers[self.current])
        middle = (turn @ self.places[:, :, None])[..., 0] + place
        return torch.cat([middle, turn.flatten(2)], -1)

    def begin(
        self,
        there: Bool[Tensor, "B K"],
        place_m: Float[Tensor, "B K 3"],
        shape: Float[Tensor, "B K 6"],
        grip: Float[Tensor, "B G 12"],
    ) -> ThingState:
        """Return the state of things at rest."""
        B, K = there.shape
        return ThingState(
            there=there,
            place_m=place_m,
            turn=torch.eye(3, device=place_m.device).expand(B, K, 3, 3).clone(),
            shape=shape,
            step=place_m.new_zeros(B, K, 6),
            memory=place_m.new_zeros(B, K, int(self.config["memory"])),
            grip=grip,
        )

    def forward(self, state: ThingState, grip: Float[Tensor, "B G 12"]) -> tuple[ThingState, Move]:
        """Return the things one step later, when the gripper's links are at `grip`, and what was said of them."""
        frame = grip[:, 0, 3:].unflatten(-1, (3, 3))  # R_base_gripper
        mine, held = self._seen(state, grip, frame), self._grip(state, grip, frame)
        there = state.there  # rows of nothing, mostly half of all, are left out
        told = torch.cat([mine, held[:, None].expand(-1, mine.shape[1], -1)], -1)[there]
        if self.config["touch_points"]:
            told = torch.cat([told, self._touched(state, grip, frame)], -1)
        x = self.enter(told)
        recalled = self.recall(x, state.memory[there])
        memory = state.memory.masked_scatter(there[..., None], recalled.type_as(state.memory))
        alone = self.leave(torch.cat([x, recalled], -1))
        said = spread(alone + self._pushed(state, frame, mine, spread(alone, there)), there)
        moves, way, turn = said.split([1, 3, 3], -1)
        share = moves.sigmoid() * state.there[..., None]
        share = share if self.training else share * (share > RESTS)
        way, turn = (
            share * most * torch.tanh(x * usual / most) @ frame.mT
            for x, usual, most in ((way, STEP_M, MOST_M), (turn, STEP_RAD, MOST_RAD))
        )
        following = state._replace(
            place_m=state.place_m + way,
            turn=rotation_from_rotvec(turn) @ state.turn,
            step=torch.cat([way, turn], -1),
            memory=memory,
            grip=grip,
        )
        return following, Move(moves=moves[..., 0], way_m=way, turn_rad=turn)

    def follow(self, state: ThingState, grip: Float[Tensor, "B G 12"], steps: int) -> tuple[ThingState, Move]:
        """Return the things after so many steps in which the gripper's links go evenly to `grip`, and what was said of
        the last one, as surely as of the surest.

        That is a frame of a robot whose step is as long as so many of the network's (`WorldModel.motion_steps`).
        """
        surest: Tensor | None = None
        for left in range(steps, 0, -1):
            state, move = self(state, torch.lerp(state.grip, grip, 1.0 / left))
            surest = move.moves if surest is None else torch.maximum(move.moves, surest)
        assert surest is not None
        return state, move._replace(moves=surest)

    def _seen(self, state: ThingState, grip: Tensor, frame: Tensor) -> Tensor:
        """Of each thing, in the gripper's frame: where it is, and was before the gripper moved; its last step; which
        ways are up for the world and for it; how high it is; its shape."""
        before = state.grip[:, 0, 3:].unflatten(-1, (3, 3))
        place = (state.place_m - grip[:, :1, :3]) @ frame
        past = (state.place_m - state.grip[:, :1, :3]) @ before
        step = torch.cat([state.step[..., :3] @ frame / STEP_M, state.step[..., 3:] @ frame / STEP_RAD], -1)
        up = frame[:, None, 2].expand(-1, place.shape[1], -1)
        own_up = state.turn[..., 2] @ frame
        high = state.place_m[..., 2:] / SIZE_M
        # The longer side's direction: turned with the thing, told from the gripper's x axis (all seen from above).
        heading = torch.atan2(frame[:, 1, 0], frame[:, 0, 0])[:, None]
        turn = state.turn
        about_z = torch.atan2(turn[..., 1, 0] - turn[..., 0, 1], turn[..., 0, 0] + turn[..., 1, 1])
        twice = 2.0 * (about_z - heading)
        x, y = state.shape[..., 4], state.shape[..., 5]
        side = torch.stack([twice.cos() * x - twice.sin() * y, twice.sin() * x + twice.cos() * y], -1)
        size = torch.cat([state.shape[..., :3] / SIZE_M, state.shape[..., 3:4]], -1)
        return torch.cat([place / PLACE_M, past / PLACE_M, step, up, own_up, high, size, side], -1)

    def _grip(self, state: ThingState, grip: Tensor, frame: Tensor) -> Tensor:
        """Of the gripper, in its frame: where its links are, and were before; which way is up; how high it is."""
        before = state.grip[:, 0, 3:].unflatten(-1, (3, 3))
        now = (grip[:, 1:, :3] - grip[:, :1, :3]) @ frame / PLACE_M
        past = (state.grip[:, 1:, :3] - state.grip[:, :1, :3]) @ before / PLACE_M
        which = now.new_zeros(len(now), self._told)
        if self._told:
            which[:, self.current] = 1.0
        moving = 10.0 * (now - past).flatten(1)
        return torch.cat([now.flatten(1), moving, frame[:, 2], grip[:, 0, 2:3] / PLACE_M, which], -1)

    def _touched(self, state: ThingState, grip: Tensor, frame: Tensor) -> Tensor:
        """Of each thing that is there: how near the parts of the gripper are to it, and on which side."""
        count = len(self.grippers[0])
        points = self.touch_m[self.current * count : (self.current + 1) * count]
        axes = grip[..., 3:].unflatten(-1, (3, 3))
        parts = grip[..., None, :3] + points @ axes.mT
        slot, there = state.there.nonzero()[:, 0], state.there
        told = touch(parts[slot], state.place_m[there], state.turn[there], state.shape[there], frame[slot])
        return told.flatten(1)

    def _pushed(self, state: ThingState, frame: Tensor, mine: Tensor, said: Tensor) -> Tensor:
        """What things do to one another: each hears of all others where they are, how large, and how they move. One row
        for each thing that is there."""
        apart = (state.place_m[:, None, :, :] - state.place_m[:, :, None, :]) @ frame[:, None] / PLACE_M  # B K(me) K 3
        size = (state.shape[..., :4] / SIZE_M)[:, None].expand(-1, apart.shape[1], -1, -1)
        going = said[:, None, :, :4].expand(-1, apart.shape[1], -1, -1)
        share = going[..., :1].sigmoid()
        far = apart.norm(dim=-1, keepdim=True)
        others = torch.cat([apart, size, going[..., 1:4] * share, share, far], -1)
        K, there = apart.shape[1], state.there
        audible = there[:, None, :] & there[:, :, None] & ~torch.eye(K, dtype=torch.bool, device=apart.device)
        heard = spread(self.meet(others[audible]), audible).sum(2)
        return self.give_way(torch.cat([heard, mine, said], -1)[there])  # type: ignore[no-any-return]


def spread(rows: Float[Tensor, "n C"], there: Bool[Tensor, "*batch"]) -> Float[Tensor, "*batch C"]:
    """Return rows where they belong, and 0 elsewhere."""
    return rows.new_zeros(*there.shape, rows.shape[-1]).masked_scatter(there[..., None], rows)


def motion_loss(
    said: list[tuple[ThingState, Move]],
    place_m: Float[Tensor, "B T K 3"],
    turn: Float[Tensor, "B T K 3 3"],
    moves: Bool[Tensor, "B T K"],
    counts: Float[Tensor, "B K"],
    *,
    turn_m: float,
) -> Tensor:
    """How far things are from where they should be (m, after every step), in units of SIZE_M; how wrong they are
    turned (`turn_m`: metres that a radian counts as); and whether what moves was told to."""
    places = torch.stack([s.place_m for s, _ in said], 1)
    turns = torch.stack([s.turn for s, _ in said], 1)
    logits = torch.stack([m.moves for _, m in said], 1)
    off = ((places - place_m).square().sum(-1) + 1e-6).sqrt()
    twist = ((turns - turn).square().sum((-1, -2)) / 2 + 1e-4).sqrt()  # ≈ the angle between them
    told = F.binary_cross_entropy_with_logits(logits, moves.float(), reduction="none")
    each = (off + turn_m * twist) / SIZE_M + 0.2 * told
    return (each.mean(1) * counts).sum() / counts.sum().clamp_min(1.0)
