"""One set of weights that knows several robots: each is found by its surface, and has looks and a motion of its own."""

from pathlib import Path

import pytest
import torch

from vap_gym.cards import load_robot
from vap_gym.geometry import Camera
from vap_gym.prompts.body import Body
from vap_gym.train.appearance import of_bodies
from vap_gym.train.motion import PLACES, of_robots, rolled_out
from vap_gym.world.codec import FrameCodec
from vap_gym.world.dynamics import FrameDynamics
from vap_gym.world.model import WorldModel
from vap_gym.world.surfels import Surfels
from vap_gym.world.things import ThingFinder

ROBOTS = ("panda_robotiq", "google_robot", "widowx", "hand_21")
SEEN_BY = Camera.look_at(
    torch.tensor((1.4, 0.6, 0.9)), torch.tensor((0.3, 0.0, 0.2)), vertical_fov_rad=0.9, frame_size_px=(144, 96)
)


@pytest.fixture(scope="module")
def bodies() -> dict[str, Body]:
    return {name: Body(load_robot(name)) for name in ROBOTS}


@pytest.fixture(scope="module")
def world(bodies: dict[str, Body]) -> WorldModel:
    torch.manual_seed(0)
    appearance = of_bodies(bodies, widths=(4, 8))
    appearance.colour.uniform_()
    motion = of_robots([load_robot(name) for name in ROBOTS], memory=8, width=16)
    codec = FrameCodec(latent_channels=4, encoder_widths=(8, 12), decoder_widths=(12, 8), encoder_blocks=1)
    dynamics = FrameDynamics(
        latent_channels=4, widths=(8, 16), blocks=(1, 1), heads=1, layers=1, control_layers=1, time_embed_dim=16,
        action_channels=4, prompt_features=6, gated=True,
    )  # fmt: skip
    return WorldModel(codec, dynamics, appearance, ThingFinder(widths=(4, 8), blocks=1), motion, dtype=torch.float32)


def fitted(world: WorldModel, body: Body, links: int | None = None) -> WorldModel:
    surfels = Surfels(points_m=body.points_m, normals=body.normals, link=body.link, spacing_m=body.spacing_m)
    return world.for_robot(surfels, body.colour, len(body.links) if links is None else links, motion_steps=3)


@pytest.mark.parametrize("name", ROBOTS)
def test_a_known_robot_is_found_by_its_surface(world: WorldModel, bodies: dict[str, Body], name: str) -> None:
    body = bodies[name]
    mine = fitted(world, body)
    assert (mine is world) == (name == ROBOTS[0])
    assert mine.learned
    assert mine.appearance.name == name
    assert torch.equal(mine.appearance.surfels.points_m, body.points_m)
    assert len(mine.appearance.look) == len(body.points_m)
    views = body.views(torch.tensor([load_robot(name).home_q_rad]), torch.zeros(1), SEEN_BY)
    assert mine.motion.knows(views)
    assert mine.motion.grip(views).shape == (1, PLACES, 12)
    assert mine.motion_steps == (1 if mine is world else 3)
    assert mine.dynamics is world.dynamics


def test_an_unknown_surface_is_posed_as_it_is(world: WorldModel) -> None:
    body = Body(load_robot("hand_21_left"))
    mine = fitted(world, body)
    assert not mine.learned
    assert mine.appearance.name == "unknown"
    assert world.appearance.name == ROBOTS[0], "the model itself goes on speaking of its first robot"
    assert world.robots == ROBOTS


@pytest.mark.parametrize("name", ROBOTS)
def test_places_lie_on_the_gripper_its_base_first(world: WorldModel, bodies: dict[str, Body], name: str) -> None:
    card, body, motion = load_robot(name), bodies[name], world.motion.of(name)
    links = motion.grippers[motion.current]
    assert body.links[links[0]] == card.gripper.base_link
    assert len({(link, *place.tolist()) for link, place in zip(links, motion.places, strict=True)}) == PLACES
    q = torch.tensor([card.home_q_rad, card.home_q_rad])
    grip = motion.grip(body.views(q, torch.tensor([0.0, 1.0]), SEEN_BY))
    assert (grip[:, 1:, :3] - grip[:, :1, :3]).norm(dim=-1).max() < 0.35, "a gripper is no larger than that"
    assert (grip[0, 1:, :3] - grip[1, 1:, :3]).norm(dim=-1).max() > 0.01, "its fingers move"
    assert (grip[0, 0] - grip[1, 0]).abs().max() < 1e-4, "its base does not"


def test_the_network_is_told_whose_gripper_it_is(world: WorldModel) -> None:
    grip = torch.eye(3).flatten().expand(1, 3, PLACES, 9)
    grip = torch.cat([0.02 * torch.randn(1, 3, PLACES, 3, generator=torch.Generator().manual_seed(1)), grip], -1)
    begun = (
        torch.ones(1, 2, dtype=torch.bool),
        torch.tensor([[[0.05, 0.0, 0.0], [0.0, 0.1, 0.0]]]),
        torch.full((1, 2, 6), 0.03),
    )
    said = [rolled_out(world.motion.of(name), *begun, grip)[-1][1].moves for name in ROBOTS[:2]]
    assert (said[0] - said[1]).abs().max() > 1e-5
    whole = rolled_out(world.motion, *begun, grip, substeps=1)
    parts = rolled_out(world.motion, *begun, grip, substeps=3)
    assert len(whole) == len(parts) == 2
    assert torch.equal(whole[-1][0].grip, parts[-1][0].grip)
    assert not torch.equal(whole[-1][0].memory, parts[-1][0].memory)


def test_every_robot_is_imagined_by_the_same_saved_weights(
    world: WorldModel, bodies: dict[str, Body], tmp_path: Path
) -> None:
    world.save_pretrained(tmp_path / "model", dtype=torch.float32)
    again = WorldModel.from_pretrained(tmp_path / "model", dtype=torch.float32)
    assert again.robots == ROBOTS
    frames = torch.randint(0, 255, (2, 96, 144, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    for name, body in bodies.items():
        q = torch.tensor(load_robot(name).home_q_rad).expand(2, 2, -1)
        views = body.views(q + torch.tensor([[[0.0], [0.1]], [[0.0], [-0.1]]]), torch.zeros(2, 2), SEEN_BY)
        made = []
        for model in (fitted(world, body), fitted(again, body)):
            state = model.start(frames, frames, torch.arange(2), views=views[:, 0])
            made.append(model.predict(state, frames[:, None], views=views[:, 1:])[1])
        assert made[0] is not None
        assert made[1] is not None
        assert torch.equal(made[0], made[1]), name


def test_counts_that_do_not_match_the_robots_are_refused() -> None:
    from vap_gym.world.appearance import RobotAppearance
    from vap_gym.world.motion import ThingMotion

    with pytest.raises(ValueError, match="must be told of 2 robots"):
        RobotAppearance(points=[3], links=[1], robots=["a", "b"])
    with pytest.raises(ValueError, match="must be told of 2 robots, with as many places each"):
        ThingMotion(gripper=[[0, 1], [0]], base=[0, 0], links=[2, 1], robots=["a", "b"])
