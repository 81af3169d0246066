"""Operations counted by the call equal those of the loop that runs."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # bench is no part of the distribution
    sys.path.insert(0, str(ROOT))

from bench.full.sizes import BOXES, GAMMA, GUIDANCE, SMALL  # noqa: E402
from bench.full.totals import Step, loop_flops, official_picture_flops, picture_flops  # noqa: E402
from bench.official import official_conditioning, processors  # noqa: E402
from rbctl import attention  # noqa: E402
from rbctl.conditioning import DUMMY_TOKENS, Encoded, guided  # noqa: E402
from rbctl.denoising import denoise  # noqa: E402
from rbctl.shortcuts import NO_SHORTCUTS, Shortcuts  # noqa: E402

STEPS = 5


@pytest.mark.slow
@pytest.mark.parametrize("way", ["official", "ours", "with shortcuts"])
def test_a_picture_costs_what_the_real_loop_does(way: str) -> None:
    from diffusers import EulerDiscreteScheduler, UNet2DConditionModel

    unet = UNet2DConditionModel.from_config(SMALL.architecture.unet)
    attention.install(unet)
    config, size = unet.config, (SMALL.resolution, SMALL.resolution)
    pooled = torch.zeros(1, config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim)
    text = torch.randn(1, 77, config.cross_attention_dim)
    encoded = Encoded(
        prompt_embeds=text,
        pooled_prompt_embeds=pooled,
        negative_prompt_embeds=text,
        negative_pooled_prompt_embeds=pooled,
        image_tokens=torch.randn(1, DUMMY_TOKENS + 32, config.cross_attention_dim),
        boxes=torch.tensor([BOXES[2]]),
    )
    where: dict[str, Any] = {"levels": len(config.block_out_channels), "backend": "sdpa"}
    where |= {"size": size, "latent_size": SMALL.latent_size}
    conditioning = guided(encoded, **where)
    shortcuts = (
        Shortcuts(guidance_stop=0.6, cache_start=0.3, cache_span=0.4) if way == "with shortcuts" else NO_SHORTCUTS
    )
    unguided = guided(dataclasses.replace(encoded, negative_prompt_embeds=None), **where)
    unguided = unguided if shortcuts is not NO_SHORTCUTS else None
    if way == "official":
        conditioning = official_conditioning(encoded, conditioning, GAMMA)
        unet.set_attn_processor(processors(unet))
        counted = official_picture_flops(dataclasses.replace(SMALL, steps=STEPS))
    else:
        counted = picture_flops(SMALL, STEPS, shortcuts)
    noise = torch.randn(1, config.in_channels, *SMALL.latent_size)
    # The counter does not know the CPU's fused attention, but knows the products that it is made of.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        scheduler = EulerDiscreteScheduler()
        denoise(
            unet,
            scheduler,
            noise,
            conditioning,
            STEPS,
            torch.tensor([GUIDANCE]),
            shortcuts=shortcuts,
            unguided=unguided,
        )
    if way == "official":  # denoise projects for our processors alone
        assert not conditioning.projected
    assert counter.get_total_flops() == counted


def test_every_step_counts_by_its_rows() -> None:
    assert loop_flops([Step(2, 10), Step(1, 10), Step(1, 3)], once=4) == 37
