"""Every reader of a file, option or argument of a user or another program: a valid input, and what reads it."""

from __future__ import annotations

import functools
import io
import json
import shutil
import sys
import tempfile
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import click
import mutations
import numpy as np
import torch
import yaml
from click.testing import CliRunner
from mutations import Document
from PIL import Image

from rbctl import any_lora, embeddings, formats, kept, lora, lora_names, metrics
from rbctl.bundle import catalogue, convert, hashes, single_file
from rbctl.bundle.config import summary, text_positions
from rbctl.bundle.random_weights import write_tiny
from rbctl.bundle.recipe import sampling_defaults
from rbctl.cli import main
from rbctl.comfyui.adapter import Individual
from rbctl.errors import InputError
from rbctl.files import (
    read_image,
    read_json,
    read_jsonl,
    read_network_config,
    read_object,
    read_safetensors,
    read_torch,
)
from rbctl.layout import LayoutPrior, side_by_side
from rbctl.menagerie.oracle import load_oracle
from rbctl.menagerie.triplets import check_drawable, draw_triplets
from rbctl.options import configured
from rbctl.paths import shipped_yaml
from rbctl.pictures import read_record
from rbctl.plugins.annotate import corrections, reports, shards
from rbctl.plugins.annotate.cache import Cache
from rbctl.plugins.annotate.steps import misfit
from rbctl.plugins.distill import checkpoint as distill_checkpoint
from rbctl.plugins.distill.pictures import find_pictures
from rbctl.plugins.eval import inputs
from rbctl.plugins.eval.ablate import cost
from rbctl.plugins.eval.ablate import recipe as ablations
from rbctl.plugins.eval.benchmarks import load_benchmark
from rbctl.plugins.eval.case import Case, CaseObject, Picture, Wanted
from rbctl.plugins.eval.encoders import Encoder
from rbctl.plugins.eval.features import Digests, FeatureStore
from rbctl.plugins.eval.gates import recipe as gates
from rbctl.plugins.eval.gates import run as gates_run
from rbctl.plugins.eval.judges import check_file
from rbctl.plugins.eval.judges.answers_file import read_answers
from rbctl.plugins.eval.judges.error import corrected
from rbctl.plugins.eval.judges.judge import Answer, AnswerStore
from rbctl.plugins.eval.judges.questions import questions
from rbctl.plugins.eval.judges.server import Paid
from rbctl.plugins.eval.leaderboard import run as leaderboard
from rbctl.plugins.eval.paper import recipe as papers
from rbctl.plugins.eval.stages import learned
from rbctl.plugins.finetune import checkpoint as finetune_checkpoint
from rbctl.plugins.finetune import command as finetune
from rbctl.plugins.generate.candidates import candidates, read_pairs
from rbctl.plugins.generate.costs import Account
from rbctl.plugins.generate.painting import refused_numbers
from rbctl.plugins.generate.pipeline import pipeline_folder
from rbctl.plugins.lora import conversion, description, faults, stored
from rbctl.plugins.pretrain import command as pretrain
from rbctl.plugins.pretrain import loop as pretrain_loop
from rbctl.pretrained import shards as shards_of_index
from rbctl.prompts import check_pictures, read_official_config, read_prompts
from rbctl.relations import load_relation
from rbctl.request import requested
from rbctl.runs import Run
from rbctl.shards import samples
from rbctl.triplets import load
from rbctl.triplets.check import check
from rbctl.triplets.fix import fix
from rbctl.triplets.raw import read_origin, read_raw


@dataclass(frozen=True)
class Reader:
    """What to break, and who reads it.

    Attributes:
        documents: one of them is broken at a time.
        read: is given the folder that they lie in.
        fields: what a message may name in the place of a document's file.
    """

    documents: tuple[Document, ...]
    read: Callable[[Path], Any]
    fields: tuple[str, ...] = ()


READERS: dict[str, Callable[[Path], Reader]] = {}  # each writes into a folder what its reader needs besides


def reader(make: Callable[[Path], Reader]) -> Callable[[Path], Reader]:
    READERS[make.__name__] = make
    return make


def _picture(path: Path, size: tuple[int, int] = (16, 16)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(path.name)).integers(0, 256, (*size[::-1], 3), np.uint8)
    Image.fromarray(noise).save(path)


def _pictures(folder: Path, *names: str) -> None:
    for name in names:
        _picture(folder / name)


def _copied(folder: Path) -> Path:
    """A copy that the reader may write into."""
    copy = folder / ".copy"
    shutil.rmtree(copy, ignore_errors=True)
    return Path(shutil.copytree(folder, copy, ignore=shutil.ignore_patterns(".copy")))


def _called(*words: object) -> Any:
    """``rbctl WORDS``; what it refuses in one line is an InputError, and what it prints is read as YAML."""
    result = CliRunner().invoke(main, [str(word) for word in words])
    if result.exit_code == 2 and isinstance(result.exception, SystemExit):
        raise InputError(result.stderr.strip().removeprefix("Error: "))
    if result.exit_code and not isinstance(result.exception, SystemExit):
        raise result.exception  # type: ignore[misc]
    return yaml.safe_load(result.stdout) if "--dry-run" in words else None


# --- prompts and relations ------------------------------------------------------------------------------------------


@reader
def prompts_txt(folder: Path) -> Reader:
    _pictures(folder, "cat.png", "dog.png")
    lines = (
        'A {cat: cat.png} hugs a {dog: dog.png}. --d 7 --s 30 --n "low, res" --box 0,0,0.5,1 --box 0.5,0,1,1\n'
        "A {cat: cat.png} <lora:style:0.8> on a bed. --w 512 --h 768 --images 2 --scale 0.6 --l 5 --ss ddim\n"
        "# a comment\nA {{plain}} brace. --d 1,2,3 --lora a.safetensors:0.5,b.safetensors\n"
        "Two {cats: cat.png}. --relation hug --embedding <x> --am 0.5,1 --lora a,b\n"
    )
    return Reader((mutations.text("prompts.txt", lines),), lambda place: read_prompts(place / "prompts.txt"))


def _checked_prompts(path: Path) -> Any:
    prompts = read_prompts(path)
    check_pictures(prompts)
    return prompts


@reader
def prompts_yaml(folder: Path) -> Reader:
    _pictures(folder, "cat.png", "dog.png")
    cat = {"name": "cat", "image": "cat.png", "box": [0, 0, 0.5, 1], "subject_scale": 0.5}
    dog = {"name": "dog", "image": "dog.png", "box": [0.5, 0, 1, 1]}
    entry = {"text": "A cat hugs a dog.", "objects": [cat, dog], "seed": 1, "width": 512, "steps": 3, "relation": "hug"}
    marked = {"text": "A {cat: cat.png} sits.", "seed": [1, 2], "lora": "a.safetensors:0.5", "lora_weight": 0.7}
    content = {"prompts": [entry, marked], "defaults": {"guidance_scale": 7.5, "negative_prompt": "bad", "scale": 0.6}}
    return Reader(
        (mutations.yaml_file("prompts.yaml", content),), lambda place: _checked_prompts(place / "prompts.yaml")
    )


