"""How near imagination comes to the oracle on the held-out episodes, beside a frozen frame, the codec and the judge."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8

from vap_gym import metrics
from vap_gym.cards import RobotCard, load_env, load_robot
from vap_gym.evaluate.clips import Clips, played
from vap_gym.evaluate.heldout import MOVED_M, STEPS, STILL_M, load_heldout
from vap_gym.evaluate.report import stamp, table
from vap_gym.geometry import Camera
from vap_gym.judge import Judge
from vap_gym.kinematics.control import Controller
from vap_gym.metrics import Interval, bootstrap_interval, paired_bootstrap_interval
from vap_gym.prompts.body import Body
from vap_gym.prompts.raster import draw
from vap_gym.prompts.skeleton import Skeleton
from vap_gym.world.model import WorldModel

MAIN_KINDS = ("contact", "free", "failing")
NEAR_M = 0.015


@dataclass(frozen=True, kw_only=True)
class Sight:
    """What the judge reads in N clips of S frames, and which of its readings count."""

    tool_px: Float[np.ndarray, "N S 2"]
    objects_m: Float[np.ndarray, "N S K 3"]
    confidence: Float[np.ndarray, "N S K"]


def main(
    *,
    world_model: str = "tiny",
    env: str = "VAP-DROID-v0",
    heldout: Path = Path("benchmarks/heldout.toml"),
    cache: Path = Path("runs/heldout.npz"),
    out: Path = Path("docs/fidelity.md"),
    scores: Path | None = None,
    batch: int = 32,
    limit: int = 0,
    evaluations: int = 0,
) -> None:
    """Print and write the fidelity table: imagination against the oracle, 24 steps from the first frame.

    Args:
        world_model: name or folder of the world model, with its judge.
        env: id or path of the env card: robot, frame size.
        heldout: list of episodes.
        cache: where the oracle's clips are kept between runs.
        out: the markdown page to write.
        scores: also write the figures as json.
        batch: imaginations at a time.
        limit: take only so many episodes of each kind (0: all), for a quick look.
        evaluations: network evaluations per frame (0: the model's default).
    """
    items = load_heldout(heldout)
    if limit:
        items = [
            item
            for kind in dict.fromkeys(i.kind for i in items)
            for item in [i for i in items if i.kind == kind][:limit]
        ]
    card = load_env(env)
    clips = played(items, robot=card.robot, cache=None if limit else cache)
    world, judge = WorldModel.from_pretrained(world_model), Judge.from_pretrained(world_model)
    report = measure(
        clips, np.array([i.kind for i in items]), world, judge, card.robot, batch=batch, evaluations=evaluations or None
    )
    text = page(report, world_model, evaluations or world.evaluations)
    print(text)
    if not limit:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")
    if scores is not None:
        scores.write_text(json.dumps(headline(report), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def headline(report: dict[str, Any]) -> dict[str, str]:
    """The figures that are shipped with the weights, as text with their intervals."""
    return {
        "PSNR gap, frozen to codec, closed over steps 1–24": _percent(report["gap_closed"]),
        "ST-IoU": str(report["st_iou"]),
        "ST-IoU, right minus swapped prompt": str(report["st_iou_right_minus_swapped"]),
        "gripper adherence, median px": str(report["adherence_px"]),
        "untouched objects still there at step 24": _percent(report["untouched_there"]),
        "error of moved objects, share of the frozen-object error": _percent(report["moved_error_share"]),
        "episodes": str(report["episodes"]),
    }


def measure(
    clips: Clips, kinds: np.ndarray, world: WorldModel, judge: Judge, robot: str, *, batch: int, evaluations: int | None
) -> dict[str, Any]:
    """All figures of the table, by name."""
    main_rows = np.flatnonzero(np.isin(kinds, MAIN_KINDS))
    right = prompts_of(clips, robot)
    imagined = imagine(world, clips, right, batch=batch, evaluations=evaluations)
    true, first = clips.frames[:, 1:], np.repeat(clips.frames[:, :1], STEPS, axis=1)
    rebuilt = np.stack([world.decode(world.encode(torch.from_numpy(clip))).numpy() for clip in true])
    psnr = {
        name: np.stack([metrics.psnr_per_frame(a, b) for a, b in zip(made, true, strict=True)])
        for name, made in (("imagined", imagined), ("frozen", first), ("codec", rebuilt))
    }
    report: dict[str, Any] = {
        "episodes": len(main_rows),
        "psnr_by_step": {k: v[main_rows].mean(0).round(2).tolist() for k, v in psnr.items()},
    }
    mean_psnr = {k: v.mean(1) for k, v in psnr.items()}
    for name, value in mean_psnr.items():
        report[f"psnr_{name}"] = bootstrap_interval(value[main_rows])
    columns = np.stack([mean_psnr["imagined"], mean_psnr["frozen"], mean_psnr["codec"]], 1)
    report["gap_closed"] = bootstrap_interval(columns[main_rows], statistic=_gap_closed)
    for kind in dict.fromkeys(kinds):
        report[f"gap_closed_{kind}"] = bootstrap_interval(columns[kinds == kind], statistic=_gap_closed)
    _motion(report, clips, kinds, main_rows, world, robot, imagined, first, rebuilt, batch, evaluations)
    _positions(report, clips, main_rows, judge, imagined, true, first)
    return report


def _gap_closed(rows: np.ndarray) -> float:
    imagined, frozen, codec = rows.mean(0)
    return float((imagined - frozen) / (codec - frozen))


def _motion(
    report: dict[str, Any], clips: Clips, kinds: np.ndarray, rows: np.ndarray, world: WorldModel, robot: str,
    imagined: np.ndarray, first: np.ndarray, rebuilt: np.ndarray, batch: int, evaluations: int | None,
) -> None:  # fmt: skip
    """ST-IoU of imagination, of the frozen frame and of the codec, and with another episode's actions."""
    picked = clips.pick(rows)
    order = np.roll(np.arange(len(rows)), 1)  # the neighbour's actions, mostly of the same kind
    swapped = imagine(
        world, picked, swapped_prompts(picked, picked.actions[order], robot), batch=batch, evaluations=evaluations
    )
    opening = clips.frames[:, :1]

    def scored(made: np.ndarray, these: np.ndarray) -> np.ndarray:
        pairs = zip(np.concatenate([opening[these], made], 1), clips.frames[these], strict=True)
        return np.array([metrics.st_iou(a, b) for a, b in pairs])

    right = scored(imagined[rows], rows)
    report["st_iou"] = bootstrap_interval(right)
    report["st_iou_frozen"] = bootstrap_interval(scored(first[rows], rows))
    report["st_iou_codec"] = bootstrap_interval(scored(rebuilt[rows], rows))
    report["st_iou_right_minus_swapped"] = paired_bootstrap_interval(right, scored(swapped, rows))
    for kind in dict.fromkeys(kinds):
        report[f"st_iou_{kind}"] = bootstrap_interval(scored(imagined[kinds == kind], np.flatnonzero(kinds == kind)))


def _positions(
    report: dict[str, Any],
    clips: Clips,
    rows: np.ndarray,
    judge: Judge,
    imagined: np.ndarray,
    true: np.ndarray,
    first: np.ndarray,
) -> None:
    """Gripper adherence and object places, as the judge reads them in imagined and in true frames."""
    clips, imagined, true = clips.pick(rows), imagined[rows], true[rows]
    camera = cameras(clips)
    commanded = camera.project(torch.from_numpy(clips.tool_m[:, 1:]))[0].numpy()
    size = np.array(camera.frame_size_px)
    inside = np.all((commanded > 0) & (commanded < size), axis=-1)
    seen, real = look(judge, imagined, clips), look(judge, true, clips)
    for name, sight in (("", seen), ("_judge", real)):
        off_px = np.where(inside, np.linalg.norm(sight.tool_px - commanded, axis=-1), np.nan)
        per_episode = np.array([np.nanmedian(row) for row in off_px[np.any(inside, axis=1)]])
        report[f"adherence_px{name}"] = bootstrap_interval(per_episode, statistic=lambda v: float(np.median(v)))
    start, end = clips.objects_m[:, 0], clips.objects_m[:, -1]
    moved_m = np.linalg.norm(end - start, axis=-1)  # NaN where there is no object
    pixels = camera.project(torch.from_numpy(end.astype(np.float32)))[0].numpy()
    visible = ((pixels > 2) & (pixels < size - 2)).all(-1) & (real.confidence[:, -1] > 0.5)
    error = {
        name: np.nan_to_num(np.linalg.norm(sight.objects_m[:, -1] - end, axis=-1), nan=1.0)  # a ray past the table
        for name, sight in (("", seen), ("_judge", real))
    }
    untouched = visible & (moved_m < STILL_M)
    there = (seen.confidence[:, -1] > 0.5) & (error[""] <= NEAR_M + error["_judge"])
    report["untouched_there"] = _share_by_episode(there, untouched)
    report["untouched_objects"] = int(untouched.sum())
    moved = visible & (moved_m >= MOVED_M)
    report["moved_objects"] = int(moved.sum())
    for name in ("", "_judge"):
        pairs = np.stack([error[name][moved], moved_m[moved]], 1)
        report[f"moved_error_share{name}"] = bootstrap_interval(
            pairs, statistic=lambda v: float(v[:, 0].mean() / v[:, 1].mean())
        )
        report[f"moved_error_cm{name}"] = bootstrap_interval(100 * error[name][moved])
    report["moved_frozen_cm"] = bootstrap_interval(100 * moved_m[moved])
    report["judge_object_cm"] = bootstrap_interval(
        100 * error["_judge"][visible], statistic=lambda v: float(np.median(v))
    )


def _share_by_episode(there: np.ndarray, counted: np.ndarray) -> Interval:
    """Share of counted objects that are there; whole episodes are resampled."""
    pairs = np.stack([(there & counted).sum(1), counted.sum(1)], 1)[counted.any(1)]
    return bootstrap_interval(pairs, statistic=lambda v: float(v[:, 0].sum() / v[:, 1].sum()))


# --- imagining and reading ---


def cameras(clips: Clips) -> Camera:
    """The clips' cameras, a batch of N."""
    _, _, height, width, _ = clips.frames.shape
    return Camera(
        K=torch.from_numpy(clips.K).float(),
        T_world_camera=torch.from_numpy(clips.T_world_camera).float(),
        frame_size_px=(width, height),
    )


@dataclass(frozen=True, kw_only=True)
class Prompted:
    """What the world model is told of N clips' robots, frame by frame."""

    prompts: UInt8[np.ndarray, "N T H W 3"]
    views: Float[np.ndarray, "N T L 3 4"]


def prompts_of(clips: Clips, robot: str) -> Prompted:
    """The prompts of the clips' nominal states."""
    joints, closedness = torch.from_numpy(clips.joints_rad).float(), torch.from_numpy(clips.closedness).float()
    return _prompted(joints, closedness, clips, load_robot(robot))


def swapped_prompts(clips: Clips, actions: np.ndarray, robot: str) -> Prompted:
    """Prompts of other actions from the clips' own starts, through the nominal controller."""
    card = load_robot(robot)
    controller = Controller(card)
    state = controller.start(
        torch.from_numpy(clips.joints_rad[:, 0]).float(), torch.from_numpy(clips.closedness[:, 0]).float()
    )
    states = [state]
    for t in range(STEPS):
        state, _ = controller.step(state, torch.from_numpy(actions[:, t]).float())
        states.append(state)
    joints, closedness = (torch.stack([getattr(s, name) for s in states], 1) for name in ("q", "gripper"))
    return _prompted(joints, closedness, clips, card)


def _prompted(joints: torch.Tensor, closedness: torch.Tensor, clips: Clips, card: RobotCard) -> Prompted:
    seen_by, skeleton = cameras(clips), Skeleton(card)
    points = skeleton.at_joints(joints, closedness)
    return Prompted(
        prompts=draw(points, seen_by, skeleton),
        views=Body(card).views(joints, closedness, seen_by).numpy(),
    )


def imagine(
    world: WorldModel, clips: Clips, told: Prompted, *, batch: int, evaluations: int | None
) -> UInt8[np.ndarray, "N S H W 3"]:
    """Imagine the STEPS frames after each clip's first."""
    made = []
    for i in range(0, len(clips), batch):
        part = slice(i, i + batch)
        prompts, views = (torch.from_numpy(x[part]) for x in (told.prompts, told.views))
        seeds = torch.arange(i, i + len(prompts))
        state = world.start(torch.from_numpy(clips.frames[part, 0]), prompts[:, 0], seeds, views=views[:, 0])
        _, frames = world.predict(state, prompts[:, 1:], views=views[:, 1:], evaluations=evaluations)
        assert frames is not None
        made.append(frames.numpy())
    return np.concatenate(made)


def look(judge: Judge, frames: UInt8[np.ndarray, "N S H W 3"], clips: Clips) -> Sight:
    """Let the judge read every frame; it knows the camera and where the tool was commanded to be."""
    whole = cameras(clips)
    readings = []
    for i, clip in enumerate(frames):
        camera = Camera(K=whole.K[i], T_world_camera=whole.T_world_camera[i], frame_size_px=whole.frame_size_px)
        readings.append(
            judge.read_frames(torch.from_numpy(clip), camera, tool_m=torch.from_numpy(clips.tool_m[i, 1:]).float())
        )
    return Sight(
        tool_px=np.stack([r.gripper_px.numpy() for r in readings]),
        objects_m=np.stack([r.objects_world_m.numpy() for r in readings]),
        confidence=np.stack([r.objects_confidence.numpy() for r in readings]),
    )


def page(report: dict[str, Any], world_model: str, evaluations: int) -> str:
    """The figures as a markdown page."""
    r = report
    gap = f"frozen {r['psnr_frozen']} dB, imagined {r['psnr_imagined']} dB, codec {r['psnr_codec']} dB"
    motion = f"frozen {r['st_iou_frozen']}, codec {r['st_iou_codec']}"
    there = f"{r['untouched_objects']} objects; within 1.5 cm + the judge's own error on the true frame"
    moved = f"{r['moved_error_cm']} cm of {r['moved_frozen_cm']} cm; judge on true frames "
    moved += _percent(r["moved_error_share_judge"])
    share = f"error of {r['moved_objects']} objects moved ≥ 5 cm, as a share of the frozen-object error"
    swapped = "same start and camera, another episode's actions"
    judged = f"judge on true frames {r['adherence_px_judge']}"
    rows = [
        ["PSNR gap, frozen to codec, closed over steps 1–24", _percent(r["gap_closed"]), "≥ 40 %", "≥ 65 %", gap],
        ["ST-IoU", str(r["st_iou"]), "≥ .35", "≥ .6", motion],
        ["ST-IoU, right minus swapped prompt", str(r["st_iou_right_minus_swapped"]), "≥ .15", "≥ .35", swapped],
        ["gripper adherence, median px", str(r["adherence_px"]), "≤ 3", "≤ 1.5", judged],
        ["untouched objects still there at step 24", _percent(r["untouched_there"]), "≥ 90 %", "≥ 98 %", there],
        [share, _percent(r["moved_error_share"]), "≤ 60 %", "≤ 25 %", moved],
    ]
    kinds = [k.removeprefix("gap_closed_") for k in r if k.startswith("gap_closed_")]
    by_kind = [[k, _percent(r[f"gap_closed_{k}"]), str(r[f"st_iou_{k}"])] for k in kinds]
    steps = [0, 4, 9, 14, 19, 23]
    by_step = [[name, *(f"{values[i]:.1f}" for i in steps)] for name, values in r["psnr_by_step"].items()]
    return f"""# Fidelity of the imagination

`vap-gym bench fidelity` on {r["episodes"]} held-out oracle episodes (`benchmarks/heldout.toml`), 24 steps from the
first frame, world model `{world_model}`, {evaluations} network evaluation(s) per frame. Bootstrap intervals of 95 %.

{table(["figure", "measured", "must", "aim", "beside it"], rows)}

By kind (no-op episodes, and those with novel shapes and textures, are not in the table above):

{table(["kind", "PSNR gap closed", "ST-IoU"], by_kind)}

PSNR [dB] by step:

{table(["", *(f"step {i + 1}" for i in steps)], by_step)}

Judge on true frames: median error of visible objects {r["judge_object_cm"]} cm.

{stamp()}
"""


def _percent(interval: Interval) -> str:
    return f"{100 * interval.value:.0f} % [{100 * interval.low:.0f}, {100 * interval.high:.0f}]"
