"""The baselines of ``rbctl finetune``: what is learned without image prompts, from pictures and captions alone.

relation_inversion: an embedding <R> on the relation's targets, with ReVersion's steering loss (arXiv 2303.13495).
textual_inversion: an embedding of one subject (arXiv 2208.01618). dreambooth_lora: a LoRA, by its recipe on all
attention layers, on a subject's pictures with a rare token and class pictures beside (arXiv 2208.12242), as diffusers'
example does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import torch
from torch import nn

from rbctl import attention, embeddings, lora, losses
from rbctl.bundle.catalogue import resolve
from rbctl.bundle.load import BASE, Bundle, fingerprint, generator_fingerprint, load, summary
from rbctl.conditioning import Conditioning
from rbctl.device import DTYPES
from rbctl.draws import generator
from rbctl.embeddings import Embedding
from rbctl.errors import InputError
from rbctl.options import to_yaml
from rbctl.plugins.finetune import folder, pictures
from rbctl.plugins.finetune.config import FinetuneConfig
from rbctl.plugins.finetune.loop import accelerated, train
from rbctl.plugins.finetune.objective import Schedule, draw, noised
from rbctl.plugins.finetune.pictures import Picture
from rbctl.relations import Relation, load_relation
from rbctl.runs import claim, tuned

_POSITIVES = 4  # basis prepositions of a sample, as in ReVersion's code
_STOP_WORDS = ("a", "an", "the", "is", "are", "and", ".", ",")


def run(config: FinetuneConfig) -> Path | None:
    """Learn what ``config.method`` says; returns the file (None on all ranks but the first).

    Raises:
        InputError: options, data or bundle are not what the method needs.
    """
    relation = _checked(config)
    words = (relation.predicate, *relation.forms) if relation else (str(config.class_noun),)
    token = _token(config, relation)
    name = relation.name if relation else config.data.resolve().name if config.data else str(config.class_noun)
    output = config.output or tuned(f"{config.method}-{name.replace(' ', '_')}", config.bundle)
    base = resolve(config.bundle)
    resolution = config.resolution or summary(base).resolution
    accelerator, precision = accelerated(config, output)
    main, device = accelerator.is_main_process, accelerator.device
    facts: dict[str, Any] = {
        "bundle": generator_fingerprint(base),
        "precision": precision,
        "processes": accelerator.num_processes,
    }
    with claim(output) if main else contextlib.nullcontext():
        if main:
            folder.check(output, config, facts)
            _pictures(config, relation, token, output, resolution)  # those that are drawn are then there for all ranks
        accelerator.wait_for_everyone()
        own, prior = _pictures(config, relation, token, output, resolution)
        facts |= {"data": pictures.pictures_hash(own), "prior": pictures.pictures_hash(prior) if prior else None}
        if main:
            if config.method == "dreambooth_lora" and not prior:
                click.echo("no class pictures, so no prior preservation; --prior FOLDER names some", err=True)
            folder.check(output, config, facts)
        accelerator.wait_for_everyone()
        bundle = load(config.bundle, device, DTYPES[precision], local_encoder=False, image_encoders=False)
        stored = [pictures.encode(bundle, part, config, resolution) for part in (own, prior) if part]
        if main:  # only now is all the input known to be good
            folder.begin(output, config, facts)
        accelerator.wait_for_everyone()
        learned = None if config.method == "dreambooth_lora" else _embedding(config, bundle, token, words[0], relation)
        parameters = _tune(config, name, bundle, learned, [own, prior], stored, output, accelerator, facts)
        if not main:
            return None
        told = _metadata(config, name, bundle, token, words, facts)
        if learned is None:
            path = output / "lora.safetensors"
            tensors = {key: parameter.detach().cpu() for key, parameter in parameters.items()}
            lora.save(path, tensors, told, config.alpha, config.format)
        else:
            path = output / "embedding.safetensors"
            embeddings.save(path, dataclasses.replace(learned, metadata=told))
        return path


def _checked(config: FinetuneConfig) -> Relation | None:
    """The relation, of a method that learns one.

    Raises:
        InputError: an option that the method needs is missing or wrong.
    """
    if config.caption is not None and config.caption.count("{}") != 1:
        raise InputError(f"--caption {config.caption!r}: write {{}} once, where the subject is named")
    if config.method == "relation_inversion":
        if config.relation is None:
            raise InputError("--relation: say which, a shipped name (ride, hug, ...) or the path of a relation's YAML")
        return load_relation(config.relation)
    if not config.class_noun:
        raise InputError(f"--method {config.method}: needs --class-noun, what the subject is: cat")
    return None


def _token(config: FinetuneConfig, relation: Relation | None) -> str:
    """What a prompt says for what is learned: "<ride>", "<cat>", or "sks cat".

    Raises:
        InputError: it is not of the form that it has to be of.
    """
    if config.method == "dreambooth_lora":
        return f"{config.token or 'sks'} {config.class_noun}"
    name = relation.name if relation else str(config.class_noun).replace(" ", "_")
    return embeddings.check_token(config.token or f"<{name}>", "--token")


def _pictures(
    config: FinetuneConfig, relation: Relation | None, token: str, output: Path, resolution: int
) -> tuple[list[Picture], list[Picture]]:
    """What is learned from, and DreamBooth's class pictures."""
    if relation:
        return pictures.of_relation(config, relation, token, output, resolution), []
    own = pictures.of_subject(config, token, output, resolution)
    return own, pictures.of_class(config, output, resolution) if config.method == "dreambooth_lora" else []


