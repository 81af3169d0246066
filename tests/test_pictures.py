"""Pictures that say how they were made, and sheets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from rbctl import __version__
from rbctl.errors import InputError
from rbctl.pictures import PAGE, UsedLora, grid, parameters_text, read_record, save_png, save_sheet, sheet_row
from rbctl.provenance import SHEET

RED, BLUE = Image.new("RGB", (40, 30), "red"), Image.new("RGB", (20, 60), "blue")


def parameters(prompt: str, **changes: Any) -> str:
    facts: dict[str, Any] = {"negative_prompt": "", "steps": 30, "guidance_scale": 5.0, "seed": 7, "model": "sdxl"}
    facts |= {"width": 1024, "height": 768, "scheduler": "EulerDiscreteScheduler"}
    return parameters_text(prompt, **{**facts, **changes})


def test_parameters_text() -> None:
    used: dict[str, Any] = {"loras": [UsedLora("ride, v:2", 0.8, "cd" * 32, "ef" * 32)], "model_hash": "ab" * 32}
    extras = {"Relation": "ride", "Absent": None}
    assert parameters("A cat is riding a dog", negative_prompt="lowres", extras=extras, **used) == (
        "A cat is riding a dog <lora:ride_ v_2:0.8>\nNegative prompt: lowres\nSteps: 30, Sampler: Euler, CFG scale: 5, "
        "Seed: 7, Size: 1024x768, Model hash: ababababab, Model: sdxl, Relation: ride, "
        f'Lora hashes: "ride_ v_2: cdcdcdcdcdcd", Version: rbctl {__version__}, '
        'Hashes: {"model": "ababababab", "lora:ride_ v_2": "efefefefef"}'
    )


def test_a_sampler_without_a_common_name_keeps_its_own() -> None:
    text = parameters("a cat", guidance_scale=7.5, scheduler="PNDMScheduler")
    assert text.splitlines()[1:] == [
        f"Steps: 30, Sampler: PNDM, CFG scale: 7.5, Seed: 7, Size: 1024x768, Model: sdxl, Version: rbctl {__version__}",
    ]


def readable(path: Path) -> Path:
    """A picture with two LoRAs and all that readers stumble over."""
    loras = [UsedLora("ride-v2", 0.8, "cd" * 32, "ef" * 32), UsedLora("film", -0.5, "12" * 32, "34" * 32)]
    changes: dict[str, Any] = {"scheduler": "DPM++ 2M Karras", "model_hash": "ab" * 32, "loras": loras}
    save_png(RED, path, parameters('A "cat", (is) riding: 猫', negative_prompt="low, res", **changes), {})
    return path


def test_sd_parsers_reads_prompt_sampler_seed_and_loras(tmp_path: Path) -> None:
    sd_parsers = pytest.importorskip("sd_parsers", reason="sd-parsers is not installed")
    read = sd_parsers.ParserManager().parse(readable(tmp_path / "a.png"))
    (sampler,) = read.samplers
    assert (sampler.name, sampler.model.name, sampler.model.hash) == ("DPM++ 2M", "sdxl", "ababababab")
    assert sampler.parameters == {"scheduler": "Karras", "cfg_scale": "5", "seed": "7", "steps": "30"}
    assert sampler.prompts[0].value == 'A "cat", (is) riding: 猫 <lora:ride-v2:0.8> <lora:film:-0.5>'
    assert sampler.negative_prompts[0].value == "low, res"
    hashes = {"model": "ababababab", "lora:ride-v2": "efefefefef", "lora:film": "3434343434"}
    assert read.metadata["Hashes"] == hashes


def test_sd_prompt_reader_reads_prompt_sampler_seed_and_loras(tmp_path: Path) -> None:
    # It pins an old Pillow and click, so it is no test requirement; it reads with ours too.
    why = "needs pip install --no-deps sd-prompt-reader piexif defusedxml"
    reader = pytest.importorskip("sd_prompt_reader.image_data_reader", reason=why)
    with readable(tmp_path / "a.png").open("rb") as opened:
        read = reader.ImageDataReader(opened)
    assert read.positive == 'A "cat", (is) riding: 猫 <lora:ride-v2:0.8> <lora:film:-0.5>'
    assert (read.negative, read.parameter["sampler"], read.parameter["seed"]) == ("low, res", "DPM++ 2M", "7")
    assert 'Lora hashes: "ride-v2: cdcdcdcdcdcd, film: 121212121212"' in read.setting


def test_a_sheet_has_no_parameters(tmp_path: Path) -> None:
    save_png(RED, tmp_path / "grid.png", record={"page": 1})
    assert "parameters" not in Image.open(tmp_path / "grid.png").info


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    parameters=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    record=st.dictionaries(
        st.text(max_size=5),
        st.none() | st.integers() | st.text(max_size=9) | st.lists(st.floats(0, allow_infinity=False)),
    ),
)
def test_png_round_trip(tmp_path: Path, parameters: str, record: dict[str, object]) -> None:
    path = tmp_path / "picture.png"
    save_png(RED, path, parameters, record)
    assert read_record(path) == record
    with Image.open(path) as opened:
        assert opened.text["parameters"] == parameters
        assert opened.convert("RGB").tobytes() == RED.tobytes()
    assert list(tmp_path.iterdir()) == [path]


def test_read_record_of_what_is_not_ours(tmp_path: Path) -> None:
    ours, plain, text = (tmp_path / name for name in ("ours.png", "plain.png", "text.png"))
    save_png(RED, ours, "p", {"seed": 3})
    RED.save(plain)
    text.write_text("no picture")
    for path in (plain, text, tmp_path / "absent.png", tmp_path):
        assert read_record(path) is None
    whole = ours.read_bytes()
    for length in (0, 20, len(whole) // 2, len(whole) - 30):
        ours.write_bytes(whole[:length])
        assert read_record(ours) is None, f"cut to {length} bytes"


def test_save_png_where_it_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        save_png(RED, tmp_path / "file" / "picture.png", "p", {})


def test_grid_puts_each_picture_in_the_middle_of_its_cell() -> None:
    sheet = grid([RED, BLUE, RED], 2)
    assert sheet.size == (8 + 2 * 48, 8 + 2 * 68)
    assert sheet.getpixel((8 + 20, 8 + 30)) == (255, 0, 0)
    assert sheet.getpixel((8 + 20, 8 + 5)) == (255, 255, 255)  # above the red one, which is lower than its cell
    assert sheet.getpixel((56 + 20, 8 + 30)) == (0, 0, 255)
    assert sheet.getpixel((56 + 20, 76 + 30)) == (255, 255, 255)  # no fourth picture


def test_captions_take_room_only_where_there_are_some_and_stay_inside() -> None:
    plain = grid([RED, BLUE], 1)
    captioned = grid([RED, BLUE], 1, ["a word", ""])
    long = grid([RED, BLUE], 1, ["many words " * 20, "x" * 500])
    assert plain.height < captioned.height < long.height
    assert plain.width == captioned.width == long.width
    edge = long.crop((0, 0, 4, long.height)).getcolors()
    assert edge == [(4 * long.height, (255, 255, 255))]


def test_a_long_sheet_comes_in_pages_and_a_shorter_one_removes_those_behind(tmp_path: Path) -> None:
    path, drawn = tmp_path / "sheet.png", list[int]()

    def rows(count: int) -> Iterator[Image.Image]:
        for number in range(count):
            drawn.append(number)
            yield RED

    names = ["sheet.png", "sheet-2.png", "sheet-3.png"]
    pages = save_sheet(rows(2 * PAGE + 1), path, SHEET, map(str, range(2 * PAGE + 1)))
    assert [page.name for page in pages] == names
    assert drawn == list(range(2 * PAGE + 1))
    first, second, last = (Image.open(page, formats=("PNG",)).size for page in pages)
    assert first == second
    assert last[1] < first[1] / 10  # one row
    assert [page.name for page in save_sheet(rows(PAGE), path, SHEET)] == names[:1]
    assert [page.name for page in tmp_path.iterdir()] == names[:1]


def test_a_page_never_takes_the_place_of_another_picture(tmp_path: Path) -> None:
    RED.save(tmp_path / "sheet-2.png")
    before = (tmp_path / "sheet-2.png").read_bytes()
    with pytest.raises(InputError, match=r"sheet-2\.png: is no page of sheet\.png; move it away"):
        save_sheet([BLUE] * (PAGE + 1), tmp_path / "sheet.png", SHEET)
    assert save_sheet([BLUE], tmp_path / "sheet.png", SHEET) == [tmp_path / "sheet.png"]
    assert (tmp_path / "sheet-2.png").read_bytes() == before


def test_sheet_row_has_a_line_between_the_sides() -> None:
    row = sheet_row([RED], [BLUE, BLUE], "A cat", height=60)
    assert row.height == 80
    assert row.getpixel((40, 30)) == (255, 0, 0)  # 80 wide at this height
    assert row.getpixel((88, 30)) == (0, 0, 0)
    assert row.getpixel((100, 30)) == (0, 0, 255)
    assert grid([row, sheet_row([RED], [BLUE, BLUE])], 1).width >= row.width


@pytest.mark.parametrize("size", [(5000, 1), (1, 5000), (300, 100), (100, 300), (1, 1)])
def test_sheet_row_of_any_shape_is_bounded_and_in_the_middle(size: tuple[int, int]) -> None:
    row = sheet_row([], [Image.new("RGB", size, "red")], height=60)
    assert row.height == 60
    assert row.width <= 120 + 16
    assert row.getpixel((0, 29)) == (255, 0, 0)
    wide = sheet_row([], [Image.new("RGB", (300, 100), "red")], height=60)
    assert [wide.getpixel((5, y)) == (255, 0, 0) for y in (5, 15, 45, 55)] == [False, True, True, False]


@pytest.mark.parametrize(
    "call",
    [lambda: grid([], 1), lambda: grid([RED], 0), lambda: grid([RED], 1, []), lambda: sheet_row([RED], [])],
)
def test_nothing_to_show_is_a_programmers_mistake(call) -> None:
    with pytest.raises(ValueError, match=r"expected|captions"):
        call()


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_profiles_of_srgb_and_damaged_ones_change_nothing(tmp_path: Path, mode: str) -> None:
    """An sRGB profile changes nothing, and a damaged one does not either."""
    from PIL import Image, ImageCms

    from rbctl.files import read_image

    picture = Image.new(mode, (8, 8), (210, 63, 55, 255)[: len(mode)])
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for name, profile in (("srgb", srgb), ("damaged", srgb[:200]), ("nothing", b"x")):
        picture.save(tmp_path / f"{name}.png", icc_profile=profile)
        assert read_image(tmp_path / f"{name}.png").getpixel((0, 0)) == (210, 63, 55)


def test_a_telephones_colours_are_read_in_srgb() -> None:
    from rbctl.files import read_image

    picture = Path(__file__).resolve().parents[2] / "shared" / "cases" / "18-icc-profile" / "red.png"
    if not picture.is_file():
        pytest.skip("the picture in Display P3 is not beside this checkout")
    assert max(abs(a - b) for a, b in zip(read_image(picture).getpixel((5, 5)), (230, 40, 40), strict=True)) <= 4
