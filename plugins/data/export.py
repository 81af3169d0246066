"""Prompts in the input formats of other methods, which run in their authors' own code: one table, ``METHODS``.

``rbctl eval`` scores what they make by the ``metadata.csv`` that is written beside: it names each picture where the
method's own code puts it.
"""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from PIL import Image

from rbctl.errors import InputError
from rbctl.files import read_image, sha256, write_bytes, write_png, write_text
from rbctl.prompts import Prompt
from rbctl.relations import Box, load_relation
from rbctl.roles import place

_COLOURS = ("255,192,0", "255,0,0", "0,112,192", "0,176,80", "112,48,160", "0,176,240")  # of regions in a layout
_WHITE = "255,255,255"


@dataclass(frozen=True)
class Subject:
    """An individual of a case.

    Attributes:
        image: its picture, by its path in the exported folder.
        picture: the same, RGBA; where it is opaque, the individual is.
        box: where it goes, relative xyxy.
        number: in its case, from 0.
        key: the same for the same picture in any case.
    """

    name: str
    image: str
    picture: Image.Image
    box: Box
    number: int
    key: str


@dataclass(frozen=True)
class Case:
    """A prompt to make a picture of; ``name`` is "000" and so on, ``side`` in pixels."""

    name: str
    text: str
    subjects: tuple[Subject, ...]
    seed: int
    side: int

    def layout(self, colours: Mapping[str, Subject]) -> Image.Image:
        """A black picture, with boxes of subjects in colours, "255,0,0"."""
        image = Image.new("RGB", (self.side, self.side))
        for colour, subject in colours.items():
            left, top, right, bottom = (round(edge * self.side) for edge in subject.box)
            image.paste(f"rgb({colour})", (left, top, right, bottom))
        return image

    @property
    def coloured(self) -> dict[str, Subject]:
        """The subjects by the colours of their boxes in a layout."""
        return dict(zip(_COLOURS, self.subjects, strict=False))

    def without(self, subject: Subject) -> str:
        """The text after the subject's name: "a cat is riding a dog." -> "is riding a dog."."""
        return self.text.partition(subject.name)[2].lstrip(" ,.") or self.text

    def position(self, subject: Subject) -> int:
        """The token of the name's last word, if every word and mark is one token; the text's start is token 0."""
        before, name, _ = self.text.partition(subject.name)
        return len(re.findall(r"\w+|[^\w\s]+", before + name))


# What a shell reads as it is, and options whose values it must not read.
Command: TypeAlias = tuple[str, Mapping[str, object]]


@dataclass(frozen=True)
class Method:
    """How a method takes its inputs.

    Attributes:
        source: address of the authors' code.
        most: individuals in a picture.
        side: of its pictures in pixels.
        output: where its code writes a case's picture, or where you put it.
        pictures: file -> picture, for each individual of a case.
        case_pictures: file -> picture, for each case.
        settings: content of a case's JSON file.
        commands: of a case, in commands.sh, where each stands once; $REPO is the folder of the code.
        masks: it is told by masks where an individual is in its image prompt.
    """

    source: str
    most: int
    side: int
    output: Callable[[Case], str]
    pictures: Mapping[str, Callable[[Case, Subject], Image.Image]] = field(default_factory=dict)
    case_pictures: Mapping[str, Callable[[Case], Image.Image]] = field(default_factory=dict)
    settings: Callable[[Case], Any] | None = None
    commands: Callable[[Case], list[Command]] | None = None
    masks: bool = False


def _in_outputs(case: Case) -> str:
    return f"outputs/{case.name}.png"


def _elite(case: Case) -> list[Command]:
    before, _, after = case.text.partition(case.subjects[0].name)
    models = " ".join(f'--{part}_mapper_path="$REPO/checkpoints/{part}_mapper.pt"' for part in ("global", "local"))
    options = {
        "test_data_dir": case.name,
        "output_dir": f"outputs/{case.name}",
        "template": f"{before}S {after.strip()}",  # its code looks for S between spaces
        "suffix": "object",
        "llambda": "0.8",
        "seed": case.seed,
    }
    return [(f'python "$REPO/inference_local.py" --pretrained_model_name_or_path="$MODEL_NAME" {models}', options)]


