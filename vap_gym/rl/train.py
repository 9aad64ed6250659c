"""Training an agent: rounds that can be stopped and gone on with exactly; curves; tries in the oracle."""

from __future__ import annotations

import io
import random
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from vap_gym.errors import CheckpointError, VapError
from vap_gym.policies.seen import FEATURES, answer_size
from vap_gym.policies.things import AgentCard, read_agent
from vap_gym.rl.callbacks import NearReference, Watch
from vap_gym.rl.clone import FIRST_LOG_STD, NET
from vap_gym.rl.sb3 import Sb3VecEnv
from vap_gym.rl.scores import tried
from vap_gym.rl.settings import RlSettings
from vap_gym.rl.worlds import check_envs, starts_of, training_env
from vap_gym.train.run import Run

LAST_ROUNDS = 5  # over which what a training came to is averaged
CURVES = (("success", "imagined", "oracle"), ("reward",), ("untrusted", "steps_each"), ("distance", "spread"))


def train_agent(settings: RlSettings, out: str | Path, *, resume: bool = False, quiet: bool = False) -> dict[str, Any]:
    """Train an agent and write it (agent.json, policy.pt), its log, curves and state to a folder.

    It goes in rounds: episodes are begun anew in each, with generators of its own seed. A run that was killed goes on
    with the round that it was in, and comes to the same agent. SB3 draws from the global generators of numpy and
    torch: these are seeded.

    Args:
        settings: see `RlSettings`.
        out: folder.
        resume: go on with the run that is there, with these settings; `steps` may be more than before.
        quiet: no progress bar.

    Returns:
        steps, seconds, `success` in training (share of episodes, mean of the last rounds), `oracle` (share of the check
        starts that were solved there; None where it was never tried).

    Raises:
        CheckpointError: a folder that is not empty (without `resume`), or a run with other settings.
    """
    folder = Path(out)
    reference = _reference(settings)
    run = Run(folder, resume=resume)
    settings = _claimed(settings, folder)
    began = time.perf_counter()
    env = training_env(settings, starts_of(settings, folder))
    state = run.load()
    model = _model(settings, Sb3VecEnv(env), state)
    if reference is not None and state is None:
        _begin_with(model, reference, settings)
    checks = check_envs(settings) if settings.check_every else {}
    done, rounds = (0, 0) if state is None else (int(state["step"]), int(state["round"]))
    bar = tqdm(total=settings.steps, initial=min(done, settings.steps), unit="step", disable=quiet, desc=settings.task)
    while done < settings.steps:
        row = _round(model, settings, reference, rounds)
        rounds, done = rounds + 1, int(model.num_timesteps)
        last = done >= settings.steps
        if checks and (last or rounds % settings.check_every == 0):
            row |= {name: float(np.mean(tried(model.policy, check))) for name, check in checks.items()}
        run.log(done, **row)
        run.save({"step": done, "round": rounds} | _packed(model, settings))
        run.draw_curves(CURVES)
        bar.update(min(done, settings.steps) - bar.n)
        bar.set_postfix({key: f"{row[key]:.2f}" for key in ("success", "reward", "oracle") if key in row})
    bar.close()
    AgentCard(
        task=settings.task, algorithm=settings.algorithm, card=settings.card, hold=settings.hold, steps=done
    ).save(folder, model.policy)
    env.close()
    for check in checks.values():
        check.close()
    return _result(run, folder, done, time.perf_counter() - began)


def _claimed(settings: RlSettings, folder: Path) -> RlSettings:
    """The settings of a run: those that are there already must be the same, but for how long it goes."""
    path = folder / "settings.json"
    if not path.exists():
        settings.save(path)
        return settings
    theirs = RlSettings.read(path)
    if replace(theirs, steps=settings.steps) != settings:
        differ = [name for name, value in vars(settings).items() if name != "steps" and value != getattr(theirs, name)]
        raise CheckpointError(
            f"'{folder}' holds a run with other settings: {', '.join(differ)} differ. Resume it as it was begun, or "
            "choose another folder."
        )
    settings.save(path)
    return settings


