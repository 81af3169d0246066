"""Pictures that say how they were made, and sheets of them."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from rbctl import __version__
from rbctl.errors import InputError
from rbctl.files import drop_partial, png_bytes, write_bytes
from rbctl.images import open_image
from rbctl.parsing import parse_json
from rbctl.provenance import MADE_BY_AI, SourceType, signed, xmp_packet
from rbctl.schedulers import sampler_and_schedule

PAGE = 50  # rows of a sheet on a page
_GAP = 8  # pixels around each picture of a sheet
_CAPTION = 14  # pixels, height of the caption's letters
_LINE = 20
_MOST_LINES = 3

_PAPER = (255, 255, 255)
COLOURS = ((37, 99, 235), (234, 88, 12), (22, 163, 74), (192, 38, 211), (202, 138, 4), (8, 145, 178))  # per object


@dataclass(frozen=True)
class UsedLora:
    """A LoRA that a picture was drawn with, as galleries want to know it.

    Attributes:
        name: of its file, without the ending.
        tensors_hash: SHA-256 of the tensors alone, Civitai's AutoV3; stable where metadata change.
        file_hash: SHA-256 of the file, Civitai's AutoV2.
    """

    name: str
    weight: float
    tensors_hash: str
    file_hash: str

    @property
    def tag(self) -> str:
        return f"<lora:{self.plain_name}:{self.weight:g}>"

    @property
    def plain_name(self) -> str:
        """Without the marks at which readers split."""
        return re.sub(r"[<>:,\"{}]", "_", self.name)


def parameters_text(
    text: str,
    *,
    negative_prompt: str,
    steps: int,
    guidance_scale: float,
    seed: int,
    width: int,
    height: int,
    model: str,
    scheduler: str,
    model_hash: str | None = None,
    vae: str | None = None,
    vae_hash: str | None = None,
    loras: Sequence[UsedLora] = (),
    extras: Mapping[str, object] | None = None,
) -> str:
    """The ``parameters`` text that stable-diffusion-webui and the galleries made for it read.

    Args:
        width, height: pixels.
        scheduler: a name of :mod:`rbctl.schedulers`, or a class of diffusers.
        model_hash: of the base model; galleries show its first ten digits.
        vae, vae_hash: name and SHA-256 of the file of a VAE in place of the model's own.
        loras: their tags go behind the text, their hashes into the last line.
        extras: further facts for the last line, as {"Relation": "hug"}; None values are left out.
    """
    sampler, schedule = sampler_and_schedule(scheduler)
    facts: dict[str, object] = {
        "Steps": steps,
        "Sampler": sampler,
        "Schedule type": schedule or None,
        "CFG scale": f"{guidance_scale:g}",
        "Seed": seed,
        "Size": f"{width}x{height}",
        "Model hash": model_hash[:10] if model_hash else None,
        "Model": model,
        "VAE hash": vae_hash[:10] if vae_hash else None,
        "VAE": vae,
        **(extras or {}),
        "Lora hashes": ", ".join(f"{used.plain_name}: {used.tensors_hash[:12]}" for used in loras) or None,
        "Version": f"rbctl {__version__}",
    }
    last = ", ".join(f"{key}: {_quoted(value)}" for key, value in facts.items() if value is not None)
    hashes = {"model": model_hash[:10]} if model_hash else {}
    hashes |= {"vae": vae_hash[:10]} if vae_hash else {}
    hashes |= {f"lora:{used.plain_name}": used.file_hash[:10] for used in loras}
    if hashes:
        last += f", Hashes: {json.dumps(hashes)}"
    text = " ".join([text, *(used.tag for used in loras)])
    negative = f"Negative prompt: {negative_prompt}\n" if negative_prompt else ""
    return f"{text}\n{negative}{last}"


def _quoted(value: object) -> str:
    """Readers split the last line at commas and colons, so a value with one is written as a JSON string."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ",:\n") else text


