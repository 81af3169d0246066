"""A VAE in place of the bundle's own: where its weights are, whether it fits, and the network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rbctl.bundle.catalogue import place
from rbctl.bundle.single_file import read_vae
from rbctl.errors import InputError, abridged
from rbctl.files import read_object
from rbctl.pretrained import loading

_LATENTS = {"latent_channels": 4, "scaling_factor": 0.18215, "shift_factor": None}  # with diffusers' defaults


def vae_files(name_or_path: str | Path, bundle: Path) -> tuple[Path, Path]:
    """The weights and the configuration of a VAE.

    Args:
        name_or_path: one file; a folder in diffusers' layout, of a VAE or a whole pipeline; or the name of a bundle.
        bundle: folder whose VAE is replaced; a VAE of one file has its configuration.

    Raises:
        InputError: there is no such VAE, or its latents are others than those of the bundle.
    """
    path, own_config = Path(name_or_path), bundle / "vae" / "config.json"
    if path.is_file():
        return path, own_config
    folder = path if path.is_dir() else place(str(name_or_path))
    folder = folder / "vae" if (folder / "vae").is_dir() else folder
    if not folder.is_dir():
        raise InputError(f"--vae {abridged(str(name_or_path))}: no such file, folder or bundle")
    files = [folder / f"diffusion_pytorch_model{mark}.safetensors" for mark in ("", ".fp16")]
    weights = next((file for file in files if file.is_file()), None)
    if weights is None:
        raise InputError(f"{folder}: no {files[0].name}; --vae takes a folder in diffusers' layout, or one file")
    config, own = read_object(folder / "config.json"), read_object(own_config)
    for key, default in _LATENTS.items():
        if config.get(key, default) != own.get(key, default):
            raise InputError(
                f"{folder}: its {key} is {abridged(config.get(key, default))}, that of the bundle's VAE is "
                f"{abridged(own.get(key, default))}; take a VAE that was made for this base"
            )
    if _levels(config) != _levels(own):
        raise InputError(
            f"{folder}: {2 ** (_levels(config) - 1)} pixels make one of its latents, {2 ** (_levels(own) - 1)} one of "
            "the bundle's; take a VAE that was made for this base"
        )
    return weights, folder / "config.json"


def _levels(config: dict[str, Any]) -> int:
    listed = config.get("block_out_channels")
    return len(listed) if isinstance(listed, list) and 0 < len(listed) < 16 else 1


def load_vae(name_or_path: str | Path, bundle: Path) -> Any:
    """The network of :func:`vae_files`, in float32.

    Raises:
        InputError: as there, or its weights do not fit its configuration.
    """
    import torch

    from rbctl.bundle.vae import vae_class

    weights, config = vae_files(name_or_path, bundle)
    tensors, settings = read_vae(weights, config)
    with loading(config), torch.device("meta"):
        vae = vae_class(settings, config).from_config(settings)
    vae.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
    return vae
