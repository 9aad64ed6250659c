"""What the robot looks like in general, and what a first picture shows: robot, light, things, what is behind them."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import TYPE_CHECKING, NamedTuple

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from vap_gym.world.background import BackgroundFiller
from vap_gym.world.codec import to_frames, to_pictures
from vap_gym.world.filling import continued
from vap_gym.world.hidden_parts import whole_things
from vap_gym.world.layers import ResBlock, listed
from vap_gym.world.surfels import FAR_M, Seen, Surfels, seen_points, turned_normals
from vap_gym.world.things import ThingFinder, find_things

if TYPE_CHECKING:
    from tensordict import TensorDict

NEAR_PX = 6  # nothing further than this from where the surface is drawn is taken for the robot
MARGIN_PX = 1  # background so near the robot is not told from it: pixels mix
STRIDE_PX = 2  # one pixel in so many, across and down, is looked at to measure the light
LIGHT = (0.4, 2.0)  # how far one picture's robot may differ in brightness from the robot in general
PULL = 3.0  # so many pixels' worth of belief that light comes from everywhere
PICTURES = ("picture", "plate", "whole")  # of a first sight: kept as bytes
SHARES = ("mask", "filled", "alpha")  # so are these
ENOUGH_PX = 8  # so many pixels of the robot must be seen (of those looked at) for its light to be measured


class RobotAppearance(ModelMixin, ConfigMixin):
    """Two things learned once for some robots: the colour of every point of their surfaces, and a mask.

    The surface is that of a robot's card (`prompts.body.Body`); how its points are found in a picture is known from
    kinematics. A small network says which pixels of a picture show the robot: no surface is exact, and objects may
    stand before it. One network serves all robots: it is told the surface in its colours.

    An object speaks of one of its robots: the first, or the one that `of` chose.

    Args:
        robots: their names.
        points, links: of each robot's surface; one after the other in the buffers.
        widths: channels of the mask's network at a half and a quarter of the picture's size.
        looks: tell the robot's pixels by looking at them; False takes all that its surface covers (`of_surface`).
        fills: fill in what is behind it by a network, too; it serves any robot.
    """

    points_m: Tensor
    normals: Tensor
    spacing_m: Tensor
    link: Tensor
    colour: Tensor

    @register_to_config
    def __init__(
        self,
        points: int | Sequence[int] = 12813,
        links: int | Sequence[int] = 17,
        widths: Sequence[int] = (24, 48),
        looks: bool = True,
        robots: Sequence[str] = ("panda_robotiq",),
        fills: bool = False,
    ) -> None:
        super().__init__()
        self.counts, self.link_counts = listed(points), listed(links)
        if not len(self.counts) == len(self.link_counts) == len(robots):
            raise ValueError(f"points and links must be told of {len(robots)} robots, got {points} and {links}.")
        self.names, self.current, total = tuple(robots), 0, sum(self.counts)
        self.register_buffer("points_m", torch.zeros(total, 3))
        self.register_buffer("normals", torch.zeros(total, 3))
        self.register_buffer("spacing_m", torch.zeros(total))
        self.register_buffer("link", torch.zeros(total, dtype=torch.int64))
        self.register_buffer("colour", torch.zeros(total, 3))  # in [0, 1]
        fine, coarse = widths
        self.enter = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(4 * 7, fine, 3, padding=1), ResBlock(fine))
        self.down = nn.Sequential(nn.SiLU(), nn.Conv2d(fine, coarse, 4, stride=2, padding=1))
        self.middle = nn.Sequential(*[ResBlock(coarse) for _ in range(3)])
        self.up = nn.Sequential(nn.SiLU(), nn.Conv2d(coarse, 4 * fine, 3, padding=1), nn.PixelShuffle(2))
        self.leave = nn.Sequential(ResBlock(fine), nn.SiLU(), nn.Conv2d(fine, 4, 3, padding=1), nn.PixelShuffle(2))
        self.filler = BackgroundFiller() if fills else None

    @staticmethod
    def of_surface(
        surfels: Surfels, colour: Float[Tensor, "P 3"], links: int, filler: BackgroundFiller | None = None
    ) -> RobotAppearance:
        """Return the appearance of a robot that was never learned: in the colours of its URDF, in [0, 1]."""
        made: RobotAppearance = RobotAppearance(points=len(colour), links=links, looks=False, robots=("unknown",))
        for name, value in (*surfels._asdict().items(), ("colour", colour)):
            getattr(made, name).copy_(value)
        made.filler = filler
        return made

    def with_filler(self, seed: int) -> RobotAppearance:
        """Return the same, with a new network that fills in what is behind a robot; only that one is to be trained."""
        told = {name: value for name, value in self.config.items() if not name.startswith("_")}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made: RobotAppearance = RobotAppearance(**told | {"fills": True})
        made.load_state_dict(self.state_dict(), strict=False)
        made.requires_grad_(False)
        assert made.filler is not None
        made.filler.requires_grad_(True)
        return made

    def of(self, robot: str) -> RobotAppearance:
        """Return the same weights, speaking of another robot. Raises ValueError for one that is not known."""
        other = copy(self)
        other.current = self.names.index(robot)
        return other

    def painted(self, colour: Float[Tensor, "P 3"]) -> RobotAppearance:
        """Return the same, those of the robot's points that no training has shown in these colours, in [0, 1]."""
        blank = (self.look == 0.0).all(1, keepdim=True)
        if not bool(blank.any()):
            return self
        other, whole = copy(self), self.colour.clone()
        whole[self.part] = torch.where(blank, colour.to(whole), self.look)
        other._buffers = {**self._buffers, "colour": whole}
        return other

    def named(self, surfels: Surfels, links: int) -> str | None:
        """Return which of the robots has this surface, or None."""
        for name in self.names:
            known = self.of(name)
            points, link = known.surfels.points_m.cpu(), known.surfels.link.cpu()
            if known.links != links or not torch.equal(link, surfels.link):
                continue
            if bool((points - surfels.points_m).abs().max() < 1e-3):
                return name
        return None

    @property
    def name(self) -> str:
        """The robot that is spoken of."""
        return self.names[self.current]

    @property
    def links(self) -> int:
        """How many links the robot has."""
        return self.link_counts[self.current]

    @property
    def part(self) -> slice:
        """Which of the points are the robot's."""
        first = sum(self.counts[: self.current])
        return slice(first, first + self.counts[self.current])

    @property
    def surfels(self) -> Surfels:
        """The robot's surface."""
        mine = self.part
        return Surfels(self.points_m[mine], self.normals[mine], self.link[mine], self.spacing_m[mine])

    @property
    def look(self) -> Float[Tensor, "P 3"]:
        """The colours of the robot's points."""
        return self.colour[self.part]

    def knows(self, views: Float[Tensor, "B L 3 4"]) -> bool:
        """Whether these are views of a robot with so many links."""
        return views.shape[1] == self.links

    def mask_logits(self, picture: Float[Tensor, "B 3 H W"], seen: Seen) -> Float[Tensor, "B 1 H W"]:
        """Return how surely each pixel of a picture shows the robot, whose surface is to be seen there."""
        covered = (seen.point >= 0)[:, None].to(picture)
        if not self.config["looks"]:
            return 16.0 * covered - 8.0
        colour = self.look[seen.point.clamp_min(0)].permute(0, 3, 1, 2) * 2.0 - 1.0
        fine = self.enter(torch.cat([picture, colour * covered, covered], 1))
        return self.leave(fine + self.up(self.middle(self.down(fine))))  # type: ignore[no-any-return]


