"""Who does what to whom: sentences as people write them, and who has which role in each."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbctl.layout import LayoutPrior, side_by_side
from rbctl.relations import Relation, Role, load_relation, shipped
from rbctl.roles import find_relation, place, read_roles

ALL = [load_relation(name) for name in shipped()]
RIDE = load_relation("ride")
WORDS = re.findall(r"\S+", "a the cat bear , . by is being ridden riding rides and on 's that of it")

# A sentence, its relation, and the individuals in the order of the roles; "" where the sentence does not tell.
SENTENCES = [
    # active
    ("A {cat} is riding a {bear}.", "ride", "cat, bear"),
    ("The {cat} happily rides the big brown {bear} through a forest", "ride", "cat, bear"),
    ("In a quiet meadow at dawn, a {cat} is riding a {bear}.", "ride", "cat, bear"),
    ("On a sunny beach a {cat} is riding a {bear}.", "ride", "cat, bear"),
    ("A photo of a {cat} riding a {bear}, oil on canvas", "ride", "cat, bear"),
    ("a {cat} and its friends watch; a {bear} carries the {cat}", "carry", "bear, cat"),
    ("The {dog} has been chasing the {fox} all day", "chase", "dog, fox"),
    ("There is a {cat} riding a {bear}", "ride", "cat, bear"),
    ("A {dog} gives food to a {rabbit}", "feed", "dog, rabbit"),
    ("A {cat} rode by the lake on a {bear}", "ride", "cat, bear"),
    ("The quick brown {fox} jumped over the lazy {dog}", "jump_over", "fox, dog"),
    ("The {cat} has jumped over the {dog}", "jump_over", "cat, dog"),
    ("A {teddy bear} is riding a {bear}.", "ride", "teddy bear, bear"),
    ("A {bear} on the {teddy bear}'s back, riding", "ride", "bear, teddy bear"),
    ("The {fly} is flying; the {cat} is chasing the {fly}", "chase", "cat, fly"),
    ("The {seal} is riding the {bear} bearing a load", "ride", "seal, bear"),
    ("Two {cats} riding a {bear}", "ride", "cats, bear"),
    ("{кот} is chasing {пёс}", "chase", "кот, пёс"),
    ("{猫} is riding {熊}", "ride", "猫, 熊"),
    ("It's the {cat} who rides the {bear}, not the other way round", "ride", "cat, bear"),
    ("The {horse} lets the {dog} ride it", "ride", "dog, horse"),
    # three roles
    ("A {bear} sits between a {cat} and a {dog}", "sit_between", "bear, cat, dog"),
    ("A {cat} and a {dog} with a {bear} sitting between them", "sit_between", "bear, cat, dog"),
    ("A {bear} is carried together by a {cat} and a {dog}", "carry_together", "cat, dog, bear"),
    ("A {cat} and a {dog} carrying a {bear} together", "carry_together", "cat, dog, bear"),
    ("A {cat} and a {dog} carry the big brown {bear} together through a wood", "carry_together", "cat, dog, bear"),
    ("Between a {cat} and a {dog} sits a {bear}", "sit_between", "bear, cat, dog"),
    ("Between the big red {cat} and the small {dog} is sitting a {bear}.", "sit_between", "bear, cat, dog"),
    # passive
    ("THE {BEAR} IS BEING RIDDEN BY THE {CAT}", "ride", "CAT, BEAR"),
    ("His {teddy bear} is held tightly by the {boy}", "hold", "boy, teddy bear"),
    ("The {parrot} is whispered to by the {monkey}", "whisper_to", "monkey, parrot"),
    ("The {bird} is fed a worm by the {frog}", "feed", "frog, bird"),
    ("The {mouse} being chased is grey; the {cat} is black", "chase", "cat, mouse"),
    ("The {bear} is being ridden by the {cat}.", "ride", "cat, bear"),
    ("A {bear} is ridden by a {cat} in the snow", "ride", "cat, bear"),
    ("a {bear} ridden by a {cat}", "ride", "cat, bear"),
    ("A {bear}, slowly ridden by a small white {cat}, crosses a river", "ride", "cat, bear"),
    ("Ridden by a {cat}, a {bear} crosses a river", "ride", "cat, bear"),
    ("A {cat} is chased by a {dog}", "chase", "dog, cat"),
    ("A {cat} gets chased through the garden by a {dog}", "chase", "dog, cat"),
    ("The {cat} was being carried on its back by the {bear}", "carry", "bear, cat"),
    ("A {doll} is held by a {girl}", "hold", "girl, doll"),
    ("A {rabbit} is being fed by a {dog} in a kitchen", "feed", "dog, rabbit"),
    ("The {rabbit} is given food by the {dog}", "feed", "dog, rabbit"),
    ("A {sofa} is sat on by a {cat}", "sit_on", "cat, sofa"),
    ("A {dog} is being followed by a {duck}", "follow", "duck, dog"),
    ("The {sled} has been pulled by the {husky} for miles", "pull", "husky, sled"),
    ("A {cat} is lifted up by a {bear}", "lift", "bear, cat"),
    ("The {ball} was kicked by the {robot}", "kick", "robot, ball"),
    ("The {bear} is being ridden while the {cat} sings", "ride", "cat, bear"),
    ("A {bear} by whom a {cat} is carried", "carry", "bear, cat"),
    ("The {wall} is being leaned on by the {boy}", "lean_on", "boy, wall"),
    ("A {cart} is pushed along the road by a {pig}", "push", "pig, cart"),
    # relative clauses
    ("the {bear} that the {cat} is riding", "ride", "cat, bear"),
    ("The {bear} the {cat} rides is brown", "ride", "cat, bear"),
    ("A {bear} which a {cat} is riding through the snow", "ride", "cat, bear"),
    ("A {bear} on whose back the {cat} is riding", "ride", "cat, bear"),
    ("A {cat} that is riding a {bear}", "ride", "cat, bear"),
    ("A {bear} that is being ridden by a {cat}", "ride", "cat, bear"),
    ("A {cat} who is chased by a {dog} that barks", "chase", "dog, cat"),
    ("The {sofa} that the {cat} sits on", "sit_on", "cat, sofa"),
    # possessive, and a place in front
    ("A {cat} rides on the {bear}'s back", "ride", "cat, bear"),
    ("A {cat} is riding on the back of a {bear}.", "ride", "cat, bear"),
    ("On the {bear}'s back rides a {cat}", "ride", "cat, bear"),
    ("On the back of a {bear} rides a {cat}", "ride", "cat, bear"),
    ("On the {bear}’s back, the {cat} is riding along", "ride", "cat, bear"),
    ("On a {sofa} sits a {cat}", "sit_on", "cat, sofa"),
    ("On top of the {horse} stands a {dog}", "stand_on", "dog, horse"),
    ("Behind a {tree} hides a {fox}", "hide_behind", "fox, tree"),
    ("A {cat} sits on the {dog}'s head", "sit_on", "cat, dog"),
    # the verb in front
    ("Riding a {bear}, a {cat} waves at the crowd", "ride", "cat, bear"),
    ("Carrying a {cat} on its back, the {bear} walks home", "carry", "bear, cat"),
    ("Chased by a {dog}, a {cat} runs", "chase", "dog, cat"),
    # pronouns, several clauses and sentences
    ("A {cat} jumps on a {bear} and rides it", "ride", "cat, bear"),
    ("The {bear} stands still while the {cat} rides it", "ride", "cat, bear"),
    ("A {cat}, next to a {bear}, is riding it", "ride", "cat, bear"),
    ("A {cat} on a {bear}, riding through the snow", "ride", "cat, bear"),
    ("A {bear} with a {cat} riding on its back", "ride", "cat, bear"),
    ("A {cat} and a {bear} in the snow. The {cat} is riding the {bear}.", "ride", "cat, bear"),
    ("A {cat} and a {bear} in the snow. The {bear} is being ridden by the {cat}.", "ride", "cat, bear"),
    ("A {bear} and a {cat}; the {cat} rides it", "ride", "cat, bear"),
    ("It is the {bear} that the {cat} is riding", "ride", "cat, bear"),
    ("The {bear}, which the {cat} is riding, growls", "ride", "cat, bear"),
    ("What the {cat} rides is a {bear}", "ride", "cat, bear"),
    ("a {cat} being carried by a {bear}", "carry", "bear, cat"),
    ("A {bear} is seen being ridden by a {cat}", "ride", "cat, bear"),
    ("A {bear} has a {cat} riding on its back", "ride", "cat, bear"),
    ("A {dog} and the {cat} it is chasing", "chase", "dog, cat"),
    ("By the {dog}, the {cat} is chased", "chase", "dog, cat"),
    ("A {cat} is too slow and a {dog} chases it", "chase", "dog, cat"),
    ("A {cat} runs from a {dog} chasing it", "chase", "dog, cat"),
    ("A {cat} looks at a {dog} that chases it", "chase", "dog, cat"),
    ("A {cat} looks back at a {dog} chasing it", "chase", "dog, cat"),
    ("The {cat} on the {bear}'s back is riding through the snow", "ride", "cat, bear"),
    ("The {bear} and the {cat}, who is riding it", "ride", "cat, bear"),
    ("The {bear} lets the {cat} ride on its back", "ride", "cat, bear"),
    ("The {cat} wants a {bear} to carry it", "carry", "bear, cat"),
    ("A {dog} leads the way, followed by a {duck}", "follow", "duck, dog"),
    ("Chasing the {cat} is a {dog}", "chase", "dog, cat"),
    ("To the {bear} whispers a {cat}", "whisper_to", "cat, bear"),
    ("Over a {lion} jumps a {frog}", "jump_over", "frog, lion"),
    ("The {cat} rides on. The {bear} is tired.", "ride", "cat, bear"),
    ("A {cat} riding. A {bear} being ridden.", "ride", "cat, bear"),
    # roles that are named
    ("{bear} as the mount and {cat} as the rider", "ride", "cat, bear"),
    ("A {bear} (mount) and a {cat} (rider)", "ride", "cat, bear"),
    ("The {bear} (the mount) and a {cat} in the snow", "ride", "cat, bear"),
    ("A {bear}, mount of the {cat}, riding", "ride", "cat, bear"),
    ("A {cat} (happy) is riding a {bear} (brown)", "ride", "cat, bear"),
    ("A {bear} in the snow; the {cat} is the rider", "ride", "cat, bear"),
    ("The {bear}'s rider is the {cat}", "ride", "cat, bear"),
    ("A {bear} and its rider, a {cat}", "ride", "cat, bear"),
    ("rider: {cat}, mount: {bear}", "ride", "cat, bear"),
    ("with a {bear} as its mount, the {cat} waves", "ride", "cat, bear"),
    ("A {lion} on the right hugs a {bear} on the left", "hug", "bear, lion"),
    ("The {lion} hugs the {bear}, the {lion} is to the right", "hug", "bear, lion"),
    # names with words of a relation in them, names within names, twins, plural
    ("A {riding hood} is riding a {hugging bear}", "ride", "riding hood, hugging bear"),
    ("A {hugging bear} is being ridden by a {chase dog}", "ride", "chase dog, hugging bear"),
    ("A {bear} is riding a {polar bear}", "ride", "bear, polar bear"),
    ("The {polar bear} is being ridden by the {bear}", "ride", "bear, polar bear"),
    ("Two {cat}s are riding two {bear}s", "ride", "cat, bear"),
    ("Two {fox}es are chased by a {dog}", "chase", "dog, fox"),
    # names of other languages and of people
    ("Ein {Kätzchen} is riding a {Bär}", "ride", "Kätzchen, Bär"),
    ("A {медведь} is being ridden by a {кот}", "ride", "кот, медведь"),
    ("一只{熊} is ridden by {猫}", "ride", "猫, 熊"),
    ("On the beach {Bruno} is riding {Mia}", "ride", "Bruno, Mia"),
    ("{Jean-Luc} is carried by {O'Neil}", "carry", "O'Neil, Jean-Luc"),
    ("{Ñandú} is chased by the {águila}", "chase", "águila, Ñandú"),
    ("{Şahin} rides {İnci}'s back", "ride", "Şahin, İnci"),
    # symmetric ones: in their order
    ("A {lion} and a {polar bear} hug.", "hug", "lion, polar bear"),
    ("A {cat} is hugged by a {dog}", "hug", "cat, dog"),
    # the sentence does not tell
    ("A {cat} and a {bear} ride together", "ride", ""),
    ("A {cat}, a {bear}, riding", "ride", ""),
    ("A {cat} and a {bear}", "ride", ""),
    # three for two roles: who has none is left out
    ("A {cat} is riding a {bear} next to a {dog}", "ride", "cat, bear"),
    ("A {bear} next to a {dog} is being ridden by a {cat}", "ride", "cat, bear"),
    ("A {dog} watches a {bear} carrying a {cat}", "carry", "bear, cat"),
]


def unmarked(sentence: str) -> tuple[str, list[str]]:
    """The text, and the names in the order of the alphabet: nobody may lean on the order of marking."""
    names = sorted(set(re.findall(r"\{(.+?)\}", sentence)))
    return re.sub(r"\{(.+?)\}", r"\1", sentence), names


@pytest.mark.parametrize(("sentence", "relation", "expected"), SENTENCES, ids=[row[0] for row in SENTENCES])
def test_a_sentence_tells_who_has_which_role(sentence: str, relation: str, expected: str) -> None:
    text, names = unmarked(sentence)
    if load_relation(relation).symmetric and " on the " not in text and " to the " not in text:
        names = expected.split(", ")
    individuals = read_roles(text, names, load_relation(relation)).individuals
    assert ", ".join(names[k] for k in individuals or ()) == expected


def test_a_passive_sentence_says_its_relation_and_a_name_says_none() -> None:
    assert getattr(find_relation("The bear is being ridden by the cat", ALL), "name", "") == "ride"
    assert find_relation("A riding hood beside a bear", ALL, ["riding hood", "bear"]) is None
    assert read_roles("A cat High-Fives a dog", ["cat", "dog"], load_relation("high_five")).words == "High-Fives"
    assert read_roles("The bear is being ridden by the cat", ["bear", "cat"], load_relation("ride")).words == (
        "is being ridden by"
    )


def test_each_individual_gets_the_box_of_its_role() -> None:
    ride = load_relation("ride")
    rider, mount = (role.box for role in ride.roles)
    assert place("A cat is riding a bear", ["cat", "bear"], ride, None).boxes == (rider, mount)
    assert place("The bear is being ridden by the cat", ["bear", "cat"], ride, None).boxes == (mount, rider)
    assert place("A cat and a bear", ["bear", "cat"], ride, None).boxes == (rider, mount)  # in their order
    assert place("A cat, a bear and a dog", ["cat", "bear", "dog"], ride, None).boxes == side_by_side(3)


def test_a_layout_prior_may_have_its_roles_in_another_order() -> None:
    ride = load_relation("ride")
    prior = LayoutPrior.from_boxes([[(0.1, 0.5, 0.9, 1.0), (0.3, 0.1, 0.7, 0.5)]], ["mount", "rider"])
    mount, rider = prior.boxes()
    for text in ("A cat is riding a bear", "A bear is ridden by a cat"):
        assert place(text, ["cat", "bear"], ride, prior).boxes == (rider, mount)


def test_the_words_of_an_own_relation_are_bent_alike() -> None:
    throw = Relation(
        name="throw",
        predicate="is throwing",
        prompts=("A {subject} is throwing a {object}.",),
        roles=(Role("thrower", (0, 0, 0.5, 1)), Role("thrown", (0.5, 0, 1, 1))),
    )
    assert read_roles("A ball is thrown by a boy", ["ball", "boy"], throw).individuals == (1, 0)
    assert read_roles("A boy, throwing a ball", ["ball", "boy"], throw).individuals == (1, 0)


@given(st.text(), st.lists(st.text(max_size=5), min_size=1, max_size=3))
def test_any_text_may_be_read(text: str, names: list[str]) -> None:
    for relation in ALL[::6]:
        individuals = read_roles(text, names, relation).individuals
        assert individuals is None or len(set(individuals)) == len(individuals) <= len(names)


@given(st.lists(st.sampled_from(WORDS)))
def test_words_in_any_order_may_be_read(words: list[str]) -> None:
    individuals = read_roles(" ".join(words), ["cat", "bear"], RIDE).individuals
    assert individuals in (None, (0, 1), (1, 0))