@reader
def official_config(folder: Path) -> Reader:
    _pictures(folder, "cat.png")
    content = {"prompt": "a cat", "class_names": ["cat"], "images_path": ["cat.png"], "boxes": [[[0, 0, 1, 1]]]}
    return Reader((mutations.yaml_file("a.yaml", content),), lambda place: read_official_config(place / "a.yaml"))


@reader
def relations(folder: Path) -> Reader:
    documents = tuple(
        mutations.yaml_file(f"{name}.yaml", yaml.safe_load(shipped_yaml("relations")[name].read_text("utf-8")))
        for name in ("hug", "ride", "carry_together")
    )

    def read(place: Path) -> Any:
        every = [load_relation(place / document.path) for document in documents]
        for relation in every:
            for number in range(min(len(relation.prompts), 5)):
                relation.prompt(["cat"] * len(relation.roles), number)
            check_drawable(relation)
        return every

    return Reader(documents, read, ("relation '",))


@reader
def names_of_relations(folder: Path) -> Reader:
    return Reader(
        (mutations.arguments(["hug"]),), lambda place: [load_relation(str(name)) for name in _listed(place)[:3]], ("",)
    )


def _listed(place: Path) -> list[Any]:
    """Arguments that are a list; of what else they became, one."""
    text = (place / "arguments.json").read_text()
    if len(text) > 131_072:  # no system hands on a longer argument
        return []
    content = json.loads(text.replace("passwd", "nothing"))  # what a user names may be read
    return content if isinstance(content, list) else [content]


@reader
def requests_of_python(folder: Path) -> Reader:
    _pictures(folder, "cat.png")
    content = {
        "prompts": ["A {cat} sits."],
        "images": {"cat": str(folder / "cat.png")},
        "boxes": {"cat": [0, 0, 1, 1]},
        "settings": {"steps": 3, "guidance_scale": 7.5, "seed": 2, "width": 512, "scale": 0.5, "negative_prompt": "x"},
    }

    def read(place: Path) -> Any:
        given = json.loads((place / "arguments.json").read_text())
        if not isinstance(given, dict) or not isinstance(given.get("settings"), dict):
            return None  # Python itself refuses other arguments
        if not (isinstance(given.get("prompts"), list) and all(isinstance(t, str) for t in given["prompts"])):
            return None
        if not all(isinstance(given.get(name), dict) for name in ("images", "boxes")):
            return None
        defaults = {"steps": 1, "guidance_scale": 1.0, "width": 64, "height": 64, "scale": 0.6, "images": 1}
        defaults |= {"negative_prompt": "", "seed": 0}

        def boxes(_text: str, names: Sequence[str]) -> Any:
            return side_by_side(len(names))

        images = {name: str(image) for name, image in given["images"].items()}
        return requested(given["prompts"], images, given["boxes"], given["settings"], defaults, boxes)

    return Reader((mutations.arguments(content),), read, ("RelationPipeline", "images", "boxes", "prompt"))


# --- options and recipes --------------------------------------------------------------------------------------------


def _options(*words: str) -> Callable[[Path], Reader]:
    """A command line, of which ``--dry-run`` prints what was read."""

    def make(folder: Path) -> Reader:
        _pictures(folder, "pictures/a.png")
        (folder / "prompts.txt").write_text("A cat.\n")
        given = [word.replace("FOLDER", str(folder)) for word in words]

        def read(place: Path) -> Any:
            stage, *rest = (str(word).replace("\0", "") for word in [*_listed(place), ""])
            return _called(stage, "--dry-run", *rest[:-1])

        return Reader((mutations.arguments(given),), read, ("--", "value for", "stage", "option", "argument", "part"))

    return make


for _name, _words in {
    "sample": "sample FOLDER/prompts.txt --steps 3 --scale 0.6 --guidance-scale 7.5 --lora-weight 1.0 --width 128",
    "finetune": "finetune --relation hug --steps 3 --learning-rate 1e-4 --rank 4 --alpha 4.0 --bundle mini --seed 1",
    "generate": "generate --relation hug --number 3 --engine miniature --budget 1.5 --price 0.1 --seed 2",
    "distill": "distill --data FOLDER/pictures --steps 3 --learning-rate 1e-5 --crop-scale 1.5 --image-size 64",
    "annotate": "annotate FOLDER/pictures --backend boxes=oracle --device cpu --batch-size 2",
    "eval": "eval FOLDER/pictures --profile crops --batch-size 2 --device cpu",
    "pretrain": "pretrain vae --minutes 1 --seed 3 --vae-steps 2 --decay 0.5",
}.items():
    READERS[f"options_of_{_name}"] = _options(*_words.split())


@reader
def recipe(folder: Path) -> Reader:
    content = {
        "finetune": {"relation": "hug", "steps": 5, "learning_rate": 0.0001, "rank": 4, "alpha": 4.0, "resume": True},
        "sample": {"steps": 30, "guidance_scale": 7.5, "lora": ["a.safetensors"]},
    }

    def read(place: Path) -> Any:
        return configured(finetune, place / "recipe.yaml")

    return Reader((mutations.yaml_file("recipe.yaml", content),), read, ("finetune",))


@reader
def recipes_of_eval(folder: Path) -> Reader:
    ablation = yaml.safe_load(shipped_yaml("ablations")["paper"].read_text("utf-8"))
    ablation["tables"] = ablation["tables"][:1]
    limits = yaml.safe_load(shipped_yaml("gates")["mini"].read_text("utf-8"))

    def read(place: Path) -> Any:
        return gates.read_gates(str(place / "gates.yaml"), {}), formats.read_yaml(
            ablations.Recipe, place / "ablation.yaml"
        )

    documents = mutations.yaml_file("ablation.yaml", ablation), mutations.yaml_file("gates.yaml", limits)
    return Reader(documents, read)


# --- triplets -------------------------------------------------------------------------------------------------------


def _drawn(folder: Path, count: int = 2) -> list[dict[str, Any]]:
    """A folder of triplets; its rows."""
    draw_triplets(load_relation("hug"), count, 3, folder, size=64)
    return read_jsonl(folder / "metadata.jsonl")


