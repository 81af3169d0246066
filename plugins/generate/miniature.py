"""Engine ``miniature``: the embedded world draws the triplets; the truth it knows is left to ``rbctl annotate``."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

from rbctl.errors import InputError
from rbctl.files import write_bytes
from rbctl.menagerie.triplets import draw_triplets
from rbctl.plugins.generate.config import GenerateConfig
from rbctl.plugins.generate.painting import Done
from rbctl.relations import Relation
from rbctl.triplets import load
from rbctl.triplets.raw import RAW, RawObject, RawTriplet, read_raw, write_raw

SIZE = 128  # pixels: what the bundle mini is made for


def draw_set(folder: Path, relation: Relation, config: GenerateConfig) -> Done:
    """Draw what is missing of a set. The same seed gives the same set, and the first of many are those of few.

    Raises:
        InputError: the folder cannot be written.
    """
    listed: tuple[RawTriplet, ...] = ()
    if (folder / RAW).exists():
        with contextlib.suppress(InputError):  # a part of it has gone: all is drawn again
            listed = read_raw(folder)
    if len(listed) >= config.number:
        write_raw(folder, listed[: config.number])
        return Done(made=0, there=config.number, refused=0)
    with tempfile.TemporaryDirectory() as name:
        drawn = Path(name) / "drawn"
        draw_triplets(relation, config.number, config.seed, drawn, size=config.pixels[0] or SIZE)

        def kept(picture: Path) -> Path:
            place = folder / picture.relative_to(drawn)
            write_bytes(place, picture.read_bytes())
            return place

        triplets = [
            RawTriplet(
                id=triplet.id,
                target=kept(triplet.target),
                text=triplet.prompt,
                predicate=triplet.predicate,
                objects=tuple(RawObject(name=o.name, role=o.role, image=kept(o.image)) for o in triplet.objects),
            )
            for triplet in load(drawn)
        ]
    write_raw(folder, triplets)
    return Done(made=config.number - len(listed), there=len(listed), refused=0)
