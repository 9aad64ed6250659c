"""Names → things: an env's keyword arguments become a stage; models, judges and starts are loaded once a process."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vap_gym.assets import weights_dir
from vap_gym.cards import EnvCard, RobotCard, load_env, load_robot
from vap_gym.errors import VapError, unknown_name
from vap_gym.imagine import Imagination
from vap_gym.interfaces import Judge, World
from vap_gym.photo import RESET_OPTIONS, check_names, read_camera, start_from_photo
from vap_gym.rig import Rig
from vap_gym.stage import Stage
from vap_gym.starts import Seen, Start, StartSet, starts_path
from vap_gym.trust import Doubt, familiar
from vap_gym.trust.calibration import read
from vap_gym.viewpoints import Viewpoint, completed, photographed, read_viewpoints

TRAINED_ON, TRAINED_HZ = "panda_robotiq", 15.0  # the robot and the rate that world models of ours were trained on


def build_stage(
    card: str,
    *,
    world_model: str | Path | World | None = None,
    world_model_kwargs: Mapping[str, Any] | None = None,
    device: str = "cpu",
    dtype: str | None = None,
    prompt: str | None = None,
    action_mode: str | None = None,
    obs_type: str | None = None,
    robot: str | Path | None = None,
    judge: str | Path | Judge | None = "tiny",
    reward: str = "progress",
    trust_samples: int = 0,
    max_adherence_px: float | None = None,
    min_trust: float | None = None,
    views: object = (),
) -> Stage:
    """Return the stage that a card and its overrides describe; None takes the card's own.

    A world model that says which prompts it was trained on is given those where `prompt` is None, whatever the card
    has.
    """
    env_card = load_env(card)
    named = env_card.world_model if world_model is None else world_model
    options = tuple(sorted((world_model_kwargs or {}).items()))
    if isinstance(named, str | Path):
        world = load_world(str(named), str(device), checked_dtype(dtype), options)
    elif options:
        raise VapError(
            f"world_model_kwargs are for world models that are named, got a {type(named).__name__}. Give them where it "
            "is made."
        )
    else:
        world = named
    card_of_robot = load_robot(env_card.robot if robot is None else robot)
    settings: dict[str, Any] = {
        "action_mode": action_mode or env_card.action_mode,
        "prompt": prompt or getattr(world, "prompt", env_card.prompt),
        "frame_size_px": world.frame_size_px,
        "height_cue": getattr(world, "height_cue", True),
    }
    rig = Rig(card_of_robot, **settings)
    world_of_robot = fitted(world, rig)
    if not rig.body.links and hasattr(world, "for_robot"):
        warnings.warn(
            f"The robot '{card_of_robot.name}' has no body, so that imagined frames do not show it move. Make one: "
            f'vap-gym body {card_of_robot.folder}, and name it in its robot.toml: body = "body.npz"',
            stacklevel=2,
        )
    known = world_of_robot is world or bool(getattr(world_of_robot, "learned", False))
    if not known:  # things were learned to move with another gripper: it stands in for this one
        rig = Rig(card_of_robot, **settings, stand_in=load_robot(TRAINED_ON))
        world_of_robot = fitted(world, rig)
    read_by = load_judge(str(judge), str(device)) if isinstance(judge, str | Path) else judge
    trained_on = (card_of_robot.name,) if read_by is judge else getattr(read_by, "robots", ())
    return Stage(
        card=env_card,
        imagination=Imagination(rig=rig, world=world_of_robot, device=device),
        judge=read_by,
        reads_latents=isinstance(judge, str | Path) and str(judge) == str(named),
        reward=reward,
        obs_type=obs_type or env_card.obs_type,
        trust_samples=trust_samples,
        max_adherence_px=max_adherence_px,
        doubt=load_doubt(named, world_of_robot, card_of_robot, min_trust),
        viewpoints=read_viewpoints(views, env_card, world.frame_size_px),
        knows_gripper=card_of_robot.name in trained_on or _poses(world, world_of_robot, rig),
    )


def _poses(world: World, world_of_robot: World, rig: Rig) -> bool:
    """Whether a world model of ours poses the robot as the one it was first trained on, whatever its card is called."""
    from vap_gym.world.model import WorldModel

    return isinstance(world, WorldModel) and world_of_robot is world and len(rig.body.links) > 0


def fitted(world: World, rig: Rig) -> World:
    """Return a world model of ours as it poses the rig's robot; other kinds of world are left as they are."""
    from vap_gym.world.model import WorldModel
    from vap_gym.world.surfels import Surfels

    if not isinstance(world, WorldModel):
        return world
    body = rig.body
    surfels = Surfels(points_m=body.points_m, normals=body.normals, link=body.link, spacing_m=body.spacing_m)
    L, G = len(body.links), body.stand_in_links
    return world.for_robot(
        surfels,
        body.colour,
        L,
        gripper=range(L - G, L),
        motion_steps=max(1, round(TRAINED_HZ / rig.robot.controller.control_hz)),
    )


