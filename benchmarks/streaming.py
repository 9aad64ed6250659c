"""Streaming: what a frame costs by slots and evaluations, and how far a world model drifts over 200 steps.

    python benchmarks/streaming.py --worlds tiny rollout=runs/streams/rollout/model rollout,2=runs/streams/rollout/model
    python benchmarks/streaming.py … --keep --minutes 50    # go on, until nothing is left
    python benchmarks/streaming.py --from docs/streaming.json

Speed is of the `tiny` preset with random weights (it does not depend on their values), in the precision that the
device multiplies natively; the least of several runs, since other load only ever slows them down: measure on an idle
machine. Drift is of any world models, on held-out oracle episodes that are played on to `steps` frames: PSNR of every
step against the oracle's frame, beside that of the first frame kept and of the codec.

Rows of every world are kept beside the page as soon as they are there, with the digest of its weights: a run that was
cut off goes on with --keep, and page and picture can be made anew without measuring.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro

from vap_gym.assets import weights_dir
from vap_gym.cards import load_env
from vap_gym.errors import VapError
from vap_gym.evaluate import report
from vap_gym.evaluate.clips import fingerprint
from vap_gym.evaluate.drift import ENV, Streamed, Told, check_worlds, chosen, measure, read_worlds
from vap_gym.evaluate.drift_kept import Drift, draw, tables
from vap_gym.video.causal import CausalVideoNetwork
from vap_gym.video.presets import preset
from vap_gym.video.world import StreamWorld
from vap_gym.world.codec import FrameCodec
from vap_gym.world.devices import native_dtype

REPO = Path(__file__).resolve().parent.parent
EMPTY = "# Streaming\n\n<!-- streaming -->\n<!-- /streaming -->\n"  # a page
HEAD = ("slots", "ms, an evaluation", "ms, 1 evaluation", "ms, 2", "ms, 1 and decoded", "frames/s", "MiB a slot")


def main(
    page: Path = REPO / "docs" / "streaming.md",
    *,
    worlds: tuple[str, ...] = ("tiny",),
    device: str = "cpu",
    slots: tuple[int, ...] = (1, 16, 64),
    repeats: int = 5,
    episodes: int = 64,
    steps: int = 200,
    batch: int = 8,
    heldout: Path = REPO / "benchmarks" / "heldout.toml",
    cache: Path = Path("runs"),
    workers: int = 1,
    minutes: float = 0.0,
    keep: bool = False,
    forget: tuple[str, ...] = (),
    source: Annotated[Path | None, tyro.conf.arg(name="from")] = None,
) -> int:
    """Measure speed and drift, or what is left of them; write the page's figures and its picture. Returns what is left.

    Args:
        page: whose figures are written; the rows go beside it (streaming.json), the picture into img/drift.png.
        worlds: of the drift: shipped models' names, or NAME=FOLDER for checkpoints; NAME,N=FOLDER evaluates the network
            N times a frame.
        device: where the models run.
        slots: batch sizes of the speed.
        repeats: timed calls of each kind.
        episodes: of the drift, evenly from the list.
        steps: of every episode.
        batch: episodes that are imagined together, and kept together.
        heldout: the list of held-out episodes.
        cache: folder in which the oracle's episodes are kept between runs.
        workers: processes, each on its share of the cores.
        minutes: after so many nothing new is begun; 0: measure all.
        keep: go on from the rows beside the page.
        forget: worlds, as they are shown, whose rows are dropped and measured anew; "speed" for the speed.
        source: rows to make the page from, without measuring anything.
    """
    began, load = time.monotonic(), report.load_average()
    if source is not None:
        write(Drift.load(source), page)
        return 0
    streamed, items = read_worlds(worlds), chosen(heldout, episodes)
    settings = {"env": ENV, "episodes": len(items), "steps": steps, "dtype": str(native_dtype(torch.device(device))),
                "played": fingerprint(list(items), load_env(ENV).robot, steps)[:16]}  # fmt: skip
    kept, drift = page.with_suffix(".json"), Drift(settings)
    if page.with_suffix(".json").is_file():
        if not keep:
            raise VapError(f"'{kept}' holds rows already. Go on from them with --keep, or give another page.")
        drift = Drift.load(kept)
        drift.claim(settings)
    drift.forget(forget)
    for one in streamed:
        drift.claim_weights(one.name, one.digest)
    told = Told(items=items, steps=steps, batch=batch, cache=cache, device=device,
                threads=max(1, torch.get_num_threads() // workers))  # fmt: skip
    left = [
        (one, first)
        for first in range(0, len(items), batch)
        for one in streamed
        if not drift.has(one.name, range(first, first + len(told.part(first))))
    ]
    if left:
        check_worlds(streamed, device)
    run: dict[str, Any] = {"machine": report.machine(device), "workers": workers, "commit": report.commit(),
                           "date": f"{datetime.now(UTC):%Y-%m-%d}", "load": load, "minutes": 0.0}  # fmt: skip

    def late() -> bool:
        return minutes > 0 and time.monotonic() - began > 60 * minutes

    if drift.speed is None and not late():
        drift.speed = speed(device, slots, repeats, load)
        drift.save(kept)
    undone = len(left)
    for (one, first), psnr in measured(told, left, workers, late):
        drift.add(one.name, first, psnr)
        if run not in drift.runs:
            drift.runs.append(run)
        run["minutes"] = round((time.monotonic() - began) / 60, 1)
        drift.save(kept)
        undone -= 1
        print(f"{one.name}: episodes {first} to {first + len(psnr) - 1}; {undone} batches are left", flush=True)
    write(drift, page)
    if undone:
        print(f"{undone} of {len(left)} batches are left. Call it again with --keep.")
    return undone


def measured(
    told: Told, left: Sequence[tuple[Streamed, int]], workers: int, late: Callable[[], bool]
) -> Iterator[tuple[tuple[Streamed, int], np.ndarray]]:
    """Yield worlds and batches with their PSNR (dB), (N, K); the oracle's episodes are played first."""
    batches = sorted({first for _, first in left})
    jobs: list[tuple[Streamed | None, int]] = [*((None, first) for first in batches), *left]
    found = report.each(partial(measure, told), jobs, workers=workers, late=late)
    for (world, first), psnr in zip(jobs, found):
        if world is not None and psnr is not None:
            yield (world, first), psnr


