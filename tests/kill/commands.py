"""The table: every command that writes, at a small size, and the inputs that are made for it once.

A command runs in a folder of its own, beside ``inputs/``. It reads from there, and what it changes it has copies of.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import processes
from PIL import Image


@dataclass(frozen=True)
class Command:
    """A command line of rbctl.

    Attributes:
        line: its arguments, with spaces between.
        needs: inputs that it reads at ../inputs/NAME.
        copies: inputs that it changes: they lie in its own folder.
    """

    line: str
    needs: tuple[str, ...] = ()
    copies: tuple[str, ...] = ()

    @property
    def arguments(self) -> list[str]:
        return self.line.split()


_TINY = "--bundle ../inputs/tiny"
_TUNING = "--batch-size 2 --augmentation-draws 2 --steps 8 --checkpoint-every 3"
_PREVIEWS = "--preview-every 4 --preview-steps 2 --save-every 5"
_BASELINE = f"{_TINY} {_TUNING} --save-every 5 --resolution 64 --output run"
_PRETRAIN = "--individuals 6 --portraits 2 --easy-scenes 18 --all-scenes 17 --shard 9 --work work"
_PARTS = " ".join(
    f"--{part}-steps 12 --{part}-batch-size 2" for part in ("vae", "clip", "oracle", "dino", "decoder", "unet")
)

COMMANDS: Mapping[str, Command] = {
    "data-import": Command("data import ../inputs/official triplets", needs=("official",)),
    "data-fix": Command("data fix ../inputs/official triplets", needs=("official",)),
    "data-show": Command("data show ../inputs/official", needs=("official",)),
    "data-export": Command("data export ../inputs/hug set --to ai-toolkit", needs=("hug",)),
    "data-export-archive": Command("data export ../inputs/hug set --to civitai", needs=("hug",)),
    "data-schemas": Command("data schemas schemas"),
    "generate-drawn": Command("generate --relation hug -n 4 --size 64x64 --output set"),
    "generate-openai": Command("generate --relation hug -n 4 --engine openai --output set"),
    "annotate": Command("annotate raw --batch-size 1", copies=("raw",)),
    "annotate-review": Command("annotate annotated --review", copies=("annotated",)),
    "annotate-apply": Command("annotate annotated --apply annotated/saved.json", copies=("annotated",)),
    "finetune": Command(
        f"finetune --relation hug --prior drawn --prior-count 3 --triplets 3 {_TINY} {_TUNING} {_PREVIEWS} "
        "--resolution 64 --output run",
        needs=("tiny",),
    ),
    "finetune-textual-inversion": Command(
        f"finetune --method textual_inversion --class-noun cat --triplets 3 {_BASELINE}", needs=("tiny",)
    ),
    "finetune-dreambooth": Command(
        f"finetune --method dreambooth_lora --class-noun cat --triplets 3 --prior drawn --prior-count 3 {_BASELINE}",
        needs=("tiny",),
    ),
    "finetune-custom-diffusion": Command(
        f"finetune --method custom_diffusion --class-noun cat --triplets 3 --prior drawn --prior-count 3 {_BASELINE}",
        needs=("tiny",),
    ),
    "finetune-relation-inversion": Command(
        f"finetune --method relation_inversion --relation hug --data ../inputs/hug {_BASELINE}", needs=("tiny", "hug")
    ),
    "sample": Command(
        f"sample ../inputs/prompts/prompts.txt {_TINY} --lora ../inputs/lora/hug.safetensors --steps 2 --images 2",
        needs=("tiny", "prompts", "lora"),
    ),
    "animate": Command(
        "animate ../inputs/prompts/pictures --model ../inputs/video --prompt ride --steps 2 --frames 9 --format webp "
        "--output clips",
        needs=("prompts", "video"),
    ),
    "eval": Command("eval ../inputs/sampled --bundle mini", needs=("sampled",)),
    "eval-bench": Command("eval --bench relationbench-mini --relations ride --cases 2 --steps 2"),
    "eval-ablate": Command("eval ablate ../inputs/ablation/small.yaml --output out", needs=("ablation",)),
    "eval-judge-check": Command(
        "eval judge-check --judge clip --relations ride --cases 2 --output out --answers answers"
    ),
    "eval-gates": Command("eval gates --quick --only oracle,vae,base,lora --relations ride --output out"),
    "distill": Command(
        "distill --model ../inputs/clip --data ../inputs/photographs --image-size 64 --train-blocks 2 --batch-size 4 "
        "--micro-batch-size 1 --steps 6 --checkpoint-every 2 --evaluate-every 3 --warmup-steps 2 --held-out 3 "
        "--pca-pictures 2 --workers 0 --zero-stage 2 --official-checkpoint --output run",
        needs=("clip", "photographs"),
    ),
    "models-import": Command(
        "models import ./mine --base ../inputs/tiny --adapter ../inputs/tiny/ms_adapter.safetensors "
        "--image-encoder ../inputs/tiny/clip_vision --local-encoder ../inputs/tiny/clipself/model.safetensors",
        needs=("tiny",),
    ),
    "lora-convert": Command(
        "lora convert ../inputs/lora/hug.safetensors --format official -o official.safetensors", needs=("lora",)
    ),
    "runs-clean": Command("runs clean checkpoints --all", copies=("checkpoints",)),
    "pretrain-renders": Command(f"pretrain renders pictures {_PRETRAIN}"),
    "pretrain": Command(
        f"pretrain vae clip oracle dino decoder unet {_PRETRAIN} {_PARTS} --checkpoint-every 4 --preview-every 6",
        copies=("work",),
    ),
    "comfyui-install": Command("comfyui install custom_nodes", copies=("custom_nodes",)),
    "demo": Command(
        f"demo --pairs 2 --steps 2 --sampling-steps 2 --relation hug {_TINY} --output demo", needs=("tiny",)
    ),
}


class Inputs:
    """Inputs by name, each made when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, name: str) -> Path:
        place = self.folder / name
        if not place.exists():
            _MADE[name](self, place)
        return place

    def rbctl(self, line: str) -> None:
        """Run a command among the inputs.

        Raises:
            RuntimeError: it failed.
        """
        log = self.folder.parent / "inputs.log"
        if code := processes.run(line.split(), log, folder=self.folder):
            raise RuntimeError(f"rbctl {line}: ended with {code}:\n{log.read_text()[-2000:]}")


