"""``rbctl eval gates``: the figures come out right where the truth is known, and the whole road runs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from PIL import Image

from rbctl.bundle.catalogue import resolve
from rbctl.cli import main
from rbctl.errors import InputError
from rbctl.files import read_json, read_yaml
from rbctl.menagerie import COATS, PATTERNS, SPECIES, render
from rbctl.menagerie.cases import CANDIDATES, SIZE, DrawnCase, Stream, candidates, draw_cases
from rbctl.menagerie.judge import Judge
from rbctl.menagerie.oracle import Oracle, OracleConfig, Reading, load_oracle, look, save_oracle
from rbctl.options import find_recipe
from rbctl.plugins.eval.gates.figures import against, figure, mean_of_medians, ratio
from rbctl.plugins.eval.gates.measuring import Arm, Measuring, Tuned
from rbctl.plugins.eval.gates.recipe import Gate, read_gates
from rbctl.plugins.eval.gates.run import store, table
from rbctl.plugins.eval.gates.sections import MEASURES, true_boxes
from rbctl.plugins.eval.stages import Stages
from rbctl.relations import Box, load_relation

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]

EASY, RELATIONS = ("stand_next_to", "chase"), ("ride", "hug")
SIZES = {"species": len(SPECIES), "coat": len(COATS), "second": len(COATS), "pattern": len(PATTERNS)}
HALVES: tuple[Box, ...] = ((0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0))


class Knowing:
    """An oracle that knows the world's own drawings of its cases, and says nothing of any other picture."""

    relations = ("nothing", *EASY, *RELATIONS, "sit_back_to_back")

    def __init__(self) -> None:
        self.known: dict[bytes, tuple[DrawnCase, np.ndarray]] = {}

    def learn(self, cases: Sequence[DrawnCase]) -> None:
        for case in cases:
            drawn = render([case.scene], SIZE)
            self.known[drawn.pictures[0].numpy().tobytes()] = case, drawn.keypoints[0].numpy()

    def read(self, pictures: torch.Tensor | Sequence[Image.Image]) -> Reading:
        listed = [p.numpy() if isinstance(p, torch.Tensor) else np.asarray(p).transpose(2, 0, 1) for p in pictures]
        relation = torch.full((len(listed), len(self.relations)), -9.0)
        looks = {name: torch.full((len(listed), 2, size), -9.0) for name, size in SIZES.items()}
        points = torch.rand(len(listed), 2, 17, 3)
        for k, picture in enumerate(listed):
            case, keypoints = self.known.get(picture.tobytes(), (None, None))
            relation[k, self.relations.index(case.relation.name) if case else 0] = 0
            if case is None or keypoints is None:
                continue
            roles = [0, 1]
            if case.relation.symmetric:  # then the one on the left comes first
                roles.sort(key=lambda role: keypoints[role, :, 0].mean())
            for slot, role in enumerate(roles):
                points[k, slot] = torch.from_numpy(keypoints[role])
                for name, value in zip(SIZES, look(case.individuals[role]), strict=True):
                    looks[name][k, slot, value] = 0
        maps = torch.zeros(len(listed), 2, 32, 32)
        symmetric = tuple(name for name in self.relations if name in ("stand_next_to", "hug", "sit_back_to_back"))
        return Reading(self.relations, symmetric, relation, maps, keypoints=points, **looks)


class Told(Tuned):
    """A LoRA that nobody tuned."""

    @property
    def path(self) -> Path:
        return Path(self.relation)

    @property
    def boxes(self) -> tuple[Box, ...]:
        return HALVES

    def facts(self) -> dict[str, Any]:
        return {"seed": self.seed, "steps": 300, "seconds": 10.0}


