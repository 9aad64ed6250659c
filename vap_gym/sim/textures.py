"""Procedural table textures; the family "tiles" is kept out of training."""

from __future__ import annotations

import numpy as np

from vap_gym.errors import unknown_name
from vap_gym.sim.draw import NOVEL_TEXTURES, TRAIN_TEXTURES

SIZE_PX = 512
SHOWN = 0.25  # share of the texture, per side, that PyBullet shows on a box


def table_texture(name: str, colours: tuple[tuple[float, ...], tuple[float, ...]], seed: int) -> np.ndarray:
    """Return an RGB texture, uint8 (512, 512, 3), mixing two colours in [0, 1] by a pattern drawn from `seed`."""
    rng = np.random.default_rng([seed, 731])
    y, x = np.mgrid[0:SIZE_PX, 0:SIZE_PX] / (SIZE_PX * SHOWN)
    mix: np.ndarray
    if name == "plain":
        mix = np.zeros((SIZE_PX, SIZE_PX))
    elif name == "wood":
        bend = _smooth_noise(rng, 12) * 0.25
        mix = 0.5 + 0.5 * np.sin(2 * np.pi * (rng.uniform(5, 12) * x + 3 * bend + 0.3 * np.sin(3 * y)))
        mix = 0.6 * mix + 0.4 * _smooth_noise(rng, 96)
    elif name == "speckle":
        mix = (rng.random((SIZE_PX // 2, SIZE_PX // 2)) > 0.82).repeat(2, 0).repeat(2, 1) * 0.8
    elif name == "cloud":
        mix = _smooth_noise(rng, int(rng.integers(12, 36)))
    elif name == "stripes":
        angle = rng.uniform(0, np.pi)
        mix = (np.sin(2 * np.pi * rng.uniform(5, 14) * (x * np.cos(angle) + y * np.sin(angle))) > 0) * 0.8
    elif name == "tiles":
        count = int(rng.integers(6, 12))
        joint = (np.minimum((x * count) % 1, (y * count) % 1) < 0.1) * 1.0
        cells = int(np.ceil(count / SHOWN))
        shade = rng.random((cells, cells))[(y * count).astype(int), (x * count).astype(int)]
        mix = np.maximum(joint, 0.5 * shade)
    else:
        raise unknown_name("table texture", name, TRAIN_TEXTURES + NOVEL_TEXTURES)
    first, second = np.asarray(colours[0]), np.asarray(colours[1])
    picture = first + (second - first) * np.clip(mix, 0, 1)[..., None]
    return np.asarray(np.clip(picture * 255 + 0.5, 0, 255), np.uint8)


def _smooth_noise(rng: np.random.Generator, cells: int) -> np.ndarray:
    """Bilinear value noise on a (cells+1)² grid, in [0, 1]."""
    grid = rng.random((cells + 1, cells + 1))
    position = np.linspace(0, cells, SIZE_PX, endpoint=False)
    low = position.astype(int)
    part = position - low
    rows = grid[low] * (1 - part)[:, None] + grid[low + 1] * part[:, None]
    return np.asarray(rows[:, low] * (1 - part) + rows[:, low + 1] * part)
