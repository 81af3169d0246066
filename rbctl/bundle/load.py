"""Load a bundle: all frozen networks of a base model. The only place that calls ``from_pretrained``."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rbctl import attention
from rbctl.bundle.catalogue import resolve
from rbctl.errors import InputError
from rbctl.files import read_json, read_safetensors, read_torch
from rbctl.image_prompt import ImagePromptEncoder
from rbctl.resampler import Resampler, ResamplerConfig


@dataclass
class Bundle:
    """Frozen networks of one base model, in eval mode on one device.

    Attributes:
        gamma: weight of the image branch that the adapter was trained for.
        clip_image_size, local_image_size: pixels at which image prompts are shown to the two encoders.
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

    def drop_encoders(self) -> None:
        """Let the text and image encoders go, and their memory with them."""
        self.text_encoder = self.text_encoder_2 = self.image_prompt_encoder = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def scheduler(self) -> Any:
        """A fresh scheduler for sampling, as the bundle names it (Euler for SDXL)."""
        import diffusers

        scheduler = getattr(diffusers, self.scheduler_config.get("_class_name", "EulerDiscreteScheduler"))
        return scheduler.from_config(self.scheduler_config)

    def training_schedule(self) -> tuple[torch.Tensor, str]:
        """abar of every training timestep (T,), and the prediction type."""
        from diffusers import DDPMScheduler

        keep = {"num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas"}
        keep |= {"prediction_type", "rescale_betas_zero_snr"}
        schedule = DDPMScheduler(**{k: v for k, v in self.scheduler_config.items() if k in keep})
        return schedule.alphas_cumprod, schedule.config.prediction_type

    def encode_prompts(self, prompts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """SDXL's text conditioning.

        Returns:
            (B, 77, D), the second-to-last hidden states of both text encoders side by side; and (B, P), the projected
            pooled output of the second.
        """
        hidden, pooled = [], None
        for tokenizer, encoder in (
            (self.tokenizer, self.text_encoder),
            (self.tokenizer_2, self.text_encoder_2),
        ):
            with torch.no_grad():
                output = encoder(self._token_ids(tokenizer, prompts), output_hidden_states=True)
            hidden.append(output.hidden_states[-2])
            pooled = output[0]
        assert pooled is not None
        return torch.cat(hidden, dim=-1), pooled

    def encode_phrases(self, phrases: Sequence[str]) -> torch.Tensor:
        """Pooled output of the first text encoder, (R, 768 in SDXL): what the resampler knows of an object's name."""
        with torch.no_grad():
            return self.text_encoder(self._token_ids(self.tokenizer, phrases)).pooler_output

    def overlong(self, prompt: str) -> bool:
        """Whether the text encoders see only a part of the prompt."""
        return len(self.tokenizer(prompt)["input_ids"]) > self.tokenizer.model_max_length

    def _token_ids(self, tokenizer: Any, texts: Sequence[str]) -> torch.Tensor:
        ids = tokenizer(list(texts), padding="max_length", truncation=True, return_tensors="pt")
        return ids["input_ids"].to(self.device)

    def encode_pictures(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Pictures (B, 3, H, W) in [-1, 1] -> mean and standard deviation of their scaled latents (B, C, h, w)."""
        with torch.no_grad():
            posterior = self.vae.encode(pixels.to(self.vae.device, self.vae.dtype)).latent_dist
        shift, factor = self.vae.config.shift_factor or 0.0, self.vae.config.scaling_factor
        return (posterior.mean - shift) * factor, posterior.std * factor

    def decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Scaled latents (B, C, h, w) -> pictures (B, 3, H, W), roughly in [-1, 1]."""
        shift, factor = self.vae.config.shift_factor or 0.0, self.vae.config.scaling_factor
        with torch.no_grad():
            return self.vae.decode(latents.to(self.vae.dtype) / factor + shift).sample


def load(
    name_or_folder: str,
    device: torch.device,
    dtype: torch.dtype,
    local_encoder: bool = True,
    encoders: bool = True,
) -> Bundle:
    """Load the networks of a bundle, frozen and in eval mode. The VAE stays float32: SDXL's overflows in half.

    Args:
        name_or_folder: a name of the catalogue, or a folder of the same layout.
        local_encoder: load the CLIPSelf encoder; False runs without local tokens.
        encoders: load the text and image encoders; False where their results are at hand already.

    Raises:
        InputError: the bundle is not there, or a part of it is missing or damaged; the mend is told.
    """
    import transformers
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer, CLIPVisionModelWithProjection

    transformers.utils.logging.disable_progress_bar()
    folder = resolve(name_or_folder)

    def part(loader: Any, name: str, wanted: torch.dtype | None = dtype) -> Any:
        if not (folder / name).is_dir():
            raise InputError(f"{folder}: the bundle has no {name}/; 'rbctl models verify {name_or_folder}' lists gaps")
        extra = (
            {} if wanted is None else {"torch_dtype" if loader.__module__.startswith("diffusers") else "dtype": wanted}
        )
        try:
            return loader.from_pretrained(folder / name, local_files_only=True, **extra)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise InputError(f"{folder / name}: cannot be loaded ({str(error).splitlines()[0]})") from error

    unet = part(UNet2DConditionModel, "unet")
    vae = part(AutoencoderKL, "vae", torch.float32)
    config = _adapter_config(folder)
    resampler = Resampler(config["resampler"])
    dummies = _load_adapter(folder, unet, resampler)
    encoder = None
    if encoders:
        image_encoder = part(CLIPVisionModelWithProjection, "clip_vision")
        local = _load_local_encoder(folder) if local_encoder else None
        encoder = ImagePromptEncoder(image_encoder, local, resampler, dummies, config["num_patches"]).to(dtype)
    bundle = Bundle(
        folder=folder,
        device=device,
        dtype=dtype,
        tokenizer=part(CLIPTokenizer, "tokenizer", None),
        tokenizer_2=part(CLIPTokenizer, "tokenizer_2", None),
        text_encoder=part(CLIPTextModel, "text_encoder") if encoders else None,
        text_encoder_2=part(CLIPTextModelWithProjection, "text_encoder_2") if encoders else None,
        unet=unet,
        vae=vae,
        scheduler_config=read_json(folder / "scheduler" / "scheduler_config.json"),
        image_prompt_encoder=encoder,
        gamma=config["scale"],
        clip_image_size=config["clip_image_size"],
        local_image_size=config["local_image_size"],
    )
    for network in (unet, vae, encoder, bundle.text_encoder, bundle.text_encoder_2):
        if network is not None:
            network.requires_grad_(False).eval().to(device)
    return bundle


@dataclass(frozen=True)
class Summary:
    """What a bundle says of itself without loading a network: side in pixels, default weight of the image branch."""

    resolution: int
    gamma: float


def summary(folder: Path) -> Summary:
    """Read a bundle's defaults from its JSON files."""
    unet, vae = read_json(folder / "unet" / "config.json"), read_json(folder / "vae" / "config.json")
    scale = 2 ** (len(vae["block_out_channels"]) - 1)
    return Summary(resolution=unet["sample_size"] * scale, gamma=_adapter_config(folder)["scale"])


def fingerprint(folder: Path) -> str:
    """Names the content of a bundle folder: SHA-256 over its JSON files and the names and sizes of its weights."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")):
        digest.update(str(path.relative_to(folder)).encode())
        digest.update(path.read_bytes() if path.suffix == ".json" else str(path.stat().st_size).encode())
    return digest.hexdigest()


def _adapter_config(folder: Path) -> dict[str, Any]:
    """Sizes of the adapter; what the file does not say is as in the official SDXL adapter."""
    path = folder / "ms_adapter_config.json"
    given = read_json(path) if path.is_file() else {}
    names = {f.name for f in dataclasses.fields(ResamplerConfig)}
    sizes = {key: value for key, value in given.get("resampler", {}).items() if key in names}
    defaults = {"num_patches": 4, "scale": 0.6, "clip_image_size": 224, "local_image_size": 896}
    return {**defaults, **given, "resampler": ResamplerConfig(**sizes)}


def _load_adapter(folder: Path, unet: Any, resampler: Resampler) -> torch.Tensor:
    """Fill the resampler and the UNet's image projections; returns the dummy tokens (4, D)."""
    path = folder / "ms_adapter.safetensors"
    tensors = read_safetensors(path)[0] if path.is_file() else flat_adapter(read_torch(folder / "ms_adapter.bin"))
    index = attention.adapter_index(unet)
    processors = attention.install(unet)
    parts: list[tuple[nn.Module, str]] = [(resampler, "image_proj.")]
    parts += [(processor, f"ms_adapter.{index[layer]}.") for layer, processor in processors.items()]
    used = {"dummy_image_tokens"}
    for module, prefix in parts:
        weights = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        used |= {prefix + name for name in weights}
        try:
            module.load_state_dict(weights)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:300]
            raise InputError(
                f"{path}: does not fit this bundle's unet and ms_adapter_config.json ({reason})"
            ) from error
    if unknown := sorted(tensors.keys() - used):
        raise InputError(f"{path}: unexpected tensor {unknown[0]!r}; is this the adapter of another base?")
    if "dummy_image_tokens" not in tensors:
        raise InputError(f"{path}: has no dummy_image_tokens; is this an MS-Diffusion adapter?")
    return tensors["dummy_image_tokens"].reshape(-1, resampler.config.output_dim)


def flat_adapter(nested: Any) -> dict[str, torch.Tensor]:
    """The official ms_adapter.bin (a dict of image_proj, ms_adapter, dummy_image_tokens) with flat names."""
    flat: dict[str, torch.Tensor] = {}
    for key, value in nested.items():
        flat.update({key: value} if torch.is_tensor(value) else {f"{key}.{name}": t for name, t in value.items()})
    return flat


def _load_local_encoder(folder: Path) -> nn.Module:
    """Visual tower of the CLIPSelf encoder, from safetensors or the official epoch_6.pt, in open_clip naming."""
    from open_clip.model import CLIPVisionCfg, _build_vision_tower  # type: ignore[import-not-found,unused-ignore]

    place = folder / "clipself"
    weights, original = place / "model.safetensors", place / "epoch_6.pt"
    if not weights.is_file() and not original.is_file():
        raise InputError(f"{place}: the bundle has no local encoder; add one, or run with --local-tokens none")
    config = _open_clip_config(place / "open_clip_config.json")
    state = read_safetensors(weights)[0] if weights.is_file() else visual_state(read_torch(original))
    visual = _build_vision_tower(
        config["embed_dim"], CLIPVisionCfg(**config["vision_cfg"]), config.get("quick_gelu", False)
    )
    try:
        visual.load_state_dict({k.removeprefix("visual."): v for k, v in state.items() if k.startswith("visual.")})
    except RuntimeError as error:
        raise InputError(
            f"{place}: weights do not fit open_clip_config.json ({str(error).splitlines()[-1].strip()})"
        ) from error
    return visual


def _open_clip_config(path: Path) -> dict[str, Any]:
    """The model's open_clip configuration; ViT-bigG-14 (SDXL's bundle) where the folder names none."""
    if path.is_file():
        content = read_json(path)
        return content.get("model_cfg", content)
    import open_clip

    return json.loads(json.dumps(open_clip.get_model_config("ViT-bigG-14")))


def visual_state(checkpoint: Any) -> dict[str, torch.Tensor]:
    """State dict of an open_clip training checkpoint (epoch_6.pt), without the wrapper's ``module.`` prefix."""
    state = checkpoint.get("state_dict", checkpoint)
    return {key.removeprefix("module."): value for key, value in state.items()}
