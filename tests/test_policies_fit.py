"""Conventions: what differs between policy and env is refused before the first step, or converted as declared."""

import numpy as np
import pytest

from vap_gym.errors import VapError
from vap_gym.policies import Conventions, EpisodeStart, FunctionPolicy, Observations, PolicyError, Site, fitted
from vap_gym.policies.fit import action_mode_for, converted_gripper, letterboxed
from vap_gym.policies.protocol import GRIPPERS, as_actions

DROID = Site(
    action_mode="cartesian_velocity", action_size=7, state_size=8, rate_hz=15.0, frame_size_px=(144, 96),
    views=("front",), gripper_step=0.25,
)  # fmt: skip


def shown(rows: int = 2, *, closedness: float = 0.5) -> Observations:
    """Observations of so many episodes, each frame of a grey of its own."""
    frames = np.zeros((rows, 96, 144, 3), np.uint8) + np.arange(rows, dtype=np.uint8)[:, None, None, None]
    return Observations(
        slots=tuple(range(rows)), pixels={"front": frames}, joints_rad=np.zeros((rows, 7), np.float32),
        closedness=np.full(rows, closedness, np.float32), tip=np.zeros((rows, 6), np.float32),
        target_m=np.full((rows, 3), np.nan),
    )  # fmt: skip


def begin(policy, rows: int = 2) -> None:
    """Begin so many episodes, from starts that nobody looks at."""
    policy.reset([EpisodeStart(slot=i, seed=i, number=i, start=None) for i in range(rows)])  # type: ignore[arg-type]


def saying(action: list[float], **conventions) -> FunctionPolicy:
    """A policy that always says the same, and keeps what it was shown."""
    return FunctionPolicy(lambda seen, words: np.array(action), Conventions(**conventions))


def test_a_policy_that_fits_is_left_as_it_is() -> None:
    policy = saying([0] * 7, action_mode="cartesian_velocity", rate_hz=15.0, frame_size_px=(144, 96))
    assert fitted(policy, DROID, "mine") is policy


def test_every_difference_is_named_before_the_first_step() -> None:
    policy = saying(
        [0] * 7, action_mode="joint_position", rate_hz=5.0, frame_size_px=(224, 224), views=("front", "wrist")
    )
    with pytest.raises(PolicyError) as told:
        fitted(policy, DROID, "mine")
    text = str(told.value)
    assert "Policy 'mine' does not fit" in text
    for part in ("looks through wrist", "'joint_position'", "(224, 224) px", "gripper means 'closed'", "at 5 Hz"):
        assert part in text
    assert isinstance(told.value, VapError)


@pytest.mark.parametrize("rate", [30.0, 4.0])
def test_a_rate_that_the_envs_is_no_multiple_of_cannot_be_converted(rate: float) -> None:
    policy = saying([0] * 7, action_mode="cartesian_velocity", rate_hz=rate, convert=("rate_hz",))
    with pytest.raises(PolicyError, match=r"only a rate that the env's is a multiple of"):
        fitted(policy, DROID, "mine")


def test_the_env_is_made_as_the_policy_wants_it_only_where_that_was_declared() -> None:
    modes = ("cartesian_velocity", "joint_velocity")
    strict, lenient = (Conventions(action_mode="joint_velocity", convert=c) for c in ((), ("action_mode",)))
    assert action_mode_for(lenient, "cartesian_velocity", modes, "p") == "joint_velocity"
    with pytest.raises(PolicyError, match=r"gives 'joint_velocity', got an env that takes 'cartesian_velocity'"):
        action_mode_for(strict, "cartesian_velocity", modes, "p")
    with pytest.raises(PolicyError, match=r"gives 'bridge', this robot takes"):
        action_mode_for(Conventions(action_mode="bridge", convert=("action_mode",)), "cartesian_velocity", modes, "p")


def test_a_slow_policy_is_asked_once_and_its_velocity_is_held() -> None:
    asked = []

    def function(seen: dict, words: str) -> np.ndarray:
        asked.append(words)
        return np.full(7, 0.1 * len(asked))

    policy = fitted(
        FunctionPolicy(function, Conventions(action_mode="cartesian_velocity", rate_hz=5.0, convert=("rate_hz",))),
        DROID,
        "slow",
    )
    begin(policy, 1)
    played = [policy.act(shown(1), ["go"])[0, 0] for _ in range(7)]
    assert played == pytest.approx([0.1] * 3 + [0.2] * 3 + [0.3])
    assert len(asked) == 3
    begin(policy, 1)
    policy.act(shown(1), ["go"])
    assert len(asked) == 4  # a new episode does not play on what was held


