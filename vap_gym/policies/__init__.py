"""Policies: what decides on actions, behind one small protocol, and adapters for those that others have made.

The names below are loaded when they are first used: what goes over the wire (`policies.wire`) needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vap_gym.policies.fit import Site, fitted, site_of
    from vap_gym.policies.http import HttpPolicy
    from vap_gym.policies.lerobot import LeRobotPolicy
    from vap_gym.policies.openpi import OpenpiPolicy
    from vap_gym.policies.protocol import Conventions, EpisodeStart, Observations, Policy, PolicyError
    from vap_gym.policies.sb3 import Sb3Policy
    from vap_gym.policies.scripted import ScriptedExpert
    from vap_gym.policies.simple import FunctionPolicy, RandomPolicy, ReplayPolicy

__all__ = [
    "Conventions",
    "EpisodeStart",
    "FunctionPolicy",
    "HttpPolicy",
    "LeRobotPolicy",
    "Observations",
    "OpenpiPolicy",
    "Policy",
    "PolicyError",
    "RandomPolicy",
    "ReplayPolicy",
    "Sb3Policy",
    "ScriptedExpert",
    "Site",
    "fitted",
    "site_of",
]

_HOME = {
    "Conventions": "protocol", "EpisodeStart": "protocol", "FunctionPolicy": "simple", "HttpPolicy": "http",
    "LeRobotPolicy": "lerobot", "Observations": "protocol", "OpenpiPolicy": "openpi", "Policy": "protocol",
    "PolicyError": "protocol", "RandomPolicy": "simple", "ReplayPolicy": "simple", "Sb3Policy": "sb3",
    "ScriptedExpert": "scripted", "Site": "fit", "fitted": "fit", "site_of": "fit",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Load a public name from its module when it is first asked for."""
    if name not in _HOME:
        raise AttributeError(f"module 'vap_gym.policies' has no attribute '{name}'. It has: {', '.join(__all__)}.")
    return getattr(import_module(f"vap_gym.policies.{_HOME[name]}"), name)
