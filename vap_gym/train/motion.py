"""Train how things move: rollouts of places and turns against the oracle's truth, no pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from vap_gym.cards import RobotCard, load_robot
from vap_gym.data import EpisodeSet
from vap_gym.errors import CardError, VapError
from vap_gym.geometry import Camera
from vap_gym.prompts.body import Body, links_below
from vap_gym.rotations import rotation_from_quaternion_xyzw
from vap_gym.sim.spec import COLOURS
from vap_gym.train.contacts import contact_starts, grasp_starts
from vap_gym.train.fit import fit
from vap_gym.train.run import Run, Schedule, initialised_with, load_recipe, seeded
from vap_gym.train.sets import check_set
from vap_gym.world.motion import Move, ThingMotion, ThingState, motion_loss
from vap_gym.world.things import SHAPE

MOST = 4  # objects of a scene
PLACES = 9  # on a gripper, its base's among them
TRAINED_HZ = 15.0  # of a step of the network
ROUND = ("cylinder", "disc", "ball", "bottle")
MOVES_M = 0.0005  # in a step
MOVED_M, STILL_M = 0.05, 0.005  # of the score: as in `vap-gym bench fidelity`


@dataclass(frozen=True, kw_only=True)
class MotionRecipe:
    """Settings of the training of how things move; a TOML file with these keys."""

    data: list[str]
    steps: int
    robots: list[str] = field(default_factory=lambda: ["panda_robotiq"])  # the first one's gripper stands in for others
    shares: list[float] = field(default_factory=lambda: [1.0])  # of the steps that each robot gets
    model: dict[str, Any] = field(default_factory=dict)
    length: int = 24
    most_substeps: int = 60  # of a clip: those of slow robots are shorter
    batch_size: int = 256
    learning_rate: float = 2e-3
    contact_share: float = 0.7
    grasp_share: float = 0.0  # of the clips begin shortly before a grasp; half of these grasps miss, as far as any do
    place_noise_m: float = 0.004
    size_noise: float = 0.08
    turn_m: float = 0.01
    strides: list[float] = field(default_factory=lambda: [0.8, 0.12, 0.08])
    ema_decay: float = 0.998
    held_out: int = 200
    log_every: int = 50
    save_every: int = 500
    seed: int = 0
    init: str = ""  # folder of a motion to start from

    def __post_init__(self) -> None:
        if len(self.shares) != len(self.robots):
            raise CardError(
                f"shares must have one number for each of robots, got {len(self.shares)} for {len(self.robots)} "
                f"({', '.join(self.robots)}). Give as many, e.g. shares = {[1.0] * len(self.robots)}."
            )


@dataclass(frozen=True, kw_only=True)
class Motions:
    """E episodes of T frames: where the gripper's places are (nominal), and up to MOST objects, in the frame of the
    table; NaN where there is none. `substeps` of the network make up the step from one frame to the next."""

    grip: Float[Tensor, "E T G 12"]
    place_m: Float[Tensor, "E T K 3"]
    turn: Float[Tensor, "E T K 3 3"]
    half_m: Float[Tensor, "E K 3"]
    is_round: Bool[Tensor, "E K"]
    closed: Float[Tensor, "E T"]  # the gripper, 0 to 1 (nominal)
    substeps: int = 1

    def __len__(self) -> int:
        return len(self.grip)

    def pick(self, part: slice) -> Motions:
        """Some of the episodes."""
        tensors = {name: value[part] for name, value in vars(self).items() if isinstance(value, Tensor)}
        return Motions(**tensors, substeps=self.substeps)


def main(
    recipe: Path, *, out: Path = Path("runs/motion"), resume: bool = False, device: str = "cpu", threads: int = 0
) -> dict[str, Any]:
    """Train how things move.

    Args:
        recipe: a TOML file, or the name of a shipped recipe, e.g. tiny_motion.
        out: folder of the run.
        resume: go on with a run that was stopped.
        device: cpu or cuda.
        threads: CPU threads; 0 leaves torch's choice.
    """
    settings = load_recipe(MotionRecipe, recipe)
    if threads:
        torch.set_num_threads(threads)
    run, place = Run(out, resume=resume), torch.device(device)
    robots = [load_robot(name) for name in settings.robots]
    with initialised_with(settings.seed):
        model = of_robots(robots, **settings.model)
    data = [load_motions([Path(p) for p in settings.data], model.of(robot.name), robot) for robot in robots]
    if settings.init:
        begin_from(model, ThingMotion.from_pretrained(settings.init, torch_dtype=torch.float32))
    model = model.to(place)
    held = {robot.name: one.pick(slice(0, settings.held_out)) for robot, one in zip(robots, data, strict=True)}
    train = [one.pick(slice(settings.held_out, None)) for one in data]
    rng = seeded(settings.seed + 1)
    contacts = [contact_starts(one.place_m) for one in train]
    grasps = [grasps_of(one) for one in train] if settings.grasp_share else None
    shares = torch.tensor(settings.shares)

    def loss(_: int) -> Tensor:
        model.train()
        i = int(torch.multinomial(shares, 1, generator=rng))
        model.current, mine = i, train[i]
        episode, frames = _clips(mine, contacts[i], settings, rng, () if grasps is None else grasps[i])
        place_m, turn = mine.place_m[episode[:, None], frames], mine.turn[episode[:, None], frames]
        grip, there = mine.grip[episode[:, None], frames], place_m[:, 0].isfinite().all(-1)
        noise = settings.place_noise_m * torch.randn(place_m[:, 0].shape, generator=rng)
        shape = standing_shape(mine.half_m[episode], mine.is_round[episode], turn[:, 0])
        spoilt = 1.0 + settings.size_noise * torch.randn(*shape.shape[:-1], 3, generator=rng)
        shape = torch.cat([shape[..., :3] * spoilt, shape[..., 3:]], -1)
        place_m, turn = place_m.nan_to_num(), turn.nan_to_num()
        begun = (x.to(place) for x in (there, place_m[:, 0] + noise, shape, grip))
        said = rolled_out(model, *begun, substeps=mine.substeps)
        ways = (place_m[:, 1:] - place_m[:, :-1]).norm(dim=-1)
        moved = (place_m[:, 1:] - place_m[:, :1]).norm(dim=-1).amax(1) > 0.01
        counts = there * torch.where(moved, 1.0, 0.5) * (place_m[..., 2] > -0.01).all(1)
        since = turn[:, 1:] @ turn[:, :1].mT
        truth = (place_m[:, 1:] + noise[:, None], since, ways > MOVES_M, counts)
        model.current = 0
        return motion_loss(said, *(x.to(place) for x in truth), turn_m=settings.turn_m)

    return fit(
        run,
        model,
        settings,
        name="motion",
        loss=loss,
        score=lambda averaged: scores(averaged, held, settings),
        schedule=Schedule(peak=settings.learning_rate, steps=settings.steps, decay=0.8),
        rng=rng,
        weight_decay=1e-3,
    )


def of_robots(robots: Sequence[RobotCard], **settings: Any) -> ThingMotion:
    """A motion network that knows some robots' grippers, each told by PLACES places on the links of its body."""
    bodies = [Body(robot) for robot in robots]
    parts = [_places(robot, body) for robot, body in zip(robots, bodies, strict=True)]
    places = [[(link, points.mean(0)) for link, points in mine] for mine in parts]
    several = len(robots) > 1
    links = [len(body.links) for body in bodies]
    bases = [body.links.index(robot.base_link) for robot, body in zip(robots, bodies, strict=True)]
    grippers = [[link for link, _ in mine] for mine in places]
    model = ThingMotion(
        gripper=grippers if several else grippers[0],
        base=bases if several else bases[0],
        links=links if several else links[0],
        robots=[robot.name for robot in robots],
        **settings,
    )
    model.centres_m.copy_(torch.stack([where for mine in places for _, where in mine]))
    if count := int(model.config["touch_points"]):
        around = [_far_apart(points, count) - points.mean(0) for mine in parts for _, points in mine]
        model.touch_m.copy_(torch.stack(around))
    return model  # type: ignore[no-any-return]


