"""DiffSynth-Studio: a list of rows in ``metadata.json``, whose references are a list of paths."""

from __future__ import annotations

import json
import math
import shlex
from typing import Any

from rbctl.plugins.data.trainers.layout import (
    SCRIPT,
    Layout,
    command,
    references_of,
    references_of_sample,
    script,
    target_of,
)
from rbctl.plugins.data.trainers.training import Base, Training

METADATA = "metadata.json"
_EPOCHS, _STEPS = 5, 1500
_ATTENTION = "to_q,to_k,to_v,to_out.0,add_q_proj,add_k_proj,add_v_proj,to_add_out"
# FLUX.2's single blocks have their projections under names of their own.
_SINGLE = ",".join(f"single_transformer_blocks.{k}.attn.to_out" for k in range(20))
_FAMILIES: dict[str, tuple[str, dict[str, object]]] = {
    "flux2-klein": (
        "flux2",
        {
            "model_id_with_origin_paths": "black-forest-labs/FLUX.2-klein-4B:text_encoder/*.safetensors,"
            "black-forest-labs/FLUX.2-klein-base-4B:transformer/*.safetensors,"
            "black-forest-labs/FLUX.2-klein-4B:vae/diffusion_pytorch_model.safetensors",
            "tokenizer_path": "black-forest-labs/FLUX.2-klein-4B:tokenizer/",
            "lora_target_modules": f"{_ATTENTION},linear_in,linear_out,to_qkv_mlp_proj,{_SINGLE}",
        },
    ),
    "qwen-image-edit": (
        "qwen_image",
        {
            "model_id_with_origin_paths": "Qwen/Qwen-Image-Edit-2511:transformer/diffusion_pytorch_model*.safetensors,"
            "Qwen/Qwen-Image:text_encoder/model*.safetensors,"
            "Qwen/Qwen-Image:vae/diffusion_pytorch_model.safetensors",
            "lora_target_modules": f"{_ATTENTION},img_mlp.net.2,img_mod.1,txt_mlp.net.2,txt_mod.1",
            "find_unused_parameters": True,
            "zero_cond_t": True,
        },
    ),
    "flux-kontext": (
        "flux",
        {
            "model_id_with_origin_paths": "black-forest-labs/FLUX.1-Kontext-dev:flux1-kontext-dev.safetensors,"
            "black-forest-labs/FLUX.1-dev:text_encoder/model.safetensors,"
            "black-forest-labs/FLUX.1-dev:text_encoder_2/*.safetensors,black-forest-labs/FLUX.1-dev:ae.safetensors",
            "lora_target_modules": "a_to_qkv,b_to_qkv,ff_a.0,ff_a.2,ff_b.0,ff_b.2,a_to_out,b_to_out,proj_out,"
            "norm.linear,norm1_a.linear,norm1_b.linear,to_qkv_mlp",
            "align_to_opensource_format": True,
        },
    ),
}


def column(base: str) -> str:
    """The row's key of the references."""
    return "kontext_images" if base == "flux-kontext" else "edit_image"


def _settings(training: Training) -> dict[str, str]:
    folder, own = _FAMILIES[training.base]
    key = column(training.base)
    rows: list[dict[str, Any]] = [
        {
            "image": target_of(LAYOUT, training, example),
            "prompt": example.caption,
            key: list(references_of(LAYOUT, training, example)),
        }
        for example in training.examples
    ]
    samples = [
        {"prompt": sample.caption, key: list(references_of_sample(LAYOUT, training, sample))}
        for sample in training.samples
    ]
    options = {
        "dataset_base_path": ".",
        "dataset_metadata_path": METADATA,
        "data_file_keys": f"image,{key}",
        "extra_inputs": key,
        "max_pixels": training.side**2,
        "dataset_repeat": math.ceil(_STEPS / _EPOCHS / len(rows)),
        **{name: value if value is True else shlex.quote(str(value)) for name, value in own.items()},
        "learning_rate": "1e-4",
        "num_epochs": _EPOCHS,
        "remove_prefix_in_ckpt": "pipe.dit.",
        "output_path": "output",
        "lora_base_model": "dit",
        "lora_rank": 32,
        "use_gradient_checkpointing": True,
    }
    start = f'accelerate launch "$DIFFSYNTH/examples/{folder}/model_training/train.py"'
    return {  # ASCII, since the trainer opens the list in the locale's encoding
        METADATA: json.dumps(rows, indent=1) + "\n",
        "samples.json": json.dumps(samples, indent=1) + "\n",
        SCRIPT: script(LAYOUT.variables(training), [command(start, options)]),
    }


LAYOUT = Layout(
    source="https://github.com/modelscope/DiffSynth-Studio",
    version="fed7b18fac2e of 2026-08-20",
    bases={
        "flux2-klein": Base("black-forest-labs/FLUX.2-klein-base-4B", "image"),
        "qwen-image-edit": Base("Qwen/Qwen-Image-Edit-2511", "Picture"),
        "flux-kontext": Base("black-forest-labs/FLUX.1-Kontext-dev", "panel"),
    },
    target="targets/{stem}",
    reference="references/{stem}-{number}",
    sign=METADATA,
    settings=_settings,
    variables=lambda training: {"DIFFSYNTH": "the folder of its checkout"},
)
