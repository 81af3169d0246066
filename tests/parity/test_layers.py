"""Single parts against the official implementation: resampler, masked attention, dense features, losses, spans."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention
from open_clip.model import CLIPVisionCfg, _build_vision_tower

from rbctl import local_encoder, losses
from rbctl.attention import ParallelCrossAttention, text_map
from rbctl.conditioning import Conditioning, ImageBranch, PseudoRegions, TextMaps, box_cells
from rbctl.phrases import token_span
from rbctl.resampler import Resampler, ResamplerConfig, fourier_embedding

CPU_BACKENDS = ["eager", "sdpa", "grouped"]


def test_resampler(golden: Any) -> None:
    g = golden("resampler")
    names = {field.name for field in dataclasses.fields(ResamplerConfig)}
    resampler = Resampler(ResamplerConfig(**{k: v for k, v in g.facts["config"].items() if k in names}))
    resampler.load_state_dict(g.under("weights."))
    boxes = g.tensors["in.boxes"]
    g.close(fourier_embedding(boxes, g.facts["config"]["fourier_freqs"]), "out.fourier")
    cases = [name.removeprefix("out.tokens.") for name in g.tensors if name.startswith("out.tokens.")]
    assert cases
    for case in cases:
        drop = g.tensors[f"in.drop_grounding_tokens.{case}"].bool().repeat_interleave(g.facts["num_objects"])
        out = resampler(g.tensors["in.image_tokens"], boxes, g.tensors["in.phrase_embeds"], drop)
        g.close(out, f"out.tokens.{case}")


class Layer:
    """The fixture's cross-attention layer with our processor."""

    def __init__(self, g: Any, backend: str) -> None:
        config = g.facts["config"]
        self.g, self.config, self.backend = g, config, backend
        self.defaults = {"gamma": config["scale"], "dummy_tokens": config["num_dummy_tokens"]}
        self.attention = Attention(
            query_dim=config["query_dim"],
            cross_attention_dim=config["cross_attention_dim"],
            heads=config["heads"],
            dim_head=config["dim_head"],
            bias=config["qkv_bias"],
            out_bias=config["out_bias"],
        )
        inner = config["heads"] * config["dim_head"]
        processor = ParallelCrossAttention("layer", inner, config["cross_attention_dim"])
        self.attention.set_processor(processor)
        self.attention.load_state_dict(g.under("weights."))

    def conditioning(
        self, context: torch.Tensor, boxes: torch.Tensor, grid: tuple[int, int], **how: Any
    ) -> Conditioning:
        text = self.config["text_tokens"]
        branch = ImageBranch.build(context[:, text:], boxes, [grid], **{**self.defaults, **how})
        empty = torch.zeros(1)
        return Conditioning(
            prompt_embeds=context[:, :text],
            pooled_prompt_embeds=empty,
            time_ids=empty,
            image=branch,
            backend=self.backend,
        )

    def __call__(self, hidden: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        return self.attention(hidden, encoder_hidden_states=conditioning.prompt_embeds, conditioning=conditioning)


def side(grid: str) -> tuple[int, int]:
    h, w = grid.split("x")
    return int(h), int(w)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_masked_parallel_attention(golden: Any, backend: str) -> None:
    g = golden("masked_parallel_attention")
    t = g.tensors
    layer = Layer(g, backend)
    context, boxes = t["in.encoder_hidden_states"], t["in.boxes"]
    variants = {
        "plain": {},
        "subject_scales": {"subject_scales": t["in.subject_scales"]},
        "zero_boxes": {"boxes": torch.zeros_like(boxes)},
        "scale_1.3": {"gamma": 1.3},
        "sdpa_no_background_zeroing": {"background_sees_dummies": True},
    }
    grids = [name.removeprefix("in.hidden_states.") for name in t if name.startswith("in.hidden_states.")]
    assert grids
    for grid in grids:
        hidden = t[f"in.hidden_states.{grid}"]
        cells = box_cells(boxes, side(grid))
        assert torch.equal(cells, t[f"mid.object_box_mask.{grid}"].bool())
        assert torch.equal(~cells.any(1), t[f"mid.background_mask.{grid}"])
        for name, how in variants.items():
            how = dict(how)
            conditioning = layer.conditioning(context, how.pop("boxes", boxes), side(grid), **how)
            g.close(layer(hidden, conditioning), f"out.{name}.{grid}")
        full = layer.conditioning(context, boxes, side(grid), background_sees_dummies=True)
        assert full.image is not None
        allowed = full.image.masks[hidden.shape[1]].attend[:, 0]
        assert torch.equal(allowed, t[f"mid.image_bias.{grid}"] == 0)

    (name,) = (name for name in t if name.startswith("out.cfg."))
    cfg = layer.conditioning(t["in.cfg.encoder_hidden_states"], t["in.cfg.boxes"], side(name.removeprefix("out.cfg.")))
    g.close(layer(t["in.cfg.hidden_states"], cfg), name)

    for grid in grids:
        conditioning = layer.conditioning(context, boxes, side(grid))
        conditioning.text_maps = TextMaps(spans=t["in.predicate_phrase_idxes"][:, 0])
        g.close(layer(t[f"in.hidden_states.{grid}"], conditioning), f"out.train_text_map.{grid}")
        recorded = conditioning.text_maps.maps["layer"].unflatten(1, side(grid))
        g.close(recorded, f"out.train_text_map.{grid}.predicate_map")


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_pseudo_masks(golden: Any, backend: str) -> None:
    g = golden("masked_parallel_attention")
    t = g.tensors
    layer = Layer(g, backend)
    facts = g.facts["pseudo"]
    calls = sorted((n for n in t if n.startswith("in.pseudo.hidden_states.")), key=lambda n: int(n.rsplit("call")[-1]))
    grid = t["mid.pseudo.text_map.call0"].shape[-2:]
    conditioning = layer.conditioning(t["in.encoder_hidden_states"], t["in.boxes"], tuple(grid))
    conditioning.pseudo = PseudoRegions(
        spans=t["in.pseudo.phrase_idxes"], start_step=facts["start_step"], threshold=facts["mask_threshold"]
    )
    for name in calls:
        call = name.removeprefix("in.pseudo.hidden_states.")
        hidden = t[name]
        processor: Any = layer.attention.processor
        q = layer.attention.to_q(hidden).unflatten(-1, (layer.config["heads"], -1)).transpose(1, 2)
        k_text = processor.project(layer.attention, conditioning.prompt_embeds, None)[0]
        spans = conditioning.pseudo.spans
        maps = torch.stack([text_map(q, k_text, spans[:, n]) for n in range(spans.shape[1])], 1)
        g.close(maps.unflatten(-1, tuple(grid)), f"mid.pseudo.text_map.{call}")
        g.close(layer(hidden, conditioning), f"out.pseudo.{call}")


def visual_tower(g: Any, prefix: str = "weights.visual.") -> Any:
    config = g.facts["config"]
    visual = _build_vision_tower(
        config["embed_dim"], CLIPVisionCfg(**config["vision"]), config.get("quick_gelu", False)
    )
    visual.load_state_dict(g.under(prefix))
    return visual.eval()


@pytest.mark.parametrize("name", ["clipself_dense_noproj", "clipself_dense_proj"])
@torch.no_grad()
def test_dense_features(golden: Any, name: str) -> None:
    g = golden(name)
    t = g.tensors
    visual = visual_tower(g)
    project = name.endswith("_proj")
    dense = local_encoder.dense_features(visual, t["in.image_large"], project)
    g.close(dense, "out.dense_map_large")
    g.close(dense.flatten(2).mT, "out.dense_tokens_large")
    g.close(local_encoder.dense_features(visual, t["in.image_native"], project), "out.dense_map_native")
    g.close(
        local_encoder.resized_positional_embedding(visual.positional_embedding, dense.shape[-2:]),
        "mid.positional_embedding_large",
    )
    batch = dense.shape[0]
    grids = [name for name in t if name.startswith("in.grid")]
    assert grids
    for name_of_grid in grids:
        splits = int(name_of_grid.removeprefix("in.grid").removesuffix("_boxes"))
        boxes = local_encoder.local_grid(splits)
        torch.testing.assert_close(boxes, t[name_of_grid], rtol=0, atol=1e-6)
        g.close(local_encoder.pool_regions(dense, [boxes] * batch), f"out.roi_grid{splits}_per_image")
    free = [t[f"in.free_boxes.{i}"] for i in range(batch)]
    g.close(local_encoder.pool_regions(dense, free), "out.roi_free_boxes")
    if not project:
        encoder = local_encoder.LocalEncoder(visual)
        own = local_encoder.local_tokens(encoder, t["in.image_large"])
        g.close(own.flatten(0, 1), "out.roi_grid4_per_image")
        first = local_encoder.local_tokens(encoder, t["in.image_large"], first_image=True)
        g.close(first.flatten(0, 1), "out.roi_grid4_single_list_as_in_image_encoder")
    g.close(visual(t["in.image_native"]), "out.image_embed_native")


def test_self_distillation(golden: Any) -> None:
    """The dense features carry the right gradients to every weight of the student."""
    g = golden("clipself_loss")
    t = g.tensors
    student, teacher = visual_tower(g, "student.visual."), visual_tower(g, "teacher.visual.")
    boxes = [row[row[:, 4] > 0.5][:, :4] for row in t["loss.in.boxes"]]
    dense = local_encoder.dense_features(student, t["loss.in.images"], project=True)
    regions = local_encoder.pool_regions(dense, boxes)
    with torch.no_grad():
        crops = teacher(t["loss.in.crops_valid"])
    cosine = torch.nn.functional.cosine_similarity(regions, crops, dim=-1)
    loss = 1 - cosine.mean()
    g.close(loss, "loss.out.loss", g.facts["tolerance"]["loss"])
    loss.backward()
    for name, parameter in student.named_parameters():
        wanted = t[f"loss.grad.visual.{name}"]
        actual = torch.zeros_like(wanted) if parameter.grad is None else parameter.grad
        assert (actual - wanted).norm() <= 1e-3 * wanted.norm() + 1e-8, name


@torch.no_grad()
def test_image_encoder(golden: Any, tiny_sdxl: Any) -> None:
    g = golden("image_encoder")
    t = g.tensors
    encoder = tiny_sdxl.image_prompt_encoder
    for case, facts in g.facts["cases"].items():
        batch, objects = facts["batch"], facts["objects"]
        pixels = t[f"{case}.in.concept_images"].flatten(0, 1)
        local = t[f"{case}.in.concept_images_local"].flatten(0, 1)
        boxes = t[f"{case}.in.boxes"].unflatten(0, (batch, objects))
        phrases = t[f"{case}.in.phrase_embeds"].unflatten(0, (batch, objects))
        drop = t[f"{case}.in.drop_grounding_tokens"].bool()
        g.close(encoder.object_tokens(pixels, None, "none"), f"{case}.mid.global_tokens")
        for name, mode in (("as_code", "first_image"), ("intended", "own"), ("without_local", "none")):
            tokens = encoder.object_tokens(pixels, local, mode)
            g.close(encoder.adapter_tokens(tokens, boxes, phrases, drop), f"{case}.out.tokens_{name}")


def test_keypoint_matching_loss(golden: Any, base: Any) -> None:
    g = golden("keypoint_matching_loss")
    t = g.tensors
    alphas, prediction_type = base.training_schedule()
    for case, facts in g.facts["cases"].items():
        latents, noise = t[f"{case}.in.latents"], t[f"{case}.in.noise"]
        timesteps = t[f"{case}.in.timestep"].reshape(-1).expand(latents.shape[0])
        abar = alphas[timesteps]
        noisy = abar[:, None, None, None].sqrt() * latents + (1 - abar)[:, None, None, None].sqrt() * noise
        g.close(noisy, f"{case}.mid.noisy_latents")
        pred = t[f"{case}.in.model_pred"]
        mse = losses.denoising(pred, noise).mean()
        g.close(mse, f"{case}.out.denoising_mse")
        clean = losses.pred_original_sample(noisy, pred, abar, prediction_type)
        g.close(clean, f"{case}.mid.pred_x0_formula")
        concepts, keypoints = t[f"{case}.in.concept_latents"], t[f"{case}.in.keypoints"]
        objects = concepts.shape[1]
        target, image = keypoints[:, :objects], keypoints[:, objects:]
        visible = torch.ones(target.shape[:-1], dtype=torch.bool)
        kml = losses.keypoint_matching(clean, concepts, target, image, visible).mean()
        g.close(kml, f"{case}.out.kml_intended")
        assert float(mse + 1e-3 * kml) == pytest.approx(facts["total_paper_lambda_1e-3_intended_gather"], rel=1e-4)
        if f"{case}.out.kml_as_code" in t:
            as_code = losses.keypoint_matching(clean, concepts, target, image, visible, as_code=True).mean()
            g.close(as_code, f"{case}.out.kml_as_code")
            if f"{case}.out.total_loss_as_code" in t:
                g.close(mse + 0.1 * as_code, f"{case}.out.total_loss_as_code")


def test_cross_attention_loss(golden: Any) -> None:
    g = golden("cross_attention_loss")
    for case in g.facts["cases"]:
        mask = g.tensors[f"{case}.in.object_segmap"]
        layers = sorted(
            (k for k in g.tensors if k.startswith(f"{case}.in.map.layer")), key=lambda k: int(k.rsplit("layer")[-1])
        )
        maps = [g.tensors[name] for name in layers]
        assert len(maps) == len(g.facts["cases"][case]["map_sizes"])
        g.close(losses.predicate_attention(maps, mask, as_code=True), f"{case}.out.cross_attention_loss_as_code")
        g.close(losses.predicate_attention(maps, mask), f"{case}.out.cross_attention_loss_resampled_from_original")


def test_phrase_index(golden: Any, base: Any) -> None:
    g = golden("phrase_index")
    tokenizer = base.tokenizer
    for case in g.facts["cases"]:
        prompt, phrase = case["prompt"], case["phrase"]
        ids = tokenizer(prompt, padding="max_length", max_length=77, truncation=True)["input_ids"]
        assert ids[: len(case["ids"])] == case["ids"]
        assert list(token_span(tokenizer, prompt, phrase)) == case["index"], case
        last = phrase.split()[-1] if phrase else ""
        assert list(token_span(tokenizer, prompt, last)) == case["index_last_word_only"], case


def test_adapter_keys_of_full_sdxl(goldens: Any) -> None:
    """The full-size adapter's names and shapes are those our modules have, without allocating them."""
    from diffusers import UNet2DConditionModel

    from rbctl import attention

    path = goldens / "lora_keys" / "ms_adapter_keys.json"
    if not path.is_file():
        pytest.skip(f"{goldens} has no lora_keys/ms_adapter_keys.json")
    facts = json.loads(path.read_text())
    config = json.loads((goldens / "lora_keys" / "lora_keys.json").read_text())["unet"]["unet_config"]
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config)
        index = attention.adapter_index(unet)
        processors = attention.install(unet)
        names = {field.name for field in dataclasses.fields(ResamplerConfig)}
        resampler = Resampler(ResamplerConfig(**{k: v for k, v in facts["image_proj"]["config"].items() if k in names}))
    ours = {
        f"{index[layer]}.{name}": list(value.shape)
        for layer, processor in processors.items()
        for name, value in processor.state_dict().items()
    }
    assert ours == facts["ms_adapter"]["tensors"]
    assert {k: list(v.shape) for k, v in resampler.state_dict().items()} == facts["image_proj"]["tensors"]
