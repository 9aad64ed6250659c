"""Checks of states against the robot's own card: units, reach, limits, speeds, and its forward kinematics."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from vap_gym.data.checkup.columns import angle_between
from vap_gym.data.checkup.sample import Array, Finding, Sample
from vap_gym.data.conventions import CARTESIAN, JOINTS

ANY_REACH_M = 3.0  # no arm on a table reaches farther
LIMIT_SLACK = 0.1  # rad (m where a joint slides) past a limit that logs are granted
EULER_ORDERS = ("XYZ", "zyx", "ZYX", "xzy", "yxz", "zxz")


def check_card(sample: Sample) -> Iterator[Finding]:
    """The robot is known, has as many joints as are logged, and something of its state is."""
    if not any(sample.series(name) for name in (JOINTS, CARTESIAN)):
        names = sorted({name for episode in sample.episodes for name in episode.columns})
        yield Finding(
            level="note",
            subject="columns",
            text=f"Neither {JOINTS} nor {CARTESIAN} is there, among {', '.join(names) or 'no columns'}.",
            why="Without the robot's state there is little to check, and no prompt to draw.",
            mend="Map the source's fields to these names on import.",
        )
    if sample.card is None:
        yield Finding(
            level="note",
            subject="robot",
            text=f"No card is known for the robot '{sample.robot}'.",
            why="Reach, limits, speeds and kinematics could not be checked.",
            mend="Name one: --robot panda_robotiq, or write a card (vap-gym robots lists those there are).",
        )
        return
    widths = {values.shape[1] for values in sample.series(JOINTS)}
    if sample.arm is not None and widths - {sample.arm.size}:
        yield Finding(
            level="fail",
            subject="robot",
            text=f"{JOINTS} has {widths.pop()} entries, and '{sample.robot}' has {sample.arm.size} joints.",
            why="Prompts cannot be drawn from joints of another arm.",
            mend="Name the right robot (--robot), or map the arm's joints only, without the gripper's.",
        )


def check_reach(sample: Sample) -> Iterator[Finding]:
    """Positions are metres from the base: within the arm's reach, and not all within a hundredth of it."""
    series = sample.series(CARTESIAN, 6)
    if not series:
        return
    distance = np.concatenate([np.linalg.norm(values[:, :3], axis=1) for values in series])
    reach = _reach_m(sample)
    far, typical = float(np.percentile(distance, 99)), float(np.median(distance))
    if far > 1.1 * reach:
        unit = next((u for u, s in (("centimetres", 100), ("millimetres", 1000)) if 0.05 < typical / s < reach), None)
        guess = f"They look like {unit}: divide by {100 if unit == 'centimetres' else 1000}." if unit else ""
        yield Finding(
            level="fail",
            subject="reach",
            text=f"The tip of {CARTESIAN} is up to {far:.4g} m from the base; '{sample.robot}' reaches {reach:.2f} m.",
            why="Prompts would be drawn outside the picture.",
            mend=f"{guess or 'Check the unit, and that the base frame is that of the robot.'} Positions are metres.",
        )
    elif typical < 0.01 * reach:
        yield Finding(
            level="fail",
            subject="reach",
            text=f"The tip of {CARTESIAN} is {typical:.4g} m from the base (median), inside the base itself.",
            why="Prompts would be drawn at the robot's foot.",
            mend="Check the unit (kilometres or scaled numbers?), and that these are positions, not displacements.",
        )


