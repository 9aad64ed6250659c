"""Foresight: the world model's things, its latents and the simulator tell the same future; gradients are true."""

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLCogVideoX
from tensordict import TensorDict
from torch import Tensor

from vap_gym.errors import ActionError, UnknownNameError, VapError
from vap_gym.imagine import Imagination
from vap_gym.judge import Judge
from vap_gym.loading import build_stage, load_starts
from vap_gym.plan.costs import ScoreAsCost, cost_as_score
from vap_gym.plan.foresight import (
    Foreseen,
    ForesightScore,
    LatentForesight,
    ThingForesight,
    moments,
)
from vap_gym.plan.goals import PictureGoal, TaskGoal, push_from
from vap_gym.plan.gradients import DrawnForesight, soft_objects
from vap_gym.plan.oracle import OracleForesight
from vap_gym.plan.planner import Bounds, held
from vap_gym.plan.sampling import Cem, RandomShooting
from vap_gym.rig import Rig
from vap_gym.stage import Stage
from vap_gym.starts import Start
from vap_gym.video.causal import CausalVideoNetwork
from vap_gym.video.presets import VideoConfig
from vap_gym.video.world import StreamWorld
from vap_gym.whereabouts import nearest_things, things_of
from vap_gym.world.codec import FrameCodec

ID = "VAP-DROID-v0"
SIZE = (144, 96)


@pytest.fixture(scope="module")
def stage() -> Stage:
    return build_stage(ID)


@pytest.fixture(scope="module")
def start() -> Start:
    """A start of a push whose object the judge and the finder see."""
    starts = load_starts(ID, None)
    return starts[starts.of_task("push")[0]]


@pytest.fixture(scope="module")
def begun(stage: Stage, start: Start) -> TensorDict:
    starts = load_starts(ID, None)
    return stage.begin([start, starts[starts.of_task("push")[1]]], [1, 2])


def objects(stage: Stage, state: TensorDict) -> Tensor:
    """Where the judge sees things now, (B, N, 3)."""
    reading = stage.read(state, stage.imagination.look(state).tool_m[:, 0])
    return torch.where(reading.objects_confidence[..., None] > 0.5, reading.objects_world_m, torch.nan)


