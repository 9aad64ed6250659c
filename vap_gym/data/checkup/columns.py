"""Checks of numbers by themselves: NaN, constants, jumps, angles that wrap, quaternions, closedness out of range."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from vap_gym.data.checkup.sample import Array, Finding, Sample, states
from vap_gym.data.conventions import ACTION, CARTESIAN, GRIPPER, JOINTS
from vap_gym.rotations import rotation_from_quaternion_xyzw, rotation_from_xyz_euler

LONGEST_HOLD = 5  # rows
CLOSEDNESS_SLACK = 0.15  # Bridge's grippers open up to .12 past what it calls open
OURS = (JOINTS, CARTESIAN, GRIPPER, ACTION)


def check_finite(sample: Sample) -> Iterator[Finding]:
    """No NaN or infinite numbers in states and actions."""
    for name in OURS:
        for_all = [(e.index, e.get(name)) for e in sample.episodes]
        bad = {i: int((~np.isfinite(v)).any(axis=1).sum()) for i, v in for_all if v is not None}
        bad = {i: count for i, count in bad.items() if count}
        if bad:
            yield Finding(
                level="fail",
                subject="NaN",
                text=f"{name} has NaN, infinite or absurd entries in {sum(bad.values())} rows of {_episodes(bad)}.",
                why="Training on them spreads NaN through the weights.",
                mend="Leave these episodes out, or cut them before these rows.",
            )


def check_constant(sample: Sample) -> Iterator[Finding]:
    """States that never change, and single entries that do not."""
    for name in OURS:
        series = [values for values in sample.series(name) if len(values) > 1]
        if not series or sum(map(len, series)) < 10 or len({v.shape[1] for v in series}) > 1:
            continue
        moved = np.max([np.ptp(values, axis=0) for values in series], axis=0)
        still = [i for i, extent in enumerate(moved) if extent == 0]
        if len(still) == len(moved):
            state = name in (JOINTS, CARTESIAN)
            yield Finding(
                level="fail" if state else "note",
                subject="constant",
                text=f"{name} never changes within an episode ({sum(map(len, series))} rows looked at).",
                why="A log that stands still says nothing of the motion in the pictures.",
                mend="Check which field it was read from." if state else "Check that it should be so.",
            )
        elif still:
            yield Finding(
                level="note",
                subject="constant",
                text=f"{name} has entries that never change: {', '.join(map(str, still))} of {len(moved)}.",
                why="A field that was not logged is often filled with zeros.",
                mend="Check that it should be so.",
            )


def check_jumps(sample: Sample) -> Iterator[Finding]:
    """No row from which the robot is suddenly elsewhere: far beyond its other steps, and beyond any smooth motion."""
    for name, least, unit in ((JOINTS, 0.3, "rad"), (CARTESIAN, 0.1, "m")):
        found: list[tuple[float, int, int]] = []
        for episode in sample.episodes:
            values = episode.get(name)
            if values is None or len(values) < 8:
                continue
            values = values[:, :3] if name == CARTESIAN else values
            steps = np.nan_to_num(np.abs(np.diff(values, axis=0)).max(axis=1))
            usual = np.percentile(steps, 90)
            found += [(float(steps[t]), episode.index, int(t)) for t in np.flatnonzero(steps > max(least, 6 * usual))]
        if found:
            size, index, row = max(found)
            yield Finding(
                level="fail",
                subject="jump",
                text=f"{name} jumps {len(found)} times, by up to {size:.3g} {unit} (episode {index}, row {row} to "
                f"{row + 1}).",
                why="Rows are missing there, or belong to another recording; pictures and prompts part.",
                mend="Cut the episode there, or leave it out.",
            )


def check_euler(sample: Sample) -> Iterator[Finding]:
    """Angles in radians, and how often they wrap."""
    series = [values[:, 3:] for values in sample.series(CARTESIAN, 6) if len(values) > 1]
    if not series:
        return
    largest = max(float(np.abs(values).max()) for values in series)
    if largest > 2 * np.pi + 0.1:
        yield Finding(
            level="fail",
            subject="degrees",
            text=f"The angles of {CARTESIAN} reach {largest:.4g}, and must be radians, within ±π.",
            why="Read as radians they turn the gripper many times around.",
            mend="They look like degrees: multiply them by π/180 on import.",
        )
        return
    wraps = sum(int((np.abs(np.diff(values, axis=0)) > np.pi).any(axis=1).sum()) for values in series)
    if wraps:
        yield Finding(
            level="note",
            subject="euler wrap",
            text=f"The angles of {CARTESIAN} pass ±π {wraps} times in {sum(map(len, series))} rows.",
            why="A difference or a mean of such rows is wrong by up to 2π.",
            mend="Compare and interpolate them as rotations (vap_gym.rotations), never number by number.",
        )


def check_quaternions(sample: Sample) -> Iterator[Finding]:
    """Columns of quaternions have norm 1, and are xyzw: they agree with the Euler angles beside them."""
    import torch

    shapes = {name: v.shape[1:] for e in sample.episodes for name, v in e.columns.items() if name not in OURS}
    for name in sorted(n for n, s in shapes.items() if s == (4,) or (s == (7,) and ("pose" in n or "quat" in n))):
        pairs = [(e.get(name), e.get(CARTESIAN, 6)) for e in sample.episodes]
        quaternions = [q[:, -4:] for q, _ in pairs if q is not None and np.isfinite(q).all()]
        norms = np.concatenate([np.linalg.norm(q, axis=1) for q in quaternions]) if quaternions else np.zeros(0)
        looks_like_one = len(norms) and np.median(np.abs(norms - 1)) < 0.02
        if not looks_like_one and "quat" not in name:
            continue
        if len(norms) and np.abs(norms - 1).max() > 0.02:
            yield Finding(
                level="fail" if "quat" in name or "pose" in name else "note",
                subject="quaternion",
                text=f"{name} must have norm 1, and has {norms.min():.3g} to {norms.max():.3g}.",
                why="What has no unit norm is no rotation.",
                mend="Check that its last four numbers are the quaternion, and which field they come from.",
            )
            continue
        errors: dict[str, list[Array]] = {"xyzw": [], "wxyz": []}
        for q, pose in pairs:
            if q is None or pose is None or not (np.isfinite(q).all() and np.isfinite(pose).all()):
                continue
            told = rotation_from_xyz_euler(torch.from_numpy(pose[:, 3:].copy()))
            for order, rolled in (("xyzw", q[:, -4:]), ("wxyz", np.roll(q[:, -4:], -1, axis=1))):
                given = rotation_from_quaternion_xyzw(torch.from_numpy(rolled.copy()))
                errors[order].append(angle_between(told.numpy(), given.numpy()))
        if errors["xyzw"]:
            xyzw, wxyz = (float(np.median(np.concatenate(errors[order]))) for order in ("xyzw", "wxyz"))
            if xyzw > 0.1 and wxyz < 0.02:
                yield Finding(
                    level="fail",
                    subject="quaternion",
                    text=f"{name} read as xyzw is {np.rad2deg(xyzw):.1f}° off {CARTESIAN}, as wxyz "
                    f"{np.rad2deg(wxyz):.2g}° (medians).",
                    why="A wrong order turns the gripper another way.",
                    mend="Its order is wxyz: move the first number to the end on import.",
                )


def check_closedness(sample: Sample) -> Iterator[Finding]:
    """Closedness lies within 0 (open) to 1 (closed), and episodes begin open, as they mostly do."""
    series = sample.series(GRIPPER)
    if not series:
        return
    low, high = min(float(v.min()) for v in series), max(float(v.max()) for v in series)
    if low < -CLOSEDNESS_SLACK or high > 1 + CLOSEDNESS_SLACK:
        likely = (255.0, 100.0, 1000.0, 0.085)
        scale = next((s for s in likely if low > -0.05 * s and 0.3 * s < high < 1.1 * s), None)
        guess = f"Divided by {scale:g} they would fit. " if scale else ""
        yield Finding(
            level="fail",
            subject="gripper",
            text=f"{GRIPPER} goes from {low:.4g} to {high:.4g}, and must be from 0 (open) to 1 (closed).",
            why="Prompts are drawn from it: the fingers would be drawn where they cannot be.",
            mend=f"{guess}Map it on import, by its values when open and when closed.",
        )
        return
    if 0 < high < 0.12:
        yield Finding(
            level="note",
            subject="gripper",
            text=f"{GRIPPER} never exceeds {high:.4g}: the gripper stays open, or these are metres or radians.",
            why="Closing would not be drawn.",
            mend="Check the unit: closedness is 0 (open) to 1 (closed).",
        )
    closed = [int(v[0, 0] > 0.7) for v in series if np.ptp(v) > 0.2]
    if len(closed) >= 3 and sum(closed) > 0.7 * len(closed):
        yield Finding(
            level="note",
            subject="gripper",
            text=f"{sum(closed)} of {len(closed)} episodes in which the gripper moves begin closed.",
            why="Where 1 means open in the source, every prompt shows the opposite.",
            mend="Look at a first frame: if the gripper is open there, map 1 - value on import.",
        )


def check_repeats(sample: Sample) -> Iterator[Finding]:
    """States are logged anew at every frame, not held for several."""
    repeated, rows, name = 0, 0, ""
    for episode in sample.episodes:
        for name, values in states(episode):
            if name != GRIPPER and len(values) > 8:
                moving = np.flatnonzero((np.diff(values, axis=0) != 0).any(axis=1))
                held = np.diff(moving) - 1
                held = held[held <= LONGEST_HOLD]  # longer ones are rests
                repeated += int(held.sum())
                rows += int(held.sum()) + len(held)
                break
    if rows > 20 and repeated > 0.4 * rows:
        yield Finding(
            level="note",
            subject="repeats",
            text=f"{repeated} of {rows} steps in which the robot moves leave {name} exactly as it was.",
            why="The log is slower than the frames: the robot is drawn late, in leaps.",
            mend="Import at the rate of the log, or interpolate the states.",
        )


def angle_between(a: Array, b: Array) -> Array:
    """Angles [rad] between rotations (T, 3, 3)."""
    trace = np.einsum("tij,tij->t", a, b)
    return np.asarray(np.arccos(np.clip((trace - 1) / 2, -1, 1)), np.float64)


def _episodes(indices: dict[int, int]) -> str:
    shown = list(indices)[:4]
    more = f" and {len(indices) - 4} more" if len(indices) > 4 else ""
    return f"episode{'s' if len(indices) > 1 else ''} {', '.join(map(str, shown))}{more}"
