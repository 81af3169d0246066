"""From prompts to jobs: every default filled in, boxes found, each picture named by all that makes it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rbctl import embeddings, lora
from rbctl.any_lora import AnyLora
from rbctl.bases import Summary
from rbctl.bases.load import check_schedule, summary
from rbctl.bundle.fingerprints import generator_fingerprint
from rbctl.bundle.other_vae import vae_files
from rbctl.device import pick_device, pick_precision
from rbctl.errors import InputError
from rbctl.files import read_object, sha256
from rbctl.paths import relative
from rbctl.phrases import place_of
from rbctl.plugins.sample.config import SampleConfig
from rbctl.plugins.sample.learned import Learned
from rbctl.prompts import Prompt, PromptObject
from rbctl.prompts.weights import WeightedText, read_weights
from rbctl.relations import Relation
from rbctl.request import Request, Subject
from rbctl.roles import Placement, order_of_roles, place, read_roles
from rbctl.schedulers import check_scheduler
from rbctl.shortcuts import NO_SHORTCUTS
from rbctl.weighting import check_installed

IMAGE_PROMPTS = "image_prompts"
# What the record holds besides, without bearing on the pixels: names and paths of what is hashed.
_NOT_PIXELS = ("lora", "lora_base", "bundle", "vae", "relation", "predicate", "boxes_from", "source")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One picture to make.

    Attributes:
        loras: the LoRAs it is drawn with, each with its weight.
        prompt_number: which prompt of the file, from 1.
        file_name: from the text, the seed and the fingerprint alone: another prompt's picture never has it, and this
            one's keeps it wherever its line moves.
        record: the picture's metadata; ``fingerprint`` in it names all that the pixels depend on.
    """

    request: Request
    loras: tuple[tuple[AnyLora, float], ...]
    prompt_number: int
    file_name: str
    record: dict[str, Any]

    @property
    def kind(self) -> tuple[Any, ...]:
        """Jobs of one kind can be sampled in one batch."""
        return tuple((file.path, weight) for file, weight in self.loras), *self.request.kind


def words_of(prompt: Prompt, tokens: Sequence[tuple[str, Sequence[str]]]) -> WeightedText:
    """The prompt with each learned token in it: where it stands, else in place of the words that it stands for.

    Args:
        tokens: each with the words that it stands for.

    Raises:
        InputError: the prompt has no place for a token.
    """
    text = WeightedText(prompt.text, prompt.weights)
    for token, words in tokens:
        if token in text.words or token in (prompt.negative_prompt or ""):
            continue
        place = place_of(text.words, words)
        if place is None:
            others = "".join(f", {word!r}" for word in words)
            raise InputError(f"{prompt.source}: says none of {token!r}{others}; write {token} where it belongs")
        text = text.with_words(*place, token)
    return text


def plan(
    prompts: Sequence[Prompt], learned: Sequence[Learned], config: SampleConfig, folder: Path, output: Path
) -> list[Job]:
    """All jobs in order.

    Args:
        learned: of each prompt.
        folder: of the bundle.
        output: of the pictures; what their records name is named from there.

    Raises:
        InputError: a prompt has no place for what was learned for it, or --vae is of another base.
    """
    files = {entry.image for prompt in prompts for entry in prompt.objects}
    files |= {file.path for own in learned for file in own.trained if file.path}
    digests = {path: sha256(path) for path in files}
    scheduler = read_object(folder / "scheduler" / "scheduler_config.json")
    bundle = {
        "bundle": folder.resolve().name,
        "bundle_fingerprint": generator_fingerprint(folder),
        "scheduler": str(scheduler.get("_class_name", "EulerDiscreteScheduler")),
        "precision": pick_precision(config.precision, pick_device(config.device)),
    }
    if config.vae:
        weights, _ = vae_files(config.vae, folder)
        bundle |= {"vae": Path(config.vae).name, "vae_hash": sha256(weights)}
    defaults = summary(folder)
    jobs = [
        job
        for number, (prompt, own) in enumerate(zip(prompts, learned, strict=True), 1)
        for job in _jobs(number, prompt, own, config, defaults, bundle, digests, output)
    ]
    for name, steps in {(job.request.scheduler, job.request.steps) for job in jobs}:
        check_schedule(folder, name, steps)  # what it does not take is told before the networks are loaded
    return jobs


