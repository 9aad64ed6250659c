"""The world model that envs hold: frames and prompts in, state and frames out. Weights and settings only."""

from __future__ import annotations

import json
from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from vap_gym.assets import weights_dir
from vap_gym.errors import CheckpointError, UnknownNameError, VapError, unknown_name_message
from vap_gym.world.appearance import FirstSight, RobotAppearance, first_sight, kept, sight_of
from vap_gym.world.checkpoint import load_part, read_index, save_part
from vap_gym.world.codec import FrameCodec, to_frames, to_pictures
from vap_gym.world.devices import checked_device, native_dtype
from vap_gym.world.dynamics import PROMPT_TAPS, FrameDynamics, composed
from vap_gym.world.jaws import Jaws, jaws_of, poses, stopped
from vap_gym.world.motion import ThingMotion, ThingState
from vap_gym.world.noise import counter_noise
from vap_gym.world.posing import Posed, cell_means, posed_picture
from vap_gym.world.surfels import Surfels
from vap_gym.world.things import ThingFinder

if TYPE_CHECKING:
    from tensordict import TensorDict

INDEX = "model_index.json"
PARTS: dict[str, type[ModelMixin]] = {
    "codec": FrameCodec,
    "dynamics": FrameDynamics,
    "appearance": RobotAppearance,
    "things": ThingFinder,
    "motion": ThingMotion,
}
STATE_KEYS = (
    "latent", "history", "anchor", "prompt_features", "anchor_prompt", "step", "seed",
    *(f"first_{name}" for name in FirstSight._fields), *(f"thing_{name}" for name in ThingState._fields),
    "jaws",
)  # fmt: skip
NEAR_CLEAN = 0.5  # noise level of the second evaluation: predict, renoise, predict


