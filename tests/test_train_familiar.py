"""Teaching familiarity: odd things are known by where they are, runs resume exactly, models learn it, pages tell it."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from vap_gym.assets import weights_dir
from vap_gym.errors import CheckpointError, VapError
from vap_gym.evaluate import familiar as bench
from vap_gym.sim.layouts import draw_scene
from vap_gym.sim.odd import PREFIX
from vap_gym.train import familiar as training
from vap_gym.train.familiar import FamiliarRecipe, changed, score
from vap_gym.train.familiar_data import Looks, _known, _later, looks
from vap_gym.train.run import Run, load_recipe, seeded
from vap_gym.trust.familiar import FILE, PART, camera_figures, read
from vap_gym.trust.oddness import Oddness

ENV = "VAP-DROID-v0"
RECIPE = f"""
envs = ["{ENV}"]
scenes = [8]
usual = 24
steps = 6
batch_size = 16
log_every = 3
save_every = 3
[model]
widths = [8, 8, 8]
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "mine.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped model before it was taught what is familiar."""
    made = tmp_path_factory.mktemp("model") / "mine"
    shutil.copytree(weights_dir() / "tiny", made, ignore=shutil.ignore_patterns(FILE, PART))
    return made


@pytest.fixture(scope="module")
def run(recipe: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "familiar"
    told = training.main(recipe, world_model=str(model), out=out, write_into=True)
    assert told["step"] == 6
    assert 0.0 <= told["area"] <= 1.0
    return out


def test_a_run_writes_what_envs_read(run: Path, model: Path) -> None:
    known = read(model, "panda_robotiq")
    assert known is not None
    trained = Oddness.from_pretrained(run / "model", torch_dtype=torch.float32)
    kept = looks(ENV, str(model), scenes=24, odd=False, cache=run / f"usual_{ENV}_40.npz")
    torch.testing.assert_close(
        known.oddness(kept.pictures[:9], kept.told[:9]), trained.eval()(kept.pictures[:9], kept.told[:9]),
        atol=0.01, rtol=0.01,
    )  # fmt: skip
    assert len(kept.cameras) == 24
    assert not kept.odd.any()
    strange = known.usual.things(kept.of_starts(known.oddness(kept.pictures, kept.told).numpy()))
    assert 0 < (strange > 0.0).sum() <= 3  # 5 of 200


def test_half_of_the_things_that_it_is_shown_are_odd(run: Path, model: Path) -> None:
    shown = looks(ENV, str(model), scenes=8, odd=True, cache=run / f"shown_{ENV}_12.npz")
    assert 0 < int(shown.odd.sum()) < len(shown)
    assert shown.start.max() < 8
    assert shown.pictures[:, :3].abs().max() <= 1.0
    assert (shown.pictures[:, 3].amax((1, 2)) > 0.3).all()  # each has its thing in it


def test_a_run_that_was_stopped_goes_on_to_the_same_weights(
    run: Path, recipe: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "again"
    out.mkdir()
    for path in run.glob("*.npz"):
        shutil.copy(path, out)
    saves = Run.save

    def stopped(run: Run, state: dict[str, Any]) -> None:
        saves(run, state)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "save", stopped)
        with pytest.raises(KeyboardInterrupt):
            training.main(recipe, world_model=str(model), out=out, resume=True)
    assert torch.load(out / "state.pt", weights_only=False)["step"] == 3
    training.main(recipe, world_model=str(model), out=out, resume=True)
    first, second = (torch.load(at / "state.pt", weights_only=False)["model"] for at in (out, run))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_things_are_odd_where_an_odd_object_stands() -> None:
    scene = draw_scene(3)
    first = scene.objects[0]
    spec = replace(scene, objects=(replace(first, shape=f"{PREFIX}1"), *scene.objects[1:]))
    there = np.array([[[*first.xy_m, 0.02], [*first.xy_m, 0.3], [-1.0, -1.0, 0.0]]])
    odd, known = _known([spec], there)
    assert odd.tolist() == [[True, True, False]]
    assert known.tolist() == [[True, True, False]]
    assert _known([scene], there)[0].tolist() == [[False] * 3]


def test_cameras_on_heads_are_looked_at_a_while_later_too() -> None:
    pose = torch.eye(4)
    pose[:3, :3] = torch.tensor([[0.0, -1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])
    pose[2, 3] = 0.6
    sway = torch.zeros(3, 8)
    sway[1:] = torch.tensor([0.01, 0.01, 0.01, 0.02, 0.02, 0.02, 3.0, 0.5])
    state = TensorDict(
        {
            "camera_T_world_camera": pose.expand(3, 4, 4).clone(), "camera_K": 60.0 * torch.eye(3).expand(3, 3, 3),
            "camera_sway": sway, "world_first_picture": torch.zeros(3, 48, 72, 3, dtype=torch.uint8),
        },
        batch_size=[3],
    )  # fmt: skip
    later = _later(state, 0.0, first=0)
    first = camera_figures(state)
    assert later.shape == (2, 8)
    moved = np.abs(later - first[1:])[:, :5].max(1)  # straight down there is no azimuth
    assert (moved > 1e-3).all()
    assert (moved < 0.2).all()


def test_crops_are_changed_as_scenes_might_be() -> None:
    pictures = torch.zeros(64, 6, 24, 24)
    pictures[:, 3, 8:16, 6:10] = 1.0  # upright, left of the middle
    told = torch.ones(64, 8)
    after, also = changed(pictures, told, seeded(0), recolour=1.0)
    assert after.shape == pictures.shape
    assert also[:, :-1].eq(1.0).all()
    left = after[:, 3, :, :12].sum((1, 2)) > after[:, 3, :, 12:].sum((1, 2))
    assert torch.equal(left, also[:, -1] == 1.0)  # a mirrored thing is turned the other way
    assert 0.3 < left.float().mean() < 0.7
    assert torch.equal(changed(pictures, told, seeded(0), recolour=1.0)[0], after)


def test_the_worst_thing_of_a_start_counts_and_scores_tell_order() -> None:
    some = Looks(pictures=torch.zeros(3, 6, 24, 24), told=torch.zeros(3, 8), odd=torch.tensor([True, False, True]),
                 start=torch.tensor([0, 0, 2]), cameras=np.zeros((3, 8)), later=np.zeros((0, 8)))  # fmt: skip
    assert some.of_starts(np.array([1.0, 3.0, -2.0])).tolist() == [3.0, -np.inf, -2.0]
    things = {"pictures": torch.zeros(4, 6, 24, 24), "told": torch.zeros(4, 8), "odd": torch.tensor([True, False] * 2)}
    things["told"][::2, 0] = 1.0

    class ByTold(Oddness):
        def forward(self, pictures: torch.Tensor, told: torch.Tensor, *, kept: object = None) -> torch.Tensor:
            return 5.0 * told[:, 0] - 2.5

    assert score(ByTold(), things)["area"] == 1.0


def test_what_cannot_be_is_refused(tmp_path: Path, model: Path) -> None:
    wrong = tmp_path / "wrong.toml"
    wrong.write_text(RECIPE.replace("[8]", "[8, 9]"))
    with pytest.raises(VapError, match=r"scenes must be a number for each of 1 envs, got \[8, 9\]"):
        training.main(wrong, world_model=str(model), out=tmp_path / "run")
    (tmp_path / "looks.npz").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="holds no looks of things"):
        looks(ENV, str(model), scenes=1, odd=True, cache=tmp_path / "looks.npz")


def test_the_shipped_recipe_is_read() -> None:
    settings = load_recipe(FamiliarRecipe, "tiny_familiar")
    assert len(settings.scenes) == len(settings.envs)


def test_a_page_tells_how_well_strange_starts_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = bench.main(env=(ENV,), starts=2, out=tmp_path / "familiar.md")
    assert set(told[ENV]) == set(bench.KINDS)
    assert told[ENV]["cameras"]["by_camera"] == 1.0
    assert "shifted cameras" in capsys.readouterr().out
    assert not (tmp_path / "familiar.md").exists()  # of one env is no page
    black = np.zeros((6, 8, 12, 3), np.uint8)
    one = bench.Met(by_camera=np.zeros(6), by_things=np.linspace(0, 1, 6), frames=black)
    met = dict.fromkeys(bench.KINDS, one)
    bench._show(met, tmp_path / "img" / "familiar.png")
    assert (tmp_path / "img" / "familiar.png").stat().st_size > 100
    assert "Familiar starts" in bench.page({ENV: met}, "tiny", "familiar.png")
    untaught = tmp_path / "untaught"
    shutil.copytree(weights_dir() / "tiny", untaught, ignore=shutil.ignore_patterns(FILE, PART))
    with pytest.raises(VapError, match="does not tell what is familiar for a 'panda_robotiq'. Teach it"):
        bench.main(world_model=str(untaught), env=(ENV,), starts=2, out=tmp_path / "x.md")
