"""Does the picture follow its prompt, and would another prompt have made another one: on real clips and a real env."""

import json
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vap_gym  # noqa: F401 (registers the ids)
from vap_gym.cards import load_robot
from vap_gym.data.video import read_video
from vap_gym.errors import VapError
from vap_gym.geometry import Camera, inverse
from vap_gym.kinematics.control import Controller
from vap_gym.metrics import psnr, st_iou
from vap_gym.metrics.control import (
    Sensitivity,
    counterfactual_sensitivity,
    counterfactuals,
    imagination_of,
    motion_adherence,
    sensitivity_intervals,
)
from vap_gym.prompts.raster import draw
from vap_gym.prompts.skeleton import Skeleton


def squares(places: np.ndarray, *, side: int = 16, colour: int = 220) -> np.ndarray:
    """A clip of a square whose upper left corner is at `places` (T, 2), row and column."""
    clip = np.zeros((len(places), 64, 96, 3), np.uint8)
    for frame, (row, column) in zip(clip, places):
        frame[row : row + side, column : column + side] = colour
    return clip


def path(seed: int, frames: int = 14) -> np.ndarray:
    """Places along a walk that turns now and then."""
    rng, at, places = np.random.default_rng(seed), np.array([24, 40]), []
    for t in range(frames):
        if t % 4 == 0:
            step = rng.choice([-5, 5], 2)
        at = np.clip(at + step, 0, [46, 78])
        places.append(at)
    return np.stack(places)


# --- prompt adherence -------------------------------------------------------------------------------------------------


def test_a_clip_adheres_to_itself_and_to_a_thin_drawing_of_itself() -> None:
    places = path(0)
    clip = squares(places)
    assert motion_adherence(clip, clip).score == 1
    thin = squares(places + 4, side=8, colour=120)
    assert motion_adherence(clip, thin).score > 0.8


def test_frozen_pictures_and_empty_prompts_score_next_to_nothing() -> None:
    clip = squares(path(0))
    still = np.repeat(clip[:1], len(clip), axis=0)
    frozen = motion_adherence(still, clip)
    assert (frozen.score, frozen.as_told, frozen.all_told) == (0, 1, 0)  # nothing moved, so nothing beside the prompt
    empty = motion_adherence(clip, np.zeros_like(clip))
    assert (empty.score, empty.as_told, empty.all_told) == (0, 0, 1)
    assert motion_adherence(still, still).score == 1


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 99), flip=st.sampled_from([(1,), (2,), (1, 2)]))
def test_other_prompts_score_lower_and_mirrors_the_same(seed: int, flip) -> None:
    clip, other = squares(path(seed)), squares(path(seed + 1))
    right, wrong = motion_adherence(clip, clip), motion_adherence(clip, other)
    assert 0 <= wrong.score < right.score
    assert motion_adherence(np.flip(clip, flip), np.flip(other, flip)) == wrong


@pytest.mark.parametrize("late", [0, 1, 3])
def test_a_late_picture_is_right_within_the_lag_that_is_allowed(late: int) -> None:
    prompts = squares(path(2, 24))
    frames = np.concatenate([np.repeat(prompts[:1], late, axis=0), prompts])[: len(prompts)]
    found = motion_adherence(frames, prompts, max_lag_frames=3)
    assert found.lag_frames == late
    assert found.score > 0.99
    if late:
        assert motion_adherence(frames, prompts).score < 0.99


def test_adherence_refuses_what_cannot_be_compared() -> None:
    clip = squares(path(0))
    with pytest.raises(VapError, match=r"frames and prompts must have one shape \(T, H, W, 3\), got \(14, .*Cut both"):
        motion_adherence(clip, clip[:5])
    with pytest.raises(VapError, match=r"below the number of frames - 1, got 0\.04, 13 and 14 frames\. Try"):
        motion_adherence(clip, clip, max_lag_frames=13)
    with pytest.raises(VapError, match=r"tolerance must be a share in \[0, 1\] .* got 4"):
        motion_adherence(clip, clip, tolerance=4.0)


@pytest.fixture(scope="module")
def droid(shared_data: Path) -> Path:
    return shared_data / "droid"


