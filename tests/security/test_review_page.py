"""Pages are shared: no value of a set or a report acts in one, and no wrong value is more than one line."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from commands import call
from PIL import Image
from test_annotate_review import browser, chromium  # noqa: F401
from triplet_sets import lines, write_lines

from rbctl.cli import main
from rbctl.menagerie.triplets import draw_triplets
from rbctl.pages import render
from rbctl.relations import load_relation

SCRIPT = "<script>alert(1)</script>"
GATE = {"passed": False, "value": 0.25, "limit": 0.5}
OBJECT = {
    "name": "cat", "found": 0, "similarity": 0.9, "box_score": 0.8, "image_box_score": 0.7,
    "image_box": [0.1, 0.1, 0.9, 0.9], "pose_change": 0.3, "target_confidence": [0.5] * 17,
    "image_confidence": [0.9] * 17,
}  # fmt: skip


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two triplets with a report, as another stage might have written it."""
    folder = tmp_path_factory.mktemp("drawn") / "hug"
    draw_triplets(load_relation("hug"), 2, 3, folder)
    reports = [
        {
            "file_name": row["file_name"], "problem": None, "backends": {"boxes": "oracle"},
            "gates": {"pose": GATE}, "margin": 0.5, "objects": [copy.deepcopy(OBJECT) for _ in row["objects"]],
            "kept": True,
        }
        for row in lines(folder / "metadata.jsonl")
    ]  # fmt: skip
    write_lines(folder / "annotations.jsonl", reports)
    return folder


@pytest.fixture
def triplets(drawn: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(drawn, tmp_path / "set"))


