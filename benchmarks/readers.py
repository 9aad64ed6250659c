"""How well finder and judge read true frames of each robot's scenes: python benchmarks/readers.py --help"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from vap_gym.judge import JudgeNetwork
from vap_gym.train import judge as judge_training
from vap_gym.train import things as things_training
from vap_gym.train.judge_data import load_truths
from vap_gym.train.run import autocast
from vap_gym.train.things_data import load_scenes, scored
from vap_gym.world.codec import FrameCodec
from vap_gym.world.things import ThingFinder

SETS = tuple(f"data/{prefix}{kind}" for prefix in ("", "first_") for kind in ("droid", "rt1", "bridge", "hand"))


def main() -> None:
    """Print one line of figures for each robot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--things", type=Path, help="folder of a finder")
    parser.add_argument("--judge", type=Path, help="folder of a judge")
    parser.add_argument("--codec", type=Path, default=Path("vap_gym/weights/tiny/codec"), help="that the judge reads")
    parser.add_argument("--data", nargs="*", type=Path, default=[Path(name) for name in SETS])
    parser.add_argument("--episodes", type=int, default=0, help="the first so many of each set; one in ten is scored")
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.things is not None:
        finder = ThingFinder.from_pretrained(given.things, torch_dtype=torch.float32).eval()
        scenes, robots = load_scenes(
            given.data, every=given.every, view="front", episodes=given.episodes, only_held_out=True
        )
        scenes = scenes.pick(scored(scenes.robot, scenes.held_out, len(scenes)))
        for surface in (False, True):
            told = "its surface" if surface else "its own pixels"
            print(f"finder, the robot told by {told}; {len(scenes)} frames, {_ms_finder(finder):.2f} ms a picture")
            _print(things_training.score(finder, scenes, robots, surface=surface), robots)
    if given.judge is not None:
        network = JudgeNetwork.from_pretrained(given.judge, torch_dtype=torch.float32).eval()
        codec = FrameCodec.from_pretrained(given.codec, torch_dtype=torch.float32).eval()
        truths, robots = load_truths(
            given.data, codec, every=given.every, view="front", episodes=given.episodes, only_held_out=True
        )
        truths = truths.pick(scored(truths.robot, truths.held_out, len(truths)))
        print(f"judge; {len(truths)} frames, {_ms_judge(network):.2f} ms a latent")
        _print(judge_training.score(network, truths, robots), robots)


def _print(figures: dict[str, float], robots: tuple[str, ...]) -> None:
    for robot in ("", *(f"_{name}" for name in robots)):
        mine = {k.removesuffix(robot): v for k, v in figures.items() if k.endswith(robot)}
        if not robot:
            mine = {k: v for k, v in mine.items() if not any(k.endswith(f"_{name}") for name in robots)}
        print(f"  {robot.removeprefix('_') or 'all':14s}", " ".join(f"{k} {v:.3f}" for k, v in mine.items()))


@torch.no_grad()
def _ms_finder(finder: ThingFinder, batch: int = 16) -> float:
    given = (torch.rand(batch, 3, 96, 144), torch.zeros(batch, 1, 96, 144), torch.eye(3, 4).expand(batch, 1, 3, 4))
    with autocast(torch.device("cpu")):
        return 1e3 * min(_seconds(lambda: finder(*given)) for _ in range(10)) / batch


@torch.no_grad()
def _ms_judge(network: JudgeNetwork, batch: int = 64) -> float:
    latents = torch.rand(batch, int(network.config["latent_channels"]), 24, 36).contiguous(
        memory_format=torch.channels_last
    )
    with autocast(torch.device("cpu")):
        return 1e3 * min(_seconds(lambda: network(latents)) for _ in range(10)) / batch


def _seconds(call: object) -> float:
    began = time.process_time()  # others may be computing as well
    call()  # type: ignore[operator]
    return time.process_time() - began


if __name__ == "__main__":
    main()
