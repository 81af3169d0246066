"""The example scripts of diffusers: an imagefolder with a column of condition pictures.

They take one condition picture a target, so the references stand side by side in it.
"""

from __future__ import annotations

import json
import shlex

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

FOLDER = "data"
METADATA = f"{FOLDER}/metadata.jsonl"
_SCRIPTS = {
    "flux2-klein": "train_dreambooth_lora_flux2_klein_img2img.py",
    "flux-kontext": "train_dreambooth_lora_flux_kontext.py",
}


def _settings(training: Training) -> dict[str, str]:
    rows = [
        {
            "file_name": target_of(LAYOUT, training, example).removeprefix(f"{FOLDER}/"),
            "condition_file_name": references_of(LAYOUT, training, example)[0].removeprefix(f"{FOLDER}/"),
            "text": example.caption,
        }
        for example in training.examples
    ]
    samples = [
        {"prompt": sample.caption, "image": references_of_sample(LAYOUT, training, sample)[0]}
        for sample in training.samples
    ]
    options: dict[str, object] = {
        "pretrained_model_name_or_path": training.trained.model,
        "dataset_name": FOLDER,
        "image_column": "image",
        "cond_image_column": "condition",
        "caption_column": "text",
        "instance_prompt": shlex.quote(training.name),
        "output_dir": "output",
        "mixed_precision": "bf16",
        "resolution": training.side,
        "train_batch_size": 1,
        "guidance_scale": 1,
        "gradient_checkpointing": True,
        "cache_latents": True,
        "optimizer": "adamw",
        "use_8bit_adam": True,
        "learning_rate": "1e-4",
        "lr_scheduler": "constant",
        "lr_warmup_steps": 0,
        "max_train_steps": 1500,
        "checkpointing_steps": 250,
        "rank": 32,
        "seed": 42,
    }
    if training.base != "flux-kontext":  # its script refuses every validation image
        options |= {"validation_prompt": shlex.quote(samples[0]["prompt"]), "validation_image": samples[0]["image"]}
    start = f'accelerate launch "$DIFFUSERS/examples/dreambooth/{_SCRIPTS[training.base]}"'
    return {
        METADATA: "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows),
        "samples.json": json.dumps(samples, indent=2, ensure_ascii=False) + "\n",
        SCRIPT: script(LAYOUT.variables(training), [command(start, options)]),
    }


LAYOUT = Layout(
    source="https://github.com/huggingface/diffusers",
    version="58eb52c0803e of 2026-08-23",
    bases={
        "flux2-klein": Base("black-forest-labs/FLUX.2-klein-base-4B", "panel"),
        "flux-kontext": Base("black-forest-labs/FLUX.1-Kontext-dev", "panel"),
    },
    target=f"{FOLDER}/targets/{{stem}}",
    reference=f"{FOLDER}/conditions/{{stem}}",
    sign=METADATA,
    settings=_settings,
    variables=lambda training: {"DIFFUSERS": "the folder of its checkout"},
)
