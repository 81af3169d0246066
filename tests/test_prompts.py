"""Prompts: what a line says is what is read, and what is wrong is one line with its place."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rbctl.errors import InputError
from rbctl.phrases import token_span, token_spans
from rbctl.prompts import check_pictures, parse_line, read_official_config, read_prompts

RIDING = "A {cat: pets/tom.jpg} is riding a {plush bear: toys/bear.png}"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prompts")
    for name in ("pets/tom.jpg", "toys/bear.png", "a picture with spaces.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), "red").save(folder / name)
    return folder


def line(text: str, folder: Path):
    return parse_line(text, folder, "prompts.txt:1")


def test_a_line_with_all_options(pictures: Path) -> None:
    prompt = line(
        RIDING + ', the cat\'s "toy" -- and more --n lowres, "bad" art --w 512 --h 768 --d 7 --l 5.5 --s 30'
        " --relation shake-hands --lora runs/hug.safetensors:0.8 --box 0,0,.5,1 --box 0.5,0,1,1 --scale 0.6"
        " --subject-scale 1,.5 --images 4",
        pictures,
    )
    assert prompt.text == 'A cat is riding a plush bear, the cat\'s "toy" -- and more'
    assert [(o.name, o.image) for o in prompt.objects] == [
        ("cat", pictures / "pets/tom.jpg"),
        ("plush bear", pictures / "toys/bear.png"),
    ]
    assert [o.box for o in prompt.objects] == [(0, 0, 0.5, 1), (0.5, 0, 1, 1)]
    assert [o.subject_scale for o in prompt.objects] == [1, 0.5]
    assert prompt.negative_prompt == 'lowres, "bad" art'
    assert (prompt.width, prompt.height, prompt.seed, prompt.steps, prompt.images) == (512, 768, (7,), 30, 4)
    assert (prompt.guidance_scale, prompt.scale) == (5.5, 0.6)
    assert (prompt.relation, prompt.lora, prompt.lora_weight) == ("shake_hands", "runs/hug.safetensors:0.8", None)


def test_what_is_not_given_is_none(pictures: Path) -> None:
    prompt = line("a cat", pictures)
    given = {key: value for key, value in dataclasses.asdict(prompt).items() if value not in (None, (), "")}
    assert given == {"text": "a cat", "source": "prompts.txt:1"}


@pytest.mark.parametrize(
    ("options", "field", "value"),
    [
        ('--n "low --d 3" --d 5', "negative_prompt", "low --d 3"),
        ("--n 'low --d 3' --d 5", "negative_prompt", "low --d 3"),
        ("--n “low --d 3” --d 5", "negative_prompt", "low --d 3"),  # a word processor's quotes
        ("--n a “bad” sign", "negative_prompt", "a “bad” sign"),
        ('--n ""', "negative_prompt", ""),
        ("--n", "negative_prompt", ""),
        ("--n the cat's toy --d 5", "negative_prompt", "the cat's toy"),
        ('--n 5" nails', "negative_prompt", '5" nails'),
        ("--d=8", "seed", (8,)),
        ("--D 8", "seed", (8,)),
        ("--d 1,2, 3", "seed", (1, 2, 3)),
        ("--ow 1024", "original_width", 1024),
        ("--CT 32", "crop_top", 32),
        ("--ss euler_a", "scheduler", "Euler a"),
        ("--am 0.7", "lora_weight", (0.7,)),
        ("--am .8,.5", "lora_weight", (0.8, 0.5)),
        ("--lora a:0.5,b --lora c:1", "lora", "a:0.5,b,c:1"),
        ("--seed 8", "seed", (8,)),
        ("--guidance-scale 1e-1", "guidance_scale", 0.1),
        ("--lora C:name.safetensors", "lora", "C:name.safetensors"),
    ],
)
def test_values(pictures: Path, options: str, field: str, value: object) -> None:
    prompt = line(f"a cat {options}", pictures)
    assert getattr(prompt, field) == value
    assert prompt.text == "a cat"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (RIDING + " --sed 3", "no option --sed; did you mean '--seed'?"),
        (RIDING + " --q 3", "no option --q; "),
        (RIDING + " --d seven", "--d[0]: a whole number was expected, not 'seven'"),
        (RIDING + " --d -1", "--d[0]: 0 or more was expected, not -1"),
        (RIDING + f" --d {2**63 - 1}", "--d[0]: 9,223,372,036,854,765,807 or less was expected"),
        (RIDING + " --l nan", "--l: a finite number was expected, not nan"),
        (RIDING + " --d", "--d has no value"),
        (RIDING + " --d 1 --seed 2", "given twice"),
        (RIDING + ' --n "open', "quote is not closed"),
        (RIDING + " --box 0,0,.5,1", "--box: 1 given, 2 expected"),
        (RIDING + " --box 0,0,.5,1" * 3, "--box: 3 given, 2 expected"),
        (RIDING + " --box 0,0,.5,1 --box 0,0,1.5,1", "outside [0, 1]"),
        (RIDING + " --box 0,0,.5,1 --box 0,0,nan,1", "outside [0, 1]"),
        (RIDING + " --box 0,0,.5,1 --box .5,0,.5,1", "no area"),
        (RIDING + " --box 0,0,.5,1 --box 0,0,.5", "four numbers"),
        (RIDING + " --w 100", "--w: a multiple of 8 was expected, not 100"),
        (RIDING + " --h 56", "--h: 64 or more was expected"),
        (RIDING + " --s 0", "--s: 1 or more was expected"),
        (RIDING + " --scale 11", "--scale: 10 or less was expected"),
        (RIDING + " --subject-scale 1", "--subject-scale: 1 given, 2 expected"),
        (RIDING + " --relation ridd", "--relation: 'ridd': no such relation; did you mean 'ride'?"),
        (RIDING + " --lora :0.5", "--lora: words were expected, not ''"),
        (RIDING + " --lora a:99", "--lora: a weight from -10 to 10 was expected, not 99"),
        (RIDING + " --t 0.5", "--t is the strength of img2img; rbctl draws from noise alone"),
        (RIDING + " --NW 64", "--nw is a width for the negative prompt alone; --ow holds for both"),
        (RIDING + " --glt 700", "--glt is of Gradual Latent"),
        (RIDING + " --ss eulr", "--ss: no scheduler 'eulr'; did you mean 'Euler'?"),
        (RIDING + " --d 1,2 --images 3", "--d: 2 seeds for 3 images"),
        ("A cat <lora:hug:much> sleeps", "<lora:'hug':much>: "),
        ("a {cat: pets/tom.jpg", "brace is not closed"),
        ("a {cat: {pets/tom.jpg}", "brace is not closed"),
        ("a cat}", "closed that was not opened"),
        ("a {cat}", "no object"),
        ("a {: pets/tom.jpg}", "no object"),
        ("a {cat: }", "no object"),
        ("a {cat: pets/absent.jpg}", "no picture"),
        ("--d 3", "the prompt is empty"),
        ("a cat --d 3 {dog: pets/tom.jpg}", "--d[0]:"),
    ],
)
def test_a_wrong_line_is_one_line_with_its_place(pictures: Path, text: str, said: str) -> None:
    path = pictures / "prompts.txt"
    path.write_text(f"# a comment\n\na good one\n{text}\n")
    with pytest.raises(InputError) as caught:
        read_prompts(path)
    assert str(caught.value).startswith(f"{path}:4: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_braces_comments_and_files_of_other_systems(pictures: Path) -> None:
    path = pictures / "other.txt"
    path.write_bytes(
        "\ufeff# first\r\n\r\n  a {{wooden}} cat\r\nb {{{cat: a picture with spaces.png}}} --d 3\r\nc # d".encode()
    )
    prompts = read_prompts(path)
    assert [p.text for p in prompts] == ["a {wooden} cat", "b {cat}", "c # d"]
    assert [p.source for p in prompts] == [f"{path}:{number}" for number in (3, 4, 5)]
    assert prompts[1].objects[0].image == pictures / "a picture with spaces.png"


def test_lora_and_relation_beside_the_file_are_found_there(pictures: Path) -> None:
    (pictures / "hug.safetensors").write_bytes(b"")
    (pictures / "own.yaml").write_text("predicate: is x\nprompts: ['{subject}']\nroles: [{name: a, box: [0, 0, 1, 1]}]")
    prompt = line("a cat --lora hug.safetensors:0.5 --relation own.yaml", pictures)
    assert (prompt.lora, prompt.lora_weight) == (str(pictures / "hug.safetensors") + ":0.5", None)
    assert prompt.relation == str(pictures / "own.yaml")


@pytest.mark.parametrize(("name", "said"), [("p.csv", "must end in"), ("p.txt", "no such file"), ("p.yaml", "no such")])
def test_files_that_are_no_prompts(tmp_path: Path, name: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_prompts(tmp_path / name)


def test_a_file_without_prompts(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("# nothing\n\n")
    with pytest.raises(InputError, match="holds no prompt"):
        read_prompts(tmp_path / "p.txt")


WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\n\r", exclude_categories=("Cs",)), max_size=20)
NAMES = st.text("abc def-'é猫", min_size=1, max_size=8).filter(str.strip)


@given(
    parts=st.lists(st.one_of(WORDS, st.tuples(NAMES)), max_size=5),
    negative=st.none() | WORDS,
    seed=st.none() | st.integers(0, 2**63 - 10_001),
    scale=st.none() | st.floats(0, 10),
)
def test_a_line_round_trip(pictures: Path, parts, negative, seed, scale) -> None:
    """What is written by the rules of the format is read back as it was."""
    texts = [p[0].strip() if isinstance(p, tuple) else p for p in parts]
    text = "".join(texts).strip()
    negative = None if negative is None else negative.strip()
    if not text or " --" in f" {' '.join(texts)} " or "--" in text or "--" in (negative or ""):
        return
    written = "".join(
        f"{{{p[0]}: pets/tom.jpg}}" if isinstance(p, tuple) else p.replace("{", "{{").replace("}", "}}") for p in parts
    )
    if seed is not None:
        written += f" --d {seed}"
    if negative is not None and negative[:1] not in ("'", '"'):
        written += f" --n {negative}"
    else:
        negative = None
    if scale is not None:
        written += f" --scale {scale!r}"
    prompt = line(written, pictures)
    assert prompt.text == text
    marked = [p[0].strip() for p in parts if isinstance(p, tuple)]
    assert [o.name for o in prompt.objects] == list(dict.fromkeys(marked))
    assert (prompt.negative_prompt, prompt.seed, prompt.scale) == (negative, None if seed is None else (seed,), scale)


_TOKENS = "{cat: pets/tom.jpg}|{|}|{{|:|--| --d | --n | --box | --w |--lora |--relation |0,0,1,1|nan|1e999|-1|64|hug"
TOKENS = st.sampled_from([*_TOKENS.split("|"), *"\"',= \t\0\u2028", "9" * 30, "a" * 300])


@settings(max_examples=300)
@given(st.lists(st.one_of(TOKENS, st.text(max_size=4)), max_size=10).map("".join))
def test_any_line_is_read_or_refused_in_one_line(pictures: Path, text: str) -> None:
    try:
        prompt = line(text, pictures)
    except InputError as error:
        assert str(error).startswith("prompts.txt:1: ")  # noqa: PT017
        return
    json.dumps(dataclasses.asdict(prompt), default=str)
    assert prompt.text


YAML = """\
defaults:
  seed: 3
  guidance_scale: 5e-1
