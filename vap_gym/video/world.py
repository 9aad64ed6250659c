"""StreamWorld: a causal video model and its codec as a `World`, so that envs and planners stream it."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import AutoencoderKLCogVideoX
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from vap_gym.errors import CheckpointError, VapError, unknown_name
from vap_gym.video.causal import CausalVideoNetwork
from vap_gym.video.clips import check_codec
from vap_gym.video.given import check_frames, load_text, save_text, told_states, told_words
from vap_gym.video.lora import has_lora, merge_lora
from vap_gym.video.model import VideoModel
from vap_gym.video.pretrained import find
from vap_gym.video.stream import TRAJECTORY, Stream
from vap_gym.world.checkpoint import load_part, read_json, replaced_text, save_part
from vap_gym.world.codec import FrameCodec, to_frames, to_pictures
from vap_gym.world.devices import checked_device, native_dtype
from vap_gym.world.model import INDEX
from vap_gym.world.noise import counter_noise

if TYPE_CHECKING:
    from tensordict import TensorDict

CODECS: dict[str, type[ModelMixin]] = {
    "FrameCodec": FrameCodec,
    "AutoencoderKLCogVideoX": AutoencoderKLCogVideoX,
}
CAUSAL = ("trained", "untrained")
RECENT = 2  # latents before the newest that CogVideoX's decoder is shown: its own way to make 4 frames takes three


class StreamWorld:
    """A streamed video model with explicit state: a flat TensorDict with batch size [B].

    `latent` (B, C, h, w) is the newest latent frame, `seed` drives the noise, the rest is the stream's memory (see
    `stream.Stream`); index assignment is a partial reset, `expand` a branch. With CogVideoX's codec (4× in time) it
    imagines four control steps at a time, see `chunk`, and `recent` keeps the latents that the decoder is shown.

    Args:
        network, codec: the causal model; frames ↔ latents.
        evaluations: network evaluations per latent frame when none is named at a call, 1 to 4.
        window, control, snr_shift_scale: see `Stream`.
        text: what is told to models that take words, None: the empty instruction; or embeddings (1, L, E), which models
            with text="t5" must be given: no instruction is one, too, see `of_video_model`.
        causal: "untrained" where the weights never learned to see the past only: a warning says so.
        dtype: bfloat16 or float32 arithmetic; None takes bfloat16 where the device multiplies it natively.
    """

    def __init__(
        self,
        network: CausalVideoNetwork,
        codec: FrameCodec | AutoencoderKLCogVideoX,
        *,
        evaluations: int = 1,
        window: int | None = None,
        control: str = "once",
        snr_shift_scale: float = 1.0,
        text: str | Tensor | None = None,
        causal: str = "trained",
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> None:
        settings = network.settings
        check_codec(
            codec, time_stride=settings.time_stride, space_stride=settings.space_stride,
            latent_channels=settings.latent_channels,
        )  # fmt: skip
        if settings.text == "t5" and not isinstance(text, Tensor):
            raise VapError(
                "A model with text='t5' must be told embeddings (1, L, E), be it of the empty instruction, got "
                f"{text!r}. Load it by from_pretrained, or give text=model.text.encode(['']) of its VideoModel."
            )
        if causal == "untrained":
            warnings.warn(
                "The weights of a model of whole clips are streamed as they are: they never learned to see the past "
                "only. Train them so (vap-gym train video with forcing = 'frames') before you trust a frame.",
                stacklevel=2,
            )
        self.causal = causal
        self.device = checked_device(device)
        self.dtype = dtype or native_dtype(self.device)
        self.network = network.to(self.device).eval().requires_grad_(False)
        self.codec = codec.to(self.device).eval().requires_grad_(False)
        self._weights = next(self.network.parameters()).dtype  # float32, or bfloat16 to save memory
        self.stream = Stream(self.network, window=window, control=control, snr_shift_scale=snr_shift_scale)
        self.stream.levels(evaluations)  # says which numbers would do
        self.evaluations, self.text = evaluations, text
        self.chunk = settings.time_stride
        self.frame_size_px = settings.frame_size_px

    @property
    def prompt(self) -> str:
        """The kind of prompt that it was trained on; "none" for models that are told states, words or nothing."""
        return self.network.settings.prompt  # type: ignore[no-any-return]

    @property
    def height_cue(self) -> bool:
        """Whether the skeletons that it was trained on had their drop line."""
        return self.network.settings.height_cue  # type: ignore[no-any-return]

    @property
    def state_keys(self) -> tuple[str, ...]:
        """What a state holds."""
        trajectory = [f"trajectory_{i}" for i in range(TRAJECTORY)] if self.network.trajectory is not None else []
        recent = ["recent"] if self.chunk > 1 else []
        return ("latent", "anchor", "step", "seed", *trajectory, *recent, *self.stream.ring(0, 1).keys)

    # --- files ---

    @staticmethod
    def from_pretrained(
        source: str | Path,
        *,
        causal: str = "trained",
        evaluations: int | None = None,
        text: str | Tensor | None = None,
        text_cache: str | Path | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> StreamWorld:
        """Load a folder that `save_pretrained` wrote, or a video model as a stream.

        Args:
            source: a folder of ours; or what `VideoModel.from_pretrained` takes: its folders, diffusers', a hub id.
            causal: see `of_video_model`.
            evaluations, text: other ones than the folder has.
            text_cache: see `VideoModel.from_pretrained`.

        Raises:
            CheckpointError: where files are missing, cut short, tampered with, or do not fit the configuration; where
                the model sees whole clips at once and `causal` does not say that this is known.
        """
        folder = find(source)
        index = read_json(folder / INDEX)
        if index.get("_class_name") != "StreamWorld":
            model = VideoModel.from_pretrained(source, text_cache=text_cache, device=device, dtype=dtype)
            return StreamWorld.of_video_model(model, causal=causal, evaluations=evaluations, text=text, dtype=dtype)
        kind = str(index.get("codec"))
        if kind not in CODECS:
            raise CheckpointError(
                f"'{folder / INDEX}' must be of a StreamWorld with a codec of {', '.join(CODECS)}, got {kind}. "
                "Give a folder from StreamWorld.save_pretrained."
            )
        codec: Any = load_part(CODECS[kind], folder, "codec", index)
        kept = index.get("sha256", {}).get("text")
        own = index.get("text") if kept is None else load_text(folder, str(kept))
        return StreamWorld(
            load_part(CausalVideoNetwork, folder, "network", index),
            codec,
            evaluations=int(index.get("evaluations", 1)) if evaluations is None else evaluations,
            window=index.get("window"),
            control=str(index.get("control", "once")),
            snr_shift_scale=float(index.get("snr_shift_scale", 1.0)),
            text=own if text is None else text,
            causal=str(index.get("causal", "trained")),
            device=device,
            dtype=dtype,
        )

    @staticmethod
    def of_video_model(
        model: VideoModel,
        *,
        causal: str = "trained",
        evaluations: int | None = None,
        text: str | Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> StreamWorld:
        """Return a stream of a video model's weights.

        Args:
            model: one that was trained to be streamed (with a recipe's `forcing`), or any other with
            causal: "untrained": the weights of a model of whole clips, made to see the past only. They have to be
                trained so before frames are good; a warning says so. LoRA that is attached is merged.
            evaluations: network evaluations per latent frame; default 1.
            text: the instruction; None: the empty one, as training leaves words out.

        Raises:
            CheckpointError: the model sees whole clips at once and `causal` is "trained".
            VapError: nothing to embed words with; or no block-causal form (CogVideoX 1.5).
        """
        network = model.network
        if causal not in CAUSAL:
            raise unknown_name("kind of causal weights", causal, CAUSAL)
        if not isinstance(network, CausalVideoNetwork):
            if causal == "trained":
                raise CheckpointError(
                    f"'{model.name}' holds a model of whole clips, which has no next frame. Train one that has: "
                    "vap-gym train video with forcing = 'frames' or 'rollout'. Or take a clip a step "
                    "(vap_gym.load_world_model), or stream its weights untrained: causal='untrained'."
                )
            if has_lora(network):
                merge_lora(network)
            network = CausalVideoNetwork.with_weights_of(network)
        else:
            causal = "trained"
        scale = 1.0 if model.scheduler is None else float(model.scheduler.config.get("snr_shift_scale", 1.0))
        return StreamWorld(
            network,
            model.codec,
            evaluations=1 if evaluations is None else evaluations,
            snr_shift_scale=scale,
            text=told_words(model, text),
            causal=causal,
            device=model.device,
            dtype=dtype,
        )

    def save_pretrained(self, folder: str | Path, *, dtype: torch.dtype = torch.float16, **notes: Any) -> None:
        """Write network and codec as diffusers folders, with an index that holds settings and sha256."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        index: dict[str, Any] = {
            "_class_name": "StreamWorld",
            "codec": type(self.codec).__name__,
            "evaluations": self.evaluations,
            "window": self.stream.window,
            "control": self.stream.control,
            "snr_shift_scale": self.stream.snr_shift_scale,
            "text": None if isinstance(self.text, Tensor) else self.text,
            "causal": self.causal,
            **notes,
        }
        parts: dict[str, ModelMixin] = {"network": self.network, "codec": self.codec}
        index["sha256"] = {name: save_part(part, folder, name, dtype) for name, part in parts.items()}
        if isinstance(self.text, Tensor):
            index["sha256"]["text"] = save_text(folder, self.text)
        replaced_text(folder / INDEX, json.dumps(index, indent=2) + "\n")

    # --- pictures and latents ---

    @torch.no_grad()
    def encode(self, frames: UInt8[Tensor, "B H W 3"]) -> Float[Tensor, "B C h w"]:
        """Single frames → latents, float32."""
        pictures = to_pictures(frames.to(self.device))
        with self._autocast():
            if isinstance(self.codec, FrameCodec):
                return self.codec.encode(pictures).float()  # type: ignore[no-any-return]
            latents: Tensor = self.codec.encode(pictures[:, :, None]).latent_dist.mode()[:, :, 0]
        return latents.float() * float(self.codec.config["scaling_factor"])

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "*batch C h w"]) -> UInt8[Tensor, "*batch H W 3"]:
        """Latents → frames, one of each: of CogVideoX's codec, what the latent would be as a first frame."""
        flat = latents.reshape(-1, *latents.shape[-3:])
        with self._autocast():
            if isinstance(self.codec, FrameCodec):
                frames = to_frames(self.codec.decode(flat))
            else:
                frames = self._decoded(flat[:, None])[:, 0]
        return frames.reshape(*latents.shape[:-3], *frames.shape[1:])

    def _decoded(self, latents: Float[Tensor, "B F C h w"]) -> UInt8[Tensor, "B T H W 3"]:
        """Clips by CogVideoX's decoder: 1 + 4·(F − 1) frames of an odd number of latents."""
        assert isinstance(self.codec, AutoencoderKLCogVideoX)
        clip = latents.transpose(1, 2) / float(self.codec.config["scaling_factor"])
        with self._autocast():
            pictures: Tensor = self.codec.decoder(clip)[0]  # at once: its wrapper would cut them in two
        return to_frames(pictures.transpose(1, 2).flatten(0, 1)).unflatten(0, (len(latents), -1))  # type: ignore[no-any-return]

    # --- imagining ---

    @torch.no_grad()
    def start(
        self,
        frames: UInt8[Tensor, "B H W 3"],
        prompts: UInt8[Tensor, "B H W 3"],
        seed: Int64[Tensor, " B"],
        *,
        views: Float[Tensor, "B L 3 4"] | None = None,
        states: Float[Tensor, "B 10"] | None = None,
    ) -> TensorDict:
        """Return the state after seeing each slot's first frame and its prompt; `views` are not used, and `states` of
        the robot (`rig.Motion.states`) by models of condition "raw_state" only, which need them."""
        from tensordict import TensorDict

        self._check(frames, "frames")
        self._check(prompts, "prompts")
        if prompts.shape != frames.shape or tuple(seed.shape) != (len(frames),):
            raise VapError(
                "frames and prompts must have shape (B, H, W, 3) and seed (B,), "
                f"got {tuple(frames.shape)}, {tuple(prompts.shape)} and {tuple(seed.shape)}. Give one of each per slot."
            )
        latent = self.encode(frames)
        with self._autocast():
            seen = latent.to(self._weights)
            memory = self.stream.begin(
                seen,
                self._pictures(prompts[:, None]),
                text=self._text(len(frames)),
                states=self._told(states if states is None else states[:, None], len(frames), 1),
            )
        memory |= {"latent": latent.clone(), "seed": seed.to(self.device, torch.int64)}
        if self.chunk > 1:
            memory["recent"] = latent[:, None].expand(-1, RECENT, -1, -1, -1).clone()
        return TensorDict(dict(memory), batch_size=[len(frames)])

    @torch.no_grad()
    def predict(
        self,
        state: TensorDict,
        prompts: UInt8[Tensor, "B K H W 3"],
        *,
        views: Float[Tensor, "B K L 3 4"] | None = None,
        states: Float[Tensor, "B K 10"] | None = None,
        decode: bool = True,
        evaluations: int | None = None,
    ) -> tuple[TensorDict, UInt8[Tensor, "B K H W 3"] | None]:
        """Imagine K frames, one per prompt; K is a multiple of `chunk`. The given state is left as it is.

        Args:
            state: from `start` or an earlier call, maybe of this model in another precision; slots may be at different
                steps.
            prompts: the visual action prompts of the K frames to come.
            views: not used.
            states: of the robot in those frames, for models of condition "raw_state".
            decode: False leaves the frames out: for planners, which read latents.
            evaluations: network evaluations per latent frame, 1 to 4.
        """
        from tensordict import TensorDict

        self._check(prompts, "prompts")
        if prompts.ndim != 5 or len(prompts) != len(state) or not prompts.shape[1] or prompts.shape[1] % self.chunk:
            wanted = "K" if self.chunk == 1 else f"{self.chunk}·k"
            raise VapError(f"prompts must have shape ({len(state)}, {wanted}, H, W, 3), got {tuple(prompts.shape)}.")
        count = self.evaluations if evaluations is None else evaluations
        memory = self._in_own_precision(state)
        frames = []
        told = self._told(states, *prompts.shape[:2])
        for k, part in enumerate(prompts.split(self.chunk, 1)):
            with self._autocast():
                now = None if told is None else told[:, k * self.chunk : (k + 1) * self.chunk]
                memory, latent = self._next(memory, part, now, count)
            if decode:
                frames.append(self._shown(memory, latent))
            if self.chunk > 1:
                memory["recent"] = torch.cat([memory["recent"][:, 1:], latent[:, None]], 1)
        following = TensorDict(memory, batch_size=state.batch_size)
        return following, torch.cat(frames, 1) if decode else None

    def _in_own_precision(self, state: TensorDict) -> dict[str, Tensor]:
        """The memory as this model keeps it: latents in float32, the anchor as the weights are, the rest as sums."""
        sums = torch.bfloat16 if self.dtype == torch.bfloat16 else self._weights
        kept = {"latent": torch.float32, "recent": torch.float32, "anchor": self._weights}
        return {k: v.to(kept.get(k, sums)) if v.is_floating_point() else v for k, v in state.items()}

    def _next(
        self, memory: dict[str, Tensor], prompts: Tensor, states: Tensor | None, evaluations: int
    ) -> tuple[dict[str, Tensor], Tensor]:
        shape = tuple(memory["latent"].shape[1:])
        seed, step = memory["seed"], memory["step"]

        def noise(evaluation: int) -> Tensor:
            return counter_noise(seed, step, evaluation, shape).to(self._weights)

        kept, latent = self.stream.advance(
            memory, self._pictures(prompts), noise, evaluations=evaluations, states=states
        )
        latent = latent.float()
        return kept | {"latent": latent}, latent

    def _shown(self, memory: dict[str, Tensor], latent: Tensor) -> UInt8[Tensor, "B K H W 3"]:
        if self.chunk == 1:
            return self.decode(latent)[:, None]
        return self._decoded(torch.cat([memory["recent"], latent[:, None]], 1))[:, -self.chunk :]

    def _pictures(self, prompts: UInt8[Tensor, "B T H W 3"]) -> Float[Tensor, "B T P H W"] | None:
        channels = self.network.settings.prompt_channels
        if not channels:
            return None
        pictures = to_pictures(prompts.to(self.device))[:, :channels]  # depth is grey: one channel tells all
        return pictures.unflatten(0, prompts.shape[:2])  # type: ignore[no-any-return]

    def _told(self, states: Tensor | None, slots: int, frames: int) -> Float[Tensor, "B K S"] | None:
        told = told_states(self.network.settings, states, slots, frames)
        return None if told is None else told.to(self.device, self._weights)

    def _text(self, batch: int) -> Tensor | None:
        if self.text is None:
            return None
        if isinstance(self.text, Tensor):
            return self.text.to(self.device, self._weights).expand(batch, -1, -1)
        if self.network.vocabulary is None:
            raise VapError("This model has no vocabulary: it takes text as embeddings (1, L, E) or None, got words.")
        return self.network.vocabulary.encode([self.text] * batch).to(self.device)  # type: ignore[no-any-return]

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16)

    def _check(self, frames: Tensor, what: str) -> None:
        check_frames(frames, what, self.frame_size_px)
