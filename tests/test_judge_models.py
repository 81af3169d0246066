"""Vision-language models and servers as judges: tiny random models, and a server on this machine."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import math
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import torch
from PIL import Image

from rbctl.errors import InputError
from rbctl.files import write_png
from rbctl.plugins.eval.case import Case, CaseObject, Picture
from rbctl.plugins.eval.features import Digests
from rbctl.plugins.eval.judges.config import JudgeOptions
from rbctl.plugins.eval.judges.error import corrected, measure
from rbctl.plugins.eval.judges.judge import AnswerStore, Item
from rbctl.plugins.eval.judges.questions import Question, preferred, questions
from rbctl.plugins.eval.judges.server import ServerJudge
from rbctl.plugins.eval.judges.vision_language import VisionLanguageJudge
from rbctl.vision_language import VisionLanguage
from tests.commands import call, refused
from tests.tiny_models import tiny_llava

CPU = torch.device("cpu")
WORDS = ("Is", "the", "cat", "dog", "picture", ".", "?")


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llava(tmp_path_factory.mktemp("models") / "llava", *WORDS, "yes", "no", "Yes", "No")


@pytest.fixture
def items(tmp_path: Path) -> list[Item]:
    rng = np.random.default_rng(0)
    for name in ("cat", "dog", "a", "b"):
        write_png(tmp_path / f"{name}.png", Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)))
    objects = tuple(CaseObject(name, tmp_path / f"{name}.png") for name in ("cat", "dog"))
    case = Case("c", "A cat is riding a dog.", objects)
    picture = Picture("run", tmp_path / "a.png", case)
    return [(picture, question) for question in (*questions(case), preferred(case, tmp_path / "b.png"))]


def test_many_questions_at_once_are_answered_as_one_by_one(llava: Path, items: list[Item]) -> None:
    judge = VisionLanguageJudge(llava, CPU)
    together = [answer.yes for answer in judge(items)]
    alone = [answer.yes for item in items for answer in judge([item])]
    assert None not in together
    assert together == pytest.approx(alone, abs=1e-5)
    assert len({round(yes or 0, 6) for yes in together}) > 3  # it looks at the question
    assert judge.name == "llava"


def test_the_second_picture_is_seen(llava: Path, items: list[Item], tmp_path: Path) -> None:
    judge = VisionLanguageJudge(llava, CPU)
    (before,) = judge(items[-1:])
    write_png(tmp_path / "b.png", Image.new("RGB", (32, 32), "white"))
    (after,) = judge(items[-1:])
    assert before.yes != after.yes


def test_yes_and_no_share_the_probability(llava: Path) -> None:
    model = VisionLanguage(llava, CPU)
    image = Image.new("RGB", (32, 32), "red")
    inputs = model._asked([[image]], ["Is the cat the dog ?"])
    with torch.no_grad():
        row = model.model(**inputs).logits[0, -1].softmax(-1)
    ids = {word: model.processor.tokenizer.convert_tokens_to_ids(word) for word in ("yes", "Yes", "no", "No")}
    yes, no = (float(row[ids[a]] + row[ids[b]]) for a, b in (("yes", "Yes"), ("no", "No")))
    ((said, _),) = model.yes([[image]], ["Is the cat the dog ?"])
    assert said == pytest.approx(yes / (yes + no), abs=1e-6)


@pytest.mark.parametrize(("words", "yes"), [("Yes, the cat", 1.0), ("no", 0.0), ("the cat", None), ("", None)])
def test_a_model_without_such_tokens_is_taken_by_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, yes: float | None
) -> None:
    model = VisionLanguage(tiny_llava(tmp_path / "silent", *WORDS), CPU)
    monkeypatch.setattr(model, "_words", lambda _: words)
    assert model.yes([[Image.new("RGB", (32, 32))]], ["Is the cat ?"]) == [(yes, words)]


def test_a_tiny_random_model_is_told_to_be_worthless(llava: Path, tmp_path: Path) -> None:
    flags = ["--relations", "ride", "--cases", 3, "--output", tmp_path / "check", "--answers", tmp_path / "answers"]
    result = call("eval", "judge-check", "--judge", f"vlm={llava}", *flags)
    assert result.exit_code == 0, result.output
    rows = [line for line in result.stdout.splitlines() if line.startswith("llava")]
    assert len(rows) == 8
    assert sum(row.endswith("worthless") for row in rows) >= 7


def test_a_processor_that_takes_no_batch_is_asked_one_by_one(llava: Path) -> None:
    model, images = VisionLanguage(llava, CPU), [[Image.new("RGB", (32, 32), color)] for color in ("red", "blue")]
    asked = ["Is the cat ?", "Is the dog the cat ?"]
    together = [yes for yes, _ in model.yes(images, asked)]
    model.processor.tokenizer.pad_token = None
    assert [yes for yes, _ in model.yes(images, asked)] == pytest.approx(together, abs=1e-5)


def test_beams_of_a_folder_are_left_out(llava: Path) -> None:
    model, asked = VisionLanguage(llava, CPU), ([[Image.new("RGB", (32, 32))]] * 2, ["Is the cat ?"] * 2)
    before = model.yes(*asked)
    model.model.generation_config.num_beams = 3
    assert model.yes(*asked) == before


def test_a_question_that_a_model_cannot_take_is_one_line(llava: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = VisionLanguage(llava, CPU)
    monkeypatch.setattr(model.processor, "image_token", "")  # as one that has no place for a picture
    with pytest.raises(InputError, match=r"llava: cannot be asked with 2 pictures \("):
        model.yes([[Image.new("RGB", (32, 32))] * 2], ["Is the cat ?"])


def test_a_folder_that_holds_no_model_is_one_line(tmp_path: Path) -> None:
    refused(call("eval", "judge-check", "--judge", f"vlm={tmp_path}", "--output", tmp_path / "out"), str(tmp_path))
    refused(call("eval", "judge-check", "--judge", f"vlm={tmp_path / 'none'}", "--output", tmp_path / "out"), "none")


# --- a server -------------------------------------------------------------------------------------------------------

KEY = "sk-test-THISMUSTNEVERBESEEN1234567890"
Act = Callable[[BaseHTTPRequestHandler, dict[str, Any]], None]


@dataclass
class API:
    """A server that answers like chat completions; ``script`` holds what it does first, then ``then``."""

    then: Act
    script: list[Act] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)
    paid: int = 0  # answers that were sent whole


def reply(handler: BaseHTTPRequestHandler, status: int, content: object) -> None:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    handler.send_response(status)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def says(text: str, logprobs: dict[str, float] | None = None, **changes: Any) -> Act:
    def act(handler: BaseHTTPRequestHandler, asked: dict[str, Any]) -> None:
        top = [{"token": token, "logprob": math.log(p)} for token, p in (logprobs or {}).items()]
        told = {"content": [{"token": text, "top_logprobs": top}]} if logprobs and asked.get("logprobs") else None
        choice = {"message": {"content": text, **changes}, "logprobs": told, "finish_reason": "stop"}
        usage = {"prompt_tokens": 1000, "completion_tokens": 10}
        handler.api.paid += 1  # type: ignore[attr-defined]
        reply(handler, 200, {"choices": [choice], "usage": usage})

    return act


def fails(status: int, code: str = "", message: str = "no") -> Act:
    return lambda handler, _: reply(handler, status, {"error": {"message": message, "code": code}})


def half(handler: BaseHTTPRequestHandler, _: dict[str, Any]) -> None:
    reply(handler, 200, b'{"choices": [{"mess')


def choice(**parts: Any) -> Act:
    """An answer that is paid for, with parts of its choice as some server has them."""

    def act(handler: BaseHTTPRequestHandler, _: dict[str, Any]) -> None:
        handler.api.paid += 1  # type: ignore[attr-defined]
        reply(handler, 200, {"choices": [{"message": {"content": "Yes"}, "finish_reason": "stop", **parts}]})

    return act


def cut(handler: BaseHTTPRequestHandler, _: dict[str, Any]) -> None:
    """The connection ends before the answer does."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices"')
    handler.close_connection = True


