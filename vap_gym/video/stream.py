"""Frame by frame: a causal video model as a stream, with kept keys and values, and memory that stops growing.

A frame costs its evaluations (predict; renoise, predict; …) and one pass of the finished frame that writes its keys.
Frame by frame gives what the causal model gives for the whole clip at once, up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from vap_gym.errors import VapError
from vap_gym.video.cache import PrefixAttention, Ring, RingAttention
from vap_gym.video.causal import CausalVideoNetwork
from vap_gym.video.passes import control_pass, main_pass

MOST_EVALUATIONS = 4
TRAJECTORY = 2  # tensors that the trajectory encoder remembers
Noise = Callable[[int], Float[Tensor, "B C h w"]]


@dataclass(frozen=True, kw_only=True)
class Level:
    """One evaluation: noisy = signal · clean + noise · standard normal, told to the network as `timestep`."""

    timestep: float
    signal: float
    noise: float


@lru_cache(maxsize=32)
def levels(
    prediction: str, evaluations: int, noise_scale: float = 1.0, snr_shift_scale: float = 1.0
) -> tuple[Level, ...]:
    """Return the noise levels of a frame's evaluations, evenly spaced from pure noise on.

    `noise_scale` is that of an "x0" model's settings, `snr_shift_scale` of the noise that a "v" model was trained with.

    Raises:
        VapError: evaluations not from 1 to 4.
    """
    if not 1 <= evaluations <= MOST_EVALUATIONS:
        raise VapError(f"evaluations must be 1 to {MOST_EVALUATIONS} per frame, got {evaluations}. Try 2.")
    shares = [1.0 - i / evaluations for i in range(evaluations)]
    if prediction == "x0":
        return tuple(Level(timestep=1000.0 * s, signal=1.0 - s, noise=s * noise_scale) for s in shares)
    kept = kept_of_clean(snr_shift_scale)
    steps = [round(1000 * s) - 1 for s in shares]
    return tuple(
        Level(timestep=float(t), signal=float(kept[t].sqrt()), noise=float((1 - kept[t]).sqrt())) for t in steps
    )


@lru_cache(maxsize=8)
def kept_of_clean(snr_shift_scale: float = 1.0) -> Float[Tensor, "1000"]:
    """Return the share of clean latents' variance at CogVideoX's time steps 0 … 999; 0 at the last.

    `snr_shift_scale` is 1 for CogVideoX-5B-I2V; larger ones leave less of what is clean.
    """
    from diffusers.schedulers.scheduling_ddim_cogvideox import CogVideoXDDIMScheduler

    kept: Tensor = CogVideoXDDIMScheduler(
        snr_shift_scale=snr_shift_scale, rescale_betas_zero_snr=True, prediction_type="v_prediction",
        timestep_spacing="trailing",
    ).alphas_cumprod  # fmt: skip
    return kept.float()


def clean_of(prediction: str, predicted: Tensor, noisy: Tensor, level: Level) -> Tensor:
    """Return the clean latents that a network's output stands for."""
    return predicted if prediction == "x0" else level.signal * noisy - level.noise * predicted


