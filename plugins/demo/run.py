"""Write the demo: a bundle, triplets, pictures and prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image

from rbctl.bundle.random_weights import write_tiny
from rbctl.files import write_jsonl, write_png, write_text
from rbctl.runs import claim

from .drawing import Creature, draw_alone, draw_hug

PAIRS = (
    (Creature("red", "cat"), Creature("blue", "bear")),
    (Creature("green", "rabbit"), Creature("orange", "dog")),
    (Creature("purple", "bear"), Creature("yellow", "cat")),
    (Creature("brown", "dog"), Creature("grey", "rabbit")),
    (Creature("pink", "cat"), Creature("white", "dog")),
)
# Individuals the triplets do not show; the relation must carry over to them.
NEW = (Creature("grey", "cat"), Creature("brown", "bear"), Creature("yellow", "rabbit"), Creature("red", "dog"))


def _article(name: str) -> str:
    return "an" if name[0] in "aeiou" else "a"


def _plain(keypoints: np.ndarray) -> list[list[float]]:
    return [[round(float(x), 5), round(float(y), 5), int(v)] for x, y, v in keypoints]


def write_triplets(folder: Path) -> None:
    """The drawn triplets of "hug" in the native form."""
    rows: list[dict[str, Any]] = []
    for number, pair in enumerate(PAIRS):
        target = draw_hug(*pair, number)
        write_png(folder / f"{number}.png", target.picture)
        objects = []
        for k, (creature, role) in enumerate(zip(pair, ("subject", "object"), strict=True)):
            alone = draw_alone(creature, number + 1 + k)
            image, mask = f"images/{number}-{k}.png", f"masks/{number}-{k}.png"
            write_png(folder / image, alone.picture)
            write_png(folder / mask, Image.fromarray(target.masks[k].astype(np.uint8) * 255))
            objects.append(
                {
                    "name": creature.name,
                    "role": role,
                    "image": image,
                    "mask": mask,
                    "box": list(target.boxes[k]),
                    "target_keypoints": _plain(target.keypoints[k]),
                    "image_keypoints": _plain(alone.keypoints[0]),
                }
            )
        first, second = (creature.name for creature in pair)
        rows.append(
            {
                "file_name": f"{number}.png",
                "text": f"{_article(first).capitalize()} {first} is hugging {_article(second)} {second}.",
                "predicate": "hugging",
                "objects": objects,
            }
        )
    write_jsonl(folder / "metadata.jsonl", rows)


def write_prompts(folder: Path) -> None:
    """Pictures of new individuals, and ``prompts.txt`` that lets them hug."""
    lines = ["# {name: picture} marks an object; --d seed, --s steps, --w --h pixels"]
    for k, creature in enumerate(NEW):
        write_png(folder / "pictures" / f"{creature.name.replace(' ', '-')}.png", draw_alone(creature, k).picture)
    for number, (a, b) in enumerate(zip(NEW[::2], NEW[1::2], strict=True)):
        first, second = (f"{{{c.name}: pictures/{c.name.replace(' ', '-')}.png}}" for c in (a, b))
        words = f"{_article(a.name).capitalize()} {first} is hugging {_article(b.name)} {second}"
        lines.append(f"{words} --w 128 --h 128 --d {7 + number} --s 8")
    write_text(folder / "prompts.txt", "\n".join(lines) + "\n")


def run(output: Path, seed: int) -> None:
    """Write everything into ``output``; the same command again writes the same bytes.

    Raises:
        InputError: the folder cannot be written, or another run writes there.
    """
    with claim(output):
        write_tiny(output / "tiny-sdxl", seed)
        write_triplets(output / "hug")
        write_prompts(output)
    click.echo(
        f"{output / 'tiny-sdxl'}: a bundle of random weights. Its pictures are noise: the road, not the quality."
    )
    click.echo(f"{output / 'hug'}: {len(PAIRS)} drawn triplets of 'hug'")
    click.echo(f"{output / 'prompts.txt'}: {len(NEW) // 2} prompts of {len(NEW)} other animals")
