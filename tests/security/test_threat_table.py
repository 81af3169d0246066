"""SECURITY.md says what each kind of file may try; every row of it names the test that holds it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / ".github" / "SECURITY.md"


@pytest.mark.skipif(not TABLE.is_file(), reason="this reads a file of a checkout")
def test_every_row_is_a_test() -> None:
    rows = [line.strip("| ").split(" | ") for line in TABLE.read_text().splitlines() if line.startswith("|")][2:]
    assert len(rows) > 20
    for *_, test in rows:
        file, name = test.strip("`").split("::")
        (path,) = [*(ROOT / "tests").glob(file), *(ROOT / "tests").glob(f"*/{file}")]
        functions = {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}
        assert name in functions, test