@reader
def triplets(folder: Path) -> Reader:
    rows = _drawn(folder)
    mask = rows[0]["objects"][0]["mask"]
    target = rows[0]["file_name"]
    documents = (
        mutations.jsonl("metadata.jsonl", rows),
        mutations.jsonl("metadata.jsonl", rows),  # twice as often
        mutations.png(mask, Image.open(folder / mask)),
        mutations.png(target, Image.open(folder / target)),
    )

    def read(place: Path) -> Any:
        problems = check(place, resolution=64)
        for problem in problems:
            if problem.level == "error":
                raise InputError(str(problem))
        loaded = load(place)
        fix(loaded, place / ".copy" / "fixed")
        return loaded

    def alone(place: Path) -> Any:
        shutil.rmtree(place / ".copy", ignore_errors=True)
        return read(place)

    return Reader(documents, alone, ("0", "objects"))


@reader
def official_layout(folder: Path) -> Reader:
    prompts = {"0": {"prompt": "A cat hugs a dog.", "entities": ["cat", "dog"], "predicate": ["hugs"]}}
    for name in ("videos/0/motion", "videos/0/concept0", "videos/0/concept1"):
        _picture(folder / f"{name}.png")
    (folder / "masks/0").mkdir(parents=True)
    for number, box in enumerate([(0, 0, 8, 16), (8, 0, 16, 16)]):
        mask = Image.new("L", (16, 16))
        mask.paste(255, box)
        mask.save(folder / f"masks/0/motion{number}.png")
    points = torch.rand(2, 17, 2, generator=torch.Generator().manual_seed(0))
    points[0, :, 0] *= 0.5
    points[1, :, 0] = 0.5 + points[1, :, 0] * 0.5
    documents = (
        mutations.json_file("prompts.json", prompts),
        mutations.torch_file("videos/0/motion_keyposes.pth", points),
        mutations.torch_file("videos/0/concept_keyposes_one.pth", points[:1].clone()),
        mutations.torch_file("videos/0/concept_keyposes_two.pth", points[1:].clone()),
        mutations.png("masks/0/motion0.png", Image.open(folder / "masks/0/motion0.png")),
    )

    def read(place: Path) -> Any:
        check(place)
        return load(place)

    return Reader(documents, read, ("0",))


@reader
def raw_triplets(folder: Path) -> Reader:
    _pictures(folder, "0.png", "0-cat.png", "0-dog.png")
    objects = [{"name": name, "role": name, "image": f"0-{name}.png"} for name in ("cat", "dog")]
    rows = [{"file_name": "0.png", "text": "A cat hugs a dog.", "predicate": "hugs", "objects": objects}]
    origin = {"origin": "miniature", "relation": "hug", "seed": 3}
    documents = mutations.jsonl("raw.jsonl", rows), mutations.json_file("set.json", origin)
    return Reader(documents, lambda place: (read_raw(place), read_origin(place)))


@reader
def raw_shards(folder: Path) -> Reader:
    row = {
        "text": "A cat hugs a dog.",
        "predicate": "hugs",
        "objects": [{"name": n, "role": ""} for n in ("cat", "dog")],
    }
    data = mutations.encoded(Image.new("RGB", (8, 8)), "PNG")
    members = [("0.png", data), ("0.0.png", data), ("0.1.png", data), ("0.json", mutations.as_json(row))]
    documents = tuple(
        mutations.archive(f"{number}/a.tar", members, mode)
        for number, mode in enumerate(["w", "w:gz", "w:bz2", "w:xz"])
    )

    def read(place: Path) -> Any:
        copy = _copied(place)
        for document in documents:
            shards.unpack((copy / document.path).parent)
        return [read_raw((copy / document.path).parent) for document in documents]

    return Reader(documents, read)


@reader
def shards_of_pictures(folder: Path) -> Reader:
    data = mutations.encoded(Image.new("RGB", (8, 8)), "JPEG")
    members = [("0.jpg", data), ("0.json", b'{"a": 1}'), ("1.jpg", data)]
    return Reader((mutations.archive("a.tar", members),), lambda place: [key for key, _ in samples(place / "a.tar")])


@reader
def coco(folder: Path) -> Reader:
    _pictures(folder, "0.png")
    content = {
        "images": [{"id": 0, "file_name": "0.png", "width": 8, "height": 8}],
        "annotations": [{"id": 1, "image_id": 0, "category_id": 3, "bbox": [1, 1, 5, 5], "iscrowd": 0}],
        "categories": [{"id": 3, "name": "dog"}],
    }
    return Reader((mutations.json_file("coco.json", content),), lambda place: find_pictures(place, place / "coco.json"))


# --- pictures -------------------------------------------------------------------------------------------------------


def _forms() -> dict[str, dict[str, Any]]:
    forms: dict[str, dict[str, Any]] = {"PNG": {}, "JPEG": {}, "WEBP": {}, "BMP": {}, "TIFF": {}, "GIF": {}}
    try:
        from pillow_heif import register_heif_opener

        register_heif_opener()
        forms["HEIF"] = {}
    except ImportError:
        pass
    from PIL import features

    return {**forms, "AVIF": {}} if features.check("avif") else forms


@reader
def pictures(folder: Path) -> Reader:
    noise = np.random.default_rng(0).integers(0, 256, (20, 30, 4), np.uint8)
    whole, exif = Image.fromarray(noise[..., :3]), Image.Exif()
    exif[0x0112] = 6  # turned
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    documents = [
        mutations.file(f"a.{form.lower()}", mutations.encoded(whole, form, **options))
        for form, options in _forms().items()
    ]
    documents += [
        mutations.png("plain.png", whole),
        mutations.png("alpha.png", Image.fromarray(noise), icc_profile=profile, exif=exif.tobytes()),
        mutations.png("palette.png", whole.convert("P")),
        mutations.png("sixteen.png", Image.fromarray(noise[..., 0].astype(np.uint16) * 257)),
        mutations.file("turned.jpeg", mutations.encoded(whole, "JPEG", exif=exif.tobytes(), icc_profile=profile)),
        mutations.file("float.tiff", mutations.encoded(Image.fromarray(noise[..., 0].astype(np.float32)), "TIFF")),
        mutations.file(
            "frames.gif", mutations.encoded(whole.convert("P"), "GIF", save_all=True, append_images=[whole])
        ),
    ]

    def read(place: Path) -> Any:
        for document in documents:
            if document.path != "float.tiff":
                read_image(place / document.path)
                read_record(place / document.path)

    return Reader(tuple(documents), read)


@reader
def png_records(folder: Path) -> Reader:
    record = {"fingerprint": "x", "seed": 3, "objects": [{"name": "cat", "box": [0, 0, 1, 1]}], "text": "A cat."}

    def read(place: Path) -> Any:
        found = read_record(place / "a.png")
        return found and found.get("fingerprint")

    return Reader((mutations.png_with_record("a.png", record),), read)


