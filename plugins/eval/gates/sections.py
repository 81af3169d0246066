"""What is measured: a function a section, from scenes to figures."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from rbctl.bundle.catalogue import place_of, resolve
from rbctl.files import read_image
from rbctl.menagerie.cases import DrawnCase, true_boxes
from rbctl.plugins.eval.encoders import as_array, load_dino
from rbctl.plugins.eval.gates import sheets
from rbctl.plugins.eval.gates.figures import (
    Scores,
    contact_ratio,
    difference,
    figure,
    mean_of_means,
    mean_of_medians,
    psnr,
    ratio,
    stacked,
    summary,
)
from rbctl.plugins.eval.gates.measuring import Arm, Measuring, Tuned, as_pixels
from rbctl.plugins.eval.gates.recipe import METRICS, Section
from rbctl.plugins.eval.metrics import kernel_distance, kernel_distance_interval
from rbctl.plugins.eval.stages import Step, run_steps
from rbctl.relations import load_relation
from rbctl.shortcuts import Shortcuts

Measured = tuple[dict[str, Any], dict[str, Any]]  # what is kept of a section, and its figures by name
_SHEET_ROWS = 10
_SHORTCUTS = [field.name for field in dataclasses.fields(Shortcuts)]


def _named(arms: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The figures of summaries, by ARM.METRIC."""
    return {f"{arm}.{metric}": whole["mean"][metric] for arm, whole in arms.items() for metric in METRICS}


def _truth(cases: Sequence[DrawnCase]) -> list[Image.Image]:
    return [read_image(case.picture) for case in cases]


def oracle(work: Measuring, section: Section) -> Measured:
    """The judge on renders and on round trips: is it fit to judge anything?"""
    relations = section.relations or (*work.gates.easy, *work.gates.held_out)
    count = work.each(relations)
    renders, trips = {}, {}
    for relation in relations:
        cases = work.cases(relation, count)
        renders[relation] = work.scores(_truth(cases), cases)
        trips[relation] = work.scores(work.round_trip(_truth(cases)), cases)
    arms = {"renders": summary(renders), "round_trips": summary(trips)}
    return {"n": count * len(relations), **arms}, _named(arms)


def vae(work: Measuring, section: Section) -> Measured:
    """What the VAE loses."""
    relations = (*work.gates.easy, *work.gates.held_out)
    cases = [case for relation in relations for case in work.cases(relation, work.each(relations))]
    pictures = _truth(cases)
    back = work.round_trip(pictures)
    whole, inside = psnr(as_pixels(pictures), as_pixels(back), true_boxes(cases))
    before, after = (work.scores(shown, cases)["directed"] for shown in (pictures, back))
    spread = np.random.default_rng(0).permutation(len(cases))[:12]
    sheet = work.folder / "vae-round-trips.png"
    sheets.write_pairs(sheet, [(pictures[k], back[k]) for k in spread])
    content = {
        "psnr": figure([whole]),
        "psnr_in_boxes": figure([inside]),
        "oracle_on_renders": figure([before]),
        "oracle_on_round_trips": figure([after]),
    }
    # A paired resample of (round trip, render).
    kept = figure([np.stack((after, before), axis=-1)], ratio(mean_of_means), pairs=True)
    return {"n": len(cases), **content, "sheet": sheet.name}, {**content, "oracle_kept": kept}


def _base(work: Measuring, relation: str, count: int, seed: int = 0) -> Arm:
    """Pictures of a relation without a LoRA, boxes as ``rbctl sample`` places them."""
    return Arm(f"base-{load_relation(relation).name}-s{seed}", work.cases(relation, count), relation, seed=seed)


def base(work: Measuring, section: Section) -> Measured:
    """The bundle alone: the relations it was taught, those it was not, and who is in the pictures."""
    easy, held_out = (section.relations, ()) if section.relations else (work.gates.easy, work.gates.held_out)
    count = work.each(easy)
    arms = {relation: [_base(work, relation, count, seed) for seed in work.gates.seeds] for relation in easy}
    arms |= {relation: [_base(work, relation, work.each(work.gates.relations))] for relation in held_out}
    work.sample([arm for own in arms.values() for arm in own])
    made = {
        relation: stacked([work.scores(work.pictures(arm), arm.cases) for arm in own]) for relation, own in arms.items()
    }
    truth = {relation: work.scores(_truth(own[0].cases), own[0].cases) for relation, own in arms.items()}

    def parts(of: Mapping[str, Scores]) -> dict[str, Any]:
        taught = {"easy": easy, "held_out": held_out}
        return {name: summary({relation: of[relation] for relation in own}) for name, own in taught.items()}

    shown = parts(made)
    each = [own["relation"] for own in shown["held_out"]["each"].values()]
    highest = max(each, key=lambda share: share["mean"] or 0.0, default=None)
    distance = _kernel_distance(work, [arms[relation][0] for relation in easy])
    pictures = sum(len(arm.cases) for own in arms.values() for arm in own)
    content = {"n": pictures, **shown, "truth": parts(truth), "kernel_distance": distance}
    return content, {**_named(shown), "held_out_highest": highest, "kernel_distance": distance}


