"""Familiarity: odd things look odd, cameras and things unlike training's are told, and raise the risk that is told."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from tensordict import TensorDict

from vap_gym import VapEnv
from vap_gym.assets import weights_dir
from vap_gym.cards import load_env, load_robot
from vap_gym.errors import CheckpointError, VapError
from vap_gym.evaluate.agreement_starts import shifted
from vap_gym.loading import build_stage
from vap_gym.oracle_env import shown_start
from vap_gym.sim.layouts import draw_scene
from vap_gym.sim.scene import Scene
from vap_gym.sim.spec import SceneSpec
from vap_gym.stage import Stage
from vap_gym.starts import Start, save_starts
from vap_gym.trust import UNFAMILIAR
from vap_gym.trust.familiar import (
    FIGURES,
    FILE,
    PART,
    Cameras,
    Familiarity,
    Scale,
    Usual,
    camera_figures,
    read,
    usual_of,
    write,
)
from vap_gym.trust.oddness import CHANNELS, CROP_PX, Crops, Oddness, crops_of
from vap_gym.world.model import INDEX

ID = "VAP-DROID-v0"


def seen(camera_height_m: float = 0.5, *, things: int = 2) -> TensorDict:
    """What is looked at of a state: a picture with a bright square on grey, of the first of two things."""
    height, width = 48, 72
    picture = torch.full((1, height, width, 3), 100, dtype=torch.uint8)
    owner = torch.zeros(1, height, width, dtype=torch.uint8)
    picture[0, 20:30, 40:50] = 250
    owner[0, 20:30, 40:50] = 1
    if things == 2:
        owner[0, 5, 5:8] = 2  # hardly to be seen
    pose = torch.eye(4)
    pose[:3, :3] = torch.tensor([[0.0, -1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])  # straight down
    pose[:3, 3] = torch.tensor([0.5, 0.1, camera_height_m])
    K = torch.tensor([[60.0, 0.0, 36.0], [0.0, 60.0, 24.0], [0.0, 0.0, 1.0]])
    return TensorDict(
        {
            "world_first_picture": picture, "world_first_owner": owner, "camera_T_world_camera": pose[None],
            "world_first_alpha": 255 * (owner > 0).to(torch.uint8), "camera_K": K[None],
            "world_first_mask": torch.zeros(1, 1, height, width, dtype=torch.uint8),
            "world_thing_there": torch.tensor([[True, things == 2]]),
            "world_first_shape": torch.full((1, 2, 6), 0.03),
        },
        batch_size=[1],
    )  # fmt: skip


def test_a_thing_is_cut_out_with_what_is_around_it_and_one_of_a_few_pixels_is_not_looked_at() -> None:
    crops = crops_of(seen())
    assert crops.seen.tolist() == [[True, False]]
    cut = crops.pictures[0, 0]
    assert cut.shape == (CHANNELS, CROP_PX, CROP_PX)
    middle = slice(CROP_PX // 2 - 3, CROP_PX // 2 + 3)
    assert (cut[:3, middle, middle] > 0.9).all()
    assert (cut[:3, 0] < 0.0).all()
    assert 0.15 < cut[3].mean() < 0.3  # 10 × 10 px of 20 × 20
    assert cut[4:].abs().max() == 0.0
    assert crops.told[0, 0, 1] == pytest.approx(1.0)  # straight down
    odd = Oddness().of(crops)
    assert odd[0, 0].isfinite()
    assert odd[0, 1] == -torch.inf


def test_cameras_are_told_by_what_they_look_at_and_how() -> None:
    told = dict(zip(FIGURES, camera_figures(seen(0.5), table_m=-0.1)[0], strict=True))
    assert told["elevation_rad"] == pytest.approx(np.pi / 2, abs=1e-3)
    assert np.exp(told["log_distance"]) == pytest.approx(0.6, abs=1e-6)
    assert (told["target_x_m"], told["target_y_m"]) == pytest.approx((0.5, 0.1), abs=1e-6)
    assert np.exp(told["log_focal"]) == pytest.approx(60 / 48)
    level = seen()
    level["camera_T_world_camera"][0, :3, :3] = torch.tensor([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
    assert np.isfinite(camera_figures(level)).all()  # it looks at no table


def some_cameras(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0.5, 0.2, (count, len(FIGURES)))


def test_what_is_stranger_than_nearly_all_of_training_is_strange() -> None:
    things = np.where(np.arange(400) % 10 == 0, -np.inf, np.linspace(-4.0, 0.0, 400))
    usual = usual_of(some_cameras(400), things)
    fresh = usual.camera(usual.cameras(some_cameras(2000, seed=1)))
    assert 0.01 < (fresh > 0).mean() < 0.06
    assert 0.0 < (fresh == 1).mean() < 0.03
    assert (usual.camera(usual.cameras(some_cameras(50) + 2.0 * np.eye(8)[1])) == 1.0).all()
    told = usual.things(np.array([-np.inf, -4.0, -0.3, -0.065, 0.0, 5.0]))
    assert told == pytest.approx([0, 0, 0, 0.5, 1, 1], abs=0.1)
    with pytest.raises(VapError, match="20 starts or more are needed to tell what is usual, got 3"):
        Scale.of(np.zeros(3))


def test_where_all_cameras_of_training_stand_alike_others_may_stand_a_little_elsewhere() -> None:
    alike = np.tile(np.linspace(-0.5, 0.5, 8), (60, 1))
    usual = usual_of(alike, np.linspace(-3.0, 1.0, 60))
    for off, strange in ((1e-4, 0.0), (0.04, 0.0), (0.2, 1.0)):
        assert (usual.camera(usual.cameras(alike[:5] + off * np.eye(8)[1])) == strange).all()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / INDEX).write_text(json.dumps({"sha256": {"things": "1", "appearance": "2", "judge": "3"}}))
    return tmp_path


def some_usual() -> Usual:
    return usual_of(some_cameras(100), np.linspace(-3.0, 1.0, 100))


def test_what_is_usual_is_read_back_as_it_was_written(model: Path) -> None:
    oddness, usual = Oddness(widths=(8, 8, 8)), some_usual()
    write(model, oddness, {"one": usual})
    again = read(model, "one", table_m=0.2)
    assert again is not None
    assert again.table_m == 0.2
    cameras = some_cameras(20, seed=2)
    np.testing.assert_allclose(again.usual.cameras(cameras), usual.cameras(cameras), rtol=1e-3)
    assert vars(again.usual.things) == pytest.approx(vars(usual.things), abs=1e-5)
    torch.testing.assert_close(again.oddness.of(crops_of(seen())), oddness.of(crops_of(seen())), atol=1e-2, rtol=1e-2)
    assert read(model, "another") is None
    assert read(model / "nowhere", "one") is None


def test_damaged_files_and_those_of_other_models_are_refused(model: Path) -> None:
    write(model, Oddness(widths=(8, 8, 8)), {"one": some_usual()})
    whole = json.loads((model / FILE).read_text())
    (model / INDEX).write_text(json.dumps({"sha256": {"things": "1", "appearance": "2", "judge": "4"}}))
    assert read(model, "one") is not None  # another judge sees the same things
    (model / INDEX).write_text(json.dumps({"sha256": {"things": "9", "appearance": "2"}}))
    with pytest.raises(CheckpointError, match="lacks 'sha256 of what finds things.*vap-gym train familiar"):
        read(model, "one")
    (model / INDEX).write_text(json.dumps({"sha256": {"things": "1", "appearance": "2"}}))
    for wrong in ({"format": "other"}, {"figures": ["roll"]}, {"robots": {"one": {}}}, {"robots": None}):
        (model / FILE).write_text(json.dumps(whole | wrong))
        with pytest.raises(CheckpointError, match="does not tell what is familiar to this model"):
            read(model, "one")
    (model / FILE).write_text("{")
    with pytest.raises(CheckpointError, match="does not tell what is familiar"):
        read(model, "one")
    (model / FILE).write_text(json.dumps(whole))
    weights = next((model / PART).glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match="sha256"):
        read(model, "one")
    with pytest.raises(VapError, match="Familiarity is told of a world model, got"):
        write(model / PART, Oddness(widths=(8, 8, 8)), {})


# --- with the shipped model ---


@pytest.fixture(scope="module")
def stage() -> Stage:
    return build_stage(ID, judge=None)


@pytest.fixture(scope="module")
def starts() -> dict[str, list[Start]]:
    """Usual starts, the same through shifted cameras, and ones with unseen shapes."""
    card, found = load_env(ID), {}
    with Scene(load_robot(card.robot), frame_size_px=card.frame_size_px) as scene:

        def some(split: str, *, far: bool = False) -> Iterator[Start]:
            for i in range(6):
                drawn = (draw_scene(7_000_000 + 40 * i + j, split=split, task="lift") for j in range(40))
                yield shown_start(scene, map(moved, drawn) if far else drawn)

        def moved(spec: SceneSpec) -> SceneSpec:
            return replace(spec, camera=shifted(spec.camera, spec.seed))

        found["usual"] = list(some("train"))
        found["cameras"] = list(some("train", far=True))
        found["shapes"] = list(some("novel"))
    return found


def test_strange_starts_are_unfamiliar_and_usual_ones_are_not(stage: Stage, starts: dict[str, list[Start]]) -> None:
    told = {name: stage.begin(some, range(6))[UNFAMILIAR] for name, some in starts.items()}
    assert (told["usual"] < 0.5).float().mean() >= 0.8
    assert (told["cameras"] > 0.9).all()
    assert told["shapes"].mean() > told["usual"].mean() + 0.3


def test_who_else_is_in_the_batch_changes_nothing(stage: Stage, starts: dict[str, list[Start]]) -> None:
    mixed = [*starts["usual"][:2], *starts["shapes"][:2]]
    together = stage.begin(mixed, range(4))[UNFAMILIAR]
    alone = torch.cat([stage.begin([start], [i])[UNFAMILIAR] for i, start in enumerate(mixed)])
    torch.testing.assert_close(together, alone, atol=0.02, rtol=0.0)


def opened(path: Path, **kwargs: Any) -> VapEnv:
    env = gym.make(ID, judge=None, starts=path, task="any", **kwargs).unwrapped
    assert isinstance(env, VapEnv)
    env.reset(seed=0)
    return env


@pytest.fixture(scope="module")
def unaware(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped model, which takes all starts for usual."""
    made = tmp_path_factory.mktemp("model") / "unaware"
    shutil.copytree(weights_dir() / "tiny", made, ignore=shutil.ignore_patterns(FILE, PART))
    return made


