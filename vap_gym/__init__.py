"""vap-gym: Gymnasium envs whose simulator is a learned video model, prompted with rendered robot motion.

`import vap_gym` registers one id per env card (`VAP-DROID-v0`, …) and its oracle (`VAP-DROID-Oracle-v0`). It imports no
torch: the names below are loaded when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vap_gym.cards import known_envs, known_robots, load_env, load_robot
from vap_gym.errors import VapError
from vap_gym.registry import register_env, register_envs

if TYPE_CHECKING:
    from vap_gym.env import VapEnv
    from vap_gym.evaluate.agreement_reports import agreement
    from vap_gym.evaluate.policies import evaluate_policies as evaluate
    from vap_gym.evaluate.policies import evaluate_policies as evaluate_policies
    from vap_gym.geometry import Camera
    from vap_gym.imagine import Imagination, read_state, write_state
    from vap_gym.judge import Judge
    from vap_gym.kinematics import Controller
    from vap_gym.oracle_env import OracleEnv
    from vap_gym.prompts.skeleton import Skeleton
    from vap_gym.rig import Rig
    from vap_gym.starts import Start, StartSet, save_starts
    from vap_gym.twin import Twin
    from vap_gym.vector import VapVectorEnv
    from vap_gym.video.worlds import load_world_model
    from vap_gym.world.model import WorldModel

__all__ = [
    "Camera", "Controller", "Imagination", "Judge", "OracleEnv", "Rig", "Skeleton", "Start", "StartSet", "Twin",
    "VapEnv", "VapError", "VapVectorEnv", "WorldModel", "agreement", "evaluate", "known_envs",
    "known_robots", "load_env", "load_robot", "load_world_model", "read_state", "register_env",
    "save_starts", "write_state",
]  # fmt: skip

_HOME = {
    "Camera": "geometry", "Controller": "kinematics", "Imagination": "imagine", "Judge": "judge",
    "OracleEnv": "oracle_env", "Rig": "imagine", "Skeleton": "prompts.skeleton", "Start": "starts",
    "StartSet": "starts", "Twin": "twin", "VapEnv": "env", "VapVectorEnv": "vector", "WorldModel": "world.model",
    "agreement": "evaluate.agreement_reports", "evaluate_policies": "evaluate.policies",  # as `evaluate`
    "load_world_model": "video.worlds",
    "read_state": "imagine", "save_starts": "starts", "write_state": "imagine",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Load a public name from its module when it is first asked for."""
    if name == "__version__":
        from importlib.metadata import version

        return version("vap-gym")
    if name == "evaluate":
        return import_module("vap_gym.evaluate")  # a package that can be called
    if name not in _HOME:
        raise AttributeError(f"module 'vap_gym' has no attribute '{name}'. It has: {', '.join(__all__)}.")
    return getattr(import_module(f"vap_gym.{_HOME[name]}"), name)


register_envs()
