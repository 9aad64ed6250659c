"""Slots: rollouts that start anywhere in an episode, never read past its end, and remember what they were shown."""

import numpy as np
import pytest
import torch
from torch import Tensor

from vap_gym.errors import CheckpointError
from vap_gym.train.contacts import CONTACT_FRAMES, GRASP_FRAMES, contact_starts, grasp_starts
from vap_gym.train.frames import label_weight
from vap_gym.train.latents import LatentEpisodes, loss_weight
from vap_gym.train.run import seeded
from vap_gym.train.slots import Slots, SlotSettings
from vap_gym.train.world import Groups, latent_loss
from vap_gym.world.appearance import FirstSight

EPISODES, HEIGHT, WIDTH, OBJECTS = 5, 4, 6, 2
LAGS = (1, 2, 4)


def look(pictures: Tensor, views: Tensor) -> FirstSight:
    """A first sight of nothing but one thing, which is at the place of the first object and 1 cm too high."""
    batch, _, height, width = pictures.shape
    nothing = torch.zeros(batch, 1, height, width)
    return FirstSight(
        picture=pictures,
        mask=nothing,
        plate=pictures,
        filled=nothing,
        views=views,
        depth_m=nothing,
        light=torch.zeros(batch, 7),
        there=torch.tensor([[True, False]]).expand(batch, -1),
        things_m=torch.tensor([[[0.0, 0.0, 0.01], [0.0, 0.0, 0.0]]]).repeat(batch, 1, 1),
        shape=torch.zeros(batch, 2, 6),
        owner=torch.zeros(batch, height, width, dtype=torch.uint8),
        alpha=nothing[:, 0],
        whole=pictures,
    )


