"""The page's pictures: asked of RelationPipeline in a thread, with previews, and kept with their settings."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import queue
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Interval, MaxLen, MinLen
from PIL import Image

from rbctl import any_lora, denoising, formats, pictures
from rbctl.any_lora import AnyLora
from rbctl.bundle.fingerprints import generator_fingerprint
from rbctl.bundle.recipe import sampling_defaults
from rbctl.errors import InputError
from rbctl.files import read_jsonl, sha256, write_jsonl
from rbctl.pipeline import RelationPipeline, boxes_by_words
from rbctl.plugins.ui.workspace import MOST_INDIVIDUALS, Individual, Workspace
from rbctl.relations import Box, Relation
from rbctl.runs import claim
from rbctl.shortcuts import QUALITY, Quality

_PREVIEWS = 6  # of a picture at most: to decode one takes about as long as a step
_MOST_WORDS = 2000  # characters of a prompt
_Words = Annotated[str, MaxLen(_MOST_WORDS)]


@dataclass(frozen=True, kw_only=True)
class Placed:
    """An individual and its box, as a picture's record has them."""

    name: _Words
    image: _Words
    box: Box


@dataclass(frozen=True, kw_only=True)
class PictureSettings:
    """All that one picture is asked for with; None leaves it to the bundle and the quality.

    Attributes:
        prompt: with each individual's name in braces.
        relation: that was chosen or typed; only the words of the prompt are drawn.
        objects: the individuals.
        loras: weights by the files' names in the work folder.
    """

    prompt: Annotated[str, MinLen(1), MaxLen(_MOST_WORDS)]
    relation: _Words = ""
    objects: Annotated[tuple[Placed, ...], MinLen(1), MaxLen(MOST_INDIVIDUALS)]
    loras: Mapping[str, Annotated[float, Interval(ge=-10, le=10)]] = dataclasses.field(default_factory=dict)
    seed: Annotated[int, Interval(ge=0, le=2**62)] = 0
    quality: Quality = QUALITY
    steps: Annotated[int, Interval(ge=1, le=1000)] | None = None
    guidance_scale: Annotated[float, Interval(ge=0, le=100)] | None = None
    image_scale: Annotated[float, Interval(ge=0, le=10)] | None = None
    negative_prompt: _Words | None = None


@dataclass(frozen=True)
class Step:
    """A step of a picture is done.

    Attributes:
        number: of the picture, from 0.
        share: of its steps that are done, 0 to 1.
        preview: what it looks like by now; None between previews.
    """

    number: int
    share: float
    preview: Image.Image | None


@dataclass(frozen=True)
class Made:
    """A picture is done and kept.

    Attributes:
        number: of the picture, from 0.
    """

    number: int
    path: Path


class _Stopped(Exception):
    """The user asked to stop."""


