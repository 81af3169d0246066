"""FLUX.2 Klein: a flow-matching transformer with reference pictures in its sequence, and Qwen3 as text encoder."""

from pathlib import Path

from rbctl.bases import INDEX, RECIPE, Family
from rbctl.bases.parts import EDITOR, TUNING, WITHOUT_IMAGE_BRANCH
from rbctl.files import read_object


def _recipe(folder: Path) -> str:
    return RECIPE if read_object(folder / INDEX).get("is_distilled") else "recipe-base.yaml"


# In a block of two streams, pictures ask (to_q), words answer (add_k_proj, add_v_proj), and to_out gives the pictures
# what was found: SDXL's cross-attention in other words. The pictures' own keys and values, by which they see the
# references, stay as they are. A block of one stream has one projection for all of it, the feed-forward part too.
_ONE_STREAM = r"single_transformer_blocks\.\d+\.attn\.(to_qkv_mlp_proj|to_out)"
_JOINT = r"attn\.(to_[qkv]|add_[qkv]_proj|to_out\.0|to_add_out)"
FAMILY = Family(
    name="flux2",
    pipelines=("Flux2KleinPipeline",),
    parts=EDITOR,
    learned_on=("transformer",),
    layers={
        "attn2": rf"transformer_blocks\.\d+\.attn\.(to_q|add_[kv]_proj|to_out\.0)|{_ONE_STREAM}",
        "attention": rf"transformer_blocks\.\d+\.{_JOINT}|{_ONE_STREAM}",
        "transformer": rf"transformer_blocks\.\d+\.({_JOINT}|ff(_context)?\.linear_(in|out))|{_ONE_STREAM}",
    },
    only={"finetune": TUNING, "sample": WITHOUT_IMAGE_BRANCH},
    snapshot=True,
    recipe=_recipe,
)
