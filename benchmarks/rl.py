"""Training in imagination: a cloned push improved there, the same in the simulator, and a reach learned from scratch.

    python benchmarks/rl.py --data data/droid --out runs/rl

All agents see pictures only when they are tried in the simulator, from starts that no training has seen, the same for
all. Every part is kept: a run that was stopped goes on where it stood. Folders of what was trained or tried with the
world model's and the judge's weights end in a mark of these: with others it is done anew. Cloned agents, and those that
were trained in the simulator, know no weights. Writes rl.json, and tables and curves of docs/rl.md.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from asked import weights_of
from rl_figures import CLONE, MEDIOCRE, draw_curves, tables, text_of, told

from vap_gym.cards import load_env, load_robot
from vap_gym.errors import VapError, unknown_name
from vap_gym.evaluate import report
from vap_gym.evaluate.policies import evaluate_policies
from vap_gym.oracle_env import make_starts
from vap_gym.policies.things import ThingsPolicy, read_agent
from vap_gym.rl import RlSettings, SimulatedThings, Steady, ThingVectorEnv, clone_agent, train_agent
from vap_gym.rl.scores import tried
from vap_gym.starts import StartSet

FIRST_SEED = 4_000_000  # of the starts that agents are tried from; those that a clone is chosen by follow the last one
PER_SET = 3  # tasks take turns in a file of starts: reach, push, lift
PARTS = ("push", "reach")
CURVES_TITLE = "A push trained in imagination: what it seems to solve, and what it solves"
REPO = Path(__file__).resolve().parent.parent


def main(
    out: Path = Path("runs/rl"),
    *,
    data: Path = Path("data/droid"),
    parts: tuple[str, ...] = PARTS,
    seeds: int = 3,
    starts: int = 160,
    push_steps: int = 150_000,
    reach_steps: int = 150_000,
    episodes: tuple[int, ...] = (2, 4, 6, 8, 12, 16, 24),
    chosen_by: int = 48,
    horizon: int = 20,
    hold: int = 2,
    kl: float = 0.01,
    moments: int = 400,
    max_spread_m: float = 0.03,
    oracle_slots: int = 16,
    check_every: int = 5,
    workers: int = 1,
    env: str = "VAP-DROID-v0",
    world_model: str = "",
    docs: Path = REPO / "docs" / "rl.md",
) -> None:
    """Run the experiment.

    Args:
        out: folder for agents, evaluations and rl.json.
        data: recordings of the simulator with pictures: experts to clone, and moments to begin from.
        parts: push, reach.
        seeds: trainings of each kind, with seeds 0, 1, …
        starts: of each task, from which agents are tried.
        push_steps: decisions of each training from the clone on.
        reach_steps: decisions of each training from scratch.
        episodes: of experts, from few to many: the first clone that solves 20 to 50 % is taken.
        chosen_by: other starts by which it is chosen; told where the object is.
        horizon: control steps of a training episode.
        hold: control steps of a decision.
        kl: reward that a nat of distance from the clone costs.
        moments: recorded moments to begin from.
        max_spread_m: imagined episodes are given up above this.
        oracle_slots: episodes side by side in the simulator; the updates are as large as in imagination.
        check_every: rounds between tries of the first push that is trained in imagination, there and in the simulator,
            for its curves; 0: none.
        workers: processes that agents are tried in.
        env: the card.
        world_model: a name or folder; the card's by default.
        docs: the page whose tables are written; the curves go into img/ beside it.
    """
    for part in parts:
        if part not in PARTS:
            raise unknown_name("part of the experiment", part, PARTS)
    out.mkdir(parents=True, exist_ok=True)
    weights = weights_of(env, world_model)
    mark = marked(weights)
    common: dict[str, Any] = {
        "card": env, "horizon": horizon, "hold": hold, "max_spread_m": max_spread_m, "world_model": world_model,
        "data": str(data), "moments": moments,
    }  # fmt: skip
    settings = {**common, "seeds": seeds, "starts": starts, "kl": kl}
    kept = out / "rl.json"
    results = still_true(kept, weights)
    for part in parts:
        choice: dict[str, float] = {}
        if part == "push":
            cloned, choice = mediocre(out, data, env, episodes, hold, chosen_by, starts)
            agents = {CLONE: cloned}
            own = {"task": "push", "steps": push_steps, "init": str(cloned), "kl": kl, **common}
            for seed in range(seeds):
                agents[f"imagined-{seed}"] = trained(
                    out, f"push-imagined-{seed}", mark=mark, seed=seed, check_every=0 if seed else check_every, **own
                )
                agents[f"oracle-{seed}"] = trained(
                    out, f"push-oracle-{seed}", seed=seed, world="oracle", slots=oracle_slots,
                    round_steps=64 * 32 // oracle_slots, **(own | {"world_model": ""}),
                )  # fmt: skip
        else:
            agents = {
                f"imagined-{seed}": trained(
                    out, f"reach-imagined-{seed}", mark=mark, seed=seed, task="reach", steps=reach_steps, **common
                )
                for seed in range(seeds)
            }
        figures = judged(out, part, agents, env, starts, world_model, mark, workers)
        results[part] = {"settings": settings, "weights": weights, "choice": choice} | figures
        results[part]["measured"] = report.stamp()
        report.write(kept, json.dumps(results, indent=1))
    text, picture = tables(results), docs.parent / "img" / "rl_push.png"
    if "push" in results and draw_curves(out / f"push-imagined-0-{mark}", picture, title=CURVES_TITLE):
        text += f"\n\n![{CURVES_TITLE}](img/{picture.name})"
    text += "".join(f"\n\n{part}: {results[part]['measured']}" for part in PARTS if part in results)
    report.write(out / "rl.md", text)
    if docs.is_file():
        report.write(docs, report.filled(docs.read_text(encoding="utf-8"), "rl", text))
    print(text)


def mediocre(
    out: Path, data: Path, env: str, episodes: Sequence[int], hold: int, count: int, after: int
) -> tuple[Path, dict[str, float]]:
    """Clone from more and more episodes until a clone is mediocre; return it, and what each one solved."""
    path = out / "choice.npz"
    if not path.is_file():
        make_starts(path, env=env, count=PER_SET * count, first_seed=FIRST_SEED + 1000 * after)
    shipped = StartSet(path)
    starts = [shipped[i] for i in shipped.of_task("push")]
    robot = load_robot(load_env(env).robot)
    solved: dict[str, float] = {}
    for number in episodes:
        folder = out / f"cloned-{number}"
        if not (folder / "agent.json").is_file():
            clone_agent(data, "push", folder, episodes=number, hold=hold, card=env)
        kept = folder / "chosen.json"
        if not kept.is_file():
            world = ThingVectorEnv(
                SimulatedThings(robot, starts, 4, noise=False), horizon=100 // hold * hold, hold=hold,
                steady=Steady(1, 1), autoreset_mode="Disabled",
            )  # fmt: skip
            report.write(kept, json.dumps(float(np.mean(tried(read_agent(folder)[1], world)))))
            world.close()
        solved[str(number)] = json.loads(kept.read_text(encoding="utf-8"))
        if MEDIOCRE[0] <= solved[str(number)] <= MEDIOCRE[1]:
            return folder, solved
    raise VapError(
        f"A clone that solves {MEDIOCRE[0]:.0%} to {MEDIOCRE[1]:.0%} is needed, got {solved}. Give other --episodes."
    )


def trained(out: Path, name: str, *, mark: str = "", **given: Any) -> Path:
    """Train an agent, or go on with it, or take the one that is there, if it is of the same settings.

    Args:
        out: folder of all agents.
        name: of the agent.
        mark: of the weights that it is trained with (`marked`), a part of its folder's name; "": it is trained without.
        given: see `RlSettings`.

    Raises:
        VapError: an agent there that was trained otherwise.
    """
    folder, settings = out / (f"{name}-{mark}" if mark else name), RlSettings(**given)
    if not folder.exists():
        for other in [
            path for path in sorted(out.glob(f"{name}*")) if path.name == name or path.name[:-8] == f"{name}-"
        ]:
            print(f"{name}: '{other}' was trained with other weights, and is left alone. Trained anew in '{folder}'.")
    if not (folder / "agent.json").is_file():
        train_agent(settings, folder, resume=(folder / "settings.json").is_file())
        return folder
    theirs = RlSettings.read(folder / "settings.json")
    differ = [name for name, value in vars(settings).items() if value != getattr(theirs, name)]
    if differ:
        told = "; ".join(f"{name} {getattr(theirs, name)!r}, got {getattr(settings, name)!r}" for name in differ)
        raise VapError(f"'{folder}' holds an agent of other settings: {told}. Give the same ones, or another --out.")
    return folder


def judged(
    out: Path, task: str, agents: Mapping[str, Path], env: str, starts: int, world_model: str, mark: str, workers: int
) -> dict[str, Any]:
    """Try agents in the simulator, from pictures; return what each came to from each start, and in its training."""
    path = out / f"starts_{starts}.npz"
    if not path.is_file():
        make_starts(path, env=env, count=PER_SET * starts, first_seed=FIRST_SEED)
    numbers = StartSet(path).of_task(task)[:starts]
    found = evaluate_policies(
        {name: ThingsPolicy(folder, world_model=world_model) for name, folder in agents.items()},
        env.replace("-v", "-Oracle-v"), out=out / f"evaluated-{task}-{mark}", starts=numbers, starts_file=path,
        task=task, clips=24, workers=workers,
    )  # fmt: skip
    outcomes = dict(zip(found.policies, found.outcomes(), strict=True))
    return {
        "outcomes": {name: text_of(values) for name, values in outcomes.items()},
        "training": {name: told(folder) for name, folder in agents.items()},
    }


def marked(weights: Mapping[str, str]) -> str:
    """Return these weights' mark in the names of folders, so that nothing is mixed with what other weights gave."""
    return hashlib.sha256(json.dumps(dict(weights), sort_keys=True).encode()).hexdigest()[:8]


def still_true(kept: Path, weights: Mapping[str, str]) -> dict[str, Any]:
    """Return the parts of an rl.json that were measured with these weights, and say which were not."""
    before = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {}
    found = {part: before[part] for part in PARTS if part in before and before[part].get("weights") == dict(weights)}
    for part in PARTS:
        if part in before and part not in found:
            print(f"{part}: '{kept}' has figures of other weights. They are left out; run it anew: --parts {part}.")
    return found


if __name__ == "__main__":
    tyro.cli(main)
