"""Denoising with the bundle mini: K, V and masks kept, against the official processor's way in the same UNet.

Most of a UNet's time goes elsewhere, so the ratio is small.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from PIL import Image

from bench.conftest import peak_mb
from bench.official import official_conditioning, processors
from rbctl import RelationPipeline
from rbctl.attention import project_once
from rbctl.bundle.bundle import Bundle
from rbctl.bundle.load import load
from rbctl.conditioning import Conditioning, Encoded, guided
from rbctl.denoising import denoise, generators_of, initial_noise, predict

PICTURES, STEPS = 2, 15
BOXES = [[0.06, 0.3, 0.53, 0.92], [0.47, 0.3, 0.94, 0.92]]


@dataclass
class Side:
    """One way to compute: conditioning and attention processors."""

    bundle: Bundle
    conditioning: Conditioning
    processors: dict[str, Any]

    def use(self) -> None:
        self.bundle.unet.set_attn_processor(dict(self.processors))

    @torch.no_grad()
    def sample(self, steps: int = STEPS) -> torch.Tensor:
        self.use()
        self.conditioning.projected.clear()
        bundle, side = self.bundle, self.bundle.unet.config.sample_size
        noise = initial_noise(generators_of(range(PICTURES)), bundle.unet.config.in_channels, (side, side))
        return denoise(bundle.unet, bundle.scheduler(), noise, self.conditioning, steps, torch.full((PICTURES,), 4.0))


@pytest.fixture(scope="module")
def sides() -> tuple[Side, Side]:
    bundle = load("mini", torch.device("cpu"), torch.float32)
    texts = [bundle.encode_prompts([text] * PICTURES) for text in ("A cat is sitting beside a bear.", "")]
    (embeds, pooled), (negative, negative_pooled) = texts
    torch.manual_seed(0)
    boxes = torch.tensor([BOXES]).repeat(PICTURES, 1, 1)
    encoded = Encoded(
        prompt_embeds=embeds,
        pooled_prompt_embeds=pooled,
        negative_prompt_embeds=negative,
        negative_pooled_prompt_embeds=negative_pooled,
        image_tokens=torch.randn(PICTURES, 4 + 16 * 2, bundle.unet.config.cross_attention_dim),
        boxes=boxes,
        object_weights=torch.full((PICTURES, 2), bundle.gamma),
    )
    side = bundle.unet.config.sample_size
    size = (bundle.resolution, bundle.resolution)
    ours = guided(encoded, size=size, latent_size=(side, side), levels=bundle.levels)
    theirs = official_conditioning(encoded, ours, bundle.gamma)
    return Side(bundle, ours, bundle.unet.attn_processors), Side(bundle, theirs, processors(bundle.unet))


def test_sampling(compare: Callable[..., Any], sides: tuple[Side, Side]) -> None:
    ours, baseline = sides
    made, wanted = (side.bundle.decode_latents(side.sample()) for side in sides)
    torch.testing.assert_close(made, wanted, rtol=0, atol=1e-3)
    # Every step frees what it took: two have the peak of all.
    compare(
        f"sampling mini, {STEPS} steps, {PICTURES} pictures",
        ours.sample,
        baseline.sample,
        rounds=2,
        memory=(peak_mb(lambda: ours.sample(2)), peak_mb(lambda: baseline.sample(2))),
    )


@pytest.mark.parametrize("pictures", [2, pytest.param(8, marks=pytest.mark.thorough)])
def test_quality(compare: Callable[..., Any], pictures: int) -> None:
    """Pictures as ``rbctl sample`` makes them by default, encoders and VAE included, against the best quality.

    Each prompt has individuals of its own, whose pictures are read anew.
    """
    pipe = RelationPipeline.from_pretrained("mini", device="cpu")
    pipe.set_progress_bar_config(disable=True)

    def draw(**quality: Any) -> None:
        pipe.sampler.forget()
        for number in range(pictures):
            colours = {"cat": (255, 30 * number, 0), "bear": (0, 30 * number, 255)}
            images = {name: Image.new("RGB", (128, 128), colour) for name, colour in colours.items()}
            pipe(f"A {{cat}} is sitting beside a {{bear}}, {number}", images, **quality)

    compare(
        f"sampling mini, {pictures} pictures, best quality / default", draw, partial(draw, quality="best"), rounds=1
    )


@torch.no_grad()
def test_step(compare: Callable[..., Any], sides: tuple[Side, Side]) -> None:
    """One call of the UNet; ours has its K and V, as in every step but the first."""
    latents = torch.randn(2 * PICTURES, sides[0].bundle.unet.config.in_channels, 32, 32)

    def step(side: Side) -> torch.Tensor:
        side.use()
        return predict(side.bundle.unet, latents, torch.tensor(500), side.conditioning)

    ours, baseline = sides
    ours.use()
    project_once(ours.bundle.unet, ours.conditioning)
    torch.testing.assert_close(step(ours), step(baseline), rtol=0, atol=1e-3)
    name = f"denoising step mini, {PICTURES} pictures"
    compare(name, lambda: step(ours), lambda: step(baseline), rounds=11, memory=True)
