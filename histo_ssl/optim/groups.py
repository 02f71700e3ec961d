"""Which parameters weight decay pulls on, and which of them learn more slowly than others."""

from collections.abc import Mapping
from typing import Any

from torch import nn


def decay_groups(module: nn.Module) -> list[dict[str, Any]]:
    """Trainable parameters in two groups for an optimiser: those that decay, and biases and vectors.

    As in DINO's code, whatever is neither a bias nor one-dimensional decays: also the class token and the
    position embeddings of a ViT.

    Returns:
        Two groups with `params` and `is_decayed`, the undecayed one with a weight decay of 0. A linear layer
        gives its weight in the first group, its bias in the second.
    """
    trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    decayed = [p for name, p in trained if _is_decayed(name, p)]
    rest = [p for name, p in trained if not _is_decayed(name, p)]
    return [
        {"params": decayed, "is_decayed": True},
        {"params": rest, "is_decayed": False, "weight_decay": 0.0},
    ]


def layer_groups(
    module: nn.Module, depths: Mapping[str, int], *, lr: float, decay: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Trainable parameters by depth, with rates that fall by a factor from each layer to the one below.

    BEiT's layer-wise decay (arXiv:2106.08254, appendix; arXiv:2111.06377, table 9) over timm's layers: the
    rate of depth i is lr x decay^(n - i). Unlike there a ViT's last norm counts with its last block, and the
    class token and position embeddings decay, as in `decay_groups`.

    Args:
        module: whose parameters.
        depths: 0 at the input, rising, by the names of parameters; those not named are the top layer, of
            depth n, one above the highest that is.
        lr: of the top layer.
        decay: the factor, above 0 and up to 1; 1 gives all the same rate.
        weight_decay: of what decays.

    Returns:
        Groups with `params`, `lr` and `weight_decay`. With lr 1 and decay .5 the layer below the top has .5.
    """
    top = 1 + max(depths.values(), default=-1)
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            key = depths.get(name, top), _is_decayed(name, parameter)
            groups.setdefault(key, []).append(parameter)
    return [
        {
            "params": params,
            "lr": lr * decay ** (top - depth),
            "weight_decay": weight_decay if is_decayed else 0.0,
        }
        for (depth, is_decayed), params in groups.items()
    ]


def _is_decayed(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim > 1 and not name.endswith(".bias")
