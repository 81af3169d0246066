"""Making a set picture by picture: what an engine has to offer, and the loop that resumes."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from rbctl.errors import InputError
from rbctl.files import read_jsonl, sha256, write_jsonl
from rbctl.pictures import read_record, save_png
from rbctl.plugins.generate.candidates import Candidate
from rbctl.progress import progress
from rbctl.relations import Relation
from rbctl.triplets.raw import RawObject, RawTriplet, write_raw

REFUSALS = "refusals.jsonl"


class Refused(Exception):
    """An engine will not make a picture of a prompt; the next one may do.

    Attributes:
        code: what kind of refusal, in the engine's words.
        message: what the engine says.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Painter(Protocol):
    """An engine that makes one picture at a time.

    Attributes:
        name: engine and model, told in the pictures.
        sees_references: the earlier pictures of a triplet are shown to it, so that identities hold.
    """

    name: str
    sees_references: bool

    def paint(self, prompt: str, references: Sequence[Path], candidate: int, index: int) -> Image.Image:
        """Make a picture.

        Args:
            references: earlier pictures of the triplet; empty for an engine that sees none.
            candidate: number of the triplet.
            index: 0 for the target, then the individuals alone.

        Raises:
            Refused: not this prompt.
            InputError: no further picture can be made now; what exists is kept.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Done:
    """What a run did: triplets made now, those that were there, and the set's refused prompts."""

    made: int
    there: int
    refused: int


def refused_numbers(folder: Path) -> set[int]:
    """Numbers of the candidates of a set that were refused.

    Raises:
        InputError: their file is damaged.
    """
    path = folder / REFUSALS
    rows = read_jsonl(path) if path.exists() else []
    return {row["candidate"] for row in rows if isinstance(row.get("candidate"), int)}


def paint_set(
    folder: Path, relation: Relation, source: Iterator[Candidate], count: int, painter: Painter, max_refusals: int
) -> Done:
    """Make the first ``count`` candidates that are not refused.

    ``raw.jsonl`` lists them as they become whole: each at first, later whenever a tenth has been added, so that writing
    it takes no longer for each triplet of a large set. It lists all when the work ends, by an error too.

    Args:
        source: endless candidates, from the first on.
        max_refusals: stop once so many candidates of the set have been refused.

    Raises:
        InputError: the engine can go no further, too many refusals, or a picture of other origin is in the way.
    """

    def is_whole(candidate: Candidate) -> bool:
        return not any(_missing(folder, candidate, painter))

    def write_list() -> int:
        write_raw(folder, [_triplet(folder, c, relation) for c in chosen if c.number in whole])
        return len(whole)

    refused = refused_numbers(folder)
    left = (candidate for candidate in source if candidate.number not in refused)
    chosen = list(itertools.islice(left, count))
    whole = {candidate.number for candidate in chosen if is_whole(candidate)}
    waiting = deque(candidate for candidate in chosen if candidate.number not in whole)
    made = listed = 0
    try:
        with progress(count, "generate", initial=len(whole), unit="triplet") as bar:
            while waiting:
                candidate = waiting.popleft()
                if len(refused) >= max_refusals:
                    raise InputError(
                        f"{folder / REFUSALS}: {len(refused)} prompts were refused; read there why, then raise "
                        "--max-refusals, or take other --pairs in another --output"
                    )
                try:
                    for index, place, references, record in _missing(folder, candidate, painter):
                        image = painter.paint(candidate.prompts[index], references, candidate.number, index)
                        save_png(image, place, candidate.prompts[index], record)
                except Refused as refusal:
                    refused.add(candidate.number)
                    _note(folder, candidate, refusal)
                    chosen.remove(candidate)
                    chosen.append(next(left))
                    if is_whole(chosen[-1]):
                        whole.add(chosen[-1].number)
                    else:
                        waiting.append(chosen[-1])
                    continue
                whole.add(candidate.number)
                made += 1
                bar.update()
                if len(whole) >= 1.1 * listed:
                    listed = write_list()
    finally:
        write_list()
    return Done(made=made, there=count - made, refused=len(refused))


def places(folder: Path, candidate: Candidate) -> list[Path]:
    """Where the pictures of a triplet lie: the target's, then those of the individuals."""
    alone = (folder / "images" / f"{candidate.number}-{k}.png" for k in range(len(candidate.names)))
    return [folder / f"{candidate.number}.png", *alone]


def _missing(
    folder: Path, candidate: Candidate, painter: Painter
) -> Iterator[tuple[int, Path, list[Path], dict[str, Any]]]:
    """Index, place, references and record of the pictures of a triplet that are not there as they should be.

    A target made anew makes those from it stale, so each is looked at when those before it are made.
    """
    paths = places(folder, candidate)
    for index, place in enumerate(paths):
        references = paths[:index] if painter.sees_references else []
        hashes = [sha256(path) for path in references]
        record = {"prompt": candidate.prompts[index], "references": hashes, "engine": painter.name}
        before = read_record(place)
        if before is None and place.exists():
            raise InputError(
                f"{place}: not made by this command, or broken; move it away and run the same command again"
            )
        if before != record:
            yield index, place, references, record


def _note(folder: Path, candidate: Candidate, refusal: Refused) -> None:
    path = folder / REFUSALS
    row = {"candidate": candidate.number, "text": candidate.text, "code": refusal.code, "message": refusal.message}
    write_jsonl(path, [*(read_jsonl(path) if path.exists() else []), row])


def _triplet(folder: Path, candidate: Candidate, relation: Relation) -> RawTriplet:
    target, *alone = places(folder, candidate)
    return RawTriplet(
        id=target.stem,
        target=target,
        text=candidate.text,
        predicate=candidate.predicate,
        objects=tuple(
            RawObject(name=name, role=role.name, image=image)
            for name, role, image in zip(candidate.names, relation.roles, alone, strict=True)
        ),
    )
