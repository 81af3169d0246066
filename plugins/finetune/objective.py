"""The loss of a micro-batch under the relation LoRA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from peft.helpers import rescale_adapter_scale

from rbctl import bases, losses
from rbctl.bases import Base, Training
from rbctl.bases.load import training
from rbctl.plugins.finetune.config import FinetuneConfig
from rbctl.plugins.finetune.samples import MicroBatch


@dataclass(frozen=True)
class Objective:
    """The loss on a base.

    Attributes:
        network: the base's model, not wrapped by anything.
        training: what the base fixes of it.
        timesteps: how many there are to draw from.
    """

    config: FinetuneConfig
    network: torch.nn.Module
    training: Training
    device: torch.device

    @classmethod
    def of(cls, base: Base, config: FinetuneConfig) -> Objective:
        """The objective on a base, on the base's device."""
        return cls(config, base.model, training(base, config), base.device)

    @property
    def timesteps(self) -> int:
        return self.training.timesteps

    def levels(self, batch: MicroBatch) -> torch.Tensor:
        """The timesteps (B,) that the model is told."""
        return self.training.levels(batch.timesteps, (batch.latents.shape[-2], batch.latents.shape[-1]))

    def noised(self, batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """The model's input, and what its output should be; (B, C, h, w) float32."""
        return self.training.noised(batch.latents, batch.noise, self.levels(batch))

    def predict(self, model: Any, batch: MicroBatch) -> Prediction:
        """Call the model on a micro-batch."""
        noisy, target = self.noised(batch)
        made = self.training.predict(model, noisy, self.levels(batch), batch.encoded, batch.prompt_latents)
        return Prediction(noisy, made.output, target, made)

    def loss(self, model: Any, batch: MicroBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """L = L_denoise + kml_weight * L_KML [+ attention_loss_weight * L_attention], mean over B; and its parts.

        KML's gate on the timestep is taken per sample. A sample of the prior set costs prior_weight * L_denoise alone.
        With prior_target "base" its target is what the model predicts without the LoRA (Li and Hoiem 2016, learning
        without forgetting): a picture's own noise would also pull at what the base does not know of it.
        """
        config, encoded, base = self.config, batch.encoded, self.training
        noisy, output, target, made = self.predict(model, batch)
        of_prior = batch.own == 0
        if config.prior_target == "base" and of_prior.any():
            target = target.clone()
            target[of_prior] = self._without_lora(batch.take(of_prior))
        levels, error = self.levels(batch), losses.denoising(output, target)
        references = batch.prompt_latents
        kml = losses.keypoint_matching(
            base.cells(base.clean(noisy, output, levels)),
            base.cells(references.flatten(0, 1)).unflatten(0, references.shape[:2]),
            encoded["target_keypoints"],
            encoded["image_keypoints"],
            encoded["visible"],
            as_code=config.kml_gather == "as_code",
        )
        gate = (levels <= config.kml_max_timestep).float()
        total = error + config.kml_weight * gate * kml
        parts = {"denoising": error, "kml": kml}
        if "attention" in made.losses:
            parts["attention"] = made.losses["attention"]
            total = total + config.attention_loss_weight * parts["attention"]
        total = torch.where(batch.own > 0, total, config.prior_weight * error)
        return total.mean(), batch.means(parts)

    @torch.no_grad()
    def _without_lora(self, batch: MicroBatch) -> torch.Tensor:
        with rescale_adapter_scale(self.network, 0.0):
            return self.predict(self.network, batch).output


class Prediction(NamedTuple):
    """One call of the model: its input, its output, what that should have been, and all that the base says of it.

    Latents are (B, C, h, w) float32.
    """

    noisy: torch.Tensor
    output: torch.Tensor
    target: torch.Tensor
    made: bases.Prediction
