"""Relations of one and of three roles, all the way from a YAML to scores."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from rbctl.bundle.catalogue import resolve
from rbctl.cli import main
from rbctl.files import read_json
from rbctl.lora import layout_prior, read
from rbctl.menagerie import judge
from rbctl.menagerie.oracle import load_oracle
from rbctl.relations import load_relation
from rbctl.triplets import load

ONE = """\
name: bow
predicate: is bowing
prompts: ["A {dancer} is bowing."]
roles: [{name: dancer, box: [0.2, 0.2, 0.8, 0.9]}]
scene: {figures: [{pose: lean}]}
"""
THREE = """\
name: queue_up
predicate: queue up
prompts: ["A {first}, a {second} and a {last one} queue up."]
roles:
  - {name: first, box: [0.0, 0.4, 0.35, 0.9]}
  - {name: second, box: [0.3, 0.4, 0.7, 0.9]}
  - {name: last one, box: [0.65, 0.4, 1.0, 0.9]}
scene:
  figures:
    - {pose: sit}
    - {pose: sit, gap: [-0.4, -0.2]}
    - {pose: sit, gap: [-0.4, -0.2]}
""".replace("{last one}", "{last_one}")

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


def rbctl(*arguments: str | Path) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize(("yaml", "count"), [(ONE, 1), (THREE, 3)], ids=["one", "three"])
def test_the_whole_road(yaml: str, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(judge, "extend", functools.partial(judge.extend, steps=1, each=1))  # it need not be right
    Path("own.yaml").write_text(yaml)
    relation = load_relation("own.yaml")
    rbctl("generate", "--relation", "own.yaml", "--number", "2", "--output", "raw")
    if load_oracle(resolve("mini") / "oracle").config.roles >= count:
        rbctl("annotate", "raw", "--relation", "own.yaml")
        assert [len(triplet.objects) for triplet in load(Path("raw"))] == [count, count]
    few = ("--triplets", "2", "--steps", "1", "--batch-size", "1", "--prior-count", "1")
    rbctl("finetune", "--relation", "own.yaml", *few, "--output", "ft")
    prior = layout_prior([read(Path("ft/lora.safetensors"))])
    assert prior is not None
    assert prior.roles == tuple(role.name for role in relation.roles)
    rbctl("data", "check", "ft/triplets")
    lora = f"{relation.name}=ft/lora.safetensors"
    bench = ("--bench", "relationbench-mini", "--relations", "own.yaml", "--cases", "1", "--steps", "1")
    output = rbctl("eval", *bench, "--lora", lora, "--output", "scores")
    assert "extra head" in output
    rows = [json.loads(line) for line in Path("scores/pictures.jsonl").read_text().splitlines()]
    assert {len(row["oracle"]["missing"]) for row in rows} == {count}
    assert {row["oracle"]["direction"] for row in rows} <= ({None} if count == 1 else {True, False})
    assert read_json(Path("scores/scores.json"))["numbers"] == {}  # all cases have as many
