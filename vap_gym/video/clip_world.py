"""ClipWorld: a video model of whole clips as a `World`, a clip a step: the paper's own way, and its action chunks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from vap_gym.errors import VapError
from vap_gym.video.given import check_frames, told_states, told_words
from vap_gym.video.model import VideoModel

if TYPE_CHECKING:
    from tensordict import TensorDict

NEXT_CLIP = 0x1E3779B97F4A7C15  # added to a slot's seed for each clip: large, so that seeds of clips do not meet


class ClipWorld:
    """A model of whole clips with explicit state: a flat TensorDict with batch size [B].

    A step is a clip: `chunk` actions give that many frames after the newest picture, all at once (24 for the paper's 25
    frames). The next clip begins with the last frame of this one and knows nothing of what was before. `picture` is the
    newest frame, `latent` its latents as a first frame, `prompt` and `told` what was drawn and told of the robot then;
    index assignment is a partial reset, `expand` a branch. What a slot imagines depends on its own seed alone.

    Args:
        model: the weights.
        evaluations: of the network for a clip; None: as `VideoModel.generate`, 50 ("v") or 2 ("x0").
        guidance: 1 for none; None: 6 for "v" models with an instruction, else 1.
        text: the instruction of all clips; None: the empty one.

    Raises:
        VapError: the model takes no words, or has nothing to read them with.
    """

    def __init__(
        self,
        model: VideoModel,
        *,
        evaluations: int | None = None,
        guidance: float | None = None,
        text: str | Tensor | None = None,
    ) -> None:
        guided = model.settings.prediction == "v" and (isinstance(text, Tensor) or bool(text))
        self.model, self.evaluations, self.text = model, evaluations, told_words(model, text)
        self.guidance = guidance if guidance is not None else (6.0 if guided else 1.0)
        self.device, self.chunk = model.device, model.settings.clip_frames - 1
        self.frame_size_px = model.frame_size_px

    @property
    def prompt(self) -> str:
        """The kind of prompt that it was trained on; "none" for models that are told states, words or nothing."""
        return self.model.settings.prompt

    @property
    def height_cue(self) -> bool:
        """Whether the skeletons that it was trained on had their drop line."""
        return self.model.settings.height_cue

    @property
    def state_keys(self) -> tuple[str, ...]:
        """What a state holds."""
        told = ("told",) if self.model.settings.condition == "raw_state" else ()
        return ("picture", "latent", "prompt", "seed", "step", *told)

    def decode(self, latents: Float[Tensor, "*batch C h w"]) -> UInt8[Tensor, "*batch H W 3"]:
        """Latents → frames, each as the first of a clip."""
        flat = latents.reshape(-1, 1, *latents.shape[-3:])
        frames = self.model.decode(flat)[:, 0]
        return frames.reshape(*latents.shape[:-3], *frames.shape[1:])

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
        """Return the state after seeing each slot's first frame and its prompt; `views` are not used."""
        from tensordict import TensorDict

        check_frames(frames, "frames", self.frame_size_px)
        check_frames(prompts, "prompts", self.frame_size_px)
        if prompts.shape != frames.shape or tuple(seed.shape) != (len(frames),):
            raise VapError(
                "frames and prompts must have shape (B, H, W, 3) and seed (B,), "
                f"got {tuple(frames.shape)}, {tuple(prompts.shape)} and {tuple(seed.shape)}. Give one of each per slot."
            )
        told = told_states(self.model.settings, None if states is None else states[:, None], len(frames), 1)
        memory = {"prompt": prompts.to(self.device), "seed": seed.to(self.device, torch.int64)}
        memory |= {"step": torch.zeros_like(memory["seed"])} | self._newest(frames.to(self.device))
        if told is not None:
            memory["told"] = told[:, 0].to(self.device)
        return TensorDict(memory, batch_size=[len(frames)])

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
            state: from `start` or an earlier call; slots may be at different steps.
            prompts: of the K frames to come.
            views: not used.
            states: of the robot in those frames, for models of condition "raw_state".
            decode: False leaves the frames out; they are made all the same, since the next clip begins with one.
            evaluations: of the network for each clip.
        """
        from tensordict import TensorDict

        check_frames(prompts, "prompts", self.frame_size_px)
        if prompts.ndim != 5 or len(prompts) != len(state) or not prompts.shape[1] or prompts.shape[1] % self.chunk:
            raise VapError(
                f"prompts must have shape ({len(state)}, {self.chunk}·k, H, W, 3), got {tuple(prompts.shape)}."
            )
        told = told_states(self.model.settings, states, *prompts.shape[:2])
        memory, frames = {name: state[name] for name in self.state_keys}, []
        for k, part in enumerate(prompts.to(self.device).split(self.chunk, 1)):
            now = None if told is None else told[:, k * self.chunk : (k + 1) * self.chunk].to(self.device)
            clip = self._clip(memory, part, now, self.evaluations if evaluations is None else evaluations)
            memory |= {"prompt": part[:, -1], "step": memory["step"] + 1} | self._newest(clip[:, -1])
            if now is not None:
                memory["told"] = now[:, -1]
            frames.append(clip)
        following = TensorDict(memory, batch_size=state.batch_size)
        return following, torch.cat(frames, 1) if decode else None

    def _newest(self, frames: UInt8[Tensor, "B H W 3"]) -> dict[str, Tensor]:
        return {"picture": frames, "latent": self.model.encode(frames[:, None])[:, 0]}

    def _clip(
        self, memory: dict[str, Tensor], prompts: Tensor, states: Tensor | None, evaluations: int | None
    ) -> UInt8[Tensor, "B K H W 3"]:
        """The frames after the newest picture."""
        seeds = memory["seed"] + NEXT_CLIP * memory["step"]
        given: dict[str, Any] = {"frames": self.chunk + 1, "steps": evaluations, "guidance": self.guidance}
        if self.prompt != "none":
            given["prompts"] = torch.cat([memory["prompt"][:, None], prompts], 1)
        if states is not None:
            given["states"] = torch.cat([memory["told"][:, None], states], 1)
        if self.model.settings.prediction == "x0":
            clips = self.model.generate(memory["picture"], seed=seeds, text=self._text(len(seeds)), **given)
            return clips[:, 1:]
        alone = []  # one by one, since "v" models draw the noise of a batch together
        for i, seed in enumerate(seeds.tolist()):
            mine: dict[str, Any] = {k: x[i : i + 1] if isinstance(x, Tensor) else x for k, x in given.items()}
            alone.append(self.model.generate(memory["picture"][i : i + 1], seed=seed, text=self._text(1), **mine))
        return torch.cat(alone)[:, 1:]

    def _text(self, batch: int) -> str | Tensor | None:
        return self.text.expand(batch, -1, -1) if isinstance(self.text, Tensor) else self.text
