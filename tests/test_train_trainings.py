"""All parts are trained on generated episodes; a stopped run ends as one that was not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from vap_gym.cards import load_robot
from vap_gym.data import EpisodeWriter, finalise
from vap_gym.errors import CardError, CheckpointError, VapError
from vap_gym.judge import Judge
from vap_gym.prompts.raster import draw
from vap_gym.prompts.skeleton import Skeleton
from vap_gym.sim.layouts import draw_scene
from vap_gym.sim.rollout import NominalRobot, record
from vap_gym.sim.scene import Scene
from vap_gym.train import appearance, codec, judge, motion, publish, things, world
from vap_gym.train.frames import load_frames
from vap_gym.train.latents import load_latents
from vap_gym.train.run import Run
from vap_gym.world.codec import FrameCodec
from vap_gym.world.model import WorldModel

pytest.importorskip("pybullet", reason="the data come from the oracle")
EPISODES, FRAMES = 3, 27  # the world model is scored over 24 steps
STEPS, SAVED = 5, 3
Training = Callable[..., None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("training")


@pytest.fixture(scope="module")
def data(folder: Path) -> Path:
    """Three oracle episodes."""
    card = load_robot("panda_robotiq")
    writer, nominal = EpisodeWriter(folder / "data", robot_type=card.name), NominalRobot(card)
    with Scene(card) as scene:
        for i, (task, behaviour) in enumerate([("push", "expert"), ("lift", "expert"), ("reach", "play")]):
            spec = draw_scene(i + 100, task=task, near=True)
            writer.write(i, record(scene, nominal, spec, behaviour, frames=FRAMES))
    finalise(folder / "data")
    return folder / "data"


def recipe(path: Path, *, model: dict[str, Any], **settings: Any) -> Path:
    def text(value: Any) -> str:
        return json.dumps(str(value) if isinstance(value, Path) else value)

    lines = [f"{key} = {text(value)}" for key, value in settings.items()]
    lines += ["[model]", *(f"{key} = {text(value)}" for key, value in model.items())]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def codec_recipe(folder: Path, data: Path) -> Path:
    return recipe(
        folder / "codec.toml", data=[str(data)], steps=STEPS, batch_size=2, every=1, held_out=16, log_every=1,
        save_every=SAVED, model={"latent_channels": 4, "encoder_widths": [8, 8], "decoder_widths": [8, 8]},
    )  # fmt: skip


@pytest.fixture(scope="module")
def codec_run(folder: Path, codec_recipe: Path) -> Path:
    told = codec.main(codec_recipe, out=folder / "codec")
    assert told["step"] == STEPS
    assert {"loss", "psnr", "out", "model"} <= set(told), told
    return folder / "codec"


@pytest.fixture(scope="module")
def appearance_recipe(folder: Path, data: Path) -> Path:
    return recipe(
        folder / "appearance.toml", data=[str(data)], steps=STEPS, batch_size=2, every=1, held_out=16, log_every=1,
        save_every=SAVED, model={"widths": [4, 8]},
    )  # fmt: skip


@pytest.fixture(scope="module")
def appearance_run(folder: Path, appearance_recipe: Path) -> Path:
    appearance.main(appearance_recipe, out=folder / "appearance")
    return folder / "appearance"


@pytest.fixture(scope="module")
def things_recipe(folder: Path, data: Path) -> Path:
    return recipe(
        folder / "things.toml", data=[str(data)], steps=STEPS, batch_size=2, every=1, scored=16, log_every=1,
        save_every=SAVED, model={"widths": [4, 8], "blocks": 1},
    )  # fmt: skip


@pytest.fixture(scope="module")
def things_run(folder: Path, things_recipe: Path) -> Path:
    things.main(things_recipe, out=folder / "things")
    return folder / "things"


@pytest.fixture(scope="module")
def motion_recipe(folder: Path, data: Path) -> Path:
    return recipe(
        folder / "motion.toml", data=[str(data)], steps=STEPS, batch_size=4, held_out=2, length=6, log_every=1,
        save_every=SAVED, model={"memory": 8, "width": 16},
    )  # fmt: skip


@pytest.fixture(scope="module")
def motion_run(folder: Path, motion_recipe: Path) -> Path:
    motion.main(motion_recipe, out=folder / "motion")
    return folder / "motion"


@pytest.fixture(scope="module")
def world_recipe(folder: Path, data: Path, codec_run: Path, appearance_run: Path, things_run: Path) -> Path:
    model = {
        "latent_channels": 4, "widths": [8, 16], "blocks": [1, 1], "heads": 1, "layers": 1, "control_layers": 1,
        "time_embed_dim": 16, "action_channels": 4, "prompt_features": 6,
    }  # fmt: skip
    return recipe(
        folder / "world.toml", data=[str(data)], codec=codec_run / "model", appearance=appearance_run / "model",
        things=things_run / "model", cache=folder, steps=STEPS, shares=[3], warmup_steps=2,
        held_out=1, log_every=1, save_every=SAVED, first_horizon=2, horizon=4, model=model,
    )  # fmt: skip


@pytest.fixture(scope="module")
def world_run(folder: Path, world_recipe: Path) -> Path:
    world.main(world_recipe, out=folder / "world")
    return folder / "world"


@pytest.fixture(scope="module")
def judge_recipe(folder: Path, data: Path, codec_run: Path) -> Path:
    return recipe(
        folder / "judge.toml", data=[str(data)], codec=codec_run / "model", steps=STEPS, batch_size=2, every=1,
        scored=16, log_every=1, save_every=SAVED, model={"latent_channels": 4, "widths": [8, 12]},
    )  # fmt: skip


@pytest.fixture(scope="module")
def judge_run(folder: Path, judge_recipe: Path) -> Path:
    judge.main(judge_recipe, out=folder / "judge")
    return folder / "judge"


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "diffusion_pytorch_model.safetensors")


@pytest.mark.parametrize("name", ["codec", "world", "appearance", "things", "motion", "judge"])
def test_a_short_training_runs_and_leaves_what_it_promises(name: str, request: pytest.FixtureRequest) -> None:
    run: Path = request.getfixturevalue(f"{name}_run")
    rows = Run(run, resume=True).rows()
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) == STEPS
    assert np.isfinite(losses).all()
    assert [row["step"] for row in rows if "loss" not in row] == [SAVED, STEPS]
    unknown = ("off_cm", "along_cm", "across_cm", "size_cm", "moved_share", "moved_median", "moved_rad", "false_moves")
    # NaN where it is told of nothing found or moved
    told = [value for row in rows for key, value in row.items() if not key.split()[-1].startswith(unknown)]
    assert np.isfinite(told).all()
    assert all(tensor.isfinite().all() for tensor in weights(run).values())
    assert (run / "curves.png").is_file()
    if name in ("codec", "world"):
        assert Image.open(next(run.glob("samples*.png"))).size[0] >= 144
    state = torch.load(run / "state.pt", weights_only=False)
    assert state["step"] == STEPS
    assert state["recipe"]["steps"] == STEPS


class Killed(Exception):
    """Stands for a kill."""


def stopped_and_resumed(train: Training, recipe: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Train, die in the step after the first save, go on."""

    def log(self: Run, step: int, **values: float) -> None:
        if step > SAVED:
            raise Killed
        Run_log(self, step, **values)

    Run_log = Run.log
    with monkeypatch.context() as patch:
        patch.setattr(Run, "log", log)
        with pytest.raises(Killed):
            train(recipe, out=out)
    assert torch.load(out / "state.pt", weights_only=False)["step"] == SAVED
    train(recipe, out=out, resume=True)
    return out


