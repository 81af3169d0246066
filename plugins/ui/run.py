"""The work of ``rbctl ui``: serve the page until it is interrupted."""

from __future__ import annotations

import os
import secrets
import threading
from pathlib import Path
from typing import Any

import click

from rbctl.bundle.catalogue import resolve
from rbctl.errors import InputError
from rbctl.files import check_writable
from rbctl.plugins.ui.config import UiConfig
from rbctl.plugins.ui.workspace import MOST_BYTES, Workspace


def run(config: UiConfig) -> None:
    """Serve the page.

    Raises:
        InputError: gradio is not installed, there is no such bundle, or the folder or port cannot be used.
    """
    blocks, address = serve(config)
    click.echo(address)
    if config.open:
        click.launch(address)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        click.echo("closed", err=True)
    finally:
        blocks.close(verbose=False)


def serve(config: UiConfig) -> tuple[Any, str]:
    """Start serving in threads of this process.

    Returns:
        gradio's blocks, to be closed, and the page's address, with its token where it has one.

    Raises:
        InputError: see :func:`run`.
    """
    bundle = resolve(config.bundle)
    workspace = Workspace(config.work.resolve())
    check_writable(workspace.uploads, "--work")
    # Read by gradio when it is imported: no reports to its makers, uploads in our folder, no asking for versions.
    os.environ |= {
        "GRADIO_ANALYTICS_ENABLED": "False",
        "GRADIO_TEMP_DIR": str(workspace.uploads),
        "GRADIO_RUN_HISTORY": "False",
        "GRADIO_NUM_WORKERS": "0",
    }
    try:
        import gradio as gr
    except ImportError as error:
        raise InputError('rbctl ui needs the package gradio; pip install "rbctl[ui]"') from error
    from starlette.middleware import Middleware
    from starlette.requests import Request
    from starlette.responses import FileResponse, PlainTextResponse, Response

    from rbctl.imports import deferred
    from rbctl.plugins.ui.guard import Guard

    with deferred():  # networks are imported when a bundle is loaded
        from rbctl.plugins.ui.page import page

    token = None if config.on_loopback and not config.share else secrets.token_urlsafe(24)
    # Stages run in the work folder: a path is told from there, a name as it is.
    blocks = page(workspace, str(bundle.resolve()) if Path(config.bundle).is_dir() else config.bundle)

    async def send_file(request: Request) -> Response:
        try:
            return FileResponse(workspace.shown_file(request.path_params["name"]))
        except InputError as error:
            return PlainTextResponse(str(error), 404)

    try:
        app, local, shared = blocks.queue(max_size=32, default_concurrency_limit=4).launch(
            server_name=config.host,
            server_port=config.port,
            share=config.share,
            quiet=True,
            prevent_thread_lock=True,
            inbrowser=False,
            show_error=False,
            ssr_mode=False,
            enable_monitoring=False,
            run_history=False,
            num_workers=0,
            footer_links=[],
            max_file_size=MOST_BYTES,
            allowed_paths=[str(workspace.pictures)],
            app_kwargs={"middleware": [Middleware(Guard, token=token)], "docs_url": None, "redoc_url": None},
            theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
            css_paths=[Path(__file__).with_name("page.css")],
        )
    except OSError as error:
        raise InputError(f"--port {config.port}: cannot be used; choose another one") from error
    app.add_route("/files/{name:path}", send_file)
    address = shared or local
    return blocks, f"{address}?token={token}" if token else address
