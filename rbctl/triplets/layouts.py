"""Which layout a folder has, and reading it whichever it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rbctl.errors import InputError
from rbctl.triplets import folder as native
from rbctl.triplets import official
from rbctl.triplets.problem import Reporter, Sink, refuse
from rbctl.triplets.triplet import Triplet


def has_triplets(folder: Path) -> bool:
    """Whether a folder has a layout that :func:`read` knows."""
    official_too = (folder / official.PROMPTS).exists() and (folder / official.VIDEOS).is_dir()
    return official_too or any((folder / table).exists() for table in (native.METADATA, native.EXPORTED))


def read(
    folder: Path, sink: Sink = refuse, predicate: str = "", follow_outside: bool = False
) -> Iterator[tuple[Triplet, Reporter]]:
    """Read a folder of either layout, or an export for a trainer; see ``folder.read`` and ``official.read``.

    Raises:
        InputError: there is no such folder, or it has neither layout.
    """
    if folder.is_file():
        raise InputError(f"{folder}: is a file; give the folder of the triplets")
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of triplets")
    if (folder / native.METADATA).exists():
        return native.read(folder, sink, predicate, follow_outside)
    if (folder / native.EXPORTED).exists():
        return native.read(folder, sink, predicate, follow_outside, native.EXPORTED)
    if (folder / official.PROMPTS).exists() and (folder / official.VIDEOS).is_dir():
        return official.read(folder, sink, predicate, follow_outside)
    raise InputError(
        f"{folder}: holds no triplets; two layouts are known: {native.METADATA} with its pictures "
        f"({native.EXPORTED} in an export), and the official {official.PROMPTS} with {official.VIDEOS}/ and masks/"
    )


def load(folder: Path, predicate: str = "", follow_outside: bool = False) -> list[Triplet]:
    """Load the triplets of a folder; pictures are looked for but not opened, but for the official layout's masks.

    Args:
        folder: of the native form or the official layout.
        predicate: for triplets that state none.
        follow_outside: files may lie outside of the folder.

    Raises:
        InputError: what ``read`` raises, the first thing that is broken, or there is no triplet at all.
    """
    triplets = [triplet for triplet, _ in read(Path(folder), predicate=predicate, follow_outside=follow_outside)]
    if not triplets:
        raise InputError(f"{folder}: holds no triplet")
    return triplets
