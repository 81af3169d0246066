"""A model behind an OpenAI-compatible server as a judge (OPENAI_API_KEY, OPENAI_BASE_URL)."""

from __future__ import annotations

import base64
import dataclasses
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Interval

from rbctl import formats
from rbctl.errors import InputError
from rbctl.files import content_hash, read_image, read_object, write_json
from rbctl.openai_server import KEPT, OpenAIError, Server, one_line, parsed
from rbctl.plugins.eval.judges.config import JudgeOptions
from rbctl.plugins.eval.judges.judge import Answer, Item
from rbctl.plugins.eval.judges.vision_language import FORM
from rbctl.vision_language import by_words

_RETRIES, _TIMEOUT = 4, 120.0  # after failed tries and answers that cannot be read; seconds
_LONGEST_SIDE, _QUALITY = 768, 90  # pixels of a picture that is sent, as JPEG
_MOST_TOKENS = 512  # of an answer: a word, unless the model thinks before
_LEAST = 0.01  # of the probability that yes and no have together
_COSTS = "costs-{}.json"  # of each process
_MILLION = 1e6


@dataclass(frozen=True)
class Paid:
    """What answers have cost."""

    dollars: Annotated[float, Interval(ge=0, le=1e9)]
    answers: Annotated[int, Interval(ge=0, le=10**9)]


