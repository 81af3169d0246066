"""What README, docs/ and every --help name exists: stages, options, recipes, relations, targets, files, links."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner

from rbctl.bundle.catalogue import survey
from rbctl.cli import main
from rbctl.errors import InputError
from rbctl.options import StageCommand
from rbctl.prompts import read_prompts

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob(".github/*.md"), *ROOT.glob("CHANGELOG.md")])
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]

FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+(?:\n[^`\n]+)?)`")
ROOMS = ("recipes", "docs", "tests", "bench", "rbctl", "plugins", "kernels", ".github")


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, *languages: str) -> list[str]:
    return [body for kind, body in FENCE.findall(text_of(page)) if kind in languages]


def spans(page: str) -> list[str]:
    """Words that the page sets as code within its sentences."""
    return [" ".join(span.split()) for span in SPAN.findall(FENCE.sub("", text_of(page)))]


def commands(text: str) -> list[list[str]]:
    """The arguments of every rbctl command in lines for a shell, however it is started."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        for part in re.split(r"&&|\|", line):
            match = re.search(r"(?:^\s*|-m |--module |srun .* )rbctl\s(.*)", part)
            if match:
                found.append(shlex.split(match[1].removesuffix("..."), comments=True))
    return found


def command_of(arguments: list[str]) -> tuple[click.Command, list[str]]:
    """The command that the arguments call, and those that are left for it."""
    command: click.Command = main
    while arguments and (inner := inside(command, arguments[0])):
        command, arguments = inner, arguments[1:]
    return command, arguments


def inside(command: click.Command, name: str) -> click.Command | None:
    return command.get_command(click.Context(command), name) if isinstance(command, click.Group) else None


def all_commands(command: click.Command = main, name: str = "rbctl") -> Iterator[tuple[str, click.Command]]:
    yield name, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for inner in command.list_commands(context):
            yield from all_commands(command.get_command(context, inner), f"{name} {inner}")


def options_of(command: click.Command) -> set[str]:
    return {flag for p in command.params for flag in (*p.opts, *p.secondary_opts) if flag.startswith("-")}


HELPS = {name: command.help or "" for name, command in all_commands()}
OPTIONS = {"--help", "--version"}.union(*(options_of(command) for _, command in all_commands()))


def taken(arguments: list[str]) -> str:
    """Why a command line would be refused; empty where it would not. A stage resolves its options and stops."""
    command, rest = command_of(arguments)
    if isinstance(command, StageCommand) and "--help" not in rest:
        result = CliRunner().invoke(main, [*arguments, "--dry-run"])
        return result.output if result.exit_code else ""
    try:
        command.make_context(command.name, rest, resilient_parsing="--help" in rest)
    except (click.ClickException, InputError) as error:
        return str(error)
    return ""


@pytest.mark.parametrize("page", NAMES)
def test_every_command_of_a_page_is_taken(page: str) -> None:
    shown = [arguments for body in blocks(page, "", "bash", "sh") for arguments in commands(body)]
    assert {shlex.join(arguments): why for arguments in shown if (why := taken(arguments))} == {}


def test_every_command_of_a_help_is_taken() -> None:
    shown = [arguments for text in HELPS.values() for arguments in commands(text)]
    assert len(shown) >= 30
    assert {shlex.join(arguments): why for arguments in shown if (why := taken(arguments))} == {}


LOOKS = {
    shlex.join(a): a
    for page in NAMES
    for body in blocks(page, "", "bash", "sh")
    for a in commands(body)
    if {*a} & {"--dry-run"}
}


@pytest.mark.slow
@pytest.mark.parametrize("shown", [*LOOKS, "doctor", "models list"])
def test_a_command_that_only_looks_runs(shown: str) -> None:
    result = CliRunner().invoke(main, shlex.split(shown))
    assert result.exit_code == 0, result.output


def unknown_in(span: str, flags: set[str]) -> Iterator[str]:
    """What a word of code names that does not exist: stage, option, recipe, relation, benchmark, target or file."""
    words = span.split()
    if words[0] == "rbctl" and len(words) > 1:
        command: click.Command = main
        for word in words[1:]:
            if not re.fullmatch(r"[a-z|]+", word):
                break
            inner = [inside(command, name) for name in word.split("|")]
            if None in inner:
                yield from [word] if isinstance(command, click.Group) else []
                break
            command = inner[0]
        options = options_of(command) | {"--help", "--version"}
        yield from (flag for flag in re.findall(r"(?<!\S)--[a-z][\w-]*", span) if flag not in options)
    elif words[0].startswith("--"):
        yield from (flag for flag in re.findall(r"(?<!\S)--[a-z][\w-]*", span) if flag not in flags)
    elif words[0] == "make" and len(words) > 1:
        yield from [words[1]] if words[1] not in TARGETS and "=" not in words[1] else []
    for kind, name in re.findall(r"--(recipe|relation|relations|bench|bundle)[ =]([a-z][\w-]*)(?![\w./])", span):
        yield from [f"{kind} {name}"] if not exists(kind.removesuffix("s"), name, span) else []
    for path in re.findall(rf"(?<![\w./-])(?:{'|'.join(ROOMS)})/[\w./*-]*[\w/]", span):
        yield from [path] if not path.startswith("bench/out") and not any(ROOT.glob(path.rstrip("/"))) else []


