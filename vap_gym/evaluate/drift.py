"""Drift: how far imagined frames are from the oracle's after many steps, of any world model that can be streamed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from vap_gym.assets import weights_dir
from vap_gym.cards import load_env
from vap_gym.errors import VapError
from vap_gym.evaluate.clips import Clips, fingerprint, played
from vap_gym.evaluate.drift_kept import BESIDE, CODEC, FROZEN
from vap_gym.evaluate.fidelity_figures import psnr_by_step
from vap_gym.evaluate.fidelity_rollout import started
from vap_gym.evaluate.heldout import MAIN_KINDS, HeldOut, load_heldout
from vap_gym.imagine import Imagination
from vap_gym.loading import build_stage
from vap_gym.policies.known import weights_digest
from vap_gym.world.codec import FrameCodec, to_frames, to_pictures

ENV = "VAP-DROID-v0"
SHIPPED = "tiny"  # its codec is the ceiling


@dataclass(frozen=True, kw_only=True)
class Streamed:
    """A world whose drift is measured: a model's name or folder, or one of `BESIDE`."""

    name: str  # that it is shown by
    folder: str = ""
    evaluations: int | None = None  # of the network a frame; None: as the model has it

    @property
    def digest(self) -> str:
        """What its weights are known by; "" where it has none."""
        if self.name == FROZEN:
            return ""
        return weights_digest(str(weights_dir() / SHIPPED / "codec") if self.name == CODEC else self.folder)


@dataclass(frozen=True, kw_only=True)
class Told:
    """What every part is measured with."""

    items: tuple[HeldOut, ...]
    steps: int
    batch: int  # episodes that are imagined together
    cache: Path  # folder of the oracle's episodes
    device: str
    threads: int

    def part(self, first: int) -> list[HeldOut]:
        """The episodes of a batch, by its first one's number."""
        return list(self.items[first : first + self.batch])


def read_worlds(texts: Sequence[str]) -> list[Streamed]:
    """Return the worlds of a command line, NAME, NAME=FOLDER or NAME,N=FOLDER, and what is measured beside them.

    Raises VapError for numbers of evaluations that are none, and for two of the same name.
    """
    found = []
    for text in texts:
        label, _, folder = text.rpartition("=")
        name, _, number = label.partition(",")
        if number and not (number.isdecimal() and int(number)):
            raise VapError(
                f"Evaluations are a number from 1 on, got '{number}' in '{text}'. Such as {name},2={folder}."
            )
        shown = f"{name or folder}, {number or 1} evaluation{'s' if number not in ('', '1') else ''}"
        found.append(Streamed(name=shown, folder=folder, evaluations=int(number) if number else None))
    names = [one.name for one in found]
    if twice := {name for name in names if names.count(name) > 1}:
        raise VapError(f"Every world needs a name of its own, got {', '.join(sorted(twice))} twice. Say NAME=FOLDER.")
    return [*found, *(Streamed(name=name) for name in BESIDE)]


def check_worlds(worlds: Sequence[Streamed], device: str) -> None:
    """Load every model, before hours are spent. Raises CheckpointError for one that cannot be."""
    for one in worlds:
        if one.name not in BESIDE:
            build_stage(ENV, world_model=one.folder, device=device, judge=None)


def chosen(path: Path, episodes: int) -> tuple[HeldOut, ...]:
    """Return held-out episodes, taken evenly from those in which the robot moves."""
    items = [item for item in load_heldout(path) if item.kind in MAIN_KINDS]
    return tuple(items[int(i)] for i in np.linspace(0, len(items) - 1, min(episodes, len(items))))


def true_clips(told: Told, first: int) -> Clips:
    """Return a batch of true episodes, played on to all steps; read from the cache where they are there."""
    part, robot = told.part(first), load_env(ENV).robot
    name = f"drift_{fingerprint(part, robot, told.steps)[:12]}.npz"
    return played(part, robot=robot, steps=told.steps, cache=told.cache / name, workers=1)


def measure(told: Told, job: tuple[Streamed | None, int]) -> Float[np.ndarray, "N K"] | None:
    """Return the PSNR (dB) of a world's frames at every step of the batch that begins with that number; without a world
    only see to it that the batch is in the cache."""
    world, first = job
    torch.set_num_threads(told.threads)
    clips = true_clips(told, first)
    if world is None:
        return None
    truth = clips.frames[:, 1:]
    if world.name == FROZEN:
        return psnr_by_step(np.repeat(clips.frames[:, :1], clips.steps, axis=1), truth)
    if world.name == CODEC:
        return psnr_by_step(_rebuilt(truth, told.device), truth)
    imagination = build_stage(ENV, world_model=world.folder, device=told.device, judge=None).imagination
    made = imagined(imagination, clips, first=first, evaluations=world.evaluations)
    return psnr_by_step(made, truth[:, : made.shape[1]])


def imagined(imagination: Imagination, clips: Clips, *, first: int = 0, evaluations: int | None = None) -> np.ndarray:
    """Return the frames after each clip's first, uint8 (N, K, H, W, 3); noise seeds are counted from `first`."""
    state = started(imagination, clips, first=first)
    actions, chunk = torch.from_numpy(clips.actions).float(), getattr(imagination.world, "chunk", 1)
    made = []
    for t in range(0, clips.steps - clips.steps % chunk, chunk):
        state, frames, _ = imagination.step(state, actions[:, t : t + chunk], evaluations=evaluations)
        assert frames is not None
        made.append(frames.cpu().numpy())
    return np.concatenate(made, axis=1)


@torch.no_grad()
def _rebuilt(frames: np.ndarray, device: str) -> np.ndarray:
    """What the shipped codec makes of frames (N, K, H, W, 3)."""
    codec = FrameCodec.from_pretrained(weights_dir() / SHIPPED / "codec", torch_dtype=torch.float32).to(device).eval()
    made = []
    for clip in frames:
        pictures = to_pictures(torch.from_numpy(clip).to(device))
        made.append(to_frames(codec.decode(codec.encode(pictures))).cpu().numpy())
    return np.stack(made)
