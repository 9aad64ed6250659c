"""Judges of whole episodes, to put in the place of the shipped one: a goal picture, people, or a vision-language model.

What a judge cannot tell, for whatever reason, is unknown: never a success, never a failure.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from vap_gym.errors import VapError
from vap_gym.evaluate.policies_votes import RULES, vote_of

Array = np.ndarray
VERDICTS = ("success", "failure", "unknown")
REASON_LETTERS = 160  # of an error that is told
COLUMNS = ("policy", "start", "seed", "task", "verdict")
QUESTION = (
    "The pictures are of one episode of a robot, in order of time. Its task was: {task}. "
    "Look at the last picture. Is the task solved? Answer with one word, yes or no."
)


@dataclass(frozen=True, kw_only=True, eq=False)
class ShownEpisode:
    """What a judge is shown."""

    frames: UInt8[Array, "T H W 3"]
    task: str  # its instruction
    policy: str
    start: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a judge says, and why."""

    verdict: str  # one of VERDICTS
    reason: str


@runtime_checkable
class EpisodeJudge(Protocol):
    """Tells whether an episode's task was solved."""

    def __call__(self, episode: ShownEpisode) -> Verdict:
        """Return the verdict; it raises nothing because of an episode that it cannot tell of."""
        ...


class GoalPictures:
    """Success where an episode comes to look like its goal: root mean square distance in grey levels.

    Args:
        goals: the picture that each start shall lead to, by the start's number; of others the verdict is unknown.
        most_grey: success at this distance or less. What suits a scene is seen from a few solved episodes.
        last: how many of the last frames may be the one that looks like it.
        mask: which pixels count, (H, W); None: all.
    """

    def __init__(
        self,
        goals: Mapping[int, UInt8[Array, "H W 3"]],
        *,
        most_grey: float,
        last: int = 5,
        mask: Bool[Array, "H W"] | None = None,
    ) -> None:
        if most_grey <= 0 or last < 1 or (mask is not None and not mask.any()):
            raise VapError(
                f"most_grey must be above 0, last at least 1 and a mask must leave pixels, got {most_grey} and {last}."
            )
        self.goals, self.most_grey, self.last, self.mask = dict(goals), most_grey, last, mask

    @classmethod
    def from_folder(cls, folder: str | Path, *, most_grey: float, last: int = 5) -> GoalPictures:
        """Read a goal picture for each start: "12.png" is that of start 12.

        Raises:
            VapError: no such pictures there, or one that is no picture.
        """
        goals: dict[int, Array] = {}
        for path in sorted(Path(folder).glob("*.png")):
            if not path.stem.isdigit():
                raise VapError(f"A goal picture is named by its start's number, got '{path}'. Name it 12.png, say.")
            try:
                with Image.open(path) as picture:
                    goals[int(path.stem)] = np.array(picture.convert("RGB"))
            except OSError as error:
                raise VapError(f"'{path}' must be a picture, got: {error}. Save it again, as PNG.") from error
        if not goals:
            raise VapError(f"No goal pictures in '{folder}'. Put one there for each start: 12.png is that of start 12.")
        return cls(goals, most_grey=most_grey, last=last)

    def __call__(self, episode: ShownEpisode) -> Verdict:
        """Compare the last frames with the start's goal."""
        goal = self.goals.get(episode.start)
        if goal is None:
            return Verdict(verdict="unknown", reason=f"no goal picture of start {episode.start}")
        if goal.shape != episode.frames.shape[1:]:
            return Verdict(
                verdict="unknown", reason=f"the goal picture is {goal.shape}, frames {episode.frames.shape[1:]}"
            )
        gap = episode.frames[-self.last :].astype(np.float64) - goal
        if self.mask is not None:
            gap = gap[:, self.mask]
        nearest = float(np.sqrt((gap.reshape(len(gap), -1) ** 2).mean(1)).min())
        verdict = "success" if nearest <= self.most_grey else "failure"
        return Verdict(verdict=verdict, reason=f"{nearest:.1f} grey levels from the goal picture")


