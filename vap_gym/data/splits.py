"""Splits by lab and by skill that cannot leak: which split an episode is in follows from what it says of itself alone.

| split | lab | skill |
|---|---|---|
| `train` | known | known |
| `known` | known | known, but a recording that training does not see |
| `novel_lab` | novel | known |
| `novel_skill` | known | novel |
| `novel_both` | novel | novel |
| `unlabelled` | does not say | or does not say: never trained on, never tested on |

Whether a lab, a skill or a recording is held out is read from a hash of its name and the seed, so it stays where it is
when episodes are added, moved or imported again, on any machine. (Paper Sec. 4: known and novel environments and
skills.)
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from vap_gym.data.episodes import EpisodeSet
from vap_gym.data.layout import DataError
from vap_gym.errors import unknown_name

SPLITS = ("train", "known", "novel_lab", "novel_skill", "novel_both", "unlabelled")
LABELS = ("lab", "skill")


@dataclass(frozen=True, kw_only=True)
class SplitRule:
    """What is held out: shares in [0, 1] of labs, of skills, and of the recordings of known ones; or names.

    `novel_labs` and `novel_skills` name those that are novel, beside the shares. With `unlabelled=False` an episode
    that does not tell its lab or skill is an error; else it goes to the split of that name.
    """

    lab_share: float = 0.1
    skill_share: float = 0.1
    known_share: float = 0.05
    novel_labs: tuple[str, ...] = ()
    novel_skills: tuple[str, ...] = ()
    seed: int = 0
    unlabelled: bool = False

    def __post_init__(self) -> None:
        shares = {"lab_share": self.lab_share, "skill_share": self.skill_share, "known_share": self.known_share}
        for name, share in shares.items():
            if not 0 <= share <= 1:
                raise DataError(f"{name} must be a share between 0 and 1, got {share}. A tenth is 0.1.")

    def of(self, info: Mapping[str, Any]) -> str:
        """Return the split of an episode with this `info`, one of SPLITS. Raises DataError where it is not told."""
        lab, skill = (_label(info, key) for key in LABELS)
        if lab is None or skill is None:
            if self.unlabelled:
                return "unlabelled"
            given = {key: info.get(key) for key in LABELS}
            raise DataError(
                f"An episode must tell its lab and skill to be split, got {given}. Give them at the import, or put "
                "such episodes aside with SplitRule(unlabelled=True)."
            )
        has_novel_lab = lab in map(_plain, self.novel_labs) or self._drawn("lab", lab) < self.lab_share
        has_novel_skill = skill in map(_plain, self.novel_skills) or self._drawn("skill", skill) < self.skill_share
        if has_novel_lab or has_novel_skill:
            return "novel_both" if has_novel_lab and has_novel_skill else f"novel_{'lab' if has_novel_lab else 'skill'}"
        if self.known_share == 0:
            return "train"
        return "known" if self._drawn("recording", recording_of(info)) < self.known_share else "train"

    def _drawn(self, kind: str, name: str) -> float:
        """A number in [0, 1) that belongs to a name: `hash` would differ from process to process."""
        digest = hashlib.sha256(f"{self.seed}\0{kind}\0{name}".encode()).digest()
        return int.from_bytes(digest[:7], "big") / 2**56


def recording_of(info: Mapping[str, Any]) -> str:
    """Return what names the recording that an episode is from: parts of one recording have the same name.

    It is `info["recording"]` where that is given, else the source's kind and episode; for clips of a hand video, the
    video. Not the folder: that changes when data move. Raises DataError where nothing is told.
    """
    if info.get("recording"):
        return str(info["recording"])
    source = info.get("source")
    if isinstance(source, Mapping) and source.get("kind") == "hand_video":
        return f"hand_video/{PurePath(str(source.get('path'))).name}"
    if isinstance(source, Mapping) and source.get("episode") is not None:
        return f"{source.get('kind')}/{source['episode']}"
    scene = info.get("scene")
    if isinstance(scene, Mapping) and scene.get("seed") is not None:
        return f"oracle/{scene['seed']}"
    raise DataError(
        f"An episode must tell its recording to be split, got info with {', '.join(info) or 'nothing'}. "
        "Give info['recording'] or info['source'] = {'kind': …, 'episode': …}, or hold none out: known_share=0."
    )


def split_set(episodes: EpisodeSet, rule: SplitRule) -> dict[str, list[int]]:
    """Return the positions in `episodes` of each split's episodes, every split named. DataError tells which is bad."""
    found: dict[str, list[int]] = {name: [] for name in SPLITS}
    for i in range(len(episodes)):
        try:
            found[rule.of(episodes.info(i))].append(i)
        except DataError as error:
            raise DataError(f"Episode {episodes.index(i)} of '{episodes.root}': {error}") from error
    return found


def check_split(name: str) -> str:
    """Return the name of a split, or raise UnknownNameError."""
    if name not in SPLITS:
        raise unknown_name("split", name, SPLITS)
    return name


def leaks(split: Mapping[str, Iterable[Mapping[str, Any]]]) -> list[str]:
    """Return what lies on both sides where it must not, given each split's `info`s: empty where nothing leaks.

    No lab of `novel_lab` or `novel_both`, no skill of `novel_skill` or `novel_both`, and no recording of `known` may be
    in `train`. For splits that were made elsewhere, too.
    """
    infos = {check_split(name): list(members) for name, members in split.items()}
    trained = infos.get("train", [])
    found = []
    for kind, novel in (("lab", ("novel_lab", "novel_both")), ("skill", ("novel_skill", "novel_both"))):
        seen = {_label(info, kind) for info in trained}
        held = {_label(info, kind) for name in novel for info in infos.get(name, [])}
        found += [f"{kind} '{name}' is in train and novel" for name in sorted(filter(None, seen & held))]
    if trained and infos.get("known"):
        both = {recording_of(info) for info in trained} & {recording_of(info) for info in infos["known"]}
        found += [f"recording '{one}' is in train and known" for one in sorted(both)]
    return found


def _label(info: Mapping[str, Any], key: str) -> str | None:
    """A lab's or skill's name in plain letters; None where there is none."""
    value = info.get(key)
    if value is None or not isinstance(value, str):
        return None
    return _plain(value) or None


def _plain(name: str) -> str:
    """The same for 'Close Drawer', 'close_drawer' and ' close  drawer ': spelling must not split a skill in two."""
    words = unicodedata.normalize("NFKC", name).casefold().replace("_", " ").replace("-", " ").split()
    return " ".join(words)
