"""Benchmarks as data: the official lists read completely, our own YAML, and what is wrong with either."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from PIL import Image

from rbctl.cli import main
from rbctl.errors import InputError
from rbctl.plugins.eval.benchmarks import find_benchmark, load_benchmark, seeded
from rbctl.plugins.eval.case import Case, CaseObject, Picture, Wanted
from rbctl.plugins.eval.config import EvalConfig
from rbctl.plugins.eval.kinds.dreambench import read_dreambench_lists
from rbctl.plugins.eval.report import number_tables
from rbctl.plugins.eval.rows import Column, Row
from rbctl.plugins.eval.sampling import prompts
from rbctl.plugins.eval.summary import summary
from rbctl.prompts import read_prompts
from rbctl.relations import load_relation, shipped
from rbctl.roles import find_relation

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
DREAMBENCH, CC101 = SHARED / "dreambench" / "dataset", SHARED / "customconcept101"

LEXICON = [load_relation(name) for name in shipped()]

needs_dreambench = pytest.mark.skipif(not DREAMBENCH.is_dir(), reason="DreamBench is not beside this checkout")
needs_cc101 = pytest.mark.skipif(not CC101.is_dir(), reason="CustomConcept101 is not beside this checkout")


def picture(path: Path, size: tuple[int, int] = (8, 8)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "red").save(path)
    return path


@needs_dreambench
def test_dreambench_lists() -> None:
    lists = read_dreambench_lists(DREAMBENCH / "prompts_and_classes.txt")
    assert (len(lists.classes), len(lists.objects), len(lists.live)) == (30, 25, 25)
    assert lists.classes["grey_sloth_plushie"] == "stuffed animal"
    assert lists.objects[0] == lists.live[0] == "a {} in the jungle"
    assert "a {} wearing a santa hat" in lists.live
    assert "a {} wearing a santa hat" not in lists.objects


@needs_dreambench
def test_dreambench_of_the_subjects_that_are_here() -> None:
    bench = load_benchmark("dreambench", Wanted(data=DREAMBENCH, partial=True))
    here = {folder.name for folder in DREAMBENCH.iterdir() if folder.is_dir()}
    assert {case.objects[0].subject for case in bench.cases} == here
    assert len(bench.cases) == 25 * len(here)
    assert bench.left_out == 25 * (30 - len(here))
    # the rare token is gone, pets take the live prompts, all real pictures count
    dog = [case for case in bench.cases if case.objects[0].subject == "dog"]
    assert {case.group for case in dog} == {"live"}
    assert dog[11].text == "a dog wearing a santa hat"
    assert len(dog[0].objects[0].references) == 5
    assert {case.group for case in bench.cases if case.objects[0].name == "teapot"} == {"object"}


@needs_dreambench
def test_missing_subjects_are_told_all_at_once() -> None:
    with pytest.raises(InputError, match="18 pictures are missing") as told:
        load_benchmark("dreambench", Wanted(data=DREAMBENCH))
    assert all(name in str(told.value) for name in ("backpack_dog", " more; ", "--partial"))


@needs_cc101
@pytest.mark.parametrize("file", ["dataset.json", "dataset_multiconcept.json"])
def test_customconcept101(tmp_path: Path, file: str) -> None:
    """With stand-ins for its pictures, every concept and prompt of the lists is a case."""
    content = json.loads((CC101 / file).read_text())
    for entry in content:
        for part in entry if isinstance(entry, list) else [entry]:
            if "instance_data_dir" in part:
                picture(tmp_path / part["instance_data_dir"] / "0.jpg")
    for name in (file, "prompts"):
        (tmp_path / name).symlink_to(CC101 / name)
    bench = load_benchmark(
        "customconcept101" if file == "dataset.json" else "customconcept101-multi",
        Wanted(tmp_path, follow_outside=True),
    )
    multi = file != "dataset.json"
    assert len({case.id.split("-")[0] for case in bench.cases}) == len(content) == 101
    lines = {
        prompt: len([line for line in (CC101 / prompt).read_text().splitlines() if line.strip()])
        for prompt in {entry[-1]["prompt_filename_compose"] if multi else entry["prompt_filename"] for entry in content}
    }
    wanted = sum(
        lines[entry[-1]["prompt_filename_compose"] if multi else entry["prompt_filename"]] for entry in content
    )
    assert len(bench.cases) == wanted
    assert all(len(case.objects) == (2 if multi else 1) for case in bench.cases)
    assert not [case.text for case in bench.cases if re.search(r"[{}<>]", case.text)]
    with pytest.raises(InputError, match=r"pictures are missing: .*benchmark_dataset"):
        load_benchmark(str(find_benchmark("customconcept101")), Wanted(CC101))


RELATIONBENCH = yaml.safe_load(find_benchmark("relationbench").read_text())


def relationbench(folder: Path) -> Path:
    """A folder as RelationBench's is: benchmark/SUBJECT/N.jpg."""
    for name in RELATIONBENCH["subjects"]:
        picture(folder / "benchmark" / name / "0.jpg")
    return folder


