"""X-Pose (UniPose): a network that finds what a text names, and the keypoints that texts name of it.

Written after the paper (Yang et al., X-Pose: Detecting Any Keypoints, arXiv 2310.08530) and those that it builds on:
Deformable DETR (2010.04159), DINO (2203.03605), Grounding DINO (2303.05499), ED-Pose (2302.01593). Its modules have the
names that the parameters of the published checkpoint have. One picture is read at once, so nothing is padded or masked.

Shapes: S places in the picture, over all levels; T texts; E features. Boxes are centre and size, relative.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import grid_sample, pad, relu, scaled_dot_product_attention

_LEVELS = 4  # of the picture, each half as high and wide as the one before
_POINTS = 4  # that a head looks at in each level
_BOX_LAYERS = 2  # of the decoder, before it turns to keypoints
_GROUPS = 50  # a box and its keypoints, that the other layers look at
_PATCH = 4  # pixels of the picture that Swin begins with
_ANCHOR = 0.05  # side of a first guess in the finest level; double in each next
_NO_ANCHOR = 0.01  # nearest to the picture's edge that a first guess may be


class Poses(NamedTuple):
    """What X-Pose sees, the least sure last or anywhere.

    Attributes:
        scores: (N, T) in [0, 1]: how surely each is what each text names.
        boxes: (N, 4) centre and size.
        keypoints: (N, K, 2) x and y.
    """

    scores: Tensor
    boxes: Tensor
    keypoints: Tensor


def sine_embedding(values: Tensor, features: int, temperature: float) -> Tensor:
    """(..., n) numbers, of which 1 is a whole turn -> (..., n * features) sines and cosines in turns, ever slower."""
    slower = temperature ** (torch.arange(0, features, 2, device=values.device) / features)
    angles = values[..., None] * 2 * math.pi / slower
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-3)


def to_logits(values: Tensor) -> Tensor:
    """Inverse of the sigmoid, bounded near 0 and 1."""
    return (values.clamp(1e-3, 1) / (1 - values).clamp(1e-3, 1)).log()


class Mlp(nn.Module):
    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = relu(layer(x))
        return self.layers[-1](x)


class DeformableAttention(nn.Module):
    """Every query looks at a few points of each level, around its own place (Deformable DETR)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.sampling_offsets = nn.Linear(width, heads * _LEVELS * _POINTS * 2)
        self.attention_weights = nn.Linear(width, heads * _LEVELS * _POINTS)
        self.value_proj = nn.Linear(width, width)
        self.output_proj = nn.Linear(width, width)

    def forward(self, queries: Tensor, places: Tensor, memory: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
        """(Q, E) attended.

        Args:
            places: (Q, 2) points, from which offsets count in cells, or (Q, 4) boxes, in which they count in halves.
            memory: (S, E).
            sizes: height and width of each level.
        """
        count = len(queries)
        offsets = self.sampling_offsets(queries).view(count, self.heads, _LEVELS, _POINTS, 2)
        weights = self.attention_weights(queries).view(count, self.heads, -1).softmax(-1)
        if places.shape[-1] == 2:
            cells = offsets.new_tensor([(width, height) for height, width in sizes])
            offsets = offsets / cells[:, None]
        else:
            offsets = offsets / _POINTS * places[:, None, None, None, 2:] / 2
        points = 2 * (places[:, None, None, None, :2] + offsets) - 1  # grid_sample counts from -1 to 1
        values = self.value_proj(memory).view(len(memory), self.heads, -1)
        seen = []
        for level, (height, width) in enumerate(sizes):
            first = sum(h * w for h, w in sizes[:level])
            grid = values[first : first + height * width].permute(1, 2, 0).unflatten(-1, (height, width))
            seen.append(grid_sample(grid, points[:, :, level].transpose(0, 1), align_corners=False))  # (heads, e, Q, p)
        attended = (torch.cat(seen, dim=-1) * weights.transpose(0, 1)[:, None]).sum(-1)
        return self.output_proj(attended.flatten(0, 1).T)


class TwoWayAttention(nn.Module):
    """Places look at texts and texts at places, by the same similarities (GLIP, Grounding DINO)."""

    def __init__(self, width: int, inner: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.v_proj, self.l_proj = nn.Linear(width, inner), nn.Linear(width, inner)
        self.values_v_proj, self.values_l_proj = nn.Linear(width, inner), nn.Linear(width, inner)
        self.out_v_proj, self.out_l_proj = nn.Linear(inner, width), nn.Linear(inner, width)

    def forward(self, places: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
        keys = self._split(self.v_proj(places)), self._split(self.l_proj(texts))
        values = self._split(self.values_v_proj(places)), self._split(self.values_l_proj(texts))
        to_places = scaled_dot_product_attention(keys[0], keys[1], values[1])
        to_texts = scaled_dot_product_attention(keys[1], keys[0], values[0])
        return self.out_v_proj(self._joined(to_places)), self.out_l_proj(self._joined(to_texts))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(0, 1)[None]

    def _joined(self, x: Tensor) -> Tensor:
        return x[0].transpose(0, 1).flatten(1)


class FusionLayer(nn.Module):
    def __init__(self, width: int, inner: int, heads: int) -> None:
        super().__init__()
        self.layer_norm_v, self.layer_norm_l = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = TwoWayAttention(width, inner, heads)
        self.gamma_v, self.gamma_l = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))

    def forward(self, places: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
        places, texts = self.layer_norm_v(places), self.layer_norm_l(texts)
        to_places, to_texts = self.attn(places, texts)
        return places + self.gamma_v * to_places, texts + self.gamma_l * to_texts


class TextLayer(nn.Module):
    """A text attends to itself alone: it is one vector, and another text is another animal."""

    def __init__(self, width: int, inner: int, heads: int) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.linear1, self.linear2 = nn.Linear(width, inner), nn.Linear(inner, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, texts: Tensor, position: Tensor) -> Tensor:
        alone = texts[:, None]
        attended, _ = self.self_attn(alone + position, alone + position, alone)
        texts = self.norm1(texts + attended[:, 0])
        return self.norm2(texts + self.linear2(relu(self.linear1(texts))))


class EncoderLayer(nn.Module):
    def __init__(self, width: int, inner: int, heads: int) -> None:
        super().__init__()
        self.self_attn = DeformableAttention(width, heads)
        self.linear1, self.linear2 = nn.Linear(width, inner), nn.Linear(inner, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, memory: Tensor, position: Tensor, points: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
        memory = self.norm1(memory + self.self_attn(memory + position, points, memory, sizes))
        return self.norm2(memory + self.linear2(relu(self.linear1(memory))))


class DecoderLayer(nn.Module):
    def __init__(self, width: int, inner: int, heads: int) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ca_text = nn.MultiheadAttention(width, heads, batch_first=True)
        self.cross_attn = DeformableAttention(width, heads)
        self.linear1, self.linear2 = nn.Linear(width, inner), nn.Linear(inner, width)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.catext_norm = nn.LayerNorm(width)

    def forward(
        self,
        queries: Tensor,
        position: Tensor,
        boxes: Tensor,
        memory: Tensor,
        texts: Tensor,
        sizes: Sequence[tuple[int, int]],
    ) -> Tensor:
        """(G, M, E): G groups of M queries, which attend to their own group alone.

        Args:
            position: (G, M, E), where each is.
            boxes: (G, M, 4), the same as numbers.
        """
        placed = queries + position
        queries = self.norm2(queries + self.self_attn(placed, placed, queries)[0])
        texts = texts.expand(len(queries), -1, -1)
        queries = self.catext_norm(queries + self.ca_text(queries + position, texts, texts)[0])
        seen = self.cross_attn((queries + position).flatten(0, 1), boxes.flatten(0, 1), memory, sizes)
        queries = self.norm1(queries + seen.view_as(queries))
        return self.norm3(queries + self.linear2(relu(self.linear1(queries))))


class Encoder(nn.Module):
    def __init__(self, width: int, inner: int, heads: int, depth: int) -> None:
        super().__init__()
        half = inner // 2, heads // 2
        self.layers = nn.ModuleList(EncoderLayer(width, inner, heads) for _ in range(depth))
        self.text_layers = nn.ModuleList(TextLayer(width, *half) for _ in range(depth))
        self.fusion_layers = nn.ModuleList(FusionLayer(width, *half) for _ in range(depth))

    def forward(
        self, memory: Tensor, position: Tensor, points: Tensor, texts: Tensor, sizes: Sequence[tuple[int, int]]
    ) -> tuple[Tensor, Tensor]:
        text_position = sine_embedding(texts.new_ones(1), texts.shape[-1], 10000)  # all texts are at place 1
        for fuse, read, look in zip(self.fusion_layers, self.text_layers, self.layers, strict=True):
            memory, texts = fuse(memory, texts)
            texts = read(texts, text_position)
            memory = look(memory, position, points, sizes)
        return memory, texts


class Decoder(nn.Module):
    def __init__(self, width: int, inner: int, heads: int, depth: int, keypoints: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(width, inner, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.ref_point_head = Mlp(2 * width, width, width)
        self.hw = nn.Embedding(keypoints, 2)

    def position(self, boxes: Tensor) -> Tensor:
        width = self.norm.normalized_shape[0]
        return self.ref_point_head(sine_embedding(boxes[..., [1, 0, 2, 3]], width // 2, 10000))


class Transformer(nn.Module):
    def __init__(
        self, width: int, inner: int, heads: int, depths: tuple[int, int], queries: int, keypoints: int
    ) -> None:
        super().__init__()
        self.level_embed = nn.Parameter(torch.zeros(_LEVELS, width))
        self.encoder = Encoder(width, inner, heads, depths[0])
        self.decoder = Decoder(width, inner, heads, depths[1], keypoints)
        self.tgt_embed = nn.Embedding(queries, width)
        self.enc_output, self.enc_output_norm = nn.Linear(width, width), nn.LayerNorm(width)
        self.enc_out_bbox_embed = Mlp(width, width, width, 4)


class XPose(nn.Module):
    """The sizes are those of the weights it is to load; see :func:`sizes_of`."""

    def __init__(
        self,
        swin: Mapping[str, Any],
        clip: Mapping[str, Any],
        width: int,
        inner: int,
        heads: int,
        depths: tuple[int, int],
        queries: int,
        keypoints: int,
    ) -> None:
        from open_clip.transformer import QuickGELU, TextTransformer
        from torchvision.models.swin_transformer import SwinTransformer

        super().__init__()
        channels = [swin["embed_dim"] * 2**stage for stage in range(4)]
        tower = SwinTransformer(patch_size=[_PATCH, _PATCH], stochastic_depth_prob=0.0, num_classes=1, **swin)
        self.backbone = tower.features
        self.backbone_norms = nn.ModuleList(nn.LayerNorm(count) for count in channels[1:])
        projections = [nn.Conv2d(count, width, 1) for count in channels[1:]]
        projections.append(nn.Conv2d(channels[-1], width, 3, stride=2, padding=1))  # coarser than Swin's own
        self.input_proj = nn.ModuleList(nn.Sequential(layer, nn.GroupNorm(32, width)) for layer in projections)
        self.transformer = Transformer(width, inner, heads, depths, queries, keypoints)
        self.bbox_embed = nn.ModuleList([Mlp(width, width, width, 4)])
        self.pose_embed = nn.ModuleList([Mlp(width, width, width, 2)])
        self.pose_hw_embed = nn.ModuleList([Mlp(width, width, width, 2)])
        self.clip_model = TextTransformer(act_layer=QuickGELU, **clip)
        self.projection = Mlp(clip["output_dim"], width, width, width)
        self.projection_kpt = Mlp(clip["output_dim"], width, width, width)

    def forward(self, pixels: Tensor, names: Tensor, keypoints: Tensor) -> Poses:
        """The 50 surest that the texts may name.

        Args:
            pixels: (3, H, W), normalised as ImageNet's.
            names: (T, 77) tokens of what is looked for.
            keypoints: (K, 77) tokens of its keypoints.
        """
        texts = self.projection(self.clip_model(names))
        keypoint_texts = self.projection_kpt(self.clip_model(keypoints))
        levels = self._levels(pixels)
        sizes = [(level.shape[1], level.shape[2]) for level in levels]
        memory = torch.cat([level.flatten(1).T for level in levels])
        embedded = zip(sizes, self.transformer.level_embed, strict=True)
        position = torch.cat([_position(*size, level) for size, level in embedded])
        centres = torch.cat([_centres(*size, pixels.device) for size in sizes])
        memory, texts = self.transformer.encoder(memory, position, centres, texts, sizes)
        queries, boxes = self._first_guesses(memory, texts, sizes)
        return self._decoded(queries, boxes, memory, texts, keypoint_texts, sizes)

    def _levels(self, pixels: Tensor) -> list[Tensor]:
        """(E, h, w) each, half as high and wide as the one before."""
        height, width = pixels.shape[1:]
        x = pad(pixels, (0, -width % _PATCH, 0, -height % _PATCH))[None]
        maps: list[Tensor] = []
        for number, part in enumerate(self.backbone):
            x = part(x)
            if number in (3, 5, 7):  # the blocks of the second, third and fourth stage
                maps.append(self.backbone_norms[len(maps)](x).permute(0, 3, 1, 2))
        levels = zip(self.input_proj, (*maps, maps[-1]), strict=True)
        return [project(features)[0] for project, features in levels]

    def _first_guesses(self, memory: Tensor, texts: Tensor, sizes: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """(1, Q, E) queries and (1, Q, 4) boxes: those places in the picture that are most like a text (DINO)."""
        anchors = []
        for number, size in enumerate(sizes):
            centres = _centres(*size, memory.device)
            anchors.append(torch.cat((centres, torch.full_like(centres, _ANCHOR * 2**number)), dim=-1))
        anchor = torch.cat(anchors)
        inside = ((anchor > _NO_ANCHOR) & (anchor < 1 - _NO_ANCHOR)).all(-1, keepdim=True)
        logits = torch.logit(anchor).masked_fill(~inside, math.inf)
        memory = self.transformer.enc_output_norm(self.transformer.enc_output(memory * inside))
        boxes = (self.transformer.enc_out_bbox_embed(memory) + logits).sigmoid()
        likeness = (memory @ texts.T).amax(-1)
        queries = self.transformer.tgt_embed.weight
        best = likeness.topk(min(len(queries), len(likeness))).indices
        return queries[None, : len(best)], boxes[None, best]

    def _decoded(
        self,
        queries: Tensor,
        boxes: Tensor,
        memory: Tensor,
        texts: Tensor,
        keypoint_texts: Tensor,
        sizes: Sequence[tuple[int, int]],
    ) -> Poses:
        """Every layer moves the boxes on; the first look for boxes alone, the others for keypoints too (ED-Pose)."""
        decoder = self.transformer.decoder
        for number, layer in enumerate(decoder.layers):
            if number == _BOX_LAYERS:
                queries, boxes = self._with_keypoints(queries[0], boxes[0], texts, keypoint_texts)
            before, position = boxes, decoder.position(boxes)
            queries = layer(queries, position, before, memory, texts, sizes)
            boxes = self._moved(before, queries, with_keypoints=number >= _BOX_LAYERS)
        # The last layer's normed queries tell the result, from where its boxes were.
        queries = decoder.norm(queries)
        boxes = self._moved(before, queries, with_keypoints=True)
        return Poses((queries[:, 0] @ texts.T).sigmoid(), boxes[:, 0], boxes[:, 1:, :2])

    def _with_keypoints(
        self, queries: Tensor, boxes: Tensor, texts: Tensor, keypoint_texts: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(G, 1 + K, E) and (G, 1 + K, 4): the surest boxes, each with its keypoints as boxes of their own."""
        best = (queries @ texts.T).amax(-1).topk(min(_GROUPS, len(queries))).indices
        owners, around = queries[best, None], boxes[best, None]
        keypoints = keypoint_texts.expand(len(best), -1, -1)
        centres = (to_logits(around[..., :2]) + self.pose_embed[0](keypoints)).sigmoid()
        extents = self.transformer.decoder.hw.weight.sigmoid() * around[..., 2:]
        parts = torch.cat((centres, extents), dim=-1)
        return torch.cat((owners, keypoints), dim=1), torch.cat((around, parts), dim=1)

    def _moved(self, boxes: Tensor, queries: Tensor, with_keypoints: bool) -> Tensor:
        if not with_keypoints:
            return (to_logits(boxes) + self.bbox_embed[0](queries)).sigmoid()
        keypoints = queries[:, 1:]
        move_keypoints = torch.cat((self.pose_embed[0](keypoints), self.pose_hw_embed[0](keypoints)), dim=-1)
        moves = torch.cat((self.bbox_embed[0](queries[:, :1]), move_keypoints), dim=1)
        return (to_logits(boxes) + moves).sigmoid()


def _centres(height: int, width: int, device: torch.device) -> Tensor:
    """(height * width, 2) x and y of the cells' centres."""
    y = (torch.arange(height, device=device) + 0.5) / height
    x = (torch.arange(width, device=device) + 0.5) / width
    return torch.cartesian_prod(y, x).flip(-1)


def _position(height: int, width: int, level: Tensor) -> Tensor:
    """(height * width, E): where each cell is, and (E,) in which level."""
    y = torch.arange(1, height + 1, device=level.device) / (height + 1e-6)
    x = torch.arange(1, width + 1, device=level.device) / (width + 1e-6)
    return sine_embedding(torch.cartesian_prod(y, x), len(level) // 2, 20) + level
