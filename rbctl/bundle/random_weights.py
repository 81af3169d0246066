"""Complete bundles of random weights: a tiny one to try the road with, and full-size ones to time it with.

They show the road (formats, shapes, commands), never the quality: their pictures are noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rbctl.bundle.catalogue import MANIFEST, contents, record
from rbctl.bundle.convert import adapter_shapes, attention_layers
from rbctl.bundle.tokenizer import write_tokenizer
from rbctl.files import write_json, write_safetensors

if TYPE_CHECKING:
    import torch

UNET = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [8, 16, 32],
    "layers_per_block": 2,
    "transformer_layers_per_block": [1, 1, 2],
    "attention_head_dim": [1, 2, 4],
    "cross_attention_dim": 32,
    "norm_num_groups": 4,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 64,
}
VAE = {
    "_class_name": "AutoencoderKL",
    "sample_size": 128,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [8, 8, 16, 16],
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 4,
    "scaling_factor": 0.13025,
    "force_upcast": True,
}
TEXT = {
    "model_type": "clip_text_model",
    "vocab_size": 49408,
    "hidden_size": 16,
    "intermediate_size": 32,
    "projection_dim": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": 77,
    "bos_token_id": 0,
    "pad_token_id": 1,
    "eos_token_id": 2,
}
TEXT_1 = {"architectures": ["CLIPTextModel"], **TEXT, "hidden_act": "quick_gelu"}
TEXT_2 = {"architectures": ["CLIPTextModelWithProjection"], **TEXT, "hidden_act": "gelu"}
CLIP_VISION = {
    "architectures": ["CLIPVisionModelWithProjection"],
    "model_type": "clip_vision_model",
    "hidden_size": 48,
    "intermediate_size": 96,
    "projection_dim": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
    "hidden_act": "gelu",
}
CLIPSELF = {
    "embed_dim": 24,
    "vision_cfg": {
        "image_size": 32,
        "layers": 3,
        "width": 48,
        "head_width": 12,
        "mlp_ratio": 4.9231,
        "patch_size": 8,
    },
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 8, "heads": 2, "layers": 1},
}
RESAMPLER = {
    "dim": 32,
    "depth": 2,
    "dim_head": 8,
    "heads": 4,
    "num_queries": 16,
    "ff_mult": 4,
    "embedding_dim": 48,
    "output_dim": 32,
    "phrase_embeddings_dim": 16,
    "fourier_freqs": 8,
}
ADAPTER = {
    "resampler": RESAMPLER,
    "num_dummy_tokens": 4,
    "num_tokens": 16,
    "num_patches": 4,
    "scale": 0.6,
    "clip_image_size": 32,
    "local_image_size": 64,
}
SCHEDULER = {
    "_class_name": "EulerDiscreteScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "interpolation_type": "linear",
    "timestep_spacing": "leading",
    "steps_offset": 1,
    "use_karras_sigmas": False,
}
MODEL_INDEX = {
    "_class_name": "StableDiffusionXLPipeline",
    "_diffusers_version": "0.19.0",
    "force_zeros_for_empty_prompt": True,
    "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}

# Gains over 1 / sqrt(fan-in), first match wins. Large ones keep what a condition says (text, size, time, pictures)
# visible in a network nobody trained; without them all prompts would give nearly the same picture.
_GAINS = (
    ("add_embedding.linear_1", 4.0),
    ("_embedding.linear_2", 2.8),
    ("time_embedding.linear_1", 1.4),
    ("_ip.weight", 1.6),
    ("to_q.", 1.3),
    ("to_k.", 1.3),
)
_EMBEDDINGS = ("class_embedding", "position_embedding", "positional_embedding", "token_embedding")


@dataclass(frozen=True)
class Architecture:
    """The configuration files of a bundle; each is written as it stands."""

    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    text_encoder: Mapping[str, Any]
    text_encoder_2: Mapping[str, Any]
    clip_vision: Mapping[str, Any]
    clipself: Mapping[str, Any]
    adapter: Mapping[str, Any]


TINY = Architecture(UNET, VAE, TEXT_1, TEXT_2, CLIP_VISION, CLIPSELF, ADAPTER)


def _draw(
    shapes: Mapping[str, tuple[int, ...]], gain: float, generator: torch.Generator, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Random weights by name and shape; names are drawn in sorted order, so the order of ``shapes`` is no matter."""
    import torch

    tensors = {}
    for name, shape in sorted(shapes.items()):
        noise = torch.randn(shape, generator=generator, device=generator.device)
        if name == "logit_scale":
            tensors[name] = torch.tensor(math.log(1 / 0.07))
        elif any(word in name for word in _EMBEDDINGS):
            tensors[name] = 0.5 * noise
        elif name.endswith(("latents", "tokens")):
            tensors[name] = noise
        elif len(shape) == 1:
            tensors[name] = 1 + 0.2 * noise if name.endswith("weight") else 0.1 * noise
        else:
            transposed = name.endswith(("visual.proj", "text_projection"))  # open_clip keeps these as (in, out)
            fan_in = shape[0] if transposed else math.prod(shape[1:])
            scale = next((g for part, g in _GAINS if part in name), gain)
            tensors[name] = noise * scale / math.sqrt(fan_in)
        tensors[name] = tensors[name].to("cpu", dtype)
    return tensors


