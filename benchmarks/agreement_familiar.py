"""Trust of kept trials, brought up to date with what tells strange starts.

    python benchmarks/agreement_familiar.py          # docs/agreement.json; nothing is played
    python benchmarks/agreement.py --from docs/agreement.json

Trials that were tried before the world model told how familiar a start is have the trust of then. What they would have
now follows from their starts alone, and is written here.
"""

from __future__ import annotations

from pathlib import Path

import tyro

from vap_gym.cards import load_env
from vap_gym.errors import VapError
from vap_gym.evaluate.agreement_outcomes import Outcomes
from vap_gym.evaluate.agreement_starts import starts_file
from vap_gym.loading import build_stage
from vap_gym.policies.known import familiar_digest, weights_digest
from vap_gym.stage import Stage
from vap_gym.starts import StartSet
from vap_gym.trust import UNFAMILIAR

BATCH = 25
SPLITS = {"novel-imagined": "novel", "cameras-imagined": "cameras"}  # other conditions start from the main scenes


def main(
    page: Path = Path("docs/agreement.json"), *, out: Path = Path("out/agreement"), world_model: str = "tiny",
) -> dict[str, int]:  # fmt: skip
    """Bring the trust of a world model's trials up to date. Prints and returns how many have changed, by condition.

    Args:
        page: the kept outcomes.
        out: folder of the starts.
        world_model: whose trials; those of others are left as they are.
    """
    outcomes, changed = Outcomes.load(page), {}
    env, first_seed = str(outcomes.settings["env"]), int(outcomes.settings["first_seed"])
    digest, familiar = weights_digest(world_model), familiar_digest(world_model, load_env(env).robot)
    if not familiar:
        raise VapError(f"'{world_model}' does not tell strange starts. Teach it: vap-gym train familiar --help.")
    conditions = [name for name, told in outcomes.weights.items() if told["digest"] == digest and outcomes.tasks(name)]
    stage = build_stage(load_env(env).id, world_model=world_model, judge=None)
    known: dict[tuple[str, str], list[float]] = {}
    for condition in conditions:
        split, unfamiliar = SPLITS.get(condition, "main"), {}
        for task in outcomes.tasks(condition):
            count = int(outcomes.settings["strange_starts" if condition in SPLITS else "starts"])
            path = starts_file(out, split, task, count, env=env, first_seed=first_seed)
            if (split, task) not in known:
                known[split, task] = told(stage, StartSet(path))
            unfamiliar[task] = known[split, task]
        changed[condition] = outcomes.meet(condition, unfamiliar, familiar)
        print(f"{condition}: {changed[condition]} trials")
    outcomes.save(page)
    return changed


def told(stage: Stage, starts: StartSet) -> list[float]:
    """Return how unfamiliar each start is."""
    found: list[float] = []
    for i in range(0, len(starts), BATCH):
        some = [starts[j] for j in range(i, min(i + BATCH, len(starts)))]
        found += stage.begin(some, range(len(some)))[UNFAMILIAR].tolist()
    return found


if __name__ == "__main__":
    tyro.cli(main)
