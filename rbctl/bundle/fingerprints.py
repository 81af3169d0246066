"""Fingerprints: what names the content of a bundle, or of a part of it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from rbctl.bases import family_of
from rbctl.bundle.catalogue import contents, has_local_encoder, resolve
from rbctl.bundle.hashes import file_hashes


def fingerprint(folder: Path, parts: Sequence[str] | None = None) -> str:
    """Names the content of a bundle, wherever it lies: SHA-256 over the paths and hashes of its files.

    The hashes are those of the files as they are now, not those of ``bundle.json``, which says what came once.

    Args:
        parts: only these files and folders of it, as those that a LoRA is tuned on.
    """
    paths = [path for path in contents(folder) if parts is None or Path(path).parts[0] in parts]
    digests = file_hashes(folder, paths)
    return hashlib.sha256("".join(f"{path}\0{digest}\n" for path, digest in digests.items()).encode()).hexdigest()


def base_fingerprint(folder: Path) -> str:
    """Names what a relation LoRA is tuned on: the UNet and the adapter, or the transformer."""
    return fingerprint(folder, family_of(folder).learned_on)


def generator_fingerprint(folder: Path) -> str:
    """Names what pictures are made with; another oracle, DINO, recipe or model card does not change it.

    A bundle that shares parts with another depends on that one too.
    """
    parts = {Path(path).parts[0] for path in contents(folder)} - {"oracle", "dino", "README.md", "recipe.yaml"}
    own, shares = fingerprint(folder, sorted(parts)), family_of(folder).shares
    if not shares:
        return own
    return hashlib.sha256(f"{own}{generator_fingerprint(resolve(shares))}".encode()).hexdigest()


def local_encoder_hash(folder: Path) -> str:
    """Names the bundle's local encoder; empty where there is none."""
    return fingerprint(folder, ("clipself",)) if has_local_encoder(folder) else ""
