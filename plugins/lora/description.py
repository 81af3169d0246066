"""What a LoRA file is, in a few lines for people."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator

from rbctl import any_lora, lora
from rbctl.errors import abridged
from rbctl.plugins.lora.faults import faults, right_hashes
from rbctl.plugins.lora.stored import (
    DIFFUSERS,
    KOHYA_PLAIN,
    OF_TRANSFORMER,
    OTHERS_OF_TRANSFORMER,
    Module,
    StoredLora,
)

_BASES = {2048: "SDXL", 1024: "Stable Diffusion 2", 768: "Stable Diffusion 1"}  # by the width of their text
_OF_BLOCK = re.compile(r".*blocks\.\d+\.")  # what stands before the name of a layer in its block
_ALL = "ComfyUI, InvokeAI, sd-scripts, diffusers and rbctl; by their key rules A1111 and Forge"


def description(file: StoredLora) -> Iterator[tuple[str, str]]:
    """Labels and what stands behind them."""
    metadata = file.metadata
    relation = metadata.get("rbctl.relation")
    yield "file", f"{file.path}: a LoRA of {f'the relation {relation[:60]}' if relation else 'no relation'}"
    if title := metadata.get("modelspec.title", metadata.get("ss_output_name")):
        yield "title", abridged(title)
    if relation and (known := lora.relation_of(file)):
        yield "roles", ", ".join(role.name for role in known.roles)
    if trigger := metadata.get("modelspec.trigger_phrase"):
        yield "trigger", abridged(trigger)
    base = _base(file)
    yield "base", ", ".join(filter(None, (base or "unknown", *_base_stated(file))))
    for network, count in Counter(module.network for module in file.modules if module.network).items():
        yield "layers", f"{network}: {count} modules{_kinds(m for m in file.modules if m.network == network)}"
    if wrong := faults(file):
        yield "faults", f"{len(wrong)}; 'rbctl lora check' names them"
    if left_out := {module.kind for module in file.modules if module.kind} & set(any_lora.OTHER_KINDS.values()):
        yield "left out", f"by rbctl and diffusers: {', '.join(sorted(left_out))}"
    matrices = [module for module in file.modules if module.down is not None and module.down.ndim]
    yield "rank", _values(m.down.shape[0] for m in matrices if m.down is not None)
    yield "alpha", _values("as rank" if module.alpha is None else f"{module.alpha:g}" for module in matrices)
    yield "dtype", _values(str(m.down.dtype).removeprefix("torch.") for m in matrices if m.down is not None)
    named = [module for module in file.modules if module.network in ("unet", "transformer")] or file.modules
    forms = sorted({module.form for module in named})
    yield "names", " and ".join(forms)
    hashes = right_hashes(file)
    yield "hashes", ("right" if all(hashes.values()) else "wrong") if hashes else "none"
    yield "loads in", _programs(base, forms)


def _base(file: StoredLora) -> str | None:
    """The family of base models: by the width of the text that its matrices take, or as the metadata name it."""
    for module in file.modules:
        if module.down is not None and module.down.ndim and module.name.replace(".", "_").endswith("attn2_to_k"):
            width = module.down.shape[-1]
            return _BASES.get(width, f"a model of its own whose text is {width} wide")
    architecture = file.metadata.get("modelspec.architecture", "").removesuffix("/lora")
    if architecture.startswith("stable-diffusion-xl"):
        return "SDXL"
    of_transformer = any(module.network == "transformer" for module in file.modules)
    return abridged(architecture) if architecture and of_transformer else None


def _base_stated(file: StoredLora) -> Iterator[str]:
    if name := file.metadata.get("ss_sd_model_name"):
        yield f"trained on {abridged(name)}"
    if fingerprint := file.metadata.get("rbctl.base"):
        yield f"fingerprint {fingerprint[:12]}"


def _kinds(modules: Iterable[Module]) -> str:
    """Which layers they are on, and how many are of a kind that a relation LoRA has not."""
    counts: Counter[str] = Counter()
    for module in modules:
        if module.down is not None and module.down.ndim > 2:
            counts["convolutions"] += 1
        elif module.layer:
            counts[_OF_BLOCK.sub("", module.layer).partition(".")[0]] += 1
        else:
            counts["other layers"] += 1
        if module.kind:
            counts[f"of them {module.kind}"] += 1
    return f" ({', '.join(f'{count} {kind}' for kind, count in counts.items())})"


def _values(values: Iterable[object]) -> str:
    counts = Counter(map(str, values))
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{value} ({count})" for value, count in counts.most_common(6)) or "none"


def _programs(base: str | None, forms: list[str]) -> str:
    """The programs that load files with these names (docs/clients.md)."""
    if OF_TRANSFORMER in forms:
        return "diffusers, InvokeAI, ComfyUI and rbctl"
    if OTHERS_OF_TRANSFORMER in forms:
        return "diffusers and rbctl, if diffusers knows these names"
    if base in ("Stable Diffusion 1", "Stable Diffusion 2"):
        return f"programs for {base}; rbctl has SDXL alone"
    if base != "SDXL":
        return "diffusers and rbctl; other programs have no such base" if base else "diffusers and rbctl at least"
    if DIFFUSERS in forms:
        return "diffusers and rbctl alone; 'rbctl lora convert FILE --format kohya' writes what others load"
    if KOHYA_PLAIN in forms:
        return f"{_ALL}; merge it with others only after 'rbctl lora convert FILE --format kohya'"
    return _ALL