def pushes(start: Start, count: int, steps: int = 16) -> Tensor:
    """Actions that go toward the object and through it, with noise, (N, T, 7)."""
    assert start.scene is not None
    tool, thing = np.array(start.scene.start_tool_m), np.array([*start.scene.target_object.xy_m, 0.03])
    way = torch.tensor((thing - tool) / np.linalg.norm(thing - tool)).float()
    noise = 0.4 * torch.randn(count, steps // 4, 3, generator=torch.Generator().manual_seed(0))
    move = held((way + noise).clamp(-1, 1), 4)
    return torch.cat([move, torch.zeros(count, steps, 3), torch.ones(count, steps, 1)], -1)


def test_things_are_foretold_where_a_full_imagination_has_them(stage: Stage, begun: TensorDict, start: Start) -> None:
    actions = pushes(start, 2, 8)
    seen = objects(stage, begun)
    foreseen = ThingForesight(stage.imagination, begun, seen)(actions)
    state, _, motion = stage.imagination.step(begun, actions, decode=False)
    which = nearest_things(things_of(begun), seen)
    assert bool((which >= 0).any())
    moved = things_of(state).place_m - things_of(begun).place_m
    for b, n in (which >= 0).nonzero().tolist():
        assert torch.allclose(foreseen.objects_m[b, -1, n] - seen[b, n], moved[b, which[b, n]], atol=1e-5)
    assert torch.equal(foreseen.tool_m, motion.tool_m)
    assert foreseen.objects_m[..., 0].isnan().all(1).equal(seen[..., 0].isnan())


def test_slots_are_foretold_apart_and_as_alone(stage: Stage, begun: TensorDict, start: Start) -> None:
    actions = pushes(start, 6, 4)
    seen = objects(stage, begun)
    together = ThingForesight(stage.imagination, begun, seen)(actions)
    for b in range(2):
        alone = ThingForesight(stage.imagination, begun[b : b + 1], seen[b : b + 1])(actions[3 * b : 3 * b + 3])
        part = together.objects_m[3 * b : 3 * b + 3]
        assert torch.allclose(part.nan_to_num(), alone.objects_m.nan_to_num(), atol=1e-5)


def test_the_simulator_foretells_what_happens_in_it_and_things_come_near(stage: Stage, start: Start) -> None:
    assert start.scene is not None
    actions = pushes(start, 6)
    oracle = OracleForesight(stage.rig.robot, "cartesian_velocity", every=4)
    oracle.begin(start)
    true = oracle(actions)
    assert true.steps == (4, 8, 12, 16)
    for action in actions[0].numpy():
        oracle.act(action)
    after = oracle(torch.zeros(1, 1, 7))
    target = start.scene.target
    assert float((true.objects_m[0, -1, target] - after.objects_m[0, 0, target]).norm()) < 0.01
    oracle.close()
    state = stage.begin([start], [0])
    imagined = ThingForesight(stage.imagination, state, objects(stage, state))(actions)
    assert float((imagined.tool_m[:, -1] - true.tool_m[:, -1]).norm(dim=-1).median()) < 0.01
    moved = (true.objects_m[:, -1, target] - true.objects_m[:, :1, target].mean(1)).norm(dim=-1)
    off = (imagined.objects_m[:, -1, target] - true.objects_m[:, -1, target])[:, :2].norm(dim=-1)
    assert float(off.mean()) < max(0.03, float(moved.mean()))


@pytest.mark.parametrize("stride", [1, 3])
def test_latents_tell_about_the_same_as_things(stage: Stage, start: Start, stride: int) -> None:
    assert start.scene is not None
    state = stage.begin([start], [0])
    seen = objects(stage, state)
    actions = pushes(start, 2, 8)
    foreseen = LatentForesight(stage, state, seen, every=4 if stride == 1 else 3, stride=stride)(actions)
    assert foreseen.steps == ((4, 8) if stride == 1 else (3, 6, 8))
    assert foreseen.latents is not None
    assert foreseen.latents.shape[:2] == (2, len(foreseen.steps))
    by_things = ThingForesight(stage.imagination, state, seen)(actions)
    target = start.scene.target
    off = foreseen.objects_m[:, -1, target] - by_things.objects_m[:, -1, target]
    assert float(off[:, :2].norm(dim=-1).max()) < 0.04
    if stride == 1:
        _, latents, _ = stage.imagination.rollout(state.expand(2).clone(), actions)
        assert torch.equal(foreseen.latents, latents[:, [3, 7]])


def test_moments_that_are_told() -> None:
    assert moments(range(1, 11), 4) == [3, 7, 9]
    assert moments([3, 6, 8], 3) == [0, 1, 2]
    assert moments([4, 8, 12], 8) == [1, 2]


def test_gradients_through_kinematics_and_things_are_true(stage: Stage, start: Start) -> None:
    """Actions → joints → gripper → things → task, against finite differences along random directions."""
    assert start.scene is not None
    state = stage.begin([start], [0])
    score = ForesightScore(ThingForesight(stage.imagination, state, objects(stage, state)), TaskGoal([start.scene]))
    actions = 0.6 * pushes(start, 1, 12)
    leaf = actions.clone().requires_grad_()
    (slope,) = torch.autograd.grad(score(leaf).sum(), leaf)
    assert bool(slope.isfinite().all())
    rng, step = torch.Generator().manual_seed(1), 1e-2
    for _ in range(4):
        way = torch.randn(actions.shape, generator=rng) * (slope != 0)
        way = way / way.norm()
        up, down = score(actions + step * way), score(actions - step * way)
        told = float((slope * way).sum())
        assert float((up - down) / (2 * step)) == pytest.approx(told, rel=0.1, abs=2e-3)


def streamed(chunk: int) -> StreamWorld:
    """A small world with random weights: on the shipped codec, or on CogVideoX's with `chunk` 4."""
    torch.manual_seed(0)
    space, channels = (4, 8) if chunk == 1 else (8, 4)
    base = {
        "num_attention_heads": 1, "attention_head_dim": 16, "in_channels": 2 * channels, "out_channels": channels,
        "time_embed_dim": 16, "text_embed_dim": 8, "num_layers": 1, "sample_width": SIZE[0] // space,
        "sample_height": SIZE[1] // space, "sample_frames": 4 * chunk + 1, "temporal_compression_ratio": chunk,
        "patch_size": 6, "max_text_seq_length": 0, "use_rotary_positional_embeddings": True,
    }  # fmt: skip
    config = VideoConfig(
        base_config=base, control_layers=1, action_channels=4, trajectory_width=4, latent_channels=channels,
        time_stride=chunk, space_stride=space, frame_size_px=SIZE,
    )  # fmt: skip
    network = CausalVideoNetwork(**config.to_dict())
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    codec: Any = Judge.from_pretrained("tiny").codec
    if chunk > 1:
        codec = AutoencoderKLCogVideoX(
            block_out_channels=(8, 8, 8, 8), layers_per_block=1, latent_channels=4, norm_num_groups=2,
            scaling_factor=0.7,
        )  # fmt: skip
    assert chunk > 1 or isinstance(codec, FrameCodec)
    return StreamWorld(network, codec, dtype=torch.float32)


def streaming_stage(stage: Stage, chunk: int) -> Stage:
    world = streamed(chunk)
    rig = Rig(stage.rig.robot, action_mode="cartesian_velocity", frame_size_px=SIZE)
    judge = Judge.from_pretrained("tiny", dtype=torch.float32)
    return Stage(card=stage.card, imagination=Imagination(rig=rig, world=world), judge=judge, reads_latents=chunk == 1)


def test_gradients_through_rasteriser_video_model_and_judge_are_true(stage: Stage, start: Start) -> None:
    made = streaming_stage(stage, 1)
    state = made.begin([start], [0])
    foresight = DrawnForesight(made, state, edge_px=4.0)
    weights = torch.randn(1, 2, 8, 24, 36, generator=torch.Generator().manual_seed(2)) / 100

    def by_latents(foreseen: Foreseen) -> Tensor:
        assert foreseen.latents is not None
        return (foreseen.latents * weights).sum((1, 2, 3, 4))

    def by_judge(foreseen: Foreseen) -> Tensor:
        return foreseen.objects_m[..., :2].nan_to_num().clamp(-2, 2).sum((1, 2, 3))

    actions = 0.6 * pushes(start, 1, 4)[:, :2]
    rng = torch.Generator().manual_seed(3)
    for goal in (by_latents, by_judge):
        score = ForesightScore(foresight, goal)
        leaf = actions.clone().requires_grad_()
        (slope,) = torch.autograd.grad(score(leaf).sum(), leaf)
        assert float(slope.norm()) > 1e-5
        way = slope / slope.norm() + 0.3 * torch.randn(actions.shape, generator=rng) * (slope != 0)
        up, down = (score(actions + sign * 0.02 * way) for sign in (1, -1))
        assert float((up - down) / 0.04) == pytest.approx(float((slope * way).sum()), rel=0.15)


def test_drawn_prompts_lead_to_the_latents_of_a_rollout(stage: Stage, start: Start) -> None:
    for chunk in (1, 4):
        made = streaming_stage(stage, chunk)
        state = made.begin([start], [0])
        actions = pushes(start, 1, 8)
        drawn = DrawnForesight(made, state)(actions)
        _, latents, _ = made.imagination.rollout(state, actions)
        assert drawn.latents is not None
        assert drawn.latents.shape == latents.shape == (1, 8 // chunk, *latents.shape[2:])
        assert float((drawn.latents - latents).abs().mean()) < 0.02 * float(latents.std())


def test_worlds_that_imagine_several_steps_at_once_are_planned_in(stage: Stage, start: Start) -> None:
    made = streaming_stage(stage, 4)
    state = made.begin([start], [0])
    with pytest.raises(ActionError, match="chunks of 4, got 6"):
        made.imagination.rollout(state, torch.zeros(1, 6, 7))
    foresight = LatentForesight(made, state, objects(stage, stage.begin([start], [0])), every=8)
    foreseen = foresight(pushes(start, 2, 12))
    assert foreseen.steps == (8, 12)
    score = ForesightScore(foresight, lambda f: f.latents.square().mean((1, 2, 3, 4)), hold=4)  # type: ignore[union-attr]
    plan = Cem(candidates=4, iterations=2, elites=2).plan(score, Bounds(low=-torch.ones(7), high=torch.ones(7)), 2)
    assert plan.actions.shape == (2, 7)


def test_the_judges_expectations_are_near_its_peaks(stage: Stage, begun: TensorDict) -> None:
    assert isinstance(stage.judge, Judge)
    tool_m = stage.imagination.look(begun).tool_m[:, 0]
    reading = stage.read(begun, tool_m)
    soft = soft_objects(stage.judge, begun["world_latent"], stage.imagination.camera(begun), tool_m)
    sure = reading.objects_confidence > 0.9
    assert float((soft - reading.objects_world_m)[sure].norm(dim=-1).median()) < 0.02


def test_task_goals_prefer_what_solves_the_task(start: Start) -> None:
    scene = start.scene
    assert scene is not None
    goal = TaskGoal([scene])
    thing = torch.tensor([*scene.target_object.xy_m, 0.03])
    there = torch.tensor([*scene.goal_xy_m, 0.03])

    def future(tool: Tensor, moved: Tensor) -> Foreseen:
        places = torch.full((1, 3, 6, 3), torch.nan)
        places[:, :, scene.target] = moved
        return Foreseen(tool_m=tool.expand(1, 3, 3), closedness=torch.ones(1, 3), objects_m=places, steps=(1, 2, 3))

    behind = push_from(scene, thing)
    ahead = 2 * thing - behind
    values = [
        float(goal(future(tool, place))[0])
        for tool, place in ((push_from(scene, there), there), (behind, thing), (ahead, thing), (behind, ahead))
    ]
    assert values[0] > -0.03
    assert values[0] > values[1] > values[2]
    low = behind - torch.tensor([0.0, 0.0, 0.05])
    assert float(goal(future(low, thing))[0]) < values[1] - 0.3
    drawer = load_starts("VAP-RT1-v0", None)
    with pytest.raises(UnknownNameError, match="No goal for the task 'open_drawer'"):
        TaskGoal([s for s in [drawer[drawer.of_task("open_drawer")[0]].scene] if s is not None])


def test_a_goal_picture_is_reached_best_by_the_actions_that_made_it(stage: Stage, start: Start) -> None:
    state = stage.begin([start], [0])
    actions = pushes(start, 4, 8)
    _, frames, _ = stage.imagination.step(state, actions[2:3])
    assert frames is not None
    goal = PictureGoal(stage.imagination.world, frames[:, -1].numpy())
    score = ForesightScore(LatentForesight(stage, state, objects(stage, state), every=8), goal)
    assert int(score(actions).argmax()) == 2
    with pytest.raises(VapError, match="Use LatentForesight"):
        goal(ThingForesight(stage.imagination, state, objects(stage, state))(actions))


def test_scores_become_costs_and_costs_scores(stage: Stage, begun: TensorDict, start: Start) -> None:
    seen = objects(stage, begun)
    scenes = [s.scene for s in (start, load_starts(ID, None)[load_starts(ID, None).of_task("push")[1]])]
    goal = TaskGoal([scene for scene in scenes if scene is not None])
    score = ForesightScore(ThingForesight(stage.imagination, begun, seen), goal)
    actions = torch.rand(2, 3, 4, 7, generator=torch.Generator().manual_seed(0)) * 2 - 1
    model = ScoreAsCost(lambda info: score, action_size=7)
    blocks = actions.reshape(2, 3, 2, 14)
    costs = model.get_cost({"goal": torch.zeros(2, 3, 1)}, blocks)
    assert torch.allclose(costs.nan_to_num(), -score(actions).nan_to_num(), atol=1e-6)
    assert next(iter(model.parameters())).dtype == torch.float32
    with pytest.raises(ActionError, match="7 entries each, got 13"):
        model.get_cost({}, actions[..., :13].reshape(2, 3, 4, 7)[..., :13].new_zeros(2, 3, 2, 13))

    class Theirs:
        def get_cost(self, info: Any, actions: Tensor) -> Tensor:
            assert info["goal"].shape == (2, 32, 3)
            assert info["name"].shape == (2, 32)
            return (actions[..., -1, :3] - info["goal"]).square().sum(-1)

    told = {"goal": torch.tensor([[0.5, 0, 0], [0, -0.5, 0]]), "name": np.array(["a", "b"])}
    bounds = Bounds(low=-torch.ones(3), high=torch.ones(3))
    plan = Cem(candidates=32, iterations=12).plan(cost_as_score(Theirs(), told), bounds, 2, batch=2)
    assert torch.allclose(plan.actions[:, -1], told["goal"], atol=0.05)


def test_scores_of_the_wrong_number_of_environments_are_refused(stage: Stage, begun: TensorDict) -> None:
    score = ForesightScore(
        ThingForesight(stage.imagination, begun, objects(stage, begun)), lambda f: f.tool_m[:, -1, 2]
    )
    bounds = Bounds(low=-torch.ones(7), high=torch.ones(7))
    plan = RandomShooting(candidates=8, iterations=1).plan(score, bounds, 2, batch=2)
    assert plan.actions.shape == (2, 2, 7)
    with pytest.raises(VapError, match="of 2 environment"):
        RandomShooting(candidates=8, iterations=1).plan(score, bounds, 2)
    with pytest.raises(VapError, match="needs a WorldModel, got StreamWorld"):
        ThingForesight(streaming_stage(stage, 1).imagination, begun, objects(stage, begun))
    with pytest.raises(VapError, match="needs a StreamWorld"):
        DrawnForesight(stage, begun)
