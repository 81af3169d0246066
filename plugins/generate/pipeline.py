"""Engine ``diffusers``: any text-to-image pipeline from a folder on this machine.

The pictures of a triplet are made from words alone, each by itself: nothing makes the cat of the target the cat that
stands alone. Such a set teaches a relation, hardly identities; ``rbctl annotate`` tells how alike they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from rbctl.bundle.catalogue import CATALOGUE, place
from rbctl.device import DTYPES, pick_device, pick_precision
from rbctl.draws import generator
from rbctl.errors import InputError, abridged, reason
from rbctl.files import read_object
from rbctl.plugins.generate.config import GenerateConfig
from rbctl.plugins.generate.painting import Refused
from rbctl.pretrained import from_pretrained

INDEX = "model_index.json"
_LIBRARIES = ("diffusers", "transformers", "rbctl.bundle.vae", None)  # diffusers would import any other that is named


class LocalPipeline:
    """A painter (``painting.Painter``) on this machine."""

    sees_references = False

    def __init__(self, config: GenerateConfig) -> None:
        """Load the pipeline; safetensors only, and no code of the folder's own.

        Raises:
            InputError: there is no such folder, it is no text-to-image pipeline, or it cannot be loaded.
        """
        import diffusers
        import transformers

        import rbctl.bundle.vae  # noqa: F401  mini names a class of it, and diffusers imports no module that a folder names

        assert config.model is not None
        folder = pipeline_folder(config.model)
        device = pick_device(config.device)
        dtype = DTYPES[pick_precision(config.precision, device)]
        for library in (diffusers, transformers):  # they speak of every part and of every long prompt
            library.utils.logging.set_verbosity_error()
            library.utils.logging.disable_progress_bar()
        self._seed = config.seed
        self._pipeline = from_pretrained(
            diffusers.DiffusionPipeline, folder, torch_dtype=dtype, use_safetensors=True
        ).to(device)
        self._pipeline.set_progress_bar_config(disable=True)
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


def pipeline_folder(model: str) -> Path:
    """Where a pipeline lies: a bundle by its name, or any folder with a ``model_index.json``.

    Raises:
        InputError: it is not there, or it brings code.
    """
    folder = place(model)
    if not (folder / INDEX).is_file():
        pull = f", or run 'rbctl models pull {model}'" if model in CATALOGUE else ""
        raise InputError(
            f"{folder}: no diffusers pipeline, it has no {INDEX}; give --model a folder that has one{pull}"
        )
    if code := next(folder.rglob("*.py"), None):
        raise InputError(f"{code}: the pipeline brings code of its own, which is never run; choose another --model")
    index = read_object(folder / INDEX)
    if not isinstance(index.get("_class_name"), str):
        raise InputError(f"{folder / INDEX}: _class_name: a class of diffusers was expected; choose another --model")
    for part, kind in index.items():
        if isinstance(kind, list) and (len(kind) != 2 or kind[0] not in _LIBRARIES) and not part.startswith("_"):
            raise InputError(f"{folder / INDEX}: {part}: {abridged(kind)} is no class of diffusers or transformers")
    return folder
