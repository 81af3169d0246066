"""No number that data or a command line holds is beyond its range: none switches a limit off, none lasts for ever."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from click.testing import CliRunner

from rbctl.cli import main
from rbctl.errors import InputError, nearest
from rbctl.menagerie.scenes import scene_rule
from rbctl.menagerie.triplets import check_drawable
from rbctl.plugins.eval.ablate.recipe import read as read_ablation
from rbctl.plugins.eval.benchmarks import load_benchmark
from rbctl.plugins.eval.case import Wanted
from rbctl.prompts.lines import parse_line
from rbctl.relations import Relation, load_relation, shipped
from rbctl.roles import find_relation

HUGE = 10**18
WRONG = ["nan", "inf", "-inf", "1e999", "-1e999", str(HUGE), str(-HUGE), "9" * 5000, "-" + "9" * 5000]
STAGES = sorted(entry_points(group="rbctl.plugins").names)
_NUMBERS = (type(click.INT), type(click.FLOAT))  # ranges are kinds of them


def commands(group: click.Command, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """A command and those below it, each with the words that call it."""
    yield path, group
    if isinstance(group, click.Group):
        context = click.Context(group)
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            assert command is not None
            yield from commands(command, (*path, name))


ALL = [
    (path, parameter)
    for path, command in commands(main, ())
    for parameter in command.params
    if isinstance(parameter.type, _NUMBERS)
]
NAMES = [" ".join((*path, parameter.name or "")) for path, parameter in ALL]


def test_the_walk_meets_every_stage_with_numbers() -> None:
    assert {path[0] for path, _ in ALL if path} >= {
        "annotate", "demo", "distill", "eval", "finetune", "generate", "pretrain", "sample"
    }  # fmt: skip
    assert len(ALL) > 120


@pytest.mark.parametrize(("path", "parameter"), ALL, ids=NAMES)
def test_a_number_has_a_finite_range_with_its_default_in_it(path: tuple[str, ...], parameter: click.Parameter) -> None:
    kind: Any = parameter.type
    assert isinstance(kind, click.IntRange | click.FloatRange), "a range"
    assert kind.min is not None
    assert kind.max is not None
    assert -1e4 <= kind.min <= kind.max < 2**63
    whole = kind.convert("1" if kind.min <= 1 <= kind.max else str(kind.min), parameter, None)
    assert type(whole) is (int if kind.name.startswith("integer") else float)
    if kind.max >= HUGE:  # a seed may be any number of 63 bits
        assert "seed" in (parameter.name or "")
    default = parameter.get_default(click.Context(main))
    for value in default if isinstance(default, tuple) else [default]:
        if isinstance(value, int | float):
            assert kind.min <= value <= kind.max
            assert math.isfinite(value)


@pytest.mark.parametrize(("path", "parameter"), ALL, ids=NAMES)
def test_a_number_out_of_range_is_one_line_that_names_the_option(
    path: tuple[str, ...], parameter: click.Parameter
) -> None:
    flag = parameter.opts[-1]
    for text in WRONG:
        if text == str(HUGE) and parameter.type.max >= HUGE:  # type: ignore[attr-defined]
            continue
        result = CliRunner().invoke(main, [*path, f"{flag}={text}"])
        assert result.exit_code == 2, (text, result.output, result.exception)
        (line,) = result.stderr.splitlines()
        assert line.startswith("Error: Invalid value for "), text
        assert f"'{flag}': " in line
        if hasattr(parameter, "check_recipe_value"):
            assert f" from {parameter.type.min} to {parameter.type.max}" in line  # type: ignore[attr-defined]
            assert len(line) < 250


@pytest.mark.parametrize("stage", STAGES)
def test_a_recipe_is_held_to_the_same_ranges(stage: str) -> None:
    command = main.get_command(click.Context(main), stage)
    assert command is not None
    for parameter in command.params:
        if not isinstance(parameter.type, _NUMBERS):
            continue
        for value in [*WRONG, math.nan, math.inf, -math.inf, 10**400, -HUGE, HUGE]:
            if str(value) == str(HUGE) and parameter.type.max >= HUGE:  # type: ignore[attr-defined]
                continue
            given = [value] if parameter.multiple else value
            with pytest.raises(ValueError, match=r"^[^\n]{1,150}$"):
                parameter.check_recipe_value(click.Context(command), given)  # type: ignore[attr-defined]


@pytest.mark.parametrize("written", ["nan", ".nan", "inf", ".inf", "-.inf", "1e999", "1.0e+999", "9" * 5000, "1:1:1:1"])
def test_a_recipe_file_of_such_numbers_is_one_line(tmp_path: Path, written: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"finetune: {{learning_rate: {written}}}")
    result = CliRunner().invoke(main, ["finetune", "--relation", "hug", "--recipe", str(path), "--dry-run"])
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"Error: {path}:")


def drawn(**changes: Any) -> Relation:
    """The relation 'ride' with these changes to its pose rules; those of its first figure where they are a figure's."""
    relation = load_relation("ride")
    scene = yaml.safe_load(yaml.safe_dump(relation.scene))
    for key, value in changes.items():
        place = scene if key in ("meet", "front", "reach") else scene["figures"][1]
        place[key] = value
    return dataclasses.replace(relation, scene=scene)


