"""What is measured: a function per section, from a :class:`Bench` to figures and gates."""

from __future__ import annotations

import dataclasses
import math
import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any

import click
import numpy as np

from bench.gates import sheets
from bench.gates.cases import CaseSet, draw_cases, join
from bench.gates.intervals import interval, mean_of_medians, ratio_of_means, ratio_of_medians
from bench.gates.judge import EACH, Judge
from bench.gates.results import gate
from bench.gates.tuning import Lora
from rbctl.files import write_text
from rbctl.relations import Box, load_relation

Scores = dict[str, np.ndarray]  # metric -> (n,) or (n, seeds); NaN where it means nothing
_EASY_EACH = 4  # scenes of each easy relation that every LoRA is tried on
_SHEET_ROWS = 10
_CORES = 2


@dataclass
class Bench:
    """What sections measure, with what, on how many scenes.

    Attributes:
        scenes: in all, spread over the relations of a section.
        seeds: of the LoRAs.
        verbs: held-out relations that LoRAs are tuned on.
        easy, held_out: what the base was and was not taught.
        sampler: a :class:`bench.gates.sampling.Sampler` or what behaves alike.
        tuner: a :class:`bench.gates.tuning.Tuner`, likewise.
        judge: a :class:`bench.gates.judge.Judge`; None in a worker.
        jobs: processes at once; 1 does all in this one.
    """

    folder: Path
    scenes: int
    seeds: tuple[int, ...]
    verbs: tuple[str, ...]
    easy: tuple[str, ...]
    held_out: tuple[str, ...]
    sampler: Any
    tuner: Any
    judge: Any
    jobs: int = 1
    easy_each: int = _EASY_EACH
    _cases: dict[str, CaseSet] = field(default_factory=dict, repr=False)

    def cases(self, spoken_to: str, count: int) -> CaseSet:
        """Scenes of a relation, drawn once."""
        known = self._cases.get(spoken_to)
        if known is None or len(known) < count:
            relation = load_relation(spoken_to)
            known = self._cases[spoken_to] = draw_cases(relation, count, self.folder / "portraits", spoken_to)
        return known.first(count)

    def each(self, relations: Sequence[str]) -> int:
        """Scenes of each relation."""
        return math.ceil(self.scenes / max(len(relations), 1))

    def easy_cases(self) -> CaseSet:
        """What every LoRA's forgetting is measured on."""
        return join([self.cases(name, self.easy_each) for name in self.easy])


# --- all sections ------------------------------------------------------------------------------------------------


def scores(judge: Judge, pictures: np.ndarray, cases: CaseSet) -> Scores:
    """Judge pictures; every metric (n,), mean over a picture's individuals where it has one for each."""
    verdicts = judge(pictures, cases.cases)
    return {
        "relation": verdicts.relation.astype(float),
        "directed": verdicts.directed.astype(float),
        "direction": np.where(verdicts.relation, verdicts.direction, np.nan),
        "contact": verdicts.contact,
        "touching": verdicts.touching,
        **{name: getattr(verdicts, name).astype(float).mean(1) for name in EACH},
    }


def stacked(rows: Sequence[Scores]) -> Scores:
    """Scores of the same scenes under several seeds: (n,) each -> (n, seeds)."""
    return {name: np.stack([row[name] for row in rows], axis=-1) for name in rows[0]}


def summary(groups: Mapping[str, Scores]) -> dict[str, Any]:
    """Every metric with its interval, over all groups (verbs, relations) and in each."""
    names = list(next(iter(groups.values())))
    over = {name: interval([g[name] for g in groups.values()]) for name in names}
    over["contact_median"] = interval([g["contact"] for g in groups.values()], mean_of_medians)
    per = {key: {name: interval([g[name]]) for name in names} for key, g in groups.items()}
    for key, g in groups.items():
        per[key]["contact_median"] = interval([g["contact"]], mean_of_medians)
        if g["relation"].ndim == 2:
            per[key]["relation_by_seed"] = [round(float(v), 4) for v in g["relation"].mean(0)]
    return {"mean": over, "each": per}


