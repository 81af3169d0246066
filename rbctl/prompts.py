"""Prompts: prompts.txt, YAML and the official code's configuration files, all read into ``Prompt``.

A line of prompts.txt::

    A {cat: pets/tom.jpg} is riding a {plush bear: toys/bear.png} --d 7 --s 30 --n lowres, blurry

``{name: picture}`` marks an object; ``{{`` and ``}}`` are plain braces; lines that start with # are comments. Options
are kohya's (``--n`` negative prompt, ``--w --h`` size, ``--d`` seed, ``--l`` guidance scale, ``--s`` steps) and ours
(``--relation --lora PATH[:WEIGHT] --embedding PATH[:TOKEN] --box x0,y0,x1,y1 --scale --subject-scale a,b --images``);
``--box`` is given once per object, in their order. A value runs to the next option; it may be quoted. A YAML file has
a list ``prompts`` of mappings with the fields of ``Prompt`` (objects inline in ``text`` or as a list ``objects``) and
may have ``defaults``.

Paths of pictures, and of a LoRA, embedding or relation file where one lies there, are relative to the prompts file.
"""

from __future__ import annotations

import dataclasses
import math
import os.path
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from rbctl.errors import InputError
from rbctl.files import read_image, read_text, read_yaml
from rbctl.options import nearest
from rbctl.relations import Box, check_box, load_relation


