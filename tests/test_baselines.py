"""The baselines: what they learn, the embedding's file, and pictures sampled with it."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from processes import run
from safetensors.torch import load_file, save_file

from rbctl import any_lora, embeddings, lora, unet_weights
from rbctl.bundle.load import load
from rbctl.cli import main
from rbctl.embeddings import Embedding
from rbctl.files import read_safetensors
from rbctl.lora_loader import LoraLoader
from rbctl.menagerie.triplets import draw_triplets
from rbctl.phrases import replaced
from rbctl.plugins.finetune import baselines
from rbctl.plugins.finetune.captioned_pictures import Picture, encode, of_subject
from rbctl.plugins.finetune.config import FinetuneConfig
from rbctl.plugins.finetune.run import run as finetune
from rbctl.plugins.finetune.samples import random_timestep
from rbctl.relations import load_relation

pytestmark = pytest.mark.usefixtures("one_thread")
STEPS = {"steps": 2, "batch_size": 2, "micro_batch_size": 8, "checkpoint_every": 2, "resolution": 64}


@pytest.fixture(scope="module")
def hug(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Triplets of "hug"."""
    folder = tmp_path_factory.mktemp("triplets") / "hug"
    draw_triplets(load_relation("hug"), 2, 0, folder)
    return folder


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of one individual."""
    output = tmp_path_factory.mktemp("subject")
    config = FinetuneConfig(method="textual_inversion", class_noun="cat", triplets=3)
    of_subject(config, "<cat>", output, 128)
    return output / "subject"


def flags(**options: Any) -> list[object]:
    return [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", value)]


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


def losses(folder: Path, name: str = "loss") -> list[float]:
    return [json.loads(line)[name] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def written(
    path: Path, token: str = "<ride>", count: int = 2, width: int = 16, words: str = "[]", seed: int = 0
) -> Path:
    """An embedding file of random vectors, as wide as the tiny bundle's text encoders."""
    chance = torch.Generator().manual_seed(seed)
    first, second = (torch.randn(count, width, generator=chance) for _ in range(2))
    embeddings.save(path, Embedding(token, (first, second), metadata={"rbctl.words": words}))
    return path


# --- rbctl/embeddings.py, phrases.py and the bundle's encode_prompts ----------------------------------------------


@pytest.mark.slow
def test_both_text_encoders_read_what_diffusers_reads_from_the_file(tiny_bundle: Path, tmp_path: Path) -> None:
    """Two vectors in a row; the pooled output is taken where the text ends, also for encoders that pool at the
    highest id, where diffusers takes it at the learned token."""
    from diffusers import StableDiffusionXLPipeline

    path = written(tmp_path / "ride.safetensors")
    tensors = load_file(path)
    assert set(tensors) == {"clip_l", "clip_g"}
    bundle = load(str(tiny_bundle), torch.device("cpu"), torch.float32, local_encoder=False, image_encoders=False)
    assert bundle.image_prompt_encoder is None
    ours, pooled = bundle.encode_prompts(["a cat <ride> a dog."], [embeddings.read(str(path))])
    pipeline = StableDiffusionXLPipeline.from_pretrained(tiny_bundle, local_files_only=True)
    theirs = []
    for key, tokenizer, encoder in (
        ("clip_l", pipeline.tokenizer, pipeline.text_encoder),
        ("clip_g", pipeline.tokenizer_2, pipeline.text_encoder_2),
    ):
        pipeline.load_textual_inversion(tensors[key], token="<ride>", text_encoder=encoder, tokenizer=tokenizer)
        text = pipeline.maybe_convert_prompt("a cat <ride> a dog.", tokenizer)
        assert "<ride> <ride>_1" in text
        ids = tokenizer(text, padding="max_length", truncation=True, return_tensors="pt").input_ids
        with torch.no_grad():
            output = encoder(ids, output_hidden_states=True)
        theirs.append(output.hidden_states[-2])
    torch.testing.assert_close(ours, torch.cat(theirs, dim=-1))
    end = output.last_hidden_state[0, ids[0].tolist().index(tokenizer.eos_token_id)]
    torch.testing.assert_close(pooled[0], pipeline.text_encoder_2.text_projection(end))


