"""`vap-gym train-rl`: train an agent by reinforcement, or clone one from experts; print how it went."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import Annotated, Any

import tyro

CLONE = "clone"


def main(
    task: str = "reach",
    *,
    algorithm: str = "ppo",
    world: Annotated[str, tyro.conf.arg(name="in")] = "imagination",
    steps: int = 200_000,
    seed: int = 0,
    out: Path = Path("runs/rl"),
    init: str = "",
    resume: bool = False,
    data: str = "",
    moments: int = 400,
    any_task: bool = True,
    episodes: int = 12,
    card: str = "VAP-DROID-v0",
    slots: int = 64,
    horizon: int = 20,
    hold: int = 2,
    agree: int = 2,
    of: int = 3,
    noise: bool = True,
    max_spread_m: float = 0.03,
    min_trust: float = 0.0,
    approach: float = 0.5,
    bonus: float = 1.0,
    kl: float = 0.0,
    critic_rounds: int = 4,
    gamma: float = 0.97,
    learning_rate: float = 3e-4,
    round_steps: int = 32,
    check_every: int = 0,
    check_starts: int = 24,
    check_steps: int = 100,
    world_model: str = "",
    judge: str = "tiny",
    json: bool = False,
) -> None:
    """Train a small agent that sees where things are, and answers with a velocity of the tool.

    In imagination no picture is drawn after the first: kinematics moves the robot, and the world model's network of
    things moves what it touches, thousands of steps a second. To learn from scratch:

        vap-gym train-rl --task reach --out runs/reach

    To clone a mediocre agent from a few recorded experts, and to improve it in imagination from recorded moments:

        vap-gym data generate data/droid --episodes 450
        vap-gym train-rl --task push --algorithm clone --data data/droid --episodes 12 --out runs/cloned
        vap-gym train-rl --task push --data data/droid --init runs/cloned --kl 0.01 --out runs/push

    What it is worth is told by trying it from pictures, where it was not trained:

        vap-gym evaluate before=things:runs/cloned after=things:runs/push --env VAP-DROID-Oracle-v0 --task push

    Writes agent.json and policy.pt (the agent), log.jsonl, curves.png, settings.json and state.pt.

    Args:
        task: reach, push or lift.
        algorithm: ppo, sac, or clone (behaviour cloning of the experts in --data; its other options are --episodes,
            --hold, --seed and --card).
        world: imagination (things alone), pictures (every frame is imagined and judged) or oracle (the simulator).
        steps: decisions, all slots together.
        seed: of weights, starts and exploration.
        out: folder to write to.
        init: folder of an agent to begin with.
        resume: go on with the run in --out, with the same settings (--steps may be more).
        data: recordings (vap-gym data generate): their moments are starts, also in the midst of an episode; without,
            the shipped starts are taken.
        moments: so many of them.
        any_task: take moments of other tasks' episodes, too, with goals that are drawn.
        episodes: of experts, to clone.
        card: of the env: whose robot and world model.
        slots: episodes side by side.
        horizon: control steps of an episode.
        hold: control steps of a decision.
        agree: readings of the last --of that must agree before progress counts.
        of: see --agree.
        noise: begin episodes with things beside where they are seen, as far as the finder errs.
        max_spread_m: give an imagined episode up where an ensemble of the things comes further apart; 0: never.
        min_trust: give a pictured episode up below this trust; 0: never.
        approach: reward for coming near what is to be pushed or lifted.
        bonus: reward for a task that is solved.
        kl: keep near to the agent of --init: reward that a nat of distance costs.
        critic_rounds: with --init, rounds in which the critic alone learns.
        gamma: discount of a decision.
        learning_rate: of the algorithm.
        round_steps: decisions of each slot from one update to the next.
        check_every: try the agent every so many rounds, in the oracle (needs PyBullet) and, where it is trained there,
            in imagination; 0: never.
        check_starts: from so many shipped starts.
        check_steps: control steps of such a try.
        world_model: a name or folder; the card's by default.
        judge: a name or folder.
        json: print the result as JSON.
    """
    from dataclasses import fields

    from vap_gym.errors import VapError

    if algorithm == CLONE:
        if not data or resume or init:
            raise VapError(
                f"Cloning takes --data and begins anew, got data='{data}', init='{init}', resume={resume}. Try "
                "--algorithm clone --data data/droid."
            )
        from vap_gym.rl.clone import clone_agent

        told = clone_agent(data, task, out, episodes=episodes, hold=hold, seed=seed, card=card)
        show(told, json, f"Cloned {told['decisions']} decisions, off by {told['off']:.2f} of the fastest. {out}")
        return
    given = dict(locals())
    from vap_gym.rl.settings import RlSettings
    from vap_gym.rl.train import train_agent

    settings = RlSettings(**{field.name: given[field.name] for field in fields(RlSettings)})
    told = train_agent(settings, out, resume=resume, quiet=json)
    shares = {"in training": told["success"], "in the oracle": told["oracle"]}
    solved = ", ".join(f"{100 * share:.0f} % {where}" for where, share in shares.items() if share is not None)
    show(told, json, f"{told['steps']} decisions in {told['seconds']:.0f} s; solved: {solved or 'no episode'}. {out}")


def show(told: dict[str, Any], json: bool, words: str) -> None:
    """Print a result as JSON, or in words."""
    print(jsonlib.dumps(told, indent=1) if json else words)
