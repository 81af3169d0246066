"""What a person corrected on the review page, and laying it over what was annotated.

FOLDER/corrections.json alone holds what was corrected so far, and FOLDER/.annotate/metadata.jsonl the triplets without
that: so a correction can be taken back, and annotating again does not lose it. metadata.jsonl is made of both. It is
written last, and corrections.json tells by digests which of its contents are ours: wherever a kill comes, what was
corrected stays known, and the next run does not take it for the work of somebody else. The form::

    {"triplets": {"0.png": {"drop": true},
                  "1.png": {"objects": [{"target_keypoints": {"3": [0.4, 0.25, 2]}, "image_keypoints": {}}, {}]}},
     "published": ["sha256 of metadata.jsonl's rows before", "and after it was written last"]}
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from annotated_types import Interval

from rbctl.errors import InputError, abridged
from rbctl.files import content_hash, numbered_lines, read_json, read_jsonl, write_json, write_jsonl
from rbctl.formats import Check, read
from rbctl.parsing import parse_json
from rbctl.plugins.annotate.cache import PLACE
from rbctl.triplets.folder import METADATA, with_pictures, write_card
from rbctl.triplets.folder import read as read_triplets
from rbctl.triplets.keypoints import KEYPOINTS
from rbctl.triplets.problem import Problem, refuse

CORRECTIONS = "corrections.json"

Rows = list[dict[str, Any]]


def _counted(points: dict[str, Any]) -> dict[str, Any]:
    for number in points:
        if number not in map(str, range(len(KEYPOINTS))):
            raise ValueError(f"{abridged(number)}: keypoints are counted from 0 to {len(KEYPOINTS) - 1}")
    return points


Coordinate = Annotated[float, Interval(ge=0, le=1)]
Point = tuple[Coordinate, Coordinate, Literal[0, 1, 2]]  # x, y, visibility
Part = Literal["target_keypoints", "image_keypoints"]
Changes = dict[Part, Annotated[dict[str, Point], Check(_counted)]]  # new keypoints of one object, by their numbers


@dataclass(frozen=True, kw_only=True)
class Correction:
    """What is changed of one triplet.

    Attributes:
        drop: whether it is left out; None: as before.
        objects: of its first objects.
    """

    drop: bool | None = None
    objects: tuple[Changes, ...] = ()

    def then(self, later: Correction) -> Correction:
        """Both, one after the other."""
        none: Changes = {}
        objects = tuple(
            {part: {**old.get(part, {}), **new.get(part, {})} for part in get_args(Part)}
            for old, new in itertools.zip_longest(self.objects, later.objects, fillvalue=none)
        )
        return Correction(drop=bool(self.drop if later.drop is None else later.drop), objects=objects)

    def shown_by(self, row: Mapping[str, Any]) -> Correction:
        """What of it a row of metadata.jsonl shows, its triplet not being dropped."""
        objects = tuple(
            {part: {n: p for n, p in points.items() if entry[part][int(n)] == list(p)} for part, points in new.items()}
            for entry, new in zip(row["objects"], self.objects, strict=False)
        )
        return Correction(drop=False, objects=objects)

    def on(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """A row of metadata.jsonl with the new keypoints in it."""
        corrected = copy.deepcopy(dict(row))
        for entry, new in zip(corrected["objects"], self.objects, strict=False):
            for part, points in new.items():
                for number, point in points.items():
                    entry[part][int(number)] = list(point)
        return corrected


@dataclass(frozen=True, kw_only=True)
class Corrections:
    """corrections.json.

    Attributes:
        triplets: by their file names.
        published: digests of what metadata.jsonl held when it was written last, or was about to be.
    """

    triplets: dict[str, Correction]
    published: tuple[str, ...] = ()

    def of(self, row: Mapping[str, Any]) -> Correction:
        """The correction of a row of metadata.jsonl; one that changes nothing where there is none."""
        return self.triplets.get(row["file_name"], Correction())


def read_corrections(path: Path) -> Corrections:
    """Read corrections.json, or what the review page saves.

    Raises:
        InputError: the file is damaged, or no such thing; the entry is named.
    """
    return read(Corrections, read_json(path), str(path))


def publish(folder: Path, rows: Rows) -> None:
    """Write metadata.jsonl: newly annotated rows and the corrections known of them."""
    _write(folder, rows, _known(folder))


def apply(folder: Path, path: Path, follow_outside: bool = False) -> int:
    """Take corrections in; returns how many triplets are left.

    Raises:
        InputError: the file is wrong, names a triplet that is not there, or would leave none.
    """
    new = read_corrections(path)
    rows, known = base(folder, follow_outside)
    counts = {row["file_name"]: len(row["objects"]) for row in rows}
    for name, correction in new.triplets.items():
        where = f"{path}: {abridged(name)}"
        if name not in counts:
            raise InputError(f"{where}: no such triplet in {folder / METADATA}; it is of another set")
        if len(correction.objects) > counts[name]:
            raise InputError(f"{where}: has {counts[name]} objects, not {len(correction.objects)}")
    both = {row["file_name"]: known.of(row).then(new.of(row)) for row in rows if row["file_name"] in new.triplets}
    known = dataclasses.replace(known, triplets={**known.triplets, **both})
    if all(known.of(row).drop for row in rows):
        raise InputError(f"{path}: drops every triplet; keep one at least")
    return _write(folder, rows, known)


def base(folder: Path, follow_outside: bool = False) -> tuple[Rows, Corrections]:
    """The triplets without corrections, and the corrections.

    Where somebody else changed metadata.jsonl since, its triplets are taken as they are: corrections that they do not
    show were overruled. Dropped ones are kept all the same.

    Raises:
        InputError: there are no triplets, or they or the corrections are broken.
    """
    if not (folder / METADATA).is_file():
        run = f"run 'rbctl annotate {folder}', or 'rbctl data import', first"
        raise InputError(f"{folder}: holds no {METADATA}; {run}")
    now, known = _rows(folder, METADATA, follow_outside, strict=True), _known(folder)
    if not now:
        raise InputError(f"{folder}: holds no triplet")
    if not known.triplets:
        return now, known
    table = f"{PLACE}/{METADATA}"
    before = _rows(folder, table, follow_outside, strict=False) if (folder / table).is_file() else []
    if before and content_hash(now) in known.published:
        return before, known
    by_name = {row["file_name"]: row for row in now}
    dropped = [row for row in before if row["file_name"] not in by_name and known.of(row).drop]
    shown = {name: c.shown_by(by_name[name]) if name in by_name else c for name, c in known.triplets.items()}
    return [*now, *dropped], Corrections(triplets=shown)


def _write(folder: Path, rows: Rows, known: Corrections) -> int:
    """Write base, corrections and what both make, in the order in which a kill loses nothing; returns what is left."""
    left = [with_pictures(known.of(row).on(row)) for row in rows if not known.of(row).drop]
    write_card(folder, left)
    write_jsonl(folder / PLACE / METADATA, rows)
    if known.triplets:
        after = content_hash(left)
        if known.published[-1:] != (after,):  # else this was written already, before a kill or by the same command
            before = []
            with contextlib.suppress(InputError):  # there is none, or it is damaged
                before = [content_hash(read_jsonl(folder / METADATA))]
            known = dataclasses.replace(known, published=(*before, after))
        write_json(folder / CORRECTIONS, dataclasses.asdict(known))
    write_jsonl(folder / METADATA, left)
    return len(left)


def _known(folder: Path) -> Corrections:
    path = folder / CORRECTIONS
    return read_corrections(path) if path.is_file() else Corrections(triplets={})


def _rows(folder: Path, table: str, follow_outside: bool, strict: bool) -> Rows:
    """The rows of a table of triplets, each checked as any triplet is.

    Args:
        strict: a broken one is an error; else it is left out: of a triplet that was dropped the pictures may be gone.
    """
    broken: set[str] = set()

    def tell(problem: Problem) -> None:
        if strict:
            refuse(problem)
        if problem.level == "error":
            broken.add(problem.file)

    for _ in read_triplets(folder, tell, follow_outside=follow_outside, table=table):
        pass
    lines = [(f"{folder / table}:{number}", line) for number, line in numbered_lines(folder / table)]
    return [parse_json(line, where) for where, line in lines if where not in broken]
