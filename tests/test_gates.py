"""``make gates``: the figures come out right where the truth is known, and the whole road runs on random weights."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # bench is no part of the distribution
    sys.path.insert(0, str(ROOT))

from bench.gates import results  # noqa: E402
from bench.gates.__main__ import main as gates  # noqa: E402
from bench.gates.cases import CANDIDATES, Case, CaseSet, candidates, draw_cases  # noqa: E402
from bench.gates.intervals import interval, ratio_of_medians  # noqa: E402
from bench.gates.judge import Judge  # noqa: E402
from bench.gates.sampling import Sampler  # noqa: E402
from bench.gates.sections import Bench, base, lora, new_relation, oracle, vae  # noqa: E402
from bench.gates.tuning import Lora, Tuner  # noqa: E402
from rbctl.bundle.catalogue import resolve  # noqa: E402
from rbctl.errors import InputError  # noqa: E402
from rbctl.files import read_yaml  # noqa: E402
from rbctl.menagerie import COATS, PATTERNS, SPECIES, compose  # noqa: E402
from rbctl.menagerie.oracle import Oracle, OracleConfig, Reading, load_oracle, look, save_oracle  # noqa: E402
from rbctl.menagerie.triplets import draw_group  # noqa: E402
from rbctl.options import find_recipe  # noqa: E402
from rbctl.relations import load_relation  # noqa: E402

EASY, VERBS = ("stand_next_to", "chase"), ("ride", "hug")
SIZES = {"species": len(SPECIES), "coat": len(COATS), "second": len(COATS), "pattern": len(PATTERNS)}


class Truth:
    """An oracle that knows every render, and says nothing of any other picture."""

    def __init__(self) -> None:
        self.known: dict[bytes, tuple[Case, np.ndarray]] = {}

    def learn(self, cases: CaseSet) -> None:
        for case, picture, keypoints in zip(cases.cases, cases.pictures, cases.keypoints, strict=True):
            self.known[picture.tobytes()] = (case, keypoints)

    def read(self, pictures: torch.Tensor) -> Reading:
        names = ("nothing", *EASY, *VERBS, "sit_back_to_back")
        relation = torch.full((len(pictures), len(names)), -9.0)
        looks = {name: torch.full((len(pictures), 2, size), -9.0) for name, size in SIZES.items()}
        points = torch.rand(len(pictures), 2, 17, 3)
        for k, picture in enumerate(pictures.numpy()):
            case, keypoints = self.known.get(picture.tobytes(), (None, None))
            relation[k, names.index(case.relation.name) if case else 0] = 0
            if case is None:
                continue
            roles = [0, 1]
            if case.relation.symmetric:  # then the one on the left comes first
                roles.sort(key=lambda role: keypoints[role, :, 0].mean())
            for slot, role in enumerate(roles):
                points[k, slot] = torch.from_numpy(keypoints[role])
                for name, value in zip(SIZES, look(case.individuals[role]), strict=True):
                    looks[name][k, slot, value] = 0
        maps = torch.zeros(len(pictures), 2, 32, 32)
        symmetric = tuple(name for name in names if name in ("stand_next_to", "hug", "sit_back_to_back"))
        return Reading(names, symmetric, relation, maps, keypoints=points, **looks)


class Knowing(Judge):
    def extended(self, spoken_to: str) -> Judge:
        return self


class Drawing:
    """Instead of a bundle: truth renders with a LoRA and for easy relations, blank pictures else."""

    def __init__(self, truth: dict[str, np.ndarray]) -> None:
        self.truth, self.asked = truth, []

    def __call__(self, cases: Sequence[Case], name: str, boxes: Any = None, lora_path: Any = None) -> np.ndarray:
        self.asked.append((name, boxes, lora_path))
        shown = lora_path is not None or cases[0].relation.name in EASY
        pictures = np.stack([self.truth[f"{case.relation.name} {case.seed}"] for case in cases])
        return pictures if shown else np.zeros_like(pictures)

    def round_trip(self, pictures: np.ndarray) -> np.ndarray:
        return pictures


def tuned(spoken_to: str, seed: int, again: str = "") -> Lora:
    return Lora(Path(spoken_to), ((0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)), 10.0, 1, 300)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    truth: Truth = Truth()
    pictures: dict[str, np.ndarray] = {}

    class Watched(Bench):
        def cases(self, spoken_to: str, count: int) -> CaseSet:
            drawn = super().cases(spoken_to, count)
            truth.learn(drawn)
            for case, picture in zip(drawn.cases, drawn.pictures, strict=True):
                pictures[f"{case.relation.name} {case.seed}"] = picture
            return drawn

    return Watched(
        folder=tmp_path_factory.mktemp("gates"),
        scenes=4,
        seeds=(0, 1),
        verbs=VERBS,
        easy=EASY,
        held_out=VERBS,
        sampler=Drawing(pictures),
        tuner=tuned,
        judge=Knowing(truth),
        easy_each=2,
    )


def passed(section: dict[str, Any]) -> dict[str, Any]:
    return {name: gate["passed"] for name, gate in section["gates"].items()}


def test_a_perfect_oracle_and_vae_pass(bench: Bench) -> None:
    found = oracle(bench)
    assert found["gates"]["identity of 16, both roles, renders"]["mean"] == 1
    assert all(passed(found).values())
    told = vae(bench)
    assert all(passed(told).values())
    assert told["psnr"]["mean"] == 100  # of no error at all
    assert (bench.folder / told["sheet"]).is_file()


def test_a_base_that_draws_the_easy_relations_alone_passes(bench: Bench) -> None:
    found = base(bench)
    assert all(passed(found).values()), found["gates"]
    assert found["easy"]["mean"]["pattern"]["mean"] == 1
    assert found["held_out"]["mean"]["relation"]["mean"] == 0
    assert found["truth"]["held_out"]["mean"]["directed"]["mean"] == 1


def test_a_lora_that_draws_the_truth_scores_one(bench: Bench) -> None:
    found = lora(bench)
    gates = found["gates"]
    assert gates["relation, new individuals"]["mean"] == gates["gain over the base"]["mean"] == 1
    assert gates["direction, of the right class"] == {**interval([np.ones((2, 2))]), "at_least": 0.85, "passed": True}
    assert gates["easy relations, drop"]["mean"] == 0
    assert found["loras"]["hug"][1]["seconds"] == 10
    assert found["n"] == len(VERBS) * 2 * 2
    assert found["arms"]["lora"]["each"]["ride"]["relation_by_seed"] == [1, 1]
    assert found["arms"]["lora"]["mean"]["contact"] == found["arms"]["truth"]["mean"]["contact"] | {"n": 8}
    assert found["arms"]["lora"]["mean"]["touching"]["mean"] >= 0.75
    assert (bench.folder / "contact-ride.png").is_file()
    boxes = {name.split("-s")[0]: given for name, given, _ in bench.sampler.asked}
    assert boxes["lora-ride"] == boxes["base-lora-boxes-ride"] == [tuned("ride", 0).boxes] * 2
    assert boxes["lora-true-boxes-ride"] == [case.boxes for case in bench.cases("ride", 2).cases]
    assert boxes["base-ride"] is None


def test_a_relation_that_was_not_there(bench: Bench) -> None:
    found = new_relation(bench)
    assert found["gates"]["relation, new individuals"]["mean"] == 1
    assert found["gates"]["extended oracle on renders"]["passed"]


def test_swapped_roles_are_seen(bench: Bench) -> None:
    cases = bench.cases("ride", 2)
    turned = [
        dataclasses.replace(c, scene=dataclasses.replace(c.scene, individuals=c.individuals[::-1])) for c in cases.cases
    ]
    said = bench.judge(cases.pictures, turned)
    assert said.relation.all()
    assert not said.direction.any()
    assert not said.directed.any()
    assert said.species.all()  # individuals are assigned by best matching
    assert said.identity.all()
    assert not said.role_identity.any()
    hug = bench.cases("hug", 2)
    assert np.isnan(bench.judge(hug.pictures, hug.cases).direction).all()


def test_candidates_are_all_different_and_held_out() -> None:
    relation, rng = load_relation("ride"), np.random.default_rng(0)
    scene = compose(relation, draw_group(relation, rng, held_out=True), rng)
    cases = [Case(relation, "ride", scene, (), (), seed) for seed in range(20)]
    found, place = candidates(cases[0], 1)
    assert len({look(one) for one in found}) == CANDIDATES
    assert found[place] == scene.individuals[1]
    assert all(one.held_out for one in found)
    assert (found, place) == candidates(cases[0], 1)
    assert len({candidates(case, 1)[1] for case in cases}) > 5


def test_cases_are_a_function_of_their_number(tmp_path: Path) -> None:
    two, four = (draw_cases(load_relation("ride"), n, tmp_path) for n in (2, 4))
    assert two.cases[1].individuals == four.cases[1].individuals
    assert (two.pictures == four.pictures[:2]).all()
    assert all(path.is_file() for case in four.cases for path in case.portraits)


def test_intervals_hold_the_mean_and_shrink() -> None:
    rng = np.random.default_rng(0)
    few, many = (interval([rng.random((n, 3)) < 0.7]) for n in (20, 500))
    assert few["low"] < few["mean"] < few["high"]
    assert many["high"] - many["low"] < few["high"] - few["low"]
    assert interval([np.full(3, np.nan)])["mean"] is None
    pairs = np.stack((np.full(5, 0.1), np.full(5, 0.4)), axis=-1)
    assert interval([pairs], ratio_of_medians) == {"mean": 0.25, "low": 0.25, "high": 0.25, "n": 5}


def test_scenes_of_a_group_stay_in_it() -> None:
    """Two groups of constant values leave nothing to chance, however different they are."""
    assert interval([np.zeros(5), np.ones(50)]) == {"mean": 0.5, "low": 0.5, "high": 0.5, "n": 55}


def test_sections_are_added_and_those_of_another_bundle_dropped(tmp_path: Path) -> None:
    path, gates = tmp_path / "gates.json", {"gates": {"x": results.gate(0.5, 0.4)}}
    results.store(path, {"bundle": "a"}, "oracle", gates)
    both = results.store(path, {"bundle": "a"}, "vae", {"gates": {"y": results.gate(None, 0.4)}})
    assert both["gates"] == {"oracle: x": True, "vae: y": None}
    assert "not measured" in results.table(both)
    assert list(results.store(path, {"bundle": "b"}, "vae", gates)["sections"]) == ["vae"]


@pytest.mark.slow
def test_the_whole_road_on_random_weights(tiny_bundle: Path, tmp_path: Path) -> None:
    """Only the road: nothing is learnt in two steps, and a random oracle knows nothing."""
    names = (*read_yaml(find_recipe("mini"))["pretrain"]["easy"], "ride")
    torch.manual_seed(0)
    save_oracle(tmp_path / "oracle", Oracle(OracleConfig(names, (), stem=8, width=16, depth=24, layers=1, heads=2)))
    command = ["--quick", "--bundle", str(tiny_bundle), "--oracle", str(tmp_path / "oracle"), "--out", str(tmp_path)]
    command += ["--device", "cpu", "--verbs", "ride", "--only"]
    path = gates([*command, "oracle,vae,base"])
    assert list(results.read(path)["sections"]) == ["oracle", "vae", "base"]
    gates([*command, "lora"])
    found = results.read(path)
    assert list(found["sections"]) == ["oracle", "vae", "base", "lora"]
    assert found["sections"]["vae"]["gates"]["PSNR of a round trip, dB"]["passed"] is False
    assert found["sections"]["lora"]["loras"]["ride"][0]["steps"] == 2
    for section in found["sections"].values():
        assert section["settings"]["quick"]
        assert {"date", "n", "gates"} <= section.keys()
        for gate in section["gates"].values():
            assert gate["passed"] in (True, False, None)
    work = next((tmp_path / "gates-quick").iterdir())
    made = {p: p.stat().st_mtime_ns for p in work.rglob("*.npz")}
    assert len(made) == len(list((work / "pictures").glob("*.png"))) > 5
    gates([*command, "lora"])  # nothing is made twice
    assert {p: p.stat().st_mtime_ns for p in work.rglob("*.npz")} == made


@pytest.mark.slow
def test_the_bundle_learns_a_relation_that_was_not_there(tmp_path: Path) -> None:
    """No stand-ins: ``rbctl finetune`` on the YAML of NEW_RELATION, pictures of new individuals, the gate."""
    bench = Bench(
        folder=tmp_path,
        scenes=12,
        seeds=(0,),
        verbs=("ride",),
        easy=("face",),
        held_out=(),
        sampler=Sampler("mini", tmp_path, device="cpu"),
        tuner=Tuner("mini", tmp_path, device="cpu"),  # one thread: tests run beside it
        judge=Judge(load_oracle(resolve("mini") / "oracle")),
        easy_each=1,
    )
    found = new_relation(bench)
    assert found["scenes_of_a_verb"] == 12
    told = found["gates"]
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


def test_an_unknown_section_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="did you mean 'oracle'"):
        gates(["--only", "orcale"])
