"""The world model that envs hold: frames and prompts in, state and frames out. Weights and settings only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from vap_gym.assets import weights_dir
from vap_gym.errors import CheckpointError, VapError, unknown_name
from vap_gym.world.appearance import FirstSight, RobotAppearance, first_sight, posed_picture
from vap_gym.world.articulated import BONE_FIGURES
from vap_gym.world.checkpoint import load_part, read_json, save_part
from vap_gym.world.codec import FrameCodec, to_frames, to_pictures
from vap_gym.world.dynamics import PROMPT_TAPS, FrameDynamics
from vap_gym.world.noise import counter_noise

if TYPE_CHECKING:
    from tensordict import TensorDict

INDEX = "model_index.json"
STATE_KEYS = (
    "latent", "history", "anchor", "displacement", "prompt_features", "anchor_prompt", "bones", "anchor_bones",
    "anchor_frame", "anchor_mask", "anchor_views", "anchor_depth", "plate", "light", "step", "seed",
)  # fmt: skip
NEAR_CLEAN = 0.5  # noise level of the second evaluation: predict, renoise, predict


class WorldModel:
    """An action-to-video model with explicit state.

    `state` is a flat TensorDict with batch size [B]: `latent` (B, C, h, w) is the newest frame, `history` the last
    frames' latents, `anchor` the first frame's, `anchor_frame` its pixels; `anchor_mask` (255 where the robot is),
    `plate` (the pixels without it), `anchor_views`, `anchor_depth` and `light` are what a `FirstSight` of it tells;
    `displacement` (B, 2, h, w) says where in the first frame each cell's content was, `bones` and `anchor_bones` where
    the robot's bones were, `prompt_features` and `anchor_prompt` are those of the last prompts, `step` and `seed` drive
    the noise. Index assignment is a partial reset, `expand` a branch.

    Args:
        codec, dynamics, appearance: frames ↔ latents; latents → latents; what the robot looks like.
        evaluations: network evaluations per frame when none is named at a call (1 or 2).
        dtype: bfloat16 or float32 arithmetic; None takes bfloat16 where the device multiplies it natively.
    """

    def __init__(
        self,
        codec: FrameCodec,
        dynamics: FrameDynamics,
        appearance: RobotAppearance,
        *,
        evaluations: int = 1,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        name: str = "",
    ) -> None:
        if codec.config.latent_channels != dynamics.config.latent_channels:
            raise CheckpointError(
                f"latent_channels of the codec is {codec.config.latent_channels}, of the dynamics "
                f"{dynamics.config.latent_channels}. Load both from one folder."
            )
        self.name = name
        self.device = checked_device(device)
        self.dtype = dtype or native_dtype(self.device)
        self.evaluations = evaluations
        form = {"memory_format": torch.channels_last}
        self.codec = codec.to(self.device, **form).eval().requires_grad_(False)
        self.dynamics = dynamics.to(self.device, **form).eval().requires_grad_(False)
        self.appearance = appearance.to(self.device, **form).eval().requires_grad_(False)
        self.state_keys = STATE_KEYS
        self.lags: tuple[int, ...] = tuple(dynamics.config.lags)
        height, width = dynamics.config.latent_size
        self.frame_size_px = (4 * width, 4 * height)

    @property
    def parts(self) -> dict[str, FrameCodec | FrameDynamics | RobotAppearance]:
        """The networks by the names of their folders."""
        return {"codec": self.codec, "dynamics": self.dynamics, "appearance": self.appearance}

    # --- files ---

    @staticmethod
    def from_pretrained(
        name_or_folder: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
    ) -> WorldModel:
        """Load a shipped model by name ("tiny") or a folder that `save_pretrained` wrote.

        Raises:
            UnknownNameError: for a name that is not shipped.
            CheckpointError: where files are missing, cut short, tampered with, or do not fit the configuration.
        """
        folder = Path(name_or_folder)
        if not folder.is_dir():
            shipped = weights_dir() / str(name_or_folder)
            if not (shipped / INDEX).is_file():
                known = sorted(p.parent.name for p in weights_dir().glob(f"*/{INDEX}"))
                raise unknown_name("world model", str(name_or_folder), known)
            folder = shipped
        if not (folder / INDEX).is_file():
            raise CheckpointError(f"'{folder}' must hold {INDEX}, but does not. Give a folder from save_pretrained.")
        index = read_json(folder / INDEX)
        return WorldModel(
            load_part(FrameCodec, folder, "codec", index),
            load_part(FrameDynamics, folder, "dynamics", index),
            load_part(RobotAppearance, folder, "appearance", index),
            evaluations=int(index.get("evaluations", 1)),
            device=device,
            dtype=dtype,
            name=str(name_or_folder),
        )

    def save_pretrained(self, folder: str | Path, *, dtype: torch.dtype = torch.float16, **notes: Any) -> None:
        """Write the model as diffusers folders (config + safetensors) with an index that holds their sha256."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        index: dict[str, Any] = {"_class_name": "WorldModel", "evaluations": self.evaluations, **notes}
        index["sha256"] = {name: save_part(part, folder, name, dtype) for name, part in self.parts.items()}
        temporary = folder / f".{INDEX}.tmp"
        temporary.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        temporary.replace(folder / INDEX)

    # --- pictures and latents ---

    @torch.no_grad()
    def encode(self, frames: UInt8[Tensor, "*batch H W 3"]) -> Float[Tensor, "*batch C h w"]:
        """Frames → latents, float32."""
        self._check_frames(frames, "frames")
        pictures = to_pictures(frames.to(self.device)).contiguous(memory_format=torch.channels_last)
        with self._autocast():
            latents: Tensor = self.codec.encode(pictures)
        return latents.float().reshape(*frames.shape[:-3], *latents.shape[1:])

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "*batch C h w"]) -> UInt8[Tensor, "*batch H W 3"]:
        """Latents → frames."""
        flat = latents.reshape(-1, *latents.shape[-3:]).contiguous(memory_format=torch.channels_last)
        with self._autocast():
            pictures = self.codec.decode(flat)
        frames = to_frames(pictures)
        return frames.reshape(*latents.shape[:-3], *frames.shape[1:])

    # --- imagining ---

    @torch.no_grad()
    def start(
        self,
        frames: UInt8[Tensor, "B H W 3"],
        prompts: UInt8[Tensor, "B H W 3"],
        seed: Int64[Tensor, " B"],
        *,
        bones: Float[Tensor, "B bones 8"] | None = None,
        views: Float[Tensor, "B L 3 4"] | None = None,
    ) -> TensorDict:
        """Return the state after seeing each slot's first frame and its prompt.

        Args:
            frames, prompts: of each slot.
            seed: each slot's own noise.
            bones: where the prompts' bones are (`prompts.raster.bone_figures`).
            views: how the cameras see the robot's links (`prompts.body.Body.views`). Without bones and views (the
                default) the model runs, but has to guess how the robot moved, and what it looks like.
        """
        from tensordict import TensorDict

        self._check_frames(frames, "frames")
        self._check_frames(prompts, "prompts")
        if frames.ndim != 4 or prompts.shape != frames.shape or tuple(seed.shape) != (len(frames),):
            raise VapError(
                "frames and prompts must have shape (B, H, W, 3) and seed (B,), "
                f"got {tuple(frames.shape)}, {tuple(prompts.shape)} and {tuple(seed.shape)}. Give one of each per slot."
            )
        latent = self.encode(frames)
        features = self._features(prompts)
        batch = len(frames)
        places = self._checked_bones(bones, (batch,))
        pictures = to_pictures(frames.to(self.device)).contiguous(memory_format=torch.channels_last)
        sight = first_sight(self.appearance, pictures, self._checked_views(views, (batch,)))
        return TensorDict(
            {
                "latent": latent,
                "history": latent[:, None].expand(-1, max(self.lags), -1, -1, -1).clone(),
                "anchor": latent.clone(),
                "displacement": latent.new_zeros(batch, 2, *latent.shape[2:]),
                "prompt_features": features[:, None].expand(-1, PROMPT_TAPS - 2, -1, -1, -1).clone(),
                "anchor_prompt": features,
                "anchor_frame": frames.to(self.device).clone(),
                "anchor_mask": (255.0 * sight.mask).round().to(torch.uint8),
                "plate": to_frames(sight.plate),
                "anchor_views": sight.views,
                "anchor_depth": sight.depth_m,
                "light": sight.light,
                "bones": places,
                "anchor_bones": places.clone(),
                "step": torch.zeros(batch, dtype=torch.int64, device=self.device),
                "seed": seed.to(self.device, torch.int64),
            },
            batch_size=[batch],
        )

    @torch.no_grad()
    def predict(
        self,
        state: TensorDict,
        prompts: UInt8[Tensor, "B K H W 3"],
        *,
        bones: Float[Tensor, "B K bones 8"] | None = None,
        views: Float[Tensor, "B K L 3 4"] | None = None,
        decode: bool = True,
        evaluations: int | None = None,
        interval: int = 1,
    ) -> tuple[TensorDict, UInt8[Tensor, "B K H W 3"] | None]:
        """Imagine K frames, one per prompt; the given state is left as it is.

        Args:
            state: from `start` or an earlier call.
            prompts: the visual action prompts of the K frames to come.
            bones, views: where their bones and links are, if `start` was told.
            decode: False leaves the frames out: for planners, which read latents.
            evaluations: network evaluations per frame, 1 or 2.
            interval: control steps per frame (1 to 3).
        """
        self._check_frames(prompts, "prompts")
        if prompts.ndim != 5 or len(prompts) != len(state):
            raise VapError(f"prompts must have shape ({len(state)}, K, H, W, 3), got {tuple(prompts.shape)}.")
        evaluations = self.evaluations if evaluations is None else evaluations
        if evaluations < 1:
            raise VapError(f"evaluations must be 1 or more, got {evaluations}. None takes the model's own.")
        places = self._checked_bones(bones, tuple(prompts.shape[:2]))
        if places.shape[2] != state["bones"].shape[1]:
            raise VapError(
                f"bones must be those that start() was given ({state['bones'].shape[1]} of them), "
                f"got {places.shape[2]}. Give them to both or to neither."
            )
        links = self._checked_views(views, tuple(prompts.shape[:2]))
        if links.shape[2] != state["anchor_views"].shape[1]:
            raise VapError(
                f"views must be of the links that start() was given ({state['anchor_views'].shape[1]} of them), "
                f"got {links.shape[2]}. Give them to both or to neither."
            )
        frames = []
        for k in range(prompts.shape[1]):
            state = self._step(state, prompts[:, k], places[:, k], links[:, k], evaluations, interval)
            if decode:
                frames.append(self.decode(state["latent"]))
        return state, torch.stack(frames, dim=1) if decode else None

    def _step(
        self, state: TensorDict, prompts: Tensor, bones: Tensor, links: Tensor, evaluations: int, interval: int
    ) -> TensorDict:
        history, batch = state["history"], len(state)
        now = self._features(prompts)
        taps = torch.cat([now[:, None], state["prompt_features"], state["anchor_prompt"][:, None]], dim=1)
        seen = history[:, [lag - 1 for lag in self.lags]]
        places = torch.stack([bones, state["bones"], state["anchor_bones"]], dim=1)
        posed = self._posed(state, links)
        scale, made = float(self.dynamics.config.noise_scale), None
        spans = torch.full((batch,), float(interval), device=self.device)
        for i in range(evaluations):
            level = 1.0 if made is None else NEAR_CLEAN
            noise = counter_noise(state["seed"], state["step"], i, tuple(history.shape[2:]))
            noisy = scale * noise if made is None else (1 - level) * made.latent + level * scale * noise
            times = torch.full((batch,), level, device=self.device)
            with self._autocast():
                made = self.dynamics(
                    seen, state["anchor"], noisy, times, spans, taps, state["displacement"], places, posed
                )
        assert made is not None
        following = state.copy()
        following["latent"] = made.latent
        following["displacement"], following["bones"] = made.displacement, bones
        following["history"] = torch.cat([made.latent[:, None], history[:, :-1]], dim=1)
        following["prompt_features"] = torch.cat([now[:, None], state["prompt_features"][:, :-1]], dim=1)
        following["step"] = state["step"] + 1
        return following

    def _posed(self, state: TensorDict, links: Tensor) -> Float[Tensor, "B C h w"]:
        sight = FirstSight(
            picture=to_pictures(state["anchor_frame"]),
            mask=state["anchor_mask"] / 255.0,
            plate=to_pictures(state["plate"]),
            views=state["anchor_views"],
            depth_m=state["anchor_depth"],
            light=state["light"],
        )
        pictures = posed_picture(self.appearance, sight, state["displacement"], links)
        with self._autocast():
            latents: Tensor = self.codec.encode(pictures.contiguous(memory_format=torch.channels_last))
        return latents.float()

    def _features(self, prompts: Tensor) -> Tensor:
        pictures = to_pictures(prompts.to(self.device)).contiguous(memory_format=torch.channels_last)
        with self._autocast():
            features: Tensor = self.dynamics.trajectory.features(pictures).float()
        return features

    def _checked_bones(self, bones: Tensor | None, batch: tuple[int, ...]) -> Float[Tensor, "*batch bones 8"]:
        if bones is None:
            return torch.zeros(*batch, 0, BONE_FIGURES, device=self.device)
        if bones.ndim != len(batch) + 2 or tuple(bones.shape[:-2]) != batch or bones.shape[-1] != BONE_FIGURES:
            told = ", ".join(str(n) for n in batch)
            raise VapError(
                f"bones must have shape ({told}, bones, {BONE_FIGURES}), got {tuple(bones.shape)}. "
                "Make them with vap_gym.prompts.raster.bone_figures."
            )
        return bones.to(self.device, torch.float32)

    def _checked_views(self, views: Tensor | None, batch: tuple[int, ...]) -> Float[Tensor, "*batch L 3 4"]:
        if views is None:
            return torch.zeros(*batch, 0, 3, 4, device=self.device)
        if views.ndim != len(batch) + 3 or tuple(views.shape[:-3]) != batch or tuple(views.shape[-2:]) != (3, 4):
            told = ", ".join(str(n) for n in batch)
            raise VapError(
                f"views must have shape ({told}, links, 3, 4), got {tuple(views.shape)}. "
                "Make them with vap_gym.prompts.body.Body.views."
            )
        return views.to(self.device, torch.float32)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16)

    def _check_frames(self, frames: Tensor, what: str) -> None:
        width, height = self.frame_size_px
        if frames.dtype != torch.uint8 or frames.shape[-3:] != (height, width, 3):
            raise VapError(
                f"{what} must be uint8 (…, {height}, {width}, 3), got {frames.dtype} {tuple(frames.shape)}. "
                "Crop and resize them first."
            )


def checked_device(device: torch.device | str) -> torch.device:
    """Return the device, or raise a VapError that says which there are."""
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise VapError(f"No device named '{device}'. Known here: {', '.join(devices())}.") from error
    if found.type != "cpu" and str(found) not in devices():
        raise VapError(f"Device '{device}' is not on this machine. Known here: {', '.join(devices())}.")
    return found


def devices() -> list[str]:
    """Devices that torch can use here."""
    return [
        "cpu",
        *(f"cuda:{i}" for i in range(torch.cuda.device_count())),
        *(["cuda"] if torch.cuda.is_available() else []),
    ]


def native_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where it is native; elsewhere on CPUs it can be hundreds of times slower than float32."""
    if device.type == "cpu" and not torch.cpu._is_avx512_bf16_supported():
        return torch.float32
    return torch.bfloat16