def check_limits(sample: Sample) -> Iterator[Finding]:
    """Joints are radians within the limits of the URDF."""
    series = sample.series(JOINTS, sample.arm.size if sample.arm else None)
    if not series:
        return
    joints = np.concatenate(series)
    low, high, names = _limits(sample, joints.shape[1])
    outside = np.maximum(low - LIMIT_SLACK - joints, joints - high - LIMIT_SLACK) > 0
    if not outside.any():
        return
    share = float(outside.any(axis=1).mean())
    radians = np.deg2rad(joints)
    fits = ((radians >= low - LIMIT_SLACK) & (radians <= high + LIMIT_SLACK)).mean()
    if np.abs(joints).max() > 2 * np.pi and fits > 0.95:
        yield Finding(
            level="fail",
            subject="degrees",
            text=f"{JOINTS} reaches {np.abs(joints).max():.4g}, beyond the joints' limits in {share:.0%} of rows.",
            why="Read as radians they fold the arm many times over.",
            mend="They look like degrees: multiply them by π/180 on import.",
        )
        return
    worst = int(outside.mean(axis=0).argmax())
    values = joints[:, worst]
    yield Finding(
        level="fail" if share > 0.01 else "note",
        subject="limits",
        text=f"{names[worst]} goes from {values.min():.3g} to {values.max():.3g} rad, its limits are "
        f"{low[worst]:.3g} to {high[worst]:.3g}; {share:.1%} of rows are outside some limit.",
        why="Such states are of another robot, zero, sign or order of joints.",
        mend="Check zeros, signs and order of the joints against the card's arm_joints.",
    )


def check_speed(sample: Sample) -> Iterator[Finding]:
    """The joints move no faster than they can, at the rate that the set states: else the rate is wrong."""
    if sample.arm is None:
        return
    velocity = sample.arm.velocity.numpy()
    series = [v for v in sample.series(JOINTS, sample.arm.size) if len(v) > 1]
    if not series:
        return
    ratio = np.concatenate([(np.abs(np.diff(v, axis=0)) * sample.fps / velocity).max(axis=1) for v in series])
    fast, brisk = float((ratio > 1.1).mean()), float(np.percentile(ratio, 99))
    if fast > 0.02:
        yield Finding(
            level="fail",
            subject="rate",
            text=f"At {sample.fps:g} frames a second the joints move at up to {brisk:.2g} times their greatest speed "
            f"(p99), beyond it in {fast:.0%} of steps.",
            why="Training at a wrong rate teaches a wrong speed.",
            mend=f"The true rate is at most about {sample.fps / brisk:.2g} Hz: state it on import (--rate-hz, --fps).",
        )
    elif 0 < brisk < 0.004:
        yield Finding(
            level="note",
            subject="rate",
            text=f"At {sample.fps:g} frames a second the joints stay below {brisk:.2%} of their greatest speed (p99).",
            why="The rate may be too low by far, or the joints be scaled.",
            mend="Check the rate and the joints' unit.",
        )


def check_kinematics(sample: Sample) -> Iterator[Finding]:
    """Forward kinematics of the joints gives the logged pose of the tip: else a unit, order, link or row differs."""
    pairs = []
    for episode in sample.episodes:
        joints, pose = episode.get(JOINTS), episode.get(CARTESIAN, 6)
        if joints is None or pose is None:
            continue
        good = np.isfinite(joints).all(axis=1) & np.isfinite(pose).all(axis=1)
        T = sample.fk(joints[good])
        if T is not None and good.any():
            pairs.append((joints[good], pose[good], T))
    if not pairs:
        return
    away = np.concatenate([np.linalg.norm(pose[:, :3] - T[:, :3, 3], axis=1) for _, pose, T in pairs])
    turned = np.concatenate([angle_between(_matrices(pose[:, 3:]), T[:, :3, :3]) for _, pose, T in pairs])
    far, askew = float(np.median(away)), float(np.median(turned))
    figures = f"median {1e3 * far:.3g} mm and {np.rad2deg(askew):.3g}°, at most {1e3 * away.max():.3g} mm"
    if far < 0.01 and askew < 0.05:
        yield Finding(level="ok", subject="kinematics", text=f"joints and {CARTESIAN} agree: {figures}")
        return
    joints, pose, T = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    yield Finding(
        level="fail",
        subject="kinematics",
        text=f"Forward kinematics of {JOINTS} and {CARTESIAN} disagree: {figures}.",
        why="One of them is wrong, and prompts drawn from the joints would not lie on the robot.",
        mend=_diagnosis(sample, joints, pose, T, far, askew),
    )


