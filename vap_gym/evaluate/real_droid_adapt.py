"""A world model made to fit real streams by other episodes of them: the robot's colours, and how far to correct.

Two things are taken from other episodes. The colour of each point of the robot's surface is the mean of the pixels that
it is projected to: no label maps are needed, the projected surface is the mask. And the gate: how much of what the
whole model changes about the posed picture is worth it, one share for each source of that picture, by least squares.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from vap_gym.errors import VapError
from vap_gym.evaluate.real_droid_streams import Stream, clips
from vap_gym.prompts.body import Body
from vap_gym.world.appearance import RobotAppearance, first_sight
from vap_gym.world.codec import to_frames, to_pictures
from vap_gym.world.model import WorldModel
from vap_gym.world.posing import posed_picture
from vap_gym.world.surfels import Surfels, seen_points

ENOUGH = 10  # pixels that must have shown a point for its own colour to count; else it has its link's
PARTS = 5  # of a posed picture: its four sources, and what stands where it stood
LOOKED = 2  # one frame in so many tells colours
CHUNK = 32  # frames drawn at once


@dataclass(frozen=True, kw_only=True)
class Told:
    """N windows of T frames as a world model is told them."""

    frames: UInt8[Tensor, "N T H W 3"]
    prompts: UInt8[Tensor, "N T H W 3"]
    views: Float[Tensor, "N T L 3 4"]


@dataclass(frozen=True, kw_only=True)
class Imagined:
    """N windows, imagined in two ways: what posing makes by itself, and the whole model; and the sources of the former.

    The first frame of each is the true one.
    """

    posed: UInt8[np.ndarray, "N T H W 3"]
    whole: UInt8[np.ndarray, "N T H W 3"]
    source: Float[np.ndarray, "N T 5 H W"]  # shares, of sum 1


@dataclass(frozen=True, kw_only=True)
class Adapted:
    """A world model after other episodes: `seen` names them."""

    world: WorldModel
    gate: Float[np.ndarray, "5"]
    seen: tuple[str, ...]

    def frames(self, made: Imagined) -> UInt8[np.ndarray, "N T H W 3"]:
        """Return the posed pictures, corrected as far as the gate lets them be."""
        share = np.einsum("k,ntkhw->nthw", self.gate, made.source)[..., None]
        return _mixed(made, share)


def told(stream: Stream, firsts: Sequence[int], steps: int) -> Told:
    """Return windows of a stream."""
    frames, prompts, views = (clips(x, firsts, steps) for x in (stream.frames, stream.prompts, stream.views))
    return Told(frames=frames, prompts=prompts, views=views)


@torch.no_grad()
def imagine(world: WorldModel, given: Told, *, interval: int) -> Imagined:
    """Imagine windows from their first frames.

    Args:
        world: its `motion_steps` say in how many steps things move between two frames.
        given: of which only first frames, prompts and views are used.
        interval: control steps per frame, told to the dynamics.
    """
    frames, views = given.frames, given.views
    state = world.start(frames[:, 0], given.prompts[:, 0], torch.arange(len(frames)), views=views[:, 0])
    _, made = world.predict(state, given.prompts[:, 1:], views=views[:, 1:], interval=interval)
    assert made is not None
    sight = first_sight(world.appearance, world.things, to_pictures(frames[:, 0]), views[:, 0])
    things = world.motion.begin(sight.there, sight.things_m, sight.shape, world.motion.grip(views[:, 0]))
    nothing = torch.zeros_like(sight.mask)
    posed, source = [frames[:, 0]], [torch.cat([nothing] * (PARTS - 1) + [nothing + 1.0], 1)]
    for t in range(1, frames.shape[1]):
        things, _ = world.motion.follow(things, world.motion.grip(views[:, t]), world.motion_steps)
        drawn = posed_picture(world.appearance, sight, things.place_m, things.turn, views[:, t])
        posed.append(to_frames(drawn.picture))
        source.append(torch.cat([drawn.source, (1.0 - drawn.source.sum(1, keepdim=True)).clamp_min(0.0)], 1))
    return Imagined(
        posed=torch.stack(posed, 1).numpy(),
        whole=torch.cat([frames[:, :1], made], 1).numpy(),
        source=torch.stack(source, 1).numpy(),
    )


def surface_colours(streams: Sequence[Stream], body: Body) -> Float[Tensor, "P 3"]:
    """Return the mean colour, in [0, 1], of the pixels in which streams show each point of a robot's surface.

    A point that is hardly seen has the mean of its link, and a link that never is the colour that its URDF gives it.
    """
    each = [_shown(stream, body) for stream in streams]
    count, total = torch.stack([one[0] for one in each]).sum(0), torch.stack([one[1] for one in each]).sum(0)
    known, colour = count >= ENOUGH, total / count.clamp_min(1.0)[:, None]
    for number in body.link.unique():
        mine = body.link == number
        usual = colour[mine & known].mean(0) if bool((mine & known).any()) else body.colour[mine & ~known]
        colour[mine & ~known] = usual
    return colour


@lru_cache(maxsize=64)  # each stream serves all folds but its own
@torch.no_grad()
def _shown(stream: Stream, body: Body) -> tuple[Float[Tensor, " P"], Float[Tensor, "P 3"]]:
    """How many pixels of a stream show each point of the surface, and the sum of their colours."""
    surfels = Surfels(body.points_m, body.normals, body.link, body.spacing_m)
    count, total = torch.zeros(len(body.link)), torch.zeros(len(body.link), 3)
    for part in torch.arange(0, len(stream), LOOKED).split(CHUNK):
        frames = torch.from_numpy(stream.frames[part.numpy()])
        seen = seen_points(surfels, stream.views[part], (frames.shape[1], frames.shape[2]))
        shown = seen.point >= 0
        count.index_add_(0, seen.point[shown], torch.ones(int(shown.sum())))
        total.index_add_(0, seen.point[shown], frames[shown].float() / 255)
    return count, total


def coloured(world: WorldModel, body: Body, colour: Float[Tensor, "P 3"]) -> WorldModel:
    """Return a world model that poses a robot in these colours, all that its surface covers being robot."""
    surfels = Surfels(body.points_m, body.normals, body.link, body.spacing_m)
    other = copy(world)
    other.appearance = RobotAppearance.of_surface(surfels, colour, len(body.links)).eval().requires_grad_(False)
    return other


def adapt(
    world: WorldModel,
    streams: Sequence[Stream],
    body: Body,
    held_out: str,
    *,
    firsts: dict[str, list[int]],
    steps: int,
    interval: int,
) -> Adapted:
    """Fit a world model to all streams but those of one episode.

    Args:
        firsts: of each stream, by name, the first frames of windows that the gate is fitted to.

    Raises:
        VapError: no other episode is left.
    """
    others = [stream for stream in streams if stream.episode != held_out]
    if not others:
        raise VapError(f"Leaving out {held_out} must leave other episodes, got none. Add streams of others.")
    made = coloured(world, body, surface_colours(others, body))
    pairs = []
    for stream in others:
        if firsts[stream.name]:
            given = told(stream, firsts[stream.name], steps)
            pairs.append((imagine(made, given, interval=interval), given.frames.numpy()))
    return Adapted(world=made, gate=fitted_gate(pairs), seen=tuple(sorted({s.episode for s in others})))


def fitted_gate(pairs: Sequence[tuple[Imagined, UInt8[np.ndarray, "N T H W 3"]]]) -> Float[np.ndarray, "5"]:
    """Return the share of the correction, in [0, 1], that brings each source nearest to true frames (least squares)."""
    across, along = np.zeros((PARTS, PARTS)), np.zeros(PARTS)
    for made, true in pairs:
        change = made.whole[:, 1:].astype(np.float32) - made.posed[:, 1:]
        wanted = true[:, 1:].astype(np.float32) - made.posed[:, 1:]
        source = made.source[:, 1:]
        across += np.einsum("ntkhw,ntlhw,nthw->kl", source, source, (change**2).sum(-1), optimize=True)
        along += np.einsum("ntkhw,nthw->k", source, (change * wanted).sum(-1), optimize=True)
    ridge = 1e-6 * max(float(np.trace(across)), 1.0) * np.eye(PARTS)
    gate: Float[np.ndarray, "5"] = np.clip(np.linalg.solve(across + ridge, along), 0.0, 1.0)
    return gate


def _mixed(made: Imagined, share: Float[np.ndarray, "N T H W 1"]) -> UInt8[np.ndarray, "N T H W 3"]:
    change = made.whole.astype(np.float32) - made.posed
    mixed: UInt8[np.ndarray, "N T H W 3"] = np.clip(np.rint(made.posed + share * change), 0, 255).astype(np.uint8)
    return mixed
