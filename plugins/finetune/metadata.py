"""What a file says of itself: modelspec's keys, those of kohya's scripts, and ``rbctl.*``.

No date is among them, so that the same run gives the same file.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from rbctl.bundle.bundle import Bundle
from rbctl.bundle.catalogue import read_manifest
from rbctl.bundle.fingerprints import BASE, fingerprint
from rbctl.files import read_image
from rbctl.options import to_yaml
from rbctl.plugins.finetune.config import FinetuneConfig

_PREDICTION_TYPES = {"epsilon": "epsilon", "v_prediction": "v"}  # diffusers' word: modelspec's
_SDXL = "stable-diffusion-xl-v1-base"
_SDXL_WIDTHS = [320, 640, 1280]
_THUMBNAIL = 256  # pixels, as modelspec proposes


def of_file(
    config: FinetuneConfig, folder: Path, bundle: Bundle, kind: str, title: str, trigger: str, data: str
) -> dict[str, str]:
    """What files of every method say.

    Args:
        folder: of the run.
        kind: modelspec's word, "lora" or "textual-inversion", or our own; "" for a whole UNet.
        trigger: what a prompt says to get what was learned.
        data: hash of what it was learned from.
    """
    architecture = _architecture(bundle)
    prediction_type = str(bundle.scheduler_config.get("prediction_type", "epsilon"))
    described = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{architecture}/{kind}" if kind else architecture,
        "modelspec.implementation": "diffusers",
        "modelspec.title": title,
        "modelspec.trigger_phrase": trigger,
        "modelspec.prediction_type": _PREDICTION_TYPES.get(prediction_type, prediction_type),
        "modelspec.author": config.author,
        "modelspec.license": config.licence or _licence(bundle),
        "ss_base_model_version": "sdxl_base_v1-0" if architecture == _SDXL else architecture,
        "ss_sd_model_name": bundle.name,
        "ss_v2": "False",
        "rbctl.recipe": to_yaml("finetune", dataclasses.replace(config, output=None), folder),
        "rbctl.data_hash": data,
        "rbctl.base": fingerprint(bundle.folder, BASE),
    }
    return {key: value for key, value in described.items() if value}


def of_lora(
    config: FinetuneConfig, bundle: Bundle, name: str, captions: Iterable[str], resolution: int, steps: int
) -> dict[str, str]:
    """What a LoRA says besides: how it was trained, in the words of kohya's scripts.

    Args:
        name: of the file, by which other programs call it in a prompt.
        captions: of the training pictures; they are counted by their parts between commas, as kohya's tags.
        resolution: side of the training pictures in pixels.
    """
    tags = Counter(part.strip() for caption in captions for part in caption.split(",") if part.strip())
    return {
        "modelspec.resolution": f"{resolution}x{resolution}",
        "ss_output_name": name,
        "ss_network_alpha": str(config.alpha),
        "ss_network_args": json.dumps({"lora_layers": config.lora_layers}),
        "ss_resolution": f"({resolution}, {resolution})",
        "ss_steps": str(steps),
        "ss_learning_rate": str(config.learning_rate),
        "ss_seed": str(config.seed),
        "ss_tag_frequency": json.dumps({name: dict(sorted(tags.items()))}, ensure_ascii=False),
    }


def thumbnail(preview: Path) -> str:
    """The first picture of a preview as modelspec has it, a data URL of a small JPEG."""
    row = read_image(preview)
    picture = row.crop((0, 0, row.height, row.height))
    picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
    encoded = io.BytesIO()
    picture.save(encoded, format="JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(encoded.getvalue()).decode()}"


def _architecture(bundle: Bundle) -> str:
    """modelspec's name of SDXL for what is built like it; a smaller UNet goes by its bundle's name."""
    return _SDXL if list(bundle.unet.config.block_out_channels) == _SDXL_WIDTHS else bundle.name


def _licence(bundle: Bundle) -> str | None:
    """That of the bundle's UNet, if its manifest tells."""
    files = read_manifest(bundle.folder).items()
    return next((entry.get("licence") for path, entry in files if path.startswith("unet/")), None)