def test_relationbench_has_25_relations_with_four_cases(tmp_path: Path) -> None:
    bench = load_benchmark("relationbench", Wanted(data=relationbench(tmp_path)))
    assert len(bench.cases) == len({case.id for case in bench.cases}) == 100
    groups = Counter(case.group for case in bench.cases)
    assert len(groups) == 25
    assert set(groups.values()) == {4}
    assert Counter(case.number for case in bench.cases) == {"single": 56, "multi": 44}
    for case in bench.cases:
        assert case.predicate in case.text
        assert case.spoken_to == case.relation  # a relation that sample knows
        relation = load_relation(case.relation)
        assert len(relation.roles) == len(case.objects) == len({who.subject for who in case.objects})
        assert find_relation(case.text, LEXICON, [who.name for who in case.objects]) == relation
    hugs = [case for case in bench.cases if case.relation == "hug"]
    assert hugs[2].text == "A plushie tortoise is hugging a plushie octopus in front of the mountain."
    only = load_benchmark("relationbench", Wanted(data=tmp_path, relations=("hug", "carry")))
    assert {case.group for case in only.cases} == {"hug", "carry"}
    seeds = {case.id: case.seed for case in seeded(bench.cases)}
    assert len(set(seeds.values())) == 100
    assert [case.seed for case in seeded(only.cases)] == [seeds[case.id] for case in only.cases]


@pytest.mark.skipif(not (SHARED / "relationbench").is_dir(), reason="RelationBench's list is not beside this checkout")
@pytest.mark.parametrize("place", ["", "benchmark"])
def test_the_published_list_of_relationbench_gives_the_shipped_cases(tmp_path: Path, place: str) -> None:
    ours = load_benchmark("relationbench", Wanted(data=relationbench(tmp_path))).cases
    (tmp_path / place / "prompts.json").write_text((SHARED / "relationbench" / "prompts.json").read_text())
    listed = load_benchmark("relationbench", Wanted(data=tmp_path)).cases
    assert sorted(listed, key=lambda case: case.id) == sorted(ours, key=lambda case: case.id)


def test_a_list_of_prompts_in_relationbench_names_its_own_subjects(tmp_path: Path) -> None:
    data = relationbench(tmp_path)
    picture(data / "benchmark" / "toy_dinosaur_2" / "0.jpg")
    entries = [
        {"sub1": "benchmark/cat_5", "sub2": "benchmark/dog_9", "prompt": "A cat is hugging a dog."},
        {"sub1": "benchmark/toy_dinosaur_2", "prompt": "A toydinosaur is riding a bike."},
    ]
    (data / "prompts.json").write_text(json.dumps(entries))
    hug, ride = load_benchmark("relationbench", Wanted(data=data)).cases
    assert [who.subject for who in hug.objects] == ["cat_5", "dog_9"]
    assert (ride.text, ride.relation, len(ride.objects)) == ("A toy dinosaur is riding a bike.", "ride_bike", 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "prompts.json: a list of prompts was expected"),
        ("[3]", "entry 1: an object with prompt and sub1"),
        ('[{"sub1": "cat_0", "prompt": "A cat is juggling."}]', "entry 1: 'A cat is juggling.': says no predicate"),
        ('[{"sub1": "cat_0", "prompt": "A cat is kissing a frog."}]', "no subject of this benchmark is its second"),
        ('[{"sub1": "..", "prompt": "A cat is reading."}]', "1 pictures are missing"),
    ],
)
def test_a_list_of_prompts_that_is_wrong(tmp_path: Path, content: str, message: str) -> None:
    (relationbench(tmp_path) / "prompts.json").write_text(content)
    with pytest.raises(InputError, match=re.escape(message)):
        load_benchmark("relationbench", Wanted(data=tmp_path))


