"""Training in imagination: a cloned push improved there, the same in the simulator, and a reach learned from scratch.

    python benchmarks/rl.py --data data/droid --out runs/rl

All agents see pictures only when they are tried in the simulator, from starts that no training has seen, the same for
all. Every part is kept: a run that was stopped goes on where it stood. Writes rl.json and the table of docs/rl.md.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from vap_gym.cards import load_env, load_robot
from vap_gym.errors import VapError, unknown_name
from vap_gym.evaluate import report
from vap_gym.evaluate.policies import evaluate_policies
from vap_gym.evaluate.policies_report import Report
from vap_gym.evaluate.trials import mean_over_starts, paired_difference
from vap_gym.oracle_env import make_starts
from vap_gym.policies.things import ThingsPolicy, read_agent
from vap_gym.rl import RlSettings, SimulatedThings, Steady, ThingVectorEnv, clone_agent, train_agent
from vap_gym.rl.scores import tried
from vap_gym.starts import StartSet

FIRST_SEED = 4_000_000  # of the starts that agents are tried from; those that a clone is chosen by follow the last one
PER_SET = 3  # tasks take turns in a file of starts: reach, push, lift
MEDIOCRE = (0.2, 0.5)
PARTS = ("push", "reach")
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
    check_every: int = 0,
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
        check_every: rounds between tries in the oracle while training, for the curves; 0: none.
        env: the card.
        world_model: a name or folder; the card's by default.
        docs: the page whose table is written.
    """
    for part in parts:
        if part not in PARTS:
            raise unknown_name("part of the experiment", part, PARTS)
    out.mkdir(parents=True, exist_ok=True)
    common: dict[str, Any] = {
        "card": env, "horizon": horizon, "hold": hold, "max_spread_m": max_spread_m, "world_model": world_model,
        "check_every": check_every,
    }  # fmt: skip
    settings = {**common, "seeds": seeds, "starts": starts, "kl": kl, "moments": moments}
    kept = out / "rl.json"
    before = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {}
    results: dict[str, Any] = {part: before[part] for part in PARTS if part in before}  # of parts that are not run now
    if "push" in parts:
        cloned, choice = mediocre(out, data, env, episodes, hold, chosen_by, starts)
        agents = {"cloned": cloned}
        own = {
            "task": "push",
            "data": str(data),
            "moments": moments,
            "steps": push_steps,
            "init": str(cloned),
            "kl": kl,
        }
        rounds = 64 * 32
        for seed in range(seeds):
            agents[f"imagined-{seed}"] = trained(out, f"push-imagined-{seed}", seed=seed, **own, **common)
            agents[f"oracle-{seed}"] = trained(
                out, f"push-oracle-{seed}", seed=seed, world="oracle", slots=oracle_slots,
                round_steps=rounds // oracle_slots, **own, **common,
            )  # fmt: skip
        results["push"] = {"settings": settings, "choice": choice} | judged(
            out, "push", agents, env, starts, world_model, "cloned"
        )
    if "reach" in parts:
        agents = {
            f"imagined-{seed}": trained(
                out, f"reach-imagined-{seed}", seed=seed, task="reach", data=str(data), moments=moments,
                steps=reach_steps, **common,
            )
            for seed in range(seeds)
        }  # fmt: skip
        results["reach"] = {"settings": settings} | judged(out, "reach", agents, env, starts, world_model, None)
    report.write(kept, json.dumps(results, indent=1))
    text = f"{tables(results)}\n\n{report.stamp()}"
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


def trained(out: Path, name: str, **settings: Any) -> Path:
    """Train an agent, or go on with it, or take the one that is there."""
    folder = out / name
    if not (folder / "agent.json").is_file():
        train_agent(RlSettings(**settings), folder, resume=(folder / "settings.json").is_file())
    return folder


def judged(
    out: Path, task: str, agents: Mapping[str, Path], env: str, starts: int, world_model: str, before: str | None
) -> dict[str, Any]:
    """Try agents in the simulator, from pictures, and return their rates and what they gained over `before`."""
    path = out / f"starts_{starts}.npz"
    if not path.is_file():
        make_starts(path, env=env, count=PER_SET * starts, first_seed=FIRST_SEED)
    numbers = StartSet(path).of_task(task)[:starts]
    found = evaluate_policies(
        {name: ThingsPolicy(folder, world_model=world_model) for name, folder in agents.items()},
        env.replace("-v", "-Oracle-v"), out=out / f"evaluated-{task}", starts=numbers, starts_file=path, task=task,
        clips=24,
    )  # fmt: skip
    rates = {name: str(found.rate(name)) for name in agents}
    training = {name: told(folder) for name, folder in agents.items()}
    return {"rates": rates, "training": training} | ({} if before is None else {"gains": gains(found, before)})


def told(folder: Path) -> float | None:
    """What share of its last training episodes an agent solved, as training itself has it."""
    log = folder / "log.jsonl"
    if not log.is_file():
        return None
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()][-5:]
    shares = [row["success"] for row in rows if "success" in row]
    return float(np.mean(shares)) if shares else None


def gains(found: Report, before: str) -> dict[str, str]:
    """Paired gains over `before`: of each agent, and of each kind over its seeds, whole starts being drawn."""
    outcomes = dict(zip(found.policies, found.outcomes(), strict=True))
    gained = {
        name: str(paired_difference(values, outcomes[before], starts=found.starts))
        for name, values in outcomes.items() if name != before
    }  # fmt: skip
    for kind in ("imagined", "oracle"):
        mine = [values for name, values in outcomes.items() if name.startswith(f"{kind}-")]
        mean = np.mean([values - outcomes[before] for values in mine], 0)
        known = np.isfinite(mean)
        gained[f"{kind}, all seeds"] = str(mean_over_starts(mean[known], np.arange(int(known.sum()))))
    return gained


def tables(results: Mapping[str, Any]) -> str:
    """Return what came out as markdown."""
    rows = []
    for task in PARTS:
        if task not in results:
            continue
        part = results[task]
        for name, rate in part["rates"].items():
            share = part["training"][name]
            gained = part.get("gains", {}).get(name, "")
            rows.append((task, name, rate, gained, "" if share is None else f"{100 * share:.0f} %"))
        rows += [(task, name, "", gained, "") for name, gained in part.get("gains", {}).items() if "," in name]
    header = ("task", "agent", "solved in the simulator", "gain over the clone", "solved in its last training episodes")
    return report.table(header, rows)


if __name__ == "__main__":
    tyro.cli(main)
