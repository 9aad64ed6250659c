"""The held-out oracle episodes: chosen by what happens in them, listed before any training."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vap_gym.errors import CardError, VapError
from vap_gym.sim.generate import HELDOUT_FIRST_SEED
from vap_gym.sim.layouts import LAYOUTS, draw_scene
from vap_gym.sim.spec import DRAWER_TASKS, SceneSpec

if TYPE_CHECKING:
    from vap_gym.cards import RobotCard
    from vap_gym.data import Episode
    from vap_gym.sim.rollout import NominalRobot
    from vap_gym.sim.scene import Scene

STEPS = 24
MOVED_M = 0.05  # an object that moves this far is "moved" …
STILL_M = 0.005  # … and below this it is untouched
COUNTS = {"contact": 128, "free": 77, "failing": 51, "noop": 16, "novel": 64}
"""256 episodes in three kinds; no-ops and scenes with novel shapes and textures (or skills) apart."""
MAIN_KINDS = ("contact", "free", "failing")
ENVS = ("VAP-DROID-v0", "VAP-RT1-v0", "VAP-Bridge-v0", "VAP-Hand-v0")


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """One listed episode: what it takes to play it again."""

    seed: int
    kind: str
    behaviour: str
    task: str
    near: bool
    split: str = "train"
    layout: str = "table"

    @property
    def scene(self) -> SceneSpec:
        """The scene to play."""
        return draw_scene(self.seed, layout=self.layout, split=self.split, task=self.task, near=self.near)


def short_name(env: str) -> str:
    """Return an env's id as it stands in names of files: "rt1" for "VAP-RT1-v0"."""
    return env.removeprefix("VAP-").rsplit("-v", 1)[0].lower()


def list_path(env: str, folder: Path = Path("benchmarks")) -> Path:
    """Return where the list of an env is kept."""
    return folder / ("heldout.toml" if env == ENVS[0] else f"heldout_{short_name(env)}.toml")


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


def first_of(items: list[HeldOut], limit: int) -> list[int]:
    """Return which episodes stand for a list where only about `limit` of the main kinds shall be looked at.

    The first of every kind, as many of each in proportion as the whole list has, the kinds apart as well.
    """
    rows = [[i for i, item in enumerate(items) if item.kind == kind] for kind in dict.fromkeys(i.kind for i in items)]
    whole = sum(item.kind in MAIN_KINDS for item in items)
    return [i for mine in rows for i in mine[: max(1, round(len(mine) * min(1.0, limit / max(whole, 1))))]]


def play(scene: Scene, nominal: NominalRobot, item: HeldOut, *, steps: int = STEPS, render: bool = True) -> Episode:
    """Play a listed episode in the oracle: steps + 1 frames."""
    from vap_gym.sim.rollout import record

    return record(scene, nominal, item.scene, item.behaviour, frames=steps + 1, render=render)


def candidates(kind: str, layout: str = "table", *, first: int | None = None) -> Iterator[HeldOut]:
    """Endless episodes of a layout to choose a kind from; every kind has seeds of its own, the first one is `first`."""
    first = HELDOUT_FIRST_SEED + 100_000 * list(COUNTS).index(kind) if first is None else first
    place = LAYOUTS[layout]
    moving = [task for task in place.tasks if task != "reach" and task not in DRAWER_TASKS]
    new = place.novel_tasks if kind == "novel" else ()
    tasks = list(new) or (moving if kind == "contact" else list(place.tasks))
    for seed in range(first, first + 100_000):
        rng = np.random.default_rng([seed, 77])
        task = str(rng.choice(tasks))
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
            split="novel" if kind == "novel" else "train", layout=layout,
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


def choose(robot: RobotCard, layout: str, counts: dict[str, int], *, first: int) -> list[HeldOut]:
    """Choose so many episodes of every kind, as the held-out ones were, from seeds of `first` on; each kind has its own
    10,000."""
    from vap_gym.sim.rollout import NominalRobot
    from vap_gym.sim.scene import Scene

    nominal = NominalRobot(robot)
    chosen: list[HeldOut] = []
    with Scene(robot) as scene:
        for kind, count in counts.items():
            drawn = candidates(kind, layout, first=first + 10_000 * list(COUNTS).index(kind))
            chosen += islice(_of_kind(scene, nominal, kind, drawn), count)
    return chosen


def _of_kind(scene: Scene, nominal: NominalRobot, kind: str, drawn: Iterator[HeldOut]) -> Iterator[HeldOut]:
    """Those of the drawn episodes that are of a kind, by what happens in them."""
    for item in drawn:
        try:
            episode = play(scene, nominal, item, render=False)
        except VapError:  # a start that the arm cannot reach
            continue
        if belongs(kind, episode):
            yield item


def main(*, env: str = ENVS[0], out: Path | None = None) -> None:
    """Choose the held-out episodes of an env anew and write the list, as the committed one came about.

    Args:
        env: whose robot and scenes: an id or the path of a card.
        out: where the list is written; None: where it is kept.
    """
    from vap_gym.cards import load_env, load_robot
    from vap_gym.sim.rollout import NominalRobot
    from vap_gym.sim.scene import Scene

    env_card = load_env(env)
    card, out = load_robot(env_card.robot), out or list_path(env_card.id)
    chosen: list[HeldOut] = []
    nominal = NominalRobot(card)
    with Scene(card) as scene:
        for kind, count in COUNTS.items():
            found = islice(_of_kind(scene, nominal, kind, candidates(kind, env_card.layout)), count)
            chosen += found
            print(f"{kind}: {count}", flush=True)
    named = "" if env_card.id == ENVS[0] else f" --env {env_card.id}"
    new = "skills" if LAYOUTS[env_card.layout].novel_tasks else "shapes and a texture"
    lines = [
        f"# Held-out oracle episodes, {STEPS} steps each, chosen before training by: "
        f"python -m vap_gym.evaluate.heldout{named}",
        f"# Seeds from 1,000,000 on are never trained on; kind novel has {new} that training never shows.",
    ]
    write_list(out, chosen, lines)


def write_list(out: Path, items: list[HeldOut], said: list[str]) -> None:
    """Write a list under lines of comment, under a temporary name until it is whole; makes the folder."""
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_suffix(".tmp")
    rows = ["episodes = [", *(f"  {_inline(item)}," for item in items), "]", ""]
    temporary.write_text("\n".join([*said, *rows]), encoding="utf-8")
    temporary.replace(out)


def _inline(item: HeldOut) -> str:
    def text(value: object) -> str:
        return str(value).lower() if isinstance(value, bool) else f'"{value}"' if isinstance(value, str) else str(value)

    row = {k: v for k, v in asdict(item).items() if k != "layout" or v != "table"}
    return "{ " + ", ".join(f"{k} = {text(v)}" for k, v in row.items()) + " }"


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
