"""Part ``clip``: text and image encoder trained together on what words say of pictures.

Pictures are individuals (portraits, and crops out of scenes) and whole scenes; texts are descriptions that tell more or
less of a look, and captions. A text that happens to be true of another picture of the batch is no negative of it, and
some texts are made to be wrong in one thing alone, which random batches hardly ever have.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize
from torchvision.ops import roi_align

from rbctl.bundle.tokenizer import END, write_small_tokenizer
from rbctl.files import write_json, write_safetensors
from rbctl.image_prompt import CLIP_MEAN, CLIP_STD
from rbctl.menagerie import SPECIES
from rbctl.plugins.pretrain import renders
from rbctl.plugins.pretrain.architecture import CLIP_VISION, CLIPSELF, TEXT_1, TEXT_2
from rbctl.plugins.pretrain.bundle import write_tokenizers
from rbctl.plugins.pretrain.clip_texts import (
    UNTOLD,
    describe,
    individual_text,
    scene_text,
    sizes,
    true_of,
    with_article,
    wrong_individual_text,
    wrong_scene_text,
)
from rbctl.plugins.pretrain.config import PretrainConfig
from rbctl.plugins.pretrain.weights import halved, write_network
from rbctl.relations import load_relation

_SIDE: Any = CLIP_VISION["image_size"]  # in pixels
_PATCH: Any = CLIP_VISION["patch_size"]
_KEPT = 40  # of 64 patches, while ``_THINNED`` of the training lasts: two thirds of the time, hardly less is learnt
_THINNED = 0.75
_PORTRAITS = 0.5  # of the pictures of individuals; the others are cut out of scenes
_CLOSE = 0.3  # of them show a part at up to twice its size: the local encoder reads patches of that scale
_WRONG = 0.5  # of the pictures bring a text that is wrong in one thing
_LEAST_SEEN = 0.015  # of the scene's area: an individual that shows less is no picture of it
_HIGHEST_SCALE = 100.0
_MEASURED = 128  # held-out scenes of an evaluation


def contrastive_loss(
    images: torch.Tensor, texts: torch.Tensor, own: torch.Tensor, true: torch.Tensor, scale: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """CLIP's loss over (image, own text) pairs, and the share of images whose own text comes first.

    Args:
        images: (B, D), normalised.
        texts: (T, D), normalised, every text once; more of them than images are wrong ones.
        own: (B,) index of each image's text.
        true: (B, T) bool: pairs that are no negatives (an image's own text among them or not).
        scale: scalar, 1 / temperature.
    """
    logits = scale * images @ texts.T
    mine = torch.zeros_like(true).scatter_(1, own[:, None], True)
    to_texts = logits.masked_fill(true & ~mine, -torch.inf)
    # Text j = own[i] against the images: those it is true of are no negatives, image i is the positive.
    among = logits.T[own].masked_fill(
        true.T[own] & ~torch.eye(len(own), dtype=torch.bool, device=own.device), -torch.inf
    )
    first = (to_texts.argmax(1) == own).float().mean()
    numbers = torch.arange(len(own), device=own.device)
    return (cross_entropy(to_texts, own) + cross_entropy(among, numbers)) / 2, first


def open_clip_visual(vision: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state of a transformers ``CLIPVisionModelWithProjection`` in open_clip's naming, ``visual.`` before each."""
    renamed = {
        "vision_model.embeddings.class_embedding": "class_embedding",
        "vision_model.embeddings.patch_embedding.weight": "conv1.weight",
        "vision_model.embeddings.position_embedding.weight": "positional_embedding",
    }
    parts = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    parts["self_attn.out_proj"] = "attn.out_proj"
    layers = 1 + max(int(name.split(".")[3]) for name in vision if name.startswith("vision_model.encoder.layers."))
    found = {"visual.proj": vision["visual_projection.weight"].T}
    for old, new in renamed.items():
        found[f"visual.{new}"] = vision[old]
    for kind in ("weight", "bias"):
        found[f"visual.ln_pre.{kind}"] = vision[f"vision_model.pre_layrnorm.{kind}"]
        found[f"visual.ln_post.{kind}"] = vision[f"vision_model.post_layernorm.{kind}"]
        for number in range(layers):
            old, new = f"vision_model.encoder.layers.{number}", f"visual.transformer.resblocks.{number}"
            for theirs, ours in parts.items():
                found[f"{new}.{ours}.{kind}"] = vision[f"{old}.{theirs}.{kind}"]
            rows = [vision[f"{old}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
            found[f"{new}.attn.in_proj_{kind}"] = torch.cat(rows)
    return found


class Temperature(nn.Module):
    """CLIP's learned temperature."""

    def __init__(self) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self) -> torch.Tensor:
        return self.logit_scale.clamp(max=math.log(_HIGHEST_SCALE)).exp()


def thinned_embedding(vision: Any, pixels: torch.Tensor, kept: torch.Tensor | None) -> torch.Tensor:
    """Projected embeddings of pictures of which only some patches are looked at.

    Args:
        vision: ``CLIPVisionModelWithProjection``.
        pixels: (B, 3, H, W), normalised.
        kept: (B, K) numbers of patches; None for all.
    """
    model = vision.vision_model
    x = model.embeddings(pixels)
    if kept is not None:
        rows = torch.cat((torch.zeros_like(kept[:, :1]), kept + 1), dim=1)[..., None]  # the class token first
        x = x.gather(1, rows.expand(-1, -1, x.shape[-1]))
    x = model.encoder(inputs_embeds=model.pre_layrnorm(x)).last_hidden_state
    return vision.visual_projection(model.post_layernorm(x[:, 0]))


def cut(pictures: torch.Tensor, boxes: torch.Tensor, flip: torch.Tensor, size: int) -> torch.Tensor:
    """Square windows of pictures, averaged down to ``size`` and normalised for CLIP.

    Args:
        pictures: uint8 (B, 3, H, W).
        boxes: (B, 4) relative xyxy.
        flip: (B,) bool, mirrored.

    Returns:
        (B, 3, size, size).
    """
    side = pictures.shape[-1]
    rows = torch.arange(len(boxes), device=boxes.device, dtype=boxes.dtype)[:, None]
    found = roi_align(pictures.float(), torch.cat((rows, boxes * side), dim=1), size, 1.0, 2, True) / 255
    mean, std = (found.new_tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    found = (found - mean) / std
    return torch.where(flip[:, None, None, None], found.flip(-1), found)


def square(box: Sequence[float], margin: float) -> tuple[float, float, float, float]:
    """The square around a box, wider by ``margin`` of its side, moved into the picture."""
    x0, y0, x1, y1 = (float(v) for v in box)
    side = min(max(x1 - x0, y1 - y0) * (1 + margin), 1.0)
    left = min(max((x0 + x1 - side) / 2, 0.0), 1 - side)
    top = min(max((y0 + y1 - side) / 2, 0.0), 1 - side)
    return left, top, left + side, top + side


class ClipPart:
    """See :class:`rbctl.plugins.pretrain.loop.Part`."""

    def __init__(self, config: PretrainConfig, device: torch.device) -> None:
        from transformers import (
            CLIPTextConfig,
            CLIPTextModelWithProjection,
            CLIPTokenizer,
            CLIPVisionConfig,
            CLIPVisionModelWithProjection,
        )

        folder = config.work / "renders"
        self.device, self.batch_size, self.learning_rate = device, config.clip_batch_size, config.clip_learning_rate
        self.bundle, self.steps = config.work / "bundle", config.clip_steps
        self.scenes, self.portraits = renders.scenes(folder, "all"), renders.portraits(folder)
        self.unseen = renders.scenes(folder, "held_out")
        self.relations = [load_relation(name) for name in renders.relations(folder)]
        self.symmetric = np.array([relation.symmetric for relation in self.relations])
        # In memory: what every step asks of many rows. Pictures stay on the disk.
        self.boxes, self.looks = self.scenes.boxes.all(), self.scenes.individuals.all()
        self.numbers, self.backgrounds = self.scenes.relation.all(), self.scenes.background.all()
        self.portrait_looks = self.portraits.individuals.all()
        seen = self.scenes.mask32.all().mean((-2, -1)) / 255
        self.shown = np.argwhere(seen > _LEAST_SEEN)  # (n, 2): scene and role
        # transformers' own attention: for 65 tokens on a CPU it is faster than torch's fused one.
        kind = "eager" if device.type == "cpu" else "sdpa"
        self.text = CLIPTextModelWithProjection(CLIPTextConfig(**TEXT_2, attn_implementation=kind)).to(device)
        self.vision = CLIPVisionModelWithProjection(CLIPVisionConfig(**CLIP_VISION, attn_implementation=kind))
        self.vision = self.vision.to(device)
        self.temperature = Temperature().to(device)
        with tempfile.TemporaryDirectory() as name:
            write_small_tokenizer(Path(name), END)
            self.tokenizer = CLIPTokenizer.from_pretrained(name, trust_remote_code=False)
        self.tokens: dict[str, list[int]] = {}

    def modules(self) -> dict[str, nn.Module]:
        return {"text": self.text, "vision": self.vision, "temperature": self.temperature}

    def loss(self, step: int, generator: torch.Generator) -> tuple[torch.Tensor, Mapping[str, Any]]:
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        pixels, looks, relation, background, texts, wrong = self._batch(rng)
        kept = None
        if step < _THINNED * self.steps:
            order = torch.rand(len(pixels), (_SIDE // _PATCH) ** 2, generator=generator)
            kept = order.argsort(1)[:, :_KEPT].to(self.device)
        unique = list(dict.fromkeys((*texts, *wrong)))
        place = {said: number for number, said in enumerate(unique)}
        own = torch.tensor([place[said] for said in texts], device=self.device)
        true = torch.from_numpy(true_of(unique, looks, relation, background, self.symmetric)).to(self.device)
        images = normalize(thinned_embedding(self.vision, pixels, kept).float(), dim=-1)
        embeds = self.embed_texts([said.text for said in unique])
        loss, first = contrastive_loss(images, embeds, own, true, self.temperature())
        return loss, {"first": first.detach(), "scale": self.temperature().detach()}

    def _batch(self, rng: np.random.Generator) -> tuple[Any, ...]:
        """Pixels, then of each picture (looks, relation, background, own text), and wrong texts."""
        half = self.batch_size // 2
        alone = round(half * _PORTRAITS)
        rows = rng.integers(len(self.portraits), size=alone)
        crops = self.shown[rng.integers(len(self.shown), size=half - alone)]
        whole = rng.integers(len(self.scenes), size=self.batch_size - half)
        scenes = np.concatenate((crops[:, 0], whole))
        pictures = np.concatenate((self.portraits.pictures[rows], self.scenes.pictures[scenes]))
        boxes = np.tile(np.array((0.0, 0.0, 1.0, 1.0), np.float32), (self.batch_size, 1))
        for row, (scene, role) in enumerate(crops, alone):
            boxes[row] = square(self.boxes[scene, role], float(rng.uniform(0.0, 0.3)))
        for at in np.flatnonzero(rng.random(half) < _CLOSE):
            boxes[at] = _part(boxes[at], rng)
        # Whom a picture shows: in a crop the other one may be seen too, so a text on it is no negative.
        looks = np.concatenate((self.portrait_looks[rows][:, None].repeat(2, 1), self.looks[scenes]))
        owner = [*self.portrait_looks[rows], *(self.looks[scene, role] for scene, role in crops)]
        relation = np.concatenate((np.full(half, UNTOLD), self.numbers[whole]))
        background = np.concatenate((np.full(half, UNTOLD), self.backgrounds[whole]))
        texts = [individual_text(look, rng) for look in owner]
        wrong = [wrong_individual_text(look, rng) for look in owner if rng.random() < _WRONG]
        for scene in whole:
            number = int(self.numbers[scene])
            facts = (self.looks[scene], int(self.backgrounds[scene]), rng)
            texts.append(scene_text(self.relations[number], number, *facts))
            if rng.random() < _WRONG:
                wrong.append(wrong_scene_text(self.relations, number, *facts))
        flip = torch.from_numpy(rng.random(self.batch_size) < 0.5).to(self.device)  # no text names a side
        pixels = cut(
            torch.from_numpy(pictures).to(self.device),
            torch.from_numpy(boxes).to(self.device),
            flip,
            _SIDE,
        )
        return pixels, looks, relation, background, texts, wrong

    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """(T, D), normalised. Short and long texts go apart, each lot cut to its longest."""
        rows = [self._ids(text) for text in texts]
        order = sorted(range(len(rows)), key=lambda number: len(rows[number]))
        parts = []
        for lot in (order[: len(order) // 2], order[len(order) // 2 :]):
            if lot:
                longest = len(rows[lot[-1]])
                filled = [rows[number] + [TEXT_2["eos_token_id"]] * (longest - len(rows[number])) for number in lot]
                parts.append(self.text(torch.tensor(filled, device=self.device)).text_embeds)
        back = torch.tensor(order, device=self.device).argsort()
        return normalize(torch.cat(parts)[back].float(), dim=-1)

    def _ids(self, text: str) -> list[int]:
        if text not in self.tokens:
            most = TEXT_2["max_position_embeddings"]
            self.tokens[text] = self.tokenizer(text, truncation=True, max_length=most)["input_ids"]
        return self.tokens[text]

    @torch.no_grad()
    def preview(self, folder: Path, step: int) -> Mapping[str, float]:
        """Zero-shot answers on held-out individuals: shares of right ones."""
        unseen = self.unseen
        count = min(_MEASURED, len(unseen))
        looks = unseen.individuals[:count].reshape(-1, 4)
        portraits = self._embed_pictures(unseen.portraits[:count].reshape(-1, 3, renders.SIZE, renders.SIZE))
        scenes = self._embed_pictures(unseen.pictures[:count])
        found = {}
        for name, part, words in (("coat", 1, 1), ("pattern", 3, 2)):
            # Every species x every value: one pass over the table answers both.
            table = np.zeros((len(SPECIES), sizes()[part], 4), int)
            table[..., 0], table[..., part] = np.arange(len(SPECIES))[:, None], np.arange(sizes()[part])[None]
            names = [with_article(describe(look, words)[0]) for look in table.reshape(-1, 4).tolist()]
            scores = (portraits @ self.embed_texts(names).T).unflatten(1, table.shape[:2]) * self.temperature()
            found[name] = _share(scores.logsumexp(1).argmax(1), looks[:, part])
            if name == "coat":
                found["species"] = _share(scores.logsumexp(2).argmax(1), looks[:, 0])
        pairs = [tuple(row) for row in unseen.individuals[:count][:, :, 0].tolist()]
        texts = [
            relation.prompt([SPECIES[a], SPECIES[b]])
            for a, b in dict.fromkeys([*pairs, *((b, a) for a, b in pairs)])
            for relation in self.relations
        ]
        unique = list(dict.fromkeys(texts))
        embeds = dict(zip(unique, torch.cat([self.embed_texts(lot) for lot in _lots(unique, 256)]), strict=True))
        right, directed, asymmetric = 0, 0, 0
        for image, (a, b), number in zip(scenes, pairs, unseen.relation[:count].tolist(), strict=True):
            straight, turned = (
                torch.stack([embeds[relation.prompt([SPECIES[p], SPECIES[q]])] for relation in self.relations]) @ image
                for p, q in ((a, b), (b, a))
            )
            right += int(torch.maximum(straight, turned).argmax()) == number
            if not self.symmetric[number] and a != b:
                asymmetric += 1
                directed += bool(straight[number] > turned[number])
        found["relation"], found["direction"] = right / count, directed / max(asymmetric, 1)
        return found

    def _embed_pictures(self, pictures: np.ndarray) -> torch.Tensor:
        parts = []
        for lot in np.array_split(pictures, max(1, len(pictures) // 64)):
            boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0]], device=self.device).expand(len(lot), 4)
            flip = torch.zeros(len(lot), dtype=torch.bool, device=self.device)
            pixels = cut(torch.from_numpy(lot).to(self.device), boxes, flip, _SIDE)
            parts.append(normalize(thinned_embedding(self.vision, pixels, None).float(), dim=-1))
        return torch.cat(parts)

    def finish(self, folder: Path) -> None:
        """Both text encoders share their weights; clip_vision and clipself too, each in its own naming."""
        text, vision = self.text.state_dict(), self.vision.state_dict()
        first = {name: tensor for name, tensor in text.items() if name != "text_projection.weight"}
        write_network(self.bundle / "text_encoder", TEXT_1, first)
        write_network(self.bundle / "text_encoder_2", TEXT_2, text)
        write_network(self.bundle / "clip_vision", CLIP_VISION, vision)
        local = {**CLIPSELF, "quick_gelu": CLIP_VISION["hidden_act"] == "quick_gelu"}
        write_json(self.bundle / "clipself" / "open_clip_config.json", local)
        weights = halved(open_clip_visual(vision))
        write_safetensors(self.bundle / "clipself" / "model.safetensors", weights, {"format": "pt"})
        write_tokenizers(self.bundle)


def _part(box: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A square part of a square box, half its side at least."""
    x0, y0, x1, y1 = box
    side = (x1 - x0) * rng.uniform(0.5, 1.0)
    left, top = rng.uniform(x0, x1 - side), rng.uniform(y0, y1 - side)
    return np.array((left, top, left + side, top + side), np.float32)


def _lots(rows: Sequence[str], size: int) -> list[Sequence[str]]:
    return [rows[first : first + size] for first in range(0, len(rows), size)]


def _share(found: torch.Tensor, wanted: np.ndarray) -> float:
    return float((found.cpu().numpy() == wanted).mean())


def build(config: PretrainConfig, device: torch.device) -> ClipPart:
    """The part, with first weights from torch's own generator."""
    return ClipPart(config, device)
