"""What is wrong with a LoRA file, whatever program reads it."""

from __future__ import annotations

from collections.abc import Iterator

from rbctl import any_lora, lora
from rbctl.errors import InputError, abridged
from rbctl.plugins.lora.stored import Module, StoredLora

_HASHES = ("sshs_model_hash", "modelspec.hash_sha256")


def faults(file: StoredLora) -> list[str]:
    """One line each, "FILE: WHERE: what is wrong; the mend"."""
    lines = [f"{file.path}: {line}" for line in (*_of_tensors(file), *_of_modules(file), *_of_hashes(file))]
    if lines or all(module.down is None for module in file.modules):  # LoHa and its like, which only others read
        return lines
    try:  # what is left are rules of the one who loads it
        any_lora.read(file.path)
    except InputError as error:
        return [str(error)]
    return []


def _of_tensors(file: StoredLora) -> Iterator[str]:
    for key, value in sorted(file.tensors.items()):
        if not value.float().isfinite().all():
            yield f"{abridged(key)}: holds NaN or infinite values; take an earlier file of the training"


def _of_modules(file: StoredLora) -> Iterator[str]:
    first: dict[str, str] = {}
    for module in file.modules:
        if module.network is None:
            yield f"{abridged(module.name)}: is no tensor of a LoRA"
        elif fault := _halves(module) or _shapes(module):
            yield f"{abridged(module.name)}: {fault}"
        if module.layer and (other := first.setdefault(module.layer, module.name)) != module.name:
            mend = "programs take one of them; merge files of the same form ('rbctl lora convert')"
            yield f"{abridged(module.name)}: is for the same layer as {abridged(other)}; {mend}"


def _halves(module: Module) -> str | None:
    missing = [side for side in ("down", "up") if getattr(module, side) is None]
    if not missing or module.others:  # other kinds, such as LoHa, have other parts
        return None
    return f"has no {' and no '.join(missing)} matrix; the file is incomplete, get it again"


def _shapes(module: Module) -> str | None:
    down, up = module.down, module.up
    if down is None or up is None:
        return None
    fit = down.ndim == up.ndim and down.ndim in (2, 3, 4) and down.shape[0] == up.shape[1]
    if fit and down.numel() and up.numel():
        return None
    return f"its matrices do not fit together, down {list(down.shape)} and up {list(up.shape)}"


def _of_hashes(file: StoredLora) -> Iterator[str]:
    for key, right in right_hashes(file).items():
        if not right:
            yield f"metadata {key}: belongs to other tensors; 'rbctl lora convert' writes it again"


def right_hashes(file: StoredLora) -> dict[str, bool]:
    """The hashes of the tensors that the metadata has, and whether each is right."""
    noted = {key: file.metadata[key] for key in _HASHES if key in file.metadata}
    content = lora.autov3(file.path) if noted else ""
    return {key: value.lower().removeprefix("0x") == content for key, value in noted.items()}
