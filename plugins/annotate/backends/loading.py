"""Models of transformers from a local folder in the hub's layout: never from the network, never a pickle."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

from rbctl.errors import InputError, reason


def network(kind: Any, folder: Path, device: torch.device, dtype: torch.dtype = torch.float32) -> Any:
    """A network, frozen, in eval mode.

    Raises:
        InputError: a file is missing or damaged, or holds not all of its weights.
    """
    model, report = _loaded(
        kind, folder, dtype=dtype, use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True
    )
    lacks = [*report["missing_keys"], *(mismatch[0] for mismatch in report["mismatched_keys"])]
    if lacks:
        raise InputError(
            f"{folder}: weights do not fit config.json ({len(lacks)} missing or of other shapes: {min(lacks)})"
        )
    return model.requires_grad_(False).eval().to(device)


def processor(kind: Any, folder: Path) -> Any:
    """What turns pictures and words into a network's input.

    Raises:
        InputError: a file is missing or damaged.
    """
    return _loaded(kind, folder)


def _loaded(kind: Any, folder: Path, **options: Any) -> Any:
    import transformers

    before = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return kind.from_pretrained(folder, local_files_only=True, **options)
    except Exception as error:  # loaders pass on what theirs raise: no list of types would hold for their next version
        raise InputError(f"{folder}: cannot be loaded as {kind.__name__} ({reason(error)})") from error
    finally:
        transformers.utils.logging.set_verbosity(before)
