"""`vap-gym robot add`: a card, and a picture to check it by, from anyone's URDF."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vap_gym.drafting.draft import draft_robot, read_camera_file


def main(
    urdf: Path,
    *,
    tip: str | None = None,
    base: str | None = None,
    gripper_base: str | None = None,
    camera: Path | None = None,
    view: str | None = None,
    name: str | None = None,
    out: Path | None = None,
    replace: bool = False,
) -> dict[str, Any]:
    """Write a robot folder: robot.toml, robot.urdf with its meshes, and check.png.

    Args:
        urdf: the robot's URDF; expand xacro files first.
        tip: the link whose pose actions move. Without it: where the only arm ends.
        base: the link that becomes the base frame. Without it: the URDF's root.
        gripper_base: the link that the fingers hang on. Without it: the tip, or a link that is rigid with it.
        camera: a JSON file with K, image_size_wh and a pose (T_camera_from_base, T_base_from_camera or extrinsics), or
            a cameras.json: the picture is taken through it. Without it: from where the whole robot is seen.
        view: which camera of a cameras.json.
        name: the robot's name. Without it: the URDF's.
        out: the folder to write. Without it: robots/NAME under the working folder.
        replace: take the place of a robot's folder that is there.
    """
    through = None if camera is None else read_camera_file(camera, view)
    target = out or Path("robots") / (name or urdf.stem)
    draft = draft_robot(
        urdf, target, tip=tip, base=base, gripper_base=gripper_base, name=name, camera=through, replace=replace
    )
    card = draft.card
    fingers = ", ".join(joint.name for joint in card.gripper.joints) or "none"
    print(f"{target}: {len(card.arm_joints)} arm joints ({', '.join(card.arm_joints)}); gripper joints: {fingers}")
    for note in draft.notes:
        print(f"  note  {note}")
    print(f"Look at {draft.picture} and correct robot.toml. Then start an env from a picture of the robot:")
    print(f'  gym.make("VAP-DROID-v0", robot="{target}").reset(options={{"image": …, "state": …, "camera": …}})')
    return {
        "folder": target, "arm_joints": list(card.arm_joints), "notes": list(draft.notes), "picture": draft.picture,
        "gripper_joints": [joint.name for joint in card.gripper.joints],
    }  # fmt: skip
