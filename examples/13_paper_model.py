"""The paper's model, at a size that a laptop trains in seconds: clips from prompts, and the same weights in an env.

    python examples/13_paper_model.py --out out/paper_model

1. One clip to learn from, with its prompts: here imagined by the shipped `tiny`, which is another kind of model.
2. A small CogVideoX with a trajectory encoder, ControlNet and merge (`preset`), in its causal form, with tiny's codec.
3. A few steps of training: every frame has a noise level of its own, after a clean past.
4. A whole clip from the first frame and prompts.
5. Its folder as the world model of an env, frame by frame; the env draws the prompts that the folder says it knows.

It learns this one clip by heart, and that not well: it shows how, not how good. `vap-gym train video` trains for good,
and docs/video.md tells how CogVideoX-5B's own weights are loaded.
"""

from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
import tyro

import vap_gym
from vap_gym.pictures import sheet, spread, write_png
from vap_gym.train.video_forcing import forcing_loss
from vap_gym.video.causal import CausalVideoNetwork
from vap_gym.video.clips import prompt_pictures
from vap_gym.video.model import VideoModel
from vap_gym.video.presets import VideoConfig, preset


def small_settings() -> VideoConfig:
    """The preset "tiny" with a third of its layers and half of its widths."""
    smaller = {"num_attention_heads": 1, "num_layers": 2, "in_channels": 64, "out_channels": 64}
    base = {**preset("tiny").base_config, **smaller}
    return preset("tiny", base_config=base, stem_width=32, control_layers=1)


def main(out: Path = Path("out/paper_model"), frames: int = 9, steps: int = 20, seed: int = 1) -> None:
    """Write the model's folder, and a picture of what it imagines.

    Args:
        out: folder to write to.
        frames: of the clip.
        steps: of the training.
        seed: of everything.
    """
    # 1. Frames and prompts of a clip: its first frame is a start's.
    env = gym.make("VAP-DROID-v0", task="reach")
    actions = np.random.default_rng(seed).uniform(-0.6, 0.6, 7).astype(np.float32)
    frame, info = env.reset(seed=seed)
    seen, prompts = [np.asarray(frame)], [info["prompt"]]
    for _ in range(frames - 1):
        frame, *_, info = env.step(actions)
        seen.append(np.asarray(frame))
        prompts.append(info["prompt"])
    truth, told = (torch.from_numpy(np.stack(x))[None] for x in (seen, prompts))

    # 2. Random weights; untrained, its branches are zero and it imagines the first frame standing still.
    tiny = vap_gym.load_world_model("tiny")
    assert isinstance(tiny, vap_gym.WorldModel)
    torch.manual_seed(seed)
    network = CausalVideoNetwork(**small_settings().to_dict())
    model = VideoModel(network, tiny.codec, dtype=torch.float32)
    print(
        f"{sum(p.numel() for p in network.parameters()) / 1e6:.1f} M parameters, condition {model.settings.condition}"
    )

    # 3. `vap-gym train video` does this on data sets, with much around it (docs/training.md).
    latents = model.encode(truth)
    pictures = prompt_pictures(told, model.settings.prompt_channels)
    optimiser, rng = torch.optim.AdamW(network.train().parameters(), lr=2e-3), torch.Generator().manual_seed(seed)
    losses = []
    for _ in range(steps):
        optimiser.zero_grad()
        loss = forcing_loss(network, latents, prompts=pictures, rng=rng, pure_noise=0.8)
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    network.eval()
    print(f"loss {np.mean(losses[:3]):.4f} at first, {np.mean(losses[-3:]):.4f} at last")

    # 4. All frames at once.
    clip = model.generate(truth[:, 0], told, seed=seed)

    # 5. One by one. Any folder of the family does: one of whole clips makes a step of the env a clip of actions.
    model.save_pretrained(out / "model")
    streamed = gym.make("VAP-DROID-v0", task="reach", world_model=out / "model", judge=None)
    frame, info = streamed.reset(seed=seed)
    print(f"the env draws the same prompts: {np.array_equal(info['prompt'], prompts[0])}")
    made = [np.asarray(frame)] + [np.asarray(streamed.step(actions)[0]) for _ in range(frames - 1)]

    shown = spread(5, frames)
    rows = {"learned from": seen, "prompt": prompts, "whole clip": list(clip[0].numpy()), "streamed": made}
    write_png(
        out / "frames.png",
        sheet(
            [[row[t] for t in shown] for row in rows.values()],
            scale=1.5,
            columns=[f"step {t}" for t in shown],
            labels=list(rows),
            title=f"A small CogVideoX with prompts, after {steps} steps on one clip",
        ),
    )
    print(f"{out / 'frames.png'}: {frames} frames, at once and one by one")


if __name__ == "__main__":
    tyro.cli(main)
