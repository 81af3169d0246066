"""Vision-language models and servers as judges: tiny random models, and a server on this machine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rbctl.files import write_png
from rbctl.plugins.eval.case import Case, CaseObject, Picture
from rbctl.plugins.eval.judges.judge import Item
from rbctl.plugins.eval.judges.questions import preferred, questions
from rbctl.plugins.eval.judges.vision_language import VisionLanguageJudge
from rbctl.vision_language import VisionLanguage
from tests.commands import call, refused

CPU = torch.device("cpu")


def tiny_llava(folder: Path, *words: str) -> Path:
    """A LLaVA of random weights that knows a few words."""
    import transformers as hf
    from tokenizers import Tokenizer, models, pre_tokenizers

    torch.manual_seed(0)
    known = ["<unk>", "<s>", "</s>", "<pad>", "<image>", "Is", "the", "cat", "dog", "picture", ".", "?", *words]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(known)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    fast = hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, additional_special_tokens=["<image>"], **special)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**sizes, image_size=32, patch_size=16),
        text_config=hf.LlamaConfig(**sizes, vocab_size=len(known), max_position_embeddings=256),
        image_token_index=4,
        vision_feature_layer=-1,
    )
    hf.LlavaForConditionalGeneration(config).save_pretrained(folder)
    images = hf.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    strategy = {"patch_size": 16, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    hf.LlavaProcessor(images, fast, **strategy).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llava(tmp_path_factory.mktemp("models") / "llava", "yes", "no", "Yes", "No")


@pytest.fixture
def items(tmp_path: Path) -> list[Item]:
    rng = np.random.default_rng(0)
    for name in ("cat", "dog", "a", "b"):
        write_png(tmp_path / f"{name}.png", Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)))
    objects = tuple(CaseObject(name, tmp_path / f"{name}.png") for name in ("cat", "dog"))
    case = Case("c", "A cat is riding a dog.", objects)
    picture = Picture("run", tmp_path / "a.png", case)
    return [(picture, question) for question in (*questions(case), preferred(case, tmp_path / "b.png"))]


def test_many_questions_at_once_are_answered_as_one_by_one(llava: Path, items: list[Item]) -> None:
    judge = VisionLanguageJudge(llava, CPU)
    together = [answer.yes for answer in judge(items)]
    alone = [answer.yes for item in items for answer in judge([item])]
    assert None not in together
    assert together == pytest.approx(alone, abs=1e-5)
    assert len({round(yes or 0, 6) for yes in together}) > 3  # it looks at the question
    assert judge.name == "llava"


def test_the_second_picture_is_seen(llava: Path, items: list[Item], tmp_path: Path) -> None:
    judge = VisionLanguageJudge(llava, CPU)
    (before,) = judge(items[-1:])
    write_png(tmp_path / "b.png", Image.new("RGB", (32, 32), "white"))
    (after,) = judge(items[-1:])
    assert before.yes != after.yes


def test_yes_and_no_share_the_probability(llava: Path) -> None:
    model = VisionLanguage(llava, CPU)
    image = Image.new("RGB", (32, 32), "red")
    inputs = model._asked([[image]], ["Is the cat the dog ?"])
    with torch.no_grad():
        row = model.model(**inputs).logits[0, -1].softmax(-1)
    ids = {word: model.processor.tokenizer.convert_tokens_to_ids(word) for word in ("yes", "Yes", "no", "No")}
    yes, no = (float(row[ids[a]] + row[ids[b]]) for a, b in (("yes", "Yes"), ("no", "No")))
    ((said, _),) = model.yes([[image]], ["Is the cat the dog ?"])
    assert said == pytest.approx(yes / (yes + no), abs=1e-6)


@pytest.mark.parametrize(("words", "yes"), [("Yes, the cat", 1.0), ("no", 0.0), ("the cat", None), ("", None)])
def test_a_model_without_such_tokens_is_taken_by_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, yes: float | None
) -> None:
    model = VisionLanguage(tiny_llava(tmp_path / "silent"), CPU)
    monkeypatch.setattr(model, "_words", lambda _: words)
    assert model.yes([[Image.new("RGB", (32, 32))]], ["Is the cat ?"]) == [(yes, words)]


def test_a_tiny_random_model_is_told_to_be_worthless(llava: Path, tmp_path: Path) -> None:
    flags = ["--relations", "ride", "--cases", 3, "--output", tmp_path / "check", "--answers", tmp_path / "answers"]
    result = call("eval", "judge-check", "--judge", f"vlm={llava}", *flags)
    assert result.exit_code == 0, result.output
    rows = [line for line in result.stdout.splitlines() if line.startswith("llava")]
    assert len(rows) == 8
    assert sum(row.endswith("worthless") for row in rows) >= 7


def test_a_folder_that_holds_no_model_is_one_line(tmp_path: Path) -> None:
    refused(call("eval", "judge-check", "--judge", f"vlm={tmp_path}", "--output", tmp_path / "out"), str(tmp_path))
    refused(call("eval", "judge-check", "--judge", f"vlm={tmp_path / 'none'}", "--output", tmp_path / "out"), "none")
