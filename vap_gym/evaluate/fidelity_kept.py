"""Fidelity that was measured: all figures beside the page, so that the page can be made anew without measuring."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vap_gym.errors import CheckpointError
from vap_gym.evaluate.fidelity_figures import Report
from vap_gym.evaluate.report import write
from vap_gym.metrics import Interval

FORMAT = "vap_gym fidelity 1"


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """The figures of one or more envs, of which model they are, and where and when they were measured."""

    measured: dict[str, Report]
    world_model: str
    evaluations: int
    origin: str

    def save(self, path: Path) -> None:
        """Write them as JSON, whole or not at all."""
        told = {"format": FORMAT, "world_model": self.world_model, "evaluations": self.evaluations,
                "origin": self.origin, "measured": self.measured}  # fmt: skip
        write(path, json.dumps(told, indent=1, ensure_ascii=False, default=asdict))

    @staticmethod
    def load(path: Path) -> Fidelity:
        """Read what `save` wrote. Raises CheckpointError where it is something else."""
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
            if held["format"] != FORMAT:
                raise KeyError(f"format '{FORMAT}', got '{held['format']}'")
            measured = {
                env: {key: _figure(value) for key, value in report.items()} for env, report in held["measured"].items()
            }
            return Fidelity(measured=measured, world_model=str(held["world_model"]),
                            evaluations=int(held["evaluations"]), origin=str(held["origin"]))  # fmt: skip
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"'{path}' holds no figures of fidelity: {error}. `vap-gym bench fidelity` writes them beside its page."
            ) from error


def _figure(value: Any) -> Any:
    return Interval(**value) if isinstance(value, dict) and "level" in value else value
