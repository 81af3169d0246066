"""Mend what can be mended in a set of triplets; the set itself stays, a whole new one is written."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from rbctl.files import write_png
from rbctl.relations import load_relation, shipped
from rbctl.roles import find_relation, read_roles
from rbctl.triplets import geometry
from rbctl.triplets.diagnosis import Evidence, Fault, diagnose, mended
from rbctl.triplets.folder import write
from rbctl.triplets.masks import apart, box_of
from rbctl.triplets.triplet import Triplet


def fix(triplets: Sequence[Triplet], folder: Path) -> list[str]:
    """Write triplets to a folder of their own with what can be put right, and say what that was.

    That is keypoints that two individuals have of each other, that are (y, x) or relative to a crop; masks that are
    white outside of their object; boxes that are not their masks'; and predicates that only the prompt says.

    Raises:
        InputError: a picture cannot be read, or the folder holds other triplets.
    """
    evidence = {triplet.id: Evidence.of(triplet, geometry.target(triplet)) for triplet in triplets}
    faults = [fault for fault in diagnose(evidence) if fault.kind != "outside"]
    done, right = [f"triplet {fault.triplet}: {fault.what}" for fault in faults], list[Triplet]()
    of_triplet: dict[str, list[Fault]] = {}
    for fault in faults:
        of_triplet.setdefault(fault.triplet, []).append(fault)
    with tempfile.TemporaryDirectory() as scratch:
        for number, triplet in enumerate(triplets):
            target = geometry.target(triplet)
            whole, masks = mended(triplet, target, of_triplet.get(triplet.id, ()))
            objects = []
            for k, entry in enumerate(whole.objects):
                mask = masks.get(k, target.masks[k])
                box = entry.box if entry.mask is None else box_of(mask)
                if k not in masks and apart(box, entry.box, mask):
                    done.append(f"triplet {triplet.id}: {entry.name}: its box is not its mask's")
                path = entry.mask
                if k in masks:
                    path = Path(scratch) / f"{number}-{k}.png"
                    write_png(path, Image.fromarray(mask.astype(np.uint8) * 255))
                objects.append(dataclasses.replace(entry, mask=path, box=box))
            predicate = whole.predicate or _predicate(whole)
            if predicate != whole.predicate:
                done.append(f"triplet {triplet.id}: predicate: is missing, the prompt says {predicate!r}")
            right.append(dataclasses.replace(whole, predicate=predicate, objects=tuple(objects)))
        write(right, folder)
    return done


def _predicate(triplet: Triplet) -> str:
    names = [entry.name for entry in triplet.objects]
    relation = find_relation(triplet.prompt, [load_relation(name) for name in shipped()], names)
    return read_roles(triplet.prompt, names, relation).words if relation else ""
