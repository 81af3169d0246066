"""The losses, pure functions of tensors: no module, no schedule, no logging."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import interpolate, mse_loss


def noised(
    latents: torch.Tensor, noise: torch.Tensor, alphas_cumprod: torch.Tensor, prediction_type: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """The UNet's input z_t = sqrt(abar) z + sqrt(1 - abar) eps, and what its output should be: eps, or v.

    Args:
        latents, noise: (B, C, h, w) float32.
        alphas_cumprod: (B,), abar at each sample's timestep.
        prediction_type: "epsilon" or "v_prediction".
    """
    signal, sigma = alphas_cumprod.sqrt()[:, None, None, None], (1 - alphas_cumprod).sqrt()[:, None, None, None]
    target = noise if prediction_type == "epsilon" else signal * noise - sigma * latents
    return signal * latents + sigma * noise, target


def pred_original_sample(
    noisy_latents: torch.Tensor, model_pred: torch.Tensor, alphas_cumprod: torch.Tensor, prediction_type: str
) -> torch.Tensor:
    """One-step estimate of the clean latents, z0_hat = (z_t - sqrt(1 - abar) eps_hat) / sqrt(abar).

    Args:
        noisy_latents, model_pred: (B, C, h, w).
        alphas_cumprod: (B,), abar at each sample's timestep.
        prediction_type: "epsilon" or "v_prediction".
    """
    abar = alphas_cumprod[:, None, None, None]
    if prediction_type == "epsilon":
        return (noisy_latents - (1 - abar).sqrt() * model_pred) / abar.sqrt()
    if prediction_type == "v_prediction":
        return abar.sqrt() * noisy_latents - (1 - abar).sqrt() * model_pred
    raise ValueError(f"unknown prediction_type {prediction_type!r}")


def denoising(model_pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean squared error of each sample, (B, C, h, w) -> (B,)."""
    return mse_loss(model_pred.float(), target.float(), reduction="none").mean(dim=(1, 2, 3))


def read_keypoints(
    latents: torch.Tensor, keypoints: torch.Tensor, scale: tuple[int, int] | None = None
) -> torch.Tensor:
    """Latent vectors at the cells floor(x w), floor(y h) of keypoints.

    Args:
        latents: (R, C, h, w).
        keypoints: (R, K, 2) relative (x, y).
        scale: (w, h) to multiply with, if not the latents' own.

    Returns:
        (R, K, C).
    """
    h, w = latents.shape[-2:]
    columns, rows = scale or (w, h)
    x = (keypoints[..., 0] * columns).long().clamp(0, w - 1)
    y = (keypoints[..., 1] * rows).long().clamp(0, h - 1)
    cells = (y * w + x)[:, None].expand(-1, latents.shape[1], -1)  # (R, C, K)
    return latents.flatten(2).gather(2, cells).mT


def keypoint_matching(
    predicted: torch.Tensor,
    image_prompt_latents: torch.Tensor,
    target_keypoints: torch.Tensor,
    image_keypoints: torch.Tensor,
    visible: torch.Tensor,
    as_code: bool = False,
) -> torch.Tensor:
    """Keypoint matching loss (KML) of each sample: mean squared difference between the estimate of the clean target
    latents and the latents of the image prompt, at the same keypoint of the same individual.

    Args:
        predicted: (B, C, h, w) estimate of the clean latents.
        image_prompt_latents: (B, N, C, h', w'), scaled like ``predicted``.
        target_keypoints, image_keypoints: (B, N, K, 2) relative (x, y).
        visible: (B, N, K) bool; a pair counts when the keypoint is inside both pictures.
        as_code: read the image prompts as the official code does, which scales their keypoints by 4, the channel
            count, and so only ever sees the top-left corner.

    Returns:
        (B,); zero for a sample without a visible pair.
    """
    objects = image_prompt_latents.shape[1]
    inside = predicted.repeat_interleave(objects, 0)  # (B N, C, h, w)
    at_target = read_keypoints(inside, target_keypoints.flatten(0, 1))
    channels = image_prompt_latents.shape[2]
    at_prompt = read_keypoints(
        image_prompt_latents.flatten(0, 1), image_keypoints.flatten(0, 1), (channels, channels) if as_code else None
    )
    error = (at_target.float() - at_prompt.float()).square().mean(-1).unflatten(0, (-1, objects))  # (B, N, K)
    weight = visible.to(error.dtype)
    return (error * weight).sum((1, 2)) / weight.sum((1, 2)).clamp(min=1)


def predicate_attention(
    maps: Sequence[torch.Tensor], object_mask: torch.Tensor, as_code: bool = False, eps: float = 1e-5
) -> torch.Tensor:
    """The official code's extra term (not in the paper): the predicate's text attention belongs on the objects.

    Per layer: mean of the map over the background minus its mean over the objects; then the mean over layers.

    Args:
        maps: per layer (B, h_l, w_l), the predicate's text-attention map.
        object_mask: (B, H, W) in {0, 1}, union of the objects' masks.
        as_code: resize an already resized mask from layer to layer, as the official code does.

    Returns:
        (B,).
    """
    mask = object_mask[:, None].float()
    total = torch.zeros(mask.shape[0], device=mask.device)
    for attention in maps:
        resized = interpolate(mask, size=attention.shape[-2:], mode="nearest")
        if as_code:
            mask = resized
        inside = resized[:, 0]
        outside = 1 - inside
        background = (attention * outside).sum((1, 2)) / (outside.sum((1, 2)) + eps)
        foreground = (attention * inside).sum((1, 2)) / (inside.sum((1, 2)) + eps)
        total = total + background - foreground
    return total / max(len(maps), 1)
