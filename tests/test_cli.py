"""The command line finds commands by name, hands on their arguments, and tells mistakes in one line."""

import ast
import hashlib
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from vap_gym import cli
from vap_gym.commands.doctor import check_weights
from vap_gym.data import Episode, EpisodeWriter
from vap_gym.errors import VapError


@pytest.mark.parametrize("words", [[], ["-h"], ["--help"]])
def test_help_lists_every_command(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 0
    shown = capsys.readouterr().out
    assert all(name in shown and command.summary in shown for name, command in cli.COMMANDS.items())


def test_help_of_a_group_lists_its_commands_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train"]) == 0
    shown = capsys.readouterr().out
    assert "train codec" in shown
    assert "doctor" not in shown


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_command_names_a_function_that_is_there(name: str) -> None:
    command = cli.COMMANDS[name]
    # Read, not imported: importing every command's module would take many seconds.
    path = cli.__file__.replace("cli.py", command.module.removeprefix("vap_gym.").replace(".", "/") + ".py")
    tree = ast.parse(Path(path).read_text())
    assert command.function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["dmeo"], "No command named 'dmeo'. Did you mean 'demo'?"),
        (["train", "wrold"], "No command named 'train wrold'. Did you mean 'train world'?"),
        (["data", "--root", "x"], "No command named 'data --root'."),
    ],
)
def test_unknown_command_is_told_in_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"vap-gym: {message}")
    assert told.count("\n") == 1


def greet(name: str, *, times: int = 1) -> None:
    """Greet somebody, or refuse to."""
    if times < 1:
        raise VapError(f"times must be 1 or more, got {times}. Try --times 1.")
    print(f"hello {name} " * times)


@pytest.fixture
def greeting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command `greet`, whose function is the one above."""
    monkeypatch.setitem(sys.modules, "vap_greeting", sys.modules[__name__])
    monkeypatch.setitem(cli.COMMANDS, "greet", cli.Command(module="vap_greeting", function="greet", summary="greet"))


@pytest.mark.usefixtures("greeting")
def test_required_arguments_go_by_position_and_others_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["greet", "you", "--times", "2"]) == 0
    assert capsys.readouterr().out.strip() == "hello you hello you"


@pytest.mark.usefixtures("greeting")
def test_mistake_of_the_user_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["greet", "you", "--times", "0"]) == 2
    assert capsys.readouterr().err == "vap-gym: times must be 1 or more, got 0. Try --times 1.\n"


@pytest.mark.usefixtures("greeting")
def test_wrong_option_exits_with_2_and_names_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["greet", "you", "--tmies", "2"])
    assert stop.value.code == 2
    assert "--times" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "told", "code"),
    [
        (
            FileExistsError(17, "File exists", "out"),
            "vap-gym: 'out' must be readable, or writable, got: File exists.",
            2,
        ),
        (OSError(28, "No space left on device"), "vap-gym: A file must be readable, or writable, got: No space", 2),
        (KeyboardInterrupt(), "vap-gym: stopped.", 130),
    ],
)
def test_files_that_fail_and_interruptions_are_told_in_one_line(
    error: BaseException, told: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(name: str, arguments: object) -> None:
        raise error

    monkeypatch.setattr(cli, "run", fail)
    assert cli.main(["robots"]) == code
    shown = capsys.readouterr().err
    assert shown.startswith(told)
    assert shown.count("\n") == 1


def test_output_that_nobody_reads_is_no_error() -> None:
    command = f"{sys.executable} -m vap_gym robots | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120, check=False)
    assert done.stderr == ""


def test_robots_and_envs_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["robots"]) == 0
    assert "panda_robotiq" in capsys.readouterr().out
    assert cli.main(["envs"]) == 0
    assert "VAP-DROID-v0" in capsys.readouterr().out


def test_doctor_finds_this_installation_well() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vap_gym", "doctor"], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    subjects = {line.split()[1] for line in done.stdout.splitlines()[:-1]}
    assert {"python", "torch", "cpu", "torchvision", "libraries", "pybullet", "weights"} <= subjects


@pytest.mark.parametrize(("harm", "level"), [("none", "ok"), ("truncated", "fail"), ("another", "fail")])
def test_doctor_tells_whole_weights_from_truncated_and_altered_ones(harm: str, level: str, tmp_path: Path) -> None:
    weights = tmp_path / "tiny.safetensors"
    save_file({"w": np.ones(8, np.float32)}, weights)
    (tmp_path / "README.md").write_text(f"sha256: {hashlib.sha256(weights.read_bytes()).hexdigest()}")
    if harm == "truncated":
        weights.write_bytes(weights.read_bytes()[:-4])
    elif harm == "another":
        save_file({"w": np.zeros(8, np.float32)}, weights)
    assert [finding.level for finding in check_weights(tmp_path)] == [level]


def test_torchvision_is_absent() -> None:
    """It swaps torch for another build, or breaks diffusers on import; nothing that is installed may pull it."""
    assert find_spec("torchvision") is None


def test_episodes_are_described_with_their_outcomes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    writer = EpisodeWriter(tmp_path, fps=15)
    for i in range(3):
        frames = np.zeros((4 + i, 96, 144, 3), np.uint8)
        columns = {"action": np.zeros((4 + i, 7), np.float32)}
        episode = Episode(frames={"left": frames}, columns=columns, task="reach", info={"success": i > 0, "seed": i})
        writer.append(episode)
    assert cli.main(["data", "describe", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "3 episodes, 15 frames" in told
    assert "success  2 x True" in told


def test_folder_without_episodes_is_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "describe", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("vap-gym: ")
