"""What a judge is taught from: mirrored frames are seen by mirrored cameras; a tool may weigh more than an object."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from vap_gym.geometry import Camera
from vap_gym.train.judge import judge_loss
from vap_gym.train.judge_data import Truths, some_mirrored

N, P, SIZE_PX = 3, 7, (48, 32)


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def entry() -> tuple[dict[str, Tensor], Tensor]:
    """What is told of frames of a camera that looks along z, and where their points are."""
    K = torch.tensor([[40.0, 0.0, 22.0], [0.0, 40.0, 15.0], [0.0, 0.0, 1.0]]).expand(N, 3, 3)
    points_m = torch.rand(N, P, 3, generator=rng()) * 0.4 + torch.tensor([-0.2, -0.2, 1.0])
    px, _ = camera(K).project(points_m)
    labels = torch.randint(3, (N, SIZE_PX[1], SIZE_PX[0]), generator=rng()).to(torch.uint8)
    return {"labels": labels, "points_px": px, "K": K, "held": torch.zeros(N, P, dtype=torch.bool)}, points_m


def camera(K: Tensor) -> Camera:
    return Camera(K=K, T_world_camera=torch.eye(4).expand(N, 4, 4), frame_size_px=SIZE_PX)


def test_mirrored_frames_are_seen_by_mirrored_cameras() -> None:
    told, points_m = entry()
    pictures = torch.rand(N, 3, SIZE_PX[1], SIZE_PX[0], generator=rng())
    flip = torch.tensor([True, False, True])
    shown, other = some_mirrored(pictures, told, flip)
    torch.testing.assert_close(camera(other["K"]).project(points_m)[0], other["points_px"])
    torch.testing.assert_close(other["points_px"][0, :, 0] + told["points_px"][0, :, 0], torch.full((P,), 48.0))
    assert torch.equal(shown[0], pictures[0].flip(-1))
    assert torch.equal(other["labels"][2], told["labels"][2].flip(-1))
    for mine, given in ((shown, pictures), (other["labels"], told["labels"]), (other["points_px"], told["points_px"])):
        assert torch.equal(mine[1], given[1])
    assert set(other) == set(told)


def truths() -> Truths:
    told, points_m = entry()
    return Truths(
        latents=torch.zeros(N, 8, 8, 12),
        labels=told["labels"],
        points_px=told["points_px"],
        present=torch.ones(N, P),
        held=told["held"],
        height_m=torch.full((N, P), 0.02),
        place_m=points_m,
        support_m=torch.zeros(N),
        K=told["K"],
        T_table_camera=torch.eye(4).expand(N, 4, 4),
        robot=torch.zeros(N, dtype=torch.int64),
        held_out=torch.zeros(N, dtype=torch.bool),
    )


def said(tool_heat: float) -> dict[str, Tensor]:
    """An answer that knows nothing, but puts so much heat at a place where the tool is not."""
    heat = torch.zeros(N, P, 8, 12)
    heat[:, -1, 0, 0] = tool_heat
    return {
        "heat": heat,
        "offset": torch.zeros(N, P, 2, 8, 12),
        "state": torch.zeros(N, P, 2),
        "height_m": torch.full((N, P), 0.02),
        "support_m": torch.zeros(N, 1),
        "labels": torch.zeros(N, 10, 32, 48),
    }


def test_an_error_of_the_tool_costs_more_the_more_it_weighs() -> None:
    data = truths()
    rise = [
        float(judge_loss(said(8.0), data, tool_weight=w) - judge_loss(said(0.0), data, tool_weight=w))
        for w in (1.0, 4.0)
    ]
    assert 0.0 < 2.0 * rise[0] < rise[1]
    hidden = dataclasses.replace(data, points_px=data.points_px.clone())
    hidden.points_px[:, -1] = torch.nan
    assert torch.equal(judge_loss(said(8.0), hidden, tool_weight=4.0), judge_loss(said(0.0), hidden, tool_weight=4.0))