def test_ms_bench_has_as_many_combinations_and_prompts_as_published(tmp_path: Path) -> None:
    """Pictures of MS-Bench as its repository has them, stand-ins here."""
    counts = {"living": 10, "object": 10, "scene": 4, "upwearing": 5, "midwearing": 6, "downwearing": 3}
    for category, count in {**counts, "wholewearing": 2}.items():
        for number in range(count):
            picture(tmp_path / category / f"{category}{number}.png")
    picture(tmp_path / "object" / "object9.png").rename(tmp_path / "object" / "teddybear.png")
    bench = load_benchmark("ms-bench", Wanted(data=tmp_path))
    assert len(bench.cases) == len({case.id for case in bench.cases}) == 4488
    assert len({(case.group, *(thing.subject for thing in case.objects)) for case in bench.cases}) == 1148
    assert len({case.group for case in bench.cases}) == 13
    last = bench.cases[-1]
    assert last.text == "a woman wearing a upwearing, a midwearing, and a downwearing on a cobblestone street"
    assert [thing.box for thing in last.objects[:2]] == [(0.25, 0, 0.75, 0.25), (0.25, 0.25, 0.75, 0.6)]
    assert any(case.text == "a stuffed animal with a scene in the background" for case in bench.cases)
    (tmp_path / "prompts.yaml").write_text(yaml.safe_dump(prompts((last,), {}, tmp_path)))
    (prompt,) = read_prompts(tmp_path / "prompts.yaml")
    assert [thing.box for thing in prompt.objects] == [thing.box for thing in last.objects]


def test_what_combinations_lack_is_told_all_at_once_or_left_out(tmp_path: Path) -> None:
    for name in ("living/cat", "living/dog", "object/cup"):
        picture(tmp_path / f"{name}.png")
    boxes = [[0, 0, 0.5, 1], [0.5, 0, 1, 1]]
    entries = [
        {"of": of, "prompt": "a {0} and a {1}", "boxes": boxes}
        for of in (["living", "living"], ["object", "object"], ["living", "wearing"])
    ]
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"kind": "combinations", "data": str(tmp_path), "combinations": entries}))
    with pytest.raises(InputError, match="2 pictures are missing") as told:
        load_benchmark(str(path), Wanted())
    assert "object/(picture 2)" in str(told.value)
    assert "wearing/(picture 1)" in str(told.value)
    bench = load_benchmark(str(path), Wanted(partial=True))
    assert [case.text for case in bench.cases] == ["a cat and a dog"]
    assert bench.left_out == 3  # one of two objects, two of an animal in what it wears


def test_a_category_may_return_after_another(tmp_path: Path) -> None:
    for name in ("living/cat", "living/dog", "object/cup"):
        picture(tmp_path / f"{name}.png")
    boxes = [[0, 0, 0.3, 1], [0.3, 0, 0.6, 1], [0.6, 0, 1, 1]]
    entry = {"of": ["living", "object", "living"], "prompt": "a {0}, a {1} and a {2}", "boxes": boxes}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"kind": "combinations", "data": str(tmp_path), "combinations": [entry]}))
    (case,) = load_benchmark(str(path), Wanted()).cases
    assert case.text == "a cat, a cup and a dog"
    assert [thing.name for thing in case.objects] == ["cat", "cup", "dog"]


def test_missing_prompt_lists_are_told_all_at_once(tmp_path: Path) -> None:
    concepts = [
        {"instance_data_dir": name, "class_prompt": name, "prompt_filename": f"{name}.txt"} for name in ("cat", "dog")
    ]
    (tmp_path / "dataset.json").write_text(json.dumps(concepts))
    with pytest.raises(InputError, match=r"2 prompt lists are missing: .*cat\.txt, .*dog\.txt"):
        load_benchmark("customconcept101", Wanted(data=tmp_path))


SCENE = """\
name: mine
kind: scenes
data: pictures
subjects: {ape: ape, toy: toy car}
scenes:
  - scene: A {driver} is driving a {car}.
    predicate: is driving
    relation: drive
    roles: [driver, car]
    casts: [[ape, toy]]
"""


