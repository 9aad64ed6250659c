"""The plan of the tables: which data sets, which trainings, which rows, and which orderings are put to the test.

A plan is a TOML file (`benchmarks/tables.toml`). Its `[recipe]` holds the keys of a video recipe that all trainings
share; a training names the stage that it starts from and the keys in which it differs, so that two trainings of one
table differ in nothing else.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from vap_gym.errors import CardError, unknown_name

METRICS = ("psnr", "ssim", "st_iou", "adherence_px", "j_and_f", "j", "f")
SPLITS = ("known", "novel")
EACH = "each"  # a training of its own for each set
JOINT = "joint"  # one training on all sets
Made = TypeVar("Made")


@dataclass(frozen=True, kw_only=True)
class SetPlan:
    """One data set: where it is, which env it is of, and which held-out episodes test it."""

    name: str
    title: str
    env: str
    data: str
    novel: str  # what the held-out episodes of kind "novel" show: a novel "lab" or "skill"
    heldout: str = ""  # another list than the env's own


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """One training: on which sets, from which other training, and its recipe, whole."""

    name: str
    sets: tuple[str, ...]
    base: str  # the training that it starts from
    recipe: Mapping[str, Any]
    starts: str = "base"  # as stage A of it ("base"), or goes on with it ("init")

    @property
    def steps(self) -> int:
        """Steps of the optimiser."""
        return int(self.recipe["steps"])


@dataclass(frozen=True, kw_only=True)
class RowPlan:
    """A row of a table: its name, and the training that is scored on each set."""

    name: str
    title: str
    runs: Mapping[str, str]  # by set


@dataclass(frozen=True, kw_only=True)
class OrderingPlan:
    """Something that shall hold: each row of `order` above the next, in each of the metrics, on each of the sets."""

    claim: str
    source: str  # where it is claimed
    order: tuple[str, ...]  # rows, the best first
    metrics: tuple[str, ...]
    sets: tuple[str, ...] = ()  # all of the table's where empty; ("moving",) means those whose camera moves
    splits: tuple[str, ...] = ("known",)
    must_be_apart: bool = True  # False: it is enough that none is worse than the next


@dataclass(frozen=True, kw_only=True)
class TablePlan:
    """One table: rows by sets, in these metrics, on these splits."""

    name: str
    title: str
    sets: tuple[str, ...]
    rows: tuple[RowPlan, ...]
    metrics: tuple[str, ...]
    splits: tuple[str, ...] = ("known",)
    paper: str = ""
    note: str = ""
    orderings: tuple[OrderingPlan, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The whole plan. `runs` are in an order in which each comes after the one that it starts from."""

    sets: Mapping[str, SetPlan]
    runs: Mapping[str, RunPlan]
    tables: Mapping[str, TablePlan]
    judge: str
    seeds: tuple[int, ...]
    clips: int  # held-out episodes of a set and a split that are scored, at most
    batch: int
    evaluations: int
    episodes: int  # of each data set that is used; 0: all
    held_out: int  # of these, the first ones, which trainings score themselves on
    seconds_per_step: float
    seconds_per_clip: float
    stages: tuple[str, ...]  # names of runs that are no row of any table: the bases
    reduced: tuple[str, ...] = field(default=())  # what makes it smaller than the file says

    def only(self, tables: Sequence[str]) -> Plan:
        """The same with these tables only, and the trainings that they need."""
        for name in tables:
            if name not in self.tables:
                raise unknown_name("table", name, self.tables)
        kept = {name: table for name, table in self.tables.items() if name in tables}
        needed = self._needed(run for table in kept.values() for row in table.rows for run in row.runs.values())
        return replace(self, tables=kept, runs={n: r for n, r in self.runs.items() if n in needed})

    def _needed(self, names: Iterable[str]) -> set[str]:
        found: set[str] = set()
        for name in names:
            while name and name not in found:
                found.add(name)
                name = self.runs[name].base
        return found

    def smaller(self, *, seeds: int = 0, steps: int = 0, clips: int = 0, episodes: int = 0, settings: str = "") -> Plan:
        """The same with other numbers (0: as planned).

        Args:
            seeds: so many seeds, from the plan's first one on.
            steps: of the longest training; the others keep their share of it.
            clips: held-out episodes of a set and split.
            episodes: of each data set that is trained on.
            settings: said of the plan where other files than the plan's were given.
        """
        for name, value in (("seeds", seeds), ("steps", steps), ("clips", clips), ("episodes", episodes)):
            if value < 0:
                raise CardError(f"{name} must be at least 1, or 0 for what the plan says, got {value}.")
        plan, said = self, []
        if seeds and seeds != len(self.seeds):
            plan = replace(plan, seeds=tuple(self.seeds[0] + i for i in range(seeds)))
            said += [f"{seeds} seed(s)"] if seeds < len(self.seeds) else []
        if steps:
            longest = max(run.steps for run in self.runs.values())
            runs = {
                name: replace(run, recipe={**run.recipe, "steps": max(1, round(steps * run.steps / longest))})
                for name, run in self.runs.items()
            }
            plan = replace(plan, runs=runs)
            said += [f"{steps} steps instead of {longest}"] if steps < longest else []
        if clips:
            plan = replace(plan, clips=clips)
            said += [f"{clips} clips instead of {self.clips}"] if clips < self.clips else []
        if episodes:
            plan = replace(plan, episodes=episodes)
            fewer = not self.episodes or episodes < self.episodes
            said += [f"{episodes} episodes instead of {self.episodes or 'all'}"] if fewer else []
        return replace(plan, reduced=(*plan.reduced, *said, *filter(None, [settings])))


