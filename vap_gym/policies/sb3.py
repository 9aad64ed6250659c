"""Stable-Baselines3 models as policies: anything with its `predict`, from this library or sb3-contrib."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from vap_gym.errors import require, unknown_name
from vap_gym.policies.known import file_digest
from vap_gym.policies.protocol import Conventions, EpisodeStart, Observations, PolicyError

Array = np.ndarray
ALGORITHMS = ("a2c", "ddpg", "ppo", "sac", "td3")


class Sb3Policy:
    """A trained SB3 model. It sees what it was trained on: a frame, or a dict with "pixels" and "agent_pos".

    Args:
        model: the trained model, or a `BasePolicy` of one.
        conventions: what it was trained with; how many numbers its actions and state have, and how large its frames
            are, its own spaces tell.
        deterministic: take the likeliest action; else it is drawn, from torch's generator and so in another way each
            time.
        weights: by what this model is told from others of the same kind.

    Raises:
        PolicyError: a recurrent model (it needs a state for each episode), one with observations or actions of other
            kinds, or one whose spaces are not what `conventions` say.
    """

    def __init__(self, model: Any, conventions: Conventions, *, deterministic: bool = True, weights: str = "") -> None:
        if any(hasattr(getattr(model, "policy", model), name) for name in ("lstm_actor", "lstm_hidden_state_shape")):
            raise PolicyError(
                f"A recurrent model remembers, got a {type(model).__name__}. Use one without memory, or wrap it "
                "yourself: a policy needs reset(episodes) and act(observations, instructions)."
            )
        self.model, self.deterministic, self.weights = model, deterministic, weights
        self._keys = _observation_keys(model.observation_space)
        self._conventions = _declared(conventions, model)

    @classmethod
    def load(cls, path: str | Path, algorithm: str, conventions: Conventions) -> Sb3Policy:
        """Read a model that `model.save(path)` wrote; `algorithm` is one of ALGORITHMS."""
        if algorithm.lower() not in ALGORITHMS:
            raise unknown_name("SB3 algorithm", algorithm, ALGORITHMS)
        file = Path(path)
        if not (file.is_file() or file.with_name(f"{file.name}.zip").is_file()):
            raise PolicyError(f"No SB3 model at '{path}'. Give the zip that model.save(path) wrote.")
        file = file if file.is_file() else file.with_name(f"{file.name}.zip")
        sb3 = require("stable_baselines3", "stable-baselines3", "Sb3Policy")
        try:
            model = getattr(sb3, algorithm.upper()).load(file, device="cpu")
        except Exception as error:  # a damaged zip or pickle, or another algorithm's model, raises whatever it likes
            raise PolicyError(
                f"'{file}' cannot be read as a model of '{algorithm}': {error}. Give the zip that model.save(path) "
                "wrote, and the algorithm that it is of."
            ) from error
        return cls(model, conventions, weights=file_digest(file))

    @property
    def conventions(self) -> Conventions:
        """As they were given, with the sizes of the model's own spaces."""
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


def _declared(conventions: Conventions, model: Any) -> Conventions:
    """The conventions with the sizes that a model's spaces tell."""
    shape = tuple(getattr(model.action_space, "shape", None) or ())
    if len(shape) != 1:
        raise PolicyError(
            f"A model must give actions (A,) of real numbers, got one with the space {model.action_space}. Train it in "
            "an env of vap-gym whose world model imagines single steps."
        )
    parts = getattr(model.observation_space, "spaces", None) or {"pixels": model.observation_space}
    own: dict[str, Any] = {"action_size": shape[0]}
    if "pixels" in parts:
        own["frame_size_px"] = _frame_size_px(tuple(parts["pixels"].shape))
    if "agent_pos" in parts:
        own["state_size"] = int(np.prod(parts["agent_pos"].shape))
    for name, value in own.items():
        said = getattr(conventions, name)
        if said not in (None, value):
            raise PolicyError(
                f"The conventions of an SB3 model must be its own, got {name}={said} for a model of {value}. Leave "
                f"{name} out."
            )
    return replace(conventions, **own)


def _frame_size_px(shape: tuple[int, ...]) -> tuple[int, int]:
    """(width, height) of frames (H, W, 3), or (3, H, W) as SB3 turns them for its networks."""
    if len(shape) != 3 or 3 not in (shape[0], shape[2]):
        raise PolicyError(f"A model's frames must be (H, W, 3), got {shape}. Stacks of frames are not supported.")
    height, width = shape[:2] if shape[2] == 3 else shape[1:]
    return int(width), int(height)
