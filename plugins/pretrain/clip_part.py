"""Part ``clip``: text and image encoder trained together on what words say of pictures.

Pictures are individuals (portraits, and crops out of scenes) and whole scenes; texts are descriptions that tell more or
less of a look, and captions. A text that happens to be true of another picture of the batch is no negative of it, and
some texts are made to be wrong in one thing alone, which random batches hardly ever have.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize

from rbctl.bundle.tokenizer import END, write_small_tokenizer
from rbctl.files import write_json
from rbctl.menagerie import SPECIES
from rbctl.plugins.pretrain import renders
from rbctl.plugins.pretrain.architecture import CLIP_VISION, CLIPSELF, TEXT_1, TEXT_2
from rbctl.plugins.pretrain.bundle import write_tokenizers
from rbctl.plugins.pretrain.clip_texts import (
    SIZES,
    UNTOLD,
    describe,
    individual_text,
    scene_text,
    true_of,
    with_article,
    wrong_individual_text,
    wrong_scene_text,
)
from rbctl.plugins.pretrain.config import PretrainConfig
from rbctl.plugins.pretrain.loop import Part
from rbctl.plugins.pretrain.weights import open_clip_names, write_network, write_weights
from rbctl.plugins.pretrain.windows import WHOLE, cut, embeddings, square
from rbctl.relations import load_relation

_SIDE = CLIP_VISION["image_size"]  # in pixels
_PATCH = CLIP_VISION["patch_size"]
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


class Temperature(nn.Module):
    """CLIP's learned temperature."""

    def __init__(self) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self) -> torch.Tensor:
        return self.logit_scale.clamp(max=math.log(_HIGHEST_SCALE)).exp()


def thinned_embedding(vision: Any, pixels: torch.Tensor, patches: torch.Tensor | None) -> torch.Tensor:
    """Projected embeddings of pictures of which only some patches are looked at.

    Args:
        vision: ``CLIPVisionModelWithProjection``.
        pixels: (B, 3, H, W), normalised.
        patches: (B, K) their numbers; None for all.
    """
    model = vision.vision_model
    x = model.embeddings(pixels)
    if patches is not None:
        rows = torch.cat((torch.zeros_like(patches[:, :1]), patches + 1), dim=1)[..., None]  # the class token first
        x = x.gather(1, rows.expand(-1, -1, x.shape[-1]))
    x = model.encoder(inputs_embeds=model.pre_layrnorm(x)).last_hidden_state
    return vision.visual_projection(model.post_layernorm(x[:, 0]))