def _cones2(case: Case) -> list[Command]:
    numbers = (
        "--resolution=768 --train_batch_size=1 --gradient_accumulation_steps=1 --learning_rate=5e-6 "
        "--lr_scheduler=constant --lr_warmup_steps=0 --max_train_steps=3000 --loss_rate_first=1e-2 "
        "--loss_rate_second=1e-3"
    )
    train = f'accelerate launch "$REPO/train_cones2.py" --pretrained_model_name_or_path="$MODEL_NAME" {numbers}'
    sample = 'python "$REPO/inference.py" --pretrained_model_name_or_path="$MODEL_NAME"'
    residuals: list[Command] = [
        (
            train,
            {
                "instance_data_dir": f"data/{subject.key}",
                "instance_prompt": subject.name,
                "token_num": len(subject.name.split()),
                "output_dir": f"residuals/{subject.key}",
            },
        )
        for subject in case.subjects
    ]
    return [*residuals, (sample, {"inference_config": f"{case.name}.json", "output_dir": f"outputs/{case.name}"})]


def _lambda_eclipse(case: Case) -> list[Command]:
    folder, options = f"outputs/{case.name}", dict[str, object](prompt=case.text)
    for number, subject in enumerate(case.subjects, 1):
        options |= {f"subject{number}_path": subject.image, f"subject{number}_name": subject.name}
    return [(f"mkdir -p {folder}", {}), ('python "$REPO/test.py"', options | {"output_dir": folder})]


METHODS: dict[str, Method] = {
    "anydoor": Method(
        "https://github.com/ali-vilab/AnyDoor",
        most=6,
        side=512,
        output=_in_outputs,
        pictures={
            "FG/{key}.png": lambda case, subject: subject.picture,
            "BG/{case}-{number}_mask.png": lambda case, subject: case.layout({_WHITE: subject}),
        },
        case_pictures={"BG/{case}_GT.png": lambda case: Image.new("RGB", (case.side, case.side), "white")},
        masks=True,
    ),
    "blip_diffusion": Method(
        "https://github.com/salesforce/LAVIS/tree/main/projects/blip-diffusion",
        most=1,
        side=512,
        output=_in_outputs,
        settings=lambda case: {
            "prompt": [case.without(case.subjects[0])],
            "reference_image": case.subjects[0].image,
            "source_subject_category": [case.subjects[0].name],
            "target_subject_category": [case.subjects[0].name],
            "seed": case.seed,
        },
    ),
    "cones2": Method(
        "https://github.com/ali-vilab/Cones-V2",
        most=len(_COLOURS),
        side=768,
        output=lambda case: "/".join(
            [
                f"outputs/{case.name}",
                "_".join(sorted(subject.name for subject in case.subjects)),
                "_".join(case.text.split()),
                "0.png",
            ]
        ),
        pictures={"data/{key}/0.png": lambda case, subject: subject.picture.convert("RGB")},
        case_pictures={"layouts/{case}.png": lambda case: case.layout(case.coloured)},
        settings=lambda case: [
            {
                "prompt": case.text,
                "residual_dict": {s.name: f"residuals/{s.key}/residual.pt" for s in case.subjects},
                "color_context": {colour: [s.name, 2.5] for colour, s in case.coloured.items()},
                "guidance_steps": 50,
                "guidance_weight": 0.08,
                "weight_negative": -1e8,
                "layout": f"layouts/{case.name}.png",
                "subject_list": [[s.name, case.position(s)] for s in case.subjects],
            }
        ],
        commands=_cones2,
    ),
    "elite": Method(
        "https://github.com/csyxwei/ELITE",
        most=1,
        side=512,
        output=lambda case: f"outputs/{case.name}/object_l0p8/00000_{case.seed:05d}.jpg",
        pictures={
            "{case}/0.png": lambda case, subject: subject.picture.convert("RGB"),
            "{case}/0_bg.png": lambda case, subject: subject.picture.getchannel("A").convert("RGB"),
        },
        commands=_elite,
        masks=True,
    ),
    "lambda_eclipse": Method(
        "https://github.com/eclipse-t2i/lambda-eclipse-inference",
        most=2,
        side=512,
        output=lambda case: f"outputs/{case.name}/{case.text.replace(' ', '_')}.png",
        commands=_lambda_eclipse,
    ),
    "ssr_encoder": Method(
        "https://github.com/Xiaojiu-z/SSR_Encoder",
        most=6,
        side=512,
        output=_in_outputs,
        settings=lambda case: {
            "pil_image_list": [subject.image for subject in case.subjects],
            "subject_list": [subject.name for subject in case.subjects],
            "scale": [1.0 for _ in case.subjects],
            "prompt": case.text,
            "seed": case.seed,
        },
    ),
}