def _embedding(config: FinetuneConfig, bundle: Bundle, token: str, words: str, relation: Relation | None) -> Embedding:
    """The embedding to begin with, its vectors trainable."""
    start = config.initializer or ("and" if relation else words)
    tokenizers = (bundle.tokenizer, bundle.tokenizer_2)
    first, second = (
        nn.Parameter(embeddings.initial(tokenizer, encoder, start, config.vectors).to(bundle.device))
        for tokenizer, encoder in zip(tokenizers, (bundle.text_encoder, bundle.text_encoder_2), strict=True)
    )
    return Embedding(token, (first, second))


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
        output: torch.Tensor = self.unet(
            noisy.to(embeds.dtype),
            timesteps,
            encoder_hidden_states=embeds,
            cross_attention_kwargs={"conditioning": conditioning},
            added_cond_kwargs=conditioning.added_cond_kwargs,
            return_dict=False,
        )[0]
        return output

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
        for tokenizer, encoder in (
            (bundle.tokenizer, bundle.text_encoder),
            (bundle.tokenizer_2, bundle.text_encoder_2),
        ):
            basis = embeddings.single_tokens(tokenizer, embeddings.PREPOSITIONS)
            if not basis:
                raise InputError(f"{bundle.folder}: no preposition is one token there; take --steering-weight 0")
            ordinary = {*basis, *embeddings.single_tokens(tokenizer, _STOP_WORDS)}
            self.sides.append((tokenizer, encoder.get_input_embeddings().weight.detach(), basis, ordinary))

    def __call__(self, caption: str, number: int) -> torch.Tensor:
        """The loss of sample ``number``, mean over both text encoders."""
        found = []
        for vectors, (tokenizer, table, basis, ordinary) in zip(self.learned.vectors, self.sides, strict=True):
            order = torch.randperm(len(basis), generator=generator(self.seed, "steering", number))
            positives = [basis[k] for k in order[:_POSITIVES].tolist()]
            said = embeddings.pieces(tokenizer, caption, [self.learned])
            negatives = [k for k in said if k >= 0 and k not in ordinary]
            found.append(embeddings.steering_loss(vectors, table[positives].float(), table[negatives].float()))
        return torch.stack(found).mean()


def _tune(
    config: FinetuneConfig,
    name: str,
    bundle: Bundle,
    learned: Embedding | None,
    shown: Sequence[Sequence[Picture]],
    stored: Sequence[Mapping[str, torch.Tensor]],
    output: Path,
    accelerator: Any,
    facts: Mapping[str, Any],
) -> Mapping[str, nn.Parameter]:
    """Train; returns what was learned.

    Args:
        shown: the pictures, and the class pictures. stored: what :func:`pictures.encode` made of them.
        facts: what the run depends on besides the options, for its checkpoints.
    """
    unet, device = bundle.unet, accelerator.device
    if learned is None:
        lora.add(unet, config.rank, config.alpha, config.seed, targets=lora.LAYERS[config.lora_layers])
        parameters = lora.named_parameters(unet)
    else:
        parameters = dict(zip(embeddings.KEYS, learned.vectors, strict=True))  # type: ignore[arg-type]
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    if config.compile:
        attention.compile_blocks(unet)
    unet.train()
    alphas, prediction_type = bundle.training_schedule()
    schedule = Schedule(alphas.to(device), prediction_type)
    own, prior = stored[0], stored[1] if len(stored) > 1 else None
    steering = None
    if learned and config.method == "relation_inversion" and config.steering_weight:
        steering = Steering(bundle, learned, config.seed)

    def caption(number: int, is_own: bool, picture: int) -> str:
        said = shown[0 if is_own else 1][picture].captions
        return said[int(torch.randint(len(said), (), generator=generator(config.seed, "caption", number)))]

    def loss_of(model: Any, numbers: Sequence[int]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        batch = draw(own, numbers, config, len(alphas), device, prior)
        noisy, target = noised(batch, schedule)
        drawn = zip(numbers, (batch.own > 0).tolist(), batch.frozen["number"].tolist(), strict=True)
        captions = [caption(*sample) for sample in drawn]
        output = model(captions, noisy, batch.timesteps, batch.frozen["time_ids"])
        denoising = losses.denoising(output, target)
        total = torch.where(batch.own > 0, denoising, config.prior_weight * denoising).mean()
        share = config.prior_share if prior else 0.0
        parts = {"denoising": (denoising.detach() * batch.own).mean() / (1 - share)}
        if share:
            parts["prior"] = (denoising.detach() * (1 - batch.own)).mean() / share
        if steering:
            steered = torch.stack([steering(*sample) for sample in zip(captions, numbers, strict=True)]).mean()
            total, parts["steering"] = total + config.steering_weight * steered, steered.detach()
        return total, parts

    train(config, name, Denoiser(bundle, learned), parameters, loss_of, output, accelerator, facts)
    return parameters


def _metadata(
    config: FinetuneConfig,
    name: str,
    bundle: Bundle,
    token: str,
    words: Sequence[str],
    facts: Mapping[str, Any],
) -> dict[str, str]:
    """What the file says of itself; no date, so that the same run gives the same file."""
    subject = config.method == "dreambooth_lora"
    kind, key = ("lora", "rbctl.instance") if subject else ("textual-inversion", "rbctl.token")
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"stable-diffusion-xl-v1-base/{kind}",
        "modelspec.implementation": "diffusers",
        "modelspec.title": f"{name}, {config.method}",
        "modelspec.trigger_phrase": token,
        "rbctl.method": config.method,
        key: token,
        "rbctl.words": json.dumps(list(words)),
        "rbctl.recipe": to_yaml("finetune", dataclasses.replace(config, output=None)),
        "rbctl.data_hash": str(facts["data"]),
        "rbctl.base": fingerprint(bundle.folder, BASE),
    }
