"""A kinematic tree as a few tensors: batched, differentiable forward kinematics and geometric Jacobians.

Fixed joints are merged into the links they carry, so only moving joints cost anything. A moving joint's local pose is linear
in (1, sin q, cos q, q), which turns all of them into poses at once; they are then multiplied level by level from the base.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from vap_gym.errors import UrdfError, unknown_name_message


@dataclass(frozen=True, kw_only=True, eq=False)
class Chain:
    """A robot's moving parts. n driven joints, M ≥ n moving ones (mimics included), L links. Built by `read_urdf`.

    `lower`, `upper` are in rad (m where prismatic; infinite where continuous), `velocity` in rad/s or m/s.
    The order of q is `joint_names`; the order of poses is `link_names`; the base frame is `base_link`'s.
    """

    name: str
    base_link: str
    joint_names: tuple[str, ...]
    link_names: tuple[str, ...]
    lower: Float[Tensor, " n"]
    upper: Float[Tensor, " n"]
    velocity: Float[Tensor, " n"]
    moving_names: tuple[str, ...]  # all moving joints, sorted by level
    parent: tuple[int, ...]  # moving joint above each, -1 at the base
    source: tuple[int, ...]  # the driven joint that moves each
    level_sizes: tuple[int, ...]  # how many moving joints lie at each level
    level_parents: tuple[Int64[Tensor, " k"] | None, ...]  # where in the level above; None where all share one or map 1:1
    source_index: Int64[Tensor, " M"] | None  # None where q is the moving joints' order already
    multiplier: Float[Tensor, " M"]
    offset: Float[Tensor, " M"]
    coefficients: Float[Tensor, "4 M 4 4"]  # local pose = c0 + sin q · c1 + cos q · c2 + q · c3
    is_prismatic: Bool[Tensor, " M"]
    any_prismatic: bool
    any_revolute: bool
    axis: Float[Tensor, "M 3"]  # in the joint's own frame
    body: tuple[int, ...]  # moving joint that carries each link, counted from 1; 0 is the base
    link_body: Int64[Tensor, " L"]  # the same, as a tensor
    link_offset: Float[Tensor, "L 4 4"]
    jacobian_map: Float[Tensor, "L M n"]  # columns of moving joints → columns of driven joints, 0 where a joint is not above

    @property
    def size(self) -> int:
        """n, the width of q."""
        return len(self.joint_names)

    def link_index(self, link: str) -> int:
        """Return where `link` stands in `link_names`; UrdfError where it does not."""
        if link not in self.link_names:
            raise UrdfError(unknown_name_message(f"link of '{self.name}'", link, self.link_names))
        return self.link_names.index(link)

    def joint_index(self, joint: str) -> int:
        """Return where `joint` stands in q; UrdfError where it does not."""
        if joint not in self.joint_names:
            raise UrdfError(unknown_name_message(f"driven joint of '{self.name}'", joint, self.joint_names))
        return self.joint_names.index(joint)

    def links(self, q: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch L 4 4"]:
        """Return T_base_link of every link."""
        bodies = self._bodies(q)
        return bodies.index_select(-3, self.link_body) @ self.link_offset

    def fk(self, q: Float[Tensor, "*batch n"], link: str) -> Float[Tensor, "*batch 4 4"]:
        """Return T_base_link of one link (for many calls, `subchain` first: it drops what does not carry the link)."""
        i = self.link_index(link)
        return self._bodies(q)[..., self.body[i], :, :] @ self.link_offset[i]

    def jacobian(self, q: Float[Tensor, "*batch n"], link: str) -> Float[Tensor, "*batch 6 n"]:
        """Return the geometric Jacobian of the link's origin: rows linear [m], angular [rad], both in the base frame."""
        return self.fk_and_jacobian(q, link)[1]

    def fk_and_jacobian(
        self, q: Float[Tensor, "*batch n"], link: str
    ) -> tuple[Float[Tensor, "*batch 4 4"], Float[Tensor, "*batch 6 n"]]:
        """Return `fk` and `jacobian` of one link from one pass."""
        i = self.link_index(link)
        bodies = self._bodies(q)
        T_base_link = bodies[..., self.body[i], :, :] @ self.link_offset[i]
        moving = bodies[..., 1:, :, :]
        axis_base = (moving[..., :3, :3] @ self.axis.unsqueeze(-1)).squeeze(-1)
        arm_base = T_base_link[..., None, :3, 3] - moving[..., :3, 3]
        swing = torch.linalg.cross(axis_base, arm_base)
        if self.any_prismatic:
            slides = self.is_prismatic.unsqueeze(-1)
            swing, axis_base = torch.where(slides, axis_base, swing), torch.where(slides, 0.0, axis_base)
        columns = torch.cat([swing, axis_base], -1)  # (*b, M, 6)
        return T_base_link, columns.mT @ self.jacobian_map[i]

    def _bodies(self, q: Tensor) -> Tensor:
        """Poses of the base (identity) and of all moving joints, (*b, 1 + M, 4, 4)."""
        if q.shape[-1:] != (self.size,):
            raise UrdfError(f"q of '{self.name}' must have shape (*batch, {self.size}), got {tuple(q.shape)}.")
        local = self._local(q)
        identity = torch.eye(4, dtype=local.dtype, device=local.device).expand(*q.shape[:-1], 1, 4, 4)
        levels, first = [identity], 0
        for size, parents in zip(self.level_sizes, self.level_parents, strict=True):
            above = levels[-1] if parents is None else levels[-1].index_select(-3, parents)
            levels.append(above @ local[..., first : first + size, :, :] if first else local[..., :size, :, :])
            first += size
        return torch.cat(levels, -3)

    def _local(self, q: Tensor) -> Tensor:
        """Each moving joint's pose in the one above, (*b, M, 4, 4)."""
        if self.source_index is not None:
            q = q.index_select(-1, self.source_index) * self.multiplier + self.offset
        q = q[..., None, None]
        c = self.coefficients
        local = c[0].expand(*q.shape[:-3], *c.shape[1:])
        if self.any_revolute:
            local = torch.addcmul(torch.addcmul(c[0], q.sin(), c[1]), q.cos(), c[2])
        return torch.addcmul(local, q, c[3]) if self.any_prismatic else local

    def subchain(self, links: Sequence[str]) -> Chain:
        """Return the chain with these links only, in this order, and only the joints that move them."""
        wanted = [self.link_index(link) for link in links]
        kept: set[int] = set()
        for i in wanted:
            j = self.body[i] - 1
            while j >= 0:
                kept.add(j)
                j = self.parent[j]
        moving = sorted(kept)
        driven = sorted({self.source[j] for j in moving})
        new_moving = {old: new for new, old in enumerate(moving)}
        new_driven = {old: new for new, old in enumerate(driven)}
        parent = tuple(new_moving[self.parent[j]] if self.parent[j] >= 0 else -1 for j in moving)
        source = tuple(new_driven[self.source[j]] for j in moving)
        multiplier, offset = self.multiplier[moving], self.offset[moving]
        device = self.lower.device
        prismatic = self.is_prismatic[moving]
        body = tuple(new_moving.get(self.body[i] - 1, -1) + 1 for i in wanted)
        level_sizes, level_parents = levels_of(parent, device)
        return replace(
            self,
            joint_names=tuple(self.joint_names[j] for j in driven),
            link_names=tuple(links),
            lower=self.lower[driven],
            upper=self.upper[driven],
            velocity=self.velocity[driven],
            moving_names=tuple(self.moving_names[j] for j in moving),
            parent=parent,
            source=source,
            level_sizes=level_sizes,
            level_parents=level_parents,
            source_index=source_index_of(source, multiplier, offset, len(driven)),
            multiplier=multiplier,
            offset=offset,
            coefficients=self.coefficients[:, moving],
            is_prismatic=prismatic,
            any_prismatic=bool(prismatic.any()),
            any_revolute=bool((~prismatic).any()),
            axis=self.axis[moving],
            body=body,
            link_body=torch.tensor(body, device=device),
            link_offset=self.link_offset[wanted],
            jacobian_map=self.jacobian_map[wanted][:, moving][:, :, driven],
        )

    def to(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Chain:
        """Return the chain with its tensors in another dtype or on another device."""
        return replace(
            self,
            lower=self.lower.to(dtype=dtype, device=device),
            upper=self.upper.to(dtype=dtype, device=device),
            velocity=self.velocity.to(dtype=dtype, device=device),
            level_parents=tuple(None if p is None else p.to(device=device) for p in self.level_parents),
            source_index=None if self.source_index is None else self.source_index.to(device=device),
            multiplier=self.multiplier.to(dtype=dtype, device=device),
            offset=self.offset.to(dtype=dtype, device=device),
            coefficients=self.coefficients.to(dtype=dtype, device=device),
            is_prismatic=self.is_prismatic.to(device=device),
            axis=self.axis.to(dtype=dtype, device=device),
            link_body=self.link_body.to(device=device),
            link_offset=self.link_offset.to(dtype=dtype, device=device),
            jacobian_map=self.jacobian_map.to(dtype=dtype, device=device),
        )


def levels_of(
    parent: Sequence[int], device: torch.device | str = "cpu"
) -> tuple[tuple[int, ...], tuple[Int64[Tensor, " k"] | None, ...]]:
    """Return each level's size, and where its joints' parents stand in the level above (None: broadcast or one to one).

    `parent` is sorted by level.
    """
    depth: list[int] = []
    for above in parent:
        depth.append(0 if above < 0 else depth[above] + 1)
    sizes = tuple(depth.count(level) for level in range(max(depth, default=-1) + 1))
    parents: list[Tensor | None] = []
    first = 0
    for level, size in enumerate(sizes):
        if level == 0 or sizes[level - 1] == 1:
            parents.append(None)
        else:
            inside = [parent[j] - (first - sizes[level - 1]) for j in range(first, first + size)]
            same = inside == list(range(sizes[level - 1]))
            parents.append(None if same else torch.tensor(inside, device=device))
        first += size
    return sizes, tuple(parents)


def source_index_of(
    source: Sequence[int], multiplier: Tensor, offset: Tensor, size: int
) -> Int64[Tensor, " M"] | None:
    """Return `source` as a tensor, or None where q can be used as it is (no mimics, same order)."""
    plain = list(source) == list(range(size)) and bool((multiplier == 1).all() and (offset == 0).all())
    return None if plain else torch.tensor(list(source), dtype=torch.int64, device=multiplier.device)
