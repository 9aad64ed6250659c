"""Noise by counter: standard normal, and a function of a slot's own seed, step and evaluation alone."""

import pytest
import torch
from torch import Tensor

from vap_gym.world.noise import counter_noise

SHAPE = (8, 24, 36)
GOLDEN = [0.7517169, 0.4864878, 1.0453451, -1.1234142]  # seed 7, step 3, evaluation 1


def noise(seed: list[int], step: list[int], evaluation: int = 0, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return counter_noise(
        torch.tensor(seed, dtype=torch.int64), torch.tensor(step, dtype=torch.int64), evaluation, shape
    )


def test_it_has_the_moments_of_a_normal() -> None:
    values = noise(list(range(32)), [0] * 32).flatten()
    n = len(values)
    assert values.mean().abs() < 4 / n**0.5
    assert (values.square().mean() - 1).abs() < 4 * (2 / n) ** 0.5
    assert values.pow(3).mean().abs() < 4 * (15 / n) ** 0.5
    assert (values.pow(4).mean() - 3).abs() < 4 * (96 / n) ** 0.5
    assert values.isfinite().all()
    for level, share in ((1.0, 0.3173), (2.0, 0.0455), (3.0, 0.0027)):
        assert (values.abs() > level).float().mean() == pytest.approx(share, abs=4 * (share / n) ** 0.5)


def test_neighbours_are_unrelated_in_place_seed_step_and_evaluation() -> None:
    size = 8 * 24 * 36
    here = noise([0, 1, 2, 1000], [0, 0, 0, 7]).flatten(1)
    for other in (
        here.roll(1, 1),
        here.roll(size // 2, 1),
        noise([1, 2, 3, 1001], [0, 0, 0, 7]).flatten(1),
        noise([0, 1, 2, 1000], [1, 1, 1, 8]).flatten(1),
        noise([0, 1, 2, 1000], [0, 0, 0, 7], evaluation=1).flatten(1),
    ):
        assert ((here * other).mean(1).abs() < 4.5 / size**0.5).all()


def test_a_slot_does_not_depend_on_its_batch_mates_or_place() -> None:
    together = noise([5, 9, 2**40, 7], [3, 0, 12, 1])
    assert torch.equal(noise([7, 5], [1, 3]), together[[3, 0]])
    assert torch.equal(noise([2**40], [12]), together[2:3])


def test_all_seeds_steps_and_evaluations_differ() -> None:
    keys = [
        (seed, step, evaluation)
        for seed in (0, 1, 2, 3, 2**32, 2**32 + 1, 2**32 + 2, 2**62, 2**63 - 1)
        for step in (0, 1, 2, 3)
        for evaluation in (0, 1)
    ]
    drawn = [tuple(noise([s], [t], e, (4,))[0].tolist()) for s, t, e in keys]
    assert len(set(drawn)) == len(keys)  # also when seed and step change places


def test_the_same_key_gives_the_same_numbers_for_ever() -> None:
    golden = noise([7], [3], 1, (4,))[0]
    assert torch.equal(golden, noise([7], [3], 1, (4,))[0])
    torch.testing.assert_close(golden, torch.tensor(GOLDEN), rtol=0, atol=1e-6)


def test_shapes_and_type() -> None:
    assert noise([1, 2, 3], [0, 0, 0], shape=(5,)).shape == (3, 5)  # odd: one of the last pair is dropped
    assert noise([1], [0], shape=(2, 3)).dtype == torch.float32
    assert noise([], [], shape=(2,)).shape == (0, 2)
