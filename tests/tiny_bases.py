"""Tiny bases of random weights with references in their sequence: snapshots of diffusers, and one beside ``mini``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml

from rbctl.files import write_json
from rbctl.plugins.pretrain.architecture import DIT, DIT_MODEL_INDEX, DIT_SCHEDULER

_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
_SPECIAL += ("<|video_pad|>", "<|vision_pad|>")
_SHIFTED = {"use_dynamic_shifting": True, "shift": 3.0}
_SIDE = 64  # pixels of the pictures that these bundles are tried with


def tokenizer() -> Any:
    """A Qwen2 tokenizer that knows the 256 bytes, and no merges."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2TokenizerFast

    vocabulary = {letter: number for number, letter in enumerate(sorted(ByteLevel.alphabet()))}
    vocabulary |= {token: 256 + number for number, token in enumerate(_SPECIAL)}
    made = Qwen2TokenizerFast(vocab=vocabulary, merges=[], pad_token="<|endoftext|>", eos_token="<|im_end|>")
    made.add_special_tokens({"additional_special_tokens": list(_SPECIAL[1:])})
    made.chat_template = _CHAT
    return made


def _write(pipeline: Any, folder: Path, recipe: dict[str, Any]) -> Path:
    _spread(pipeline.transformer)
    pipeline.save_pretrained(folder)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


@torch.no_grad()
def _spread(transformer: torch.nn.Module) -> None:
    """Weights so large that what tells conditions apart is seen in the picture."""
    for parameter in transformer.parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=1.5 / parameter.shape[1] ** 0.5)


def tiny_flux2_klein(folder: Path, distilled: bool = False) -> Path:
    """FLUX.2 Klein for pictures of 64 pixels."""
    import diffusers
    import transformers as hf

    torch.manual_seed(0)
    words = tokenizer()
    text = hf.Qwen3Config(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=36,  # the pipeline reads the 9th, 18th and 27th
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=512,
    )
    vae = diffusers.AutoencoderKLFlux2(
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        latent_channels=2,
        norm_num_groups=2,
        sample_size=_SIDE,
    )
    transformer = diffusers.Flux2Transformer2DModel(
        in_channels=8,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=48,
        timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    pipeline = diffusers.Flux2KleinPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(**_SHIFTED),
        vae=vae,
        text_encoder=hf.Qwen3ForCausalLM(text),
        tokenizer=words,
        transformer=transformer,
        is_distilled=distilled,
    )
    own = {"width": _SIDE, "height": _SIDE, "steps": 2, "guidance_scale": 1.0 if distilled else 3.0}
    return _write(pipeline, folder, {"finetune": {"resolution": _SIDE}, "sample": own})


def tiny_qwen_image_edit(folder: Path) -> Path:
    """Qwen-Image-Edit-Plus for pictures of 64 pixels."""
    import diffusers
    import transformers as hf

    torch.manual_seed(0)
    words = tokenizer()
    ids = {token: words.convert_tokens_to_ids(token) for token in _SPECIAL}
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    text |= {"num_key_value_heads": 2, "vocab_size": len(words), "max_position_embeddings": 2048}
    text["rope_scaling"] = {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"}
    vision = {"depth": 2, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
    config = hf.Qwen2_5_VLConfig(
        text_config=text,
        vision_config={**vision, "fullatt_block_indexes": [1]},
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    pictures = hf.Qwen2VLImageProcessor(min_pixels=28 * 28, max_pixels=1024 * 28 * 28)
    processor = hf.Qwen2VLProcessor(
        image_processor=pictures, tokenizer=words, video_processor=hf.Qwen2VLVideoProcessor()
    )
    pipeline = diffusers.QwenImageEditPlusPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(**_SHIFTED),
        vae=diffusers.AutoencoderKLQwenImage(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[False, True, True],
            latents_mean=[0.0] * 4,
            latents_std=[1.0] * 4,
        ),
        text_encoder=hf.Qwen2_5_VLForConditionalGeneration(config),
        tokenizer=words,
        processor=processor,
        transformer=diffusers.QwenImageTransformer2DModel(
            in_channels=16,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            axes_dims_rope=(4, 6, 6),
        ),
    )
    own = {"width": _SIDE, "height": _SIDE, "steps": 2, "guidance_scale": 3.0}
    return _write(pipeline, folder, {"finetune": {"resolution": _SIDE}, "sample": own})


def tiny_mini_dit(folder: Path) -> Path:
    """``mini-dit`` with a smaller transformer, for pictures of 64 pixels."""
    import diffusers

    torch.manual_seed(0)
    shape = {**DIT, "num_layers": 1, "num_single_layers": 2, "num_attention_heads": 1}
    transformer = diffusers.Flux2Transformer2DModel.from_config(shape)
    _spread(transformer)
    transformer.save_pretrained(folder / "transformer")
    write_json(folder / "scheduler" / "scheduler_config.json", DIT_SCHEDULER)
    write_json(folder / "model_index.json", DIT_MODEL_INDEX)
    tuning = {"resolution": _SIDE, "rank": 4, "alpha": 4}
    own = {"width": _SIDE, "height": _SIDE, "steps": 2, "guidance_scale": 3.0}
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"finetune": tuning, "sample": own}))
    return folder
