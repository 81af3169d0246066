"""A frozen dataclass is the whole configuration of a stage; its fields are the Click options and the recipe's keys.

Precedence: flag > recipe > a chosen quality > the recipe that a chosen bundle brings > default. A default and its help
stand once, at the field.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os.path
import types
import typing
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal, TypeVar

import click
from click.core import ParameterSource

from rbctl.bases import RECIPE, family_of, recipe_of
from rbctl.errors import InputError, abridged, nearest, reason, shortened, shortlist
from rbctl.files import read_yaml, write_text
from rbctl.paths import near, relative, shipped_yaml
from rbctl.shortcuts import SECTION, options_of

Config = TypeVar("Config")

_PLAIN_TYPES: dict[Any, Any] = {bool: click.BOOL, str: click.STRING, Path: click.Path(path_type=Path)}
_LAST_GROUPS = ("Judges", "Run", "Hardware", "General")  # the others come before, in the configuration's order
_SEPARATORS = ("/", os.sep)
BUNDLE_RECIPE = RECIPE  # in a bundle's folder: what suits it better than the defaults


def option(
    default: Any,
    help: str,
    *,
    group: str | None = None,
    min: float | None = None,
    max: float | None = None,
    argument: bool = False,
    of_bundle: bool = False,
    names_quality: bool = False,
) -> Any:
    """A dataclass field that is also a command-line option and a recipe key.

    Args:
        default: its value when neither flag nor recipe names it; ``...`` marks it required.
        help: one line with unit and range.
        group: its heading in ``--help``; the options after it stand there too, up to the next that names one.
        min, max: bounds of a number, both included; every number has both, and finite ones.
        argument: given by position on the command line, without a flag.
        of_bundle: the recipe inside of a bundle may set it. A bundle comes from strangers, so this is for the numbers
            and choices of sampling and tuning: never a path, an engine, a device, or whom to trust.
        names_quality: its value is a quality, which stands for other options (:mod:`rbctl.shortcuts`).
    """
    metadata = {
        "help": help,
        "group": group,
        "min": min,
        "max": max,
        "argument": argument,
        "of_bundle": of_bundle,
        "names_quality": names_quality,
    }
    return dataclasses.field(default=dataclasses.MISSING if default is ... else default, metadata=metadata)


class Number(click.FloatRange):
    """A number of a finite range, both ends included.

    Click's own ranges hold nan, may lack an end, and repeat every digit of what they refuse.
    """

    def __init__(self, kind: type[int] | type[float], low: float, high: float) -> None:
        super().__init__(low, high)
        self.low, self.high = low, high
        self.kind, self.name = kind, "integer" if kind is int else "float"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            number = self.kind(value)
        except (ValueError, OverflowError):
            number = math.nan
        if not self.low <= number <= self.high:  # nan too
            kind = "a whole number" if self.kind is int else "a number"
            self.fail(f"{abridged(value)} is not {kind} from {self.low} to {self.high}", param, ctx)
        return number


class _Field(click.Parameter):
    """The parameter of a configuration's field.

    Attributes:
        group: the heading that it stands under in the help.
        nullable: the field may be None.
        of_bundle: the recipe inside of a bundle may set it.
        names_quality: its value stands for other options.
    """

    group = "Options"
    nullable = False
    of_bundle = False
    names_quality = False

    def type_cast_value(self, ctx: click.Context, value: Any) -> Any:
        """As Click's; refused is what no recipe could hold: bytes of the command line that are no UTF-8."""
        for part in value if isinstance(value, tuple | list) else (value,):
            if isinstance(part, str | Path) and any("\ud800" <= char <= "\udfff" for char in str(part)):
                raise click.BadParameter(f"{abridged(str(part))} is no UTF-8", ctx, self)
        return super().type_cast_value(ctx, value)

    def check_recipe_value(self, ctx: click.Context, content: Any) -> None:
        """Refuse what is not of the field's type, even if Click takes it (3.7 for 3, true for 1, a list as text).

        Raises:
            ValueError: with the reason.
        """
        if content is None:
            if self.nullable:
                return
            raise ValueError("a value is expected, not null; leave the key out for the default")
        if self.multiple and not isinstance(content, list):
            raise ValueError(f"a list is expected, not {abridged(content)}")
        for single in content if self.multiple else [content]:
            if isinstance(single, list | dict) or single is None:
                raise ValueError(f"one value is expected, not {abridged(single)}")
            if isinstance(self.type, type(click.BOOL)):
                if not isinstance(single, bool):
                    raise ValueError(f"true or false is expected, not {abridged(single)}")
            elif isinstance(single, bool):
                hint = "YAML reads a bare no, yes, on or off as a truth value, so quote it"
                raise ValueError(f"{self.type.name} is expected, not {abridged(single)}; {hint}")
            if isinstance(self.type, Number) and self.type.kind is int and isinstance(single, float):
                raise ValueError(f"a whole number is expected, not {abridged(single)}")
        try:
            self.type_cast_value(ctx, content)
        except click.BadParameter as error:
            raise ValueError(reason(error)) from error
        except TypeError as error:
            raise ValueError(f"{abridged(content)} is not of type {self.type.name}") from error