class HumanLabels:
    """What people wrote into a file: CSV with the columns policy, start, seed, task and verdict.

    `write_labels` makes a file with empty verdicts to fill in with "success" or "failure" (or s, f, 1, 0, yes, no);
    what is left empty, or is "unknown" or "?", is unknown.

    Raises:
        VapError: a file that is missing, lacks a column, labels an episode twice or says something else; with the line.
    """

    WORDS: Mapping[str, str] = {
        "success": "success", "s": "success", "1": "success", "yes": "success",
        "failure": "failure", "f": "failure", "0": "failure", "no": "failure",
        "": "unknown", "unknown": "unknown", "?": "unknown",
    }  # fmt: skip

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise VapError(f"No labels at '{path}'. Make a file to fill in: vap-gym judge FOLDER labels:{path}")
        self._labels: dict[tuple[str, int, int], str] = {}
        with self.path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            missing = [name for name in COLUMNS if name != "task" and name not in (reader.fieldnames or ())]
            if missing:
                raise VapError(f"'{path}' must have the columns {', '.join(COLUMNS)}, it lacks {', '.join(missing)}.")
            for row in reader:
                self._take(row, reader.line_num)

    def _take(self, row: Mapping[str, str | None], line: int) -> None:
        word = (row["verdict"] or "").strip().lower()
        if word not in self.WORDS:
            raise VapError(f"'{self.path}', line {line}: a verdict is success, failure or empty, got '{word}'.")
        try:
            key = (str(row["policy"]), int(row["start"] or ""), int(row["seed"] or ""))
        except ValueError as error:
            raise VapError(
                f"'{self.path}', line {line}: start and seed must be whole numbers, got '{row['start']}' and "
                f"'{row['seed']}'."
            ) from error
        if key in self._labels:
            raise VapError(f"'{self.path}', line {line}: {key[0]}, start {key[1]}, seed {key[2]} has a label already.")
        self._labels[key] = self.WORDS[word]

    def __call__(self, episode: ShownEpisode) -> Verdict:
        """Look the episode up."""
        found = self._labels.get((episode.policy, episode.start, episode.seed))
        return Verdict(verdict=found or "unknown", reason="no label" if found is None else f"label in {self.path.name}")


def write_labels(path: str | Path, episodes: Iterable[tuple[str, int, int, str]]) -> int:
    """Write a file of labels to fill in, from (policy, start, seed, task); returns how many.

    Raises:
        VapError: there is such a file already: what people wrote is not written over.
    """
    target = Path(path)
    if target.exists():
        raise VapError(f"'{path}' is there already, maybe with labels in it. Choose another name, or remove it.")
    rows = [*episodes]
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.part")
    with temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows([*row, ""] for row in rows)
    temporary.replace(target)
    return len(rows)


Ask = Callable[[Sequence[UInt8[Array, "H W 3"]], str], str]
"""Shows pictures to a model, asks a question, returns what it says; raises what it likes where it cannot."""


@runtime_checkable
class Settled(Protocol):
    """What tells by which settings it comes to its answers, so that these can be kept and found again."""

    @property
    def settings(self) -> Mapping[str, Any] | None:
        """Plain JSON; None: nobody can tell."""
        ...