def exists(kind: str, name: str, span: str) -> bool:
    if kind == "bundle":
        return name in {bundle for bundle, _ in survey()}
    if kind == "recipe":
        stage = re.search(r"rbctl (\w+)", span)
        names = {path.stem for path in ROOT.glob(f"recipes/{stage[1]}/*.yaml" if stage else "recipes/*/*.yaml")}
        return name in names | {path.stem for path in ROOT.glob("recipes/*.yaml")}
    return (ROOT / "recipes" / {"relation": "relations", "bench": "benchmarks"}[kind] / f"{name}.yaml").is_file()


TARGETS = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def line_options(folder: Path) -> set[str]:
    """The options of a line of prompts.txt, as the refusal of a wrong one lists them."""
    (folder / "prompts.txt").write_text("A {cat: cat.png} --zzzzzz 1")
    with pytest.raises(InputError) as refused:
        read_prompts(folder / "prompts.txt")
    return set(re.findall(r"--[\w-]+", str(refused.value)))


def script_options() -> set[str]:
    """The options of the scripts of bench/ and of the tests."""
    scripts = [*ROOT.glob("bench/**/*.py"), *ROOT.glob("tests/**/conftest.py")]
    return {flag for path in scripts for flag in re.findall(r'"(--[a-z-]+)"', path.read_text())}


@pytest.mark.parametrize("page", NAMES)
def test_what_a_page_names_exists(page: str, tmp_path: Path) -> None:
    options = OPTIONS | line_options(tmp_path) | script_options()
    assert {span: names for span in spans(page) if (names := list(unknown_in(span, options)))} == {}


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", NAMES)
def test_a_link_leads_to_a_file_and_a_heading(page: str) -> None:
    missing = []
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", text_of(page))):
        name, _, anchor = target.partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        if "://" not in target and (not path.exists() or (anchor and anchor not in anchors(path))):
            missing.append(target)
    assert missing == []


@pytest.mark.parametrize("page", NAMES)
def test_a_block_is_well_formed(page: str) -> None:
    """Python names what rbctl offers; YAML and JSON can be read, apart from what `...` stands for."""
    for body in blocks(page, "python"):
        for node in ast.walk(ast.parse(body)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "rbctl":
                module = importlib.import_module(node.module)
                assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []
    for body in blocks(page, "yaml", "json"):
        for document in body.replace("...", "").split("\n{") if body.startswith("{") else [body]:
            assert yaml.safe_load(document) is not None


@pytest.mark.parametrize(
    ("span", "missing"),
    [
        ("rbctl finetune --steps 3", []),
        ("rbctl finetoon", ["finetoon"]),
        ("rbctl data import|check|shows", ["import|check|shows"]),
        ("rbctl sample --stepz", ["--stepz"]),
        ("--lora-weight", []),
        ("--subject-scale a,b", []),
        ("--no-such-option", ["--no-such-option"]),
        ("make demo", []),
        ("make everything", ["everything"]),
        ("rbctl finetune --recipe paper --relation hug", []),
        ("--recipe papper", ["recipe papper"]),
        ("--bundle sdxll", ["bundle sdxll"]),
        ("rbctl eval --bench relationbenc", ["bench relationbenc"]),
        ("recipes/relations/*.yaml", []),
        ("rbctl/no_such_file.py", ["rbctl/no_such_file.py"]),
        ("see ../shared/docs/x", []),
    ],
)
def test_the_check_itself(span: str, missing: list[str], tmp_path: Path) -> None:
    assert list(unknown_in(span, OPTIONS | line_options(tmp_path))) == missing


def test_the_glossary_is_sorted_and_every_entry_says_where_it_lives() -> None:
    entries = text_of("docs/glossary.md").split("\n- **")[1:]
    terms = [entry.split("**")[0] for entry in entries]
    assert len(terms) >= 40
    assert terms == sorted(set(terms), key=str.lower)
    for term, entry in zip(terms, entries, strict=True):
        assert re.search(r"\]\([^)]+\)\s*$", entry), f"{term}: ends with a link"
        assert len(re.findall(r"[.:] ", entry)) <= 4, f"{term}: one or two plain sentences"
    assert "glossary.md)" in text_of("docs/architecture.md")


def test_the_readme_leads_to_every_page() -> None:
    assert [page for page in NAMES if page.startswith("docs/") and f"({page}" not in text_of("README.md")] == []


def rooms() -> set[str]:
    """The paths in the first column of architecture.md's tables; a bare name lies beside the path before it."""
    paths = set()
    for cell in re.findall(r"^\| (`.*?) \|", text_of("docs/architecture.md"), re.MULTILINE):
        folder = ""
        for name in re.findall(r"`([^`]+)`", cell):
            folder = name.rstrip("/").rpartition("/")[0] if "/" in name else folder
            paths.add(name.rstrip("/") if "/" in name else f"{folder}/{name}")
    return paths


def test_the_architecture_has_a_row_for_every_room() -> None:
    parts = [*ROOT.glob("rbctl/*"), *ROOT.glob("plugins/*"), *ROOT.glob("bench/*")]
    modules = {path for path in parts if path.suffix == ".py" or (path / "__init__.py").is_file()} | {ROOT / "kernels"}
    named = {found for room in rooms() for found in ROOT.glob(room)}
    assert sorted(str(path.relative_to(ROOT)) for path in modules - named if not path.name.startswith("__")) == []
    assert [room for room in rooms() if not any(ROOT.glob(room))] == []