def test_a_benchmark_of_ones_own(tmp_path: Path) -> None:
    for name in ("ape", "toy"):
        picture(tmp_path / "pictures" / name / "a.png")
    path = tmp_path / "mine.yaml"
    path.write_text(SCENE)
    (case,) = load_benchmark(str(path), Wanted()).cases
    assert case.text == "An ape is driving a toy car."
    assert (case.predicate, case.relation, case.spoken_to) == ("is driving", "drive", "")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("kind: scenes", "kind: scene"), "kind: 'scene'"),
        (("name: mine", "nane: mine"), "mine.yaml:1: nane: no such key; did you mean 'name'"),
        (("[[ape, toy]]", "[[ape, tay]]"), "no subject 'tay'; did you mean 'toy'"),
        (("[[ape, toy]]", "[[ape]]"), "casts"),
        (("{car}", "{cart}"), "must hold each of {driver}, {car}"),
        (("data: pictures", "data: nowhere"), "no such folder"),
        (("data: pictures\n", ""), "give their folder with --data"),
    ],
)
def test_what_is_wrong_with_a_benchmark(tmp_path: Path, change: tuple[str, str], said: str) -> None:
    for name in ("ape", "toy"):
        picture(tmp_path / "pictures" / name / "a.png")
    path = tmp_path / "mine.yaml"
    path.write_text(SCENE.replace(*change))
    with pytest.raises(InputError, match=re.escape(said)):
        load_benchmark(str(path), Wanted())


@pytest.mark.parametrize(
    ("prompt", "box", "said"),
    [
        ("a {0} and a {2}", [0, 0, 1, 1], "prompt: .*nothing for .2."),
        ("a {0} {where}", [0, 0, 1, 1], "prompt: .*where"),
        ("a {0}", [0, 0, 2, 1], "0,0,2,1 lies outside"),
    ],
)
def test_what_is_wrong_with_combinations(tmp_path: Path, prompt: str, box: list[float], said: str) -> None:
    picture(tmp_path / "living" / "dog.png")
    entry = {"of": ["living"], "prompt": prompt, "boxes": [box]}
    content = {"kind": "combinations", "data": str(tmp_path), "combinations": [entry]}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match=rf"combinations.0.*: {said}"):
        load_benchmark(str(tmp_path / "mine.yaml"), Wanted())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("kind: []", "kind: []; one of"),
        ("kind: menagerie\ncases: x", "cases: a whole number was expected, not 'x'"),
        ("kind: menagerie\nrelations: ride", "relations: a list was expected, not 'ride'"),
        ("kind: dreambench\nprofiles: 5", "profiles: a list was expected, not 5"),
        ("kind: dreambench\ndata: 5", "data: words were expected, not 5"),
        ("kind: combinations\ncombinations: [text]", "combinations[0]: a mapping was expected, not 'text'"),
        (
            "kind: combinations\ncombinations: [{of: [[a]], prompt: x, boxes: [1]}]",
            "combinations[0].of[0]: words were expected",
        ),
        (
            "kind: combinations\ncombinations: [{of: [a], prompt: 'x {', boxes: [[0, 0, 1, 1]]}]",
            "combinations[0]: prompt: 'x {'",
        ),
        ("kind: scenes\nsubjects: {ape: ape}\nscenes: [text]", "scenes[0]: a mapping was expected, not 'text'"),
        (SCENE.replace("[ape, toy]", "[[ape], toy]"), "scenes[0].casts[0][0]: words were expected, not ['ape']"),
        (SCENE.replace("[driver, car]", "[driver, [car]]"), "scenes[0].roles[1]: words were expected"),
        (SCENE.replace("{car}", "{car"), "scenes[0]: scene: 'A {driver} is driving a {car.': expected '}'"),
        (
            SCENE.replace("{car}", "{car:d}"),
            "scenes[0]: scene: 'A {driver} is driving a {car:d}.': a place is a plain name",
        ),
        (
            "kind: customconcept101",
            "prompts.txt: 'a {name}': not a prompt with places in braces (there is nothing for {name})",
        ),
    ],
)
def test_malformed_data_is_one_line(tmp_path: Path, content: str, said: str) -> None:
    for name in ("ape", "toy"):
        picture(tmp_path / "pictures" / name / "a.png")
    concept = {"instance_data_dir": "ape", "class_prompt": "ape", "prompt_filename": "prompts.txt"}
    (tmp_path / "pictures" / "dataset.json").write_text(json.dumps([concept]))
    (tmp_path / "pictures" / "prompts.txt").write_text("a {name}\n")
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    arguments = ["--bench", str(path), "--data", str(tmp_path / "pictures"), "--output", str(tmp_path / "out")]
    result = CliRunner().invoke(main, ["eval", *arguments])
    assert result.exit_code == 2, result.exception
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"Error: {tmp_path}")
    assert said in line


