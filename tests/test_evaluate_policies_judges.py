"""Judges of whole episodes: what each can tell, and that what it cannot is unknown."""

import base64
import io
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from vap_gym.errors import VapError
from vap_gym.evaluate.policies_judges import (
    EpisodeJudge,
    GoalPictures,
    HumanLabels,
    OpenAiCompatible,
    ShownEpisode,
    VlmJudge,
    write_labels,
)
from vap_gym.evaluate.policies_votes import vote_of


def episode(*greys: int, policy: str = "p", start: int = 0, seed: int = 0) -> ShownEpisode:
    """An episode of frames of these greys."""
    frames = np.stack([np.full((8, 12, 3), grey, np.uint8) for grey in greys])
    return ShownEpisode(frames=frames, task="push the red box", policy=policy, start=start, seed=seed)


# --- goal pictures ---


def test_an_episode_that_comes_to_look_like_its_goal_has_succeeded() -> None:
    judge = GoalPictures({0: np.full((8, 12, 3), 100, np.uint8)}, most_grey=5.0, last=2)
    assert isinstance(judge, EpisodeJudge)
    assert judge(episode(0, 50, 103, 90)).verdict == "success"
    assert judge(episode(100, 50, 90)).verdict == "failure"  # it was there, long before its end
    assert judge(episode(0, 104)).reason == "4.0 grey levels from the goal picture"


def test_pixels_outside_the_mask_do_not_matter() -> None:
    mask = np.zeros((8, 12), bool)
    mask[:4] = True
    seen = episode(0, 0)
    seen.frames[:, :4] = 100
    goal = {0: np.full((8, 12, 3), 100, np.uint8)}
    assert GoalPictures(goal, most_grey=1.0, mask=mask)(seen).verdict == "success"
    assert GoalPictures(goal, most_grey=1.0)(seen).verdict == "failure"


def test_without_a_goal_or_with_one_of_another_size_nobody_knows() -> None:
    judge = GoalPictures({1: np.zeros((4, 4, 3), np.uint8)}, most_grey=5.0)
    assert judge(episode(0)).verdict == "unknown"
    assert judge(episode(0, start=1)).verdict == "unknown"
    with pytest.raises(VapError, match=r"most_grey must be above 0"):
        GoalPictures({}, most_grey=0.0)


# --- people ---


def test_a_file_is_made_to_fill_in_and_read_when_it_is(tmp_path) -> None:
    path = tmp_path / "labels.csv"
    episodes = [("a, the first", start, 7, 'push "it"') for start in range(4)]
    assert write_labels(path, episodes) == 4
    assert HumanLabels(path)(episode(0, policy="a, the first", start=1, seed=7)).verdict == "unknown"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], *(line + word for line, word in zip(lines[1:], ["success", " F ", "?", ""]))]))
    judge = HumanLabels(path)
    found = [judge(episode(0, policy="a, the first", start=start, seed=7)).verdict for start in range(5)]
    assert found == ["success", "failure", "unknown", "unknown", "unknown"]
    assert judge(episode(0, policy="b", start=0, seed=7)).verdict == "unknown"
    with pytest.raises(VapError, match=r"is there already, maybe with labels in it"):
        write_labels(path, episodes)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("policy,start,seed,verdict\na,0,0,maybe\n", r"line 2: a verdict is success, failure or empty, got 'maybe'"),
        ("policy,start,seed,verdict\na,x,0,s\n", r"line 2: start and seed must be whole numbers, got 'x' and '0'"),
        ("policy,start,seed,verdict\na,0,0,s\na,0,0,f\n", r"line 3: a, start 0, seed 0 has a label already"),
        ("policy,start\na,0\n", r"it lacks seed, verdict"),
        ("", r"it lacks policy, start, seed, verdict"),
    ],
)
def test_labels_that_cannot_be_read_are_told_with_their_line(text: str, told: str, tmp_path) -> None:
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(VapError, match=told):
        HumanLabels(tmp_path / "labels.csv")


def test_missing_labels_are_told(tmp_path) -> None:
    with pytest.raises(VapError, match=r"No labels at"):
        HumanLabels(tmp_path / "none.csv")


# --- models ---


@pytest.mark.parametrize(
    ("answer", "vote"),
    [
        ("Yes", "yes"), ("no.", "no"), ("Yes, the box is on its goal.", "yes"), ("The answer is: NO", "no"),
        ("", ""), ("I cannot help with that.", ""), ("Yes and no", ""), ("It is not known", ""), ("nothing", ""),
        ("Looking at the last picture, yes it is there", ""), ("**No**", "no"), ("“Yes.”", "yes"),
        ("Answer: no.", "no"), ("<answer>no</answer>", "no"),
        ("No - the box has not moved.", "no"), ("No\nThe box has not moved.", "no"), ("no the box is not there", "no"),
        ("No, the robot cannot reach the box.", "no"), ("No, the gripper was unable to lift it.", "no"),
        ("The box has not moved. No.", "no"), ("It is 2 cm short, so no", "no"), ("It is there, thus: yes!", "yes"),
        ("Is the task solved? Yes", "yes"), ("The box is next to the goal, so the answer is no.", "no"),
        ("The sign reads no", ""), ("No box is to be seen.", ""), ("no-one", ""),
    ],
)  # fmt: skip
def test_only_clear_answers_are_votes(answer: str, vote: str) -> None:
    assert vote_of(answer) == vote


