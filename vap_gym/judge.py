"""The judge: reads gripper, objects and a segmentation out of frames or latents, so that rewards need no simulator."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from vap_gym.assets import weights_dir
from vap_gym.errors import CheckpointError, VapError, unknown_name
from vap_gym.geometry import Camera
from vap_gym.world.checkpoint import load_part, read_json, save_part
from vap_gym.world.codec import FrameCodec, to_pictures
from vap_gym.world.devices import checked_device, native_dtype
from vap_gym.world.layers import ResBlock
from vap_gym.world.locator import Locator
from vap_gym.world.model import INDEX
from vap_gym.world.support import Support

REST_HEIGHT_M = 0.03  # centre of a typical object that rests on the table; what the network says is relative to it
HEIGHT_SCALE_M = 0.02
STRIDE_PX = 4


class JudgeNetwork(ModelMixin, ConfigMixin):
    """Latents (N, C, h, w) → per palette colour and for the tool: heat map, offsets, presence, held, height; labels.

    Args:
        latent_channels: of the codec.
        points: things with a place: the palette's colours, then the gripper's tool centre.
        labels: classes of the segmentation.
        widths: channels at latent size and at half of it.
        detail: how many times finer than latents the segmentation is; STRIDE_PX is a label for each pixel.
        robots: those whose grippers were seen in training.
        cabinets: things may rest on something else than the card's table: how high that is is told, too.
        locator_width: channels of what tells exactly where the tool is; 0: there is no such part.
    """

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 8,
        points: int = 7,
        labels: int = 10,
        widths: Sequence[int] = (64, 96),
        detail: int = 2,
        robots: Sequence[str] = ("panda_robotiq",),
        cabinets: bool = False,
        locator_width: int = 0,
    ) -> None:
        super().__init__()
        fine, coarse = widths
        self.enter = nn.Sequential(nn.Conv2d(latent_channels, fine, 3, padding=1), ResBlock(fine))
        self.down = nn.Sequential(nn.SiLU(), nn.Conv2d(fine, coarse, 4, stride=2, padding=1))
        self.context = nn.Sequential(*[ResBlock(coarse) for _ in range(3)])
        self.support = Support(latent_channels) if cabinets else None
        self.up = nn.Sequential(nn.SiLU(), nn.Conv2d(coarse, 4 * fine, 3, padding=1), nn.PixelShuffle(2))
        self.mix = nn.Sequential(ResBlock(fine), ResBlock(fine), nn.SiLU())
        self.places = nn.Conv2d(fine, 3 * points, 3, padding=1)
        self.pixels = nn.Sequential(nn.Conv2d(fine, detail**2 * labels, 3, padding=1), nn.PixelShuffle(detail))
        self.states = nn.Linear(fine + coarse, 3)
        self.locator = Locator(latent_channels + fine, width=locator_width) if locator_width else None

    def forward(self, latents: Float[Tensor, "N C h w"], *, label: bool = True) -> dict[str, Tensor]:
        """Return `heat` (N, P, h, w) logits, `offset` (N, P, 2, h, w) in cells, `state` (N, P, 2) logits of present and
        held, `height_m` (N, P) of the centre where a thing rests, `labels` (N, L, detail·h, detail·w) logits, unless
        `label` is False; `support_m` (N, 1), how high that is on which things rest, over the card's table; and
        `places_px` (N, P, 2), where in the frame they are; with a locator, `corner` and `say`, see there."""
        fine = self.enter(latents)
        coarse = self.context(self.down(fine))
        mixed = self.mix(fine + self.up(coarse))
        places = self.places(mixed).float()
        h, w = places.shape[-2:]
        heat, offset = places[:, : places.shape[1] // 3], places[:, places.shape[1] // 3 :]
        share = heat.flatten(2).softmax(-1)  # read each thing's state where it is
        at = torch.einsum("nps,ncs->npc", share, mixed.float().flatten(2))
        wide = F.interpolate(coarse.float(), size=(h, w), mode="nearest").flatten(2)
        around = torch.einsum("nps,ncs->npc", share, wide)
        states = self.states(torch.cat([at, around], -1)).float()
        support = states.new_zeros(len(states), 1) if self.support is None else self.support(latents)
        offset = offset.unflatten(1, (-1, 2))
        said = {
            "support_m": support,
            "heat": heat,
            "offset": offset,
            "state": states[..., :2],
            "height_m": REST_HEIGHT_M + HEIGHT_SCALE_M * states[..., 2] + support,
            "places_px": peaks_px(heat, offset),
        }
        if label:
            said["labels"] = self.pixels(mixed).float()
        if self.locator is not None:
            guess = said["places_px"][:, -1].detach()
            seen = torch.cat([latents, mixed.to(latents)], 1)
            tool, said["corner"], said["say"] = self.locator(seen, guess / STRIDE_PX)
            said["places_px"] = torch.cat([said["places_px"][:, :-1], STRIDE_PX * tool[:, None]], 1)
        return said


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What the judge sees in B frames; N palette colours. Pixels are of the frame, metres of the robot's base frame."""

    gripper_px: Float[Tensor, "B 2"]
    gripper_confidence: Float[Tensor, " B"]
    objects_px: Float[Tensor, "B N 2"]
    objects_world_m: Float[Tensor, "B N 3"]
    objects_confidence: Float[Tensor, "B N"]
    objects_held: Float[Tensor, "B N"]
    segmentation: UInt8[Tensor, "B H W"]  # (B, 0, 0) where it was not asked for


