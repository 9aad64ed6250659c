"""Where video models come from: shipped ones, folders of ours, and CogVideoX's own folders, here or on the hub."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXDDIMScheduler, CogVideoXDPMScheduler, CogVideoXTransformer3DModel
from torch import Tensor

from vap_gym.assets import weights_dir
from vap_gym.errors import CheckpointError, unknown_name
from vap_gym.video.loading import (
    check_digests,
    default_dtype,
    fill,
    hub_folder,
    load_module,
    read_config,
    save_module,
)
from vap_gym.video.lora import load_lora, save_lora
from vap_gym.video.network import VideoNetwork
from vap_gym.video.presets import HUB_IDS, RECIPES, VideoConfig
from vap_gym.video.sampler import Scheduler
from vap_gym.video.text import CachedText, T5Text, TextSource
from vap_gym.world.checkpoint import read_json, replaced_text
from vap_gym.world.codec import FrameCodec

OTHERS = {"WorldModel": "vap_gym.world.model.WorldModel", "StreamWorld": "vap_gym.video.world.StreamWorld"}
STOCK = "CogVideoXImageToVideoPipeline"
INDEX = "model_index.json"
CLASS = "VideoModel"
TEXT_CACHE = "text_cache.safetensors"
SCHEDULERS = {kind.__name__: kind for kind in (CogVideoXDDIMScheduler, CogVideoXDPMScheduler)}


class Parts(NamedTuple):
    """What a `VideoModel` is made of."""

    network: VideoNetwork
    codec: FrameCodec | AutoencoderKLCogVideoX
    scheduler: Scheduler | None
    text: TextSource | None


def load_parts(
    source: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    text_encoder: bool = False,
    text_cache: str | Path | None = None,
    lora: str | Path | None = None,
    condition: str = "skeleton",
    control_layers: int | None = None,
    merge_actions: bool = True,
    local_files_only: bool = False,
) -> Parts:
    """Read a model's parts from wherever it is: see `VideoModel.from_pretrained`, which gives all this on."""
    folder = find(source, text_encoder=text_encoder, local_files_only=local_files_only)
    index = read_json(folder / INDEX)
    kind = index.get("_class_name")
    if kind == CLASS:
        network, codec, scheduler = _ours(folder, index, dtype or torch.float32)
    elif kind == STOCK:
        network, codec, scheduler = _stock(
            folder,
            dtype or (torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32),
            condition=condition,
            control_layers=control_layers,
            merge_actions=merge_actions,
        )
    else:
        raise CheckpointError(
            f"'{folder}' must hold a {CLASS} or a {STOCK}, but holds a {kind}. "
            + (
                f"Load it with {OTHERS[str(kind)]}, or any kind with vap_gym.load_world_model.{_untrained(str(source))}"
                if kind in OTHERS
                else f"CogVideoX's image-to-video weights are in {', '.join(HUB_IDS.values())}."
            )
        )
    if lora is not None:
        load_lora(network, lora)
    text = _text(folder, network.settings, device, dtype, text_encoder=text_encoder, text_cache=text_cache)
    return Parts(network, codec, scheduler, text)


