"""From pictures to scores: one row a picture, then means over cases with intervals, tests, ceilings and floors."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rbctl.images import read_image
from rbctl.menagerie.judge import Judge, Verdict
from rbctl.plugins.eval import failures
from rbctl.plugins.eval.case import Case, Part, Picture
from rbctl.plugins.eval.features import FeatureStore
from rbctl.plugins.eval.intervals import interval, paired, rank_interval
from rbctl.plugins.eval.metrics import PROFILES, Metric, cosine, crop_alignment, image_alignment, text_alignment
from rbctl.plugins.eval.predicates import predicate

ORACLE = ("relation", "direction", "contact", "identity")
_ORACLE_SAYS = {
    "relation": "the relation asked for is the likeliest, by the embedded world's oracle",
    "direction": "and its subject plays the subject's part; symmetric relations have none",
    "contact": "what must touch is as near as in 95 of 100 true scenes",
    "identity": "individuals told from 15 others, mean of the two",
}
TRUTH = "truth"  # the run of the world's own drawings: a ceiling, not a method
_REAL_SHARE, _TRUE_SHARE = 0.95, 0.99  # see Scorer._copy_limits
_SIGNIFICANT = 0.05
_BATCH = 64


@dataclass(frozen=True)
class Column:
    """One number a picture.

    Attributes:
        metric: None for what the oracle says.
        hash: of the encoder or oracle.
    """

    id: str
    profile: str
    name: str
    definition: str
    hash: str
    metric: Metric | None = None

    def facts(self) -> dict[str, str]:
        """What a report says of it."""
        return {name: getattr(self, name) for name in ("profile", "name", "definition", "hash")}


@dataclass
class Row:
    """What was found of one picture."""

    picture: Picture
    scores: dict[str, float | None] = field(default_factory=dict)
    verdict: Verdict | None = None
    failures: failures.Found = field(default_factory=dict)
    predicate: str = ""
    source: str = "none"

    def facts(self) -> dict[str, Any]:
        """As a line of pictures.jsonl."""
        case = self.picture.case
        return {
            "run": self.picture.run,
            "file": str(self.picture.path),
            "case": case.id,
            "text": case.text,
            "predicate": self.predicate,
            "predicate_from": self.source,
            "prompt_hash": prompt_hash([self]),
            "relation": case.relation,
            "seed": self.picture.seed,
            "scores": {name: _rounded(value) for name, value in self.scores.items()},
            "oracle": None if self.verdict is None else dataclasses.asdict(self.verdict),
            "failures": self.failures,
        }


def prompt_hash(rows: Iterable[Row]) -> str:
    """SHA-256 over the prompts and predicates that were scored, whatever their order."""
    told = sorted({f"{row.picture.case.text}\0{row.predicate}" for row in rows})
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]


@dataclass
class Scorer:
    """Scores pictures.

    Attributes:
        stores: by encoder, clip, dino and dinov2, those that are there.
        profiles: in the order of the columns.
        judge: of the embedded world; None without.
        oracle_hash: names its oracle.
        seed: of the bootstrap.
    """

    stores: Mapping[str, FeatureStore]
    profiles: Sequence[str]
    judge: Judge | None = None
    oracle_hash: str = ""
    seed: int = 0

    def columns(self) -> tuple[list[Column], list[str]]:
        """The columns that can be had, and in words those that cannot."""
        found, lacking = [], []
        if self.judge:
            found = [Column(f"oracle {n}", "oracle", n, _ORACLE_SAYS[n], self.oracle_hash) for n in ORACLE]
        for profile in self.profiles:
            for metric in PROFILES[profile]:
                name = f"{profile} {metric.name}"
                if metric.encoder in self.stores:
                    digest = self.stores[metric.encoder].encoder.hash
                    found.append(Column(name, profile, metric.name, metric.definition, digest, metric))
                else:
                    lacking.append(f"{name}: no {metric.encoder} encoder; give --{metric.encoder} FOLDER")
        return found, lacking

    def rows(self, pictures: Sequence[Picture]) -> list[Row]:
        """One row a picture, in their order."""
        rows = [Row(picture) for picture in pictures]
        self._predicates(rows)
        self._encode(rows)
        if self.judge:
            self._verdicts(rows)
        for column in self.columns()[0]:
            values = self._oracle(rows, column.name) if column.metric is None else self._metric(rows, column.metric)
            for row, value in zip(rows, values, strict=True):
                row.scores[column.id] = value
        self._failures(rows)
        return rows

    def _encode(self, rows: Sequence[Row]) -> None:
        """Everything that is scored whole, in one go an encoder: what comes later finds it at hand."""
        cases = {row.picture.case.id: row.picture.case for row in rows}.values()
        real = [
            path for thing in (t for case in cases for t in case.objects) for path in (thing.image, *thing.references)
        ]
        for store in self.stores.values():
            store.images((path, None) for path in (*(row.picture.path for row in rows), *real))
            if store.encoder.texts is not None:
                store.texts(list({text for row in rows for text in (row.picture.case.text, row.predicate) if text}))

    def _predicates(self, rows: Sequence[Row]) -> None:
        known: dict[str, tuple[str, str]] = {}
        for row in rows:
            case = row.picture.case
            if case.id not in known:
                known[case.id] = predicate(case.text, [thing.name for thing in case.objects], case.predicate)
            row.predicate, row.source = known[case.id]

    def _verdicts(self, rows: Sequence[Row]) -> None:
        assert self.judge is not None
        drawn = [(row, row.picture.case.truth) for row in rows if row.picture.case.truth]
        for name in dict.fromkeys(truth.relation.name for _, truth in drawn):
            same = [(row, truth) for row, truth in drawn if truth.relation.name == name]
            for first in range(0, len(same), _BATCH):
                batch = same[first : first + _BATCH]
                images = [read_image(row.picture.path) for row, _ in batch]
                verdicts = self.judge(images, [truth for _, truth in batch])
                for (row, _), verdict in zip(batch, verdicts, strict=True):
                    row.verdict = verdict

    def _oracle(self, rows: Sequence[Row], name: str) -> list[float | None]:
        found: list[float | None] = []
        for row in rows:
            verdict = row.verdict
            value: Any = None
            if verdict is not None and name == "direction":
                value = None if verdict.direction is None else verdict.relation and verdict.direction
            elif verdict is not None:
                value = {"contact": verdict.touching}.get(name, getattr(verdict, name))
            found.append(None if value is None else float(value))
        return found

    def _metric(self, rows: Sequence[Row], metric: Metric) -> list[float | None]:
        store = self.stores[metric.encoder]
        found: list[float | None] = [None] * len(rows)
        if metric.kind in ("prompt", "predicate"):
            texts = [row.picture.case.text if metric.kind == "prompt" else row.predicate for row in rows]
            kept = [k for k, text in enumerate(texts) if text]
            features = store.images([(rows[k].picture.path, None) for k in kept])
            words = store.texts([texts[k] for k in kept])
            for k, image, text in zip(kept, features, words, strict=True):
                found[k] = text_alignment(image, text, metric.factor, metric.clamped)
            return found
        kept = [k for k, row in enumerate(rows) if row.picture.case.objects]
        real = {}
        for case in {rows[k].picture.case.id: rows[k].picture.case for k in kept}.values():
            real[case.id] = [np.stack(store.images((p, None) for p in _real(thing, metric))) for thing in case.objects]
        if metric.kind == "image":
            features = store.images([(rows[k].picture.path, None) for k in kept])
            for k, image in zip(kept, features, strict=True):
                found[k] = image_alignment(image, real[rows[k].picture.case.id], metric.factor)
            return found
        crops = self._crops(rows, store)
        for k in kept:
            if (parts := crops[k]) is not None:
                found[k] = crop_alignment(parts, real[rows[k].picture.case.id], metric.factor)
        return found

    def _crops(self, rows: Sequence[Row], store: FeatureStore) -> list[list[np.ndarray | None] | None]:
        """Per picture the features of what lies in its objects' boxes; None where nobody tells the boxes."""
        boxes = [_boxes(row) for row in rows]
        items = [(row.picture.path, box) for row, own in zip(rows, boxes, strict=True) for box in own or () if box]
        features = iter(store.images(items))
        return [None if own is None else [next(features) if box else None for box in own] for own in boxes]

    def _failures(self, rows: Sequence[Row]) -> None:
        store = self.stores.get("dino") or self.stores.get("clip")
        crops = self._crops(rows, store) if store else [None] * len(rows)
        likeness: list[float | None] = []
        for row, parts in zip(rows, crops, strict=True):
            things = row.picture.case.objects
            prompts = store.images((thing.image, None) for thing in things) if store else []
            if row.verdict is not None:
                row.failures = failures.of_verdict(row.verdict)
            elif parts is not None:
                row.failures = failures.of_crops(parts, prompts, row.picture.found)
            else:
                row.failures = dict.fromkeys(failures.TYPES)
            # With one object and no box the whole picture is what may have been copied.
            whole = store is not None and parts is None and len(things) == 1
            shown = store.images([(row.picture.path, None)]) if store and whole else parts or []
            likeness.append(failures.likeness(shown, prompts) if shown else None)
        limits = self._copy_limits(rows, likeness)
        for row, value, limit in zip(rows, likeness, limits, strict=True):
            row.failures[failures.COPY] = None if value is None or limit is None else value > limit

    def _copy_limits(self, rows: Sequence[Row], likeness: Sequence[float | None]) -> list[float | None]:
        """Per picture, the likeness to an image prompt beyond which it is a copy.

        In the embedded world what 99 of 100 true scenes of the relation stay under; elsewhere what 95 of 100 pairs of
        real pictures of one subject do. None where there is neither.
        """
        store = self.stores.get("dino") or self.stores.get("clip")
        cases = [row.picture.case for row in rows if row.verdict is None]
        pairs = [value for values in _between(store, cases).values() for value in values] if store else []
        real = float(np.quantile(pairs, _REAL_SHARE)) if pairs else None
        true: dict[str, list[float]] = {}
        for row, value in zip(rows, likeness, strict=True):
            if row.picture.run == TRUTH and value is not None:
                true.setdefault(row.picture.case.group, []).append(value)
        drawn = {group: float(np.quantile(values, _TRUE_SHARE)) for group, values in true.items()}
        return [real if row.verdict is None else drawn.get(row.picture.case.group) for row in rows]

    def content(self, rows: Sequence[Row], runs: Sequence[str]) -> dict[str, Any]:
        """Everything that a report says of the scores, as plain data.

        Args:
            runs: their names in the order of the table.
        """
        columns, lacking = self.columns()
        shown = [c for c in columns if any(row.scores[c.id] is not None for row in rows)]
        lacking += [f"{c.id}: no picture has what it needs" for c in columns if c not in shown]
        if any(c.metric and c.metric.kind == "crop" for c in shown):
            asked = [r.picture for r in rows if r.verdict is None and r.picture.boxes and not r.picture.found]
            named = dict.fromkeys(picture.run for picture in asked)
            lacking += [f"{run}: the 0 of crops for a missing object; boxes were only asked for" for run in named]
        groups = sorted({row.picture.case.group for row in rows} - {""})
        return {
            "columns": {c.id: c.facts() for c in shown},
            "table": {run: self._cells([r for r in rows if r.picture.run == run], shown) for run in runs},
            "groups": {
                group: {
                    run: self._cells([r for r in rows if r.picture.run == run and r.picture.case.group == group], shown)
                    for run in runs
                }
                for group in (groups if len(groups) > 1 else [])
            },
            "tests": {c.id: self._tests(rows, runs, c.id) for c in shown},
            "winners": {c.id: self._winner(rows, runs, c.id) for c in shown},
            "bounds": {c.id: self._bounds(rows, c) for c in shown if c.metric},
            "failures": {run: _failure_counts([r for r in rows if r.picture.run == run]) for run in runs},
            "rank_correlation": self._rank(rows, shown),
            "predicates": dict(Counter(source for _, source in {(r.picture.case.id, r.source) for r in rows})),
            "left_out": lacking,
        }

    def _cells(self, rows: Sequence[Row], columns: Sequence[Column]) -> dict[str, Any]:
        return {c.id: self._cell(rows, c.id) for c in columns}

    def _cell(self, rows: Sequence[Row], column: str) -> dict[str, Any]:
        """Mean over cases of the mean over a case's pictures, with all that the number belongs to."""
        used = [row for row in rows if row.scores[column] is not None]
        found = interval(list(by_case(used, column).values()), self.seed)
        return {**{k: _rounded(v) for k, v in found.items()}, "n": len(used), "prompt_hash": prompt_hash(used)}

    def _tests(self, rows: Sequence[Row], runs: Sequence[str], column: str) -> list[dict[str, Any]]:
        found = []
        for a, b in itertools.combinations([run for run in runs if run != TRUTH], 2):
            first, second = (by_case([r for r in rows if r.picture.run == run], column) for run in (a, b))
            both = [case for case in first if case in second]
            result = paired([first[c] for c in both], [second[c] for c in both], self.seed)
            found.append({"a": a, "b": b, **{key: _rounded(value) for key, value in result.items()}})
        return found

    def _winner(self, rows: Sequence[Row], runs: Sequence[str], column: str) -> dict[str, Any] | None:
        """The runs of the highest mean, and whether it is one that differs from all others (p < 0.05, uncorrected).

        Only cases that all compared runs share count: an easier part of the benchmark is no merit. None without any.
        """
        told = [row for row in rows if row.scores[column] is not None and row.picture.run != TRUTH]
        own = [{row.picture.case.id for row in told if row.picture.run == run} for run in runs]
        shared = set.intersection(*(cases for cases in own if cases)) if told else set()
        rows = [row for row in told if row.picture.case.id in shared]
        means = {run: self._cell([r for r in rows if r.picture.run == run], column)["mean"] for run in runs}
        known = {run: mean for run, mean in means.items() if mean is not None}
        if len(known) < 2:
            return None
        best = [run for run in known if known[run] == max(known.values())]
        against = [t for t in self._tests(rows, runs, column) if best[0] in (t["a"], t["b"]) and t["p"] is not None]
        alone = len(best) == 1 and bool(against)
        return {"runs": best, "significant": alone and all(t["p"] < _SIGNIFICANT for t in against)}

    def _bounds(self, rows: Sequence[Row], column: Column) -> dict[str, Any]:
        """What a column can say at most and at least: see docs/eval.md."""
        metric = column.metric
        assert metric is not None
        store, cases = self.stores[metric.encoder], [row.picture.case for row in rows]
        if metric.kind in ("image", "crop"):
            same = [float(np.mean(values)) for values in _between(store, cases).values() if values]
            other = _across(store, cases)
            return {
                "ceiling": _scaled(interval(same, self.seed), metric.factor),
                "floor": _scaled(interval(other, self.seed), metric.factor),
            }
        words = {r.picture.case.text if metric.kind == "prompt" else r.predicate for r in rows} - {""}
        listed = sorted(words)
        if len(listed) < 2:
            return {"ceiling": None, "floor": None}
        texts = np.stack(store.texts(listed))
        used = [row for row in rows if row.picture.run != TRUTH and row.scores[column.id] is not None]
        if not used:
            return {"ceiling": None, "floor": None}
        table = cosine(np.stack(store.images((row.picture.path, None) for row in used)), texts)
        own = [listed.index(r.picture.case.text if metric.kind == "prompt" else r.predicate) for r in used]
        if metric.clamped:
            table = np.maximum(table, 0)
        others = (table.sum(axis=1) - table[np.arange(len(own)), own]) / (len(listed) - 1)
        return {"ceiling": None, "floor": _scaled(interval(others, self.seed), metric.factor)}

    def _rank(self, rows: Sequence[Row], columns: Sequence[Column]) -> dict[str, Any]:
        """How CLIP-R ranks pictures of one relation beside how the oracle does, by relation and over all."""
        clip_r = next((c.id for c in columns if c.metric and c.metric.kind == "predicate"), None)
        if clip_r is None or self.judge is None:
            return {}
        used = [r for r in rows if r.verdict is not None and r.scores[clip_r] is not None and r.picture.run != TRUTH]
        found = {}
        centred: list[float] = []
        for group in dict.fromkeys(r.picture.case.group for r in used):
            same = [r for r in used if r.picture.case.group == group]
            values = [float(r.scores[clip_r] or 0) for r in same]
            found[group] = self._rho(same, values)
        means = {g: np.mean([float(r.scores[clip_r] or 0) for r in used if r.picture.case.group == g]) for g in found}
        # Words of different relations lie at different levels, which says nothing of the pictures.
        centred = [float(r.scores[clip_r] or 0) - float(means[r.picture.case.group]) for r in used]
        return {"all": self._rho(used, centred), "by_group": found} if used else {}

    def _rho(self, rows: Sequence[Row], values: Sequence[float]) -> dict[str, Any]:
        told = [row.verdict.probability for row in rows if row.verdict is not None]
        result = rank_interval(values, told, [row.picture.case.id for row in rows], self.seed)
        return {key: _rounded(value) for key, value in result.items()}


