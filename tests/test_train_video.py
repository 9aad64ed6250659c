"""Training of the video model: objectives, what is trained, and a killed run that ends as one that was not."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import CogVideoXDPMScheduler
from safetensors.torch import load_file

from vap_gym.cards import load_robot
from vap_gym.data import Episode, EpisodeWriter, finalise
from vap_gym.errors import CardError, CheckpointError, UnknownNameError, VapError
from vap_gym.train.run import load_recipe, recipes_dir, seeded
from vap_gym.train.video import train_video
from vap_gym.train.video_loss import FlowNoise, Inputs, VNoise, clip_loss, weighted, without_some
from vap_gym.train.video_parts import build_network, load_codec, save_model
from vap_gym.train.video_recipe import VideoRecipe
from vap_gym.video.lora import add_lora, merge_lora
from vap_gym.video.model import VideoModel
from vap_gym.world.codec import FrameCodec

SIZE, FRAMES, STEPS = (64, 48), 8, 12
BASE = {
    "num_attention_heads": 1, "attention_head_dim": 16, "in_channels": 16, "out_channels": 16, "time_embed_dim": 16,
    "text_embed_dim": 8, "num_layers": 2, "sample_width": 8, "sample_height": 6, "sample_frames": 13,
}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("train_video")
    robot = load_robot("panda_robotiq")
    writer = EpisodeWriter(root / "data", fps=15, robot_type=robot.name)
    for i in range(3):
        rng = np.random.default_rng(i)
        q = np.array(robot.home_q_rad) + np.linspace(0, 0.3, FRAMES)[:, None] * rng.normal(size=7)
        frames = (
            rng.integers(0, 255, (1, 6, 8, 3)).repeat(8, 1).repeat(8, 2) + 4 * np.arange(FRAMES)[:, None, None, None]
        )
        columns = {
            "nominal.joint_position": q, "nominal.gripper_position": np.zeros((FRAMES, 1)),
            "nominal.cartesian_position": rng.normal(size=(FRAMES, 6)),
            "camera.K": np.broadcast_to([[60.0, 0, 32], [0, 60, 24], [0, 0, 1]], (FRAMES, 3, 3)),
            "camera.T_world_camera": np.broadcast_to(
                [[0.0, 0, -1, 1.5], [1, 0, 0, 0], [0, -1, 0, 0.3], [0, 0, 0, 1]], (FRAMES, 4, 4)
            ),
        }  # fmt: skip
        writer.write(
            i,
            Episode(
                frames={"front": np.clip(frames, 0, 255).astype(np.uint8)},
                columns={name: np.ascontiguousarray(x, np.float32) for name, x in columns.items()},
                task="lift the cube",
                info={"robot": robot.name, "seed": i},
            ),
        )
    finalise(root / "data")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        FrameCodec(latent_channels=4, encoder_widths=[8, 8], decoder_widths=[8, 8]).save_pretrained(root / "codec")
    return root


def recipe(folder: Path, **changes: Any) -> VideoRecipe:
    model = {
        "base_config": BASE,
        "latent_channels": 4,
        "stem_width": 8,
        "control_layers": 1,
        "frame_size_px": list(SIZE),
    }
    given: dict[str, Any] = {
        "data": [{"path": str(folder / "data"), "held_out": 1}], "codec": str(folder / "codec"), "steps": STEPS,
        "batch_size": 2, "frames": 4, "warmup_steps": 2, "score_clips": 1, "log_every": 1, "save_every": 4,
        "cache": str(folder / "cache"), "model": model | changes.pop("model", {}),
    }  # fmt: skip
    return VideoRecipe(**given | changes)


def weights(run: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(run / "state.pt", weights_only=False)["model"]
    return state


@pytest.fixture(scope="module")
def base_run(folder: Path) -> Path:
    """Stage A: no actions."""
    train_video(recipe(folder, model={"condition": "none"}), folder / "base", device="cpu")
    return folder / "base"


# --- objectives ---


def test_v_and_its_noise_are_those_of_diffusers() -> None:
    noise, rng = VNoise(), seeded(0)
    latents, drawn = torch.randn(3, 2, 4, 3, 5, generator=rng), torch.randn(3, 2, 4, 3, 5, generator=rng)
    scheduler = CogVideoXDPMScheduler(
        rescale_betas_zero_snr=True, snr_shift_scale=1.0, prediction_type="v_prediction", timestep_spacing="trailing"
    )
    t = torch.tensor([0, 500, 999])
    of_frames = t[:, None].expand(3, 2).float()
    noisy = noise.mixed(latents, drawn, of_frames)
    torch.testing.assert_close(noisy, scheduler.add_noise(latents, drawn, t), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        noise.target(latents, drawn, of_frames), scheduler.get_velocity(latents, drawn, t), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(noisy[2], drawn[2], atol=1e-5, rtol=0)  # zero terminal SNR
    levels = noise.levels((4000,), seeded(1))
    assert levels.min() == 0
    assert levels.max() == 999


def test_flow_noise_begins_with_nothing_but_noise_in_its_share() -> None:
    noise = FlowNoise(scale=2.0, pure_noise=0.4)
    levels = noise.levels((4000,), seeded(0))
    assert (levels == 1000).float().mean() == pytest.approx(0.4, abs=0.03)
    assert ((levels > 0) & (levels <= 1000)).all()
    latents, drawn = torch.ones(2, 1, 1, 1, 1), torch.full((2, 1, 1, 1, 1), 3.0)
    mixed = noise.mixed(latents, drawn, torch.tensor([[1000.0], [250.0]]))
    assert mixed.flatten().tolist() == [6.0, 0.75 + 0.25 * 6.0]


def test_the_weighted_loss_is_amplified_where_weights_are_and_normalised() -> None:
    error, heavy = torch.zeros(1, 2, 3, 4, 4), torch.ones(1, 2, 4, 4)
    heavy[:, :, 0, 0] = 5.0
    error[:, :, :, 0, 0] = 1.0
    plain, amplified = weighted(error, torch.ones_like(heavy)), weighted(error, heavy)
    assert amplified / plain == pytest.approx(5.0 / (20 / 16))
    assert weighted(torch.ones_like(error), heavy) == pytest.approx(1.0)
    assert weighted(error, 7 * heavy) == pytest.approx(float(amplified))


def test_a_perfect_prediction_costs_nothing_and_levels_follow_from_the_generator() -> None:
    latents = torch.randn(2, 3, 4, 2, 2, generator=seeded(0))
    given = Inputs(latents=latents, image=latents, weights=torch.ones(2, 3, 2, 2), conditions={})
    asked: list[torch.Tensor] = []

    def perfect(noisy: torch.Tensor, image: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        asked.append(timestep)
        return image

    assert clip_loss(perfect, given, FlowNoise(), seeded(3)) == pytest.approx(0.0, abs=1e-6)
    clip_loss(perfect, given, FlowNoise(), seeded(3))
    assert torch.equal(asked[0], asked[1])


def test_dropout_shows_black_prompts_no_image_and_the_empty_instruction() -> None:
    said = {"prompts": torch.ones(2, 3, 3, 4, 4), "text": torch.tensor([[5, 6], [7, 8]]), "states": torch.ones(2, 3, 9)}
    given = Inputs(
        latents=torch.ones(2, 3, 4, 2, 2), image=torch.ones(2, 3, 4, 2, 2), weights=torch.ones(2, 3, 2, 2),
        conditions=said,
    )  # fmt: skip
    drop = {what: torch.tensor([False, True]) for what in ("prompt", "image", "text")}
    left = without_some(given, drop, no_text=torch.zeros(1, 2, dtype=torch.int64))
    for name, black in (("prompts", -1.0), ("states", 0.0), ("text", 0)):
        assert torch.equal(left.conditions[name][0], said[name][0])
        assert (left.conditions[name][1] == black).all()
    assert (left.image[0] == 1).all()
    assert not left.image[1].any()
    assert torch.equal(left.latents, given.latents)


# --- runs ---


def test_stage_a_writes_log_curves_strip_and_a_model_that_generates(base_run: Path) -> None:
    rows = [json.loads(line) for line in (base_run / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, STEPS + 1))
    assert all(row["clips_per_s"] > 0 for row in rows if "loss" in row)
    scored = [row for row in rows if "psnr" in row]
    assert [row["step"] for row in scored] == [4, 8, 12]
    assert all({"psnr_frozen", "psnr_codec", "gap_closed"} <= row.keys() for row in scored)
    for name in ("curves.png", "samples.png"):
        assert (base_run / name).read_bytes().startswith(b"\x89PNG")
    assert not list(base_run.glob(".*"))
    model = VideoModel.from_pretrained(base_run / "model")
    clip = model.generate(torch.zeros(1, SIZE[1], SIZE[0], 3, dtype=torch.uint8), frames=4, text=["lift"], seed=0)
    assert clip.shape == (1, 4, SIZE[1], SIZE[0], 3)


def test_a_run_killed_at_any_moment_ends_with_the_weights_of_one_that_was_not(folder: Path, tmp_path: Path) -> None:
    mine = recipe(folder, prompt_dropout=0.3, text_dropout=0.3, lora_rank=2, accumulate=2)
    train_video(mine, tmp_path / "whole", device="cpu")
    code = (
        "import torch; torch.set_num_threads(1)\n"
        "from pathlib import Path\nfrom vap_gym.train.video import train_video\n"
        "from vap_gym.train.video_recipe import VideoRecipe\n"
        f"train_video({mine!r}, Path({str(tmp_path / 'killed')!r}), device='cpu')"
    )
    child = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "OMP_NUM_THREADS": "1"})
    log = tmp_path / "killed" / "log.jsonl"
    while child.poll() is None and not (log.exists() and '"step": 6' in log.read_text()):
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert torch.load(tmp_path / "killed" / "state.pt", weights_only=False)["step"] < STEPS
    train_video(mine, tmp_path / "killed", resume=True, device="cpu")
    one, other = (torch.load(tmp_path / n / "state.pt", weights_only=False) for n in ("whole", "killed"))
    for part in ("model", "ema"):
        assert one[part].keys() == other[part].keys()
        assert all(torch.equal(one[part][name], other[part][name]) for name in one[part]), part
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines() if "loss" in line]
    assert steps == list(range(1, STEPS + 1))


def test_stage_b_leaves_the_base_as_it_was_and_trains_branches_and_lora(folder: Path, base_run: Path) -> None:
    mine = recipe(folder, base=str(base_run), parts="branches", lora_rank=2, steps=4)
    train_video(mine, folder / "branches", device="cpu")
    base, now = VideoModel.from_pretrained(base_run / "model").network, weights(folder / "branches")
    kept = {n: p for n, p in base.named_parameters() if not n.startswith("transformer.action")}  # that is a branch's
    same = {n.replace(".base_layer.", "."): v for n, v in now.items() if n.replace(".base_layer.", ".") in kept}
    assert same.keys() == kept.keys()
    assert all(torch.equal(same[name], kept[name]) for name in kept)
    for part in ("control_out.0.weight", "lora_B.default.weight"):
        assert any(v.any() for n, v in now.items() if n.endswith(part)), part
    merged = VideoModel.from_pretrained(folder / "branches" / "model").network.state_dict()
    assert any(not torch.equal(merged[n], kept[n]) for n in kept if ".attn1.to_q.weight" in n)
    assert not any("lora" in name for name in merged)


def test_a_skeleton_model_goes_on_with_other_prompts(folder: Path, base_run: Path) -> None:
    train_video(recipe(folder, base=str(base_run), steps=2), folder / "skeleton", device="cpu")
    for condition, steps in (("mesh", 1), ("depth", 1)):
        mine = recipe(folder, init=str(folder / "skeleton"), steps=steps, model={"condition": condition})
        train_video(mine, folder / condition, device="cpu")
        assert VideoModel.from_pretrained(folder / condition / "model").settings.condition == condition


@pytest.mark.parametrize("forcing", ["frames", "rollout"])
def test_the_causal_variant_is_trained_and_goes_on_from_the_bidirectional_one(
    folder: Path, base_run: Path, forcing: str
) -> None:
    mine = recipe(folder, init=str(base_run), forcing=forcing, steps=2, model={"condition": "none"})
    train_video(mine, folder / forcing, device="cpu")
    assert type(VideoModel.from_pretrained(folder / forcing / "model").network).__name__ == "CausalVideoNetwork"


def test_a_model_is_saved_as_its_weights_are_and_nothing_else_is_touched(folder: Path, tmp_path: Path) -> None:
    mine = recipe(folder, model={"condition": "none", "prediction": "v", "residual": False})
    codec = load_codec(mine.codec, torch.device("cpu"))
    network = build_network(mine, codec).to(torch.bfloat16)
    add_lora(network, rank=2)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter += 0.1 * ("lora_" in name)
    chance, before = torch.get_rng_state(), {name: value.clone() for name, value in network.state_dict().items()}
    save_model(network, codec, dict(network.state_dict()), tmp_path / "model", snr_shift_scale=2.0)
    written = load_file(tmp_path / "model" / "network" / "diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in written.values()} == {torch.bfloat16}
    assert next(codec.parameters()).dtype == torch.float32
    assert torch.equal(chance, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    loaded = VideoModel.from_pretrained(tmp_path / "model")
    assert loaded.scheduler is not None
    assert loaded.scheduler.config["snr_shift_scale"] == 2.0
    merge_lora(network)
    assert written.keys() == network.state_dict().keys()
    for name, value in network.state_dict().items():
        torch.testing.assert_close(written[name], value, msg=name)


@pytest.mark.slow
def test_two_processes_train_one_model(folder: Path, tmp_path: Path) -> None:
    mine = recipe(folder, steps=4)
    script = tmp_path / "two.py"
    script.write_text(
        "import torch; torch.set_num_threads(1)\n"
        "from pathlib import Path\nfrom vap_gym.train.video import train_video\n"
        f"from vap_gym.train.video_recipe import VideoRecipe\ntrain_video({mine!r}, Path({str(tmp_path / 'two')!r}), "
        "device='cpu')\n"
    )
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launch, str(script)]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    state = torch.load(tmp_path / "two" / "state.pt", weights_only=False)
    assert state["processes"] == 2
    train_video(replace(mine, batch_size=4), tmp_path / "one", device="cpu")  # the same clips, in one process
    alone = weights(tmp_path / "one")
    assert all(torch.isfinite(v).all() for v in state["model"].values())
    assert state["model"].keys() == alone.keys()
    with pytest.raises(CheckpointError, match="begun by 2 processes, got 1 now"):
        train_video(mine, tmp_path / "two", resume=True, device="cpu")


# --- what is refused ---


def test_a_run_goes_on_with_its_own_recipe_only(folder: Path, base_run: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"must go on with its own recipe, got others: batch_size = 2 there, 3 in"
    ):
        train_video(recipe(folder, model={"condition": "none"}, batch_size=3), base_run, resume=True, device="cpu")
    with pytest.raises(CheckpointError, match="must be empty for a new run"):
        train_video(recipe(folder), base_run, device="cpu")


def test_a_run_that_is_older_than_a_key_of_recipes_goes_on_with_its_default(
    folder: Path, base_run: Path, tmp_path: Path
) -> None:
    shutil.copytree(base_run, tmp_path / "older")
    state = torch.load(base_run / "state.pt", weights_only=False)
    for key in ("snr_shift_scale", "near_changes"):
        del state["recipe"][key]
    torch.save(state, tmp_path / "older" / "state.pt")
    mine = recipe(folder, model={"condition": "none"}, steps=STEPS + 1)
    train_video(mine, tmp_path / "older", resume=True, device="cpu")
    assert torch.load(tmp_path / "older" / "state.pt", weights_only=False)["step"] == STEPS + 1
    torch.save(state, tmp_path / "older" / "state.pt")
    with pytest.raises(CheckpointError, match=r"got others: near_changes = 0\.5 there, 0\.25 in the recipe\. Undo"):
        train_video(replace(mine, near_changes=0.25), tmp_path / "older", resume=True, device="cpu")


def test_weights_that_do_not_fit_and_codecs_that_are_not_there_are_refused(folder: Path, base_run: Path) -> None:
    with pytest.raises(CheckpointError, match=r"must fit the recipe's model, got \d+ missing or of another shape"):
        train_video(recipe(folder, base=str(base_run), model={"stem_blocks": 2}), folder / "never", device="cpu")
    with pytest.raises(CheckpointError, match="must hold config.json and weights, got none. Train one"):
        train_video(recipe(folder, codec=str(folder / "nothing")), folder / "never2", device="cpu")


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"parts": "branch"}, UnknownNameError, "Did you mean 'branches'"),
        ({"parts": "branches"}, CardError, "got neither base nor init. Name a run"),
        ({"base": "a", "init": "b"}, CardError, "both bring weights, got 'a' and 'b'"),
        ({"text_dropout": 1.5}, CardError, "text_dropout is a share of clips, 0 to 1, got 1.5"),
        ({"batch_size": 0}, CardError, "batch_size must be at least 1, got 0"),
        ({"forcing": "frame"}, UnknownNameError, "Did you mean 'frames'"),
        ({"data": []}, CardError, "data must name at least one set"),
        ({"preset": "tin"}, UnknownNameError, "Did you mean 'tiny'"),
        (
            {"preset": "cogvideox-5b", "frames": 25, "clips": 5, "data": [{"path": "data/droid", "max_stride": 3}]},
            CardError,
            "this model is not told which",
        ),
        ({"preset": "cogvideox-5b", "frames": 13}, CardError, "Say how many, e.g. clips = 20000"),
        ({"preset": "cogvideox-5b", "frames": 14, "clips": 5}, VapError, "A clip must have 1 . 4·k frames, got 14"),
    ],
)
def test_recipes_that_cannot_be_are_refused(changes: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        VideoRecipe(**{"data": ["data/droid"], "codec": "codec", "steps": 1, "batch_size": 1, **changes})


@pytest.mark.parametrize("path", sorted(recipes_dir().glob("*video*.toml")))
def test_shipped_recipes_are_whole(path: Path) -> None:
    mine = load_recipe(VideoRecipe, path)
    assert mine.steps > 100
    assert all(one.path.startswith("data/") for one in mine.sets)
    assert "GiB" in path.read_text()  # each says what it needs