def save_parts(
    folder: Path,
    network: VideoNetwork,
    tensors: dict[str, Tensor],
    codec: FrameCodec | AutoencoderKLCogVideoX,
    *,
    scheduler: Scheduler | None = None,
    text: TextSource | None = None,
    lora: bool = False,
    dtype: torch.dtype | None = None,
    shard_size: str = "5GB",
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Write a model's parts as `VideoModel.save_pretrained` does, which says more.

    Args:
        network: of the model; of its own weights only LoRA's are written, and those where `lora` says so.
        tensors: the network's weights without LoRA, under plain names; written from where they are, see `dtype`.
        codec, scheduler, text: the other parts.
        dtype, shard_size, notes: see there.
    """
    codec_name = "vae" if isinstance(codec, AutoencoderKLCogVideoX) else "codec"
    index: dict[str, Any] = {"_class_name": CLASS, **(notes or {})}
    digests: dict[str, str] = {}
    for name, module, state in (("network", network, tensors), (codec_name, codec, codec.state_dict())):
        index[name] = [type(module).__module__.split(".")[0], type(module).__name__]
        written = save_module(module, state, folder / name, dtype=dtype, shard_size=shard_size)
        digests |= {f"{name}/{file}": digest for file, digest in written.items()}
    if scheduler is not None:
        index["scheduler"] = ["diffusers", type(scheduler).__name__]
        scheduler.save_pretrained(folder / "scheduler")
    index["lora"] = lora
    if lora:
        save_lora(network, folder / "lora")
    index["text_cache"] = isinstance(text, CachedText)
    if isinstance(text, CachedText):
        text.save(folder / TEXT_CACHE)
    replaced_text(folder / INDEX, json.dumps({**index, "sha256": digests}, indent=2) + "\n")


def is_video_model(folder: Path) -> bool:
    """Whether a folder's index names a model that `VideoModel.from_pretrained` reads."""
    return (folder / INDEX).is_file() and read_json(folder / INDEX).get("_class_name") in (CLASS, STOCK)


def find(
    source: str | Path, *, what: str = "video model", text_encoder: bool = False, local_files_only: bool = False
) -> Path:
    """Return the folder of a model by folder, shipped name, preset name or hub id; `what` is how errors call it."""
    folder = Path(source)
    if not folder.is_dir():
        name = str(source)
        folder = weights_dir() / name
        if not (folder / INDEX).is_file():
            owner, slash, rest = HUB_IDS.get(name, name).partition("/")
            if not (slash and owner not in ("", ".", "..", "~") and "/" not in rest and rest):
                if name in RECIPES:
                    raise CheckpointError(_untrained(name).strip())
                folders = [p.parent for p in weights_dir().glob(f"*/{INDEX}")]
                shipped = [one.name for one in folders if what == "world model" or is_video_model(one)]
                raise unknown_name(what, name, [*shipped, "small", *HUB_IDS])
            folder = hub_folder(f"{owner}/{rest}", text_encoder=text_encoder, local_files_only=local_files_only)
    if not (folder / INDEX).is_file():
        raise CheckpointError(
            f"'{folder}' must hold {INDEX}, but does not. Give a folder from save_pretrained, ours or diffusers'."
        )
    return folder


def _untrained(name: str) -> str:
    """Say of a preset that is no more than a recipe what makes weights of it; nothing of others."""
    if name not in RECIPES:
        return ""
    return (
        f" The video model '{name}' is a recipe without weights: none are shipped or published. Train it (vap-gym "
        f"train video {RECIPES[name]} --out runs/{name}) and load runs/{name}/model, or take random weights: "
        f"VideoNetwork.of(preset('{name}'))."
    )


def _ours(
    folder: Path, index: dict[str, Any], dtype: torch.dtype
) -> tuple[VideoNetwork, FrameCodec | AutoencoderKLCogVideoX, Scheduler | None]:
    check_digests(folder, index.get("sha256", {}))
    kind: type[VideoNetwork] = VideoNetwork
    if index.get("network", ["", ""])[1] == "CausalVideoNetwork":
        from vap_gym.video.causal import CausalVideoNetwork

        kind = CausalVideoNetwork
    config = read_config(VideoNetwork, folder / "network")
    if VideoConfig.of(config).prediction == "x0":
        dtype = torch.float32  # arithmetic is autocast's business
    try:
        with default_dtype(dtype):
            network = kind(**config)
    except (TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"'{folder / 'network' / 'config.json'}' is no configuration of {kind.__name__}: {error} Fetch it again."
        ) from error
    fill(network, folder / "network")
    if index.get("lora", False):
        load_lora(network, folder / "lora")
    codec: FrameCodec | AutoencoderKLCogVideoX = (
        load_module(AutoencoderKLCogVideoX, folder / "vae", dtype=dtype)
        if "vae" in index
        else load_module(FrameCodec, folder / "codec")
    )
    return network, codec, _scheduler(folder) if "scheduler" in index else None


def _stock(
    folder: Path, dtype: torch.dtype, *, condition: str, control_layers: int | None, merge_actions: bool
) -> tuple[VideoNetwork, AutoencoderKLCogVideoX, Scheduler]:
    """CogVideoX's own weights under branches of ours: the ControlNet's blocks are copies of the base's first ones."""
    base = read_config(CogVideoXTransformer3DModel, folder / "transformer")
    vae = read_config(AutoencoderKLCogVideoX, folder / "vae")
    down = 2 ** (len(vae.get("block_out_channels", (128, 256, 256, 512))) - 1)
    settings = VideoConfig(
        base_config=base,
        condition=condition,
        control_layers=base.get("num_layers", 30) // 3 if control_layers is None else control_layers,
        merge_actions=merge_actions,
        trajectory_width=128,
        latent_channels=vae.get("latent_channels", 16),
        time_stride=int(vae.get("temporal_compression_ratio", 4)),
        space_stride=down,
        frame_size_px=(720, 480)
        if base.get("patch_size_t")
        else (down * base.get("sample_width", 90), down * base.get("sample_height", 60)),
        clip_frames=25,
        prediction="v",
        image_everywhere=False,
        text="t5",
    )
    with default_dtype(dtype):
        network = VideoNetwork.of(settings)
    fill(network.transformer.base, folder / "transformer")
    network.transformer.copy_base_into_control()
    return network, load_module(AutoencoderKLCogVideoX, folder / "vae", dtype=dtype), _scheduler(folder)


def _scheduler(folder: Path) -> Scheduler:
    file = folder / "scheduler" / "scheduler_config.json"
    if not file.is_file():
        raise CheckpointError(f"The model folder '{folder}' must hold '{file.name}', but does not. Fetch it again.")
    config = read_json(file)
    kind = SCHEDULERS.get(str(config.get("_class_name")))
    if kind is None:
        raise CheckpointError(
            f"'{file}' must be of {' or '.join(SCHEDULERS)}, got {config.get('_class_name')}. Others sample otherwise."
        )
    return kind.from_config(config)


def _text(
    folder: Path,
    settings: VideoConfig,
    device: torch.device | str,
    dtype: torch.dtype | None,
    *,
    text_encoder: bool,
    text_cache: str | Path | None,
) -> TextSource | None:
    if settings.text != "t5":
        return None
    if text_cache is not None:
        return CachedText.from_file(text_cache)
    if text_encoder:
        length = int(settings.base_config.get("max_text_seq_length", 226))
        return T5Text.from_folder(folder, length=length, device=device, dtype=dtype)
    return CachedText.from_file(folder / TEXT_CACHE) if (folder / TEXT_CACHE).is_file() else None
