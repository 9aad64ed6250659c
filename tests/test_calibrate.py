"""Calibration: cameras come back from noisy, partly wrong clicks; what cannot be told is refused or called doubtful."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import approx_fprime
from scipy.spatial.transform import Rotation

from vap_gym import cli
from vap_gym.cards import load_robot
from vap_gym.errors import UnknownNameError
from vap_gym.geometry import Camera
from vap_gym.photo import read_camera
from vap_gym.recover.calibrate import CalibrationError, camera_apart, fit_camera, project, write_cameras
from vap_gym.recover.calibrate_clicks import located, read_clicks
from vap_gym.recover.calibrate_marker import Lens, fit_eye_hand
from vap_gym.recover.calibrate_solve import Guess, Sight, jacobian_of, moved, reprojected

ROBOT = load_robot("panda_robotiq")
SIZE = (320, 192)
LOW_M, HIGH_M = [0.25, -0.25, 0.1], [0.65, 0.25, 0.5]
SEEDS = st.integers(0, 10**6)


def some_camera(rng: np.random.Generator) -> Camera:
    """A camera .8 to 1.3 m from the workspace, looking at it from any side, rolled a little."""
    away = rng.normal(size=3) * [1, 1, 0.4] + [0, 0, 0.3]
    eye = np.array([0.45, 0, 0.3]) + away / np.linalg.norm(away) * rng.uniform(0.8, 1.3)
    target = np.array([0.45, 0, 0.3]) + rng.normal(size=3) * 0.03
    camera = Camera.look_at(
        torch.from_numpy(eye), torch.from_numpy(target), vertical_fov_rad=1.1, frame_size_px=SIZE,
        roll_rad=float(rng.normal() * 0.3),
    )  # fmt: skip
    return camera.to(torch.float64)


def some_points(rng: np.random.Generator, count: int) -> np.ndarray:
    return rng.uniform(LOW_M, HIGH_M, (count, 3))


def clicked(rng: np.random.Generator, camera: Camera, points: np.ndarray, noise_px: float = 0.7) -> np.ndarray:
    """Where points are clicked: noisy, and inside the picture."""
    return (project(camera, points) + rng.normal(size=(len(points), 2)) * noise_px).clip(0, SIZE)


def hands(rng: np.random.Generator, count: int) -> np.ndarray:
    """Poses of a hand that turns within about 40 degrees."""
    T = np.tile(np.eye(4), (count, 1, 1))
    T[:, :3, :3] = Rotation.from_rotvec(rng.normal(size=(count, 3)) * 0.4).as_matrix() @ np.diag([1.0, -1.0, -1.0])
    T[:, :3, 3] = some_points(rng, count)
    return T


@settings(max_examples=8, deadline=None)
@given(seed=SEEDS)
def test_a_camera_comes_back_within_its_own_standard_error(seed: int) -> None:
    rng = np.random.default_rng(seed)
    camera, points = some_camera(rng), some_points(rng, 24)
    made = fit_camera(points, clicked(rng, camera, points), K=camera.K.numpy(), frame_size_px=SIZE)
    apart_m, apart_deg = camera_apart(made.camera, camera)
    assert apart_m < 4.5 * made.position_std_m
    assert apart_deg < 4.5 * made.rotation_std_deg
    assert made.median_px < 1.5


def test_the_covariance_is_neither_boastful_nor_timid() -> None:
    """Over many cameras the squared error in units of the covariance is, on average, the number of parameters."""
    squares = []
    for seed in range(16):
        rng = np.random.default_rng(seed)
        camera, points = some_camera(rng), some_points(rng, 30)
        pixels = project(camera, points) + rng.normal(size=(30, 2)) * 0.5
        made = fit_camera(points, pixels.clip(0, SIZE), K=camera.K.numpy(), frame_size_px=SIZE, noise_px=0.5)
        T, truth = (torch.linalg.inv(c.T_world_camera).numpy() for c in (made.camera, camera))
        turn = Rotation.from_matrix(truth[:3, :3] @ T[:3, :3].T).as_rotvec()
        step = np.concatenate([turn, truth[:3, 3] - T[:3, 3]])
        squares.append(step @ np.linalg.solve(made.covariance, step))
    assert 3.5 < np.mean(squares) < 9.5  # 6 parameters; a standard error of the mean is .9


@settings(max_examples=6, deadline=None)
@given(seed=SEEDS)
def test_a_fifth_of_wrong_clicks_does_not_break_it(seed: int) -> None:
    rng = np.random.default_rng(seed)
    camera, points = some_camera(rng), some_points(rng, 30)
    pixels = clicked(rng, camera, points, 0.5)
    pixels[:6] = rng.uniform([0, 0], SIZE, (6, 2))
    made = fit_camera(points, pixels, K=camera.K.numpy(), frame_size_px=SIZE)
    assert camera_apart(made.camera, camera)[0] < 0.06
    assert np.median(made.error_px[6:]) < 1.5
    if (np.linalg.norm(pixels - project(camera, points), axis=1)[:6] > 8).any():
        assert any("look at the picture" in text for text in made.warnings)


@settings(max_examples=3, deadline=None)
@given(seed=SEEDS)
def test_the_order_of_clicks_and_hidden_ones_change_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    camera, points = some_camera(rng), some_points(rng, 14)
    pixels, order = clicked(rng, camera, points), rng.permutation(14)
    K = camera.K.numpy()
    made = fit_camera(points, pixels, K=K, frame_size_px=SIZE)
    other = fit_camera(points[order], pixels[order], K=K, frame_size_px=SIZE)
    torch.testing.assert_close(made.camera.T_world_camera, other.camera.T_world_camera, atol=1e-9, rtol=0)
    np.testing.assert_allclose(made.residual_px[order], other.residual_px, atol=1e-6)
    more = np.concatenate([pixels, [[np.nan, np.nan], [5.0, 5.0]]])
    seen = np.array([True] * 15 + [False])
    padded = fit_camera(np.concatenate([points, np.ones((2, 3))]), more, visible=seen, K=K, frame_size_px=SIZE)
    torch.testing.assert_close(made.camera.T_world_camera, padded.camera.T_world_camera, atol=1e-9, rtol=0)


@pytest.mark.parametrize("free", ["focal", "fx_fy", "intrinsics"])
def test_intrinsics_come_back_from_a_guess_that_is_wrong_by_a_third(free: str) -> None:
    rng = np.random.default_rng(3)
    camera, points = some_camera(rng), some_points(rng, 80)
    wrong = camera.K.numpy().copy()
    wrong[:2, :2] *= 1.33
    made = fit_camera(points, clicked(rng, camera, points, 0.2), K=wrong, frame_size_px=SIZE, free=free)
    std = np.sqrt(np.diag(made.covariance))[6]
    assert abs(np.log(float(made.camera.K[0, 0] / camera.K[0, 0]))) < 4 * std < 0.2
    assert made.parameters[6:] == {"focal": ("focal",), "fx_fy": ("fx", "fy")}.get(free, ("fx", "fy", "cx", "cy"))


def test_derivatives_are_those_of_the_residuals() -> None:
    rng = np.random.default_rng(0)
    camera, T = some_camera(rng), hands(rng, 5)
    away = torch.linalg.inv(camera.T_world_camera).numpy()
    guess = Guess(R=away[:3, :3], t_m=away[:3, 3], K=camera.K.numpy(), offset_m=np.array([0.02, -0.03, 0.05]))
    sight = Sight(pixels=np.zeros((5, 2)), anchor_m=T[:, :3, 3], turn=T[:, :3, :3], K=camera.K.numpy())
    step = rng.normal(size=13) * 0.1
    numeric = approx_fprime(step, lambda x: reprojected(sight, moved(guess, x, "intrinsics"))[0].ravel(), 1e-7)
    np.testing.assert_allclose(jacobian_of([sight], [guess], step, "intrinsics"), numeric, atol=2e-3, rtol=1e-4)


def test_cameras_share_the_offset_of_a_marker_that_was_not_known() -> None:
    rng = np.random.default_rng(1)
    offset, T = np.array([0.03, -0.05, 0.09]), hands(rng, 24)
    marker = T[:, :3, 3] + T[:, :3, :3] @ offset
    cameras = {name: some_camera(rng) for name in ("left", "right")}
    pixels = {name: clicked(rng, camera, marker, 0.4) for name, camera in cameras.items()}
    pixels["right"][3:9] = np.nan
    pixels["left"][:4] = rng.uniform([0, 0], SIZE, (4, 2))
    lenses = {name: Lens(K=camera.K.numpy(), frame_size_px=SIZE) for name, camera in cameras.items()}
    made = fit_eye_hand(T, pixels, lenses)
    assert np.linalg.norm(made.marker_hand_m - offset) < 4 * np.linalg.norm(made.marker_std_m) < 0.05
    for name, camera in cameras.items():
        assert camera_apart(made.cameras[name].camera, camera)[0] < 5 * made.cameras[name].position_std_m
    at = {name: one.points_base_m[one.index.tolist().index(20)] for name, one in made.cameras.items()}
    np.testing.assert_allclose(at["left"], at["right"], atol=1e-12)  # one marker, not one for each camera
    assert made.cameras["right"].index.tolist() == [*range(3), *range(9, 24)]


def refusal(**changes: object) -> str:
    rng = np.random.default_rng(0)
    camera, points = some_camera(rng), some_points(rng, 8)
    given_ = {"points_base_m": points, "pixels": clicked(rng, camera, points), "K": camera.K.numpy()}
    with pytest.raises(CalibrationError) as told:
        fit_camera(**{**given_, **changes}, frame_size_px=SIZE)
    return str(told.value)


def test_what_cannot_be_fitted_is_refused_with_the_way_out() -> None:
    rng = np.random.default_rng(0)
    points = some_points(rng, 8)
    few = np.full((8, 2), np.nan)
    few[:3] = 50.0
    assert "at least 4 points that were seen, got 3" in refusal(pixels=few)
    assert "at least 6 points" in refusal(pixels=few, free="intrinsics")
    assert "[400.0, 10.0] in row 7" in refusal(pixels=np.array([[50.0, 50.0]] * 7 + [[400.0, 10.0]]))
    assert "320 x 192" in refusal(pixels=np.array([[50.0, -3.0]] * 8))
    line = np.linspace([0.3, 0, 0.2], [0.6, 0.1, 0.3], 8)
    assert "must not lie on one line" in refusal(points_base_m=line)
    assert "must not lie on one line" in refusal(points_base_m=np.ones((8, 3)))
    assert "NaN or infinity in row 2" in refusal(points_base_m=np.where(np.arange(8)[:, None] == 2, np.nan, points))
    assert "K must be" in refusal(K=np.zeros((3, 3)))


def test_a_hand_that_does_not_turn_is_refused() -> None:
    rng = np.random.default_rng(0)
    T, camera = hands(rng, 12), some_camera(rng)
    lens = {"cam0": Lens(K=camera.K.numpy(), frame_size_px=SIZE)}
    pixels = {"cam0": clicked(rng, camera, T[:, :3, 3])}
    T[:, :3, :3] = T[0, :3, :3]
    with pytest.raises(CalibrationError, match=r"at least two axes, got 0\.0 and 0\.0 degrees"):
        fit_eye_hand(T, pixels, lens)
    T[:, :3, :3] = Rotation.from_rotvec(np.linspace([0, 0, 0], [0, 0, 1.5], 12)).as_matrix() @ T[:, :3, :3]
    with pytest.raises(CalibrationError, match="at least two axes"):
        fit_eye_hand(T, pixels, lens)
    with pytest.raises(CalibrationError, match="got pixels of cam0 and lenses of none"):
        fit_eye_hand(T, pixels, {})


def test_poor_evidence_is_fitted_but_said_to_be_poor() -> None:
    rng = np.random.default_rng(4)
    camera, points = some_camera(rng), some_points(rng, 12)
    K = camera.K.numpy()
    points[:, 2] = 0.2
    flat = fit_camera(points, clicked(rng, camera, points), K=K, frame_size_px=SIZE)
    assert any("one plane" in text for text in flat.warnings)
    near = np.array([0.45, 0.0, 0.3]) + 0.04 * rng.normal(size=(6, 3))
    close = fit_camera(near, clicked(rng, camera, near), K=K, frame_size_px=SIZE)
    assert any("only 6 points" in text for text in close.warnings)
    assert any("the pose is uncertain by" in text for text in close.warnings)
    points = some_points(rng, 12)
    swapped = fit_camera(points, clicked(rng, camera, points)[::-1].copy(), K=K, frame_size_px=SIZE)
    assert any("far above" in text or "look at the picture" in text for text in swapped.warnings)


def test_cameras_are_added_to_a_file_and_read_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    camera, points = some_camera(rng), some_points(rng, 12)
    made = fit_camera(points, clicked(rng, camera, points), K=camera.K.numpy(), frame_size_px=SIZE)
    path = tmp_path / "new" / "cameras.json"
    for name in ("cam0", "cam1"):
        write_cameras(path, {name: made.table(method="by clicks", valid_for_episodes=["a", "b"])})
    read = json.loads(path.read_text())
    assert sorted(read) == ["cam0", "cam1"]
    assert read["cam0"]["valid_for_episodes"] == ["a", "b"]
    torch.testing.assert_close(read_camera(read["cam0"]).T_world_camera, made.camera.T_world_camera, atol=1e-9, rtol=0)
    path.write_text("[1")
    with pytest.raises(CalibrationError, match="must be JSON"):
        write_cameras(path, {"cam0": {}})
    assert path.read_text() == "[1"


def test_the_picture_shows_clicks_and_reprojections() -> None:
    rng = np.random.default_rng(0)
    camera, points = some_camera(rng), some_points(rng, 12)
    made = fit_camera(points, clicked(rng, camera, points), K=camera.K.numpy(), frame_size_px=SIZE)
    grey = np.full((192, 320, 3), 128, np.uint8)
    shown, none = made.picture(grey), made.picture(grey, [])
    assert (none == 128).all()
    u, v = (3 * made.pixels[0]).round().astype(int)
    around = shown[max(v - 9, 0) : v + 9, max(u - 9, 0) : u + 9].reshape(-1, 3)
    assert (around == (0, 220, 60)).all(1).any()
    assert (around == (255, 40, 40)).all(1).any()


def droid_like(folder: Path, clicks: list[dict]) -> Path:
    """A folder with one short episode, and a file of clicks on it."""
    (folder / "kitchen_1").mkdir(parents=True)
    q = np.linspace(ROBOT.home_q_rad, np.array(ROBOT.home_q_rad) + 0.4, 6)
    np.savez(folder / "kitchen_1" / "log.npz", joint_position=q, gripper_position=np.linspace(0, 1, 6))
    path = folder / "clicks.json"
    path.write_text(json.dumps({"clicks": clicks}))
    return path


@pytest.mark.parametrize(
    ("click", "told"),
    [
        ({"episode": "kitchen_2", "camera": "cam0", "frame": 0, "palm_px": [1, 2]}, "Did you mean 'kitchen_1'"),
        ({"episode": "kitchen_1", "camera": "cam9", "frame": 0, "palm_px": [1, 2]}, "Known: cam9"),
        ({"episode": "kitchen_1", "camera": "cam0", "frame": 6, "palm_px": [1, 2]}, "frames 0 to 5, got a click in"),
        ({"episode": "kitchen_1", "camera": "cam0", "frame": 0, "plam_px": [1, 2]}, "Did you mean 'palm_px'"),
        ({"episode": "kitchen_1", "camera": "cam0", "frame": 0, "palm_px": [1]}, "must be [u, v]"),
        ({"camera": "cam0", "frame": 0, "palm_px": [1, 2]}, "must have episode, camera, frame"),
    ],
)
def test_mistakes_in_a_file_of_clicks_are_told(click: dict, told: str, tmp_path: Path) -> None:
    path = droid_like(tmp_path, [click])
    with pytest.raises((CalibrationError, UnknownNameError)) as error:
        located(read_clicks(path, ROBOT), "cam0", tmp_path, ROBOT)
    assert told in str(error.value)


def test_damaged_files_are_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = droid_like(tmp_path, [{"episode": "kitchen_1", "camera": "cam0", "frame": 0, "palm_px": [1, 2]}])
    log = tmp_path / "kitchen_1" / "log.npz"
    log.write_bytes(log.read_bytes()[:100])
    for arguments in (["clicks", str(path), str(tmp_path)], ["marker", str(path)], ["align", str(tmp_path), str(path)]):
        assert cli.main(["calibrate", *arguments, "--out", str(tmp_path / "out.json")]) == 2
        assert capsys.readouterr().err.startswith("vap-gym: ")
    assert not (tmp_path / "out.json").exists()