class WorldModel:
    """An action-to-video model with explicit state.

    `state` is a flat TensorDict with batch size [B]: `latent` (B, C, h, w) is the newest frame, `history` the last
    frames' latents, `anchor` the first frame's; `first_…` is what the first frame shows (`appearance.FirstSight`;
    pictures and shares as bytes), `thing_…` where the things in it are now (`motion.ThingState`), `jaws` where those of
    the gripper are (`jaws.poses`); `prompt_features` and `anchor_prompt` are those of the last prompts, `step` and
    `seed` drive the noise. Index assignment is a partial reset, `expand` a branch.

    Args:
        codec, dynamics: frames ↔ latents; latents → latents.
        appearance, things, motion: what the robot looks like; what may be moved; how it moves.
        evaluations: network evaluations per frame when none is named at a call (1 or 2).
        dtype: bfloat16 or float32 arithmetic; None takes bfloat16 where the device multiplies it natively.
    """

    def __init__(
        self,
        codec: FrameCodec,
        dynamics: FrameDynamics,
        appearance: RobotAppearance,
        things: ThingFinder,
        motion: ThingMotion,
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
        self.things = things.to(self.device, **form).eval().requires_grad_(False)
        self.motion = motion.to(self.device).eval().requires_grad_(False)
        self.motion_steps = 1  # of things, in one of the robot
        self.jaws = self._own_jaws()
        self.state_keys = STATE_KEYS
        self.lags: tuple[int, ...] = tuple(dynamics.config.lags)
        height, width = dynamics.config.latent_size
        self.frame_size_px = (4 * width, 4 * height)

    @property
    def parts(self) -> dict[str, ModelMixin]:
        """The networks by the names of their folders."""
        return {name: getattr(self, name) for name in PARTS}

    def for_robot(
        self,
        surfels: Surfels,
        colour: Float[Tensor, "P 3"],
        links: int,
        *,
        gripper: Sequence[int] = (),
        motion_steps: int = 1,
    ) -> WorldModel:
        """Return this model, or one of the same weights that poses another robot: of that surface, in those colours.

        A robot that the model was not trained on moves as its surface does, in the first picture's pixels; one without
        a surface is left to the network.

        Args:
            surfels, colour, links: see `prompts.body.Body`.
            gripper: of a robot that the model does not know: which of the links stand in for those of the gripper that
                things were learned to move with; none: things do not move.
            motion_steps: in how many steps of the trained rate things move while the robot makes one.
        """
        known = self.appearance.named(surfels, links) if links else None
        look = self.appearance if known is None else self.appearance.of(known).painted(colour)
        if links == 0 or (known == self.appearance.name and look.colour is self.appearance.colour):
            return self
        other = copy(self)
        other.motion_steps = motion_steps
        if known is not None:
            other.appearance, other.jaws = look, None
            if known in self.motion.names:
                other.motion = self.motion.of(known)
                other.jaws = other._own_jaws()
            return other
        made = RobotAppearance.of_surface(surfels, colour, links, self.appearance.filler)
        other.appearance = made.to(self.device).eval().requires_grad_(False)
        other.motion = self.motion.for_links(tuple(gripper), links)
        other.jaws = other._own_jaws()
        return other

    @property
    def robots(self) -> tuple[str, ...]:
        """The robots that the model was trained on, by the names of their cards: what they look like, how they move."""
        return tuple(name for name in self.appearance.names if name in self.motion.names)

    @property
    def learned(self) -> bool:
        """Whether the robot that it poses is one of those."""
        return self.appearance.name in self.robots

    # --- files ---

    @staticmethod
    def from_pretrained(
        name_or_folder: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
    ) -> WorldModel:
        """Load a shipped model by name ("tiny") or a folder that `save_pretrained` wrote.

        Models of the video family are of other classes; `vap_gym.load_world_model` loads any of them.

        Raises:
            UnknownNameError: for a name that is not shipped.
            CheckpointError: where files are missing, cut short, tampered with, or do not fit the configuration.
        """
        folder = Path(name_or_folder)
        if not folder.is_dir():
            shipped = weights_dir() / str(name_or_folder)
            if not (shipped / INDEX).is_file():
                known = sorted(p.parent.name for p in weights_dir().glob(f"*/{INDEX}"))
                raise UnknownNameError(
                    f"{unknown_name_message('world model', str(name_or_folder), known)} Models of the video family "
                    "(cogvideox-5b and others, folders and hub ids) are of other classes: "
                    f"vap_gym.load_world_model('{name_or_folder}') loads any."
                )
            folder = shipped
        if not (folder / INDEX).is_file():
            raise CheckpointError(f"'{folder}' must hold {INDEX}, but does not. Give a folder from save_pretrained.")
        index = read_index(folder / INDEX, "WorldModel")
        return WorldModel(
            **{name: load_part(kind, folder, name, index) for name, kind in PARTS.items()},
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
        views: Float[Tensor, "B L 3 4"] | None = None,
        states: Float[Tensor, "B 10"] | None = None,
    ) -> TensorDict:
        """Return the state after seeing each slot's first frame and its prompt.

        Args:
            frames, prompts: of each slot.
            seed: each slot's own noise.
            views: how the cameras see the robot's links (`prompts.body.Body.views`). Without them (the default) the
                model runs, but has to guess how the robot moved, and what it looks like; and nothing else moves.
            states: not used: views tell more.
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
        links = self._checked_views(views, (batch,))
        pictures = to_pictures(frames.to(self.device)).contiguous(memory_format=torch.channels_last)
        sight = first_sight(self.appearance, self.things, pictures, links)
        grip = self._grip(links)
        things = self.motion.begin(sight.there, sight.things_m, sight.shape, grip)
        return TensorDict(
            {
                "latent": latent,
                "history": latent[:, None].expand(-1, max(self.lags), -1, -1, -1).clone(),
                "anchor": latent.clone(),
                "prompt_features": features[:, None].expand(-1, PROMPT_TAPS - 2, -1, -1, -1).clone(),
                "anchor_prompt": features,
                "step": torch.zeros(batch, dtype=torch.int64, device=self.device),
                "seed": seed.to(self.device, torch.int64),
                **kept(sight, frames.to(self.device)),
                **{f"thing_{name}": value for name, value in things._asdict().items()},
                "jaws": poses(self._jaws_of(links), links),
            },
            batch_size=[batch],
        )

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
        interval: int = 1,
    ) -> tuple[TensorDict, UInt8[Tensor, "B K H W 3"] | None]:
        """Imagine K frames, one per prompt; the given state is left as it is.

        Args:
            state: from `start` or an earlier call.
            prompts: the visual action prompts of the K frames to come.
            views: of the links in those frames, if `start` was told. states: not used.
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
        links = self._checked_views(views, tuple(prompts.shape[:2]))
        if links.shape[2] != state["first_views"].shape[1]:
            raise VapError(
                f"views must be of the links that start() was given ({state['first_views'].shape[1]} of them), "
                f"got {links.shape[2]}. Give them to both or to neither."
            )
        frames = []
        for k in range(prompts.shape[1]):
            state, posed, gate = self._step(state, prompts[:, k], links[:, k], evaluations, interval)
            if decode:
                frames.append(self._frames(state["latent"], posed, gate))
        return state, torch.stack(frames, dim=1) if decode else None

    def _frames(
        self, latents: Float[Tensor, "B C h w"], posed: Posed, gate: Float[Tensor, "B 1 H W"] | None
    ) -> UInt8[Tensor, "B H W 3"]:
        with self._autocast():
            decoded = self.codec.decode(latents.contiguous(memory_format=torch.channels_last))
        return to_frames(composed(decoded, posed.picture, gate))

    def _step(
        self, state: TensorDict, prompts: Tensor, links: Tensor, evaluations: int, interval: int
    ) -> tuple[TensorDict, Posed, Tensor | None]:
        history, batch = state["history"], len(state)
        now = self._features(prompts)
        taps = torch.cat([now[:, None], state["prompt_features"], state["anchor_prompt"][:, None]], dim=1)
        seen = history[:, [lag - 1 for lag in self.lags]]
        things = ThingState(*(state[f"thing_{name}"] for name in ThingState._fields))
        if self.motion.knows(links):
            things, _ = self.motion.follow(things, self._grip(links), self.motion_steps)
        shown, jaws = stopped(self._jaws_of(links), links, state["jaws"], things)
        posed = self._posed(state, things, shown)
        with self._autocast():
            seen_now = self.codec.encode(posed.picture.contiguous(memory_format=torch.channels_last)).float()
        source = cell_means(posed.source, (seen_now.shape[2], seen_now.shape[3]))
        scale, made, gate = float(self.dynamics.config.noise_scale), None, None
        spans = torch.full((batch,), float(interval), device=self.device)
        for i in range(evaluations):
            level = 1.0 if made is None else NEAR_CLEAN
            noise = counter_noise(state["seed"], state["step"], i, tuple(history.shape[2:]))
            noisy = scale * noise if made is None else (1 - level) * made + level * scale * noise
            times = torch.full((batch,), level, device=self.device)
            with self._autocast():
                made, gate = self.dynamics(seen, state["anchor"], noisy, times, spans, taps, seen_now, source)
        assert made is not None
        following = state.copy()
        following["latent"] = made
        following["history"] = torch.cat([made[:, None], history[:, :-1]], dim=1)
        following["prompt_features"] = torch.cat([now[:, None], state["prompt_features"][:, :-1]], dim=1)
        following["step"], following["jaws"] = state["step"] + 1, jaws
        for name, value in things._asdict().items():
            following[f"thing_{name}"] = value
        return following, posed, gate

    def _posed(self, state: TensorDict, things: ThingState, links: Tensor) -> Posed:
        base = int(self.things.config.base)
        return posed_picture(self.appearance, sight_of(state), things.place_m, things.turn, links, base=base)

    def _grip(self, links: Tensor) -> Float[Tensor, "B G 12"]:
        if not self.motion.knows(links):
            return links.new_zeros(len(links), len(self.motion.grippers[0]), 12)
        return self.motion.grip(links)  # type: ignore[no-any-return]

    def _own_jaws(self) -> Jaws | None:
        """The jaws of the robot whose things move."""
        motion = self.motion
        if motion.link_counts[motion.current] != self.appearance.links:
            return None
        return jaws_of(motion.bases[motion.current], motion.grippers[motion.current], self.appearance.surfels)

    def _jaws_of(self, links: Tensor) -> Jaws | None:
        """The jaws of the robot whose links these are, where it is the one whose things move."""
        return self.jaws if self.motion.knows(links) else None

    def _features(self, prompts: Tensor) -> Tensor:
        pictures = to_pictures(prompts.to(self.device)).contiguous(memory_format=torch.channels_last)
        with self._autocast():
            return self.dynamics.trajectory.features(pictures).float()  # type: ignore[no-any-return]

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
