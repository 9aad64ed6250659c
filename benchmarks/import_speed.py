"""How fast DROID-style episodes are imported: three views of 320x192 H.264 and a log; a step of all three is one frame.

`python benchmarks/import_speed.py` imports the real episodes where they are ($VAP_SHARED_DATA, or ../shared/data) and
as many made ones, each three times, and prints the fastest: run it on an idle machine.
"""

import json
import os
import tempfile
import time
from pathlib import Path

import av
import numpy as np

from vap_gym.data.importing.kinds import open_source
from vap_gym.data.importing.run import Doubts, import_source
from vap_gym.data.importing.source import Options

EPISODES, STEPS, RUNS = 9, 100, 3


def make_episodes(root: Path) -> None:
    """Write episodes like those of DROID: a noisy room with something moving, x264 with B-frames, a 15 Hz log."""
    rng = np.random.default_rng(0)
    for i in range(EPISODES):
        folder = root / f"episode_{i}"
        folder.mkdir(parents=True)
        rows = {"joint_position": 7, "cartesian_position": 6, "action_joint_position": 7, "action_joint_velocity": 7}
        log = {name: rng.normal(size=(STEPS, width)) for name, width in rows.items()}
        log |= {name: rng.random(STEPS) for name in ("gripper_position", "action_gripper_position")}
        np.savez(folder / "log.npz", **log, frame_to_row=np.arange(STEPS))
        (folder / "episode.json").write_text(json.dumps({"instruction": "made", "log_rate_hz": 15.0}))
        for view in range(3):
            room = rng.integers(0, 256, (12, 20, 3)).repeat(16, 0).repeat(16, 1)
            with av.open(str(folder / f"cam{view}.mp4"), "w") as out:
                stream = out.add_stream("libx264", rate=15, options={"preset": "veryfast"})
                stream.width, stream.height, stream.pix_fmt = 320, 192, "yuv420p"
                for t in range(STEPS):
                    picture = (room + rng.normal(0, 4, room.shape)).clip(0, 255).astype(np.uint8)
                    picture[60:110, 2 * t : 2 * t + 50] = (220, 60, 60)
                    out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
                out.mux(stream.encode(None))


def measure(name: str, path: Path, doubts: Doubts) -> None:
    """Import a folder a few times and print the fastest."""
    fastest, frames = np.inf, 0
    for _ in range(RUNS):
        with tempfile.TemporaryDirectory() as folder:
            source = open_source("droid", path, Options())
            began = time.perf_counter()
            report = import_source(source, path, Path(folder) / "set", doubts=doubts)
            fastest, frames = min(fastest, time.perf_counter() - began), report.frames
            assert not report.failed
    size = sum(file.stat().st_size for file in path.rglob("*.mp4")) / 1e6
    print(f"{name}: {frames} frames of 3 views, {size:.1f} MB, {fastest:.2f} s: {frames / fastest:.0f} frames/s")


def main() -> None:
    """Import made and, where they are, real episodes."""
    with tempfile.TemporaryDirectory() as folder:
        make_episodes(Path(folder) / "in")
        measure("made episodes", Path(folder) / "in", Doubts())
    shared = Path(os.environ.get("VAP_SHARED_DATA") or Path(__file__).resolve().parents[2] / "shared/data")
    if (shared / "droid").is_dir():
        measure("real episodes", shared / "droid", Doubts(fps=5))


if __name__ == "__main__":
    main()
