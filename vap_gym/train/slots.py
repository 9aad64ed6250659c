"""Training on the model's own rollouts: a batch of ongoing imaginations, one frame further at every step.

Each slot follows an episode from a random first frame, as an env does after reset: anchor and history start as that
frame. Most slots feed the model's own predictions back, so that it learns to carry objects and to mend its own errors;
the others are shown the truth. A sample costs one forward and backward pass whatever its depth in the rollout.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torch.nn import functional as F

from vap_gym.errors import CheckpointError
from vap_gym.train.contacts import contact_starts
from vap_gym.train.latents import LatentEpisodes
from vap_gym.train.things import matched
from vap_gym.world.appearance import FirstSight
from vap_gym.world.codec import to_pictures
from vap_gym.world.dynamics import PROMPT_TAPS


@dataclass(frozen=True, kw_only=True)
class SlotSettings:
    """How slots are drawn."""

    batch_size: int
    lags: tuple[int, ...]
    horizon: int = 30
    own_rollouts: float = 0.8
    strides: tuple[float, ...] = (0.75, 0.15, 0.10)
    history_noise: float = 0.05
    history_blur: float = 0.6  # where the truth is shown: the most that it is mixed with its own blur
    contact_share: float = 0.5  # of rollouts that begin shortly before an object moves


@dataclass(frozen=True, kw_only=True)
class SlotInputs:
    """One step of every slot. `prompts` are the next frame's, the last two's and the anchor's; `place_m` and `turn` say
    where the things seen at first are in the next frame, in truth, and `views` where the robot's links are."""

    seen: Float[Tensor, "B lags C h w"]
    truth: Float[Tensor, "B C h w"]  # of the next frame
    prompts: UInt8[Tensor, "B taps H W 3"]
    place_m: Float[Tensor, "B K 3"]
    turn: Float[Tensor, "B K 3 3"]
    views: Float[Tensor, "B L 3 4"]
    target: Int64[Tensor, " B"]  # the next frame's index


