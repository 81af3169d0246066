"""ComfyUI with rbctl's nodes against rbctl itself: the latents of the same noise after the same sampler's steps.

    COMFYUI=~/ComfyUI python tests/comfyui/compare.py [BUNDLE]

The Python must have rbctl and ComfyUI's requirements (torchaudio is not needed). Nodes, LoRA path, conditioning,
guidance and sampler are ComfyUI's own code. Its model detection knows SDXL of full size alone, so the UNet of a smaller
bundle is ComfyUI's UNetModel built with the bundle's sizes. Noise, noise levels and text embeddings are rbctl's.

It prints a line of JSON for each case, and exits with 1 where a difference is above 1e-3.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from click.testing import CliRunner
from PIL import Image

from rbctl import lora
from rbctl.cli import main
from rbctl.layout import LayoutPrior
from rbctl.pipeline import RelationPipeline

COMFYUI = Path(os.environ.get("COMFYUI", ""))
if not (COMFYUI / "comfy").is_dir():
    sys.exit("COMFYUI: names no checkout of ComfyUI; run with COMFYUI=PATH")
sys.path.insert(0, str(COMFYUI))
sys.argv = sys.argv[:2]

import comfy.cli_args  # noqa: E402

comfy.cli_args.args.cpu = True

import comfy.model_base  # noqa: E402
import comfy.model_patcher  # noqa: E402
import comfy.ops  # noqa: E402
import comfy.sample  # noqa: E402
import comfy.samplers  # noqa: E402
import comfy.supported_models  # noqa: E402
import comfy.utils  # noqa: E402
import folder_paths  # noqa: E402
import nodes  # noqa: E402
from comfy.ldm.modules.attention import optimized_attention  # noqa: E402

LIMIT = 1e-3
STEPS, SEED, GUIDANCE_SCALE, RANK = 6, 7, 4.0, 4
PICTURES = Path(__file__).resolve().parents[2] / "recipes" / "examples" / "pictures"
INDIVIDUALS = {"cat": PICTURES / "white-cat.png", "bear": PICTURES / "teal-bear.png"}
SAMPLERS = {"EulerDiscreteScheduler": "euler", "DPMSolverMultistepScheduler": "dpmpp_2m"}


def comfy_model(pipe: RelationPipeline) -> Any:
    """ComfyUI's model with the weights of a bundle's UNet."""
    unet, schedule = pipe.bundle.unet, pipe.bundle.scheduler_config
    sizes = unet.config
    channels, layers = sizes.block_out_channels, sizes.layers_per_block
    depths = sizes.transformer_layers_per_block
    if isinstance(depths, int):
        depths = [depths] * len(channels)
    depths = [depth if "CrossAttn" in kind else 0 for depth, kind in zip(depths, sizes.down_block_types, strict=True)]

    class Operations(comfy.ops.disable_weight_init):
        class GroupNorm(comfy.ops.disable_weight_init.GroupNorm):
            def __init__(self, num_groups: int, *arguments: Any, **options: Any) -> None:
                super().__init__(sizes.norm_num_groups, *arguments, **options)  # ComfyUI asks for 32, as SDXL has

    config = comfy.supported_models.SDXL(
        {
            "image_size": sizes.sample_size,
            "in_channels": sizes.in_channels,
            "out_channels": sizes.out_channels,
            "model_channels": channels[0],
            "num_res_blocks": [layers] * len(channels),
            "channel_mult": [width // channels[0] for width in channels],
            "num_classes": "sequential",
            "use_spatial_transformer": True,
            "legacy": False,
            "transformer_depth": [depth for depth in depths for _ in range(layers)],
            "transformer_depth_output": [depth for depth in depths for _ in range(layers + 1)],
            "transformer_depth_middle": depths[-1],
            "context_dim": sizes.cross_attention_dim,
            "use_linear_in_transformer": True,
            "adm_in_channels": sizes.projection_class_embeddings_input_dim,
            "dtype": torch.float32,
        }
    )
    config.unet_config["num_head_channels"] = channels[-1] // sizes.attention_head_dim[-1]
    config.custom_operations = Operations
    config.manual_cast_dtype = None
    config.sampling_settings["zsnr"] = bool(schedule.get("rescale_betas_zero_snr"))
    kind = "V_PREDICTION" if schedule["prediction_type"] == "v_prediction" else "EPS"
    model = comfy.model_base.SDXL(config, model_type=getattr(comfy.model_base.ModelType, kind))
    model.embedder = comfy.model_base.Timestep(sizes.addition_time_embed_dim)
    names = comfy.utils.unet_to_diffusers(config.unet_config)
    weights = {names[key]: value for key, value in unet.state_dict().items() if key in names}
    model.diffusion_model.load_state_dict(weights)
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model.eval(), load_device=cpu, offload_device=cpu)


def write_lora(pipe: RelationPipeline, path: Path) -> None:
    """A random relation LoRA with a layout prior."""
    unet = pipe.bundle.unet
    lora.add(unet, RANK, RANK, SEED)
    generator = torch.Generator().manual_seed(SEED)
    tensors = {key: torch.randn(value.shape, generator=generator) * 0.1 for key, value in lora.state(unet).items()}
    unet.delete_adapters(lora.ADAPTER)
    prior = LayoutPrior.from_boxes([[(0.3, 0.05, 0.8, 0.6), (0.1, 0.4, 0.9, 0.95)]], ["rider", "mount"])
    lora.save(path, tensors, {"rbctl.predicate": "is riding", "rbctl.layout_prior": prior.to_json()}, RANK, "kohya")


def by_nodes(model: Any, bundle: Path, lora_name: str, **settings: Any) -> Any:
    """The model after rbctl's nodes, each run as ComfyUI runs it."""

    def run(node: str, **inputs: Any) -> Any:
        kind = nodes.NODE_CLASS_MAPPINGS[node]
        return getattr(kind(), kind.FUNCTION)(**inputs)

    (adapter,) = run("RbctlLoadAdapter", bundle=str(bundle))
    individuals: tuple[Any, ...] = ()
    for name, picture in INDIVIDUALS.items():
        image = torch.from_numpy(np.array(Image.open(picture).convert("RGB")))[None] / 255
        (individuals,) = run(
            "RbctlIndividual", adapter=adapter, image=image, name=name, local_tokens=True, individuals=individuals
        )
    model, layout, trigger, roles = run("RbctlLoadRelationLora", model=model, lora_name=lora_name, strength_model=0.8)
    assert (trigger, roles) == ("is riding", "rider, mount")
    boxes, _, _ = run("RbctlBoxes", individuals=individuals, boxes="", width=256, height=256, layout=layout)
    chosen = {"gamma": 0.7, "start_percent": 0.0, "end_percent": 1.0, **settings}
    (model,) = run("RbctlApplyRelation", model=model, adapter=adapter, individuals=individuals, boxes=boxes, **chosen)
    return model