class VlmJudge:
    """A vision-language model that is asked several times; the majority of clear answers decides.

    Answers that are neither yes nor no (see `vote_of`), refusals, questions that nobody answers in time, and those at
    which the model fails, with whatever error, are no votes. With no vote, or as many of one as of the other, the
    verdict is unknown; its reason tells the errors.

    Args:
        ask: shows pictures and asks: `OpenAiCompatible`, `policies_transformers.TransformersVlm`, or a function.
        votes: how often it is asked.
        pictures: how many it is shown, evenly over the episode, the last frame among them.
        question: "{task}" stands for the instruction; is to be answered by yes or no.
    """

    def __init__(self, ask: Ask, *, votes: int = 3, pictures: int = 4, question: str = QUESTION) -> None:
        if votes < 1 or pictures < 1 or "{task}" not in question:
            raise VapError(
                f"votes and pictures must be at least 1 and a question hold '{{task}}', got {votes}, {pictures}."
            )
        self.ask, self.votes, self.pictures, self.question = ask, votes, pictures, question

    @property
    def settings(self) -> Mapping[str, Any] | None:
        """What decides on its verdicts, plain JSON: with the same settings a question need not be asked twice.
        None: nobody can tell, because `ask` is a function."""
        asked = self.ask.settings if isinstance(self.ask, Settled) else None
        told = {"votes": self.votes, "pictures": self.pictures, "question": self.question, "rules": RULES}
        return None if asked is None else {**told, "ask": dict(asked)}

    def __call__(self, episode: ShownEpisode) -> Verdict:
        """Ask about one episode."""
        last = len(episode.frames) - 1
        chosen = np.unique(np.linspace(last if self.pictures == 1 else 0, last, self.pictures).round().astype(int))
        shown, question = [episode.frames[t] for t in chosen], self.question.replace("{task}", episode.task)
        votes = [self._vote(shown, question) for _ in range(self.votes)]
        said, failed = [vote for vote, _ in votes], Counter(how for _, how in votes if how)
        yes, no = said.count("yes"), said.count("no")
        verdict = "success" if yes > no else "failure" if no > yes else "unknown"
        told = "".join(f"; {count} failed: {how}" for how, count in failed.items())
        return Verdict(verdict=verdict, reason=f"{yes} yes, {no} no, {len(said) - yes - no} no answer{told}")

    def _vote(self, pictures: Sequence[UInt8[Array, "H W 3"]], question: str) -> tuple[str, str]:
        """A vote, or "" and, where the model failed, how."""
        try:
            return vote_of(self.ask(pictures, question)), ""
        except Exception as error:  # whatever a server or a model of others raises, a full graphics card included
            told = (str(error).strip().splitlines() or [""])[0][:REASON_LETTERS]
            return "", f"{type(error).__name__}: {told}".removesuffix(": ")


class OpenAiCompatible:
    """Asks a server with OpenAI's chat completions (vLLM, llama.cpp, Ollama and others have them).

    Args:
        url: up to and with "/v1".
        model: its name there.
        api_key: sent as "Authorization: Bearer …".
        timeout_s: for an answer.
        temperature: of its sampling; with 0 all votes of a judge are likely to be the same.
    """

    def __init__(
        self, url: str, model: str, *, api_key: str | None = None, timeout_s: float = 60.0, temperature: float = 0.7
    ) -> None:
        if not url.startswith(("http://", "https://")) or timeout_s <= 0:
            raise VapError(
                f"url must begin with http:// or https:// and timeout_s be above 0, got '{url}', {timeout_s}."
            )
        self.url, self.model, self._api_key = url.rstrip("/"), model, api_key
        self.timeout_s, self.temperature = timeout_s, temperature

    @property
    def settings(self) -> Mapping[str, Any]:
        """Whom it asks, and how."""
        return {"url": self.url, "model": self.model, "temperature": self.temperature}

    def __call__(self, pictures: Sequence[UInt8[Array, "H W 3"]], question: str) -> str:
        """Return the answer, "" where the server refuses to give one. Raises OSError where it cannot be reached."""
        content: list[dict[str, object]] = [{"type": "text", "text": question}]
        content += [{"type": "image_url", "image_url": {"url": _png_uri(picture)}} for picture in pictures]
        asked = {
            "model": self.model, "messages": [{"role": "user", "content": content}], "temperature": self.temperature,
            "max_tokens": 16,
        }  # fmt: skip
        headers = {"Content-Type": "application/json"}
        if self._api_key:
            headers["Authorization"] = f"Bearer {self._api_key}"
        request = urllib.request.Request(f"{self.url}/chat/completions", json.dumps(asked).encode(), headers)
        with urllib.request.urlopen(request, timeout=self.timeout_s) as response:
            body = response.read()
        try:
            message = json.loads(body)["choices"][0]["message"]
            return "" if message.get("refusal") else str(message["content"] or "")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            return ""


def _png_uri(picture: UInt8[Array, "H W 3"]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
