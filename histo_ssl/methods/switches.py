"""Two switches that trade time and memory and change no result beyond rounding."""

from torch import nn


def switch_on(method: nn.Module, *, compile: bool, grad_checkpointing: bool) -> None:
    """Make a method's networks compile themselves, or recompute activations in the backward pass.

    BatchNorm's running statistics see every batch twice where activations are recomputed.

    Args:
        method: its networks are its children; their parameters keep their names.
        compile: have torch.compile make kernels for each of them when it is first called.
        grad_checkpointing: keep only what goes into a block, if a backbone knows how.

    Raises:
        ValueError: a backbone does not know how.
    """
    if grad_checkpointing:
        _recompute(method)
    if compile:
        for network in method.children():
            network.compile()


def _recompute(method: nn.Module) -> None:
    able = [part for part in method.modules() if hasattr(part, "set_grad_checkpointing")]
    backbones = [part for part in able if hasattr(part, "num_features")]
    try:
        for backbone in backbones:
            backbone.set_grad_checkpointing(True)  # type: ignore[operator]
    except AssertionError:  # timm's way of saying no
        backbones = []
    if not backbones:
        raise ValueError(
            "grad_checkpointing=true: this backbone cannot recompute its activations; say false, or choose "
            "one that can, such as vit_s or resnet50"
        )
