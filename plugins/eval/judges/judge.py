"""What a judge is, and its answers, kept on disk by picture: no question is asked, or paid for, twice."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from rbctl.errors import InputError
from rbctl.files import content_hash, read_json, write_json
from rbctl.plugins.eval.case import Picture
from rbctl.plugins.eval.features import Digests
from rbctl.plugins.eval.judges.questions import Question
from rbctl.processes import World
from rbctl.progress import progress


@dataclass(frozen=True)
class Answer:
    """An answer to one question.

    Attributes:
        yes: probability of yes; None: not known, as the judge cannot say or its words could not be read.
        text: what it said, where it speaks.
    """

    yes: float | None
    text: str = ""

    @property
    def says(self) -> bool | None:
        """Yes from a half on; None: not known."""
        return None if self.yes is None else self.yes >= 0.5


Item = tuple[Picture, Question]


class PictureJudge(Protocol):
    """Answers questions of pictures.

    Attributes:
        name: for tables.
        hash: of all that its answers depend on besides picture and question.
        paid: every answer is kept the moment it is there.
    """

    name: str
    hash: str
    paid: bool

    def __call__(self, items: Sequence[Item]) -> Iterator[Answer]:
        """One answer an item, in their order. Items of one picture come together.

        Raises:
            InputError: it cannot go on (a server is down, a budget has ended). Answers before that count.
        """
        ...


@dataclass
class AnswerStore:
    """Answers of one judge: a file a picture, ``FOLDER/JUDGE/PICTURE.json``, of answers by question.

    Attributes:
        batch_size: questions asked at once.
        world: the processes that share the pictures.
    """

    folder: Path
    judge: PictureJudge
    digests: Digests
    batch_size: int = 16
    world: World = field(default_factory=World)

    def __call__(self, items: Sequence[Item]) -> list[Answer]:
        """One answer an item, in their order; only what is not kept is asked.

        Raises:
            InputError: the judge could not go on; what it answered is kept.
        """
        by_picture: dict[str, dict[str, Item]] = {}
        for picture, question in items:
            by_picture.setdefault(self._file(picture), {})[self._key(picture, question)] = (picture, question)
        own = self.world.part(sorted(by_picture))
        self._ask({name: by_picture[name] for name in own})
        self.world.wait()
        kept = {name: self._read(name) for name in by_picture}
        return [kept[self._file(picture)][self._key(picture, question)] for picture, question in items]

    def _ask(self, by_picture: dict[str, dict[str, Item]]) -> None:
        waiting: dict[str, list[str]] = {}
        for name, asked in by_picture.items():
            kept = self._read(name)
            if keys := [key for key in asked if key not in kept]:
                waiting[name] = keys
        with progress(sum(map(len, waiting.values())), self.judge.name, unit="question") as bar:
            for batch in self._batches(waiting):
                answers = self.judge([by_picture[name][key] for name, key in batch])
                fresh: dict[str, dict[str, Answer]] = {}
                try:
                    for (name, key), answer in zip(batch, answers, strict=True):
                        fresh.setdefault(name, {})[key] = answer
                        bar.update()
                        if self.judge.paid:
                            self._write(name, fresh[name])
                finally:
                    if not self.judge.paid:
                        for name, own in fresh.items():
                            self._write(name, own)

    def _batches(self, waiting: dict[str, list[str]]) -> Iterator[list[tuple[str, str]]]:
        """Whole pictures together, up to ``batch_size`` questions or one picture."""
        batch: list[tuple[str, str]] = []
        for name, keys in waiting.items():
            if batch and len(batch) + len(keys) > self.batch_size:
                yield batch
                batch = []
            batch += [(name, key) for key in keys]
        if batch:
            yield batch

    def _file(self, picture: Picture) -> str:
        return self.digests(picture.path)[:32]

    def _key(self, picture: Picture, question: Question) -> str:
        """Of all that an answer depends on besides the picture's pixels."""
        facts = {
            "question": question.text,
            "kind": question.kind,
            "second": question.second and self.digests(question.second),
            "boxes": [
                part if part is None or isinstance(part, tuple) else self.digests(part) for part in picture.boxes or ()
            ],
            "truth": picture.case.truth and picture.case.truth.picture.name,  # with a hash of who is on it
        }
        return hashlib.sha256(content_hash(facts).encode()).hexdigest()[:16]

    def _path(self, name: str) -> Path:
        return self.folder / self.judge.hash[:20] / f"{name}.json"

    def _read(self, name: str) -> dict[str, Answer]:
        """Answers of one picture by question; what is no answer is asked again."""
        answers: dict[str, Answer] = {}
        with contextlib.suppress(InputError):  # not there, or damaged
            kept: Any = read_json(self._path(name))
            for key, row in kept.items() if isinstance(kept, dict) else ():
                yes, text = (row.get("yes"), row.get("text")) if isinstance(row, dict) else ("", "")
                known = isinstance(yes, float | int) and not isinstance(yes, bool) and 0 <= yes <= 1
                if isinstance(text, str) and (yes is None or known):
                    answers[key] = Answer(yes if yes is None else float(yes), text)
        return answers

    def _write(self, name: str, fresh: dict[str, Answer]) -> None:
        rows = self._read(name) | fresh
        write_json(self._path(name), {key: {"yes": own.yes, "text": own.text} for key, own in sorted(rows.items())})
