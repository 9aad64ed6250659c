"""Doubt: signals that cost little, calibrated against errors, carried in info, ending episodes where asked to."""

import json
import shutil
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from vap_gym import VapEnv, VapVectorEnv
from vap_gym.assets import weights_dir
from vap_gym.commands.telling import json_text
from vap_gym.errors import CheckpointError, VapError
from vap_gym.evaluate.clips import played
from vap_gym.evaluate.fidelity_rollout import subject
from vap_gym.evaluate.heldout import load_heldout
from vap_gym.evaluate.report import plain
from vap_gym.evaluate.trust import object_errors, watch
from vap_gym.evaluate.trust_alone import ADHERENCE, DOUBT, SPREAD, Alone, singly
from vap_gym.evaluate.trust_page import page, plot
from vap_gym.evaluate.trust_scores import check, kept
from vap_gym.trust import SIGNALS, Calibration, TrustSignals
from vap_gym.trust.calibration import FILE, features, read, write
from vap_gym.world.model import INDEX

ID = "VAP-DROID-v0"


def drawn(count: int, seed: int = 0) -> np.ndarray:
    """Signals such as occur: step, changed, thing_spread_m, thing_moved_m, near_m, filled."""
    rng = np.random.default_rng(seed)
    return np.stack(
        [
            rng.integers(1, 25, count), rng.uniform(0.01, 0.3, count), rng.exponential(0.02, count),
            rng.exponential(0.03, count), rng.uniform(0, 0.3, count), rng.uniform(0, 0.3, count),
        ],
        -1,
    )  # fmt: skip


def fitted() -> Calibration:
    signals = drawn(3000)
    psnr = 35.0 - 12.0 * signals[:, 1] - 0.1 * signals[:, 0]
    return Calibration.fit(signals, psnr, signals[:, 2] > 0.03)


