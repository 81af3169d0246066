"""From prompts to jobs: every default filled in, LoRA and boxes found, each picture named by all that makes it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rbctl import embeddings, layout, lora
from rbctl.embeddings import Embedding
from rbctl.errors import InputError
from rbctl.files import sha256
from rbctl.layout import LayoutPrior
from rbctl.lora import LoraFile
from rbctl.phrases import replaced
from rbctl.pipeline import Request, Subject
from rbctl.plugins.sample.config import SampleConfig
from rbctl.prompts import Prompt, PromptObject
from rbctl.relations import Relation, find_relation, load_relation, shipped
from rbctl.runs import tuned

IMAGE_PROMPTS = "image_prompts"


@dataclass(frozen=True, kw_only=True)
class Job:
    """One picture to make, and what is told of it.

    Attributes:
        text: the prompt as it was written.
        objects: as the prompt gave them, each with its box.
        lora: path, or several with commas between; None for the base model.
        prompt_number: which prompt of the file, from 1.
        file_name: from the text, the seed and the fingerprint alone: another prompt's picture never has it, and this
            one's keeps it wherever its line moves.
        record: the picture's metadata; ``fingerprint`` in it names all that the pixels depend on.
    """

    request: Request
    text: str
    objects: tuple[PromptObject, ...]
    relation: str | None
    lora: str | None
    lora_weight: float
    prompt_number: int
    file_name: str
    record: dict[str, Any]

    @property
    def kind(self) -> tuple[Any, ...]:
        """Jobs of one kind can be sampled in one batch."""
        return self.lora, self.lora_weight, *self.request.kind


@dataclass(frozen=True)
class Defaults:
    """What all jobs share: what the bundle says where neither the prompt nor a flag does, and how it is run.

    Attributes:
        scheduler: class name in diffusers.
        precision: the one picked, never "auto".
    """

    resolution: int
    gamma: float
    bundle: str
    bundle_fingerprint: str
    base: str
    local_encoder: str
    scheduler: str
    precision: str


def relation_of(prompt: Prompt, config: SampleConfig) -> tuple[Relation | None, bool]:
    """The prompt's relation, and whether it was named (else its words express it)."""
    if named := prompt.relation or config.relation:
        return load_relation(named), True
    return find_relation(prompt.text, [load_relation(name) for name in shipped()]), False


def lora_of(prompt: Prompt, relation: Relation | None, config: SampleConfig) -> tuple[str | None, float]:
    """Path (several with commas between) and weight of the prompt's LoRA; None for the base model.

    Raises:
        InputError: the relation has no LoRA in the runs folder, or the file named is not there.
    """
    given = prompt.lora or config.lora
    weight = _first(prompt.lora_weight, 1.0 if prompt.lora else config.lora_weight)
    if given == "none" or (given is None and (relation is None or embeddings_of(prompt, config))):
        return None, 1.0
    if given is None:
        assert relation is not None
        path = tuned(relation.name, config.bundle) / "lora.safetensors"
        if not path.is_file():
            other = "" if config.bundle == "mini" else f" --bundle {config.bundle} --data FOLDER"
            raise InputError(
                f"{prompt.source}: no LoRA of relation {relation.name!r} in {path.parent}; run "
                f"'rbctl finetune --relation {relation.name}{other}', name one with --lora, or take --lora none"
            )
        return str(path), weight
    for part in lora.split(given):
        if not Path(part).is_file():
            raise InputError(f"{prompt.source}: no LoRA file {part}; give its path, or --lora none for the base model")
    return given, weight


def embeddings_of(prompt: Prompt, config: SampleConfig) -> tuple[str, ...]:
    """PATH[:TOKEN] of every embedding of the prompt."""
    given = (prompt.embedding,) if prompt.embedding else config.embedding
    return tuple(part.strip() for value in given for part in value.split(","))


def words_of(prompt: Prompt, spoken: Sequence[tuple[str, Sequence[str]]]) -> str:
    """The prompt with each learned token in it: where it stands, else in place of the words that it stands for.

    Args:
        spoken: tokens, and for each the words that it stands for.

    Raises:
        InputError: the prompt has no place for a token.
    """
    text = prompt.text
    for token, words in spoken:
        if token in text or token in (prompt.negative_prompt or ""):
            continue
        said = replaced(text, words, token)
        if said is None:
            others = "".join(f", {word!r}" for word in words)
            raise InputError(f"{prompt.source}: says none of {token!r}{others}; write {token} where it belongs")
        text = said
    return text


