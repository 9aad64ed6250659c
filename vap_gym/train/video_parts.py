"""What a training of the video model starts from: codec, network with the weights of earlier runs, what is trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLCogVideoX
from jaxtyping import Float32, UInt8
from torch import Tensor

from vap_gym.errors import CheckpointError
from vap_gym.train.run import autocast, initialised_with
from vap_gym.train.video_cache import Encode
from vap_gym.train.video_loss import v_scheduler
from vap_gym.train.video_recipe import VideoRecipe
from vap_gym.video.clips import ClipCodec, check_codec, encode_clip, pictures_of
from vap_gym.video.lora import add_lora, has_lora, plain_state
from vap_gym.video.network import VideoNetwork
from vap_gym.video.pretrained import load_parts, save_parts
from vap_gym.video.text import TextSource
from vap_gym.world.codec import FrameCodec


def load_codec(folder: str, place: torch.device) -> ClipCodec:
    """Load a codec of ours or CogVideoX's VAE, frozen. Raises CheckpointError where there is none."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise CheckpointError(
            f"The codec's folder '{folder}' must hold config.json and weights, got none. Train one: vap-gym train "
            "codec, or name the `vae` folder of a CogVideoX download."
        )
    kind = FrameCodec if "FrameCodec" in str(json.loads(path.read_text())["_class_name"]) else AutoencoderKLCogVideoX
    codec = kind.from_pretrained(folder, torch_dtype=torch.float32).eval().requires_grad_(False).to(place)
    return codec.to(memory_format=torch.channels_last) if kind is FrameCodec else codec


def encoder(codec: ClipCodec, place: torch.device) -> Encode:
    """The function that caches are filled with: frames of an episode (or a clip) → their latents."""

    @torch.no_grad()
    def encode(frames: UInt8[np.ndarray, "T H W 3"]) -> Float32[np.ndarray, "F C h w"]:
        pictures = pictures_of(torch.from_numpy(np.ascontiguousarray(frames)), torch.float32).to(place)
        with autocast(place):
            latents = encode_clip(codec, pictures[None])[0]
        return latents.float().cpu().numpy()

    return encode


def build_network(recipe: VideoRecipe, codec: ClipCodec) -> VideoNetwork:
    """Return the network of a recipe with the weights it starts from; only what is to be trained takes gradients.

    Raises:
        CheckpointError: weights of an earlier run that do not fit.
    """
    settings = recipe.settings
    check_codec(
        codec, time_stride=settings.time_stride, space_stride=settings.space_stride,
        latent_channels=settings.latent_channels,
    )  # fmt: skip
    kind: type[VideoNetwork] = VideoNetwork
    if recipe.forcing != "none":
        from vap_gym.video.causal import CausalVideoNetwork

        kind = CausalVideoNetwork
    with initialised_with(recipe.seed):
        network = kind.of(settings)
    brought: set[str] = set()
    if recipe.base:
        brought = _take(network, recipe.base, may_lack=("trajectory.", "embed_states.", "stem.action", "transformer."))
        network.transformer.copy_base_into_control()
    elif recipe.init:
        brought = _take(network, recipe.init, may_lack=("trajectory.", "embed_states."))
    if recipe.lora_rank:
        add_lora(network, rank=recipe.lora_rank, seed=recipe.seed)
    if recipe.parts == "branches":
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(".lora_" in name or not is_base(name.replace(".base_layer.", "."), brought))
    return network


def is_base(name: str, brought: set[str]) -> bool:
    """Whether a weight belongs to the image-to-video base: brought by a run, and of no branch that actions come by."""
    ours = (
        "trajectory.",
        "embed_states.",
        "stem.action",
        "transformer.control",
        "transformer.merge",
        "transformer.action",
    )
    return name in brought and not name.startswith(ours)


def model_folder(run: str) -> str | Path:
    """Where a run keeps its model; what is no run stands for itself (a model's folder, or a hub id)."""
    return Path(run) / "model" if (Path(run) / "model").is_dir() else run


def save_model(
    network: VideoNetwork,
    codec: ClipCodec,
    weights: dict[str, Tensor],
    folder: Path,
    *,
    snr_shift_scale: float = 1.0,
    text: TextSource | None = None,
) -> None:
    """Write a `VideoModel` with LoRA merged, so that it is loaded like one that never had any; whole or not at all.

    `weights` are written in their own dtype, from where they are: no second network is made of them. `text` is written
    where it holds embeddings: that of the empty instruction is what the model was shown where words were left out.
    """
    scheduler = v_scheduler(snr_shift_scale=snr_shift_scale) if network.settings.prediction == "v" else None
    temporary, old = (folder.with_name(f".{folder.name}.{end}") for end in ("tmp", "old"))
    for path in (temporary, old):
        shutil.rmtree(path, ignore_errors=True)
    save_parts(temporary, network, merged(network, weights), codec, scheduler=scheduler, text=text)
    if folder.exists():
        folder.rename(old)
    temporary.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def merged(network: VideoNetwork, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights under their plain names, LoRA's corrections added."""
    if not has_lora(network):
        return weights
    plain = {n.replace(".base_layer.", "."): w.clone() for n, w in weights.items() if ".lora_" not in n}
    for name, down in weights.items():
        if ".lora_A." in name:
            layer = network.get_submodule(name.split(".lora_A.")[0])
            scale = float(layer.scaling["default"])
            plain[f"{name.split('.lora_A.')[0]}.weight"] += scale * weights[name.replace("lora_A", "lora_B")] @ down
    return plain


def _take(network: VideoNetwork, run: str, *, may_lack: tuple[str, ...]) -> set[str]:
    """Copy the weights of a run or of CogVideoX; return the names of those that were there."""
    parts = load_parts(model_folder(run), condition="none", control_layers=0, merge_actions=False)
    given = merged(parts.network, parts.network.state_dict())
    mine = plain_state(network)
    lacking = [n for n in mine if n not in given or given[n].shape != mine[n].shape]
    bad = [n for n in lacking if not n.startswith(may_lack) or n.startswith("transformer.base.")]
    extra = [n for n in given if n not in mine and not n.startswith(("trajectory.", "embed_states."))]
    if bad or extra:
        raise CheckpointError(
            f"The weights of '{run}' must fit the recipe's model, got {len(bad)} missing or of another shape "
            f"({', '.join(bad[:3]) or 'none'}) and {len(extra)} too many ({', '.join(extra[:3]) or 'none'}). Use the "
            "same preset and [model] settings, up to the condition."
        )
    brought = {n: w for n, w in given.items() if n in mine and n not in lacking}
    network.load_state_dict(brought, strict=False)
    return set(brought)
