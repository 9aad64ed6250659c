"""Settings in a line of text, as the command line takes them: `what,key=value,key=value`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vap_gym.errors import unknown_name
from vap_gym.policies.protocol import PolicyError

Keys = dict[str, str]


def split_text(text: str) -> tuple[str, Keys]:
    """ "what,key=value,…" → what, and the keys. Raises PolicyError where a part is no key=value."""
    what, *pairs = text.split(",")
    keys: Keys = {}
    for pair in pairs:
        key, sign, value = pair.partition("=")
        if not sign:
            raise PolicyError(f"Settings are written key=value, got '{pair}' in '{text}'. Write what,key=value.")
        keys[key.strip()] = value.strip()
    return what, keys


def read_settings(keys: Keys, known: Mapping[str, type], kind: str) -> dict[str, Any]:
    """Return settings with their types.

    Raises:
        UnknownNameError: a key that is not known; PolicyError: a value that is no number where one must be.
    """
    found = {}
    for key, value in keys.items():
        if key not in known:
            raise unknown_name(f"setting of '{kind}'", key, known)
        try:
            found[key] = known[key](value)
        except ValueError as error:
            raise PolicyError(f"{key} of '{kind}' must be a number, got '{value}'. Write {key}=1, say.") from error
    return found
