"""What each step found in each picture, kept in FOLDER/.annotate until its picture, model or settings change."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from rbctl.files import PARTIAL, atomic_write

KEPT = ".annotate"


def key(*facts: Any) -> str:
    """Names what a result depends on."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:20]


class Store:
    """Results as one file each, written whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / KEPT

    def clean(self) -> None:
        """Drop what a kill left half written."""
        for left in self.root.glob(f"*/.*{PARTIAL}"):
            left.unlink(missing_ok=True)

    def path(self, step: str, picture: Path, name: str) -> Path:
        return self.root / step / f"{picture.stem}-{name}.npz"

    def has(self, step: str, picture: Path, name: str) -> bool:
        """Whether there is a whole result: the end of the file is looked for."""
        return zipfile.is_zipfile(self.path(step, picture, name))

    def save(self, step: str, picture: Path, name: str, **arrays: np.ndarray) -> None:
        """Write one result."""
        with atomic_write(self.path(step, picture, name)) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]

    def load(self, step: str, picture: Path, name: str) -> dict[str, np.ndarray] | None:
        """Read one result; None where there is none, or it is damaged (then it is dropped, to be made anew)."""
        path = self.path(step, picture, name)
        try:
            with np.load(path, allow_pickle=False) as content:
                return {field: content[field] for field in content.files}
        except FileNotFoundError:
            return None
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):
            os.unlink(path)
            return None
