"""Pipelines of diffusers in folders on this machine: data, never code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from rbctl.bundle.catalogue import CATALOGUE, place
from rbctl.errors import InputError, abridged
from rbctl.files import read_object
from rbctl.pretrained import from_pretrained

INDEX = "model_index.json"
_LIBRARIES = ("diffusers", "transformers", "rbctl.bundle.vae", None)  # diffusers would import any other that is named


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


def load_pipeline(folder: Path, dtype: torch.dtype, kind: Any = None) -> Any:
    """The pipeline, on the CPU and silent; safetensors only.

    Args:
        folder: as :func:`pipeline_folder` gives it.
        kind: a class of pipelines of diffusers. [default: the one that the folder names]

    Raises:
        InputError: it cannot be loaded.
    """
    import diffusers
    import transformers

    import rbctl.bundle.vae  # noqa: F401  mini names a class of it, and diffusers imports no module that a folder names

    for library in (diffusers, transformers):  # they speak of every part and of every long prompt
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    pipeline = from_pretrained(kind or diffusers.DiffusionPipeline, folder, torch_dtype=dtype, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
