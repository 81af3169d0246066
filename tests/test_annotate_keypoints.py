"""Keypoints of animals: the authors' checkpoints by their published names, and the way back to the picture."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from published_parameters import published_shapes, random_weights, small_xpose
from safetensors.torch import load_file
from test_annotate_backends import rectangles, seen_boxes

from rbctl.errors import InputError
from rbctl.plugins.annotate.backends import vitpose_checkpoint, xpose
from rbctl.plugins.annotate.backends.vitpose import Keypoints, from_coco
from rbctl.plugins.annotate.backends.xpose_network import Poses, XPose
from rbctl.plugins.annotate.comparison import OTHER_SIDE
from rbctl.plugins.annotate.config import AnnotateConfig
from rbctl.triplets.keypoints import KEYPOINTS

CPU = torch.device("cpu")


def config(**values: object) -> AnnotateConfig:
    return AnnotateConfig(folder=Path("x"), **values)


def animals(size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Two animals in a picture: (2, 4) boxes, and (2, 17, 2) keypoints spread over them, all relative."""
    boxes = np.array([[0.02, 0.1, 0.45, 0.8], [0.5, 0.0, 1.0, 0.95]])
    inside = np.random.default_rng(size[0]).uniform(0.1, 0.9, (2, len(KEYPOINTS), 2))
    return boxes, boxes[:, None, :2] + inside * (boxes[:, None, 2:] - boxes[:, None, :2])


