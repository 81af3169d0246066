"""The parts of ``rbctl distill``: geometry, orders, the loss and its gradients, towers, launchers, estimates."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from rbctl.bundle.load import load as load_bundle
from rbctl.errors import InputError
from rbctl.files import write_json, write_safetensors
from rbctl.image_prompt import CLIP_MEAN, CLIP_STD
from rbctl.local_encoder import LocalEncoder, pool_regions
from rbctl.plugins.distill import grid, pictures
from rbctl.plugins.distill.batches import cell_count, cut, normalised, numbers
from rbctl.plugins.distill.config import DistillConfig
from rbctl.plugins.distill.engine import build_student, build_teacher
from rbctl.plugins.distill.estimate import Sizes, measure, memory, table
from rbctl.plugins.distill.evaluation import pca_pictures, text_embeddings
from rbctl.plugins.distill.objective import clipself_loss, crop_embeddings, learning_rate
from rbctl.plugins.distill.tower import (
    Student,
    Tower,
    find_tower,
    read_weights,
    trained_names,
    whole_clip,
    write_official,
    write_weights,
)

TINY: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 3, "width": 48, "head_width": 12, "mlp_ratio": 2.0, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1},
}


def picture(seed: int, size: tuple[int, int] = (60, 40)) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    (folder / "more").mkdir()
    for number in range(10):
        picture(number).save(folder / ("more" if number % 2 else ".") / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole CLIP of random weights in open_clip's layout."""
    from open_clip.model import CLIP

    folder = tmp_path_factory.mktemp("clip") / "tiny"
    torch.manual_seed(0)
    write_json(folder / "open_clip_config.json", {"model_cfg": TINY})
    write_safetensors(folder / "model.safetensors", CLIP(**TINY).state_dict(), {})
    return folder


# The official numbers


@pytest.fixture(scope="module")
def loss_golden(request: pytest.FixtureRequest) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    chosen = request.config.getoption("--goldens") or Path(__file__).resolve().parents[2] / "shared" / "goldens"
    folder = chosen / "clipself_loss"
    if not folder.is_dir():
        pytest.skip("the fixture clipself_loss is not beside this checkout")
    return json.loads((folder / "clipself_loss.json").read_text()), load_file(folder / "clipself_loss.safetensors")


def golden_tower(facts: dict[str, Any]) -> Tower:
    config = {"embed_dim": facts["config"]["embed_dim"], "vision_cfg": facts["config"]["vision"]}
    vision = facts["config"]["vision"]
    return Tower("golden", config, None, facts["config"]["teacher_crop_size"], vision["patch_size"], vision["width"])


@pytest.mark.parametrize("parts", [1, 2])
def test_loss_and_gradients_are_the_official_ones(loss_golden: Any, parts: int) -> None:
    """In one piece, and picture by picture, as several processes or micro-steps would."""
    facts, t = loss_golden
    tower = golden_tower(facts)
    networks = {}
    for who in ("student", "teacher"):
        networks[who] = tower.build()
        prefix = f"{who}.visual."
        networks[who].load_state_dict({k.removeprefix(prefix): v for k, v in t.items() if k.startswith(prefix)})
    student = Student(networks["student"], gradient_checkpointing=parts == 2)
    boxes = [row[row[:, 4] > 0.5][:, :4] for row in t["loss.in.boxes"]]
    wanted = crop_embeddings(networks["teacher"], t["loss.in.crops_valid"])
    counts, total = [len(b) for b in boxes], 0.0
    torch.testing.assert_close(
        student(t["loss.in.images"], boxes)[0], t["loss.mid.student_roi_features"], rtol=1e-4, atol=2e-5
    )
    if parts == 1:
        pieces = [(t["loss.in.images"], boxes, wanted)]
    else:
        pieces = [
            (image[None], [own], crops)
            for image, own, crops in zip(t["loss.in.images"], boxes, wanted.split(counts), strict=True)
        ]
    for pixels, own, crops in pieces:
        loss = clipself_loss(student(pixels, own)[0], crops, sum(counts))
        loss.backward()
        total += float(loss.detach())
    tolerance = facts["tolerance"]["loss"]
    assert total == pytest.approx(float(t["loss.out.loss"]), rel=tolerance["rtol"], abs=tolerance["atol"])
    squares, wanted_squares = 0.0, 0.0
    for name, parameter in student.visual.named_parameters():
        official, ours = t[f"loss.grad.visual.{name}"], parameter.grad
        assert ours is not None
        squares, wanted_squares = squares + float(ours.square().sum()), wanted_squares + float(official.square().sum())
        assert (ours - official).norm() <= 1e-3 * official.norm() + 1e-7, name
    assert squares**0.5 == pytest.approx(wanted_squares**0.5, rel=1e-4)


