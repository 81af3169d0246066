"""How handlers of the page answer: in turns, until they are stopped, and what a user can mend as one line."""

from __future__ import annotations

import functools
import inspect
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import click
import gradio as gr

from rbctl.errors import InputError, abridged

_BUG = "this did not work, and not by your fault; the terminal of rbctl ui tells more"

DEVICE = "device"  # what samples or trains waits for its turn


@dataclass
class Stops:
    """Asks running work to stop, by the browser's session."""

    running: dict[str, threading.Event] = field(default_factory=dict)

    def begin(self, session: str) -> threading.Event:
        self.running[session] = threading.Event()
        return self.running[session]

    def stop(self, request: gr.Request) -> None:
        """What the session of a request runs ends with its step."""
        if event := self.running.pop(request.session_hash or "", None):
            event.set()


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


def on(event: Any, handler: Callable[..., Any], inputs: Any, outputs: Any, **options: Any) -> None:
    """Let a handler answer an event of the page; it is no part of an API."""
    event(answering(handler), inputs, outputs, api_visibility="private", show_progress="hidden", **options)


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
