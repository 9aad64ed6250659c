"""Policies by a line of text, as the command line takes them: `name=kind:what,key=value`."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from inspect import signature
from typing import Any

import numpy as np

from vap_gym.cards import EnvCard, load_robot
from vap_gym.errors import unknown_name
from vap_gym.kinematics import Controller
from vap_gym.policies.http import HttpPolicy
from vap_gym.policies.openpi import DROID, OpenpiPolicy
from vap_gym.policies.protocol import Conventions, Policy, PolicyError
from vap_gym.policies.sb3 import Sb3Policy
from vap_gym.policies.scripted import ScriptedExpert
from vap_gym.policies.simple import FunctionPolicy, RandomPolicy, ReplayPolicy
from vap_gym.policies.texts import read_settings, split_text
from vap_gym.sim.experts import BEHAVIOURS

LABEL = re.compile(r"([A-Za-z0-9][\w.+-]*)=(.*)", re.DOTALL)
HELP = """random | expert[:noise=0.2,bias_m=0.02] | failing | play | clumsy | noop
mpc[:candidates=128,iterations=5,planner=icem,dynamics=imagination|oracle|none,goal=PICTURE.png]: the planner itself
sb3:PATH.zip,algorithm=ppo[,action_mode=…]   replay:FOLDER of episodes that an evaluation kept
things:FOLDER of an agent that vap-gym train-rl wrote[,sees=truth]
openpi:HOST:PORT[,execute=8]   http://HOST:PORT
python:MODULE:NAME (a Policy, a function without arguments that makes one, or one of an observation and its instruction
that returns an action as the env takes it)"""


def named_policies(texts: Sequence[str], card: EnvCard) -> dict[str, Policy]:
    """Return policies by their names. "good=expert:noise=0.1" is named "good", "expert:noise=0.1" "expert-noise-0.1".

    Raises:
        UnknownNameError, PolicyError: a kind, key or value that is not known, or a name twice.
    """
    found: dict[str, Policy] = {}
    for text in texts:
        label = LABEL.fullmatch(text) if ":" not in text.split("=", 1)[0] else None
        name, told = (label[1], label[2]) if label else (re.sub(r"[^A-Za-z0-9_.+]+", "-", text).strip("-")[:80], text)
        if name in found:
            raise PolicyError(f"Every policy needs a name of its own, got '{name}' twice. Write name={told}.")
        found[name] = policy_of(told, card)
    return found


def policy_of(text: str, card: EnvCard) -> Policy:
    """Return the policy that a line of text describes (see HELP). Raises as `named_policies`."""
    if text.startswith(("http://", "https://")):
        url, keys = split_text(text)
        return HttpPolicy(url, **read_settings(keys, {"execute": int, "timeout_s": float, "tries": int}, "http"))
    kind, _, rest = text.partition(":")
    if kind == "random":
        return _random(rest, card)
    if kind in BEHAVIOURS:
        return _scripted(kind, rest, card)
    if kind == "mpc":
        return _mpc(rest, card)
    makers: Mapping[str, Callable[[str, EnvCard], Policy]] = {
        "sb3": _sb3, "things": _things, "replay": _replay, "openpi": _openpi, "python": _python,
    }  # fmt: skip
    if kind not in makers:
        raise unknown_name("kind of policy", kind, (*makers, *BEHAVIOURS, "http", "mpc", "random"))
    return makers[kind](rest, card)


def card_conventions(card: EnvCard, action_mode: str | None = None) -> Conventions:
    """Return conventions that say as an env of this card does, in its action mode or another one."""
    return Conventions(
        action_mode=action_mode or card.action_mode,
        rate_hz=card.fps,
        frame_size_px=card.frame_size_px,
        convert=("action_mode",),
    )


def _random(rest: str, card: EnvCard) -> Policy:
    read_settings(split_text(f",{rest}" if rest else "")[1], {}, "random")
    controller = Controller(load_robot(card.robot), card.action_mode)
    low, high = (x.numpy().astype(np.float64) for x in (controller.action_space_low, controller.action_space_high))
    return RandomPolicy(low, high, card_conventions(card))


def _scripted(behaviour: str, rest: str, card: EnvCard) -> Policy:
    keys = split_text(f",{rest}" if rest else "")[1]
    given = read_settings(keys, {"noise": float, "bias_m": float}, behaviour)
    return ScriptedExpert(card.robot, behaviour=behaviour, **given)


def _mpc(rest: str, card: EnvCard) -> Policy:
    """The planner takes the time that it needs: with a budget in seconds, the same trial would not end the same."""
    from vap_gym.plan.planned import PlannedPolicy, PlanSettings
    from vap_gym.plan.policy import Horizon

    words = dict.fromkeys(("card", "dynamics", "planner", "foresight", "world_model", "judge", "device", "goal"), str)
    lengths = dict.fromkeys(("actions", "hold", "execute", "most_plans"), int)
    keys = split_text(f",{rest}" if rest else "")[1]
    given = read_settings(keys, {**words, **lengths, "candidates": int, "iterations": int}, "mpc")
    horizon = Horizon(budget_s=None, **{key: given.pop(key) for key in lengths if key in given})
    seen = {"foresight": "latents"} if "goal" in given else {}
    return PlannedPolicy(PlanSettings(**{"card": card.source, **seen, **given}, horizon=horizon))


def _sb3(rest: str, card: EnvCard) -> Policy:
    path, keys = split_text(rest)
    given = read_settings(keys, {"algorithm": str, "action_mode": str}, "sb3")
    if "algorithm" not in given:
        raise PolicyError(f"sb3 needs the algorithm that the model is of, got 'sb3:{rest}'. Add ,algorithm=ppo.")
    conventions = replace(card_conventions(card, given.get("action_mode")), frame_size_px=None)  # the model tells it
    return Sb3Policy.load(path, given["algorithm"], conventions)


def _things(rest: str, card: EnvCard) -> Policy:
    from vap_gym.policies.things import ThingsPolicy

    folder, keys = split_text(rest)
    return ThingsPolicy(folder, **read_settings(keys, {"sees": str, "world_model": str, "judge": str}, "things"))


def _replay(rest: str, card: EnvCard) -> Policy:
    path, keys = split_text(rest)
    read_settings(keys, {}, "replay")
    return ReplayPolicy.from_set(path)


def _openpi(rest: str, card: EnvCard) -> Policy:
    address, keys = split_text(rest)
    given = read_settings(
        keys, {"execute": int, "timeout_s": float, "tries": int, "action_mode": str, "gripper": str}, "openpi"
    )
    changed = {key: given.pop(key) for key in ("action_mode", "gripper") if key in given}
    return OpenpiPolicy(address, replace(DROID, **changed), **given)


def _python(rest: str, card: EnvCard) -> Policy:
    module, _, name = rest.partition(":")
    try:
        found: Any = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise PolicyError(
            f"No policy at 'python:{rest}': {error}. Write python:MODULE:NAME; PYTHONPATH=. before the command lets "
            "a module of this folder be found."
        ) from error
    if isinstance(found, type) or not isinstance(found, Policy):
        found = _made(found, f"python:{rest}", card)
    if not isinstance(found, Policy):
        raise PolicyError(
            f"'python:{rest}' must be a Policy or make one, got a {type(found).__name__}. A policy has conventions, "
            f"reset(episodes) and act(observations, instructions); {FunctionPolicy.__name__} makes one of a function."
        )
    return found


def _made(found: Any, text: str, card: EnvCard) -> Any:
    """What a class or function without arguments makes; of a function of two, a policy that says as the card does."""
    if not callable(found):
        return found
    try:
        needed = [
            one
            for one in signature(found).parameters.values()
            if one.default is one.empty and one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)
        ]
    except ValueError:  # some built-in ones do not tell
        needed = []
    if len(needed) == 2 and not isinstance(found, type):
        return FunctionPolicy(found, card_conventions(card))
    if needed:
        raise PolicyError(
            f"'{text}' needs {', '.join(one.name for one in needed)}, which nobody gives it. Name a function without "
            "arguments that makes the policy, or one of an observation and its instruction that returns an action."
        )
    return found()
