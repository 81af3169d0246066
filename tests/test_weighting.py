"""Words that count more or less, as A1111 writes them: read right, weighed as compel does, and in whole pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from rbctl import RelationPipeline, embeddings
from rbctl.bundle.bundle import Bundle
from rbctl.bundle.load import load
from rbctl.cli import main
from rbctl.embeddings import Embedding, pieces
from rbctl.errors import InputError
from rbctl.pictures import read_record
from rbctl.prompts.weights import WeightedText, read_weights

pytestmark = pytest.mark.usefixtures("one_thread")


def fragments(text: str) -> list[tuple[str, float]]:
    read = read_weights(text, "here")
    assert len(read.weights) in (0, len(read.words))
    return read.fragments


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("a cat: (its) friend", [("a cat: ", 1), ("its", 1.1), (" friend", 1)]),
        ("((a)) [b] (c:0.5)", [("a", 1.21), ("b", 0.909091), ("c", 0.5)]),
        ("(a (b:2) c:1.5)", [("a ", 1.5), ("b", 3), (" c", 1.5)]),
        ("([a]) b", [("a b", 1)]),
        (r"a \(cat\) \[x\] \\", [("a (cat) [x] \\", 1)]),
        ("a (cat, never closed", [("a ", 1), ("cat, never closed", 1.1)]),
        ("a ) cat ] :1.2)", [("a ) cat ] :1.2)", 1)]),
        ("(Re:Zero)", [("Re:Zero", 1.1)]),
        (r"\AND \BREAK \__x__", [("AND BREAK __x__", 1)]),
        ("and break __init, sandbox", [("and break __init, sandbox", 1)]),
        ("(masterpiece, best quality:1.2), 1girl", [("masterpiece, best quality", 1.2), (", 1girl", 1)]),
    ],
)
def test_marks_are_read_as_a1111_reads_them(text: str, read: list[tuple[str, float]]) -> None:
    assert fragments(text) == read


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a cat AND a dog", "'AND' composes prompts"),
        ("a cat BREAK a dog", "'BREAK' begins"),
        ("[cat:dog:0.5]", "'[cat:dog:0.5]' changes the prompt at a step"),
        ("a [cat:0.5]", "'[cat:0.5]' changes the prompt at a step"),
        ("a [cat|dog]", "'[cat|dog]' alternates"),
        ("a __colour__ cat", "'__colour__' draws words from a file"),
        ("embedding:EasyNegative, blurry", "'embedding:EasyNegative' names an embedding"),
        ("(cat:11)", "'(cat:11)': a weight from 0 to 10"),
        ("(cat:nan)", "'(cat:nan)': a weight"),
        ("(cat:-0.5)", "'(cat:-0.5)': a weight"),
        ("(cat:1.2.3)", "'(cat:1.2.3)': a weight"),
        ("((cat:9):9)", "'cat' counts 81 times"),
        ("(" * 100_000, "more than 64 brackets"),
    ],
)
def test_what_is_not_supported_is_refused_by_its_name(text: str, told: str) -> None:
    with pytest.raises(InputError) as error:
        read_weights(text, "p.txt:3")
    assert str(error.value).startswith(f"p.txt:3: {told}")
    assert "\n" not in str(error.value)
    assert read_weights(text, "p.txt:3", weighting=False) == WeightedText(text)


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return load(str(tiny_bundle), torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("text", ["A (cat)s, (dog)'s (tail!)!", "(a)b(c:2)1 (2)", "the (caf)é"])
def test_the_words_have_the_tokens_of_their_parts(bundle: Bundle, text: str) -> None:
    """So that phrases are found among the tokens of the words without marks."""
    parts = [token for part, _ in fragments(text) for token in pieces(bundle.tokenizer, part, ())]
    assert pieces(bundle.tokenizer, read_weights(text, "").words, ()) == parts


def encoded(bundle: Bundle, text: str, learned: list[Embedding] | None = None) -> torch.Tensor:
    read = read_weights(text, "here")
    return bundle.encode_prompts([read.words], learned or [], [read.weights])[0][0]


def test_weights_are_those_of_compel(bundle: Bundle) -> None:
    """Its own form of the same prompt, through its own interface."""
    import compel

    sides = [
        compel.Compel(
            tokenizer=tokenizer,
            text_encoder=encoder,
            returned_embeddings_type=compel.ReturnedEmbeddingsType.PENULTIMATE_HIDDEN_STATES_NON_NORMALIZED,
        )
        for tokenizer, encoder in (
            (bundle.tokenizer, bundle.text_encoder),
            (bundle.tokenizer_2, bundle.text_encoder_2),
        )
    ]
    with torch.no_grad():
        theirs = torch.cat([side("a cat (rides)1.4 a (dog)0.6") for side in sides], dim=-1)[0]
    assert torch.equal(encoded(bundle, "a cat (rides:1.4) a (dog:0.6)"), theirs)


def test_a_word_moves_away_from_the_empty_prompt(bundle: Bundle) -> None:
    widths = [e.config.hidden_size for e in (bundle.text_encoder, bundle.text_encoder_2)]
    learned = Embedding("<new>", (torch.full((1, widths[0]), 0.1), torch.full((1, widths[1]), 0.1)))
    plain, empty = encoded(bundle, "a cat <new> a dog", [learned]), encoded(bundle, "")
    heavier = encoded(bundle, "a cat (<new>:1.5) a dog", [learned])
    place = 1 + len(pieces(bundle.tokenizer, "a cat", ()))
    torch.testing.assert_close(heavier[place], empty[place] + 1.5 * (plain[place] - empty[place]))
    others = [k for k in range(len(plain)) if k != place]
    assert torch.equal(heavier[others], plain[others])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("individuals")
    for name, colour in (("cat", "orange"), ("bear", "pink")):
        Image.new("RGB", (60, 60), colour).save(folder / f"{name}.png")
    return folder


@pytest.fixture
def sample(tiny_bundle: Path, folder: Path) -> Any:
    def run(line: str, output: Path, *flags: str) -> tuple[dict[str, Any], np.ndarray, str]:
        (folder / "p.txt").write_text(line)
        command = [
            "sample",
            str(folder / "p.txt"),
            "--bundle",
            str(tiny_bundle),
            "--steps",
            "2",
            "--output",
            str(output),
        ]
        result = CliRunner().invoke(main, [*command, "--output", str(output), "--lora", "none", *flags])
        assert result.exit_code == 0, result.output
        (row,) = (json.loads(line) for line in (output / "metadata.jsonl").read_text().splitlines())
        return row, np.asarray(Image.open(output / row["file_name"])), result.output

    return run


@pytest.mark.slow
def test_a_text_without_marks_is_the_same_picture_with_and_without_weighting(sample: Any, tmp_path: Path) -> None:
    line = "A {cat: cat.png} is riding a {bear: bear.png}, snow: deep --d 3 --n red, blue"
    first, made, _ = sample(line, tmp_path / "a")
    second, same, _ = sample(line, tmp_path / "b", "--no-prompt-weighting")
    assert first == second
    assert np.array_equal(made, same)


@pytest.mark.slow
def test_marks_change_the_picture_and_not_what_is_read_of_the_text(sample: Any, tmp_path: Path) -> None:
    plain, marked = (
        f"A {bear} {being} ridden by a {{cat: cat.png}} --d 3 --l 4 --n {negative}"
        for bear, being, negative in (
            ("{bear: bear.png}", "is being", "red"),
            ("({bear: bear.png}:1.3)", "[is] (being", "(red:1.4)"),
        )
    )
    flags = ("--pseudo-mask-step", "1", "--quality", "best")
    row, made, said = sample(plain, tmp_path / "a", *flags)
    weighed, heavier, said_too = sample(marked, tmp_path / "b", *flags)
    literal, text, _ = sample(marked, tmp_path / "c", "--no-prompt-weighting")
    assert "bear mount, cat rider" in said
    assert "bear mount, cat rider" in said_too
    assert weighed["objects"] == row["objects"]
    assert weighed["text"] == literal["text"] == "A (bear:1.3) [is] (being ridden by a cat"
    assert weighed["words"] == row["text"]
    assert weighed["negative_prompt"] == "(red:1.4)"
    assert len({row["fingerprint"], weighed["fingerprint"], literal["fingerprint"]}) == 3
    assert not np.array_equal(made, heavier)
    assert not np.array_equal(heavier, text)
    assert read_record(tmp_path / "b" / weighed["file_name"])["prompt_weighting"] == "compel"
    parameters = Image.open(tmp_path / "b" / weighed["file_name"]).info["parameters"]
    assert parameters.startswith("A (bear:1.3) [is] (being ridden by a cat\nNegative prompt: (red:1.4)\n")


@pytest.mark.slow
def test_a_learned_token_takes_the_weight_of_the_words_it_replaces(sample: Any, bundle: Bundle, tmp_path: Path) -> None:
    widths = [e.config.hidden_size for e in (bundle.text_encoder, bundle.text_encoder_2)]
    vectors = torch.full((2, widths[0]), 0.1), torch.full((2, widths[1]), 0.1)
    path = tmp_path / "ride.safetensors"
    embeddings.save(path, Embedding("<ride>", vectors, metadata={"rbctl.words": '["is riding"]'}))
    line = "A {cat: cat.png} %s a {bear: bear.png}"
    _, plain, _ = sample(line % "is riding", tmp_path / "a", "--embedding", str(path))
    replaced, heavier, _ = sample(line % "(is riding:1.5)", tmp_path / "b", "--embedding", str(path))
    parted, from_the_first, _ = sample(line % "(is:1.5) [riding]", tmp_path / "c", "--embedding", str(path))
    _, written, _ = sample(line % "(<ride>:1.5)", tmp_path / "d", "--embedding", str(path))
    assert replaced["words"] == parted["words"] == "A cat <ride> a bear"
    assert np.array_equal(heavier, written)
    assert np.array_equal(heavier, from_the_first)
    assert not np.array_equal(plain, heavier)


@pytest.mark.slow
def test_the_pipeline_weighs_as_sample_does_and_can_leave_it(
    sample: Any, tiny_bundle: Path, folder: Path, tmp_path: Path
) -> None:
    images = {name: folder / f"{name}.png" for name in ("cat", "bear")}
    for weighting, flags in ((True, ()), (False, ("--no-prompt-weighting",))):
        pipe = RelationPipeline.from_pretrained(tiny_bundle, device="cpu", prompt_weighting=weighting)
        pipe.set_progress_bar_config(disable=True)
        line = "A ({cat: cat.png}:1.3) is riding a {bear: bear.png} --d 7 --n [red]"
        _, made, _ = sample(line, tmp_path / str(weighting), *flags)
        drawn = pipe(
            "A ({cat}:1.3) is riding a {bear}",
            images,
            negative_prompt="[red]",
            num_inference_steps=2,
            generator=torch.Generator().manual_seed(7),
        )
        assert np.array_equal(made, np.asarray(drawn.images[0]))
    with pytest.raises(InputError, match="prompt 1: 'BREAK' begins"):
        RelationPipeline.from_pretrained(tiny_bundle, device="cpu")("a cat BREAK a dog")


def test_without_compel_it_is_one_line_with_the_way(
    tiny_bundle: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("rbctl.weighting.find_spec", lambda name: None)
    (folder / "q.txt").write_text("A (cat:1.2)")
    command = ["sample", str(folder / "q.txt"), "--bundle", str(tiny_bundle), "--output", str(tmp_path / "o")]
    result = CliRunner().invoke(main, [*command, "--lora", "none"])
    assert result.exit_code == 2
    assert result.output.strip().splitlines()[-1] == (
        "Error: weights in a prompt, (word:1.2), need compel; pip install compel, or take --no-prompt-weighting"
    )
