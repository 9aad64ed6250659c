"""CogVideoX-5B on one GPU: seconds and memory per chunk and per streamed latent, beside diffusers' own pipeline.

The exact configuration with random weights, made on the device in bfloat16 (speed does not depend on their values as
long as they are neither zeros nor NaN). Every finished row is kept in a JSON file beside the page, so that a run that
was cut off goes on where it was; `--minutes` begins no row later than that. Writes the table of its preset into the
page, between markers.

    python benchmarks/cogvideox_5b.py --preset cogvideox-5b --minutes 8   # again, until it says that all is done
    python benchmarks/cogvideox_5b.py --preset small-test                 # the same code, in seconds, on a CPU
    python benchmarks/cogvideox_5b.py --dry-run                           # rows and their arithmetic

Needs, beside this repository on PYTHONPATH: torch, diffusers, transformers, accelerate, peft, gymnasium, jaxtyping,
tensordict, scipy, tyro. No network, no weights, no torchvision.
"""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from cogvideox_5b_models import (
    DTYPE,
    FEW,
    PARTS,
    SIZES,
    Row,
    Run,
    Size,
    TinyDecoder,
    built,
    made_t5,
)
from diffusers import AutoencoderKLCogVideoX
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vap_gym.errors import VapError, unknown_name
from vap_gym.evaluate import report
from vap_gym.video.causal import CausalVideoNetwork
from vap_gym.video.network import VideoNetwork
from vap_gym.video.stream import Stream
from vap_gym.world.devices import checked_device

NOT = "not measured"
HEADER = (
    "row",
    "s, median",
    "s, p95",
    "calls",
    "s, first call",
    "frames/s",
    "× stock",
    "GiB, peak",
    "TFLOP (arithmetic)",
)


def rows(size: Size) -> list[Row]:
    """Return all rows, those that share models beside each other, eager ones before compiled ones."""
    clip: dict[str, Any] = {"what": "clip", "frames": size.config.clip_frames}
    paper: dict[str, Any] = {**clip, "steps": size.steps, "guided": True}
    few: dict[str, Any] = {**clip, "part": "chunk", "steps": FEW}
    found = [Row(part="stock", decoder="vae", compiled=compiled, **paper) for compiled in (False, True)]
    ours = [("vae", "each"), ("vae", "once"), ("tiny", "each")]
    found += [Row(part="chunk", decoder=decoder, control=control, **paper) for decoder, control in ours]
    both = [(decoder, control) for decoder in ("vae", "tiny") for control in ("each", "once")]
    found += [Row(decoder=decoder, control=control, **few) for decoder, control in both]
    found += [Row(part="chunk", decoder="vae", compiled=True, **paper)]
    found += [Row(decoder=decoder, control=control, compiled=True, **few) for decoder, control in both]
    found += [Row(part="codec", what="first frame in", frames=1)]
    found += [Row(part="codec", decoder=name, **{**clip, "what": f"clip out, {name}"}) for name in ("vae", "tiny")]
    found += [Row(part="text", what="T5, two instructions", frames=0)]
    if size.config.group == 1:  # streams of CogVideoX 1.5 are refused by the package
        latent: dict[str, Any] = {"part": "stream", "what": "latent", "frames": size.config.time_stride}
        for decoder in ("none", "vae", "tiny"):
            found += [Row(steps=n, decoder=decoder, control="once", **latent) for n in (1, 2, 4)]
        found += [Row(steps=n, control="each", **latent) for n in (1, 2, 4)]
    return found


# --- arithmetic ---


