"""SDXL with MS-Diffusion's adapter: a UNet, two CLIP text encoders, and an image branch with boxes."""

from rbctl.bases import NETWORK, Family

_PROJECTIONS = r"(to_[qkv]|to_out\.0)"
FAMILY = Family(
    name="sdxl",
    pipelines=("StableDiffusionXLPipeline",),
    parts={
        **dict.fromkeys(("unet", "vae", "text_encoder", "text_encoder_2", "clip_vision"), NETWORK),
        "tokenizer": (("vocab.json", "tokenizer.json"),),
        "tokenizer_2": (("vocab.json", "tokenizer.json"),),
        "scheduler": (("scheduler_config.json",),),
        ".": (("ms_adapter.safetensors", "ms_adapter.bin"),),
    },
    learned_on=("unet", "ms_adapter.safetensors", "ms_adapter.bin"),
    layers={
        "attn2": rf".+\.attn2\.{_PROJECTIONS}",
        "attention": rf".+\.attn[12]\.{_PROJECTIONS}",
        "transformer": rf".+\.(attn[12]\.{_PROJECTIONS}|ff\.net\.(0\.proj|2))",
    },
    only={"finetune": {"reference_mask": "none"}, "sample": {"reference_mask": "none"}},
)
