"""A kinematic tree as a few tensors: batched, differentiable forward kinematics and geometric Jacobians.

Fixed joints are merged into the links they carry, so only moving joints cost anything. A moving joint's local pose is
linear in (1, sin q, cos q, q), which makes all of them at once; they are then multiplied from the base outward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from vap_gym.errors import UrdfError, VapError, unknown_name_message


@dataclass(frozen=True, kw_only=True)
class MovingJoint:
    """A joint that moves: driven itself, or the mimic of one that is (position = multiplier · source + offset)."""

    name: str
    parent: int  # the moving joint above, -1 at the base
    source: int  # the driven joint that moves it
    multiplier: float = 1.0
    offset: float = 0.0
    is_prismatic: bool = False


@dataclass(frozen=True, kw_only=True)
class RigidLink:
    """A link, and the moving joint that carries it (-1: the base)."""

    name: str
    carrier: int


@dataclass(frozen=True, kw_only=True, eq=False)
class _Index:
    """Tables that follow from the tree, made once."""

    source: Int64[Tensor, " M"] | None  # None where q is the moving joints' order already, without mimics
    multiplier: Float[Tensor, " M"]
    shift: Float[Tensor, " M"]
    slides: Bool[Tensor, " M"] | None  # None where no joint is prismatic
    offset: Int64[Tensor, " E"]  # links that do not coincide with the joint that carries them …
    offset_carrier: Int64[Tensor, " E"]  # … and that joint, counted from 1
    place: Int64[Tensor, " L"]  # where each link stands in [base, moving joints, the E links above]
    columns: Float[
        Tensor, "L M n"
    ]  # columns of moving joints → of driven joints; 0 where a joint is not above the link
    is_plain: tuple[bool, ...]  # where `columns` is the identity


@dataclass(frozen=True, kw_only=True, eq=False)
class Chain:
    """A robot's moving parts. n driven joints, M ≥ n moving ones (mimics included), L links. Built by `read_urdf`.

    `lower`, `upper` are in rad (m where prismatic; infinite where continuous), `velocity` in rad/s or m/s.
    The order of q is `joint_names`, that of poses `link_names`; the base frame is `base_link`'s.
    """

    name: str
    base_link: str
    joint_names: tuple[str, ...]
    lower: Float[Tensor, " n"]
    upper: Float[Tensor, " n"]
    velocity: Float[Tensor, " n"]
    moving: tuple[MovingJoint, ...]  # parents first
    coefficients: Float[Tensor, "4 M 4 4"]  # local pose = c0 + sin q · c1 + cos q · c2 + q · c3
    axis: Float[Tensor, "M 3"]  # unit, in the joint's own frame
    rigid: tuple[RigidLink, ...]
    link_offset: Float[Tensor, "L 4 4"]  # T_carrier_link
    _index: _Index

    @property
    def size(self) -> int:
        """n, the width of q."""
        return len(self.joint_names)

    @property
    def link_names(self) -> tuple[str, ...]:
        """The links, in the order of `links`."""
        return tuple(link.name for link in self.rigid)

    def link_index(self, link: str) -> int:
        """Return where `link` stands in `link_names`; UrdfError where it does not."""
        for i, known in enumerate(self.rigid):
            if known.name == link:
                return i
        raise UrdfError(unknown_name_message(f"link of '{self.name}'", link, self.link_names))

    def joint_index(self, joint: str) -> int:
        """Return where `joint` stands in q; UrdfError where it does not."""
        if joint not in self.joint_names:
            raise UrdfError(unknown_name_message(f"driven joint of '{self.name}'", joint, self.joint_names))
        return self.joint_names.index(joint)

    def links(self, q: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch L 4 4"]:
        """Return T_base_link of every link."""
        bodies = self._bodies(q)
        identity = torch.eye(4, dtype=q.dtype, device=q.device).expand(bodies.shape[0], 1, 4, 4)
        known = torch.cat([identity, bodies], 1)
        offset = known.index_select(1, self._index.offset_carrier) @ self.link_offset.index_select(
            0, self._index.offset
        )
        poses = torch.cat([known, offset], 1).index_select(1, self._index.place)
        return poses.reshape(*q.shape[:-1], len(self.rigid), 4, 4)

    def fk(self, q: Float[Tensor, "*batch n"], link: str) -> Float[Tensor, "*batch 4 4"]:
        """Return T_base_link of one link (for many calls, `subchain` first: it drops what does not carry the link)."""
        return self._carried(self._bodies(q), self.link_index(link)).reshape(*q.shape[:-1], 4, 4)

    def jacobian(self, q: Float[Tensor, "*batch n"], link: str) -> Float[Tensor, "*batch 6 n"]:
        """Return the geometric Jacobian of the link's origin in the base frame: linear [m], then angular [rad]."""
        return self.fk_and_jacobian(q, link)[1]

    def fk_and_jacobian(
        self, q: Float[Tensor, "*batch n"], link: str
    ) -> tuple[Float[Tensor, "*batch 4 4"], Float[Tensor, "*batch 6 n"]]:
        """Return `fk` and `jacobian` of one link from one pass."""
        i, batch = self.link_index(link), q.shape[:-1]
        bodies = self._bodies(q)
        T_base_link = self._carried(bodies, i)
        axis_base = (bodies[:, :, :3, :3] * self.axis.unsqueeze(-2)).sum(-1)
        swing = torch.linalg.cross(axis_base, T_base_link[:, None, :3, 3] - bodies[:, :, :3, 3])
        if self._index.slides is not None:
            slides = self._index.slides.unsqueeze(-1)
            swing, axis_base = torch.where(slides, axis_base, swing), torch.where(slides, 0.0, axis_base)
        jacobian = torch.cat([swing, axis_base], -1).mT  # (N, 6, M)
        if not self._index.is_plain[i]:
            jacobian = jacobian @ self._index.columns[i]
        return T_base_link.reshape(*batch, 4, 4), jacobian.reshape(*batch, 6, self.size)

    def _carried(self, bodies: Tensor, link: int) -> Tensor:
        """Pose of one link, (N, 4, 4)."""
        carrier = self.rigid[link].carrier
        if carrier < 0:
            return self.link_offset[link].expand(bodies.shape[0], 4, 4)
        return bodies[:, carrier] @ self.link_offset[link]

    def _bodies(self, q: Tensor) -> Tensor:
        """Poses of all moving joints, (N, M, 4, 4) with the batch flattened."""
        if q.shape[-1:] != (self.size,):
            raise VapError(f"q of '{self.name}' must have shape (*batch, {self.size}), got {tuple(q.shape)}.")
        q = q.reshape(-1, self.size) if self.size else q.new_zeros(q.shape[:-1].numel(), 0)
        if self._index.source is not None:
            q = q.index_select(-1, self._index.source) * self._index.multiplier + self._index.shift
        q = q[..., None, None]
        c = self.coefficients
        local = torch.addcmul(torch.addcmul(c[0], q.sin(), c[1]), q.cos(), c[2])
        if self._index.slides is not None:
            local = torch.addcmul(local, q, c[3])
        bodies: list[Tensor] = []
        for joint, own in zip(self.moving, local.unbind(1), strict=True):
            bodies.append(own if joint.parent < 0 else torch.bmm(bodies[joint.parent], own))
        return torch.stack(bodies, 1) if bodies else local

    def subchain(self, links: Sequence[str]) -> Chain:
        """Return the chain with these links only, in this order, and only the joints that move them."""
        wanted = [self.link_index(link) for link in links]
        kept: set[int] = set()
        for i in wanted:
            j = self.rigid[i].carrier
            while j >= 0:
                kept.add(j)
                j = self.moving[j].parent
        movers = sorted(kept)
        driven = sorted({self.moving[j].source for j in movers})
        place = {old: new for new, old in enumerate(movers)} | {-1: -1}
        moving = tuple(
            replace(self.moving[j], parent=place[self.moving[j].parent], source=driven.index(self.moving[j].source))
            for j in movers
        )
        return build_chain(
            name=self.name,
            base_link=self.base_link,
            joint_names=tuple(self.joint_names[j] for j in driven),
            lower=self.lower[driven],
            upper=self.upper[driven],
            velocity=self.velocity[driven],
            moving=moving,
            coefficients=self.coefficients[:, movers],
            axis=self.axis[movers],
            rigid=tuple(RigidLink(name=self.rigid[i].name, carrier=place[self.rigid[i].carrier]) for i in wanted),
            link_offset=self.link_offset[wanted],
        )

    def to(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Chain:
        """Return the chain with its tensors in another dtype or on another device."""
        return build_chain(
            name=self.name,
            base_link=self.base_link,
            joint_names=self.joint_names,
            lower=self.lower.to(dtype=dtype, device=device),
            upper=self.upper.to(dtype=dtype, device=device),
            velocity=self.velocity.to(dtype=dtype, device=device),
            moving=self.moving,
            coefficients=self.coefficients.to(dtype=dtype, device=device),
            axis=self.axis.to(dtype=dtype, device=device),
            rigid=self.rigid,
            link_offset=self.link_offset.to(dtype=dtype, device=device),
        )


def build_chain(
    *,
    name: str,
    base_link: str,
    joint_names: tuple[str, ...],
    lower: Float[Tensor, " n"],
    upper: Float[Tensor, " n"],
    velocity: Float[Tensor, " n"],
    moving: tuple[MovingJoint, ...],
    coefficients: Float[Tensor, "4 M 4 4"],
    axis: Float[Tensor, "M 3"],
    rigid: tuple[RigidLink, ...],
    link_offset: Float[Tensor, "L 4 4"],
) -> Chain:
    """Return the chain with the tables that follow from its tree. Dtype and device are those of `coefficients`."""
    dtype, device = coefficients.dtype, coefficients.device

    def floats(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=device)

    def whole(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=device)

    n = len(joint_names)
    columns = torch.zeros(len(rigid), len(moving), n, dtype=dtype)
    for i, link in enumerate(rigid):
        j = link.carrier
        while j >= 0:
            columns[i, j, moving[j].source] = moving[j].multiplier
            j = moving[j].parent
    identity = torch.eye(4, dtype=dtype, device=device)
    offset = [i for i in range(len(rigid)) if not torch.equal(link_offset[i], identity)]
    place = [1 + len(moving) + offset.index(i) if i in offset else 1 + link.carrier for i, link in enumerate(rigid)]
    plain = [(j.source, j.multiplier, j.offset) for j in moving] == [(i, 1.0, 0.0) for i in range(n)]
    slides = [joint.is_prismatic for joint in moving]
    index = _Index(
        source=None if plain else whole([joint.source for joint in moving]),
        multiplier=floats([joint.multiplier for joint in moving]),
        shift=floats([joint.offset for joint in moving]),
        slides=torch.tensor(slides, device=device) if any(slides) else None,
        offset=whole(offset),
        offset_carrier=whole([1 + rigid[i].carrier for i in offset]),
        place=whole(place),
        columns=columns.to(device),
        is_plain=tuple(plain and torch.equal(c, torch.eye(n, dtype=dtype)) for c in columns),
    )
    return Chain(
        name=name,
        base_link=base_link,
        joint_names=joint_names,
        lower=lower,
        upper=upper,
        velocity=velocity,
        moving=moving,
        coefficients=coefficients,
        axis=axis,
        rigid=rigid,
        link_offset=link_offset,
        _index=index,
    )
