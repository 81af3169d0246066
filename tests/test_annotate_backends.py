"""The models of ``rbctl annotate``: tiny ones of random weights, and networks replaced by ones that see what is there.

A replaced network looks for coloured shapes in the pixels that the real processor hands it and answers in the
network's own frame. So what comes back is right only if resizing, padding, cropping and their way back all are.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image, ImageDraw, ImageOps

from rbctl.cli import main
from rbctl.errors import InputError
from rbctl.plugins.annotate.backends.vitpose import COCO, from_coco
from rbctl.plugins.annotate.comparison import OTHER_SIDE, match, pose_change
from rbctl.plugins.annotate.config import AnnotateConfig
from rbctl.plugins.annotate.reports import Gate
from rbctl.plugins.annotate.steps import Detections, select
from rbctl.triplets import load
from rbctl.triplets.check import check
from rbctl.triplets.keypoints import KEYPOINTS
from rbctl.triplets.masks import box_of
from tests.tiny_models import tiny_llava, tiny_owlv2

CPU = torch.device("cpu")
SIZES = [(128, 96), (96, 128), (200, 60), (64, 64), (61, 173)]
SENTENCE = "A blue bear is riding a red cat"
WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] . a red cat blue bear"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny models of random weights in the hub's layout."""
    import transformers as hf

    root = tmp_path_factory.mktemp("models")
    small = {"num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    dino, sam, sam2, pose, llava = (
        root / name for name in ("grounding-dino", "sam", "sam2", "vitpose", "plain-vitpose")
    )
    dino.mkdir()
    (dino / "vocab.txt").write_text("\n".join(WORDS.split()) + "\n")
    backbone = hf.SwinConfig(
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=2,
        image_size=32,
        out_features=["stage2", "stage3", "stage4"],
    )
    text = hf.BertConfig(vocab_size=len(WORDS.split()), hidden_size=32, intermediate_size=32, **small)
    config = hf.GroundingDinoConfig(
        backbone_config=backbone,
        text_config=text,
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_queries=12,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        max_text_len=16,
    )
    hf.GroundingDinoForObjectDetection(config).save_pretrained(dino)
    images = hf.GroundingDinoImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    hf.GroundingDinoProcessor(images, hf.BertTokenizer(str(dino / "vocab.txt"))).save_pretrained(dino)

    grid = {"image_size": 64, "patch_size": 16}
    widths = {"hidden_size": 16, "mlp_dim": 16, "output_channels": 16, "num_pos_feats": 8}
    vision = hf.SamVisionConfig(window_size=2, global_attn_indexes=[0], **widths, **grid, **small)
    prompt = hf.SamPromptEncoderConfig(hidden_size=16, mask_input_channels=4, **grid)
    decoder = hf.SamMaskDecoderConfig(hidden_size=16, mlp_dim=16, iou_head_hidden_dim=16, **small)
    parts = {"vision_config": vision, "prompt_encoder_config": prompt, "mask_decoder_config": decoder}
    hf.SamModel(hf.SamConfig(**{name: part.to_dict() for name, part in parts.items()})).save_pretrained(sam)
    square = {"height": 64, "width": 64}
    hf.SamProcessor(hf.SamImageProcessor(size={"longest_edge": 64}, pad_size=square)).save_pretrained(sam)

    body = hf.Sam2HieraDetConfig(
        hidden_size=8,
        image_size=[64, 64],
        blocks_per_stage=[1, 1, 2, 1],
        embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1, 1, 2, 2],
        window_size_per_stage=[4, 4, 2, 2],
        global_attention_blocks=[3],
    )
    vision = hf.Sam2VisionConfig(
        backbone_config=body,
        backbone_channel_list=[64, 32, 16, 8],
        backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
        fpn_hidden_size=32,
    )
    prompt = hf.Sam2PromptEncoderConfig(hidden_size=32, mask_input_channels=4, **grid)
    decoder = hf.Sam2MaskDecoderConfig(hidden_size=32, mlp_dim=16, iou_head_hidden_dim=16, **small)
    parts = {"vision_config": vision, "prompt_encoder_config": prompt, "mask_decoder_config": decoder}
    hf.Sam2Model(hf.Sam2Config(**{name: part.to_dict() for name, part in parts.items()})).save_pretrained(sam2)
    hf.Sam2Processor(hf.Sam2ImageProcessor(size=square, mask_size={"height": 16, "width": 16})).save_pretrained(sam2)

    for folder, experts in ((pose, 6), (llava, 1)):
        body = hf.VitPoseBackboneConfig(
            image_size=[64, 48],
            patch_size=[16, 16],
            hidden_size=16,
            intermediate_size=16,
            num_experts=experts,
            part_features=4,
            out_indices=[-1],
            **small,
        )
        hf.VitPoseForPoseEstimation(hf.VitPoseConfig(backbone_config=body, num_labels=17)).save_pretrained(folder)
        hf.VitPoseImageProcessor(size={"height": 64, "width": 48}).save_pretrained(folder)

    tiny_owlv2(root / "owlv2")
    return root


