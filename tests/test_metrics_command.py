"""`vap-gym metrics` reads clips from whatever they are kept in, prints the scores, and refuses in three parts."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vap_gym import cli, metrics
from vap_gym.commands.clip_files import ClipFile, find_clips, read_frames, read_masks
from vap_gym.data.layout import DataError
from vap_gym.data.video import write_video


def moving(seed: int, frames: int = 9, height: int = 32, width: int = 48) -> np.ndarray:
    """A square that moves over a gradient, uint8 (T, H, W, 3)."""
    rng = np.random.default_rng(seed)
    clip = np.repeat(np.linspace(20, 120, width).astype(np.uint8)[None, None, :, None], 3, 3)
    clip = np.tile(clip, (frames, height, 1, 1))
    row, column = rng.integers(4, 16, 2)
    for t, frame in enumerate(clip):
        frame[row : row + 12, column + 2 * t : column + 2 * t + 12] = rng.integers(150, 255, 3)
    return clip


def told(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """Run the command, which must succeed, and return what it prints."""
    assert cli.main(["metrics", *map(str, words)]) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """Run the command, which must be refused in one line, and return that line."""
    assert cli.main(["metrics", *map(str, words)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """A predicted and a true clip, as npz."""
    a, b = moving(0), moving(1)
    np.savez(tmp_path / "a.npz", frames=a, states=np.zeros((9, 7)))
    np.savez(tmp_path / "b.npz", frames=b)
    return tmp_path / "a.npz", tmp_path / "b.npz"


def test_real_clips_get_the_scores_of_the_references(shared_data: Path, tmp_path: Path, capsys) -> None:
    folder, out = shared_data / "generated_vs_real", tmp_path / "new" / "scores.json"
    shown = told(capsys, folder / "irasim_rt1_short_pred.mp4", folder / "irasim_rt1_short_gt.mp4", "--out", out)
    expected = json.loads((folder / "expected_metrics.json").read_text())["rt1"]
    scores = {name: row["value"] for name, row in json.loads(out.read_text())["scores"].items()}
    for name, theirs, near in (
        ("psnr_db", "psnr_mean_finite", 1e-3),
        ("ssim", "ssim_gaussian_11_1p5", 1e-3),
        ("st_iou", "st_iou", 5e-3),
        ("spatial_iou", "spatial_iou", 5e-3),
        ("weighted_spatial_iou", "weighted_spatial_iou", 5e-3),
    ):
        assert scores[name] == pytest.approx(expected["pred"][theirs], abs=near)
        assert f"{scores[name]:.4g}" in shown
    still = json.loads(out.read_text())["frozen_first_frame"]
    assert still["st_iou"] == pytest.approx(expected["frozen_first_frame"]["st_iou"], abs=5e-3)
    assert "15 frames, 320x256 px" in shown


def test_real_masks_get_the_scores_of_the_references(shared_data: Path, tmp_path: Path, capsys) -> None:
    file, out = shared_data / "mask_metrics" / "car-shadow.npz", tmp_path / "scores.json"
    told(capsys, f"{file}:segmentation", f"{file}:annotation", "--masks", "--out", out)
    expected = json.loads((shared_data / "mask_metrics" / "expected_J_F.json").read_text())["car-shadow"]
    scores = {name: row["value"] for name, row in json.loads(out.read_text())["scores"].items()}
    assert scores["j"] == pytest.approx(np.mean(expected["J"]), abs=1e-6)
    assert scores["f"] == pytest.approx(np.mean(expected["F"]), abs=1e-6)
    said = refused(capsys, file, file, "--masks")
    assert "must hold masks (T, H, W) of bool or whole numbers once, got annotation bool (8, 480, 854)" in said
    assert f"Name '{file}:annotation'" in said


def test_every_way_to_keep_a_clip_gives_the_same_frames(tmp_path: Path) -> None:
    clip = moving(0, frames=11)
    (tmp_path / "pictures").mkdir()
    for t, frame in enumerate(clip):
        Image.fromarray(frame).save(tmp_path / "pictures" / f"frame{t}.png")  # frame10 comes after frame9
    write_video(tmp_path / "clip.mp4", clip, 5, lossless=True)
    np.save(tmp_path / "clip.npy", clip)
    np.savez(tmp_path / "clip.npz", first=clip, second=clip[::-1])
    for place in ("pictures", "clip.mp4", "clip.npy", "clip.npz:first"):
        found = find_clips(str(tmp_path / place))
        assert isinstance(found, ClipFile)
        np.testing.assert_array_equal(read_frames(found), clip)


def test_masks_are_what_is_not_zero(tmp_path: Path) -> None:
    labels = np.zeros((3, 8, 10), np.uint8)
    labels[1, 2:5, 3:6], labels[2, :2] = 1, 2
    folder = tmp_path / "labels"
    folder.mkdir()
    for t, label in enumerate(labels):
        picture = Image.fromarray(label)
        picture.putpalette([0, 0, 0, 0, 0, 0, 200, 0, 0])  # label 1 is drawn black: its number counts, not its colour
        picture.save(folder / f"{t}.png")
    np.save(tmp_path / "labels.npy", labels)
    write_video(tmp_path / "masks.mp4", np.repeat(255 * (labels[..., None] > 0), 3, 3).astype(np.uint8), 5)
    for place in ("labels", "labels.npy", "masks.mp4"):
        found = find_clips(str(tmp_path / place))
        assert isinstance(found, ClipFile)
        np.testing.assert_array_equal(read_masks(found), labels > 0)


def test_folders_are_compared_clip_by_clip_with_intervals(tmp_path: Path, capsys) -> None:
    for side in "ab":
        (tmp_path / side).mkdir()
    for i in range(3):
        write_video(tmp_path / "a" / f"clip{i}.mp4", moving(i), 5, codec="h264_444")
        np.savez(tmp_path / "b" / f"clip{i}.npz", frames=moving(i))
    shown = told(capsys, tmp_path / "a", tmp_path / "b", "--out", tmp_path / "out.json")
    report = json.loads((tmp_path / "out.json").read_text())
    assert list(report["per_clip"]) == ["clip0", "clip1", "clip2"]
    psnr = report["scores"]["psnr_db"]
    assert psnr["value"] == pytest.approx(np.mean([row["psnr_db"] for row in report["per_clip"].values()]))
    assert psnr["low"] <= psnr["value"] <= psnr["high"]
    assert f"{psnr['value']:.3g} [{psnr['low']:.3g}, {psnr['high']:.3g}]" in shown
    (tmp_path / "a" / "clip1.mp4").rename(tmp_path / "a" / "other.mp4")
    said = refused(capsys, tmp_path / "a", tmp_path / "b")
    assert (
        f"clips of the same names, got clip1 (only in '{tmp_path / 'b'}'), other (only in '{tmp_path / 'a'}')" in said
    )


def test_other_sizes_and_lengths_are_refused_with_the_flag_that_helps(two, tmp_path: Path, capsys) -> None:
    small, short = tmp_path / "small.npz", tmp_path / "short.npz"
    np.savez(small, frames=moving(0, height=24, width=36))
    np.savez(short, frames=moving(1, frames=5))
    said = refused(capsys, small, two[1])
    assert f"one frame size, got '{small}' 36x24 and '{two[1]}' 48x32. Bring both to one: --resize 48 32." in said
    assert "36x24 px" in told(capsys, small, two[1], "--resize", 36, 24)
    said = refused(capsys, two[0], short)
    assert (
        f"one number of frames, got '{two[0]}' 9 and '{short}' 5. To compare only the first ones: --frames 5." in said
    )
    assert "1 clip(s) of 5 frames" in told(capsys, two[0], short, "--frames", 5)
    assert "must have 7 frames, got 5. Give --frames 5." in refused(capsys, two[0], short, "--frames", 7)
    assert "at least 1, got None and 0." in refused(capsys, *two, "--frames", 0)


def test_learned_scores_are_absent_without_weights_and_say_how_to_get_them(two, tmp_path: Path, capsys) -> None:
    shown = told(capsys, *two, "--out", tmp_path / "out.json")
    assert "LPIPS is absent: give --lpips: torchvision's weights of AlexNet (alexnet-owt-7be5be79.pth)" in shown
    assert "FVD is absent: give folders of clips and --fvd WEIGHTS: StyleGAN-V's i3d_torchscript.pt" in shown
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["absent"].keys() == {"fvd", "lpips"}
    assert "lpips" not in report["scores"]
    assert "fvd" not in report


class TinyDetector(torch.nn.Module):
    """Answers the call of StyleGAN-V's I3D, in small."""

    def forward(self, x: torch.Tensor, rescale: bool, resize: bool, return_features: bool) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool3d(x, (1, 1, 2)).flatten(1)


