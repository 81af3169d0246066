"""``rbctl.imports``: what foreign libraries import besides waits until it is used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rbctl import imports


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that imports a heavy package, as diffusers imports xformers."""
    heavy = tmp_path / "heavy"
    heavy.mkdir()
    (heavy / "__init__.py").write_text("")
    (heavy / "ops.py").write_text("class Base:\n    pass\n\ndef double(number):\n    return 2 * number\n")
    (tmp_path / "library.py").write_text(
        "import heavy, heavy.ops\n"
        "from heavy.ops import Base, double\n"
        "def call(number): return double(number) + heavy.ops.double(number)\n"
        "def is_base(value): return isinstance(value, Base)\n"
        "try:\n    import absent\nexcept ImportError:\n    absent = None\n"
    )
    (tmp_path / "eager.py").write_text("from heavy.ops import Base\nclass Child(Base):\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(imports, "DEFERRED", ("heavy", "absent"))
    for name in ("heavy", "heavy.ops", "library", "eager"):
        monkeypatch.delitem(sys.modules, name, raising=False)


@pytest.mark.usefixtures("foreign")
def test_a_heavy_package_is_imported_when_it_is_used() -> None:
    with imports.deferred():
        import library  # type: ignore[import-not-found]
    assert "heavy" not in sys.modules
    assert library.absent is None
    assert not library.is_base(3)
    assert "heavy" not in sys.modules
    assert library.call(3) == 12
    from heavy.ops import Base  # type: ignore[import-not-found]

    assert library.is_base(Base())
    assert not library.is_base(3)


@pytest.mark.usefixtures("foreign")
def test_a_class_that_is_inherited_from_is_the_real_one() -> None:
    with imports.deferred():
        import eager  # type: ignore[import-not-found]
    from heavy.ops import Base

    assert issubclass(eager.Child, Base)


@pytest.mark.slow
def test_sampling_imports_no_compiler_and_no_xformers_and_says_nothing(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("A cat --s 1\n")
    arguments = ["sample", "prompts.txt", "--bundle", str(tiny_bundle), "--lora", "none", "--output", "pictures"]
    code = (
        f"import sys; from rbctl.cli import main; main({arguments!r}, standalone_mode=False);"
        "print(sorted({'torch._dynamo', 'xformers', 'scipy', 'triton'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["pictures", "[]"]
    assert "warn" not in done.stderr.lower(), done.stderr


@pytest.mark.slow
def test_in_a_program_of_others_nothing_stands_in(tiny_bundle: Path) -> None:
    code = (
        f"import sys; from rbctl import RelationPipeline as P; pipe = P.from_pretrained({str(tiny_bundle)!r});"
        "pipe.set_progress_bar_config(disable=True); pipe('A cat', num_inference_steps=1);"
        "assert 'rbctl.imports' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