@dataclasses.dataclass(frozen=True)
class Drawing(Measuring):
    """Instead of a bundle: truth with a LoRA and for easy relations, blank pictures else."""

    asked: dict[str, Arm] = dataclasses.field(default_factory=dict)

    def cases(self, relation: str, count: int) -> tuple[DrawnCase, ...]:
        drawn = super().cases(relation, count)
        self.judge.oracle.learn(drawn)  # type: ignore[operator]
        return drawn

    def round_trip(self, pictures: Sequence[Image.Image]) -> list[Image.Image]:
        return list(pictures)

    def tuned(self, relations: Sequence[str], seeds: Sequence[int], again: str = "") -> list[Tuned]:
        return [Told(name, seed, self.folder, {"steps": 300}) for seed in seeds for name in relations]

    def sample(self, arms: Sequence[Arm]) -> None:
        self.asked.update({arm.name: arm for arm in arms})

    def pictures(self, arm: Arm) -> list[Image.Image]:
        blank = Image.new("RGB", (SIZE, SIZE))
        shown = arm.lora is not None or arm.cases[0].relation.name in EASY
        return [Image.open(case.picture) if shown else blank for case in arm.cases]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Drawing:
    few = {"scenes": 4, "easy_scenes": 2, "seeds": (0, 1), "relations": RELATIONS, "easy": EASY, "held_out": RELATIONS}
    folder = tmp_path_factory.mktemp("gates")
    oracle: Any = Knowing()
    return Drawing(read_gates("mini", few), folder, Stages(folder, "mini", "cpu", 1), Judge(oracle))


def measured(work: Measuring, name: str) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """What is kept of a section, and its gates."""
    section = work.gates.sections[name]
    content, figures = MEASURES[section.measures](work, section)
    return content, {title: against(gate, figures[gate.figure]) for title, gate in section.gates.items()}


@pytest.mark.slow
def test_a_perfect_oracle_and_vae_pass(work: Drawing) -> None:
    _, gates = measured(work, "oracle")
    assert gates["identity of 16, both roles, renders"]["mean"] == 1
    assert all(gate["passed"] for gate in gates.values())
    content, gates = measured(work, "vae")
    assert all(gate["passed"] for gate in gates.values())
    assert content["psnr"]["mean"] == 100  # of no error at all
    assert (work.folder / content["sheet"]).is_file()


@pytest.mark.slow
def test_a_base_that_draws_the_easy_relations_alone_passes(work: Drawing) -> None:
    content, gates = measured(work, "base")
    assert all(gate["passed"] for gate in gates.values()), gates
    easy = content["easy"]["mean"]
    assert easy["pattern"]["mean"] == 1
    assert easy["relation"]["n"] == 2 * content["truth"]["easy"]["mean"]["relation"]["n"]  # of two seeds
    assert (work.asked["base-chase-s0"].seed, work.asked["base-chase-s1"].seed) == (0, 1)
    assert content["held_out"]["mean"]["relation"]["mean"] == 0
    assert content["truth"]["held_out"]["mean"]["directed"]["mean"] == 1


@pytest.mark.slow
def test_a_lora_that_draws_the_truth_scores_one(work: Drawing) -> None:
    content, gates = measured(work, "lora")
    assert gates["relation, new individuals"]["mean"] == gates["gain over the base"]["mean"] == 1
    assert gates["direction, of the right class"] == {**figure([np.ones((2, 2))]), "at_least": 0.85, "passed": True}
    assert gates["easy relations, drop"]["mean"] == 0
    assert content["loras"]["hug"][1]["seconds"] == 10
    assert content["n"] == len(RELATIONS) * 2 * 2
    arms = content["arms"]
    assert arms["lora"]["each"]["ride"]["relation_by_seed"] == [1, 1]
    assert arms["lora"]["mean"]["contact"] == arms["truth"]["mean"]["contact"] | {"n": 8}
    assert arms["lora"]["mean"]["touching"]["mean"] >= 0.75
    assert (work.folder / "contact-ride.png").is_file()
    assert work.asked["lora-ride-s0"].boxes == work.asked["base-lora-boxes-ride-s0"].boxes == [HALVES] * 2
    assert work.asked["lora-true-boxes-ride-s0"].boxes == true_boxes(work.cases("ride", 2))
    assert work.asked["base-ride-s0"].boxes is None


class Spoiling(Drawing):
    """Pictures of "ride" are blank, except in the best quality."""

    def pictures(self, arm: Arm) -> list[Image.Image]:
        spoilt = arm.relation == "ride" and self.gates.sample.get("quality") != "best"
        return [Image.new("RGB", (SIZE, SIZE))] * len(arm.cases) if spoilt else super().pictures(arm)


