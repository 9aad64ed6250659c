"""Train agents in imagination: clone a few experts, go on by reinforcement, and try both where they were not trained.

    python examples/12_train_in_imagination.py --out out/agents

1. Recordings of the simulator: experts to clone, and moments to begin episodes from.
2. An agent is a small network that sees where gripper, object and goal are.
3. Imagination without pictures runs thousands of steps a second; SB3's PPO trains in it, or its SAC, from scratch.
4. As a policy the agent reads where the object is out of pictures, as `vap-gym evaluate` shows them.

The budget here is tiny: it shows how, not how well. `benchmarks/rl.py` is the experiment.
"""

from pathlib import Path
from typing import Any

import tyro

from vap_gym.evaluate.policies import evaluate_policies
from vap_gym.policies.things import ThingsPolicy
from vap_gym.rl import RlSettings, clone_agent, train_agent
from vap_gym.sim import generate


def main(
    out: Path = Path("out/agents"),
    task: str = "push",
    algorithm: str = "ppo",
    episodes: int = 36,
    experts: int = 2,
    steps: int = 4096,
    starts: int = 4,
    try_steps: int = 60,
) -> None:
    """Write two agents and an evaluation of both.

    Args:
        out: folder to write to.
        task: push, or reach: of which there are few experts, so that it takes 60 episodes.
        algorithm: ppo goes on from the clone, sac begins from scratch.
        episodes: to record.
        experts: of the task, to clone.
        steps: decisions of the training.
        starts: to try the agents from, in the simulator.
        try_steps: control steps of such a try, at most.
    """
    # 1. Two in five of the episodes are experts', and each task has its share of them.
    generate.main(out / "recorded", episodes=episodes)

    # 2. An agent that does what a few experts did.
    told = clone_agent(out / "recorded", task, out / "cloned", episodes=experts)
    print(f"cloned from {told['decisions']} decisions")

    # 3. It goes on in imagination, from moments of the recordings, near to what it was. SAC has no agent to begin with.
    near: dict[str, Any] = {"init": str(out / "cloned"), "kl": 0.01, "critic_rounds": 1} if algorithm == "ppo" else {}
    settings = RlSettings(
        task=task, algorithm=algorithm, steps=steps, slots=32, data=str(out / "recorded"), moments=24, **near
    )
    trained = train_agent(settings, out / "trained")
    print(f"{trained['steps']} decisions in {trained['seconds']} s, {out / 'trained' / 'curves.png'}")

    # 4. Both see pictures only, in the simulator.
    report = evaluate_policies(
        {name: ThingsPolicy(out / name) for name in ("cloned", "trained")},
        "VAP-DROID-Oracle-v0",
        out=out / "evaluated",
        starts=starts,
        task=task,
        steps=try_steps,
    )
    print(report)


if __name__ == "__main__":
    tyro.cli(main)
