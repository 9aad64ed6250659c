"""Keeping episodes: a job plays one policy in one batch of trials and writes what happened as episodes of a set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vap_gym.cards import load_env
from vap_gym.data import Episode, EpisodeSet, EpisodeWriter
from vap_gym.evaluate.policies_arena import arena_of
from vap_gym.evaluate.policies_play import Played, play, trust_of
from vap_gym.evaluate.policies_trials import Setting, Trial
from vap_gym.policies import Policy, fitted

TRUST = ("adherence_px", "gripper_confidence", "object_risk", "expected_psnr_db")
"""Figures of trust that a set keeps for every step, NaN where they are not known."""
PROMPT = "prompt"  # the view of a set that holds the first view's prompts, where they are kept


def folder_of(out: Path, policy: str) -> Path:
    """Return where the episodes of a policy are kept."""
    return out / "episodes" / policy


@dataclass(frozen=True, kw_only=True, eq=False)
class PlayBatch:
    """A job for `run_jobs`: takes a policy's name and the numbers of its trials, returns a row for each of them."""

    policies: Mapping[str, Policy]
    settings: Mapping[str, Setting]  # by policy
    trials: Sequence[Trial]
    out: Path
    act_timeout_s: float | None

    def __call__(self, item: tuple[str, list[int]]) -> dict[str, Any]:
        """Play what is not yet kept, keep it, and return what became of it."""
        name, numbers = item
        setting = self.settings[name]
        card = load_env(setting.card)
        writer = EpisodeWriter(folder_of(self.out, name), fps=max(1, round(card.fps)), robot_type=card.robot)
        kept = writer.written() & set(numbers)
        rows = _kept_rows(writer.root, kept) if kept else {}
        if len(kept) < len(numbers):
            arena = arena_of(setting)
            played = play(
                fitted(self.policies[name], arena.site, name),
                arena,
                [self.trials[number] for number in numbers],
                steps=setting.steps,
                act_timeout_s=self.act_timeout_s,
            )
            for number, one in zip(numbers, played, strict=True):
                if number not in kept:
                    rows[number] = row_of(one, number)
                    writer.write(number, episode_of(one, name, setting, rows[number], arena.site.action_size))
        return {"rows": [rows[number] for number in numbers]}


def row_of(played: Played, number: int) -> dict[str, Any]:
    """Return what a report says of an episode: plain JSON."""
    trust = trust_of(played.moments)
    risk = _known(trust.get("object_risk"))
    strays = _known(trust.get("adherence_px"))
    return {
        "trial": number,
        "verdict": played.verdict,
        "fault": played.fault,
        "steps": len(played.actions),
        "progress": round(max(moment.progress for moment in played.moments), 6),
        "trust": None if risk is None else round(1.0 - float(risk.mean()), 6),
        "adherence_px": None if strays is None else round(float(np.median(strays)), 3),
    }


def _known(values: np.ndarray | None) -> np.ndarray | None:
    found = np.zeros(0) if values is None else values[np.isfinite(values)]
    return found if len(found) else None


def _kept_rows(root: Path, numbers: set[int]) -> dict[int, dict[str, Any]]:
    episodes = EpisodeSet(root)
    found = {episodes.index(i): episodes.info(i)["row"] for i in range(len(episodes)) if episodes.index(i) in numbers}
    return {int(number): dict(row) for number, row in found.items()}


def episode_of(played: Played, policy: str, setting: Setting, row: Mapping[str, Any], action_size: int) -> Episode:
    """Return what a set keeps of an episode: one row per moment; the last action, which leads nowhere, is 0."""
    moments = played.moments
    agent_pos = np.stack([moment.agent_pos for moment in moments])
    trust = trust_of(moments)
    unknown = np.full(len(moments), np.nan, np.float32)
    actions = np.zeros((len(moments), action_size), np.float32)
    for t, action in enumerate(played.actions):
        actions[t] = action
    prompts = [moment.prompt for moment in moments if moment.prompt is not None]
    return Episode(
        frames={view: played.frames(view) for view in moments[0].pixels}
        | ({PROMPT: np.stack(prompts)} if prompts else {}),
        columns={
            "action": actions,
            "observation.joint_position": agent_pos[:, :-1],
            "observation.gripper_position": agent_pos[:, -1],
            "observation.cartesian_position": np.stack([moment.tip for moment in moments]).astype(np.float32),
            "next.progress": np.array([moment.progress for moment in moments], np.float32),
            "next.success": np.array([moment.success for moment in moments]),
            **{f"trust.{name}": trust.get(name, unknown) for name in TRUST},
        },
        task=moments[0].instruction,
        info={
            "policy": policy,
            "start": played.trial.start,
            "seed": played.trial.seed,
            "world_seed": played.trial.world_seed,
            "world": "oracle" if setting.oracle else "imagination",
            "robot": load_env(setting.card).robot,
            "action_mode": setting.action_mode,
            "verdict": row["verdict"],
            "success": row["verdict"] == "success",
            "row": dict(row),
        },
    )
