"""The command line: a table of commands, each a plain function in a module that is imported when it is called."""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from vap_gym.errors import VapError, unknown_name


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command: where its function is, and what `--help` says of it before that module is imported."""

    module: str
    function: str = "main"
    summary: str


# The options of a command are its function's arguments, read by tyro: required ones by position, the others by --name.
COMMANDS: dict[str, Command] = {
    "demo": Command(module="vap_gym.demo", summary="imagine a robot from actions; write out/demo.mp4"),
    "data generate": Command(module="vap_gym.sim.generate", summary="record episodes in the simulator"),
    "data imagine": Command(module="vap_gym.evaluate.imagined_set", summary="oracle episodes as the model shows them"),
    "data import": Command(module="vap_gym.commands.import_data", summary="import recordings of others as episodes"),
    "data describe": Command(module="vap_gym.commands.describe", summary="say what a folder of episodes holds"),
    "recover hands": Command(module="vap_gym.commands.recover_hands", summary="pairs of hand videos and detections"),
    "recover hand-pictures": Command(
        module="vap_gym.commands.recover_hand_pictures", summary="annotated pictures of hands as episodes"
    ),
    "recover robot": Command(
        module="vap_gym.commands.recover_robot", summary="pairs of robot logs, judged and rectified"
    ),
    "train codec": Command(module="vap_gym.train.codec", summary="train the autoencoder of a world model"),
    "train world": Command(module="vap_gym.train.world", summary="train the dynamics of a world model"),
    "train video": Command(module="vap_gym.train.video", summary="train the video model, of any size"),
    "train appearance": Command(module="vap_gym.train.appearance", summary="train what the robot looks like"),
    "train background": Command(module="vap_gym.train.background", summary="train what is behind a robot"),
    "train things": Command(module="vap_gym.train.things", summary="train the finder of things in first pictures"),
    "train motion": Command(module="vap_gym.train.motion", summary="train how things move when touched"),
    "train judge": Command(module="vap_gym.train.judge", summary="train the judge that reads gripper and objects"),
    "train publish": Command(module="vap_gym.train.publish", summary="gather trained parts into a model folder"),
    "evaluate": Command(module="vap_gym.commands.evaluate", summary="try policies in the same trials; write a report"),
    "judge": Command(module="vap_gym.commands.evaluate_judge", summary="judge kept episodes again, by another judge"),
    "agree": Command(module="vap_gym.commands.agree", summary="how well imagined success stands for true success"),
    "trials": Command(module="vap_gym.commands.trials", summary="how many trials it takes, before any is played"),
    "plan": Command(module="vap_gym.commands.plan", summary="plan an episode in imagination and carry it out"),
    "train-rl": Command(module="vap_gym.commands.train_rl", summary="train an agent in imagination, or in the oracle"),
    "serve": Command(module="vap_gym.commands.serve", summary="serve envs to other processes, machines, languages"),
    "bench fidelity": Command(module="vap_gym.evaluate.fidelity", summary="how true the imagined frames are"),
    "bench real": Command(module="vap_gym.evaluate.real_droid", summary="how true real DROID recordings come out"),
    "bench trust": Command(module="vap_gym.evaluate.trust", summary="how far trust in a frame can be trusted"),
    "bench speed": Command(module="vap_gym.evaluate.speed", summary="how fast steps, roll-outs and prompts are"),
    "bench tables": Command(module="vap_gym.evaluate.tables", summary="the paper's tables, of models trained for it"),
    "metrics": Command(module="vap_gym.commands.metrics", summary="score clips or masks against the true ones"),
    "calibrate clicks": Command(
        module="vap_gym.commands.calibrate", function="clicks", summary="fit a camera to clicks on the robot"
    ),
    "calibrate marker": Command(
        module="vap_gym.commands.calibrate", function="marker", summary="fit cameras to a marker on the hand"
    ),
    "calibrate align": Command(
        module="vap_gym.commands.calibrate", function="align", summary="refine a rough camera, without clicks"
    ),
    "robots": Command(module="vap_gym.commands.listing", function="robots", summary="list the robots"),
    "robot add": Command(module="vap_gym.commands.robot", summary="draft a robot's card from any URDF"),
    "body": Command(module="vap_gym.commands.body", summary="sample a robot's surface, for its card"),
    "mesh": Command(module="vap_gym.commands.mesh", summary="simplify a robot's surface, for its card"),
    "envs": Command(module="vap_gym.commands.listing", function="envs", summary="list the environments"),
    "doctor": Command(module="vap_gym.commands.doctor", summary="check this machine, or a data set, for known traps"),
}


def usage(group: str = "") -> str:
    """Return the list of commands, of one group (`train`) if given."""
    names = [name for name in COMMANDS if not group or name.split()[0] == group]
    width = max(map(len, names))
    lines = [f"usage: vap-gym {group or '[-h]'} COMMAND ...".replace("  ", " "), "", "commands:"]
    lines += [f"  {name:<{width}}  {COMMANDS[name].summary}" for name in names]
    return "\n".join([*lines, "", "vap-gym COMMAND --help shows a command's options."])


def find(words: Sequence[str]) -> tuple[str, list[str]]:
    """Split words into a command's name and its own arguments.

    Raises:
        UnknownNameError: where no command has that name.
    """
    for length in (2, 1):
        name = " ".join(words[:length])
        if name in COMMANDS:
            return name, list(words[length:])
    group = [name for name in COMMANDS if name.split()[0] == words[0] and " " in name]
    raise unknown_name("command", " ".join(words[: 2 if group else 1]), group or COMMANDS)


def run(name: str, arguments: Sequence[str]) -> None:
    """Import the function of a command and call it with what tyro reads from the arguments."""
    import tyro

    command = COMMANDS[name]
    function: Callable[..., Any] = getattr(import_module(command.module), command.function)
    tyro.cli(function, prog=f"vap-gym {name}", args=arguments, config=(tyro.conf.PositionalRequiredArgs,))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `vap-gym` and return its exit code.

    0; 2 for a mistake of the user's or a file that cannot be read or written, told in one line on stderr; 130 where
    the user stopped it.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    groups = {name.split()[0] for name in COMMANDS if " " in name}
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        return 0
    if words[0] in groups and words[1:] in ([], ["-h"], ["--help"]):
        print(usage(words[0]))
        return 0
    try:
        run(*find(words))
    except VapError as error:
        print(f"vap-gym: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read what is printed has left: `vap-gym envs | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would complain at its exit
        return 1
    except OSError as error:
        which = "A file" if error.filename is None else f"'{error.filename}'"
        why = error.strerror or str(error)
        print(
            f"vap-gym: {which} must be readable, or writable, got: {why}. "
            "Check the path, its permissions and the space that is left.",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("vap-gym: stopped.", file=sys.stderr)
        return 130
    return 0