def load_doubt(named: object, world: World, robot: RobotCard, min_trust: float | None) -> Doubt | None:
    """Return what tells how far the frames of a world model may be off, where its folder holds a calibration for the
    robot. Raises VapError where `min_trust` is asked for and there is none."""
    calibration = None
    if isinstance(named, str | Path):
        folder = Path(named) if Path(named).is_dir() else weights_dir() / named
        calibration = read(folder, robot.name)
    if calibration is not None:
        familiarity = familiar.read(folder, robot.name, table_m=robot.skeleton.drop_to_z_m)
        return Doubt(world, calibration, min_trust=min_trust, familiarity=familiarity)
    if min_trust is not None:
        raise VapError(
            f"min_trust needs a world model whose trust is calibrated for a '{robot.name}', got '{named}'. "
            "Calibrate it: vap-gym bench trust --world-model FOLDER --write-calibration, or leave min_trust out."
        )
    return None


@lru_cache(maxsize=8)
def load_world(name: str, device: str, dtype: torch.dtype | None, options: tuple[tuple[str, Any], ...] = ()) -> World:
    """Return a world model by name, folder or hub id; every env of this process that has the same options shares it.

    `options` are further arguments of `load_world_model`. Raises UnknownNameError for one that it has not.
    """
    from vap_gym.video.worlds import load_world_model

    known = set(signature(load_world_model).parameters) - {"source", "device", "dtype"}
    for key, _ in options:
        if key not in known:
            raise unknown_name("option of a world model", key, known)
    return load_world_model(name, device=device, dtype=dtype, **dict(options))


@lru_cache(maxsize=8)
def load_judge(name: str, device: str) -> Judge:
    """Return a judge by name or folder; every env of this process shares it."""
    from vap_gym.judge import Judge as TrainedJudge

    return TrainedJudge.from_pretrained(name, device=device)


@lru_cache(maxsize=8)
def _load_starts(path: str, changed_ns: int) -> StartSet:
    return StartSet(path)


def load_starts(card: str | EnvCard, path: str | Path | None) -> StartSet:
    """Return the start states of `path`, or where it is None those beside the card (or the card of that id or path);
    read again only where they changed."""
    if path is not None:
        file = Path(path)
    else:
        card = load_env(card) if isinstance(card, str) else card
        file = card.folder / starts_path(card.id).name
    return _load_starts(str(file), file.stat().st_mtime_ns if file.is_file() else 0)


def task_starts(starts: StartSet, task: str) -> tuple[int, ...]:
    """Return the numbers of the starts that have a task ("any": all of them). Raises VapError where there are none."""
    numbers = starts.of_task(task)
    if not numbers:
        raise VapError(f"No start with the task '{task}' in '{starts.path}'. It has: {', '.join(starts.tasks())}, any.")
    return numbers


