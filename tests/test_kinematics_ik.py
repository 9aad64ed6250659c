"""Inverse kinematics finds the joints that forward kinematics started from, within their limits."""

import pytest
import torch
from torch import Tensor

from vap_gym.cards import load_robot
from vap_gym.errors import VapError
from vap_gym.kinematics import Chain, load_chain, solve_ik
from vap_gym.kinematics.ik import pose_error

TIP = "panda_link8"


@pytest.fixture(scope="module")
def arm() -> Chain:
    return load_chain(load_robot("panda_robotiq")).subchain([TIP])


def workspace(arm: Chain, count: int, seed: int = 0) -> Tensor:
    """Joint positions around DROID's reset pose, well inside the limits."""
    noise = torch.randn(count, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    home = torch.tensor(load_robot("panda_robotiq").home_q_rad, dtype=torch.float64)
    return (home + 0.35 * noise).clamp(arm.lower + 0.1, arm.upper - 0.1)


def test_converges_from_perturbed_starts(arm: Chain) -> None:
    q = workspace(arm, 200)
    target = arm.fk(q, TIP)
    start = q + 0.3 * torch.randn(200, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    result = solve_ik(arm, TIP, target, start.clamp(arm.lower, arm.upper), iterations=100)
    assert float(result.converged.double().mean()) >= 0.98
    good = result.converged
    error = pose_error(arm.fk(result.q, TIP), target)[good]
    assert float(error[:, :3].norm(dim=-1).max()) < 1e-5
    assert float(error[:, 3:].norm(dim=-1).max()) < 1e-4
    assert bool(((result.q >= arm.lower) & (result.q <= arm.upper)).all())


def test_stays_where_it_is_when_it_is_there(arm: Chain) -> None:
    q = workspace(arm, 20)
    result = solve_ik(arm, TIP, arm.fk(q, TIP), q, iterations=3)
    assert bool(result.converged.all())
    torch.testing.assert_close(result.q, q, atol=1e-9, rtol=0)


def test_out_of_reach_says_so_and_keeps_the_limits(arm: Chain) -> None:
    q = workspace(arm, 10)
    target = arm.fk(q, TIP)
    target[:, 0, 3] += 2.0
    result = solve_ik(arm, TIP, target, q, iterations=60)
    assert not bool(result.converged.any())
    assert bool((result.position_error_m > 0.5).all())
    assert bool(torch.isfinite(result.q).all())
    assert bool(((result.q >= arm.lower) & (result.q <= arm.upper)).all())


def test_without_limits_they_may_be_passed(arm: Chain) -> None:
    q = workspace(arm, 50)
    beyond = q.clone()
    beyond[:, 5] = arm.upper[5] + 0.3
    target = arm.fk(beyond, TIP)
    near = beyond - 0.05
    free = solve_ik(arm, TIP, target, near, iterations=60, limits=False)
    assert float(free.converged.double().mean()) >= 0.95
    assert bool((free.q[:, 5] > arm.upper[5]).any())
    held = solve_ik(arm, TIP, target, q, iterations=60)
    assert bool((held.q <= arm.upper).all())


def test_one_start_serves_many_targets_and_slots_do_not_mix(arm: Chain) -> None:
    q = workspace(arm, 8, seed=3)
    target = arm.fk(q, TIP)
    home = torch.tensor(load_robot("panda_robotiq").home_q_rad, dtype=torch.float64)
    together = solve_ik(arm, TIP, target, home)
    alone = torch.stack([solve_ik(arm, TIP, T, home).q for T in target])
    torch.testing.assert_close(together.q, alone, atol=1e-9, rtol=0)


def test_single_precision_is_good_to_a_tenth_of_a_millimetre(arm: Chain) -> None:
    single = arm.to(torch.float32)
    q = workspace(arm, 50).float()
    target = single.fk(q, TIP)
    result = solve_ik(
        single, TIP, target, q + 0.1, iterations=60, position_tolerance_m=1e-4, rotation_tolerance_rad=1e-3
    )
    assert float(result.converged.double().mean()) >= 0.98


def test_senseless_settings_are_refused(arm: Chain) -> None:
    q = workspace(arm, 1)
    with pytest.raises(VapError, match=r"iterations ≥ 1 and damping > 0, got 0 and 0\.02"):
        solve_ik(arm, TIP, arm.fk(q, TIP), q, iterations=0)
