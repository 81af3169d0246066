"""Settings of finetune and sample that fit a GPU: behind ``rbctl doctor --plan``.

Nothing is loaded or run. The real networks pass shapes on the meta device, and what would be held at once is counted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import click
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rbctl import attention, denoising, lora
from rbctl.bases import families
from rbctl.bases.published import PUBLISHED, Published
from rbctl.bases.reference_transformer import Reading, ReferenceTransformer
from rbctl.bundle import random_weights
from rbctl.bundle.random_weights import Architecture, count_weights
from rbctl.bundle.vae import vae_class
from rbctl.conditioning import DUMMY_TOKENS, Conditioning, ImageBranch, latent_grids
from rbctl.progress import print_table

RESOLUTION = 1024
_RESERVED = 1.0e9  # bytes: CUDA itself, its libraries' workspaces, and what the allocator cannot use
_GIB = 2**30  # a card of "12 GB" has so many times 12
_HALF, _FULL = 2, 4  # bytes of a number in bf16, float32
_OBJECTS, _TEXT, _PER_OBJECT = 2, 77, 16
_WORDS = 512  # of an editor's text: FLUX.2 fills every text up to so many


class _Held(TorchDispatchMode):
    """Counts the bytes of all tensors made while it is active, as long as they live."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._note((args, kwargs), counts=False)  # what was there before
        made = func(*args, **(kwargs or {}))
        self._note(made, counts=True)
        return made

    def _note(self, tree: Any, counts: bool) -> None:
        for tensor in tree_leaves(tree):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._sizes:
                    self._sizes[storage._cdata] = storage.nbytes() if counts else 0
                    self.bytes += self._sizes[storage._cdata]
                    self.peak = max(self.peak, self.bytes)
                    weakref.finalize(storage, self._forget, storage._cdata)

    def _forget(self, key: int) -> None:
        self.bytes -= self._sizes.pop(key)


