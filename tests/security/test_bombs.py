"""Small files that stand for much: each ends in one line, within seconds and without the memory it asks for."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import call, refused
from PIL import Image

from rbctl.errors import InputError, abridged
from rbctl.files import read_image, read_json, read_safetensors, read_text, read_torch, read_yaml, write_safetensors
from rbctl.images import MOST_PIXELS
from rbctl.relations import load_relation
from rbctl.shards import samples
from rbctl.templates import fill, places

LAUGHS = (
    "[&a0 [x,x,x,x,x,x,x,x,x,x]," + "".join(f"&a{k} [{','.join([f'*a{k - 1}'] * 10)}]," for k in range(1, 30)) + "]"
)
RELATION = """
name: x
predicate: x
prompts: ['A {subject} x a {object}.']
roles: [{name: a, box: [0, 0, 0.5, 1]}, {name: b, box: [0.5, 0, 1, 1]}]
"""


@pytest.fixture(autouse=True)
def little_memory() -> Iterator[None]:
    """The process never comes to hold a gigabyte more, whatever the file asks for."""
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kilobytes
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20


# --- YAML


@pytest.mark.parametrize(
    ("stage", "where"),
    [
        ("relation", "predicate"),
        ("relation", "roles"),
        ("relation", "scene"),
        ("relation", "nosuchkey"),
        ("recipe", "negative_prompt"),
        ("recipe", "nosuchkey"),
        ("prompts", "prompts"),
        ("prompts", "defaults"),
        ("benchmark", "kind"),
        ("benchmark", "profiles"),
        ("ablation", "seeds"),
        ("config", "prompt"),
    ],
)
def test_aliases_that_stand_for_ten_to_the_thirty_words(tmp_path: Path, stage: str, where: str) -> None:
    path = tmp_path / "x.yaml"
    laughs = f"{where}: {LAUGHS}"
    if stage == "relation":
        laughs += "\n" + "\n".join(line for line in RELATION.splitlines() if not line.startswith(where))
    path.write_text(f"sample: {{{laughs}}}" if stage == "recipe" else laughs)
    (tmp_path / "p.txt").write_text("A cat.")
    command = {
        "relation": ("generate", "--relation", path, "--number", 1),
        "recipe": ("sample", tmp_path / "p.txt", "--recipe", path, "--dry-run"),
        "prompts": ("sample", path),
        "benchmark": ("eval", "--bench", path),
        "ablation": ("eval", "ablate", path),
        "config": ("sample", "--config", path),
    }[stage]
    refused(call(*command), "x.yaml", "aliases stand for more")


def test_an_alias_inside_of_what_it_names(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: &a [*a]")
    with pytest.raises(InputError, match="an alias stands inside of what it names"):
        read_yaml(tmp_path / "a.yaml")


def test_aliases_in_measure_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("base: &b {x: 1}\nown: {<<: *b, y: 2}\nlist: [*b, *b]")
    assert read_yaml(tmp_path / "a.yaml") == {"base": {"x": 1}, "own": {"x": 1, "y": 2}, "list": [{"x": 1}] * 2}


@pytest.mark.parametrize(
    "text",
    [
        "a: " + "[" * 100_000,
        "- " * 100_000,
        "? " * 100_000,
        "a: " + "9" * 5000,
        "a: 0x" + "f" * 500_000,
        "a: 1" + ":1" * 200_000,
        "a: 1" + ":1" * 200_000 + ".5",
        "a: 1.0e+999",
        "a: .nan",
        "a: -.inf",
        "a: !!python/object/apply:os.system [true]",
        "a: !!python/name:os.system",
        'a: "\\UFFFFFFFF"',
        "x" * ((1 << 20) + 1),
    ],
    ids=lambda text: text[:16],
)
def test_yaml_that_is_deep_or_long_or_more_than_data(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(InputError) as caught:
        read_yaml(tmp_path / "a.yaml")
    assert len(str(caught.value)) < len(str(tmp_path)) + 400


# --- JSON and text


@pytest.mark.parametrize("text", ["[" * 200_000, '{"a":' * 200_000, "9" * 5000, "NaN", "[1e999]", "-Infinity"])
def test_json_that_is_deep_or_no_number(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match="not valid JSON"):
        read_json(tmp_path / "a.json")


def test_a_file_without_an_end_is_not_begun(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe.json")
    for path in (Path("/dev/zero"), tmp_path / "pipe.json"):
        with pytest.raises(InputError, match="it is no file"):
            read_text(path)
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate(10 << 30)
    with pytest.raises(InputError, match="larger than"):
        read_json(tmp_path / "large.json")


def test_an_error_tells_a_large_value_in_few_words() -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    wide = ["x" * 1000] * 1_000_000
    for value in (deep, wide, 10**5000, "x" * 10_000_000, dict.fromkeys(range(100), wide), 1.5, None):
        assert len(abridged(value)) <= 60


# --- templates


@pytest.mark.parametrize(
    "template",
    ["{subject:>20000000000}", "{subject!r:>9999999999}", "{subject.__class__}", "{subject[0]}", "{", "{a b}"],
)
def test_a_template_holds_plain_names_alone(template: str, tmp_path: Path) -> None:
    for attempt in (lambda: places(template), lambda: fill(template, subject="cat")):
        with pytest.raises(ValueError, match=r"plain name|expected|encountered"):
            attempt()
    path = tmp_path / "x.yaml"
    path.write_text(RELATION.replace("{subject}", template))
    with pytest.raises(InputError, match="prompts"):
        load_relation(path)


def test_a_template_is_filled_as_str_format_does() -> None:
    assert fill("a {} and {} {{x}}", "cat", "dog") == "a {} and {} {{x}}".format("cat", "dog")
    assert fill("{1} {0} {place}", "a", "b", place="here") == "b a here"
    for template in ("{2}", "{} {} {}", "{place}"):
        with pytest.raises(ValueError, match="nothing for"):
            fill(template, "a", "b")


# --- tensors


def _expanded() -> torch.Tensor:
    return torch.zeros(1).expand(1 << 16, 1 << 16)


@pytest.mark.parametrize(
    "make",
    [
        _expanded,
        lambda: {"state": [_expanded()]},
        lambda: torch.sparse_coo_tensor(torch.tensor([[0]]), torch.ones(1), (1 << 40,)),
        lambda: torch.quantize_per_tensor(torch.zeros(17, 2), 0.1, 0, torch.qint8),
        lambda: torch.empty(1 << 40, device="meta"),
    ],
    ids=["expanded", "expanded inside", "sparse", "quantised", "meta"],
)
@pytest.mark.filterwarnings("ignore")
def test_a_small_file_of_a_huge_tensor(tmp_path: Path, make: Callable[[], object]) -> None:
    path = tmp_path / "motion_keyposes.pth"
    torch.save(make(), path)
    assert path.stat().st_size < 10_000
    with pytest.raises(InputError, match="refused"):
        read_torch(path)


def test_a_compressed_pth(tmp_path: Path) -> None:
    torch.save(torch.zeros(1 << 22), tmp_path / "a.pth")
    with (
        zipfile.ZipFile(tmp_path / "a.pth") as source,
        zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for part in source.infolist():
            packed.writestr(part.filename, source.read(part))
    with pytest.raises(InputError, match="compressed"):
        read_torch(tmp_path / "b.pth")


def test_keypoints_of_another_size_are_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "official"
    for part in ("videos/0", "masks/0"):
        (folder / part).mkdir(parents=True)
    (folder / "prompts.json").write_text(json.dumps({"0": {"prompt": "A cat.", "entities": ["cat"], "predicate": "x"}}))
    for name in ("videos/0/motion.png", "videos/0/concept.png", "masks/0/motion.png"):
        Image.new("RGB", (8, 8), "white").save(folder / name)
    torch.save(torch.rand(1, 17, 2), folder / "videos/0/concept_keyposes.pth")
    target = folder / "videos/0/motion_keyposes.pth"
    for content in (
        _expanded(),
        torch.rand(1 << 20),
        torch.rand(1, 17, 2, dtype=torch.complex64),
        torch.rand(2, 17, 2),
    ):
        torch.save(content, target)
        refused(call("data", "check", folder), "motion_keyposes.pth")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers_are_not_written(tmp_path: Path, value: float) -> None:
    path = tmp_path / "a.safetensors"
    write_safetensors(path, {"w": torch.ones(3)}, {})
    before = path.read_bytes()
    with pytest.raises(InputError, match="w holds NaN or infinite"):
        write_safetensors(path, {"w": torch.tensor([1.0, value])}, {})
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "header",
    [
        {"w": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 4]}},
        {"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 1 << 40]}},
        {"w": {"dtype": "F32", "shape": [1 << 62, 1 << 62], "data_offsets": [0, 4]}},
    ],
)
def test_safetensors_that_claim_more_than_they_hold(tmp_path: Path, header: dict[str, object]) -> None:
    raw = json.dumps(header).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(4))
    with pytest.raises(InputError, match="safetensors"):
        read_safetensors(tmp_path / "a.safetensors")


# --- pictures and shards


def _png(width: int, height: int, colour: int = 0) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("size", [(11_000, 11_000), (60_000, 60_000), (2**31 - 1, 2**31 - 1), (2**31 - 1, 1)])
def test_a_picture_of_too_many_pixels_is_not_decoded(tmp_path: Path, size: tuple[int, int]) -> None:
    (tmp_path / "a.png").write_bytes(_png(*size, colour=6))
    assert size[0] * size[1] > MOST_PIXELS
    with pytest.raises(InputError):
        read_image(tmp_path / "a.png")


def test_a_damaged_picture_is_one_line(tmp_path: Path) -> None:
    encoded = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)).save(encoded, "TIFF")
    whole = encoded.getvalue()
    random = np.random.default_rng(1)
    for _ in range(300):
        broken = bytearray(whole)
        for place in random.integers(0, len(whole), 3):
            broken[place] = random.integers(256)
        (tmp_path / "a.tif").write_bytes(broken)
        try:
            read_image(tmp_path / "a.tif")
        except InputError as error:
            assert "\n" not in str(error)  # noqa: PT017


@pytest.mark.slow
def test_a_shard_of_zeros_is_left_before_it_is_unpacked(tmp_path: Path) -> None:
    encoded = io.BytesIO()
    with tarfile.open(fileobj=encoded, mode="w:gz", compresslevel=9) as archive:
        for number in range(4):
            member = tarfile.TarInfo(f"{number}.png")
            member.size = 100 << 20
            archive.addfile(member, _Zeros(member.size))
    (tmp_path / "a.tar").write_bytes(encoded.getvalue())
    assert len(encoded.getvalue()) < 1 << 20
    with pytest.raises(InputError, match=r"a\.tar: expands to more than"):
        list(samples(tmp_path / "a.tar"))


def test_a_member_larger_than_any_picture(tmp_path: Path) -> None:
    member = tarfile.TarInfo("0.png")
    member.size = 8 << 30
    (tmp_path / "a.tar").write_bytes(gzip.compress(member.tobuf()))
    with pytest.raises(InputError, match="larger than 256 MB"):
        list(samples(tmp_path / "a.tar"))


def test_a_sparse_member_stands_for_zeros_that_nobody_stored(tmp_path: Path) -> None:
    member = tarfile.TarInfo("0.png")
    member.type, member.size = tarfile.GNUTYPE_SPARSE, 0
    header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    header[483:495] = b"%011o\0" % (200 << 20)  # the size that it stands for
    header[148:156] = b"        "
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "a.tar").write_bytes(bytes(header) + bytes(1024))
    with pytest.raises(InputError, match="sparse"):
        list(samples(tmp_path / "a.tar"))


class _Zeros(io.RawIOBase):
    def __init__(self, left: int) -> None:
        self.left = left

    def read(self, size: int = -1) -> bytes:
        size = min(size, self.left) if size >= 0 else self.left
        self.left -= size
        return bytes(size)
