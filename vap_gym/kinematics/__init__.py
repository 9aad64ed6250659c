"""From actions to poses: URDF, forward and inverse kinematics, the gripper, and the controller model."""

from vap_gym.kinematics.chain import Chain
from vap_gym.kinematics.control import Clipped, Controller, RobotState
from vap_gym.kinematics.gripper import gripper_joint_values
from vap_gym.kinematics.ik import IkResult, solve_ik
from vap_gym.kinematics.urdf import load_chain, read_urdf

__all__ = [
    "Chain",
    "Clipped",
    "Controller",
    "IkResult",
    "RobotState",
    "gripper_joint_values",
    "load_chain",
    "read_urdf",
    "solve_ik",
]
