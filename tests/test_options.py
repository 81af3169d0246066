"""Options: flag over recipe over default, and a recipe that is wrong says where."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import click
import pytest
import yaml
from click.testing import CliRunner, Result

from rbctl.cli import Stages, main
from rbctl.errors import InputError
from rbctl.options import BUNDLE_RECIPE, StageCommand, config_options, find_recipe, option, to_yaml


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    prompts: Path = option(..., "By position.", argument=True)
    data: Path = option(..., "Required.")
    steps: int = option(10, "Whole.", min=1, max=1000)
    count: int = option(3, "Whole.", min=-5, max=5)
    lr: float = option(1e-4, "Float.", min=0, max=1)
    name: str | None = option(None, "Optional.")
    negative: str | None = option("lowres", "Optional with a default.")
    seeds: tuple[int, ...] = option((), "Repeats.", min=0, max=9)
    words: tuple[str, ...] = option(("a", "b"), "Repeats, with defaults.")
    flip: bool = option(True, "Switch.")
    mode: Literal["no", "fp16"] = option("no", "Choice.")

    def __post_init__(self) -> None:
        if self.name == "bad":
            raise ValueError("--name: bad is bad; choose another")


DEFAULTS = {f.name: f.default for f in dataclasses.fields(Config)} | {"prompts": Path("p.txt"), "data": Path("d")}


class Stage:
    """The command `finetune` (a name that recipes may hold), and what it was called with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.got: Config | None = None
        self.group = Stages("rbctl")

        @click.command("finetune")
        @config_options(Config)
        def command(config: Config) -> None:
            self.got = config

        self.group.add_command(command)

    def call(self, *arguments: str, recipe: str | None = None) -> Result:
        self.got = None
        if recipe is not None:
            (self.folder / "recipe.yaml").write_text(recipe)
            arguments = (*arguments, "--recipe", str(self.folder / "recipe.yaml"))
        return CliRunner().invoke(self.group, ["finetune", *arguments])


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def test_defaults(stage: Stage) -> None:
    assert stage.call("p.txt", "--data", "d").exit_code == 0
    assert dataclasses.asdict(stage.got) == DEFAULTS


@pytest.mark.parametrize("recipe_first", [True, False])
def test_flag_over_recipe_over_default(stage: Stage, recipe_first: bool) -> None:
    path = stage.folder / "r.yaml"
    path.write_text("finetune: {steps: 20, lr: 1e-2, flip: false, seeds: [1, 2]}\nsample: {anything: 1}\n")
    recipe, flags = ["--recipe", str(path)], ["--steps", "30", "--seeds", "5", "--data", "d"]
    result = stage.call("p.txt", *(recipe + flags if recipe_first else flags + recipe))
    assert result.exit_code == 0, result.output
    assert dataclasses.asdict(stage.got) == DEFAULTS | {"steps": 30, "lr": 0.01, "flip": False, "seeds": (5,)}


@pytest.mark.parametrize(
    ("written", "key", "value"),
    [
        ("lr: 1e-4", "lr", 1e-4),  # PyYAML reads this as text
        ("lr: 1", "lr", 1.0),
        ("steps: '5'", "steps", 5),
        ("name: 5", "name", "5"),
        ("name: null", "name", None),
        ("negative: null", "negative", None),
        ("seeds: []", "seeds", ()),
        ("words: []", "words", ()),
        ("words: [x]", "words", ("x",)),
        ("flip: no", "flip", False),
        ("mode: fp16", "mode", "fp16"),
        ("data: elsewhere", "data", Path("elsewhere")),
        ("prompts: other.txt", "prompts", Path("other.txt")),
    ],
)
def test_values_of_a_recipe(stage: Stage, written: str, key: str, value: object) -> None:
    recipe = {"prompts": "p.txt", "data": "d"}
    recipe.pop(key, None)
    text = ", ".join([*(f"{k}: {v}" for k, v in recipe.items()), written])
    result = stage.call(recipe=f"finetune: {{{text}}}")
    assert result.exit_code == 0, result.output
    assert dataclasses.asdict(stage.got) == DEFAULTS | {key: value}
    assert type(getattr(stage.got, key)) is type(value) or isinstance(value, Path)


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ("{stepz: 3}", "no option 'stepz'; did you mean 'steps'?"),
        ("{recipe: x}", "no option 'recipe'"),
        ("{dry_run: true}", "no option 'dry_run'"),
        ("{3: 4}", "no option 3"),
        ("{steps: many}", "steps: "),
        ("{steps: 3.7}", "steps: a whole number"),
        ("{count: 3.7}", "count: a whole number"),
        ("{steps: true}", "steps: "),
        ("{steps: 1001}", "steps: 1001 is not a whole number from 1 to 1000"),
        ("{steps: null}", "steps: a value is expected"),
        ("{data: null}", "data: a value is expected"),
        ("{data: 5}", "data: "),
        ("{lr: true}", "lr: "),
        ("{lr: nan}", "lr: 'nan' is not a number from 0 to 1"),
        ("{lr: 1e999}", "lr: '1e999' is not a number from 0 to 1"),
        ("{count: -6}", "count: -6 is not a whole number from -5 to 5"),
        (f"{{count: {10**90}}}", "0000 is not a whole number from -5 to 5"),
        (f"{{lr: '{'9' * 5000}'}}", "9999' is not a number from 0 to 1"),
        ("{seeds: [1, 10]}", "seeds: 10 is not a whole number from 0 to 9"),
        ("{lr: [1]}", "lr: one value"),
        ("{name: [a]}", "name: one value"),
        ("{name: {a: 1}}", "name: one value"),
        ("{seeds: 3}", "seeds: a list"),
        ("{seeds: abc}", "seeds: a list"),
        ("{seeds: [1, x]}", "seeds: "),
        ("{seeds: [1, null]}", "seeds: one value"),
        ("{flip: 3}", "flip: true or false"),
        ("{flip: maybe}", "flip: true or false"),
        ("{mode: no}", "quote it"),
        ("{mode: fp8}", "mode: "),
        ("[1]", "must be a mapping"),
        ("", "must be a mapping"),
    ],
)
def test_a_wrong_recipe_is_one_line_that_names_file_and_key(stage: Stage, section: str, said: str) -> None:
    result = stage.call("p.txt", "--data", "d", recipe=f"finetune: {section}")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith(f"Error: {stage.folder / 'recipe.yaml'}: ")
    assert said in result.stderr


