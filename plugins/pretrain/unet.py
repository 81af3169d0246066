"""Part ``unet``: UNet and MS-Diffusion adapter together, from random weights, on easy scenes.

The frozen parts (VAE, text and image encoders) are those of WORK/bundle, loaded as every stage loads a bundle; what
they say of pictures is computed once.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from diffusers import UNet2DConditionModel
from PIL import Image
from torch import nn

from rbctl import attention, denoising, kept, losses
from rbctl.bundle.bundle import Bundle
from rbctl.bundle.catalogue import has_local_encoder
from rbctl.bundle.convert import attention_layers
from rbctl.bundle.fingerprints import fingerprint
from rbctl.bundle.load import load
from rbctl.conditioning import DUMMY_TOKENS, Conditioning, Encoded, ImageBranch, latent_grids
from rbctl.errors import InputError
from rbctl.files import sha256, write_json, write_safetensors
from rbctl.image_prompt import clip_pixels
from rbctl.images import write_png
from rbctl.menagerie import SPECIES
from rbctl.menagerie.oracle import POINTS
from rbctl.menagerie.oracle_training import keypoint_loss
from rbctl.pictures import grid
from rbctl.pipeline import RelationPipeline
from rbctl.plugins.pretrain import renders
from rbctl.plugins.pretrain.architecture import ADAPTER, MODEL_INDEX, SCHEDULER, UNET
from rbctl.plugins.pretrain.config import PretrainConfig
from rbctl.plugins.pretrain.loop import draws, rank, world_size
from rbctl.plugins.pretrain.weights import halved, write_network
from rbctl.progress import progress
from rbctl.resampler import Resampler, ResamplerConfig

_FROZEN = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "clip_vision", "clipself")
# Shares of samples that go without: guidance needs both dropped together, and each condition must work alone.
NO_TEXT, NO_IMAGE, NEITHER, NO_GROUNDING = 0.08, 0.08, 0.08, 0.1
NO_LOCAL = 0.3  # of steps: a batch has local tokens or has none
JITTER = 0.06  # of the picture, for each side of a box: the boxes of a layout prior are never quite right
_LEAST_SIDE = 0.1
_STORED = torch.bfloat16  # zlib, and so git, takes 21 % off it, 8 % off float16; eight bits are enough to denoise with
_DENSEST = 0.2  # logit of the share of the schedule, 0.55, around which most timesteps are drawn
_JOINTS = 0.03  # weight of the joints' loss
_FINER = 2  # heat maps are so much finer than the UNet's middle
_SHOWN, _MEASURED, _STEPS, _GUIDANCE = 8, 64, 20, 3.0


class JointHead(nn.Module):
    """Tells where the joints of both objects lie from the UNet's middle features. In training alone; not in the bundle.

    Samples of a UNet that has seen few pictures are patchwork: limbs and outlines that belong to no animal. Features
    that must tell the joints hold whole animals (as in REPA, arXiv 2410.06940, where they must tell DINOv2's features).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, width)
        self.heat = nn.Conv2d(width, 2 * len(POINTS) * _FINER**2, 1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Middle features (B, width, h, w) -> heat maps (B, 2, 17, 2h * 2w), logits."""
        heat = nn.functional.pixel_shuffle(self.heat(nn.functional.silu(self.norm(features))), _FINER)
        return heat.flatten(2).unflatten(1, (2, len(POINTS)))


def first_weights(folder: Path) -> None:
    """Write a random UNet, adapter and scheduler into a bundle folder; torch's own generator draws them."""
    unet = UNet2DConditionModel.from_config(UNET)
    resampler = Resampler(ResamplerConfig(**ADAPTER["resampler"]))
    processors = attention.install(unet)
    dummies = torch.randn(DUMMY_TOKENS, UNET["cross_attention_dim"])
    write_weights(folder, unet, processors, resampler, dummies)


def write_weights(
    folder: Path,
    unet: Any,
    processors: Mapping[str, nn.Module],
    resampler: nn.Module,
    dummies: torch.Tensor,
) -> None:
    """Write unet/, the adapter with its configuration, scheduler/ and model_index.json into a bundle folder.

    Args:
        processors: by layer, as :func:`rbctl.attention.install` gives them.
        dummies: (4, D).
    """
    index = attention.adapter_index(unet)
    tensors = {f"image_proj.{name}": tensor for name, tensor in resampler.state_dict().items()}
    for layer, processor in processors.items():
        tensors |= {f"ms_adapter.{index[layer]}.{name}": tensor for name, tensor in processor.state_dict().items()}
    tensors["dummy_image_tokens"] = dummies[None]
    weights = {name: tensor for name, tensor in unet.state_dict().items() if ".processor." not in name}
    write_network(folder / "unet", UNET, weights, _STORED)
    write_safetensors(folder / "ms_adapter.safetensors", halved(tensors, _STORED), {"format": "pt"})
    layers = {str(number): name for number, (name, _) in enumerate(attention_layers(UNET))}
    write_json(folder / "ms_adapter_config.json", {**ADAPTER, "adapter_index_to_layer": layers})
    write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
    write_json(folder / "model_index.json", MODEL_INDEX)


def _loaded(bundle: Path, device: torch.device) -> Bundle:
    """The frozen parts with a random UNet and adapter.

    Raises:
        InputError: a frozen part is not trained yet.
    """
    for part in _FROZEN:
        if not (bundle / part).is_dir():
            maker = "vae" if part == "vae" else "clip"
            raise InputError(f"{bundle / part}: not there yet; make it with 'rbctl pretrain {maker}'")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in _FROZEN:
            (folder / part).symlink_to((bundle / part).resolve())
        first_weights(folder)
        return load(str(folder), device, torch.float32, local_encoder=has_local_encoder(folder))


class UNetPart:
    """See :class:`rbctl.plugins.pretrain.loop.Part`."""

    def __init__(self, config: PretrainConfig, device: torch.device) -> None:
        self.device, self.batch_size, self.learning_rate = device, config.unet_batch_size, config.unet_learning_rate
        self.folder, self.seed = config.work / "bundle", config.seed
        self.bundle = bundle = _loaded(self.folder, device)
        source, cache = config.work / "renders", config.work / "unet" / "cache"
        self.scenes, self.portraits = renders.scenes(source, "easy"), renders.portraits(source)
        unseen = renders.scenes(source, "held_out")
        # Named by what made them: a VAE or encoder trained again gets new ones.
        vae = fingerprint(self.folder, ("vae",))
        encoders = fingerprint(self.folder, ("clip_vision", "clipself"))
        self.latents = _cached(cache / f"latents-{vae}", self.scenes, self._encode_scenes, "latents of scenes")
        self.tokens = _cached(cache / f"tokens-{encoders}", self.portraits, self._encode_portraits, "image tokens")
        person = self.scenes.person.all()
        self.usable = np.flatnonzero((person < self.portraits.people).all(1))  # others' portraits are not drawn yet
        if not len(self.usable):
            raise InputError(f"{source}: no scene has both portraits yet; go on with 'rbctl pretrain renders'")
        self.person = person
        self.species = self.scenes.individuals.all()[..., 0].astype(np.int64)
        self.captions = self.scenes.captions
        self.phrases = bundle.encode_phrases(list(SPECIES))
        patches = bundle.clip_image_size // int(bundle.image_prompt_encoder.image_encoder.config.patch_size)
        self.global_tokens = 1 + patches**2
        self._measure(unseen, len(config.easy))
        encoder = bundle.image_prompt_encoder
        encoder.image_encoder = encoder.local_encoder = None  # what they said is stored

        self.unet = bundle.unet.to(memory_format=torch.channels_last)
        self.resampler = encoder.resampler
        self.unet.requires_grad_(True)
        self.resampler.requires_grad_(True)
        self.joint_head = JointHead(UNET["block_out_channels"][-1]).to(device)
        self.plain = (self.unet.conv_in.weight, self.unet.conv_out.weight)
        alphas, self.prediction_type = bundle.training_schedule()
        self.alphas = alphas.to(device)
        if config.compile:
            attention.compile_blocks(self.unet)

    def modules(self) -> dict[str, nn.Module]:
        return {"unet": self.unet, "resampler": self.resampler, "joint_head": self.joint_head}

    def _encode_scenes(self, rows: renders.Scenes) -> dict[str, np.ndarray]:
        found = [self.bundle.encode_pictures(_pixels(rows.pictures[at])) for at in _batches(len(rows))]
        return {
            name: torch.cat(parts).half().cpu().numpy()
            for name, parts in zip(("mean", "std"), zip(*found, strict=True), strict=True)
        }

    def _encode_portraits(self, rows: renders.Portraits) -> dict[str, np.ndarray]:
        found = [self._object_tokens(rows.pictures[at]) for at in _batches(len(rows))]
        return {"tokens": torch.cat(found).half().cpu().numpy()}

    @torch.no_grad()
    def _object_tokens(self, pictures: np.ndarray) -> torch.Tensor:
        """Image tokens of portraits (R, 3, H, W) uint8, global then local ones, as sampling gets them."""
        bundle, images = self.bundle, [Image.fromarray(picture) for picture in pictures.transpose(0, 2, 3, 1)]
        pixels = clip_pixels(images, bundle.clip_image_size).to(self.device)
        local = clip_pixels(images, bundle.local_image_size).to(self.device)
        return bundle.image_prompt_encoder.object_tokens(pixels, local, "own")

    def _measure(self, unseen: renders.Scenes, easy: int) -> None:
        """Keep what previews need of held-out individuals in easy relations."""
        rows = np.flatnonzero(unseen.relation.all() < easy)[:_MEASURED]
        species = torch.from_numpy(unseen.individuals[rows][..., 0].astype(np.int64))
        portraits = unseen.portraits[rows]
        self.held_out = {
            "latents": self.bundle.encode_pictures(_pixels(unseen.pictures[rows]))[0],
            "tokens": self._object_tokens(portraits.reshape(-1, *portraits.shape[2:])),
            "boxes": torch.from_numpy(unseen.boxes[rows]).to(self.device),
            "phrases": self.phrases[species.to(self.device)],
        }
        self.held_out_captions = [unseen.captions[row] for row in rows]
        pictures = (unseen.pictures[rows[:_SHOWN]], *portraits[:_SHOWN].swapaxes(0, 1))
        self.shown = [[Image.fromarray(p) for p in group.transpose(0, 2, 3, 1)] for group in pictures]

    def draw(self, generator: torch.Generator) -> dict[str, Any]:
        """One batch; everything random about it."""

        def chance(*shape: int) -> torch.Tensor:
            return torch.rand(*shape, generator=generator)

        count = self.batch_size
        rows = self.usable[torch.randint(len(self.usable), (count,), generator=generator).numpy()]
        which = torch.randint(self.portraits.per_person, (count, 2), generator=generator).numpy()
        tokens = torch.from_numpy(self.tokens["tokens"][self.person[rows] * self.portraits.per_person + which])
        if float(chance(1)) < NO_LOCAL:
            tokens = tokens[:, :, : self.global_tokens]
        mean, std = (torch.from_numpy(self.latents[name][rows]).float() for name in ("mean", "std"))
        dropped = chance(count)
        no_text = (dropped < NO_TEXT) | ((dropped >= NO_TEXT + NO_IMAGE) & (dropped < NO_TEXT + NO_IMAGE + NEITHER))
        no_image = (dropped >= NO_TEXT) & (dropped < NO_TEXT + NO_IMAGE + NEITHER)
        timesteps = drawn_timesteps(count, len(self.alphas), generator)
        return {
            "captions": ["" if gone else self.captions[row] for row, gone in zip(rows, no_text.tolist(), strict=True)],
            "latents": mean + std * torch.randn(mean.shape, generator=generator),
            "noise": torch.randn(mean.shape, generator=generator),
            "timesteps": timesteps,
            "tokens": tokens.float(),
            "boxes": jittered(torch.from_numpy(self.scenes.boxes[rows]), generator),
            "no_image": no_image,
            "no_grounding": chance(count) < NO_GROUNDING,
            "species": torch.from_numpy(self.species[rows]),
            "keypoints": torch.from_numpy(self.scenes.keypoints[rows]),
        }

    def loss(self, step: int, generator: torch.Generator) -> tuple[torch.Tensor, Mapping[str, Any]]:
        drawn = self.draw(generator)
        batch = {name: value.to(self.device) for name, value in drawn.items() if isinstance(value, torch.Tensor)}
        embeds, pooled = self.bundle.encode_prompts(drawn["captions"])
        middle: list[torch.Tensor] = []
        hook = self.unet.mid_block.register_forward_hook(lambda _module, _inputs, features: middle.append(features))
        error = self._denoising(
            batch["latents"],
            batch["noise"],
            batch["timesteps"],
            embeds,
            pooled,
            self._adapter_tokens(
                batch["tokens"].flatten(0, 1), batch["boxes"], self.phrases[batch["species"]], batch["no_grounding"]
            ),
            # No query lies in an all-zero box: such a sample has no image prompt, just as in sampling.
            batch["boxes"] * ~batch["no_image"][:, None, None],
        )
        hook.remove()
        joints = keypoint_loss(self.joint_head(middle[0]), batch["keypoints"])
        return error.mean() + _JOINTS * joints, {"denoising": error.detach().mean(), "joints": joints.detach()}

    def _adapter_tokens(
        self, tokens: torch.Tensor, boxes: torch.Tensor, phrases: torch.Tensor, drop: torch.Tensor | None = None
    ) -> torch.Tensor:
        return self.bundle.image_prompt_encoder.adapter_tokens(tokens, boxes, phrases, drop)

    def _denoising(
        self,
        latents: torch.Tensor,
        noise: torch.Tensor,
        timesteps: torch.Tensor,
        embeds: torch.Tensor,
        pooled: torch.Tensor,
        tokens: torch.Tensor,
        boxes: torch.Tensor,
    ) -> torch.Tensor:
        """Denoising loss of each sample (B,), as ``rbctl finetune`` computes it."""
        h, w = latents.shape[-2:]
        noisy, target = losses.noised(latents, noise, self.alphas[timesteps], self.prediction_type)
        side = [h * self.bundle.latent_scale, w * self.bundle.latent_scale]
        conditioning = Conditioning(
            prompt_embeds=embeds,
            pooled_prompt_embeds=pooled,
            time_ids=torch.tensor([*side, 0, 0, *side], device=self.device).float().expand(len(latents), -1),
            image=ImageBranch.build(tokens, boxes, latent_grids((h, w), self.bundle.levels), self.bundle.gamma),
        )
        prediction = self.unet(
            noisy.contiguous(memory_format=torch.channels_last),
            timesteps,
            encoder_hidden_states=embeds,
            cross_attention_kwargs={"conditioning": conditioning},
            added_cond_kwargs=conditioning.added_cond_kwargs,
            return_dict=False,
        )[0]
        return losses.denoising(prediction, target)

    @torch.no_grad()
    def preview(self, folder: Path, step: int) -> Mapping[str, float]:
        """Held-out individuals: their portraits, what is sampled, the true picture; and their loss at fixed noise."""
        kept, count = self.held_out, min(_SHOWN, len(self.held_out["boxes"]))
        tokens = self._adapter_tokens(kept["tokens"], kept["boxes"], kept["phrases"])
        embeds, pooled = self.bundle.encode_prompts(self.held_out_captions)
        generator = draws(self.seed, "preview")
        noise = torch.randn(kept["latents"].shape, generator=generator).to(self.device)
        every = (torch.arange(len(noise), device=self.device) * len(self.alphas)) // len(noise)
        error = self._denoising(kept["latents"], noise, every, embeds, pooled, tokens, kept["boxes"])

        empty, empty_pooled = self.bundle.encode_prompts([""])
        encoded = Encoded(
            prompt_embeds=embeds[:count],
            pooled_prompt_embeds=pooled[:count],
            negative_prompt_embeds=empty.expand(count, -1, -1),
            negative_pooled_prompt_embeds=empty_pooled.expand(count, -1),
            image_tokens=tokens[:count],
            boxes=kept["boxes"][:count],
            object_weights=torch.full((count, 2), self.bundle.gamma, device=self.device),
        )
        latents = RelationPipeline(self.bundle).denoise_encoded(encoded, noise[:count], _STEPS, _GUIDANCE)
        sampled = denoising.to_pictures(self.bundle.decode_latents(latents))
        true, *portraits = self.shown
        pictures = [*(picture for group in portraits for picture in group), *sampled, *true]
        write_png(folder / "previews" / f"step-{step:06d}.png", grid(pictures, count))
        return {"held_out_loss": float(error.mean())}

    def finish(self, folder: Path) -> None:
        """The adapter's dummy tokens stay as drawn: by default no query sees them."""
        processors = {p.layer: p for p in self.unet.attn_processors.values() if hasattr(p, "layer")}
        dummies = self.bundle.image_prompt_encoder.dummy_image_tokens
        write_weights(self.folder, self.unet, processors, self.resampler, dummies)


def drawn_timesteps(count: int, steps: int, generator: torch.Generator) -> torch.Tensor:
    """Timesteps (count,) in [0, steps): a quarter uniform, the rest logit-normal, dense where shapes are decided.

    Logit-normal as in Esser et al. 2024 (arXiv 2403.03206, section 3.1). Each law is cut into equal shares and every
    share is drawn from: fewer lucky and unlucky batches than with independent draws.
    """

    def shares(number: int) -> torch.Tensor:
        return (torch.randperm(number, generator=generator) + torch.rand(number, generator=generator)) / number

    uniform = count // 4
    normal = torch.special.ndtri(shares(count - uniform))
    times = torch.cat((shares(uniform), torch.sigmoid(_DENSEST + normal)))[torch.randperm(count, generator=generator)]
    return (times * steps).long().clamp(max=steps - 1)


def jittered(boxes: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Boxes (..., 4) with each side moved by up to ``JITTER``, inside the picture, never turned inside out."""
    moved = boxes + JITTER * (2 * torch.rand(boxes.shape, generator=generator) - 1)
    first = moved[..., :2].clamp(0, 1 - _LEAST_SIDE)
    last = torch.maximum(moved[..., 2:].clamp(max=1), first + _LEAST_SIDE)
    return torch.cat((first, last), dim=-1)


def _pixels(pictures: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pictures).float() / 127.5 - 1


def _batches(count: int, size: int = 32) -> list[slice]:
    return [slice(first, min(first + size, count)) for first in range(0, count, size)]


def _cached(
    folder: Path, rows: Any, encode: Callable[[Any], dict[str, np.ndarray]], label: str
) -> dict[str, renders.Rows]:
    """What ``encode`` makes of each shard, computed once and memory-mapped; processes share the shards.

    Args:
        folder: named by what encodes.
    """
    shards: Sequence[Path] = rows.folders
    facts = {shard: {"by": folder.name, "shard": sha256(shard / kept.SEAL)} for shard in shards}
    mine = shards[rank() :: world_size()]
    missing = [shard for shard in mine if renders.missing(folder / shard.name, facts[shard])]
    if missing:
        with progress(len(missing), label, unit="shard") as bar:
            for shard in missing:
                single = type(rows)((shard,), **({"per_person": 1} if hasattr(rows, "per_person") else {}))
                renders.write_arrays(folder / shard.name, encode(single), facts[shard])
                bar.update()
    waiting = [shard for shard in shards if shard not in mine]
    while waiting := [shard for shard in waiting if not renders.fits(folder / shard.name, facts[shard])]:
        click.echo(f"waiting for {len(waiting)} shards of another process", err=True)
        time.sleep(2)
    names = sorted(path.stem for path in (folder / shards[0].name).glob("*.npy"))
    return {
        name: renders.Rows([np.load(folder / shard.name / f"{name}.npy", mmap_mode="r") for shard in shards])
        for name in names
    }


def build(config: PretrainConfig, device: torch.device) -> UNetPart:
    """The part, with first weights from torch's own generator."""
    return UNetPart(config, device)
