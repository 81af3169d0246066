"""The page: its tabs, in gradio's blocks."""

from __future__ import annotations

import gradio as gr

from rbctl.plugins.ui.compare_tab import compare_tab
from rbctl.plugins.ui.picture_tab import picture_tab
from rbctl.plugins.ui.relation_tab import relation_tab
from rbctl.plugins.ui.sampler import Sampler
from rbctl.plugins.ui.score_tab import score_tab
from rbctl.plugins.ui.stages import Stages
from rbctl.plugins.ui.workspace import Workspace


def page(workspace: Workspace, bundle: str) -> gr.Blocks:
    """The page of a work folder.

    Args:
        bundle: base model of its pictures and trainings, a name or an absolute path.
    """
    sampler = Sampler(workspace, bundle)
    stages = Stages(workspace, before=sampler.release)
    with gr.Blocks(title="rbctl", analytics_enabled=False, fill_width=True, delete_cache=(3600, 86_400)) as blocks:
        with gr.Tab("Picture", id="picture") as tab:
            chosen = picture_tab(workspace, sampler, tab)
        with gr.Tab("Relation", id="relation") as tab:
            relation_tab(workspace, stages, bundle, tab)
        with gr.Tab("Compare", id="compare"):
            compare_tab(workspace, sampler, chosen)
        with gr.Tab("Score", id="score") as tab:
            score_tab(workspace, stages, bundle, tab)
    return blocks
