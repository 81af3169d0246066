"""bench/official_program.py: what it lays out for the official program; both programs where a checkout is at hand."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # bench is no part of the distribution
    sys.path.insert(0, str(ROOT))

from bench import official_program as bench  # noqa: E402
from rbctl.bundle.convert import read_adapter, read_local_encoder  # noqa: E402
from rbctl.bundle.load import load  # noqa: E402
from rbctl.errors import InputError  # noqa: E402
from rbctl.triplets import load as load_triplets  # noqa: E402

CHECKOUT = os.environ.get("RBCTL_OFFICIAL_CHECKOUT")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A made-up one: files that hold nothing but what is changed."""
    folder = tmp_path / "checkout"
    texts: dict[str, str] = {"src/pipeline.py": "", bench.LOCAL_CONFIG: "{}"}
    for change in bench.changes(bench.SIZES):
        texts[change.file] = f"{texts.get(change.file, '')}{change.old}\n"
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.mark.slow
def test_the_weights_lie_where_the_official_scripts_look_for_them(tmp_path: Path, checkout: Path) -> None:
    bundle, copy = tmp_path / "bundle", tmp_path / "copy"
    bench.write_bundle(bundle, 64)
    assert load(str(bundle), torch.device("cpu"), torch.float32).resolution == 64
    bench.write_copy(checkout, copy, bundle)
    bench.write_local_encoder(copy, bundle)
    for change in bench.changes(bench.SIZES):
        assert change.new in (copy / change.file).read_text()
    assert "1280" not in (copy / "train.py").read_text()
    for path, read, ours in (
        (bench.ADAPTER, read_adapter, "ms_adapter.safetensors"),
        (bench.LOCAL, read_local_encoder, "clipself/model.safetensors"),
    ):
        theirs = read(copy / path)
        for name, tensor in load_file(bundle / ours).items():
            assert torch.equal(theirs[name], tensor), name
    assert json.loads((copy / bench.LOCAL_CONFIG).read_text()) == bench.SIZES.clipself
    assert (copy / bench.CLIP / "model.safetensors").is_file()


@pytest.mark.slow
def test_the_set_in_the_official_layout_is_the_one_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "TRIPLETS", 2)
    monkeypatch.setattr(bench, "PICTURE_SIDE", 64)
    read = bench.write_set(tmp_path / "data", tmp_path / "drawn")
    drawn = load_triplets(tmp_path / "drawn")
    assert len(read) == len(drawn) == 2
    for theirs, ours in zip(read, drawn, strict=True):
        assert (theirs.prompt, theirs.predicate) == (ours.prompt, ours.predicate)
        for a, b in zip(theirs.objects, ours.objects, strict=True):
            assert (a.name, a.box) == (b.name, b.box)
            np.testing.assert_array_equal(a.target_keypoints[:, :2], b.target_keypoints[:, :2])
            np.testing.assert_array_equal(a.image_keypoints[:, :2], b.image_keypoints[:, :2])


def test_no_checkout_is_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        bench.main([str(tmp_path)])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{tmp_path}: no checkout of the official program, train.py is missing")


def test_another_version_of_the_official_program_is_told(tmp_path: Path, checkout: Path) -> None:
    (checkout / "train.py").write_text("nothing that is looked for")
    with pytest.raises(InputError, match=r"train\.py: ' dim=1280,' is not in it"):
        bench.write_copy(checkout, tmp_path / "copy", tmp_path / "bundle")


def test_a_step_is_the_median_from_the_second_on(tmp_path: Path) -> None:
    """Official micro-steps before the first step have number 0, those after a step have its number."""
    ends = [(0, 0.0), (1, 5.0), (1, 6.0), (2, 7.0), (2, 8.0), (3, 9.0), (3, 11.0), (4, 19.0)]
    lines = [json.dumps({"step": step, "clock": clock, "cpu": 2 * clock}) for step, clock in ends]
    (tmp_path / "steps.jsonl").write_text("".join(f"{line}\n" for line in lines))
    assert bench.Run(tmp_path, bench.Seconds(0, 0)).step == bench.Seconds(2.0, 4.0)


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.skipif(not CHECKOUT, reason="RBCTL_OFFICIAL_CHECKOUT names no checkout of the official program")
def test_both_programs_compute_the_same(tmp_path: Path) -> None:
    assert CHECKOUT is not None
    short = ["--resolution", "128", "--steps", "3", "--pictures", "1", "--sampling-steps", "2", "--device", "cpu"]
    found = json.loads(bench.main([CHECKOUT, *short, "--out", str(tmp_path)]).read_text())
    assert len(found["rows"]) == 8
    assert all(row["official"]["clock"] > 0 and row["ours"]["clock"] > 0 for row in found["rows"])
    same = [one for one in found["differences"] if "our pixels" not in one["what"] and "pixels for" not in one["what"]]
    assert len(same) >= 4 + 3
    for one in same:
        limit = 1 if "of 255" in one["what"] else 1e-4 * one["scale"]
        assert one["largest"] <= limit, one
