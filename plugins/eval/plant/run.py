"""The work of ``rbctl eval plant``."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from rbctl.errors import InputError
from rbctl.files import read_image, write_png
from rbctl.images import open_image
from rbctl.plugins.eval.case import Case, CaseObject, Part, Picture
from rbctl.plugins.eval.judges.planted import Fault, Planted, possible, truth_of, write_set
from rbctl.plugins.eval.judges.questions import questions
from rbctl.plugins.eval.plant.pasting import Pasted, beside, framed, in_boxes, moved, off_plain_ground, painted, trimmed
from rbctl.progress import progress
from rbctl.relations import Box, Relation, load_relation

FAULTS: tuple[Fault, ...] = ("none", "exchanged", "missing", "twice", "merged", "no contact")
_FRAMES = ((0.02, 0.04, 0.68, 0.96), (0.71, 0.5, 0.98, 0.96))  # of the two, and of a second one; or mirrored
_Who = tuple[int, Pasted]


def run(
    cutouts: Sequence[tuple[str, Path]],
    scenes: Sequence[Path],
    relations: Sequence[str],
    output: Path,
    size: int,
    seed: int,
) -> Path:
    """Paste, write the list and the answers; returns the folder.

    Raises:
        InputError: a picture cannot be read or is not on plain ground, a relation is not of two, or all have one name.
    """
    read = [load_relation(name) for name in relations]
    if wrong := [relation.name for relation in read if len(relation.roles) != 2]:
        raise InputError(f"--relation {wrong[0]}: two individuals are pasted; it has another number of roles")
    pairs = [(a, b) for a, b in itertools.permutations(range(len(cutouts)), 2) if cutouts[a][0] != cutouts[b][0]]
    if not pairs:
        raise InputError("cut-outs: two of different names were expected")
    cut, shown = [cut_out(path) for _, path in cutouts], []
    for number, ((name, _), cutout) in enumerate(zip(cutouts, cut, strict=True)):
        path = output / "cutouts" / f"{number}.png"
        write_png(path, cutout)
        shown.append(CaseObject(name, path, (path,)))
    grounds = [read_image(path) for path in scenes]
    planted: list[Planted] = []
    with progress(len(read) * len(pairs), "pasting", unit="pair") as bar:
        for number, (relation, pair) in enumerate(itertools.product(read, pairs)):
            people = tuple(shown[k] for k in pair)
            text = relation.prompt([individual.name for individual in people])
            case = Case(f"{number:04}", text, people, relation=relation.name, group=relation.name)
            for fault in FAULTS:
                rng = np.random.default_rng((seed, number, FAULTS.index(fault)))
                ground = grounds[int(rng.integers(len(grounds)))]
                own = _planted(case, relation, [cut[k] for k in pair], ground, fault, rng, size, output)
                planted += [own] if own else []
            bar.update()
    write_set(planted, output)
    return output


def cut_out(path: Path) -> Image.Image:
    """RGBA of an individual alone.

    Raises:
        InputError: the picture has no transparency, and does not show one patch on plain ground.
    """
    with open_image(path) as opened:
        transparent = opened.has_transparency_data
    image = read_image(path, "RGBA" if transparent else "RGB")
    if not transparent:
        mask = off_plain_ground(image)
        if mask is None:
            raise InputError(f"{path}: neither transparent nor on plain ground; cut it out with a picture editor")
        image.putalpha(Image.fromarray(mask.astype(np.uint8) * 255))
    if not (np.asarray(image.getchannel("A")) >= 128).any():
        raise InputError(f"{path}: transparent everywhere")
    return trimmed(image)


def _planted(
    case: Case,
    relation: Relation,
    cutouts: Sequence[Image.Image],
    ground: Image.Image,
    fault: Fault,
    rng: np.random.Generator,
    size: int,
    output: Path,
) -> Planted | None:
    asked, who = questions(case), int(rng.integers(2))
    if not possible(asked, fault):
        return None
    side = bool(rng.integers(2))
    frame, rest = (_mirrored(own) if side else own for own in _FRAMES)
    shown = framed(_arranged(relation, cutouts, fault, size), frame, size)
    people: list[_Who] = list(enumerate(shown))
    truth = truth_of(asked, fault, who)
    truth |= {question.id: True for question in asked if question.kind == "copied" and question.id in truth}
    if fault == "missing":
        people = [own for own in people if own[0] != who]
    elif fault == "twice":
        people.append((who, beside(shown[who], rest, size)))
    elif fault == "merged":
        truth.pop("present 1")  # the first one hides it
    name = f"{case.id}-{fault.replace(' ', '_')}"
    path = output / f"{name}.png"
    write_png(path, painted(ground, [own for _, own in people], size))
    parts: list[Part | None] = [None, None]
    for k, own in people[:2]:
        mask = parts[k] = output / "masks" / f"{name}-{k}.png"
        write_png(mask, Image.fromarray(own.mask(size).astype(np.uint8) * 255))
    return Planted(Picture(fault, path, case, tuple(parts), detected=True), fault, truth)


def _arranged(relation: Relation, cutouts: Sequence[Image.Image], fault: Fault, size: int) -> list[Pasted]:
    """The two where the relation's boxes lie; where it has contacts, they touch."""
    boxes = [role.box for role in relation.roles]
    if fault == "merged":
        return in_boxes(cutouts, [boxes[1], boxes[1]], size)
    if fault == "exchanged":
        second, first = in_boxes(cutouts[::-1], boxes, size)
        pair = [first, second]
    else:
        pair = in_boxes(cutouts, boxes, size)
    if (relation.scene or {}).get("contacts"):
        pair = moved(pair, size, apart=fault == "no contact")
    return pair


def _mirrored(frame: Box) -> Box:
    x0, y0, x1, y1 = frame
    return 1 - x1, y0, 1 - x0, y1
