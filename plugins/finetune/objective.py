"""One micro-batch: what is drawn for it, and its loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from rbctl import losses
from rbctl.conditioning import Conditioning, ImageBranch, TextMaps, latent_grids
from rbctl.device import pick_attention
from rbctl.draws import generator
from rbctl.plugins.finetune.config import FinetuneConfig
from rbctl.plugins.finetune.draws import prior_number, triplet_of


@dataclass(frozen=True)
class Schedule:
    """The base model's noise schedule: abar of every training timestep (T,), and what the UNet predicts."""

    alphas_cumprod: torch.Tensor
    prediction_type: str


@dataclass(frozen=True)
class MicroBatch:
    """B samples; everything else about them is in ``frozen``, under the same names with a leading B.

    Attributes:
        own: (B,) float32, 1 for samples of the relation, 0 for those of the prior set.
        with_prior: the run has a prior set.
    """

    frozen: Mapping[str, torch.Tensor]
    latents: torch.Tensor
    prompt_latents: torch.Tensor
    noise: torch.Tensor
    timesteps: torch.Tensor
    own: torch.Tensor
    with_prior: bool = False


_PER_TRIPLET = ("prompt_embeds", "pooled_prompt_embeds", "predicate_span")


def draw(
    frozen: Mapping[str, torch.Tensor],
    numbers: Sequence[int],
    config: FinetuneConfig,
    timesteps: int,
    device: Any,
    prior: Mapping[str, torch.Tensor] | None = None,
) -> MicroBatch:
    """The samples of these numbers. All that is random is a function of (config.seed, number).

    Args:
        frozen, prior: of the relation's triplets and of the prior set; see :mod:`rbctl.plugins.finetune.frozen`.
        timesteps: how many the schedule has.
    """
    rows: list[dict[str, torch.Tensor]] = []
    for number in numbers:
        chance = generator(config.seed, "sample", number)
        is_prior, which = prior_number(number, config.prior_share if prior else 0.0)
        source = prior if prior and is_prior else frozen
        triplets, draws = source["boxes"].shape[:2]
        triplet = triplet_of(config.seed, which, triplets, "prior order" if is_prior else "order")
        version = int(torch.randint(draws, (1,), generator=chance))
        row = _row(source, triplet, version)
        row["own"] = torch.tensor(float(not is_prior))
        row["timestep"] = drawn_timestep(config, timesteps, chance)
        row["noise"] = torch.randn(row["latents_mean"].shape, generator=chance)
        for kind in ("latents", "prompt_latents"):
            mean, std = row.pop(f"{kind}_mean"), row.pop(f"{kind}_std")
            row[kind] = mean + std * torch.randn(mean.shape, generator=chance)
        rows.append(row)
    return _stacked(rows, device, with_prior=prior is not None)


def drawn_timestep(config: FinetuneConfig, timesteps: int, chance: torch.Generator) -> torch.Tensor:
    """One timestep in [0, timesteps), int64 ().

    Logit-normal: Esser et al. 2024 (arXiv 2403.03206, section 3.1). Cosine: p(t) ~ 1 - cos(pi t / T) / 2, ReVersion's
    importance sampling (arXiv 2303.13495, section 4.3).
    """
    if config.timestep_sampling == "uniform":
        return torch.randint(timesteps, (), generator=chance)
    if config.timestep_sampling == "cosine":
        weights = 1 - torch.cos(torch.pi * torch.arange(timesteps) / timesteps) / 2
        return torch.multinomial(weights, 1, generator=chance)[0]
    share = torch.sigmoid(config.logit_mean + config.logit_std * torch.randn((), generator=chance))
    return (share * timesteps).long().clamp(max=timesteps - 1)


def draw_fixed(frozen: Mapping[str, torch.Tensor], pairs: Sequence[tuple[int, int]], device: Any) -> MicroBatch:
    """Triplets as they are, each at a timestep: the most likely latents, and noise that is the same at every call.

    Args:
        pairs: (triplet, timestep).
    """
    rows: list[dict[str, torch.Tensor]] = []
    for triplet, timestep in pairs:
        row = _row(frozen, triplet, 0)
        row["own"], row["timestep"] = torch.tensor(0.0), torch.tensor(timestep)
        row["noise"] = torch.randn(row["latents_mean"].shape, generator=generator("fixed", triplet, timestep))
        for kind in ("latents", "prompt_latents"):
            row[kind] = row.pop(f"{kind}_mean")
            del row[f"{kind}_std"]
        rows.append(row)
    return _stacked(rows, device, with_prior=True)


