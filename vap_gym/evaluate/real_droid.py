"""How near imagination comes to real DROID recordings, from the first frame: as shipped, and fitted to other episodes.

Each window of each calibrated stream is imagined as the shipped model does it, by its posed picture alone, and by a
model adapted to the other episodes only (`real_droid_adapt`), beside the frozen first frame and the codec.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8

from vap_gym import metrics
from vap_gym.cards import load_robot
from vap_gym.evaluate.real_droid_adapt import Adapted, Imagined, adapt, imagine, told
from vap_gym.evaluate.real_droid_set import write_set
from vap_gym.evaluate.real_droid_streams import DOUBTFUL, ROBOT, Stream, align_all, read_streams, windows
from vap_gym.evaluate.report import stamp, table, write
from vap_gym.pictures import Picture, sheet, spread, write_png
from vap_gym.prompts.body import Body
from vap_gym.world.model import WorldModel

STEPS, EVERY = 12, 12
WAYS = ("frozen", "codec", "as shipped", "posed alone", "adapted, posed", "adapted")
FITTED_EVERY = 72  # the gate is fitted to one window in so many frames
SHOWN_STEPS, SHOWN_WINDOWS, BATCH = 5, 4, 8
RESAMPLES = 2000


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Of N windows of one stream: PSNR [dB] over the imagined frames and ST-IoU, by way."""

    stream: str
    episode: str
    how: str
    psnr: dict[str, Float[np.ndarray, " N"]]
    st_iou: dict[str, Float[np.ndarray, " N"]]


