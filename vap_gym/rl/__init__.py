"""Training agents in imagination: vector envs for SB3 and TorchRL, short episodes from data, and a trainer.

Names are loaded when they are first used: SB3 and TorchRL take seconds to import, and TorchRL is an extra.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vap_gym.rl.clone import clone_agent
    from vap_gym.rl.imagined import ImaginedThings
    from vap_gym.rl.moments import moments_of
    from vap_gym.rl.pictured import PicturedThings
    from vap_gym.rl.sb3 import Sb3VecEnv
    from vap_gym.rl.settings import RlSettings
    from vap_gym.rl.short import ShortVectorEnv
    from vap_gym.rl.simulated import SimulatedThings
    from vap_gym.rl.steady import Steady
    from vap_gym.rl.things_env import ThingVectorEnv
    from vap_gym.rl.torchrl_env import TorchRLEnv
    from vap_gym.rl.train import train_agent

_HOME = {
    "ImaginedThings": "imagined", "PicturedThings": "pictured", "RlSettings": "settings", "Sb3VecEnv": "sb3",
    "ShortVectorEnv": "short", "SimulatedThings": "simulated", "Steady": "steady", "ThingVectorEnv": "things_env",
    "TorchRLEnv": "torchrl_env", "clone_agent": "clone", "moments_of": "moments", "train_agent": "train",
}  # fmt: skip

__all__ = [
    "ImaginedThings", "PicturedThings", "RlSettings", "Sb3VecEnv", "ShortVectorEnv", "SimulatedThings", "Steady",
    "ThingVectorEnv", "TorchRLEnv", "clone_agent", "moments_of", "train_agent",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Load a public name from its module when it is first asked for."""
    if name not in _HOME:
        raise AttributeError(f"module 'vap_gym.rl' has no attribute '{name}'. It has: {', '.join(__all__)}.")
    return getattr(import_module(f"vap_gym.rl.{_HOME[name]}"), name)