def begin_from(model: ThingMotion, given: ThingMotion) -> None:
    """Take another network's weights; what it was not told yet counts for nothing at first.

    Raises:
        CardError: it is of other robots, or of another size.
    """
    mine, theirs = model.state_dict(), given.state_dict()
    enter = "enter.0.weight"
    known = theirs[enter].shape[1]
    same = {name for name, value in theirs.items() if name in mine and mine[name].shape == value.shape} | {enter}
    if mine[enter].shape[1] < known or set(theirs) - same or set(mine) - set(theirs) - {"touch_m"}:
        raise CardError(
            f"init must be a network of the same robots and sizes, got one of {', '.join(given.names)} with "
            f"{dict(given.config)}. Leave init out, or name another one."
        )
    wider = torch.zeros_like(mine[enter])
    wider[:, :known] = theirs[enter]
    model.load_state_dict(mine | theirs | {enter: wider})


def _far_apart(points: Float[Tensor, "N 3"], count: int) -> Float[Tensor, "n 3"]:
    """Choose points that lie far apart: each the farthest from those before, the first from the middle."""
    distance = (points - points.mean(0)).norm(dim=-1)
    chosen = []
    for _ in range(count):
        chosen.append(points[distance.argmax()])
        distance = torch.stack([(points - one).norm(dim=-1) for one in chosen]).amin(0)
    return torch.stack(chosen)