def test_a_benchmark_that_is_not_there() -> None:
    with pytest.raises(InputError, match="did you mean 'relationbench-mini'"):
        find_benchmark("relationbench-mni")


def test_the_embedded_world_draws_the_same_cases_again(tmp_path: Path) -> None:
    few = load_benchmark("relationbench-mini", Wanted(relations=("hug",), cases=1, drawn=tmp_path))
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    more = load_benchmark("relationbench-mini", Wanted(relations=("hug",), cases=2, drawn=tmp_path))
    assert more.cases[0] == few.cases[0]
    assert {path: path.stat().st_mtime_ns for path in files} == files  # what was drawn stays
    truth = more.cases[1].truth
    assert truth is not None
    assert truth.picture.is_file()
    assert all(one.held_out for one in truth.individuals)
    assert len({thing.image for thing in more.cases[1].objects}) == 2
    assert more.cases[1].objects[0].name in more.cases[1].text


def test_cases_are_prompts_that_the_sample_stage_reads(tmp_path: Path) -> None:
    bench = load_benchmark("relationbench-mini", Wanted(relations=("ride",), cases=1, drawn=tmp_path / "bench"))
    lora = tmp_path / "ride.safetensors"
    lora.touch()
    for loras, wanted in (({}, "none"), ({"ride": lora}, str(lora))):
        (tmp_path / "prompts.yaml").write_text(yaml.safe_dump(prompts(bench.cases, loras, tmp_path)))
        (prompt,) = read_prompts(tmp_path / "prompts.yaml")
        case = bench.cases[0]
        assert (prompt.text, prompt.seed, prompt.relation, prompt.lora) == (case.text, (case.seed,), "ride", wanted)
        assert [thing.image for thing in prompt.objects] == [thing.image for thing in case.objects]


def test_runs_of_the_command_line() -> None:
    config = EvalConfig(
        bench="relationbench-mini", lora=("ride=a.st", "no_kml:ride=b.st", "no_kml:hug=c=d.st"), run=("x=out/x",)
    )
    assert config.loras() == {"lora": {"ride": Path("a.st")}, "no_kml": {"ride": Path("b.st"), "hug": Path("c=d.st")}}
    assert config.folders() == {"x": Path("out/x")}


@pytest.mark.slow
def test_boxes_do_not_tell_pairs_of_the_hard_set(tmp_path: Path) -> None:
    bench = load_benchmark(
        "relationbench-mini-hard", Wanted(relations=("push", "pull", "hug"), cases=2, drawn=tmp_path)
    )
    boxes = {case.id: [individual.box for individual in case.objects] for case in bench.cases}
    assert boxes["push-000"] == boxes["pull-000"] != boxes["push-001"] == boxes["pull-001"]
    assert all(box is not None for box in boxes["pull-000"])
    assert boxes["hug-000"] == [None, None]
    alone = load_benchmark("relationbench-mini-hard", Wanted(relations=("pull",), cases=2, drawn=tmp_path))
    assert [individual.box for individual in alone.cases[0].objects] == boxes["pull-000"]
    assert prompts(bench.cases, {}, tmp_path)["prompts"][0]["objects"][0]["box"] == list(boxes["push-000"][0])


def test_tables_part_cases_of_one_individual_from_those_of_several() -> None:
    column = Column("x", "p", "x", "", "")
    cases = [
        Case(id=str(k), text="t", objects=tuple(CaseObject(name, Path(name)) for name in names))
        for k, names in enumerate((("a",), ("a", "b"), ("a", "b", "c")))
    ]
    rows = [Row(Picture("run", Path("p"), case), {"x": float(k)}) for k, case in enumerate(cases)]
    content = summary(rows, ["run"], [column], {}) | {"benchmark": {"published": {}}}
    assert {name: part["run"]["x"]["mean"] for name, part in content["numbers"].items()} == {
        "single": 0.0,
        "multi": 1.5,
    }
    assert list(number_tables(content)) == ["single-subject cases", "multi-subject cases"]
    assert summary(rows[1:], ["run"], [column], {})["numbers"] == {}
