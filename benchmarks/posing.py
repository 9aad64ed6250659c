"""How long it takes to draw a robot and things in another pose: `posed_picture`, once for each imagined step of a slot.

Start states of each robot's environment are followed for a few random steps, and what is drawn in the last of them is
drawn again and again: by robot and batch, ms of a slot, the least of all runs, since other load only ever slows them
down; beside the clock's, the processor's time, which other load disturbs less, and that of reading the first sight from
a state. Measure on an idle machine.

    python benchmarks/posing.py --batches 64 1 --threads 1
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import tyro
from tensordict import TensorDict

from vap_gym.cards import load_env
from vap_gym.evaluate import report
from vap_gym.vector import VapVectorEnv
from vap_gym.world.appearance import FirstSight, sight_of
from vap_gym.world.model import WorldModel
from vap_gym.world.posing import posed_picture

HEADER = ("robot", "points", "batch", "posed [ms]", "posed, processor [ms]", "first sight, processor [ms]")
STEPS = 6  # after which a start's robot and things have moved


def rolled(
    env: str, starts: int, world_model: str, device: str
) -> tuple[WorldModel, TensorDict, dict[str, torch.Tensor]]:
    """Return the model that poses an environment's robot, states of it after some steps, and what was drawn last."""
    slots = VapVectorEnv(starts, env, world_model=world_model, device=device, judge=None)
    slots.reset(seed=0)
    imagination, state = slots.stage.imagination, slots.state
    shape = (starts, STEPS, imagination.rig.controller.action_size)
    actions = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32))
    motion = imagination.follow(state, actions)
    own = TensorDict({k[6:]: v for k, v in state.items() if k.startswith("world_")}, batch_size=state.batch_size)
    world = imagination.world
    assert isinstance(world, WorldModel)
    views = motion.views.to(world.device)
    own, _ = world.predict(own, motion.prompts.to(world.device), views=views, decode=False)
    slots.close()
    return world, own, {"place_m": own["thing_place_m"], "turn": own["thing_turn"], "views": views[:, -1]}


def milliseconds(call: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Return the least time of `repeats` calls after two for warming up: the clock's, and all threads' of a CPU."""
    spent = []
    for _ in range(repeats + 2):
        begin, begin_cpu = time.perf_counter(), time.process_time()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        spent.append((time.perf_counter() - begin, time.process_time() - begin_cpu))
    clock, processor = (1e3 * min(times) for times in zip(*spent[2:], strict=True))
    return clock, processor


def main(
    envs: tuple[str, ...] = ("VAP-DROID-v0", "VAP-RT1-v0", "VAP-Bridge-v0", "VAP-Hand-v0"),
    batches: tuple[int, ...] = (64, 1),
    threads: int = 1,
    starts: int = 8,
    repeats: int = 20,
    world_model: str = "tiny",
    device: str = "cpu",
) -> None:
    """Print a table.

    Args:
        envs: whose robots are drawn.
        batches: slots that are drawn in one call; all of them shown as often where there are fewer starts.
        threads: of torch.
        starts: different start states.
        repeats: timed calls.
        world_model: a shipped model's name, or a checkpoint folder.
        device: where it is drawn.
    """
    torch.set_num_threads(threads)
    rows = []
    for env in envs:
        world, state, given = rolled(env, min(starts, max(batches)), world_model, device)
        base = int(world.things.config.base)
        for batch in batches:
            slots = torch.arange(batch, device=world.device) % len(state)
            kept = state[slots]
            sight: FirstSight = sight_of(kept)
            mine = {name: value[slots] for name, value in given.items()}
            posed = milliseconds(partial(posed_picture, world.appearance, sight, base=base, **mine), repeats)
            _, read = milliseconds(partial(sight_of, kept), repeats)
            figures = [f"{x / batch:.2f}" for x in (*posed, read)]
            rows.append((load_env(env).robot, str(len(world.appearance.look)), str(batch), *figures))
    print(report.table(HEADER, rows))
    print(f"\nOf a slot, {threads} thread{'s' * (threads > 1)}, {repeats} calls each. {report.stamp(device)}")


if __name__ == "__main__":
    tyro.cli(main)
