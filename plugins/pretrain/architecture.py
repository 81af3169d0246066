"""Shapes of the bundle ``mini``: its configuration files as they are written."""

from __future__ import annotations

from typing import Any

from rbctl.bundle.random_weights import Architecture

UNET: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [32, 64, 192],
    "layers_per_block": 1,
    "transformer_layers_per_block": [1, 1, 1],
    "attention_head_dim": [1, 2, 6],  # diffusers takes the number of heads under this name: 32 wide each
    "cross_attention_dim": 256,
    "norm_num_groups": 16,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 16,
    "projection_class_embeddings_input_dim": 128 + 6 * 16,
}
VAE: dict[str, Any] = {
    "_class_name": "UnshuffleVAE",
    "in_channels": 3,
    "latent_channels": 4,
    "block_out_channels": [3, 12, 64],
    "encoder_layers": 1,
    "decoder_layers": 2,
    "sample_size": 128,
    "scaling_factor": 1.0,
    "shift_factor": None,
    "force_upcast": False,
}
TEXT = {
    "model_type": "clip_text_model",
    "vocab_size": 4096,
    "hidden_size": 128,
    "intermediate_size": 512,
    "projection_dim": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
    "hidden_act": "gelu",
    "bos_token_id": 4094,
    "pad_token_id": 4095,
    "eos_token_id": 4095,
}
TEXT_1 = {"architectures": ["CLIPTextModel"], **TEXT}
TEXT_2 = {"architectures": ["CLIPTextModelWithProjection"], **TEXT}
CLIP_VISION = {
    "architectures": ["CLIPVisionModelWithProjection"],
    "model_type": "clip_vision_model",
    "hidden_size": 128,
    "intermediate_size": 512,
    "projection_dim": 128,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "image_size": 64,
    "patch_size": 8,
    "hidden_act": "gelu",
}
CLIPSELF = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 64, "layers": 5, "width": 128, "head_width": 32, "mlp_ratio": 4.0, "patch_size": 8},
    "text_cfg": {"context_length": 32, "vocab_size": 4096, "width": 128, "heads": 4, "layers": 4},
}
ADAPTER: dict[str, Any] = {
    "resampler": {
        "dim": 128,
        "depth": 2,
        "dim_head": 32,
        "heads": 4,
        "num_queries": 8,
        "ff_mult": 4,
        "embedding_dim": 128,
        "output_dim": 256,
        "phrase_embeddings_dim": 128,
        "fourier_freqs": 8,
    },
    "num_dummy_tokens": 4,
    "num_tokens": 8,
    "num_patches": 4,
    "scale": 1.0,
    "clip_image_size": 64,
    "local_image_size": 128,
}
SCHEDULER = {
    "_class_name": "DPMSolverMultistepScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "algorithm_type": "dpmsolver++",
    "solver_order": 2,
}
MODEL_INDEX = {
    "_class_name": "StableDiffusionXLPipeline",
    "force_zeros_for_empty_prompt": False,
    "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["rbctl.bundle.vae", "UnshuffleVAE"],
}
MINI = Architecture(UNET, VAE, TEXT_1, TEXT_2, CLIP_VISION, CLIPSELF, ADAPTER)