@pytest.mark.slow
def test_what_the_default_quality_costs_is_seen(work: Drawing) -> None:
    content, gates = measured(work, "quality")
    assert all(gate["passed"] for gate in gates.values()), gates
    assert content["options"]["best"]["cache_span"] == 0 < content["options"]["default"]["cache_span"]
    content, gates = measured(Spoiling(work.gates, work.folder, work.stages, work.judge), "quality")
    assert gates["relation, change"]["mean"] == -1 / len(RELATIONS)
    assert not any(gates[f"relation, {end}"]["passed"] for end in ("change", "lower end"))
    assert content["arms"]["best"]["mean"]["relation"]["mean"] == 1


@pytest.mark.slow
def test_a_relation_that_was_not_there(work: Drawing) -> None:
    content, gates = measured(work, "new_relation")
    assert gates["relation, new individuals"]["mean"] == 1
    assert gates["extended oracle on renders"]["passed"]
    assert "name: sit_back_to_back" in content["yaml"]


def test_an_arm_is_a_prompts_file(work: Drawing, tmp_path: Path) -> None:
    cases = work.cases("ride", 2)
    for boxes, lora in ((None, None), ([HALVES] * 2, tmp_path / "ride.safetensors")):
        first, second = Arm("x", cases, "ride", boxes, lora).prompts(tmp_path)["prompts"]
        assert (first["seed"], second["seed"]) == (1000, 1001)
        again = Arm("x", cases, "ride", boxes, lora, seed=2).prompts(tmp_path)["prompts"]
        assert again == [{**first, "seed": 21_000}, {**second, "seed": 21_001}]
        assert first["lora"] == ("none" if lora is None else "ride.safetensors")
        asked = [list(box) for box in HALVES] if boxes else [None] * 2
        assert [subject.get("box") for subject in first["objects"]] == asked


def test_swapped_roles_are_seen(work: Drawing) -> None:
    cases = work.cases("ride", 2)
    turned = [
        dataclasses.replace(c, scene=dataclasses.replace(c.scene, individuals=c.individuals[::-1])) for c in cases
    ]
    for verdict in work.judge([Image.open(case.picture) for case in cases], turned):
        assert (verdict.relation, verdict.direction, verdict.directed) == (True, False, False)
        assert verdict.species == verdict.identity == 1  # individuals are assigned by best matching
        assert verdict.role_identity == 0
    hug = work.cases("hug", 2)
    verdicts = work.judge([Image.open(case.picture) for case in hug], hug)
    assert [(verdict.direction, verdict.directed) for verdict in verdicts] == [(None, True)] * 2


def test_pictures_of_several_relations_are_judged_in_their_order(work: Drawing) -> None:
    cases = [case for pair in zip(work.cases("ride", 2), work.cases("hug", 2), strict=True) for case in pair]
    images = [Image.open(case.picture) for case in cases]
    alone = [work.judge([image], [case])[0] for image, case in zip(images, cases, strict=True)]
    assert work.judge(images, cases) == alone


@pytest.mark.parametrize("stream", [Stream(1), Stream(1, (0,), 2)])
def test_candidates_are_all_different_and_held_out(tmp_path: Path, stream: Stream) -> None:
    cases = draw_cases([load_relation("ride")], 12, tmp_path, stream)
    lineup, place = candidates(cases[0], 1)
    assert len({look(individual) for individual in lineup}) == CANDIDATES
    assert lineup[place] == cases[0].individuals[1]
    assert all(individual.held_out for individual in lineup)
    assert (lineup, place) == candidates(cases[0], 1)
    assert len({candidates(case, 1)[1] for case in cases}) > 5
    assert {len(portraits) for case in cases for portraits in case.portraits} == {stream.portraits}


def test_the_gates_scenes_are_those_of_all_figures_ever_kept(work: Drawing) -> None:
    """Other scenes, or other candidates, would make the figures of docs/mini-gates.json those of something else."""
    case = work.cases("ride", 1)[0]
    assert (case.scene.caption, case.seed) == ("A dog rides on the back of a pig.", 1000)
    assert [candidates(case, role)[1] for role in (0, 1)] == [13, 8]


