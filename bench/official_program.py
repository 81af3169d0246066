# ruff: noqa: E402  (the checkout comes onto the path before its modules are imported)
"""The official program beside ours: the same tiny weights, pictures, steps, precision (float32) and device, in one run.

    python -m pip install omegaconf opencv-python-headless    # the official program imports them, ours does not
    python bench/official_program.py CHECKOUT                 # of github.com/Shi-qingyu/DreamRelation
    python bench/official_program.py CHECKOUT --resolution 512 --pictures 8

It copies the checkout's scripts into a temporary folder, with the changes that it prints, and lays tiny random weights
and a drawn set out as the scripts expect. Then both programs finetune and sample there by their own commands. What
they compute is compared too: a speed ratio of programs that compute different things is worth nothing.

The table is printed, and written with the versions to FOLDER/official_program.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import importlib.util
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # bench is no part of the distribution
    sys.path.insert(0, str(ROOT))

import numpy as np
import torch
import yaml
from safetensors.torch import load_file

from rbctl import RelationPipeline, lora
from rbctl.bundle.bundle import Bundle
from rbctl.bundle.load import load
from rbctl.bundle.random_weights import TINY, Architecture, write_random
from rbctl.bundle.towers import clip_shapes
from rbctl.device import pick_device
from rbctl.errors import InputError
from rbctl.files import read_image, read_json, read_jsonl, write_json
from rbctl.image_prompt import clip_pixels
from rbctl.menagerie.triplets import draw_triplets
from rbctl.options import configured
from rbctl.phrases import token_span
from rbctl.plugins.finetune import command
from rbctl.plugins.finetune.config import FinetuneConfig
from rbctl.plugins.finetune.objective import Objective
from rbctl.plugins.finetune.samples import MicroBatch
from rbctl.relations import load_relation
from rbctl.runs import versions
from rbctl.triplets import Triplet
from rbctl.triplets import load as load_triplets

CLIP, LOCAL = Path("laion/CLIP-ViT-bigG-14-laion2B-39B-b160k"), Path("checkpoints/local_image_encoder/epoch_6.pt")
ADAPTER = Path("checkpoints/MS-Diffusion/ms_adapter.bin")
LOCAL_CONFIG = "src/modules/open_clip/model_configs/ViT-bigG-14.json"
PACKAGES = {"omegaconf": "omegaconf", "cv2": "opencv-python-headless"}  # that the official program imports beyond ours
RELATION, TRIPLETS, ACCUMULATED, SEED, PICTURE_SIDE = "hug", 8, 8, 0, 256
NEGATIVE = "monochrome, lowres, bad anatomy, worst quality, low quality"  # inference.py's own

# SDXL's layout at tiny sizes. The pictures of CLIP keep the sizes that the official program gives them, 224 and 896 px:
# a grid of 4 x 4 patches, and one of 16 x 16 for the local tokens.
SIZES = dataclasses.replace(
    TINY,
    clip_vision={**TINY.clip_vision, "image_size": 224, "patch_size": 56},
    clipself={**TINY.clipself, "vision_cfg": {**TINY.clipself["vision_cfg"], "image_size": 224, "patch_size": 56}},
    adapter={**TINY.adapter, "clip_image_size": 224, "local_image_size": 896},
)


@dataclass(frozen=True)
class Change:
    """Text of one file of the official program that is replaced wherever it stands there, and why."""

    file: str
    old: str
    new: str
    why: str


@dataclass(frozen=True)
class Seconds:
    """What something took: on the clock, and of CPU, which other work on the machine changes less."""

    clock: float
    cpu: float


@dataclass(frozen=True)
class Row:
    """A line of the table; a ratio is official / ours."""

    what: str
    official: Seconds
    ours: Seconds
    ratio: float
    cpu_ratio: float


@dataclass(frozen=True)
class Difference:
    """How far ours is from the official program in something that both compute from the same inputs.

    Attributes:
        official, ours: where it is a single number.
        largest: of the absolute differences. scale: largest absolute value of the official program's.
    """

    what: str
    largest: float
    scale: float
    official: float | None = None
    ours: float | None = None


def changes(sizes: Architecture) -> list[Change]:
    """What is replaced in the official scripts: sizes of networks, the side of pictures, the precision."""
    resampler = sizes.adapter["resampler"]
    encoder = "src/modules/image_encoder.py"
    fixed = {"dim": 1280, "depth": 4, "dim_head": 64, "heads": 20}
    same = "float32 as on our side; a CPU has no fast float16"
    return [
        *(
            Change(script, f" {name}={value},", f" {name}={resampler[name]},", "the resampler is tiny")
            for script in ("train.py", "inference.py")
            for name, value in fixed.items()
        ),
        Change(encoder, "=2048", f"={resampler['output_dim']}", "the UNet's text width is tiny"),
        Change(encoder, "1664", f"{resampler['embedding_dim']}", "CLIP's width is tiny"),
        Change(
            "train.py", "args.instance_data_dir)", "args.instance_data_dir, size=args.resolution)", "side of pictures"
        ),
        Change("src/dataset/data_utils.py", "1024 -", "self.size -", "side of pictures"),
        Change("train.py", "weight_dtype=torch.float16", "weight_dtype=torch.float32", same),
        Change("src/utils.py", "weight_dtype=torch.float16", "weight_dtype=torch.float32", same),
        Change("inference.py", "torch.float16", "torch.float32", same),
    ]


def check_checkout(folder: Path) -> None:
    """Raises InputError: the folder is no checkout of the official program, or a package that it imports is missing."""
    if lacking := [name for name in ("train.py", "inference.py", "src/pipeline.py") if not (folder / name).is_file()]:
        what = f"no checkout of the official program, {lacking[0]} is missing"
        raise InputError(f"{folder}: {what}; git clone https://github.com/Shi-qingyu/DreamRelation")
    if missing := [package for module, package in PACKAGES.items() if importlib.util.find_spec(module) is None]:
        raise InputError(f"{folder}: the official program needs {' '.join(missing)}; python -m pip install them")


def write_bundle(folder: Path, resolution: int) -> None:
    """Write the tiny SDXL for pictures of ``resolution`` pixels."""
    side = resolution // 2 ** (len(SIZES.vae["block_out_channels"]) - 1)
    sizes = dataclasses.replace(SIZES, unet={**SIZES.unet, "sample_size": side})
    write_random(folder, sizes, torch.Generator().manual_seed(SEED), torch.float32)
    scheduler = folder / "scheduler" / "scheduler_config.json"  # SDXL's own says it too; diffusers' default clips
    write_json(scheduler, {**read_json(scheduler), "clip_sample": False})


def write_set(folder: Path, drawn: Path) -> list[Triplet]:
    """Draw triplets and write them in the official layout; returns them as that is read again."""
    draw_triplets(load_relation(RELATION), TRIPLETS, SEED, drawn, size=PICTURE_SIDE)
    prompts = {}
    for number, triplet in enumerate(load_triplets(drawn)):
        videos, masks = folder / "videos" / str(number), folder / "masks" / str(number)
        videos.mkdir(parents=True)
        masks.mkdir(parents=True)
        read_image(triplet.target).save(videos / "motion.png")
        points = np.stack([individual.target_keypoints[:, :2] for individual in triplet.objects])
        torch.save(torch.from_numpy(points.copy()), videos / "motion_keyposes.pth")
        for k, (individual, word) in enumerate(zip(triplet.objects, ("one", "two"), strict=True)):
            assert individual.mask is not None
            read_image(individual.image).save(videos / f"concept{k}.png")
            points = individual.image_keypoints[None, :, :2]
            torch.save(torch.from_numpy(points.copy()), videos / f"concept_keyposes_{word}.pth")
            read_image(individual.mask).convert("L").save(masks / f"motion{k}.png")
        names = [individual.name for individual in triplet.objects]
        prompts[str(number)] = {"prompt": triplet.prompt, "entities": names, "predicate": [triplet.predicate]}
    write_json(folder / "prompts.json", prompts)
    return load_triplets(folder)


def write_copy(checkout: Path, folder: Path, bundle: Path) -> None:
    """Copy the official scripts, changed, and lay the bundle's weights out where they look for them.

    Raises:
        InputError: the checkout lacks a text that is to be changed.
    """
    ours = changes(SIZES)
    for path in [checkout / "train.py", checkout / "inference.py", *sorted((checkout / "src").rglob("*"))]:
        if path.is_file() and "__pycache__" not in path.parts:
            copy = folder / path.relative_to(checkout)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    for change in ours:
        copy = folder / change.file
        text = copy.read_text(encoding="utf-8") if copy.is_file() else ""
        if change.old not in text:
            raise InputError(
                f"{checkout / change.file}: {change.old!r} is not in it; take the commit of docs/performance.md"
            )
        copy.write_text(text.replace(change.old, change.new), encoding="utf-8")
    (folder / LOCAL_CONFIG).write_text(json.dumps(dict(SIZES.clipself)))
    shutil.copytree(bundle / "clip_vision", folder / CLIP)
    parts: dict[str, Any] = {"image_proj": {}, "ms_adapter": {}}
    for name, tensor in load_file(bundle / "ms_adapter.safetensors").items():
        part, _, rest = name.partition(".")
        if rest:
            parts[part][rest] = tensor
        else:
            parts[name] = tensor
    (folder / ADAPTER).parent.mkdir(parents=True)
    torch.save(parts, folder / ADAPTER)


def write_local_encoder(folder: Path, bundle: Path) -> None:
    """The local encoder as ``inference.py`` reads it; ``train.py`` fails where it finds one."""
    shapes = clip_shapes(dict(SIZES.clipself), "clipself")
    text = {name: torch.zeros(shape) for name, shape in shapes.items()}  # never run
    (folder / LOCAL).parent.mkdir(parents=True)
    torch.save({"state_dict": text | load_file(bundle / "clipself/model.safetensors")}, folder / LOCAL)


# --- both programs


@dataclass(frozen=True)
class Run:
    """A command that has ended: where bench/recorded.py wrote, and what the whole of it took."""

    record: Path
    whole: Seconds

    @property
    def step(self) -> Seconds:
        """Median of the optimizer steps of a training, the first left out."""
        ends: dict[int, dict[str, float]] = {}
        for line in read_jsonl(self.record / "steps.jsonl"):
            if line["step"]:  # an official micro-step before the first has 0
                ends.setdefault(line["step"], line)  # of an official step, the micro-step that ended it
        pairs = list(itertools.pairwise(ends.values()))
        return Seconds(*(statistics.median(b[name] - a[name] for a, b in pairs) for name in ("clock", "cpu")))

    @property
    def calls(self) -> Seconds:
        """All calls of a pipeline."""
        lines = read_jsonl(self.record / "calls.jsonl")
        return Seconds(*(sum(line[name] for line in lines) for name in ("clock", "cpu")))


@dataclass(frozen=True)
class Place:
    """Where everything lies: ``copy`` of the official program, ``bundle``, ``data``, and records of what was run."""

    work: Path
    device: torch.device

    @property
    def copy(self) -> Path:
        return self.work / "official"

    @property
    def bundle(self) -> Path:
        return self.work / "bundle"

    @property
    def data(self) -> Path:
        return self.work / "data"

    def run(self, name: str, folder: Path, program: str, *arguments: object) -> Run:
        """Run an official script, or a stage of rbctl, in a folder to its end. Its output goes to NAME.log.

        Raises:
            InputError: it failed; its last words are printed.
        """
        print(f"{name} ...", file=sys.stderr, flush=True)
        record, log = self.work / f"{name} record", self.work / f"{name}.log"
        record.mkdir()
        hidden = {} if self.device.type == "cuda" else {"CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, ROOT / "bench" / "recorded.py", record, program, *arguments]
        begun, begun_cpu = time.perf_counter(), processes_cpu()
        with log.open("w") as output:
            done = subprocess.run(
                [str(word) for word in command],
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env={**os.environ, **hidden, "HF_HUB_OFFLINE": "1"},
            )
        whole = Seconds(time.perf_counter() - begun, processes_cpu() - begun_cpu)
        if done.returncode:
            print(*log.read_text(errors="replace").splitlines()[-20:], sep="\n", file=sys.stderr)
            raise InputError(f"{name}: ended with code {done.returncode}; its last words are above")
        return Run(record, whole)

    def official(self, name: str, script: str, *arguments: object) -> Run:
        return self.run(f"official {name}", self.copy, script, *arguments)

    def ours(self, name: str, stage: str, *arguments: object) -> Run:
        common = ["--bundle", self.bundle, "--device", self.device.type, "--precision", "fp32"]
        output = self.work / f"our {name} output"
        return self.run(f"our {name}", self.work, "rbctl", stage, *common, "--output", output, *arguments)


def processes_cpu() -> float:
    """Seconds that the CPU has worked for all processes that this one started and waited for."""
    times = os.times()
    return times.children_user + times.children_system


def compared(what: str, official: Seconds, ours: Seconds) -> Row:
    made = Row(what, official, ours, official.clock / ours.clock, official.cpu / ours.cpu)
    print(made, file=sys.stderr, flush=True)
    return made


def finetune(place: Place, steps: int, resolution: int) -> tuple[list[Row], Path, Path]:
    """Both programs' finetuning; the rows, the record of the official one, and the LoRA that it learned."""
    rows = []
    for samples in (ACCUMULATED, 1):
        name = f"finetune, {steps} steps of {samples}"
        weights = place.copy / "lora-weights" / str(samples)
        official = place.official(
            name,
            "train.py",
            f"--pretrained_model_name_or_path={place.bundle}",
            f"--instance_data_dir={place.data}",
            f"--output_dir={weights}",
            "--mixed_precision=no",
            f"--resolution={resolution}",
            "--train_batch_size=1",
            f"--gradient_accumulation_steps={samples}",
            "--learning_rate=1e-4",
            "--lr_scheduler=constant",
            "--lr_warmup_steps=0",
            f"--max_train_steps={steps}",
            f"--seed={SEED}",
        )
        ours = place.ours(
            name,
            "finetune",
            *("--recipe", "official", "--relation", RELATION, "--data", place.data, "--resolution", resolution),
            *("--steps", steps, "--batch-size", samples),
        )
        rows.append(compared(f"{name}, a step", official.step, ours.step))
        rows.append(compared(f"{name}, whole command", official.whole, ours.whole))
    return rows, official.record, weights / "pytorch_lora_weights.safetensors"