def config(**values: object) -> AnnotateConfig:
    return AnnotateConfig(folder=Path("x"), **values)


def rectangles(size: tuple[int, int]) -> tuple[Image.Image, np.ndarray]:
    """A picture with a red and a blue rectangle; their boxes in pixels."""
    width, height = size
    boxes = np.array(
        [
            [width * 0.1, height * 0.2, width * 0.4, height * 0.7],
            [width * 0.55, height * 0.4, width * 0.95, height * 0.95],
        ]
    ).round()
    image = Image.new("RGB", size, (0, 255, 0))
    pen = ImageDraw.Draw(image)
    for box, colour in zip(boxes, ((255, 0, 0), (0, 0, 255)), strict=True):
        pen.rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=colour)
    return image, boxes


def seen_boxes(pixels: torch.Tensor) -> torch.Tensor:
    """Where red and blue lie in (3, H, W), as centre and size relative to it."""
    found = []
    for channel in (0, 2):
        covered = pixels[channel] > pixels[1] + 2
        rows, columns = covered.any(1).nonzero(), covered.any(0).nonzero()
        x0, y0, x1, y1 = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
        found.append(torch.stack(((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0)).float())
    height, width = pixels.shape[1:]
    return torch.stack(found) / torch.tensor([width, height, width, height])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("flipped", [False, True])
def test_grounding_dino_gives_boxes_back(models: Path, monkeypatch: pytest.MonkeyPatch, size, flipped) -> None:
    from transformers import GroundingDinoForObjectDetection

    from rbctl.plugins.annotate.backends.detectors import GroundingDino

    def forward(self, pixel_values, pixel_mask, **_):
        boxes, logits = torch.full((len(pixel_values), 12, 4), 0.5), torch.full((len(pixel_values), 12, 16), -torch.inf)
        for number, (pixels, mask) in enumerate(zip(pixel_values, pixel_mask, strict=True)):
            high, wide = int(mask[:, 0].sum()), int(mask[0].sum())
            boxes[number, [3, 7]] = seen_boxes(pixels[:, :high, :wide])
            logits[number, [3, 7], [1, 2]] = torch.tensor([2.0, 1.0])
            if len(pixel_values) == 1:  # the second phrase begins behind the first one's full stop
                logits[number, 7, 5] = 1.5
        return SimpleNamespace(logits=logits, pred_boxes=boxes)

    monkeypatch.setattr(GroundingDinoForObjectDetection, "forward", forward)
    image, true = rectangles(size)
    if flipped:
        image = ImageOps.mirror(image)
        true[:, [0, 2]] = size[0] - true[:, [2, 0]]
    backend = GroundingDino(models / "grounding-dino", config(), CPU)
    (named,) = backend([image], [("red cat", "blue bear")])
    assert named.names is not None
    assert named.names.tolist() == [0, 1]
    for found in backend([image, image], [("red cat", "blue bear"), ("red cat",)]):
        assert found.names is not None
        assert found.names.tolist() == [0, 0]
        assert found.scores == pytest.approx(torch.tensor([2.0, 1.0]).sigmoid().numpy())
        assert np.abs(found.boxes * (*size, *size) - true).max() <= max(size) / 64 + 0.51


@pytest.mark.parametrize("size", SIZES)
def test_owlv2_gives_boxes_back_from_its_padded_square(models: Path, monkeypatch: pytest.MonkeyPatch, size) -> None:
    from transformers import Owlv2ForObjectDetection

    from rbctl.plugins.annotate.backends.detectors import Owlv2

    def forward(self, pixel_values, **_):
        boxes, logits = torch.full((1, 16, 4), 0.5), torch.full((1, 16, 2), -9.0)
        boxes[0, [2, 5]] = seen_boxes(pixel_values[0])
        logits[0, [2, 5], [0, 1]] = torch.tensor([1.0, 2.0])
        return SimpleNamespace(logits=logits, pred_boxes=boxes)

    monkeypatch.setattr(Owlv2ForObjectDetection, "forward", forward)
    image, true = rectangles(size)
    (found,) = Owlv2(models / "owlv2", config(), CPU)([image], [("red cat", "blue bear")])
    assert np.abs(found.boxes * (*size, *size) - true).max() <= max(size) / 64 + 0.51
    assert found.scores == pytest.approx([0.7311, 0.8808], abs=1e-3)
    assert found.names is not None
    assert found.names.tolist() == [0, 1]


@pytest.mark.parametrize(("name", "folder"), [("GroundingDino", "grounding-dino"), ("Owlv2", "owlv2")])
def test_the_real_detectors_run(models: Path, name: str, folder: str) -> None:
    from rbctl.plugins.annotate.backends import detectors

    backend = getattr(detectors, name)(models / folder, config(box_threshold=0.0), CPU)
    images = [rectangles((128, 96))[0]] * 2
    found = backend(images, [("red cat", "blue bear"), ("red cat",)])
    assert len(found) == 2
    for one in found:
        assert len(one.boxes) == len(one.scores) > 0
        assert np.isfinite(one.boxes).all()
        assert ((one.boxes >= 0) & (one.boxes <= 1)).all()
    alone = backend(images[:1], [("red cat", "blue bear")])[0]
    assert np.abs(alone.boxes - found[0].boxes).max() < 1e-4  # the batch changes nothing


def boxes_as_masks(best: int) -> Callable[..., SimpleNamespace]:
    """A forward of SAM that masks each box in cells of 4 x 4 pixels, in the proposal ``best`` of three."""

    def forward(self, pixel_values, input_boxes, multimask_output):
        assert multimask_output
        assert pixel_values.shape == (1, 3, 64, 64)
        masks = torch.full((1, input_boxes.shape[1], 3, 16, 16), -5.0)
        for k, (x0, y0, x1, y1) in enumerate((input_boxes[0] / 4).round().long().tolist()):
            masks[0, k, best, y0:y1, x0:x1] = 5.0
        scores = torch.where(torch.arange(3) == best, 0.9, 0.25).expand(1, input_boxes.shape[1], 3)
        return SimpleNamespace(pred_masks=masks, iou_scores=scores)

    return forward


@pytest.mark.parametrize("size", [(128, 96), (96, 128), (256, 64), (64, 64)])
def test_sam_gives_masks_back(models: Path, monkeypatch: pytest.MonkeyPatch, size) -> None:
    """Masks of 16 x 16 cells with padding become masks of the picture's pixels, exactly where cells are whole ones."""
    from transformers import SamModel

    from rbctl.plugins.annotate.backends.sam import Masks

    monkeypatch.setattr(SamModel, "forward", boxes_as_masks(best=1))
    cell = max(size) // 16
    boxes = np.array([[1, 1, 3, 3], [2, 0, 4, 4]]) * cell  # a cell alone would be too thin for straight edges
    relative = boxes / (*size, *size)
    (masks,) = Masks(models / "sam", config(), CPU)([Image.new("RGB", size)], [relative])
    assert masks.shape == (2, size[1], size[0])
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        true = np.zeros_like(mask)
        true[y0:y1, x0:x1] = True
        assert box_of(mask) == tuple(np.array([x0, y0, x1, y1]) / (*size, *size))
        assert (mask != true).sum() <= 0.5 * cell**2  # its four corners are round


@pytest.mark.parametrize("size", [(128, 96), (96, 128), (256, 64), (64, 64)])
def test_sam2_gives_masks_back(models: Path, monkeypatch: pytest.MonkeyPatch, size) -> None:
    """SAM 2 sees the picture stretched to a square; its 16 x 16 cells become masks of the picture's pixels."""
    from transformers import Sam2Model

    from rbctl.plugins.annotate.backends.sam import Masks2

    monkeypatch.setattr(Sam2Model, "forward", boxes_as_masks(best=2))
    boxes = np.array([[2, 4, 8, 12], [6, 0, 14, 10]]) / 16
    (masks,) = Masks2(models / "sam2", config(), CPU)([Image.new("RGB", size)], [boxes])
    assert masks.shape == (2, size[1], size[0])
    for mask, box in zip(masks, boxes, strict=True):
        x0, y0, x1, y1 = (box * (*size, *size)).round().astype(int)
        true = np.zeros_like(mask)
        true[y0:y1, x0:x1] = True
        assert box_of(mask) == pytest.approx(tuple(box))
        assert (mask != true).sum() <= 0.5 * size[0] * size[1] / 256  # its four corners are round


@pytest.mark.parametrize("name", ["sam", "sam2"])
def test_the_real_sam_runs(models: Path, name: str) -> None:
    from rbctl.plugins.annotate.backends import sam

    backend = {"sam": sam.Masks, "sam2": sam.Masks2}[name]
    images = [Image.new("RGB", (128, 96)), Image.new("RGB", (128, 96), (250, 0, 0))]
    boxes = [np.array([[0.1, 0.1, 0.5, 0.6]]), np.array([[0, 0, 1, 1], [0.2, 0.2, 0.4, 0.4]])]
    found = backend(models / name, config(), CPU)(images, boxes)
    assert [mask.shape for mask in found] == [(1, 96, 128), (2, 96, 128)]
    assert all(mask.dtype == bool for mask in found)


def dots(size: tuple[int, int], places: np.ndarray) -> Image.Image:
    """A dark picture with a soft bright dot at each place (K, 2), in pixels from corner to corner."""
    y, x = np.mgrid[: size[1], : size[0]] + 0.5
    light = sum(np.exp(-((x - px) ** 2 + (y - py) ** 2) / 18) for px, py in places)
    return Image.fromarray((255 * light).clip(0, 255).astype(np.uint8)).convert("RGB")


@pytest.mark.parametrize("size", [(128, 96), (96, 128), (300, 90)])
@pytest.mark.parametrize("flipped", [False, True])
def test_vitpose_gives_keypoints_back(models: Path, monkeypatch: pytest.MonkeyPatch, size, flipped) -> None:
    """Boxes of other shapes than its input around one dot; the heat map's peak is where the dot is."""
    from transformers import VitPoseForPoseEstimation

    from rbctl.plugins.annotate.backends.vitpose import Keypoints

    asked = []

    def forward(self, pixel_values, dataset_index=None):
        asked.append(dataset_index)
        light = pixel_values.mean(1)
        light = (light - light.amin((1, 2), keepdim=True)).clamp(min=0) ** 4
        rows, columns = torch.arange(64.0), torch.arange(48.0)
        total = light.sum((1, 2))
        y, x = (light.sum(2) @ rows) / total, (light.sum(1) @ columns) / total
        # First and last pixel of the input lie on first and last cell of the map.
        y, x = (y * 15 / 63)[:, None, None], (x * 11 / 47)[:, None, None]
        peak = torch.exp(-((torch.arange(16.0)[:, None] - y) ** 2 + (torch.arange(12.0) - x) ** 2) / 8)
        return SimpleNamespace(heatmaps=peak[:, None].repeat(1, 17, 1, 1) * 0.8)

    monkeypatch.setattr(VitPoseForPoseEstimation, "forward", forward)
    places = np.array([[0.22, 0.4], [0.75, 0.55]]) * size
    boxes = np.array([[0.02, 0.1, 0.45, 0.8], [0.55, 0.05, 0.95, 0.9]])
    images = [dots(size, place[None]) for place in places]
    if flipped:
        images, places = [ImageOps.mirror(image) for image in images], np.array([size[0], 0]) + places * (-1, 1)
        boxes[:, [0, 2]] = 1 - boxes[:, [2, 0]]
    around = np.array([0.0, 0.0, 1.0, 1.0])
    backend = Keypoints(models / "vitpose", config(), CPU)
    for found, place in zip(backend(images, [np.stack((box, around)) for box in boxes]), places, strict=True):
        assert found.shape == (2, 17, 3)
        assert np.abs(found[:, :, :2] * size - place).max() < 0.012 * max(size)
        assert found[..., 2] == pytest.approx(0.8, abs=0.05)
    assert asked[0].tolist() == [3, 3]


def test_vitpose_experts(models: Path) -> None:
    from rbctl.plugins.annotate.backends.vitpose import Keypoints

    image, boxes = [rectangles((128, 96))[0]], [np.array([[0.1, 0.2, 0.5, 0.9], [0.4, 0, 1, 1]])]
    by_expert = [Keypoints(models / "vitpose", config(vitpose_expert=k), CPU)(image, boxes)[0] for k in (0, 3)]
    assert by_expert[0].shape == (2, 17, 3)
    assert not np.array_equal(by_expert[0], by_expert[1])
    people = Keypoints(models / "vitpose", config(vitpose_order="coco"), CPU)(image, boxes)[0]
    assert np.array_equal(people, from_coco(by_expert[0]))
    with pytest.raises(InputError, match="experts 0 to 5"):
        Keypoints(models / "vitpose", config(vitpose_expert=6), CPU)
    with pytest.raises(InputError, match=r"no ViTPose\+\+"):
        Keypoints(models / "plain-vitpose", config(vitpose_expert=3), CPU)
    assert Keypoints(models / "plain-vitpose", config(), CPU)(image, boxes)[0].shape == (2, 17, 3)


def test_vitpose_takes_the_keypoints_that_its_configuration_names(models: Path, tmp_path: Path) -> None:
    from rbctl.plugins.annotate.backends.vitpose import Keypoints

    folder = tmp_path / "hub"
    shutil.copytree(models / "vitpose", folder)
    told = json.loads((folder / "config.json").read_text())
    names = ["Nose", "L_Eye", "R_Eye", *(f"part {k}" for k in range(14))]
    (folder / "config.json").write_text(json.dumps({**told, "id2label": dict(enumerate(names))}))
    found = Keypoints(folder, config(), CPU)
    assert (found.order, found.expert) == ("coco", 0)
    with pytest.raises(InputError, match="names coco's keypoints"):
        Keypoints(folder, config(vitpose_order="ap10k"), CPU)
    (folder / "config.json").write_text(json.dumps({**told, "id2label": dict(enumerate([*names[:-1], "Neck"]))}))
    assert Keypoints(folder, config(), CPU).order == "ap10k"


def test_peoples_keypoints_in_our_order() -> None:
    person = np.arange(17 * 3, dtype=float).reshape(17, 3)
    ours = dict(zip(KEYPOINTS, from_coco(person), strict=True))
    theirs = dict(zip(COCO, person, strict=True))
    assert (ours["left front paw"] == theirs["left wrist"]).all()
    assert (ours["right knee"] == theirs["right knee"]).all()
    assert (ours["neck"][:2] == (theirs["left shoulder"] + theirs["right shoulder"])[:2] / 2).all()
    assert ours["root of tail"][2] == min(theirs["left hip"][2], theirs["right hip"][2])


def test_a_damaged_model_is_one_line(models: Path, tmp_path: Path) -> None:

    from rbctl.plugins.annotate.backends.vitpose import Keypoints

    broken = tmp_path / "pickled"
    shutil.copytree(models / "vitpose", broken)
    weights = broken / "model.safetensors"
    weights.rename(broken / "pytorch_model.bin")  # never read
    with pytest.raises(InputError, match="cannot be loaded as VitPoseForPoseEstimation") as told:
        Keypoints(broken, config(), CPU)
    assert "\n" not in str(told.value)
    weights.write_bytes((models / "plain-vitpose" / "model.safetensors").read_bytes())
    with pytest.raises(InputError, match=r"weights do not fit config.json"):
        Keypoints(broken, config(), CPU)


@pytest.mark.slow
def test_photographs_by_models_of_transformers(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole road from pictures alone: boxes and masks of coloured rectangles, other steps by random weights."""
    from transformers import GroundingDinoForObjectDetection, SamModel

    def detect(self, pixel_values, input_ids, pixel_mask, **_):
        boxes, logits = torch.full((len(pixel_values), 12, 4), 0.5), torch.full((len(pixel_values), 12, 16), -torch.inf)
        for number, pixels in enumerate(pixel_values):
            alone = int((input_ids[number] == 5).sum()) == 1  # one full stop: one name
            seen = seen_boxes(pixels) if not alone else torch.tensor([[0.5, 0.5, 0.8, 0.8]])
            boxes[number, : len(seen)], logits[number, : len(seen), 1] = seen, 2.0
        return SimpleNamespace(logits=logits, pred_boxes=boxes)

    def segment(self, pixel_values, input_boxes, multimask_output):
        masks = torch.full((1, input_boxes.shape[1], 3, 16, 16), -5.0)
        for k, (x0, y0, x1, y1) in enumerate((input_boxes[0] / 4).round().long().tolist()):
            masks[0, k, :, y0:y1, x0:x1] = 5.0
        return SimpleNamespace(pred_masks=masks, iou_scores=torch.ones(1, input_boxes.shape[1], 3))

    monkeypatch.setattr(GroundingDinoForObjectDetection, "forward", detect)
    monkeypatch.setattr(SamModel, "forward", segment)
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(4):
        rectangles((128, 96))[0].save(folder / f"{number}.png")
        Image.new("RGB", (96, 96), (0, 0, 255)).save(folder / f"{number}-blue_bear.png")
        Image.new("RGB", (96, 96), (255, 0, 0)).save(folder / f"{number}-red_cat.png")
    arguments = ["annotate", folder, "--relation", "ride", "--bundle", "mini", "--min-similarity", "-1"]
    for name in ("grounding-dino", "sam", "vitpose"):
        arguments += [f"--{name}", models / name]
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output
    errors = [problem for problem in check(folder) if problem.level == "error"]
    assert all("keypoints" in problem.what for problem in errors)  # this ViTPose has learned nothing
    for triplet in load(folder):
        assert [thing.name for thing in triplet.objects] == ["blue bear", "red cat"]
        assert triplet.prompt == "A red cat is riding a blue bear."  # it is the higher one in the picture
        blue, red = triplet.objects
        assert red.box[2] < blue.box[0] + 0.1  # the names' order is the other way round


def test_two_boxes_of_one_are_one_and_surplus_counts() -> None:
    boxes = np.array([[0, 0, 0.5, 1], [0.01, 0, 0.5, 1], [0.5, 0, 1, 1], [0.6, 0.2, 0.9, 0.4]])
    detections = Detections(boxes, np.array([0.8, 0.9, 0.7, 0.6]))
    assert select(detections, 4, 0.7)[0].scores.tolist() == [0.9, 0.7, 0.6]
    two, surplus = select(detections, 2, 0.7)
    assert (two.scores.tolist(), surplus) == ([0.9, 0.7], 1)
    assert select(Detections(boxes[1:], np.array([0.9, 0.8, 0.3])), 2, 0.7)[1] == 0


def test_matching_and_its_margin() -> None:
    individuals, margin = match(np.array([[0.2, 0.9, 0.3], [0.8, 0.85, 0.1], [0.3, 0.2, 0.6]]))
    assert individuals.tolist() == [1, 0, 2]
    assert margin == pytest.approx((0.9 + 0.8 + 0.6 - (0.2 + 0.85 + 0.6)) / 3)
    assert match(np.array([[0.4]]))[1] == 1
    assert match(np.array([[0.5, 0.1]]))[1] == pytest.approx(0.4)


def test_a_pose_is_the_same_wherever_it_is() -> None:
    rng = np.random.default_rng(0)
    pose = np.column_stack((rng.uniform(0, 100, (17, 2)), np.full(17, 2)))
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])
    moved = np.column_stack((pose[:, :2] @ turn * 3 + (40, -7), pose[:, 2]))
    mirrored = pose * (-1, 1, 1)
    assert pose_change(pose, moved) == pytest.approx(0, abs=1e-5)
    assert pose_change(pose, mirrored) == pytest.approx(0, abs=1e-5)
    assert pose_change(pose, mirrored[OTHER_SIDE]) == pytest.approx(0, abs=1e-5)
    bent = pose.copy()
    bent[:9, :2] += 40
    assert pose_change(pose, bent) > 0.15
    hidden = pose * (1, 1, 0.5)
    assert pose_change(pose, hidden) is None
    assert not Gate.at_least(None, 0.1).passed


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llava(tmp_path_factory.mktemp("models") / "llava", *SENTENCE.split(), ".")


def test_llava_says_a_sentence(llava: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import LlavaForConditionalGeneration

    from rbctl.plugins.annotate.backends.captions import Captions

    backend = Captions(llava, config(), CPU)
    image, names = rectangles((128, 96))[0], ("blue bear", "red cat")
    said = backend([image, image], [names, names])
    assert said[0] == said[1]
    assert isinstance(said[0], str)

    def generate(self, input_ids, pixel_values, **_):
        assert (input_ids == 4).sum() == 4  # the picture's patches
        assert pixel_values.shape == (1, 3, 32, 32)
        words = [backend.speaker.processor.tokenizer.convert_tokens_to_ids(w) for w in SENTENCE.split()]
        return torch.cat((input_ids, torch.tensor([words])), dim=1)

    monkeypatch.setattr(LlavaForConditionalGeneration, "generate", generate)
    assert backend([image], [names]) == [SENTENCE]  # the question is not in it


def test_a_model_is_asked_in_its_own_form_of_a_dialogue(llava: Path, tmp_path: Path) -> None:
    from rbctl.plugins.annotate.backends.captions import Captions

    folder = tmp_path / "with-template"
    shutil.copytree(llava, folder)
    (folder / "chat_template.jinja").write_text(
        "{% for message in messages %}{% for part in message.content %}"
        "{{ '<image>' if part.type == 'image' else part.text }} {% endfor %}{% endfor %}a red"
    )
    backend = Captions(folder, config(), CPU)
    image = rectangles((128, 96))[0]
    asked = {}
    backend.speaker.model.generate = lambda **inputs: asked.update(inputs) or inputs["input_ids"]
    assert backend([image], [("blue bear", "red cat")]) == [""]
    words = backend.speaker.processor.tokenizer.decode(asked["input_ids"][0])
    assert words.count("<image>") == 4  # the picture's patches
    assert words.endswith("a red")
    assert "USER" not in words


def test_another_image_text_to_text_model_says_a_sentence(tmp_path: Path) -> None:
    """Not LLaVA, but one whose form of question is its own: PaliGemma, tiny and random."""
    import transformers as hf
    from tokenizers import Tokenizer, models, pre_tokenizers

    from rbctl.plugins.annotate.backends.captions import Captions

    torch.manual_seed(0)
    words = ["<unk>", "<bos>", "<eos>", "<pad>", "<image>", *SENTENCE.split(), "."]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"unk_token": "<unk>", "bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
    fast = hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, additional_special_tokens=["<image>"], **special)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**sizes, "num_key_value_heads": 1, "head_dim": 8, "model_type": "gemma", "vocab_size": 2048}
    vision = {**sizes, "image_size": 32, "patch_size": 16, "model_type": "siglip_vision_model"}
    configuration = hf.PaliGemmaConfig(vision_config=vision, text_config=text, image_token_index=4, projection_dim=16)
    hf.PaliGemmaForConditionalGeneration(configuration).save_pretrained(tmp_path)
    images = hf.SiglipImageProcessor(size={"height": 32, "width": 32})
    images.image_seq_length = 4
    hf.PaliGemmaProcessor(images, fast).save_pretrained(tmp_path)
    backend = Captions(tmp_path, config(), CPU)
    image, names = rectangles((128, 96))[0], ("blue bear", "red cat")
    first, second = backend([image, image], [names, names])
    assert first == second
