"""Control: does the picture follow its prompt, and would another prompt have made another picture? Two own metrics.

Prompt adherence compares the picture with what it was told: `adherence_px` through a judge that sees the gripper,
`motion_adherence` without one, by where things move. Counterfactual sensitivity asks for the same start under other
prompts: a model that ignores its prompt scores as well with the wrong one.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from vap_gym.errors import VapError, unknown_name
from vap_gym.metrics.checks import Clip, Masks, check_clip, check_clips
from vap_gym.metrics.intervals import Interval, bootstrap_interval
from vap_gym.metrics.morphology import dilate_disk, share
from vap_gym.metrics.motion import motion_masks, st_iou

Sequences = TypeVar("Sequences")  # what imagination is told: actions (T, A), prompts (T, H, W, 3) or anything else


# --- prompt adherence -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class MotionAdherence:
    """How well the motion in the picture follows the motion of its prompt, each in [0, 1]."""

    score: float  # harmonic mean of the two below in each frame, then the mean over frames
    as_told: float  # share of the moving pixels that lie near the prompt's motion
    all_told: float  # share of the prompt's motion near which pixels move
    lag_frames: int  # by which the picture comes after its prompt


def motion_adherence(
    frames: Clip, prompts: Clip, *, tolerance: float = 0.04, max_lag_frames: int = 0
) -> MotionAdherence:
    """Return how well frames move where their prompt pictures move; needs no judge and no truth.

    Motion is that of `motion_masks`, for both. A skeleton is thinner than its robot, so "near" is within `tolerance`
    of the frame's diagonal: the robot's half width. Frames in which neither moves count 1. The first frame, in which
    nothing can move, is left out.

    With `max_lag_frames`, prompt t is compared with frame t + L, and the L from 0 to that number with the highest score
    is taken, one for the clip: for pictures that come late but are right. The frames beyond either end are left out.
    Never give more than the delay that you expect: choosing among many flatters.

    What it cannot see: things that the robot pushes count as motion that was not told, as does a moving camera; and a
    robot that stands still in prompt and picture agrees, wherever it stands. On four real
    clips of a Franka, prompts from the robot's own log score .67 to .78; reversed ones .13 to .44 less, those of other
    episodes .04 to .51 less, an empty prompt or a frozen picture about .1.

    Raises:
        VapError: clips that do not fit together, a tolerance outside [0, 1], or too few frames for the lag.
    """
    check_clips(frames, prompts, names=("frames", "prompts"))
    if not 0 <= tolerance <= 1 or not 0 <= max_lag_frames < len(frames) - 1:
        raise VapError(
            f"tolerance must be a share in [0, 1] and max_lag_frames at least 0 and below the number of frames - 1, "
            f"got {tolerance}, {max_lag_frames} and {len(frames)} frames. Try tolerance=0.04, max_lag_frames=0."
        )
    radius = math.ceil(tolerance * math.hypot(*frames.shape[1:3]))
    moved, told = motion_masks(frames), motion_masks(prompts)
    near_moved, near_told = dilate_disk(moved, radius), dilate_disk(told, radius)
    scores = []
    for lag in range(max_lag_frames + 1):
        late, early = slice(1 + lag, None), slice(1, len(told) - lag)
        as_told = _covered(moved[late], near_told[early])
        all_told = _covered(told[early], near_moved[late])
        both = as_told + all_told
        score = np.divide(2 * as_told * all_told, both, out=np.zeros_like(both), where=both > 0)
        scores.append(
            MotionAdherence(
                score=float(score.mean()),
                as_told=float(as_told.mean()),
                all_told=float(all_told.mean()),
                lag_frames=lag,
            )
        )
    return max(scores, key=lambda s: s.score)  # the first of equals: the shortest lag


def _covered(masks: Masks, by: Masks) -> NDArray[np.float64]:
    """Share of each mask that lies in the other; 1 where it is empty."""
    return share((masks & by).sum(axis=(1, 2)), masks.sum(axis=(1, 2)))


# --- counterfactual sensitivity ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """Scores of one true clip's imaginations: with the right prompt, and with others from the same start."""

    right: float
    others: Mapping[str, float]

    @property
    def differences(self) -> dict[str, float]:
        """The right score minus each other one: above 0 where the prompt was heeded."""
        return {name: self.right - score for name, score in self.others.items()}

    @property
    def least(self) -> float:
        """The smallest difference: what the nearest wrong prompt lost."""
        return min(self.differences.values())


