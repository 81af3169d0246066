"""Bases whose transformer reads words, noisy latents and reference pictures in one sequence, and gives a velocity.

Flow matching: x_t = (1 - t) x_0 + t noise with t in (0, 1), and the model gives v = noise - x_0, as the scheduler
FlowMatchEulerDiscrete of diffusers has it. Timesteps are 1000 t.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image

from rbctl import lora
from rbctl.bases import family_of
from rbctl.conditioning import box_cells
from rbctl.embeddings import Embedding
from rbctl.pretrained import loading

TIMESTEPS = 1000
LARGEST_REFERENCE = 1024  # side in pixels: what the pipelines of diffusers show at most


@dataclass(frozen=True)
class Reading:
    """What one call of the transformer reads besides the noisy latents.

    Attributes:
        words: (B, T, D) of the text encoder.
        words_mask: (B, T) bool, false for padding; None where every word counts.
        references: (B, N, C, p, p) latents of the individuals' pictures.
        present: (B, N) bool, false for an individual that a sample lacks.
        boxes: (B, N, 4) relative xyxy: only the places in an individual's box see its picture; None for no mask.
    """

    words: torch.Tensor
    words_mask: torch.Tensor | None
    references: torch.Tensor
    present: torch.Tensor
    boxes: torch.Tensor | None = None


@dataclass
class ReferenceTransformer(ABC):
    """A loaded base; see :class:`rbctl.bases.Base`.

    Attributes:
        pipeline: of diffusers, which holds the networks and reads texts; its own loop is not used.
    """

    folder: Path
    device: torch.device
    dtype: torch.dtype
    pipeline: Any
    lowvram: bool = False
    gamma: ClassVar[float] = 1.0  # there is no image branch to weigh

    architecture: ClassVar[str]
    multiple: ClassVar[int] = 16  # pixels: two cells of the VAE make a token
    latent_scale: ClassVar[int]
    adapter_hint: ClassVar[str] = "It was tuned with reference pictures in the order of its roles: image 1, image 2."
    parts: ClassVar[tuple[str, ...]] = ("text_encoder", "transformer", "vae")

    # --- what a family gives

    @abstractmethod
    def encode_text(self, text: str, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """(T, D) of an instruction; a text encoder with eyes sees the pictures too."""

    @abstractmethod
    def encode_pictures(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Pictures (B, 3, H, W) in [-1, 1] -> mean and standard deviation of their scaled latents (B, C, h, w).

        The pipelines of diffusers take the mean, so that the deviation is zero on their bases.
        """

    @abstractmethod
    def decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Scaled latents (B, C, h, w) -> pictures (B, 3, H, W), roughly in [-1, 1]."""

    @property
    @abstractmethod
    def latent_channels(self) -> int:
        """C."""

    @abstractmethod
    def cells(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (R, C, h, w) at the finest cells that the VAE has."""

    @abstractmethod
    def pack(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (R, C, h, w) -> tokens (R, L, D), row by row."""

    @abstractmethod
    def unpack(self, tokens: torch.Tensor, latent_size: tuple[int, int]) -> torch.Tensor:
        """Tokens (R, L, D) -> latents (R, C, h, w)."""

    @abstractmethod
    def grid(self, latent_size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the tokens of latents (h, w)."""

    def pack_references(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (R, C, p, p) of references -> tokens (R, L, D)."""
        return self.pack(latents)

    def reference_grid(self, side: int) -> tuple[int, int]:
        """Rows and columns of the tokens of a reference's latents (p, p)."""
        return self.grid((side, side))

    @abstractmethod
    def call(
        self,
        model: Any,
        tokens: torch.Tensor,
        times: torch.Tensor,
        sequence: Reading,
        grids: Sequence[tuple[int, int]],
        mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """The transformer's output for all picture tokens, (B, L, D).

        Args:
            tokens: (B, L, D) of the noisy latents, then of every reference.
            times: (B,) in (0, 1).
            grids: rows and columns of the tokens of each of them.
            mask: (B, 1, 1 or T + L, T + L) bool, true where a token may look; None for everywhere.
        """

    @abstractmethod
    def shift(self, tokens: int, steps: int) -> float:
        """mu of the scheduler's shift of the timesteps, for a picture of so many tokens."""

    # --- what is the same for all

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def model(self) -> Any:
        return self.pipeline.transformer

    transformer = model  # the name by which files of LoRAs know it

    @property
    def text_encoder(self) -> Any:
        return self.pipeline.text_encoder

    @property
    def tokenizer(self) -> Any:
        return self.pipeline.tokenizer

    @property
    def vae(self) -> Any:
        return self.pipeline.vae

    @property
    def distilled(self) -> bool:
        """Whether it was distilled to go without guidance."""
        return bool(self.pipeline.config.get("is_distilled"))

    @property
    def resolution(self) -> int:
        return LARGEST_REFERENCE

    def place(self, *parts: str) -> None:
        if not self.lowvram:
            return
        for part in sorted(self.parts, key=parts.__contains__):  # room is made first
            if module := getattr(self.pipeline, part):
                module.to(self.device if part in parts else "cpu")

    def drop_encoders(self) -> None:
        self.pipeline.text_encoder = None
        self.place("transformer", "vae")
        self.lowvram = False
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def move(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        place = "cpu" if self.lowvram else device
        self.vae.to(place)
        for part in ("transformer", "text_encoder"):
            if module := getattr(self.pipeline, part):
                module.to(place, dtype)

    def compile(self) -> None:
        self.model.compile_repeated_blocks()

    def scheduler(self, name: str | None = None) -> Any:
        with loading(self.folder / "scheduler" / "scheduler_config.json"):
            return type(self.pipeline.scheduler).from_config(self.pipeline.scheduler.config)

    def set_timesteps(self, scheduler: Any, steps: int, latent_size: tuple[int, int]) -> None:
        rows, columns = self.grid(latent_size)
        times = np.linspace(1.0, 1 / steps, steps)
        scheduler.set_timesteps(sigmas=times, mu=self.shift(rows * columns, steps), device=self.device)
        scheduler.set_begin_index(0)

    def overlong(self, prompt: str, embeddings: Sequence[Embedding] = ()) -> bool:
        return len(self.tokenizer(prompt)["input_ids"]) > self.tokenizer.model_max_length

    def lora_targets(self, layers: str) -> list[str]:
        return family_of(self.folder).targets((name for name, _ in self.model.named_modules()), layers)

    def save_lora(self, path: Path, metadata: Mapping[str, str], alpha: float, form: Any) -> None:
        lora.save(path, lora.state(self.model), metadata, alpha, form, network="transformer")

    @torch.no_grad()
    def texts(self, texts: Sequence[str], pictures: Sequence[Sequence[Image.Image]]) -> list[torch.Tensor]:
        """(T, D) of each instruction with its individuals' squares."""
        self.place("text_encoder")
        return [self.encode_text(text, own) for text, own in zip(texts, pictures, strict=True)]

    def velocity(self, model: Any, noisy: torch.Tensor, times: torch.Tensor, sequence: Reading) -> torch.Tensor:
        """v of noisy latents, (B, C, h, w) float32.

        Args:
            times: (B,) in (0, 1).
        """
        size = noisy.shape[-2], noisy.shape[-1]
        batch, individuals = sequence.present.shape
        tokens, grids = self.pack(noisy), [self.grid(size)]
        length = tokens.shape[1]
        if individuals:
            side = sequence.references.shape[-1]
            shown = self.pack_references(sequence.references.flatten(0, 1).to(tokens))
            tokens = torch.cat((tokens, shown.reshape(batch, -1, tokens.shape[-1])), dim=1)
            grids += [self.reference_grid(side)] * individuals
        mask = attention_mask(sequence, grids)
        output = self.call(model, tokens.to(sequence.words.dtype), times, sequence, grids, mask)
        return self.unpack(output[:, :length].float(), size)


def attention_mask(sequence: Reading, grids: Sequence[tuple[int, int]]) -> torch.Tensor | None:
    """Which token may look at which, in the order words, picture, references; None where all may at all.

    Nobody looks at the padding of words, nor at references that a sample lacks. With boxes, a place of the picture
    looks at a reference only where it lies in that individual's box.

    Args:
        grids: rows and columns of the picture's tokens, then of each reference's.

    Returns:
        (B, 1, 1, S) bool, or (B, 1, S, S) with boxes.
    """
    present, boxes = sequence.present, sequence.boxes
    batch, device = present.shape[0], present.device
    words = sequence.words_mask
    counts = [rows * columns for rows, columns in grids]
    if (words is None or bool(words.all())) and bool(present.all()) and (boxes is None or not present.shape[1]):
        return None
    if words is None:
        words = torch.ones(sequence.words.shape[:2], dtype=torch.bool, device=device)
    picture = torch.ones(batch, counts[0], dtype=torch.bool, device=device)
    shown = [present[:, k, None].expand(batch, count) for k, count in enumerate(counts[1:])]
    keys = torch.cat((words.to(device), picture, *shown), dim=1)
    if boxes is None or not shown:
        return keys[:, None, None]
    length, first = keys.shape[1], words.shape[1]
    mask = keys[:, None].repeat(1, length, 1)
    start, inside = first + counts[0], box_cells(boxes.float(), grids[0])  # (B, N, L)
    for k, count in enumerate(counts[1:]):
        mask[:, first : first + counts[0], start : start + count] &= inside[:, k, :, None]
        start += count
    return mask[:, None]


def together(texts: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Texts (T, D) of several lengths as (B, T, D), and which of it is no padding, (B, T) bool."""
    longest = max(text.shape[0] for text in texts)
    padded = [torch.cat((text, text.new_zeros(longest - text.shape[0], text.shape[1]))) for text in texts]
    mask = torch.zeros(len(texts), longest, dtype=torch.bool, device=texts[0].device)
    for row, text in enumerate(texts):
        mask[row, : text.shape[0]] = True
    return torch.stack(padded), mask
