"""Making a set picture by picture: what an engine has to offer, and the loop that resumes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
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
    """Make the first ``count`` candidates that are not refused; ``raw.jsonl`` lists each as soon as it is whole.

    Args:
        source: endless candidates, from the first on.
        max_refusals: stop once so many candidates of the set have been refused.

    Raises:
        InputError: the engine can go no further, too many refusals, or a picture of other origin is in the way.
    """
    refused = refused_numbers(folder)
    left = (candidate for candidate in source if candidate.number not in refused)
    chosen = list(itertools.islice(left, count))
    whole = {c.number for c in chosen if _is_whole(folder, c, painter)}
    there, made, position = len(whole), 0, 0
    with progress(count, "generate", initial=there, unit="triplet") as bar:
        while position < count:
            candidate = chosen[position]
            if candidate.number in whole:
                position += 1
                continue
            if len(refused) >= max_refusals:
                raise InputError(
                    f"{folder / REFUSALS}: {len(refused)} prompts were refused; read there why, then raise "
                    "--max-refusals, or take other --pairs in another --output"
                )
            try:
                _paint(folder, candidate, painter)
            except Refused as refusal:
                refused.add(candidate.number)
                _note(folder, candidate, refusal)
                chosen.pop(position)
                chosen.append(next(left))
                if _is_whole(folder, chosen[-1], painter):
                    whole.add(chosen[-1].number)
                continue
            whole.add(candidate.number)
            made += 1
            bar.update()
            write_raw(folder, [_triplet(folder, c, relation) for c in chosen if c.number in whole])
    write_raw(folder, [_triplet(folder, c, relation) for c in chosen])
    return Done(made=made, there=count - made, refused=len(refused))


def places(folder: Path, candidate: Candidate) -> list[Path]:
    """Where the pictures of a triplet lie: the target's, then those of the individuals."""
    alone = (folder / "images" / f"{candidate.number}-{k}.png" for k in range(len(candidate.names)))
    return [folder / f"{candidate.number}.png", *alone]


def _is_whole(folder: Path, candidate: Candidate, painter: Painter) -> bool:
    found = places(folder, candidate)
    return all(_is_made(place, _record(candidate, k, found[:k], painter)) for k, place in enumerate(found))


def _paint(folder: Path, candidate: Candidate, painter: Painter) -> None:
    """Make the pictures of a triplet that are not there."""
    found = places(folder, candidate)
    for k, place in enumerate(found):
        record = _record(candidate, k, found[:k], painter)
        if not _is_made(place, record):
            references = found[:k] if painter.sees_references else []
            image = painter.paint(candidate.prompts[k], references, candidate.number, k)
            save_png(image, place, candidate.prompts[k], record)


def _record(candidate: Candidate, index: int, earlier: Sequence[Path], painter: Painter) -> dict[str, Any]:
    """What makes a picture the one that is wanted; a target made anew makes those from it stale."""
    references = [sha256(path) for path in earlier] if painter.sees_references else []
    return {"prompt": candidate.prompts[index], "references": references, "engine": painter.name}


def _is_made(place: Path, record: Mapping[str, Any]) -> bool:
    found = read_record(place)
    if found is None and place.exists():
        raise InputError(f"{place}: not made by this command, or broken; move it away and run the same command again")
    return found == record


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
