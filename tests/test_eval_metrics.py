"""The numbers themselves: metrics against plain library calls, intervals, predicates, features kept on disk."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torchvision import transforms

from rbctl.bundle.tokenizer import END, write_tokenizer
from rbctl.errors import InputError
from rbctl.plugins.eval import predicates
from rbctl.plugins.eval.case import Case, Picture
from rbctl.plugins.eval.encoders import Encoder, load_clip, load_dino
from rbctl.plugins.eval.failures import best_match, of_crops
from rbctl.plugins.eval.features import Digests, FeatureStore, crop
from rbctl.plugins.eval.intervals import interval, paired, rank_correlation, rank_interval
from rbctl.plugins.eval.metrics import (
    PROFILES,
    crop_alignment,
    image_alignment,
    kernel_distance,
    kernel_distance_interval,
    text_alignment,
)
from rbctl.plugins.eval.rows import Row
from rbctl.plugins.eval.summary import winner

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
CPU = torch.device("cpu")
TEXTS = ["a dog in the snow", "is hugging", "a stuffed animal on the beach"]
CLIP_NORM = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
DINO_NORM = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def photos() -> list[Path]:
    """Real pictures of different sizes."""
    folder = SHARED / "dreambench" / "dataset"
    if not folder.is_dir():
        pytest.skip("the DreamBench pictures are not beside this checkout")
    return [folder / name for name in ("dog/00.jpg", "dog/01.jpg", "cat/00.jpg", "teapot/00.jpg", "rc_car/02.jpg")]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Small pictures of different shapes, for what needs no photographs."""
    folder, rng = tmp_path_factory.mktemp("drawn"), np.random.default_rng(0)
    paths = [folder / f"{k}.png" for k in range(7)]
    for k, path in enumerate(paths):
        Image.fromarray(rng.integers(0, 255, (40 + 5 * k, 60, 3), dtype=np.uint8)).save(path)
    return paths


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import CLIPConfig, CLIPModel

    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    text |= {"bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 49407}
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = CLIPConfig(
        text_config=text, vision_config={**vision, "image_size": 48, "patch_size": 16}, projection_dim=24
    )
    CLIPModel(config).save_pretrained(folder)
    write_tokenizer(folder, END)
    return folder


@pytest.fixture(scope="module")
def dino_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import ViTConfig, ViTModel

    folder = tmp_path_factory.mktemp("dino")
    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    ViTModel(ViTConfig(**sizes, image_size=56, patch_size=8), add_pooling_layer=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip(clip_folder: Path) -> Encoder:
    return load_clip(clip_folder, CPU)


@pytest.fixture(scope="module")
def dino(dino_folder: Path) -> Encoder:
    return load_dino(dino_folder, "dino", CPU)


def prepared(paths: list[Path], resize: int, size: int, norm: tuple[tuple[float, ...], ...]) -> torch.Tensor:
    """As the published scores prepare pictures, by torchvision alone."""
    bicubic = transforms.InterpolationMode.BICUBIC
    steps = [transforms.Resize(resize, bicubic), transforms.CenterCrop(size), transforms.ToTensor()]
    prepare = transforms.Compose([*steps, transforms.Normalize(*norm)])
    return torch.stack([prepare(Image.open(path).convert("RGB")) for path in paths])


@torch.no_grad()
def test_clip_t_and_clip_i_are_those_of_plain_calls(
    clip: Encoder, clip_folder: Path, photos: list[Path], tmp_path: Path
) -> None:
    from transformers import CLIPModel, CLIPTokenizer

    model = CLIPModel.from_pretrained(clip_folder).eval()
    tokenizer = CLIPTokenizer.from_pretrained(clip_folder)
    pixels = prepared(photos, 48, 48, CLIP_NORM)
    tokens = tokenizer(TEXTS, padding=True, truncation=True, return_tensors="pt")
    output = model(**tokens, pixel_values=pixels)
    likeness = (output.image_embeds @ output.image_embeds.T).numpy()
    store = FeatureStore(tmp_path, clip, Digests(), batch_size=2)
    images = store.images([(path, None) for path in photos])
    texts = store.texts(TEXTS)
    for k, image in enumerate(images):
        for j, text in enumerate(texts):
            cosine = float(output.image_embeds[k] @ output.text_embeds[j])
            assert text_alignment(image, text) == pytest.approx(cosine, abs=1e-5)
            # CustomConcept101's CLIPScore
            assert text_alignment(image, text, 2.5, True) == pytest.approx(2.5 * max(cosine, 0), abs=1e-5)
        subjects = [np.stack([images[2], images[3]]), images[4][None]]
        wanted = (likeness[k, [2, 3]].mean() + likeness[k, 4]) / 2
        assert image_alignment(image, subjects) == pytest.approx(float(wanted), abs=1e-5)
    assert min(float(likeness[0, j]) for j in range(1, 5)) < 0.9999  # the tiny network does tell pictures apart


@torch.no_grad()
def test_dino_is_that_of_plain_calls(dino: Encoder, dino_folder: Path, photos: list[Path], tmp_path: Path) -> None:
    from transformers import ViTModel

    model = ViTModel.from_pretrained(dino_folder, add_pooling_layer=False).eval()
    tokens = model(prepared(photos, 64, 56, DINO_NORM)).last_hidden_state[:, 0]  # 64 : 56 is 256 : 224
    tokens = tokens / tokens.norm(dim=-1, keepdim=True)
    images = FeatureStore(tmp_path, dino, Digests()).images([(path, None) for path in photos])
    for k, image in enumerate(images):
        wanted = float((tokens[k] @ tokens[[0, 1]].T).mean())
        assert image_alignment(image, [np.stack(images[:2])]) == pytest.approx(wanted, abs=1e-5)


@torch.no_grad()
def test_open_clip_is_that_of_plain_calls(drawn: list[Path], tmp_path: Path) -> None:
    import json

    import open_clip

    config = {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 8, "patch_size": 8},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 2},
    }
    torch.manual_seed(0)
    folder = tmp_path / "open_clip"
    folder.mkdir()
    model = open_clip.CLIP(**config).eval()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    encoder = load_clip(folder, CPU)
    store = FeatureStore(tmp_path / "kept", encoder, Digests())
    images = np.stack(store.images([(path, None) for path in drawn]))
    wanted = model.encode_image(prepared(drawn, 32, 32, CLIP_NORM)).numpy()
    np.testing.assert_allclose(images, wanted, atol=1e-5)
    texts = model.encode_text(open_clip.get_tokenizer("ViT-B-32")(TEXTS)).numpy()
    np.testing.assert_allclose(np.stack(store.texts(TEXTS)), texts, atol=1e-5)


