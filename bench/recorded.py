"""Run a script of the official program, or rbctl, in this process, and record what it takes and computes.

    python bench/recorded.py FOLDER train.py|inference.py|rbctl ARGUMENTS...

bench/official_program.py starts it, for an official script in a checkout. Both programs are timed by the same hooks.
Into FOLDER go:

- ``steps.jsonl``: a line of every ``Accelerator.log``, with ``step``, and ``clock`` and ``cpu`` in seconds;
- ``calls.jsonl``: what a call of the pipeline took, ``clock`` and ``cpu`` in seconds;
- ``first.pt``, ``keypoints.pt``: of ``train.py`` the inputs, the prediction and the loss of the first step, and of the
  first later one in which the keypoint matching loss counts; ``.safetensors``: the LoRA before them;
- ``sampling.pt``: of ``inference.py`` the initial latents, those after the first step and the last, the
  pictures, and what the two CLIP encoders are shown.
"""

from __future__ import annotations

import importlib.util
import json
import runpy
import sys
import time
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

KEYPOINT_TIMESTEPS = 333  # the official code's keypoint matching loss counts up to this one
TENSORS = ("model_input", "noise", "timesteps", "concept_latents", "concept_images", "boxes", "add_time_ids")
RESULTS = ("image_prompt_embeds", "prompt_embeds", "unet_add_text_embeds", "model_pred", "loss")
OF_BATCH = ("prompts", "entities", "predicates", "object_segmaps", "keypoints")


def restore_lora_module() -> None:
    """diffusers took ``loaders.lora`` apart; the class that the official program imports from it is still there."""
    name = "diffusers.loaders.lora"
    import diffusers.loaders

    if importlib.util.find_spec(name) is None:
        module: Any = types.ModuleType(name)
        module.LoraLoaderMixin = diffusers.loaders.LoraLoaderMixin
        sys.modules[name] = module


def now() -> dict[str, float]:
    """Seconds on the clock, and those that the CPU has worked for this process, in all its threads."""
    return {"clock": time.perf_counter(), "cpu": time.process_time()}


def append(path: Path, line: Mapping[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


def timed(call: Callable[..., Any], path: Path) -> Callable[..., Any]:
    """The function, which appends what each of its calls took to a file."""

    def timed_call(*arguments: Any, **options: Any) -> Any:
        begun = now()
        made = call(*arguments, **options)
        append(path, {name: value - begun[name] for name, value in now().items()})
        return made

    return timed_call


def record_steps(folder: Path) -> None:
    """Record when each step of a training ended."""
    from accelerate import Accelerator

    log = Accelerator.log

    def recorded_log(self: Any, values: dict[str, Any], step: int | None = None, **options: Any) -> None:
        append(folder / "steps.jsonl", {"step": step, **now()})
        log(self, values, step=step, **options)

    Accelerator.log = recorded_log  # type: ignore[method-assign]


def record_training(folder: Path) -> None:
    """Record what ``train.py`` computes in two of its steps, where it calls ``Accelerator.backward``."""
    from accelerate import Accelerator

    backward = Accelerator.backward

    def recorded_backward(self: Any, loss: torch.Tensor, **options: Any) -> None:
        script = sys._getframe(1)
        late = int(script.f_locals["timesteps"].max()) > KEYPOINT_TIMESTEPS
        first, keypoints = folder / "first.pt", folder / "keypoints.pt"
        if not first.is_file():
            record_step(first, script)
        elif not late and not keypoints.is_file():
            record_step(keypoints, script)
        backward(self, loss, **options)

    Accelerator.backward = recorded_backward  # type: ignore[method-assign]


def record_step(path: Path, script: types.FrameType) -> None:
    """Write what ``train.py`` has at hand before its backward pass, and the LoRA."""
    of_script, of_module = script.f_locals, script.f_globals
    tensors = {name: of_script[name].detach().cpu() for name in (*TENSORS, *RESULTS)}
    torch.save(tensors | {name: of_script["batch"][name] for name in OF_BATCH}, path)
    learned = of_module["get_peft_model_state_dict"](of_script["unet"])
    layers = of_module["convert_state_dict_to_diffusers"](learned)
    weights = path.with_suffix(".safetensors").name
    of_module["Pipeline"].save_lora_weights(str(path.parent), unet_lora_layers=layers, weight_name=weights)


def record_sampling(folder: Path) -> None:
    """Record what a call of the official pipeline computes and takes."""
    import numpy as np
    from src.pipeline import Pipeline  # type: ignore[import-not-found]

    call, prepare_latents = timed(Pipeline.__call__, folder / "calls.jsonl"), Pipeline.prepare_latents
    found: dict[str, Any] = {}

    def recorded_prepare_latents(self: Any, *arguments: Any, **options: Any) -> torch.Tensor:
        latents: torch.Tensor = prepare_latents(self, *arguments, **options)
        found["noise"] = latents / self.scheduler.init_noise_sigma
        return latents

    def on_step(pipeline: Any, step: int, timestep: Any, values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        found.setdefault("after_first_step", values["latents"])
        found["last"] = values["latents"]
        return {}

    def recorded_call(self: Any, *arguments: Any, **options: Any) -> Any:
        found.update(clip_pixels=options["concept_images"], local_pixels=options["concept_images_896"])
        made = call(self, *arguments, callback_on_step_end=on_step, **options)
        found["pictures"] = torch.from_numpy(np.stack([np.asarray(picture) for picture in made.images]))
        torch.save({name: value.cpu() for name, value in found.items()}, folder / "sampling.pt")
        return made

    Pipeline.__call__, Pipeline.prepare_latents = recorded_call, recorded_prepare_latents


def main() -> None:
    """Run the program that the command line names, as the main one of this process."""
    folder, program = Path(sys.argv[1]), sys.argv[2]
    sys.argv = sys.argv[2:]
    record_steps(folder)
    if program == "rbctl":
        sys.path.pop(0)
        from rbctl.cli import main
        from rbctl.pipeline import RelationPipeline

        for name in ("denoise", "decode"):
            setattr(RelationPipeline, name, timed(getattr(RelationPipeline, name), folder / "calls.jsonl"))
        main(prog_name="rbctl")
    else:
        sys.path[0] = str(Path.cwd())
        restore_lora_module()
        (record_training if program == "train.py" else record_sampling)(folder)
        runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    main()