def save_png(
    image: Image.Image,
    path: Path,
    parameters: str | None = None,
    record: Mapping[str, Any] | None = None,
    source_type: SourceType | None = MADE_BY_AI,
) -> None:
    """Write a picture as PNG, atomically, with the marks of AI-made media.

    Args:
        parameters: the text chunk that galleries take for a prompt, so a sheet of pictures has none.
        record: the text chunk ``rbctl``, as JSON.
        source_type: what it shows, if not a single picture that networks made; None for no marks.

    Raises:
        InputError: the disk is full, the folder cannot be written, or see :func:`rbctl.provenance.signed`.
    """
    chunks = PngInfo()
    if parameters is not None:
        chunks.add_text("parameters", parameters)
    if record is not None:
        chunks.add_text("rbctl", json.dumps(record))
    if source_type is None:
        write_bytes(path, png_bytes(image, chunks))
        return
    chunks.add_itxt("XML:com.adobe.xmp", xmp_packet(source_type))
    write_bytes(path, signed(png_bytes(image, chunks), "image/png", source_type))


def read_record(path: Path) -> dict[str, Any] | None:
    """The record that ``save_png`` put into a picture; None where the file is missing, broken or not ours."""
    try:
        with open_image(path) as opened:
            opened.load()  # a picture cut short is no finished picture, even if its head is whole
            record = parse_json(str(opened.info.get("rbctl", "null")), str(path))
    except InputError:
        return None
    return record if isinstance(record, dict) else None