@pytest.mark.parametrize(
    "answer",
    [
        "No, I cannot help with that request.", "No idea.", "No comment", "No way to tell.", "No pictures were given.",
        "I cannot tell from these pictures, so no", "Sorry, no", "Sorry, no.", "No, sorry, I can’t assist with that.",
        "No, I'm unable to determine that.", "No. As an AI, I do not judge robots.", "No, it is not clear.",
        "No one knows", "No, I don't know.", "I'm not sure. Yes", "Yes, but it is hard to tell.",
        "The pictures are not clear enough. The answer is: no", "It cannot be determined. No.", "Unclear; I'd say no",
        "Yes, I would rather not say.", "no answer", "No, there is not enough information.",
    ],
)  # fmt: skip
def test_refusals_and_not_knowing_are_no_votes(answer: str) -> None:
    assert vote_of(answer) == ""


@pytest.mark.parametrize(
    ("answers", "verdict"),
    [
        (["yes", "no", "yes"], "success"),
        (["no", "I would rather not say", "no"], "failure"),
        (["yes", "no", "hm"], "unknown"),
        (["hm", "hm", "hm"], "unknown"),
        ([TimeoutError("late"), "yes", ConnectionError("gone")], "success"),
        ([TimeoutError("late")] * 3, "unknown"),
        ([RuntimeError("CUDA out of memory"), "no", KeyError("content")], "failure"),
        ([MemoryError(), RuntimeError("CUDA out of memory"), ValueError("a token")], "unknown"),
    ],
)
def test_the_majority_of_votes_decides_and_silence_is_no_failure(answers: list, verdict: str) -> None:
    left = iter(answers)

    def ask(pictures, question: str) -> str:
        answer = next(left)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert VlmJudge(ask)(episode(1, 2, 3)).verdict == verdict


def test_errors_of_a_model_are_told_and_whoever_stops_a_judging_stops_it() -> None:
    def ask(pictures, question: str) -> str:
        raise RuntimeError("CUDA out of memory\nTried to allocate 2 GiB")

    told = VlmJudge(ask, votes=2)(episode(1)).reason
    assert told == "0 yes, 0 no, 2 no answer; 2 failed: RuntimeError: CUDA out of memory"

    def stopped(pictures, question: str) -> str:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        VlmJudge(stopped)(episode(1))


def test_a_model_is_shown_the_whole_episode_and_its_end() -> None:
    asked = []

    def ask(pictures, question: str) -> str:
        asked.append(([int(picture.max()) for picture in pictures], question))
        return "yes"

    VlmJudge(ask, votes=1, pictures=3)(episode(*range(11)))
    VlmJudge(ask, votes=1, pictures=1)(episode(*range(11)))
    VlmJudge(ask, votes=1, pictures=4)(episode(5))
    assert [greys for greys, _ in asked] == [[0, 5, 10], [10], [5]]
    assert "Its task was: push the red box." in asked[0][1]
    with pytest.raises(VapError, match=r"hold '\{task\}'"):
        VlmJudge(ask, question="Is it solved?")


@contextmanager
def chat_server(answer: Callable[[dict], tuple[int, object]]) -> Iterator[str]:
    """A server with chat completions. Yields its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, value = answer({**content, "path": self.path, "key": self.headers.get("Authorization")})
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *told: object) -> None:
            """Say nothing."""

    class Server(ThreadingHTTPServer):
        def handle_error(self, *told: object) -> None:
            """Clients that have left are no news."""

    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
        server.shutdown()


def saying(text: str | None, **more: object) -> dict:
    """A completion."""
    return {"choices": [{"message": {"role": "assistant", "content": text, **more}}]}


def test_a_chat_server_gets_pictures_and_question() -> None:
    asked = []

    def answer(content: dict) -> tuple[int, object]:
        asked.append(content)
        return 200, saying("Yes.")

    with chat_server(answer) as url:
        judge = VlmJudge(OpenAiCompatible(url, "some-model", api_key="secret"), votes=2, pictures=2)
        assert judge(episode(10, 20)).verdict == "success"
    assert len(asked) == 2
    assert (asked[0]["path"], asked[0]["model"], asked[0]["key"]) == (
        "/v1/chat/completions",
        "some-model",
        "Bearer secret",
    )
    text, *pictures = asked[0]["messages"][0]["content"]
    assert "push the red box" in text["text"]
    greys = []
    for picture in pictures:
        kind, data = picture["image_url"]["url"].split(",", 1)
        assert kind == "data:image/png;base64"
        greys.append(int(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))).max()))
    assert greys == [10, 20]


@pytest.mark.parametrize(
    ("status", "value"),
    [
        (200, saying(None)), (200, saying("Yes", refusal="I cannot judge robots.")), (200, {"choices": []}),
        (200, {"error": "overloaded"}), (200, [1]), (500, {}), (401, {"error": "no key"}),
    ],
)  # fmt: skip
def test_what_a_chat_server_does_not_answer_is_unknown(status: int, value: object) -> None:
    with chat_server(lambda content: (status, value)) as url:
        assert VlmJudge(OpenAiCompatible(url, "m"), votes=2)(episode(1)).verdict == "unknown"


def test_a_chat_server_that_is_late_or_gone_is_unknown() -> None:
    free = threading.Event()

    def answer(content: dict) -> tuple[int, object]:
        free.wait(20)
        return 200, saying("no")

    with chat_server(answer) as url:
        assert VlmJudge(OpenAiCompatible(url, "m", timeout_s=0.3), votes=1)(episode(1)).verdict == "unknown"
        free.set()
    assert VlmJudge(OpenAiCompatible(url, "m", timeout_s=1.0), votes=1)(episode(1)).verdict == "unknown"
    with pytest.raises(VapError, match=r"must begin with http"):
        OpenAiCompatible("localhost", "m")
