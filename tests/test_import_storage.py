"""Sets keep what recordings hold: packets of videos and bytes of pictures, exactly, whoever writes them when."""

import io
import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from vap_gym.data import DataError, Episode, EpisodeSet, EpisodeWriter, finalise, read_video
from vap_gym.data.encoded import PictureBytes, VideoFile
from vap_gym.data.remux import copy_video, join_videos
from vap_gym.data.video import check_video

KEY = "observation.images.front"


def moving(count: int, seed: int = 0, height: int = 32, width: int = 48) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    ground = rng.integers(0, 200, (height // 8, width // 8, 3)).repeat(8, 0).repeat(8, 1)
    frames = np.repeat(ground[None], count, 0)
    for t in range(count):
        frames[t, 8:16, (2 * t) % (width - 8) : (2 * t) % (width - 8) + 8] = (250, 40, 40)
    return frames.astype(np.uint8)


def encode(path: Path, count: int, *, seed: int = 0, times: list[int] | None = None, **options: str) -> Path:
    """Write an mp4 as other tools do: with B-frames, few key frames, and any times (in ms)."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=30, options={"bf": "2", "g": "250", **options})
        stream.width, stream.height, stream.pix_fmt, stream.time_base = 48, 32, "yuv420p", Fraction(1, 1000)
        stream.codec_context.time_base = Fraction(1, 1000)
        stream.codec_context.thread_count = 1
        for t, picture in enumerate(moving(count, seed)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = (33 * t if times is None else times[t]), Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def payloads(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(container.streams.video[0]) if packet.size]


def jpegs(count: int, seed: int = 0, height: int = 32) -> list[bytes]:
    files = []
    for picture in moving(count, seed, height):
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "JPEG")
        files.append(buffer.getvalue())
    return files


def episode(count: int, seed: int = 0, **columns: NDArray[np.float64]) -> Episode:
    columns = columns or {"action": np.random.default_rng(seed).normal(size=(count, 7))}
    return Episode(frames={}, columns=columns, task="")


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_packets_of_real_recordings_are_the_same_in_the_set(shared_data: Path, tmp_path: Path) -> None:
    """Three real episodes with B-frames, of two encoders: every payload, in order, and every shown frame."""
    videos = [shared_data / f"droid/{name}/cam2.mp4" for name in ("subset_5", "newsetup_0009", "subset_3")]
    writer = EpisodeWriter(tmp_path, fps=15)
    for number, path in enumerate(videos):
        writer.append(episode(len(payloads(path)), number), encoded={"front": VideoFile(path=path)})
    for state in ("pending", "gathered"):
        episodes = EpisodeSet(tmp_path)
        for i, path in enumerate(videos):
            assert np.array_equal(episodes[i].frames["front"], read_video(path)), state
            assert np.array_equal(episodes.read(i, start=7, stop=20).frames["front"], read_video(path)[7:20])
        finalise(tmp_path)
    folder = tmp_path / f"videos/{KEY}"
    assert payloads(folder / "chunk-000/file-000.mp4") == payloads(videos[0]) + payloads(videos[2])
    assert payloads(folder / "chunk-1000/file-000.mp4") == payloads(videos[1])


QUICK = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@QUICK
@given(
    gaps=st.lists(st.integers(1, 400), min_size=1, max_size=30),
    b_frames=st.integers(0, 3),
    keys=st.integers(1, 12),
    fps=st.integers(1, 60),
)
def test_any_times_and_b_frames_are_copied_untouched(
    tmp_path: Path, gaps: list[int], b_frames: int, keys: int, fps: int
) -> None:
    times = np.cumsum(gaps).tolist()
    source = encode(tmp_path / "a.mp4", len(times), times=times, bf=str(b_frames), g=str(keys))
    copy_video(VideoFile(path=source), tmp_path / "b.mp4", fps)
    assert payloads(tmp_path / "b.mp4") == payloads(source)
    with av.open(str(tmp_path / "b.mp4")) as container:
        shown = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    with av.open(str(source)) as container:
        wanted = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert [time for time, _ in shown] == pytest.approx([t / fps for t in range(len(times))], abs=1e-6)
    assert np.array_equal([frame for _, frame in shown], wanted)


@QUICK
@given(data=st.data(), b_frames=st.integers(0, 3), keys=st.integers(1, 9))
def test_any_range_of_a_joined_video_is_the_slice_of_the_whole(
    tmp_path: Path, data: st.DataObject, b_frames: int, keys: int
) -> None:
    options = {"bf": str(b_frames), "g": str(keys)}
    parts = [(encode(tmp_path / f"{i}.mp4", count, seed=i, **options), count) for i, count in enumerate((11, 1, 14))]
    join_videos(parts, tmp_path / "all.mp4", 15)
    whole = np.concatenate([read_video(path) for path, _ in parts])
    start = data.draw(st.integers(0, 25))
    stop = data.draw(st.integers(start + 1, 26))
    assert np.array_equal(read_video(tmp_path / "all.mp4", start=start, stop=stop), whole[start:stop])


def test_av1_is_copied_too(tmp_path: Path) -> None:
    """What LeRobot encodes by default, at key frames every second frame."""
    source = tmp_path / "a.mp4"
    with av.open(str(source), "w") as out:
        stream = out.add_stream("libsvtav1", rate=10, options={"g": "2", "preset": "12", "crf": "30"})
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for picture in moving(12, height=96, width=128):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode(None))
    writer = EpisodeWriter(tmp_path / "set", fps=15)
    for start, stop in ((0, 4), (4, 12)):
        writer.append(episode(stop - start), encoded={"front": VideoFile(path=source, start=start, stop=stop)})
    finalise(tmp_path / "set")
    assert payloads(tmp_path / f"set/videos/{KEY}/chunk-000/file-000.mp4") == payloads(source)
    assert np.array_equal(EpisodeSet(tmp_path / "set")[1].frames["front"], read_video(source)[4:])
    assert EpisodeSet(tmp_path / "set").meta["features"][KEY]["info"]["video.codec"] == "av1"


def test_episode_is_cut_out_of_a_joined_video_and_nowhere_else(tmp_path: Path) -> None:
    parts = [(encode(tmp_path / f"{i}.mp4", 10, seed=i), 10) for i in range(3)]
    join_videos(parts, tmp_path / "all.mp4", 15)
    copy_video(VideoFile(path=tmp_path / "all.mp4", start=10, stop=20), tmp_path / "cut.mp4", 30)
    assert payloads(tmp_path / "cut.mp4") == payloads(parts[1][0])
    for start, stop in ((3, 10), (10, 18)):
        with pytest.raises(DataError, match=r"cut at key frames .*, got frames .* Encode them again: --recode"):
            copy_video(VideoFile(path=tmp_path / "all.mp4", start=start, stop=stop), tmp_path / "no.mp4", 30)
    with pytest.raises(DataError, match="must hold frames 20 to 31, got 30 frames"):
        copy_video(VideoFile(path=tmp_path / "all.mp4", start=20, stop=31), tmp_path / "no.mp4", 30)
    assert not list(tmp_path.glob("*no*"))


def write_mixed(root: Path, sources: Path, indices: list[int]) -> None:
    """Episode i: a copied video of one of two encoders, kept pictures, an encoded view, exact numbers."""
    writer = EpisodeWriter(root, episodes_per_file=4)
    for i in indices:
        count = 3 + i
        path = sources / f"{i}.mp4"
        if not path.exists():
            encode(path, count, seed=i, bf=str(2 * (i % 3 == 1)))
        encoded = {"front": VideoFile(path=path), "hand": PictureBytes(files=jpegs(count, i))}
        made = Episode(frames={"top": moving(count, i)}, columns=episode(count, i).columns, task="push")
        writer.write(i, made, encoded=encoded)


def test_mixed_set_is_the_same_whoever_writes_in_whatever_order(tmp_path: Path) -> None:
    sources = tmp_path / "sources"
    sources.mkdir()
    write_mixed(tmp_path / "a", sources, list(range(9)))
    finalise(tmp_path / "a")
    for indices in ([1, 0], [6, 4], [5, 3, 2], [8, 7]):
        write_mixed(tmp_path / "b", sources, indices)
        if indices != [6, 4]:
            finalise(tmp_path / "b")
    assert files(tmp_path / "a") == files(tmp_path / "b")
    names = sorted(str(p.relative_to(tmp_path / "a/videos")) for p in (tmp_path / "a/videos").rglob("*.mp4"))
    both = [f"{KEY}/chunk-{chunk}/file-00{n}.mp4" for chunk in ("000", "1000") for n in range(3 - (chunk == "1000"))]
    assert names == [*both, *(f"observation.images.top/chunk-000/file-00{n}.mp4" for n in range(3))]
    for i, read in enumerate(EpisodeSet(tmp_path / "a")):
        assert np.array_equal(read.frames["front"], read_video(sources / f"{i}.mp4"))
        assert np.array_equal(read.columns["action"], episode(3 + i, i).columns["action"])
        assert EpisodeSet(tmp_path / "a").pictures(i, "hand") == jpegs(3 + i, i)


def test_pictures_are_stored_as_lerobot_stores_images(tmp_path: Path) -> None:
    given = jpegs(6)
    EpisodeWriter(tmp_path).append(episode(6), encoded={"front": PictureBytes(files=given)})
    finalise(tmp_path)
    info = json.loads((tmp_path / "meta/info.json").read_text())
    assert info["features"][KEY] == {"dtype": "image", "shape": [32, 48, 3], "names": ["height", "width", "channels"]}
    assert info["video_path"] is None
    rows = pq.read_table(tmp_path / "data/chunk-000/file-000.parquet").column(KEY).to_pylist()
    assert rows == [{"bytes": file, "path": None} for file in given]
    read = EpisodeSet(tmp_path).read(0, start=2, stop=4)
    assert np.array_equal(read.frames["front"][0], np.asarray(Image.open(io.BytesIO(given[2]))))
    assert EpisodeSet(tmp_path).pictures(0, "front", start=2, stop=4) == given[2:4]


def test_frames_hidden_by_an_edit_list_are_not_copied_unseen(tmp_path: Path) -> None:
    """What cutting with stream copy leaves: packets before the first frame to show."""
    source, cut = encode(tmp_path / "a.mp4", 12, bf="0"), tmp_path / "cut.mp4"
    with av.open(str(source)) as container, av.open(str(cut), "w") as out:
        stream = container.streams.video[0]
        target = out.add_stream_from_template(stream, opaque=True)
        for packet in container.demux(stream):
            if packet.size:
                shift = round(0.099 / stream.time_base)  # three frames
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, target
                out.mux(packet)
    assert len(read_video(cut)) == 9
    with pytest.raises(DataError, match="must show all of its packets .*, got 3 that its edit list hides.*--recode"):
        copy_video(VideoFile(path=cut), tmp_path / "b.mp4", 30)


def test_what_does_not_fit_or_is_damaged_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    root, sources = tmp_path / "set", tmp_path / "sources"
    sources.mkdir()
    good = encode(sources / "good.mp4", 12)
    flipped = bytearray(good.read_bytes())
    end = flipped.find(b"moov")
    flipped[end - 300 : end - 100] = bytes(200)
    damaged, picture = sources / "damaged.mp4", jpegs(12)
    damaged.write_bytes(flipped)
    writer = EpisodeWriter(root)
    with pytest.raises(DataError, match=r"cannot be decoded|must show 12 frames"):
        writer.append(episode(12), encoded={"front": VideoFile(path=damaged)})
    assert files(root) == {}
    writer.append(episode(12), encoded={"front": VideoFile(path=good)})
    before = files(root)
    cut = [picture[0][:300], *picture[1:]]
    for count, encoded, message in (
        (11, VideoFile(path=good), "'front' must have 11 rows .*, got 12"),
        (12, PictureBytes(files=picture), "view 'front' .* is stored as a video, got picture files"),
        (12, VideoFile(path=sources / "none.mp4"), "No video at"),
    ):
        with pytest.raises(DataError, match=message):
            writer.append(episode(count), encoded={"front": encoded})
    with pytest.raises(DataError, match="frame 0 must be a whole JPEG or PNG, got 300 bytes"):
        EpisodeWriter(tmp_path / "other").append(episode(12), encoded={"front": PictureBytes(files=cut)})
    with pytest.raises(DataError, match="must have one size, got 32x48, 40x48"):
        odd = [*picture[:-1], *jpegs(1, height=40)]
        EpisodeWriter(tmp_path / "other").append(episode(12), encoded={"front": PictureBytes(files=odd)})
    assert files(root) == before
    assert files(tmp_path / "other") == {}


def test_checking_shows_about_as_many_samples_as_asked_for(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", 40)
    assert np.array_equal(check_video(path, 40, samples=8), read_video(path)[::5])
    assert np.array_equal(check_video(path, 40, whole=False), read_video(path, stop=1))
    with pytest.raises(DataError, match="must show 41 frames, got 40"):
        check_video(path, 41)
