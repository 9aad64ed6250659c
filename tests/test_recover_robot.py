"""The robot pipeline as a whole: prompts that fit, episodes that do not, broken input, and sets of pairs."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vap_gym.cards import load_robot
from vap_gym.cli import main as cli
from vap_gym.data import EpisodeSet, EpisodeWriter
from vap_gym.data.conventions import GRIPPER, JOINTS, camera_of, columns_of_camera
from vap_gym.data.episodes import Episode
from vap_gym.data.layout import DataError
from vap_gym.errors import UnknownNameError
from vap_gym.geometry import Camera
from vap_gym.recover.drift import corners
from vap_gym.recover.robot import RecoveredEpisode, RobotPipeline, recover_robot
from vap_gym.recover.robot_set import recover_set
from vap_gym.recover.silhouette import RobotRenderer

ROBOT = load_robot("panda_robotiq")
SIZE, T = (192, 128), 12


def looking(target: tuple[float, float, float] = (0.35, 0.0, 0.35)) -> Camera:
    eye = torch.tensor([1.3, 0.7, 0.7], dtype=torch.float64)
    at = torch.tensor(target, dtype=torch.float64)
    return Camera.look_at(eye, at, vertical_fov_rad=0.9, frame_size_px=SIZE)


def room(seed: int) -> np.ndarray:
    """A background with features, 32 px larger than the frame all around."""
    import cv2

    rng = np.random.default_rng(seed)
    picture = np.full((SIZE[1] + 64, SIZE[0] + 64, 3), 150, np.uint8)
    for _ in range(150):
        a = rng.integers(0, SIZE[0] + 64, 2)
        b = a + rng.integers(3, 12, 2)
        cv2.rectangle(picture, tuple(map(int, a)), tuple(map(int, b)), rng.integers(0, 255, 3).tolist(), -1)
    return cv2.GaussianBlur(picture, (0, 0), 0.8)


def film(frames: int = T, *, drift_px: float = 0.0, seed: int = 0) -> tuple[Episode, np.ndarray]:
    """An episode in a made-up room, seen by a camera that drifts, and the true homographies."""
    import cv2

    way = np.random.default_rng(seed).uniform(-0.6, 0.6, 7)
    q = np.array(ROBOT.home_q_rad) + np.linspace(0, 1, frames)[:, None] * way
    gripper = np.linspace(0, 1, frames)
    drawn = RobotRenderer(ROBOT)(torch.from_numpy(q).float(), torch.from_numpy(gripper).float(), looking())
    H = np.tile(np.eye(3), (frames, 1, 1))
    at = np.linspace(0, 1, frames)
    H[:, 0, 2], H[:, 1, 2] = drift_px * at, -drift_px * np.sin(2 * at)
    scene = room(seed)
    centre = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    pictures = []
    for picture, mask, h in zip(drawn.picture, drawn.mask, H, strict=True):
        full = scene.copy()
        full[32:-32, 32:-32][mask] = picture[mask]
        away = np.linalg.inv(centre) @ h @ np.array([[1, 0, -32], [0, 1, -32], [0, 0, 1]]) @ centre
        pictures.append(cv2.warpPerspective(full, away, SIZE, flags=cv2.INTER_CUBIC))
    columns = {JOINTS: q, GRIPPER: gripper, **columns_of_camera(looking(), "cam", frames)}
    return Episode(frames={"cam": np.stack(pictures)}, columns=columns, task="wave", info={"lab": "here"}), H


def seen_by(episode: Episode, camera: Camera) -> Episode:
    columns = {**episode.columns, **columns_of_camera(camera, "cam", len(episode))}
    return Episode(frames=episode.frames, columns=columns, task=episode.task, info=episode.info)


@pytest.fixture(scope="module")
def pipeline() -> RobotPipeline:
    return RobotPipeline(ROBOT)


def far(found: RecoveredEpisode, true: np.ndarray) -> float:
    return float(np.median(np.linalg.norm(corners(found.homography, SIZE) - corners(true, SIZE), axis=-1)))


def test_drifting_episode_is_kept_and_its_prompts_follow(pipeline: RobotPipeline) -> None:
    episode, true = film(drift_px=9.0)
    found = pipeline(episode, "cam")
    assert found.verdict.keep, found.verdict.reasons
    assert far(found, true) < 1 < far(found, np.broadcast_to(np.eye(3), true.shape) @ np.linalg.inv(true)) + 9
    assert found.drift_px > 8
    assert found.drift_share == 1
    assert found.prompts.shape == episode.frames["cam"].shape
    assert np.nanmin(found.match_score) > 0.3
    # Of the last frame the prompt lies where the robot is, and not where the nominal camera has it.
    robot = pipeline.render(
        torch.from_numpy(episode.columns[JOINTS]).float(),
        torch.from_numpy(episode.columns[GRIPPER]).float(),
        found.camera,
    ).mask[-1]
    assert (robot & (found.prompts[-1].max(-1) > 100)).sum() > 0.7 * (found.prompts[-1].max(-1) > 100).sum()


def test_same_input_same_output(pipeline: RobotPipeline) -> None:
    episode, _ = film(6, drift_px=5.0)
    once, again = pipeline(episode, "cam"), recover_robot(episode, "cam", robot=ROBOT)
    assert np.array_equal(once.prompts, again.prompts)
    assert np.array_equal(once.homography, again.homography)
    assert once.verdict == again.verdict


@pytest.mark.parametrize("target", [(0.35, 0.0, 0.15), (0.1, 0.3, 0.35), (3.0, 2.0, 0.5)])
def test_wrong_camera_is_discarded_and_says_why(pipeline: RobotPipeline, target: tuple[float, float, float]) -> None:
    found = pipeline(seen_by(film()[0], looking(target)), "cam")
    assert not found.verdict.keep
    assert found.verdict.reasons
    assert all("at most" in reason or "at least" in reason for reason in found.verdict.reasons)


def test_constant_offset_is_taken_out(pipeline: RobotPipeline) -> None:
    episode, _ = film(16)
    camera = looking()
    K = camera.K.clone()
    K[0, 2] -= 9.0
    off = Camera(K=K, T_world_camera=camera.T_world_camera, frame_size_px=SIZE)
    found = pipeline(seen_by(episode, off), "cam")
    assert found.verdict.keep, found.verdict.reasons
    assert found.homography[:, 0, 2] == pytest.approx(9.0, abs=2)
    left = RobotPipeline(ROBOT, align="none")(seen_by(episode, off), "cam")
    assert np.array_equal(left.homography, np.broadcast_to(np.eye(3), (16, 3, 3)))


def test_frames_without_state_are_told_and_black(pipeline: RobotPipeline) -> None:
    episode, _ = film()
    q = episode.columns[JOINTS].copy()
    q[3], q[7, 2] = np.nan, np.inf
    broken = Episode(frames=episode.frames, columns={**episode.columns, JOINTS: q}, task=episode.task)
    found = pipeline(broken, "cam")
    assert np.flatnonzero(~found.has_state).tolist() == [3, 7]
    assert not found.prompts[[3, 7]].any()
    assert np.isnan(found.match_score[[3, 7]]).all()
    assert found.verdict.keep, found.verdict.reasons
    with pytest.raises(DataError, match="finite joints and gripper in some frame, got none in 12 frames"):
        pipeline(Episode(frames=episode.frames, columns={**episode.columns, JOINTS: q * np.nan}, task=""), "cam")


def test_blank_short_and_moving_ones_do_not_crash(pipeline: RobotPipeline) -> None:
    episode, _ = film(drift_px=6.0)
    frames = episode.frames["cam"].copy()
    frames[4:6] = 0
    some = pipeline(Episode(frames={"cam": frames}, columns=episode.columns, task=""), "cam")
    assert some.verdict.keep, some.verdict.reasons
    assert some.drift_share < 1
    blank = pipeline(Episode(frames={"cam": frames * 0}, columns=episode.columns, task=""), "cam")
    assert not blank.verdict.keep
    one, _ = film(1)
    assert pipeline(one, "cam").prompts.shape == (1, SIZE[1], SIZE[0], 3)
    # A camera whose pose is logged at every frame is taken at its word: no drift is looked for.
    T_world_camera = episode.columns["camera.cam.T_world_camera"].copy()
    T_world_camera[:, 0, 3] += np.linspace(0, 0.01, T)
    columns = {**episode.columns, "camera.cam.T_world_camera": T_world_camera}
    moving = pipeline(Episode(frames=episode.frames, columns=columns, task=""), "cam")
    assert moving.drift_px == 0
    assert np.isnan(moving.verdict.motion)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_noise_of_any_size_is_judged_or_refused_and_never_crashes(pipeline: RobotPipeline, seed: int) -> None:
    rng = np.random.default_rng(seed)
    count, (height, width) = int(rng.integers(1, 6)), rng.choice([1, 2, 7, 33, 96], 2)
    q, gripper = rng.normal(0, rng.choice([0.5, 1e6]), (count, 7)), rng.normal(0, 1, count)
    q[rng.random(count) < 0.3] = rng.choice([np.nan, np.inf])
    K = np.tile(np.diag([10 ** rng.uniform(-1, 4), 10 ** rng.uniform(-1, 4), 1.0]), (count, 1, 1))
    T_world_camera = np.tile(looking().T_world_camera.numpy(), (count, 1, 1))
    T_world_camera[:, :3, 3] += rng.normal(0, rng.choice([0.0, 1.0, 50.0]), (rng.choice([1, count]), 3))
    episode = Episode(
        frames={"v": rng.integers(0, 256, (count, height, width, 3), dtype=np.uint8)},
        columns={JOINTS: q, GRIPPER: gripper, "camera.v.K": K, "camera.v.T_world_camera": T_world_camera},
        task="",
    )
    if not np.isfinite(q).all(-1).any():
        with pytest.raises(DataError, match="finite joints and gripper in some frame"):
            pipeline(episode, "v")
        return
    found = pipeline(episode, "v")
    assert found.prompts.shape == episode.frames["v"].shape
    assert np.isfinite(found.homography).all()
    assert np.array_equal(found.has_state, np.isfinite(q).all(-1))


def test_what_is_missing_is_told(pipeline: RobotPipeline) -> None:
    episode, _ = film(1)
    with pytest.raises(UnknownNameError, match="view of the episode named 'kam'. Did you mean 'cam'"):
        pipeline(episode, "kam")
    for gone, message in ((JOINTS, "joint_position not among"), ("camera.cam.K", "No camera of the view 'cam'")):
        columns = {name: value for name, value in episode.columns.items() if name != gone}
        with pytest.raises(DataError, match=message):
            pipeline(Episode(frames=episode.frames, columns=columns, task=""), "cam")
    with pytest.raises(DataError, match=r"must have shape \(T, 7\), got \(1, 6\)"):
        columns = {**episode.columns, JOINTS: episode.columns[JOINTS][:, :6]}
        pipeline(Episode(frames=episode.frames, columns=columns, task=""), "cam")
    with pytest.raises(UnknownNameError, match="prompt named 'mash'. Did you mean 'mesh'"):
        RobotPipeline(ROBOT, prompt="mash")


@pytest.fixture(scope="module")
def raw_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A right episode, one with a wrong camera, and one without any state."""
    root = tmp_path_factory.mktemp("raw")
    writer = EpisodeWriter(root, fps=5, robot_type="panda_robotiq")
    right = film(drift_px=5.0)[0]
    writer.write(0, right)
    writer.write(1, seen_by(right, looking((0.35, 0.0, 0.15))))
    lost = {**right.columns, JOINTS: right.columns[JOINTS] * np.nan}
    writer.write(4, Episode(frames=right.frames, columns=lost, task="wave", info={}))
    return root


