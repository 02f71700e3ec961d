"""Layer-wise rates: those of timm's own groups, and the formula's."""

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import nn

from histo_ssl.backbones.depths import layer_depths
from histo_ssl.backbones.timm import timm_backbone
from histo_ssl.optim.groups import layer_groups


class Headed(nn.Module):
    """A backbone with a linear layer on top."""

    def __init__(self, backbone: nn.Module, *, dim: int) -> None:
        super().__init__()
        self.backbone, self.head = backbone, nn.Linear(dim, 2)


def _rates(module: nn.Module, **values: float) -> dict[str, tuple[float, float]]:
    """Rate and weight decay of each parameter, by its name."""
    depths = {f"backbone.{name}": depth for name, depth in layer_depths(module.backbone).items()}
    groups = layer_groups(module, depths, **values)
    found = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert len(found) == sum(len(group["params"]) for group in groups)  # each once
    return {name: found[id(p)] for name, p in module.named_parameters() if id(p) in found}


def test_rates_of_a_vit_fall_block_by_block() -> None:
    vit = timm_backbone(name="vit_tiny_patch16_224", drop_path=0.0)
    rates = _rates(Headed(vit, dim=192), lr=2.0, decay=0.5, weight_decay=0.1)
    assert rates["head.weight"] == (2.0, 0.1)
    assert rates["head.bias"] == (2.0, 0.0)
    for block in range(12):  # BEiT's lr x decay^(L + 1 - i) of L = 12 blocks, of which the first is i = 1
        expected = 2.0 * 0.5 ** (12 + 1 - (block + 1))
        assert rates[f"backbone.blocks.{block}.attn.qkv.weight"] == (expected, 0.1)
        assert rates[f"backbone.blocks.{block}.norm1.weight"] == (expected, 0.0)
    for name in ("cls_token", "pos_embed", "patch_embed.proj.weight"):
        assert rates[f"backbone.{name}"] == (2.0 * 0.5**13, 0.1)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet18", "regnety_002"])
def test_rates_are_those_of_timms_own_layer_decay(name: str) -> None:
    theirs = timm.create_model(name, num_classes=2)
    scale = {
        id(p): group["lr_scale"]
        for group in param_groups_layer_decay(theirs, layer_decay=0.7)
        for p in group["params"]
    }
    expected = {key: scale[id(p)] for key, p in theirs.named_parameters()}
    backbone = timm_backbone(name=name, drop_path=0.0)
    rates = _rates(Headed(backbone, dim=8), lr=1.0, decay=0.7, weight_decay=0.0)
    ours = {key.removeprefix("backbone."): lr for key, (lr, _) in rates.items() if key.startswith("backbone")}
    tops = [lr for key, lr in expected.items() if key not in ours]
    assert set(tops) == {1.0}
    assert ours == pytest.approx({key: lr for key, lr in expected.items() if key in ours})


def test_frozen_parameters_are_in_no_group_and_a_factor_of_one_gives_all_the_same_rate() -> None:
    module = Headed(nn.Linear(3, 8), dim=8)
    module.backbone.bias.requires_grad_(False)
    assert _rates(module, lr=0.3, decay=1.0, weight_decay=0.0).keys() == {
        *("backbone.weight", "head.weight", "head.bias")
    }
    assert {lr for lr, _ in _rates(module, lr=0.3, decay=1.0, weight_decay=0.0).values()} == {0.3}
    # an architecture that timm does not divide is one layer, below the top
    assert _rates(module, lr=1.0, decay=0.5, weight_decay=0.0)["backbone.weight"] == (0.5, 0.0)


def test_an_optimiser_moves_each_layer_at_its_rate() -> None:
    module = Headed(nn.Linear(3, 8, bias=False), dim=8)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    groups = layer_groups(module, {"backbone.weight": 0}, lr=0.1, decay=0.5, weight_decay=0.0)
    for p in module.parameters():
        p.grad = torch.ones_like(p)
    torch.optim.SGD(groups).step()
    moved = {name: (before[name] - p).detach() for name, p in module.named_parameters()}
    torch.testing.assert_close(moved["backbone.weight"], torch.full((8, 3), 0.05))
    torch.testing.assert_close(moved["head.weight"], torch.full((2, 8), 0.1))
