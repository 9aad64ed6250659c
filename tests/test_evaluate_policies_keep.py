"""What is kept of a played episode."""

import json
from pathlib import Path

import numpy as np
import pytest

from vap_gym.evaluate.policies_arena import Moment
from vap_gym.evaluate.policies_keep import row_of
from vap_gym.evaluate.policies_play import Played
from vap_gym.evaluate.policies_trials import Trial
from vap_gym.policies.known import familiar_digest, weights_digest


def played(*trust: dict[str, float]) -> Played:
    moments = [
        Moment(
            pixels={"front": np.zeros((2, 3, 3), np.uint8)},
            agent_pos=np.zeros(8, np.float32),
            tip=np.zeros(6, np.float32),
            target_m=np.zeros(3, np.float32),
            instruction="reach",
            progress=0.1 * t,
            success=False,
            source="judge",
            trust=told,
        )
        for t, told in enumerate(trust)
    ]
    actions = [np.zeros(7, np.float32)] * (len(moments) - 1)
    return Played(trial=Trial(start=0, seed=0), moments=moments, actions=actions)


def test_trust_of_an_episode_is_one_less_the_mean_risk_of_its_steps() -> None:
    """A maximum would soon reach the calibration's end, and tell long doubt no worse than short doubt."""
    risks = ({}, {"object_risk": 0.1}, {"object_risk": 0.2}, {"object_risk": 0.2})
    assert row_of(played(*risks), 0)["trust"] == pytest.approx(1 - 0.5 / 3, abs=1e-6)
    late, early = (row_of(played({}, *({"object_risk": r} for r in rs)), 0) for rs in ((0.0, 0.2), (0.2, 0.2)))
    assert late["trust"] > early["trust"]


def test_trust_that_nobody_told_is_not_made_up_and_steps_without_are_left_out() -> None:
    assert row_of(played({}, {"adherence_px": 2.0}, {"adherence_px": 4.0}), 0)["trust"] is None
    row = row_of(played({}, {"object_risk": float("nan"), "adherence_px": 2.0}, {"object_risk": 0.3}), 0)
    assert row["trust"] == pytest.approx(0.7)
    assert row["adherence_px"] == 2.0


def test_weights_are_known_by_what_they_do_not_by_what_is_said_of_them(tmp_path: Path) -> None:
    (tmp_path / "motion").mkdir()
    (tmp_path / "motion" / "model.safetensors").write_bytes(b"1234")
    (tmp_path / "README.md").write_text("A model.")
    before = weights_digest(str(tmp_path))
    (tmp_path / "README.md").write_text("A good model.")
    (tmp_path / "scores.json").write_text("{}")
    (tmp_path / "oddness").mkdir()
    (tmp_path / "oddness" / "model.safetensors").write_bytes(b"5")
    table = {"sha256": "1", "quantiles": [0.9], "robots": {"one": {"camera": 1}, "two": {"camera": 2}}}
    (tmp_path / "familiar.json").write_text(json.dumps(table))
    assert weights_digest(str(tmp_path)) == before != ""
    told = familiar_digest(str(tmp_path), "one")
    assert len({told, familiar_digest(str(tmp_path), "two"), familiar_digest(str(tmp_path), "three"), ""}) == 3
    table["robots"]["two"] = {"camera": 3}  # type: ignore[index]
    (tmp_path / "familiar.json").write_text(json.dumps(table))
    assert familiar_digest(str(tmp_path), "one") == told
    (tmp_path / "familiar.json").write_text(json.dumps(table | {"sha256": "2"}))
    assert familiar_digest(str(tmp_path), "one") != told
    (tmp_path / "motion" / "model.safetensors").write_bytes(b"1235")
    assert weights_digest(str(tmp_path)) != before