@dataclasses.dataclass(frozen=True)
class PromptObject:
    """One individual to be shown.

    Attributes:
        name: the words for it in the prompt, "plush bear".
        image: its picture.
        box: where it goes, relative xyxy; None: the layout decides.
        subject_scale: weight of its own image tokens; None: the common scale.
    """

    name: str
    image: Path
    box: Box | None = None
    subject_scale: float | None = None


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One prompt. None stands for "not given"; the stage's defaults fill it in.

    Attributes:
        text: the prompt with the objects' names in place.
        objects: N objects; either all have a box or none has.
        width, height: pixels, multiples of 8.
        relation: a shipped relation's name, or the path of a relation file.
        lora: paths of LoRAs with commas between. ``lora_weight``: of these, or of the one the stage finds.
        embedding: learned embeddings, PATH[:TOKEN] with commas between.
        scale: weight of the image branch (gamma).
        images: number of pictures, with seeds from ``seed`` on.
        source: where it stands, "folder/prompts.txt:3".
    """

    text: str
    objects: tuple[PromptObject, ...] = ()
    negative_prompt: str | None = None
    width: int | None = None
    height: int | None = None
    seed: int | None = None
    guidance_scale: float | None = None
    steps: int | None = None
    relation: str | None = None
    lora: str | None = None
    lora_weight: float | None = None
    embedding: str | None = None
    scale: float | None = None
    images: int | None = None
    source: str = ""


def _whole(low: int, high: int, multiple: int = 1) -> Callable[[Any], int]:
    wanted = f"a whole number from {low} to {high}" + (f", a multiple of {multiple}" if multiple > 1 else "")

    def check(value: Any) -> int:
        try:
            number = int(value) if isinstance(value, str) else value
        except ValueError:
            number = None
        if isinstance(number, bool) or not isinstance(number, int) or not low <= number <= high or number % multiple:
            raise ValueError(f"{_shown(value)} is not {wanted}")
        return number

    return check


def _real(low: float, high: float) -> Callable[[Any], float]:
    def check(value: Any) -> float:
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not low <= number <= high:  # nan too
            raise ValueError(f"{_shown(value)} is not a number from {low:g} to {high:g}")
        return number

    return check


def _words(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"words were expected, not {_shown(value)}")
    if any("\ud800" <= char <= "\udfff" for char in value):  # YAML's "\ud83d"; no file could hold it
        raise ValueError(f"{_shown(value)} is not valid Unicode")
    return value


def _filled(value: Any) -> str:
    if not _words(value).strip():
        raise ValueError("no value is given")
    return value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


_scale = _real(0, 10)

# How the value of each field is checked, whether it comes as text from a line or as a value from YAML.
_CHECKS: dict[str, Callable[[Any], Any]] = {
    "negative_prompt": _words,
    "width": _whole(64, 8192, 8),
    "height": _whole(64, 8192, 8),
    "seed": _whole(0, 2**63 - 10_001),  # the seeds of further images count up
    "guidance_scale": _real(0, 100),
    "steps": _whole(1, 1000),
    "relation": _filled,
    "lora": _filled,
    "lora_weight": _real(-10, 10),
    "embedding": _filled,
    "scale": _scale,
    "images": _whole(1, 10_000),
}

# Options of a line: kohya's short names, and each field's own name.
_OPTIONS = {
    **{field.replace("_", "-"): field for field in _CHECKS if field != "lora_weight"},
    "n": "negative_prompt",
    "w": "width",
    "h": "height",
    "d": "seed",
    "l": "guidance_scale",
    "s": "steps",
    "box": "boxes",
    "subject-scale": "subject_scale",
}

_OPTION_START = re.compile(r"(?:(?<=\s)|^)--(?=[A-Za-z])")
_OPTION = re.compile(
    r"""--(?P<name>[A-Za-z][\w-]*)(?=[\s=]|$)=?
        (?:\s*(?P<quote>["'])(?P<quoted>(?:(?!(?P=quote)).)*)(?P=quote)|(?P<bare>.*?))
        (?=\s+--[A-Za-z]|\s*$)\s*""",
    re.VERBOSE | re.DOTALL,
)


def read_prompts(path: Path) -> tuple[Prompt, ...]:
    """Read a prompts file: .txt, .yaml or .yml (ours, or a configuration of the official code).

    Raises:
        InputError: ``FILE:LINE: what; the mend`` for the first line that is wrong, or the file holds no prompt.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix == ".txt":
        prompts = _read_lines(path)
    elif suffix in (".yaml", ".yml"):
        content = read_yaml(path)
        if "prompts" not in content and "images_path" in content:
            return (read_official_config(path),)
        prompts = _read_mappings(path, content)
    else:
        raise InputError(f"{path}: not a prompts file; its name must end in .txt, .yaml or .yml")
    if not prompts:
        raise InputError(f"{path}: holds no prompt; write one on a line")
    return prompts


def parse_line(line: str, folder: Path, where: str) -> Prompt:
    """One line of a prompts.txt.

    Args:
        folder: what the line's paths are relative to.
        where: "FILE:LINE", for errors and the prompt's ``source``.

    Raises:
        InputError: the line is wrong, or one of its pictures is missing.
    """
    text, objects, options = _split_text(line, where, with_options=True)
    values: dict[str, Any] = {}
    boxes: list[Any] = []
    shown: dict[str, str] = {}  # a field's option as the line has it
    rest = options
    while rest:
        found = _OPTION.match(rest)
        if not found:
            raise InputError(f"{where}: {_shown(rest)} is not an option; write --name value")
        rest = rest[found.end() :]
        name = found["name"]
        value = found["bare"].strip() if found["quoted"] is None else found["quoted"]
        field = _OPTIONS.get(name)
        if field is None:
            known = [f"--{option}" for option in _OPTIONS]
            mend = nearest(f"--{name}", known) or f"; options: {' '.join(known)}"
            raise InputError(f"{where}: no option --{name}{mend}")
        if found["quoted"] is None and value.startswith('"') and value.count('"') == 1:
            raise InputError(f'{where}: --{name}: the quote is not closed; end it with "')
        if not value.strip() and field != "negative_prompt":
            raise InputError(f"{where}: --{name} has no value")
        shown[field] = f"--{name}"
        if field == "boxes":
            boxes.append([part.strip() for part in value.split(",")])
            continue
        if field in values:
            raise InputError(f"{where}: --{name} is given twice; leave one out")
        if field == "subject_scale":
            values[field] = [part.strip() for part in value.split(",")]
        elif field == "lora":
            values.update(_lora(value))
        else:
            values[field] = value
    if boxes:
        values["boxes"] = boxes
    return _build(text, [{"name": n, "image": p} for n, p in objects], values, folder, where, shown)


def _read_lines(path: Path) -> tuple[Prompt, ...]:
    return tuple(
        parse_line(line, path.parent, f"{path}:{number}")
        for number, line in enumerate(read_text(path).split("\n"), 1)
        if line.strip() and not line.lstrip().startswith("#")
    )


def _split_text(line: str, where: str, with_options: bool) -> tuple[str, list[tuple[str, str]], str]:
    """The prompt's text, its inline objects as (name, path), and what follows from the first option on."""
    text: list[str] = []
    objects: list[tuple[str, str]] = []
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
            name, colon, picture = (part.strip() for part in inside.partition(":"))
            if not (name and colon and picture):
                raise InputError(f"{where}: '{{{inside}}}' is no object; write {{name: picture}}, or {{{{ for a brace")
            objects.append((name, picture))
            text.append(name)
            position = end + 1
        elif char == "}":
            raise InputError(f"{where}: a brace is closed that was not opened; write }}}} for a plain brace")
        else:
            text.append(char)
            position += 1
    return "".join(text).strip(), objects, line[position:].strip()


def _lora(value: str) -> dict[str, Any]:
    """PATH[:WEIGHT]; a colon that no number follows belongs to the path."""
    head, colon, tail = value.rpartition(":")
    try:
        float(tail)
    except ValueError:
        return {"lora": value}
    return {"lora": head.strip(), "lora_weight": tail} if colon else {"lora": value}


def _build(
    text: str,
    objects: Sequence[Mapping[str, Any]],
    values: Mapping[str, Any],
    folder: Path,
    where: str,
    shown: Mapping[str, str],
) -> Prompt:
    """A checked prompt.

    Args:
        objects: name, image and, from YAML, box and subject_scale.
        values: unchecked fields; ``boxes`` and ``subject_scale`` are lists over the objects.
        shown: a field's name as the user wrote it.
    """
    if not text:
        raise InputError(f"{where}: the prompt is empty; write what the picture shows")
    checked = {
        key: _checked(_CHECKS[key], v, where, shown.get(key, key)) for key, v in values.items() if key in _CHECKS
    }
    for field in ("lora", "embedding", "relation"):
        if field in checked:
            checked[field] = _near(folder, checked[field])
    if "relation" in checked:
        try:
            relation = load_relation(checked["relation"])
        except InputError as error:
            raise InputError(f"{where}: {shown.get('relation', 'relation')}: {error}") from error
        if not os.path.isfile(checked["relation"]):
            checked["relation"] = relation.name
    boxes = _per_object("box", "boxes", objects, values, where, shown, check_box)
    if any(box is None for box in boxes) and any(box is not None for box in boxes):
        raise InputError(f"{where}: some objects have a box and some have none; give one for each, or none")
    scales = _per_object("subject_scale", "subject_scale", objects, values, where, shown, _scale)
    built = tuple(
        PromptObject(
            name=_checked(_filled, entry["name"], where, "name").strip(),
            image=_picture(_checked(_filled, entry["image"], where, "image"), folder, where, entry["name"]),
            box=box,
            subject_scale=scale,
        )
        for entry, box, scale in zip(objects, boxes, scales, strict=True)
    )
    return Prompt(text=text, objects=built, source=where, **checked)


def _near(folder: Path, given: str) -> str:
    """Paths with commas between, those of files in ``folder`` made whole; a token's ":<name>" stays."""
    if os.path.isfile(folder / given):
        return str(folder / given)

    def whole(part: str) -> str:
        path = part.partition(":<")[0]
        return str(folder / path) + part[len(path) :] if os.path.isfile(folder / path) else part

    return ",".join(whole(part.strip()) for part in given.split(","))


def _per_object(
    key: str,
    field: str,
    objects: Sequence[Mapping[str, Any]],
    values: Mapping[str, Any],
    where: str,
    shown: Mapping[str, str],
    check: Callable[[Any], Any],
) -> list[Any]:
    """The checked values of the objects: each one's own ``key``, or the prompt's list ``field``, but not both."""
    own = [entry.get(key) for entry in objects]
    listed = values.get(field)
    name = key if listed is None else shown.get(field, field)
    if listed is not None:
        count = len(listed) if isinstance(listed, list) else _shown(listed)
        if count != len(objects):
            raise InputError(f"{where}: {name}: {count} given, {len(objects)} expected; give one per object, or none")
        if any(value is not None for value in own):
            raise InputError(f"{where}: {name}: given here and at the objects; leave one out")
    given = own if listed is None else listed
    return [None if value is None else _checked(check, value, where, name) for value in given]


def _checked(check: Callable[[Any], Any], value: Any, where: str, name: str) -> Any:
    try:
        return check(value)
    except ValueError as error:
        raise InputError(f"{where}: {name}: {error}") from error


def _picture(given: str, folder: Path, where: str, name: str) -> Path:
    path = folder / given
    if not os.path.isfile(path):
        raise InputError(f"{where}: {name}: no picture {path}; paths are relative to the prompts file")
    return path


def _read_mappings(path: Path, content: Mapping[str, Any]) -> tuple[Prompt, ...]:
    """The prompts of a YAML file; every error names the line where its prompt starts."""
    _known_keys(str(path), content, ("prompts", "defaults"))
    listed, defaults = content.get("prompts"), content.get("defaults") or {}
    if not isinstance(listed, list):
        raise InputError(f"{path}: prompts: a list was expected; write '- text: ...' for each")
    if not isinstance(defaults, dict):
        raise InputError(f"{path}: defaults: a mapping was expected, not {_shown(defaults)}")
    _known_keys(f"{path}: defaults", defaults, _CHECKS)
    prompts = []
    lines = _item_lines(path)
    for number, entry in enumerate(listed):
        line = lines[number] if number < len(lines) else 1  # a list merged in by << has no line here
        where = f"{path}:{line}"
        if not isinstance(entry, dict):
            raise InputError(f"{where}: a mapping was expected, not {_shown(entry)}; write '- text: ...'")
        _known_keys(where, entry, ("text", "objects", "boxes", "subject_scale", *_CHECKS))
        values = {**defaults, **entry}
        text, inline, _ = _split_text(
            _checked(_words, values.pop("text", ""), where, "text"), where, with_options=False
        )
        objects: Any = values.pop("objects", None)
        if objects is None:
            objects = [{"name": name, "image": picture} for name, picture in inline]
        elif inline:
            raise InputError(f"{where}: objects: given in the text and as a list; leave one out")
        else:
            _check_objects(objects, where)
        given = {key: value for key, value in values.items() if value is not None}
        prompts.append(_build(text, objects, given, path.parent, where, {}))
    return tuple(prompts)


def _check_objects(objects: Any, where: str) -> None:
    if not isinstance(objects, list) or not all(isinstance(entry, dict) for entry in objects):
        raise InputError(f"{where}: objects: a list of mappings with name and image was expected")
    for number, entry in enumerate(objects, 1):
        _known_keys(f"{where}: object {number}", entry, [field.name for field in dataclasses.fields(PromptObject)])
        for key in ("name", "image"):
            if key not in entry:
                raise InputError(f"{where}: object {number}: {key} is missing")


def _known_keys(where: str, content: Mapping[Any, Any], known: Iterable[str]) -> None:
    known = list(known)
    for key in content:
        if key not in known:
            raise InputError(f"{where}: no key {key!r}{nearest(str(key), known) or '; keys: ' + ', '.join(known)}")


def _item_lines(path: Path) -> list[int]:
    """Line numbers, from 1, of the items of the list ``prompts``; none where it is not written out."""
    root = yaml.compose(read_text(path), Loader=yaml.SafeLoader)
    pairs = root.value if isinstance(root, yaml.MappingNode) else []
    items = [value.value for key, value in pairs if key.value == "prompts"]
    return [item.start_mark.line + 1 for item in items[-1]] if items else []


def read_official_config(path: Path, root: Path | None = None) -> Prompt:
    """Read one inference configuration of the official code (``prompt``, ``class_names``, ``images_path``, ``boxes``).

    A picture is looked for under ``root``, the file's folder and the folders above it, first by its whole path, then
    with leading folders dropped ("assets/image_prompts/dog.jpg" finds "image_prompts/dog.jpg"). The LoRA's path stays
    as written.

    Raises:
        InputError: a key is unknown, missing or wrong, or a picture is not found; the key is named.
    """
    path = Path(path)
    content = read_yaml(path)
    _known_keys(str(path), content, ("lora_weights", "class_names", "prompt", "images_path", "boxes", "phrases"))
    for key in ("prompt", "images_path"):
        if key not in content:
            raise InputError(f"{path}: {key} is missing")
    pictures = _strings(path, "images_path", content["images_path"])
    phrases = content.get("phrases")
    if isinstance(phrases, list) and len(phrases) == 1 and isinstance(phrases[0], list):
        phrases = phrases[0]  # the official form is a batch of one
    names = _strings(path, "phrases", phrases) if phrases else _strings(path, "class_names", content.get("class_names"))
    if len(names) != len(pictures):
        raise InputError(f"{path}: images_path: {len(pictures)} pictures for {len(names)} names; give one for each")
    boxes = content.get("boxes")
    if isinstance(boxes, list) and len(boxes) == 1 and isinstance(boxes[0], list) and len(boxes[0]) == len(names):
        boxes = boxes[0]
    found = [{"name": n, "image": str(_search(path, root, p))} for n, p in zip(names, pictures, strict=True)]
    values = {"boxes": boxes or None, "lora": content.get("lora_weights")}
    text = _checked(_words, content["prompt"], str(path), "prompt").strip()
    given = {key: value for key, value in values.items() if value is not None}
    prompt = _build(text, found, given, Path(), str(path), {"lora": "lora_weights"})
    return dataclasses.replace(prompt, lora=content.get("lora_weights"))


def _strings(path: Path, key: str, value: Any) -> list[str]:
    if not isinstance(value, list) or not value or not all(isinstance(v, str) and v.strip() for v in value):
        raise InputError(f"{path}: {key}: a list of words was expected, not {_shown(value)}")
    return value


def _search(path: Path, root: Path | None, given: str) -> Path:
    folders = [*([root] if root else []), path.parent, *path.resolve().parent.parents]
    parts = Path(given).parts
    for dropped in range(max(len(parts) - 1, 1)):  # a bare file name might match anything, so its folder stays
        for folder in folders:
            candidate = folder / Path(*parts[dropped:])
            if os.path.isfile(candidate):
                return candidate
    raise InputError(f"{path}: images_path: no picture {given} in {folders[0]} or above; give the folder it lies in")


def check_pictures(prompts: Iterable[Prompt]) -> None:
    """Read every picture whole, so that a long run fails at its start and not at its hundredth prompt.

    Raises:
        InputError: a picture is missing or damaged; the prompt's place is named.
    """
    seen: set[Path] = set()
    for prompt in prompts:
        for entry in prompt.objects:
            if entry.image in seen:
                continue
            seen.add(entry.image)
            try:
                read_image(entry.image)
            except InputError as error:
                raise InputError(f"{prompt.source}: {entry.name}: {error}") from error
