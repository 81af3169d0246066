"""Image-to-video pipelines of random weights, as small as their classes allow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

WORDS = ("a", "the", "cat", "dog", "bear", "is", "riding", "hugging")


def _text_parts() -> dict[str, Any]:
    import transformers

    words = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((f"▁{word}", -3.0) for word in WORDS)]
    vocabulary = words + [(letter, -5.0) for letter in "abcdefghijklmnopqrstuvwxyz"]
    config = transformers.T5Config(
        vocab_size=len(vocabulary), d_model=32, d_kv=8, d_ff=37, num_layers=1, num_heads=4, decoder_start_token_id=0
    )
    tokenizer = transformers.T5TokenizerFast(vocab=vocabulary, extra_ids=0)
    return {"tokenizer": tokenizer, "text_encoder": transformers.T5EncoderModel(config)}


def write_cogvideox(folder: Path) -> None:
    """CogVideoX-I2V at 64 x 48; its size is fixed, as that of CogVideoX-5b-I2V is."""
    import diffusers
    import torch

    torch.manual_seed(0)
    transformer = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=8,
        out_channels=4,
        time_embed_dim=2,
        text_embed_dim=32,
        num_layers=1,
        sample_width=8,
        sample_height=6,
        sample_frames=9,
        use_rotary_positional_embeddings=True,
        use_learned_positional_embeddings=True,
    )
    vae = diffusers.AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
    )
    scheduler = diffusers.CogVideoXDDIMScheduler()
    diffusers.CogVideoXImageToVideoPipeline(
        transformer=transformer, vae=vae, scheduler=scheduler, **_text_parts()
    ).save_pretrained(folder)


def write_ltx(folder: Path) -> None:
    """LTX, as Lightricks publishes it: the folder names the text-to-video class."""
    import diffusers
    import torch

    torch.manual_seed(0)
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=4,
        attention_head_dim=8,
        cross_attention_dim=32,
        num_layers=1,
        caption_channels=32,
    )
    levels = {"block_out_channels": (8, 8, 8, 8), "layers_per_block": (1, 1, 1, 1, 1)}
    levels["spatio_temporal_scaling"] = (True, True, False, False)
    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=8,
        **levels,
        **{f"decoder_{name}": value for name, value in levels.items()},
        patch_size=1,
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    diffusers.LTXPipeline(transformer=transformer, vae=vae, scheduler=scheduler, **_text_parts()).save_pretrained(
        folder
    )


def write_wan(folder: Path) -> None:
    """Wan 2.2 I2V, which has no image encoder."""
    import diffusers
    import torch

    torch.manual_seed(0)
    transformer = diffusers.WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=36,
        out_channels=16,
        text_dim=32,
        freq_dim=32,
        ffn_dim=32,
        num_layers=1,
    )
    vae = diffusers.AutoencoderKLWan(
        base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    )
    scheduler = diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    diffusers.WanImageToVideoPipeline(
        transformer=transformer, vae=vae, scheduler=scheduler, **_text_parts()
    ).save_pretrained(folder)


def rename_class(folder: Path, name: str) -> None:
    """Let the folder name another class of pipelines."""
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": name}))
