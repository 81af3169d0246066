"""Dense features of timm's towers, against timm's own forward pass and a last block written out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn.functional import interpolate, linear, normalize

from rbctl.bundle.towers import build_visual, fill_visual
from rbctl.errors import InputError
from rbctl.local_encoder import dense_features, pool_regions, tower_parts

SIZES = {"patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 4}
KINDS: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    "rbctl_eva02": (
        Eva,
        {
            "qkv_fused": False,
            "swiglu_mlp": True,
            "scale_mlp": True,
            "scale_attn_inner": True,
            "mlp_ratio": 4 * 2 / 3,
            "use_rot_pos_emb": True,
            "ref_feat_shape": (4, 4),
        },
    ),
    "rbctl_eva02_fused": (Eva, {"swiglu_mlp": True, "use_rot_pos_emb": True, "ref_feat_shape": (4, 4)}),
    "rbctl_eva01": (Eva, {"init_values": 0.5}),
    "rbctl_eva02_post_norm": (Eva, {"use_post_norm": True}),
    "rbctl_vit": (VisionTransformer, {"pre_norm": True, "init_values": 0.5}),
}


def create(kind: str, image_size: int = 32, **options: Any) -> nn.Module:
    model, own = KINDS[kind]
    return model(**{"img_size": image_size, **SIZES, **own, **options})


def _register(kind: str) -> None:
    def create_fn(pretrained: bool = False, pretrained_cfg: Any = None, **options: Any) -> nn.Module:
        assert not pretrained
        return create(kind, **{key: value for key, value in options.items() if not key.startswith(("cache", "pretr"))})

    create_fn.__name__ = kind
    timm.models.register_model(create_fn)


for name in KINDS:
    _register(name)


def clip_config(kind: str) -> dict[str, Any]:
    vision = {"image_size": 32, "timm_model_name": kind, "timm_pool": "token", "timm_proj": None}
    return {"embed_dim": 24, "vision_cfg": vision}


def tower(kind: str) -> Any:
    """As a bundle loads one: built on the meta device, filled with weights of which none is zero or one."""
    torch.manual_seed(0)
    tensors = build_visual(clip_config(kind), kind).state_dict()
    tensors = {key: tensor + 0.1 * torch.randn_like(tensor) for key, tensor in tensors.items()}
    with torch.device("meta"):
        visual = build_visual(clip_config(kind), kind)
    return fill_visual(visual, tensors).eval()


def by_hand(trunk: Any, pixels: torch.Tensor) -> torch.Tensor:
    """timm's own pass up to the last block, and that block with values in the place of attention."""
    seen: list[torch.Tensor] = []
    handle = trunk.blocks[-1].register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    trunk(pixels)
    handle.remove()
    block, attention, x = trunk.blocks[-1], trunk.blocks[-1].attn, seen[0]

    def values(x: torch.Tensor) -> torch.Tensor:
        if attention.qkv is None:
            value = attention.v_proj(x)
        else:
            bias = attention.v_bias if hasattr(attention, "v_bias") else attention.qkv.bias[2 * x.shape[-1] :]
            value = linear(x, attention.qkv.weight[2 * x.shape[-1] :], bias)
        return attention.proj(attention.norm(value))

    if type(block).__name__ == "EvaBlockPostNorm":
        x = x + block.norm1(values(x))
        x = x + block.norm2(block.mlp(x))
    else:
        first, second = (block.ls1.gamma, block.ls2.gamma) if hasattr(block, "ls1") else (block.gamma_1, block.gamma_2)
        x = x + values(block.norm1(x)) * (1 if first is None else first)
        x = x + block.mlp(block.norm2(x)) * (1 if second is None else second)
    return trunk.norm(x)[:, 1:]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", [32, 64])
@torch.no_grad()
def test_dense_features_are_the_last_blocks_values(kind: str, side: int) -> None:
    """At the tower's own size, and at another, for which positions are resized and rotations stretched."""
    visual = tower(kind)
    pixels, cells = torch.randn(2, 3, side, side), side // 8
    trunk = visual.trunk
    if side != 32:
        trunk = create(kind, side, num_classes=24, global_pool="token").eval()
        own = visual.trunk.state_dict()
        square = own["pos_embed"][:, 1:].mT.unflatten(2, (4, 4))
        resized = interpolate(square, size=(cells, cells), mode="bicubic", align_corners=False)
        own["pos_embed"] = torch.cat((own["pos_embed"][:, :1], resized.flatten(2).mT), dim=1)
        trunk.load_state_dict(own)
    tokens = by_hand(trunk, pixels)
    for project, wanted in ((False, tokens), (True, trunk.head(tokens))):
        features = dense_features(visual, pixels, project)
        torch.testing.assert_close(features, normalize(wanted, dim=-1).mT.unflatten(2, (cells, cells)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_filled_tower_says_of_pictures_what_timms_own_says(kind: str) -> None:
    """What timm computes itself when it builds a model, as rotations, is there after a build on the meta device."""
    visual = tower(kind)
    own = create(kind, num_classes=24, global_pool="token").eval()
    own.load_state_dict(visual.trunk.state_dict())
    pixels = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(visual(pixels), own(pixels))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_all_but_queries_and_keys_of_the_last_block(kind: str) -> None:
    visual = tower(kind).train()
    pool_regions(
        dense_features(visual, torch.randn(1, 3, 32, 32), True), [torch.tensor([[0, 0, 0.5, 0.5]])]
    ).sum().backward()
    idle = {n for n, p in visual.named_parameters() if p.grad is None or not p.grad.abs().sum()}
    last = "trunk.blocks.2.attn."
    assert idle <= {f"{last}{part}" for part in ("q_proj.weight", "q_proj.bias", "k_proj.weight", "q_bias")}
    assert [tower_parts(visual).image_size, tower_parts(visual).patch_size] == [32, 8]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"timm_pool": "avg"}, "a ViT or EVA with a class token is needed"),
        ({"timm_model_name": "vit_tiny_patch16_rope_mixed_224"}, "lacks or garbles"),
        ({"timm_model_name": "hf-hub:someone/something"}, "timm_model_name: .* would be downloaded"),
        ({"hf_model_name": "someone/something"}, "hf_model_name: .* would be downloaded"),
        ({"timm_model_name": "resnet18"}, "a ViT or EVA with a class token is needed|lacks or garbles"),
    ],
)
def test_a_tower_without_dense_features_is_one_line(change: dict[str, Any], said: str) -> None:
    config = clip_config("rbctl_eva01")
    if "hf_model_name" in change:
        config["text_cfg"] = change
    else:
        config["vision_cfg"] |= change
    with pytest.raises(InputError, match=f"^here: .*{said}"):
        build_visual(config, "here")
