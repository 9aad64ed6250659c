"""Splits by lab and by skill: nothing leaks, and nothing moves when episodes are added."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vap_gym.data import Episode, EpisodeSet, EpisodeWriter
from vap_gym.data.layout import DataError
from vap_gym.data.splits import SPLITS, SplitRule, leaks, recording_of, split_set

LABS = ("AUTOLab", "autolab", "TRI", "CLVR", " tri ", "ILIAD", "Weird Ünï lab", "a_b", "a b")
SKILLS = ("close drawer", "Close_Drawer", "pick", "place upright", "pour", "wipe")


def info_of(lab: str | None, skill: str | None, episode: int) -> dict[str, Any]:
    return {"lab": lab, "skill": skill, "source": {"kind": "droid", "path": "/somewhere", "episode": str(episode)}}


infos = st.lists(
    st.builds(info_of, st.sampled_from(LABS), st.sampled_from(SKILLS), st.integers(0, 40)), min_size=1, max_size=60
)
rules = st.builds(
    SplitRule,
    lab_share=st.floats(0, 1),
    skill_share=st.floats(0, 1),
    known_share=st.floats(0, 1),
    novel_labs=st.sampled_from([(), ("tri",), ("CLVR", "A-B")]),
    novel_skills=st.sampled_from([(), ("Close Drawer",)]),
    seed=st.integers(0, 2**31),
)


def members(rule: SplitRule, episodes: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    return {name: [info for info in episodes if rule.of(info) == name] for name in SPLITS}


@settings(max_examples=150, deadline=None)
@given(episodes=infos, rule=rules)
def test_no_lab_skill_or_recording_is_on_both_sides(episodes: list[dict[str, Any]], rule: SplitRule) -> None:
    found = members(rule, episodes)
    assert sum(map(len, found.values())) == len(episodes)
    assert leaks(found) == []

    def spelled(names: list[dict[str, Any]], key: str) -> set[str]:
        return {str(info[key]).strip().casefold().replace("_", " ") for info in names}

    trained = found["train"] + found["known"]
    assert not spelled(trained + found["novel_skill"], "lab") & spelled(found["novel_lab"] + found["novel_both"], "lab")
    novel = found["novel_skill"] + found["novel_both"]
    assert not spelled(trained + found["novel_lab"], "skill") & spelled(novel, "skill")
    assert not {recording_of(i) for i in found["train"]} & {recording_of(i) for i in found["known"]}


@settings(max_examples=50, deadline=None)
@given(episodes=infos, added=infos, rule=rules)
def test_episodes_stay_where_they_are_when_others_come(
    episodes: list[dict[str, Any]], added: list[dict[str, Any]], rule: SplitRule
) -> None:
    before = [rule.of(info) for info in episodes]
    moved = [{**info, "source": {**info["source"], "path": "/elsewhere"}} for info in reversed(added + episodes)]
    assert [rule.of(info) for info in reversed(moved)][len(added) :] == before


def test_shares_are_about_what_was_asked_and_seeds_differ() -> None:
    episodes = [info_of(f"lab {i % 400}", f"skill {i % 399}", i) for i in range(4000)]
    rule = SplitRule(lab_share=0.2, skill_share=0.1, known_share=0.25)
    found = {name: len(infos) / 4000 for name, infos in members(rule, episodes).items()}
    wanted = {"novel_lab": 0.18, "novel_skill": 0.08, "novel_both": 0.02, "known": 0.18, "train": 0.54}
    assert {name: share for name, share in found.items() if share} == pytest.approx(wanted, abs=0.045)
    other = SplitRule(lab_share=0.2, skill_share=0.1, known_share=0.25, seed=1)
    assert [rule.of(i) for i in episodes] != [other.of(i) for i in episodes]


def test_names_given_are_held_out_however_they_are_spelled() -> None:
    rule = SplitRule(
        lab_share=0.0,
        skill_share=0.0,
        known_share=0.0,
        novel_labs=("TRI",),
        novel_skills=("close drawer", "place_upright"),
    )
    assert rule.of(info_of("tri", "pick", 0)) == "novel_lab"
    assert rule.of(info_of("CLVR", "Place Upright", 0)) == "novel_skill"
    assert rule.of(info_of(" Tri", "CLOSE-DRAWER", 0)) == "novel_both"
    assert rule.of({"lab": "CLVR", "skill": "pick"}) == "train"  # no recording is asked for where none is held out


@pytest.mark.parametrize("label", [None, "", "  ", 7])
def test_an_episode_without_a_label_is_refused_or_put_aside(label: object) -> None:
    with pytest.raises(DataError, match=r"must tell its lab and skill.*got \{'lab': .*SplitRule\(unlabelled=True\)"):
        SplitRule().of({"lab": label, "skill": "pick"})
    assert SplitRule(unlabelled=True).of({"lab": "TRI", "skill": label}) == "unlabelled"


def test_clips_of_one_hand_video_are_in_one_split() -> None:
    rule = SplitRule(lab_share=0.0, skill_share=0.0, known_share=0.5)
    for video in range(30):
        clips = [
            {
                "lab": "a",
                "skill": "b",
                "source": {"kind": "hand_video", "path": f"/data/{video}.mp4", "episode": f"{k}-9"},
            }
            for k in range(6)
        ]
        assert len({rule.of(clip) for clip in clips}) == 1


def test_a_leak_is_told() -> None:
    made = {"train": [info_of("TRI", "pick", 1)], "novel_lab": [info_of("tri", "pick", 2)]}
    assert leaks(made) == ["lab 'tri' is in train and novel"]
    made = {"train": [info_of("TRI", "pick", 1)], "known": [info_of("CLVR", "pick", 1)]}
    assert leaks(made) == ["recording 'droid/1' is in train and known"]


def test_a_set_is_split_by_position_and_tells_which_episode_is_bad(tmp_path: Path) -> None:
    writer = EpisodeWriter(tmp_path)
    for lab, skill in (("TRI", "pick"), ("CLVR", "pour"), (None, "pick")):
        info = info_of(lab, skill, 0)
        writer.append(Episode(frames={}, columns={"x": np.zeros(3)}, task="", info=info))
    rule = SplitRule(lab_share=0.0, skill_share=0.0, known_share=0.0, novel_labs=("CLVR",), unlabelled=True)
    found = split_set(EpisodeSet(tmp_path), rule)
    assert found == {
        "train": [0], "known": [], "novel_lab": [1], "novel_skill": [], "novel_both": [], "unlabelled": [2]
    }  # fmt: skip
    with pytest.raises(DataError, match=r"Episode 2 of .*must tell its lab and skill"):
        split_set(EpisodeSet(tmp_path), SplitRule())


def test_what_cannot_be_split_is_told() -> None:
    with pytest.raises(DataError, match=r"must tell its recording to be split, got info with lab, skill\. Give"):
        SplitRule(lab_share=0.0, skill_share=0.0).of({"lab": "a", "skill": "b"})
    with pytest.raises(DataError, match=r"lab_share must be a share between 0 and 1, got 10.0"):
        SplitRule(lab_share=10.0)