def test_a_bundle_scores_with_its_own_encoders() -> None:
    """Of the world's own drawings, mini's CLIP gives its caption a higher score than another's."""
    from rbctl.bundle.catalogue import resolve

    encoder = load_clip(resolve("mini"), CPU)
    assert encoder.texts is not None
    with torch.no_grad():
        texts = encoder.texts(["a cat", "a bear"])
        pixels = torch.stack([encoder.prepare(Image.new("RGB", (90, 60), "white"))])
        assert encoder.images(pixels).shape[1] == texts.shape[1]


def test_order_and_batch_size_change_nothing(dino: Encoder, drawn: list[Path], tmp_path: Path) -> None:
    items = [(path, box) for path in drawn for box in (None, (0.1, 0.2, 0.6, 0.9))]
    first = FeatureStore(tmp_path / "a", dino, Digests(), batch_size=1).images(items)
    other = FeatureStore(tmp_path / "b", dino, Digests(), batch_size=5).images(items[::-1])[::-1]
    np.testing.assert_allclose(np.stack(first), np.stack(other), atol=1e-6)
    assert not np.allclose(first[0], first[1], atol=1e-3)  # a part is not the whole


def test_features_are_kept_by_what_a_picture_holds(
    dino: Encoder, drawn: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FeatureStore(tmp_path / "kept", dino, Digests())
    before = store.images([(drawn[0], None), (drawn[1], None)])
    moved = tmp_path / "elsewhere.png"
    moved.write_bytes(drawn[1].read_bytes())
    monkeypatch.setattr(FeatureStore, "_encode_images", None)  # nothing may be encoded now
    again = FeatureStore(tmp_path / "kept", dino, Digests()).images([(moved, None), (drawn[0], None)])
    np.testing.assert_array_equal(np.stack(again), np.stack(before[::-1]))


def test_what_a_killed_evaluation_left_half_written_goes_when_nobody_writes_it(
    dino: Encoder, drawn: list[Path], tmp_path: Path
) -> None:
    place = tmp_path / dino.hash[:20]
    place.mkdir()
    stale, fresh = place / ".a.safetensors.01.partial", place / ".b.safetensors.02.partial"
    for path in (stale, fresh):
        path.write_bytes(b"half")
    os.utime(stale, (0, 0))
    FeatureStore(tmp_path, dino, Digests()).images([(drawn[0], None)])
    assert not stale.exists()
    assert fresh.exists()


def test_unreadable_pictures_are_told_together(dino: Encoder, drawn: list[Path], tmp_path: Path) -> None:
    bad = [tmp_path / "a.png", tmp_path / "b.jpg"]
    for path in bad:
        path.write_bytes(b"no picture" + path.name.encode())
    store = FeatureStore(tmp_path / "kept", dino, Digests(), batch_size=2)
    with pytest.raises(InputError, match=r"2 pictures cannot be read.*a\.png.*b\.jpg"):
        store.images([(path, None) for path in (*drawn, *bad)])


@pytest.mark.parametrize("broken", ["config", "weights", "empty"])
def test_a_damaged_model_folder_is_one_line(dino_folder: Path, tmp_path: Path, broken: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    if broken != "empty":
        (folder / "config.json").write_bytes((dino_folder / "config.json").read_bytes())
        (folder / "model.safetensors").write_bytes((dino_folder / "model.safetensors").read_bytes()[:-100])
    if broken == "config":
        (folder / "config.json").write_text("{")
    with pytest.raises(InputError, match=str(folder)):
        load_dino(folder, "dino", CPU)


def test_a_missing_object_scores_nothing() -> None:
    own = np.array([1.0, 0.0], dtype=np.float32)
    assert crop_alignment([own, own], [own[None], own[None]]) == pytest.approx(1)
    assert crop_alignment([own, None], [own[None], own[None]], 100) == pytest.approx(50)


def test_a_crop_is_a_square_inside_the_frame() -> None:
    image = Image.fromarray(np.arange(100 * 200 * 3, dtype=np.uint32).astype(np.uint8).reshape(100, 200, 3))
    assert crop(image, (0.0, 0.0, 0.25, 0.25)).size == (50, 50)
    assert crop(image, (0.9, 0.8, 1.0, 1.0)).size == (20, 20)
    assert crop(image, (0.0, 0.0, 1.0, 0.1)).size == (100, 100)  # as wide as the frame is high
    np.testing.assert_array_equal(np.asarray(crop(image, (0.5, 0.5, 0.6, 0.7))), np.asarray(image)[50:70, 100:120])


def test_the_kernel_distance_is_that_of_a_plain_sum() -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=(6, 3)).astype(np.float32) for _ in range(2))

    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        return float((x.astype(float) @ y.astype(float) / 3 + 1) ** 3)

    others = [(i, j) for i in range(6) for j in range(6) if i != j]
    within = [np.mean([kernel(v[i], v[j]) for i, j in others]) for v in (a, b)]
    between = np.mean([kernel(a[i], b[j]) for i, j in others])  # never a scene's own pair
    assert kernel_distance(a, b) == pytest.approx(sum(within) - 2 * between)


