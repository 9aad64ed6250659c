"""Agents that see things, as policies: where the object is they read from the pictures, or are told."""

from __future__ import annotations

import json
from collections.abc import Sequence
from copy import copy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from tensordict import TensorDict

from vap_gym.cards import load_env, load_robot
from vap_gym.errors import CheckpointError, require, unknown_name
from vap_gym.geometry import Camera
from vap_gym.kinematics import RobotState
from vap_gym.loading import build_stage
from vap_gym.observations import FRONT
from vap_gym.policies.known import file_digest, sight_digest
from vap_gym.policies.protocol import Conventions, EpisodeStart, Observations, PolicyError
from vap_gym.policies.seen import Seen, commands, features
from vap_gym.rig import Motion, Rig
from vap_gym.stage import SEEN, Stage
from vap_gym.whereabouts import REAL, Sight, set_right, things_of
from vap_gym.world.model import WorldModel
from vap_gym.world.motion import ThingState

Array = np.ndarray
FORMAT = "vap_gym agent 1"
SIGHTS = ("pictures", "truth")
SEEDS = 2**62  # noise seeds are taken modulo this


@dataclass(frozen=True, kw_only=True)
class AgentCard:
    """What must be known to let an agent act: agent.json beside policy.pt."""

    task: str
    algorithm: str  # ppo, sac or clone
    card: str = "VAP-DROID-v0"
    hold: int = 1  # control steps that each decision lasts
    steps: int = 0  # decisions that it was trained on

    def save(self, folder: Path, policy: Any) -> None:
        """Write an SB3 policy and this card (temp names, then renamed)."""
        weights, about = folder / ".policy.pt.part", folder / ".agent.json.part"
        policy.save(str(weights))
        about.write_text(json.dumps({"format": FORMAT} | asdict(self), indent=1) + "\n", encoding="utf-8")
        weights.replace(folder / "policy.pt")
        about.replace(folder / "agent.json")


def read_agent(folder: str | Path) -> tuple[AgentCard, Any]:
    """Return an agent's card and its SB3 policy.

    Raises:
        CheckpointError: no agent there, or one that cannot be read.
    """
    root = Path(folder)
    try:
        about = json.loads((root / "agent.json").read_text(encoding="utf-8"))
        if about.pop("format") != FORMAT:
            raise KeyError("format")
        card = AgentCard(**about)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"No agent in '{folder}': {error}. Give the folder that vap-gym train-rl wrote (agent.json, policy.pt)."
        ) from error
    require("stable_baselines3", "stable-baselines3", "An agent")
    from stable_baselines3.ppo import MlpPolicy
    from stable_baselines3.sac import MlpPolicy as SacPolicy

    kind: Any = SacPolicy if card.algorithm == "sac" else MlpPolicy
    try:
        return card, kind.load(str(root / "policy.pt"), device="cpu")
    except Exception as error:  # a damaged pickle raises whatever it likes
        raise CheckpointError(
            f"'{root / 'policy.pt'}' cannot be read as a policy of '{card.algorithm}': {error}. Train it again."
        ) from error


@dataclass(kw_only=True, eq=False)
class _Playing:
    """One running episode: what the agent knows of it."""

    target: int  # palette index
    object_m: Float[Array, " 3"]
    size_m: float
    goal_m: tuple[float, float]
    table_z_m: float
    step: int
    thing: int = -1  # which of the world model's things the object is; −1: none
    before_m: Float[Array, " 3"] | None = None
    state: TensorDict | None = None  # camera and things, if it looks at pictures