class FirstSight(NamedTuple):
    """What a first picture shows, to be used again and again.

    The pixels, in [−1, 1]; how far each is the robot; what they are without robot and things, and where that is filled
    in; how the camera sees the links, and how far away the robot's surface is, in m; its light: brightness from
    everywhere and along the camera's axes, then the tint; and the things in it, as in `things.Found`, but whole: the
    last picture shows, and `owner` and `alpha` tell, also what the robot hides of them (`hidden_parts.Whole`).
    """

    picture: Float[Tensor, "B 3 H W"]
    mask: Float[Tensor, "B 1 H W"]
    plate: Float[Tensor, "B 3 H W"]
    filled: Float[Tensor, "B 1 H W"]
    views: Float[Tensor, "B L 3 4"]
    depth_m: Float[Tensor, "B 1 H W"]
    light: Float[Tensor, "B 7"]
    there: Bool[Tensor, "B K"]
    things_m: Float[Tensor, "B K 3"]
    shape: Float[Tensor, "B K 6"]
    owner: UInt8[Tensor, "B H W"]
    alpha: Float[Tensor, "B H W"]
    whole: Float[Tensor, "B 3 H W"]


@torch.no_grad()
def first_sight(
    appearance: RobotAppearance,
    finder: ThingFinder,
    picture: Float[Tensor, "B 3 H W"],
    views: Float[Tensor, "B L 3 4"],
) -> FirstSight:
    """Look at first pictures in which cameras see the robot's links as `views` says (`prompts.body.Body.views`)."""
    batch, _, height, width = picture.shape
    mask = picture.new_zeros(batch, 1, height, width)
    depth, light = mask + FAR_M, picture.new_tensor([1.0, 0, 0, 0, 1, 1, 1]).repeat(batch, 1)
    if appearance.knows(views):
        seen = seen_points(appearance.surfels, views, (height, width))
        near = F.max_pool2d((seen.point >= 0)[:, None].to(picture), 2 * NEAR_PX + 1, 1, NEAR_PX)
        mask = appearance.mask_logits(picture, seen).float().sigmoid() * near
        depth = torch.where(seen.point[:, None] >= 0, seen.depth_m, -1.0)
        depth = F.max_pool2d(depth, 3, 1, 1)  # of what is around: a point is seen anew beside its pixel
        depth = torch.where(depth < 0, FAR_M, depth)
        light = _light(appearance, picture, mask, seen, views)
    found = find_things(finder, picture, mask, views)
    plate, filled = background(picture, torch.maximum(mask, (found.owner > 0)[:, None].to(mask)), appearance.filler)
    whole, owner, alpha = picture, found.owner, found.alpha
    if finder.knows(views):
        whole, owner, alpha = whole_things(picture, plate, mask, depth, views[:, int(finder.config["base"])], found)
    return FirstSight(
        picture=picture,
        mask=mask,
        plate=plate,
        filled=filled,
        views=views,
        depth_m=depth,
        light=light,
        there=found.there,
        things_m=found.centre_m,
        shape=found.shape,
        owner=owner,
        alpha=alpha,
        whole=whole,
    )