# --- LoRAs and embeddings -------------------------------------------------------------------------------------------

_LAYERS = tuple(f"down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_{part}" for part in ("q", "k", "v", "out.0"))
_PRIOR = {"roles": ["a", "b"], "mean": [[0.3, 0.5, 0.2, 0.2], [0.7, 0.5, 0.2, 0.2]], "spread": [[0.1] * 4] * 2}


def _random(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape)))


def _lora_forms() -> dict[str, dict[str, torch.Tensor]]:
    peft = {
        f"{layer}.lora_{side}.weight": _random(*shape)
        for layer in _LAYERS
        for side, shape in (("A", (4, 8)), ("B", (8, 4)))
    }
    official = {
        f"unet.{layer}.lora.{side}.weight": _random(*shape)
        for layer in _LAYERS
        for side, shape in (("down", (4, 8)), ("up", (8, 4)))
    }
    return {
        "peft": {f"unet.{name}": tensor for name, tensor in peft.items()},
        "kohya": lora_names.to_kohya(peft, 2.0),
        "kohya-plain": lora_names.to_kohya(peft, 4.0, sdxl_blocks=False),
        "official": official,
    }


def _said() -> dict[str, str]:
    relation = yaml.safe_load(shipped_yaml("relations")["hug"].read_text("utf-8"))
    return {
        "rbctl.relation": "hug",
        "rbctl.predicate": "is hugging",
        "rbctl.words": '["hugs"]',
        "rbctl.layout_prior": json.dumps(_PRIOR),
        "rbctl.relation_file": json.dumps({**relation, "name": "hug"}),
        "ss_network_alpha": "4.0",
        "ss_tag_frequency": '{"hug": {"a cat": 3}}',
        "modelspec.title": "hug",
        "sshs_model_hash": "0" * 64,
    }


@reader
def relation_loras(folder: Path) -> Reader:
    documents = tuple(mutations.safetensors(f"{form}.safetensors", t, _said()) for form, t in _lora_forms().items())

    def read(place: Path) -> Any:
        files = [lora.read(place / document.path) for document in documents]
        return files, [(lora.relation_of(file), lora.layout_prior([file])) for file in files]

    return Reader(documents, read)


def _foreign() -> dict[str, dict[str, torch.Tensor]]:
    name = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0"
    te = "lora_te1_text_model_encoder_layers_0_self_attn_q_proj"
    mixed = {
        f"{name}_attn2_to_q.lora_down.weight": _random(2, 8),
        f"{name}_attn2_to_q.lora_up.weight": _random(8, 2),
        f"{name}_attn2_to_q.alpha": torch.tensor(1.0),
        f"{name}_attn1_to_k.lora_down.weight": _random(4, 8),
        f"{name}_attn1_to_k.lora_up.weight": _random(8, 4),
        f"{name}_attn1_to_k.dora_scale": _random(8, 1),
        f"{te}.lora_down.weight": _random(4, 8),
        f"{te}.lora_up.weight": _random(8, 4),
        f"{te}.alpha": torch.tensor(4.0),
        "lora_unet_conv_in.lora_down.weight": _random(4, 4, 3, 3),
        "lora_unet_conv_in.lora_up.weight": _random(8, 4, 1, 1),
        "lora_unet_x.hada_w1_a": _random(4, 8),
    }
    unet = {f"unet.{layer}.lora_{side}.weight": _random(4, 4) for layer in _LAYERS for side in "AB"}
    text = {
        f"text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_{side}.weight": _random(4, 4) for side in "AB"
    }
    return {"mixed": mixed, "diffusers": unet | text}


@reader
def other_loras(folder: Path) -> Reader:
    said = {
        "lora_adapter_metadata": json.dumps({"unet.lora_alpha": 2, "unet.alpha_pattern": {}, "unet.use_rslora": True})
    }
    documents = tuple(mutations.safetensors(f"{form}.safetensors", t, said) for form, t in _foreign().items())

    def read(place: Path) -> Any:
        files = [any_lora.read(place / document.path) for document in documents]
        return [file.networks if isinstance(file, any_lora.ForeignLora) else file for file in files]

    return Reader(documents, read)


@reader
def lora_commands(folder: Path) -> Reader:
    forms = {**_lora_forms(), **_foreign()}
    documents = tuple(mutations.safetensors(f"{form}.safetensors", t, _said()) for form, t in forms.items())

    def read(place: Path) -> Any:
        written = []
        for document in documents:
            file = stored.read(place / document.path)
            for form in ("kohya", "official"):
                (place / f"{form}.out").unlink(missing_ok=True)
            lines = [*description.description(file), *faults.faults(file)]
            assert all(len(line) < 2000 for pair in lines for line in ([pair] if isinstance(pair, str) else pair))
            for form in ("kohya", "official"):
                if document.path.startswith(tuple(_lora_forms())):
                    conversion.convert(place / document.path, form, place / f"{form}.out")
                    written.append(read_safetensors(place / f"{form}.out"))
        return written

    return Reader(documents, read)


@reader
def learned_embeddings(folder: Path) -> Reader:
    tensors = {"clip_l": _random(2, 8), "clip_g": _random(2, 12)}
    document = mutations.safetensors("ride.safetensors", tensors, {"rbctl.words": '["rides"]', "rbctl.token": "<ride>"})

    def read(place: Path) -> Any:
        embedding = embeddings.read(str(place / "ride.safetensors"))
        return embedding, embedding.words

    return Reader((document,), read)


@reader
def layout_priors(folder: Path) -> Reader:
    def read(place: Path) -> Any:
        prior = LayoutPrior.from_json(
            (place / "prior.json").read_bytes().decode("utf-8", "surrogatepass"), "prior.json"
        )
        return prior, prior.boxes(), prior.to_json()

    return Reader((mutations.Document("prior.json", _PRIOR, mutations.as_json, mutations.broken_json),), read)


# --- runs and what they keep ----------------------------------------------------------------------------------------

_FACTS = {"data": "x"}


def _sealed(tensors: Mapping[str, torch.Tensor], said: Mapping[str, str]) -> dict[str, str]:
    return {**said, "made_from": kept.content_hash(_FACTS), "content": kept.digest_of(tensors)}