def slow(handler: BaseHTTPRequestHandler, asked: dict[str, Any]) -> None:
    time.sleep(1.5)
    with contextlib.suppress(OSError):
        half(handler, asked)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    api: API

    def do_POST(self) -> None:
        assert self.headers["Authorization"] == f"Bearer {KEY}"
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.api.asked.append(asked)
        (self.api.script.pop(0) if self.api.script else self.api.then)(self, asked)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[API]:
    """The server, running; at the end the key must stand in no file."""
    served = API(says("Yes", {"Yes": 0.6, " yes": 0.2, "No": 0.1, "Maybe": 0.1}))
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"api": served}))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{server.server_port}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    monkeypatch.setattr("openai._base_client.MAX_RETRY_DELAY", 0.02)
    yield served
    server.shutdown()
    server.server_close()
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]


def store(tmp_path: Path, **options: Any) -> AnswerStore:
    judge = ServerJudge("gpt", JudgeOptions(judge_price="2,10", **options), tmp_path / "answers")
    return AnswerStore(tmp_path / "answers", judge, Digests())


def test_the_probability_is_that_of_the_first_token(api: API, items: list[Item], tmp_path: Path) -> None:
    answers = store(tmp_path)(items)
    assert [answer.yes for answer in answers] == pytest.approx([0.8 / 0.9] * len(items))
    assert len(api.asked) == len(items)
    pictures = [part for part in api.asked[0]["messages"][0]["content"] if part["type"] == "image_url"]
    sent = Image.open(io.BytesIO(base64.b64decode(pictures[0]["image_url"]["url"].partition(",")[2])), formats=["JPEG"])
    assert sent.size == (32, 32)
    beside = [sum(part["type"] == "image_url" for part in asked["messages"][0]["content"]) for asked in api.asked]
    assert sorted(set(beside)) == [1, 2]
    assert store(tmp_path)(items) == answers
    assert len(api.asked) == len(items)  # nothing is asked twice