def _shapes(model: torch.nn.Module, prefix: str = "") -> dict[str, tuple[int, ...]]:
    return {
        name if name.startswith(prefix) else prefix + name: tuple(t.shape) for name, t in model.state_dict().items()
    }


def write_tiny(folder: Path, seed: int = 0) -> None:
    """Write a whole tiny SDXL bundle: pictures of 128 px (any multiple of 16 works), image prompts of 32 and 64 px."""
    import torch

    write_random(folder, TINY, torch.Generator().manual_seed(seed), torch.float32)


def write_random(folder: Path, sizes: Architecture, generator: torch.Generator, dtype: torch.dtype) -> None:
    """Write a whole bundle of random weights; one seed gives the same bytes every time.

    Args:
        folder: the bundle folder to write; files of another bundle in it are replaced.
        generator: draws the weights, on its own device.
    """
    import torch
    import transformers
    from diffusers import UNet2DConditionModel
    from open_clip.model import CLIP

    from rbctl.bundle.vae import vae_class

    folder = Path(folder)

    def write(part: str, config: Mapping[str, Any], shapes: dict[str, tuple[int, ...]], gain: float) -> None:
        parent, stem = folder / part, "diffusion_pytorch_model" if part in ("unet", "vae") else "model"
        name = "open_clip_config.json" if part == "clipself" else "config.json"
        write_json(parent / name, config)
        write_safetensors(parent / f"{stem}.safetensors", _draw(shapes, gain, generator, dtype), {"format": "pt"})

    with torch.device("meta"):  # names and shapes only; the weights are drawn below
        unet, vae = UNet2DConditionModel.from_config(sizes.unet), vae_class(sizes.vae, "vae").from_config(sizes.vae)
        text = transformers.CLIPTextModel(transformers.CLIPTextConfig(**sizes.text_encoder))
        text_2 = transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**sizes.text_encoder_2))
        vision = transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**sizes.clip_vision))
        local = CLIP(**sizes.clipself)
    write("unet", sizes.unet, _shapes(unet), 1.0)
    write("vae", sizes.vae, _shapes(vae), 1.0)
    write("text_encoder", sizes.text_encoder, _shapes(text, "text_model."), 1.3)  # the prefix that published files have
    write("text_encoder_2", sizes.text_encoder_2, _shapes(text_2), 1.3)
    write("clip_vision", sizes.clip_vision, _shapes(vision), 1.3)
    write(
        "clipself",
        sizes.clipself,
        {name: shape for name, shape in _shapes(local).items() if name.startswith("visual.")},
        1.3,
    )

    shapes = adapter_shapes(sizes.adapter, sizes.unet)
    write_safetensors(folder / "ms_adapter.safetensors", _draw(shapes, 1.3, generator, dtype), {"format": "pt"})
    index = {str(i): name for i, (name, _) in enumerate(attention_layers(sizes.unet))}
    write_json(folder / "ms_adapter_config.json", {**sizes.adapter, "adapter_index_to_layer": index})

    write_tokenizer(folder / "tokenizer", "<|endoftext|>")
    write_tokenizer(folder / "tokenizer_2", "!")
    write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
    write_json(folder / "model_index.json", MODEL_INDEX)
    (folder / MANIFEST).unlink(missing_ok=True)  # of what lay here before
    origin = {"source": f"random weights, seed {generator.initial_seed()}", "licence": "CC0-1.0"}
    record(folder, "random", dict.fromkeys(contents(folder), origin))
