"""Triplets as training sets of edit models, for the trainers that people use: one table, ``TRAINERS``.

A module each says where the trainer wants what, as data and pure functions; :mod:`layout` makes the plan of all files.
"""

from __future__ import annotations

import os
import shlex
import zipfile
from collections.abc import Sequence
from pathlib import Path

from rbctl.errors import InputError, shortlist
from rbctl.files import LOCK, PARTIAL, atomic_write, png_bytes, read_text, write_bytes
from rbctl.plugins.data.trainers import ai_toolkit, civitai, diffsynth, diffusers, musubi, simpletuner
from rbctl.plugins.data.trainers.layout import README, SCRIPT, Archive, Content, Layout, check_base, plan
from rbctl.plugins.data.trainers.training import Training, make_training
from rbctl.progress import progress
from rbctl.relations import Relation
from rbctl.triplets import Triplet, data_hash
from rbctl.triplets.folder import EXPORTED, read

TRAINERS: dict[str, Layout] = {
    "ai-toolkit": ai_toolkit.LAYOUT,
    "musubi": musubi.LAYOUT,
    "diffsynth": diffsynth.LAYOUT,
    "simpletuner": simpletuner.LAYOUT,
    "civitai": civitai.LAYOUT,
    "diffusers": diffusers.LAYOUT,
}
BASES = tuple(ai_toolkit.LAYOUT.bases)

_OLDEST = (1980, 1, 1, 0, 0, 0)  # the date of every file in a ZIP, so that the same set is the same ZIP

_README = """# {name} for {trainer}

A training set for {trainer}, of {count} triplets. The layout is that of {source} at commit {version}.
The base is {model}. {references} The first caption:

> {caption}

To train: `{start}`

{trainer} does not read `triplets.jsonl` and `originals/`. With them, `rbctl data import` brings back the whole set.
"""
_REFERENCES = {
    "": "It is given no references: this trainer has no editors.",
    "panel": "It is given one picture, in which the references stand side by side.",
    "image": "The captions say which individual is in which reference.",
}


def write_training_set(
    triplets: Sequence[Triplet],
    trainer: str,
    base: str,
    folder: Path,
    relation: Relation | None = None,
    masks: bool = True,
) -> str:
    """Write triplets as a training set. ``triplets.jsonl`` comes last, so an export that has it is whole.

    After an interruption the same call makes the same files. A whole export stays as it is, with what was edited.

    Args:
        trainer: of ``TRAINERS``.
        base: of ``BASES``.
        relation: of all triplets; without one their texts tell.
        masks: for the loss, where the trainer takes any.

    Returns:
        The line that starts the training, for a person.

    Raises:
        InputError: the trainer does not train the base, a triplet does not fit, or the folder holds something else.
    """
    layout = TRAINERS[trainer]
    training = make_training(triplets, base, check_base(trainer, layout, base), relation, masks)
    readme = _README.format(
        name=training.name,
        trainer=trainer,
        source=layout.source,
        version=layout.version,
        count=len(triplets),
        model=training.trained.model,
        references=_REFERENCES.get(training.trained.wording, _REFERENCES["image"]),
        caption=training.examples[0].caption,
        start=_start(layout, training, "."),
    )
    files = plan(layout, training, readme)
    start = _start(layout, training, str(folder))
    if (folder / EXPORTED).exists():
        kept = data_hash(triplet for triplet, _ in read(folder, table=EXPORTED))
        if kept != data_hash(triplets) or read_text(folder / README) != readme:
            raise InputError(f"{folder}: another export lies here; choose another folder, or remove this one")
        return start
    if others := sorted(_present(folder) - files.keys()):
        raise InputError(f"{folder}: holds {shortlist(others)}; choose a folder that is new or empty")
    with progress(len(files), "exporting", unit="file") as bar:
        for path, content in files.items():
            _write(folder, path, content)
            bar.update()
    return start


def _start(layout: Layout, training: Training, folder: str) -> str:
    if layout.archive:
        return f"upload {folder}/{layout.archive}, and paste the lines of samples.txt as sample prompts"
    named = "".join(f"{name}=... " for name in layout.variables(training))
    return f"{named}sh {shlex.quote(f'{folder}/{SCRIPT}')}"


def _present(folder: Path) -> set[str]:
    """The files in a folder, but those of a claim; kills may have left some of an export."""
    return {
        Path(place, name).relative_to(folder).as_posix()
        for place, _, names in os.walk(folder)
        for name in names
        if name != LOCK and not name.endswith(PARTIAL)
    }


def _write(folder: Path, path: str, content: Content) -> None:
    """Write a file, unless it lies there already, from a run that was interrupted."""
    place = folder / path
    if isinstance(content, Archive):
        with atomic_write(place) as temporary, zipfile.ZipFile(temporary, "w") as archive:
            for name, member in content.members.items():
                archive.writestr(zipfile.ZipInfo(name, _OLDEST), (folder / member).read_bytes())
        return
    if isinstance(content, str):
        encoded = content.encode()
    else:
        encoded = content.read_bytes() if isinstance(content, Path) else png_bytes(content())
    if place.is_symlink() or not place.is_file() or place.read_bytes() != encoded:
        write_bytes(place, encoded)
