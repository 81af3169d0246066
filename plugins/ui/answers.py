"""How handlers of the page answer: in turns, until they are stopped, and what a user can mend as one line."""

from __future__ import annotations

import functools
import inspect
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import click
import gradio as gr

from rbctl.errors import InputError, abridged

_BUG = "this failed because of a bug; the terminal of rbctl ui shows the details"

DEVICE = "device"  # what samples or trains waits for its turn


def answering(handler: Callable[..., Any]) -> Callable[..., Any]:
    """A handler, a function or a generator, whose errors become a line on the page."""
    if inspect.isgeneratorfunction(handler):

        @functools.wraps(handler)
        def generate(*arguments: Any) -> Iterator[Any]:
            try:
                yield from handler(*arguments)
            except Exception as error:  # a bug too must become a line: gradio would show its words
                raise _told(error) from None

        return generate

    @functools.wraps(handler)
    def answer(*arguments: Any) -> Any:
        try:
            return handler(*arguments)
        except Exception as error:
            raise _told(error) from None

    return answer


def on(event: Any, handler: Callable[..., Any], inputs: Any, outputs: Any, **options: Any) -> Any:
    """Let a handler answer an event of the page; it is no part of an API.

    Returns:
        The listener; its ``success`` and ``then`` are events.
    """
    return event(answering(handler), inputs, outputs, api_visibility="private", show_progress="hidden", **options)


def on_device(
    button: gr.Button,
    cancel: gr.Button,
    state: gr.Markdown,
    check: Callable[..., Any],
    work: Callable[..., Iterator[Any]],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
) -> None:
    """Let a button start work that waits for the device. The same button is off until the work has ended.

    Args:
        cancel: ends the work with its step, or before it began.
        state: says that the work waits.
        check: takes the inputs, and refuses at once what the work would refuse after it had waited.
        work: takes the event that ``cancel`` sets, then the inputs.
    """
    stop = gr.State(None)

    def begin(*values: Any) -> Any:
        check(*values)
        return threading.Event(), "Waiting for its turn ...", gr.update(interactive=False)

    def end(stop: threading.Event | None) -> None:
        if stop is not None:
            stop.set()

    begun = on(button.click, begin, inputs, [stop, state, button])
    ended = on(begun.success, work, [stop, *inputs], outputs, concurrency_id=DEVICE, concurrency_limit=1)
    on(ended.then, lambda: gr.update(interactive=True), None, [button])
    on(cancel.click, end, [stop], None, concurrency_limit=None)


def _told(error: Exception) -> gr.Error:
    if isinstance(error, gr.Error):
        return error
    if not isinstance(error, InputError):
        click.echo("".join(traceback.format_exception(error)), err=True)
    # The page shows a message as HTML, and names in it come from data.
    words = str(error) if isinstance(error, InputError) else _BUG
    safe = words.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return gr.Error(safe, duration=None, print_exception=False, title="Not done")


def whole(value: Any, name: str) -> int:
    """A whole number as the browser sent it.

    Raises:
        InputError: it is none.
    """
    if not isinstance(value, int | float) or isinstance(value, bool) or value != value or value != int(value):
        raise InputError(f"{name}: a whole number was expected, not {abridged(value)}")
    return int(value)
