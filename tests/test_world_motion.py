"""How things move: the same wherever it happens, and nothing moves that is not there."""

import pytest
import torch
from torch import Tensor

from vap_gym.cards import load_robot
from vap_gym.errors import CardError
from vap_gym.rotations import rotation_from_rotvec
from vap_gym.train.motion import Motions, begin_from, of_robots, rolled_out, score, standing_shape
from vap_gym.world.motion import MOST_M, Move, ThingMotion, ThingState, motion_loss

BATCH, THINGS, STEPS, LINKS = 2, 3, 5, 4


def network(*, loud: float = 0.3, touch_points: int = 0) -> ThingMotion:
    torch.manual_seed(0)
    model = ThingMotion(gripper=tuple(range(LINKS)), links=LINKS, memory=8, width=16, touch_points=touch_points).eval()
    rng = torch.Generator().manual_seed(1)
    if touch_points:
        model.touch_m.copy_(0.02 * torch.randn(model.touch_m.shape, generator=rng))
    for parameter in model.parameters():
        parameter.data += loud * torch.randn(parameter.shape, generator=rng)
    return model


def scene(seed: int = 0) -> dict[str, Tensor]:
    """Things on a table and a gripper that moves among them."""
    rng = torch.Generator().manual_seed(seed)
    middle = torch.randn(BATCH, STEPS, LINKS, 3, generator=rng) * 0.05 + torch.tensor([0.5, 0.0, 0.1])
    turn = rotation_from_rotvec(0.4 * torch.randn(BATCH, STEPS, LINKS, 3, generator=rng))
    return {
        "there": torch.tensor([[True, True, False], [True, False, False]]),
        "place_m": torch.randn(BATCH, THINGS, 3, generator=rng) * 0.1 + torch.tensor([0.5, 0.0, 0.03]),
        "shape": torch.rand(BATCH, THINGS, 6, generator=rng) * 0.05,
        "grip": torch.cat([middle, turn.flatten(3)], -1),
    }


@torch.no_grad()
def ways(model: ThingMotion, given: dict[str, Tensor]) -> Tensor:
    return torch.stack([state.place_m for state, _ in rolled_out(model, **given)], 1) - given["place_m"][:, None]


@pytest.mark.parametrize("touch_points", [0, 3])
def test_the_same_happens_elsewhere_and_turned(touch_points: int) -> None:
    model, given = network(touch_points=touch_points), scene()
    R = rotation_from_rotvec(torch.tensor([0.0, 0.0, 0.9]))
    shift = torch.tensor([0.2, -0.3, 0.0])
    twice = torch.tensor(1.8)
    x, y = given["shape"][..., 4], given["shape"][..., 5]
    side = torch.stack([twice.cos() * x - twice.sin() * y, twice.sin() * x + twice.cos() * y], -1)
    turned = {
        "there": given["there"],
        "place_m": given["place_m"] @ R.T + shift,
        "shape": torch.cat([given["shape"][..., :4], side], -1),
        "grip": torch.cat(
            [
                given["grip"][..., :3] @ R.T + shift,
                (R @ given["grip"][..., 3:].unflatten(-1, (3, 3))).flatten(-2),
            ],
            -1,
        ),
    }
    before = ways(model, given)
    assert before[given["there"][:, None].expand(-1, STEPS - 1, -1)].abs().max() > 1e-3
    torch.testing.assert_close(ways(model, turned), before @ R.T, atol=1e-4, rtol=1e-3)


def test_what_is_not_there_stays_and_is_not_felt() -> None:
    model, given = network(), scene()
    way = ways(model, given)
    gone = ~given["there"][:, None].expand(-1, STEPS - 1, -1)
    assert not way[gone].any()
    other = {**given, "place_m": torch.where(given["there"][..., None], given["place_m"], 0.4)}
    torch.testing.assert_close(ways(model, other)[~gone], way[~gone])