def sample(place: Place, triplet: Triplet, weights: Path, steps: int, pictures: int) -> tuple[list[Row], Path]:
    """Both programs' sampling of one prompt; the rows, and the record of the official one."""
    write_local_encoder(place.copy, place.bundle)
    config = {
        "lora_weights": str(weights),
        "prompt": triplet.prompt,
        "images_path": [str(individual.image) for individual in triplet.objects],
        "boxes": [[list(individual.box) for individual in triplet.objects]],
        "phrases": [[individual.name for individual in triplet.objects]],
    }
    file = place.work / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    name = f"sample, {pictures} pictures of {steps} steps"
    official = place.official(
        name,
        "inference.py",
        *("--config", file, "--pretrained_model_name_or_path", place.bundle, "--device", place.device.type),
        *("--num_samples", pictures, "--num_inference_steps", steps, "--seed", SEED),
    )
    kinds = {"same work": ["--recipe", "official", "--batch-size", pictures], "our default": []}
    rows = []
    for kind, options in kinds.items():
        common = ["--config", file, "--images", pictures, "--seed", SEED, "--steps", steps]
        ours = place.ours(f"{name}, {kind}", "sample", *common, *options)
        rows.append(compared(f"{name}, {kind}, encode, denoise, decode", official.calls, ours.calls))
        rows.append(compared(f"{name}, {kind}, whole command", official.whole, ours.whole))
    return rows, official.record


