"""Learned embeddings: vectors that stand for a token in both text encoders of SDXL, and their file.

The file is what diffusers, ComfyUI and A1111 read: safetensors with ``clip_l`` (V, 768) and ``clip_g`` (V, 1280).
Tokenizers and weights stay as they are: a token's vectors take the place of the token embeddings of their positions.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import normalize

from rbctl.errors import InputError, abridged
from rbctl.files import read_safetensors, write_safetensors
from rbctl.parsing import parse_json

KEYS = ("clip_l", "clip_g")
# Of ReVersion's kind: English prepositions, which an embedding of a relation is kept among.
PREPOSITIONS: tuple[str, ...] = (
    "aboard", "about", "above", "across", "after", "against", "along", "alongside", "amid", "among", "around",
    "astride", "at", "atop", "before", "behind", "below", "beneath", "beside", "between", "beyond", "by", "down",
    "from", "in", "inside", "into", "near", "of", "off", "on", "onto", "opposite", "out", "outside", "over", "past",
    "through", "to", "toward", "towards", "under", "underneath", "up", "upon", "versus", "with", "within", "without",
)  # fmt: skip
_TOKEN = re.compile(r"<[^\s<>,:]+>")


@dataclass(frozen=True, eq=False)
class Embedding:
    """What one token stands for.

    Attributes:
        token: as a prompt says it, "<ride>".
        vectors: (V, D) of each text encoder, in the order of ``KEYS``.
        metadata: the file's; ``rbctl.words`` lists the words of ordinary prompts in whose place the token is put.
    """

    token: str
    vectors: tuple[torch.Tensor, torch.Tensor]
    path: Path | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def words(self) -> tuple[str, ...]:
        """The words it stands for; none where the file does not tell."""
        return words_of(self.metadata, self.path)

    @property
    def instance(self) -> str:
        """What a prompt says in the place of those words: the token, of Custom Diffusion with a noun behind it."""
        own = self.metadata.get("rbctl.token", self.token)
        return self.metadata.get("rbctl.instance", own).replace(own, self.token)


def words_of(metadata: Mapping[str, str], path: Path | None) -> tuple[str, ...]:
    """The words in whose place a prompt is to say what was learned.

    Raises:
        InputError: the metadata of the file ``path`` holds something else.
    """
    words = parse_json(metadata.get("rbctl.words", "[]"), f"{path}: rbctl.words")
    if not isinstance(words, list) or not all(isinstance(word, str) and word.strip() for word in words):
        raise InputError(f"{path}: rbctl.words: a list of words was expected, not {abridged(words)}")
    return tuple(words)


def check_token(token: str, where: str) -> str:
    """Raises InputError unless the token is of the form <name>, which no other word of a prompt can be."""
    if not _TOKEN.fullmatch(token):
        raise InputError(
            f"{where}: {abridged(token)} is no token; write it as <name>, without spaces, commas and colons"
        )
    return token


def save(path: Path, embedding: Embedding) -> None:
    """Write the embedding's file, atomically."""
    tensors = {key: value.float() for key, value in zip(KEYS, embedding.vectors, strict=True)}
    write_safetensors(path, tensors, {**embedding.metadata, "rbctl.token": embedding.token})


def split(name: str) -> tuple[Path, str | None]:
    """PATH[:TOKEN]; a colon belongs to the path where that is a file."""
    head, colon, token = name.rpartition(":")
    return (Path(head), token) if colon and not Path(name).is_file() else (Path(name), None)


def read(name: str) -> Embedding:
    """Read PATH[:TOKEN]; the token is else what the file's metadata says, or <FILE>.

    Raises:
        InputError: the file is missing or holds no such vectors, or the token is of another form.
    """
    path, token = split(name)
    tensors, metadata = read_safetensors(path)
    if set(tensors) != set(KEYS):
        names = ", ".join(sorted(tensors)[:4]) or "nothing"
        raise InputError(f"{path}: holds {names}; an embedding for SDXL holds clip_l and clip_g")
    if not all(tensor.numel() for tensor in tensors.values()):
        raise InputError(f"{path}: holds no vectors; an embedding for SDXL holds one at least")
    rows = [tensors[key].float().reshape(-1, tensors[key].shape[-1] if tensors[key].ndim else 1) for key in KEYS]
    if rows[0].shape[0] != rows[1].shape[0]:
        raise InputError(f"{path}: clip_l {tuple(rows[0].shape)}, clip_g {tuple(rows[1].shape)}: as many rows expected")
    if not all(torch.isfinite(part).all() for part in rows):
        raise InputError(f"{path}: holds NaN or infinite values; the training that made it diverged")
    token = token or metadata.get("rbctl.token") or f"<{path.stem}>"
    return Embedding(check_token(token, name), (rows[0], rows[1]), path, metadata)


