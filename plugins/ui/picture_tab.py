"""The tab Picture: two or three individuals, a relation and boxes -> pictures, with previews on the way."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gradio as gr

from rbctl import formats
from rbctl.errors import InputError
from rbctl.files import read_image
from rbctl.images import SUFFIXES
from rbctl.plugins.ui.answers import on, on_device, whole
from rbctl.plugins.ui.canvas import box_canvas, read_boxes, shown
from rbctl.plugins.ui.sampler import Made, PictureSettings, Sampler, settings_of
from rbctl.plugins.ui.workspace import MOST_INDIVIDUALS, Individual, Workspace, lora_weights, prompt_of, read_names
from rbctl.relations import Relation
from rbctl.shortcuts import QUALITIES, QUALITY

MOST_PICTURES = 16  # of one click


@dataclass(frozen=True)
class Chosen:
    """The components in which a user says what a picture shall be, in the order in which handlers take them."""

    individuals: gr.State
    names: gr.Textbox
    relation: gr.Dropdown
    prompt: gr.Textbox
    boxes: gr.HTML
    loras: gr.Dataframe
    seed: gr.Number
    quality: gr.Radio
    steps: gr.Number
    guidance: gr.Number
    negative: gr.Textbox

    @property
    def inputs(self) -> list[Any]:
        return list(vars(self).values())


def read_chosen(workspace: Workspace, values: Sequence[Any]) -> PictureSettings:
    """The settings of the first picture, from the values of :class:`Chosen`.

    Raises:
        InputError: one is wrong; it is named.
    """
    individuals, names, relation, prompt, boxes, loras, seed, quality, steps, guidance, negative = values
    individuals = _known(individuals)
    called = read_names(names, len(individuals))
    places = read_boxes(boxes, len(individuals))
    objects = [
        {"name": name, "image": individual.image, "box": box}
        for name, individual, box in zip(called, individuals, places, strict=True)
    ]
    settings = {
        "prompt": prompt,
        "relation": relation or "",
        "objects": objects,
        "loras": lora_weights(loras, workspace.loras()),
        "seed": whole(seed, "seed"),
        "quality": quality,
        "steps": whole(steps, "steps") if steps else None,
        "guidance_scale": guidance,
        "negative_prompt": negative or None,
    }
    return formats.read(PictureSettings, settings, "settings")


def picture_tab(workspace: Workspace, sampler: Sampler, tab: gr.Tab) -> Chosen:
    """Build the tab, within its block.

    Returns:
        What the user chose on it, for the tab Compare.
    """
    individuals = gr.State([])
    with gr.Row():
        with gr.Column(scale=3):
            files = gr.File(
                label="Individuals: drop two or three pictures",
                file_count="multiple",
                file_types=list(SUFFIXES),
                elem_id="individuals",
                height=140,
            )
            names = gr.Textbox(label="Names, with commas between", elem_id="names")
            relation = gr.Dropdown(
                workspace.relations(),
                label="Relation: choose one, or type the words between the individuals",
                value=None,
                allow_custom_value=True,
                elem_id="relation",
            )
            prompt = gr.Textbox(label="Prompt, individuals in braces", lines=2, elem_id="prompt")
            loras = gr.Dataframe(
                lambda: [[name, 0.0] for name in workspace.loras()],
                headers=["LoRA", "weight"],
                datatype=["str", "number"],
                type="array",
                column_count=2,
                static_columns=[0],
                column_widths=["78%", "22%"],
                interactive=True,
                label="LoRAs of the folder: weight 0 is off",
                elem_id="loras",
            )
            with gr.Row():
                seed = gr.Number(7, label="Seed", precision=0, minimum=0, elem_id="seed")
                count = gr.Slider(1, MOST_PICTURES, 1, step=1, label="Pictures, seeds count up", elem_id="count")
            quality = gr.Radio(list(QUALITIES), value=QUALITY, label="Quality", elem_id="quality")
            with gr.Accordion("More", open=False):
                steps = gr.Number(None, label="Steps; empty: as the quality says", precision=0)
                guidance = gr.Number(None, label="Guidance scale; empty: the bundle's")
                negative = gr.Textbox(label="Negative prompt; empty: the bundle's")
        with gr.Column(scale=3):
            gr.Markdown("Boxes: drag one to move it, its corner to resize it.")
            boxes = box_canvas()
            reset = gr.Button("Boxes of the relation", size="sm")
            with gr.Row():
                make = gr.Button("Sample", variant="primary", elem_id="sample")
                cancel = gr.Button("Cancel", elem_id="cancel")
        with gr.Column(scale=4):
            state = gr.Markdown("No picture yet.", elem_id="state")
            preview = gr.Image(label="Preview", interactive=False, format="png", height=256, elem_id="preview")
            gallery = gr.Gallery(
                workspace.newest, label="Pictures", format="png", columns=4, height=300, object_fit="contain",
                fit_columns=False, interactive=False, elem_id="gallery",
            )  # fmt: skip
            metadata = gr.JSON(label="Metadata", elem_id="metadata", max_height=240)
            selected = gr.State("")
            use = gr.Button("Use these settings", elem_id="use")
    chosen = Chosen(individuals, names, relation, prompt, boxes, loras, seed, quality, steps, guidance, negative)
    layout = [individuals, names, relation, loras]

    def place(individuals: Any, names: str, relation: str | None, loras: Any) -> tuple[str, Any]:
        """Prompt and boxes of what is chosen so far."""
        taken = _known(individuals)
        if not taken:
            return "", shown([], [], [])
        called = read_names(names, len(taken))
        wanted, words = _relation(workspace, relation)
        if wanted is not None and len(taken) > len(wanted.roles):
            gr.Warning(f"{wanted.name} relates {len(wanted.roles)}; the prompt of {len(taken)} leaves it out.")
        text = prompt_of(wanted, words, called)
        used = list(lora_weights(loras, workspace.loras()))
        images = [workspace.picture_of(individual) for individual in taken]
        return text, shown(sampler.boxes(text, called, used, wanted), called, images)

    def take(uploads: list[str] | None, relation: str | None, loras: Any) -> Any:
        paths = [Path(path) for path in uploads or ()]
        if len(paths) > MOST_INDIVIDUALS:
            raise InputError(f"individuals: {len(paths)} were dropped, {MOST_INDIVIDUALS} are the most; remove some")
        taken = [workspace.keep_individual(path) for path in paths]
        called: list[str] = []
        for individual in taken:
            same = sum(other.name == individual.name for other in taken[: len(called)])
            called.append(f"{individual.name} {same + 1}" if same else individual.name)
        text, canvas = place(taken, ", ".join(called), relation, loras)
        return taken, ", ".join(called), text, canvas

    def choose(individuals: Any, names: str, relation: str | None, loras: Any) -> Any:
        """A relation was chosen: its own LoRA, where there is one, gets a weight."""
        rows = [list(row) for row in loras]
        known = relation if relation in workspace.relations() else None
        newest = next((row for row in rows if known and Path(str(row[0])).stem == known), None)
        if newest is not None and not any(float(row[1] or 0) for row in rows):
            newest[1] = 1.0
        return rows, *place(individuals, names, relation, rows)

    def wanted(count: Any, *values: Any) -> list[PictureSettings]:
        first, number = read_chosen(workspace, values), whole(count, "pictures")
        if not 1 <= number <= MOST_PICTURES:
            raise InputError(f"pictures: 1 to {MOST_PICTURES} were expected")
        return [replace(first, seed=first.seed + k) for k in range(number)]

    def sample(stop: threading.Event, count: Any, *values: Any) -> Iterator[Any]:
        asked = wanted(count, *values)
        number, made = len(asked), 0
        yield "Loading the networks ...", None, gr.skip(), gr.skip(), gr.skip()
        for event in sampler.sample(asked, stop):
            if isinstance(event, Made):
                made += 1
                record, name = settings_of(event.path)[1], event.path.name
                yield f"{made} of {number} made.", read_image(event.path), workspace.newest(), record, name
            else:
                words = f"Picture {event.number + 1} of {number}: {event.share:.0%}"
                picture = gr.skip() if event.preview is None else event.preview
                yield words, picture, gr.skip(), gr.skip(), gr.skip()
        if made < number:
            yield f"Cancelled; {made} of {number} made.", None, gr.skip(), gr.skip(), gr.skip()

    def select(chosen: gr.SelectData) -> Any:
        path = Path(chosen.value["image"]["path"])
        return settings_of(workspace.pictures / path.name)[1], path.name

    def use_settings(name: str) -> Any:
        if not name:
            raise InputError("settings: no picture is chosen; click one of the gallery")
        settings, _ = settings_of(workspace.pictures / Path(name).name)
        taken = [Individual(entry.name, entry.image) for entry in settings.objects]
        images = [workspace.picture_of(individual) for individual in taken]
        called = [entry.name for entry in settings.objects]
        rows = [[lora, settings.loras.get(lora, 0.0)] for lora in workspace.loras()]
        canvas = shown([entry.box for entry in settings.objects], called, images)
        return (
            [str(path) for path in images], taken, ", ".join(called), settings.relation or None, settings.prompt,
            canvas, rows, settings.seed, settings.quality, settings.steps, settings.guidance_scale,
            settings.negative_prompt or "",
        )  # fmt: skip

    def listed(loras: Any) -> Any:
        """Relations and LoRAs as they are by now; weights stay."""
        weights = {str(row[0]): row[1] for row in loras}
        rows = [[name, weights.get(name, 0.0)] for name in workspace.loras()]
        return gr.update(choices=workspace.relations()), rows, workspace.newest()

    on(files.upload, take, [files, relation, loras], [individuals, names, prompt, boxes])
    on(files.delete, take, [files, relation, loras], [individuals, names, prompt, boxes])
    on(files.clear, take, [files, relation, loras], [individuals, names, prompt, boxes])
    on(names.blur, place, layout, [prompt, boxes])
    on(relation.input, choose, layout, [loras, prompt, boxes])
    on(reset.click, place, layout, [prompt, boxes])
    shown_by = [state, preview, gallery, metadata, selected]
    on_device(make, cancel, state, wanted, sample, [count, *chosen.inputs], shown_by)
    on(gallery.select, select, None, [metadata, selected])
    on(use.click, use_settings, [selected], [files, *chosen.inputs])
    on(tab.select, listed, [loras], [relation, loras, gallery], trigger_mode="always_last")
    return chosen


def _known(individuals: Any) -> list[Individual]:
    if not isinstance(individuals, list) or not 0 <= len(individuals) <= MOST_INDIVIDUALS:
        raise InputError("individuals: drop two or three pictures")
    return individuals


def _relation(workspace: Workspace, chosen: Any) -> tuple[Relation | None, str]:
    """The relation that was chosen, or the words that were typed in its place."""
    words = " ".join(str(chosen or "").split())
    if words in workspace.relations():
        return workspace.relation(words), ""
    if len(words) > 100 or any(mark in words for mark in "{}"):
        raise InputError("relation: words without braces were expected, 100 characters at most")
    return None, words or "and"
