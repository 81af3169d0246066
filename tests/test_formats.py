"""Files as data classes: what is wrong is one line that names the field; what is right is of the field's very type."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Interval, MinLen, MultipleOf

from rbctl.errors import InputError
from rbctl.formats import Check, Words, examine, read, read_yaml, schema


def no_seven(number: int) -> int:
    if number == 7:
        raise ValueError("7 is unlucky; take 8")
    return number


@dataclass(frozen=True)
class Picture:
    """A picture.

    Attributes:
        side: pixels, so many
            that two lines tell it.
        tags, notes: words for people.
    """

    side: Annotated[int, Interval(ge=8, le=8192), MultipleOf(8)]
    tags: tuple[Words, ...] = ()
    notes: dict[str, Words] = field(default_factory=dict)
    seed: Annotated[int, Check(no_seven, schema={"not": {"const": 7}})] | None = None
    weight: float = 1.0


@dataclass(frozen=True)
class Set:
    """Some pictures."""

    kind: Literal["drawn", "painted"]
    pictures: Annotated[tuple[Picture, ...], MinLen(1)]
    shared: bool = False
    extra: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.shared and self.kind == "painted":
            raise ValueError("shared: only drawn sets are; leave it out")


def content(**changes: Any) -> dict[str, Any]:
    """A set of one picture, with these fields of the picture changed, or of the set where it has them."""
    whole = {"kind": "drawn", "pictures": [{"side": 64, "tags": ["cat"], "weight": 2}]}
    for key, value in changes.items():
        (whole if key in ("kind", "pictures", "shared", "extra", "kin") else whole["pictures"][0])[key] = value
    return whole


def test_lists_become_tuples_and_mappings_dataclasses() -> None:
    picture = read(Set, content(notes={"a": "b"}, extra={"x": [1, None]}), "a.json")
    assert picture == Set("drawn", (Picture(64, ("cat",), {"a": "b"}, None, 2.0),), extra={"x": [1, None]})
    assert type(picture.pictures[0].weight) is float


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ([1], "a mapping was expected, not [1]"),
        ({}, "kind: is missing"),
        (content(kin="drawn"), "kin: no such key; did you mean 'kind'?"),
        (content(zzz=1), "pictures[0].zzz: no such key; keys: side, tags, notes, seed, weight"),
        (content(kind="carved"), "kind: 'drawn' or 'painted' was expected, not 'carved'"),
        (content(pictures=[]), "pictures: 1 or more entries were expected, not []"),
        (content(pictures={"side": 8}), "pictures: a list was expected, not {'side': 8}"),
        (content(side=None), "pictures[0].side: a whole number was expected, not None"),
        (content(side=True), "pictures[0].side: a whole number was expected, not True"),
        (content(side=64.0), "pictures[0].side: a whole number was expected, not 64.0"),
        (content(side="64"), "pictures[0].side: a whole number was expected, not '64'; numbers have no quotes"),
        (content(side=0), "pictures[0].side: 8 or more was expected, not 0"),
        (content(side=10**400), "pictures[0].side: 8,192 or less was expected, not 1"),
        (content(side=12), "pictures[0].side: a multiple of 8 was expected, not 12"),
        (content(weight=True), "pictures[0].weight: a number was expected, not True"),
        (content(weight=math.nan), "pictures[0].weight: a finite number was expected, not nan"),
        (content(weight=10**400), "pictures[0].weight: a finite number was expected, not 1"),
        (content(tags=["cat", " "]), "pictures[0].tags[1]: words were expected, not ' '"),
        (content(notes={"a": 3}), "pictures[0].notes.a: words were expected, not 3"),
        (content(seed=7), "pictures[0].seed: 7 is unlucky; take 8"),
        (content(shared=1), "shared: true or false was expected, not 1"),
        (content(kind="painted", shared=True), "shared: only drawn sets are; leave it out"),
        (content(extra=[]), "extra: a mapping was expected, not []"),
    ],
)
def test_what_is_wrong_is_one_line_that_names_the_field(data: object, told: str) -> None:
    with pytest.raises(InputError) as caught:
        read(Set, data, "sets.jsonl:3")
    assert str(caught.value).startswith(f"sets.jsonl:3: {told}")
    assert len(str(caught.value)) < 150


def test_a_slip_in_a_key_is_told_before_the_gap_it_leaves() -> None:
    with pytest.raises(InputError, match=r"pictures\[0\].sid: no such key; did you mean 'side'"):
        read(Set, content(pictures=[{"sid": 8}]), "a.json")


def test_keys_of_others_may_be_left_out() -> None:
    data = content(pictures=[{"side": 8, "theirs": [1]}], kin=3)
    assert read(Set, data, "a.json", ignore_others=True) == Set("drawn", (Picture(8),))


def test_all_that_is_wrong_is_told_and_nothing_twice() -> None:
    value, faults = examine(Set, content(side=0, tags=[3], shared=2))
    assert value is None
    assert [str(fault).partition(":")[0] for fault in faults] == ["pictures[0].side", "pictures[0].tags[0]", "shared"]


def test_a_field_goes_by_the_users_name_for_it() -> None:
    with pytest.raises(InputError, match=r"^p.txt:1: --side: 8 or more was expected"):
        read(Picture, {"side": 0}, "p.txt:1", names={"side": "--side"})


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("side: 8", "side: 9", "5: pictures[1].side: a multiple of 8"),
        ("tags: [x, y]", "tags: [x,\n     3]", "7: pictures[1].tags[1]: words were"),
        ("tags: [x, y]", "tag: [x, y]", "6: pictures[1].tag: no such key"),
        ("side: 8", "seed: 8", "4: pictures[1].side: is missing"),
        ("kind: drawn", "kind: [", "3: not valid YAML"),
        ("kind: drawn", "shared: 3", "1: kind: is missing"),
        ("shared: false", "shared: 3", "8: shared: true or"),
        ("pictures:", "extra: []\n<<: {kind: 3}\npictures:", "2: extra: a mapping"),
    ],
)
def test_the_line_of_a_field_in_yaml_is_told(tmp_path: Path, old: str, new: str, told: str) -> None:
    path = tmp_path / "a.yaml"
    text = "kind: drawn\npictures:\n  - {side: 64}\n  - weight: 2.5\n    side: 8\n    tags: [x, y]\n\nshared: false\n"
    path.write_text(text)
    assert read_yaml(Set, path).pictures[1] == Picture(8, ("x", "y"), weight=2.5)
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(InputError) as caught:
        read_yaml(Set, path)
    assert str(caught.value).startswith(f"{path}:{told}")


def test_defaults_stand_in_for_keys_that_a_file_leaves_out(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("tags: [x]")
    assert read_yaml(Picture, tmp_path / "a.yaml", {"side": 8, "tags": []}) == Picture(8, ("x",))


@pytest.mark.parametrize("depth", [300, 100_000])
def test_deep_nesting_is_refused(depth: int) -> None:
    deep: Any = []
    for _ in range(depth):
        deep = [deep]
    with pytest.raises(InputError, match="nested too deeply"):
        read(Set, content(extra={"deep": deep}), "a.json")
    while deep:  # from the outside in: Python would take the list apart by recursion
        deep = deep.pop()


def test_long_keys_and_values_are_abridged() -> None:
    for data in (content(**{"x" * 100_000: 1}), content(tags="x" * 100_000), content(kind="x" * 100_000)):
        with pytest.raises(InputError, match=r"^a.json: .{1,200}$"):
            read(Set, data, "a.json")


def test_a_key_of_two_lines_is_told_in_one() -> None:
    with pytest.raises(InputError, match=r"^a.json: 'two\\nlines': no such key; keys: kind, [^\n]+$"):
        read(Set, {"two\nlines": 1}, "a.json")


def test_the_schema_describes_the_file() -> None:
    whole = schema(Set)
    assert whole["$ref"] == "#/$defs/Set"
    picture = whole["$defs"]["Picture"]
    assert picture["description"] == "A picture."
    assert picture["additionalProperties"] is False
    assert picture["required"] == ["side"]
    side = {"type": "integer", "minimum": 8, "maximum": 8192, "multipleOf": 8}
    assert picture["properties"]["side"] == {**side, "description": "pixels, so many that two lines tell it."}
    assert picture["properties"]["notes"]["description"] == "words for people."
    assert picture["properties"]["tags"]["items"]["pattern"] == r"\S"
    assert picture["properties"]["seed"]["anyOf"][0] == {"type": "integer", "not": {"const": 7}}


def test_pydantic_waits_for_the_first_file() -> None:
    program = "import sys, rbctl.formats, rbctl.relations; print('pydantic' in sys.modules, 'yaml' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "False False\n"
