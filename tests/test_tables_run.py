"""`vap-gym bench tables` from end to end on next to nothing: trained once, resumed, refused when changed, written."""

import json
import multiprocessing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pybullet", reason="held-out clips are played in the oracle")

from vap_gym.data import EpisodeSet, EpisodeWriter
from vap_gym.errors import CheckpointError, UnknownNameError, VapError
from vap_gym.evaluate import tables
from vap_gym.evaluate.tables_clips import HeldOutClips, chosen, held_out_clips
from vap_gym.evaluate.tables_plan import RunPlan, SetPlan, load_plan
from vap_gym.evaluate.tables_runs import DONE, MISSING, OTHER, Job, claimed, data_digest, jobs_of, manifest, state_of
from vap_gym.evaluate.tables_scores import frozen, is_known_gripper, score_clips
from vap_gym.evaluate.tables_train import logged_steps, recipe_of, seconds_of, steps_of
from vap_gym.judge import Judge
from vap_gym.train.video_parts import build_network, save_model
from vap_gym.world.codec import FrameCodec


def test_a_dry_run_says_what_there_is_to_do_and_does_nothing(
    tables_plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = tables.main(plan=tables_plan, runs=tmp_path / "none", dry_run=True)
    said = capsys.readouterr().out
    assert [line.split("|")[1].strip() for line in said.splitlines()[2:6]] == [
        "base", "text-droid", "skeleton-droid", "mesh-droid",
    ]  # fmt: skip
    assert [one["state"] for one in told["trainings"]] == ["to do"] * 4
    assert "Training: about" in said
    assert "as the plan guesses" in said
    assert not (tmp_path / "none").exists()


def test_the_page_has_a_row_for_each_model_and_each_reference(tables_runs: Path) -> None:
    page = (tables_runs / "tables.md").read_text()
    block = page.split("**DROID-like, known**")[1].split("\n\n")[1].splitlines()
    assert [line.split("|")[1].strip() for line in block[2:]] == [
        "text", "skeleton", "first frame, frozen", "true frames through the codec", "judge on true frames",
    ]  # fmt: skip
    assert page.count("A trial run, no result") == 1  # another plan than the committed one
    assert "It stands still in: DROID-like." in page
    assert "Skeleton above text" in page
    assert all(
        f"| {name} " in page.split("## What was trained")[1] for name in ("base", "text-droid", "skeleton-droid")
    )
    assert (tables_runs / "sheets" / "droid-known.png").stat().st_size > 1000


def test_a_training_says_what_it_is_made_of(tables_runs: Path) -> None:
    told = json.loads((tables_runs / "skeleton-droid" / "3" / "manifest.json").read_text())
    assert told["done"] is True
    assert told["steps"] == told["samples"] == 2
    assert told["hours"] > 0
    assert told["recipe"]["model"]["condition"] == "skeleton"
    base = json.loads((tables_runs / "base" / "3" / "manifest.json").read_text())
    assert told["base"] == base["key"]


def test_what_is_trained_and_scored_is_not_done_again(
    tables_runs: Path, tables_plan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in tables_runs.rglob("*.npz")}
    tables.main(plan=tables_plan, runs=tables_runs, only=("1",))
    assert before == {path: path.stat().st_mtime_ns for path in tables_runs.rglob("*.npz")}
    said = capsys.readouterr().out
    assert "Training: about 0 minutes (as trainings here took)" in said
    assert "scoring" not in said
    assert "video step" not in said


def changed(tables_plan: Path, tmp_path: Path, old: str, new: str) -> Path:
    text = tables_plan.read_text()
    assert old in text
    (tmp_path / "changed.toml").write_text(text.replace(old, new))
    return tmp_path / "changed.toml"


def test_a_changed_recipe_is_not_taken_for_a_done_one(tables_runs: Path, tables_plan: Path, tmp_path: Path) -> None:
    other = changed(tables_plan, tmp_path, "lora_rank = 2", "lora_rank = 4")
    with pytest.raises(CheckpointError, match=r"text-droid.*lora_rank 2 \(now 4\).*--retrain"):
        tables.main(plan=other, runs=tables_runs, only=("1",))
    jobs = {job.run.name: job for job in jobs_of(load_plan(other), tables_runs)}
    assert state_of(jobs["text-droid"]) == OTHER
    assert state_of(jobs["base"]) == DONE  # its own recipe is the same
    assert state_of(jobs["mesh-droid"]) == MISSING
    earlier = changed(tables_plan, tmp_path, "warmup_steps = 1", "warmup_steps = 2")
    assert {state_of(job) for job in jobs_of(load_plan(earlier).only(["1"]), tables_runs)} == {OTHER}
    usual = changed(tables_plan, tmp_path, "warmup_steps = 1", "warmup_steps = 1\npure_noise = 0.5\nbf16 = true")
    assert {state_of(job) for job in jobs_of(load_plan(usual).only(["1"]), tables_runs)} == {DONE}
    noisy = changed(tables_plan, tmp_path, "warmup_steps = 1", "warmup_steps = 1\npure_noise = 0.9")
    assert {state_of(job) for job in jobs_of(load_plan(noisy).only(["1"]), tables_runs)} == {OTHER}
    quiet = changed(tables_plan, tmp_path, "log_every = 1", "log_every = 2")
    assert {state_of(job) for job in jobs_of(load_plan(quiet).only(["1"]), tables_runs)} == {DONE}


def test_another_base_makes_another_training(tables_plan: Path, tmp_path: Path) -> None:
    def key(path: Path) -> str:
        return next(job.key for job in jobs_of(load_plan(path), tmp_path) if job.run.name == "mesh-droid")

    old = 'recipe = { parts = "full"'
    assert key(changed(tables_plan, tmp_path, old, 'recipe = { steps = 3, parts = "full"')) != key(tables_plan)


def test_no_training_begins_that_would_end_after_the_budget(
    tables_runs: Path, tables_plan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tables.main(plan=tables_plan, runs=tables_runs, only=("3",), budget=1e-6)
    assert "1 training(s) are left for another time: mesh-droid, seed 3" in capsys.readouterr().out
    page = (tables_runs / "tables.md").read_text()
    assert "Not trained yet, and so missing below: mesh-droid, seed 3." in page
    assert not (tables_runs / "mesh-droid" / "3" / "manifest.json").exists()


def _try(job: Job, said: object) -> None:
    with claimed(job) as is_mine:
        said.put(is_mine)  # type: ignore[attr-defined]


def test_a_training_belongs_to_one_process_at_a_time(tables_plan: Path, tmp_path: Path) -> None:
    job = jobs_of(load_plan(tables_plan), tmp_path)[0]
    context = multiprocessing.get_context("fork")
    said = context.Queue()
    with claimed(job) as is_mine:
        assert is_mine
        other = context.Process(target=_try, args=(job, said))
        other.start()
        assert said.get(timeout=60) is False
        other.join()
    with claimed(job) as is_mine:
        assert is_mine


def test_what_cannot_be_is_refused_before_anything_is_trained(tables_plan: Path, tmp_path: Path) -> None:
    folder = tmp_path / "none"
    unknown = changed(tables_plan, tmp_path, "lora_rank = 2", "lora_rang = 2")
    with pytest.raises(UnknownNameError, match=r"'lora_rang'. Did you mean 'lora_rank'\?"):
        tables.main(plan=unknown, runs=folder)
    with pytest.raises(VapError, match="follows from the rest of the plan"):
        tables.main(plan=changed(tables_plan, tmp_path, "lora_rank = 2", "seed = 2"), runs=folder)
    with pytest.raises(VapError, match="budget must be minutes"):
        tables.main(plan=tables_plan, runs=folder, budget=-1.0)
    with pytest.raises(UnknownNameError, match="No table named '9'"):
        tables.main(plan=tables_plan, runs=folder, only=("9",))
    assert not folder.exists()


# --- data and clips ---


def test_the_digest_of_a_set_follows_its_content(tables_data: Path, tmp_path: Path) -> None:
    assert data_digest(tables_data) == data_digest(tables_data, 3) != data_digest(tables_data, 2)
    writer = EpisodeWriter(tmp_path / "copy", fps=15)
    for episode in EpisodeSet(tables_data):
        writer.append(replace(episode, frames={"front": 255 - episode.frames["front"]}))
    assert data_digest(tmp_path / "copy") != data_digest(tables_data)


@pytest.fixture(scope="module")
def clips(tables_plan: Path, tables_runs: Path) -> HeldOutClips:
    return held_out_clips(load_plan(tables_plan).sets["droid"], "known", 3, folder=tables_runs / "heldout", workers=1)


def test_clips_are_told_by_what_they_show(tables_plan: Path, clips: HeldOutClips, tmp_path: Path) -> None:
    (tmp_path / "droid-known.npz").write_bytes(b"damaged")  # is played again
    again = held_out_clips(load_plan(tables_plan).sets["droid"], "known", 3, folder=tmp_path, workers=1)
    assert again.key == clips.key
    np.testing.assert_array_equal(again.frames, clips.frames)
    assert len({*clips.kinds}) > 1  # of every kind in proportion


def test_held_out_scenes_of_the_two_splits(repo: Path) -> None:
    for env, novel in (("VAP-RT1-v0", {"close_drawer", "place_upright"}), ("VAP-Hand-v0", set())):
        plan = SetPlan(name="x", title="x", env=env, data="", novel="skill")
        known, new = chosen(plan, "known", 40), chosen(plan, "novel", 20)
        assert {item.kind for item in known} == {"contact", "free", "failing"}
        assert len({item.seed for item in known}) == 40
        if novel:
            assert {item.task for item in new} == novel
            assert not {item.task for item in known} & novel


def test_the_thing_that_moves_most_is_the_manipulated_one(clips: HeldOutClips) -> None:
    for episode, label in zip(clips.episodes, clips.manipulated(), strict=True):
        went = np.linalg.norm(episode.columns["objects_m"] - episode.columns["objects_m"][:1], axis=-1).max(0)
        assert label == 0 or np.nanargmax(went) == label - 4
    contact = clips.kinds.index("contact")
    assert (clips.episodes[contact].labels["front"] == clips.manipulated()[contact]).any()


def test_true_frames_score_best_and_the_frozen_frame_worse(clips: HeldOutClips) -> None:
    judge = Judge.from_pretrained("tiny")
    true, still = score_clips(clips.frames, clips, judge), score_clips(frozen(clips), clips, judge)
    assert (true["psnr"] == 40).all()
    assert (true["st_iou"] == 1).all()
    assert (still["psnr"] < 35).all()
    assert np.median(true["adherence_px"]) < np.median(still["adherence_px"])
    moved = clips.manipulated() > 0
    assert (~np.isnan(true["j_and_f"]) == moved).all()
    assert (true["j_and_f"][moved] > still["j_and_f"][moved]).all()
    assert is_known_gripper(true)
    assert not is_known_gripper(still)


def test_manifest_that_is_no_json_says_so(tables_plan: Path, tmp_path: Path) -> None:
    job = jobs_of(load_plan(tables_plan), tmp_path)[0]
    job.folder.mkdir(parents=True)
    (job.folder / "manifest.json").write_text("{")
    with pytest.raises(CheckpointError, match="must be JSON"):
        manifest(job)


def test_every_training_of_the_committed_plan_can_start_from_its_base(repo: Path, tmp_path: Path) -> None:
    whole = load_plan(repo / "benchmarks" / "tables.toml")
    codec = FrameCodec.from_pretrained(repo / "vap_gym" / "weights" / "tiny" / "codec")
    base_config = {"num_attention_heads": 1, "attention_head_dim": 16, "in_channels": 16, "out_channels": 16}
    base_config |= {"num_layers": 2, "time_embed_dim": 16, "text_embed_dim": 16}
    little = {"stem_width": 8, "trajectory_width": 8, "base_config": base_config}
    jobs: dict[str, Job] = {}
    for name, run in whole.runs.items():
        small = replace(run, recipe={**run.recipe, "lora_rank": min(2, run.recipe.get("lora_rank", 0))})
        small = replace(small, recipe={**small.recipe, "model": {**run.recipe["model"], **little}})
        base = jobs[run.base] if run.base else None
        jobs[name] = Job(run=small, seed=0, folder=tmp_path / name / "0", base=base, data={}, held={})
        recipe = recipe_of(whole, jobs[name])
        network = build_network(recipe, codec)
        trained = {key for key, value in network.named_parameters() if value.requires_grad}
        is_whole = recipe.parts == "full"
        assert is_whole == (len(trained) == len(list(network.parameters()))), name
        assert is_whole == (not any(".lora_" in key for key in trained)), name
        assert any(key.startswith("embed_states.") for key in trained) == (recipe.settings.condition == "raw_state")
        pictures = recipe.settings.condition in ("skeleton", "mesh", "depth")
        assert any(key.startswith("trajectory.") for key in trained) == pictures, name
        copied = any("control_blocks" in key for key in trained)
        assert copied == (pictures and name != "no_controlnet-droid"), name
        if name in {one.base for one in whole.runs.values()}:
            weights = {key: value.detach() for key, value in network.state_dict().items()}
            save_model(network, codec, weights, jobs[name].folder / "model")


def test_a_training_that_was_killed_counts_its_hours_and_the_steps_it_need_not_do_again(
    tables_runs: Path, tmp_path: Path
) -> None:
    [job] = [Job(run=RunPlan(name="a", sets=(), base="", recipe={"steps": 400, "save_every": 100}), seed=0,
                 folder=tmp_path, base=None, data={}, held={})]  # fmt: skip
    assert (steps_of(job), logged_steps(job), seconds_of(job)) == (0, 0, 0.0)
    rows = [(20, 30.0), (100, 150.0), (120, 20.0), (160, 65.0)]  # killed after step 100, and again after step 160
    (tmp_path / "log.jsonl").write_text("".join(json.dumps({"step": s, "seconds": t}) + "\n" for s, t in rows))
    assert (steps_of(job), logged_steps(job), seconds_of(job)) == (100, 160, 215.0)


def test_seeds_are_trained_one_after_the_other_and_scored_as_far_as_they_are(tables_plan: Path, tmp_path: Path) -> None:
    plan = load_plan(tables_plan).smaller(seeds=2).only(("1",))
    order = [(job.run.name, job.seed) for job in jobs_of(plan, tmp_path)]
    assert order == [("base", 3), ("text-droid", 3), ("skeleton-droid", 3), ("text-droid", 4), ("skeleton-droid", 4)]
    assert {job.base.seed for job in jobs_of(plan, tmp_path) if job.base is not None} == {3}


def test_the_first_seed_is_scored_while_the_second_is_not_trained(
    tables_plan: Path, tables_runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    tables.main(plan=tables_plan, runs=tables_runs, only=("1",), seeds=2, budget=1e-9, out=page)
    text = page.read_text()
    assert "Not trained yet, and so missing below: text-droid, seed 4, skeleton-droid, seed 4." in text
    block = text.split("**DROID-like, known**")[1].split("\n\n")[1].splitlines()
    assert all(cell.strip() for line in block[2:4] for cell in line.split("|")[1:3])
    assert "Up to 2 seeds" in text
