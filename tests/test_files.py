"""Files: an interrupted write leaves the old file, and every reader's failure is one clear line."""

from __future__ import annotations

import errno
import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, features

from rbctl import files
from rbctl.errors import InputError

READERS = [
    files.read_text,
    files.read_json,
    files.read_jsonl,
    files.read_yaml,
    files.read_safetensors,
    files.read_torch,
    files.read_image,
]


def test_atomic_write_replaces_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "a.txt"
    files.write_text(path, "old")
    with files.atomic_write(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.suffix == files.PARTIAL
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


def test_atomic_write_keeps_the_old_file_on_failure(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    files.write_text(path, "old")

    def fail() -> None:
        with files.atomic_write(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("on the way")

    with pytest.raises(RuntimeError, match="on the way"):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_atomic_write_keeps_the_old_file_on_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    files.write_text(path, "old")
    script = (
        "import os, pathlib, signal; from rbctl.files import atomic_write\n"
        f"with atomic_write(pathlib.Path({str(path)!r})) as t:\n"
        "    t.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -signal.SIGKILL
    assert path.read_text() == "old"


def test_a_full_disk_is_one_line_and_the_old_file_stays(tmp_path: Path) -> None:
    """A limit on the size of files stands in for the full disk: the same failing write(2)."""
    picture, text = tmp_path / "a.png", tmp_path / "a.txt"
    files.write_text(text, "old")
    picture.write_bytes(b"old")
    script = f"""
import os, pathlib, resource, sys
from PIL import Image
from rbctl.errors import InputError
from rbctl.files import write_bytes
from rbctl.pictures import save_png
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
sys.dont_write_bytecode = True
noise = Image.frombytes("RGB", (64, 64), os.urandom(64 * 64 * 3))
for write in (
    lambda: write_bytes(pathlib.Path({str(text)!r}), bytes(100000)),
    lambda: save_png(noise, pathlib.Path({str(picture)!r}), "p", {{}}),
):
    try:
        write()
    except InputError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert [line.split(": ")[1] for line in done.stdout.splitlines()] == [
        "no space left on the disk; free some and run the same command again"
    ] * 2
    assert (text.read_text(), picture.read_bytes()) == ("old", b"old")
    assert sorted(tmp_path.iterdir()) == [picture, text]


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC, errno.EDQUOT])
def test_other_places_that_cannot_be_written(tmp_path: Path, number: int) -> None:
    with pytest.raises(InputError), files.atomic_write(tmp_path / "a"):
        raise OSError(number, os.strerror(number))


def test_a_folder_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    with pytest.raises(InputError, match="cannot be written"):
        files.write_text(tmp_path / "a", "x")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        files.write_text(tmp_path / "file" / "a", "x")
    with pytest.raises(InputError, match="cannot be written"):
        files.write_text(tmp_path / ("a" * 300), "x")


def test_an_error_of_other_kind_is_not_hidden(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="weather"), files.atomic_write(tmp_path / "a"):
        raise OSError(errno.EIO, "weather")


@pytest.mark.parametrize("reader", READERS, ids=lambda r: r.__name__)
def test_a_missing_file_and_a_folder_are_one_line(tmp_path: Path, reader) -> None:
    for path in (tmp_path / "absent", tmp_path, tmp_path / ("a" * 300)):
        with pytest.raises(InputError) as caught:
            reader(path)
        assert str(caught.value).startswith(f"{path}: "[:250])  # of a longer message the middle is left out
        assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.one_of(st.binary(max_size=60), st.text("[]{}:,-?!&*#|>'\"%@`~=<. \n\t01axo_", max_size=12).map(str.encode)))
def test_any_content_is_read_or_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "any"
    path.write_bytes(content)
    for reader in READERS:
        try:
            reader(path)
        except InputError as error:
            assert "\n" not in str(error)  # noqa: PT017


@pytest.mark.parametrize("content", ["n: 0b_", "b: !!bool x", "i: !!int x"])
def test_values_that_are_not_of_their_yaml_type(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.yaml").write_text(content)
    with pytest.raises(InputError, match="type"):
        files.read_yaml(tmp_path / "a.yaml")


def test_dates_of_yaml_are_words(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("day: 2026-01-31\nwrong: 2026-99-99\n2026-01-31: key")
    assert files.read_yaml(tmp_path / "a.yaml") == {"day": "2026-01-31", "wrong": "2026-99-99", "2026-01-31": "key"}


@pytest.mark.parametrize("content", ["!!binary aGk=", "!!set {a}", "!!omap [a: 1]", "!!pairs [a: 1]", '"\\ud83d"'])
def test_yaml_that_no_json_could_hold_is_refused_by_its_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.yaml").write_text(f"a: 1\nb: {content}\n")
    with pytest.raises(InputError, match=r"a\.yaml:2: not valid YAML"):
        files.read_yaml(tmp_path / "a.yaml")


@pytest.mark.parametrize("reader", [files.read_json, files.read_jsonl])
@pytest.mark.parametrize("content", ["[" * 100000, "9" * 5000], ids=["depth", "digits"])
def test_json_that_python_gives_up_on(tmp_path: Path, reader, content: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(InputError, match="JSON"):
        reader(tmp_path / "a.json")


def test_errors_name_the_line(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text('{"a":\n1,\n}')
    with pytest.raises(InputError, match=r"a:3: not valid JSON"):
        files.read_json(path)
    path.write_text('{"a": 1}\n\n[2]\n')
    with pytest.raises(InputError, match=r"a:3: a JSON object"):
        files.read_jsonl(path)
    path.write_text("a: 1\nb: [\n")
    with pytest.raises(InputError, match=r"a:3: not valid YAML"):
        files.read_yaml(path)


@given(st.lists(st.dictionaries(st.text(), st.text()), max_size=3))
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_jsonl_round_trip_of_any_text(tmp_path: Path, rows: list[dict[str, str]]) -> None:
    """Among it U+2028 and U+0085, at which str.splitlines would break a line."""
    path = tmp_path / "a.jsonl"
    try:
        json.dumps(rows, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return
    files.write_jsonl(path, rows)
    assert files.read_jsonl(path) == rows


def test_jsonl_lines_break_only_at_newlines(tmp_path: Path) -> None:
    rows = [{"text": "a\u2028b\u0085c\x1cd"}]
    files.write_jsonl(tmp_path / "a.jsonl", rows)
    assert files.read_jsonl(tmp_path / "a.jsonl") == rows


def test_a_byte_order_mark_is_no_content(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf{}")
    assert files.read_json(tmp_path / "a.json") == {}


def test_tensors_round_trip(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6.0).reshape(2, 3).t(), "b": torch.ones(2, dtype=torch.bfloat16)}
    files.write_safetensors(tmp_path / "a.safetensors", tensors, {"k": "v"})
    back, metadata = files.read_safetensors(tmp_path / "a.safetensors")
    assert metadata == {"k": "v"}
    assert all(torch.equal(back[key], tensors[key]) for key in tensors)
    torch.save(tensors, tmp_path / "a.pt")
    assert torch.equal(files.read_torch(tmp_path / "a.pt")["a"], tensors["a"])


def test_damaged_tensor_files_are_one_line(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(9)}, tmp_path / "whole.pt")
    torch.save({"a": torch.ones(9)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    files.write_safetensors(tmp_path / "whole.safetensors", {"a": torch.ones(9)}, {})
    for name, reader in (
        ("whole.pt", files.read_torch),
        ("old.pt", files.read_torch),
        ("whole.safetensors", files.read_safetensors),
    ):
        whole = (tmp_path / name).read_bytes()
        for length in range(0, len(whole), max(1, len(whole) // 40)):
            (tmp_path / "cut").write_bytes(whole[:length])
            with pytest.raises(InputError) as caught:
                reader(tmp_path / "cut")
            assert "\n" not in str(caught.value)


class Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("write", [torch.save, lambda what, path: path.write_bytes(pickle.dumps(what))])
def test_a_pickle_bomb_is_refused_and_not_run(tmp_path: Path, write) -> None:
    path, mark = tmp_path / "bomb.pth", tmp_path / "it ran"
    write({"weight": Bomb(mark)}, path)
    with pytest.raises(InputError, match="refused"):
        files.read_torch(path)
    assert not mark.exists()


def test_pictures_are_turned_and_laid_on_white(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.new("RGB", (40, 20)).save(tmp_path / "turned.jpg", exif=exif)
    assert files.read_image(tmp_path / "turned.jpg").size == (20, 40)
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert files.read_image(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)
    palette = Image.new("P", (4, 4), 0)
    palette.save(tmp_path / "palette.png", transparency=0)
    assert files.read_image(tmp_path / "palette.png").getpixel((0, 0)) == (255, 255, 255)
    assert files.read_image(tmp_path / "clear.png", "L").mode == "L"


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_become_eight(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 257, 12850], [32896, 65278, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / f"grey.{suffix}")
    for mode in ("L", "RGB"):
        read = np.asarray(files.read_image(tmp_path / f"grey.{suffix}", mode)).reshape(2, 3, -1)
        assert read[..., 0].tolist() == [[0, 1, 50], [128, 254, 255]]


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_pixels_of_no_known_range_are_refused(tmp_path: Path, kind: type) -> None:
    Image.fromarray(np.full((4, 4), 1000, kind)).save(tmp_path / "depth.tif")
    with pytest.raises(InputError, match=r"depth\.tif: .* save it as an 8-bit PNG"):
        files.read_image(tmp_path / "depth.tif")


def test_a_picture_that_cannot_be_converted_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "odd.png")

    def refuse(image: Image.Image, mode: str) -> Image.Image:
        raise ValueError("conversion not supported")

    monkeypatch.setattr(Image.Image, "convert", refuse)
    with pytest.raises(InputError, match=r"odd\.png: not a readable picture \(conversion not supported\)"):
        files.read_image(tmp_path / "odd.png")


@pytest.mark.parametrize("suffix", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "AVIF"])
def test_pictures_cut_short_are_one_line(tmp_path: Path, suffix: str) -> None:
    if suffix == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    Image.effect_noise((64, 64), 90).convert("RGB").save(tmp_path / "whole", format=suffix)
    whole = (tmp_path / "whole").read_bytes()
    (tmp_path / "cut").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="not a readable picture"):
        files.read_image(tmp_path / "cut")


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert files.sha256(tmp_path / "a").startswith("ba7816bf8f01cfea")


@pytest.mark.parametrize(
    "content", [{"layers": 2**31}, {"vision_cfg": {"num_hidden_layers": 1001}}, {"layers": [1, 9**9]}]
)
def test_a_network_of_endless_layers_is_refused_before_it_is_built(tmp_path: Path, content: object) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="1000 layers are the most"):
        files.read_network_config(path)
