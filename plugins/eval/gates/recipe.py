"""The recipe of gates: sections of figures, each with the limit that it must keep."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from annotated_types import Interval, MinLen

from rbctl.defaults import BUNDLE
from rbctl.errors import InputError, abridged, nearest, shortlist
from rbctl.formats import read_yaml
from rbctl.options import find_recipe
from rbctl.plugins.eval.stages import SEED, Options
from rbctl.relations import load_relation

METRICS = (
    "relation", "directed", "direction", "contact", "touching",
    "species", "coat", "second", "pattern", "identity", "role_identity",
    "complete", "merged", "extra_head",
)  # fmt: skip
ARMS = ("base", "base_true_boxes", "truth", "lora", "lora_true_boxes", "box_only")
FIGURES: dict[str, tuple[str, ...]] = {
    "oracle": tuple(f"{shown}.{metric}" for shown in ("renders", "round_trips") for metric in METRICS),
    "vae": ("psnr", "psnr_in_boxes", "oracle_on_renders", "oracle_on_round_trips", "oracle_kept"),
    "base": (
        *(f"{taught}.{metric}" for taught in ("easy", "held_out") for metric in METRICS),
        "held_out_highest", "kernel_distance",
    ),
    "lora": (
        *(f"{arm}.{metric}" for arm in ARMS for metric in METRICS),
        "gain.over_base", "gain.over_the_same_boxes", "gain.over_base_true_boxes",
        "colour_change.from_base", "colour_change.from_the_same_boxes", "colour_change.from_renders",
        "contact_ratio.base", "contact_ratio.box_only", "mean_contact_ratio.base", "mean_contact_ratio.box_only",
        "easy_drop", "steps",
    ),
    "quality": tuple(f"{end}.{metric}" for end in ("change", "change_low", "change_high") for metric in METRICS),
    "speed": ("seconds_of_a_finetuning", "seconds_of_8_pictures"),
}  # fmt: skip
# A smoke test: everything runs, nothing is learnt.
_QUICK_FINETUNE = {"steps": 2, "batch_size": 2, "micro_batch_size": 2, "prior_count": 2, "triplets": 2}
_QUICK_SAMPLE = {"steps": 2}

Count = Annotated[int, Interval(ge=1, le=100_000)]
Relations = Annotated[tuple[str, ...], MinLen(1)]


@dataclass(frozen=True)
class Gate:
    """A figure and what it must keep.

    Attributes:
        figure: one of ``FIGURES`` of what the section measures.
    """

    figure: str
    at_least: float | None = None
    at_most: float | None = None

    def __post_init__(self) -> None:
        if self.at_least is None and self.at_most is None:
            raise ValueError("at_least or at_most is missing")


@dataclass(frozen=True)
class Section:
    """What is measured together.

    Attributes:
        measures: what; the section's own name where it says nothing.
        relations: what is measured, instead of the recipe's: those that LoRAs are tuned on; of ``oracle`` and ``base``
            all of them.
    """

    gates: dict[str, Gate]
    measures: str = ""
    relations: tuple[str, ...] = ()


@dataclass(frozen=True)
class Gates:
    """What a bundle must be able to do.

    Attributes:
        easy, held_out: relations that the bundle was and was not taught.
        relations: that LoRAs are tuned on: names, or YAML files beside the recipe.
        scenes: of a section, spread over its relations.
        easy_scenes: of each easy relation, which every LoRA is tried on.
        seeds: of the LoRAs, and of the noise of easy relations without one.
        finetune, sample: options of the two stages.
    """

    sections: dict[str, Section]
    easy: Relations
    held_out: tuple[str, ...]
    relations: Relations
    bundle: str = BUNDLE
    scenes: Count = 200
    easy_scenes: Count = 4
    seeds: Annotated[tuple[Annotated[int, SEED], ...], MinLen(1)] = (0,)
    finetune: Options = field(default_factory=dict)
    sample: Options = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, section in self.sections.items():
            known = FIGURES.get(section.measures or name)
            if known is None:
                raise ValueError(f"sections.{name}: measures is missing; one of {shortlist(FIGURES)}")
            for title, gate in section.gates.items():
                if gate.figure not in known:
                    mend = nearest(gate.figure, known) or f"; figures: {shortlist(known)}"
                    raise ValueError(f"sections.{name}: {title}: no figure {abridged(gate.figure)}{mend}")

    def quick(self) -> Gates:
        """One scene each, one relation, two steps."""
        return dataclasses.replace(
            self,
            scenes=1,
            easy_scenes=1,
            seeds=self.seeds[:1],
            relations=self.relations[:1],
            easy=self.easy[:2],
            held_out=self.relations[:1],
            finetune={**self.finetune, **_QUICK_FINETUNE},
            sample={**self.sample, **_QUICK_SAMPLE},
        )


def read_gates(name: str, changes: Mapping[str, Any], only: Sequence[str] = ()) -> Gates:
    """Read a recipe of gates.

    Args:
        name: path, or name of a shipped one.
        changes: values that win over the recipe's.
        only: names of the sections that are wanted; none for all.

    Raises:
        InputError: a field or a section is wrong; file and field are named.
    """
    path = find_recipe(name, "gates")
    gates = dataclasses.replace(read_yaml(Gates, path), **changes)
    for section in only:
        if section not in gates.sections:
            mend = nearest(section, gates.sections) or f": {shortlist(gates.sections)}"
            raise InputError(f"--only {section}: no such section{mend}")

    def beside(relations: Sequence[str]) -> tuple[str, ...]:
        return tuple(str(path.parent / name) if name.endswith((".yaml", ".yml")) else name for name in relations)

    sections = {
        key: dataclasses.replace(section, measures=section.measures or key, relations=beside(section.relations))
        for key, section in gates.sections.items()
        if not only or key in only
    }
    relations = gates.relations if "relations" in changes else beside(gates.relations)
    from rbctl.menagerie.triplets import check_drawable  # slow

    for relation in relations:
        try:
            check_drawable(load_relation(relation))
        except InputError as error:
            raise InputError(f"{path}: relations: {error}") from error
    held_out = tuple(dict.fromkeys((*gates.held_out, *relations)))
    return dataclasses.replace(gates, sections=sections, relations=relations, held_out=held_out)
