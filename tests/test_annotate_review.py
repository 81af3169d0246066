"""The review page of ``rbctl annotate``: what it shows, what its button saves, and taking that in."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from click.testing import Result
from commands import call
from PIL import Image
from triplet_sets import annotate, as_raw, lines, write_lines

from rbctl.triplets import load
from rbctl.triplets.check import check

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skips where there is no Chromium, or none that starts."""
    if CHROMIUM is None:
        pytest.skip("chromium is not installed (Debian: apt install chromium)")
    blank = tmp_path_factory.mktemp("chromium") / "blank.html"
    blank.write_text("<p>started</p>")
    try:
        started = chromium(blank, blank.parent / "profile", "--dump-dom")
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"chromium does not start here: {error}")
    if "started" not in started:
        pytest.skip("chromium shows no page here")


@pytest.fixture
def native(drawn_hug: Path, tmp_path: Path) -> Path:
    """A native set that comes from elsewhere: no raw.jsonl, no report."""
    return Path(shutil.copytree(drawn_hug, tmp_path / "a set & more"))


class Page(HTMLParser):
    """Elements of a page by their tag, with attributes."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.found: dict[str, list[dict[str, str | None]]] = {}
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.setdefault(tag, []).append(dict(attrs))

    def of(self, kind: str) -> list[dict[str, str | None]]:
        """Elements of a class."""
        return [a for rows in self.found.values() for a in rows if kind in (a.get("class") or "").split()]


def test_the_page_shows_every_picture_with_all_that_is_known(native: Path) -> None:
    rows = lines(native / "metadata.jsonl")
    del rows[3]["predicate"]  # a row may lack it
    write_lines(native / "metadata.jsonl", rows)
    result = annotate(native, "--review")
    assert (result.exit_code, result.stdout) == (0, f"{native / 'review.html'}\n")
    page = Page(native / "review.html")
    assert "http" not in page.text.replace("http-equiv", "")  # nothing comes from the network
    assert "a set &amp; more" in page.text
    assert page.text.count("no predicate") == 1
    assert [a["data-triplet"] for a in page.found["article"]] == [row["file_name"] for row in rows]
    assert len(page.found["svg"]) == 4 * 3
    links = [unquote(a["href"] or "") for a in page.found["image"]]
    assert all((native / link).is_file() for link in links)
    assert {link for link in links if link.startswith("masks/")} == {o["mask"] for r in rows for o in r["objects"]}
    assert len(page.of("box")) == 4 * 2
    assert len(page.of("point")) == 4 * 4 * 17
    points = iter(page.of("point"))
    for thing in rows[0]["objects"]:  # on the target, which comes first
        for x, y, seen in thing["target_keypoints"]:
            circle = next(points)
            assert circle["data-seen"] == str(seen)
            if seen:
                assert float(circle["cx"] or 0) == pytest.approx(x * 128, abs=0.01)
                assert float(circle["cy"] or 0) == pytest.approx(y * 128, abs=0.01)


@pytest.mark.slow
def test_doubtful_points_failed_gates_and_what_was_left_out_are_marked(drawn_hug: Path, tmp_path: Path) -> None:
    folder = as_raw(drawn_hug, tmp_path / "raw")
    row = lines(folder / "raw.jsonl")[3]
    Image.new("RGB", (128, 128), "white").save(folder / row["file_name"])
    assert annotate(folder, "--drop-failed", "--min-pose-change", "0").exit_code == 0
    assert annotate(folder, "--review").exit_code == 0
    page = Page(folder / "review.html")
    reports = [report for report in lines(folder / "annotations.jsonl") if report["kept"]]
    sure = [c for r in reports for o in r["objects"] for part in ("target", "image") for c in o[f"{part}_confidence"]]
    shown = [p for p in page.of("point") if p["data-seen"] != "0"]
    assert 0 < len(page.of("doubtful")) <= sum(c < 0.5 for c in sure)
    assert len(shown) > len(page.of("doubtful"))
    assert f"<li>{row['file_name']}: " in page.text
    assert "nobody was found" in page.text


def correct(folder: Path, **triplets: object) -> Result:
    path = folder.parent / "saved.json"
    names = [row["file_name"] for row in lines(folder / "metadata.jsonl")]
    content = {f"{next(n for n in names if n.startswith(key[1:]))}": value for key, value in triplets.items()}
    path.write_text(json.dumps({"triplets": content}))
    return annotate(folder, "--apply", path)


def test_corrections_are_taken_in_and_back(native: Path) -> None:
    before = lines(native / "metadata.jsonl")
    moved = {"target_keypoints": {"3": [0.25, 0.5, 2]}, "image_keypoints": {"16": [0, 0, 0]}}
    result = correct(native, t0={"drop": True}, t1={"objects": [{}, moved]})
    assert (result.exit_code, result.stdout) == (0, f"{native}\n"), result.output
    after = lines(native / "metadata.jsonl")
    assert [row["file_name"] for row in after] == [row["file_name"] for row in before[1:]]
    thing = after[0]["objects"][1]
    assert thing["target_keypoints"][3] == [0.25, 0.5, 2]
    assert thing["image_keypoints"][16] == [0, 0, 0]
    thing["target_keypoints"][3] = before[1]["objects"][1]["target_keypoints"][3]
    thing["image_keypoints"][16] = before[1]["objects"][1]["image_keypoints"][16]
    assert after == before[1:]
    annotate(native, "--review")
    assert len([a for a in Page(native / "review.html").of("drop") if "checked" in a]) == 1
    path = native.parent / "back.json"
    path.write_text(json.dumps({"triplets": {before[0]["file_name"]: {"drop": False}}}))
    assert annotate(native, "--apply", path).exit_code == 0
    assert [row["file_name"] for row in lines(native / "metadata.jsonl")] == [row["file_name"] for row in before]
    assert lines(native / "metadata.jsonl")[1]["objects"][1]["target_keypoints"][3] == [0.25, 0.5, 2]
    assert [problem for problem in check(native) if problem.level == "error"] == []


@pytest.mark.slow
def test_annotating_again_keeps_the_corrections(drawn_hug: Path, tmp_path: Path) -> None:
    folder = as_raw(drawn_hug, tmp_path / "raw")
    assert annotate(folder).exit_code == 0
    assert correct(folder, t2={"objects": [{"target_keypoints": {"0": [0.125, 0.125, 1]}}]}).exit_code == 0
    corrected = (folder / "metadata.jsonl").read_bytes()
    assert annotate(folder).exit_code == 0
    assert (folder / "metadata.jsonl").read_bytes() == corrected
    assert load(folder)[2].objects[0].target_keypoints[0].tolist() == [0.125, 0.125, 1]


@pytest.mark.parametrize(
    ("triplets", "told"),
    [
        ({"9.png": {}}, "'9.png': no such triplet"),
        ({"0-hug.png": {"drop": "yes"}}, "drop: true or false was expected"),
        ({"0-hug.png": {"objects": [{}, {}, {}]}}, "has 2 objects, not 3"),
        ({"0-hug.png": {"objects": [{"target_keypoints": {"17": [0, 0, 0]}}]}}, "from 0 to 16"),
        (
            {"0-hug.png": {"objects": [{"target_keypoints": {"1": [0, 2, 2]}}]}},
            "target_keypoints.1[1]: 1 or less was expected",
        ),
        ({f"{k}-hug.png": {"drop": True} for k in range(4)}, "drops every triplet"),
        (None, "triplets: a mapping was expected"),
    ],
)
def test_bad_corrections_are_one_line_and_change_nothing(native: Path, triplets: object, told: str) -> None:
    before = (native / "metadata.jsonl").read_bytes()
    path = native.parent / "saved.json"
    path.write_text(json.dumps({"triplets": triplets}))
    result = annotate(native, "--apply", path)
    assert result.exit_code == 2
    assert told in result.stderr
    assert result.stderr.count("\n") == 1
    assert (native / "metadata.jsonl").read_bytes() == before
    assert not (native / "corrections.json").exists()


def test_a_folder_that_is_not_annotated_has_no_page(tmp_path: Path) -> None:
    result = annotate(tmp_path, "--review")
    assert result.exit_code == 2
    assert "holds no metadata.jsonl" in result.stderr


@pytest.mark.slow
def test_the_published_triplets_with_their_own_annotations(real_hug: Path, tmp_path: Path) -> None:
    folder = tmp_path / "hug"
    assert call("data", "import", real_hug, folder).exit_code == 0
    assert call("data", "check", folder).exit_code == 0
    assert annotate(folder, "--review").exit_code == 0
    page = Page(folder / "review.html")
    triplets = load(folder)
    assert len(page.found["article"]) == len(triplets)
    assert len(page.of("point")) == 17 * sum(2 * len(t.objects) for t in triplets)
    assert len(page.of("mask")) == sum(len(t.objects) for t in triplets)


_PLAYED = """
const circle = document.querySelector('.point[data-seen="2"]'), svg = circle.ownerSVGElement;
const at = circle.getBoundingClientRect(), frame = svg.getScreenCTM();
const event = (kind, x, y) => new PointerEvent(kind, {clientX: x, clientY: y, bubbles: true, cancelable: true});
circle.dispatchEvent(event("pointerdown", at.x, at.y));
window.dispatchEvent(event("pointermove", frame.e + frame.a * 32, frame.f + frame.d * 96));
window.dispatchEvent(event("pointerup", 0, 0));
const other = document.querySelectorAll("article")[1].querySelector('.point[data-seen="2"]');
other.dispatchEvent(new MouseEvent("dblclick", {bubbles: true}));
const box = document.querySelectorAll(".drop")[2];
box.click();
const done = document.createElement("pre");
done.id = "saved";
done.textContent = "<<" + JSON.stringify(corrections()) + ">>";
document.body.append(done);
"""


def chromium(page: Path, profile: Path, *arguments: str) -> str:
    assert CHROMIUM is not None
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += " --disable-component-update --disable-sync --window-size=1280,2400"
    command = [CHROMIUM, *flags.split(), f"--user-data-dir={profile}", *arguments, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.usefixtures("browser")
def test_dragging_hiding_and_dropping_in_a_browser(native: Path, tmp_path: Path) -> None:
    assert annotate(native, "--review").exit_code == 0
    played = native / "played.html"
    allowed = f"script-src 'sha256-{base64.b64encode(hashlib.sha256(_PLAYED.encode()).digest()).decode()}'"
    page = (native / "review.html").read_text().replace("script-src", allowed)
    played.write_text(page.replace("</html>", f"<script>{_PLAYED}</script></html>"))
    dom = chromium(played, tmp_path / "profile", "--dump-dom")
    saved = json.loads(dom.split("&lt;&lt;")[1].split("&gt;&gt;")[0])
    rows = lines(native / "metadata.jsonl")
    first, second, third = (saved["triplets"][row["file_name"]] for row in rows[:3])
    ((number, point),) = next(o["target_keypoints"] for o in first["objects"] if o["target_keypoints"]).items()
    assert point == [pytest.approx(0.25, abs=0.01), pytest.approx(0.75, abs=0.01), 2]
    ((_, hidden),) = next(o["target_keypoints"] for o in second["objects"] if o["target_keypoints"]).items()
    assert hidden[2] == 1
    assert third == {"drop": True}
    path = tmp_path / "corrections.json"
    path.write_text(json.dumps(saved))
    assert annotate(native, "--apply", path).exit_code == 0
    assert lines(native / "metadata.jsonl")[0]["objects"][0]["target_keypoints"][int(number)] == point


@pytest.mark.slow
@pytest.mark.usefixtures("browser")
def test_the_page_is_drawn(native: Path, tmp_path: Path) -> None:
    """Masks and skeletons have the objects' colours, and lie over the pictures."""
    assert annotate(native, "--review").exit_code == 0
    shot = tmp_path / "shot.png"
    chromium(native / "review.html", tmp_path / "profile", f"--screenshot={shot}")
    with Image.open(shot) as image:
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 24)}
    assert {(37, 99, 235), (234, 88, 12)} <= colours
    assert len(colours) > 500  # the pictures themselves
