"""``rbctl data`` as a user runs it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from test_triplets import HUG, needs_hug, official_set

from rbctl.cli import main


def data(*arguments: object):
    return CliRunner().invoke(main, ["data", *map(str, arguments)])


def test_help_is_light():
    program = (
        "import sys; from click.testing import CliRunner; from rbctl.cli import main\n"
        "result = CliRunner().invoke(main, ['data', 'import', '--help'])\n"
        "print(result.exit_code, sorted({'torch', 'numpy', 'PIL'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "0 []\n"


@pytest.mark.slow
@pytest.mark.parametrize("objects", [1, 3])
def test_import_check_show(tmp_path, monkeypatch, objects):
    monkeypatch.chdir(tmp_path)
    official_set(Path("downloads/dance"), objects)
    assert data("import", "downloads/dance", "triplets/dance").output == "triplets/dance\n"
    checked = data("check", "triplets/dance")
    assert (checked.exit_code, checked.output) == (0, "triplets/dance: nothing is wrong\n")
    shown = data("show", "triplets/dance")
    assert (shown.exit_code, shown.output) == (0, "runs/data/dance.png\n")
    with Image.open("runs/data/dance.png") as sheet:
        assert sheet.width > 384 * (objects + 1)
        assert sheet.height > 4 * 384
        colours = {colour for _, colour in sheet.convert("RGB").getcolors(1 << 24)}
    drawn = [(37, 99, 235), (234, 88, 12), (22, 163, 74)]
    assert [colour in colours for colour in drawn] == [k < objects for k in range(3)]


def test_the_same_import_again_is_harmless_and_tells_json(tmp_path):
    source = official_set(tmp_path / "dance")
    first = data("import", source, tmp_path / "native", "--json")
    again = data("import", source, tmp_path / "native", "--json")
    assert first.output == again.output
    assert json.loads(first.output)["triplets"] == 4
    assert len(json.loads(first.output)["data_hash"]) == 64
    over = data("import", official_set(tmp_path / "more", triplets=5), tmp_path / "native")
    assert over.exit_code == 2
    assert "other triplets lie here already" in over.output
    assert data("import", source, source).exit_code == 2


def test_import_takes_the_predicate_that_the_data_lacks(tmp_path):
    source = official_set(tmp_path / "dance")
    prompts = json.loads((source / "prompts.json").read_text())
    for entry in prompts.values():
        del entry["predicate"]
        entry["prompt"] = "A Red Fox and an owl tango."
    (source / "prompts.json").write_text(json.dumps(prompts))
    checked = data("check", source)
    assert checked.exit_code == 0  # it may be left out, as docs/formats.md says
    assert checked.output.count("predicate: is missing") == 4
    assert data("import", source, tmp_path / "native", "--predicate", "tango").exit_code == 0
    assert data("check", tmp_path / "native").exit_code == 0


def test_check_prints_each_problem_on_a_line_and_fails(tmp_path):
    source = official_set(tmp_path / "dance", triplets=3)
    warned = data("check", source)
    assert (warned.exit_code, warned.output[:9]) == (0, "warning: ")
    (source / "videos" / "0" / "motion.png").unlink()
    torch.save(torch.zeros(1, 5, 2), source / "videos" / "2" / "concept_keyposes_one.pth")
    checked = data("check", source)
    lines = checked.output.splitlines()
    assert checked.exit_code == 2
    assert len(lines) == 3
    assert "motion.png: triplet 0: no such file" in lines[0]
    assert "shape (1, 5, 2), but (1, 17, 2) was expected" in lines[1]
    as_json = data("check", source, "--json")
    assert as_json.exit_code == 2
    assert [p["level"] for p in json.loads(as_json.output)] == ["error", "error", "warning"]
    assert set(json.loads(as_json.output)[0]) == {"triplet", "file", "what", "mend", "level"}


@pytest.mark.parametrize("action", ["check", "show"])
def test_a_folder_without_triplets_is_told_in_one_line(tmp_path, action):
    result = data(action, tmp_path)
    assert result.exit_code == 2
    assert result.output.startswith("Error: ")
    assert "two layouts are known" in result.output
    assert result.output.count("\n") == 1


def test_showing_a_broken_picture_is_told_in_one_line_and_keeps_the_old_sheet(tmp_path):
    source = official_set(tmp_path / "dance", triplets=2)
    sheet = tmp_path / "sheet.png"
    assert data("show", source, "--output", sheet).exit_code == 0
    before = sheet.read_bytes()
    (source / "videos" / "1" / "concept1.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    result = data("show", source, "--output", sheet)
    assert result.exit_code == 2
    assert "concept1.png: not a readable picture" in result.output
    assert result.output.count("\n") == 1
    assert sheet.read_bytes() == before


@pytest.mark.slow
@needs_hug
def test_the_published_set(tmp_path):
    assert data("import", HUG, tmp_path / "hug").exit_code == 0
    checked = data("check", tmp_path / "hug")
    assert checked.exit_code == 0
    assert "bear and tiger look exchanged" in checked.output
