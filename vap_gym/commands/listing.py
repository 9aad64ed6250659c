"""`vap-gym robots` and `vap-gym envs`: what there is to choose from, one line each."""

from vap_gym.cards import known_envs, known_robots, load_env, load_robot


def robots() -> None:
    """List the robots: name, joints, gripper, action modes."""
    for name in known_robots():
        card = load_robot(name)
        modes = ", ".join(card.action_modes)
        print(f"{name:<16} {len(card.arm_joints)} joints, {card.gripper.kind} gripper; {modes}")


def envs() -> None:
    """List the environments: id, robot, task, world model, frame size."""
    for name in known_envs():
        card = load_env(name)
        width, height = card.frame_size_px
        print(f"{name:<24} {card.robot}, task {card.task}, {card.world_model}, {width}x{height} px at {card.fps:g} fps")
