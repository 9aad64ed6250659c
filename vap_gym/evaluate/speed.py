"""`vap-gym bench speed`: how fast steps, roll-outs, prompts and the codec are on this machine, as a table."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from tensordict import TensorDict

from vap_gym.cards import load_env, load_robot
from vap_gym.env import VapEnv
from vap_gym.errors import VapError
from vap_gym.evaluate import report
from vap_gym.geometry import Camera
from vap_gym.kinematics import Controller
from vap_gym.loading import checked_dtype, load_world
from vap_gym.prompts.raster import draw
from vap_gym.prompts.skeleton import Skeleton
from vap_gym.vector import VapVectorEnv
from vap_gym.world.model import WorldModel

ENV_ID = "VAP-DROID-v0"
HEADER = ("figure", "unit", "p50", "p95", "must", "aim", "met")


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One line of the table. Where more is better (`per` is set) it is `per` things a call, else ms a call."""

    name: str
    seconds: tuple[float, ...]  # a call each, after warm-up
    per: int | None = None  # things that one call makes; None: the call itself is the thing
    must: float | None = None  # of p50
    aim: float | None = None

    @property
    def p50(self) -> float:
        """The median: ms, or things a second."""
        return self._at(50.0)

    @property
    def p95(self) -> float:
        """What one call in twenty is worse than."""
        return self._at(95.0)

    def row(self) -> tuple[str, ...]:
        """The cells of HEADER."""
        sign = "≤" if self.per is None else "≥"
        bounds = ["" if bound is None else f"{sign} {_text(bound)}" for bound in (self.must, self.aim)]
        met = (
            "" if self.must is None else "aim" if self._meets(self.aim) else "must" if self._meets(self.must) else "no"
        )
        unit = "ms" if self.per is None else "1/s"
        return (self.name, unit, _text(self.p50), _text(self.p95), *bounds, met)

    def to_json(self) -> dict[str, Any]:
        """Return plain containers; `unit` tells whether more is better."""
        unit = "ms" if self.per is None else "1/s"
        return {"name": self.name, "unit": unit, "p50": self.p50, "p95": self.p95, "must": self.must, "aim": self.aim}

    def _at(self, share: float) -> float:
        spent = float(np.percentile(self.seconds, share))
        return 1e3 * spent if self.per is None else self.per / spent

    def _meets(self, bound: float | None) -> bool:
        return bound is not None and (self.p50 <= bound if self.per is None else self.p50 >= bound)


