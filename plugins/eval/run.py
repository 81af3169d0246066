"""The work of ``rbctl eval``."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import torch

from rbctl import any_lora
from rbctl.bundle.catalogue import CATALOGUE, place_of, resolve
from rbctl.bundle.fingerprints import fingerprint
from rbctl.device import pick_device
from rbctl.errors import InputError
from rbctl.files import check_writable, read_jsonl, write_json, write_jsonl, write_text
from rbctl.menagerie.judge import Judge
from rbctl.menagerie.oracle import load_oracle
from rbctl.options import as_plain
from rbctl.paths import relative
from rbctl.plugins.eval import inputs, report
from rbctl.plugins.eval.benchmarks import Benchmark, load_benchmark, of_relations, seeded
from rbctl.plugins.eval.case import Case, Picture, Wanted
from rbctl.plugins.eval.config import EvalConfig
from rbctl.plugins.eval.encoders import Encoder, load_clip, load_dino
from rbctl.plugins.eval.features import Digests, FeatureStore
from rbctl.plugins.eval.judges.check_file import CHECK, OUTPUT, read_check
from rbctl.plugins.eval.judges.kinds import answer_stores, clip_folder, oracle_folder
from rbctl.plugins.eval.judges.summary import agreements, counts
from rbctl.plugins.eval.metrics import PROFILES
from rbctl.plugins.eval.predicates import lacking
from rbctl.plugins.eval.rows import TRUTH, Row
from rbctl.plugins.eval.sampling import sample
from rbctl.plugins.eval.scorer import Scorer
from rbctl.plugins.eval.summary import summary
from rbctl.processes import World, together
from rbctl.runs import RUNS, Run, versions

_MADE_WITH = (
    "bundle",
    "bundle_fingerprint",
    "lora_hash",
    "lora_weight",
    "steps",
    "guidance_scale",
    "guidance_start",
    "guidance_stop",
    "cache_start",
    "cache_span",
    "scheduler",
    "scale",
    "local_tokens",
    "precision",
    "boxes_from",
)


def run(config: EvalConfig) -> str:
    """Sample what is missing, score, write the report; returns what the terminal shows."""
    name = Path(config.bench).stem if config.bench else _run_names(config.runs)[0]
    output = config.output or RUNS / "eval" / name
    resolve(config.bundle)
    pick_device(config.device)
    check_writable(_cache(config), "--cache")
    with together() as world:
        work = Run(output, "eval", config, world=world)
        with work.claimed():
            if not world.first:
                world.wait()  # until the first one has drawn and sampled what is missing
            digests = Digests()
            bench = _benchmark(config, output)
            if bench:
                pictures, left_out = _bench_pictures(config, bench, output, digests, world)
            else:
                pictures, left_out = _given(config, digests), {}
            if world.first:
                world.wait()
            scorer = open_scorer(config, bench, digests, pictures, world)
            rows = scorer.rows(pictures)
            wins = scorer.wins(rows, config.pairwise)  # a judge may be asked, by all processes
            if not world.first:
                return ""
            content = _content(config, output, bench, scorer, rows, left_out) | {"wins": wins}
            work.begin({"encoders": content["encoders"]})
            write_json(output / "scores.json", content)
            write_jsonl(output / "pictures.jsonl", [row.facts(output) for row in rows])
            write_text(output / "report.md", report.markdown(content, rows))
            write_text(output / "report.html", report.html(content, rows, config.show))
    for line in content["left_out"]:
        click.echo(f"left out: {line}", err=True)
    if foreign := _of_other_worlds(config, content["runs"]):
        clip = f"the CLIP of {Path(config.bundle).name}, which knows drawn animals alone"
        click.echo(f"{', '.join(foreign)}: scored by {clip}; give --clip or --bundle", err=True)
    if config.json:
        return json.dumps(content, indent=2, ensure_ascii=False)
    return f"{report.terminal(content, output)}\n{output / 'report.html'}"


def _cache(config: EvalConfig) -> Path:
    return config.cache or RUNS / "eval" / "features"


def _run_names(folders: Sequence[Path]) -> list[str]:
    """Names for folders, short and different from each other."""
    names = [folder.resolve().stem if folder.suffix == ".csv" else folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = [f"{folder.resolve().parent.name}/{name}" for folder, name in zip(folders, names, strict=True)]
    return [f"{name} ({k})" if names.count(name) > 1 else name for k, name in enumerate(names, 1)]


def _benchmark(config: EvalConfig, output: Path) -> Benchmark | None:
    if config.bench is None:
        return None
    relations = config.relations or tuple(dict.fromkeys(r for loras in config.loras().values() for r in loras))
    wanted = Wanted(config.data, relations, config.cases, config.partial, output / "bench", config.follow_outside)
    return load_benchmark(config.bench, wanted)


def _bench_pictures(
    config: EvalConfig, bench: Benchmark, output: Path, digests: Digests, world: World
) -> tuple[list[Picture], dict[str, int]]:
    """Pictures of every run on the benchmark's cases, sampled where they are not there, and cases without one."""
    cases = seeded(bench.cases)
    named, loras = config.folders(), config.loras()
    names = [*(["base"] if config.base else []), *loras]
    for name in [*names, *named]:
        if [*names, *named].count(name) > 1 or name == TRUTH:
            raise InputError(f"run {name!r}: the name is taken; choose another")
    asked = {name: of_relations(cases, own) if (own := loras.get(name)) else cases for name in names}
    for name, own_cases in asked.items():
        if not own_cases:
            raise InputError(f"--lora: the benchmark has no case of {', '.join(loras[name])}")
    # Told before anything is sampled.
    folders = {name: inputs.read_rows(folder, config.follow_outside) for name, folder in named.items()}
    if world.first:
        for path in {path for own in loras.values() for path in own.values()}:
            any_lora.read(path)
        if config.clip or config.dino or config.dinov2:
            _encoders(config, torch.device("cpu"))
        if config.oracle:
            load_oracle(config.oracle, torch.device("cpu"))
    flags = ["--bundle", config.bundle, "--device", config.device]
    flags += ["--images", str(config.images), *(["--steps", str(config.steps)] if config.steps else [])]
    flags += ["--recipe", config.sample_recipe] if config.sample_recipe else []
    pictures: list[Picture] = []
    left_out: dict[str, int] = {}
    for name in names:
        place = output / "samples" / name
        if world.first:
            sample(name, asked[name], loras.get(name, {}), place, flags)
        shown, _ = inputs.of_cases(name, inputs.read_rows(place), asked[name], digests, place, partial=False)
        pictures += shown
    for name, rows in folders.items():
        shown, without = inputs.of_cases(name, rows, cases, digests, named[name], config.partial)
        pictures += shown
        left_out |= {name: without} if without else {}
    if not pictures:
        raise InputError("nothing to score: give --lora, --run NAME=FOLDER, or leave --base as it is")
    pictures += [Picture(TRUTH, case.truth.picture, case) for case in cases if case.truth]
    return pictures, left_out