def test_cases_are_a_function_of_their_number(tmp_path: Path) -> None:
    two, four = (draw_cases([load_relation("ride")], n, tmp_path, Stream(1)) for n in (2, 4))
    assert two == four[:2]
    assert two[1].individuals == four[1].individuals
    assert all(path.is_file() for case in four for own in case.portraits for path in own)


def test_intervals_hold_the_mean_and_shrink() -> None:
    rng = np.random.default_rng(0)
    few, many = (figure([rng.random((n, 3)) < 0.7]) for n in (20, 500))
    assert few["low"] < few["mean"] < few["high"]
    assert many["high"] - many["low"] < few["high"] - few["low"]
    assert figure([np.full(3, np.nan)])["mean"] is None
    pairs = np.stack((np.full(5, 0.1), np.full(5, 0.4)), axis=-1)
    assert figure([pairs], ratio(mean_of_medians), pairs=True) == {"mean": 0.25, "low": 0.25, "high": 0.25, "n": 5}
    assert figure([[1.0]]) == {"mean": 1, "low": 1, "high": 1, "n": 1}


def test_scenes_of_a_group_stay_in_it() -> None:
    """Two groups of constant values leave nothing to chance, however different they are."""
    assert figure([np.zeros(5), np.ones(50)]) == {"mean": 0.5, "low": 0.5, "high": 0.5, "n": 55}


def test_a_limit_is_kept_or_not() -> None:
    assert against(Gate("x", at_least=0.4), 0.5) == {"mean": 0.5, "at_least": 0.4, "passed": True}
    assert against(Gate("x", at_most=0.4), 0.5)["passed"] is False
    assert against(Gate("x", at_least=0.4, at_most=0.5), 0.5)["passed"] is True
    assert against(Gate("x", at_least=0.4), None)["passed"] is None


def test_sections_are_added_and_those_of_another_bundle_dropped(tmp_path: Path) -> None:
    path = tmp_path / "gates.json"
    store(path, {"bundle": "a"}, "oracle", {"gates": {"x": against(Gate("x", 0.4), 0.5)}})
    store(path, {"bundle": "a"}, "vae", {"gates": {"y": against(Gate("x", 0.4), None)}})
    both = read_json(path)
    assert both["gates"] == {"oracle: x": True, "vae: y": None}
    assert "not measured" in table({name: section["gates"] for name, section in both["sections"].items()})
    store(path, {"bundle": "b"}, "vae", {"gates": {}})
    assert list(read_json(path)["sections"]) == ["vae"]


@pytest.mark.parametrize("bundle", ["mini", "mini-dit"])
def test_the_recipe_of_a_bundle_has_the_gates_that_are_kept(bundle: str) -> None:
    gates = read_gates(bundle, {})
    kept = read_json(Path(__file__).parents[1] / "docs" / f"{bundle}-gates.json")["sections"]
    for name in kept:
        section = gates.sections[name]
        limits = {t: {"at_least": g.at_least, "at_most": g.at_most} for t, g in section.gates.items()}
        assert limits == {t: {k: g.get(k) for k in ("at_least", "at_most")} for t, g in kept[name]["gates"].items()}
    recipe = read_yaml(find_recipe("mini"))["pretrain"]
    assert set(gates.easy) <= set(recipe["easy"])
    assert set(gates.held_out) <= set(recipe["held_out"])
    for name, taught in (("base_of_one", "easy"), ("base_of_three", "easy"), ("lora_of_one", "held_out")):
        if name in gates.sections:
            assert set(gates.sections[name].relations) <= set(recipe[taught])