def _tiny(inputs: Inputs, place: Path) -> None:
    from rbctl.bundle.random_weights import write_tiny

    write_tiny(place)


def _hug(inputs: Inputs, place: Path) -> None:
    from rbctl.menagerie.triplets import draw_triplets
    from rbctl.relations import load_relation

    draw_triplets(load_relation("hug"), 3, 3, place, size=64)


def _official(inputs: Inputs, place: Path) -> None:
    from test_triplets import official_set

    official_set(place, triplets=12)


def _raw(inputs: Inputs, place: Path) -> None:
    inputs.rbctl(f"generate --relation hug -n 3 --output {place.name}")


def _annotated(inputs: Inputs, place: Path) -> None:
    shutil.copytree(inputs("raw"), place)
    inputs.rbctl(f"annotate {place.name}")
    rows = [json.loads(line) for line in (place / "metadata.jsonl").read_text().splitlines()]
    moved = {"objects": [{"target_keypoints": {"3": [0.25, 0.5, 2]}}]}
    changes = {rows[0]["file_name"]: {"drop": True}, rows[1]["file_name"]: moved}
    (place / "saved.json").write_text(json.dumps({"triplets": changes}))


def _prompts(inputs: Inputs, place: Path) -> None:
    from rbctl.plugins.demo.examples import write
    from rbctl.relations import load_relation

    write(place, load_relation("hug"), 2)


def _lora(inputs: Inputs, place: Path) -> None:
    inputs("tiny"), inputs("hug")
    inputs.rbctl(
        f"finetune --relation hug --data hug --bundle tiny {_TUNING.replace('8', '2')} --prior none "
        f"--resolution 64 --output {place.name}"
    )


def _checkpoints(inputs: Inputs, place: Path) -> None:
    inputs("tiny"), inputs("hug")
    inputs.rbctl(
        f"finetune --relation hug --data hug --bundle tiny {_TUNING} --prior none --resolution 64 --output {place.name}"
    )


def _sampled(inputs: Inputs, place: Path) -> None:
    inputs("prompts")
    inputs.rbctl(f"sample prompts/prompts.txt --lora none --steps 1 --output {place.name}")


def _ablation(inputs: Inputs, place: Path) -> None:
    import yaml

    recipe = {
        "relations": ["ride"],
        "seeds": [0],
        "cases": 1,
        "finetune": {"steps": 2, "batch_size": 1, "augmentation_draws": 1, "triplets": 2, "prior": "none"},
        "sample": {"steps": 1},
        "tables": [{"name": "A", "rows": {"full": {}, "without KML": {"finetune": {"kml_weight": 0}}}}],
    }
    place.mkdir(parents=True)
    (place / "small.yaml").write_text(yaml.safe_dump(recipe))


def _photographs(inputs: Inputs, place: Path) -> None:
    place.mkdir(parents=True)
    for number in range(12):
        cells = np.random.default_rng(number).integers(0, 256, (3, 4, 3), dtype=np.uint8)
        Image.fromarray(cells).resize((80, 64), Image.Resampling.NEAREST).save(place / f"{number:02d}.png")


def _clip(inputs: Inputs, place: Path) -> None:
    import torch
    from open_clip.model import CLIP

    from rbctl.files import write_json, write_safetensors

    vision = {"image_size": 32, "layers": 3, "width": 48, "head_width": 12, "mlp_ratio": 2.0, "patch_size": 8}
    text = {"context_length": 16, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1}
    config = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}
    torch.manual_seed(0)
    write_json(place / "open_clip_config.json", config)
    write_safetensors(place / "model.safetensors", CLIP(**config).state_dict(), {})


def _video(inputs: Inputs, place: Path) -> None:
    from tiny_video import write_cogvideox

    write_cogvideox(place)


def _work(inputs: Inputs, place: Path) -> None:
    inputs.rbctl(f"pretrain renders {_PRETRAIN.replace('--work work', f'--work {place.name}')}")


_MADE: Mapping[str, Callable[[Inputs, Path], None]] = {
    "tiny": _tiny,
    "hug": _hug,
    "official": _official,
    "raw": _raw,
    "annotated": _annotated,
    "prompts": _prompts,
    "lora": _lora,
    "checkpoints": _checkpoints,
    "sampled": _sampled,
    "ablation": _ablation,
    "photographs": _photographs,
    "clip": _clip,
    "video": _video,
    "work": _work,
    "custom_nodes": lambda inputs, place: place.mkdir(parents=True),
}
