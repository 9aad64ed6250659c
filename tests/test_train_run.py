"""Runs and recipes: settings refused by name, schedules and averages as described, logs without a step twice."""

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from vap_gym.errors import CardError, CheckpointError, UnknownNameError
from vap_gym.train.appearance import AppearanceRecipe
from vap_gym.train.background import BackgroundRecipe
from vap_gym.train.codec import CodecRecipe
from vap_gym.train.judge import JudgeRecipe
from vap_gym.train.run import (
    Ema,
    Run,
    Schedule,
    initialised_with,
    load_recipe,
    mean,
    recipes_dir,
    seeded,
)
from vap_gym.train.world import WorldRecipe


@dataclass(frozen=True, kw_only=True)
class Recipe:
    steps: int
    learning_rate: float = 0.1


# --- recipes ---


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (CodecRecipe, "tiny_codec"),
        (CodecRecipe, "tiny_encoder"),
        (WorldRecipe, "tiny_world"),
        (AppearanceRecipe, "tiny_appearance"),
        (BackgroundRecipe, "tiny_background"),
        (JudgeRecipe, "tiny_judge"),
    ],
)
def test_shipped_recipes_are_read_by_name_and_by_path(kind: type, name: str) -> None:
    by_name = load_recipe(kind, name)
    assert by_name == load_recipe(kind, recipes_dir() / f"{name}.toml")
    assert by_name.steps >= 400
    assert by_name.data


def test_every_shipped_recipe_is_one_of_a_training() -> None:
    shipped = {path.stem for path in recipes_dir().glob("*.toml")}
    names = "codec encoder appearance background things motion world judge judge_more stream familiar"
    parts = {f"tiny_{part}" for part in names.split()}
    videos = {f"tiny_video_{part}" for part in ("base", "skeleton", "unified")} | {"small_video"}
    large = {"cogvideox_5b", "cogvideox_5b_stream"}
    assert shipped == parts | videos | large


def test_an_unknown_key_is_named_with_its_neighbour(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("steps = 3\nlearning_rat = 1.0\n")
    with pytest.raises(CardError, match=r"mine.toml: No key named 'learning_rat'. Did you mean 'learning_rate'\?"):
        load_recipe(Recipe, path)


def test_a_missing_key_a_missing_file_and_no_toml_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("learning_rate = 1.0\n")
    with pytest.raises(CardError, match=r"mine.toml: .*missing.*'steps'"):
        load_recipe(Recipe, path)
    path.write_text("steps = \n")
    with pytest.raises(CardError, match="mine.toml is no valid TOML: "):
        load_recipe(Recipe, path)
    with pytest.raises(
        CardError, match=r"No recipe at '.*nowhere.toml'. Give a TOML file that exists, or a shipped name"
    ):
        load_recipe(Recipe, tmp_path / "nowhere.toml")
    with pytest.raises(UnknownNameError, match="No recipe named 'tiny_code'. Did you mean 'tiny_codec'"):
        load_recipe(CodecRecipe, "tiny_code")


# --- schedules and averages ---


def test_the_schedule_warms_up_stays_and_falls_to_its_floor() -> None:
    schedule = Schedule(peak=2.0, steps=1000, warmup_steps=100, decay=0.4, floor=0.1)
    rates = [schedule(step) for step in range(1000)]
    assert rates[0] == pytest.approx(0.02)
    assert rates[99] == pytest.approx(2.0)
    assert all(rate == 2.0 for rate in rates[100:601])
    assert all(later < sooner for sooner, later in pairwise(rates[601:]))
    assert rates[800] == pytest.approx(2.0 * (0.1 + 0.9 * 0.5), rel=1e-3)
    assert schedule(1000) == pytest.approx(0.2)
    assert schedule(5000) == pytest.approx(0.2)


def test_the_average_follows_the_formula_and_leaves_the_model_alone() -> None:
    model = torch.nn.Linear(2, 1)
    ema, expected = Ema(model, decay=0.9), model.weight.detach().clone()
    for step in range(120):
        model.weight.data += 1.0
        ema.update(model, step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.weight.detach()
    torch.testing.assert_close(ema.shadow["weight"], expected)
    before = model.weight.detach().clone()
    other = torch.nn.Linear(2, 1)
    ema.copy_into(other)
    assert torch.equal(other.weight, ema.shadow["weight"])
    assert torch.equal(model.weight, before)


def test_small_helpers() -> None:
    assert mean([torch.tensor(1.0), torch.tensor(3.0)]) == 2.0
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert torch.equal(torch.rand(3, generator=seeded(1)), torch.rand(3, generator=seeded(1)))
    with initialised_with(4):
        one = torch.nn.Linear(3, 3)
    with initialised_with(4):
        assert torch.equal(torch.nn.Linear(3, 3).weight, one.weight)
    assert torch.equal(torch.get_rng_state(), before)  # no global seed is touched


# --- folders ---


def test_a_folder_in_use_is_only_gone_on_with_when_asked(tmp_path: Path) -> None:
    Run(tmp_path / "run", resume=False).log(1, loss=0.5)
    with pytest.raises(CheckpointError, match=r"must be empty for a new run, but it is not. Pass --resume"):
        Run(tmp_path / "run", resume=False)
    assert Run(tmp_path / "run", resume=True).rows()[0]["loss"] == 0.5
    assert Run(tmp_path / "new", resume=True).load() is None  # nothing to go on with is a new run


def test_a_resumed_log_holds_no_step_twice(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", resume=False)
    for step in range(1, 6):
        run.log(step, loss=1.0 / step)
        if step == 3:
            run.save({"step": 3, "weights": torch.arange(3)})
    again = Run(tmp_path / "run", resume=True)
    state = again.load()
    assert state is not None
    assert torch.equal(state["weights"], torch.arange(3))
    again.log(4, loss=0.25)
    assert [row["step"] for row in again.rows()] == [1, 2, 3, 4]
    assert all(json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines())
    assert not list((tmp_path / "run").glob("*.tmp"))


def test_curves_are_drawn_also_of_values_that_are_not_logged_yet(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", resume=False)
    run.log(1, loss=1.0)
    run.log(2, loss=0.5, psnr=20.0)
    run.draw_curves([("loss",), ("psnr", "other"), ("nothing",)])
    assert (tmp_path / "run" / "curves.png").read_bytes().startswith(b"\x89PNG")
