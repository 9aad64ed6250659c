"""Streaming: what a frame costs by slots and evaluations, and how far a world model drifts over 200 steps.

Speed is of the `tiny` preset with random weights (it does not depend on their values), in the precision that the
device multiplies natively; the least of several runs, since other load only ever slows them down: measure on an idle
machine. Drift is of any world model, on held-out oracle episodes that are played on to `steps` frames: PSNR of every
step against the oracle's frame, beside that of the first frame kept. Writes docs/streaming.md and docs/img/drift.png.

    python benchmarks/streaming.py --world tiny --episodes 64
"""

from __future__ import annotations

import os
import platform
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


def drift(
    imagination: Imagination, items: list[HeldOut], *, steps: int, batch: int
) -> dict[str, Float[np.ndarray, "N K"]]:
    """Return the PSNR (dB) of every step of N episodes: of imagined frames, and of the first frame kept."""
    card = load_robot("panda_robotiq")
    nominal, rows = NominalRobot(card), []
    with Scene(card) as scene:
        for item in items:
            try:
                rows.append(record(scene, nominal, item.scene, item.behaviour, frames=steps + 1))
            except VapError as error:  # a start that the arm cannot reach
                print(f"left out: {error}")
    psnr: dict[str, list[np.ndarray]] = {"imagined": [], "frozen": []}
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
            state, frames, _ = imagination.step(state, actions[:, t : t + chunk])
            assert frames is not None
            made.append(frames.cpu())
        imagined = torch.cat(made, 1)
        psnr["imagined"].append(decibels(imagined, truth[:, 1 : 1 + imagined.shape[1]]))
        psnr["frozen"].append(decibels(truth[:, :1], truth[:, 1 : 1 + imagined.shape[1]]))
        print(f"{first + len(part)} of {len(rows)} episodes", flush=True)
    return {name: np.concatenate(values) for name, values in psnr.items()}


def decibels(made: torch.Tensor, truth: torch.Tensor) -> np.ndarray:
    """Return the PSNR of frames (N, K, H, W, 3), at most 40 dB."""
    error = (made.float() - truth.float()).div(255).square().flatten(2).mean(-1)
    return np.asarray((-10 * torch.log10(error.clamp_min(1e-4))).numpy())


def draw(psnr: dict[str, np.ndarray], path: Path, world: str) -> None:
    """Draw mean PSNR by step, with 95 % intervals of the mean over episodes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 3.6), layout="constrained")
    for (name, values), colour in zip(psnr.items(), ("tab:blue", "tab:gray"), strict=True):
        steps = np.arange(1, values.shape[1] + 1)
        mean, half = values.mean(0), 1.96 * values.std(0, ddof=min(1, len(values) - 1)) / np.sqrt(len(values))
        label = f"imagined by {world}" if name == "imagined" else "first frame, frozen"
        axes.plot(steps, mean, color=colour, label=label)
        axes.fill_between(steps, mean - half, mean + half, color=colour, alpha=0.2, linewidth=0)
    axes.set(xlabel="steps from the first frame (1/15 s each)", ylabel="PSNR [dB]", xlim=(1, None))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    temporary = path.with_name(f".{path.stem}.part.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(temporary, dpi=130)
    pyplot.close(figure)
    temporary.replace(path)


ABOUT = """# Streaming

The causal video model (`vap_gym.video.causal`) has the weights of the bidirectional one, but a frame sees the past
only: words, the anchor (the clean first frame) and the frames up to itself. `vap_gym.video.world.StreamWorld` streams
it as a world model, also for envs: `gym.make("VAP-DROID-v0", world_model=FOLDER)`.

- **Kept**: keys and values of words and anchor for good (the anchor is the attention sink), and of the last W frames
  in a ring. W is what the trained places hold: one place for the anchor, one for the new frame. Memory is the same
  after the first few frames and after 1,000.
- **Places**: what a frame sees is always within the trained range of rotary positions. Rotary positions tell
  differences only, so keys are turned once, when they are kept, and words and anchor are turned on with the stream;
  that equals counting the window's places anew, for less work. Positions that are added (learned, or sin-cos) stay at
  the last one.
- **Slots** may be at different depths, so vector envs reset one and planners branch one.
- **A frame costs** its evaluations (1 to 4) and one pass of the finished frame, which writes its keys. The ControlNet
  works once per frame (`control="once"`): it is shown the actions only, so its features hold for all evaluations. How
  good that is beside the paper's own (`"each"`) is not measured.
- **CogVideoX's codec** is 4× in time, so a step is a chunk of four actions: the env's action space is (4, A). Each
  new latent is decoded beside the two before it, which is not quite what decoding a whole clip gives. Streams of
  CogVideoX 1.5, whose tokens are of two latents, are refused. Words are those that the world was made with, not the
  env's task.
"""


def main(
    out: Path = Path("docs/streaming.md"),
    *,
    picture: Path = Path("docs/img/drift.png"),
    world: str = "tiny",
    device: str = "cpu",
    slots: tuple[int, ...] = (1, 16, 64),
    repeats: int = 5,
    episodes: int = 8,
    steps: int = 200,
    batch: int = 8,
    heldout: Path = Path("benchmarks/heldout.toml"),
) -> None:
    """Measure speed and drift, and write the page and the picture.

    Args:
        out, picture: What is written.
        world: Of the drift: a shipped model's name, or a checkpoint folder.
        device: Where the models run.
        slots: Batch sizes of the speed.
        repeats: Timed calls of each kind.
        episodes, steps, batch: Of the drift.
        heldout: The list of held-out episodes.
    """
    load = os.getloadavg()[0]
    rows = speed_rows(device, slots, repeats)
    imagination = build_stage("VAP-DROID-v0", world_model=world, device=device, judge=None).imagination
    psnr = drift(imagination, chosen(heldout, episodes), steps=steps, batch=batch)
    draw(psnr, picture, world)
    count, length = psnr["imagined"].shape
    half = 1.96 * (psnr["imagined"] - psnr["frozen"]).std(0, ddof=min(1, count - 1)) / np.sqrt(count)
    lines = [
        (str(t), *(f"{psnr[name][:, t - 1].mean():.1f}" for name in psnr),
         f"{(psnr['imagined'] - psnr['frozen'])[:, t - 1].mean():+.1f} ± {half[t - 1]:.1f}")
        for t in SHOWN if t <= length
    ]  # fmt: skip
    dtype = str(native_dtype(torch.device(device))).removeprefix("torch.")
    head = ("slots", "ms, an evaluation", "ms, 1 evaluation", "ms, 2", "ms, 1 and decoded", "frames/s", "MiB a slot")
    text = "\n\n".join(
        [
            ABOUT.strip(),
            f"## Speed\n\nThe `tiny` preset with random weights, {dtype}, 144 × 96 px: latent frames of 1 and 2 "
            "evaluations (the pass that writes keys in it), and with the decoder. By `benchmarks/streaming.py`: "
            f"least of {repeats} runs on {device} ({platform.machine()}, {torch.get_num_threads()} threads, load "
            f"{load:.1f} before).",
            report.table(head, rows),
            f"## Drift\n\nPSNR (dB) against the oracle's frames, `{world}`, {count} held-out episodes (seeds from "
            f"1,000,000 on) of {length} steps, mean over episodes; the difference with a 95 % interval. A frozen first "
            "frame gains on a model wherever little has moved.",
            report.table(("step", "imagined", "frozen", "difference"), lines),
            f"![drift]({os.path.relpath(picture, out.parent)})",
        ]
    )
    report.write(out, text)
    print(text)


if __name__ == "__main__":
    tyro.cli(main)
