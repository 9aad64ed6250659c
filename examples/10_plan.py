"""Plan in imagination: search for actions whose imagined future solves the task, look at what was weighed, do them.

    python examples/10_plan.py --out out/planned.png

1. A planner sees nothing but a score, actions → numbers; here of what the world model foresees.
2. A policy plans again every few steps from what it sees then; here it drives the imagined robot.
"""

from pathlib import Path

import gymnasium as gym
import tyro

import vap_gym  # noqa: F401 (registers the ids)
from vap_gym.env import VapEnv
from vap_gym.pictures import write_png
from vap_gym.plan import (
    Bounds,
    ForesightScore,
    Horizon,
    Icem,
    ImaginedOutlook,
    MpcPolicy,
    TaskGoal,
    by_task,
    fan_sheet,
    imagined_fan,
    of_things,
    play_episode,
    start_of,
    task_bounds,
)


def main(
    out: Path = Path("out/planned.png"),
    task: str = "push",
    seed: int = 0,
    candidates: int = 96,
    iterations: int = 4,
    steps: int = 60,
) -> None:
    """Write a picture of the futures that a plan was chosen from.

    Args:
        out: the picture to write.
        task: reach or push.
        seed: of the start and of the planner.
        candidates: action sequences in an iteration.
        iterations: of the planner.
        steps: of the episode, at most.
    """
    env = gym.make("VAP-DROID-v0", task=task).unwrapped
    assert isinstance(env, VapEnv)
    env.reset(seed=seed)
    start, stage = start_of(env), env.stage
    assert start.scene is not None

    # 1. One plan: 8 actions, each held for 4 control steps.
    seen = ImaginedOutlook(stage)
    seen.begin(start, seed)  # reads the picture: where are things?
    score = ForesightScore(of_things(stage, seen.state, seen.objects_m), TaskGoal([start.scene]), hold=4)
    space = Bounds.of(env.action_space)
    planner = Icem(candidates=candidates, iterations=iterations)
    plan = planner.plan(score, task_bounds(space, task), 8, seed=seed)
    print(f"{start.instruction}: from {float(plan.best[0]):.3f} to {float(plan.score):.3f} (0 would be solved at once)")
    fan = imagined_fan(stage, seen.state, plan, hold=4)
    write_png(out, fan_sheet(fan, title=f"Futures of one moment: {start.instruction}"))
    print(f"{out}: {len(fan.scores)} of {len(fan.paths_px)} candidates")

    # 2. A policy that plans every 12 steps. The same policy drives the simulator: gym.make("VAP-DROID-Oracle-v0").
    policy = MpcPolicy(ImaginedOutlook(stage), planner, by_task(space), horizon=Horizon(budget_s=None))
    played = play_episode(env, policy, seed=seed, steps=steps)
    how = "solved" if played.success else f"{100 * played.progress[-1]:.0f} % done"
    print(
        f"{how} after {len(played.progress)} steps and {len(policy.plans)} plans, as the judge sees it in imagination"
    )


if __name__ == "__main__":
    tyro.cli(main)
