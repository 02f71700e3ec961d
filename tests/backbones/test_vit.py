"""Fixed positions and hidden patches of ViTs, against formulas and lightly's masked ViT."""

import math

import pytest
import torch
from lightly.models.modules import MaskedVisionTransformerTIMM
from torch import Tensor

from histo_ssl.backbones.timm import timm_backbone
from histo_ssl.backbones.vit import fix_positions, hide_patches, is_vit, kept_tokens, pooled, sincos_LD


def views(n: int, side: int) -> Tensor:
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(0))


def test_positions_are_waves_of_the_column_and_of_the_row() -> None:
    table = sincos_LD(3, 5, n_features=8)
    row, column = 2, 4
    expected = [
        wave(place / slowness)  # 10000^(k / 2) for k = 0, 1
        for place in (column, row)
        for wave in (math.sin, math.cos)
        for slowness in (1, 100)
    ]
    assert table.shape == (15, 8)
    assert table[row * 5 + column].tolist() == pytest.approx(expected, abs=1e-6)


def test_widths_that_have_no_quarters_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 4, got 6"):
        sincos_LD(2, 2, n_features=6)


def test_a_vit_gets_them_after_a_zero_for_its_class_token_and_does_not_train_them() -> None:
    vit = timm_backbone(name="test_vit", drop_path=0.0)
    fix_positions(vit)
    side = vit.patch_embed.grid_size[0]
    assert vit.pos_embed[0, 0].tolist() == [0.0] * 64
    assert torch.equal(vit.pos_embed[0, 1:], sincos_LD(side, side, n_features=64))
    assert not vit.pos_embed.requires_grad


def test_tokens_of_kept_patches_are_lightlys_masked_vits() -> None:
    torch.manual_seed(0)
    vit = timm_backbone(name="test_vit", drop_path=0.0).eval()
    x, places = views(2, 64), torch.tensor([[3, 0, 7], [15, 8, 2]])
    reference = MaskedVisionTransformerTIMM(
        vit, weight_initialization="skip", pos_embed_initialization="skip"
    )
    prefixed = torch.cat([torch.zeros(2, 1, dtype=torch.long), places + 1], dim=1)
    expected = reference.encode(x, idx_keep=prefixed)
    hide_patches(vit)
    torch.testing.assert_close(kept_tokens(vit, x, places_BK=places), expected)


def test_a_vit_sees_every_patch_again_when_it_is_called() -> None:
    torch.manual_seed(0)
    vit = timm_backbone(name="test_vit", drop_path=0.0).eval()
    x = views(2, 64)
    expected, names = vit(x), list(vit.state_dict())
    hide_patches(vit)
    tokens = kept_tokens(vit, x, places_BK=torch.tensor([[0], [1]]))
    assert tokens.shape == (2, 2, 64)
    torch.testing.assert_close(vit(x), expected)
    torch.testing.assert_close(pooled(vit, vit.forward_features(x)), expected)
    assert list(vit.state_dict()) == names


@pytest.mark.parametrize(("name", "expected"), [("test_vit", True), ("test_resnet", False)])
def test_a_vit_is_told_from_other_networks(name: str, expected: bool) -> None:
    assert is_vit(timm_backbone(name=name, drop_path=0.0)) is expected
