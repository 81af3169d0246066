"""A server that speaks like OpenAI's: the key, bounded answers, and what its errors say.

After rate limits, server errors, timeouts and cut connections the client itself asks again.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from typing import Any

from rbctl.errors import InputError

try:
    import openai
except ImportError as error:
    raise InputError("a server of OpenAI's kind needs the package openai; pip install 'rbctl[openai]'") from error

KEY = "OPENAI_API_KEY"
OpenAIError = openai.OpenAIError

_REFUSED = {"moderation_blocked", "content_policy_violation", "content_filter", "safety_violation"}
_NO_CREDIT = {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"}
_LONGEST_ANSWER = 64 << 20  # bytes; a picture of 16 million pixels takes no more
KEPT = "what exists is kept, the same command goes on"


class Server:
    """The server of OPENAI_BASE_URL, else OpenAI's own.

    Attributes:
        client: of the package openai.
        http: its HTTP client, which cuts long answers off.
        host: name of the server.
        key: sent to this server alone.
    """

    def __init__(self, retries: int, timeout: float) -> None:
        """Read the key; nothing is asked yet.

        Args:
            retries: after a failed try.
            timeout: seconds of one answer.

        Raises:
            InputError: there is no usable key.
        """
        self.key, self._retries, self._timeout = _key(), retries, timeout
        self.http = openai.DefaultHttpxClient(event_hooks={"response": [self._bound]}, timeout=timeout)
        self.client = openai.OpenAI(
            api_key=self.key,
            max_retries=retries,
            timeout=timeout,
            default_headers={"Accept-Encoding": "identity"},
            http_client=self.http,
        )
        self.host = self.client.base_url.host

    def refusal(self, error: openai.OpenAIError) -> tuple[str, str] | None:
        """Code and words of an error that refuses what was asked; None of any other."""
        code = getattr(error, "code", None)
        return (code, self._words(error)) if isinstance(code, str) and code in _REFUSED else None

    def ended(self, error: openai.OpenAIError, mend: str) -> InputError:
        """An error that ends the run, in one line.

        Args:
            mend: of a request that the server cannot take, "see --model".
        """
        message, code = self._words(error), getattr(error, "code", None)
        if isinstance(code, str) and code in _NO_CREDIT:
            return InputError(f"{self.host}: the quota has ended ({message}); {KEPT} once there is credit")
        if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
            return InputError(f"{KEY}: {self.host} refuses it ({message}); {KEPT} with a valid one")
        if isinstance(error, openai.APIStatusError) and error.status_code < 500 and error.status_code not in (408, 429):
            where = f"(HTTP {error.status_code}) from {error.request.url.path}"
            return InputError(f"{self.host}: {self._said(error) or 'no reason given'} {where}; {mend}; {KEPT}")
        return InputError(f"{self.host}: no answer after {self._retries + 1} tries ({message}); {KEPT}")

    def without_key(self, text: str) -> str:
        """Servers have been seen to repeat the key in what they say."""
        return text.replace(self.key, f"[{KEY}]")

    def _words(self, error: openai.OpenAIError) -> str:
        body = getattr(error, "body", None)
        message = body.get("message") if isinstance(body, dict) else None
        return one_line(self.without_key(message if message and isinstance(message, str) else str(error)))

    def _said(self, error: openai.APIStatusError) -> str:
        """What an error's body says, whatever its form."""
        body = error.body.get("message", error.body) if isinstance(error.body, dict) else error.body
        try:
            text = body if isinstance(body, str) else json.dumps(body, ensure_ascii=False) if body else ""
        except RecursionError:
            text = ""
        return one_line(self.without_key(text or error.response.text))

    def _bound(self, response: Any) -> None:
        """Cut an answer, of whatever status, off after so many bytes and so much time, as the client begins to read it.

        It is read as it was sent, for compressed bytes can stand for any number, and as UTF-8, whatever it names.
        """
        response.headers.pop("content-encoding", None)
        response.encoding = "utf-8"
        read, end = response.iter_raw, time.monotonic() + self._timeout

        def parts(chunk_size: int | None = None) -> Iterator[bytes]:
            for part in read(chunk_size):
                yield part
                if response.num_bytes_downloaded > _LONGEST_ANSWER or time.monotonic() > end:
                    return

        response.iter_raw = parts


def parsed(content: bytes) -> Any:
    """The JSON of an answer, None where it is none. An answer is paid for: numbers that are none become null."""

    def finite(text: str) -> float | None:
        return float(text) if math.isfinite(float(text)) else None

    try:
        return json.loads(content, parse_float=finite, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return None


def one_line(text: str) -> str:
    """A server's words, of bearable length and without what a terminal would obey."""
    return " ".join("".join(char if char.isprintable() else " " for char in text[:1000]).split())[:200]


def _key() -> str:
    key = os.environ.get(KEY, "").strip()
    if not key:
        raise InputError(f"{KEY}: is not set; export the key of your account, it is read from nowhere else")
    if not key.isascii() or not key.isprintable() or any(mark in key for mark in " \"'\\"):
        raise InputError(f"{KEY}: holds characters that no key has; export it again")
    return key