class Judge:
    """Reads frames, or latents of the codec it was trained on. Weights and settings only.

    Args:
        network: the trained network.
        codec: encodes frames for it.
    """

    def __init__(
        self,
        network: JudgeNetwork,
        codec: FrameCodec,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> None:
        self.device = checked_device(device)
        self.dtype = dtype or native_dtype(self.device)
        self.network = network.to(self.device, memory_format=torch.channels_last).eval().requires_grad_(False)
        self.codec = codec.to(self.device, memory_format=torch.channels_last).eval().requires_grad_(False)

    @property
    def robots(self) -> tuple[str, ...]:
        """The robots whose grippers it was trained to see."""
        return tuple(self.network.config["robots"])

    @staticmethod
    def from_pretrained(
        name_or_folder: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
    ) -> Judge:
        """Load the judge that was shipped or saved with a world model; errors as in `WorldModel.from_pretrained`."""
        folder = Path(name_or_folder)
        if not folder.is_dir():
            folder = weights_dir() / str(name_or_folder)
        if not (folder / "judge").is_dir():
            raise unknown_name(
                "judge", str(name_or_folder), sorted(p.parent.name for p in weights_dir().glob("*/judge"))
            )
        if not (folder / INDEX).is_file():
            raise CheckpointError(f"'{folder}' must hold {INDEX}, but does not. Give a folder from save_pretrained.")
        index = read_json(folder / INDEX)
        network, codec = load_part(JudgeNetwork, folder, "judge", index), load_part(FrameCodec, folder, "codec", index)
        return Judge(network, codec, device=device, dtype=dtype)

    def save_into(self, folder: Path) -> None:
        """Add the judge to a world model's folder, with its sha256 in the index."""
        index = read_json(folder / INDEX)
        index["sha256"]["judge"] = save_part(self.network, folder, "judge", torch.float16)
        temporary = folder / f".{INDEX}.tmp"
        temporary.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        temporary.replace(folder / INDEX)

    @torch.inference_mode()
    def read_frames(
        self, frames: UInt8[Tensor, "B H W 3"], camera: Camera, *, tool_m: Float[Tensor, "B 3"] | None = None
    ) -> Reading:
        """Read frames; see `read_latents`."""
        pictures = to_pictures(frames.to(self.device)).contiguous(memory_format=torch.channels_last)
        with self._autocast():
            latents = self.codec.encode(pictures)
        return self.read_latents(latents, camera, tool_m=tool_m, segment=True)

    @torch.inference_mode()
    def read_latents(
        self,
        latents: Float[Tensor, "B C h w"],
        camera: Camera,
        *,
        tool_m: Float[Tensor, "B 3"] | None = None,
        segment: bool = False,
    ) -> Reading:
        """Read latents.

        An object's place in the world is where its ray meets the height at which it would rest (a tower's centre is
        higher than a disc's: the network tells); where it is seen to be held and `tool_m` (known from kinematics) is
        given, it is the point of its ray nearest to the tool centre.

        Args:
            latents: of B frames.
            camera: one for all, or a batch of B.
            tool_m: nominal tool centres in the robot's base frame.
            segment: also tell the label of each pixel, which costs a fifth more.
        """
        if latents.ndim != 4:
            raise VapError(f"latents must have shape (B, C, h, w), got {tuple(latents.shape)}.")
        with self._autocast():
            out = self.network(latents.to(self.device).contiguous(memory_format=torch.channels_last), label=segment)
        places_px = out["places_px"]
        state = out["state"].sigmoid()
        size = (STRIDE_PX * latents.shape[2], STRIDE_PX * latents.shape[3])
        objects_px, held = places_px[:, :-1], state[:, :-1, 1]
        return Reading(
            gripper_px=places_px[:, -1],
            gripper_confidence=state[:, -1, 0],
            objects_px=objects_px,
            objects_world_m=in_world(objects_px, out["height_m"][:, :-1], held, camera, tool_m),
            objects_confidence=state[:, :-1, 0],
            objects_held=held,
            segmentation=labels_of(out["labels"], size) if segment else places_px.new_zeros(len(latents), 0, 0).byte(),
        )

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16)