def _given(config: EvalConfig, digests: Digests) -> list[Picture]:
    return [
        picture
        for name, folder in zip(_run_names(config.runs), config.runs, strict=True)
        for picture in inputs.as_cases(name, inputs.read_rows(folder, config.follow_outside, config.pairs), digests)
    ]


def open_scorer(
    config: EvalConfig,
    bench: Benchmark | None,
    digests: Digests,
    pictures: Sequence[Picture],
    world: World | None = None,
) -> Scorer:
    """What scores pictures: encoders with their kept features, and a judge where the embedded world drew the cases.

    Raises:
        InputError: an encoder's or the oracle's folder is not there, or damaged.
    """
    world = world or World()
    device = world.device(pick_device(config.device))
    profiles = config.profile or (bench.profiles if bench else ("relationbench",))
    needed = {metric.encoder for profile in profiles for metric in PROFILES[profile]} | {"dino"}
    encoders = _encoders(config, device)
    stores = {
        name: FeatureStore(_cache(config), encoder, digests, config.batch_size, world)
        for name, encoder in encoders.items()
        if name in needed
    }
    judge, digest = None, ""
    if any(picture.case.truth for picture in pictures):
        folder = oracle_folder(config)
        judge, digest = Judge(load_oracle(folder, device)), fingerprint(folder)
    judges = answer_stores(config, digests, world, encoders["clip"])
    return Scorer(stores, profiles, judge, digest, judges)


def _encoders(config: EvalConfig, device: torch.device) -> dict[str, Encoder]:
    clip = _folder(clip_folder(config))
    encoders = {"clip": load_clip(clip, device)}
    if config.dino:
        encoders["dino"] = load_dino(_folder(config.dino), "dino", device)
    elif config.clip is None and (clip / "dino" / "config.json").is_file():
        encoders["dino"] = load_dino(clip, "dino", device)
    if config.dinov2:
        encoders["dinov2"] = load_dino(_folder(config.dinov2), "dinov2", device)
    return encoders