class Slots:
    """The batch's state: which episode and frame each slot is at, and its latent history.

    `look` tells what is to be seen in first pictures.
    """

    def __init__(
        self,
        data: LatentEpisodes,
        settings: SlotSettings,
        rng: torch.Generator,
        look: Callable[[Float[Tensor, "N 3 H W"], Float[Tensor, "N L 3 4"]], FirstSight],
    ) -> None:
        self.data, self.settings, self.rng, self._look = data, settings, rng, look
        self._contact = contact_starts(data.objects_m)
        b = settings.batch_size
        shape = data.latents.shape[2:]
        self.episode = torch.zeros(b, dtype=torch.int64)
        self.first = torch.zeros(b, dtype=torch.int64)
        self.stride = torch.ones(b, dtype=torch.int64)
        self.depth = torch.zeros(b, dtype=torch.int64)
        self.length = torch.zeros(b, dtype=torch.int64)
        self.own = torch.zeros(b, dtype=torch.bool)
        self.anchor = torch.zeros(b, *shape)
        self.history = torch.zeros(b, max(settings.lags), *shape)
        width, height = data.frame_size_px
        self.prompts = torch.zeros(b, PROMPT_TAPS, height, width, 3, dtype=torch.uint8)
        sight = look(torch.zeros(b, 3, height, width), data.views[self.episode, self.first])
        self.sight = FirstSight(*(x.clone() for x in sight))
        self.which = torch.zeros(self.sight.there.shape, dtype=torch.int64)  # object that a thing is
        self.known = torch.zeros(self.sight.there.shape, dtype=torch.bool)

    @property
    def now(self) -> Tensor:
        """Frame index of each slot's newest history entry."""
        return self.first + self.depth * self.stride

    def begin_finished(self, own_rollouts: float, horizon: int) -> None:
        """Start new rollouts where the old ones are at their end."""
        done = torch.nonzero(self.depth >= self.length)[:, 0]
        if len(done) == 0:
            return
        n, frames = len(done), self.data.latents.shape[1]
        weights = torch.tensor(self.settings.strides)
        stride = 1 + torch.multinomial(weights, n, replacement=True, generator=self.rng)
        wanted = torch.randint(1, horizon + 1, (n,), generator=self.rng)
        length = torch.minimum(wanted, (frames - 1) // stride)
        room = frames - length * stride  # ≥ 1 choices of a first frame
        first = (torch.rand(n, generator=self.rng) * room).long()
        episode = torch.randint(len(self.data), (n,), generator=self.rng)
        if len(self._contact) and self.settings.contact_share > 0:
            chosen = self._contact[torch.randint(len(self._contact), (n,), generator=self.rng)]
            take = torch.rand(n, generator=self.rng) < self.settings.contact_share
            episode, first = torch.where(take, chosen[:, 0], episode), torch.where(take, chosen[:, 1], first)
            length = torch.where(take, torch.minimum(length, (frames - 1 - first) // stride), length).clamp(min=1)
            first = torch.minimum(first, frames - 1 - length * stride)
        self.own[done] = torch.rand(n, generator=self.rng) < own_rollouts
        self.begin(done, episode, first, stride, length)

    def begin(
        self,
        done: Int64[Tensor, " n"],
        episode: Int64[Tensor, " n"],
        first: Int64[Tensor, " n"],
        stride: Int64[Tensor, " n"],
        length: Int64[Tensor, " n"],
    ) -> None:
        """Start rollouts in the slots `done`: so many steps along every `stride`-th frame from `first` on."""
        self.episode[done] = episode
        self.first[done], self.stride[done], self.length[done] = first, stride, length
        self.depth[done] = 0
        anchor = self.data.latents[self.episode[done], first].float()
        self.anchor[done] = anchor
        pictures = to_pictures(self.data.frames[self.episode[done], first])
        sight = self._look(pictures, self.data.views[self.episode[done], first])
        for all_slots, new in zip(self.sight, sight, strict=True):
            all_slots[done] = new
        self.which[done], off = matched(sight.there, sight.things_m, self.data.objects_m[self.episode[done], first])
        self.known[done] = off.isfinite()
        self.history[done] = anchor[:, None].expand(-1, self.history.shape[1], -1, -1, -1)
        self.prompts[done] = torch.from_numpy(self.data.prompts(self.episode[done], first))[:, None]

    def inputs(self) -> SlotInputs:
        """What the dynamics see of every slot, and the truth to compare with."""
        settings, n = self.settings, len(self.history)
        seen = self.history[:, [lag - 1 for lag in settings.lags]]
        shown = ~self.own & (self.depth > 0)  # the truth, spoilt a little, so that the model learns to mend it
        blur = settings.history_blur * torch.rand(n, generator=self.rng) * (torch.rand(n, generator=self.rng) < 0.5)
        level = settings.history_noise * torch.rand(n, generator=self.rng)
        blur, level = ((x * shown)[:, None, None, None, None] for x in (blur, level))
        seen = torch.lerp(seen, _blurred(seen), blur)
        seen = seen + level * torch.randn(n, 1, *seen.shape[2:], generator=self.rng)
        target = self.now + self.stride
        drawn = torch.from_numpy(self.data.prompts(self.episode, target))
        self.prompts = torch.cat([drawn[:, None], self.prompts[:, :-2], self.prompts[:, -1:]], dim=1)
        place_m, turn = self._things(target)
        return SlotInputs(
            seen=seen,
            truth=self.data.latents[self.episode, target].float(),
            prompts=self.prompts,
            place_m=place_m,
            turn=turn,
            views=self.data.views[self.episode, target],
            target=target,
        )

    def _things(self, frame: Int64[Tensor, " B"]) -> tuple[Float[Tensor, "B K 3"], Float[Tensor, "B K 3 3"]]:
        """Where the things are in a frame: as far from where they were seen as their objects have moved in truth."""
        slot = torch.arange(len(frame))[:, None]
        places, turns = (
            [x[self.episode, t][slot, self.which] for t in (frame, self.first)]
            for x in (self.data.objects_m, self.data.objects_turn)
        )
        way = torch.where(self.known[..., None], places[0] - places[1], 0.0)
        return self.sight.things_m + way, torch.where(self.known[..., None, None], turns[0] @ turns[1].mT, torch.eye(3))

    def advance(self, predicted: Tensor, truth: Tensor) -> None:
        """Take the prediction (or, in slots that are shown the truth, the truth) as the newest frame."""
        newest = torch.where(self.own[:, None, None, None], predicted.detach().float().cpu(), truth)
        self.history = torch.cat([newest[:, None], self.history[:, :-1]], dim=1)
        self.depth += 1

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs."""
        tensors = {k: v for k, v in vars(self).items() if isinstance(v, Tensor) and not k.startswith("_")}
        return tensors | {f"sight_{k}": v for k, v in self.sight._asdict().items()}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up a saved state.

        Raises:
            CheckpointError: it lacks something, or something has another shape: an earlier version, another recipe.
        """
        mine = {key: value.shape for key, value in self.state().items()}
        lacks = sorted(mine.keys() - state.keys())
        unlike = sorted(key for key in mine.keys() & state.keys() if state[key].shape != mine[key])
        if lacks or unlike:
            told = [f"lacks {', '.join(lacks)}"] * bool(lacks)
            told += [f"has {key} {tuple(state[key].shape)}" for key in unlike[:3]]
            raise CheckpointError(
                f"A saved state must hold rollouts in the recipe's {len(self.history)} slots, but it "
                f"{' and '.join(told)}. Resume with the version and the recipe that it was saved by, or begin another "
                "run with its `model` folder as init."
            )
        self.sight = FirstSight(**{k: state[f"sight_{k}"] for k in FirstSight._fields})
        for key in mine:
            if not key.startswith("sight_"):
                setattr(self, key, state[key])


def _blurred(frames: Float[Tensor, "B L C h w"]) -> Float[Tensor, "B L C h w"]:
    """Mean over 3 × 3 cells: what moving a picture by fractions of a cell, again and again, makes of it."""
    flat = F.pad(frames.flatten(0, 2)[:, None], (1, 1, 1, 1), mode="replicate")
    return F.avg_pool2d(flat, 3, stride=1).reshape(frames.shape)