def test_a_section_for_no_stage_names_the_nearest(stage: Stage) -> None:
    assert "no stage 'finetoon'; did you mean 'finetune'?" in stage.call(recipe="finetoon: {}").stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["p.txt"], "Missing option '--data'"),
        (["--data", "d"], "Missing argument 'PROMPTS'"),
        (["p.txt", "--data", "d", "--steps", "0"], "'--steps': '0' is not a whole number from 1 to 1000"),
        (["p.txt", "--data", "d", "--lr", "nan"], "'--lr': 'nan' is not a number from 0 to 1"),
        (["p.txt", "--data", "d", "--mode", "fp8"], "'no', 'fp16'"),
        (["p.txt", "--data", "d", "--stepz", "3"], "--steps"),
        (["p.txt", "--data", "d", "--name", "bad"], "--name: bad is bad; choose another"),
        (["p.txt", "--data", "d", "--recipe", "a" * 400], "no such recipe"),
    ],
)
def test_a_wrong_command_line_is_one_line(stage: Stage, arguments: list[str], said: str) -> None:
    result = stage.call(*arguments)
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert said in result.stderr


def test_a_dry_run_prints_a_recipe_that_gives_the_same_again(stage: Stage) -> None:
    arguments = ["p.txt", "--data", "d", "--lr", "1e-5", "--no-flip", "--seeds", "1", "--seeds", "2"]
    stage.call(*arguments)
    wanted = stage.got
    result = stage.call(*arguments, "--dry-run")
    assert stage.got is None, "a dry run does nothing"
    assert "name" not in yaml.safe_load(result.stdout)["finetune"]
    again = stage.call(recipe=result.stdout)
    assert again.exit_code == 0, again.output
    assert stage.got == wanted


def test_a_default_taken_back_survives_the_round_trip(stage: Stage) -> None:
    stage.call("p.txt", "--data", "d", recipe="finetune: {negative: null}")
    written = to_yaml("finetune", stage.got)
    stage.call(recipe=written)
    assert stage.got.negative is None


def test_help_shows_defaults_and_after_a_recipe_its_values(stage: Stage) -> None:
    assert "default: 0.0001" in stage.call("--help").stdout
    path = stage.folder / "r.yaml"
    path.write_text("finetune: {steps: 77}")
    assert "default: 77" in stage.call("--recipe", str(path), "--help").stdout


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grouped:
    first: str = option("", "Before any heading.")
    data: str = option("", "Read.", group="Data")
    triplets: int = option(6, "Read too.", min=1, max=9)
    resume: bool = option(True, "Late, though it comes early.", group="Run")
    rank: int = option(4, "Of the LoRA.", group="LoRA", min=1, max=9)
    relation: str = option("", "Read as well.", group="Data")


def test_help_lists_the_options_under_headings() -> None:
    @click.command(cls=StageCommand)
    @config_options(Grouped)
    def command(config: Grouped) -> None:
        """Nothing."""

    headings: dict[str, list[str]] = {}
    for line in CliRunner().invoke(command, ["--help"]).stdout.splitlines()[4:]:
        if line.endswith(":"):
            headings[line[:-1]] = rows = []
        elif line.startswith("  -"):
            rows.append(line.split()[0])
    assert headings == {
        "Options": ["--first"],
        "Data": ["--data", "--triplets", "--relation"],
        "LoRA": ["--rank"],
        "Run": ["--resume"],
        "General": ["--recipe", "--dry-run", "--help"],
    }


