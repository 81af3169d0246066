"""The steps, one after the other over all pictures: a step's model is loaded once, and let go before the next."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from rbctl.errors import InputError
from rbctl.images import read_image
from rbctl.plugins.annotate.backends import Chosen
from rbctl.plugins.annotate.config import STEPS, AnnotateConfig
from rbctl.plugins.annotate.pictures import Picture, keys
from rbctl.plugins.annotate.steps import FIELDS, Found, clipped, distinct, misfit, wanted
from rbctl.plugins.annotate.store import Store
from rbctl.progress import progress


@dataclass
class Work:
    """The steps of one run.

    Attributes:
        problems: why a picture cannot be annotated.
    """

    config: AnnotateConfig
    backends: Mapping[str, Chosen]
    store: Store
    device: torch.device
    problems: dict[Picture, str] = field(default_factory=dict)

    def run(self, pictures: Sequence[Picture], untold: Sequence[Picture]) -> None:
        """Do what is not done yet.

        Args:
            untold: those whose caption is wanted.

        Raises:
            InputError: a backend cannot be loaded, or returns something else than it should.
        """
        for step in STEPS:
            if step in self.backends:
                self._step(step, untold if step == "captions" else pictures)

    def found(self, picture: Picture) -> tuple[Found, int] | None:
        """Who is in a picture, and how many more; None where the step has not been done."""
        content = self.load("boxes", picture)
        if content is None:
            return None
        found = distinct(Found(content["boxes"], content["scores"]), self.config.box_overlap)
        return wanted(found, len(picture.names))

    def load(self, step: str, picture: Picture) -> dict[str, np.ndarray] | None:
        """What a step found; None where it has not been done, or what was kept does not fit."""
        count, area = 0, 0
        if step in ("masks", "keypoints", "identity"):
            if (individuals := self.found(picture)) is None:
                return None
            count = len(individuals[0].boxes)
        if step == "masks":
            area = count * picture.size[0] * picture.size[1]
        return self.store.load(
            step, picture.path, self._name(step, picture), lambda a: misfit(step, a, count, picture.size), area
        )

    def _name(self, step: str, picture: Picture) -> str:
        return keys(picture, self.backends, self.config)[step]

    def _step(self, step: str, pictures: Sequence[Picture]) -> None:
        able = [picture for picture in pictures if picture not in self.problems]
        missing = [p for p in able if self.load(step, p) is None]
        if not missing:
            return
        backend = self.backends[step].load(self.config, self.device)
        with progress(len(able), step, initial=len(able) - len(missing), unit="picture") as bar:
            for batch, images in self._batches(missing):
                ready = [(p, i) for p, i in zip(batch, images, strict=True) if self._input(step, p) is not None]
                if ready:
                    inputs = [self._input(step, picture) for picture, _ in ready]
                    results = backend([image for _, image in ready], inputs)
                    self._check(step, len(results) == len(ready), f"{len(results)} results for {len(ready)} pictures")
                    for (picture, image), given, result in zip(ready, inputs, results, strict=True):
                        arrays = self._arrays(step, image, given, result)
                        self.store.save(step, picture.path, self._name(step, picture), arrays)
                bar.update(len(batch))
        del backend
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

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
        """What a step is told of a picture; None where nobody was found in it."""
        if step in ("boxes", "captions"):
            return picture.names
        found = self.found(picture)
        if found is None or not len(found[0].boxes):
            return None
        if step != "identity":
            return found[0].boxes
        masks = self.load("masks", picture)
        if masks is None or not masks["masks"].any((1, 2)).all():
            return None
        return masks["masks"]

    def _arrays(self, step: str, image: Image.Image, given: Any, result: Any) -> dict[str, np.ndarray]:
        """The result of a backend, checked, as it is kept."""
        if step == "boxes":
            scores = np.asarray(result.scores, np.float64)
            boxes = clipped(result.boxes)
            self._check(step, boxes.shape == (len(scores), 4), f"{len(boxes)} boxes with {len(scores)} scores")
            order = np.argsort(-scores, kind="stable")
            order = order[boxes[order].any(1)]
            arrays = {"boxes": boxes[order], "scores": scores[order]}
        elif step == "captions":
            arrays = {"text": np.array(str(result).strip())}
        else:
            arrays = {step: np.asarray(result).astype(FIELDS[step][step])}
        what = misfit(step, arrays, len(given), image.size)
        self._check(step, not what, what)
        return arrays

    def _check(self, step: str, holds: bool, what: str) -> None:
        if not holds:
            raise InputError(f"--backend {step}={self.backends[step].name}: returned {what}")


def shown(path: Path, folder: Path) -> str:
    """A path as a file of the set names it."""
    return path.relative_to(folder).as_posix()
