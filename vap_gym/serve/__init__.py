"""Envs over the network: a server of sessions (`vap-gym serve`), and a client that is a Gymnasium env.

`gym.make("vap_gym.serve:VAP-Remote-v0", url="ws://127.0.0.1:8000", env="VAP-DROID-v0")` is a `RemoteEnv`.
"""

import gymnasium as gym

from vap_gym.serve.client import RemoteEnv
from vap_gym.serve.connection import Connection

__all__ = ["Connection", "RemoteEnv"]

REMOTE_ID = "VAP-Remote-v0"
if REMOTE_ID not in gym.registry:
    gym.register(REMOTE_ID, entry_point="vap_gym.serve.client:RemoteEnv")