def _folder(path: Path) -> Path:
    if not path.is_dir():
        raise InputError(f"{path}: no such folder; give a model folder with config.json and its weights")
    return path


def _content(
    config: EvalConfig,
    output: Path,
    bench: Benchmark | None,
    scorer: Scorer,
    rows: Sequence[Row],
    left_out: dict[str, int],
) -> dict[str, Any]:
    runs = list(dict.fromkeys(row.picture.run for row in rows))
    cases: dict[str, Case] = {row.picture.case.id: row.picture.case for row in rows}
    columns, lacking_columns = scorer.columns()
    content = summary(rows, runs, columns, scorer.stores, config.seed, apart=bool(bench and bench.published))
    content["judges"] = _judges(config, scorer, rows, runs)
    content["left_out"] = lacking_columns + content["left_out"]
    content["left_out"] += [f"{run}: {count} cases have no picture" for run, count in left_out.items()]
    if bench and bench.left_out:
        content["left_out"].append(f"{bench.left_out} cases whose subjects have no pictures here")
    if silent := content["predicates"].get("none"):
        content["left_out"].append(f"CLIP-R of {silent} of {len(cases)} prompts, which say no relation")
    if absent := lacking():
        content["left_out"].append(
            f"{absent}: not installed, predicates come from the lexicon alone (pip install 'rbctl[eval]')"
        )
    return {
        "benchmark": {
            "name": bench.name if bench else None,
            "source": bench.source if bench else "pictures as they were given",
            "profile": bench.profiles[0] if bench else None,
            "published": bench.published if bench else {},
            "cases": len(cases),
            "groups": dict(Counter(case.group for case in cases.values())),
            "seeds": sorted({row.picture.seed for row in rows if row.picture.seed is not None}),
        },
        "runs": {run: _facts([row for row in rows if row.picture.run == run], output) for run in runs},
        "encoders": {name: store.encoder.facts(output) for name, store in scorer.stores.items()},
        **content,
        "recipe": as_plain(config, output),
        "versions": versions(),
    }


def _judges(config: EvalConfig, scorer: Scorer, rows: Sequence[Row], runs: Sequence[str]) -> dict[str, Any]:
    """What judges said: by name their measured error and the answers counted by run, and how far every two agree."""
    judges = [store.judge for store in scorer.judges]
    path = config.judge_check or OUTPUT / CHECK
    checked = read_check(path) if judges and (config.judge_check or path.is_file()) else None
    named = {}
    for judge in judges:
        errors = checked.of(judge.hash) if checked else {}
        if config.judge_check and not errors:
            raise InputError(
                f"--judge-check {path}: has nothing of this {judge.name}; run rbctl eval judge-check with it"
            )
        of_runs = {
            run: counts([row.answers[judge.name] for row in rows if row.picture.run == run], errors) for run in runs
        }
        error = {kind: dataclasses.asdict(own) | own.shares() for kind, own in errors.items()}
        named[judge.name] = {"hash": judge.hash, "error": error, "runs": of_runs}
    answers = {judge.name: [row.answers[judge.name] for row in rows if row.picture.run != TRUTH] for judge in judges}
    return {"judges": named, "agreement": agreements(answers)} if named else {}


def _of_other_worlds(config: EvalConfig, runs: dict[str, Any]) -> list[str]:
    """Runs that a CLIP of the embedded world scores, though they do not say that its bundle made their pictures."""
    bundle = resolve(config.bundle)
    if config.clip or not place_of(bundle, "oracle").is_dir():
        return []
    own = {bundle.resolve().name, *(name for name, spec in CATALOGUE.items() if spec.packaged)}
    return [run for run, facts in runs.items() if run != TRUTH and facts["made_with"].get("bundle") not in own]


def _facts(rows: Sequence[Row], output: Path) -> dict[str, Any]:
    """What a run's pictures were made with, as far as their folder tells."""
    folder = rows[0].picture.path.parent
    metadata = folder / "metadata.jsonl"
    names = {row.picture.path.name for row in rows}
    records = [r for r in read_jsonl(metadata) if r.get("file_name") in names] if metadata.is_file() else []
    made: dict[str, Any] = {}
    for key in _MADE_WITH:
        values = list(dict.fromkeys(str(record[key]) for record in records if record.get(key) is not None))
        if values:
            made[key] = values[0] if len(values) == 1 else values
    return {"folder": relative(folder, output), "pictures": len(rows), "made_with": made}
