"""``from_pretrained`` of diffusers and transformers: local folders alone, silent, one line for whatever is wrong."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from rbctl.errors import InputError, abridged, reason
from rbctl.files import read_network_config, read_object, read_safetensors, read_torch
from rbctl.paths import leaves, nameable


@contextlib.contextmanager
def loading(path: Path, kind: str = "") -> Iterator[None]:
    """Whatever a damaged file makes foreign code raise, as one line that names the file, and as what it was loaded."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # loaders pass on what theirs raise: no list of types would hold for their next version
        raise InputError(f"{path}: cannot be loaded{f' as {kind}' if kind else ''} ({reason(error)})") from error


def shards(index: Path) -> list[str]:
    """Names of the files that an index of sharded weights lists, each once.

    Raises:
        InputError: the index is damaged, or a name leaves its folder.
    """
    weight_map = read_object(index).get("weight_map")
    names = list(weight_map.values()) if isinstance(weight_map, dict) else []
    for name in names:
        if not isinstance(name, str) or leaves(name) or not nameable(name):
            what = "leaves the folder, or is no file's name"
            raise InputError(f"{index}: weight_map: {abridged(name)} {what}; get the weights again")
    return sorted(set(names))


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Without the warnings and progress bars of diffusers and transformers."""
    import diffusers
    import transformers

    libraries = (diffusers.utils.logging, transformers.utils.logging)
    before = [library.get_verbosity() for library in libraries]
    transformers.utils.logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for library in libraries:
            library.set_verbosity_error()
        try:
            yield
        finally:
            for library, verbosity in zip(libraries, before, strict=True):
                library.set_verbosity(verbosity)


def from_pretrained(loader: Any, folder: Path, **options: Any) -> Any:
    """``loader.from_pretrained``, silent. No code of the folder runs, and nobody is asked whether it may.

    Raises:
        InputError: what it fails with, told of the file that is damaged.
    """
    for index in folder.glob("*.index.json"):
        shards(index)
    if (folder / "config.json").is_file():
        read_network_config(folder / "config.json")
    with loading(folder, loader.__name__), silent():
        try:
            return loader.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **options)
        except Exception:  # told below of the file that is damaged, else raised again for ``loading``
            for path in sorted(folder.iterdir()):
                if path.suffix == ".json":
                    read_object(path)
                elif path.suffix == ".safetensors":
                    read_safetensors(path)
                elif path.suffix == ".bin" and not options.get("use_safetensors"):
                    read_torch(path)
            raise


def refuse_code(folder: Path) -> None:
    """For libraries that hand a folder on to transformers without saying that its code is not to run.

    Raises:
        InputError: a configuration in the folder names code of its own (``auto_map``).
    """
    for path in sorted(folder.glob("*.json")):
        if "auto_map" in read_object(path):
            raise InputError(f"{path}: auto_map: names code, and code of a model folder is never run; take it out")


def network(loader: Any, folder: Path, dtype: torch.dtype, **options: Any) -> Any:
    """One network; either library would draw weights that its file lacks at random.

    Raises:
        InputError: a file is missing or damaged, or holds not all of the weights.
    """
    name = "dtype" if loader.__module__.startswith("transformers") else "torch_dtype"
    options |= {name: dtype, "output_loading_info": True, "ignore_mismatched_sizes": True}
    model, report = from_pretrained(loader, folder, **options)
    _refuse_gaps(report, f"{folder}: weights do not fit config.json")
    return model


def network_of_weights(loader: Any, config: Any, weights: Mapping[str, torch.Tensor], path: Path) -> Any:
    """One network of transformers, its weights read and named as the hub names them already.

    Args:
        path: where the weights are from.

    Raises:
        InputError: there are not all of the weights.
    """
    options = {"config": config, "state_dict": dict(weights), "dtype": torch.float32}
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    with loading(path, loader.__name__), silent():
        model, report = loader.from_pretrained(None, trust_remote_code=False, **options)
    _refuse_gaps(report, f"{path}: has not all the weights of its kind")
    return model


def _refuse_gaps(report: Mapping[str, Any], problem: str) -> None:
    lacks = [*report["missing_keys"], *(mismatch[0] for mismatch in report["mismatched_keys"])]
    if lacks:
        raise InputError(f"{problem} ({len(lacks)} missing or of other shapes: {min(lacks)})")
