"""Real recordings shown whole: what their tables say, on small parts of them; folders that appear only when whole."""

import json
import re
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vap_gym.cards import load_robot
from vap_gym.commands.calibrate import read_samples
from vap_gym.commands.recover_hand_pictures import main as import_pictures
from vap_gym.data import EpisodeSet
from vap_gym.data.conventions import HANDS_PX
from vap_gym.data.layout import DataError
from vap_gym.data.video import read_video, write_video
from vap_gym.evaluate.real_sources import TABLE, enlarged, fresh_folder, joints_for, outline
from vap_gym.evaluate.real_sources_arms import show_bridge, show_rt1
from vap_gym.evaluate.real_sources_clips import show_generated
from vap_gym.evaluate.real_sources_droid import show_droid
from vap_gym.evaluate.real_sources_eyehand import show_eye_hand
from vap_gym.evaluate.real_sources_hands import drawn_on, show_hands
from vap_gym.kinematics import load_chain


def rows_of(text: str) -> list[list[str]]:
    """The cells of all rows of markdown tables, headings included."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


# --- folders ---


def test_a_folder_appears_when_whole_and_replaces_only_its_own(tmp_path: Path) -> None:
    out = tmp_path / "shown"
    with fresh_folder(out) as folder:
        (folder / TABLE).write_text("one")
        (folder / "old.png").write_text("")
        assert not out.exists()
    with pytest.raises(RuntimeError), fresh_folder(out) as folder:
        (folder / TABLE).write_text("half")
        raise RuntimeError
    assert (out / TABLE).read_text() == "one"
    with fresh_folder(out) as folder:
        (folder / TABLE).write_text("two")
    assert sorted(path.name for path in out.iterdir()) == [TABLE]
    assert [path.name for path in tmp_path.iterdir()] == ["shown"]
    (tmp_path / "photos").mkdir()
    with pytest.raises(DataError, match="must be free, or hold a table.md"), fresh_folder(tmp_path / "photos"):
        pass


def test_joints_bring_the_tip_to_each_pose_and_prefer_home() -> None:
    robot = load_robot("widowx")
    arm = load_chain(robot).subchain([robot.tip_link]).to(torch.float64)
    home = torch.tensor(robot.home_q_rad, dtype=torch.float64)
    q = torch.stack([home, home + 0.2, home - torch.tensor([0.3, 0.1, -0.2, 0.1, 0.2, -0.4])])
    T = arm.fk(q, robot.tip_link)
    far = T[:1].clone()
    far[:, 0, 3] = 5.0
    found = joints_for(robot, torch.cat([T, far]))
    assert found.converged.tolist() == [True, True, True, False]
    torch.testing.assert_close(found.q[0], home, atol=1e-6, rtol=0)
    torch.testing.assert_close(arm.fk(found.q[:3], robot.tip_link), T, atol=2e-4, rtol=0)
    assert float(found.position_error_m[3]) > 4


# --- sources ---


def test_droid_kinematics_hold_on_every_row(shared_data: Path, tmp_path: Path) -> None:
    text = show_droid(shared_data / "droid", tmp_path, only=("subset_5",))
    told = dict(zip(*rows_of(text)[:2], strict=True))
    note = json.loads((shared_data / "droid" / "subset_5" / "episode.json").read_text())
    assert (told["episode"], told["rate"], told["kept"]) == ("subset_5", "5 Hz", "no camera")
    assert int(told["frames"]) == note["video_frames"]
    assert int(told["rows"]) == note["log_rows"]
    assert float(told["FK off m"]) < 1e-6
    assert float(told["FK off rad"]) < 1e-6
    assert (tmp_path / "views.png").stat().st_size > 20_000
    assert not (tmp_path / "overlays").exists()


def test_droid_pairs_of_a_calibrated_view(shared_data: Path, tmp_path: Path) -> None:
    """Every fifth frame of an episode, to be quick."""
    name, taken = "newsetup_0009", slice(None, None, 5)
    folder = tmp_path / "droid" / name
    folder.mkdir(parents=True)
    (folder.parent / "cameras.json").write_bytes((shared_data / "droid" / "cameras.json").read_bytes())
    (folder / "episode.json").write_bytes((shared_data / "droid" / name / "episode.json").read_bytes())
    log = np.load(shared_data / "droid" / name / "log.npz")
    rows = {key: log[key][taken] for key in ("joint_position", "gripper_position", "cartesian_position")}
    frames = read_video(shared_data / "droid" / name / "cam0.mp4")[taken]
    np.savez(folder / "log.npz", frame_to_row=np.arange(len(frames)), **rows)
    write_video(folder / "cam0.mp4", frames, 1)
    out = tmp_path / "out"
    told = dict(zip(*rows_of(show_droid(folder.parent, out, only=(name,)))[:2], strict=True))
    assert (told["view"], told["kept"]) == ("cam0", "kept")
    assert 0 < float(told["off px"]) <= 10
    assert sorted(path.name for path in (out / "overlays").iterdir()) == [f"{name}_cam0.mp4", f"{name}_cam0.png"]
    assert read_video(out / "overlays" / f"{name}_cam0.mp4").shape == (len(frames), 384, 4 * 640, 3)
    pairs = EpisodeSet(out / f"pairs_{name}_cam0")
    assert set(pairs.features.views) == {"prompt", "video"}
    assert pairs.length(0) == len(frames)


def test_bridge_states_are_exact_and_reached(shared_data: Path, tmp_path: Path) -> None:
    rows = rows_of(show_bridge(shared_data / "bridge_widowx", tmp_path, limit=2))
    first = dict(zip(rows[0], rows[1], strict=True))
    assert first["equal to decoded"] == "yes: state, action, image_0, image_1, image_2"
    assert first["IK found"] == first["tips in view"] == "10/10"
    assert float(first["IK off mm"]) < 0.01
    assert (tmp_path / "overlays.png").exists()
    assert len(EpisodeSet(tmp_path / "set")) == 2


def test_rt1_clip_comes_back_bit_by_bit_and_is_steady(shared_data: Path, tmp_path: Path) -> None:
    text = show_rt1(shared_data / "rt1_google_robot", tmp_path)
    rows = rows_of(text)
    clip = dict(zip(rows[0], rows[1], strict=True))
    assert (clip["frames"], clip["pictures equal"], clip["actions"]) == ("22", "yes", "none logged")
    scores = {row[0]: row[1:] for row in rows}
    assert scores["itself"] == ["1.0000"] * 4
    assert float(scores["reversed"][0]) < 0.5
    assert "steady: kept" in text
    assert (tmp_path / "overlays.png").exists()


def test_eye_hand_table_agrees_with_the_solution(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "franka_eyehand" / "world_cams_20poses"
    T_base_hand, pixels, lenses, images = read_samples(folder / "samples.json")
    given: dict[str, Any] = {"T_base_hand": T_base_hand, "pixels": pixels, "lenses": lenses, "images": images}
    text = show_eye_hand(folder, tmp_path, poses=3, **given)
    head, *rows = rows_of(text)
    assert [row[0] for row in rows] == ["cam0", "cam1", "cam2"]
    for row in rows:
        told = dict(zip(head, row, strict=True))
        assert float(told["mean px"]) < 0.7
        assert float(told["apart mm"]) < 5
        assert float(told["apart deg"]) < 0.2
    assert "3 of 3 found" in text
    assert set(json.loads((tmp_path / "cameras.json").read_text())) >= {"cam0", "cam1", "cam2"}
    assert {path.name for path in tmp_path.glob("*.png")} == {"four.png", "overlays.png", "residuals.png"}


def test_hands_lie_where_the_releases_own_formula_puts_them(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "hands" / "interhand2.6m"
    import_pictures(folder, tmp_path / "set")
    episodes = EpisodeSet(tmp_path / "set")
    head, *rows = rows_of(show_hands(folder, episodes, tmp_path))
    assert {row[head.index("in box")] for row in rows} == {"100%"}
    assert all(float(row[head.index("reprojected px")]) < 1e-6 for row in rows)
    camera, joints, data = (
        json.loads((folder / f"test_interhand2.6m_{name}.json").read_text()) for name in ("camera", "joint_3d", "data")
    )
    for image, episode in zip(data["images"], episodes, strict=True):
        own = {key: np.array(table[image["camera"]]) for key, table in camera[str(image["capture"])].items()}
        world = np.array(joints[str(image["capture"])][str(image["frame_idx"])]["world_coord"]).reshape(42, 3)
        x, y, z = own["camrot"] @ (world - own["campos"]).T
        px = own["focal"] * np.stack([x / z, y / z], -1) + own["princpt"]
        by = 512 / max(image["width"], image["height"])
        corner = [(512 - round(image[side] * by)) // 2 for side in ("width", "height")]
        wrists = episode.columns[HANDS_PX][0, ::-1, 0]  # right, left
        there = np.isfinite(wrists).all(-1)
        np.testing.assert_allclose(wrists[there], (px[[20, 41]] * by + corner)[there], atol=0.6)
        assert drawn_on(episode) > 0.9


def test_a_prompt_drawn_elsewhere_is_told(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "hands" / "onehand10k"
    import_pictures(folder, tmp_path / "set")
    episode = EpisodeSet(tmp_path / "set")[3]
    assert drawn_on(episode) == 1
    episode.frames["prompt"][:] = np.roll(episode.frames["prompt"], 150, axis=2)
    assert drawn_on(episode) < 0.2


def test_generated_clips_score_as_expected(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "generated_vs_real"
    _, *rows, worst = rows_of(show_generated(folder, tmp_path, names=("rt1",)))
    assert len(rows) == 3
    for row in rows:
        for cell in row[2:]:
            ours, theirs = re.fullmatch(r"(\S+) \((\S+)\)", cell).groups()  # type: ignore[union-attr]
            assert float(ours) == pytest.approx(float(theirs), abs=1e-3)
    assert all(float(value) < 1e-3 for value in worst[2:])
    assert (tmp_path / "rt1.png").exists()
    with pytest.raises(DataError, match="No clip named 'kitchen'"):
        show_generated(folder, tmp_path, names=("kitchen",))


def test_the_command_writes_a_page_and_refuses_a_folder_that_is_not_there(
    repo: Path, shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main = runpy.run_path(str(repo / "examples" / "07_real_sources.py"))["main"]
    main("hands", data=shared_data, out=tmp_path)
    printed = capsys.readouterr().out
    page = (tmp_path / "hands" / TABLE).read_text()
    assert page.strip() in printed
    assert "image2017.jpg" in page
    assert "Measured on" in page
    with pytest.raises(SystemExit, match="must be the folder of the recordings"):
        main("hands", data=tmp_path / "nowhere", out=tmp_path)


def test_enlarged_frames_keep_their_place() -> None:
    frame = np.zeros((1, 4, 6, 3), np.uint8)
    frame[0, 1, 2] = 255
    large = enlarged(frame, 4)
    assert large.shape == (1, 16, 24, 3)
    assert np.unravel_index(large[0, ..., 0].astype(int).argmax(), (16, 24))[0] in (5, 6)
    assert large[0, 5:7, 9:11].min() > 200


def test_outline_is_the_rim_of_a_silhouette_and_not_the_pictures_border() -> None:
    mask = np.zeros((1, 6, 7), bool)
    mask[0, 1:5, 3:] = True
    assert outline(mask)[0].astype(int).tolist() == [
        [0, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 1, 1, 1, 1],
        [0, 0, 0, 1, 0, 0, 0],
        [0, 0, 0, 1, 0, 0, 0],
        [0, 0, 0, 1, 1, 1, 1],
        [0, 0, 0, 0, 0, 0, 0],
    ]
