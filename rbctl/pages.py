"""The HTML pages we write: every value is escaped, and no script, style or address acts but the page's own."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any


def render(template: Path, images: str = "data:", **values: Any) -> str:
    """One self-contained page from ``NAME.html.jinja``, and ``NAME.css`` and ``NAME.js`` where they lie beside it.

    The template puts ``policy``, ``style`` and ``script`` where they belong. The policy lets the browser run and apply
    these alone, by their hashes: not even a value that got past the escaping would act. So the template has no
    ``style=`` and no ``on...=`` attributes.

    Args:
        images: where pictures may come from, in the words of a Content-Security-Policy.
        values: of the template; one that lacks is an error.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    stem = template.name.removesuffix(".html.jinja")
    files = {"style": template.with_name(f"{stem}.css"), "script": template.with_name(f"{stem}.js")}
    own = {kind: path.read_text(encoding="utf-8") if path.is_file() else "" for kind, path in files.items()}
    policy = [
        "default-src 'none'",
        f"img-src {images}",
        *(f"{kind}-src {_hash(text)}" for kind, text in own.items() if text),
        "base-uri 'none'",
        "form-action 'none'",
    ]
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template.read_text(encoding="utf-8")).render(
        policy=Markup("; ".join(policy)), **{kind: Markup(text) for kind, text in own.items()}, **values
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