class ClipPart(Part):
    """See :class:`rbctl.plugins.pretrain.loop.Part`."""

    name = "clip"

    def __init__(self, config: PretrainConfig, device: torch.device) -> None:
        from transformers import (
            CLIPTextConfig,
            CLIPTextModelWithProjection,
            CLIPTokenizer,
            CLIPVisionConfig,
            CLIPVisionModelWithProjection,
        )

        super().__init__(config, device)
        self.steps = config.clip_steps
        self.relations = [load_relation(name) for name in renders.relations(config.work / "renders")]
        self.symmetric = np.array([relation.symmetric for relation in self.relations])
        # In memory: what every step asks of many rows. Pictures stay on the disk.
        self.boxes, self.looks = self.scenes.boxes.all(), self.scenes.individuals.all()
        self.counts = self.scenes.counts
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
        with TemporaryDirectory() as folder:
            write_small_tokenizer(Path(folder), END)
            self.tokenizer = CLIPTokenizer.from_pretrained(folder, trust_remote_code=False)
        self.tokens: dict[str, list[int]] = {}

    def modules(self) -> dict[str, nn.Module]:
        return {"text": self.text, "vision": self.vision, "temperature": self.temperature}

    def loss(self, step: int, chance: torch.Generator) -> tuple[torch.Tensor, Mapping[str, Any]]:
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=chance)))
        pixels, looks, relation, background, texts, wrong = self._batch(rng)
        patches = None
        if step < _THINNED * self.steps:
            order = torch.rand(len(pixels), (_SIDE // _PATCH) ** 2, generator=chance)
            patches = order.argsort(1)[:, :_KEPT].to(self.device)
        unique = list(dict.fromkeys((*texts, *wrong)))
        place = {text: number for number, text in enumerate(unique)}
        own = torch.tensor([place[text] for text in texts], device=self.device)
        true = torch.from_numpy(true_of(unique, looks, relation, background, self.symmetric)).to(self.device)
        images = normalize(thinned_embedding(self.vision, pixels, patches).float(), dim=-1)
        embeds = self.embed_texts([text.words for text in unique])
        loss, first = contrastive_loss(images, embeds, own, true, self.temperature())
        return loss, {"first": first.detach(), "scale": self.temperature().detach()}

    def _batch(self, rng: np.random.Generator) -> tuple[Any, ...]:
        """Pixels, then of each picture (looks, relation, background, own text), and wrong texts."""
        half = self.batch_size // 2
        alone = round(half * _PORTRAITS)
        portraits = rng.integers(len(self.portraits), size=alone)
        crops = self.shown[rng.integers(len(self.shown), size=half - alone)]
        whole = rng.integers(len(self.scenes), size=self.batch_size - half)
        scenes = np.concatenate((crops[:, 0], whole))
        pictures = np.concatenate((self.portraits.pictures[portraits], self.scenes.pictures[scenes]))
        boxes = np.tile(np.array(WHOLE, np.float32), (self.batch_size, 1))
        for row, (scene, role) in enumerate(crops, alone):
            boxes[row] = square(self.boxes[scene, role], float(rng.uniform(0.0, 0.3)))
        for close in np.flatnonzero(rng.random(half) < _CLOSE):
            boxes[close] = _part(boxes[close], rng)
        # Whom a picture shows: in a crop the other one may be seen too, so a text on it is no negative.
        alone_looks = np.full((alone, *self.looks.shape[1:]), renders.NOBODY, self.looks.dtype)
        alone_looks[:, 0] = self.portrait_looks[portraits]
        looks = np.concatenate((alone_looks, self.looks[scenes]))
        owners = [*self.portrait_looks[portraits], *(self.looks[scene, role] for scene, role in crops)]
        relation = np.concatenate((np.full(half, UNTOLD), self.numbers[whole]))
        background = np.concatenate((np.full(half, UNTOLD), self.backgrounds[whole]))
        texts = [individual_text(look, rng) for look in owners]
        wrong = [wrong_individual_text(look, rng) for look in owners if rng.random() < _WRONG]
        for scene in whole:
            number = int(self.numbers[scene])
            facts = (self.looks[scene, : self.counts[scene]].tolist(), int(self.backgrounds[scene]), rng)
            texts.append(scene_text(self.relations[number], number, *facts))
            if rng.random() < _WRONG and (text := wrong_scene_text(self.relations, number, *facts)):
                wrong.append(text)
        mirrored = rng.random(self.batch_size) < 0.5  # no text names a side
        return cut(pictures, boxes, _SIDE, self.device, mirrored), looks, relation, background, texts, wrong

    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """(T, D), normalised. Short and long texts go apart, each lot cut to its longest."""
        ids = [self._ids(text) for text in texts]
        order = sorted(range(len(ids)), key=lambda number: len(ids[number]))
        parts = []
        for lot in (order[: len(order) // 2], order[len(order) // 2 :]):
            if lot:
                longest = len(ids[lot[-1]])
                filled = [ids[number] + [TEXT_2["eos_token_id"]] * (longest - len(ids[number])) for number in lot]
                parts.append(self.text(torch.tensor(filled, device=self.device)).text_embeds)
        back = torch.tensor(order, device=self.device).argsort()
        return normalize(torch.cat(parts)[back].float(), dim=-1)

    def _ids(self, text: str) -> list[int]:
        if text not in self.tokens:
            most = TEXT_2["max_position_embeddings"]
            self.tokens[text] = self.tokenizer(text, truncation=True, max_length=most)["input_ids"]
        return self.tokens[text]

    def _embed_pictures(self, pictures: np.ndarray) -> torch.Tensor:
        return embeddings(lambda x: thinned_embedding(self.vision, x, None), pictures, _SIDE, self.device)

    @torch.no_grad()
    def preview(self, folder: Path, step: int) -> Mapping[str, float]:
        """Zero-shot answers on held-out individuals: shares of right ones."""
        unseen = self.unseen
        rows = np.flatnonzero(unseen.counts == 2)[:_MEASURED]  # direction is a matter of two
        looks = torch.from_numpy(unseen.individuals[rows][:, :2]).long().to(self.device)  # (count, 2, 4)
        portraits = self._embed_pictures(unseen.portraits[rows][:, :2].reshape(-1, *unseen.pictures.shape[1:]))
        relations = [number for number, relation in enumerate(self.relations) if len(relation.roles) == 2]
        shares = {}
        for name, attribute, words in (("coat", 1, 1), ("pattern", 3, 2)):
            # Every species x every value: one pass over the table answers both.
            table = np.zeros((len(SPECIES), SIZES[attribute], 4), int)
            table[..., 0], table[..., attribute] = np.ogrid[: len(SPECIES), : SIZES[attribute]]
            names = [with_article(describe(look, words)[0]) for look in table.reshape(-1, 4).tolist()]
            scores = (portraits @ self.embed_texts(names).T).unflatten(1, table.shape[:2]) * self.temperature()
            shares[name] = scores.logsumexp(1).argmax(1) == looks[..., attribute].flatten()
            if name == "coat":
                shares["species"] = scores.logsumexp(2).argmax(1) == looks[..., 0].flatten()
        pairs = [tuple(pair) for pair in looks[..., 0].tolist()]
        captions = {
            pair: [self.relations[number].prompt([SPECIES[k] for k in pair]) for number in relations]
            for pair in (*pairs, *(pair[::-1] for pair in pairs))
        }
        unique = list(dict.fromkeys(itertools.chain(*captions.values())))
        embeds = torch.cat([self.embed_texts(unique[lot]) for lot in renders.lots(len(unique), 256)])
        place = {text: number for number, text in enumerate(unique)}
        scenes = self._embed_pictures(unseen.pictures[rows])[:, :, None]
        straight, turned = (  # (count, relations)
            (embeds[torch.tensor([[place[text] for text in captions[pair]] for pair in ordered])] @ scenes)[..., 0]
            for ordered in (pairs, [pair[::-1] for pair in pairs])
        )
        wanted = torch.tensor([relations.index(number) for number in unseen.relation[rows]], device=self.device)
        shares["relation"] = torch.maximum(straight, turned).argmax(1) == wanted
        directed = (straight > turned).gather(1, wanted[:, None])[:, 0]
        tells = [
            not self.symmetric[relations[number]] and a != b
            for (a, b), number in zip(pairs, wanted.tolist(), strict=True)
        ]
        shares["direction"] = directed[torch.tensor(tells)] if any(tells) else torch.zeros(1)
        return {name: float(right.float().mean()) for name, right in shares.items()}

    def finish(self) -> None:
        """Both text encoders share their weights; clip_vision and clipself too, each in its own naming."""
        text, vision = self.text.state_dict(), self.vision.state_dict()
        first = {name: tensor for name, tensor in text.items() if name != "text_projection.weight"}
        write_network(self.bundle / "text_encoder", TEXT_1, first)
        write_network(self.bundle / "text_encoder_2", TEXT_2, text)
        write_network(self.bundle / "clip_vision", CLIP_VISION, vision)
        local = {**CLIPSELF, "quick_gelu": CLIP_VISION["hidden_act"] == "quick_gelu"}
        write_json(self.bundle / "clipself" / "open_clip_config.json", local)
        write_weights(self.bundle / "clipself" / "model.safetensors", open_clip_names(vision))
        write_tokenizers(self.bundle)


def _part(box: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A square part of a square box, half its side at least."""
    x0, y0, x1, y1 = box
    side = (x1 - x0) * rng.uniform(0.5, 1.0)
    left, top = rng.uniform(x0, x1 - side), rng.uniform(y0, y1 - side)
    return np.array((left, top, left + side, top + side), np.float32)
