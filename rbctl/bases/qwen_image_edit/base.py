"""A folder of Qwen-Image-Edit-Plus -> the loaded base."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from rbctl.bases.editors import check_schedule, read_editor, summary
from rbctl.bases.qwen_image_edit.attention import MaskedAttention
from rbctl.bases.reference_transformer import Reading, ReferenceTransformer
from rbctl.errors import InputError
from rbctl.pretrained import from_pretrained

__all__ = ["check_schedule", "load", "load_tokenizer", "summary"]

_SEEN = 384  # side in pixels at which the text encoder sees a reference, as in the pipeline of diffusers
_PARTS = {
    "text_encoder": "Qwen2_5_VLForConditionalGeneration",
    "transformer": "QwenImageTransformer2DModel",
    "vae": "AutoencoderKLQwenImage",
}


class QwenImageEdit(ReferenceTransformer):
    """Latents are those of the VAE, a cell 8 pixels; the transformer reads four of them as one token."""

    architecture = "qwen-image-edit-plus"
    latent_scale = 8

    @property
    def latent_channels(self) -> int:
        return int(self.vae.config.z_dim)

    def encode_text(self, text: str, pictures: Sequence[Image.Image]) -> torch.Tensor:
        resize = self.pipeline.image_processor.resize
        seen = [resize(picture, _SEEN, _SEEN) for picture in pictures]
        embeds, _ = self.pipeline.encode_prompt(text, image=seen or None, device=self.device)
        return embeds[0]

    def _statistics(self) -> tuple[torch.Tensor, torch.Tensor]:
        config, device = self.vae.config, self.vae.device
        centre, deviation = (
            torch.tensor(values, device=device) for values in (config.latents_mean, config.latents_std)
        )
        return centre[:, None, None], deviation[:, None, None]

    def encode_pictures(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.place("vae")
        with torch.no_grad():
            frame = pixels.to(self.vae.device, self.vae.dtype)[:, :, None]
            mean = self.vae.encode(frame).latent_dist.mode()[:, :, 0]
        centre, deviation = self._statistics()
        latents = (mean - centre) / deviation
        return latents, torch.zeros_like(latents)

    def decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
        self.place("vae")
        centre, deviation = self._statistics()
        with torch.no_grad():
            scaled = latents.to(self.vae.device, self.vae.dtype) * deviation + centre
            return torch.cat([self.vae.decode(one[None, :, None]).sample[:, :, 0] for one in scaled])

    def cells(self, latents: torch.Tensor) -> torch.Tensor:
        return latents

    def pack(self, latents: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pixel_unshuffle(latents, 2).flatten(2).mT

    def unpack(self, tokens: torch.Tensor, latent_size: tuple[int, int]) -> torch.Tensor:
        return torch.nn.functional.pixel_shuffle(tokens.mT.unflatten(2, self.grid(latent_size)), 2)

    def grid(self, latent_size: tuple[int, int]) -> tuple[int, int]:
        return latent_size[0] // 2, latent_size[1] // 2

    def call(
        self,
        model: Any,
        tokens: torch.Tensor,
        times: torch.Tensor,
        sequence: Reading,
        grids: Sequence[tuple[int, int]],
        mask: torch.Tensor | None,
    ) -> torch.Tensor:
        output: torch.Tensor = model(
            hidden_states=tokens,
            timestep=times.to(tokens.dtype),
            encoder_hidden_states=sequence.words,
            img_shapes=[[(1, *grid) for grid in grids]] * len(tokens),
            attention_kwargs=None if mask is None else {"attention_mask": mask},
            return_dict=False,
        )[0]
        return output

    def shift(self, tokens: int, steps: int) -> float:
        config = self.pipeline.scheduler.config
        share = (tokens - config.base_image_seq_len) / (config.max_image_seq_len - config.base_image_seq_len)
        return float(config.base_shift + share * (config.max_shift - config.base_shift))


def load(folder: Path, device: torch.device, dtype: torch.dtype, **options: Any) -> QwenImageEdit:
    """Args: options: as of :func:`rbctl.bases.load.load`."""
    import diffusers
    import transformers

    parts = read_editor(folder, device, dtype, _PARTS, options)
    model, text = parts["transformer"], parts["text_encoder"]
    if text is not None and model.config.joint_attention_dim != text.config.text_config.hidden_size:
        width = f"{model.config.joint_attention_dim} numbers of a word, the text encoder has"
        raise InputError(
            f"{folder}: the transformer reads {width} {text.config.text_config.hidden_size}; take one model"
        )
    for block in model.transformer_blocks:
        block.attn.set_processor(MaskedAttention())
    processor = from_pretrained(transformers.Qwen2VLProcessor, folder / "processor") if text is not None else None
    pipeline = diffusers.QwenImageEditPlusPipeline(**parts, processor=processor)
    return QwenImageEdit(folder, device, dtype, pipeline, bool(options.get("lowvram")))


def load_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return from_pretrained(AutoTokenizer, folder / "tokenizer")
