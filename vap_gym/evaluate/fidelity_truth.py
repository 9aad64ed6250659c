"""A world model that the simulator tells of the things: tells errors of finding, of moving and of drawing apart."""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, Literal, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vap_gym.evaluate.clips import Clips
from vap_gym.rotations import rotation_from_quaternion_xyzw
from vap_gym.sim.scene import LABELS
from vap_gym.sim.spec import COLOURS
from vap_gym.train.motion import standing_shape
from vap_gym.world.appearance import background
from vap_gym.world.background import BackgroundFiller
from vap_gym.world.codec import to_frames, to_pictures
from vap_gym.world.hidden_parts import whole_things
from vap_gym.world.model import WorldModel
from vap_gym.world.motion import Move, ThingMotion, ThingState
from vap_gym.world.things import Found

if TYPE_CHECKING:
    from tensordict import TensorDict

Truth = Literal["", "things", "moves"]
FIRST_OBJECT = LABELS.index(COLOURS[0])
SAME_M = 0.03  # a thing found so near an object is that object: then its pixels are those that were found


def with_true_things(
    state: TensorDict, clips: Clips, *, table_m: float, base: int = 0, filler: BackgroundFiller | None = None
) -> TensorDict:
    """Return the state of an imagination that has just begun, with the true things for those that were found.

    Their places and shapes are the simulator's, in the order of the palette; so are the pixels of those that were not
    found. What was found and is no thing is background again, filled in by `filler` or by interpolation. What the robot
    hides of them is made up anew; its `base` is that link.
    """
    there, place_m, _, shape = _things(clips, state["world_thing_there"].shape[1], table_m=table_m)
    number = _numbers(clips, there.shape[1])
    found = torch.where(state["world_first_there"][:, None], _apart(place_m[:, 0], state["world_first_things_m"]), 1e3)
    labels = torch.from_numpy(clips.labels[:, 0])
    owner, alpha = torch.zeros_like(labels), torch.zeros(labels.shape)
    seen, share = state["world_first_owner"], state["world_first_alpha"].float() / 255.0
    for k in range(there.shape[1]):
        near, which = found[:, k].min(-1)
        was = (seen == (which + 1)[:, None, None]) & (near < SAME_M)[:, None, None]
        shown = (labels == (number[:, k] + FIRST_OBJECT)[:, None, None]) & (near >= SAME_M)[:, None, None]
        mine = (was | shown) & there[:, k, None, None]
        owner = torch.where(mine, k + 1, owner).to(torch.uint8)
        alpha = torch.where(mine, torch.where(was, share, 1.0), alpha)
    mask = state["world_first_mask"].float() / 255.0
    picture = to_pictures(state["world_first_picture"])
    plate, filled = background(picture, torch.maximum(mask, (owner > 0)[:, None].to(mask)), filler)
    true = Found(there=there, centre_m=place_m[:, 0], shape=shape, owner=owner, alpha=alpha)
    whole = whole_things(picture, plate, mask, state["world_first_depth_m"], state["world_first_views"][:, base], true)
    told = state.copy()
    for name, value in (("there", there), ("things_m", place_m[:, 0]), ("shape", shape), ("owner", whole.owner)):
        told[f"world_first_{name}"] = value.to(state[f"world_first_{name}"].dtype)
    for name, share in (("alpha", whole.alpha), ("filled", filled)):
        told[f"world_first_{name}"] = (255.0 * share).round().to(torch.uint8)
    for name, shown in (("whole", whole.picture), ("plate", plate)):
        told[f"world_first_{name}"] = to_frames(shown)
    for name, value in (("there", there), ("place_m", place_m[:, 0]), ("shape", shape)):
        told[f"world_thing_{name}"] = value
    return told


def with_true_moves(world: WorldModel, clips: Clips, *, table_m: float) -> WorldModel:
    """Return the world model with the simulator for its motion network, for a batch of just these clips."""
    _, place_m, turn, _ = _things(clips, int(world.things.config["most"]), table_m=table_m)
    other = copy(world)
    other.motion = cast(ThingMotion, _ToldMotion(world.motion, place_m, turn, world.motion_steps))
    return other


