"""``rbctl ui``: who may ask the page for what, what it takes from browsers, and what it makes of it."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from browser import Browser, field, text
from commands import call
from PIL import Image
from test_annotate_review import CHROMIUM, browser  # noqa: F401

from rbctl.errors import InputError
from rbctl.files import read_jsonl
from rbctl.plugins.ui.config import UiConfig
from rbctl.plugins.ui.guard import Guard
from rbctl.plugins.ui.workspace import Workspace, lora_weights, prompt_of, read_names
from rbctl.relations import load_relation

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "recipes" / "examples" / "pictures"
INDIVIDUALS = [EXAMPLES / "white-cat.png", EXAMPLES / "teal-bear.png"]


# --- who may ask for what


def ask(token: str | None, path: str, query: str = "", **headers: str) -> tuple[int, dict[str, str], str]:
    """What the guard answers to a request: status, headers and body."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"the page"})

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    named = {"host": "127.0.0.1:7860", **headers}
    encoded = [(name.encode(), value.encode()) for name, value in named.items()]
    scope = {"type": "http", "path": path, "query_string": query.encode(), "headers": encoded}
    asyncio.run(Guard(app, token)(scope, None, send))
    answered = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], answered, sent[1]["body"].decode()


@pytest.mark.parametrize("path", ["/", "/config", "/assets/a.js", "/gradio_api/file=/a b.png", "/files/triplets/a.png"])
def test_the_page_has_what_it_needs_and_browsers_are_held_to_it(path: str) -> None:
    status, headers, body = ask(None, path)
    assert (status, body) == (200, "the page")
    assert "default-src 'self'" in headers["content-security-policy"]
    assert "http" not in headers["content-security-policy"]


@pytest.mark.parametrize(
    "path",
    ["/gradio_api/proxy=http://127.0.0.1/", "/gradio_api/file=http://127.0.0.1/", "/gradio_api/vibe-edit",
     "/monitoring", "/gradio_api/run-history/records", "/docs", "/openapi.json", "/gradio_api/call/sample", "/login"],
)  # fmt: skip
def test_what_else_gradio_offers_is_not_there(path: str) -> None:
    assert ask(None, path)[0] == 403


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "localhost:7860"}, 200),
        ({"host": "[::1]:7860"}, 200),
        ({"host": "evil.example"}, 403),
        ({"origin": "http://127.0.0.1:7860"}, 200),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "http://127.0.0.1:9999"}, 403),
        ({"origin": "null"}, 403),
    ],
)
def test_pages_of_strangers_reach_nothing(headers: dict[str, str], status: int) -> None:
    assert ask(None, "/gradio_api/upload", **headers)[0] == status


def test_beyond_this_machine_a_token_is_demanded() -> None:
    assert ask("secret", "/", host="10.0.0.1")[0] == 401
    assert ask("secret", "/gradio_api/upload", "token=wrong")[0] == 401
    assert ask("secret", "/", cookie="rbctl-token=wrong")[0] == 401
    status, headers, _ = ask("secret", "/", "token=secret", host="10.0.0.1")
    assert status == 200
    assert headers["set-cookie"] == "rbctl-token=secret; Path=/; HttpOnly; SameSite=Strict"
    assert ask("secret", "/gradio_api/file=a.png", cookie="rbctl-token=secret")[0] == 200


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.3.2.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False),
     ("192.168.1.4", False), ("my-machine", False)],
)  # fmt: skip
def test_only_loopback_is_this_machine_alone(host: str, loopback: bool) -> None:
    assert UiConfig(host=host).on_loopback is loopback


def test_without_gradio_the_command_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setitem(sys.modules, "gradio", None)
    result = call("ui", "--work", tmp_path, "--no-open")
    assert (result.exit_code, result.stderr) == (
        2,
        'Error: rbctl ui needs the package gradio; pip install "rbctl[ui]"\n',
    )


# --- what browsers send


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "work")


def test_an_individual_is_kept_under_its_name(workspace: Workspace, tmp_path: Path) -> None:
    upload = tmp_path / "../Rex_der Hund!!.JPG".replace("../", "")
    Image.new("RGB", (40, 30), "red").save(upload)
    kept = workspace.keep_individual(upload)
    assert kept.name == "rex der hund"
    path = workspace.picture_of(kept)
    assert path.is_relative_to(workspace.pictures)
    with Image.open(path, formats=["PNG"]) as image:
        assert image.size == (40, 30)


