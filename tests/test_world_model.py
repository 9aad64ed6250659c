"""The world model: all that changes is in the state, and a slot's future is a function of its own state and prompts."""

import jaxtyping
import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from vap_gym.errors import VapError
from vap_gym.world.appearance import RobotAppearance
from vap_gym.world.codec import FrameCodec
from vap_gym.world.devices import devices, native_dtype
from vap_gym.world.dynamics import FrameDynamics
from vap_gym.world.model import PARTS, WorldModel
from vap_gym.world.motion import ThingMotion
from vap_gym.world.things import ThingFinder

BATCH, STEPS, HEIGHT, WIDTH = 3, 4, 32, 48


def networks() -> tuple[FrameCodec, FrameDynamics, RobotAppearance, ThingFinder, ThingMotion]:
    """Small networks with weights that make every input count; things are found and moved everywhere."""
    torch.manual_seed(0)
    codec = FrameCodec(latent_channels=4, encoder_widths=(8, 16), decoder_widths=(16, 8))
    dynamics = FrameDynamics(
        latent_channels=4, latent_size=(8, 12), widths=(8, 16), blocks=(1, 1), heads=1, layers=2, control_layers=1,
        time_embed_dim=16, action_channels=4, prompt_features=6,
    )  # fmt: skip
    rng = torch.Generator().manual_seed(5)
    appearance = RobotAppearance(points=40, links=2, widths=(4, 8))
    things = ThingFinder(most=2, widths=(4, 8), blocks=1, links=2)
    motion = ThingMotion(gripper=(1, 0), links=2, memory=8, width=16)
    parts = (codec, dynamics, appearance, things, motion)
    for parameter in (p for part in parts for p in part.parameters()):
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=rng)
    things.centres.bias.data[0] += 3.0
    things.pixels[0].bias.data[:4] += 3.0
    motion.leave[2].bias.data[:2] += 2.0
    for buffer in (appearance.points_m, appearance.spacing_m, appearance.colour):
        buffer.uniform_(0.01, 0.1, generator=rng)
    appearance.link[20:] = 1
    return parts