RECIPE: dict[str, Any] = {
    "easy": ["chase"],
    "held_out": ["ride"],
    "relations": ["ride"],
    "sections": {"vae": {"gates": {"PSNR": {"figure": "psnr", "at_least": 26}}}},
}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sceens": 3}, "sceens: no such key; did you mean 'scenes'?"),
        ({"scenes": 0}, "scenes: 1 or more was expected, not 0"),
        ({"relations": []}, "relations: 1 or more entries were expected"),
        ({"sections": {"vae": {"gates": {"PSNR": {"figure": "psnr"}}}}}, "at_least or at_most is missing"),
        ({"sections": {"vae": {"gates": {"PSNR": {"figure": "psrn", "at_least": 1}}}}}, "no figure 'psrn'; did you"),
        ({"sections": {"eye": {"gates": {}}}}, "sections.eye: measures is missing; one of oracle, vae"),
    ],
)
def test_a_bad_recipe_is_one_line(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**RECIPE, **changes}, sort_keys=False))
    result = gates(path)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"Error: {path}:")
    assert said in line


def gates(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["eval", "gates", *map(str, arguments)], catch_exceptions=False)


def test_an_unknown_section_is_told() -> None:
    with pytest.raises(InputError, match="did you mean 'oracle'"):
        read_gates("mini", {}, ["orcale"])


@pytest.mark.slow
def test_the_whole_road_on_random_weights(tiny_bundle: Path, tmp_path: Path) -> None:
    """Only the road: nothing is learnt in two steps, and a random oracle knows nothing."""
    names = (*read_gates("mini", {}).easy, "ride")
    torch.manual_seed(0)
    save_oracle(tmp_path / "oracle", Oracle(OracleConfig(names, (), stem=8, width=16, depth=24, layers=1, heads=2)))
    command = ["--quick", "--bundle", tiny_bundle, "--oracle", tmp_path / "oracle", "--output", tmp_path / "out"]
    command += ["--device", "cpu", "--relations", "ride", "--keep", tmp_path / "kept.json", "--only"]
    result = gates(*command, "oracle,vae,base")
    assert result.exit_code == 0, result.output
    path = tmp_path / "out" / "gates-quick.json"
    assert list(read_json(path)["sections"]) == ["oracle", "vae", "base"]
    result = gates(*command, "lora", "--json")
    content = json.loads(result.stdout)
    assert content == read_json(path)
    assert list(content["sections"]) == ["oracle", "vae", "base", "lora"]
    assert content["sections"]["vae"]["gates"]["PSNR of a round trip, dB"]["passed"] is False
    assert content["sections"]["lora"]["loras"]["ride"][0]["steps"] == 2
    for section in content["sections"].values():
        assert section["settings"]["quick"]
        assert {"date", "n", "gates"} <= section.keys()
        for gate in section["gates"].values():
            assert gate["passed"] in (True, False, None)
    assert not (tmp_path / "kept.json").exists()  # what a smoke test comes to is not worth keeping
    made = {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / "quick").rglob("*.png") if "contact" not in p.name}
    assert gates(*command, "lora").exit_code == 0  # nothing is made twice
    assert {p: p.stat().st_mtime_ns for p in made} == made


@pytest.mark.slow
def test_the_bundle_learns_a_relation_that_was_not_there(tmp_path: Path) -> None:
    """No stand-ins: ``rbctl finetune`` on a YAML that nobody knows, pictures of new individuals, the gates."""
    few = {"scenes": 12, "seeds": (0,), "easy": ("face",), "easy_scenes": 1, "finetune": {"triplets": 6, "steps": 100}}
    stages = Stages(tmp_path, "mini", "cpu", 2)  # of one thread each: tests run beside it
    judge = Judge(load_oracle(resolve("mini") / "oracle"))
    content, told = measured(Measuring(read_gates("mini", few), tmp_path, stages, judge), "new_relation")
    assert content["scenes_of_a_verb"] == 12
    assert told["extended oracle on renders"]["passed"], told
    # Twelve scenes tell no better: the interval reaches the gate, and the mean is far from the base's.
    relation, gain, contact = (
        told[name] for name in ("relation, new individuals", "gain over the base", "median contact / the base's")
    )
    assert relation["high"] >= 0.75, told
    assert relation["mean"] >= 0.5, told
    assert gain["mean"] >= 0.35, told
    assert contact["low"] <= 0.5, told
    assert contact["mean"] <= 0.7, told