def counterfactual_sensitivity(
    imagine: Callable[[Sequences], Clip],
    truth: Clip,
    right: Sequences,
    others: Mapping[str, Sequences],
    *,
    score: Callable[[Clip, Clip], float] = st_iou,
) -> Sensitivity:
    """Return how much better the right prompt's clip agrees with the truth than other prompts' clips do.

    Args:
        imagine: from actions (or prompts) to a clip (T, H, W, 3), its first frame the start. Called once for each; must
            begin anew from one start, and with the same noise, every time: `imagination_of(env)` does.
        truth: what really happened under `right`, from the same start.
        right: the actions or prompts of the truth.
        others: other ones by name, e.g. `counterfactuals(right, another=…)`.
        score: higher is better, of (imagined, true) clips.

    Raises:
        VapError: no other prompts, clips of other shapes, or imaginations that begin with different pictures.
    """
    if not others:
        raise VapError(
            "Counterfactual sensitivity needs at least one other prompt, got none. "
            "Give e.g. others=counterfactuals(right, another=the actions of another episode)."
        )
    check_clip(truth, "truth")
    clip = imagine(right)
    check_clips(clip, truth, names=("the clip imagined with the right prompt", "truth"))
    scores = {}
    for name, told in others.items():
        other = imagine(told)
        check_clips(other, truth, names=(f"the clip imagined with '{name}'", "truth"))
        if not np.array_equal(other[0], clip[0]):
            off = float(np.abs(other[0].astype(int) - clip[0]).mean())
            raise VapError(
                f"Imaginations must begin with one picture, got for '{name}' another than for the right prompt "
                f"(mean difference {off:.2g} grey levels). Return to the same start in `imagine`, and put that "
                "picture first."
            )
        scores[name] = score(other, truth)
    return Sensitivity(right=score(clip, truth), others=scores)


def counterfactuals(
    right: NDArray[Any], *, another: NDArray[Any] | None = None, empty: NDArray[Any] | None = None
) -> dict[str, NDArray[Any]]:
    """Return what to give instead of `right` (T, …): "reversed" in time, "empty", and "another" where given.

    Args:
        right: actions (T, A), or prompt pictures (T, H, W, 3).
        another: another episode's, of the same shape.
        empty: one row (…) that tells nothing; default zeros: no motion in velocities and deltas, a black prompt. For
            absolute actions (poses, joint positions) give the start's own pose instead.

    Raises:
        VapError: of other shapes than `right`.
    """
    wrong = [
        (name, given.shape, wanted)
        for name, given, wanted in (("another", another, right.shape), ("empty", empty, right.shape[1:]))
        if given is not None and given.shape != wanted
    ]
    if right.ndim < 2 or wrong:
        name, shape, wanted = wrong[0] if wrong else ("right", right.shape, "(T, …)")
        raise VapError(f"{name} must have shape {wanted}, got {shape}. Cut both sequences to one length.")
    made = {"reversed": right[::-1].copy(), "empty": np.zeros_like(right)}
    if empty is not None:
        made["empty"][:] = empty
    return made if another is None else {**made, "another": another}


def sensitivity_intervals(results: Sequence[Sensitivity], *, level: float = 0.95, seed: int = 0) -> dict[str, Interval]:
    """Return over episodes the mean right score ("right"), and the mean difference to each other prompt, by its name.

    Differences are within an episode, and episodes are drawn: the interval is that of paired samples.

    Raises:
        VapError: no results, or other prompts in some of them.
    """
    names = list(results[0].others) if results else []
    if not names or any(list(r.others) != names for r in results):
        given = sorted({", ".join(r.others) for r in results}) or "no results"
        raise VapError(f"Every result must have the same other prompts, got {given}. Ask for the same in each episode.")
    told = {"right": [r.right for r in results], **{n: [r.differences[n] for r in results] for n in names}}
    return {name: bootstrap_interval(values, level=level, seed=seed) for name, values in told.items()}


@runtime_checkable
class Returning(Protocol):
    """An env that can go back to a moment and play several actions at once, as ours can."""

    def save(self) -> Any:
        """Return a snapshot of the present moment."""
        ...

    def load(self, snapshot: Any) -> tuple[Any, dict[str, Any]]:
        """Return to a snapshot."""
        ...

    def step_chunk(self, actions: Any) -> tuple[Any, ...]:
        """Play actions (K, A); the K observations come first."""
        ...


def imagination_of(env: gym.Env[Any, Any], *, view: str = "front") -> Callable[[NDArray[Any]], Clip]:
    """Return a function from actions (T, A) to the T + 1 frames from the env's present moment, the start among them.

    Every call begins from this moment with the same noise, and leaves the env in it. `view` chooses among the views of
    an env that was made with several.

    Raises:
        VapError: an env that cannot return to a moment, such as the simulator's, or that has no such view.
    """
    inner = env.unwrapped
    if not isinstance(inner, Returning):
        raise VapError(
            f"The env must be able to return to a moment (save, load, step_chunk), got {type(inner).__name__}. "
            'Take one of ours, e.g. gym.make("VAP-DROID-v0").'
        )
    moment = inner.save()

    def imagine(actions: NDArray[Any]) -> Clip:
        first, _ = inner.load(moment)
        frames = inner.step_chunk(actions)[0]
        inner.load(moment)
        return np.concatenate([_seen(first, view)[None], _seen(frames, view)])

    return imagine


def _seen(observation: Any, view: str) -> NDArray[Any]:
    """The frames in an observation: by themselves, or beside joints, or of several views."""
    pixels = observation["pixels"] if isinstance(observation, dict) else observation
    if not isinstance(pixels, dict):
        return np.asarray(pixels)
    if view not in pixels:
        raise unknown_name("view", view, pixels)
    return np.asarray(pixels[view])
