"""Relations: the shipped ones hold together, and a user's own is checked key by key."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbctl.errors import InputError
from rbctl.relations import check_box, load_relation, shipped
from rbctl.roles import find_relation

ALL = [load_relation(name) for name in shipped()]

OWN = """
predicate: is juggling
forms: [juggle, juggles]
prompts: ["A {subject} is juggling a {object}."]
roles:
  - {name: juggler, box: [0.2, 0.3, 0.8, 1]}
  - {name: ball, box: [0.3, 0, 0.7, 0.3], description: in the air}
"""


def test_no_other_file_is_opened_as_a_relation(tmp_path: Path) -> None:
    path = tmp_path / "hug"
    path.write_text("secret")
    with pytest.raises(InputError, match="no such relation") as caught:
        load_relation(str(path))
    assert "secret" not in str(caught.value)


def test_the_shipped_relations_are_complete() -> None:
    wanted = {"ride", "hug", "shake_hands", "kiss", "carry", "hold", "high_five", "fight", "dance_with", "lift"}
    wanted |= {"feed", "chase", "sit_on", "whisper_to", "back_to_back", "follow", "push", "pull"}
    assert wanted <= set(shipped())


@pytest.mark.parametrize("relation", ALL, ids=lambda r: r.name)
def test_a_shipped_relation_is_found_in_each_of_its_own_prompts(relation) -> None:
    count, names = len(relation.roles), ["cat", "plush bear", "owl"]
    assert 1 <= count <= 3
    assert all(role.description for role in relation.roles)
    for number in range(len(relation.prompts)):
        text = relation.prompt(names[:count], number)
        assert find_relation(text, ALL, names[:count]) is relation
    for form in relation.forms:
        assert find_relation(f"A cat {form} a dog", ALL, names[:count]) is relation


def test_default_boxes_suit_the_relation() -> None:
    boxes = {r.name: [role.box for role in r.roles] for r in ALL}
    for name in ("ride", "sit_on", "lift"):
        upper, lower = boxes[name] if name != "lift" else boxes[name][::-1]
        assert upper[1] < lower[1] < upper[3] < lower[3], f"{name}: one above the other, overlapping"
    for name in ("hug", "kiss", "dance_with"):
        left, right = boxes[name]
        assert left[0] < right[0] < left[2] < right[2], f"{name}: side by side, overlapping"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("A lion and a polar bear hug.", "hug"),
        ("A cat shakes hands with a dog in the forest.", "shake_hands"),
        ("A cat HIGH-FIVES a dog", "high_five"),
        ("a toy gnome and a dog stand back-to-back", "back_to_back"),
        ("a cat sits on top of a dog", "sit_on"),
        ("A cat (riding) a dog", "ride"),
        ("A cat is riding a dog and rides it well", "ride"),
        ("A bride and a doghouse", None),  # no whole word
        ("A cat rides and hugs a dog", None),  # two relations of equal claim
        ("A cat is chased by a dog", "chase"),
        ("A cat is riding a bike along the road.", "ride_bike"),  # a prop is no individual
        ("A cat rides a motorcycle", "ride_motorbike"),
        ("A dog is lifting weights in a gym.", "lift_weights"),
        ("A dog is lifting a cat.", "lift"),
        ("A cat is hugged by a dog", "hug"),
        ("", None),
    ],
)
def test_find_relation(text: str, name: str | None) -> None:
    found = find_relation(text, ALL)
    assert (found and found.name) == name


@pytest.mark.parametrize(
    ("text", "names", "name"),
    [
        ("A cat is dancing.", ["cat"], "dance"),
        ("A cat and a dog are dancing.", ["cat", "dog"], "dance_with"),
        ("A cat is dancing.", [], "dance_with"),  # of two, where nobody says how many
        ("A cat sits upright.", [], "sit_upright"),
        ("A cat is riding a bicycle.", ["cat"], "ride_bike"),
        ("A cat is riding a dog.", ["cat", "dog"], "ride"),
        ("A cat is sitting near a dog.", ["cat", "dog"], None),  # what one does says nothing of two
        ("A cat, a dog and a fox huddle together.", ["cat", "dog", "fox"], "huddle"),
    ],
)
def test_the_number_of_individuals_tells_relations_apart(text: str, names: list[str], name: str | None) -> None:
    found = find_relation(text, ALL, names)
    assert (found and found.name) == name


def test_a_template_names_any_role_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "swing.yaml"
    path.write_text(
        "predicate: swing\n"
        "prompts: ['A {left} and a {object} swing a {small one}.', 'A {subject}, a {right} and a {small_one} swing.']\n"
        "roles: [{name: left, box: [0, 0, 0.4, 1]}, {name: right, box: [0.6, 0, 1, 1]},"
        " {name: small one, box: [0.3, 0.3, 0.7, 0.7]}]\n"
    )
    with pytest.raises(InputError, match=r"prompts: .*a place is a plain name in braces"):
        load_relation(path)
    path.write_text(path.read_text().replace("{small one}", "{small_one}"))
    relation = load_relation(path)
    assert relation.prompt(["cat", "dog", "owl"]) == "A cat and a dog swing an owl."
    assert relation.prompt(["cat", "dog", "owl"], 1) == "A cat, a dog and an owl swing."
    path.write_text(path.read_text().replace("{small_one} swing", "{object} swing"))
    with pytest.raises(InputError, match=r"must hold \{subject\} and \{object\} and \{small_one\}"):
        load_relation(path)


def test_orders_say_who_may_change_places() -> None:
    assert load_relation("ride").orders() == [(0, 1)]
    assert load_relation("hug").orders() == [(0, 1), (1, 0)]
    assert load_relation("carry_together").orders() == [(0, 1, 2), (1, 0, 2)]
    assert len(load_relation("huddle").orders()) == 6
    assert load_relation("wave").orders() == [(0,)]


@given(st.text())
def test_any_text_may_be_searched(text: str) -> None:
    find_relation(text, ALL)


@pytest.mark.parametrize("spelling", ["shake_hands", "shake hands", "shake-hands", "Shake Hands"])
def test_spellings_of_a_name(spelling: str) -> None:
    assert load_relation(spelling).name == "shake_hands"


@pytest.mark.parametrize(("name", "hint"), [("rid", "'ride'"), ("hugging", "'hug'"), ("zzz", "back_to_back, carry")])
def test_an_unknown_relation_names_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(InputError, match=hint):
        load_relation(name)


def test_an_article_suits_its_noun() -> None:
    assert load_relation("ride").prompt(["owl", "elephant"]) == "An owl is riding an elephant."


def test_ones_own_relation(tmp_path: Path) -> None:
    path = tmp_path / "juggle.yaml"
    path.write_text(OWN)
    relation = load_relation(path)
    assert relation.name == "juggle"
    assert relation.roles[1].box == (0.3, 0.0, 0.7, 0.3)
    assert not relation.symmetric
    assert find_relation("A cat juggles a ball", [*ALL, relation]) is relation


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("forms", "form", "'forms'"),
        ("predicate: is juggling", "", "predicate: is missing"),
        ("[juggle, juggles]", "juggle", "forms: a list"),
        ("[juggle, juggles]", "[3]", "forms[0]: words"),
        ("{object}.", "{thing}.", "must hold"),
        ("{object}.", "{object", "prompts"),
        ("name: ball", "nam: ball", "'name'"),
        ("name: ball", "name: juggler", "same name"),
        ("[0.3, 0, 0.7, 0.3]", "[0.3, 0, 0.7]", "roles[1].box: four numbers"),
        ("[0.3, 0, 0.7, 0.3]", "[0.7, 0, 0.3, 0.3]", "no area"),
        ("[0.3, 0, 0.7, 0.3]", "[0.3, 0, 0.7, .nan]", "nan is no finite number"),
        ("description: in the air", "description: 3", "description"),
        ("- {name: juggler, box: [0.2, 0.3, 0.8, 1]}", "- juggler", "roles[0]: a mapping"),
        ("predicate:", "symmetric: maybe\npredicate:", "symmetric"),
        ("predicate:", "name: Juggle it\npredicate:", "lower-case"),
    ],
)
def test_a_wrong_relation_file_is_one_line_that_names_file_and_key(
    tmp_path: Path, old: str, new: str, said: str
) -> None:
    path = tmp_path / "juggle.yaml"
    assert old in OWN
    path.write_text(OWN.replace(old, new, 1))
    with pytest.raises(InputError) as caught:
        load_relation(path)
    assert str(path) in str(caught.value)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such relation file"):
        load_relation(tmp_path / "absent.yaml")


@given(st.lists(st.one_of(st.floats(), st.integers(), st.none(), st.booleans(), st.text(max_size=3)), max_size=5))
def test_check_box_gives_a_true_box_or_a_value_error(value: list[object]) -> None:
    try:
        x0, y0, x1, y1 = check_box(value)
    except ValueError:
        return
    assert 0 <= x0 < x1 <= 1
    assert 0 <= y0 < y1 <= 1
