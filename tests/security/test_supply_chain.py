"""What is run and installed to build a release is named by its hash, and no workflow may write."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.y*ml"))
RELEASE = ROOT / ".github" / "release-requirements.txt"

LINUX = {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix", "platform_machine": "x86_64"}
MACOS = {"sys_platform": "darwin", "platform_system": "Darwin", "os_name": "posix", "platform_machine": "arm64"}
WINDOWS = {"sys_platform": "win32", "platform_system": "Windows", "os_name": "nt", "platform_machine": "AMD64"}
MACHINES = [
    {**system, "python_version": version, "python_full_version": f"{version}.0"}
    for system in (LINUX, MACOS, WINDOWS)
    for version in ("3.10", "3.11", "3.12", "3.13", "3.14")
]
on_every_workflow = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
on_every_machine = pytest.mark.parametrize(
    "machine", MACHINES, ids=[f"{machine['sys_platform']}-{machine['python_version']}" for machine in MACHINES]
)


def parts(path: Path) -> Iterator[dict[str, Any]]:
    """The jobs of a workflow and their steps."""
    for job in yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"].values():
        yield job
        yield from job.get("steps", ())


@on_every_workflow
def test_an_action_is_named_by_its_commit_and_its_version_stands_beside_it(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    actions = [part["uses"] for part in parts(path) if "uses" in part]
    assert actions
    for action in actions:
        assert re.fullmatch(r"[\w.-]+/[\w./-]+@[0-9a-f]{40}", action), action
        assert re.search(rf"uses: {action} # v\d+\.\d+\.\d+$", text, re.MULTILINE), action


@on_every_workflow
def test_a_workflow_may_read_and_nothing_else(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    granted = [workflow["permissions"], *(part["permissions"] for part in parts(path) if "permissions" in part)]
    for permissions in granted:
        assert set(permissions.values()) <= {"read", "none"}, permissions


@on_every_workflow
def test_no_stranger_reaches_a_token_or_a_shell(path: Path) -> None:
    triggers = yaml.safe_load(path.read_text(encoding="utf-8"))[True]  # "on" is a truth value of YAML
    assert not {"pull_request_target", "workflow_run", "issue_comment"} & set(triggers)
    for part in parts(path):
        if part.get("uses", "").startswith("actions/checkout@"):
            assert part["with"]["persist-credentials"] is False
        assert "${{" not in part.get("run", ""), "a title or a branch's name would be run"


def hashed() -> dict[Requirement, list[str]]:
    """What the release is built with, each with its hashes."""
    text = re.sub(r"^#.*\n", "", RELEASE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    pins = {}
    for line in text.replace("\\\n", " ").splitlines():
        requirement, *hashes = line.split("--hash=")
        pins[Requirement(requirement)] = [value.strip() for value in hashes]
    return pins


def constraints() -> list[Requirement]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def required() -> list[Requirement]:
    """What setup.py asks for, all extras included."""
    (call,) = (
        node
        for node in ast.walk(ast.parse((ROOT / "setup.py").read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "setup"
    )
    said = {keyword.arg: keyword.value for keyword in call.keywords}
    extras = ast.literal_eval(said["extras_require"])
    return [Requirement(text) for text in sum(extras.values(), ast.literal_eval(said["install_requires"]))]


def versions(requirements: list[Requirement], machine: dict[str, str]) -> dict[str, set[str]]:
    """The specifiers of each package on a machine."""
    by_name = defaultdict(set)
    for requirement in requirements:
        if requirement.marker is None or requirement.marker.evaluate(machine):
            by_name[canonicalize_name(requirement.name)].add(str(requirement.specifier))
    return dict(by_name)


def test_every_package_of_the_release_is_held_to_its_hashes() -> None:
    pins = hashed()
    assert len(pins) > 100
    for requirement, hashes in pins.items():
        assert re.fullmatch(r"==[^*,]+", str(requirement.specifier)), requirement
        assert requirement.url is None, requirement
        assert hashes, requirement
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", value) for value in hashes), requirement


def test_the_release_names_no_registry() -> None:
    assert not re.search(r"://|--index|--extra-index|--find-links|--trusted-host", RELEASE.read_text(encoding="utf-8"))


@on_every_machine
def test_the_release_has_the_versions_that_were_tested(machine: dict[str, str]) -> None:
    released, tested = versions(list(hashed()), machine), versions(constraints(), machine)
    assert {name: tested.get(name) for name in released} == released, "run 'make lock'"
    assert all(len(pins) == 1 for pins in released.values())


@on_every_machine
def test_the_release_has_all_that_setup_asks_for(machine: dict[str, str]) -> None:
    released = versions(list(hashed()), machine)
    for requirement in required():
        if requirement.marker is None or requirement.marker.evaluate(machine):
            (pin,) = released[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(pin.removeprefix("==")), f"{requirement}: run 'make lock'"