NO_LENGTHS = [math.nan, math.inf, -math.inf, 1e300, 10**400, 11, True, "1", None]


@pytest.mark.parametrize("value", NO_LENGTHS, ids=str)
def test_lengths_of_a_scene_are_finite_and_small(value: Any) -> None:
    limbs = ["0.near_front", "1.near_front"]
    for changes in (
        {"size": value},
        *({key: [value, 1]} for key in ("lift", "gap", "apart", "offset")),
        *({key: [-1, value]} for key in ("lift", "gap", "apart", "offset")),
        {"meet": [[*limbs, [value, 0]]]},
        {"front": value if value is not None else "1"},
    ):
        with pytest.raises(InputError, match=r"^[^\n]{1,250}$"):
            scene_rule(drawn(**changes))


def test_a_relation_of_more_roles_than_species_is_not_drawn_for_ever() -> None:
    relation = load_relation("ride")
    roles = tuple(dataclasses.replace(relation.roles[0], name=f"role {k}") for k in range(40))
    places = " ".join(f"{{role_{k}}}" for k in range(2, 40))
    prompts = (f"A {{subject}} is riding a {{object}} with {places}.",)
    many = dataclasses.replace(relation, roles=roles, prompts=prompts, scene={"figures": [{"pose": "stand"}] * 40})
    with pytest.raises(InputError, match=r"40 roles, but only \d+ species can be drawn"):
        check_drawable(many)


@pytest.mark.parametrize("key", ["cases", "seed"])
@pytest.mark.parametrize("value", [".nan", ".inf", "1e300", "-1", "1.5", "true", "'7'", str(2**63), "0x" + "f" * 90])
def test_counts_and_seeds_of_a_benchmark_are_bounded(tmp_path: Path, key: str, value: str) -> None:
    path = tmp_path / "bench.yaml"
    path.write_text(f"kind: menagerie\nrelations: [ride]\n{key}: {value}\n")
    with pytest.raises(InputError, match=rf"^{path}:[^\n]{{1,200}}$"):
        load_benchmark(str(path), Wanted(drawn=tmp_path / "drawn"))
    assert not (tmp_path / "drawn").exists()


@pytest.mark.parametrize("key", ["cases", "seeds"])
@pytest.mark.parametrize("value", [".nan", ".inf", "1e300", "-1", "1.5", "true", "'7'", str(2**63), "0x" + "f" * 90])
def test_counts_and_seeds_of_an_ablation_are_bounded(tmp_path: Path, key: str, value: str) -> None:
    path = tmp_path / "ablation.yaml"
    content = {"relations": "[ride]", "seeds": "[0]", "tables": "[{rows: {a: {}}}]", "cases": "4"}
    content[key] = f"[{value}]" if key == "seeds" else value
    path.write_text("\n".join(f"{name}: {text}" for name, text in content.items()))
    with pytest.raises(InputError, match=rf"^{path}:[^\n]{{1,200}}$"):
        read_ablation(str(path), {})


def test_long_texts_take_no_time_out_of_proportion(tmp_path: Path) -> None:
    relations = [load_relation(name) for name in shipped()]
    start = time.monotonic()
    assert find_relation("hugs " * 20_000, relations).name == "hug"  # type: ignore[union-attr]
    assert nearest("ab" * 50_000, ["ba" * 50_000]) == ""
    assert parse_line(f"A cat. --n {' ' * 100_000}low", tmp_path, "p.txt:1").negative_prompt == "low"
    for option in (f'n "{" " * 100_000}low', f"n {'--' * 50_000}", f"{'n' * 100_000}!", f"box {', ' * 50_000}"):
        with contextlib.suppress(InputError):
            parse_line(f"A cat. --{option}", tmp_path, "p.txt:1")
    lists = tmp_path / "prompts_and_classes.txt"
    lists.write_text(f"subject_name,class\na,b\nObject Prompts{chr(10) * 100_000}Live Subject Prompts")
    from rbctl.plugins.eval.kinds.dreambench import read_dreambench_lists

    with pytest.raises(InputError):
        read_dreambench_lists(lists)
    assert time.monotonic() - start < 5
