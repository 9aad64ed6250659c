"""Familiarity: how unlike those of training a start is, by its camera and by the things in its first picture.

What is expected of frames (`calibration`) was learned from starts like those of training, and says nothing of others.
A start is as unfamiliar as it is rarely met there: 0 where 5 in 200 starts of training are as strange, 1 where at most
1 in 200 is, on a straight line between; the stranger of camera and things counts, which makes up to 5 in 100 starts of
those that this was told by strange at all (docs/familiar.md has what it is of others).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from tensordict import TensorDict
from torch import Tensor

from vap_gym.errors import CheckpointError, VapError
from vap_gym.trust.oddness import Oddness, crops_of
from vap_gym.world.checkpoint import load_part, replaced_text, save_part
from vap_gym.world.model import INDEX

FILE = "familiar.json"  # in a world model's folder
PART = "oddness"  # likewise, a folder: the network
FORMAT = "vap_gym familiar 1"
USUAL, RARE = 0.975, 0.995  # quantiles of training's starts from which one is strange, and at which it is wholly so
FIGURES = ("elevation_rad", "roll_rad", "log_distance", "target_x_m", "target_y_m", "cos_azimuth", "sin_azimuth",
           "log_focal")  # fmt: skip
FAR_M = 5.0  # no camera looks at anything further away
SHRUNK = 0.1  # of the correlations of cameras' figures
LEAST_SCALE = 0.02  # of each figure (rad, m, or a share): where all cameras of training stand alike, others may by that
LEAST_APART = 3.0, 4.0  # likewise, of the distance from which a camera is strange, and at which it is wholly so
DIGITS = 3  # of what is told: who else is in a batch changes later ones
LEAST = 20  # starts, of which quantiles can be told


@dataclass(frozen=True, kw_only=True)
class Scale:
    """From which score on something is strange, and at which it is wholly so."""

    usual: float
    rare: float

    def __call__(self, score: Float[np.ndarray, "*batch"]) -> Float[np.ndarray, "*batch"]:
        """Return 0 (usual) to 1 (strange)."""
        strange: np.ndarray = np.clip((score - self.usual) / max(self.rare - self.usual, 1e-6), 0.0, 1.0)
        return strange

    @staticmethod
    def of(scores: Float[np.ndarray, " N"]) -> Scale:
        """Return the scale of the scores of starts of training, −inf where there was nothing to score."""
        if len(scores) < LEAST:
            raise VapError(f"{LEAST} starts or more are needed to tell what is usual, got {len(scores)}.")
        lowest = float(scores[np.isfinite(scores)].min(initial=0.0))
        usual, rare = np.quantile(np.maximum(scores, lowest), (USUAL, RARE))
        return Scale(usual=float(usual), rare=float(rare))


@dataclass(frozen=True, kw_only=True)
class Cameras:
    """Which cameras are usual: mean, standard deviation and shrunk correlations of their figures (`FIGURES`)."""

    mean: Float[np.ndarray, "8"]
    scale: Float[np.ndarray, "8"]
    precision: Float[np.ndarray, "8 8"]

    def __call__(self, figures: Float[np.ndarray, "B 8"]) -> Float[np.ndarray, " B"]:
        """Return how far cameras are from the usual ones: Mahalanobis distances."""
        off = (figures - self.mean) / self.scale
        return np.asarray(np.sqrt(np.einsum("bi,ij,bj->b", off, self.precision, off)))

    @staticmethod
    def of(figures: Float[np.ndarray, "N 8"]) -> Cameras:
        """Return what is usual by the cameras of N starts of training."""
        mean, scale = figures.mean(0), np.maximum(figures.std(0), LEAST_SCALE)
        off = (figures - mean) / scale
        correlations = (1.0 - SHRUNK) * off.T @ off / len(off)
        np.fill_diagonal(correlations, 1.0)
        return Cameras(mean=mean, scale=scale, precision=np.linalg.inv(correlations))


@dataclass(frozen=True, kw_only=True)
class Usual:
    """What is usual for one world model and robot."""

    cameras: Cameras
    camera: Scale
    things: Scale


class Familiarity:
    """Tells how unfamiliar starts are. Settings only.

    Args:
        usual: what is usual for the world model and the robot.
        oddness: how odd things look.
        table_m: how high the card's table is in the robot's base frame.
    """

    def __init__(self, usual: Usual, oddness: Oddness, *, table_m: float = 0.0) -> None:
        self.usual = usual
        self.oddness = oddness.to("cpu").eval().requires_grad_(False)
        self.table_m = table_m

    def __call__(self, state: TensorDict) -> Float[Tensor, " B"]:
        """Return how unfamiliar states that a `WorldModel` has just begun are, 0 to 1; float32."""
        by_camera = self.usual.camera(self.usual.cameras(camera_figures(state, table_m=self.table_m)))
        by_things = self.usual.things(things_score(self.oddness, state))
        return torch.from_numpy(np.maximum(by_camera, by_things).round(DIGITS)).float()


def camera_figures(state: TensorDict, *, table_m: float = 0.0) -> Float[np.ndarray, "B 8"]:
    """Return `FIGURES` of the cameras of states: how steeply they look, from where, how far, how wide."""
    T = state["camera_T_world_camera"].double().cpu().numpy()
    focal = state["camera_K"][:, 1, 1].double().cpu().numpy() / state["world_first_picture"].shape[1]
    R, eye = T[:, :3, :3], T[:, :3, 3]
    ahead = R[:, :, 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        along = (table_m - eye[:, 2]) / ahead[:, 2]
    along = np.where(np.isfinite(along) & (along > 0.0), along, FAR_M).clip(0.01, FAR_M)
    target = eye + along[:, None] * ahead
    azimuth = np.arctan2(-ahead[:, 1], -ahead[:, 0])
    figures = [
        np.arcsin(np.clip(-ahead[:, 2], -1.0, 1.0)),
        np.arcsin(np.clip(R[:, 2, 0], -1.0, 1.0)),
        np.log(along),
        target[:, 0],
        target[:, 1],
        np.cos(azimuth),
        np.sin(azimuth),
        np.log(focal),
    ]
    return np.stack(figures, -1)


def things_score(oddness: Oddness, state: TensorDict) -> Float[np.ndarray, " B"]:
    """Return how odd the oddest thing of each state looks, logits; −inf where there is none to be seen."""
    worst: np.ndarray = oddness.of(crops_of(state)).amax(-1).double().numpy()
    return worst


def usual_of(figures: Float[np.ndarray, "N 8"], things: Float[np.ndarray, " N"]) -> Usual:
    """Return what is usual by N starts that nothing was trained on.

    How far off cameras usually are is told by each half of them from what the other half is like.
    """
    halves = figures[::2], figures[1::2]
    apart = np.concatenate([Cameras.of(one)(other) for one, other in (halves, halves[::-1])])
    found = Scale.of(apart)
    camera = Scale(usual=max(found.usual, LEAST_APART[0]), rare=max(found.rare, LEAST_APART[1]))
    return Usual(cameras=Cameras.of(figures), camera=camera, things=Scale.of(things))


def read(folder: Path, robot: str, *, table_m: float = 0.0) -> Familiarity | None:
    """Return how a world model's folder tells familiarity for a robot; None where it does not. Raises CheckpointError
    for damaged files, and for those of another model."""
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        if table["format"] != FORMAT or table["figures"] != list(FIGURES):
            raise KeyError(f"format {FORMAT!r} with figures {list(FIGURES)}")
        if table["finds"] != finds(folder):
            raise KeyError("sha256 of what finds things in the model that lies beside it")
        if robot not in table["robots"]:
            return None
        usual = _usual(table["robots"][robot])
    except (json.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"'{path}' does not tell what is familiar to this model: it lacks {error}. Make it anew: vap-gym train "
            f"familiar tiny_familiar --world-model {folder} --write, or remove it."
        ) from error
    oddness = load_part(Oddness, folder, PART, {"sha256": {PART: table["sha256"]}})
    return Familiarity(usual, oddness, table_m=table_m)


def write(folder: Path, oddness: Oddness, robots: Mapping[str, Usual]) -> None:
    """Write how familiarity is told into a world model's folder; the table, which names the network, last."""
    if not (folder / INDEX).is_file():
        raise VapError(f"Familiarity is told of a world model, got '{folder}' without {INDEX}. Give a model's folder.")
    table = {
        "format": FORMAT, "figures": list(FIGURES), "quantiles": [USUAL, RARE], "finds": finds(folder),
        "sha256": save_part(oddness, folder, PART, torch.float16),
        "robots": {robot: _plain(usual) for robot, usual in robots.items()},
    }  # fmt: skip
    replaced_text(folder / FILE, json.dumps(table, indent=1) + "\n")


