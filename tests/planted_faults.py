"""Renders with a fault that was planted: what generated pictures have, with the truth known."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from rbctl.menagerie import Scene
from rbctl.menagerie.drawing import pack, paint
from rbctl.menagerie.figure import LAYERS

SIZE = 128
HEAD = [LAYERS.index(name) for name in ("crown", "head")]


def with_second_head(scene: Scene) -> Image.Image:
    """The figure in front has a head where its tail is, too."""
    parts, traits, flags, ground = pack([scene])
    figure = scene.figures[scene.order[-1]]
    across, up = figure.points["tail"] - figure.points["head"]
    head, own = parts[:, -1:].clone(), traits[:, -1:].clone()
    for layer in range(len(LAYERS)):
        if layer not in HEAD:
            head[:, :, layer, :, 4:] = -5.0  # radii: nothing is left of it
    head[..., (0, 2)] += across
    head[..., (1, 3)] -= up
    own[..., (10, 15)] += across  # the trunk's and the head's place, for the pattern
    own[..., (11, 16)] -= up
    for disc in range(5):
        own[..., 24 + 3 * disc] += across
        own[..., 25 + 3 * disc] -= up
    return _painted(torch.cat((parts, head), 1), torch.cat((traits, own), 1), flags, ground)


def left_out(scene: Scene) -> Image.Image:
    """The figure at the back is not there."""
    parts, traits, flags, ground = pack([scene])
    return _painted(parts[:, 1:], traits[:, 1:], flags, ground)


def _painted(*packed: torch.Tensor) -> Image.Image:
    with torch.no_grad():
        pixels = paint(*packed, SIZE)[0][0].permute(1, 2, 0)
    return Image.fromarray((pixels.numpy() * 255).round().astype(np.uint8))
