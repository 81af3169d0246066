"""The tab Relation: a relation and its triplets -> a LoRA, by the stages generate, annotate, data and finetune."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import pandas as pd
from PIL import Image

from rbctl import metrics
from rbctl.errors import InputError, abridged
from rbctl.files import read_image
from rbctl.images import SUFFIXES
from rbctl.paths import inside, shipped_yaml
from rbctl.plugins.ui.answers import DEVICE, on, whole
from rbctl.plugins.ui.stages import Stages, command_line
from rbctl.plugins.ui.workspace import MOST_BYTES, Workspace
from rbctl.runs import RUNS, tuned

DRAWN, OWN, OPENAI, DIFFUSERS = "drawn", "own pictures", "openai", "diffusers"
_ORACLE = ("boxes=oracle", "masks=oracle", "keypoints=oracle", "identity=oracle")
_MODELS = {"grounding_dino": "Grounding DINO", "sam": "SAM", "vitpose": "ViTPose"}
_MOST_PREVIEWS = 12
_MOST_POINTS = 500  # of the loss curve

Command = Sequence[str]


def making(
    workspace: Workspace, source: str, relation: str, name: str, number: int, budget: float, model: str
) -> list[Command]:
    """The commands that make a set's raw pictures; none where they are the user's own.

    Raises:
        InputError: relation, name or model are none of the folder's.
    """
    workspace.set_folder(name)
    if source == OWN:
        return []
    made = ["generate", "--relation", workspace.relation_argument(relation), "-n", str(number)]
    made += ["--output", f"triplets/{name}"]
    if source == OPENAI:
        made += ["--engine", "openai", "--budget", f"{budget:g}"]
    elif source == DIFFUSERS:
        made += ["--engine", "diffusers", "--model", workspace.model(model)]
    elif source != DRAWN:
        raise InputError(f"source: one of {DRAWN}, {OWN}, {OPENAI}, {DIFFUSERS} was expected")
    return [made]


def annotating(
    workspace: Workspace, bundle: str, relation: str, name: str, oracle: bool, models: dict[str, str]
) -> Command:
    """The command that finds boxes, masks and keypoints.

    Args:
        oracle: by the embedded world's oracle, else by models.
        models: folders in ``models/``, by the options that take them.

    Raises:
        InputError: relation, name or a model are none of the folder's.
    """
    workspace.set_folder(name)
    command = ["annotate", f"triplets/{name}", "--relation", workspace.relation_argument(relation), "--bundle", bundle]
    if oracle:
        return [*command, *(part for backend in _ORACLE for part in ("--backend", backend))]
    for option, folder in models.items():
        if folder:
            command += [f"--{option.replace('_', '-')}", workspace.model(folder)]
    return command


def training(
    workspace: Workspace, bundle: str, relation: str, name: str, steps: int, preview_every: int, seed: int
) -> tuple[Command, Path]:
    """The command that trains, and its run folder.

    Args:
        name: of the set; empty lets the embedded world draw one.

    Raises:
        InputError: relation or set are none of the folder's.
    """
    learned = workspace.relation(relation).name
    command = ["finetune", "--relation", workspace.relation_argument(relation), "--bundle", bundle]
    if name:
        if not workspace.set_folder(name).is_dir():
            raise InputError(f"set: there is no {abridged(name)}; make it first, or leave it empty")
        command += ["--data", f"triplets/{name}"]
    if steps:
        command += ["--steps", str(steps)]
    command += ["--preview-every", str(preview_every), "--seed", str(seed)]
    return command, workspace.root / tuned(learned, bundle)


def curve(run: Path) -> pd.DataFrame:
    """Step and loss of a training, of 500 points at most."""
    rows = [row for row in metrics.rows(run / "metrics.jsonl") if "loss" in row]
    rows = rows[:: max(1, len(rows) // _MOST_POINTS)]
    return pd.DataFrame({"step": [row["step"] for row in rows], "loss": [row["loss"] for row in rows]})


def previews(run: Path) -> list[tuple[Image.Image, str]]:
    """The last preview pictures of a training, each with its step."""
    paths = sorted((run / "previews").glob("step-*.png"))[-_MOST_PREVIEWS:]
    return [(read_image(path), path.stem) for path in paths]


def relation_tab(workspace: Workspace, stages: Stages, bundle: str, tab: gr.Tab) -> None:
    """Build the tab, within its block."""
    example = shipped_yaml("examples")["sit_back_to_back"].read_text(encoding="utf-8").split("\n", 1)[1]
    with gr.Row():
        with gr.Column():
            gr.Markdown("### 1. The relation")
            relation = gr.Dropdown(workspace.relations(), value="hug", label="Relation", elem_id="learned")
            with gr.Accordion("A relation of your own", open=False, elem_id="own"):
                yaml = gr.Code(example, language="yaml", label="Its file; docs/formats.md explains it", elem_id="yaml")
                keep = gr.Button("Keep this relation", elem_id="keep")
            gr.Markdown("### 2. Its triplets")
            with gr.Row():
                source = gr.Radio([DRAWN, OWN, OPENAI, DIFFUSERS], value=DRAWN, label="From", elem_id="source")
                number = gr.Number(6, label="Triplets", precision=0, minimum=1, maximum=100)
            name = gr.Dropdown(
                workspace.sets(), value="hug", label="Name of the set", allow_custom_value=True, elem_id="set"
            )
            files = gr.File(
                label="Own pictures: 3.jpg shows both, 3-cat.jpg and 3-bear.jpg each alone",
                file_count="multiple",
                file_types=list(SUFFIXES),
                height=150,
                elem_id="own-pictures",
            )
            with gr.Accordion("Generators and models", open=False):
                budget = gr.Number(5, label="openai: US dollars at most", minimum=0, maximum=1000)
                folders = workspace.models()
                model = gr.Dropdown(folders, value=None, label="diffusers: folder in models/")
                oracle = gr.Checkbox(True, label="Annotate by the oracle of the embedded world, for drawn animals")
                models = [gr.Dropdown(folders, value=None, label=f"{words}: in models/") for words in _MODELS.values()]
            with gr.Row():
                make = gr.Button("Make the set", elem_id="make-set")
                check = gr.Button("Check", elem_id="check")
                show = gr.Button("Show", elem_id="show")
                review = gr.Button("Review page", elem_id="review")
            corrections = gr.File(label="corrections.json of the review page", file_types=[".json"], height=150)
            gr.Markdown("### 3. Training")
            with gr.Row():
                steps = gr.Number(None, label="Steps; empty: the bundle's", precision=0, elem_id="train-steps")
                every = gr.Number(100, label="Steps between previews; 0: none", precision=0, elem_id="preview-every")
                seed = gr.Number(0, label="Seed", precision=0)
            with gr.Row():
                train = gr.Button("Train, or go on", variant="primary", elem_id="train")
                stop = gr.Button("Stop", elem_id="stop-stage")
        with gr.Column():
            typed = gr.Textbox(label="The same in a shell", lines=2, interactive=False, elem_id="typed")
            log = gr.Textbox(label="Output", lines=8, max_lines=8, interactive=False, elem_id="log", autoscroll=True)
            page = gr.HTML("", elem_id="page-link")
            plot = gr.LinePlot(
                curve(workspace.root), x="step", y="loss", title="Loss", height=240, elem_id="curve", buttons=[]
            )
            gallery = gr.Gallery(
                label="Pictures", format="png", columns=3, height=420, object_fit="contain", elem_id="previews"
            )
    of_set = [relation, name, source, number, files, budget, model, oracle, *models]

    def keep_relation(text: str) -> Any:
        kept = workspace.keep_relation(text)
        return gr.update(choices=workspace.relations(), value=kept.name), kept.name

    def make_set(
        relation: str, name: str, source: str, number: Any, uploads: Any, budget: Any, model: str, oracle: bool,
        *folders: str,
    ) -> Iterator[Any]:  # fmt: skip
        commands = making(workspace, source, relation, name, whole(number, "triplets"), float(budget or 0), model)
        commands.append(annotating(workspace, bundle, relation, name, oracle, dict(zip(_MODELS, folders, strict=True))))
        if source == OWN:
            workspace.keep_pictures([Path(upload) for upload in uploads or ()], name)
        line = command_line(*commands)
        for command in commands:
            for output in stages.run(command):
                yield line, output, gr.skip()
        yield line, f"{output}\nThe set is in triplets/{name}.", gr.update(choices=workspace.sets())

    def look(name: str, *command: str) -> Iterator[Any]:
        if not workspace.set_folder(name).is_dir():
            raise InputError(f"set: there is no {abridged(name)}; make it first")
        for output in stages.run(command):
            yield command_line(command), output

    def check_set(name: str) -> Iterator[Any]:
        yield from look(name, "data", "check", f"triplets/{name}", "--bundle", bundle)

    def show_set(name: str) -> Iterator[Any]:
        sheet = f"{RUNS}/data/{name}.png"
        for line, output in look(name, "data", "show", f"triplets/{name}", "--output", sheet):
            yield line, output, gr.skip()
        yield line, output, [read_image(inside(workspace.root, sheet, "sheet"))]

    def review_set(name: str) -> Iterator[Any]:
        for line, output in look(name, "annotate", f"triplets/{name}", "--review"):
            yield line, output, gr.skip()
        link = workspace.show_page(f"triplets/{name}/review.html")
        yield line, output, f'<a href="{link}" target="_blank">Open the review page</a>, then drop what it saves here.'

    def apply(upload: str | None, name: str) -> Iterator[Any]:
        if upload:
            if Path(upload).stat().st_size > MOST_BYTES:
                raise InputError("corrections: the file is too large; drop what the review page saved")
            yield from look(name, "annotate", f"triplets/{name}", "--apply", upload)

    def train_relation(relation: str, name: str, steps: Any, every: Any, seed: Any) -> Iterator[Any]:
        counts = whole(steps or 0, "steps"), whole(every or 0, "steps between previews"), whole(seed or 0, "seed")
        known = name if name in workspace.sets() else ""
        command, run = training(workspace, bundle, relation, known, *counts)
        line = command_line(command)
        shown = -1
        for output in stages.run(command):
            made = len(list((run / "previews").glob("step-*.png")))
            yield line, output, curve(run), gr.skip() if made == shown else previews(run)
            shown = made
        yield line, f"{output}\nTrained. The tab Picture has the LoRA now.", curve(run), previews(run)

    def listed(name: str) -> Any:
        return gr.update(choices=workspace.relations()), gr.update(choices=workspace.sets())

    turn = {"concurrency_id": DEVICE, "concurrency_limit": 1}
    on(keep.click, keep_relation, [yaml], [relation, name])
    on(relation.input, lambda chosen: chosen, [relation], [name])
    on(make.click, make_set, of_set, [typed, log, name], **turn)
    on(check.click, check_set, [name], [typed, log], **turn)
    on(show.click, show_set, [name], [typed, log, gallery], **turn)
    on(review.click, review_set, [name], [typed, log, page], **turn)
    on(corrections.upload, apply, [corrections, name], [typed, log], **turn)
    on(train.click, train_relation, [relation, name, steps, every, seed], [typed, log, plot, gallery], **turn)
    on(stop.click, stages.stop, None, None, concurrency_limit=None)
    on(tab.select, listed, [name], [relation, name], trigger_mode="always_last")
