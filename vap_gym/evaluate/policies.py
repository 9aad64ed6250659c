"""Evaluating policies: all of them in the same trials, imagined or simulated; a report, and every episode kept."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from vap_gym.cards import load_env, load_robot
from vap_gym.data import EpisodeWriter, finalise
from vap_gym.errors import VapError
from vap_gym.evaluate.policies_claims import claim, continued
from vap_gym.evaluate.policies_judges import EpisodeJudge
from vap_gym.evaluate.policies_keep import PlayBatch, folder_of
from vap_gym.evaluate.policies_page import write_page
from vap_gym.evaluate.policies_rejudge import rejudged
from vap_gym.evaluate.policies_report import Report, assembled
from vap_gym.evaluate.policies_trials import Setting, batches, starts_path_of, trials_of, world_of
from vap_gym.jobs import run_jobs
from vap_gym.loading import load_starts
from vap_gym.policies import Policy, fitted, site_of
from vap_gym.policies.fit import action_mode_for
from vap_gym.policies.known import file_digest, judge_digest, weights_digest
from vap_gym.rig import Rig

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,79}")


def evaluate_policies(
    policies: Mapping[str, Policy],
    env_id: str = "VAP-DROID-v0",
    starts: int | Sequence[int] = 32,
    seeds: Sequence[int] = (0,),
    *,
    out: str | Path = "out/evaluate",
    task: str | None = None,
    steps: int | None = None,
    action_mode: str | None = None,
    views: Sequence[str] = (),
    world_model: str | Path | None = None,
    judge: str | Path | EpisodeJudge = "tiny",
    starts_file: str | Path | None = None,
    device: str = "cpu",
    batch: int = 16,
    executor: str = "auto",
    workers: int = 1,
    address: str | None = None,
    act_timeout_s: float | None = 60.0,
    clips: int = 120,
) -> Report:
    """Try every policy from the same starts with the same noise, and report how often each succeeds.

    An episode ends when its task is solved or its steps are up. A policy that raises, hangs, or returns NaN or another
    shape fails that episode, with the reason in the report; the run goes on. Call it again with the same `out` to go on
    after a kill: the report comes out the same. Into `out` go report.json, report.html (clips play in it, failures
    first) and, in LeRobot's layout, all frames, actions, trust and verdicts: episodes/<policy>.

    `vap_gym.evaluate(policies, env_id, starts, seeds)` is the same.

    Args:
        policies: by the names that they have in the report.
        env_id: "VAP-DROID-v0" is imagined, "VAP-DROID-Oracle-v0" simulated, and so on; or the path of an env card.
        starts: how many of the task's starts, from the first on, or their numbers.
        seeds: each start is tried with each of them: of the world's noise and of what policies draw.
        out: folder; one for each evaluation.
        task: whose starts; None: the card's.
        steps: after so many control steps an episode has failed; None: the card's.
        action_mode: of the env; None: the card's.
        views: further cameras that policies look through.
        world_model, device: as for `VapEnv`; the oracle needs none.
        judge: as for `VapEnv`; or an `EpisodeJudge`, which is shown the kept episodes and has the last word. These end
            when the env's own judge (in the oracle: the truth) says that the task is solved.
        starts_file: another file of starts than the card's.
        batch: episodes that are imagined together; other batches give frames that differ by rounding.
        executor: "serial", "processes" or "ray" (see `run_jobs`); policies are then sent there, so they must be
            picklable, and `out` must be reachable from there. "auto": on Ray where there is an address, in processes
            where there are several workers, else here.
        workers: batches at once.
        address: of a Ray cluster that runs already.
        act_timeout_s: a policy that takes longer for one decision hangs; None: wait for ever.
        clips: at most so many episodes can be played in report.html.

    Raises:
        PolicyError: a policy whose conventions do not fit the env: before anything is played.
        VapError: settings that cannot be, or another evaluation in `out`.
    """
    root, where = Path(out), chosen_executor(executor, workers, address)
    own_judge = judge if isinstance(judge, str | Path) else "tiny"
    card_id, oracle = world_of(env_id)
    card = load_env(card_id)
    common = Setting(
        card=card_id,
        oracle=oracle,
        task=task or card.task,
        steps=card.max_episode_steps if steps is None else steps,
        action_mode=action_mode or card.action_mode,
        views=tuple(views),
        world_model="" if oracle or world_model is None else str(world_model),
        judge="" if oracle else str(own_judge),
        starts_file=starts_path_of(starts_file),
        device=device,
    )
    if common.steps < 1:
        raise VapError(f"steps must be at least 1, got {common.steps}. The card's are {card.max_episode_steps}.")
    settings = settings_of(policies, common)
    trials = trials_of(card, common.task, starts, seeds, common.starts_file)
    parts = batches(trials, batch)
    root.mkdir(parents=True, exist_ok=True)
    for name, policy in policies.items():
        claim(root, name, policy)
    items = {f"{name}/{part[0]}": (name, part) for name in policies for part in parts}
    about = common.to_json() | {"batch": batch, "trials": [[trial.start, trial.seed] for trial in trials]}
    about["starts_digest"] = file_digest(load_starts(card, common.starts_file or None).path)
    if not oracle:
        about["weights"] = weights_digest(common.world_model or card.world_model)
        about["judge_weights"] = judge_digest(common.judge)
    about = continued(root / "manifest.jsonl", about)
    with ray_address(address):
        outcomes = run_jobs(
            PlayBatch(policies=policies, settings=settings, trials=trials, out=root, act_timeout_s=act_timeout_s),
            items,
            manifest=root / "manifest.jsonl",
            settings=about,
            executor=where,
            workers=workers,
            unit="batch",
        )
    rows: dict[str, dict[int, Mapping[str, Any]]] = {name: {} for name in policies}
    lost: dict[str, str] = {}
    for (name, _), outcome in zip(items.values(), outcomes, strict=True):
        if outcome.result is None:
            lost.setdefault(name, str(outcome.error))
        else:
            rows[name] |= {int(row["trial"]): row for row in outcome.result["rows"]}
    report = assembled(common, list(policies), trials, rows, lost, starts_digest=about.get("starts_digest"))
    for name in policies:
        if len(rows[name]) == len(trials):
            _finalised(folder_of(root, name), len(trials), card.fps)
    if not isinstance(judge, str | Path):
        report = rejudged(report, root, judge)
    report.save(root / "report.json")
    write_page(report, root, clips=clips)
    return report


def chosen_executor(executor: str, workers: int, address: str | None) -> str:
    """Return where batches run, for "auto" by the other settings. Raises VapError where two of them disagree."""
    if address is not None and executor not in ("auto", "ray"):
        raise VapError(f"An address is of a Ray cluster, got executor='{executor}' beside it. Leave one of them out.")
    if executor == "serial" and workers > 1:
        raise VapError(f"executor='serial' has one worker, got workers={workers}. Write executor='processes'.")
    if executor != "auto":
        return executor
    return "ray" if address is not None else "processes" if workers > 1 else "serial"


def settings_of(policies: Mapping[str, Policy], common: Setting) -> dict[str, Setting]:
    """Return each policy's setting, once it is known that all of them fit the env.

    Raises:
        PolicyError: one does not; VapError: there is none, or a name that cannot be a folder's.
    """
    if not policies:
        raise VapError("evaluate_policies needs at least one policy, got none: {'mine': policy}.")
    robot, card = load_robot(load_env(common.card).robot), load_env(common.card)
    rigs: dict[str, Rig] = {}
    found = {}
    for name, policy in policies.items():
        if NAME.fullmatch(name) is None:
            raise VapError(f"A policy's name must be letters, digits, '_', '.', '+' or '-', got {name!r}.")
        mode = action_mode_for(policy.conventions, common.action_mode, robot.action_modes, name)
        if mode not in rigs:
            rigs[mode] = Rig(robot, action_mode=mode, frame_size_px=card.frame_size_px)
        fitted(policy, site_of(rigs[mode], card.fps, common.views), name)
        found[name] = replace(common, action_mode=mode)
    return found


@contextmanager
def ray_address(address: str | None) -> Iterator[None]:
    """Meanwhile Ray connects to this cluster; None: as the environment says."""
    before = os.environ.get("RAY_ADDRESS")
    if address is not None:
        os.environ["RAY_ADDRESS"] = address
    try:
        yield
    finally:
        if address is not None:
            if before is None:
                del os.environ["RAY_ADDRESS"]
            else:
                os.environ["RAY_ADDRESS"] = before


def _finalised(folder: Path, count: int, fps: float) -> None:
    """Gather the episodes of a set, all of which are written, into few files."""
    if not EpisodeWriter(folder, fps=max(1, round(fps))).missing(count):
        finalise(folder)
