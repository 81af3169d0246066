"""A folder of FLUX.2 Klein -> the loaded base."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from rbctl.bases.editors import check_editor, check_schedule, read_editor, summary
from rbctl.bases.reference_transformer import Reading, ReferenceTransformer
from rbctl.errors import InputError
from rbctl.pretrained import from_pretrained

__all__ = ["check_schedule", "load", "load_tokenizer", "summary"]

_MOST_TOKENS = 512  # of a text, with the words around it
_BETWEEN = 10  # references' time coordinates are 10, 20, ..., as in the pipeline of diffusers
_PARTS = {"text_encoder": "Qwen3ForCausalLM", "transformer": "Flux2Transformer2DModel", "vae": "AutoencoderKLFlux2"}


class Flux2(ReferenceTransformer):
    """Latents are those of the VAE, four cells in one of 16 pixels, normalised by the VAE's statistics."""

    architecture = "flux-2-klein"
    latent_scale = 16

    @property
    def latent_channels(self) -> int:
        return int(self.model.config.in_channels)

    def encode_text(self, text: str, pictures: Sequence[Image.Image]) -> torch.Tensor:
        layers = self.text_encoder.config.num_hidden_layers
        embeds, _ = self.pipeline.encode_prompt(
            text,
            device=self.device,
            max_sequence_length=_MOST_TOKENS,
            text_encoder_out_layers=tuple(layers * quarter // 4 for quarter in (1, 2, 3)),  # 9, 18 and 27 of 36
        )
        return embeds[0]

    def _statistics(self) -> tuple[torch.Tensor, torch.Tensor]:
        norm = self.vae.bn
        deviation = (norm.running_var + self.vae.config.batch_norm_eps).sqrt()
        return norm.running_mean[:, None, None], deviation[:, None, None]

    def encode_pictures(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.place("vae")
        with torch.no_grad():
            mean = self.vae.encode(pixels.to(self.vae.device, self.vae.dtype)).latent_dist.mode()
        centre, deviation = self._statistics()
        latents = (torch.nn.functional.pixel_unshuffle(mean, 2) - centre) / deviation
        return latents, torch.zeros_like(latents)

    def decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
        self.place("vae")
        centre, deviation = self._statistics()
        with torch.no_grad():
            cells = self.cells(latents.to(self.vae.device, self.vae.dtype) * deviation + centre)
            return torch.cat([self.vae.decode(one[None]).sample for one in cells])

    def cells(self, latents: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pixel_shuffle(latents, 2)

    def pack(self, latents: torch.Tensor) -> torch.Tensor:
        return latents.flatten(2).mT

    def unpack(self, tokens: torch.Tensor, latent_size: tuple[int, int]) -> torch.Tensor:
        return tokens.mT.unflatten(2, latent_size)

    def grid(self, latent_size: tuple[int, int]) -> tuple[int, int]:
        return latent_size

    def call(
        self,
        model: Any,
        tokens: torch.Tensor,
        times: torch.Tensor,
        sequence: Reading,
        grids: Sequence[tuple[int, int]],
        mask: torch.Tensor | None,
    ) -> torch.Tensor:
        places = [self.places(number, grid) for number, grid in enumerate(grids)]
        words = torch.zeros(sequence.words.shape[1], 4, dtype=places[0].dtype)
        words[:, 3] = torch.arange(len(words))
        output: torch.Tensor = model(
            hidden_states=tokens,
            timestep=times.to(tokens.dtype),
            guidance=None,
            encoder_hidden_states=sequence.words,
            txt_ids=words.to(tokens.device),
            img_ids=torch.cat(places).to(tokens.device),
            joint_attention_kwargs=None if mask is None else {"attention_mask": mask},
            return_dict=False,
        )[0]
        return output

    def places(self, number: int, grid: tuple[int, int]) -> torch.Tensor:
        """Coordinates (L, 4) of a picture's tokens: time, row, column, place in a text.

        Args:
            number: 0 for what is drawn, from 1 for references.
        """
        rows, columns = grid
        places = torch.cartesian_prod(*(torch.arange(n) for n in (1, rows, columns, 1)))
        return places + torch.tensor([_BETWEEN * number, 0, 0, 0])

    def shift(self, tokens: int, steps: int) -> float:
        from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

        return compute_empirical_mu(tokens, steps)


def load(folder: Path, device: torch.device, dtype: torch.dtype, **options: Any) -> Flux2:
    """Args: options: as of :func:`rbctl.bases.load.load`."""
    import diffusers

    parts = read_editor(folder, device, dtype, _PARTS, options)
    tokenizer = parts.pop("tokenizer")
    model, text = parts["transformer"], parts["text_encoder"]
    if text is not None and model.config.joint_attention_dim != 3 * text.config.hidden_size:
        width = f"{model.config.joint_attention_dim} numbers of a word, three layers of the text encoder have"
        raise InputError(
            f"{folder}: the transformer reads {width} {3 * text.config.hidden_size}; take parts of one model"
        )
    distilled = bool(check_editor(folder).get("is_distilled"))
    pipeline = diffusers.Flux2KleinPipeline(**parts, tokenizer=tokenizer, is_distilled=distilled)
    return Flux2(folder, device, dtype, pipeline, bool(options.get("lowvram")))


def load_tokenizer(folder: Path) -> Any:
    """Its ``model_max_length`` leaves room for the words around a prompt."""
    from transformers import AutoTokenizer

    tokenizer = from_pretrained(AutoTokenizer, folder / "tokenizer")
    around = tokenizer.apply_chat_template(
        [{"role": "user", "content": ""}], tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    tokenizer.model_max_length = _MOST_TOKENS - len(tokenizer(around)["input_ids"])
    return tokenizer