def _places(robot: RobotCard, body: Body) -> list[tuple[int, Float[Tensor, "N 3"]]]:
    """The parts of a gripper by their points: its base, then PLACES − 1 parts spread evenly over its links.

    Where there are fewer links than places, a link's surface is cut in two or more along its longest side.
    """
    base = robot.gripper.base_link
    if base not in body.links:
        raise VapError(
            f"The body of '{robot.name}' must have the gripper's base link '{base}', "
            f"got {', '.join(body.links) or 'no body'}. Make it: vap-gym body {robot.name}"
        )
    below = links_below(robot, base) - {base}
    first = body.links.index(base)
    links = [i for i, name in enumerate(body.links) if name in below] or [first]
    chosen = [links[k * len(links) // (PLACES - 1)] for k in range(PLACES - 1)]
    if len(links) > PLACES - 1:
        chosen = [links[round(x)] for x in torch.linspace(0, len(links) - 1, PLACES - 1).tolist()]
    found = [(first, body.points_m[body.link == first])]
    for link in sorted(set(chosen)):
        points, parts = body.points_m[body.link == link], chosen.count(link)
        _, _, axes = torch.linalg.svd(points - points.mean(0), full_matrices=False)
        along = points[((points - points.mean(0)) @ axes[0]).argsort()]
        found += [(link, part) for part in along.tensor_split(parts)]
    return found


def rolled_out(
    model: ThingMotion,
    there: Bool[Tensor, "B K"],
    place_m: Float[Tensor, "B K 3"],
    shape: Float[Tensor, "B K 6"],
    grip: Float[Tensor, "B T G 12"],
    *,
    substeps: int = 1,
) -> list[tuple[ThingState, Move]]:
    """The T − 1 steps after the first; of a step's substeps, what the surest said counts."""
    state, said = model.begin(there, place_m, shape, grip[:, 0]), []
    for t in range(1, grip.shape[1]):
        state, move = model.follow(state, grip[:, t], substeps)
        said.append((state, move))
    return said


def load_motions(folders: list[Path], model: ThingMotion, robot: RobotCard) -> Motions:
    """Read where gripper and objects were in every episode of that robot's sets; pictures are not looked at."""
    from tqdm import tqdm

    body = Body(robot)
    nowhere = Camera(K=torch.eye(3), T_world_camera=torch.eye(4), frame_size_px=(2, 2))  # views are poses then
    floor = torch.tensor([0.0, 0.0, robot.skeleton.drop_to_z_m])
    parts: dict[str, list[Tensor]] = {}
    for folder in folders:
        source = EpisodeSet(folder)
        if str(source.meta.get("robot_type")) != robot.name:
            continue
        check_set(source, scenes=True)
        for i in tqdm(range(len(source)), desc=f"reading {folder}", unit="episode", mininterval=5):
            episode = source.read(i, views=[], labels=[])
            columns = {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in episode.columns.items()}
            views = body.views(columns["nominal.joint_position"], columns["nominal.gripper_position"][:, 0], nowhere)
            objects = episode.info["scene"]["objects"]
            which = [COLOURS.index(item["colour"]) for item in objects]
            T, empty = len(views), MOST - len(objects)
            entry = {
                "grip": model.grip(views),
                "closed": columns["nominal.gripper_position"][:, 0],
                "place_m": torch.cat([columns["objects_m"][:, which] - floor, torch.full((T, empty, 3), torch.nan)], 1),
                "turn": torch.cat(
                    [
                        rotation_from_quaternion_xyzw(columns["objects_xyzw"][:, which]),
                        torch.full((T, empty, 3, 3), torch.nan),
                    ],
                    1,
                ),
                "half_m": torch.tensor([[*o["half_extents_m"]] for o in objects] + [[torch.nan] * 3] * empty),
                "is_round": torch.tensor([o["shape"] in ROUND for o in objects] + [False] * empty),
            }
            for key, value in entry.items():
                parts.setdefault(key, []).append(value)
    if not parts:
        raise VapError(f"No set among {', '.join(map(str, folders))} is of the robot '{robot.name}'. Make one first.")
    substeps = max(1, round(TRAINED_HZ / robot.controller.control_hz))
    return Motions(**{key: torch.stack(value) for key, value in parts.items()}, substeps=substeps)


def standing_shape(
    half_m: Float[Tensor, "*batch 3"], is_round: Bool[Tensor, "*batch"], turn: Float[Tensor, "*batch 3 3"]
) -> Float[Tensor, "*batch 6"]:
    """Return the shape (`world.things.Found`) of boxes and cylinders as they stand, whichever side is up."""
    up = turn[..., 2, :].abs().argmax(-1, keepdim=True)
    first, second = (up + 1) % 3, (up + 2) % 3
    high, a, b = (half_m.gather(-1, axis)[..., 0] for axis in (up, first, second))
    longer = torch.where((a >= b)[..., None], first, second)
    axis = turn.gather(-1, longer[..., None, :].expand(*turn.shape[:-1], 1))[..., 0]
    twice = 2.0 * torch.atan2(axis[..., 1], axis[..., 0])
    wide, narrow = torch.maximum(a, b), torch.minimum(a, b)
    longish = ((wide - narrow) / narrow).clamp(max=1.0)
    upright = is_round & (up[..., 0] == 2)
    figures = [wide, narrow, high, upright.float(), longish * twice.cos(), longish * twice.sin()]
    shape = torch.stack(figures, -1).nan_to_num()
    assert shape.shape[-1] == SHAPE
    return shape


def grasps_of(data: Motions) -> tuple[Int64[Tensor, "S 2"], Int64[Tensor, "M 2"]]:
    """Where in episodes something is about to be grasped: what is then held, and what is missed."""
    return grasp_starts(data.closed, data.grip[:, :, 1:, :3].mean(2), data.place_m, slow=data.substeps)


def _clips(
    data: Motions,
    contacts: Int64[Tensor, "S 2"],
    settings: MotionRecipe,
    rng: torch.Generator,
    grasps: Sequence[Int64[Tensor, "S 2"]] = (),
) -> tuple[Int64[Tensor, " B"], Int64[Tensor, "B T"]]:
    """Draw clips: their episodes, and the frames in them."""
    B, T = settings.batch_size, data.grip.shape[1]
    L = max(1, min(settings.length, settings.most_substeps // data.substeps, T - 1))
    stride = 1 + torch.multinomial(torch.tensor(settings.strides), B, replacement=True, generator=rng)
    stride = torch.minimum(stride, torch.tensor((T - 1) // L).clamp(min=1))
    episode = torch.randint(len(data), (B,), generator=rng)
    first = torch.randint(T, (B,), generator=rng)
    if len(contacts):
        chosen = contacts[torch.randint(len(contacts), (B,), generator=rng)]
        take = torch.rand(B, generator=rng) < settings.contact_share
        episode, first = torch.where(take, chosen[:, 0], episode), torch.where(take, chosen[:, 1], first)
    for starts in grasps:
        if len(starts):
            chosen = starts[torch.randint(len(starts), (B,), generator=rng)]
            take = torch.rand(B, generator=rng) < settings.grasp_share / len(grasps)
            episode, first = torch.where(take, chosen[:, 0], episode), torch.where(take, chosen[:, 1], first)
            stride = torch.where(take, 1, stride)
    first = torch.minimum(first, T - 1 - stride * L)
    return episode, first[:, None] + stride[:, None] * torch.arange(L + 1)


def scores(model: ThingMotion, held: Mapping[str, Motions], settings: MotionRecipe) -> dict[str, float]:
    """The figures of `score` for every robot."""
    found: dict[str, float] = {}
    for name, data in held.items():
        mine = score(model.of(name), data, length=settings.length)
        found |= mine if len(held) == 1 else {f"{name} {key}": value for key, value in mine.items()}
    return found


@torch.no_grad()
def score(model: ThingMotion, held: Motions, *, length: int) -> dict[str, float]:
    """Errors on clips of unseen episodes after `length` steps, or as many as an episode has: of objects that moved at
    least MOVED_M, as a share of how far; the same without their objects' meeting; and how many that rested were thought
    to have moved 1.5 cm."""
    place, length = next(model.parameters()).device, min(length, held.grip.shape[1] - 1)
    contacts = contact_starts(held.place_m)
    keep = {int(e): int(f) for e, f in reversed(contacts.tolist())}
    if not keep:
        return {"moved_share": torch.nan, "moved_median": torch.nan, "false_moves": torch.nan, "clips": 0.0}
    episode = torch.tensor(sorted(keep))
    first = torch.tensor([min(keep[int(e)], held.grip.shape[1] - 1 - length) for e in episode])
    frames = first[:, None] + torch.arange(length + 1)
    place_m, turn, grip = (x[episode[:, None], frames] for x in (held.place_m, held.turn, held.grip))
    there = place_m[:, 0].isfinite().all(-1)
    shape = standing_shape(held.half_m[episode], held.is_round[episode], turn[:, 0])
    place_m = place_m.nan_to_num()
    said = rolled_out(model, *(x.to(place) for x in (there, place_m[:, 0], shape, grip)), substeps=held.substeps)
    end, far = said[-1][0].place_m.cpu(), (place_m[:, -1] - place_m[:, 0]).norm(dim=-1)
    off = (end - place_m[:, -1]).norm(dim=-1)
    far_moved, still = there & (far >= MOVED_M) & (place_m[:, -1, :, 2] > -0.01), there & (far < STILL_M)
    turned = ((said[-1][0].turn.cpu() - (turn[:, -1] @ turn[:, 0].mT).nan_to_num()).square().sum((-1, -2)) / 2).sqrt()
    return {
        "moved_share": float(off[far_moved].mean() / far[far_moved].mean()),
        "moved_median": float((off / far)[far_moved].median()),
        "moved_rad": float(turned[far_moved].mean()),
        "false_moves": float((off[still] > 0.015).float().mean()),
        "clips": float(far_moved.sum()),
    }