class Stream:
    """Streams a causal network: weights and settings only; memory is handed in and returned, one row per slot.

    Memory is a flat dict of tensors, batch first: `step` (frames made so far), `anchor` (the first frame's latents),
    `trajectory_0`, `trajectory_1` (of the trajectory encoder), and the kept keys and values (`cache.Ring`).

    Args:
        network: the causal network.
        window: frames that are kept beside the anchor; None: as many as the trained positions hold.
        control: "once" or "each", as the network was trained.
        snr_shift_scale: of the noise that a "v" model was trained with, as in its scheduler's config.
    """

    def __init__(
        self,
        network: CausalVideoNetwork,
        *,
        window: int | None = None,
        control: str = "once",
        snr_shift_scale: float = 1.0,
    ) -> None:
        network.check_streamable(control)
        self.network, self.settings, self.control = network, network.settings, control
        self.snr_shift_scale = snr_shift_scale
        known = network.known_frames
        self.window = known - 2 if window is None else window
        if not 1 <= self.window <= known - 2:
            raise VapError(
                f"window must be 1 to {known - 2} frames (the network knows {known} places: the anchor's, the new "
                f"frame's and those between), got {self.window}. None takes all of them."
            )

    def ring(self, words: int, tokens: int) -> Ring:
        """What is kept for texts of so many words."""
        transformer = self.network.transformer
        layers = len(transformer.base.transformer_blocks) + len(transformer.control_out)
        return Ring(window=self.window, tokens=tokens, words=words, last=self.network.known_frames - 1, layers=layers)

    def levels(self, evaluations: int) -> tuple[Level, ...]:
        """Return the noise levels of a frame's evaluations. Raises VapError where they are not 1 to 4."""
        return levels(self.settings.prediction, evaluations, self.settings.noise_scale, self.snr_shift_scale)

    def begin(
        self,
        first: Float[Tensor, "B C h w"],
        prompts: Float[Tensor, "B 1 P H W"] | None = None,
        *,
        text: Float[Tensor, "B L E"] | Int64[Tensor, "B L"] | None = None,
        states: Float[Tensor, "B 1 S"] | None = None,
    ) -> dict[str, Tensor]:
        """Return the memory of slots that have seen their first frames (and prompts, text and robot states)."""
        network, batch = self.network, len(first)
        image = first[:, None]
        action, trajectory = self._action(prompts, image, None)
        words = network.words_of(text, batch)
        index = torch.zeros(1, 1, dtype=torch.float64, device=first.device)
        entered = network.enter(image, image, action, index)
        rotary = network.rotary(entered.seen)
        condition = network._condition(states, None, batch, 1)
        given = network.tokens(entered, words, first.new_zeros(batch, 1), condition)
        attend = PrefixAttention(words=words.shape[1], turn=None if rotary is None else rotary.at(index))
        main_pass(network.transformer, given, control_pass(network.transformer, given, attend), attend)
        memory = self.ring(words.shape[1], entered.main.shape[2]).begun(attend) | trajectory
        memory |= {"anchor": first, "step": torch.zeros(batch, dtype=torch.int64, device=first.device)}
        return memory

    def advance(
        self,
        memory: Mapping[str, Tensor],
        prompts: Float[Tensor, "B T P H W"] | None,
        noise: Noise,
        *,
        evaluations: int = 1,
        states: Float[Tensor, "B T S"] | None = None,
    ) -> tuple[dict[str, Tensor], Float[Tensor, "B C h w"]]:
        """Return the memory and the latents after one more latent frame. The given memory is left as it is.

        Args:
            memory: from `begin` or an earlier call; slots may be at different steps.
            prompts: of the time_stride frames to come; None: black ones.
            noise: gives standard normal noise (B, C, h, w) for evaluation 0, 1, ….
            evaluations: of the network, 1 to 4.
            states: of the robot in the frames to come, for models of condition "raw_state"; None: they are not told.
        """
        frame = Frame(self, memory, prompts, states)
        latents: Tensor | None = None
        for i, level in enumerate(self.levels(evaluations)):
            noisy = level.noise * noise(i)
            noisy = noisy if latents is None else level.signal * latents + noisy
            latents = clean_of(self.settings.prediction, frame.predict(noisy, level.timestep), noisy, level)
        assert latents is not None
        return frame.finished(latents), latents

    def _action(
        self, prompts: Tensor | None, image: Tensor, before: tuple[Tensor, ...] | None
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Action latents of the newest prompts and what the trajectory encoder remembers."""
        network = self.network
        if network.trajectory is None:
            return None, {}
        if prompts is None:
            prompts = network._black(image)  # one picture
            count = 1 if before is None else self.settings.time_stride
            prompts = prompts.expand(-1, count, -1, -1, -1)
        action, kept = network.trajectory.step(prompts, before)
        return action, {f"trajectory_{i}": value for i, value in enumerate(kept)}


class Frame:
    """The next frame of every slot while it is made: what stays the same over its evaluations is computed once."""

    def __init__(
        self, stream: Stream, memory: Mapping[str, Tensor], prompts: Tensor | None, states: Tensor | None = None
    ) -> None:
        network, anchor = stream.network, memory["anchor"]
        self._stream, self._memory, self._network = stream, memory, network
        before = tuple(memory[f"trajectory_{i}"] for i in range(TRAJECTORY)) if network.trajectory is not None else None
        self._action, self._trajectory = stream._action(prompts, anchor[:, None], before)
        self._number = memory["step"] + 1
        self._image = network.spread(anchor, 2)[:, 1:]
        self._index = self._number.double()[:, None]
        self._condition = network._condition(states, None, len(anchor), 1)
        self._words = network.words_of(None, len(anchor))[:, :0]
        self._attend: RingAttention | None = None
        self._residuals: list[Tensor] | None = None

    def predict(self, noisy: Float[Tensor, "B C h w"], timestep: float) -> Float[Tensor, "B C h w"]:
        """Evaluate the network at a noise level."""
        network = self._network
        entered = network.enter(noisy[:, None], self._image, self._action, self._index)
        time = torch.full((len(noisy), 1), timestep, device=noisy.device)
        given = network.tokens(entered, self._words, time, self._condition)
        if self._attend is None:
            words = self._memory["sink_keys_0"].shape[2] - entered.main.shape[2]
            ring = self._stream.ring(words, entered.main.shape[2])
            self._attend = RingAttention(ring, self._memory, self._number, network.rotary(entered.seen))
            self._ring = ring
        if self._residuals is None or self._stream.control == "each":
            shown = given
            if self._stream.control == "once":
                clean = torch.zeros(1, 1, dtype=torch.bool, device=noisy.device)
                shown = network.shown_to_control(given, entered, self._index, clean, self._condition)
            self._residuals = control_pass(network.transformer, shown, self._attend)
        output = main_pass(network.transformer, given, self._residuals, self._attend)
        return network.leave(output, entered, self._image)[:, 0]

    def finished(self, latents: Float[Tensor, "B C h w"]) -> dict[str, Tensor]:
        """Return the memory that knows the finished frame: its clean latents pass once more, and are kept."""
        self.predict(latents, 0.0)
        assert self._attend is not None
        kept = self._ring.written(self._memory, self._attend.fresh, self._number)
        return kept | self._trajectory | {"step": self._number}
