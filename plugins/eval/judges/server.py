"""A model behind an OpenAI-compatible server as a judge (OPENAI_API_KEY, OPENAI_BASE_URL)."""

from __future__ import annotations

import base64
import dataclasses
import io
import ipaddress
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Interval

from rbctl import formats
from rbctl.errors import InputError
from rbctl.files import content_hash, read_image, read_json, read_object, write_json
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
_DRAWN = "drawn"  # folder of samples whose answer is not whole yet
_PICTURE_TOKENS, _TEXT_TOKENS = 2000, 200  # of a question, where an answer does not tell what it took
_AT_HOME = (".local", ".internal", ".lan", ".home.arpa")
_MILLION = 1e6


@dataclass(frozen=True)
class Paid:
    """What answers have cost."""

    dollars: Annotated[float, Interval(ge=0, le=1e9)]
    answers: Annotated[int, Interval(ge=0, le=10**9)]


class ServerJudge:
    """Asks a server, a question a request; what answers cost is counted over all runs.

    The probability is that of the first token, where the server tells it. Else ``--judge-samples`` answers are drawn,
    each kept as it comes, and the share of yes counts. A refusal is not known.
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
        if price is None and not _at_home(self._server.host):
            raise InputError(
                f"--judge-price: {self._server.host} may want money; give IN,OUT in dollars of a million tokens, or 0,0"
            )
        self.name, self._price, self._budget = model, price or (0.0, 0.0), options.judge_budget
        self._samples, self._tells = options.judge_samples, True
        self.hash = content_hash([model, str(self._server.client.base_url), FORM, self._samples])
        self._answers, self._folder = answers, answers / self.hash[:20]
        self._costs = self._folder / _COSTS.format(rank)
        self._own = _paid(self._costs) if self._costs.is_file() else Paid(0.0, 0)

    def __call__(self, items: Sequence[Item]) -> Iterator[Answer]:
        for picture, question in items:
            content: list[dict[str, Any]] = [
                {"type": "image_url", "image_url": {"url": _sent(path)}}
                for path in (picture.path, question.second)
                if path is not None
            ]
            content.append({"type": "text", "text": FORM.format(question=question.text)})
            drawn = self._folder / _DRAWN / f"{content_hash(content)[:32]}.json"
            yield self._answer(content, drawn)
            drawn.unlink(missing_ok=True)  # the answer is kept by now

    def _answer(self, content: list[dict[str, Any]], drawn: Path) -> Answer:
        said = _kept(drawn)
        self._tells = self._tells and not said
        while len(said) < (1 if self._tells else self._samples):
            said.append(self._ask(content))
            if self._samples > 1 and not self._tells:
                write_json(drawn, [dataclasses.asdict(answer) for answer in said])
        known = [answer.yes for answer in said if answer.yes is not None]
        return Answer(sum(known) / len(known) if known else None, said[0].text)

    def _ask(self, content: list[dict[str, Any]]) -> Answer:
        """One answer that can be read, or a refusal.

        Raises:
            InputError: the server is down, takes no such request, or the budget has ended.
        """
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
                return self._count(completions.create(**options, logprobs=True, top_logprobs=20), len(content) - 1)
            except OpenAIError as error:
                if getattr(error, "status_code", None) not in (400, 422) or self._server.refusal(error):
                    raise
                self._tells = False
        return self._count(completions.create(**options), len(content) - 1)

    def _count(self, raw: Any, pictures: int) -> Any:
        """Write down what an answer cost: a broken one, and one that does not say, about what it may have."""
        reply = parsed(raw.content)
        usage = reply.get("usage") if isinstance(reply, dict) else None
        most = (_TEXT_TOKENS + pictures * _PICTURE_TOKENS, _MOST_TOKENS)
        told = [_tokens(usage, name) for name in ("prompt_tokens", "completion_tokens")]
        tokens = [count or guess for count, guess in zip(told, most, strict=True)]
        cost = sum(count * price for count, price in zip(tokens, self._price, strict=True)) / _MILLION
        self._own = Paid(self._own.dollars + cost, self._own.answers + 1)
        write_json(self._costs, dataclasses.asdict(self._own))
        return reply

    def _check_budget(self) -> None:
        """Whether one more answer may be paid for, beside those of all processes, runs and servers.

        Raises:
            InputError: it may not, or a kept cost is none.
        """
        if not any(self._price):
            return
        paid = {path: _paid(path) for path in sorted(self._answers.glob(f"*/{_COSTS.format('*')}"))}
        spent, count = sum(own.dollars for own in paid.values()), sum(own.answers for own in paid.values())
        own = [own for path, own in paid.items() if path.parent == self._folder]
        answers = sum(one.answers for one in own)
        ahead = sum(one.dollars for one in own) / answers if answers else 0.0
        if spent + ahead > self._budget or spent >= self._budget:
            raise InputError(
                f"--judge-budget {self._budget:g}: ${spent:.4f} spent on {count} answers; {KEPT}; raise it"
            )

    def _read(self, reply: Any) -> tuple[Answer | None, str]:
        """The answer of a reply, or what is wrong with it."""
        try:
            choice = reply["choices"][0]
            message, end = choice["message"], choice.get("finish_reason")
            refusal, text = message.get("refusal"), message.get("content")
        except (TypeError, KeyError, IndexError, AttributeError):
            return None, "no JSON" if reply is None else "no choice in it"
        if end == "content_filter" or refusal:
            why = refusal if refusal and isinstance(refusal, str) else "content filter"
            return Answer(None, self._words(f"refused: {why}")), ""
        if text is None and end in ("stop", "length"):  # all its tokens were thoughts; it would be so again
            return Answer(None, f"no words ({end})"), ""
        if not isinstance(text, str):
            return None, "no text in it"
        yes = _probability(choice.get("logprobs"))
        if yes is None and self._tells:
            self._tells = _first(choice.get("logprobs")) is not None
        return Answer(by_words(text) if yes is None else yes, self._words(text)), ""

    def _words(self, text: str) -> str:
        return one_line(self._server.without_key(text))


def _first(logprobs: Any) -> dict[str, float] | None:
    """Probability of every likely first token, without space around it and in small letters; None: it is not told."""
    likely: dict[str, float] = {}
    try:
        for token in logprobs["content"][0]["top_logprobs"]:
            word = token["token"].strip().lower()
            likely[word] = likely.get(word, 0.0) + math.exp(min(float(token["logprob"]), 0.0))
    except (TypeError, LookupError, AttributeError, ValueError, OverflowError):
        return None
    return likely or None


def _probability(logprobs: Any) -> float | None:
    """Of yes against no at the first token; None where the server does not tell, or both are unlikely."""
    likely = _first(logprobs) or {}
    yes, no = likely.get("yes", 0.0), likely.get("no", 0.0)
    return yes / (yes + no) if yes + no >= _LEAST else None


def _tokens(usage: Any, name: str) -> int | None:
    """Tokens as an answer counts them; None where that is no possible number."""
    count = usage.get(name) if isinstance(usage, dict) else None
    return count if type(count) is int and 0 < count <= 10_000_000 else None


def _paid(path: Path) -> Paid:
    return formats.read(Paid, read_object(path), str(path))


def _kept(path: Path) -> list[Answer]:
    """Samples of an earlier run; none where there are none that can be read."""
    try:
        rows: Any = read_json(path)
        return [Answer({None: None, 0.0: 0.0, 1.0: 1.0}[row["yes"]], str(row["text"])) for row in rows]
    except (InputError, TypeError, KeyError):
        return []


def _at_home(host: str) -> bool:
    """Whether a server is of this machine or network, so that nobody is paid."""
    try:
        return not ipaddress.ip_address(host).is_global
    except ValueError:  # a name
        return "." not in host or host.endswith(_AT_HOME)


def _sent(path: Path) -> str:
    """A picture as a data address, no larger than models look at."""
    image, encoded = read_image(path), io.BytesIO()
    image.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    image.save(encoded, format="JPEG", quality=_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(encoded.getvalue()).decode()}"
