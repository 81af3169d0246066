"""A loaded bundle: the frozen networks, and what they encode and decode."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rbctl import attention, lora
from rbctl.embeddings import Embedding, pieces, placed, token_ids
from rbctl.measurements import measured
from rbctl.pretrained import loading
from rbctl.prompts.weights import WeightedText
from rbctl.schedulers import make_scheduler
from rbctl.weighting import weighted_embeds

_SDXL = "stable-diffusion-xl-v1-base"
_SDXL_WIDTHS = [320, 640, 1280]
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
    def model(self) -> Any:
        """The network that learns."""
        return self.unet

    @property
    def latent_channels(self) -> int:
        return int(self.unet.config.in_channels)

    @property
    def architecture(self) -> str:
        """modelspec's name of SDXL for what is built like it; a smaller UNet goes by its bundle's name."""
        return _SDXL if list(self.unet.config.block_out_channels) == _SDXL_WIDTHS else self.name

    @property
    def adapter_hint(self) -> str:
        """What a user of its LoRAs must know of it."""
        return (
            "It was trained beside MS-Diffusion's adapter, which individuals from pictures need; rbctl sample has it."
        )

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
        """Unload the text and image encoders, and free their memory. UNet and VAE then stay on the device."""
        self.text_encoder = self.text_encoder_2 = self.image_prompt_encoder = None
        self.place("unet", "vae")
        self.lowvram = False
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def move(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move the networks, or change their type; the VAE stays float32."""
        self.device, self.dtype = device, dtype
        place = "cpu" if self.lowvram else device
        self.vae.to(place)
        for part in ("unet", "text_encoder", "text_encoder_2", "image_prompt_encoder"):
            if module := getattr(self, part):
                module.to(place, dtype)

    def compile(self) -> None:
        """Compile the UNet's transformer blocks: a slow start, then faster steps."""
        attention.compile_blocks(self.unet)

    def lora_targets(self, layers: str) -> Sequence[str]:
        """How the names of the UNet's layers end that ``--lora-layers`` means."""
        return lora.LAYERS[layers]

    def save_lora(self, path: Path, metadata: Mapping[str, str], alpha: float, form: lora.LoraForm) -> None:
        """Write the LoRA that is on the UNet."""
        lora.save(path, lora.state(self.unet), metadata, alpha, form, lora.sdxl_blocks(self.unet))

    def set_timesteps(self, scheduler: Any, steps: int, latent_size: tuple[int, int]) -> None:
        """Make a scheduler ready; the size of the pictures changes nothing."""
        scheduler.set_timesteps(steps, device=self.device)

    def scheduler(self, name: str | None = None) -> Any:
        """A fresh scheduler for sampling: of this name, else as the bundle names it (Euler for SDXL).

        Raises:
            InputError: diffusers has no such scheduler, or it takes no such settings.
        """
        with loading(self.folder / "scheduler" / "scheduler_config.json"):
            return make_scheduler(self.scheduler_config, name)

    def training_schedule(self) -> tuple[torch.Tensor, str]:
        """abar of every training timestep (T,), and the prediction type.

        Raises:
            InputError: the schedule's settings are damaged.
        """
        from diffusers import DDPMScheduler

        keep = {"num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas"}
        keep |= {"prediction_type", "rescale_betas_zero_snr"}
        with loading(self.folder / "scheduler" / "scheduler_config.json"):
            schedule = DDPMScheduler(**{k: v for k, v in self.scheduler_config.items() if k in keep})
        return schedule.alphas_cumprod, schedule.config.prediction_type

    def encode_prompts(
        self,
        prompts: Sequence[str],
        embeddings: Sequence[Embedding] = (),
        weights: Sequence[Sequence[float]] = (),
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """SDXL's text conditioning.

        Args:
            embeddings: what the prompts' learned tokens stand for; gradients flow to those vectors that ask for them.
            weights: of each character of each prompt, or empty for one without; the pooled output has none, as in
                other programs.

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
            states = output.hidden_states[-2]
            for row, own in enumerate(weights):
                if own:
                    text = WeightedText(prompts[row], tuple(own))
                    states[row] = weighted_embeds(tokenizer, encoder, text, embeddings, side)
            hidden.append(states)
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

    @measured("decode")
    def decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Scaled latents (B, C, h, w) -> pictures (B, 3, H, W), roughly in [-1, 1].

        One at a time: decoding is where the memory of large pictures peaks.
        """
        self.place("vae")
        shift, factor = self.vae.config.shift_factor or 0.0, self.vae.config.scaling_factor
        with torch.no_grad():
            scaled = latents.to(self.vae.dtype) / factor + shift
            return torch.cat([self.vae.decode(one[None]).sample for one in scaled])