def test_a_server_without_probabilities_is_asked_several_times(api: API, items: list[Item], tmp_path: Path) -> None:
    words = iter(["Yes.", "no", "Yes", "I cannot tell"] * 99)
    api.script = [fails(400, message="logprobs are not supported")]
    api.then = lambda handler, asked: says(next(words))(handler, asked)
    (answer,) = store(tmp_path, judge_samples=4)(items[:1])
    assert answer.yes == pytest.approx(2 / 3)  # what cannot be read is not known, and no half point
    assert ["logprobs" in asked for asked in api.asked] == [True, False, False, False, False]


def test_refusals_and_words_that_are_neither_are_not_known(api: API, items: list[Item], tmp_path: Path) -> None:
    api.script = [
        says("", refusal="I cannot look at this."),
        fails(400, "content_filter", "blocked"),
        says("It depends."),
    ]
    first, second, third = store(tmp_path)(items[:3])
    assert (first.yes, first.text) == (None, "refused: I cannot look at this.")
    assert (second.yes, second.text) == (None, "refused: blocked")
    assert (third.yes, third.text) == (None, "It depends.")
    assert store(tmp_path)(items[:3]) == [first, second, third]  # a refusal is an answer too
    assert len(api.asked) == 3


def test_limits_and_broken_answers_are_borne(api: API, items: list[Item], tmp_path: Path) -> None:
    api.script = [fails(429), fails(500), half, lambda h, _: reply(h, 200, {"choices": []}), says("no")]
    assert [answer.yes for answer in store(tmp_path)(items[:1])] == [0.0]
    assert len(api.asked) == 5