@reader
def finetune_checkpoints(folder: Path) -> Reader:
    def begun() -> tuple[dict[str, torch.nn.Parameter], torch.optim.AdamW]:
        parameters = {name: torch.nn.Parameter(_random(3, 4)) for name in ("x.lora_A.weight", "x.lora_B.weight")}
        return parameters, torch.optim.AdamW(parameters.values())

    parameters, optimizer = begun()
    for parameter in parameters.values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    path = folder / "step.safetensors"
    finetune_checkpoint.save(path, 3, parameters, optimizer, {"scale": 2.0}, _FACTS, {})

    def read(place: Path) -> Any:
        own, fresh = begun()
        step, scaler = finetune_checkpoint.restore([place / path.name], own, fresh, _FACTS)
        for parameter in own.values():
            parameter.grad = torch.ones_like(parameter)
        fresh.step()
        return step, scaler, {name: p.detach() for name, p in own.items()}, [dict(fresh.state[p]) for p in own.values()]

    document = mutations.safetensors(path.name, read_safetensors(path)[0], {}, _sealed)
    return Reader((document,), read, (folder.name, "checkpoint"))


class _Part(pretrain_loop.Part):
    """A network of two layers, that learns nothing in particular."""

    name = "vae"

    def __init__(self) -> None:
        self.device, self.batch_size, self.learning_rate = torch.device("cpu"), 1, 1e-3
        torch.manual_seed(0)
        self.network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))

    def modules(self) -> dict[str, torch.nn.Module]:
        return {"network": self.network}

    def loss(self, step: int, chance: torch.Generator) -> tuple[torch.Tensor, Mapping[str, Any]]:
        return self.network(torch.ones(1, 3)).square().mean(), {}

    def preview(self, folder: Path, step: int) -> Mapping[str, float]:
        return {}

    def finish(self) -> None:
        pass


@reader
def pretrain_checkpoints(folder: Path) -> Reader:
    with click.Context(click.Command("fuzz")):
        config = configured(
            pretrain, work=str(folder), vae_steps=1, preview_every=0, device="cpu", precision="fp32", optimizer="adamw"
        )

    def trained(place: Path) -> Any:
        part = _Part()
        pretrain_loop.train(part, config)
        return dict(part.network.state_dict())

    trained(folder)
    path = folder / "vae" / pretrain_loop.CHECKPOINT
    facts = {"seed": config.seed}

    def sealed(tensors: Mapping[str, torch.Tensor], said: Mapping[str, str]) -> dict[str, str]:
        return {"made_from": kept.content_hash(facts), "content": kept.digest_of(tensors)}

    tensors = read_safetensors(path)[0]
    document = mutations.safetensors(str(path.relative_to(folder)), tensors, {}, sealed)
    return Reader((document, mutations.jsonl("vae/metrics.jsonl", [{"step": 1, "loss": 0.3}])), trained, ("vae",))


@reader
def distill_checkpoints(folder: Path) -> Reader:
    content = {"step": 3, "processes": 1, "files": {"a": "0" * 64}}
    path = "checkpoints/step-0000003/complete.json"

    def read(place: Path) -> Any:
        found = distill_checkpoint.last(Run(place, "distill", _Options(), checkpoint=distill_checkpoint.COMPLETE))
        assert found is not None
        try:
            kept.compare_files(found.folder, found.files)
        except InputError as error:
            if not str(error).startswith(f"{found.folder}"):
                raise
        return found

    return Reader((mutations.json_file(path, content),), read, ("step-0000003",))


@dataclass(frozen=True)
class _Options:
    """Of a stage."""

    steps: int = 3
    learning_rate: float = 0.1
    resume: bool = True
    names: tuple[str, ...] = ("a",)


@reader
def run_folders(folder: Path) -> Reader:
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints/step-1.safetensors").write_bytes(b"x")
    facts = {"data_hash": "0" * 64, "precision": "fp32"}
    documents = (
        mutations.yaml_file("recipe.yaml", {"finetune": {"steps": 3, "learning_rate": 0.1, "names": ["a"]}}),
        mutations.json_file("run.json", {**facts, "versions": {"torch": "2"}, "seed": 1}),
    )
    return Reader(documents, lambda place: Run(place, "finetune", _Options()).check(facts), (folder.name,))


@reader
def metrics_of_runs(folder: Path) -> Reader:
    rows = [{"step": k, "loss": 0.5, "gradient_norm": 1.0} for k in range(1, 4)]

    def read(place: Path) -> Any:
        copy = _copied(place)
        metrics.cut(copy / "metrics.jsonl", 2)
        return [row["step"] for row in metrics.rows(copy / "metrics.jsonl")]

    return Reader((mutations.jsonl("metrics.jsonl", rows),), read)


@reader
def annotations_kept(folder: Path) -> Reader:
    box = np.array([[0.1, 0.1, 0.5, 0.5], [0.5, 0.5, 0.9, 0.9]])
    unit = np.eye(2, 8, dtype=np.float32)
    contents: dict[str, dict[str, np.ndarray]] = {
        "boxes": {"boxes": box, "scores": np.array([0.9, 0.8])},
        "masks": {"masks": np.ones((2, 16, 16), bool)},
        "keypoints": {"keypoints": np.full((2, 17, 3), 0.5, np.float32)},
        "identity": {"identity": unit},
        "captions": {"text": np.array("A cat.")},
    }
    cache, picture = Cache(folder), folder / "0.png"

    def written(step: str, content: Any) -> bytes:
        cache.save(step, picture, "k", content)
        return cache.path(step, picture, "k").read_bytes()

    documents = tuple(
        mutations.arrays(
            str(cache.path(step, picture, "k").relative_to(folder)), content, functools.partial(written, step)
        )
        for step, content in contents.items()
    )

    def read(place: Path) -> Any:
        own = Cache(place)
        return [
            own.load(step, picture, "k", lambda a, step=step: misfit(step, a, 2, (16, 16)), 1024)  # type: ignore[misc]
            for step in contents
        ]

    return Reader(documents, read)


@reader
def corrections_of_reviews(folder: Path) -> Reader:
    rows = _drawn(folder)
    points = {"target_keypoints": {"3": [0.4, 0.25, 2]}, "image_keypoints": {}}
    first, second = (row["file_name"] for row in rows)
    content = {"triplets": {first: {"drop": True}, second: {"objects": [points, {}]}}}
    documents = mutations.json_file("saved.json", content), mutations.json_file("corrections.json", content)

    def read(place: Path) -> Any:
        copy = _copied(place)
        corrections.apply(copy, copy / "saved.json")
        return corrections.base(copy), read_jsonl(copy / "metadata.jsonl")

    return Reader(documents, read)


