"""The loss of a micro-batch under the relation LoRA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from rbctl import denoising, losses
from rbctl.bundle.bundle import Bundle
from rbctl.conditioning import Conditioning, ImageBranch, TextMaps, latent_grids
from rbctl.device import pick_attention
from rbctl.plugins.finetune.config import FinetuneConfig
from rbctl.plugins.finetune.samples import MicroBatch


@dataclass(frozen=True)
class Objective:
    """What the base model fixes of the loss.

    Attributes:
        alphas_cumprod: abar of every training timestep (T,), on the device of training.
        prediction_type: what the UNet predicts, "epsilon" or "v_prediction".
        gamma: weight of the image branch.
        levels: number of resolutions in the UNet.
    """

    config: FinetuneConfig
    alphas_cumprod: torch.Tensor
    prediction_type: str
    gamma: float
    levels: int

    @classmethod
    def of(cls, bundle: Bundle, config: FinetuneConfig) -> Objective:
        """The objective on a bundle, on the bundle's device."""
        alphas, prediction_type = bundle.training_schedule()
        gamma = bundle.gamma if config.gamma is None else config.gamma
        return cls(config, alphas.to(bundle.device), prediction_type, gamma, bundle.levels)

    def noised(self, batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """The UNet's input, and what its output should be; (B, C, h, w) float32."""
        abar = self.alphas_cumprod[batch.timesteps]
        return losses.noised(batch.latents, batch.noise, abar, self.prediction_type)

    def predict(self, unet: Any, batch: MicroBatch) -> Prediction:
        """Call the UNet on a micro-batch."""
        encoded, config = batch.encoded, self.config
        noisy, target = self.noised(batch)
        grids = latent_grids((noisy.shape[-2], noisy.shape[-1]), self.levels)
        conditioning = Conditioning(
            prompt_embeds=encoded["prompt_embeds"],
            pooled_prompt_embeds=encoded["pooled_prompt_embeds"],
            time_ids=encoded["time_ids"],
            image=ImageBranch.build(encoded["image_tokens"], encoded["boxes"], grids, self.gamma),
            text_maps=TextMaps(spans=encoded["predicate_span"]) if config.attention_loss_weight else None,
            backend=pick_attention(config.attention, noisy.device, encoded["prompt_embeds"].dtype),
        )
        output = denoising.predict(unet, noisy, batch.timesteps, conditioning)
        return Prediction(noisy, output, target, conditioning)

    def loss(self, unet: Any, batch: MicroBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """L = L_denoise + kml_weight * L_KML [+ attention_loss_weight * L_attention], mean over B; and its parts.

        KML's gate on the timestep is taken per sample. A sample of the prior set costs prior_weight * L_denoise alone.
        """
        config, encoded = self.config, batch.encoded
        noisy, output, target, conditioning = self.predict(unet, batch)
        error = losses.denoising(output, target)
        abar = self.alphas_cumprod[batch.timesteps]
        kml = losses.keypoint_matching(
            losses.pred_original_sample(noisy, output, abar, self.prediction_type),
            batch.prompt_latents,
            encoded["target_keypoints"],
            encoded["image_keypoints"],
            encoded["visible"],
            as_code=config.kml_gather == "as_code",
        )
        gate = (batch.timesteps <= config.kml_max_timestep).float()
        total = error + config.kml_weight * gate * kml
        parts = {"denoising": error, "kml": kml}
        if conditioning.text_maps is not None:
            sides = {h * w: (h, w) for h, w in latent_grids((noisy.shape[-2], noisy.shape[-1]), self.levels)}
            maps = [m.unflatten(1, sides[m.shape[1]]) for m in conditioning.text_maps.maps.values()]
            as_code = config.kml_gather == "as_code"
            parts["attention"] = losses.predicate_attention(maps, encoded["object_mask"], as_code)
            total = total + config.attention_loss_weight * parts["attention"]
        total = torch.where(batch.own > 0, total, config.prior_weight * error)
        return total.mean(), batch.means(parts)


class Prediction(NamedTuple):
    """One call of the UNet: its input, its output, what that should have been, and what it was conditioned on.

    Latents are (B, C, h, w) float32.
    """

    noisy: torch.Tensor
    output: torch.Tensor
    target: torch.Tensor
    conditioning: Conditioning
