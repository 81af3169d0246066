"""Weights of today's bases and of relation LoRAs on them, counted on the meta device; no memory is taken.

    python bench/base_sizes.py

`rbctl doctor --plan GB --base NAME` counts what is held while they run too.
"""

from __future__ import annotations

import torch

from rbctl.bases import families
from rbctl.bases.published import PUBLISHED


def _count(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def rows() -> list[list[str]]:
    """Base, billions of weights of transformer and text encoder, GB as bf16 (the VAE as fp32), LoRA at rank 4."""
    made = []
    for published in PUBLISHED.values():
        base = published.on_meta()
        with torch.device("meta"):
            encoder = _count(published.text_encoder())
        modules = dict(base.model.named_modules())
        layers = [modules[name] for name in families()[published.family].targets(modules, "attn2")]
        weights = 4 * sum(layer.in_features + layer.out_features for layer in layers)
        own, whole = _count(base.model), 4 * _count(base.vae) / 1e9
        sizes = (own / 1e9, encoder / 1e9, 2 * own / 1e9 + whole, 2 * (own + encoder) / 1e9 + whole)
        made.append([published.title, *(f"{size:.1f}" for size in sizes), f"{weights / 1e6:.1f} M"])
    return made


if __name__ == "__main__":
    print("| base | transformer, billions | text encoder, billions | GB while it trains | GB in all | LoRA |")
    print("|---|---|---|---|---|---|")
    for row in rows():
        print(f"| {' | '.join(row)} |")
