"""What is asked of a picture: questions with yes or no, made from its case and the YAML of the case's relation."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from rbctl.errors import InputError
from rbctl.plugins.eval.case import Case
from rbctl.relations import Relation, load_relation
from rbctl.templates import fill

Kind = Literal["present", "once", "relation", "exchanged", "contact", "bodies", "same", "copied"]
KINDS: tuple[Kind, ...] = get_args(Kind)
WORDS: dict[Kind, str] = {
    "present": "the individual is there",
    "once": "and there is no second one like it",
    "relation": "the prompt's sentence is true of the picture",
    "exchanged": "the sentence with two roles exchanged is true of it",
    "contact": "two that should touch do",
    "bodies": "each has a body of its own",
    "same": "the individual is the one of its image prompt",
    "copied": "and in the pose of its image prompt",
}


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        text: as a person or a model is asked.
        individuals: numbers of the case's objects that it is about.
        wanted: the answer of a picture without fault.
    """

    kind: Kind
    text: str
    individuals: tuple[int, ...]
    wanted: bool = True

    @property
    def beside(self) -> bool:
        """Whether the individual's image prompt is shown as a second picture."""
        return self.kind in ("same", "copied")

    @property
    def id(self) -> str:
        """The kind and whom it is about, "contact 0 1": unique within a case."""
        return " ".join((self.kind, *map(str, self.individuals)))


def questions(case: Case) -> tuple[Question, ...]:
    """All questions of a case, by kind in the order of ``KINDS``."""
    names = [individual.name for individual in case.objects]
    everybody = tuple(range(len(names)))
    relation = relation_of(case)
    asked = [Question("present", f"Is there any {name} in the picture?", (k,)) for k, name in enumerate(names)]
    for k, name in enumerate(names):
        count = names.count(name)
        if names.index(name) == k:  # two of one name are counted together
            words = f"exactly one {name}, and no second one" if count == 1 else f"exactly {count} of these: {name}"
            own = tuple(n for n in everybody if names[n] == name)
            asked.append(Question("once", f"Does the picture show {words}?", own))
    asked.append(Question("relation", _whether(relation, names, case.text), everybody))
    if relation is not None and len(relation.roles) == len(names):
        if pair := _exchangeable(relation, names):
            turned = list(names)
            turned[pair[0]], turned[pair[1]] = names[pair[1]], names[pair[0]]
            asked.append(Question("exchanged", _whether(relation, turned), pair, wanted=False))
        words = relation.questions.contact or "Do the {subject} and the {object} touch each other?"
        for a, b in _touching(relation):
            asked.append(Question("contact", fill(words, subject=names[a], object=names[b]), (a, b)))
    if len(names) > 1:
        listed = " and ".join((", ".join(f"the {name}" for name in names[:-1]), f"the {names[-1]}"))
        words = f"Do {listed} have a whole body each, separate and not grown together?"
        asked.append(Question("bodies", words, everybody))
    for k, name in enumerate(names):
        asked.append(Question("same", f"Is the {name} of the first picture the very one of the second picture?", (k,)))
    for k, name in enumerate(names):
        words = f"Has the {name} of the first picture the same pose as the one of the second picture?"
        asked.append(Question("copied", words, (k,), wanted=False))
    return tuple(asked)


def relation_of(case: Case) -> Relation | None:
    """The relation of a case as data; None where rbctl has none of that name."""
    if case.truth is not None:
        return case.truth.relation
    name = case.spoken_to or case.relation
    try:
        return load_relation(name) if name else None
    except InputError:  # of a benchmark or a folder with words of its own
        return None


def _whether(relation: Relation | None, names: Sequence[str], text: str = "") -> str:
    """Asks for the relation between individuals, or for a text where that says nothing of it."""
    if relation is not None and len(relation.roles) == len(names):
        if relation.questions.relation:
            return relation.filled(relation.questions.relation, names)
        text = relation.prompt(names)
    return f'Is this sentence true of the picture? "{text}"'


def _exchangeable(relation: Relation, names: Sequence[str]) -> tuple[int, int] | None:
    """The first two roles that may not change places and whose individuals have different names."""
    orders = relation.orders()
    for a, b in itertools.combinations(range(len(names)), 2):
        turned = list(range(len(names)))
        turned[a], turned[b] = b, a
        if tuple(turned) not in orders and names[a] != names[b]:
            return a, b
    return None


def _touching(relation: Relation) -> list[tuple[int, int]]:
    """Pairs of roles that touch, by the contacts of the relation's ``scene``, or the two that are asked about."""
    ends = [[int(point.split(".")[0]) for point in pair] for pair in (relation.scene or {}).get("contacts", ())]
    pairs = sorted({(min(a, b), max(a, b)) for a, b in ends if a != b})
    return pairs or ([(0, 1)] if relation.questions.contact and len(relation.roles) > 1 else [])
