"""ResNets without their last stage, as histopathology has long used them (arXiv:2004.09666)."""

from typing import Any, cast

import timm
from torch import nn

from histo_ssl.backbones.timm import check_name

# channels of a ResNet's third stage over those of its fourth (arXiv:1512.03385, table 1)
THIRD_OVER_FOURTH = 2


def truncated_resnet(*, name: str, drop_path: float) -> nn.Module:
    """Stages 1 to 3 of a ResNet with random weights, then a global average: (B, 3, s, s) to (B, D).

    Args:
        name: a ResNet of timm, such as resnet50.
        drop_path: probability that the last residual branch of the full ResNet is left out in training, 0-1.

    Returns:
        A module whose `num_features` is D: 1024 for resnet50. Its parameter names are torchvision's.

    Raises:
        ValueError: timm has no such architecture, or it is no ResNet.
    """
    check_name(name)
    model: Any = timm.create_model(name, num_classes=0, drop_path_rate=drop_path)
    if not hasattr(model, "layer4"):
        raise ValueError(
            f"backbone.name: {name} has no four stages to truncate; use a ResNet such as resnet50, "
            f"or backbone=timm"
        )
    model.layer4 = nn.Sequential()
    model.num_features //= THIRD_OVER_FOURTH
    return cast(nn.Module, model)