def difference(a: Mapping[str, Scores], b: Mapping[str, Scores], metric: str) -> dict[str, Any]:
    """Mean of a - b on the same scenes, with its interval."""
    return interval([_columns(a[key][metric]) - _columns(b[key][metric]) for key in a])


def _columns(values: np.ndarray) -> np.ndarray:
    return values if values.ndim == 2 else values[:, None]


def run_tasks(bench: Bench, tasks: Sequence[tuple[Callable[..., Any], tuple[Any, ...]]]) -> None:
    """Call ``function(bench, *arguments)`` of every task, ``bench.jobs`` processes at once; results lie in its folder.

    With one job nothing is done: whoever needs a result makes it.
    """
    if bench.jobs < 2:
        return
    # Neither the judge nor drawn cases nor loaded networks go along: workers only tune and sample.
    light = dataclasses.replace(bench, judge=None, sampler=bench.sampler.fresh(), _cases={})
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(bench.jobs, context, _begin, (light,)) as pool:
        waiting = [pool.submit(_work, function, arguments) for function, arguments in tasks]
        try:
            for number, one in enumerate(waiting, 1):
                one.result()
                click.echo(f"{number} of {len(waiting)} parts made", err=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


_worker: Bench | None = None


def _begin(bench: Bench) -> None:
    import torch

    global _worker
    torch.set_num_threads(1)
    _worker = bench


def _work(function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    assert _worker is not None
    function(_worker, *arguments)


# --- the oracle and the VAE --------------------------------------------------------------------------------------


def oracle(bench: Bench) -> dict[str, Any]:
    """The judge on renders and on round trips: is it fit to judge anything?"""
    names = [*bench.easy, *bench.held_out]
    count = bench.each(names)
    renders, trips = {}, {}
    for name in names:
        cases = bench.cases(name, count)
        renders[name] = scores(bench.judge, cases.pictures, cases)
        trips[name] = scores(bench.judge, bench.sampler.round_trip(cases.pictures), cases)
    on_renders, on_trips = summary(renders), summary(trips)
    return {
        "n": count * len(names),
        "renders": on_renders,
        "round_trips": on_trips,
        "gates": {
            "relation with direction, renders": gate(on_renders["mean"]["directed"], 0.97),
            "relation with direction, round trips": gate(on_trips["mean"]["directed"], 0.95),
            "identity of 16, both roles, renders": gate(on_renders["mean"]["role_identity"], 0.95),
        },
    }


def vae(bench: Bench) -> dict[str, Any]:
    """What the VAE loses."""
    names = [*bench.easy, *bench.held_out]
    cases = join([bench.cases(name, bench.each(names)) for name in names])
    back = bench.sampler.round_trip(cases.pictures)
    whole, inside = psnr(cases, back)
    before, after = (scores(bench.judge, pictures, cases)["directed"] for pictures in (cases.pictures, back))
    spread = np.random.default_rng(0).permutation(len(cases))[:12]
    sheets.write_pairs(bench.folder / "vae-round-trips.png", cases.pictures[spread], back[spread])
    # A paired resample of (round trip, render).
    kept = interval([np.stack((after, before), axis=-1)], ratio_of_means)
    return {
        "n": len(cases),
        "psnr": interval([whole]),
        "psnr_in_boxes": interval([inside]),
        "oracle_on_renders": interval([before]),
        "oracle_on_round_trips": interval([after]),
        "sheet": "vae-round-trips.png",
        "gates": {
            "PSNR of a round trip, dB": gate(interval([whole]), 26.0),
            "oracle's score on round trips / on renders": gate(kept, 0.95),
        },
    }


def psnr(cases: CaseSet, back: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """PSNR in dB of each whole picture (n,), and inside its true boxes (n,)."""
    errors = ((cases.pictures.astype(np.float64) - back) / 255) ** 2
    side = errors.shape[-1]
    inside = []
    for error, case in zip(errors, cases.cases, strict=True):
        mask = np.zeros((side, side), dtype=bool)
        for x0, y0, x1, y1 in case.boxes:
            mask[math.floor(y0 * side) : math.ceil(y1 * side), math.floor(x0 * side) : math.ceil(x1 * side)] = True
        inside.append(error[:, mask].mean())
    means = np.stack([errors.mean((1, 2, 3)), inside])
    whole, boxed = -10 * np.log10(np.maximum(means, 1e-10))
    return whole, boxed


# --- the base model ----------------------------------------------------------------------------------------------


def base_pictures(bench: Bench, name: str, count: int) -> tuple[CaseSet, np.ndarray]:
    """Pictures of a relation without a LoRA, boxes as ``rbctl sample`` places them."""
    cases = bench.cases(name, count)
    return cases, bench.sampler(cases.cases, f"base-{cases.cases[0].relation.name}")


def base(bench: Bench) -> dict[str, Any]:
    """The bundle alone: the relations it was taught, those it was not, and who is in the pictures."""
    counts = {name: bench.each(bench.easy) for name in bench.easy}
    counts |= {name: bench.each(bench.verbs) for name in bench.held_out}
    run_tasks(bench, [(base_pictures, (name, count)) for name, count in counts.items()])
    made: dict[str, Scores] = {}
    truth: dict[str, Scores] = {}
    for name, count in counts.items():
        cases, pictures = base_pictures(bench, name, count)
        made[name], truth[name] = scores(bench.judge, pictures, cases), scores(bench.judge, cases.pictures, cases)

    def of(groups: Mapping[str, Scores], names: Sequence[str]) -> dict[str, Any]:
        return summary({name: groups[name] for name in names})

    easy, held_out = of(made, bench.easy), of(made, bench.held_out)
    highest = max((found["relation"] for found in held_out["each"].values()), key=lambda f: f["mean"] or 0.0)
    return {
        "n": sum(counts.values()),
        "easy": easy,
        "held_out": held_out,
        "truth": {"easy": of(truth, bench.easy), "held_out": of(truth, bench.held_out)},
        "gates": {
            "easy relations": gate(easy["mean"]["relation"], 0.85),
            "held-out relations, the highest": gate(highest, at_most=0.40),
            "main colour": gate(easy["mean"]["coat"], 0.88),
            "species": gate(easy["mean"]["species"], 0.65),
            "pattern": gate(easy["mean"]["pattern"], 0.55),
        },
    }


# --- LoRAs -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tried:
    """A LoRA and its pictures of one verb; each column of ``pictures`` (n, 3, H, W)."""

    lora: Lora
    pictures: dict[str, np.ndarray]


def try_lora(bench: Bench, verb: str, seed: int) -> Tried:
    """Tune, then sample the verb's scenes with and without the LoRA, and the easy ones with it."""
    lora = bench.tuner(verb, seed)
    cases = bench.cases(verb, bench.each(bench.verbs))
    truth, prior = [case.boxes for case in cases.cases], [lora.boxes] * len(cases)
    name = f"{cases.cases[0].relation.name}-s{seed}"
    sample = bench.sampler
    pictures = {
        "lora": sample(cases.cases, f"lora-{name}", prior, lora.path),
        "lora_true_boxes": sample(cases.cases, f"lora-true-boxes-{name}", truth, lora.path),
        "box_only": sample(cases.cases, f"base-lora-boxes-{name}", prior),
    }
    easy = bench.easy_cases()
    pictures["easy"] = sample(easy.cases, f"easy-{name}", role_boxes(easy), lora.path)
    return Tried(lora, pictures)


def role_boxes(cases: CaseSet) -> list[Sequence[Box]]:
    """The relations' own boxes, said aloud: with a LoRA loaded, its layout prior would take their place."""
    return [tuple(role.box for role in case.relation.roles) for case in cases.cases]


def base_beside(bench: Bench, verb: str) -> dict[str, np.ndarray]:
    """The base model on a verb's scenes, with the relation's boxes and with true ones."""
    cases, default = base_pictures(bench, verb, bench.each(bench.verbs))
    truth = [case.boxes for case in cases.cases]
    name = cases.cases[0].relation.name
    return {"base": default, "base_true_boxes": bench.sampler(cases.cases, f"base-true-boxes-{name}", truth)}


def base_easy(bench: Bench) -> np.ndarray:
    """The base model on the scenes that forgetting is measured on."""
    easy = bench.easy_cases()
    return bench.sampler(easy.cases, "base-easy", role_boxes(easy))


def lora(bench: Bench) -> dict[str, Any]:
    """LoRAs of held-out verbs from six triplets each, on individuals nobody saw."""
    tasks: list[Any] = [(try_lora, (verb, seed)) for seed in bench.seeds for verb in bench.verbs]
    run_tasks(bench, [*tasks, *((base_beside, (verb,)) for verb in bench.verbs), (base_easy, ())])
    return _lora_figures(bench, bench.verbs, bench.judge)


def _lora_figures(bench: Bench, verbs: Sequence[str], judge: Judge) -> dict[str, Any]:
    arms: dict[str, dict[str, Scores]] = {}
    loras: dict[str, Any] = {}
    easy_cases, easy_base = bench.easy_cases(), base_easy(bench)
    before = scores(bench.judge, easy_base, easy_cases)
    forgotten: dict[str, Scores] = {}
    for verb in verbs:
        cases = bench.cases(verb, bench.each(bench.verbs))
        name = cases.cases[0].relation.name
        tried = [try_lora(bench, verb, seed) for seed in bench.seeds]
        beside = base_beside(bench, verb)
        for arm, pictures in beside.items():
            arms.setdefault(arm, {})[name] = stacked([scores(judge, pictures, cases)])
        arms.setdefault("truth", {})[name] = stacked([scores(judge, cases.pictures, cases)])
        for arm in ("lora", "lora_true_boxes", "box_only"):
            arms.setdefault(arm, {})[name] = stacked([scores(judge, one.pictures[arm], cases) for one in tried])
        easy = [scores(bench.judge, one.pictures["easy"], easy_cases) for one in tried]
        forgotten[name] = stacked([{"relation": row["relation"] - before["relation"]} for row in easy])
        loras[name] = [
            {
                "seed": seed,
                "steps": one.lora.steps,
                "seconds": one.lora.seconds,
                "threads": one.lora.threads,
                "denoising_loss_on_prior_set": one.lora.forgetting,
                "easy_change": round(float(forgotten[name]["relation"][:, k].mean()), 4),
            }
            for k, (seed, one) in enumerate(zip(bench.seeds, tried, strict=True))
        ]
        columns = [("base model", beside["base"]), ("base, the LoRA's boxes", tried[0].pictures["box_only"])]
        columns.append(("with the LoRA", tried[0].pictures["lora"]))
        shown = [(title, pictures[:_SHEET_ROWS]) for title, pictures in columns]
        sheets.write_contact_sheet(bench.folder / f"contact-{name}.png", cases.first(_SHEET_ROWS), shown)
    found = {arm: summary(groups) for arm, groups in arms.items()}
    over = {arm: f["mean"] for arm, f in found.items()}
    # Scenes are the same for all LoRAs, so one group: their change under every verb and seed.
    change = interval([np.concatenate([g["relation"] for g in forgotten.values()], axis=1)])
    drop = interval([-np.concatenate([g["relation"] for g in forgotten.values()], axis=1)])
    steps = max(row["steps"] for rows in loras.values() for row in rows)
    return {
        "n": sum(int(g["relation"].size) for g in arms["lora"].values()),
        "scenes_of_a_verb": bench.each(bench.verbs),
        "seeds": list(bench.seeds),
        "arms": found,
        "gain": {
            "over_base": difference(arms["lora"], arms["base"], "relation"),
            "over_the_same_boxes": difference(arms["lora"], arms["box_only"], "relation"),
            "over_base_true_boxes": difference(arms["lora_true_boxes"], arms["base_true_boxes"], "relation"),
        },
        "colour_change": {
            "from_base": difference(arms["lora"], arms["base"], "coat"),
            "from_the_same_boxes": difference(arms["lora"], arms["box_only"], "coat"),
            "from_renders": difference(arms["lora"], arms["truth"], "coat"),
        },
        "contact_ratio": {
            against: {
                "of_medians": _ratio(arms["lora"], arms[against], ratio_of_medians),
                "of_means": _ratio(arms["lora"], arms[against], ratio_of_means),
            }
            for against in ("base", "box_only")
        },
        "easy": {
            "base": interval([before["relation"]]),
            "change": change,
            "change_by_verb": {key: interval([g["relation"]]) for key, g in forgotten.items()},
        },
        "loras": loras,
        "gates": {
            "relation, new individuals": gate(over["lora"]["relation"], 0.75),
            "gain over the base": gate(difference(arms["lora"], arms["base"], "relation"), 0.35),
            "direction, of the right class": gate(over["lora"]["direction"], 0.85),
            "median contact / the base's": gate(_ratio(arms["lora"], arms["base"], ratio_of_medians), at_most=0.5),
            "main colour, change from the base": gate(difference(arms["lora"], arms["base"], "coat"), -0.05),
            "easy relations, drop": gate(drop, at_most=0.15),
            "steps": gate(steps, at_most=300),
        },
    }


def _ratio(a: Mapping[str, Scores], b: Mapping[str, Scores], statistic: Any) -> dict[str, Any]:
    """Contact distances of a over those of b, scenes drawn again together."""
    pairs = []
    for key in a:
        one, two = np.broadcast_arrays(_columns(a[key]["contact"]), _columns(b[key]["contact"]))
        pairs.append(np.stack((one, two), axis=-1))
    return interval(pairs, statistic)


# --- a relation that was not there ---------------------------------------------------------------------------------

NEW_RELATION = (package_files("rbctl.recipes") / "examples" / "sit_back_to_back.yaml").read_text()


def new_relation(bench: Bench) -> dict[str, Any]:
    """The same gates on a relation which neither the bundle nor the oracle has ever heard of."""
    path = bench.folder / "new" / "sit_back_to_back.yaml"
    if not path.is_file() or path.read_text() != NEW_RELATION:
        write_text(path, NEW_RELATION)
    spoken_to = str(path)
    own = dataclasses.replace(bench, verbs=(spoken_to,))
    tasks: list[Any] = [(try_lora, (spoken_to, seed)) for seed in bench.seeds]
    run_tasks(own, [*tasks, (base_beside, (spoken_to,)), (base_easy, ())])
    judge = bench.judge.extended(spoken_to)
    cases = own.cases(spoken_to, own.scenes)
    fit = scores(judge, cases.pictures, cases)
    found = _lora_figures(own, (spoken_to,), judge)
    gates = {
        "extended oracle on renders": gate(interval([fit["relation"]]), 0.95),
        "extended oracle, main colour on renders": gate(interval([fit["coat"]]), 0.97),
        **found["gates"],
    }
    del gates["direction, of the right class"]  # it is symmetric
    return {**found, "yaml": NEW_RELATION, "gates": gates}


# --- time ----------------------------------------------------------------------------------------------------------


def speed(bench: Bench) -> dict[str, Any]:
    """Finetuning and sampling as commands, on all cores and with nothing beside them."""
    tuned = dataclasses.replace(bench.tuner, threads=0)(bench.verbs[0], bench.seeds[0], again="timed")
    cases = bench.cases(bench.verbs[0], 8)
    seconds = bench.sampler.command_seconds(cases.cases, tuned.path)
    return {
        "n": 1,
        "relation": bench.verbs[0],
        "threads": tuned.threads,
        "gates": {
            "seconds of a finetuning": gate(tuned.seconds, at_most=240),
            "seconds of 8 pictures": gate(round(seconds, 1), at_most=60),
        },
    }


SECTIONS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "oracle": oracle,
    "vae": vae,
    "base": base,
    "lora": lora,
    "new_relation": new_relation,
    "speed": speed,
}
