"""``rbctl models`` and the catalogue behind it, without any network."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from rbctl.bundle.catalogue import CATALOGUE, bundles_root, place, resolve, size_text, survey
from rbctl.cli import main
from rbctl.errors import InputError


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty place for bundles."""
    folder = tmp_path / "bundles"
    folder.mkdir()
    monkeypatch.setenv("RBCTL_BUNDLES", str(folder))
    return folder


def rbctl(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["models", *map(str, arguments)])


def test_where_bundles_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RBCTL_BUNDLES", raising=False)
    assert bundles_root() == tmp_path / ".cache" / "rbctl" / "bundles"
    (tmp_path / "bundles").mkdir()
    assert bundles_root() == Path("bundles")
    monkeypatch.setenv("RBCTL_BUNDLES", "/elsewhere")
    assert place("sdxl") == Path("/elsewhere/sdxl")
    assert place("./x/sdxl") == Path("x/sdxl")


def test_a_missing_bundle_says_how_to_get_it(root: Path) -> None:
    with pytest.raises(
        InputError, match=r"bundle 'sdxl' is not here; get it with 'rbctl models pull sdxl' \(25.9 GB\)"
    ):
        resolve("sdxl")
    with pytest.raises(InputError, match=r"sdlx: no such bundle or folder; did you mean 'sdxl'\?"):
        resolve("sdlx")
    with pytest.raises(InputError, match="'rbctl models list' shows what there is"):
        resolve("/nowhere/at/all")


def test_a_bundle_is_found_by_name_and_by_folder(root: Path, tiny_bundle: Path) -> None:
    shutil.copytree(tiny_bundle, root / "mine")
    assert resolve("mine") == root / "mine"
    assert resolve(tiny_bundle) == tiny_bundle
    shutil.rmtree(root / "mine" / "vae")
    (root / "mine" / "ms_adapter.safetensors").unlink()
    with pytest.raises(InputError, match=r"not a whole bundle \(vae, ms_adapter missing\)"):
        resolve("mine")


def test_survey_tells_what_is_where(root: Path, tiny_bundle: Path) -> None:
    shutil.copytree(tiny_bundle, root / "mine")
    shutil.rmtree(root / "mine" / "clipself")
    (root / "sdxl" / "unet").mkdir(parents=True)
    (root / "sdxl" / "unet" / "config.json").write_text("{}")
    states = dict(survey())
    assert states["mine"].startswith("complete, no local encoder, ")
    assert str(root / "mine") in states["mine"]
    assert states["sdxl"].startswith("unet, vae, text_encoder")
    assert states["sdxl-fp16"].startswith("not here; 'rbctl models pull sdxl-fp16'")


def test_catalogue_is_sound() -> None:
    for name, spec in CATALOGUE.items():
        assert spec.name == name
        places = [place for component in spec.components for place in component.results]
        assert len(places) == len(set(places))
        for component in spec.components:
            assert bool(component.repo_id) == bool(component.files or component.folders or component.find)
            assert component.licence
            assert component.pinned or component.revision == "main"
            assert component.repo_id or component.note


def test_list(root: Path) -> None:
    text = rbctl("list")
    assert text.exit_code == 0
    assert "CreativeML Open RAIL++-M" in text.stdout
    assert "main, not pinned" in text.stdout
    report = json.loads(rbctl("list", "--json").stdout)
    assert report["root"] == str(root)
    (sdxl,) = (row for row in report["bundles"] if row["name"] == "sdxl")
    assert sdxl["components"][0]["revision"] == "462165984030d82259a11f4367a4eed129e94a7b"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("pull", "sdlx"), "did you mean 'sdxl'?"),
        (("pull", "zzz"), "it has mini, mini-dit, sdxl, sdxl-fp16"),
        (("verify", "sdxl"), "no such bundle"),
        (("verify", "."), "no bundle.json to compare with"),
        (("import", "mine"), "nothing to import"),
        (("import", "mine", "--base", "/nowhere"), "/nowhere: no such file or folder"),
    ],
)
def test_mistakes_are_one_line(
    root: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], words: str
) -> None:
    monkeypatch.chdir(root)
    result = rbctl(*arguments)
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert words in result.stderr


def test_a_failed_import_leaves_no_bundle(root: Path) -> None:
    assert rbctl("import", "mine", "--base", "/nowhere").exit_code == 2
    assert list(root.iterdir()) == []


def test_manifest_without_sizes_is_told(root: Path, tiny_bundle: Path) -> None:
    shutil.copytree(tiny_bundle, root / "mine")
    (root / "mine" / "bundle.json").write_text(json.dumps({"files": {"unet/config.json": {"sha256": "0"}}}))
    result = rbctl("verify", "mine")
    assert result.exit_code == 2
    assert "bundle.json: files.unet/config.json.size: is missing; delete it" in result.stderr


def test_import_by_name(root: Path, tiny_bundle: Path) -> None:
    result = rbctl("import", "mine", "--base", tiny_bundle, "--adapter", tiny_bundle / "ms_adapter.safetensors")
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(root / "mine")
    assert "no local encoder" in result.stderr
    assert "still missing: clip_vision" in result.stderr
    result = rbctl(
        "import", "mine", "--image-encoder", tiny_bundle / "clip_vision",
        "--local-encoder", tiny_bundle / "clipself" / "model.safetensors",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    assert rbctl("verify", "mine").exit_code == 0
    assert resolve("mine") == root / "mine"


def test_sizes_are_readable() -> None:
    assert [size_text(n) for n in (0, 999, 1500, 14_900_000_000)] == ["0 B", "999 B", "1.5 kB", "14.9 GB"]


def test_help_is_light() -> None:
    code = (
        "import sys\nfrom rbctl.cli import main\n"
        "try:\n    main(['models', 'pull', '--help'])\nexcept SystemExit:\n    pass\n"
        "sys.exit(','.join({'torch', 'transformers', 'diffusers', 'huggingface_hub'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
