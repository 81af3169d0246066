"""ai-toolkit: a folder of targets with texts, and a folder for each reference, where it bears the target's name."""

from __future__ import annotations

from typing import Any

import yaml

from rbctl.plugins.data.trainers.layout import SCRIPT, Layout, references_of_sample, script
from rbctl.plugins.data.trainers.training import Base, Training

_ARCHITECTURES = {
    "flux2-klein": "flux2_klein_4b",
    "qwen-image-edit": "qwen_image_edit_plus",
    "flux-kontext": "flux_kontext",
}
_OUTSIDE = 0.5  # weight of the loss outside of the masks: the background is learned too


def _settings(training: Training) -> dict[str, str]:
    one = training.trained.wording == "panel"
    most = 1 if one else max(example.count for example in training.examples)
    folders = [f"references/{number}" for number in range(1, most + 1)]
    dataset: dict[str, Any] = {
        "folder_path": "targets",
        "control_path": folders,
        "caption_ext": "txt",
        "caption_dropout_rate": 0.05,
        "resolution": [training.side],
    }
    if training.masks:
        dataset |= {"mask_path": "masks", "mask_min_value": _OUTSIDE}
    samples = [
        {"prompt": sample.caption}
        | {f"ctrl_img_{k}": path for k, path in enumerate(references_of_sample(LAYOUT, training, sample), 1)}
        for sample in training.samples
    ]
    if one:
        samples = [{"prompt": sample["prompt"], "ctrl_img": sample["ctrl_img_1"]} for sample in samples]
    process = {
        "type": "diffusion_trainer",
        "training_folder": "output",
        "device": "cuda:0",
        "network": {"type": "lora", "linear": 32, "linear_alpha": 32},
        "save": {"dtype": "float16", "save_every": 250, "max_step_saves_to_keep": 4},
        "datasets": [dataset],
        "train": {
            "batch_size": 1,
            "steps": 1500,
            "gradient_accumulation": 1,
            "timestep_type": "weighted",
            "train_unet": True,
            "train_text_encoder": False,
            "gradient_checkpointing": True,
            "noise_scheduler": "flowmatch",
            "optimizer": "adamw8bit",
            "lr": 1e-4,
            "dtype": "bf16",
        },
        "model": {
            "name_or_path": training.trained.model,
            "arch": _ARCHITECTURES[training.base],
            "quantize": True,
            "quantize_te": True,
            "low_vram": True,
        },
        "sample": {
            "sampler": "flowmatch",
            "sample_every": 250,
            "width": training.side,
            "height": training.side,
            "samples": samples,
            "neg": "",
            "seed": 42,
            "walk_seed": True,
            "guidance_scale": 4,
            "sample_steps": 25,
        },
    }
    config = {
        "job": "extension",
        "config": {"name": training.name, "process": [process]},
        "meta": {"name": "[name]", "version": "1.0"},
    }
    return {
        "config.yaml": yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=1000),
        SCRIPT: script(LAYOUT.variables(training), ['python "$AI_TOOLKIT/run.py" config.yaml']),
    }


LAYOUT = Layout(
    source="https://github.com/ostris/ai-toolkit",
    version="27a03a91f23e of 2026-08-21",
    bases={
        "flux2-klein": Base("black-forest-labs/FLUX.2-klein-base-4B", "image"),
        "qwen-image-edit": Base("Qwen/Qwen-Image-Edit-2511", "Picture"),
        "flux-kontext": Base("black-forest-labs/FLUX.1-Kontext-dev", "panel"),
    },
    target="targets/{stem}",
    reference="references/{number}/{stem}",
    caption="targets/{stem}.txt",
    mask="masks/{stem}.png",
    sign="config.yaml",
    settings=_settings,
    variables=lambda training: {"AI_TOOLKIT": "the folder of its checkout"},
)
