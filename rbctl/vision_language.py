"""Any image-text-to-text model of transformers: what it says of pictures, and how surely it says yes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from rbctl.errors import InputError, reason
from rbctl.pretrained import from_pretrained, network

_YES, _NO = (("yes", "Yes", "YES"), ("no", "No", "NO"))
_LEAST = 0.01  # of the probability that yes and no have together; else the model means to say something else
_ANSWER = 8  # tokens of an answer with yes or no


class VisionLanguage:
    """A model of a local folder; safetensors alone, and no code of the folder's own."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        """Load it.

        Raises:
            InputError: the folder holds no such model, or is damaged.
        """
        from transformers import AutoModelForImageTextToText, AutoProcessor

        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32  # 7 billion weights: 14 GB in half
        self.model = network(AutoModelForImageTextToText, folder, dtype, use_safetensors=True).to(device)
        self.processor = from_pretrained(AutoProcessor, folder)
        self._folder = folder
        self._yes, self._no = self._tokens(_YES), self._tokens(_NO)

    def say(self, images: Sequence[Image.Image], question: str, most_tokens: int) -> str:
        """What the model answers, greedily, in one line."""
        tokens = self._generate([images], [question], max_new_tokens=most_tokens)[0]
        return self._words(tokens)

    def yes(self, images: Sequence[Sequence[Image.Image]], questions: Sequence[str]) -> list[tuple[float | None, str]]:
        """How surely the model answers yes, and its words.

        Args:
            images: per question the pictures that it is about; as many for each.

        Returns:
            Per question the probability of yes against no at the first token. Where the model would say neither, or
            its tokenizer has no such token, 1 or 0 by the first word, and None where that is neither.

        Raises:
            InputError: the model takes no such question; some take one picture alone.
        """
        options = {"max_new_tokens": _ANSWER, "output_logits": True, "return_dict_in_generate": True, "num_beams": 1}
        try:
            output = self._generate(images, questions, **options)
        except (RuntimeError, TypeError, ValueError) as error:
            if len(questions) == 1:
                raise InputError(
                    f"{self._folder}: cannot be asked with {len(images[0])} pictures ({reason(error)})"
                ) from error
            # Not every processor takes several: it has no token to pad with, or no place for pictures of other sizes.
            return [self.yes([shown], [question])[0] for shown, question in zip(images, questions, strict=True)]
        first = output.logits[0].float().softmax(-1)
        width = output.sequences.shape[1] - len(output.logits)
        answers = []
        for row, tokens in zip(first, output.sequences[:, width:], strict=True):
            words = self._words(tokens)
            yes, no = float(row[self._yes].sum()), float(row[self._no].sum())
            sure = bool(self._yes and self._no) and yes + no >= _LEAST
            answers.append((yes / (yes + no) if sure else by_words(words), words))
        return answers

    def _generate(self, images: Sequence[Sequence[Image.Image]], questions: Sequence[str], **options: Any) -> Any:
        inputs = self._asked(images, questions).to(self.model.device, self.model.dtype)
        with torch.no_grad():
            output = self.model.generate(**inputs, do_sample=False, **options)
        if options.get("return_dict_in_generate") or self.model.config.is_encoder_decoder:
            return output
        return output[:, inputs["input_ids"].shape[1] :]  # others repeat the question

    def _asked(self, images: Sequence[Sequence[Image.Image]], questions: Sequence[str]) -> Any:
        """The questions in the model's own form of a dialogue, or in LLaVA's where the model has none."""
        padded = {"padding": True, "padding_side": "left"} if len(questions) > 1 else {}
        if getattr(self.processor, "chat_template", None):
            dialogues = []
            for shown, question in zip(images, questions, strict=True):
                content = [*({"type": "image", "image": image} for image in shown), {"type": "text", "text": question}]
                dialogues.append([{"role": "user", "content": content}])
            form = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
            return self.processor.apply_chat_template(dialogues, **form, **padded)
        placeholder = f"{getattr(self.processor, 'image_token', '')}\n"
        texts = [
            f"USER: {placeholder * len(own)}{text} ASSISTANT:" for own, text in zip(images, questions, strict=True)
        ]
        return self.processor(images=[[*own] for own in images], text=texts, return_tensors="pt", **padded)

    def _words(self, tokens: torch.Tensor) -> str:
        return " ".join(self.processor.tokenizer.decode(tokens, skip_special_tokens=True).split())

    def _tokens(self, words: Sequence[str]) -> list[int]:
        """The single tokens that are one of the words, at the start of a text and behind a space."""
        tokenizer = self.processor.tokenizer
        spellings = [
            tokenizer.encode(f"{space}{word}", add_special_tokens=False) for word in words for space in ("", " ")
        ]
        return sorted({ids[0] for ids in spellings if len(ids) == 1 and ids[0] != tokenizer.unk_token_id})


def by_words(words: str) -> float | None:
    """1 or 0 by the first word of an answer, None where that is neither yes nor no."""
    first = words.split()[0].strip(".,;:!\"'*").lower() if words.split() else ""
    return {"yes": 1.0, "no": 0.0}.get(first)
