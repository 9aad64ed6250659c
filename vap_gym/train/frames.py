"""Frames and label maps of a data set in memory, and the weight maps that the losses take."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from vap_gym.data import EpisodeSet
from vap_gym.errors import VapError
from vap_gym.train.sets import check_set


def load_frames(
    folders: list[Path], *, every: int, view: str, limit: int | None = None
) -> tuple[UInt8[Tensor, "N H W 3"], UInt8[Tensor, "N H W"]]:
    """Every `every`-th frame of the sets, with label maps; the first frame taken shifts from episode to episode.

    Where a set has no label maps, as recordings of real robots have none, all is background.
    """
    from tqdm import tqdm

    pictures, labels = [], []
    for folder in folders:
        episodes = EpisodeSet(folder)
        count = len(episodes) if limit is None else min(limit, len(episodes))
        if count == 0:
            raise VapError(f"'{folder}' must hold episodes, got none. Make some with: vap-gym data generate {folder}")
        check_set(episodes, view=view)
        labelled = [view] if view in episodes.features.labels else []
        for i in tqdm(range(count), desc=f"reading {folder}", unit="episode", mininterval=5):
            episode = episodes.read(i, views=[view], labels=labelled, columns=[])
            pictures.append(episode.frames[view][i % every :: every])
            nothing = np.zeros(episode.frames[view].shape[:3], np.uint8)
            labels.append(episode.labels.get(view, nothing)[i % every :: every])
    return torch.from_numpy(np.concatenate(pictures)), torch.from_numpy(np.concatenate(labels))


def label_weight(labels: UInt8[Tensor, "N H W"], *, gripper: float, objects: float) -> Float[Tensor, "N 1 H W"]:
    """1 everywhere, more on and right around gripper and objects (labels as in `vap_gym.sim.scene.LABELS`)."""
    on = torch.zeros_like(labels, dtype=torch.float32)
    on[labels == 2] = gripper
    on[labels >= 3] = objects
    return 1.0 + F.max_pool2d(on[:, None], 5, stride=1, padding=2)
