"""Which parameters weight decay pulls on."""

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
    decayed = [p for name, p in trained if p.ndim > 1 and not name.endswith(".bias")]
    rest = [p for name, p in trained if p.ndim <= 1 or name.endswith(".bias")]
    return [
        {"params": decayed, "is_decayed": True},
        {"params": rest, "is_decayed": False, "weight_decay": 0.0},
    ]