def _kernel_distance(work: Measuring, arms: Sequence[Arm]) -> dict[str, Any]:
    """How far pictures are from renders of the same scenes, in the features of the bundle's DINO."""
    folder = place_of(resolve(work.gates.bundle), "dino")
    pictures = [picture for arm in arms for picture in work.pictures(arm)]
    if not folder.is_dir() or len(pictures) < 4:
        return {"mean": None, "low": None, "high": None, "n": len(pictures)}
    encoder = load_dino(folder.parent, "dino", torch.device("cpu"))

    def features(shown: Sequence[Image.Image]) -> np.ndarray:
        with torch.no_grad():
            return as_array(encoder.images(torch.stack([encoder.prepare(picture) for picture in shown])))

    made, truth = features(pictures), features([p for arm in arms for p in _truth(arm.cases)])
    low, high = kernel_distance_interval(made, truth)
    numbers = {"mean": kernel_distance(made, truth), "low": low, "high": high}
    return {**{name: round(value, 4) for name, value in numbers.items()}, "n": len(pictures)}


def lora_arms(work: Measuring, tuned: Tuned, cases: tuple[DrawnCase, ...]) -> dict[str, Arm]:
    """A LoRA on its relation's scenes in its own boxes and in true ones, the base in its boxes, and the easy scenes."""
    name, own = f"{cases[0].relation.name}-s{tuned.seed}", [tuned.boxes] * len(cases)
    # With a LoRA its layout prior would take the place of the easy relations' own boxes.
    easy = [tuple(role.box for role in case.relation.roles) for case in work.easy_cases]
    relation = tuned.relation
    return {
        "lora": Arm(f"lora-{name}", cases, relation, own, tuned.path),
        "lora_true_boxes": Arm(f"lora-true-boxes-{name}", cases, relation, true_boxes(cases), tuned.path),
        "box_only": Arm(f"base-lora-boxes-{name}", cases, relation, own),
        "easy": Arm(f"easy-{name}", work.easy_cases, "", easy, tuned.path),
    }


def loras(work: Measuring, section: Section) -> Measured:
    """LoRAs of held-out relations from a few triplets each, on individuals nobody saw."""
    relations, seeds = section.relations or work.gates.relations, work.gates.seeds
    count = work.each(relations)
    cases = {relation: work.cases(relation, count) for relation in relations}
    tuned = work.tuned(relations, seeds)
    of_tuned = {(lora.relation, lora.seed): lora_arms(work, lora, cases[lora.relation]) for lora in tuned}
    easy = next(iter(of_tuned.values()))["easy"]
    easy_base = Arm("base-easy", easy.cases, "", easy.boxes)
    beside = {
        relation: {
            "base": _base(work, relation, count),
            "base_true_boxes": Arm(f"base-true-boxes-{own[0].relation.name}", own, relation, true_boxes(own)),
        }
        for relation, own in cases.items()
    }
    work.sample([arm for arms in (*of_tuned.values(), *beside.values()) for arm in arms.values()] + [easy_base])

    def scored(arm: Arm) -> Scores:
        return work.scores(work.pictures(arm), arm.cases)

    before = scored(easy_base)["relation"]
    arms: dict[str, dict[str, Scores]] = {}
    changes: dict[str, np.ndarray] = {}  # of the easy relations, (n, seeds)
    kept: dict[str, Any] = {}
    for relation, own in cases.items():
        name = own[0].relation.name
        for arm, shown in beside[relation].items():
            arms.setdefault(arm, {})[name] = stacked([scored(shown)])
        arms.setdefault("truth", {})[name] = stacked([work.scores(_truth(own), own)])
        for arm in ("lora", "lora_true_boxes", "box_only"):
            arms.setdefault(arm, {})[name] = stacked([scored(of_tuned[relation, seed][arm]) for seed in seeds])
        after = [scored(of_tuned[relation, seed]["easy"])["relation"] for seed in seeds]
        changes[name] = np.stack(after, axis=-1) - before[:, None]
        mine = [lora for lora in tuned if lora.relation == relation]
        kept[name] = [
            {**lora.facts(), "easy_change": round(float(changes[name][:, k].mean()), 4)} for k, lora in enumerate(mine)
        ]
        first = of_tuned[relation, seeds[0]]
        columns = {
            "base model": work.pictures(beside[relation]["base"]),
            "base, the LoRA's boxes": work.pictures(first["box_only"]),
            "with the LoRA": work.pictures(first["lora"]),
        }
        sheets.write_contact_sheet(work.folder / f"contact-{name}.png", own[:_SHEET_ROWS], columns)
    summaries = {arm: summary(groups) for arm, groups in arms.items()}
    lora_scores, base_scores, box_scores = (arms[arm] for arm in ("lora", "base", "box_only"))
    # Scenes are the same for all LoRAs, so one group: their change under every relation and seed.
    change = np.concatenate(list(changes.values()), axis=1)
    content: dict[str, Any] = {
        "n": sum(int(part["relation"].size) for part in lora_scores.values()),
        "scenes_of_a_verb": count,
        "seeds": list(seeds),
        "arms": summaries,
        "gain": {
            "over_base": difference(lora_scores, base_scores, "relation"),
            "over_the_same_boxes": difference(lora_scores, box_scores, "relation"),
            "over_base_true_boxes": difference(arms["lora_true_boxes"], arms["base_true_boxes"], "relation"),
        },
        "colour_change": {
            "from_base": difference(lora_scores, base_scores, "coat"),
            "from_the_same_boxes": difference(lora_scores, box_scores, "coat"),
            "from_renders": difference(lora_scores, arms["truth"], "coat"),
        },
        "contact_ratio": {
            arm: {
                "of_medians": contact_ratio(lora_scores, arms[arm], mean_of_medians),
                "of_means": contact_ratio(lora_scores, arms[arm], mean_of_means),
            }
            for arm in ("base", "box_only")
        },
        "easy": {
            "base": figure([before]),
            "change": figure([change]),
            "change_by_verb": {name: figure([own]) for name, own in changes.items()},
        },
        "loras": kept,
    }
    if files := [Path(relation) for relation in section.relations if Path(relation).is_file()]:
        content["yaml"] = "\n---\n".join(file.read_text(encoding="utf-8") for file in files)
    figures = _named(summaries) | {
        **{f"{name}.{key}": v for name in ("gain", "colour_change") for key, v in content[name].items()},
        **{f"contact_ratio.{arm}": ratios["of_medians"] for arm, ratios in content["contact_ratio"].items()},
        **{f"mean_contact_ratio.{arm}": ratios["of_means"] for arm, ratios in content["contact_ratio"].items()},
        "easy_drop": figure([-change]),
        "steps": tuned[0].options["steps"],
    }
    return content, figures


