"""The image branch reaches the pixels it should, through diffusers' own UNet code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rbctl import attention, denoising, lora
from rbctl.bundle.load import load
from rbctl.conditioning import Conditioning, ImageBranch, latent_grids

LEFT, RIGHT = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Any:
    return load(str(tiny_bundle), torch.device("cpu"), torch.float32, encoders=False)


def predict(
    bundle: Any, tokens: torch.Tensor | None, boxes: Any = (LEFT, RIGHT), latent_size: tuple[int, int] = (16, 16)
) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    width = bundle.unet.config.cross_attention_dim
    embeds = torch.randn(1, 77, width, generator=generator)
    pooled = torch.randn(1, 16, generator=generator)
    noisy = torch.randn(1, 4, *latent_size, generator=generator)
    image = None
    if tokens is not None:
        image = ImageBranch.build(tokens, torch.tensor([boxes]), latent_grids(latent_size, bundle.levels))
    conditioning = Conditioning(
        prompt_embeds=embeds, pooled_prompt_embeds=pooled, time_ids=torch.full((1, 6), 128.0), image=image
    )
    with torch.no_grad():
        return denoising.predict(bundle.unet, noisy, torch.tensor([500]), conditioning)


def image_tokens(bundle: Any, seeds: tuple[int, ...] = (1, 2)) -> torch.Tensor:
    width = bundle.unet.config.cross_attention_dim
    parts = [torch.randn(1, 16, width, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.cat([torch.zeros(1, 4, width), *parts], dim=1)


def test_the_image_branch_is_reached(bundle: Any) -> None:
    """Fails if diffusers drops our cross-attention argument, which it does with a mere warning."""
    assert not torch.allclose(predict(bundle, image_tokens(bundle)), predict(bundle, None), atol=1e-4)


def test_swapping_the_image_prompts_changes_their_regions(bundle: Any) -> None:
    """At the first attn2 layer an object's tokens change exactly the cells of its box."""
    seen: list[torch.Tensor] = []
    layer = bundle.unet.down_blocks[1].attentions[0].transformer_blocks[0].attn2
    handle = layer.register_forward_hook(lambda *call: seen.append(call[2]))
    predict(bundle, image_tokens(bundle, (1, 2)))
    predict(bundle, image_tokens(bundle, (1, 3)))
    predict(bundle, image_tokens(bundle, (3, 2)))
    handle.remove()
    base, other_right, other_left = (out[0].unflatten(0, (8, 8)) for out in seen)
    assert torch.equal(base[:, :4], other_right[:, :4])
    assert not torch.equal(base[:, 4:], other_right[:, 4:])
    assert torch.equal(base[:, 4:], other_left[:, 4:])
    assert not torch.equal(base[:, :4], other_left[:, :4])


def test_swapped_pictures_with_swapped_boxes_are_the_same_picture(bundle: Any) -> None:
    straight = predict(bundle, image_tokens(bundle, (1, 2)), (LEFT, RIGHT))
    swapped = predict(bundle, image_tokens(bundle, (2, 1)), (RIGHT, LEFT))
    torch.testing.assert_close(straight, swapped, rtol=1e-4, atol=1e-5)


def test_zero_image_tokens_equal_no_image_branch(bundle: Any) -> None:
    plain = predict(bundle, None)
    assert torch.equal(predict(bundle, torch.zeros_like(image_tokens(bundle))), plain)
    assert torch.equal(predict(bundle, image_tokens(bundle), ((0.0,) * 4, (0.0,) * 4)), plain)


@pytest.mark.parametrize("size", [(16, 24), (12, 8), (15, 17)])
def test_any_aspect_ratio(bundle: Any, size: tuple[int, int]) -> None:
    with_image, without = (
        predict(bundle, image_tokens(bundle), latent_size=size),
        predict(bundle, None, latent_size=size),
    )
    assert with_image.shape[-2:] == size
    assert not torch.allclose(with_image, without, atol=1e-4)


@pytest.mark.parametrize("seeds", [(1,), (1, 2, 3), (1, 2, 3, 4, 5)])
def test_any_number_of_objects(bundle: Any, seeds: tuple[int, ...]) -> None:
    boxes = tuple((i / len(seeds), 0.0, (i + 1) / len(seeds), 1.0) for i in range(len(seeds)))
    assert not torch.allclose(predict(bundle, image_tokens(bundle, seeds), boxes), predict(bundle, None), atol=1e-4)


def test_a_lora_with_b_zero_is_bit_equal_to_the_base(bundle: Any) -> None:
    tokens = image_tokens(bundle)
    base = predict(bundle, tokens)
    lora.add(bundle.unet, rank=4, alpha=4, seed=0, name="fresh")
    try:
        assert torch.equal(predict(bundle, tokens), base)
    finally:
        bundle.unet.delete_adapters("fresh")


@pytest.mark.slow
def test_compiled_blocks_are_one_program_a_shape(tiny_bundle: Path) -> None:
    """Not one a layer: torch would give up after a few and run SDXL's 70 layers uncompiled, without a word."""
    fresh = load(str(tiny_bundle), torch.device("cpu"), torch.float32, encoders=False)
    tokens = image_tokens(fresh)
    plain = predict(fresh, tokens)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    attention.compile_blocks(fresh.unet, backend="eager")
    torch.testing.assert_close(predict(fresh, tokens), plain)
    shapes = {layer.to_q.weight.shape for name, layer in fresh.unet.named_modules() if name.endswith("attn2")}
    pieces = 4  # of a block, around the look-up that is kept out
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= pieces * len(shapes)
