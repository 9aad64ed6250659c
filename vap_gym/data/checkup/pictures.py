"""Checks of pictures against the states beside them: blank and frozen views, counts of frames, and lag."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vap_gym.data.checkup.sample import Array, Finding, Sample, speeds
from vap_gym.data.episodes import EpisodeSet
from vap_gym.data.layout import DataError
from vap_gym.data.remux import probe_video

BLANK_GREY = 2.0  # spread of grey levels within a frame
STILL_GREY = 0.15  # change from frame to frame
MAX_LAG = 8  # frames
LAG_FROM = 2  # frames; exposure and codecs alone shift the motion by about one


def check_views(sample: Sample) -> Iterator[Finding]:
    """No view is blank, none stands still while the robot moves."""
    for view in sorted({view for episode in sample.episodes for view in episode.views}):
        shown = [(episode, episode.views[view]) for episode in sample.episodes if view in episode.views]
        blank = [episode.index for episode, pictures in shown if pictures.spread < BLANK_GREY]
        frozen = []
        for episode, pictures in shown:
            if episode.index not in blank and _is_frozen(pictures.motion, speeds(sample, episode)):
                frozen.append(episode.index)
        for what, found in (("blank", blank), ("frozen", frozen)):
            if found:
                when = f"{what} while the robot moves" if what == "frozen" else what
                yield Finding(
                    level="fail" if len(found) == len(shown) else "note",
                    subject=what,
                    text=f"View '{view}' is {when} in {len(found)} of {len(shown)} episodes (first: {found[0]}).",
                    why="A model learns from it to imagine nothing.",
                    mend="Leave the view out on import, or these episodes out of training.",
                )


def check_lag(sample: Sample) -> Iterator[Finding]:
    """What moves in the pictures moves when the states do: correlation of both over shifts, all episodes together."""
    for view in sorted({view for episode in sample.episodes for view in episode.views}):
        pairs = []
        for episode in sample.episodes:
            moves = speeds(sample, episode)
            pictures = episode.views.get(view)
            if moves is not None and pictures is not None:
                n = min(len(moves), len(pictures.motion))
                if n > 3 * MAX_LAG and np.isfinite(moves[:n]).all() and np.ptp(pictures.motion[:n]) > 0:
                    pairs.append((moves[:n], pictures.motion[:n]))
        if not pairs:
            continue
        scores = {lag: _correlation(pairs, lag) for lag in range(-MAX_LAG, MAX_LAG + 1)}
        best = max(scores, key=lambda lag: scores[lag])
        if abs(best) >= LAG_FROM and scores[best] > 0.35 and scores[best] > scores[0] + 0.1:
            order = "after" if best > 0 else "before"
            yield Finding(
                level="fail",
                subject="lag",
                text=f"View '{view}' shows motion {abs(best)} frames {order} the states: correlation "
                f"{scores[best]:.2f} there, {scores[0]:.2f} without shift ({len(pairs)} episodes).",
                why="Prompts would be drawn where the robot is not yet, or no longer.",
                mend=f"Shift the states by {abs(best)} rows on import, and check the clocks of camera and log.",
            )


def check_counts(episodes: EpisodeSet) -> Iterator[Finding]:
    """Every mp4 holds as many frames as the tables say, one episode's after the other's."""
    for view in episodes.features.views:
        if view in episodes.features.stills:
            continue
        parts: dict[Path, list[tuple[int, int, int]]] = {}
        for i in range(len(episodes)):
            path, first = episodes.video_of(i, view)
            parts.setdefault(path, []).append((first, episodes.length(i), episodes.index(i)))
        for path, placed in parts.items():
            try:
                frames = probe_video(path).frames
            except DataError as error:
                yield Finding(level="fail", subject="frames", text=str(error))
                continue
            placed.sort()
            ends = [*(first for first, _, _ in placed[1:]), frames]
            for (first, length, index), end in zip(placed, ends, strict=True):
                if end - first != length:
                    yield Finding(
                        level="fail",
                        subject="frames",
                        text=f"Episode {index} has {length} rows and {end - first} frames of '{view}' ({path.name}).",
                        why="Pictures and states part at some row that nobody knows.",
                        mend="Import the episode again; --trim cuts both to the shorter where their beginnings agree.",
                    )


def _is_frozen(motion: Array, moves: Array | None) -> bool:
    """Whether nothing changes in the pictures while the robot moves; key frames alone change them a little."""
    if moves is not None:
        moves = np.nan_to_num(moves[: len(motion)])
        if moves.sum() < 0.1:  # rad or m: at rest
            return False
        motion = motion[: len(moves)][moves > 0.25 * moves.max()]
    return len(motion) > 4 and float(np.percentile(motion, 75)) < STILL_GREY


def _correlation(pairs: list[tuple[Array, Array]], lag: int) -> float:
    """Correlation of speeds with the motion `lag` frames later, each normed within its episode."""
    a = [_normed(moves[: len(moves) - lag] if lag >= 0 else moves[-lag:]) for moves, _ in pairs]
    b = [_normed(motion[lag:] if lag >= 0 else motion[:lag]) for _, motion in pairs]
    return float(np.mean(np.concatenate(a) * np.concatenate(b)))


def _normed(values: Array) -> Array:
    ranked = np.sqrt(np.maximum(values, 0))  # so that one bright flash does not decide
    return np.asarray((ranked - ranked.mean()) / max(float(ranked.std()), 1e-12), np.float64)
