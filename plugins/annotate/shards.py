"""WebDataset shards of raw triplets, unpacked into the raw set beside them.

A sample KEY of a shard is a target KEY.png (or jpg, jpeg, webp), the pictures of its individuals KEY.0.png,
KEY.1.png ..., and KEY.json: ``{"text": "", "predicate": "", "objects": [{"name": "red cat", "role": ""}, ...]}``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rbctl.errors import InputError, abridged, reason
from rbctl.files import write_bytes
from rbctl.images import SUFFIXES
from rbctl.parsing import parse_json
from rbctl.paths import flattened, inside
from rbctl.progress import progress
from rbctl.shards import samples
from rbctl.triplets.raw import RAW, RawObject, RawTriplet, write_raw


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
            triplets += [_triplet(folder, shard, key, parts) for key, parts in samples(shard)]
            bar.update()
    if not triplets:
        raise InputError(f"{folder}: its shards hold no sample")
    write_raw(folder, triplets)


def _triplet(folder: Path, shard: Path, key: str, parts: Mapping[str, bytes]) -> RawTriplet:
    where = f"{shard}: sample {abridged(key)}"
    if "json" not in parts:
        raise InputError(f"{where}: has no .json; it must hold objects, each with a name")
    try:
        row = parse_json(parts["json"].decode(), f"{where}: .json", limit=1 << 20)
        objects = [(str(entry["name"]), str(entry.get("role", ""))) for entry in row["objects"]]
        text, predicate = str(row.get("text", "")), str(row.get("predicate", ""))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{where}: its .json must hold objects, each with a name ({reason(error)})") from error
    stem = f"{shard.stem}-{flattened(key)}"
    inside(folder, f"{stem}.png", where)
    return RawTriplet(
        id=stem,
        target=_picture(parts, "", folder / stem, where),
        text=text,
        predicate=predicate,
        objects=tuple(
            RawObject(name=name, role=role, image=_picture(parts, f"{k}.", folder / "images" / f"{stem}-{k}", where))
            for k, (name, role) in enumerate(objects)
        ),
    )


def _picture(parts: Mapping[str, bytes], prefix: str, stem: Path, where: str) -> Path:
    """Write a picture of a sample; returns its path."""
    for suffix in SUFFIXES:
        if content := parts.get(f"{prefix}{suffix[1:]}"):
            path = stem.parent / f"{stem.name}{suffix}"
            write_bytes(path, content)
            return path
    raise InputError(f"{where}: no picture .{prefix}png (or {', '.join(SUFFIXES[1:])})")