def main(
    *,
    droid: Path = Path("../shared/data/droid"),
    world_model: str = "tiny",
    aligned: Path = Path("benchmarks/droid_cameras.json"),
    out: Path = Path("out/real_droid/table.md"),
    sheets: Path = Path("out/real_droid"),
    every: int = EVERY,
    interval: int = 2,
    limit: int = 0,
    align: bool = False,
    fit_tool: bool = True,
    write_to: Path | None = None,
    leave_out: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Print and write the table of real DROID streams, each left out in turn from what the model is fitted to.

    Args:
        droid: folder of the recordings: cameras.json, and per episode log.npz, episode.json and cam0.mp4.
        world_model: name or folder of the world model.
        aligned: list of cameras that were aligned to the moving robot.
        out: the markdown page to write.
        sheets: where to write sheets of true and imagined frames. They show the recordings: not for publishing.
        every: frames from one window's first frame to the next one's.
        interval: control steps of 1/15 s per frame; the recordings do not state their rate.
        limit: take only so many windows of each stream (0: all), for a quick look; no page is written.
        align: make the list `aligned` anew instead.
        fit_tool: with --align: also fit how much further the gripper is mounted than its card says.
        write_to: write the aligned streams as a data set for training instead.
        leave_out: with --write-to: episodes to leave out.
    """
    if align:
        return {"aligned": align_all(droid, aligned, fit_tool=fit_tool), "written": aligned}
    if write_to is not None:
        streams = [stream for stream in read_streams(droid, aligned) if stream.how != DOUBTFUL]
        written = write_set(write_to, streams, robot=ROBOT, leave_out=leave_out)
        print(f"{write_to}: {len(written)} pieces of {len({e.info['skill'] for e in written})} episodes")
        return {"out": write_to, "pieces": len(written)}
    world = copy(WorldModel.from_pretrained(world_model))
    world.motion_steps = interval
    parts, told = [], {}
    for title, cameras in (("Cameras from clicks", None), ("Cameras aligned to the moving robot", aligned)):
        scores = measure(read_streams(droid, cameras), world, every=every, interval=interval, limit=limit,
                         sheets=sheets / ("clicked" if cameras is None else "aligned"))  # fmt: skip
        parts.append(f"## {title}\n\n{tables(scores)}")
        told[title] = figures(scores)
        print(parts[-1], flush=True)
    text = page(parts, world_model, every, interval)
    if not limit:
        write(out, text)
    return told


def measure(
    streams: Sequence[Stream],
    world: WorldModel,
    *,
    every: int,
    interval: int,
    limit: int = 0,
    sheets: Path | None = None,
) -> list[Scores]:
    """Score all windows of all streams, each under a model that was fitted to the other episodes.

    Streams whose camera is doubtful are scored, but nothing is fitted to them.
    """
    body = Body(load_robot(ROBOT))
    sound = [stream for stream in streams if stream.how != DOUBTFUL]
    fitted_to = {s.name: windows(s, steps=STEPS, every=FITTED_EVERY)[: limit or None] for s in sound}
    found = []
    for episode in dict.fromkeys(stream.episode for stream in streams):
        adapted = adapt(world, sound, body, episode, firsts=fitted_to, steps=STEPS, interval=interval)
        for stream in streams:
            if stream.episode != episode:
                continue
            firsts = windows(stream, steps=STEPS, every=every)[: limit or None]
            if not firsts:
                continue
            made = ways(stream, firsts, world, adapted, interval=interval)
            found.append(scored(stream, made))
            if sheets is not None:
                write_png(sheets / f"{stream.name.replace(' ', '_')}.png", shown(stream, firsts, made, found[-1]))
    return found


def ways(
    stream: Stream, firsts: Sequence[int], world: WorldModel, adapted: Adapted, *, interval: int
) -> dict[str, UInt8[np.ndarray, "N T H W 3"]]:
    """Return windows of a stream: true, and made in each of WAYS; the first frame is the true one throughout."""
    parts: dict[str, list[np.ndarray]] = {}
    for i in range(0, len(firsts), BATCH):
        given = told(stream, firsts[i : i + BATCH], STEPS)
        shipped: Imagined = imagine(world, given, interval=interval)
        fitted: Imagined = imagine(adapted.world, given, interval=interval)
        rebuilt = world.decode(world.encode(given.frames[:, 1:]))
        made = {
            "true": given.frames.numpy(),
            "frozen": given.frames[:, :1].expand_as(given.frames).numpy(),
            "codec": torch.cat([given.frames[:, :1], rebuilt], 1).numpy(),
            "as shipped": shipped.whole,
            "posed alone": shipped.posed,
            "adapted, posed": fitted.posed,
            "adapted": adapted.frames(fitted),
        }
        for name, clip in made.items():
            parts.setdefault(name, []).append(clip)
    return {name: np.concatenate(each) for name, each in parts.items()}


def scored(stream: Stream, made: dict[str, UInt8[np.ndarray, "N T H W 3"]]) -> Scores:
    """Score each way against the true windows."""
    true = made["true"]
    return Scores(
        stream=stream.name,
        episode=stream.episode,
        how=stream.how,
        psnr={
            way: np.array([metrics.psnr(a[1:], b[1:]) for a, b in zip(made[way], true, strict=True)]) for way in WAYS
        },
        st_iou={way: np.array([metrics.st_iou(a, b) for a, b in zip(made[way], true, strict=True)]) for way in WAYS},
    )


def gap_closed(psnr: dict[str, Float[np.ndarray, " N"]], way: str) -> float:
    """The share of the gap from the frozen frame to the codec that a way closes, of mean PSNRs."""
    made, frozen, codec = (float(psnr[name].mean()) for name in (way, "frozen", "codec"))
    return (made - frozen) / (codec - frozen)


def clustered(scores: Sequence[Scores], statistic: str, way: str, *, seed: int = 0) -> tuple[float, float, float]:
    """Return a figure over all windows and its interval of 95 %: episodes are drawn anew, and windows within them.

    Args:
        statistic: "psnr", "st_iou"; both less the frozen frame's with "_gain"; or "gap".
    """
    rng = np.random.default_rng(seed)
    grouped = [
        [score for score in scores if score.episode == name] for name in dict.fromkeys(s.episode for s in scores)
    ]
    columns = [
        {
            key: np.concatenate([getattr(s, kind)[name] for s in group])
            for kind in ("psnr", "st_iou")
            for key, name in ((f"{kind} way", way), (f"{kind} frozen", "frozen"), (f"{kind} codec", "codec"))
        }
        for group in grouped
    ]

    def value(drawn: Sequence[dict[str, np.ndarray]]) -> float:
        mean = {key: float(np.concatenate([one[key] for one in drawn]).mean()) for key in drawn[0]}
        if statistic == "gap":
            return (mean["psnr way"] - mean["psnr frozen"]) / (mean["psnr codec"] - mean["psnr frozen"])
        kind = statistic.removesuffix("_gain")
        return mean[f"{kind} way"] - (mean[f"{kind} frozen"] if statistic.endswith("_gain") else 0.0)

    values = []
    for _ in range(RESAMPLES):
        drawn = []
        for number in rng.integers(len(columns), size=len(columns)):
            count = len(columns[number]["psnr way"])
            rows = rng.integers(count, size=count)
            drawn.append({key: column[rows] for key, column in columns[number].items()})
        values.append(value(drawn))
    low, high = np.quantile(values, [0.025, 0.975])
    return value(columns), float(low), float(high)


def tables(scores: Sequence[Scores]) -> str:
    """The tables of one set of cameras: over all sound streams, and by stream."""
    sound = [score for score in scores if score.how != DOUBTFUL]
    rows = []
    for way in WAYS:
        cells = [_told(clustered(sound, name, way), form) for name, form in _FORMS]
        rows.append([way, *cells] if way not in ("frozen", "codec") else [way, cells[0], "-", cells[2], "-", "-"])
    by_stream = [
        [
            score.stream, score.how, str(len(score.psnr["frozen"])),
            *(f"{score.psnr[way].mean():.1f} / {score.st_iou[way].mean():.2f}" for way in WAYS),
            *(f"{100 * gap_closed(score.psnr, way):.0f} %" for way in ("as shipped", "adapted")),
        ]
        for score in scores
    ]  # fmt: skip
    count, episodes = sum(len(s.psnr["frozen"]) for s in sound), len({s.episode for s in sound})
    head = ["", "PSNR dB", "above frozen dB", "ST-IoU", "above frozen", "gap closed"]
    streams = ["stream", "camera", "windows", *WAYS, "gap, as shipped", "gap, adapted"]
    return (
        f"{count} windows of {len(sound)} streams of {episodes} episodes; streams whose camera is doubtful are not "
        f"among them.\n\n{table(head, rows)}\n\nPSNR dB / ST-IoU by stream:\n\n{table(streams, by_stream)}"
    )


def figures(scores: Sequence[Scores]) -> dict[str, Any]:
    """Return the figures of `tables` as plain JSON: over all sound streams value, low and high; and means by stream."""
    sound = [score for score in scores if score.how != DOUBTFUL]
    return {
        "windows": sum(len(score.psnr["frozen"]) for score in sound),
        "figures": {way: {name: list(clustered(sound, name, way)) for name, _ in _FORMS} for way in WAYS},
        "streams": [
            {
                "stream": score.stream, "camera": score.how,
                "psnr_db": {way: float(score.psnr[way].mean()) for way in WAYS},
                "st_iou": {way: float(score.st_iou[way].mean()) for way in WAYS},
            }
            for score in scores
        ],
    }  # fmt: skip


_FORMS = (("psnr", ".1f"), ("psnr_gain", ".2f"), ("st_iou", ".3f"), ("st_iou_gain", ".3f"), ("gap", "%"))


def _told(figures: tuple[float, float, float], form: str) -> str:
    value, low, high = (f"{100 * x:.0f}" if form == "%" else format(x, form) for x in figures)
    return f"{value} % [{low}, {high}]" if form == "%" else f"{value} [{low}, {high}]"


def shown(
    stream: Stream, firsts: Sequence[int], made: dict[str, UInt8[np.ndarray, "N T H W 3"]], scores: Scores
) -> Picture:
    """Return a sheet of some windows: true, as shipped, adapted. It shows a recording: to look at, not to publish."""
    rows: list[list[Picture | None]] = []
    labels = []
    for i in spread(SHOWN_WINDOWS, len(firsts)):
        for way in ("true", "as shipped", "posed alone", "adapted"):
            rows.append([made[way][i][t] for t in spread(SHOWN_STEPS, STEPS + 1)])
            figures = "" if way == "true" else f" {scores.psnr[way][i]:.1f} {scores.st_iou[way][i]:.2f}"
            labels.append(f"{firsts[i]} {way}{figures}")
    return sheet(rows, labels=labels, scale=1.5, title=f"{stream.name}, camera {stream.how}")


def page(parts: Sequence[str], world_model: str, every: int, interval: int) -> str:
    """The figures as a markdown page."""
    return f"""# Real DROID recordings, imagined

`vap-gym bench real`: {STEPS} frames from the first one of windows that begin every {every} frames, where some joint
moves by .05 rad or more; world model `{world_model}`; a frame is taken for {interval} control steps of 1/15 s (the
recordings do not state their rate). Frames are cut to 3:2 and scaled to 144 × 96. The model is given the first frame,
the camera, and the robot's states as they were logged. Logs hold *achieved* states, so a robot that is stopped by what
it touches is told to stop: in use, with commands, it would not be. Camera calibration may have looked at any frame of a
stream. The recordings are not part of the repository, nor are pictures of them (`out/real_droid`).

- frozen: the first frame; codec: the true frames through the codec, the most that latents can tell.
- as shipped: the model, which has seen simulation only. posed alone: its picture before the network corrects it.
- adapted: fitted to *other episodes only*: the colour of each point of the robot's surface is the mean of the pixels it
  is projected to (the surface itself is the mask), and one share for each source of the posed picture says how much of
  the network's correction to take. adapted, posed: nothing corrected.

PSNR is the mean over frames 1 to {STEPS}. ST-IoU is Physics-IQ's: moving pixels are those that differ by more than ten
grey levels from a running average, of true and imagined frames alike; a frame in which nothing moves in either counts
as 1. Intervals of 95 % by a bootstrap over episodes and, within them, windows: with three to five episodes, rough.

{chr(10).join(parts)}

{stamp()}
"""


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