def test_a_text_without_the_token_reads_as_ever(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = load(str(tiny_bundle), torch.device("cpu"), torch.float32, local_encoder=False, image_encoders=False)
    learned = embeddings.read(str(written(tmp_path / "a.safetensors")))
    texts = ["", "A cat is riding a dog.", "word " * 100]
    for plain, with_it in zip(bundle.encode_prompts(texts), bundle.encode_prompts(texts, [learned]), strict=True):
        assert torch.equal(plain, with_it)
    assert not bundle.overlong("a <ride>", [learned])
    assert bundle.overlong("<ride> " * 40, [learned])


def test_tokens_of_several_embeddings_keep_apart(tiny_bundle: Path) -> None:
    tokenizer = load(str(tiny_bundle), torch.device("cpu"), torch.float32, encoders=False).tokenizer
    zeros = (torch.zeros(2, 4), torch.zeros(2, 4))
    learned = [Embedding("<a>", zeros), Embedding("<a>b>", zeros), Embedding("<c>", zeros)]
    cat = tokenizer("cat", add_special_tokens=False)["input_ids"]
    assert embeddings.pieces(tokenizer, "<c>cat <a>", learned) == [-5, -6, *cat, -1, -2]


def test_words_are_replaced_where_they_stand() -> None:
    forms = ("is riding", "rides", "riding")
    assert replaced("A cat Is Riding a dog.", forms, "<ride>") == "A cat <ride> a dog."
    assert replaced("A dog rides, overriding all.", forms, "<ride>") == "A dog <ride>, overriding all."
    assert replaced("A cat strides.", forms, "<ride>") is None
    assert replaced("A caterpillar and a cat.", ("cat",), "<rex>") == "A caterpillar and a <rex>."


def test_the_steering_loss_is_its_equation() -> None:
    vector, near, far = torch.tensor([[3.0, 0.0]]), torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    expected = -math.log(math.exp(1 / 0.5) / (math.exp(1 / 0.5) + math.exp(0)))
    assert float(embeddings.steering_loss(vector, near, far, 0.5)) == pytest.approx(expected)
    assert float(embeddings.steering_loss(vector, near, far[:0])) == 0
    assert embeddings.steering_loss(vector, far, near) > embeddings.steering_loss(vector, near, far)


def test_cosine_timesteps_are_reversions_law() -> None:
    config, chance = FinetuneConfig(timestep_sampling="cosine"), torch.Generator().manual_seed(0)
    drawn = torch.stack([random_timestep(config, 1000, chance) for _ in range(4000)])
    shares = torch.histc(drawn.float(), 4, 0, 1000) / 4000
    # integral of 1 - cos(pi x) / 2 over each quarter
    expected = [0.25 - (math.sin(math.pi * (k + 1) / 4) - math.sin(math.pi * k / 4)) / (2 * math.pi) for k in range(4)]
    assert shares.tolist() == pytest.approx(expected, abs=0.03)


# --- learning --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_relation_inversion_learns_and_resumes(tiny_bundle: Path, hug: Path, tmp_path: Path) -> None:
    given = {"method": "relation_inversion", "relation": "hug", "data": hug, "bundle": tiny_bundle, "vectors": 2}
    log = tmp_path / "log.txt"

    def learn(output: str, **options: Any) -> Path:
        chosen = {**given, **STEPS, "learning_rate": 1e-2, "output": tmp_path / output, **options}
        assert run(["finetune", *flags(**chosen)], log) == 0, log.read_text()
        return tmp_path / output / "embedding.safetensors"

    whole = learn("whole", steps=24)
    learn("parts", steps=10)
    parts = learn("parts", steps=24)
    tensors, metadata = read_safetensors(whole)
    again, told = read_safetensors(parts)
    assert all(torch.equal(again[key], value) for key, value in tensors.items())
    assert {k: v for k, v in metadata.items() if k != "rbctl.recipe"} == {
        k: v for k, v in told.items() if k != "rbctl.recipe"
    }
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    learned = embeddings.read(str(whole))
    assert learned.token == "<hug>"
    assert "is hugging" in learned.words
    assert [tuple(v.shape) for v in learned.vectors] == [(2, 16), (2, 16)]
    # on the same samples and draws it costs less than without learning
    learn("still", steps=24, learning_rate=0)
    for name in ("loss", "steering"):
        after, before = (sum(losses(tmp_path / folder, name)[-10:]) for folder in ("whole", "still"))
        assert after < before
    assert {p.name for p in (tmp_path / "whole").iterdir()} >= {"run.json", "recipe.yaml", "metrics.jsonl"}
    # another method has no business in that folder
    other = {**given, **STEPS, "method": "textual_inversion", "class_noun": "cat", "output": tmp_path / "whole"}
    result = invoke("finetune", *flags(**other))
    assert result.exit_code == 2
    assert "holds a run with" in result.output


def test_only_the_vectors_move(
    tiny_bundle: Path, subject: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    before: dict[str, torch.Tensor] = {}

    def loaded(*arguments: Any, **options: Any) -> Any:
        bundle = load(*arguments, **options)
        for name in ("text_encoder", "text_encoder_2", "unet", "vae"):
            module = getattr(bundle, name)
            before.update({f"{name}.{k}": v.clone() for k, v in module.state_dict().items()})
        seen.append(bundle)
        return bundle

    monkeypatch.setattr(baselines, "load", loaded)
    config = FinetuneConfig(
        method="textual_inversion", data=subject, class_noun="cat", bundle=str(tiny_bundle), device="cpu",
        output=tmp_path / "out", learning_rate=1e-2, **STEPS,
    )  # fmt: skip
    learned = embeddings.read(str(finetune(config)))
    (bundle,) = seen
    assert len(bundle.tokenizer) == bundle.text_encoder.get_input_embeddings().weight.shape[0]
    for name in ("text_encoder", "text_encoder_2", "unet", "vae"):
        for key, value in getattr(bundle, name).state_dict().items():
            assert torch.equal(value, before[f"{name}.{key}"]), f"{name}.{key}"
    start = embeddings.initial(bundle.tokenizer, bundle.text_encoder, "cat", 1)
    assert not torch.equal(learned.vectors[0], start)
    assert (learned.token, learned.words) == ("<cat>", ("cat",))


@pytest.mark.slow
def test_dreambooth_trains_a_lora_with_class_pictures_and_two_of_them_sample_together(
    tiny_bundle: Path, subject: Path, tmp_path: Path
) -> None:
    def learn(noun: str, **options: Any) -> Path:
        given = {
            "method": "dreambooth_lora",
            "class_noun": noun,
            "lora_layers": "attention",
            "bundle": tiny_bundle,
            "learning_rate": 1e-2,
        }
        chosen = {**given, **STEPS, "output": tmp_path / noun, **options}
        result = invoke("finetune", *flags(**chosen))
        assert result.exit_code == 0, result.output
        return tmp_path / noun / f"{Path(options.get('data', noun)).name}.safetensors"

    cat = learn("cat", data=subject, prior="drawn", prior_count=2, prior_share=0.5)
    assert losses(tmp_path / "cat", "prior")
    assert len(rows(tmp_path / "cat" / "prior")) == 2
    dog = learn("dog", triplets=2, prior="none")
    assert {".attn1." in key for key in lora.read(cat).tensors} == {True, False}
    (tmp_path / "p.txt").write_text("A cat hugs a dog.\n")

    def sample(which: object, name: str) -> list[dict[str, Any]]:
        given = {"bundle": tiny_bundle, "lora": which, "steps": 1, "output": tmp_path / name, "width": 64, "height": 64}
        result = invoke("sample", tmp_path / "p.txt", *flags(**given))
        assert result.exit_code == 0, result.output
        return rows(tmp_path / name)

    (both,), (one,) = sample(f"{cat},{dog}", "both"), sample(cat, "one")
    assert (both["words"], one["words"]) == ("A sks cat hugs a sks dog.", "A sks cat hugs a dog.")
    assert both["lora_hash"].startswith(one["lora_hash"] + ",")
    assert both["fingerprint"] != one["fingerprint"]
    assert (tmp_path / "both" / both["file_name"]).read_bytes() != (tmp_path / "one" / one["file_name"]).read_bytes()


# --- sampling ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_wide_picture_of_a_subject_is_trained_on_whole(tiny_bundle: Path, subject: Path, tmp_path: Path) -> None:
    photos = tmp_path / "rex"
    shutil.copytree(subject, photos)
    (photos / "metadata.jsonl").unlink()
    Image.new("RGB", (320, 180), "teal").save(photos / "wide.png")
    given = {"method": "dreambooth_lora", "data": photos, "class_noun": "cat", "bundle": tiny_bundle, "rank": 2}
    chosen = {**given, **STEPS, "batch_size": 4, "prior": "none", "output": tmp_path / "run"}
    result = invoke("finetune", *flags(**chosen))
    assert result.exit_code == 0, result.output
    assert all(map(math.isfinite, losses(tmp_path / "run")))
    pictures = [Picture(path, ("a cat",)) for path in sorted(photos.glob("*.png"))]
    config = FinetuneConfig(method="dreambooth_lora", class_noun="cat", data=photos)
    bundle = load(str(tiny_bundle), torch.device("cpu"), torch.float32)
    encoded = encode(bundle, pictures, config, 64)
    assert encoded["time_ids"][:, 0, -2:].tolist() == [[64, 64]] * 3 + [[48, 80]]
    cut = encode(bundle, pictures, replace(config, aspect_buckets=False), 64)
    assert cut["time_ids"][:, 0, -2:].tolist() == [[64, 64]] * 4


@pytest.mark.slow
def test_sampling_with_an_embedding(tiny_bundle: Path, tmp_path: Path) -> None:
    ride = written(tmp_path / "ride.safetensors", words='["is riding", "rides"]')
    (tmp_path / "p.txt").write_text("A cat is riding a dog. --d 1\nA cat <ride> a dog. --d 1\n")
    (tmp_path / "own.txt").write_text("A <rex> rides a dog. --d 1 --embedding ride.safetensors:<rex>\n")
    common = flags(bundle=tiny_bundle, steps=1, width=64, height=64)

    def sample(prompts: str, output: str, *more: object) -> list[dict[str, Any]]:
        result = invoke("sample", tmp_path / prompts, *common, "--output", tmp_path / output, *more)
        assert result.exit_code == 0, result.output
        return rows(tmp_path / output)

    said, token = sample("p.txt", "with", "--relation", "ride", "--embedding", ride)
    plain, _ = sample("p.txt", "without", "--lora", "none")
    assert (said["text"], said["words"], said["lora"]) == ("A cat is riding a dog.", "A cat <ride> a dog.", None)
    assert "words" not in plain
    assert "embeddings" not in plain
    assert (
        said["embeddings"]
        == token["embeddings"]
        == [{"path": "../ride.safetensors", "token": "<ride>", "hash": said["embeddings"][0]["hash"]}]
    )
    folders = {"with": said, "without": plain}
    assert len({(tmp_path / f / row["file_name"]).read_bytes() for f, row in folders.items()}) == 2
    # another file of the same name is another picture
    written(ride, words='["is riding", "rides"]', seed=1)
    assert sample("p.txt", "with", "--relation", "ride", "--embedding", ride)[0]["file_name"] != said["file_name"]
    (own,) = sample("own.txt", "own")
    assert own["embeddings"][0]["token"] == "<rex>"


def bad(path: Path, **tensors: torch.Tensor) -> Path:
    save_file(tensors, path)  # ours writes no NaN
    return path


@pytest.mark.slow
def test_bad_embeddings_are_one_line(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("A cat is riding a dog.\n")
    ride = written(tmp_path / "ride.safetensors", words='["is riding"]')
    nan = torch.full((1, 16), math.nan)
    for given, message in (
        (f"{ride}:ride", "write it as <name>"),
        (f"{ride}:<a b>", "write it as <name>"),
        (str(written(tmp_path / "wide.safetensors", width=24, words='["is riding"]')), "clip_l is 24 wide"),
        (str(written(tmp_path / "silent.safetensors", "<x>")), "write <x> where it belongs"),
        (str(written(tmp_path / "other.safetensors", words='["hugs"]')), "says none of '<ride>', 'hugs'"),
        (f"{ride},{ride}", "two embeddings have the same token"),
        (str(bad(tmp_path / "key.safetensors", emb_params=torch.zeros(1, 16))), "holds clip_l and clip_g"),
        (str(bad(tmp_path / "nan.safetensors", clip_l=nan, clip_g=nan.clone())), "NaN"),
        (str(bad(tmp_path / "n.safetensors", clip_l=nan[:0], clip_g=nan)), "holds no vectors"),
        (str(bad(tmp_path / "two.safetensors", clip_l=torch.cat((nan, nan)), clip_g=nan)), "as many rows"),
        (str(tmp_path / "none.safetensors"), "no such file"),
    ):
        result = invoke("sample", tmp_path / "p.txt", "--bundle", tiny_bundle, "--embedding", given)
        assert result.exit_code == 2, (given, result.output)
        assert message in result.output.splitlines()[-1], given


def test_bad_options_of_baselines_are_one_line(tiny_bundle: Path, hug: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    shutil.copytree(hug, tmp_path / "hug")
    told = [{k: v for k, v in row.items() if k != "predicate"} for row in rows(hug)]
    (tmp_path / "hug" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in told))
    inversion = ["--method", "relation_inversion"]
    subject = ["--method", "textual_inversion"]
    cat = [*subject, "--class-noun", "cat"]
    for arguments, message in (
        ([], "--relation: say which"),
        (inversion, "--relation: say which"),
        ([*inversion, "--relation", "ride", "--data", tmp_path / "hug"], "says none of"),
        ([*inversion, "--relation", "hug", "--token", "hug"], "write it as <name>"),
        (subject, "needs --class-noun"),
        ([*subject, "--class-noun", "teapot"], "cannot be drawn"),
        ([*cat, "--caption", "a cat"], "write {} once"),
        ([*cat, "--data", tmp_path / "empty"], "no pictures there"),
    ):
        where = tmp_path / str(abs(hash(message)))
        result = invoke("finetune", *arguments, "--bundle", tiny_bundle, "--output", where)
        assert result.exit_code == 2, result.output
        assert message in result.output.splitlines()[-1]
        assert not (where / "run.json").exists()


def test_a_drawn_subject_is_one_individual(subject: Path) -> None:
    """Its pictures differ, its first is the portrait, and more of them begin with the same."""
    names = sorted(path.name for path in subject.glob("*.png"))
    assert names == ["000.png", "001.png", "002.png"]
    assert len({(subject / name).read_bytes() for name in names}) == 3
    config = FinetuneConfig(method="textual_inversion", class_noun="cat", triplets=4)
    found = of_subject(config, "<cat>", subject.parent / "more", 128)
    assert [p.file.read_bytes() for p in found[:3]] == [(subject / name).read_bytes() for name in names]
    assert all("<cat>" in caption for picture in found for caption in picture.captions)


# --- weights of the UNet itself --------------------------------------------------------------------------------------


def learn(bundle: Path, method: str, output: Path, data: Path, **options: Any) -> Path:
    """Tune a cat in a process of its own; the weights' file."""
    given = {"method": method, "class_noun": "cat", "bundle": bundle, "data": data, "learning_rate": 1e-2}
    log = output.with_suffix(".txt")
    chosen = {**given, **STEPS, "prior": "drawn", "prior_count": 2, "prior_share": 0.5, "output": output, **options}
    assert run(["finetune", *flags(**chosen)], log) == 0, log.read_text()
    return output / f"{data.name}.safetensors"


def read_unet(bundle: Path, file: Path, weight: float = 1.0) -> dict[str, torch.Tensor]:
    """The UNet's parameters under the weights of a file, and after them without."""
    loader = LoraLoader(load(str(bundle), torch.device("cpu"), torch.float32, encoders=False))
    loader.use([(any_lora.read(file), weight)])
    with_it = {name: value.clone() for name, value in unet_weights.parameters(loader.bundle.unet).items()}
    loader.use([])
    base = load(str(bundle), torch.device("cpu"), torch.float32, encoders=False).unet
    for name, value in unet_weights.parameters(base).items():
        assert torch.equal(value, unet_weights.parameters(loader.bundle.unet)[name]), name
    return with_it


@pytest.mark.slow
@pytest.mark.parametrize("method", ["custom_diffusion", "dreambooth"])
def test_weights_of_the_unet_learn_resume_and_weigh(
    tiny_bundle: Path, subject: Path, tmp_path: Path, method: str
) -> None:
    whole = learn(tiny_bundle, method, tmp_path / "whole", subject, steps=8, save_every=4)
    learn(tiny_bundle, method, tmp_path / "parts", subject, steps=4)
    parts = learn(tiny_bundle, method, tmp_path / "parts", subject, steps=8)
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    for name in [whole.name, *(["embedding.safetensors"] if method == "custom_diffusion" else [])]:
        one, other = (load_file(path.with_name(name)) for path in (whole, parts))
        assert one.keys() == other.keys()
        assert all(torch.equal(other[key], value) for key, value in one.items())
    exported = {path.name for path in (tmp_path / "whole").glob("*.safetensors")} - {"lora.safetensors"}
    beside = {"embedding.safetensors", "subject-000004-embedding.safetensors"}
    assert exported == {whole.name, "subject-000004.safetensors"} | (beside if method == "custom_diffusion" else set())

    base = load(str(tiny_bundle), torch.device("cpu"), torch.float32, encoders=False).unet
    before, after, half = (
        unet_weights.parameters(base),
        read_unet(tiny_bundle, whole),
        read_unet(tiny_bundle, whole, 0.5),
    )
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    keys_and_values = {name for name in before if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))}
    assert changed == keys_and_values if method == "custom_diffusion" else changed > keys_and_values
    for name in changed:
        torch.testing.assert_close(half[name], (before[name] + after[name]) / 2)

    # diffusers' own loaders read the same from the file
    from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel

    theirs = StableDiffusionXLPipeline.from_pretrained(tiny_bundle, local_files_only=True)
    if method == "custom_diffusion":
        theirs.unet.load_attn_procs(whole.parent, weight_name=whole.name, _pipeline=theirs)
        layer = "down_blocks.1.attentions.0.transformer_blocks.0.attn2"
        processor = theirs.unet.attn_processors[f"{layer}.processor"]
        assert torch.equal(processor.to_k_custom_diffusion.weight, after[f"{layer}.to_k.weight"])
        assert len(theirs.unet.attn_processors) == len(base.attn_processors)
    else:
        own = UNet2DConditionModel.from_single_file(str(whole), config=str(tiny_bundle), subfolder="unet")
        assert all(torch.equal(value, after[name]) for name, value in own.named_parameters())


@pytest.mark.slow
def test_two_custom_diffusions_sample_together(tiny_bundle: Path, subject: Path, tmp_path: Path) -> None:
    cat = learn(tiny_bundle, "custom_diffusion", tmp_path / "cat", subject)
    told = [read_safetensors(path)[1] for path in (cat, cat.with_name("embedding.safetensors"))]
    assert "rbctl.instance" not in told[0]
    assert told[1]["rbctl.instance"] == "<new1> cat"
    dog = tmp_path / "dog"
    shutil.copytree(cat.parent, dog)
    tensors, metadata = read_safetensors(dog / "embedding.safetensors")
    save_file(
        tensors, dog / "embedding.safetensors", metadata | {"rbctl.words": '["dog"]', "rbctl.instance": "<new1> dog"}
    )
    both = {
        "lora": f"{cat}:0.5,{dog / cat.name}:0.5",
        "embedding": f"{cat.with_name('embedding.safetensors')},{dog / 'embedding.safetensors'}:<new2>",
    }
    (tmp_path / "p.txt").write_text("A cat hugs a dog.\nA dog hugs my <new1> kitten.\n")
    common = flags(bundle=tiny_bundle, steps=1, width=64, height=64, output=tmp_path / "out")
    result = invoke("sample", tmp_path / "p.txt", *common, *flags(**both))
    assert result.exit_code == 0, result.output
    words = [row["words"] for row in rows(tmp_path / "out")]
    assert words == ["A <new1> cat hugs a <new2> dog.", "A <new2> dog hugs my <new1> kitten."]


@pytest.mark.slow
def test_bad_weights_of_a_unet_are_one_line(tiny_bundle: Path, tmp_path: Path) -> None:
    tensors = load_file(tiny_bundle / "unet" / "diffusion_pytorch_model.safetensors")
    (tmp_path / "p.txt").write_text("A cat.\n")
    for change, message in (
        ({"conv_in.weight": torch.zeros(8, 4, 1, 1)}, "made for another base; 'conv_in.weight' is (8, 4, 1, 1)"),
        ({"down_blocks.9.weight": torch.zeros(1)}, "this one has no 'down_blocks.9.weight'"),
        ({"conv_in.bias": torch.full_like(tensors["conv_in.bias"], math.nan)}, "'conv_in.bias' holds NaN"),
    ):
        file = bad(tmp_path / "unet.safetensors", **{**tensors, **change})
        result = invoke("sample", tmp_path / "p.txt", "--bundle", tiny_bundle, "--lora", file)
        assert result.exit_code == 2, result.output
        assert message in result.output.splitlines()[-1]
