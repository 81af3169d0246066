"""A server of this machine that answers as the OpenAI images API: one prompt is always answered with one picture."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import threading
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from PIL import Image

_USAGE = {
    "input_tokens": 50,
    "output_tokens": 1000,
    "total_tokens": 1050,
    "input_tokens_details": {"text_tokens": 50, "image_tokens": 0},
}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        number = zlib.crc32(self._prompt())
        encoded = io.BytesIO()
        Image.new("RGB", (24, 16), (number & 255, number >> 8 & 255, number >> 16 & 255)).save(encoded, format="PNG")
        picture = base64.b64encode(encoded.getvalue()).decode()
        body = json.dumps({"created": 1, "data": [{"b64_json": picture}], "usage": _USAGE}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _prompt(self) -> bytes:
        """What is asked for, whatever the form of the request."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Content-Type"] == "application/json":
            return str(json.loads(body)["prompt"]).encode()
        return body.split(b'name="prompt"')[1].split(b"\r\n")[2]

    def log_message(self, format: str, *args: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # whoever asked was killed


@contextlib.contextmanager
def serving() -> Iterator[None]:
    """While the block lasts, the environment leads ``rbctl generate --engine openai`` to a server of our own."""
    server = _Server(("127.0.0.1", 0), _Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    os.environ |= {"OPENAI_API_KEY": "sk-none", "OPENAI_BASE_URL": f"http://127.0.0.1:{server.server_port}/v1"}
    try:
        yield
    finally:
        server.shutdown()
