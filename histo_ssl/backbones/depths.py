"""How deep in an architecture each parameter lies, by timm's own groups of layers."""

from typing import Any

from timm.models import group_parameters
from torch import nn


def layer_depths(backbone: nn.Module) -> dict[str, int]:
    """The depth of each parameter by its name: 0 at the input, as many as there are layers at the output.

    A ViT of 12 blocks has 13 depths: embeddings, blocks (the last norm with the last). An architecture that
    timm does not divide has one.
    """
    names = [name for name, _ in backbone.named_parameters()]
    matcher: Any = getattr(backbone, "group_matcher", None)
    if matcher is None:
        return dict.fromkeys(names, 0)
    found: dict[str, int] = group_parameters(backbone, matcher(coarse=False), reverse=True)
    ranks = {depth: rank for rank, depth in enumerate(sorted({found[name] for name in names}))}
    return {name: ranks[found[name]] for name in names}