def background(
    picture: Float[Tensor, "B 3 H W"], mask: Float[Tensor, "B 1 H W"], filler: BackgroundFiller | None = None
) -> tuple[Float[Tensor, "B 3 H W"], Float[Tensor, "B 1 H W"]]:
    """Return the picture without what the mask covers, filled in from around it, and where it is filled in."""
    covered = F.max_pool2d((mask > 0.1).to(picture), 2 * MARGIN_PX + 1, 1, MARGIN_PX)
    if filler is not None:
        return filler(picture, covered), covered
    return torch.lerp(picture, continued(picture, 1.0 - covered), covered), covered


def lit(
    appearance: RobotAppearance,
    light: Float[Tensor, "B 7"],
    R_camera_link: Float[Tensor, "B L 3 3"],
    which: Int64[Tensor, " N"],
    point: Int64[Tensor, " N"],
) -> Float[Tensor, "N 3"]:
    """Colours of points in the light of their picture, in [−1, 1]; the links' rotations as in `surfels.rotations`."""
    surfels, around, tint = appearance.surfels, light[:, 0], light[:, 4:]
    axes = (R_camera_link.mT @ light[:, None, 1:4, None])[..., 0]  # of the light, in each link's frame
    bright = around[which] + (surfels.normals[point] * axes[which, surfels.link[point]]).sum(-1)
    return (appearance.look[point] * bright.clamp_(*LIGHT)[:, None] * tint[which]).clamp_(0.0, 1.0).mul_(2.0).sub_(1.0)


def _light(
    appearance: RobotAppearance, picture: Tensor, mask: Tensor, seen: Seen, views: Tensor
) -> Float[Tensor, "B 7"]:
    """How the robot of a picture is lit: least squares over its pixels, of brightness = usual brightness · (a + b·n)
    with the surface's normal n (Lambert's law, shadows left out), drawn towards b = 0."""
    batch = len(picture)
    looked = torch.zeros_like(mask[:, 0], dtype=torch.bool)
    looked[:, ::STRIDE_PX, ::STRIDE_PX] = True
    which, y, x = (looked & (mask[:, 0] > 0.5) & (seen.point >= 0)).nonzero(as_tuple=True)
    point = seen.point[which, y, x]
    real, usual = picture[which, :, y, x] * 0.5 + 0.5, appearance.look[point]

    def summed(values: Tensor) -> Tensor:
        return values.new_zeros(batch, *values.shape[1:]).index_add_(0, which, values)

    gain = (summed(real) / summed(usual).clamp_min(1e-3)).clamp(*LIGHT)
    gain = torch.where(summed(torch.ones_like(real[:, :1])) >= ENOUGH_PX, gain, torch.ones_like(gain))
    bright = gain.mean(1, keepdim=True)
    normals = turned_normals(appearance.surfels, views, which, point)
    terms = torch.cat([torch.ones_like(normals[:, :1]), normals], 1) * usual.mean(1, keepdim=True)
    left = summed(terms[:, :, None] * terms[:, None, :]) + PULL * torch.eye(4, device=terms.device)
    right = summed(terms * real.mean(1, keepdim=True)) + PULL * torch.cat([bright, torch.zeros_like(gain)], 1)
    return torch.cat([torch.linalg.solve(left, right), gain / bright], 1)


def kept(sight: FirstSight, frames: UInt8[Tensor, "B H W 3"]) -> dict[str, Tensor]:
    """A first sight as it is kept in a state."""
    values = {f"first_{name}": value for name, value in sight._asdict().items()}
    shares = {f"first_{name}": (255.0 * getattr(sight, name)).round().to(torch.uint8) for name in SHARES}
    pictures = {f"first_{name}": to_frames(getattr(sight, name)) for name in ("plate", "whole")}
    return values | shares | pictures | {"first_picture": frames.clone()}


def sight_of(state: TensorDict) -> FirstSight:
    """The first sight that is kept in a state."""
    values = {name: state[f"first_{name}"] for name in FirstSight._fields}
    shares = {name: values[name].float().div(255.0) for name in SHARES}
    pictures = {name: to_pictures(values[name]) for name in PICTURES}
    return FirstSight(**(values | shares | pictures))
