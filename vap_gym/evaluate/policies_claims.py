"""Claims: notes of what a folder's episodes are of, by which others are refused and not mixed in."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from vap_gym.errors import VapError
from vap_gym.evaluate.report import write
from vap_gym.jobs.manifest import settings_in
from vap_gym.policies import Policy

DIGESTS = ("weights", "judge_weights", "starts_digest")
"""Of an evaluation's settings those that older manifests lack."""
KNOWN_BY = {"folder": "weights", "world_model": "looks_through", "judge": "looks_through"}
"""Places where a policy's weights lie, and the digest of what lies there: where two notes tell it, another path to the
same is no other policy."""


def claim(root: Path, name: str, policy: Policy) -> None:
    """Note which policy has this name here, or refuse another one: its episodes would be mixed up.

    It is known by its kind, its conventions and what is public of it, digests of weights among that.

    Raises:
        VapError: another policy has that name in this folder.
    """
    path = root / "policies" / f"{name}.json"
    mine: dict[str, Any] = {"kind": type(policy).__name__, "conventions": asdict(policy.conventions)}
    public = {key: value for key, value in vars(policy).items() if not key.startswith("_")}  # keys stay private
    mine |= {key: value for key, value in public.items() if isinstance(value, str | int | float)}
    mine |= {key: repr(value) for key, value in public.items() if is_dataclass(value)}
    told = json.loads(json.dumps(mine, sort_keys=True))
    if not path.is_file():
        write(path, json.dumps(told, sort_keys=True))
        return
    theirs = json.loads(path.read_text(encoding="utf-8"))
    known = [place for place, by in KNOWN_BY.items() if by in theirs and by in told]
    if differ := [key for key in _differences(theirs, told) if key not in known]:
        raise VapError(
            f"'{root}' holds another policy named '{name}': it differs in {', '.join(differ)}. Give this one "
            "another name, or evaluate into a new folder."
        )
    _say_unknown(root, f"the policy '{name}'", [by for by in dict.fromkeys(KNOWN_BY.values()) if by in told], theirs)


def continued(manifest: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings with which an evaluation is begun, or gone on with, in the folder of this manifest.

    A digest that an older manifest does not tell is left out, as unknown, and this is said in a line. Where a file of
    starts holds the same as before, it may lie somewhere else now.
    """
    before = settings_in(manifest)
    if before is None:
        return dict(about)
    _say_unknown(manifest.parent, "what is kept here", [key for key in DIGESTS if key in about], before)
    told = {key: value for key, value in about.items() if key in before or key not in DIGESTS}
    if "starts_digest" in told and told["starts_digest"] == before["starts_digest"]:
        told["starts_file"] = before.get("starts_file")
    return told


def _say_unknown(root: Path, what: str, digests: list[str], before: Mapping[str, Any]) -> None:
    if missing := [key for key in digests if key not in before]:
        print(
            f"{root}: {what} was noted by an older version, without {', '.join(missing)}: taken to be the same.",
            file=sys.stderr,
        )


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The settings in which two notes of a policy differ; what only one of them tells, an older one could not."""
    found = []
    for key in before.keys() & now.keys():
        if isinstance(before[key], dict) and isinstance(now[key], dict):
            found += [f"{key}.{name}" for name in _differences(before[key], now[key])]
        elif before[key] != now[key]:
            found.append(key)
    return sorted(found)
