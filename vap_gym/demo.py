"""`vap-gym demo`: imagine two episodes beside the simulator, and five actions; a video, pictures and a table."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from vap_gym import metrics
from vap_gym.assets import ROOT, weights_dir
from vap_gym.cards import load_env
from vap_gym.data.video import write_video
from vap_gym.env import VapEnv
from vap_gym.errors import MissingDependencyError, VapError
from vap_gym.evaluate import report
from vap_gym.loading import load_starts
from vap_gym.pictures import Picture, message, sheet, spread, write_png
from vap_gym.prompts.raster import overlay
from vap_gym.scripted import Clip, can_go_anywhere, play_alone, play_beside_oracle
from vap_gym.starts import StartSet

ENV_ID = "VAP-DROID-v0"
TASKS = ("lift", "push")  # one episode each
NO_ORACLE = "No simulator here: pybullet is not installed (it has wheels for Python 3.11 only)"
SCORED_STEPS = 24  # the horizon of the benchmarks
PACE = 0.6  # of the fastest command, in the five actions
FIVE = {  # the base frame: x away from the robot's base, y to its left, z up; last the gripper, + closes
    "forward": (PACE, 0, 0, 0, 0, 0, 0),
    "back": (-PACE, 0, 0, 0, 0, 0, 0),
    "left": (0, PACE, 0, 0, 0, 0, 0),
    "up": (0, 0, PACE, 0, 0, 0, 0),
    "close": (0, 0, 0, 0, 0, 0, 0.5),
}


def main(
    out: Path = Path("out"), *, seed: int = 0, world_model: str = "tiny", steps: int = 45, droid: Path | None = None
) -> dict[str, Any]:
    """Imagine a robot from actions; write demo.mp4, contact_sheet.png, five_actions.png and table.md.

    Args:
        out: The folder to write to.
        seed: Chooses the episodes. The same seed gives the same pictures.
        world_model: A shipped model's name, or a checkpoint folder.
        steps: Control steps per episode, 15 a second.
        droid: A folder of real DROID recordings: imagines from one of its frames too (real_start.png).
    """
    if steps < 2:
        raise VapError(f"steps must be 2 or more, got {steps}. The default is 45.")
    began = time.perf_counter()
    shipped = load_starts(ENV_ID, None)
    order: list[int] = np.random.default_rng([seed, 3000]).permutation(len(shipped)).tolist()
    env = VapEnv(ENV_ID, world_model=world_model)
    clips = [play(shipped, order, task, seed=seed, world_model=world_model, steps=steps) for task in TASKS]
    if clips[0].oracle is None:
        print(f"The column of true pictures stays empty. {NO_ORACLE}.")

    fps = round(load_env(ENV_ID).fps)
    out.mkdir(parents=True, exist_ok=True)
    write_video(out / "demo.mp4", np.stack(list(movie(clips, world_model, fps))), fps, crf=18)
    pictures = {"contact_sheet.png": contact_sheet(clips, world_model)}
    pictures["five_actions.png"] = five_actions(env, shipped, order, seed=seed)
    if droid is not None:
        pictures["real_start.png"] = real_start(droid, world_model, seed=seed)
    for name, picture in pictures.items():
        write_png(out / name, picture)

    held_out, note = held_out_figures(world_model)
    rows = [step_timing(env, seed=seed), *clip_figures(clips), *held_out]
    text = report.table(("figure", "value"), rows) + "\n\n" + report.stamp(world_model=world_model, seed=seed) + note
    report.write(out / "table.md", text)
    print(f"\n{text}\n")
    written = [str(out / name) for name in ("demo.mp4", *pictures, "table.md")]
    seconds = time.perf_counter() - began
    print(f"Wrote {', '.join(written)} in {seconds:.0f} s.")
    return {"world_model": world_model, "seed": seed, "figures": dict(rows), "written": written, "seconds": seconds}


def play(shipped: StartSet, order: Sequence[int], task: str, *, seed: int, world_model: str, steps: int) -> Clip:
    """Imagine an episode of a task, beside the simulator where there is one."""
    try:
        return play_beside_oracle(ENV_ID, shipped, order, task=task, seed=seed, world_model=world_model, steps=steps)
    except MissingDependencyError:
        return play_alone(ENV_ID, shipped, order, task=task, seed=seed, world_model=world_model, steps=steps)


# --- pictures ---


def cells(clip: Clip, t: int) -> list[Picture]:
    """Return what is given (the first frame and the prompt), the imagined and the true picture at step t."""
    true = message(NO_ORACLE, clip.imagined[t]) if clip.oracle is None else clip.oracle[t]
    return [overlay(clip.imagined[0], clip.prompts[t]), clip.imagined[t], true]


def movie(clips: Sequence[Clip], world_model: str, fps: int) -> Iterator[Picture]:
    """Draw the video's frames: a row per episode; the first is held for half a second, the last for one."""
    last = len(clips[0].imagined) - 1
    columns = ["given: first frame + drawn actions", f"imagined ({Path(world_model).name})", "true (PyBullet)"]
    for t in tqdm([0] * (fps // 2) + list(range(last + 1)) + [last] * fps, desc="drawing the video", unit="frame"):
        yield sheet(
            [cells(clip, t) for clip in clips],
            scale=3.0,
            columns=columns,
            labels=[clip.instruction for clip in clips],
            note=f"step {t} of {last}, {t / fps:.1f} s",
        )


def contact_sheet(clips: Sequence[Clip], world_model: str) -> Picture:
    """Draw the video as stills: three rows per episode."""
    shown = spread(7, len(clips[0].imagined))
    rows: list[list[Picture]] = []
    labels: list[str] = []
    for clip in clips:
        each = [cells(clip, t) for t in shown]
        rows += [[column[k] for column in each] for k in range(3 if clip.oracle is not None else 2)]
        labels += [f"{clip.instruction}\n\ngiven", "imagined", *(["true"] if clip.oracle is not None else [])]
    return sheet(
        rows,
        scale=1.5,
        columns=[f"step {t}" for t in shown],
        labels=labels,
        title=f"Imagined ({Path(world_model).name}) from what is given: the first frame and the drawn actions",
        note="True: the PyBullet simulator. These scenes were not trained on."
        if clips[0].oracle is not None
        else NO_ORACLE,
    )


def five_actions(env: VapEnv, shipped: StartSet, order: Sequence[int], *, seed: int, steps: int = 20) -> Picture:
    """Draw one moment followed by five actions, each held for `steps`: what the env's branches imagine."""
    start = next((i for i in order if can_go_anywhere(shipped[i])), order[0])
    first, _ = env.reset(seed=seed, options={"start": start})
    assert isinstance(first, np.ndarray)
    branches = env.branch(len(FIVE))
    actions = np.array(list(FIVE.values()), np.float32)
    frames, prompts = [np.stack([first] * len(FIVE))], np.zeros((len(FIVE), *first.shape), np.uint8)
    for _ in tqdm(range(steps), desc="imagining: five actions", unit="step"):
        pictures, _, _, _, info = branches.step(actions)
        frames.append(np.asarray(pictures))
        prompts = np.stack(info["prompt"])
    shown = spread(6, steps + 1)
    return sheet(
        [[frames[t][i] for t in shown] for i in range(len(FIVE))],
        scale=1.5,
        columns=["start", *(f"step {t}" for t in shown[1:])],
        labels=list(FIVE),
        insets=[overlay(first, prompt) for prompt in prompts],
        title="One picture under five actions, imagined",
        note=f"Small: the first frame with the action drawn at step {steps}.",
    )


def real_start(droid: Path, world_model: str, *, seed: int) -> Picture:
    """Draw real | prompt | imagined from a real photograph."""
    from vap_gym.real_start import follow, read_droid, strip

    recording = read_droid(droid)
    env = VapEnv(ENV_ID, world_model=world_model, action_mode="joint_position", judge=None)
    env.reset(seed=seed, options=recording.reset_options())
    with tqdm(total=len(recording.frames) - 1, desc="imagining: a real photograph", unit="frame") as bar:
        return strip(follow(env, recording, tick=bar.update), recording)


# --- figures ---


def step_timing(env: VapEnv, *, seed: int, repeats: int = 40) -> tuple[str, str]:
    """Time `env.step`: one env, judge and prompt included."""
    env.reset(seed=seed)
    assert env.action_space.shape is not None
    actions = np.random.default_rng(seed).uniform(-1, 1, (repeats + 5, *env.action_space.shape)).astype(np.float32)
    spent_ms = []
    for action in actions:
        began = time.perf_counter()
        env.step(action)
        spent_ms.append(1e3 * (time.perf_counter() - began))
    p50, p95 = np.percentile(spent_ms[5:], [50, 95])
    return "env.step, one env: p50 / p95", f"{p50:.0f} / {p95:.0f} ms"


def clip_figures(clips: Sequence[Clip]) -> Iterator[tuple[str, str]]:
    """Compare the episodes of this run with the truth, where it is there."""
    for clip in clips:
        if clip.oracle is None:
            continue
        end = min(SCORED_STEPS, len(clip.imagined) - 1) + 1
        true, frozen = clip.oracle[1:end], np.repeat(clip.oracle[:1], end - 1, axis=0)
        scores = f"{metrics.psnr(clip.imagined[1:end], true):.1f} / {metrics.psnr(frozen, true):.1f} dB"
        yield f"\u201c{clip.instruction}\u201d, steps 1 to {end - 1}: PSNR of imagined / frozen first frame", scores
        yield "its gripper: median from where the judge sees it to the true one", f"{np.median(clip.gripper_px):.1f} px"


def held_out_figures(world_model: str) -> tuple[list[tuple[str, str]], str]:
    """Return the benchmark's figures of the demo's env: rows (shipped with the weights; those of other envs begin with
    their ids), or text to follow (from docs/fidelity.md)."""
    scores, fidelity = weights_dir() / world_model / "scores.json", ROOT / "docs" / "fidelity.md"
    if scores.is_file():
        figures = json.loads(scores.read_text(encoding="utf-8")).items()
        return [
            (f"held-out episodes: {name}", f"{v:.3g}" if isinstance(v, float) else str(v))
            for name, v in figures
            if not name.startswith("VAP-")
        ], ""
    tables = (
        re.findall(r"(?:^\|.*\n?)+", fidelity.read_text(encoding="utf-8"), re.MULTILINE) if fidelity.is_file() else []
    )
    if tables and world_model == "tiny":
        return [], f"\n\nOn held-out episodes (docs/fidelity.md):\n\n{tables[0]}"
    return [("held-out episodes", "not measured yet: vap-gym bench fidelity")], ""
