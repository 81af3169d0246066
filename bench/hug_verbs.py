"""The official authors' hug pictures against every verb of two that ships: what geometry and a bundle's CLIP say.

``python bench/hug_verbs.py FOLDER [--bundle mini]``; FOLDER is their ``hug``, with videos/, masks/ and prompts.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from rbctl.bundle.catalogue import resolve
from rbctl.files import read_image, read_object
from rbctl.plugins.eval.case import Case, CaseObject, Picture
from rbctl.plugins.eval.encoders import as_array, load_clip
from rbctl.plugins.eval.judges.geometry import GeometryJudge
from rbctl.plugins.eval.judges.questions import questions
from rbctl.plugins.eval.metrics import cosine
from rbctl.relations import load_relation, shipped


def of_two(folder: Path) -> dict[str, list[Picture]]:
    """By verb the five pictures, as if that verb had been asked for."""
    verbs = [relation for relation in map(load_relation, shipped()) if len(relation.roles) == 2]
    pictures: dict[str, list[Picture]] = {relation.name: [] for relation in verbs}
    for number, row in read_object(folder / "prompts.json").items():
        place = folder / "videos" / number
        people = tuple(CaseObject(name, place / f"concept{k}.png") for k, name in enumerate(row["entities"]))
        masks = tuple(folder / "masks" / number / f"motion{k}.png" for k in (0, 1))
        for relation in verbs:
            case = Case(f"{number}-{relation.name}", relation.prompt(row["entities"]), people, relation=relation.name)
            pictures[relation.name].append(Picture("hug", place / "motion.png", case, masks, detected=True))
    return pictures


def geometry(pictures: list[Picture]) -> str:
    """Probabilities that the relation holds, or that nobody knows, and that the two touch."""
    asked = [(p, q) for p in pictures for q in questions(p.case) if q.kind in ("relation", "contact")]
    said: dict[str, list[str]] = {"relation": [], "contact": []}
    for (_, question), answer in zip(asked, GeometryJudge()(asked), strict=True):
        said[question.kind].append("?" if answer.yes is None else f"{answer.yes:.2f}")
    return f"{' '.join(said['relation']):26}{' '.join(said['contact'])}"


@torch.no_grad()
def clip_ranks(pictures: dict[str, list[Picture]], bundle: str) -> list[int]:
    """Where each picture's CLIP has the sentence of hugging among those of all verbs; 1 is the nearest."""
    encoder = load_clip(resolve(bundle), torch.device("cpu"))
    assert encoder.texts is not None
    ranks = []
    for own in zip(*pictures.values(), strict=True):
        image = as_array(encoder.images(encoder.prepare(read_image(own[0].path))[None]))
        near = cosine(image, as_array(encoder.texts([picture.case.text for picture in own])))[0]
        ranks.append(1 + int((near > near[list(pictures).index("hug")]).sum()))
    return ranks


def main() -> None:
    """Print the table and the ranks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bundle", default="mini")
    arguments = parser.parse_args()
    pictures = of_two(arguments.folder)
    for verb, own in pictures.items():
        print(f"{verb:16}{geometry(own)}")
    ranks = clip_ranks(pictures, arguments.bundle)
    print(f"CLIP: hug is number {ranks} of {len(pictures)} verbs, {np.mean(ranks):.1f} on average")


if __name__ == "__main__":
    main()
