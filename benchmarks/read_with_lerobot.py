"""A set of ours, read by the real LeRobot, compared frame by frame with our own reading of it.

Run it in an environment of LeRobot's (docs/lerobot.md): `PYTHONPATH=. python benchmarks/read_with_lerobot.py SET`
"""

import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import torch

from vap_gym.data import EpisodeSet

try:
    import_module("torchvision")
except RuntimeError:
    # The wheel of torchvision has CUDA operators; beside a CPU build of torch it only wants them to have a name.
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]


def main(root: Path) -> None:
    """Compare pictures, numbers, tasks and indices of every frame; raises AssertionError where they differ."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    theirs = LeRobotDataset(f"local/{root.name}", root=root, video_backend="pyav")
    ours = EpisodeSet(root)
    assert (theirs.meta.total_episodes, theirs.fps) == (len(ours), ours.fps)
    worst_level, worst_number, row = 0.0, 0.0, 0
    for i, episode in enumerate(ours):
        for t in range(len(episode)):
            item = theirs[row]
            assert (int(item["episode_index"]), int(item["frame_index"]), item["task"]) == (i, t, episode.task)
            for view, frames in episode.frames.items():
                picture = item[f"observation.images.{view}"].permute(1, 2, 0).numpy() * 255
                worst_level = max(worst_level, float(np.abs(picture - frames[t]).max()))
            for name, values in episode.columns.items():
                error = np.abs(item[name].numpy().reshape(-1) - values[t].astype(np.float32).reshape(-1).astype(float))
                worst_number = max(worst_number, float(np.nan_to_num(error).max()))
            row += 1
    assert row == len(theirs)
    print(
        f"{root}: {len(ours)} episodes, {row} frames; pictures differ by at most {worst_level:.3f} of 255, "
        f"numbers by {worst_number:.3g}"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
