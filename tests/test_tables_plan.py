"""The plan of the tables: trainings differ in what they say and nothing else; what is wrong is told where."""

from pathlib import Path

import pytest

from vap_gym.errors import CardError, UnknownNameError
from vap_gym.evaluate.tables_plan import Plan, load_plan

TEXT = """
judge = "tiny"
seeds = [5]
clips = 8
[sets.a]
title = "A"
env = "VAP-DROID-v0"
data = "data/a"
novel = "lab"
[sets.b]
title = "B"
env = "VAP-Hand-v0"
data = "data/b"
novel = "lab"
[recipe]
steps = 100
model = { width = 8, depth = 2 }
[runs.base]
on = "joint"
recipe = { steps = 400 }
[runs.one]
base = "base"
recipe = { kind = "x", model = { depth = 3 } }
[runs.two]
base = "base"
[runs.all]
base = "base"
on = "joint"
[runs.more]
base = "one"
sets = ["a"]
[tables.1]
title = "first"
metrics = ["psnr", "adherence_px"]
rows = { one = "One", two = "Two" }
[[tables.1.orderings]]
claim = "One above two"
source = "here"
order = ["one", "two"]
metrics = ["psnr"]
[tables.2]
title = "second"
sets = ["a"]
metrics = ["j_and_f"]
splits = ["known", "novel"]
rows = { more = "More", all = "All" }
"""


def written(path: Path, *changes: tuple[str, str]) -> Path:
    text = TEXT
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    file = path / "plan.toml"
    file.write_text(text)
    return file


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return load_plan(written(tmp_path))


def test_a_training_for_each_set_and_one_for_all_of_them(plan: Plan) -> None:
    assert list(plan.runs) == ["base", "one-a", "one-b", "two-a", "two-b", "all", "more-a"]
    assert plan.runs["one-b"].sets == ("b",)
    assert plan.runs["all"].sets == plan.runs["base"].sets == ("a", "b")
    assert {plan.runs[name].base for name in ("one-a", "one-b", "two-a", "all")} == {"base"}
    assert plan.runs["more-a"].base == "one-a"
    assert plan.stages == ("base", "one-a", "one-b", "two-a", "two-b")[:1]
    assert plan.tables["2"].rows[1].runs == {"a": "all"}


def test_trainings_differ_in_what_they_say_and_in_nothing_else(plan: Plan) -> None:
    assert plan.runs["two-a"].recipe == plan.runs["two-b"].recipe == {"steps": 100, "model": {"width": 8, "depth": 2}}
    assert plan.runs["one-a"].recipe == {"steps": 100, "kind": "x", "model": {"width": 8, "depth": 3}}
    assert plan.runs["base"].steps == 400


def test_one_table_needs_only_its_own_trainings(plan: Plan) -> None:
    assert list(plan.only(["2"]).runs) == ["base", "one-a", "all", "more-a"]
    assert list(plan.only(["1"]).runs) == ["base", "one-a", "one-b", "two-a", "two-b"]
    with pytest.raises(UnknownNameError, match="No table named '3'. Known: 1, 2"):
        plan.only(["3"])


def test_a_smaller_plan_keeps_the_share_of_steps_and_says_that_it_is_smaller(plan: Plan) -> None:
    small = plan.smaller(steps=40, clips=4, episodes=10)
    assert small.runs["base"].steps == 40
    assert small.runs["one-a"].steps == small.runs["all"].steps == 10
    assert small.reduced == ("40 steps instead of 400", "4 clips instead of 8", "10 episodes instead of all")
    more = plan.smaller(seeds=3, clips=16)
    assert (more.seeds, more.reduced) == ((5, 6, 7), ())
    assert plan.smaller() == plan
    with pytest.raises(CardError, match=r"steps must be at least 1, or 0 .*, got -1"):
        plan.smaller(steps=-1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('novel = "lab"', 'novell = "lab"'), r"sets.a: No key named 'novell'. Did you mean 'novel'\?"),
        (('title = "A"', ""), r"sets.a: .*missing.*title"),
        (('base = "one"', 'base = "oen"'), r"runs.more: No training before it named 'oen'"),
        (
            ('base = "one"\nsets = ["a"]', 'base = "one"\non = "joint"'),
            r"must be one training for all of a, b, got one-a",
        ),
        (
            ('on = "joint"\nrecipe = { steps = 400 }', 'on = "jont"'),
            r"runs.base: No way of training \(on\) named 'jont'",
        ),
        (
            ('metrics = ["psnr", "adherence_px"]', 'metrics = ["psnt"]'),
            r"tables.1: No metric named 'psnt'. Did you mean",
        ),
        (('order = ["one", "two"]', 'order = ["one"]'), r"orderings\[0\] needs an order of two rows or more"),
        (('order = ["one", "two"]', 'order = ["one", "all"]'), r"orderings\[0\]: No row named 'all'. Known: one, two"),
        (('rows = { more = "More", all = "All" }', "rows = {}"), r"tables.2 needs rows"),
        (('splits = ["known", "novel"]', 'splits = ["known", "old"]'), r"tables.2: No split named 'old'"),
        (("steps = 100\n", ""), r"runs.one must say its steps"),
        (("clips = 8", "clip = 8"), r"the plan: No key named 'clip'"),
        (('judge = "tiny"', ""), r"The plan needs 'judge'"),
        (("[recipe]", "[recipe"), r"is no valid TOML"),
    ],
)
def test_what_is_wrong_in_a_plan_is_told_where(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    path = written(tmp_path, change)
    with pytest.raises(CardError, match=message):
        load_plan(path)


def test_a_plan_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CardError, match=r"No plan of tables at '.*nothing.toml'"):
        load_plan(tmp_path / "nothing.toml")


def test_the_committed_plan_has_the_papers_four_tables(repo: Path) -> None:
    plan = load_plan(repo / "benchmarks" / "tables.toml")
    assert list(plan.tables) == ["1", "2", "3", "4"]
    assert [row.name for row in plan.tables["1"].rows] == ["text", "raw_state", "skeleton", "unified"]
    assert plan.tables["1"].sets == ("droid", "rt1", "hand")
    assert plan.tables["2"].splits == ("known", "novel")
    rows = [run for one in plan.tables.values() for row in one.rows for run in row.runs.values()]
    assert len({plan.runs[run].steps / len(plan.runs[run].sets) for run in rows}) == 1  # matched, of each set
    assert plan.reduced == ()
