"""`vap-gym plan`: plan one episode and carry it out; print how it went, write a video and a fan of what was weighed."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import Any


def main(
    task: str = "push",
    *,
    env: str = "VAP-DROID-v0",
    dynamics: str = "imagination",
    execute: str = "oracle",
    planner: str = "icem",
    candidates: int = 128,
    iterations: int = 5,
    foresight: str = "",
    goal: str = "",
    actions: int = 8,
    hold: int = 4,
    steps_per_plan: int = 12,
    plans: int = 8,
    budget_s: float = 5.0,
    seed: int = 0,
    start: int = -1,
    steps: int = 0,
    world_model: str = "",
    device: str = "cpu",
    out: Path = Path("out/plan"),
    json: bool = False,
) -> None:
    """Plan one episode and carry it out.

    Writes plan.mp4 (what was seen), fan.png and fan.mp4 (candidates of the first plan as they are imagined, with their
    scores) and plan.json.

    Args:
        task: reach, push or lift.
        env: an env's id, or the path of a card.
        dynamics: what is planned with: imagination, oracle (the simulator), or none (a straight line).
        execute: where it is carried out: oracle or imagination.
        planner: shooting, cem, icem, mppi or gradient.
        candidates: action sequences in an iteration.
        iterations: of the planner, for one plan.
        foresight: what imagination looks ahead with: things (quick) or latents (pictures, slow); things by default,
            latents with a goal picture.
        goal: a picture to arrive at, of the world model's size, in the place of the task; whether it is solved is
            still told by the task.
        actions: of a plan.
        hold: control steps that each of them is held for.
        steps_per_plan: control steps that are done before it plans again.
        plans: at most so many in an episode.
        budget_s: seconds for a plan; 0: as long as it takes.
        seed: of start, noise and planner.
        start: number of a shipped start; -1: drawn with the seed.
        steps: after so many the episode has failed; 0: the card's.
        world_model: a name or folder; the card's by default.
        device: where the world model runs.
        out: folder to write to.
        json: print the result as JSON.
    """
    from vap_gym.plan.planned import PlanSettings, card_of
    from vap_gym.plan.policy import Horizon

    horizon = Horizon(actions=actions, hold=hold, execute=steps_per_plan, most_plans=plans, budget_s=budget_s or None)
    settings = PlanSettings(
        card=card_of(env), dynamics=dynamics, planner=planner, candidates=candidates, iterations=iterations,
        foresight=foresight or ("latents" if goal else "things"), horizon=horizon, world_model=world_model,
        device=device, goal=goal,
    )  # fmt: skip
    result = run(settings, task, execute, seed=seed, start=start, steps=steps, out=out, quiet=json)
    if json:
        print(jsonlib.dumps(result, indent=1))


def run(
    settings: Any, task: str, execute: str, *, seed: int, start: int, steps: int, out: Path, quiet: bool
) -> dict[str, Any]:
    """Play the episode, write what is to be seen of it, and return the result."""
    import numpy as np

    from vap_gym.cards import load_env
    from vap_gym.data.video import write_video
    from vap_gym.errors import unknown_name
    from vap_gym.evaluate import report
    from vap_gym.pictures import write_png
    from vap_gym.plan.episode import play_episode
    from vap_gym.plan.fan import fan_movie, fan_sheet, imagined_fan
    from vap_gym.plan.policy import MpcPolicy

    if execute not in ("oracle", "imagination"):
        raise unknown_name("place to carry a plan out", execute, ("oracle", "imagination"))
    stage = settings.stage()
    policy = settings.make(stage, chunk=stage.chunk if execute == "imagination" else 1)
    card = load_env(settings.card)
    env = opened(settings, execute, task)
    options = {} if start < 0 else {"start": start}
    played = play_episode(env, policy, seed=seed, options=options, steps=steps or card.max_episode_steps)
    policy.close()
    env.close()
    out.mkdir(parents=True, exist_ok=True)
    fps = max(1, round(card.fps))
    write_video(out / "plan.mp4", played.frames, fps, crf=18)
    result: dict[str, Any] = {
        "task": played.instruction, "dynamics": settings.dynamics, "executed_in": execute, "success": played.success,
        "steps": len(played.progress), "progress": played.progress[-1], "written": [str(out / "plan.mp4")],
    }  # fmt: skip
    if isinstance(policy, MpcPolicy):
        state = stage.begin([played.start], [seed])
        fan = imagined_fan(stage, state, policy.plans[0], hold=settings.horizon.hold)
        title = f"{played.instruction}: futures that the first plan weighed, by their scores"
        write_png(out / "fan.png", fan_sheet(fan, title=title))
        write_video(out / "fan.mp4", fan_movie(fan, title=title), fps, crf=18)
        result["plans"] = [
            {"score": float(plan.score), "seconds": round(plan.seconds, 3), "evaluations": plan.evaluations}
            for plan in policy.plans
        ]
        result["written"] += [str(out / "fan.png"), str(out / "fan.mp4")]
    report.write(out / "plan.json", jsonlib.dumps(result, indent=1))
    if not quiet:
        how = "solved" if played.success else f"not solved, {100 * played.progress[-1]:.0f} % done"
        seconds = np.mean([plan["seconds"] for plan in result["plans"]]) if "plans" in result else 0.0
        planned = f", {len(result['plans'])} plans of {seconds:.1f} s on average" if "plans" in result else ""
        print(f"{played.instruction}: {how} after {len(played.progress)} steps ({execute}){planned}.")
        print(f"Wrote {', '.join(result['written'])}.")
    return result


def opened(settings: Any, execute: str, task: str) -> Any:
    """Return the env in which a plan is carried out."""
    from vap_gym.env import VapEnv
    from vap_gym.oracle_env import OracleEnv

    if execute == "oracle":
        return OracleEnv(settings.card, task=task, action_mode=settings.action_mode)
    return VapEnv(
        settings.card, task=task, world_model=settings.world_model or None, judge=settings.judge,
        device=settings.device, action_mode=settings.action_mode,
    )  # fmt: skip