def test_what_touches_is_felt_where_places_alone_are_the_same() -> None:
    given = scene()
    here, there = network(touch_points=3), network(touch_points=3)
    there.touch_m.mul_(2.0)
    assert (ways(here, given) - ways(there, given)).abs().max() > 1e-5


def test_a_network_goes_on_from_one_that_is_told_less() -> None:
    less, more, given = network(), network(touch_points=3, loud=0.7), scene()
    begin_from(more, less)
    torch.testing.assert_close(ways(more, given), ways(less, given))
    with pytest.raises(CardError, match=r"init must be a network of the same robots and sizes"):
        begin_from(less, more)
    with pytest.raises(CardError, match=r"init must be a network of the same robots and sizes"):
        begin_from(more, ThingMotion(gripper=tuple(range(LINKS)), links=LINKS, memory=8, width=24))


def test_slots_do_not_mix_and_things_hear_of_one_another() -> None:
    model, given, other = network(), scene(), scene(1)
    mixed = {name: torch.cat([value[:1], other[name][1:]]) for name, value in given.items()}
    torch.testing.assert_close(ways(model, mixed)[0], ways(model, given)[0], atol=1e-6, rtol=0)
    beside = given["place_m"].clone()
    beside[0, 1] += 0.05
    assert (ways(model, {**given, "place_m": beside})[0, :, 0] - ways(model, given)[0, :, 0]).abs().max() > 1e-6


def test_nothing_moves_further_in_a_step_than_it_can() -> None:
    given = scene()
    way = ways(network(loud=5.0), given)
    steps = torch.diff(way, dim=1, prepend=torch.zeros_like(way[:, :1]))
    assert steps.norm(dim=-1).max() <= 3**0.5 * MOST_M + 1e-5


def test_what_hardly_moves_rests() -> None:
    model, given = network(), scene()
    model.leave[2].bias.data[0] -= 50.0  # it is sure that nothing moves
    assert not ways(model, given).any()


def test_the_loss_is_least_where_all_is_right() -> None:
    rng = torch.Generator().manual_seed(0)
    place = torch.rand(BATCH, STEPS, THINGS, 3, generator=rng)
    turn = rotation_from_rotvec(torch.randn(BATCH, STEPS, THINGS, 3, generator=rng))
    moves = torch.rand(BATCH, STEPS, THINGS, generator=rng) > 0.5
    counts = torch.ones(BATCH, THINGS)

    def said(off_m: float, angle: float) -> list[tuple[ThingState, Move]]:
        rows = []
        for t in range(STEPS):
            empty = torch.zeros(BATCH, THINGS, 6)
            state = ThingState(
                there=torch.ones(BATCH, THINGS, dtype=torch.bool),
                place_m=place[:, t] + torch.tensor([off_m, 0.0, 0.0]),
                turn=rotation_from_rotvec(torch.tensor([0.0, 0.0, angle])) @ turn[:, t],
                shape=empty,
                step=empty,
                memory=empty,
                grip=torch.zeros(BATCH, LINKS, 12),
            )
            rows.append((state, Move(40.0 * (moves[:, t].float() - 0.5), empty[..., :3], empty[..., :3])))
        return rows

    wrong = ((0.0, 0.0), (0.03, 0.0), (0.0, 1.0))
    losses = [float(motion_loss(said(*x), place, turn, moves, counts, turn_m=0.01)) for x in wrong]
    assert losses[0] == pytest.approx(0.0, abs=0.05)
    assert losses[1] - losses[0] == pytest.approx(1.0, abs=0.05)  # 3 cm are one unit
    assert losses[2] - losses[0] == pytest.approx(0.32, abs=0.05)  # a radian counts as a centimetre


