"""Load a bundle: all frozen networks of a base model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from rbctl import attention
from rbctl.bundle.bundle import Bundle
from rbctl.bundle.catalogue import has_local_encoder, resolve
from rbctl.bundle.config import adapter_config, summary, text_positions
from rbctl.bundle.convert import (
    check_tensors,
    local_encoder_config,
    read_adapter,
    read_local_encoder,
)
from rbctl.bundle.other_vae import load_vae
from rbctl.bundle.towers import ADAPTER_MAP, build_visual, fill_visual, read_adapter_map
from rbctl.conditioning import DUMMY_TOKENS
from rbctl.errors import InputError, abridged
from rbctl.files import read_network_config, read_object
from rbctl.image_prompt import ImagePromptEncoder
from rbctl.local_encoder import LocalEncoder, tower_parts
from rbctl.measurements import measured
from rbctl.pretrained import from_pretrained, loading, network
from rbctl.resampler import Resampler


@measured("load the bundle")
def load(
    name_or_folder: str,
    device: torch.device,
    dtype: torch.dtype,
    local_encoder: bool = True,
    encoders: bool = True,
    lowvram: bool = False,
    image_encoders: bool = True,
    vae: str | Path | None = None,
) -> Bundle:
    """Load the networks of a bundle, frozen and in eval mode. The VAE stays float32: SDXL's overflows in half.

    Args:
        name_or_folder: a name of the catalogue, or a folder of the same layout.
        local_encoder: load the CLIPSelf encoder; False runs without local tokens.
        encoders: load the text and image encoders; False where their results are at hand already.
        lowvram: the networks stay in main memory until ``Bundle.place`` calls them, and large pictures are decoded in
            tiles.
        image_encoders: with the encoders, those of image prompts too; False where there will be none.
        vae: in place of the bundle's own, see :func:`rbctl.bundle.other_vae.vae_files`.

    Raises:
        InputError: the bundle is not there, or a part of it is missing or damaged; the mend is told.
    """
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer, CLIPVisionModelWithProjection

    from rbctl.bundle.vae import vae_class

    folder = resolve(name_or_folder)
    summary(folder)  # damage in small files is told before large ones are read
    config = adapter_config(folder)
    if encoders and image_encoders and local_encoder and not has_local_encoder(folder):
        raise InputError(f"{folder}: the bundle has no local encoder; add one, or run with --local-tokens none")

    def part(loader: Any, name: str, wanted: torch.dtype = dtype) -> Any:
        return network(loader, folder / name, wanted)

    tokenizers = [_tokenizer(CLIPTokenizer, folder, number) for number in ("", "_2")]
    scheduler_config = read_object(folder / "scheduler" / "scheduler_config.json")
    vae_config = folder / "vae" / "config.json"
    if vae:
        decoder = load_vae(vae, folder)
    else:
        decoder = part(vae_class(read_network_config(vae_config), vae_config), "vae", torch.float32)
    unet = part(UNet2DConditionModel, "unet")
    with loading(folder / "ms_adapter_config.json"), torch.device("meta"):
        resampler = Resampler(config.resampler)
    dummies = _load_adapter(folder, unet, resampler)
    encoder, local_size = None, config.local_image_size
    if encoders and image_encoders:
        image_encoder = part(CLIPVisionModelWithProjection, "clip_vision")
        local = load_local_encoder(folder / "clipself") if local_encoder else None
        local_size = local.picture_size(local_size) if local else local_size
        encoder = ImagePromptEncoder(image_encoder, local, resampler, dummies, config.num_patches).to(dtype)
    bundle = Bundle(
        folder=folder,
        device=device,
        dtype=dtype,
        tokenizer=tokenizers[0],
        tokenizer_2=tokenizers[1],
        text_encoder=part(CLIPTextModel, "text_encoder") if encoders else None,
        text_encoder_2=part(CLIPTextModelWithProjection, "text_encoder_2") if encoders else None,
        unet=unet,
        vae=decoder,
        scheduler_config=scheduler_config,
        image_prompt_encoder=encoder,
        gamma=config.scale,
        clip_image_size=config.clip_image_size,
        local_image_size=local_size,
        lowvram=lowvram,
    )
    bundle.scheduler()  # told now, not when the sampling begins
    for module in (unet, decoder, encoder, bundle.text_encoder, bundle.text_encoder_2):
        if module is not None:
            module.requires_grad_(False).eval().to("cpu" if lowvram else device)
    if lowvram and hasattr(decoder, "enable_tiling"):
        decoder.enable_tiling()  # diffusers decodes in tiles only what is larger than the VAE was made for
    return bundle


def load_tokenizer(name_or_folder: str) -> Any:
    """The first tokenizer of a bundle, which says how much of a text its encoders read.

    Raises:
        InputError: the bundle is not there, or the tokenizer does not fit it.
    """
    from transformers import CLIPTokenizer

    return _tokenizer(CLIPTokenizer, resolve(name_or_folder), "")


def _tokenizer(loader: Any, folder: Path, number: str) -> Any:
    """A CLIP tokenizer that cuts and pads texts to what its text encoder reads."""
    tokenizer = from_pretrained(loader, folder / f"tokenizer{number}")
    positions = text_positions(folder / f"text_encoder{number}")
    if tokenizer.model_max_length != positions:
        raise InputError(
            f"{folder / f'tokenizer{number}' / 'tokenizer_config.json'}: model_max_length is "
            f"{abridged(tokenizer.model_max_length)}; its text encoder reads {positions} tokens"
        )
    return tokenizer


def _load_adapter(folder: Path, unet: Any, resampler: Resampler) -> torch.Tensor:
    """Fill the resampler and the UNet's image projections; returns the dummy tokens (4, D)."""
    path = folder / "ms_adapter.safetensors"
    if not path.is_file():
        path = folder / "ms_adapter.bin"
    tensors = read_adapter(path)
    index = attention.adapter_index(unet)
    parts: dict[str, nn.Module] = {"image_proj": resampler}
    parts |= {f"ms_adapter.{index[layer]}": processor for layer, processor in attention.install(unet).items()}
    shapes = {f"{part}.{k}": tuple(v.shape) for part, module in parts.items() for k, v in module.state_dict().items()}
    shapes["dummy_image_tokens"] = (1, DUMMY_TOKENS, resampler.config.output_dim)
    check_tensors(path, tensors, shapes)
    for part, module in parts.items():
        wanted = {k: tensors[f"{part}.{k}"].to(unet.dtype) for k in module.state_dict()}
        module.load_state_dict(wanted, assign=True)
    return tensors["dummy_image_tokens"][0]


def load_local_encoder(folder: Path) -> LocalEncoder:
    """The CLIPSelf encoder: its visual tower, from safetensors or the official epoch_6.pt, in open_clip naming; and
    the map to the adapter's width beside it, where there is one.
    """
    weights = folder / "model.safetensors"
    if not weights.is_file():
        weights = folder / "epoch_6.pt"
    with torch.device("meta"):  # names and shapes; the file's own tensors become the weights
        visual = build_visual(local_encoder_config(folder), folder / "open_clip_config.json")
    tensors = {k.removeprefix("visual."): v for k, v in read_local_encoder(weights).items() if k.startswith("visual.")}
    check_tensors(weights, tensors, {name: tuple(tensor.shape) for name, tensor in visual.state_dict().items()})
    to_adapter = None
    if (path := folder / ADAPTER_MAP).is_file():
        weight = read_adapter_map(path, tower_parts(visual).width)["weight"]
        rows, columns = weight.shape
        to_adapter = nn.Linear(columns, rows, bias=False, device="meta")
        to_adapter.load_state_dict({"weight": weight}, assign=True)
    return LocalEncoder(fill_visual(visual, tensors), to_adapter)