def _jobs(
    number: int,
    prompt: Prompt,
    learned: Learned,
    config: SampleConfig,
    defaults: Summary,
    bundle: Mapping[str, str],
    digests: Mapping[Path, str],
    output: Path,
) -> list[Job]:
    tokens = tuple(embedding for _, embedding in learned.embeddings)
    if len({embedding.token for embedding in tokens}) < len(tokens):
        raise InputError(f"{prompt.source}: two embeddings have the same token; give one its own, PATH:<name>")
    of_subjects = [file for file in learned.files if "rbctl.instance" in file.metadata]  # DreamBooth's rare token
    words = words_of(
        prompt,
        [(e.instance, e.words) for e in tokens if e.token not in prompt.text]
        + [(file.metadata["rbctl.instance"], embeddings.words_of(file.metadata, file.path)) for file in of_subjects],
    )
    placement = placed(prompt, learned)
    objects = [dataclasses.replace(entry, box=box) for entry, box in zip(prompt.objects, placement.boxes, strict=True)]
    relation, files = learned.relation, learned.files
    weights = [weight for _, weight in learned.loras] or [1.0]
    drawn: dict[str, Any] = {
        "negative_prompt": _first(prompt.negative_prompt, config.negative_prompt),
        "width": _first(prompt.width, config.width, defaults.resolution),
        "height": _first(prompt.height, config.height, defaults.resolution),
        "steps": _first(prompt.steps, config.steps),
        "guidance_scale": _first(prompt.guidance_scale, config.guidance_scale),
    }
    negative = read_weights(drawn["negative_prompt"], f"{prompt.source}: negative prompt", config.prompt_weighting)
    scheduler = _first(prompt.scheduler, check_scheduler(config.scheduler) if config.scheduler else None)
    original_size = None
    if prompt.original_width or prompt.original_height:
        original_size = prompt.original_height or drawn["height"], prompt.original_width or drawn["width"]
    crop = prompt.crop_top or 0, prompt.crop_left or 0
    scale = _first(prompt.scale, config.scale, defaults.gamma)
    record = {
        "text": prompt.written or prompt.text,
        **drawn,
        "scale": scale,
        "relation": relation.name if relation else None,
        "lora": ",".join(relative(file.path, output) for file in files) or None,
        "lora_weight": weights[0] if len(set(weights)) == 1 else list(weights),
        "seed": 0,  # its place; every picture has its own
        "objects": [
            {
                **dataclasses.asdict(entry),
                "image": copied(entry.image, digests[entry.image]),
                "image_hash": digests[entry.image],
            }
            for entry in objects
        ],
        "predicate": relation.predicate if relation else None,
        "boxes_from": placement.source,
        "lora_hash": ",".join(digests[file.path] for file in files) or None,
        "lora_base": files[0].metadata.get("rbctl.base") if files else None,
        **bundle,
        "local_tokens": config.local_tokens,
        "pseudo_mask_step": config.pseudo_mask_step,
        "source": _source(prompt, config, output),
    }
    # What follows stands there only where it is used: other pictures keep their fingerprints.
    if words.words != record["text"]:
        record["words"] = words.words
    if config.reference_mask != "none":
        record["reference_mask"] = config.reference_mask
    if (config.local_grid, config.local_injection) != (None, "concat"):
        record |= {"local_grid": config.local_grid, "local_injection": config.local_injection}
    if config.shortcuts != NO_SHORTCUTS:
        record |= dataclasses.asdict(config.shortcuts)
    if original_size:
        record["original_size"] = original_size
    if any(crop):
        record["crops_coords_top_left"] = crop
    if scheduler:
        record["scheduler"] = scheduler
    if words.weights or negative.weights:
        check_installed()
    if prompt.written or negative.words != drawn["negative_prompt"]:
        record["prompt_weighting"] = "compel"
    if tokens:
        record["embeddings"] = [
            {"path": relative(e.path, output), "token": e.token, "hash": digests[e.path]} for e in tokens if e.path
        ]
    subjects = tuple(_subject(entry, scale) for entry in objects)
    order = order_of_roles(prompt.text, [entry.name for entry in objects], relation) if defaults.ordered else ()
    if order:
        record["order"] = order
    seeds: Sequence[int] = prompt.seed or (config.seed,)
    if len(seeds) == 1:
        seeds = range(seeds[0], seeds[0] + _first(prompt.images, config.images))
    jobs = []
    for seed in seeds:
        own = {**record, "seed": seed}
        own["fingerprint"] = _fingerprint(own)
        request = Request(
            words=words.words,
            weights=words.weights,
            negative_weights=negative.weights,
            subjects=subjects,
            seed=seed,
            original_size=original_size,
            crop=crop,
            scheduler=scheduler,
            embeddings=tokens,
            shortcuts=config.shortcuts,
            source=prompt.source,
            order=order,
            **(drawn | {"negative_prompt": negative.words}),
        )
        name = _file_name(prompt.text, seed, own["fingerprint"])
        jobs.append(Job(request=request, loras=learned.loras, prompt_number=number, file_name=name, record=own))
    return jobs


