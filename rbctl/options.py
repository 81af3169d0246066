"""A frozen dataclass is the whole configuration of a stage; its fields are the Click options and the recipe's keys.

Precedence: flag > recipe > default. A default and its help stand once, at the field.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import types
import typing
from collections.abc import Callable, Iterable
from importlib.metadata import entry_points
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any, Literal, TypeVar

import click
import yaml

from rbctl.errors import InputError
from rbctl.files import read_yaml, write_text

Config = TypeVar("Config")


def option(default: Any, help: str, *, min: float | None = None, max: float | None = None) -> Any:
    """A dataclass field that is also a command-line option and a recipe key.

    Args:
        default: its value when neither flag nor recipe names it; ``...`` marks it required.
        help: one line with unit and range.
        min, max: bounds of a number, both included.
    """
    metadata = {"help": help, "min": min, "max": max}
    if default is ...:
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def nearest(word: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?`` for the nearest known word, or an empty string."""
    close = difflib.get_close_matches(word, list(known), 1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _click_type(annotation: Any, metadata: Any) -> tuple[Any, bool]:
    """Click's type of a field's annotation, and whether the option repeats."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        (annotation,) = (a for a in typing.get_args(annotation) if a is not type(None))
    if typing.get_origin(annotation) is tuple:
        return _click_type(typing.get_args(annotation)[0], metadata)[0], True
    if typing.get_origin(annotation) is Literal:
        return click.Choice([str(choice) for choice in typing.get_args(annotation)]), False
    low, high = metadata.get("min"), metadata.get("max")
    if annotation is bool:
        return click.BOOL, False
    if annotation is int:
        return click.IntRange(low, high) if (low, high) != (None, None) else click.INT, False
    if annotation is float:
        return click.FloatRange(low, high) if (low, high) != (None, None) else click.FLOAT, False
    if annotation is Path:
        return click.Path(path_type=Path), False
    if annotation is str:
        return click.STRING, False
    raise TypeError(f"no option type for {annotation!r}")


def _click_option(field: dataclasses.Field[Any], annotation: Any) -> click.Option:
    kind, multiple = _click_type(annotation, field.metadata)
    flag = field.name.replace("_", "-")
    required = field.default is dataclasses.MISSING
    default = None if required else field.default
    declaration = f"--{flag}/--no-{flag}" if kind is click.BOOL else f"--{flag}"
    extra: dict[str, Any] = {} if kind is click.BOOL else {"type": kind, "multiple": multiple}
    return click.Option(
        [declaration, field.name],
        default=default,
        required=required,
        show_default=default not in (None, (), ""),
        help=field.metadata.get("help"),
        **extra,
    )


def find_recipe(name: str) -> Path:
    """A recipe file by path, or by name among the shipped ones.

    Raises:
        InputError: neither exists; the nearest shipped name is told.
    """
    if Path(name).is_file():
        return Path(name)
    shipped = {Path(f.name).stem: f for f in package_files("rbctl.recipes").iterdir() if f.name.endswith(".yaml")}
    if name in shipped:
        return Path(str(shipped[name]))
    raise InputError(f"{name}: no such recipe{nearest(name, shipped) or '; shipped: ' + ', '.join(sorted(shipped))}")


def _load_recipe(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    """Eager callback of ``--recipe``: its section for this command becomes Click's defaults, types checked."""
    if value is None:
        return
    path = find_recipe(value)
    content = read_yaml(path)
    stages = set(entry_points(group="rbctl.plugins").names)
    for section, values in content.items():
        if section not in stages:
            raise InputError(f"{path}: no stage {section!r}{nearest(str(section), stages)}")
        if not isinstance(values, dict):
            raise InputError(f"{path}: section {section!r} must be a mapping of options to values")
    recipe = content.get(ctx.command.name or "", {})
    options = {p.name: p for p in ctx.command.params if isinstance(p, click.Option) and p.expose_value}
    for key, given in recipe.items():
        if key not in options:
            raise InputError(f"{path}: no option {key!r}{nearest(str(key), [o for o in options if o])}")
        try:
            options[key].type_cast_value(ctx, given)
        except (click.BadParameter, TypeError) as error:
            reason = error.message if isinstance(error, click.BadParameter) else str(error)
            raise InputError(f"{path}: {key}: {reason}") from error
    ctx.default_map = {**(ctx.default_map or {}), **recipe}


def config_options(config_type: type[Config]) -> Callable[[Callable[[Config], None]], Callable[..., None]]:
    """Decorate a Click command body that takes one configuration: adds its options, ``--recipe`` and ``--dry-run``."""
    annotations = typing.get_type_hints(config_type)
    fields = dataclasses.fields(config_type)  # type: ignore[arg-type]

    def decorate(body: Callable[[Config], None]) -> Callable[..., None]:
        @functools.wraps(body)
        def wrapper(*, dry_run: bool, **values: Any) -> None:
            try:
                config = config_type(**values)
            except ValueError as error:
                raise InputError(str(error)) from error
            if dry_run:
                click.echo(to_yaml(click.get_current_context().command.name or "", config), nl=False)
                return
            body(config)

        params: list[click.Parameter] = [_click_option(f, annotations[f.name]) for f in fields]
        params.append(
            click.Option(
                ["--recipe"],
                is_eager=True,
                expose_value=False,
                callback=_load_recipe,
                help="YAML file, or the name of a shipped one; flags win over it.",
            )
        )
        params.append(click.Option(["--dry-run"], is_flag=True, help="Print the resolved recipe and stop."))
        wrapper.__click_params__ = list(reversed(params))  # type: ignore[attr-defined]
        return wrapper

    return decorate


def as_plain(config: Any) -> dict[str, Any]:
    """The configuration as YAML and JSON can hold it."""

    def plain(value: Any) -> Any:
        if isinstance(value, Path):
            return str(value)
        return [plain(v) for v in value] if isinstance(value, tuple) else value

    return {f.name: plain(getattr(config, f.name)) for f in dataclasses.fields(config)}


def to_yaml(section: str, config: Any) -> str:
    """The resolved recipe, usable as ``--recipe``; unset options are left out."""
    values = {key: value for key, value in as_plain(config).items() if value is not None}
    return yaml.safe_dump({section: values}, sort_keys=False, allow_unicode=True)


def write_recipe(path: Path, section: str, config: Any) -> None:
    """Save the resolved recipe of a run."""
    write_text(path, to_yaml(section, config))
