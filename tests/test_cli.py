"""The command line: stages by entry point, errors in one line, a light start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from rbctl.cli import Stages, main
from rbctl.errors import InputError

SCRIPT = Path(sys.executable).with_name("rbctl")
SHIPPED = ["data", "demo", "finetune", "models", "sample"]
HEAVY = ["torch", "diffusers", "transformers", "numpy", "PIL", "accelerate", "peft", "open_clip", "safetensors"]
HEAVY += ["deepspeed", "scipy", "pydantic", "jinja2", "yaml"]


def rbctl(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(SCRIPT), *arguments], capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    """The single line of an error the user can mend."""
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr


def offer(site: Path, distribution: str, stage: str, code: str | None) -> None:
    """Lay a distribution with one stage into a folder, as an installer would."""
    module = distribution.replace("-", "_")
    info = site / f"{module}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[rbctl.plugins]\n{stage} = {module}:command\n")
    if code is not None:
        (site / f"{module}.py").write_text(code)


COMMAND = "import click\n\n@click.command()\ndef command():\n    'Say hello.'\n    click.echo('hello there')\n"


def test_help_names_the_stages() -> None:
    done = rbctl("--help")
    assert done.returncode == 0
    assert done.stderr == ""
    for name in [*SHIPPED, "doctor"]:
        assert f"\n  {name} " in done.stdout
    assert "unusable" not in done.stdout


def test_the_shipped_stages_are_installed() -> None:
    assert set(SHIPPED) <= set(entry_points(group="rbctl.plugins").names)


def test_nothing_that_only_looks_imports_anything_heavy() -> None:
    """In one interpreter for every help and a dry run: what one imports would show in the next."""
    script = f"""
import sys
import click
from click.testing import CliRunner
from rbctl.cli import main

def helps(command, words):
    yield [*words, "--help"]
    if isinstance(command, click.Group):
        for name in command.list_commands(click.Context(command)):
            yield from helps(command.get_command(click.Context(command), name), [*words, name])

def look(arguments):
    result = CliRunner().invoke(main, arguments)
    print(*arguments, result.exit_code, [name for name in heavy if name in sys.modules])

heavy = {HEAVY!r}
for arguments in helps(main, []):
    look(arguments)
heavy.remove("yaml")  # a dry run prints it
look(["finetune", "--relation", "hug", "--data", "x", "--dry-run"])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) >= 20
    assert [line for line in lines if not line.endswith(" 0 []")] == []


def test_both_doors_are_the_same() -> None:
    by_module = subprocess.run([sys.executable, "-m", "rbctl", "--version"], capture_output=True, text=True, check=True)
    assert by_module.stdout.split()[-1] == rbctl("--version").stdout.split()[-1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["finetun"], "no stage 'finetun'; did you mean 'finetune'?"),
        (["--bogus"], "No such option '--bogus'"),
        (["doctor", "--jsn"], "--json"),
        (["doctor", "extra"], "unexpected extra argument"),
        (["data", "check", "x" * 300], "the name is too long for a file"),
        (["finetune", "--relation", "ride", "--bundle", "x" * 300], "no such bundle"),
    ],
)
def test_what_is_typed_wrong_is_one_line(arguments: list[str], said: str) -> None:
    assert said in one_line(rbctl(*arguments))


def stage_that(raises: BaseException) -> click.Group:
    group = Stages("rbctl")

    @group.command()
    def work() -> None:
        raise raises

    return group


