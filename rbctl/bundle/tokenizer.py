"""CLIP's tokenizer, whole or with a small vocabulary, from the byte-pair file that open_clip ships in its package."""

from __future__ import annotations

from pathlib import Path

from rbctl.files import write_json, write_text

START, END = "<|startoftext|>", "<|endoftext|>"
_BYTES = 512  # every byte, inside a word and at its end
_SMALL, _SMALL_POSITIONS = 4096, 32


def write_tokenizer(folder: Path, pad_token: str, merges: int | None = None, positions: int = 77) -> None:
    """Write a CLIPTokenizer in transformers' layout.

    Args:
        pad_token: what fills texts up to their length: SDXL's first tokenizer takes the end token, its second "!".
        merges: how many of CLIP's merges, the most frequent first; None for all. Words beyond them become pieces.
        positions: tokens of a text at most, both ends included.
    """
    from open_clip.tokenizer import SimpleTokenizer

    clip = SimpleTokenizer()
    pairs = list(clip.bpe_ranks)[:merges]
    words = [*sorted(clip.encoder, key=clip.encoder.__getitem__)[: _BYTES + len(pairs)], START, END]
    write_json(folder / "vocab.json", {word: index for index, word in enumerate(words)})
    write_text(folder / "merges.txt", "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in pairs))
    added = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    start, end = ({"content": word, **added} for word in (START, END))
    special = {"bos_token": start, "eos_token": end, "unk_token": end}
    write_json(folder / "special_tokens_map.json", {**special, "pad_token": pad_token})
    typed = {name: {"__type": "AddedToken", **token} for name, token in special.items()}
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "CLIPTokenizer",
            "model_max_length": positions,
            "do_lower_case": True,
            "add_prefix_space": False,
            "clean_up_tokenization_spaces": True,
            "errors": "replace",
            "pad_token": pad_token,
            **typed,
        },
    )


def write_small_tokenizer(folder: Path, pad_token: str = END) -> None:
    """The tokenizer of ``mini``: 4096 words (bytes, 3582 merges, both ends), texts of 32 tokens."""
    write_tokenizer(folder, pad_token, _SMALL - _BYTES - 2, _SMALL_POSITIONS)