@pytest.mark.slow
def test_the_kernel_distances_interval_holds_it_as_often_as_it_says() -> None:
    def distances(shift: float, number: int) -> tuple[float, tuple[float, float]]:
        rng = np.random.default_rng((number, 7))
        scenes = rng.normal(size=(60, 8))  # both sets show them
        a, b = (scenes + rng.normal(own, size=(60, 8)) for own in (0.0, shift))
        return kernel_distance(a, b), kernel_distance_interval(a, b)

    same, other = ([distances(shift, number) for number in range(20)] for shift in (0.0, 1.0))
    assert np.mean([value for value, _ in same]) == pytest.approx(0, abs=0.1)  # no bias
    true = np.mean([value for value, _ in other])
    assert sum(low <= true <= high for _, (low, high) in other) >= 16
    assert min(low for _, (low, _) in other) > max(value for value, _ in same)


def test_profiles_say_what_they_are() -> None:
    assert set(PROFILES) == {"cc101", "dreambench", "dreambench++", "relationbench", "crops"}
    assert [metric.name for metric in PROFILES["relationbench"]] == ["CLIP-T", "CLIP-R", "CLIP-I", "DINO"]
    clip_t = PROFILES["cc101"][0]
    assert (clip_t.factor, clip_t.clamped) == (2.5, True)


# --- failures by features ------------------------------------------------------------------------------------------


def test_the_best_match_takes_every_prompt_once() -> None:
    assert best_match(np.array([[0.9, 0.8], [0.85, 0.1]])) == (1, 0)  # each alone prefers the first
    assert best_match(np.array([[0.5, 0.5], [0.5, 0.5]])) == (0, 1)
    assert best_match(np.array([[0, 1, 0], [0, 0, 1], [1.0, 0, 0]])) == (1, 2, 0)


def test_failures_by_boxes() -> None:
    cat, dog = np.eye(2, dtype=np.float32)
    right = of_crops([cat, dog], [cat, dog], detected=True)
    assert (right["identity swap"], right["duplicate"], right["missing object"]) == (False, False, False)
    assert of_crops([dog, cat], [cat, dog], detected=True)["identity swap"] is True
    twice = of_crops([cat, cat], [cat, dog], detected=True)
    assert twice["duplicate"] is True
    gone = of_crops([cat, None], [cat, dog], detected=True)
    assert gone["missing object"] is True
    assert gone["identity swap"] is None
    asked = of_crops([cat, dog], [cat, dog], detected=False)
    assert asked["missing object"] is None  # where it was asked for says nothing of where it is
    assert asked["identity swap"] is False
    assert of_crops([cat, cat], [cat, dog], detected=False)["duplicate"] is None
    assert right["wrong direction"] is None


