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

from rbctl.bases import Base, family_of
from rbctl.bundle.catalogue import read_manifest
from rbctl.bundle.fingerprints import base_fingerprint
from rbctl.files import read_image
from rbctl.options import to_yaml
from rbctl.plugins.finetune.config import FinetuneConfig

_PREDICTION_TYPES = {"epsilon": "epsilon", "v_prediction": "v"}  # diffusers' word: modelspec's
_KOHYA = {"stable-diffusion-xl-v1-base": "sdxl_base_v1-0"}  # modelspec's name of a base: that of kohya's scripts
_THUMBNAIL = 256  # pixels, as modelspec proposes


def of_file(
    config: FinetuneConfig, folder: Path, bundle: Base, kind: str, title: str, trigger: str, data: str
) -> dict[str, str]:
    """What files of every method say.

    Args:
        folder: of the run.
        kind: modelspec's word, "lora" or "textual-inversion", or our own; "" for a whole UNet.
        trigger: what a prompt says to get what was learned.
        data: hash of what it was learned from.
    """
    architecture = bundle.architecture
    prediction_type = str(bundle.scheduler().config.get("prediction_type", ""))
    described = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{architecture}/{kind}" if kind else architecture,
        "modelspec.implementation": "diffusers",
        "modelspec.title": title,
        "modelspec.trigger_phrase": trigger,
        "modelspec.prediction_type": _PREDICTION_TYPES.get(prediction_type, prediction_type),
        "modelspec.author": config.author,
        "modelspec.license": config.licence or _licence(bundle),
        "ss_base_model_version": _KOHYA.get(architecture, architecture),
        "ss_sd_model_name": bundle.name,
        "ss_v2": "False",
        "rbctl.recipe": to_yaml("finetune", dataclasses.replace(config, output=None), folder),
        "rbctl.data_hash": data,
        "rbctl.base": base_fingerprint(bundle.folder),
    }
    return {key: value for key, value in described.items() if value}


def of_lora(
    config: FinetuneConfig, bundle: Base, name: str, captions: Iterable[str], resolution: int, steps: int
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


def _licence(bundle: Base) -> str | None:
    """That of what the LoRA is tuned on, if its manifest tells."""
    parts = family_of(bundle.folder).learned_on
    files = read_manifest(bundle.folder).items()
    return next((entry.get("licence") for path, entry in files if Path(path).parts[0] in parts), None)