def assert_same_run(one: Path, other: Path) -> None:
    for name, value in weights(one).items():
        assert torch.equal(value, weights(other)[name]), name
    mine, theirs = (torch.load(run / "state.pt", weights_only=False) for run in (one, other))
    for kind in ("model", "ema"):
        for name, value in mine[kind].items():
            assert torch.equal(value, theirs[kind][name]), f"{kind} {name}"
    for i, values in mine["optimizer"]["state"].items():
        for name, value in values.items():
            assert torch.equal(value, theirs["optimizer"]["state"][i][name]), f"optimizer {i} {name}"
    clock = ("seconds", "samples_per_s")
    logs = [
        [{k: v for k, v in row.items() if k not in clock} for row in Run(r, resume=True).rows()] for r in (one, other)
    ]
    assert logs[0] == logs[1]


def test_a_stopped_codec_training_ends_as_one_that_was_not(
    codec_run: Path, codec_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_same_run(codec_run, stopped_and_resumed(codec.main, codec_recipe, tmp_path / "again", monkeypatch))


def test_a_stopped_world_training_ends_as_one_that_was_not(
    world_run: Path, world_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_same_run(world_run, stopped_and_resumed(world.main, world_recipe, tmp_path / "again", monkeypatch))


def test_a_stopped_judge_training_ends_as_one_that_was_not(
    judge_run: Path, judge_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_same_run(judge_run, stopped_and_resumed(judge.main, judge_recipe, tmp_path / "again", monkeypatch))


def test_a_stopped_appearance_training_ends_as_one_that_was_not(
    appearance_run: Path, appearance_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = stopped_and_resumed(appearance.main, appearance_recipe, tmp_path / "again", monkeypatch)
    assert_same_run(appearance_run, again)


@pytest.mark.parametrize(("part", "train"), [("things", things.main), ("motion", motion.main)])
def test_a_stopped_training_of_things_ends_as_one_that_was_not(
    part: str, train: Training, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, told = (request.getfixturevalue(f"{part}_{kind}") for kind in ("run", "recipe"))
    assert_same_run(run, stopped_and_resumed(train, told, tmp_path / "again", monkeypatch))


def test_a_finished_run_is_not_trained_again_unasked(codec_run: Path, codec_recipe: Path) -> None:
    before = weights(codec_run)
    with pytest.raises(CheckpointError, match="must be empty for a new run"):
        codec.main(codec_recipe, out=codec_run)
    codec.main(codec_recipe, out=codec_run, resume=True)  # nothing left to do
    assert all(torch.equal(value, before[name]) for name, value in weights(codec_run).items())


def test_training_does_not_hang_on_the_global_seed(codec_recipe: Path, codec_run: Path, tmp_path: Path) -> None:
    torch.manual_seed(12345)
    codec.main(codec_recipe, out=tmp_path / "again")
    assert_same_run(codec_run, tmp_path / "again")


@pytest.fixture
def runs(
    codec_run: Path, world_run: Path, appearance_run: Path, things_run: Path, motion_run: Path, judge_run: Path
) -> dict[str, Path]:
    """The folders that `publish` takes."""
    return {
        "codec": codec_run, "world": world_run, "appearance": appearance_run, "things": things_run,
        "motion": motion_run, "judge": judge_run,
    }  # fmt: skip


def test_the_parts_become_one_model_folder_with_a_card(runs: dict[str, Path], tmp_path: Path) -> None:
    told = publish.main(tmp_path / "model", **runs, data="Three episodes.")
    model, sight = WorldModel.from_pretrained(tmp_path / "model"), Judge.from_pretrained(tmp_path / "model")
    assert model.frame_size_px == (144, 96)
    assert sight.network.config.latent_channels == 4
    card = (tmp_path / "model" / "README.md").read_text()
    index = json.loads((tmp_path / "model" / "model_index.json").read_text())
    assert told["sha256"] == index["sha256"]
    batches = {"codec": 2, "dynamics": 3, "appearance": 2, "things": 2, "motion": 4, "judge": 2}
    for part, batch in batches.items():
        assert f"| {part} | {STEPS * batch} |" in card
        assert index["sha256"][part] in card
    assert "Three episodes." in card
    assert "Apache-2.0" in card


def test_parts_of_a_published_model_can_be_kept_with_their_row_of_the_card(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    publish.main(first, **runs)
    publish.main(second, **(dict.fromkeys(runs, first) | {"world": runs["world"]}))
    assert (second / "README.md").read_text().replace("`second`", "`first`") == (first / "README.md").read_text()
    (first / "README.md").write_text("no table")
    with pytest.raises(VapError, match="has no row for 'codec'"):
        publish.main(second, **(runs | {"codec": first}))


@pytest.mark.parametrize("part", ["world", "motion", "judge"])
def test_a_training_takes_up_weights_that_it_is_told_to(
    part: str, request: pytest.FixtureRequest, folder: Path, tmp_path: Path
) -> None:
    before: Path = request.getfixturevalue(f"{part}_run")
    text = (folder / f"{part}.toml").read_text()
    told = tmp_path / "recipe.toml"
    told.write_text(f"init = {json.dumps(str(before / 'model'))}\nlearning_rate = 0.0\n{text}")
    {"world": world, "motion": motion, "judge": judge}[part].main(told, out=tmp_path / "run")
    given = weights(before)
    assert all(torch.allclose(value, given[name], atol=1e-6) for name, value in weights(tmp_path / "run").items())


# --- what trainings read ---


def test_latents_are_those_of_the_frames_with_true_places(data: Path, codec_run: Path, tmp_path: Path) -> None:
    model = FrameCodec.from_pretrained(codec_run / "model").eval()
    cache = tmp_path / "latents.pt"
    episodes = load_latents([data], model, robot="panda_robotiq", view="front", cache=cache)
    assert len(episodes) == EPISODES
    assert episodes.latents.shape == (EPISODES, FRAMES, 4, 24, 36)
    assert episodes.latents.dtype == torch.float16
    again = load_latents([data], model, robot="panda_robotiq", view="front", cache=cache)
    assert torch.equal(again.latents, episodes.latents)
    with pytest.raises(CheckpointError, match="differs in: episodes. Remove it"):
        load_latents([data], model, robot="panda_robotiq", view="front", episodes=2, cache=cache)
    with pytest.raises(CheckpointError, match="differs in: codec"):
        load_latents([data], FrameCodec(latent_channels=4), robot="panda_robotiq", view="front", cache=cache)
    _, labels = load_frames([data], every=1, view="front")
    labels = labels.unflatten(0, (EPISODES, FRAMES))
    there = ~episodes.objects_px.isnan().any(-1)
    right = []
    for e, t, k in torch.nonzero(there)[::5].tolist():
        u, v = episodes.objects_px[e, t, k].int().tolist()
        if 0 <= u < 144 and 0 <= v < 96:
            right.append(int(labels[e, t, v, u]) in (1, 2, 4 + k))  # itself, or behind the robot
    assert len(right) > 20
    assert np.mean(right) > 0.9


def test_prompts_are_drawn_of_the_nominal_robot_in_the_frames_camera(data: Path, codec_run: Path) -> None:
    from vap_gym.data import EpisodeSet
    from vap_gym.geometry import Camera

    model = FrameCodec.from_pretrained(codec_run / "model").eval()
    episodes = load_latents([data], model, robot="panda_robotiq", view="front")
    columns = {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in EpisodeSet(data)[1].columns.items()}
    skeleton = Skeleton(load_robot("panda_robotiq"))
    points = skeleton.at_joints(columns["nominal.joint_position"], columns["nominal.gripper_position"][:, 0])
    camera = Camera(K=columns["camera.K"], T_world_camera=columns["camera.T_world_camera"], frame_size_px=(144, 96))
    drawn = episodes.prompts(torch.tensor([1, 1]), torch.tensor([0, 20]))
    assert drawn.shape == (2, 96, 144, 3)
    np.testing.assert_array_equal(drawn, draw(points, camera, skeleton)[[0, 20]])
    assert drawn.any()


def test_frames_are_taken_with_a_shift_from_episode_to_episode(data: Path) -> None:
    pictures, labels = load_frames([data], every=5, view="front")
    assert len(pictures) == len(labels) == sum(len(range(i % 5, FRAMES, 5)) for i in range(EPISODES))
    everything, _ = load_frames([data], every=1, view="front", limit=2)
    assert torch.equal(pictures[6], everything[FRAMES + 1])


def test_an_empty_set_says_how_to_make_data(tmp_path: Path, data: Path) -> None:
    (tmp_path / "empty" / "meta").mkdir(parents=True)
    (tmp_path / "empty" / "meta" / "info.json").write_bytes((data / "meta" / "info.json").read_bytes())
    with pytest.raises(VapError, match="must hold episodes, got none. Make some with: vap-gym data generate"):
        load_frames([tmp_path / "empty"], every=1, view="front")


def test_every_robot_needs_a_share_of_the_training() -> None:
    with pytest.raises(CardError, match=r"got 1 for 2 \(a, b\)"):
        motion.MotionRecipe(data=[], steps=1, robots=["a", "b"])  # the second would never be trained
    with pytest.raises(CardError, match=r"got 3 for 1 \(panda_robotiq\)"):
        world.WorldRecipe(data=[], codec="", appearance="", things="", model={}, steps=1, shares=[8, 8, 8])