@torch.no_grad()
def work(size: Size) -> dict[str, float]:
    """Count the multiply-adds of every row, twice (TFLOP), on torch's meta device: nothing is computed.

    Pieces are counted and put together; what is not a product of matrices or a convolution counts as nothing.
    """
    meta, config = torch.device("meta"), size.config
    base, (width, height) = config.base_config, config.frame_size_px
    frames, group = config.latent_frames(config.clip_frames), config.group
    shape = (config.latent_channels, height // config.space_stride, width // config.space_stride)

    def zeros(*sizes: int) -> Tensor:
        return torch.zeros(sizes, device=meta, dtype=DTYPE)

    def counted(call: Any) -> float:
        with FlopCounterMode(display=False) as counter:
            call()
        return counter.get_total_flops() / 1e12

    network = built(meta, lambda: CausalVideoNetwork(**config.to_dict()))
    vae: Any = built(meta, lambda: AutoencoderKLCogVideoX(**size.vae))
    tiny = built(meta, lambda: TinyDecoder(config.latent_channels, size.tiny))
    words = zeros(1, base["max_text_seq_length"], base["text_embed_dim"])
    clip = zeros(1, -(-frames // group) * group, *shape)
    action = zeros(1, clip.shape[1], config.action_channels, *shape[1:])

    def evaluated(control: bool) -> float:
        own = network.transformer._control
        if not control:
            network.transformer._control = lambda *given: []
        try:
            return counted(lambda: VideoNetwork.forward(network, clip, clip, zeros(1), action=action, text=words))
        finally:
            network.transformer._control = own

    merge = network.transformer.merge
    main, whole = evaluated(False), evaluated(True)
    stock = main - 2e-12 * merge.weight.numel() * clip.shape[1] // group * _tokens(size)
    moves = counted(lambda: network.encode_prompts(zeros(1, config.clip_frames, 3, height, width)))
    encode = counted(lambda: vae.encode(zeros(1, 3, 1, height, width)))
    decode = {
        "none": 0.0,
        "vae": counted(lambda: vae.decode(zeros(1, config.latent_channels, frames, *shape[1:]))),
        "tiny": counted(lambda: tiny(zeros(1, frames, *shape))),
    }
    if group == 1:
        latent = {
            "none": 0.0,
            "vae": counted(lambda: vae.decoder(zeros(1, config.latent_channels, 3, *shape[1:]))),
            "tiny": decode["tiny"] / frames,
        }
        streamed = {}
        next_prompts = zeros(1, config.time_stride, 3, height, width)
        for control in ("once", "each"):
            stream = Stream(network, control=control)
            memory = stream.begin(zeros(1, *shape), zeros(1, 1, 3, height, width), text=words)
            one, two = (counted(partial(_streamed, stream, memory, next_prompts, n)) for n in (1, 2))
            streamed[control] = (one, two - one)
    found = {}
    for row in rows(size):
        batch = 2 if row.guided else 1
        if row.part == "stock":
            found[row.key] = batch * row.steps * stock + encode + decode[row.decoder]
        elif row.part == "chunk":
            controls = row.steps if row.control == "each" else 1
            each = row.steps * main + controls * (whole - main)
            found[row.key] = batch * each + moves + encode + decode[row.decoder]
        elif row.part == "codec":
            found[row.key] = encode if row.decoder == "none" else decode[row.decoder]
        elif row.part == "text":
            encoder = built(meta, lambda: made_t5(size))
            ids = torch.zeros(2, base["max_text_seq_length"], dtype=torch.int64, device=meta)
            found[row.key] = counted(lambda encoder=encoder, ids=ids: encoder(ids))
        else:
            one, more = streamed[row.control]
            found[row.key] = one + (row.steps - 1) * more + latent[row.decoder]
    return found


def _streamed(stream: Stream, memory: dict[str, Tensor], prompts: Tensor, evaluations: int) -> None:
    """One latent more, on the meta device."""
    stream.advance(memory, prompts, lambda i: torch.zeros_like(memory["anchor"]), evaluations=evaluations)


def _tokens(size: Size) -> int:
    """Tokens of one frame."""
    patch = size.config.space_stride * size.config.base_config.get("patch_size", 2)
    return (size.config.frame_size_px[0] // patch) * (size.config.frame_size_px[1] // patch)


# --- measuring ---


def measure(row: Row, run: Run, *, repeats: int, device: torch.device) -> dict[str, Any]:
    """Time calls of a row after two for warming up (of two evaluations, where a call has many)."""
    few = min(row.steps, 2) if row.part != "stream" else row.steps

    def timed(steps: int) -> tuple[float, Tensor]:
        begin = time.perf_counter()
        made = run(steps)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - begin, made

    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    first = timed(few)[0]  # with compilation, where there is some
    timed(few)
    spent, made = [], None
    for _ in range(repeats):
        seconds, made = timed(row.steps)
        spent.append(seconds)
    assert made is not None
    peak = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None
    sound = bool(made.float().isfinite().all()) and float(made.float().std()) > 0.0
    return {"seconds": spent, "first_s": first, "peak_gib": peak, "sound": sound}


def measured(size: Size, pending: list[Row], repeats: tuple[int, int], device: torch.device) -> Iterator[Any]:
    """Yield rows of one part with what was measured, one by one; their models are gone afterwards."""
    open_rows = list(pending)
    short, long = repeats
    try:
        for row, run in PARTS[pending[0].part](size, pending, device):
            open_rows.remove(row)
            try:
                yield row, measure(row, run, repeats=long if row.guided else short, device=device)
            except torch.OutOfMemoryError:
                yield row, {"error": "out of memory"}
    except torch.OutOfMemoryError:  # while models were made
        yield from [(row, {"error": "out of memory"}) for row in open_rows]


def made_on(device: torch.device) -> dict[str, str]:
    """On what a row was measured."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "machine": report.machine(str(device)),
        "diffusers": diffusers.__version__,
        "commit": report.commit(),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
    }


def read(path: Path) -> dict[str, Any]:
    """Rows that were measured, by preset and key."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise VapError(f"'{path}' must be JSON of measured rows, got {error}. Mend it, or remove it.") from error
    return dict(found)


# --- the page ---


def page_rows(wanted: list[Row], found: dict[str, Any], flops: dict[str, float]) -> list[tuple[str, ...]]:
    """The cells of HEADER for every row, "not measured" where there is nothing."""
    cells = []
    stock = next((found[r.key] for r in wanted if r.part == "stock" and "seconds" in found.get(r.key, {})), None)
    for row in wanted:
        got = found.get(row.key, {})
        tera = f"{flops[row.key]:,.3g}" if flops[row.key] < 1000 else f"{flops[row.key]:,.0f}"
        if "seconds" not in got:
            cells.append((row.key, got.get("error", NOT), *[""] * 6, tera))
            continue
        middle, late = (float(np.percentile(got["seconds"], share)) for share in (50, 95))
        ratio = ""
        if stock is not None and row.part in ("stock", "chunk") and stock["device"] == got["device"]:
            ratio = f"{float(np.median(stock['seconds'])) / middle:.3g}"
        peak = "–" if got["peak_gib"] is None else f"{got['peak_gib']:.1f}"
        rate = f"{row.frames / middle:.3g}" if row.frames else ""
        cells.append(
            (
                row.key,
                f"{middle:.3g}",
                f"{late:.3g}",
                str(len(got["seconds"])),
                f"{got['first_s']:.3g}",
                rate,
                ratio,
                peak,
                tera,
            )
        )
    return cells


def write_page(out: Path, name: str, wanted: list[Row], found: dict[str, Any], flops: dict[str, float]) -> None:
    """Put a preset's table between its markers, at the end of the page where there are none yet."""
    begin, end = f"<!-- {name}: measured -->", f"<!-- {name}: end -->"
    done = [found[row.key] for row in wanted if row.key in found]
    runs = sorted({f"{d['machine']}, diffusers {d['diffusers']}. Commit {d['commit']}, {d['date']}." for d in done})
    said = "\n\n".join(f"Measured on {run}" for run in runs) or "No row has been measured yet."
    text = f"{begin}\n\n{report.table(HEADER, page_rows(wanted, found, flops))}\n\n{said}\n\n{end}"
    page = out.read_text(encoding="utf-8") if out.is_file() else "# CogVideoX-5B on a GPU\n"
    if begin in page and end in page:
        page = page[: page.index(begin)] + text + page[page.index(end) + len(end) :]
    else:
        page = f"{page.rstrip()}\n\n## {name}\n\n{text}\n"
    report.write(out, page)


def main(
    *,
    preset: str = "cogvideox-5b",
    out: Path | None = None,
    device: str | None = None,
    only: tuple[str, ...] = (),
    repeats: int = 5,
    long_repeats: int = 3,
    minutes: float | None = None,
    again: bool = False,
    dry_run: bool = False,
    table_only: bool = False,
) -> int:
    """Measure the rows that are not there yet, and write the table; return how many are still missing.

    Args:
        preset: cogvideox-5b, cogvideox-1.5-5b, or small-test.
        out: The page; the rows go beside it, as JSON. Default: docs/cogvideox_5b.md, of small-test under out/.
        device: Where the models run. Default: cuda, of small-test cpu.
        only: Parts (stock, chunk, codec, text, stream) or whole names of rows. Default: all.
        repeats: Timed calls of a row.
        long_repeats: The same for rows of the paper's number of steps.
        minutes: No row is begun later than this after the start.
        again: Measure rows that are there already, too.
        dry_run: List the rows and their arithmetic, and do nothing.
        table_only: Write the table from the rows that are there, and measure nothing.
    """
    begin = time.monotonic()
    if preset not in SIZES:
        raise unknown_name("preset to measure", preset, SIZES)
    if min(repeats, long_repeats) < 1:
        raise VapError(f"repeats must be 1 or more, got {repeats} and {long_repeats}. The defaults are 5 and 3.")
    size = SIZES[preset]()
    wanted = rows(size)
    for name in only:
        if name not in PARTS and name not in [row.key for row in wanted]:
            raise unknown_name("part or row", name, [*PARTS, *[row.key for row in wanted]])
    out = out or Path("out" if preset == "small-test" else "docs") / "cogvideox_5b.md"
    kept = out.with_suffix(".json")
    book = read(kept)
    mine = book.setdefault(preset, {"flops": {}, "rows": {}})
    if set(mine["flops"]) != {row.key for row in wanted}:
        mine["flops"] = work(size)
    if dry_run:
        listed = [(row.key, f"{mine['flops'][row.key]:.4g}") for row in wanted]
        print(report.table(("row", "TFLOP (arithmetic)"), listed))
        return len(wanted)
    if not table_only:
        where = checked_device(device or ("cpu" if preset == "small-test" else "cuda"))
        host = made_on(where)
        asked = [row for row in wanted if not only or row.part in only or row.key in only]
        open_rows = [r for r in asked if again or mine["rows"].get(r.key, {}).get("device") != host["device"]]
        for part in PARTS:
            pending = [row for row in open_rows if row.part == part]
            if not pending or _late(begin, minutes):
                continue
            for row, got in measured(size, pending, (repeats, long_repeats), where):
                mine["rows"][row.key] = got | host
                report.write(kept, json.dumps(book, indent=1))
                write_page(out, preset, wanted, mine["rows"], mine["flops"])
                print(f"{time.monotonic() - begin:.0f} s, {row.key}: {got.get('seconds', 'out of memory')}", flush=True)
                if _late(begin, minutes):
                    break
            gc.collect()
            if where.type == "cuda":
                torch.cuda.empty_cache()
    report.write(kept, json.dumps(book, indent=1))
    write_page(out, preset, wanted, mine["rows"], mine["flops"])
    left = len([row for row in wanted if row.key not in mine["rows"]])
    print(f"{out}: {len(wanted) - left} of {len(wanted)} rows measured" + ("; run it again" if left else ""))
    return left


def _late(begin: float, minutes: float | None) -> bool:
    return minutes is not None and time.monotonic() - begin > 60 * minutes


if __name__ == "__main__":
    import tyro

    try:
        tyro.cli(main)
    except VapError as error:
        raise SystemExit(f"error: {error}") from error