class ThingsPolicy:
    """An agent trained on things (`vap_gym.rl`) as a policy.

    Args:
        folder: of the agent, as `vap-gym train-rl` wrote it.
        sees: "pictures": the judge reads where the object is out of each frame, and what it does not see is moved on as
            the world model foretells; "truth": it is told (`Observations.target_m`).
        world_model, judge: that it sees with; the card's world model by default.
        device: where they run.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        sees: str = "pictures",
        world_model: str = "",
        judge: str = "tiny",
        device: str = "cpu",
    ) -> None:
        if sees not in SIGHTS:
            raise unknown_name("way to see", sees, SIGHTS)
        self.folder, self.sees, self.world_model, self.judge, self.device = (
            str(folder), sees, world_model, judge, device,
        )  # fmt: skip
        self.about, self._policy = read_agent(folder)
        self.weights = file_digest(Path(folder) / "policy.pt")
        self.looks_through = "" if sees == "truth" else sight_digest(self.about.card, world_model, judge)
        self._fps = load_env(self.about.card).fps
        self._rig: Rig | None = None
        self._stage: Stage | None = None
        self._playing: dict[int, _Playing] = {}

    @property
    def conventions(self) -> Conventions:
        """DROID's velocities, each decision held as in training; the env is made to take them."""
        return Conventions(
            action_mode="cartesian_velocity",
            rate_hz=self._fps / self.about.hold,
            convert=("action_mode", "gripper", "rate_hz"),
        )

    def reset(self, episodes: Sequence[EpisodeStart]) -> None:
        """Begin these episodes. Raises PolicyError for a start without the agent's task."""
        for episode in episodes:
            scene = episode.start.scene
            if scene is None or scene.task != self.about.task:
                task = None if scene is None else scene.task
                raise PolicyError(
                    f"The agent of '{self.folder}' can {self.about.task}, got a start with the task {task}. "
                    f"Evaluate it with task='{self.about.task}'."
                )
            item = scene.target_object
            self._playing[episode.slot] = _Playing(
                target=scene.target,
                object_m=np.array([*item.xy_m, scene.table_z_m + item.half_extents_m[2]]),
                size_m=float(np.mean(item.half_extents_m[:2])),
                goal_m=scene.goal_xy_m,
                table_z_m=scene.table_z_m,
                step=0,
            )
        if self.sees == "pictures":
            self._look_first(episodes)

    def act(self, observations: Observations, instructions: Sequence[str]) -> Float[Array, "B A"]:
        """Return the next actions."""
        rows = [self._playing[slot] for slot in observations.slots]
        robot = self._robots(observations)
        if self.sees == "pictures":
            tool_m, yaw = self._see(rows, observations, robot)
        else:
            tool_m, yaw = tool_and_yaw(self._opened_rig(), robot)
            for row, told_m in zip(rows, observations.target_m, strict=True):
                if np.isfinite(told_m).all():
                    row.object_m = np.asarray(told_m, np.float64)
        seen = Seen(
            tool_m=tool_m,
            before_m=np.stack([at if row.before_m is None else row.before_m for row, at in zip(rows, tool_m)]),
            closedness=observations.closedness.astype(np.float64),
            yaw_rad=yaw,
            object_m=np.stack([row.object_m for row in rows]),
            size_m=np.array([row.size_m for row in rows]),
            goal_m=np.array([row.goal_m for row in rows]),
            table_z_m=np.array([row.table_z_m for row in rows]),
        )
        for row, at in zip(rows, tool_m, strict=True):
            row.before_m, row.step = at, row.step + self.about.hold
        answers, _ = self._policy.predict(features(seen, self.about.task), deterministic=True)
        return commands(answers, seen, self.about.task)

    def _robots(self, observations: Observations) -> RobotState:
        q = torch.from_numpy(np.asarray(observations.joints_rad, np.float32))
        closedness = torch.from_numpy(np.asarray(observations.closedness, np.float32))
        return self._opened_rig().controller.start(q, closedness)

    def _look_first(self, episodes: Sequence[EpisodeStart]) -> None:
        """Read where the object is, and find the things, in first pictures."""
        stage = self._opened()
        state = stage.begin([episode.start for episode in episodes], [episode.seed % SEEDS for episode in episodes])
        kept = ("camera_", "world_thing_")
        for i, episode in enumerate(episodes):
            row = self._playing[episode.slot]
            row.state = state[i : i + 1].select(*[key for key in state.keys() if key.startswith(kept)])  # noqa: SIM118
            row.object_m = state["object_m"][i].numpy().astype(np.float64)
            row.thing = int(state["object_thing"][i])
            if row.thing >= 0:
                row.size_m = float(things_of(state).shape[i, row.thing, :2].mean())

    @torch.no_grad()
    def _see(self, rows: Sequence[_Playing], observations: Observations, robot: RobotState) -> tuple[Array, Array]:
        """Look at the frames: where what is seen is, or else where it was moved to. Returns `tool_and_yaw`."""
        stage = self._opened()
        parts: list[Any] = [row.state for row in rows]
        state: Any = torch.cat(parts)
        first = stage.imagination.camera(state)
        look = stage.rig.look(robot, first, draw=False)
        seconds = torch.tensor([float(row.step) for row in rows]) / stage.rig.robot.controller.control_hz
        camera = stage.imagination.mount(state).at(look.T_base_tip[:, 0], seconds)
        look = stage.rig.look(robot, camera, draw=False)
        tool_m = look.tool_m[:, 0]
        self._move_on(rows, state, look)
        frames = torch.from_numpy(np.ascontiguousarray(observations.pixels[FRONT]))
        shown = TensorDict(
            {"frame": frames, "camera_K": state["camera_K"], "camera_T_world_camera": camera.T_world_camera},
            batch_size=[len(rows)],
        )
        reading = stage.read(shown, tool_m)
        px, places_m = reading.objects_px.cpu().double(), reading.objects_world_m.cpu().double()
        sure = reading.objects_confidence.cpu() >= SEEN
        for i, row in enumerate(rows):
            if row.step > 0:
                one = slice(i, i + 1), row.target
                self._believe(row, Sight(px=px[one], place_m=places_m[one], sure=sure[one]), camera.index(one[0]))
        return tool_m.double().numpy(), yaw_of(look)

    def _move_on(self, rows: Sequence[_Playing], state: Any, look: Motion) -> None:
        """Move things, and with them the objects, as the gripper's way since the last decision does."""
        world = self._opened().imagination.world
        due = [i for i, row in enumerate(rows) if row.step > 0]
        if not due or not isinstance(world, WorldModel) or not world.motion.knows(look.views[:, 0]):
            return
        before = ThingState(*(value[due] for value in things_of(state)))
        grip = world.motion.grip(look.views[due, 0].to(before.place_m))
        after, _ = world.motion.follow(before, grip, world.motion_steps * self.about.hold)
        way = (after.place_m - before.place_m).cpu().double().numpy()
        for n, i in enumerate(due):
            if rows[i].thing >= 0:
                rows[i].object_m = rows[i].object_m + way[n, rows[i].thing]
            fresh: Any = rows[i].state
            for name, value in after._asdict().items():
                fresh[f"world_thing_{name}"] = value[n : n + 1]

    def _believe(self, row: _Playing, sight: Sight, camera: Camera) -> None:
        """Set right where an object is, and the thing that it is, by what the judge sees."""
        if row.thing < 0:
            if sight.sure and sight.place_m.isfinite().all():
                row.object_m = sight.place_m[0].numpy()
            return
        foretold_m = torch.from_numpy(row.object_m)[None]
        believed_m = set_right(foretold_m, sight, camera, REAL)
        row.object_m = believed_m[0].numpy()
        fresh: Any = row.state
        place_m = fresh["world_thing_place_m"].clone()
        place_m[0, row.thing] += (believed_m - foretold_m)[0].to(place_m)
        fresh["world_thing_place_m"] = place_m

    def _opened(self) -> Stage:
        if self._stage is None:
            stage = build_stage(
                self.about.card, world_model=self.world_model or None, judge=self.judge, device=self.device,
                action_mode="cartesian_velocity",
            )  # fmt: skip
            self._stage = copy(stage)
            self._stage.reads_latents = False  # it is shown frames
        return self._stage

    def _opened_rig(self) -> Rig:
        if self.sees == "pictures":
            return self._opened().rig
        if self._rig is None:
            card = load_env(self.about.card)
            self._rig = Rig(load_robot(card.robot), action_mode="cartesian_velocity", frame_size_px=card.frame_size_px)
        return self._rig

    def __getstate__(self) -> dict[str, object]:
        """Its settings and the agent: weights of the world model and episodes stay behind."""
        return {**self.__dict__, "_rig": None, "_stage": None, "_playing": {}}


def tool_and_yaw(rig: Rig, robot: RobotState) -> tuple[Float[Array, "B 3"], Float[Array, " B"]]:
    """Return where the tools of robots are by kinematics, m, and how their tip links are turned about z, rad."""
    look = rig.look(robot, any_camera(rig), draw=False)
    return look.tool_m[:, 0].double().numpy(), yaw_of(look)


def yaw_of(look: Motion) -> Float[Array, " B"]:
    """Return how the tip link is turned about z, rad."""
    turn = look.T_base_tip[:, 0, :3, :3].double().numpy()
    return np.asarray(np.arctan2(turn[:, 1, 0], turn[:, 0, 0]))


def any_camera(rig: Rig) -> Any:
    """Return a camera for looks at what no camera changes."""
    width, height = rig.frame_size_px
    K = torch.tensor([[100.0, 0.0, width / 2], [0.0, 100.0, height / 2], [0.0, 0.0, 1.0]])
    pose = torch.tensor([[0.0, 0.0, -1.0, 2.0], [1.0, 0.0, 0.0, 0.0], [0.0, -1.0, 0.0, 0.5], [0.0, 0.0, 0.0, 1.0]])
    return Camera(K=K, T_world_camera=pose, frame_size_px=rig.frame_size_px)
