"""README and docs/ read at once: short sentences, short paragraphs, and a site that has every page and picture."""

from __future__ import annotations

import ast
import re
import statistics
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/*.md")])
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
LABORATORY = {"docs/ablations.md", "docs/mini.md", "docs/performance.md"}
MEDIAN_WORDS = 18  # of a sentence
LONGEST_WORDS = 32  # of a sentence outside of the laboratory
MOST_WORDS = 90  # of a paragraph there
MOST_BYTES = 2_000_000  # of all pictures

FENCE = re.compile(r"^(`{3,}).*?^\1", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")
ASIDE = re.compile(r"^(#|\||!\[|<!--|:::|    )")  # headings, tables, pictures, directives


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def paragraphs(text: str) -> list[str]:
    """Running text and items of lists, each in one line; links are their words."""
    kept = []
    for block in re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )", FENCE.sub("", text)):
        lines = [line for line in block.splitlines() if not ASIDE.match(line)]
        words = LINK.sub(r"\1", " ".join(lines))
        kept += [re.sub(r"^\s*(?:[-*]|\d+\.) ", "", words).strip()]
    return [paragraph for paragraph in kept if paragraph]


def sentences(paragraph: str) -> list[str]:
    """Sentences of a paragraph; a stop inside of code or a number ends none."""
    plain = re.sub(r"`[^`]*`", "Code", paragraph)
    return [s for s in re.split(r"(?<=[.!?])[*\")]*\s+", plain) if re.search(r"[A-Za-z]", s)]


def count(text: str) -> int:
    return len(re.findall(r"[\w'-]+(?:[.,/][\w'-]+)*", text))


@pytest.mark.parametrize("page", NAMES)
def test_half_of_the_sentences_of_a_page_are_short(page: str) -> None:
    lengths = [count(sentence) for paragraph in paragraphs(text_of(page)) for sentence in sentences(paragraph)]
    assert statistics.median(lengths) <= MEDIAN_WORDS


@pytest.mark.parametrize("page", sorted({*NAMES} - LABORATORY))
def test_no_paragraph_and_no_sentence_is_long(page: str) -> None:
    texts = paragraphs(text_of(page))
    assert {p[:60]: count(p) for p in texts if count(p) > MOST_WORDS} == {}
    assert {s[:60]: count(s) for p in texts for s in sentences(p) if count(s) > LONGEST_WORDS} == {}


@pytest.mark.parametrize(
    ("text", "lengths"),
    [
        ("# Title\n\nOne two three. Four five.\n\n| a | b |", [[3, 2]]),
        ("- one two\n- three `a b c` four", [[2], [3]]),
        ("```\nnot. Counted.\n```\n\n[A link](x.md) counts 0.85 words.", [[5]]),
        ("A line\ngoes on.\n\n![a picture](x.jpg)", [[4]]),
    ],
)
def test_the_count_itself(text: str, lengths: list[list[int]]) -> None:
    assert [[count(s) for s in sentences(p)] for p in paragraphs(text)] == lengths


def test_the_site_has_every_page_once() -> None:
    class Loader(yaml.SafeLoader):
        pass

    Loader.add_multi_constructor("", lambda loader, tag, node: None)  # tags of MkDocs
    nav = yaml.load((ROOT / ".mkdocs.yml").read_text(encoding="utf-8"), Loader)["nav"]
    pages = re.findall(r"[\w./-]+\.md", str(nav))
    named = [f"docs/{page}" for page in pages if not page.startswith("source/")]
    assert sorted(named) == sorted({*NAMES} - {"README.md"} | {"docs/index.md"})


def test_every_picture_is_shown_and_all_are_small() -> None:
    pictures = list((ROOT / "docs" / "pictures").iterdir())
    shown = {Path(name).name for page in NAMES for name in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text_of(page))}
    assert len(pictures) >= 20
    assert {path.name for path in pictures} - shown == set()
    assert sum(path.stat().st_size for path in pictures) <= MOST_BYTES


def test_the_command_beside_the_figures_draws_all_of_them() -> None:
    tree = ast.parse((ROOT / "docs" / "figures.py").read_text(encoding="utf-8"))
    (figures,) = (n.value for n in tree.body if isinstance(n, ast.AnnAssign) and ast.unparse(n.target) == "FIGURES")
    names = [key.value for key in figures.keys]
    assert len(names) >= 15
    assert [name for name in names if not (ROOT / "docs" / "pictures" / f"{name}.jpg").is_file()] == []


def test_the_functions_beside_the_equations_are_defined_where_the_page_says() -> None:
    page = text_of("docs/how-it-works.md")
    named = re.findall(r"\[`(\w+)`\]\(\.\./([\w/]+\.py)\)", page)
    assert len(named) >= 30
    for name, path in named:
        defined = {n.name for n in ast.walk(ast.parse((ROOT / path).read_text())) if hasattr(n, "name")}
        assert name in defined, f"{path} defines no {name}"
    assert page.count("```math") >= 8
