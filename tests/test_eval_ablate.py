"""``rbctl eval ablate``: variants trained, sampled and scored by the stages themselves, and the tables of them."""

from __future__ import annotations

import dataclasses
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.shell_completion import ShellComplete
from click.testing import CliRunner, Result
from PIL import Image
from safetensors import safe_open
from torch import nn

from rbctl.bundle.catalogue import resolve
from rbctl.bundle.fingerprints import local_encoder_hash
from rbctl.cli import main
from rbctl.errors import InputError
from rbctl.files import read_json, read_jsonl, write_json, write_safetensors
from rbctl.image_prompt import ImagePromptEncoder
from rbctl.menagerie.triplets import draw_triplets
from rbctl.options import find_recipe
from rbctl.plugins.eval.ablate import cost, run, tables
from rbctl.plugins.eval.ablate.recipe import Ablation, Recipe, Table, read
from rbctl.plugins.eval.stages import Stages, Step, run_steps
from rbctl.relations import load_relation
from rbctl.triplets import data_hash, load

pytestmark = pytest.mark.usefixtures("one_thread")

HUG = Path(__file__).resolve().parents[2] / "shared" / "data" / "dreamrelation" / "hug"

TINY: dict[str, Any] = {
    "relations": ["ride"],
    "seeds": [0],
    "cases": 1,
    "finetune": {"steps": 2, "batch_size": 1, "augmentation_draws": 1, "triplets": 2, "prior": "none"},
    "sample": {"steps": 2},
    "tables": [
        {"name": "A", "title": "parts", "rows": {"full": {}, "without KML": {"finetune": {"kml_weight": 0}}}},
        {
            "name": "B",
            "note": "Some words.",
            "rows": {"0": {"finetune": {"kml_weight": 0.0}}, "1e-3": {"finetune": {"kml_weight": "1e-3"}}},
        },
    ],
}


def write(folder: Path, **changes: Any) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump({**TINY, **changes}, sort_keys=False))
    return path


def ablate(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["eval", "ablate", *map(str, arguments)], catch_exceptions=False)


