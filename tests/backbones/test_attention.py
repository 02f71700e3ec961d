"""Attention of the class token: against a softmax by hand and the block's own output, by both paths."""

import math
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from histo_ssl.backbones.attention import check_heads, class_attention, class_weights, entering
from histo_ssl.backbones.timm import timm_backbone

SMALL: dict[str, Any] = {
    **{"img_size": 64, "patch_size": 16, "embed_dim": 48, "depth": 3, "num_heads": 3, "num_classes": 0},
    "dynamic_img_size": True,
}
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "normalised queries and keys": {"qk_norm": True},
    "registers": {"reg_tokens": 4},
    "registers, positions of patches only": {"reg_tokens": 4, "no_embed_class": True},
    "norm after the residual": {"block_fn": timm.models.vision_transformer.ResPostBlock, "init_values": 0.5},
    "scaled layers": {"init_values": 0.1},
    "norm before the projection": {"scale_attn_norm": True},
}


def _vit(kind: str, *, std: float = 0.15, **changes: Any) -> Any:
    torch.manual_seed(0)
    vit = timm.models.VisionTransformer(**{**SMALL, **KINDS[kind], **changes})
    for parameter in vit.parameters():  # far from the flat attention of fresh weights
        torch.nn.init.normal_(parameter, std=std)
    return vit.eval()


def _views(n: int = 2, side: int = 64) -> Tensor:
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", KINDS)
def test_the_weights_are_a_softmax_by_hand(kind: str) -> None:
    vit, x = _vit(kind), _views()
    attn, tokens = vit.blocks[-1].attn, entering(vit, x)
    found = class_weights(attn, tokens)
    width = SMALL["embed_dim"] // SMALL["num_heads"]
    weight, bias = attn.qkv.weight.double(), attn.qkv.bias.double()
    for b, head in ((0, 0), (1, 2)):
        rows = slice(head * width, (head + 1) * width)
        query = tokens[b, 0].double() @ weight[rows].T + bias[rows]
        offset = slice(48 + rows.start, 48 + rows.stop)
        keys = tokens[b].double() @ weight[offset].T + bias[offset]
        query, keys = attn.q_norm(query.float()).double(), attn.k_norm(keys.float()).double()
        terms = [math.exp((key @ query).item() / math.sqrt(width)) for key in keys]
        expected = torch.tensor([term / sum(terms) for term in terms])
        torch.testing.assert_close(found[b, head], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("is_fused", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_weights_give_the_blocks_own_output_by_both_paths(kind: str, is_fused: bool) -> None:
    vit = _vit(kind)
    attn = vit.blocks[-1].attn
    attn.fused_attn = is_fused
    tokens = entering(vit, _views())
    v = attn.qkv(tokens).unflatten(-1, (3, attn.num_heads, -1)).unbind(2)[2].transpose(1, 2)
    taken = (class_weights(attn, tokens)[:, :, None] @ v).flatten(1)
    torch.testing.assert_close(attn.proj(attn.norm(taken)), attn(tokens)[:, 0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", [64, 96])
def test_rows_sum_to_one_over_patches_and_prefix(kind: str, side: int) -> None:
    found = class_attention(_vit(kind), _views(side=side))
    assert found.patches_BHhw.shape == (2, 3, side // 16, side // 16)
    assert found.prefix_BHP.shape == (2, 3, 1 + KINDS[kind].get("reg_tokens", 0))
    total = found.patches_BHhw.sum((-2, -1)) + found.prefix_BHP.sum(-1)
    torch.testing.assert_close(total, torch.ones(2, 3), atol=1e-6, rtol=0)


def test_a_patch_that_is_looked_for_stands_at_its_row_and_column() -> None:
    vit = _vit("plain", std=0.5, depth=1, pos_embed="none")
    x = torch.zeros(1, 3, 64, 96)
    x[..., 32:48, 64:80] = 9.0
    maps = class_attention(vit, x).patches_BHhw[0]
    rest = torch.ones(4, 6, dtype=torch.bool)
    rest[2, 4] = False
    for head in maps:
        assert head[rest].unique().numel() <= 2  # equal but for rounding
        assert not torch.isclose(head[2, 4], head[0, 0], rtol=1e-3)


def test_half_precision_weights_are_taken_in_single() -> None:
    vit = _vit("normalised queries and keys").bfloat16()
    attn = vit.blocks[-1].attn
    tokens = entering(vit, _views().bfloat16())
    found = class_weights(attn, tokens)
    assert found.dtype == torch.float32
    assert attn.qkv.weight.dtype == torch.bfloat16
    torch.testing.assert_close(found, class_weights(attn.float(), tokens.float()), atol=1e-6, rtol=0)


def test_the_forward_pass_is_left_as_it_was() -> None:
    vit, x = _vit("registers"), _views()
    before = vit(x)
    class_attention(vit, x)
    assert torch.equal(vit(x), before)
    assert not vit.blocks[-1].attn._forward_pre_hooks


@pytest.mark.parametrize(
    ("backbone", "sentence"),
    [
        (lambda: timm_backbone(name="resnet18", drop_path=0.0), "a ResNet, which has no heads"),
        (lambda: _vit("plain", class_token=False, global_pool="avg"), "no class token"),
        (lambda: _vit("plain", attn_layer="diff"), "attends by DiffAttention"),
    ],
)
def test_what_has_no_such_attention_is_refused_in_one_sentence(backbone: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as refused:
        check_heads(backbone())
    assert "\n" not in str(refused.value)


def test_our_own_backbones_pass() -> None:
    check_heads(timm_backbone(name="vit_tiny_patch16_224", drop_path=0.1))
