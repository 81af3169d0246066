"""Encoders, oracle and DINO of pretraining: what is true of a picture, losses, files, and a few steps of each."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from rbctl.bundle.load import load_local_encoder
from rbctl.draws import generator
from rbctl.files import read_json, read_safetensors, write_json, write_safetensors
from rbctl.local_encoder import local_tokens
from rbctl.menagerie import COATS, PATTERNS, SPECIES, Individual, oracle_training
from rbctl.menagerie.oracle import POINTS, RawReading, by_side, load_oracle
from rbctl.plugins.pretrain import clip_part as clip
from rbctl.plugins.pretrain import clip_texts, renders, windows
from rbctl.plugins.pretrain import dino_part as dino
from rbctl.plugins.pretrain import oracle_part as oracle
from rbctl.plugins.pretrain.architecture import CLIP_VISION, CLIPSELF
from rbctl.plugins.pretrain.config import PretrainConfig
from rbctl.plugins.pretrain.loop import train
from rbctl.plugins.pretrain.weights import open_clip_names
from rbctl.relations import load_relation
from rbctl.resampler import Resampler  # noqa: F401  (torch and torchvision are loaded once, before the clock)

CPU = torch.device("cpu")
RED, BLUE = (list(COATS).index(name) for name in ("red", "blue"))
CAT, FOX = SPECIES.index("cat"), SPECIES.index("fox")
PLAIN, STRIPES = PATTERNS.index("plain"), PATTERNS.index("stripes")
RED_CAT, STRIPED_FOX = (CAT, RED, RED, PLAIN), (FOX, RED, BLUE, STRIPES)
SYMMETRIC = np.array([False, True])  # relation 0 has roles, relation 1 has not


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Arrays as the renderer writes them, of coloured squares: two individuals side by side, of many looks."""
    folder = tmp_path_factory.mktemp("pretrain")
    rng = np.random.default_rng(0)
    colours = np.array(list(COATS.values()))
    count, names = 16, ["ride", "hug"]

    def paint(looks: np.ndarray, lefts: list[float]) -> tuple[Any, ...]:
        pictures = np.full((len(looks), 3, 128, 128), 200, np.uint8)
        masks = np.zeros((len(looks), looks.shape[1], 32, 32), np.uint8)
        boxes = np.zeros((len(looks), looks.shape[1], 4), np.float32)
        keypoints = np.zeros((len(looks), looks.shape[1], 17, 3), np.float32)
        for row, some in enumerate(looks):
            for k, one in enumerate(some):
                left = lefts[k] if row % 2 == 0 else lefts[-1 - k]
                x0, x1 = round(left * 128), round(left * 128) + 48
                pictures[row, :, 40:88, x0:x1] = (colours[one[1]] * 255)[:, None, None]
                pictures[row, :, 40 + 4 * one[0] : 44 + 4 * one[0], x0:x1] = 255  # a line for the species
                masks[row, k, 10:22, x0 // 4 : x1 // 4] = 255
                boxes[row, k] = (x0 / 128, 40 / 128, x1 / 128, 88 / 128)
                keypoints[row, k] = (left + 0.19, 0.5, 2)
                keypoints[row, k, :, 0] += 0.01 * np.arange(17)
        return pictures, masks, boxes, keypoints

    def draw(shape: tuple[int, ...]) -> np.ndarray:
        looks = np.stack([rng.integers(n, size=shape) for n in clip_texts.SIZES], axis=-1)
        looks[..., 2] = np.where(looks[..., 3] == PLAIN, looks[..., 1], looks[..., 2])
        return looks.astype(np.int16)

    about = {"seed": 0, "easy": names[:1], "held_out": names[1:], "individuals": 8, "portraits": 2, "shard": 16}
    for kind in ("all", "faults", "held_out", "portraits"):
        pairs = 1 if kind == "portraits" else 2
        looks = draw((count, pairs))
        if kind == "portraits":
            looks[1::2] = looks[::2]  # two portraits of each
        pictures, masks, boxes, keypoints = paint(looks, [0.3] if pairs == 1 else [0.05, 0.55])
        pictures[:, :, 0] = rng.integers(0, 256, (count, 1, 128))  # every picture is another one
        arrays = {"pictures": pictures, "mask32": masks, "boxes": boxes, "keypoints": keypoints, "individuals": looks}
        if kind == "portraits":
            arrays = {name: array if name == "pictures" else array[:, 0] for name, array in arrays.items()}
        else:  # a scene has room for three
            for name in ("mask32", "boxes", "keypoints", "individuals"):
                lacking = np.full_like(arrays[name][:, :1], renders.NOBODY if name == "individuals" else 0)
                arrays[name] = np.concatenate((arrays[name], lacking), axis=1)
            relations = [oracle_training.UNKNOWN] if kind == "faults" else [0, 1]
            arrays["relation"] = np.resize(relations, count).astype(np.int16)
            arrays["background"] = np.zeros(count, np.int16)
            arrays["person"] = np.append(rng.integers(8, size=(count, 2)), [[renders.NOBODY]] * count, 1)
        if kind == "held_out":
            faces = paint(looks.reshape(-1, 1, 4), [0.3])[0].reshape(count, 2, 3, 128, 128)
            arrays["portraits"] = np.append(faces, np.zeros_like(faces[:, :1]), 1)
        place = folder / "renders" / kind / "00000"
        renders.write_shard(place, arrays, renders.made_from(about, place))
    write_json(folder / "renders" / "about.json", about)
    return folder


@pytest.fixture
def config(work: Path) -> PretrainConfig:
    return PretrainConfig(
        work=work, clip_batch_size=16, oracle_batch_size=8, dino_batch_size=8, clip_steps=1000, clip_learning_rate=2e-3
    )


def descend(part: Any, steps: int, learning_rate: float) -> list[float]:
    """Losses of a few steps over the very same draws."""
    modules = part.modules().values()
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    optimizer, found = torch.optim.Adam(parameters, learning_rate), []
    for step in range(steps):
        loss, told = part.loss(step, generator("same"))
        assert all(np.isfinite(float(value)) for value in told.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(float(loss.detach()))
    return found


# --- texts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "text", "told"),
    [
        (0, "fox", (FOX, -1, -1, -1)),
        (1, "red fox", (FOX, RED, -1, -1)),
        (2, "striped fox", (FOX, -1, -1, STRIPES)),
        (3, "striped red fox", (FOX, RED, -1, STRIPES)),
        (4, "red fox with blue stripes", STRIPED_FOX),
        (5, "striped red fox with blue stripes", STRIPED_FOX),
    ],
)
def test_a_description_claims_what_it_says(words: int, text: str, told: tuple[int, ...]) -> None:
    assert clip_texts.describe(STRIPED_FOX, words) == (text, told)


def test_a_plain_coat_has_no_second_colour() -> None:
    assert clip_texts.describe(RED_CAT, 4) == ("plain red cat", RED_CAT)
    individual = Individual(species="cat", coat="red", second="red", pattern="plain")
    assert individual.description == "a plain red cat"


@pytest.mark.parametrize("look", [RED_CAT, STRIPED_FOX])
def test_a_wrong_text_is_wrong_in_what_it_says(look: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    looks = np.array([[look, look]])
    alone = np.array([clip_texts.UNTOLD])
    said = [clip_texts.wrong_individual_text(look, rng) for _ in range(60)]
    true = clip_texts.true_of(said, looks, alone, alone, SYMMETRIC)[0]
    # A plain coat has no second colour to be wrong about: that text is right, and no negative.
    assert true.mean() == (0 if look is STRIPED_FOX else pytest.approx(0.25, abs=0.15))
    assert {k for s in said for k in range(4) if s.looks[0][k] != look[k]} == {0, 1, 2, 3}


def test_a_text_is_true_of_all_it_fits() -> None:
    portrait_cat, portrait_fox = [RED_CAT, RED_CAT], [STRIPED_FOX, STRIPED_FOX]
    looks = np.array([portrait_cat, portrait_fox, [RED_CAT, STRIPED_FOX], [STRIPED_FOX, RED_CAT]])
    relation, background = np.array([-1, -1, 0, 1]), np.array([-1, -1, 2, 3])
    names = {words: clip_texts.describe(STRIPED_FOX, words)[1] for words in range(6)}
    cat, fox = clip_texts.describe(RED_CAT, 0)[1], names[0]
    texts = {
        clip_texts.Text("a fox", (names[0],)): [False, True, True, True],
        clip_texts.Text("a red one", ((-1, RED, -1, -1),)): [True, True, True, True],
        clip_texts.Text("a red cat", (clip_texts.describe(RED_CAT, 1)[1],)): [True, False, True, True],
        clip_texts.Text("a striped cat", ((CAT, -1, -1, STRIPES),)): [False, False, False, False],
        clip_texts.Text("a cat rides a fox", (cat, fox), 0): [False, False, True, False],
        clip_texts.Text("a fox rides a cat", (fox, cat), 0): [False, False, False, False],
        clip_texts.Text("a cat hugs a fox", (cat, fox), 1): [False, False, False, True],
        clip_texts.Text("a fox hugs a cat", (fox, cat), 1): [False, False, False, True],
        clip_texts.Text("a fox hugs a cat in place 3", (fox, cat), 1, 3): [False, False, False, True],
        clip_texts.Text("a fox hugs a cat in place 2", (fox, cat), 1, 2): [False, False, False, False],
    }
    found = clip_texts.true_of(list(texts), looks, relation, background, SYMMETRIC)
    for column, (said, wanted) in enumerate(texts.items()):
        assert found[:, column].tolist() == wanted, said.words


def test_captions_are_the_relations_own_words() -> None:
    rng, ride = np.random.default_rng(0), load_relation("ride")
    said = [clip_texts.scene_text(ride, 0, (RED_CAT, STRIPED_FOX), 1, rng) for _ in range(40)]
    assert {s.looks[0] for s in said} >= {(CAT, -1, -1, -1), (CAT, RED, -1, -1)}
    assert {s.background for s in said} == {clip_texts.UNTOLD, 1}
    assert all(("at night" in s.words) == (s.background == 1) for s in said)
    assert any(s.words.startswith("A cat is riding a fox") for s in said)
    assert all(s.relation == 0 for s in said)
    wrong = [
        clip_texts.wrong_scene_text([ride, load_relation("hug")], 0, (RED_CAT, STRIPED_FOX), 1, rng) for _ in range(40)
    ]
    assert {s.relation for s in wrong} == {0, 1}
    assert all(s.looks[0][0] == (FOX if s.relation == 0 else CAT) for s in wrong)


# --- loss --------------------------------------------------------------------------------------------------------


def test_texts_that_are_true_are_no_negatives() -> None:
    torch.manual_seed(0)
    images = nn.functional.normalize(torch.randn(3, 8), dim=-1)
    texts = torch.cat((images, images[:1]))  # text 3 is as near to image 0 as its own
    own, none = torch.arange(3), torch.zeros(3, 4, dtype=torch.bool)
    true = none.clone()
    true[0, 3] = True
    scale = torch.tensor(30.0)
    punished, first = clip.contrastive_loss(images, texts, own, none, scale)
    spared, _ = clip.contrastive_loss(images, texts, own, true, scale)
    assert first.item() == 1.0
    assert punished - spared > 0.1
    assert spared < 0.01
    # An image's own text stays its positive though it is marked as true, and a shared text is one column.
    shared, _ = clip.contrastive_loss(images, images, own, torch.eye(3, dtype=torch.bool), scale)
    assert shared < 0.01
    twins = torch.cat((images, images[:1]))
    one_text = torch.zeros(4, 3, dtype=torch.bool)
    one_text[0, 0] = one_text[3, 0] = True
    loss, _ = clip.contrastive_loss(twins, images, torch.tensor([0, 1, 2, 0]), one_text, scale)
    assert loss < 0.01
    unmarked, _ = clip.contrastive_loss(twins, images, torch.tensor([0, 1, 2, 0]), one_text & False, scale)
    assert unmarked > loss + 0.1


def test_windows_are_averaged_and_mirrored() -> None:
    picture = torch.zeros(1, 3, 128, 128, dtype=torch.uint8)
    picture[..., ::2] = 200  # columns that an average over pairs makes even
    picture[..., 64:] = 250
    frame = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    mean, std = (torch.tensor(v)[:, None] for v in (windows.CLIP_MEAN, windows.CLIP_STD))
    plain = windows.cut(picture, frame, 64, CPU)[0, :, 5] * std + mean
    assert torch.allclose(plain[:, 1:31], torch.tensor(100 / 255), atol=1e-5)
    assert torch.allclose(plain[:, 33:], torch.tensor(250 / 255), atol=1e-5)
    turned = windows.cut(picture, frame, 64, CPU, np.array([True]))[0, :, 5] * std + mean
    assert torch.allclose(turned, plain.flip(1))
    right = windows.cut(picture, [[0.5, 0.0, 1.0, 0.5]], 64, CPU)[0, :, 5] * std + mean
    assert torch.allclose(right[:, 1:], torch.tensor(250 / 255), atol=1e-5)


def test_a_square_stays_inside_the_picture() -> None:
    x0, y0, x1, y1 = windows.square((0.8, 0.1, 1.0, 0.5), 0.1)
    assert (x1, x1 - x0) == pytest.approx((1.0, 0.44))
    assert y1 - y0 == pytest.approx(x1 - x0)
    assert y0 >= 0
    assert windows.square((0.0, 0.0, 1.0, 0.6), 0.3) == (0.0, 0.0, 1.0, 1.0)


# --- encoders ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("act", ["gelu", "quick_gelu"])
def test_open_clip_reads_the_same_weights_the_same_way(act: str, tmp_path: Path) -> None:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(0)
    vision = CLIPVisionModelWithProjection(CLIPVisionConfig(**{**CLIP_VISION, "hidden_act": act})).eval()
    with torch.no_grad():
        for p in vision.parameters():
            p.add_(0.1 * torch.randn_like(p))  # biases and norms too
    write_json(tmp_path / "open_clip_config.json", {**CLIPSELF, "quick_gelu": act == "quick_gelu"})
    weights = {name: tensor.contiguous() for name, tensor in open_clip_names(vision.state_dict()).items()}
    write_safetensors(tmp_path / "model.safetensors", weights, {"format": "pt"})
    encoder = load_local_encoder(tmp_path).eval()
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        ours, theirs = vision(pixels).image_embeds, encoder.visual(pixels)
        assert torch.allclose(ours, theirs, atol=1e-4)
        assert torch.allclose(clip.thinned_embedding(vision, pixels, None), ours, atol=1e-5)
        assert local_tokens(encoder, torch.randn(2, 3, 128, 128)).shape == (2, 16, 128)
        ours = vision.vision_model(torch.randn(1, 3, 128, 128), interpolate_pos_encoding=True).last_hidden_state
    assert ours.shape == (1, 257, 128)


def test_patches_that_are_left_out_are_not_seen(config: PretrainConfig) -> None:
    torch.manual_seed(0)
    part = clip.ClipPart(config, CPU)
    pixels = torch.randn(1, 3, 64, 64)
    kept = torch.arange(1, 64)[None]  # all but the first patch
    changed = pixels.clone()
    changed[..., :8, :8] += 3
    with torch.no_grad():
        before, after = (clip.thinned_embedding(part.vision, x, kept) for x in (pixels, changed))
        assert torch.equal(before, after)
        seen = [clip.thinned_embedding(part.vision, x, torch.arange(64)[None]) for x in (pixels, changed)]
    assert not torch.allclose(*seen, atol=1e-4)


@pytest.mark.slow
def test_encoders_learn_and_are_written_as_a_bundle_has_them(config: PretrainConfig, tmp_path: Path) -> None:
    torch.manual_seed(0)
    part = clip.ClipPart(config, CPU)
    losses = descend(part, 8, 5e-4)
    assert losses[-1] < losses[0] - 0.3
    texts = ["a fox", "A red cat is riding a fox with blue stripes at night.", "a cat"]
    part.text.eval()
    with torch.no_grad():
        together, alone = part.embed_texts(texts), torch.cat([part.embed_texts([text]) for text in texts])
    assert torch.allclose(together, alone, atol=1e-5)  # neither order nor filling changes a text
    told = part.preview(tmp_path, 8)
    assert set(told) == {"coat", "pattern", "species", "relation", "direction"}
    assert all(0 <= share <= 1 for share in told.values())
    part.finish()
    folder = config.work / "bundle"
    assert {"text_encoder", "text_encoder_2", "clip_vision", "clipself", "tokenizer"} <= {
        p.name for p in folder.iterdir()
    }
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer, CLIPVisionModelWithProjection

    tokens = CLIPTokenizer.from_pretrained(folder / "tokenizer")(
        texts, padding="max_length", truncation=True, return_tensors="pt"
    )["input_ids"]
    assert tokens.shape == (3, 32)
    first, second = (
        kind.from_pretrained(folder / name, dtype=torch.float32).eval()
        for kind, name in ((CLIPTextModel, "text_encoder"), (CLIPTextModelWithProjection, "text_encoder_2"))
    )
    with torch.no_grad():
        embeds = nn.functional.normalize(second(tokens).text_embeds, dim=-1)
        assert torch.allclose(embeds, together, atol=5e-3)  # the files hold halves
        assert torch.equal(first(tokens).last_hidden_state, second(tokens).last_hidden_state)
    vision = CLIPVisionModelWithProjection.from_pretrained(folder / "clip_vision", dtype=torch.float32).eval()
    visual = load_local_encoder(folder / "clipself").float().eval().visual
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(vision(pixels).image_embeds, visual(pixels), atol=1e-4)
    weights = read_safetensors(folder / "clip_vision" / "model.safetensors")[0]
    assert all(tensor.dtype == torch.float16 for tensor in weights.values())
    assert read_json(folder / "clip_vision" / "config.json")["architectures"] == ["CLIPVisionModelWithProjection"]


# --- oracle ------------------------------------------------------------------------------------------------------


def test_mirroring_keeps_roles_and_turns_places() -> None:
    pixels, masks = torch.rand(2, 3, 8, 8), torch.rand(2, 2, 4, 4)
    keypoints = torch.rand(2, 2, len(POINTS), 3)
    which = torch.tensor([True, False])
    truth = oracle_training.Truth(torch.zeros(2), masks, keypoints, torch.zeros(2, 2, 4))
    p, turned = oracle_training.mirrored(pixels, truth, which)
    m, k = turned.masks, turned.keypoints
    assert torch.equal(p[0], pixels[0].flip(-1))
    assert torch.equal(m[0], masks[0].flip(-1))
    assert torch.allclose(k[0, ..., 0], 1 - keypoints[0, ..., 0])
    assert torch.equal(k[0, ..., 1:], keypoints[0, ..., 1:])
    assert all(torch.equal(a[1], b[1]) for a, b in ((p, pixels), (m, masks), (k, keypoints)))


def test_roles_of_symmetric_relations_run_from_left_to_right(config: PretrainConfig) -> None:
    part = oracle.OraclePart(config, CPU)
    for seed in range(4):
        pixels, truth = part.batch(generator(seed))
        middle = truth.keypoints[..., 0].mean(-1)
        free = truth.relation != 0  # "hug", or none
        assert set(truth.relation[free].tolist()) <= {1, oracle_training.UNKNOWN}
        assert (middle[free, 0] < middle[free, 1]).all()
        for row in range(len(pixels) * 3 // 8):  # what is as it was drawn
            for role in range(2):
                mask = truth.masks[row, role] > 0.5
                shown = pixels[row].reshape(3, 32, 4, 32, 4)[:, :, 1, :, 1][:, mask].median(1).values
                coat = torch.tensor(list(COATS.values())[int(truth.looks[row, role, 1])]) * 2 - 1
                assert torch.allclose(shown, coat, atol=0.02)  # mask, look and picture went together
    rides = [part.batch(generator(seed))[1] for seed in range(6)]
    left = torch.cat([(t.keypoints[..., 0].mean(-1).diff(dim=1)[:, 0] > 0)[t.relation == 0] for t in rides])
    assert left.any()
    assert not left.all()  # a rider may be on either side


def test_keypoints_are_shared_out_so_that_the_mean_is_the_point() -> None:
    truth = torch.tensor([[0.30, 0.55, 2.0], [0.9, 0.1, 1.0], [0.5, 0.5, 0.0]])
    heat = torch.zeros(3, 64, requires_grad=True)
    optimizer = torch.optim.Adam([heat], 0.2)
    for _ in range(150):
        optimizer.zero_grad()
        oracle_training.keypoint_loss(heat, truth).backward()
        optimizer.step()
    line = (torch.arange(8) + 0.5) / 8
    share = heat.detach().softmax(-1).unflatten(-1, (8, 8))
    x, y = (share.sum(1) * line).sum(-1), (share.sum(2) * line).sum(-1)
    assert torch.allclose(torch.stack((x, y), dim=1)[:2], truth[:2, :2], atol=0.02)
    assert torch.equal(heat[2], torch.zeros(64))  # not in the frame: nothing was asked of it


def test_spoilt_pictures_are_like_the_others_and_not_the_same() -> None:
    pixels = torch.rand(16, 3, 32, 32) * 2 - 1
    spoilt = oracle_training.spoil(pixels, generator(0))
    assert spoilt.shape == pixels.shape
    assert spoilt.abs().max() <= 1
    far = (spoilt - pixels).abs().mean((1, 2, 3))
    assert far.min() > 0.01
    smooth = torch.full((4, 3, 32, 32), 0.2)
    assert (oracle_training.spoil(smooth, generator(1)) - 0.2).abs().mean() < 0.2
    assert torch.equal(oracle_training.spoil(pixels, generator(0)), spoilt)


def test_flattened_pictures_have_no_outlines_and_as_many_bodies() -> None:
    chance = generator(0)
    masks = torch.zeros(1, 2, 32, 32)
    masks[0, 0, 8:24, 4:12], masks[0, 1, 8:24, 20:28] = 1, 1
    pixels = 0.2 * torch.randn(1, 3, 128, 128, generator=chance)
    pixels[0, 0, 32:96, 16:48] += 0.5
    pixels[0, 2, 32:96, 80:112] += 0.5
    flat = oracle_training.flattened(pixels, masks, chance)
    first, second, paper = flat[0, :, 40:88, 24:40], flat[0, :, 40:88, 88:104], flat[0, :, :20]
    for area in (first, second, paper):
        assert area.std((1, 2)).max() <= 0.11  # at least half of the pattern is gone
    assert first.mean((1, 2)).argmax() == 0
    assert second.mean((1, 2)).argmax() == 2


def test_an_individual_that_hardly_shows_counts_little() -> None:
    torch.manual_seed(0)
    looks = {name: torch.randn(1, 2, count) for name, count in zip(oracle.ATTRIBUTES, clip_texts.SIZES, strict=True)}
    raw = RawReading(
        relation=torch.zeros(1, 2),
        masks=torch.zeros(1, 2, 32, 32),
        looks=looks,
        heat=torch.zeros(1, 2, 17, 1024),
        seen=torch.zeros(1, 2, 17),
    )
    masks = torch.zeros(1, 2, 32, 32)
    masks[0, 0, :16] = 1  # the second individual is hidden

    def look_cost(second: int) -> float:
        chosen = torch.tensor([[[0, 0, 0, 0], [second] * 4]])
        truth = oracle_training.Truth(torch.tensor([0]), masks, torch.zeros(1, 2, 17, 3), chosen)
        return float(oracle_training.oracle_loss(raw, truth)[1]["look"])

    assert look_cost(0) == pytest.approx(look_cost(1))
    masks[0, 1, 16:] = 1
    assert look_cost(0) != pytest.approx(look_cost(1))


@pytest.mark.slow
def test_the_oracle_learns_and_is_written(config: PretrainConfig, tmp_path: Path) -> None:
    torch.manual_seed(0)
    part = oracle.OraclePart(config, CPU)
    assert part.vae is None
    losses = descend(part, 8, 1e-3)
    assert losses[-1] < losses[0] - 0.5
    part.oracle.eval()
    told = part.preview(tmp_path, 8)
    assert {"relation_and_direction", "identity", "keypoint_error", "mask_iou", *oracle.ATTRIBUTES} <= set(told)
    part.finish()
    again = load_oracle(config.work / "bundle" / "oracle")
    assert again.relations == ("ride", "hug")
    assert again.config.symmetric == ("hug",)


def test_measuring_knows_right_from_wrong(config: PretrainConfig) -> None:
    """A reading made of the truth has all right; with the roles of one relation exchanged, its direction is wrong."""
    scenes = renders.scenes(config.work / "renders", "held_out")
    looks = torch.from_numpy(scenes.individuals.all()).long().clamp(min=0)
    relation = torch.from_numpy(scenes.relation.all()).long()
    sure: dict[str, Any] = {
        name: (nn.functional.one_hot(looks[..., k], size).float() + 1e-3).log()
        for k, (name, size) in enumerate(zip(oracle.ATTRIBUTES, clip_texts.SIZES, strict=True))
    }
    reading = oracle.Reading(
        relations=("ride", "hug"),
        symmetric=("hug",),
        relation=(nn.functional.one_hot(relation, 2).float() + 1e-3).log(),
        maps=torch.from_numpy(scenes.mask32.all()).float() / 255,
        keypoints=torch.from_numpy(scenes.keypoints.all()),
        **sure,
    )
    names = ["ride", "hug"]
    told = oracle.measure(reading, scenes, names)
    assert told["identity"] == told["relation_and_direction"] == told["mask_iou"] == told["second"] == 1
    assert told["count"] == told["relation_and_direction_2"] == 1
    assert told["keypoint_error"] == pytest.approx(0)
    changed: Any = {name: getattr(reading, name)[:, [1, 0, 2]] for name in ("maps", "keypoints", *sure)}
    exchanged = dataclasses.replace(reading, **changed)  # the roles
    turned = oracle.measure(exchanged, scenes, names)
    assert (turned["relation"], turned["relation_and_direction"], turned["identity"]) == (1, 0.5, 1)
    blind = dataclasses.replace(reading, **{name: torch.zeros_like(value) for name, value in sure.items()})
    assert oracle.measure(blind, scenes, names)["identity"] < 1


def test_round_trips_go_through_the_vae(config: PretrainConfig) -> None:
    class Halves:
        """Latents are the picture's means over 2 x 2."""

        def encode(self, x: torch.Tensor) -> Any:
            mean = nn.functional.avg_pool2d(x, 2)
            return type("Posterior", (), {"latent_dist": type("Dist", (), {"mean": mean})})

        def decode(self, z: torch.Tensor) -> Any:
            return type("Output", (), {"sample": nn.functional.interpolate(z, scale_factor=2)})

    pixels = torch.rand(4, 3, 8, 8)
    clean = oracle.round_trip(Halves(), pixels, generator(0), most=0.0)
    assert torch.allclose(clean, nn.functional.interpolate(nn.functional.avg_pool2d(pixels, 2), scale_factor=2))
    noisy = oracle.round_trip(Halves(), pixels, generator(0), most=0.5)
    assert 0.001 < (noisy - clean).abs().mean() < 0.3
    part = oracle.OraclePart(config, CPU)
    part.vae = Halves()
    trips = part.batch(generator(3))[0][-3:-1]  # a quarter of 8, before one flat picture
    assert torch.equal(trips[..., ::2, ::2], trips[..., 1::2, 1::2])


def test_facing_is_told_by_the_keypoints_of_the_cache(config: PretrainConfig) -> None:
    """by_side is what turns the cache's order into the oracle's; twice it changes nothing."""
    keypoints = torch.from_numpy(renders.scenes(config.work / "renders", "all").keypoints.all())
    assert torch.equal(by_side(by_side(keypoints)), keypoints)


# --- DINO --------------------------------------------------------------------------------------------------------


def test_no_view_is_compared_with_itself_and_a_centre_is_taken_off() -> None:
    a, b = torch.tensor([[4.0, 0.0]]), torch.tensor([[0.0, 4.0]])
    none = torch.zeros(2)
    crossed = dino.distillation_loss([b, a], [a, b], none)  # each student view agrees with the other teacher view
    straight = dino.distillation_loss([a, b], [a, b], none)
    assert crossed < 0.01 < 10 < straight
    constant = dino.distillation_loss([a, a], [a, a], torch.tensor([4.0, 0.0]))  # all on one prototype: no certainty
    assert constant > 1


def test_two_views_are_of_one_individual(config: PretrainConfig) -> None:
    part = dino.DinoPart(dataclasses.replace(config, dino_batch_size=16), CPU)
    (first, frames), (second, cuts) = part._pictures(np.random.default_rng(0))
    rows = [_row(part.portraits.pictures.all(), one) for one in first]
    people = [row // 2 for row in rows]
    assert (frames == (0, 0, 1, 1)).all()
    scenes, boxes = part.scenes.pictures.all(), part.scenes.boxes.all()
    for at in range(8):  # half of them come out of scenes
        scene = _row(scenes, second[at])
        asked = [windows.square(boxes[scene, role], 0.1) for role in range(2) if part.people[scene, role] == people[at]]
        assert any(np.allclose(cuts[at], box) for box in asked)
    others = [_row(part.portraits.pictures.all(), one) for one in second[8:]]
    assert [row // 2 for row in others] == people[8:]
    assert others[4:] == rows[12:]  # two views of one portrait


def _row(pictures: np.ndarray, one: np.ndarray) -> int:
    return int((pictures == one).all((1, 2, 3)).argmax())


@pytest.mark.slow
def test_a_stopped_dino_goes_on_with_the_teacher_and_centre_it_had(config: PretrainConfig, tmp_path: Path) -> None:
    class Stopped(dino.DinoPart):
        def loss(self, step: int, chance: torch.Generator) -> Any:
            if step == 2:
                raise KeyboardInterrupt
            return super().loss(step, chance)

    def trained(part: type[dino.DinoPart], folder: str) -> dict[str, torch.Tensor]:
        changes = {"dino_steps": 3, "checkpoint_every": 1, "preview_every": 0}
        options = dataclasses.replace(config, work=tmp_path / folder, **changes)
        options.work.mkdir(exist_ok=True)
        if not (options.work / "renders").exists():
            (options.work / "renders").symlink_to(config.work / "renders")
        torch.manual_seed(0)
        built = part(options, CPU)
        train(built, options)
        return {f"{name}.{key}": t for name, m in built.modules().items() for key, t in m.state_dict().items()}

    straight = trained(dino.DinoPart, "straight")
    with pytest.raises(KeyboardInterrupt):
        trained(Stopped, "stopped")
    resumed = trained(dino.DinoPart, "stopped")
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)


@pytest.mark.slow
def test_dino_learns_and_its_teacher_follows(config: PretrainConfig, tmp_path: Path) -> None:
    torch.manual_seed(0)
    part = dino.DinoPart(config, CPU)
    before = {name: p.clone() for name, p in part.teacher.named_parameters()}
    losses = descend(part, 5, 1e-3)
    assert losses[-1] < losses[0]
    name = "head.layers.0.weight"
    student, teacher = dict(part.student.named_parameters())[name], dict(part.teacher.named_parameters())[name]
    moved = (teacher - before[name]).norm()
    assert 0 < moved < (student.detach() - before[name]).norm()
    assert part.student.centre.abs().sum() > 0
    told = part.preview(tmp_path, 5)
    assert {"retrieval_16", "retrieval_all", "margin"} == set(told)
    part.finish()
    from transformers import Dinov2Model

    encoder = Dinov2Model.from_pretrained(config.work / "bundle" / "dino", dtype=torch.float32).eval()
    pixels = torch.randn(2, 3, 64, 64)
    part.student.eval()
    with torch.no_grad():
        assert torch.allclose(encoder(pixels).pooler_output, part.student.encoder(pixels).pooler_output, atol=2e-2)
