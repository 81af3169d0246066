"""CustomConcept101 as its repository lays it out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rbctl.errors import InputError, shortlist
from rbctl.files import read_json, read_text
from rbctl.paths import inside
from rbctl.plugins.eval.case import Case
from rbctl.plugins.eval.kinds.kind import Pictured, filled, subject


@dataclass(frozen=True, kw_only=True)
class CustomConcept101(Pictured):
    """CustomConcept101 as its repository lays it out: ``file`` lists concepts, their pictures and prompts."""

    file: str = "dataset.json"

    def cases_in(self, path: Path, data: Path, follow_outside: bool) -> tuple[Case, ...]:
        source = inside(data, self.file, f"{path}: file", follow_outside)
        listed = read_json(source)
        if not isinstance(listed, list) or not listed:
            raise InputError(f"{source}: a list of concepts was expected")
        cases: list[Case] = []
        missing: dict[Path, None] = {}
        for number, entry in enumerate(listed):
            parts = entry if isinstance(entry, list) else [entry]
            try:
                concepts = [part for part in parts if "class_prompt" in part]
                folders = [str(part["instance_data_dir"]).removeprefix("./") for part in concepts]
                words = [str(part["class_prompt"]) for part in concepts]
                # A single concept names its own prompts; a pair's stand in an entry beside the two.
                key = "prompt_filename" if len(parts) == 1 else "prompt_filename_compose"
                (prompts,) = (
                    inside(data, str(part[key]), f"{source}: {key}", follow_outside) for part in parts if key in part
                )
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                raise InputError(f"{source}: entry {number + 1} is no concept of CustomConcept101") from error
            individuals = tuple(
                subject(Path(folder).name, word, data / folder) for folder, word in zip(folders, words, strict=True)
            )
            if not prompts.is_file():
                missing[prompts] = None
                continue
            lines = [line.strip() for line in read_text(prompts).splitlines() if line.strip()]
            names = "+".join(individual.subject for individual in individuals)
            for k, line in enumerate(lines):
                text = filled(str(prompts), line, *words)
                cases.append(Case(id=f"{number:03}-{names}-{k:02}", text=text, objects=individuals, group=names))
        if missing:
            raise InputError(f"{source}: {len(missing)} prompt lists are missing: {shortlist(missing)}")
        return tuple(cases)
