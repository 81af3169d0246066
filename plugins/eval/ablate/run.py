"""The work of ``rbctl eval ablate``: LoRAs, then pictures, then scores, then tables; what is there already stays."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import click
import yaml
from PIL import Image

from rbctl import layout, lora
from rbctl.bundle.catalogue import resolve
from rbctl.bundle.fingerprints import fingerprint, generator_fingerprint
from rbctl.errors import InputError
from rbctl.files import read_json, read_jsonl, read_safetensors, sha256, write_bytes, write_json, write_text
from rbctl.images import read_image, write_png
from rbctl.layout import LayoutPrior
from rbctl.menagerie.triplets import DRAWN_AS, draw_scenes, spoken
from rbctl.pictures import grid
from rbctl.plugins.eval import report, results, sampling
from rbctl.plugins.eval.ablate import tables
from rbctl.plugins.eval.ablate.recipe import Ablation, Variant, digest
from rbctl.plugins.eval.ablate.stages import Step, last_line, run_steps
from rbctl.plugins.eval.benchmarks import Benchmark, Wanted, find_benchmark, load_benchmark, of_relations, seeded
from rbctl.plugins.eval.case import Case
from rbctl.plugins.eval.config import EvalConfig
from rbctl.plugins.eval.features import Digests
from rbctl.plugins.eval.run import _scorer
from rbctl.plugins.eval.scores import Row
from rbctl.relations import Relation, load_relation
from rbctl.runs import RUNS, claim, versions
from rbctl.triplets import load as load_triplets
from rbctl.triplets.folder import METADATA, write

ABLATIONS = RUNS / "ablate"
_MADE, _SCORES = "made.json", "scores.json"  # written last, so what they stand beside is whole
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
        found = tuple(path for folder in self.tuned if (path := _result(folder)))
        return found if len(found) == len(self.tuned) else None

    def learned_for(self, number: int) -> str:
        """Those that the pictures of a case are made with, as ``rbctl sample`` is told of several."""
        found, roles = self.learned or (), len(self.relation.roles)
        own = found[number * roles : (number + 1) * roles] if self.variant.data == "subjects" else found
        return ",".join(str(path.resolve()) for path in own)


@dataclass(frozen=True)
class Work:
    """An ablation in a folder.

    Attributes:
        jobs: processes at once.
        device: for all stages.
        dino: folder of the DINO that scores; None for the bundle's own, if it has one.
    """

    ablation: Ablation
    output: Path
    jobs: int = 1
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dino: Path | None = None

    @functools.cached_property
    def cells(self) -> tuple[Cell, ...]:
        """All of them, variant by variant; a folder's name holds a hash of all that its content depends on."""
        bundle = generator_fingerprint(resolve(self.ablation.bundle))
        found = []
        for variant in self.ablation.variants.values():
            for given in self.ablation.relations:
                relation = load_relation(given)
                for seed in self.ablation.seeds:
                    facts = [bundle, repr(relation), DRAWN_AS, seed]
                    tuned, full = (digest([*facts, v.finetune, v.data]) for v in (variant, self.ablation.full))
                    shown = digest([tuned, full, variant.sample, self.ablation.bench])
                    name = f"{relation.name}-s{seed}"
                    folders: tuple[Path, ...] = (self.output / "loras" / f"{name}-{tuned}",)
                    if variant.data == "subjects":
                        group = self.output / "loras" / f"{name}-{digest([tuned, self.ablation.bench])}"
                        numbers = itertools.product(range(self.ablation.cases), range(len(relation.roles)))
                        folders = tuple(group / f"{case:03d}-{role}" for case, role in numbers)
                    pictures = self.output / "pictures" / f"{name}-{shown}"
                    found.append(Cell(variant, relation, given, seed, folders, pictures))
        return tuple(found)

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
        return {"cases": self.ablation.cases, "learned": learned, "boxes_from": ",".join(map(sha256, full))}

    def sampled(self, cell: Cell) -> bool:
        """Whether all pictures of a cell are there."""
        depends = self.depends(cell)
        return depends is not None and _read(cell.shown / _MADE) == depends

    @functools.cached_property
    def judge(self) -> str:
        """Names what scores: the whole bundle, and the encoder beside it."""
        return digest([fingerprint(folder) for folder in (resolve(self.ablation.bundle), self.dino) if folder])

    def scored(self, cell: Cell) -> dict[str, Any] | None:
        """The scores of a cell's pictures, if they are of these pictures and by this judge."""
        found = _read(cell.shown / _SCORES)
        current = found and self.sampled(cell) and (found["of"], found["judge"]) == (self.depends(cell), self.judge)
        return found if current else None

    @functools.cached_property
    def bench(self) -> Benchmark:
        """The cases, drawn where they are not."""
        ablation = self.ablation
        return load_benchmark(
            ablation.bench, Wanted(None, ablation.relations, ablation.cases, drawn=self.output / "bench")
        )

    @property
    def scoring(self) -> EvalConfig:
        """The scoring as ``rbctl eval`` would be asked for it."""
        return EvalConfig(
            bench=self.ablation.bench,
            bundle=self.ablation.bundle,
            dino=self.dino,
            device=self.device,
            cache=self.output / "features",
        )

    def plan(self) -> str:
        """What there is and what is to be done."""
        ablation = self.ablation
        find_benchmark(ablation.bench)
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
        tuned = {folder: _result(folder) for cell in self.cells for folder in cell.tuned}
        to_tune = sum(path is None for path in tuned.values())
        to_sample = sum(not self.sampled(cell) for cell in self.cells)
        to_score = sum(self.scored(cell) is None for cell in self.cells)
        return "\n".join(
            [
                f"{ablation.path}: {len(ablation.tables)} tables, {len(ablation.variants)} variants on "
                f"{', '.join(ablation.relations)} with seeds {', '.join(map(str, ablation.seeds))}; "
                f"{ablation.cases} cases a relation of {ablation.bench}, bundle {ablation.bundle}",
                "",
                report._aligned(rows),
                "",
                f"to do: {to_tune} of {len(tuned)} finetunings, {to_sample * ablation.cases} of "
                f"{len(self.cells) * ablation.cases} pictures, {to_score} of {len(self.cells)} scorings",
                f"tables: {self.output / 'tables.md'}",
            ]
        )

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
            found = {v.key: [s for cell in self.of(v) if (s := self.scored(cell))] for v in ablation.variants.values()}
            content = {**tables.content(ablation, found), "versions": versions()}
            for told, variant in zip(content["variants"].values(), ablation.variants.values(), strict=True):
                told["learned"] = [str(path) for cell in self.of(variant) for path in cell.learned or ()]
                told["pictures"] = [str(cell.shown) for cell in self.of(variant)]
            write_json(self.output / "tables.json", content)
            write_text(self.output / "tables.md", tables.markdown(content))
            write_png(self.output / "pictures.png", self.sheet())
        if as_json:
            return json.dumps(content, indent=2, ensure_ascii=False)
        return f"{tables.terminal(content)}\n\n{self.output / 'tables.md'}"

    def tune(self, cases: Sequence[Case]) -> None:
        """Finetune what is not there. No case of the benchmark is shown; methods of subjects see who is in it."""
        steps = {}
        for cell in self.cells:
            own = of_relations(cases, [cell.relation.name])
            people = [(case, role) for case in own for role in range(len(case.objects))]
            for number, folder in enumerate(cell.tuned):
                if folder in steps or _result(folder):
                    continue
                arguments = [*self._recipe("finetune", cell.variant.finetune), "--seed", str(cell.seed)]
                if cell.variant.data == "subjects":
                    case, role = people[number]
                    arguments += ["--class-noun", case.objects[role].name, "--data", str(self._subject(case, role))]
                else:
                    arguments += ["--relation", cell.given]
                if cell.variant.data == "unrelated":
                    arguments += ["--data", str(self._unrelated(cell))]
                keep = functools.partial(_keep_result, folder)
                steps[folder] = Step(("finetune", *arguments, "--output", str(folder)), folder / "log.txt", keep)
        run_steps(steps.values(), self.jobs, "finetune")

    def sample(self, cases: Sequence[Case]) -> None:
        """Sample the pictures that are not there: every variant in the boxes of the full method's layout prior."""
        steps = []
        for cell in self.cells:
            own, full = cell.learned, self.beside(cell).learned
            if own is None or full is None or self.sampled(cell):
                continue
            stored = lora.read(full[0]).metadata.get("rbctl.layout_prior")
            prior = LayoutPrior.from_json(stored, str(full[0])) if stored else None
            content = sampling.prompts(of_relations(cases, [cell.relation.name]), {})  # so far for the base model
            kind = "embedding" if "rbctl.token" in read_safetensors(own[0])[1] else "lora"
            for number, entry in enumerate(content["prompts"]):
                entry[kind] = cell.learned_for(number)
                if kind == "lora":  # a prompt with a LoRA of its own takes it at weight 1, whatever the stage is told
                    entry["lora_weight"] = cell.variant.sample["lora_weight"]
                boxes, _ = layout.boxes_for(len(entry["objects"]), prior, cell.relation)
                for thing, box in zip(entry["objects"], boxes, strict=True):
                    thing["box"] = list(box)
            prompts = cell.shown.with_suffix(".yaml")
            write_text(prompts, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
            arguments = [str(prompts), *self._recipe("sample", cell.variant.sample), "--output", str(cell.shown)]
            keep = functools.partial(_keep, cell.shown / _MADE, self.depends(cell) or {})
            steps.append(Step(("sample", *arguments), cell.shown / "log.txt", keep))
        run_steps(steps, self.jobs, "sample")

    def score(self, cases: Sequence[Case]) -> None:
        """Score the pictures that are not scored, all of a variant in one go."""
        digests, scorer = Digests(), None
        for variant in self.ablation.variants.values():
            cells = [cell for cell in self.of(variant) if self.sampled(cell)]
            waiting = {cell.shown.name: cell for cell in cells if self.scored(cell) is None}
            pictures = []
            for name, cell in waiting.items():
                own = of_relations(cases, [cell.relation.name])
                pictures += results.of_cases(name, results.read_rows(cell.shown), own, digests, cell.shown, False)[0]
            if not waiting:
                continue
            click.echo(f"score {variant.name}: {len(pictures)} pictures", err=True)
            if scorer is None:
                scorer = _scorer(self.scoring, self.bench, digests, pictures)
            rows = scorer.rows(pictures)
            found, lacking = scorer.columns()
            judged = {"judge": self.judge, "columns": tables.columns(found), "lacking": lacking}
            for name, cell in waiting.items():
                own_rows = [_plain(row, cell) for row in rows if row.picture.run == name]
                write_json(cell.shown / _SCORES, {"of": self.depends(cell), **judged, "rows": own_rows})

    def sheet(self) -> Image.Image:
        """The first cases of each relation, with the first seed: image prompts, then what each variant made of them."""
        pictures, captions = list[Image.Image](), list[str]()
        first = [cell for cell in self.cells if cell.seed == self.ablation.seeds[0]]
        for relation in self.ablation.relations:
            cells = [cell for cell in first if cell.given == relation]
            rows = [read_jsonl(cell.shown / "metadata.jsonl")[:_SHOWN] for cell in cells]
            for beside in zip(*rows, strict=True):
                made = [read_image(cell.shown / row["file_name"]) for cell, row in zip(cells, beside, strict=True)]
                things = beside[0]["objects"]
                pictures += [
                    read_image(cells[0].shown / thing["image"]).resize(made[0].size) for thing in things
                ] + made
                captions += [thing["name"] for thing in things] + [cell.variant.name for cell in cells]
        return grid(
            pictures, len(pictures) // (len(self.ablation.relations) * min(_SHOWN, self.ablation.cases)), captions
        )

    def _recipe(self, stage: str, options: dict[str, Any]) -> list[str]:
        """Flags that give a stage its options: a recipe file of its own, and what the ablation says."""
        path = self.output / "recipes" / f"{stage}-{digest(options)}.yaml"
        write_text(path, yaml.safe_dump({stage: options}, sort_keys=False))
        return ["--recipe", str(path), "--bundle", self.ablation.bundle, "--device", self.device]

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
            text = cell.relation.prompt([thing.name for thing in triplet.objects], number)
            roles = zip(triplet.objects, cell.relation.roles, strict=True)
            things = tuple(dataclasses.replace(thing, role=role.name) for thing, role in roles)
            said = spoken(cell.relation, text)
            triplets.append(dataclasses.replace(triplet, prompt=text, predicate=said, objects=things))
        write(triplets, folder)
        return folder


def _read(path: Path) -> dict[str, Any] | None:
    """A file that we wrote whole, or nothing."""
    return dict(read_json(path)) if path.is_file() else None


def _result(tuned: Path) -> Path | None:
    """What a finetuning made, once it has ended."""
    made = _read(tuned / _MADE)
    path = tuned / made["result"] if made else None
    return path if path and path.is_file() else None


def _keep(path: Path, facts: dict[str, Any], printed: str) -> None:
    write_json(path, facts)


def _keep_result(folder: Path, printed: str) -> None:
    """Note which file a finetuning made: it prints its path."""
    result = Path(last_line(printed))
    if not result.is_file():
        raise InputError(f"{folder / 'log.txt'}: rbctl finetune ended without a result ({result})")
    write_json(folder / _MADE, {"result": os.path.relpath(result, folder)})


def _plain(row: Row, cell: Cell) -> dict[str, Any]:
    colour = {} if row.verdict is None else {tables.COLOUR: row.verdict.coat}
    case = row.picture.case
    return {"case": case.id, "relation": case.relation, "seed": cell.seed, "scores": {**row.scores, **colour}}