def load_plan(path: Path) -> Plan:
    """Read a plan. Raises CardError or UnknownNameError: what is wrong in it, where, and what would work."""
    if not path.is_file():
        raise CardError(f"No plan of tables at '{path}'. Run from the repository root, or name one with --plan.")
    try:
        text = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise CardError(f"'{path}' is no valid TOML: {error}. benchmarks/tables.toml is an example.") from error
    try:
        return _plan(text)
    except CardError as error:
        raise CardError(f"{path}: {error}") from error


def _plan(text: dict[str, Any]) -> Plan:
    needed = ("sets", "runs", "tables", "recipe", "judge", "seeds", "clips")
    known = (*needed, "batch", "evaluations", "episodes", "held_out", "seconds_per_step", "seconds_per_clip")
    _check_keys(text, known, "the plan")
    for key in needed:
        if not text.get(key):
            raise CardError(f"The plan needs '{key}', got {', '.join(text)}. benchmarks/tables.toml is an example.")
    sets = {name: _made(SetPlan, {"name": name, **table}, f"sets.{name}") for name, table in text["sets"].items()}
    runs, expanded = _runs(text["runs"], text["recipe"], sets)
    tables = {name: _table(name, table, sets, expanded) for name, table in text["tables"].items()}
    rows = {run for table in tables.values() for row in table.rows for run in row.runs.values()}
    return Plan(
        sets=sets, runs=runs, tables=tables, judge=text["judge"], seeds=tuple(text["seeds"]), clips=int(text["clips"]),
        batch=int(text.get("batch", 8)), evaluations=int(text.get("evaluations", 0)),
        episodes=int(text.get("episodes", 0)), held_out=int(text.get("held_out", 16)),
        seconds_per_step=float(text.get("seconds_per_step", 1.0)),
        seconds_per_clip=float(text.get("seconds_per_clip", 1.0)),
        stages=tuple(name for name in runs if name not in rows),
    )  # fmt: skip


def _runs(
    given: Mapping[str, Any], common: Mapping[str, Any], sets: Mapping[str, SetPlan]
) -> tuple[dict[str, RunPlan], dict[str, dict[str, str]]]:
    """All trainings, those of each set apart; and for each name of the plan, which training is scored on which set."""
    runs: dict[str, RunPlan] = {}
    expanded: dict[str, dict[str, str]] = {}
    for name, table in given.items():
        where = f"runs.{name}"
        _check_keys(table, ("on", "sets", "base", "init", "recipe"), where)
        if "base" in table and "init" in table:
            raise CardError(f"{where} starts from base or goes on with init, got both. Leave one out.")
        starts = "init" if "init" in table else "base"
        on, over, base = table.get("on", EACH), tuple(table.get("sets", sets)), table.get(starts, "")
        if on not in (EACH, JOINT):
            raise CardError(f"{where}: {unknown_name('way of training (on)', on, (EACH, JOINT))}")
        for one in over:
            if one not in sets:
                raise CardError(f"{where}: {unknown_name('set', one, sets)}")
        if base and base not in expanded:
            raise CardError(f"{where}: {unknown_name('training before it', base, expanded)}")
        recipe = _merged(common, table.get("recipe", {}))
        if "steps" not in recipe:
            raise CardError(f"{where} must say its steps, got {', '.join(recipe) or 'nothing'}. Write [recipe] steps.")
        if on == JOINT:
            expanded[name] = dict.fromkeys(over, name)
            first = _single(base, over, expanded, where)
            runs[name] = RunPlan(name=name, sets=over, base=first, recipe=recipe, starts=starts)
            continue
        expanded[name] = {one: f"{name}-{one}" for one in over}
        for one in over:
            first, own = _single(base, (one,), expanded, where), f"{name}-{one}"
            runs[own] = RunPlan(name=own, sets=(one,), base=first, recipe=recipe, starts=starts)
    return runs, expanded


