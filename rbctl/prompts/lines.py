"""prompts.txt: one prompt a line, with kohya's options and ours."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

from rbctl import formats
from rbctl.errors import InputError, abridged, nearest
from rbctl.files import read_text
from rbctl.prompts.fields import Entry, Prompt, PromptObject, Settings, build

# Kohya's short names; fields of the first have no other in a line.
_SHORT = {
    "am": "lora_weight",
    "ow": "original_width",
    "oh": "original_height",
    "ct": "crop_top",
    "cl": "crop_left",
}
_SHORT_TOO = {
    "n": "negative_prompt",
    "w": "width",
    "h": "height",
    "d": "seed",
    "l": "guidance_scale",
    "s": "steps",
    "ss": "scheduler",
}
# Kohya's options that have no counterpart here, and what there is instead.
_UNSUPPORTED = {
    "t": "is the strength of img2img; rbctl draws from noise alone, so leave it out",
    "nl": "is a guidance scale of the negative prompt's own; --l is the one scale here",
    "nw": "is a width for the negative prompt alone; --ow holds for both",
    "nh": "is a height for the negative prompt alone; --oh holds for both",
    "c": "is the text of CLIP guidance, not done here; leave it out",
    "f": "is a file name; pictures are named by text, seed and settings here, and metadata.jsonl lists them",
}
_UNSUPPORTED |= dict.fromkeys(("glt", "glr", "gls", "gle", "glus"), "is of Gradual Latent, not done here; leave it out")
_UNSUPPORTED |= dict.fromkeys(("dsd1", "dst1", "dsd2", "dst2", "dsr"), "is of Deep Shrink, not done here; leave it out")

# Options of a line: kohya's short names, and each field's own name.
_OPTIONS = {
    **{
        field.name.replace("_", "-"): field.name
        for field in dataclasses.fields(Settings)
        if field.name not in _SHORT.values()
    },
    **_SHORT_TOO,
    **_SHORT,
    "box": "boxes",
    "subject-scale": "subject_scale",
}

_DASH = re.compile(r"(?<=\s)[–—−](?P<name>[A-Za-z][\w-]*)(?=[\s=])")
_CURLY = re.compile(r"(?<!\S)(--[A-Za-z][\w-]*[\s=]\s*)[“”„]([^“”„]*)[“”]")  # quotes as word processors make them
_OPTION_START = re.compile(r"(?:(?<=\s)|^)--(?=[A-Za-z])")
_OPTION = re.compile(
    r"""--(?P<name>[A-Za-z][\w-]*)(?=[\s=]|$)=?
        (?:\s*(?P<quote>["'])(?P<quoted>(?:(?!(?P=quote)).)*)(?P=quote)\s*|(?P<bare>.*?))
        (?=(?<=\s)--[A-Za-z]|$)""",
    re.VERBOSE | re.DOTALL,
)


def parse_line(line: str, folder: Path, where: str) -> Prompt:
    """One line of a prompts.txt.

    Args:
        folder: what the line's paths are relative to.
        where: "FILE:LINE", for errors and the prompt's ``source``.

    Raises:
        InputError: the line is wrong, or one of its pictures is missing.
    """
    if (dash := _DASH.search(line)) and dash["name"].lower() in _OPTIONS:
        raise InputError(f"{where}: {dash[0]!r}: some editors make one dash of two hyphens; write --{dash['name']}")
    text, objects, options = split_text(line, where, with_options=True)
    options = _CURLY.sub(r'\1"\2"', options)
    values: dict[str, Any] = {}
    names: dict[str, str] = {}  # a field's option as the line has it
    while options:
        option = _OPTION.match(options)
        if not option:
            raise InputError(f"{where}: {abridged(options)} is not an option; write --name value")
        options = options[option.end() :]
        name = option["name"].lower()
        value = option["bare"].strip() if option["quoted"] is None else option["quoted"]
        field = _OPTIONS.get(name)
        if name in _UNSUPPORTED:
            raise InputError(f"{where}: --{name} {_UNSUPPORTED[name]}")
        if field is None:
            known = [f"--{option}" for option in _OPTIONS]
            mend = nearest(f"--{name}", known) or f"; options: {' '.join(known)}"
            raise InputError(f"{where}: no option --{name}{mend}")
        if option["quoted"] is None and value.startswith('"') and value.count('"') == 1:
            raise InputError(f'{where}: --{name}: the quote is not closed; end it with "')
        if not value.strip() and field != "negative_prompt":
            raise InputError(f"{where}: --{name} has no value")
        if field == "boxes":
            values.setdefault(field, []).append(value.split(","))
        elif field in names and field != "lora":
            raise InputError(f"{where}: --{name} is given twice; leave one out")
        elif field == "lora" and field in values:
            values["lora"] += f",{value}"
        else:
            values[field] = value.split(",") if field == "subject_scale" else value
        names[field] = f"--{name}"
    return build(formats.read(Entry, values, where, names), text, objects, folder, where, names)


def read_lines(path: Path) -> tuple[Prompt, ...]:
    """The prompts of a prompts.txt."""
    return tuple(
        parse_line(line, path.parent, f"{path}:{number}")
        for number, line in enumerate(read_text(path).split("\n"), 1)
        if line.strip() and not line.lstrip().startswith("#")
    )


def split_text(line: str, where: str, with_options: bool) -> tuple[str, list[PromptObject], str]:
    """The prompt's text, its inline objects, and what follows from the first option on.

    Raises:
        InputError: a brace is not closed or not opened, or holds no object.
    """
    text: list[str] = []
    objects: list[PromptObject] = []
    position = 0
    while position < len(line):
        pair, char = line[position : position + 2], line[position]
        if with_options and _OPTION_START.match(line, position):
            break
        if pair in ("{{", "}}"):
            text.append(char)
            position += 2
        elif char == "{":
            end = line.find("}", position)
            inside = line[position + 1 : end]
            if end < 0 or "{" in inside:
                raise InputError(f"{where}: a brace is not closed; write {{name: picture}}, and {{{{ for a plain brace")
            if "|" in inside:
                choice = abridged(line[position : end + 1])
                what = f"{choice} draws words by chance in Dynamic Prompts, which is not done here"
                raise InputError(f"{where}: {what}; write a line for each choice, or {{{{ for a plain brace")
            name, colon, picture = (part.strip() for part in inside.partition(":"))
            if not (name and colon and picture):
                raise InputError(f"{where}: '{{{inside}}}' is no object; write {{name: picture}}, or {{{{ for a brace")
            objects.append(PromptObject(name=name, image=Path(picture)))
            text.append(name)
            position = end + 1
        elif char == "}":
            raise InputError(f"{where}: a brace is closed that was not opened; write }}}} for a plain brace")
        else:
            text.append(char)
            position += 1
    return "".join(text).strip(), objects, line[position:].strip()
