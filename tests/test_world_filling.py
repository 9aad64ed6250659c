"""Filling in: what is unknown is guessed from around it, what is known stays."""

import torch

from vap_gym.world.filling import filled_in


def test_what_is_unknown_is_filled_in_by_what_is_around_it() -> None:
    y, x = torch.meshgrid(torch.linspace(0, 1, 96), torch.linspace(0, 1, 144), indexing="ij")
    scene = torch.stack([x, y, 0.5 * (x + y)])[None]
    known = torch.ones(1, 1, 96, 144)
    known[..., 20:34, 30:110] = 0.0
    filled = filled_in(scene * known, known)
    assert (filled - scene).abs().max() < 0.12  # a smooth scene is guessed well
    torch.testing.assert_close(filled * known, scene * known)  # and what is known stays as it is
    assert filled_in(scene, torch.zeros_like(known)).isfinite().all()
