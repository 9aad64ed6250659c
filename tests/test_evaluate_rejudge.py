"""Other judges of kept episodes: pictures, people, models and functions; in the library and on the command line."""

import csv
import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vap_gym
from vap_gym.cli import main
from vap_gym.data import EpisodeSet
from vap_gym.errors import VapError
from vap_gym.evaluate.policies_judges import HumanLabels, OpenAiCompatible, ShownEpisode, Verdict, VlmJudge
from vap_gym.evaluate.policies_judges_named import named_judge
from vap_gym.evaluate.policies_rejudge import labels_to_fill_in, rejudged
from vap_gym.evaluate.policies_report import Report
from vap_gym.policies import Conventions, FunctionPolicy

ORACLE = "VAP-DROID-Oracle-v0"
VELOCITY = Conventions(action_mode="cartesian_velocity")


def still(seen: dict, words: str) -> np.ndarray:
    """A policy that never moves."""
    return np.zeros(7)


def breaks(seen: dict, words: str) -> np.ndarray:
    """A policy that breaks at once."""
    raise KeyError("broken")


POLICIES = {"still": FunctionPolicy(still, VELOCITY), "broken": FunctionPolicy(breaks, VELOCITY)}


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Path]:
    """Two policies, one of which breaks, tried from two starts."""
    out = tmp_path_factory.mktemp("evaluated")
    settings = {"task": "reach", "steps": 2, "act_timeout_s": None}
    return vap_gym.evaluate(POLICIES, ORACLE, 2, (0,), out=out, **settings), out


@pytest.fixture
def folder(evaluated: tuple[Report, Path], tmp_path: Path) -> Path:
    """A copy of the evaluation, to write into."""
    return Path(shutil.copytree(evaluated[1], tmp_path / "evaluated"))


def test_the_package_is_called_as_evaluate_policies_is(evaluated: tuple[Report, Path]) -> None:
    report, out = evaluated
    assert callable(vap_gym.evaluate)
    assert [len(rows) for rows in report.rows.values()] == [2, 2]
    assert Report.load(out) == report


def test_a_judge_is_shown_what_was_kept_and_what_broke_stays_a_failure(evaluated: tuple[Report, Path]) -> None:
    report, out = evaluated
    seen: list[ShownEpisode] = []

    def judge(episode: ShownEpisode) -> Verdict:
        seen.append(episode)
        return Verdict(verdict="success" if len(seen) == 1 else "unknown", reason="because")

    found = rejudged(report, out, judge)
    kept = EpisodeSet(out / "episodes" / "still")
    assert [(one.policy, one.start) for one in seen] == [("still", start) for start in report.starts]
    assert all(np.array_equal(one.frames, kept[i].frames["front"]) for i, one in enumerate(seen))
    assert seen[0].task == kept[0].task
    assert [row.verdict for row in found.rows["still"] if row] == ["success", "unknown"]
    assert found.rows["broken"] == report.rows["broken"]
    assert (found.about["judge"], report.about["judge"]) == ("judge", "")
    with pytest.raises(VapError, match=r"must say one of success, failure, unknown, got 'maybe'"):
        rejudged(report, out, lambda episode: Verdict(verdict="maybe", reason=""))


def test_episodes_that_are_gone_are_told(evaluated: tuple[Report, Path], folder: Path) -> None:
    shutil.rmtree(folder / "episodes" / "still")
    with pytest.raises(VapError, match=r"still"):
        rejudged(evaluated[0], folder, lambda episode: Verdict(verdict="success", reason=""))


def test_an_evaluation_takes_any_judge_and_plays_nothing_anew(folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (folder / "episodes").rglob("*.mp4")}

    def judge(episode: ShownEpisode) -> Verdict:
        return Verdict(verdict="success", reason="all is well")

    found = vap_gym.evaluate(
        POLICIES, ORACLE, 2, out=folder, task="reach", steps=2, act_timeout_s=None, judge=judge, clips=0
    )
    assert found.rate("still").value == 1
    assert Report.load(folder) == found
    assert "the judge &#x27;judge&#x27;" in (folder / "report.html").read_text()
    assert {path: path.stat().st_mtime_ns for path in (folder / "episodes").rglob("*.mp4")} == before


# --- people ---


