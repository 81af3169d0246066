"""The rules of the house: which way imports run, what names say, and what is nowhere. One test a rule."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"rbctl": "rbctl", "rbctl.kernels": "kernels", "rbctl.plugins": "plugins", "bench": "bench"}
UNIX_ONLY = {"fcntl", "grp", "pwd", "resource", "termios"}


def modules() -> dict[str, ast.Module]:
    """Every module by its dotted name; a package's own code is "package.__init__"."""
    trees = {}
    for package, folder in PACKAGES.items():
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            trees[".".join([package, *parts])] = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return trees


MODULES = modules()
Rule = Callable[[str, ast.Module], Iterator[str]]


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


def wrong_imports(name: str, tree: ast.AST) -> Iterator[str]:
    """The imports of a module that go against the arrows of docs/architecture.md."""
    own = ".".join(name.split(".")[:3])
    for imported in imports(name, tree):
        if inside(name, "rbctl.kernels"):
            foreign = imported.split(".")[0] in ("click", "diffusers", "transformers", "peft", "yaml")
            wrong = foreign or (inside(imported, "rbctl") and not inside(imported, "rbctl.kernels"))
        elif inside(name, "rbctl.plugins"):
            wrong = inside(imported, "rbctl.plugins") and not inside(imported, own)
        else:
            wrong = inside(name, "rbctl") and inside(imported, "rbctl.plugins")
        if wrong:
            yield imported


def empty_words(name: str, tree: ast.AST) -> Iterator[str]:
    """Words of a module's name that could name any module."""
    words = {word for part in name.split(".") for word in part.split("_")}
    yield from words & {"util", "utils", "helper", "helpers", "misc", "common", "manager", "managers"}


def trusted_pickles(name: str, tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "pickle.load", "pickle.loads"):
            safe = any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords)
            yield from [] if safe else [f"line {node.lineno}"]


def heavy_doors(name: str, tree: ast.Module) -> Iterator[str]:
    """Heavy imports at the top of a stage's door or config; what a command imports when called is the heavy room."""
    if name.endswith((".__init__", ".config")) and inside(name, "rbctl.plugins"):
        top = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
        heavy = {"torch", "diffusers", "transformers", "numpy", "PIL", "pydantic", "scipy", "jinja2", "yaml"}
        yield from {imported.split(".")[0] for imported in imports(name, top)} & heavy


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def private_uses(name: str, tree: ast.AST) -> Iterator[str]:
    """Private names of another module of ours, imported or reached through it."""
    aliases = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and ((node.module or "").split(".")[0] in ("rbctl", "bench") or node.level):
            yield from (alias.name for alias in node.names if is_private(alias.name))
            aliases |= {alias.asname or alias.name for alias in node.names}
    aliases = {alias for alias in aliases if alias[0].islower()}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr) and ast.unparse(node.value) in aliases:
            yield f"{ast.unparse(node)}, line {node.lineno}"


