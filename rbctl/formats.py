"""Files as data classes: what JSON and YAML say, checked against a frozen dataclass and read into it.

    @dataclass(frozen=True)
    class Case:
        prompt: Words
        seeds: Annotated[tuple[int, ...], MinLen(1)]        # annotated_types: Interval, MinLen, MultipleOf ...
        relation: Literal["hug", "ride"] = "hug"

    case = read(Case, parse_json(line, where), where)       # InputError: FILE:3: seeds[1]: a whole number was expected
    case = read_yaml(Case, path)                            # the line in the error is the field's own

Ranges come from ``annotated_types``, rules of our own from :class:`Check`, rules over several fields from
``__post_init__`` with a ValueError. Types are strict: true is no number, 3.0 no whole number, NaN nothing. A key that
the dataclass lacks is refused. pydantic does the work; it is imported when the first file is read.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from annotated_types import Ge

from rbctl.errors import InputError, abridged, nearest, shortlist
from rbctl.files import read_text
from rbctl.parsing import compose_yaml, construct_yaml, line_of

if TYPE_CHECKING:
    import pydantic
    import yaml

T = TypeVar("T")

DIALECT = "https://json-schema.org/draft/2020-12/schema"

_EXPECTED = {  # by the types of pydantic's errors; the words in braces are the errors' own
    "string_type": "words were",
    "int_type": "a whole number was",
    "float_type": "a number was",
    "finite_number": "a finite number was",
    "bool_type": "true or false was",
    "tuple_type": "a list was",
    "dict_type": "a mapping was",
    "dataclass_type": "a mapping was",
    "none_required": "nothing was",
    "literal_error": "{expected} was",
    "greater_than_equal": "{ge:,} or more was",
    "less_than_equal": "{le:,} or less was",
    "greater_than": "more than {gt:,} was",
    "less_than": "less than {lt:,} was",
    "multiple_of": "a multiple of {multiple_of} was",
    "too_short": "{min_length} or more entries were",
    "too_long": "{max_length} or fewer entries were",
    "string_too_short": "{min_length} or more characters were",
    "string_too_long": "{max_length} or fewer characters were",
}


@dataclass(frozen=True)
class Check:
    """A rule for a field: ``Annotated[str, Check(function)]``.

    Attributes:
        function: takes the value and returns it, changed or not; what is wrong is the text of its ValueError.
        before: the function sees the value as the file has it and returns one of the field's type; else it sees what
            is of that type already.
        schema: what the rule adds to the field's JSON Schema.
    """

    function: Callable[[Any], Any]
    before: bool = False
    schema: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        if self.before:
            return core_schema.no_info_before_validator_function(self.function, handler(source))
        return core_schema.no_info_after_validator_function(self.function, handler(source))

    def __get_pydantic_json_schema__(self, core: Any, handler: Any) -> dict[str, Any]:
        return {**handler(core), **self.schema}


def _filled(text: str) -> str:
    if not text.strip():
        raise ValueError(f"words were expected, not {abridged(text)}")
    return text


Positive = Annotated[int, Ge(1)]
Words = Annotated[str, Check(_filled, schema={"pattern": r"\S"})]


@dataclass(frozen=True)
class Fault:
    """Something wrong in a file: ``steps`` are the keys and numbers that lead to it from the top."""

    steps: tuple[str | int, ...]
    text: str

    def __str__(self) -> str:
        path = ""
        for step in self.steps:
            if isinstance(step, int):
                path += f"[{step}]"
            else:
                path += f".{step[:60] if step.isprintable() else abridged(step)}"
        return f"{path.removeprefix('.')}: {self.text}" if path else self.text


def read(
    kind: type[T], data: Any, where: str, names: Mapping[str, str] | None = None, ignore_others: bool = False
) -> T:
    """Plain data of JSON or YAML as a ``kind``.

    Args:
        where: what the error begins with: FILE or FILE:LINE.
        names: what the user calls a field, where that is not its name.
        ignore_others: keys that the kind lacks are left out, as in a file that others share; else they are refused.

    Raises:
        InputError: a key is unknown or missing, or a value is not what its field takes; the field is named.
    """
    value, faults = examine(kind, data, ignore_others)
    for fault in faults:
        steps = [names.get(str(step), step) for step in fault.steps[:1]] if names else fault.steps[:1]
        raise InputError(f"{where}: {Fault((*steps, *fault.steps[1:]), fault.text)}")
    return typing.cast(T, value)


def read_yaml(kind: type[T], path: Path, defaults: Mapping[str, Any] | None = None) -> T:
    """A YAML file as a ``kind``.

    Args:
        defaults: values of keys that the file leaves out.

    Raises:
        InputError: the file is no YAML or not of that kind; FILE:LINE and field are named.
    """
    return read_nodes(kind, compose_yaml(read_text(path), str(path)), path, defaults)


def read_nodes(kind: type[T], root: yaml.Node | None, path: Path, defaults: Mapping[str, Any] | None = None) -> T:
    """As :func:`read_yaml`, of a file that is composed already."""
    content = construct_yaml(root, str(path))
    if isinstance(content, dict | None):
        content = {**(defaults or {}), **(content or {})}
    value, faults = examine(kind, content)
    for fault in faults:
        raise InputError(f"{path}:{line_of(root, fault.steps)}: {fault}")
    return typing.cast(T, value)


def examine(kind: type[T], data: Any, ignore_others: bool = False) -> tuple[T | None, list[Fault]]:
    """As :func:`read`, with all that is wrong; the value is None then."""
    from pydantic import ValidationError

    try:
        # Only in JSON do pydantic's strict types take a list for a tuple and a mapping for a dataclass.
        return _adapter(kind, ignore_others).validate_json(json.dumps([data]))[0], []  # type: ignore[arg-type]
    except ValidationError as error:
        errors = [e for e in error.errors(include_url=False) if e["type"] != "too_short" or e["ctx"]["actual_length"]]
        errors = errors or error.errors(include_url=False)  # one bad entry makes its list "too short" as well
        errors.sort(
            key=lambda e: e["type"] != "unexpected_keyword_argument"
        )  # a slip in a key before the gap it leaves
        return None, [_fault(kind, e) for e in errors]
    except RecursionError:
        return None, [Fault((), "nested too deeply")]
    except TypeError as error:  # from Python: an array for a number
        return None, [Fault((), f"plain values were expected ({error})")]


@functools.cache
def _adapter(kind: Any, ignore_others: bool = False) -> pydantic.TypeAdapter[Any]:
    from pydantic import TypeAdapter

    # A tuple, since pydantic takes no configuration beside a dataclass; those in the tuple all follow it.
    extra: Literal["ignore", "forbid"] = "ignore" if ignore_others else "forbid"
    return TypeAdapter(tuple[kind], config={"strict": True, "extra": extra, "allow_inf_nan": False})


def _fault(kind: type, error: Any) -> Fault:
    steps, what, value = error["loc"][1:], error["type"], error["input"]
    if what == "unexpected_keyword_argument":
        keys = [field.name for field in dataclasses.fields(_kind_at(kind, steps[:-1]))]
        text = f"no such key{nearest(steps[-1], keys) or '; keys: ' + shortlist(keys)}"
    elif what == "missing":
        text = "is missing"
    elif what == "value_error":
        text = str(error["ctx"]["error"])
    elif what == "json_invalid":
        text = "nested too deeply" if "recursion" in error["msg"] else "half a character is in it"
    elif expected := _EXPECTED.get(what):
        bounds = {
            key: int(v) if isinstance(v, float) and v.is_integer() else v for key, v in error.get("ctx", {}).items()
        }
        text = f"{expected.format(**bounds)} expected, not {abridged(value)}"
        if what in ("int_type", "float_type") and isinstance(value, str):
            text += "; numbers have no quotes, and YAML reads 1.0e-4 as one, but not 1e-4"
    else:
        text = f"{error['msg']}, not {abridged(value)}"
    return Fault(steps, text)


def _kind_at(kind: Any, steps: Iterable[str | int]) -> Any:
    """The dataclass that stands at a place of another."""
    for step in steps:
        if dataclasses.is_dataclass(kind):
            kind = typing.get_type_hints(kind)[str(step)]
        else:  # tuple[X, ...] and dict[str, X]
            kind = [part for part in typing.get_args(kind) if part is not Ellipsis][-1]
        if typing.get_origin(kind) in (typing.Union, types.UnionType):  # X | None
            kind = typing.get_args(kind)[0]
    return kind


def schema(kind: type) -> dict[str, Any]:
    """The JSON Schema of a ``kind``; what its docstring tells of its attributes are the descriptions."""
    from pydantic.json_schema import GenerateJsonSchema

    class Generator(GenerateJsonSchema):
        def field_title_should_be_set(self, schema: Any) -> bool:
            return False

        def dataclass_schema(self, schema: Any) -> dict[str, Any]:
            content = super().dataclass_schema(schema)
            summary, _, attributes = (inspect.getdoc(schema["cls"]) or "").partition("\n\nAttributes:\n")
            content["description"] = summary.partition("\n\n")[0]
            for names, text in re.findall(r"^ {4}([\w, ]+): (.*(?:\n {8}.*)*)", attributes, re.MULTILINE):
                for name in names.split(", "):
                    if name in content["properties"]:
                        content["properties"][name]["description"] = " ".join(text.split())
            return content

    whole = _adapter(kind).json_schema(schema_generator=Generator)
    return {"$schema": DIALECT, **whole["prefixItems"][0], "$defs": whole["$defs"]}
