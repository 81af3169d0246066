"""What a prompt is drawn with: its relation, the LoRAs and the embeddings, found and read."""

from __future__ import annotations

import functools
import glob
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rbctl import any_lora, embeddings
from rbctl.any_lora import AnyLora
from rbctl.defaults import BUNDLE
from rbctl.embeddings import Embedding
from rbctl.errors import InputError
from rbctl.lora import relation_of
from rbctl.plugins.sample.config import SampleConfig
from rbctl.prompts import Prompt
from rbctl.prompts.loras import split_loras
from rbctl.relations import Relation, load_relation, shipped
from rbctl.roles import find_relation
from rbctl.runs import RELATION, RUNS, tuned, tuned_lora


@dataclass(frozen=True, kw_only=True)
class Learned:
    """What was trained and one prompt is drawn with, all read.

    Attributes:
        relation: named, expressed by the prompt's words, or that of its LoRA.
        relation_from: "", "from its words" or "from its LoRA".
        loras: each with its weight; none for the base model.
        embeddings: each with the name it was asked for by, PATH[:TOKEN].
    """

    relation: Relation | None
    relation_from: str
    loras: tuple[tuple[AnyLora, float], ...]
    embeddings: tuple[tuple[str, Embedding], ...]

    @property
    def files(self) -> tuple[AnyLora, ...]:
        return tuple(file for file, _ in self.loras)

    @property
    def trained(self) -> tuple[AnyLora | Embedding, ...]:
        return *self.files, *(embedding for _, embedding in self.embeddings)


def read_learned(prompts: Sequence[Prompt], config: SampleConfig) -> list[Learned]:
    """Read what each prompt is drawn with; each file once.

    Raises:
        InputError: a relation has no LoRA in the runs folder, or a file is missing or of another kind.
    """
    read_lora, read_embedding = functools.cache(any_lora.read), functools.cache(embeddings.read)
    known, learned = _known(config), []
    for prompt in prompts:
        loras = {path: (read_lora(path), weight) for path, weight in _named_loras(prompt, config).items()}
        own = [relation for file, _ in loras.values() if (relation := relation_of(file))]
        relation, relation_from = _relation(prompt, config, known, own)
        names = (prompt.embedding,) if prompt.embedding else config.embedding
        tokens = [part.strip() for value in names for part in value.split(",")]
        if not (own or tokens or prompt.lora or config.lora or relation is None):
            path = _tuned(prompt, relation, config)
            weight = prompt.lora_weight[0] if prompt.lora_weight else config.lora_weight
            loras = {path: (read_lora(path), weight)} | loras
        learned.append(
            Learned(
                relation=relation,
                relation_from=relation_from,
                loras=tuple(loras.values()),
                embeddings=tuple((token, read_embedding(token)) for token in tokens),
            )
        )
    return learned


def _named_loras(prompt: Prompt, config: SampleConfig) -> dict[Path, float]:
    """The files that prompt or command name, and their weights; then those of the tags in the prompt's text.

    Raises:
        InputError: a file is not there, or there is another number of weights.
    """
    source = prompt.source
    written = [prompt.lora] if prompt.lora else list(config.lora)
    named = [entry for part in written for entry in split_loras(part) if entry.path != "none"]
    weights = prompt.lora_weight or ((1.0 if prompt.lora else config.lora_weight),)
    if prompt.lora_weight and any(entry.weight is not None for entry in named):
        raise InputError(f"{source}: --lora and --am both give a weight; leave one out")
    if len(weights) > 1 and len(weights) != len(named):
        raise InputError(f"{source}: --am: {len(weights)} weights for {len(named)} LoRAs; give one, or one for each")
    loras: dict[Path, float] = {}
    for entry, weight in zip(named, weights if len(weights) > 1 else weights * len(named), strict=True):
        path = Path(entry.path)
        if not path.is_file():
            raise InputError(f"{source}: no LoRA file {path}; give its path, or --lora none for the base model")
        if path in loras:
            raise InputError(f"{source}: --lora names {path} twice; leave one out")
        loras[path] = weight if entry.weight is None else entry.weight
    for tag in prompt.lora_tags:
        loras[_of_tag(tag.path, prompt, config, list(loras))] = 1.0 if tag.weight is None else tag.weight
    return loras


def _of_tag(name: str, prompt: Prompt, config: SampleConfig, named: Sequence[Path]) -> Path:
    """The file of <lora:NAME:WEIGHT>: in --lora-dir, beside the LoRAs that --lora names, or of a run of that name."""
    for path in named:
        if path.stem == name:
            return path
    file = f"{name.removesuffix('.safetensors')}.safetensors"
    beside = [path.parent for path in named]
    folders = [*config.lora_dir, *beside, tuned(name, config.bundle)]
    for folder in folders:
        if (folder / file).is_file():
            return folder / file
        if folder in config.lora_dir and (deeper := sorted(folder.rglob(glob.escape(file)))):
            return deeper[0]
    places = ", ".join(dict.fromkeys(map(str, folders)))
    raise InputError(
        f"{prompt.source}: <lora:{name}>: no {file} in {places}; "
        "give its folder with --lora-dir, or name it with --lora PATH:WEIGHT"
    )


def _tuned(prompt: Prompt, relation: Relation, config: SampleConfig) -> Path:
    """The LoRA that was tuned here on a relation.

    Raises:
        InputError: there is none.
    """
    file = tuned_lora(relation.name, config.bundle)
    if not file.is_file():
        named = relation.name if relation.name in shipped() else file.parent / RELATION
        options = "" if config.bundle == BUNDLE else f" --bundle {config.bundle} --data FOLDER"
        raise InputError(
            f"{prompt.source}: no LoRA of relation {relation.name!r} in {file.parent}; run "
            f"'rbctl finetune --relation {named}{options}', name one with --lora, or take --lora none"
        )
    return file


def _known(config: SampleConfig) -> dict[str, Relation]:
    """The relations whose words are known: the shipped ones, and those that were tuned here."""
    known = {name: load_relation(name) for name in shipped()}
    for path in sorted((RUNS / "finetune").glob(f"*/{RELATION}")):
        relation = load_relation(path)
        if path.parent == tuned(relation.name, config.bundle):
            known[relation.name] = relation
    return known


def _relation(
    prompt: Prompt, config: SampleConfig, known: Mapping[str, Relation], own: Sequence[Relation]
) -> tuple[Relation | None, str]:
    """The relation of a prompt, and what says so.

    Args:
        known: by their names.
        own: of the prompt's LoRAs, which win where the words of two relations are said.
    """
    if named := prompt.relation or config.relation:
        return load_relation(named), ""
    names = [individual.name for individual in prompt.objects]
    everyone = {**known, **{relation.name: relation for relation in own}}
    for relations in (own, list(everyone.values())):
        if relation := find_relation(prompt.text, relations, names):
            return relation, "from its words"
    return (own[0], "from its LoRA") if own else (None, "")
