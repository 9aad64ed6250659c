"""The fidelity bench: clips as the env itself would imagine them, figures that can fail, caches that know their age."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vap_gym.cards import load_env, load_robot
from vap_gym.errors import CheckpointError, VapError
from vap_gym.evaluate import clips as clips_module
from vap_gym.evaluate import fidelity
from vap_gym.evaluate.clips import Clips, fingerprint, played
from vap_gym.evaluate.fidelity_figures import gap_closed, interval, last_seen, segmentation, share_by_episode, things
from vap_gym.evaluate.fidelity_kept import Fidelity
from vap_gym.evaluate.fidelity_page import BESIDE, ROWS, headline, page
from vap_gym.evaluate.fidelity_rollout import Sight, begun, imagine, look, subject
from vap_gym.evaluate.fidelity_truth import FIRST_OBJECT
from vap_gym.evaluate.heldout import ENVS, HeldOut, list_path, load_heldout, write_list
from vap_gym.metrics import Interval

STEPS = 4
SHOWN = ("VAP-RT1-v0", "VAP-Hand-v0")  # a table that is not at z = 0; a camera that moves


@pytest.fixture(scope="module")
def clips(repo: Path) -> Iterator[dict[str, Clips]]:
    pytest.importorskip("pybullet", reason="the oracle needs pybullet")
    made = {}
    for env in SHOWN:
        items = [i for i in load_heldout(list_path(env, repo / "benchmarks")) if i.kind == "contact"][:2]
        made[env] = played(items, robot=load_env(env).robot, steps=STEPS, workers=1)
    yield made
    clips_module._KEPT.clear()


@pytest.mark.parametrize("env", SHOWN)
def test_what_is_imagined_is_what_the_env_imagines(env: str, clips: dict[str, Clips]) -> None:
    import gymnasium as gym

    import vap_gym  # noqa: F401
    from vap_gym.starts import Start

    mine = clips[env].pick(slice(0, 1))
    measured = subject(env, "tiny")
    frames = imagine(measured, mine)
    made = gym.make(env, judge=None, action_mode="cartesian_velocity").unwrapped
    camera = dataclasses.replace(mine.camera(0), K=mine.camera(0).K[0], T_world_camera=mine.camera(0).T_world_camera[0])
    start = Start(
        frame=mine.frames[0, 0], camera=camera, q_rad=mine.joints_rad[0, 0], closedness=float(mine.closedness[0, 0]),
        instruction="", sway=tuple(mine.sway[0].tolist()),
    )  # fmt: skip
    made.reset(seed=0, options={"start": start})
    for t in range(STEPS):
        frame = made.step(mine.actions[0, t])[0]
        apart = np.abs(frame.astype(int) - frames[0, t].astype(int))
        assert np.percentile(apart, 99) <= 4, t  # the noise has another seed


@pytest.mark.parametrize("env", SHOWN)
def test_commands_lead_where_the_recording_says(env: str, clips: dict[str, Clips]) -> None:
    mine = clips[env]
    imagination, state = begun(subject(env, "tiny"), mine)
    motion = imagination.follow(state, torch.from_numpy(mine.actions[:, :STEPS]))
    np.testing.assert_allclose(motion.T_world_camera.numpy(), mine.T_world_camera[:, 1:], atol=1e-5)
    np.testing.assert_allclose(motion.tool_m.numpy(), mine.tool_m[:, 1:], atol=1e-5)
    assert (np.ptp(mine.T_world_camera, axis=1).max() > 1e-3) == (env == "VAP-Hand-v0")


@pytest.mark.parametrize("env", SHOWN)
def test_told_things_are_where_the_simulator_has_them(env: str, clips: dict[str, Clips]) -> None:
    mine = clips[env]
    up_m = load_robot(load_env(env).robot).skeleton.drop_to_z_m
    measured = subject(env, "tiny", truth="moves")
    imagination, state = begun(measured, mine)
    place = mine.objects_m[np.isfinite(mine.objects_m).all((1, 3))[:, None].repeat(STEPS + 1, 1)].reshape(-1, 3)
    assert len(place)
    for t in range(STEPS + 1):
        for i in range(len(mine)):
            there = state["world_thing_there"][i].numpy()
            at = state["world_thing_place_m"][i].numpy()[there] + [0.0, 0.0, up_m]
            true = mine.objects_m[i, t][np.isfinite(mine.objects_m[i, 0]).all(-1)]
            np.testing.assert_allclose(at, true, atol=1e-5)
        if t < STEPS:
            state, _, _ = imagination.step(state, torch.from_numpy(mine.actions[:, t : t + 1]))


def test_told_things_have_their_true_pixels(clips: dict[str, Clips]) -> None:
    mine = clips["VAP-RT1-v0"]
    _, state = begun(subject("VAP-RT1-v0", "tiny", truth="things"), mine)
    owner, labels = state["world_first_owner"].numpy(), mine.labels[:, 0]
    both = ((owner > 0) & (labels >= FIRST_OBJECT) & (labels < FIRST_OBJECT + 6)).sum()
    assert both > 0.7 * (owner > 0).sum() > 0


def test_the_judge_is_told_the_table_where_it_is(clips: dict[str, Clips]) -> None:
    mine = clips["VAP-RT1-v0"]
    sight = look(subject("VAP-RT1-v0", "tiny"), mine.frames[:, :1], mine, slice(0, 1))
    off_m = np.linalg.norm(sight.objects_m[:, 0] - mine.objects_m[:, 0], axis=-1)[sight.confidence[:, 0] > 0.5]
    assert np.nanmedian(off_m) < 0.05  # taking the floor for the table, it would be off by half a metre


def test_a_judge_that_was_asked_for_is_never_another_one(tmp_path: Path) -> None:
    with pytest.raises(VapError, match=r"No judge named '.*'"):
        subject("VAP-DROID-v0", "tiny", judge=tmp_path)


def test_a_cache_is_used_for_just_its_episodes_and_renderer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clips: dict[str, Clips]
) -> None:
    item = HeldOut(seed=1, kind="noop", behaviour="noop", task="reach", near=False)
    cache = tmp_path / "kept.npz"
    kept = clips["VAP-RT1-v0"].pick(slice(0, 1))
    np.savez(cache, key=np.array(fingerprint([item], "google_robot", 4)), **vars(kept))
    monkeypatch.setattr(clips_module, "_one", lambda job: pytest.fail("played anew"))
    again = played([item], robot="google_robot", steps=4, cache=cache, workers=1)
    np.testing.assert_array_equal(again.frames, kept.frames)
    for other in ({"steps": 5}, {"robot": "widowx"}):
        with pytest.raises(pytest.fail.Exception, match="played anew"):
            played([item], **({"robot": "google_robot", "steps": 4, "workers": 1, "cache": cache} | other))
    cache.write_bytes(cache.read_bytes()[:500])
    with pytest.raises(pytest.fail.Exception, match="played anew"):
        played([item], robot="google_robot", steps=4, cache=cache, workers=1)
    before = fingerprint([item], "google_robot", 4)
    monkeypatch.setattr(clips_module, "RENDERER", clips_module.RENDERER + 1)
    assert fingerprint([item], "google_robot", 4) != before


def test_the_gap_is_closed_wholly_by_the_codec_and_not_at_all_by_a_frozen_frame() -> None:
    frozen, codec = np.full(5, 20.0), np.full(5, 36.0)
    assert gap_closed(np.stack([codec, frozen, codec], 1)) == 1.0
    assert gap_closed(np.stack([frozen, frozen, codec], 1)) == 0.0
    assert interval(np.zeros((0, 3)), gap_closed) is None


def perfect(clips: Clips, at: slice = slice(1, None)) -> Sight:
    """A judge that sees things where they are."""
    objects_m = clips.objects_m[:, at]
    return Sight(
        tool_px=np.zeros((*objects_m.shape[:2], 2), np.float32),
        objects_m=objects_m.astype(np.float32),
        confidence=np.where(np.isfinite(objects_m[..., 0]), 1.0, 0.0).astype(np.float32),
        segmentation=clips.labels[:, at],
    )


def at_first(clips: Clips) -> Sight:
    """What such a judge sees in first frames."""
    return perfect(clips, slice(0, 1))


def test_things_count_as_moved_or_left_alone_and_errors_are_told(clips: dict[str, Clips]) -> None:
    still = clips["VAP-RT1-v0"]
    objects_m = np.repeat(still.objects_m[:, :1], STEPS + 1, 1)
    mine = dataclasses.replace(still, objects_m=objects_m)
    report: dict[str, Any] = {}
    things(report, mine, at_first(mine), perfect(mine), perfect(mine))
    assert report["untouched_there"].value == 1.0
    assert report["moved_objects"] == 0
    assert report["moved_error_share"] is None
    seen = perfect(mine)
    wrong = dataclasses.replace(seen, objects_m=seen.objects_m + np.float32(0.02))
    things(report, mine, at_first(mine), wrong, perfect(mine))
    assert report["untouched_there"].value == 0.0
    pushed = objects_m.copy()
    pushed[:, -1, :, 1] += 0.06
    moved = dataclasses.replace(still, objects_m=pushed)
    things(report, moved, at_first(moved), perfect(mine), perfect(moved))  # imagined to have stayed
    assert report["moved_objects"] > 0
    assert report["moved_error_share"].value == pytest.approx(1.0, abs=1e-4)
    things(report, moved, at_first(moved), perfect(moved), perfect(moved))
    assert report["moved_error_share"].value == pytest.approx(0.0, abs=1e-4)


def test_what_the_first_frame_hides_stands_apart_and_what_is_lost_is_where_it_was_last(clips: dict[str, Clips]) -> None:
    mine = clips["VAP-RT1-v0"]
    pushed = np.repeat(mine.objects_m[:, :1], STEPS + 1, 1)
    pushed[:, 2:, :, 1] += 0.06
    moved = dataclasses.replace(mine, objects_m=pushed)
    first, seen = at_first(moved), perfect(moved)
    lost = dataclasses.replace(seen, objects_m=seen.objects_m + 5.0, confidence=0.0 * seen.confidence)
    report: dict[str, Any] = {}
    things(report, moved, first, lost, seen)
    assert report["moved_error_share"].value == pytest.approx(1.0, abs=1e-4)  # never seen again: as in the first frame
    assert report["moved_error_share_all"].value == pytest.approx(1.0 / 0.06, abs=1e-2)  # a metre off at most
    late = dataclasses.replace(lost, objects_m=lost.objects_m.copy(), confidence=lost.confidence.copy())
    late.objects_m[:, 1], late.confidence[:, 1] = seen.objects_m[:, 1], seen.confidence[:, 1]
    np.testing.assert_array_equal(last_seen(first, late), seen.objects_m[:, 1])
    hidden = dataclasses.replace(first, confidence=0.0 * first.confidence)
    things(report, moved, hidden, lost, seen)
    assert report["objects_shown"] == report["moved_objects"] == 0
    assert report["moved_error_share"] is None
    assert report["moved_error_share_all"] is not None


def test_segmentation_is_whole_for_the_truth_and_nothing_where_nothing_is_said(clips: dict[str, Clips]) -> None:
    mine = clips["VAP-Hand-v0"]
    whole = segmentation(mine, perfect(mine), slice(1, None))
    blind = dataclasses.replace(perfect(mine), segmentation=np.zeros_like(mine.labels[:, 1:]))
    nothing = segmentation(mine, blind, slice(1, None))
    assert whole is not None
    assert nothing is not None
    assert (whole.value, nothing.value) == (1.0, 0.0)


def test_a_share_counts_objects_and_draws_episodes() -> None:
    counted, good = np.array([[1, 1], [1, 0], [0, 0]], bool), np.array([[1, 0], [1, 1], [1, 1]], bool)
    share = share_by_episode(good, counted)
    assert share is not None
    assert share.value == pytest.approx(2 / 3)
    assert share.samples == 2


def test_the_page_tells_every_env_and_what_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    figure = Interval(value=0.5, low=0.4, high=0.6, level=0.95, samples=3)
    report: dict[str, Any] = {row.key: figure for row in ROWS}
    report |= {
        "episodes": 3, "evaluations": 1, "untouched_objects": 2, "moved_objects": 1, "objects_seen": 0.5,
        "objects_shown": 0.9,
        "psnr_by_step": {"imagined": [30.0] * 24}, "gap_closed_free": figure, "st_iou_free": figure,
    }  # fmt: skip
    blind = report | {"adherence_px": None}
    text = page({"VAP-DROID-v0": report, "VAP-Hand-v0": blind}, "tiny", 0)
    assert "| figure" in text
    line = next(line for line in text.splitlines() if "adherence, median px" in line)
    assert "0.5 [0.4, 0.6]" in line
    assert "n/a" in line
    assert "≥ 60 % (DROID), ≥ 50 %" in text
    assert "| ≤ 35 % " in text
    assert "| ≥ 0.55 " in text
    assert "simulator told" not in text
    assert "simulator told" in page({"VAP-DROID-v0": report}, "tiny", 0, truth="things")
    said = headline({"VAP-DROID-v0": report, "VAP-Hand-v0": blind})
    assert said["ST-IoU"] == "0.5 [0.4, 0.6]"
    assert said["VAP-Hand-v0: gripper adherence, median px"] == "n/a"
    read = json.loads(fidelity.as_json({"VAP-Hand-v0": blind}))["VAP-Hand-v0"]
    assert read["st_iou"] == {"value": 0.5, "low": 0.4, "high": 0.6}
    assert read["adherence_px"] is None


def test_every_figure_that_is_asked_for_is_marked_with_what_it_meets() -> None:
    def said(key: str, value: float, env: str = "VAP-RT1-v0") -> str:
        row = next(row for row in ROWS if row.key == key)
        return row.met(env, Interval(value=value, low=0.0, high=9.0, level=0.95, samples=3))

    assert [said("gap_closed", x) for x in (0.499, 0.5, 0.8)] == ["missed", "must", "aim"]
    assert [said("gap_closed", x, "VAP-DROID-v0") for x in (0.59, 0.61)] == ["missed", "must"]
    assert [said("adherence_px", x) for x in (1.51, 1.5, 0.8)] == ["missed", "must", "aim"]
    assert [said("moved_error_share", x) for x in (0.4, 0.3, 0.1)] == ["missed", "must", "aim"]
    assert said("adherence_px", float("nan")) == ""
    assert ROWS[3].met("VAP-RT1-v0", None) == ""
    assert BESIDE[0].met("VAP-RT1-v0", Interval(value=1.0, low=0.0, high=9.0, level=0.95, samples=3)) == ""


def test_the_page_is_made_anew_from_the_figures_that_are_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figure = Interval(value=0.7, low=0.4, high=0.9, level=0.95, samples=3)
    report: dict[str, Any] = {row.key: figure for row in ROWS} | {"adherence_px": None}
    report |= {
        "env": "VAP-RT1-v0", "episodes": 3, "evaluations": 1, "untouched_objects": 2, "moved_objects": 1,
        "objects_seen": 0.5, "objects_shown": 0.9, "psnr_by_step": {"imagined": [30.0] * 24},
    }  # fmt: skip
    kept = Fidelity(measured={"VAP-RT1-v0": report}, world_model="tiny", evaluations=0, origin="Measured elsewhere.")
    kept.save(tmp_path / "kept.json")
    assert Fidelity.load(tmp_path / "kept.json") == kept
    fidelity.main(figures=tmp_path / "kept.json", out=tmp_path / "page.md")
    text = (tmp_path / "page.md").read_text()
    assert capsys.readouterr().out.strip() == text.strip()
    assert text.rstrip().endswith("Measured elsewhere.")
    assert "| 0.7 [0.4, 0.9] · aim" in text
    assert "| 70 % [40, 90] · missed" in text
    (tmp_path / "other.json").write_text('{"format": "other"}')
    with pytest.raises(CheckpointError, match="holds no figures of fidelity.*bench fidelity"):
        fidelity.main(figures=tmp_path / "other.json", out=tmp_path / "page.md")


def test_long_episodes_are_the_first_of_the_main_kinds(repo: Path) -> None:
    for env in ENVS:
        items = load_heldout(list_path(env, repo / "benchmarks"))
        few = fidelity._long(items)
        assert len(few) == fidelity.LONG_EPISODES
        assert {item.kind for item in few} == {"contact", "free", "failing"}
        assert all(item in items for item in few)


def test_processes_measure_what_one_does(
    repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pybullet", reason="the oracle needs pybullet")
    items = load_heldout(list_path("VAP-DROID-v0", repo / "benchmarks"))
    few = [next(item for item in items if item.kind == kind) for kind in ("contact", "free")]
    write_list(tmp_path / "few.toml", few, ["# two episodes"])
    threads = torch.get_num_threads()
    told = []
    for workers in (1, 2):
        monkeypatch.setattr(torch, "get_num_threads", lambda n=workers: n)  # so that a process has one, as here
        fidelity.main(
            env=("VAP-DROID-v0",), heldout=tmp_path / "few.toml", cache=tmp_path, limit=256, workers=workers, json=True
        )
        told.append(json.loads(capsys.readouterr().out))
    torch.set_num_threads(threads)
    for report in told:
        assert report["VAP-DROID-v0"].pop("seconds") > 0
    assert told[0] == told[1]
