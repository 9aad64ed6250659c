"""Worlds to train in: settings → starts → dynamics → a vector env."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vap_gym.cards import load_env, load_robot
from vap_gym.loading import build_stage, load_starts, task_starts
from vap_gym.rl.dynamics import ThingDynamics
from vap_gym.rl.moments import moments_of
from vap_gym.rl.settings import RlSettings
from vap_gym.rl.steady import Steady
from vap_gym.rl.things_env import ThingVectorEnv
from vap_gym.starts import Start, save_starts


def starts_of(settings: RlSettings, folder: Path) -> list[Start]:
    """Return where episodes begin: the card's shipped starts of the task, or moments of recordings, which are kept in
    `folder`/starts.npz and read from there when a run goes on."""
    if not settings.data:
        shipped = load_starts(settings.card, None)
        return [shipped[i] for i in task_starts(shipped, settings.task)]
    kept = folder / "starts.npz"
    if not kept.is_file():
        moments = moments_of(
            settings.data, settings.task, count=settings.moments, seed=settings.seed, any_task=settings.any_task
        )
        save_starts(kept, moments)
    return list(load_starts(settings.card, kept))


def dynamics_of(settings: RlSettings, starts: Sequence[Start]) -> ThingDynamics:
    """Return what the episodes of a training run in."""
    from vap_gym.rl.imagined import ImaginedThings
    from vap_gym.rl.pictured import PicturedThings

    if settings.world == "oracle":
        return simulated(settings.card, starts, settings.slots, noise=settings.noise)
    stage = build_stage(
        settings.card,
        world_model=settings.world_model or None,
        judge=settings.judge,
        action_mode="cartesian_velocity",
        min_trust=settings.min_trust or None,
    )
    if settings.world == "pictures":
        return PicturedThings(stage, starts, settings.slots)
    return ImaginedThings(
        stage, starts, settings.slots, noise=settings.noise, max_spread_m=settings.max_spread_m or None
    )


def simulated(card: str, starts: Sequence[Start], slots: int, *, noise: bool) -> ThingDynamics:
    """Return the simulator of a card's robot. Raises MissingDependencyError without pybullet."""
    from vap_gym.rl.simulated import SimulatedThings

    return SimulatedThings(load_robot(load_env(card).robot), starts, slots, noise=noise)


def training_env(settings: RlSettings, starts: Sequence[Start]) -> ThingVectorEnv:
    """Return the vector env that an agent is trained in."""
    return ThingVectorEnv(
        dynamics_of(settings, starts), horizon=settings.horizon, hold=settings.hold,
        steady=Steady(settings.agree, settings.of), approach=settings.approach, bonus=settings.bonus,
    )  # fmt: skip


def check_envs(settings: RlSettings, *, slots: int = 4) -> dict[str, ThingVectorEnv]:
    """Return whole episodes from shipped starts of the task, in which agents are tried: "oracle", in the simulator, and
    for an agent that is trained in imagination "imagined", the same there, from those starts whose object is found."""
    shipped = load_starts(settings.card, None)
    starts = [shipped[i] for i in task_starts(shipped, settings.task)[: settings.check_starts]]
    worlds = {"oracle": simulated(settings.card, starts, min(slots, len(starts)), noise=False)}
    if settings.world == "imagination":
        worlds["imagined"] = dynamics_of(replace(settings, noise=False, max_spread_m=0.0, slots=len(starts)), starts)
    return {
        name: ThingVectorEnv(
            world, horizon=settings.check_steps, hold=settings.hold, steady=Steady(1, 1), autoreset_mode="Disabled"
        )
        for name, world in worlds.items()
    }
