"""The loop that all trainings share: AdamW, a schedule, an average of the weights, a log, and exact resumption."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from vap_gym.train.run import Ema, Run, Schedule, mean

MAX_GRADIENT = 1.0
ModelT = TypeVar("ModelT", bound=ModelMixin)


@runtime_checkable
class Recipe(Protocol):
    """What the loop needs of a recipe (a dataclass)."""

    @property
    def steps(self) -> int:
        """Steps of the optimiser."""

    @property
    def batch_size(self) -> int:
        """Samples of a step."""

    @property
    def ema_decay(self) -> float:
        """Of the average that is scored and kept."""

    @property
    def log_every(self) -> int:
        """Steps between two lines of the log."""

    @property
    def save_every(self) -> int:
        """Steps between two scores, and saved states."""


@runtime_checkable
class Memory(Protocol):
    """What else than weights a training remembers from step to step."""

    def state(self) -> dict[str, Any]:
        """Return all that a resumed run needs."""

    def restore(self, state: dict[str, Any]) -> None:
        """Take up a saved state."""


def fit(
    run: Run,
    model: ModelT,
    settings: Recipe,
    *,
    name: str,
    loss: Callable[[int], Tensor],
    score: Callable[[ModelT], Mapping[str, float]],
    schedule: Schedule,
    rng: torch.Generator,
    weight_decay: float,
    memory: Memory | None = None,
) -> dict[str, Any]:
    """Train `model` for the recipe's steps, from where the run's saved state is, if there is one; return `run.told()`.

    Args:
        run: the folder: gets `log.jsonl`, `curves.png`, `state.pt`, and the averaged model in `model`.
        loss: of the step with a given number; may draw from `rng` and change `memory`.
        score: figures of the averaged model on held-out data; may write sample pictures.
        rng: the only source of chance.
        weight_decay: of matrices and kernels; other parameters have none.
        memory: saved and restored beside the weights.
    """
    optimizer = torch.optim.AdamW(_groups(model, weight_decay), lr=0.0, betas=(0.9, 0.98), fused=True)
    ema, first = Ema(model, settings.ema_decay), 0
    saved = run.load()
    if saved is not None:
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        ema.shadow, first = {k: v.to(model.device) for k, v in saved["ema"].items()}, saved["step"]
        rng.set_state(saved["rng"])
        if memory is not None:
            memory.restore(saved["memory"])
    losses: list[Tensor] = []
    since = time.monotonic()
    for step in range(first, settings.steps):
        value = loss(step)
        for group in optimizer.param_groups:
            group["lr"] = schedule(step)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT)
        optimizer.step()
        ema.update(model, step)
        losses.append(value.detach())
        done = step + 1
        if done % settings.log_every == 0:
            rate = settings.batch_size * len(losses) / (time.monotonic() - since)
            run.log(done, loss=mean(losses), learning_rate=schedule(step), samples_per_s=rate)
            print(f"{name} step {done}/{settings.steps} loss {mean(losses):.4f} {rate:.0f} samples/s", flush=True)
            losses, since = [], time.monotonic()
        if done % settings.save_every == 0 or done == settings.steps:
            averaged = _averaged(model, ema)
            scores = score(averaged)
            run.log(done, **scores)
            print(f"{name} step {done} " + " ".join(f"{k} {v:.3f}" for k, v in scores.items()), flush=True)
            run.draw_curves([("loss",), *_panels(scores)])
            averaged.save_pretrained(run.folder / "model")
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "ema": ema.shadow}
            recipe = asdict(settings) | {"batch_size": settings.batch_size}  # type: ignore[call-overload]
            state |= {"rng": rng.get_state(), "step": done, "recipe": recipe}
            run.save(state | {"memory": memory.state() if memory is not None else {}})
            since = time.monotonic()
    return run.told()


def _averaged(model: ModelT, ema: Ema) -> ModelT:
    averaged: ModelT = type(model).from_config(model.config)
    averaged.load_state_dict(model.state_dict())  # what is no parameter has no average
    ema.copy_into(averaged)
    return averaged.to(model.device, memory_format=torch.channels_last).eval()  # type: ignore[no-any-return]


def _groups(model: ModelMixin, weight_decay: float) -> list[dict[str, Any]]:
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _panels(scores: Mapping[str, float]) -> list[tuple[str, ...]]:
    """Scores in decibels, and the others, if there are any, apart."""
    decibels = tuple(name for name in scores if name.startswith("psnr"))
    others = tuple(name for name in scores if name not in decibels)
    return [panel for panel in (decibels, others) if panel]
