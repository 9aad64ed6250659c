"""Where an object is: found as a thing, moved as things move, set right by what is seen, and never by flickers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from vap_gym.errors import VapError
from vap_gym.geometry import Camera
from vap_gym.loading import build_stage, load_starts
from vap_gym.sim.spec import SceneSpec
from vap_gym.stage import Stage
from vap_gym.starts import Start
from vap_gym.whereabouts import (
    IMAGINED,
    REAL,
    Belief,
    Sight,
    find_object,
    follow_object,
    nearest_things,
    places_of,
    set_right,
    things_of,
)
from vap_gym.world.motion import ThingState

ID = "VAP-DROID-v0"
FLICKER_M = 0.02


@pytest.fixture(scope="module")
def stage() -> Stage:
    return build_stage(ID)


@pytest.fixture(scope="module")
def starts() -> list[Start]:
    return [start for start in load_starts(ID, None) if start.scene is not None][:6]


def scene_of(start: Start) -> SceneSpec:
    assert start.scene is not None
    return start.scene


def true_m(start: Start) -> np.ndarray:
    scene = scene_of(start)
    item = scene.target_object
    return np.array([*item.xy_m, scene.table_z_m + item.half_extents_m[2]])


def point(*m: float) -> Tensor:
    return torch.tensor([m], dtype=torch.float64)


CAMERA = Camera.look_at(point(1.2, 0.3, 0.6), point(0.4, 0.0, 0.0), vertical_fov_rad=0.7, frame_size_px=(144, 96))
FORETOLD = point(0.4, 0.0, 0.02)


def sight(at_m: Tensor, place_m: Tensor | None = None, *, sure: bool = True) -> Sight:
    """An object that is seen where a point is, and taken to be at a place, or there."""
    px = CAMERA.project(at_m[:, None])[0][:, 0]
    return Sight(px=px, place_m=at_m if place_m is None else place_m, sure=torch.tensor([sure]))


def test_a_reading_about_where_it_is_foretold_changes_nothing_in_imagination() -> None:
    seen = FORETOLD + point(0.0, FLICKER_M, 0.0)
    assert torch.equal(set_right(FORETOLD, sight(seen), CAMERA, IMAGINED), FORETOLD)
    moved = set_right(FORETOLD, sight(seen), CAMERA, REAL) - FORETOLD
    assert 0.1 * FLICKER_M < float(moved.norm()) <= REAL.near * FLICKER_M


def test_a_lifted_thing_in_its_place_in_the_picture_is_where_it_is_foretold_however_far_the_judge_takes_it() -> None:
    _, direction = CAMERA.ray(CAMERA.project(FORETOLD[:, None])[0])
    lifted = FORETOLD - 0.25 * direction[:, 0]  # nearer to the camera, on the same ray
    for belief in (IMAGINED, REAL):
        believed = set_right(lifted, sight(lifted, FORETOLD), CAMERA, belief)
        assert torch.allclose(believed, lifted, atol=1e-9)


@pytest.mark.parametrize("belief", [IMAGINED, REAL])
def test_what_is_seen_elsewhere_again_and_again_is_believed_in_the_end(belief: Belief) -> None:
    believed, seen = FORETOLD, point(0.5, 0.15, 0.02)
    once = set_right(believed, sight(seen), CAMERA, belief)
    assert 0.0 < float((once - believed).norm()) <= 0.5 * float((seen - believed).norm()) + 1e-9
    for _ in range(20):
        believed = set_right(believed, sight(seen), CAMERA, belief)
    assert float((believed - seen).norm()) < 1.2 * belief.usual_m  # it is about where it is foretold from there on


def test_an_unsure_or_missing_reading_is_no_reading_and_an_unknown_place_is_where_it_is_seen() -> None:
    nowhere = point(torch.nan, torch.nan, torch.nan)
    far = point(0.7, 0.0, 0.0)
    assert torch.equal(set_right(FORETOLD, sight(far, sure=False), CAMERA, REAL), FORETOLD)
    assert torch.equal(set_right(FORETOLD, sight(far, nowhere), CAMERA, REAL), FORETOLD)
    assert torch.equal(set_right(nowhere, sight(FORETOLD), CAMERA, REAL), FORETOLD)
    assert set_right(nowhere, sight(far, nowhere), CAMERA, REAL).isnan().all()


def seen_at(places_m: Tensor, sure: Tensor, camera: Camera) -> Sight:
    px = camera.to(dtype=places_m.dtype).project(places_m[:, None])[0][:, 0]
    return Sight(px=px, place_m=places_m, sure=sure)


def test_an_object_is_the_nearest_thing_that_is_there() -> None:
    stay = torch.zeros(1, 3, 6)
    things = ThingState(
        there=torch.tensor([[True, True, False]]),
        place_m=torch.tensor([[[0.4, 0.0, 0.02], [0.5, 0.1, 0.02], [0.6, 0.0, 0.02]]]),
        turn=torch.eye(3).expand(1, 3, 3, 3), shape=stay, step=stay, memory=stay, grip=torch.zeros(1, 1, 12),
    )  # fmt: skip
    asked = torch.tensor([[[0.41, 0.01, 0.3], [0.6, 0.0, 0.02], [torch.nan, 0.0, 0.0]]])
    which = nearest_things(things, asked)
    assert which.tolist() == [[0, -1, -1]]
    places = places_of(things, which)
    assert torch.equal(places[0, 0], things.place_m[0, 0])
    assert places[0, 1:].isnan().all()
    with pytest.raises(VapError, match="A state with things is needed"):
        things_of(TensorDict({"frame": torch.zeros(1)}, batch_size=[1]))


def test_objects_begin_where_the_finder_has_them_and_nearer_to_the_truth_than_where_the_judge_does(
    stage: Stage, starts: list[Start]
) -> None:
    state = stage.begin(starts, range(len(starts)))
    assert (state["object_thing"] >= 0).all()
    found = things_of(state).place_m[torch.arange(len(starts)), state["object_thing"]]
    assert torch.equal(state["object_m"], found.double())
    assert torch.equal(state["object_m"], state["object_start_m"])
    reading = stage.read(state, stage.imagination.look(state).tool_m[:, 0])
    target = torch.tensor([scene_of(start).target for start in starts])
    judged = reading.objects_world_m[torch.arange(len(starts)), target].double().numpy()
    truth = np.stack([true_m(start) for start in starts])
    off, judged_off = (np.linalg.norm(x - truth, axis=-1) for x in (state["object_m"].numpy(), judged))
    assert np.median(off) < 0.012
    assert np.median(off) < np.median(judged_off)


def test_an_object_goes_where_its_thing_goes_and_stays_while_nobody_touches_it(
    stage: Stage, starts: list[Start]
) -> None:
    state = stage.begin(starts[:2], [0, 1])
    before = state["object_m"].clone()
    later, _ = stage.advance(state, torch.zeros(2, 3, stage.rig.controller.action_size))
    assert torch.equal(later["object_m"], before)
    way = torch.tensor([0.05, -0.02, 0.0])
    place = later["world_thing_place_m"].clone()
    place[0, int(later["object_thing"][0])] += way
    later["world_thing_place_m"] = place
    camera = stage.imagination.camera(later)
    follow_object(later, seen_at(later["object_m"] + way, torch.tensor([True, False]), camera), camera)
    assert torch.allclose(later["object_m"][0] - before[0], way.double(), atol=1e-6)
    assert torch.equal(later["object_m"][1], before[1])


def test_an_object_that_is_no_thing_is_where_the_judge_last_was_sure_of_it(stage: Stage, starts: list[Start]) -> None:
    state = stage.begin(starts[:2], [0, 1])
    find_object(state, at_all=False)
    assert state["object_thing"].tolist() == [-1, -1]
    seen, sure = state["object_m"] + 0.01, torch.tensor([True, False])
    expected = torch.where(sure[:, None], seen, state["object_m"])
    camera = stage.imagination.camera(state)
    follow_object(state, seen_at(seen, sure, camera), camera)
    assert torch.equal(state["object_m"], expected)


def test_without_a_judge_nothing_is_looked_for(starts: list[Start]) -> None:
    state = build_stage(ID, judge=None).begin([replace(starts[0])], [0])
    assert state["object_thing"].tolist() == [-1]
