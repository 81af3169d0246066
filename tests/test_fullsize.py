"""bench/fullsize.py at its small sizes: what it will do on a CUDA device runs on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # bench is no part of the distribution
    sys.path.insert(0, str(ROOT))

from bench.full.attention import Case  # noqa: E402
from bench.full.floors import attention_floor  # noqa: E402
from bench.full.results import Bench, markdown  # noqa: E402
from bench.full.sizes import SMALL  # noqa: E402
from bench.fullsize import main  # noqa: E402


@pytest.mark.slow
def test_the_whole_road_at_small_sizes(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "bench" / "fullsize.py", "--device", "cpu", "--tiny", "--out", tmp_path]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # these sizes gain nothing by threads
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "fullsize.json").read_text())
    sections = found["sections"]
    assert [row for rows in sections.values() for row in rows if "failed" in row] == []
    assert found["matrix product, TFLOP/s"] > 0
    assert found["copy, TB/s"] > 0

    attention = [row for row in sections["attention"] if "way" in row]
    assert len(attention) == 2 * 2 * 2 * 5  # grids, objects, passes; official, two plain calls, three backends
    assert all(row["max error"] < 1e-4 for row in attention if row["way"] != "two plain SDPA calls")
    for row in sections["sampling"]:
        assert row.get("from official after 2 steps", 0) < 1e-4
        if "loop s" in row:
            assert row["s/image"] > 0
            assert row["MFU of the loop"] > 0
    ways = ("official way", "ours, sdpa", "ours, grouped", "ours, eager", "stock diffusers, text only")
    names = [row["what"] for row in sections["sampling"]]
    assert all(f"batch 2, {way}" in names for way in ways)
    assert sum("steps/s" in row for row in sections["finetune"]) == 3
    assert sum("ms/step" in row for row in sections["compiled"]) == 3
    assert len([name for name in sections if name.startswith("where")]) == 2

    table = (tmp_path / "fullsize.md").read_text()
    assert all(f"### {name}" in table for name in sections)


@pytest.mark.parametrize(
    ("parts", "told"), [("sampling", "full size needs CUDA"), ("floors,smapling", "no part smapling")]
)
def test_what_cannot_be_measured_is_told(parts: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--device", "cpu", "--only", parts])
    assert told in capsys.readouterr().err


@pytest.mark.slow
def test_what_fails_says_so_and_the_rest_goes_on(tmp_path: Path) -> None:
    bench = Bench(torch.device("cpu"), SMALL, tmp_path, tmp_path, tmp_path)
    with bench.row("part", "first") as row:
        row["s"] = 0.25
        raise torch.OutOfMemoryError("no room | for it")
    with bench.row("part", "second") as row:
        row["peak GB"] = 12345.6
    found = json.loads(bench.write().read_text())
    assert found["sections"]["part"] == [
        {"what": "first", "s": 0.25, "failed": "OutOfMemoryError: no room | for it"},
        {"what": "second", "peak GB": 12345.6},
    ]
    table = (tmp_path / "fullsize.md").read_text()
    assert table == markdown(found)
    assert "| first | 0.25 | OutOfMemoryError: no room \\| for it |  |" in table
    assert "| second |  |  | 12346 |" in table


def test_the_attention_floor_is_what_its_tensors_hold() -> None:
    rows, side, heads, objects = 2, 4, 3, 2
    case = Case(rows, side, heads, objects, torch.device("cpu"), torch.bfloat16)
    x = case.sets[0]
    read, written = (x.q, x.k_text, x.v_text, x.k_seen, x.v_seen), (x.q,)  # the output is like q
    again, gradients = (x.grad_out, *read), (x.q, x.k_text, x.v_text)
    forward, both = (attention_floor(rows, heads, side * side, objects, 2, backward) for backward in (False, True))
    assert forward.bytes == sum(t.nbytes for t in (*read, *written))
    assert both.bytes == forward.bytes + sum(t.nbytes for t in (*again, *gradients))
    assert forward.flops == 4 * x.q.numel() * (77 + 32)
