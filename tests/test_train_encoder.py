"""A smaller encoder is trained for a decoder that stays as it is."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from vap_gym.cards import load_robot
from vap_gym.data import EpisodeWriter, finalise
from vap_gym.errors import CardError
from vap_gym.sim.layouts import draw_scene
from vap_gym.sim.rollout import NominalRobot, record
from vap_gym.sim.scene import Scene
from vap_gym.train import codec
from vap_gym.world.codec import FrameCodec

pytest.importorskip("pybullet", reason="the data come from the oracle")
DECODER = {"latent_channels": 4, "decoder_widths": [8, 8], "decoder_blocks": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of one episode, and a codec of the usual shape."""
    folder = tmp_path_factory.mktemp("encoder")
    card = load_robot("panda_robotiq")
    writer = EpisodeWriter(folder / "data", robot_type=card.name)
    with Scene(card) as scene:
        spec = draw_scene(100, task="push", near=True)
        writer.write(0, record(scene, NominalRobot(card), spec, "expert", frames=24))
    finalise(folder / "data")
    torch.manual_seed(0)
    FrameCodec(**DECODER, encoder_widths=(8, 8)).save_pretrained(folder / "codec")
    return folder


def recipe(path: Path, *, model: dict[str, Any], steps: int) -> Path:
    settings = {"data": [str(path.parent / "data")], "decoder": str(path.parent / "codec"), "steps": steps}
    settings |= {"batch_size": 2, "every": 1, "held_out": 16, "log_every": 1, "save_every": steps, "ema_decay": 0.5}
    lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
    path.write_text("\n".join([*lines, "[model]", *(f"{k} = {json.dumps(v)}" for k, v in model.items())]) + "\n")
    return path


def test_an_encoder_comes_nearer_to_the_latents_of_a_codec_whose_decoder_stays(folder: Path) -> None:
    teacher = FrameCodec.from_pretrained(folder / "codec")
    pictures = torch.rand(2, 3, 96, 144, generator=torch.Generator().manual_seed(0)) * 2 - 1
    off = []
    for steps in (1, 40):
        path = recipe(
            folder / f"{steps}.toml", model=DECODER | {"encoder_widths": [4, 8], "encoder_blocks": 1}, steps=steps
        )
        codec.main(path, out=folder / f"run_{steps}")
        student = FrameCodec.from_pretrained(folder / f"run_{steps}" / "model")
        pairs = zip(teacher.decoder.parameters(), student.decoder.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
        with torch.no_grad():
            off.append(float((student.encode(pictures) - teacher.encode(pictures)).square().mean()))
    assert off[1] < 0.7 * off[0]


def test_a_decoder_is_kept_only_where_the_recipe_has_its_shape(folder: Path) -> None:
    path = recipe(folder / "misfit.toml", model=DECODER | {"decoder_widths": [16, 8]}, steps=1)
    with pytest.raises(CardError, match=r"\[8, 8\].*this recipe's \[model\] .*\[16, 8\].*leave decoder out"):
        codec.main(path, out=folder / "misfit")
