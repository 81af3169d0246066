"""Pictures of the embedded world with planted faults, and the true answer to every question that has one."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image

from rbctl.denoising import to_pictures
from rbctl.files import read_image, write_png, write_text
from rbctl.menagerie import faults
from rbctl.menagerie.cases import SIZE, file_of
from rbctl.menagerie.drawing import render
from rbctl.menagerie.scenes import Scene
from rbctl.paths import relative
from rbctl.pictures import grid
from rbctl.pipeline import RelationPipeline
from rbctl.plugins.eval.case import Case, Picture
from rbctl.plugins.eval.judges.answers_file import ANSWERS, ANSWERS_FILE
from rbctl.plugins.eval.judges.questions import Question, questions
from rbctl.progress import progress
from rbctl.relations import check_box, load_relation

Fault = Literal[
    "none", "exchanged", "missing", "twice", "merged", "no contact", "other relation", "stranger", "copied pose"
]
FAULTS: tuple[Fault, ...] = get_args(Fault)
Truth = dict[str, bool]  # by the question's id

_OTHER = {
    "push": "pull",
    "pull": "push",
    "chase": "flee_from",
    "flee_from": "chase",
    "hug": "lean_on",
    "lean_on": "hug",
}
_BESIDE = {1: "stand", 2: "stand_next_to", 3: "stand_in_a_row"}  # where no relation is known to have the same boxes
_SEED = 0x1A7E
_STEPS, _FIRST = 16, 12  # of sampled pictures: how many steps, and the first that is taken


@dataclass(frozen=True)
class Planted:
    """A picture, whatever is wrong with it, and what is true of it."""

    picture: Picture
    fault: Fault
    truth: Truth


def plant(cases: Sequence[Case], folder: Path) -> list[Planted]:
    """Every case with every fault that it can have, drawn into ``folder``; files that are there stay.

    Args:
        cases: drawn by the embedded world.
    """
    planted: list[Planted] = []
    with progress(len(cases) * len(FAULTS), "planting faults", unit="picture") as bar:
        for case in cases:
            for fault in FAULTS:
                rng = np.random.default_rng((_SEED, case.seed, FAULTS.index(fault)))
                made = _with(case, fault, rng)
                bar.update()
                if made is not None:
                    scene, people, truth = made
                    path = file_of(folder, f"{case.id}-{fault.replace(' ', '_')}", scene)
                    drawn = render([scene], SIZE)
                    if not path.is_file():
                        write_png(path, to_pictures(drawn.pictures.float() / 127.5 - 1)[0])
                    own = [check_box([round(v, 4) for v in box]) for box in drawn.boxes[0].tolist()]
                    boxes = tuple(own[people.index(k)] if k in people else None for k in range(len(case.objects)))
                    planted.append(Planted(Picture(fault, path, case, boxes, detected=True), fault, truth))
    return planted


def _with(case: Case, fault: Fault, rng: np.random.Generator) -> tuple[Scene, list[int], Truth] | None:
    """A scene with a fault, whom of the case its figures show, and the truth; None where the case cannot have it."""
    assert case.truth is not None
    scene, relation = case.truth.scene, case.truth.relation
    everybody = list(range(len(case.objects)))
    who = int(rng.integers(len(everybody)))
    asked, inverse = questions(case), False
    if not possible(asked, fault):
        return None
    match fault:
        case "exchanged":
            a, b = next(question.individuals for question in asked if question.kind == "exchanged")
            scene = faults.exchanged(scene, relation, (a, b), rng)
        case "missing":
            scene = faults.left_out(scene, who)
            everybody.remove(who)
        case "twice":
            scene = faults.twice(scene, who)
            everybody.append(who)
        case "merged":
            scene = faults.merged(scene)
        case "no contact":
            scene = faults.parted(scene)
        case "other relation":
            other = load_relation(_OTHER.get(relation.name, _BESIDE[len(everybody)]))
            if other.name == relation.name:
                return None
            scene = faults.of_relation(scene, other, rng)
            inverse = relation.name == other.inverse or other.name == relation.inverse
        case "stranger":
            scene = faults.stranger(scene, who, rng)
        case "copied pose":
            scene = faults.posed_as(scene, who, case.truth.faces[who])
    return scene, everybody, truth_of(asked, fault, who, inverse)


def possible(asked: Sequence[Question], fault: Fault) -> bool:
    """Whether a case with these questions can have a fault."""
    kinds = [question.kind for question in asked]
    match fault:
        case "exchanged":
            return "exchanged" in kinds
        case "missing":
            return kinds.count("present") > 1
        case "merged":
            return kinds.count("present") == 2
        case "no contact":
            return "contact" in kinds
        case _:
            return True


def truth_of(asked: Sequence[Question], fault: Fault, who: int, inverse: bool = False) -> Truth:
    """The true answers where a fault was planted.

    Questions that a fault leaves open have no truth: whether merged bodies ride each other, say.

    Args:
        who: number of the individual that has the fault, where one alone has it.
        inverse: another relation says the same with the roles exchanged.
    """
    truth = {question.id: question.wanted for question in asked}

    def says(answer: bool | None, *kinds: str, of: int | None = None) -> None:
        """Set the truth of kinds of questions, of one individual or all; None leaves it open."""
        for question in asked:
            if question.kind in kinds and (of is None or of in question.individuals):
                if answer is None:
                    truth.pop(question.id, None)
                else:
                    truth[question.id] = answer

    match fault:
        case "exchanged":
            says(False, "relation")
            says(True, "exchanged")
            says(None, "copied")
        case "missing":
            says(False, "present", "once", "contact", of=who)
            says(False, "relation", "exchanged")
            says(None, "same", "copied", of=who)
            says(None, "bodies")
        case "twice":
            says(False, "once", of=who)
            says(None, "relation", "exchanged", "contact", "bodies", "same", "copied")  # of which of the two?
        case "merged":
            says(False, "bodies")
            says(None, "relation", "exchanged", "contact", "same", "copied", "once")
        case "no contact":
            says(False, "contact", "relation", "exchanged")
        case "other relation":
            says(False, "relation")
            says(inverse, "exchanged")
            says(None, "contact", "copied")
        case "stranger":
            says(False, "same", of=who)
            says(None, "copied", of=who)
        case "copied pose":
            says(True, "copied", of=who)
            says(None, "relation", "exchanged", "contact", "bodies")
    return truth


def resample(planted: Sequence[Planted], pipeline: RelationPipeline, folder: Path) -> list[Planted]:
    """The same pictures as the bundle would have sampled them: encoded, noised, and the last steps taken by its UNet.

    What is on them stays, for the last quarter of the steps moves nobody. Files that are there stay.
    """
    made = []
    with progress(len(planted), "sampling", unit="picture") as bar:
        for own in planted:
            path = folder / own.picture.path.name
            if not path.is_file():
                write_png(path, _resampled(own, pipeline))
            made.append(Planted(_at(own.picture, path), own.fault, own.truth))
            bar.update()
    return made


def _at(picture: Picture, path: Path) -> Picture:
    return Picture(picture.run, path, picture.case, picture.boxes, picture.detected)


def _resampled(planted: Planted, pipeline: RelationPipeline) -> Image.Image:
    picture = planted.picture
    boxes = {k: box for k, box in enumerate(picture.boxes or ()) if isinstance(box, tuple)}
    people = [picture.case.objects[k] for k in boxes]
    pixels = torch.from_numpy(np.array(read_image(picture.path))).permute(2, 0, 1)[None] / 127.5 - 1
    clean = pipeline.bundle.encode_pictures(pixels)[0].float()
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(picture.case.seed))
    scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
    scheduler.set_timesteps(_STEPS)

    def renoised(_pipe: Any, step: int, _timestep: Any, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if step + 1 != _FIRST:
            return state
        return {"latents": scheduler.add_noise(clean, noise.to(clean), scheduler.timesteps[_FIRST : _FIRST + 1])}

    return pipeline(
        " and ".join(f"a {{{individual.name}}}" for individual in people),
        {individual.name: individual.image for individual in people},
        {individual.name: box for individual, box in zip(people, boxes.values(), strict=True)},
        num_inference_steps=_STEPS,
        image_scale=0.0 if planted.fault == "stranger" else None,  # the image prompts would bring back who was meant
        generator=torch.Generator().manual_seed(picture.case.seed),
        callback_on_step_end=renoised,
    ).images[0]


def sheet(planted: Sequence[Planted]) -> Image.Image:
    """The first scene of each relation, a row each, with all its faults; a white cell where it cannot have one."""
    rows: dict[str, dict[str, Planted]] = {}
    firsts: dict[str, str] = {}
    for own in planted:
        case = own.picture.case
        if firsts.setdefault(case.relation, case.id) == case.id:
            rows.setdefault(case.id, {})[own.fault] = own
    cells = [row.get(fault) for row in rows.values() for fault in FAULTS]
    images = [Image.new("RGB", (1, 1), "white") if own is None else read_image(own.picture.path) for own in cells]
    captions = ["" if own is None else own.fault for own in cells]
    return grid(images, len(FAULTS), captions)


def write_set(planted: Sequence[Planted], folder: Path) -> None:
    """``metadata.csv`` and ``answers.csv`` beside the pictures: what any judge, or a person, can be held against."""
    listed, answers = io.StringIO(), io.StringIO()
    pictures, truths = csv.writer(listed, lineterminator="\n"), csv.writer(answers, lineterminator="\n")
    pictures.writerow(["file_name", "text", "image_prompts", "names", "boxes", "masks", "relation", "case"])
    truths.writerow(ANSWERS)
    for own in planted:
        case, name = own.picture.case, relative(own.picture.path, folder)
        images = ";".join(relative(individual.image, folder) for individual in case.objects)
        parts = own.picture.boxes or ()
        boxes = ";".join(" ".join(map(str, part)) if isinstance(part, tuple) else "-" for part in parts)
        masks = ";".join(relative(part, folder) if isinstance(part, Path) else "-" for part in parts)
        names = ";".join(individual.name for individual in case.objects)
        by_mask = any(isinstance(part, Path) for part in parts)
        where = ("", masks) if by_mask else (boxes, "")
        pictures.writerow([name, case.text, images, names, *where, case.relation, case.id])
        truths.writerows([name, question, "yes" if answer else "no"] for question, answer in own.truth.items())
    write_text(folder / "metadata.csv", listed.getvalue())
    write_text(folder / ANSWERS_FILE, answers.getvalue())
