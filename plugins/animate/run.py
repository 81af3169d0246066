"""The work of ``rbctl animate``."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from PIL import Image

from rbctl.bundle.fingerprints import fingerprint
from rbctl.device import DTYPES, pick_device, pick_precision
from rbctl.errors import InputError
from rbctl.files import content_hash, read_image, read_jsonl, sha256, write_jsonl
from rbctl.images import list_pictures, open_image
from rbctl.local_pipeline import pipeline_folder
from rbctl.paths import leaves
from rbctl.pictures import read_record
from rbctl.plugins.animate.config import SUFFIXES, AnimateConfig
from rbctl.plugins.animate.pipeline import ImageToVideo, plan_call
from rbctl.plugins.animate.video import check_mp4, write_mp4, write_webp
from rbctl.progress import progress
from rbctl.provenance import check_signer
from rbctl.runs import RUNS, claim

METADATA = "metadata.jsonl"
_LONGEST_STEM = 120
_NOT_PIXELS = ("picture", "model")  # names of what is hashed


@dataclass(frozen=True)
class Clip:
    """One clip to make.

    Attributes:
        name: of its files, without suffix: its picture's, its seed, and what names all that makes it.
        record: all that makes it, also told in an MP4's comment.
    """

    picture: Path
    name: str
    record: dict[str, Any]


def run(config: AnimateConfig) -> Path:
    """Make the clips of all pictures; returns the folder. What is there already, made alike, stays.

    Raises:
        InputError: what the user can mend; what exists is kept.
    """
    check_signer()
    suffixes = SUFFIXES[config.format]
    if ".mp4" in suffixes:
        check_mp4()
    folder = pipeline_folder(config.model)
    call = plan_call(folder, config)
    device = pick_device(config.device)
    precision = pick_precision(config.precision, device)
    texts = texts_of(config.pictures, config.prompt)
    model = {"model": folder.resolve().name, "model_fingerprint": fingerprint(folder), "precision": precision}
    facts = {**dataclasses.asdict(call), **model}
    clips = [
        _clip(picture, text, seed, facts)
        for picture, text in texts.items()
        for seed in range(config.seed, config.seed + config.clips)
    ]
    source = config.pictures.resolve()
    output = config.output or RUNS / "animate" / (source.stem if source.is_file() else source.name)
    with claim(output):
        waiting = [clip for clip in clips if not all((output / f"{clip.name}{s}").is_file() for s in suffixes)]
        if waiting:
            pipeline = ImageToVideo(folder, call, config, device, DTYPES[precision])
            with progress(len(waiting) * call.steps, "animate") as bar:
                for clip in waiting:
                    picture = pipeline.fitted(read_image(clip.picture))
                    frames = pipeline.clip(picture, clip.record["text"], clip.record["seed"], bar.update)
                    _write(output, clip, suffixes, frames)
        rows = [{"file_name": clip.name + suffixes[0], **clip.record} for clip in clips]
        write_jsonl(output / METADATA, rows)
    click.echo(f"{len(waiting)} made, {len(clips) - len(waiting)} were there", err=True)
    return output


def _write(output: Path, clip: Clip, suffixes: Sequence[str], frames: Sequence[Image.Image]) -> None:
    fps = clip.record["fps"]
    if ".mp4" in suffixes:
        write_mp4(output / f"{clip.name}.mp4", frames, fps, json.dumps(clip.record, ensure_ascii=False))
    if ".webp" in suffixes:
        write_webp(output / f"{clip.name}.webp", frames, fps)


def texts_of(pictures: Path, prompt: str | None) -> dict[Path, str]:
    """The pictures to animate, each with what its clip shows.

    A folder with a metadata.jsonl has the pictures that are listed there, so no sheets; any other has all its pictures.

    Args:
        prompt: of all clips; None for each picture's own: of its line, its record or its parameters.

    Raises:
        InputError: there are no pictures, or one says nothing and there is no prompt.
    """
    if not pictures.exists():
        raise InputError(f"{pictures}: no such folder or picture; give what 'rbctl sample' wrote")
    listed: dict[Path, object] = {}
    if pictures.is_file():
        listed[pictures] = None
    elif (pictures / METADATA).is_file():
        for number, row in enumerate(read_jsonl(pictures / METADATA), 1):
            name = row.get("file_name")
            if not isinstance(name, str) or leaves(name) or not (pictures / name).is_file():
                raise InputError(f"{pictures / METADATA}:{number}: file_name: a picture in the folder was expected")
            listed[pictures / name] = row.get("text")
    else:
        listed = dict.fromkeys(list_pictures(pictures))
    if not listed:
        raise InputError(f"{pictures}: no pictures; give a folder of 'rbctl sample', or of any pictures")
    texts = {picture: prompt or _plain(text) or _own_text(picture) for picture, text in listed.items()}
    for picture, text in texts.items():
        if not text:
            raise InputError(f"{picture}: does not say what it shows; say what happens with --prompt")
    return texts


def _own_text(picture: Path) -> str:
    """What a picture says of itself: our record, else the parameters that galleries read, else nothing."""
    record = read_record(picture) or {}
    if text := _plain(record.get("text")):
        return text
    with open_image(picture) as opened:
        parameters = opened.info.get("parameters")
    return _plain(re.split(r"\n(?=Negative prompt:|Steps: )", parameters)[0]) if isinstance(parameters, str) else ""


def _plain(text: object) -> str:
    """A prompt in words alone, without the tags of LoRAs."""
    return " ".join(re.sub(r"<lora:[^>]*>", " ", text).split()) if isinstance(text, str) else ""


def _clip(picture: Path, text: str, seed: int, facts: Mapping[str, Any]) -> Clip:
    record = {"picture": picture.name, "picture_hash": sha256(picture), "text": text, "seed": seed, **facts}
    made_from = {name: value for name, value in record.items() if name not in _NOT_PIXELS}
    name = f"{picture.stem[:_LONGEST_STEM]}-{seed}-{content_hash(made_from)[:12]}"
    return Clip(picture=picture, name=name, record=record)
