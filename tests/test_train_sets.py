"""Sets of recordings, which tell nothing of things: codec and world are trained on them, others say why not."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vap_gym.cards import RobotCard, load_robot
from vap_gym.data import Episode, EpisodeWriter, finalise
from vap_gym.data.layout import DataError
from vap_gym.errors import CheckpointError
from vap_gym.prompts.body import Body
from vap_gym.train.appearance import load_sights
from vap_gym.train.background import load_backgrounds
from vap_gym.train.frames import load_frames
from vap_gym.train.judge_data import load_truths
from vap_gym.train.latents import load_latents
from vap_gym.train.motion import load_motions, of_robots
from vap_gym.train.things_data import load_scenes
from vap_gym.world.codec import FrameCodec

FRAMES, THINGS = 4, 5
ROBOT = "panda_robotiq"


@pytest.fixture(scope="module")
def codec() -> FrameCodec:
    return FrameCodec(latent_channels=4, encoder_widths=[8, 8], decoder_widths=[8, 8])


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two episodes in the columns of `vap-gym bench real --write-to`: nothing is known of things."""
    folder = tmp_path_factory.mktemp("recording") / "set"
    writer, card = EpisodeWriter(folder, robot_type=ROBOT), load_robot(ROBOT)
    rng = np.random.default_rng(0)
    for _ in range(2):
        columns = {
            "nominal.joint_position": np.tile(card.home_q_rad, (FRAMES, 1)),
            "nominal.gripper_position": np.zeros((FRAMES, 1)),
            "objects_m": np.full((FRAMES, THINGS, 3), np.nan),
            "objects_xyzw": np.tile([0.0, 0.0, 0.0, 1.0], (FRAMES, THINGS, 1)),
            "tool_m": np.full((FRAMES, 3), 0.4),
            "camera.K": np.tile(np.array([[90.0, 0, 72], [0, 90, 48], [0, 0, 1]]), (FRAMES, 1, 1)),
            "camera.T_world_camera": np.tile(np.eye(4), (FRAMES, 1, 1)),
        }
        writer.append(
            Episode(
                frames={"front": rng.integers(0, 255, (FRAMES, 96, 144, 3), np.uint8)},
                columns={name: value.astype(np.float32) for name, value in columns.items()},
                task="push",
                info={"robot": ROBOT, "states": "achieved"},
            )
        )
    finalise(folder)
    return folder


def test_codec_and_world_are_trained_on_recordings(recording: Path, codec: FrameCodec) -> None:
    pictures, labels = load_frames([recording], every=1, view="front")
    assert pictures.shape == (2 * FRAMES, 96, 144, 3)
    assert labels.shape == pictures.shape[:3]
    assert not labels.any()
    data = load_latents([recording], codec, robot=ROBOT, view="front")
    assert data.latents.shape == (2, FRAMES, 4, 24, 36)
    assert data.objects_px.isnan().all()


def motions(folders: list[Path]) -> Any:
    card = load_robot(ROBOT)
    return load_motions(folders, of_robots([card], memory=4, width=8), card)


LABELS, SCENE = r"label maps of the view 'front'", r"what each scene is made of \(info\['scene'\]\)"
OTHERS: dict[str, tuple[Callable[[list[Path], FrameCodec], Any], str]] = {
    "appearance": (lambda f, _: load_sights(f, body=Body(load_robot(ROBOT)), every=1, view="front"), LABELS),
    "background": (lambda f, _: load_backgrounds(f, every=1, view="front"), LABELS),
    "things": (lambda f, _: load_scenes(f, every=1, view="front"), f"{LABELS} and {SCENE}"),
    "judge": (lambda f, codec: load_truths(f, codec, every=1, view="front"), f"{LABELS} and {SCENE}"),
    "motion": (lambda f, _: motions(f), SCENE),
}


@pytest.mark.parametrize("training", OTHERS)
def test_other_trainings_name_what_recordings_lack(training: str, recording: Path, codec: FrameCodec) -> None:
    load, lacks = OTHERS[training]
    told = rf"'{recording}' must hold what this training reads, but lacks {lacks}\. Take it out of the recipe's data"
    with pytest.raises(DataError, match=told):
        load([recording], codec)


def test_latents_that_were_kept_of_a_robot_that_is_another_now_are_refused(
    recording: Path, codec: FrameCodec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def longer(name: str) -> RobotCard:
        card = load_robot(name)
        first, *others = card.skeleton.keypoints
        out = replace(first, offset_m=(0.0, 0.0, 0.01))
        return replace(card, skeleton=replace(card.skeleton, keypoints=(out, *others)))

    def load(cache: Path) -> int:
        return len(load_latents([recording], codec, robot=ROBOT, view="front", cache=cache))

    cache, older = tmp_path / "latents.pt", tmp_path / "older.pt"
    assert load(cache) == load(cache) == 2
    kept = torch.load(cache, weights_only=False)
    del kept["made_of"]["robot"]
    torch.save(kept, older)
    monkeypatch.setattr("vap_gym.train.latents.load_robot", longer)
    with pytest.raises(CheckpointError, match="of the recipe's data, codec and robot, but differs in: robot. Remove"):
        load(cache)
    assert load(older) == 2  # it does not tell
    torch.save({"episodes": kept["episodes"]}, older)
    with pytest.raises(CheckpointError, match="differs in: codec, folders, view, episodes, robot"):
        load(older)


def test_a_view_that_is_not_there_is_told_with_those_that_are(recording: Path, codec: FrameCodec) -> None:
    with pytest.raises(DataError, match=r"lacks pictures of a view 'wrist' \(its views: front\)\. Take"):
        load_frames([recording], every=1, view="wrist")
    with pytest.raises(DataError, match="pictures of a view 'wrist'"):
        load_latents([recording], codec, robot=ROBOT, view="wrist")
