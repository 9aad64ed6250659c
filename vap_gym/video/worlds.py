"""One door for all world models: by name, folder or hub id, whatever kind it is of."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from vap_gym.errors import VapError
from vap_gym.video.causal import CausalVideoNetwork
from vap_gym.video.clip_world import ClipWorld
from vap_gym.video.model import VideoModel
from vap_gym.video.pretrained import CLASS, find
from vap_gym.video.world import StreamWorld
from vap_gym.world.checkpoint import read_json
from vap_gym.world.model import INDEX, WorldModel

AnyWorld: TypeAlias = WorldModel | StreamWorld | ClipWorld


def load_world_model(
    source: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    causal: str | None = None,
    evaluations: int | None = None,
    guidance: float | None = None,
    text: str | Tensor | None = None,
    text_encoder: bool = False,
    text_cache: str | Path | None = None,
    lora: str | Path | None = None,
    condition: str | None = None,
    local_files_only: bool = False,
) -> AnyWorld:
    """Load a world model for envs, planners and evaluations.

    What comes back depends on what is there: for "tiny", and folders of its kind, a `WorldModel`; for a causal video
    model a `StreamWorld`; for one of whole clips (CogVideoX's own weights, too) a `ClipWorld`, a clip a step.

    Args:
        source: a shipped name ("tiny"), a folder of ours or of diffusers' CogVideoXImageToVideoPipeline, "cogvideox-5b"
            or "cogvideox-1.5-5b", or another hub id ("owner/name").
        device, dtype: where it works, and its arithmetic; None: its own.
        causal: "untrained" streams the weights of a model of whole clips, see `StreamWorld.of_video_model`; "trained"
            refuses such; None takes a model as it is.
        evaluations: of the network, for a frame of a stream or for a clip.
        guidance: of clips, see `ClipWorld`.
        text: what models that take words are told; None: the empty instruction.
        text_encoder, text_cache, lora, condition, local_files_only: see `VideoModel.from_pretrained`.

    Raises:
        UnknownNameError: no such name.
        CheckpointError: it cannot be fetched, is damaged, or is a recipe without weights ("small").
        VapError: an option that this kind does not take.
    """
    folder = find(source, what="world model", text_encoder=text_encoder, local_files_only=local_files_only)
    kind = read_json(folder / INDEX).get("_class_name", "WorldModel")
    of_video = {"text_encoder": text_encoder, "text_cache": text_cache, "lora": lora, "condition": condition}
    of_clips = {"guidance": guidance}
    of_streams = {"causal": causal, "evaluations": evaluations, "text": text}
    if kind == "WorldModel":
        _refuse(kind, source, of_video | of_clips | of_streams)
        is_here = Path(source).is_dir() or "/" not in str(source)  # else it came from the hub
        return WorldModel.from_pretrained(source if is_here else folder, device=device, dtype=dtype)
    if kind == "StreamWorld":
        _refuse(kind, source, of_video | of_clips | {"causal": causal})
        return StreamWorld.from_pretrained(folder, evaluations=evaluations, text=text, device=device, dtype=dtype)
    if kind == CLASS:  # its branches are there; other weights get new ones
        _refuse(kind, source, {"condition": condition})
    branches: dict[str, Any] = {} if condition is None else {"condition": condition}
    model = VideoModel.from_pretrained(
        source, device=device, dtype=dtype, text_encoder=text_encoder, text_cache=text_cache, lora=lora,
        local_files_only=local_files_only, **branches,
    )  # fmt: skip
    if causal is None and not isinstance(model.network, CausalVideoNetwork):
        return ClipWorld(model, evaluations=evaluations, guidance=guidance, text=text)
    _refuse("stream", source, of_clips)
    return StreamWorld.of_video_model(
        model, causal=causal or "trained", evaluations=evaluations, text=text, dtype=dtype
    )


def _refuse(kind: str, source: object, options: dict[str, Any]) -> None:
    given = [name for name, value in options.items() if value is not None and value is not False]
    if given:
        raise VapError(f"'{source}' is a {kind}, which takes no {', '.join(given)}. Leave that out.")