class _Fused(torch.autograd.Function):
    """Attention as GPUs compute it: no map of all queries by all keys is ever held."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        output = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, output)
        return output

    @staticmethod
    def backward(ctx: Any, _gradient: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(map(torch.empty_like, ctx.saved_tensors[:3]))


def _fused(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    return _Fused.apply(query, key, value)


@contextlib.contextmanager
def _on_meta() -> Iterator[None]:
    """Tensors have shapes alone, and the attention is fused. It is patched: recomputed blocks see no function mode."""
    with torch.device("meta"), mock.patch("torch.nn.functional.scaled_dot_product_attention", _fused):
        yield


def peak_bytes(work: Callable[[], Any]) -> int:
    """The most bytes that a call on meta tensors would hold at once, beyond what was there before."""
    with _Held() as held:
        work()
    return held.peak


@dataclass(frozen=True)
class Memory:
    """Bytes, in bf16 with the VAE in float32, for pictures of ``RESOLUTION`` pixels.

    Attributes:
        unet, vae, texts, encoders: weights; the adapter's lie in the UNet and in the image encoders. An editor's
            transformer stands for the UNet.
        local: of the encoders, what --local-tokens none does not load.
        step: what a denoising step of one picture with guidance holds besides the weights. Editors call their
            transformer once for each half of it.
        decoding, encoding: of one picture by the VAE.
        tuning, checkpointed: a sample of a training step, without and with gradient checkpointing. The LoRA itself, its
            gradients and AdamW's moments are some 50 MB more.
    """

    unet: int
    vae: int
    texts: int
    encoders: int
    local: int
    step: int
    decoding: int
    encoding: int
    tuning: int
    checkpointed: int

    @property
    def everything(self) -> int:
        return self.unet + self.vae + self.texts + self.encoders

    def without_local_tokens(self) -> Memory:
        return dataclasses.replace(self, encoders=self.encoders - self.local, local=0)

    def sampling(self, lowvram: bool) -> float:
        """Bytes of ``rbctl sample``."""
        alone = (self.unet + self.step, self.vae + self.decoding, self.texts, self.encoders)
        return max(alone) if lowvram else self.everything + max(self.step, self.decoding)

    def finetuning(self, lowvram: bool, micro_batch_size: int, checkpointing: bool) -> float:
        """Bytes of ``rbctl finetune``: of the encoding of its triplets, or of its steps."""
        encoded = _OBJECTS * self.encoding  # all image prompts of a triplet at once
        encoding = max(self.vae + encoded, self.texts, self.encoders) if lowvram else self.everything + encoded
        sample = self.checkpointed if checkpointing else self.tuning
        return max(encoding, self.unet + self.vae + micro_batch_size * sample)


def measure(sizes: Architecture) -> Memory:
    """Count what the networks of a bundle would hold."""
    weights = count_weights(sizes)
    with _on_meta():
        unet = _unet(sizes)
        of_unet = sum(parameter.numel() for parameter in unet.parameters())
        step = _step_bytes(unet, sizes)
        tuning, checkpointed = (_tuning_bytes(_unet(sizes), sizes, recomputed) for recomputed in (False, True))
        encoding, decoding = _vae_bytes(sizes)
    keys_and_values = of_unet - weights["unet"]  # of the adapter
    encoders = weights["clip_vision"] + weights["clipself"] + weights["adapter"] - keys_and_values
    return Memory(
        unet=_HALF * of_unet,
        vae=_FULL * weights["vae"],
        texts=_HALF * (weights["text_encoder"] + weights["text_encoder_2"]),
        encoders=_HALF * encoders,
        local=_HALF * weights["clipself"],
        step=step,
        decoding=decoding,
        encoding=encoding,
        tuning=tuning,
        checkpointed=checkpointed,
    )


def measure_editor(published: Published) -> Memory:
    """The same of a base with references in its sequence: two of them, each as large as the picture."""
    base = published.on_meta()
    torch.nn.Module.to(base.model.requires_grad_(False), torch.bfloat16)
    with _on_meta():
        texts = sum(parameter.numel() for parameter in published.text_encoder().parameters())
        weights, of_vae = (sum(p.numel() for p in network.parameters()) for network in (base.model, base.vae))
        with torch.no_grad():
            step = peak_bytes(lambda: _velocity(base))
            pixels, latents = torch.empty(1, 3, RESOLUTION, RESOLUTION), _editor_latents(base)
            encoding = peak_bytes(lambda: base.encode_pictures(pixels))
            decoding = peak_bytes(lambda: base.decode_latents(latents))
        layers = (name for name, _ in base.model.named_modules())
        lora.add(base.model, 4, 4.0, seed=0, targets=families()[published.family].targets(layers, "attn2"))
        torch.nn.Module.to(base.model, torch.bfloat16).train()
        tuning = peak_bytes(lambda: _velocity(base).sum().backward())
        base.model.enable_gradient_checkpointing()
        checkpointed = peak_bytes(lambda: _velocity(base).sum().backward())
    return Memory(
        unet=_HALF * weights,
        vae=_FULL * of_vae,
        texts=_HALF * texts,
        encoders=0,
        local=0,
        step=step,
        decoding=decoding,
        encoding=encoding,
        tuning=tuning,
        checkpointed=checkpointed,
    )


def _editor_latents(base: ReferenceTransformer) -> torch.Tensor:
    side = RESOLUTION // base.latent_scale
    return torch.empty(1, base.latent_channels, side, side)


def _velocity(base: ReferenceTransformer) -> torch.Tensor:
    latents = _editor_latents(base)
    reading = Reading(
        words=torch.empty(1, _WORDS, base.model.config.joint_attention_dim, dtype=torch.bfloat16),
        words_mask=None,
        references=latents[:, None].expand(-1, _OBJECTS, -1, -1, -1),
        present=torch.ones(1, _OBJECTS, dtype=torch.bool, device="cpu"),  # is looked at, which no meta tensor can be
    )
    return base.velocity(base.model, latents, torch.empty(1), reading)


def _unet(sizes: Architecture) -> Any:
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_config(sizes.unet)
    attention.install(unet)
    return torch.nn.Module.to(unet.requires_grad_(False), torch.bfloat16)  # diffusers' own warns of parts in float32


def _latent_size(sizes: Architecture) -> tuple[int, int]:
    side = RESOLUTION >> (len(sizes.vae["block_out_channels"]) - 1)
    return side, side


def _conditioning(unet: Any, sizes: Architecture, rows: int) -> Conditioning:
    config = unet.config
    width, time = config.cross_attention_dim, 6 * config.addition_time_embed_dim
    tokens = torch.empty(rows, DUMMY_TOKENS + _PER_OBJECT * _OBJECTS, width, dtype=torch.bfloat16)
    grids = latent_grids(_latent_size(sizes), len(config.block_out_channels))
    return Conditioning(
        prompt_embeds=torch.empty(rows, _TEXT, width, dtype=torch.bfloat16),
        pooled_prompt_embeds=torch.empty(rows, config.projection_class_embeddings_input_dim - time).bfloat16(),
        time_ids=torch.empty(rows, 6, dtype=torch.bfloat16),
        image=ImageBranch.build(tokens, torch.empty(rows, _OBJECTS, 4), grids),
        backend="sdpa",
    )


def _noisy(unet: Any, sizes: Architecture, rows: int) -> torch.Tensor:
    return torch.empty(rows, unet.config.in_channels, *_latent_size(sizes), dtype=torch.bfloat16)


@torch.no_grad()
def _step_bytes(unet: Any, sizes: Architecture) -> int:
    """One picture with guidance; K and V that are kept from step to step count too."""

    def step() -> None:
        projected = attention.project_once(unet, _conditioning(unet, sizes, 2))
        denoising.predict(unet, _noisy(unet, sizes, 2), torch.empty(1), projected)

    return peak_bytes(step)


def _tuning_bytes(unet: Any, sizes: Architecture, recomputed: bool) -> int:
    """One sample, forward and backward, with a LoRA of rank 4; autocast has its products in bf16."""
    lora.add(unet, 4, 4.0, seed=0)
    torch.nn.Module.to(unet, torch.bfloat16).train()
    if recomputed:
        unet.enable_gradient_checkpointing()
    conditioning, noisy = _conditioning(unet, sizes, 1), _noisy(unet, sizes, 1)
    return peak_bytes(lambda: denoising.predict(unet, noisy, torch.empty(1), conditioning).sum().backward())


@torch.no_grad()
def _vae_bytes(sizes: Architecture) -> tuple[int, int]:
    """One picture on its way in and out."""
    vae = vae_class(sizes.vae, "vae").from_config(sizes.vae)
    pixels = torch.empty(1, 3, RESOLUTION, RESOLUTION)
    latents = torch.empty(1, vae.config.latent_channels, *_latent_size(sizes))
    return peak_bytes(lambda: vae.encode(pixels)), peak_bytes(lambda: vae.decode(latents))


@dataclass(frozen=True)
class Plan:
    """What to add to a command on a GPU.

    Attributes:
        card: GB of the GPU, as its name has them.
        flags: the fastest settings that fit; None where none do.
        needed: bytes with these flags, or with the most frugal ones.
    """

    card: float
    command: str
    flags: str | None
    needed: float


def of_base(name: str) -> tuple[str, Memory]:
    """The title of a base, "sdxl" or one of ``PUBLISHED``, and what its networks hold."""
    if name == "sdxl":
        return "SDXL", measure(random_weights.full_size())
    return PUBLISHED[name].title, measure_editor(PUBLISHED[name])


def fitting(memory: Memory, cards: Sequence[float]) -> list[Plan]:
    """What to add to ``rbctl sample`` and ``rbctl finetune`` on each card (GB, as its name has them)."""
    ladders = {"sample": _sampling(memory), "finetune": _finetuning(memory)}
    return [_first_fit(card, command, ladder) for card in cards for command, ladder in ladders.items()]


def _first_fit(card: float, command: str, ladder: Sequence[tuple[str, float]]) -> Plan:
    for flags, needed in ladder:
        if needed <= card * _GIB - _RESERVED:
            return Plan(card, command, flags, needed)
    return Plan(card, command, None, min(needed for _, needed in ladder))


def _sampling(memory: Memory) -> list[tuple[str, float]]:
    """Flags and bytes, the best first."""
    return [
        ("", memory.sampling(lowvram=False)),
        ("--lowvram", memory.sampling(lowvram=True)),
        ("--lowvram --local-tokens none", memory.without_local_tokens().sampling(lowvram=True)),
    ]


def _finetuning(memory: Memory) -> list[tuple[str, float]]:
    """Flags and bytes, the best first: all local tokens, then a fast step, then a fast start."""
    settings = []
    for own, tokens in ((memory, ""), (memory.without_local_tokens(), " --local-tokens none")):
        for recomputed in (False, True):
            for micro in (8, 4, 2, 1):
                for lowvram in (False, True):
                    flags = (
                        f"{'--lowvram ' * lowvram}--micro-batch-size {micro}{' --gradient-checkpointing' * recomputed}"
                    )
                    settings.append((flags + tokens, own.finetuning(lowvram, micro, recomputed)))
    return settings


def print_plans(title: str, plans: Sequence[Plan]) -> None:
    """The plans for a base on stdout, as a table."""
    click.echo(f"{title} at {RESOLUTION} pixels with two individuals in bf16, estimated from the shapes")
    rows = []
    for plan in plans:
        flags = "does not fit" if plan.flags is None else plan.flags or "none"
        rows.append([f"{plan.card:g} GB", plan.command, f"{plan.needed / 1e9:.1f} GB", flags])
    print_table(["GPU", "command", "needs", "flags"], rows)
