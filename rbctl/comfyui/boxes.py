"""Boxes as a person writes them in a node, and a picture of them."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw

from rbctl.errors import InputError
from rbctl.layout import LayoutPrior, boxes_for
from rbctl.pictures import COLOURS, write_tags
from rbctl.relations import Box, check_box


def chosen_boxes(text: str, count: int, layout: LayoutPrior | None) -> tuple[Box, ...]:
    """The boxes that the text gives, a line each: ``x0, y0, x1, y1``; the layout's where it is empty.

    Without a layout for so many individuals they stand side by side.

    Raises:
        InputError: a line is no box, or there are more or fewer of them than individuals.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        return boxes_for(count, layout, None)[0]
    if len(lines) != count:
        raise InputError(f"Boxes: boxes: {len(lines)} lines for {count} individuals; write one for each, or none")
    boxes = []
    for number, line in enumerate(lines, 1):
        try:
            boxes.append(check_box(line.replace(",", " ").split()))
        except ValueError as error:
            raise InputError(f"Boxes: boxes: line {number}: {error}") from error
    return tuple(boxes)


def boxes_text(boxes: Sequence[Box]) -> str:
    """The boxes as :func:`chosen_boxes` reads them."""
    return "\n".join(", ".join(f"{value:.3f}" for value in box) for box in boxes)


def boxes_picture(boxes: Sequence[Box], names: Sequence[str], width: int, height: int) -> Image.Image:
    """A picture of the boxes, each with its name and numbers."""
    image = Image.new("RGB", (width, height), (243, 244, 246))
    pen = ImageDraw.Draw(image)
    colours = [COLOURS[number % len(COLOURS)] for number in range(len(boxes))]
    for (x0, y0, x1, y1), colour in zip(boxes, colours, strict=True):
        pen.rectangle((x0 * width, y0 * height, x1 * width - 1, y1 * height - 1), outline=colour, width=3)
    tags = [f"{name}: {numbers}" for name, numbers in zip(names, boxes_text(boxes).split("\n"), strict=True)]
    write_tags(image, tags, boxes, colours)
    return image
