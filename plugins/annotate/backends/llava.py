"""Backend ``llava``: a caption of every picture that has no text, by LLaVA of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from rbctl.plugins.annotate.config import AnnotateConfig
from rbctl.pretrained import from_pretrained, network

_QUESTION = (
    "USER: <image>\nDescribe in one short sentence what {names} are doing to each other. Use exactly these names. "
    "ASSISTANT:"
)
_MOST_TOKENS = 48


class Captions:
    def __init__(self, folder: Path, config: AnnotateConfig, device: torch.device) -> None:
        from transformers import AutoProcessor, LlavaForConditionalGeneration

        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32  # 7 billion weights: 14 GB in half
        self.model = network(LlavaForConditionalGeneration, folder, dtype, use_safetensors=True).to(device)
        self.processor = from_pretrained(AutoProcessor, folder)

    def __call__(self, images: Sequence[Image.Image], names: Sequence[Sequence[str]]) -> list[str]:
        captions = []
        for image, row in zip(images, names, strict=True):
            question = _QUESTION.format(names=" and ".join(f"the {name}" for name in row))
            inputs = self.processor(images=image, text=question, return_tensors="pt")
            inputs = inputs.to(self.model.device, self.model.dtype)
            with torch.no_grad():
                tokens = self.model.generate(**inputs, max_new_tokens=_MOST_TOKENS, do_sample=False)
            answer = tokens[0, inputs["input_ids"].shape[1] :]
            captions.append(" ".join(self.processor.tokenizer.decode(answer, skip_special_tokens=True).split()))
        return captions
