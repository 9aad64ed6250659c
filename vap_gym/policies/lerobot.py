"""LeRobot's policies: anything of the shape of its `PreTrainedPolicy`, one action or a chunk of them at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from vap_gym.policies.chunks import ChunkQueue
from vap_gym.policies.known import module_digest
from vap_gym.policies.protocol import Conventions, EpisodeStart, Observations, PolicyError

Array = np.ndarray
Batch = dict[str, Any]
STATE = "observation.state"


class LeRobotPolicy:
    """A LeRobot policy: `select_action(batch)` → (B, A), or with `execute` `predict_action_chunk(batch)` → (B, n, A).

    A batch holds "observation.images.<view>" float32 (B, 3, H, W) in [0, 1], "observation.state" float32 (B, n + 1)
    (joints [rad] and closedness) and "task", a list of B instructions.

    `select_action` keeps one queue for the whole batch, so that all episodes of it must begin together; of those that
    have ended the last picture is shown on. `predict_action_chunk` is asked for the episodes that need actions: that is
    only right for policies that remember nothing else, no past pictures for instance.

    Args:
        policy: has `reset()` and `select_action(batch)`, or `predict_action_chunk(batch)`.
        conventions: what it was trained with. How many numbers its actions and state have is read from its `config`
            (LeRobot's `input_features` and `output_features`), where it has one and they do not say it.
        execute: actions of a chunk that are played before it is asked again; None: leave it to `select_action`.
        preprocess, postprocess: what its processors do to a batch and to actions (LeRobot's
            `make_pre_post_processors` gives both).
        names: other names of what a batch holds, e.g. {"observation.images.front": "observation.images.top"}.
        device: where it runs.

    Raises:
        PolicyError: it lacks the methods, or its config asks for pictures that no view is sent as.
    """

    def __init__(
        self,
        policy: Any,
        conventions: Conventions,
        *,
        execute: int | None = None,
        preprocess: Callable[[Batch], Batch] | None = None,
        postprocess: Callable[[Any], Any] | None = None,
        names: dict[str, str] | None = None,
        device: str = "cpu",
    ) -> None:
        wanted = "select_action" if execute is None else "predict_action_chunk"
        if not callable(getattr(policy, wanted, None)) or not callable(getattr(policy, "reset", None)):
            raise PolicyError(
                f"A LeRobot policy needs reset() and {wanted}(batch), got a {type(policy).__name__} without. "
                "Use FunctionPolicy for a plain function."
            )
        self.policy, self.device, self.weights = policy, device, module_digest(policy)
        self.preprocess, self.postprocess, self.names = preprocess, postprocess, dict(names or {})
        self._conventions = self._declared(conventions)
        self._chunks = None if execute is None else ChunkQueue(execute)
        self._begun: tuple[int, ...] = ()  # slots of the batch, in the order in which `select_action` knows them
        self._last: dict[int, tuple[Observations, str]] = {}

    @property
    def conventions(self) -> Conventions:
        """As they were given, with the sizes that its config tells."""
        return self._conventions

    def reset(self, episodes: Sequence[EpisodeStart]) -> None:
        """Begin episodes; with `select_action` these are all that there are from now on."""
        slots = tuple(episode.slot for episode in episodes)
        if self._chunks is not None:
            self._chunks.reset(slots)
        self._begun, self._last = slots, {}
        self.policy.reset()

    @torch.no_grad()
    def act(self, observations: Observations, instructions: Sequence[str]) -> Float[Array, "B A"]:
        """Return the next actions."""
        if self._chunks is not None:
            return self._chunks.act(observations, instructions, self._chunk)
        strangers = [slot for slot in observations.slots if slot not in self._begun]
        if strangers:
            raise PolicyError(
                f"All episodes of a LeRobot policy's queue must begin together, got slots {strangers} beside "
                f"{list(self._begun)}. Say how many actions of a chunk to play: LeRobotPolicy(…, execute=8)."
            )
        for i, slot in enumerate(observations.slots):
            self._last[slot] = (observations.rows([i]), instructions[i])
        if set(self._last) != set(self._begun):
            raise PolicyError("A LeRobot policy must first see every episode that has begun, got some of them only.")
        seen = [self._last[slot] for slot in self._begun]
        chosen = self._asked(self.policy.select_action, [one for one, _ in seen], [words for _, words in seen])
        return chosen[[self._begun.index(slot) for slot in observations.slots]]

    def _declared(self, conventions: Conventions) -> Conventions:
        config = getattr(self.policy, "config", None)
        takes, gives = (_shapes(getattr(config, name, None)) for name in ("input_features", "output_features"))
        sent = [self.names.get(key, key) for key in (f"observation.images.{view}" for view in conventions.views)]
        lacking = [key for key in takes if key.startswith("observation.images.") and key not in sent]
        if lacking and self.preprocess is None:
            raise PolicyError(
                f"A LeRobot policy must get every picture that its config names, got {', '.join(sent)} for "
                f"{', '.join(lacking)}. Say which view is which: LeRobotPolicy(…, names={{'{sent[0]}': "
                f"'{lacking[0]}'}}), and which views there are: Conventions(views=…)."
            )
        action, state = gives.get("action", ()), takes.get(self.names.get(STATE, STATE), ())
        return replace(
            conventions,
            action_size=conventions.action_size or (action[-1] if action else None),
            state_size=conventions.state_size or (state[-1] if state else None),
        )

    def _chunk(self, observations: Observations, instructions: Sequence[str]) -> object:
        return self._asked(self.policy.predict_action_chunk, [observations], instructions)

    def _asked(
        self, ask: Callable[[Batch], Any], parts: Sequence[Observations], instructions: Sequence[str]
    ) -> Float[Array, "B *n A"]:
        batch = self._batch(parts, instructions)
        actions = ask(batch if self.preprocess is None else self.preprocess(batch))
        if self.postprocess is not None:
            actions = self.postprocess(actions)
        return np.asarray(torch.as_tensor(actions).detach().float().cpu().numpy())

    def _batch(self, parts: Sequence[Observations], instructions: Sequence[str]) -> Batch:
        batch: Batch = {}
        for view in self._conventions.views:
            frames = torch.from_numpy(np.concatenate([part.pixels[view] for part in parts]))
            batch[f"observation.images.{view}"] = frames.permute(0, 3, 1, 2).contiguous().to(self.device).float() / 255
        state = np.concatenate([part.agent_pos for part in parts])
        batch |= {STATE: torch.from_numpy(state).to(self.device), "task": list(instructions)}
        return {self.names.get(key, key): value for key, value in batch.items()}


def _shapes(features: Mapping[str, Any] | None) -> dict[str, tuple[int, ...]]:
    """The shapes of LeRobot's `PolicyFeature`s by name; {} where there are none."""
    return {key: tuple(feature.shape) for key, feature in (features or {}).items()}
