"""Part ``unet``: UNet and MS-Diffusion adapter together, from random weights, on easy scenes.

The frozen parts (VAE, text and image encoders) are those of WORK/bundle, loaded as every stage loads a bundle; what
they say of pictures is computed once.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from PIL import Image
from torch import nn

from rbctl import attention, denoising, losses
from rbctl.bundle.bundle import Bundle
from rbctl.bundle.catalogue import has_local_encoder
from rbctl.bundle.convert import attention_layers
from rbctl.bundle.fingerprints import fingerprint
from rbctl.bundle.load import load
from rbctl.conditioning import DUMMY_TOKENS, Conditioning, Encoded, ImageBranch, latent_grids
from rbctl.draws import generator
from rbctl.errors import InputError
from rbctl.files import write_json
from rbctl.image_prompt import clip_pixels
from rbctl.menagerie import SPECIES
from rbctl.menagerie.oracle import POINTS
from rbctl.menagerie.oracle_training import keypoint_loss
from rbctl.pictures import grid, save_png
from rbctl.pipeline import RelationPipeline
from rbctl.plugins.pretrain import renders
from rbctl.plugins.pretrain.architecture import ADAPTER, MODEL_INDEX, SCHEDULER, UNET
from rbctl.plugins.pretrain.config import MOST, PretrainConfig
from rbctl.plugins.pretrain.loop import Part
from rbctl.plugins.pretrain.weights import write_network, write_weights
from rbctl.provenance import SHEET
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
    """Tells where the joints of all objects lie from the UNet's middle features. In training alone; not in the bundle.

    Samples of a UNet that has seen few pictures are patchwork: limbs and outlines that belong to no animal. Features
    that must tell the joints hold whole animals (as in REPA, arXiv 2410.06940, where they must tell DINOv2's features).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, width)
        self.heat = nn.Conv2d(width, MOST * len(POINTS) * _FINER**2, 1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Middle features (B, width, h, w) -> heat maps (B, 3, 17, 2h * 2w), logits."""
        heat = nn.functional.pixel_shuffle(self.heat(nn.functional.silu(self.norm(features))), _FINER)
        return heat.flatten(2).unflatten(1, (MOST, len(POINTS)))


def _loaded(bundle: Path, device: torch.device, init: str) -> Bundle:
    """The frozen parts with the UNet and adapter of the bundle, or random ones, which torch's own generator draws.

    Raises:
        InputError: a frozen part is not trained yet.
    """
    for part in _FROZEN:
        if not (bundle / part).is_dir():
            maker = "vae" if part == "vae" else "clip"
            raise InputError(f"{bundle / part}: not there yet; make it with 'rbctl pretrain {maker}'")
    if init == "bundle":
        if not (bundle / "unet").is_dir():
            raise InputError(f"--unet-init bundle: {bundle / 'unet'} is not there; copy a trained bundle to {bundle}")
        return load(str(bundle), device, torch.float32, local_encoder=has_local_encoder(bundle))
    with TemporaryDirectory() as name:
        folder = Path(name)
        for part in _FROZEN:
            (folder / part).symlink_to((bundle / part).resolve())
        unet = UNet2DConditionModel.from_config(UNET)
        resampler = Resampler(ResamplerConfig(**ADAPTER["resampler"]))
        attention.install(unet)
        _write(folder, unet, resampler, torch.randn(DUMMY_TOKENS, UNET["cross_attention_dim"]))
        return load(str(folder), device, torch.float32, local_encoder=has_local_encoder(folder))


def _write(folder: Path, unet: Any, resampler: nn.Module, dummies: torch.Tensor) -> None:
    """Write unet/, the adapter with its configuration, scheduler/ and model_index.json into a bundle folder.

    Args:
        dummies: (4, D).
    """
    index = attention.adapter_index(unet)
    adapter = {f"image_proj.{name}": tensor for name, tensor in resampler.state_dict().items()}
    for name, processor in unet.attn_processors.items():
        layer = name.removesuffix(".processor")
        if layer in index:
            adapter |= {f"ms_adapter.{index[layer]}.{key}": tensor for key, tensor in processor.state_dict().items()}
    adapter["dummy_image_tokens"] = dummies[None]
    weights = {name: tensor for name, tensor in unet.state_dict().items() if ".processor." not in name}
    write_network(folder / "unet", UNET, weights, _STORED)
    write_weights(folder / "ms_adapter.safetensors", adapter, _STORED)
    layers = {str(number): name for number, (name, _) in enumerate(attention_layers(UNET))}
    write_json(folder / "ms_adapter_config.json", {**ADAPTER, "adapter_index_to_layer": layers})
    write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
    write_json(folder / "model_index.json", MODEL_INDEX)


class UNetPart(Part):
    """See :class:`rbctl.plugins.pretrain.loop.Part`."""

    name = "unet"
    kinds = ("easy",)

    def __init__(self, config: PretrainConfig, device: torch.device) -> None:
        super().__init__(config, device)
        self.seed = config.seed
        self.frozen = _loaded(self.bundle, device, config.unet_init)
        # Named by what made them: a VAE or encoder trained again gets new ones.
        vae, encoders = fingerprint(self.bundle, ("vae",)), fingerprint(self.bundle, ("clip_vision", "clipself"))
        cache = config.work / "unet" / "cache"
        self.latents = renders.encoded(cache / f"latents-{vae}", self.scenes, self._encode, "latents of scenes")
        self.tokens = renders.encoded(cache / f"tokens-{encoders}", self.portraits, self._object_tokens, "image tokens")
        self.person = self.scenes.person.all()
        self.usable = renders.usable(self.scenes, self.portraits, config.work / "renders", MOST)
        self.species = self.scenes.individuals.all()[..., 0].astype(np.int64).clip(min=0)
        self.captions = self.scenes.captions
        self.phrases = self.frozen.encode_phrases(list(SPECIES))
        encoder = self.frozen.image_prompt_encoder
        self.adapter_tokens = encoder.adapter_tokens
        patches = self.frozen.clip_image_size // int(encoder.image_encoder.config.patch_size)
        self.global_tokens = 1 + patches**2
        self.unet = self.frozen.unet.to(memory_format=torch.channels_last).requires_grad_(True)
        self.resampler = encoder.resampler.requires_grad_(True)
        self.joint_head = JointHead(UNET["block_out_channels"][-1]).to(device)
        self.plain = (self.unet.conv_in.weight, self.unet.conv_out.weight)
        alphas, self.prediction_type = self.frozen.training_schedule()
        self.alphas = alphas.to(device)
        if config.compile:
            attention.compile_blocks(self.unet)
        self._measure(len(config.easy))
        encoder.image_encoder = encoder.local_encoder = None  # what they say is stored

    def modules(self) -> dict[str, nn.Module]:
        return {"unet": self.unet, "resampler": self.resampler, "joint_head": self.joint_head}

    def _encode(self, pictures: np.ndarray) -> dict[str, torch.Tensor]:
        mean, std = self.frozen.encode_pictures(renders.pixels(pictures))
        return {"mean": mean, "std": std}

    @torch.no_grad()
    def _object_tokens(self, pictures: np.ndarray) -> dict[str, torch.Tensor]:
        """Image tokens of portraits (R, 3, H, W) uint8, global then local ones, as sampling gets them."""
        images = _images(pictures)
        pixels, local = (
            clip_pixels(images, size).to(self.device)
            for size in (self.frozen.clip_image_size, self.frozen.local_image_size)
        )
        return {"tokens": self.frozen.image_prompt_encoder.object_tokens(pixels, local, "own")}

    def _measure(self, easy: int) -> None:
        """Keep what previews need of held-out individuals in easy relations."""
        unseen = self.unseen
        rows = np.flatnonzero(unseen.relation.all() < easy)[:_MEASURED]
        species, portraits = unseen.individuals[rows][..., 0].astype(np.int64).clip(min=0), unseen.portraits[rows]
        self.measured = {
            "latents": self._encode(unseen.pictures[rows])["mean"],
            "tokens": self._object_tokens(portraits.reshape(-1, *portraits.shape[2:]))["tokens"],
            "boxes": torch.from_numpy(unseen.boxes[rows]).to(self.device),
            "phrases": self.phrases[torch.from_numpy(species).to(self.device)],
        }
        self.measured_captions = [unseen.captions[row] for row in rows]
        groups = (*portraits[:_SHOWN].swapaxes(0, 1), unseen.pictures[rows[:_SHOWN]])
        self.shown = [_images(group) for group in groups]  # portraits of each role, then the scenes

    def draw(self, chance: torch.Generator) -> dict[str, Any]:
        """One batch; everything random about it."""

        def uniform(*shape: int) -> torch.Tensor:
            return torch.rand(*shape, generator=chance)

        count = self.batch_size
        rows = self.usable[torch.randint(len(self.usable), (count,), generator=chance).numpy()]
        which = torch.randint(self.portraits.per_person, (count, MOST), generator=chance).numpy()
        # Whoever a scene lacks has somebody's tokens, and an all-zero box: no query sees them.
        people = self.person[rows].clip(min=0)
        tokens = torch.from_numpy(self.tokens["tokens"][people * self.portraits.per_person + which])
        if float(uniform(1)) < NO_LOCAL:
            tokens = tokens[:, :, : self.global_tokens]
        mean, std = (torch.from_numpy(self.latents[name][rows]).float() for name in ("mean", "std"))
        dropped = uniform(count)
        no_text = (dropped < NO_TEXT) | ((dropped >= NO_TEXT + NO_IMAGE) & (dropped < NO_TEXT + NO_IMAGE + NEITHER))
        no_image = (dropped >= NO_TEXT) & (dropped < NO_TEXT + NO_IMAGE + NEITHER)
        timesteps = drawn_timesteps(count, len(self.alphas), chance)
        return {
            "captions": ["" if gone else self.captions[row] for row, gone in zip(rows, no_text.tolist(), strict=True)],
            "latents": mean + std * torch.randn(mean.shape, generator=chance),
            "noise": torch.randn(mean.shape, generator=chance),
            "timesteps": timesteps,
            "tokens": tokens.float(),
            "boxes": jittered(torch.from_numpy(self.scenes.boxes[rows]), chance),
            "no_image": no_image,
            "no_grounding": uniform(count) < NO_GROUNDING,
            "species": torch.from_numpy(self.species[rows]),
            "keypoints": torch.from_numpy(self.scenes.keypoints[rows]),
        }

    def loss(self, step: int, chance: torch.Generator) -> tuple[torch.Tensor, Mapping[str, Any]]:
        drawn = self.draw(chance)
        batch = {name: value.to(self.device) for name, value in drawn.items() if isinstance(value, torch.Tensor)}
        middle: list[torch.Tensor] = []
        hook = self.unet.mid_block.register_forward_hook(lambda _module, _inputs, features: middle.append(features))
        error = self.denoising(
            batch["latents"],
            batch["noise"],
            batch["timesteps"],
            drawn["captions"],
            self.adapter_tokens(
                batch["tokens"].flatten(0, 1), batch["boxes"], self.phrases[batch["species"]], batch["no_grounding"]
            ),
            # No query lies in an all-zero box: such a sample has no image prompt, just as in sampling.
            batch["boxes"] * ~batch["no_image"][:, None, None],
        )
        hook.remove()
        joints = keypoint_loss(self.joint_head(middle[0]), batch["keypoints"])
        return error.mean() + _JOINTS * joints, {"denoising": error.detach().mean(), "joints": joints.detach()}

    def denoising(
        self,
        latents: torch.Tensor,
        noise: torch.Tensor,
        timesteps: torch.Tensor,
        captions: list[str],
        tokens: torch.Tensor,
        boxes: torch.Tensor,
    ) -> torch.Tensor:
        """Denoising loss of each sample (B,), as ``rbctl finetune`` computes it."""
        embeds, pooled = self.frozen.encode_prompts(captions)
        h, w = latents.shape[-2:]
        noisy, target = losses.noised(latents, noise, self.alphas[timesteps], self.prediction_type)
        side = [h * self.frozen.latent_scale, w * self.frozen.latent_scale]
        conditioning = Conditioning(
            prompt_embeds=embeds,
            pooled_prompt_embeds=pooled,
            time_ids=torch.tensor([*side, 0, 0, *side], device=self.device).float().expand(len(latents), -1),
            image=ImageBranch.build(tokens, boxes, latent_grids((h, w), self.frozen.levels), self.frozen.gamma),
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
        latents, boxes = self.measured["latents"], self.measured["boxes"]
        tokens = self.adapter_tokens(self.measured["tokens"], boxes, self.measured["phrases"])
        noise = torch.randn(latents.shape, generator=generator(self.seed, "preview")).to(self.device)
        timesteps = (torch.arange(len(noise), device=self.device) * len(self.alphas)) // len(noise)
        error = self.denoising(latents, noise, timesteps, self.measured_captions, tokens, boxes)
        *portraits, scenes = self.shown
        count = len(scenes)
        embeds, pooled = self.frozen.encode_prompts(self.measured_captions[:count])
        negative, negative_pooled = self.frozen.encode_prompts([""] * count)
        encoded = Encoded(
            prompt_embeds=embeds,
            pooled_prompt_embeds=pooled,
            negative_prompt_embeds=negative,
            negative_pooled_prompt_embeds=negative_pooled,
            image_tokens=tokens[:count],
            boxes=boxes[:count],
            object_weights=torch.full(boxes[:count, :, 0].shape, self.frozen.gamma, device=self.device),
        )
        sampled = RelationPipeline(self.frozen).sampler.denoise_encoded(encoded, noise[:count], _STEPS, _GUIDANCE)
        pictures = denoising.to_pictures(self.frozen.decode_latents(sampled))
        sheet = grid([*itertools.chain(*portraits), *pictures, *scenes], count)
        save_png(sheet, folder / "previews" / f"step-{step:06d}.png", source_type=SHEET)
        return {"held_out_loss": float(error.mean())}

    def finish(self) -> None:
        """The adapter's dummy tokens stay as drawn: by default no query sees them."""
        _write(self.bundle, self.unet, self.resampler, self.frozen.image_prompt_encoder.dummy_image_tokens)


def drawn_timesteps(count: int, steps: int, chance: torch.Generator) -> torch.Tensor:
    """Timesteps (count,) in [0, steps): a quarter uniform, the rest logit-normal, dense where shapes are decided.

    Logit-normal as in Esser et al. 2024 (arXiv 2403.03206, section 3.1). Each law is cut into equal shares and every
    share is drawn from: fewer lucky and unlucky batches than with independent draws.
    """

    def shares(number: int) -> torch.Tensor:
        return (torch.randperm(number, generator=chance) + torch.rand(number, generator=chance)) / number

    uniform = count // 4
    normal = torch.special.ndtri(shares(count - uniform))
    times = torch.cat((shares(uniform), torch.sigmoid(_DENSEST + normal)))[torch.randperm(count, generator=chance)]
    return (times * steps).long().clamp(max=steps - 1)


def jittered(boxes: torch.Tensor, chance: torch.Generator) -> torch.Tensor:
    """Boxes (..., 4) with each side moved by up to ``JITTER``, inside the picture, never turned inside out.

    All-zero boxes, of individuals that are not there, stay so.
    """
    moved = boxes + JITTER * (2 * torch.rand(boxes.shape, generator=chance) - 1)
    first = moved[..., :2].clamp(0, 1 - _LEAST_SIDE)
    last = torch.maximum(moved[..., 2:].clamp(max=1), first + _LEAST_SIDE)
    return torch.cat((first, last), dim=-1) * boxes.any(-1, keepdim=True)


def _images(pictures: np.ndarray) -> list[Image.Image]:
    return [Image.fromarray(picture) for picture in pictures.transpose(0, 2, 3, 1)]
