"""Trust of kept trials, brought up to date: what trials tried anew would have, once, and by one teller only."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vap_gym.assets import weights_dir
from vap_gym.errors import VapError
from vap_gym.evaluate.agreement_outcomes import Outcomes
from vap_gym.evaluate.agreement_starts import starts_file
from vap_gym.evaluate.policies import evaluate_policies
from vap_gym.evaluate.policies_report import Row
from vap_gym.policies import ScriptedExpert
from vap_gym.policies.known import familiar_digest, weights_digest
from vap_gym.trust.familiar import FILE, PART

ENV, ROBOT, FIRST_SEED = "VAP-DROID-v0", "panda_robotiq", 5_000_000


@pytest.fixture(scope="module")
def bench(repo: Path) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(repo / "benchmarks"))
        import agreement_familiar

        yield agreement_familiar


def rows(*trust: float | None) -> list[Row]:
    return [
        Row(trial=i, verdict="success", fault=None, steps=5, progress=0.5, adherence_px=None, trust=value)
        for i, value in enumerate(trust)
    ]


def kept() -> Outcomes:
    found = Outcomes({"env": ENV, "starts": 3, "strange_starts": 2, "first_seed": FIRST_SEED})
    found.add("imagined", "push", "a", rows(0.9, 0.8, None))
    found.add("imagined", "push", "b", rows(0.7, 0.4, 0.9))
    found.add("oracle", "push", "a", rows(None, None, None))
    found.claim_weights("imagined", "tiny", "abc")
    return found


def test_trust_falls_towards_one_half_by_as_much_as_a_start_is_unfamiliar_and_once_only() -> None:
    outcomes = kept()
    assert outcomes.meet("imagined", {"push": [1.0, 0.25, 0.0]}, "f1") == 3
    assert outcomes.units["imagined/push/a"]["trust"] == [0.5, 0.725, None]
    assert outcomes.units["imagined/push/b"]["trust"] == [0.5, 0.4, 0.9]  # what is doubted more stays so
    assert outcomes.units["oracle/push/a"]["trust"] is None
    assert outcomes.meet("imagined", {"push": [1.0, 0.25, 0.0]}, "f1") == 0
    assert outcomes.units["imagined/push/a"]["trust"] == [0.5, 0.725, None]
    with pytest.raises(VapError, match=r"told by 'f1' before, now by 'f2'.*--forget imagined"):
        outcomes.meet("imagined", {"push": [0.0] * 3}, "f2")
    with pytest.raises(VapError, match="3 starts of 'push' are needed, got 2"):
        kept().meet("imagined", {"push": [0.0, 0.0]}, "f1")


def test_trials_of_before_and_after_are_not_mixed() -> None:
    outcomes = kept()
    outcomes.claim_weights("imagined", "tiny", "abc")
    with pytest.raises(VapError, match="strange starts were told otherwise .*agreement_familiar"):
        outcomes.claim_weights("imagined", "tiny", "abc", "f1")
    outcomes.meet("imagined", {"push": [0.0] * 3}, "f1")
    outcomes.claim_weights("imagined", "tiny", "abc", "f1")
    assert outcomes.weights["imagined"] == {"name": "tiny", "digest": "abc", "familiar": "f1"}
    with pytest.raises(VapError, match="told otherwise"):
        outcomes.claim_weights("imagined", "tiny", "abc")


def test_what_is_written_is_what_trials_tried_anew_have(bench: Any, tmp_path: Path) -> None:
    out, page = tmp_path / "out", tmp_path / "page.json"
    path = starts_file(out, "cameras", "push", 2, env=ENV, first_seed=FIRST_SEED)
    unaware = tmp_path / "unaware"
    shutil.copytree(weights_dir() / "tiny", unaware, ignore=shutil.ignore_patterns(FILE, PART))
    assert weights_digest(str(unaware)) == weights_digest("tiny")
    assert familiar_digest(str(unaware), ROBOT) == ""

    def tried(model: str) -> list[float]:
        report = evaluate_policies(
            {"expert": ScriptedExpert()}, ENV, out=tmp_path / f"of_{Path(model).name}", starts=2, starts_file=path,
            task="push", steps=6, clips=0, world_model=model,
        )  # fmt: skip
        return [float(row.trust) for row in report.rows["expert"] if row is not None and row.trust is not None]

    before, anew = tried(str(unaware)), tried("tiny")
    assert len(before) == len(anew) == 2
    assert max(anew) < min(before) - 0.1
    outcomes = kept()
    outcomes.add("cameras-imagined", "push", "expert", rows(*before))
    digest, familiar = weights_digest("tiny"), familiar_digest("tiny", ROBOT)
    outcomes.claim_weights("cameras-imagined", "tiny", digest)
    outcomes.save(page)
    assert bench.main(page, out=out) == {"cameras-imagined": 2}
    after = Outcomes.load(page)
    np.testing.assert_allclose(after.trust("cameras-imagined", "push", ["expert"])[0], anew, atol=1e-3)
    assert after.weights["cameras-imagined"]["familiar"] == familiar != ""
    assert after.units["imagined/push/a"] == outcomes.units["imagined/push/a"]  # of another model
    assert bench.main(page, out=out) == {"cameras-imagined": 0}