def test_an_input_error_is_one_line() -> None:
    result = CliRunner().invoke(stage_that(InputError("a.txt: wrong\nin two lines; mend it")), ["work"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "Error: a.txt: wrong in two lines; mend it\n"


def test_a_bug_keeps_its_traceback() -> None:
    result = CliRunner().invoke(stage_that(RuntimeError("a bug")), ["work"])
    assert result.exit_code == 1
    assert isinstance(result.exception, RuntimeError)


def test_memory_that_is_used_up_is_one_line() -> None:
    import torch

    group = Stages("rbctl")

    @group.command()
    @click.option("--batch-size")
    @click.option("--lowvram", is_flag=True)
    def work(batch_size: str | None, lowvram: bool) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.\nMore lines.")

    result = CliRunner().invoke(group, ["work"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "Error: the device's memory is used up; lower --batch-size, take --lowvram\n"


def test_interrupted() -> None:
    result = CliRunner().invoke(stage_that(KeyboardInterrupt()), ["work"])
    assert result.exit_code == 130
    assert "interrupted" in result.stderr


def test_without_arguments_a_group_shows_its_help() -> None:
    group = Stages("rbctl")

    @group.group()
    def inner() -> None:
        """Inside."""

    for arguments in ([], ["inner"]):
        result = CliRunner().invoke(group, arguments)
        assert result.exit_code == 2
        assert result.output.startswith("Usage:")


def test_completion() -> None:
    assert "_RBCTL_COMPLETE=bash_complete" in rbctl(_RBCTL_COMPLETE="bash_source").stdout

    def complete(words: str, number: int) -> list[str]:
        done = rbctl(_RBCTL_COMPLETE="bash_complete", COMP_WORDS=words, COMP_CWORD=str(number))
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.split()

    assert complete("rbctl fin", 1) == ["plain,finetune"]
    assert "plain,--recipe" in complete("rbctl finetune --rec", 2)
    assert complete("rbctl nothing --rec", 2) == []


def test_completion_beside_a_broken_stage(tmp_path: Path) -> None:
    offer(tmp_path, "finder", "find", "raise RuntimeError('broken')")
    done = rbctl(_RBCTL_COMPLETE="bash_complete", COMP_WORDS="rbctl fin", COMP_CWORD="1", PYTHONPATH=str(tmp_path))
    assert (done.stdout, done.stderr) == ("plain,finetune\n", "")


@pytest.mark.slow
def test_a_third_partys_stage_is_installed_and_works(tmp_path: Path) -> None:
    source, site = tmp_path / "source", tmp_path / "site"
    source.mkdir()
    (source / "rbctl_hello.py").write_text(COMMAND)
    (source / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        '[project]\nname = "rbctl-hello"\nversion = "1.0"\n[project.entry-points."rbctl.plugins"]\n'
        'hello = "rbctl_hello:command"\n[tool.setuptools]\npy-modules = ["rbctl_hello"]\n'
    )
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--target", str(site), str(source)], check=True, capture_output=True)
    done = rbctl("hello", PYTHONPATH=str(site))
    assert (done.returncode, done.stdout) == (0, "hello there\n")
    listed = rbctl("--help", PYTHONPATH=str(site)).stdout
    assert "hello     Say hello." in listed
    assert "finetune" in listed
    assert "no stage 'helo'; did you mean 'hello'?" in one_line(rbctl("helo", PYTHONPATH=str(site)))


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise RuntimeError('out of order')", "out of order"),
        ("import no_such_module_at_all", "no_such_module_at_all"),
        ("raise SystemExit(3)", "SystemExit"),
        ("command = 3", "is not a Click command"),
        ("", "command"),
        (None, "third_party"),
    ],
)
def test_a_broken_third_party_stage_is_a_row_and_kills_no_other(tmp_path: Path, code: str | None, reason: str) -> None:
    offer(tmp_path, "third-party", "broken", code)
    listed = rbctl("--help", PYTHONPATH=str(tmp_path))
    assert listed.returncode == 0
    assert "(unusable)" in listed.stdout
    assert "finetune" in listed.stdout
    said = one_line(rbctl("broken", PYTHONPATH=str(tmp_path)))
    assert "broken" in said
    assert reason in said
    assert rbctl("finetune", "--help", PYTHONPATH=str(tmp_path)).returncode == 0


def test_two_distributions_of_one_stage_are_both_named(tmp_path: Path) -> None:
    offer(tmp_path / "a", "first-party", "finetune", COMMAND)
    offer(tmp_path / "b", "second-party", "greet", COMMAND)
    offer(tmp_path / "b", "third-party", "greet", COMMAND)
    path = f"{tmp_path / 'a'}{os.pathsep}{tmp_path / 'b'}"
    said = one_line(rbctl("finetune", PYTHONPATH=path))
    assert "first-party" in said
    assert "rbctl (" in said
    said = one_line(rbctl("greet", PYTHONPATH=path))
    assert "second-party" in said
    assert "third-party" in said
    assert rbctl("sample", "--help", PYTHONPATH=path).returncode == 0


def test_doctor() -> None:
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 0, result.output
    for word in ("versions", "devices", "attention backends", "bundles", "stages", "torch", "sdpa on cpu", "finetune"):
        assert word in result.stdout
    report = json.loads(CliRunner().invoke(main, ["doctor", "--json"]).stdout)
    assert all(row["state"] for rows in report.values() for row in rows)


@pytest.mark.parametrize(
    ("device", "variable", "sampling", "finetuning"),
    [
        ("cpu in fp32", "", "grouped: the first", "sdpa: grouped has a slow backward pass"),
        ("cuda in bf16", "", "sdpa: grouped is for the CPU", "sdpa: grouped is for the CPU"),
        ("cpu in fp32", "eager", "eager: the environment variable RBCTL_ATTENTION", "eager: "),
        ("cpu in fp32", "triton", "none: RBCTL_ATTENTION=triton: ", "none: RBCTL_ATTENTION=triton: "),
    ],
)
def test_doctor_tells_the_default_backends_and_why(
    monkeypatch: pytest.MonkeyPatch, device: str, variable: str, sampling: str, finetuning: str
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: "cuda" in device)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (9, 0))
    monkeypatch.setenv("RBCTL_ATTENTION", variable)
    report = json.loads(CliRunner().invoke(main, ["doctor", "--json"]).stdout)
    states = {row["name"]: row["state"] for row in report["attention backends"]}
    assert states[f"default for sampling on {device}"].startswith(sampling)
    assert states[f"default for finetuning on {device}"].startswith(finetuning)