class _FieldOption(_Field, click.Option):
    pass


class _FieldArgument(_Field, click.Argument):
    pass


class StageCommand(click.Command):
    """A command that lists the options of its configuration under their headings.

    A configuration tells in ``FORMER_OPTIONS`` what took the place of options that it had.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        former = former_options(getattr(self.callback, "config_type", None))
        kept, waiting = [], iter(args)
        for argument in waiting:
            flag, equals, value = argument.partition("=")
            before = former.get(flag[2:].replace("-", "_")) if flag.startswith("--") else None
            if before is None:
                kept.append(argument)
            elif (value if equals else next(waiting, "")) != before.harmless:
                raise InputError(f"{flag}: is no longer an option; {before.instead}")
        return super().parse_args(ctx, kept)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            if record := parameter.get_help_record(ctx):
                groups.setdefault(getattr(parameter, "group", "General"), []).append(record)
        last = [heading for heading in _LAST_GROUPS if heading in groups]
        for heading in [*(heading for heading in groups if heading not in last), *last]:
            with formatter.section(heading):
                formatter.write_dl(groups[heading])


def _is_optional(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


@dataclasses.dataclass(frozen=True)
class FormerOption:
    """An option that a stage had in earlier versions.

    Attributes:
        instead: what took its place.
        harmless: the value, as on the command line, that asks for what is done today anyway.
    """

    instead: str
    harmless: str


def former_options(config: Any) -> Mapping[str, FormerOption]:
    """Options that a configuration had in earlier versions."""
    return getattr(config, "FORMER_OPTIONS", {})


def _click_type(annotation: Any, field: dataclasses.Field[Any]) -> tuple[Any, bool]:
    """Click's type of a field by its annotation, and whether the option repeats.

    Raises:
        TypeError: there is none, or a number lacks a bound.
    """
    if _is_optional(annotation):
        (annotation,) = (a for a in typing.get_args(annotation) if a is not type(None))
    if typing.get_origin(annotation) is tuple:
        return _click_type(typing.get_args(annotation)[0], field)[0], True
    if typing.get_origin(annotation) is Literal:
        return click.Choice([str(choice) for choice in typing.get_args(annotation)]), False
    if annotation in _PLAIN_TYPES:
        return _PLAIN_TYPES[annotation], False
    if annotation is int or annotation is float:
        low, high = field.metadata.get("min"), field.metadata.get("max")
        if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
            raise TypeError(f"{field.name}: a number needs a finite min and max, not {low} and {high}")
        return Number(annotation, low, high), False
    raise TypeError(f"no option type for {annotation!r}")


def _click_parameter(field: dataclasses.Field[Any], annotation: Any) -> _Field:
    kind, multiple = _click_type(annotation, field)
    flag = field.name.replace("_", "-")
    parameter: _Field
    extra: dict[str, Any] = {"required": field.default is dataclasses.MISSING}
    if not extra["required"]:  # Click takes an explicit default, even None, for an answer to a required parameter
        extra["default"] = field.default
    if field.metadata.get("argument"):
        if multiple:  # Click gives the empty tuple of itself, and takes no default
            extra = {"nargs": -1, "required": extra["required"]}
        parameter = _FieldArgument([field.name], type=kind, **extra)
    else:
        extra |= {"help": field.metadata.get("help"), "show_default": field.default not in (None, (), "")}
        flags = f"--{flag}/--no-{flag}" if kind is click.BOOL else f"--{flag}"
        parameter = _FieldOption([flags, field.name], type=kind, multiple=multiple, **extra)
    parameter.nullable = _is_optional(annotation)
    parameter.of_bundle = bool(field.metadata.get("of_bundle"))
    parameter.names_quality = bool(field.metadata.get("names_quality"))
    return parameter


def find_recipe(name: str, stage: str | None = None) -> Path:
    """A recipe file by path, or by name among the shipped ones, a stage's own (recipes/STAGE/) before the others.

    Raises:
        InputError: neither exists; it names the nearest shipped one.
    """
    if os.path.isfile(name):
        return Path(name)
    shipped = shipped_yaml() | (shipped_yaml(stage) if stage else {})
    if name in shipped:
        return shipped[name]
    raise InputError(
        f"{shortened(name, 200)}: no such recipe{nearest(name, shipped) or '; shipped: ' + shortlist(sorted(shipped))}"
    )


def _load_recipe(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    """Eager callback of ``--recipe``: its section for this command becomes Click's defaults, types checked."""
    if value is None:
        return
    path = find_recipe(value, ctx.command.name)
    content = read_yaml(path)
    recipe = _section(ctx, path, content)
    if SECTION in content:
        ctx.meta[SECTION] = path, content
    if ctx.command.name not in content:
        sections = shortlist(map(abridged, content)) or "nothing"
        raise InputError(f"{path}: has no section {ctx.command.name!r}, only {sections}")
    ctx.default_map = {**recipe, **(ctx.default_map or {})}


