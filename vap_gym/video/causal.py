"""The block-causal video model: the weights of `VideoNetwork`, in which a frame sees the past only.

A frame sees the words, the anchor (the clean first frame) and the frames up to itself; words and anchor see nothing but
themselves. So what was computed of them is never computed again in a stream (`stream.Stream`), whatever comes. Every
frame has a noise level of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from vap_gym.errors import VapError, unknown_name
from vap_gym.video.network import VideoNetwork
from vap_gym.video.passes import FrameTokens, Rotary, WholeClip, causal_mask, control_pass, main_pass, token_mask
from vap_gym.video.positions import rotary_positions
from vap_gym.video.stem import Skips

CONTROLS = ("once", "each")
UNSEEN = 999.0  # the time step of frames whose video the control branch is not shown


class Entered(NamedTuple):
    """Frames before the transformer: as tokens, and what goes around it."""

    main: Float[Tensor, "B F N D"]
    moves: Float[Tensor, "B F N D"]
    seen: Float[Tensor, "B F W h2 w2"]
    skips: Skips | None


class CausalVideoNetwork(VideoNetwork):
    """`VideoNetwork` as a stream can use it: same settings, same parameters, same names; weights go either way.

    The ControlNet works once per frame (`control="once"`, the default): of the frames after the anchor it is shown the
    actions only, no video, so that what it adds does not depend on the noise and holds for all evaluations of a frame.
    For CogVideoX's own weights this is the noisy video replaced by its mean. "each" shows it the noisy video at every
    evaluation, as the bidirectional model does.
    """

    @classmethod
    def with_weights_of(cls, network: VideoNetwork) -> CausalVideoNetwork:
        """Return a causal network with the very weights of a bidirectional one; it has to be trained before it is good
        at seeing less."""
        with torch.device("meta"):
            made = cls(**network.settings.to_dict())
        made.load_state_dict(network.state_dict(), assign=True)
        for name, value in network.named_buffers():  # tables that are no weights are not in a state dict
            owner, _, last = name.rpartition(".")
            setattr(made.get_submodule(owner), last, value)
        return made.train(network.training)  # type: ignore[no-any-return]

    def forward(  # type: ignore[override]
        self,
        noisy: Float[Tensor, "B F C h w"],
        image: Float[Tensor, "B F C h w"],
        timestep: Float[Tensor, "B *F"],
        *,
        prompts: Float[Tensor, "B T P H W"] | None = None,
        action: Float[Tensor, "B F A h w"] | None = None,
        text: Float[Tensor, "B L E"] | Int64[Tensor, "B L"] | None = None,
        states: Float[Tensor, "B T S"] | None = None,
        interval: Float[Tensor, " B"] | None = None,
        sees: Bool[Tensor, "F F"] | None = None,
        positions: Sequence[int] | None = None,
        control: str = "once",
    ) -> Float[Tensor, "B F C h w"]:
        """Predict v, or the clean latents, of all frames at once, each from the past only.

        Args:
            noisy: latents with noise. Whatever stands at the first frame is replaced by the clean anchor.
            image: the first frame's latents, see `spread`.
            timestep: 0 to 1000, of every frame (B, F), or of all but the anchor, whose is 0 (B,).
            prompts, action, text, states, interval: as for `VideoNetwork`; `action` of these F frames.
            sees: which frame (row) sees which; None: `passes.causal_mask`. `passes.teacher_mask` needs `positions`.
            positions: the place in time of every frame; None: 0, 1, 2, …
            control: "once" or "each", see above.
        """
        self.check_streamable(control)
        batch, frames = noisy.shape[:2]
        places = list(range(frames)) if positions is None else list(positions)
        if action is None:
            action = self.action_of(prompts, noisy)
            action = None if action is None else action[:, places]
        noisy = torch.cat([image[:, :1], noisy[:, 1:]], 1)
        levels = timestep[:, None].expand(-1, frames) if timestep.ndim == 1 else timestep
        levels = torch.cat([torch.zeros_like(levels[:, :1]), levels[:, 1:]], 1)
        condition = self._condition(states, interval, batch, max(places) + 1)
        if condition is not None and condition.ndim == 3:
            condition = condition[:, places]
        index = torch.tensor(places, dtype=torch.float64, device=noisy.device)[None]
        entered, words = self.enter(noisy, image, action, index), self.words_of(text, batch)
        mask = causal_mask(frames) if sees is None else sees
        mask = token_mask(mask.to(noisy.device), words=words.shape[1], tokens=entered.main.shape[2])
        rotary = self.rotary(entered.seen)
        attend = WholeClip(mask, words=words.shape[1], turn=None if rotary is None else rotary.at(index))
        clean = torch.arange(frames, device=noisy.device)[None] == 0
        given = self.tokens(entered, words, levels, condition)
        shown = given if control == "each" else self.shown_to_control(given, entered, index, clean, condition)
        output = main_pass(self.transformer, given, control_pass(self.transformer, shown, attend), attend)
        return self.leave(output, entered, image)

    # --- pieces that a stream uses frame by frame ---

    def check_streamable(self, control: str = "once") -> None:
        """Raise VapError where these settings have no block-causal form."""
        if control not in CONTROLS:
            raise unknown_name("way to control a causal model", control, CONTROLS)
        if self.settings.group != 1:
            raise VapError(
                f"A causal model needs one frame of tokens per latent frame, got patch_size_t={self.settings.group} "
                "(CogVideoX 1.5). Take weights of CogVideoX 1.0."
            )

    @property
    def known_frames(self) -> int:
        """How many latent frames' positions the base was trained with."""
        base = self.transformer.base.config
        return int(base.sample_frames - 1) // int(base.temporal_compression_ratio) + 1

    def action_of(self, prompts: Tensor | None, noisy: Tensor) -> Float[Tensor, "B F A h w"] | None:
        """Action latents of prompts, black ones where there are none; None for a model without pictures."""
        if self.trajectory is None:
            if prompts is not None:
                self.encode_prompts(prompts)  # says why not
            return None
        return self.encode_prompts(self._black(noisy) if prompts is None else prompts)

    def words_of(self, text: Tensor | None, batch: int) -> Float[Tensor, "B L D"]:
        """Tokens of the text; no tokens where the model has no text."""
        embed = self.transformer.base.patch_embed
        if text is not None and not text.is_floating_point():
            if self.embed_words is None:
                raise VapError("Numbers of words need a model with text='words'. Give this one embeddings (B, L, E).")
            text = self.embed_words(text)
        text = self.no_text(batch) if text is None else text
        weight = embed.text_proj.weight
        if text is None:
            return weight.new_zeros(batch, 0, len(weight))  # type: ignore[no-any-return]
        words: Tensor = embed.text_proj(text)
        table = self._table((1, 1))
        return words if table is None else words + table[:, : words.shape[1]].to(words.dtype)

    def enter(
        self,
        noisy: Float[Tensor, "B F C h w"],
        image: Float[Tensor, "B F C h w"],
        action: Float[Tensor, "B F A h w"] | None,
        index: Float[Tensor, "b F"],
    ) -> Entered:
        """Return frames as tokens. `index` is their place in time, one row for all or one each."""
        seen, skips = torch.cat([noisy, image], 2), None
        if self.stem is not None:
            seen, action, skips = self.stem.enter(seen, action)
        main = self._patches(self.transformer.base.patch_embed.proj, seen)
        moves = torch.zeros_like(main) if action is None else self._patches(self.transformer.action_embed, action)
        return Entered(main + self._places(seen, index), moves, seen, skips)

    def leave(
        self, output: Float[Tensor, "B F N O"], entered: Entered, image: Float[Tensor, "B F C h w"]
    ) -> Float[Tensor, "B F C h w"]:
        """Return latents from what `main_pass` made of the frames that entered."""
        height, width = entered.seen.shape[-2:]
        p = int(self.transformer.base.config.patch_size)
        x = output.unflatten(-1, (-1, p, p)).unflatten(2, (height // p, width // p))  # B F h w O p p
        x = x.permute(0, 1, 4, 2, 5, 3, 6).flatten(5, 6).flatten(3, 4)
        if self.stem is not None:
            x = self.stem.leave(x, entered.seen, entered.skips)
        return image + x if self.settings.residual else x  # type: ignore[no-any-return]

    def tokens(self, entered: Entered, words: Tensor, levels: Tensor, condition: Tensor | None) -> FrameTokens:
        """Put frames, words and noise levels (time steps, (B, F)) together."""
        time = self.transformer.time_embedding(levels, condition, dtype=entered.main.dtype)
        return FrameTokens(main=entered.main, moves=entered.moves, words=words, time=time)

    def shown_to_control(
        self,
        given: FrameTokens,
        entered: Entered,
        index: Float[Tensor, "b F"],
        clean: Bool[Tensor, "c F"],
        condition: Tensor | None,
    ) -> FrameTokens:
        """What the control branch sees with `control="once"`: of all frames but the anchor (`clean`) no video."""
        proj = self.transformer.base.patch_embed.proj
        nothing = self._places(entered.seen, index)
        nothing = (nothing if proj.bias is None else nothing + proj.bias).expand_as(given.main)
        levels = torch.where(clean, 0.0, UNSEEN).expand(given.main.shape[:2])
        time = self.transformer.time_embedding(levels, condition, dtype=given.main.dtype)
        main = torch.where(clean[..., None, None], given.main, nothing.to(given.main.dtype))
        return FrameTokens(main=main, moves=given.moves, words=given.words, time=time)

    def rotary(self, seen: Float[Tensor, "B F W h w"]) -> Rotary | None:
        """Rotary positions of frames of this size, or None where the base has none."""
        size = (seen.shape[-2], seen.shape[-1])
        first = rotary_positions(self.settings.base_config, size, [0], seen.device)
        return None if first is None else Rotary(cos=first[0], sin=first[1])

    def _patches(self, proj: torch.nn.Module, frames: Tensor) -> Float[Tensor, "B F N D"]:
        made: Tensor = proj(frames.flatten(0, 1)).flatten(2).transpose(1, 2)
        return made.unflatten(0, frames.shape[:2])  # type: ignore[no-any-return]

    def _table(self, size: tuple[int, int]) -> Tensor | None:
        """The position table that is added to tokens, text first; None where the base has rotary positions only."""
        embed = self.transformer.base.patch_embed
        if not (embed.use_positional_embeddings or embed.use_learned_positional_embeddings):
            return None
        if size in ((1, 1), (embed.sample_height, embed.sample_width)):
            return embed.pos_embedding  # type: ignore[no-any-return]
        if embed.use_learned_positional_embeddings:
            raise VapError(
                f"The learned positions are for latents of {(embed.sample_height, embed.sample_width)}, got {size}. "
                f"Give frames of {self.settings.frame_size_px} px (width, height)."
            )
        return embed._get_positional_embeddings(*size, embed.sample_frames, device=embed.pos_embedding.device)  # type: ignore[no-any-return]

    def _places(self, seen: Tensor, index: Tensor) -> Float[Tensor, "b F N D"]:
        """What is added to tokens for their place. Frames after the last known one have the last one's place."""
        embed, (height, width) = self.transformer.base.patch_embed, seen.shape[-2:]
        table = self._table((height, width))
        if table is None:
            return seen.new_zeros(1, 1, 1, embed.embed_dim)
        rows = table[0, embed.max_text_seq_length :].unflatten(0, (self.known_frames, -1))
        return rows[index.long().clamp(max=self.known_frames - 1)].to(seen.dtype)  # type: ignore[no-any-return]
