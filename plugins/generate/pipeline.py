"""Engines of pipelines in a folder on this machine: ``diffusers`` draws from words, ``edit`` from pictures too.

With ``diffusers``, each picture of a triplet is made by itself: nothing makes the cat of the target the cat that stands
alone. Such a set teaches a relation, hardly identities; ``rbctl annotate`` tells how alike they are. With ``edit``, the
target is shown to the editor that makes the individuals alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from rbctl.device import DTYPES, pick_device, pick_precision
from rbctl.draws import generator
from rbctl.errors import InputError, reason
from rbctl.files import read_image
from rbctl.local_pipeline import load_pipeline, pipeline_folder
from rbctl.plugins.generate.config import GenerateConfig
from rbctl.plugins.generate.painting import Refused

_BLANK = 1024  # side in pixels of an empty picture, where no size is given


class LocalPipeline:
    """A painter (``painting.Painter``) on this machine."""

    sees_references = False

    def __init__(self, config: GenerateConfig) -> None:
        """Load the pipeline; safetensors only, and no code of the folder's own.

        Raises:
            InputError: there is no such folder, it is no text-to-image pipeline, or it cannot be loaded.
        """
        assert config.model is not None
        folder = pipeline_folder(config.model)
        device = pick_device(config.device)
        dtype = DTYPES[pick_precision(config.precision, device)]
        self._seed = config.seed
        self._pipeline = load_pipeline(folder, dtype).to(device)
        width, height = config.pixels
        options: dict[str, float | None] = {"width": width, "height": height, "num_inference_steps": config.steps}
        options["guidance_scale"] = config.guidance_scale
        self._options: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
        self.name = f"{config.engine} {folder.resolve().name}"

    def paint(self, prompt: str, references: Sequence[Path], candidate: int, index: int) -> Image.Image:
        """See ``painting.Painter``; the same seed, candidate and index give the same picture."""
        try:
            output = self._call(prompt, references, generator(self._seed, candidate, index))
            image = output.images[0]
        except (TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{self.name}: cannot make pictures ({reason(error)}); see --model and --size") from error
        if any(getattr(output, "nsfw_content_detected", None) or []):
            raise Refused("safety_checker", "the pipeline's own safety checker hid the picture")
        return image.convert("RGB")

    def _call(self, prompt: str, references: Sequence[Path], chance: torch.Generator) -> Any:
        """What the pipeline answers."""
        return self._pipeline(prompt=prompt, generator=chance, **self._options)


class LocalEditor(LocalPipeline):
    """An editor that takes several pictures: FLUX.2 Klein, Qwen-Image-Edit-Plus."""

    def __init__(self, config: GenerateConfig) -> None:
        """Load the editor, see :class:`LocalPipeline`.

        Raises:
            InputError: also where the pipeline takes no pictures.
        """
        super().__init__(config)
        self.sees_references = config.references == "earlier"
        parameters = inspect.signature(self._pipeline.__call__).parameters
        if "image" not in parameters:
            mend = "take --engine diffusers, or an editor"
            raise InputError(f"--model {config.model}: {type(self._pipeline).__name__} takes no pictures; {mend}")
        self._size = config.pixels
        if "true_cfg_scale" in parameters and (scale := self._options.pop("guidance_scale", None)) is not None:
            self._options |= {"true_cfg_scale": scale, "negative_prompt": " "}

    def _call(self, prompt: str, references: Sequence[Path], chance: torch.Generator) -> Any:
        state = chance.get_state()
        if pictures := [read_image(path) for path in references]:
            return self._pipeline(image=pictures, prompt=prompt, generator=chance, **self._options)
        try:
            return super()._call(prompt, references, chance)
        except (TypeError, AttributeError):  # one that must see a picture is shown an empty one
            width, height = (side or _BLANK for side in self._size)
            blank = Image.new("RGB", (width, height), "white")
            return self._pipeline(image=[blank], prompt=prompt, generator=chance.set_state(state), **self._options)