def _single(base: str, over: Sequence[str], expanded: Mapping[str, Mapping[str, str]], where: str) -> str:
    """The one training that a training on these sets starts from."""
    if not base:
        return ""
    found = {expanded[base].get(one, "") for one in over}
    if len(found) != 1 or "" in found:
        raise CardError(
            f"{where} starts from '{base}', which must be one training for all of {', '.join(over)}, "
            f"got {', '.join(sorted(found - {''})) or 'none'}. Train '{base}' with on = \"{JOINT}\" on all of them."
        )
    return found.pop()


def _table(
    name: str, given: dict[str, Any], sets: Mapping[str, SetPlan], expanded: Mapping[str, Mapping[str, str]]
) -> TablePlan:
    where, table = f"tables.{name}", dict(given)
    over = tuple(table.pop("sets", sets))
    for one in over:
        if one not in sets:
            raise CardError(f"{where}: {unknown_name('set', one, sets)}")
    rows = []
    for key, title in table.pop("rows", {}).items():
        if key not in expanded:
            raise CardError(f"{where}: {unknown_name('training', key, expanded)}")
        rows.append(RowPlan(name=key, title=title, runs={s: r for s, r in expanded[key].items() if s in over}))
    if not rows:
        raise CardError(f"{where} needs rows, each a training's name and its title, got none.")
    named = {row.name for row in rows}
    orderings = tuple(
        _ordering(row, f"{where}.orderings[{i}]", named, over) for i, row in enumerate(table.pop("orderings", []))
    )
    made = _made(TablePlan, {"name": name, "sets": over, "rows": tuple(rows), **_tuples(table)}, where)
    _check_names(made.metrics, METRICS, "metric", where)
    _check_names(made.splits, SPLITS, "split", where)
    return replace(made, orderings=orderings)


def _ordering(given: Mapping[str, Any], where: str, rows: set[str], sets: Sequence[str]) -> OrderingPlan:
    made = _made(OrderingPlan, _tuples(given), where)
    _check_names(made.order, sorted(rows), "row", where)
    if len(made.order) < 2:
        raise CardError(f"{where} needs an order of two rows or more, the best first, got {list(made.order)}.")
    _check_names(made.metrics, METRICS, "metric", where)
    _check_names(made.splits, SPLITS, "split", where)
    _check_names(made.sets, (*sets, "moving"), "set", where)
    return made


def _made(kind: type[Made], table: Mapping[str, Any], where: str) -> Made:
    """A dataclass from a table of the plan: an unknown or missing key is an error that says where."""
    _check_keys(table, [f.name for f in fields(kind)], where)  # type: ignore[arg-type]
    try:
        return kind(**table)
    except TypeError as error:
        raise CardError(f"{where}: {error}.") from error


def _check_keys(table: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    if not isinstance(table, Mapping):
        raise CardError(f"{where} must be a table of {', '.join(known)}, got {table!r}.")
    for key in table:
        if key not in known:
            raise CardError(f"{where}: {unknown_name('key', key, known)}")


def _check_names(names: Sequence[str], known: Sequence[str], kind: str, where: str) -> None:
    for name in names:
        if name not in known:
            raise CardError(f"{where}: {unknown_name(kind, name, known)}")


def _tuples(table: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}


def _merged(common: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The common keys, with a training's own in their place; tables are merged key by key."""
    merged = dict(common)
    for key, value in own.items():
        before = merged.get(key)
        merged[key] = _merged(before, value) if isinstance(before, Mapping) and isinstance(value, Mapping) else value
    return merged