def wait_for(there: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    begun = time.monotonic()
    while not there():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() - begun < 300
        time.sleep(0.05)


@dataclasses.dataclass(frozen=True)
class Done:
    """An ablation that was interrupted while its second variant was sampled, then taken up again."""

    recipe: Path
    output: Path
    stopped: subprocess.CompletedProcess[str]
    plan: str
    result: Result

    @property
    def content(self) -> dict[str, Any]:
        return dict(read_json(self.output / "tables.json"))

    def files(self, pattern: str) -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in self.output.glob(pattern)}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    folder = tmp_path_factory.mktemp("ablate")
    recipe, output = write(folder), folder / "out"
    command = [sys.executable, "-m", "rbctl", "eval", "ablate", str(recipe), "--output", str(output)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        wait_for(lambda: len(list(output.glob("pictures/*/log.txt"))) == 2, process)
        process.send_signal(signal.SIGINT)
        said, told = process.communicate(timeout=300)
    stopped = subprocess.CompletedProcess(command, process.returncode, said, told)
    plan = ablate(recipe, "--output", output, "--dry-run").stdout
    return Done(recipe, output, stopped, plan, ablate(recipe, "--output", output))


@pytest.mark.slow
def test_methods_of_subjects_learn_each_subject_of_each_case(tmp_path: Path) -> None:
    learns = {"steps": 1, "method": "textual_inversion", "prior": "none"}
    row = {"data": "subjects", "finetune": learns, "sample": {"scale": 0}}
    custom = {**row, "finetune": {**learns, "method": "custom_diffusion"}, "sample": {"scale": 0, "lora_weight": 0.5}}
    rows = {"base": {"sample": {"lora_weight": 0}}, "inversion": row, "custom": custom}
    recipe = write(tmp_path, tables=[{"rows": rows}])
    plan = ablate(recipe, "--output", tmp_path / "out", "--dry-run").stdout
    assert "to do: 5 of 5 finetunings, 4 of 4 pictures, 4 of 4 scorings" in plan
    result = ablate(recipe, "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    variants = read_json(tmp_path / "out" / "tables.json")["variants"]
    (base,) = read_jsonl(tmp_path / "out" / variants["base"]["pictures"][0] / "metadata.jsonl")
    assert (base["lora_weight"], base["lora"]) == (0, f"../../{variants['full']['learned'][0]}")
    told = variants["inversion"]
    assert [Path(path).parent.name for path in told["learned"]] == ["000-0", "000-1"]
    (row,) = read_jsonl(tmp_path / "out" / told["pictures"][0] / "metadata.jsonl")
    classes = [thing["name"] for thing in row["objects"]]
    assert [words in row["words"] for words in (f"<{classes[0]}>", f"<{classes[1]}>")] == [True, True]
    (both,) = read_jsonl(tmp_path / "out" / variants["custom"]["pictures"][0] / "metadata.jsonl")
    assert [words in both["words"] for words in (f"<new1> {classes[0]}", f"<new2> {classes[1]}")] == [True, True]
    assert (both["lora_weight"], len(both["lora"].split(","))) == (0.5, 2)
    shown = {path.name for path in (tmp_path / "out" / "subjects" / "ride-000-0").iterdir()}
    assert any(Path(row["objects"][0]["image"]).stem.startswith(Path(name).stem) for name in shown)
    plan = ablate(recipe, "--output", tmp_path / "out", "--dry-run").stdout
    assert "to do: 0 of 5 finetunings, 0 of 4 pictures, 0 of 4 scorings" in plan


def draw_benchmark(folder: Path) -> Path:
    """A folder as RelationBench's, of one prompt and two plain pictures."""
    for number, name in enumerate(("cat_0", "dog_8")):
        (folder / "benchmark" / name).mkdir(parents=True)
        Image.new("RGB", (64, 64), (90 * number, 60, 30)).save(folder / "benchmark" / name / "0.png")
    prompts = [{"sub1": "benchmark/dog_8", "prompt": "A dog is hugging a cat in front of the mountain."}]
    (folder / "prompts.json").write_text(json.dumps(prompts))
    return folder


@pytest.mark.slow
def test_real_triplets_on_a_benchmark_of_pictures(tiny_bundle: Path, tmp_path: Path) -> None:
    """Triplets of a folder, RelationBench's cases, and encoders that are told."""
    draw_triplets(load_relation("hug"), 2, 0, tmp_path / "hug")
    pictures = draw_benchmark(tmp_path / "pictures")
    rows = {"full": {}, "without KML": {"finetune": {"kml_weight": 0}}}
    weights = {"lambda 1e-3": {}, "lambda 1e-2": {"finetune": {"kml_weight": 0.01}}}
    recipe = write(
        tmp_path,
        bench="relationbench",
        relations=["hug"],
        cases=4,
        data={"hug": "hug"},
        finetune={"steps": 1, "batch_size": 1, "prior": "none"},
        sample={"steps": 1},
        tables=[{"name": "Table 4", "rows": rows}, {"name": "Table 6", "rows": weights}],
    )
    mini = resolve("mini")
    told = ["--data", pictures, "--clip", mini, "--dino", mini / "dino", "--bundle", tiny_bundle]
    result = ablate(recipe, *told, "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    content = read_json(tmp_path / "out" / "tables.json")
    assert [table["name"] for table in content["tables"]] == ["Table 4", "Table 6"]
    assert len(content["variants"]) == 3
    assert {c["name"] for c in content["columns"].values()} == {"CLIP-T", "CLIP-R", "CLIP-I", "DINO"}
    for variant in content["variants"].values():
        (path,) = variant["learned"]
        with safe_open(tmp_path / "out" / path, framework="pt") as file:
            assert file.metadata()["rbctl.data_hash"] == data_hash(load(tmp_path / "hug"))
        assert all(cell["cases"] == 1 for cell in variant["cells"].values())
    # a folder of another relation's triplets in the recipe's place
    draw_triplets(load_relation("hug"), 2, 1, tmp_path / "other")
    plan = ablate(recipe, *told, "--triplets", f"hug={tmp_path / 'other'}", "--output", tmp_path / "out", "--dry-run")
    assert "to do: 3 of 3 finetunings" in plan.stdout
    again = ablate(recipe, *told, "--output", tmp_path / "out", "--dry-run")
    assert "to do: 0 of 3 finetunings" in again.stdout


def write_local_encoder(folder: Path, width: int) -> Path:
    """As ``rbctl distill --bundle`` writes one: a narrow tower and a map to mini's adapter, both random."""
    from open_clip.model import CLIP

    vision = {"image_size": 32, "layers": 2, "width": 48, "head_width": 12, "patch_size": 16}
    text = {"context_length": 16, "vocab_size": 64, "width": 8, "heads": 2, "layers": 1}
    config = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}
    torch.manual_seed(0)
    write_json(folder / "open_clip_config.json", {"model_cfg": config})
    write_safetensors(folder / "model.safetensors", CLIP(**config).state_dict(), {})
    write_safetensors(folder / "adapter_map.safetensors", {"weight": torch.randn(width, 48)}, {})
    return folder


@pytest.mark.slow
def test_a_row_may_have_another_local_encoder(tmp_path: Path) -> None:
    """Table 5: the bundle with that encoder is tuned and sampled; the bundle itself scores."""
    recipe = write(tmp_path, tables=[{"rows": {"own": {}, "narrow": {"local_encoder": "narrow"}}}])
    left_out = ablate(recipe, "--output", tmp_path / "out", "--dry-run")
    assert "Table 1: without 'narrow', whose encoder is not named; --local-encoder narrow=FOLDER" in left_out.stderr
    assert "to do: 1 of 1 finetunings" in left_out.stdout
    told = [
        "--local-encoder",
        f"narrow={write_local_encoder(tmp_path / 'clipself', 128)}",
        "--output",
        tmp_path / "out",
    ]
    assert "to do: 2 of 2 finetunings, 2 of 2 pictures" in ablate(recipe, *told, "--dry-run").stdout
    assert not (tmp_path / "out").exists()
    result = ablate(recipe, *told)
    assert result.exit_code == 0, result.output
    variants = read_json(tmp_path / "out" / "tables.json")["variants"]
    assert list(variants) == ["full", "narrow"]
    hashes, pictures = [], []
    for variant in variants.values():
        with safe_open(tmp_path / "out" / variant["learned"][0], framework="pt") as file:
            hashes.append(file.metadata()["rbctl.local_encoder_hash"])
        (path,) = (tmp_path / "out" / variant["pictures"][0]).glob("a-*.png")
        pictures.append(path.read_bytes())
    (bundle,) = (tmp_path / "out" / "bundles").iterdir()
    assert hashes == [local_encoder_hash(resolve("mini")), local_encoder_hash(bundle)]
    assert (bundle / "unet").resolve() == resolve("mini") / "unet"
    assert pictures[0] != pictures[1]
    assert "to do: 0 of 2 finetunings, 0 of 2 pictures, 0 of 2 scorings" in ablate(recipe, *told, "--dry-run").stdout


def test_a_local_encoder_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    table = {"name": "Table 5", "rows": {"narrow": {"local_encoder": "narrow"}}}
    recipe = write(tmp_path, tables=[table], local_encoders={"narrow": "nowhere"})
    with pytest.raises(
        InputError, match=r"Table 5: narrow: local_encoder: .*nowhere holds none; 'rbctl distill' writes"
    ):
        read(str(recipe), {})


@pytest.mark.slow
@pytest.mark.skipif(not HUG.is_dir(), reason="the authors' triplets are not beside this checkout")
def test_the_papers_tables_4_and_6_on_the_authors_triplets(tiny_bundle: Path, tmp_path: Path) -> None:
    """The shipped recipe with a step for each training; then the paper's tables with its figures beside ours."""
    recipe = yaml.safe_load(find_recipe("sdxl-paper", "ablations").read_text())
    recipe["finetune"] |= {"steps": 1, "batch_size": 1, "micro_batch_size": 1, "resolution": 128}
    recipe["sample"] |= {"steps": 1}
    for table in recipe["tables"]:
        for row in table["rows"].values():
            row.get("finetune", {}).pop("steps", None)
    path, output = tmp_path / "sdxl-paper.yaml", tmp_path / "out"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    mini = resolve("mini")
    told = ["--triplets", f"hug={HUG}", "--data", draw_benchmark(tmp_path / "pictures"), "--bundle", tiny_bundle]
    told += ["--clip", mini, "--dino", mini / "dino", "--tables", "Table 4", "--tables", "Table 6"]
    result = ablate(path, *told, "--output", output)
    assert result.exit_code == 0, result.output
    shown = CliRunner().invoke(main, ["eval", "tables", str(output), "--json"], catch_exceptions=False)
    tables = {table["name"]: table["rows"] for table in json.loads(shown.stdout)["tables"]}
    measured = {name: [row["row"] for row in rows if row["measured"]] for name, rows in tables.items()}
    assert measured["Table 4"] == [
        "full",
        "R* on the targets, blank image prompts",
        "without local tokens",
        "without KML",
    ]
    assert measured["Table 6"] == ["lambda 1e-2", "lambda 1e-3", "lambda 1e-4"]
    assert not any(rows for name, rows in measured.items() if name not in ("Table 4", "Table 6"))
    for row in (*tables["Table 4"], *tables["Table 6"]):
        assert not row["measured"] or row["measured"].keys() == {"CLIP-T", "CLIP-R", "CLIP-I", "DINO"}


@pytest.mark.slow
def test_an_interruption_keeps_what_is_finished(done: Done) -> None:
    assert done.stopped.returncode == 130
    assert "the same command again goes on" in done.stopped.stderr
    assert "Traceback" not in done.stopped.stderr
    # Two variants, though each stands in both tables: 0 is 0.0, and 1e-3 the default.
    assert "2 tables, 2 variants on ride with seeds 0; 1 cases" in done.plan
    assert "to do: 0 of 2 finetunings, 1 of 2 pictures, 2 of 2 scorings" in done.plan
    assert len(done.files("loras/*/lora.safetensors")) == 2


@pytest.mark.slow
def test_the_tables(done: Done) -> None:
    assert done.result.exit_code == 0, done.result.output
    content = done.content
    assert list(content["variants"]) == ["full", "without KML"]
    first, second = content["tables"]
    assert first["rows"] == {"full": "full", "without KML": "without KML"}
    assert second["rows"] == {"0": "without KML", "1e-3": "full"}
    names = [facts["name"] for facts in content["columns"].values()]
    assert {"relation", "direction", "contact", "identity", "colour", "CLIP-T", "CLIP-R", "CLIP-I"} <= {*names}
    with Image.open(done.output / "pictures.png") as sheet:
        assert sheet.width == 8 + 4 * (128 + 8)  # two image prompts and two variants
    markdown = (done.output / "tables.md").read_text()
    for name, variant in content["variants"].items():
        for column, cell in variant["cells"].items():
            assert cell["cases"] == 1
            assert cell["by_seed"] == {"0": cell["mean"]}
            difference = cell["mean"] - content["variants"]["full"]["cells"][column]["mean"]
            assert variant["minus_full"][column]["difference"] == pytest.approx(difference, abs=2e-5)
        row = [line for line in markdown.splitlines() if line.startswith(f"| {name} | 1 | ")]
        assert len(row) == 1
        assert len(row[0].strip("| ").split(" | ")) == 2 + len(names)
        assert "[" not in row[0]  # one case has no interval
    assert content["variants"]["full"]["cells"] != content["variants"]["without KML"]["cells"]
    for words in ("A: parts", "Some words.", "tables.md"):
        assert words in done.result.stdout


@pytest.mark.slow
def test_boxes_and_noise_are_the_same_for_all(done: Done) -> None:
    prompts = [yaml.safe_load(path.read_text())["prompts"] for path in done.output.glob("pictures/*.yaml")]
    one, other = ([{k: v for k, v in entry.items() if k != "lora"} for entry in some] for some in prompts)
    assert one == other
    assert all(thing["box"] for thing in one[0]["objects"])
    assert prompts[0][0]["lora"] != prompts[1][0]["lora"]


@pytest.mark.slow
def test_the_same_again_makes_what_is_missing_alone(done: Done) -> None:
    before, made = done.content, done.files("*/*/*.safetensors")
    scored, other = sorted(done.output.glob("pictures/*/scores.json"))
    kept = done.files(f"{other.parent.relative_to(done.output)}/*")
    scored.unlink()
    (done.output / "tables.json").unlink()
    result = ablate(done.recipe, "--output", done.output, "--jobs", 2, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == done.content == before
    assert done.files("*/*/*.safetensors") == made
    assert done.files(f"{other.parent.relative_to(done.output)}/*") == kept


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"relations": ["rde"]}, "did you mean 'ride'"),
        ({"seeds": 3}, "seeds: a list was expected, not 3"),
        ({"bench": "relationbench-mini", "table": []}, "table: no such key; did you mean 'tables'?"),
        (
            {"tables": [{"name": "A", "rows": {"x": {"finetne": {}}}}]},
            "tables[0].rows.x.finetne: no such key; did you mean 'finetune'?",
        ),
        (
            {"tables": [{"name": "A", "rows": {"x": {"finetune": {"kml_wieght": 0}}}}]},
            "tiny.yaml: A: x: finetune: no option 'kml_wieght'; did you mean 'kml_weight'?",
        ),
        (
            {"tables": [{"name": "A", "rows": {"x": {"sample": {"steps": 0}}}}]},
            "A: x: sample: steps: 0 is not a whole number from 1 to 1000",
        ),
        ({"tables": [{"name": "A", "rows": {"x": {"finetune": {"seed": 0}}}}]}, "the ablation sets it"),
        (
            {"tables": [{"name": "A", "rows": {"x": {"data": "none"}}}]},
            "rows.x.data: 'relation', 'unrelated' or 'subjects' was expected, not 'none'",
        ),
        ({"sample": {"guidance": 1}}, "the full method: sample: no option 'guidance'"),
    ],
)
def test_a_bad_recipe_is_one_line(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    result = ablate(write(tmp_path, **changes), "--output", tmp_path / "out")
    assert (result.exit_code, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 1
    assert said in result.stderr
    assert not (tmp_path / "out").exists()


def test_what_is_not_there_is_told_before_anything_runs(tmp_path: Path) -> None:
    assert "no such recipe; did you mean 'paper'?" in ablate("papr").stderr
    arguments = ("--output", tmp_path / "out", "--dry-run")
    result = ablate(write(tmp_path, bench="relationbench-mnii"), *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "did you mean 'relationbench-mini'" in result.stderr
    assert "does not exist" in ablate(write(tmp_path), *arguments, "--dino", tmp_path / "nowhere").stderr


@pytest.mark.slow
def test_the_shipped_recipe_and_what_flags_change(tmp_path: Path) -> None:
    ablation = read("paper", {"relations": ("hug",), "seeds": (4, 5)})
    assert ablation.recipe.relations == ("hug",)
    assert [table.name for table in ablation.tables] == ["Table 4", "Table 6", "Table 7"]
    weights = [ablation.variants[key].finetune["kml_weight"] for key in ablation.tables[1].rows.values()]
    assert weights == [1e-2, 1e-3, 1e-4]
    assert {table.rows.get(label) for table, label in zip(ablation.tables, ("full", "lambda 1e-3"), strict=False)} == {
        ablation.full.key
    }
    work = run.Work(ablation, Stages(tmp_path, "mini"))
    assert len({cell.tuned for cell in work.cells}) == 2 * len(ablation.variants)


@pytest.mark.slow
def test_some_of_the_tables(tmp_path: Path) -> None:
    some = read(str(write(tmp_path)), {}, ["B"])
    assert [(table.name, list(table.rows)) for table in some.tables] == [("B", ["0", "1e-3"])]
    assert [variant.name for variant in some.variants.values()] == ["full", "0"]
    with pytest.raises(InputError, match=r"--tables: .*tiny.yaml has no 'C'; its tables: A, B"):
        read(str(write(tmp_path)), {}, ["B", "C"])


def test_a_variant_that_differs_in_sampling_alone_is_not_trained_again(tmp_path: Path) -> None:
    rows = {"slow": {"sample": {"steps": 3}}, "inverted": {"finetune": {"learning_rate": 1e-5}}}
    ablation = read(str(write(tmp_path, tables=[{"name": "A", "rows": rows}])), {})
    full, slow, inverted = run.Work(ablation, Stages(tmp_path, "mini")).cells
    assert slow.tuned == full.tuned != inverted.tuned
    assert len({full.shown, slow.shown, inverted.shown}) == 3


def test_unrelated_triplets_say_one_relation_and_show_another(tmp_path: Path) -> None:
    from rbctl.triplets import load

    rows = {"x": {"data": "unrelated"}}
    ablation = read(str(write(tmp_path, tables=[{"name": "A", "rows": rows}])), {})
    work = run.Work(ablation, Stages(tmp_path, "mini"))
    said = load(work._unrelated(work.cells[1]))
    shown = load(next(tmp_path.glob("unrelated/*-shown")))
    assert len(said) == TINY["finetune"]["triplets"]
    for ours, theirs in zip(said, shown, strict=True):
        assert "rid" in ours.prompt
        assert "rid" not in theirs.prompt
        assert [thing.role for thing in ours.objects] == ["rider", "mount"]


def test_a_failed_command_is_told_with_its_log_and_stops_no_other(tmp_path: Path) -> None:
    ended: list[str] = []

    def keep(printed: str, seconds: float) -> None:
        assert seconds > 0
        ended.append(printed)

    steps = [
        Step(("finetune", "--relatoin", "ride"), tmp_path / "a" / "log.txt", keep),
        Step(("finetune", "--relation", "ride", "--dry-run"), tmp_path / "b" / "log.txt", keep),
    ]
    with pytest.raises(InputError, match=r"1 of 2 failed.*rbctl finetune: .*--relatoin.* \(log: .*a/log.txt\)"):
        run_steps(steps, 2, "finetune")
    assert len(ended) == 1
    assert ended[0].startswith("finetune:")


def test_means_and_differences() -> None:
    """Seeds are averaged within a case; a difference is that of the same cases."""

    def cell(seed: int, values: dict[str, float | None]) -> dict[str, Any]:
        rows = [{"case": c, "relation": "ride", "seed": seed, "scores": {"m": v}} for c, v in values.items()]
        facts = {"name": "m", "profile": "p", "definition": "d", "hash": "h"}
        return {"columns": {"m": facts}, "lacking": [], "rows": rows}

    full = run.Variant("full", {}, {}, {}, "relation")
    other = run.Variant("other", {"data": "x"}, {"a": 1}, {}, "relation")
    table = Table("T", "", "", {"full": full.key, "without": other.key})
    recipe = Recipe(("ride",), (0, 1), ())
    ablation = Ablation(Path("r.yaml"), recipe, {v.key: v for v in (full, other)}, (table,))
    scored = {
        full.key: [cell(0, {"a": 1.0, "b": 0.0, "c": 1.0}), cell(1, {"a": 1.0, "b": 1.0, "c": None})],
        other.key: [cell(0, {"a": 0.0, "b": 0.0, "c": None}), cell(1, {"a": 0.0, "b": 0.0, "c": None})],
    }
    found = tables.content(ablation, scored)
    cells = found["variants"]["full"]["cells"]["m"]
    assert cells["mean"] == pytest.approx((1 + 0.5 + 1) / 3, abs=1e-5)
    assert cells["by_seed"] == {"0": pytest.approx(2 / 3, abs=1e-5), "1": 1.0}
    difference = found["variants"]["other"]["minus_full"]["m"]
    assert (difference["difference"], difference["cases"], difference["p"]) == (-0.75, 2, 0.5)


FULL_SIZE: dict[str, Any] = {
    "device": "some GPU",
    "sizes": "full",
    "sections": {
        "finetune": [
            {"what": "encoding 6 triplets, once a run", "s": 2.5},
            {"what": "8 micro-batches of 1, triton", "s for 500 steps": 400.0},
            {"what": "2 micro-batches of 4, triton", "s for 500 steps": 360.0},
            {"what": "1 micro-batches of 8, triton", "failed": "OutOfMemoryError: no memory"},
        ],
        "sampling": [
            {"what": "batch 1, ours, triton", "s/image": 1.0},
            {"what": "batch 1, rbctl sample itself, triton", "s/image": 6.0},
        ],
    },
}


def test_gpu_hours_rest_on_the_best_figures_of_full_size(tmp_path: Path) -> None:
    path = tmp_path / "fullsize.json"
    path.write_text(json.dumps(FULL_SIZE))
    figures = cost.read_figures(path)
    tunings = [{"steps": 500, "batch_size": 8}] * 9 + [{"steps": 1000, "batch_size": 4}]  # as ten of 500 steps
    told = cost.summary(tunings, [{"steps": 30}] * 600, figures)
    assert told.startswith("cost: 5,500 finetuning steps, 18,000 denoising steps; about 2.0 GPU hours by ")
    assert "fullsize.json (some GPU: 360 s for 500 steps, 2 micro-batches of 4, triton; 6.00 s a picture" in told
    path.write_text(json.dumps({**FULL_SIZE, "sizes": "small: no figure of these means anything"}))
    with pytest.raises(InputError, match="measured at small sizes"):
        cost.read_figures(path)
    path.write_text(json.dumps({**FULL_SIZE, "sections": {"finetune": FULL_SIZE["sections"]["finetune"]}}))
    with pytest.raises(InputError, match="holds no 's/image'; run bench/fullsize"):
        cost.read_figures(path)


def test_a_plan_tells_its_steps_and_why_it_has_no_gpu_hours(tmp_path: Path) -> None:
    plan = run.Work(read(str(write(tmp_path)), {}), Stages(tmp_path / "out", "mini")).plan()
    assert "cost: 4 finetuning steps, 4 denoising steps; GPU hours are not known: full size is measured at 1024" in plan


def test_a_folder_named_ablate_is_still_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ablate").mkdir()
    result = CliRunner().invoke(main, ["eval", "./ablate"])
    assert result.exit_code == 2
    assert "ablate: no metadata.jsonl" in result.stderr
    assert "RECIPE" in ablate("--help").stdout
    assert (
        "Usage: rbctl eval [OPTIONS] [RUNS]" in CliRunner().invoke(main, ["eval", "--help"], prog_name="rbctl").stdout
    )


def test_help_and_completion_show_the_commands() -> None:
    shown = CliRunner().invoke(main, ["eval", "--help"]).stdout
    assert re.search(r"Commands:\n +ablate .*\n(.*\n)* +gates ", shown)
    complete = ShellComplete(main, {}, "rbctl", "_RBCTL_COMPLETE").get_completions
    assert [(item.type, item.value) for item in complete(["eval"], "ab")] == [("plain", "ablate"), ("file", "ab")]
    assert "--bench" in [item.value for item in complete(["eval", "folder"], "--b")]
    assert [item.value for item in complete(["eval", "gates"], "--on")] == ["--only"]


class _Clip(nn.Module):
    """The one thing that is read of an image encoder: (R, 1 + 4 * 4, C) of which all are zero."""

    def forward(self, pixels: torch.Tensor, output_hidden_states: bool) -> Any:
        return type("Output", (), {"hidden_states": [torch.zeros(len(pixels), 17, 3), None]})


@pytest.mark.parametrize("splits", [2, 4, 8])
def test_local_tokens_of_other_grids_and_other_ways_in(splits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def numbered(visual: Any, pixels: torch.Tensor, splits: int, first_image: bool) -> torch.Tensor:
        return torch.arange(1.0, splits**2 + 1).reshape(1, -1, 1).expand(len(pixels), -1, 3)

    monkeypatch.setattr("rbctl.image_prompt.local_tokens", numbered)
    encoder = ImagePromptEncoder(_Clip(), nn.Identity(), nn.Identity(), torch.zeros(4, 3))  # type: ignore[arg-type]
    pixels = torch.zeros(2, 3, 8, 8)
    ways = {way: encoder.object_tokens(pixels, pixels, "own", splits, way) for way in ("concat", "replace", "add")}
    local = torch.arange(1.0, splits**2 + 1)
    assert ways["concat"].shape == (2, 17 + splits**2, 3)
    assert torch.equal(ways["concat"][1, 17:, 0], local)
    assert ways["replace"].shape == (2, 1 + splits**2, 3)
    # A patch takes the token of its cell: those come column by column, patches row by row.
    patches = ways["add"][0, 1:, 0].unflatten(0, (4, 4))
    grid = local.unflatten(0, (splits, splits)).T
    for row in range(4):
        for column in range(4):
            assert patches[row, column] == grid[row * splits // 4, column * splits // 4]
    assert ways["add"].shape == (2, 17, 3)
    assert float(ways["add"][:, 0].abs().max()) == 0
