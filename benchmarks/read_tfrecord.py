"""How fast TFRecord files are read and RLDS episodes imported, without TensorFlow; least of some repeats.

Writes a set like DROID's (three views of 320×180 JPEG, states and actions) into a temporary folder:
`python benchmarks/read_tfrecord.py`
"""

import io
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vap_gym.data.importing.crc32c import crc32c
from vap_gym.data.importing.example import Value, encode_example, parse_example
from vap_gym.data.importing.kinds import open_source
from vap_gym.data.importing.run import import_source
from vap_gym.data.importing.source import Options
from vap_gym.data.importing.tfrecord import read_records, write_records

EPISODES, STEPS, REPEATS = 4, 250, 3
VIEWS = ("exterior_image_1_left", "exterior_image_2_left", "wrist_image_left")
WIDTHS = {
    "observation/cartesian_position": 6,
    "observation/joint_position": 7,
    "observation/gripper_position": 1,
    "action": 7,
}


def main() -> None:
    """Write the set, time it, print the figures."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        shard = write_set(folder)
        megabytes = shard.stat().st_size / 1e6
        data = np.random.default_rng(0).bytes(16 << 20)
        print(f"checksum                 {16 * 1.048576 / least(lambda: crc32c(data)):8.0f} MB/s")
        for name, check in (("checked", True), ("unchecked", False)):
            seconds = least(lambda check=check: [parse_example(r.data) for r in read_records(shard, check=check)])
            print(f"records parsed, {name:<9}{megabytes / seconds:8.0f} MB/s")
        source = open_source("rlds-droid", folder, Options())
        outs = iter(folder / f"set{i}" for i in range(REPEATS))
        seconds = least(lambda: import_source(source, folder, next(outs)))
        frames = EPISODES * STEPS
        print(f"imported                 {frames / seconds:8.0f} steps/s of {len(VIEWS)} pictures")


def least(work: Callable[[], object]) -> float:
    """The least of the seconds that some repeats take."""
    taken = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return min(taken)


def write_set(folder: Path) -> Path:
    """Write a set of the features that the importer asks for, in one shard."""
    rng = np.random.default_rng(0)
    ground = np.asarray(Image.fromarray(rng.integers(0, 256, (12, 20, 3), np.uint8)).resize((320, 180)))
    pictures = []
    for i in range(STEPS):
        file = io.BytesIO()
        Image.fromarray(np.roll(ground, i, axis=1)).save(file, "JPEG")
        pictures.append(file.getvalue())
    example: dict[str, Value] = {f"steps/observation/{view}": pictures for view in VIEWS}
    example |= {f"steps/{key}": rng.uniform(0, 0.5, STEPS * n).astype(np.float32) for key, n in WIDTHS.items()}
    example["steps/language_instruction"] = [b"put it away"] * STEPS
    picture = {"image": {"shape": {"dimensions": ["180", "320", "3"]}, "dtype": "uint8"}}
    observation: dict[str, Any] = dict.fromkeys(VIEWS, picture)
    observation |= {key.split("/")[1]: tensor(n) for key, n in WIDTHS.items() if "/" in key}
    step = {"observation": features(observation), "action": tensor(7), "language_instruction": {"text": {}}}
    steps = {"sequence": {"feature": features(step)}}
    (folder / "features.json").write_text(json.dumps(features({"steps": steps})))
    write_records(folder / "droid-train.tfrecord-00000-of-00001", [encode_example(example)] * EPISODES)
    return folder / "droid-train.tfrecord-00000-of-00001"


def features(inner: Mapping[str, Any]) -> dict[str, Any]:
    """A FeaturesDict as features.json has it."""
    return {"featuresDict": {"features": dict(inner)}}


def tensor(width: int) -> dict[str, Any]:
    """A float64 vector as features.json has it."""
    return {"tensor": {"shape": {"dimensions": [str(width)]}, "dtype": "float64", "encoding": "none"}}


if __name__ == "__main__":
    main()