def test_set_of_pairs_holds_what_is_kept_and_the_report_the_rest(
    raw_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli(["recover", "robot", str(raw_set), str(tmp_path / "out")]) == 0
    assert "1 kept, 1 discarded, 1 failed" in capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [entry["episode"] for entry in report["kept"]] == [0]
    assert [entry["episode"] for entry in report["discarded"]] == [1]
    assert "(at " in " ".join(report["discarded"][0]["reasons"])
    assert "got none in 12 frames" in report["failed"][0]["error"]
    assert (tmp_path / "out" / "examples.png").is_file()
    pairs = EpisodeSet(tmp_path / "out")
    assert len(pairs) == 1
    assert set(pairs.features.views) == {"video", "prompt"}
    kept, source = pairs[0], EpisodeSet(raw_set)[0]
    assert kept.info["recovered"]["discrepancy_px"] < 5
    assert (kept.info["lab"], kept.info["robot"], kept.task) == ("here", "panda_robotiq", "wave")
    for name in (JOINTS, GRIPPER, "camera.cam.K"):
        assert np.array_equal(kept.columns[name], source.columns[name])
    assert kept.columns["homography"].shape == (T, 3, 3)
    # The camera of the pairs draws the prompt that is stored.
    camera = camera_of(kept.columns, "video", SIZE)
    again = pipeline_prompts(kept, camera)
    assert np.abs(again.astype(int) - kept.frames["prompt"]).mean() < 2


def pipeline_prompts(episode: Episode, camera: Camera) -> np.ndarray:
    from vap_gym.prompts.kinds import Prompter

    q, gripper = (torch.from_numpy(episode.columns[name]).float() for name in (JOINTS, GRIPPER))
    return Prompter(ROBOT, "skeleton", frame_size_px=SIZE).draw(q, gripper, camera.to(torch.float32)).numpy()


def test_stopped_run_goes_on_and_other_settings_are_refused(
    raw_set: Path, tmp_path: Path, pipeline: RobotPipeline
) -> None:
    class Stopped(Exception):
        pass

    told: list[str] = []

    def stop(line: str) -> None:
        told.append(line)
        if len(told) == 2:
            raise Stopped

    with pytest.raises(Stopped):
        recover_set(EpisodeSet(raw_set), tmp_path, "cam", pipeline, tell=stop)
    assert len(EpisodeSet(tmp_path)) == 1
    report = recover_set(EpisodeSet(raw_set), tmp_path, "cam", pipeline, tell=told.append)
    assert [len(report[kind]) for kind in ("kept", "discarded", "failed")] == [1, 1, 1]
    assert sum(line.startswith("episode 0") for line in told) == 1
    with pytest.raises(DataError, match="of a run with other settings"):
        recover_set(EpisodeSet(raw_set), tmp_path, "cam", RobotPipeline(ROBOT, align="none"))


def test_the_command_refuses_bounds_that_cannot_be(
    raw_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["recover", "robot", str(raw_set), str(tmp_path / "out"), "--view", "cam", "--robot", ROBOT.name]
    for option, value, wanted in (
        ("score", "7", r"within [0, 1], got 7.0"),
        ("motion", "nan", "within [0, 1], got nan"),
    ):
        assert cli([*words, f"--least-{option}", value]) == 2
        assert f"--least-{option} must be {wanted}. Leave it out for 0." in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_another_set_is_not_written_into(raw_set: Path, pipeline: RobotPipeline) -> None:
    before = {path: path.stat().st_mtime_ns for path in raw_set.rglob("*")}
    with pytest.raises(DataError, match=r"must be a new folder, or one that an earlier run .* Name another"):
        recover_set(EpisodeSet(raw_set), raw_set, "cam", pipeline)
    assert {path: path.stat().st_mtime_ns for path in raw_set.rglob("*")} == before


def test_kept_episodes_are_numbered_without_gaps(raw_set: Path, tmp_path: Path, pipeline: RobotPipeline) -> None:
    raw = EpisodeSet(raw_set)
    for number, i in enumerate((1, 0, 2, 0)):  # discarded, kept, failed, kept
        EpisodeWriter(tmp_path / "raw", fps=raw.fps).write(number, raw[i])
    report = recover_set(EpisodeSet(tmp_path / "raw"), tmp_path / "out", "cam", pipeline)
    assert [(entry["episode"], entry["index"]) for entry in report["kept"]] == [(1, 0), (3, 1)]
    pairs = EpisodeSet(tmp_path / "out")
    assert [pairs.info(i)["source_number"] for i in range(len(pairs))] == [1, 3]
    assert pairs.meta["total_episodes"] == 2
    assert not (tmp_path / "out" / ".staged").exists()
    assert recover_set(EpisodeSet(tmp_path / "raw"), tmp_path / "out", "cam", pipeline) == report


def test_real_cameras_right_and_moved_are_told_apart(shared_data: Path, pipeline: RobotPipeline) -> None:
    from vap_gym.data.video import read_video
    from vap_gym.geometry import inverse

    card = json.loads((shared_data / "droid/cameras.json").read_text())["cam0"]
    camera = Camera(
        K=torch.tensor(card["K"], dtype=torch.float64),
        T_world_camera=inverse(torch.tensor(card["T_camera_from_base"], dtype=torch.float64)),
        frame_size_px=tuple(card["image_size_wh"]),
    )
    for name, right in (("newsetup_0012", True), ("newsetup_0001", False)):  # cam0 stood elsewhere in 0001
        log = np.load(shared_data / "droid" / name / "log.npz")
        columns = {JOINTS: log["joint_position"][:24], GRIPPER: log["gripper_position"][:24]}
        frames = read_video(shared_data / "droid" / name / "cam0.mp4", stop=24)
        episode = Episode(frames={"v": frames}, columns={**columns, **columns_of_camera(camera, "v", 24)}, task="")
        assert pipeline(episode, "v").verdict.keep == right, name
