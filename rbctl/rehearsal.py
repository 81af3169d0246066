"""The whole road with random weights of full size: what ``rbctl doctor --rehearse`` does.

The stages run as their own commands on a bundle of the real layout, so names, shapes, types and memory are those of
real work. The pictures are small, and noise: nothing here tells of quality.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
import yaml

from rbctl import lora, memory
from rbctl.bundle.catalogue import MANIFEST
from rbctl.bundle.random_weights import Architecture, count_weights, write_random
from rbctl.device import DTYPES, pick_device
from rbctl.errors import InputError
from rbctl.files import read_image, read_jsonl, staging, write_text
from rbctl.measurements import VARIABLE, Measurement, measured, read_measurements
from rbctl.runs import claim, start
from rbctl.triplets import load as load_triplets

RELATION, STEPS, PRECISION = "hug", 2, "bf16"
HEADER = f"{'command':<10}  {'part':<22}  {'seconds':>8}  {'memory GB':>9}  {'GPU GB':>7}"

Show = Callable[[str, Measurement], object]


def rehearse(
    sizes: Architecture,
    resolution: int,
    folder: Path,
    device: str = "auto",
    keep: bool = False,
    show: Show = lambda command, measurement: None,
) -> dict[str, Any]:
    """Write a bundle of random weights, tune a LoRA on one triplet in two steps, and sample a picture with it in two.

    Args:
        sizes: of the networks.
        resolution: side in pixels of the picture trained on, and of the one sampled.
        folder: what is made lies there meanwhile.
        device: "auto", "cpu" or "cuda".
        keep: leave the bundle in ``folder``; one that lies there is used.
        show: called with each part of a command, once it has ended.

    Returns:
        the parts, and what is known of the LoRA and the picture, as plain data.

    Raises:
        InputError: disk or memory are too small, or a command failed: which, and what it was at.
    """
    place, parts = pick_device(device), list[dict[str, Any]]()

    def add(command: str, measurements: Sequence[Measurement]) -> None:
        for measurement in measurements:
            parts.append({"command": command, **dataclasses.asdict(measurement)})
            show(command, measurement)

    with claim(folder), staging(folder) as work:
        bundle = (folder if keep else work) / "bundle"
        if not (bundle / MANIFEST).is_file():  # the last file that is written
            _check_room(sizes, folder, place)
            file = work / "written.jsonl"
            # In a process of its own: what Python's allocator keeps of it would be lacking to the commands.
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as writer:
                writer.submit(_write, bundle, sizes, place, file).result()
            add("rehearse", read_measurements(file))
        common = ["--bundle", str(bundle), "--relation", RELATION, "--precision", PRECISION, "--device", place.type]
        common += ["--steps", str(STEPS)]
        tuned, sampled, prompts = work / "finetune", work / "sample", work / "prompts.yaml"
        options = ["--triplets", "1", "--prior", "none", "--batch-size", "1", "--resolution", str(resolution)]
        add("finetune", _run(work, "finetune", *common, *options, "--output", str(tuned)))
        path = tuned / f"{RELATION}.safetensors"
        _write_prompt(prompts, tuned / "triplets")
        options = ["--width", str(resolution), "--height", str(resolution), "--lora", str(path)]
        add("sample", _run(work, "sample", str(prompts), *common, *options, "--output", str(sampled)))
        learned = lora.read(path).tensors
        (record,) = read_jsonl(sampled / "metadata.jsonl")
        return {
            "device": torch.cuda.get_device_name(place) if place.type == "cuda" else "cpu",
            "precision": PRECISION,
            "resolution": resolution,
            "parts": parts,
            "losses": [line["loss"] for line in read_jsonl(tuned / "metrics.jsonl")],
            "lora_tensors": len(learned),
            "lora_parameters": sum(tensor.numel() for tensor in learned.values()),
            "picture": list(read_image(sampled / record["file_name"]).size),
        }


def _write(bundle: Path, sizes: Architecture, place: torch.device, file: Path) -> None:
    threading.Thread(target=_end_with_the_rehearsal, daemon=True).start()
    with measured("write random weights", file):
        write_random(bundle, sizes, torch.Generator(place).manual_seed(0), DTYPES[PRECISION])


def _end_with_the_rehearsal() -> None:
    if rehearsal := multiprocessing.parent_process():
        rehearsal.join()
        os._exit(1)


def _check_room(sizes: Architecture, folder: Path, place: torch.device) -> None:
    needed, free = sum(count_weights(sizes).values()) * DTYPES[PRECISION].itemsize, shutil.disk_usage(folder).free
    if free < needed:
        need = f"the random weights need {needed / 1e9:.1f} GB of disk, {free / 1e9:.1f} are free"
        raise InputError(f"{folder}: {need}; choose another --folder")
    if place.type == "cuda":  # a CPU reads the weights in place from their files
        memory.require(needed, place, "--rehearse", "take a larger GPU, or --device cpu")


def _write_prompt(path: Path, folder: Path) -> None:
    """A prompts file that asks for the first of the triplets in ``folder``, from its own image prompts."""
    triplet = load_triplets(folder)[0]
    objects = [{"name": individual.name, "image": str(individual.image.resolve())} for individual in triplet.objects]
    write_text(path, yaml.safe_dump({"prompts": [{"text": triplet.prompt, "objects": objects}]}, sort_keys=False))


def _run(work: Path, stage: str, *arguments: str) -> list[Measurement]:
    """Run a command; the parts that it measured.

    Raises:
        InputError: it failed.
    """
    file = work / f"{stage}.jsonl"
    process = start([stage, *arguments], stdout=subprocess.DEVNULL, env={**os.environ, VARIABLE: str(file.resolve())})
    try:
        process.wait()
    finally:
        process.wait()  # after Ctrl-C, which it heard too, it saves what it has
    measurements = read_measurements(file)
    if process.returncode:
        at = f" at {measurements[-1].part!r}" if measurements and measurements[-1].seconds is None else ""
        killed = "was killed, most likely because the memory was used up"
        how = killed if process.returncode < 0 else f"ended with code {process.returncode}"
        raise InputError(f"--rehearse: rbctl {stage} {how}{at}; its own words are above")
    return measurements


def line(command: str, measurement: Measurement) -> str:
    """A row of the table under ``HEADER``."""
    seconds = f"{measurement.seconds or 0:.1f}"
    sizes = [f"{b / 1e9:.2f}" if b is not None else "-" for b in (measurement.memory, measurement.gpu_memory)]
    return f"{command:<10}  {measurement.part:<22}  {seconds:>8}  {sizes[0]:>9}  {sizes[1]:>7}"


def summary(content: Mapping[str, Any]) -> str:
    """What came of it, in words."""
    width, height = content["picture"]
    losses = ", ".join(f"{loss:.4f}" for loss in content["losses"])
    return (
        f"{content['device']}, {content['precision']}: losses {losses}; a LoRA of {content['lora_tensors']} tensors, "
        f"{content['lora_parameters']:,} parameters; a picture of {width} x {height} pixels"
    )
