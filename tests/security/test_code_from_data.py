"""No data runs code: not by a file's name, as a picture, from a bundle, a model folder or the current folder."""

from __future__ import annotations

import ast
import io
import json
import os
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import call, refused
from PIL import Image

import rbctl
from rbctl.errors import InputError
from rbctl.files import read_image
from rbctl.images import FORMATS
from rbctl.pretrained import from_pretrained, refuse_code
from rbctl.runs import COMMAND
from rbctl.shards import samples

ROOT = Path(rbctl.__file__).parent.parent
POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n"


# --- shards


def write_shard(path: Path, key: str = "0") -> None:
    encoded = io.BytesIO()
    Image.new("RGB", (8, 8)).save(encoded, format="PNG")
    row = json.dumps({"objects": [{"name": "cat"}]}).encode()
    with tarfile.open(path, "w") as archive:
        for name, content in ((".png", encoded.getvalue()), (".0.png", encoded.getvalue()), (".json", row)):
            member = tarfile.TarInfo(key + name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["annotate", "distill"])
def test_a_shard_whose_name_is_a_command_runs_nothing(
    tmp_path: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "data"
    folder.mkdir()
    write_shard(folder / "pipe:touch ran;#.tar")
    if stage == "annotate":
        refused(call("annotate", folder), "begins with 'pipe:'")
    else:
        evaluation = tmp_path / "evaluation"
        evaluation.mkdir()
        for number in range(4):
            Image.new("RGB", (64, 64)).save(evaluation / f"{number}.png")
        model = ("--model", ROOT / "rbctl/bundle/mini/clipself", "--random-weights", "--held-out", 2)
        sizes = ("--image-size", 64, "--steps", 1, "--batch-size", 1, "--micro-batch-size", 1, "--train-blocks", 1)
        # In a process of its own: it joins a process group.
        command = [*COMMAND, "distill", "--data", folder, "--evaluation-data", evaluation, *model, *sizes]
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
        assert (done.returncode, "begins with 'pipe:'" in done.stderr) == (2, True), done.stderr
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("data", ["pipe:touch ran; cat a.tar", "http://127.0.0.1:1/a.tar", "gs://bucket/a.tar"])
def test_shards_are_files_never_addresses(tmp_path: Path, data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = ("--model", ROOT / "rbctl/bundle/mini/clipself", "--random-weights", "--train-blocks", 1)
    refused(call("distill", "--data", data, *model, "--steps", 1), "shards are local files")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", ["../../evil", "/tmp/evil", "a/../../evil", "x\0y", "x" * 300])
def test_a_key_of_a_shard_stays_in_the_folder(tmp_path: Path, key: str) -> None:
    folder = tmp_path / "deeper" / "data"
    folder.mkdir(parents=True)
    write_shard(folder / "a.tar", key)
    before = {path for path in tmp_path.rglob("*") if folder not in path.parents}
    call("annotate", folder)
    assert {path for path in tmp_path.rglob("*") if folder not in path.parents} == before


def test_a_shard_is_grouped_as_webdataset_has_it(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar")
    ((key, parts),) = samples(tmp_path / "a.tar")
    assert (key, sorted(parts)) == ("0", ["0.png", "json", "png"])


# --- pictures


@pytest.fixture
def ghostscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file that appears once a program called ``gs`` is started."""
    ran, programs = tmp_path / "gs-ran", tmp_path / "bin"
    programs.mkdir()
    (programs / "gs").write_text(f"#!/bin/sh\ntouch '{ran}'\n")
    (programs / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    yield ran
    assert not ran.exists()


@pytest.mark.parametrize("name", ["a.png", "a.eps", "a.jpg"])
def test_a_picture_that_is_postscript_starts_no_program(tmp_path: Path, ghostscript: Path, name: str) -> None:
    (tmp_path / name).write_bytes(POSTSCRIPT)
    with pytest.raises(InputError, match="not a readable picture"):
        read_image(tmp_path / name)
    (tmp_path / "p.txt").write_text(f"A {{cat: {name}}} runs.")
    refused(call("sample", tmp_path / "p.txt", "--lora", "none", "--output", tmp_path / "o"), "not a readable picture")


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "AVIF"])
def test_every_format_that_is_promised_is_read(tmp_path: Path, form: str) -> None:
    Image.init()
    if form not in Image.OPEN:
        pytest.skip(f"this Pillow is built without {form}")
    assert form in FORMATS
    Image.new("RGB", (16, 8), "red").save(tmp_path / "a", format=form)
    red, green, blue = read_image(tmp_path / "a").getpixel((3, 3))
    assert red > 200
    assert max(green, blue) < 50


@pytest.mark.parametrize("form", ["EPS", "PDF", "ICNS", "PPM", "TGA", "PCX", "SGI", "MSP"])
def test_no_other_format_is_opened(tmp_path: Path, form: str) -> None:
    mode, size = ("1", (16, 8)) if form == "MSP" else ("RGB", (64, 64))
    Image.new(mode, size).save(tmp_path / "a", format=form)
    with pytest.raises(InputError, match="not a readable picture"):
        read_image(tmp_path / "a")


# --- models


def test_a_model_folder_that_brings_code_is_loaded_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModel

    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on standard input"))
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine", "AutoModel": "mine.Mine"}})
    )
    (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(InputError, match="cannot be loaded"):
        from_pretrained(AutoModel, tmp_path)
    with pytest.raises(InputError, match="auto_map"):
        refuse_code(tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("_class_name", ["pipeline", "Mine"]),
        ("unet", ["mine", "Mine"]),
        ("unet", [".mine", "Mine"]),
        ("unet", ["os", "system"]),
        ("unet", ["subprocess", "Popen"]),
    ],
)
def test_a_pipeline_folder_that_brings_code_runs_none(
    tiny_bundle: Path, tmp_path: Path, key: str, value: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on standard input"))
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "pipeline"))
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {key: value}))
    brings_code = value[-1] == "Mine"
    for place in (folder, folder / "unet") if brings_code else ():
        for name in ("mine.py", "pipeline.py"):
            (place / name).write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Mine: pass\n")
    command = ("generate", "--relation", "hug", "--number", 1, "--engine", "diffusers", "--model", folder)
    refused(
        call(*command, "--output", tmp_path / "o"), str(folder), "code of its own" if brings_code else "no class of"
    )
    assert not (tmp_path / "ran").exists()


def test_an_open_clip_folder_sends_nobody_to_another_library(tmp_path: Path) -> None:
    for tower, key in (("text_cfg", "hf_model_name"), ("vision_cfg", "timm_model_name")):
        config = {"model_cfg": {"embed_dim": 8, "vision_cfg": {}, "text_cfg": {}}}
        config["model_cfg"][tower] = {key: "hf-hub:someone/something"}
        folder = tmp_path / tower
        folder.mkdir()
        (folder / "open_clip_config.json").write_text(json.dumps(config))
        Image.new("RGB", (8, 8)).save(folder / "a cat.png")
        refused(call("eval", folder, "--clip", folder, "--output", tmp_path / "o"), key)


# --- a bundle's recipe


@pytest.mark.parametrize(
    ("stage", "recipe"),
    [
        ("annotate", "backend: [keypoints=evil.module:backend]"),
        ("finetune", "output: /tmp/somewhere"),
        ("finetune", "data: /tmp/somewhere"),
        ("finetune", "prior: /tmp/somewhere"),
        ("finetune", "follow_outside: true"),
        ("finetune", "relation: /tmp/somewhere.yaml"),
        ("finetune", "method: dreambooth_lora"),
        ("finetune", "device: cuda"),
        ("finetune", "precision: fp16"),
        ("finetune", "tensorboard: true"),
        ("finetune", "checkpoint_every: 1"),
        ("sample", "output: /tmp/somewhere"),
        ("sample", "lora: [/tmp/x.safetensors]"),
        ("sample", "embedding: [/tmp/x.safetensors]"),
        ("sample", "allow_other_base: true"),
        ("eval", "oracle: /tmp/somewhere"),
        ("eval", "cache: /tmp/somewhere"),
    ],
)
def test_a_recipe_inside_of_a_bundle_sets_no_path_module_or_trust(tmp_path: Path, stage: str, recipe: str) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "recipe.yaml").write_text(f"{stage}: {{{recipe}}}")
    (tmp_path / "p.txt").write_text("A cat.")
    arguments = {"finetune": ["--relation", "hug"], "sample": [tmp_path / "p.txt"]}.get(stage, [tmp_path])
    key = recipe.partition(":")[0]
    refused(call(stage, *arguments, "--bundle", bundle, "--dry-run"), "recipe.yaml", f"{key}: no bundle may set this")


def test_what_a_bundle_may_set_are_numbers_and_choices() -> None:
    """Whoever opens another option to bundles has to think of this list."""
    from rbctl.options import _Field
    from rbctl.plugins.finetune import command as finetune
    from rbctl.plugins.sample import command as sample

    for command in (finetune, sample):
        for parameter in command.params:
            if isinstance(parameter, _Field) and parameter.of_bundle:
                assert parameter.type.name in ("integer", "float", "choice", "boolean") or parameter.name in (
                    "negative_prompt",
                ), parameter.name


# --- the current folder


@pytest.mark.parametrize("command", [COMMAND, (COMMAND[0], "-m", "rbctl")], ids=["ours", "-m rbctl"])
def test_modules_of_the_current_folder_are_not_imported(tmp_path: Path, command: tuple[str, ...]) -> None:
    """Work in a stranger's data folder: a click.py there is not ours."""
    for name in ("click", "yaml", "torch", "difflib"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    done = subprocess.run([*command, "--version"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "rbctl" in done.stdout
    assert not (tmp_path / "ran").exists()


# --- every call of our own


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def keywords(call: ast.Call) -> dict[str, str]:
    return {keyword.arg or "**": ast.unparse(keyword.value) for keyword in call.keywords}


OWN_LOADERS = ("from_pretrained", "pretrained.from_pretrained", "RelationPipeline.from_pretrained")
OURS = sorted(path for part in ("rbctl", "plugins", "kernels") for path in (ROOT / part).rglob("*.py"))


@pytest.mark.skipif(not (ROOT / "plugins").is_dir(), reason="this reads the sources of a checkout")
def test_no_call_of_ours_runs_data() -> None:
    """Each of these has one home that sees to it, or says no at every call."""
    wrong, loads = list[str](), 0
    for path in OURS:
        name = path.relative_to(ROOT).as_posix()
        for function, node in calls(ast.parse(path.read_text())):
            last, given = function.rpartition(".")[2], keywords(node)
            bad = (
                function in ("eval", "exec", "compile", "__import__", "os.system", "os.popen")
                or (function.startswith("pickle.") and last in ("load", "loads"))
                or (function.startswith("yaml.") and last in ("load", "load_all", "unsafe_load", "full_load"))
                or (function == "torch.load" and given.get("weights_only") != "True")
                or (function == "np.load" and given.get("allow_pickle", "False") != "False")
                or (function == "Image.open" and name != "rbctl/images.py")
                or (last == "open" and function == "Image.open" and "formats" not in given)
                or given.get("shell") == "True"
                or (last in ("extractall", "extract") and "tar" in function)
                or function.startswith(("urllib", "webbrowser"))
            )
            if last == "from_pretrained" and function not in OWN_LOADERS:
                loads += 1
                bad = bad or given.get("trust_remote_code") != "False"
            if bad:
                wrong.append(f"{name}:{node.lineno}: {function}")
    assert wrong == []
    assert loads >= 3  # else the names above have changed, and this test sees nothing
