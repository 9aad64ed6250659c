"""Fans: pictures of the futures that a planner chose among, as imagined, with their scores."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw
from tensordict import TensorDict

from vap_gym.errors import VapError
from vap_gym.pictures import Picture, enlarged, sheet, spread
from vap_gym.plan.foresight import branched
from vap_gym.plan.planner import Plan, held
from vap_gym.stage import Stage

SCALE = 2.0
GOOD, BAD = np.array([24, 150, 70]), np.array([205, 60, 50])  # colours of the best and the worst path


@dataclass(frozen=True, kw_only=True, eq=False)
class Fan:
    """K of a plan's last candidates, best first, imagined."""

    frames: UInt8[np.ndarray, "K T1 H W 3"]  # the present one first: T1 = T + 1
    scores: Float[np.ndarray, " K"]
    paths_px: Float[np.ndarray, "N T1 2"]  # the tool's way of all N candidates, best first
    shown: tuple[int, ...]  # which of these the K are


def imagined_fan(stage: Stage, state: TensorDict, plan: Plan, *, hold: int = 1, count: int = 5) -> Fan:
    """Imagine `count` of a plan's candidates from the moment that it was made in: from the best to the worst.

    Args:
        stage: imagination.
        state: that moment, of one slot.
        plan: for one environment; its last candidates are shown.
        hold: control steps that each action was held for.

    Raises:
        VapError: a plan for several environments.
    """
    if plan.scores.ndim != 1:
        raise VapError(f"A fan is of one environment's plan, got one for {len(plan.scores)}. Index its tensors.")
    order = plan.scores.argsort(descending=True)
    shown = spread(count, len(order))
    actions = held(plan.candidates[order], hold)
    moment = TensorDict(
        {key: value for key, value in state.items() if key.startswith(("robot_", "camera_", "world_", "step"))},
        batch_size=state.batch_size,
    )
    tool_px = stage.imagination.trace(branched(moment, len(actions)), actions).tool_px
    now_px = stage.imagination.look(moment).tool_px.expand(len(actions), 1, 2)
    _, frames, _ = stage.imagination.step(branched(moment, len(shown)), actions[shown])
    assert frames is not None
    first = state["frame"][:, None].expand(len(shown), 1, *state["frame"].shape[1:])
    return Fan(
        frames=torch.cat([first, frames.cpu()], 1).numpy(),
        scores=plan.scores[order][shown].numpy(),
        paths_px=torch.cat([now_px, tool_px], 1).numpy(),
        shown=tuple(shown),
    )


def fan_sheet(fan: Fan, *, title: str = "", moments: int = 5) -> Picture:
    """Return a picture: a row for each future, the best first; to its left the ways of all on the present frame."""
    T = fan.frames.shape[1] - 1
    times = [1 + t for t in spread(moments, T)]
    rows = [[with_paths(fan, k), *(enlarged(fan.frames[k, t], SCALE) for t in times)] for k in range(len(fan.scores))]
    return sheet(
        rows,
        columns=["ways of the tool", *(f"step {t}" for t in times)],
        labels=label_of(fan),
        title=title,
        note="Imagined. Left: where each candidate leads the tool, from green (best) to red; this row's is thick.",
    )


def fan_movie(fan: Fan, *, title: str = "") -> UInt8[np.ndarray, "T1 H W 3"]:
    """Return the frames of a video in which the futures run side by side, the best first."""
    T1 = fan.frames.shape[1]
    names = label_of(fan)
    pictures = [
        sheet([[enlarged(frames[t], SCALE) for frames in fan.frames]], columns=names, title=title) for t in range(T1)
    ]
    return np.stack(pictures)


def label_of(fan: Fan) -> list[str]:
    """Return what each future is called: its rank and its score."""
    count = len(fan.paths_px)
    return [f"{rank + 1} of {count}\n{score:.3f}" for rank, score in zip(fan.shown, fan.scores, strict=True)]


def with_paths(fan: Fan, k: int) -> Picture:
    """Return the present frame with every candidate's way on it, the k-th future's thick."""
    picture = Image.fromarray(enlarged(fan.frames[k, 0], SCALE))
    pen = ImageDraw.Draw(picture)
    count = len(fan.paths_px)
    order = [i for i in reversed(range(count)) if i != fan.shown[k]]
    for i in [*order, fan.shown[k]]:
        share = i / max(count - 1, 1)
        colour = tuple(int(x) for x in (1.0 - share) * GOOD + share * BAD)
        way = [tuple(float(x) for x in SCALE * point) for point in fan.paths_px[i]]
        pen.line(way, fill=colour, width=4 if i == fan.shown[k] else 1)
    return np.array(picture)