@pytest.mark.parametrize("name", ["a.svg", "a.eps", "a", "a.html", "a.png"])
def test_no_picture_is_told_by_its_name(workspace: Workspace, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("<svg onload='alert(1)'/>")
    with pytest.raises(InputError, match=rf"^'?{name}'?: .*picture") as refused:
        workspace.keep_individual(tmp_path / name)
    assert str(tmp_path) not in str(refused.value)
    assert not workspace.pictures.exists()


@pytest.mark.parametrize("name", ["", "..", "../x", "/etc", "a/b", "A b", "-o", "x" * 90, "."])
def test_a_set_has_a_plain_name(workspace: Workspace, name: str) -> None:
    with pytest.raises(InputError, match="name of the set"):
        workspace.set_folder(name)


def test_a_link_out_of_the_folder_is_followed_nowhere(workspace: Workspace, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (workspace.root / "triplets").mkdir(parents=True)
    (workspace.root / "loras").mkdir()
    outside.mkdir()
    (outside / "x.safetensors").write_text("")
    (workspace.root / "triplets" / "hug").symlink_to(outside)
    (workspace.root / "loras" / "x.safetensors").symlink_to(outside / "x.safetensors")
    with pytest.raises(InputError, match="link that leaves"):
        workspace.set_folder("hug")
    with pytest.raises(InputError, match="link that leaves"):
        workspace.lora("loras/x.safetensors")


def test_a_page_is_shown_if_a_stage_has_just_written_it(workspace: Workspace) -> None:
    folder = workspace.root / "triplets" / "hug"
    folder.mkdir(parents=True)
    page, picture = folder / "review.html", folder / "0.png"
    page.write_text("<script>a stranger's</script>")
    Image.new("RGB", (8, 8)).save(picture)
    for name in ("triplets/hug/review.html", "triplets/hug/0.png", "../secret.png", "/etc/passwd"):
        with pytest.raises(InputError):
            workspace.shown_file(name)
    assert workspace.show_page("triplets/hug/review.html") == "/files/triplets/hug/review.html"
    assert workspace.shown_file("triplets/hug/review.html") == page
    assert workspace.shown_file("triplets/hug/0.png") == picture
    page.write_text("<script>another one</script>")
    with pytest.raises(InputError, match="not shown by the page"):
        workspace.shown_file("triplets/hug/review.html")


def test_a_relation_of_ones_own_is_kept_and_found(workspace: Workspace) -> None:
    text = (ROOT / "recipes" / "examples" / "sit_back_to_back.yaml").read_text()
    assert workspace.keep_relation(text).name == "sit_back_to_back"
    assert workspace.relations()[-1] == "sit_back_to_back"
    assert workspace.relation("sit_back_to_back").symmetric
    assert workspace.relation_argument("sit_back_to_back") == "relations/sit_back_to_back.yaml"
    with pytest.raises(InputError, match="ships with rbctl"):
        workspace.keep_relation(text.replace("name: sit_back_to_back", "name: hug"))
    with pytest.raises(InputError, match=r"^relation:9: others: no such key"):
        workspace.keep_relation(text.replace("roles:", "roles: 3\nothers:"))
    with pytest.raises(InputError, match=r"there is no '\.\./x'"):
        workspace.relation_argument("../x")


@pytest.mark.parametrize(
    ("relation", "words", "names", "prompt"),
    [
        ("ride", "", ["cat", "elephant"], "A {cat} is riding an {elephant}."),
        (None, "is balancing on", ["owl", "bear"], "An {owl} is balancing on a {bear}."),
        (None, "and", ["cat", "dog", "owl"], "A {cat} and a {dog} and an {owl}."),
        ("ride", "and", ["cat", "dog", "owl"], "A {cat} and a {dog} and an {owl}."),
    ],
)
def test_the_prompt_says_the_relation(relation: str | None, words: str, names: list[str], prompt: str) -> None:
    assert prompt_of(load_relation(relation) if relation else None, words, names) == prompt


def test_names_are_words(workspace: Workspace) -> None:
    assert read_names(" white  cat,bear ", 2) == ["white cat", "bear"]
    for wrong in ("cat", "cat, cat", "cat, {dog}", "cat, ", "cat, a:b"):
        with pytest.raises(InputError, match=r"^names: "):
            read_names(wrong, 2)


def test_weights_are_of_loras_that_are_there() -> None:
    assert lora_weights([["a", 1], ["b", 0], ["", ""], ["c", "0.5"]], ["a", "b", "c"]) == {"a": 1.0, "c": 0.5}
    for row in (["x", 1], ["a", 11], ["a", float("nan")], ["a", "much"], ["a", None]):
        with pytest.raises(InputError, match=r"^LoRA"):
            lora_weights([row], ["a"])


# --- pictures


def asked(workspace: Workspace, **changes: Any) -> Any:
    from rbctl.plugins.ui.sampler import PictureSettings, Placed

    kept = [workspace.keep_individual(path) for path in INDIVIDUALS]
    boxes = [(0.2, 0.1, 0.6, 0.6), (0.1, 0.35, 0.9, 0.95)]
    placed = tuple(Placed(name=k.name, image=k.image, box=box) for k, box in zip(kept, boxes, strict=True))
    prompt = "A {white cat} is riding a {teal bear}."
    return replace(PictureSettings(prompt=prompt, relation="ride", objects=placed, seed=7, steps=2), **changes)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_a_picture_is_that_of_the_pipeline_and_says_its_settings(workspace: Workspace, tiny_bundle: Path) -> None:
    import numpy as np
    import torch

    from rbctl import RelationPipeline
    from rbctl.files import read_image
    from rbctl.plugins.ui.sampler import Made, Sampler, Step, settings_of

    sampler, settings = Sampler(workspace, str(tiny_bundle)), asked(workspace)
    *steps, made = sampler.sample([settings], threading.Event())
    assert [type(event) for event in steps] == [Step, Step]
    assert [event.share for event in steps] == [0.5, 1.0]
    assert isinstance(made, Made)
    assert settings_of(made.path)[0] == settings
    (row,) = read_jsonl(workspace.pictures / "metadata.jsonl")
    assert row["file_name"] == made.path.name
    expected = RelationPipeline.from_pretrained(tiny_bundle)(
        settings.prompt,
        images={"white cat": str(INDIVIDUALS[0]), "teal bear": str(INDIVIDUALS[1])},
        boxes={entry.name: entry.box for entry in settings.objects},
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(7),
    ).images[0]
    assert np.array_equal(np.asarray(read_image(made.path)), np.asarray(expected))
    stop = threading.Event()
    events = sampler.sample([replace(settings, steps=50), replace(settings, seed=8)], stop)
    next(events)
    stop.set()
    assert len(list(events)) < 10
    assert len(workspace.newest()) == 1
    with pytest.raises(InputError, match=r"there is no 'x\.safetensors'"):
        list(sampler.sample([replace(settings, loras={"x.safetensors": 1.0})], threading.Event()))


# --- stages and comparisons


def sleeper(arguments: Any, **options: Any) -> subprocess.Popen[str]:
    """A stage that works for a minute."""
    code = "import time; print('begun', flush=True); time.sleep(60)"
    return subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, **options)


def test_a_stage_goes_on_without_its_page_and_is_stopped_by_any(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rbctl.plugins.ui import stages

    monkeypatch.setattr(stages, "start", sleeper)
    workspace.root.mkdir()
    released: list[int] = []
    running = stages.Stages(workspace, before=lambda: released.append(1))
    first = running.run(["finetune"])
    next(output for output in first if output == "begun")
    first.close()  # the page was closed
    again = running.run(["finetune"])
    assert next(again) == "begun"
    assert released == [1]
    running.stop()
    with pytest.raises(InputError, match="stopped; the same button goes on"):
        list(again)


@pytest.mark.slow
def test_a_stage_that_fails_is_told_by_its_last_line(workspace: Workspace) -> None:
    from rbctl.plugins.ui.stages import Stages, command_line

    workspace.root.mkdir()
    with pytest.raises(InputError, match=r"^rbctl data: triplets/x: "):
        list(Stages(workspace, before=lambda: None).run(["data", "check", "triplets/x"]))
    assert command_line(["data", "check", "a b"]) == "rbctl data check 'a b'"


@pytest.mark.slow
def test_the_commands_of_a_relation_name_what_lies_in_the_folder(workspace: Workspace) -> None:
    pytest.importorskip("gradio", reason='needs gradio: pip install "rbctl[ui]"')
    from rbctl.plugins.ui.relation_tab import annotating, making, training

    (workspace.root / "triplets" / "mine").mkdir(parents=True)
    (workspace.root / "models" / "sam").mkdir(parents=True)
    assert making(workspace, "drawn", "hug", "mine", 6, 5, "") == [
        ["generate", "--relation", "hug", "-n", "6", "--output", "triplets/mine"]
    ]
    assert making(workspace, "own pictures", "hug", "mine", 6, 5, "") == []
    assert making(workspace, "openai", "hug", "mine", 6, 2.5, "")[0][-2:] == ["--budget", "2.5"]
    assert annotating(workspace, "mini", "hug", "mine", False, {"sam": "sam", "vitpose": ""})[-2:] == [
        "--sam",
        "models/sam",
    ]
    command, run = training(workspace, "mini", "hug", "mine", 20, 10, 3)
    assert " ".join(command) == (
        "finetune --relation hug --bundle mini --data triplets/mine --steps 20 --preview-every 10 --seed 3"
    )
    assert run == workspace.root / "runs" / "finetune" / "hug"
    for wrong in (
        lambda: making(workspace, "diffusers", "hug", "mine", 6, 5, "../x"),
        lambda: making(workspace, "drawn", "--help", "mine", 6, 5, ""),
        lambda: making(workspace, "drawn", "hug", "../x", 6, 5, ""),
        lambda: annotating(workspace, "mini", "hug", "mine", False, {"sam": "/etc"}),
        lambda: training(workspace, "mini", "hug", "other", 0, 0, 0),
    ):
        with pytest.raises(InputError):
            wrong()


@pytest.mark.slow
def test_an_axis_varies_one_setting(workspace: Workspace) -> None:
    pytest.importorskip("gradio", reason='needs gradio: pip install "rbctl[ui]"')
    from rbctl.plugins.ui.compare_tab import AXES, read_values, varied

    settings = asked(workspace, loras={"a": 0.5})
    assert varied(settings, "LoRA weight", "0").loras == {"a": 0.0}
    assert varied(settings, "LoRA weight", "2").loras == {"a": 1.0}
    assert varied(settings, "seed", "9") == replace(settings, seed=9)
    assert varied(settings, "quality", "best").quality == "best"
    for axis in AXES:
        with pytest.raises(InputError, match=axis):
            varied(settings, axis, "much")
    with pytest.raises(InputError, match="no LoRA has a weight"):
        varied(asked(workspace), "LoRA weight", "1")
    assert read_values(" 0, 0.5 ,1", "seed") == ["0", "0.5", "1"]
    for wrong in ("", "1, 1", ","):
        with pytest.raises(InputError, match=r"^seed: "):
            read_values(wrong, "seed")


# --- the page


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A page of a work folder, and its address."""
    pytest.importorskip("gradio", reason='needs gradio: pip install "rbctl[ui]"')
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    work = tmp_path_factory.mktemp("served") / "work"
    command = [sys.executable, "-m", "rbctl", "ui", "--no-open", "--work", work, "--port", port]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    log = work.parent / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [str(part) for part in command], stdout=subprocess.PIPE, stderr=file, text=True, env=environment,
            cwd=work.parent,
        )  # fmt: skip
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    assert address == f"http://127.0.0.1:{port}/", log.read_text()
    yield work, address
    process.terminate()
    process.wait()


@pytest.fixture
def page(browser: None, served: tuple[Path, str], tmp_path: Path) -> Iterator[Browser]:  # noqa: F811
    """The page in Chromium."""
    assert CHROMIUM is not None
    opened = Browser(CHROMIUM, tmp_path / "profile")
    opened.open(served[1])
    opened.wait("document.querySelector('#individuals input[type=file]')")
    yield opened
    opened.close()
    strange = [url for url in opened.requests if not url.startswith((served[1], "data:", "blob:"))]
    assert strange == []


@pytest.mark.slow
def test_from_two_pictures_to_a_new_one(page: Browser, served: tuple[Path, str]) -> None:
    work = served[0]
    page.drop("#individuals", INDIVIDUALS)
    page.wait("document.querySelectorAll('#boxes .box').length === 2")
    assert page.run(field("#names")) == "white cat, teal bear"
    page.write("#relation input", "ride", "Enter")
    page.wait(f"{field('#prompt')} === 'A {{white cat}} is riding a {{teal bear}}.'")
    before = page.place("#boxes .box")
    canvas = page.place("#boxes .boxes")
    left, top, right, bottom = page.place("#boxes .box")
    side = canvas[2] - canvas[0]
    page.drag(((left + right) / 2, (top + bottom) / 2), ((left + right) / 2 + 0.1 * side, (top + bottom) / 2))
    assert page.place("#boxes .box")[0] == pytest.approx(before[0] + 0.1 * side, abs=3)
    page.run("document.querySelector('#quality input[value=draft]').click()")
    page.click("#sample")
    page.wait(f"{text('#state')} === '1 of 1 made.'")
    (row,) = read_jsonl(work / "runs" / "sample" / "ui" / "metadata.jsonl")
    assert row["objects"][0]["box"][0] == pytest.approx(load_relation("ride").roles[0].box[0] + 0.1, abs=0.02)
    assert (row["text"], row["quality"], row["seed"]) == ("A white cat is riding a teal bear.", "draft", 7)
    page.wait("document.querySelector('#gallery img')")
    page.wait(f"{text('#metadata')}.includes('A white cat is riding a teal bear.')")
    page.write("#prompt textarea", "Something else", "Tab")
    page.click("#use")
    page.wait(f"{field('#prompt')} === 'A {{white cat}} is riding a {{teal bear}}.'")
    # Cancel: of sixteen pictures some are not made.
    page.write("#count input[type=number]", "16", "Tab")
    page.click("#sample")
    page.wait(f"{text('#state')}.startsWith('Picture 1 of 16')")
    page.click("#cancel")
    page.wait(f"{text('#state')}.startsWith('Cancelled')")
    assert len(read_jsonl(work / "runs" / "sample" / "ui" / "metadata.jsonl")) < 16
    page.wait("!document.querySelector('#sample').disabled")


@pytest.mark.slow
def test_a_file_that_is_no_picture_is_told_in_a_line(page: Browser, tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_text("no picture at all")
    page.drop("#individuals", [tmp_path / "cat.png"])
    page.wait("document.body.innerText.includes('cat.png: not a readable picture')")
    assert "Traceback" not in page.run("document.body.innerText")


@pytest.mark.slow
def test_a_relation_of_ones_own_is_trained_to_the_end(
    page: Browser, served: tuple[Path, str], small_hug: Path, tmp_path: Path
) -> None:
    """Own relation, own pictures, annotated, checked and reviewed; then the LoRA is on the tab Picture."""
    work = served[0]
    pictures = []
    for row in read_jsonl(small_hug / "metadata.jsonl")[:2]:
        stem = Path(row["file_name"]).stem.split("-")[0]
        alone = [(f"-{entry['name'].replace(' ', '_')}", entry["image"]) for entry in row["objects"]]
        for name, source in [("", row["file_name"]), *alone]:
            pictures.append(Path(shutil.copy(small_hug / source, tmp_path / f"{stem}{name}.png")))
    page.open_tab("Relation")
    page.wait("document.querySelector('#own button')")
    page.run("document.querySelector('#own button').click()")
    page.wait("document.querySelector('#keep')?.offsetParent")
    page.click("#keep")
    page.wait(f"{field('#learned')} === 'sit_back_to_back'")
    page.run("document.querySelector('#source input[value=\"own pictures\"]').click()")
    page.drop("#own-pictures", pictures)
    page.wait(f"{text('#own-pictures')}.includes('{pictures[-1].stem}')")
    page.click("#make-set")
    page.wait(f"{field('#log')}.includes('The set is in triplets/sit_back_to_back')")
    page.click("#check")
    page.wait(f"{field('#typed')}.startsWith('rbctl data check triplets/sit_back_to_back') && {field('#log')}")
    page.click("#review")
    page.wait("document.querySelector('#page-link a')")
    address = page.run("document.querySelector('#page-link a').href")
    assert page.run(f"fetch({address!r}).then(answer => answer.text())").count("<article") == 2
    page.write("#train-steps input", "1", "Tab")
    page.write("#preview-every input", "1", "Tab")
    page.click("#train")
    page.wait(f"{field('#log')}.includes('Trained.')")
    assert "rbctl finetune --relation" in page.run(field("#typed"))
    page.wait("document.querySelector('#previews img')")
    page.open_tab("Picture")
    page.wait(f"{text('#loras')}.includes('runs/finetune/sit_back_to_back/sit_back_to_back.safetensors')")
    assert (work / "runs" / "finetune" / "sit_back_to_back" / "sit_back_to_back.safetensors").is_file()


@pytest.mark.slow
def test_a_page_that_is_reloaded_finds_its_training_again(page: Browser, served: tuple[Path, str]) -> None:
    def train() -> None:
        page.wait("document.querySelector('#individuals input[type=file]')")
        page.open_tab("Relation")
        page.wait("document.querySelector('#train-steps')?.offsetParent")
        page.write("#learned input", "wave", "Enter")
        page.write("#train-steps input", "6", "Tab")
        page.click("#train")

    train()
    page.wait(f"{field('#log')}.includes('finetune wave')")
    page.open(served[1])
    train()  # of the same training: a second one in this folder would be refused
    page.wait(f"{field('#log')}.includes('Trained.')")
    losses = read_jsonl(served[0] / "runs" / "finetune" / "wave" / "metrics.jsonl")
    assert [row["step"] for row in losses] == list(range(1, 7))


@pytest.fixture
def own_lora(served: tuple[Path, str]) -> str:
    """A LoRA of chance in the work folder, by its name there; the relation hug finds it."""
    import torch

    from rbctl import lora
    from rbctl.bundle.load import load

    unet = load("mini", torch.device("cpu"), torch.float32, encoders=False).unet
    lora.add(unet, rank=4, alpha=4, seed=0)
    generator = torch.Generator().manual_seed(1)
    tensors = {name: 0.05 * torch.randn(value.shape, generator=generator) for name, value in lora.state(unet).items()}
    lora.save(served[0] / "loras" / "hug.safetensors", tensors, {"rbctl.relation": "hug"}, 4.0)
    return "loras/hug.safetensors"


def lora_row(page: Browser, name: str) -> int:
    """The row of a LoRA in the table, once it is there."""
    cells = "[...document.querySelectorAll(`#loras [data-testid^=cell-][data-col='0']`)]"
    page.wait(f"{cells}.some(cell => cell.innerText.trim() === '{name}')")
    return int(page.run(f"{cells}.find(cell => cell.innerText.trim() === '{name}').dataset.row"))


def weight(row: int) -> str:
    """JavaScript for the weight in a row of the table."""
    return f"document.querySelector(`#loras [data-testid=cell-{row}-1]`).innerText.replace(/[^0-9.]/g, '')"


def last_row(work: Path) -> dict[str, Any]:
    return read_jsonl(work / "runs" / "sample" / "ui" / "metadata.jsonl")[-1]


@pytest.mark.slow
def test_three_individuals_with_the_weight_of_a_lora_and_all_of_it_taken_back(
    page: Browser, served: tuple[Path, str], own_lora: str
) -> None:
    page.open_tab("Score")
    page.open_tab("Picture")  # LoRAs are listed as they are by now
    row = lora_row(page, own_lora)
    page.drop("#individuals", [*INDIVIDUALS, EXAMPLES / "brown-elephant.png"])
    page.wait("document.querySelectorAll('#boxes .box').length === 3")
    page.write("#relation input", "are dancing around", "Enter")
    prompt = "A {white cat} are dancing around a {teal bear} and a {brown elephant}."
    page.wait(f"{field('#prompt')} === '{prompt}'")
    cell = f"#loras [data-testid='cell-{row}-1']"
    selected = f"document.querySelector(`{cell}`).ariaSelected === 'true'"
    while not page.run(selected):  # while the page settles, the first click only scrolls
        page.click(cell)
        page.wait("new Promise(done => setTimeout(() => done(true), 300))")
    page.press("Enter")
    page.wait(f"document.querySelector(`{cell} textarea`)")
    page.write(f"{cell} textarea", "0.5", "Enter")
    page.wait(f"{weight(row)} === '0.5'")
    page.run("document.querySelector('#quality input[value=draft]').click()")
    page.click("#sample")
    page.wait(f"{text('#state')} === '1 of 1 made.'")
    record = last_row(served[0])
    assert [entry["name"] for entry in record["objects"]] == ["white cat", "teal bear", "brown elephant"]
    assert record["loras"] == {own_lora: 0.5}
    page.wait(f"{text('#metadata')}.includes('brown elephant')")
    page.open(served[1])  # a new page knows nothing of it
    page.wait("document.querySelector('#gallery img')")
    page.click("#gallery img")
    page.wait(f"{text('#metadata')}.includes('brown elephant')")
    page.click("#use")
    page.wait(f"{field('#prompt')} === '{prompt}'")
    page.wait("document.querySelectorAll('#boxes .box').length === 3")
    page.wait(f"{weight(row)} === '0.5'")
    assert page.run(field("#names")) == "white cat, teal bear, brown elephant"


@pytest.mark.slow
def test_a_grid_of_lora_weights_and_seeds_and_the_report_on_its_pictures(
    page: Browser, served: tuple[Path, str], own_lora: str
) -> None:
    work = served[0]
    page.open_tab("Score")
    page.open_tab("Picture")
    row = lora_row(page, own_lora)
    page.drop("#individuals", INDIVIDUALS)
    page.wait("document.querySelectorAll('#boxes .box').length === 2")
    page.write("#relation input", "hug", "Enter")
    page.wait(f"{weight(row)} === '1'")  # a chosen relation switches its own LoRA on
    page.run("document.querySelector('#quality input[value=draft]').click()")
    page.open_tab("Compare")
    page.wait("document.querySelector('#compare')?.offsetParent")
    page.write("#columns :is(input, textarea)", "0, many", "Tab")
    page.click("#compare")
    page.wait("document.body.innerText.includes(\"LoRA weight: 'many' is no number\")")
    page.write("#columns :is(input, textarea)", "0, 1", "Tab")
    page.write("#rows :is(input, textarea)", "7, 8", "Tab")
    page.click("#compare")
    page.wait(f"{text('#compared')}.startsWith('4 made; the sheet is runs/ui/sheets/')")
    page.wait("document.querySelector('#sheet img')")
    rows = read_jsonl(work / "runs" / "sample" / "ui" / "metadata.jsonl")[-4:]
    assert [(row["loras"][own_lora], row["seed"]) for row in rows] == [(0, 7), (1, 7), (0, 8), (1, 8)]
    assert len({str(row["objects"]) for row in rows}) == 1  # the same boxes
    (sheet,) = (work / "runs" / "ui" / "sheets").glob("*.png")
    with Image.open(sheet, formats=["PNG"]) as image:
        assert image.width >= 2 * 128
        assert image.height >= 2 * 128
    page.open_tab("Score")
    page.wait("document.querySelector('#score')?.offsetParent")
    shutil.copytree(work / "runs" / "sample" / "ui", work / "runs" / "sample" / "newer")  # not in the page's list
    page.write("#scored input", "runs/sample/newer", "Enter")
    page.click("#score")
    page.wait("document.querySelector('#report iframe')")
    assert page.run(field("#score-typed")).startswith("rbctl eval runs/sample/newer --bundle mini")
    address = page.run("document.querySelector('#report iframe').src")
    assert "<table" in page.run(f"fetch({address!r}).then(answer => answer.text())")


@pytest.mark.slow
def test_two_pages_take_turns_and_a_reload_loses_nothing(
    page: Browser, served: tuple[Path, str], tmp_path: Path
) -> None:
    def prepare(one: Browser, count: int) -> None:
        one.wait("document.querySelector('#individuals input[type=file]')")
        one.drop("#individuals", INDIVIDUALS)
        one.wait("document.querySelectorAll('#boxes .box').length === 2")
        one.run("document.querySelector('#quality input[value=draft]').click()")
        one.write("#count input[type=number]", str(count), "Tab")

    assert CHROMIUM is not None
    other = Browser(CHROMIUM, tmp_path / "other")
    try:
        other.open(served[1])
        prepare(other, 1)
        prepare(page, 16)
        page.click("#sample")
        page.wait(f"{text('#state')}.startsWith('Picture 1 of 16')")
        other.click("#sample")
        other.wait(f"{text('#state')}.endsWith('Waiting for its turn ...')")  # after gradio's own place in the queue
        assert other.run("document.querySelector('#sample').disabled")
        other.click("#cancel")
        page.open(served[1])  # reloaded in the middle
        other.wait(f"{text('#state')}.endsWith('Cancelled; 0 of 1 made.')")
        other.wait("!document.querySelector('#sample').disabled")
        prepare(page, 1)
        page.click("#sample")
        page.wait(f"{text('#state')} === '1 of 1 made.'")
    finally:
        other.close()


# --- strangers

SECRET = "the secret of another folder"
NAMES = [
    "../../evil.png", "/etc/evil.png", "a\0b.png", "x" * 300 + ".png", "..", "con.png", "a.svg", "a.html", "a.eps",
    "..\\..\\evil.png", "%2e%2e%2fevil.png", "cat.png", "-o.png", "{a}.png", "<img src=x>.png", "",
]  # fmt: skip


class Stranger:
    """Asks the page for what nobody should, by chance from a seed."""

    def __init__(self, address: str, work: Path, seed: int) -> None:
        import httpx

        self.client = httpx.Client(base_url=address, timeout=60, headers={"connection": "close"})
        self.random, self.work = random.Random(seed), work
        self.events = self.client.get("/config").json()["dependencies"]
        self.seen: list[str] = []

    def path(self) -> str:
        outside = self.work.parent / "outside" / "secret.png"
        inside = self.work / "runs" / "ui" / "uploads"
        return self.random.choice(
            [
                str(outside), f"{inside}/../../../../outside/secret.png", "../outside/secret.png", "/etc/passwd", "",
                "outside/secret.png", f"{self.work}/link.png", "file:///etc/passwd", "http://127.0.0.1:1/x.png",
                "~/.ssh/id_rsa", str(inside), str(self.work / "runs" / "secret.txt"), "\0", "x" * 5000,
            ]
        )  # fmt: skip

    def value(self) -> Any:
        path = self.path()
        file = {"path": path, "meta": {"_type": "gradio.FileData"}, "url": self.path(), "orig_name": self.path()}
        return self.random.choice(
            [
                None, "", path, 10**30, -1, float("1e300"), True, [], {}, [file], file, [[path, 1]], "hug", "../x",
                {"headers": ["LoRA"], "data": [[path, 1]]}, [[0.1, 0.1, 2, "a"]],
                "<script>alert(1)</script>", "x" * 9999,
            ]
        )  # fmt: skip

    def ask(self, method: str, address: str, **what: Any) -> Any:
        """An answer, which is kept; None where the connection was closed before the end of a request was read."""
        import httpx

        try:
            answer = self.client.request(method, address, **what)
        except httpx.TransportError:
            return None
        self.seen.append(answer.text)
        return answer

    def upload(self) -> None:
        content = self.random.choice([b"", b"%!PS", b"<svg/>", self.random.randbytes(200), INDIVIDUALS[0].read_bytes()])
        name = self.random.choice(NAMES)
        self.ask("POST", "/gradio_api/upload", files={"files": (name, content, "image/png")})

    def fetch(self) -> None:
        prefix = self.random.choice(["/gradio_api/file=", "/files/", "/static/", "/assets/", "/gradio_api/proxy="])
        path = self.path()[:2000]
        self.ask("GET", prefix + quote(path, safe=self.random.choice(["/", "", ":/"])))

    def event(self) -> None:
        session = f"s{self.random.randrange(10**9)}"
        event = self.random.choice(self.events)
        body = {
            "data": [self.value() for _ in range(self.random.choice([len(event["inputs"])] * 4 + [0, 3]))],
            "fn_index": event["id"], "session_hash": session, "trigger_id": 1,
        }  # fmt: skip
        joined = self.ask("POST", "/gradio_api/queue/join", json=body)
        if joined is None or joined.status_code != 200:
            return
        with self.client.stream("GET", "/gradio_api/queue/data", params={"session_hash": session}) as stream:
            for line in stream.iter_lines():
                self.seen.append(line)
                if '"process_completed"' in line or '"close_stream"' in line:
                    break


@pytest.mark.slow
def test_500_requests_of_a_stranger_read_and_write_nothing_outside(served: tuple[Path, str]) -> None:
    work, address = served
    outside = work.parent / "outside"
    outside.mkdir()
    (outside / "secret.png").write_text(SECRET)
    (work / "link.png").symlink_to(outside / "secret.png")
    (work / "runs" / "secret.txt").write_text(SECRET)

    def others() -> set[str]:
        """What lies beside the work folder, and in it beside the page's own folders."""
        own = [work / "runs", work / "triplets", work / "relations"]
        return {str(path) for path in work.parent.rglob("*") if not any(path.is_relative_to(folder) for folder in own)}

    before, stranger = others(), Stranger(address, work, seed=0)
    for number in range(500):
        (stranger.upload, stranger.fetch, stranger.event)[number % 3]()
    seen = "\n".join(stranger.seen)
    assert len(stranger.seen) >= 480
    assert SECRET not in seen
    assert "root:" not in seen
    assert "Traceback" not in seen
    assert 'File "' not in seen
    assert others() == before
    assert (outside / "secret.png").read_text() == SECRET
    (work / "link.png").unlink()
    assert stranger.client.get("/").status_code == 200
