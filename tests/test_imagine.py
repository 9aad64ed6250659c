"""Imagination: one flat state, chunks equal to single steps, branches and partial resets by index, latent rollouts."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from tensordict import TensorDict

from vap_gym import Imagination, Rig, StartSet, load_robot
from vap_gym.errors import ActionError, VapError
from vap_gym.stage import Stage
from vap_gym.starts import starts_path

ID = "VAP-DROID-v0"


@pytest.fixture(scope="module")
def stage() -> Stage:
    made: Any = gym.make(ID).unwrapped
    found: Stage = made.stage
    return found


@pytest.fixture(scope="module")
def begun(stage: Stage) -> TensorDict:
    starts = StartSet(starts_path(ID))
    return stage.begin([starts[i] for i in range(3)], [11, 22, 33])


def some_actions(*shape: int, seed: int = 0) -> torch.Tensor:
    """Random actions in [-1, 1], (*shape, 7)."""
    return torch.rand(*shape, 7, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_the_state_is_flat_and_batched(begun: TensorDict) -> None:
    assert tuple(begun.batch_size) == (3,)
    assert all(isinstance(value, torch.Tensor) and len(value) == 3 for value in begun.values())


def test_k_steps_at_once_are_k_single_steps(stage: Stage, begun: TensorDict) -> None:
    imagination, actions = stage.imagination, some_actions(3, 4)
    together, frames, motion = imagination.step(begun, actions)
    state, singles = begun, []
    for k in range(4):
        state, frame, _ = imagination.step(state, actions[:, k : k + 1])
        singles.append(frame)
    assert frames is not None
    assert torch.equal(frames, torch.cat(singles, 1))  # type: ignore[arg-type]
    assert all(torch.equal(together[key].nan_to_num(), state[key].nan_to_num()) for key in state.keys())  # noqa: SIM118
    assert motion.prompts.shape == (3, 4, 96, 144, 3)


def test_a_step_leaves_the_state_that_it_was_given(stage: Stage, begun: TensorDict) -> None:
    before = begun.clone()
    stage.imagination.step(begun, some_actions(3, 2))
    assert all(torch.equal(begun[key].nan_to_num(), before[key].nan_to_num()) for key in before.keys())  # noqa: SIM118


def test_latent_rollouts_reach_the_state_of_decoded_ones(stage: Stage, begun: TensorDict) -> None:
    actions = some_actions(3, 4)
    decoded, frames, _ = stage.imagination.step(begun, actions)
    rolled, latents, motion = stage.imagination.rollout(begun, actions)
    assert torch.equal(decoded["world_latent"], rolled["world_latent"])
    assert torch.equal(latents[:, -1], rolled["world_latent"])
    assert latents.shape[:2] == (3, 4)
    assert frames is not None
    alone = stage.imagination.world.decode(latents[:, -1]).float() - frames[:, -1].float()
    assert alone.abs().mean() < 4.0  # pixels of the posed picture that a frame keeps are not in its latents
    assert motion.tool_m.shape == (3, 4, 3)
    skipped = stage.imagination.step(begun, actions, decode=False)
    assert skipped[1] is None


def test_a_branch_is_an_expanded_state(stage: Stage, begun: TensorDict) -> None:
    branch = begun[1:2].expand(3).clone()
    _, frames, _ = stage.imagination.step(branch, some_actions(1, 2).expand(3, 2, 7))
    assert frames is not None
    assert torch.equal(frames[0], frames[2])


def test_a_partial_reset_is_an_index_assignment(stage: Stage, begun: TensorDict) -> None:
    later, _ = stage.advance(begun, some_actions(3, 2))
    mixed = later.clone()
    mixed[torch.tensor([1])] = begun[1:2]
    assert mixed["step"].tolist() == [2, 0, 2]
    for key in mixed.keys():  # noqa: SIM118
        for i, source in enumerate((later, begun, later)):
            assert torch.equal(mixed[key][i].nan_to_num(), source[key][i].nan_to_num())


def test_a_slot_does_not_notice_who_else_is_in_the_batch(stage: Stage, begun: TensorDict) -> None:
    actions = some_actions(3, 3)
    _, frames, _ = stage.imagination.step(begun, actions)
    other = begun.clone()
    other[torch.tensor([1, 2])] = begun[torch.tensor([2, 1])]
    changed = actions.clone()
    changed[1:] = some_actions(2, 3, seed=9)
    _, again, _ = stage.imagination.step(other, changed)
    assert frames is not None
    assert again is not None
    assert torch.equal(frames[0], again[0])
    assert not torch.equal(frames[1], again[1])


def test_cameras_belong_to_slots(stage: Stage, begun: TensorDict) -> None:
    moved = begun.clone()
    moved["camera_T_world_camera"][0] = begun["camera_T_world_camera"][1]
    before, after = stage.imagination.look(begun), stage.imagination.look(moved)
    assert not torch.equal(before.tool_px[0], after.tool_px[0])
    assert torch.equal(before.tool_px[1:], after.tool_px[1:])
    assert torch.equal(before.prompts[1:], after.prompts[1:])


def test_keys_of_others_travel_along(stage: Stage, begun: TensorDict) -> None:
    mine = begun.clone()
    mine["mine"] = torch.tensor([1, 2, 3])
    state, _, _ = stage.imagination.step(mine, some_actions(3, 1))
    assert state["mine"].tolist() == [1, 2, 3]


def test_the_tool_is_between_the_finger_ends(stage: Stage, begun: TensorDict) -> None:
    motion = stage.imagination.look(begun)
    names = stage.rig.skeleton.keypoint_names
    ends = stage.rig.skeleton.keypoints(stage.imagination.robot_state(begun))
    middle = ends[:, [names.index("left_end"), names.index("right_end")]].mean(1)
    assert float((motion.tool_m[:, 0] - middle).norm(dim=-1).max()) < 0.01


@pytest.mark.parametrize("shape", [(3, 7), (3, 0, 7), (2, 1, 7), (3, 1, 6)])
def test_actions_of_another_shape_are_refused(stage: Stage, begun: TensorDict, shape: tuple[int, ...]) -> None:
    with pytest.raises((ActionError, Exception), match=r"shape|Shape|dimension|Type"):
        stage.imagination.step(begun, torch.zeros(*shape))


def test_actions_that_are_not_finite_are_refused(stage: Stage, begun: TensorDict) -> None:
    actions = some_actions(3, 2)
    actions[1, 1, 3] = np.nan
    with pytest.raises(ActionError, match="finite"):
        stage.imagination.step(begun, actions)


def test_a_rig_of_another_frame_size_is_refused(stage: Stage) -> None:
    rig = Rig(load_robot("panda_robotiq"), action_mode="cartesian_velocity", frame_size_px=(72, 48))
    with pytest.raises(VapError, match=r"imagines frames of \(144, 96\) px .* the rig draws prompts of \(72, 48\)"):
        Imagination(rig=rig, world=stage.imagination.world)
