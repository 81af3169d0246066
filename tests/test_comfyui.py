"""ComfyUI's nodes without ComfyUI; with a checkout of it (COMFYUI=PATH), its own sampling against rbctl's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from rbctl.cli import main
from rbctl.comfyui.attention import ImageAttention, attn2_blocks
from rbctl.comfyui.boxes import boxes_picture, boxes_text, chosen_boxes
from rbctl.comfyui.nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
from rbctl.conditioning import box_cells
from rbctl.errors import InputError
from rbctl.layout import LayoutPrior

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = ROOT / "rbctl" / "comfyui" / "workflows"
UPPER, LOWER = (0.25, 0.0, 0.75, 0.5), (0.0, 0.5, 1.0, 1.0)
GRID, HEADS, WIDTH = (4, 6), 2, 8


@pytest.fixture
def folder_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    """ComfyUI's module of that name, with one LoRA."""
    module = types.ModuleType("folder_paths")
    module.get_filename_list = lambda kind: ["ride.safetensors"]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "folder_paths", module)


# --- boxes


def test_the_layout_gives_the_boxes_that_nobody_wrote() -> None:
    layout = LayoutPrior.from_boxes([[UPPER, LOWER]], ["rider", "mount"])
    assert chosen_boxes(" \n", 2, layout) == layout.boxes()
    assert len(chosen_boxes("", 3, layout)) == 3  # side by side
    assert chosen_boxes("0, 0.1, 0.5, 1\n\n0.5 0 1 0.9\n", 2, layout) == ((0, 0.1, 0.5, 1), (0.5, 0, 1, 0.9))


def test_the_numbers_that_the_node_shows_can_be_pasted_into_it() -> None:
    assert chosen_boxes(boxes_text([UPPER, LOWER]), 2, None) == (UPPER, LOWER)


@pytest.mark.parametrize(
    ("text", "message"),
    [("0,0,1", "line 1: four numbers"), ("0,0,1,1\n0,0,0,1", "line 2: 0,0,0,1 has no area"), ("0,0,1,1\n" * 3, "3 li")],
)
def test_a_line_that_is_no_box_is_named(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        chosen_boxes(text if "line 1" not in message else text + "\n0,0,1,1", 2, None)


def test_the_preview_shows_every_box_in_a_colour_of_its_own() -> None:
    image = boxes_picture([UPPER, LOWER], ["cat", "bear"], 300, 200)
    assert image.size == (300, 200)
    edges = {image.getpixel((224, 50)), image.getpixel((299, 150)), image.getpixel((20, 40))}
    assert len(edges) == 3


# --- attention


def patch(**options: Any) -> ImageAttention:
    generator = torch.Generator().manual_seed(1)
    k_image, v_image = (torch.randn(6, WIDTH, generator=generator) for _ in range(2))
    return ImageAttention(k_image, v_image, (UPPER, LOWER), **{"sigmas": (10.0, 1.0), **options})


def inputs(rows: int, sigma: float = 5.0, chunks: tuple[int, ...] = (0, 1)) -> tuple[Any, ...]:
    """q, k, v and options of a call, as ComfyUI gives them."""
    generator = torch.Generator().manual_seed(2)
    q = torch.randn(rows, GRID[0] * GRID[1], WIDTH, generator=generator)
    k, v = (torch.randn(rows, 5, WIDTH, generator=generator) for _ in range(2))
    shape = [rows, WIDTH, *GRID]
    options = {"n_heads": HEADS, "cond_or_uncond": list(chunks), "activations_shape": shape}
    return q, k, v, {**options, "sigmas": torch.tensor([sigma])}


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
    """Plain attention, heads side by side."""
    split = [t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in (q, k, v)]
    return nn.functional.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)