def _round(model: Any, settings: RlSettings, reference: Any, number: int) -> dict[str, float]:
    """Train for one round, and tell how it went."""
    seed = int(np.random.SeedSequence([settings.seed, number]).generate_state(1)[0]) % 2**31
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (SB3's buffers draw from it)
    torch.manual_seed(seed)
    model.env.seed(seed)
    model.action_space.seed(seed)
    model._last_obs = None  # every round begins its episodes anew, as a resumed one has to
    _teach(model, actor=not settings.init or number >= settings.critic_rounds)
    watch = Watch()
    callbacks: list[Any] = [watch]
    near = None
    if reference is not None:
        near = NearReference(reference, settings.kl)
        callbacks.append(near)
    model.learn(settings.round_steps * settings.slots, callback=callbacks, log_interval=None, reset_num_timesteps=False)
    row = watch.row()
    if near is not None:
        row["distance"] = near.distance
    if settings.algorithm == "ppo":
        row["spread"] = float(model.policy.log_std.detach().exp().mean())
    return row


def _teach(model: Any, *, actor: bool) -> None:
    """Let the actor learn, too, or the critic alone (PPO)."""
    if hasattr(model.policy, "log_std"):
        parts = (*model.policy.mlp_extractor.policy_net.parameters(), *model.policy.action_net.parameters())
        for parameter in (*parts, model.policy.log_std):
            parameter.requires_grad_(actor)


def _model(settings: RlSettings, env: Any, state: Mapping[str, Any] | None) -> Any:
    """The SB3 model of a run: new, or as it was kept."""
    from stable_baselines3 import PPO, SAC

    kind: Any = PPO if settings.algorithm == "ppo" else SAC
    if state is not None:
        model = kind.load(io.BytesIO(state["model"]), env=env, device="cpu")
        if settings.algorithm == "sac":
            model.load_replay_buffer(io.BytesIO(state["buffer"]))
        return model
    common: dict[str, Any] = {
        "learning_rate": settings.learning_rate, "gamma": settings.gamma, "seed": settings.seed, "device": "cpu",
    }  # fmt: skip
    if settings.algorithm == "ppo":
        size = settings.round_steps * settings.slots
        return kind(
            "MlpPolicy", env, n_steps=settings.round_steps, batch_size=max(2, size // 4), n_epochs=8, gae_lambda=0.95,
            ent_coef=0.0, target_kl=0.03, policy_kwargs={"net_arch": NET, "log_std_init": FIRST_LOG_STD}, **common,
        )  # fmt: skip
    return kind(
        "MlpPolicy", env, buffer_size=min(200_000, max(settings.steps, 1000)), batch_size=256, train_freq=(1, "step"),
        gradient_steps=max(1, settings.slots // 8), learning_starts=min(2000, settings.steps // 4),
        policy_kwargs={"net_arch": NET["pi"]}, **common,
    )  # fmt: skip


def _packed(model: Any, settings: RlSettings) -> dict[str, bytes]:
    """All that a resumed run needs."""
    file = io.BytesIO()
    model.save(file)
    if settings.algorithm == "ppo":
        return {"model": file.getvalue()}
    buffer = io.BytesIO()
    model.save_replay_buffer(buffer)
    return {"model": file.getvalue(), "buffer": buffer.getvalue()}


def _reference(settings: RlSettings) -> Any:
    """The policy to begin with and to stay near to, if there is one."""
    if not settings.init:
        return None
    card, policy = read_agent(settings.init)
    if card.algorithm == "sac" or card.task != settings.task or card.hold != settings.hold:
        raise VapError(
            f"The agent to begin with must be of PPO or cloned, of '{settings.task}' with hold={settings.hold}, got "
            f"one of {card.algorithm}, '{card.task}', hold={card.hold} in '{settings.init}'."
        )
    shapes, needed = (policy.observation_space.shape, policy.action_space.shape), (FEATURES, answer_size(settings.task))
    if shapes != ((needed[0],), (needed[1],)):
        raise VapError(
            f"An agent must see {needed[0]} numbers and answer {needed[1]}, got one of {shapes} in '{settings.init}'. "
            "Clone it anew."
        )
    return policy


def _begin_with(model: Any, policy: Any, settings: RlSettings) -> None:
    try:
        model.policy.load_state_dict(policy.state_dict())
    except RuntimeError as error:
        raise CheckpointError(
            f"The agent in '{settings.init}' is a network of other layers: {error}. Clone it anew."
        ) from error


def _result(run: Run, folder: Path, steps: int, seconds: float) -> dict[str, Any]:
    rows = run.rows()
    oracle = [row["oracle"] for row in rows if "oracle" in row]
    success = [row["success"] for row in rows[-LAST_ROUNDS:] if "success" in row]
    return {
        "steps": steps,
        "seconds": round(seconds, 1),
        "success": round(float(np.mean(success)), 4) if success else None,
        "oracle": round(float(oracle[-1]), 4) if oracle else None,
        "out": str(folder),
    }
