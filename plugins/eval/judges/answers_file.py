"""``answers.csv``: the true answers to questions of pictures, by construction or as a person gave them."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Mapping
from pathlib import Path

from rbctl.errors import InputError, abridged, nearest
from rbctl.files import read_text

ANSWERS_FILE = "answers.csv"
ANSWERS = ("file_name", "question", "answer")
_WORDS = {"yes": True, "no": False}


def read_answers(path: Path, questions: Mapping[str, Collection[str]]) -> dict[tuple[str, str], bool]:
    """The truth by picture and question; a question without an answer is left out.

    Args:
        questions: by ``file_name`` the ids of the questions that its picture has.

    Raises:
        InputError: a line names no such picture or question, says neither yes nor no, or answers one twice.
    """
    reader = csv.DictReader(io.StringIO(read_text(path)), restkey="", restval="")
    if tuple(reader.fieldnames or ()) != ANSWERS:
        raise InputError(f"{path}: the columns {','.join(ANSWERS)} were expected in its first line")
    truth: dict[tuple[str, str], bool] = {}
    try:
        for row in reader:
            where = f"{path}:{reader.line_num}"
            name, question, answer = (str(row[column]).strip() for column in ANSWERS)
            if name not in questions:
                raise InputError(f"{where}: no picture {abridged(name)} in the list{nearest(name, questions)}")
            if question not in questions[name]:
                known = "; its questions: " + ", ".join(questions[name])
                raise InputError(
                    f"{where}: no question {abridged(question)}{nearest(question, questions[name]) or known}"
                )
            if answer.lower() not in _WORDS:
                raise InputError(f"{where}: {abridged(answer)}: write yes or no, or leave the line out")
            if (name, question) in truth:
                raise InputError(f"{where}: {abridged(name)}, {question}: has an answer above; leave one of them out")
            truth[name, question] = _WORDS[answer.lower()]
    except csv.Error as error:  # a field of more than 131,072 characters, a NUL
        raise InputError(f"{path}:{reader.line_num}: not a line of CSV ({error})") from error
    return truth
