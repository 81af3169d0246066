"""Write a bundle of SDXL's full size with random weights (15 GB in bf16): it times the real shapes without a download.

python bench/full_size.py bundles/sdxl-random
"""

from __future__ import annotations

import sys
from pathlib import Path

import open_clip
import torch

from rbctl.bundle.random_weights import CLIP_VISION, TEXT_1, TEXT_2, UNET, VAE, Architecture, write_random

SDXL = Architecture(
    unet={
        **UNET,
        "sample_size": 128,
        "block_out_channels": [320, 640, 1280],
        "transformer_layers_per_block": [1, 2, 10],
        "attention_head_dim": [5, 10, 20],
        "cross_attention_dim": 2048,
        "norm_num_groups": 32,
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    vae={
        **VAE,
        "sample_size": 1024,
        "block_out_channels": [128, 256, 512, 512],
        "layers_per_block": 2,
        "norm_num_groups": 32,
    },
    text_encoder={
        **TEXT_1,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "projection_dim": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
    },
    text_encoder_2={
        **TEXT_2,
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "projection_dim": 1280,
        "num_hidden_layers": 32,
        "num_attention_heads": 20,
    },
    clip_vision={
        **CLIP_VISION,
        "hidden_size": 1664,
        "intermediate_size": 8192,
        "projection_dim": 1280,
        "num_hidden_layers": 48,
        "num_attention_heads": 16,
        "image_size": 224,
        "patch_size": 14,
    },
    clipself=open_clip.get_model_config("ViT-bigG-14"),
    adapter={
        "resampler": {
            "dim": 1280,
            "depth": 4,
            "dim_head": 64,
            "heads": 20,
            "num_queries": 16,
            "ff_mult": 4,
            "embedding_dim": 1664,
            "output_dim": 2048,
            "phrase_embeddings_dim": 768,
            "fourier_freqs": 8,
        },
        "num_dummy_tokens": 4,
        "num_tokens": 16,
        "num_patches": 4,
        "scale": 0.6,
        "clip_image_size": 224,
        "local_image_size": 896,
    },
)

if __name__ == "__main__":
    device = "cuda" if torch.cuda.is_available() else "cpu"
    write_random(Path(sys.argv[1]), SDXL, torch.Generator(device).manual_seed(0), torch.bfloat16)
