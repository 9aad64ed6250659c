"""Signals of trust: figures that cost little and tell how far a frame may be off, step by step."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from tensordict import TensorDict
from torch import Tensor

from vap_gym.errors import VapError
from vap_gym.interfaces import World
from vap_gym.world.model import WorldModel
from vap_gym.world.motion import ThingState

PREFIX = "trust_"
PLACE_M, SIZE = 0.008, 0.15  # how far off the finder's places and sizes usually are: standard deviations
FAR_M = 1.0  # nothing is nearer than this where there is nothing
SIGNALS = ("step", "changed", "thing_spread_m", "thing_moved_m", "near_m", "filled")
KEPT = ("place_m", "turn", "shape", "step", "memory")  # of the things of every member
STATE_KEYS = tuple(f"{PREFIX}{name}" for name in (*KEPT, "grip", "start_m", "near_m"))


class TrustSignals:
    """Tells of every slot and step how much reason there is to doubt its frame. Settings only; never looks at pixels.

    The video model's noise hardly shows how wrong it is: what it draws is known or guessed from where things are. So
    doubt is measured there: a few members of an ensemble start with the things elsewhere, and of other sizes, by as
    much as the finder errs, and the motion network moves them on. Where the outcome hangs on that, they come apart.

    Signals (`SIGNALS`): steps since the start; how much the picture has changed since then (mean absolute difference of
    latents); how far the members' things have come apart (m, of the thing that is least sure); how far a thing was
    moved (m); how near the gripper ever came to a thing (m); which share of the first picture had to be filled in.

    Args:
        world: a `WorldModel`: other worlds do not say where things are.
        members: of the ensemble, beside the env's own.
    """

    def __init__(self, world: World, *, members: int = 6) -> None:
        if not isinstance(world, WorldModel):
            raise VapError(f"Trust is known of world models that move things, got {type(world).__name__}.")
        self.world = world
        self.members = members

    def start(self, state: TensorDict) -> None:
        """Add the members to a state that has just begun."""
        B, n = len(state), self.members
        own = _things(state)
        place_m, shape = (x[:, None].expand(B, n, *x.shape[1:]).clone() for x in (own.place_m, own.shape))
        noise = _noise(state["world_seed"], (n, place_m.shape[2], 5)).to(place_m)
        place_m[..., :2] += PLACE_M * noise[..., :2]
        shape[..., :3] *= (SIZE * noise[..., 2:]).exp()
        state[f"{PREFIX}place_m"], state[f"{PREFIX}shape"] = place_m, shape
        for name in ("turn", "step", "memory"):
            value = getattr(own, name)
            state[f"{PREFIX}{name}"] = value[:, None].expand(B, n, *value.shape[1:]).clone()
        state[f"{PREFIX}grip"] = own.grip.clone()
        state[f"{PREFIX}start_m"] = place_m.clone()
        state[f"{PREFIX}near_m"] = _nearest(own, own.grip)

    @torch.no_grad()
    def step(self, state: TensorDict, views: Float[Tensor, "B L 3 4"]) -> Float[Tensor, "B S"]:
        """Move the members of `state` on to where the world model's own things are already; return the signals, float32
        on the CPU, in the order of `SIGNALS`."""
        own, motion = _things(state), self.world.motion
        B, n = len(state), self.members
        if motion.knows(views):
            grip, before = motion.grip(views), state[f"{PREFIX}grip"]
            flat = ThingState(
                there=own.there.repeat_interleave(n, 0),
                grip=before.repeat_interleave(n, 0),
                **{name: state[f"{PREFIX}{name}"].flatten(0, 1) for name in KEPT},
            )
            flat, _ = motion.follow(flat, grip.repeat_interleave(n, 0), self.world.motion_steps)
            for name in KEPT:
                state[f"{PREFIX}{name}"] = getattr(flat, name).unflatten(0, (B, n))
            state[f"{PREFIX}grip"] = grip
            state[f"{PREFIX}near_m"] = torch.minimum(state[f"{PREFIX}near_m"], _nearest(own, grip))
        ways = state[f"{PREFIX}place_m"] - state[f"{PREFIX}start_m"]
        way = own.place_m - state["world_first_things_m"]
        every = torch.cat([ways, way[:, None]], 1)
        spread = every.var(1, correction=0).sum(-1).sqrt() * own.there
        signals = [
            state["world_step"].float(),
            (state["world_latent"] - state["world_anchor"]).abs().mean((1, 2, 3)).float(),
            spread.amax(-1),
            (way.norm(dim=-1) * own.there).amax(-1),
            state[f"{PREFIX}near_m"],
            state["world_first_filled"].float().mean((1, 2, 3)) / 255.0,
        ]
        return torch.stack([value.float().cpu() for value in signals], -1)


def _things(state: TensorDict) -> ThingState:
    return ThingState(*(state[f"world_thing_{name}"] for name in ThingState._fields))


def _nearest(things: ThingState, grip: Float[Tensor, "B G 12"]) -> Float[Tensor, " B"]:
    """How near any place on the gripper is to any thing, less how wide that is; m."""
    apart = (things.place_m[:, :, None] - grip[:, None, :, :3]).norm(dim=-1) - things.shape[..., :1]
    apart = torch.where(things.there[..., None], apart, FAR_M)
    nearest: Tensor = apart.flatten(1).amin(1).clamp(0.0, FAR_M)
    return nearest


def _noise(seeds: Int64[Tensor, " B"], shape: tuple[int, ...]) -> Float[Tensor, "B n K 5"]:
    """Each slot's own normal numbers: who else is in the batch changes nothing."""
    own = (torch.Generator().manual_seed(seed & (2**63 - 1)) for seed in seeds.tolist())
    return torch.stack([torch.randn(shape, generator=generator) for generator in own])
