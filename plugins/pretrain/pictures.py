"""Part ``pictures``: portraits and scenes as PNG files, what ``rbctl distill --data WORK/pictures`` learns from."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from rbctl.images import write_png
from rbctl.plugins.pretrain import renders
from rbctl.plugins.pretrain.config import PretrainConfig
from rbctl.plugins.pretrain.loop import rank
from rbctl.progress import progress

_EACH = 4096  # at most so many portraits, and so many scenes


def run(config: PretrainConfig, device: torch.device) -> str:
    """Write those that are missing, evenly taken from all there are.

    Raises:
        InputError: there are no renders yet.
    """
    folder, source = config.work / "pictures", config.work / "renders"
    if rank():
        return ""
    for kind, rows in (("portrait", renders.portraits(source)), ("scene", renders.scenes(source, "all"))):
        taken = np.unique(np.linspace(0, len(rows) - 1, _EACH).astype(int))
        missing = [row for row in taken.tolist() if not (folder / f"{kind}-{row:05d}.png").is_file()]
        with progress(len(missing), f"{kind}s as PNG", unit="picture") as bar:
            for row in missing:
                write_png(folder / f"{kind}-{row:05d}.png", Image.fromarray(rows.pictures[row].transpose(1, 2, 0)))
                bar.update()
    return str(folder)
