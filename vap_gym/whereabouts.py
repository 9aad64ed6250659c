"""Where an object is: found as a thing in the first picture, foretold by how things move, set right by what is seen.

The finder tells a thing's centre from one picture about twice as exactly as the judge does (.4 cm against .9 cm on
DROID-like scenes), and the judge's readings of one and the same thing flicker by about a centimetre. A verdict that
takes each reading as it comes is too kind to a policy that hovers beside its goal: one of a hundred readings will say
that it is there.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from tensordict import TensorDict
from torch import Tensor

from vap_gym.errors import VapError
from vap_gym.observations import read_about
from vap_gym.world.motion import ThingState

NEAR_M = 0.06  # an object whose place the judge tells is the nearest thing within this
OBJECT_KEYS = ("object_thing", "object_thing_m")  # of a stage's state, beside object_m


class Belief(NamedTuple):
    """How much of what is seen is believed: `near` of it where it is about as foretold, else `far`."""

    usual_m: float  # further off than this is not about as foretold
    near: float
    far: float


# Imagined frames are drawn from what is foretold: what the judge reads elsewhere is its error, unless it is far off.
IMAGINED = Belief(usual_m=0.04, near=0.0, far=0.25)
REAL = Belief(usual_m=0.03, near=0.2, far=0.5)  # a policy in the world has only its eyes


def things_of(state: TensorDict) -> ThingState:
    """Return where a world model's state says that its things are. Raises VapError for a state without things."""
    if not has_things(state):
        raise VapError("A state with things is needed, got one of another kind of world model. Use LatentForesight.")
    return ThingState(*(state[f"world_thing_{name}"] for name in ThingState._fields))


def has_things(state: TensorDict) -> bool:
    """Whether a state says where things are."""
    return "world_thing_place_m" in state.keys()  # noqa: SIM118


def nearest_things(
    things: ThingState, objects_m: Float[Tensor, "B N 3"], *, within_m: float = NEAR_M
) -> Int64[Tensor, "B N"]:
    """Return which thing each object is: the nearest within `within_m` along the table; −1 where there is none."""
    apart = (objects_m[:, :, None, :2].to(things.place_m) - things.place_m[:, None, :, :2]).norm(dim=-1)
    apart = torch.where(things.there[:, None] & apart.isfinite(), apart, torch.inf)
    far, which = apart.min(-1)
    return torch.where(far < within_m, which, -1)


def places_of(things: ThingState, which: Int64[Tensor, "B N"]) -> Float[Tensor, "B N 3"]:
    """Return where those things are; NaN where there is none (−1)."""
    picked = torch.take_along_dim(things.place_m, which.to(things.place_m.device).clamp_min(0)[..., None], 1)
    return torch.where((which >= 0)[..., None].to(picked.device), picked, torch.nan)


def set_right(
    foretold_m: Float[Tensor, "*batch 3"],
    seen_m: Float[Tensor, "*batch 3"],
    sure: Bool[Tensor, "*batch"],
    belief: Belief,
) -> Float[Tensor, "*batch 3"]:
    """Return where objects are believed to be: as foretold, moved by a share of the way to where they are surely seen.

    The share is larger where they are seen further off than is usual. `belief`: `IMAGINED` or `REAL`.
    """
    seen_m = seen_m.to(foretold_m)
    taken = torch.where(foretold_m.isfinite().all(-1, keepdim=True), foretold_m, seen_m)
    way = seen_m - taken
    share = torch.where(way.norm(dim=-1, keepdim=True) > belief.usual_m, belief.far, belief.near)
    sure = sure & seen_m.isfinite().all(-1)
    return torch.where(sure[..., None], taken + share * way, foretold_m)


def find_object(state: TensorDict, *, at_all: bool = True) -> None:
    """Write which of the world model's things each slot's object is (`object_thing`, −1: none), and take that thing's
    place for where the object is. `at_all=False`: none is any.

    The state holds `about` and `object_m`, (B, 3): where the judge sees the object, or the scene has it.
    """
    state["object_thing"] = torch.full((len(state),), -1)
    if at_all and has_things(state):
        scenes = [scene for _, scene in map(read_about, state["about"])]
        drawer = torch.tensor([scene is not None and scene.is_about_drawer for scene in scenes])
        which = nearest_things(things_of(state), state["object_m"][:, None].float())[:, 0].cpu()
        state["object_thing"] = torch.where(drawer, -1, which)
    thing_m = _thing_m(state)
    state["object_m"] = torch.where(thing_m.isfinite(), thing_m, state["object_m"])
    state["object_thing_m"] = thing_m


def follow_object(state: TensorDict, seen_m: Float[Tensor, "B 3"], sure: Bool[Tensor, " B"]) -> None:
    """Write where each slot's object is now: moved as the world model moved it, and set right by what the judge sees;
    one that is none of the world model's things is where the judge last was sure of it."""
    thing_m = _thing_m(state)
    known = thing_m.isfinite().all(-1, keepdim=True)
    way_m = torch.where(known, thing_m - state["object_thing_m"], 0.0)
    alone = torch.where(sure[:, None], seen_m, state["object_m"])
    state["object_m"] = torch.where(known, set_right(state["object_m"] + way_m, seen_m, sure, IMAGINED), alone)
    state["object_thing_m"] = thing_m


def _thing_m(state: TensorDict) -> Float[Tensor, "B 3"]:
    """Where the world model says that each slot's object is; NaN where it is none of its things."""
    if not has_things(state):
        return torch.full_like(state["object_m"], torch.nan)
    return places_of(things_of(state), state["object_thing"][:, None])[:, 0].cpu().double()
