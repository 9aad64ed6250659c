"""What is judged: how far the gripper and objects that a judge reads from frames are from where they should be."""

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from vap_gym.errors import VapError


def adherence_px(commanded_px: NDArray[np.floating], seen_px: NDArray[np.floating]) -> Float[np.ndarray, "*batch"]:
    """Return how far in pixels the gripper that a judge sees is from where it was commanded: (*batch, 2) → (*batch).

    NaN where there is no command (commanded is NaN); infinite where the judge sees no gripper (seen is NaN), so that a
    vanished gripper is never left out of a median.
    """
    return _distance(seen_px, commanded_px, "seen_px", "commanded_px", 2)


def object_error_m(
    judged_world_m: NDArray[np.floating], true_world_m: NDArray[np.floating]
) -> Float[np.ndarray, "*batch"]:
    """Return how far in metres judged objects are from the true ones: (*batch, 3) → (*batch).

    NaN where there is no such object (true is NaN); infinite where it exists and the judge finds none (judged is NaN).
    """
    return _distance(judged_world_m, true_world_m, "judged_world_m", "true_world_m", 3)


def _distance(
    judged: NDArray[np.floating], true: NDArray[np.floating], judged_name: str, true_name: str, size: int
) -> NDArray[np.float64]:
    if judged.shape != true.shape or judged.shape[-1:] != (size,):
        raise VapError(
            f"{judged_name} and {true_name} must have one shape (*batch, {size}), got {judged.shape} and {true.shape}. "
            f"Mark what is absent by NaN instead of leaving it out."
        )
    distance = np.linalg.norm(judged.astype(np.float64) - true, axis=-1)
    missed = np.isnan(judged).any(-1)
    return np.where(np.isnan(true).any(-1), np.nan, np.where(missed, np.inf, distance))
