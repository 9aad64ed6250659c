"""The seams of the house: what a world model, a judge and a planner's score must offer, as protocols.

Letters used in shapes throughout: B batch (envs or candidates), T or K time, A action width, H W frame rows and
columns, C channels, P key-points, N objects (the palette's colours). Frames are uint8 RGB, rows first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from jaxtyping import Float, Int64, UInt8
from torch import Tensor

if TYPE_CHECKING:
    from tensordict import TensorDict

    from vap_gym.geometry import Camera


class World(Protocol):
    """A learned video model: weights and settings only; its memory is the state that it takes and returns."""

    @property
    def frame_size_px(self) -> tuple[int, int]:
        """Width and height of the frames that it imagines."""
        ...

    def start(
        self,
        frames: UInt8[Tensor, "B H W 3"],
        prompts: UInt8[Tensor, "B H W 3"],
        seed: Int64[Tensor, "B"],
        *,
        views: Float[Tensor, "B L 3 4"] | None = None,
        states: Float[Tensor, "B 10"] | None = None,
    ) -> TensorDict:
        """Return the state after seeing the first frames and their prompts; `seed` is each slot's own noise, `views`
        say where the robot's links are in the picture (`prompts.body.Body.views`), `states` where its tip is in the
        base frame (`rig.Motion.states`). A world model takes of these what it knows."""
        ...

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
        """Imagine K frames, one per prompt. K steps at once equal K single steps bit for bit at equal B."""
        ...

    def decode(self, latents: Float[Tensor, "*batch C h w"]) -> UInt8[Tensor, "*batch H W 3"]:
        """Return the pictures that latents stand for; `state["latent"]` is the newest."""
        ...


class Reading(Protocol):
    """What a judge sees in B frames."""

    @property
    def gripper_px(self) -> Float[Tensor, "B 2"]:
        """Where the gripper's tool centre is, u and v in pixels of the frame."""
        ...

    @property
    def gripper_confidence(self) -> Float[Tensor, "B"]:
        """How sure the judge is of that, 0 to 1."""
        ...

    @property
    def objects_px(self) -> Float[Tensor, "B N 2"]:
        """Where the object of each palette colour is, in pixels of the frame."""
        ...

    @property
    def objects_world_m(self) -> Float[Tensor, "B N 3"]:
        """The same in the robot's base frame, metres."""
        ...

    @property
    def objects_confidence(self) -> Float[Tensor, "B N"]:
        """How sure the judge is that an object of that colour is there, 0 to 1."""
        ...


class Judge(Protocol):
    """Reads gripper and objects out of frames or latents."""

    def read_latents(
        self, latents: Float[Tensor, "B C h w"], camera: Camera, *, tool_m: Float[Tensor, "B 3"] | None = None
    ) -> Reading:
        """Read B latents, as in `state["latent"]`; `tool_m` is where kinematics says the tool centre is."""
        ...

    def read_frames(
        self, frames: UInt8[Tensor, "B H W 3"], camera: Camera, *, tool_m: Float[Tensor, "B 3"] | None = None
    ) -> Reading:
        """Read B frames."""
        ...


class Score(Protocol):
    """All that a planner sees."""

    def __call__(self, actions: Float[Tensor, "N T A"]) -> Float[Tensor, "N"]:
        """Return how good each of N action sequences is; higher is better."""
        ...
