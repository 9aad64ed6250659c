"""The held-out oracle episodes: chosen by what happens in them, listed before any training."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vap_gym.errors import CardError, VapError
from vap_gym.sim.generate import HELDOUT_FIRST_SEED
from vap_gym.sim.layouts import draw_scene
from vap_gym.sim.spec import SceneSpec

if TYPE_CHECKING:
    from vap_gym.data import Episode
    from vap_gym.sim.rollout import NominalRobot
    from vap_gym.sim.scene import Scene

STEPS = 24
MOVED_M = 0.05  # an object that moves this far is "moved" …
STILL_M = 0.005  # … and below this it is untouched
COUNTS = {"contact": 128, "free": 77, "failing": 51, "noop": 16, "novel": 64}
"""256 episodes in three kinds; no-ops and scenes with novel shapes and textures apart."""


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """One listed episode: what it takes to play it again."""

    seed: int
    kind: str
    behaviour: str
    task: str
    near: bool
    split: str = "train"

    @property
    def scene(self) -> SceneSpec:
        """The scene to play."""
        return draw_scene(self.seed, split=self.split, task=self.task, near=self.near)


def load_heldout(path: Path) -> list[HeldOut]:
    """Read the list. Raises CardError where the file is missing or malformed."""
    if not path.is_file():
        raise CardError(f"No held-out list at '{path}'. Run from the repository root, or name it with --heldout.")
    try:
        return [HeldOut(**row) for row in tomllib.loads(path.read_text(encoding="utf-8"))["episodes"]]
    except (tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise CardError(
            f"'{path}' is no held-out list: {error}. Make one: python -m vap_gym.evaluate.heldout"
        ) from error


def play(scene: Scene, nominal: NominalRobot, item: HeldOut, *, render: bool = True) -> Episode:
    """Play a listed episode in the oracle: STEPS + 1 frames."""
    from vap_gym.sim.rollout import record

    return record(scene, nominal, item.scene, item.behaviour, frames=STEPS + 1, render=render)


def candidates(kind: str) -> Iterator[HeldOut]:
    """Endless episodes to choose a kind from; every kind has seeds of its own."""
    first = HELDOUT_FIRST_SEED + 100_000 * list(COUNTS).index(kind)
    for seed in range(first, first + 100_000):
        rng = np.random.default_rng([seed, 77])
        task = str(rng.choice(["push", "lift"] if kind == "contact" else ["reach", "push", "lift"]))
        behaviour = {
            "contact": str(rng.choice(["expert", "play"], p=[0.7, 0.3])),
            "free": str(rng.choice(["expert", "play"])),
            "failing": str(rng.choice(["failing", "random"], p=[0.6, 0.4])),
            "noop": "noop",
            "novel": str(rng.choice(["expert", "play", "failing"], p=[0.6, 0.2, 0.2])),
        }[kind]
        yield HeldOut(
            seed=seed, kind=kind, behaviour=behaviour, task=task,
            near=bool(kind in ("contact", "novel") or rng.random() < 0.4),
            split="novel" if kind == "novel" else "train",
        )  # fmt: skip


def belongs(kind: str, episode: Episode) -> bool:
    """Whether what happened in a played episode is what its kind promises."""
    objects = np.asarray(episode.columns["objects_m"])
    moved = float(np.nanmax(np.linalg.norm(objects[-1] - objects[0], axis=-1)))
    travelled = float(np.linalg.norm(np.diff(episode.columns["tool_m"], axis=0), axis=-1).sum())
    if kind == "contact":
        return moved >= MOVED_M
    if kind == "free":
        return moved < STILL_M and travelled > 0.10
    if kind == "failing":
        return not episode.info["success"] and travelled > 0.05
    return True


def main(out: Path = Path("benchmarks/heldout.toml"), *, robot: str = "panda_robotiq") -> None:
    """Choose the held-out episodes anew and write the list, as the committed one came about."""
    from vap_gym.cards import load_robot
    from vap_gym.sim.rollout import NominalRobot
    from vap_gym.sim.scene import Scene

    card = load_robot(robot)
    chosen: list[HeldOut] = []
    nominal = NominalRobot(card)
    with Scene(card) as scene:
        for kind, count in COUNTS.items():
            found = 0
            for item in candidates(kind):
                try:
                    episode = play(scene, nominal, item, render=False)
                except VapError:  # a start that the arm cannot reach
                    continue
                if belongs(kind, episode):
                    chosen.append(item)
                    found += 1
                if found == count:
                    break
            print(f"{kind}: {found}", flush=True)
    lines = ["# Held-out oracle episodes, 24 steps each, chosen before training by: python -m vap_gym.evaluate.heldout"]
    lines += [
        "# Seeds from 1,000,000 on are never trained on; kind novel has shapes and a texture that training never shows."
    ]
    lines += ["episodes = [", *(f"  {_inline(item)}," for item in chosen), "]", ""]
    temporary = out.with_suffix(".tmp")
    temporary.write_text("\n".join(lines), encoding="utf-8")
    temporary.replace(out)


def _inline(item: HeldOut) -> str:
    def text(value: object) -> str:
        return str(value).lower() if isinstance(value, bool) else f'"{value}"' if isinstance(value, str) else str(value)

    return "{ " + ", ".join(f"{k} = {text(v)}" for k, v in asdict(item).items()) + " }"


if __name__ == "__main__":
    main()
