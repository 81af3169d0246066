"""Work that sampling leaves out: guidance in a part of the steps, and deep features that are kept between steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from rbctl import RelationPipeline
from rbctl.bundle.recipe import sampling_defaults
from rbctl.deep_cache import DeepCache
from rbctl.errors import InputError
from rbctl.shortcuts import QUALITIES, Shortcuts, options_of

pytestmark = pytest.mark.usefixtures("one_thread")

CAT = Image.new("RGB", (64, 64), "orange")
NOTHING = Shortcuts()


@pytest.fixture(scope="module")
def pipe(tiny_bundle: Path) -> RelationPipeline:
    pipe = RelationPipeline.from_pretrained(tiny_bundle, device="cpu")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def latents(
    pipe: RelationPipeline, shortcuts: Shortcuts, steps: int = 6, count: int = 1, **options: Any
) -> torch.Tensor:
    return pipe(
        "A {cat} on grass",
        {"cat": CAT},
        num_inference_steps=steps,
        guidance_scale=options.pop("guidance_scale", 5.0),
        num_images_per_prompt=count,
        generator=[torch.Generator().manual_seed(seed) for seed in range(count)],
        output_type="latent",
        shortcuts=shortcuts,
        **options,
    ).images


def rows_of_calls(pipe: RelationPipeline, shortcuts: Shortcuts, steps: int) -> tuple[list[int], list[int]]:
    """Rows of every whole call and of every call at all."""
    whole: list[int] = []
    every: list[int] = []
    unet = pipe.bundle.unet
    hooks = [
        unet.mid_block.register_forward_hook(lambda _m, _i, features: whole.append(len(features))),
        unet.conv_in.register_forward_hook(lambda _m, _i, features: every.append(len(features))),
    ]
    try:
        latents(pipe, shortcuts, steps)
    finally:
        for hook in hooks:
            hook.remove()
    return whole, every


def test_the_unet_runs_whole_and_with_guidance_only_where_asked(pipe: RelationPipeline) -> None:
    assert rows_of_calls(pipe, NOTHING, 5) == ([2] * 5, [2] * 5)
    assert rows_of_calls(pipe, Shortcuts(guidance_stop=0.6), 5) == ([2, 2, 2, 1, 1], [2, 2, 2, 1, 1])
    assert rows_of_calls(pipe, Shortcuts(guidance_start=0.4), 5) == ([1, 1, 2, 2, 2], [1, 1, 2, 2, 2])
    assert rows_of_calls(pipe, Shortcuts(cache_span=0.4), 5) == ([2, 2, 2], [2] * 5)
    slow_start = Shortcuts(cache_start=0.3, cache_span=0.4)
    assert rows_of_calls(pipe, slow_start, 7) == ([2] * 4, [2] * 7)  # in steps 0, 1, 2 and 5
    both = Shortcuts(guidance_stop=0.6, cache_span=0.4)
    assert rows_of_calls(pipe, both, 5) == ([2, 2, 1], [2, 2, 2, 1, 1])
    # Kept features of the conditional rows alone are none of the unconditional ones: the step with guidance is whole.
    late = Shortcuts(guidance_start=0.2, cache_span=0.4)
    assert rows_of_calls(pipe, late, 5) == ([1, 2, 2], [1, 2, 2, 2, 2])


def test_a_shallow_call_is_the_whole_one_where_nothing_has_changed(pipe: RelationPipeline) -> None:
    """The same latents and timestep: the kept features are then the true ones, to the last bit."""
    unet, config = pipe.bundle.unet, pipe.bundle.unet.config
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, config.in_channels, 16, 16, generator=generator)
    inputs = {
        "encoder_hidden_states": torch.randn(2, 7, config.cross_attention_dim, generator=generator),
        "added_cond_kwargs": {
            "text_embeds": torch.randn(2, pipe.bundle.text_encoder_2.config.projection_dim, generator=generator),
            "time_ids": torch.ones(2, 6),
        },
        "return_dict": False,
    }
    cached = DeepCache(unet, span=0.5)
    with torch.no_grad(), FlopCounterMode(display=False) as of_whole:
        whole = cached(noise, torch.tensor(300), **inputs)[0]
    with torch.no_grad(), FlopCounterMode(display=False) as of_shallow:
        shallow = cached(noise, torch.tensor(300), **inputs)[0]
    assert torch.equal(whole, shallow)
    assert of_shallow.get_total_flops() < 0.5 * of_whole.get_total_flops()
    with torch.no_grad():  # the second row alone, from the first call's features
        cached(noise, torch.tensor(300), **inputs)
        halves = {name: value[1:] if isinstance(value, torch.Tensor) else value for name, value in inputs.items()}
        halves["added_cond_kwargs"] = {key: value[1:] for key, value in inputs["added_cond_kwargs"].items()}
        last = cached(noise[1:], torch.tensor(300), **halves)[0]
    assert torch.allclose(last, whole[1:], atol=1e-5)


def test_kept_features_change_the_picture_and_belong_to_one_run(pipe: RelationPipeline) -> None:
    kept, whole = latents(pipe, Shortcuts(cache_span=0.5)), latents(pipe, NOTHING)
    assert not torch.equal(kept, whole)
    assert torch.equal(kept, latents(pipe, Shortcuts(cache_span=0.5)))  # nothing is left of the run before
    assert torch.equal(whole, latents(pipe, NOTHING))


@pytest.mark.parametrize("shortcuts", [Shortcuts(cache_span=0.5), Shortcuts(0.2, 0.6, 0.3, 0.5)], ids=["cache", "both"])
def test_a_picture_is_the_same_alone_and_among_others(pipe: RelationPipeline, shortcuts: Shortcuts) -> None:
    together = latents(pipe, shortcuts, count=3)
    assert torch.allclose(together[:1], latents(pipe, shortcuts), atol=1e-4)


@pytest.mark.parametrize("scheduler", ["Euler a", "DPM++ 2M", "Heun", "LCM"])
def test_schedulers_take_steps_without_guidance(pipe: RelationPipeline, scheduler: str) -> None:
    before = pipe.scheduler
    pipe.scheduler = scheduler
    try:
        assert latents(pipe, Shortcuts(0.3, 0.7, 0.3, 0.5)).isfinite().all()
    finally:
        pipe.scheduler = before


def test_no_guidance_at_all_is_guidance_scale_one(pipe: RelationPipeline) -> None:
    never = latents(pipe, Shortcuts(guidance_start=1.0))
    assert torch.allclose(never, latents(pipe, NOTHING, guidance_scale=1.0), atol=1e-5)


def test_regions_from_text_attention_need_every_step(tiny_bundle: Path) -> None:
    pipe = RelationPipeline.from_pretrained(tiny_bundle, device="cpu", pseudo_mask_step=1)
    with pytest.raises(InputError, match="take quality 'best'"):
        latents(pipe, Shortcuts(cache_span=0.5), 2)
    assert latents(pipe, NOTHING, 2).isfinite().all()


@pytest.mark.parametrize("wrong", [-0.1, 1.5, float("nan")])
def test_a_share_lies_between_0_and_1(wrong: float, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cache_span: a share from 0 to 1 was expected"):
        Shortcuts(cache_span=wrong)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"sample": {"cache_span": wrong}}))
    with pytest.raises(InputError, match=r"recipe\.yaml:"):
        sampling_defaults(tmp_path, "best")


def test_a_recipe_says_what_a_quality_is() -> None:
    assert options_of("best", {}, "r.yaml") == {}
    own = {"draft": {"steps": 4}, "standard": {}, "best": {"steps": 50}}
    assert options_of("best", {"qualities": own}, "r.yaml") == {"steps": 50}
    with pytest.raises(InputError, match=r"r\.yaml: qualities: draft, standard, best were expected"):
        options_of("best", {"qualities": {"draft": {}}}, "r.yaml")
    with pytest.raises(InputError, match=r"r\.yaml: qualities: draft: a mapping"):
        options_of("draft", {"qualities": own | {"draft": 3}}, "r.yaml")
    assert set(QUALITIES) == {"draft", "standard", "best"}
