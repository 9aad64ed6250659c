"""Train the video model: image-to-video base, then control and LoRA on it, or all of it, on one or many processes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from vap_gym.errors import CardError
from vap_gym.train.run import Ema, Run, Schedule, cpu_has_bf16, load_recipe, seeded
from vap_gym.train.video_cache import sha256_of
from vap_gym.train.video_data import Batch, ClipBatches, VideoSet, dropped
from vap_gym.train.video_loss import Inputs, noise_of, objective, without_some
from vap_gym.train.video_parts import build_network, encoder, load_codec, save_model
from vap_gym.train.video_recipe import VideoRecipe
from vap_gym.train.video_score import score
from vap_gym.train.video_state import Averaged, load_state, save_state, sharded
from vap_gym.train.video_text import TextOf
from vap_gym.video.clips import pictures_of
from vap_gym.video.network import VideoNetwork


def main(
    recipe: Path, *, out: Path = Path("runs/video"), resume: bool = False, device: str = "", threads: int = 0
) -> dict[str, Any]:
    """Train a video model. For several processes: accelerate launch -m vap_gym train video RECIPE

    Args:
        recipe: a TOML file, or the name of a shipped recipe, e.g. tiny_video_base.
        out: folder of the run: log, curves, sample strips, state, and the network in diffusers' layout.
        resume: go on with a run that was stopped, however; the result is the same as without the stop.
        device: cpu, or what accelerate finds where left out.
        threads: CPU threads; 0 leaves torch's choice.
    """
    if threads:
        torch.set_num_threads(threads)
    return train_video(load_recipe(VideoRecipe, recipe), out, resume=resume, device=device)


def train_video(recipe: VideoRecipe, out: Path, *, resume: bool = False, device: str = "") -> dict[str, Any]:
    """Train by a recipe, from where the saved state of the run is, if there is one; return `run.told()`.

    Every batch, its noise and what is left out follow from the recipe's seed, the step and the process's rank, so that
    nothing else than weights, moments and averages has to be kept.

    Raises:
        VapError: recipe, data, codec or an earlier run's weights do not fit; the run's folder is in use.
    """
    accelerator = _accelerator(recipe, device)
    is_main, rank, ranks = accelerator.is_main_process, accelerator.process_index, accelerator.num_processes
    if ranks > 1 and recipe.forcing == "rollout":
        raise CardError(
            f"forcing = 'rollout' goes through the network frame by frame and is for one process, got {ranks}. Start "
            "one, or use forcing = 'frames'."
        )
    if sharded(accelerator) and recipe.forcing != "none":
        raise CardError(
            f"forcing = '{recipe.forcing}' goes through the layers inside of blocks, which FSDP keeps in shards. Start "
            "copies on every process (torchrun), or use forcing = 'none'."
        )
    run = Run(out, resume=resume) if is_main else None
    accelerator.wait_for_everyone()
    run = run or Run(out, resume=True)
    codec = load_codec(recipe.codec, accelerator.device)
    network = build_network(recipe, codec)
    with accelerator.main_process_first():  # the first fills the caches, the others find them full
        train, held = load_sets(recipe, codec, accelerator.device)
    text_of = TextOf(network, recipe, [one.source.episodes for one in (*train, *held)], device=accelerator.device)
    if recipe.gradient_checkpointing:
        network.enable_gradient_checkpointing()
    trained = [p for p in network.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), fused=True)
    model, optimizer = accelerator.prepare(network, optimizer)
    plain: VideoNetwork = accelerator.unwrap_model(model, keep_fp32_wrapper=True)
    ema = Ema(plain, recipe.ema_decay)
    ema.shadow = {name: ema.shadow[name] for name, p in plain.named_parameters() if p.requires_grad}
    parts = {"model": model, "optimizer": optimizer, "ema": ema}
    first = load_state(accelerator, run, parts, recipe=recipe)
    noised = {"pure_noise": recipe.pure_noise, "snr_shift_scale": recipe.snr_shift_scale}
    noise = noise_of(plain.settings, **noised)
    loss_of, schedule = objective(recipe.forcing, **noised), _schedule(recipe)

    def inputs(batch: Batch) -> Inputs:
        return inputs_of(plain, batch, text_of, accelerator.device)

    clips = ClipBatches(train, batch_size=recipe.batch_size, rank=rank, ranks=ranks)
    batches = _batches(clips, recipe, first)
    losses: list[Tensor] = []
    since, cpu_since = time.monotonic(), time.process_time()
    for step in range(first, recipe.steps):
        model.train()
        for group in optimizer.param_groups:
            group["lr"] = schedule(step)
        optimizer.zero_grad(set_to_none=True)
        for part in range(recipe.accumulate):
            batch = next(batches)
            rng = _rng(recipe.seed, step * recipe.accumulate + part, rank)
            shares = {"prompt": recipe.prompt_dropout, "image": recipe.image_dropout, "text": recipe.text_dropout}
            drop = {
                what: dropped(recipe.seed, batch.index, share, number).to(accelerator.device)
                for number, (what, share) in enumerate(shares.items())
            }
            given = without_some(inputs(batch), drop, no_text=text_of([""]))
            with _syncing(accelerator, model, recipe, part):
                with accelerator.autocast():
                    value = loss_of(model, given, noise, rng) / recipe.accumulate
                accelerator.backward(value)
            losses.append(value.detach() * recipe.accumulate)
        accelerator.clip_grad_norm_(trained_of(model), recipe.max_gradient)
        optimizer.step()
        ema.update(plain, step)
        done = step + 1
        if done % recipe.log_every == 0:
            seconds, cpu = time.monotonic() - since, time.process_time() - cpu_since
            count = recipe.batch_size * len(losses) * ranks
            shown = float(accelerator.reduce(torch.stack(losses).float().mean(), "mean"))
            if is_main:
                figures = {"clips_per_s": count / seconds, "clips_per_cpu_s": count / max(cpu, 1e-9)}
                run.log(done, loss=shown, learning_rate=schedule(step), **figures)
                print(f"video step {done}/{recipe.steps} loss {shown:.4f} {count / seconds:.2f} clips/s", flush=True)
            losses, since, cpu_since = [], time.monotonic(), time.process_time()
        if done % recipe.save_every == 0 or done == recipe.steps:
            _save(accelerator, run, parts, recipe, done, codec=codec, held=held, inputs=inputs, text=text_of.empty)
            since, cpu_since = time.monotonic(), time.process_time()
    accelerator.end_training()
    return run.told()


def load_sets(recipe: VideoRecipe, codec: Any, place: torch.device) -> tuple[list[VideoSet], list[VideoSet]]:
    """Open the data sets, to train on and held out; what the caches lack is added."""
    encode, digest = encoder(codec, place), sha256_of(codec)
    both = []
    for held_out in (False, True):
        made = [
            VideoSet(
                one, recipe.clip_settings, cache=Path(recipe.cache), encode=encode, codec_sha256=digest,
                held_out=held_out,
            )
            for one in recipe.sets
        ]  # fmt: skip
        both.append(made)
    return both[0], both[1]


def trained_of(model: torch.nn.Module) -> list[Tensor]:
    """The parameters that take gradients."""
    return [p for p in model.parameters() if p.requires_grad]


def _accelerator(recipe: VideoRecipe, device: str) -> Any:
    from accelerate import Accelerator, DistributedDataParallelKwargs

    on_cpu = device == "cpu" or not torch.cuda.is_available()
    bf16 = recipe.bf16 and (not on_cpu or cpu_has_bf16())
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    return Accelerator(cpu=on_cpu, mixed_precision="bf16" if bf16 else "no", kwargs_handlers=[unused])


def _syncing(accelerator: Any, model: Any, recipe: VideoRecipe, part: int) -> Any:
    """Gradients are summed over processes at the last batch of a step only."""
    from contextlib import nullcontext

    return nullcontext() if part == recipe.accumulate - 1 else accelerator.no_sync(model)


def _schedule(recipe: VideoRecipe) -> Schedule:
    return Schedule(peak=recipe.learning_rate, steps=recipe.steps, warmup_steps=recipe.warmup_steps, decay=recipe.decay)


def _rng(seed: int, count: int, rank: int) -> torch.Generator:
    """The generator of one batch's noise."""
    return seeded(int(np.random.SeedSequence([seed, count, rank, 5]).generate_state(1, np.uint64)[0] >> 1))


