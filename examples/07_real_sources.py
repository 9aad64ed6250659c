"""Real recordings, one command each: import, draw the prompts over the frames, measure, and print the table.

One folder holds them: droid/, bridge_widowx/, rt1_google_robot/, franka_eyehand/, hands/, generated_vs_real/. What is
made (data sets, mp4s, contact sheets, table.md) goes to a folder of its own for each. Look at the sheets first.

    python examples/07_real_sources.py droid --data ../shared/data --out out/real_sources
    python examples/07_real_sources.py all
"""

import io
import time
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Literal

import tyro
from tyro.conf import Positional

from vap_gym.commands.calibrate import read_samples
from vap_gym.commands.recover_hand_pictures import main as import_pictures
from vap_gym.data import EpisodeSet
from vap_gym.evaluate import report
from vap_gym.evaluate.real_sources import TABLE, fresh_folder
from vap_gym.evaluate.real_sources_arms import show_bridge, show_rt1
from vap_gym.evaluate.real_sources_clips import show_generated
from vap_gym.evaluate.real_sources_droid import show_droid
from vap_gym.evaluate.real_sources_eyehand import show_eye_hand
from vap_gym.evaluate.real_sources_hands import show_hands

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"  # beside the repository


def eye_hand(data: Path, out: Path) -> str:
    """Three cameras from the marker on a Franka's hand (`vap-gym calibrate marker`), then overlays of all pictures."""
    folder = data / "franka_eyehand" / "world_cams_20poses"
    T_base_hand, pixels, lenses, images = read_samples(folder / "samples.json")
    return show_eye_hand(folder, out, T_base_hand=T_base_hand, pixels=pixels, lenses=lenses, images=images)


def hands(data: Path, out: Path) -> str:
    """Two collections of annotated hands (`vap-gym recover hand-pictures`), then a check of what was written."""
    tables = []
    for kind in ("interhand2.6m", "onehand10k"):
        with redirect_stdout(io.StringIO()):  # its table is in the one below
            import_pictures(data / "hands" / kind, out / f"set_{kind}")
        tables.append(show_hands(data / "hands" / kind, EpisodeSet(out / f"set_{kind}"), out))
    return "\n\n".join(tables)


SOURCES: Mapping[str, Callable[[Path, Path], str]] = {
    "droid": lambda data, out: show_droid(data / "droid", out),
    "bridge": lambda data, out: show_bridge(data / "bridge_widowx", out),
    "rt1": lambda data, out: show_rt1(data / "rt1_google_robot", out),
    "eyehand": eye_hand,
    "hands": hands,
    "generated_vs_real": lambda data, out: show_generated(data / "generated_vs_real", out),
}


def main(
    source: Positional[Literal["droid", "bridge", "rt1", "eyehand", "hands", "generated_vs_real", "all"]],
    data: Path = DATA,
    out: Path = Path("out/real_sources"),
) -> None:
    """Show one source of real recordings, or all.

    Args:
        source: which one.
        data: folder of the recordings.
        out: folder to write to; each source has its own in it, which is written anew.
    """
    if not data.is_dir():
        raise SystemExit(f"--data must be the folder of the recordings, '{data}' is none. Name it: --data PATH")
    for name in SOURCES if source == "all" else (source,):
        began = time.perf_counter()
        with fresh_folder(out / name) as folder:
            text = SOURCES[name](data, folder)
            seconds = time.perf_counter() - began
            page = f"## {name}\n\n{text}\n\n{report.stamp()} Took {seconds:.0f} s."
            report.write(folder / TABLE, page)
        pictures = [path.relative_to(out / name).as_posix() for path in sorted((out / name).rglob("*.png"))]
        print(f"{page}\n\nlook at {out / name}: {', '.join(pictures)}\n")


if __name__ == "__main__":
    tyro.cli(main)
