"""What annotation keeps in a folder, corrections too, is data: it is checked, outlives a kill, and follows no link."""

from __future__ import annotations

import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from PIL import Image
from triplet_sets import annotate, kept, lines, write_lines

from rbctl import files
from rbctl.plugins.annotate.cache import Cache

pytestmark = pytest.mark.slow  # what its tests share takes seconds


@pytest.fixture
def copied(annotated_hug: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(annotated_hug, tmp_path / "hug"))


# --- results of the steps


def arrays_of(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as content:
        return {field: content[field] for field in content.files}


def changed(**fields: Any) -> Callable[[Path], None]:
    """A file with other arrays; the digest in it stays."""

    def act(path: Path) -> None:
        np.savez_compressed(path, **{**arrays_of(path), **fields})

    return act


def resealed(step: str, **fields: Any) -> Callable[[Path], None]:
    """A file of a stranger who made a digest that fits."""

    def act(path: Path) -> None:
        arrays = {**arrays_of(path), **fields}
        del arrays["seal"]
        name = path.stem.rpartition("-")[2]
        Cache(path.parents[2]).save(step, Path(path.stem.removesuffix(f"-{name}")), name, arrays)

    return act


def header(text: bytes) -> Callable[[Path], None]:
    """A file whose .npy has this header, and few bytes."""

    def act(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            for part in ("boxes", "scores", "seal"):
                archive.writestr(
                    f"{part}.npy", b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(8)
                )

    return act


def with_byte(after: bytes, at: int, value: int) -> Callable[[Path], None]:
    """A file in which one byte is another: the one ``at`` bytes after these."""

    def act(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[content.index(after) + at] = value
        path.write_bytes(content)

    return act


def bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for part in ("boxes", "scores", "seal"):
            with archive.open(f"{part}.npy", "w") as file:
                for _ in range(256):
                    file.write(bytes(1 << 20))


def another_key(path: Path) -> None:
    """A result that was made from something else, under the name of this one."""
    other = next(p for p in sorted(path.parent.iterdir()) if p.name.startswith("1-hug-") and p.name.count("-") == 2)
    shutil.copy(other, path)


def as_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGED = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:200]),
    "text": lambda path: path.write_bytes(b"damaged"),
    "a pickle": lambda path: path.write_bytes(b"cos\nsystem\n(S'true'\ntR."),
    "one array": lambda path: np.save(path.open("wb"), np.zeros(3)),
    "unknown compression": with_byte(b"PK\x01\x02", 10, 99),
    "compressed bytes": with_byte(b"PK\x03\x04", 60, 255),
    "a torn list": lambda path: path.write_bytes(path.read_bytes()[:-30]),
    "another array": changed(more=np.zeros(3)),
    "other numbers": changed(scores=np.array([0.5, 0.4])),
    "objects": changed(boxes=np.array([{}], object)),
    "another key": another_key,
    "a bomb": bomb,
    "a large shape": header(b"{'descr': '<f8', 'fortran_order': False, 'shape': (10000000000000,)}"),
    "no header": header(b"{'descr': (((((("),
    "a deep header": header(b"(" * 9000),
    "code": header(b"__import__('os').system('true')"),
    "NaN": resealed("boxes", scores=np.array([np.nan, 0.1])),
    "outside": resealed("boxes", boxes=np.array([[0, 0, 9.0, 1], [0, 0, 1, 1]])),
    "no area": resealed("boxes", boxes=np.array([[0.5, 0, 0.5, 1], [0, 0, 1, 1]])),
    "float32": resealed("boxes", scores=np.array([0.2, 0.1], np.float32)),
    "another shape": resealed("boxes", boxes=np.zeros((2, 5))),
    "a number": resealed("boxes", boxes=np.float64(3), scores=np.float64(3)),
    "pipe": as_pipe,
}


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_or_foreign_result_is_made_anew_and_told(copied: Path, damage: str) -> None:
    before, metadata = kept(copied), (copied / "metadata.jsonl").read_bytes()
    path = next(p for p in (copied / ".annotate" / "boxes").glob("0-hug-*.npz") if p.name.count("-") == 2)
    DAMAGED[damage](path)
    result = annotate(copied)
    assert result.exit_code == 0, (result.output, result.exception)
    told = [line for line in result.stderr.splitlines() if line.startswith(str(path))]
    assert len(told) == (damage != "pipe")
    assert all("computed again" in line and len(line) < 400 for line in told)
    after = kept(copied)
    assert {name for name in after if after[name] != before[name]} == {str(path.relative_to(copied))}
    assert (copied / "metadata.jsonl").read_bytes() == metadata
    assert "computed again" not in annotate(copied).stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("step", "act"),
    [
        ("masks", resealed("masks", masks=np.ones((2, 128, 127), bool))),
        ("masks", resealed("masks", masks=np.ones((3, 128, 128), bool))),
        ("masks", resealed("masks", masks=np.full((2, 128, 128), 2, np.uint8).view(bool))),
        ("keypoints", resealed("keypoints", keypoints=np.zeros((2, 16, 3), np.float32))),
        ("keypoints", resealed("keypoints", keypoints=np.full((2, 17, 3), np.inf, np.float32))),
        ("keypoints", resealed("keypoints", keypoints=np.full((2, 17, 3), 2, np.float32))),
        ("identity", resealed("identity", identity=np.ones((1, 9), np.float32) / 3)),
        ("identity", resealed("identity", identity=np.ones((2, 9), np.float32))),
    ],
)
def test_every_steps_result_is_held_to_its_form(copied: Path, step: str, act: Callable[[Path], None]) -> None:
    metadata = lines(copied / "metadata.jsonl")
    path = next(p for p in (copied / ".annotate" / step).glob("0-hug-*.npz") if p.name.count("-") == 2)
    act(path)
    result = annotate(copied)
    assert result.exit_code == 0, (result.output, result.exception)
    assert f"{path}: " in result.stderr
    # Read alone and not in a batch: the last digit may be another.
    for made, before in zip(lines(copied / "metadata.jsonl"), metadata, strict=True):
        for own, former in zip(made.pop("objects"), before.pop("objects"), strict=True):
            for name in ("target_keypoints", "image_keypoints"):
                np.testing.assert_allclose(own.pop(name), former.pop(name), rtol=0, atol=2e-5)
            assert own == former
        assert made == before


