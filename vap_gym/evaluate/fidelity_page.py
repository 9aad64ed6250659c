"""The page of fidelity figures: one table with a column per env, then by kind of episode and by step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vap_gym.evaluate.fidelity_figures import Report
from vap_gym.evaluate.heldout import ENVS, list_path
from vap_gym.evaluate.report import stamp, table
from vap_gym.metrics import Interval

STEPS_SHOWN = (1, 5, 10, 15, 20, 24)


def percent(value: Interval | None) -> str:
    """Return e.g. "55 % [54, 57]"."""
    if value is None or not np.isfinite([value.low, value.value, value.high]).all():
        return "n/a"
    return f"{100 * value.value:.0f} % [{100 * value.low:.0f}, {100 * value.high:.0f}]"


def plain(value: object) -> str:
    """Return a figure as it is told, "n/a" where there is none."""
    return "n/a" if value is None else str(value)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table: what is measured, how it is told, and what is asked for."""

    name: str
    key: str
    told: Callable[[Interval | None], str] = plain
    must: float | None = None  # None: nothing is asked
    aim: float | None = None
    must_first: float | None = None  # of the first env, where it is another
    at_most: bool = False  # less is better

    def bounds(self) -> tuple[str, str]:
        """Must and aim in words."""
        if self.must is None or self.aim is None:
            return "", ""
        must, aim = self._bound(self.must), self._bound(self.aim)
        return (must if self.must_first is None else f"{self._bound(self.must_first)} (DROID), {must}"), aim

    def met(self, env: str, figure: Interval | None) -> str:
        """What an env's figure meets, by its value: "aim", "must" or "missed"; "" where there is none, or nothing is
        asked."""
        must = self.must_first if env == ENVS[0] and self.must_first is not None else self.must
        if must is None or self.aim is None or figure is None or not np.isfinite(figure.value):
            return ""
        sign = -1 if self.at_most else 1
        return next((name for name, bound in (("aim", self.aim), ("must", must))
                     if sign * figure.value >= sign * bound), "missed")  # fmt: skip

    def _bound(self, bound: float) -> str:
        sign = "≤" if self.at_most else "≥"
        return f"{sign} {100 * bound:.0f} %" if self.told is percent else f"{sign} {bound:g}"


ROWS = (
    Row(
        name="PSNR gap, frozen to codec, closed over steps 1–24", key="gap_closed", told=percent,
        must=0.5, must_first=0.6, aim=0.8,
    ),
    Row(name="ST-IoU", key="st_iou", must=0.55, aim=0.7),
    Row(name="ST-IoU, right minus swapped prompt", key="st_iou_right_minus_swapped", must=0.25, aim=0.45),
    Row(name="gripper adherence, median px", key="adherence_px", must=1.5, aim=0.8, at_most=True),
    Row(name="untouched objects still there at step 24", key="untouched_there", told=percent, must=0.97, aim=0.99),
    Row(
        name="untouched objects still there at step 100", key="untouched_there_100", told=percent, must=0.92, aim=0.98
    ),
    Row(
        name="objects moved ≥ 5 cm: error at step 24, as a share of the frozen-object error", key="moved_error_share",
        told=percent, must=0.35, aim=0.15, at_most=True,
    ),
)  # fmt: skip
BESIDE = (
    Row(name="PSNR, frozen first frame [dB]", key="psnr_frozen"),
    Row(name="PSNR, imagined [dB]", key="psnr_imagined"),
    Row(name="PSNR, codec [dB]", key="psnr_codec"),
    Row(name="PSNR at step 100, imagined [dB]", key="psnr_imagined_100"),
    Row(name="PSNR at step 100, frozen [dB]", key="psnr_frozen_100"),
    Row(name="ST-IoU, frozen", key="st_iou_frozen"),
    Row(name="ST-IoU, codec", key="st_iou_codec"),
    Row(name="judge on true frames: gripper adherence, median px", key="adherence_px_judge"),
    Row(name="judge on true frames: object error, median cm", key="judge_object_cm"),
    Row(
        name="judge on true frames: objects moved ≥ 5 cm, error as a share of how far", key="moved_error_share_judge",
        told=percent,
    ),
    Row(name="judge on true frames: J&F of its objects (asked: ≥ .85)", key="judge_j_and_f"),
    Row(
        name="untouched objects there at step 24, those that the first frame hides counted, too",
        key="untouched_there_all", told=percent,
    ),
    Row(
        name="untouched objects there at step 100, those that the first frame hides counted, too",
        key="untouched_there_all_100", told=percent,
    ),
    Row(
        name="objects moved ≥ 5 cm: share of the frozen-object error, those that the first frame hides counted, too, "
        "and those that the judge does not see taken to be where its heat map peaks",
        key="moved_error_share_all", told=percent,
    ),
    Row(name="objects moved ≥ 5 cm: error [cm]", key="moved_error_cm"),
    Row(name="objects moved ≥ 5 cm: how far [cm]", key="moved_frozen_cm"),
)  # fmt: skip


