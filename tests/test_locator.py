"""The locator: which square it looks at, that it begins in its middle, and that it learns where the tool is exactly."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from vap_gym.errors import CardError
from vap_gym.judge import STRIDE_PX, JudgeNetwork
from vap_gym.train.judge import locator_loss
from vap_gym.train.judge import main as train_judge
from vap_gym.world.locator import CELLS, Locator, corner_of, square

HEIGHT, WIDTH = 24, 36


def test_a_square_lies_around_its_guess_and_is_empty_beyond_the_edge() -> None:
    features = torch.arange(HEIGHT * WIDTH, dtype=torch.float32).reshape(1, 1, HEIGHT, WIDTH).expand(2, 3, -1, -1)
    guess = torch.tensor([[18.4, 11.6], [1.0, 23.9]])
    corner = corner_of(guess)
    assert corner.tolist() == [[12, 6], [-5, 18]]
    cut = square(features, corner)
    assert cut.shape == (2, 3, CELLS, CELLS)
    assert torch.equal(cut[0], features[0, :, 6:18, 12:24])
    assert torch.equal(cut[1, :, :6, 5:], features[1, :, 18:24, :7])
    assert not cut[1, :, 6:].any()
    assert not cut[1, :, :, :5].any()


def test_it_begins_in_the_middle_of_its_square() -> None:
    torch.manual_seed(0)
    place, corner, say = Locator(3, width=8)(torch.rand(2, 3, HEIGHT, WIDTH), torch.tensor([[18.4, 11.6], [1.0, 23.9]]))
    torch.testing.assert_close(place, corner + CELLS / 2.0)
    assert say.shape == (2, CELLS, CELLS)


def blobs(count: int, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Features with a soft blob, where it is (cells), and a guess that is up to two cells off."""
    place = torch.rand(count, 2, generator=rng) * torch.tensor([WIDTH - 8.0, HEIGHT - 8.0]) + 4
    y, x = torch.meshgrid(torch.arange(HEIGHT) + 0.5, torch.arange(WIDTH) + 0.5, indexing="ij")
    far = (x - place[:, 0, None, None]).square() + (y - place[:, 1, None, None]).square()
    return torch.exp(-far / 4)[:, None], place, place + 4 * torch.rand(count, 2, generator=rng) - 2


def test_it_learns_to_a_fraction_of_a_cell() -> None:
    torch.manual_seed(0)
    rng = torch.Generator().manual_seed(1)
    locator = Locator(1, width=12, depth=1)
    optimiser = torch.optim.Adam(locator.parameters(), lr=3e-3)

    def off(count: int) -> tuple[Tensor, Tensor]:
        features, place, guess = blobs(count, rng)
        told, corner, say = locator(features, guess)
        out = {"places_px": STRIDE_PX * told[:, None], "corner": corner, "say": say}
        return locator_loss(out, STRIDE_PX * place), (told - place).norm(dim=-1).median()

    before = off(64)[1].item()
    for _ in range(120):
        loss, _ = off(32)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert before > 0.9
    assert off(64)[1].item() < 0.25


def test_tools_that_are_not_there_or_out_of_the_square_teach_nothing() -> None:
    corner = torch.tensor([[10, 5], [10, 5]])
    out = {"places_px": torch.zeros(2, 1, 2), "corner": corner, "say": torch.zeros(2, CELLS, CELLS)}
    assert float(locator_loss(out, torch.tensor([[torch.nan, torch.nan], [4.0, 4.0]]))) == 0.0


def test_a_judge_with_a_locator_changes_the_tools_place_alone() -> None:
    torch.manual_seed(0)
    plain = JudgeNetwork(latent_channels=4, widths=(8, 12)).eval()
    more = JudgeNetwork(latent_channels=4, widths=(8, 12), locator_width=8).eval()
    more.load_state_dict(plain.state_dict(), strict=False)
    latents = torch.rand(3, 4, HEIGHT, WIDTH)
    with torch.no_grad():
        one, other = plain(latents), more(latents)
    for name in one:
        if name != "places_px":
            assert torch.equal(one[name], other[name]), name
    assert torch.equal(one["places_px"][:, :-1], other["places_px"][:, :-1])
    guess = one["places_px"][:, -1] / STRIDE_PX
    torch.testing.assert_close(other["places_px"][:, -1], STRIDE_PX * guess.round())  # the middle, since untrained


def test_a_locator_is_trained_on_a_judge_only(tmp_path: Path) -> None:
    recipe = tmp_path / "a.toml"
    recipe.write_text('data = ["nowhere"]\ncodec = "x"\nsteps = 1\nonly_locator = true\n')
    with pytest.raises(CardError, match="only_locator goes on from a judge"):
        train_judge(recipe, out=tmp_path / "run")