def test_crops_boxes_and_padding_are_the_official_ones(loss_golden: Any) -> None:
    facts, t = loss_golden
    config, first = facts["config"], 0
    assert [list(one) for one in grid.grids(6)] == facts["meta"]["choices_max_split_6"]
    assert len(grid.grids(16)) == facts["meta"]["num_choices_max_split_16"]
    for name, sample in facts["meta"]["samples"].items():
        scale, index = float(name.split(".image")[0].removeprefix("crop_scale")), int(name[-1])
        image = Image.fromarray(t[f"grid.image{index}.in.rgb_uint8_hwc"].numpy())
        cells = grid.cells(sample["grid_rows_M"], sample["grid_cols_N"])
        ours = grid.in_square(cells, *image.size)
        crops = torch.stack(
            [
                grid.fit(grid.crop(image, grid.enlarged(cell, scale)), config["teacher_crop_size"], centred=True)
                for cell in cells
            ]
        )
        if scale == 1:
            rows = t["loss.in.boxes"][index]
            boxes = rows[rows[:, 4] > 0.5][:, :4]
            official = t["loss.in.crops_valid"][first : first + len(boxes)]
            first += len(boxes)
            square = grid.fit(image, config["student_image_size"], centred=False)
            pixels = normalised(square, torch.device("cpu"), torch.float32)
            torch.testing.assert_close(pixels, t["loss.in.images"][index], rtol=0, atol=1e-5)
        else:
            boxes, official = (t[f"grid.{name}.out.{part}"] for part in ("boxes", "crops"))
            boxes = boxes[:, :4]
        distances = torch.cdist(boxes, ours)
        matched = distances.argmin(1)
        assert len(set(matched.tolist())) == len(boxes) == sample["kept"]
        assert distances.min(1).values.max() < 1e-6
        seen = normalised(crops[matched], torch.device("cpu"), torch.float32)
        torch.testing.assert_close(seen, official, rtol=0, atol=1e-5)


def test_the_last_blocks_train(loss_golden: Any) -> None:
    facts, _ = loss_golden
    tower = golden_tower(facts)
    for groups, prefixes in facts["trainable_with_unlocked_groups"].items():
        names = trained_names(tower, int(groups))
        assert {".".join(name.split(".")[:3]) for name in names} == set(prefixes)
    assert trained_names(tower, 0) == set(tower.shapes())
    with pytest.raises(InputError, match="--train-blocks 4: golden has 3"):
        trained_names(tower, 4)


# Samples and divisions


def test_a_batch_is_the_same_however_it_is_divided() -> None:
    config = DistillConfig(batch_size=8, micro_batch_size=2)
    alone = [n for micro in numbers(config, 1, 0, range(3)) for n in micro]
    divided = [list(numbers(config, 2, rank, range(3))) for rank in (0, 1)]
    assert alone == list(range(24))
    assert sorted(n for rank in divided for micro in rank for n in micro) == alone
    assert [sorted(n for rank in divided for micro in rank[2 * s : 2 * s + 2] for n in micro) for s in range(3)] == [
        list(range(8 * s, 8 * s + 8)) for s in range(3)
    ]
    later = [n for micro in numbers(config, 1, 0, range(2, 3)) for n in micro]
    assert later == alone[16:]  # taking a run up again


def test_the_cells_of_a_step_are_known_without_its_pictures() -> None:
    config = DistillConfig(batch_size=4, max_split=5, max_cells=7, image_size=64)
    made = [cut(picture(n, (50, 70)), n, config, 32) for n in range(4, 8)]
    assert sum(len(one.crops) for one in made) == cell_count(config, 1)
    assert max(len(one.boxes[0]) for one in made) <= 7
    assert all(float(one.boxes[0].min()) >= 0 and float(one.boxes[0].max()) <= 1 for one in made)


