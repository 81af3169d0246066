"""Weights of today's bases and of relation LoRAs on them, counted on the meta device; no memory is taken.

    python bench/base_sizes.py

The sizes of the networks are written here as other programs state them (docs/bases.md); no published weights were read.
"""

from __future__ import annotations

import re
from typing import Any

import torch

from rbctl.bases import families

_QWEN3 = {"num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128}
_QWEN3["vocab_size"] = 151_936


def _count(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _klein(text: dict[str, int], **sizes: int) -> tuple[Any, int, Any]:
    import diffusers
    import transformers

    transformer = diffusers.Flux2Transformer2DModel(
        **sizes, joint_attention_dim=3 * text["hidden_size"], guidance_embeds=False
    )
    config = transformers.Qwen3Config(**_QWEN3, **text, tie_word_embeddings=text["hidden_size"] < 4096)
    return transformer, _count(transformers.Qwen3ForCausalLM(config)), diffusers.AutoencoderKLFlux2()


def _qwen_image() -> tuple[Any, int, Any]:
    import diffusers
    import transformers

    text = transformers.Qwen2_5_VLConfig(  # Qwen2.5-VL-7B
        text_config={
            "hidden_size": 3584,
            "intermediate_size": 18_944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "vocab_size": 152_064,
        },
        vision_config={
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "out_hidden_size": 3584,
        },
    )
    encoder = transformers.Qwen2_5_VLForConditionalGeneration(text)
    return diffusers.QwenImageTransformer2DModel(), _count(encoder), diffusers.AutoencoderKLQwenImage()


def rows() -> list[list[str]]:
    """Base, billions of weights of transformer and text encoder, GB as bf16 (the VAE as fp32), LoRA at rank 4."""
    with torch.device("meta"):
        small = {"hidden_size": 2560, "intermediate_size": 9728}
        large = {"hidden_size": 4096, "intermediate_size": 12_288}
        bases = {
            "FLUX.2 Klein 4B": (
                "flux2",
                *_klein(small, num_layers=5, num_single_layers=20, num_attention_heads=24),
            ),
            "FLUX.2 Klein 9B": (
                "flux2",
                *_klein(large, num_layers=8, num_single_layers=24, num_attention_heads=32),
            ),
            "Qwen-Image-Edit-Plus": ("qwen_image_edit", *_qwen_image()),
        }
    made = []
    for name, (family, transformer, encoder, vae) in bases.items():
        pattern = families()[family].layers["attn2"]
        layers = [layer for path, layer in transformer.named_modules() if re.fullmatch(pattern, path)]
        weights = 4 * sum(layer.in_features + layer.out_features for layer in layers)
        own, whole = _count(transformer), 4 * _count(vae) / 1e9
        sizes = (own / 1e9, encoder / 1e9, 2 * own / 1e9 + whole, 2 * (own + encoder) / 1e9 + whole)
        made.append([name, *(f"{size:.1f}" for size in sizes), f"{weights / 1e6:.1f} M"])
    return made


if __name__ == "__main__":
    print("| base | transformer, billions | text encoder, billions | GB while it trains | GB in all | LoRA |")
    print("|---|---|---|---|---|---|")
    for row in rows():
        print(f"| {' | '.join(row)} |")
