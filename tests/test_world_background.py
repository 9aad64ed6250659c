"""What is behind a robot is filled in by a network that was taught by frames in which it has moved away."""

import json
from pathlib import Path

import pytest
import torch

from vap_gym.cards import load_robot
from vap_gym.data import EpisodeWriter, finalise
from vap_gym.errors import VapError
from vap_gym.prompts.body import Body
from vap_gym.sim.layouts import draw_scene
from vap_gym.sim.rollout import NominalRobot, record
from vap_gym.sim.scene import Scene
from vap_gym.train import background
from vap_gym.train.appearance import of_bodies
from vap_gym.world.appearance import RobotAppearance
from vap_gym.world.background import BackgroundFiller
from vap_gym.world.filling import continued
from vap_gym.world.surfels import Surfels

pytest.importorskip("pybullet", reason="the data come from the oracle")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of two episodes, and an appearance."""
    folder = tmp_path_factory.mktemp("background")
    card = load_robot("panda_robotiq")
    writer = EpisodeWriter(folder / "data", robot_type=card.name)
    with Scene(card) as scene:
        for i in range(2):
            spec = draw_scene(100 + i, task="push", near=True)
            writer.write(i, record(scene, NominalRobot(card), spec, "expert", frames=25))
    finalise(folder / "data")
    of_bodies({card.name: Body(card)}, widths=(4, 8)).save_pretrained(folder / "appearance")
    return folder


def test_a_new_filler_lets_lines_go_on_and_leaves_what_is_seen_alone() -> None:
    filler = BackgroundFiller(widths=(8, 8, 8, 8))
    picture = torch.rand(2, 3, 90, 144, generator=torch.Generator().manual_seed(0)) * 2 - 1
    covered = torch.zeros(2, 1, 90, 144)
    covered[:, :, 20:60, 50:90] = 1.0
    torch.testing.assert_close(
        filler(picture, covered), torch.lerp(picture, continued(picture, 1.0 - covered), covered), atol=1e-5, rtol=0
    )
    with torch.no_grad():
        filler.leave[2].weight.normal_(0, 1.0)
    made = filler(picture, covered)
    assert torch.equal(made * (1 - covered), picture * (1 - covered))
    assert (made - continued(picture, 1.0 - covered)).abs().amax() > 0.01
    assert made.abs().amax() <= 1.0


def test_an_episodes_background_is_what_it_shows_once_the_robot_is_elsewhere(folder: Path) -> None:
    data = background.load_backgrounds([folder / "data"], every=8, view="front")
    assert data.frames.shape[0] == data.hidden.shape[0] == len(data.episode) == 7
    first = data.hidden[0]
    assert 0.02 < first.float().mean() < 0.6
    uncovered = first & data.known[0]  # by the robot's going on
    assert uncovered.float().mean() > 0.005
    picture, covered, truth, known = background.drawn(data, torch.tensor([0]), torch.tensor([6]), torch.tensor([False]))
    assert torch.equal(covered[0, 0] > 0, first)
    assert torch.equal(known[0, 0] > 0, ~first | data.known[0])
    assert torch.equal((truth * (1 - covered)), (picture * (1 - covered)))
    _, more, _, _ = background.drawn(data, torch.tensor([0]), torch.tensor([6]), torch.tensor([True]))
    assert torch.equal(more[0, 0] > 0, first | data.hidden[6])


def test_it_is_trained_alone_and_better_than_interpolation_where_it_was(folder: Path) -> None:
    settings = {"data": [str(folder / "data")], "appearance": str(folder / "appearance"), "steps": 60, "every": 2}
    settings |= {"batch_size": 4, "held_out": 1, "log_every": 60, "save_every": 60, "ema_decay": 0.5}
    path = folder / "mine.toml"
    path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items()))
    background.main(path, out=folder / "run")
    before, after = (RobotAppearance.from_pretrained(folder / name) for name in ("appearance", "run/model"))
    assert before.filler is None
    kept = before.state_dict()
    assert all(torch.equal(after.state_dict()[name], value) for name, value in kept.items())
    data = background.load_backgrounds([folder / "data"], every=2, view="front")
    found = background.score(after, data, (data.episode == 1).nonzero()[:, 0])  # the first one is held out
    assert found["psnr_learned"] > found["psnr_averaged"] + 1.0


def test_robots_that_were_never_seen_are_given_the_same_filler() -> None:
    body, filler = Body(load_robot("widowx")), BackgroundFiller()
    surfels = Surfels(body.points_m, body.normals, body.link, body.spacing_m)
    made = RobotAppearance.of_surface(surfels, body.colour, len(body.links), filler)
    assert made.filler is filler


def test_training_begins_from_what_another_appearance_fills_in_with(folder: Path) -> None:
    given = RobotAppearance.from_pretrained(folder / "appearance", torch_dtype=torch.float32)
    other = given.with_filler(1)
    filler = given.with_filler(0).filler
    assert filler is not None
    background.begin_from(filler, other)
    taken, told = filler.state_dict(), other.filler.state_dict()
    assert all(torch.equal(taken[name], value) for name, value in told.items())
    with pytest.raises(VapError, match="fills=False"):
        background.begin_from(filler, given)