prompts:
  - text: "A {cat: pets/tom.jpg} is riding a {bear: toys/bear.png}"
    boxes: [[0, 0, 0.5, 1], [0.5, 0, 1, 1]]
    subject_scale: [1, 0.5]

  - text: A cat hugs a dog.
    objects:
      - {name: cat, image: pets/tom.jpg, box: [0, 0, 1, 1], subject_scale: 0.5}
    seed: 4
    steps: null
    lora: hugs
    lora_weight: 0.5
"""


def test_yaml(pictures: Path) -> None:
    path = pictures / "prompts.yaml"
    path.write_text(YAML)
    first, second = read_prompts(path)
    assert first.text == "A cat is riding a bear"
    assert [o.box for o in first.objects] == [(0, 0, 0.5, 1), (0.5, 0, 1, 1)]
    assert (first.seed, first.guidance_scale, first.source) == ((3,), 0.5, f"{path}:5")
    assert second.objects[0].box == (0, 0, 1, 1)
    assert second.objects[0].image == pictures / "pets/tom.jpg"
    assert (second.seed, second.steps, second.lora, second.lora_weight) == ((4,), None, "hugs", (0.5,))
    assert second.source == f"{path}:9"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("prompts:", "prompt:", "prompt: no such key; did you mean 'prompts'?"),
        ("  seed: 3", "  sed: 3", ":2: defaults.sed: no such key; did you mean 'seed'?"),
        ("seed: 4", "seeds: 4", ":12: prompts[1].seeds: no such key; did you mean 'seed'?"),
        ("seed: 4", "seed: true", ":12: prompts[1].seed[0]: a whole number was expected, not True"),
        ("seed: 4", "seed: []", ":12: prompts[1].seed: 1 or more entries were expected, not ()"),
        ("seed: 4", "width: 512.5", ":12: prompts[1].width: a whole number"),
        ("text: A cat hugs a dog.", "text: 3", ":9: prompts[1].text: words were"),
        ("text: A cat hugs a dog.", 'text: "\\ud83d"', ":9: not valid YAML (half a character)"),
        ("text: A cat hugs a dog.", "text: ''", ":9: the prompt is empty"),
        ("text: A cat hugs a dog.", "steps: 3", "not valid"),
        ("text: A cat hugs a dog.", 'text: "a {cat: pets/tom.jpg}"', ":9: objects: given in the text and as a list"),
        ("name: cat, image", "name: cat, picture", ":11: prompts[1].objects[0].picture: no such key"),
        ("{name: cat, ", "{", ":11: prompts[1].objects[0].name: is missing"),
        ("name: cat", "name: ''", ":11: prompts[1].objects[0].name: words were"),
        ("name: cat", "name: 3", ":11: prompts[1].objects[0].name: words were"),
        ("image: pets/tom.jpg,", "image: pets/tam.jpg,", ":9: cat: no picture"),
        ("[0, 0, 1, 1]", "[0, 0, 1]", ":11: prompts[1].objects[0].box: four numbers"),
        ("[[0, 0, 0.5, 1], [0.5, 0, 1, 1]]", "[[0, 0, 0.5, 1]]", ":5: boxes: 1 given, 2 expected"),
        ("[[0, 0, 0.5, 1], [0.5, 0, 1, 1]]", "3", ":6: prompts[0].boxes: a list was expected, not 3"),
        ("[[0, 0, 0.5, 1], [0.5, 0, 1, 1]]", "[null, [0.5, 0, 1, 1]]", ":5: some objects have a box"),
        ("lora: hugs", "boxes: [[0, 0, 1, 1]]", ":9: boxes: given here and at the objects"),
        ("  - text: A cat hugs", "  - A cat hugs", ":10: not valid YAML"),
    ],
)
def test_wrong_yaml_is_one_line_with_its_place(pictures: Path, old: str, new: str, said: str) -> None:
    path = pictures / "prompts.yaml"
    assert old in YAML
    text = YAML.replace(old, new, 1)
    if said == "not valid":  # the text key is gone
        text, said = text.replace("    steps: null\n", ""), ":9: the prompt is empty"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_prompts(path)
    assert str(path) in str(caught.value)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["prompts: 3", "prompts: [3]", "defaults: 3\nprompts: []", "prompts: []", "{}", "prompts: [{}]\nprompts: 3"]
)
def test_yaml_of_another_shape(tmp_path: Path, text: str) -> None:
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(InputError):
        read_prompts(tmp_path / "p.yaml")


def test_a_dash_that_an_editor_made_of_two_hyphens_is_told(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("A cat — black — sits. —d 3\n", encoding="utf-8")
    with pytest.raises(InputError, match="'—d': some editors make one dash of two hyphens; write --d"):
        read_prompts(tmp_path / "p.txt")


def test_yaml_with_merged_lists(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(
        "defaults: &d {seed: 3}\nprompts:\n  - {<<: *d, text: a}\n  - &b {text: b}\n  - *b\n"
    )
    prompts = read_prompts(tmp_path / "p.yaml")
    assert [(p.text, p.seed) for p in prompts] == [("a", (3,)), ("b", (3,)), ("b", (3,))]


OFFICIAL = """\
lora_weights: "lora-weights/hug.safetensors"
class_names: ["cat", "plushie bear"]
prompt: "A cat is hugging with a plushie bear."
images_path: ["assets/image_prompts/tom.jpg", "assets/image_prompts/bear.jpg"]
boxes:
  - - [0.0, 0.2, 0.55, 0.85]
    - [0.55, 0.26, 0.95, 0.90]
