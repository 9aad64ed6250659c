"""The streaming benchmark: a run of three steps that is cut off and goes on, what is kept, and its recipes."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from vap_gym.assets import weights_dir
from vap_gym.errors import CardError, CheckpointError, VapError
from vap_gym.evaluate.drift import read_worlds
from vap_gym.evaluate.drift_kept import CODEC, FROZEN, Drift, tables
from vap_gym.policies.known import weights_digest
from vap_gym.sim.generate import main as generate
from vap_gym.train.run import load_recipe
from vap_gym.train.video_parts import build_network, load_codec
from vap_gym.train.video_recipe import VideoRecipe
from vap_gym.video.causal import CausalVideoNetwork
from vap_gym.video.presets import preset
from vap_gym.video.world import StreamWorld
from vap_gym.world.codec import FrameCodec

STREAMS = Path(__file__).resolve().parent.parent / "benchmarks" / "streams"
TINY, TWICE = "tiny, 1 evaluation", "random, 2 evaluations"


@pytest.fixture(scope="module")
def bench(repo: Path) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(repo / "benchmarks"))
        import streaming

        yield streaming


@pytest.fixture(scope="module")
def variants(bench: Any) -> Any:
    import video_variants

    return video_variants


def random_stream(folder: Path, seed: int) -> Path:
    """A small streamed model of the size that envs have, with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tiny = preset("tiny")
        base = {**tiny.base_config, "num_layers": 1, "num_attention_heads": 1}
        network = CausalVideoNetwork(**tiny.replace(base_config=base, control_layers=1).to_dict())
        codec = FrameCodec.from_pretrained(weights_dir() / "tiny" / "codec", torch_dtype=torch.float32)
        StreamWorld(network, codec).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def run(bench: Any, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Two episodes of three steps: speed and one world, then another world beside it, which has no time at first."""
    pytest.importorskip("pybullet", reason="the oracle needs pybullet")
    out = tmp_path_factory.mktemp("streaming")
    page, folder = out / "docs" / "page.md", random_stream(out / "random", 0)
    page.parent.mkdir()
    page.write_text("# Page\n\nBefore.\n\n<!-- streaming -->\nold\n<!-- /streaming -->\n\nAfter.\n")
    given: dict[str, Any] = {"slots": (1,), "repeats": 1, "episodes": 2, "steps": 3, "batch": 1, "cache": out / "runs"}
    left = [bench.main(page, **given)]
    first = json.loads(page.with_suffix(".json").read_text())
    given |= {"worlds": ("tiny", f"random,2={folder}"), "keep": True}
    left.append(bench.main(page, **given, minutes=1e-9))
    left.append(bench.main(page, **given, workers=2))
    return SimpleNamespace(page=page, folder=folder, given=given, left=left, first=first, out=out)


def test_a_run_goes_on_with_what_is_left(run: SimpleNamespace) -> None:
    assert run.left == [0, 2, 0]
    drift = Drift.load(run.page.with_suffix(".json"))
    assert drift.worlds() == [TINY, TWICE, FROZEN, CODEC]
    assert [len(one) for one in drift.rows.values()] == [2, 2, 2, 2]
    before = {(world, n): psnr for world, n, psnr in run.first["rows"]}
    assert len(before) == 6
    assert all(drift.rows[world][n] == psnr for (world, n), psnr in before.items())
    assert drift.speed == run.first["speed"]
    assert drift.weights == {
        TINY: weights_digest("tiny"), TWICE: weights_digest(str(run.folder)), FROZEN: "",
        CODEC: weights_digest(str(weights_dir() / "tiny" / "codec")),
    }  # fmt: skip
    assert len(drift.runs) == 2


def test_models_lie_between_what_random_weights_make_and_what_the_codec_makes(run: SimpleNamespace) -> None:
    psnr = {name: values.mean() for name, values in Drift.load(run.page.with_suffix(".json")).psnr().items()}
    assert 5 < psnr[TWICE] < psnr[TINY] < psnr[CODEC] < 40


def test_page_and_picture_are_made_of_the_rows_and_made_anew_from_them_alone(
    bench: Any, run: SimpleNamespace, tmp_path: Path
) -> None:
    text = run.page.read_text()
    assert text.startswith("# Page\n\nBefore.\n\n<!-- streaming -->\nThe `tiny` preset")
    assert text.endswith("<!-- /streaming -->\n\nAfter.\n")
    assert f"| step | {TINY}" in text
    assert "| 1    |" in text
    assert "2 held-out episodes" in text
    assert weights_digest(str(run.folder)) in text
    assert "](img/drift.png)" in text
    assert (run.page.parent / "img" / "drift.png").stat().st_size > 10_000
    again = tmp_path / "again.md"
    bench.main(again, source=run.page.with_suffix(".json"))
    assert again.read_text().split("<!--")[1] == text.split("<!--")[1]
    assert (tmp_path / "img" / "drift.png").is_file()


def test_rows_of_other_weights_other_episodes_and_other_files_are_refused(
    bench: Any, run: SimpleNamespace, tmp_path: Path
) -> None:
    with pytest.raises(VapError, match="holds rows already.*--keep"):
        bench.main(run.page, **run.given | {"keep": False})
    with pytest.raises(VapError, match="steps 3, got 4"):
        bench.main(run.page, **run.given | {"steps": 4})
    other = random_stream(tmp_path / "other", 1)
    given = run.given | {"worlds": ("tiny", f"random,2={other}")}
    with pytest.raises(VapError, match=rf"'{TWICE}' holds rows that were imagined by other weights.*--forget"):
        bench.main(run.page, **given)
    with pytest.raises(VapError, match=f"Nothing of 'random' is kept.*{TWICE}"):
        bench.main(run.page, **given, forget=("random",))
    with pytest.raises(CheckpointError, match="holds no drift of world models"):
        bench.main(tmp_path / "page.md", source=run.folder / "model_index.json")


def test_a_world_that_cannot_be_loaded_is_refused_before_anything_is_measured(bench: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        bench.main(tmp_path / "page.md", worlds=("tiny", f"none={tmp_path}"), episodes=2, steps=3)
    assert not any(tmp_path.iterdir())
    for wrong in (("tiny,0=tiny",), ("tiny,two=tiny",), ("a=tiny", "a=tiny")):
        with pytest.raises(VapError, match="got"):
            read_worlds(wrong)


def test_worlds_are_compared_over_the_episodes_that_all_of_them_have() -> None:
    drift = Drift({})
    drift.runs.append({"machine": "a machine", "commit": "1", "date": "today", "minutes": 1.0})
    drift.add("one", 0, np.array([[10.0, 20.0], [30.0, 40.0]]))
    drift.add(FROZEN, 1, np.array([[20.0, 20.0]]))
    assert drift.psnr()["one"].tolist() == [[30.0, 40.0]]
    assert "2 episodes of some worlds, 1 of others" in tables(drift)
    assert "Speed was not measured." in tables(drift)


@pytest.mark.parametrize("path", sorted(STREAMS.glob("*.toml")), ids=lambda path: path.stem)
def test_every_recipe_of_a_stream_builds_a_causal_network_of_what_is_shipped(path: Path, repo: Path) -> None:
    recipe = load_recipe(VideoRecipe, path)
    assert recipe.steps > 100
    assert recipe.base == "runs/tables/base/0"  # of `vap-gym bench tables`
    assert [one.path for one in recipe.sets] == ["data/droid"]
    assert f"vap-gym train video benchmarks/streams/{path.name} --out runs/streams/{path.stem}" in path.read_text()
    codec = load_codec(str(repo / recipe.codec), torch.device("cpu"))
    fresh = {**vars(recipe), "base": ""}  # the base is trained by a benchmark
    network = build_network(VideoRecipe(**fresh), codec)
    assert isinstance(network, CausalVideoNetwork)
    assert network.settings.condition == recipe.settings.condition


def test_recipes_of_streams_differ_in_what_is_compared_alone() -> None:
    found = {path.stem: vars(load_recipe(VideoRecipe, path)) for path in STREAMS.glob("*.toml")}
    assert set(found) == {"rollout", "frames", "raw_state", "none"}
    for name, told in found.items():
        differ = {key for key in told if told[key] != found["rollout"][key]}
        assert differ == {"rollout": set(), "frames": {"forcing"}}.get(name, {"model"}), name
    with pytest.raises(CardError):
        load_recipe(VideoRecipe, STREAMS / "nowhere.toml")


def test_variants_are_trained_for_a_time_and_told_with_their_scores(
    variants: Any, repo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pybullet", reason="the oracle needs pybullet")
    threads = torch.get_num_threads()
    generate(tmp_path / "data", episodes=2, frames=40, workers=1, first_seed=640_000)
    capsys.readouterr()
    try:
        variants.main(
            str(tmp_path / "data"), codec=str(repo / "vap_gym" / "weights" / "tiny" / "codec"), episodes=1, held_out=1,
            cpu_seconds=0.1, batch_size=1, only="pure, patch 4", cache=str(tmp_path / "cache"), out=tmp_path / "out",
        )  # fmt: skip
    finally:
        torch.set_num_threads(threads)
    (line,) = (json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{"))
    assert line["variant"] == "pure, patch 4, residual"
    assert line["steps"] >= 1
    assert np.isfinite(line["loss"])
    assert (tmp_path / "out" / "variant_pure_patch_4_residual.png").is_file()