class ServerJudge:
    """Asks a server, a question a request; what answers cost is counted over all runs.

    The probability is that of the first token, where the server tells it. Else ``--judge-samples`` answers are drawn,
    and the share of yes counts. A refusal is not known.
    """

    paid = True

    def __init__(self, model: str, options: JudgeOptions, answers: Path, rank: int = 0) -> None:
        """Read the key and what was paid so far; nothing is asked yet.

        Args:
            answers: folder under which answers are kept.
            rank: of this process, among those that ask.

        Raises:
            InputError: there is no usable key, no price of a server that wants money, or a kept cost is none.
        """
        self._server = Server(_RETRIES, _TIMEOUT)
        price = options.prices()
        if price is None and self._server.host.endswith("openai.com"):
            raise InputError(
                f"--judge-price: {self._server.host} wants money; give IN,OUT in dollars of a million tokens"
            )
        self.name, self._price, self._budget = model, price or (0.0, 0.0), options.judge_budget
        self._samples, self._tells = options.judge_samples, True
        self.hash = content_hash([model, str(self._server.client.base_url), FORM, self._samples])
        self._costs = answers / self.hash[:20] / _COSTS.format(rank)
        self._own = Paid(0.0, 0)
        self._spent, self._asked = self._counted()

    def __call__(self, items: Sequence[Item]) -> Iterator[Answer]:
        for item in items:
            yield self._answer(item)

    def _answer(self, item: Item) -> Answer:
        said = [self._ask(item)]
        if said[0].yes in (0.0, 1.0) and not self._tells:
            said += [self._ask(item) for _ in range(self._samples - 1)]
        known = [answer.yes for answer in said if answer.yes is not None]
        return Answer(sum(known) / len(known) if known else None, said[0].text)

    def _ask(self, item: Item) -> Answer:
        """One answer that can be read, or a refusal.

        Raises:
            InputError: the server is down, takes no such request, or the budget has ended.
        """
        picture, question = item
        content: list[dict[str, Any]] = [
            {"type": "image_url", "image_url": {"url": _sent(path)}}
            for path in (picture.path, question.second)
            if path is not None
        ]
        content.append({"type": "text", "text": FORM.format(question=question.text)})
        trouble = ""
        for _ in range(_RETRIES + 1):
            self._check_budget()
            try:
                reply = self._request(content)
            except OpenAIError as error:
                if refusal := self._server.refusal(error):
                    return Answer(None, f"refused: {refusal[1]}")
                raise self._server.ended(error, "see --judge server=MODEL") from error
            answer, trouble = self._read(reply)
            if answer is not None:
                return answer
        raise InputError(
            f"{self._server.host}: {_RETRIES + 1} answers could not be read, the last one: {trouble}; {KEPT}"
        )

    def _request(self, content: list[dict[str, Any]]) -> Any:
        """The JSON of an answer, counted; a server that tells no probabilities is asked without."""
        options: dict[str, Any] = {
            "model": self.name,
            "messages": [{"role": "user", "content": content}],
            "max_completion_tokens": _MOST_TOKENS,
        }
        completions = self._server.client.chat.completions.with_raw_response
        if self._tells:
            try:
                return self._count(completions.create(**options, logprobs=True, top_logprobs=20))
            except OpenAIError as error:
                if getattr(error, "status_code", None) not in (400, 422) or self._server.refusal(error):
                    raise
                self._tells = False
        return self._count(completions.create(**options))

    def _count(self, raw: Any) -> Any:
        reply = parsed(raw.content)
        usage = reply.get("usage") if isinstance(reply, dict) else None
        tokens = [_tokens(usage, name) for name in ("prompt_tokens", "completion_tokens")]
        cost = sum(count * price for count, price in zip(tokens, self._price, strict=True)) / _MILLION
        self._spent, self._asked = self._spent + cost, self._asked + 1
        self._own = Paid(self._own.dollars + cost, self._own.answers + 1)
        write_json(self._costs, dataclasses.asdict(self._own))
        return reply

    def _check_budget(self) -> None:
        ahead = self._spent / self._asked if self._asked else 0.0
        if self._spent + ahead > self._budget:
            raise InputError(
                f"--judge-budget {self._budget:g}: ${self._spent:.4f} spent on {self._asked} answers; {KEPT}; raise it"
            )

    def _counted(self) -> tuple[float, int]:
        """Dollars and answers so far, of every process."""
        spent, asked = 0.0, 0
        for path in sorted(self._costs.parent.glob(_COSTS.format("*"))):
            paid = formats.read(Paid, read_object(path), str(path))
            if path == self._costs:
                self._own = paid
            spent, asked = spent + paid.dollars, asked + paid.answers
        return spent, asked

    def _read(self, reply: Any) -> tuple[Answer | None, str]:
        """The answer of a reply, or what is wrong with it."""
        try:
            choice = reply["choices"][0]
            message = choice["message"]
            refusal, text = message.get("refusal"), message.get("content")
            if choice.get("finish_reason") == "content_filter" or refusal:
                return Answer(None, self._words(f"refused: {refusal or 'content filter'}")), ""
            if not isinstance(text, str):
                return None, "no text in it"
            yes = _probability(choice.get("logprobs"))
        except (TypeError, KeyError, IndexError, AttributeError):
            return None, "no JSON" if reply is None else "no choice in it"
        if yes is None and self._tells:
            self._tells = choice.get("logprobs") is not None
        return Answer(by_words(text) if yes is None else yes, self._words(text)), ""

    def _words(self, text: str) -> str:
        return one_line(self._server.without_key(text))


def _probability(logprobs: Any) -> float | None:
    """Of yes against no at the first token; None where the server does not tell, or both are unlikely."""
    if not logprobs:
        return None
    likely = {"yes": 0.0, "no": 0.0}
    for token in logprobs["content"][0]["top_logprobs"]:
        word = token["token"].strip().lower()
        if word in likely:
            likely[word] += math.exp(min(float(token["logprob"]), 0.0))
    both = sum(likely.values())
    return likely["yes"] / both if both >= _LEAST else None


def _tokens(usage: Any, name: str) -> int:
    count = usage.get(name) if isinstance(usage, dict) else None
    return count if type(count) is int and 0 <= count <= 10_000_000 else 0


def _sent(path: Path) -> str:
    """A picture as a data address, no larger than models look at."""
    image, encoded = read_image(path), io.BytesIO()
    image.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    image.save(encoded, format="JPEG", quality=_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(encoded.getvalue()).decode()}"
