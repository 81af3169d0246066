"""The LoRAs that a pipeline samples with, the relation's and any others, by the method names of diffusers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch

from rbctl import any_lora, unet_weights
from rbctl.any_lora import AnyLora
from rbctl.bases import Base
from rbctl.errors import InputError
from rbctl.files import sha256
from rbctl.unet_weights import UNetWeights

_RELATION = "relation"
_Value = TypeVar("_Value")


class LoraLoader:
    """Loads LoRAs into the networks of a bundle.

    Attributes:
        loras: those in use.
    """

    def __init__(self, bundle: Base) -> None:
        self.bundle = bundle
        self.loras: tuple[AnyLora, ...] = ()
        self._read: dict[tuple[Path, str], AnyLora] = {}
        self._adapters: dict[int, tuple[AnyLora, str]] = {}
        self._loaded: dict[str, AnyLora] = {}  # by the names that the user knows
        self._weights: dict[str, float] = {}  # of those in use
        self._whole: list[tuple[UNetWeights, float]] = []  # the tuned weights that the UNet has now
        self._base: dict[str, torch.Tensor] = {}  # the base model's values of what they replaced

    def load_relation(self, paths: Path | str | Sequence[Path | str], weight: float = 1.0) -> None:
        """Sample with a relation LoRA from now on, or with several at the same weight. The last call counts.

        Other LoRAs stay. The adapter's name is "relation", with several "relation_1" and so on from the second.

        Raises:
            InputError: a file is no LoRA, or is made for another base.
        """
        files = [self._file(Path(path)) for path in ([paths] if isinstance(paths, Path | str) else paths)]
        names = [_RELATION if not number else f"{_RELATION}_{number}" for number in range(len(files))]
        self._activate(
            _others(self._weights) | dict.fromkeys(names, weight),
            _others(self._loaded) | dict(zip(names, files, strict=True)),
        )

    def unload_relation(self) -> None:
        """Sample without a relation LoRA from now on; other LoRAs stay."""
        self._activate(_others(self._weights), _others(self._loaded))

    def load_lora_weights(
        self, path: Path | str, weight_name: str | None = None, adapter_name: str | None = None
    ) -> None:
        """Sample with a LoRA of any origin too: of style, of a character, step-distilled. Layers left out are told.

        Args:
            path: of a file, or of a folder that holds ``weight_name``.
            adapter_name: for :meth:`set_adapters`; by default the file's name without its ending.

        Raises:
            InputError: the file is no LoRA, or is made for another base.
        """
        whole = Path(path) / weight_name if weight_name else Path(path)
        name = adapter_name or whole.stem
        self._activate(self._weights | {name: 1.0}, self._loaded | {name: self._file(whole)})

    def set_adapters(self, adapter_names: str | Sequence[str], adapter_weights: float | Sequence[float] = 1.0) -> None:
        """Sample with these LoRAs, each at its weight, and no others; "relation" is that of :meth:`load_relation`.

        Raises:
            InputError: there is no LoRA of that name, or another number of weights.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        weights = list(adapter_weights) if isinstance(adapter_weights, Sequence) else [adapter_weights] * len(names)
        if unknown := [name for name in names if name not in self._loaded]:
            raise InputError(f"adapter_names: no LoRA {unknown[0]!r} is loaded; there are {', '.join(self._loaded)}")
        if len(weights) != len(names):
            raise InputError(f"adapter_weights: {len(weights)} for {len(names)} LoRAs; give one, or one for each")
        self._activate(dict(zip(names, weights, strict=True)), self._loaded)

    def get_active_adapters(self) -> list[str]:
        """Names of the LoRAs that pictures are sampled with."""
        return list(self._weights)

    def unload_lora_weights(self) -> None:
        """Sample with the base model from now on; all LoRAs are unloaded, the relation's too."""
        self._activate({}, {})

    def _activate(self, weights: dict[str, float], loaded: dict[str, AnyLora]) -> None:
        """Use the loaded LoRAs that have a weight. Where one does not fit, all stays as it was."""
        self.use([(loaded[name], weight) for name, weight in weights.items()])
        self._loaded, self._weights = loaded, weights

    def _file(self, path: Path) -> AnyLora:
        key = path, sha256(path) if path.is_file() else ""  # a file may be tuned anew meanwhile
        if key not in self._read:
            self._read[key] = any_lora.read(path)
        return self._read[key]

    def use(self, loras: Sequence[tuple[AnyLora, float]]) -> None:
        """Sample with LoRAs that are read already, each at its weight, and with no others."""
        for file, _ in loras:
            self.attach(file)
        low_rank = [(file, weight) for file, weight in loras if not isinstance(file, UNetWeights)]
        any_lora.use(self.bundle, {self._adapters[id(file)][1]: weight for file, weight in low_rank})
        whole = [(file, weight) for file, weight in loras if isinstance(file, UNetWeights)]
        if whole != self._whole:
            unet_weights.use(self.bundle.model, whole, self._base)
            self._whole = whole
        self.loras = tuple(file for file, _ in loras)

    def attach(self, file: AnyLora) -> None:
        """Put a LoRA into the networks, once, without switching it on.

        Raises:
            InputError: it is made for another base.
        """
        if id(file) not in self._adapters:
            name = f"lora{len(self._adapters)}"
            any_lora.attach(self.bundle, file, name)
            self._adapters[id(file)] = file, name  # kept with its file, so that no other comes to have its id


def _others(by_name: Mapping[str, _Value]) -> dict[str, _Value]:
    """All but the relation's."""
    return {name: value for name, value in by_name.items() if not re.fullmatch(rf"{_RELATION}(_\d+)?", name)}
