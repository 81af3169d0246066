"""A tiny set of triplets, and an export of it as text; ``python tests/training_sets.py`` writes the goldens anew."""

from __future__ import annotations

import json
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from commands import call
from PIL import Image

from rbctl.triplets import Triplet, TripletObject
from rbctl.triplets.folder import write

GOLDENS = Path(__file__).parent / "goldens" / "exports"
TRAINED = {
    "ai-toolkit": ("flux2-klein", "qwen-image-edit", "flux-kontext"),
    "musubi": ("flux2-klein", "qwen-image-edit", "flux-kontext"),
    "diffsynth": ("flux2-klein", "qwen-image-edit", "flux-kontext"),
    "simpletuner": ("flux2-klein", "qwen-image-edit", "flux-kontext"),
    "civitai": ("flux2-klein",),
    "diffusers": ("flux2-klein", "flux-kontext"),
}
EVERY = [(trainer, base) for trainer, bases in TRAINED.items() for base in bases]

_TEXTS = [
    ("A red cat is hugging a blue bear.", [("red cat", "left"), ("blue bear", "right")]),
    ("A hen and an owl hug each other.", [("hen", "left"), ("owl", "right")]),
    (
        "A pig and a fox are carrying together a sleepy cow.",
        [("pig", "left"), ("fox", "right"), ("cow", "load")],
    ),
    ("A lion is waving a paw.", [("lion", "waving")]),
    ("A mouse rides on the back of a goose at night.", [("mouse", "rider"), ("goose", "mount")]),
]


def tiny_set(
    folder: Path, texts: Sequence[tuple[str, list[tuple[str, str]]]] = tuple(_TEXTS), suffix: str = ".png"
) -> Path:
    """Triplets of plain colours: targets of 32 x 24 pixels, portraits of 16 x 16; the last object has no mask."""
    sources = folder.with_name(f"{folder.name}-sources")
    sources.mkdir(parents=True)
    triplets = []
    for number, (text, individuals) in enumerate(texts):
        objects = []
        for k, (name, role) in enumerate(individuals):
            x0 = k / len(individuals)
            box = (x0, 0.25, x0 + 1 / len(individuals), 1.0)
            mask = None
            if k + 1 < len(individuals):
                mask = sources / f"{number}-{k}-mask.png"
                inside = np.zeros((24, 32), np.uint8)
                inside[6:, round(x0 * 32) : round(box[2] * 32)] = 255
                Image.fromarray(inside).save(mask)
            image = sources / f"{number}-{k}{suffix}"
            Image.new("RGB", (16, 16), (60 * k + 10, 20 * number, 200)).save(image)
            points = np.zeros((17, 3), np.float32)
            points[2] = (0.5, 0.3, 2)
            objects.append(
                TripletObject(
                    name=name,
                    role=role,
                    image=image,
                    mask=mask,
                    box=box,
                    target_keypoints=points,
                    image_keypoints=points,
                )
            )
        target = sources / f"{number}{suffix}"
        Image.new("RGB", (32, 24), (20 * number, 90, 30)).save(target)
        triplets.append(Triplet(id=str(number), target=target, prompt=text, predicate="", objects=tuple(objects)))
    write(triplets, folder)
    return folder


def listing(folder: Path) -> str:
    """Every file of an export by its path: texts as they are, pictures by size and colours, a ZIP by its names."""
    parts = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"):
        parts.append(f"=== {path.relative_to(folder).as_posix()}\n{_content(path)}\n")
    return "".join(parts)


def _content(path: Path) -> str:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            return "\n".join(archive.namelist())
    if path.suffix in (".png", ".jpg", ".webp"):
        with Image.open(path) as picture:
            colours = picture.convert("RGB").getcolors(32 * 24) or []
            shown = [f"{count} of #{bytes(colour).hex()}" for count, colour in sorted(colours, reverse=True)[:4]]
            return f"{picture.mode} {picture.width} x {picture.height}: {', '.join(shown)}"
    if path.name == "triplets.jsonl":
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for row in rows:
            for entry in row["objects"]:
                del entry["target_keypoints"], entry["image_keypoints"]
        return "\n".join(json.dumps(row) for row in rows)
    return path.read_text(encoding="utf-8").rstrip("\n")


def main() -> None:
    GOLDENS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        source = tiny_set(Path(name) / "set")
        for trainer, base in EVERY:
            out = Path(name) / f"{trainer}-{base}"
            assert call("data", "export", source, out, "--to", trainer, "--base", base).exit_code == 0
            (GOLDENS / f"{trainer}-{base}.txt").write_text(listing(out), encoding="utf-8")


if __name__ == "__main__":
    main()
