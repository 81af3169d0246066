"""The JSON Schemas that editors use: as the code is, and named by every shipped file that people may copy."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from rbctl.cli import main
from rbctl.plugins.finetune.config import FinetuneConfig
from rbctl.schemas import schemas

ROOT = Path(__file__).resolve().parents[1]
WHOLE = schemas()
KINDS = {"relations": "relation", "benchmarks": "benchmark", "ablations": "ablation", "gates": "gates", "menagerie": ""}
SHIPPED = sorted(path for path in (ROOT / "recipes").rglob("*.yaml") if KINDS.get(path.parent.name, "recipe") in WHOLE)


@pytest.mark.parametrize("name", sorted(WHOLE))
def test_the_published_schemas_are_up_to_date(name: str) -> None:
    published = json.loads((ROOT / f"docs/schemas/{name}.json").read_text(encoding="utf-8"))
    assert published == WHOLE[name], "run: rbctl data schemas docs/schemas"


def test_a_user_can_write_them(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["data", "schemas", str(tmp_path / "schemas")])
    assert result.exit_code == 0, result.output
    paths = [Path(line) for line in result.stdout.splitlines()]
    assert {path.stem for path in paths} == set(WHOLE)
    assert json.loads(paths[0].read_text(encoding="utf-8")) == WHOLE[paths[0].stem]


def outermost(schema: dict[str, Any], content: dict[str, Any]) -> dict[str, Any]:
    """The schema of a file's own keys; of several, the one of its kind."""
    references = [way["$ref"] for way in schema.get("anyOf", [schema]) if "$ref" in way]
    choices = [schema["$defs"][reference.rpartition("/")[2]] for reference in references] or [schema]
    if len(choices) > 1:
        choices = [choice for choice in choices if choice["properties"]["kind"]["const"] == content["kind"]]
    return choices[0]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_shipped_file_names_its_schema_and_holds_no_key_that_is_not_in_it(path: Path) -> None:
    first, _, rest = path.read_text(encoding="utf-8").partition("\n")
    match = re.fullmatch(r"# yaml-language-server: \$schema=(\S+)", first)
    assert match, f"{path}: write its schema on the first line"
    schema = json.loads((path.parent / match[1]).read_text(encoding="utf-8"))
    content = yaml.safe_load(rest)
    top = outermost(schema, content)
    assert set(top.get("required", ())) <= set(content) <= set(top["properties"])
    if match[1].endswith("recipe.json"):
        for stage, values in content.items():
            assert set(values) <= set(top["properties"][stage]["properties"])


def test_a_recipe_knows_every_option_with_its_range_and_help() -> None:
    stages = WHOLE["recipe"]["properties"]
    assert {"sample", "finetune", "generate", "annotate", "eval", "distill", "pretrain"} <= set(stages)
    options = stages["finetune"]["properties"]
    for field in dataclasses.fields(FinetuneConfig):
        assert options[field.name]["description"] == field.metadata["help"]
        assert options[field.name].get("maximum") == field.metadata["max"]
    assert "required" not in stages["finetune"]
