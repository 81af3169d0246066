"""Parts of editors, as diffusers leaves them on the disk; each is loaded by itself, so that no gap is filled."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from rbctl.bases import INDEX, Summary
from rbctl.bases.reference_transformer import LARGEST_REFERENCE, ReferenceTransformer
from rbctl.errors import InputError
from rbctl.files import read_object
from rbctl.pretrained import from_pretrained, loading, network


def check_editor(folder: Path) -> dict[str, Any]:
    """The ``model_index.json`` of an editor.

    Raises:
        InputError: it or the scheduler's configuration is damaged, or the scheduler is none of flow matching.
    """
    path = folder / "scheduler" / "scheduler_config.json"
    kind = read_object(path).get("_class_name")
    if kind != "FlowMatchEulerDiscreteScheduler":
        raise InputError(f"{path}: _class_name: FlowMatchEulerDiscreteScheduler was expected, not {kind!r:.60}")
    return read_object(folder / INDEX)


def read_editor(
    folder: Path, device: torch.device, dtype: torch.dtype, kinds: Mapping[str, str], options: Mapping[str, Any]
) -> dict[str, Any]:
    """Networks, tokenizer and scheduler of an editor, for its pipeline; the networks frozen and in eval mode.

    Args:
        kinds: network -> its class of diffusers or transformers.
        options: as of :func:`rbctl.bases.load.load`.

    Raises:
        InputError: a part is damaged or holds not all of its weights.
    """
    import diffusers
    import transformers

    check_editor(folder)
    if options.get("vae"):
        raise InputError(f"--vae: {folder.name} has latents of its own, which no other VAE decodes; leave it out")
    lowvram, parts = bool(options.get("lowvram")), dict[str, Any]()
    for part, kind in kinds.items():
        if part == "text_encoder" and not options.get("encoders", True):
            parts[part] = None
            continue
        loader = getattr(diffusers, kind, None) or getattr(transformers, kind)
        module = network(loader, folder / part, torch.float32 if part == "vae" else dtype)
        parts[part] = module.requires_grad_(False).eval().to("cpu" if lowvram else device)
    if lowvram and hasattr(parts["vae"], "enable_tiling"):
        parts["vae"].enable_tiling()
    path = folder / "scheduler" / "scheduler_config.json"
    with loading(path):
        parts["scheduler"] = diffusers.FlowMatchEulerDiscreteScheduler.from_config(read_object(path))
    parts["tokenizer"] = from_pretrained(transformers.AutoTokenizer, folder / "tokenizer")
    return parts


def summary(folder: Path) -> Summary:
    """Raises InputError where :func:`check_editor` does."""
    check_editor(folder)
    return Summary(LARGEST_REFERENCE, multiple=ReferenceTransformer.multiple, ordered=True)


def check_schedule(folder: Path, name: str | None, steps: int) -> None:
    """Raises InputError where a scheduler is named: an editor has its own."""
    if name is not None:
        raise InputError(f"{folder}: has a scheduler of its own; leave --ss and --scheduler out")
