"""A trainer's layout as data, and the plan of an export: every file of it and what goes into each, before any is made.

Pictures come to their places byte for byte, where the trainer reads them as we do. Else the trainer gets a PNG of what
we read, and the original lies in ``originals/``. There lie the masks too. ``triplets.jsonl`` names the originals, so
that an export holds the whole set.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageOps

from rbctl.errors import InputError
from rbctl.files import read_image
from rbctl.plugins.data.trainers.training import Base, Example, Sample, Training
from rbctl.triplets import Triplet, TripletObject
from rbctl.triplets.folder import EXPORTED, as_row
from rbctl.triplets.masks import filled, read_mask, resized

ORIGINALS = "originals"
README = "README.md"
SCRIPT = "train.sh"


@dataclass(frozen=True)
class Archive:
    """A ZIP of files of the export: name in it -> path in the export."""

    members: Mapping[str, str]


# Text, a file to copy, a picture to draw, or a ZIP of other files.
Content: TypeAlias = str | Path | Callable[[], Image.Image] | Archive


@dataclass(frozen=True)
class Layout:
    """Where a trainer wants what. Patterns name paths in the export by {stem}, {count}, {number} from 1 and {index}
    from 0; a pattern of a picture has no suffix. An empty pattern: the trainer takes none.

    Attributes:
        source: address of the trainer's code.
        version: the commit that the layout was read from, with its date.
        bases: by their names here.
        target: pattern of the pictures to learn.
        reference: pattern of the control pictures.
        caption: pattern of the texts, where each is a file.
        mask: pattern of the masks of the loss.
        sign: a file by which the layout is known.
        settings: path -> text: configuration, lists and ``train.sh``.
        variables: of the shell, that ``train.sh`` needs: name -> what to set it to.
        one_suffix: the target, references and mask of an example must have the same suffix.
        archive: path of a ZIP with all pictures to learn and their texts.
    """

    source: str
    version: str
    bases: Mapping[str, Base]
    target: str
    sign: str
    settings: Callable[[Training], Mapping[str, str]]
    reference: str = ""
    caption: str = ""
    mask: str = ""
    variables: Callable[[Training], Mapping[str, str]] = field(default=lambda training: {})
    one_suffix: bool = False
    archive: str = ""

    def place(self, pattern: str, example: Example, reference: int = 0) -> str:
        """A pattern's path for an example, and for one of its references by number from 0."""
        return pattern.format(stem=example.stem, count=example.count, number=reference + 1, index=reference)


def written_suffixes(layout: Layout, training: Training, example: Example) -> tuple[str, ...]:
    """The suffixes of an example's target and references, as they are written."""
    target, *images = (suffix or ".png" for suffix in example.suffixes)
    references = [".png"] if training.trained.wording == "panel" else images
    suffixes = (target, *references) if layout.reference else (target,)
    alike = {*suffixes, *([".png"] if layout.mask and training.masks else [])}
    return (".png",) * len(suffixes) if layout.one_suffix and len(alike) > 1 else suffixes


def references_of(layout: Layout, training: Training, example: Example) -> tuple[str, ...]:
    """The paths of an example's control pictures; one alone, where they stand in panels."""
    suffixes = written_suffixes(layout, training, example)[1:]
    return tuple(layout.place(layout.reference, example, k) + suffix for k, suffix in enumerate(suffixes))


def target_of(layout: Layout, training: Training, example: Example) -> str:
    """The path of the picture to learn."""
    return layout.place(layout.target, example) + written_suffixes(layout, training, example)[0]


def references_of_sample(layout: Layout, training: Training, sample: Sample) -> tuple[str, ...]:
    """The paths of the control pictures of a prompt to sample by."""
    if training.trained.wording == "panel":
        return (f"samples/{sample.stem}.png",)
    return tuple(references_of(layout, training, example)[reference] for example, reference in sample.references)


