"""One micro-batch: what is drawn for it, and its loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rbctl import losses
from rbctl.conditioning import Conditioning, ImageBranch, TextMaps, latent_grids
from rbctl.plugins.finetune.config import FinetuneConfig
from rbctl.plugins.finetune.draws import generator, triplet_of


@dataclass(frozen=True)
class Schedule:
    """The base model's noise schedule: abar of every training timestep (T,), and what the UNet predicts."""

    alphas_cumprod: torch.Tensor
    prediction_type: str


@dataclass(frozen=True)
class MicroBatch:
    """B samples; everything else about them is in ``frozen``, under the same names with a leading B."""

    frozen: Mapping[str, torch.Tensor]
    latents: torch.Tensor
    prompt_latents: torch.Tensor
    noise: torch.Tensor
    timesteps: torch.Tensor


_PER_TRIPLET = ("prompt_embeds", "pooled_prompt_embeds", "predicate_span")


def draw(
    frozen: Mapping[str, torch.Tensor], numbers: Sequence[int], seed: int, timesteps: int, device: Any
) -> MicroBatch:
    """The samples of these numbers. All that is random is a function of (seed, number).

    Args:
        frozen: see :func:`rbctl.plugins.finetune.frozen.encode`.
        timesteps: how many the schedule has.
    """
    triplets, draws = frozen["boxes"].shape[:2]
    rows: list[dict[str, torch.Tensor]] = []
    for number in numbers:
        chance = generator(seed, "sample", number)
        triplet = triplet_of(seed, number, triplets)
        version = int(torch.randint(draws, (1,), generator=chance))
        row = {
            name: tensor[triplet] if name in _PER_TRIPLET else tensor[triplet, version]
            for name, tensor in frozen.items()
            if not name.startswith("empty_")
        }
        row["timestep"] = torch.randint(timesteps, (), generator=chance)
        row["noise"] = torch.randn(row["latents_mean"].shape, generator=chance)
        for kind in ("latents", "prompt_latents"):
            mean, std = row.pop(f"{kind}_mean"), row.pop(f"{kind}_std")
            row[kind] = mean + std * torch.randn(mean.shape, generator=chance)
        rows.append(row)
    batch = {name: torch.stack([row[name] for row in rows]).to(device) for name in rows[0]}
    return MicroBatch(
        latents=batch.pop("latents"),
        prompt_latents=batch.pop("prompt_latents"),
        noise=batch.pop("noise"),
        timesteps=batch.pop("timestep"),
        frozen=batch,
    )


def training_loss(
    unet: Any, batch: MicroBatch, schedule: Schedule, config: FinetuneConfig, gamma: float, levels: int
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """L = L_denoise + kml_weight * L_KML [+ attention_loss_weight * L_attention], mean over the batch; and its parts.

    KML's gate on the timestep is taken per sample.
    """
    latents, noise, data = batch.latents, batch.noise, batch.frozen
    abar = schedule.alphas_cumprod[batch.timesteps]
    signal, sigma = abar.sqrt()[:, None, None, None], (1 - abar).sqrt()[:, None, None, None]
    noisy = signal * latents + sigma * noise
    target = noise if schedule.prediction_type == "epsilon" else signal * noise - sigma * latents

    grids = latent_grids((latents.shape[-2], latents.shape[-1]), levels)
    conditioning = Conditioning(
        prompt_embeds=data["prompt_embeds"],
        pooled_prompt_embeds=data["pooled_prompt_embeds"],
        time_ids=data["time_ids"],
        image=ImageBranch.build(data["image_tokens"], data["boxes"], grids, gamma),
        text_maps=TextMaps(spans=data["predicate_span"]) if config.attention_loss_weight else None,
        backend=None if config.attention == "auto" else config.attention,
    )
    prediction = unet(
        noisy.to(data["prompt_embeds"].dtype),
        batch.timesteps,
        encoder_hidden_states=conditioning.prompt_embeds,
        cross_attention_kwargs={"conditioning": conditioning},
        added_cond_kwargs=conditioning.added_cond_kwargs,
        return_dict=False,
    )[0].float()

    denoising = losses.denoising(prediction, target)
    clean = losses.pred_original_sample(noisy, prediction, abar, schedule.prediction_type)
    kml = losses.keypoint_matching(
        clean,
        batch.prompt_latents,
        data["target_keypoints"],
        data["image_keypoints"],
        data["visible"],
        as_code=config.kml_gather == "as_code",
    )
    gate = (batch.timesteps <= config.kml_max_timestep).float()
    total = denoising + config.kml_weight * gate * kml
    parts = {"denoising": denoising.mean(), "kml": kml.mean()}
    if conditioning.text_maps is not None:
        side = {h * w: (h, w) for h, w in grids}
        maps = [m.unflatten(1, side[m.shape[1]]) for m in conditioning.text_maps.maps.values()]
        attention = losses.predicate_attention(maps, data["object_mask"], as_code=config.kml_gather == "as_code")
        total = total + config.attention_loss_weight * attention
        parts["attention"] = attention.mean()
    return total.mean(), {name: part.detach() for name, part in parts.items()}
