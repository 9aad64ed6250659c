"""`vap-gym rollout`: play episodes in an env, imagined or simulated, and keep all of them: videos and a data set."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vap_gym.errors import VapError

if TYPE_CHECKING:
    import numpy as np

    from vap_gym.cards import EnvCard
    from vap_gym.evaluate.policies_play import Played
    from vap_gym.evaluate.policies_trials import Setting, Trial
    from vap_gym.policies import Policy

BATCH = 16  # episodes that are played together
SCALE = 2.0  # of the videos


def main(
    env: str,
    *,
    policy: str = "expert",
    task: str = "",
    seed: int = 0,
    start: int = -1,
    episodes: int = 1,
    steps: int = 0,
    action_mode: str = "",
    views: tuple[str, ...] = (),
    world_model: str = "",
    judge: str = "tiny",
    device: str = "cpu",
    act_timeout_s: float = 60.0,
    out: Path = Path("out/rollout"),
    json: bool = False,
) -> None:
    """Play episodes in an env, say how they went, and keep them; the same arguments give the same frames.

    Writes 000.mp4 and so on (left the prompt that is drawn of the actions, right what is seen), set (a data set in
    LeRobot's layout: frames, prompts, actions, robot, progress, trust, verdict; `vap-gym data describe` tells) and
    rollout.json. All of it appears when it is whole. The exit code is 1 where the policy failed: raised, hung, or said
    NaN.

        vap-gym rollout VAP-DROID-v0 --policy random --steps 24 --out out/random
        vap-gym rollout VAP-DROID-Oracle-v0 --task push --seed 3 --out out/true_push
        vap-gym rollout VAP-Bridge-v0 --policy play --episodes 4 --out out/play

    Policies are those of vap-gym evaluate: random | play | expert:noise=0.2,bias_m=0.02 | failing | clumsy | noop |
    mpc:candidates=128 | sb3:PATH.zip,algorithm=ppo | things:FOLDER | replay:FOLDER | openpi:HOST:PORT |
    http://HOST:PORT | python:MODULE:NAME.

    Args:
        env: an env's id, its oracle's, or the path of a card (`vap-gym list`).
        policy: who acts.
        task: whose starts are drawn; the card's by default.
        seed: of start, noise and policy; episode i has seed + i.
        start: number of a shipped start, for all episodes; -1: drawn with the seed.
        episodes: how many.
        steps: after so many control steps an episode is over; 0: the card's.
        action_mode: of the env; the card's by default.
        views: further cameras.
        world_model: a name or folder; the card's by default.
        judge: who tells success in imagined frames: a name or folder.
        device: where the world model runs.
        act_timeout_s: a policy that takes longer for a decision hangs; 0: wait for ever.
        out: a new folder to write to.
        json: print one JSON value on stdout; words and progress go to stderr.
    """
    from vap_gym.cards import load_env
    from vap_gym.commands.telling import json_text
    from vap_gym.data.layout import write_json
    from vap_gym.evaluate.policies import settings_of
    from vap_gym.evaluate.policies_trials import Setting, world_of
    from vap_gym.policies.named import policy_of

    card_id, oracle = world_of(env)
    card = load_env(card_id)
    if steps < 0 or episodes < 1 or seed < 0:
        raise VapError(
            f"--steps and --seed must be 0 or more and --episodes 1 or more, got {steps}, {seed} and {episodes}."
        )
    acting = policy_of(policy, card)
    common = Setting(
        card=card_id, oracle=oracle, task=task or card.task, steps=steps or card.max_episode_steps,
        action_mode=action_mode or card.action_mode, views=views, world_model="" if oracle else world_model,
        judge="" if oracle else judge, device=device,
    )  # fmt: skip
    setting = settings_of({"policy": acting}, common)["policy"]
    trials = drawn(card, common.task, seed=seed, start=start, episodes=episodes)
    with appearing(out) as folder:
        told = rolled_out(acting, policy, setting, trials, folder, act_timeout_s=act_timeout_s or None)
        told = {"env": env, "policy": policy, "task": common.task, **told, "out": str(out)}
        write_json(folder / "rollout.json", told)
    print(json_text(told) if json else words(told))
    raise SystemExit(1 if any(row["fault"] for row in told["episodes"]) else 0)


def drawn(card: EnvCard, task: str, *, seed: int, start: int, episodes: int) -> list[Trial]:
    """Return a trial for each episode: its start is a given one, or drawn among the task's with the episode's seed.

    Raises:
        VapError: there is no such start, or none with such a task.
    """
    import numpy as np

    from vap_gym.evaluate.policies_trials import Trial
    from vap_gym.loading import load_starts, task_starts

    shipped = load_starts(card, None)
    numbers = task_starts(shipped, task)
    if start >= 0:
        shipped[start]  # says what is known
    return [
        Trial(start=start if start >= 0 else int(np.random.default_rng(one).choice(numbers)), seed=one)
        for one in range(seed, seed + episodes)
    ]


def rolled_out(
    policy: Policy, name: str, setting: Setting, trials: Sequence[Trial], folder: Path, *, act_timeout_s: float | None
) -> dict[str, Any]:
    """Play a policy in these trials, write videos and set into a folder, and return how it went as plain JSON."""
    from tqdm import tqdm

    from vap_gym.cards import load_env
    from vap_gym.data import EpisodeWriter, finalise
    from vap_gym.data.video import write_video
    from vap_gym.evaluate.policies_arena import arena_of
    from vap_gym.evaluate.policies_keep import episode_of, row_of
    from vap_gym.evaluate.policies_play import play
    from vap_gym.evaluate.policies_trials import batches
    from vap_gym.policies import fitted

    card, arena = load_env(setting.card), arena_of(setting, prompts=True)
    fps, seconds, rows = max(1, round(card.fps)), 0.0, []
    writer = EpisodeWriter(folder / "set", fps=fps, robot_type=card.robot)
    acting = fitted(policy, arena.site, name)
    with tqdm(total=len(trials), desc=name, unit="episode", disable=None) as bar:
        for part in batches(trials, BATCH):
            began = time.perf_counter()
            played = play(acting, arena, [trials[i] for i in part], steps=setting.steps, act_timeout_s=act_timeout_s)
            seconds += time.perf_counter() - began
            for number, one in zip(part, played, strict=True):
                kept = row_of(one, number)
                writer.write(number, episode_of(one, name, setting, kept, arena.site.action_size))
                write_video(folder / f"{number:03d}.mp4", movie(one), fps, crf=18)
                rows.append(row(one, kept, number))
                bar.update()
    finalise(writer.root)
    count = sum(one["steps"] for one in rows)
    known = [one["verdict"] for one in rows if one["verdict"] != "unknown"]
    return {
        "world": "oracle" if setting.oracle else "imagination",
        "success": known.count("success") / len(known) if known else None,
        "episodes": rows,
        "steps": count,
        "seconds": round(seconds, 3),
        "steps_per_s": round(count / seconds, 2),
    }


def row(played: Played, kept: dict[str, Any], number: int) -> dict[str, Any]:
    """Return what is told of an episode. `return` is the sum of its rewards."""
    import numpy as np

    from vap_gym.evaluate.policies_play import trust_of

    moments, trial = played.moments, played.trial
    psnr = trust_of(moments).get("expected_psnr_db")
    return {
        "start": trial.start,
        "seed": trial.seed,
        "world_seed": trial.world_seed,  # env.reset(seed=world_seed, options={"start": start}) begins the same episode
        "instruction": moments[0].instruction,
        "verdict": kept["verdict"],
        "success": kept["verdict"] == "success",
        "return": round(moments[-1].progress - moments[0].progress, 6),
        "steps": kept["steps"],
        "trust": kept["trust"],
        "adherence_px": kept["adherence_px"],
        "expected_psnr_db": None if psnr is None else round(float(np.nanmean(psnr)), 3),
        "fault": kept["fault"],
        "video": f"{number:03d}.mp4",
    }


def movie(played: Played) -> np.ndarray:
    """Return prompts and frames side by side, uint8 (T + 1, H, W, 3)."""
    import numpy as np

    from vap_gym.pictures import enlarged

    frames = []
    for moment in played.moments:
        assert moment.prompt is not None  # the arena keeps them
        frames.append(np.concatenate([enlarged(one, SCALE) for one in (moment.prompt, *moment.pixels.values())], 1))
    return np.stack(frames)


def words(told: dict[str, Any]) -> str:
    """Return what is told as lines to read."""
    lines = []
    for one in told["episodes"]:
        trust = "" if one["trust"] is None else f", trust {one['trust']:.2f}"
        fault = "" if one["fault"] is None else f"; the policy failed: {one['fault']}"
        lines.append(
            f"{one['video']}: {one['instruction']}: {one['verdict']} after {one['steps']} steps, return "
            f"{one['return']:.2f}{trust}{fault}"
        )
    return "\n".join(
        [
            *lines,
            f"{len(lines)} in {told['world']}, {told['steps']} steps in {told['seconds']:.1f} s "
            f"({told['steps_per_s']:.1f} a second, policy included). Wrote {told['out']}.",
        ]
    )


@contextmanager
def appearing(out: Path) -> Iterator[Path]:
    """Give a new folder beside `out` that becomes it when the block ends well; nothing is left where it does not.

    Raises:
        VapError: `out` is there and not empty.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise VapError(f"'{out}' must be a new folder, got one that holds something. Remove it, or name another: --out")
    made = out.with_name(f".{out.name}.{os.getpid()}.part")
    made.mkdir(parents=True)
    try:
        yield made
        made.replace(out)
    finally:
        shutil.rmtree(made, ignore_errors=True)
