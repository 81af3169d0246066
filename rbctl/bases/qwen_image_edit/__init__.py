"""Qwen-Image-Edit-Plus: a flow-matching transformer with references in its sequence; Qwen2.5-VL sees them too."""

from rbctl.bases import Family
from rbctl.bases.parts import EDITOR, TUNING, WITHOUT_IMAGE_BRANCH

# Pictures ask (to_q), words answer (add_k_proj, add_v_proj), and to_out gives the pictures what was found: SDXL's
# cross-attention in other words. The pictures' own keys and values, by which they see the references, stay as they are.
_JOINT = r"attn\.(to_[qkv]|add_[qkv]_proj|to_out\.0|to_add_out)"
FAMILY = Family(
    name="qwen_image_edit",
    pipelines=("QwenImageEditPlusPipeline",),
    parts={**EDITOR, "processor": (("preprocessor_config.json", "processor_config.json"),)},
    learned_on=("transformer",),
    layers={
        "attn2": r"transformer_blocks\.\d+\.attn\.(to_q|add_[kv]_proj|to_out\.0)",
        "attention": rf"transformer_blocks\.\d+\.{_JOINT}",
        "transformer": rf"transformer_blocks\.\d+\.({_JOINT}|(img|txt)_mlp\.net\.(0\.proj|2))",
    },
    only={"finetune": TUNING, "sample": WITHOUT_IMAGE_BRANCH},
    snapshot=True,
)