class Sampler:
    """Samples with one pipeline, a picture at a time.

    Args:
        bundle: a name or folder; it is loaded with the first picture.
    """

    def __init__(self, workspace: Workspace, bundle: str) -> None:
        self.workspace = workspace
        self.bundle = bundle
        self._pipeline: RelationPipeline | None = None
        self._lock = threading.Lock()

    def boxes(self, prompt: str, names: Sequence[str], loras: Sequence[str], relation: Relation | None) -> list[Box]:
        """Boxes for a prompt's individuals: by the LoRAs' layout prior or the relation. No network is asked.

        Args:
            loras: names in the work folder.
        """
        words = prompt.replace("{", "").replace("}", "")
        return list(
            boxes_by_words(words, names, [any_lora.read(self.workspace.lora(name)) for name in loras], relation)
        )

    def sample(self, wanted: Sequence[PictureSettings], stop: threading.Event) -> Iterator[Step | Made]:
        """Make pictures, one after another.

        Args:
            stop: once it is set, sampling ends with the step; what is made stays.

        Raises:
            InputError: settings are wrong, or the bundle is.
        """
        events: queue.Queue[Step | Made | Exception | None] = queue.Queue()

        def work() -> None:
            try:
                with self._lock:
                    for number, settings in enumerate(wanted):
                        events.put(Made(number, self._sample(number, settings, stop, events)))
            except _Stopped:
                pass
            except Exception as error:  # whatever ends the thread is raised in the caller
                events.put(error)
            finally:
                events.put(None)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            while (event := events.get()) is not None:
                if isinstance(event, Exception):
                    raise event
                yield event
        finally:
            stop.set()
            thread.join()

    def release(self) -> None:
        """Let the networks go, and their memory with them: a stage is about to need it."""
        with self._lock:
            if self._pipeline is not None and self._pipeline.device.type == "cuda":
                self._pipeline = None
                torch.cuda.empty_cache()

    def _sample(self, number: int, settings: PictureSettings, stop: threading.Event, events: Any) -> Path:
        if stop.is_set():
            raise _Stopped
        pipe = self._loaded()
        files = {name: self.workspace.lora(name) for name in settings.loras}
        pipe.unload_lora_weights()
        for name, path in files.items():
            pipe.load_lora_weights(path, adapter_name=name)
        pipe.set_adapters(list(files), [settings.loras[name] for name in files])

        defaults, _ = sampling_defaults(pipe.bundle.folder, settings.quality)
        steps = _first(settings.steps, defaults["steps"])

        def after_step(pipe: RelationPipeline, step: int, timestep: Any, now: dict[str, torch.Tensor]) -> None:
            if stop.is_set():
                raise _Stopped
            due = step % max(1, steps // _PREVIEWS) == 0
            preview = denoising.to_pictures(pipe.bundle.decode_latents(now["latents"]))[0] if due else None
            events.put(Step(number, min(1.0, (step + 1) / steps), preview))

        individuals = {entry.name: Individual(entry.name, entry.image) for entry in settings.objects}
        image = pipe(
            settings.prompt,
            images={name: self.workspace.picture_of(individual) for name, individual in individuals.items()},
            boxes={entry.name: entry.box for entry in settings.objects},
            negative_prompt=settings.negative_prompt,
            num_inference_steps=settings.steps,
            guidance_scale=settings.guidance_scale,
            image_scale=settings.image_scale,
            quality=settings.quality,
            generator=torch.Generator().manual_seed(settings.seed),
            callback_on_step_end=after_step,
        ).images[0]
        return self._keep(image, settings, pipe, defaults, files)

    def _loaded(self) -> RelationPipeline:
        if self._pipeline is None:
            self._pipeline = RelationPipeline.from_pretrained(self.bundle)
            self._pipeline.set_progress_bar_config(disable=True)
        return self._pipeline

    def _keep(
        self,
        image: Image.Image,
        settings: PictureSettings,
        pipe: RelationPipeline,
        defaults: Mapping[str, Any],
        files: Mapping[str, Path],
    ) -> Path:
        """Write a picture with its record and its line of metadata.jsonl, as ``rbctl sample`` does."""
        folder = pipe.bundle.folder
        words = settings.prompt.replace("{", "").replace("}", "")
        record: dict[str, Any] = {
            "text": words,
            **dataclasses.asdict(settings),
            "bundle": folder.resolve().name,
            "bundle_fingerprint": generator_fingerprint(folder),
            "scheduler": type(pipe.scheduler).__name__,
        }
        digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
        slug = re.sub(r"\W+", "-", words.lower())[:40].strip("-") or "picture"
        path = self.workspace.pictures / f"{slug}-{settings.seed}-{digest[:12]}.png"
        parameters = pictures.parameters_text(
            words,
            negative_prompt=str(_first(settings.negative_prompt, defaults["negative_prompt"])),
            steps=_first(settings.steps, defaults["steps"]),
            guidance_scale=_first(settings.guidance_scale, defaults["guidance_scale"]),
            seed=settings.seed,
            width=image.width,
            height=image.height,
            model=record["bundle"],
            scheduler=record["scheduler"],
            model_hash=record["bundle_fingerprint"],
            loras=[
                _used(file, weight, files) for file, weight in zip(pipe.loras, settings.loras.values(), strict=True)
            ],
            extras={"Relation": settings.relation or None},
        )
        with claim(self.workspace.pictures):
            pictures.save_png(image, path, parameters, record)
            listed = self.workspace.pictures / "metadata.jsonl"
            rows = [row for row in read_jsonl(listed) if row.get("file_name") != path.name] if listed.is_file() else []
            write_jsonl(listed, [*rows, {"file_name": path.name, **record}])
        return path


def settings_of(path: Path) -> tuple[PictureSettings, dict[str, Any]]:
    """What a picture of the page was made with, and its whole record.

    Raises:
        InputError: it is no picture of the page's.
    """
    record = pictures.read_record(path)
    if record is None:
        raise InputError(f"{path.name}: has no settings in it; choose a picture that this page made")
    known = {field.name for field in dataclasses.fields(PictureSettings)}
    settings = {key: value for key, value in record.items() if key in known}
    return formats.read(PictureSettings, settings, path.name), record


def _used(file: AnyLora, weight: float, files: Mapping[str, Path]) -> pictures.UsedLora:
    path = file.path or next(iter(files.values()))
    return pictures.UsedLora(path.stem, weight, any_lora.tensors_hash(file), sha256(path))


def _first(value: Any, default: Any) -> Any:
    return default if value is None else value
