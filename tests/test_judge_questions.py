"""What judges are asked, and their answers on disk."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from PIL import Image

from rbctl.errors import InputError
from rbctl.files import write_png
from rbctl.plugins.eval.case import Case, CaseObject, Picture
from rbctl.plugins.eval.features import Digests
from rbctl.plugins.eval.judges.judge import Answer, AnswerStore, Item
from rbctl.plugins.eval.judges.questions import questions


def case(text: str, *names: str, relation: str = "") -> Case:
    return Case("case", text, tuple(CaseObject(name, Path(f"{name}.png")) for name in names), relation=relation)


def asked(of: Case) -> dict[str, str]:
    return {question.id: question.text for question in questions(of)}


def test_an_asymmetric_relation_is_asked_both_ways() -> None:
    texts = asked(case("A cat is riding a bear.", "cat", "bear", relation="ride"))
    assert texts["relation 0 1"] == 'Is this sentence true of the picture? "A cat is riding a bear."'
    assert texts["exchanged 0 1"] == 'Is this sentence true of the picture? "A bear is riding a cat."'
    assert texts["contact 0 1"] == "Do the cat and the bear touch each other?"


def test_roles_are_read_from_the_text_where_they_stand_in_another_order() -> None:
    texts = asked(case("A bear is being ridden by a cat.", "bear", "cat"))
    assert texts["relation 0 1"] == 'Is this sentence true of the picture? "A cat is riding a bear."'
    assert texts["exchanged 1 0"] == 'Is this sentence true of the picture? "A bear is riding a cat."'


def test_nobody_is_asked_to_exchange_roles_of_a_symmetric_relation_or_of_one_name() -> None:
    assert not [name for name in asked(case("A cat is hugging a bear.", "cat", "bear")) if "exchanged" in name]
    assert not [name for name in asked(case("A cat is riding a cat.", "cat", "cat")) if "exchanged" in name]


def test_individuals_of_one_name_are_counted_together() -> None:
    texts = asked(case("A cat is riding a cat.", "cat", "cat"))
    assert texts["once 0 1"] == "Does the picture show exactly 2 of these: cat?"
    assert "once 0" not in texts


def test_a_text_of_no_known_relation_is_asked_as_it_is() -> None:
    texts = asked(case("A cat juggles a bear.", "cat", "bear", relation="juggle"))
    assert texts["relation 0 1"] == 'Is this sentence true of the picture? "A cat juggles a bear."'
    assert not [name for name in texts if name.startswith(("exchanged", "contact"))]


def test_a_relation_file_says_how_it_is_asked(tmp_path: Path) -> None:
    path = tmp_path / "tickle.yaml"
    path.write_text(
        "name: tickle\npredicate: is tickling\nprompts: ['A {subject} is tickling a {object}.']\n"
        "questions: {relation: 'Are the fingers of the {tickler} on the {victim}?', contact: "
        "'Does the {subject} reach the {object}?'}\n"
        "roles: [{name: tickler, box: [0, 0, 0.5, 1]}, {name: victim, box: [0.5, 0, 1, 1]}]\n"
    )
    texts = asked(dataclasses.replace(case("A cat is tickling a bear.", "cat", "bear"), spoken_to=str(path)))
    assert texts["relation 0 1"] == "Are the fingers of the cat on the bear?"
    assert texts["exchanged 0 1"] == "Are the fingers of the bear on the cat?"
    assert texts["contact 0 1"] == "Does the cat reach the bear?"


@dataclass
class Recorder:
    """Says yes to everything, remembers what it was asked, and falls silent after ``most`` answers."""

    paid: bool = False
    most: int = 100
    name: str = "recorder"
    hash: str = "recorder"
    heard: list[str] = field(default_factory=list)

    def __call__(self, items: Sequence[Item]) -> Iterator[Answer]:
        for _, question in items:
            if len(self.heard) == self.most:
                raise InputError("recorder: the budget has ended")
            self.heard.append(question.id)
            yield Answer(0.75, "yes")


@pytest.fixture
def items(tmp_path: Path) -> list[Item]:
    pictures = []
    for k, name in enumerate(("cat.png", "bear.png", "a.png", "b.png")):
        write_png(tmp_path / name, Image.new("RGB", (4, 4), (60 * k, 0, 0)))
    objects = tuple(CaseObject(name, tmp_path / f"{name}.png") for name in ("cat", "bear"))
    for name in ("a", "b"):
        pictures.append(Picture("run", tmp_path / f"{name}.png", Case(name, "A cat is riding a bear.", objects)))
    return [(picture, question) for picture in pictures for question in questions(picture.case)]


def test_no_question_is_asked_twice(tmp_path: Path, items: list[Item]) -> None:
    judge = Recorder()
    first = AnswerStore(tmp_path / "answers", judge, Digests(), batch_size=3)(items)
    assert first == [Answer(0.75, "yes")] * len(items)
    assert len(judge.heard) == len(items)
    assert AnswerStore(tmp_path / "answers", judge, Digests())(items[::-1]) == first
    assert len(judge.heard) == len(items)


@pytest.mark.parametrize("paid", [False, True])
def test_answers_before_an_end_are_kept(tmp_path: Path, items: list[Item], paid: bool) -> None:
    with pytest.raises(InputError, match="budget"):
        AnswerStore(tmp_path / "answers", Recorder(paid, most=5), Digests(), batch_size=100)(items)
    rest = Recorder(paid)
    AnswerStore(tmp_path / "answers", rest, Digests())(items)
    assert len(rest.heard) == len(items) - 5


def test_another_image_prompt_is_another_question(tmp_path: Path, items: list[Item]) -> None:
    AnswerStore(tmp_path / "answers", Recorder(), Digests())(items)
    write_png(tmp_path / "cat.png", Image.new("RGB", (4, 4), "blue"))
    judge = Recorder()
    AnswerStore(tmp_path / "answers", judge, Digests())(items)
    assert sorted(set(judge.heard)) == ["copied 0", "same 0"]


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"KEY": 3}', '{"KEY": {"yes": 1.5, "text": ""}}', '{"KEY": {"yes": true}}']
)
def test_what_is_no_answer_is_asked_again(tmp_path: Path, items: list[Item], content: str) -> None:
    store = AnswerStore(tmp_path / "answers", Recorder(), Digests())
    store(items[:1])
    (path,) = (tmp_path / "answers" / "recorder").iterdir()
    key = path.read_text().split('"')[1]
    path.write_text(content.replace("KEY", key))
    judge = Recorder()
    assert AnswerStore(tmp_path / "answers", judge, Digests())(items[:1]) == [Answer(0.75, "yes")]
    assert judge.heard == ["present 0"]