@pytest.fixture(scope="module")
def uncalibrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped model without its calibration of trust."""
    made = tmp_path_factory.mktemp("model") / "uncalibrated"
    shutil.copytree(weights_dir() / "tiny", made, ignore=shutil.ignore_patterns(FILE))
    return made


@pytest.fixture(scope="module")
def folder(uncalibrated: Path) -> Path:
    """The shipped model with another calibration of trust, for one robot."""
    made = uncalibrated.with_name("calibrated")
    shutil.copytree(uncalibrated, made)
    write(made, {"panda_robotiq": fitted()})
    return made


def made(folder: Path, **kwargs: Any) -> VapEnv:
    env = gym.make(ID, world_model=folder, judge=None, **kwargs).unwrapped
    assert isinstance(env, VapEnv)
    env.reset(seed=0)
    return env


def some_actions(env: VapEnv, count: int) -> np.ndarray:
    env.action_space.seed(0)
    return np.stack([env.action_space.sample() for _ in range(count)])


def test_what_is_expected_is_what_happens_and_ranks_it() -> None:
    calibration, signals = fitted(), drawn(2000, seed=1)
    told = calibration(signals)
    psnr = 35.0 - 12.0 * signals[:, 1] - 0.1 * signals[:, 0]
    assert np.abs(told.psnr_db - psnr).mean() < 0.3 * np.abs(psnr - psnr.mean()).mean()
    off = signals[:, 2] > 0.03
    assert ((told.object_risk >= 0) & (told.object_risk <= 1)).all()
    assert np.square(told.object_risk - off).mean() < 0.3 * np.square(off.mean() - off).mean()
    for low, high in ((0.0, 0.3), (0.7, 1.01)):
        group = (told.object_risk >= low) & (told.object_risk < high)
        assert off[group].mean() == pytest.approx(told.object_risk[group].mean(), abs=0.12)  # shrunk


def test_more_of_what_is_doubtful_never_lowers_a_fitted_risk() -> None:
    calibration, signals = fitted(), np.repeat(drawn(1), 50, 0)
    signals[:, 2] = np.linspace(0, 0.2, 50)
    assert (np.diff(calibration(signals).object_risk) >= 0).all()


def test_outcomes_that_never_happen_are_calibrated_too() -> None:
    signals = drawn(200)
    never = Calibration.fit(signals, np.full(200, 30.0), np.zeros(200, bool))
    told = never(drawn(50, seed=3))
    assert told.object_risk.max() < 0.01
    assert told.psnr_db == pytest.approx(np.full(50, 30.0))


def test_features_are_finite_wherever_signals_can_be() -> None:
    assert np.isfinite(features(np.zeros((3, len(SIGNALS))))).all()
    assert features(drawn(7).reshape(7, 1, -1)).shape[:2] == (7, 1)


def test_a_calibration_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    calibration, signals = fitted(), drawn(100, seed=2)
    write(tmp_path, {"one": calibration})
    again = read(tmp_path, "one")
    assert again is not None
    np.testing.assert_allclose(again(signals).psnr_db, calibration(signals).psnr_db, atol=1e-2)
    np.testing.assert_allclose(again(signals).object_risk, calibration(signals).object_risk, atol=1e-2)
    assert read(tmp_path, "another") is None
    assert read(tmp_path / "nowhere", "one") is None
    for text in ("{", '{"format": "other"}', '{"format": "vap_gym trust 1", "signals": []}', "[]"):
        (tmp_path / FILE).write_text(text)
        with pytest.raises(CheckpointError, match=r"is no calibration of trust for this .*vap-gym bench trust"):
            read(tmp_path, "one")


def test_a_calibration_of_other_weights_is_refused_and_its_robots_are_not_kept(tmp_path: Path) -> None:
    index = tmp_path / INDEX
    index.write_text(json.dumps({"sha256": {"dynamics": "1", "judge": "1"}}))
    write(tmp_path, {"one": fitted()})
    index.write_text(json.dumps({"sha256": {"dynamics": "1", "judge": "2"}}))  # another judge imagines the same
    write(tmp_path, {"two": fitted()})
    assert read(tmp_path, "one") is not None
    assert read(tmp_path, "two") is not None
    index.write_text(json.dumps({"sha256": {"dynamics": "2", "judge": "2"}}))
    with pytest.raises(CheckpointError, match="it lacks 'weights of the model that lies beside it'"):
        read(tmp_path, "one")
    write(tmp_path, {"two": fitted()})
    assert read(tmp_path, "one") is None


def test_info_carries_what_is_expected_and_frames_are_left_alone(uncalibrated: Path, folder: Path) -> None:
    plain, env = made(uncalibrated), made(folder)
    for action in some_actions(env, 3):
        before, after = plain.step(action), env.step(action)
        np.testing.assert_array_equal(before[0], after[0])
        trust = after[4]["trust"]
        assert 10 < trust["expected_psnr_db"] < 50
        assert 0 <= trust["object_risk"] <= 1


def test_chunks_snapshots_and_vector_envs_expect_the_same(folder: Path) -> None:
    env = made(folder)
    actions, begun = some_actions(env, 3), env.save()
    single = [env.step(action)[4]["trust"] for action in actions]
    env.load(begun)
    trust = env.step_chunk(actions)[4]
    assert [one["trust"]["object_risk"] for one in trust] == [one["object_risk"] for one in single]
    envs = gym.make_vec(ID, num_envs=2, world_model=folder, judge=None).unwrapped
    assert isinstance(envs, VapVectorEnv)
    envs.reset(seed=0)
    seen = [envs.step(np.stack([action] * 2))[4]["trust"]["expected_psnr_db"] for action in actions]
    assert [one[0] for one in seen] == pytest.approx([one["expected_psnr_db"] for one in single], abs=0.5)
    envs.reset(options={"reset_mask": np.array([False, True])})
    fresh = envs.state
    assert torch.equal(fresh["trust_place_m"][1], fresh["trust_start_m"][1])


def test_a_snapshot_from_before_the_calibration_goes_on_and_its_trust_is_not_known(
    uncalibrated: Path, folder: Path
) -> None:
    plain, env = made(uncalibrated), made(folder, min_trust=0.999)
    first, *rest = some_actions(plain, 3)
    plain.step(first)
    env.load(plain.save())
    for action in rest:
        before, after = plain.step(action), env.step(action)
        np.testing.assert_array_equal(before[0], after[0])
        assert np.isnan([after[4]["trust"][name] for name in ("expected_psnr_db", "object_risk")]).all()
        assert not after[3]
    env.load(env.save())  # it has all keys now
    env.reset(seed=1)
    assert np.isfinite(env.step(first)[4]["trust"]["object_risk"])
    lacking = plain.save()
    del lacking["about"]
    with pytest.raises(VapError, match=r"of another env: it lacks \['about', 'trust_"):
        env.load(lacking)


def test_an_episode_ends_where_trust_is_too_little(folder: Path) -> None:
    actions = some_actions(made(folder), 2)
    strict, lenient = made(folder, min_trust=0.999), made(folder, min_trust=1e-6)
    for action in actions:
        _, _, _, truncated, info = strict.step(action)
        assert truncated == (1.0 - info["trust"]["object_risk"] < 0.999)
        assert not lenient.step(action)[3]
    for wrong in (0.0, 1.0, -3.0):
        with pytest.raises(VapError, match=r"min_trust must be between 0 and 1, got"):
            made(folder, min_trust=wrong)
    with pytest.raises(
        VapError, match=r"min_trust needs a world model whose trust is calibrated for a 'widowx'.*bench"
    ):
        gym.make("VAP-Bridge-v0", world_model=folder, min_trust=0.5)


def test_members_start_elsewhere_and_stay_together_where_nothing_is_touched(folder: Path) -> None:
    env = made(folder)
    state = env.state
    there = state["world_thing_there"][:, None].expand(-1, 6, -1)
    apart = (state["trust_place_m"] - state["world_thing_place_m"][:, None]).norm(dim=-1)[there]
    assert apart.min() > 0
    assert apart.max() < 0.05
    signals = TrustSignals(env.stage.imagination.world)
    told = signals.step(state.clone(), env.stage.imagination.look(state).views[:, 0])
    assert told.shape == (1, len(SIGNALS))
    assert float(told[0, SIGNALS.index("thing_spread_m")]) < 0.002
    assert float(told[0, SIGNALS.index("step")]) == 0


def test_an_object_that_was_not_found_counts_as_left_where_it_was() -> None:
    objects = np.full((1, 2, 2, 3), np.nan)
    objects[0, :, 0], objects[0, 1, 0, 0] = [0.5, 0.0, 0.03], 0.58
    places, there = np.zeros((1, 2, 1, 3)), np.array([[True]])
    places[0, :, 0] = [0.5, 0.01, 0.03]
    places[0, 1, 0, 0] = 0.57
    assert object_errors(places, there, objects, table_m=0.0)[0, 0] == pytest.approx(np.hypot(0.01, 0.01))
    assert object_errors(places, ~there, objects, table_m=0.0)[0, 0] == pytest.approx(0.08)
    lifted = objects + [0.0, 0.0, 0.8]
    assert object_errors(places, there, lifted, table_m=0.8)[0, 0] == pytest.approx(np.hypot(0.01, 0.01))


def test_leaving_out_by_the_truth_gains_all_and_by_chance_nothing() -> None:
    error = np.linspace(0.0, 1.0, 200)
    assert kept(error, error).gained == pytest.approx(1.0)
    assert kept(-error, error).gained < -0.9
    shuffled = np.random.default_rng(0).permutation(200).astype(float)
    assert abs(kept(shuffled, error).gained) < 0.25
    assert kept(error, error).by_doubt[-1] == pytest.approx(kept(error, error).random)


def test_a_check_tells_good_signals_from_bad_ones() -> None:
    signals = drawn(60 * 24).reshape(60, 24, -1)
    psnr = 35.0 - 12.0 * signals[..., 1] - 0.1 * signals[..., 0]
    error_m = 1.2 * signals[..., 2]
    told = check(fitted(), signals, np.full((60, 24), np.nan), psnr, error_m)
    assert told.ranks["thing_spread_m"][1] == pytest.approx(1.0)
    assert abs(told.ranks["filled"][1]) < 0.15
    assert "spread over samples" not in told.ranks
    assert "adherence" not in told.ranks
    assert list(told.alone) == [DOUBT]
    assert told.psnr_off_db < 0.4 * told.psnr_usual_db
    for one in told.psnr_bins:
        assert abs(one.expected - one.happened.value) < 1.0
    assert json.loads(json_text(plain(told)))["object_kept"]["by_doubt"] == told.object_kept.by_doubt.tolist()


def test_a_single_signal_is_calibrated_alone_and_told_apart_from_one_that_says_nothing(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def episodes(count: int) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
        spread = rng.exponential(3.0, (count, 24))
        noise, nothing = rng.normal(size=(2, count, 24))
        seen = {SPREAD: spread, ADHERENCE: np.where(rng.random((count, 24)) < 0.2, np.nan, np.exp(nothing))}
        return seen, 34.0 - spread + noise, np.where(spread > 5, 0.05, 0.01)

    fitted_on, fitted_psnr, fitted_error = episodes(90)
    seen, psnr, error_m = episodes(60)
    found = singly(fitted_on, fitted_psnr, fitted_error > 0.03, seen, psnr, error_m)
    spread, adherence = found[SPREAD], found[ADHERENCE]
    assert (spread.known, round(adherence.known, 1)) == (1.0, 0.8)
    assert spread.psnr_rho > 0.8
    assert abs(adherence.psnr_rho) < 0.1
    assert spread.psnr_off_db < 0.6 * adherence.psnr_off_db
    assert spread.brier < 0.5 * adherence.brier
    assert max(spread.psnr_apart_db, adherence.psnr_apart_db) < 0.6  # also what says nothing is calibrated
    assert max(spread.risk_apart, adherence.risk_apart) < 0.08
    assert len(spread.parts) == len(adherence.parts) == 4
    assert sum(part.share for part in adherence.parts) == pytest.approx(adherence.known)
    assert np.all(np.diff([part.signal for part in spread.parts]) > 0)
    assert np.all(np.diff([part.psnr.happened.value for part in spread.parts]) < 0)
    assert spread.parts[-1].risk.happened.value > 0.5
    assert spread.parts[-1].error_m > spread.parts[0].error_m == pytest.approx(0.01)

    signals = drawn(60 * 24).reshape(60, 24, -1)
    told = check(fitted(), signals, seen[SPREAD], psnr, error_m, adherence_px=seen[ADHERENCE], alone=found)
    assert told.ranks["spread over samples"][0] > 0.8
    assert abs(told.ranks["adherence"][0]) < 0.1
    text = page({"VAP-DROID-v0": told}, "tiny", 90, 4, "trust.png")
    assert text.count(f"| {SPREAD} ") == text.count(f"| {ADHERENCE} ") == 5  # itself, and four parts
    assert "in 0 of 1 envs" in text  # a doubt that is of other signals
    plot({"VAP-DROID-v0": told}, tmp_path / "trust.png")
    assert (tmp_path / "trust.png").stat().st_size > 20_000


def test_a_signal_that_is_never_known_is_left_out_and_a_frame_that_is_not_gets_what_such_frames_were() -> None:
    nothing, psnr, error_m = np.full((3, 24), np.nan), np.full((3, 24), 30.0), np.zeros((3, 24))
    told = {ADHERENCE: nothing, SPREAD: nothing}
    assert singly(told, psnr, error_m > 0.03, told, psnr, error_m) == {}
    signal = np.array([1.0, 2.0, np.nan, np.nan])
    alone = Alone.fit(signal, np.array([30.0, 28.0, 20.0, 22.0]), np.array([False, False, True, True]))
    assert alone is not None
    expected = alone(np.array([[1.0, 2.0, np.nan]]))
    assert expected.psnr_db == pytest.approx(np.array([[30.0, 28.0, 21.0]]))
    assert expected.object_risk[0, 2] > 0.9 > 0.1 > expected.object_risk[0, 0]


def test_a_watched_clip_tells_where_the_gripper_is_seen_and_how_far_samples_are_apart(repo: Path) -> None:
    pytest.importorskip("pybullet", reason="the oracle needs pybullet")
    listed = load_heldout(repo / "benchmarks" / "heldout.toml")
    clips = played([item for item in listed if item.kind == "contact"][:2], robot="panda_robotiq", steps=3, workers=1)
    seen = watch(subject(ID, "tiny"), clips, samples=2)
    assert seen.adherence_px.shape == seen.spread_grey.shape == seen.psnr_db.shape == (2, 3)
    assert np.nanmedian(seen.adherence_px) < 8
    assert ((seen.spread_grey > 0) & (seen.spread_grey < 60)).all()
    found = singly(seen.single, seen.psnr_db, seen.off, seen.single, seen.psnr_db, seen.error_m)
    assert list(found) == [ADHERENCE, SPREAD]
    assert all(1 <= len(one.parts) <= 4 for one in found.values())
    assert np.isnan(watch(subject(ID, "tiny"), clips).spread_grey).all()
