"""Every reader on broken inputs: each is read or refused in one line; none executes, escapes or takes long."""

from __future__ import annotations

import copy
import io
import json
import shutil
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from rbctl import embeddings, lora
from rbctl.bundle.catalogue import read_manifest
from rbctl.errors import InputError
from rbctl.files import read_image, read_json, read_jsonl, read_torch, write_safetensors
from rbctl.layout import LayoutPrior
from rbctl.menagerie.triplets import check_drawable
from rbctl.options import find_recipe
from rbctl.pictures import read_record
from rbctl.plugins.annotate import corrections, reports
from rbctl.plugins.distill.pictures import find_pictures
from rbctl.plugins.eval.benchmarks import load_benchmark
from rbctl.plugins.eval.case import Wanted
from rbctl.plugins.eval.inputs import read_rows
from rbctl.prompts import read_official_config, read_prompts
from rbctl.relations import load_relation
from rbctl.shards import samples
from rbctl.triplets import load
from rbctl.triplets.check import check
from rbctl.triplets.raw import read_origin, read_raw

pytestmark = pytest.mark.slow

ROUNDS = 80
SECONDS = 10
DEEP: Any = []
for _ in range(300):
    DEEP = [DEEP]
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 10**30, -(10**30), 0.5, -0.0, 1e308, -1e308, float("nan"), float("inf")),
    *("", " ", "x" * 100_000, "../../etc/passwd", "/etc/passwd", "a\0b", "\u2028", "\ud800", "{x:>99999999}", "{x.y}"),
    *("<script>alert(1)</script>", "(a+)+$", "\\1", "nan", "1e999", "٣", "²", [], {}, [[]], [None], [float("nan")] * 4),
    *({"a": {"b": 1}}, DEEP, ["x"] * 10_000, {"__class__": "x"}, [0, 0, 1, 1], [1, 1, 0, 0]),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*path, key))
    elif isinstance(value, list):
        for number, part in enumerate(value):
            yield from places(part, (*path, number))


def broken(value: Any, random: np.random.Generator) -> Any:
    """The value with one or two parts replaced, removed, renamed or doubled."""
    value = copy.deepcopy(value)
    for _ in range(random.integers(1, 3)):
        path = list(places(value))[random.integers(len(list(places(value))))]
        odd = copy.deepcopy(ODD[random.integers(len(ODD))])
        if not path:
            if random.random() < 0.9:
                continue
            return odd
        parent = value
        for step in path[:-1]:
            parent = parent[step]
        what = random.random()
        if what < 0.7:
            parent[path[-1]] = odd
        elif what < 0.8:
            del parent[path[-1]]
        elif what < 0.9 and isinstance(parent, dict):
            parent[odd if isinstance(odd, str) else "strange"] = parent.pop(path[-1])
        elif isinstance(parent, list):
            parent.append(parent[path[-1]])
    return value


def torn(content: bytes, random: np.random.Generator) -> bytes:
    """Bytes with some changed, or cut short, or with a part doubled."""
    what, changed = random.random(), bytearray(content)
    if what < 0.6:
        for place in random.integers(0, len(content), random.integers(1, 8)):
            changed[place] = random.integers(256)
    elif what < 0.8:
        del changed[random.integers(len(content)) :]
    else:
        start = random.integers(len(content))
        changed[start:start] = content[start : start + random.integers(1, 200)]
    return bytes(changed)


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()


def as_jsonl(rows: Any) -> bytes:
    return b"\n".join(json.dumps(row).encode() for row in rows) if isinstance(rows, list) else json.dumps(rows).encode()


def as_yaml(value: Any) -> bytes:
    try:
        return yaml.safe_dump(value, allow_unicode=True).encode("utf-8", "replace")
    except (yaml.YAMLError, RecursionError):
        return b"a: ["


def tried(read: Callable[[], Any], what: object) -> None:
    """Read, or be refused in one line, in time."""
    start = time.monotonic()
    try:
        read()
    except InputError as error:
        assert "\n" not in str(error)  # noqa: PT017
        assert len(str(error)) < 2000  # noqa: PT017
    except ValueError as error:  # of configurations: the stage tells it as one line
        assert "config" in str(what), what
        assert "\n" not in str(error)  # noqa: PT017
    assert time.monotonic() - start < SECONDS, what


