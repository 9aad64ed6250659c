"""Inverse kinematics by damped least squares, batched: each step solves (J Jᵀ + λ² I) y = e and moves q by Jᵀ y."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vap_gym.errors import VapError
from vap_gym.kinematics.chain import Chain
from vap_gym.rotations import rotvec_from_rotation


@dataclass(frozen=True, kw_only=True, eq=False)
class IkResult:
    """Joint positions and what is left of the error."""

    q: Float[Tensor, "*batch n"]
    position_error_m: Float[Tensor, "*batch"]
    rotation_error_rad: Float[Tensor, "*batch"]
    converged: Bool[Tensor, "*batch"]


def pose_error(
    T_base_link: Float[Tensor, "*batch 4 4"], T_base_target: Float[Tensor, "*batch 4 4"]
) -> Float[Tensor, "*batch 6"]:
    """Return the displacement (m; rotation vector in rad) in the base frame that takes the link to the target."""
    turn = T_base_target[..., :3, :3] @ T_base_link[..., :3, :3].mT
    return torch.cat([T_base_target[..., :3, 3] - T_base_link[..., :3, 3], rotvec_from_rotation(turn)], -1)


def damped_step(
    jacobian: Float[Tensor, "*batch 6 n"], error: Float[Tensor, "*batch 6"], damping: float
) -> Float[Tensor, "*batch n"]:
    """Return the joint displacement that minimises |J dq − e|² + damping² |dq|²."""
    gram = jacobian @ jacobian.mT
    gram.diagonal(0, -2, -1).add_(damping * damping)
    factor, _ = torch.linalg.cholesky_ex(gram)  # positive definite thanks to the damping
    return (jacobian.mT @ torch.cholesky_solve(error.unsqueeze(-1), factor)).squeeze(-1)


def solve_ik(
    chain: Chain,
    link: str,
    T_base_target: Float[Tensor, "*#batch 4 4"],
    q0: Float[Tensor, "*#batch n"],
    *,
    iterations: int = 50,
    damping: float = 0.02,
    max_step_rad: float = 0.3,
    limits: bool = True,
    position_tolerance_m: float = 1e-5,
    rotation_tolerance_rad: float = 1e-4,
) -> IkResult:
    """Return the joint positions near `q0` that bring `link` to the target.

    Every iteration moves no joint by more than `max_step_rad` (the whole step is scaled). With `limits`, q stays within
    the joint limits: a joint pressed against one is left out of the next iteration, so that the others do its work.
    """
    if T_base_target.shape[-2:] != (4, 4):
        raise VapError(f"T_base_target must have shape (*batch, 4, 4), got {tuple(T_base_target.shape)}.")
    if iterations < 1 or damping <= 0:
        raise VapError(f"solve_ik needs iterations ≥ 1 and damping > 0, got {iterations} and {damping}.")
    batch = torch.Size(torch.broadcast_shapes(q0.shape[:-1], T_base_target.shape[:-2]))
    q = q0.expand(*batch, q0.shape[-1])
    free = torch.ones_like(q)
    for _ in range(iterations):
        T_base_link, jacobian = chain.fk_and_jacobian(q, link)
        step = damped_step(jacobian * free.unsqueeze(-2), pose_error(T_base_link, T_base_target), damping)
        step = step * (max_step_rad / step.abs().amax(-1, keepdim=True).clamp(min=max_step_rad))
        wanted = q + step
        q = wanted.clamp(chain.lower, chain.upper) if limits else wanted
        free = (wanted == q).to(q.dtype)
    error = pose_error(chain.fk(q, link), T_base_target)
    position_error, rotation_error = error[..., :3].norm(dim=-1), error[..., 3:].norm(dim=-1)
    converged = (position_error < position_tolerance_m) & (rotation_error < rotation_tolerance_rad)
    return IkResult(q=q, position_error_m=position_error, rotation_error_rad=rotation_error, converged=converged)
