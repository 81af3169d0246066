"""Engine ``openai``: the OpenAI images API, or a server that speaks like it (OPENAI_BASE_URL).

The target comes from ``images.generate``; each individual alone from ``images.edit`` with the earlier pictures of the
triplet as references, so that identities hold. An answer holds its picture, or an address of it on the same server.
After rate limits, server errors, timeouts and cut connections the client itself asks again; after an answer without a
readable picture this module does.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from rbctl.errors import InputError, abridged, reason
from rbctl.files import read_image
from rbctl.openai_server import KEPT, OpenAIError, Server, one_line, parsed
from rbctl.plugins.generate.config import GenerateConfig
from rbctl.plugins.generate.costs import Account, ahead, billed
from rbctl.plugins.generate.painting import Refused

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 8.0  # seconds, as the client's own
_LONGEST_NOTE = 100_000  # characters of an answer, without its picture, that are kept


class OpenAIImages:
    """A painter (``painting.Painter``) behind an API that is paid for."""

    def __init__(self, config: GenerateConfig, folder: Path) -> None:
        """Read the key and what the set has cost so far; nothing is asked yet.

        Raises:
            InputError: there is no usable key, or a kept answer has no cost.
        """
        self._config = config
        self.sees_references = config.references == "earlier"
        self.account = Account(folder, config.budget, config.max_pictures)
        self._server = Server(config.retries, config.timeout)
        self.name = f"openai {config.openai['model']}"

    def paint(self, prompt: str, references: Sequence[Path], candidate: int, index: int) -> Image.Image:
        """See ``painting.Painter``."""
        picture = str(candidate) if index == 0 else f"{candidate}-{index - 1}"
        for attempt in range(self._config.retries + 1):
            if attempt:
                time.sleep(min(_FIRST_PAUSE * 2 ** (attempt - 1), _LONGEST_PAUSE))
            self.account.check(ahead(self._config, len(references)))
            answer, request_id = self._ask(prompt, references)
            elsewhere = self._elsewhere(answer)
            image, trouble = (None, elsewhere) if elsewhere else self._picture(answer)
            cost = billed(self._config, answer.get("usage") if isinstance(answer, dict) else None, len(references))
            response = {
                "picture": picture,
                "request_id": request_id,
                "prompt": prompt,
                "references": [path.name for path in references],
                **self._config.openai,
                "cost": cost,
                "trouble": trouble,
                "response": _noted(answer),
            }
            text = json.dumps(response, ensure_ascii=False).encode(errors="replace").decode()  # half a character
            self.account.keep(picture, self._server.without_key(text), cost)
            if image is not None:
                return image
            if elsewhere:  # it will be there the next time too
                break
        raise InputError(
            f"{self._server.host}: {attempt + 1} answers for picture {picture} could not be used, the last one: "
            f"{trouble}; {KEPT}"
        )

    def _ask(self, prompt: str, references: Sequence[Path]) -> tuple[Any, str | None]:
        """One request: the answer's JSON, None where it is none, and the server's name for the request."""
        images = self._server.client.images.with_raw_response
        options: dict[str, Any] = {"prompt": prompt, "n": 1, "output_format": "png", **self._config.openai}
        try:
            if references:
                # Only this model has to be told to look closely at references: older ones cannot, newer ones always do.
                if options["model"].startswith("gpt-image-1.5"):
                    options["input_fidelity"] = "high"
                raw = images.edit(image=[(p.name, p.read_bytes(), "image/png") for p in references], **options)
            else:
                raw = images.generate(**options)
        except OpenAIError as error:
            if refusal := self._server.refusal(error):
                raise Refused(*refusal) from error
            mend = "see --references none" if references else "see --model, --size and --quality"
            raise self._server.ended(error, mend) from error
        return parsed(raw.content), raw.request_id

    def _elsewhere(self, answer: Any) -> str:
        """Why the address of a picture is not asked; empty where it is, or where there is none."""
        address = _address(answer)
        if not address or address.startswith("data:"):
            return ""
        try:
            own, url = self._server.client.base_url, self._server.client.base_url.join(address)
        except Exception as error:  # of the HTTP library, whichever the client builds on
            return f"the address of its picture is none ({reason(error)})"
        if (url.scheme, url.host, url.port) == (own.scheme, own.host, own.port):
            return ""
        return f"its picture lies at {abridged(url.host)}, and only this server is asked; have it answer in base64"

    def _picture(self, answer: Any) -> tuple[Image.Image | None, str]:
        """The picture of an answer, or what is wrong with it."""
        try:
            address = _address(answer)
            if address and not address.startswith("data:"):
                content = self._fetched(address)
            else:
                encoded = address.partition(";base64,")[2] if address else answer["data"][0]["b64_json"]
                content = base64.b64decode(encoded, validate=True)
            return read_image(io.BytesIO(content), where="its picture"), ""
        except (TypeError, KeyError, IndexError):
            return None, "not JSON" if answer is None else "no picture in it"
        except binascii.Error as error:
            return None, f"its picture is no base64 ({reason(error)})"
        except (InputError, ValueError, OSError) as error:
            return None, reason(error)

    def _fetched(self, address: str) -> bytes:
        """What lies at an address of this server; it may not lead on to another one.

        Raises:
            InputError: nothing does.
        """
        own = {"Authorization": f"Bearer {self._server.key}", "Accept-Encoding": "identity"}
        try:
            response = self._server.http.get(
                self._server.client.base_url.join(address), headers=own, follow_redirects=False
            )
        except Exception as error:  # of the HTTP library, whichever the client builds on
            raise InputError(
                f"its picture cannot be fetched ({one_line(self._server.without_key(str(error)))})"
            ) from error
        if response.status_code != 200:
            raise InputError(f"its picture cannot be fetched (HTTP {response.status_code})")
        return bytes(response.content)


def _address(answer: Any) -> str:
    """Where the picture of an answer is, as servers say it that do not put it into the answer; else empty."""
    try:
        entry = answer["data"][0]
        address = entry["url"] if entry.get("b64_json") is None else ""
    except (AttributeError, TypeError, KeyError, IndexError):
        return ""
    return address if isinstance(address, str) else ""


def _holds_picture(key: str, value: Any) -> bool:
    return key == "b64_json" or (key == "url" and isinstance(value, str) and value.startswith("data:"))


def _noted(answer: Any) -> Any:
    """What is kept of an answer: all but its pictures, unless that is long."""
    if isinstance(answer, dict) and isinstance(answer.get("data"), list):
        data = [
            {key: value for key, value in item.items() if not _holds_picture(key, value)}
            if isinstance(item, dict)
            else item
            for item in answer["data"]
        ]
        answer = {**answer, "data": data}
    try:
        short = len(json.dumps([answer])) <= _LONGEST_NOTE  # as deep as it will be kept
    except RecursionError:
        short = False
    return answer if short else "left out: too long or too deep"
