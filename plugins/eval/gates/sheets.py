"""Sheets of pictures for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from rbctl.files import read_image
from rbctl.menagerie.cases import DrawnCase
from rbctl.pictures import grid, save_png
from rbctl.provenance import SHEET


def write_pairs(path: Path, pairs: Sequence[tuple[Image.Image, Image.Image]]) -> None:
    """Originals and their round trips side by side, pixels enlarged as they are."""
    cells = [_zoomed(picture, 3) for pair in pairs for picture in pair]
    save_png(grid(cells, 4, ["original", "round trip"] * len(pairs)), path, source_type=SHEET)


def write_contact_sheet(path: Path, cases: Sequence[DrawnCase], columns: Mapping[str, Sequence[Image.Image]]) -> None:
    """A row per case: image prompts, the picture of each column, truth.

    Args:
        columns: pictures by caption, one for each case.
    """
    cells: list[Image.Image] = []
    captions: list[str] = []
    for k, case in enumerate(cases):
        cells += [read_image(portraits[0]) for portraits in case.portraits]
        captions += [individual.description for individual in case.individuals]
        cells += [pictures[k] for pictures in columns.values()]
        captions += [f"{case.relation.name}: {name}" for name in columns]
        cells.append(read_image(case.picture))
        captions.append(case.scene.caption)
    side = max(cell.width for cell in cells)
    shown = [cell if cell.width == side else cell.resize((side, side), Image.Resampling.BICUBIC) for cell in cells]
    sheet = grid([_zoomed(cell, 2) for cell in shown], len(cells) // len(cases), captions)
    save_png(sheet, path, source_type=SHEET)


def _zoomed(picture: Image.Image, zoom: int) -> Image.Image:
    return picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST)
