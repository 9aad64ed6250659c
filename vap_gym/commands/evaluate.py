"""`vap-gym evaluate`: try policies in the same trials, imagined or simulated, and write a report to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Literal


def main(
    policies: tuple[str, ...],
    *,
    env: str = "VAP-DROID-v0",
    out: Path = Path("out/evaluate"),
    starts: int = 32,
    seeds: tuple[int, ...] = (0,),
    task: str = "",
    steps: int = 0,
    action_mode: str = "",
    views: tuple[str, ...] = (),
    world_model: str = "",
    judge: str = "tiny",
    starts_file: str = "",
    device: str = "cpu",
    batch: int = 16,
    executor: Literal["auto", "serial", "processes", "ray"] = "auto",
    workers: int = 1,
    address: str = "",
    act_timeout_s: float = 60.0,
    clips: int = 120,
    json: bool = False,
) -> None:
    """Try policies from the same starts with the same noise; write report.json, report.html and every episode.

    Policies: random | expert:noise=0.2,bias_m=0.02 | failing | noop | sb3:PATH.zip,algorithm=ppo | replay:FOLDER |
    mpc:candidates=128 | openpi:HOST:PORT | http://HOST:PORT | python:MODULE:NAME; before each may stand a name:
    good=expert. Call it again to go on after an interruption. vap-gym agree compares two reports, of VAP-DROID-v0 and
    VAP-DROID-Oracle-v0 say; vap-gym judge has other judges look at the same episodes.

    Args:
        policies: what to try.
        env: where: imagined, or its oracle; or the path of an env card.
        out: folder, one for each evaluation.
        starts: how many of the task's starts.
        seeds: each start is tried with each of them.
        task: whose starts; the card's own by default.
        steps: after so many an episode has failed; 0: the card's.
        action_mode: of the env; the card's by default.
        views: further cameras.
        world_model: a name or folder; the card's by default.
        judge: who tells success in imagined frames: a name or folder; or, of the kept episodes, labels:FILE |
            goals:FOLDER,most_grey=8 | vlm:URL,model=NAME | transformers:FOLDER (see vap-gym judge).
        starts_file: other starts than the card's.
        device: where the world model runs.
        batch: episodes that are imagined together.
        executor: where batches run; auto: on Ray with an address, in processes with several workers, else here.
        workers: batches at once.
        address: of a Ray cluster that runs already.
        act_timeout_s: a policy that takes longer for a decision hangs; 0: wait for ever.
        clips: at most so many episodes can be played in report.html.
        json: print the report as JSON instead of a table.
    """
    from vap_gym.cards import load_env
    from vap_gym.commands.telling import json_text
    from vap_gym.errors import VapError
    from vap_gym.evaluate.policies import evaluate_policies
    from vap_gym.evaluate.policies_judges_named import is_judge_text, named_judge
    from vap_gym.evaluate.policies_trials import world_of
    from vap_gym.policies.named import HELP, named_policies

    if not policies:
        raise VapError(f"vap-gym evaluate needs one or more policies, got none. There are: {HELP}")
    report = evaluate_policies(
        named_policies(policies, load_env(world_of(env)[0])),
        env,
        out=out,
        starts=starts,
        seeds=seeds,
        task=task or None,
        steps=steps or None,
        action_mode=action_mode or None,
        views=views,
        world_model=world_model or None,
        judge=named_judge(judge) if is_judge_text(judge) else judge,
        starts_file=starts_file or None,
        device=device,
        batch=batch,
        executor=executor,
        workers=workers,
        address=address or None,
        act_timeout_s=act_timeout_s or None,
        clips=clips,
    )
    if json:
        print(json_text(report.to_json()))
    else:
        print(f"{report}\n{out / 'report.html'}")
    if report.lost:
        name, why = next(iter(report.lost.items()))
        raise VapError(
            f"Episodes of {', '.join(report.lost)} were not played, of '{name}' because: {why} Call it again."
        )
