"""Trajectory encoder (Sec. 3.3): visual action prompts → action latents, by convolutions that never look ahead."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

Cache = tuple[Tensor, ...]
TAPS = 3  # frames that a causal kernel sees: its own and the two before


class CausalConv(nn.Module):
    """3×3×3 convolution over time, height and width; in time it sees its own frame and the two before.

    Computed as a 2-D convolution of three frames' channels side by side, which is the same sum and, on CPUs, several
    times faster than torch's 3-D one. Before the first frame its copies are taken, as CogVideoX's own VAE does.
    """

    def __init__(self, inputs: int, outputs: int, *, time_stride: int = 1, space_stride: int = 1) -> None:
        super().__init__()
        self.time_stride = time_stride
        self.conv = nn.Conv2d(TAPS * inputs, outputs, 3, stride=space_stride, padding=1)

    def forward(
        self, frames: Float[Tensor, "B T C H W"], before: Float[Tensor, "B 2 C H W"] | None = None
    ) -> tuple[Float[Tensor, "B F O h w"], Float[Tensor, "B 2 C H W"]]:
        """Return the outputs and the last two inputs, which the next call takes as `before`.

        With a stride in time the first frame has an output of its own, and then each `time_stride` frames have one, at
        the last of them: so a first call takes 1 + s·k frames, later ones s·k.
        """
        is_first = before is None
        if before is None:
            before = frames[:, :1].expand(-1, TAPS - 1, -1, -1, -1)
        known = torch.cat([before, frames], dim=1)
        start = 0 if is_first else self.time_stride - 1
        windows = known.unfold(1, TAPS, 1)[:, start :: self.time_stride]  # B F C H W taps
        joined = windows.permute(0, 1, 5, 2, 3, 4).flatten(2, 3)
        done = self.conv(joined.flatten(0, 1)).unflatten(0, joined.shape[:2])
        return done, known[:, 1 - TAPS :]


class TrajectoryEncoder(nn.Module):
    """(B, T, P, H, W) in [−1, 1] → action latents (B, F, channels, H / space_stride, W / space_stride).

    T = 1 + time_stride·(F − 1), and latent frame f sees frames up to time_stride·f. Pictures are RGB (P = 3) or depth
    (P = 1).
    """

    def __init__(
        self, *, prompt_channels: int, channels: int = 16, width: int = 32, time_stride: int = 1, space_stride: int = 4
    ) -> None:
        super().__init__()
        self.unshuffle = nn.PixelUnshuffle(4)
        self.per_frame = nn.Conv2d(16 * prompt_channels, width, 3, padding=1)
        down = [2, 2] if time_stride == 4 else [1, 1]
        self.causal = nn.ModuleList(
            [
                CausalConv(width, width, time_stride=down[0], space_stride=space_stride // 4),
                CausalConv(width, width, time_stride=down[1]),
            ]
        )
        self.out = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, prompts: Float[Tensor, "B T P H W"]) -> Float[Tensor, "B F A h w"]:
        """Encode whole clips."""
        return self.step(prompts, None)[0]

    def step(
        self, prompts: Float[Tensor, "B T P H W"], cache: Cache | None
    ) -> tuple[Float[Tensor, "B F A h w"], Cache]:
        """Encode the next frames of clips, given the cache that the step before returned (None at their beginning).

        The first step takes 1 + time_stride·k frames, later ones time_stride·k. All steps together return what
        `forward` makes of all frames at once, up to rounding.
        """
        batch = len(prompts)
        x = self.per_frame(self.unshuffle(prompts.flatten(0, 1))).unflatten(0, (batch, -1))
        kept = []
        for i, layer in enumerate(self.causal):
            x, last = layer(F.silu(x), None if cache is None else cache[i])
            kept.append(last)
        return self.out(F.silu(x).flatten(0, 1)).unflatten(0, x.shape[:2]), tuple(kept)
