"""The robot as a camera should see it: its silhouette, a grey picture of it, and its outline with normals."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from numpy.typing import NDArray
from torch import Tensor

from vap_gym.cards import RobotCard
from vap_gym.errors import require
from vap_gym.geometry import Camera
from vap_gym.kinematics.urdf import load_chain
from vap_gym.prompts.body import Body
from vap_gym.prompts.raster import draw
from vap_gym.prompts.skeleton import Skeleton
from vap_gym.world.surfels import Surfels, seen_points, turned_normals

CHUNK = 32  # frames drawn at once
GREY, SHADE = 70.0, 150.0  # a surface that is seen edge-on, and what facing the camera adds
WIDEST_HOLE_PX = 13  # between points of a surface close to the camera
NEAREST_M = 0.05
MOVES_M = 0.08  # a link whose middle strays less than this is part of the base
BORDER_PX = 3  # an outline this near the picture's edge is where the picture ends, not the robot
SMOOTH_PX = 2.0  # over which an outline's normal is taken


_Drawn = tuple[NDArray[np.uint8], NDArray[np.bool_], NDArray[np.bool_]]


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """T pictures of a robot: uint8 RGB, grey on black; where the robot is, and where those parts of it are that move
    when it does (not its base, which looks right in any pose)."""

    picture: UInt8[np.ndarray, "T H W 3"]
    mask: Bool[np.ndarray, "T H W"]
    moving: Bool[np.ndarray, "T H W"]

    def __len__(self) -> int:
        return len(self.mask)


@dataclass(frozen=True, kw_only=True)
class Outline:
    """N points on the border of a silhouette, in px (0, 0 is the picture's corner), and unit normals, outwards."""

    points_px: Float[np.ndarray, "N 2"]
    normals: Float[np.ndarray, "N 2"]

    def __len__(self) -> int:
        return len(self.points_px)


class RobotRenderer:
    """Draws one robot from its card's surface points, or as wide bones where the card names no surface. No state."""

    def __init__(self, robot: RobotCard) -> None:
        require("cv2", "[data]", "Drawing silhouettes")
        self.robot = robot
        self._body = Body(robot)
        body = self._body
        self._surfels = Surfels(body.points_m, body.normals, body.link, body.spacing_m) if body.links else None
        bare = replace(robot.skeleton, drop_from=())  # a drop line is no part of the robot
        self._skeleton = Skeleton(replace(robot, skeleton=bare))
        self._moves = _moving_links(robot, body) if body.links else torch.zeros(0, dtype=torch.bool)

    def __call__(self, q: Float[Tensor, "T n"], gripper: Float[Tensor, " T"], camera: Camera) -> Rendered:
        """Draw the robot at T states (joints [rad], closedness); `camera` is one for all, or one for each frame."""
        width, height = camera.frame_size_px
        picture = np.zeros((len(q), height, width, 3), np.uint8)
        mask = np.zeros((len(q), height, width), bool)
        moving = np.zeros_like(mask)
        with torch.no_grad():
            for begin in range(0, len(q), CHUNK):
                part = slice(begin, begin + CHUNK)
                own = camera.index(part) if camera.batch_shape else camera
                drawn = self._surface if self._surfels is not None else self._bones
                states = (q[part].float(), gripper[part].float(), own.to(torch.float32))
                picture[part], mask[part], moving[part] = drawn(*states)
        return Rendered(picture=picture, mask=mask, moving=moving)

    def _bones(self, q: Tensor, gripper: Tensor, camera: Camera) -> _Drawn:
        pictures = draw(self._skeleton.at_joints(q, gripper), camera, self._skeleton)
        mask = pictures.max(-1) > 0
        return pictures, mask, mask

    def _surface(self, q: Tensor, gripper: Tensor, camera: Camera) -> _Drawn:
        assert self._surfels is not None
        width, height = camera.frame_size_px
        views = self._body.views(q, gripper, camera)
        seen = seen_points(self._surfels, views, (height, width))
        at = torch.nonzero(seen.point >= 0)
        normals = turned_normals(self._surfels, views, at[:, 0], seen.point[tuple(at.T)])
        grey = np.zeros(seen.point.shape, np.uint8)
        grey[tuple(at.T.numpy())] = (GREY + SHADE * normals[:, 2].abs().clamp(0, 1)).byte().numpy()
        link = torch.where(seen.point >= 0, self._surfels.link[seen.point.clamp_min(0)], -1)
        moving = (self._moves[link.clamp_min(0)] & (link >= 0)).numpy().astype(np.uint8)
        # A surface that is near has gaps between its points: close those as wide as its points are apart.
        focal = float(camera.K[..., 0, 0].max())
        nearest = np.where(grey > 0, seen.depth_m[:, 0].numpy(), np.inf).min(axis=(1, 2))
        gap = float(self._surfels.spacing_m.max()) * focal / np.maximum(nearest, NEAREST_M)
        cv2: Any = require("cv2", "[data]", "Drawing silhouettes")
        for i in np.flatnonzero(np.isfinite(nearest)):
            size = int(np.clip(2 * np.ceil(gap[i] / 2) + 1, 3, WIDEST_HOLE_PX))
            for layer in (grey, moving):
                layer[i] = cv2.morphologyEx(layer[i], cv2.MORPH_CLOSE, np.ones((size, size), np.uint8))
        return np.repeat(grey[..., None], 3, axis=-1), grey > 0, moving > 0


def _moving_links(robot: RobotCard, body: Body) -> Bool[Tensor, " L"]:
    """Which links change their place, not just turn on the spot, when the arm moves through its range."""
    chain = load_chain(robot).subchain(body.links)
    rng = np.random.default_rng(0)
    low, high = (x.double().clamp(-np.pi, np.pi).numpy() for x in (chain.lower, chain.upper))
    poses = chain.to(torch.float64).links(torch.from_numpy(rng.uniform(low, high, (64, chain.size))))
    found = []
    for number in range(len(body.links)):
        middle = body.points_m[body.link == number].double().mean(0)
        at = poses[:, number, :3, :3] @ middle + poses[:, number, :3, 3]
        found.append(float((at - at.mean(0)).norm(dim=-1).mean()) > MOVES_M)
    return torch.tensor(found)


def outline_of(mask: Bool[np.ndarray, "H W"], *, most: int = 240) -> Outline:
    """Return the border of a silhouette: up to `most` points, evenly spread, without those at the picture's edge."""
    cv2 = require("cv2", "[data]", "Finding outlines")
    height, width = mask.shape
    solid = mask.astype(np.uint8)
    contours, _ = cv2.findContours(solid, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    pixels = np.concatenate([np.zeros((0, 2), np.int64), *(c[:, 0] for c in contours if len(c) > 4 * BORDER_PX)])
    x, y = pixels.T
    pixels = pixels[(x >= BORDER_PX) & (x < width - BORDER_PX) & (y >= BORDER_PX) & (y < height - BORDER_PX)]
    pixels = pixels[:: max(1, -(-len(pixels) // most))]
    soft = cv2.GaussianBlur(solid.astype(np.float32), (0, 0), SMOOTH_PX)
    slope = [cv2.Sobel(soft, cv2.CV_32F, *axes)[pixels[:, 1], pixels[:, 0]] for axes in ((1, 0), (0, 1))]
    inward = np.stack(slope, axis=-1).astype(np.float64)
    length = np.linalg.norm(inward, axis=-1)
    clear = length > 1e-6
    return Outline(points_px=pixels[clear] + 0.5, normals=-inward[clear] / length[clear, None])
