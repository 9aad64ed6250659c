"""Videos on disk: uint8 RGB frames to mp4 and back with PyAV, any frame range by seeking."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from numpy.typing import NDArray

from vap_gym.data.layout import DataError, replacing
from vap_gym.data.remux import join_videos as join_videos
from vap_gym.data.remux import opened

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
    reformatter = VideoReformatter()
    for index, frame in _decoded(Path(path), start):
        if stop is not None and index >= stop:
            break
        if index >= start:
            frames.append(np.asarray(reformatter.reformat(frame, format="rgb24").to_ndarray(), np.uint8))
    if not frames or (stop is not None and len(frames) != stop - start):
        wanted = f"frames {start} to {'the end' if stop is None else stop}"
        raise DataError(f"{path} must hold {wanted}, got {len(frames)} of them. It was cut short: write it again.")
    return np.stack(frames)


def _decoded(path: Path, start: int) -> Iterator[tuple[int, Any]]:
    """Number and frame of what can be shown from the key frame before `start` on."""
    with opened(path) as (container, stream):
        _choose_threads(stream)
        if not stream.average_rate or not stream.time_base:
            raise DataError(f"{path} must tell how many frames a second has, but does not: damaged. Write it again.")
        ticks_per_frame = 1 / (stream.average_rate * stream.time_base)
        first_tick = stream.start_time or 0
        back = 0
        while True:
            if start:
                container.seek(first_tick + round(max(start - back, 0) * ticks_per_frame), stream=stream)
            numbered = ((round((f.pts - first_tick) / ticks_per_frame), f) for f in container.decode(stream))
            first = next(numbered, None)
            if first is None or first[0] <= start or back > start:
                break
            back = max(2 * back, 4)  # with B-frames a file may be entered at the key frame after: go back further
        if first is not None:
            yield first
            yield from numbered


def check_video(path: Path, frames: int, *, samples: int = 16, whole: bool = True) -> NDArray[np.uint8]:
    """Decode all `frames` frames of a file, strictly, and return about `samples` of them as (S,H,W,3) uint8 RGB.

    Where not `whole`, only key frames are decoded. Raises DataError where a frame is missing or damaged.
    """
    every, count = max(1, frames // samples) if whole else 1, 0
    kept: list[NDArray[np.uint8]] = []
    reformatter = VideoReformatter()
    with opened(path) as (container, stream):
        _choose_threads(stream)
        stream.codec_context.options = {"err_detect": "explode"}  # or damage is painted over
        if not whole:
            stream.codec_context.skip_frame = "NONKEY"
        for frame in container.decode(stream):
            if count % every == 0:
                kept.append(np.asarray(reformatter.reformat(frame, format="rgb24").to_ndarray(), np.uint8))
            count += 1
    if not kept or (whole and count != frames):
        raise DataError(f"{path} must show {frames} frames, got {count} that can be decoded. Fetch it again.")
    return np.stack(kept)


def _choose_threads(stream: Any) -> None:
    if stream.width * stream.height <= 320 * 240:
        stream.codec_context.thread_count = 1  # small frames decode faster than threads start
    else:
        stream.thread_type = "AUTO"