def _real(thing: Any, metric: Metric) -> tuple[Path, ...]:
    return thing.references or (thing.image,) if metric.against == "references" else (thing.image,)


def _boxes(row: Row) -> Sequence[Part | None] | None:
    """Where the objects are: as the oracle saw them, else as the picture's record says."""
    return row.verdict.boxes if row.verdict is not None else row.picture.boxes


def _subjects(cases: Iterable[Case]) -> dict[str, tuple[Path, ...]]:
    return {thing.subject: thing.references or (thing.image,) for case in cases for thing in case.objects}


def _between(store: FeatureStore, cases: Iterable[Case]) -> dict[str, list[float]]:
    """Cosines between different real pictures of one subject, by subject."""
    found = {}
    for name, paths in _subjects(cases).items():
        table = cosine(*[np.stack(store.images((p, None) for p in paths))] * 2)
        found[name] = [float(v) for v in table[np.triu_indices(len(paths), 1)]]
    return found


def _across(store: FeatureStore, cases: Iterable[Case]) -> list[float]:
    """Per subject, the mean cosine of its image prompt with those of all others."""
    firsts = [paths[0] for paths in _subjects(cases).values()]
    if len(firsts) < 2:
        return []
    features = np.stack(store.images((path, None) for path in firsts))
    table = cosine(features, features)
    return [float(v) for v in (table.sum(axis=1) - table.diagonal()) / (len(firsts) - 1)]


def by_case(rows: Iterable[Row], column: str) -> dict[str, float]:
    """Mean over a case's pictures, by case."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if (value := row.scores[column]) is not None:
            found.setdefault(row.picture.case.id, []).append(value)
    return {case: float(np.mean(values)) for case, values in sorted(found.items())}


def _failure_counts(rows: Sequence[Row]) -> dict[str, dict[str, int]]:
    """By type, in how many pictures it is there, of how many where that is known."""
    found = {}
    for name in failures.TYPES:
        told = [row.failures[name] for row in rows if row.failures.get(name) is not None]
        found[name] = {"count": sum(bool(t) for t in told), "known": len(told)}
    return found


def _scaled(found: dict[str, Any], factor: float) -> dict[str, Any] | None:
    if found["mean"] is None:
        return None
    return {key: _rounded(value if key == "cases" else value * factor) for key, value in found.items()}


def _rounded(value: Any) -> Any:
    return round(value, 5) if isinstance(value, float) else value