def export(prompts: Sequence[Prompt], name: str, folder: Path) -> list[str]:
    """Write the inputs of a method, and ``metadata.csv``, by which its pictures are scored.

    Args:
        name: of ``METHODS``.

    Returns:
        The image prompts that are opaque everywhere, where the method needs to be told where the individual is.

    Raises:
        InputError: a prompt has no individual, or more than the method takes; or a picture cannot be read.
    """
    method, whole = METHODS[name], list[str]()
    rows, commands = list[dict[str, str]](), list[str]()
    for number, prompt in enumerate(prompts):
        case = _case(number, prompt, name, method, folder)
        whole += [
            str(entry.image)
            for entry, subject in zip(prompt.objects, case.subjects, strict=True)
            if method.masks and subject.picture.getchannel("A").getextrema() == (255, 255)
        ]
        for subject in case.subjects:
            for pattern, draw in method.pictures.items():
                write_png(
                    folder / pattern.format(case=case.name, number=subject.number, key=subject.key), draw(case, subject)
                )
        for pattern, compose in method.case_pictures.items():
            write_png(folder / pattern.format(case=case.name), compose(case))
        if method.settings:
            content = json.dumps(method.settings(case), indent=2, ensure_ascii=False)
            write_text(folder / f"{case.name}.json", content + "\n")
        if method.commands:
            for program, options in method.commands(case):
                quoted = [f"--{option}={shlex.quote(str(value))}" for option, value in options.items()]
                commands.append(" ".join([program, *quoted]))
        rows.append(
            {
                "file_name": method.output(case),
                "text": case.text,
                "image_prompts": ";".join(subject.image for subject in case.subjects),
                "names": ";".join(subject.name for subject in case.subjects),
                "seed": str(case.seed),
            }
        )
    if commands:
        header = f"# Run it in this folder. REPO is a copy of {method.source}, MODEL_NAME the base model that it needs."
        write_text(folder / "commands.sh", "\n".join([header, "set -eu", *dict.fromkeys(commands)]) + "\n")
    table = io.StringIO()
    writer = csv.DictWriter(table, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(folder / "metadata.csv", table.getvalue())
    return whole


def _case(number: int, prompt: Prompt, name: str, method: Method, folder: Path) -> Case:
    """A prompt as a case; its image prompts are copied as they are, since they are known by their bytes."""
    count = len(prompt.objects)
    if not 0 < count <= method.most:
        takes = "one individual" if method.most == 1 else f"one to {method.most} individuals"
        raise InputError(f"{prompt.source}: has {count} individuals, {name} takes {takes}; leave this prompt out")
    names = [entry.name for entry in prompt.objects]
    for written in names:
        if written not in prompt.text:
            raise InputError(f"{prompt.source}: {name} looks for {written!r} in the text; write it there")
    if len(set(names)) < count:
        raise InputError(f"{prompt.source}: {name} knows individuals by their names; give each its own")
    relation = load_relation(prompt.relation) if prompt.relation else None
    boxes = place(prompt.text, names, relation, None).boxes
    subjects = []
    for k, entry in enumerate(prompt.objects):
        key = f"{re.sub(r'[^a-z0-9]+', '-', entry.name.lower())[:40]}-{sha256(entry.image)[:8]}"
        copy = f"image_prompts/{key}{entry.image.suffix}"
        write_bytes(folder / copy, entry.image.read_bytes())
        picture = read_image(entry.image, "RGBA")
        subjects.append(Subject(entry.name, copy, picture, entry.box or boxes[k], k, key))
    seed = prompt.seed[0] if prompt.seed else 0
    return Case(f"{number:03d}", prompt.text, tuple(subjects), seed, method.side)