@pytest.mark.parametrize(
    "broken",
    [
        cut,
        slow,
        lambda h, _: reply(h, 200, b"[" * 100_000),
        lambda h, _: reply(h, 200, b'{"choices": "' + b"x" * 300_000 + b'"}'),
        lambda h, _: reply(h, 200, b"\xff\x00 no JSON"),
        lambda h, _: reply(h, 200, {"choices": [{"message": "Yes"}]}),
        lambda h, _: reply(h, 200, {"choices": [{"message": {"content": [1]}}]}),
        fails(408),
        fails(503),
    ],
)
def test_what_breaks_an_answer_is_asked_again(
    api: API, items: list[Item], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: Act
) -> None:
    monkeypatch.setattr("rbctl.openai_server._LONGEST_ANSWER", 200_000)
    monkeypatch.setattr("rbctl.plugins.eval.judges.server._TIMEOUT", 0.5)
    api.script = [broken, api.then]
    assert [answer.yes for answer in store(tmp_path)(items[:1])] == pytest.approx([0.8 / 0.9])
    assert (len(api.asked), api.paid) == (2, 1)


@pytest.mark.parametrize(
    "logprobs",
    [
        {"content": None},
        {"content": []},
        {"tokens": ["Yes"], "token_logprobs": [-0.1]},
        {"content": [{"token": "Yes", "logprob": -0.1}]},
        {"content": [{"top_logprobs": [{"token": "Yes", "logprob": None}]}]},
        {"content": [{"top_logprobs": [{"token": "Yes", "logprob": -(10**400)}]}]},
        [1],
        "Yes",
    ],
)
def test_probabilities_in_another_form_leave_the_words(
    api: API, items: list[Item], tmp_path: Path, logprobs: object
) -> None:
    api.then = choice(logprobs=logprobs)
    assert [answer.yes for answer in store(tmp_path)(items[:1])] == [1.0]
    assert api.paid == 1


def test_an_answer_of_thoughts_alone_is_not_known(api: API, items: list[Item], tmp_path: Path) -> None:
    api.then = choice(message={"content": None, "reasoning_content": "Well,"}, finish_reason="length")
    (answer,) = store(tmp_path)(items[:1])
    assert (answer.yes, answer.text) == (None, "no words (length)")
    assert api.paid == 1


def test_samples_are_paid_once(api: API, items: list[Item], tmp_path: Path) -> None:
    words = iter(["I cannot tell", "Yes", "no", "Yes"])
    api.script = [lambda h, asked: says(next(words))(h, asked) for _ in range(3)]
    api.then = fails(503)
    with pytest.raises(InputError, match="no answer"):
        store(tmp_path, judge_samples=4)(items[:1])
    assert api.paid == 3
    api.then = lambda h, asked: says(next(words))(h, asked)
    (answer,) = store(tmp_path, judge_samples=4)(items[:1])
    assert answer.yes == pytest.approx(2 / 3)  # also when the first sample is neither yes nor no
    assert api.paid == 4
    assert not [*(tmp_path / "answers").rglob("drawn/*")]


@pytest.mark.parametrize(
    ("act", "told"),
    [
        (fails(503), "no answer after 5 tries"),
        (fails(401, message=f"wrong key {KEY}"), "OPENAI_API_KEY: 127.0.0.1 refuses it"),
        (fails(404, message="no such model"), "no such model (HTTP 404)"),
        (fails(429, "insufficient_quota", "pay"), "the quota has ended (pay)"),
        (half, "5 answers could not be read, the last one: no JSON"),
    ],
)
def test_an_end_keeps_what_was_paid(api: API, items: list[Item], tmp_path: Path, act: Act, told: str) -> None:
    then, api.script, api.then = api.then, [api.then] * 5, act
    with pytest.raises(InputError) as caught:
        store(tmp_path)(items)
    assert told in str(caught.value)
    assert KEY not in str(caught.value)
    assert api.paid == 5
    api.then = then
    assert None not in [answer.yes for answer in store(tmp_path)(items)]
    assert api.paid == len(items)  # nothing was paid twice


def test_the_budget_ends_it_and_a_larger_one_goes_on(api: API, items: list[Item], tmp_path: Path) -> None:
    each = (1000 * 2 + 10 * 10) / 1e6
    with pytest.raises(InputError, match="--judge-budget"):
        store(tmp_path, judge_budget=each * 4.5)(items)
    assert api.paid == 4
    with pytest.raises(InputError, match="spent on 4 answers"):
        store(tmp_path, judge_budget=each * 4.5)(items)
    assert api.paid == 4
    assert len(store(tmp_path)(items)) == len(items)
    assert api.paid == len(items)


