"""The tab Score: a folder of pictures -> the report of ``rbctl eval``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import gradio as gr

from rbctl.errors import InputError, abridged
from rbctl.plugins.ui.answers import DEVICE, on
from rbctl.plugins.ui.stages import Stages, command_line
from rbctl.plugins.ui.workspace import Workspace
from rbctl.runs import RUNS


def score_tab(workspace: Workspace, stages: Stages, bundle: str, tab: gr.Tab) -> None:
    """Build the tab, within its block."""
    with gr.Row():
        folder = gr.Dropdown(  # a name is taken before the list has it: the list is read when the tab opens
            workspace.sampled(), value=None, label="Folder of pictures", allow_custom_value=True, elem_id="scored"
        )
        make = gr.Button("Score", variant="primary", elem_id="score")
        stop = gr.Button("Stop")
    typed = gr.Textbox(label="The same in a shell", interactive=False, elem_id="score-typed")
    log = gr.Textbox(label="Output", lines=6, max_lines=6, interactive=False, elem_id="score-log")
    report = gr.HTML("", elem_id="report")

    def score(folder: str) -> Iterator[Any]:
        if folder not in workspace.sampled():
            raise InputError(f"folder: {abridged(folder)} has no pictures to score; choose one of the list")
        output = f"{RUNS}/eval/{PurePosixPath(folder).name}"
        command = ["eval", folder, "--bundle", bundle, "--output", output]
        for lines in stages.run(command):
            yield command_line(command), lines, gr.skip()
        link = workspace.show_page(f"{output}/report.html")
        frame = f'<iframe src="{link}" title="report" width="100%" height="900"></iframe>'
        yield command_line(command), lines, frame

    on(make.click, score, [folder], [typed, log, report], concurrency_id=DEVICE, concurrency_limit=1)
    on(stop.click, stages.stop, None, None, concurrency_limit=None)
    on(tab.select, lambda: gr.update(choices=workspace.sampled()), None, [folder], trigger_mode="always_last")