def conditioning(pipe: RelationPipeline, text: str, width: int, height: int) -> list[Any]:
    """What ComfyUI's node CLIPTextEncodeSDXL gives, of rbctl's text embeddings."""
    embeds, pooled = pipe.bundle.encode_prompts([text])
    size = {"width": width, "height": height, "target_width": width, "target_height": height, "crop_w": 0, "crop_h": 0}
    return [[embeds, {"pooled_output": pooled, **size}]]


def by_comfy(pipe: RelationPipeline, model: Any, noise: torch.Tensor, scale: float, words: str) -> torch.Tensor:
    """Scaled latents (B, C, h, w) by ComfyUI's sampler."""
    scheduler = pipe.bundle.scheduler()
    scheduler.set_timesteps(STEPS)
    name, sigmas = SAMPLERS[type(scheduler).__name__], scheduler.sigmas
    first, sampling = float(sigmas[0]), model.get_model_object("model_sampling")
    start = float(scheduler.init_noise_sigma) if name == "euler" else math.sqrt(1 + first**2)
    highest = math.isclose(first, float(sampling.sigma_max), rel_tol=1e-5) or first > float(sampling.sigma_max)
    comfys = math.sqrt(1 + first**2) if highest else first  # what ComfyUI scales unit noise by
    height, width = (side * pipe.bundle.latent_scale for side in noise.shape[-2:])
    samples = comfy.sample.sample_custom(
        model,
        noise * (start / comfys),
        scale,
        comfy.samplers.sampler_object(name),
        sigmas,
        conditioning(pipe, words, width, height),
        conditioning(pipe, "lowres", width, height),
        torch.zeros_like(noise),
        disable_pbar=True,
    )
    return model.model.latent_format.process_in(samples)