@pytest.fixture
def random(request: pytest.FixtureRequest) -> np.random.Generator:
    return np.random.default_rng(sum(request.node.name.encode()))


def test_triplets(small_hug: Path, tmp_path: Path, random: np.random.Generator) -> None:
    folder = Path(shutil.copytree(small_hug, tmp_path / "set"))
    rows = read_jsonl(folder / "metadata.jsonl")
    for _ in range(ROUNDS):
        (folder / "metadata.jsonl").write_bytes(as_jsonl(broken(rows, random)))
        tried(lambda: load(folder), "metadata.jsonl")
        tried(lambda: check(folder), "metadata.jsonl")


def test_the_official_layout(small_hug: Path, tmp_path: Path, random: np.random.Generator) -> None:
    folder = tmp_path / "official"
    prompts = {"0": {"prompt": "A cat hugs a dog.", "entities": ["cat", "dog"], "predicate": ["hugs"]}}
    for part in ("videos/0", "masks/0"):
        (folder / part).mkdir(parents=True)
    for name in ("videos/0/motion", "videos/0/concept0", "videos/0/concept1", "masks/0/motion0", "masks/0/motion1"):
        Image.new("RGB", (16, 16), "white").save(folder / f"{name}.png")
    target = folder / "videos/0/motion_keyposes.pth"
    torch.save(torch.rand(2, 17, 2), target)
    for name in ("one", "two"):
        torch.save(torch.rand(1, 17, 2), folder / f"videos/0/concept_keyposes_{name}.pth")
    (folder / "prompts.json").write_bytes(as_json(prompts))
    assert check(folder)[0].level == "warning"  # one triplet is few
    whole = target.read_bytes()
    for _ in range(ROUNDS):
        (folder / "prompts.json").write_bytes(as_json(broken(prompts, random)))
        target.write_bytes(torn(whole, random))
        tried(lambda: check(folder), "official")


def test_raw_triplets(small_hug: Path, tmp_path: Path, random: np.random.Generator) -> None:
    folder = tmp_path / "raw"
    folder.mkdir()
    for name in ("0.png", "0-cat.png", "0-dog.png"):
        Image.new("RGB", (8, 8)).save(folder / name)
    objects = [{"name": name, "role": name, "image": f"0-{name}.png"} for name in ("cat", "dog")]
    rows, origin = [{"file_name": "0.png", "text": "x", "predicate": "y", "objects": objects}], {"origin": "miniature"}
    for _ in range(ROUNDS):
        (folder / "raw.jsonl").write_bytes(as_jsonl(broken(rows, random)))
        (folder / "set.json").write_bytes(as_json(broken(origin, random)))
        tried(lambda: read_raw(folder), "raw.jsonl")
        tried(lambda: read_origin(folder), "set.json")


def test_results(small_hug: Path, tmp_path: Path, random: np.random.Generator) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(folder / "0.png")
    thing = {"name": "cat", "image": "0.png", "box": [0, 0, 1, 1]}
    row = {"file_name": "0.png", "text": "A cat.", "objects": [thing], "seed": 3, "relation": "hug", "case": "a"}
    for _ in range(ROUNDS):
        (folder / "metadata.jsonl").write_bytes(as_jsonl(broken([row], random)))
        tried(lambda: read_rows(folder), "results")
    (folder / "metadata.jsonl").unlink()
    table = b"file_name,text,image_prompts,names,boxes,seed\n0.png,A cat.,0.png,cat,0 0 1 1,3\n"
    for _ in range(ROUNDS):
        (folder / "metadata.csv").write_bytes(torn(table, random))
        tried(lambda: read_rows(folder), "csv")


def _relations() -> list[Path]:
    return sorted(Path(str(find_recipe("mini"))).parent.glob("relations/*.yaml"))


@pytest.mark.parametrize("name", ["hug", "ride", "chase"])
def test_relations(tmp_path: Path, random: np.random.Generator, name: str) -> None:
    (source,) = (path for path in _relations() if path.stem == name)
    whole, path = yaml.safe_load(source.read_text()), tmp_path / f"{name}.yaml"

    def read() -> None:
        relation = load_relation(path)
        for number in range(len(relation.prompts)):
            relation.prompt(["cat"] * len(relation.roles), number)
        check_drawable(relation)

    for _ in range(ROUNDS):
        path.write_bytes(as_yaml(broken(whole, random)))
        tried(read, path.read_bytes()[:2000])


