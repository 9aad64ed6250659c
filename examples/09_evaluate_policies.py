"""Evaluate policies offline: imagine them, simulate them from the same starts, and see how far imagination is right.

python examples/09_evaluate_policies.py --out out/evaluate --starts 16 --steps 60
"""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import tyro

import vap_gym
from vap_gym.policies import Conventions, FunctionPolicy, Policy, RandomPolicy, ScriptedExpert


def downwards(observation: dict[str, Any], instruction: str) -> np.ndarray:
    """A policy is a function of what an env shows and of the words: this one only knows one way."""
    return np.array([0.0, 0.0, -0.3, 0.0, 0.0, 0.0, 0.0])


def main(out: Path = Path("out/evaluate"), task: str = "reach", starts: int = 16, steps: int = 60) -> None:
    """Write a report of imagined episodes and one of simulated ones, and print how well they agree.

    Args:
        out: folder for both.
        task: reach, push or lift.
        starts: how many of the task's starts every policy is tried from.
        steps: after so many control steps an episode has failed.
    """
    # 1. A policy says what it takes and gives. What differs from the env is refused before the first step.
    droid = Conventions(action_mode="cartesian_velocity", rate_hz=15.0)
    space = gym.make("VAP-DROID-Oracle-v0").action_space
    assert isinstance(space, gym.spaces.Box)
    policies: dict[str, Policy] = {
        "expert": ScriptedExpert(),
        "shaky": ScriptedExpert(noise=0.35),
        "beside": ScriptedExpert(bias_m=0.04),  # sees things 4 cm from where they are
        "downwards": FunctionPolicy(downwards, droid),
        "random": RandomPolicy(space.low, space.high, droid),
    }

    # 2. The same starts and the same noise for all of them; a run that was stopped goes on when it is called again.
    reports = {}
    for name, env_id in (("imagined", "VAP-DROID-v0"), ("true", "VAP-DROID-Oracle-v0")):
        reports[name] = vap_gym.evaluate(
            policies, env_id, out=out / name, starts=starts, task=task, steps=steps, clips=40
        )
        print(f"{name}: {out / name / 'report.html'}\n{reports[name]}\n")

    # 3. What imagination is worth: correlation and rank violations, beside what a perfect simulator would get.
    print(vap_gym.agreement(reports["imagined"], reports["true"]))


if __name__ == "__main__":
    tyro.cli(main)