def test_labels_are_made_filled_in_and_read(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "labels.csv"
    assert main(["judge", str(folder), f"labels:{path}"]) == 0
    assert "2 episodes to label" in capsys.readouterr().out
    assert not (folder / "judged").exists()
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    rows[0]["verdict"] = "yes"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    assert main(["judge", str(folder), f"labels:{path}", "--clips", "1", "--json"]) == 0
    shown = capsys.readouterr()
    assert "| still " in shown.err
    assert [row["verdict"] for row in json.loads(shown.out)["rows"]["still"]] == ["success", "unknown"]
    found = Report.load(folder / "judged" / "labels")
    assert [row.verdict for row in found.rows["still"] if row] == ["success", "unknown"]
    page = (folder / "judged" / "labels" / "report.html").read_text()
    assert page.count("<video") == 1
    assert "HumanLabels" in page
    with pytest.raises(VapError, match=r"is there already, maybe with labels"):
        labels_to_fill_in(found, path)


# --- goal pictures ---


def test_goal_pictures_are_read_from_a_folder(
    evaluated: tuple[Report, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report, out = evaluated
    kept = EpisodeSet(out / "episodes" / "still")
    goals = tmp_path / "goals"
    goals.mkdir()
    Image.fromarray(kept[0].frames["front"][-1]).save(goals / f"{report.starts[0]}.png")
    found = rejudged(report, out, named_judge(f"goals:{goals},most_grey=2"))
    assert [row.verdict for row in found.rows["still"] if row] == ["success", "unknown"]
    words = ["evaluate", "noop", "--env", ORACLE, "--task", "reach", "--starts", "1", "--steps", "1"]
    words += ["--out", str(tmp_path / "noop"), "--judge", f"goals:{goals},most_grey=255"]
    assert main(words) == 0
    assert Report.load(tmp_path / "noop").rate("noop").value == 1
    capsys.readouterr()
    (goals / "last.png").write_bytes(b"")
    told = {
        f"goals:{goals}": "Add ,most_grey=8",
        f"goals:{goals},most_grey=2": "named by its start's number",
        f"goals:{tmp_path},most_grey=2": "No goal pictures in",
        f"goals:{goals},most_gray=2": "Did you mean 'most_grey'?",
        "golas:x": "Did you mean 'goals'?",
        "labels:": "needs to know where to look",
        "vlm:http://127.0.0.1:1/v1": "Add ,model=NAME",
        "vlm:http://127.0.0.1:1/v1,model=m,key_from=VAP_NO_SUCH_KEY": "Export it first",
        "python:nowhere:judge": "No judge at 'python:nowhere:judge'",
        "python:math:pi": "must be a function from an episode to a Verdict, got a float",
    }
    for text, reason in told.items():
        assert main(["judge", str(out), text]) == 2
        assert reason in capsys.readouterr().err
    (goals / "last.png").rename(goals / "7.png")
    with pytest.raises(VapError, match=r"7\.png' must be a picture"):
        named_judge(f"goals:{goals},most_grey=2")


# --- models ---


class Chat:
    """A server with chat completions, that says what it is told to, and counts."""

    def __init__(self) -> None:
        self.says, self.asked = "yes", 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                outer.asked += 1
                body = json.dumps({"choices": [{"message": {"content": outer.says}}]}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *told: object) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"


@pytest.fixture
def chat() -> Iterator[Chat]:
    """A running chat server."""
    found = Chat()
    threading.Thread(target=found.server.serve_forever, daemon=True).start()
    yield found
    found.server.shutdown()
    found.server.server_close()


def test_what_a_model_could_tell_is_not_asked_again(chat: Chat, folder: Path) -> None:
    words = ["judge", str(folder), f"vlm:{chat.url},model=m,votes=2,timeout_s=5", "--clips", "0"]
    chat.says = "I would rather not say."
    assert main(words) == 0
    assert chat.asked == 4
    report = Report.load(folder / "judged" / "vlm")
    assert [row.verdict for row in report.rows["still"] if row] == ["unknown", "unknown"]
    chat.says = "Yes."
    assert main(words) == 0  # what nobody could tell is asked again
    assert chat.asked == 8
    first = (folder / "judged" / "vlm" / "report.json").read_bytes()
    assert Report.load(folder / "judged" / "vlm").rate("still").value == 1
    chat.says = "No."
    assert main(words) == 0
    assert chat.asked == 8
    assert (folder / "judged" / "vlm" / "report.json").read_bytes() == first
    assert main([*words[:2], f"vlm:{chat.url},model=other,votes=2", *words[3:]]) == 0  # another model is asked
    assert chat.asked == 12
    assert Report.load(folder / "judged" / "vlm").rate("still").value == 0


def test_a_stopped_judging_goes_on_where_it_was(chat: Chat, evaluated: tuple[Report, Path], folder: Path) -> None:
    class Stopped(OpenAiCompatible):
        def __call__(self, pictures, question: str) -> str:
            if chat.asked == 3:
                raise KeyboardInterrupt
            return super().__call__(pictures, question)

    with pytest.raises(KeyboardInterrupt):
        rejudged(evaluated[0], folder, VlmJudge(Stopped(chat.url, "m"), votes=2))
    lines = next((folder / "verdicts").iterdir()).read_text().splitlines()
    assert len(lines) == 2
    found = rejudged(evaluated[0], folder, VlmJudge(OpenAiCompatible(chat.url, "m"), votes=2))
    assert chat.asked == 5
    assert found.rate("still").value == 1


def test_why_verdicts_are_unknown_is_said_in_a_line(
    evaluated: tuple[Report, Path], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def ask(pictures, question: str) -> str:
        raise RuntimeError("CUDA out of memory")

    found = rejudged(evaluated[0], folder, VlmJudge(ask, votes=1))
    assert [row.verdict for row in found.rows["still"] if row] == ["unknown", "unknown"]
    told = "2 of 2 verdicts are unknown: 0 yes, 0 no, 1 no answer; 1 failed: RuntimeError: CUDA out of memory (2×)"
    assert told in capsys.readouterr().err


def test_judges_that_nobody_knows_by_their_settings_are_asked_each_time(
    evaluated: tuple[Report, Path], folder: Path
) -> None:
    asked = []

    def ask(pictures, question: str) -> str:
        asked.append(question)
        return "no"

    for _ in range(2):
        rejudged(evaluated[0], folder, VlmJudge(ask, votes=1))
    assert len(asked) == 4
    assert not (folder / "verdicts").exists()
    labels_to_fill_in(evaluated[0], folder / "labels.csv")
    rejudged(evaluated[0], folder, HumanLabels(folder / "labels.csv"))
    assert not (folder / "verdicts").exists()