@reader
def reports_of_annotations(folder: Path) -> Reader:
    entry = {"name": "cat", "found": 0, "similarity": 0.8, "box_score": 0.9, "image_box_score": 0.9, "pose_change": 0.1}
    entry |= {"image_box": [0, 0, 1, 1], "target_confidence": [0.5] * 17, "image_confidence": [0.5] * 17}
    report = {
        "file_name": "0.png",
        "problem": None,
        "backends": {"boxes": "oracle"},
        "gates": {"pose": {"value": 0.3, "limit": 0.1, "passed": True}},
        "margin": 0.2,
        "roles_from": "text",
        "objects": [entry],
        "kept": True,
    }
    return Reader(
        (mutations.jsonl("annotations.jsonl", [report, {**report, "file_name": "1.png"}]),),
        lambda place: reports.read_reports(place, {"0.png": 1, "1.png": 1}),
    )


# --- eval -----------------------------------------------------------------------------------------------------------


@reader
def kept_features(folder: Path) -> Reader:
    encoder = Encoder(
        name="clip",
        folder=folder,
        hash="0" * 64,
        preparation="none",
        prepare=lambda image: torch.zeros(3, 2, 2),
        images=lambda pixels: torch.ones(len(pixels), 4),
        texts=lambda lines: torch.ones(len(lines), 4),
        device=torch.device("cpu"),
    )

    def features(place: Path) -> Any:
        return FeatureStore(place, encoder, Digests()).texts(["A cat.", "A dog."])

    features(folder)
    (path,) = folder.rglob("*.safetensors")

    def sealed(tensors: Mapping[str, torch.Tensor], said: Mapping[str, str]) -> dict[str, str]:
        return {"made_from": kept.content_hash({"encoder": encoder.hash}), "content": kept.digest_of(tensors)}

    document = mutations.safetensors(str(path.relative_to(folder)), read_safetensors(path)[0], {}, sealed)

    def read(place: Path) -> Any:
        vectors = features(place)
        assert all(vector.shape == vectors[0].shape and vector.dtype == np.float32 for vector in vectors)
        for other in place.rglob("*.safetensors"):  # made anew
            if other != place / document.path:
                other.unlink()
        return vectors

    return Reader((document,), read)


@reader
def pictures_to_score(folder: Path) -> Reader:
    _pictures(folder, "jsonl/0.png", "csv/0.png", "csv/mask.png")
    entry = {"name": "cat", "image": "0.png", "box": [0, 0, 1, 1]}
    row = {"file_name": "0.png", "text": "A cat.", "objects": [entry], "seed": 3, "relation": "hug", "case": "a"}
    table = (
        "file_name,text,image_prompts,names,boxes,masks,seed,predicate\n0.png,A cat.,0.png,cat,0 0 1 1,,3,hugs\n"
        "0.png,A cat.,0.png;0.png,cat;dog,,mask.png;-,,\n"
    )
    documents = mutations.jsonl("jsonl/metadata.jsonl", [row, row]), mutations.text("csv/metadata.csv", table)

    def read(place: Path) -> Any:
        rows = [*inputs.read_rows(place / "jsonl"), *inputs.read_rows(place / "csv")]
        return rows, inputs.as_cases("run", rows, Digests())

    return Reader(documents, read)


@reader
def judges(folder: Path) -> Reader:
    """Errors of judges, answers of a person, answers that are kept, costs, and finished evaluations."""
    _pictures(folder, "0.png", "cat.png", "dog.png")
    error = {"asked": 9, "not_known": 1, "yes": 4, "yes_right": 3, "no": 4, "no_right": 4}
    error["rank_correlation"] = {"mean": 0.5, "low": 0.1, "high": 0.8}
    error["calibration"] = [{"count": 8, "probability": 0.5, "truth": 0.5}]
    check = {"source": "faults", "pictures": 3, "judges": {"a": {"hash": "h", "kinds": {"relation": error}}}}
    columns = {"a relation": {"hash": "h", "judge": "a"}, "CLIP-T": {"hash": "c"}}
    scored = [
        {"run": run, "case": "c", "scores": {"a relation": score, "CLIP-T": 9.5}}
        for run, score in (("x", 1.0), ("y", 0.0))
    ]
    objects = tuple(CaseObject(name, folder / f"{name}.png") for name in ("cat", "dog"))
    case = Case("c", "A cat is riding a dog.", objects)
    item = Picture("x", folder / "0.png", case), questions(case)[0]
    AnswerStore(folder, _Yes(), Digests())([item])
    (answers,) = (folder / "judge").iterdir()
    documents = (
        mutations.json_file("check.json", check),
        mutations.text("answers.csv", "file_name,question,answer\n0.png,relation 0 1,yes\n0.png,present 0,no\n"),
        mutations.json_file(str(answers.relative_to(folder)), read_json(answers)),
        mutations.json_file("costs.json", {"dollars": 1.5, "answers": 3}),
        mutations.json_file("scores.json", {"columns": columns}),
        mutations.jsonl("pictures.jsonl", scored),
    )

    def read(place: Path) -> Any:
        checked = check_file.read_check(place / "check.json")
        shares = [corrected(3, 8, own) for own in checked.of("h").values()]
        truth = read_answers(place / "answers.csv", {"0.png": [question.id for question in questions(case)]})
        kept_answers = AnswerStore(place, _Yes(), Digests())([item])
        assert all(answer.yes is None or 0 <= answer.yes <= 1 for answer in kept_answers)
        paid = formats.read(Paid, read_object(place / "costs.json"), "costs.json")
        return checked, shares, truth, kept_answers, paid, leaderboard.content([place], None)

    return Reader(documents, read)


class _Yes:
    name, hash, paid = "judge", "judge", False

    def __call__(self, items: Sequence[Any]) -> Any:
        return iter([Answer(0.5, "yes") for _ in items])


@reader
def benchmarks(folder: Path) -> Reader:
    for name in ("cat", "dog"):
        _pictures(folder, f"{name}/{name}1.png")
    scene = {"scene": "A {a} and {b}.", "roles": ["a", "b"], "casts": [["cat", "dog"]], "relation": "hug"}
    both = {"of": ["cat", "dog"], "prompt": "a {0} and a {1} {place}", "boxes": [[0, 0, 0.5, 1], [0.5, 0, 1, 1]]}
    listed = [
        {"instance_prompt": "a cat", "class_prompt": "cat", "instance_data_dir": "cat", "prompt_filename": "p.txt"}
    ]
    prompt = "    'a {{0}} {{1}} {}'.format(unique_token, class_token),\n"
    official = (
        f"subject_name,class\ncat,cat\ndog,dog\nObject Prompts\n{prompt.format('in the jungle')}"
        f"Live Subject Prompts\n{prompt.format('on a bed')}"
    )
    documents = (
        mutations.yaml_file(
            "scenes.yaml",
            {"kind": "scenes", "data": ".", "subjects": {"cat": "cat", "dog": "dog"}, "scenes": [scene]},
        ),
        mutations.yaml_file(
            "combinations.yaml",
            {"kind": "combinations", "data": ".", "combinations": [both], "places": ["here"], "classes": {}},
        ),
        mutations.yaml_file(
            "dreambench.yaml", {"kind": "dreambench", "data": ".", "live": ["dog"], "subjects": ["cat"]}
        ),
        mutations.text("prompts_and_classes.txt", official),
        mutations.yaml_file("concepts.yaml", {"kind": "customconcept101", "data": ".", "file": "dataset.json"}),
        mutations.json_file("dataset.json", listed),
        mutations.text("p.txt", "a {} on a bed\na {} in the snow\n"),
    )

    def read(place: Path) -> Any:
        wanted = Wanted(partial=True)
        return [load_benchmark(str(place / d.path), wanted) for d in documents if d.path.endswith(".yaml")]

    return Reader(documents, read)


