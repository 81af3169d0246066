"""SimpleTuner: a data set of targets for each number of individuals, and one a reference, with the same names of files.

Its loader wants every reference of every target, so triplets of two and of three individuals are sets of their own.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from rbctl.plugins.data.trainers.layout import SCRIPT, Layout, script
from rbctl.plugins.data.trainers.training import Base, Training

_FAMILIES = {
    "flux2-klein": ("flux2", "klein-4b"),
    "qwen-image-edit": ("qwen_image", "edit-v3"),
    "flux-kontext": ("flux", "kontext"),
}


def _settings(training: Training) -> dict[str, str]:
    family, flavour = _FAMILIES[training.base]
    counts = Counter(example.count for example in training.examples)
    ((most_frequent, _),) = counts.most_common(1)
    config = {
        "model_type": "lora",
        "model_family": family,
        "model_flavour": flavour,
        "pretrained_model_name_or_path": training.trained.model,
        "data_backend_config": "config/multidatabackend.json",
        "conditioning_multidataset_sampling": "combined",
        "output_dir": "output",
        "lora_type": "standard",
        "lora_rank": 32,
        "train_batch_size": 1,
        "gradient_checkpointing": True,
        "mixed_precision": "bf16",
        "base_model_precision": "int8-quanto",
        "quantize_via": "cpu",
        "optimizer": "adamw_bf16",
        "learning_rate": 1e-4,
        "lr_scheduler": "constant",
        "num_train_epochs": 0,
        "max_train_steps": 1500,
        "checkpoint_step_interval": 250,
        "disable_bucket_pruning": True,
        "caption_dropout_probability": 0.0,
        "resume_from_checkpoint": "latest",
        "seed": 42,
        "eval_dataset_id": f"targets-of-{most_frequent}",
        "num_eval_images": len(training.samples),
        "validation_step_interval": 250,
        "validation_prompt": training.samples[0].caption,
        "validation_resolution": f"{training.side}x{training.side}",
        "validation_guidance": 4.0,
        "validation_num_inference_steps": 25,
        "report_to": "none",
    }
    sets = [part for count in sorted(counts) for part in _sets(training, count)]
    sets.append(
        {"id": "texts", "type": "local", "dataset_type": "text_embeds", "default": True, "cache_dir": "cache/texts"}
    )
    return {
        "config/config.json": json.dumps(config, indent=2, ensure_ascii=False) + "\n",
        "config/multidatabackend.json": json.dumps(sets, indent=2) + "\n",
        "samples.json": json.dumps(
            {f"sample_{sample.stem}": sample.caption for sample in training.samples}, indent=2, ensure_ascii=False
        )
        + "\n",
        SCRIPT: script(LAYOUT.variables(training), ["simpletuner train"]),
    }


def _sets(training: Training, count: int) -> list[dict[str, Any]]:
    """The data sets of triplets of so many individuals: the targets first."""
    one = training.trained.wording == "panel"
    folder, targets = f"of-{count}", f"targets-of-{count}"
    pixels = {
        "resolution": training.side,
        "resolution_type": "pixel",
        "minimum_image_size": 0,
        "crop": False,
        "metadata_backend": "discovery",
    }
    paired = [f"references-{number}" for number in range(1, 1 if one else count + 1)] or ["references-1"]
    kinds = dict.fromkeys(paired, "reference_strict" if one else "reference_loose")
    if training.masks:
        kinds["masks"] = "mask"

    def part(name: str, **more: Any) -> dict[str, Any]:
        entry = {"id": f"{name}-of-{count}", "type": "local", "instance_data_dir": f"{folder}/{name}"}
        return entry | more | pixels | {"cache_dir_vae": f"cache/vae/{folder}/{name}"}

    return [
        part("targets", caption_strategy="textfile", conditioning_data=[f"{name}-of-{count}" for name in kinds]),
        *(
            part(
                name,
                dataset_type="conditioning",
                conditioning_type=kind,
                source_dataset_id=targets,
                caption_strategy=None,
            )
            for name, kind in kinds.items()
        ),
    ]


LAYOUT = Layout(
    source="https://github.com/bghira/SimpleTuner",
    version="bc8e6ab7738c of 2026-08-22 (4.8.0)",
    bases={
        "flux2-klein": Base("black-forest-labs/FLUX.2-klein-base-4B", "image"),
        "qwen-image-edit": Base("Qwen/Qwen-Image-Edit-2511", "Picture"),
        "flux-kontext": Base("black-forest-labs/FLUX.1-Kontext-dev", "panel"),
    },
    target="of-{count}/targets/{stem}",
    reference="of-{count}/references-{number}/{stem}",
    caption="of-{count}/targets/{stem}.txt",
    mask="of-{count}/masks/{stem}.png",
    sign="config/multidatabackend.json",
    settings=_settings,
    one_suffix=True,
)
