"""The page: its tabs, in gradio's blocks."""

from __future__ import annotations

import gradio as gr

from rbctl.plugins.ui.picture_tab import picture_tab
from rbctl.plugins.ui.sampler import Sampler
from rbctl.plugins.ui.workspace import Workspace

TITLE = "rbctl"


def page(workspace: Workspace, bundle: str) -> gr.Blocks:
    """The page of a work folder.

    Args:
        bundle: base model of its pictures and trainings.
    """
    sampler = Sampler(workspace, bundle)
    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True, delete_cache=(3600, 86_400)) as blocks:
        with gr.Tab("Picture") as tab:
            picture_tab(workspace, sampler, tab)
    return blocks