def quality(work: Measuring, section: Section) -> Measured:
    """What sampling as users get it by default costs: the same scenes, LoRAs and noise as in the best quality."""
    whole = dataclasses.replace(work.gates, sample={**work.gates.sample, "quality": "best"})
    best = dataclasses.replace(work, gates=whole)
    relations = section.relations or work.gates.relations
    count = work.each(relations)
    arms: dict[str, list[Arm]] = {}
    for tuned in work.tuned(relations, work.gates.seeds):
        cases = work.cases(tuned.relation, count)
        arms.setdefault(cases[0].relation.name, []).append(lora_arms(work, tuned, cases)["lora"])
    made: dict[str, dict[str, Scores]] = {}
    for name, measuring in (("default", work), ("best", best)):
        measuring.sample([arm for own in arms.values() for arm in own])
        made[name] = {
            relation: stacked([work.scores(measuring.pictures(arm), arm.cases) for arm in own])
            for relation, own in arms.items()
        }
    change = {metric: difference(made["default"], made["best"], metric) for metric in METRICS}
    options = {name: measuring.sample_options for name, measuring in (("default", work), ("best", best))}
    content = {
        "n": sum(int(part["relation"].size) for part in made["best"].values()),
        "options": {name: {key: own[key] for key in ("steps", *_SHORTCUTS)} for name, own in options.items()},
        "arms": {name: summary(groups) for name, groups in made.items()},
        "change": change,
    }
    ends = {"change": "mean", "change_low": "low", "change_high": "high"}
    figures = {f"{end}.{metric}": own[key] for end, key in ends.items() for metric, own in change.items()}
    return content, figures | {f"change.{metric}": own for metric, own in change.items()}


def speed(work: Measuring, section: Section) -> Measured:
    """Finetuning and sampling as commands, on all cores and with nothing beside them."""
    alone = dataclasses.replace(work, stages=dataclasses.replace(work.stages, jobs=1))
    relation = work.gates.relations[0]
    (tuned,) = alone.tuned([relation], work.gates.seeds[:1], again="timed")
    seconds: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        arm = Arm("timed", work.cases(relation, 8), relation, lora=tuned.path)
        step = alone.stages.sample(Path(name) / "pictures", arm.prompts(Path(name)), alone.sample_options, lambda: None)
        run_steps([Step(step.arguments, step.log, lambda printed, took: seconds.append(took))], 1, "sample")
    figures = {"seconds_of_a_finetuning": tuned.facts()["seconds"], "seconds_of_8_pictures": round(seconds[0], 1)}
    return {"n": 1, "relation": relation, "threads": tuned.facts()["threads"]}, figures


MEASURES: dict[str, Callable[[Measuring, Section], Measured]] = {
    "oracle": oracle,
    "vae": vae,
    "base": base,
    "lora": loras,
    "quality": quality,
    "speed": speed,
}