# --- intervals -----------------------------------------------------------------------------------------------------


def test_an_interval_holds_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    held = [
        found["low"] <= 0.6 <= found["high"]
        for found in (interval((rng.random(40) < 0.6).astype(float), seed) for seed in range(200))
    ]
    assert 0.88 <= np.mean(held) <= 0.99
    assert interval([0.2, 0.4, np.nan]) == interval([0.2, 0.4, np.nan])
    assert interval([np.nan])["mean"] is None
    assert interval([0.2, 0.4, np.nan])["cases"] == 2


@pytest.mark.slow
def test_a_paired_test_finds_what_is_there_and_only_that() -> None:
    rng = np.random.default_rng(2)
    base = rng.normal(size=30)
    assert paired(base + 0.5 + 0.3 * rng.normal(size=30), base)["p"] < 0.001
    chance = [paired(a, b)["p"] < 0.05 for a, b in rng.normal(size=(200, 2, 12))]
    assert np.mean(chance) < 0.11
    # by hand: of the 8 ways to sign 1, 2, 3 two have a sum as large
    assert paired([1, 2, 3], [0, 0, 0])["p"] == pytest.approx(2 / 8)


def test_rank_correlation_against_scipy() -> None:
    scipy = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(3)
    x = rng.integers(0, 5, 40).astype(float)  # with ties
    y = x + rng.normal(size=40)
    assert rank_correlation(x, y) == pytest.approx(scipy.spearmanr(x, y).statistic)
    assert rank_correlation([1, 1, 1, 1], [1, 2, 3, 4]) is None
    found = rank_interval(list(x), list(y), [str(k // 2) for k in range(40)])
    assert found["low"] < found["rho"] < found["high"]
    assert (found["n"], found["cases"]) == (40, 20)


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ({"a": {"1": 0.2, "2": 0.9}, "b": {"1": 0.3, "2": 0.7}, "c": {"1": 0.1, "2": 0.1}}, ["a"]),
        ({"a": {"2": 0.9}, "b": {"1": 0.3, "2": 0.95}, "truth": {"2": 1.0}}, ["b"]),  # b's mean over its own is lower
        ({"a": {"2": 0.9}, "b": {"1": 0.3}}, None),
        ({"a": {"1": 0.9}}, None),
    ],
)
def test_the_mark_goes_by_cases_that_all_runs_share(
    scores: dict[str, dict[str, float]], best: list[str] | None
) -> None:
    rows = [
        Row(Picture(run, Path("x.png"), Case(case, "x")), {"oracle relation": value})
        for run, cases in scores.items()
        for case, value in cases.items()
    ]
    found = winner(rows, list(scores), "oracle relation")
    assert (found and found["runs"]) == best


# --- predicates ----------------------------------------------------------------------------------------------------

GOLDEN = yaml.safe_load((Path(__file__).parent / "test_eval_predicates.yaml").read_text())


def test_the_golden_table_is_whole() -> None:
    assert len(GOLDEN) == len({entry["prompt"] for entry in GOLDEN}) == 60


@pytest.mark.slow
@pytest.mark.parametrize("entry", GOLDEN, ids=lambda entry: entry["prompt"])
def test_predicates(entry: dict[str, object]) -> None:
    if importlib.util.find_spec("spacy") is None:
        pytest.skip("spaCy is not installed")
    found, source = predicates.predicate(str(entry["prompt"]), entry["names"])  # type: ignore[arg-type]
    assert found == entry["predicate"]
    assert source == ("none" if not found else "lexicon" if entry.get("lexicon") else "spacy")


def test_an_explicit_predicate_wins() -> None:
    assert predicates.predicate("A cat is riding a dog.", ("cat", "dog"), "chases") == ("chases", "explicit")


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_model(name: str) -> None:
        raise OSError(f"[E050] Can't find model '{name}'.")

    without_model = SimpleNamespace(load=no_model)
    for spacy, said in ((None, "spaCy"), (without_model, f"spaCy's model {predicates.MODEL}")):
        monkeypatch.setitem(sys.modules, "spacy", spacy)
        predicates._loaded.cache_clear()
        assert predicates.parser() is None
        assert predicates.lacking() == said
    predicates._loaded.cache_clear()


def test_without_spacy_the_lexicon_goes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predicates, "parser", lambda: None)
    assert predicates.predicate("A cat is riding a dog.") == ("is riding", "lexicon")
    assert predicates.predicate("A cat is knitting a scarf.") == ("", "none")