def main(
    out: Path | None = Path("docs/speed.md"),
    *,
    world_model: str = "tiny",
    device: str = "cpu",
    dtype: str | None = None,
    repeats: int = 30,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure speed on this machine, which should be idle, and print and write the table.

    Args:
        out: The report to write; None writes none.
        world_model: A shipped model's name, or a checkpoint folder.
        device: Where the world model runs.
        dtype: Its precision; None is its own (bfloat16 where the processor has it).
        repeats: Timed calls per figure, after a warm-up.
        seed: Of starts and actions.
    """
    if repeats < 1:
        raise VapError(f"repeats must be 1 or more, got {repeats}. The default is 30.")
    from tqdm import tqdm

    before = report.load_average()
    world = load_world(world_model, device, checked_dtype(dtype))
    assert isinstance(world, WorldModel)
    measures = figures(world, world_model=world_model, device=device, dtype=dtype, repeats=repeats, seed=seed)
    found = list(tqdm(measures, desc="measuring", unit="figure", total=COUNT))
    text = "\n\n".join(
        [
            "# Speed",
            "Written by `vap-gym bench speed`, not by hand. A frame is one control step of 1/15 s, 144 x 96 px. "
            "The bounds are for two idle cores.",
            report.table(HEADER, [figure.row() for figure in found]),
            report.stamp(
                device,
                world_model=world_model,
                dtype=str(world.dtype).removeprefix("torch."),
                evaluations_per_frame=world.evaluations,
                load_before=before,
            )
            + f" {repeats} timed calls per figure after a warm-up; p95 is what one call in twenty is worse than.",
        ]
    )
    print(f"\n{text}\n")
    if out is not None:
        report.write(out, text)
        print(f"Wrote {out}.")
    return {"machine": report.machine(device), "load_before": before, "figures": [one.to_json() for one in found]}


COUNT = 13


def figures(
    world: WorldModel, *, world_model: str, device: str, dtype: str | None, repeats: int, seed: int
) -> Iterator[Figure]:
    """Measure one figure after the other."""
    made = {"world_model": world_model, "device": device, "dtype": dtype}
    yield from env_figures(made, repeats=repeats, seed=seed)
    yield from rollout_figures(made, repeats=repeats, seed=seed)
    yield prompt_figure(repeats=repeats, seed=seed)
    yield from codec_figures(world, repeats=repeats, seed=seed)
    yield import_figure(repeats=min(repeats, 10))


def env_figures(made: dict[str, Any], *, repeats: int, seed: int) -> Iterator[Figure]:
    """One env and sixteen, as Gymnasium makes them: prompt, world model, decoder and judge included."""
    env = gym.make(ENV_ID, max_episode_steps=10**6, **made)
    rng = np.random.default_rng(seed)
    assert env.action_space.shape is not None

    def action(*shape: int) -> np.ndarray:
        return rng.uniform(-1, 1, (*shape, *(env.action_space.shape or ()))).astype(np.float32)

    yield Figure(name="env.reset, one env", seconds=timed(lambda: env.reset(seed=seed), repeats))
    step = timed(lambda: env.step(action()), 2 * repeats)
    yield Figure(name="env.step, one env, pixels", seconds=step, must=45.0, aim=25.0)
    inner = env.unwrapped
    assert isinstance(inner, VapEnv)
    yield Figure(
        name="env.step_chunk of 8 steps, per chunk", seconds=timed(lambda: inner.step_chunk(action(8)), repeats)
    )
    unjudged = gym.make(ENV_ID, max_episode_steps=10**6, judge=None, **made)
    unjudged.reset(seed=seed)
    yield Figure(name="env.step, one env, judge=None", seconds=timed(lambda: unjudged.step(action()), 2 * repeats))
    many = gym.make_vec(ENV_ID, num_envs=16, max_episode_steps=10**6, **made)
    many.reset(seed=seed)
    yield Figure(
        name="16-slot vector env, frames",
        seconds=timed(lambda: many.step(action(16)), repeats),
        per=16,
        must=50.0,
        aim=100.0,
    )
    many.close()
    unjudged.close()
    env.close()


def rollout_figures(made: dict[str, Any], *, repeats: int, seed: int, batch: int = 64) -> Iterator[Figure]:
    """What planners do: many slots in latents only, with kinematics and prompts, and the world model by itself."""
    slots = VapVectorEnv(num_envs=1, **made)
    slots.reset(seed=seed)
    imagination, state = slots.stage.imagination, slots.state.expand(batch).clone()
    steps, width = 2, imagination.rig.controller.action_size
    actions = torch.from_numpy(np.random.default_rng(seed).uniform(-1, 1, (batch, steps, width)).astype(np.float32))
    yield Figure(
        name=f"latent steps, batch {batch}: actions → prompts → latents",
        seconds=timed(lambda: imagination.rollout(state, actions), max(repeats // 3, 1)),
        per=batch * steps,
        must=150.0,
        aim=300.0,
    )
    motion = imagination.follow(state, actions)
    prompts, views = motion.prompts.to(imagination.device), motion.views.to(imagination.device)
    own = TensorDict({k[6:]: v for k, v in state.items() if k.startswith("world_")}, batch_size=state.batch_size)
    yield Figure(
        name=f"latent steps, batch {batch}: world model alone",
        seconds=timed(
            lambda: imagination.world.predict(own, prompts, views=views, decode=False),
            max(repeats // 3, 1),
        ),
        per=batch * steps,
    )


def prompt_figure(*, repeats: int, seed: int, batch: int = 256) -> Figure:
    """Actions → controller → key-points → pictures, at the frame size of the env."""
    card = load_env(ENV_ID)
    robot = load_robot(card.robot)
    controller, skeleton = Controller(robot), Skeleton(robot)
    home = torch.tensor(robot.home_q_rad)
    state = controller.start(home.expand(batch, -1), torch.linspace(0, 1, batch))
    actions = torch.from_numpy(np.random.default_rng(seed).uniform(-1, 1, (batch, 7)).astype(np.float32))
    camera = Camera.look_at(
        torch.tensor([1.2, 0.5, 0.6]),
        torch.tensor([0.45, 0.0, 0.2]),
        vertical_fov_rad=0.9,
        frame_size_px=card.frame_size_px,
    )

    def call() -> None:
        moved, _ = controller.step(state, actions)
        draw(skeleton.keypoints(moved), camera, skeleton)

    return Figure(
        name=f"skeleton prompts from actions, batch {batch}",
        seconds=timed(call, repeats),
        per=batch,
        must=5000.0,
        aim=15000.0,
    )


def codec_figures(world: WorldModel, *, repeats: int, seed: int) -> Iterator[Figure]:
    """Frames ↔ latents, one at a time and sixteen."""
    width, height = world.frame_size_px
    generator = torch.Generator().manual_seed(seed)
    for batch in (1, 16):
        frames = torch.randint(0, 256, (batch, height, width, 3), dtype=torch.uint8, generator=generator)
        latents = world.encode(frames)
        some = f"{batch} frame{'s' * (batch > 1)}"
        yield Figure(name=f"codec, encode {some}", seconds=timed(partial(world.encode, frames), repeats))
        yield Figure(name=f"codec, decode {some}", seconds=timed(partial(world.decode, latents), repeats))


def import_figure(*, repeats: int) -> Figure:
    """`import vap_gym` in fresh interpreters, less what a bare one takes."""

    def seconds(code: str) -> float:
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        return time.perf_counter() - begin

    seconds("import vap_gym")  # writes the byte code
    spent = tuple(max(seconds("import vap_gym") - seconds("pass"), 0.0) for _ in range(repeats))
    return Figure(name="import vap_gym", seconds=spent, must=300.0)


def timed(call: Callable[[], object], repeats: int) -> tuple[float, ...]:
    """Return how long each of `repeats` calls took, in seconds, after up to three for warming up."""
    for _ in range(min(3, repeats)):
        call()
    spent = []
    for _ in range(repeats):
        begin = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        spent.append(time.perf_counter() - begin)
    return tuple(spent)


def _text(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
