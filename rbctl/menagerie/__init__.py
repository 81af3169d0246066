"""The embedded world: cartoon animals in posed relations, drawn with everything known about them.

Individuals are data, poses and relations are YAML, pictures are made by signed distance fields in batched PyTorch.
"""

from rbctl.menagerie.drawing import Rendering, render
from rbctl.menagerie.individuals import COATS, PATTERNS, SPECIES, Individual, draw_individual
from rbctl.menagerie.scenes import BACKGROUNDS, Scene, compose, portrait

__all__ = [
    "BACKGROUNDS",
    "COATS",
    "PATTERNS",
    "SPECIES",
    "Individual",
    "Rendering",
    "Scene",
    "compose",
    "draw_individual",
    "portrait",
    "render",
]
