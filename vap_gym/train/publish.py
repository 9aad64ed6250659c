"""Gather trained parts into one model folder with a card: weights, figures, data, hours, sha256."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from vap_gym.errors import VapError
from vap_gym.judge import Judge, JudgeNetwork
from vap_gym.world.model import INDEX, PARTS, WorldModel

CARD = "README.md"


def main(
    out: Path,
    *,
    codec: Path = Path("runs/codec"),
    world: Path = Path("runs/world"),
    appearance: Path = Path("runs/appearance"),
    things: Path = Path("runs/things"),
    motion: Path = Path("runs/motion"),
    judge: Path = Path("runs/judge"),
    data: str = "",
    evaluations: int = 1,
) -> dict[str, Any]:
    """Write a model folder: its parts as float16 safetensors, an index with sha256, and a model card.

    Args:
        out: the folder to write, e.g. vap_gym/weights/tiny.
        codec, world, appearance, things, motion, judge: folders of runs, or of a published model whose part is kept.
        data: a sentence on the training data for the card.
        evaluations: network evaluations per frame that the model shall use by default.
    """
    runs = {"codec": codec, "dynamics": world, "appearance": appearance, "things": things, "motion": motion}
    runs["judge"] = judge
    kept = {name: _kept_row(name, run) for name, run in runs.items() if (run / INDEX).is_file()}
    folders = {name: run / (name if name in kept else "model") for name, run in runs.items()}
    parts = {name: kind.from_pretrained(folders[name], torch_dtype=torch.float32) for name, kind in PARTS.items()}
    network = JudgeNetwork.from_pretrained(folders["judge"], torch_dtype=torch.float32)
    model = WorldModel(**parts, evaluations=evaluations)
    model.save_pretrained(out)
    Judge(network, model.codec).save_into(out)
    index = json.loads((out / INDEX).read_text(encoding="utf-8"))
    rows = [kept.get(name) or _row(name, run, index["sha256"][name]) for name, run in runs.items()]
    card = _card(out.name, rows, data, model)
    temporary = out / f".{CARD}.tmp"
    temporary.write_text(card, encoding="utf-8")
    temporary.replace(out / CARD)
    print(f"Wrote {out}.")
    return {"out": out, "evaluations": evaluations, "sha256": index["sha256"]}


def _row(name: str, run: Path, sha256: str) -> dict[str, Any]:
    """What one run's log tells: steps, samples, hours, its last scores."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    recipe = torch.load(run / "state.pt", map_location="cpu", weights_only=False)["recipe"]
    scores = [line for line in lines if "loss" not in line][-1]
    hours, before = 0.0, 0.0
    for line in lines:  # the clock starts anew where a run was resumed
        hours += max(line["seconds"] - before, 0.0) if line["seconds"] >= before else line["seconds"]
        before = line["seconds"]
    figures = ", ".join(f"{k} {v:.2f}" for k, v in scores.items() if k not in ("step", "seconds"))
    samples = lines[-1]["step"] * recipe["batch_size"]
    return {"part": name, "samples": samples, "hours": hours / 3600, "scores": figures, "sha256": sha256}


def _kept_row(name: str, folder: Path) -> dict[str, Any]:
    """What a published model's card says of a part of it."""
    for line in (folder / CARD).read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if cells[0] == name and len(cells) == 5:
            samples, hours = int(cells[1].replace(",", "")), float(cells[2])
            return {"part": name, "samples": samples, "hours": hours, "scores": cells[3], "sha256": cells[4].strip("`")}
    raise VapError(f"The card '{folder / CARD}' has no row for '{name}'. Give the folder of a run, or of a model.")


def _card(name: str, rows: list[dict[str, Any]], data: str, model: WorldModel) -> str:
    size, (width, height) = sum(p.numel() for p in model.dynamics.parameters()) / 1e6, model.frame_size_px
    parts = "\n".join(
        f"| {r['part']} | {r['samples']:,} | {r['hours']:.2f} | {r['scores']} | `{r['sha256']}` |" for r in rows
    )
    return f"""# Model card: `{name}`

Action-to-video world model after "Precise Action-to-Video Generation Through Visual Action Prompts" (arXiv 2508.13104):
a frame codec (4× down, 8 channels), dynamics of {size:.1f} M parameters (convolutions around a CogVideoX transformer
with trajectory encoder, ControlNet branch and main-branch merge), what its robots ({", ".join(model.robots)}) look like
(colours of their surfaces, and a network that tells their pixels from others), a finder of things in the first picture,
a recurrent network that says how they move when a gripper touches them, and a judge that reads gripper and objects.
{height}×{width} pixels, one frame per control step, skeleton prompts of nominal states.

- **Data:** {data or "PyBullet oracle episodes (`vap-gym data generate`)."} No real pictures.
- **Made with:** the recipes in `vap_gym/train/recipes`; each part's last scores on its own held-out data stand below.
  What the whole is worth on the held-out episodes is in `docs/fidelity.md`.
- **Use:** planning, evaluation and training *in simulation-like scenes*. Real photographs are outside what it has seen.
- **Licence:** Apache-2.0, as the code.

| part | samples seen | hours by the clock (CPU) | scores while training | sha256 of the weights |
|---|---|---|---|---|
{parts}
"""
