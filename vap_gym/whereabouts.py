"""Where an object is: found as a thing in the first picture, foretold by how things move, set right by what is seen.

The finder tells a thing's centre from one picture about twice as exactly as the judge does (`off_cm` in the shipped
card, "judge on true frames" in docs/fidelity.md), and the judge's readings of one and the same thing flicker. A verdict
that takes each reading as it comes is too kind to a policy that hovers beside its goal: one of a hundred readings will
say that it is there.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from tensordict import TensorDict
from torch import Tensor

from vap_gym.errors import VapError
from vap_gym.geometry import Camera
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


class Sight(NamedTuple):
    """Where the judge sees an object in each of B slots."""

    px: Float[Tensor, "B 2"]
    place_m: Float[Tensor, "B 3"]  # as it takes that to be: one picture does not tell how far a lifted thing is
    sure: Bool[Tensor, " B"]


def set_right(foretold_m: Float[Tensor, "B 3"], sight: Sight, camera: Camera, belief: Belief) -> Float[Tensor, "B 3"]:
    """Return where objects are believed to be: as foretold, moved by a share of the way to where they are surely seen.

    The way leads to the foretold place's side: to the point on the pixel's ray that is as far from the camera. Where
    that is further off than is usual, it leads to where the judge takes the object to be; so it does from an unknown
    place (NaN).

    Args:
        foretold_m: where objects should be.
        sight: where they are seen.
        camera: batch B, in the same frame as the places.
        belief: `IMAGINED` or `REAL`.
    """
    px, place_m = sight.px.to(foretold_m), sight.place_m.to(foretold_m)
    camera = camera.to(dtype=foretold_m.dtype)
    known = foretold_m.isfinite().all(-1, keepdim=True)
    aside_m = camera.unproject(px[:, None], camera.project(foretold_m[:, None])[1])[:, 0]
    far = (aside_m - foretold_m).norm(dim=-1, keepdim=True) > belief.usual_m
    way_m = torch.where(far, place_m, aside_m) - foretold_m
    believed_m = torch.where(known, foretold_m + torch.where(far, belief.far, belief.near) * way_m, place_m)
    sure = sight.sure & believed_m.isfinite().all(-1)
    return torch.where(sure[:, None], believed_m, foretold_m)


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


def follow_object(state: TensorDict, sight: Sight, camera: Camera) -> None:
    """Write where each slot's object is now: moved as the world model moved it, and set right by what the judge sees;
    one that is none of the world model's things is where the judge last was sure of it."""
    thing_m = _thing_m(state)
    known = thing_m.isfinite().all(-1, keepdim=True)
    way_m = torch.where(known, thing_m - state["object_thing_m"], 0.0)
    alone = torch.where(sight.sure[:, None], sight.place_m, state["object_m"])
    state["object_m"] = torch.where(known, set_right(state["object_m"] + way_m, sight, camera, IMAGINED), alone)
    state["object_thing_m"] = thing_m


def _thing_m(state: TensorDict) -> Float[Tensor, "B 3"]:
    """Where the world model says that each slot's object is; NaN where it is none of its things."""
    if not has_things(state):
        return torch.full_like(state["object_m"], torch.nan)
    return places_of(things_of(state), state["object_thing"][:, None])[:, 0].cpu().double()
