"""Matching the rendered robot to frames: it must be found where it is, and a background alone must prove nothing."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from vap_gym.cards import load_robot
from vap_gym.errors import VapError
from vap_gym.geometry import Camera
from vap_gym.recover.matching import (
    Matches,
    SilhouetteMatcher,
    discrepancy_px,
    match_score,
    no_matches,
    on_robot,
)
from vap_gym.recover.motion import motion_share, refined_shift
from vap_gym.recover.silhouette import Rendered, RobotRenderer, outline_of
from vap_gym.recover.verdict import Rule, judged

ROBOT = load_robot("panda_robotiq")
SIZE = (192, 128)
CAMERA = Camera.look_at(
    torch.tensor([1.3, 0.7, 0.7]), torch.tensor([0.35, 0.0, 0.35]), vertical_fov_rad=0.9, frame_size_px=SIZE
)


@pytest.fixture(scope="module")
def render() -> RobotRenderer:
    return RobotRenderer(ROBOT)


def swing(frames: int, *, seed: int = 0) -> torch.Tensor:
    """Joint angles of an arm that moves from its home to somewhere else."""
    rng = np.random.default_rng(seed)
    home = np.array(ROBOT.home_q_rad)
    way = rng.uniform(-0.6, 0.6, len(home))
    return torch.from_numpy(home + np.linspace(0, 1, frames)[:, None] * way).float()


def background(seed: int) -> np.ndarray:
    import cv2

    rng = np.random.default_rng(seed)
    noise = cv2.resize(rng.integers(40, 216, (16, 24, 3), dtype=np.uint8), SIZE, interpolation=cv2.INTER_CUBIC)
    for _ in range(12):  # straight edges, as rooms have
        a, b = rng.integers(0, 192, (2, 2))
        noise = cv2.rectangle(noise, tuple(map(int, a)), tuple(map(int, b)), rng.integers(0, 255, 3).tolist(), 2)
    return noise


def filmed(rendered: Rendered, scene: np.ndarray) -> np.ndarray:
    """A robot before a background."""
    return np.where(rendered.mask[..., None], rendered.picture, scene)


def verdict(render: RobotRenderer, rendered: Rendered, frames: np.ndarray) -> bool:
    matches = SilhouetteMatcher()(rendered.picture, rendered.moving, frames)
    matches = [on_robot(m, mask) for m, mask in zip(matches, rendered.moving, strict=True)]
    return judged(matches, motion_share(frames, rendered.moving), Rule())[0].keep


def test_robot_is_kept_before_any_background_and_another_pose_before_none(render: RobotRenderer) -> None:
    gripper = torch.zeros(12)
    right, wrong = (render(swing(12, seed=seed), gripper, CAMERA) for seed in (0, 1))
    wrong_start = render(swing(12, seed=1) + 0.35, gripper, CAMERA)
    for scene in (background(0), background(1)):
        frames = filmed(right, scene)
        assert verdict(render, right, frames)
        assert not verdict(render, wrong_start, frames)
    assert not verdict(render, wrong, filmed(wrong_start, background(0)))


def test_matches_of_the_background_alone_are_thrown_away(render: RobotRenderer) -> None:
    rendered = render(swing(3), torch.zeros(3), CAMERA)
    rows, columns = np.nonzero(~rendered.mask[0])
    far = np.stack([columns, rows], -1)[::37] + 0.5
    away = [
        p
        for p in far
        if not rendered.mask[0, max(0, int(p[1]) - 4) : int(p[1]) + 5, max(0, int(p[0]) - 4) : int(p[0]) + 5].any()
    ]
    perfect = Matches(rendered_px=np.array(away), observed_px=np.array(away), confidence=np.ones(len(away)))
    assert len(perfect) > 50
    kept = on_robot(perfect, rendered.moving[0])
    assert len(kept) == 0
    found, scores = judged([kept] * 3, None, Rule())
    assert not found.keep
    assert found.visible == 0
    assert np.isnan(scores).all()


def test_on_robot_drops_matches_outside_of_the_picture_and_not_finite() -> None:
    mask = np.ones((8, 8), bool)
    at = np.array([[4.0, 4.0], [-5.0, 4.0], [4.0, 99.0], [np.nan, 1.0], [2.0, 2.0]])
    to = np.array([[4.0, 4.0], [4.0, 4.0], [4.0, 4.0], [4.0, 4.0], [np.inf, 2.0]])
    assert len(on_robot(Matches(rendered_px=at, observed_px=to, confidence=np.ones(5)), mask)) == 1


@pytest.mark.parametrize("shift", [(0, 0), (6, 0), (-4, 8)])
def test_outline_is_found_where_the_robot_is(render: RobotRenderer, shift: tuple[int, int]) -> None:
    rendered = render(swing(6), torch.zeros(6), CAMERA)
    frames = np.roll(filmed(rendered, background(2)), (shift[1], shift[0]), axis=(1, 2))
    for matches in SilhouetteMatcher()(rendered.picture, rendered.moving, frames):
        off = matches.observed_px - matches.rendered_px
        assert np.abs(np.median(off, axis=0) - shift).max() <= 2
        assert discrepancy_px(matches) == pytest.approx(np.hypot(*shift), abs=3)


def test_score_and_discrepancy_follow_confidence() -> None:
    at = np.zeros((3, 2))
    to = np.array([[1.0, 0.0], [2.0, 0.0], [30.0, 0.0]])
    sure = Matches(rendered_px=at, observed_px=to, confidence=np.array([0.9, 0.9, 0.1]))
    assert discrepancy_px(sure) == 2.0
    assert match_score(sure, near_px=10.0) == pytest.approx(0.6)
    assert match_score(sure, near_px=1.5) == pytest.approx(0.3)
    assert np.isnan(discrepancy_px(no_matches()))
    assert np.isnan(match_score(no_matches(), near_px=10.0))


def test_base_is_no_evidence(render: RobotRenderer) -> None:
    rendered = render(swing(2), torch.zeros(2), CAMERA)
    assert (rendered.moving <= rendered.mask).all()
    base = rendered.mask & ~rendered.moving
    assert base[0].sum() > 100
    assert (base[0] == base[1]).mean() > 0.98


def test_robot_without_a_surface_is_drawn_as_its_bones(render: RobotRenderer) -> None:
    bones = RobotRenderer(replace(ROBOT, body=""))
    drawn, solid = (r(swing(2), torch.zeros(2), CAMERA).mask for r in (bones, render))
    assert (drawn & solid).sum() > 0.75 * drawn.sum()  # as wide as the robot, and without the line to the table


def test_nothing_in_view_gives_no_outline_and_no_matches(render: RobotRenderer) -> None:
    away = Camera.look_at(
        torch.tensor([1.3, 0.7, 0.7]), torch.tensor([3.0, 2.0, 0.5]), vertical_fov_rad=0.9, frame_size_px=SIZE
    )
    rendered = render(swing(1), torch.zeros(1), away)
    assert not rendered.mask.any()
    assert len(outline_of(rendered.mask[0])) == 0
    assert [len(m) for m in SilhouetteMatcher()(rendered.picture, rendered.mask, background(0)[None])] == [0]


def test_motion_is_explained_best_where_the_robot_is(render: RobotRenderer) -> None:
    rendered = render(swing(16), torch.zeros(16), CAMERA)
    frames = np.roll(filmed(rendered, background(3)), (4, -8), axis=(1, 2))
    share = motion_share(frames, rendered.moving)
    assert share is not None
    assert share.best_shift_px(within_px=16.0) == (-8, 4)
    assert share.shares.max() > 2 * share.here
    right, down = refined_shift(frames, rendered.moving, (-6.0, 2.0))
    assert (right, down) == (pytest.approx(-8, abs=1), pytest.approx(4, abs=1))


def test_clip_in_which_nothing_moves_has_no_motion_to_explain(render: RobotRenderer) -> None:
    rendered = render(swing(1).expand(8, -1), torch.zeros(8), CAMERA)
    assert motion_share(filmed(rendered, background(0)), rendered.moving) is None


def test_settings_out_of_range_are_told() -> None:
    with pytest.raises(VapError, match=r"reach_px >= step_px >= 1, .* got 1, 2, .* Try 24"):
        SilhouetteMatcher(reach_px=1)
