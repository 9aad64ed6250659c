"""Scores of generated clips, one figure an episode, so that intervals and pairs can be made of them later."""

from __future__ import annotations

import hashlib
import os
import zipfile
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from numpy.typing import NDArray
from torch import nn

from vap_gym import metrics
from vap_gym.data.conventions import camera_of
from vap_gym.evaluate.tables_clips import VIEW, HeldOutClips
from vap_gym.geometry import Camera
from vap_gym.judge import Judge
from vap_gym.world.codec import FrameCodec, to_frames, to_pictures

Scores = dict[str, NDArray[np.float64]]
"""By metric: a figure of each of N episodes, NaN where it does not apply."""

MASKED = ("j", "f", "j_and_f")


def score_clips(made: UInt8[np.ndarray, "N T H W 3"], clips: HeldOutClips, judge: Judge) -> Scores:
    """Score N clips that begin with the true first frame; frame 0 counts for motion only.

    `psnr` [dB], `ssim`: means over frames. `st_iou`: of motion. `adherence_px`: median over frames of the distance
    from where the gripper is commanded to be to where the judge sees it. `j`, `f`, `j_and_f`: of the manipulated
    thing, the judge's segmentation of what was made against the oracle's of what is true; NaN where nothing that the
    judge has a label for is manipulated.
    """
    true = clips.frames
    pairs = list(zip(made, true, strict=True))
    scores = {
        "psnr": [metrics.psnr(a[1:], b[1:]) for a, b in pairs],
        "ssim": [metrics.ssim(a[1:], b[1:]) for a, b in pairs],
        "st_iou": [metrics.st_iou(a, b) for a, b in pairs],
    }
    return {name: np.array(values, np.float64) for name, values in scores.items()} | judged(made, clips, judge)


def judged(made: UInt8[np.ndarray, "N T H W 3"], clips: HeldOutClips, judge: Judge) -> Scores:
    """The part of `score_clips` that the judge reads from frames."""
    commanded_px = clips.tool_px()
    labels = int(judge.network.config.labels)
    found: dict[str, list[float]] = {"adherence_px": [], **{name: [] for name in MASKED}}
    for i, (clip, episode, target) in enumerate(zip(made, clips.episodes, clips.manipulated().tolist(), strict=True)):
        camera = camera_of(episode.columns, VIEW, (clip.shape[2], clip.shape[1]))
        later = Camera(K=camera.K[1:], T_world_camera=camera.T_world_camera[1:], frame_size_px=camera.frame_size_px)
        reading = judge.read_frames(torch.from_numpy(clip[1:]), later)
        off_px = metrics.adherence_px(commanded_px[i, 1:], reading.gripper_px.double().cpu().numpy())
        diagonal = float(np.hypot(*clip.shape[1:3]))  # where the judge sees none: as far as can be
        is_told = ~np.isnan(off_px)
        found["adherence_px"].append(min(float(np.median(off_px[is_told])), diagonal) if is_told.any() else np.nan)
        if not 0 < target < labels:
            scores = dict.fromkeys(MASKED, np.nan)
        else:
            truth = episode.labels[VIEW][1:] == target
            said = metrics.mask_scores(reading.segmentation.cpu().numpy() == target, truth)
            scores = {"j": said.j, "f": said.f, "j_and_f": said.j_and_f}
        for name in MASKED:
            found[name].append(scores[name])
    return {name: np.array(values, np.float64) for name, values in found.items()}


def frozen(clips: HeldOutClips) -> UInt8[np.ndarray, "N T H W 3"]:
    """The first frame, again and again."""
    true = clips.frames
    return np.repeat(true[:, :1], true.shape[1], axis=1)


@torch.inference_mode()
def through_codec(clips: HeldOutClips, codec: FrameCodec) -> UInt8[np.ndarray, "N T H W 3"]:
    """The true frames after a round trip of the codec: nothing that is decoded by it can be nearer to them."""
    made = []
    for clip in clips.frames:
        pictures = to_pictures(torch.from_numpy(clip)).contiguous(memory_format=torch.channels_last)
        made.append(to_frames(codec.decode(codec.encode(pictures))).numpy())
    return np.stack(made)


def fingerprint(*parts: str | nn.Module) -> str:
    """A hash of names and of networks' parameters."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            digest.update(part.encode() + b"\0")
            continue
        for name, value in sorted(part.state_dict().items()):
            digest.update(name.encode() + value.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()


def read_scores(path: Path, key: str) -> Scores | None:
    """Scores that were kept under this key; None where there are none, or of something else."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            if str(stored["key"]) != key:
                return None
            return {name: stored[name] for name in stored.files if name != "key"}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError):
        return None


def write_scores(path: Path, key: str, scores: Scores) -> None:
    """Keep scores, under a temporary name until they are whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp.npz")
    np.savez_compressed(temporary, key=np.array(key), **scores)  # type: ignore[arg-type]
    temporary.replace(path)


def is_known_gripper(true_scores: Scores, *, limit_px: float = 3.0) -> bool:
    """Whether the judge finds this robot's gripper in true frames, where it should be: else its word counts nothing."""
    seen = true_scores["adherence_px"]
    seen = seen[~np.isnan(seen)]
    return bool(len(seen) and np.median(seen) <= limit_px)


def matched(scores: list[Scores], metric: str) -> tuple[Float[np.ndarray, "S N"], Bool[np.ndarray, " N"]]:
    """A metric of S seeds over N episodes, and in which episodes it applies to all of them."""
    values = np.stack([one[metric] for one in scores])
    return values, np.asarray(~np.isnan(values).any(0))
