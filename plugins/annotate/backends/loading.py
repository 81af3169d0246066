"""Models of transformers from a local folder in the hub's layout: never from the network, never a pickle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from rbctl import pretrained


def network(kind: Any, folder: Path, device: torch.device, dtype: torch.dtype = torch.float32) -> Any:
    """A network, frozen, in eval mode.

    Raises:
        InputError: a file is missing or damaged, or holds not all of its weights.
    """
    model = pretrained.network(kind, folder, dtype, use_safetensors=True)
    return model.requires_grad_(False).eval().to(device)


def processor(kind: Any, folder: Path) -> Any:
    """What turns pictures and words into a network's input.

    Raises:
        InputError: a file is missing or damaged.
    """
    return pretrained.from_pretrained(kind, folder)
