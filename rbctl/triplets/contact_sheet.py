"""Pictures of a whole set of triplets, to see at a glance whether the annotations sit where they should."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from rbctl.pictures import COLOURS, save_sheet, sheet_row, write_tags
from rbctl.triplets.geometry import Annotated, image_prompt, resize, target
from rbctl.triplets.keypoints import ABSENT, OCCLUDED, SKELETON
from rbctl.triplets.triplet import Triplet

_HEIGHT = 384  # of every picture, px
_FINE = 2  # overlays are drawn this much larger and shrunk, for smooth lines

_PAPER = (255, 255, 255)


def contact_sheet(triplets: Sequence[Triplet], path: Path) -> list[Path]:
    """Write PNGs with a row per triplet: the target, the image prompts, and the prompt below.

    ``path`` has the first 50 triplets; NAME-2.png beside it has the next 50, and so on.

    In the target each object has its colour, for mask, box, skeleton and name; its image prompt has the same one.
    Keypoints that are occluded are hollow.

    Returns:
        The pages' paths.

    Raises:
        InputError: a picture cannot be read, or ``path`` cannot be written; pages before are written.
    """
    captions = [f"{t.prompt}  ({t.id} · {t.predicate or 'no predicate'})" for t in triplets]
    return save_sheet(map(_row, triplets), path, None, captions)


def _row(triplet: Triplet) -> Image.Image:
    tags = [f"{individual.name} · {individual.role}" for individual in triplet.objects]
    colours = [COLOURS[k % len(COLOURS)] for k in range(len(tags))]
    pictures = [_picture(target(triplet), tags, colours, outlined=True)]
    for individual, colour in zip(triplet.objects, colours, strict=True):
        pictures.append(_picture(image_prompt(individual), [individual.name], [colour], outlined=False))
    return sheet_row([], pictures, height=_HEIGHT)


def _picture(a: Annotated, tags: list[str], colours: list[tuple[int, int, int]], outlined: bool) -> Image.Image:
    """One picture with its objects drawn over it; ``outlined`` adds masks and boxes."""
    width = max(1, round(a.image.width * _HEIGHT / a.image.height))
    a = resize(a, width * _FINE, _HEIGHT * _FINE)
    image = a.image
    if outlined:
        for mask, colour in zip(a.masks, colours, strict=True):
            veil = Image.fromarray(mask.astype(np.uint8) * 56)
            image = Image.composite(Image.new("RGB", image.size, colour), image, veil)
    pen = ImageDraw.Draw(image)
    for box, keypoints, colour in zip(a.boxes, a.keypoints, colours, strict=True):
        if outlined and box.any():
            x0, y0, x1, y1 = box * (*image.size, *image.size)
            pen.rectangle((x0, y0, x1 - 1, y1 - 1), outline=colour, width=2 * _FINE)
        _skeleton(pen, keypoints * (*image.size, 1), colour)
    image = image.resize((width, _HEIGHT), Image.Resampling.LANCZOS)
    write_tags(image, tags, a.boxes, colours)
    return image


def _skeleton(pen: ImageDraw.ImageDraw, keypoints: np.ndarray, colour: tuple[int, int, int]) -> None:
    """Draw bones and joints; ``keypoints`` is (17, 3) in pixels."""
    for start, end in SKELETON:
        if keypoints[start, 2] != ABSENT and keypoints[end, 2] != ABSENT:
            bone = (*keypoints[start, :2], *keypoints[end, :2])
            pen.line(bone, fill=_PAPER, width=5 * _FINE)  # a white edge, so that it shows on any fur
            pen.line(bone, fill=colour, width=3 * _FINE)
    for x, y, visibility in keypoints:
        if visibility != ABSENT:
            inside = _PAPER if visibility == OCCLUDED else colour
            edge = colour if visibility == OCCLUDED else _PAPER
            pen.circle((x, y), 4.5 * _FINE, fill=inside, outline=edge, width=round(1.5 * _FINE))