def check_widths(embedding: Embedding, widths: Sequence[int], bundle: str) -> None:
    """Raises InputError when the vectors are not as wide as the text encoders of the bundle."""
    for key, vectors, width in zip(KEYS, embedding.vectors, widths, strict=True):
        if vectors.shape[1] != width:
            raise InputError(
                f"{embedding.path}: {key} is {vectors.shape[1]} wide, the text encoder of bundle {bundle!r} {width}; "
                "choose the bundle that it was made for with --bundle"
            )


def pieces(tokenizer: Any, text: str, embeddings: Sequence[Embedding]) -> list[int]:
    """A text's token ids without both ends; of a learned token, one number -1 - k a vector.

    k counts the vectors of all embeddings in their order.
    """
    places: dict[str, list[int]] = {}
    for embedding in embeddings:
        first = sum(map(len, places.values()))
        places[embedding.token] = [-1 - k for k in range(first, first + len(embedding.vectors[0]))]
    pattern = "|".join(re.escape(token) for token in places) or r"(?!)"
    ids: list[int] = []
    for part in re.split(f"({pattern})", text):
        if part in places:
            ids += places[part]
        elif part.strip():
            ids += tokenizer(part, add_special_tokens=False)["input_ids"]
    return ids


def token_ids(tokenizer: Any, texts: Sequence[str], embeddings: Sequence[Embedding]) -> torch.Tensor:
    """(B, T) of :func:`pieces` between both ends, cut and padded as the tokenizer itself does."""
    length, rows = tokenizer.model_max_length, []
    for text in texts:
        inner = pieces(tokenizer, text, embeddings)[: length - 2]
        row = [tokenizer.bos_token_id, *inner, tokenizer.eos_token_id]
        rows.append(row + [tokenizer.pad_token_id] * (length - len(row)))
    return torch.tensor(rows)


@contextlib.contextmanager
def placed(encoder: Any, ids: torch.Tensor, vectors: torch.Tensor) -> Iterator[torch.Tensor]:
    """While this is held, the encoder reads the vectors (K, D) where ``ids`` (B, T) are negative.

    Yields:
        Ids to call it with. They hold none beyond the vocabulary: CLIP's text encoders may pool at the highest id.
    """
    learned, rows = (ids < 0)[..., None], (-1 - ids).clamp(min=0)

    def put(_module: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return torch.where(learned, vectors.to(output.device, output.dtype)[rows], output)

    with encoder.get_input_embeddings().register_forward_hook(put):
        yield ids.clamp(min=0)


def initial(tokenizer: Any, encoder: Any, words: str, count: int) -> torch.Tensor:
    """(count, D) to begin with: the embeddings of the words' tokens in turn; their mean where they are more.

    Raises:
        InputError: the words have no token.
    """
    ids = tokenizer(words, add_special_tokens=False)["input_ids"]
    if not ids:
        raise InputError(f"--initializer {words!r}: words were expected")
    rows = encoder.get_input_embeddings().weight.detach()[ids].float()
    if count < len(rows):
        rows = rows.mean(0, keepdim=True)
    return rows[torch.arange(count) % len(rows)].clone()


def single_tokens(tokenizer: Any, words: Sequence[str]) -> list[int]:
    """Ids of those words that are one token."""
    by_word = (tokenizer(word, add_special_tokens=False)["input_ids"] for word in words)
    return [ids[0] for ids in by_word if len(ids) == 1]


def steering_loss(
    vectors: torch.Tensor, positives: torch.Tensor, negatives: torch.Tensor, temperature: float = 0.07
) -> torch.Tensor:
    """ReVersion's relation-steering contrastive loss (Huang et al. 2024, arXiv 2303.13495, equation 4).

    -log(sum_l exp(cos(R, P_l) / temperature) / (that + sum_m exp(cos(R, N_m) / temperature))), mean over the vectors R.

    Args:
        vectors: (V, D), what is learned. positives: (P, D), of basis prepositions. negatives: (M, D), of the caption's
            other words; with none the loss is zero.
    """
    toward, away = (normalize(vectors, dim=-1) @ normalize(p, dim=-1).T / temperature for p in (positives, negatives))
    return (torch.cat((toward, away), dim=-1).logsumexp(-1) - toward.logsumexp(-1)).mean()