def test_answers_that_do_not_say_what_they_took_count_too(api: API, items: list[Item], tmp_path: Path) -> None:
    api.then = choice()
    with pytest.raises(InputError, match=r"--judge-budget 0\.02: \$0\.0190 spent on 2 answers"):
        store(tmp_path, judge_budget=0.02)(items)
    assert api.paid == 2
    with pytest.raises(InputError, match="--judge-budget 0"):
        store(tmp_path / "other", judge_budget=0)(items)
    assert api.paid == 2


def test_all_servers_and_processes_have_one_budget(api: API, items: list[Item], tmp_path: Path) -> None:
    options = JudgeOptions(judge_price="2,10", judge_budget=4.5 * 0.0021)
    judges = [ServerJudge(model, options, tmp_path, rank) for model, rank in (("gpt", 0), ("gpt", 1), ("other", 0))]
    for _ in range(2):
        with contextlib.suppress(InputError):
            for asked in zip(*(judge(items) for judge in judges), strict=True):
                assert len(asked) == 3
    assert api.paid == 4


@pytest.mark.usefixtures("api")
def test_what_a_server_wants_is_said_before_it_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    flags = ["eval", "judge-check", "--judge", "server=gpt", "--output", tmp_path / "out"]
    refused(call(*flags, "--judge-price", "3"), "--judge-price 3: write IN,OUT")
    for address in ("https://api.openai.com/v1", "https://example.openai.azure.com/v1", "http://8.8.8.8/v1"):
        monkeypatch.setenv("OPENAI_BASE_URL", address)
        refused(call(*flags), "may want money; give IN,OUT")
    for address in ("http://localhost/v1", "http://[::1]:80/v1", "http://10.0.0.7/v1", "http://gpu.local/v1"):
        monkeypatch.setenv("OPENAI_BASE_URL", address)
        ServerJudge("gpt", JudgeOptions(), tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY")
    refused(call(*flags), "OPENAI_API_KEY: is not set")


@pytest.mark.slow
def test_the_correction_recovers_the_truth_behind_a_server_that_errs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server answers right with probability 0.8; 100 runs, each with its own check of 100 and 50 new pictures."""
    chance = random.Random(0)
    base = next(kind for kind in openai.DefaultHttpxClient.__mro__ if not kind.__module__.startswith("openai"))
    httpx = sys.modules[base.__module__.partition(".")[0]]  # the one that this openai builds on

    def answers(request: Any) -> Any:
        asked = json.loads(request.content)["messages"][0]["content"][-1]["text"]
        right = chance.random() < 0.8
        text = "yes" if ("true" in asked) is right else "no"
        return httpx.Response(200, json={"choices": [{"message": {"content": text}, "finish_reason": "stop"}]})

    client = openai.DefaultHttpxClient
    monkeypatch.setattr(
        "openai.DefaultHttpxClient", lambda **own: client(transport=httpx.MockTransport(answers), **own)
    )
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://localhost:1/v1")
    write_png(tmp_path / "a.png", Image.new("RGB", (4, 4)))
    picture = Picture("run", tmp_path / "a.png", Case("c", "A cat."))
    judge = ServerJudge("gpt", JudgeOptions(), tmp_path / "answers")

    def said(truth: list[bool]) -> list[float | None]:
        asked = [Question("relation", f"Is this {str(true).lower()}?", ()) for true in truth]
        return [answer.yes for answer in judge([(picture, question) for question in asked])]

    held = 0
    for _ in range(100):
        known, truth = [chance.random() < 0.5 for _ in range(100)], [chance.random() < 0.6 for _ in range(50)]
        error = measure(said(known), known)
        share = corrected(sum(yes == 1 for yes in said(truth)), len(truth), error)
        held += share is not None and share.low <= 0.6 <= share.high
    assert held >= 95
