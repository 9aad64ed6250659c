"""The command line: a table of commands, each a plain function in a module that is imported when it is called."""

import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from vap_gym.commands.known import COMMANDS
from vap_gym.commands.known import Command as Command
from vap_gym.errors import VapError, unknown_name

JSON = "With --json a command prints one JSON value on stdout and nothing else there: progress and words go to stderr."
EXIT_CODES = """exit codes: 0 done; 1 done, but something was found broken or failed (doctor, data import, rollout);
2 a mistake in what was asked for, or a file that cannot be read or written: told in a line on stderr; 130 stopped."""


def usage(group: str = "") -> str:
    """Return the list of commands, of one group (`train`) if given."""
    names = [name for name in COMMANDS if not group or name.split()[0] == group]
    width = max(map(len, names))
    lines = [f"usage: vap-gym {group or '[-h]'} COMMAND ...".replace("  ", " "), "", "commands:"]
    lines += [f"  {name:<{width}}  {COMMANDS[name].summary}" for name in names]
    lines += ["", "vap-gym COMMAND --help shows a command's options and an example."]
    return "\n".join(lines if group else [*lines, JSON, "", EXIT_CODES])


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

    from vap_gym.commands.telling import described, with_json

    command = COMMANDS[name]
    function: Callable[..., Any] = getattr(import_module(command.module), command.function)
    tyro.cli(
        with_json(function),
        prog=f"vap-gym {name}",
        description=described(function, f"vap-gym {name} {command.example}"),
        args=arguments,
        config=(tyro.conf.PositionalRequiredArgs,),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `vap-gym` and return its exit code.

    0; 2 for a mistake of the user's or a file that cannot be read or written, told in one line on stderr; 130 where
    the user stopped it; 1 where nobody read what was printed. Commands that found something broken exit with 1
    themselves (SystemExit).
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
