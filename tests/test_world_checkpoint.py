"""Model folders: what is saved is what is loaded, and what was cut short, changed or mixed up is refused by name."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vap_gym.errors import CheckpointError, UnknownNameError
from vap_gym.judge import Judge, JudgeNetwork
from vap_gym.world.appearance import RobotAppearance
from vap_gym.world.checkpoint import WEIGHTS, sha256_of
from vap_gym.world.codec import FrameCodec
from vap_gym.world.dynamics import FrameDynamics
from vap_gym.world.model import INDEX, WorldModel
from vap_gym.world.motion import ThingMotion
from vap_gym.world.things import ThingFinder


@pytest.fixture(scope="module")
def world() -> WorldModel:
    torch.manual_seed(0)
    codec = FrameCodec(latent_channels=4, encoder_widths=(8, 16), decoder_widths=(16, 8))
    dynamics = FrameDynamics(
        latent_channels=4, latent_size=(8, 12), widths=(8, 16), blocks=(1, 1), heads=1, layers=1, control_layers=1,
        time_embed_dim=16, action_channels=4, prompt_features=6,
    )  # fmt: skip
    looks = RobotAppearance(points=5, links=2, widths=(4, 8))
    things = ThingFinder(most=2, widths=(4, 8), blocks=1, links=2)
    motion = ThingMotion(gripper=(1, 0), links=2, memory=8, width=16)
    return WorldModel(codec, dynamics, looks, things, motion, evaluations=2, dtype=torch.float32)


@pytest.fixture
def folder(world: WorldModel, tmp_path: Path) -> Path:
    world.save_pretrained(tmp_path / "model", dtype=torch.float32, licence="Apache-2.0")
    network = JudgeNetwork(latent_channels=4, widths=(8, 12))
    Judge(network, world.codec, dtype=torch.float32).save_into(tmp_path / "model")
    return tmp_path / "model"


def signed(folder: Path, part: str) -> None:
    """Give the index the sha256 of what is there now."""
    index = json.loads((folder / INDEX).read_text())
    index["sha256"][part] = sha256_of(folder / part / WEIGHTS)
    (folder / INDEX).write_text(json.dumps(index))


def test_a_saved_model_is_loaded_exactly(world: WorldModel, folder: Path) -> None:
    again = WorldModel.from_pretrained(folder, dtype=torch.float32)
    assert again.evaluations == 2
    assert again.frame_size_px == world.frame_size_px
    for mine, theirs in zip(world.parts.values(), again.parts.values(), strict=True):
        for key, setting in mine.config.items():
            if not key.startswith("_"):  # diffusers' own notes
                assert json.dumps(setting) == json.dumps(theirs.config[key]), key
        for name, value in mine.state_dict().items():
            assert torch.equal(value, theirs.state_dict()[name]), name
    assert json.loads((folder / INDEX).read_text())["licence"] == "Apache-2.0"


def test_half_precision_is_rounded_once(world: WorldModel, tmp_path: Path) -> None:
    world.save_pretrained(tmp_path / "one")
    once = WorldModel.from_pretrained(tmp_path / "one")
    once.save_pretrained(tmp_path / "two")
    for part in ("codec", "dynamics"):
        assert sha256_of(tmp_path / "one" / part / WEIGHTS) == sha256_of(tmp_path / "two" / part / WEIGHTS)
    for name, value in world.dynamics.state_dict().items():
        torch.testing.assert_close(once.dynamics.state_dict()[name], value, rtol=1e-3, atol=1e-4)
        assert once.dynamics.state_dict()[name].dtype == value.dtype


def test_the_layout_is_diffusers(folder: Path) -> None:
    names = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    parts = ("codec", "dynamics", "appearance", "things", "motion", "judge")
    assert names == {INDEX} | {f"{part}/{file}" for part in parts for file in ("config.json", WEIGHTS)}
    assert json.loads((folder / "codec" / "config.json").read_text())["_class_name"] == "FrameCodec"
    codec = FrameCodec.from_pretrained(folder / "codec")  # diffusers' own loader reads it too
    assert codec.config.latent_channels == 4


def test_the_judge_is_loaded_beside_the_model(folder: Path) -> None:
    index = json.loads((folder / INDEX).read_text())
    assert set(index["sha256"]) == {"codec", "dynamics", "appearance", "things", "motion", "judge"}
    judge = Judge.from_pretrained(folder)
    assert judge.network.config.latent_channels == 4


# --- what goes wrong ---


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-3] ^= 0x40
    file.write_bytes(bytes(data))


def spoil_header(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[8:12] = b"\xff\xff\xff\xff"
    file.write_bytes(bytes(data))


def empty(file: Path) -> None:
    file.write_bytes(b"")


@pytest.mark.parametrize("part", ["codec", "dynamics", "judge"])
@pytest.mark.parametrize("harm", [cut, flip, spoil_header, empty])
def test_changed_weights_are_refused_by_their_sha256(folder: Path, part: str, harm: Callable[[Path], None]) -> None:
    harm(folder / part / WEIGHTS)
    with pytest.raises(
        CheckpointError, match=rf"{part}/{WEIGHTS}' must have the sha256 \w{{12}}… of its index, but has"
    ):
        (Judge if part == "judge" else WorldModel).from_pretrained(folder)


@pytest.mark.parametrize("harm", [cut, spoil_header, empty])
def test_broken_weights_are_refused_even_where_the_index_agrees(folder: Path, harm: Callable[[Path], None]) -> None:
    harm(folder / "dynamics" / WEIGHTS)
    signed(folder, "dynamics")
    with pytest.raises(CheckpointError, match=rf"dynamics/{WEIGHTS}' is no whole safetensors file: .* Fetch it again"):
        WorldModel.from_pretrained(folder)


@pytest.mark.parametrize("file", ["codec/config.json", f"dynamics/{WEIGHTS}"])
def test_a_missing_file_is_named(folder: Path, file: str) -> None:
    (folder / file).unlink()
    with pytest.raises(CheckpointError, match=rf"must hold '{file}', but does not. Fetch it again"):
        WorldModel.from_pretrained(folder)


def test_a_folder_without_an_index_is_refused(folder: Path) -> None:
    (folder / INDEX).unlink()
    with pytest.raises(CheckpointError, match=rf"must hold {INDEX}, but does not. Give a folder from save_pretrained"):
        WorldModel.from_pretrained(folder)
    with pytest.raises(CheckpointError, match=rf"must hold {INDEX}, but does not"):
        Judge.from_pretrained(folder)


@pytest.mark.parametrize("file", [INDEX, "codec/config.json"])
@pytest.mark.parametrize(
    ("text", "message"), [("{", "is no whole JSON file"), ("[1]", "must hold a JSON object, got list")]
)
def test_a_malformed_json_file_is_named(folder: Path, file: str, text: str, message: str) -> None:
    (folder / file).write_text(text)
    with pytest.raises(CheckpointError, match=f"{file}' {message}.*Fetch it again"):
        WorldModel.from_pretrained(folder)


def test_weights_that_do_not_fit_their_config_are_named(folder: Path) -> None:
    config = json.loads((folder / "codec" / "config.json").read_text())
    (folder / "codec" / "config.json").write_text(json.dumps({**config, "latent_channels": 6}))
    with pytest.raises(CheckpointError, match=r"do not fit its config: .* of another shape .*decoder\.0\.weight"):
        WorldModel.from_pretrained(folder)
    (folder / "codec" / "config.json").write_text(json.dumps({**config, "decoder_blocks": 4}))
    with pytest.raises(CheckpointError, match=r"missing decoder\..* and \d+ more"):
        WorldModel.from_pretrained(folder)
    for nonsense in ("many", -1, None):
        (folder / "codec" / "config.json").write_text(json.dumps({**config, "latent_channels": nonsense}))
        with pytest.raises(CheckpointError, match="codec/config.json' is no configuration of FrameCodec"):
            WorldModel.from_pretrained(folder)


def test_missing_and_unexpected_weights_are_named(folder: Path) -> None:
    file = folder / "codec" / WEIGHTS
    tensors = load_file(file)
    tensors["surprise"] = tensors.pop("decoder.0.bias")
    save_file(tensors, file)
    signed(folder, "codec")
    with pytest.raises(CheckpointError, match=r"missing decoder\.0\.bias; unexpected surprise; of another shape none"):
        WorldModel.from_pretrained(folder)


def test_parts_of_two_models_are_not_mixed(folder: Path, tmp_path: Path) -> None:
    other = FrameCodec(latent_channels=6, encoder_widths=(8, 16), decoder_widths=(16, 8))
    parts = WorldModel.from_pretrained(folder).parts
    with pytest.raises(CheckpointError, match="latent_channels of the codec is 6, of the dynamics 4"):
        WorldModel(**{**parts, "codec": other})


def test_an_unknown_name_is_answered_with_those_there_are() -> None:
    with pytest.raises(UnknownNameError, match=r"No world model named 'tinny'\. .*Known: "):
        WorldModel.from_pretrained("tinny")
    with pytest.raises(UnknownNameError, match=r"No judge named 'tinny'\. .*Known: "):
        Judge.from_pretrained("tinny")


def test_saving_again_replaces_what_was_there(world: WorldModel, folder: Path) -> None:
    world.save_pretrained(folder, dtype=torch.float32)
    WorldModel.from_pretrained(folder)
    assert not list(folder.rglob("*.tmp"))
