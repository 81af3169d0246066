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
from rbctl.bundle.convert import (
    adapter_shapes,
    attention_layers,
    default_adapter_config,
    default_open_clip_config,
    save,
)
from rbctl.bundle.tokenizer import write_tokenizer
from rbctl.files import read_object, write_json

if TYPE_CHECKING:
    import torch

_FOLDER = Path(__file__).parent / "tiny"  # the configuration files of a bundle, and nothing else
_FILES = {
    **{part: f"{part}/config.json" for part in ("unet", "vae", "text_encoder", "text_encoder_2", "clip_vision")},
    "clipself": "clipself/open_clip_config.json",
    "adapter": "ms_adapter_config.json",
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


TINY = Architecture(**{part: read_object(_FOLDER / file) for part, file in _FILES.items()})


def full_size() -> Architecture:
    """SDXL, MS-Diffusion's adapter, and CLIP bigG as encoder of image prompts and as local encoder."""
    from rbctl.bundle.single_file import SDXL

    clip_vision = {
        **TINY.clip_vision,
        "hidden_size": 1664,
        "intermediate_size": 8192,
        "projection_dim": 1280,
        "num_hidden_layers": 48,
        "num_attention_heads": 16,
        "image_size": 224,
        "patch_size": 14,
    }
    return Architecture(
        **{part: read_object(SDXL / _FILES[part]) for part in ("unet", "vae", "text_encoder", "text_encoder_2")},
        clip_vision=clip_vision,
        clipself=default_open_clip_config(),
        adapter=default_adapter_config(),
    )


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


def _weights(sizes: Architecture) -> dict[str, tuple[str, dict[str, tuple[int, ...]], float]]:
    """By part of a bundle: the file of its weights, their names and shapes, and the gain of those without their own."""
    import torch
    import transformers
    from diffusers import UNet2DConditionModel

    from rbctl.bundle.towers import clip_shapes
    from rbctl.bundle.vae import vae_class

    with torch.device("meta"):  # names and shapes only; the weights are drawn
        unet, vae = UNet2DConditionModel.from_config(sizes.unet), vae_class(sizes.vae, "vae").from_config(sizes.vae)
        text = transformers.CLIPTextModel(transformers.CLIPTextConfig(**sizes.text_encoder))
        text_2 = transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**sizes.text_encoder_2))
        vision = transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**sizes.clip_vision))
    local = clip_shapes(sizes.clipself, "clipself")
    visual = {name: shape for name, shape in local.items() if name.startswith("visual.")}
    return {
        "unet": ("unet/diffusion_pytorch_model.safetensors", _shapes(unet), 1.0),
        "vae": ("vae/diffusion_pytorch_model.safetensors", _shapes(vae), 1.0),
        # with the prefix that published files have
        "text_encoder": ("text_encoder/model.safetensors", _shapes(text, "text_model."), 1.3),
        "text_encoder_2": ("text_encoder_2/model.safetensors", _shapes(text_2), 1.3),
        "clip_vision": ("clip_vision/model.safetensors", _shapes(vision), 1.3),
        "clipself": ("clipself/model.safetensors", visual, 1.3),
        "adapter": ("ms_adapter.safetensors", adapter_shapes(sizes.adapter, sizes.unet), 1.3),
    }


def count_weights(sizes: Architecture) -> dict[str, int]:
    """How many weights each part of a bundle of these sizes has."""
    return {part: sum(map(math.prod, shapes.values())) for part, (_, shapes, _) in _weights(sizes).items()}


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
    folder = Path(folder)
    for part, (path, shapes, gain) in _weights(sizes).items():
        if part != "adapter":
            write_json(folder / _FILES[part], getattr(sizes, part))
        save(folder / path, _draw(shapes, gain, generator, dtype), folder / path)
    index = {str(i): name for i, (name, _) in enumerate(attention_layers(sizes.unet))}
    write_json(folder / _FILES["adapter"], {**sizes.adapter, "adapter_index_to_layer": index})
    write_tokenizer(folder / "tokenizer", "<|endoftext|>")
    write_tokenizer(folder / "tokenizer_2", "!")
    for name in ("scheduler/scheduler_config.json", "model_index.json"):
        write_json(folder / name, read_object(_FOLDER / name))
    (folder / MANIFEST).unlink(missing_ok=True)  # of what lay here before
    origin = {"source": f"random weights, seed {generator.initial_seed()}", "licence": "CC0-1.0"}
    record(folder, "random", dict.fromkeys(contents(folder), origin))
