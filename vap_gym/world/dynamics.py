"""Dynamics of the `tiny` family: convolutions at latent size around a CogVideoX transformer at a quarter of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from vap_gym.world.articulated import robot_flow, warp
from vap_gym.world.attention import PlainAttention
from vap_gym.world.layers import ResBlock, zeroed
from vap_gym.world.transformer import ControlledTransformer

MAKING = -4.0  # logit of how much of a cell is newly made, before training
DISPLACEMENT_SCALE = 8.0  # cells that the network sees as 1
LEAST_WAY = 0.12  # cells; what moves less in a step rests, so that what rests is not blurred
STRIDE_PX = 4.0  # of a latent cell
PROMPT_TAPS = 4  # prompt features joined for one frame: this frame's, the two before it, the anchor's


class TrajectoryEncoder(nn.Module):
    """Visual action prompts → action latents, causal in time: (T, H, W, 3) → (T, H/4, W/4, action_channels).

    The paper's encoder (Sec. 3.3) compresses time by 4 as its VAE does; here a latent is one frame. A frame's action
    latents see its own prompt, the two before it and the anchor's: a causal kernel of three plus the first frame.
    """

    def __init__(self, *, action_channels: int, features: int) -> None:
        super().__init__()
        self.per_frame = nn.Sequential(
            nn.PixelUnshuffle(4), nn.Conv2d(48, 48, 3, padding=1), nn.SiLU(), nn.Conv2d(48, features, 3, padding=1)
        )
        self.join_frames = nn.Sequential(
            nn.SiLU(),
            nn.Conv2d(PROMPT_TAPS * features, 48, 3, padding=1),
            ResBlock(48),
            nn.SiLU(),
            nn.Conv2d(48, action_channels, 3, padding=1),
        )

    def features(self, prompts: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N F h w"]:
        """Features of single prompt pictures in [−1, 1]: computed once per frame and kept in the state."""
        return self.per_frame(prompts)  # type: ignore[no-any-return]

    def forward(self, taps: Float[Tensor, "N taps F h w"]) -> Float[Tensor, "N A h w"]:
        """Action latents from the features of (this frame, one before, two before, anchor)."""
        return self.join_frames(taps.flatten(1, 2))  # type: ignore[no-any-return]


class Prediction(NamedTuple):
    """What the dynamics say of the next frame: its latents, the displacement to hand in with the step after it, and the
    first picture carried along that displacement (one of the latents' sources, trained to be right by itself)."""

    latent: Float[Tensor, "B C h w"]
    displacement: Float[Tensor, "B 2 h w"]
    carried: Float[Tensor, "B C h w"]


class RobotMotion(NamedTuple):
    """What kinematics says of the robot's cells: their flow from the last frame and the anchor, and where it holds."""

    from_last: Float[Tensor, "B 2 h w"]
    in_last: Float[Tensor, "B 1 h w"]
    from_anchor: Float[Tensor, "B 2 h w"]
    in_anchor: Float[Tensor, "B 1 h w"]


class FrameDynamics(ModelMixin, ConfigMixin):
    """One frame a step: history and action latents → the next frame's latents.

    The prediction is composed per latent cell from two sources, after Finn et al. 2016 (arXiv 1605.07157): the first
    picture, carried along, and newly made content. What is carried: the first picture's pixels, moved along a
    displacement per cell, which is memory (every step's way is added to it), and on top the robot, whose motion is
    known from kinematics (`appearance.posed_picture`). So an object that is pushed along for twenty steps is sampled
    once from the sharp first picture, as the skip connections of Ebert et al. 2017 (arXiv 1710.05268) keep what is
    hidden for a while. All this is pixels, encoded anew at every step: latents blur when moved by parts of a cell, and
    only the last step's way is left to them. The last frame is seen, but no source: errors in it would stay.

    Args:
        latent_channels: of the codec.
        lags: which earlier frames are seen, 1 being the last.
        widths: channels of the convolutions at latent size and at half of it.
        blocks: residual blocks per level, on the way down and on the way up.
        heads, layers: of the CogVideoX transformer at a quarter of the latent size (head width 64).
        control_layers: of the ControlNet.
        action_channels, prompt_features: of the trajectory encoder.
        max_flow: largest movement per step, in latent cells.
        max_change: largest correction of the displacement per step, in latent cells.
    """

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 8,
        latent_size: Sequence[int] = (24, 36),
        lags: Sequence[int] = (1, 2, 4),
        widths: Sequence[int] = (64, 128),
        blocks: Sequence[int] = (1, 2),
        heads: int = 3,
        layers: int = 6,
        control_layers: int = 2,
        time_embed_dim: int = 128,
        action_channels: int = 16,
        prompt_features: int = 24,
        max_flow: float = 3.0,
        max_change: float = 1.0,
        noise_scale: float = 0.5,
    ) -> None:
        super().__init__()
        fine, coarse = widths
        seen = latent_channels * (len(lags) + 4) + 6
        self.trajectory = TrajectoryEncoder(action_channels=action_channels, features=prompt_features)
        self.conv_in = nn.Conv2d(seen, fine, 3, padding=1)
        self.action_fine = zeroed(nn.Conv2d(action_channels, fine, 3, padding=1))
        self.down_fine = nn.Sequential(*[ResBlock(fine) for _ in range(blocks[0])])
        self.to_coarse = nn.Conv2d(fine, coarse, 4, stride=2, padding=1)
        self.action_coarse = nn.Conv2d(action_channels, coarse, 4, stride=2, padding=1)
        zeroed(self.action_coarse)
        self.down_coarse = nn.Sequential(*[ResBlock(coarse) for _ in range(blocks[1])])
        self.action_to_tokens = nn.Conv2d(action_channels, 4 * action_channels, 4, stride=2, padding=1)
        height, width = latent_size
        self.transformer = ControlledTransformer(
            base_config={
                "num_attention_heads": heads,
                "attention_head_dim": 64,
                "in_channels": coarse,
                "out_channels": coarse,
                "time_embed_dim": time_embed_dim,
                "text_embed_dim": 32,
                "max_text_seq_length": 0,
                "num_layers": layers,
                "sample_width": width // 2,
                "sample_height": height // 2,
                "sample_frames": 1,
                "patch_size": 2,
                "spatial_interpolation_scale": 1.0,
            },
            action_channels=4 * action_channels,
            control_layers=control_layers,
        )
        self.transformer.set_attn_processor(PlainAttention())
        self.up_coarse = nn.Sequential(*[ResBlock(coarse) for _ in range(blocks[1])])
        self.to_fine = nn.Sequential(nn.SiLU(), nn.Conv2d(coarse, 4 * fine, 3, padding=1), nn.PixelShuffle(2))
        self.up_fine = nn.Sequential(*[ResBlock(fine) for _ in range(blocks[0] + 1)])
        self.head = nn.Sequential(nn.SiLU(), nn.Conv2d(fine, latent_channels + 1 + 4, 3, padding=1))
        self.interval = nn.Sequential(
            nn.Linear(4, time_embed_dim), nn.SiLU(), nn.Linear(time_embed_dim, time_embed_dim)
        )
        with torch.no_grad():
            last = self.head[-1]
            assert isinstance(last, nn.Conv2d)
            assert last.bias is not None
            last.weight.mul_(0.1)
            last.weight[latent_channels:].zero_()
            last.bias.zero_()
            last.bias[latent_channels] = MAKING

    def forward(
        self,
        history: Float[Tensor, "B L C h w"],
        anchor: Float[Tensor, "B C h w"],
        noisy: Float[Tensor, "B C h w"],
        time: Float[Tensor, " B"],
        interval: Float[Tensor, " B"],
        prompt_taps: Float[Tensor, "B taps F h w"],
        displacement: Float[Tensor, "B 2 h w"],
        bones: Float[Tensor, "B views bones 8"],
        posed: Float[Tensor, "B C h w"],
    ) -> Prediction:
        """Predict the next clean latents (x0) from noisy ones.

        Args:
            history: latents at the lags of the config, the last frame first.
            anchor: latents of the first frame.
            noisy: (1 − t)·x0 + t·noise_scale·n.
            time: t in [0, 1]; 1 is pure noise.
            interval: control steps per frame (1 at the control rate).
            prompt_taps: features of the prompts: next frame, last, one before, anchor.
            displacement: from each cell of the last frame to where its content was in the anchor frame, x and y in
                cells; zero at the start, then as the last prediction gave it.
            bones: where the robot's bones are in the next frame, the last, and the anchor (3 views); none (0) will do.
            posed: latents of the first picture, carried along the displacement, with the robot posed as in the next
                frame, and painted out where it was.
        """
        batch, _, _, h, w = history.shape
        robot, posed = self._robot(bones.float(), (h, w)), posed.float()
        last, anchor, displacement = history[:, 0].float(), anchor.float(), displacement.float()
        action = self.trajectory(prompt_taps)
        levels = torch.stack([time, interval / 3.0], dim=1)[:, :, None, None].expand(batch, 2, h, w)
        way = torch.lerp(displacement, robot.from_anchor, robot.in_anchor)
        seen = (history.flatten(1, 2), anchor, posed, warp(last, robot.in_last * robot.from_last))
        shares = (way / DISPLACEMENT_SCALE, robot.in_anchor, robot.in_last)
        x = torch.cat([*seen, *shares, noisy, levels.to(history.dtype)], dim=1)
        x = x.contiguous(memory_format=torch.channels_last)
        fine = self.down_fine(self.conv_in(x) + self.action_fine(action))
        coarse = self.down_coarse(self.to_coarse(F.silu(fine)) + self.action_coarse(action))
        step = torch.stack([interval == i for i in (1, 2, 3)] + [interval > 3], dim=1).to(coarse.dtype)
        tokens = self.transformer(
            coarse[:, None],
            self.action_to_tokens(action)[:, None],
            time * 1000.0,
            condition=self.interval(step),
        )[:, 0]
        coarse = self.up_coarse(coarse + tokens.contiguous(memory_format=torch.channels_last))
        fine = self.up_fine(fine + self.to_fine(coarse))
        return self._compose(self.head(fine).float(), displacement, posed, robot)

    def _robot(self, bones: Tensor, size: tuple[int, int]) -> RobotMotion:
        now, last, anchor = bones.unbind(1)
        from_last, in_last = robot_flow(now, last, size, STRIDE_PX)
        from_anchor, in_anchor = robot_flow(now, anchor, size, STRIDE_PX)
        return RobotMotion(
            from_last=from_last,
            in_last=in_last,
            from_anchor=from_anchor,
            in_anchor=in_anchor,
        )

    def _compose(self, head: Tensor, displacement: Tensor, posed: Tensor, robot: RobotMotion) -> Prediction:
        made, making, flow, change = head.split([posed.shape[1], 1, 2, 2], dim=1)
        flow = _firm(self.config.max_flow * torch.tanh(flow))
        change = _firm(self.config.max_change * torch.tanh(change))
        displacement = warp(displacement, flow) + flow + change
        carried = warp(posed, (1.0 - robot.in_anchor) * (flow + change))
        latent = torch.lerp(carried, torch.tanh(made), torch.sigmoid(making))
        return Prediction(latent=latent, displacement=displacement, carried=carried)


def _firm(way: Float[Tensor, "B 2 h w"]) -> Float[Tensor, "B 2 h w"]:
    """Exactly 0 where the way is shorter than LEAST_WAY. Gradients pass as if it were not (Bengio et al. 2013,
    arXiv 1308.3432), so that what rests can learn to move."""
    rests = (way.detach().square().sum(1, keepdim=True) < LEAST_WAY**2).to(way)
    return way - (way * rests).detach()


def transformer_settings(dynamics: FrameDynamics) -> dict[str, Any]:
    """The configuration of the CogVideoX transformer inside, for reports."""
    return dict(dynamics.transformer.base.config)