def _diagnosis(sample: Sample, joints: Array, pose: Array, T: Array, far: float, askew: float) -> str:
    """Which change would make the two agree."""
    from scipy.spatial.transform import Rotation

    assert sample.card is not None
    if far < 0.01:
        for order in EULER_ORDERS:
            error = angle_between(Rotation.from_euler(order, pose[:, 3:]).as_matrix(), T[:, :3, :3])
            if np.median(error) < 0.03:
                kind = "intrinsic" if order.isupper() else "extrinsic"
                return f"The angles fit as {kind} {order}: convert them to extrinsic xyz on import."
        offset = np.swapaxes(T[:, :3, :3], 1, 2) @ _matrices(pose[:, 3:])
        if np.median(angle_between(offset, np.broadcast_to(offset[len(offset) // 2], offset.shape))) < 0.03:
            return "The angles differ by a fixed rotation: the pose is that of a link turned from the tip link."
        return "Only the angles differ: check their order and unit."
    for scale, unit in ((1e-3, "millimetres"), (1e-2, "centimetres")):
        if np.median(np.linalg.norm(pose[:, :3] * scale - T[:, :3, 3], axis=1)) < 0.01:
            return f"The positions fit as {unit}: convert them to metres on import."
    local = np.einsum("tji,tj->ti", T[:, :3, :3], pose[:, :3] - T[:, :3, 3])
    for link in (sample.card.gripper.tool_link, sample.card.gripper.base_link):
        poses = sample.fk(joints, link)
        if poses is not None and np.median(np.linalg.norm(pose[:, :3] - poses[:, :3, 3], axis=1)) < 0.01:
            return f"The positions are those of '{link}', not of the tip link '{sample.card.tip_link}'."
    if np.median(np.linalg.norm(local - np.median(local, axis=0), axis=1)) < 0.005:
        shown = ", ".join(f"{x:.3f}" for x in np.median(local, axis=0))
        return f"The positions are those of a point fixed to the tip, at ({shown}) m in its frame: another tool centre."
    world = pose[:, :3] - T[:, :3, 3]
    if np.median(np.linalg.norm(world - np.median(world, axis=0), axis=1)) < 0.005:
        shown = ", ".join(f"{x:.3f}" for x in np.median(world, axis=0))
        return f"The positions are shifted by ({shown}) m: another base frame."
    errors = {shift: _error_m(T[:, :3, 3], pose[:, :3], shift) for shift in range(-10, 11) if len(pose) > 40}
    best = min(errors, key=lambda shift: errors[shift], default=0)
    if best and errors[best] < 0.3 * far:
        return f"They fit when the joints are read {abs(best)} rows {'later' if best > 0 else 'earlier'}."
    return f"Check order, signs and zeros of the joints, and that the robot is a '{sample.robot}' (--robot)."


def _error_m(a: Array, b: Array, shift: int) -> float:
    """Median distance of rows of `a` from those of `b` that come `shift` rows earlier."""
    ends = (a[shift:], b[: len(b) - shift]) if shift >= 0 else (a[:shift], b[-shift:])
    return float(np.median(np.linalg.norm(ends[0] - ends[1], axis=1)))


def _matrices(euler_rad: Array) -> Array:
    from scipy.spatial.transform import Rotation

    return np.asarray(Rotation.from_euler("xyz", euler_rad).as_matrix(), np.float64)


def _limits(sample: Sample, width: int) -> tuple[Array, Array, list[str]]:
    """Limits and names of the joints; twice around, where no card tells."""
    if sample.arm is None:
        full = np.full(width, 2 * np.pi)
        return -full, full, [f"joint {i}" for i in range(width)]
    return sample.arm.lower.numpy(), sample.arm.upper.numpy(), list(sample.arm.joint_names)


def _reach_m(sample: Sample) -> float:
    """How far from the base the tip can be, over joints drawn within their limits."""
    if sample.arm is None or sample.card is None:
        return ANY_REACH_M
    low, high = sample.arm.lower.clamp(min=-np.pi), sample.arm.upper.clamp(max=np.pi)
    drawn = torch.rand(4000, sample.arm.size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tip = sample.arm.fk(low + drawn * (high - low), sample.card.tip_link)[:, :3, 3]
    return 1.05 * float(tip.norm(dim=-1).max())
