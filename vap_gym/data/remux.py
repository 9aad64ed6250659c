"""Videos from mp4 to mp4, packet by packet: nothing is decoded, every payload stays as it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.codec.codec import UnknownCodecError
from numpy.typing import NDArray

from vap_gym.data.encoded import VideoFile
from vap_gym.data.layout import DataError, replacing


@dataclass(frozen=True, kw_only=True)
class VideoFacts:
    """What a video stream says of itself. Streams with the same `parameters` can be joined in one file."""

    codec: str
    pix_fmt: str
    height: int
    width: int
    fps: float | None  # of the container; None where it says nothing
    parameters: tuple[Any, ...]
    shown_at: NDArray[np.int64]  # per packet, in the order of the file: which frame of the show it is
    dts: NDArray[np.int64]
    pts: NDArray[np.int64]
    is_key: NDArray[np.bool_]
    hidden: int = 0  # packets that an edit list of the file says not to show

    @property
    def frames(self) -> int:
        """Number of frames that the file shows."""
        return len(self.dts) - self.hidden


def probe_video(path: Path) -> VideoFacts:
    """Read the packet table of a video's first stream. Raises DataError where it has none, or is damaged."""
    try:
        state = path.stat()
    except OSError:
        raise DataError(f"No video at {path}. Give the path of an mp4 file.") from None
    return _probe(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=64)  # long files hold many episodes, and are asked about for each
def _probe(path: Path, modified_ns: int, size: int) -> VideoFacts:
    with opened(path) as (container, stream):
        packets = [(p.pts, p.dts, bool(p.is_keyframe), bool(p.is_discard)) for p in container.demux(stream) if p.size]
        if not packets or any(pts is None or dts is None for pts, dts, _, _ in packets):
            raise DataError(f"{path} must hold frames with times, got {len(packets)} packets. Encode it as mp4 again.")
        pts, dts, is_key, hidden = (np.array(values) for values in zip(*packets, strict=True))
        shown_at = np.empty(len(pts), np.int64)
        shown_at[np.argsort(pts, kind="stable")] = np.arange(len(pts))
        context = stream.codec_context
        parameters = (context.name, context.pix_fmt, stream.width, stream.height, bytes(context.extradata or b""))
        return VideoFacts(
            codec=context.codec.canonical_name,
            pix_fmt=context.pix_fmt or "unknown",
            height=stream.height,
            width=stream.width,
            fps=float(stream.average_rate) if stream.average_rate else None,
            parameters=parameters,
            shown_at=shown_at,
            dts=dts.astype(np.int64),
            pts=pts.astype(np.int64),
            is_key=is_key.astype(np.bool_),
            hidden=int(hidden.sum()),
        )


@dataclass(frozen=True, kw_only=True)
class _Cut:
    """Packets `first` to `first + count` of a file, which show `count` frames in a row and need no others."""

    path: Path
    facts: VideoFacts
    first: int
    count: int

    @property
    def order(self) -> NDArray[np.int64]:
        """For each packet: which frame of the cut it shows."""
        shown = self.facts.shown_at[self.first : self.first + self.count]
        order: NDArray[np.int64] = shown - shown.min()
        return order

    @property
    def delay(self) -> int:
        """Frames by which decoding must run ahead of showing (0 without B-frames)."""
        return int((np.arange(self.count) - self.order).max())


def cut_video(video: VideoFile) -> _Cut:
    """Find the packets of a range of frames. Raises DataError where it cannot be cut without encoding again."""
    facts = probe_video(video.path)
    stop = facts.frames if video.stop is None else video.stop
    if not 0 <= video.start < stop <= facts.frames:
        raise DataError(
            f"{video.path} must hold frames {video.start} to {stop}, got {facts.frames} frames. "
            "It was cut short, or its log belongs to another video."
        )
    if facts.hidden:
        raise DataError(
            f"{video.path} must show all of its packets to be copied untouched, got {facts.hidden} that its edit list "
            "hides. Encode it again: --recode"
        )
    whole = stop - video.start == facts.frames
    first = 0 if whole else int(np.flatnonzero(facts.shown_at == video.start)[0])
    cut = _Cut(path=video.path, facts=facts, first=first, count=stop - video.start)
    shown = facts.shown_at[first : first + cut.count]
    if not facts.is_key[first] or len(shown) != cut.count or shown.min() != video.start or shown.max() != stop - 1:
        raise DataError(
            f"{video.path} must be cut at key frames to be copied untouched, got frames {video.start} to {stop}, "
            "which need others to be decoded. Encode them again: --recode"
        )
    return cut


def copy_video(video: VideoFile, path: Path, fps: int) -> None:
    """Copy a range of frames into a file of its own, one frame every 1/fps s whatever its times were."""
    _mux([cut_video(video)], path, fps)


def join_videos(parts: Sequence[tuple[Path, int]], path: Path, fps: int) -> None:
    """Join the first n frames of each (file, n) without encoding again; all have the same `parameters`."""
    cuts = []
    for source, count in parts:
        facts = probe_video(source)
        if facts.frames < count:
            raise DataError(f"{source} must hold {count} frames, got {facts.frames}. Remove it and write it again.")
        cuts.append(_Cut(path=source, facts=facts, first=0, count=count))
    _mux(cuts, path, fps)


def _mux(cuts: Sequence[_Cut], path: Path, fps: int) -> None:
    plain = {"write_btrt": "0"}  # a bitrate of the first part only, and so other bytes when joined in two goes
    delay = max(cut.delay for cut in cuts)  # one for the whole file, so that times of decoding only grow
    with replacing(path) as temporary, av.open(str(temporary), "w", format="mp4", container_options=plain) as out:
        target: Any = None
        begin = 0
        for cut in cuts:
            with opened(cut.path) as (container, stream):
                if target is None:
                    target = out.add_stream_from_template(stream, opaque=True)
                    target.time_base = Fraction(1, fps)
                order = cut.order.tolist()
                for index, packet in enumerate(_packets(container, stream, cut)):
                    packet.time_base = Fraction(1, fps)
                    packet.pts, packet.dts, packet.duration = begin + order[index], begin + index - delay, 1
                    packet.stream = target
                    out.mux(packet)
            begin += cut.count


def _packets(container: Any, stream: Any, cut: _Cut) -> Iterator[Any]:
    """The packets of a cut, found by their times of decoding after a seek to its key frame."""
    if cut.first:
        container.seek(int(cut.facts.pts[cut.first]), stream=stream)
    wanted = cut.facts.dts[cut.first : cut.first + cut.count].tolist()
    found = 0
    for packet in container.demux(stream):
        if packet.size and packet.dts == wanted[found]:
            yield packet
            found += 1
            if found == len(wanted):
                return
    raise DataError(f"{cut.path} must hold {len(wanted)} frames there, got {found}. It is damaged: fetch it again.")


@contextmanager
def opened(path: Path, **options: str) -> Iterator[tuple[Any, Any]]:
    """Open a video; whatever FFmpeg says about it becomes a DataError. `options` are FFmpeg's."""
    if not path.is_file():
        raise DataError(f"No video at {path}. Give the path of an mp4 file.")
    try:
        with av.open(str(path), options=dict(options)) as container:
            if not container.streams.video:
                raise DataError(f"{path} must hold a video stream, got none. Give the path of an mp4 file.")
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise DataError(f"{path} must hold a video that FFmpeg can decode, got an unknown codec. Convert it.")
            yield container, stream
    except (av.error.FFmpegError, UnicodeDecodeError, UnknownCodecError) as error:
        raise DataError(f"{path} cannot be decoded as video: {error}. It is damaged: write it again.") from error
