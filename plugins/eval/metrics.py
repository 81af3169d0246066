"""The field's scores as pure functions of features, and the profiles that fix what "CLIP-I" or "DINO" means.

Two papers' scores compare only where backbone, token, crop, scale and averaging are the same. A profile names them all;
every score is stored with it and with the hash of the encoder that really ran.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.float32]

_HALVES = 1000


def cosine(a: Features, b: Features) -> NDArray[np.float64]:
    """Cosine of each row of a (n, D) with each row of b (m, D), (n, m), in double precision."""
    x, y = (np.asarray(v, dtype=np.float64) for v in (a, b))
    x, y = (v / np.maximum(np.linalg.norm(v, axis=-1, keepdims=True), 1e-12) for v in (x, y))
    return np.asarray(x @ y.T)


def text_alignment(image: Features, text: Features, factor: float = 1.0, clamped: bool = False) -> float:
    """How well a picture fits a text: ``factor * cos``, in CLIPScore's form ``factor * max(cos, 0)``.

    CLIP-T where the text is the whole prompt, without the rare token of methods that have one; CLIP-R where it is the
    predicate alone ("is riding").

    Args:
        image: (D,) CLIP's projected embedding of the whole picture.
        text: (D,) CLIP's projected embedding of the text, cut at the length its encoder reads.
    """
    value = float(cosine(image[None], text[None])[0, 0])
    return factor * (max(value, 0.0) if clamped else value)


def image_alignment(image: Features, subjects: Sequence[Features], factor: float = 1.0) -> float:
    """How much a picture resembles the real pictures of its subjects: cosines, first averaged over the pictures of a
    subject, then over the subjects.

    CLIP-I with CLIP's projected image embedding, DINO and DINOv2 with the class token after the last norm. With as many
    real pictures for every result, the mean of this over results is the mean over all pairs.

    Args:
        image: (D,) of the whole result.
        subjects: per subject (m, D), its real pictures or its image prompt alone.
    """
    return factor * float(np.mean([cosine(image[None], real).mean() for real in subjects]))


def crop_alignment(crops: Sequence[Features | None], subjects: Sequence[Features], factor: float = 1.0) -> float:
    """As ``image_alignment``, each subject against its own part of the result; 0 for a subject that is missing.

    Args:
        crops: per subject (D,) of the part of the result inside its box or its mask's (the smallest square around it,
            moved into the frame, so that nothing is stretched); None where it is not to be found.
        subjects: per subject (m, D), its image prompt.
    """
    cosines = [
        0.0 if crop is None else float(cosine(crop[None], real).mean())
        for crop, real in zip(crops, subjects, strict=True)
    ]
    return factor * float(np.mean(cosines))


def kernel_distance(a: Features, b: Features) -> float:
    """Distance between two sets of pictures: the squared maximum mean discrepancy, unbiased, so 0 for two of one law.

    With InceptionV3's features it is KID (Binkowski et al. 2018, arXiv 1801.01401, section 4), whose kernel this is,
    (x . y / D + 1)^3. Pictures of one row may show the same scene: they are never compared (Gretton et al. 2012, JMLR
    13, lemma 6, equation 4).

    Args:
        a, b: (n, D), n at least 2.
    """
    x, y = (np.asarray(v, dtype=np.float64) for v in (a, b))

    def kernel(p: NDArray[np.float64], q: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray((p @ q.T / p.shape[1] + 1) ** 3)

    between = kernel(x, y)
    terms = kernel(x, x) + kernel(y, y) - between - between.T
    return float((terms.sum() - np.trace(terms)) / (len(x) * (len(x) - 1)))


def kernel_distance_interval(a: Features, b: Features, seed: int = 0) -> tuple[float, float]:
    """95 % interval of :func:`kernel_distance`, from halves of the rows drawn without replacement.

    A bootstrap would not do: a picture that is drawn twice is too like itself. Half of a set, drawn from all of it,
    strays from the whole's distance as far as the whole strays from that of all pictures.

    Args:
        a, b: (n, D), n at least 4.
    """
    rng = np.random.default_rng(seed)
    halves = [rng.permutation(len(a))[: len(a) // 2] for _ in range(_HALVES)]
    low, high = np.percentile([kernel_distance(a[half], b[half]) for half in halves], (2.5, 97.5))
    return float(low), float(high)


@dataclass(frozen=True)
class Metric:
    """One column of a profile.

    Attributes:
        name: as the field calls it.
        kind: ``prompt`` and ``predicate`` are ``text_alignment``; ``image`` and ``crop`` are their own alignments.
        encoder: which of the encoders; text kinds always use CLIP.
        factor, clamped: as in the functions.
        against: the image prompt alone, or all real pictures of the subject.
        definition: model and preprocessing of the published numbers.
    """

    name: str
    kind: Literal["prompt", "predicate", "image", "crop"]
    encoder: Literal["clip", "dino", "dinov2"]
    definition: str
    factor: float = 1.0
    clamped: bool = False
    against: Literal["image_prompt", "references"] = "image_prompt"


_CLIP = "CLIP ViT-B/32 (OpenAI); shorter side to 224 bicubic, centre crop"
_DINO = "DINO {} class token; shorter side to 256 bicubic, centre crop 224"
_PAPER = "the paper names no backbone, so the encoder's hash tells; shorter side to its size bicubic, centre crop"

_CROP = (
    "100 x cos inside the object's box or mask (white around it), 0 if it was looked for and is missing; a box that "
    "was only asked for is taken as it is, whatever lies in it"
)

PROFILES: dict[str, tuple[Metric, ...]] = {
    "cc101": (
        Metric("CLIP-T", "prompt", "clip", f"{_CLIP}; 2.5 x max(cos, 0), no prefix", 2.5, True),
        Metric("CLIP-I", "image", "clip", f"{_CLIP}; mean over all pairs with real pictures", 1, False, "references"),
        Metric("DINO", "image", "dino", _DINO.format("ViT-S/16") + "; mean over all pairs", 1, False, "references"),
    ),
    "dreambench": (
        Metric("DINO", "image", "dino", _DINO.format("ViT-S/16") + "; all real pictures", 1, False, "references"),
        Metric("CLIP-I", "image", "clip", f"{_CLIP}; all real pictures of the subject", 1, False, "references"),
        Metric("CLIP-T", "prompt", "clip", f"{_CLIP}; prompt without the rare token"),
    ),
    "dreambench++": (
        Metric("CLIP-T", "prompt", "clip", f"{_CLIP}; 100 x cos", 100),
        Metric("CLIP-I", "image", "clip", f"{_CLIP}; 100 x cos with the image prompt", 100),
        Metric("DINO", "image", "dino", _DINO.format("ViT-S/8") + "; 100 x cos", 100),
        Metric("DINOv2", "image", "dinov2", _DINO.format("v2 ViT-S/14") + "; 100 x cos", 100),
    ),
    "relationbench": (
        Metric("CLIP-T", "prompt", "clip", f"100 x cos; {_PAPER}", 100),
        Metric("CLIP-R", "predicate", "clip", f"100 x cos with the predicate alone; {_PAPER}", 100),
        Metric("CLIP-I", "image", "clip", f"100 x cos with the image prompts, mean over them; {_PAPER}", 100),
        Metric("DINO", "image", "dino", f"100 x cos of class tokens, mean over image prompts; {_PAPER}", 100),
    ),
    "crops": (
        Metric("CLIP-I crop", "crop", "clip", _CROP, 100),
        Metric("DINO crop", "crop", "dino", _CROP, 100),
    ),
}
