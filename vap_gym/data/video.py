"""Videos on disk: uint8 RGB frames to mp4 and back with PyAV, any frame range by seeking."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from numpy.typing import NDArray

from vap_gym.data.layout import DataError, replacing

BT709 = 1  # ITU-T H.273 code for matrix, primaries and transfer
LIMITED = 1  # FFmpeg's AVCOL_RANGE_MPEG


@dataclass(frozen=True, kw_only=True)
class Codec:
    """An H.264 flavour: FFmpeg's encoder name and pixel format."""

    encoder: str
    pix_fmt: str


CODECS: Mapping[str, Codec] = {
    "h264": Codec(encoder="libx264", pix_fmt="yuv420p"),  # plays in every browser; halves the colour resolution
    "h264_444": Codec(encoder="libx264", pix_fmt="yuv444p"),  # any FFmpeg decoder; keeps coloured edges
    "h264_rgb": Codec(encoder="libx264rgb", pix_fmt="rgb24"),  # the one that can be lossless
}


def write_video(
    path: str | Path,
    frames: NDArray[Any],
    fps: int,
    *,
    codec: str = "h264",
    crf: int = 10,
    lossless: bool = False,
    key_frame_every: int = 15,
) -> None:
    """Write frames (T,H,W,3) uint8 RGB as an mp4, under a temporary name until it is whole.

    `codec` is "h264" (4:2:0, for showing), "h264_444" (for learning: small coloured objects survive) or "h264_rgb";
    `crf` 0 (best) to 51; `lossless=True` gives back every bit (and takes the codec h264_rgb). One encoder thread
    and no B-frames: the same frames give the same bytes, and episodes can be joined without encoding again.
    Raises DataError on frames, rates, codecs or sizes that cannot be encoded.
    """
    chosen = CODECS.get("h264_rgb" if lossless else codec)
    if chosen is None:
        raise DataError(f"No video codec named {codec!r}. Known: {', '.join(CODECS)}.")
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or 0 in frames.shape:
        raise DataError(
            f"frames must be uint8 of shape (T, H, W, 3) with T, H, W >= 1, got {frames.dtype} {frames.shape}. "
            "For floats in [0, 1]: (frames * 255).round().astype(np.uint8)."
        )
    if fps < 1:
        raise DataError(f"fps must be a whole number >= 1, got {fps!r}. DROID's is 15.")
    _, height, width, _ = frames.shape
    if chosen.pix_fmt == "yuv420p" and (height % 2 or width % 2):
        raise DataError(
            f"codec 'h264' needs even height and width, got {height}x{width}. Use codec='h264_444', which takes any."
        )
    options = {
        "preset": "veryfast",
        "crf": str(0 if lossless else crf),
        "bf": "0",
        "g": str(key_frame_every),
        "mbtree": "0",  # on small frames its assembly reads memory that was never set: other bytes each time
    }
    with replacing(Path(path)) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        stream: Any = container.add_stream(chosen.encoder, rate=fps, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, chosen.pix_fmt
        stream.codec_context.thread_count = 1
        if chosen.pix_fmt != "rgb24":
            stream.codec_context.color_range = LIMITED
            stream.codec_context.colorspace = BT709
            stream.codec_context.color_primaries = BT709
            stream.codec_context.color_trc = BT709
        reformatter = VideoReformatter()  # kept, since making one costs more than using it
        for index, rgb in enumerate(np.ascontiguousarray(frames)):
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
            if chosen.pix_fmt != "rgb24":
                frame = reformatter.reformat(
                    frame,
                    format=chosen.pix_fmt,
                    dst_colorspace=Colorspace.ITU709,
                    dst_color_range=ColorRange.MPEG,
                )
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def read_video(path: str | Path, *, start: int = 0, stop: int | None = None) -> NDArray[np.uint8]:
    """Read frames start to stop (stop excluded, None for the end) as (T,H,W,3) uint8 RGB.

    Seeks to the key frame before `start`, so the cost does not grow with the length of the file.
    Raises DataError where the file is missing, cannot be decoded, or has fewer frames.
    """
    if start < 0 or (stop is not None and stop <= start):
        raise DataError(f"read_video needs 0 <= start < stop, got start={start}, stop={stop}. Omit both for all.")
    frames: list[NDArray[np.uint8]] = []
    with _opened(Path(path)) as (container, stream):
        if stream.width * stream.height <= 320 * 240:
            stream.codec_context.thread_count = 1  # small frames decode faster than threads start
        else:
            stream.thread_type = "AUTO"
        ticks_per_frame = 1 / (stream.average_rate * stream.time_base)
        first_tick = stream.start_time or 0
        if start:
            container.seek(first_tick + round(start * ticks_per_frame), stream=stream)
        reformatter = VideoReformatter()
        for frame in container.decode(stream):
            index = round((frame.pts - first_tick) / ticks_per_frame)
            if stop is not None and index >= stop:
                break
            if index >= start:
                frames.append(np.asarray(reformatter.reformat(frame, format="rgb24").to_ndarray(), np.uint8))
    if not frames or (stop is not None and len(frames) != stop - start):
        wanted = f"frames {start} to {'the end' if stop is None else stop}"
        raise DataError(f"{path} must hold {wanted}, got {len(frames)} of them. It was cut short: write it again.")
    return np.stack(frames)


def join_videos(parts: Sequence[tuple[Path, int]], path: Path, fps: int) -> None:
    """Join the first n frames of each (file, n), as `write_video` wrote them, without encoding again."""
    plain = {"write_btrt": "0"}  # a bitrate of the first part only, and so other bytes when joined in two goes
    with replacing(path) as temporary, av.open(str(temporary), "w", format="mp4", container_options=plain) as out:
        target: Any = None
        index = 0
        for source, count in parts:
            with _opened(source) as (container, stream):
                if target is None:
                    target = out.add_stream_from_template(stream)
                    target.time_base = 1 / stream.average_rate
                    ticks = 1 / (stream.average_rate * stream.time_base)
                taken = 0
                for packet in container.demux(stream):
                    if packet.size == 0 or taken == count:
                        break
                    packet.pts = packet.dts = round(index * ticks)
                    packet.stream = target
                    out.mux(packet)
                    index, taken = index + 1, taken + 1
                if taken != count:
                    raise DataError(f"{source} must hold {count} frames, got {taken}. Remove it and write it again.")


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """Open a video; whatever FFmpeg says about it becomes a DataError."""
    if not path.is_file():
        raise DataError(f"No video at {path}. Give the path of an mp4 file.")
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise DataError(f"{path} must hold a video stream, got none. Give the path of an mp4 file.")
            yield container, container.streams.video[0]
    except av.error.FFmpegError as error:
        raise DataError(f"{path} cannot be decoded as video: {error}. It is damaged: write it again.") from error