def plan(
    prompts: Sequence[Prompt],
    config: SampleConfig,
    defaults: Defaults,
    loras: dict[str, LoraFile],
    learned: Mapping[str, Embedding] = MappingProxyType({}),
) -> list[Job]:
    """All jobs in order.

    Args:
        loras: every LoRA file of :func:`lora_of` by path.
        learned: every embedding of :func:`embeddings_of`, by how it was named.

    Raises:
        InputError: a prompt has no place for what was learned for it.
    """
    jobs = []
    digests = {thing.image: sha256(thing.image) for prompt in prompts for thing in prompt.objects}
    lora_digests = {path: sha256(Path(path)) for path in loras}
    learned_digests = {given: sha256(embedding.path) for given, embedding in learned.items() if embedding.path}
    for number, prompt in enumerate(prompts, 1):
        relation, _ = relation_of(prompt, config)
        path, weight = lora_of(prompt, relation, config)
        parts = lora.split(path) if path else []
        files = [loras[part] for part in parts]
        named = embeddings_of(prompt, config)
        tokens = tuple(learned[given] for given in named)
        if len({embedding.token for embedding in tokens}) < len(tokens):
            raise InputError(f"{prompt.source}: two embeddings have the same token; give one its own, PATH:<name>")
        subjects = [
            (f.metadata["rbctl.instance"], embeddings.words_of(f.metadata, f.path)) for f in files if _is_subject(f)
        ]
        words = words_of(prompt, [*((e.token, e.words) for e in tokens), *subjects])
        boxes, boxes_from = _boxes(prompt, relation, files)
        objects = tuple(dataclasses.replace(o, box=box) for o, box in zip(prompt.objects, boxes, strict=True))
        facts: dict[str, Any] = {
            "text": prompt.text,
            "negative_prompt": _first(prompt.negative_prompt, config.negative_prompt),
            "width": _first(prompt.width, config.width, defaults.resolution),
            "height": _first(prompt.height, config.height, defaults.resolution),
            "steps": _first(prompt.steps, config.steps),
            "guidance_scale": _first(prompt.guidance_scale, config.guidance_scale),
            "scale": _first(prompt.scale, config.scale, defaults.gamma),
            "relation": relation.name if relation else None,
            "lora": path,
            "lora_weight": weight,
        }
        first_seed = _first(prompt.seed, config.seed)
        for image in range(_first(prompt.images, config.images)):
            record = {
                **facts,
                "seed": first_seed + image,
                "objects": [
                    {
                        **dataclasses.asdict(o),
                        "image": copied(o.image, digests[o.image]),
                        "image_hash": digests[o.image],
                    }
                    for o in objects
                ],
                "predicate": relation.predicate if relation else None,
                "boxes_from": boxes_from,
                "lora_hash": ",".join(lora_digests[part] for part in parts) or None,
                "lora_base": files[0].metadata.get("rbctl.base") if files else None,
                "bundle": defaults.bundle,
                "bundle_fingerprint": defaults.bundle_fingerprint,
                "scheduler": defaults.scheduler,
                "precision": defaults.precision,
                "local_tokens": config.local_tokens,
                "pseudo_mask_step": config.pseudo_mask_step,
                "source": prompt.source,
            }
            if words != prompt.text:
                record["words"] = words
            if (config.local_grid, config.local_injection) != (None, "concat"):
                record |= {"local_grid": config.local_grid, "local_injection": config.local_injection}
            if named:  # only then: pictures without any keep their fingerprints
                record["embeddings"] = [
                    {"path": given, "token": learned[given].token, "hash": learned_digests[given]} for given in named
                ]
            record["fingerprint"] = _fingerprint(record)
            request = Request(
                words=words,
                subjects=_subjects(objects, facts["scale"]),
                seed=first_seed + image,
                embeddings=tokens,
                source=prompt.source,
                **{key: facts[key] for key in ("negative_prompt", "width", "height", "steps", "guidance_scale")},
            )
            jobs.append(
                Job(
                    request=request,
                    text=prompt.text,
                    objects=objects,
                    relation=facts["relation"],
                    lora=path,
                    lora_weight=weight,
                    prompt_number=number,
                    file_name=_file_name(prompt.text, first_seed + image, record["fingerprint"]),
                    record=record,
                )
            )
    return jobs


def _subjects(objects: Sequence[PromptObject], scale: float) -> tuple[Subject, ...]:
    """The objects of a prompt, all of whose boxes are known."""
    return tuple(
        Subject(
            name=entry.name,
            image=entry.image,
            box=entry.box,  # type: ignore[arg-type]
            scale=scale if entry.subject_scale is None else entry.subject_scale,
        )
        for entry in objects
    )


def copied(image: Path, digest: str) -> str:
    """Where the folder of the pictures holds a copy of an image prompt: it can be moved, shared and scored as it is."""
    return f"{IMAGE_PROMPTS}/{image.stem[:40]}-{digest[:12]}{image.suffix}"


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def _file_name(text: str, seed: int, fingerprint: str) -> str:
    words = re.sub(r"\W+", "-", text.lower())[:40].strip("-")
    return f"{words or 'picture'}-{seed}-{fingerprint[:12]}.png"


def _is_subject(file: LoraFile) -> bool:
    """Whether a LoRA is of one subject, that a prompt names by a rare token (DreamBooth)."""
    return "rbctl.instance" in file.metadata


def _boxes(prompt: Prompt, relation: Relation | None, files: Sequence[LoraFile]) -> tuple[Sequence[Any], str]:
    """The objects' boxes, and whence they come."""
    if all(thing.box is not None for thing in prompt.objects):
        return [thing.box for thing in prompt.objects], "prompt"
    stored = ((file.metadata.get("rbctl.layout_prior"), str(file.path)) for file in files)
    prior = next((LayoutPrior.from_json(prior, path) for prior, path in stored if prior), None)
    return layout.boxes_for(len(prompt.objects), prior, relation)


# What the record tells besides, without bearing on the pixels: names and paths of what is hashed.
_NOT_PIXELS = ("lora", "lora_base", "bundle", "relation", "predicate", "boxes_from", "source")


def _fingerprint(record: dict[str, Any]) -> str:
    """SHA-256 over what the pixels depend on."""
    depends = {key: value for key, value in record.items() if key not in _NOT_PIXELS}
    depends["objects"] = [{k: v for k, v in entry.items() if k != "image"} for entry in record["objects"]]
    if "embeddings" in record:
        depends["embeddings"] = [{k: v for k, v in entry.items() if k != "path"} for entry in record["embeddings"]]
    return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()
