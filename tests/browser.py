"""A page in headless Chromium, driven as a person would: files dropped, mouse dragged, text read, pictures taken.

Chromium's own debugging protocol over two pipes, so that no other package is needed.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --window-size=1400,1250 --remote-debugging-pipe"
)


def text(selector: str) -> str:
    """JavaScript for the words of an element; none before it is there."""
    return f"(document.querySelector('{selector}')?.innerText ?? '')"


def field(selector: str) -> str:
    """JavaScript for what stands in the field inside of an element."""
    return f"(document.querySelector('{selector} :is(textarea, input)')?.value ?? '')"


class Browser:
    """Chromium with one page.

    Attributes:
        requests: addresses that the page asked for.
    """

    def __init__(self, program: str, profile: Path) -> None:
        reading, theirs = os.pipe()
        their_reading, writing = os.pipe()

        def pipes() -> None:  # Chromium reads from 3 and writes to 4
            os.dup2(their_reading, 63)
            os.dup2(theirs, 64)
            os.dup2(63, 3)
            os.dup2(64, 4)

        command = [program, *FLAGS.split(), f"--user-data-dir={profile}", "about:blank"]
        quiet = subprocess.DEVNULL
        self._process = subprocess.Popen(command, preexec_fn=pipes, close_fds=False, stdout=quiet, stderr=quiet)
        os.close(their_reading)
        os.close(theirs)
        self._reading, self._writing, self._pending, self._number = reading, writing, b"", 0
        self.requests: list[str] = []
        targets = self._call("Target.getTargets")["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        self._session = self._call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "DOM", "Network"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()
        os.close(self._reading)
        os.close(self._writing)

    def call(self, method: str, **parameters: Any) -> Any:
        """A command of the protocol, to the page."""
        return self._call(method, self._session, **parameters)

    def _call(self, method: str, session: str | None = None, **parameters: Any) -> Any:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        os.write(self._writing, json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0")
        while True:
            while b"\0" not in self._pending:
                part = os.read(self._reading, 1 << 20)
                assert part, "chromium has ended"
                self._pending += part
            line, _, self._pending = self._pending.partition(b"\0")
            answer = json.loads(line)
            if answer.get("method") == "Network.requestWillBeSent":
                self.requests.append(answer["params"]["request"]["url"])
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, script: str, seconds: float = 300) -> None:
        """Until an expression is true."""
        end = time.monotonic() + seconds
        while not self.run(f"!!({script})"):
            assert time.monotonic() < end, f"not within {seconds} s: {script}\n{self.run('document.body.innerText')}"
            time.sleep(0.1)

    def open(self, address: str) -> None:
        self.call("Page.navigate", url=address)
        self.wait("document.readyState === 'complete'")

    def open_tab(self, name: str) -> None:
        """Open a tab, and wait until it is open: two clicks before the page draws are one to it."""
        tab = f"[...document.querySelectorAll('button[role=tab]')].find(tab => tab.innerText.trim() === '{name}')"
        self.run(f"{tab}.click()")
        self.wait(f"{tab}.ariaSelected === 'true'")

    def drop(self, selector: str, paths: Sequence[Path]) -> None:
        """Choose files in the file input inside an element."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=f"{selector} input[type=file]")["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path) for path in paths])

    def place(self, selector: str) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of an element in the window, waited for and scrolled to."""
        self.wait(f"document.querySelector({selector!r})")
        box = f"(e => [e.left, e.top, e.right, e.bottom])(document.querySelector({selector!r}).getBoundingClientRect())"
        self.run(f"document.querySelector({selector!r}).scrollIntoView({{block: 'center'}})")
        left, top, right, bottom = self.run(box)
        return left, top, right, bottom

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Press at a point of the window, move in steps, release."""
        mouse = {"button": "left", "buttons": 1, "clickCount": 1}
        self.call("Input.dispatchMouseEvent", type="mousePressed", x=start[0], y=start[1], **mouse)
        for share in (0.25, 0.5, 0.75, 1):
            x, y = (a + share * (b - a) for a, b in zip(start, end, strict=True))
            self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y, **mouse)
        self.call("Input.dispatchMouseEvent", type="mouseReleased", x=end[0], y=end[1], **mouse)

    def click(self, selector: str) -> None:
        left, top, right, bottom = self.place(selector)
        middle = ((left + right) / 2, (top + bottom) / 2)
        self.drag(middle, middle)

    def write(self, selector: str, text: str, *keys: str) -> None:
        """Type into a field, in place of what is there, and press keys."""
        self.run(f"(e => {{ e.focus(); e.select(); }})(document.querySelector({selector!r}))")
        self.call("Input.insertText", text=text)
        self.press(*keys)

    def press(self, *keys: str) -> None:
        """Press Enter or Tab where the focus is."""
        for key in keys:
            code = {"Enter": 13, "Tab": 9}[key]
            for kind in ("keyDown", "keyUp"):
                self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    def resize(self, width: int, height: int) -> None:
        """Make the window so many pixels large."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)

    def picture(self, path: Path) -> Path:
        """Take a picture of the window."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))
        return path