def grid(images: Sequence[Image.Image], columns: int, captions: Sequence[str] | None = None) -> Image.Image:
    """Pictures in rows of ``columns`` on white, each in the middle of its cell, with its caption under it.

    The cell is as large as the largest picture; nothing is resized. Captions are wrapped, and cut after three lines.

    Raises:
        ValueError: no pictures, no columns, or another number of captions than pictures.
    """
    if not images or columns < 1:
        raise ValueError("images and columns: one or more were expected")
    if captions is not None and len(captions) != len(images):
        raise ValueError(f"captions: {len(captions)} for {len(images)} images")
    columns = min(columns, len(images))
    width, height = max(i.width for i in images), max(i.height for i in images)
    wrapped = [_wrap(caption, width) for caption in captions or [""] * len(images)]
    rows = [range(start, min(start + columns, len(images))) for start in range(0, len(images), columns)]
    lines = [max(len(wrapped[k]) for k in row) for row in rows]  # a row without captions needs no room for them
    size = _GAP + columns * (width + _GAP), _GAP + sum(height + _LINE * n + _GAP for n in lines)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    top = _GAP
    for row, count in zip(rows, lines, strict=True):
        for column, k in enumerate(row):
            left = _GAP + column * (width + _GAP)
            image = images[k]
            sheet.paste(image.convert("RGB"), (left + (width - image.width) // 2, top + (height - image.height) // 2))
            _write(draw, wrapped[k], top + height, left, width)
        top += height + _LINE * count + _GAP
    return sheet


def save_sheet(
    rows: Iterable[Image.Image], path: Path, source_type: SourceType | None, captions: Iterable[str] | None = None
) -> list[Path]:
    """Write rows below each other as pages of ``PAGE`` rows: grid.png, grid-2.png and so on.

    Where ``rows`` draws them when asked, no more than two pages are in memory. Pages of a longer sheet are removed.

    Args:
        path: of the first page.
        captions: one under each row.
        source_type: as in ``save_png``.

    Returns:
        The pages' paths.

    Raises:
        InputError: as ``save_png``, or another picture has the name of a page; the pages before are written.
    """

    def place(number: int) -> Path:
        return path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")

    def is_ours(number: int) -> bool:
        return read_record(place(number)) == {"page": number}

    rows, texts, written = iter(rows), iter(captions or itertools.repeat("")), list[Path]()
    while page := list(itertools.islice(rows, PAGE)):
        number = len(written) + 1
        if number > 1 and place(number).exists() and not is_ours(number):
            raise InputError(f"{place(number)}: is no page of {path.name}; move it away, or write to another file")
        drop_partial(place(number))
        sheet = grid(page, 1, list(itertools.islice(texts, len(page))))
        save_png(sheet, place(number), record={"page": number}, source_type=source_type)
        written.append(place(number))
    number = len(written) + 1
    while is_ours(number):
        place(number).unlink()
        number += 1
    return written


def sheet_row(
    image_prompts: Sequence[Image.Image], pictures: Sequence[Image.Image], caption: str = "", height: int = 256
) -> Image.Image:
    """One row of a sheet: image prompts, a line, the pictures made from them, and a caption under it all.

    Rows of the same number of pictures stack by ``grid(rows, columns=1)``.

    Args:
        height: pixels; every picture is resized to it, keeping its shape; one that would be wider than twice that
            is made smaller, in the middle of the row.

    Raises:
        ValueError: there are no pictures.
    """
    if not pictures:
        raise ValueError("pictures: one or more were expected")
    left, right = ([_fitted(i, height) for i in side] for side in (image_prompts, pictures))
    width = sum(i.width + _GAP for i in (*left, *right)) + _GAP
    wrapped = _wrap(caption, width)
    row = Image.new("RGB", (width, height + _LINE * len(wrapped)), "white")
    draw = ImageDraw.Draw(row)
    x = 0
    for number, image in enumerate((*left, *right)):
        if left and number == len(left):
            draw.line((x, 0, x, height - 1), fill="black", width=2)
            x += _GAP
        row.paste(image, (x, (height - image.height) // 2))
        x += image.width + _GAP
    _write(draw, wrapped, height)
    return row


def _write(draw: ImageDraw.ImageDraw, lines: Sequence[str], top: float, left: float = 0, width: float = 0) -> None:
    """A caption below ``top``, in the middle of a width, or from the left where there is none."""
    font = ImageFont.load_default(_CAPTION)
    for number, line in enumerate(lines):
        indent = (width - draw.textlength(line, font)) / 2 if width else 0
        draw.text((left + indent, top + 2 + number * _LINE), line, fill="black", font=font)


def _fitted(image: Image.Image, height: int) -> Image.Image:
    factor = min(height / image.height, 2 * height / image.width)
    size = max(1, round(image.width * factor)), max(1, round(image.height * factor))
    return image.convert("RGB").resize(size, Image.Resampling.BICUBIC)


def _wrap(caption: str, width: int) -> list[str]:
    """The caption in lines no wider than ``width`` pixels, as far as single words allow."""
    font = ImageFont.load_default(_CAPTION)
    lines: list[str] = []
    for word in caption.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    if len(lines) > _MOST_LINES:
        lines = [*lines[: _MOST_LINES - 1], lines[_MOST_LINES - 1] + " …"]
    return [_cut(line, width) for line in lines]


def _cut(line: str, width: int) -> str:
    font = ImageFont.load_default(_CAPTION)
    while len(line) > 1 and font.getlength(line) > width:
        line = line[:-2] + "…"
    return line


def write_tags(
    image: Image.Image,
    tags: Sequence[str],
    boxes: Sequence[tuple[float, ...]] | np.ndarray,
    colours: Sequence[tuple[int, int, int]],
) -> None:
    """Write each object's name on top of its box, or in it where there is no room, lower where another name stands."""
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(size=15)
    taken: list[tuple[float, float, float, float]] = []
    for tag, box, colour in zip(tags, boxes, colours, strict=True):
        width, height = pen.textlength(tag, font) + 14, 24
        x = max(0, min(box[0] * image.width, image.width - width))
        y = max(0, box[1] * image.height - height)
        while any(x < x1 and x0 < x + width and y < y1 and y0 < y + height for x0, y0, x1, y1 in taken):
            y += height
        taken.append((x, y, x + width, y + height))
        pen.rectangle((x, y, x + width, y + height), fill=colour)
        pen.text((x + 7, y + height / 2), tag, fill=_PAPER, font=font, anchor="lm")
