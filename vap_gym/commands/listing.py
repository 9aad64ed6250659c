"""`vap-gym list`, `robots` and `envs`: what there is to choose from."""

from __future__ import annotations

import json
from typing import Any

from vap_gym.assets import weights_dir
from vap_gym.cards import known_envs, known_robots, load_env, load_robot
from vap_gym.registry import oracle_id

MODEL_INDEX = "model_index.json"  # a folder of weights has one


def everything() -> dict[str, Any]:
    """List robots; envs with the id of their oracle, tasks, action modes, views and rate; world models and judges.

    All names can be given where one is asked for: gym.make("VAP-RT1-v0", task="push", views=["wrist"]), or
    vap-gym rollout VAP-RT1-v0 --task push. To --robot, --world-model and --judge, folders of yours can be given too.
    """
    print("robots")
    found_robots = robots()
    print("\nenvs, each with its oracle: the simulator in the place of the world model")
    found_envs = [env_facts(name) for name in known_envs()]
    for env in found_envs:
        width, height = env["frame_size_px"]
        print(f"{env['id']}, oracle {env['oracle']}: {env['robot']}, {env['fps']:g} Hz, {width}x{height} px")
        print(f"  tasks    {', '.join(env['tasks'])} (by default {env['task']})")
        print(f"  actions  {', '.join(env['action_modes'])} (by default {env['action_mode']})")
        print(f"  views    front, {', '.join(env['views'])}")
    print("\nworld models")
    models = [model_facts(path.parent.name) for path in sorted(weights_dir().glob(f"*/{MODEL_INDEX}"))]
    for model in models:
        also = "; also a judge: --judge " + model["name"] if model["judge"] else ""
        print(f"{model['name']}: {', '.join(model['parts'])}; {model['size_mb']:.0f} MB{also}")
    return {"robots": found_robots, "envs": found_envs, "world_models": models}


def robots() -> list[dict[str, Any]]:
    """List the robots: name, joints, gripper, action modes."""
    found = []
    for name in known_robots():
        card = load_robot(name)
        modes = ", ".join(card.action_modes)
        print(f"{name:<16} {len(card.arm_joints)} joints, {card.gripper.kind} gripper; {modes}")
        found.append(
            {
                "name": name, "joints": list(card.arm_joints), "gripper": card.gripper.kind,
                "action_modes": list(card.action_modes), "description": card.description,
            }
        )  # fmt: skip
    return found


def envs() -> list[dict[str, Any]]:
    """List the environments: id, robot, task, world model, frame size."""
    found = []
    for name in known_envs():
        card = load_env(name)
        width, height = card.frame_size_px
        print(f"{name:<24} {card.robot}, task {card.task}, {card.world_model}, {width}x{height} px at {card.fps:g} fps")
        found.append(env_facts(name))
    return found


def env_facts(name: str) -> dict[str, Any]:
    """Return what there is to know of a shipped env before it is made."""
    from vap_gym.loading import load_starts

    card = load_env(name)
    return {
        "id": name, "oracle": oracle_id(name), "robot": card.robot, "task": card.task,
        "tasks": list(load_starts(name, None).tasks()), "action_mode": card.action_mode,
        "action_modes": list(load_robot(card.robot).action_modes), "views": [view.name for view in card.views],
        "fps": card.fps, "frame_size_px": list(card.frame_size_px), "max_episode_steps": card.max_episode_steps,
        "world_model": card.world_model, "description": card.description,
    }  # fmt: skip


def model_facts(name: str) -> dict[str, Any]:
    """Return what a shipped folder of weights holds."""
    folder = weights_dir() / name
    index = json.loads((folder / MODEL_INDEX).read_text(encoding="utf-8"))
    parts = list(index["sha256"])
    files = folder.rglob("*.safetensors")
    return {
        "name": name, "kind": index["_class_name"], "parts": [part for part in parts if part != "judge"],
        "judge": "judge" in parts, "size_mb": round(sum(path.stat().st_size for path in files) / 1e6, 1),
    }  # fmt: skip