def test_a_slow_policys_displacement_is_divided_and_its_gripper_is_not() -> None:
    site = Site(
        action_mode="cartesian_delta", action_size=7, state_size=8, rate_hz=15.0, frame_size_px=(144, 96),
        views=("front",), gripper_step=0.25,
    )  # fmt: skip
    policy = fitted(
        saying([0.03] * 6 + [1.0], action_mode="cartesian_delta", rate_hz=5.0, convert=("rate_hz",)), site, "slow"
    )
    begin(policy, 1)
    total = sum(policy.act(shown(1), ["go"])[0] for _ in range(3))
    assert total[:6] == pytest.approx([0.03] * 6)
    assert total[6] == pytest.approx(3.0)


def test_a_policy_is_shown_frames_of_its_size_with_nothing_stretched() -> None:
    seen = []

    def function(observation: dict, words: str) -> np.ndarray:
        seen.append(observation["pixels"])
        return np.zeros(7)

    conventions = Conventions(action_mode="cartesian_velocity", frame_size_px=(224, 224), convert=("frame_size_px",))
    policy = fitted(FunctionPolicy(function, conventions), DROID, "p")
    begin(policy)
    policy.act(shown(), ["a", "b"])
    assert [frame.shape for frame in seen] == [(224, 224, 3)] * 2
    assert seen[1][112].max() == 1  # its own frame, not its neighbour's


def test_letterboxing_keeps_the_middle_and_blackens_the_rest() -> None:
    frame = np.full((96, 144, 3), 200, np.uint8)
    found = letterboxed(frame, (224, 224))
    rows = np.flatnonzero(found.max((1, 2)))
    assert (len(rows), rows[0]) == (149, 37)
    assert (found[rows] == 200).all()
    assert letterboxed(frame, (72, 48)).shape == (48, 72, 3)


# --- grippers ---


def test_opposite_signs_are_turned() -> None:
    policy = fitted(
        saying([0] * 6 + [0.5], action_mode="cartesian_velocity", gripper="opening", convert=("gripper",)), DROID, "p"
    )
    begin(policy)
    assert policy.act(shown(), ["a", "b"])[:, -1] == pytest.approx(-0.5)


def test_a_place_becomes_the_velocity_that_leads_there() -> None:
    now = np.array([0.0, 0.2, 0.9], np.float32)
    found = converted_gripper(np.array([1.0, 0.3, 0.9], np.float32), now, "closed", "closing", gripper_step=0.25)
    assert found == pytest.approx([1.0, 0.4, 0.0], abs=1e-6)


@pytest.mark.parametrize("mine", GRIPPERS)
@pytest.mark.parametrize("wanted", GRIPPERS)
def test_every_convention_says_close_and_open_in_every_other(mine: str, wanted: str) -> None:
    """To close means the upper end of one convention and the lower of another; it must stay what it means."""
    closes = {"closing": 1, "opening": -1, "closed": 1, "open": 0, "closed_sign": 1, "open_sign": -1}
    opens = {"closing": -1, "opening": 1, "closed": 0, "open": 1, "closed_sign": -1, "open_sign": 1}
    for meaning, closedness in ((closes, 0.9), (opens, 0.1)):
        found = converted_gripper(
            np.array([meaning[mine]], np.float32), np.array([closedness], np.float32), mine, wanted, gripper_step=0.25
        )
        velocity = wanted in ("closing", "opening") and mine not in ("closing", "opening")
        expected = meaning[wanted] * (0.4 if velocity else 1)  # .1 is left to go, .25 is a step
        assert found[0] == pytest.approx(expected, abs=1e-6)


# --- declarations and actions ---


def test_conventions_that_do_not_exist_are_refused_with_the_nearest() -> None:
    with pytest.raises(VapError, match=r"Did you mean 'cartesian_velocity'\?"):
        Conventions(action_mode="cartesian_velocty")
    with pytest.raises(VapError, match=r"No gripper convention named 'shut'"):
        Conventions(action_mode="cartesian_velocity", gripper="shut")
    with pytest.raises(VapError, match=r"No convention that can be converted named 'rate'.*'rate_hz'"):
        Conventions(action_mode="cartesian_velocity", convert=("rate",))
    with pytest.raises(VapError, match=r"chunk ≥ 1"):
        Conventions(action_mode="cartesian_velocity", chunk=0)


@pytest.mark.parametrize(
    ("actions", "told"),
    [
        (np.zeros((2, 6)), r"shape \(2, 7\), got \(2, 6\)"),
        (np.zeros(7), r"got \(7,\)"),
        ([[0.0] * 7, [0.0] * 6 + [np.nan]], r"NaN or infinity in entries \[6\]"),
        ("left", r"must return numbers, got str"),
        (None, r"got \(\)"),
    ],
)
def test_what_is_no_action_is_told(actions: object, told: str) -> None:
    with pytest.raises(PolicyError, match=told):
        as_actions(actions, 2, 7)