def test_weights_bring_lpips_and_fvd(tmp_path: Path, capsys) -> None:
    rng = torch.Generator().manual_seed(0)
    chain = ((0, 64, 3, 11), (3, 192, 64, 5), (6, 384, 192, 3), (8, 256, 384, 3), (10, 256, 256, 3))
    backbone = {f"features.{i}.weight": torch.randn(o, n, k, k, generator=rng) * 0.05 for i, o, n, k in chain}
    backbone |= {f"features.{i}.bias": torch.zeros(o) for i, o, _, _ in chain}
    lin = {f"lin{i}.model.1.weight": torch.ones(1, row[1], 1, 1) for i, row in enumerate(chain)}
    torch.save(backbone, tmp_path / "alex.pth")
    torch.save(lin, tmp_path / "lin.pth")
    torch.jit.script(TinyDetector()).save(str(tmp_path / "i3d.pt"))
    for side, seed in (("a", 0), ("b", 9)):
        (tmp_path / side).mkdir()
        for i in range(4):
            np.save(tmp_path / side / f"{i}.npy", moving(seed + i))
    weights = ["--lpips", tmp_path / "alex.pth", "--lpips-lin", tmp_path / "lin.pth", "--fvd", tmp_path / "i3d.pt"]
    shown = told(capsys, tmp_path / "a", tmp_path / "b", *weights, "--out", tmp_path / "out.json")
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["absent"] == {}
    assert report["scores"]["lpips"]["value"] > 0
    assert (report["fvd"]["clips"], report["fvd"]["floor_clips"], report["fvd"]["frames"]) == (4, 2, 9)
    assert f"FVD {report['fvd']['value']:.4g} (N=4, T=9); at N=2:" in shown
    one = refused(capsys, tmp_path / "a" / "0.npy", tmp_path / "b" / "0.npy", *weights)
    assert "FVD needs two folders of at least 4 clips, got 1." in one
    missing = refused(capsys, tmp_path / "a", tmp_path / "b", "--fvd", tmp_path / "none.pt")
    assert "got no such file. Give the path of StyleGAN-V's" in missing


