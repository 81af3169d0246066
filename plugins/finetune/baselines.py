"""The baselines of ``rbctl finetune``: what is learned without image prompts, from pictures and captions alone.

relation_inversion: an embedding <R> on the relation's targets, with ReVersion's steering loss (arXiv 2303.13495).
textual_inversion: an embedding of one subject (arXiv 2208.01618). dreambooth: the whole UNet, on a subject's pictures
with a rare token and class pictures beside (arXiv 2208.12242). dreambooth_lora: a LoRA from the same, by its recipe on
all attention layers, as diffusers' example does. custom_diffusion: K and V of attn2 and an embedding before the noun,
with class pictures beside (arXiv 2212.04488).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import torch
from torch import nn

from rbctl import denoising, embeddings, lora, losses, unet_weights
from rbctl.bundle.bundle import Bundle
from rbctl.bundle.load import load
from rbctl.conditioning import Conditioning
from rbctl.device import DTYPES
from rbctl.draws import generator
from rbctl.embeddings import Embedding
from rbctl.errors import InputError
from rbctl.plugins.finetune import captioned_pictures, metadata
from rbctl.plugins.finetune.captioned_pictures import Picture, pictures_hash
from rbctl.plugins.finetune.config import UNET_PARTS, WITH_LORA, FinetuneConfig
from rbctl.plugins.finetune.loop import Task
from rbctl.plugins.finetune.objective import Objective
from rbctl.plugins.finetune.samples import MicroBatch, mean_loss, micro_batches
from rbctl.relations import Relation, load_relation
from rbctl.runs import Run, tuned

_POSITIVES = 4  # basis prepositions of a sample, as in ReVersion's code
_RARE = {"dreambooth": "sks", "dreambooth_lora": "sks", "custom_diffusion": "<new1>"}  # stand before the noun
# modelspec's words for the files; of a whole UNet it has none, of Custom Diffusion's weights this one is ours.
_EMBEDDING = "textual-inversion"
_KINDS = {"dreambooth": "", "dreambooth_lora": "lora", "custom_diffusion": "custom-diffusion"}
_WITH_EMBEDDING = ("relation_inversion", "textual_inversion", "custom_diffusion")
_STOP_WORDS = ("a", "an", "the", "is", "are", "and", ".", ",")


class Baseline:
    """The methods; see :class:`~rbctl.plugins.finetune.run.Method`.

    Attributes:
        relation: of the method that learns one.
        title, name: what is learned, in words and as its file is called.
        token: the new word: "<ride>", "<cat>", "<new1>" or "sks".
        instance: what a prompt says for what is learned: the token, or "sks cat".
        words: in whose place a prompt says it.
        embedding: what the token stands for, where that is learned.
        part: of the UNet's own weights, which is learned; None where none are.
    """

    relation: Relation | None = None
    pictures: list[Picture]
    class_pictures: list[Picture]
    bundle: Bundle
    encoded: dict[str, torch.Tensor]
    encoded_class: dict[str, torch.Tensor] | None = None
    embedding: Embedding | None = None

    def __init__(self, config: FinetuneConfig) -> None:
        self.config = config
        if config.caption is not None and config.caption.count("{}") != 1:
            raise InputError(f"--caption {config.caption!r}: write {{}} once, where the subject is named")
        if config.method == "relation_inversion":
            if config.relation is None:
                what = "a shipped name (ride, hug, ...) or the path of a relation's YAML"
                raise InputError(f"--relation: say which, {what}")
            self.relation = load_relation(config.relation)
            self.title = self.relation.name
            self.words: tuple[str, ...] = (self.relation.predicate, *self.relation.forms)
        elif config.class_noun:
            self.title = config.data.resolve().name if config.data else config.class_noun
            self.words = (config.class_noun,)
        else:
            raise InputError(f"--method {config.method}: needs --class-noun, what the subject is: cat")
        self.name = self.title.replace(" ", "_")
        self.output = config.output or tuned(f"{config.method}-{self.name}", config.bundle)
        word = self.relation.name if self.relation else self.words[0].replace(" ", "_")
        self.token = config.token or _RARE.get(config.method, f"<{word}>")
        if config.method in _WITH_EMBEDDING:
            embeddings.check_token(self.token, "--token")
        self.instance = f"{self.token} {config.class_noun}" if config.method in _RARE else self.token
        self.part = UNET_PARTS.get(config.method)

    def render(self, resolution: int) -> None:
        self.read(resolution)

    def read(self, resolution: int) -> dict[str, Any]:
        config, output = self.config, self.output
        self.class_pictures = []
        if self.relation:
            self.pictures = captioned_pictures.of_relation(config, self.relation, self.token, output, resolution)
        else:
            self.pictures = captioned_pictures.of_subject(config, self.instance, output, resolution)
        if config.method in _RARE:
            self.class_pictures = captioned_pictures.of_class(config, output, resolution)
        own, prior = (pictures_hash(p) if p else None for p in (self.pictures, self.class_pictures))
        return {"data": own, "prior": prior}

    def load(self, run: Run, resolution: int, device: torch.device, facts: Mapping[str, Any]) -> Bundle:
        config, dtype = self.config, DTYPES[facts["precision"]]
        self.resolution = resolution
        if config.method in _RARE and not self.class_pictures and run.world.first:
            click.echo("no class pictures, so no prior preservation; --prior FOLDER names some", err=True)
        bundle = self.bundle = load(config.bundle, device, dtype, local_encoder=False, image_encoders=False)
        self.encoded = captioned_pictures.encode(bundle, self.pictures, config, resolution)
        if self.class_pictures:
            self.encoded_class = captioned_pictures.encode(bundle, self.class_pictures, config, resolution)
        if config.method in _WITH_EMBEDDING:
            start = config.initializer or ("and" if self.relation else self.words[0])
            first, second = (
                nn.Parameter(embeddings.initial(tokenizer, encoder, start, config.vectors).to(device))
                for tokenizer, encoder in _text_towers(bundle)
            )
            self.embedding = Embedding(self.token, (first, second))
        return bundle

    def task(self, facts: Mapping[str, Any]) -> Task:
        config, bundle, embedding = self.config, self.bundle, self.embedding
        parameters: dict[str, nn.Parameter] = {}
        if embedding:
            parameters = dict(zip(embeddings.KEYS, embedding.vectors, strict=True))  # type: ignore[arg-type]
        if self.part:
            parameters |= unet_weights.parameters(bundle.unet, self.part)
        elif config.method in WITH_LORA:
            parameters |= lora.named_parameters(bundle.unet)
        steering = None
        if embedding and self.relation and config.steering_weight:
            steering = Steering(bundle, embedding, config.seed)
        objective = Objective.of(bundle, config)
        kind = _KINDS.get(config.method, _EMBEDDING)

        def caption(number: int, own: bool, picture: int) -> str:
            captions = (self.pictures if own else self.class_pictures)[picture].captions
            return captions[int(torch.randint(len(captions), (), generator=generator(config.seed, "caption", number)))]

        def loss(model: Any, numbers: Sequence[int]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            batches = micro_batches(
                self.encoded, self.encoded_class, numbers, config, objective.timesteps, bundle.device
            )
            return mean_loss(batches, lambda batch: loss_of(model, batch))

        def loss_of(model: Any, batch: MicroBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            noisy, target = objective.noised(batch)
            numbers = batch.encoded["sample"].tolist()
            shown = zip(numbers, (batch.own > 0).tolist(), batch.encoded["number"].tolist(), strict=True)
            captions = [caption(*picture) for picture in shown]
            output = model(captions, noisy, batch.timesteps, batch.encoded["time_ids"])
            error = losses.denoising(output, target)
            total = torch.where(batch.own > 0, error, config.prior_weight * error).mean()
            parts = batch.means({"denoising": error})
            if steering:
                steered = torch.stack([steering(*pair) for pair in zip(captions, numbers, strict=True)]).mean()
                total, parts["steering"] = total + config.steering_weight * steered, steered.detach()
            return total, parts

        return Task(
            self.name,
            Denoiser(bundle, embedding),
            parameters,
            loss,
            metadata=lambda step: self._metadata(kind, step, facts),
            export=lambda path, step: self.export(path, step, facts),
        )

    def _write(self, path: Path, step: int, facts: Mapping[str, Any], embedding_path: Path) -> None:
        """Write what was learned by a step: the embedding, the LoRA or the UNet's weights, or two of them."""
        config, unet = self.config, self.bundle.unet
        if self.embedding:
            learned = dataclasses.replace(self.embedding, metadata=self._metadata(_EMBEDDING, step, facts))
            embeddings.save(embedding_path, learned)
        stated = self._metadata(_KINDS.get(config.method, _EMBEDDING), step, facts)
        if self.part:
            unet_weights.save(path, unet, self.part, DTYPES[config.save_precision], stated)
        elif config.method in WITH_LORA:
            lora.save(path, lora.state(unet), stated, config.alpha, config.format, lora.sdxl_blocks(unet))

    def export(self, path: Path, step: int, facts: Mapping[str, Any]) -> None:
        """Write what was learned by a step into a file; of Custom Diffusion the embedding into one beside it."""
        self._write(path, step, facts, path.with_stem(f"{path.stem}-embedding") if self.part else path)

    def save(self, steps: int, facts: Mapping[str, Any]) -> Path:
        path, embedding_path = self.output / f"{self.name}.safetensors", self.output / "embedding.safetensors"
        self._write(path, steps, facts, embedding_path)
        return embedding_path if self.embedding and not self.part else path

    def _metadata(self, kind: str, step: int, facts: Mapping[str, Any]) -> dict[str, str]:
        """What a file of a kind says of itself. Where there is an embedding, it alone replaces a prompt's words."""
        config, bundle = self.config, self.bundle
        own: dict[str, str] = {"rbctl.method": config.method}
        if kind == _EMBEDDING or not self.embedding:
            own["rbctl.words"] = json.dumps(self.words)
            own |= {"rbctl.instance": self.instance} if config.method in _RARE else {}
        if kind == _EMBEDDING:
            own["rbctl.token"] = self.token
        if kind == "lora":
            captions = [caption for picture in self.pictures for caption in picture.captions]
            own |= metadata.of_lora(config, bundle, self.name, captions, self.resolution, step)
        title = f"{self.title}, {config.method}"
        return {**metadata.of_file(config, self.output, bundle, kind, title, self.instance, str(facts["data"])), **own}


