"""What the steps find in pictures. A step runs over all of them; its model is loaded once, and unloaded after it."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image

from rbctl.errors import InputError
from rbctl.files import content_hash, read_image
from rbctl.plugins.annotate.backends import Backend
from rbctl.plugins.annotate.cache import Arrays, Cache
from rbctl.plugins.annotate.config import STEPS, AnnotateConfig
from rbctl.plugins.annotate.pictures import Picture
from rbctl.plugins.annotate.steps import Detections, as_arrays, misfit, select
from rbctl.progress import progress


@dataclass
class Predictions:
    """The results of all steps, made by ``run`` and cached.

    Attributes:
        backends: by their step.
        problems: why a picture cannot be annotated.
    """

    config: AnnotateConfig
    backends: Mapping[str, Backend]
    cache: Cache
    device: torch.device
    problems: dict[Picture, str] = field(default_factory=dict)

    def run(self, pictures: Sequence[Picture], without_text: Sequence[Picture]) -> None:
        """Do what is not done yet.

        Args:
            without_text: those whose caption is wanted.

        Raises:
            InputError: a backend cannot be loaded, or returns something else than it should.
        """
        for_step = {s: without_text if s == "captions" else pictures for s in STEPS if s in self.backends}
        waiting = [step for step, own in for_step.items() if self._missing(step, own)]
        for step in waiting[1:]:  # weights of a later step may be damaged: told before the hours of those before it
            self.backends[step].load(self.config, self.device)
            self._release()
        for step, own in for_step.items():
            self._run_step(step, own)

    def individuals(self, picture: Picture) -> tuple[Detections, int] | None:
        """Who is in a picture, and how many more; None where the step ``boxes`` has not been done."""
        arrays = self.load("boxes", picture)
        if arrays is None:
            return None
        return select(Detections(**arrays), len(picture.names), self.config.box_overlap)

    def load(self, step: str, picture: Picture) -> Arrays | None:
        """What a step found; None where it has not been done, or what was kept does not fit."""
        count, mask_bytes = 0, 0
        if step in ("masks", "keypoints", "identity"):
            individuals = self.individuals(picture)
            if individuals is None:
                return None
            count = len(individuals[0].boxes)
        if step == "masks":
            mask_bytes = count * picture.size[0] * picture.size[1]
        return self.cache.load(
            step, picture.path, self._key(step, picture), lambda a: misfit(step, a, count, picture.size), mask_bytes
        )

    def _key(self, step: str, picture: Picture) -> str:
        """Names what a result depends on: the picture, the backend, the steps before it and their settings."""
        facts: tuple[Any, ...] = (picture.digest, picture.names)
        if step in ("masks", "keypoints"):
            facts = (self._key("boxes", picture), self.config.box_overlap)
        elif step == "identity":
            facts = (self._key("masks", picture),)
        return content_hash([*facts, self.backends[step].fingerprint])[:20]

    def _missing(self, step: str, pictures: Sequence[Picture]) -> list[Picture]:
        return [p for p in pictures if p not in self.problems and self.load(step, p) is None]

    def _release(self) -> None:
        """Give back the memory of a backend that nothing holds any more."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _run_step(self, step: str, pictures: Sequence[Picture]) -> None:
        readable = [picture for picture in pictures if picture not in self.problems]
        missing = self._missing(step, pictures)
        if not missing:
            return
        backend = self.backends[step].load(self.config, self.device)
        with progress(len(readable), step, initial=len(readable) - len(missing), unit="picture") as bar:
            for batch, images in self._batches(missing):
                inputs = [self._input(step, picture) for picture in batch]
                ready = [k for k, value in enumerate(inputs) if value is not None]
                if ready:
                    results = backend([images[k] for k in ready], [inputs[k] for k in ready])
                    if len(results) != len(ready):
                        raise self._wrong(step, f"{len(results)} results for {len(ready)} pictures")
                    for k, result in zip(ready, results, strict=True):
                        arrays = as_arrays(step, result)
                        if problem := misfit(step, arrays, len(inputs[k]), images[k].size):
                            raise self._wrong(step, problem)
                        self.cache.save(step, batch[k].path, self._key(step, batch[k]), arrays)
                bar.update(len(batch))
        del backend
        self._release()

    def _wrong(self, step: str, result: str) -> InputError:
        return InputError(f"--backend {step}={self.backends[step].name}: returned {result}")

    def _batches(self, pictures: Sequence[Picture]) -> Iterator[tuple[list[Picture], list[Image.Image]]]:
        """Pictures of one size together, so that no backend pads one for another's sake."""
        batch: list[Picture] = []
        images: list[Image.Image] = []
        for picture in sorted(pictures, key=lambda picture: picture.size):
            try:
                image = read_image(picture.path)
            except InputError as error:
                self.problems[picture] = str(error)
                continue
            if batch and (len(batch) == self.config.batch_size or image.size != images[0].size):
                yield batch, images
                batch, images = [], []
            batch.append(picture)
            images.append(image)
        if batch:
            yield batch, images

    def _input(self, step: str, picture: Picture) -> Any:
        """What a backend gets beside a picture; None where nobody was found in it."""
        if step in ("boxes", "captions"):
            return picture.names
        individuals = self.individuals(picture)
        if individuals is None or not len(individuals[0].boxes):
            return None
        if step != "identity":
            return individuals[0].boxes
        arrays = self.load("masks", picture)
        if arrays is None or not arrays["masks"].any((1, 2)).all():
            return None
        return arrays["masks"]
