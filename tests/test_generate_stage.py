"""Stage ``generate``: raw sets of every engine, through the command line; the API is a server on this machine."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from commands import call
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus
from PIL import Image
from tiny_bases import tiny_flux2_klein, tiny_qwen_image_edit

from rbctl.cli import main
from rbctl.menagerie.triplets import draw_triplets
from rbctl.pictures import read_record
from rbctl.plugins.generate.pipeline import LocalEditor
from rbctl.relations import load_relation
from rbctl.triplets import load
from rbctl.triplets.raw import RawTriplet, read_origin, read_raw

KEY = "sk-test-THISMUSTNEVERBESEEN1234567890"
USAGE = {
    "input_tokens": 50,
    "output_tokens": 1000,
    "total_tokens": 1050,
    "input_tokens_details": {"text_tokens": 50, "image_tokens": 0},
}
COST = 50 * 5e-6 + 1000 * 30e-6  # US dollars of an answer with that usage


@dataclass
class Asked:
    """One request as the server saw it."""

    path: str
    prompt: str
    references: list[bytes]
    options: dict[str, str]
    authorization: str
    at: float


@dataclass
class API:
    """A server that answers like the images API; ``script`` holds what it does first, then it always succeeds."""

    script: list[Callable[[BaseHTTPRequestHandler], None]] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    url: str = ""
    pictures: dict[str, Callable[[BaseHTTPRequestHandler], None]] = field(default_factory=dict)  # other than pictures


def success(handler: BaseHTTPRequestHandler, **changes: Any) -> None:
    answer(
        handler, 200, {"created": 1, "data": [{"b64_json": picture(len(handler.api.asked))}], "usage": USAGE, **changes}
    )  # type: ignore[attr-defined]


def picture(number: int) -> str:
    encoded = io.BytesIO()
    Image.new("RGB", (24, 16), (number * 40 % 256, 80, 120)).save(encoded, format="PNG")
    return base64.b64encode(encoded.getvalue()).decode()


def answer(handler: BaseHTTPRequestHandler, status: int, content: object, **headers: str) -> None:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    handler.send_response(status)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(body)))
    handler.send_header("x-request-id", "req_1")
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def failure(status: int, code: str, message: str, **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    error = {"error": {"message": message, "type": "some_error", "param": None, "code": code}}
    return lambda handler: answer(handler, status, error, **headers)


def timeout(handler: BaseHTTPRequestHandler) -> None:
    time.sleep(1.5)


def cut_off(handler: BaseHTTPRequestHandler) -> None:
    """Half of an answer, then the connection ends."""
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    handler.wfile.write(b'{"created": 1, "data": [{"b64_json": "iVBOR')


def half_json(handler: BaseHTTPRequestHandler) -> None:
    answer(handler, 200, b'{"created": 1, "data": [{"b64_json": "iVBOR')


def no_base64(handler: BaseHTTPRequestHandler) -> None:
    success(handler, data=[{"b64_json": "@@@@"}])


def half_picture(handler: BaseHTTPRequestHandler) -> None:
    whole = base64.b64decode(picture(1))
    success(handler, data=[{"b64_json": base64.b64encode(whole[:-30]).decode()}])


def no_picture(handler: BaseHTTPRequestHandler) -> None:
    success(handler, data=[])


REFUSAL = failure(400, "moderation_blocked", "Rejected by the safety system. safety_violations=[violence]")
NO_QUOTA = failure(429, "insufficient_quota", "You exceeded your current quota", Retry_After="0.05")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    api: API

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Content-Type"] == "application/json":
            options, references = json.loads(body), []
        else:
            options, references = parts(body, self.headers["Content-Type"])
        prompt = options.pop("prompt")
        authorization, now = self.headers["Authorization"], time.monotonic()
        self.api.asked.append(Asked(self.path, prompt, references, options, authorization, now))
        act = self.api.script.pop(0) if self.api.script else success
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            act(self)
        if act in (timeout, cut_off):
            self.close_connection = True

    def do_GET(self) -> None:
        assert self.headers["Authorization"] == f"Bearer {KEY}"
        if act := self.api.pictures.get(self.path):
            act(self)
        else:
            number = int(self.path.rpartition("/")[2].removesuffix(".png"))
            answer(self, 200, base64.b64decode(picture(number)))

    def log_message(self, format: str, *args: object) -> None:
        pass


def parts(body: bytes, content_type: str) -> tuple[dict[str, str], list[bytes]]:
    """The fields of a form, and the files of its field image[]."""
    boundary = content_type.split("boundary=")[1].encode()
    fields, files = {}, []
    for piece in body.split(b"--" + boundary)[1:-1]:
        head, content = piece.strip(b"\r\n").split(b"\r\n\r\n", 1)
        found = re.search(rb'name="([^"]+)"', head)
        assert found
        name = found[1].decode()
        if b"filename=" in head:
            assert name == "image[]"
            assert b"image/png" in head
            files.append(content)
        else:
            fields[name] = content.decode()
    return fields, files


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[API]:
    """The server, running; at the end the key must stand in no file."""
    served = API()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"api": served}))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    served.url = f"http://127.0.0.1:{server.server_port}/v1"
    monkeypatch.setenv("OPENAI_BASE_URL", served.url)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    yield served
    server.shutdown()
    server.server_close()
    assert all(one.authorization == f"Bearer {KEY}" for one in served.asked)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]


def generate(output: Path, *arguments: object, code: int = 0, relation: str = "ride") -> Result:
    """Run the command; what it prints never holds the key, and a failure is one line."""
    given = ["generate", "--relation", relation, "--output", output, *arguments]
    result = CliRunner().invoke(main, [str(one) for one in given])
    assert result.exit_code == code, (result.output, result.exception)
    assert KEY not in result.output
    if code == 2:
        assert len([line for line in result.stderr.splitlines() if line.startswith("Error: ")]) == 1
    return result


def ask(output: Path, *arguments: object, code: int = 0, number: int = 1, retries: int = 2) -> Result:
    return generate(output, "--engine", "openai", "-n", number, "--retries", retries, *arguments, code=code)


def complete(output: Path) -> tuple[RawTriplet, ...]:
    """The triplets that a set lists, every picture of which can be read."""
    triplets = read_raw(output)
    for triplet in triplets:
        for path in (triplet.target, *(thing.image for thing in triplet.objects)):
            with Image.open(path) as opened:
                opened.load()
    return triplets


def test_a_target_then_each_individual_with_the_earlier_pictures(api: API, tmp_path: Path) -> None:
    output = tmp_path / "set"
    result = ask(output, "--model", "gpt-image-1.5", "--quality", "low", "--size", "1536x1024")
    assert result.stdout == f"{output}\n"
    assert [one.path for one in api.asked] == ["/v1/images/generations", "/v1/images/edits", "/v1/images/edits"]
    assert [len(one.references) for one in api.asked] == [0, 1, 2]
    (triplet,) = complete(output)
    rider, mount = triplet.objects
    assert triplet.text.startswith("A")
    assert triplet.predicate in triplet.text
    assert (rider.role, mount.role) == ("rider", "mount")
    target, first, second = api.asked
    assert target.prompt.startswith(triplet.text)
    assert f"The {rider.name}: sits astride the {mount.name}'s back" in target.prompt
    assert first.prompt.startswith(f"The photo of the same {rider.name} ")
    assert second.prompt.startswith(f"The photo of the same {mount.name} ")
    assert second.references == [triplet.target.read_bytes(), rider.image.read_bytes()]
    assert first.options["input_fidelity"] == "high"
    for one in api.asked:
        assert (one.options["model"], one.options["quality"]) == ("gpt-image-1.5", "low")
        assert (one.options["size"], one.options["output_format"]) == ("1536x1024", "png")
    origin = read_origin(output)
    assert (origin["origin"], origin["relation"], origin["model"]) == ("openai", "ride", "gpt-image-1.5")
    with Image.open(output / "grid.png") as grid:
        assert grid.height > 256


def test_every_answer_is_kept_without_its_picture(api: API, tmp_path: Path) -> None:
    output = tmp_path / "set"
    api.script = [no_picture]
    result = ask(output, "--model", "gpt-image-2")
    kept = sorted((output / "responses").iterdir())
    assert [path.name for path in kept] == ["00000-0.json", "00001-0.json", "00002-0-0.json", "00003-0-1.json"]
    rows = [json.loads(path.read_text()) for path in kept]
    assert rows[0]["trouble"] == "no picture in it"
    assert rows[3]["references"] == ["0.png", "0-0.png"]
    assert all(row["request_id"] == "req_1" and row["response"]["usage"] == USAGE for row in rows)
    assert not [path for path in kept if "b64_json" in path.read_text()]
    assert [row["cost"] for row in rows] == pytest.approx([COST] * 4)
    assert f"${4 * COST:.2f} spent" in result.stderr


def test_the_same_command_asks_only_for_what_is_missing(api: API, tmp_path: Path) -> None:
    output = tmp_path / "set"
    ask(output, number=2)
    assert len(api.asked) == 6
    ask(output, number=2)
    assert len(api.asked) == 6
    before = {path: path.read_bytes() for path in output.rglob("*.png")}
    (output / "images" / "1-1.png").unlink()
    ask(output, number=3)
    assert len(api.asked) == 10
    assert [t.id for t in complete(output)] == ["0", "1", "2"]
    assert all(path.read_bytes() == content for path, content in before.items() if path.stem not in ("1-1", "grid"))
    ask(output, number=2)
    assert [t.id for t in complete(output)] == ["0", "1"]
    assert len(api.asked) == 10


def test_a_target_made_anew_renews_the_individuals_of_it(api: API, tmp_path: Path) -> None:
    output = tmp_path / "set"
    ask(output)
    (output / "0.png").unlink()
    ask(output)
    assert len(api.asked) == 6
    assert api.asked[5].references == [(output / "0.png").read_bytes(), (output / "images/0-0.png").read_bytes()]


@pytest.mark.slow
def test_rate_limits_are_waited_for(api: API, tmp_path: Path) -> None:
    limited = failure(429, "rate_limit_exceeded", "Too many", Retry_After="0.7")
    api.script = [limited, failure(503, "overloaded", "Busy"), success]
    ask(tmp_path / "set")
    assert len(api.asked) == 5
    assert api.asked[1].at - api.asked[0].at >= 0.7
    assert len({one.prompt for one in api.asked[:3]}) == 1


def test_a_rate_limit_without_end_is_told(api: API, tmp_path: Path) -> None:
    api.script = [failure(429, "rate_limit_exceeded", "Too many", Retry_After="0.05")] * 2
    result = ask(tmp_path / "set", code=2, retries=1)
    assert "127.0.0.1: no answer after 2 tries (Too many); what exists is kept" in result.stderr
    assert len(api.asked) == 2


@pytest.mark.slow
@pytest.mark.parametrize("trouble", [timeout, cut_off, half_json, no_base64, half_picture, no_picture])
def test_a_broken_answer_is_asked_for_again(
    api: API, tmp_path: Path, trouble: Callable[[BaseHTTPRequestHandler], None]
) -> None:
    output = tmp_path / "set"
    api.script = [success, trouble]
    ask(output, "--timeout", 0.6)
    assert len(api.asked) == 4
    assert api.asked[1].prompt == api.asked[2].prompt
    assert api.asked[1].references == api.asked[2].references
    assert len(complete(output)) == 1


@pytest.mark.parametrize(
    ("trouble", "told"),
    [
        (timeout, "no answer after 1 tries (Request timed out.)"),
        (cut_off, "no answer after 1 tries (Connection error.)"),
        (half_json, "not JSON"),
        (no_base64, "no base64"),
        (half_picture, "its picture: not a readable picture"),
    ],
)
def test_what_stays_broken_ends_the_run(
    api: API, tmp_path: Path, trouble: Callable[[BaseHTTPRequestHandler], None], told: str
) -> None:
    output = tmp_path / "set"
    api.script = [success, success, success, success, trouble]
    result = ask(output, "--timeout", 0.6, code=2, number=2, retries=0)
    assert told in result.stderr
    assert "what exists is kept" in result.stderr
    assert [t.id for t in complete(output)] == ["0"]
    assert not list(output.rglob("*.partial"))
    ask(output, number=2)
    assert len(api.asked) == 7
    assert len(complete(output)) == 2


def test_a_refused_prompt_is_noted_and_the_next_pair_is_tried(api: API, tmp_path: Path) -> None:
    output = tmp_path / "set"
    api.script = [REFUSAL, success, success, REFUSAL]  # the first target, and an individual of the second
    result = ask(output, number=2)
    assert [t.id for t in complete(output)] == ["2", "3"]
    notes = [json.loads(line) for line in (output / "refusals.jsonl").read_text().splitlines()]
    assert [note["candidate"] for note in notes] == [0, 1]
    assert {note["code"] for note in notes} == {"moderation_blocked"}
    assert "safety_violations=[violence]" in notes[0]["message"]
    assert notes[0]["text"] in api.asked[0].prompt
    assert "2 prompts refused" in result.stderr
    ask(output, number=2)
    assert len(api.asked) == 10


def test_nothing_but_refusals_come_to_an_end(api: API, tmp_path: Path) -> None:
    output = tmp_path / "set"
    api.script = [REFUSAL] * 5
    result = ask(output, "--max-refusals", 3, code=2)
    assert "refusals.jsonl: 3 prompts were refused" in result.stderr
    assert len(api.asked) == 3
    ask(output, "--max-refusals", 3, code=2)
    assert len(api.asked) == 3
    ask(output, "--max-refusals", 6)
    assert [t.id for t in complete(output)] == ["5"]


def test_the_quota_ends_half_way(api: API, tmp_path: Path) -> None:
    output = tmp_path / "set"
    api.script = [success] * 4 + [NO_QUOTA] * 3
    result = ask(output, code=2, number=2)
    assert "127.0.0.1: the quota has ended (You exceeded your current quota); what exists is kept" in result.stderr
    assert [t.id for t in complete(output)] == ["0"]
    asked = len(api.asked)
    ask(output, number=2)
    assert len(api.asked) == asked + 2
    assert [t.id for t in complete(output)] == ["0", "1"]


def test_the_budget_holds_over_all_runs(api: API, tmp_path: Path) -> None:
    output = tmp_path / "set"
    result = ask(output, "--price", 0.1, "--budget", 0.45, code=2, number=2)
    assert "--budget 0.45: $0.40 spent, the next picture costs about $0.10; what exists is kept" in result.stderr
    assert len(api.asked) == 4
    ask(output, "--price", 0.1, "--budget", 0.45, code=2, number=2)
    assert len(api.asked) == 4
    result = ask(output, "--price", 0.1, "--budget", 0.6, number=2)
    assert len(api.asked) == 6
    assert "$0.60 spent on this set so far" in result.stderr


def test_the_table_keeps_the_budget_and_the_usage_tells_what_was_spent(api: API, tmp_path: Path) -> None:
    # A target of gpt-image-2 costs about 0.053 by the table, an individual more, with its references.
    result = ask(tmp_path / "set", "--model", "gpt-image-2-2026-04-21", "--budget", 0.06, code=2)
    assert len(api.asked) == 1
    assert f"${COST:.2f} spent" in result.stderr


@pytest.mark.slow
def test_broken_answers_count_against_the_budget(api: API, tmp_path: Path) -> None:
    api.script = [no_base64] * 3
    ask(tmp_path / "set", "--price", 1, "--budget", 2, code=2)
    assert len(api.asked) == 2


def test_the_number_of_pictures_is_bounded(api: API, tmp_path: Path) -> None:
    result = ask(tmp_path / "set", "--max-pictures", 2, code=2)
    assert "--max-pictures 2: so many were asked for; what exists is kept" in result.stderr
    assert len(api.asked) == 2


def test_a_model_without_a_price_needs_one(api: API, tmp_path: Path) -> None:
    result = ask(tmp_path / "set", "--model", "painter-9", code=2)
    assert "--model painter-9 --quality medium: no price is known" in result.stderr
    assert not api.asked
    ask(tmp_path / "set", "--model", "painter-9", "--price", 0)
    assert len(api.asked) == 3


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        (
            failure(401, "invalid_api_key", f"Incorrect key: {KEY}."),
            "OPENAI_API_KEY: 127.0.0.1 refuses it",
        ),
        (failure(403, "forbidden", "Not your model"), "OPENAI_API_KEY: 127.0.0.1 refuses it (Not your model)"),
        (
            failure(404, "model_not_found", "No such model"),
            "No such model (HTTP 404) from /v1/images/generations; see --model",
        ),
        (failure(400, "invalid_value", f"Bad size, {KEY}"), "Bad size, [OPENAI_API_KEY] (HTTP 400) from /v1/images"),
        (
            lambda h: answer(h, 422, {"detail": [{"loc": ["mask"], "msg": "required"}]}),
            '"msg": "required"}]} (HTTP 422) from /v1/images',
        ),
        (lambda h: answer(h, 413, b"<p>Too large</p>"), "127.0.0.1: <p>Too large</p> (HTTP 413) from"),
        (failure(400, "billing_hard_limit_reached", "Limit"), "the quota has ended (Limit)"),
    ],
)
def test_what_the_server_says_is_one_line_without_the_key(
    api: API, tmp_path: Path, reply: Callable[[BaseHTTPRequestHandler], None], told: str
) -> None:
    api.script = [reply]
    assert told in ask(tmp_path / "set", code=2).stderr
    assert len(api.asked) == 1


def test_a_server_without_edits_is_told_and_asked_without_references(api: API, tmp_path: Path) -> None:
    api.script = [success, lambda handler: answer(handler, 422, {"detail": "one image and a mask"})]
    told = ask(tmp_path / "edits", code=2).stderr
    assert '{"detail": "one image and a mask"} (HTTP 422) from /v1/images/edits; see --references none' in told
    api.asked.clear()
    ask(tmp_path / "words", "--references", "none")
    assert {one.path for one in api.asked} == {"/v1/images/generations"}
    assert len(complete(tmp_path / "words")) == 1
    assert "its references is 'none' and not 'earlier'" in ask(tmp_path / "words", code=2).stderr


@pytest.mark.parametrize("kind", ["data", "absolute", "relative"])
def test_a_picture_by_its_address(api: API, tmp_path: Path, kind: str) -> None:
    def by_address(handler: BaseHTTPRequestHandler) -> None:
        number = len(api.asked)
        place = f"/pictures/{number}.png"
        addresses = {"data": f"data:image/png;base64,{picture(number)}", "relative": place}
        success(handler, data=[{"url": addresses.get(kind, api.url.removesuffix("/v1") + place), "b64_json": None}])

    api.script = [by_address] * 3
    ask(tmp_path / "set")
    assert len(api.asked) == 3
    (triplet,) = complete(tmp_path / "set")
    with Image.open(triplet.target) as opened:
        assert opened.convert("RGB").getpixel((0, 0)) == (40, 80, 120)
    notes = [path.read_text() for path in (tmp_path / "set" / "responses").iterdir()]
    assert not any("data:image" in note for note in notes)


def test_a_server_that_repeats_the_key_in_an_answer(api: API, tmp_path: Path) -> None:
    api.script = [lambda handler: success(handler, note=f"for {KEY}")]
    ask(tmp_path / "set")  # the fixture looks through the files
    assert "for [OPENAI_API_KEY]" in (tmp_path / "set/responses/00000-0.json").read_text()


@pytest.mark.parametrize("key", [None, "", "sk-two words", "sk-ключ"])
def test_no_usable_key(api: API, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str | None) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    if key is not None:
        monkeypatch.setenv("OPENAI_API_KEY", key)
    result = ask(tmp_path / "set", code=2)
    assert "OPENAI_API_KEY: " in result.stderr
    assert not api.asked


def test_without_the_package(api: API, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    for name in ("rbctl.plugins.generate.openai_images", "rbctl.openai_server"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert "needs the package openai; pip install 'rbctl[openai]'" in ask(tmp_path / "set", code=2).stderr


@pytest.mark.slow
def test_killed_half_way_the_rest_is_asked_for(api: API, tmp_path: Path) -> None:
    output, reached = tmp_path / "set", threading.Event()

    def hang(handler: BaseHTTPRequestHandler) -> None:
        reached.set()
        time.sleep(2)

    api.script = [success] * 4 + [hang]
    command = ["generate", "--relation", "ride", "--output", str(output), "--engine", "openai", "-n", "2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "rbctl", *command], env={**os.environ}, stderr=subprocess.PIPE, cwd=tmp_path
    )
    try:
        assert reached.wait(120)
    finally:
        process.send_signal(signal.SIGKILL)
        assert process.stderr
        assert KEY.encode() not in process.stderr.read()
        process.wait()
    assert [t.id for t in complete(output)] == ["0"]
    before = {path: path.read_bytes() for path in output.rglob("*.png")}
    ask(output, number=2)
    assert len(api.asked) == 7
    assert len(complete(output)) == 2
    assert all(path.read_bytes() == content for path, content in before.items())


def test_an_estimate_needs_no_key_and_asks_nothing(api: API, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "set"
    ask(output, "--price", 0.1)
    monkeypatch.delenv("OPENAI_API_KEY")
    result = ask(output, "--estimate", "--price", 0.1, number=3)
    assert len(api.asked) == 3
    assert result.stdout.startswith(f"0.png (there): {api.asked[0].prompt}\n")
    assert "3 triplets" in result.stdout
    assert "9 pictures, 6 still to be made" in result.stdout
    assert "about $0.60, by --price" in result.stdout
    result = ask(tmp_path / "other", "--estimate", "--model", "gpt-image-2", "--quality", "low", number=2)
    # Two targets, and four individuals with 1, 2, 1 and 2 references.
    assert f"about ${6 * 0.006 + 6 * 4741 * 8e-6:.2f}, by a table that grows old" in result.stdout
    assert not (tmp_path / "other").exists()
    result = ask(tmp_path / "other", "--estimate", "--quality", "max", code=2)
    assert "no price is known" in result.stderr


def test_pairs_of_ones_own(api: API, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.txt"
    pairs.write_text("# mine\n\n elf  owl ,tin  robot # both\n", encoding="utf-8")
    ask(tmp_path / "set", "--pairs", pairs, number=3)
    triplets = complete(tmp_path / "set")
    assert {tuple(thing.name for thing in t.objects) for t in triplets} == {("elf owl", "tin robot")}
    assert triplets[0].text.startswith("An elf owl ")
    assert len({t.text for t in triplets}) == 2  # the relation has two prompts


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("cat, dog\ncat\n", "pairs.txt:2: 2 names were expected"),
        ("cat,\n", "pairs.txt:1: 2 names were expected"),
        ("cat, Cat\n", "pairs.txt:1: 'cat, Cat' names one twice"),
        ("# nobody\n", "pairs.txt: names nobody"),
    ],
)
def test_wrong_pairs(api: API, tmp_path: Path, content: str, told: str) -> None:
    (tmp_path / "pairs.txt").write_text(content)
    assert told in ask(tmp_path / "set", "--pairs", tmp_path / "pairs.txt", code=2).stderr
    assert not api.asked


def test_another_set_is_never_mixed_in(api: API, tmp_path: Path) -> None:
    output = tmp_path / "set"
    ask(output)
    result = ask(output, "--quality", "high", code=2)
    assert "set.json: another set lies here, its quality is 'medium' and not 'high'; choose another" in result.stderr
    result = generate(output, "--engine", "openai", code=2, relation="hug")
    assert "its relation is 'ride' and not 'hug'" in result.stderr
    assert len(api.asked) == 3
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "0.png").write_bytes(b"mine")
    assert "holds other files" in ask(tmp_path / "mine", code=2).stderr
    Image.open(output / "0.png").transpose(Image.Transpose.ROTATE_180).save(output / "0.png")
    assert "0.png: not made by this command, or broken" in ask(output, code=2).stderr


def write_relation(path: Path, roles: int) -> Path:
    places = ["A {subject} jumps.", "A {subject} meets a {object}.", "A {subject} meets a {object} and a {r2}."][
        roles - 1
    ]
    listed = "".join(f"\n  - {{name: r{k}, box: [0, 0, 1, 1]}}" for k in range(roles))
    path.write_text(f"name: own\npredicate: jumps\nprompts: ['{places}']\nroles:{listed}\n")
    return path


def test_relations_of_one_role_and_of_three(api: API, tmp_path: Path) -> None:
    one, three = write_relation(tmp_path / "one.yaml", 1), write_relation(tmp_path / "three.yaml", 3)
    generate(tmp_path / "set", "--engine", "openai", "-n", 1, relation=str(one))
    (triplet,) = complete(tmp_path / "set")
    assert (len(triplet.objects), triplet.predicate, len(api.asked)) == (1, "jumps", 2)
    result = generate(tmp_path / "other", "--engine", "openai", "-n", 1, relation=str(three), code=2)
    assert "has 3 roles, and prompts name two" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--size", "large"], "--size large: WIDTHxHEIGHT was expected"),
        (["--size", "128x256"], "the embedded world is square"),
        (["--engine", "diffusers"], "give --model"),
        (["--engine", "diffusers", "--model", "nowhere"], "nowhere: no diffusers pipeline, it has no model_index.json"),
    ],
)
def test_wrong_options(tmp_path: Path, arguments: list[str], told: str) -> None:
    assert told in generate(tmp_path / "set", *arguments, code=2).stderr
    assert not (tmp_path / "set").exists()


def test_a_relation_that_the_embedded_world_cannot_draw(tmp_path: Path) -> None:
    own = write_relation(tmp_path / "own.yaml", 2)
    assert "cannot be drawn" in generate(tmp_path / "set", relation=str(own), code=2).stderr


@pytest.mark.slow
def test_the_miniature_set_is_whole_without_its_truth(tmp_path: Path) -> None:
    few, many = tmp_path / "few", tmp_path / "many"
    result = generate(few, "-n", 1, "--seed", 3)
    assert result.stdout == f"{few}\n"
    assert sorted(path.name for path in few.iterdir()) == [
        ".lock", "0-ride.png", "grid.png", "images", "raw.jsonl", "set.json"
    ]  # fmt: skip
    origin = read_origin(few)
    assert (origin["origin"], origin["relation"], origin["seed"]) == ("miniature", "ride", 3)
    (triplet,) = complete(few)
    assert [thing.role for thing in triplet.objects] == ["rider", "mount"]
    assert triplet.predicate in triplet.text
    assert all(thing.name in triplet.text for thing in triplet.objects)
    before = {path.relative_to(few): path.read_bytes() for path in few.rglob("*.png") if path.stem != "grid"}
    assert "0 made, 1 were there" in generate(few, "-n", 1, "--seed", 3).stderr
    generate(many, "-n", 2, "--seed", 3)
    assert all((many / path).read_bytes() == content for path, content in before.items())
    assert "1 made, 1 were there" in generate(few, "-n", 2, "--seed", 3).stderr
    assert (few / "raw.jsonl").read_bytes() == (many / "raw.jsonl").read_bytes()
    (few / "images" / "1-ride-0.png").unlink()
    generate(few, "-n", 2, "--seed", 3)
    assert len(complete(few)) == 2
    assert "its seed is 3 and not 4" in generate(few, "-n", 2, "--seed", 4, code=2).stderr


def paint_locally(output: Path, model: Path | str, *arguments: object, code: int = 0) -> Result:
    common = ("--engine", "diffusers", "--model", model, "--steps", 1, "--device", "cpu", "-n", 1)
    return generate(output, *common, *arguments, code=code)


@pytest.mark.slow
def test_a_local_pipeline(tiny_bundle: Path, tmp_path: Path) -> None:
    output = tmp_path / "set"
    paint_locally(output, tiny_bundle, "--size", "64x48")
    (triplet,) = complete(output)
    with Image.open(triplet.target) as target:
        assert target.size == (64, 48)
    paths = [triplet.target, *(thing.image for thing in triplet.objects)]
    before = [path.read_bytes() for path in paths]
    assert len(set(before)) == 3
    paths[1].unlink()
    assert "1 made" in paint_locally(output, tiny_bundle, "--size", "64x48").stderr
    assert [path.read_bytes() for path in paths] == before
    assert read_origin(output)["model"] == "tiny-sdxl"
    estimate = paint_locally(output, tiny_bundle, "--size", "64x48", "--estimate").stdout
    assert "3 pictures, 0 still to be made" in estimate
    assert "$" not in estimate


@pytest.mark.slow
def test_the_bundle_mini_is_a_pipeline(tmp_path: Path) -> None:
    paint_locally(tmp_path / "set", "mini")
    (triplet,) = complete(tmp_path / "set")
    with Image.open(triplet.target) as target:
        assert target.size == (128, 128)


def test_a_pipeline_is_data_never_code(tmp_path: Path, tiny_bundle: Path) -> None:
    folder = tmp_path / "model"
    (folder / "unet").mkdir(parents=True)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "P", "unet": ["own", "Net"]}))
    assert "unet: ['own', 'Net'] is no class of diffusers" in paint_locally(tmp_path / "set", folder, code=2).stderr
    (folder / "unet" / "own.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w')")
    assert "code of its own" in paint_locally(tmp_path / "other", folder, code=2).stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_safety_checker_of_a_pipeline_is_a_refusal(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import StableDiffusionXLPipeline

    original, hidden = StableDiffusionXLPipeline.__call__, [True]

    def checked(self: Any, *arguments: Any, **options: Any) -> Any:
        output = original(self, *arguments, **options)
        output.nsfw_content_detected = [hidden.pop()] if hidden else [False]
        return output

    monkeypatch.setattr(StableDiffusionXLPipeline, "__call__", checked)
    assert "1 prompts refused" in paint_locally(tmp_path / "set", tiny_bundle, "--size", "64x64").stderr
    assert [t.id for t in complete(tmp_path / "set")] == ["1"]


EDITORS = {"flux2": tiny_flux2_klein, "qwen_image_edit": tiny_qwen_image_edit}


@pytest.fixture(params=EDITORS)
def editor(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(pipeline_qwenimage_edit_plus, "VAE_IMAGE_SIZE", 64 * 64)  # of its references
    return EDITORS[request.param](tmp_path / request.param)


def edit(output: Path, model: Path, *arguments: object, code: int = 0) -> Result:
    common = ("--engine", "edit", "--model", model, "--steps", 1, "--device", "cpu", "--size", "64x64", "-n", 1)
    return generate(output, *common, *arguments, code=code)


@pytest.mark.slow
def test_an_editor_is_shown_the_earlier_pictures_and_goes_on_where_it_was_killed(
    editor: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit(tmp_path / "whole", editor)
    (triplet,) = complete(tmp_path / "whole")
    records = [read_record(path) for path in (triplet.target, *(thing.image for thing in triplet.objects))]
    assert [len(record["references"]) for record in records if record] == [0, 1, 2]
    assert read_origin(tmp_path / "whole")["origin"] == "edit"

    paint, left = LocalEditor.paint, [True, False]

    def killed(self: Any, *arguments: Any) -> Any:
        if not left.pop(0):
            raise KeyboardInterrupt
        return paint(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(LocalEditor, "paint", killed)
        edit(tmp_path / "torn", editor, code=130)
    assert "1 made" in edit(tmp_path / "torn", editor).stderr
    for path in (tmp_path / "whole").rglob("*.png"):
        assert (tmp_path / "torn" / path.relative_to(tmp_path / "whole")).read_bytes() == path.read_bytes()
    assert "its references is 'earlier'" in edit(tmp_path / "torn", editor, "--references", "none", code=2).stderr

    if editor.name == "flux2":
        # Random weights paint noise: the files get pictures with animals, as a trained editor would paint them.
        draw_triplets(load_relation("hug"), 1, 0, tmp_path / "drawn", size=128)
        (shown,) = load(tmp_path / "drawn")
        files = (triplet.target, *(entry.image for entry in triplet.objects))
        for file, source in zip(files, (shown.target, *(entry.image for entry in shown.objects)), strict=True):
            shutil.copy(source, tmp_path / "torn" / file.relative_to(tmp_path / "whole"))
        oracle = [f"--backend={step}=oracle" for step in ("boxes", "masks", "keypoints", "identity")]
        annotated = call("annotate", tmp_path / "torn", "--bundle", "mini", *oracle)
        assert "1 of 1 triplets written" in annotated.stderr, annotated.output
        assert call("data", "check", tmp_path / "torn").exit_code == 0
        assert load(tmp_path / "torn")[0].prompt == triplet.text


def test_a_pipeline_that_takes_no_pictures_is_no_editor(tiny_bundle: Path, tmp_path: Path) -> None:
    assert "takes no pictures; take --engine diffusers" in edit(tmp_path / "set", tiny_bundle, code=2).stderr


def test_names_are_words_and_never_patterns(tmp_path: Path) -> None:
    own, pairs = write_relation(tmp_path / "own.yaml", 2), tmp_path / "pairs.txt"
    pairs.write_text("c\\at \\1 \\g<0>, dog.\n")
    for role, said in [("(a+)+b", "a" * 40 + "!"), ("r.le", "role"), ("b\\", "b\\"), ("r[", "r[")]:
        text = own.read_text().replace("name: r0,", f"name: '{role}', description: 'sees the {said}',")
        (tmp_path / "role.yaml").write_text(text)
        arguments = ("--engine", "openai", "--pairs", pairs, "--estimate", "-n", 1)
        result = generate(tmp_path / "set", *arguments, relation=str(tmp_path / "role.yaml"))
        expected = "c\\at \\1 \\g<0>" if role == said else said  # the role's own name, as it stands, gives way
        assert f"The c\\at \\1 \\g<0>: sees the {expected}." in result.stdout