def checked_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """Return the floating-point type of that name ("float32", "bfloat16", "float16"), or None."""
    names = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in names:
        raise VapError(f"dtype must be one of {', '.join(names)} or None (the model's own), got {dtype!r}.")
    return names[dtype]


class StartSource:
    """Turns reset options and a generator into a start: shipped, or from a photograph; with pictures of all views."""

    def __init__(
        self,
        rig: Rig,
        card: EnvCard,
        *,
        camera: object,
        task: str | None,
        starts: str | Path | None,
        viewpoints: Sequence[Viewpoint] = (),
    ) -> None:
        self._rig = rig
        self._card = card
        self._path = starts
        self._task = task or card.task
        self._camera = None if camera is None else read_camera(camera)
        self._viewpoints = tuple(viewpoints)

    def choose(self, options: Mapping[str, Any], rng: np.random.Generator) -> Start:
        """Return where to begin. Raises VapError for options that are unknown or contradict each other."""
        start = completed(self._choose(options, rng), self._viewpoints, self._rig.robot.folder)
        instruction = options.get("instruction")
        if instruction is None or instruction == start.instruction:
            return start
        return replace(start, instruction=instruction, scene=None, sway=start.seen.sway)  # the scene's task is gone

    def _choose(self, options: Mapping[str, Any], rng: np.random.Generator) -> Start:
        check_names("reset option", options, RESET_OPTIONS)
        instruction = options.get("instruction")
        if not isinstance(instruction, str | None):
            raise VapError(f"instruction must be a string, got {type(instruction).__name__}.")
        photo = [name for name in ("image", "state", "camera", "views") if options.get(name) is not None]
        if photo and options.get("start") is not None:
            raise VapError(
                f"Reset options contradict each other: start and {', '.join(photo)} were given. Give one or the other."
            )
        if photo:
            start = start_from_photo(
                image=options.get("image"),
                state=options.get("state"),
                camera=options.get("camera"),
                instruction=instruction or "",
                rig=self._rig,
                default_camera=self._camera,
            )
            return replace(start, views=self._photographed(options.get("views") or {}, start))
        return self._shipped(options.get("start"), rng)

    def _photographed(self, views: object, start: Start) -> dict[str, Seen]:
        q = torch.from_numpy(np.asarray(start.q_rad, np.float64))
        T_base_tip = self._rig.controller.arm.to(torch.float64).fk(q, self._rig.robot.tip_link)
        return photographed(views, self._viewpoints, T_base_tip, self._rig.frame_size_px)

    def _shipped(self, wanted: object, rng: np.random.Generator) -> Start:
        if isinstance(wanted, Start):
            start = wanted
        else:
            file: StartSet = load_starts(self._card, self._path)
            if wanted is None:
                numbers = task_starts(file, self._task)
                start = file[numbers[int(rng.integers(len(numbers)))]]
            elif isinstance(wanted, int | np.integer) and not isinstance(wanted, bool):
                start = file[int(wanted)]
            else:
                raise VapError(f"start must be a number or a Start, got {type(wanted).__name__}.")
        given = self._rig.robot.arm_joints
        if wanted is None and self._path is None and given != load_robot(self._card.robot).arm_joints:
            raise VapError(
                f"The starts of {self._card.id} show its own robot '{self._card.robot}', got '{self._rig.robot.name}', "
                "which has other joints. Give starts of that robot (starts=…), or begin from a picture of it: "
                "reset(options={'image': …, 'state': …, 'camera': …})."
            )
        if len(start.q_rad) != len(given):
            raise VapError(
                f"The start has {len(start.q_rad)} joints, the robot '{self._rig.robot.name}' "
                f"{len(self._rig.robot.arm_joints)}. "
                "Start from a picture of this robot: reset(options={'image': …, 'state': …, 'camera': …})."
            )
        if tuple(start.frame.shape[1::-1]) != tuple(self._rig.frame_size_px):
            raise VapError(
                f"The start's frame is {start.frame.shape[1::-1]} px, the world model's {self._rig.frame_size_px}."
            )
        return start
