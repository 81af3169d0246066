"""Models of transformers with random weights, small enough for a test."""

from __future__ import annotations

import json
from pathlib import Path

import torch


def tiny_llava(folder: Path, *words: str) -> Path:
    """A LLaVA that knows a few words."""
    import transformers as hf
    from tokenizers import Tokenizer, models, pre_tokenizers

    torch.manual_seed(0)
    known = ["<unk>", "<s>", "</s>", "<pad>", "<image>", *words]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(known)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    fast = hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, additional_special_tokens=["<image>"], **special)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**sizes, image_size=32, patch_size=16),
        text_config=hf.LlamaConfig(**sizes, vocab_size=len(known), max_position_embeddings=256),
        image_token_index=4,
        vision_feature_layer=-1,
    )
    hf.LlavaForConditionalGeneration(config).save_pretrained(folder)
    images = hf.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    strategy = {"patch_size": 16, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    hf.LlavaProcessor(images, fast, **strategy).save_pretrained(folder)
    return folder


def tiny_owlv2(folder: Path) -> Path:
    """An OWLv2 of pictures of 64 pixels."""
    import transformers as hf

    folder.mkdir()
    letters = [f"{letter}{end}" for end in ("", "</w>") for letter in "abcdefghijklmnopqrstuvwxyz"]
    tokens = [*letters, "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    towers = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    words = {**towers, "vocab_size": len(tokens), "max_position_embeddings": 32, "eos_token_id": 53, "bos_token_id": 52}
    vision = {**towers, "image_size": 64, "patch_size": 16}
    config = hf.Owlv2Config(text_config=words, vision_config=vision, projection_dim=16)
    hf.Owlv2ForObjectDetection(config).save_pretrained(folder)
    tokenizer = hf.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=32)
    square = {"height": 64, "width": 64}
    hf.Owlv2Processor(hf.Owlv2ImageProcessor(size=square), tokenizer).save_pretrained(folder)
    return folder