def finds(folder: Path) -> dict[str, str]:
    """Return the hashes of what finds robot and things in the first pictures of a world model of this folder."""
    told = json.loads((folder / INDEX).read_text(encoding="utf-8")).get("sha256", {})
    return {name: str(told.get(name, "")) for name in ("appearance", "things")}


def _plain(usual: Usual) -> dict[str, Any]:
    def rounded(values: np.ndarray) -> Any:
        return np.round(values, 6).tolist()

    cameras = {name: rounded(value) for name, value in vars(usual.cameras).items()}
    scales = {name: {k: round(v, 6) for k, v in vars(getattr(usual, name)).items()} for name in ("camera", "things")}
    return {"cameras": cameras} | scales


def _usual(table: Mapping[str, Any]) -> Usual:
    n = len(FIGURES)
    mean, scale, precision = (np.array(table["cameras"][k], float) for k in ("mean", "scale", "precision"))
    shapes: Sequence[tuple[int, ...]] = (mean.shape, scale.shape, precision.shape)
    if list(shapes) != [(n,), (n,), (n, n)]:
        raise KeyError(f"cameras of {n} figures")
    scales = {name: Scale(**{k: float(v) for k, v in table[name].items()}) for name in ("camera", "things")}
    return Usual(cameras=Cameras(mean=mean, scale=scale, precision=precision), **scales)
