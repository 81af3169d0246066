"""Who may ask the page for what: this machine or whoever has the token, and no address that the page does not need."""

from __future__ import annotations

import hmac
import re
from http.cookies import SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlsplit

# gradio has more: proxies to other servers, a page that writes code, the runs of all users.
_NEEDED = re.compile(
    r"/|/config|/(assets|static|svelte|files)/.*|/favicon\.ico|/manifest\.json|/theme\.css"
    r"|/gradio_api/(theme\.css|info|upload|upload_progress|file=(?!\w+:).*|queue/(join|data)|cancel|reset"
    r"|heartbeat/\w+|component_server|app_id|startup-events)/?"
)
_WITHOUT_TOKEN = "/gradio_api/startup-events"  # which gradio asks itself for
_COOKIE = "rbctl-token"
# gradio's page runs scripts of its own inline, and compiles templates. Everything comes from here alone.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; "
    "frame-src 'self'; frame-ancestors 'self'; object-src 'none'; base-uri 'self'; form-action 'self'"
)


class Guard:
    """ASGI middleware in front of the whole page.

    Args:
        app: what it guards.
        token: that a request must bring; None where this machine alone reaches the page. ``?token=...`` is kept in a
            cookie.
    """

    def __init__(self, app: Any, token: str | None) -> None:
        self.app = app
        self.token = token

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        refused = "no such page" if scope["type"] != "http" else self._refused(scope["path"], headers)
        if refused:
            await _answer(send, 403, refused)
            return
        brought = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        enters = self.token is not None and self._is_token(brought)
        if not enters and not self._may_enter(scope["path"], headers):
            await _answer(send, 401, "this page needs a token; open the address that rbctl ui printed")
            return

        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                names = {name.lower() for name, _ in message["headers"]}
                own = [(b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"same-origin")]
                if b"content-security-policy" not in names:
                    own.append((b"content-security-policy", _POLICY.encode()))
                if enters:
                    cookie = f"{_COOKIE}={self.token}; Path=/; HttpOnly; SameSite=Strict"
                    own.append((b"set-cookie", cookie.encode()))
                message = {**message, "headers": [*message["headers"], *own]}
            await send(message)

        await self.app(scope, receive, with_headers)

    def _refused(self, path: str, headers: dict[str, str]) -> str:
        """Why nobody is given this; empty for what the page needs."""
        host = headers.get("host", "")
        if not _NEEDED.fullmatch(path):
            return "no such page"
        # A name of a stranger's that leads to this machine: his pages would count as ours.
        if self.token is None and urlsplit(f"//{host}").hostname not in ("localhost", "127.0.0.1", "::1"):
            return "the page answers to localhost alone"
        if (origin := headers.get("origin")) and urlsplit(origin).netloc != host:
            return "another page may not ask for this"
        return ""

    def _may_enter(self, path: str, headers: dict[str, str]) -> bool:
        cookie = SimpleCookie(headers.get("cookie", "")).get(_COOKIE)
        return self.token is None or path == _WITHOUT_TOKEN or (cookie is not None and self._is_token(cookie.value))

    def _is_token(self, words: str) -> bool:
        return hmac.compare_digest(words.encode(), (self.token or "").encode())


async def _answer(send: Any, status: int, words: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"x-content-type-options", b"nosniff")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": words.encode()})
