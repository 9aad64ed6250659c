"""Training for streams: the empty instruction goes with the model, and frames are forced on several processes."""

import os
import runpy
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from vap_gym.cards import load_robot
from vap_gym.data import Episode, EpisodeSet, EpisodeWriter, finalise
from vap_gym.train.run import load_recipe
from vap_gym.train.video import train_video
from vap_gym.train.video_parts import build_network, load_codec
from vap_gym.train.video_recipe import VideoRecipe
from vap_gym.train.video_text import TextOf
from vap_gym.video.world import StreamWorld
from vap_gym.world.codec import FrameCodec

SIZE, FRAMES = (64, 48), 8
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
    root = tmp_path_factory.mktemp("train_stream")
    robot = load_robot("panda_robotiq")
    writer = EpisodeWriter(root / "data", fps=15, robot_type=robot.name)
    for i in range(2):
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
        "data": [{"path": str(folder / "data"), "held_out": 1}], "codec": str(folder / "codec"), "steps": 1,
        "batch_size": 2, "frames": 4, "warmup_steps": 2, "score_clips": 1, "log_every": 1, "save_every": 4,
        "cache": str(folder / "cache"), "model": model | changes.pop("model", {}),
    }  # fmt: skip
    return VideoRecipe(**given | changes)


def test_instructions_are_embedded_where_the_training_is_told_to_be(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2, "lift": 3, "cube": 4}, "<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    spoken = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=made, **spoken).save_pretrained(tmp_path / "t5" / "tokenizer")
    settings = T5Config(vocab_size=8, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    T5EncoderModel(settings).save_pretrained(tmp_path / "t5" / "text_encoder")
    mine = recipe(folder, model={"text": "t5"}, text_encoder=str(tmp_path / "t5"), cache=str(tmp_path / "cache"))
    network = build_network(mine, load_codec(mine.codec, torch.device("cpu")))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # of a machine whose card is not meant
    text_of = TextOf(network, mine, [EpisodeSet(folder / "data")], device="cpu")
    length = int(network.transformer.base.config.max_text_seq_length)
    embedded = text_of(["lift the cube", ""])
    assert embedded is not None
    assert embedded.shape == (2, length, 8)
    assert embedded.isfinite().all()
    assert not torch.equal(embedded[0], embedded[1])
    monkeypatch.undo()
    train_video(replace(mine, forcing="frames", steps=1), tmp_path / "run", device="cpu")
    world = StreamWorld.from_pretrained(tmp_path / "run" / "model")  # hears what text dropout showed
    assert isinstance(world.text, torch.Tensor)
    assert torch.equal(world.text, embedded[1:])


FORCED = """
import torch; torch.set_num_threads(1)
from dataclasses import replace
from pathlib import Path
from vap_gym.errors import CardError
from vap_gym.train.run import seeded
from vap_gym.train.video import train_video
from vap_gym.train.video_loss import FlowNoise, Inputs, objective
from vap_gym.train.video_parts import build_network, load_codec
from vap_gym.train.video_recipe import VideoRecipe

def network():
    made = build_network(mine, load_codec(mine.codec, torch.device("cpu"))).train()
    made.enable_gradient_checkpointing()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=seeded(parameter.numel()))
    return made

def loss(model, plain, rank):
    latents = torch.randn(1, 4, 4, 12, 16, generator=seeded(10 + rank))
    prompts = torch.rand(1, 4, 3, 48, 64, generator=seeded(20 + rank)) * 2 - 1
    image = plain.spread(latents[:, 0], 4)
    given = Inputs(latents=latents, image=image, weights=torch.ones(1, 4, 12, 16), conditions={"prompts": prompts})
    return objective("frames", pure_noise=0.5)(model, given, FlowNoise(), seeded(30 + rank))

if __name__ == "__main__":
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel
    dist.init_process_group("gloo")
    plain, rank = network(), dist.get_rank()
    model = DistributedDataParallel(plain, find_unused_parameters=True)
    loss(model, plain, rank).backward()
    torch.save({n: p.grad for n, p in plain.named_parameters() if p.grad is not None}, out / f"gradients{rank}.pt")
    try:
        train_video(replace(mine, forcing="rollout"), out / "never", device="cpu")
    except CardError as error:
        (out / f"refused{rank}.txt").write_text(str(error))
    train_video(mine, out / "two", device="cpu")
"""


@pytest.mark.slow
def test_two_processes_force_frames_with_the_gradients_of_both(folder: Path, tmp_path: Path) -> None:
    mine = recipe(folder, forcing="frames", steps=2, save_every=2, gradient_checkpointing=True)
    script = tmp_path / "forced.py"
    script.write_text(
        f"from pathlib import Path\nfrom vap_gym.train.video_recipe import VideoRecipe\nmine = {mine!r}\n"
        f"out = Path({str(tmp_path)!r})\n{FORCED}"
    )
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    done = subprocess.run(
        launch, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert torch.load(tmp_path / "two" / "state.pt", weights_only=False)["processes"] == 2
    assert "forcing = 'rollout' goes through" in (tmp_path / "refused1.txt").read_text()
    one, other = (torch.load(tmp_path / f"gradients{rank}.pt") for rank in (0, 1))
    here = runpy.run_path(str(script), run_name="here")
    network = here["network"]()
    (0.5 * (here["loss"](network, network, 0) + here["loss"](network, network, 1))).backward()
    alone = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    assert one["trajectory.out.weight"].any()
    for name, gradient in alone.items():
        torch.testing.assert_close(one[name], gradient, rtol=1e-3, atol=1e-5, msg=name)
        assert torch.equal(one[name], other[name]), name


def test_the_large_model_is_streamed_by_a_recipe_that_goes_on_from_the_other() -> None:
    clips, stream = (load_recipe(VideoRecipe, name) for name in ("cogvideox_5b", "cogvideox_5b_stream"))
    assert (clips.forcing, stream.forcing) == ("none", "frames")
    assert stream.settings == clips.settings
    assert stream.settings.group == 1  # 1.5 has no block-causal form
    assert stream.init == "runs/cogvideox_5b"
    assert (stream.codec, stream.text_encoder, stream.lora_rank) == (clips.codec, clips.text_encoder, clips.lora_rank)
