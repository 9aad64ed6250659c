"""`vap-gym data import`: a recording of others becomes a set of episodes, nothing of it encoded again."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import asdict
from pathlib import Path

from vap_gym.commands.telling import json_text
from vap_gym.data.episodes import EpisodeSet
from vap_gym.data.importing.kinds import open_source
from vap_gym.data.importing.run import Doubts, Outcome, Report, import_source, one_by_one
from vap_gym.data.importing.source import Options
from vap_gym.jobs import AtOnce, Executor


def main(
    kind: str,
    source: Path,
    out: Path,
    *,
    fps: int | None = None,
    rate_hz: float | None = None,
    robot: str | None = None,
    action: str | None = None,
    map: Path | None = None,
    only: str = "*",
    limit: int | None = None,
    trim: bool = False,
    recode: bool = False,
    check: bool = True,
    executor: Executor = "serial",
    workers: int = 0,
    json: bool = False,
) -> None:
    """Import a recording, episode by episode. Run it again to go on, or to try failed episodes again.

    The exit code is 1 where an episode failed; all others are in the set.

    Args:
        kind: What the recording is: droid, lerobot, files, oracle, … (a wrong name lists them).
        source: Its file or folder.
        out: Folder for the set of episodes (LeRobot v3).
        fps: Frames a second of the set, whatever the episodes say; their own rates stay in their info.
        rate_hz: Frames a second of a recording that does not state it.
        robot: Name of the robot's card, where the recording does not tell it.
        action: Which logged command becomes the column `action`: joint_position, cartesian_pose, joint_velocity, …
        map: Field map (TOML) for kind files, and for naming the columns of a LeRobot set.
        only: Pattern that names of episodes must match, like 'subset_*'.
        limit: Import this many at most.
        trim: Cut episodes whose videos and logs differ in length to the shortest.
        recode: Encode again those videos that cannot be cut out of their file untouched.
        check: Decode every frame of copied videos once, to find damage now; else only the key frames.
        executor: Where episodes are worked on: here one by one, in processes, or on Ray (the extra [cluster]). The
            files come out the same.
        workers: Episodes at once, with processes and ray; 0 for one per core.
        json: Print one JSON value on stdout instead of a table.
    """
    from tqdm import tqdm

    options = Options(robot=robot, rate_hz=rate_hz, action=action, map_path=map)
    opened = open_source(kind, source, options)
    at_once = AtOnce(executor=executor, workers=workers or os.cpu_count() or 1)
    began = time.perf_counter()
    with tqdm(desc="importing", unit="episode", disable=None) as bar:
        frames = 0

        def tell(outcome: Outcome) -> None:
            nonlocal frames
            frames += outcome.frames
            bar.update()
            bar.set_postfix(frames=frames, refresh=False)
            if outcome.failed is not None:
                bar.write(f"failed  {outcome.name}: {outcome.failed}", file=sys.stderr if json else sys.stdout)

        report = import_source(
            opened,
            source,
            out,
            doubts=Doubts(fps=fps, rate_hz=rate_hz, trim=trim, recode=recode, check=check),
            options=options,
            only=only,
            limit=limit,
            progress=tell,
            write=one_by_one if executor == "serial" else at_once,
        )
    seconds = time.perf_counter() - began
    if json:
        rows = [asdict(outcome) for outcome in report.outcomes]
        told = {"out": out, "failed": len(report.failed), "frames": report.frames, "fps": report.fps}
        print(json_text(told | {"fps_from": report.fps_from, "seconds": seconds, "episodes": rows}))
    else:
        print(table(report, out, seconds=seconds))
    raise SystemExit(1 if report.failed else 0)


def table(report: Report, out: Path, *, seconds: float) -> str:
    """What an import gave: every episode, then the set."""
    width = max(len("episode"), *(len(outcome.name) for outcome in report.outcomes))
    lines = [f"{'episode':<{width}}  index  frames"]
    for outcome in report.outcomes:
        if outcome.failed is None:
            lines.append(f"{outcome.name:<{width}}  {outcome.index:>5}  {outcome.frames:>6}")
        else:
            lines.append(f"{outcome.name:<{width}}  failed: {outcome.failed}")
    good = len(report.outcomes) - len(report.failed)
    lines.append("")
    if not good:
        return "\n".join([*lines, f"nothing imported, {len(report.failed)} failed"])
    features = EpisodeSet(out).features
    lines += [
        f"{good} episodes, {report.frames} frames, {len(report.failed)} failed, in {seconds:.1f} s "
        f"({report.frames / max(seconds, 1e-9):.0f} frames/s)",
        f"fps      {report.fps}, from {report.fps_from}",
        f"views    {', '.join(f'{view} {w}x{h}' for view, (h, w) in features.views.items()) or 'none'}",
        f"columns  {', '.join(f'{name} {c.dtype}{list(c.shape)}' for name, c in features.columns.items())}",
        f"written  {out}",
    ]
    return "\n".join(lines)
