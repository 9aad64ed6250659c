"""Filling in: what is unknown is guessed from around it, what is known stays."""

import pytest
import torch

from vap_gym.world.filling import continued, filled_in


def test_what_is_unknown_is_filled_in_by_what_is_around_it() -> None:
    y, x = torch.meshgrid(torch.linspace(0, 1, 96), torch.linspace(0, 1, 144), indexing="ij")
    scene = torch.stack([x, y, 0.5 * (x + y)])[None]
    known = torch.ones(1, 1, 96, 144)
    known[..., 20:34, 30:110] = 0.0
    filled = filled_in(scene * known, known)
    assert (filled - scene).abs().max() < 0.12  # a smooth scene is guessed well
    torch.testing.assert_close(filled * known, scene * known)  # and what is known stays as it is
    assert filled_in(scene, torch.zeros_like(known)).isfinite().all()


@pytest.mark.parametrize("slope", [0.0, 0.3, -0.5, 1.0, 3.0])
def test_an_edge_goes_on_behind_what_covers_it(slope: float) -> None:
    y, x = torch.meshgrid(torch.arange(96.0) - 48, torch.arange(144.0) - 72, indexing="ij")
    edge = torch.where(y > slope * x, 0.8, -0.6)
    scene = torch.stack([edge, -edge, 0.5 * edge])[None]
    known = torch.ones(1, 1, 96, 144)
    known[..., 28:68, 52:92] = 0.0
    made = continued(scene * known, known)
    assert torch.equal(made * known, scene * known)
    far = ((y - slope * x).abs() / (1 + slope**2) ** 0.5 > 5)[None, None].expand_as(scene) & (known == 0).expand_as(
        scene
    )
    assert (made - scene)[far].abs().mean() < 0.25 * (filled_in(scene * known, known) - scene)[far].abs().mean()


def test_where_nothing_is_known_on_a_line_other_lines_tell_and_else_what_is_around() -> None:
    scene = torch.full((2, 3, 48, 64), 0.25)
    known = torch.ones(2, 1, 48, 64)
    known[0, :, :, 20:] = 0.0  # to the edge of the picture: every line has one end at most
    known[1] = 0.0  # nothing at all
    made = continued(scene * known, known)
    torch.testing.assert_close(made[0], scene[0])
    assert made[1].isfinite().all()
    assert torch.equal(made[1], filled_in(scene * known, known)[1])
