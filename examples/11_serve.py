"""Serve imagined robots, and play them from clients: several at once, in chunks, in branches.

    python examples/11_serve.py --out out/served.png

1. A server, here in a thread; `vap-gym serve` is the same from a shell, for other processes and machines.
2. Clients are Gymnasium envs. What several ask for at one moment is imagined as one batch.
3. A branch goes on from the present moment, on the server.
4. Without Python: JSON by HTTP.
"""

import json
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from vap_gym.pictures import write_png
from vap_gym.serve import RemoteEnv
from vap_gym.serve.playing import Players
from vap_gym.serve.server import serving
from vap_gym.serve.service import Limits, Service

ENVS = ("VAP-DROID-v0", "VAP-Bridge-v0")


def play(url: str, env_id: str, seed: int, steps: int) -> np.ndarray:
    """Play one episode with random actions, and return its last frame (H, W, 3)."""
    with RemoteEnv(url, env_id) as env:
        env.action_space.seed(seed)
        frame, _ = env.reset(seed=seed)
        for _ in range(steps):
            frame, _, terminated, truncated, _ = env.step(env.action_space.sample())
            if terminated or truncated:
                frame, _ = env.reset()
        return np.asarray(frame)


def post(url: str, **content: Any) -> Any:
    """POST JSON, return JSON."""
    request = urllib.request.Request(url, json.dumps(content).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


def main(out: Path = Path("out/served.png"), clients: int = 4, steps: int = 6) -> None:
    """Write the last frames of the clients, and of branches of one moment.

    Args:
        out: the picture to write.
        clients: that play at once.
        steps: of each.
    """
    # 1. At most 16 sessions; one that is not used for a minute is evicted.
    service = Service(Players(ENVS), ENVS, Limits(sessions=16, idle_s=60.0))
    with serving(service) as server, ThreadPoolExecutor(clients) as pool:
        print(f"{', '.join(ENVS)} at {server.url}")

        # 2. Clients of two kinds at once.
        playing = [pool.submit(play, server.url, ENVS[k % 2], k, steps) for k in range(clients)]
        frames = [one.result() for one in playing]
        model = service.figures()["model"]
        print(f"{clients} clients: {model['jobs']} requests in {model['calls']} calls of the model")

        # 3. One moment, three ways on.
        with RemoteEnv(server.url) as env:
            env.reset(seed=0)
            branches = env.branch(3)
            for direction, branch in zip((-1.0, 0.0, 1.0), branches, strict=True):
                actions = np.zeros((steps, *env.action_space.shape), np.float32)
                actions[:, 1] = direction  # DROID's second velocity: to the side
                frames.append(branch.step_chunk(actions)[0][-1])
                branch.close()

        # 4. What curl would send.
        opened = post(f"{server.url}/open", env=ENVS[0])
        session = {"session": opened["session"]}
        post(f"{server.url}/reset", **session, count=0, seed=0)
        moved = post(f"{server.url}/step", **session, count=1, action=[0.0] * opened["action_space"]["shape"][0])
        post(f"{server.url}/close", **session)
        print(f"by HTTP: reward {moved['reward']:.3f}, {moved['info']['task_description']!r}")
    write_png(out, np.concatenate(frames, 1))
    print(out)


if __name__ == "__main__":
    tyro.cli(main)
