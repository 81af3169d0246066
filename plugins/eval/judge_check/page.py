"""The work of ``rbctl eval judge-page``: a page that asks a person what judges are asked."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np

from rbctl.errors import InputError
from rbctl.files import drop_partial, write_text
from rbctl.pages import render
from rbctl.paths import relative
from rbctl.plugins.eval.features import Digests
from rbctl.plugins.eval.inputs import as_cases, read_rows
from rbctl.plugins.eval.judges.answers_file import ANSWERS_FILE
from rbctl.plugins.eval.judges.judge import Item
from rbctl.plugins.eval.judges.questions import KINDS, questions

PAGE = "questions.html"


def write_page(folder: Path, count: int, seed: int, follow_outside: bool) -> str:
    """Write the page into the folder of the pictures; returns what the terminal shows.

    The questions are drawn so that every kind is asked about as often. Their order says nothing of the picture's run.

    Raises:
        InputError: the folder lists no pictures.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give the one that holds the pictures and their metadata.csv")
    pictures = as_cases(folder.name, read_rows(folder, follow_outside), Digests())
    rng = np.random.default_rng(seed)
    by_kind = {kind: [(p, q) for p in pictures for q in questions(p.case) if q.kind == kind] for kind in KINDS}
    shuffled = {kind: [own[k] for k in rng.permutation(len(own))] for kind, own in by_kind.items()}
    chosen: list[Item] = []
    while len(chosen) < count and any(shuffled.values()):
        for own in shuffled.values():
            if own and len(chosen) < count:
                chosen.append(own.pop())
    drop_partial(folder / PAGE)
    page = render(
        Path(__file__).with_name("page.html.jinja"),
        images="'self' file:",  # pictures of the folder, wherever the page is opened from
        title=f"Questions of {folder.resolve().name}",
        command=f"rbctl eval judge-check {shlex.quote(str(folder))} --judge ...",
        answers=ANSWERS_FILE,
        questions=[
            {
                "file": relative(chosen[k][0].path, folder),
                "id": chosen[k][1].id,
                "text": chosen[k][1].text,
                "second": chosen[k][1].second and relative(chosen[k][1].second, folder),
            }
            for k in rng.permutation(len(chosen))
        ],
    )
    write_text(folder / PAGE, page)
    return f"{folder / PAGE}: {len(chosen)} questions; save {ANSWERS_FILE} into {folder}"
