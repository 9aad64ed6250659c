"""What a training of the video model resumes from: one file for one process (or copies of one), shards with FSDP."""

from __future__ import annotations

import shutil
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vap_gym.errors import CheckpointError
from vap_gym.train.run import Ema, Run
from vap_gym.train.video_recipe import VideoRecipe

MAY_CHANGE = ("steps", "save_every", "log_every", "workers", "score_clips", "cache", "evaluations")
"""Keys of a recipe that a run may go on with changed: how far it goes, what it writes, where it keeps things."""


def save_state(accelerator: Any, run: Run, parts: dict[str, Any], *, step: int, recipe: VideoRecipe) -> None:
    """Write all that a resumed run needs under a temporary name, and put it in place."""
    meta = {"step": step, "recipe": asdict(recipe), "processes": accelerator.num_processes}
    model, optimizer, ema = parts["model"], parts["optimizer"], parts["ema"]
    if not sharded(accelerator):
        if accelerator.is_main_process:
            weights = accelerator.unwrap_model(model).state_dict()
            run.save(meta | {"model": weights, "optimizer": optimizer.state_dict(), "ema": ema.shadow})
        accelerator.wait_for_everyone()
        return
    from torch.distributed.checkpoint.state_dict_saver import save

    folder = run.folder / f"state-{step:08d}"
    temporary = folder.with_name(f".{folder.name}.tmp")
    save(_shards(model, optimizer, ema), checkpoint_id=temporary)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        shutil.rmtree(folder, ignore_errors=True)  # of a run that died between this and the next line
        temporary.rename(folder)
        run.save(meta | {"folder": folder.name})  # from here on it is the state
        for old in run.folder.glob("state-*"):
            if old.is_dir() and old != folder:
                shutil.rmtree(old)
    accelerator.wait_for_everyone()


def load_state(accelerator: Any, run: Run, parts: dict[str, Any], *, recipe: VideoRecipe) -> int:
    """Take up the saved state, if there is one; return the step to go on with.

    Keys that the recipe did not have yet when the run was begun count as left out then: they had their defaults.

    Raises:
        CheckpointError: it is of another recipe, or of another number of processes.
    """
    state = run.load() if accelerator.is_main_process else _quiet(run)
    if state is None:
        return 0
    given, now = _defaults() | state["recipe"], asdict(recipe)
    other = [key for key in now if key not in MAY_CHANGE and now[key] != given[key]]
    if other:
        told = ", ".join(f"{key} = {given[key]!r} there, {now[key]!r} in the recipe" for key in other[:3])
        raise CheckpointError(
            f"The run '{run.folder}' must go on with its own recipe, got others: {told}. Undo the change, or begin "
            "another run with init."
        )
    if state["processes"] != accelerator.num_processes:
        raise CheckpointError(
            f"The run '{run.folder}' was begun by {state['processes']} processes, got {accelerator.num_processes} now: "
            "its batches would be others. Start as many."
        )
    model, optimizer, ema = parts["model"], parts["optimizer"], parts["ema"]
    if not sharded(accelerator):
        accelerator.unwrap_model(model).load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        for name, value in state["ema"].items():
            ema.shadow[name].copy_(value)
        return int(state["step"])
    from torch.distributed.checkpoint.state_dict import set_state_dict
    from torch.distributed.checkpoint.state_dict_loader import load

    shards = _shards(model, optimizer, ema)
    load(shards, checkpoint_id=run.folder / state["folder"])
    set_state_dict(model, optimizer, model_state_dict=shards["model"], optim_state_dict=shards["optimizer"])
    return int(state["step"])


class Averaged:
    """Puts the averaged weights into the model for as long as it is entered."""

    def __init__(self, model: torch.nn.Module, ema: Ema) -> None:
        self._parameters, self._ema = dict(model.named_parameters()), ema
        self._kept: dict[str, Tensor] = {}

    @torch.no_grad()
    def __enter__(self) -> None:
        self._kept = {n: self._parameters[n].detach().clone() for n in self._ema.shadow}
        for name, value in self._ema.shadow.items():
            self._parameters[name].copy_(value)

    @torch.no_grad()
    def __exit__(self, *_: object) -> None:
        for name, value in self._kept.items():
            self._parameters[name].copy_(value)
        self._kept = {}


def _defaults() -> dict[str, Any]:
    """What a recipe says where it leaves a key out; keys that it must not leave out have been there ever since."""
    made = {f.name: f.default_factory() for f in fields(VideoRecipe) if f.default_factory is not MISSING}
    return made | {f.name: f.default for f in fields(VideoRecipe) if f.default is not MISSING}


def sharded(accelerator: Any) -> bool:
    """Whether weights are in shards (FSDP), not in copies."""
    return str(accelerator.distributed_type).endswith("FSDP")


def _shards(model: torch.nn.Module, optimizer: Any, ema: Ema) -> dict[str, Any]:
    from torch.distributed.checkpoint.state_dict import get_state_dict

    weights, moments = get_state_dict(model, optimizer)
    return {"model": weights, "optimizer": moments, "ema": ema.shadow}


def _quiet(run: Run) -> dict[str, Any] | None:
    """The state, for processes that do not write the log."""
    path: Path = run.folder / "state.pt"
    state: dict[str, Any] | None = torch.load(path, map_location="cpu", weights_only=False) if path.exists() else None
    return state