class _ToldMotion(nn.Module):
    """Moves things as it was told, in the motion network's place; how far it is stands in the things' memory."""

    def __init__(
        self,
        motion: ThingMotion,
        place_m: Float[Tensor, "B T K 3"],
        turn: Float[Tensor, "B T K 3 3"],
        motion_steps: int,
    ) -> None:
        super().__init__()
        self.motion, self.config, self.grippers = motion, motion.config, motion.grippers
        self.place_m, self.turn, self.motion_steps = place_m, turn, motion_steps

    def knows(self, views: Float[Tensor, "B L 3 4"]) -> bool:
        return bool(self.motion.knows(views))

    def grip(self, views: Float[Tensor, "B L 3 4"]) -> Float[Tensor, "B G 12"]:
        return self.motion.grip(views)

    def forward(self, state: ThingState, grip: Float[Tensor, "B G 12"]) -> tuple[ThingState, Move]:
        calls = state.memory[..., 0] + 1.0
        t = -(-int(calls[0, 0]) // self.motion_steps)  # the frame that this step leads to
        memory = torch.cat([calls[..., None], state.memory[..., 1:]], -1)
        place_m, turn = self.place_m[:, t], self.turn[:, t]
        still = torch.zeros_like(place_m)
        move = Move(moves=still[..., 0], way_m=place_m - state.place_m, turn_rad=still)
        return state._replace(place_m=place_m, turn=turn, memory=memory, grip=grip), move

    def follow(self, state: ThingState, grip: Float[Tensor, "B G 12"], steps: int) -> tuple[ThingState, Move]:
        """Return the things a frame later: in so many calls, of which the last leads there."""
        for _ in range(steps):
            state, move = self(state, grip)
        return state, move


def _things(
    clips: Clips, most: int, *, table_m: float
) -> tuple[Bool[Tensor, "N K"], Float[Tensor, "N T K 3"], Float[Tensor, "N T K 3 3"], Float[Tensor, "N K 6"]]:
    """Which of `most` things there are; where they are over the table; how they are turned since; their shapes."""
    number = _numbers(clips, most)
    there, number = number >= 0, number.clamp_min(0)
    rows = torch.arange(len(clips))[:, None]
    place_m, quaternion = (torch.from_numpy(x) for x in (clips.objects_m, clips.objects_xyzw))
    place_m, quaternion = (x[rows, :, number].transpose(1, 2).nan_to_num() for x in (place_m, quaternion))
    quaternion = torch.where(there[:, None, :, None], quaternion, torch.tensor([0.0, 0.0, 0.0, 1.0]))
    turn = rotation_from_quaternion_xyzw(quaternion)
    half_m, is_round = torch.from_numpy(clips.half_m)[rows, number], torch.from_numpy(clips.is_round)[rows, number]
    shape = standing_shape(half_m, is_round, turn[:, 0]) * there[..., None]
    up_m = torch.tensor([0.0, 0.0, table_m])
    return there, (place_m - up_m) * there[:, None, :, None], turn @ turn[:, :1].mT, shape


def _numbers(clips: Clips, most: int) -> Tensor:
    """The palette's indices of the things in each clip, (N, most); −1: no more of them."""
    present = torch.from_numpy(clips.objects_m[:, 0]).isfinite().all(-1)
    order = present.float().argsort(dim=1, descending=True, stable=True)[:, :most]
    numbers: Tensor = torch.where(present.gather(1, order), order, -1)
    return torch.nn.functional.pad(numbers, (0, most - numbers.shape[1]), value=-1)


def _apart(one_m: Float[Tensor, "B K 3"], other_m: Float[Tensor, "B M 3"]) -> Float[Tensor, "B K M"]:
    apart: Tensor = (one_m[:, :, None] - other_m[:, None]).norm(dim=-1)
    return apart
