"""DreamBench as its repository lays it out."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from rbctl.errors import InputError
from rbctl.files import read_text
from rbctl.plugins.eval.case import Case
from rbctl.plugins.eval.kinds.kind import Pictured, filled, subject

_PROMPT = re.compile(r"^[ \t]*'(.+)'\.format\(unique_token, class_token\)", re.MULTILINE)


@dataclass(frozen=True)
class DreamBenchLists:
    """What prompts_and_classes.txt says.

    Attributes:
        classes: class word by subject.
        objects, live: the two prompt lists, with {} for the class word, the rare token left out.
    """

    classes: dict[str, str]
    objects: tuple[str, ...]
    live: tuple[str, ...]


def read_dreambench_lists(path: Path) -> DreamBenchLists:
    """Read the official prompts_and_classes.txt.

    Raises:
        InputError: a section is missing.
    """
    text = read_text(path)
    head, _, rest = text.partition("Object Prompts")
    objects, _, live = rest.partition("Live Subject Prompts")
    rows = [line.split(",") for line in head.splitlines() if line.count(",") == 1]
    classes = {name.strip(): word.strip() for name, word in rows if name.strip() != "subject_name"}
    lists = [tuple(_plain_prompt(p) for p in _PROMPT.findall(part)) for part in (objects, live)]
    if not (classes and all(lists)):
        raise InputError(f"{path}: not DreamBench's prompts_and_classes.txt (classes, object prompts, live prompts)")
    return DreamBenchLists(classes, *lists)


def _plain_prompt(template: str) -> str:
    return " ".join(template.replace("{0}", "").replace("{1}", "{}").split())


@dataclass(frozen=True, kw_only=True)
class DreamBench(Pictured):
    """DreamBench as its repository lays it out: a folder a subject, and prompts_and_classes.txt.

    Attributes:
        live: class words that take the prompts of live subjects.
        subjects: only these; empty for all.
    """

    live: tuple[str, ...] = ()
    subjects: tuple[str, ...] = ()

    def cases_in(self, path: Path, data: Path, follow_outside: bool) -> tuple[Case, ...]:
        source = data / "prompts_and_classes.txt"
        lists = read_dreambench_lists(source)
        cases = []
        for name, word in lists.classes.items():
            if self.subjects and name not in self.subjects:
                continue
            group = "live" if word in self.live else "object"
            for number, prompt in enumerate(lists.live if group == "live" else lists.objects):
                who = subject(name, word, data / name)
                text = filled(str(source), prompt, word)
                cases.append(Case(id=f"{name}-{number:02}", text=text, objects=(who,), group=group))
        return tuple(cases)