@reader
def tables_of_papers(folder: Path) -> Reader:
    tables = [
        {
            "name": "Table 1",
            "title": "of two",
            "rows": {"ours": "a", "theirs": None},
            "published": {"a": {"CLIP-T": 28.9}},
        },
        {"name": "Table 4", "title": "parts", "rows": {"full": None}, "ablation": True, "note": "n"},
    ]
    content = {"source": "a paper", "columns": ["CLIP-T", "DINO"], "tables": tables}
    row = {"what": "rbctl sample itself", "s/image": 3.5}
    sections = {"finetune": [{"what": "x", "s for 500 steps": 600.0}], "sampling": [row]}
    documents = (
        mutations.yaml_file("tables.yaml", content),
        mutations.json_file("fullsize.json", {"device": "x", "sizes": "full", "sections": sections}),
    )

    def read(place: Path) -> Any:
        return papers.read(str(place / "tables.yaml")), cost.read_figures(place / "fullsize.json")

    return Reader(documents, read)


@reader
def tuned_weights_of_unets(folder: Path) -> Reader:
    attention = "down_blocks.1.attentions.0.transformer_blocks.0.attn2"
    custom = {f"{attention}.processor.to_{k}_custom_diffusion.weight": _random(8, 8) for k in "kv"}
    whole = {"conv_in.weight": _random(8, 4, 3, 3), f"{attention}.to_k.weight": _random(8, 8)}
    documents = (
        mutations.safetensors("custom.safetensors", custom, {"rbctl.instance": "<new1> cat", "rbctl.words": '["cat"]'}),
        mutations.safetensors("whole.safetensors", whole, {"rbctl.instance": "sks cat", "rbctl.words": '["cat"]'}),
    )

    def read(place: Path) -> Any:
        files = [any_lora.read(place / document.path) for document in documents]
        return files, [embeddings.words_of(file.metadata, file.path) for file in files]

    return Reader(documents, read)


@reader
def results_of_stages(folder: Path) -> Reader:
    held = {"passed": True, "mean": 0.9, "low": 0.8, "high": 1.0, "n": 3, "at_least": 0.5}
    subject = {"bundle": "mini", "bundle_fingerprint": "x"}
    content = {**subject, "sections": {"base": {"date": "x", "gates": {"g": held}}}}
    (folder / "tuned").mkdir()
    (folder / "tuned/lora.safetensors").write_bytes(b"x")
    documents = (
        mutations.json_file("gates.json", content),
        mutations.json_file("tuned/made.json", {"result": "lora.safetensors", "threads": 1, "seconds": 2.5}),
    )

    def read(place: Path) -> Any:
        copy = _copied(place)
        gates_run.store(copy / "gates.json", subject, "vae", {"gates": {"h": held}})
        sections = read_object(copy / "gates.json")["sections"]
        gates_run.table({name: section["gates"] for name, section in sections.items()})
        return learned(copy / "tuned"), sections

    return Reader(documents, read)


# --- bundles --------------------------------------------------------------------------------------------------------


@reader
def bundles(folder: Path) -> Reader:
    mini = catalogue.place("mini")
    paths = ["ms_adapter_config.json", "scheduler/scheduler_config.json", "unet/config.json", "vae/config.json"]
    paths.append("text_encoder/config.json")
    recipe_of_mini = yaml.safe_load((mini / "recipe.yaml").read_text("utf-8"))
    manifest = {"bundle": "x", "files": {"unet/a.safetensors": {"sha256": "0" * 64, "size": 3, "licence": "MIT"}}}
    documents = (
        *(mutations.json_file(path, read_object(mini / path)) for path in paths),
        mutations.yaml_file("recipe.yaml", recipe_of_mini),
        mutations.json_file("bundle.json", manifest),
        mutations.json_file("model.index.json", {"weight_map": {"a": "x.safetensors"}, "metadata": {}}),
    )

    def read(place: Path) -> Any:
        said = summary(place), text_positions(place / "text_encoder"), sampling_defaults(place)
        return said, catalogue.read_manifest(place), shards_of_index(place / "model.index.json")

    return Reader(documents, read)


@reader
def names_of_bundles(folder: Path) -> Reader:
    def read(place: Path) -> Any:
        for name in _listed(place)[:50]:
            catalogue.resolve(str(name).replace("\0", ""))

    return Reader((mutations.arguments(["mini", "mini"]),), read, ("",))


@functools.cache
def _tiny() -> Path:
    """A bundle of random weights."""
    folder = Path(tempfile.mkdtemp())
    write_tiny(folder)
    return folder


@reader
def adapters(folder: Path) -> Reader:
    unet, config = read_object(_tiny() / "unet/config.json"), read_object(_tiny() / "ms_adapter_config.json")
    flat = read_safetensors(_tiny() / "ms_adapter.safetensors")[0]
    nested: dict[str, Any] = {"image_proj": {}, "ms_adapter": {}}
    for key, tensor in flat.items():
        part, dot, name = key.partition(".")
        if dot:
            nested[part][name] = tensor
        else:
            nested[key] = tensor
    documents = (
        mutations.safetensors("ms_adapter.safetensors", flat, {}),
        mutations.torch_file("ms_adapter.bin", nested),
        mutations.json_file("config.json", config),
        mutations.json_file("unet.json", unet),
    )

    def read(place: Path) -> Any:
        sizes, given = read_network_config(place / "unet.json"), read_object(place / "config.json")
        for name in ("ms_adapter.safetensors", "ms_adapter.bin"):
            convert.convert_adapter(place / name, place / "out.safetensors", sizes, given)
        return read_safetensors(place / "out.safetensors")

    return Reader(documents, read)


