"""Two rasterisers, one picture; and what must not happen to it near the camera's edges."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vap_gym.cards import load_robot
from vap_gym.errors import VapError
from vap_gym.geometry import Camera
from vap_gym.kinematics.control import Controller
from vap_gym.prompts import raster
from vap_gym.prompts.raster import draw, draw_torch, overlay
from vap_gym.prompts.skeleton import Skeleton

GOLDEN = Path(__file__).parent / "golden"
WHOLE = load_robot("panda_robotiq")
_CARD = WHOLE.skeleton
_HAND = {"flange", "palm", "left_knee", "right_knee", "left_end", "right_end"}
ROBOT = replace(  # the hand alone, whose few points the tests below place by hand
    WHOLE,
    skeleton=replace(
        _CARD,
        keypoints=tuple(k for k in _CARD.keypoints if k.name in _HAND),
        bones=tuple(b for b in _CARD.bones if {b.start, b.end} <= _HAND),
    ),
)
SKELETON = Skeleton(ROBOT)
CONTROLLER = Controller(ROBOT)
BARE = Skeleton(  # mere lines, no drop line
    replace(
        ROBOT,
        skeleton=replace(
            ROBOT.skeleton, drop_from=(), bones=tuple(replace(b, radius_m=0.0) for b in ROBOT.skeleton.bones)
        ),
    )
)
SIZE = (144, 96)


def _camera(eye, target=(0.45, 0.0, 0.15), *, fov=0.9, roll=0.0, size=SIZE) -> Camera:
    eye = torch.tensor(eye, dtype=torch.float32)
    return Camera.look_at(
        eye,
        torch.tensor(target, dtype=torch.float32).expand_as(eye),
        vertical_fov_rad=fov,
        frame_size_px=size,
        roll_rad=roll,
    )


def _keypoints(closedness: float = 0.3, turn: float = 0.0) -> torch.Tensor:
    q = torch.tensor(ROBOT.home_q_rad) + turn
    return SKELETON.keypoints(CONTROLLER.start(q, torch.tensor(closedness)))


FRONT = _camera((1.2, 0.1, 0.6))


def _both(keypoints: torch.Tensor, camera: Camera, skeleton: Skeleton = SKELETON) -> tuple[np.ndarray, np.ndarray]:
    fast = draw(keypoints, camera, skeleton)
    smooth = draw_torch(keypoints, camera, skeleton).movedim(-3, -1).numpy() * 255
    return fast, smooth


# --- the two are one --------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    azimuth=st.floats(-math.pi, math.pi),
    height=st.floats(-0.3, 1.5),
    distance=st.floats(0.02, 3.0),
    fov=st.floats(0.2, 2.2),
    roll=st.floats(-math.pi, math.pi),
    closedness=st.floats(-1, 2),
    turn=st.floats(-0.5, 0.5),
    size=st.sampled_from([(144, 96), (96, 144), (33, 17)]),
)
def test_both_rasterisers_draw_the_same_from_any_camera(azimuth, height, distance, fov, roll, closedness, turn, size):
    eye = (0.45 + distance * math.cos(azimuth), distance * math.sin(azimuth), height)
    camera = _camera(eye, (0.45, 0.0, 0.3), fov=fov, roll=roll, size=size)
    fast, smooth = _both(_keypoints(closedness, turn), camera)
    difference = np.abs(fast - smooth)
    assert difference.mean() < 0.05
    assert np.quantile(difference, 0.999) <= 2  # rounding to 8 bits, once per layer
    assert difference.max() <= 12  # float32 at an edge, where a bone passes close by the lens


def test_both_rasterisers_agree_over_a_batch_and_its_cameras() -> None:
    keypoints = torch.stack([_keypoints(turn=t) for t in (0.0, 0.1, 0.2)])
    cameras = _camera([(1.2, 0.1, 0.6), (0.4, 1.0, 0.5), (-0.3, -0.6, 0.9)])
    fast, smooth = _both(keypoints, cameras)
    assert np.abs(fast - smooth).max() <= 2
    for i in range(3):
        np.testing.assert_array_equal(fast[i], draw(keypoints[i], cameras.index(i), SKELETON))


def test_one_camera_per_slot_serves_all_its_steps() -> None:
    keypoints = torch.stack([torch.stack([_keypoints(turn=t + s) for t in (0.0, 0.1)]) for s in (0.0, 0.3)])
    cameras = _camera([(1.2, 0.1, 0.6), (0.4, 1.0, 0.5)])  # two slots; two steps as well, which must not be confused
    pictures = draw(keypoints, cameras, SKELETON)
    assert pictures.shape == (2, 2, 96, 144, 3)
    for slot in range(2):
        np.testing.assert_array_equal(pictures[slot], draw(keypoints[slot], cameras.index(slot), SKELETON))


def test_large_batches_are_drawn_like_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    keypoints = torch.stack([_keypoints(turn=0.001 * t) for t in range(150)])
    pictures = draw(keypoints, FRONT, SKELETON)
    for i in (0, 63, 64, 127, 128, 149):
        apart = np.abs(pictures[i].astype(int) - draw(keypoints[i], FRONT, SKELETON))
        assert apart.max() <= 1  # some processors round the projection of one and of many differently
        assert (apart > 0).mean() < 1e-3
    for size in (1, 150):  # pieces of one picture, and all at once: from the same projection, the same to the bit
        monkeypatch.setattr(raster, "CHUNK", size)
        np.testing.assert_array_equal(pictures, draw(keypoints, FRONT, SKELETON))


# --- what is drawn ----------------------------------------------------------------------------------------------------


def _golden(name: str, picture: np.ndarray, update: bool = False) -> None:
    path = GOLDEN / f"{name}.png"
    if update:
        Image.fromarray(picture).save(path, optimize=True)
    expected = np.asarray(Image.open(path).convert("RGB"))
    assert expected.shape == picture.shape
    assert np.abs(expected.astype(int) - picture).max() <= 4, f"{path.name} changed; if it was meant, save the new one"


@pytest.mark.parametrize("closedness", [0.0, 1.0])
@pytest.mark.parametrize(
    ("view", "eye"), [("front", (1.2, 0.1, 0.6)), ("side", (0.4, 1.0, 0.5)), ("above", (0.3, -0.2, 1.3))]
)
def test_golden_pictures(view: str, eye, closedness: float) -> None:
    whole = Skeleton(WHOLE)
    state = CONTROLLER.start(torch.tensor(WHOLE.home_q_rad), torch.tensor(closedness))
    picture = draw(whole.keypoints(state), _camera(eye), whole)
    _golden(f"panda_robotiq_{view}_{'closed' if closedness else 'open'}", picture)


def test_background_is_black_and_bones_have_their_cards_colours() -> None:
    picture = draw(_keypoints(), _camera((0.8, 0.1, 0.55), (0.45, 0, 0.4)), SKELETON)
    assert picture[0, 0].tolist() == [0, 0, 0]
    drawn = {tuple(int(c) for c in pixel) for pixel in picture.reshape(-1, 3)}
    assert {bone.colour_rgb for bone in ROBOT.skeleton.bones} <= drawn


def test_thickness_scales_with_the_frame() -> None:
    small = draw(_keypoints(), _camera((0.8, 0.1, 0.55)), BARE)
    large = draw(_keypoints(), _camera((0.8, 0.1, 0.55)), BARE, frame_size_px=(576, 384))
    share = [float((p.max(-1) > 127).mean()) for p in (small, large)]
    assert share[1] == pytest.approx(share[0], rel=0.1)


def test_the_drop_line_ends_where_the_tool_stands_above_the_table() -> None:
    keypoints = _keypoints()
    lines = draw(keypoints, FRONT, SKELETON).astype(int) - draw(keypoints, FRONT, BARE)
    ends = [SKELETON.keypoint_names.index(name) for name in ROBOT.skeleton.drop_from]
    foot = keypoints[ends].mean(0) * torch.tensor([1.0, 1.0, 0.0])
    u, v = FRONT.project(foot[None])[0][0].tolist()
    drawn_v, drawn_u = np.nonzero(lines.max(-1) > 60)
    lowest = drawn_v.max()
    assert abs(lowest + 0.5 - v) < 2.5
    assert abs(drawn_u[drawn_v == lowest].mean() + 0.5 - u) < 1


def test_the_nearer_finger_lies_on_top() -> None:
    keypoints = torch.zeros(6, 3)
    names = SKELETON.keypoint_names
    keypoints[:, 0] = 5.0  # far away, in the background
    for side, depth in (("left", 1.0), ("right", 1.2)):
        keypoints[names.index(f"{side}_knee")] = torch.tensor([depth, 0.0, 0.2])
        keypoints[names.index(f"{side}_end")] = torch.tensor([depth, 0.0, -0.2])
    left, right = (np.array(bone.colour_rgb) for bone in ROBOT.skeleton.bones if bone.end in ("left_end", "right_end"))
    for eye, nearer in (((0.0, 0.0, 0.0), left), ((2.2, 0.0, 0.0), right)):
        fast, smooth = _both(keypoints, _camera(eye, (1.1, 0.0, 0.0)), BARE)
        for picture in (fast, smooth):
            np.testing.assert_allclose(picture[48, 72], nearer, atol=1)


def test_a_line_covers_its_length_times_its_width() -> None:
    keypoints = torch.tensor([[1.0, 0.0, 0.0]] * 6)
    keypoints[SKELETON.keypoint_names.index("left_end")] = torch.tensor([1.0, 0.31, 0.17])
    camera = _camera((0.0, 0.0, 0.0), (1.0, 0.0, 0.0))
    uv = camera.project(keypoints)[0]
    length = float((uv[0] - uv[SKELETON.keypoint_names.index("left_end")]).norm())
    picture = draw(keypoints, camera, BARE, thickness_px=3.0).max(-1) / 255.0
    assert picture.sum() == pytest.approx(3 * length + math.pi * 1.5**2, rel=0.03)


def test_bones_are_as_wide_as_they_appear_and_no_thinner_than_a_line() -> None:
    bones = tuple(replace(b, radius_m=0.05 if b.end == "left_end" else 0.0) for b in ROBOT.skeleton.bones)
    wide = Skeleton(replace(ROBOT, skeleton=replace(ROBOT.skeleton, drop_from=(), bones=bones)))
    names = wide.keypoint_names
    for distance in (1.0, 2.0):
        keypoints = torch.tensor([[distance, 0.0, 0.0]] * 6)
        keypoints[names.index("left_knee")] = torch.tensor([distance, 0.2, 0.0])
        keypoints[names.index("left_end")] = torch.tensor([distance, -0.2, 0.0])
        camera = _camera((0.0, 0.0, 0.0), (1.0, 0.0, 0.0))
        fast, smooth = _both(keypoints, camera, wide)
        assert np.abs(fast - smooth).max() <= 2
        column = fast[:, 72].max(-1) / 255.0  # across the bone, through its middle
        assert column.sum() == pytest.approx(2 * 0.05 * float(camera.K[1, 1]) / distance, rel=0.05)
    far = torch.tensor([[400.0, 0.0, 0.0]] * 6)
    far[names.index("left_end")] = torch.tensor([400.0, 60.0, 0.0])
    assert (draw(far, _camera((0.0, 0.0, 0.0), (1.0, 0.0, 0.0)), wide, thickness_px=3.0).max(-1) > 127).any()


def test_a_bone_that_comes_nearer_grows_wider_along_its_way() -> None:
    keypoints = torch.tensor([[2.0, 0.6, 0.0]] * 6)
    keypoints[0] = torch.tensor([0.8, -0.3, 0.0])  # the flange comes towards the lens, the palm stays away
    fast, smooth = _both(keypoints, _camera((0.0, 0.0, 0.0), (1.0, 0.0, 0.0)), SKELETON)
    assert np.abs(fast - smooth).max() <= 2
    widths = (fast[..., 1] > 127).sum(0)
    lit = widths[widths > 0]
    assert max(lit[0], lit[-1], *lit) > 1.6 * np.median(lit[: len(lit) // 3])


# --- edges ------------------------------------------------------------------------------------------------------------


def test_a_bone_with_one_end_behind_the_camera_is_cut_not_dropped() -> None:
    keypoints = torch.tensor([[-1.0, -0.05, 0.02]] * 6)  # behind
    keypoints[0] = torch.tensor([1.0, 0.2, 0.1])
    fast, smooth = _both(keypoints, _camera((0.0, 0.0, 0.0), (1.0, 0.0, 0.0)), BARE)
    assert fast.max() > 200
    assert np.abs(fast - smooth).max() <= 2
    # The line runs from its front end out of the picture on that side, not to a mirrored end on the other.
    assert max(fast[:, 0].max(), fast[0].max()) > 200
    assert fast[:, 72:].max() == 0


def test_a_robot_behind_the_camera_leaves_the_picture_black() -> None:
    fast, smooth = _both(_keypoints(), _camera((1.2, 0.0, 0.5), (2.0, 0.0, 0.5)))
    assert fast.max() == 0
    assert smooth.max() == 0


def test_a_bone_across_the_picture_is_drawn_though_both_ends_are_outside() -> None:
    keypoints = torch.tensor([[1.0, 40.0, 0.0]] * 6)
    keypoints[0] = torch.tensor([1.0, -40.0, 0.0])
    fast, smooth = _both(keypoints, _camera((0.0, 0.0, 0.0), (1.0, 0.0, 0.0)), BARE)
    assert (fast[48].max(-1) > 200).all()
    assert np.abs(fast - smooth).max() <= 2


def test_a_robot_beside_the_picture_leaves_it_black() -> None:
    assert draw(_keypoints() + torch.tensor([0.0, 30.0, 0.0]), FRONT, SKELETON).max() == 0


def test_bones_of_no_length_are_dots() -> None:
    fast, smooth = _both(torch.tensor([[1.0, 0.0, 0.0]] * 6), _camera((0.0, 0.0, 0.0), (1.0, 0.0, 0.0)), BARE)
    lit = fast.max(-1) > 0
    assert 4 <= lit.sum() <= 16
    assert lit[47:49, 71:73].all()
    assert np.abs(fast - smooth).max() <= 2


def test_points_in_the_very_plane_of_the_lens_do_no_harm() -> None:
    keypoints = torch.tensor([[0.0, 0.1, 0.0]] * 6)
    keypoints[0] = torch.tensor([1.0, 0.0, 0.0])
    fast, smooth = _both(keypoints, _camera((0.0, 0.0, 0.0), (1.0, 0.0, 0.0)), BARE)
    assert np.isfinite(smooth).all()
    assert np.abs(fast - smooth).max() <= 12


def test_an_empty_batch_gives_no_pictures() -> None:
    none = torch.zeros(0, 6, 3)
    assert draw(none, FRONT, SKELETON).shape == (0, 96, 144, 3)
    assert draw_torch(none, FRONT, SKELETON).shape == (0, 3, 96, 144)


@pytest.mark.parametrize("render", [draw, draw_torch])
def test_nan_is_refused_and_the_point_is_named(render) -> None:
    keypoints = _keypoints()
    keypoints[2, 1] = math.nan
    with pytest.raises(VapError, match=r"must be finite, got NaN or infinity at left_knee\. Check the robot state"):
        render(keypoints, FRONT, SKELETON)


def test_other_bad_input_is_refused_in_three_parts() -> None:
    keypoints = _keypoints()
    with pytest.raises(VapError, match=r"shape \(\*batch, 6, 3\), got \(5, 3\)\. The skeleton's key-points are flange"):
        draw(keypoints[:5], FRONT, SKELETON)
    with pytest.raises(VapError, match=r"floating point \(metres\), got torch\.int64"):
        draw(keypoints.long(), FRONT, SKELETON)
    with pytest.raises(VapError, match=r"camera's batch \(2,\) does not fit the key-points' batch \(3,\)"):
        draw(keypoints.expand(3, 6, 3), _camera([(1.0, 0, 1), (1.0, 1, 1)]), SKELETON)
    with pytest.raises(VapError, match=r"thickness_px must be between 0 and the picture's height 96, got 0"):
        draw(keypoints, FRONT, SKELETON, thickness_px=0.0)
    with pytest.raises(VapError, match="K must be finite"):
        draw(keypoints, replace(FRONT, K=FRONT.K * math.nan), SKELETON)


# --- gradients and overlay --------------------------------------------------------------------------------------------


def test_gradients_of_the_smooth_picture_match_finite_differences() -> None:
    skeleton = Skeleton(ROBOT, dtype=torch.float64)
    camera = _camera((1.2, 0.1, 0.6), size=(36, 24)).to(torch.float64)
    keypoints = _keypoints().double().requires_grad_()
    weight = torch.rand(3, 24, 36, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda k: (draw_torch(k, camera, skeleton, edge_px=6.0) * weight).sum(), keypoints)


def test_a_skeleton_is_found_by_descent_on_its_picture() -> None:
    target = _keypoints()
    picture = draw_torch(target, FRONT, SKELETON, edge_px=8.0)
    shift = torch.tensor([0.0, 0.03, 0.02], requires_grad=True)
    optimiser = torch.optim.Adam([shift], lr=2e-3)
    for _ in range(80):
        optimiser.zero_grad()
        (draw_torch(target + shift, FRONT, SKELETON, edge_px=8.0) - picture).square().sum().backward()
        optimiser.step()
    across = FRONT.project(target + shift.detach())[0] - FRONT.project(target)[0]
    assert float(across.norm(dim=-1).max()) < 0.3


def test_gradients_are_finite_where_bones_are_cut_or_have_no_length() -> None:
    keypoints = torch.tensor([[-1.0, -0.05, 0.02]] * 6)
    keypoints[0] = torch.tensor([1.0, 0.2, 0.1])
    keypoints.requires_grad_()
    draw_torch(keypoints, _camera((0.0, 0.0, 0.0), (1.0, 0.0, 0.0)), SKELETON).sum().backward()
    assert keypoints.grad is not None
    assert torch.isfinite(keypoints.grad).all()


def test_overlay_replaces_the_frame_only_where_the_prompt_is_lit() -> None:
    frame = np.full((96, 144, 3), 200, np.uint8)
    prompt = draw(_keypoints(), FRONT, SKELETON)
    mixed = overlay(frame, prompt)
    dark = prompt.max(-1) == 0
    np.testing.assert_array_equal(mixed[dark], frame[dark])
    full = prompt.max(-1) == 255
    np.testing.assert_array_equal(mixed[full], prompt[full])
    with pytest.raises(
        VapError, match=r"uint8 pictures of one shape .* got uint8 \(96, 144, 3\) and uint8 \(4, 4, 3\)"
    ):
        overlay(frame, prompt[:4, :4])