def test_what_is_random_depends_on_seed_and_number_alone() -> None:
    first = [grid.random_grid(0, n, 6, 20) for n in range(50)]
    assert first == [grid.random_grid(0, n, 6, 20) for n in range(50)]
    assert first != [grid.random_grid(1, n, 6, 20) for n in range(50)]
    sizes = [grid.random_size(0, step, (32, 64), 96) for step in range(50)]
    assert set(sizes) == {32, 64}
    assert grid.random_size(0, 3, (), 96) == 96


def test_learning_rate_warms_up_and_falls() -> None:
    rates = [learning_rate(step, 100, 1.0, 10, "cosine") for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 1e-3
    assert learning_rate(99, 100, 1.0, 10, "constant") == 1.0


# Pictures


def test_every_picture_is_seen_once_an_epoch(photographs: Path) -> None:
    found = pictures.find_pictures(photographs)
    train, held = pictures.split(found, 3, seed=0)
    assert sorted(train + held) == list(range(10))
    order = pictures.FolderOrder(found, train, 0)
    epochs = [[order.at(n).name for n in range(start, start + 7)] for start in (0, 7)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(found.files[i] for i in train)
    assert epochs[0] != epochs[1]
    with pytest.raises(InputError, match="--held-out 10 leaves none"):
        pictures.split(found, 10, seed=0)


def test_an_unreadable_picture_is_told_and_replaced(tmp_path: Path) -> None:
    for number in range(3):
        picture(number).save(tmp_path / f"{number}.png")
    (tmp_path / "1.png").write_bytes(b"no picture")
    order = pictures.FolderOrder(pictures.find_pictures(tmp_path), [0, 1, 2], 0)
    seen = [order.at(n) for n in range(3)]
    assert [one.unreadable[0][0] for one in seen if one.unreadable] == ["1.png"]
    assert {one.name for one in seen} == {"0.png", "2.png"}
    for number in (0, 2):
        (tmp_path / f"{number}.png").write_bytes(b"")
    with pytest.raises(InputError, match="3 pictures in a row cannot be read"):
        order.at(0)


def test_no_pictures_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no pictures in it"):
        pictures.find_pictures(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        pictures.find_pictures(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no such shard"):
        pictures.find_shards(f"{tmp_path}/{{0..1}}.tar")


@pytest.fixture
def coco(photographs: Path, tmp_path: Path) -> Path:
    images = [{"id": n, "file_name": f"{n}.png", "width": 60, "height": 40} for n in range(0, 10, 2)]
    boxes = [
        {"id": 1, "image_id": 0, "category_id": 17, "bbox": [6, 4, 30, 20], "iscrowd": 0, "area": 600},
        {"id": 2, "image_id": 0, "category_id": 3, "bbox": [0, 0, 60, 40], "iscrowd": 1, "area": 2400},
        {"id": 3, "image_id": 2, "category_id": 3, "bbox": [30, 0, 30, 40], "iscrowd": 0, "area": 1200},
    ]
    path = tmp_path / "instances.json"
    categories = [{"id": 3, "name": "dog"}, {"id": 17, "name": "cat"}]
    path.write_text(json.dumps({"images": images, "annotations": boxes, "categories": categories}))
    return path


def test_coco_names_pictures_boxes_and_labels(photographs: Path, coco: Path) -> None:
    found = pictures.find_pictures(photographs, coco)
    assert found.files == tuple(f"{n}.png" for n in range(0, 10, 2))
    assert found.label_names == ("dog", "cat")
    assert found.regions["0.png"].labels == (1,)  # crowds are no objects
    assert found.regions["0.png"].boxes[0] == pytest.approx((0.1, 0.1, 0.6, 0.6))
    assert found.regions["4.png"].boxes == ()


@pytest.mark.parametrize("content", ["[]", "{}", '{"images": [{"id": 1}]}', '{"images": []}', "{"])
def test_a_wrong_coco_json_is_one_line(photographs: Path, coco: Path, content: str) -> None:
    coco.write_text(content)
    with pytest.raises(InputError, match=r"instances\.json"):
        pictures.find_pictures(photographs, coco)


def write_shards(folder: Path, shards: int, each: int, broken: tuple[int, ...] = ()) -> list[str]:
    folder.mkdir(exist_ok=True)
    for shard in range(shards):
        with tarfile.open(folder / f"{shard:03d}.tar", "w") as archive:
            for number in range(shard * each, shard * each + each):
                encoded = io.BytesIO()
                picture(number).save(encoded, format="PNG")
                content = b"broken" if number in broken else encoded.getvalue()
                for name, data in ((f"{number:04d}.png", content), (f"{number:04d}.txt", b"a caption")):
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
    return sorted(str(path) for path in folder.glob("*.tar"))


def test_shards_are_dealt_to_streams(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards", 5, 3)
    assert pictures.find_shards(str(tmp_path / "shards")) == shards
    assert pictures.find_shards(f"{tmp_path}/shards/{{000..004}}.tar") == shards
    order = pictures.shard_order(shards, 0, 8)
    assert order.streams == 4  # the largest divisor of the batch that 5 shards suffice for
    names = [order.at(number).name for number in range(40)]
    again = pictures.shard_order(shards, 0, 8)
    assert [again.at(number).name for number in range(24, 40)] == names[24:]  # taken up again
    odd = pictures.shard_order(shards, 0, 8)
    assert [odd.at(number).name for number in range(1, 40, 2)] == names[1::2]  # one process of two
    first = [name for stream in range(4) for name in names[stream::4][:3]]
    assert len(set(first)) == 12  # no picture twice before its stream has come round


def test_a_broken_sample_of_a_shard_is_replaced_by_the_next(tmp_path: Path) -> None:
    order = pictures.shard_order(write_shards(tmp_path / "shards", 1, 4, broken=(1,)), 0, 1)
    seen = [order.at(number) for number in range(4)]
    assert [Path(one.name).name for one in seen] == ["0000.png", "0002.png", "0002.png", "0003.png"]
    assert len(seen[1].unreadable) == 1


def test_a_broken_shard_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(b"no archive at all" * 100)
    with pytest.raises(InputError, match=r"0\.tar: cannot be read as a WebDataset shard"):
        pictures.shard_order([str(tmp_path / "0.tar")], 0, 1).at(0)


# Towers


def test_a_tower_is_found_by_folder_bundle_and_name(clip: Path) -> None:
    tower = find_tower(DistillConfig(model=str(clip), image_size=64))
    assert (tower.name, tower.crop_size, tower.patch_size) == ("tiny", 32, 8)
    assert read_weights(tower, 0).keys() == tower.shapes().keys()
    assert find_tower(DistillConfig(model="mini", image_size=64)).name == "mini"
    assert find_tower(DistillConfig(model="ViT-B-32", random_weights=True)).patch_size == 32


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"model": "ViT-bigG-41"}, "did you mean 'ViT-bigG-14'"),
        ({"model": "ViT-B-32"}, "name the CLIP to start from with --weights"),
        ({"model": "RN50", "random_weights": True}, "--model RN50: a ViT or EVA with a class token is needed"),
        ({"model": "mini", "image_size": 100}, "--image-size 100: mini needs a multiple of its patches' 8 pixels"),
    ],
)
def test_a_wrong_tower_is_one_line(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        find_tower(DistillConfig(**options))


def test_a_map_is_learnt_only_where_widths_differ(clip: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    def find(model: object, bundle: object) -> Tower:
        return find_tower(DistillConfig(model=str(model), bundle=str(bundle), image_size=64))

    assert find("mini", "mini").adapter is None
    adapter = find(clip, "mini").adapter
    assert adapter is not None
    assert (adapter.bundle.name, adapter.width, adapter.image_size) == ("mini", 128, 128)
    bare = shutil.copytree(tiny_bundle, tmp_path / "bare", ignore=shutil.ignore_patterns("clipself"))
    with pytest.raises(InputError, match=r"--bundle .*: has no local encoder, whose tokens the linear map learns"):
        find("mini", bare)
    with pytest.raises(InputError, match="minni"):
        find(clip, "minni")


def test_the_map_gets_what_a_bundle_reads_and_sends_the_tower_no_gradient(clip: Path) -> None:
    config = DistillConfig(model=str(clip), bundle="mini", image_size=64)
    tower = find_tower(config)
    weights = read_weights(tower, 0)
    student = build_student(tower, weights, trained_names(tower, 0), config, {})
    pixels, boxes = torch.randn(2, 3, 64, 64), [torch.tensor([[0.0, 0.0, 0.5, 1.0]])] * 2
    bundles_own = LocalEncoder(student.visual, student.to_adapter)
    torch.testing.assert_close(student(pixels)[1], bundles_own(pixels))
    _, local = student(pixels, boxes)
    assert local.shape == (2, 128)
    local.sum().backward()
    assert {name for name, p in student.named_parameters() if p.grad is not None} == {"to_adapter.weight"}
    wanted = build_teacher(tower, weights, torch.device("cpu"), "fp32").of_regions(pixels, boxes)
    minis = load_bundle("mini", torch.device("cpu"), torch.float32).image_prompt_encoder.local_encoder
    larger = torch.nn.functional.interpolate(pixels, size=(128, 128), mode="bilinear")
    torch.testing.assert_close(wanted, pool_regions(minis(larger), boxes))


@pytest.mark.parametrize("by", ["model", "weights"])
def test_a_clip_of_otherwise_normalised_pictures_is_one_line(clip: Path, tmp_path: Path, by: str) -> None:
    """As laion's ViT-L-14 is."""
    folder = shutil.copytree(clip, tmp_path / "laion")
    write_json(folder / "open_clip_config.json", {"model_cfg": TINY, "preprocess_cfg": {"mean": [0.5, 0.5, 0.5]}})
    model = {"model": str(folder)} if by == "model" else {"model": str(clip), "weights": folder / "model.safetensors"}
    with pytest.raises(InputError, match=r"laion/open_clip_config\.json: preprocess_cfg: mean: \[0\.5, 0\.5, 0\.5\]"):
        find_tower(DistillConfig(**model, image_size=64))


@pytest.mark.parametrize("shape", [(128, 47), (128,)])
def test_a_map_of_another_tower_is_one_line(clip: Path, tmp_path: Path, shape: tuple[int, ...]) -> None:
    from rbctl.bundle.load import load_local_encoder

    folder = shutil.copytree(clip, tmp_path / "clipself")
    write_safetensors(folder / "adapter_map.safetensors", {"weight": torch.zeros(shape)}, {})
    with pytest.raises(InputError, match=r"adapter_map\.safetensors: holds .* not a weight with 48 columns"):
        load_local_encoder(folder)


def test_weights_of_another_architecture_are_one_line(clip: Path, tmp_path: Path) -> None:
    other = {**TINY, "vision_cfg": {**TINY["vision_cfg"], "layers": 2}}
    write_json(tmp_path / "open_clip_config.json", other)
    tower = find_tower(DistillConfig(model=str(tmp_path), weights=clip / "model.safetensors", image_size=64))
    with pytest.raises(InputError, match=r"does not fit: unexpected transformer\.resblocks\.2"):
        read_weights(tower, 0)


def test_what_is_written_is_read_by_bundles_and_as_the_official_file(clip: Path, tmp_path: Path) -> None:
    from rbctl.bundle.convert import convert_local_encoder
    from rbctl.bundle.load import load_local_encoder

    tower = find_tower(DistillConfig(model=str(clip), image_size=64))
    tensors = read_weights(tower, 0)
    whole = whole_clip(tower, tensors)
    folder = write_weights(tmp_path / "clipself", whole, tower.config, {"rbctl.steps": "3"})
    visual = load_local_encoder(folder).visual
    assert all(torch.equal(tensors[name], value) for name, value in visual.state_dict().items())
    official = tmp_path / "epoch_6.pt"
    write_official(official, whole, "tiny", 6)
    assert torch.load(official, weights_only=True)["epoch"] == 6
    convert_local_encoder(official, tmp_path / "again.safetensors", tower.config)
    again = load_file(tmp_path / "again.safetensors")
    assert all(torch.equal(again[f"visual.{name}"], value) for name, value in tensors.items())
    # ... and is a starting point itself
    started = find_tower(DistillConfig(model=str(clip), weights=official, image_size=64))
    assert all(torch.equal(tensors[name], value) for name, value in read_weights(started, 0).items())


@pytest.mark.parametrize("source", ["whole CLIP", "mini"])
def test_open_clip_loads_the_distilled_encoder(clip: Path, tmp_path: Path, source: str) -> None:
    """Both forms, strictly; and with mini's text encoder it says of a text what the bundle says."""
    import open_clip

    tower = find_tower(DistillConfig(model=str(clip) if source == "whole CLIP" else "mini", image_size=64))
    tensors = read_weights(tower, 0)
    folder = write_weights(tmp_path / "clipself", whole_clip(tower, tensors), tower.config, {})
    write_official(tmp_path / "epoch_6.pt", whole_clip(tower, tensors), tower.name, 6)
    name = f"rbctl-{tower.name}"
    write_json(tmp_path / "configs" / f"{name}.json", tower.config)
    open_clip.add_model_config(tmp_path / "configs")
    loaded = [open_clip.create_model_and_transforms(f"local-dir:{folder}")]
    for weights in (folder / "model.safetensors", tmp_path / "epoch_6.pt"):
        loaded.append(open_clip.create_model_and_transforms(name, pretrained=str(weights)))
    for model, _, transform in loaded:
        assert all(torch.equal(model.visual.state_dict()[part], tensor) for part, tensor in tensors.items())
        assert transform(picture(0)).shape == (3, tower.crop_size, tower.crop_size)
    normalized = loaded[0][2].transforms[-1]
    assert (tuple(normalized.mean), tuple(normalized.std)) == (CLIP_MEAN, CLIP_STD)
    if source == "mini":
        bundle = load_bundle("mini", torch.device("cpu"), torch.float32, local_encoder=False)
        pooled = bundle.encode_prompts(["a red fox"])[1]
        ids = bundle.tokenizer_2(["a red fox"], padding="max_length", return_tensors="pt")["input_ids"]
        with torch.no_grad():
            torch.testing.assert_close(loaded[0][0].eval().encode_text(ids), pooled, rtol=1e-4, atol=1e-4)


def test_without_a_text_tower_the_image_tower_is_written(tmp_path: Path) -> None:
    tower = find_tower(DistillConfig(model="mini", random_weights=True, image_size=64))
    tensors = read_weights(tower, 0)
    assert whole_clip(tower, tensors).keys() == {f"visual.{name}" for name in tensors}


def test_labels_are_embedded_as_open_clip_does(clip: Path) -> None:
    import open_clip
    from open_clip.model import CLIP

    whole = CLIP(**TINY).eval()
    whole.load_state_dict(load_file(clip / "model.safetensors"))
    tower = find_tower(DistillConfig(model=str(clip), image_size=64))
    ours = text_embeddings(tower, ["dog", "traffic light"])
    tokens = open_clip.SimpleTokenizer(context_length=16)(["a photo of a dog.", "a photo of a traffic light."])
    with torch.no_grad():
        torch.testing.assert_close(ours, whole.encode_text(tokens, normalize=True))
    with pytest.raises(InputError, match="has no text tower for the labels"):
        text_embeddings(find_tower(DistillConfig(model="mini", image_size=64)), ["dog"])


# Pictures of features


def test_pca_tells_regions_apart() -> None:
    torch.manual_seed(0)
    left, right = torch.randn(2, 16)
    halves = torch.where((torch.arange(8) < 4)[None, None], left[:, None, None], right[:, None, None])
    maps = [halves.expand(16, 6, 8) + 0.01 * torch.randn(16, 6, 8) for _ in range(2)]
    one, two = (np.asarray(image).astype(int) for image in pca_pictures(maps))
    assert one.shape == (6, 8, 3)
    assert abs(one[:, :4, 0].mean() - one[:, 4:, 0].mean()) > 150
    assert abs(one[..., 0] - two[..., 0]).max() < 40  # one basis for all


# Estimates


def test_zero_divides_what_it_says() -> None:
    sizes = Sizes(parameters=100, trained=10, bytes_each=2, activations=7)
    assert memory(sizes, 0, 8)["optimizer"] == 120
    assert memory(sizes, 1, 8)["optimizer"] == 15
    assert (memory(sizes, 1, 8)["gradients"], memory(sizes, 2, 8)["gradients"]) == (20, 2.5)
    assert (memory(sizes, 2, 8)["student"], memory(sizes, 3, 8)["student"]) == (200, 25)
    assert all(memory(sizes, stage, 8)["teacher"] == 200 for stage in range(4))


def test_checkpointing_keeps_less(clip: Path) -> None:
    found = []
    for checkpointing in (False, True):
        config = DistillConfig(
            model=str(clip), image_size=128, train_blocks=0, gradient_checkpointing=checkpointing, estimate=True
        )
        found.append(measure(config, find_tower(config), "fp32").activations)
    assert found[1] < 0.7 * found[0]


@pytest.mark.slow
def test_bigg_is_estimated_on_the_meta_device() -> None:
    said = table(DistillConfig(estimate=True, precision="bf16"))
    assert "1,844,907,264 parameters" in said
    assert len(said.splitlines()) == 4 + 3 * 4
