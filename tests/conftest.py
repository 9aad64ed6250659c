"""Shared fixtures: where real recordings are, checks of tensor shapes, ways to ask a server; and a count of skips."""

import json
import os
import socket
import struct
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

REPO = Path(__file__).resolve().parent.parent

# Types and tensor shapes in annotations are checked while testing; VAP_TYPECHECK=0 switches that off.
if os.environ.get("VAP_TYPECHECK", "1") != "0":
    from typing import Protocol, runtime_checkable

    from jaxtyping import install_import_hook

    # Not the interfaces: their bodies are empty. All others, named one by one.
    modules = [path.stem for path in (REPO / "vap_gym").iterdir() if path.stem not in ("interfaces", "__main__")]
    install_import_hook([f"vap_gym.{name}" for name in modules], "beartype.beartype")

    import vap_gym.interfaces

    for interface in vars(vap_gym.interfaces).values():
        if isinstance(interface, type) and Protocol in interface.__bases__:
            runtime_checkable(interface)  # or beartype refuses functions that take one


@pytest.fixture(scope="session")
def repo() -> Path:
    """The root of the checkout."""
    return REPO


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real recordings: $VAP_SHARED_DATA, or ../shared/data beside the checkout.

    Tests that ask for it are skipped where it is absent, and fail there when VAP_REQUIRE_SHARED=1.
    """
    folder = Path(os.environ.get("VAP_SHARED_DATA") or REPO.parent / "shared" / "data")
    if folder.is_dir():
        return folder
    message = f"no recordings at {folder}: set VAP_SHARED_DATA to their folder"
    if os.environ.get("VAP_REQUIRE_SHARED") == "1":
        pytest.fail(f"{message} (VAP_REQUIRE_SHARED=1 makes their absence a failure)", pytrace=False)
    pytest.skip(message)


class Asking:
    """Ways to ask a server of envs that `RemoteEnv` does not go."""

    @staticmethod
    def http(url: str, content: object = None, **headers: str) -> tuple[int, dict[str, Any]]:
        """GET, or POST JSON; return status and JSON."""
        data = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(url, data=data, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return response.status, json.loads(response.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    @staticmethod
    def question(env: Any, op: str, **content: Any) -> dict[str, Any]:
        """What a `RemoteEnv`'s next request is."""
        return {"op": op, "session": env._session, "count": env._count, **content}

    @staticmethod
    def connected(url: str) -> socket.socket:
        """A connection to a server, by which nothing was said yet."""
        host, port = url.removeprefix("http://").split(":")
        return socket.create_connection((host, int(port)), timeout=20)

    @staticmethod
    def websocket(url: str) -> socket.socket:
        """A connection that has become a websocket; nothing reads what comes by it."""
        raw = Asking.connected(url)
        raw.sendall(
            b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        assert b" 101 " in raw.recv(2**12)
        return raw

    @staticmethod
    def message(data: bytes, says: int | None = None) -> bytes:
        """A binary websocket message (masked with zeros) that says it has `says` bytes; None: as many as it has."""
        return struct.pack("!BBQ", 0x82, 0x80 | 127, len(data) if says is None else says) + bytes(4) + data


@pytest.fixture(scope="session")
def asking() -> type[Asking]:
    """Ways to ask a server of envs by HTTP and by hand-made websocket messages."""
    return Asking


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the number of skipped tests, none included, so that a silent skip is seen."""
    skipped = len(terminalreporter.stats.get("skipped", []))
    terminalreporter.write_line(f"skipped tests: {skipped}")


# --- the paper's tables ---

TABLES_PLAN = """
judge = "tiny"
seeds = [3]
clips = 3
batch = 2
evaluations = 1
held_out = 1
[sets.droid]
title = "DROID-like"
env = "VAP-DROID-v0"
data = "{data}"
novel = "lab"
[recipe]
codec = "{codec}"
cache = "{cache}"
steps = 2
batch_size = 1
frames = 13
parts = "branches"
lora_rank = 2
warmup_steps = 1
log_every = 1
score_clips = 1
[recipe.model]
control_layers = 1
stem_width = 8
trajectory_width = 8
base_config = {{ num_attention_heads = 1, attention_head_dim = 16, in_channels = 16, out_channels = 16, num_layers = 1, time_embed_dim = 16, text_embed_dim = 16 }}
[runs.base]
on = "joint"
recipe = {{ parts = "full", lora_rank = 0, model = {{ condition = "none" }} }}
[runs.text]
base = "base"
recipe = {{ model = {{ condition = "text" }} }}
[runs.skeleton]
base = "base"
recipe = {{ model = {{ condition = "skeleton" }} }}
[runs.mesh]
init = "skeleton"
recipe = {{ model = {{ condition = "mesh" }} }}
[tables.1]
title = "conditions"
metrics = ["psnr", "st_iou", "adherence_px", "j_and_f"]
rows = {{ text = "text", skeleton = "skeleton" }}
[[tables.1.orderings]]
claim = "Skeleton above text"
source = "here"
order = ["skeleton", "text"]
metrics = ["psnr"]
[tables.3]
title = "prompts"
metrics = ["ssim"]
rows = {{ mesh = "mesh" }}
"""  # noqa: E501


@pytest.fixture(scope="session")
def tables_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three short episodes."""
    pytest.importorskip("pybullet", reason="held-out clips are played in the oracle")
    from vap_gym.cards import load_robot
    from vap_gym.data import EpisodeWriter, finalise
    from vap_gym.sim.layouts import draw_scene
    from vap_gym.sim.rollout import NominalRobot, record
    from vap_gym.sim.scene import Scene

    folder, card = tmp_path_factory.mktemp("data") / "droid", load_robot("panda_robotiq")
    writer, nominal = EpisodeWriter(folder, fps=15, robot_type=card.name), NominalRobot(card)
    with Scene(card) as scene:
        for i in range(3):
            writer.write(i, record(scene, nominal, draw_scene(i), "play", frames=14))
    finalise(folder)
    return folder


@pytest.fixture(scope="session")
def tables_plan(tables_data: Path, repo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan of the paper's tables, as small as can be."""
    folder = tmp_path_factory.mktemp("plan")
    codec = repo / "vap_gym" / "weights" / "tiny" / "codec"
    path = folder / "plan.toml"
    path.write_text(TABLES_PLAN.format(data=tables_data, codec=codec, cache=folder / "cache"))
    return path


@pytest.fixture(scope="session")
def tables_runs(tables_plan: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of trainings after Table 1 was made."""
    from vap_gym.commands.telling import json_text
    from vap_gym.evaluate import tables
    from vap_gym.evaluate.tables_clips import held_out_clips
    from vap_gym.evaluate.tables_plan import load_plan

    folder = tmp_path_factory.mktemp("runs")
    # Played here, not in processes beside: they would have to import everything again.
    held_out_clips(load_plan(tables_plan).sets["droid"], "known", 3, folder=folder / "heldout", workers=1)
    told = json.loads(json_text(tables.main(plan=tables_plan, runs=folder, only=("1",))))
    assert told["page"] == str(folder / "tables.md")
    assert [one["claim"] for one in told["verdicts"]["1"]]
    return folder
