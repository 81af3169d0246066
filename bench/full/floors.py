"""The least that each hot spot can take, by arithmetic: bytes through the device's memory, and operations."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.full.clocks import Row
from bench.full.results import Bench
from bench.full.sizes import BOXES, HEAD, NOMINAL, PER_OBJECT, TEXT, TOTAL_BATCH, Scale
from rbctl import attention, denoising, lora
from rbctl.bundle.random_weights import Architecture
from rbctl.conditioning import DUMMY_TOKENS, Conditioning, ImageBranch, latent_grids


class Floor(NamedTuple):
    """The fewest bytes that must go through the device's memory, and the operations that must be done."""

    bytes: float
    flops: float

    def row(self, bandwidth: float, flops: float) -> Row:
        return {
            "MB": self.bytes / 1e6,
            "GFLOP": self.flops / 1e9,
            "ms by bytes": self.bytes / bandwidth * 1e3,
            "ms by operations": self.flops / flops * 1e3,
        }


def attention_floor(rows: int, heads: int, queries: int, objects: int, itemsize: int, backward: bool) -> Floor:
    """The parallel cross-attention alone. Operations are counted as if every query lay in all boxes.

    Forward: q read, the output written, all K and V read. Backward besides: q and the output's gradient read, that of
    q written; K and V read again, the gradients of the text's written (the image's are frozen). The backward pass
    computes the scores anew, as keeping the probabilities would cost more bytes.
    """
    query, image = rows * heads * queries * HEAD, PER_OBJECT * objects
    keys = 2 * rows * heads * (TEXT + image) * HEAD
    moved, done = 2 * query + keys, 4 * query * (TEXT + image)
    if backward:
        moved += 3 * query + keys + 2 * rows * heads * TEXT * HEAD
        done += query * (10 * TEXT + 6 * image)
    return Floor(moved * itemsize, done)


def on_meta(architecture: Architecture) -> Any:
    """The UNet without weights, with our processors: to count with."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(architecture.unet)
        attention.install(unet)
    return unet.requires_grad_(False)


def conditioning_on_meta(unet: Any, scale: Scale, rows: int = 1, with_image: bool = True) -> Conditioning:
    """What rows of two objects hand the UNet: shapes without contents."""
    config = unet.config
    pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    width, grids = config.cross_attention_dim, latent_grids(scale.latent_size, len(config.block_out_channels))
    with torch.device("meta"):
        tokens, boxes = torch.empty(rows, DUMMY_TOKENS + PER_OBJECT * 2, width), torch.empty(rows, 2, 4)
        return Conditioning(
            prompt_embeds=torch.empty(rows, TEXT, width),
            pooled_prompt_embeds=torch.empty(rows, pooled),
            time_ids=torch.empty(rows, 6),
            image=ImageBranch.build(tokens, boxes, grids) if with_image else None,
            backend="sdpa",
        )


def call_flops(unet: Any, scale: Scale, conditioning: Conditioning) -> int:
    """Operations of the conditioning's rows through the UNet, and back where anything of it is trained."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        noisy = torch.empty(len(conditioning.prompt_embeds), unet.config.in_channels, *scale.latent_size)
        output = denoising.predict(unet, noisy, torch.empty(1), conditioning)
        if output.requires_grad:
            output.sum().backward()
    return counter.get_total_flops()


@functools.cache
def step_floor(scale: Scale) -> Floor:
    """One row of a denoising step with two objects: K and V are there, so the weights that make them are not read."""
    unet = on_meta(scale.architecture)
    with torch.no_grad():
        done = call_flops(unet, scale, attention.project_once(unet, conditioning_on_meta(unet, scale)))
    makes_keys = ("attn2.to_k.", "attn2.to_v.", ".processor.")
    weights = sum(p.numel() for name, p in unet.named_parameters() if not any(part in name for part in makes_keys))
    return Floor(2 * weights, done)


@functools.cache
def text_step_flops(scale: Scale) -> float:
    """One row of a step of plain SDXL, which projects the text at every step."""
    unet = on_meta(scale.architecture)
    with torch.no_grad():
        return call_flops(unet, scale, conditioning_on_meta(unet, scale, with_image=False))


@functools.cache
def tuning_floor(scale: Scale) -> Floor:
    """One sample of a finetuning step, forward and backward; the weights are read once for each.

    Only the LoRA has gradients of its own: behind the frozen weights just those of their inputs are computed, and
    none before the first attn2 layer.
    """
    unet = on_meta(scale.architecture)
    weights = sum(p.numel() for name, p in unet.named_parameters() if ".processor." not in name)
    lora.add(unet, 4, 4.0, seed=0)
    return Floor(2 * 2 * weights, call_flops(unet.train(), scale, conditioning_on_meta(unet, scale)))


def measure(bench: Bench) -> None:
    """The least that each hot spot can take on a nominal device; all by arithmetic, none measured."""
    scale, nominal = bench.scale, (NOMINAL["bandwidth"], NOMINAL["flops"])
    for name, (side, heads) in scale.grids.items():
        for rows in scale.rows:
            for objects in BOXES:
                for passes, backward in (("forward", False), ("forward + backward", True)):
                    floor = attention_floor(rows, heads, side * side, objects, 2, backward)
                    what = f"attention {name}, B {rows}, {objects} objects, {passes}"
                    with bench.row("floors", what) as row:
                        row.update(floor.row(*nominal))
    with bench.row("floors", f"UNet step, {scale.resolution} px, 2 rows, 2 objects") as row:
        floor = step_floor(scale)
        row.update(Floor(floor.bytes, 2 * floor.flops).row(*nominal))
    with bench.row("floors", f"finetune step, {scale.resolution} px, {TOTAL_BATCH} samples in one go") as row:
        floor = tuning_floor(scale)
        row.update(Floor(floor.bytes, TOTAL_BATCH * floor.flops).row(*nominal))
