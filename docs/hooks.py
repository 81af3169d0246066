"""A hook of MkDocs: README.md as the first page, a page for all code that a page links to, and equations as MathML.

So the pages read the same on GitHub, and the site needs no network and no other server.
"""

from __future__ import annotations

import inspect
import json
import posixpath
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

from rbctl.cli import main

ROOT = Path(__file__).resolve().parents[1]
PICTURES = (".jpg", ".png")
FENCE = re.compile(r"^(`{3,}).*?^\1$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")
BLOCK = re.compile(r"^```math\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"\$`([^`]+)`\$")
HOMES = {"index.md": "README.md"}  # pages of the site that lie elsewhere in the repository than in docs/
KEPT = re.compile(r"^\x08\n((?:.+(?:\n|\Z))+)", re.MULTILINE)  # lines of a help that are not filled
ROLE = re.compile(r":(?:class|func|mod|meth):(?=<code>)")  # of Sphinx, in docstrings


def on_startup(**_: Any) -> None:
    """mkdocs-click finds the stages only once they are loaded, and takes lines that \\b keeps for one paragraph."""
    for command in all_commands(main):
        command.help = KEPT.sub(fenced, inspect.cleandoc(command.help or "").replace("<", "&lt;"))


def all_commands(command: click.Command) -> Iterator[click.Command]:
    yield command
    if isinstance(command, click.Group):
        context = click.Context(command)
        inner = {name: command.get_command(context, name) for name in command.list_commands(context)}
        command.commands.update({name: one for name, one in inner.items() if one})
        for one in command.commands.values():
            yield from all_commands(one)


def fenced(kept: re.Match[str]) -> str:
    return f"```text\n{textwrap.dedent(kept[1]).replace('&lt;', '<')}\n```"


def on_files(files: Files, config: Any) -> Files:
    """Add the first page, and a page for every file of the repository that a page links to."""
    texts = {file.src_uri: file.content_string for file in files if file.src_uri.endswith(".md")}
    texts["index.md"] = (ROOT / "README.md").read_text(encoding="utf-8")
    files.append(File.generated(config, "index.md", content=texts["index.md"]))
    targets = {repository_path(target, home) for home, text in texts.items() for target in targets_in(text)}
    for path in sorted(filter(is_added, targets)):
        HOMES[place_of(path)] = path
        if path.endswith(PICTURES):
            files.append(File.generated(config, place_of(path), abs_src_path=str(ROOT / path)))
        else:
            files.append(File.generated(config, place_of(path), content=code_page(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links lead within the site, and equations are MathML."""
    home = page.file.src_uri
    linked = outside_of_fences(lambda text: LINK.sub(lambda m: m[1] + site_link(m[2], home) + m[3], text), markdown)
    blocks = BLOCK.sub(lambda m: f"\n<div>{convert(m[1].strip(), display='block')}</div>\n", linked)
    return INLINE.sub(lambda m: convert(m[1]), blocks)


def on_page_content(html: str, **_: Any) -> str:
    """Docstrings without the roles that Sphinx would read."""
    return ROLE.sub("", html)


def outside_of_fences(change: Any, text: str) -> str:
    parts, start = [], 0
    for fence in FENCE.finditer(text):
        parts += [change(text[start : fence.start()]), fence[0]]
        start = fence.end()
    return "".join([*parts, change(text[start:])])


def targets_in(text: str) -> list[str]:
    return [link[2] for link in LINK.finditer(FENCE.sub("", text))]


def repository_path(target: str, home: str) -> str:
    """Where a link of a page leads, from the root of the repository; an address stays as it is."""
    if "://" in target or target.startswith("mailto:"):
        return target
    return posixpath.normpath(posixpath.join(posixpath.dirname(HOMES.get(home, f"docs/{home}")), target))


def is_added(path: str) -> bool:
    """Whether a path of the repository is in the site only because a page links to it."""
    if "://" in path or path == "README.md" or not (ROOT / path).exists():
        return False
    return not path.startswith("docs/") or not path.endswith((".md", ".json", *PICTURES))


def place_of(path: str) -> str:
    """Where the site has a path of the repository; MkDocs leaves out names with a dot in front."""
    if path == "README.md" or not is_added(path):
        return "index.md" if path == "README.md" else path.removeprefix("docs/")
    return f"source/{path.lstrip('.')}" + ("" if path.endswith(PICTURES) else ".md")


def site_link(target: str, home: str) -> str:
    path = repository_path(target, home)
    return target if "://" in path else posixpath.relpath(place_of(path), posixpath.dirname(home) or ".")


def code_page(path: Path) -> str:
    """A page that shows a file, the cells of a notebook, or what lies in a folder."""
    name = path.relative_to(ROOT).as_posix()
    head = f"---\ntitle: {path.name}\nsearch:\n  exclude: true\n---\n\n# {name}\n\n"
    if path.is_dir():
        return head + "".join(f"- `{entry.name}`\n" for entry in sorted(path.iterdir()) if entry.name[0] not in "._")
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(text)["cells"]]
        return head + "\n\n".join(f"```python\n{body}\n```" if kind == "code" else body for kind, body in cells)
    language = {".py": "python", ".yaml": "yaml", ".cff": "yaml", ".json": "json", ".md": "markdown"}
    return f"{head}````{language.get(path.suffix, 'text')}\n{text}\n````\n"
