"""The work of ``rbctl eval ablate``: LoRAs, then pictures, then scores, then tables; what is there already stays."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import yaml
from PIL import Image

from rbctl import formats, layout, lora
from rbctl.bases.load import summary
from rbctl.bundle.assemble import with_local_encoder
from rbctl.bundle.catalogue import resolve
from rbctl.bundle.fingerprints import fingerprint
from rbctl.errors import InputError
from rbctl.files import (
    read_image,
    read_jsonl,
    read_object,
    sha256,
    write_bytes,
    write_json,
    write_text,
)
from rbctl.menagerie.triplets import draw_scenes, spoken
from rbctl.paths import relative
from rbctl.pictures import grid, save_png
from rbctl.plugins.eval import inputs, sampling
from rbctl.plugins.eval.ablate import cost, tables
from rbctl.plugins.eval.ablate.recipe import Ablation, Variant
from rbctl.plugins.eval.benchmarks import Benchmark, find_benchmark, load_benchmark, of_relations, seeded
from rbctl.plugins.eval.case import Case, Wanted
from rbctl.plugins.eval.config import EvalConfig
from rbctl.plugins.eval.features import Digests
from rbctl.plugins.eval.rows import Row
from rbctl.plugins.eval.run import open_scorer
from rbctl.plugins.eval.stages import Stages, digest, learned, run_steps
from rbctl.plugins.eval.tables import aligned
from rbctl.provenance import SHEET
from rbctl.relations import Relation, load_relation
from rbctl.runs import RUNS, claim, versions
from rbctl.triplets import data_hash
from rbctl.triplets import load as load_triplets
from rbctl.triplets.folder import METADATA, write

ABLATIONS = RUNS / "ablate"
_MADE, _SCORES = "made.json", "scores.json"  # of a cell; written last, so what they stand beside is whole
_SHOWN = 2  # cases of each relation in the sheet of pictures


@dataclass(frozen=True)
class Cell:
    """A variant tuned on one relation with one seed.

    Attributes:
        relation: with its rules; ``given`` is how the recipe names it.
        tuned: folders of the finetunings; variants that tune alike share them. One of the relation, or where the data
            are subjects one of each: case by case, in the order of the roles.
        shown: folder of the pictures and their scores.
    """

    variant: Variant
    relation: Relation
    given: str
    seed: int
    tuned: tuple[Path, ...]
    shown: Path

    @property
    def learned(self) -> tuple[Path, ...] | None:
        """The LoRAs or embeddings that the finetunings made, once all have ended."""
        paths = tuple(path for folder in self.tuned if (path := learned(folder)))
        return paths if len(paths) == len(self.tuned) else None

    def learned_for(self, number: int) -> dict[str, Any]:
        """What the pictures of a case are made with, as its prompt in a file beside ``shown`` tells."""
        paths, roles = self.learned or (), len(self.relation.roles)
        of_subjects = self.variant.data == "subjects"
        own = paths[number * roles : (number + 1) * roles] if of_subjects else paths
        names = [relative(path, self.shown.parent) for path in own]
        tokens = [relative(embedding, self.shown.parent) for path in own if (embedding := _embedding(path))]
        if names == tokens:
            return {"embedding": ",".join(tokens)}
        # A prompt with a LoRA of its own takes it at weight 1, whatever the stage is told.
        learned = {"lora": ",".join(names), "lora_weight": self.variant.sample["lora_weight"]}
        if tokens:  # of Custom Diffusion: all are called <new1>, but those of one picture need names of their own
            learned["embedding"] = ",".join(f"{token}:<new{number}>" for number, token in enumerate(tokens, 1))
        return learned


@dataclass(frozen=True)
class Work:
    """An ablation in the folder of its stages.

    Attributes:
        data: folder of the benchmark's pictures; None where its YAML says it, or they are drawn.
        clip, dino: folders of what scores; None for the bundle's own, if it has one.
    """

    ablation: Ablation
    stages: Stages
    data: Path | None = None
    clip: Path | None = None
    dino: Path | None = None

    @property
    def output(self) -> Path:
        """Output folder."""
        return self.stages.folder

    @functools.cached_property
    def cells(self) -> tuple[Cell, ...]:
        """All of them, variant by variant; a folder's name holds a hash of all that its content depends on."""
        recipe, cells = self.ablation.recipe, []
        for variant, given, seed in itertools.product(self.ablation.variants.values(), recipe.relations, recipe.seeds):
            relation = load_relation(given)
            data = [self.hashes[given]] if given in self.hashes else []
            tuned, full = (
                self.stages.tuning_key(relation, seed, v.finetune, v.data, *data, *self.encoder_hash(v))
                for v in (variant, self.ablation.full)
            )
            shown = digest([tuned, full, variant.sample, recipe.bench])
            name = f"{relation.name}-s{seed}"
            folders: tuple[Path, ...] = (self.output / "loras" / f"{name}-{tuned}",)
            if variant.data == "subjects":
                group = self.output / "loras" / f"{name}-{digest([tuned, recipe.bench])}"
                numbers = itertools.product(range(recipe.cases), range(len(relation.roles)))
                folders = tuple(group / f"{case:03d}-{role}" for case, role in numbers)
            cells.append(Cell(variant, relation, given, seed, folders, self.output / "pictures" / f"{name}-{shown}"))
        return tuple(cells)

    def encoder_hash(self, variant: Variant) -> list[str]:
        """Of the local encoder that a variant has in the place of the bundle's own; empty for that."""
        return [fingerprint(variant.local_encoder)] if variant.local_encoder else []

    def stages_of(self, variant: Variant) -> Stages:
        """The stages on the bundle, or on one that has the variant's local encoder and is made for it."""
        if variant.local_encoder is None:
            return self.stages
        folder = self.output / "bundles" / digest([self.stages.fingerprint, *self.encoder_hash(variant)])
        with_local_encoder(resolve(self.stages.bundle), variant.local_encoder, folder)
        return dataclasses.replace(self.stages, bundle=str(folder))

    def triplets(self, given: str) -> Path | None:
        """The triplets of a relation, as the recipe names it; None where they are drawn."""
        folder = self.ablation.recipe.data.get(given)
        return self.ablation.path.parent / folder if folder else None

    @functools.cached_property
    def hashes(self) -> dict[str, str]:
        """By relation, the hash of its own triplets, where they are not drawn."""
        return {
            name: data_hash(load_triplets(folder))
            for name in self.ablation.recipe.relations
            if (folder := self.triplets(name))
        }

    def cases(self, cases: Sequence[Case], cell: Cell) -> tuple[Case, ...]:
        """Those of a cell's relation."""
        return of_relations(cases, [cell.relation.name])[: self.ablation.recipe.cases]

    def of(self, variant: Variant) -> list[Cell]:
        """The cells of one variant."""
        return [cell for cell in self.cells if cell.variant is variant]

    def beside(self, cell: Cell) -> Cell:
        """The full method's cell of the same relation and seed: its boxes are everyone's."""
        return next(c for c in self.cells if (c.given, c.seed) == (cell.given, cell.seed))

    def depends(self, cell: Cell) -> dict[str, Any] | None:
        """What a cell's pictures are made from; None as long as that is not there."""
        own, full = cell.learned, self.beside(cell).learned
        if own is None or full is None:
            return None
        learned = ",".join(map(sha256, own))
        return {"cases": self.ablation.recipe.cases, "learned": learned, "boxes_from": ",".join(map(sha256, full))}

    def sampled(self, cell: Cell) -> bool:
        """Whether all pictures of a cell are there."""
        depends = self.depends(cell)
        made = cell.shown / _MADE
        return depends is not None and made.is_file() and read_object(made) == depends

    @functools.cached_property
    def judge(self) -> str:
        """Names what scores: the whole bundle, and the encoder beside it."""
        return digest([fingerprint(folder) for folder in (resolve(self.stages.bundle), self.clip, self.dino) if folder])

    def scored(self, cell: Cell) -> dict[str, Any] | None:
        """The scores of a cell's pictures, if they are of these pictures and by this judge."""
        path = cell.shown / _SCORES
        if not (path.is_file() and self.sampled(cell)):
            return None
        scores = read_object(path)
        if (scores.get("of"), scores.get("judge")) != (self.depends(cell), self.judge):
            return None
        formats.read(tables.Scores, scores, str(path), ignore_others=True)
        return scores

    @functools.cached_property
    def bench(self) -> Benchmark:
        """The cases, drawn where they are not."""
        recipe = self.ablation.recipe
        wanted = Wanted(self.data, recipe.relations, recipe.cases, drawn=self.output / "bench")
        return load_benchmark(recipe.bench, wanted)

    def plan(self, figures: Path | None = None) -> str:
        """What there is, what is to be done, and what that costs.

        Args:
            figures: file of bench/fullsize.py; None for the one in its place, if there is one.
        """
        ablation, recipe = self.ablation, self.ablation.recipe
        find_benchmark(recipe.bench)
        rows = [["variant", "tuned", "sampled", "scored", "changes"]]
        for variant in ablation.variants.values():
            cells = self.of(variant)
            done = (
                sum(c.learned is not None for c in cells),
                sum(map(self.sampled, cells)),
                sum(self.scored(c) is not None for c in cells),
            )
            changes = yaml.safe_dump(variant.changes, default_flow_style=True, width=1000).strip()
            rows.append([variant.name, *(f"{n} of {len(cells)}" for n in done), changes if variant.changes else "none"])
        tuned = {folder: cell.variant.finetune for cell in self.cells for folder in cell.tuned}
        to_tune = [options for folder, options in tuned.items() if learned(folder) is None]
        to_sample = [cell.variant.sample for cell in self.cells if not self.sampled(cell)]
        to_score = sum(self.scored(cell) is None for cell in self.cells)
        return "\n".join(
            [
                f"{ablation.path}: {len(ablation.tables)} tables, {len(ablation.variants)} variants on "
                f"{', '.join(recipe.relations)} with seeds {', '.join(map(str, recipe.seeds))}; "
                f"{recipe.cases} cases a relation of {recipe.bench}, bundle {recipe.bundle}",
                "",
                aligned(rows),
                "",
                f"to do: {len(to_tune)} of {len(tuned)} finetunings, {len(to_sample) * recipe.cases} of "
                f"{len(self.cells) * recipe.cases} pictures, {to_score} of {len(self.cells)} scorings",
                cost.summary(to_tune, to_sample * recipe.cases, self._figures(figures)),
                f"tables: {self.output / 'tables.md'}",
            ]
        )

    def _figures(self, path: Path | None) -> cost.Figures | str:
        """What GPU hours rest on, or why they cannot be told."""
        resolution = summary(resolve(self.stages.bundle)).resolution
        if resolution != cost.RESOLUTION:
            return f"full size is measured at {cost.RESOLUTION} pixels, and the bundle has {resolution}"
        if path is None and not cost.FIGURES.is_file():
            return f"'python bench/fullsize.py' measures what they rest on into {cost.FIGURES}; or give --figures"
        return cost.read_figures(path or cost.FIGURES)

    def run(self, as_json: bool = False) -> str:
        """Do what is missing; returns the tables as the terminal shows them."""
        ablation = self.ablation
        with claim(self.output):
            cases, failed = seeded(self.bench.cases), list[str]()
            for work in (self.tune, self.sample, self.score):
                try:
                    work(cases)
                except InputError as error:  # the night is long: what does not hang on it is still made
                    failed.append(str(error))
            if failed:
                raise InputError("; ".join(failed))
            scores = {v.key: [s for cell in self.of(v) if (s := self.scored(cell))] for v in ablation.variants.values()}
            content = {**tables.content(ablation, scores), "versions": versions()}
            for row, variant in zip(content["variants"].values(), ablation.variants.values(), strict=True):
                cells = self.of(variant)
                row["learned"] = [relative(path, self.output) for cell in cells for path in cell.learned or ()]
                row["pictures"] = [relative(cell.shown, self.output) for cell in cells]
            write_json(self.output / "tables.json", content)
            write_text(self.output / "tables.md", tables.markdown(content))
            save_png(self.sheet(), self.output / "pictures.png", source_type=SHEET)
        if as_json:
            return json.dumps(content, indent=2, ensure_ascii=False)
        return f"{tables.terminal(content)}\n\n{self.output / 'tables.md'}"

    def tune(self, cases: Sequence[Case]) -> None:
        """Finetune what is not there. No case of the benchmark is shown; methods of subjects see who is in it."""
        steps = {}
        for cell in self.cells:
            own = self.cases(cases, cell)
            people = [(case, role) for case in own for role in range(len(case.objects))]
            for number, folder in enumerate(cell.tuned):
                if folder in steps or learned(folder):
                    continue
                arguments = ["--seed", str(cell.seed)]
                if cell.variant.data == "subjects":
                    case, role = people[number]
                    arguments += ["--class-noun", case.objects[role].name, "--data", str(self._subject(case, role))]
                else:
                    arguments += ["--relation", cell.given]
                    if folder_of := self.triplets(cell.given):
                        arguments += ["--data", str(folder_of)]
                if cell.variant.data == "unrelated":
                    arguments += ["--data", str(self._unrelated(cell))]
                steps[folder] = self.stages_of(cell.variant).finetune(folder, cell.variant.finetune, *arguments)
        run_steps(steps.values(), self.stages.jobs, "finetune")

    def sample(self, cases: Sequence[Case]) -> None:
        """Sample the pictures that are not there: every variant in the boxes of the full method's layout prior."""
        steps = []
        for cell in self.cells:
            own, full = cell.learned, self.beside(cell).learned
            if own is None or full is None or self.sampled(cell):
                continue
            prior = lora.layout_prior([lora.read(full[0])])
            content = sampling.prompts(self.cases(cases, cell), {}, cell.shown.parent)  # so far for the base model
            for number, entry in enumerate(content["prompts"]):
                entry |= cell.learned_for(number)
                boxes, _ = layout.boxes_for(len(entry["objects"]), prior, cell.relation)
                for individual, box in zip(entry["objects"], boxes, strict=True):
                    individual["box"] = list(box)
            done = functools.partial(write_json, cell.shown / _MADE, self.depends(cell))
            steps.append(self.stages_of(cell.variant).sample(cell.shown, content, cell.variant.sample, done))
        run_steps(steps, self.stages.jobs, "sample")

    def score(self, cases: Sequence[Case]) -> None:
        """Score the pictures that are not scored, all of a variant in one go."""
        digests, scorer = Digests(), None
        for variant in self.ablation.variants.values():
            cells = [cell for cell in self.of(variant) if self.sampled(cell)]
            waiting = {cell.shown.name: cell for cell in cells if self.scored(cell) is None}
            pictures = []
            for name, cell in waiting.items():
                own = self.cases(cases, cell)
                pictures += inputs.of_cases(name, inputs.read_rows(cell.shown), own, digests, cell.shown, False)[0]
            if not waiting:
                continue
            click.echo(f"score {variant.name}: {len(pictures)} pictures", err=True)
            if scorer is None:
                config = EvalConfig(
                    bench=self.ablation.recipe.bench,
                    bundle=self.stages.bundle,
                    data=self.data,
                    clip=self.clip,
                    dino=self.dino,
                    device=self.stages.device,
                    cache=self.output / "features",
                )
                scorer = open_scorer(config, self.bench, digests, pictures)
            rows = scorer.rows(pictures)
            columns, lacking = scorer.columns()
            judged = {"judge": self.judge, "columns": tables.columns(columns), "lacking": lacking}
            for name, cell in waiting.items():
                own_rows = [_plain(row, cell) for row in rows if row.picture.run == name]
                write_json(cell.shown / _SCORES, {"of": self.depends(cell), **judged, "rows": own_rows})

    def sheet(self) -> Image.Image:
        """The first cases of each relation, with the first seed: image prompts, then what each variant made of them."""
        pictures, captions = list[Image.Image](), list[str]()
        recipe = self.ablation.recipe
        first = [cell for cell in self.cells if cell.seed == recipe.seeds[0]]
        for relation in recipe.relations:
            cells = [cell for cell in first if cell.given == relation]
            rows = [read_jsonl(cell.shown / "metadata.jsonl")[:_SHOWN] for cell in cells]
            for beside in zip(*rows, strict=True):
                made = [read_image(cell.shown / row["file_name"]) for cell, row in zip(cells, beside, strict=True)]
                individuals = beside[0]["objects"]
                pictures += [
                    read_image(cells[0].shown / individual["image"]).resize(made[0].size) for individual in individuals
                ] + made
                captions += [individual["name"] for individual in individuals] + [cell.variant.name for cell in cells]
        return grid(pictures, len(pictures) // (len(recipe.relations) * min(_SHOWN, recipe.cases)), captions)

    def _subject(self, case: Case, role: int) -> Path:
        """The pictures of one subject of a case, in a folder."""
        folder = self.output / "subjects" / f"{case.id}-{role}"
        for picture in case.objects[role].references:
            if not (folder / picture.name).is_file():
                write_bytes(folder / picture.name, picture.read_bytes())
        return folder

    def _unrelated(self, cell: Cell) -> Path:
        """Triplets that say a cell's relation but show an ordinary scene, of the relations of drawn prior sets."""
        folder = self.output / "unrelated" / cell.tuned[0].name
        if (folder / METADATA).is_file():
            return folder
        names = [n for n in cell.variant.finetune["prior_relations"] if n != cell.relation.name]
        if not names:
            raise InputError(f"{self.ablation.path}: data: unrelated: prior_relations names no other relation to show")
        start = cell.seed % len(names)  # another seed begins with another relation
        shown = folder.with_name(f"{folder.name}-shown")
        others = [load_relation(name) for name in names[start:] + names[:start]]
        draw_scenes(others, cell.variant.finetune["triplets"], cell.seed, shown)
        triplets = []
        for number, triplet in enumerate(load_triplets(shown)):
            text = cell.relation.prompt([individual.name for individual in triplet.objects], number)
            roles = zip(triplet.objects, cell.relation.roles, strict=True)
            individuals = tuple(dataclasses.replace(individual, role=role.name) for individual, role in roles)
            words = spoken(cell.relation, text)
            triplets.append(dataclasses.replace(triplet, prompt=text, predicate=words, objects=individuals))
        write(triplets, folder)
        return folder


def _embedding(path: Path) -> Path | None:
    """The embedding that a tuning made, alone or beside weights of the UNet."""
    embedding = path.with_name("embedding.safetensors")
    return embedding if embedding.is_file() else None


def _plain(row: Row, cell: Cell) -> dict[str, Any]:
    colour = {} if row.verdict is None else {tables.COLOUR: row.verdict.coat}
    case = row.picture.case
    return {"case": case.id, "relation": case.relation, "seed": cell.seed, "scores": {**row.scores, **colour}}