def peaks_px(heat: Float[Tensor, "N P h w"], offset: Float[Tensor, "N P 2 h w"]) -> Float[Tensor, "N P 2"]:
    """Where the highest cell of each heat map and the eight around it say that the thing is, each by its offset, on
    average, as sure as they are: u, v in pixels of the frame. (Each errs by itself: the mean is a tenth nearer.)"""
    _, _, h, w = heat.shape
    best = heat.flatten(2).argmax(-1)
    y, x = torch.meshgrid(*(torch.arange(n, device=heat.device) for n in (h, w)), indexing="ij")
    row, column = (best // w)[..., None, None], (best % w)[..., None, None]
    around = ((y - row).abs() <= 1) & ((x - column).abs() <= 1)
    share = torch.where(around, heat, -torch.inf).flatten(2).softmax(-1)
    said = torch.stack([x, y]) + 0.5 + offset
    return (said.flatten(3) * share[:, :, None]).sum(-1) * STRIDE_PX


def labels_of(logits: Float[Tensor, "N L h w"], size: tuple[int, int]) -> UInt8[Tensor, "N H W"]:
    """Return the likeliest label of each pixel of frames of that size."""
    if logits.shape[-2:] != size:
        logits = F.interpolate(logits, size=size, mode="bilinear")
    return logits.argmax(1).to(torch.uint8)


def in_world(
    objects_px: Float[Tensor, "B N 2"],
    height_m: Float[Tensor, "B N"],
    held: Float[Tensor, "B N"],
    camera: Camera,
    tool_m: Tensor | None,
) -> Float[Tensor, "B N 3"]:
    """Return where objects are whose pixels are known: resting ones on the table, held ones between the fingers."""
    camera = camera.to(dtype=torch.float32, device=objects_px.device)
    resting = camera.unproject_to_plane(objects_px, height_m)
    if tool_m is None:
        return resting
    tool = tool_m.to(objects_px)[:, None]
    origin, direction = camera.ray(objects_px)
    origin = origin if origin.ndim == direction.ndim else origin[..., None, :]
    along = ((tool - origin) * direction).sum(-1, keepdim=True)
    nearest = origin + along * direction
    return torch.where(held[..., None] > 0.5, nearest, resting)
