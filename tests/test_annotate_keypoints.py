"""Keypoints of animals: the authors' checkpoints by their published names, and the way back to the picture."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from published_parameters import published_shapes, random_weights

from rbctl.errors import InputError
from rbctl.plugins.annotate.backends import vitpose_checkpoint
from rbctl.plugins.annotate.backends.vitpose import Keypoints, from_coco
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
    weights = torch.load(path)["state_dict"]
    read = vitpose_checkpoint.hub_names(vitpose_checkpoint.one_expert(weights, 3, path))
    assert len(read) == len(model.state_dict())  # and read() refuses a model with a gap
    head = weights["associate_keypoint_heads.2.final_layer.weight"]  # of COCO, AIC, MPII, AP-10K the fourth
    assert torch.equal(model.head.conv.weight, head)


@pytest.mark.parametrize("expert", [0, 3])
def test_an_expert_of_vitpose_is_what_transformers_makes_of_it(vitpose: Path, expert: int) -> None:
    """transformers has the experts, but COCO's head alone; with AP-10K's in its place it must say the same."""
    from transformers import VitPoseBackboneConfig, VitPoseConfig, VitPoseForPoseEstimation

    weights = torch.load(vitpose)["state_dict"]
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
    weights = torch.load(vitpose)["state_dict"]
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
    weights = torch.load(vitpose)["state_dict"]
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