def fields(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The places of all values in a JSON value; of a list of numbers the first alone."""
    entries: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        entries = list(value.items())
    elif isinstance(value, list):
        entries = list(enumerate(value))[:1]
    return [path, *(place for key, inner in entries for place in fields(inner, (*path, key)))]


FIELDS = fields(
    {
        "file_name": "", "problem": "", "backends": {"boxes": ""}, "gates": {"pose": GATE}, "margin": 0,
        "objects": [OBJECT], "kept": True,
    }
)  # fmt: skip
WRONG = [SCRIPT, 10**400, 1e300, -1e300, True, None, [], {}, [SCRIPT], {SCRIPT: SCRIPT}, "NAN", "HUGE", "HALF"]


@pytest.mark.parametrize("place", FIELDS, ids=lambda place: ".".join(map(str, place)) or "all")
def test_a_wrong_value_of_a_report_is_one_line_or_words(triplets: Path, place: tuple[Any, ...]) -> None:
    path, refused = triplets / "annotations.jsonl", 0
    before = path.read_text()
    for wrong in WRONG:
        report: Any = json.loads(before.splitlines()[0])
        whole = {"all": report}
        inner: Any = whole
        for key in ("all", *place)[:-1]:
            inner = inner[key]
        inner[("all", *place)[-1]] = wrong
        text = json.dumps(whole["all"]).replace('"NAN"', "NaN").replace('"HUGE"', "1e999").replace("HALF", "\\ud800")
        path.write_text(f"{text}\n{before.splitlines()[1]}\n")
        result = call("annotate", triplets, "--review")
        if result.exit_code == 2:
            refused += 1
            (line,) = result.stderr.splitlines()
            assert line.startswith(f"Error: {path}:1: ")
            assert len(line) < len(str(path)) + 200
        else:
            assert result.exit_code == 0, (wrong, result.exception)
            assert SCRIPT not in (triplets / "review.html").read_text()
    assert refused >= 5


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"margin": SCRIPT}, "margin: a number"),
        ({"gates": {"pose": {**GATE, "value": SCRIPT}}}, "gates.pose.value: a number"),
        ({"gates": {"pose": {**GATE, "passed": 0}}}, "gates.pose.passed: true or false"),
        ({"gates": {"pose": {**GATE, "lmit": 1}}}, "gates.pose.lmit: no such key; did you mean 'limit'?"),
        ({"objects": [OBJECT]}, "objects: are 1, those of the triplet 2"),
        (
            {"objects": [OBJECT, {**OBJECT, "target_confidence": [0.5] * 16}]},
            "objects[1].target_confidence: 17 or more",
        ),
        ({"objects": [OBJECT, {**OBJECT, "image_confidence": [SCRIPT] * 17}]}, "objects[1].image_confidence[0]: a num"),
        ({"objects": [OBJECT, {**OBJECT, "image_box": [0, 0, 2, 1]}]}, "objects[1].image_box[2]: 1 or less"),
        ({"file_name": "1-hug.png"}, "file_name: a line above has the same one"),
    ],
)
def test_what_is_wrong_with_a_report_is_named(triplets: Path, change: dict[str, Any], told: str) -> None:
    path = triplets / "annotations.jsonl"
    reports = lines(path)
    if change.get("file_name"):
        change = {"file_name": reports[0]["file_name"]}
    write_lines(path, [reports[0], {**reports[1], **change}])
    result = call("annotate", triplets, "--review")
    assert result.exit_code == 2
    assert result.stderr.startswith(f"Error: {path}:2: {told}")


class Tags(HTMLParser):
    """Elements of a page, and what stands in those of a kind."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.inside: dict[str, list[str]] = {"script": [], "style": []}
        self._open = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self._open = tag
        if tag in self.inside:
            self.inside[tag].append("")

    def handle_data(self, data: str) -> None:
        if self._open in self.inside:
            self.inside[self._open][-1] += data

    def handle_endtag(self, tag: str) -> None:
        self._open = ""


def policy(tags: Tags) -> dict[str, str]:
    (content,) = (a["content"] for tag, a in tags.found if a.get("http-equiv") == "Content-Security-Policy")
    return dict(part.strip().split(" ", 1) for part in (content or "").split(";"))


def assert_inert(text: str, scripts: int) -> Tags:
    """The page runs its own script alone, has no attribute that acts, and reaches no address."""
    tags = Tags(text)
    rules = policy(tags)
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert "unsafe" not in str(rules)
    assert "http" not in str(rules)
    assert len(tags.inside["script"]) == scripts
    for kind, texts in tags.inside.items():
        digests = {base64.b64encode(hashlib.sha256(own.encode()).digest()).decode() for own in texts}
        assert set(re.findall(r"'sha256-([^']+)'", rules.get(f"{kind}-src", ""))) == digests
    for _, attributes in tags.found:
        assert not [name for name in attributes if name.startswith("on") or name in ("style", "srcdoc")]
        assert not re.match(r"(https?|javascript|//)", attributes.get("href") or attributes.get("src") or "")
    return tags


def test_words_of_triplets_and_reports_are_only_words_on_the_page(triplets: Path) -> None:
    folder = triplets.rename(triplets.with_name('"><img src=x onerror=alert(4)>'))
    rows, reports = lines(folder / "metadata.jsonl"), lines(folder / "annotations.jsonl")
    plain = call("annotate", folder, "--review")
    assert plain.exit_code == 0, plain.output
    before = [tag for tag, _ in Tags((folder / "review.html").read_text()).found]
    name = 'x"><script>alert(2)<-script>.png'
    (folder / rows[0]["file_name"]).rename(folder / name)
    rows[0] |= {"file_name": name, "text": f"</h2>{SCRIPT}", "predicate": f'" onclick="alert(3)"{SCRIPT}'}
    for thing in rows[0]["objects"]:
        thing["name"] = f"</text></svg>{SCRIPT}{{{{ 7 * 7 }}}}"
    reports[0] |= {"file_name": name, "gates": {SCRIPT: GATE}}
    reports[0]["objects"][0]["name"] = f"</figcaption>{SCRIPT}"
    reports.append({**reports[1], "file_name": f"</li>{SCRIPT}", "problem": f"</ul>{SCRIPT}", "objects": []})
    write_lines(folder / "metadata.jsonl", rows)
    write_lines(folder / "annotations.jsonl", reports)
    result = call("annotate", folder, "--review")
    assert result.exit_code == 0, result.output
    text = (folder / "review.html").read_text()
    tags = assert_inert(text, scripts=1)
    assert SCRIPT not in text
    assert "{{ 7 * 7 }}" in text
    assert [a["data-triplet"] for tag, a in tags.found if tag == "article"] == [name, rows[1]["file_name"]]
    # The same elements as of a harmless set, but for the line of the triplet that is left out.
    assert [tag for tag, _ in tags.found] == [*before[:-1], "section", "h2", "ul", "li", before[-1]]
    assert before[-1] == "script"


def test_a_triplet_that_was_dropped_shows_no_picture_from_outside(triplets: Path) -> None:
    """The rows before correction lie in a hidden file, and those of dropped triplets nowhere else."""
    row = lines(triplets / "metadata.jsonl")[0]
    path = triplets / "saved.json"
    path.write_text(json.dumps({"triplets": {row["file_name"]: {"drop": True}}}))
    assert call("annotate", triplets, "--apply", path).exit_code == 0
    Image.new("RGB", (64, 64)).save(triplets.parent / "private.png")
    base = triplets / ".annotate" / "metadata.jsonl"
    base.write_text(base.read_text().replace(row["objects"][0]["image"], "../private.png"))
    result = call("annotate", triplets, "--review")
    assert result.exit_code == 0, result.output
    assert "private" not in (triplets / "review.html").read_text()


def test_the_command_on_the_page_can_be_copied(triplets: Path) -> None:
    folder = triplets.rename(triplets.with_name("x; touch y"))
    assert call("annotate", folder, "--review").exit_code == 0
    assert f"rbctl annotate &#39;{folder}&#39; --apply" in (folder / "review.html").read_text()


@pytest.mark.usefixtures("browser")
def test_a_browser_runs_nothing_but_the_pages_own_script(triplets: Path, tmp_path: Path) -> None:
    assert call("annotate", triplets, "--review").exit_code == 0
    text = (triplets / "review.html").read_text()
    act = "document.title = 'acted'; document.querySelector('h1').textContent = 'acted';"
    page = triplets / "spoilt.html"
    page.write_text(text.replace("<main>", f'<script>{act}</script><img src="x" onerror="{act}"><main>'))
    dom = chromium(page, tmp_path / "profile", "--dump-dom")
    assert "<h1>set</h1>" in dom
    assert "<title>set: review</title>" in dom
    assert "--unit:" in dom  # the page's own script ran


@pytest.mark.usefixtures("browser")
def test_a_triplet_of_any_name_can_be_corrected(triplets: Path, tmp_path: Path) -> None:
    rows = lines(triplets / "metadata.jsonl")
    for row, name in zip(rows, ("__proto__", 'x"><script>alert(2)<-script>.png'), strict=True):
        (triplets / row["file_name"]).rename(triplets / name)
        row["file_name"] = name
    write_lines(triplets / "metadata.jsonl", rows)
    (triplets / "annotations.jsonl").unlink()
    assert call("annotate", triplets, "--review").exit_code == 0
    play = (
        "document.querySelectorAll('.drop').forEach(box => box.click());"
        "document.querySelector('h1').textContent = btoa(JSON.stringify(corrections()));"
    )
    allowed = f"script-src 'sha256-{base64.b64encode(hashlib.sha256(play.encode()).digest()).decode()}'"
    text = (triplets / "review.html").read_text().replace("script-src", allowed)
    (triplets / "played.html").write_text(text.replace("</html>", f"<script>{play}</script></html>"))
    dom = chromium(triplets / "played.html", tmp_path / "profile", "--dump-dom")
    (saved,) = re.findall(r"<h1>([^<]+)</h1>", dom)
    triplets_ = {row["file_name"]: {"drop": True} for row in rows}
    assert json.loads(base64.b64decode(saved)) == {"triplets": triplets_}
    path = triplets / "saved.json"
    path.write_text(json.dumps({"triplets": {"__proto__": {"drop": True}}}))
    assert call("annotate", triplets, "--apply", path).exit_code == 0
    assert [row["file_name"] for row in lines(triplets / "metadata.jsonl")] == [rows[1]["file_name"]]


def test_a_value_that_a_page_lacks_is_an_error(tmp_path: Path) -> None:
    template = tmp_path / "page.html.jinja"
    template.write_text("<p>{{ words }}</p>")
    assert render(template, words="<b>") == "<p>&lt;b&gt;</p>"
    with pytest.raises(Exception, match="'words' is undefined"):
        render(template)


@pytest.mark.slow
def test_words_of_results_are_only_words_in_the_report(tmp_path: Path) -> None:
    folder = tmp_path / f"a {SCRIPT.replace('/', '-')}"
    folder.mkdir()
    Image.new("RGB", (64, 64), "red").save(folder / '"><b>.png')
    prompt = f"</title>{SCRIPT} cat hugs ![x](http://127.0.0.1/x.png) <img src=x onerror=alert(1)>"
    row = {"file_name": '"><b>.png', "text": prompt, "objects": [{"name": "<b>cat", "image": '"><b>.png'}]}
    write_lines(folder / "metadata.jsonl", [row])
    result = call("eval", folder, "--output", tmp_path / "report")
    assert result.exit_code == 0, result.output
    tags = assert_inert((tmp_path / "report" / "report.html").read_text(), scripts=0)
    assert policy(tags)["img-src"] == "data:"
    assert {tag for tag, _ in tags.found} & {"b", "script"} == set()
    assert all((a["src"] or "").startswith("data:") for tag, a in tags.found if tag == "img")
    markdown = (tmp_path / "report" / "report.md").read_text()
    assert "cat hugs" in markdown
    assert not re.search(r"<\w|</|\]\(", markdown)


def test_a_page_that_came_with_a_broken_set_is_not_left_to_be_opened(triplets: Path) -> None:
    (triplets / "review.html").write_text("<script>alert(1)</script>")
    (triplets / "annotations.jsonl").write_text('{"file_name": 3}')
    result = CliRunner().invoke(main, ["annotate", str(triplets), "--review"])
    assert result.exit_code == 2
    assert not (triplets / "review.html").exists()
