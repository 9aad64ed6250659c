"""How fast variants of the tiny video model learn, per CPU second: stem or none, patch, residual. One thread.

    python benchmarks/video_variants.py data/droid_train --cpu-seconds 150

Every variant gets the same CPU time (not wall clock, so that a busy machine counts little), the same clips in the same
order, and is scored on the same held-out clips, with the running average of its weights.
"""

from __future__ import annotations

import dataclasses
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vap_gym.train.run import Ema, autocast, seeded
from vap_gym.train.video import inputs_of, load_sets
from vap_gym.train.video_data import Batch, ClipBatches
from vap_gym.train.video_loss import Inputs, clip_loss, noise_of
from vap_gym.train.video_parts import build_network, load_codec
from vap_gym.train.video_recipe import VideoRecipe
from vap_gym.train.video_score import score
from vap_gym.train.video_state import Averaged
from vap_gym.train.video_text import TextOf
from vap_gym.video.network import VideoNetwork

PURE = {"in_channels": 16, "out_channels": 8, "sample_width": 36, "sample_height": 24}
VARIANTS: dict[str, dict[str, Any]] = {
    "stem 64, residual (preset)": {},
    "stem 64, no residual": {"residual": False},
    "stem 32, residual": {"stem_width": 32, "base_config": {"in_channels": 64, "out_channels": 64}},
    "pure, patch 4, residual": {"stem_width": 0, "base_config": {**PURE, "patch_size": 4}},
    "pure, patch 2, residual": {"stem_width": 0, "base_config": {**PURE, "patch_size": 2}},
    "stem 64, residual, 3 layers": {"control_layers": 1, "base_config": {"num_layers": 3}},
}


def main(
    data: str,
    *,
    codec: str = "vap_gym/weights/tiny/codec",
    episodes: int = 40,
    held_out: int = 8,
    cpu_seconds: float = 150.0,
    batch_size: int = 8,
    learning_rate: float = 1e-3,
    only: str = "",
    cache: str = "runs/cache",
    out: Path = Path("out"),
) -> None:
    """Train every variant (or those whose name has `only` in it) for a time and print one JSON line for each.

    Strips of what each imagines go into the folder `out`.
    """
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    common = VideoRecipe(
        data=[{"path": data, "episodes": episodes + held_out, "held_out": held_out, "max_stride": 3}],
        codec=codec, steps=1, batch_size=batch_size, score_clips=8, cache=cache,
    )  # fmt: skip
    place = torch.device("cpu")
    decoder = load_codec(codec, place)
    train, held = load_sets(common, decoder, place)
    for name, model in VARIANTS.items():
        if only not in name:
            continue
        recipe = dataclasses.replace(common, model=model)
        network = build_network(recipe, decoder)
        text_of = TextOf(network, recipe, [one.source.episodes for one in train])
        noise = noise_of(network.settings, pure_noise=0.5, snr_shift_scale=1.0)
        optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=0.01, fused=True)
        ema, rng = Ema(network, 0.98), seeded(0)
        batches = ClipBatches(train, batch_size=batch_size)
        began, step, losses = time.process_time(), 0, []
        while (spent := time.process_time() - began) < cpu_seconds:
            rate = learning_rate * min(1.0, (step + 1) / 10, 4 * (1 - spent / cpu_seconds) + 0.02)
            for group in optimizer.param_groups:
                group["lr"] = rate
            with autocast(place):
                value = clip_loss(network, _inputs(network, text_of, batches[step]), noise, rng)
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            ema.update(network, step)
            losses.append(float(value.detach()))
            step += 1
        with Averaged(network, ema), autocast(place):
            shown = out / f"variant_{name.replace(' ', '_').replace(',', '')}.png"
            inputs = partial(_inputs, network, text_of)
            scores = score(network, decoder, held, inputs, clips=8, evaluations=1, picture=shown)
        row = {"variant": name, "parameters_m": sum(p.numel() for p in network.parameters()) / 1e6, "steps": step}
        row |= {"clips_per_cpu_s": step * batch_size / cpu_seconds, "loss": sum(losses[-10:]) / len(losses[-10:])}
        print(
            json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in (row | scores).items()}), flush=True
        )


def _inputs(network: VideoNetwork, text_of: TextOf, batch: Batch) -> Inputs:
    return inputs_of(network, batch, text_of, torch.device("cpu"))


if __name__ == "__main__":
    import tyro

    tyro.cli(main, config=(tyro.conf.PositionalRequiredArgs,))
