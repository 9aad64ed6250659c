"""Stable-Baselines3 models as policies: anything with its `predict`, from this library or sb3-contrib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from vap_gym.errors import require, unknown_name
from vap_gym.policies.protocol import Conventions, EpisodeStart, Observations, PolicyError

Array = np.ndarray
ALGORITHMS = ("a2c", "ddpg", "ppo", "sac", "td3")


class Sb3Policy:
    """A trained SB3 model. It sees what it was trained on: a frame, or a dict with "pixels" and "agent_pos".

    Args:
        model: the trained model, or a `BasePolicy` of one.
        conventions: what it was trained with.
        deterministic: take the likeliest action; else it is drawn, from torch's generator and so in another way each
            time.

    Raises:
        PolicyError: a recurrent model (it needs a state for each episode), or one with observations of other kinds.
    """

    def __init__(self, model: Any, conventions: Conventions, *, deterministic: bool = True) -> None:
        if any(hasattr(getattr(model, "policy", model), name) for name in ("lstm_actor", "lstm_hidden_state_shape")):
            raise PolicyError(
                f"A recurrent model remembers, got a {type(model).__name__}. Use one without memory, or wrap it "
                "yourself: a policy needs reset(episodes) and act(observations, instructions)."
            )
        self.model, self._conventions, self.deterministic = model, conventions, deterministic
        self._keys = _observation_keys(model.observation_space)

    @classmethod
    def load(cls, path: str | Path, algorithm: str, conventions: Conventions) -> Sb3Policy:
        """Read a model that `model.save(path)` wrote; `algorithm` is one of ALGORITHMS."""
        if algorithm.lower() not in ALGORITHMS:
            raise unknown_name("SB3 algorithm", algorithm, ALGORITHMS)
        file = Path(path)
        if not (file.is_file() or file.with_name(f"{file.name}.zip").is_file()):
            raise PolicyError(f"No SB3 model at '{path}'. Give the zip that model.save(path) wrote.")
        sb3 = require("stable_baselines3", "stable-baselines3", "Sb3Policy")
        return cls(getattr(sb3, algorithm.upper()).load(path, device="cpu"), conventions)

    @property
    def conventions(self) -> Conventions:
        """As they were given."""
        return self._conventions

    def reset(self, episodes: Sequence[EpisodeStart]) -> None:
        """Nothing is remembered from step to step."""

    def act(self, observations: Observations, instructions: Sequence[str]) -> Float[Array, "B A"]:
        """Return the next actions.

        Raises:
            PolicyError: frames of another shape than it was trained on.
        """
        given = observations.as_env()
        seen = given["pixels"] if self._keys is None else {key: given[key] for key in self._keys}
        try:
            actions, _ = self.model.predict(seen, deterministic=self.deterministic)
        except ValueError as error:
            raise PolicyError(f"The SB3 model cannot use what the env shows: {error}") from error
        return np.asarray(actions, np.float32)


def _observation_keys(space: Any) -> tuple[str, ...] | None:
    """The parts of a dict that a model sees; None: it sees the frame alone."""
    parts = getattr(space, "spaces", None)
    if not isinstance(parts, dict):
        return None
    unknown = [key for key in parts if key not in ("pixels", "agent_pos")]
    if unknown:
        raise PolicyError(
            f"A model may see 'pixels' and 'agent_pos', got one that also sees {', '.join(unknown)}. "
            "Wrap it: a policy needs reset(episodes) and act(observations, instructions)."
        )
    return tuple(parts)