# --- what they compute


def difference(what: str, ours: torch.Tensor, official: torch.Tensor) -> Difference:
    ours, official = ours.detach().cpu().double(), official.detach().cpu().double()
    largest, scale = float((ours - official).abs().max()), float(official.abs().max())
    single = (float(official), float(ours)) if official.numel() == 1 else (None, None)
    return Difference(what, largest, scale, *single)


def compare_training(bundle: Bundle, record: Path) -> list[Difference]:
    """Our networks and our loss on the inputs of the official program's recorded steps."""
    config = configured(command, "official", relation=RELATION)
    return [
        found
        for name, when in (("first", "first step"), ("keypoints", "a later step with KML"))
        if (record / f"{name}.pt").is_file()
        for found in _compare_step(bundle, config, record / name, when)
    ]


def _compare_step(bundle: Bundle, config: FinetuneConfig, record: Path, when: str) -> list[Difference]:
    official = torch.load(record.with_suffix(".pt"), weights_only=True)
    on = {name: value.to(bundle.device) for name, value in official.items() if isinstance(value, torch.Tensor)}
    objects = on["boxes"].shape[1]
    encoder = bundle.image_prompt_encoder
    with torch.no_grad():
        phrases = torch.stack([bundle.encode_phrases(names) for names in official["entities"]])
        tokens = encoder.object_tokens(on["concept_images"].flatten(0, 1), None, "none")
        image_tokens = encoder.adapter_tokens(tokens, on["boxes"], phrases)
        embeds, pooled = bundle.encode_prompts(official["prompts"])
    said = zip(official["prompts"], official["predicates"], strict=True)
    keypoints = on["keypoints"]
    batch = MicroBatch(
        encoded={
            "prompt_embeds": embeds,
            "pooled_prompt_embeds": pooled,
            "time_ids": on["add_time_ids"],
            "image_tokens": image_tokens,
            "boxes": on["boxes"],
            "predicate_span": torch.tensor([token_span(bundle.tokenizer, text, words[0]) for text, words in said]),
            "target_keypoints": keypoints[:, :objects],
            "image_keypoints": keypoints[:, objects:],
            "visible": torch.ones_like(keypoints[:, :objects, :, 0], dtype=torch.bool),
            "object_mask": on["object_segmaps"],
        },
        latents=on["model_input"],
        prompt_latents=on["concept_latents"].movedim(-1, 2),
        noise=on["noise"],
        timesteps=on["timesteps"],
        own=torch.ones(len(embeds), device=bundle.device),
        prior_share=0.0,
    )
    lora.attach(bundle.unet, lora.read(record.with_suffix(".safetensors")), "official")
    lora.use(bundle.unet, "official")
    try:
        objective = Objective.of(bundle, config)
        predicted = objective.predict(bundle.unet, batch).output
        loss, _ = objective.loss(bundle.unet, batch)
    finally:
        bundle.unet.delete_adapters("official")
    return [
        difference(f"{when}: text", embeds, on["prompt_embeds"]),
        difference(f"{when}: image prompts", image_tokens, on["image_prompt_embeds"]),
        difference(f"{when}: prediction of the UNet", predicted, on["model_pred"]),
        difference(f"{when}: loss", loss, on["loss"]),
    ]