def _row(frozen: Mapping[str, torch.Tensor], triplet: int, version: int) -> dict[str, torch.Tensor]:
    return {
        name: tensor[triplet] if name in _PER_TRIPLET else tensor[triplet, version]
        for name, tensor in frozen.items()
        if not name.startswith("empty_")
    }


def _stacked(rows: Sequence[Mapping[str, torch.Tensor]], device: Any, with_prior: bool) -> MicroBatch:
    batch = {name: torch.stack([row[name] for row in rows]).to(device) for name in rows[0]}
    return MicroBatch(
        latents=batch.pop("latents"),
        prompt_latents=batch.pop("prompt_latents"),
        noise=batch.pop("noise"),
        timesteps=batch.pop("timestep"),
        own=batch.pop("own"),
        with_prior=with_prior,
        frozen=batch,
    )


class Predicted(NamedTuple):
    """One call of the UNet: its input, its output, what that should have been, and what it was conditioned on."""

    noisy: torch.Tensor
    output: torch.Tensor
    target: torch.Tensor
    conditioning: Conditioning


def noised(batch: MicroBatch, schedule: Schedule) -> tuple[torch.Tensor, torch.Tensor]:
    """The UNet's input, and what its output should be; (B, C, h, w) float32."""
    latents, noise = batch.latents, batch.noise
    abar = schedule.alphas_cumprod[batch.timesteps]
    signal, sigma = abar.sqrt()[:, None, None, None], (1 - abar).sqrt()[:, None, None, None]
    noisy = signal * latents + sigma * noise
    return noisy, noise if schedule.prediction_type == "epsilon" else signal * noise - sigma * latents


def predict(
    unet: Any, batch: MicroBatch, schedule: Schedule, config: FinetuneConfig, gamma: float, levels: int
) -> Predicted:
    """Call the UNet on a micro-batch; all latents (B, C, h, w) float32."""
    latents, data = batch.latents, batch.frozen
    noisy, target = noised(batch, schedule)
    grids = latent_grids((latents.shape[-2], latents.shape[-1]), levels)
    conditioning = Conditioning(
        prompt_embeds=data["prompt_embeds"],
        pooled_prompt_embeds=data["pooled_prompt_embeds"],
        time_ids=data["time_ids"],
        image=ImageBranch.build(data["image_tokens"], data["boxes"], grids, gamma),
        text_maps=TextMaps(spans=data["predicate_span"]) if config.attention_loss_weight else None,
        backend=pick_attention(config.attention, latents.device, data["prompt_embeds"].dtype),
    )
    output = unet(
        noisy.to(data["prompt_embeds"].dtype),
        batch.timesteps,
        encoder_hidden_states=conditioning.prompt_embeds,
        cross_attention_kwargs={"conditioning": conditioning},
        added_cond_kwargs=conditioning.added_cond_kwargs,
        return_dict=False,
    )[0].float()
    return Predicted(noisy, output, target, conditioning)


def training_loss(
    unet: Any, batch: MicroBatch, schedule: Schedule, config: FinetuneConfig, gamma: float, levels: int
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """L = L_denoise + kml_weight * L_KML [+ attention_loss_weight * L_attention], mean over the batch; and its parts.

    KML's gate on the timestep is taken per sample. A sample of the prior set costs prior_weight * L_denoise alone; its
    error is the part "prior", and the other parts are means over the relation's samples.
    """
    noisy, output, target, conditioning = predict(unet, batch, schedule, config, gamma, levels)
    data, own = batch.frozen, batch.own
    denoising = losses.denoising(output, target)
    clean = losses.pred_original_sample(
        noisy, output, schedule.alphas_cumprod[batch.timesteps], schedule.prediction_type
    )
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
    parts = {"denoising": denoising, "kml": kml}
    if conditioning.text_maps is not None:
        h, w = batch.latents.shape[-2:]
        side = {h * w: (h, w) for h, w in latent_grids((h, w), levels)}
        maps = [m.unflatten(1, side[m.shape[1]]) for m in conditioning.text_maps.maps.values()]
        attention = losses.predicate_attention(maps, data["object_mask"], as_code=config.kml_gather == "as_code")
        total = total + config.attention_loss_weight * attention
        parts["attention"] = attention
    total = torch.where(own > 0, total, config.prior_weight * denoising)
    # Divided by the expected number of samples, not by this batch's: it may be zero, and steps are compared.
    share = config.prior_share if batch.with_prior else 0.0
    told = {name: (part.detach() * own).mean() / (1 - share) for name, part in parts.items()}
    if share:
        told["prior"] = (denoising.detach() * (1 - own)).mean() / share
    return total.mean(), told