def real_prompts(droid: Path, camera: str, log_of: str, frames: int) -> np.ndarray:
    """Skeletons of an episode's log as a calibrated camera sees them."""
    robot, card = load_robot("panda_robotiq"), json.loads((droid / "cameras.json").read_text())[camera]
    log = np.load(droid / log_of / "log.npz")
    rows = log["frame_to_row"][:frames]
    q, gripper = (torch.from_numpy(log[key][rows]).float() for key in ("joint_position", "gripper_position"))
    size = tuple(card["image_size_wh"])
    T_world_camera = inverse(torch.tensor(card["T_camera_from_base"]))
    seen = Camera(K=torch.tensor(card["K"]), T_world_camera=T_world_camera, frame_size_px=size)
    skeleton = Skeleton(robot)
    return draw(skeleton.keypoints(Controller(robot).start(q, gripper)), seen, skeleton, frame_size_px=size)


@pytest.mark.parametrize(("episode", "camera"), [("newsetup_0010", "cam0"), ("newsetup_0012", "cam1")])
def test_real_frames_follow_the_prompts_of_their_own_log(droid: Path, episode: str, camera: str) -> None:
    frames = read_video(droid / episode / f"{camera}.mp4", stop=60)
    prompts = real_prompts(droid, camera, episode, len(frames))
    right = motion_adherence(frames, prompts, max_lag_frames=2)
    assert right.score > 0.7
    assert right.lag_frames <= 1  # frames and log are of one moment, but one was written after the other
    wrong = {
        "reversed": motion_adherence(frames, prompts[::-1].copy()),
        "empty": motion_adherence(frames, np.zeros_like(prompts)),
        "another": motion_adherence(frames, real_prompts(droid, camera, "newsetup_0001", len(frames))),
        "frozen frame": motion_adherence(np.repeat(frames[:1], len(frames), axis=0), prompts),
    }
    assert {name for name, score in wrong.items() if score.score > right.score - 0.1} == set()


# --- counterfactual sensitivity ---------------------------------------------------------------------------------------


def test_a_model_that_heeds_its_prompt_is_told_from_one_that_does_not() -> None:
    right, another = path(0), path(1)
    others = counterfactuals(right, another=another, empty=right[0])
    heeding = counterfactual_sensitivity(
        lambda p: squares(np.concatenate([right[:1], p])), squares(np.concatenate([right[:1], right])), right, others
    )
    assert heeding.right == 1
    assert list(heeding.differences) == ["reversed", "empty", "another"]
    assert heeding.least == min(heeding.differences.values()) > 0.3
    deaf = counterfactual_sensitivity(lambda _: squares(right), squares(right), right, others)
    assert deaf == Sensitivity(right=1.0, others=dict.fromkeys(others, 1.0))
    assert deaf.least == 0


def test_any_score_can_be_asked_for() -> None:
    right = path(0)
    found = counterfactual_sensitivity(
        lambda p: squares(np.concatenate([right[:1], p[1:]])), squares(right), right, {"still": right * 0}, score=psnr
    )
    assert found.right == 40
    assert 0 < found.differences["still"] < 40


def test_counterfactuals_of_actions_and_of_prompts() -> None:
    actions = np.arange(6.0).reshape(3, 2)
    made = counterfactuals(actions, another=actions + 1)
    np.testing.assert_array_equal(made["reversed"], [[4, 5], [2, 3], [0, 1]])
    np.testing.assert_array_equal(made["empty"], np.zeros((3, 2)))
    np.testing.assert_array_equal(made["another"], actions + 1)
    np.testing.assert_array_equal(counterfactuals(actions, empty=np.array([7.0, 8]))["empty"], [[7, 8]] * 3)
    assert counterfactuals(squares(path(0)))["empty"].sum() == 0
    with pytest.raises(VapError, match=r"another must have shape \(3, 2\), got \(2, 2\)\. Cut both"):
        counterfactuals(actions, another=actions[:2])
    with pytest.raises(VapError, match=r"empty must have shape \(2,\), got \(3, 2\)"):
        counterfactuals(actions, empty=actions)