def _source(prompt: Prompt, config: SampleConfig, output: Path) -> str:
    """Where a prompt stands, as the record of its pictures says it."""
    file = config.prompts or config.config
    return prompt.source.replace(str(file), relative(file, output), 1) if file else prompt.source


def _subject(entry: PromptObject, scale: float) -> Subject:
    assert entry.box is not None
    own_scale = _first(entry.subject_scale, scale)
    return Subject(name=entry.name, image=entry.image, box=entry.box, scale=own_scale)


def placed(prompt: Prompt, learned: Learned) -> Placement:
    """The objects' boxes, and whence they come: of the prompt, or by who has which role."""
    boxes = tuple(entry.box for entry in prompt.objects if entry.box is not None)
    if len(boxes) == len(prompt.objects):
        return Placement(boxes, "prompt")
    names = [entry.name for entry in prompt.objects]
    return place(prompt.text, names, learned.relation, lora.layout_prior(learned.files))


def described(prompt: Prompt, learned: Learned) -> str:
    """One line on what a prompt is drawn with: relation, who has which role, LoRA, and whence the boxes come."""
    relation, names = learned.relation, [entry.name for entry in prompt.objects]
    parts = ["no relation"]
    if relation:
        sources = [learned.relation_from, _roles(prompt.text, names, relation)]
        by = "; ".join(part for part in sources if part)
        parts = [f"relation {relation.name} ({by})" if by else f"relation {relation.name}"]
    loras = [f"LoRA {file.path} x {weight:g}" for file, weight in learned.loras]
    parts += loras or ["base model"]
    if names:
        source = placed(prompt, learned).source
        parts.append("boxes side by side" if source == "side by side" else f"boxes from the {source}")
    return f"{prompt.source}: {', '.join(parts)}"


def _roles(text: str, names: Sequence[str], relation: Relation) -> str:
    """Who has which role, in words; where the text does not tell, how they are taken."""
    if not names or not (len(names) > 1 or len(relation.roles) > 1):
        return ""
    reading = read_roles(text, names, relation)
    known = [f"{name} {role}" for k, name in enumerate(names) if (role := reading.role_of(k))]
    if len(names) != len(relation.roles):
        has = f"{len(names)} individual{'s' if len(names) > 1 else ''}, but it has {len(relation.roles)} roles"
        return f"{has}{': ' if known else ''}{', '.join(known)}"
    if known:
        return ", ".join(known)
    taken = ", ".join(f"{name} {role.name}" for name, role in zip(names, relation.roles, strict=True))
    return f"its words do not tell who is who, taken in their order: {taken}"


def copied(image: Path, digest: str) -> str:
    """Where the folder of the pictures holds a copy of an image prompt: it can be moved, shared and scored as it is."""
    return f"{IMAGE_PROMPTS}/{image.stem[:40]}-{digest[:12]}{image.suffix}"


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def _file_name(text: str, seed: int, fingerprint: str) -> str:
    words = re.sub(r"\W+", "-", text.lower())[:40].strip("-")
    return f"{words or 'picture'}-{seed}-{fingerprint[:12]}.png"


def _fingerprint(record: dict[str, Any]) -> str:
    """SHA-256 over what the pixels depend on."""
    depends = {key: value for key, value in record.items() if key not in _NOT_PIXELS}
    depends["objects"] = [{k: v for k, v in entry.items() if k != "image"} for entry in record["objects"]]
    if "embeddings" in record:
        depends["embeddings"] = [{k: v for k, v in entry.items() if k != "path"} for entry in record["embeddings"]]
    return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()
