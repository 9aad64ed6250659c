"""`vap-gym serve`: envs for clients in other processes, on other machines, or in other languages."""

from __future__ import annotations

import os
from json import dumps


def main(
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str = "",
    envs: tuple[str, ...] = (),
    world_model: str = "",
    device: str = "cpu",
    dtype: str = "",
    max_sessions: int = 64,
    max_queue: int = 256,
    max_batch: int = 16,
    max_chunk: int = 32,
    max_message_mib: int = 16,
    idle_s: float = 300.0,
    slow_s: float = 10.0,
    drain_s: float = 30.0,
    json: bool = False,
) -> None:
    """Serve envs until stopped by Ctrl+C or SIGTERM; what was taken on is still answered then.

    Args:
        host: where to listen. Any but this machine's own (127.0.0.1) needs a token.
        port: 0 is any that is free.
        token: what clients must send; better given by the environment variable VAP_GYM_TOKEN, which others cannot see.
        envs: ids of the envs that are offered; all by default.
        world_model: a name or folder, for all envs; each card's own by default.
        device: where the world model runs.
        dtype: float32, bfloat16 or float16; the model's own by default.
        max_sessions: open at once.
        max_queue: requests that may wait.
        max_batch: sessions that are stepped together.
        max_chunk: steps of a step_chunk.
        max_message_mib: of one request.
        idle_s: a session without a request for so long is evicted.
        slow_s: a client that takes longer to take an answer is dropped.
        drain_s: at most so long is answered when it ends.
        json: print address and settings as JSON.
    """
    from vap_gym.cards import known_envs
    from vap_gym.errors import require, unknown_name

    for needed in ("msgpack", "websockets", "starlette", "uvicorn"):
        require(needed, "[serve]", "A server")

    from vap_gym.serve.connection import TOKEN
    from vap_gym.serve.playing import Players
    from vap_gym.serve.server import Server
    from vap_gym.serve.service import Limits, Service

    offered = envs or known_envs()
    for name in offered:
        if name not in known_envs():
            raise unknown_name("env", name, known_envs())
    limits = Limits(
        sessions=max_sessions, queue=max_queue, batch=max_batch, chunk=max_chunk, idle_s=idle_s, slow_s=slow_s,
        drain_s=drain_s, message_bytes=max_message_mib * 2**20, connections=4 * max_sessions,
    )  # fmt: skip
    players = Players(offered, world_model=world_model or None, device=device, dtype=dtype or None)
    secret = token or os.environ.get(TOKEN) or None
    server = Server(Service(players, tuple(offered), limits), token=secret, host=host, port=port)
    for name in offered:  # here, so that a world model that does not fit is told before anybody asks
        players(name, {})

    def ready() -> None:
        if json:
            told = {"url": server.url, "envs": list(offered), "token": secret is not None, "pid": os.getpid()}
            print(dumps(told), flush=True)
            return
        print(f"Serving {', '.join(offered)} at {server.url} ({max_sessions} sessions). Ctrl+C ends it.")
        print("From Python, also on another machine that reaches it:")
        print(f'  from vap_gym.serve import RemoteEnv\n  env = RemoteEnv("{server.url}", "{offered[0]}")', flush=True)

    server.serve_until_stopped(ready)