def test_individuals_act_in_their_boxes_of_conditional_rows_alone() -> None:
    q, k, v, options = inputs(4, chunks=(1, 0))
    image = patch()(q, k, v, options) - attention(q, k, v, options)
    cells = box_cells(torch.tensor([UPPER, LOWER]), GRID)
    assert image[:2].abs().max() < 1e-6  # the negative prompt's rows
    for row in (2, 3):
        assert image[row, ~cells.any(0)].abs().max() < 1e-6
        for number in range(2):
            own, tokens = cells[number] & ~cells[1 - number], slice(3 * number, 3 * number + 3)
            alone = attention(q[row : row + 1, own], patch().k_image[None, tokens], patch().v_image[None, tokens], {})
            torch.testing.assert_close(image[row, own], alone[0])


def test_text_attention_is_left_to_the_node_that_replaced_it() -> None:
    q, k, v, options = inputs(2)
    doubled = patch(replaced=lambda *call: 2 * attention(*call))
    image = patch()(q, k, v, options) - attention(q, k, v, options)
    torch.testing.assert_close(doubled(q, k, v, options), 2 * attention(q, k, v, options) + image)
    assert torch.equal(doubled(*inputs(2, sigma=20.0)), 2 * attention(q, k, v, options))


@pytest.mark.parametrize("sigma", [20.0, 0.5])
def test_individuals_act_between_start_and_end_alone(sigma: float) -> None:
    call = inputs(2, sigma)
    assert torch.equal(patch(replaced=attention)(*call), attention(*call))


def test_a_node_behind_may_add_to_it_in_its_own_part() -> None:
    """The way of ComfyUI_IPAdapter_plus, which adds to a replacement that it meets."""
    both = patch()
    both.add(lambda out, q, k, v, options, weight, **_: weight * q, weight=3.0, sigma_start=6.0, sigma_end=0.0)
    call = inputs(2)
    torch.testing.assert_close(both(*call), patch()(*call) + 3 * call[0])
    assert torch.equal(both(*inputs(2, sigma=8.0)), patch()(*inputs(2, sigma=8.0)))


def test_it_goes_where_the_model_goes() -> None:
    moved = patch().to(torch.float64)
    assert moved.k_image.dtype == moved.v_image.dtype == torch.float64


def test_blocks_come_in_the_order_of_the_adapter() -> None:
    """ComfyUI has its middle block before its output blocks, the adapter's file has it last."""

    def transformer(width: int) -> nn.Module:
        block = nn.ModuleDict({kind: nn.ModuleDict({"to_k": nn.Linear(3, width)}) for kind in ("attn1", "attn2")})
        return nn.ModuleDict({"transformer_blocks": nn.ModuleList([block])})

    class DiffusionModel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.input_blocks = nn.ModuleList([nn.ModuleList([nn.Identity(), transformer(w)]) for w in (4, 5)])
            self.middle_block = nn.ModuleList([nn.Identity(), transformer(6)])
            self.output_blocks = nn.ModuleList([nn.ModuleList([nn.Identity(), transformer(7)])])

    assert list(attn2_blocks(DiffusionModel()).items()) == [
        (("input", 0, 0), (4, 3)),
        (("input", 1, 0), (5, 3)),
        (("output", 0, 0), (7, 3)),
        (("middle", 0, 0), (6, 3)),
    ]


# --- workflows


def test_every_node_says_what_comfyui_asks_of_it(folder_paths: None) -> None:
    assert NODE_CLASS_MAPPINGS.keys() == NODE_DISPLAY_NAME_MAPPINGS.keys()
    for kind in NODE_CLASS_MAPPINGS.values():
        node: Any = kind
        assert callable(getattr(node, node.FUNCTION))
        assert node.CATEGORY == "rbctl"
        assert len(getattr(node, "RETURN_NAMES", node.RETURN_TYPES)) == len(node.RETURN_TYPES)
        assert "required" in node.INPUT_TYPES()


