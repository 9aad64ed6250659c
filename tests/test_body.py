"""A robot's body: sampled from its URDF, read with its card, absent where the card names none."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from vap_gym.cards import load_robot
from vap_gym.commands import body as command
from vap_gym.errors import CardError
from vap_gym.geometry import Camera
from vap_gym.prompts.body import Body, sampled_body

CAMERA = Camera(K=torch.eye(3), T_world_camera=torch.eye(4), frame_size_px=(144, 96))


def test_the_shipped_body_is_that_of_the_urdf(tmp_path: Path) -> None:
    pytest.importorskip("pybullet_data", reason="the arm's meshes are those of the pybullet package")
    told = command.main("panda_robotiq", out=tmp_path / "body.npz")
    again, shipped = np.load(tmp_path / "body.npz"), np.load(load_robot("panda_robotiq").folder / "body.npz")
    assert again["links"].tolist() == shipped["links"].tolist()
    np.testing.assert_array_equal(again["link"], shipped["link"])
    np.testing.assert_allclose(again["points_m"], shipped["points_m"], atol=1e-5)
    assert [p.name for p in tmp_path.iterdir()] == ["body.npz"]
    assert (told["points"], told["links"]) == (len(shipped["points_m"]), shipped["links"].tolist())


def test_normals_have_length_one_and_points_belong_to_links() -> None:
    body = Body(load_robot("panda_robotiq"))
    torch.testing.assert_close(body.normals.norm(dim=-1), torch.ones(len(body.normals)), atol=2e-3, rtol=0)
    assert body.link.unique().tolist() == list(range(len(body.links)))
    assert body.points_m.abs().max() < 0.4
    assert "robotiq_base" in body.links


def test_a_robot_without_a_body_has_no_links() -> None:
    card = dataclasses.replace(load_robot("panda_robotiq"), body="")
    body = Body(card)
    assert body.links == ()
    assert body.views(torch.zeros(2, 3, 7), torch.zeros(2, 3), CAMERA).shape == (2, 3, 0, 3, 4)


def test_a_body_that_is_missing_or_cannot_be_sampled_says_what_to_do(tmp_path: Path) -> None:
    card = load_robot("panda_robotiq")
    with pytest.raises(CardError, match=r"The body '.*nowhere.npz' of .* is missing. Make it: vap-gym body"):
        Body(dataclasses.replace(card, body="nowhere.npz"))
    whole, damaged = (card.folder / card.body).read_bytes(), tmp_path / "body.npz"
    for content in (b"", b"no zip", whole[:1000], whole[:-200], whole[:5000] + b"x" * 200 + whole[5200:]):
        damaged.write_bytes(content)
        with pytest.raises(CardError, match=r"must be an npz file with links, .* Make it anew: vap-gym body"):
            Body(dataclasses.replace(card, folder=tmp_path))
    bare = tmp_path / "robot.urdf"
    bare.write_text('<robot name="bare"><link name="base"/></robot>')
    with pytest.raises(CardError, match="must have visual geometry to sample, but has none"):
        sampled_body(dataclasses.replace(card, urdf_path=bare))
    bare.write_text(
        '<robot name="bare"><link name="base"><visual><geometry><mesh filename="gone.obj"/></geometry></visual></link>'
        "</robot>"
    )
    with pytest.raises(CardError, match=r"The mesh 'gone.obj' of .* is missing"):
        sampled_body(dataclasses.replace(card, urdf_path=bare))


def test_primitives_are_sampled_on_their_surface(tmp_path: Path) -> None:
    urdf = tmp_path / "robot.urdf"
    urdf.write_text(
        '<robot name="ball"><link name="base"><visual><origin xyz="0 0 1"/><geometry><sphere radius="0.1"/></geometry>'
        "</visual></link></robot>"
    )
    card = dataclasses.replace(load_robot("panda_robotiq"), urdf_path=urdf)
    body = sampled_body(card)
    away = np.linalg.norm(body["points_m"] - (0, 0, 1), axis=1)
    assert away.min() > 0.097
    assert away.max() < 0.1001
    outwards = ((body["points_m"] - (0, 0, 1)) * body["normals"]).sum(1)
    assert (outwards > 0.09).all()
