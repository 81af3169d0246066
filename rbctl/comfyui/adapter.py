"""The adapter of a bundle under ComfyUI's memory management: pictures of individuals -> K and V of every attn2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from rbctl.bundle.catalogue import has_local_encoder, resolve
from rbctl.bundle.config import AdapterConfig, adapter_config
from rbctl.bundle.convert import read_adapter
from rbctl.bundle.load import load_local_encoder
from rbctl.device import DTYPES, pick_precision
from rbctl.errors import InputError
from rbctl.image_prompt import clip_pixels, picture_tokens
from rbctl.pretrained import from_pretrained, loading, network
from rbctl.relations import Box
from rbctl.resampler import Resampler


@dataclass(frozen=True)
class Individual:
    """What the networks know of one individual.

    Attributes:
        name: the words for it in the prompt.
        tokens: (S, C), CLIP's and the local tokens of its picture.
        phrase: (P,), pooled text embedding of its name.
    """

    name: str
    tokens: torch.Tensor
    phrase: torch.Tensor


@dataclass(frozen=True)
class Adapter:
    """A bundle's networks for individuals.

    Attributes:
        encoders: ComfyUI's ``ModelPatcher`` of text_encoder, image_encoder and, where there is one, local_encoder.
        projections: likewise of the resampler, and of to_k and to_v of every attn2: down blocks, up blocks, mid block.
    """

    folder: Path
    config: AdapterConfig
    dtype: torch.dtype
    tokenizer: Any
    encoders: Any
    projections: Any

    @torch.no_grad()
    def individual(self, picture: Image.Image, name: str, local_tokens: bool) -> Individual:
        """Encode one picture.

        Raises:
            InputError: there is no name, or the bundle has no local encoder.
        """
        if not name.strip():
            raise InputError("Individual: name: it is empty; write the individual's words of the prompt")
        parts, device = _ready(self.encoders)
        local_encoder: Any = parts["local_encoder"] if local_tokens and "local_encoder" in parts else None
        if local_tokens and local_encoder is None:
            raise InputError(f"{self.folder}: the bundle has no local encoder; add one, or switch local_tokens off")
        local_size = self.config.local_image_size
        local_size = local_encoder.picture_size(local_size) if local_encoder else local_size
        pixels, local_pixels = (
            clip_pixels([picture], size).to(device, self.dtype) for size in (self.config.clip_image_size, local_size)
        )
        tokens = picture_tokens(
            parts["image_encoder"],
            local_encoder,
            pixels,
            local_pixels,
            "own" if local_tokens else "none",
            self.config.num_patches,
        )
        ids = self.tokenizer([name.strip()], padding="max_length", truncation=True, return_tensors="pt")["input_ids"]
        phrase = parts["text_encoder"](ids.to(device)).pooler_output
        return Individual(name.strip(), tokens[0].cpu(), phrase[0].float().cpu())

    @torch.no_grad()
    def keys_values(
        self, individuals: Sequence[Individual], boxes: Sequence[Box], gamma: float
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """K and V (M, C) of every attn2, M tokens of all individuals; gamma is folded into V."""
        parts, device = _ready(self.projections)
        tokens = [
            parts["resampler"](
                individual.tokens[None].to(device, self.dtype),
                torch.tensor(box, device=device)[None],
                individual.phrase[None].to(device),
            )[0]
            for individual, box in zip(individuals, boxes, strict=True)
        ]
        joined = torch.cat(tokens)
        layers = zip(parts["to_k"].children(), parts["to_v"].children(), strict=True)
        return [(to_k(joined), to_v(joined) * gamma) for to_k, to_v in layers]

    def check(self, widths: Sequence[tuple[int, ...]]) -> None:
        """Compare with the shapes (C, D) of ``to_k`` in the attn2 layers of a UNet, in the adapter's order.

        Raises:
            InputError: the adapter is for another UNet.
        """
        own = [tuple(layer.weight.shape) for layer in self.projections.model["to_k"].children()]
        if own != list(widths):
            raise InputError(
                f"Apply Relation: model: not of the base that {self.folder} is made for ({len(widths)} attn2 layers, "
                f"{len(own)} expected, of the same widths); load a checkpoint of that base"
            )


def load_adapter(bundle: str) -> Adapter:
    """Load all of a bundle that individuals need: no UNet, no VAE.

    Args:
        bundle: a name of ``rbctl models list``, or a folder.

    Raises:
        InputError: the bundle is not there, or a part of it is missing or damaged.
    """
    import comfy.model_management as management
    from comfy.model_patcher import ModelPatcher
    from transformers import CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

    folder = resolve(bundle)
    config = adapter_config(folder)
    device, offload = management.get_torch_device(), management.text_encoder_offload_device()
    dtype = DTYPES[pick_precision("auto", device)]
    encoders = nn.ModuleDict(
        {
            "text_encoder": network(CLIPTextModel, folder / "text_encoder", dtype),
            "image_encoder": network(CLIPVisionModelWithProjection, folder / "clip_vision", dtype),
        }
    )
    if has_local_encoder(folder):
        encoders["local_encoder"] = load_local_encoder(folder / "clipself")
    path = next(p for p in (folder / "ms_adapter.safetensors", folder / "ms_adapter.bin") if p.is_file())
    with loading(path):
        projections = _projections(read_adapter(path), config)
    modules = [module.to(dtype).requires_grad_(False).eval() for module in (encoders, projections)]
    patchers = [ModelPatcher(module, load_device=device, offload_device=offload) for module in modules]
    return Adapter(folder, config, dtype, from_pretrained(CLIPTokenizer, folder / "tokenizer"), *patchers)


def _projections(tensors: dict[str, torch.Tensor], config: AdapterConfig) -> nn.ModuleDict:
    """The resampler, and to_k and to_v of the attn2 layers in the order of their index in the adapter's file."""
    with torch.device("meta"):
        resampler = Resampler(config.resampler)
    image_proj = {key.removeprefix("image_proj."): v for key, v in tensors.items() if key.startswith("image_proj.")}
    resampler.load_state_dict(image_proj, assign=True)
    numbers = sorted({int(key.split(".")[1]) for key in tensors if key.startswith("ms_adapter.")})

    def linears(name: str) -> nn.ModuleList:
        return nn.ModuleList(_linear(tensors[f"ms_adapter.{number}.{name}.weight"]) for number in numbers)

    return nn.ModuleDict({"resampler": resampler, "to_k": linears("to_k_ip"), "to_v": linears("to_v_ip")})


def _linear(weight: torch.Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer


def _ready(patcher: Any) -> tuple[nn.ModuleDict, torch.device]:
    """A patcher's networks, on the device after ComfyUI has made room for them there."""
    import comfy.model_management as management

    management.load_models_gpu([patcher], force_full_load=True)
    return patcher.model, patcher.load_device