def by_rbctl(pipe: RelationPipeline, noise: torch.Tensor, scale: float, prompt: str) -> torch.Tensor:
    """Scaled latents (B, C, h, w) by what ``rbctl sample`` samples with."""
    height, width = (side * pipe.bundle.latent_scale for side in noise.shape[-2:])
    images = {name: picture for name, picture in INDIVIDUALS.items() if f"{{{name}}}" in prompt}
    return pipe(
        prompt,
        images,
        negative_prompt="lowres",
        height=height,
        width=width,
        num_inference_steps=STEPS,
        guidance_scale=scale,
        image_scale=0.7,
        num_images_per_prompt=len(noise),
        latents=noise,
        output_type="latent",
    ).images


def plain_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
    """Another node's replacement of an attention, which does what ComfyUI does."""
    return optimized_attention(q, k, v, options["n_heads"])


def compare(bundle: str, folder: Path) -> dict[str, float]:
    """The largest difference of each case."""
    pipe = RelationPipeline.from_pretrained(bundle, device="cpu", torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    model = comfy_model(pipe)
    write_lora(pipe, folder / "loras" / "ride.safetensors")
    folder_paths.add_model_folder_path("loras", str(folder / "loras"))
    pipe.load_relation(folder / "loras" / "ride.safetensors", 0.8)
    (folder / "custom_nodes").mkdir()
    installed = CliRunner().invoke(main, ["comfyui", "install", str(folder / "custom_nodes")])
    assert installed.exit_code == 0, installed.output
    assert asyncio.run(nodes.load_custom_node(str(folder / "custom_nodes" / "comfyui-rbctl")))
    related = by_nodes(model, pipe.bundle.folder, "ride.safetensors")

    side = pipe.bundle.unet.config.sample_size
    generator = torch.Generator().manual_seed(SEED)
    square, wide = (
        torch.randn(shape, generator=generator) for shape in ((1, 4, side, side), (2, 4, side * 3 // 4, side * 5 // 4))
    )
    prompt = "a {cat} is riding a {bear}"
    words = prompt.replace("{", "").replace("}", "")
    wanted = by_rbctl(pipe, square, GUIDANCE_SCALE, prompt)
    without = by_rbctl(pipe, square, GUIDANCE_SCALE, words)

    def difference(
        model: Any, wanted: torch.Tensor, noise: torch.Tensor = square, scale: float = GUIDANCE_SCALE
    ) -> float:
        return float((by_comfy(pipe, model, noise, scale, words) - wanted).abs().max())

    replaced = model.clone()
    for block in related.model_options["transformer_options"]["patches_replace"]["attn2"]:
        replaced.set_model_attn2_replace(plain_attention, *block)
    behind = by_nodes(replaced, pipe.bundle.folder, "ride.safetensors")
    before = related.clone()
    for patch in before.model_options["transformer_options"]["patches_replace"]["attn2"].values():
        patch.add(lambda out, q, k, v, options, weight: weight * out, weight=0.0)
    return {
        "square": difference(related, wanted),
        "two pictures, wide": difference(related, by_rbctl(pipe, wide, GUIDANCE_SCALE, prompt), wide),
        "no guidance": difference(related, by_rbctl(pipe, square, 1.0, prompt), scale=1.0),
        "behind another node's replacement": difference(behind, wanted),
        "before a node that adds to it": difference(before, wanted),
        "individuals end at once": difference(
            by_nodes(model, pipe.bundle.folder, "ride.safetensors", end_percent=0.0), without
        ),
        "effect of the individuals": float((wanted - without).abs().max()),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        differences = compare(sys.argv[1] if len(sys.argv) > 1 else "mini", Path(folder))
    effect = differences.pop("effect of the individuals")
    print(json.dumps({"effect of the individuals": effect}))
    for case, difference in differences.items():
        print(json.dumps({"case": case, "difference": difference}))
    sys.exit(effect < 10 * LIMIT or max(differences.values()) > LIMIT)
