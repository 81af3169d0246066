"""Engine ``diffusers``: any text-to-image pipeline from a folder on this machine.

The pictures of a triplet are made from words alone, each by itself: nothing makes the cat of the target the cat that
stands alone. Such a set teaches a relation, hardly identities; ``rbctl annotate`` tells how alike they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from rbctl.device import DTYPES, pick_device, pick_precision
from rbctl.draws import generator
from rbctl.errors import InputError, reason
from rbctl.local_pipeline import load_pipeline, pipeline_folder
from rbctl.plugins.generate.config import GenerateConfig
from rbctl.plugins.generate.painting import Refused


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
        self._options = {name: value for name, value in options.items() if value is not None}
        self.name = f"diffusers {folder.resolve().name}"

    def paint(self, prompt: str, references: Sequence[Path], candidate: int, index: int) -> Image.Image:
        """See ``painting.Painter``; the same seed, candidate and index give the same picture."""
        try:
            output = self._pipeline(prompt=prompt, generator=generator(self._seed, candidate, index), **self._options)
            image = output.images[0]
        except (TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{self.name}: cannot make pictures ({reason(error)}); see --model and --size") from error
        if any(getattr(output, "nsfw_content_detected", None) or []):
            raise Refused("safety_checker", "the pipeline's own safety checker hid the picture")
        return image.convert("RGB")