@reader
def checkpoints_of_one_file(folder: Path) -> Reader:
    """The whole of a base is too large to be broken a thousand times: its VAE, and what it says of its objective."""
    tensors = read_safetensors(_tiny() / "vae/diffusion_pytorch_model.safetensors")[0]
    prefixed = {f"first_stage_model.{name}": tensor for name, tensor in tensors.items()}
    documents = (
        mutations.safetensors("vae.safetensors", tensors, {}),
        mutations.safetensors("whole.safetensors", {"v_pred": torch.zeros(0)}, {"modelspec.prediction_type": "v"}),
        mutations.json_file("config.json", read_object(_tiny() / "vae/config.json")),
        mutations.safetensors("base.safetensors", prefixed, {"ss_v_parameterization": "True"}),
    )

    def read(place: Path) -> Any:
        single_file.write_vae(place / "vae.safetensors", place / "config.json", place / "out")
        said = single_file.objective(
            place / "whole.safetensors", *single_file.read_checkpoint(place / "whole.safetensors")
        )
        try:
            single_file.write_base(place / "base.safetensors", None, place / "out2")
        except InputError as error:
            if "not a whole SDXL checkpoint" not in str(error):
                raise
        return said, read_safetensors(place / "out/diffusion_pytorch_model.safetensors")

    return Reader(documents, read)


@reader
def local_encoders(folder: Path) -> Reader:
    config = read_object(next((_tiny() / "clipself").glob("*.json")))
    tensors = read_safetensors(_tiny() / "clipself/model.safetensors")[0]
    documents = (
        mutations.torch_file("epoch.pt", {"state_dict": {f"module.{k}": v for k, v in tensors.items()}, "epoch": 6}),
        mutations.json_file("config.json", config),
    )

    def read(place: Path) -> Any:
        given = convert.read_open_clip_config(place / "config.json")
        convert.convert_local_encoder(place / "epoch.pt", place / "out.safetensors", given)
        return read_safetensors(place / "out.safetensors")

    return Reader(documents, read)


@reader
def oracles(folder: Path) -> Reader:
    shutil.copytree(catalogue.place("mini") / "oracle", folder, dirs_exist_ok=True)
    document = mutations.json_file("config.json", read_object(folder / "config.json"))
    return Reader((document,), lambda place: load_oracle(place).config)


@reader
def known_hashes(folder: Path) -> Reader:
    (folder / "file").write_bytes(b"x")
    entry = {"sha256": "0" * 64, "size": 1, "modified": 1, "changed": 1}
    hashes_of_home = ".cache/rbctl/hashes.json"

    def read(place: Path) -> Any:
        before = Path.home
        Path.home = lambda: place  # type: ignore[assignment,method-assign]
        try:
            return hashes.file_hashes(place, ["file"])
        finally:
            Path.home = before  # type: ignore[method-assign]

    return Reader((mutations.json_file(hashes_of_home, {str(folder / "file"): entry}),), read)


# --- generate -------------------------------------------------------------------------------------------------------


@reader
def answers_that_cost(folder: Path) -> Reader:
    documents = (
        mutations.json_file("responses/00001-0.json", {"created": 1, "cost": 0.1, "usage": {"output_tokens": 3}}),
        mutations.json_file("responses/00002-0-1.json", {"cost": 0.2, "data": []}),
        mutations.jsonl("refused.jsonl", [{"candidate": 3, "text": "x", "code": "y", "message": "z"}]),
    )

    def read(place: Path) -> Any:
        account = Account(place, budget=1.0, most=None)
        assert account.spent >= 0.1
        return account.spent, refused_numbers(place)

    return Reader(documents, read)


@reader
def pairs(folder: Path) -> Reader:
    relation = load_relation("hug")
    lines = "cat, dog\n# a comment\nred cat, blue cat\nfox, owl\n"

    def read(place: Path) -> Any:
        source = candidates(relation, read_pairs(place / "pairs.txt", relation), 3, references=True)
        return [next(source) for _ in range(5)]

    return Reader((mutations.text("pairs.txt", lines),), read)


@reader
def pipelines(folder: Path) -> Reader:
    index = {"_class_name": "StableDiffusionXLPipeline", "unet": ["diffusers", "UNet2DConditionModel"], "_x": [1]}
    return Reader((mutations.json_file("model_index.json", index),), lambda place: pipeline_folder(str(place)))


# --- ComfyUI --------------------------------------------------------------------------------------------------------


@reader
def nodes_of_comfyui(folder: Path) -> Reader:
    """What the widgets of nodes hold, as far as ComfyUI lets it through: types are right, NaN is not refused."""
    sys.modules.setdefault("folder_paths", types.ModuleType("folder_paths"))
    from rbctl.comfyui import nodes

    known = tuple(Individual(name, torch.zeros(2, 3), torch.zeros(3)) for name in ("cat", "dog"))
    layout = LayoutPrior.from_json(json.dumps(_PRIOR))
    content = {"boxes": "0, 0, 0.5, 1\n0.5 0 1 1\n", "width": 64, "height": 64, "gamma": 0.6, "start": 0.0, "end": 1.0}

    model, adapter = MagicMock(), MagicMock()

    def read(place: Path) -> Any:
        given = json.loads((place / "arguments.json").read_text())
        try:
            text, width, height = str(given["boxes"]), int(given["width"]), int(given["height"])
            gamma, start, end = (float(given[name]) for name in ("gamma", "start", "end"))
        except (KeyError, TypeError, ValueError, OverflowError):
            return None  # ComfyUI refuses it
        if not (16 <= width <= 256 and 16 <= height <= 256):
            return None
        if any(value < low or value > high for value, low, high in ((gamma, 0, 3), (start, 0, 1), (end, 0, 1))):
            return None
        boxes, preview, numbers = nodes.Boxes().choose(known, text, width, height, layout)
        nodes.ApplyRelation().apply(model, adapter, known, boxes, gamma, start, end)
        return boxes, preview, numbers, gamma, start, end

    return Reader((mutations.arguments(content),), read, ("Boxes", "Apply Relation"))


# --- files of any kind ----------------------------------------------------------------------------------------------


@reader
def plain_files(folder: Path) -> Reader:
    content = {"a": [1, 2.5, None, True, "x"], "b": {"c": []}}
    into = io.BytesIO()
    np.savez(into, a=np.zeros(3))
    documents = (
        mutations.json_file("a.json", content),
        mutations.jsonl("a.jsonl", [content, content]),
        mutations.torch_file("a.pth", {"a": torch.rand(3, 4), "b": {"c": torch.zeros(2, dtype=torch.int64)}, "d": 3}),
        mutations.safetensors("a.safetensors", {"a": torch.rand(3, 4)}, {"b": "c"}),
    )

    def read(place: Path) -> Any:
        read_torch(place / "a.pth")  # whose numbers are for those who use them
        read_safetensors(place / "a.safetensors")
        return read_json(place / "a.json"), read_jsonl(place / "a.jsonl")

    return Reader(documents, read)