def named_bundles(name: str, tree: ast.AST) -> Iterator[str]:
    """A bundle says what it can do; nothing asks whether its name is mini."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and any(isinstance(op, ast.Eq | ast.NotEq) for op in node.ops):
            sides = (node.left, *node.comparators)
            named = any(isinstance(side, ast.Constant) and side.value == "mini" for side in sides)
            yield from [f"line {node.lineno}"] if named else []


def unix_imports(name: str, tree: ast.Module) -> Iterator[str]:
    """Modules that Windows lacks, imported where a module is loaded; a function may, behind a question."""
    for node in tree.body:
        yield from {imported.split(".")[0] for imported in imports(name, ast.Module([node], []))} & UNIX_ONLY


def file_locks(name: str, tree: ast.AST) -> Iterator[str]:
    yield from {imported for imported in imports(name, tree) if imported.split(".")[0] == "fcntl"}


RULES: dict[str, Rule] = {
    "imports run one way: kernels <- rbctl <- plugins": wrong_imports,
    "modules are named by what they hold": empty_words,
    "a pickle is never trusted": trusted_pickles,
    "a stage's door and its config are light": heavy_doors,
    "a private name stays in its module": private_uses,
    "no bundle is asked for its name": named_bundles,
    "a module loads on Windows too": unix_imports,
    "locks are filelock's": file_locks,
}


def test_the_packages_are_here() -> None:
    for name in ("rbctl.cli", "rbctl.kernels.__init__", "rbctl.plugins.finetune.__init__", "rbctl.plugins.sample.run"):
        assert name in MODULES


@pytest.mark.parametrize("rule", RULES)
def test_the_house_keeps_the_rule(rule: str) -> None:
    assert [f"{name}: {what}" for name, tree in MODULES.items() for what in RULES[rule](name, tree)] == []


@pytest.mark.parametrize(
    ("rule", "name", "code", "wrong"),
    [
        (wrong_imports, "rbctl.kernels.sdpa", "from rbctl.files import read_json", True),
        (wrong_imports, "rbctl.kernels.sdpa", "def f():\n    import rbctl", True),
        (wrong_imports, "rbctl.kernels.sdpa", "import diffusers.models", True),
        (wrong_imports, "rbctl.kernels.sdpa", "from rbctl.kernels.eager import x\nimport torch", False),
        (wrong_imports, "rbctl.attention", "from rbctl.plugins.sample import run", True),
        (wrong_imports, "rbctl.attention", "from rbctl import plugins", True),
        (wrong_imports, "rbctl.attention", "from .plugins import sample", True),
        (wrong_imports, "rbctl.attention", "from rbctl.kernels import x", False),
        (wrong_imports, "rbctl.plugins.sample.run", "from rbctl.plugins.finetune import config", True),
        (wrong_imports, "rbctl.plugins.sample.run", "from rbctl.plugins.sample.config import x", False),
        (wrong_imports, "rbctl.plugins.sample.run", "from ..finetune import config", True),
        (wrong_imports, "rbctl.plugins.sample.__init__", "from .config import x", False),
        (wrong_imports, "rbctl.plugins.sample.__init__", "from ..finetune import x", True),
        (empty_words, "rbctl.image_utils", "", True),
        (trusted_pickles, "rbctl.files", "torch.load(path, weights_only=True)", False),
        (trusted_pickles, "rbctl.files", "torch.load(path)", True),
        (heavy_doors, "rbctl.plugins.sample.config", "import torch", True),
        (heavy_doors, "rbctl.plugins.sample.config", "def f():\n    import torch", False),
        (private_uses, "rbctl.plugins.eval.run", "from rbctl.layout import _iou", True),
        (private_uses, "rbctl.plugins.eval.run", "from . import report\nreport._table()", True),
        (private_uses, "rbctl.plugins.eval.run", "from rbctl.layout import Box\nself._iou = Box", False),
        (named_bundles, "rbctl.runs", "if bundle == 'mini':\n    pass", True),
        (named_bundles, "rbctl.runs", "bundle = 'mini'", False),
        (unix_imports, "rbctl.memory", "import resource", True),
        (unix_imports, "rbctl.memory", "try:\n    import pwd\nexcept ImportError:\n    pass", True),
        (unix_imports, "rbctl.memory", "from pathlib import Path", False),
        (file_locks, "rbctl.runs", "def f():\n    from fcntl import flock", True),
    ],
)
def test_the_rule_itself(rule: Rule, name: str, code: str, wrong: bool) -> None:
    assert bool(list(rule(name, ast.parse(code)))) is wrong


@pytest.mark.parametrize("name", ["Judge", "draw_cases", "interval", "resolved"])
def test_a_thought_has_one_home(name: str) -> None:
    defined = (ast.FunctionDef, ast.ClassDef)
    homes = [m for m, tree in MODULES.items() for n in ast.walk(tree) if isinstance(n, defined) and n.name == name]
    assert len(homes) <= 1


def arrows(name: str, tree: ast.Module) -> set[str]:
    """The modules of ours that a module imports to run, so not those under TYPE_CHECKING."""
    typing = [node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    for_types = {imported for node in typing for imported in imports(name, node)}
    homes = set()
    for imported in set(imports(name, tree)) - for_types:
        around = imported.rpartition(".")[0]
        candidates = (imported, f"{imported}.__init__", around, f"{around}.__init__")
        homes |= {next((candidate for candidate in candidates if candidate in MODULES), name)}
    return homes - {name}


def test_no_imports_run_in_a_circle() -> None:
    """Those inside of functions count too; a module that is only asked for types may look back."""
    graph = {name: arrows(name, tree) for name, tree in MODULES.items()}
    circles = []
    for name in graph:
        reached: set[str] = set()
        ahead = set(graph[name])
        while ahead:
            reached.add(module := ahead.pop())
            ahead |= graph[module] - reached
        if name in reached:
            circles.append(name)
    assert circles == []


def python(code: str) -> str:
    """What an interpreter of its own prints."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_import_rbctl_does_not_load_torch() -> None:
    assert python("import sys, rbctl; print('torch' in sys.modules)") == "False\n"


WITHOUT_UNIX = f"""
import os, signal, sys
for name in {sorted(UNIX_ONLY)}:
    sys.modules[name] = None
for name in ("fork", "getuid", "geteuid", "killpg", "setsid", "sysconf", "O_NOFOLLOW", "O_DIRECTORY", "O_CLOEXEC"):
    delattr(os, name)
for name in ("SIGKILL", "SIGHUP", "SIGUSR1", "SIGALRM"):
    delattr(signal, name)
"""


def test_every_help_works_on_windows() -> None:
    """As far as it can be seen here: without the modules and calls that Windows lacks."""
    code = """
from click.testing import CliRunner
from rbctl.cli import main, stages
for stage in sorted(stages()):
    result = CliRunner().invoke(main, [stage, "--help"])
    print(stage, result.exit_code, repr(result.exception))
"""
    lines = python(WITHOUT_UNIX + code).splitlines()
    assert len(lines) >= 10
    assert [line for line in lines if not line.endswith(" 0 None")] == []


@pytest.mark.slow
def test_every_module_loads_on_windows() -> None:
    """The libraries load first, as they are those of this machine."""
    names = [n.removesuffix(".__init__") for n in MODULES if n.startswith("rbctl") and not n.endswith("__main__")]
    code = f"""
import importlib, sys
names = {sorted(names)}
for name in names:
    importlib.import_module(name)
for name in names:
    del sys.modules[name]
{WITHOUT_UNIX}
for name in names:
    importlib.import_module(name)
print(len(names))
"""
    assert int(python(code)) == len(names)