def plan(layout: Layout, training: Training, readme: str) -> dict[str, Content]:
    """Every file of the export, by its path in it; ``triplets.jsonl`` is the last."""
    files: dict[str, Content] = {README: readme}
    rows = []
    for example in training.examples:
        triplet, written = example.triplet, dict[Path, str]()
        target, references = target_of(layout, training, example), references_of(layout, training, example)
        files[target] = _as_trained(triplet.target, example.suffixes[0], target)
        written[triplet.target] = target
        if training.trained.wording == "panel":
            objects = [example.object(k) for k in range(example.count)]
            files[references[0]] = functools.partial(panels, triplet.target, objects)
        else:
            for k, path in enumerate(references):
                files[path] = _as_trained(example.object(k).image, example.suffixes[k + 1], path)
                written[example.object(k).image] = path
        if layout.caption:
            files[layout.place(layout.caption, example)] = example.caption  # and no line end: some trainers split there
        if layout.mask and training.masks:
            files[layout.place(layout.mask, example)] = functools.partial(focus, triplet)
        row, originals = _row(example, written, files)
        rows.append(row)
        files |= originals
    if training.trained.wording == "panel":
        for sample in training.samples:
            first, _ = sample.references[0]
            files[f"samples/{sample.stem}.png"] = functools.partial(panels, first.triplet.target, sample.objects)
    if layout.archive:
        targets = [target_of(layout, training, example) for example in training.examples]
        texts = [layout.place(layout.caption, example) for example in training.examples]
        files[layout.archive] = Archive({Path(path).name: path for path in sorted(targets + texts)})
    files |= layout.settings(training)
    files[EXPORTED] = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return files


def _row(example: Example, written: Mapping[Path, str], files: Mapping[str, Content]) -> tuple[dict, dict]:
    """The triplet's line of ``triplets.jsonl``, and the originals that lie nowhere else."""
    originals = dict[str, Content]()

    def kept(source: Path, stem: str) -> str:
        if source in written and isinstance(files[written[source]], Path):
            return written[source]
        path = f"{ORIGINALS}/{example.stem}{stem}{source.suffix.lower()}"
        originals[path] = source
        return path

    triplet = example.triplet
    # Numbered as the references are, so that captions tell who is who without the table.
    numbered = [(example.individuals.index(k), individual) for k, individual in enumerate(triplet.objects)]
    row = as_row(
        triplet,
        kept(triplet.target, ""),
        [kept(individual.image, f"-{k}") for k, individual in numbered],
        [kept(individual.mask, f"-mask-{k}") if individual.mask else None for k, individual in numbered],
    )
    return row, originals


def _as_trained(source: Path, suffix: str, path: str) -> Content:
    """A picture as the trainer gets it: the file itself, or a PNG of what we read of it."""
    return source if suffix == Path(path).suffix else functools.partial(read_image, source)


def panels(target: Path, objects: Sequence[TripletObject]) -> Image.Image:
    """The individuals' pictures side by side on white. It has the target's size, since trainers scale both alike."""
    with read_image(target) as picture:
        width, height = picture.size
    canvas = Image.new("RGB", (width, height), "white")
    for number, individual in enumerate(objects):
        left, right = (round(width * k / len(objects)) for k in (number, number + 1))
        fitted = ImageOps.contain(read_image(individual.image), (right - left, height), Image.Resampling.LANCZOS)
        canvas.paste(fitted, (left + (right - left - fitted.width) // 2, (height - fitted.height) // 2))
    return canvas


def focus(triplet: Triplet) -> Image.Image:
    """Where the individuals are in the target: white on black, of its size. Without a mask, one fills its box."""
    with read_image(triplet.target) as picture:
        width, height = picture.size
    inside = np.zeros((height, width), bool)
    for individual in triplet.objects:
        if individual.mask is None:
            inside |= filled(individual.box, width, height)
            continue
        mask = read_mask(individual.mask)
        inside |= mask if mask.shape == (height, width) else resized(mask, width, height)
    return Image.fromarray(inside.astype(np.uint8) * 255)


def script(variables: Mapping[str, str], commands: Sequence[str]) -> str:
    """``train.sh``: runs in its own folder, wherever that lies, and says which variable is missing."""
    checks = [f': "${{{name}:?set it to {what}}}"' for name, what in variables.items()]
    return "\n".join(["#!/bin/sh", "set -eu", 'cd "$(dirname "$0")"', *checks, *commands]) + "\n"


def command(program: str, options: Mapping[str, object]) -> str:
    """A command over several lines; an option that is True stands alone."""
    parts = [f"--{name}" if value is True else f"--{name} {value}" for name, value in options.items()]
    return " \\\n  ".join([program, *parts])


def check_base(name: str, layout: Layout, base: str) -> Base:
    """The base as a trainer has it.

    Raises:
        InputError: the trainer does not train it.
    """
    if base not in layout.bases:
        raise InputError(f"--base {base}: {name} does not train it; it trains {', '.join(layout.bases)}")
    return layout.bases[base]
