"""The 21 joints of a hand: names, bones, and the orders in which other projects list them.

OpenPose order throughout: wrist, then thumb, index, middle, ring, little, each from base to tip.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from vap_gym.errors import VapError, unknown_name

FINGERS = ("thumb", "index", "middle", "ring", "little")
NAMES = ("wrist", *(f"{finger}_{i}" for finger in FINGERS for i in (1, 2, 3, 4)))
JOINTS = 21
SIDES = ("left", "right")
"""Index of a hand in every (T, 2, …) array: 0 is the left hand, 1 the right one."""

EDGES: tuple[tuple[int, int], ...] = tuple(
    (4 * f + i if i else 0, 4 * f + i + 1) for f in range(len(FINGERS)) for i in range(4)
)
"""The 20 bones, parent first: 0-1-2-3-4, 0-5-…-8, 0-9-…-12, 0-13-…-16, 0-17-…-20; bone b belongs to finger b // 4."""

ORDERS: Mapping[str, tuple[int, ...]] = {
    "openpose": tuple(range(JOINTS)),
    # MANO's 16 joints (wrist; index, middle, little, ring, thumb) with the five tips, thumb to little, after them.
    "mano": (0, 13, 14, 15, 16, 1, 2, 3, 17, 4, 5, 6, 18, 10, 11, 12, 19, 7, 8, 9, 20),
    # InterHand2.6M: every finger from tip to base, the wrist last. Left hands come after right ones (21–41).
    "interhand": (20, *(4 * f + 3 - i for f in range(len(FINGERS)) for i in range(4))),
}
"""For every order: where it lists our joint j."""

MANO_TIP_VERTICES = (744, 320, 443, 554, 671)
"""The vertices of MANO's mesh that stand for the finger ends, thumb to little [WiLoR, HaMeR]."""


def to_openpose(joints: Float[np.ndarray, "*batch 21 C"], order: str) -> Float[np.ndarray, "*batch 21 C"]:
    """Return joints listed in another order ("mano", "interhand") in OpenPose's. Raises VapError for other names."""
    if order not in ORDERS:
        raise unknown_name("order of hand joints", order, ORDERS)
    return joints[..., list(ORDERS[order]), :]


def from_openpose(joints: Float[np.ndarray, "*batch 21 C"], order: str) -> Float[np.ndarray, "*batch 21 C"]:
    """Return OpenPose's joints in another order, the inverse of `to_openpose`."""
    if order not in ORDERS:
        raise unknown_name("order of hand joints", order, ORDERS)
    return joints[..., np.argsort(ORDERS[order]).tolist(), :]


def with_tips(
    joints16: Float[np.ndarray, "*batch 16 3"], vertices: Float[np.ndarray, "*batch V 3"]
) -> Float[np.ndarray, "*batch 21 3"]:
    """Return the 21 joints (OpenPose) of MANO's 16 joints and its 778 vertices: the tips are five of these."""
    if vertices.shape[-2] <= max(MANO_TIP_VERTICES):
        raise VapError(f"MANO's mesh has 778 vertices, got {vertices.shape[-2]}. Give all of them, in MANO's order.")
    return to_openpose(np.concatenate([joints16, vertices[..., list(MANO_TIP_VERTICES), :]], axis=-2), "mano")
