"""Backends ``llava`` and ``image-text-to-text``: a caption of every picture that has no text.

Any image-text-to-text model of transformers will do, LLaVA among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from rbctl.plugins.annotate.config import AnnotateConfig
from rbctl.pretrained import from_pretrained, network

_QUESTION = "Describe in one short sentence what {names} are doing to each other. Use exactly these names."
_MOST_TOKENS = 48


class Captions:
    def __init__(self, folder: Path, config: AnnotateConfig, device: torch.device) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32  # 7 billion weights: 14 GB in half
        self.model = network(AutoModelForImageTextToText, folder, dtype, use_safetensors=True).to(device)
        self.processor = from_pretrained(AutoProcessor, folder)

    def __call__(self, images: Sequence[Image.Image], names: Sequence[Sequence[str]]) -> list[str]:
        captions = []
        for image, row in zip(images, names, strict=True):
            question = _QUESTION.format(names=" and ".join(f"the {name}" for name in row))
            inputs = self._asked(image, question).to(self.model.device, self.model.dtype)
            with torch.no_grad():
                tokens = self.model.generate(**inputs, max_new_tokens=_MOST_TOKENS, do_sample=False)[0]
            if not self.model.config.is_encoder_decoder:  # others repeat the question
                tokens = tokens[inputs["input_ids"].shape[1] :]
            captions.append(" ".join(self.processor.tokenizer.decode(tokens, skip_special_tokens=True).split()))
        return captions

    def _asked(self, image: Image.Image, question: str) -> Any:
        """The question in the model's own form of a dialogue, or in LLaVA's where the model has none."""
        if getattr(self.processor, "chat_template", None):
            content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
            form = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
            return self.processor.apply_chat_template([{"role": "user", "content": content}], **form)
        placeholder = getattr(self.processor, "image_token", "")
        text = f"USER: {placeholder}\n{question} ASSISTANT:"
        return self.processor(images=image, text=text, return_tensors="pt")