def write(drift: Drift, page: Path) -> None:
    """Write what stands between the page's marks, and the picture, and print the figures."""
    picture = ""
    if drift.psnr():
        picture = "img/drift.png"
        draw(drift, page.parent / picture)
    text = tables(drift, picture)
    before = page.read_text(encoding="utf-8") if page.is_file() else EMPTY
    report.write(page, report.filled(before, "streaming", text))
    print(text)


def speed(device: str, slots: tuple[int, ...], repeats: int, load: str) -> dict[str, Any]:
    """Measure the `tiny` preset with random weights: a table, what it is of, and where it was measured."""
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
        memory = sum(value[0].numel() * value.element_size() for value in state.values())
        told = (latents[2] - latents[1], latents[1], latents[2], whole)
        rows.append([str(count), *(f"{x:.1f}" for x in told), f"{1e3 * count / whole:.0f}", f"{memory / 2**20:.1f}"])
    dtype = str(native_dtype(torch.device(device))).removeprefix("torch.")
    said = (
        f"The `tiny` preset with random weights, {dtype}, {width} × {height} px: latent frames of 1 and 2 evaluations "
        f"(the pass that writes keys in it), and with the decoder; least of {repeats} runs."
    )
    return {"said": said, "head": list(HEAD), "rows": rows, "stamp": report.stamp(device, load_before=load)}


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


if __name__ == "__main__":
    tyro.cli(main)
