"""Streaming: what a frame costs by slots and evaluations, and how far a world model drifts over 200 steps.

Speed is of the `tiny` preset with random weights (it does not depend on their values), in the precision that the
device multiplies natively; the least of several runs, since other load only ever slows them down: measure on an idle
machine. Drift is of any world models, on held-out oracle episodes that are played on to `steps` frames: PSNR of every
step against the oracle's frame, beside that of the first frame kept. Writes the figures of docs/streaming.md, between
their marks, and docs/img/drift.png.

    python benchmarks/streaming.py --worlds tiny rollout=runs/streams/rollout/model rollout,2=runs/streams/rollout/model
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from jaxtyping import Float

from vap_gym.assets import weights_dir
from vap_gym.cards import load_robot
from vap_gym.data import Episode
from vap_gym.errors import VapError
from vap_gym.evaluate import report
from vap_gym.evaluate.heldout import HeldOut, load_heldout
from vap_gym.geometry import Camera
from vap_gym.imagine import Imagination
from vap_gym.loading import build_stage
from vap_gym.sim.rollout import VIEW, NominalRobot, record
from vap_gym.sim.scene import Scene
from vap_gym.video.causal import CausalVideoNetwork
from vap_gym.video.presets import preset
from vap_gym.video.world import StreamWorld
from vap_gym.world.codec import FrameCodec
from vap_gym.world.devices import native_dtype

SHOWN = (1, 5, 10, 24, 50, 100, 150, 200)
FROZEN = "first frame, frozen"


def least(call: Callable[[], object], repeats: int) -> float:
    """Return the least time of several calls after one for warming up, in ms."""
    spent = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        spent.append(time.perf_counter() - begin)
    return 1e3 * min(spent[1:])


def speed_rows(device: str, slots: tuple[int, ...], repeats: int) -> list[tuple[str, ...]]:
    """Measure the `tiny` preset with random weights: rows of (slots, ms per evaluation, …)."""
    torch.manual_seed(0)
    codec = FrameCodec.from_pretrained(weights_dir() / "tiny" / "codec", torch_dtype=torch.float32)
    world = StreamWorld(CausalVideoNetwork(**preset("tiny").to_dict()), codec, device=device)
    width, height = world.frame_size_px
    rows = []
    for count in slots:
        pictures = torch.randint(0, 256, (count, height, width, 3), dtype=torch.uint8)
        state = world.start(pictures, pictures, torch.arange(count))
        for _ in range(3):
            state, _ = world.predict(state, pictures[:, None], decode=False)
        latents = {
            n: least(partial(world.predict, state, pictures[:, None], decode=False, evaluations=n), repeats)
            for n in (1, 2)
        }
        whole = least(partial(world.predict, state, pictures[:, None]), repeats)
        kept = sum(value[0].numel() * value.element_size() for value in state.values())
        rows.append(
            (
                str(count),
                f"{latents[2] - latents[1]:.1f}",
                f"{latents[1]:.1f}",
                f"{latents[2]:.1f}",
                f"{whole:.1f}",
                f"{1e3 * count / whole:.0f}",
                f"{kept / 2**20:.1f}",
            )
        )
    return rows


def chosen(path: Path, episodes: int) -> list[HeldOut]:
    """Return held-out episodes, taken evenly from those in which the robot moves."""
    items = [item for item in load_heldout(path) if item.kind in ("contact", "free", "failing")]
    return [items[int(i)] for i in np.linspace(0, len(items) - 1, min(episodes, len(items)))]


def recorded(items: list[HeldOut], *, steps: int) -> list[Episode]:
    """Return the true episodes."""
    card = load_robot("panda_robotiq")
    nominal, rows = NominalRobot(card), []
    with Scene(card) as scene:
        for item in items:
            try:
                rows.append(record(scene, nominal, item.scene, item.behaviour, frames=steps + 1))
            except VapError as error:  # a start that the arm cannot reach
                print(f"left out: {error}")
    return rows


def frozen(rows: list[Episode]) -> Float[np.ndarray, "N K"]:
    """Return the PSNR (dB) of the first frame kept, at every step of N episodes."""
    psnr = []
    for row in rows:
        truth = torch.from_numpy(row.frames[VIEW])[None]
        psnr.append(decibels(truth[:, :1], truth[:, 1:]))
    return np.concatenate(psnr)


def drift(
    imagination: Imagination, rows: list[Episode], *, steps: int, batch: int, evaluations: int | None = None
) -> Float[np.ndarray, "N K"]:
    """Return the PSNR (dB) of imagined frames, at every step of N episodes."""
    psnr: list[np.ndarray] = []
    for first in range(0, len(rows), batch):
        part = rows[first : first + batch]
        truth = torch.from_numpy(np.stack([row.frames[VIEW] for row in part]))

        def column(name: str, part: Any = part) -> torch.Tensor:
            return torch.from_numpy(np.stack([np.asarray(row.columns[name]) for row in part])).float()

        camera = Camera(
            K=column("camera.K")[:, 0],
            T_world_camera=column("camera.T_world_camera")[:, 0],
            frame_size_px=imagination.rig.frame_size_px,
        )
        state = imagination.start(
            truth[:, 0],
            q=column("nominal.joint_position")[:, 0],
            gripper=column("nominal.gripper_position")[:, 0, 0],
            camera=camera,
            seed=torch.arange(len(part)) + first,
        )
        actions, chunk = column("action"), getattr(imagination.world, "chunk", 1)
        made = []
        for t in range(0, steps, chunk):
            state, frames, _ = imagination.step(state, actions[:, t : t + chunk], evaluations=evaluations)
            assert frames is not None
            made.append(frames.cpu())
        imagined = torch.cat(made, 1)
        psnr.append(decibels(imagined, truth[:, 1 : 1 + imagined.shape[1]]))
        print(f"{first + len(part)} of {len(rows)} episodes", flush=True)
    return np.concatenate(psnr)


def decibels(made: torch.Tensor, truth: torch.Tensor) -> np.ndarray:
    """Return the PSNR of frames (N, K, H, W, 3), at most 40 dB."""
    error = (made.float() - truth.float()).div(255).square().flatten(2).mean(-1)
    return np.asarray((-10 * torch.log10(error.clamp_min(1e-4))).numpy())


def draw(psnr: dict[str, np.ndarray], path: Path) -> None:
    """Draw mean PSNR by step, with 95 % intervals of the mean over episodes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 3.6), layout="constrained")
    for i, (name, values) in enumerate(psnr.items()):
        colour = "tab:gray" if name == FROZEN else f"C{i}"
        steps = np.arange(1, values.shape[1] + 1)
        mean, half = values.mean(0), 1.96 * values.std(0, ddof=min(1, len(values) - 1)) / np.sqrt(len(values))
        axes.plot(steps, mean, color=colour, label=name)
        axes.fill_between(steps, mean - half, mean + half, color=colour, alpha=0.2, linewidth=0)
    axes.set(xlabel="steps from the first frame (1/15 s each)", ylabel="PSNR [dB]", xlim=(1, None))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    temporary = path.with_name(f".{path.stem}.part.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(temporary, dpi=130)
    pyplot.close(figure)
    temporary.replace(path)


def main(
    out: Path = Path("docs/streaming.md"),
    *,
    picture: Path = Path("docs/img/drift.png"),
    worlds: tuple[str, ...] = ("tiny",),
    device: str = "cpu",
    slots: tuple[int, ...] = (1, 16, 64),
    repeats: int = 5,
    episodes: int = 64,
    steps: int = 200,
    batch: int = 8,
    heldout: Path = Path("benchmarks/heldout.toml"),
) -> None:
    """Measure speed and drift, and write the page's figures and the picture.

    Args:
        out, picture: What is written.
        worlds: Of the drift: shipped models' names, or NAME=FOLDER for checkpoints; NAME,N=FOLDER evaluates the network
            N times a frame.
        device: Where the models run.
        slots: Batch sizes of the speed.
        repeats: Timed calls of each kind.
        episodes, steps, batch: Of the drift.
        heldout: The list of held-out episodes.
    """
    load = os.getloadavg()[0]
    rows = speed_rows(device, slots, repeats)
    true, psnr = recorded(chosen(heldout, episodes), steps=steps), {}
    for told in worlds:
        label, _, folder = told.rpartition("=")
        name, _, evaluations = label.partition(",")
        print(f"drift of {told}")
        stage = build_stage("VAP-DROID-v0", world_model=folder, device=device, judge=None)
        shown = f"{name or folder}, {evaluations or 1} evaluation{'s' if evaluations not in ('', '1') else ''}"
        psnr[shown] = drift(
            stage.imagination, true, steps=steps, batch=batch, evaluations=int(evaluations) if evaluations else None
        )
    psnr[FROZEN] = frozen(true)
    draw(psnr, picture)
    count, length = psnr[FROZEN].shape
    lines = [(str(t), *(_mean(values[:, t - 1]) for values in psnr.values())) for t in SHOWN if t <= length]
    dtype = str(native_dtype(torch.device(device))).removeprefix("torch.")
    head = ("slots", "ms, an evaluation", "ms, 1 evaluation", "ms, 2", "ms, 1 and decoded", "frames/s", "MiB a slot")
    text = "\n\n".join(
        [
            f"The `tiny` preset with random weights, {dtype}, 144 × 96 px: latent frames of 1 and 2 evaluations (the "
            f"pass that writes keys in it), and with the decoder; least of {repeats} runs.",
            report.table(head, rows),
            f"PSNR (dB) against the oracle's frames, {count} held-out episodes (seeds from 1,000,000 on) of {length} "
            "steps, mean over episodes with its 95 % interval. A frozen first frame gains on a model wherever little "
            "has moved.",
            report.table(("step", *psnr), lines),
            f"![drift]({os.path.relpath(picture, out.parent)})",
            report.stamp(device, load_before=f"{load:.1f}"),
        ]
    )
    report.write(out, report.filled(out.read_text(encoding="utf-8"), "streaming", text))
    print(text)


def _mean(values: np.ndarray) -> str:
    half = 1.96 * values.std(ddof=min(1, len(values) - 1)) / np.sqrt(len(values))
    return f"{values.mean():.1f} ± {half:.1f}"


if __name__ == "__main__":
    tyro.cli(main)
