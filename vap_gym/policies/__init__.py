"""Policies: what decides on actions, behind one small protocol, and adapters for those that others have made."""

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
