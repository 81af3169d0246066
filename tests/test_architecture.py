"""Imports run one way, modules are named by nouns, and pickles are never trusted."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"rbctl": ROOT / "rbctl", "rbctl.kernels": ROOT / "kernels", "rbctl.plugins": ROOT / "plugins"}


def modules() -> dict[str, ast.Module]:
    """Every module of the distribution by its dotted name; a package's own code is "package.__init__"."""
    found = {}
    for package, folder in PACKAGES.items():
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join([package, *parts])] = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return found


MODULES = modules()


def imports(name: str, tree: ast.AST) -> Iterator[str]:
    """Dotted names that a module imports, wherever in it; relative ones resolved."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = name.split(".")[: -node.level] if node.level else []
            base = ".".join([*package, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def inside(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def wrong_imports(name: str, tree: ast.AST) -> list[str]:
    """The imports of a module that go against the arrows of docs/architecture.md."""
    found = list(imports(name, tree))
    if inside(name, "rbctl.kernels"):
        foreign = ("click", "diffusers", "transformers", "peft", "yaml")
        return [
            i for i in found if i.split(".")[0] in foreign or (inside(i, "rbctl") and not inside(i, "rbctl.kernels"))
        ]
    if inside(name, "rbctl.plugins"):
        own = ".".join(name.split(".")[:3])
        return [i for i in found if inside(i, "rbctl.plugins") and not inside(i, own)]
    return [i for i in found if inside(i, "rbctl.plugins")]


def test_the_packages_are_here() -> None:
    for name in ("rbctl.cli", "rbctl.kernels.__init__", "rbctl.plugins.finetune.__init__", "rbctl.plugins.sample.run"):
        assert name in MODULES


@pytest.mark.parametrize("name", MODULES)
def test_imports_run_one_way(name: str) -> None:
    assert wrong_imports(name, MODULES[name]) == []


@pytest.mark.parametrize(
    ("name", "code", "wrong"),
    [
        ("rbctl.kernels.sdpa", "from rbctl.files import read_json", True),
        ("rbctl.kernels.sdpa", "def f():\n    import rbctl", True),
        ("rbctl.kernels.sdpa", "import diffusers.models", True),
        ("rbctl.kernels.sdpa", "from rbctl.kernels.eager import x\nimport torch", False),
        ("rbctl.attention", "from rbctl.plugins.sample import run", True),
        ("rbctl.attention", "from rbctl import plugins", True),
        ("rbctl.attention", "from .plugins import sample", True),
        ("rbctl.attention", "from rbctl.kernels import x", False),
        ("rbctl.plugins.sample.run", "from rbctl.plugins.finetune import config", True),
        ("rbctl.plugins.sample.run", "from rbctl.plugins.sample.config import x\nimport rbctl.lora", False),
        ("rbctl.plugins.sample.run", "from ..finetune import config", True),
        ("rbctl.plugins.sample.__init__", "from .config import x", False),
        ("rbctl.plugins.sample.__init__", "from ..finetune import x", True),
    ],
)
def test_the_rule_itself(name: str, code: str, wrong: bool) -> None:
    assert bool(wrong_imports(name, ast.parse(code))) is wrong


@pytest.mark.parametrize("name", MODULES)
def test_modules_are_named_by_what_they_hold(name: str) -> None:
    empty = {"util", "utils", "helper", "helpers", "misc", "common", "manager", "managers"}
    assert not empty & {word for part in name.split(".") for word in part.split("_")}


@pytest.mark.parametrize("name", MODULES)
def test_a_pickle_is_never_trusted(name: str) -> None:
    for node in ast.walk(MODULES[name]):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "pickle.load", "pickle.loads"):
            safe = [k for k in node.keywords if k.arg == "weights_only" and ast.unparse(k.value) == "True"]
            assert safe, f"{name}:{node.lineno}"


@pytest.mark.parametrize("name", [n for n in MODULES if n.endswith((".__init__", ".config")) and "plugins" in n])
def test_a_stages_door_and_its_config_are_light(name: str) -> None:
    """At the top of the module; what a command imports when called is the heavy room."""
    top = ast.Module([n for n in MODULES[name].body if isinstance(n, ast.Import | ast.ImportFrom)], [])
    assert not {i.split(".")[0] for i in imports(name, top)} & {"torch", "diffusers", "transformers", "numpy", "PIL"}