@pytest.fixture(scope="module")
def world() -> WorldModel:
    return WorldModel(*networks(), dtype=torch.float32)


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """As users run it: without the shape checks of the tests, so that our own errors must speak."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def pictures(*batch: int, seed: int = 0) -> Tensor:
    shape = (*batch, HEIGHT, WIDTH, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def begun(world: WorldModel, *, seed: int = 0) -> TensorDict:
    return world.start(pictures(BATCH, seed=seed), pictures(BATCH, seed=seed + 100), torch.arange(BATCH) + 10 + seed)


def assert_same(one: TensorDict, other: TensorDict) -> None:
    assert set(one.keys()) == set(other.keys())
    for key in one.keys():  # noqa: SIM118 (a TensorDict iterates over its batch)
        assert torch.equal(one[key], other[key]), key


def test_the_state_is_flat_and_every_tensor_leads_with_the_batch(world: WorldModel) -> None:
    state = begun(world)
    assert state.batch_size == (BATCH,)
    for key, value in state.items():
        assert isinstance(value, Tensor), key
        assert len(value) == BATCH
    assert state["step"].tolist() == [0] * BATCH
    assert state["seed"].tolist() == [10, 11, 12]
    assert torch.equal(state["latent"], world.encode(pictures(BATCH)))
    assert torch.equal(state["anchor"], state["latent"])
    assert world.frame_size_px == (WIDTH, HEIGHT)


def test_k_steps_in_one_call_equal_k_calls_bit_for_bit(world: WorldModel) -> None:
    prompts = pictures(BATCH, STEPS, seed=1)
    together, frames = world.predict(begun(world), prompts)
    assert frames is not None
    assert frames.shape == (BATCH, STEPS, HEIGHT, WIDTH, 3)
    assert frames.dtype == torch.uint8
    state, singles = begun(world), []
    for k in range(STEPS):
        state, one = world.predict(state, prompts[:, k : k + 1])
        singles.append(one)
    assert torch.equal(torch.cat(singles, 1), frames)
    assert_same(state, together)
    assert together["step"].tolist() == [STEPS] * BATCH


@pytest.mark.parametrize("evaluations", [1, 2])
def test_latents_alone_are_the_same_latents(world: WorldModel, evaluations: int) -> None:
    prompts = pictures(BATCH, STEPS, seed=1)
    seen, frames = world.predict(begun(world), prompts, evaluations=evaluations)
    unseen, none = world.predict(begun(world), prompts, decode=False, evaluations=evaluations)
    assert none is None
    assert frames is not None
    assert_same(seen, unseen)
    assert torch.equal(world.decode(unseen["latent"]), frames[:, -1])


def test_the_given_state_is_left_as_it_is(world: WorldModel) -> None:
    state = begun(world)
    copy = state.clone()
    after, _ = world.predict(state, pictures(BATCH, STEPS, seed=1), decode=False)
    assert_same(state, copy)
    stored = {value.untyped_storage().data_ptr() for key, value in state.items() if key not in ("anchor", "seed")}
    changed = {after[key].untyped_storage().data_ptr() for key in ("latent", "history", "prompt_features", "step")}
    assert not stored & changed


def test_the_same_start_gives_the_same_future_and_another_seed_another(world: WorldModel) -> None:
    prompts = pictures(BATCH, STEPS, seed=1)
    first, again = (world.predict(begun(world), prompts, decode=False)[0] for _ in range(2))
    assert_same(first, again)
    state = begun(world)
    state["seed"] = state["seed"] + 1
    assert not torch.equal(world.predict(state, prompts, decode=False)[0]["latent"], first["latent"])


def test_a_slots_frames_do_not_depend_on_the_other_slots(world: WorldModel) -> None:
    prompts, others = pictures(BATCH, STEPS, seed=1), pictures(BATCH, STEPS, seed=2)
    others[1] = prompts[1]
    state, changed = begun(world), begun(world, seed=50)
    changed[1] = state[1]
    mine, theirs = world.predict(state, prompts)[1], world.predict(changed, others)[1]
    assert mine is not None
    assert theirs is not None
    assert torch.equal(mine[1], theirs[1])
    assert not torch.equal(mine[0], theirs[0])


def test_assigning_an_index_resets_that_slot_and_no_other(world: WorldModel) -> None:
    prompts = pictures(BATCH, STEPS, seed=1)
    old, _ = world.predict(begun(world), prompts, decode=False)
    fresh = begun(world, seed=50)
    mixed = old.clone()
    mixed[1] = fresh[1]
    assert mixed["step"].tolist() == [STEPS, 0, STEPS]
    futures = [world.predict(state, prompts)[1] for state in (mixed, old, fresh)]
    mixed_frames, old_frames, fresh_frames = (f for f in futures if f is not None)
    assert torch.equal(mixed_frames[1], fresh_frames[1])
    assert torch.equal(mixed_frames[[0, 2]], old_frames[[0, 2]])


def test_a_branch_has_one_future_per_prompt(world: WorldModel) -> None:
    state, _ = world.predict(begun(world), pictures(BATCH, 2, seed=1), decode=False)
    branch = state[0:1].expand(4).clone()
    prompts = pictures(1, STEPS, seed=3).repeat(4, 1, 1, 1, 1)
    frames = world.predict(branch, prompts)[1]
    assert frames is not None
    assert all(torch.equal(frames[i], frames[0]) for i in range(4))
    prompts[2] = pictures(STEPS, seed=4)
    parted = world.predict(branch, prompts)[1]
    assert parted is not None
    assert torch.equal(parted[[0, 1, 3]], frames[[0, 1, 3]])
    assert not torch.equal(parted[2], frames[2])
    assert_same(
        world.predict(state[0:1].expand(4), prompts, decode=False)[0], world.predict(branch, prompts, decode=False)[0]
    )


def test_a_prompt_acts_on_its_own_frame_and_later_ones_only(world: WorldModel) -> None:
    prompts = pictures(BATCH, STEPS, seed=1)
    frames = world.predict(begun(world), prompts)[1]
    prompts[:, 2] = 255 - prompts[:, 2]
    changed = world.predict(begun(world), prompts)[1]
    assert frames is not None
    assert changed is not None
    assert torch.equal(frames[:, :2], changed[:, :2])
    assert not torch.equal(frames[:, 2], changed[:, 2])
    assert not torch.equal(frames[:, 3], changed[:, 3])


def test_evaluations_and_interval_count(world: WorldModel) -> None:
    prompts = pictures(BATCH, 1, seed=1)
    once, twice = (world.predict(begun(world), prompts, evaluations=n, decode=False)[0]["latent"] for n in (1, 2))
    assert not torch.equal(once, twice)
    slow = world.predict(begun(world), prompts, interval=3, decode=False)[0]["latent"]
    assert not torch.equal(once, slow)


def test_bfloat16_is_close_to_float32(world: WorldModel) -> None:
    quick = WorldModel(*networks(), dtype=torch.bfloat16)
    prompts = pictures(BATCH, STEPS, seed=1)
    exact, near = (model.predict(begun(model), prompts)[1] for model in (world, quick))
    assert exact is not None
    assert near is not None
    assert (exact.int() - near.int()).abs().float().mean() < 3
    assert quick.predict(begun(quick), prompts, decode=False)[0]["latent"].dtype == torch.float32


def test_latents_of_any_leading_shape_are_decoded(world: WorldModel) -> None:
    latents = world.encode(pictures(2, 3))
    assert latents.shape == (2, 3, 4, 8, 12)
    assert latents.dtype == torch.float32
    frames = world.decode(latents)
    assert frames.shape == (2, 3, HEIGHT, WIDTH, 3)
    assert torch.equal(frames[1], world.decode(latents[1]))


def test_nothing_is_trained_by_imagining(world: WorldModel) -> None:
    assert set(world.parts) == set(PARTS)
    for name, part in world.parts.items():
        assert not any(p.requires_grad for p in part.parameters()), name
        assert not part.training, name


# --- errors ---


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("frames", "given"),
    [
        (torch.zeros(BATCH, HEIGHT, WIDTH, 3), r"torch.float32 \(3, 32, 48, 3\)"),
        (torch.zeros(BATCH, WIDTH, HEIGHT, 3, dtype=torch.uint8), r"torch.uint8 \(3, 48, 32, 3\)"),
        (torch.zeros(BATCH, HEIGHT, WIDTH, 4, dtype=torch.uint8), r"torch.uint8 \(3, 32, 48, 4\)"),
        (torch.zeros(WIDTH, 3, dtype=torch.uint8), r"torch.uint8 \(48, 3\)"),
    ],
)
def test_frames_of_another_type_or_size_are_refused(world: WorldModel, frames: Tensor, given: str) -> None:
    good, seed = pictures(BATCH), torch.zeros(BATCH, dtype=torch.int64)
    with pytest.raises(VapError, match=rf"frames must be uint8 \(…, 32, 48, 3\), got {given}\. Crop and resize"):
        world.start(frames, good, seed)
    with pytest.raises(VapError, match=rf"prompts must be uint8 \(…, 32, 48, 3\), got {given}\. Crop and resize"):
        world.start(good, frames, seed)
    with pytest.raises(VapError, match="frames must be uint8"):
        world.encode(frames)


@pytest.mark.usefixtures("unchecked")
def test_one_frame_prompt_and_seed_per_slot_are_asked_for(world: WorldModel) -> None:
    for frames, prompts, seeds in ((2, 3, 3), (3, 2, 3), (3, 3, 2)):
        with pytest.raises(VapError, match=r"frames and prompts must have shape \(B, H, W, 3\) and seed \(B,\), got"):
            world.start(pictures(frames), pictures(prompts), torch.zeros(seeds, dtype=torch.int64))
    with pytest.raises(VapError, match=r"prompts must have shape \(3, K, H, W, 3\), got \(2, 4, 32, 48, 3\)"):
        world.predict(begun(world), pictures(2, STEPS))
    with pytest.raises(VapError, match=r"prompts must have shape \(3, K, H, W, 3\), got \(3, 32, 48, 3\)"):
        world.predict(begun(world), pictures(BATCH))
    with pytest.raises(VapError, match="evaluations must be 1 or more, got 0"):
        world.predict(begun(world), pictures(BATCH, 1), evaluations=0)


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta"])
def test_an_unknown_device_says_which_there_are(device: str) -> None:
    with pytest.raises(VapError, match=rf"evice (named )?'{device}'.*Known here: cpu"):
        WorldModel(*networks(), device=device)
    assert devices()[0] == "cpu"


def test_bfloat16_is_the_default_only_where_it_is_native() -> None:
    native = torch.cpu._is_avx512_bf16_supported()
    assert native_dtype(torch.device("cpu")) == (torch.bfloat16 if native else torch.float32)
    assert WorldModel(*networks()).dtype == native_dtype(torch.device("cpu"))


# --- what is known of robot and things ---


def links(*batch: int, shift: float = 0.0) -> Tensor:
    """Views of two links, some centimetres across, of a camera of 48 × 32 px that looks down on them."""
    K = torch.tensor([[30.0, 0.0, 24.0], [0.0, 30.0, 16.0], [0.0, 0.0, 1.0]])
    places = torch.tensor([[0.0, 0.0, 0.4], [0.1 + shift, 0.0, 0.5]])
    M = K @ torch.cat([torch.diag(torch.tensor([1.0, -1.0, -1.0])).expand(2, 3, 3), places[..., None]], -1)
    return M.expand(*batch, 2, 3, 4).clone()


def test_views_pose_the_robot_and_are_remembered(world: WorldModel) -> None:
    prompts, seeds = pictures(BATCH, STEPS, seed=1), torch.arange(BATCH)
    state = world.start(pictures(BATCH), pictures(BATCH, seed=100), seeds, views=links(BATCH))
    assert state["first_mask"].any()
    assert not begun(world)["first_mask"].any()
    together, frames = world.predict(state, prompts, views=links(BATCH, STEPS, shift=0.05))
    assert torch.equal(together["first_views"], links(BATCH))
    one, _ = world.predict(state, prompts[:, :2], views=links(BATCH, 2, shift=0.05))
    parts, _ = world.predict(one, prompts[:, 2:], views=links(BATCH, 2, shift=0.05))
    assert_same(parts, together)
    other = world.predict(state, prompts, views=links(BATCH, STEPS))[1]
    assert frames is not None
    assert other is not None
    assert not torch.equal(frames, other)


@pytest.mark.usefixtures("unchecked")
def test_views_of_another_shape_or_at_one_end_only_are_refused(world: WorldModel) -> None:
    good, seed = pictures(BATCH), torch.arange(BATCH)
    with pytest.raises(VapError, match=r"views must have shape \(3, links, 3, 4\), got \(3, 2, 4, 4\)"):
        world.start(good, good, seed, views=torch.zeros(BATCH, 2, 4, 4))
    told = world.start(good, good, seed, views=links(BATCH))
    with pytest.raises(VapError, match=r"links that start\(\) was given \(2 of them\), got 0"):
        world.predict(told, pictures(BATCH, STEPS))


def test_things_move_when_the_gripper_does_and_are_remembered(world: WorldModel) -> None:
    prompts, seeds = pictures(BATCH, STEPS, seed=1), torch.arange(BATCH)
    state = world.start(pictures(BATCH), pictures(BATCH, seed=100), seeds, views=links(BATCH))
    there = state["thing_there"]
    assert there.any()
    after, _ = world.predict(state, prompts, views=links(BATCH, STEPS, shift=0.05))
    moved = (after["thing_place_m"] - state["thing_place_m"]).norm(dim=-1)
    assert (moved[there] > 1e-4).any()
    assert not moved[~there].any()
    assert torch.equal(after["first_things_m"], state["thing_place_m"])
    shown = (
        after["latent"] - world.predict(_at_rest(state), prompts, views=links(BATCH, STEPS, shift=0.05))[0]["latent"]
    )
    assert shown.flatten(1).any(1).any()
    nothing, _ = world.predict(begun(world), prompts)
    assert not nothing["thing_there"].any()  # without views nothing can be placed


def _at_rest(state: TensorDict) -> TensorDict:
    rests = state.clone()
    rests["thing_there"] = torch.zeros_like(rests["thing_there"])
    return rests


@pytest.mark.usefixtures("unchecked")
def test_views_of_nothing_are_no_error(world: WorldModel) -> None:
    """Zeros: what an env without prompts gives."""
    state = world.start(pictures(BATCH), pictures(BATCH), torch.arange(BATCH), views=torch.zeros(BATCH, 2, 3, 4))
    state, frames = world.predict(state, pictures(BATCH, STEPS), views=torch.zeros(BATCH, STEPS, 2, 3, 4))
    assert frames is not None
    assert all(value.isfinite().all() for key, value in state.items() if value.is_floating_point())