@pytest.mark.parametrize("stage", ["annotate", "distill", "eval", "finetune", "generate", "pretrain", "sample"])
def test_a_stage_of_many_options_has_a_heading_for_each(stage: str) -> None:
    command = main.get_command(click.Context(main), stage)
    groups = [parameter.group for parameter in command.params if hasattr(parameter, "group")]
    assert "Options" not in groups
    assert groups.count(max(groups, key=groups.count)) <= 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnABundle:
    bundle: str = option("mini", "Base model.")
    steps: int = option(10, "Whole.", min=1, max=1000, of_bundle=True)
    lr: float = option(1e-4, "Float.", min=0, max=1, of_bundle=True)
    flip: bool = option(True, "Switch.", of_bundle=True)
    name: str | None = option("x", "Optional.", of_bundle=True)
    seeds: tuple[int, ...] = option((), "Repeats.", min=0, max=9, of_bundle=True)
    output: str | None = option(None, "Not for a bundle to set.")


def on_a_bundle(folder: Path, recipe: str, *arguments: str) -> OnABundle | str:
    """What a stage gets on a bundle with this recipe of its own, or the line that is told instead."""
    bundle = folder / "bundle"
    bundle.mkdir(exist_ok=True)
    (bundle / BUNDLE_RECIPE).write_text(recipe)
    group, got = Stages("rbctl"), []

    @group.command("finetune")
    @config_options(OnABundle)
    def command(config: OnABundle) -> None:
        got.append(config)

    result = CliRunner().invoke(group, ["finetune", "--bundle", str(bundle), *arguments])
    return got[0] if got else result.stderr


def test_flag_over_recipe_over_the_bundles_own_over_default(tmp_path: Path) -> None:
    own = "finetune: {steps: 20, lr: 1e-2, flip: false, name: null, seeds: [1, 2]}\nsample: {anything: 1}"
    plain = OnABundle(bundle=str(tmp_path / "bundle"))
    wanted = dataclasses.replace(plain, steps=20, lr=0.01, flip=False, name=None, seeds=(1, 2))
    assert on_a_bundle(tmp_path, own) == wanted
    path = tmp_path / "r.yaml"
    path.write_text("finetune: {steps: 30, lr: 1e-4, seeds: []}")
    flags = ("--steps", "10", "--recipe", str(path))  # a default that is named is no default
    assert on_a_bundle(tmp_path, own, *flags) == dataclasses.replace(wanted, steps=10, lr=1e-4, seeds=())
    assert on_a_bundle(tmp_path, "sample: {anything: 1}") == plain
    (tmp_path / "bundle" / BUNDLE_RECIPE).unlink()


def test_a_wrong_recipe_of_a_bundle_is_one_line(tmp_path: Path) -> None:
    where = f"Error: {tmp_path / 'bundle' / BUNDLE_RECIPE}: "
    assert on_a_bundle(tmp_path, "finetune: {stepz: 3}").startswith(f"{where}no option 'stepz'; did you mean 'steps'?")
    assert on_a_bundle(tmp_path, "finetune: {steps: many}").startswith(f"{where}steps: ")
    assert on_a_bundle(tmp_path, "finetune: {lr: 1e999}").startswith(f"{where}lr: '1e999' is not a number from 0 to 1")
    assert on_a_bundle(tmp_path, "finetune: {output: /tmp/x}").startswith(f"{where}output: no bundle may set this")
    assert on_a_bundle(tmp_path, "finetoon: {}").startswith(f"{where}no stage 'finetoon'")


@pytest.mark.parametrize("kind", [int, float, float | None, tuple[int, ...]])
@pytest.mark.parametrize("bounds", [{}, {"min": 0}, {"max": 1}, {"min": 0, "max": float("inf")}])
def test_a_number_without_finite_bounds_is_a_mistake_of_the_programmer(kind: type, bounds: dict[str, float]) -> None:
    unbounded = dataclasses.make_dataclass("Unbounded", [("size", kind, option(..., "Size.", **bounds))])
    with pytest.raises(TypeError, match="size: a number needs a finite min and max"):
        config_options(unbounded)(print)


def test_an_unknown_recipe_names_the_shipped_ones() -> None:
    with pytest.raises(InputError, match="no such recipe"):
        find_recipe("no such thing")


RECIPES = Path(__file__).resolve().parents[1] / "recipes"
SECTIONS = [
    (str(path.relative_to(RECIPES).with_suffix("")), section)
    for path in [*RECIPES.glob("*.yaml"), *RECIPES.glob("distill/*.yaml")]
    for section in yaml.safe_load(path.read_text(encoding="utf-8"))
    if section != "qualities"
]


@pytest.mark.parametrize(("recipe", "section"), sorted(SECTIONS))
def test_a_shipped_recipe_is_taken_by_its_stage(recipe: str, section: str) -> None:
    required = {"finetune": ["--relation", "hug", "--data", "d"], "sample": ["p.txt"]}.get(section, [])
    result = CliRunner().invoke(main, [section, *required, "--recipe", Path(recipe).name, "--dry-run"])
    assert result.exit_code == 0, result.output
    resolved = yaml.safe_load(result.stdout)[section]
    written = yaml.safe_load((RECIPES / f"{recipe}.yaml").read_text(encoding="utf-8"))[section]
    for key, value in written.items():
        assert resolved[key] == (float(value) if isinstance(resolved[key], float) else value)