def test_prompts(tmp_path: Path, random: np.random.Generator) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "cat.png")
    thing = {"name": "cat", "image": "cat.png", "box": [0, 0, 1, 1], "subject_scale": 0.5}
    entry = {"text": "A cat hugs.", "objects": [thing], "seed": 1, "width": 512, "steps": 3, "relation": "hug"}
    line = b'A {cat: cat.png} hugs. --d 7 --s 30 --n "low, res" --box 0,0,1,1 --w 512 --images 2 --scale 0.6 --l 5\n'
    config = {"prompt": "a cat", "class_names": ["cat"], "images_path": ["cat.png"], "boxes": [[[0, 0, 1, 1]]]}
    for _ in range(ROUNDS):
        (tmp_path / "a.yaml").write_bytes(as_yaml(broken({"prompts": [entry], "defaults": {"seed": 2}}, random)))
        tried(lambda: read_prompts(tmp_path / "a.yaml"), "prompts")
        (tmp_path / "a.txt").write_bytes(torn(line, random))
        tried(lambda: read_prompts(tmp_path / "a.txt"), "prompts.txt")
        (tmp_path / "b.yaml").write_bytes(as_yaml(broken(config, random)))
        tried(lambda: read_official_config(tmp_path / "b.yaml"), "official config")


def test_benchmarks(tmp_path: Path, random: np.random.Generator) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / f"{name}1.png")
    scene = {"scene": "A {a} and {b}.", "roles": ["a", "b"], "casts": [["cat", "dog"]], "relation": "hug"}
    scenes = {"kind": "scenes", "data": ".", "subjects": {"cat": "cat", "dog": "dog"}, "scenes": [scene]}
    both = {"of": ["cat", "dog"], "prompt": "a {0} and a {1} {place}", "boxes": [[0, 0, 0.5, 1], [0.5, 0, 1, 1]]}
    combinations = {"kind": "combinations", "data": ".", "combinations": [both], "places": ["here"], "classes": {}}
    for content in (scenes, combinations):
        path = tmp_path / "bench.yaml"
        path.write_bytes(as_yaml(content))
        assert load_benchmark(str(path), Wanted()).cases
        for _ in range(ROUNDS):
            path.write_bytes(as_yaml(broken(content, random)))
            tried(lambda path=path: load_benchmark(str(path), Wanted(partial=True)), path.read_bytes()[:1000])


def test_coco(tmp_path: Path, random: np.random.Generator) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    one = {"id": 1, "image_id": 0, "category_id": 3, "bbox": [1, 1, 5, 5], "iscrowd": 0}
    image = {"id": 0, "file_name": "0.png", "width": 8, "height": 8}
    content = {"images": [image], "annotations": [one], "categories": [{"id": 3, "name": "dog"}]}
    for _ in range(ROUNDS):
        (tmp_path / "coco.json").write_bytes(as_json(broken(content, random)))
        tried(lambda: find_pictures(tmp_path, tmp_path / "coco.json"), "coco")


def test_corrections_and_reports(tmp_path: Path, random: np.random.Generator) -> None:
    points = {"target_keypoints": {"3": [0.4, 0.25, 2]}, "image_keypoints": {}}
    content = {"triplets": {"0.png": {"drop": True}, "1.png": {"objects": [points, {}]}}}
    report = {
        "file_name": "0.png",
        "problem": None,
        "backends": {"boxes": "oracle"},
        "gates": {"pose": {"value": 0.3, "limit": 0.1, "passed": True}},
        "margin": 0.2,
        "objects": [],
        "kept": True,
    }
    for _ in range(ROUNDS):
        (tmp_path / "corrections.json").write_bytes(as_json(broken(content, random)))
        tried(lambda: corrections.read_corrections(tmp_path / "corrections.json"), "corrections")
        (tmp_path / "annotations.jsonl").write_bytes(as_jsonl(broken([report], random)))
        tried(lambda: reports.read_reports(tmp_path, {"0.png": ["cat"]}), "reports")


