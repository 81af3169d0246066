"""A server of pictures, and answers kept from it, are data: neither switches the budget off nor acts otherwise."""

from __future__ import annotations

import base64
import gzip
import io
import json
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from PIL import Image
from test_generate_stage import COST, USAGE, answer, api, ask, complete, failure, picture, success  # noqa: F401

from rbctl.plugins.generate.costs import Account

pytestmark = pytest.mark.slow

AHEAD = [0.053, 0.053 + 4741 * 8e-6, 0.053 + 2 * 4741 * 8e-6]  # US dollars, by the table: of a target, of individuals
MODEL = ("--model", "gpt-image-2")
Act = Callable[[BaseHTTPRequestHandler], None]


def reply(status: int, body: bytes, content_type: str = "application/json", **headers: str) -> Act:
    """An answer of these very bytes."""

    def act(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in {"Content-Type": content_type, "Content-Length": str(len(body)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return act


def billed(usage: str) -> Act:
    """A picture, with a usage as written."""

    def act(handler: BaseHTTPRequestHandler) -> None:
        data = json.dumps([{"b64_json": picture(len(handler.api.asked))}])  # type: ignore[attr-defined]
        reply(200, f'{{"created": 1, "data": {data}, "usage": {usage}}}'.encode())(handler)

    return act


def usage_with(**counts: str) -> str:
    """A usage that is right but for these counts, as JSON has them, or should not."""
    text = json.dumps(USAGE)
    for name, count in counts.items():
        details = {**USAGE, **USAGE["input_tokens_details"]}  # type: ignore[dict-item]
        assert f'"{name}": {details[name]}' in text
        text = text.replace(f'"{name}": {details[name]}', f'"{name}": {count}')
    return text


NO_COUNTS = ["NaN", "Infinity", "-Infinity", "1e999", "-1e9", "-1", "1e300", f"{10**400}", "true", '"9"', "null", "[]"]


@pytest.mark.parametrize(
    "usage",
    [
        *(usage_with(output_tokens=count) for count in [*NO_COUNTS, "0", "1e-300"]),
        *(usage_with(text_tokens=count) for count in NO_COUNTS),
        *(usage_with(image_tokens=count) for count in NO_COUNTS),
        "null",
        "[1]",
        '"much"',
        "-5",
    ],
)
def test_a_usage_that_cannot_be_counts_as_the_price_expected(
    api,  # noqa: F811
    tmp_path: Path,
    usage: str,
) -> None:
    output = tmp_path / "set"
    api.script = [billed(usage)] * 60
    result = ask(output, *MODEL, "--budget", 0.30, number=20, code=2)
    assert f"--budget 0.3: ${sum(AHEAD):.2f} spent, the next picture costs about $0.05" in result.stderr
    rows = [json.loads(path.read_text()) for path in sorted((output / "responses").iterdir())]
    assert [row["cost"] for row in rows] == pytest.approx(AHEAD)
    assert len(complete(output)) == 1  # what was paid for is used
    ask(output, *MODEL, "--budget", 0.30, number=20, code=2)
    assert len(api.asked) == 3


NO_COSTS = ["NaN", "Infinity", "1e999", "-5", "-1e-9", "1e300", f"{10**400}", "true", '"0"', "null", "[]", "{}"]


@pytest.mark.parametrize("cost", NO_COSTS)
def test_a_kept_answer_whose_cost_is_none_is_told_before_anything_is_asked(
    api,  # noqa: F811
    tmp_path: Path,
    cost: str,
) -> None:
    output = tmp_path / "set"
    ask(output, "--price", 0.1)
    kept = output / "responses" / "00001-0-0.json"
    whole = kept.read_text()
    assert whole.count('"cost": 0.1') == 1
    kept.write_text(whole.replace('"cost": 0.1', f'"cost": {cost}'))
    assert f"Error: {kept}: " in ask(output, "--price", 0.1, number=2, code=2).stderr
    kept.write_text("[1]")
    assert f"Error: {kept}: cost: None; write how many US dollars" in ask(output, number=2, code=2).stderr
    assert len(api.asked) == 3
    kept.write_text(whole)
    assert "$0.60 spent" in ask(output, "--price", 0.1, number=2).stderr


def test_every_kept_answer_counts_whatever_its_number(api, tmp_path: Path) -> None:  # noqa: F811
    output = tmp_path / "set"
    ask(output, "--price", 0.1)
    (output / "responses" / "00001-0-0.json").rename(output / "responses" / "100000-0-0.json")
    ask(output, "--price", 0.1, "--budget", 0.45, number=2, code=2)
    assert len(api.asked) == 4
    assert (output / "responses" / "100001-1.json").exists()
    assert "--max-pictures 4" in ask(output, "--price", 0.1, "--max-pictures", 4, number=2, code=2).stderr


@pytest.mark.parametrize("cost", [float("nan"), float("inf"), -1.0, 1e300, True, "1", None])
def test_the_ledger_refuses_what_is_no_cost(tmp_path: Path, cost: float) -> None:
    account = Account(tmp_path, budget=1.0, most=None)
    with pytest.raises(ValueError, match="no number of US dollars"):
        account.keep("0", "{}", cost)
    assert account.spent == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "pause", ["nan", "inf", "1e9", "-1", "-1e9", "1e999", "9" * 400, "Fri, 31 Dec 9999 23:59:59 GMT"]
)
def test_a_server_does_not_choose_an_endless_pause(api, tmp_path: Path, pause: str) -> None:  # noqa: F811
    api.script = [failure(429, "rate_limit_exceeded", "Too many", Retry_After=pause)]
    start = time.monotonic()
    asked_again = pause in ("nan", "inf", "-1", "-1e9")  # after the client's own pause
    ask(tmp_path / "set", code=0 if asked_again else 2, retries=1)
    assert time.monotonic() - start < 10


def test_an_answer_without_end_is_cut_off(api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr("rbctl.openai_server._LONGEST_ANSWER", 1 << 20)
    sent: dict[int, int] = {}

    def pour(status: int) -> Act:
        def act(handler: BaseHTTPRequestHandler) -> None:
            handler.close_connection = True
            handler.send_response(status)
            handler.send_header("Content-Type", "application/json")
            handler.end_headers()
            for part in range(2000):
                handler.wfile.write(b" " * (1 << 16))
                sent[status] = part << 16

        return act

    for status, told in [(200, "not JSON"), (400, "(HTTP 400)")]:
        api.script = [pour(status)]
        assert told in ask(tmp_path / "set", code=2, retries=0).stderr
        assert sent[status] < 50 << 20


def test_an_answer_in_drops_is_cut_off(api, tmp_path: Path) -> None:  # noqa: F811
    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.close_connection = True
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        for _ in range(100):
            handler.wfile.write(b" ")
            time.sleep(0.1)

    api.script = [drip]
    start = time.monotonic()
    assert "not JSON" in ask(tmp_path / "set", "--timeout", 0.5, code=2, retries=0).stderr
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("status", [200, 400])
@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (gzip.compress(bytes(300 << 20), 9), {"Content-Encoding": "gzip"}),
        (b"{}", {"Content-Encoding": "zstd, br, gzip"}),
        (b"{}", {"content_type": "application/json; charset=zip"}),
        (b"[" * 100_000, {}),
        (b'{"a":' * 900 + b"1" + b"}" * 900, {}),
        (b"9" * 5000, {}),
        (b'"\\ud800"', {}),
        (b"\xff\xfe\x00", {}),
        (b'{"error": {"message": ["x"], "code": {"a": 1}}}', {}),
        (b'{"error": "\\u001b[2J\\n\\nError: all is well"}', {}),
    ],
    ids=range(10),
)
def test_an_answer_that_is_no_answer_is_one_line(
    api,  # noqa: F811
    tmp_path: Path,
    status: int,
    body: bytes,
    headers: dict[str, str],
) -> None:
    api.script = [reply(status, body, **headers)]
    start = time.monotonic()
    result = ask(tmp_path / "set", "--price", 0.1, code=2, retries=0)
    assert ("(HTTP 400)" if status == 400 else "answers for picture 0 could not be used") in result.stderr
    assert "\x1b" not in result.stderr
    assert time.monotonic() - start < 10
    ask(tmp_path / "set", "--price", 0.1)  # what is kept can be read again
    assert len(complete(tmp_path / "set")) == 1


def test_words_of_a_server_are_bounded_and_do_not_act_on_the_terminal(api, tmp_path: Path) -> None:  # noqa: F811
    api.script = [failure(400, "x", "\x1b[2Jone\n\nError: two" + "!" * 100_000)]
    (line,) = [line for line in ask(tmp_path / "set", code=2).stderr.splitlines() if "HTTP 400" in line]
    assert line.startswith("Error: 127.0.0.1: [2Jone Error: two!!!")
    assert len(line) < 600


def test_a_long_answer_is_kept_without_its_length(api, tmp_path: Path) -> None:  # noqa: F811
    api.script = [lambda handler: success(handler, note="x" * 10**7)]
    ask(tmp_path / "set")
    kept = tmp_path / "set" / "responses" / "00000-0.json"
    assert kept.stat().st_size < 10_000
    assert json.loads(kept.read_text())["cost"] == pytest.approx(COST)


def test_a_picture_of_a_server_is_opened_as_any_other(api, tmp_path: Path) -> None:  # noqa: F811
    postscript, huge = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n", io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(huge, format="PNG")
    for number, (content, told) in enumerate([(postscript, "not a readable picture"), (huge.getvalue(), "pixels")]):
        encoded = base64.b64encode(content).decode()
        api.script = [lambda handler, encoded=encoded: success(handler, data=[{"b64_json": encoded}])]
        result = ask(tmp_path / f"set{number}", code=2, retries=0)
        assert "its picture: " in result.stderr
        assert told in result.stderr


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("http://localhost:9/1.png", "its picture lies at 'localhost', and only this server is asked"),
        ("https://example.com/1.png", "its picture lies at 'example.com'"),
        ("//example.com/1.png", "its picture lies at 'example.com'"),
        ("http://127.0.0.1:1/1.png", "its picture lies at '127.0.0.1'"),
        ("file:///etc/passwd", "only this server is asked"),
        ("/pictures/redirect", "its picture cannot be fetched (HTTP 302)"),
        ("/pictures/none", "its picture cannot be fetched (HTTP 404)"),
        ("/pictures/endless", "its picture"),
        ("data:text/html,<b>", "its picture"),
        ("http://127.0.0.1:port/1.png", "the address of its picture is none"),
    ],
)
def test_a_picture_is_fetched_from_the_same_server_alone(
    api,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    address: str,
    told: str,
) -> None:
    from rbctl import openai_server

    monkeypatch.setattr(openai_server, "_LONGEST_ANSWER", 100_000)
    api.pictures = {
        "/pictures/redirect": reply(302, b"", Location="http://127.0.0.1:1/secret"),
        "/pictures/none": reply(404, b"gone"),
        "/pictures/endless": reply(200, b"0" * 1_000_000),
    }
    api.script = [lambda handler: success(handler, data=[{"url": address}])]
    assert told in ask(tmp_path / "set", retries=0, code=2).stderr
    assert len(api.asked) == 1