def test_imaginations_from_several_starts_are_refused() -> None:
    right = path(0)
    with pytest.raises(VapError, match=r"must begin with one picture, got for 'other' another .* Return to the same"):
        counterfactual_sensitivity(squares, squares(right), right, {"other": right[::-1]})
    with pytest.raises(VapError, match=r"at least one other prompt, got none\. Give e\.g\."):
        counterfactual_sensitivity(squares, squares(right), right, {})
    with pytest.raises(VapError, match=r"the clip imagined with 'short' and truth must have one shape"):
        counterfactual_sensitivity(squares, squares(right), right, {"short": right[:3]})


def test_sensitivity_over_episodes_has_paired_intervals() -> None:
    rng = np.random.default_rng(0)
    hard = rng.uniform(0.2, 0.9, 60)  # episodes differ far more than prompts do
    results = [Sensitivity(right=h, others={"empty": h - 0.1 + 0.01 * rng.normal()}) for h in hard]
    found = sensitivity_intervals(results)
    assert found["right"].value == pytest.approx(hard.mean())
    assert found["right"].high - found["right"].low > 0.05
    assert 0.09 < found["empty"].low < found["empty"].value < found["empty"].high < 0.11
    with pytest.raises(VapError, match=r"same other prompts, got \['empty', 'reversed'\]\. Ask"):
        sensitivity_intervals([*results, Sensitivity(right=0.5, others={"reversed": 0.1})])
    with pytest.raises(VapError, match=r"got no results"):
        sensitivity_intervals([])


def pushes(seed: int, steps: int = 6) -> np.ndarray:
    """Cartesian velocities: full speed one way for half of the steps, and another way for the rest."""
    rng, actions = np.random.default_rng(seed), np.zeros((steps, 7), np.float32)
    for half in (actions[: steps // 2], actions[steps // 2 :]):
        half[:, :3] = rng.choice([-1, 1], 3)
    return actions


def test_the_shipped_model_heeds_its_actions() -> None:
    """Beside the simulator: the same start under the right, reversed, no, and another start's actions."""
    pytest.importorskip("pybullet")
    env, oracle = gym.make("VAP-DROID-v0", judge=None), gym.make("VAP-DROID-Oracle-v0")
    first, _ = oracle.reset(seed=0, options={"start": 1})
    env.reset(seed=0, options={"start": 1})
    right = pushes(1)
    truth = np.stack([first, *(oracle.step(action)[0] for action in right)])
    imagine = imagination_of(env)
    found = counterfactual_sensitivity(imagine, truth, right, counterfactuals(right, another=pushes(2)))
    assert found.right > 0.6
    assert found.least > 0.1
    assert st_iou(imagine(right), truth) == found.right  # again from the same moment, with the same noise
    with pytest.raises(VapError, match=r"must be able to return to a moment \(save, load, step_chunk\), got OracleEnv"):
        imagination_of(oracle)
    env.close()
    oracle.close()


class Counter(gym.Env[object, np.ndarray]):
    """An env whose frames count its steps, seen by two cameras; it can return to a moment."""

    def __init__(self) -> None:
        self.now = 0

    def save(self) -> int:
        return self.now

    def load(self, snapshot: int) -> tuple[object, dict]:
        self.now = snapshot
        return self._seen(np.array(self.now)), {}

    def step_chunk(self, actions: np.ndarray) -> tuple[object, ...]:
        self.now += len(actions)
        return self._seen(np.arange(self.now - len(actions), self.now) + 1), None

    def _seen(self, counts: np.ndarray) -> object:
        frames = np.ones((*counts.shape, 4, 6, 3), np.uint8) * counts[..., None, None, None].astype(np.uint8)
        return {"pixels": {"front": frames, "wrist": frames + 100}, "agent_pos": counts}


def test_one_view_of_several_is_imagined_and_the_env_stays_where_it_was() -> None:
    env = Counter()
    env.step_chunk(np.zeros((5, 2)))
    wrist = imagination_of(env, view="wrist")
    env.step_chunk(np.zeros((2, 2)))
    np.testing.assert_array_equal(wrist(np.zeros((3, 2)))[:, 0, 0, 0], [105, 106, 107, 108])
    assert env.now == 5
    np.testing.assert_array_equal(imagination_of(env)(np.zeros((1, 2)))[:, 0, 0, 0], [5, 6])
    with pytest.raises(VapError, match=r"No view named 'wirst'\. Did you mean 'wrist'\? Known: front, wrist\."):
        imagination_of(env, view="wirst")(np.zeros((1, 2)))
