"""`vap-gym mesh`: the surface of a robot as few triangles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from vap_gym.cards import load_robot
from vap_gym.data.layout import replacing
from vap_gym.prompts.simplified import simplified_mesh


def main(robot: str, *, out: Path | None = None) -> dict[str, Any]:
    """Simplify the visual geometry of a robot's URDF and write it as the mesh that its card can name.

    Args:
        robot: a shipped robot, or the path of a folder with a robot.toml.
        out: the file to write; mesh.npz beside the robot's card if none is given.
    """
    card = load_robot(robot)
    target = out or card.folder / "mesh.npz"
    mesh = simplified_mesh(card)
    with replacing(target) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **mesh)  # type: ignore[arg-type]
    print(
        f'{target}: {len(mesh["faces"]):,} triangles on {len(mesh["links"])} links. In the card: mesh = "{target.name}"'
    )
    return {"written": target, "triangles": len(mesh["faces"]), "links": [str(link) for link in mesh["links"]]}
