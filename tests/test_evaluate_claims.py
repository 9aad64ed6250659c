"""What a folder's episodes are of is noted: other weights, judges and starts are refused, the same elsewhere not."""

import json
import pickle
import shutil
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

import vap_gym
from vap_gym.assets import weights_dir
from vap_gym.errors import VapError
from vap_gym.evaluate.policies_claims import claim
from vap_gym.evaluate.policies_report import Report
from vap_gym.loading import load_starts
from vap_gym.plan.planned import PlannedPolicy, PlanSettings
from vap_gym.policies import Conventions, FunctionPolicy
from vap_gym.policies.known import judge_digest
from vap_gym.policies.things import AgentCard, ThingsPolicy
from vap_gym.starts import save_starts

ID, ORACLE = "VAP-DROID-v0", "VAP-DROID-Oracle-v0"
STILL = {"still": FunctionPolicy(lambda seen, words: np.zeros(7), Conventions(action_mode="cartesian_velocity"))}


def trained(path: Path) -> None:
    """Change a file of weights as training does: not its size."""
    kept = bytearray(path.read_bytes())
    kept[-9] ^= 1
    path.write_bytes(bytes(kept))


def weights_of(folder: Path, part: str) -> Path:
    """The file of a part's weights."""
    return next((folder / part).glob("*.safetensors"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the shipped model."""
    return Path(shutil.copytree(weights_dir() / "tiny", tmp_path / "model"))


@pytest.fixture
def agent(tmp_path: Path) -> Path:
    """An agent that has learned nothing."""
    from stable_baselines3.ppo import MlpPolicy

    box = gym.spaces.Box(-1, 1, (3,))
    (tmp_path / "agent").mkdir()
    AgentCard(task="reach", algorithm="clone").save(tmp_path / "agent", MlpPolicy(box, box, lambda _: 0.0))
    return tmp_path / "agent"


def evaluated(out: Path, env: str = ORACLE, **settings: object) -> Report:
    """Evaluate from one start to reach, for a step."""
    given = {"starts": 1, "task": "reach", "steps": 1, "act_timeout_s": None, "clips": 0, **settings}
    return vap_gym.evaluate_policies(STILL, env, out=out, **given)


# --- policies that look through a world model and a judge ---


@pytest.mark.parametrize("part", ["motion", "judge"])
def test_a_policy_that_looks_through_other_weights_is_another_one(
    part: str, model: Path, agent: Path, tmp_path: Path
) -> None:
    """In the oracle, too, where the env has no weights of its own."""

    def policies() -> dict[str, object]:
        sees = {"world_model": str(model), "judge": str(model)}
        return {
            "things": ThingsPolicy(agent, **sees), "told": ThingsPolicy(agent, sees="truth", **sees),
            "planned": PlannedPolicy(PlanSettings(**sees)),
            "line": PlannedPolicy(PlanSettings(dynamics="none", **sees)),
            "simulated": PlannedPolicy(PlanSettings(dynamics="oracle", **sees)),
        }  # fmt: skip

    for name, policy in policies().items():
        claim(tmp_path, name, policy)
    for name, policy in policies().items():
        claim(tmp_path, name, pickle.loads(pickle.dumps(policy)))
    trained(weights_of(model, part))
    for name, policy in policies().items():
        if name in ("told", "simulated"):
            claim(tmp_path, name, policy)  # it looks at no picture
        else:
            with pytest.raises(VapError, match=rf"another policy named '{name}': it differs in looks_through\."):
                claim(tmp_path, name, policy)


def test_the_same_agent_at_another_path_is_no_other_policy(
    agent: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    claim(tmp_path, "p", ThingsPolicy("agent"))
    claim(tmp_path, "p", ThingsPolicy(agent, world_model="tiny"))
    claim(tmp_path, "p", ThingsPolicy(agent, world_model=str(model)))
    assert capsys.readouterr().err == ""
    trained(weights_of(model, "dynamics"))
    with pytest.raises(VapError, match=r"it differs in looks_through"):
        claim(tmp_path, "p", ThingsPolicy(agent, world_model=str(model)))


def test_what_an_older_note_does_not_tell_is_unknown_and_said(
    agent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    claim(tmp_path, "p", ThingsPolicy(agent))
    note = tmp_path / "policies" / "p.json"
    told = json.loads(note.read_text())
    del told["looks_through"]
    note.write_text(json.dumps(told))
    claim(tmp_path, "p", ThingsPolicy(agent))
    assert "the policy 'p' was noted by an older version, without looks_through" in capsys.readouterr().err
    assert json.loads(note.read_text()) == told  # nobody knows, now as before
    with pytest.raises(VapError, match=r"it differs in judge"):
        claim(tmp_path, "p", ThingsPolicy(agent, judge="other"))


# --- judges and starts ---


def test_a_judge_that_was_trained_in_place_is_refused(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = evaluated(out, ID, judge=str(model))
    trained(weights_of(model, "motion"))
    assert evaluated(out, ID, judge=str(model)) == first  # no part of the judge
    trained(weights_of(model, "judge"))
    with pytest.raises(VapError, match=r"other settings, .*judge_weights"):
        evaluated(out, ID, judge=str(model))


def test_a_judge_is_known_by_its_parts(model: Path) -> None:
    before = judge_digest(model)
    assert before == judge_digest("tiny") != ""
    trained(weights_of(model, "codec"))
    assert judge_digest(model) != before
    assert judge_digest("nowhere") == ""


def test_starts_are_known_by_what_they_are_not_by_where_they_lie(tmp_path: Path) -> None:
    shipped = load_starts(ID, None)
    first, second = (shipped[number] for number in shipped.of_task("reach")[:2])
    here, there, out = tmp_path / "here.npz", tmp_path / "there.npz", tmp_path / "out"
    save_starts(here, [first])
    found = evaluated(out, starts_file=here)
    assert found.about["starts_digest"]
    shutil.copy(here, there)
    assert evaluated(out, starts_file=there).rows == found.rows
    save_starts(here, [second])
    with pytest.raises(VapError, match=r"other settings, .*starts_digest"):
        evaluated(out, starts_file=here)


def test_an_evaluation_of_an_older_version_is_gone_on_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from vap_gym.jobs.manifest import begin, settings_in, write

    evaluated(tmp_path)
    manifest = tmp_path / "manifest.jsonl"
    old = settings_in(manifest)
    assert old is not None
    assert old.pop("starts_digest")
    outcomes = begin(manifest, settings_in(manifest) or {})
    write(manifest, old, outcomes.values())
    before = manifest.read_bytes()
    capsys.readouterr()
    report = evaluated(tmp_path)
    assert "was noted by an older version, without starts_digest" in capsys.readouterr().err
    assert manifest.read_bytes() == before
    assert "starts_digest" not in report.about  # nobody knows
    with pytest.raises(VapError, match=r"other settings"):
        evaluated(tmp_path, steps=2)
