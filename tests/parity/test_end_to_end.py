"""The whole road against the official implementation: sampling step by step, a training step, the LoRA's names."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from rbctl import denoising, lora, lora_names, losses
from rbctl.conditioning import Conditioning, ImageBranch, TextMaps, latent_grids
from rbctl.phrases import token_span


def tokens_of(
    bundle: Any, phrases: list[list[str]], boxes: torch.Tensor, pixels: Any, local: Any, mode: Any
) -> torch.Tensor:
    embeds = torch.stack([bundle.encode_phrases(row) for row in phrases])
    encoder = bundle.image_prompt_encoder
    with torch.no_grad():
        tokens = encoder.object_tokens(pixels.flatten(0, 1), None if local is None else local.flatten(0, 1), mode)
        return encoder.adapter_tokens(tokens, boxes, embeds)


VARIANTS = {
    "guidance7.5": "first_image",
    "guidance5_default": "first_image",
    "no_local_encoder": "none",
    "lora": "first_image",
    "intended_local_tokens": "own",
    "two_images": "first_image",
}


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("backend", ["eager", "sdpa", "grouped"])
def test_sampling_step_by_step(golden: Any, tiny_sdxl: Any, goldens: Any, variant: str, backend: str) -> None:
    g = golden("tiny_sdxl_pipeline")
    t, facts, bundle = g.tensors, g.facts, tiny_sdxl
    if f"out.{variant}.latents_after_step0" not in t:
        pytest.skip(f"the fixture has no variant {variant}")
    h, w = facts["height"], facts["width"]
    two = variant == "two_images"
    noise = t["in.two_images.initial_latents"] if two else t["in.initial_latents"]
    images = noise.shape[0]
    boxes = torch.tensor(facts["boxes"])
    pixels, local = t["in.concept_images"], t["in.concept_images_local"]
    tokens = tokens_of(bundle, facts["phrases"], boxes, pixels, local, VARIANTS[variant])
    embeds, pooled = bundle.encode_prompts([facts["negative_prompt"], facts["prompt"]])

    def doubled(x: torch.Tensor) -> torch.Tensor:
        """[unconditional; conditional], each repeated for the images of one prompt."""
        return torch.cat((torch.zeros_like(x), x)).repeat_interleave(images, 0)

    grids = latent_grids(noise.shape[-2:], bundle.levels)
    conditioning = Conditioning(
        prompt_embeds=embeds.repeat_interleave(images, 0),
        pooled_prompt_embeds=pooled.repeat_interleave(images, 0),
        time_ids=torch.tensor([[h, w, 0, 0, h, w]], dtype=torch.float32).expand(2 * images, -1),
        image=ImageBranch.build(doubled(tokens), doubled(boxes), grids, facts["adapter_scale"]),
        backend=backend,
    )
    if variant == "guidance7.5":
        whole = torch.cat((embeds, torch.cat((torch.zeros_like(tokens), tokens))), dim=1)
        mid = facts["tolerance"]["mid"]
        g.close(whole, "mid.unet_encoder_hidden_states", mid)
        g.close(pooled, "mid.unet_text_embeds", mid)
        g.close(conditioning.time_ids, "mid.unet_time_ids", mid)
        g.close(bundle.encode_phrases(facts["phrases"][0]), "mid.phrase_embeds", mid)
    scale = facts["guidance_scale"]
    if variant == "guidance5_default":
        scale = facts["reference_pipeline_default_guidance_scale"]
    if variant == "lora":
        lora.attach(bundle.unet, lora.read(goldens / "lora" / "pytorch_lora_weights.safetensors"), "golden")
        lora.use(bundle.unet, "golden")
    try:
        latents = denoising.denoise(
            bundle.unet,
            bundle.scheduler(),
            noise,
            conditioning,
            facts["num_inference_steps"],
            torch.full((images,), scale),
            lambda step, now: g.close(now, f"out.{variant}.latents_after_step{step}", facts["tolerance"]["latents"]),
        )
    finally:
        if variant == "lora":
            bundle.unet.delete_adapters("golden")
    picture = bundle.decode_latents(latents[:1])
    if variant == "guidance7.5":
        scheduler = bundle.scheduler()
        scheduler.set_timesteps(facts["num_inference_steps"])
        g.close(scheduler.timesteps, "out.timesteps", {"rtol": 0, "atol": 1e-4})
        g.close(scheduler.sigmas, "out.sigmas", {"rtol": 1e-5, "atol": 1e-5})
        g.close((picture / 2 + 0.5).clamp(0, 1), "out.image_0_1", facts["tolerance"]["image"])
    else:
        ours = torch.from_numpy(np.array(denoising.to_pictures(picture)[0])).permute(2, 0, 1)
        wanted = t[f"out.{variant}.image_uint8"][0]
        assert (ours.int() - wanted.int()).abs().max() <= 2


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["as_code", "denoising_only", "paper"])
def test_train_step(golden: Any, tiny_sdxl: Any, goldens: Any, objective: str) -> None:
    g = golden("train_step")
    t, bundle = g.tensors, tiny_sdxl
    alphas, prediction_type = bundle.training_schedule()
    file = lora.read(goldens / "lora" / "pytorch_lora_weights.safetensors")
    limits = g.facts["tolerance"]["values"]
    for case, facts in g.facts["cases"].items():
        lora.attach(bundle.unet, file, "golden")
        lora.use(bundle.unet, "golden")
        trained = lora.named_parameters(bundle.unet, "golden")
        for parameter in trained.values():
            parameter.requires_grad_(True)
        try:
            prefix = f"{case}.in."
            boxes, latents, noise = t[prefix + "boxes"], t[prefix + "latents"], t[prefix + "noise"]
            tokens = tokens_of(bundle, facts["phrases"], boxes, t[prefix + "concept_images"], None, "none")
            g.close(tokens, f"{case}.mid.image_prompt_tokens", limits)
            embeds, pooled = bundle.encode_prompts([facts["prompt"]] * len(latents))
            g.close(embeds, f"{case}.mid.prompt_embeds", limits)
            g.close(pooled, f"{case}.mid.pooled_prompt_embeds", limits)
            span = token_span(bundle.tokenizer, facts["prompt"], facts["predicate"][0])
            assert list(span) == t[f"{case}.mid.phrase_idxes"][0, 0].tolist()
            timesteps = t[prefix + "timestep"]
            abar = alphas[timesteps]
            noisy = abar[:, None, None, None].sqrt() * latents + (1 - abar)[:, None, None, None].sqrt() * noise
            g.close(noisy, f"{case}.mid.noisy_latents", limits)
            conditioning = Conditioning(
                prompt_embeds=embeds,
                pooled_prompt_embeds=pooled,
                time_ids=t[prefix + "time_ids"],
                image=ImageBranch.build(tokens, boxes, latent_grids(latents.shape[-2:], bundle.levels), bundle.gamma),
                text_maps=TextMaps(spans=torch.tensor([span] * len(latents))),
            )
            pred = bundle.unet(
                noisy,
                timesteps,
                encoder_hidden_states=embeds,
                cross_attention_kwargs={"conditioning": conditioning},
                added_cond_kwargs=conditioning.added_cond_kwargs,
            ).sample
            g.close(pred, f"{case}.out.model_pred", limits)
            mse = losses.denoising(pred, noise).mean()
            g.close(mse, f"{case}.out.denoising_mse", limits)
            clean = losses.pred_original_sample(noisy, pred, abar, prediction_type)
            concepts, keypoints = t[prefix + "concept_latents"], t[prefix + "keypoints"]
            n = concepts.shape[1]
            visible = torch.ones(keypoints[:, :n].shape[:-1], dtype=torch.bool)

            points = keypoints[:, :n], keypoints[:, n:]
            kml, kml_as_code = (
                losses.keypoint_matching(clean, concepts, *points, visible, as_code).mean() for as_code in (False, True)
            )
            assert conditioning.text_maps is not None
            maps = [m.unflatten(1, (int(m.shape[1] ** 0.5), -1)) for m in conditioning.text_maps.maps.values()]
            term = losses.predicate_attention(maps, t[prefix + "object_segmap"], as_code=True)
            g.close(term, f"{case}.out.cross_attention_loss", limits)
            if objective == "denoising_only":
                loss = mse
            elif objective == "paper":
                loss = mse + 1e-3 * kml
                g.close(loss, f"{case}.out.total_paper", limits)
            else:
                gate = 0.1 if int(timesteps[0]) <= 333 else 0.0
                loss = mse + gate * kml_as_code + 0.001 * term.mean()
                g.close(loss.reshape(1), f"{case}.out.total_as_code", limits)
            loss.backward()
            compared = 0
            for key, parameter in trained.items():
                name = next(iter(lora_names.to_official({key: parameter})))
                wanted = t[f"{case}.grad.{objective}.{name}"]
                assert parameter.grad is not None
                error = (parameter.grad - wanted).norm()
                assert error <= 1e-3 * wanted.norm() or (parameter.grad - wanted).abs().max() <= 1e-5, name
                compared += 1
            assert compared == len([k for k in t if k.startswith(f"{case}.grad.{objective}.")])
        finally:
            bundle.unet.delete_adapters("golden")


def test_lora_keys_of_full_sdxl(goldens: Any) -> None:
    from diffusers import UNet2DConditionModel

    path = goldens / "lora_keys" / "lora_keys.json"
    if not path.is_file():
        pytest.skip(f"{goldens} has no lora_keys")
    facts = json.loads(path.read_text())
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(facts["unet"]["unet_config"])
        config = facts["lora_config"]
        lora.add(unet, config["r"], config["lora_alpha"], seed=0)
        tensors = lora.state(unet)
    named = lora_names.to_official(tensors)
    assert {k: list(v.shape) for k, v in named.items()} == facts["tensors"]
    assert sum(v.numel() for v in named.values()) == facts["parameter_count"]
    kohya = lora_names.to_kohya(tensors, 4, sdxl_blocks=False)
    assert {k: list(v.shape) for k, v in kohya.items()} == facts["kohya_tensors"]
