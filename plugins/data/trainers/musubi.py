"""musubi-tuner: targets with texts, and one folder of references, called after their target: 000_0.png, 000_1.png."""

from __future__ import annotations

import shlex
from typing import TypeAlias

from rbctl.plugins.data.trainers.layout import SCRIPT, Layout, command, references_of_sample, script
from rbctl.plugins.data.trainers.training import Base, Training

_TOML = """[general]
resolution = [{side}, {side}]
caption_extension = ".txt"
batch_size = 1
enable_bucket = true

[[datasets]]
image_directory = "targets"
control_directory = "references"
cache_directory = "cache"
num_repeats = 1
{control}"""
# How the references are scaled, as each base's own sampling does it.
_CONTROL = {
    "flux2-klein": "control_resolution = [1024, 1024]\nno_resize_control = true\n",
    "qwen-image-edit": "control_resolution = [1024, 1024]\n",
    "flux-kontext": "",
}
# Start of the scripts' names, options of all three, of both that read texts, of the training.
_Options: TypeAlias = dict[str, object]
_FAMILIES: dict[str, tuple[str, _Options, _Options, _Options]] = {
    "flux2-klein": (
        "flux_2",
        {"model_version": "klein-base-4b"},
        {"text_encoder": '"$TEXT_ENCODER"'},
        {"timestep_sampling": "flux2_shift", "network_module": "networks.lora_flux_2", "learning_rate": "1e-4"},
    ),
    "qwen-image-edit": (
        "qwen_image",
        {"model_version": "edit-2511"},
        {"text_encoder": '"$TEXT_ENCODER"'},
        {
            "timestep_sampling": "shift",
            "discrete_flow_shift": 2.2,
            "network_module": "networks.lora_qwen_image",
            "learning_rate": "5e-5",
        },
    ),
    "flux-kontext": (
        "flux_kontext",
        {},
        {"text_encoder1": '"$TEXT_ENCODER"', "text_encoder2": '"$CLIP"'},
        {"timestep_sampling": "flux_shift", "network_module": "networks.lora_flux", "learning_rate": "1e-4"},
    ),
}


def _settings(training: Training) -> dict[str, str]:
    stem, version, encoders, own = _FAMILIES[training.base]
    scripts = f'"$MUSUBI/src/musubi_tuner/{stem}_'
    data = {"dataset_config": "dataset.toml"}
    commands = [
        command(f'python {scripts}cache_latents.py"', {**data, "vae": '"$VAE"', **version}),
        command(f'python {scripts}cache_text_encoder_outputs.py"', {**data, **encoders, "batch_size": 1, **version}),
        command(
            f'accelerate launch --num_cpu_threads_per_process 1 --mixed_precision bf16 {scripts}train_network.py"',
            {
                **data,
                **version,
                "dit": '"$DIT"',
                "vae": '"$VAE"',
                **encoders,
                "sdpa": True,
                "mixed_precision": "bf16",
                "weighting_scheme": "none",
                **own,
                "optimizer_type": "adamw8bit",
                "gradient_checkpointing": True,
                "max_data_loader_n_workers": 2,
                "persistent_data_loader_workers": True,
                "network_dim": 32,
                "max_train_steps": 1500,
                "save_every_n_steps": 250,
                "seed": 42,
                "sample_prompts": "samples.txt",
                "sample_every_n_steps": 250,
                "output_dir": "output",
                "output_name": shlex.quote(training.name),
            },
        ),
    ]
    lines = []
    for number, sample in enumerate(training.samples):
        control = " ".join(f"--ci {path}" for path in references_of_sample(LAYOUT, training, sample))
        # The trainer reads " --" as the start of an option.
        text = sample.caption.replace(" --", " -")
        lines.append(f"{text} {control} --w {training.side} --h {training.side} --d {number} --s 25\n")
    return {
        "dataset.toml": _TOML.format(side=training.side, control=_CONTROL[training.base]),
        "samples.txt": "".join(lines),
        SCRIPT: script(LAYOUT.variables(training), commands),
    }


def _variables(training: Training) -> dict[str, str]:
    named = {
        "MUSUBI": "the folder of its checkout",
        "DIT": "the transformer's file",
        "VAE": "the VAE's file",
        "TEXT_ENCODER": "the first file of the text encoder",
    }
    return named | ({"CLIP": "the file of CLIP-L"} if training.base == "flux-kontext" else {})


LAYOUT = Layout(
    source="https://github.com/kohya-ss/musubi-tuner",
    version="30c658c4f4b0 of 2026-06-24 (0.3.4)",
    bases={
        "flux2-klein": Base("black-forest-labs/FLUX.2-klein-base-4B", "image"),
        "qwen-image-edit": Base("Comfy-Org/Qwen-Image-Edit_ComfyUI", "Picture"),
        "flux-kontext": Base("black-forest-labs/FLUX.1-Kontext-dev", "panel"),
    },
    target="targets/{stem}",
    reference="references/{stem}_{index}",
    caption="targets/{stem}.txt",
    sign="dataset.toml",
    settings=_settings,
    variables=_variables,
)
