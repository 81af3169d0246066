"""How SDXL's UNet is trained on triplets, beside MS-Diffusion's adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image

from rbctl import denoising, losses
from rbctl.bases import Prediction, SamplerOptions
from rbctl.bases.sdxl.sampling import Sampler
from rbctl.bundle.bundle import Bundle
from rbctl.conditioning import DUMMY_TOKENS, Conditioning, Encoded, ImageBranch, TextMaps, latent_grids
from rbctl.device import pick_attention
from rbctl.errors import InputError
from rbctl.image_prompt import clip_pixels
from rbctl.phrases import token_span

_GUIDANCE = 5.0  # of previews
_TEXTS = ("prompt_embeds", "pooled_prompt_embeds")


class Texts(NamedTuple):
    """A triplet's prompt, where its predicate stands among the tokens, and what the resampler knows of its names."""

    prompt: str
    predicate_span: tuple[int, int]
    phrases: torch.Tensor


class Training:
    """See :class:`rbctl.bases.Training`.

    Attributes:
        alphas_cumprod: abar of every training timestep (T,), on the device of training.
        prediction_type: what the UNet predicts, "epsilon" or "v_prediction".
        gamma: weight of the image branch.
    """

    # M image tokens, T text tokens. A box of an absent object is zeros: no query lies in it.
    shapes: Mapping[str, str] = {
        "image_tokens": "S A M D",
        "prompt_embeds": "S T D",
        "pooled_prompt_embeds": "S P",
        "predicate_span": "S 2",
        "empty_prompt_embeds": "T D",
        "empty_pooled_prompt_embeds": "P",
    }

    def __init__(self, bundle: Bundle, config: Any) -> None:
        alphas, self.prediction_type = bundle.training_schedule()
        self.bundle, self.config = bundle, config
        self.alphas_cumprod = alphas.to(bundle.device)
        self.timesteps = len(alphas)
        self.gamma = bundle.gamma if config.gamma is None else config.gamma

    def texts(self, prompt: str, predicate: str, names: Sequence[str], where: str | None) -> Texts:
        """Raises InputError where the loss on the predicate has a weight and the prompt lacks it."""
        span = token_span(self.bundle.tokenizer, prompt, predicate)
        if where and self.config.attention_loss_weight > 0 and span == (0, 0):
            raise InputError(
                f"{where}: its prompt {prompt!r} does not hold the predicate {predicate!r}, "
                "which --attention-loss-weight needs; mend the data or set the weight to 0"
            )
        return Texts(prompt, span, self.bundle.encode_phrases(names))

    def of_triplet(self, texts: Texts) -> dict[str, torch.Tensor]:
        embeds, pooled = self.bundle.encode_prompts([texts.prompt])
        self.bundle.place("image_prompt_encoder")  # for the versions, which come next
        span = torch.tensor(texts.predicate_span)
        return {"prompt_embeds": embeds[0], "pooled_prompt_embeds": pooled[0], "predicate_span": span}

    def of_version(
        self, texts: Texts, prompts: Sequence[Image.Image], squares: Sequence[Image.Image], boxes: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        bundle, config = self.bundle, self.config
        encoder, local = bundle.image_prompt_encoder, None
        if config.local_tokens != "none":
            local = clip_pixels(prompts, bundle.local_image_size).to(bundle.device, bundle.dtype)
        pixels = clip_pixels(prompts, bundle.clip_image_size).to(bundle.device, bundle.dtype)
        tokens = encoder.object_tokens(pixels, local, config.local_tokens, config.local_grid, config.local_injection)
        places = boxes[None].to(bundle.device)
        return {"image_tokens": encoder.adapter_tokens(tokens, places, texts.phrases[None])[0]}

    def padded(self, encoded: Mapping[str, torch.Tensor], objects: int, most: int) -> dict[str, torch.Tensor]:
        tokens = encoded["image_tokens"]
        missing = (tokens.shape[0] - DUMMY_TOKENS) // objects * (most - objects)
        return {"image_tokens": torch.cat((tokens, tokens.new_zeros(missing, *tokens.shape[1:])))}

    def even(self, rows: Sequence[dict[str, torch.Tensor]]) -> None:
        """They are: CLIP pads all to 77 tokens."""

    def of_nothing(self) -> dict[str, torch.Tensor]:
        embeds, pooled = self.bundle.encode_prompts([""])
        return {"empty_prompt_embeds": embeds[0].cpu(), "empty_pooled_prompt_embeds": pooled[0].cpu()}

    def levels(self, timesteps: torch.Tensor, latent_size: tuple[int, int]) -> torch.Tensor:
        return timesteps

    def noised(
        self, latents: torch.Tensor, noise: torch.Tensor, levels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return losses.noised(latents, noise, self.alphas_cumprod[levels], self.prediction_type)

    def predict(
        self,
        model: Any,
        noisy: torch.Tensor,
        levels: torch.Tensor,
        encoded: Mapping[str, torch.Tensor],
        prompt_latents: torch.Tensor,
    ) -> Prediction:
        config, levels_of_unet = self.config, self.bundle.levels
        size = noisy.shape[-2], noisy.shape[-1]
        grids = latent_grids(size, levels_of_unet)
        conditioning = Conditioning(
            prompt_embeds=encoded["prompt_embeds"],
            pooled_prompt_embeds=encoded["pooled_prompt_embeds"],
            time_ids=encoded["time_ids"],
            image=ImageBranch.build(encoded["image_tokens"], encoded["boxes"], grids, self.gamma),
            text_maps=TextMaps(spans=encoded["predicate_span"]) if config.attention_loss_weight else None,
            backend=pick_attention(config.attention, noisy.device, encoded["prompt_embeds"].dtype),
        )
        output = denoising.predict(model, noisy, levels, conditioning)
        own: dict[str, torch.Tensor] = {}
        if conditioning.text_maps is not None:
            sides = {h * w: (h, w) for h, w in grids}
            maps = [m.unflatten(1, sides[m.shape[1]]) for m in conditioning.text_maps.maps.values()]
            as_code = config.kml_gather == "as_code"
            own["attention"] = losses.predicate_attention(maps, encoded["object_mask"], as_code)
        return Prediction(output, own, conditioning)

    def clean(self, noisy: torch.Tensor, output: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
        return losses.pred_original_sample(noisy, output, self.alphas_cumprod[levels], self.prediction_type)

    def cells(self, latents: torch.Tensor) -> torch.Tensor:
        return latents

    def sample(
        self,
        encodings: Mapping[str, torch.Tensor],
        rows: Sequence[int],
        noise: torch.Tensor,
        steps: int,
        generators: Sequence[Any],
    ) -> torch.Tensor:
        bundle, some = self.bundle, list(rows)
        tokens, boxes = (encodings[name][some, 0].to(bundle.device) for name in ("image_tokens", "boxes"))
        texts = {name: encodings[name][some].to(bundle.device, bundle.dtype) for name in _TEXTS}
        empty = {name: encodings[f"empty_{name}"].to(texts[name]).expand_as(texts[name]) for name in _TEXTS}
        encoded = Encoded(
            **texts,
            **{f"negative_{name}": embeds for name, embeds in empty.items()},
            image_tokens=tokens,
            boxes=boxes,
            object_weights=torch.full(boxes.shape[:2], self.gamma, device=bundle.device),
        )
        sampler = Sampler(bundle, SamplerOptions(attention=self.config.attention))
        return sampler.denoise_encoded(encoded, noise, steps, _GUIDANCE, generators=generators)
