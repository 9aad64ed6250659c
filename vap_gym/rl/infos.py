"""Infos of vector envs: one dict per slot out of Gymnasium's dict of arrays, and rows of observations."""

from __future__ import annotations

from typing import Any

import numpy as np

from vap_gym.observations import Observation


def slot_infos(infos: dict[str, Any], num_envs: int) -> list[dict[str, Any]]:
    """Return a vector env's infos as one dict per slot, nested ones included."""
    slots: list[dict[str, Any]] = [{} for _ in range(num_envs)]
    for key, values in infos.items():
        if key.startswith("_"):
            continue
        rows = slot_infos(values, num_envs) if isinstance(values, dict) else values
        for i in np.flatnonzero(infos[f"_{key}"]).tolist():
            slots[i][key] = rows[i]
    return slots


def row_of(observations: Observation, i: int) -> Observation:
    """Return slot i's observation out of a batch of them."""
    if isinstance(observations, dict):
        return {key: row_of(part, i) for key, part in observations.items()}
    return observations[i]
