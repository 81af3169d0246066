"""JSON and YAML of unknown origin: bounded in size and depth, plain values alone, every number finite."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NoReturn

from rbctl.errors import InputError, abridged, reason

if TYPE_CHECKING:
    import yaml

JSON_LIMIT = 64 << 20  # characters; parsed, JSON takes up to 25 times that
YAML_LIMIT = 1 << 20  # characters; PyYAML reads some 200,000 a second
_EXPANDED = 4 << 20  # characters and nodes of a YAML document with every alias written out
_NUMBER = 100  # characters of a YAML number; "1:1:1:..." takes the square of its length


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{abridged(text)} is no finite number")
    return number


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number of JSON")


def parse_json(text: str, where: str, limit: int = JSON_LIMIT, finite: bool = True) -> Any:
    """The value of a JSON text.

    Args:
        where: what errors begin with: FILE or FILE:LINE.
        limit: characters.
        finite: refuse NaN and infinite numbers; False for who checks every number by its field.

    Raises:
        InputError: it is no JSON, too long or too deep, or holds a number that is not finite or half a character.
    """
    if len(text) > limit:
        raise InputError(f"{where}: longer than {limit >> 20} MB of JSON; split it")
    try:
        value = json.loads(text, parse_float=_finite, parse_constant=_no_number) if finite else json.loads(text)
        if "\\ud" in text.lower():  # half of a character, maybe, which no file we write could hold
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except json.JSONDecodeError as error:
        line = f":{error.lineno}" if "\n" in text.strip() else ""
        raise InputError(f"{where}{line}: not valid JSON ({error.msg} at column {error.colno})") from error
    except RecursionError as error:
        raise InputError(f"{where}: not valid JSON (nested too deeply)") from error
    except ValueError as error:  # NaN, 1e999; a number of thousands of digits, of which Python speaks at length
        what = "a number of too many digits" if "digits" in str(error) else reason(error)
        raise InputError(f"{where}: not valid JSON ({what})") from error


@contextlib.contextmanager
def _yaml_errors(where: str) -> Iterator[None]:
    """What PyYAML raises, as one line."""
    import yaml  # here, for a quick start: no --help needs it

    try:
        yield
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line, what = f":{mark.line + 1}" if mark else "", getattr(error, "problem", None) or reason(error)
        raise InputError(f"{where}{line}: not valid YAML ({what})") from error
    except RecursionError as error:
        raise InputError(f"{where}: not valid YAML (nested too deeply)") from error
    except (ValueError, LookupError, AttributeError, TypeError, OverflowError) as error:  # "!!int x", an escape of 2^31
        raise InputError(f"{where}: a value is not of its YAML type ({reason(error)}); quote it") from error


def compose_yaml(text: str, where: str) -> yaml.Node | None:
    """The nodes of a YAML document, aliases shared; None of an empty one.

    Raises:
        InputError: it is no YAML, too long, too deep, or its aliases stand for too much.
    """
    import yaml

    if len(text) > YAML_LIMIT:
        raise InputError(f"{where}: longer than {YAML_LIMIT >> 20} MB of YAML; split it")
    with _yaml_errors(where):
        # Not the loader in C: it overflows the stack where brackets are nested too deeply.
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    if root is not None and _expanded(root, where, {}) > _EXPANDED:
        raise InputError(f"{where}: its aliases stand for more than {_EXPANDED:,} characters; write out what is meant")
    return root


def _expanded(node: yaml.Node, where: str, sizes: dict[int, int]) -> int:
    """Characters and nodes of a node with every alias in it written out; linear in the nodes that are written."""
    import yaml

    if id(node) in sizes:
        size = sizes[id(node)]
        if not size:  # still being added up
            raise InputError(f"{where}:{node.start_mark.line + 1}: an alias stands inside of what it names")
        return size
    sizes[id(node)] = 0
    if isinstance(node, yaml.MappingNode):
        parts = [part for pair in node.value for part in pair]
    else:
        parts = node.value if isinstance(node, yaml.SequenceNode) else []
    own = len(node.value) if isinstance(node, yaml.ScalarNode) else 0
    sizes[id(node)] = 1 + own + sum(_expanded(part, where, sizes) for part in parts)
    return sizes[id(node)]


def construct_yaml(root: yaml.Node | None, where: str) -> Any:
    """The plain value of composed nodes: what JSON could hold. Dates stay words.

    Raises:
        InputError: a value is not of its YAML type, or a number is not finite.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_scalar(self, node: Any) -> Any:
            text = super().construct_scalar(node)
            if node.tag.endswith((":int", ":float")) and len(text) > _NUMBER:
                raise ValueError(f"a number of {len(text)} characters")
            if any("\ud800" <= char <= "\udfff" for char in text):
                raise yaml.constructor.ConstructorError(None, None, "half a character", node.start_mark)
            return text

        def construct_yaml_float(self, node: Any) -> float:
            number = super().construct_yaml_float(node)
            if not math.isfinite(number):
                raise yaml.constructor.ConstructorError(None, None, f"{number} is no finite number", node.start_mark)
            return number

        def refuse(self, node: Any) -> None:
            raise yaml.constructor.ConstructorError(None, None, f"{node.tag} is more than JSON holds", node.start_mark)

    Loader.add_constructor("tag:yaml.org,2002:float", Loader.construct_yaml_float)
    Loader.add_constructor("tag:yaml.org,2002:timestamp", Loader.construct_scalar)
    for name in ("binary", "omap", "pairs", "set"):
        Loader.add_constructor(f"tag:yaml.org,2002:{name}", Loader.refuse)
    if root is None:
        return None
    loader = Loader("")
    try:
        with _yaml_errors(where):
            return loader.construct_document(root)
    finally:
        loader.dispose()


def line_of(root: yaml.Node | None, steps: Iterable[str | int]) -> int:
    """The line, from 1, on which a value stands that keys and numbers lead to; of the last of them that is there."""
    import yaml

    line, node = 1, root
    for step in steps:
        parts: list[tuple[Any, Any]] = []
        if isinstance(node, yaml.MappingNode):
            parts = [(key, value) for key, value in node.value if key.value == str(step)]
        elif isinstance(node, yaml.SequenceNode):
            parts = [(value, value) for number, value in enumerate(node.value) if number == step]
        if not parts:
            break
        key, node = parts[-1]
        line = key.start_mark.line + 1
    return line


def parse_yaml(text: str, where: str) -> Any:
    """The value of a YAML text.

    Raises:
        InputError: what :func:`compose_yaml` and :func:`construct_yaml` raise.
    """
    return construct_yaml(compose_yaml(text, where), where)
