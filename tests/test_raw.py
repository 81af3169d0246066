"""Raw triplets: what `rbctl generate` writes and `rbctl annotate` reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rbctl.errors import InputError
from rbctl.triplets.raw import RawObject, RawTriplet, read_origin, read_raw, write_origin, write_raw


def touch(folder: Path, *names: str) -> Path:
    """Empty files: a raw set is read without opening its pictures."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def row(**changes: Any) -> dict[str, Any]:
    objects = [
        {"name": "red cat", "role": "left", "image": "images/0-0.png"},
        {"name": "blue bear", "role": "right", "image": "images/0-1.png"},
    ]
    return {"file_name": "0.png", "text": "A hug.", "predicate": "hug", "objects": objects, **changes}


def written(folder: Path, *rows: object) -> Path:
    touch(folder, "0.png", "1.png", "images/0-0.png", "images/0-1.png")
    lines = [r if isinstance(r, str) else json.dumps(r) for r in rows]
    (folder / "raw.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def refused(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_raw(folder)
    return str(caught.value)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    folder = touch(tmp_path / "set", "0.png", "b.png", "images/0-0.png", "images/0-1.png", "images/b-0.png")
    triplets = (
        RawTriplet(
            id="0",
            target=folder / "0.png",
            text="Zwei\u2028Bären umarmen sich.",
            predicate="umarmen",
            objects=(
                RawObject(name="red cat", role="left", image=folder / "images/0-0.png"),
                RawObject(name="blue bear", role="right", image=folder / "images/0-1.png"),
            ),
        ),
        RawTriplet(id="b", target=folder / "b.png", objects=(RawObject(name="cat", image=folder / "images/b-0.png"),)),
    )
    write_raw(folder, triplets)
    assert read_raw(folder) == triplets
    first = json.loads((folder / "raw.jsonl").read_text(encoding="utf-8").split("\n")[0])
    assert first["file_name"] == "0.png"
    assert first["objects"][1] == {"name": "blue bear", "role": "right", "image": "images/0-1.png"}


def test_words_may_be_left_out(tmp_path: Path) -> None:
    objects = [{"name": "cat", "image": "images/0-0.png"}]
    (triplet,) = read_raw(written(tmp_path, {"file_name": "0.png", "objects": objects}))
    assert (triplet.text, triplet.predicate, triplet.objects[0].role) == ("", "", "")


def test_pictures_are_understood_by_their_names(tmp_path: Path) -> None:
    names = (
        "10.jpg",
        "10-cat.png",
        "3.jpg",
        "3-polar_bear.webp",
        "3-cat.JPG",
        "tom-max.png",
        "tom-max-a-b.png",
    )
    touch(tmp_path, *names, "notes.txt", ".hidden.png", "masks/3-0.png")
    triplets = read_raw(tmp_path)
    assert [t.id for t in triplets] == ["3", "10", "tom-max"]
    assert [[(o.name, o.image.name) for o in t.objects] for t in triplets] == [
        [("cat", "3-cat.JPG"), ("polar bear", "3-polar_bear.webp")],
        [("cat", "10-cat.png")],
        [("a-b", "tom-max-a-b.png")],
    ]
    assert {(t.text, t.predicate, o.role) for t in triplets for o in t.objects} == {("", "", "")}


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (("3.jpg", "3-cat.jpg", "3-cat.png"), ("3-cat.jpg", "3-cat.png", "'cat'")),
        (("3.jpg", "3-Red_cat.jpg", "3-red cat.jpg"), ("3-Red_cat.jpg", "3-red cat.jpg")),
        (("3.jpg", "3.png", "3-cat.jpg"), ("3.jpg", "3.png", "two targets")),
        (("3.jpg", "4.jpg", "4-cat.jpg", "5-cat.jpg"), ("3.jpg", "5-cat.jpg", "individual")),
        (("3.jpg", "3-.jpg"), ("3-.jpg", "a name was expected")),
        ((), ("no raw triplet", "3-cat.jpg")),
    ],
)
def test_names_that_cannot_be_understood(tmp_path: Path, names: tuple[str, ...], told: tuple[str, ...]) -> None:
    message = refused(touch(tmp_path, *names))
    assert all(part in message for part in told), message


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        ("{", "not valid JSON"),
        ("[1]", "a mapping was expected, not [1]"),
        (row(objects=[]), "objects: 1 or more entries were expected"),
        (row(objects=["cat"]), "objects[0]: a mapping was expected"),
        (row(objects=[{"name": "cat"}]), "objects[0].image: is missing"),
        (row(objects=[{"name": " ", "image": "images/0-0.png"}]), "objects[0].name: words were expected"),
        (row(objects=[{"name": "cat", "image": "images/0-0.png", "rolle": ""}]), "did you mean 'role'"),
        (row(text=3), "text: words were expected, not 3"),
        (row(file_name="../0.png"), "file_name: '../0.png' leaves the folder"),
        (row(file_name="/etc/passwd.png"), "leaves the folder"),
        (row(file_name="0.exe"), "no picture's name"),
        (row(file_nam="0.png"), "did you mean 'file_name'"),
        (row(), "a line above has '0' too"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, bad: object, told: str) -> None:
    message = refused(written(tmp_path, row(), "", bad))
    assert message.startswith(f"{tmp_path / 'raw.jsonl'}:3: ")
    assert told in message


def test_two_equal_names_are_both_named(tmp_path: Path) -> None:
    twins = [{"name": "Red  cat", "image": "images/0-0.png"}, {"name": "red cat", "image": "images/0-1.png"}]
    message = refused(written(tmp_path, row(objects=twins)))
    assert f"{tmp_path / 'raw.jsonl'}:1: " in message
    assert "0-0.png" in message
    assert "0-1.png" in message


def test_all_missing_pictures_are_listed_at_once(tmp_path: Path) -> None:
    written(tmp_path, row(), row(file_name="1.png"))
    (tmp_path / "0.png").unlink()
    (tmp_path / "images/0-1.png").unlink()
    message = refused(tmp_path)
    assert "missing pictures: 0.png (line 1), images/0-1.png (line 1), images/0-1.png (line 2)" in message


def test_no_folder(tmp_path: Path) -> None:
    assert "no such folder" in refused(tmp_path / "nothing")


def test_the_origin_is_kept(tmp_path: Path) -> None:
    assert read_origin(tmp_path) == {}
    write_origin(tmp_path, "miniature", "hug", seed=3)
    assert read_origin(tmp_path) == {"origin": "miniature", "relation": "hug", "seed": 3}


@pytest.mark.parametrize("content", ["{", "[]", '{"origin": 3}', '{"relation": ["hug"]}'])
def test_a_damaged_origin_is_told(tmp_path: Path, content: str) -> None:
    (tmp_path / "set.json").write_text(content)
    with pytest.raises(InputError, match=r"set\.json"):
        read_origin(tmp_path)
