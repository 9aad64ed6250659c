"""Judges by a line of text, as the command line takes them: `kind:what,key=value`."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from typing import Any

from vap_gym.errors import VapError, unknown_name
from vap_gym.evaluate.policies_judges import EpisodeJudge, GoalPictures, HumanLabels, OpenAiCompatible, VlmJudge
from vap_gym.policies.texts import read_settings, split_text

HELP = """labels:FILE.csv that people fill in | goals:FOLDER,most_grey=8 of pictures 12.png, … by the start's number
vlm:URL,model=NAME[,votes=3,pictures=4,temperature=0.7,timeout_s=60,key_from=ENVIRONMENT_VARIABLE]
transformers:FOLDER[,votes=3,pictures=4,temperature=0.7,timeout_s=60,device=cpu] | python:MODULE:NAME"""
VOTES: Mapping[str, type] = {"votes": int, "pictures": int, "temperature": float, "timeout_s": float}
KINDS = ("labels", "goals", "vlm", "transformers", "python")


def is_judge_text(text: str) -> bool:
    """Whether a line of text names a judge of whole episodes, not a name or folder of the shipped kind."""
    return text.partition(":")[0] in KINDS and ":" in text


def named_judge(text: str) -> EpisodeJudge:
    """Return the judge that a line of text describes (see HELP).

    Raises:
        UnknownNameError, PolicyError, VapError: a kind, key or value that is not known, or a judge that cannot be made.
    """
    kind, _, rest = text.partition(":")
    makers: Mapping[str, Callable[[str], EpisodeJudge]] = {
        "labels": HumanLabels, "goals": _goals, "vlm": _vlm, "transformers": _transformers, "python": _python,
    }  # fmt: skip
    if kind not in makers:
        raise unknown_name("kind of judge", kind, makers)
    if not rest:
        raise VapError(f"A judge needs to know where to look, got '{text}'. There are: {HELP}")
    return makers[kind](rest)


def _goals(rest: str) -> EpisodeJudge:
    folder, keys = split_text(rest)
    given = read_settings(keys, {"most_grey": float, "last": int}, "goals")
    if "most_grey" not in given:
        raise VapError(f"goals needs the distance up to which it is success, got 'goals:{rest}'. Add ,most_grey=8.")
    return GoalPictures.from_folder(folder, **given)


def _vlm(rest: str) -> EpisodeJudge:
    url, keys = split_text(rest)
    given = read_settings(keys, {**VOTES, "model": str, "key_from": str}, "vlm")
    if "model" not in given:
        raise VapError(f"vlm needs the model's name on that server, got 'vlm:{rest}'. Add ,model=NAME.")
    variable = given.pop("key_from", "")
    if variable and not os.environ.get(variable):
        raise VapError(f"The key must be in the environment variable '{variable}', got none there. Export it first.")
    votes = {key: given.pop(key) for key in ("votes", "pictures") if key in given}
    return VlmJudge(OpenAiCompatible(url, api_key=os.environ.get(variable) if variable else None, **given), **votes)


def _transformers(rest: str) -> EpisodeJudge:
    from vap_gym.evaluate.policies_transformers import TransformersVlm

    name, keys = split_text(rest)
    given = read_settings(keys, {**VOTES, "device": str, "seed": int}, "transformers")
    votes = {key: given.pop(key) for key in ("votes", "pictures") if key in given}
    return VlmJudge(TransformersVlm.load(name, **given), **votes)


def _python(rest: str) -> EpisodeJudge:
    module, _, name = rest.partition(":")
    try:
        found: Any = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise VapError(
            f"No judge at 'python:{rest}': {error}. Write python:MODULE:NAME; PYTHONPATH=. before the command lets "
            "a module of this folder be found."
        ) from error
    found = found() if isinstance(found, type) else found
    if not isinstance(found, EpisodeJudge):
        raise VapError(
            f"'python:{rest}' must be a function from an episode to a Verdict, got a {type(found).__name__}. Write "
            "def judge(episode: ShownEpisode) -> Verdict."
        )
    return found
