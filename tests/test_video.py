"""Videos: what is written comes back, whole or in part; what cannot be written or read is said."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vap_gym.data import DataError, read_video, write_video
from vap_gym.data.video import CODECS, join_videos

QUICK = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def coloured_objects(count: int = 40, height: int = 96, width: int = 144) -> NDArray[np.uint8]:
    """Small saturated squares moving over a smooth, slightly noisy ground: what chroma subsampling hurts most."""
    y, x = np.mgrid[:height, :width]
    ground = np.stack([120 + 40 * np.sin(x / 17), 100 + 30 * np.cos(y / 11), 90 + x * 0.3], -1)
    ground += np.random.default_rng(0).normal(0, 2, ground.shape)
    frames: NDArray[np.float64] = np.repeat(ground[None], count, 0)
    for t in range(count):
        for k, colour in enumerate([(230, 40, 40), (40, 200, 60), (40, 60, 230), (240, 220, 30)]):
            centre_x, centre_y = 30 + 25 * k + 8 * np.sin(t / 8 + k), 50 + 15 * np.cos(t / 9 + 2 * k)
            frames[t][(abs(x - centre_x) < 6) & (abs(y - centre_y) < 6)] = colour
    return frames.clip(0, 255).astype(np.uint8)


def psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    return float(10 * np.log10(255**2 / max(1e-9, float(np.mean((a.astype(float) - b) ** 2)))))


@QUICK
@given(count=st.integers(1, 20), height=st.integers(2, 33), width=st.integers(2, 33), seed=st.integers(0, 99))
def test_lossless_gives_back_every_bit_at_any_size(
    tmp_path: Path, count: int, height: int, width: int, seed: int
) -> None:
    frames = np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    write_video(tmp_path / "a.mp4", frames, 15, lossless=True)
    assert np.array_equal(read_video(tmp_path / "a.mp4"), frames)


def test_full_colour_keeps_small_objects_that_subsampled_colour_loses(tmp_path: Path) -> None:
    frames = coloured_objects()
    figures = {}
    for codec in ("h264", "h264_444", "h264_rgb"):
        write_video(tmp_path / "a.mp4", frames, 15, codec=codec)
        figures[codec] = psnr(read_video(tmp_path / "a.mp4"), frames)
    assert figures["h264_444"] > 42
    assert figures["h264_444"] > figures["h264"] + 8


def test_real_frames_keep_42_db(tmp_path: Path, shared_data: Path) -> None:
    frames = read_video(shared_data / "droid/newsetup_0001/cam1.mp4", stop=30)
    write_video(tmp_path / "a.mp4", frames, 15, codec="h264_444")
    assert psnr(read_video(tmp_path / "a.mp4"), frames) > 42


@pytest.mark.parametrize("codec", CODECS)
def test_same_frames_give_same_bytes_whatever_was_encoded_before(tmp_path: Path, codec: str) -> None:
    rng = np.random.default_rng(0)
    videos = [
        rng.integers(0, 200, (1, 4, 6, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
        + np.arange(count, dtype=np.uint8)[:, None, None, None]
        for count in (5, 12, 19, 26, 10, 17)
    ]
    seen: dict[int, set[bytes]] = {}
    for order in range(20):
        for index in np.random.default_rng(order).permutation(len(videos)).tolist():
            write_video(tmp_path / "a.mp4", videos[index], 15, codec=codec)
            seen.setdefault(index, set()).add((tmp_path / "a.mp4").read_bytes())
    assert [len(kinds) for kinds in seen.values()] == [1] * len(videos)


@QUICK
@given(data=st.data())
def test_any_range_is_the_slice_of_the_whole(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "a.mp4"
    if not path.exists():
        write_video(path, coloured_objects(50, 32, 48), 15, codec="h264_444")
    start = data.draw(st.integers(0, 49))
    stop = data.draw(st.one_of(st.none(), st.integers(start + 1, 50)))
    assert np.array_equal(read_video(path, start=start, stop=stop), read_video(path)[start:stop])


def test_joined_videos_hold_the_frames_of_their_parts_and_can_be_joined_on(tmp_path: Path) -> None:
    frames = coloured_objects(37, 32, 48)
    for name, part in (("a.mp4", frames[:20]), ("b.mp4", frames[20:21]), ("c.mp4", frames[21:])):
        write_video(tmp_path / name, part, 15, codec="h264_444")
    a, b, c = ((tmp_path / f"{name}.mp4", count) for name, count in (("a", 20), ("b", 1), ("c", 16)))
    join_videos([a, b, c], tmp_path / "abc.mp4", 15)
    parts = np.concatenate([read_video(path) for path, _ in (a, b, c)])
    assert np.array_equal(read_video(tmp_path / "abc.mp4"), parts)
    join_videos([a, b], tmp_path / "ab.mp4", 15)
    join_videos([(tmp_path / "ab.mp4", 21), c], tmp_path / "ab.mp4", 15)
    assert (tmp_path / "ab.mp4").read_bytes() == (tmp_path / "abc.mp4").read_bytes()


@pytest.mark.parametrize(
    ("frames", "settings", "message"),
    [
        (np.zeros((2, 8, 8, 3), np.float32), {}, r"uint8 of shape \(T, H, W, 3\).*got float32 \(2, 8, 8, 3\)"),
        (np.zeros((8, 8, 3), np.uint8), {}, r"got uint8 \(8, 8, 3\)"),
        (np.zeros((0, 8, 8, 3), np.uint8), {}, r"T, H, W >= 1, got uint8 \(0, 8, 8, 3\)"),
        (np.zeros((2, 7, 8, 3), np.uint8), {"codec": "h264"}, "even height and width, got 7x8. Use codec='h264_444'"),
        (np.zeros((2, 8, 8, 3), np.uint8), {"codec": "h265"}, "No video codec named 'h265'. Known: h264, h264_444"),
        (np.zeros((2, 8, 8, 3), np.uint8), {"fps": 0}, "fps must be a whole number >= 1, got 0"),
    ],
)
def test_what_cannot_be_encoded_is_refused_and_leaves_nothing(
    tmp_path: Path, frames: NDArray[np.uint8], settings: dict[str, object], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        write_video(tmp_path / "a.mp4", frames, **{"fps": 15, **settings})  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_missing_damaged_and_short_files_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with pytest.raises(DataError, match="No video at"):
        read_video(path)
    write_video(path, coloured_objects(10, 32, 48), 15)
    with pytest.raises(DataError, match="must hold frames 5 to 12, got 5 of them"):
        read_video(path, start=5, stop=12)
    with pytest.raises(DataError, match="0 <= start < stop"):
        read_video(path, start=5, stop=5)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(DataError, match="cannot be decoded"):
        read_video(path)
    path.write_bytes(b"no video at all")
    with pytest.raises(DataError, match="cannot be decoded"):
        read_video(path)
