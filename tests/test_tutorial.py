"""The notebook runs as it stands, with small numbers, and holds no outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

NOTEBOOK = Path(__file__).resolve().parents[1] / "docs" / "tutorial.ipynb"

pytestmark = [
    pytest.mark.skipif(not NOTEBOOK.is_file(), reason="this runs a page of a checkout"),
    pytest.mark.usefixtures("one_thread"),
]


def code_cells() -> list[dict[str, Any]]:
    return [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]


def test_the_notebook_holds_no_outputs() -> None:
    assert [cell for cell in code_cells() if cell["outputs"] or cell["execution_count"]] == []


@pytest.mark.slow
def test_the_notebook_goes_from_pictures_to_a_grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for cell in code_cells():
        exec("".join(cell["source"]), names)
        if "parameters" in cell["metadata"].get("tags", ()):
            names |= {"TRIPLETS": 4, "TRAINING_STEPS": 3, "SAMPLING_STEPS": 2, "PICTURES": 2}
    assert len(names["losses"]) == 3
    assert names["lora"].is_file()
    assert set(names["scores"]["with"]) == {"CLIP-I", "CLIP-R"}
    assert Image.open(tmp_path / "tutorial" / "grid.png").width > 4 * 128
