"""rbctl animate: pictures to clips that players open, begin with their picture, and are resumed."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import call, refused
from PIL import Image, ImageDraw, ImageFilter
from processes import start
from tiny_video import rename_class, write_cogvideox, write_ltx, write_wan

from rbctl.pictures import save_png

av: Any = pytest.importorskip("av", reason="av is not installed")


@pytest.fixture(scope="module")
def cogvideox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-cogvideox"
    write_cogvideox(folder)
    return folder


def scene(size: tuple[int, int] = (64, 64), colour: str = "red") -> Image.Image:
    picture = Image.new("RGB", size, "skyblue")
    width, height = size
    ImageDraw.Draw(picture).ellipse((width // 4, height // 4, width * 3 // 4, height * 3 // 4), fill=colour)
    return picture.filter(ImageFilter.GaussianBlur(4))  # MP4 halves the resolution of colours


@pytest.fixture
def sampled(tmp_path: Path) -> Path:
    """A folder as of rbctl sample: three pictures that say what they show, and their sheet."""
    folder = tmp_path / "prompts"
    rows = []
    for number, colour in enumerate(("red", "green", "orange")):
        record = {"text": f"a {('cat', 'dog', 'bear')[number]} is riding a bear", "seed": number}
        save_png(scene(colour=colour), folder / f"{number}.png", "other words\nSteps: 3", record)
        rows.append({"file_name": f"{number}.png", **record})
    save_png(scene(), folder / "grid.png", record={"page": 1})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def animate(pictures: Path, model: Path, output: Path, *options: object, code: int = 0):
    common = ("--device", "cpu", "--steps", 2, "--frames", 9)
    result = call("animate", pictures, "--model", model, "--output", output, *common, *options)
    assert result.exit_code == code, result.output
    return result


def frames_of(path: Path) -> list[Image.Image]:
    with av.open(str(path)) as container:
        return [frame.to_image() for frame in container.decode(video=0)]


def distance(first: Image.Image, second: Image.Image) -> float:
    """Mean absolute difference of the pixels, of 255."""
    return float(np.abs(np.asarray(first, dtype=float) - np.asarray(second, dtype=float)).mean())


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


@pytest.mark.slow
def test_a_clip_plays_and_begins_with_its_picture(sampled: Path, cogvideox: Path, tmp_path: Path) -> None:
    animate(sampled, cogvideox, tmp_path / "clips")
    rows = [json.loads(line) for line in (tmp_path / "clips" / "metadata.jsonl").read_text().splitlines()]
    assert [row["text"] for row in rows] == [f"a {name} is riding a bear" for name in ("cat", "dog", "bear")]
    for number, row in enumerate(rows):
        video = tmp_path / "clips" / row["file_name"]
        picture = Image.open(sampled / f"{number}.png").resize((64, 64)).crop((0, 8, 64, 56))
        frames = frames_of(video)
        assert (len(frames), {frame.size for frame in frames}) == (9, {(64, 48)})
        assert distance(frames[0], picture) < 3
        assert distance(frames[1], picture) > 10  # what random weights make of it
        with av.open(str(video)) as container:
            (stream,) = container.streams.video
            assert (stream.codec_context.name, stream.pix_fmt, stream.average_rate) == ("h264", "yuv420p", 8)
            comment = json.loads(container.metadata["comment"])
        assert comment == {key: value for key, value in row.items() if key != "file_name"}
        with Image.open(video.with_suffix(".webp")) as webp:
            assert (webp.n_frames, webp.size) == (9, (64, 48))
            assert b"trainedAlgorithmicMedia" in webp.info["xmp"]
            assert distance(webp.convert("RGB"), picture) < 3
        assert b"trainedAlgorithmicMedia" in video.read_bytes()


@pytest.mark.slow
def test_killed_and_resumed_makes_the_same_clips(sampled: Path, cogvideox: Path, tmp_path: Path) -> None:
    animate(sampled, cogvideox, tmp_path / "whole", "--clips", 3)
    options = ("--device", "cpu", "--steps", 2, "--frames", 9, "--clips", 3)
    command = ("animate", sampled, "--model", cogvideox, "--output", tmp_path / "cut", *options)
    process = start([str(part) for part in command], tmp_path / "log.txt")
    deadline = time.monotonic() + 300
    while not list((tmp_path / "cut").glob("*.webp")):
        assert process.is_alive(), (tmp_path / "log.txt").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.join()
    assert 1 <= len(list((tmp_path / "cut").glob("*.mp4"))) < 9
    whole = [path.with_suffix(".mp4") for path in (tmp_path / "cut").glob("*.webp")]
    before = {path: path.stat().st_mtime_ns for path in whole}
    result = animate(sampled, cogvideox, tmp_path / "cut", "--clips", 3)
    assert " were there" in result.stderr
    assert all(path.stat().st_mtime_ns == time_ns for path, time_ns in before.items())
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize(("write", "fps"), [(write_ltx, 25), (write_wan, 16)])
def test_other_pipelines_go_the_same_road(tmp_path: Path, write: Any, fps: int) -> None:
    write(tmp_path / "model")
    scene((96, 64)).save(tmp_path / "cat.png")
    size = ("--width", 64, "--height", 64, "--prompt", "the cat is riding")
    animate(tmp_path / "cat.png", tmp_path / "model", tmp_path / "clips", *size, "--format", "mp4")
    (video,) = (tmp_path / "clips").glob("*.mp4")
    frames = frames_of(video)
    assert (len(frames), frames[0].size) == (9, (64, 64))
    assert distance(frames[0], scene((96, 64)).crop((16, 0, 80, 64))) < 3
    with av.open(str(video)) as container:
        assert container.streams.video[0].average_rate == fps
    assert not list((tmp_path / "clips").glob("*.webp"))


@pytest.mark.slow
def test_clips_have_seeds_and_options_of_their_own(sampled: Path, cogvideox: Path, tmp_path: Path) -> None:
    (sampled / "metadata.jsonl").unlink()
    picture, clips = sampled / "0.png", tmp_path / "clips"
    animate(picture, cogvideox, clips, "--clips", 2, "--format", "webp")
    assert "0 made, 2 were there" in animate(picture, cogvideox, clips, "--clips", 2, "--format", "webp").stderr
    assert "1 made" in animate(picture, cogvideox, clips, "--prompt", "a dog", "--format", "webp").stderr
    assert "1 made" in animate(picture, cogvideox, clips, "--guidance-scale", 1, "--format", "webp").stderr
    assert len({path.read_bytes() for path in clips.glob("*.webp")}) == len(list(clips.glob("*.webp"))) == 4


def test_what_a_picture_shows_is_read_from_it(tmp_path: Path) -> None:
    from rbctl.plugins.animate.run import texts_of

    folder = tmp_path / "pictures"
    save_png(scene(), folder / "a.png", "other", {"text": "a cat <lora:hug:1> is\nhugging"})
    save_png(scene(), folder / "b.png", "a dog\nNegative prompt: low\nSteps: 3")
    assert list(texts_of(folder, None).values()) == ["a cat is hugging", "a dog"]
    assert list(texts_of(folder, "rain").values()) == ["rain", "rain"]
    (folder / "metadata.jsonl").write_text('{"file_name": "b.png", "text": "a bear"}\n')
    assert texts_of(folder, None) == {folder / "b.png": "a bear"}
    assert texts_of(folder / "b.png", None) == {folder / "b.png": "a dog"}


def test_what_cannot_be_animated_is_one_line(sampled: Path, cogvideox: Path, tmp_path: Path) -> None:
    def complaint(pictures: Path, model: Path, *options: object) -> str:
        return refused(call("animate", pictures, "--model", model, "--output", tmp_path / "clips", *options))

    scene().save(tmp_path / "silent.png")
    assert "silent.png: does not say what it shows" in complaint(tmp_path / "silent.png", cogvideox)
    assert "absent: no such folder or picture" in complaint(tmp_path / "absent", cogvideox)
    (tmp_path / "empty").mkdir()
    assert "no pictures" in complaint(tmp_path / "empty", cogvideox)
    assert "it has no model_index.json" in complaint(sampled, tmp_path / "empty")
    assert "give both --width and --height" in complaint(sampled, cogvideox, "--width", 64)
    assert "cannot make this clip" in complaint(sampled, cogvideox, "--width", 64, "--height", 64, "--steps", 1)
    (sampled / "metadata.jsonl").write_text('{"file_name": "../silent.png", "text": "a cat"}\n')
    assert "metadata.jsonl:1: file_name" in complaint(sampled, cogvideox)


def test_a_pipeline_of_words_alone_is_refused(sampled: Path, cogvideox: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "model_index.json").write_bytes((cogvideox / "model_index.json").read_bytes())
    for name in ("StableDiffusionXLPipeline", "CogVideoXPipeline", "WanPipeline", "AutoencoderKL", "Absent"):
        rename_class(model, name)
        result = call("animate", sampled, "--model", model, "--output", tmp_path / "clips")
        assert f"{name} makes no clip of a picture and a prompt" in refused(result)


@pytest.mark.slow
def test_weights_that_no_memory_holds_are_refused(
    sampled: Path, cogvideox: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rbctl.memory.available", lambda device: 10_000)
    result = call("animate", sampled, "--model", cogvideox, "--output", tmp_path / "clips", "--device", "cpu")
    assert "GB of memory" in refused(result)


def test_damaged_weights_are_one_line(sampled: Path, cogvideox: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(cogvideox, model)
    weights = next((model / "transformer").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-100])
    result = call("animate", sampled, "--model", model, "--output", tmp_path / "clips", "--device", "cpu")
    assert f"{weights}: not a readable safetensors file" in refused(result)
