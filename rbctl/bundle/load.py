"""Load a bundle: all frozen networks of a base model."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rbctl import attention
from rbctl.bundle import hashes
from rbctl.bundle.catalogue import contents, has_local_encoder, resolve
from rbctl.bundle.convert import (
    OFFICIAL,
    check_tensors,
    default_open_clip_config,
    read_adapter,
    read_local_encoder,
    read_open_clip_config,
)
from rbctl.conditioning import DUMMY_TOKENS
from rbctl.embeddings import Embedding, pieces, placed, token_ids
from rbctl.errors import InputError, abridged
from rbctl.files import read_object
from rbctl.image_prompt import ImagePromptEncoder
from rbctl.pretrained import from_pretrained, network, told
from rbctl.resampler import Resampler, ResamplerConfig

_NETWORKS = ("text_encoder", "text_encoder_2", "image_prompt_encoder", "unet", "vae")


@dataclass
class Bundle:
    """Frozen networks of one base model, in eval mode on one device.

    Attributes:
        gamma: weight of the image branch that the adapter was trained for.
        clip_image_size, local_image_size: pixels at which image prompts are shown to the two encoders.
        lowvram: the networks lie in main memory and come to the device when they are needed (see ``place``).
    """

    folder: Path
    device: torch.device
    dtype: torch.dtype
    tokenizer: Any
    tokenizer_2: Any
    text_encoder: Any
    text_encoder_2: Any
    unet: Any
    vae: Any
    scheduler_config: dict[str, Any]
    image_prompt_encoder: Any
    gamma: float
    clip_image_size: int
    local_image_size: int
    lowvram: bool = False

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def latent_scale(self) -> int:
        """Pixels per latent cell."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def resolution(self) -> int:
        """The side in pixels the base model was made for."""
        return int(self.unet.config.sample_size * self.latent_scale)

    @property
    def levels(self) -> int:
        """Number of resolutions in the UNet."""
        return len(self.unet.config.block_out_channels)

    def place(self, *parts: str) -> None:
        """Where the card is small: these networks onto the device, all others off it. Elsewhere they are there."""
        if not self.lowvram:
            return
        for part in sorted(_NETWORKS, key=parts.__contains__):  # room is made first
            if module := getattr(self, part):
                module.to(self.device if part in parts else "cpu")

    def drop_encoders(self) -> None:
        """Let the text and image encoders go, and their memory with them."""
        self.text_encoder = self.text_encoder_2 = self.image_prompt_encoder = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def scheduler(self) -> Any:
        """A fresh scheduler for sampling, as the bundle names it (Euler for SDXL).

        Raises:
            InputError: diffusers has no such scheduler, or it takes no such settings.
        """
        from diffusers import schedulers

        with told(self.folder / "scheduler" / "scheduler_config.json"):
            kind = getattr(schedulers, self.scheduler_config.get("_class_name", "EulerDiscreteScheduler"))
            return kind.from_config(self.scheduler_config)

    def training_schedule(self) -> tuple[torch.Tensor, str]:
        """abar of every training timestep (T,), and the prediction type.

        Raises:
            InputError: the schedule's settings are damaged.
        """
        from diffusers import DDPMScheduler

        keep = {"num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas"}
        keep |= {"prediction_type", "rescale_betas_zero_snr"}
        with told(self.folder / "scheduler" / "scheduler_config.json"):
            schedule = DDPMScheduler(**{k: v for k, v in self.scheduler_config.items() if k in keep})
        return schedule.alphas_cumprod, schedule.config.prediction_type

    def encode_prompts(
        self, prompts: Sequence[str], embeddings: Sequence[Embedding] = ()
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """SDXL's text conditioning.

        Args:
            embeddings: what the prompts' learned tokens stand for; gradients flow to those vectors that ask for them.

        Returns:
            (B, 77, D), the second-to-last hidden states of both text encoders side by side; and (B, P), the projected
            pooled output of the second.
        """
        self.place("text_encoder", "text_encoder_2")
        hidden, pooled = [], None
        learning = torch.is_grad_enabled() and any(v.requires_grad for e in embeddings for v in e.vectors)
        for side, (tokenizer, encoder) in enumerate(
            ((self.tokenizer, self.text_encoder), (self.tokenizer_2, self.text_encoder_2))
        ):
            read: contextlib.AbstractContextManager[torch.Tensor]
            if embeddings:
                vectors = torch.cat([embedding.vectors[side] for embedding in embeddings])
                read = placed(encoder, token_ids(tokenizer, prompts, embeddings).to(self.device), vectors)
            else:
                read = contextlib.nullcontext(self._token_ids(tokenizer, prompts))
            with torch.set_grad_enabled(learning), read as ids:
                output = encoder(ids, output_hidden_states=True)
            hidden.append(output.hidden_states[-2])
            pooled = output[0]
        assert pooled is not None
        return torch.cat(hidden, dim=-1), pooled

    def encode_phrases(self, phrases: Sequence[str]) -> torch.Tensor:
        """Pooled output of the first text encoder, (R, 768 in SDXL): what the resampler knows of an object's name."""
        self.place("text_encoder", "text_encoder_2")
        with torch.no_grad():
            return self.text_encoder(self._token_ids(self.tokenizer, phrases)).pooler_output

    def overlong(self, prompt: str, embeddings: Sequence[Embedding] = ()) -> bool:
        """Whether the text encoders see only a part of the prompt."""
        return len(pieces(self.tokenizer, prompt, embeddings)) + 2 > self.tokenizer.model_max_length

    def _token_ids(self, tokenizer: Any, texts: Sequence[str]) -> torch.Tensor:
        ids = tokenizer(list(texts), padding="max_length", truncation=True, return_tensors="pt")
        return ids["input_ids"].to(self.device)

    def encode_pictures(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Pictures (B, 3, H, W) in [-1, 1] -> mean and standard deviation of their scaled latents (B, C, h, w)."""
        self.place("vae")
        with torch.no_grad():
            posterior = self.vae.encode(pixels.to(self.vae.device, self.vae.dtype)).latent_dist
        shift, factor = self.vae.config.shift_factor or 0.0, self.vae.config.scaling_factor
        return (posterior.mean - shift) * factor, posterior.std * factor

    def decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Scaled latents (B, C, h, w) -> pictures (B, 3, H, W), roughly in [-1, 1].

        One at a time: decoding is where the memory of large pictures peaks.
        """
        self.place("vae")
        shift, factor = self.vae.config.shift_factor or 0.0, self.vae.config.scaling_factor
        with torch.no_grad():
            scaled = latents.to(self.vae.dtype) / factor + shift
            return torch.cat([self.vae.decode(one[None]).sample for one in scaled])


def load(
    name_or_folder: str,
    device: torch.device,
    dtype: torch.dtype,
    local_encoder: bool = True,
    encoders: bool = True,
    lowvram: bool = False,
    image_encoders: bool = True,
) -> Bundle:
    """Load the networks of a bundle, frozen and in eval mode. The VAE stays float32: SDXL's overflows in half.

    Args:
        name_or_folder: a name of the catalogue, or a folder of the same layout.
        local_encoder: load the CLIPSelf encoder; False runs without local tokens.
        encoders: load the text and image encoders; False where their results are at hand already.
        lowvram: the networks stay in main memory until ``Bundle.place`` calls them, and large pictures are decoded in
            tiles.
        image_encoders: with the encoders, those of image prompts too; False where there will be none.

    Raises:
        InputError: the bundle is not there, or a part of it is missing or damaged; the mend is told.
    """
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer, CLIPVisionModelWithProjection

    from rbctl.bundle.vae import vae_class

    folder = resolve(name_or_folder)
    summary(folder)  # damage in small files is told before large ones are read
    config = _adapter_config(folder)
    if encoders and image_encoders and local_encoder and not has_local_encoder(folder):
        raise InputError(f"{folder}: the bundle has no local encoder; add one, or run with --local-tokens none")

    def part(loader: Any, name: str, wanted: torch.dtype = dtype) -> Any:
        return network(loader, folder / name, wanted)

    tokenizers = [_tokenizer(CLIPTokenizer, folder, number) for number in ("", "_2")]
    scheduler_config = read_object(folder / "scheduler" / "scheduler_config.json")
    unet = part(UNet2DConditionModel, "unet")
    vae_config = folder / "vae" / "config.json"
    vae = part(vae_class(read_object(vae_config), vae_config), "vae", torch.float32)
    with told(folder / "ms_adapter_config.json"), torch.device("meta"):
        resampler = Resampler(config.resampler)
    dummies = _load_adapter(folder, unet, resampler)
    encoder = None
    if encoders and image_encoders:
        image_encoder = part(CLIPVisionModelWithProjection, "clip_vision")
        local = _load_local_encoder(folder / "clipself") if local_encoder else None
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
        vae=vae,
        scheduler_config=scheduler_config,
        image_prompt_encoder=encoder,
        gamma=config.scale,
        clip_image_size=config.clip_image_size,
        local_image_size=config.local_image_size,
        lowvram=lowvram,
    )
    bundle.scheduler()  # told now, not when the sampling begins
    for module in (unet, vae, encoder, bundle.text_encoder, bundle.text_encoder_2):
        if module is not None:
            module.requires_grad_(False).eval().to("cpu" if lowvram else device)
    if lowvram and hasattr(vae, "enable_tiling"):
        vae.enable_tiling()  # diffusers decodes in tiles only what is larger than the VAE was made for
    return bundle


@dataclass(frozen=True)
class Summary:
    """What a bundle says of itself without loading a network: side in pixels, default weight of the image branch."""

    resolution: int
    gamma: float


def summary(folder: Path) -> Summary:
    """Read a bundle's defaults from its JSON files.

    Raises:
        InputError: one of them is damaged.
    """
    side = _whole_number(unet := folder / "unet" / "config.json", read_object(unet), "sample_size")
    widths = read_object(vae := folder / "vae" / "config.json").get("block_out_channels")
    if not isinstance(widths, list) or not widths:
        raise InputError(f"{vae}: block_out_channels is {abridged(widths)}; a list was expected")
    return Summary(resolution=side * 2 ** (len(widths) - 1), gamma=_adapter_config(folder).scale)


BASE = ("unet", "ms_adapter.safetensors", "ms_adapter.bin")  # what a relation LoRA was tuned on


def fingerprint(folder: Path, parts: Sequence[str] | None = None) -> str:
    """Names the content of a bundle, wherever it lies: SHA-256 over the paths and hashes of its files.

    The hashes are those of the files as they are now, not those of ``bundle.json``, which says what came once.

    Args:
        parts: only these files and folders of it, as ``BASE``.
    """
    paths = [path for path in contents(folder) if parts is None or Path(path).parts[0] in parts]
    digests = hashes.file_hashes(folder, paths)
    return hashlib.sha256("".join(f"{path}\0{digest}\n" for path, digest in digests.items()).encode()).hexdigest()


def generator_fingerprint(folder: Path) -> str:
    """Names what pictures are made with; another oracle, DINO, recipe or model card does not change it."""
    parts = {Path(path).parts[0] for path in contents(folder)} - {"oracle", "dino", "README.md", "recipe.yaml"}
    return fingerprint(folder, sorted(parts))


def local_encoder_hash(folder: Path) -> str:
    """Names the bundle's local encoder; empty where there is none."""
    return fingerprint(folder, ("clipself",)) if has_local_encoder(folder) else ""


def _whole_number(path: Path, config: Mapping[str, Any], name: str, default: int | None = None) -> int:
    """An entry of a configuration that counts or measures something."""
    value = config.get(name, default)
    if type(value) is not int or value < 1:  # not isinstance: True is no size
        raise InputError(f"{path}: {name} is {abridged(value)}; a positive whole number was expected")
    return value


@dataclass(frozen=True, kw_only=True)
class _AdapterConfig:
    resampler: ResamplerConfig
    num_patches: int
    scale: float
    clip_image_size: int
    local_image_size: int


def _adapter_config(folder: Path) -> _AdapterConfig:
    """Sizes of the adapter; what the file does not say is as in the official SDXL adapter."""
    path = folder / "ms_adapter_config.json"
    given = {**OFFICIAL, **(read_object(path) if path.is_file() else {})}
    sizes = given.get("resampler", {})
    if not isinstance(sizes, dict):
        raise InputError(f"{path}: resampler is {abridged(sizes)}; a JSON object was expected")
    scale = given["scale"]
    if type(scale) not in (int, float) or not math.isfinite(scale):
        raise InputError(f"{path}: scale is {abridged(scale)}; a number was expected")
    names = [f.name for f in dataclasses.fields(ResamplerConfig) if f.name in sizes]
    return _AdapterConfig(
        resampler=ResamplerConfig(**{name: _whole_number(path, sizes, name) for name in names}),
        scale=float(scale),
        **{name: _whole_number(path, given, name) for name in ("num_patches", "clip_image_size", "local_image_size")},
    )


def _tokenizer(loader: Any, folder: Path, number: str) -> Any:
    """A CLIP tokenizer that cuts and pads texts to what its text encoder reads."""
    tokenizer = from_pretrained(loader, folder / f"tokenizer{number}")
    path = folder / f"text_encoder{number}" / "config.json"
    positions = _whole_number(path, read_object(path), "max_position_embeddings", 77)
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


def _load_local_encoder(folder: Path) -> nn.Module:
    """Visual tower of the CLIPSelf encoder, from safetensors or the official epoch_6.pt, in open_clip naming."""
    from open_clip.model import CLIPVisionCfg, _build_vision_tower  # type: ignore[import-not-found,unused-ignore]

    path, weights = folder / "open_clip_config.json", folder / "model.safetensors"
    if not weights.is_file():
        weights = folder / "epoch_6.pt"
    config = read_open_clip_config(path) if path.is_file() else default_open_clip_config()
    with told(path), torch.device("meta"):  # names and shapes; the file's own tensors become the weights
        visual = _build_vision_tower(
            config["embed_dim"], CLIPVisionCfg(**config["vision_cfg"]), config.get("quick_gelu", False)
        )
    tensors = {k.removeprefix("visual."): v for k, v in read_local_encoder(weights).items() if k.startswith("visual.")}
    check_tensors(weights, tensors, {name: tuple(tensor.shape) for name, tensor in visual.state_dict().items()})
    visual.load_state_dict(tensors, assign=True)
    return visual
