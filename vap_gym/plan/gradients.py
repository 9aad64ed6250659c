"""Foresight with gradients: from actions through kinematics, rasteriser and video model to the judge.

What is differentiable: the controller and forward kinematics; the skeleton's rasteriser (`raster.draw_torch`); the
streamed video model; the judge's network, whose peaks are read as expectations here; the network that moves things.
What is not: the pictures that a `WorldModel` poses robot and things in (which point is nearest in each pixel is a
choice, see `world.surfels`). With one of those, plan through its things: `foresight.ThingForesight` has gradients.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from tensordict import TensorDict
from torch import Tensor

from vap_gym.errors import VapError
from vap_gym.geometry import Camera
from vap_gym.judge import STRIDE_PX, Judge, in_world
from vap_gym.plan.foresight import Foreseen, branched
from vap_gym.prompts.raster import draw_torch
from vap_gym.rig import Motion
from vap_gym.stage import Stage
from vap_gym.video.world import StreamWorld
from vap_gym.world.noise import counter_noise


class DrawnForesight:
    """Foresight of a streamed video model that carries gradients of latents and of what the judge reads in them.

    Args:
        stage: its world is a `StreamWorld`, its prompts are skeletons; a judge that reads the world's latents tells of
            objects, else they are NaN.
        state: the present of B slots.
        edge_px: how wide the edges of drawn bones are: wider ones let gradients reach further. 1 draws the prompts that
            the model is used to.
        evaluations: of the network, per latent frame; None: the model's own number.

    Raises:
        VapError: another kind of world model or of prompt.
    """

    def __init__(
        self, stage: Stage, state: TensorDict, *, edge_px: float = 1.0, evaluations: int | None = None
    ) -> None:
        world = stage.imagination.world
        if not isinstance(world, StreamWorld) or stage.rig.prompt != "skeleton":
            raise VapError(
                f"DrawnForesight needs a StreamWorld with skeleton prompts, got a {type(world).__name__} with "
                f"'{stage.rig.prompt}'. Gradients of a WorldModel: plan with ThingForesight."
            )
        self.stage, self.world, self.edge_px = stage, world, edge_px
        self.evaluations = world.evaluations if evaluations is None else evaluations
        self._state = state

    @property
    def slots(self) -> int:
        """B, of how many slots' present it knows."""
        return len(self._state)

    def __call__(self, actions: Float[Tensor, "M T A"]) -> Foreseen:
        """Return the futures of M action sequences at the end of every latent frame."""
        chunk = self.world.chunk
        if actions.shape[1] % chunk:
            raise VapError(f"Actions must come in chunks of {chunk}, got {actions.shape[1]} of them.")
        state = branched(self._state, len(actions))
        motion = self.stage.imagination.trace(state, actions)
        latents = self._imagined(state, self._drawn(state, motion))
        rows = list(range(chunk - 1, actions.shape[1], chunk))
        return Foreseen(
            tool_m=motion.tool_m[:, rows],
            closedness=motion.robot.gripper[:, rows],
            objects_m=self._read(state, latents, motion, rows),
            steps=tuple(row + 1 for row in rows),
            latents=latents,
        )

    def _drawn(self, state: TensorDict, motion: Motion) -> Float[Tensor, "M T 3 H W"]:
        """Prompts in [−1, 1]."""
        skeleton = self.stage.rig.skeleton
        camera = Camera(
            K=state["camera_K"][:, None], T_world_camera=motion.T_world_camera,
            frame_size_px=self.stage.rig.frame_size_px,
        )  # fmt: skip
        keypoints = skeleton.keypoints(motion.robot)
        pictures = draw_torch(keypoints, camera, skeleton, edge_px=self.edge_px)
        return 2.0 * pictures - 1.0

    def _imagined(self, state: TensorDict, prompts: Tensor) -> Float[Tensor, "M S C h w"]:
        """As `StreamWorld.predict`, from prompts that carry gradients."""
        world, device = self.world, self.stage.imagination.device
        kind = next(world.network.parameters()).dtype
        memory = {key.removeprefix("world_"): value for key, value in state.items() if key.startswith("world_")}
        shape, seed = tuple(memory["latent"].shape[1:]), memory["seed"]
        channels, latents = world.network.settings.prompt_channels, []
        for part in prompts.to(device, kind).split(world.chunk, 1):
            step = memory["step"]

            def noise(evaluation: int, step: Tensor = step) -> Tensor:
                return counter_noise(seed, step, evaluation, shape).to(kind)

            memory, latent = world.stream.advance(memory, part[:, :, :channels], noise, evaluations=self.evaluations)
            latents.append(latent.float())
        return torch.stack(latents, 1)

    def _read(self, state: TensorDict, latents: Tensor, motion: Motion, rows: list[int]) -> Float[Tensor, "M S N 3"]:
        judge = self.stage.judge
        if not isinstance(judge, Judge) or judge.network.config["latent_channels"] != latents.shape[2]:
            return torch.full((*latents.shape[:2], 1, 3), torch.nan)
        up_m = torch.tensor([0.0, 0.0, self.stage.rig.robot.skeleton.drop_to_z_m])
        told = []
        for i, t in enumerate(rows):
            T_world_camera = motion.T_world_camera[:, t].clone()
            T_world_camera[:, :3, 3] -= up_m
            camera = replace(self.stage.imagination.camera(state), T_world_camera=T_world_camera)
            told.append(soft_objects(judge, latents[:, i], camera, motion.tool_m[:, t] - up_m) + up_m)
        return torch.stack(told, 1)


def soft_objects(
    judge: Judge, latents: Float[Tensor, "M C h w"], camera: Camera, tool_m: Float[Tensor, "M 3"]
) -> Float[Tensor, "M N 3"]:
    """Return where the judge takes objects to be, as an expectation over its heat maps: what `Judge.read_latents` reads
    at their peaks, but differentiable."""
    out = judge.network(latents, label=False)
    places_px = soft_peaks_px(out["heat"], out["offset"])[:, :-1]
    held = out["state"].sigmoid()[:, :-1, 1]
    places: Tensor = in_world(places_px, out["height_m"][:, :-1], held, camera, tool_m)
    return places


def soft_peaks_px(heat: Float[Tensor, "M P h w"], offset: Float[Tensor, "M P 2 h w"]) -> Float[Tensor, "M P 2"]:
    """Return the mean place of each heat map's probability, in pixels: the peak, where there is but one."""
    _, _, h, w = heat.shape
    share = heat.flatten(2).softmax(-1)
    y, x = torch.meshgrid(torch.arange(h, device=heat.device), torch.arange(w, device=heat.device), indexing="ij")
    cells = torch.stack([x, y]).flatten(1).float() + 0.5 + offset.flatten(3)
    places: Tensor = STRIDE_PX * (share[:, :, None] * cells).sum(-1)
    return places
