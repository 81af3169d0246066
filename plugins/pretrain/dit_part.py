"""Part ``dit``: the transformer of ``mini-dit``, from random weights, on easy scenes of one and two individuals.

The frozen parts (VAE and text encoders) are those of WORK/bundle. At first most steps read the noisy latents in patches
that are twice as wide: four times fewer tokens, so that shapes and places are learnt from many more pictures.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from diffusers import Flux2Transformer2DModel
from PIL import Image
from torch import nn
from torch.nn.functional import pad, pixel_shuffle, pixel_unshuffle

from rbctl import denoising
from rbctl.bases.mini_dit.base import PATCH, MiniDiT, load
from rbctl.bases.mini_dit.sampling import Sampler
from rbctl.bases.reference_sampling import Encoded, denoised
from rbctl.bases.reference_transformer import Reading
from rbctl.bundle.fingerprints import fingerprint
from rbctl.draws import generator
from rbctl.errors import InputError
from rbctl.files import write_json
from rbctl.instructions import instruction
from rbctl.menagerie import SPECIES
from rbctl.menagerie.oracle import POINTS
from rbctl.menagerie.oracle_training import keypoint_loss
from rbctl.pictures import grid, save_png
from rbctl.plugins.pretrain import renders
from rbctl.plugins.pretrain.architecture import DIT, DIT_MODEL_INDEX, DIT_SCHEDULER
from rbctl.plugins.pretrain.config import MOST, PretrainConfig
from rbctl.plugins.pretrain.loop import Part
from rbctl.plugins.pretrain.unet_part import drawn_timesteps, jittered
from rbctl.plugins.pretrain.weights import write_network
from rbctl.pretrained import network
from rbctl.provenance import SHEET

SHOWN_AT_MOST = 2  # individuals of a scene
NO_TEXT, NO_IMAGE, NEITHER = 0.06, 0.04, 0.1  # shares of samples that go without, as for the UNet
BOXES = 0.5  # share of steps in which a place sees an individual only in its box
_FINE = 16  # every so many of the first steps is a fine one: its layers must not begin from nothing
_COARSE = 2 * PATCH
_JOINTS = 0.05  # weight of the joints' loss
_JOINTS_BLOCK = 2  # the block of one stream whose tokens must tell the joints
_FINER = 2  # heat maps are so much finer than the tokens
_FROZEN = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
_STORED = torch.bfloat16
_PREVIEWED, _MEASURED, _STEPS, _GUIDANCE = 8, 64, 20, 3.0


class CoarseDiT(MiniDiT):
    """The same with patches of 4 x 4 latents; their channels stand behind all others, and are not in the bundle."""

    patch = _COARSE

    def pack(self, latents: torch.Tensor) -> torch.Tensor:
        tokens = pixel_unshuffle(latents, _COARSE).flatten(2).mT
        return pad(tokens, (self.model.config.in_channels - tokens.shape[-1], 0))

    def unpack(self, tokens: torch.Tensor, latent_size: tuple[int, int]) -> torch.Tensor:
        tokens = tokens[..., self.latent_channels * PATCH**2 :]
        return pixel_shuffle(tokens.mT.unflatten(2, self.grid(latent_size)), _COARSE)


class JointHead(nn.Module):
    """Tells where the joints of all individuals lie from the picture's tokens. In training alone; see the UNet's."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heat = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, MOST * len(POINTS) * _FINER**2))

    def forward(self, tokens: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Tokens (B, L, width) of a picture of ``size`` tokens -> heat maps (B, 3, 17, 2h * 2w), logits."""
        heat = pixel_shuffle(self.heat(tokens).mT.unflatten(2, size), _FINER)
        return heat.flatten(2).unflatten(1, (MOST, len(POINTS)))


class DiTPart(Part):
    """See :class:`rbctl.plugins.pretrain.loop.Part`."""

    name = "dit"
    kinds = ("easy",)

    def __init__(self, config: PretrainConfig, device: torch.device) -> None:
        super().__init__(config, device)
        self.config = config
        vae = fingerprint(self.bundle, ("vae",))
        frozen, self.bundle = self.bundle, config.work / "bundle-dit"
        self.base = _loaded(frozen, device, self.bundle if config.dit_init == "bundle" else None)
        self.coarse = CoarseDiT(**vars(self.base))
        self.transformer = self.base.model.requires_grad_(True)
        width = self.transformer.inner_dim
        self.joint_head = JointHead(width).to(device)
        self.plain = (self.transformer.x_embedder.weight, self.transformer.proj_out.weight)
        cache = config.work / "latents"
        self.latents = renders.encoded(cache / f"scenes-{vae}", self.scenes, self._encode, "latents of scenes")
        self.references = renders.encoded(
            cache / f"portraits-{vae}", self.portraits, self._encode, "latents of portraits"
        )
        self.person = self.scenes.person.all()
        self.usable = renders.usable(self.scenes, self.portraits, config.work / "renders", SHOWN_AT_MOST)
        self.instructions = _instructions(self.scenes)
        self._measure(len(config.easy))
        if config.compile:
            self.transformer.compile_repeated_blocks()

    def modules(self) -> dict[str, nn.Module]:
        return {"transformer": self.transformer, "joint_head": self.joint_head}

    def _encode(self, pictures: np.ndarray) -> dict[str, torch.Tensor]:
        mean, std = self.base.encode_pictures(renders.pixels(pictures, self.device))
        return {"mean": mean, "std": std}

    def _measure(self, easy: int) -> None:
        """Keep what previews need of held-out individuals in easy relations."""
        unseen = self.unseen
        usable = (unseen.relation.all() < easy) & (unseen.counts <= SHOWN_AT_MOST)
        rows = np.flatnonzero(usable)[:_MEASURED]
        portraits = unseen.portraits[rows][:, :SHOWN_AT_MOST]
        references = self._encode(portraits.reshape(-1, *portraits.shape[2:]))["mean"]
        self.measured_latents = self._encode(unseen.pictures[rows])["mean"]
        texts = _instructions(unseen)
        self.measured = Reading(
            words=self.base.encode_texts([texts[row] for row in rows]),
            words_mask=None,
            references=references.unflatten(0, (-1, SHOWN_AT_MOST)),
            present=self._present(unseen.counts[rows]),
        )
        shown = rows[:_PREVIEWED]
        groups = (*portraits[:_PREVIEWED].swapaxes(0, 1), unseen.pictures[shown])
        self.shown = [[Image.fromarray(picture.transpose(1, 2, 0)) for picture in group] for group in groups]

    def _present(self, counts: np.ndarray) -> torch.Tensor:
        """(B, 2) bool."""
        return (torch.arange(SHOWN_AT_MOST) < torch.from_numpy(np.asarray(counts))[:, None]).to(self.device)

    def is_fine(self, step: int) -> bool:
        """Whether a step reads the small patches."""
        return step >= self.config.dit_coarse_steps or step % _FINE == 0

    def loss(self, step: int, chance: torch.Generator) -> tuple[torch.Tensor, Mapping[str, Any]]:
        def uniform(*shape: int) -> torch.Tensor:
            return torch.rand(*shape, generator=chance)

        fine, count = self.is_fine(step), self.batch_size
        rows = self.usable[torch.randint(len(self.usable), (count,), generator=chance).numpy()]
        which = torch.randint(self.portraits.per_person, (count, SHOWN_AT_MOST), generator=chance).numpy()
        # Whoever a scene lacks has somebody's picture, which nobody looks at.
        people = self.person[rows][:, :SHOWN_AT_MOST].clip(min=0)
        references = torch.from_numpy(self.references["mean"][people * self.portraits.per_person + which]).float()
        mean, std = (torch.from_numpy(self.latents[name][rows]).float() for name in ("mean", "std"))
        dropped = uniform(count)
        no_text = (dropped < NO_TEXT) | ((dropped >= NO_TEXT + NO_IMAGE) & (dropped < NO_TEXT + NO_IMAGE + NEITHER))
        no_image = (dropped >= NO_TEXT) & (dropped < NO_TEXT + NO_IMAGE + NEITHER)
        texts = ["" if gone else self.instructions[row] for row, gone in zip(rows, no_text.tolist(), strict=True)]
        boxes = None
        if float(uniform(1)) < BOXES:
            own = torch.from_numpy(self.scenes.boxes[rows][:, :SHOWN_AT_MOST])
            boxes = jittered(own, chance).to(self.device)
        reading = Reading(
            words=self.base.encode_texts(texts),
            words_mask=None,
            references=references.to(self.device),
            present=self._present(self.scenes.counts[rows]) & ~no_image.to(self.device)[:, None],
            boxes=boxes,
        )
        latents = (mean + std * torch.randn(mean.shape, generator=chance)).to(self.device)
        noise = torch.randn(mean.shape, generator=chance).to(self.device)
        times = ((drawn_timesteps(count, 1000, chance) + 0.5) / 1000).to(self.device)
        with self._tokens() as tokens:
            error = self.denoising(latents, noise, times, reading, fine)
        base = self.base if fine else self.coarse
        size = base.grid((latents.shape[-2], latents.shape[-1]))
        first = reading.words.shape[1]
        heat = self.joint_head(tokens[0][:, first : first + size[0] * size[1]], size)
        joints = keypoint_loss(heat, torch.from_numpy(self.scenes.keypoints[rows]).to(self.device))
        return error.mean() + _JOINTS * joints, {"denoising": error.detach().mean(), "joints": joints.detach()}

    @contextmanager
    def _tokens(self) -> Iterator[list[torch.Tensor]]:
        """The tokens behind the block that must tell the joints, of calls meanwhile."""
        tokens: list[torch.Tensor] = []
        block = self.transformer.single_transformer_blocks[_JOINTS_BLOCK]
        hook = block.register_forward_hook(lambda _module, _inputs, output: tokens.append(output))
        try:
            yield tokens
        finally:
            hook.remove()

    def denoising(
        self, latents: torch.Tensor, noise: torch.Tensor, times: torch.Tensor, reading: Reading, fine: bool
    ) -> torch.Tensor:
        """Loss of each sample (B,), as ``rbctl finetune`` computes it."""
        at = times[:, None, None, None]
        base = self.base if fine else self.coarse
        velocity = base.velocity(self.transformer, (1 - at) * latents + at * noise, times, reading)
        return (velocity - (noise - latents)).square().mean((1, 2, 3))

    @torch.no_grad()
    def preview(self, folder: Path, step: int) -> Mapping[str, float]:
        """Held-out individuals: their portraits, what is sampled, the true picture; and their loss at fixed noise."""
        reading, latents = self.measured, self.measured_latents
        noise = torch.randn(latents.shape, generator=generator(self.config.seed, "preview")).to(self.device)
        times = (torch.arange(len(noise), device=self.device) + 0.5) / len(noise)
        error = self.denoising(latents, noise, times, reading, fine=True)
        *portraits, scenes = self.shown
        count = len(scenes)
        shown = Reading(reading.words[:count], None, reading.references[:count], reading.present[:count])
        nothing = dataclasses.replace(
            shown, words=self.base.encode_texts([""] * count), present=torch.zeros_like(shown.present)
        )
        scales = torch.full((count,), _GUIDANCE)
        sampled = denoised(self.base, Encoded(shown, nothing), noise[:count], _STEPS, scales, Sampler.guide)
        pictures = denoising.to_pictures(self.base.decode_latents(sampled))
        sheet = grid([*itertools.chain(*portraits), *pictures, *scenes], count)
        save_png(sheet, folder / "previews" / f"step-{step:06d}.png", source_type=SHEET)
        return {"held_out_loss": float(error.mean())}

    def finish(self) -> None:
        _write(self.bundle, self.transformer)


def _loaded(frozen: Path, device: torch.device, first: Path | None) -> MiniDiT:
    """The frozen parts with a transformer that has the coarse channels too: drawn, or that of a bundle.

    Raises:
        InputError: a part is not there yet.
    """
    for part in _FROZEN:
        if not (frozen / part).is_dir():
            maker = "vae" if part == "vae" else "clip"
            raise InputError(f"{frozen / part}: not there yet; make it with 'rbctl pretrain {maker}'")
    fine = DIT["out_channels"]
    more = fine * (_COARSE // PATCH) ** 2
    settings = {**DIT, "in_channels": DIT["in_channels"] + more, "out_channels": fine + more}
    transformer = Flux2Transformer2DModel.from_config(settings)
    for name, parameter in transformer.named_parameters():  # each block begins as the identity (adaLN-Zero)
        if "modulation" in name or name.startswith(("norm_out", "proj_out")):
            nn.init.zeros_(parameter)
    if first is not None:
        if not (first / "transformer").is_dir():
            raise InputError(
                f"--dit-init bundle: {first / 'transformer'} is not there; copy a trained bundle to {first}"
            )
        trained = network(Flux2Transformer2DModel, first / "transformer", torch.float32)
        state = transformer.state_dict()
        for name, tensor in trained.state_dict().items():
            state[name][tuple(slice(0, side) for side in tensor.shape)] = tensor
    with TemporaryDirectory() as name:
        folder = Path(name)
        for part in _FROZEN:
            (folder / part).symlink_to((frozen / part).resolve())
        _write(folder, transformer)
        base = load(folder, device, torch.float32)
    base.pipeline.transformer = transformer.to(device)
    return base


def _write(folder: Path, transformer: nn.Module) -> None:
    """Write transformer/, without the coarse channels, scheduler/ and model_index.json into a bundle folder."""
    weights = dict(transformer.state_dict())
    weights["x_embedder.weight"] = weights["x_embedder.weight"][:, : DIT["in_channels"]].contiguous()
    weights["proj_out.weight"] = weights["proj_out.weight"][: DIT["out_channels"]].contiguous()
    write_network(folder / "transformer", DIT, weights, _STORED)
    write_json(folder / "scheduler" / "scheduler_config.json", DIT_SCHEDULER)
    write_json(folder / "model_index.json", DIT_MODEL_INDEX)


def _instructions(scenes: renders.Scenes) -> Sequence[str]:
    """The captions as the base reads them, "the cat of image 1"."""
    species = scenes.individuals.all()[..., 0]
    names = [[SPECIES[k].replace("_", " ") for k in row if k != renders.NOBODY] for row in species]
    return [
        instruction(caption, own, range(1, len(own) + 1)) for caption, own in zip(scenes.captions, names, strict=True)
    ]
