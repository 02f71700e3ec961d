"""Attention by whichever way is quick gives what timm's own gives, and as exact gradients."""

import copy
from typing import Any

import pytest
import timm
import torch
from timm.layers.attention import Attention
from torch import Tensor, nn

from histo_ssl.backbones import quick_attention
from histo_ssl.backbones.class_token import ClassTokenAttention
from histo_ssl.backbones.quick_attention import QuickAttention, attend_quickly
from histo_ssl.backbones.timm import timm_backbone

N_TILES, N_TOKENS, WIDTH = 3, 17, 48
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"qkv_bias": True},
    "without biases": {"qkv_bias": False, "proj_bias": False},
    "queries and keys normalised": {"qk_norm": True, "norm_layer": nn.LayerNorm, "qkv_bias": True},
    "result normalised": {"scale_norm": True, "norm_layer": nn.LayerNorm, "qkv_bias": True},
}


def pair_of(**options: Any) -> tuple[Attention, QuickAttention]:
    """timm's attention, not fused, and ours with the same weights."""
    torch.manual_seed(0)
    theirs = Attention(WIDTH, num_heads=6, **options)
    theirs.fused_attn = False
    ours = copy.deepcopy(theirs)
    attend_quickly(ours)
    assert type(ours) is QuickAttention
    return theirs, ours


def tokens(dtype: torch.dtype = torch.float32) -> Tensor:
    """(B, T, D), with some spread among weights."""
    return 3 * torch.randn(
        N_TILES, N_TOKENS, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    ).to(dtype)


def with_gradients(module: nn.Module, x: Tensor, *, autocast: bool = False) -> list[Tensor]:
    """The result, and the gradients of a sum of its squares by tokens and parameters."""
    module.zero_grad()
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = module(x)
    y.double().square().sum().backward()
    assert x.grad is not None
    return [y.detach(), x.grad, *(p.grad for p in module.parameters() if p.grad is not None)]


@pytest.mark.parametrize("kind", KINDS)
def test_results_and_gradients_are_timms(kind: str) -> None:
    theirs, ours = (module.double() for module in pair_of(**KINDS[kind]))
    x = tokens(torch.float64)
    for expected, found in zip(with_gradients(theirs, x), with_gradients(ours, x), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    with torch.inference_mode():
        torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_in_bfloat16_results_are_timms_to_the_bit_and_gradients_as_exact(kind: str) -> None:
    theirs, ours = pair_of(**KINDS[kind])
    x = tokens()
    exact = with_gradients(theirs, x)
    by_timm, by_us = (with_gradients(module, x, autocast=True) for module in (theirs, ours))
    torch.testing.assert_close(by_us[0], by_timm[0], rtol=0, atol=0)
    for true, timms, found in zip(exact, by_timm, by_us, strict=True):
        off_timm, off_us = ((made.float() - true).norm() / true.norm() for made in (timms, found))
        assert off_us < 1.2 * off_timm + 1e-4


def test_without_gradients_bfloat16_is_as_exact_as_timms() -> None:
    theirs, ours = (module.eval() for module in pair_of(qkv_bias=True))
    x = tokens()
    with torch.inference_mode():
        exact = theirs(x)
        with torch.autocast("cpu", torch.bfloat16):
            off_timm, off_us = ((module(x).float() - exact).norm() for module in (theirs, ours))
    assert off_us < 1.2 * off_timm


@pytest.mark.parametrize(
    ("is_bfloat16", "learns", "is_fused"),
    [(True, True, False), (True, False, True), (False, True, True), (False, False, True)],
)
def test_all_but_gradients_in_bfloat16_are_fused(
    is_bfloat16: bool, learns: bool, is_fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, fused = [], quick_attention.F.scaled_dot_product_attention

    def noted(*args: Tensor, **options: float) -> Tensor:
        calls.append(1)
        return fused(*args, **options)

    monkeypatch.setattr(quick_attention.F, "scaled_dot_product_attention", noted)
    _, ours = pair_of(qkv_bias=True)
    with torch.set_grad_enabled(learns), torch.autocast("cpu", torch.bfloat16, enabled=is_bfloat16):
        ours(tokens())
    assert bool(calls) == is_fused


def test_dropout_drops_weights_either_way() -> None:
    _, ours = pair_of(qkv_bias=True, attn_drop=0.5)
    x = tokens()
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            assert not torch.equal(ours.train()(x), ours(x))
            assert torch.equal(ours.eval()(x), ours(x))


def test_a_mask_is_left_to_timm() -> None:
    theirs, ours = pair_of(qkv_bias=True)
    mask = torch.ones(N_TOKENS, N_TOKENS, dtype=torch.bool).tril()
    for options in ({"attn_mask": mask}, {"is_causal": True}):
        torch.testing.assert_close(ours(tokens(), **options), theirs(tokens(), **options))
        assert not torch.allclose(ours(tokens(), **options), ours(tokens()))


def test_gates_and_other_kinds_stay_as_they_are() -> None:
    gated = Attention(WIDTH, num_heads=6, gated=True)
    attend_quickly(gated)
    assert type(gated) is Attention
    swin = timm.create_model("swin_tiny_patch4_window7_224", num_classes=0)
    kinds = {type(module) for module in swin.modules()}
    attend_quickly(swin)
    assert {type(module) for module in swin.modules()} == kinds


def test_every_block_of_a_vit_attends_quickly_under_timms_names() -> None:
    ours = timm_backbone(name="vit_tiny_patch16_224", drop_path=0.0)
    kinds = [type(block.attn) for block in ours.blocks]
    assert kinds == [QuickAttention] * 11 + [ClassTokenAttention]
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    assert list(ours.state_dict()) == list(theirs.state_dict())
