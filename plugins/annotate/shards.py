"""WebDataset shards of raw triplets, unpacked into the raw set beside them.

A sample KEY of a shard is a target KEY.png (or jpg, jpeg, webp), the pictures of its individuals KEY.0.png,
KEY.1.png ..., and KEY.json: ``{"text": "", "predicate": "", "objects": [{"name": "red cat", "role": ""}, ...]}``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rbctl.errors import InputError, reason
from rbctl.files import write_bytes
from rbctl.progress import progress
from rbctl.triplets.raw import RAW, RawObject, RawTriplet, write_raw

_PICTURES = ("png", "jpg", "jpeg", "webp")


def unpack(folder: Path) -> None:
    """Write the samples of ``folder/*.tar`` as a raw set; where there is a raw.jsonl already nothing is done.

    Raises:
        InputError: a shard is damaged, or a sample lacks something; shard and key are named.
    """
    shards = sorted(folder.glob("*.tar"))
    if not shards or (folder / RAW).exists():
        return
    triplets = []
    with progress(len(shards), "unpacking", unit="shard") as bar:
        for shard in shards:
            triplets += [_triplet(folder, shard, sample) for sample in _samples(shard)]
            bar.update()
    if not triplets:
        raise InputError(f"{folder}: its shards hold no sample")
    write_raw(folder, triplets)


def _samples(shard: Path) -> Iterator[dict[str, Any]]:
    try:
        from webdataset.pipeline import DataPipeline
        from webdataset.shardlists import SimpleShardList
        from webdataset.tariterators import tarfile_to_samples
    except ImportError as error:
        raise InputError(f"{shard}: shards need webdataset; pip install 'rbctl[annotate]'") from error
    try:
        yield from DataPipeline(SimpleShardList([str(shard)]), tarfile_to_samples())
    except InputError:
        raise
    except Exception as error:  # whatever tar and decompression raise
        raise InputError(f"{shard}: not a readable shard ({reason(error)})") from error


def _triplet(folder: Path, shard: Path, sample: dict[str, Any]) -> RawTriplet:
    where = f"{shard}: sample {sample['__key__']}"
    try:
        row = json.loads(sample["json"])
        objects = [(str(thing["name"]), str(thing.get("role", ""))) for thing in row["objects"]]
        text, predicate = str(row.get("text", "")), str(row.get("predicate", ""))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{where}: its .json must hold objects, each with a name ({reason(error)})") from error
    stem = f"{shard.stem}-{sample['__key__'].replace('/', '-')}"
    target = _picture(sample, "", folder / stem, where)
    images = [_picture(sample, f"{k}.", folder / "images" / f"{stem}-{k}", where) for k in range(len(objects))]
    things = [RawObject(name=name, role=role, image=image) for (name, role), image in zip(objects, images, strict=True)]
    return RawTriplet(id=stem, target=target, text=text, predicate=predicate, objects=tuple(things))


def _picture(sample: dict[str, Any], prefix: str, stem: Path, where: str) -> Path:
    """Write a picture of a sample; returns its path."""
    for suffix in _PICTURES:
        if content := sample.get(f"{prefix}{suffix}"):
            path = stem.parent / f"{stem.name}.{suffix}"
            write_bytes(path, content)
            return path
    raise InputError(f"{where}: no picture .{prefix}png (or {', '.join(_PICTURES[1:])})")
