"""Checks of actions against the states they lead to: absolute or displacement, scale, delay, and the gripper's sign."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from vap_gym.data.checkup.sample import Array, Finding, Looked, Sample
from vap_gym.data.conventions import ACTION, CARTESIAN, GRIPPER, JOINTS

Pairs = Sequence[tuple[Array, Array]]  # states (R, n) and commands (R, n), an episode each
LAGS = range(-4, 9)
MIN_ROWS = 40
STATED = {
    "joint_position": ("joints", "target"),
    "cartesian_pose": ("tip", "target"),
    "joint_velocity": ("joints", "step"),
    "cartesian_velocity": ("tip", "step"),
    "cartesian_delta": ("tip", "step"),
    "bridge": ("tip", "step"),
    "rt1": ("tip", "step"),
}
LOGGED = {  # commands that importers keep row for row, and the state that each is to be compared with
    "log.action_joint_position": ("joints", "target"),
    "log.action_cartesian_position": ("tip", "target"),
    "log.action_joint_velocity": ("joints", "step"),
    "log.action_cartesian_velocity": ("tip", "step"),
}
ABSOLUTE = {"joints": "joint_position", "tip": "cartesian_pose"}


@dataclass(frozen=True, kw_only=True)
class Commands:
    """Commands of one name beside the states; `scale` turns a command of kind "step" into what it asks for a row."""

    name: str
    of: Literal["joints", "tip"]
    kind: Literal["target", "step"]
    pairs: Pairs
    scale: float = 1.0

    @property
    def offsets(self) -> Pairs:
        """What each row asks to move, and what the states then do: (R − 1, n) both."""
        asked = [(c - s if self.kind == "target" else c * self.scale)[:-1] for s, c in self.pairs]
        done = [np.diff(s, axis=0) for s, _ in self.pairs]
        return list(zip(asked, done, strict=True))


def check_kind(sample: Sample) -> Iterator[Finding]:
    """Actions are what their convention says: targets near the next state, displacements along the next step."""
    modes = {str(e.info.get("action_mode")) for e in sample.episodes if e.get(ACTION) is not None}
    if not modes:
        return
    if not modes <= STATED.keys():
        yield from _guess(sample, modes)
        return
    for mode in sorted(modes):
        commands = _actions(sample, mode)
        if commands is None:
            continue
        near, scaled, slope = _nearness(commands.pairs)
        along = _along([(c[:-1], np.diff(s, axis=0)) for s, c in commands.pairs])
        figures = f"R² with the next state {near:.2f}, correlation with the next step {along:.2f}"
        what = f"'{ACTION}' is stated as {mode}"
        if commands.kind == "target" and near > 0.5:
            yield Finding(level="ok", subject="action", text=f"{mode}: targets near the next state ({figures})")
        elif commands.kind == "target" and scaled > 0.9 and not 0.8 < slope < 1.25:
            yield Finding(
                level="fail",
                subject="action",
                text=f"{what}, and follows the states at {slope:.3g} times their size (correlation {scaled:.2f}).",
                why="A command in another unit sends the arm elsewhere.",
                mend=f"Convert it on import: divide by {slope:.3g}{_unit(slope)}.",
            )
        elif commands.kind == "target":
            like = "it behaves like displacements" if along > 0.3 else "it is no target of these states"
            yield Finding(
                level="fail",
                subject="action",
                text=f"{what}, an absolute target, but {like}: {figures}.",
                why="Displacements read as targets send the arm into its base.",
                mend="Name the convention that it has (cartesian_delta, joint_velocity, …), or choose another field.",
            )
        elif near > 0.8:
            yield Finding(
                level="fail",
                subject="action",
                text=f"{what}, a displacement, but it lies where the next state is: {figures}.",
                why="Targets read as displacements throw the arm out of reach at the first step.",
                mend=f"Name it as what it is: {ABSOLUTE[commands.of]}.",
            )
        else:
            yield Finding(level="ok", subject="action", text=f"{mode}: displacements ({figures})")


def check_tracking(sample: Sample) -> Iterator[Finding]:
    """How much of what is asked for the robot does within a row, and how many rows later."""
    for commands in _all_commands(sample):
        offsets = commands.offsets
        scores = {lag: _along(_shifted(offsets, lag)) for lag in LAGS}
        best = max(scores, key=lambda lag: scores[lag])
        if scores[best] < 0.2:
            yield Finding(
                level="note",
                subject="tracking",
                text=f"'{commands.name}' does not explain the motion: correlation {scores[best]:.2f} at best.",
                why="A model cannot learn what an action does from rows where it does nothing.",
                mend="Check that actions and states belong to the same rows, frame and order of joints.",
            )
            continue
        if best < 0 and scores[best] > scores[0] + 0.03:
            yield Finding(
                level="fail",
                subject="tracking",
                text=f"'{commands.name}' comes {-best} rows after the motion that it leads to: correlation "
                f"{scores[best]:.2f} there, {scores[0]:.2f} as stored.",
                why="Row t must lead from frame t to t + 1.",
                mend=f"Move the actions {-best} rows up on import.",
            )
            continue
        shares = [_share(_shifted([pair], max(best, 0))) for pair in offsets]
        share, low, high = float(np.median(shares)), float(np.min(shares)), float(np.max(shares))
        figures = (
            f"a row realises {share:.2g} ({low:.2g} to {high:.2g}) of what '{commands.name}' asks for, {_lag(best)}"
        )
        if share < 0.02 or share > 4:
            yield Finding(
                level="fail",
                subject="tracking",
                text=f"The scale of the commands is off: {figures}.",
                why="Silent errors of scale look like a policy that does nothing, or too much.",
                mend="Check the unit of the commands: metres, radians, or shares of the card's greatest step.",
            )
        elif best > 4:
            yield Finding(
                level="note",
                subject="tracking",
                text=f"The robot answers late: {figures}.",
                why="A delay that is no robot's is often a shift between two logs.",
                mend=f"Check the clocks, or move the actions {best} rows down on import.",
            )
        elif not 0.8 < share < 1.25:
            yield Finding(
                level="note",
                subject="tracking",
                text=f"Actions are not displacements: {figures}.",
                why=f"Adding them up moves {1 / share:.2g} times as far as the robot did.",
                mend="Draw prompts from the achieved states, or through the card's controller model (gain, lag_steps).",
            )
        else:
            yield Finding(level="ok", subject="tracking", text=figures)


def check_gripper_sign(sample: Sample) -> Iterator[Finding]:
    """The gripper closes when it is told to: its command and its closedness have the same sign."""
    for name, pairs, is_target in _gripper_commands(sample):
        score = _gripper_score(pairs, is_target)
        if score is None:
            continue
        if score < -0.2:
            yield Finding(
                level="fail",
                subject="gripper",
                text=f"The gripper does the opposite of '{name}': correlation {score:.2f} "
                f"{'with its closedness' if is_target else 'with its motion'}.",
                why="Every grasp would be learnt as a release.",
                mend=f"One of the two is flipped: {GRIPPER} is 0 (open) to 1 (closed). Map 1 - value on import.",
            )
        elif score > 0.2:
            yield Finding(level="ok", subject="gripper", text=f"follows '{name}': correlation {score:.2f}")


def _guess(sample: Sample, modes: set[str]) -> Iterator[Finding]:
    """For actions of no stated convention: what they behave like."""
    likely = []
    for mode in ("joint_position", "cartesian_pose", "cartesian_delta", "joint_velocity"):
        commands = _actions(sample, mode)
        if commands is None:
            continue
        near, _, _ = _nearness(commands.pairs)
        along = _along([(c[:-1], np.diff(s, axis=0)) for s, c in commands.pairs])
        if commands.kind == "target" and near > 0.5:
            likely.append(f"{mode} (R² with the next state {near:.2f})")
        elif commands.kind == "step" and along > 0.3:
            likely.append(f"{mode} (correlation with the next step {along:.2f})")
    yield Finding(
        level="note",
        subject="action",
        text=f"No convention is stated for '{ACTION}' ({', '.join(sorted(modes))})"
        + (f"; it behaves like {' or '.join(likely)}." if likely else "."),
        why="Delta and absolute actions are mixed up most easily where nobody says which they are.",
        mend=f"State it on import (info['action_mode']): {', '.join(STATED)}.",
    )


def _actions(sample: Sample, mode: str) -> Commands | None:
    """The column `action` of the episodes that state this mode (or none that is known), beside the states."""
    of, kind = STATED[mode]
    pairs = []
    for episode in sample.episodes:
        action, state = episode.get(ACTION), _state(episode, of)
        stated = str(episode.info.get("action_mode"))
        if action is None or state is None or (stated in STATED and stated != mode):
            continue
        if action.shape[1] < state.shape[1] or (of == "joints" and action.shape[1] > state.shape[1] + 2):
            continue
        pairs.append((state, action[:, : state.shape[1]]))
    return _commands(ACTION, of, kind, pairs, _scale(sample, mode))


def _all_commands(sample: Sample) -> Iterator[Commands]:
    """All commands: row for row where the log was kept so, else `action` itself."""
    logged = []
    for name, (of, kind) in LOGGED.items():
        pairs = []
        for episode in sample.episodes:
            command = _rows(episode, name)
            state = _rows(episode, "log.joint_position" if of == "joints" else "log.cartesian_position")
            state = _state(episode, of) if state is None else state[:, :3] if of == "tip" else state
            if command is not None and state is not None:
                command = command[:, :3] if of == "tip" else command
                if command.shape == state.shape:
                    pairs.append((state, command))
        found = _commands(name, of, kind, pairs, _scale(sample, name.removeprefix("log.action_")))
        logged += [found] if found else []
    yield from logged
    if not logged:
        for mode in sorted({str(e.info.get("action_mode")) for e in sample.episodes} & STATED.keys()):
            commands = _actions(sample, mode)
            if commands is not None and (commands.kind == "step" or _nearness(commands.pairs)[0] > 0.5):
                yield commands


def _commands(name: str, of: str, kind: str, pairs: list[tuple[Array, Array]], scale: float) -> Commands | None:
    """Commands whose rows are finite and many enough, and whose states move."""
    good = []
    for state, command in pairs:
        finite = np.isfinite(state).all(axis=1) & np.isfinite(command).all(axis=1)
        if finite.sum() > 8 and np.ptp(state[finite], axis=0).max() > 0:
            good.append((state[finite], command[finite]))
    if sum(len(state) for state, _ in good) < MIN_ROWS or len({state.shape[1] for state, _ in good}) > 1:
        return None
    assert of in ("joints", "tip")
    assert kind in ("target", "step")
    return Commands(name=name, of=of, kind=kind, pairs=good, scale=scale)  # type: ignore[arg-type]


def _gripper_commands(sample: Sample) -> Iterator[tuple[str, Pairs, bool]]:
    """Commands of closedness (or closing, where False) beside the closedness, by the name of their column."""
    rows = [(_rows(e, "log.gripper_position"), _rows(e, "log.action_gripper_position")) for e in sample.episodes]
    logged = [(s, c) for s, c in rows if s is not None and c is not None and s.shape == c.shape and s.shape[1] == 1]
    if logged:
        yield "log.action_gripper_position", logged, True
    targets, speeds = [], []
    for episode in sample.episodes:
        action, state, mode = episode.get(ACTION), episode.get(GRIPPER, 1), episode.info.get("action_mode")
        if action is None or state is None or mode not in STATED:
            continue
        arm = _state(episode, STATED[mode][0])
        if mode in ("bridge", "joint_position", "cartesian_pose"):
            if arm is not None and action.shape[1] > (arm.shape[1] if mode == "joint_position" else 6):
                targets.append((state, 1 - action[:, -1:] if mode == "bridge" else action[:, -1:]))
        elif action.shape[1] > (arm.shape[1] if arm is not None and mode == "joint_velocity" else 6):
            speeds.append((state, action[:, -1:]))
    if targets:
        yield ACTION, targets, True
    if speeds:
        yield ACTION, speeds, False


def _gripper_score(pairs: Pairs, is_target: bool) -> float | None:
    """Correlation of the command with closedness some rows later, or of a velocity with its change."""
    scores = []
    finite = [np.isfinite(state).all(axis=1) & np.isfinite(command).all(axis=1) for state, command in pairs]
    pairs = [(state[good], command[good]) for (state, command), good in zip(pairs, finite, strict=True)]
    for lag in range(5):
        a, b = [], []
        for state, command in pairs:
            moved = np.diff(state, axis=0)
            followed = state[1:] if is_target else moved
            n = len(followed) - lag
            if n > 4:
                a.append(command[:n, 0])
                b.append(followed[lag:, 0])
        if a:
            x, y = np.concatenate(a), np.concatenate(b)
            if len(x) >= 20 and np.ptp(x) > 0.1 and np.ptp(y) > 0.02:
                scores.append(float(np.corrcoef(x, y)[0, 1]))
    return max(scores, key=abs) if scores else None


def _state(episode: Looked, of: str) -> Array | None:
    values = episode.get(JOINTS) if of == "joints" else episode.get(CARTESIAN, 6)
    return values if values is None or of == "joints" else values[:, :3]


def _rows(episode: Looked, name: str) -> Array | None:
    """A column of the log with all its rows, (R, n): those under each frame one after another, their padding NaN."""
    values = episode.columns.get(name)
    if values is None or name.removeprefix("log.") in episode.info.get("absent", ()):
        return None
    frame = episode.columns.get(name.replace("log.action_", "observation.").replace("log.", "observation."))
    wide = _is_wide(episode) if frame is None else values.ndim == frame.ndim + 1
    count = len(values) * values.shape[1] if wide and values.ndim > 1 else len(values)
    return np.asarray(values.reshape(count, -1), np.float64)


def _is_wide(episode: Looked) -> bool:
    """Whether the log has several rows under each frame."""
    joints, logged = episode.columns.get(JOINTS), episode.columns.get("log.joint_position")
    return joints is not None and logged is not None and logged.ndim == joints.ndim + 1


def _scale(sample: Sample, mode: str) -> float:
    """What a command of 1 asks for in a row: radians or metres in velocity modes."""
    if mode not in ("joint_velocity", "cartesian_velocity") or sample.card is None:
        return 1.0
    controller = sample.card.controller
    return controller.joint_step_rad if mode == "joint_velocity" else controller.linear_step_m


def _nearness(pairs: Pairs) -> tuple[float, float, float]:
    """R² of commands as predictions of the next state; correlation and slope of the one on the other."""
    state = np.concatenate([s[1:] for s, _ in pairs])
    command = np.concatenate([c[:-1] for _, c in pairs])
    centred, given = state - state.mean(axis=0), command - command.mean(axis=0)
    spread = max(float((centred**2).sum()), 1e-12)
    slope = float((centred * given).sum()) / spread
    correlation = float((centred * given).sum()) / max(np.sqrt(spread * float((given**2).sum())), 1e-12)
    return 1 - float(((command - state) ** 2).sum()) / spread, correlation, slope


def _along(pairs: Pairs) -> float:
    """Correlation about zero of what is asked with what is done."""
    a, b = (np.concatenate([pair[i].reshape(-1) for pair in pairs]) if pairs else np.zeros(1) for i in (0, 1))
    return float((a * b).sum() / max(np.sqrt((a * a).sum() * (b * b).sum()), 1e-12))


def _share(pairs: Pairs) -> float:
    """The least-squares share of what is asked that is done."""
    a, b = (np.concatenate([pair[i].reshape(-1) for pair in pairs]) for i in (0, 1))
    return float((a * b).sum() / max((a * a).sum(), 1e-12))


def _shifted(pairs: Pairs, lag: int) -> Pairs:
    """What is asked, and what is done `lag` rows later (earlier, where negative)."""
    long = [(a, b) for a, b in pairs if len(a) > 2 * abs(lag) + 2]
    return [(a[: len(a) - lag], b[lag:]) if lag >= 0 else (a[-lag:], b[:lag]) for a, b in long]


def _lag(lag: int) -> str:
    return "in the same step" if lag == 0 else f"{lag} step{'s' if lag > 1 else ''} later"


def _unit(slope: float) -> str:
    known = {1000.0: " (millimetres)", 100.0: " (centimetres)", 180 / np.pi: " (degrees)"}
    return next((text for size, text in known.items() if 0.7 < slope / size < 1.4), "")
