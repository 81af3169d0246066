"""The wheel: three top-level folders of the checkout install inside rbctl, never beside it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

import rbctl

pytestmark = pytest.mark.slow  # its runs, shared by the tests, take seconds

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("rbctl", "kernels", "plugins", "recipes")


def copy_context(folder: Path) -> None:
    """Copy what a container is built from, by .dockerignore."""
    folder.mkdir(parents=True, exist_ok=True)
    ignore = shutil.ignore_patterns("__pycache__")
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        if line.startswith("!"):
            source, dest = ROOT / line[1:], folder / line[1:]
            shutil.copytree(source, dest, ignore=ignore) if source.is_dir() else shutil.copy(source, dest)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that no build folder appears in the checkout; it has what a container is built from."""
    copy, out = tmp_path_factory.mktemp("checkout") / "rbctl", tmp_path_factory.mktemp("wheel")
    copy_context(copy)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*command, "-w", str(out), str(copy)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = out.glob("rbctl-*.whl")
    return built


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def python(site: Path, code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run code with the wheel's contents first on the path; the checkout's editable finder is taken out."""
    prelude = (
        "import sys\n"
        "sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in str(getattr(f, '__module__', f)).lower()]\n"
        f"sys.path.insert(0, {str(site)!r})\n"
    )
    return subprocess.run(
        [sys.executable, "-c", prelude + code], capture_output=True, text=True, check=False, cwd=folder
    )


def test_everything_is_inside_rbctl(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    top = {name.split("/")[0] for name in names}
    assert top == {"rbctl", next(t for t in top if t.endswith(".dist-info"))}
    for folder in FOLDERS:
        inner = "" if folder == "rbctl" else f"{folder}/"
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".yaml", ".typed"):
                assert f"rbctl/{inner}{path.relative_to(ROOT / folder).as_posix()}" in names
    assert "rbctl/recipes/relations/ride.yaml" in names
    assert "rbctl/plugins/finetune/run.py" in names
    assert "rbctl/py.typed" in names
    assert {"relation.json", "relation.jpg", "api/relation.json"} <= {
        name.removeprefix("rbctl/comfyui/workflows/") for name in names
    }
    assert not [name for name in names if "test" in name.split("/")[1]]


def test_the_wheel_offers_its_stages_and_licence(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    text = {Path(name).name: name for name in archive.namelist() if ".dist-info/" in name}
    offered = archive.read(text["entry_points.txt"]).decode()
    for folder in (ROOT / "plugins").iterdir():
        if (folder / "__init__.py").is_file():
            assert f"{folder.name} = rbctl.plugins.{folder.name}:command" in offered
    assert "LICENSE" in text


def test_the_wheel_works_away_from_the_checkout(site: Path, tmp_path: Path) -> None:
    code = (
        "import rbctl, rbctl.kernels, rbctl.plugins.finetune\n"
        "from rbctl.relations import load_relation, shipped\n"
        "print(rbctl.__file__, rbctl.kernels.__file__, rbctl.plugins.__file__, sep='\\n')\n"
        "print(len(shipped()), load_relation('ride').predicate)\n"
    )
    done = python(site, code, tmp_path)
    assert done.returncode == 0, done.stderr
    *files, relations = done.stdout.splitlines()
    assert all(file.startswith(str(site)) for file in files), files
    assert relations == f"{len(list((ROOT / 'recipes' / 'relations').glob('*.yaml')))} is riding"


def test_no_generic_name_is_taken(site: Path, tmp_path: Path) -> None:
    for name in ("kernels.eager", "plugins.finetune", "recipes.relations"):
        done = python(site, f"import rbctl, {name}", tmp_path)
        assert "ModuleNotFoundError" in done.stderr, name


def test_the_help_from_the_wheel(site: Path, tmp_path: Path) -> None:
    done = python(site, "sys.argv = ['rbctl', '--help']\nfrom rbctl.cli import main\nmain()", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "unusable" not in done.stdout


def test_the_citation_names_the_version_that_is_built() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == rbctl.__version__
    assert {"cff-version", "message", "title", "authors", "license"} <= set(citation)