@pytest.mark.slow
def test_a_picture_that_its_exif_turns_is_not_made_anew_for_ever(copied: Path) -> None:
    path = copied / lines(copied / "raw.jsonl")[0]["objects"][0]["image"]
    with Image.open(path) as image:
        exif = Image.Exif()
        exif[0x0112] = 6
        image.crop((0, 0, 128, 120)).rotate(90, expand=True).save(path, exif=exif)
    assert annotate(copied, "--drop-failed").exit_code == 0
    before = kept(copied)
    result = annotate(copied, "--drop-failed")
    assert "computed again" not in result.stderr
    assert kept(copied) == before


def loud_scores(images: Any, names: Any) -> Any:
    from rbctl.plugins.annotate.steps import Detections

    return [Detections(np.array([[0.1, 0.1, 0.9, 0.9]]), np.array([7.0])) for _ in images]


def test_a_backend_of_ones_own_is_held_to_the_same_form(copied: Path) -> None:
    result = annotate(copied, "--backend", "boxes=test_kept_annotations:loud_scores")
    assert result.exit_code == 2
    assert "returned boxes or scores outside [0, 1]" in result.stderr.splitlines()[-1]


# --- links


@pytest.mark.parametrize("place", ["masks", "images", ".annotate", ".annotate/boxes", ".annotate/identity"])
@pytest.mark.parametrize("action", ["annotate", "apply"])
def test_nothing_is_written_or_deleted_through_a_link(copied: Path, tmp_path: Path, place: str, action: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    (copied / place).rename(elsewhere)
    (copied / place).symlink_to(elsewhere)
    for path in elsewhere.rglob("*"):
        if path.is_file() and "images" not in place:
            path.write_bytes(b"mine")
    (elsewhere / f".mine{files.PARTIAL}").write_text("mine")
    before = {str(path): path.read_bytes() for path in elsewhere.rglob("*") if path.is_file()}
    saved = tmp_path / "saved.json"
    saved.write_text(json.dumps({"triplets": {lines(copied / "metadata.jsonl")[0]["file_name"]: {"drop": True}}}))
    result = annotate(copied, "--apply", saved) if action == "apply" else annotate(copied)
    if place != "images" and (action == "annotate" or place == ".annotate"):
        assert result.exit_code == 2, result.output
        assert "is a link" in result.stderr.splitlines()[-1]
        assert place.split("/")[0] in result.stderr.splitlines()[-1]
    after = {str(path): path.read_bytes() for path in elsewhere.rglob("*") if path.is_file()}
    assert after == before


# --- corrections


@pytest.fixture
def native(drawn_hug: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(drawn_hug, tmp_path / "hug"))


class Killed(Exception):
    """The process ends here."""


def killed_before(monkeypatch: pytest.MonkeyPatch, write: int) -> None:
    """From now on the ``write``-th file that is written, counted from 0, is not, and nothing after it."""
    left, real = [write], files.atomic_write

    def limited(path: Path) -> Any:
        if not left[0]:
            raise Killed
        left[0] -= 1
        return real(path)

    monkeypatch.setattr(files, "atomic_write", limited)


def apply(folder: Path, **triplets: Any) -> Result:
    path = folder.parent / "saved.json"
    names = {name: f"{name[1:]}-hug.png" for name in triplets}
    path.write_text(json.dumps({"triplets": {names[name]: value for name, value in triplets.items()}}))
    return annotate(folder, "--apply", path)


def point(folder: Path, name: str) -> list[float]:
    (row,) = (row for row in lines(folder / "metadata.jsonl") if row["file_name"] == name)
    return list(row["objects"][0]["target_keypoints"][5])


MOVED = {"objects": [{"target_keypoints": {"5": [0.125, 0.25, 1]}}]}


@pytest.mark.parametrize("edited", [False, True])
@pytest.mark.parametrize("write", range(4))
def test_a_kill_anywhere_in_apply_loses_no_correction(
    native: Path, monkeypatch: pytest.MonkeyPatch, write: int, edited: bool
) -> None:
    before = lines(native / "metadata.jsonl")
    assert apply(native, t0={"drop": True}, t1=MOVED).exit_code == 0
    if edited:  # by somebody else, with an editor
        path = native / "metadata.jsonl"
        path.write_text(path.read_text().replace(before[3]["text"], "Somebody's own words: hug."))
    with monkeypatch.context() as patch:
        killed_before(patch, write)
        result = apply(native, t2={"drop": True}, t3=MOVED)
        assert isinstance(result.exception, Killed) == (write < 3)
    # Whatever was written: the page shows what was dropped, and the same command again ends as without a kill.
    assert annotate(native, "--review").exit_code == 0
    page = (native / "review.html").read_text()
    assert page.count("<article ") == 4
    assert page.count('class="drop" checked') >= 1
    assert apply(native, t2={"drop": True}, t3=MOVED).exit_code == 0
    assert [row["file_name"] for row in lines(native / "metadata.jsonl")] == ["1-hug.png", "3-hug.png"]
    assert point(native, "1-hug.png") == point(native, "3-hug.png") == [0.125, 0.25, 1]
    assert apply(native, t0={"drop": False}, t2={"drop": False}).exit_code == 0
    after = {row["file_name"]: row for row in lines(native / "metadata.jsonl")}
    assert len(after) == 4
    assert after["0-hug.png"] == before[0]
    assert after["2-hug.png"] == before[2]
    assert (after["3-hug.png"]["text"] == before[3]["text"]) != edited
    if not edited:  # what was found before anybody corrected it is known still
        assert lines(native / ".annotate" / "metadata.jsonl") == before


@pytest.mark.parametrize("write", range(5))
def test_a_kill_while_annotating_again_loses_no_correction(
    copied: Path, monkeypatch: pytest.MonkeyPatch, write: int
) -> None:
    before = lines(copied / "metadata.jsonl")
    assert apply(copied, t0={"drop": True}, t1=MOVED).exit_code == 0
    with monkeypatch.context() as patch:
        killed_before(patch, write)
        result = annotate(copied)
        assert isinstance(result.exception, Killed) == (write < 4)
    assert apply(copied, t0={"drop": False}).exit_code == 0
    assert lines(copied / "metadata.jsonl")[0] == before[0]
    assert point(copied, "1-hug.png") == [0.125, 0.25, 1]


def test_who_edits_the_triplets_overrules_a_correction(native: Path) -> None:
    assert apply(native, t0=MOVED, t1=MOVED).exit_code == 0
    rows = lines(native / "metadata.jsonl")
    rows[0]["objects"][0]["target_keypoints"][5] = [0.5, 0.5, 2]
    write_lines(native / "metadata.jsonl", rows)
    assert apply(native, t2={"drop": True}).exit_code == 0
    assert point(native, "0-hug.png") == [0.5, 0.5, 2]
    assert point(native, "1-hug.png") == [0.125, 0.25, 1]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{"triplets": {"../../private.png": {"drop": true}}}', "'../../private.png': no such triplet"),
        ('{"triplets": {"0-hug.png": {"objects": [{"target_keypoints": {"1": [NaN, 0, 2]}}]}}}', "NaN is no number"),
        ('{"triplets": {"0-hug.png": {"objects": [{"target_keypoints": {"1": [1e999, 0, 2]}}]}}}', "no finite number"),
        (
            '{"triplets": {"0-hug.png": {"objects": [{"image_keypoints": {"1": [true, 0, 2]}}]}}}',
            "image_keypoints.1[0]: a number was expected, not True",
        ),
        (f'{{"triplets": {{"0-hug.png": {{"objects": [{{"image_keypoints": {{"1": {[9] * 999}}}}}]}}}}}}', "[9, 9,"),
        (f'{{"triplets": {{"{"x" * 5000}": {{}}}}}}', "...xxx"),
        ('{"triplets": {"a\\u001b[2J\\nb": {}}}', r"'a\x1b[2J\nb': no such triplet"),
    ],
)
def test_corrections_of_a_stranger_are_one_short_line(native: Path, content: str, told: str) -> None:
    path = native.parent / "saved.json"
    path.write_text(content)
    result = annotate(native, "--apply", path)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert told in line
    assert len(line) < len(str(path)) * 2 + 250