phrases:
  - ["cat", "plushie bear"]
"""


@pytest.fixture
def official(tmp_path: Path) -> Path:
    for name in ("image_prompts/tom.jpg", "image_prompts/bear.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "config").mkdir()
    (tmp_path / "config/two.yaml").write_text(OFFICIAL)
    return tmp_path / "config/two.yaml"


def test_official_config(official: Path, tmp_path: Path) -> None:
    prompt = read_official_config(official)
    assert read_prompts(official) == (prompt,)
    assert prompt.text == "A cat is hugging with a plushie bear."
    assert [o.name for o in prompt.objects] == ["cat", "plushie bear"]
    assert prompt.objects[1].box == (0.55, 0.26, 0.95, 0.9)
    assert prompt.objects[0].image.resolve() == (tmp_path / "image_prompts/tom.jpg").resolve()
    assert prompt.lora == "lora-weights/hug.safetensors"


def test_official_config_prefers_the_root(official: Path, tmp_path: Path) -> None:
    root = tmp_path / "elsewhere"
    for name in ("tom.jpg", "bear.jpg"):
        (root / "assets/image_prompts").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(root / "assets/image_prompts" / name)
    assert read_official_config(official, root).objects[0].image == root / "assets/image_prompts/tom.jpg"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("assets/image_prompts/bear.jpg", "assets/image_prompts/absent.jpg", "images_path: no picture"),
        ("prompt:", "promt:", "did you mean 'prompt'?"),
        ('["cat", "plushie bear"]\nprompt', '["cat"]\nprompt', None),  # the phrases are what counts
        ('  - ["cat", "plushie bear"]', '  - ["cat"]', "images_path: 2 pictures for 1 names"),
        ("    - [0.55, 0.26, 0.95, 0.90]\n", "", "boxes: 1 given, 2 expected"),
        ("0.95, 0.90", "0.45, 0.90", ":5: boxes[1]: 0.55,0.26,0.45,0.9 has no area"),
        ('["assets/image_prompts/tom.jpg", ', "[3, ", ":4: images_path[0]: words were"),
    ],
)
def test_wrong_official_config(official: Path, old: str, new: str, said: str | None) -> None:
    assert old in OFFICIAL
    official.write_text(OFFICIAL.replace(old, new, 1))
    if said is None:
        read_official_config(official)
        return
    with pytest.raises(InputError) as caught:
        read_official_config(official)
    assert str(official) in str(caught.value)
    assert said in str(caught.value)


@pytest.mark.slow
def test_real_official_configs(real_hug: Path) -> None:
    configs = sorted((real_hug.parent / "config").glob("*.yaml"))
    counts = []
    for config in configs:
        (prompt,) = read_prompts(config)
        check_pictures([prompt])
        counts.append(len(prompt.objects))
    assert sorted(counts) == [2, 3]


def test_check_pictures_reads_each_one_whole(pictures: Path) -> None:
    good = line(RIDING, pictures)
    check_pictures([good, good])
    Image.effect_noise((64, 64), 90).save(pictures / "broken.png")
    for content in (b"not a picture", (pictures / "broken.png").read_bytes()[:2000]):
        (pictures / "broken.png").write_bytes(content)
        with pytest.raises(InputError, match=r"prompts\.txt:1: cat: .*broken\.png: not a readable picture"):
            check_pictures([good, line("a {cat: broken.png}", pictures)])


class Letters:
    """A tokenizer to whom every character is a token."""

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": [ord(char) for char in text]}


@pytest.mark.parametrize(
    ("text", "names", "found"),
    [
        ("a cat hugs a cat.", ["cat", "cat"], ["cat", "cat"]),
        ("a black cat hugs a cat", ["cat", "black cat"], ["cat", "black cat"]),
        ("a cat hugs a black cat", ["cat", "black cat"], ["cat", "black cat"]),
        ("a cat hugs", ["cat", "cat"], ["cat", None]),
        ("a cat, cat; and cat", ["cat"] * 3, ["cat", "cat", None]),
        ("a red cat, tom", ["cat, tom", ""], [None, None]),
    ],
)
def test_each_phrase_has_a_place_of_its_own(text: str, names: list[str], found: list[str | None]) -> None:
    spans = token_spans(Letters(), text, names)
    tokens = " " + text.replace(" ", "")  # the start token, and no tokens for spaces
    assert [tokens[start:end] or None for start, end in spans] == [f and f.replace(" ", "") for f in found]
    cells = [k for start, end in spans for k in range(start, end)]
    assert len(cells) == len(set(cells))
    assert token_span(Letters(), text, names[0]) == token_spans(Letters(), text, names[:1])[0]


def test_equal_phrases_take_their_places_in_order() -> None:
    assert token_spans(Letters(), "a cat hugs a cat.", ["cat", "cat"]) == [(2, 5), (10, 13)]
    assert token_spans(Letters(), "a black cat hugs a cat", ["cat", "black cat"]) == [(15, 18), (2, 10)]


def test_an_individual_that_is_marked_twice_is_one_unless_each_mark_has_a_box(pictures: Path) -> None:
    twice = "A {cat: pets/tom.jpg} hugs a {bear: toys/bear.png}. The {cat: pets/tom.jpg} smiles."
    assert [entry.name for entry in line(twice, pictures).objects] == ["cat", "bear"]
    boxes = " --box 0,0,0.4,1 --box 0.3,0,0.7,1 --box 0.6,0,1,1"
    assert [entry.name for entry in line(twice + boxes, pictures).objects] == ["cat", "bear", "cat"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("A {cat|dog} sleeps", "'{cat|dog}' draws words by chance in Dynamic Prompts"),
        (
            "A cat <lora:x:0.8:0.6>",
            "<lora:'x':0.8>: also says '0.6'; one weight holds for text encoders and UNet alike",
        ),
        ("A cat <lora:x:0.8:lbw=1,0,0>", "<lora:'x':0.8>: also says 'lbw=1,0,0'"),
    ],
)
def test_what_other_programs_write_is_refused_by_its_name(pictures: Path, text: str, told: str) -> None:
    with pytest.raises(InputError) as error:
        line(text, pictures)
    assert told in str(error.value)


def test_tags_of_loras_are_taken_out_of_the_text(pictures: Path) -> None:
    prompt = line("A cat <lora:style:0.8> sleeps, <lora:film> grainy <LORA:neg:-.5:-.5>", pictures)
    assert prompt.text == "A cat sleeps, grainy"
    assert [(tag.path, tag.weight) for tag in prompt.lora_tags] == [("style", 0.8), ("film", None), ("neg", -0.5)]
