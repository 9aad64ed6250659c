"""Drafting a robot's card from any URDF: what is arm and what gripper, a home pose, a skeleton, a picture to check."""

from vap_gym.drafting.draft import Draft, draft_robot

__all__ = ["Draft", "draft_robot"]