def compare_sampling(place: Place, triplet: Triplet, weights: Path, record: Path, steps: int) -> list[Difference]:
    """Our pipeline from the official initial latents: on pictures as it reads them, then on the official pixels."""
    official = torch.load(record / "sampling.pt", weights_only=True)
    pixels = {224: official["clip_pixels"][0], 896: official["local_pixels"][0]}
    pipeline = RelationPipeline.from_pretrained(
        place.bundle, torch_dtype=torch.float32, device=place.device.type, local_tokens="first_image"
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.load_lora_weights(weights)
    images = {individual.name: individual.image for individual in triplet.objects}
    prompt = triplet.prompt
    for name in images:
        prompt = prompt.replace(name, f"{{{name}}}", 1)

    def sampled(whose: str) -> list[Difference]:
        pipeline.encoder.forget()
        seen: list[torch.Tensor] = []
        made = pipeline(
            prompt,
            images,
            {individual.name: individual.box for individual in triplet.objects},
            negative_prompt=NEGATIVE,
            num_inference_steps=steps,
            guidance_scale=5.0,
            num_images_per_prompt=len(official["noise"]),
            latents=official["noise"],
            quality="best",
            callback_on_step_end=lambda pipeline, step, timestep, values: seen.append(values["latents"]),
        ).images
        pictures = torch.from_numpy(np.stack([np.asarray(picture) for picture in made]))
        return [
            difference(f"sampling, {whose}: latents after the first step", seen[0], official["after_first_step"]),
            difference(f"sampling, {whose}: last latents", seen[-1], official["last"]),
            difference(f"sampling, {whose}: pictures, of 255", pictures, official["pictures"]),
        ]

    shown = clip_pixels([read_image(image) for image in images.values()], 224)
    found = [difference("sampling: pixels for CLIP", shown, pixels[224]), *sampled("our pixels")]
    with mock.patch("rbctl.encoding.clip_pixels", lambda images, size: pixels[size]):
        return found + sampled("their pixels")


# --- the report


def tables(rows: Sequence[Row], differences: Sequence[Difference]) -> str:
    """Both tables in Markdown."""
    lines = ["| | CPU seconds: official | ours | ratio | on the clock: official | ours | ratio |", "|---" * 7 + "|"]
    for row in rows:
        cpu = f"{row.official.cpu:.2f} | {row.ours.cpu:.2f} | {row.cpu_ratio:.2f}"
        clock = f"{row.official.clock:.2f} | {row.ours.clock:.2f} | {row.ratio:.2f}"
        lines.append(f"| {row.what} | {cpu} | {clock} |")
    lines += ["", "| from the same inputs | official | ours | largest difference |", "|---|---|---|---|"]
    for one in differences:
        official = f"{one.official:.6f}" if one.official is not None else f"up to {one.scale:.3g}"
        ours = f"{one.ours:.6f}" if one.ours is not None else ""
        lines.append(f"| {one.what} | {official} | {ours} | {one.largest:.1e} |")
    return "\n".join(lines)


def compare(checkout: Path, work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Everything, in a folder that may go afterwards; what is found, as plain data."""
    place = Place(work, pick_device(options.device))
    write_bundle(place.bundle, options.resolution)
    triplets = write_set(place.data, work / "drawn")
    write_copy(checkout, place.copy, place.bundle)
    rows, record, weights = finetune(place, options.steps, options.resolution)
    more, sampled = sample(place, triplets[0], weights, options.sampling_steps, options.pictures)
    bundle = load(str(place.bundle), place.device, torch.float32)
    differences = compare_training(bundle, record)
    differences += compare_sampling(place, triplets[0], weights, sampled, options.sampling_steps)
    print(tables([*rows, *more], differences))
    return {
        "rows": [dataclasses.asdict(one) for one in (*rows, *more)],
        "differences": [dataclasses.asdict(one) for one in differences],
    }


def main(arguments: Sequence[str] | None = None) -> Path:
    """Measure, print, write; returns the path of what is written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="folder of the official program")
    parser.add_argument("--resolution", type=int, default=256, help="pixels a side of what is trained on and sampled")
    parser.add_argument("--steps", type=int, default=20, help="of finetuning")
    parser.add_argument("--pictures", type=int, default=4, help="that are sampled")
    parser.add_argument("--sampling-steps", type=int, default=30)
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "out", help="folder of the results")
    options = parser.parse_args(arguments)
    checkout = options.checkout.resolve()
    try:
        check_checkout(checkout)
        for change in changes(SIZES):
            print(f"{change.file}: {change.old.strip()!r} -> {change.new.strip()!r}, {change.why}")
        print(f"{LOCAL_CONFIG}: a tiny tower")
        print(
            "diffusers.loaders.lora: diffusers has no such module any more; its class is given from diffusers.loaders"
        )
        with tempfile.TemporaryDirectory() as work:
            found = compare(checkout, Path(work).resolve(), options)
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    facts = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "versions": versions(),
        "threads": torch.get_num_threads(),
        "options": {name: str(value) for name, value in vars(options).items() if name not in ("checkout", "out")},
        "changes": [dataclasses.asdict(change) for change in changes(SIZES)],
    }
    path: Path = options.out / "official_program.json"
    write_json(path, facts | found)
    return path


if __name__ == "__main__":
    main()