def test_a_bundles_record_and_a_layout_prior(tmp_path: Path, random: np.random.Generator) -> None:
    manifest = {"bundle": "x", "files": {"unet/a.safetensors": {"sha256": "0" * 64, "size": 3}}}
    prior = {"roles": ["a", "b"], "mean": [[0.5, 0.5, 0.2, 0.2]] * 2, "spread": [[0.1] * 4] * 2}
    for _ in range(ROUNDS):
        (tmp_path / "bundle.json").write_bytes(as_json(broken(manifest, random)))
        tried(lambda: read_manifest(tmp_path), "bundle.json")
        text = as_json(broken(prior, random)).decode()
        tried(lambda text=text: LayoutPrior.from_json(text).boxes(), text[:500])


def _header(content: bytes) -> dict[str, Any]:
    length = struct.unpack("<Q", content[:8])[0]
    return dict(json.loads(content[8 : 8 + length]))


def test_loras_and_embeddings(tmp_path: Path, random: np.random.Generator) -> None:
    key = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_q"
    tensors = {f"{key}.lora_A.weight": torch.rand(4, 8), f"{key}.lora_B.weight": torch.rand(8, 4)}
    write_safetensors(tmp_path / "a", tensors, {"rbctl.relation": "hug", "rbctl.words": '["hugs"]'})
    write_safetensors(tmp_path / "b", {"clip_l": torch.rand(1, 8), "clip_g": torch.rand(1, 8)}, {"rbctl.words": "[]"})
    for name, read in (("a", lora.read), ("b", lambda path: embeddings.read(str(path)).words)):
        whole = (tmp_path / name).read_bytes()
        header, length = _header(whole), struct.unpack("<Q", whole[:8])[0]
        for number in range(ROUNDS):
            changed = torn(whole, random)
            if number % 2:
                text = as_json(broken(header, random))
                changed = struct.pack("<Q", len(text)) + text + whole[8 + length :]
            path = tmp_path / f"{name}.safetensors"
            path.write_bytes(changed)
            tried(lambda path=path, read=read: read(path), name)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF"])
def test_pictures(tmp_path: Path, random: np.random.Generator, form: str) -> None:
    encoded = io.BytesIO()
    Image.fromarray(random.integers(0, 256, (20, 30, 3), np.uint8)).save(encoded, format=form)
    for _ in range(ROUNDS):
        (tmp_path / "a").write_bytes(torn(encoded.getvalue(), random))
        tried(lambda: read_image(tmp_path / "a"), form)
        tried(lambda: read_record(tmp_path / "a"), form)


@pytest.mark.filterwarnings("ignore")
def test_tensors_of_torch(tmp_path: Path, random: np.random.Generator) -> None:
    for legacy in (False, True):
        torch.save({"a": torch.rand(3, 4)}, tmp_path / "a", _use_new_zipfile_serialization=not legacy)
        whole = (tmp_path / "a").read_bytes()
        for _ in range(ROUNDS):
            (tmp_path / "b.pth").write_bytes(torn(whole, random))
            tried(lambda: read_torch(tmp_path / "b.pth"), "torch")


def test_shards(tmp_path: Path, random: np.random.Generator) -> None:
    import tarfile

    for mode in ("w", "w:gz", "w:bz2", "w:xz"):
        encoded = io.BytesIO()
        with tarfile.open(fileobj=encoded, mode=mode) as archive:
            for name in ("0.png", "0.json", "1.png"):
                member = tarfile.TarInfo(name)
                member.size = 700
                archive.addfile(member, io.BytesIO(random.bytes(700)))
        for _ in range(ROUNDS):
            (tmp_path / "a.tar").write_bytes(torn(encoded.getvalue(), random))
            tried(lambda: list(samples(tmp_path / "a.tar")), mode)


def test_json_of_any_kind(tmp_path: Path, random: np.random.Generator) -> None:
    whole = as_json({"a": [1, 2.5, None, True, "x"], "b": {"c": []}})
    for _ in range(ROUNDS):
        (tmp_path / "a").write_bytes(torn(whole, random))
        tried(lambda: read_json(tmp_path / "a"), "json")
        tried(lambda: read_jsonl(tmp_path / "a"), "jsonl")
