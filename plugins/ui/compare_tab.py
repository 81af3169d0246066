"""The tab Compare: the settings of the tab Picture, with two of them varied, on one sheet."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import Any

import gradio as gr

from rbctl import formats
from rbctl.errors import InputError, abridged
from rbctl.files import read_image
from rbctl.pictures import grid, save_png
from rbctl.plugins.ui.answers import on_device
from rbctl.plugins.ui.picture_tab import Chosen, read_chosen
from rbctl.plugins.ui.sampler import Made, PictureSettings, Sampler
from rbctl.plugins.ui.workspace import Workspace
from rbctl.provenance import SHEET
from rbctl.runs import RUNS

MOST_CELLS = 36
WEIGHT = "LoRA weight"


def _weighted(settings: PictureSettings, value: str) -> PictureSettings:
    if not settings.loras:
        raise InputError(f"{WEIGHT}: no LoRA has a weight; give one on the tab Picture")
    return replace(settings, loras={name: weight * float(value) for name, weight in settings.loras.items()})


AXES: dict[str, Callable[[PictureSettings, str], PictureSettings]] = {
    WEIGHT: _weighted,
    "seed": lambda settings, value: replace(settings, seed=int(value)),
    "quality": lambda settings, value: replace(settings, quality=value),  # type: ignore[arg-type]
    "steps": lambda settings, value: replace(settings, steps=int(value)),
    "guidance scale": lambda settings, value: replace(settings, guidance_scale=float(value)),
    "image scale": lambda settings, value: replace(settings, image_scale=float(value)),
}


def varied(settings: PictureSettings, axis: str, value: str) -> PictureSettings:
    """Settings with one of them at another value; LoRAs have so many times their weight, 0 is the base model.

    Raises:
        InputError: there is no such axis, or the value does not fit it.
    """
    if axis not in AXES:
        raise InputError(f"axis: one of {', '.join(AXES)} was expected, not {abridged(axis)}")
    try:
        changed = asdict(AXES[axis](settings, value))
    except (ValueError, OverflowError) as error:
        raise InputError(f"{axis}: {abridged(value)} is no number") from error
    return formats.read(PictureSettings, changed, axis)


def read_values(text: str, axis: str) -> list[str]:
    """The values of an axis, with commas between.

    Raises:
        InputError: there are none, or two are the same.
    """
    values = [part.strip() for part in (text or "").split(",") if part.strip()]
    if not values or len(set(values)) < len(values):
        raise InputError(f"{axis}: different values were expected, with commas between, not {abridged(text)}")
    return values


def compare_tab(workspace: Workspace, sampler: Sampler, chosen: Chosen) -> None:
    """Build the tab, within its block.

    Args:
        chosen: on the tab Picture.
    """
    gr.Markdown("Individuals, prompt, boxes and LoRAs are those of the tab Picture. Weight 0 is the base model.")
    with gr.Row():
        x = gr.Dropdown(list(AXES), value=WEIGHT, label="Columns", elem_id="x")
        columns = gr.Textbox("0, 0.5, 1", label="Values", elem_id="columns")
        y = gr.Dropdown(list(AXES), value="seed", label="Rows", elem_id="y")
        rows = gr.Textbox("7, 8", label="Values", elem_id="rows")
    with gr.Row():
        make = gr.Button("Compare", variant="primary", elem_id="compare")
        cancel = gr.Button("Cancel")
    state = gr.Markdown("", elem_id="compared")
    sheet = gr.Image(label="Sheet", interactive=False, format="png", elem_id="sheet")

    def cells(x: str, columns: str, y: str, rows: str, *values: Any) -> list[tuple[str, PictureSettings]]:
        """Caption and settings of each picture, row by row."""
        first = read_chosen(workspace, values)
        across, down = read_values(columns, x), read_values(rows, y)
        if x == y:
            raise InputError("axes: columns and rows vary the same setting; choose another one for the rows")
        if len(across) * len(down) > MOST_CELLS:
            raise InputError(f"axes: {len(across)} x {len(down)} pictures; {MOST_CELLS} are the most")
        return [(f"{x} {a}, {y} {b}", varied(varied(first, x, a), y, b)) for b in down for a in across]

    def compare(stop: threading.Event, x: str, columns: str, *others: Any) -> Iterator[Any]:
        asked, made = cells(x, columns, *others), list[Any]()
        for event in sampler.sample([settings for _, settings in asked], stop):
            if isinstance(event, Made):
                made.append(read_image(event.path))
            yield f"{len(made)} of {len(asked)} made.", gr.skip()
        if len(made) < len(asked):
            yield f"Cancelled; {len(made)} of {len(asked)} made.", gr.skip()
            return
        whole = grid(made, len(read_values(columns, x)), [caption for caption, _ in asked])
        digest = hashlib.sha256(repr(asked).encode()).hexdigest()[:12]
        path = workspace.root / RUNS / "ui" / "sheets" / f"{digest}.png"
        save_png(whole, path, source_type=SHEET)
        yield f"{len(made)} made; the sheet is {path.relative_to(workspace.root)}.", whole

    on_device(make, cancel, state, cells, compare, [x, columns, y, rows, *chosen.inputs], [state, sheet])
