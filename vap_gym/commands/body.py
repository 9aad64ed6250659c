"""`vap-gym body`: the surface of a robot as points."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from vap_gym.cards import load_robot
from vap_gym.data.layout import replacing
from vap_gym.prompts.body import sampled_body


def main(robot: str, *, out: Path | None = None) -> dict[str, Any]:
    """Sample the visual geometry of a robot's URDF and write it as the body that its card can name.

    Args:
        robot: a shipped robot, or the path of a folder with a robot.toml.
        out: the file to write; body.npz beside the robot's card if none is given.
    """
    card = load_robot(robot)
    target = out or card.folder / "body.npz"
    body = sampled_body(card)
    with replacing(target) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **body)  # type: ignore[arg-type]
    print(
        f'{target}: {len(body["points_m"]):,} points on {len(body["links"])} links. In the card: body = "{target.name}"'
    )
    return {"written": target, "points": len(body["points_m"]), "links": [str(link) for link in body["links"]]}
