"""A last block that works for the class token alone: the same features and gradients as timm's own."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.models.vision_transformer import ResPostBlock, VisionTransformer
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from histo_ssl.backbones.class_token import ClassTokenViT, shorten_last_block
from histo_ssl.backbones.timm import timm_backbone

SMALL: dict[str, Any] = {
    **{"img_size": 64, "patch_size": 16, "embed_dim": 48, "depth": 3, "num_heads": 3, "num_classes": 0},
    "dynamic_img_size": True,
}
SHORTENED: dict[str, dict[str, Any]] = {
    "plain": {},
    "no bias": {"qkv_bias": False},
    "registers": {"reg_tokens": 4},
    "scaled layers": {"init_values": 0.1},
    "norm before the projection": {"scale_attn_norm": True},
    "norm before the blocks": {"pre_norm": True},
    "norm of the features": {"fc_norm": True, "final_norm": False},
    "drop path": {"drop_path_rate": 0.5},
}
LEFT: dict[str, dict[str, Any]] = {
    "mean of patches": {"global_pool": "avg", "fc_norm": False},
    "no class token": {"class_token": False, "global_pool": "avg"},
    "attention pooling": {"global_pool": "map"},
    "normalised queries and keys": {"qk_norm": True},
    "norm after the residual": {"block_fn": ResPostBlock},
    "differential attention": {"attn_layer": "diff"},
}


def _pair(**options: Any) -> tuple[Any, Any]:
    """timm's ViT and the same shortened, in double precision, with weights far from their start."""
    torch.manual_seed(0)
    whole = VisionTransformer(**{**SMALL, **options}).double().train()
    for parameter in whole.parameters():
        nn.init.normal_(parameter, std=0.15)
    shortened = copy.deepcopy(whole)
    shorten_last_block(shortened)
    return whole, shortened


def _views(n: int = 3, side: int = 64) -> Tensor:
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def _features_and_gradients(vit: Any, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    x = x.clone().requires_grad_()
    torch.manual_seed(2)  # of drop path
    z = vit(x)
    (z * torch.randn(z.shape, generator=torch.Generator().manual_seed(3), dtype=z.dtype)).sum().backward()
    gradients = {name: p.grad for name, p in vit.named_parameters() if p.grad is not None}
    assert x.grad is not None
    return z.detach(), {"x": x.grad, **gradients}


@pytest.mark.parametrize("kind", SHORTENED)
@pytest.mark.parametrize("side", [64, 96])
def test_features_and_gradients_are_those_of_the_whole_block(kind: str, side: int) -> None:
    whole, shortened = _pair(**SHORTENED[kind])
    assert type(shortened) is ClassTokenViT
    assert list(shortened.state_dict()) == list(whole.state_dict())
    z, expected = _features_and_gradients(whole, _views(side=side))
    found_z, found = _features_and_gradients(shortened, _views(side=side))
    torch.testing.assert_close(found_z, z, rtol=0, atol=1e-9)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=0, atol=1e-9, msg=name)


@pytest.mark.parametrize("kind", LEFT)
def test_what_does_not_end_in_a_plain_class_token_stays_as_it_is(kind: str) -> None:
    whole, same = _pair(**LEFT[kind])
    assert type(same) is VisionTransformer
    torch.testing.assert_close(same.eval()(_views()), whole.eval()(_views()), rtol=0, atol=0)


def test_architectures_without_a_class_token_stay_as_they_are() -> None:
    resnet = timm.create_model("resnet18")
    shorten_last_block(resnet)
    assert type(resnet) is type(timm.create_model("resnet18"))


def test_all_tokens_and_a_mask_of_attention_are_timms_own() -> None:
    whole, shortened = _pair()
    x = _views()
    torch.testing.assert_close(shortened.forward_features(x), whole.forward_features(x), rtol=0, atol=0)
    mask = torch.ones(17, 17, dtype=torch.bool).tril()
    torch.testing.assert_close(shortened(x, attn_mask=mask), whole(x, attn_mask=mask), rtol=0, atol=0)
    found, expected = shortened.forward_intermediates(x), whole.forward_intermediates(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_recomputed_activations_give_the_same_gradients() -> None:
    _, shortened = _pair()
    z, expected = _features_and_gradients(shortened, _views())
    shortened.zero_grad()
    shortened.set_grad_checkpointing(True)
    found_z, found = _features_and_gradients(shortened, _views())
    torch.testing.assert_close(found_z, z, rtol=0, atol=0)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda vit: pickle.loads(pickle.dumps(vit))])
def test_a_copy_is_as_short(copied: Callable[[Any], Any]) -> None:
    _, shortened = _pair()
    twin = copied(shortened)
    assert type(twin) is ClassTokenViT
    torch.testing.assert_close(twin(_views()), shortened(_views()), rtol=0, atol=0)


def test_half_precision_is_as_near_to_the_truth_as_timms_own() -> None:
    whole, shortened = (vit.float().eval() for vit in _pair())
    x = _views(16).float()
    exact = whole(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        errors = [(vit(x).float() - exact).norm().item() for vit in (whole, shortened)]
    assert errors[1] < 1.2 * errors[0]


def test_a_vit_of_twelve_blocks_saves_a_twelfth_of_its_operations() -> None:
    short, x = timm_backbone(name="vit_small_patch16_224", drop_path=0.0), torch.randn(1, 3, 224, 224)
    whole = timm.create_model("vit_small_patch16_224", num_classes=0, dynamic_img_size=True)
    for block in whole.blocks:
        block.attn.fused_attn = False  # which is not counted
    assert type(short) is ClassTokenViT
    assert 0.905 < _n_operations(short, x) / _n_operations(whole, x) < 0.93


def _n_operations(vit: nn.Module, x: Tensor) -> int:
    # of the fused attention on CPUs the counter knows nothing
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        vit(x).sum().backward()
    return counter.get_total_flops()
