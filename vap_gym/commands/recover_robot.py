"""`vap-gym recover robot`: a set of robot episodes with cameras → checked and rectified (prompt, video) pairs."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from vap_gym.cards import load_robot
from vap_gym.data import EpisodeSet
from vap_gym.data.layout import DataError
from vap_gym.errors import VapError, unknown_name
from vap_gym.jobs import Executor
from vap_gym.recover.adapters_matching import LoftrMatcher
from vap_gym.recover.robot import RobotPipeline
from vap_gym.recover.robot_set import REPORT, SHEET, recover_set
from vap_gym.recover.verdict import Rule


def main(
    source: Path,
    out: Path,
    *,
    view: str = "",
    robot: str = "",
    prompt: Literal["skeleton", "mesh", "depth"] = "skeleton",
    weights: Path | None = None,
    align: Literal["auto", "motion", "matches", "none"] = "auto",
    most_px: float | None = None,
    least_score: float | None = None,
    least_motion: float | None = None,
    executor: Executor = "serial",
    workers: int = 0,
) -> dict[str, Any]:
    """Draw prompts from logged joints, match the rendered robot to the frames, discard what does not fit, rectify.

    Args:
        source: a data set with joints, gripper and the view's camera (`vap-gym data import`, `vap-gym calibrate`).
        out: the data set to write, with the views `video` and `prompt`; a stopped run goes on.
        view: which of its views; may be left out where there is one.
        robot: a shipped robot, or the path of a folder with a robot.toml. Default: what the set says.
        prompt: the kind of prompt to write.
        weights: folder of an EfficientLoFTR or MatchAnything checkpoint to match by. Default: silhouettes.
        align: how an offset common to all frames is found. auto: from matches with weights, else from motion.
        most_px: keep episodes whose matches are off by no more, in the median.
        least_score: keep episodes in which the robot is found with at least this score, in [0, 1].
        least_motion: keep episodes in which the robot explains at least this share of the explicable motion.
        executor: where episodes are worked on: here one by one, in processes, or on Ray (the extra [cluster]). The
            files come out the same.
        workers: episodes at once, with processes and ray; 0 for one per core.
    """
    episodes = EpisodeSet(source)
    if not len(episodes):
        raise DataError(f"'{source}' must hold episodes, got none. Import some: vap-gym data import")
    views = episodes.features.views
    if not view and len(views) != 1:
        raise DataError(f"'{source}' has the views {', '.join(views) or 'none'}: say which, --view NAME.")
    view = view or next(iter(views))
    if view not in views:
        raise unknown_name("view", view, views)
    name = robot or str(episodes.info(0).get("robot") or episodes.meta.get("robot_type") or "")
    asked = {"most_px": most_px, "least_score": least_score, "least_motion": least_motion}
    for option, given in asked.items():
        most = math.inf if option == "most_px" else 1.0
        if given is not None and not 0.0 <= given <= most:
            wanted = "0 or more" if option == "most_px" else "within [0, 1]"
            raise VapError(
                f"--{option.replace('_', '-')} must be {wanted}, got {given}. "
                f"Leave it out for {getattr(Rule(), option)}."
            )
    rule = replace(Rule(), **{key: value for key, value in asked.items() if value is not None})
    matcher = LoftrMatcher(weights) if weights is not None else None
    if align == "auto":
        align = "motion" if matcher is None else "matches"
    pipeline = RobotPipeline(load_robot(name), matcher=matcher, rule=rule, prompt=prompt, align=align)
    from tqdm import tqdm

    report = recover_set(
        episodes, out, view, pipeline, executor=executor, workers=workers or os.cpu_count() or 1, tell=tqdm.write
    )
    counts = ", ".join(f"{len(report[kind])} {kind}" for kind in ("kept", "discarded", "failed"))
    look = f"; look at {out / SHEET}" if (out / SHEET).is_file() else ""
    print(f"{out}: {counts}. Why: {out / REPORT}{look}")
    return report
