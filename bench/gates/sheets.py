"""Sheets of pictures for people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from bench.gates.cases import CaseSet, image
from rbctl.images import read_image, write_png
from rbctl.pictures import grid

_COLUMNS = 10


def write_sheet(path: Path, pictures: np.ndarray) -> None:
    """All pictures, uint8 (n, 3, H, W), in rows of ten."""
    write_png(path, grid([image(picture) for picture in pictures], _COLUMNS))


def write_pairs(path: Path, before: np.ndarray, after: np.ndarray, zoom: int = 3, count: int = 12) -> None:
    """Originals and what became of them side by side, pixels enlarged as they are."""
    cells = []
    for pair in list(zip(before, after, strict=True))[:count]:
        cells += [_zoomed(image(picture), zoom) for picture in pair]
    write_png(path, grid(cells, 4, ["original", "round trip"] * (len(cells) // 2)))


def write_contact_sheet(path: Path, cases: CaseSet, columns: Sequence[tuple[str, np.ndarray]]) -> None:
    """A row per case: image prompts, each of ``columns`` (caption, pictures), truth."""
    cells: list[Image.Image] = []
    captions: list[str] = []
    for k, case in enumerate(cases.cases):
        cells += [read_image(portrait) for portrait in case.portraits]
        captions += [one.description for one in case.individuals]
        for name, pictures in columns:
            cells.append(image(pictures[k]))
            captions.append(f"{case.relation.name}: {name}")
        cells.append(image(cases.pictures[k]))
        captions.append(case.scene.caption)
    side = max(cell.width for cell in cells)
    shown = [cell if cell.width == side else cell.resize((side, side), Image.Resampling.BICUBIC) for cell in cells]
    write_png(path, grid([_zoomed(cell, 2) for cell in shown], len(cells) // len(cases), captions))


def _zoomed(picture: Image.Image, zoom: int) -> Image.Image:
    return picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST)
