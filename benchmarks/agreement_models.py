"""World models of other qualities, for the trust-region curve of benchmarks/agreement.py.

    python benchmarks/agreement_models.py                     # goes on where it was stopped
    python benchmarks/agreement.py --keep --parts models --checkpoints $(cat out/agreement/models/checkpoints.txt)

Each is the shipped model but for how things move: that network is trained anew, for a few steps only and from the
recordings of one robot (benchmarks/agreement_motion.toml). Codec, pictures and judge are the shipped ones, so that what
differs is what verdicts rest on.
"""

from __future__ import annotations

import re
from pathlib import Path

import tyro

from vap_gym.assets import weights_dir
from vap_gym.errors import VapError
from vap_gym.train import motion, publish
from vap_gym.train.run import recipes_dir
from vap_gym.world.model import INDEX


def main(
    out: Path = Path("out/agreement/models"), *, steps: tuple[int, ...] = (25, 80, 250, 800),
    recipe: str = "benchmarks/agreement_motion.toml", model: str = "tiny", threads: int = 1,
) -> list[str]:  # fmt: skip
    """Train and publish what is not there yet; write checkpoints.txt, which benchmarks/agreement.py takes.

    Args:
        out: folder of the models, and of their trainings.
        steps: of each model's training.
        recipe: of motion: a shipped name or a TOML file.
        model: the shipped model whose other parts they have.
        threads: CPU threads.
    """
    if not steps or min(steps) < 1 or len(set(steps)) < len(steps):
        raise VapError(f"steps must be numbers of at least 1, each once, got {steps}. Try --steps 25 80 250 800.")
    path = Path(recipe) if recipe.endswith(".toml") else recipes_dir() / f"{recipe}.toml"
    text = path.read_text(encoding="utf-8")
    own, named = weights_dir() / model, []
    for count in steps:
        folder, run = out / f"after_{count}", out / "runs" / str(count)
        if not (folder / INDEX).is_file():
            out.mkdir(parents=True, exist_ok=True)
            short = out / f"after_{count}.toml"
            short.write_text(re.sub(r"(?m)^steps = .*$", f"steps = {count}", text), encoding="utf-8")
            motion.main(short, out=run, resume=run.exists(), threads=threads)
            publish.main(folder, codec=own, world=own, appearance=own, things=own, judge=own, motion=run)
        named.append(f"after-{count}={folder}")
    (out / "checkpoints.txt").write_text(" ".join(named) + "\n", encoding="utf-8")
    print(f"--checkpoints {' '.join(named)}")
    return named


if __name__ == "__main__":
    tyro.cli(main)