def test_prompts_add_adherence(two, tmp_path: Path, capsys) -> None:
    drawn = moving(1)
    drawn[..., :] = (drawn > 140) * 255
    np.savez(tmp_path / "prompts.npz", drawn=drawn)
    told(capsys, *two, "--prompts", tmp_path / "prompts.npz", "--out", tmp_path / "out.json")
    wrong = json.loads((tmp_path / "out.json").read_text())
    told(capsys, two[1], two[1], "--prompts", tmp_path / "prompts.npz", "--out", tmp_path / "out.json")
    right = json.loads((tmp_path / "out.json").read_text())
    still = right["frozen_first_frame"]["prompt_adherence"]
    assert right["scores"]["prompt_adherence"]["value"] > wrong["scores"]["prompt_adherence"]["value"] > still


def test_what_is_no_clip_is_refused(two, tmp_path: Path, capsys) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "note.txt").write_text("no clip")
    np.savez(tmp_path / "float.npz", frames=moving(0) / 255)
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    for place, message in (
        ("nowhere.mp4", "nowhere.mp4', got no such file. Give a video"),
        ("note.txt", "must be a clip, got a file ending in '.txt'. Give a video"),
        ("empty", "must hold either pictures or clips, got 0 files of other kinds. Give a video"),
        ("float.npz", "must hold uint8 frames (T, H, W, 3) once, got frames float64 (9, 32, 48, 3). Name"),
        ("a.npz:states", "must hold uint8 frames (T, H, W, 3) under 'states', got frames uint8"),
        ("broken.mp4", "cannot be decoded as video"),
    ):
        assert message in refused(capsys, tmp_path / place, two[1])
    assert "got the clip" in refused(capsys, two[0], tmp_path)
    assert "--masks compares masks alone, got --fvd too." in refused(capsys, *two, "--masks", "--fvd", "x.pt")
    assert "--lpips-lin needs the backbone too" in refused(capsys, *two, "--lpips-lin", "x.pth")
    assert "--device must be one of this machine's, got 'abacus'" in refused(capsys, *two, "--device", "abacus")
    assert "--out must be a file to write, got the folder" in refused(capsys, *two, "--out", tmp_path)


@settings(max_examples=60, deadline=None)
@given(where=st.floats(0, 1), flip=st.booleans(), kind=st.sampled_from(["npz", "npy", "png", "mp4"]))
def test_damaged_files_never_crash(
    tmp_path_factory: pytest.TempPathFactory, where: float, flip: bool, kind: str
) -> None:
    clip, folder = moving(0, frames=2), tmp_path_factory.mktemp("damaged")
    path = folder / f"clip.{kind}"
    if kind == "png":
        path = folder / "pictures" / "0.png"
        path.parent.mkdir()
        Image.fromarray(clip[0]).save(path)
    elif kind == "mp4":
        write_video(path, clip, 5)
    else:
        (np.savez_compressed if kind == "npz" else np.save)(path, clip)
    data = bytearray(path.read_bytes())
    at = min(int(where * len(data)), len(data) - 1)
    if flip:
        data[at] ^= 1 << (at % 8)
    else:
        del data[at:]
    path.write_bytes(bytes(data))
    try:
        frames = read_frames(ClipFile(path=path.parent if kind == "png" else path))
    except DataError:
        return
    assert frames.dtype == np.uint8
    assert frames.ndim == 4
    assert metrics.psnr(frames, frames) == 40