def _section(ctx: click.Context, path: Path, content: dict[str, Any]) -> dict[str, Any]:
    """A recipe's values for this command, types checked; empty where it has none.

    Raises:
        InputError: file and key are named.
    """
    stages = set(entry_points(group="rbctl.plugins").names)
    for section, values in content.items():
        if section == SECTION:
            continue
        if section not in stages:
            raise InputError(f"{path}: no stage {abridged(section)}{nearest(str(section), stages)}")
        if not isinstance(values, dict):
            raise InputError(f"{path}: section {abridged(section)} must be a mapping of options to values")
    return _checked(ctx, path, content.get(ctx.command.name or "", {}))


def _checked(ctx: click.Context, path: Path, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Values for this command, types checked, paths made whole.

    Raises:
        InputError: file and key are named.
    """
    fields = {p.name: p for p in ctx.command.params if isinstance(p, _Field) and p.name}
    former = former_options(getattr(ctx.command.callback, "config_type", None))
    for key, value in recipe.items():
        if key in former:
            raise InputError(f"{path}: {key} is no longer an option; {former[key].instead}")
        if key not in fields:
            raise InputError(f"{path}: no option {abridged(key)}{nearest(str(key), fields)}")
        try:
            fields[key].check_recipe_value(ctx, value)
        except ValueError as error:
            raise InputError(f"{path}: {key}: {error}") from error
    return {key: _located(fields[key], value, path.parent) for key, value in recipe.items()}


def _located(field: _Field, value: Any, folder: Path) -> Any:
    """A recipe's value; a path that leads to something from the recipe's folder is that, others stay as they are."""
    if isinstance(value, list):
        return [_located(field, single, folder) for single in value]
    if not isinstance(value, str):
        return value
    assigned, equals, path = value.rpartition("=")  # NAME=PATH
    is_path = isinstance(field.type, click.Path) or any(mark in path for mark in _SEPARATORS)
    return f"{assigned}{equals}{near(folder, path)}" if is_path or os.path.isfile(folder / path) else value


def _of_the_bundle(ctx: click.Context, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of the bundle's own recipe, and over them a quality's, for options that neither flag nor recipe names.

    Args:
        values: of all options; ``bundle`` and the quality are read.

    Raises:
        InputError: the recipe is wrong, or sets what is not a bundle's to set; file and key are named.
    """
    from rbctl.bundle.catalogue import place

    folder = place(values["bundle"])
    is_there = os.path.isdir(folder)  # Path.is_dir fails where a name is too long; who loads it tells that it lacks
    path, content = recipe_of(folder) if is_there else (folder / BUNDLE_RECIPE, {})
    fields = [p for p in ctx.command.params if isinstance(p, _Field)]
    settable, recipe = {p.name for p in fields if p.of_bundle}, dict[str, Any]()
    parts = [(path, _section(ctx, path, content))]
    for quality in (values[p.name] for p in fields if p.name and p.names_quality):
        source, whole = ctx.meta.get(SECTION) or (path, content)
        parts.append((source, _checked(ctx, source, options_of(quality, whole, str(source)))))
    for source, part in parts:
        if foreign := [key for key in part if key not in settable]:
            raise InputError(f"{source}: {foreign[0]}: no bundle may set this; give it on the command line instead")
        recipe |= part
    unset = {name for name in recipe if ctx.get_parameter_source(name) is ParameterSource.DEFAULT}
    taken = {p.name: p.type_cast_value(ctx, recipe[p.name]) for p in ctx.command.params if p.name in unset}
    only = family_of(folder).only.get(ctx.command.name or "", {}) if is_there else {}
    only = {name: value for name, value in only.items() if name in values}
    for name, value in only.items():
        if ctx.get_parameter_source(name) is not ParameterSource.DEFAULT and values[name] != value:
            option = f"--{name.replace('_', '-')}"
            mend = "leave it out" if value in (None, ()) else f"take {value}"
            raise InputError(f"{option} {values[name]}: has no meaning on {folder.name}; {mend}")
    return taken | only


def config_options(config_type: type[Config]) -> Callable[[Callable[[Config], None]], Callable[..., None]]:
    """Decorate the body of a ``StageCommand`` that takes one configuration: adds options, ``--recipe``, ``--dry-run``.

    A configuration with a field ``bundle`` also takes what that bundle's own recipe says (``BUNDLE_RECIPE`` beside its
    networks) for every option that is not named otherwise.
    """
    annotations = typing.get_type_hints(config_type)

    def decorate(body: Callable[[Config], None]) -> Callable[..., None]:
        def configuration(**values: Any) -> Config:
            if isinstance(values.get("bundle"), str):
                values |= _of_the_bundle(click.get_current_context(), values)
            try:
                return config_type(**values)
            except ValueError as error:
                raise InputError(str(error)) from error

        @functools.wraps(body)
        def wrapper(*, dry_run: bool, **values: Any) -> None:
            config = configuration(**values)
            if dry_run:
                click.echo(to_yaml(click.get_current_context().command.name or "", config), nl=False)
                return
            body(config)

        wrapper.configuration = configuration  # type: ignore[attr-defined]
        params: list[click.Parameter] = []
        group = _Field.group
        for field in dataclasses.fields(config_type):  # type: ignore[arg-type]
            parameter = _click_parameter(field, annotations[field.name])
            parameter.group = group = field.metadata.get("group") or group
            params.append(parameter)
        recipe_help = "YAML file, or the name of a shipped one; flags win over it."
        params += [
            click.Option(["--recipe"], is_eager=True, expose_value=False, callback=_load_recipe, help=recipe_help),
            click.Option(["--dry-run"], is_flag=True, help="Print the resolved recipe and stop."),
        ]
        wrapper.__click_params__ = list(reversed(params))  # type: ignore[attr-defined]
        wrapper.config_type = config_type  # type: ignore[attr-defined]
        return wrapper

    return decorate


def configured(command: click.Command, recipe: str | Path | None = None, **options: Any) -> Any:
    """The configuration of a stage from Python: options > recipe > the recipe that a bundle brings > default.

    Args:
        recipe: a YAML file, or the name of a shipped one.
        options: of the stage, as its configuration names them; None is as if it were not named.

    Raises:
        InputError: there is no such option or recipe, or a value is not of its type.
    """
    fields = {p.name: p for p in command.params if isinstance(p, _Field)}
    for name in options:
        if name not in fields:
            raise InputError(f"{command.name}: no option {name}{nearest(name, filter(None, fields))}")
    named = {name: value for name, value in options.items() if value is not None}
    arguments = [] if recipe is None else ["--recipe", str(recipe)]
    try:
        with command.make_context(command.name, arguments, default_map=named) as context:
            context.params.pop("dry_run")
            return command.callback.configuration(**context.params)  # type: ignore[union-attr]
    except click.UsageError as error:
        raise InputError(f"{command.name}: {error.format_message()}") from error


def as_plain(config: Any, folder: Path | None = None) -> dict[str, Any]:
    """The configuration as YAML and JSON can hold it.

    Args:
        folder: of a record; paths are then as :func:`rbctl.paths.relative` names them there.
    """

    def named(value: Any) -> Any:
        if folder is None:
            return value
        if isinstance(value, Path):
            return relative(value, folder)
        if isinstance(value, str):
            assigned, equals, path = value.rpartition("=")  # NAME=PATH
            is_path = os.path.isfile(path) or (any(mark in path for mark in _SEPARATORS) and os.path.exists(path))
            return f"{assigned}{equals}{relative(path, folder)}" if is_path else value
        return [named(single) for single in value] if isinstance(value, tuple) else value

    values = {key: named(value) for key, value in dataclasses.asdict(config).items()}
    plain: dict[str, Any] = json.loads(json.dumps(values, default=str))
    return plain


def to_yaml(section: str, config: Any, folder: Path | None = None) -> str:
    """The resolved recipe, usable as ``--recipe``; options that are unset by default and still so are left out.

    Args:
        folder: that the recipe will lie in.
    """
    import yaml  # here, for a quick start: no --help needs it

    unset = {f.name for f in dataclasses.fields(config) if f.default is None}
    plain = as_plain(config, folder)
    values = {key: value for key, value in plain.items() if value is not None or key not in unset}
    return yaml.safe_dump({section: values}, sort_keys=False, allow_unicode=True)


def write_recipe(path: Path, section: str, config: Any) -> None:
    """Save the resolved recipe of a run; its paths are relative to the recipe's folder."""
    write_text(path, to_yaml(section, config, path.parent))