def test_a_strange_start_raises_the_risk_of_every_step_to_one_half_and_changes_no_frame(
    tmp_path: Path, unaware: Path, starts: dict[str, list[Start]]
) -> None:
    strange = tmp_path / "strange.npz"
    save_starts(strange, starts["cameras"][:1])
    plain, env, strict = opened(strange, world_model=unaware), opened(strange), opened(strange, min_trust=0.6)
    env.action_space.seed(0)
    for _ in range(3):
        action = env.action_space.sample()
        before, after = plain.step(action), env.step(action)
        np.testing.assert_array_equal(before[0], after[0])
        assert "unfamiliar" not in before[4]["trust"]
        assert after[4]["trust"]["unfamiliar"] == 1.0
        assert after[4]["trust"]["object_risk"] == max(0.5, before[4]["trust"]["object_risk"])
        assert after[4]["trust"]["expected_psnr_db"] == before[4]["trust"]["expected_psnr_db"]
    assert strict.step(action)[3]
    assert not env.step(action)[3]


def test_a_snapshot_of_before_is_told_when_it_is_loaded(tmp_path: Path, starts: dict[str, list[Start]]) -> None:
    strange = tmp_path / "strange.npz"
    save_starts(strange, starts["cameras"][:1])
    env = opened(strange)
    action = env.action_space.sample()
    env.step(action)
    older = env.save()
    del older[UNFAMILIAR]
    env.load(older)
    assert env.step(action)[4]["trust"]["unfamiliar"] == 1.0


def test_familiarity_of_one_kind_is_enough(stage: Stage, starts: dict[str, list[Start]]) -> None:
    """Whichever of camera and things is stranger counts."""
    state = stage.begin(starts["usual"], range(6))
    assert stage.doubt is not None
    known = stage.doubt.familiarity
    assert known is not None
    far = Cameras(mean=known.usual.cameras.mean + 9.0, scale=known.usual.cameras.scale, precision=np.eye(8))
    other = Familiarity(replace(known.usual, cameras=far), known.oddness, table_m=known.table_m)
    assert (other(state) == 1.0).all()
    odd = Familiarity(replace(known.usual, things=Scale(usual=-1e3, rare=-1e3)), known.oddness, table_m=known.table_m)
    assert (odd(state) == 1.0).all()
    assert known.oddness.of(Crops(*(x[:0] for x in crops_of(state)))).shape == (0, 5)