def test_shapes_stand_as_they_are_turned() -> None:
    half, box = torch.tensor([0.04, 0.03, 0.02]), torch.tensor(False)
    flat = standing_shape(half, box, torch.eye(3))
    torch.testing.assert_close(flat, torch.tensor([0.04, 0.03, 0.02, 0.0, 1 / 3, 0.0]), atol=1e-6, rtol=0)
    upright = rotation_from_rotvec(torch.tensor([0.0, torch.pi / 2, 0.0]))  # the longest side is up
    torch.testing.assert_close(standing_shape(half, box, upright)[:3], torch.tensor([0.03, 0.02, 0.04]))
    disc = torch.tensor([0.04, 0.04, 0.015])
    assert standing_shape(disc, torch.tensor(True), torch.eye(3))[3] == 1
    assert standing_shape(disc, torch.tensor(True), upright)[3] == 0  # on its rim it is not round from above
    assert not standing_shape(torch.full((3,), torch.nan), box, torch.full((3, 3), torch.nan))[:3].any()


def test_episodes_shorter_than_the_scores_clips_are_scored_from_their_first_frame() -> None:
    frames, still = 20, scene()["grip"][:1, :1].expand(2, 20, -1, -1)
    place = torch.tensor([0.5, 0.0, 0.03]).repeat(2, frames, 1, 1)
    place[0, 3:, 0, 0] += 0.1  # moves at once; the other episode's never does
    held = Motions(
        grip=still,
        place_m=place,
        turn=torch.eye(3).expand(2, frames, 1, 3, 3),
        half_m=torch.full((2, 1, 3), 0.03),
        is_round=torch.zeros(2, 1, dtype=torch.bool),
        closed=torch.zeros(2, frames),
    )
    longest, longer = (score(network(), held, length=length) for length in (frames - 1, 24))
    assert longest["clips"] == 1
    assert {k: v for k, v in longer.items() if v == v} == {k: v for k, v in longest.items() if v == v}  # not NaN


def test_a_robots_gripper_is_its_links_from_the_grippers_base_on() -> None:
    model = of_robots([load_robot("panda_robotiq")], memory=8, width=16)
    assert tuple(model.config.gripper) == tuple(range(8, 17))
    assert model.centres_m.any(1).all()


@torch.no_grad()
def test_the_shipped_motion_foretells_pushes_and_lifts() -> None:
    """Told where things are at first, it is far nearer to where they end than where they were."""
    pytest.importorskip("pybullet")
    from vap_gym.geometry import Camera
    from vap_gym.prompts.body import Body
    from vap_gym.rotations import rotation_from_quaternion_xyzw
    from vap_gym.sim.layouts import draw_scene
    from vap_gym.sim.rollout import NominalRobot, record
    from vap_gym.sim.scene import Scene
    from vap_gym.world.model import WorldModel

    model, card = WorldModel.from_pretrained("tiny").motion, load_robot("panda_robotiq")
    body, nominal = Body(card), NominalRobot(card)
    nowhere = Camera(K=torch.eye(3), T_world_camera=torch.eye(4), frame_size_px=(2, 2))
    off, far = [], []
    with Scene(card) as oracle:
        for seed in range(1_500_000, 1_500_006):
            spec = draw_scene(seed, task="push" if seed % 2 else "lift", near=True)
            episode = record(oracle, nominal, spec, "expert", frames=40, render=False)
            columns = {k: torch.from_numpy(v) for k, v in episode.columns.items()}
            item = spec.target_object
            place = columns["objects_m"][:, item.index]
            turn = rotation_from_quaternion_xyzw(columns["objects_xyzw"][:1, item.index])
            shape = standing_shape(torch.tensor([item.half_extents_m]), torch.tensor([item.shape == "disc"]), turn)
            views = body.views(columns["nominal.joint_position"], columns["nominal.gripper_position"][:, 0], nowhere)
            there = torch.ones(1, 1, dtype=torch.bool)
            said = rolled_out(model, there, place[None, :1], shape[None], model.grip(views)[None])
            off.append((said[-1][0].place_m[0, 0] - place[-1]).norm())
            far.append((place[-1] - place[0]).norm())
    assert torch.stack(far).mean() > 0.04
    assert torch.stack(off).mean() < 0.5 * torch.stack(far).mean()