def test_the_example_names_inputs_and_outputs_that_exist(folder_paths: None) -> None:
    workflow = json.loads((WORKFLOWS / "api" / "relation.json").read_text())
    kinds: dict[str, Any] = NODE_CLASS_MAPPINGS
    assert {node["class_type"] for node in workflow.values()} > kinds.keys()
    for node in workflow.values():
        if not (kind := kinds.get(node["class_type"])):
            continue
        required, optional = (kind.INPUT_TYPES().get(key, {}) for key in ("required", "optional"))
        assert required.keys() <= node["inputs"].keys() <= required.keys() | optional.keys()
        for name, value in node["inputs"].items():
            wanted = {**required, **optional}[name][0]
            if isinstance(value, list):
                source = kinds.get(workflow[value[0]]["class_type"])
                assert source is None or source.RETURN_TYPES[value[1]] == wanted, name
            elif isinstance(wanted, list):
                assert value in wanted
            else:
                assert isinstance(value, {"STRING": str, "BOOLEAN": bool, "FLOAT": float, "INT": int}[wanted]), name


def test_the_example_for_the_canvas_is_the_one_for_the_api() -> None:
    api = json.loads((WORKFLOWS / "api" / "relation.json").read_text())
    canvas = json.loads((WORKFLOWS / "relation.json").read_text())
    types_of = {str(node["id"]): node["type"] for node in canvas["nodes"]}
    assert types_of == {number: node["class_type"] for number, node in api.items()}
    names = {(node["id"], k): entry["name"] for node in canvas["nodes"] for k, entry in enumerate(node["inputs"])}
    drawn = {
        (str(target), names[target, slot], str(source), out) for _, source, out, target, slot, _ in canvas["links"]
    }
    wanted = {
        (number, name, *value)
        for number, node in api.items()
        for name, value in node["inputs"].items()
        if isinstance(value, list)
    }
    assert drawn == wanted
    for node in canvas["nodes"]:
        plain = [value for value in api[str(node["id"])]["inputs"].values() if not isinstance(value, list)]
        assert all(value in node["widgets_values"] for value in plain)


# --- installing


@pytest.mark.slow
def test_install_puts_the_nodes_where_comfyui_looks(tmp_path: Path) -> None:
    place = tmp_path / "ComfyUI" / "custom_nodes"
    place.mkdir(parents=True)
    for _ in range(2):  # the same command again renews them
        result = CliRunner().invoke(main, ["comfyui", "install", str(place)])
        assert result.exit_code == 0, result.output
    pack = place / "comfyui-rbctl"
    assert result.stdout == f"{pack}\n"
    assert "restart ComfyUI" in result.stderr
    code = "import runpy; print(*runpy.run_path('__init__.py')['NODE_CLASS_MAPPINGS'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=pack)
    assert done.stdout.split() == list(NODE_CLASS_MAPPINGS)
    for name in ("relation.json", "relation.jpg", "api/relation.json"):
        assert (pack / "example_workflows" / name).read_bytes() == (WORKFLOWS / name).read_bytes()


def test_install_refuses_another_folder(tmp_path: Path) -> None:
    (tmp_path / "custom_nodes").mkdir()
    inside = CliRunner().invoke(main, ["comfyui", "install", str(tmp_path)])
    missing = CliRunner().invoke(main, ["comfyui", "install", str(tmp_path / "models")])
    assert inside.exit_code == missing.exit_code == 2
    assert f"give {tmp_path / 'custom_nodes'}" in inside.stderr
    assert "no folder custom_nodes" in missing.stderr
    assert [path.name for path in tmp_path.rglob("*")] == ["custom_nodes"]


# --- ComfyUI itself


@pytest.mark.slow
@pytest.mark.parametrize("bundle", ["mini", "tiny"])
def test_comfyui_samples_what_rbctl_samples(bundle: str, tiny_bundle: Path) -> None:
    if "COMFYUI" not in os.environ:
        pytest.skip("COMFYUI names no checkout of ComfyUI")
    folder = str(tiny_bundle) if bundle == "tiny" else bundle
    script = [sys.executable, str(ROOT / "tests" / "comfyui" / "compare.py"), folder]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == 7
