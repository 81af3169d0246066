"""The canvas on which the individuals' boxes are dragged, drawn by boxes.html, boxes.css and boxes.js."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from rbctl.errors import InputError, abridged
from rbctl.files import read_image
from rbctl.pictures import COLOURS
from rbctl.relations import Box, check_box

_HERE = Path(__file__).parent
_THUMBNAIL = 160  # pixels, the longer side


def box_canvas() -> gr.HTML:
    """The canvas, empty. Its value is a list of [x0, y0, x1, y1], relative to the picture; "change" follows a drag."""
    template, style, script = ((_HERE / f"boxes.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js"))
    return gr.HTML(
        value=[],
        html_template=template,
        css_template=style,
        js_on_load=script,
        apply_default_css=False,
        elem_id="boxes",
        names=[],
        pictures=[],
        colours=[f"rgb{colour}" for colour in COLOURS],
    )


def shown(boxes: Sequence[Box], names: Sequence[str], images: Sequence[Path]) -> Any:
    """The canvas with these boxes on it, each with its name and a small picture."""
    return gr.update(value=[list(box) for box in boxes], names=list(names), pictures=[_small(path) for path in images])


def read_boxes(value: Any, count: int) -> list[Box]:
    """The boxes as the browser sent them.

    Raises:
        InputError: there is another number of them than individuals, or one is none.
    """
    if not isinstance(value, list) or len(value) != count:
        raise InputError(f"boxes: {count} were expected, one for each individual, not {abridged(value)}")
    try:
        return [check_box(box) for box in value]
    except ValueError as error:
        raise InputError(f"boxes: {error}") from error


def _small(path: Path) -> str:
    picture = read_image(path)
    picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
    encoded = io.BytesIO()
    picture.save(encoded, format="JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(encoded.getvalue()).decode()}"