def _batches(clips: ClipBatches, recipe: VideoRecipe, first: int) -> Iterator[Batch]:
    """The batches from a step on."""
    order = range(first * recipe.accumulate, recipe.steps * recipe.accumulate)
    loader = DataLoader(
        clips, batch_size=None, sampler=order, num_workers=recipe.workers, collate_fn=_same,
        generator=seeded(recipe.seed),
    )  # fmt: skip
    return iter(loader)


def _same(batch: Any) -> Any:
    return batch


def inputs_of(network: VideoNetwork, batch: Batch, text_of: TextOf, place: torch.device) -> Inputs:
    """A batch as the network takes it."""
    latents = batch.latents.to(place)
    said: dict[str, Any] = {}
    if batch.prompts is not None:
        said["prompts"] = pictures_of(batch.prompts.movedim(2, -1).to(place), torch.float32)
    if batch.states is not None:
        said["states"] = batch.states.to(place)
    if network.settings.intervals:
        said["interval"] = batch.interval.to(place)
    if (text := text_of(batch.tasks)) is not None:
        said["text"] = text.to(place)
    image = network.spread(latents[:, 0], latents.shape[1])
    return Inputs(latents=latents, image=image, weights=batch.weights.to(place), conditions=said)


def _save(accelerator: Any, run: Run, parts: dict[str, Any], recipe: VideoRecipe, done: int, **scored: Any) -> None:
    """Score the averaged model, write it, and write the state: last, since it says that all else is there."""
    model = parts["model"]
    plain = accelerator.unwrap_model(model, keep_fp32_wrapper=True)
    with Averaged(plain, parts["ema"]):
        model.eval()
        with accelerator.autocast():
            picture = run.folder / "samples.png" if accelerator.is_main_process else None
            scores = score(
                plain, scored["codec"], scored["held"], scored["inputs"], clips=recipe.score_clips,
                evaluations=recipe.evaluations, snr_shift_scale=recipe.snr_shift_scale, picture=picture,
            )  # fmt: skip
        weights = accelerator.get_state_dict(model)  # all of them, on the main process
        if accelerator.is_main_process:
            kept = {name: w.detach().cpu() for name, w in weights.items()}
            save_model(
                plain, scored["codec"], kept, run.folder / "model", snr_shift_scale=recipe.snr_shift_scale,
                text=scored["text"],
            )  # fmt: skip
    if accelerator.is_main_process:
        run.log(done, **scores)
        run.draw_curves([("loss",), tuple(k for k in scores if k.startswith("psnr")), ("clips_per_s",)])
        print(f"video step {done} " + " ".join(f"{k} {v:.3f}" for k, v in scores.items()), flush=True)
    save_state(accelerator, run, parts, step=done, recipe=recipe)
