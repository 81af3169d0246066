"""From pictures to scores: one row a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rbctl.files import read_image
from rbctl.menagerie.judge import Judge
from rbctl.plugins.eval import failures
from rbctl.plugins.eval.bounds import between
from rbctl.plugins.eval.case import CaseObject, Part, Picture
from rbctl.plugins.eval.features import FeatureStore
from rbctl.plugins.eval.judges import comparing
from rbctl.plugins.eval.judges.judge import AnswerStore
from rbctl.plugins.eval.judges.questions import KINDS, WORDS, questions
from rbctl.plugins.eval.judges.summary import share_right
from rbctl.plugins.eval.metrics import PROFILES, Metric, crop_alignment, image_alignment, text_alignment
from rbctl.plugins.eval.predicates import predicate
from rbctl.plugins.eval.rows import TRUTH, Column, Row

ORACLE = ("relation", "direction", "contact", "identity")
_ORACLE_SAYS = {
    "relation": "the relation asked for is the likeliest, by the embedded world's oracle",
    "direction": "and its subject plays the subject's part; symmetric relations have none",
    "contact": "what must touch is as near as in 95 of 100 true scenes",
    "identity": "individuals told from 15 others, mean over them",
}
_REAL_SHARE, _TRUE_SHARE = 0.95, 0.99  # see Scorer._copy_limits
_BATCH = 64


@dataclass
class Scorer:
    """Scores pictures.

    Attributes:
        stores: by encoder, clip, dino and dinov2, those that are there.
        profiles: in the order of the columns.
        judge: of the embedded world; None without.
        oracle_hash: names its oracle.
        judges: what answers questions of every picture, with the answers that are kept.
    """

    stores: Mapping[str, FeatureStore]
    profiles: Sequence[str]
    judge: Judge | None = None
    oracle_hash: str = ""
    judges: Sequence[AnswerStore] = ()

    def columns(self) -> tuple[list[Column], list[str]]:
        """The columns that can be had, and in words those that cannot."""
        columns, lacking = [], []
        if self.judge:
            columns = [Column(f"oracle {n}", "oracle", n, _ORACLE_SAYS[n], self.oracle_hash) for n in ORACLE]
        for judge in (store.judge for store in self.judges):
            columns += [
                Column(f"{judge.name} {kind}", f"judge {judge.name}", kind, WORDS[kind], judge.hash, judge=judge.name)
                for kind in KINDS
            ]
        for profile in self.profiles:
            for metric in PROFILES[profile]:
                name = f"{profile} {metric.name}"
                if metric.encoder in self.stores:
                    digest = self.stores[metric.encoder].encoder.hash
                    columns.append(Column(name, profile, metric.name, metric.definition, digest, metric))
                else:
                    lacking.append(f"{name}: no {metric.encoder} encoder; give --{metric.encoder} FOLDER")
        return columns, lacking

    def rows(self, pictures: Sequence[Picture]) -> list[Row]:
        """One row a picture, in their order."""
        rows = [Row(picture) for picture in pictures]
        self._predicates(rows)
        self._encode(rows)
        if self.judge:
            self._verdicts(rows)
        for store in self.judges:
            self._ask(rows, store)
        for column in self.columns()[0]:
            values = self._values(rows, column)
            for row, value in zip(rows, values, strict=True):
                row.scores[column.id] = value
        self._failures(rows)
        return rows

    def _values(self, rows: Sequence[Row], column: Column) -> Sequence[float | None]:
        if column.metric is not None:
            return self._metric(rows, column.metric)
        if column.judge:
            return [share_right(row.answers[column.judge], column.name) for row in rows]
        return self._oracle(rows, column.name)

    def _ask(self, rows: Sequence[Row], store: AnswerStore) -> None:
        asked = {row.picture.case.id: questions(row.picture.case) for row in rows}
        items = [(row.picture, question) for row in rows for question in asked[row.picture.case.id]]
        answers = iter(store(items))
        for row in rows:
            row.answers[store.judge.name] = [(question, next(answers)) for question in asked[row.picture.case.id]]

    def wins(self, rows: Sequence[Row], pairwise: bool) -> dict[str, Any]:
        """By judge which run wins how often, and the runs' strengths (``judges.comparing``)."""
        return {store.judge.name: comparing.wins(rows, store, pairwise) for store in self.judges}

    def _encode(self, rows: Sequence[Row]) -> None:
        """Everything that is scored whole, in one go an encoder: what comes later finds it at hand."""
        cases = {row.picture.case.id: row.picture.case for row in rows}.values()
        real = [
            path
            for individual in (t for case in cases for t in case.objects)
            for path in (individual.image, *individual.references)
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
                known[case.id] = predicate(case.text, [individual.name for individual in case.objects], case.predicate)
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
        scores: list[float | None] = []
        for row in rows:
            verdict = row.verdict
            value: Any = None
            if verdict is not None and name == "direction":
                value = None if verdict.direction is None else verdict.relation and verdict.direction
            elif verdict is not None:
                value = {"contact": verdict.touching}.get(name, getattr(verdict, name))
            scores.append(None if value is None else float(value))
        return scores

    def _metric(self, rows: Sequence[Row], metric: Metric) -> list[float | None]:
        store = self.stores[metric.encoder]
        scores: list[float | None] = [None] * len(rows)
        if metric.kind in ("prompt", "predicate"):
            texts = [row.picture.case.text if metric.kind == "prompt" else row.predicate for row in rows]
            kept = [k for k, text in enumerate(texts) if text]
            features = store.images([(rows[k].picture.path, None) for k in kept])
            words = store.texts([texts[k] for k in kept])
            for k, image, text in zip(kept, features, words, strict=True):
                scores[k] = text_alignment(image, text, metric.factor, metric.clamped)
            return scores
        kept = [k for k, row in enumerate(rows) if row.picture.case.objects]
        real = {}
        for case in {rows[k].picture.case.id: rows[k].picture.case for k in kept}.values():
            real[case.id] = [
                np.stack(store.images((p, None) for p in _real(individual, metric))) for individual in case.objects
            ]
        if metric.kind == "image":
            features = store.images([(rows[k].picture.path, None) for k in kept])
            for k, image in zip(kept, features, strict=True):
                scores[k] = image_alignment(image, real[rows[k].picture.case.id], metric.factor)
            return scores
        crops = self._crops(rows, store)
        for k in kept:
            if (parts := crops[k]) is not None:
                scores[k] = crop_alignment(parts, real[rows[k].picture.case.id], metric.factor)
        return scores

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
            individuals = row.picture.case.objects
            prompts = store.images((individual.image, None) for individual in individuals) if store else []
            if row.verdict is not None:
                row.failures = failures.of_verdict(row.verdict)
            elif parts is not None:
                row.failures = failures.of_crops(parts, prompts, row.picture.detected)
            else:
                row.failures = dict.fromkeys(failures.TYPES)
            # With one object and no box the whole picture is what may have been copied.
            whole = store is not None and parts is None and len(individuals) == 1
            shown = store.images([(row.picture.path, None)]) if store and whole else parts or []
            likeness.append(failures.likeness(shown, prompts) if shown else None)
        limits = self._copy_limits(rows, likeness)
        for row, value, limit in zip(rows, likeness, limits, strict=True):
            row.failures[failures.COPY] = None if value is None or limit is None else value > limit
            for answers in row.answers.values():
                of_judge = failures.of_answers(answers)
                row.failures = {k: of_judge[k] if there is None else there for k, there in row.failures.items()}

    def _copy_limits(self, rows: Sequence[Row], likeness: Sequence[float | None]) -> list[float | None]:
        """Per picture, the likeness to an image prompt beyond which it is a copy.

        In the embedded world what 99 of 100 true scenes of the relation stay under; elsewhere what 95 of 100 pairs of
        real pictures of one subject do. None where there is neither.
        """
        store = self.stores.get("dino") or self.stores.get("clip")
        cases = [row.picture.case for row in rows if row.verdict is None]
        pairs = [value for values in between(store, cases).values() for value in values] if store else []
        real = float(np.quantile(pairs, _REAL_SHARE)) if pairs else None
        true: dict[str, list[float]] = {}
        for row, value in zip(rows, likeness, strict=True):
            if row.picture.run == TRUTH and value is not None:
                true.setdefault(row.picture.case.group, []).append(value)
        drawn = {group: float(np.quantile(values, _TRUE_SHARE)) for group, values in true.items()}
        return [real if row.verdict is None else drawn.get(row.picture.case.group) for row in rows]


def _real(individual: CaseObject, metric: Metric) -> tuple[Path, ...]:
    return individual.references or (individual.image,) if metric.against == "references" else (individual.image,)


def _boxes(row: Row) -> Sequence[Part | None] | None:
    """Where the objects are: as the oracle saw them, else as the picture's record says."""
    return row.verdict.boxes if row.verdict is not None else row.picture.boxes
