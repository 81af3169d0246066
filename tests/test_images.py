"""Folders of pictures as people have them: every stage takes the same files, and names those that it cannot read."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, features

from rbctl.errors import InputError
from rbctl.files import read_image
from rbctl.paths import flattened
from rbctl.plugins.distill.pictures import find_pictures
from rbctl.plugins.eval.inputs import read_rows
from rbctl.plugins.finetune.captioned_pictures import of_subject
from rbctl.plugins.finetune.config import FinetuneConfig
from rbctl.triplets.raw import read_raw

HEIC = b"\0\0\0\x1cftypheic\0\0\0\0mif1heic" + bytes(100)
SUFFIXES = ("avif", "gif", "webp", "bmp", "tiff", "jfif")
without_heif = pytest.mark.skipif(bool(importlib.util.find_spec("pillow_heif")), reason="pillow-heif reads HEIC")


def by_raw_set(folder: Path) -> list[Path]:
    return [path for triplet in read_raw(folder) for path in triplet.pictures]


def by_distill(folder: Path) -> list[Path]:
    return [folder / name for name in find_pictures(folder).files]


def by_eval(folder: Path) -> list[Path]:
    return [row.file for row in read_rows(folder)]


def by_finetune(folder: Path) -> list[Path]:
    config = FinetuneConfig(method="textual_inversion", data=folder)
    return [picture.file for picture in of_subject(config, "<cat>", folder, 128)]


@pytest.mark.parametrize("listed", [by_raw_set, by_distill, by_eval, by_finetune])
def test_every_stage_takes_the_same_pictures_and_names_the_rest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], listed: Callable[[Path], list[Path]]
) -> None:
    pictures = {f"{number}{part}.{suffix}" for number, suffix in enumerate(SUFFIXES) for part in ("", "-cat")}
    of_systems = {"._0.png", ".DS_Store", "Thumbs.db", "desktop.ini", "__MACOSX/._0.png", "__MACOSX/0.png", "a.png/b"}
    for name in (*pictures, *of_systems, "notes.txt", "8.jxl", "9.nef"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert {path.name for path in listed(tmp_path)} == pictures
    assert capsys.readouterr().err == f"{tmp_path}: left out: '8.jxl', '9.nef'; convert to PNG or JPEG\n"


@without_heif
def test_heic_is_left_out_of_a_folder_by_its_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("0.png", "0-cat.png", *(f"{number}.HEIC" for number in range(1, 6))):
        (tmp_path / name).write_bytes(HEIC)
    assert len(by_raw_set(tmp_path)) == 2
    names = "'1.HEIC', '2.HEIC', '3.HEIC' and 2 more"
    mend = "convert to PNG or JPEG, or install pillow-heif to read HEIC"
    assert capsys.readouterr().err == f"{tmp_path}: left out: {names}; {mend}\n"


@without_heif
@pytest.mark.parametrize("name", ["a.heic", "a.jpg"])
def test_heic_under_any_name_is_one_line_with_the_mend(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(HEIC)
    with pytest.raises(InputError, match=rf"{name}: is HEIC, which is not read; convert to PNG or JPEG, or install"):
        read_image(tmp_path / name)


def test_heic_is_read_where_its_decoder_is_installed(tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif", reason="pillow-heif is not installed")
    heif.from_pillow(Image.new("RGB", (40, 20), "red")).save(tmp_path / "a.heic")
    (tmp_path / "b.jpg").write_bytes((tmp_path / "a.heic").read_bytes())
    assert by_distill(tmp_path) == [tmp_path / "a.heic", tmp_path / "b.jpg"]
    for name in ("a.heic", "b.jpg"):
        assert read_image(tmp_path / name).size == (40, 20)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tiff", "avif"])
def test_of_a_moving_picture_the_first_frame_is_read(tmp_path: Path, suffix: str) -> None:
    if suffix == "avif" and not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    red, blue = (Image.new("RGB", (16, 16), colour) for colour in ("red", "blue"))
    red.save(tmp_path / f"a.{suffix}", save_all=True, append_images=[blue])
    r, _, b = read_image(tmp_path / f"a.{suffix}").getpixel((8, 8))
    assert r > 200
    assert b < 50


@given(st.lists(st.text("ab-~/01", min_size=1, max_size=6), min_size=2, max_size=20, unique=True))
def test_different_paths_have_different_file_names(paths: list[str]) -> None:
    names = [flattened(path) for path in paths]
    assert len(set(names)) == len(paths)
    assert not any("/" in name for name in names)
