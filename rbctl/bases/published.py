"""Sizes of the published editors, as other programs state them (docs/bases.md); no published weights were read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from rbctl.bases import families
from rbctl.bases.reference_transformer import ReferenceTransformer


@dataclass(frozen=True)
class Published:
    """One of them.

    Attributes:
        title: for people.
        family: name of its family, whose ``base`` module has the class ``base``.
        transformer, vae: classes of diffusers; the transformer with its ``config``.
        text: class of transformers, with the arguments of its configuration.
    """

    title: str
    family: str
    base: str
    transformer: str
    config: Mapping[str, Any]
    vae: str
    text: str
    text_config: Mapping[str, Any]

    def text_encoder(self) -> torch.nn.Module:
        """Of random weights, where torch's default device is."""
        import transformers

        network: type[Any] = getattr(transformers, self.text)
        model: torch.nn.Module = network(network.config_class(**self.text_config))
        return model

    def on_meta(self) -> ReferenceTransformer:
        """The base without weights and without its text encoder."""
        import diffusers

        with torch.device("meta"):
            pipeline = SimpleNamespace(
                transformer=getattr(diffusers, self.transformer).from_config(self.config),
                vae=getattr(diffusers, self.vae)(),
            )
        kind: type[ReferenceTransformer] = getattr(families()[self.family].module("base"), self.base)
        return kind(Path(self.title), torch.device("meta"), torch.bfloat16, pipeline)


def _klein(title: str, layers: int, single_layers: int, heads: int, width: int, inner: int) -> Published:
    return Published(
        title=title,
        family="flux2",
        base="Flux2",
        transformer="Flux2Transformer2DModel",
        config={
            "num_layers": layers,
            "num_single_layers": single_layers,
            "num_attention_heads": heads,
            "joint_attention_dim": 3 * width,
            "guidance_embeds": False,
        },
        vae="AutoencoderKLFlux2",
        text="Qwen3ForCausalLM",
        text_config={
            "hidden_size": width,
            "intermediate_size": inner,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 151_936,
            "tie_word_embeddings": width < 4096,
        },
    )


PUBLISHED = {
    "flux2-klein-4b": _klein("FLUX.2 Klein 4B", 5, 20, 24, 2560, 9728),
    "flux2-klein-9b": _klein("FLUX.2 Klein 9B", 8, 24, 32, 4096, 12_288),
    "qwen-image-edit": Published(
        title="Qwen-Image-Edit-Plus",
        family="qwen_image_edit",
        base="QwenImageEdit",
        transformer="QwenImageTransformer2DModel",
        config={},
        vae="AutoencoderKLQwenImage",
        text="Qwen2_5_VLForConditionalGeneration",
        text_config={  # Qwen2.5-VL-7B
            "text_config": {
                "hidden_size": 3584,
                "intermediate_size": 18_944,
                "num_hidden_layers": 28,
                "num_attention_heads": 28,
                "num_key_value_heads": 4,
                "vocab_size": 152_064,
            },
            "vision_config": {
                "depth": 32,
                "hidden_size": 1280,
                "intermediate_size": 3420,
                "num_heads": 16,
                "out_hidden_size": 3584,
            },
        },
    ),
}