def episodes(frames: int) -> LatentEpisodes:
    """Latents that say which episode and frame they are; the first object moves in the second half of odd episodes."""
    name = 100.0 * torch.arange(EPISODES)[:, None] + torch.arange(frames)
    objects = torch.zeros(EPISODES, frames, OBJECTS, 3)
    objects[1::2, frames // 2 :, 0, 0] = 0.1
    objects[:, :, 1] = torch.nan
    return LatentEpisodes(
        frames=(name % 100)[..., None, None, None].expand(-1, -1, 4 * HEIGHT, 4 * WIDTH, 3).to(torch.uint8),
        latents=name[..., None, None, None].expand(-1, -1, 3, HEIGHT, WIDTH).half(),
        keypoints_m=torch.zeros(EPISODES, frames, 1, 3),
        views=name[..., None, None, None].expand(-1, -1, 2, 3, 4) - 1e6,  # behind the camera
        K=torch.eye(3).repeat(EPISODES, frames, 1, 1),
        T_world_camera=torch.eye(4).repeat(EPISODES, frames, 1, 1),
        objects_px=torch.full((EPISODES, frames, OBJECTS, 2), torch.nan),
        objects_m=objects,
        objects_turn=torch.eye(3).expand(EPISODES, frames, OBJECTS, 3, 3).clone(),
        tool_px=torch.full((EPISODES, frames, 2), -1e3),
        frame_size_px=(4 * WIDTH, 4 * HEIGHT),
        robot="panda_robotiq",
    )


@pytest.fixture(autouse=True)
def _named_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts that say which episode and frame they are, in place of drawings."""

    def prompts(data: LatentEpisodes, episode: Tensor, frame: Tensor) -> np.ndarray:
        width, height = data.frame_size_px
        name = torch.stack([episode, frame, frame], -1)[:, None, None].expand(-1, height, width, -1)
        return np.asarray(name.to(torch.uint8).numpy())

    monkeypatch.setattr(LatentEpisodes, "prompts", prompts)


def named(latents: Tensor) -> Tensor:
    """The names in (…, C, h, w) latents."""
    assert torch.equal(latents, latents[..., :1, :1, :1].expand_as(latents))
    return latents[..., 0, 0, 0]


def slots_of(frames: int, *, seed: int = 0, batch: int = 16, **settings: float) -> Slots:
    chosen = SlotSettings(batch_size=batch, lags=LAGS, history_noise=0.0, history_blur=0.0, **settings)  # type: ignore[arg-type]
    return Slots(episodes(frames), chosen, seeded(seed), look)


@pytest.mark.parametrize("frames", [5, 12, 60])
@pytest.mark.parametrize("contact_share", [0.0, 0.5, 1.0])
def test_no_slot_reads_past_its_episode(frames: int, contact_share: float) -> None:
    slots = slots_of(frames, strides=(0.3, 0.3, 0.4), contact_share=contact_share)
    seen_last = False
    for step in range(80):
        slots.begin_finished(0.5, 1 + step % 40)
        assert (slots.first >= 0).all()
        assert (slots.length >= 1).all()
        assert (slots.first + slots.length * slots.stride <= frames - 1).all()
        given = slots.inputs()
        truth = given.truth
        assert torch.equal(given.target, slots.now + slots.stride)
        assert torch.equal(named(truth), 100.0 * slots.episode + given.target)
        before = torch.maximum(slots.now - slots.stride, slots.first)
        taps = torch.stack([given.target, slots.now, before, slots.first], 1)
        assert torch.equal(given.prompts[:, :, 0, 0, 1], taps.to(torch.uint8))
        assert torch.equal(given.prompts[:, :, 0, 0, 0], slots.episode[:, None].expand(-1, 4).to(torch.uint8))
        assert torch.equal(given.views, slots.data.views[slots.episode, given.target])
        torch.testing.assert_close(127.5 * (named(slots.sight.picture) + 1), slots.first.float(), atol=1e-3, rtol=0)
        seen_last |= bool((given.target == frames - 1).any())
        slots.advance(torch.zeros_like(truth), truth)
    assert seen_last


def test_slots_shown_the_truth_remember_the_truth_and_the_others_their_own_predictions() -> None:
    slots = slots_of(40, strides=(0.4, 0.3, 0.3))
    remembered: list[list[float]] = [[] for _ in range(16)]
    for step in range(60):
        ended = slots.depth >= slots.length
        slots.begin_finished(0.5, 12)
        for i in torch.nonzero(ended)[:, 0].tolist():
            start = float(100 * slots.episode[i] + slots.first[i])
            remembered[i] = [start] * 4  # as in an env after reset, all history is the first frame
            assert named(slots.anchor[i]) == start
        given = slots.inputs()
        seen, truth = given.seen, given.truth
        for i, past in enumerate(remembered):
            assert named(seen[i]).tolist() == [past[-lag] for lag in LAGS]
        predicted = torch.full_like(truth, -1000.0 - step)
        slots.advance(predicted, truth)
        for i, past in enumerate(remembered):
            past.append(-1000.0 - step if slots.own[i] else float(named(truth[i])))
    assert slots.own.any()
    assert not slots.own.all()


def test_rollouts_are_as_long_and_as_wide_as_asked_for() -> None:
    slots = slots_of(60, batch=4000, strides=(0.7, 0.2, 0.1), contact_share=0.0)
    slots.begin_finished(0.25, 9)
    assert slots.length.unique().tolist() == list(range(1, 10))
    shares = [(slots.stride == stride).float().mean() for stride in (1, 2, 3)]
    torch.testing.assert_close(torch.stack(shares), torch.tensor([0.7, 0.2, 0.1]), atol=0.03, rtol=0)
    assert slots.own.float().mean() == pytest.approx(0.25, abs=0.03)
    assert slots.episode.unique().tolist() == list(range(EPISODES))
    before = slots.first.clone()
    slots.begin_finished(0.25, 9)
    assert torch.equal(slots.first, before)  # none is at its end yet


def test_things_go_where_their_objects_truly_went_and_the_others_stay() -> None:
    slots = slots_of(40, batch=64, contact_share=1.0, strides=(1.0, 0.0, 0.0))
    slots.begin_finished(1.0, 30)
    slots.data.objects_turn[:, 20:, 0] = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    moved = False
    for _ in range(int(slots.length.min())):
        given = slots.inputs()
        gone = (slots.first < 20) & (given.target >= 20)  # episodes() moves the first object by 10 cm there
        expected = torch.tensor([0.0, 0.0, 0.01]) + gone[:, None] * torch.tensor([0.1, 0.0, 0.0])
        torch.testing.assert_close(given.place_m[:, 0], expected)
        assert torch.equal(given.turn[:, 0, 1, 0], gone.float())
        assert not given.place_m[:, 1].any()
        assert torch.equal(given.turn[:, 1], torch.eye(3).expand(64, 3, 3))
        moved |= bool(gone.any())
        slots.advance(given.truth, given.truth)
    assert slots.known.tolist() == [[True, False]] * 64
    assert moved or int(slots.length.min()) < 20


def test_contact_starts_come_shortly_before_an_object_moves() -> None:
    starts = contact_starts(episodes(60).objects_m)
    assert starts[:, 0].unique().tolist() == [1, 3]
    for episode in (1, 3):
        mine = starts[starts[:, 0] == episode, 1].tolist()
        assert mine == list(range(30 - CONTACT_FRAMES, 30))
    assert len(contact_starts(torch.full((2, 9, 1, 3), torch.nan))) == 0
    slots = slots_of(60, batch=500, contact_share=1.0, strides=(1.0, 0.0, 0.0))
    slots.begin_finished(0.5, 5)
    assert set(slots.episode.tolist()) == {1, 3}
    assert slots.first.min() >= 30 - CONTACT_FRAMES
    assert slots.first.max() < 30


def test_grasps_are_told_from_those_that_miss_and_from_closing_elsewhere() -> None:
    """Four episodes: a thing is lifted; it stays behind; the gripper closes far from it; it never goes up."""
    closed = torch.zeros(4, 60)
    closed[:, 20:] = torch.linspace(0.2, 1.0, 40)
    fingers_m, objects_m = torch.zeros(4, 60, 3), torch.full((4, 60, 2, 3), torch.nan)
    objects_m[:, :, 0] = torch.tensor([0.02, 0.0, 0.03])
    rise = 0.1 * torch.linspace(0.0, 1.0, 60)
    fingers_m[:3, :, 2] = objects_m[0, :, 0, 2] = rise
    fingers_m[2, :, 0] = 0.2
    held, missed = grasp_starts(closed, fingers_m, objects_m)
    early, late = GRASP_FRAMES
    assert held.tolist() == [[0, frame] for frame in range(20 - early, 20 - late + 1)]
    assert missed.tolist() == [[1, frame] for frame in range(20 - early, 20 - late + 1)]
    slow, _ = grasp_starts(closed[:, ::2], fingers_m[:, ::2], objects_m[:, ::2], slow=2)
    assert slow.tolist() == [[0, frame] for frame in range(10 - early // 2, 10)]
    assert [len(x) for x in grasp_starts(torch.zeros(4, 60), fingers_m, objects_m)] == [0, 0]


@pytest.mark.parametrize("spoilt", ["history_noise", "history_blur"])
def test_history_is_spoilt_in_slots_shown_the_truth_after_their_first_step(spoilt: str) -> None:
    settings = {"history_noise": 0.0, "history_blur": 0.0, spoilt: 0.5}
    data = episodes(30)
    data.latents.copy_(torch.rand(data.latents.shape, generator=seeded(1)))
    slots = Slots(data, SlotSettings(batch_size=64, lags=LAGS, **settings), seeded(0), look)  # type: ignore[arg-type]
    slots.begin_finished(0.5, 20)
    assert torch.equal(slots.inputs().seen, slots.history[:, [lag - 1 for lag in LAGS]])
    truth = slots.inputs().truth
    slots.advance(truth, truth)
    clean = slots.history[:, [lag - 1 for lag in LAGS]]
    changed = (slots.inputs().seen != clean).flatten(1).any(1)
    assert not (changed & slots.own).any()
    assert changed[~slots.own].float().mean() > (0.9 if spoilt == "history_noise" else 0.2)
    assert spoilt == "history_noise" or changed[~slots.own].float().mean() < 0.8  # half of them


def test_a_saved_state_goes_on_the_same() -> None:
    one = slots_of(30, contact_share=0.5)
    for step in range(10):
        one.begin_finished(0.5, 8)
        truth = one.inputs().truth
        one.advance(truth + step, truth)
    other = slots_of(30, contact_share=0.5, seed=1)
    other.restore({key: value.clone() for key, value in one.state().items()})
    other.rng.set_state(one.rng.get_state())
    for step in range(10):
        for slots in (one, other):
            slots.begin_finished(0.5, 8)
            truth = slots.inputs().truth
            slots.advance(truth - step, truth)
        for key, value in one.state().items():
            assert torch.equal(value, other.state()[key]), key


def test_a_state_that_does_not_fit_is_refused_and_nothing_is_taken_up() -> None:
    slots, state = slots_of(30), slots_of(30, seed=1).state()
    before = {key: value.clone() for key, value in slots.state().items()}
    older = {key: value for key, value in state.items() if key not in ("sight_whole", "known")}
    with pytest.raises(CheckpointError, match=r"recipe's 16 slots, but it lacks known, sight_whole\. Resume"):
        slots.restore(older)
    fewer = {key: value[:8] if key in ("depth", "own") else value for key, value in state.items()}
    with pytest.raises(CheckpointError, match=r"but it has depth \(8,\) and has own \(8,\)\. Resume"):
        slots.restore(fewer)
    with pytest.raises(CheckpointError, match=r"rollouts of 0 robots, one after the other, but holds 0\. Resume"):
        Groups([]).restore({"0": state})
    assert all(torch.equal(value, before[key]) for key, value in slots.state().items())


# --- weights of the loss ---


def test_the_loss_weighs_moved_objects_most_and_the_place_they_left() -> None:
    data = episodes(10)
    data.objects_px[..., 0, :] = torch.tensor([6.0, 6.0])
    data.objects_px[1::2, 5:, 0] = torch.tensor([18.0, 10.0])
    rows = torch.tensor([1, 2])
    settings = {"gripper": 2.0, "objects": 3.0, "moved": 6.0}
    frame, first = torch.tensor([8, 8]), torch.tensor([0, 0])
    weight = loss_weight(data, rows, frame, first, **settings)[:, 0]
    assert weight.shape == (2, HEIGHT, WIDTH)
    assert weight[0, 2, 4] == pytest.approx(1 + 9, rel=0.05)  # moved here …
    assert weight[0, 1, 1] > 1 + 0.9 * 3  # … from there, which has to be cleared
    assert weight[1, 1, 1] == pytest.approx(1 + 3, rel=0.05)  # never moved
    assert weight[1, 3, 5] < 1.7
    before = loss_weight(data, rows[:1], torch.tensor([4]), first[:1], **settings)[0, 0]
    assert before[1, 1] == pytest.approx(1 + 3, rel=0.05)  # not yet moved
    assert (weight >= 1).all()
    assert weight.isfinite().all()  # absent objects have no place


def test_the_loss_weighs_the_gripper() -> None:
    data = episodes(4)
    data.tool_px[2, 3] = torch.tensor([14.0, 6.0])
    weight = loss_weight(data, *(torch.tensor([n]) for n in (2, 3, 0)), gripper=2.0, objects=3.0, moved=6.0)[0, 0]
    assert weight[1, 3] == pytest.approx(3.0, rel=0.02)
    assert weight.argmax() == WIDTH + 3


def test_only_shares_of_the_weight_count() -> None:
    rng = seeded(0)
    truth, predicted = torch.rand(2, 3, 4, 4, generator=rng), torch.rand(2, 3, 4, 4, generator=rng)
    weight = 1 + torch.rand(2, 1, 4, 4, generator=rng)
    torch.testing.assert_close(latent_loss(predicted, truth, weight), latent_loss(predicted, truth, 5 * weight))
    assert latent_loss(truth, truth, weight) == 0


def test_label_weights_reach_around_gripper_and_objects() -> None:
    labels = torch.zeros(1, 12, 12, dtype=torch.uint8)
    labels[0, 2, 2], labels[0, 9, 9], labels[0, 2, 9] = 2, 5, 1
    weight = label_weight(labels, gripper=2.0, objects=4.0)[0, 0]
    assert weight[4, 4] == 3
    assert weight[7, 7] == 5
    assert weight[2, 9] == 1  # the arm is as the background
    assert weight[6, 3] == 1
