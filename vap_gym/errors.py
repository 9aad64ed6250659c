"""Errors for users: each says what is wrong, what was given, and what would work."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType


class VapError(ValueError):
    """Base of every error that a user of vap-gym can cause and mend."""


class UnknownNameError(VapError):
    """A name (robot, env, key, link …) that is not in the list of known ones."""


class CardError(VapError):
    """A robot or env card (TOML) that cannot be read."""


class UrdfError(VapError):
    """A URDF that is malformed, is no tree, or lacks a link or joint that is asked for."""


class CheckpointError(VapError):
    """Weights that are missing, truncated, tampered with, or of another shape."""


class ActionError(VapError):
    """An action of the wrong shape or type, or with NaN or infinite entries."""


class MissingDependencyError(VapError, ImportError):
    """An optional package that this call needs and that is not installed."""


def unknown_name_message(kind: str, given: str, known: Iterable[str]) -> str:
    """Return "No <kind> named 'x'. Did you mean 'y'? Known: a, b." (the question only where a name is near)."""
    names = sorted(known)
    near = difflib.get_close_matches(given, names, n=1, cutoff=0.6)
    question = f" Did you mean '{near[0]}'?" if near else ""
    return f"No {kind} named '{given}'.{question} Known: {', '.join(names) or 'none'}."


def unknown_name(kind: str, given: str, known: Iterable[str]) -> UnknownNameError:
    """Return (not raise) the error for a name that is not known, with the nearest known name and the list."""
    return UnknownNameError(unknown_name_message(kind, given, known))


def require(module: str, extra_or_pip: str, purpose: str) -> ModuleType:
    """Import an optional module, or raise MissingDependencyError with the pip line.

    `extra_or_pip` is an extra of ours in brackets ("[rl]") or what pip installs ("pybullet"); `purpose` says what
    needs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise  # the module is there, and something that it needs is not: say that instead
        wanted = f"'vap-gym{extra_or_pip}'" if extra_or_pip.startswith("[") else extra_or_pip
        message = f"{purpose} needs the package '{module}', which is not installed. Run: pip install {wanted}"
        raise MissingDependencyError(message) from error