def mirrored(boxes: np.ndarray, keypoints: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Boxes and keypoints of the mirrored picture, where left and right have changed places."""
    other = keypoints[:, OTHER_SIDE] * (-1, 1) + (1, 0)
    return np.stack((1 - boxes[:, 2], boxes[:, 1], 1 - boxes[:, 0], boxes[:, 3]), axis=1), other


@pytest.fixture(scope="module")
def vitpose(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ViTPose++-S under its published names with random weights, two of its twelve blocks."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("models") / "vitpose++_small.pth"
    torch.save({"meta": {"epoch": 210}, "state_dict": random_weights(of_two_blocks("vitpose-plus-small"))}, path)
    return path


def of_two_blocks(name: str) -> dict[str, tuple[int, ...]]:
    shapes = published_shapes(name)
    return {
        parameter: shape
        for parameter, shape in shapes.items()
        if not parameter.startswith("backbone.blocks.") or int(parameter.split(".")[2]) < 2
    }


@pytest.mark.slow
def test_every_published_parameter_of_vitpose_has_its_place(tmp_path: Path) -> None:
    path = tmp_path / "whole.pth"
    torch.save({"state_dict": random_weights(published_shapes("vitpose-plus-small"))}, path)
    model = vitpose_checkpoint.read(path, expert=None, default=3)
    weights = torch.load(path, weights_only=True)["state_dict"]
    read = vitpose_checkpoint.hub_names(vitpose_checkpoint.one_expert(weights, 3, path))
    assert len(read) == len(model.state_dict())  # and read() refuses a model with a gap
    head = weights["associate_keypoint_heads.2.final_layer.weight"]  # of COCO, AIC, MPII, AP-10K the fourth
    assert torch.equal(model.head.conv.weight, head)


@pytest.mark.parametrize("expert", [0, 3])
def test_an_expert_of_vitpose_is_what_transformers_makes_of_it(vitpose: Path, expert: int) -> None:
    """transformers has the experts, but COCO's head alone; with AP-10K's in its place it must say the same."""
    from transformers import VitPoseBackboneConfig, VitPoseConfig, VitPoseForPoseEstimation

    weights = torch.load(vitpose, weights_only=True)["state_dict"]
    head = "keypoint_head." if expert == 0 else "associate_keypoint_heads.2."
    all_experts = {name: tensor for name, tensor in weights.items() if "keypoint_head" not in name}
    all_experts |= {
        name.replace(head, "keypoint_head."): tensor for name, tensor in weights.items() if name.startswith(head)
    }
    body = VitPoseBackboneConfig(
        hidden_size=384,
        num_hidden_layers=2,
        num_attention_heads=12,
        num_experts=6,
        part_features=192,
        layer_norm_eps=1e-6,
        out_indices=[-1],
    )
    whole = VitPoseForPoseEstimation(VitPoseConfig(backbone_config=body, num_labels=17, use_simple_decoder=False))
    whole.load_state_dict(vitpose_checkpoint.hub_names(all_experts))
    pixels = torch.randn(1, 3, 256, 192)
    with torch.no_grad():
        expected = whole.eval()(pixels, dataset_index=torch.tensor([expert])).heatmaps
        heatmaps = vitpose_checkpoint.read(vitpose, expert, 3).eval()(pixels).heatmaps
    assert expected.std() > 0.1
    assert torch.allclose(heatmaps, expected, atol=1e-5)


def test_a_file_of_one_expert_reads_the_same(vitpose: Path, tmp_path: Path) -> None:
    """The authors' model_split.py joins an expert to what all share, and leaves the experts in the file."""
    weights = torch.load(vitpose, weights_only=True)["state_dict"]
    split = {name: tensor for name, tensor in weights.items() if not name.startswith("associate_keypoint_heads.")}
    split |= {
        name.replace("associate_keypoint_heads.2.", "keypoint_head."): tensor
        for name, tensor in weights.items()
        if name.startswith("associate_keypoint_heads.2.")
    }
    for name in [name for name in weights if ".fc2." in name]:
        split[name] = torch.cat((weights[name], weights[name.replace("fc2", "experts.3")]))
    path = tmp_path / "ap10k.pth"
    torch.save({"state_dict": split}, path)
    first, second = (vitpose_checkpoint.read(file, None, 3).state_dict() for file in (vitpose, path))
    assert all(torch.equal(first[name], second[name]) for name in first)
    with pytest.raises(InputError, match="no experts to choose from"):
        vitpose_checkpoint.read(path, 3, 3)


@pytest.mark.slow
def test_order_and_expert_of_a_file_of_vitpose(vitpose: Path) -> None:
    image, boxes = [Image.effect_noise((128, 96), 80).convert("RGB")], [animals((128, 96))[0]]
    animal = Keypoints(vitpose, config(), CPU)(image, boxes)[0]
    assert animal.shape == (2, 17, 3)
    assert np.array_equal(animal, Keypoints(vitpose, config(vitpose_expert=3), CPU)(image, boxes)[0])
    person = Keypoints(vitpose, config(vitpose_order="coco"), CPU)(image, boxes)[0]
    assert np.array_equal(person, Keypoints(vitpose, config(vitpose_expert=0), CPU)(image, boxes)[0])
    in_cocos_order = Keypoints(vitpose, config(vitpose_expert=0, vitpose_order="ap10k"), CPU)(image, boxes)[0]
    assert np.array_equal(person, from_coco(in_cocos_order))
    with pytest.raises(InputError, match="draws 133 keypoints"):
        Keypoints(vitpose, config(vitpose_expert=5), CPU)
    with pytest.raises(InputError, match="no such expert"):
        Keypoints(vitpose, config(vitpose_expert=6), CPU)


def test_another_file_is_no_vitpose(vitpose: Path, tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    torch.save({"state_dict": {"layer1.0.conv1.weight": torch.ones(3)}}, path)
    with pytest.raises(InputError, match=r"no checkpoint of ViTPose \(it has no backbone.pos_embed\)"):
        Keypoints(path, config(), CPU)
    weights = torch.load(vitpose, weights_only=True)["state_dict"]
    del weights["backbone.blocks.1.attn.proj.bias"]
    torch.save({"state_dict": weights}, path)
    with pytest.raises(InputError, match=r"other.pth: has not all the weights of its kind \(1 missing"):
        Keypoints(path, config(), CPU)
    path.write_bytes(vitpose.read_bytes()[:5000])
    with pytest.raises(InputError, match="not a readable PyTorch file"):
        Keypoints(path, config(), CPU)


@pytest.mark.parametrize("size", [(128, 96), (96, 128), (300, 90), (640, 853)])
@pytest.mark.parametrize("flipped", [False, True])
def test_heat_maps_of_vitpose_come_back_exactly(
    vitpose: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], flipped: bool
) -> None:
    """A network that draws every keypoint where it is: the boxes' widening, padding and resizing are undone."""
    from transformers import VitPoseForPoseEstimation

    boxes, keypoints = mirrored(*animals(size)) if flipped else animals(size)

    def forward(self, pixel_values, dataset_index=None):
        corner, extent = boxes[:, None, :2] * size, (boxes[:, None, 2:] - boxes[:, None, :2]) * size
        high = np.maximum(extent[..., 1], extent[..., 0] * 4 / 3) * 1.25  # three to four, and a quarter more
        window = np.stack((high * 3 / 4, high), axis=-1)
        relative = (keypoints * size - (corner + extent / 2) + window / 2) / window
        x, y = torch.from_numpy(relative * (47, 63)).float().unbind(-1)  # the first and the last cell are its ends
        rows, columns = torch.arange(64.0)[:, None], torch.arange(48.0)
        distance = (rows - y[..., None, None]) ** 2 + (columns - x[..., None, None]) ** 2
        return SimpleNamespace(heatmaps=0.7 * torch.exp(-distance / (2 * 2**2)))

    monkeypatch.setattr(VitPoseForPoseEstimation, "forward", forward)
    (found,) = Keypoints(vitpose, config(), CPU)([Image.new("RGB", size)], [boxes])
    assert np.abs(found[..., :2] - keypoints).max() < 1e-3
    assert found[..., 2] == pytest.approx(0.7, abs=0.05)


def tokens(texts: tuple[str, ...]) -> torch.Tensor:
    import open_clip

    return open_clip.tokenize([f"a photo of {text}" for text in texts])


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An X-Pose under its published names with random weights, and fewer layers and queries."""
    path = tmp_path_factory.mktemp("models") / "unipose.pth"
    torch.save({"model": small_xpose()}, path)
    return path


@pytest.mark.slow
def test_every_published_parameter_of_xpose_has_its_place() -> None:
    published = published_shapes("xpose-swint")
    with torch.device("meta"):
        weights = {name: torch.empty(shape) for name, shape in published.items()}
        expected = {name: tensor.shape for name, tensor in XPose(**xpose.sizes_of(weights)).state_dict().items()}
        read = {name: tensor.shape for name, tensor in xpose.our_names(weights).items()}
    assert read == expected
    same_name = [name for name in read if not name.startswith("backbone")]
    assert all(published[name] == read[name] for name in same_name)
    assert len(same_name) > 500


@pytest.mark.slow
def test_xpose_says_what_its_authors_code_says(small: Path) -> None:
    """tests/goldens/xpose holds what UniPose (see parameters/xpose-swint.txt) answered with the same random weights."""
    expected = load_file(Path(__file__).parent / "goldens" / "xpose" / "poses.safetensors")
    torch.manual_seed(1)
    pixels = torch.randn(3, 235, 262)
    with torch.no_grad():
        poses = xpose.read(small)(pixels, tokens(("cat", "bear")), tokens(KEYPOINTS))
    for name, tensor in expected.items():
        assert tensor.std() > 0.1
        assert torch.allclose(getattr(poses, name), tensor, atol=1e-4), name


@pytest.mark.slow
def test_two_boxes_get_two_animals_of_xpose(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xpose, "_SHORT_SIDE", 240)
    backend = xpose.Keypoints(small, config(xpose_prompt="Cat, bear"), CPU)
    image, boxes = Image.effect_noise((128, 96), 80).convert("RGB"), animals((128, 96))[0]
    (keypoints,) = backend([image], [boxes])
    assert keypoints.shape == (2, 17, 3)
    assert ((keypoints >= 0) & (keypoints <= 1)).all()
    assert not np.array_equal(keypoints[0], keypoints[1])
    with pytest.raises(InputError, match="--xpose-prompt: names no animal"):
        xpose.Keypoints(small, config(xpose_prompt=" , "), CPU)


def test_another_file_is_no_xpose(tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    torch.save({"model": {"layer1.0.conv1.weight": torch.ones(3)}}, path)
    with pytest.raises(InputError, match=r"no checkpoint of X-Pose \(it has no transformer.level_embed\)"):
        xpose.read(path)
    weights = {"transformer.level_embed": torch.ones(4, 256), "clip_model.text_projection": torch.ones(512, 512)}
    torch.save({"model": weights}, path)
    with pytest.raises(InputError, match=r"other\.pth: cannot be loaded as X-Pose"):
        xpose.read(path)


@pytest.mark.parametrize("size", [(128, 96), (96, 128), (300, 90), (1600, 700), (61, 173)])
@pytest.mark.parametrize("flipped", [False, True])
def test_poses_of_xpose_come_back(monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], flipped: bool) -> None:
    """A network that sees two coloured animals in the pixels; their keypoints lie where it saw them."""
    inside = np.random.default_rng(0).uniform(0, 1, (2, len(KEYPOINTS), 2))
    image, corners = rectangles(size)
    boxes = corners / (*size, *size)
    if flipped:
        image, boxes = ImageOps.mirror(image), mirrored(boxes, inside)[0]

    def see(self, pixels, names, keypoints):
        assert (len(names), len(keypoints)) == (2, len(KEYPOINTS))
        assert pixels.shape[1:] == resized
        brightness = pixels * torch.tensor([0.229, 0.224, 0.225])[:, None, None] + 0.45
        seen = seen_boxes((brightness > 0.5) * 9.0)[[1, 0]]  # blue first
        corners, extents = seen[:, None, :2] - seen[:, None, 2:] / 2, seen[:, None, 2:]
        places = corners + torch.from_numpy(inside[[1, 0]]).float() * extents
        doubtful = torch.cat((seen[:1] + 0.01, torch.tensor([[0.5, 0.5, 1.0, 1.0]])))
        scores = torch.tensor([[0.7, 0.1], [0.1, 0.9], [0.2, 0.1], [0.3, 0.1]])
        return Poses(scores, torch.cat((seen, doubtful)), torch.cat((places, torch.zeros(2, 17, 2))))

    scale = min(800 / min(size), 1333 / max(size))
    resized = tuple(pytest.approx(side * scale, abs=2) for side in reversed(size))
    monkeypatch.setattr(xpose, "read", lambda path: SimpleNamespace(to=lambda device: partial(see, None)))
    backend = xpose.Keypoints(Path("unipose.pth"), config(xpose_prompt="cat,bear"), CPU)
    (keypoints,) = backend([image], [boxes])
    expected = boxes[:, None, :2] + inside * (boxes[:, None, 2:] - boxes[:, None, :2])
    assert (np.abs(keypoints[..., :2] - expected) * size * scale).max() <= 1  # a pixel of what it saw
    assert keypoints[:, :, 2] == pytest.approx(np.array([[0.9], [0.7]]).repeat(17, axis=1))


def test_a_box_where_xpose_sees_nothing_has_no_confidence() -> None:
    poses = Poses(torch.tensor([[0.9]]), torch.tensor([[0.2, 0.2, 0.2, 0.2]]), torch.full((1, 17, 2), 0.2))
    keypoints = xpose.of_boxes(poses, np.array([[0.6, 0.6, 0.9, 0.9], [0.1, 0.1, 0.3, 0.3]]))
    assert (keypoints[0, :, 2] == 0).all()
    assert keypoints[1] == pytest.approx(np.array([[0.2, 0.2, 0.9]]).repeat(17, axis=0))
