"""How well the student's regions say what the teacher's crops say, on pictures that nothing was trained on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from PIL import Image
from torch.nn.functional import normalize

from rbctl.bundle.convert import check_tensors, read_local_encoder
from rbctl.errors import InputError, reason
from rbctl.files import write_png
from rbctl.pictures import grid
from rbctl.plugins.distill.batches import Cut, cut, normalised, together
from rbctl.plugins.distill.config import DistillConfig
from rbctl.plugins.distill.grid import fit, in_square
from rbctl.plugins.distill.objective import Teacher, region_cosines
from rbctl.plugins.distill.pictures import Pictures, Regions
from rbctl.plugins.distill.tower import Tower
from rbctl.processes import World

PROMPT = "a photo of a {}."  # what a label's text embedding is of
_VOCABULARY = 49408  # of open_clip's own tokenizer
_TILE = 224  # pixels of a picture in the sheet of features


@dataclass(frozen=True)
class Held:
    """Some held-out pictures together.

    Attributes:
        wanted: (K, C), what the teacher says of the crops.
        wanted_local: (K, C of the adapter), local features that the linear map learns; None without one.
        regions: per picture (R_b, 4), boxes with labels.
        labels: (sum of R_b,).
        counted: whether they count, or only keep this process in step with the others.
    """

    cut: Cut
    wanted: torch.Tensor
    wanted_local: torch.Tensor | None
    regions: list[torch.Tensor]
    labels: torch.Tensor
    counted: bool


class HeldOut:
    """The evaluation of a run. What the teacher says is asked once; each process keeps its part of the pictures.

    Args:
        indices: of the pictures to evaluate on.
        texts: (L, C), embeddings of the labels, or None where there are none.

    Raises:
        InputError: none of the pictures can be read.
    """

    def __init__(
        self,
        pictures: Pictures,
        indices: Sequence[int],
        teacher: Teacher,
        texts: torch.Tensor | None,
        config: DistillConfig,
        crop_size: int,
        world: World,
        device: torch.device,
    ) -> None:
        self.pictures, self.indices, self.config, self.device = pictures, list(indices), config, device
        self.texts = None if texts is None else texts.to(device)
        self.held: list[Held] = []
        # ZeRO-3 gathers parameters with all processes, so all make as many calls.
        rounds = math.ceil(len(self.indices) / (world.size * config.micro_batch_size))
        for turn in range(rounds):
            start = (turn * world.size + world.rank) * config.micro_batch_size
            mine = self.indices[start : start + config.micro_batch_size]
            self.held.append(self._hold(mine or self.indices[:1], bool(mine), teacher, crop_size))
        if not world.anywhere(any(batch.counted for batch in self.held), device):
            raise InputError(f"{pictures.folder}: none of the {len(self.indices)} held-out pictures can be read")

    def _hold(self, indices: Sequence[int], counted: bool, teacher: Teacher, crop_size: int) -> Held:
        cuts: list[Cut] = []
        boxes: list[torch.Tensor] = []
        labels: list[int] = []
        for index in indices:
            try:
                image = self.pictures.read(index)
            except InputError as error:
                click.echo(f"skipped: {error}", err=True)
                continue
            name = self.pictures.files[index]
            cuts.append(cut(image, name, self.config, crop_size))
            regions = self.pictures.regions.get(name, Regions())
            boxes.append(in_square(regions.boxes, *image.size))
            labels.extend(regions.labels)
        if not cuts:
            cuts, counted = [cut(Image.new("RGB", (64, 64)), "", self.config, crop_size)], False
            boxes = [torch.zeros(0, 4)]
        batch = together(cuts)
        assert isinstance(batch, Cut)
        pixels, crops = (normalised(each, self.device, teacher.dtype) for each in (batch.pixels, batch.crops))
        wanted = teacher.of_crops(crops)
        wanted_local = teacher.of_regions(pixels, [each.to(self.device) for each in batch.boxes])
        named = torch.tensor(labels, dtype=torch.long, device=self.device)
        return Held(batch, wanted, wanted_local, boxes, named, counted)

    @torch.no_grad()
    def measure(self, student: Any, dtype: torch.dtype) -> dict[str, float]:
        """Mean cosine over all regions; likewise of the linear map's features, where there is one; and where there are
        labels, their accuracy, mean over the labels that occur.

        Args:
            student: the engine, or anything called like :class:`~rbctl.plugins.distill.tower.Student`.
        """
        summed = torch.zeros(3, dtype=torch.float64, device=self.device)
        labels = 0 if self.texts is None else len(self.texts)
        right, seen = (torch.zeros(labels, dtype=torch.float64, device=self.device) for _ in range(2))
        for batch in self.held:
            boxes = [torch.cat(pair) for pair in zip(batch.cut.boxes, batch.regions, strict=True)]
            pixels = normalised(batch.cut.pixels, self.device, dtype)
            features, local = student(pixels, [part.to(self.device) for part in boxes])
            if not batch.counted:
                continue
            of_cells = torch.cat(
                [torch.arange(len(both)) < len(cells) for both, cells in zip(boxes, batch.cut.boxes, strict=True)]
            ).to(self.device)
            cosines = region_cosines(features[of_cells], batch.wanted)
            summed[0] += cosines.double().sum()
            summed[1] += len(cosines)
            if batch.wanted_local is not None:
                summed[2] += region_cosines(local[of_cells], batch.wanted_local).double().sum()
            if self.texts is not None and len(batch.labels):
                read = (normalize(features[~of_cells].float(), dim=-1) @ self.texts.T).argmax(-1)
                right += torch.bincount(batch.labels[read == batch.labels], minlength=labels)
                seen += torch.bincount(batch.labels, minlength=labels)
        torch.distributed.all_reduce(summed)
        scores = {"region_cosine": float(summed[0] / summed[1])}
        if self.held[0].wanted_local is not None:
            scores["map_cosine"] = float(summed[2] / summed[1])
        if self.texts is not None:
            both = torch.stack([right, seen])
            torch.distributed.all_reduce(both)
            right, seen = both
            if seen.any():
                scores["region_accuracy"] = float((right[seen > 0] / seen[seen > 0]).mean())
        return scores

    def write_sheet(self, student: Any, teacher: Teacher, dtype: torch.dtype, path: Path, write: bool) -> None:
        """Show the local tokens of some held-out pictures before (the teacher's) and after (the student's).

        All processes call it; ``write`` on one of them.
        """
        from rbctl.local_encoder import dense_features

        shown: list[Image.Image] = []
        before: list[torch.Tensor] = []
        after: list[torch.Tensor] = []
        for index in self.indices[: self.config.pca_pictures]:
            try:
                image = self.pictures.read(index)
            except InputError:
                continue
            square = fit(image, self.config.image_size, centred=False)[None]
            with torch.no_grad():
                before_pixels = normalised(square, self.device, teacher.dtype)
                maps = [
                    dense_features(teacher.clip, before_pixels, project=False)[0],
                    student(normalised(square, self.device, dtype))[1][0],
                ]
            rows, columns = (math.ceil(s / max(image.size) * maps[0].shape[-1]) for s in (image.height, image.width))
            shown.append(image)
            for tokens, features in zip((before, after), maps, strict=True):
                tokens.append(features[:, :rows, :columns].float().cpu())
        if not write or not shown:
            return
        tiles = zip(shown, pca_pictures(before), pca_pictures(after), strict=True)
        captions = [text for image in shown for text in ("picture", "local tokens before", "after")]
        write_png(path, grid([_tile(part) for row in tiles for part in row], 3, captions))


def pca_pictures(maps: Sequence[torch.Tensor]) -> list[Image.Image]:
    """The three strongest components of feature maps (C, h, w) as red, green and blue, one basis for all of them."""
    features = torch.cat([each.flatten(1).T for each in maps]).double()
    centred = features - features.mean(0)
    _, vectors = torch.linalg.eigh(centred.T @ centred)
    basis = vectors[:, -3:].flip(-1)
    strongest = basis.gather(0, basis.abs().argmax(0, keepdim=True))
    parts = centred @ (basis * strongest.sign())  # a component's sign is arbitrary
    low, high = parts.quantile(0.02, dim=0), parts.quantile(0.98, dim=0)
    colours = ((parts - low) / (high - low).clamp(min=1e-12)).clamp(0, 1).mul(255).round().byte()
    cells = colours.split([each[0].numel() for each in maps])
    return [Image.fromarray(c.reshape(*each.shape[1:], 3).numpy()) for c, each in zip(cells, maps, strict=True)]


def _tile(image: Image.Image) -> Image.Image:
    """A picture, or a map of few cells, on a square of the sheet."""
    scale = _TILE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    smooth = image.width > _TILE or image.height > _TILE
    square = Image.new("RGB", (_TILE, _TILE), "white")
    square.paste(image.convert("RGB").resize(size, Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST))
    return square


def text_embeddings(tower: Tower, labels: Sequence[str]) -> torch.Tensor:
    """What the CLIP's text tower says of labels, (L, C) of unit length.

    Raises:
        InputError: the weights have no text tower, or it needs a tokenizer that is not at hand.
    """
    import open_clip
    from open_clip.model import CLIPTextCfg, _build_text_tower  # type: ignore[import-not-found,unused-ignore]

    mend = "take --weights of a whole CLIP, or leave the annotations out"
    if tower.weights is None:
        raise InputError(f"--evaluation-annotations: labels need a text tower, and the weights are random; {mend}")
    state = {name.removeprefix("text."): tensor for name, tensor in read_local_encoder(tower.weights).items()}
    if "token_embedding.weight" not in state:
        raise InputError(f"{tower.weights}: has no text tower for the labels; {mend}")
    config = tower.config.get("text_cfg", {})
    if "hf_tokenizer_name" in config or config.get("vocab_size", _VOCABULARY) != _VOCABULARY:
        raise InputError(f"{tower.weights}: its text tower has a tokenizer of its own, which is not at hand; {mend}")
    try:
        with torch.device("meta"):
            text = _build_text_tower(
                tower.config["embed_dim"], CLIPTextCfg(**config), tower.config.get("quick_gelu", False)
            )
    except Exception as error:  # open_clip checks no value, so a garbled one can fail anywhere in it
        raise InputError(f"{tower.name}: its text tower cannot be built ({reason(error)}); {mend}") from error
    own = {name: tensor for name, tensor in state.items() if not name.startswith(("visual.", "logit_"))}
    check_tensors(tower.weights, own, {name: tuple(tensor.shape) for name, tensor in text.state_dict().items()})
    text.load_state_dict({name: tensor.float() for name, tensor in own.items()}, assign=True)
    text.attn_mask = text.build_causal_mask()  # no part of the weights, so it is still on the meta device
    tokens = open_clip.SimpleTokenizer(context_length=text.context_length)
    with torch.no_grad():
        return normalize(text.eval()(tokens([PROMPT.format(label) for label in labels])).float(), dim=-1)