def test_a_broken_base_is_no_traceback(native: Path) -> None:
    assert apply(native, t0={"drop": True}).exit_code == 0
    for text in ("[]", "{}", '{"file_name": 3}', "\x00", '{"file_name": "1-hug.png", "objects": 5, "text": ""}'):
        (native / ".annotate" / "metadata.jsonl").write_text(text + "\n")
        for options in (("--review",), ("--apply", native.parent / "saved.json")):
            result = annotate(native, *options)
            assert result.exit_code in (0, 2), result.exception
            assert result.exit_code == 0 or result.stderr.count("\n") == 1


def test_arrays_are_read_as_numpy_writes_them(tmp_path: Path) -> None:
    """Also those without an element, and of no dimension."""
    cache = Cache(tmp_path)
    for step, arrays in (
        ("boxes", {"boxes": np.zeros((0, 4)), "scores": np.zeros(0)}),
        ("captions", {"text": np.array("A caption, with ü.")}),
        ("masks", {"masks": np.asfortranarray(np.random.default_rng(0).random((2, 3, 4)) > 0.5)}),
    ):
        cache.save(step, Path("0.png"), "key", arrays)
        found = cache.load(step, Path("0.png"), "key", lambda arrays: "")
        assert found is not None
        for field, array in arrays.items():
            np.testing.assert_array_equal(found[field], array)
        with np.load(io.BytesIO(cache.path(step, Path("0.png"), "key").read_bytes())) as content:
            assert set(content.files) == {*arrays, "seal"}
