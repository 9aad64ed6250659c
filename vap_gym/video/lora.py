"""LoRA on the main branch's attention (Sec. 3.3), attached, saved and merged by peft."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vap_gym.errors import CheckpointError, VapError, require
from vap_gym.video.network import VideoNetwork
from vap_gym.world.checkpoint import read_json, replaced_text

TARGETS = r"transformer\.base\.transformer_blocks\.\d+\.attn1\.(to_q|to_k|to_v|to_out\.0)"
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
ADAPTER = "default"
PREFIX = "base_model.model."  # what peft calls a model that it wraps
_WEIGHT = re.compile(r"\.lora_[AB]\.")


def _peft() -> Any:
    return require("peft", "peft", "LoRA")


def has_lora(network: VideoNetwork) -> bool:
    """Whether LoRA layers are attached."""
    return any(_WEIGHT.search(name) for name, _ in network.named_parameters())


def add_lora(network: VideoNetwork, *, rank: int = 128, alpha: int | None = None, seed: int = 0) -> None:
    """Attach LoRA to q, k, v and out of the main branch, in place; it starts at zero, so that nothing changes at first.

    Only LoRA's own weights are left trainable in the layers that it is attached to; see `train_branches`.

    Args:
        network: without LoRA.
        rank: of the corrections. alpha: their scale is alpha / rank; default: rank.
        seed: of its first weights.
    """
    if has_lora(network):
        raise VapError("LoRA is attached to this network already. Merge it first (`merge_lora`).")
    if rank < 1:
        raise VapError(f"LoRA's rank must be 1 or more, got {rank}. Try 16 for tiny, 128 for 5B.")
    peft = _peft()
    config = peft.LoraConfig(r=rank, lora_alpha=rank if alpha is None else alpha, target_modules=TARGETS)
    flags = {name: parameter.requires_grad for name, parameter in network.named_parameters()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(config, network, adapter_name=ADAPTER)
    for name, parameter in network.named_parameters():  # peft freezes all else: leave that to who trains
        if ".base_layer." not in name and not _WEIGHT.search(name):
            parameter.requires_grad_(flags[name])


def train_branches(network: VideoNetwork) -> list[str]:
    """Freeze the base and leave our branches and LoRA trainable (stage B); return the names of what is trainable."""
    trainable = []
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(not name.startswith("transformer.base.") or bool(_WEIGHT.search(name)))
        if parameter.requires_grad:
            trainable.append(name)
    return trainable


def plain_state(network: VideoNetwork) -> dict[str, Tensor]:
    """The weights under the names that they have without LoRA, LoRA's own left out."""
    return {
        name.replace(".base_layer.", "."): value
        for name, value in network.state_dict().items()
        if not _WEIGHT.search(name)
    }


def merge_lora(network: VideoNetwork) -> None:
    """Add LoRA's corrections to the weights and detach it, in place."""
    from peft.tuners.lora import LoraLayer

    for name, layer in list(network.named_modules()):
        if isinstance(layer, LoraLayer):
            layer.merge()
            parent, _, child = name.rpartition(".")
            setattr(network.get_submodule(parent), child, layer.get_base_layer())
    _forget(network)


def drop_lora(network: VideoNetwork) -> None:
    """Detach LoRA without using it, in place."""
    from peft.tuners.lora import LoraLayer

    for name, layer in list(network.named_modules()):
        if isinstance(layer, LoraLayer):
            parent, _, child = name.rpartition(".")
            setattr(network.get_submodule(parent), child, layer.get_base_layer())
    _forget(network)


def _forget(network: VideoNetwork) -> None:
    if "peft_config" in vars(network):
        delattr(network, "peft_config")


def save_lora(network: VideoNetwork, folder: str | Path) -> None:
    """Write LoRA as peft does: adapter_config.json and adapter_model.safetensors, for `PeftModel.from_pretrained`."""
    if not has_lora(network):
        raise VapError("There is no LoRA on this network to save. Attach one first (`add_lora`).")
    peft, folder = _peft(), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    found = peft.get_peft_model_state_dict(network, adapter_name=ADAPTER)
    tensors = {PREFIX + name.removeprefix(PREFIX): value.detach().cpu().contiguous() for name, value in found.items()}
    save_file(tensors, folder / f".{WEIGHTS}.tmp", metadata={"format": "pt"})
    (folder / f".{WEIGHTS}.tmp").replace(folder / WEIGHTS)
    settings = {
        name: sorted(value) if isinstance(value, set) else value
        for name, value in network.peft_config[ADAPTER].to_dict().items()
    }
    settings["inference_mode"] = True
    replaced_text(folder / CONFIG, json.dumps(settings, indent=2, sort_keys=True, default=str) + "\n")


def load_lora(network: VideoNetwork, folder: str | Path) -> None:
    """Attach LoRA that peft or `save_lora` wrote, in place.

    Raises:
        CheckpointError: files are missing or damaged, or a weight is missing, unexpected or of another shape.
    """
    if has_lora(network):
        raise VapError("LoRA is attached to this network already. Merge it first (`merge_lora`).")
    peft, folder = _peft(), Path(folder)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise CheckpointError(f"'{folder}' must hold {name}, but does not. Give a folder that peft has written.")
    settings = read_json(folder / CONFIG)
    if settings.get("peft_type") != "LORA":
        raise CheckpointError(f"'{folder}' must hold LoRA, but holds {settings.get('peft_type')}. Give another folder.")
    try:
        tensors = load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise CheckpointError(f"'{folder / WEIGHTS}' is no whole safetensors file: {error}. Fetch it again.") from error
    flags = {name: parameter.requires_grad for name, parameter in network.named_parameters()}
    try:
        config = peft.LoraConfig.from_pretrained(str(folder))
        peft.inject_adapter_in_model(config, network, adapter_name=ADAPTER)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"'{folder / CONFIG}' does not fit this network: {error}") from error
    for name, parameter in network.named_parameters():
        if name in flags:
            parameter.requires_grad_(flags[name])
    own = {
        PREFIX + name.removeprefix(PREFIX): value
        for name, value in peft.get_peft_model_state_dict(network, adapter_name=ADAPTER).items()
    }
    missing, extra = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    wrong = sorted(name for name in own.keys() & tensors.keys() if own[name].shape != tensors[name].shape)
    if missing or extra or wrong:
        drop_lora(network)
        raise CheckpointError(
            f"The LoRA of '{folder}' does not fit this network: missing {missing[:4] or 'none'}; unexpected "
            f"{extra[:4] or 'none'}; of another shape {wrong[:4] or 'none'}. Load it onto the base it was made for."
        )
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(tensors[name])