class Denoiser(nn.Module):
    """Captions and noisy latents -> the UNet's output, without image prompts.

    With an embedding the captions are encoded anew at every call, else once each.
    """

    def __init__(self, bundle: Bundle, learned: Embedding | None) -> None:
        super().__init__()
        self.bundle, self.learned = bundle, learned
        self.unet = bundle.unet
        self.vectors = nn.ParameterList(learned.vectors if learned else ())
        self.known: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def forward(
        self, captions: Sequence[str], noisy: torch.Tensor, timesteps: torch.Tensor, time_ids: torch.Tensor
    ) -> torch.Tensor:
        """(B, C, h, w) of the UNet for (B, C, h, w) latents."""
        embeds, pooled = self._text(captions)
        conditioning = Conditioning(prompt_embeds=embeds, pooled_prompt_embeds=pooled, time_ids=time_ids)
        return denoising.predict(self.unet, noisy, timesteps, conditioning)

    def _text(self, captions: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        if self.learned:
            return self.bundle.encode_prompts(captions, [self.learned])
        for caption in captions:
            if caption not in self.known:
                self.known[caption] = self.bundle.encode_prompts([caption])
        embeds, pooled = zip(*(self.known[caption] for caption in captions), strict=True)
        return torch.cat(embeds), torch.cat(pooled)


class Steering:
    """ReVersion's steering loss of samples: the prepositions that are one token, against a caption's other words."""

    def __init__(self, bundle: Bundle, learned: Embedding, seed: int) -> None:
        self.learned, self.seed = learned, seed
        self.sides = []
        for tokenizer, encoder in _text_towers(bundle):
            basis = embeddings.single_tokens(tokenizer, embeddings.PREPOSITIONS)
            if not basis:
                raise InputError(f"{bundle.folder}: no preposition is one token there; take --steering-weight 0")
            ordinary = {*basis, *embeddings.single_tokens(tokenizer, _STOP_WORDS)}
            self.sides.append((tokenizer, encoder.get_input_embeddings().weight.detach(), basis, ordinary))

    def __call__(self, caption: str, number: int) -> torch.Tensor:
        """The loss of sample ``number``, mean over both text encoders."""
        terms = []
        for vectors, (tokenizer, table, basis, ordinary) in zip(self.learned.vectors, self.sides, strict=True):
            order = torch.randperm(len(basis), generator=generator(self.seed, "steering", number))
            positives = [basis[k] for k in order[:_POSITIVES].tolist()]
            pieces = embeddings.pieces(tokenizer, caption, [self.learned])
            negatives = [k for k in pieces if k >= 0 and k not in ordinary]
            terms.append(embeddings.steering_loss(vectors, table[positives].float(), table[negatives].float()))
        return torch.stack(terms).mean()


def _text_towers(bundle: Bundle) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """Tokenizer and text encoder, of each of SDXL's two."""
    return (bundle.tokenizer, bundle.text_encoder), (bundle.tokenizer_2, bundle.text_encoder_2)
