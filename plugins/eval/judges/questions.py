"""What is asked of a picture: questions with yes or no, made from its case and the YAML of the case's relation."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from rbctl.errors import InputError
from rbctl.plugins.eval.case import Case
from rbctl.relations import Relation, load_relation, shipped
from rbctl.roles import find_relation, read_roles
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
        second: shown beside the picture: the individual's image prompt, or another result of the case.
        statement, against: for what reads no questions: the words that are true where the answer is yes, and others
            that are true where it is no; "" for none.
    """

    kind: Kind | Literal["preferred"]
    text: str
    individuals: tuple[int, ...]
    wanted: bool = True
    second: Path | None = None
    statement: str = ""
    against: str = ""

    @property
    def id(self) -> str:
        """The kind and whom it is about, "contact 0 1": unique within a case."""
        return " ".join((self.kind, *map(str, self.individuals)))


def questions(case: Case) -> tuple[Question, ...]:
    """All questions of a case, by kind in the order of ``KINDS``."""
    names = [individual.name for individual in case.objects]
    everybody = tuple(range(len(names)))
    if not all(names):  # a list may leave them out; then only the text says what there is
        return (Question("relation", _whether(case.text), everybody),)
    asked = [
        Question("present", f"Is there any {name} in the picture?", (k,), statement=name)
        for k, name in enumerate(names)
    ]
    for k, name in enumerate(names):
        count = names.count(name)
        if names.index(name) == k:  # two of one name are counted together
            words = f"exactly one {name}, and no second one" if count == 1 else f"exactly {count} of these: {name}"
            own = tuple(n for n in everybody if names[n] == name)
            asked.append(Question("once", f"Does the picture show {words}?", own))
    asked += _of_relation(case, names)
    if len(names) > 1:
        listed = " and ".join((", ".join(f"the {name}" for name in names[:-1]), f"the {names[-1]}"))
        words = f"Do {listed} have a whole body each, separate and not grown together?"
        asked.append(Question("bodies", words, everybody))
    for k, name in enumerate(names):
        words = f"Is the {name} of the first picture the very one of the second picture?"
        asked.append(Question("same", words, (k,), second=case.objects[k].image))
    for k, name in enumerate(names):
        words = f"Has the {name} of the first picture the same pose as the one of the second picture?"
        asked.append(Question("copied", words, (k,), wanted=False, second=case.objects[k].image))
    return tuple(asked)


def preferred(case: Case, second: Path) -> Question:
    """Whether a picture shows a case better than another one does; asked in both orders by who compares."""
    words = f'Does the first picture show this better than the second one does? "{case.text}"'
    return Question("preferred", words, tuple(range(len(case.objects))), second=second)


def relation_of(case: Case) -> Relation | None:
    """The relation of a case as data: by its name, else by the words of its text; None where rbctl has none of it."""
    if case.truth is not None:
        return case.truth.relation
    if case.spoken_to:
        return load_relation(case.spoken_to)
    with contextlib.suppress(InputError):  # a benchmark or a folder may have words of its own
        if case.relation:
            return load_relation(case.relation)
    return find_relation(case.text, map(load_relation, shipped()), [individual.name for individual in case.objects])


def cast(case: Case, relation: Relation) -> tuple[int, ...]:
    """By role the number of its individual: as the case says, else as its text does, else in their order."""
    roles, named = [role.name for role in relation.roles], [individual.role for individual in case.objects]
    if sorted(roles) == sorted(named):
        return tuple(named.index(role) for role in roles)
    names = [individual.name for individual in case.objects]
    return read_roles(case.text, names, relation).individuals or tuple(range(len(names)))


def _of_relation(case: Case, names: Sequence[str]) -> list[Question]:
    """Whether the relation holds, with its roles exchanged too, and who touches whom."""
    everybody, relation = tuple(range(len(names))), relation_of(case)
    if relation is None or len(relation.roles) != len(names):
        return [Question("relation", _whether(case.text), everybody, statement=case.text)]
    roles = cast(case, relation)
    players = [names[k] for k in roles]
    own = relation.questions.relation

    def holds(players: Sequence[str]) -> str:
        return relation.filled(own, players) if own else _whether(relation.prompt(players))

    right, wrong = relation.prompt(players), " and ".join(players)
    if pair := _exchangeable(relation, players):
        turned = list(players)
        turned[pair[0]], turned[pair[1]] = players[pair[1]], players[pair[0]]
        wrong = relation.prompt(turned)
    asked = [Question("relation", holds(players), everybody, statement=right, against=wrong)]
    if pair:
        either = (roles[pair[0]], roles[pair[1]])
        asked.append(Question("exchanged", holds(turned), either, wanted=False, statement=wrong, against=right))
    words = relation.questions.contact or "Do the {subject} and the {object} touch each other?"
    for a, b in _touching(relation):
        text = fill(words, subject=players[a], object=players[b])
        asked.append(Question("contact", text, (roles[a], roles[b])))
    return asked


def _whether(sentence: str) -> str:
    return f'Is this sentence true of the picture? "{sentence}"'


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
