"""The one door to bases of all families: a folder on the disk -> its summary, its tokenizer, the loaded base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from rbctl.bases import Base, Sampler, SamplerOptions, Summary, Training, family_of
from rbctl.bundle.catalogue import resolve


def load(
    name_or_folder: str | Path,
    device: torch.device,
    dtype: torch.dtype,
    local_encoder: bool = True,
    encoders: bool = True,
    lowvram: bool = False,
    vae: str | Path | None = None,
) -> Base:
    """Load the networks of a bundle, frozen and in eval mode; the VAE stays float32.

    Args:
        name_or_folder: a name of the catalogue, or a folder of the same layout.
        local_encoder: load the CLIPSelf encoder, where the family has one.
        encoders: load the text and image encoders; False where their results are at hand already.
        lowvram: the networks stay in main memory until ``Base.place`` calls them.
        vae: in place of the bundle's own, where the family takes another.

    Raises:
        InputError: the bundle is not there, or a part of it is missing or damaged; the mend is told.
    """
    folder = resolve(name_or_folder)
    options = {"local_encoder": local_encoder, "encoders": encoders, "lowvram": lowvram, "vae": vae}
    base: Base = family_of(folder).module("base").load(folder, device, dtype, **options)
    return base


def sampler(base: Base, options: SamplerOptions) -> Sampler:
    """How pictures are sampled with a loaded base."""
    own: Sampler = family_of(base.folder).module("sampling").Sampler(base, options)
    return own


def training(base: Base, config: Any) -> Training:
    """How the model of a loaded base is trained; ``config`` has the options of ``rbctl finetune``."""
    own: Training = family_of(base.folder).module("training").Training(base, config)
    return own


def summary(folder: Path) -> Summary:
    """What a bundle says of itself in its small files.

    Raises:
        InputError: one of them is damaged.
    """
    said: Summary = family_of(folder).module("base").summary(folder)
    return said


def check_schedule(folder: Path, name: str | None, steps: int) -> None:
    """Raises InputError where a bundle takes no scheduler of this name, or not so many steps."""
    family_of(folder).module("base").check_schedule(folder, name, steps)


def load_tokenizer(name_or_folder: str | Path) -> Any:
    """The tokenizer of a bundle, which says how much of a text its encoders read.

    Raises:
        InputError: the bundle is not there, or the tokenizer does not fit it.
    """
    folder = resolve(name_or_folder)
    return family_of(folder).module("base").load_tokenizer(folder)