def headline(measured: dict[str, Report]) -> dict[str, str]:
    """The figures that are shipped with the weights, as text with their intervals."""
    said: dict[str, str] = {}
    for env, report in measured.items():
        where = "" if env == ENVS[0] else f"{env}: "
        said |= {f"{where}{row.name}": row.told(report.get(row.key)) for row in ROWS}
        said[f"{where}episodes"] = str(report["episodes"])
    return said


def page(measured: dict[str, Report], world_model: str, evaluations: int, *, truth: str = "", origin: str = "") -> str:
    """The figures of one or more envs as a markdown page.

    Args:
        origin: where and when they were measured, where that is not here and now.
    """
    first = next(iter(measured.values()))
    counts = [
        ["objects: untouched", *(str(r["untouched_objects"]) for r in measured.values())],
        ["objects: moved", *(str(r["moved_objects"]) for r in measured.values())],
        ["objects that the judge sees at the end", *(f"{100 * r['objects_seen']:.0f} %" for r in measured.values())],
        ["of these in the first frame, too", *(f"{100 * r['objects_shown']:.0f} %" for r in measured.values())],
    ]
    lists = ", ".join(f"`{list_path(env)}`" for env in measured)
    told = {
        "": "",
        "things": " The simulator told which things there are at first, where they are and how large.",
        "moves": " The simulator told which things there are, where they are, how large, and how they move.",
    }[truth]
    long = next((r["episodes_100"] for r in measured.values() if "episodes_100" in r), 0)
    asked = [[row.name, *row.bounds(), *_cells(row, measured)] for row in ROWS]
    beside = [[row.name, *_cells(row, measured)] for row in BESIDE]
    return f"""# Fidelity of the imagination

`vap-gym bench fidelity` on {first["episodes"]} held-out oracle episodes of each env ({lists}), 24 steps from the
first frame, and on {long} of them 100 steps; world model `{world_model}`, {evaluations or first["evaluations"]} network
evaluation(s) per frame. Bootstrap intervals of 95 %.{told}

{table(["figure", "must", "aim", *measured], asked)}

Must and aim are what the project asks of itself. Frozen: the first frame throughout. Codec: the true frames through the
codec, the most that latents can tell. Gap closed: how far the imagined frames' PSNR is from the frozen one's to the
codec's. ST-IoU: intersection over union, in space and time, of the pixels that move in the true and in the imagined
frames (as in Physics-IQ). Adherence: how far from where kinematics puts the gripper the judge sees it, at 144 × 96 px.

After each figure what its value meets, whatever its interval: the aim, the must, or neither (missed).

Beside it:

{table(["", *measured], [*beside, *counts])}

Swapped: same start and camera, another episode's actions. Objects count where the judge is sure of them in the
true first and last frame: what the robot hides at first, no model can know of (figures with it stand beside).
Untouched: seen within 1.5 cm + the judge's own error on the true frame. Moved: where the judge last was sure of them.
An error counts as 1 m at most. n/a: the judge does not know this gripper, or there is nothing to measure.

By kind (no-op episodes, and those with novel things or skills, are not in the tables above; where nothing moves, frozen
and codec are nearly the same, and the gap's share says little):

{_by_kind(measured)}

PSNR [dB] by step:

{_by_step(measured)}

{origin or stamp()}
"""


def _cells(row: Row, measured: dict[str, Report]) -> list[str]:
    cells = [(row.told(report.get(row.key)), row.met(env, report.get(row.key))) for env, report in measured.items()]
    return [f"{told} · {met}" if met else told for told, met in cells]


def _by_kind(measured: dict[str, Report]) -> str:
    first = next(iter(measured.values()))
    kinds = [key.removeprefix("gap_closed_") for key in first if key.startswith("gap_closed_")]
    rows = []
    for name, key, tell in (("PSNR gap closed", "gap_closed", percent), ("ST-IoU", "st_iou", plain)):
        rows += [[f"{name}, {kind}", *(tell(r.get(f"{key}_{kind}")) for r in measured.values())] for kind in kinds]
    return table(["", *measured], rows)


def _by_step(measured: dict[str, Report]) -> str:
    rows = [
        [env, name, *(f"{values[step - 1]:.1f}" for step in STEPS_SHOWN)]
        for env, report in measured.items()
        for name, values in report["psnr_by_step"].items()
    ]
    return table(["", "", *(f"step {step}" for step in STEPS_SHOWN)], rows)
